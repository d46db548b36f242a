// The parameter table: see params.h.
#include "train/model/params.h"

#include "core/philox.h"

#include <math.h>
#include <stdio.h>

// Adds a row after the last one. Matrices decay; vectors (norms and biases) do not.
static int32_t add_row(ParamTable *table, int64_t layer, const char *name, int64_t rows, int64_t columns, ParamSplit split,
                       ParamInit init, double deviation) {
    Param *row = &table->rows[table->count];
    *row = (Param){
        .rank = columns > 0 ? 2 : 1,
        .shape = {rows, columns > 0 ? columns : 1},
        .offset = table->elements,
        .layer = layer,
        .split = split,
        .init = init,
        .deviation = (float)deviation,
        .decay = columns > 0,
        .trainable = true,
        .rate_scale = 1,
    };
    row->count = row->shape[0] * row->shape[1];
    bool inside = layer >= 0 && layer < table->layer_count;
    int written = inside ? snprintf(row->name, sizeof row->name, "layers.%lld.%s", (long long)layer, name)
                         : snprintf(row->name, sizeof row->name, "%s", name);
    ensure(written > 0 && written < PARAM_NAME_SIZE, "parameter name %s is too long", name);
    table->parameters += row->count;
    table->elements += (row->count + table->alignment - 1) / table->alignment * table->alignment;
    return table->count++;
}

// A vector, or -1 where the model has none.
static int32_t add_vector(ParamTable *table, bool present, int64_t layer, const char *name, int64_t count, ParamSplit split,
                          ParamInit init) {
    return present ? add_row(table, layer, name, count, 0, split, init, 0) : -1;
}

static void add_layer(const ModelConfig *config, ParamTable *table, int64_t layer) {
    LayerParams *at = &table->layers[layer];
    int64_t width = config->width, qkv = model_qkv_width(config), up = model_up_width(config);
    double deviation = config->init_deviation;
    double into_residual = config->init_scale_residual ? deviation / sqrt(2.0 * (double)config->layers) : deviation;
    ParamSplit up_split = config->gated ? SPLIT_GATE_UP : SPLIT_ROWS;
    at->attention_norm = add_vector(table, true, layer, "attention.norm.weight", width, SPLIT_NONE, INIT_ONES);
    at->attention_norm_bias = add_vector(table, config->norm_bias, layer, "attention.norm.bias", width, SPLIT_NONE, INIT_ZEROS);
    at->qkv = add_row(table, layer, "attention.qkv.weight", qkv, width, SPLIT_QKV, INIT_NORMAL, deviation);
    at->qkv_bias = add_vector(table, config->qkv_bias, layer, "attention.qkv.bias", qkv, SPLIT_QKV, INIT_ZEROS);
    at->out = add_row(table, layer, "attention.out.weight", width, model_attention_width(config), SPLIT_COLUMNS, INIT_NORMAL,
                      into_residual);
    at->out_bias = add_vector(table, config->attention_bias, layer, "attention.out.bias", width, SPLIT_NONE, INIT_ZEROS);
    at->mlp_norm = add_vector(table, true, layer, "mlp.norm.weight", width, SPLIT_NONE, INIT_ONES);
    at->mlp_norm_bias = add_vector(table, config->norm_bias, layer, "mlp.norm.bias", width, SPLIT_NONE, INIT_ZEROS);
    at->up = add_row(table, layer, "mlp.up.weight", up, width, up_split, INIT_NORMAL, deviation);
    at->up_bias = add_vector(table, config->ffn_bias, layer, "mlp.up.bias", up, up_split, INIT_ZEROS);
    at->down = add_row(table, layer, "mlp.down.weight", width, config->ffn_width, SPLIT_COLUMNS, INIT_NORMAL, into_residual);
    at->down_bias = add_vector(table, config->ffn_bias, layer, "mlp.down.bias", width, SPLIT_NONE, INIT_ZEROS);
}

void params_create(const ModelConfig *config, int64_t alignment, ParamTable *out) {
    enum { PER_LAYER = 12, OUTSIDE = 5 };
    *out = (ParamTable){.layer_count = config->layers, .alignment = alignment};
    out->rows = memory_zeroed((size_t)(PER_LAYER * config->layers + OUTSIDE), sizeof *out->rows);
    out->layers = memory_zeroed((size_t)config->layers, sizeof *out->layers);
    double deviation = config->init_deviation;
    out->token = add_row(out, -1, "embedding.token", config->vocabulary, config->width, SPLIT_ROWS, INIT_NORMAL, deviation);
    out->position = -1;
    if (config->position == POSITION_LEARNED) {
        out->position =
            add_row(out, -1, "embedding.position", config->context, config->width, SPLIT_NONE, INIT_NORMAL, deviation);
    }
    for (int64_t layer = 0; layer < config->layers; layer++) {
        add_layer(config, out, layer);
    }
    int64_t after = config->layers;
    out->final_norm = add_vector(out, true, after, "final_norm.weight", config->width, SPLIT_NONE, INIT_ONES);
    out->final_norm_bias = add_vector(out, config->norm_bias, after, "final_norm.bias", config->width, SPLIT_NONE, INIT_ZEROS);
    out->head = out->token;
    if (!config->tied_head) {
        out->head = add_row(out, after, "head.weight", config->vocabulary, config->width, SPLIT_ROWS, INIT_NORMAL, deviation);
    }
}

