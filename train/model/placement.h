// Where a rank keeps the rows of the parameter table: the second table, computed from the first.
//
// A pure function of the rows, of the rank's share in the layout and of how things are stored. For each row: which part of the
// tensor this rank holds, where its weight lies and in which type, where its gradient is, where the optimizer's state is, and
// which elements' state is this rank's to keep. Four index spaces, in each of which rows follow each other as in the table (but
// see state):
//
//     weights    bytes of one array: every row that is here, in its own type, each from a multiple of 64 bytes
//     gradients  floats: trainable rows alone, in the order of the table, so that a backward pass finishes them from the end;
//                of tensor-parallel ranks those of rows that are not cut stand before all others
//     state      elements of masters and moments: what this rank owns of the trainable rows; those of whole-matrix rules last
//     scales     floats: of quantised weights, a row's as many as its blocks
//
// Nothing outside of placement.c computes a place: others ask for a row's pointer, and tests/check_placement.py sees to it.
//
//   frozen row        no gradient and no state; its matrix may lie in another type, with scales
//   tensor parallel   smaller boxes: each part's N-th, one box a part
//   pipeline stages   absent rows. A tied embedding is on two ranks: the last stage's is a copy, with a gradient, which the
//                     first stage's rank gets to hear, and nothing else; it is neither updated, nor counted, nor saved.
//   optimizer shards  the flat gradients are cut into equal parts (parallel/sharding.h); a rank's state is its part's. A row of
//                     UPDATE_MATRIX has one owner, the shard that holds its first element.
//   and gradients     (zero 2) rows are in units, which travel as one: a layer's that ranks have whole, a layer's that are cut,
//                     each row outside of the layers. A unit is cut into equal parts, and so nothing but its own rows decides
//                     who owns it; a row of UPDATE_MATRIX is a unit with one owner. A rank keeps sums of gradients of its
//                     parts, which lie side by side, those of whole rows first; a layer under way has all its gradients in a
//                     slot.
//   and weights       (zero 3) likewise: a rank keeps those of its parts, and a layer in use is in a slot, at the same places.
//
//     slots  | before the layers | after them (where the head is a row of its own: the same place) | 0, 2, .. | 1, 3, .. |
#pragma once

#include "train/model/params.h"

// How things are stored on a rank.
typedef struct Storage {
    DataType type;         // of the device: weights of trainable rows and of all vectors
    DataType frozen_type;  // of frozen matrices
    bool learns;           // else neither gradients nor state
    bool masters;          // fp32 copies of trainable rows, where `type` is not fp32
    OptimizerKind optimizer;
    MomentType moments;
} Storage;

enum { RANK_MOST_STAGES = 8 };  // of a pipeline, on one rank

// A rank's share in the layout. See rank_share_whole.
typedef struct RankShare {
    int tensor, tensor_ranks;
    // Rows whose layer is in one of these are here; -1: before the layers, L: after them. In rising order.
    Range stages[RANK_MOST_STAGES];
    int stage_count;
    int shard, shards;
    int whole_gradients;  // over so many ranks gradients are exchanged whole, whatever `zero` says (leaves.h); 0: they are not
    int zero;  // what is in shards: 0 or 1 the state alone, 2 the sums of gradients too, 3 the weights of trainable rows too
} RankShare;

// One rank that has everything.
RankShare rank_share_whole(const ParamTable *table);

typedef struct Place {
    Box boxes[PARAM_MOST_PARTS];  // what lies here, one box after the other; none: the row is absent
    int box_count;
    int64_t shape[2], count;  // of what lies here
    DataType type;            // of the weight
    Range owned;              // elements (of `count`) whose state lies here; of a frozen row none
    Range held, summed;       // those whose weight, and whose gradient's sum, lies here: all, or what is owned
    bool trainable;           // it has a gradient here
    bool apart;               // a tied embedding has a gradient as the head beside that as the embedding
    bool copy;                // of the head's weight, which is the embedding's and that is on another rank
    int64_t index;            // as Param.index, of the rows that are here
    bool matrix;              // it is updated whole
    int32_t unit;             // -1: none
    // For placement.c alone.
    int64_t weight_at, scale_at, gradient_at, state_at, unit_at;
} Place;

// Rows that travel as one, where gradients are in shards.
typedef struct Unit {
    int64_t layer;  // -1: before the layers, L: after them
    bool whole;     // rows that tensor-parallel ranks have alike
    bool copy;      // of a row that is a copy
    int owner;      // the shard that has all of it; -1: each has an equal part
    int64_t count;  // elements, gaps and padding included
    int slot;       // of PLACEMENT_SLOTS: what two units of one slot, but of different layers, cannot use at a time
    // For placement.c alone.
    int64_t weight_at, sum_at, slot_at;
} Unit;

