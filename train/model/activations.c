// Where a model's buffers lie: see activations.h.
#include "train/model/activations.h"

#include <math.h>
#include <stdio.h>

#define ELEMENT layout->element

// Each tensor starts at a multiple of 256 bytes: whole cache lines, and what a card's bulk copies want.
static int64_t aligned(int64_t bytes) {
    return (bytes + 255) / 256 * 256;
}

void *layout_take(Layout *layout, const char *name, int64_t count, int64_t rows, int64_t columns, int64_t size) {
    int64_t each = aligned(rows * columns * size), bytes = count * each;
    void *part = layout->base != NULL && bytes > 0 ? layout->base + layout->used : NULL;
    layout->used += bytes;
    if (layout->plan != NULL && bytes > 0) {
        char shape[64];
        int written = count > 1 ? snprintf(shape, sizeof shape, "%lld x ", (long long)count) : 0;
        written += snprintf(shape + written, sizeof shape - (size_t)written, "%lld", (long long)rows);
        if (columns > 1) {
            snprintf(shape + written, sizeof shape - (size_t)written, " x %lld", (long long)columns);
        }
        memory_plan_add(layout->plan, name, bytes, "%s x %lld B", shape, (long long)size);
    }
    return part;
}

void *layout_part(void *base, int64_t index, int64_t count, int64_t elements, int64_t size) {
    if (base == NULL) {
        return NULL;
    }
    return (char *)base + (count > 1 ? index * aligned(elements * size) : 0);
}

int64_t head_rows_chosen(const ModelConfig *config, const ModelOptions *options, const Device *device) {
    int64_t rows = options->sequences * options->length, chosen = options->head_rows;
    if (chosen <= 0) {
        // Fewer passes over the head's gradient against memory for logits: about 64 MiB of them on a CPU and 512 MiB on a card,
        // at least 64 rows, and every pass with as many rows as the others, in whole tiles.
        int64_t room = (int64_t)(device->kind == DEVICE_CPU ? 64 : 512) << 20;
        int64_t most = room / (data_type_bytes(device->type) * config->vocabulary);
        most = most < 64 ? 64 : most;
        int64_t passes = (rows + most - 1) / most;
        chosen = ((rows + passes - 1) / passes + 15) / 16 * 16;
    }
    return chosen < rows ? chosen : rows;
}

static void layout_layers(const ModelConfig *config, const ModelOptions *options, Layout *layout, Activations *out) {
    int64_t rows = options->sequences * options->length, layers = config->layers, width = config->width;
    int64_t qkv = model_qkv_width(config), attention = model_attention_width(config), up = model_up_width(config);
    int64_t ffn = config->ffn_width, heads = config->heads;
    bool layer_norm = config->norm == NORM_LAYER, selective = options->recompute == RECOMPUTE_SELECTIVE;
    // `sets` of what selective recompute keeps, `cheap` of what it does not; its two norms share one buffer.
    int64_t sets = options->recompute == RECOMPUTE_FULL ? 1 : layers, cheap = selective ? 1 : sets;
    void *stream = layout_take(layout, "residual stream", layers + 1, rows, width, ELEMENT);
    void *middle = layout_take(layout, "residual stream after attention", sets, rows, width, ELEMENT);
    void *norm1 = layout_take(layout, selective ? "norm outputs" : "attention's norm outputs", cheap, rows, width, ELEMENT);
    void *norm2 = selective ? norm1 : layout_take(layout, "feed-forward norm outputs", cheap, rows, width, ELEMENT);
    float *statistics = layout_take(layout, "norm statistics", 4 * sets, rows, 1, sizeof(float));
    void *qkvs = layout_take(layout, "queries, keys, values", sets, rows, qkv, ELEMENT);
    void *attended = layout_take(layout, "attention outputs", sets, rows, attention, ELEMENT);
    float *lse = layout_take(layout, "attention statistics", sets, rows, heads, sizeof(float));
    void *pre = layout_take(layout, "feed-forward inputs", sets, rows, up, ELEMENT);
    void *inner = layout_take(layout, "feed-forward activations", cheap, rows, ffn, ELEMENT);
    out->last = layout_part(stream, layers, layers + 1, rows * width, ELEMENT);
    for (int64_t i = 0; i < layers && layout->base != NULL; i++) {
        LayerActivations *at = &out->layers[i];
        at->input = layout_part(stream, i, layers + 1, rows * width, ELEMENT);
        at->output = layout_part(stream, i + 1, layers + 1, rows * width, ELEMENT);
        at->middle = layout_part(middle, i, sets, rows * width, ELEMENT);
        at->norm1 = layout_part(norm1, i, cheap, rows * width, ELEMENT);
        at->norm2 = layout_part(norm2, i, cheap, rows * width, ELEMENT);
        int64_t set = sets > 1 ? i : 0;
        at->mean1 = layer_norm ? layout_part(statistics, 4 * set, 4 * sets, rows, sizeof(float)) : NULL;
        at->rstd1 = layout_part(statistics, 4 * set + 1, 4 * sets, rows, sizeof(float));
        at->mean2 = layer_norm ? layout_part(statistics, 4 * set + 2, 4 * sets, rows, sizeof(float)) : NULL;
        at->rstd2 = layout_part(statistics, 4 * set + 3, 4 * sets, rows, sizeof(float));
        at->qkv = layout_part(qkvs, i, sets, rows * qkv, ELEMENT);
        at->attention = layout_part(attended, i, sets, rows * attention, ELEMENT);
        at->lse = layout_part(lse, i, sets, rows * heads, sizeof(float));
        at->pre = layout_part(pre, i, sets, rows * up, ELEMENT);
        at->inner = layout_part(inner, i, cheap, rows * ffn, ELEMENT);
    }
    if (layout->base != NULL) {
        // A pass without backward runs in place in the first layer's buffers.
        out->shared = out->layers[0];
        out->shared.middle = out->shared.output = out->shared.input;
        out->shared.pre = config->gated ? out->shared.pre : NULL;
    }
}

