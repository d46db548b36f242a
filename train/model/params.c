// The parameter table: see params.h.
#include "train/model/params.h"

#include "core/philox.h"

#include <math.h>
#include <stdio.h>

int32_t params_add(ParamTable *table, const Param *row) {
    array_push(table->rows, table->count, table->capacity, *row);
    Param *own = &table->rows[table->count - 1];
    own->count = own->shape[0] * own->shape[1];
    own->index = table->elements;
    if (own->part_count == 0) {
        own->parts[0] = (ParamPart){"", 0, own->shape[0], CUT_NONE, 1, "rows"};
        own->part_count = 1;
    }
    table->parameters += own->count;
    table->elements += (own->count + PARAM_ALIGN - 1) / PARAM_ALIGN * PARAM_ALIGN;
    return table->count - 1;
}

// What add_row is told of a tensor's parts.
typedef struct Parts {
    ParamPart part[PARAM_MOST_PARTS];
    int count;
} Parts;

static Parts one_part(int64_t rows, int cut, int64_t unit, const char *units) {
    return (Parts){.part = {{"", 0, rows, cut, unit, units}}, .count = 1};
}

static Parts whole(int64_t rows) {
    return one_part(rows, CUT_NONE, 1, "rows");
}

static Parts qkv_parts(const ModelConfig *config) {
    int64_t width = config->head_width, query = config->heads * width, key = config->groups * width;
    return (Parts){.part = {{"query", 0, query, CUT_ROWS, width, "heads"},
                            {"key", query, query + key, CUT_ROWS, width, "key/value heads"},
                            {"value", query + key, query + 2 * key, CUT_ROWS, width, "key/value heads"}},
                   .count = 3};
}

static Parts up_parts(const ModelConfig *config) {
    int64_t width = config->ffn_width;
    Parts parts = one_part(width, CUT_ROWS, 1, "feed-forward channels");
    if (config->gated) {
        parts = (Parts){.part = {{"gate", 0, width, CUT_ROWS, 1, "feed-forward channels"},
                                 {"up", width, 2 * width, CUT_ROWS, 1, "feed-forward channels"}},
                        .count = 2};
    }
    return parts;
}

// Adds a row after the last one. Matrices decay; vectors (norms and biases) do not.
static int32_t add_row(ParamTable *table, int64_t layer, const char *name, int64_t rows, int64_t columns, Parts parts,
                       ParamInit init, double deviation) {
    Param row = {
        .dims = columns > 0 ? 2 : 1,
        .shape = {rows, columns > 0 ? columns : 1},
        .layer = layer,
        .part_count = parts.count,
        .init = init,
        .deviation = (float)deviation,
        .decay = columns > 0,
        .trainable = true,
        .rate_scale = 1,
    };
    memcpy(row.parts, parts.part, sizeof row.parts);
    bool inside = layer >= 0 && layer < table->layer_count;
    int written = inside ? snprintf(row.name, sizeof row.name, "layers.%lld.%s", (long long)layer, name)
                         : snprintf(row.name, sizeof row.name, "%s", name);
    ensure(written > 0 && written < PARAM_NAME_SIZE, "parameter name %s is too long", name);
    return params_add(table, &row);
}

// A vector, or -1 where the model has none.
static int32_t add_vector(ParamTable *table, bool present, int64_t layer, const char *name, int64_t count, Parts parts,
                          ParamInit init) {
    return present ? add_row(table, layer, name, count, 0, parts, init, 0) : -1;
}

static void add_layer(const ModelConfig *config, ParamTable *table, int64_t layer) {
    LayerParams *at = &table->layers[layer];
    int64_t width = config->width, qkv = model_qkv_width(config), up = model_up_width(config);
    double deviation = config->init_deviation;
    double into_residual = config->init_scale_residual ? deviation / sqrt(2.0 * (double)config->layers) : deviation;
    Parts heads = one_part(width, CUT_COLUMNS, config->head_width, "heads");
    Parts channels = one_part(width, CUT_COLUMNS, 1, "feed-forward channels");
    at->attention_norm = add_vector(table, true, layer, "attention.norm.weight", width, whole(width), INIT_ONES);
    at->attention_norm_bias =
        add_vector(table, config->norm_bias, layer, "attention.norm.bias", width, whole(width), INIT_ZEROS);
    at->qkv = add_row(table, layer, "attention.qkv.weight", qkv, width, qkv_parts(config), INIT_NORMAL, deviation);
    at->qkv_bias = add_vector(table, config->qkv_bias, layer, "attention.qkv.bias", qkv, qkv_parts(config), INIT_ZEROS);
    at->out =
        add_row(table, layer, "attention.out.weight", width, model_attention_width(config), heads, INIT_NORMAL, into_residual);
    at->out_bias = add_vector(table, config->attention_bias, layer, "attention.out.bias", width, whole(width), INIT_ZEROS);
    at->mlp_norm = add_vector(table, true, layer, "mlp.norm.weight", width, whole(width), INIT_ONES);
    at->mlp_norm_bias = add_vector(table, config->norm_bias, layer, "mlp.norm.bias", width, whole(width), INIT_ZEROS);
    at->up = add_row(table, layer, "mlp.up.weight", up, width, up_parts(config), INIT_NORMAL, deviation);
    at->up_bias = add_vector(table, config->ffn_bias, layer, "mlp.up.bias", up, up_parts(config), INIT_ZEROS);
    at->down = add_row(table, layer, "mlp.down.weight", width, config->ffn_width, channels, INIT_NORMAL, into_residual);
    at->down_bias = add_vector(table, config->ffn_bias, layer, "mlp.down.bias", width, whole(width), INIT_ZEROS);
}

