// A model on a device: its memory and whole passes. See model.h; the step's state is in step.c.
#include "train/model/model.h"

#include "core/text.h"
#include "kernels/scratch.h"
#include "train/model/pass.h"

#include <inttypes.h>

// ---- Memory

static Storage storage_of(const ModelOptions *options, DataType type) {
    return (Storage){.type = type,
                     .frozen_type = type,
                     .learns = !options->forward_only,
                     .masters = options->masters,
                     .optimizer = options->optimizer,
                     .moments = options->moments};
}

static Error *place(const ParamTable *table, const ModelOptions *options, DataType type, Placement *out) {
    Storage storage = storage_of(options, type);
    RankShare share = rank_share_whole(table);
    if (options->tensor.ranks > 1) {
        share.tensor = options->tensor.rank;
        share.tensor_ranks = options->tensor.ranks;
    }
    if (options->shards > 1) {
        share.shard = options->shard;
        share.shards = options->shards;
        share.zero = options->zero;
    }
    share.whole_gradients = options->leaves.parts > 0 ? options->leaves.ranks : 0;
    share.stage_count = stages_here(&options->stages);
    for (int i = 0; i < share.stage_count; i++) {
        share.stages[i] = stages_range(&options->stages, table->layer_count, i);
    }
    return placement_create(table, &storage, &share, out);
}

Error *model_check_placement(const ModelConfig *config, const ModelOptions *options, DataType type) {
    TRY(stages_check(&options->stages, config->layers));
    ParamTable table;
    Placement placement;
    params_create(config, &table);
    Error *error = place(&table, options, type, &placement);
    if (error == NULL) {
        placement_free(&placement);
    }
    params_free(&table);
    return error;
}

Placement model_placement(const ParamTable *table, const ModelOptions *options, DataType type) {
    Placement placement;
    Error *error = place(table, options, type, &placement);
    ensure(error == NULL, "%s", error->message);  // model_check_placement has seen to it
    return placement;
}

static bool cuts_rows(const Model *model) {
    return model->options.tensor.cut_rows && !model->options.forward_only;
}

// Everything that a model's arena holds. With layout->base NULL it only counts.
static void lay_out(Model *model, const Machine *machine, Layout *layout) {
    const ModelOptions *options = &model->options;
    WorkspaceOptions space = {.sequences = options->sequences,
                              .length = options->length,
                              .recompute = options->recompute,
                              .forward_only = options->forward_only,
                              .head_rows = options->head_rows,
                              .tensor = options->tensor,
                              .context = options->context};
    if (model->stages != NULL) {
        const StagePlan *stages = stages_plan(model->stages);
        space.weights_later = true;
        space.chunk_count = stages_here(&options->stages);
        memcpy(space.chunks, stages->chunks, sizeof space.chunks);
        space.streams = stages->streams;
    }
    Placement placement = model_placement(&model->table, options, machine->type);
    weights_lay_out(&model->weights, &model->table, placement, layout);
    leaves_lay_out(&model->leaves, &options->leaves, &model->weights.placement, model->config.layers, layout);
    model->control = layout_take(layout, "state of the step", 1, 1, 1, sizeof *model->control);
    model->norm_gradients = layout_take(layout, "gradients of norms", cuts_rows(model), 4 * model->config.layers + 2,
                                        model->config.width, sizeof(float));
    workspace_lay_out(&model->workspace, machine, &model->here, &space, layout);
}

static int64_t cut_bytes(const ModelOptions *options) {
    return (int64_t)batch_cut_bytes(options->sequences, options->length, options->context.ranks);
}

// Sizes the arena and fills the plan.
static int64_t plan_arena(Model *model, const Machine *machine, MemoryPlan *plan) {
    const ModelOptions *options = &model->options;
    // What the CPU's kernels take for each thread as they go: the packed parts of a product, or a sequence's keys and values
    // for attention; on a card, partial sums.
    const int64_t products = 5 << 18, card_workspace = 256 << 20;
    int64_t keys = options->context.ranks > 1 ? context_part(&options->context, options->length) : options->length;
    int64_t attention = attention_scratch_bytes(keys, model->config.head_width, !model->options.forward_only);
    int64_t scratch_each = attention > products ? attention : products;
    *plan = (MemoryPlan){0};
    memory_plan_add_host(plan, machine->kind, "program", machine->program, "so far");
    if (options->context.ranks > 1) {
        memory_plan_add_host(plan, machine->kind, "cut batch", cut_bytes(options), "this rank's parts of a micro-batch");
    }
    if (machine->kind == DEVICE_CPU) {
        char threads[64];
        memory_plan_add(plan, "kernels' scratch", machine->threads * scratch_each, "%s, about",
                        text_number_of(threads, machine->threads, "thread"));
    } else {
        memory_plan_add(plan, "kernels' workspace", card_workspace, "partial sums, about");
    }
    Layout layout = {.plan = plan};
    lay_out(model, machine, &layout);
    weights_free(&model->weights);
    return layout.used;
}

