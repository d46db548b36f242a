// A workspace: see workspace.h.
#include "train/model/workspace.h"

#include "kernels/scratch.h"

#include <math.h>
#include <stddef.h>

// ---- What a layer keeps

typedef enum Kept {
    KEPT_UNLESS_FULL,   // by every layer, but where layers are run again as a whole
    KEPT_UNLESS_CHEAP,  // not where what is cheap to compute is computed again (selective) either
    KEPT_FOR_WEIGHTS,   // where the gradients of weights are called later
} Kept;

typedef struct ActivationRow {
    size_t field;  // in LayerActivations
    const char *name;
    int64_t (*columns)(const ModelConfig *config);  // 0: this model has none
    bool statistic;                                 // fp32, else the compute type
    bool own_rows;                                  // of a tensor-parallel rank that cuts rows
    Kept kept;
    size_t with;  // the field whose buffer serves where neither is kept; of itself: none
} ActivationRow;

static int64_t width_of(const ModelConfig *config) {
    return config->width;
}
static int64_t heads_of(const ModelConfig *config) {
    return config->heads;
}
static int64_t ffn_width_of(const ModelConfig *config) {
    return config->ffn_width;
}
static int64_t one(const ModelConfig *config) {
    return 1;
}
static int64_t one_mean(const ModelConfig *config) {
    return config->norm == NORM_LAYER;
}

#define AT(field) offsetof(LayerActivations, field)

// The residual stream stands apart: a layer's output is the next one's input.
static const ActivationRow rows[] = {
    {AT(middle), "residual stream after attention", width_of, false, true, KEPT_UNLESS_FULL, AT(input)},
    {AT(norm1), "norm outputs", width_of, false, true, KEPT_UNLESS_CHEAP, AT(norm1)},
    {AT(norm2), "feed-forward norm outputs", width_of, false, true, KEPT_UNLESS_CHEAP, AT(norm1)},
    {AT(mean1), "means", one_mean, true, true, KEPT_UNLESS_FULL, AT(mean1)},
    {AT(rstd1), "deviations", one, true, true, KEPT_UNLESS_FULL, AT(rstd1)},
    {AT(mean2), "feed-forward means", one_mean, true, true, KEPT_UNLESS_FULL, AT(mean1)},
    {AT(rstd2), "feed-forward deviations", one, true, true, KEPT_UNLESS_FULL, AT(rstd1)},
    {AT(qkv), "queries, keys, values", model_qkv_width, false, false, KEPT_UNLESS_FULL, AT(qkv)},
    {AT(attention), "attention outputs", model_attention_width, false, false, KEPT_UNLESS_FULL, AT(attention)},
    {AT(lse), "attention statistics", heads_of, true, false, KEPT_UNLESS_FULL, AT(lse)},
    {AT(pre), "feed-forward inputs", model_up_width, false, false, KEPT_UNLESS_FULL, AT(pre)},
    {AT(inner), "feed-forward activations", ffn_width_of, false, false, KEPT_UNLESS_CHEAP, AT(inner)},
    {AT(dmlp), "gradients of feed-forward outputs", width_of, false, true, KEPT_FOR_WEIGHTS, AT(dmlp)},
    {AT(dpre), "gradients of feed-forward inputs", model_up_width, false, false, KEPT_FOR_WEIGHTS, AT(dpre)},
    {AT(dattention), "gradients of attention's branches", width_of, false, true, KEPT_FOR_WEIGHTS, AT(dattention)},
    {AT(dqkv), "gradients of queries, keys, values", model_qkv_width, false, false, KEPT_FOR_WEIGHTS, AT(dqkv)},
};
enum { ROWS = sizeof rows / sizeof *rows };

static void **slot(LayerActivations *at, size_t field) {
    return (void **)(void *)((char *)at + field);
}

// The layers of the first `chunks` chunks, each as often as it has sets (or sets for later).
static int64_t layers_of(const WorkspaceOptions *options, int chunks, bool later) {
    int64_t layers = 0;
    for (int c = 0; c < chunks; c++) {
        const WorkspaceChunk *chunk = &options->chunks[c];
        layers += (chunk->layers.end - chunk->layers.begin) * (later ? chunk->later : chunk->sets);
    }
    return layers;
}

// How often a row is kept: for each of the layers, once for all, or never.
static int64_t kept_of(const ActivationRow *row, const WorkspaceOptions *options, int64_t layers) {
    switch (row->kept) {
    case KEPT_UNLESS_FULL:
        return options->recompute == RECOMPUTE_FULL ? 1 : layers;
    case KEPT_UNLESS_CHEAP:
        return options->recompute == RECOMPUTE_NONE ? layers : 1;
    case KEPT_FOR_WEIGHTS:
        return options->weights_later ? layers : 0;
    }
    return 0;
}

