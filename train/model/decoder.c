// Generation: see decoder.h.
//
// A prompt and a step are passes like any other, with a cache beside them: a prompt is one sequence of many rows, a step one
// row of each sequence.
#include "train/model/decoder.h"

#include "core/philox.h"
#include "kernels/scratch.h"
#include "train/model/pass.h"

struct Decoder {
    const Model *model;
    Workspace workspace;
    KeyCache cache;
    int64_t rows;  // of logits that are there
    // Device memory.
    int32_t *tokens, *positions;  // [max(B, capacity)]
    float *logits;                // [B,V]
    int64_t *numbers;             // [B] of the tokens to be drawn
    int32_t *drawn;               // [B]
    void *scratch;
    void *arena;
    int64_t arena_bytes;
};

// One workspace serves a prompt of one sequence and a step of all: at least B rows. `here`: of the config, what this rank has.
static void lay_out(Decoder *d, const ModelConfig *config, const ModelConfig *here, const ModelOptions *model,
                    const Machine *machine, Layout *layout) {
    int64_t batch = d->cache.batch, capacity = d->cache.capacity, row = here->groups * here->head_width;
    int64_t element = data_type_bytes(machine->type), most = capacity > batch ? capacity : batch;
    int64_t layers = stages_layers_here(&model->stages, config->layers);
    int64_t scratch = sample_scratch_bytes(machine->kind != DEVICE_CPU, batch, config->vocabulary);
    d->cache.keys = layout_take(layout, "keys of samples", layers, batch * capacity, row, element);
    d->cache.values = layout_take(layout, "values of samples", layers, batch * capacity, row, element);
    d->cache.lengths_with = layout_take(layout, "lengths of samples", 1, batch, 1, sizeof(int32_t));
    d->logits = layout_take(layout, "logits of samples", 1, batch, config->vocabulary, sizeof(float));
    d->scratch = layout_take(layout, "scratch for drawing", 1, scratch, 1, 1);
    d->numbers = layout_take(layout, "numbers of tokens", 1, batch, 1, sizeof *d->numbers);
    d->drawn = layout_take(layout, "drawn tokens", 1, batch, 1, sizeof *d->drawn);
    d->tokens = layout_take(layout, "tokens", 1, most, 1, sizeof(int32_t));
    d->positions = layout_take(layout, "positions", 1, most, 1, sizeof(int32_t));
    WorkspaceOptions options = {.sequences = 1, .length = most, .forward_only = true, .head_rows = -1, .tensor = model->tensor};
    options.tensor.cut_rows = false;  // one row cannot be cut
    workspace_lay_out(&d->workspace, machine, here, &options, layout);
}

void decoder_plan(const ModelConfig *config, const ModelOptions *model, const Machine *machine, int64_t batch, int64_t capacity,
                  MemoryPlan *plan) {
    ModelConfig here;
    Error *error = tensor_config(config, &model->tensor, &here);
    ensure(error == NULL, "%s", error->message);
    Decoder decoder = {.cache = {.batch = batch, .capacity = capacity}};
    MemoryPlan own = {0};
    Layout layout = {.plan = &own};
    lay_out(&decoder, config, &here, model, machine, &layout);
    memory_plan_add(plan, "sample texts", layout.used, "%lld x %lld tokens, keys, values and a pass", (long long)batch,
                    (long long)capacity);
}

static Error *allocate(Decoder *d) {
    const Model *model = d->model;
    MemoryPlan plan = {0};
    Layout layout = {.plan = &plan};
    Machine machine = machine_of(model->device, 1, 1);
    memory_plan_add_host(&plan, machine.kind, "program", machine.program, "so far");
    lay_out(d, &model->config, &model->here, &model->options, &machine, &layout);
    TRY(memory_plan_check(&plan, &machine));
    TRY(device_allocate(model->device, (size_t)layout.used, &d->arena));
    d->arena_bytes = layout.used;
    layout = (Layout){.base = d->arena};
    lay_out(d, &model->config, &model->here, &model->options, &machine, &layout);
    d->workspace.device = model->device;
    return NULL;
}

Error *decoder_create(const Model *model, int64_t batch, int64_t capacity, Decoder **out) {
    if (batch < 1 || capacity < 1 || capacity > model->config.context || batch > 1 << 20) {
        return failure("%lld sequences of %lld tokens cannot be generated: at least one, and at most model.context %lld tokens",
                       (long long)batch, (long long)capacity, (long long)model->config.context);
    }
    Decoder *d = memory_zeroed(1, sizeof *d);
    d->model = model;
    d->cache.batch = batch;
    d->cache.capacity = capacity;
    Error *error = allocate(d);
    if (error != NULL) {
        free(d);
        return error_wrap(error, "generation");
    }
    workspace_fill(&d->workspace, &model->config);
    d->cache.lengths = memory_zeroed((size_t)batch, sizeof *d->cache.lengths);
    *out = d;
    return NULL;
}

void decoder_destroy(Decoder *d) {
    if (d != NULL) {
        device_release(d->model->device, d->arena, (size_t)d->arena_bytes);
        workspace_free(&d->workspace);
        free(d->cache.lengths);
        free(d);
    }
}

int64_t decoder_capacity(const Decoder *d) {
    return d->cache.capacity;
}

