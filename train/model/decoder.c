// Generation: see decoder.h.
//
// The cache holds keys (after the rotation) and values of each layer as [B, capacity, G, D]. A prompt runs through the same
// block as training, its keys and values are then copied out of the qkv rows; a step runs one row per sequence and attends to
// the cache.
#include "train/model/decoder.h"

#include "train/model/block.h"

#include <math.h>

struct Decoder {
    Model view;  // the model's parameters with buffers of our own
    Activations activations;
    int64_t batch, capacity;
    int32_t *lengths;  // [B], host
    // Device memory.
    int32_t *lengths_there;     // [B]
    int32_t *starts, *indices;  // [capacity] document starts (0) and positions of a prompt
    int32_t *tokens;            // [max(B, capacity)]
    int32_t *step_positions;    // [B]
    float *logits;              // [B,V]
    void *arena;
    int64_t arena_bytes;
    char *keys, *values;  // [L, B, capacity, G, D]
};

static int64_t cache_row(const ModelConfig *config) {
    return config->groups * config->head_width;
}

static void lay_out(Decoder *decoder, Layout *layout) {
    const ModelConfig *config = &decoder->view.config;
    int64_t rows = decoder->batch * decoder->capacity;
    decoder->keys = layout_take(layout, "keys", config->layers, rows, cache_row(config), layout->element);
    decoder->values = layout_take(layout, "values", config->layers, rows, cache_row(config), layout->element);
    decoder->logits = layout_take(layout, "logits", 1, decoder->batch, config->vocabulary, sizeof(float));
    decoder->lengths_there = layout_take(layout, "lengths", 1, decoder->batch, 1, sizeof(int32_t));
    decoder->starts = layout_take(layout, "document starts", 1, decoder->capacity, 1, sizeof(int32_t));
    decoder->indices = layout_take(layout, "positions", 1, decoder->capacity, 1, sizeof(int32_t));
    decoder->tokens = layout_take(layout, "tokens", 1, decoder->view.options.length, 1, sizeof(int32_t));
    decoder->step_positions = layout_take(layout, "positions of a step", 1, decoder->batch, 1, sizeof(int32_t));
    activations_layout(config, &decoder->view.options, decoder->view.device, layout, &decoder->activations);
}

Error *decoder_create(const Model *model, int64_t batch, int64_t capacity, Decoder **out) {
    if (batch < 1 || capacity < 1 || capacity > model->config.context || batch > 1 << 20) {
        return failure("%lld sequences of %lld tokens cannot be generated: at least one, and at most model.context %lld tokens",
                       (long long)batch, (long long)capacity, (long long)model->config.context);
    }
    Decoder *decoder = memory_zeroed(1, sizeof *decoder);
    decoder->batch = batch;
    decoder->capacity = capacity;
    decoder->view = *model;
    // One buffer serves a prompt of one sequence and a step of all: at least `batch` rows.
    decoder->view.options = (ModelOptions){
        .sequences = 1,
        .length = capacity > batch ? capacity : batch,
        .head_rows = 1,
        .forward_only = true,
    };
    decoder->view.activations = &decoder->activations;
    MemoryPlan plan = {0};
    Layout layout = {.plan = &plan, .element = data_type_bytes(model->device->type)};
    lay_out(decoder, &layout);
    decoder->arena_bytes = layout.used;
    Error *error = memory_plan_check(&plan, model->device);
    if (error != NULL) {
        free(decoder);
        return error_wrap(error, "generation");
    }
    error = device_allocate(model->device, (size_t)decoder->arena_bytes, &decoder->arena);
    if (error != NULL) {
        free(decoder);
        return error_wrap(error, "generation");
    }
    layout = (Layout){.base = decoder->arena, .element = data_type_bytes(model->device->type)};
    lay_out(decoder, &layout);
    model_upload_rotary(model->device, &model->config, decoder->view.options.length, decoder->activations.cos_sin);
    // The document starts stay 0, as all memory begins.
    int32_t *indices = memory_new((size_t)capacity, sizeof *indices);
    for (int64_t t = 0; t < capacity; t++) {
        indices[t] = (int32_t)t;
    }
    device_upload(model->device, decoder->indices, indices, (size_t)capacity * sizeof *indices);
    free(indices);
    decoder->lengths = memory_zeroed((size_t)batch, sizeof *decoder->lengths);
    *out = decoder;
    return NULL;
}

void decoder_destroy(Decoder *decoder) {
    if (decoder != NULL) {
        device_release(decoder->view.device, decoder->arena, (size_t)decoder->arena_bytes);
        free(decoder->lengths);
        free(decoder);
    }
}

int64_t decoder_capacity(const Decoder *decoder) {
    return decoder->capacity;
}

int64_t decoder_length(const Decoder *decoder, int64_t sequence) {
    ensure(sequence >= 0 && sequence < decoder->batch, "no sequence %lld", (long long)sequence);
    return decoder->lengths[sequence];
}

// Where the cache of (layer, sequence) starts.
static int64_t cache_offset(const Decoder *decoder, int64_t layer, int64_t sequence) {
    const ModelConfig *config = &decoder->view.config;
    int64_t row = cache_row(config), rows = decoder->batch * decoder->capacity;
    int64_t each = (rows * row + PARAM_ALIGN - 1) / PARAM_ALIGN * PARAM_ALIGN;
    return layer * each + sequence * decoder->capacity * row;
}

