// A model on a device: see model.h.
#include "train/model/model.h"

#include "train/model/block.h"

#include <inttypes.h>

// Optimizer moments of each kind.
static int moments_of(OptimizerKind kind) {
    return kind == OPTIMIZER_ADAMW ? 2 : 1;
}

// Everything that a model's arena holds. With layout->base NULL it only counts.
static void lay_out(const ModelConfig *config, const ModelOptions *options, const Operations *op, Layout *layout,
                    int64_t elements, Model *out, Activations *activations) {
    float *params = layout_take(layout, "parameters", 1, elements, 1, sizeof(float));
    int moments = options->forward_only ? 0 : moments_of(options->optimizer);
    float *grads = layout_take(layout, "gradients", !options->forward_only, elements, 1, sizeof(float));
    float *moment1 = layout_take(layout, "optimizer's first moments", moments > 0, elements, 1, sizeof(float));
    float *moment2 = layout_take(layout, "optimizer's second moments", moments > 1, elements, 1, sizeof(float));
    if (out != NULL) {
        out->params = params;
        out->weights = params;
        out->grads = options->forward_only ? NULL : grads;
        out->moment1 = moments > 0 ? moment1 : NULL;
        out->moment2 = moments > 1 ? moment2 : NULL;
    }
    activations_layout(config, options, op, layout, activations);
}

// Sizes the arena and fills the plan.
static int64_t plan_arena(const ModelConfig *config, const ModelOptions *options, const Device *device, int64_t elements,
                          MemoryPlan *plan) {
    // What the kernels take for each thread as they go: the packed parts of a product and tiles of attention.
    const int64_t scratch_each = 5 << 18;
    int threads = threads_count(device->pool);
    int64_t scratch = threads * scratch_each - (int64_t)device->scratch_bytes;
    memory_plan_add(plan, "program", (int64_t)memory_peak_resident(), "so far");
    memory_plan_add(plan, "kernels' scratch", scratch > 0 ? scratch : 0, "%d threads, about", threads);
    Activations nowhere = {0};
    Layout layout = {.plan = plan};
    lay_out(config, options, device->op, &layout, elements, NULL, &nowhere);
    return layout.used;
}

void model_plan(const ModelConfig *config, const ModelOptions *options, const Device *device, MemoryPlan *out) {
    ParamTable table;
    params_create(config, &table);
    *out = (MemoryPlan){0};
    plan_arena(config, options, device, table.elements, out);
    params_free(&table);
}

static Error *check_options(const ModelConfig *config, const ModelOptions *options) {
    if (options->sequences < 1 || options->length < 1 || options->length > ((int64_t)1 << 31) / options->sequences) {
        return failure("a micro-batch of %" PRId64 " sequences of %" PRId64 " tokens is not possible", options->sequences,
                       options->length);
    }
    if (options->length > config->context) {
        return failure("sequences of %" PRId64 " tokens are longer than model.context %" PRId64
                       "; shorten them or raise model.context",
                       options->length, config->context);
    }
    return NULL;
}

Error *model_create(Device *device, const ModelConfig *config, const ModelOptions *options, Model **out) {
    TRY(model_config_check(config, "model"));
    TRY(check_options(config, options));
    Model *model = memory_zeroed(1, sizeof *model);
    model->device = device;
    model->config = *config;
    model->options = *options;
    params_create(config, &model->table);
    model->arena_bytes = plan_arena(config, options, device, model->table.elements, &model->plan);
    Error *error = memory_plan_check(&model->plan);
    if (error != NULL) {
        model_destroy(model);
        return error;
    }
    model->activations = memory_zeroed(1, sizeof *model->activations);
    if (!options->forward_only) {
        model->activations->layers = memory_zeroed((size_t)config->layers, sizeof *model->activations->layers);
    }
    error = device_allocate(device, (size_t)model->arena_bytes, &model->arena);
    if (error != NULL) {
        model_destroy(model);
        return error;
    }
    Layout layout = {.base = model->arena};
    lay_out(config, options, device->op, &layout, model->table.elements, model, model->activations);
    ensure(layout.used == model->arena_bytes, "the plan and its use differ");
    if (config->position == POSITION_ROTARY) {
        rotary_table(config, options->length, model->activations->cos_sin);
    }
    *out = model;
    return NULL;
}

void model_destroy(Model *model) {
    if (model == NULL) {
        return;
    }
    if (model->arena != NULL) {
        device_release(model->device, model->arena, (size_t)model->arena_bytes);
    }
    if (model->activations != NULL) {
        free(model->activations->layers);
    }
    free(model->activations);
    params_free(&model->table);
    free(model);
}

void model_initialise(Model *model, uint64_t seed) {
    params_initialise(&model->table, seed, model->device->pool, model->params);
    model_params_changed(model);
}

void model_zero_gradients(Model *model) {
    ensure(model->grads != NULL, "a model without gradients");
    model->device->op->zero(model->device, model->table.elements * (int64_t)sizeof(float), model->grads);
}

void model_params_changed(Model *model) {
    model->weights = model->params;
}

// ---- Passes

static Pass pass_of(const Model *model, const Batch *batch) {
    ensure(batch->length <= model->options.length &&
               batch->sequences * batch->length <= model->options.sequences * model->options.length,
           "a batch of %" PRId64 " x %" PRId64 " tokens in a model made for %" PRId64 " x %" PRId64, batch->sequences,
           batch->length, model->options.sequences, model->options.length);
    return (Pass){
        .model = model,
        .sequences = batch->sequences,
        .length = batch->length,
        .rows = batch->sequences * batch->length,
        .tokens = batch->tokens,
        .first = batch->first,
        .positions = batch->positions,
        .first_sample = batch->first_sample,
    };
}

