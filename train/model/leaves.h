// A step whose sums are the same bits however many ranks share it: train.reproducible.
//
// The micro-batches of a step are cut into `parts` groups that follow each other, the leaves of a binary tree; parts is a power
// of two, and each data-parallel rank has as many leaves side by side. What adds up is added along that tree alone:
//
//     gradients       of a leaf from zero, micro-batch after micro-batch; a rank's leaves pair by pair, what is left half being
//                     kept (log2 of its leaves, each as large as the gradients); ranks' sums by buckets that are exchanged in
//                     equal parts, added in order (buckets.h) and gathered: as many bytes as a ring of sums moves
//     losses, weights of a leaf likewise, in double precision; all leaves' then in one tree
//     the norm        squares layer by layer, each layer's on a rank that has all of it, then all layers' in one tree
//
// A tied embedding has a gradient as the head, of a leaf, and one as the embedding, which are added at the leaf's end: so too
// where the two are on different ranks of a pipeline. Gradients are whole on each rank here, whatever ZeRO keeps in shards.
//
// Rows that tensor-parallel ranks cut are other rows: for a number of those, the bits are their own.
#pragma once

#include "parallel/group.h"
#include "train/model/placement.h"

typedef struct Model Model;
typedef struct Layout Layout;

// A rank's share. parts 0: sums are made in any order.
typedef struct LeafShare {
    int parts, rank, ranks;  // of the leaves of the step; the data-parallel rank
    int64_t bucket;          // floats of a bucket of gradients (buckets_in_order)
} LeafShare;

// What it takes of device memory.
typedef struct Leaves {
    float *kept;      // [log2 of a rank's leaves][gradients] sums of left halves
    float *exchange;  // [2][bucket] parts of other ranks
    double *sums;     // [parts][3] losses, z, weights of each leaf
    double *squares;  // [2 (L + 2)] of rows that tensor-parallel ranks have whole, then of cut ones, by layer
} Leaves;

int leaves_here(const LeafShare *share);  // 1 where parts is 0
void leaves_lay_out(Leaves *leaves, const LeafShare *share, const Placement *placement, int64_t layers, Layout *layout);

// Before the first leaf of a step.
void leaves_begin(Model *model);
// Leaf `leaf` of this rank is through: its losses are put away.
void leaves_put_losses(Model *model, int leaf);
// Its gradients [begin, end) are final: adds what is kept of the leaves before. From the end to the front, or all at once.
void leaves_merge(Model *model, int leaf, int64_t begin, int64_t end);
// Keeps what was merged, and zeroes the gradients; not of the last leaf.
void leaves_keep(Model *model, int leaf);
// The losses of all leaves to the control, over all ranks that have different ones.
Error *leaves_sum_losses(Model *model, Group *group) MUST_CHECK;
// The squares of the gradients, which are summed, to the control.
Error *leaves_sum_squares(Model *model) MUST_CHECK;