void model_plan(const ModelConfig *config, const ModelOptions *options, const Machine *machine, MemoryPlan *out) {
    Model model = {.config = *config, .options = *options};
    Error *error = tensor_config(config, &model.options.tensor, &model.here);
    ensure(error == NULL, "%s", error->message);
    params_create(config, &model.table);
    model.stages = stages_create(&options->stages, config->layers);
    plan_arena(&model, machine, out);
    stages_destroy(model.stages);
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
    return context_check(&options->context, options->length);
}

static Error *allocate(Model *model, const Machine *machine) {
    model->arena_bytes = plan_arena(model, machine, &model->plan);
    TRY(memory_plan_check(&model->plan, machine));
    TRY(device_allocate(model->device, (size_t)model->arena_bytes, &model->arena));
    Layout layout = {.base = model->arena};
    lay_out(model, machine, &layout);
    ensure(layout.used == model->arena_bytes, "the plan and its use differ");
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
    model->tensor = memory_zeroed(1, sizeof *model->tensor);
    model->cut = options->context.ranks > 1 ? memory_tensor((size_t)cut_bytes(options)) : NULL;
    Machine machine = machine_of(device, 1, 1);
    Error *error = tensor_config(config, &options->tensor, &model->here);
    error = error == NULL ? stages_check(&options->stages, config->layers) : error;
    if (error == NULL) {
        model->stages = stages_create(&options->stages, config->layers);
        error = allocate(model, &machine);
    }
    if (error != NULL) {
        model_destroy(model);
        return error;
    }
    model->weights.device = model->workspace.device = device;
    model->returned = device_staging(device, 2 * sizeof *model->returned);
    for (int i = 0; i < 2; i++) {
        model->marks[i] = device_mark_create(device);
    }
    weights_fill(&model->weights, options->weight_decay);
    fetch_connect(model->weights.fetch, model->tensor);
    workspace_fill(&model->workspace, config);
    model_set_control(model, &(StepControl){.loss_scale = device->type == TYPE_FP16 ? 65536 : 1});
    *out = model;
    return NULL;
}

void model_destroy(Model *model) {
    if (model == NULL) {
        return;
    }
    device_release(model->device, model->arena, (size_t)model->arena_bytes);
    if (model->cut != NULL) {
        memory_tensor_free(model->cut, (size_t)cut_bytes(&model->options));
    }
    for (int i = 0; i < 2; i++) {
        device_mark_destroy(model->device, model->marks[i]);
    }
    device_staging_release(model->device, model->returned, 2 * sizeof *model->returned);
    workspace_free(&model->workspace);
    stages_destroy(model->stages);
    weights_free(&model->weights);
    params_free(&model->table);
    if (model->tensor != NULL) {
        error_free(model->tensor->failed);
        free(model->tensor);
    }
    free(model);
}

void model_initialise(Model *model, uint64_t seed) {
    weights_initialise(&model->weights, seed);
}

// ---- Whole passes

// Copies the gradients of norm row `row` to the next place of model->norm_gradients, or back from it.
static void copy_norm(Model *model, int32_t row, bool back, int64_t *place) {
    int64_t count;
    float *gradient = weights_sum(&model->weights, row, &count), *packed = model->norm_gradients + *place;
    int64_t bytes = count * (int64_t)sizeof(float);
    if (gradient != NULL) {
        CopyRows copy = {1, bytes, back ? packed : gradient, bytes, back ? gradient : packed, bytes};
        model->device->op->copy_rows(model->device, &copy);
        *place += count;
    }
}

static int64_t copy_norms(Model *model, bool back) {
    const ParamTable *table = &model->table;
    int64_t place = 0;
    for (int64_t layer = 0; layer < table->layer_count; layer++) {
        const LayerParams *p = &table->layers[layer];
        const int32_t norms[] = {p->attention_norm, p->attention_norm_bias, p->mlp_norm, p->mlp_norm_bias};
        for (int i = 0; i < 4; i++) {
            copy_norm(model, norms[i], back, &place);
        }
    }
    copy_norm(model, table->final_norm, back, &place);
    copy_norm(model, table->final_norm_bias, back, &place);
    return place;
}

void model_finish_gradients(Model *model) {
    fetch_finish(model->weights.fetch);
}

void model_sum_tensor_gradients(Model *model) {
    TensorRanks *tensor = model->tensor;
    if (cuts_rows(model) && tensor->failed == NULL) {
        int64_t count = copy_norms(model, false);
        tensor->failed = group_all_reduce(tensor->group, ELEMENT_FP32, COMM_SUM, model->norm_gradients, count);
        copy_norms(model, true);
    }
}

static void announce(const Model *model, const StepOptions *options, int32_t row) {
    if (options->gradients_final != NULL) {
        options->gradients_final(options->context, row < 0 ? 0 : placement_gradients_from(&model->weights.placement, row));
    }
}

