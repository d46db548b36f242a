// The parameters of a model on a device: see weights.h.
#include "train/model/weights.h"

#include "kernels/values.h"

enum { PIECE = 1 << 20 };  // elements that travel at a time; a multiple of DATA_TYPE_BLOCK

// ---- Memory

static bool has_masters(const Storage *storage) {
    return storage->learns && storage->masters && storage->type != TYPE_FP32;
}

void weights_lay_out(ModelWeights *weights, const ParamTable *table, Placement placement, Layout *layout) {
    const Storage *storage = &placement.storage;
    *weights = (ModelWeights){.table = table, .placement = placement};
    bool learns = storage->learns, codes = storage->moments == MOMENT_8BIT;
    int64_t state = placement.state, second = placement.second_state, bytes = data_type_bytes(moment_type(storage, 1));
    weights->masters = layout_take(layout, "fp32 parameters", has_masters(storage), state, 1, sizeof(float));
    weights->weights = layout_take(layout, "parameters", 1, placement.weight_bytes / data_type_bytes(storage->type), 1,
                                   data_type_bytes(storage->type));
    weights->scales = layout_take(layout, "scales of parameters", 1, placement.weight_scales, 1, sizeof(float));
    weights->grads = layout_take(layout, "gradients", learns, placement.gradients + placement.copied, 1, sizeof(float));
    weights->slot_weights = layout_take(layout, "parameters of layers in use", learns && placement.share.zero >= 3,
                                        placement.slots, 1, data_type_bytes(storage->type));
    weights->slot_gradients = layout_take(layout, "gradients of layers in use", learns && placement.share.whole_gradients == 0,
                                          placement.slots, 1, sizeof(float));
    weights->moment1 = layout_take(layout, "optimizer's first moments", learns, state, 1, bytes);
    weights->moment2 = layout_take(layout, "optimizer's second moments", learns, second, 1, bytes);
    weights->scale1 = layout_take(layout, "scales of first moments", learns && codes, state / MOMENT_BLOCK, 1, sizeof(float));
    weights->scale2 = layout_take(layout, "scales of second moments", learns && codes, second / MOMENT_BLOCK, 1, sizeof(float));
    weights->segments = layout_take(layout, "settings of parameters", learns, table->count, 1, sizeof *weights->segments);
}

void weights_fill(ModelWeights *weights, double weight_decay) {
    if (weights->segments != NULL) {
        UpdateSegment *segments;
        weights->segment_count = placement_segments(&weights->placement, weights->table, weight_decay, &segments);
        device_upload(weights->device, weights->segments, segments, (size_t)weights->segment_count * sizeof *segments);
        free(segments);
    }
    weights->fetch = fetch_create(weights->device, &weights->placement, weights->weights, weights->grads, weights->slot_weights,
                                  weights->slot_gradients);
}

void weights_free(ModelWeights *weights) {
    placement_free(&weights->placement);
    fetch_free(weights->fetch);
    *weights = (ModelWeights){0};
}

void weights_zero_gradients(const ModelWeights *weights) {
    ensure(weights->grads != NULL || weights->placement.gradients == 0, "a model without gradients");
    fetch_finish(weights->fetch);
    int64_t count = weights->placement.gradients + weights->placement.copied;
    weights->device->op->zero(weights->device, count * (int64_t)sizeof(float), weights->grads);
}

float *weights_head_apart(const ModelWeights *weights, int64_t *count) {
    const ParamTable *table = weights->table;
    float *apart = placement_head_apart(&weights->placement, table->head, weights->grads);
    *count = apart != NULL ? weights->placement.places[table->head].count : 0;
    return apart;
}

float *weights_layer_gradients(const ModelWeights *weights, int64_t layer, bool cut, int64_t *count) {
    return placement_layer(&weights->placement, weights->table, layer, cut, weights->grads, count);
}

float *weights_sum(const ModelWeights *weights, int32_t row, int64_t *count) {
    float *sum = placement_gradient(&weights->placement, row, weights->grads);
    const Place *place = sum != NULL ? &weights->placement.places[row] : NULL;
    *count = sum != NULL ? place->summed.end - place->summed.begin : 0;
    return sum;
}

// ---- In and out

const char *weights_array_name(WeightsArray array) {
    static const char *const names[ARRAY_COUNT] = {"weight", "moment1", "moment2", "gradient"};
    return names[array];
}

Range weights_extent(const ModelWeights *weights, WeightsArray array, int32_t row) {
    const Place *place = &weights->placement.places[row];
    bool second = array == ARRAY_MOMENT2 &&
                  (weights->placement.second_state == 0 || weights->table->rows[row].update != UPDATE_ELEMENTWISE);
    if (place->box_count == 0 || second || (array == ARRAY_GRADIENT && !place->trainable)) {
        return (Range){0, 0};
    }
    return array == ARRAY_WEIGHT ? place->held : array == ARRAY_GRADIENT ? place->summed : place->owned;
}

