// How a loop over independent items is cut for the threads of a device.
//
// For operations whose items (rows, elements) do not depend on each other the cut cannot change a result, so it may depend on
// the number of threads. Sums over items must use a fixed cut instead (see norm.c, elementwise.c).
#pragma once

#include "kernels/device.h"

// Elements that one thread handles in less time than it takes to share the work.
enum { PART_ELEMENTS = 8192 };

// The number of parts for `items` items of `elements` elements each: one where sharing does not pay, and at most four a
// thread, so that a thread that is held up does not hold up the other.
static inline int64_t part_count(const Device *device, int64_t items, int64_t elements) {
    int64_t threads = threads_count(device->pool), most = items * elements / PART_ELEMENTS;
    if (threads == 1 || most <= 1) {
        return items > 0;
    }
    most = most < 4 * threads ? most : 4 * threads;
    return most < items ? most : items;
}