static void layout_forward_only(const ModelConfig *config, const ModelOptions *options, Layout *layout, Activations *out) {
    int64_t rows = options->sequences * options->length, width = config->width;
    bool layer_norm = config->norm == NORM_LAYER;
    LayerActivations *at = &out->shared;
    at->input = at->middle = at->output = layout_take(layout, "residual stream", 1, rows, width, ELEMENT);
    at->norm1 = at->norm2 = layout_take(layout, "norm outputs", 1, rows, width, ELEMENT);
    float *statistics = layout_take(layout, "norm statistics", 2, rows, 1, sizeof(float));
    at->rstd1 = at->rstd2 = statistics;
    at->mean1 = at->mean2 = layer_norm ? layout_part(statistics, 1, 2, rows, sizeof(float)) : NULL;
    at->qkv = layout_take(layout, "queries, keys, values", 1, rows, model_qkv_width(config), ELEMENT);
    at->attention = layout_take(layout, "attention outputs", 1, rows, model_attention_width(config), ELEMENT);
    at->lse = layout_take(layout, "attention statistics", 1, rows, config->heads, sizeof(float));
    at->pre = config->gated ? layout_take(layout, "feed-forward inputs", 1, rows, model_up_width(config), ELEMENT) : NULL;
    at->inner = layout_take(layout, "feed-forward activations", 1, rows, config->ffn_width, ELEMENT);
    out->last = at->output;
}

static int64_t widest(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static void layout_gradients(const ModelConfig *config, const ModelOptions *options, const Device *device, Layout *layout,
                             Activations *out) {
    int64_t rows = options->sequences * options->length, width = config->width;
    int64_t wide = widest(model_up_width(config), model_qkv_width(config));
    int64_t narrow = widest(width, model_attention_width(config));
    out->dstream = layout_take(layout, "gradient of the residual stream", 1, rows, width, ELEMENT);
    out->dwide = layout_take(layout, "gradients of wide rows", 1, rows, wide, ELEMENT);
    out->dnarrow = layout_take(layout, "gradients of narrow rows", 1, rows, narrow, ELEMENT);
    bool dinner = config->gated && !device->op->gated_products;
    out->dinner = layout_take(layout, "gradients of gated rows", dinner, rows, config->ffn_width, ELEMENT);
    out->dbranch = layout_take(layout, "gradients of dropped rows", config->dropout > 0, rows, width, ELEMENT);
}

void activations_layout(const ModelConfig *config, const ModelOptions *options, const Device *device, Layout *layout,
                        Activations *out) {
    int64_t rows = options->sequences * options->length, width = config->width;
    if (options->forward_only) {
        layout_forward_only(config, options, layout, out);
    } else {
        layout_layers(config, options, layout, out);
        layout_gradients(config, options, device, layout, out);
    }
    out->final = layout_take(layout, "final norm outputs", 1, rows, width, ELEMENT);
    float *statistics = layout_take(layout, "losses and final norm statistics", 4, rows, 1, sizeof(float));
    out->final_rstd = statistics;
    out->final_mean = config->norm == NORM_LAYER ? layout_part(statistics, 1, 4, rows, sizeof(float)) : NULL;
    out->losses = layout_part(statistics, 2, 4, rows, sizeof(float));
    out->zs = layout_part(statistics, 3, 4, rows, sizeof(float));
    out->head_rows = head_rows_chosen(config, options, device);
    out->head_scratch =
        layout_take(layout, "logits", 1,
                    device->op->classifier_scratch_bytes(device->type, out->head_rows, width, config->vocabulary), 1, 1);
    out->cos_sin = layout_take(layout, "rotary table", 1, options->length, model_rotary_width(config), sizeof(float));
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

void model_upload_rotary(Device *device, const ModelConfig *config, int64_t positions, float *cos_sin) {
    if (config->position != POSITION_ROTARY) {
        return;
    }
    size_t count = (size_t)(positions * model_rotary_width(config));
    float *table = memory_new(count, sizeof *table);
    rotary_table(config, positions, table);
    device_upload(device, cos_sin, table, count * sizeof *table);
    free(table);
}
