// Memory that is planned before it is used: one description is walked twice, first to size it and to fill the plan, then to cut
// it off an arena.
#pragma once

#include "train/model/plan.h"

// Cuts consecutive parts off an arena; with base NULL it only counts.
typedef struct Layout {
    char *base;
    int64_t used;
    MemoryPlan *plan;  // may be NULL
} Layout;

// `count` tensors of rows x columns elements of `size` bytes, as one line of the plan. Each starts at a multiple of 256 bytes:
// whole cache lines, and what a card's bulk copies want. Returns the first; NULL where the layout only counts, and where there
// is nothing to take.
void *layout_take(Layout *layout, const char *name, int64_t count, int64_t rows, int64_t columns, int64_t size);

// Tensor `index` of the `count` that layout_take returned the first of (count 1: the one that all share); NULL where that is.
void *layout_part(void *base, int64_t index, int64_t count, int64_t elements, int64_t size);
