// A model on a device: its memory and its passes. See model.h; the step's state is in step.c, the way in and out in store.c.
#include "train/model/model.h"

#include "train/model/block.h"

#include <inttypes.h>

// Optimizer moments of each kind.
static int moments_of(OptimizerKind kind) {
    return kind == OPTIMIZER_ADAMW ? 2 : 1;
}

// Everything that a model's arena holds. With layout->base NULL it only counts.
static void lay_out(const Model *model, Layout *layout, Model *out, Activations *activations) {
    const ModelOptions *options = &model->options;
    Device *device = model->device;
    int64_t elements = model->table.elements, element = data_type_bytes(device->type);
    bool wide = device->type == TYPE_FP32, learns = !options->forward_only;
    // Passes without learning need no masters.
    bool masters = wide || (learns && !options->no_masters);
    float *params = layout_take(layout, wide ? "parameters" : "fp32 parameters", masters, elements, 1, sizeof(float));
    void *weights = layout_take(layout, "parameters", !wide, elements, 1, element);
    int moments = learns ? moments_of(options->optimizer) : 0;
    float *grads = layout_take(layout, "gradients", learns, elements, 1, sizeof(float));
    bool codes = options->moments == MOMENT_8BIT;
    int64_t blocks = (elements + MOMENT_BLOCK - 1) / MOMENT_BLOCK, values = codes ? blocks * MOMENT_BLOCK : elements;
    int64_t bytes = codes ? 1 : (int64_t)sizeof(float);
    void *moment1 = layout_take(layout, "optimizer's first moments", moments > 0, values, 1, bytes);
    void *moment2 = layout_take(layout, "optimizer's second moments", moments > 1, values, 1, bytes);
    float *scales = layout_take(layout, "scales of moments", codes ? moments : 0, blocks, 1, sizeof(float));
    UpdateSegment *segments = layout_take(layout, "settings of parameters", learns, model->table.count, 1, sizeof *segments);
    StepControl *control = layout_take(layout, "state of the step", 1, 1, 1, sizeof *control);
    // On the CPU batches are used where they are.
    int64_t slots = device->kind == DEVICE_CPU ? 0 : options->batches > 0 ? options->batches : 1;
    int64_t rows = options->sequences * options->length;
    int32_t *batches = layout_take(layout, "batches on the card", slots, rows, BATCH_ARRAYS, sizeof(int32_t));
    if (out != NULL) {
        out->params = masters ? params : NULL;
        out->weights = wide ? params : weights;
        out->grads = learns ? grads : NULL;
        out->moment1 = moments > 0 ? moment1 : NULL;
        out->moment2 = moments > 1 ? moment2 : NULL;
        out->scale1 = codes ? scales : NULL;
        out->scale2 = codes && moments > 1 ? layout_part(scales, 1, moments, blocks, sizeof(float)) : NULL;
        out->segments = learns ? segments : NULL;
        out->control = control;
        for (int64_t i = 0; i < slots; i++) {
            out->batches[i].tokens = layout_part(batches, i, slots, rows * BATCH_ARRAYS, sizeof(int32_t));
        }
    }
    activations_layout(&model->config, options, device, layout, activations);
}

// Sizes the arena and fills the plan.
static int64_t plan_arena(const Model *model, MemoryPlan *plan) {
    const Device *device = model->device;
    // What the kernels take for each thread as they go: the packed parts of a product and tiles of attention.
    const int64_t scratch_each = 5 << 18;
    int threads = threads_count(device->pool);
    int64_t scratch = device->kind == DEVICE_CPU ? threads * scratch_each - (int64_t)device->scratch_bytes : 0;
    memory_plan_add_host(plan, device, "program", (int64_t)memory_peak_resident(), "so far");
    if (device->kind == DEVICE_CPU) {
        memory_plan_add(plan, "kernels' scratch", scratch > 0 ? scratch : 0, "%d threads, about", threads);
    } else {
        memory_plan_add(plan, "kernels' workspace", (int64_t)CARD_WORKSPACE, "partial sums, about");
    }
    Activations nowhere = {0};
    Layout layout = {.plan = plan, .element = data_type_bytes(device->type)};
    lay_out(model, &layout, NULL, &nowhere);
    return layout.used;
}

