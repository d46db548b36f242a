// The parameters of a model on a device, and what training keeps beside them: gradients, fp32 masters, moments.
//
// Sized and addressed by a placement; cut from its owner's arena. Everything goes in and out row by row, as floats of the host
// or in the type in which it lies: for checkpoints, resumes and tests.
#pragma once

#include "kernels/device.h"
#include "train/model/fetch.h"
#include "train/model/layout.h"

typedef struct ModelWeights {
    Device *device;
    const ParamTable *table;
    Placement placement;
    // Device memory.
    void *weights;            // [placement.weight_bytes]: what the passes read
    float *scales;            // [placement.weight_scales]
    float *masters;           // [placement.state], NULL where the weights are the masters or there are none
    float *grads;             // [placement.gradients], NULL without learning: of those in shards the sums that are owned
    void *moment1, *moment2;  // [placement.state], [placement.second_state] of moment_type
    float *scale1, *scale2;   // of 8-bit moments
    UpdateSegment *segments;
    int64_t segment_count;
    // [placement.slots]: of layers in use, where gradients, and weights, are in shards. NULL where they are all here.
    void *slot_weights;
    float *slot_gradients;
    Fetch *fetch;
} ModelWeights;

// Takes the table (not copied: it must outlive the weights) and the placement (its memory becomes the weights', freed by
// weights_free), and cuts the arrays off the layout; with a layout that only counts they stay NULL. Once memory is there and
// `device` is set, weights_fill uploads what the optimizer must know.
void weights_lay_out(ModelWeights *weights, const ParamTable *table, Placement placement, Layout *layout);
void weights_fill(ModelWeights *weights, double weight_decay);
void weights_free(ModelWeights *weights);  // not the device memory, which is its arena's

// What the passes use: a row's weight, its scales, its gradient; NULL for row -1, an absent or (gradients) a frozen row. Of
// layers in shards that are in use alone: see fetch.h.
static inline const void *weights_row(const ModelWeights *weights, int32_t row) {
    return weights->fetch != NULL ? fetch_weight(weights->fetch, row)
                                  : placement_weight(&weights->placement, row, weights->weights);
}
static inline float *weights_gradient(const ModelWeights *weights, int32_t row) {
    return weights->fetch != NULL ? fetch_gradient(weights->fetch, row)
                                  : placement_gradient(&weights->placement, row, weights->grads);
}
// The gradient of the head: where a tied embedding's is apart from that as the embedding (leaves.h), that one.
static inline float *weights_head_gradient(const ModelWeights *weights, int32_t row) {
    float *apart = placement_head_apart(&weights->placement, row, weights->grads);
    return apart != NULL ? apart : weights_gradient(weights, row);
}
float *weights_head_apart(const ModelWeights *weights, int64_t *count);  // NULL: it is not
// All gradients, where they are whole, and those of a layer: see placement_layer.
static inline float *weights_all_gradients(const ModelWeights *weights) {
    return weights->grads;
}
static inline bool weights_gradients_whole(const ModelWeights *weights) {
    return weights->slot_gradients == NULL;
}
float *weights_layer_gradients(const ModelWeights *weights, int64_t layer, bool cut, int64_t *count);
// What this rank has of the sum of a row's gradient over micro-batches: its first element there; NULL and 0 where that is
// nothing.
float *weights_sum(const ModelWeights *weights, int32_t row, int64_t *count);
void weights_zero_gradients(const ModelWeights *weights);

// ---- In and out

typedef enum WeightsArray { ARRAY_WEIGHT, ARRAY_MOMENT1, ARRAY_MOMENT2, ARRAY_GRADIENT, ARRAY_COUNT } WeightsArray;
const char *weights_array_name(WeightsArray array);  // "weight", "moment1", ...: the kinds of a checkpoint

// The elements of the row, as it lies here, that this rank has in that array; empty where there are none. Of this,
// weights_exact, weights_type and weights_saved only table and placement are asked.
Range weights_extent(const ModelWeights *weights, WeightsArray array, int32_t row);
// Those of them that are exact, as they are saved: of a weight with a master, what the master holds, which is what is owned.
Range weights_exact(const ModelWeights *weights, WeightsArray array, int32_t row);
// The type in which those lie: of a weight with a master, the master's.
DataType weights_type(const ModelWeights *weights, WeightsArray array, int32_t row);

// Elements [begin, end) of weights_extent, out of the device and back. Values with scales come and go in whole blocks, counted
// from the first element of the extent. Writing a weight writes both its master and what the
// passes read. Reading waits for the device.
void weights_read(const ModelWeights *weights, WeightsArray array, int32_t row, int64_t begin, int64_t end, float *to);
void weights_write(ModelWeights *weights, WeightsArray array, int32_t row, int64_t begin, int64_t end, const float *from);
// The same bytes as they lie, in weights_type, scales NULL where the type has none; of a weight with a master only owned
// elements.
void weights_fetch(const ModelWeights *weights, WeightsArray array, int32_t row, int64_t begin, int64_t end, void *to,
                   float *scales);

// ---- What is saved

// A part of a row that a rank saves: elements [begin, end) of the row as it lies here, in weights_type.
typedef struct SavedPart {
    int32_t row;
    WeightsArray array;
    int64_t begin, end;
} SavedPart;

// What falls to rank `rank` of `ranks` to save of weights and moments, where all of them hold the same weights and rank r has
// shard r % shards of the state: what ranks of one shard hold alike is divided among those. Returns the number; the caller
// frees *out.
int weights_saved(const ModelWeights *weights, int ranks, int rank, SavedPart **out);

// Initial values of all rows that are here.
void weights_initialise(ModelWeights *weights, uint64_t seed);