static bool has_master(const ModelWeights *weights, WeightsArray array, int32_t row) {
    const Placement *p = &weights->placement;
    return array == ARRAY_WEIGHT && has_masters(&p->storage) && p->places[row].trainable;
}

Range weights_exact(const ModelWeights *weights, WeightsArray array, int32_t row) {
    return has_master(weights, array, row) ? weights->placement.places[row].owned : weights_extent(weights, array, row);
}

// Where a row's array lies: its first element (of the extent), its scales.
typedef struct Stored {
    DataType type;
    char *at;
    float *scales;
} Stored;

static Stored stored_at(const ModelWeights *weights, WeightsArray array, int32_t row) {
    const Placement *p = &weights->placement;
    DataType type = array == ARRAY_WEIGHT ? p->places[row].type : TYPE_FP32;
    switch (array) {
    case ARRAY_WEIGHT:
        return (Stored){type, placement_weight(p, row, weights->weights), placement_weight_scales(p, row, weights->scales)};
    case ARRAY_GRADIENT:
        return (Stored){type, (char *)placement_gradient(p, row, weights->grads), NULL};
    default: {
        bool first = array == ARRAY_MOMENT1;
        type = moment_type(&p->storage, first ? 1 : 2);
        return (Stored){type, placement_state(p, row, first ? weights->moment1 : weights->moment2, data_type_bytes(type)),
                        placement_state_scales(p, row, first ? weights->scale1 : weights->scale2)};
    }
    }
}

// The master of a weight, which holds what is owned; none: `at` is NULL.
static Stored master_of(const ModelWeights *weights, int32_t row) {
    return (Stored){TYPE_FP32, placement_state(&weights->placement, row, weights->masters, sizeof(float)), NULL};
}

// Where [begin, end) is read from: the master where it holds all of that.
static Stored read_at(const ModelWeights *weights, WeightsArray array, int32_t row, int64_t begin, int64_t end,
                      int64_t *first) {
    const Place *place = &weights->placement.places[row];
    Stored master = array == ARRAY_WEIGHT ? master_of(weights, row) : (Stored){0};
    Range extent = weights_extent(weights, array, row);
    ensure(begin >= extent.begin && begin <= end && end <= extent.end, "elements %lld to %lld of %s", (long long)begin,
           (long long)end, weights->table->rows[row].name);
    if (master.at != NULL && begin >= place->owned.begin && end <= place->owned.end) {
        *first = begin - place->owned.begin;
        return master;
    }
    *first = begin - extent.begin;
    return stored_at(weights, array, row);
}

DataType weights_type(const ModelWeights *weights, WeightsArray array, int32_t row) {
    const Placement *p = &weights->placement;
    const Place *place = &p->places[row];
    if (array == ARRAY_WEIGHT) {
        return has_masters(&p->storage) && place->owned.end > place->owned.begin ? TYPE_FP32 : place->type;
    }
    return array == ARRAY_GRADIENT ? TYPE_FP32 : moment_type(&p->storage, array == ARRAY_MOMENT1 ? 1 : 2);
}

static void fetch(const ModelWeights *weights, const Stored *from, int64_t first, int64_t count, void *to, float *scales) {
    int64_t bytes = data_type_bytes(from->type);
    device_download(weights->device, to, from->at + first * bytes, (size_t)(count * bytes));
    if (data_type_has_scales(from->type)) {
        ensure(first % DATA_TYPE_BLOCK == 0, "quantised values are read in whole blocks");
        device_download(weights->device, scales, from->scales + first / DATA_TYPE_BLOCK,
                        (size_t)data_type_scales(from->type, count) * sizeof *scales);
    }
}

void weights_fetch(const ModelWeights *weights, WeightsArray array, int32_t row, int64_t begin, int64_t end, void *to,
                   float *scales) {
    int64_t first;
    Stored from = read_at(weights, array, row, begin, end, &first);
    ensure(from.type == weights_type(weights, array, row), "%s lies in two types", weights->table->rows[row].name);
    fetch(weights, &from, first, end - begin, to, scales);
}