void model_run_batch(Model *model, const Batch *batch, const StepOptions *options) {
    ensure(model->stages == NULL, "one micro-batch of a pipeline's step");
    Pass pass = pass_learning(model, &model->workspace, batch, options->seed);
    pass_embed(&pass);
    pass_forward(&pass, (Range){0, model->config.layers});
    pass_head(&pass, options);
    announce(model, options, model->table.final_norm);
    for (int64_t layer = model->config.layers - 1; layer >= 0; layer--) {
        pass_backward(&pass, (Range){layer, layer + 1}, GRADIENTS_ALL);
        announce(model, options, model->table.layers[layer].attention_norm);
    }
    pass_embed_backward(&pass);
    announce(model, options, -1);
}

Batch model_bring_batch(Model *model, const Batch *batch, int32_t *memory) {
    const ContextShare *context = &model->options.context;
    bool cpu = model->device->kind == DEVICE_CPU;
    memory = memory != NULL ? memory : model->workspace.batch_memory;
    if (context->ranks <= 1 && cpu && memory != NULL) {
        memcpy(memory, batch_block(batch), batch_block_bytes(batch));
        return batch_at(batch, memory);
    }
    if (context->ranks <= 1) {
        return batch_to_device(model->device, batch, memory);
    }
    Batch cut = batch_cut(batch, context->rank, context->ranks, cpu && memory != NULL ? memory : model->cut);
    return batch_to_device(model->device, &cut, memory);
}

void model_forward_backward(Model *model, const Batch *batch, const StepOptions *options, StepResult *result) {
    Batch there = model_bring_batch(model, batch, NULL);
    if (result == NULL) {
        model_run_batch(model, &there, options);
        return;
    }
    StepControl before = model_control(model), control = before;
    control.loss_sum = control.z_sum = control.weight_sum = 0;
    model_set_control(model, &control);
    model_run_batch(model, &there, options);
    control = model_control(model);
    *result = (StepResult){control.loss_sum, control.weight_sum, control.z_sum};
    control.loss_sum += before.loss_sum;
    control.weight_sum += before.weight_sum;
    control.z_sum += before.z_sum;
    model_set_control(model, &control);
}

// The layers' output for a batch of the host.
static Pass look(Model *model, const Batch *batch) {
    Batch there = model_bring_batch(model, batch, NULL);
    Pass pass = pass_looking(model, &model->workspace, &there);
    stages_look(&pass);
    return pass;
}

void model_evaluate(Model *model, const Batch *batch, float *losses) {
    // Weight 1 wherever there is a target.
    int64_t rows = batch->sequences * batch->length;
    Batch counted;
    batch_allocate(&counted, batch->sequences, batch->length);
    memcpy(counted.tokens, batch_block(batch), batch_bytes(batch->sequences, batch->length));
    for (int64_t r = 0; r < rows; r++) {
        counted.loss_weights[r] = batch->targets[r] >= 0 ? 1.0F : 0.0F;
    }
    Pass pass = look(model, &counted);
    if (stages_has_head(model)) {
        pass_loss(&pass, 0, 0);
    }
    stages_share(model, ELEMENT_FP32, model->workspace.losses, pass.rows);
    float *own = context_is_cut(&pass) ? memory_new((size_t)pass.rows, sizeof *own) : losses;
    device_download(model->device, own, model->workspace.losses, (size_t)pass.rows * sizeof *losses);
    if (own != losses) {
        context_share_losses(&pass, own, losses);
        free(own);
    }
    batch_free(&counted);
}

void model_logits(Model *model, const Batch *batch, float *logits) {
    ensure(model->options.context.ranks <= 1, "logits of parts of sequences");
    Pass pass = look(model, batch);
    void *memory;
    size_t bytes = (size_t)(pass.rows * model->config.vocabulary) * sizeof *logits;
    Error *error = device_allocate(model->device, bytes, &memory);
    ensure(error == NULL, "%s", error->message);
    if (stages_has_head(model)) {
        pass_logits(&pass, 0, pass.rows, memory);
    }
    stages_share(model, ELEMENT_FP32, memory, pass.rows * model->config.vocabulary);
    device_download(model->device, logits, memory, bytes);
    device_release(model->device, memory, bytes);
}

char *model_not_finite(Model *model, const Batch *batch, int64_t sequence, int64_t token) {
    if (model->options.tensor.cut_rows || model->options.context.ranks > 1 || model->stages != NULL ||
        model->weights.slot_weights != NULL) {
        return memory_string("where it begins is told by one rank alone: evaluate a checkpoint of the run");
    }
    Batch there = model_bring_batch(model, batch, NULL);
    Pass pass = pass_looking(model, &model->workspace, &there);
    void *logits;
    size_t bytes = (size_t)model->config.vocabulary * sizeof(float);
    Error *error = device_allocate(model->device, bytes, &logits);
    if (error != NULL) {
        error_free(error);
        return memory_string("there is no memory to look for the layer");
    }
    Range rows = {sequence * batch->length, (sequence + 1) * batch->length};
    char *where = pass_not_finite(&pass, rows, rows.begin + token, logits);
    device_release(model->device, logits, bytes);
    return where;
}