static int64_t batch_rows(const WorkspaceOptions *options) {
    return options->sequences * context_tokens(&options->context, options->length);
}

// Those of the stream.
static int64_t own_rows(const WorkspaceOptions *options) {
    int64_t ranks = options->tensor.cut_rows ? options->tensor.ranks : 1;
    return (batch_rows(options) + ranks - 1) / ranks;
}

// The stream between the layers of every set: a layer's output is the next one's input.
static void lay_out_streams(Workspace *w, const Machine *machine, const ModelConfig *config, Layout *layout) {
    const WorkspaceOptions *options = &w->options;
    int64_t own = own_rows(options), element = data_type_bytes(machine->type),
            count = layers_of(options, options->chunk_count, false);
    for (int c = 0; c < options->chunk_count; c++) {
        count += options->chunks[c].sets;
    }
    void *streams = layout_take(layout, "residual stream", count, own, config->width, element);
    LayerActivations *at = w->layers;
    int64_t stream = 0;
    for (int c = 0; c < options->chunk_count && layout->base != NULL; c++) {
        const WorkspaceChunk *chunk = &options->chunks[c];
        for (int set = 0; set < chunk->sets; set++, stream++) {
            for (int64_t i = chunk->layers.begin; i < chunk->layers.end; i++, at++, stream++) {
                at->input = layout_part(streams, stream, count, own * config->width, element);
                at->output = layout_part(streams, stream + 1, count, own * config->width, element);
            }
        }
    }
}

// One row of the table in all sets.
static void lay_out_row(Workspace *w, const Machine *machine, const ModelConfig *config, const ActivationRow *row,
                        Layout *layout) {
    const WorkspaceOptions *options = &w->options;
    bool later = row->kept == KEPT_FOR_WEIGHTS;
    int64_t columns = row->columns(config), size = row->statistic ? (int64_t)sizeof(float) : data_type_bytes(machine->type);
    int64_t layers = layers_of(options, options->chunk_count, later), kept = kept_of(row, options, layers);
    int64_t count = row->own_rows ? own_rows(options) : batch_rows(options);
    // What is computed again one after the other, each right before it is read, shares a buffer.
    bool shares = row->with != row->field && row->kept == KEPT_UNLESS_CHEAP && options->recompute == RECOMPUTE_SELECTIVE;
    void *base = shares ? NULL : layout_take(layout, row->name, columns > 0 ? kept : 0, count, columns, size);
    for (int64_t i = 0; i < layers && layout->base != NULL; i++) {
        LayerActivations *at = later ? &w->later[i] : &w->layers[i];
        *slot(at, row->field) = shares ? *slot(at, row->with) : layout_part(base, i, kept, count * columns, size);
    }
}

// The buffers of a pass without a backward one: those of one layer, in place where that can be.
static void lay_out_shared(Workspace *w, const Machine *machine, const ModelConfig *config, Layout *layout) {
    int64_t own = own_rows(&w->options), element = data_type_bytes(machine->type);
    LayerActivations *at = &w->shared;
    at->input = at->output = layout_take(layout, "residual stream", 1, own, config->width, element);
    for (int r = 0; r < ROWS; r++) {
        const ActivationRow *row = &rows[r];
        int64_t columns = row->columns(config), size = row->statistic ? (int64_t)sizeof(float) : element;
        int64_t count = row->own_rows ? own : batch_rows(&w->options);
        bool needed = row->kept != KEPT_FOR_WEIGHTS && columns > 0 && (row->field != AT(lse) || w->options.context.ranks > 1) &&
                      (row->field != AT(pre) || config->gated);
        *slot(at, row->field) =
            row->with != row->field ? *slot(at, row->with) : layout_take(layout, row->name, needed, count, columns, size);
    }
}

LayerActivations *workspace_set(const Workspace *w, int chunk, int set) {
    const WorkspaceChunk *c = &w->options.chunks[chunk];
    ensure(chunk < w->options.chunk_count && set < c->sets, "set %d of chunk %d", set, chunk);
    return w->layers + layers_of(&w->options, chunk, false) + set * (c->layers.end - c->layers.begin);
}