void params_free(ParamTable *table) {
    free(table->rows);
    free(table->layers);
    *table = (ParamTable){0};
}

const Param *params_find(const ParamTable *table, const char *name) {
    for (int32_t i = 0; i < table->count; i++) {
        if (strcmp(table->rows[i].name, name) == 0) {
            return &table->rows[i];
        }
    }
    return NULL;
}

int64_t params_count(const ModelConfig *config) {
    ParamTable table;
    params_create(config, PARAM_ALIGN, &table);
    int64_t count = table.parameters;
    params_free(&table);
    return count;
}

// Initial values in pieces of PIECE elements, each a task: a value depends on its row and element alone.
enum { PIECE = 1 << 16 };

typedef struct Piece {
    int32_t row;
    int64_t first, count;  // of the flat array
} Piece;

typedef struct Initialise {
    const ParamTable *table;
    const Piece *pieces;
    uint64_t seed;
    float *out;  // of flat element `begin`
    int64_t begin;
} Initialise;

static void initialise_piece(void *context, int64_t task, int thread) {
    const Initialise *work = context;
    const Piece *piece = &work->pieces[task];
    const Param *row = &work->table->rows[piece->row];
    float *values = work->out + piece->first - work->begin;
    if (row->init == INIT_NORMAL) {
        uint64_t stream = philox_stream(RANDOM_INIT, (uint64_t)piece->row);
        philox_normal(work->seed, stream, (uint64_t)(piece->first - row->offset), row->deviation, values, piece->count);
        return;
    }
    for (int64_t i = 0; i < piece->count; i++) {
        values[i] = row->init == INIT_ONES ? 1.0F : 0.0F;
    }
}

void params_initialise(const ParamTable *table, uint64_t seed, ThreadPool *pool, Range part, float *out) {
    Piece *pieces = NULL;
    int64_t count = 0, capacity = 0;
    for (int32_t i = 0; i < table->count; i++) {
        const Param *row = &table->rows[i];
        int64_t next = i + 1 < table->count ? row[1].offset : table->elements;
        int64_t first = row->offset > part.begin ? row->offset : part.begin;
        int64_t last = row->offset + row->count < part.end ? row->offset + row->count : part.end;
        for (; first < last; first += PIECE) {
            array_push(pieces, count, capacity, ((Piece){i, first, last - first < PIECE ? last - first : PIECE}));
        }
        int64_t padding = row->offset + row->count > part.begin ? row->offset + row->count : part.begin;
        next = next < part.end ? next : part.end;
        if (padding < next) {
            memset(out + padding - part.begin, 0, (size_t)(next - padding) * sizeof *out);
        }
    }
    Initialise work = {table, pieces, seed, out, part.begin};
    threads_run(pool, count, initialise_piece, &work);
    free(pieces);
}

int64_t params_segments(const ParamTable *table, double weight_decay, int64_t begin, int64_t end, UpdateSegment **out) {
    UpdateSegment *segments = memory_new((size_t)table->count, sizeof *segments);
    int64_t count = 0;
    for (int32_t i = 0; i < table->count; i++) {
        const Param *row = &table->rows[i];
        int64_t first = row->offset > begin ? row->offset : begin;
        int64_t last = row->offset + row->count < end ? row->offset + row->count : end;
        if (!row->trainable || first >= last) {
            continue;
        }
        UpdateSegment segment = {.weight = first,
                                 .gradient = first,
                                 .state = first,
                                 .count = last - first,
                                 .random = (uint64_t)first,
                                 .rate_scale = row->rate_scale,
                                 .weight_decay = row->decay ? (float)weight_decay : 0};
        UpdateSegment *previous = count > 0 ? &segments[count - 1] : NULL;
        // Padding is zero in parameters, gradients and moments, so a run may cross it: zero stays zero.
        bool joins = previous != NULL && first - (previous->state + previous->count) < table->alignment &&
                     previous->rate_scale == segment.rate_scale && previous->weight_decay == segment.weight_decay;
        if (joins) {
            previous->count = last - previous->state;
        } else {
            segments[count++] = segment;
        }
    }
    *out = segments;
    return count;
}
