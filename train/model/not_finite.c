// Where a forward pass leaves the finite numbers: see pass.h.
//
// Nobody checks activations on the way, which would cost a pass through memory for each layer. A loss or a logit that is not
// finite is met at the end, and then the same rows are computed once more, with a look at the stream behind every layer.
#include "train/model/pass.h"

#include "kernels/values.h"

#include <math.h>

// True where all of `count` elements in device memory are finite.
static bool all_finite(Device *device, DataType type, const void *from, int64_t count) {
    size_t bytes = (size_t)(count * data_type_bytes(type));
    void *raw = memory_new(bytes, 1);
    float *values = memory_new((size_t)count, sizeof *values);
    device_download(device, raw, from, bytes);
    values_widen(type, raw, NULL, 0, count, values);
    bool finite = true;
    for (int64_t i = 0; i < count && finite; i++) {
        finite = isfinite(values[i]);
    }
    free(raw);
    free(values);
    return finite;
}

// True where a row of the stream [R, C] is not finite.
static bool lost(const Pass *pass, const void *stream, Range rows) {
    int64_t width = pass->model->config.width;
    Device *device = pass->model->device;
    const char *from = (const char *)stream + rows.begin * width * data_type_bytes(device->type);
    return !all_finite(device, device->type, from, (rows.end - rows.begin) * width);
}

// The first element of a row's weight that is not finite, and its value; false where there is none.
static bool holds(const ModelWeights *weights, int32_t row, float *value) {
    enum { PIECE = 1 << 16 };  // whole blocks of quantised values
    Range extent = weights_extent(weights, ARRAY_WEIGHT, row);
    float *piece = memory_new(PIECE, sizeof *piece);
    bool found = false;
    for (int64_t at = extent.begin; at < extent.end && !found; at += PIECE) {
        int64_t end = at + PIECE < extent.end ? at + PIECE : extent.end;
        weights_read(weights, ARRAY_WEIGHT, row, at, end, piece);
        for (int64_t i = 0; i < end - at && !found; i++) {
            *value = piece[i];
            found = !isfinite(piece[i]);
        }
    }
    free(piece);
    return found;
}

// The text for a place whose tensors are rows [begin, end) of the table.
static char *tell(const Pass *pass, const char *place, int32_t begin, int32_t end) {
    const ModelWeights *weights = &pass->model->weights;
    float value;
    for (int32_t row = begin; row < end; row++) {
        if (holds(weights, row, &value)) {
            const char *sign = isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
            return memory_format("it begins in %s, whose %s holds %s", place, pass->model->table.rows[row].name, sign);
        }
    }
    return memory_format("it begins in %s, whose weights are finite: what they lead to is too large for %s", place,
                         data_type_name(pass->model->device->type));
}

char *pass_not_finite(const Pass *pass, Range rows, int64_t row, float *logits) {
    const Model *model = pass->model;
    const ParamTable *table = &model->table;
    int32_t first = 0, next;
    char place[32];
    if (model->weights.slot_weights != NULL) {
        return memory_string("where it begins is told by one rank alone: evaluate a checkpoint of the run");
    }
    pass_embed(pass);
    for (; first < table->count && table->rows[first].layer < 0; first++) {
    }
    if (lost(pass, pass_layer(pass, 0)->input, rows)) {
        return tell(pass, "the embedding", 0, first);
    }
    for (int64_t layer = 0; layer < model->config.layers; layer++, first = next) {
        for (next = first; next < table->count && table->rows[next].layer == layer; next++) {
        }
        pass_forward(pass, (Range){layer, layer + 1});
        if (lost(pass, pass_layer(pass, layer)->output, rows)) {
            snprintf(place, sizeof place, "layers.%lld", (long long)layer);
            return tell(pass, place, first, next);
        }
    }
    pass_logits(pass, row, 1, logits);
    if (lost(pass, pass->workspace->final, (Range){0, 1})) {
        return tell(pass, "the final norm", table->final_norm, table->final_norm + 1 + (table->final_norm_bias >= 0));
    }
    if (!all_finite(model->device, TYPE_FP32, logits, model->config.vocabulary)) {
        return tell(pass, "the head", table->head, table->head + 1);
    }
    return memory_format("computed once more the logits are finite: they are at the edge of what %s holds, or the machine errs",
                         data_type_name(model->device->type));
}