void workspace_keep_later(const Workspace *w, int chunk, int set, int later) {
    const WorkspaceChunk *c = &w->options.chunks[chunk];
    LayerActivations *at = workspace_set(w, chunk, set);
    int64_t layers = c->layers.end - c->layers.begin;
    ensure(w->options.weights_later && later < c->later, "set %d for later of chunk %d", later, chunk);
    const LayerActivations *from = w->later + layers_of(&w->options, chunk, true) + later * layers;
    for (int64_t i = 0; i < layers; i++) {
        at[i].dmlp = from[i].dmlp;
        at[i].dattention = from[i].dattention;
        at[i].dpre = from[i].dpre;
        at[i].dqkv = from[i].dqkv;
    }
}

void *workspace_stream(const Workspace *w, const ModelConfig *config, int number) {
    int count = w->options.streams > 0 ? w->options.streams : 1;
    ensure(number < count, "stream %d of %d", number, count);
    return layout_part(w->streams, number, count, own_rows(&w->options) * config->width, data_type_bytes(w->device->type));
}

static int64_t widest(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static void lay_out_gradients(Workspace *w, const Machine *machine, const ModelConfig *config, Layout *layout) {
    int64_t count = batch_rows(&w->options), own = own_rows(&w->options), width = config->width;
    int64_t element = data_type_bytes(machine->type);
    int64_t wide = widest(model_up_width(config), model_qkv_width(config));
    int64_t narrow = widest((own * width + count - 1) / count, model_attention_width(config));
    w->streams = w->dstream = layout_take(layout, "gradient of the residual stream",
                                          w->options.streams > 0 ? w->options.streams : 1, own, width, element);
    w->dwide = layout_take(layout, "gradients of wide rows", !w->options.weights_later, count, wide, element);
    w->dnarrow = layout_take(layout, "gradients of narrow rows", 1, count, narrow, element);
    bool dinner = config->gated && machine->kind == DEVICE_CPU;
    w->dinner = layout_take(layout, "gradients of gated rows", dinner, count, config->ffn_width, element);
    w->dbranch =
        layout_take(layout, "gradients of dropped rows", config->dropout > 0 && !w->options.weights_later, own, width, element);
    int64_t layers = layers_of(&w->options, w->options.chunk_count, false);
    for (int64_t i = 0; i < layers && layout->base != NULL; i++) {
        w->layers[i].dpre = w->layers[i].dqkv = w->dwide;
    }
    // One way back at a time needs no more than its own.
    for (int c = 0; c < w->options.chunk_count && layout->base != NULL && w->options.weights_later; c++) {
        workspace_keep_later(w, c, 0, 0);
    }
}

// Rows of logits held at a time, where the options leave the choice.
static int64_t head_rows_chosen(const ModelConfig *config, const WorkspaceOptions *options, const Machine *machine) {
    int64_t count = batch_rows(options), chosen = options->head_rows;
    if (chosen == 0) {
        // Fewer passes over the head's gradient against memory for logits: about 64 MiB of them on a CPU and 512 MiB on a card,
        // at least 64 rows, and every pass with as many rows as the others, in whole tiles.
        int64_t room = (int64_t)(machine->kind == DEVICE_CPU ? 64 : 512) << 20;
        int64_t most = room / (data_type_bytes(machine->type) * config->vocabulary);
        most = most < 64 ? 64 : most;
        int64_t passes = (count + most - 1) / most;
        chosen = ((count + passes - 1) / passes + 15) / 16 * 16;
    }
    return chosen < 0 ? 0 : chosen < count ? chosen : count;
}

void workspace_lay_out(Workspace *w, const Machine *machine, const ModelConfig *config, const WorkspaceOptions *options,
                       Layout *layout) {
    int64_t count = batch_rows(options), own = own_rows(options), width = config->width;
    int64_t element = data_type_bytes(machine->type);
    LayerActivations *layers = w->layers, *later = w->later;
    bool card = machine->kind != DEVICE_CPU;
    *w = (Workspace){.options = *options, .layers = layers, .later = later};
    if (options->chunk_count == 0) {
        bool all = options->layers.begin == options->layers.end;
        w->options.chunks[0] = (WorkspaceChunk){all ? (Range){0, config->layers} : options->layers, 1, 1};
        w->options.chunk_count = 1;
    }
    if (options->forward_only) {
        lay_out_shared(w, machine, config, layout);
    } else {
        if (layout->base != NULL && w->layers == NULL) {
            w->layers = memory_zeroed((size_t)layers_of(&w->options, w->options.chunk_count, false), sizeof *w->layers);
            w->later = memory_zeroed((size_t)layers_of(&w->options, w->options.chunk_count, true), sizeof *w->later);
        }
        lay_out_streams(w, machine, config, layout);
        for (int r = 0; r < ROWS; r++) {
            lay_out_row(w, machine, config, &rows[r], layout);
        }
        lay_out_gradients(w, machine, config, layout);
        if (layout->base != NULL) {
            // A pass without backward runs in place in the first layer's buffers.
            w->shared = w->layers[0];
            w->shared.middle = w->shared.output = w->shared.input;
            w->shared.pre = config->gated ? w->shared.pre : NULL;
        }
    }
    bool layer_norm = config->norm == NORM_LAYER;
    w->final = layout_take(layout, "final norm outputs", 1, own, width, element);
    w->final_rstd = layout_take(layout, "final deviations", 1, own, 1, sizeof(float));
    w->final_mean = layout_take(layout, "final means", layer_norm, own, 1, sizeof(float));
    int64_t gathered = !options->tensor.cut_rows ? 0 : options->forward_only ? 1 : 2;
    w->whole = layout_take(layout, "gathered rows", gathered, count, width, element);
    w->whole_norm = gathered > 1 ? layout_part(w->whole, 1, gathered, count * width, element) : w->whole;
    w->partial = layout_take(layout, "sums to be reduced", options->tensor.ranks > 1, count, width, element);
    context_lay_out(&w->ring, &options->context, config, count, options->forward_only, machine->type, layout);
    w->losses = layout_take(layout, "losses", 1, count, 1, sizeof(float));
    w->zs = layout_take(layout, "losses' normalisers", 1, count, 1, sizeof(float));
    w->head_rows = head_rows_chosen(config, options, machine);
    int64_t scratch = classifier_scratch_bytes(card, machine->type, w->head_rows, config->vocabulary);
    w->head_scratch = layout_take(layout, "logits", w->head_rows > 0, scratch, 1, 1);
    w->cos_sin = layout_take(layout, "rotary table", 1, options->length, model_rotary_width(config), sizeof(float));
    // On the CPU batches are used where they are.
    int64_t batch = (int64_t)batch_cut_bytes(options->sequences, options->length, options->context.ranks);
    w->batch_memory = layout_take(layout, "batch on the card", card, batch, 1, 1);
}

void workspace_fill(Workspace *w, const ModelConfig *config) {
    if (w->cos_sin != NULL) {
        size_t count = (size_t)(w->options.length * model_rotary_width(config));
        float *table = memory_new(count, sizeof *table);
        rotary_table(config, w->options.length, table);
        device_upload(w->device, w->cos_sin, table, count * sizeof *table);
        free(table);
    }
}

Error *workspace_create(Device *device, const ModelConfig *config, const WorkspaceOptions *options, Workspace **out) {
    Workspace *w = memory_zeroed(1, sizeof *w);
    MemoryPlan plan = {0};
    Layout layout = {.plan = &plan};
    Machine machine = machine_of(device, 1, 1);
    memory_plan_add_host(&plan, machine.kind, "program", machine.program, "so far");
    workspace_lay_out(w, &machine, config, options, &layout);
    int64_t bytes = layout.used;
    Error *error = memory_plan_check(&plan, &machine);
    if (error == NULL) {
        error = device_allocate(device, (size_t)bytes, (void **)&layout.base);
    }
    if (error != NULL) {
        free(w);
        return error;
    }
    void *arena = layout.base;
    layout = (Layout){.base = arena};
    workspace_lay_out(w, &machine, config, options, &layout);
    w->device = device;
    w->arena = arena;
    w->arena_bytes = bytes;
    workspace_fill(w, config);
    *out = w;
    return NULL;
}

void workspace_free(Workspace *w) {
    free(w->layers);
    free(w->later);
    w->layers = w->later = NULL;
}

void workspace_destroy(Workspace *w) {
    if (w != NULL) {
        device_release(w->device, w->arena, (size_t)w->arena_bytes);
        workspace_free(w);
        free(w);
    }
}

Batch batch_to_device(Device *device, const Batch *batch, int32_t *memory) {
    if (device->kind == DEVICE_CPU) {
        return *batch;
    }
    device_upload(device, memory, batch_block(batch), batch_block_bytes(batch));
    return batch_at(batch, memory);
}

void rotary_table(const ModelConfig *config, int64_t positions, float *cos_sin) {
    int64_t width = model_rotary_width(config), half = width / 2;
    for (int64_t i = 0; i < half; i++) {
        double frequency = pow(config->rotary_theta, -2.0 * (double)i / (double)width);
        for (int64_t p = 0; p < positions; p++) {
            cos_sin[p * width + i] = (float)cos((double)p * frequency);
            cos_sin[p * width + half + i] = (float)sin((double)p * frequency);
        }
    }
}