void params_create(const ModelConfig *config, ParamTable *out) {
    *out = (ParamTable){.layer_count = config->layers};
    out->layers = memory_zeroed((size_t)config->layers, sizeof *out->layers);
    double deviation = config->init_deviation;
    int64_t width = config->width, after = config->layers;
    Parts vocabulary = one_part(config->vocabulary, CUT_ROWS, 1, "rows of the vocabulary");
    out->token = add_row(out, -1, "embedding.token", config->vocabulary, width, vocabulary, INIT_NORMAL, deviation);
    out->position = -1;
    if (config->position == POSITION_LEARNED) {
        out->position =
            add_row(out, -1, "embedding.position", config->context, width, whole(config->context), INIT_NORMAL, deviation);
    }
    for (int64_t layer = 0; layer < config->layers; layer++) {
        add_layer(config, out, layer);
    }
    out->final_norm = add_vector(out, true, after, "final_norm.weight", width, whole(width), INIT_ONES);
    out->final_norm_bias = add_vector(out, config->norm_bias, after, "final_norm.bias", width, whole(width), INIT_ZEROS);
    out->head = out->token;
    if (!config->tied_head) {
        out->head = add_row(out, after, "head.weight", config->vocabulary, width, vocabulary, INIT_NORMAL, deviation);
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

ParamPart param_part(const Param *row, const char *name) {
    if (name[0] == 0) {
        return (ParamPart){"", 0, row->shape[0], CUT_NONE, 1, "rows"};
    }
    int i = 0;
    while (i < row->part_count && strcmp(row->parts[i].name, name) != 0) {
        i++;
    }
    ensure(i < row->part_count, "%s has no part %s", row->name, name);
    return row->parts[i];
}

int64_t params_count(const ModelConfig *config) {
    ParamTable table;
    params_create(config, &table);
    int64_t count = table.parameters;
    params_free(&table);
    return count;
}

// ---- Initial values: in pieces, each a task; a value depends on its row and element alone

enum { PIECE = 1 << 16 };

typedef struct Initialise {
    const Param *row;
    uint64_t seed, stream;
    Box whole;
    const Box *boxes;
    int box_count;
    int64_t begin, end;
    float *out;
} Initialise;

typedef struct InitialRun {
    const Initialise *work;
    float *out;
} InitialRun;

static bool initial_run(void *context, BoxRun run) {
    const InitialRun *at = context;
    const Initialise *work = at->work;
    if (work->row->init == INIT_NORMAL) {
        philox_normal(work->seed, work->stream, (uint64_t)run.from, work->row->deviation, at->out + run.to, run.count);
        return true;
    }
    for (int64_t i = 0; i < run.count; i++) {
        at->out[run.to + i] = work->row->init == INIT_ONES ? 1.0F : 0.0F;
    }
    return true;
}

static void initialise_piece(void *context, int64_t task, int thread) {
    const Initialise *work = context;
    int64_t first = work->begin + task * PIECE, last = first + PIECE < work->end ? first + PIECE : work->end;
    Box piece[PARAM_MOST_PARTS * BOX_MOST_OF_RANGE];
    int count = boxes_of_range(work->boxes, work->box_count, first, last, piece);
    InitialRun at = {work, work->out + (first - work->begin)};
    boxes_runs(&work->whole, 1, piece, count, initial_run, &at, NULL);
}

void params_initial_values(const ParamTable *table, int32_t row, uint64_t seed, ThreadPool *pool, const Box *boxes,
                           int box_count, int64_t begin, int64_t end, float *out) {
    const Param *param = &table->rows[row];
    ensure(box_count <= PARAM_MOST_PARTS, "%d boxes of %s", box_count, param->name);
    Initialise work = {.row = param,
                       .seed = seed,
                       .stream = philox_stream(RANDOM_INIT, (uint64_t)row),
                       .whole = box_whole(param->dims, param->shape),
                       .boxes = boxes,
                       .box_count = box_count,
                       .begin = begin,
                       .end = end,
                       .out = out};
    threads_run(pool, (end - begin + PIECE - 1) / PIECE, initialise_piece, &work);
}