enum { PLACEMENT_SLOTS = 4 };

typedef struct Placement {
    Storage storage;
    RankShare share;
    Place *places;  // one a row of the table
    int32_t count;
    int64_t weight_bytes, weight_scales;  // sizes of the four spaces
    int64_t gradients;
    int64_t copied;               // gradients of copies and of heads apart, behind all others
    int64_t whole_gradients;      // of these, from 0 on, those of rows that are not cut: the same on all tensor-parallel ranks
    int64_t elements;             // the end of the last row's index here
    int64_t state, second_state;  // elements that have a first moment, and those that have a second
    Unit *units;                  // where gradients are in shards
    int32_t unit_count;
    int64_t slots;    // elements of all slots
    int64_t head_at;  // for placement.c alone
} Placement;

// Computes it. Errors: a tensor that cannot be cut that often, or between whose blocks of quantised values the cut would go.
Error *placement_create(const ParamTable *table, const Storage *storage, const RankShare *share, Placement *out) MUST_CHECK;
void placement_free(Placement *placement);

// The optimizer's kinds of state.
int moments_of(OptimizerKind kind);
DataType moment_type(const Storage *storage, int moment);  // moment 1 or 2

// Pointers into arrays that have the placement's sizes: NULL where the row is -1, absent or without such a thing, or the array
// is NULL. Of the first element that is held, summed, or (state) owned; `bytes` of one element.
void *placement_weight(const Placement *placement, int32_t row, void *weights);
float *placement_weight_scales(const Placement *placement, int32_t row, float *scales);
float *placement_gradient(const Placement *placement, int32_t row, float *gradients);
void *placement_state(const Placement *placement, int32_t row, void *array, int64_t bytes);
float *placement_state_scales(const Placement *placement, int32_t row, float *scales);  // of 8-bit moments

// The part [begin, end) of a unit that a shard owns; where this rank's lies in the array of weights (in zero 2 the whole
// unit's) and in that of gradients; and, as elements of the slots, where the unit lies in use, and a row of it.
Range placement_unit_part(const Placement *placement, int32_t unit, int shard);
void *placement_unit_weights(const Placement *placement, int32_t unit, void *weights);
float *placement_unit_sums(const Placement *placement, int32_t unit, float *gradients);
int64_t placement_unit_slot(const Placement *placement, int32_t unit);
int64_t placement_row_slot(const Placement *placement, int32_t row);

// Where gradients are whole: those of a layer (-1, L: see Unit) that are cut among tensor-parallel ranks, or not, which lie
// side by side; of copies none. And the gradient of a tied embedding as the head, where that is apart, else NULL.
float *placement_layer(const Placement *placement, const ParamTable *table, int64_t layer, bool cut, float *gradients,
                       int64_t *count);
float *placement_head_apart(const Placement *placement, int32_t row, float *gradients);

// The gradients that this rank counts in the norm, which lie side by side: its own where state is in shards, and of rows that
// tensor-parallel ranks have alike those of the first.
float *placement_counted(const Placement *placement, float *gradients, int64_t *count);

// Where the state alone is in shards: the parts of an array of weights that are new after an update on the rank with that
// shard, into *out, which the caller frees. Returns their number.
typedef struct WeightRun {
    void *begin;
    int64_t bytes;
} WeightRun;
int64_t placement_owned(const Placement *placement, int shard, void *weights, WeightRun **out);

// Where all gradients are here: those from the returned element on are those of rows `row` .. (of cut ones where rows are cut)
// and nothing else.
int64_t placement_gradients_from(const Placement *placement, int32_t row);

// The owned elements of rows with elementwise updates, in runs of equal settings, for Operations.optimizer_update. The caller
// frees *out, which has at most placement->count entries. Returns the count.
int64_t placement_segments(const Placement *placement, const ParamTable *table, double weight_decay, UpdateSegment **out);

// The part of a row, as it lies here, that falls to rank `rank` of `ranks` to save, of the ranks with the same tensor
// coordinate and layers, which hold the same; a row that is not cut is divided among their tensor-parallel neighbours too.
// Shares are even over all rows together, in whole blocks of quantised values.
Range placement_saved(const Placement *placement, const ParamTable *table, int32_t row, int ranks, int rank);
