// Where data-parallel ranks keep gradients in shards (zero 2), and weights too (zero 3): what a pass does around each layer to
// have all of it here for as long as it is in use.
//
//     bring       weights of a layer: all ranks' parts are gathered into the layer's slot. Begun while the layer before is
//                 computed, waited for when the layer's own turn comes; dropped after. What a slot still holds is not brought
//                 again until weights change.
//     gradients   of a layer under way are whole in its slot, and add to what its parts' owners have summed so far, which
//                 stands in the slot of the owner from the start; closed, they are reduced to the owners while the layer before
//                 is on its way back.
//
//     forward     ready l | begin l+1 | compute l | drop l          backward    ready l | begin l-1 | open l | compute l |
//                                                                               close l | drop l
//
// Layers follow each other in two slots, so one is brought or reduced while another one computes; a third one waits. What is
// started does not depend on what has arrived, so all ranks start the same in the same order. `layer` is -1 for rows before the
// layers and L for those after them; of a layer without rows here nothing happens, nor where nothing is in shards (NULL).
// Errors between the ranks go the way of tensor-parallel ones (TensorRanks.failed); no number counts after one.
#pragma once

#include "train/model/placement.h"
#include "train/model/tensor.h"

#include "kernels/device.h"

typedef struct Fetch Fetch;

// Over arrays of the placement's sizes, which stay their owner's: own weights, own sums of gradients, [placement.slots] weights
// (NULL where they are all here) and gradients. NULL where the placement has no units.
Fetch *fetch_create(Device *device, const Placement *placement, void *weights, float *sums, void *slot_weights,
                    float *slot_gradients);
void fetch_free(Fetch *fetch);  // NULL is fine

// Over whose group `owners`, and what says that it failed. Before the first pass.
void fetch_connect(Fetch *fetch, TensorRanks *ranks);

void fetch_begin(Fetch *fetch, int64_t layer);
void fetch_ready(Fetch *fetch, int64_t layer);
void fetch_drop(Fetch *fetch, int64_t layer);
// The weights change, or have changed: what slots hold counts no more. None may be in use.
void fetch_forget(Fetch *fetch);

void fetch_open(Fetch *fetch, int64_t layer);
void fetch_close(Fetch *fetch, int64_t layer);
// All gradients are closed: waits for their sums.
void fetch_finish(Fetch *fetch);

// A row of a layer that is ready, or open. These are the doors of weights.h: a layer that is not is a bug, and ends the
// program.
const void *fetch_weight(Fetch *fetch, int32_t row);
float *fetch_gradient(Fetch *fetch, int32_t row);

// After an update where weights are whole on all ranks: every owner's parts go to all.
void fetch_share(Fetch *fetch);