void weights_read(const ModelWeights *weights, WeightsArray array, int32_t row, int64_t begin, int64_t end, float *to) {
    int64_t first, count = end - begin;
    Stored from = read_at(weights, array, row, begin, end, &first);
    if (from.type == TYPE_FP32) {
        fetch(weights, &from, first, count, to, NULL);
        return;
    }
    int64_t most = count < PIECE ? count : PIECE;
    void *piece = memory_new((size_t)most, (size_t)data_type_bytes(from.type));
    float *scales = memory_new((size_t)data_type_scales(from.type, most), sizeof *scales);
    for (int64_t done = 0; done < count; done += PIECE) {
        int64_t part = count - done < PIECE ? count - done : PIECE;
        fetch(weights, &from, first + done, part, piece, scales);
        values_widen(from.type, piece, scales, 0, part, to + done);
    }
    free(piece);
    free(scales);
}

// Elements [first, first + count) of what is stored there.
static void store(ModelWeights *weights, const Stored *to, int64_t first, int64_t count, const float *from) {
    int64_t bytes = data_type_bytes(to->type);
    if (to->type == TYPE_FP32) {
        device_upload(weights->device, to->at + first * bytes, from, (size_t)(count * bytes));
        return;
    }
    ensure(!data_type_has_scales(to->type) || first % DATA_TYPE_BLOCK == 0, "quantised values are written in whole blocks");
    int64_t most = count < PIECE ? count : PIECE;
    // Whole blocks of codes are made, whatever the count.
    void *piece = memory_new((size_t)(most + DATA_TYPE_BLOCK), (size_t)bytes);
    float *scales = memory_new((size_t)data_type_scales(to->type, most), sizeof *scales);
    for (int64_t done = 0; done < count; done += PIECE) {
        int64_t part = count - done < PIECE ? count - done : PIECE;
        values_narrow(to->type, from + done, part, piece, scales);
        device_upload(weights->device, to->at + (first + done) * bytes, piece, (size_t)(part * bytes));
        if (data_type_has_scales(to->type)) {
            device_upload(weights->device, to->scales + (first + done) / DATA_TYPE_BLOCK, scales,
                          (size_t)data_type_scales(to->type, part) * sizeof *scales);
        }
    }
    free(piece);
    free(scales);
}

void weights_write(ModelWeights *weights, WeightsArray array, int32_t row, int64_t begin, int64_t end, const float *from) {
    const Place *place = &weights->placement.places[row];
    Range extent = weights_extent(weights, array, row);
    ensure(begin >= extent.begin && begin <= end && end <= extent.end, "elements %lld to %lld of %s", (long long)begin,
           (long long)end, weights->table->rows[row].name);
    Stored to = stored_at(weights, array, row), master = array == ARRAY_WEIGHT ? master_of(weights, row) : (Stored){0};
    fetch_forget(weights->fetch);
    store(weights, &to, begin - extent.begin, end - begin, from);
    int64_t first = begin > place->owned.begin ? begin : place->owned.begin;
    int64_t last = end < place->owned.end ? end : place->owned.end;
    if (master.at != NULL && first < last) {
        store(weights, &master, first - place->owned.begin, last - first, from + (first - begin));
    }
}

int weights_saved(const ModelWeights *weights, int ranks, int rank, SavedPart **out) {
    int count = 0, capacity = 0;
    *out = NULL;
    for (WeightsArray array = ARRAY_WEIGHT; array <= ARRAY_MOMENT2; array++) {
        for (int32_t row = 0; row < weights->table->count; row++) {
            const Placement *p = &weights->placement;
            Range extent = weights_exact(weights, array, row);
            bool shared =
                array != ARRAY_WEIGHT || has_master(weights, array, row) || (p->share.zero >= 3 && p->places[row].trainable);
            int alike = shared ? p->share.shards : 1;
            Range part = placement_saved(p, weights->table, row, ranks / alike, rank / alike);
            part.begin = part.begin > extent.begin ? part.begin : extent.begin;
            part.end = part.end < extent.end ? part.end : extent.end;
            if (part.begin < part.end) {
                array_push(*out, count, capacity, ((SavedPart){row, array, part.begin, part.end}));
            }
        }
    }
    return count;
}

void weights_initialise(ModelWeights *weights, uint64_t seed) {
    enum { MOST = 16 * PIECE };
    float *values = NULL;
    int64_t room = 0;
    for (int32_t row = 0; row < weights->table->count; row++) {
        const Place *place = &weights->placement.places[row];
        Range held = weights_extent(weights, ARRAY_WEIGHT, row);
        for (int64_t begin = held.begin; begin < held.end; begin += MOST) {
            int64_t end = begin + MOST < held.end ? begin + MOST : held.end;
            if (end - begin > room) {
                room = end - begin;
                values = memory_resize(values, (size_t)room, sizeof *values);
            }
            params_initial_values(weights->table, row, seed, weights->device->pool, place->boxes, place->box_count, begin, end,
                                  values);
            weights_write(weights, ARRAY_WEIGHT, row, begin, end, values);
        }
    }
    free(values);
}