static void final_norm(const Pass *pass, const void *x) {
    const Model *model = pass->model;
    const Activations *a = model->activations;
    block_norm(model, pass->rows, model->table.final_norm, model->table.final_norm_bias, x, a->final, a->final_mean,
               a->final_rstd);
}

// The head and the loss; with dx also their gradients.
static void classify(const Pass *pass, const Batch *batch, const StepOptions *options, const float *weights, float *losses,
                     void *dx) {
    const Model *model = pass->model;
    const Activations *a = model->activations;
    int32_t head = model->table.head;
    model->device->op->classifier(model->device, &(Classifier){
                                                     .rows = pass->rows,
                                                     .width = model->config.width,
                                                     .vocabulary = model->config.vocabulary,
                                                     .x = a->final,
                                                     .w = block_weight(model, head),
                                                     .targets = batch->targets,
                                                     .weights = weights,
                                                     .z_loss = options != NULL ? options->z_loss : 0,
                                                     .grad_scale = options != NULL ? options->grad_scale : 0,
                                                     .losses = losses,
                                                     .zs = a->zs,
                                                     .dx = dx,
                                                     .dw = dx != NULL ? model->grads + model->table.rows[head].offset : NULL,
                                                     .chunk_rows = a->head_rows,
                                                     .scratch = a->head_scratch,
                                                 });
}

static void announce(const StepOptions *options, int64_t offset) {
    if (options->gradients_final != NULL) {
        options->gradients_final(options->context, offset);
    }
}

static void final_norm_backward(const Pass *pass) {
    const Model *model = pass->model;
    const Activations *a = model->activations;
    const ParamTable *table = &model->table;
    model->device->op->norm_backward(model->device, &(NormBackward){
                                                        .kind = (NormKind)model->config.norm,
                                                        .rows = pass->rows,
                                                        .width = model->config.width,
                                                        .dy = a->dnarrow,
                                                        .x = a->last,
                                                        .weight = block_weight(model, table->final_norm),
                                                        .mean = a->final_mean,
                                                        .rstd = a->final_rstd,
                                                        .dx = a->dstream,
                                                        .dweight = model_row(model, model->grads, table->final_norm),
                                                        .dbias = model_row(model, model->grads, table->final_norm_bias),
                                                    });
}

void model_forward_backward(Model *model, const Batch *batch, const StepOptions *options, StepResult *result) {
    ensure(model->grads != NULL, "a model made for forward passes only");
    const Activations *a = model->activations;
    Pass pass = pass_of(model, batch);
    pass.dropout = (float)model->config.dropout;
    pass.seed = options->seed;
    embedding_pass(&pass, a->layers[0].input);
    for (int64_t layer = 0; layer < model->config.layers; layer++) {
        block_forward(&pass, layer, &a->layers[layer]);
    }
    final_norm(&pass, a->last);
    classify(&pass, batch, options, batch->weights, a->losses, a->dnarrow);
    final_norm_backward(&pass);
    announce(options, model->table.rows[model->table.final_norm].offset);
    for (int64_t layer = model->config.layers - 1; layer >= 0; layer--) {
        block_backward(&pass, layer, &a->layers[layer], a);
        announce(options, model->table.rows[model->table.layers[layer].attention_norm].offset);
    }
    embedding_pass_backward(&pass, a->dstream);
    announce(options, 0);
    *result = (StepResult){0};
    for (int64_t r = 0; r < pass.rows; r++) {
        double weight = (double)batch->weights[r];
        if (weight != 0) {
            result->loss_sum += weight * (double)a->losses[r];
            result->z_sum += weight * (double)a->zs[r] * (double)a->zs[r];
            result->weight_sum += weight;
        }
    }
}

// The final norm's output of a pass without dropout and without anything kept.
static Pass forward_quietly(Model *model, const Batch *batch) {
    const LayerActivations *at = &model->activations->shared;
    Pass pass = pass_of(model, batch);
    embedding_pass(&pass, at->input);
    for (int64_t layer = 0; layer < model->config.layers; layer++) {
        block_forward(&pass, layer, at);
    }
    final_norm(&pass, at->output);
    return pass;
}

void model_evaluate(Model *model, const Batch *batch, float *losses) {
    Pass pass = forward_quietly(model, batch);
    // Weight 1 wherever there is a target.
    float *weights = model->activations->losses;
    for (int64_t r = 0; r < pass.rows; r++) {
        weights[r] = batch->targets[r] >= 0 ? 1.0F : 0.0F;
    }
    classify(&pass, batch, NULL, weights, losses, NULL);
}

void model_logits(Model *model, const Batch *batch, float *logits) {
    Pass pass = forward_quietly(model, batch);
    block_project(model, pass.rows, model->table.head, -1, model->activations->final, NULL, logits);
}

void model_optimizer_step(Model *model, const OptimizerStep *step, double learning_rate, double weight_decay, int64_t begin,
                          int64_t end) {
    OptimizerSegment *segments;
    OptimizerStep whole = *step;
    whole.segment_count = params_segments(&model->table, learning_rate, weight_decay, begin, end, &segments);
    whole.segments = segments;
    whole.kind = model->options.optimizer;
    whole.grads = model->grads;
    whole.params = model->params;
    whole.moment1 = model->moment1;
    whole.moment2 = model->moment2;
    model->device->op->optimizer_step(model->device, &whole);
    free(segments);
    model_params_changed(model);
}