void model_plan(const ModelConfig *config, const ModelOptions *options, Device *device, MemoryPlan *out) {
    Model model = {.device = device, .config = *config, .options = *options};
    params_create(config, &model.table);
    *out = (MemoryPlan){0};
    plan_arena(&model, out);
    params_free(&model.table);
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

// What the device must know before the first step: settings of parameters, rotary angles, the state of the step.
static void fill_constants(Model *model) {
    Device *device = model->device;
    if (!model->options.forward_only) {
        UpdateSegment *segments;
        model->segment_count = params_segments(&model->table, model->options.weight_decay, 0, model->table.elements, &segments);
        device_upload(device, model->segments, segments, (size_t)model->segment_count * sizeof *segments);
        free(segments);
    }
    model_upload_rotary(device, &model->config, model->options.length, model->activations->cos_sin);
    model_set_control(model, &(StepControl){.loss_scale = device->type == TYPE_FP16 ? 65536 : 1});
}

Error *model_create(Device *device, const ModelConfig *config, const ModelOptions *options, Model **out) {
    TRY(model_config_check(config, "model"));
    TRY(check_options(config, options));
    Model *model = memory_zeroed(1, sizeof *model);
    model->device = device;
    model->config = *config;
    model->options = *options;
    params_create(config, &model->table);
    model->arena_bytes = plan_arena(model, &model->plan);
    Error *error = memory_plan_check(&model->plan, device);
    if (error == NULL) {
        error = device_allocate(device, (size_t)model->arena_bytes, &model->arena);
    }
    // The CPU gives memory when it is first touched.
    model->plan.held = device->kind != DEVICE_CPU ? model->arena_bytes : 0;
    if (error != NULL) {
        model_destroy(model);
        return error;
    }
    model->activations = memory_zeroed(1, sizeof *model->activations);
    model->batches = memory_zeroed(options->batches > 1 ? (size_t)options->batches : 1, sizeof *model->batches);
    if (!options->forward_only) {
        model->activations->layers = memory_zeroed((size_t)config->layers, sizeof *model->activations->layers);
    }
    Layout layout = {.base = model->arena, .element = data_type_bytes(device->type)};
    lay_out(model, &layout, model, model->activations);
    ensure(layout.used == model->arena_bytes, "the plan and its use differ");
    model->returned = device_staging(device, 2 * sizeof *model->returned);
    for (int i = 0; i < 2; i++) {
        model->marks[i] = device_mark_create(device);
    }
    fill_constants(model);
    *out = model;
    return NULL;
}

void model_destroy(Model *model) {
    if (model == NULL) {
        return;
    }
    device_release(model->device, model->arena, (size_t)model->arena_bytes);
    for (int i = 0; i < 2; i++) {
        device_mark_destroy(model->device, model->marks[i]);
    }
    device_staging_release(model->device, model->returned, 2 * sizeof *model->returned);
    if (model->activations != NULL) {
        free(model->activations->layers);
    }
    free(model->activations);
    free(model->batches);
    params_free(&model->table);
    free(model);
}

void model_zero_gradients(Model *model) {
    ensure(model->grads != NULL, "a model without gradients");
    model->device->op->zero(model->device, model->table.elements * (int64_t)sizeof(float), model->grads);
}

void model_params_changed(Model *model) {
    if (model->weights != model->params && model->params != NULL) {
        model->device->op->convert(
            model->device, &(Convert){model->table.elements, TYPE_FP32, model->device->type, model->params, model->weights});
    }
}

// ---- Passes

void model_load_batch(Model *model, int64_t slot, const Batch *batch) {
    ensure(batch->length <= model->options.length &&
               batch->sequences * batch->length <= model->options.sequences * model->options.length,
           "a batch of %" PRId64 " x %" PRId64 " tokens in a model made for %" PRId64 " x %" PRId64, batch->sequences,
           batch->length, model->options.sequences, model->options.length);
    Device *device = model->device;
    if (device->kind == DEVICE_CPU) {
        model->batches[0] = *batch;
        return;
    }
    ensure(slot >= 0 && slot < (model->options.batches > 1 ? model->options.batches : 1), "no place %" PRId64, slot);
    Batch *at = &model->batches[slot];
    device_upload(device, at->tokens, batch_block(batch), batch_bytes(batch->sequences, batch->length));
    batch_place(at, at->tokens, batch->sequences, batch->length);
    at->first_sample = batch->first_sample;
}

static Pass pass_of(const Model *model, int64_t slot) {
    const Batch *batch = &model->batches[model->device->kind == DEVICE_CPU ? 0 : slot];
    return (Pass){
        .model = model,
        .batch = batch,
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
static void classify(const Pass *pass, const StepOptions *options, void *dx) {
    const Model *model = pass->model;
    const Activations *a = model->activations;
    int32_t head = model->table.head;
    bool fp16 = model->device->type == TYPE_FP16;
    model->device->op->classifier(model->device, &(Classifier){
                                                     .rows = pass->rows,
                                                     .width = model->config.width,
                                                     .vocabulary = model->config.vocabulary,
                                                     .x = a->final,
                                                     .w = block_weight(model, head),
                                                     .targets = pass->batch->targets,
                                                     .weights = pass->batch->weights,
                                                     .z_loss = options != NULL ? options->z_loss : 0,
                                                     .grad_scale = options != NULL ? options->grad_scale : 0,
                                                     .losses = a->losses,
                                                     .zs = a->zs,
                                                     .dx = dx,
                                                     .dw = dx != NULL ? model->grads + model->table.rows[head].offset : NULL,
                                                     .chunk_rows = a->head_rows,
                                                     .scratch = a->head_scratch,
                                                     .loss_scale = fp16 ? &model->control->loss_scale : NULL,
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

void model_run_batch(Model *model, int64_t slot, const StepOptions *options) {
    ensure(model->grads != NULL, "a model made for forward passes only");
    const Activations *a = model->activations;
    Device *device = model->device;
    Pass pass = pass_of(model, slot);
    pass.dropout = (float)model->config.dropout;
    pass.seed = options->seed;
    embedding_pass(&pass, a->layers[0].input);
    for (int64_t layer = 0; layer < model->config.layers; layer++) {
        block_forward(&pass, layer, &a->layers[layer]);
    }
    final_norm(&pass, a->last);
    classify(&pass, options, a->dnarrow);
    device->op->loss_sums(device, &(LossSums){pass.rows, pass.batch->weights, a->losses, a->zs, model->control});
    final_norm_backward(&pass);
    announce(options, model->table.rows[model->table.final_norm].offset);
    for (int64_t layer = model->config.layers - 1; layer >= 0; layer--) {
        block_backward(&pass, layer, &a->layers[layer], a);
        announce(options, model->table.rows[model->table.layers[layer].attention_norm].offset);
    }
    embedding_pass_backward(&pass, a->dstream);
    announce(options, 0);
}

void model_forward_backward(Model *model, const Batch *batch, const StepOptions *options, StepResult *result) {
    model_load_batch(model, 0, batch);
    if (result == NULL) {
        model_run_batch(model, 0, options);
        return;
    }
    StepControl before = model_control(model), control = before;
    control.loss_sum = control.z_sum = control.weight_sum = 0;
    model_set_control(model, &control);
    model_run_batch(model, 0, options);
    control = model_control(model);
    *result = (StepResult){control.loss_sum, control.weight_sum, control.z_sum};
    control.loss_sum += before.loss_sum;
    control.weight_sum += before.weight_sum;
    control.z_sum += before.z_sum;
    model_set_control(model, &control);
}

// The final norm's output of a pass without dropout and without anything kept.
static Pass forward_quietly(Model *model, const Batch *batch) {
    const LayerActivations *at = &model->activations->shared;
    model_load_batch(model, 0, batch);
    Pass pass = pass_of(model, 0);
    embedding_pass(&pass, at->input);
    for (int64_t layer = 0; layer < model->config.layers; layer++) {
        block_forward(&pass, layer, at);
    }
    final_norm(&pass, at->output);
    return pass;
}

void model_evaluate(Model *model, const Batch *batch, float *losses) {
    // Weight 1 wherever there is a target.
    int64_t rows = batch->sequences * batch->length;
    Batch counted;
    batch_allocate(&counted, batch->sequences, batch->length);
    memcpy(counted.tokens, batch_block(batch), batch_bytes(batch->sequences, batch->length));
    for (int64_t r = 0; r < rows; r++) {
        counted.weights[r] = batch->targets[r] >= 0 ? 1.0F : 0.0F;
    }
    Pass pass = forward_quietly(model, &counted);
    classify(&pass, NULL, NULL);
    device_download(model->device, losses, model->activations->losses, (size_t)rows * sizeof *losses);
    batch_free(&counted);
}

void model_logits(Model *model, const Batch *batch, float *logits) {
    Pass pass = forward_quietly(model, batch);
    void *memory;
    size_t bytes = (size_t)(pass.rows * model->config.vocabulary) * sizeof *logits;
    Error *error = device_allocate(model->device, bytes, &memory);
    ensure(error == NULL, "%s", error->message);
    block_logits(model, pass.rows, model->activations->final, memory);
    device_download(model->device, logits, memory, bytes);
    device_release(model->device, memory, bytes);
}