int64_t decoder_length(const Decoder *d, int64_t sequence) {
    ensure(sequence >= 0 && sequence < d->cache.batch, "no sequence %lld", (long long)sequence);
    return d->cache.lengths[sequence];
}

// Appends `length` tokens to each of `sequences` sequences from `first` on; the logits behind the last `rows` rows are then
// there.
static void run(Decoder *d, int64_t first, int64_t sequences, int64_t length, const int32_t *tokens, int64_t rows) {
    const Model *model = d->model;
    Device *device = model->device;
    int64_t count = sequences * length;
    // A token's position is the number of those before it.
    int32_t *positions = memory_new((size_t)count, sizeof *positions), *lengths = d->cache.lengths + first;
    for (int64_t i = 0; i < count; i++) {
        positions[i] = lengths[i / length] + (int32_t)(i % length);
    }
    device_upload(device, d->positions, positions, (size_t)count * sizeof *positions);
    device_upload(device, d->tokens, tokens, (size_t)count * sizeof *tokens);
    for (int64_t b = 0; b < sequences; b++) {
        positions[b] = lengths[b] + (int32_t)length;
    }
    device_upload(device, d->cache.lengths_with + first, positions, (size_t)sequences * sizeof *positions);
    Batch batch = {.sequences = sequences, .length = length, .tokens = d->tokens, .positions = d->positions};
    Pass pass = pass_looking(model, &d->workspace, &batch);
    pass.cache = &d->cache;
    pass.first_cached = first;
    stages_look(&pass);
    if (stages_has_head(model)) {
        pass_logits(&pass, count - rows, rows, d->logits);
    }
    stages_share(model, ELEMENT_FP32, d->logits, rows * model->config.vocabulary);
    d->rows = rows;
    memcpy(lengths, positions, (size_t)sequences * sizeof *lengths);
    free(positions);
}

void decoder_extend(Decoder *d, int64_t sequence, const int32_t *tokens, int64_t count) {
    ensure(sequence >= 0 && sequence < d->cache.batch && count >= 1 && count <= d->cache.capacity - d->cache.lengths[sequence],
           "%lld more tokens for sequence %lld in a decoder of %lld x %lld", (long long)count, (long long)sequence,
           (long long)d->cache.batch, (long long)d->cache.capacity);
    run(d, sequence, 1, count, tokens, 1);
}

void decoder_prefill(Decoder *d, int64_t sequence, const int32_t *tokens, int64_t count) {
    ensure(sequence >= 0 && sequence < d->cache.batch, "no sequence %lld", (long long)sequence);
    d->cache.lengths[sequence] = 0;
    decoder_extend(d, sequence, tokens, count);
}

void decoder_step(Decoder *d, const int32_t *tokens) {
    for (int64_t b = 0; b < d->cache.batch; b++) {
        ensure(d->cache.lengths[b] > 0 &&
                       d->cache.lengths[b]<d->cache.capacity, "sequence %lld is %s", (long long)b, d->cache.lengths[b]> 0
                   ? "full"
                   : "empty");
    }
    run(d, 0, d->cache.batch, 1, tokens, d->cache.batch);
}

void decoder_draw(Decoder *d, const Sampling *sampling, int64_t usable, const int64_t *index, int32_t *tokens) {
    const Model *model = d->model;
    device_upload(model->device, d->numbers, index, (size_t)d->rows * sizeof *index);
    model->device->op->sample(model->device, &(Sample){.rows = d->rows,
                                                       .vocabulary = model->config.vocabulary,
                                                       .usable = usable,
                                                       .logits = d->logits,
                                                       .temperature = sampling->temperature,
                                                       .top_p = sampling->top_p,
                                                       .top_k = sampling->top_k,
                                                       .seed = sampling->seed,
                                                       .stream = philox_stream(RANDOM_SAMPLE, 0),
                                                       .index = d->numbers,
                                                       .tokens = d->drawn,
                                                       .scratch = d->scratch});
    device_download(model->device, tokens, d->drawn, (size_t)d->rows * sizeof *tokens);
}

void decoder_logits(const Decoder *d, float *logits) {
    device_download(d->model->device, logits, d->logits, (size_t)(d->rows * d->model->config.vocabulary) * sizeof *logits);
}

char *decoder_not_finite(Decoder *d, const int32_t *tokens, int64_t count) {
    ensure(count >= 1 && count <= d->cache.capacity, "%lld tokens in a decoder of %lld", (long long)count,
           (long long)d->cache.capacity);
    int32_t *positions = memory_new((size_t)count, sizeof *positions);
    for (int64_t i = 0; i < count; i++) {
        positions[i] = (int32_t)i;
    }
    device_upload(d->model->device, d->positions, positions, (size_t)count * sizeof *positions);
    device_upload(d->model->device, d->tokens, tokens, (size_t)count * sizeof *tokens);
    free(positions);
    if (d->model->stages != NULL) {
        return memory_string("where it begins is told by one rank alone: evaluate a checkpoint of the run");
    }
    Batch batch = {.sequences = 1, .length = count, .tokens = d->tokens, .positions = d->positions};
    Pass pass = pass_looking(d->model, &d->workspace, &batch);
    return pass_not_finite(&pass, (Range){0, count}, count - 1, d->logits);
}
