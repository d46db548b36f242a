// Checks of a group of ranks, whatever its transport and memory: every operation and element type against values that each rank
// computes for itself. All ranks call these in the same order; failures are counted by tests/support/check.h.
#pragma once

#include "parallel/group.h"

// What rank `rank` holds at index i: multiples of 1/8 (small whole numbers for bytes) whose sums over 4 ranks are exact in
// every type. Another `round` has other values.
double exact_value(ElementType type, int rank, int64_t i, int round);
double exact_sum(ElementType type, int ranks, int64_t i, int round);
void element_put(ElementType type, void *array, int64_t i, double value);
double element_get(ElementType type, const void *array, int64_t i);

// Memory of the group's device, or of the host. Copies are done on return.
void *group_memory(const Group *group, size_t bytes);
void group_memory_free(const Group *group, void *memory, size_t bytes);
void group_memory_set(const Group *group, void *to, const void *from, size_t bytes);
void group_memory_get(const Group *group, void *to, const void *from, size_t bytes);

// Every operation, type, reduction and form (in place or not) with `count` elements; nothing besides the result is touched.
void check_operations(Group *group, int64_t count, int round);
// The same operations all under way at once, waited for in another order than started.
void check_many_under_way(Group *group, int64_t count, int round);
// Messages of every rank with every other, many under way in both directions, of several sizes.
void check_messages(Group *group, int64_t count, int round);
// Sums of numbers that round: the same bits on every rank, twice, and for two ranks those of one addition.
void check_rounding(Group *group, int64_t count);
