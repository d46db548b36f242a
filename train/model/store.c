// A model's arrays as floats of the host, whatever they are on the device: see model.h.
#include "train/model/model.h"

#include "core/half.h"
#include "kernels/quantize.h"

enum { PIECE = 1 << 20 };  // elements that travel at a time; a multiple of MOMENT_BLOCK

bool model_has(const Model *model, ModelArray array) {
    switch (array) {
    case MODEL_PARAMS:
        return true;
    case MODEL_MOMENT1:
        return model->moment1 != NULL;
    case MODEL_MOMENT2:
        return model->moment2 != NULL;
    case MODEL_GRADS:
        return model->grads != NULL;
    }
    return false;
}

static bool is_moment(ModelArray array) {
    return array == MODEL_MOMENT1 || array == MODEL_MOMENT2;
}

// The array where it is fp32, else NULL.
static float *floats_of(const Model *model, ModelArray array) {
    bool whole = model->options.moments == MOMENT_FP32;
    switch (array) {
    case MODEL_PARAMS:
        return model->params;
    case MODEL_MOMENT1:
        return whole ? model->moment1 : NULL;
    case MODEL_MOMENT2:
        return whole ? model->moment2 : NULL;
    case MODEL_GRADS:
        return model->grads;
    }
    return NULL;
}

static void read_weights(const Model *model, ModelArray array, int64_t offset, int64_t count, float *to) {
    bool bf16 = model->device->type == TYPE_BF16;
    uint16_t *bits = memory_new((size_t)count, sizeof *bits);
    device_download(model->device, bits, (const uint16_t *)model->weights + offset, (size_t)count * sizeof *bits);
    for (int64_t i = 0; i < count; i++) {
        to[i] = bf16 ? bf16_to_float(bits[i]) : fp16_to_float(bits[i]);
    }
    free(bits);
}

static void write_weights(Model *model, ModelArray array, int64_t offset, int64_t count, const float *from) {
    bool bf16 = model->device->type == TYPE_BF16;
    uint16_t *bits = memory_new((size_t)count, sizeof *bits);
    for (int64_t i = 0; i < count; i++) {
        bits[i] = bf16 ? bf16_from_float(from[i]) : fp16_from_float(from[i]);
    }
    device_upload(model->device, (uint16_t *)model->weights + offset, bits, (size_t)count * sizeof *bits);
    free(bits);
}

// Moments of 8 bits: the blocks that hold elements offset .. of the flat array.
typedef struct Blocks {
    CodeTable table;
    uint8_t *codes_at;  // device
    float *scales_at;
    int64_t count;
    uint8_t *codes;  // host
    float *scales;
} Blocks;

static Blocks *blocks_create(const Model *model, ModelArray array, int64_t offset, int64_t count) {
    Blocks *blocks = memory_new(1, sizeof *blocks);
    int64_t block = offset / MOMENT_BLOCK;
    bool first = array == MODEL_MOMENT1;
    code_table_fill(first ? TYPE_CODE8 : TYPE_CODE8_UNSIGNED, &blocks->table);
    blocks->codes_at = (uint8_t *)(first ? model->moment1 : model->moment2) + block * MOMENT_BLOCK;
    blocks->scales_at = (first ? model->scale1 : model->scale2) + block;
    blocks->count = (offset + count + MOMENT_BLOCK - 1) / MOMENT_BLOCK - block;
    blocks->codes = memory_zeroed((size_t)blocks->count, MOMENT_BLOCK);
    blocks->scales = memory_zeroed((size_t)blocks->count, sizeof *blocks->scales);
    return blocks;
}

static void blocks_free(Blocks *blocks) {
    free(blocks->codes);
    free(blocks->scales);
    free(blocks);
}

static void read_codes(const Model *model, ModelArray array, int64_t offset, int64_t count, float *to) {
    Blocks *blocks = blocks_create(model, array, offset, count);
    device_download(model->device, blocks->codes, blocks->codes_at, (size_t)(blocks->count * MOMENT_BLOCK));
    device_download(model->device, blocks->scales, blocks->scales_at, (size_t)blocks->count * sizeof(float));
    int64_t at = offset % MOMENT_BLOCK, end = at + count;
    for (int64_t part; at < end; at += part, to += part) {
        part = MOMENT_BLOCK - at % MOMENT_BLOCK < end - at ? MOMENT_BLOCK - at % MOMENT_BLOCK : end - at;
        block_decode(&blocks->table, blocks->codes + at, blocks->scales[at / MOMENT_BLOCK], part, to);
    }
    blocks_free(blocks);
}

static void write_codes(Model *model, ModelArray array, int64_t offset, int64_t count, const float *from) {
    ensure(offset % MOMENT_BLOCK == 0, "moments of 8 bits are written in whole blocks");
    Blocks *blocks = blocks_create(model, array, offset, count);
    for (int64_t b = 0; b < blocks->count; b++) {
        int64_t left = count - b * MOMENT_BLOCK, part = left < MOMENT_BLOCK ? left : MOMENT_BLOCK;
        block_encode(&blocks->table, from + b * MOMENT_BLOCK, part, blocks->codes + b * MOMENT_BLOCK, &blocks->scales[b]);
    }
    device_upload(model->device, blocks->codes_at, blocks->codes, (size_t)(blocks->count * MOMENT_BLOCK));
    device_upload(model->device, blocks->scales_at, blocks->scales, (size_t)blocks->count * sizeof(float));
    blocks_free(blocks);
}

void model_read(const Model *model, ModelArray array, int64_t offset, int64_t count, float *to) {
    const float *floats = floats_of(model, array);
    if (floats != NULL) {
        device_download(model->device, to, floats + offset, (size_t)count * sizeof *to);
        return;
    }
    for (int64_t done = 0; done < count; done += PIECE) {
        int64_t part = count - done < PIECE ? count - done : PIECE;
        (is_moment(array) ? read_codes : read_weights)(model, array, offset + done, part, to + done);
    }
}

void model_write(Model *model, ModelArray array, int64_t offset, int64_t count, const float *from) {
    float *floats = floats_of(model, array);
    if (floats != NULL) {
        device_upload(model->device, floats + offset, from, (size_t)count * sizeof *from);
    }
    for (int64_t done = 0; done < count; done += PIECE) {
        int64_t part = count - done < PIECE ? count - done : PIECE;
        if (array == MODEL_PARAMS && model->weights != model->params) {
            write_weights(model, array, offset + done, part, from + done);
        } else if (floats == NULL) {
            write_codes(model, array, offset + done, part, from + done);
        }
    }
}

void model_initialise(Model *model, uint64_t seed) {
    int64_t elements = model->table.elements, most = elements < 16 * PIECE ? elements : 16 * PIECE;
    float *values = memory_new((size_t)most, sizeof *values);
    for (int64_t begin = 0; begin < elements; begin += most) {
        int64_t end = begin + most < elements ? begin + most : elements;
        params_initialise(&model->table, seed, model->device->pool, (Range){begin, end}, values);
        model_write(model, MODEL_PARAMS, begin, end - begin, values);
    }
    free(values);
}