// Copies the key and value part of `count` qkv rows into the cache from token `at` on.
static void remember(Decoder *decoder, int64_t layer, int64_t sequence, int64_t at, const char *qkv, int64_t count) {
    const ModelConfig *config = &decoder->view.config;
    Device *device = decoder->view.device;
    int64_t element = data_type_bytes(device->type), row = cache_row(config) * element;
    int64_t stride = model_qkv_width(config) * element, query = model_attention_width(config) * element;
    int64_t offset = cache_offset(decoder, layer, sequence) * element + at * row;
    device->op->copy_rows(device, &(CopyRows){count, row, qkv + query, stride, decoder->keys + offset, row});
    device->op->copy_rows(device, &(CopyRows){count, row, qkv + query + row, stride, decoder->values + offset, row});
}

// logits = head(final norm(x)), rows x V, to host memory.
static void head(Decoder *decoder, int64_t rows, const void *x, float *logits) {
    const Model *model = &decoder->view;
    const ParamTable *table = &model->table;
    Activations *a = &decoder->activations;
    block_norm(model, rows, table->final_norm, table->final_norm_bias, x, a->final, a->final_mean, a->final_rstd);
    block_logits(model, rows, a->final, decoder->logits);
    device_download(model->device, logits, decoder->logits, (size_t)(rows * model->config.vocabulary) * sizeof *logits);
}

void decoder_prefill(Decoder *decoder, int64_t sequence, const int32_t *tokens, int64_t count, float *logits) {
    ensure(sequence >= 0 && sequence < decoder->batch && count >= 1 && count <= decoder->capacity,
           "a prompt of %lld tokens for sequence %lld in a decoder of %lld x %lld", (long long)count, (long long)sequence,
           (long long)decoder->batch, (long long)decoder->capacity);
    const Model *model = &decoder->view;
    const LayerActivations *at = &decoder->activations.shared;
    device_upload(model->device, decoder->tokens, tokens, (size_t)count * sizeof *tokens);
    Pass pass = {
        .model = model,
        .sequences = 1,
        .length = count,
        .rows = count,
        .tokens = decoder->tokens,
        .first = decoder->starts,
        .positions = decoder->indices,
    };
    embedding_pass(&pass, at->input);
    for (int64_t layer = 0; layer < model->config.layers; layer++) {
        block_forward(&pass, layer, at);
        remember(decoder, layer, sequence, 0, at->qkv, count);
    }
    decoder->lengths[sequence] = (int32_t)count;
    head(decoder, 1, (const char *)at->output + (count - 1) * model->config.width * data_type_bytes(model->device->type),
         logits);
}

// One layer for one new row per sequence. lengths[] already counts the new token.
static void step_layer(Decoder *decoder, const Pass *pass, int64_t layer) {
    const Model *model = &decoder->view;
    const ModelConfig *config = &model->config;
    const LayerParams *p = &model->table.layers[layer];
    const LayerActivations *at = &decoder->activations.shared;
    Device *device = model->device;
    int64_t qkv_width = model_qkv_width(config), element = data_type_bytes(device->type);
    block_norm(model, pass->rows, p->attention_norm, p->attention_norm_bias, at->input, at->norm1, at->mean1, at->rstd1);
    block_project(model, pass->rows, p->qkv, p->qkv_bias, at->norm1, NULL, at->qkv);
    block_rotate(pass, at->qkv, false);
    for (int64_t b = 0; b < decoder->batch; b++) {
        remember(decoder, layer, b, decoder->lengths[b] - 1, (const char *)at->qkv + b * qkv_width * element, 1);
    }
    HeadStrides cache = {cache_row(config), decoder->capacity * cache_row(config)};
    device->op->attention_forward(device, &(AttentionForward){
                                              .shape = {.batch = decoder->batch,
                                                        .queries = 1,
                                                        .keys = decoder->capacity,
                                                        .heads = (int32_t)config->heads,
                                                        .groups = (int32_t)config->groups,
                                                        .head_width = (int32_t)config->head_width,
                                                        .scale = (float)(1.0 / sqrt((double)config->head_width)),
                                                        .key_lengths = decoder->lengths_there},
                                              .in = {.q = at->qkv,
                                                     .k = decoder->keys + cache_offset(decoder, layer, 0) * element,
                                                     .v = decoder->values + cache_offset(decoder, layer, 0) * element,
                                                     .q_stride = {qkv_width, qkv_width},
                                                     .k_stride = cache,
                                                     .v_stride = cache},
                                              .out = at->attention,
                                          });
    block_project(model, pass->rows, p->out, p->out_bias, at->attention, at->input, at->middle);
    block_norm(model, pass->rows, p->mlp_norm, p->mlp_norm_bias, at->middle, at->norm2, at->mean2, at->rstd2);
    block_inner(model, pass->rows, layer, at);
    block_project(model, pass->rows, p->down, p->down_bias, at->inner, at->middle, at->output);
}

void decoder_step(Decoder *decoder, const int32_t *tokens, float *logits) {
    const Model *model = &decoder->view;
    const LayerActivations *at = &decoder->activations.shared;
    size_t bytes = (size_t)decoder->batch * sizeof(int32_t);
    for (int64_t b = 0; b < decoder->batch; b++) {
        ensure(decoder->lengths[b] < decoder->capacity, "sequence %lld is full", (long long)b);
    }
    // A token's position is the number of those before it.
    device_upload(model->device, decoder->step_positions, decoder->lengths, bytes);
    for (int64_t b = 0; b < decoder->batch; b++) {
        decoder->lengths[b]++;
    }
    device_upload(model->device, decoder->lengths_there, decoder->lengths, bytes);
    device_upload(model->device, decoder->tokens, tokens, bytes);
    Pass pass = {
        .model = model,
        .sequences = decoder->batch,
        .length = 1,
        .rows = decoder->batch,
        .tokens = decoder->tokens,
        .positions = decoder->step_positions,
    };
    embedding_pass(&pass, at->input);
    for (int64_t layer = 0; layer < model->config.layers; layer++) {
        step_layer(decoder, &pass, layer);
    }
    head(decoder, decoder->batch, at->output, logits);
}
