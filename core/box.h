// Boxes: parts of a logical tensor.
//
// A box is begin and end along each dimension of a logical tensor. Several boxes in a list are the elements of the first in
// row-major order, then those of the second, and so on: the order in which a part of a tensor lies in memory or in a file.
// Whoever speaks of a part of a tensor (a rank's share, a checkpoint's file, a fused projection's queries) says it in boxes.
//
//     query, key and value heads of rank 1 of 2, of a fused tensor of 8 x C:      [2,4)x[0,C)  [5,6)x[0,C)  [7,8)x[0,C)
//     elements 5 .. 14 of a row-major 4 x 4 tensor:                               [1,2)x[1,4)  [2,3)x[0,4)  [3,4)x[0,2)
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum { BOX_MOST_DIMS = 4, BOX_MOST_OF_RANGE = 2 * BOX_MOST_DIMS - 1 };

typedef struct Box {
    int dims;  // 0: a scalar, one element
    int64_t begin[BOX_MOST_DIMS], end[BOX_MOST_DIMS];
} Box;

// All of a tensor of that shape.
Box box_whole(int dims, const int64_t *shape);

int64_t box_count(const Box *box);                 // elements; 0 where any extent is not positive
int64_t boxes_count(const Box *boxes, int count);  // of all
bool box_equal(const Box *a, const Box *b);
bool box_inside(const Box *box, int dims, const int64_t *shape);  // of the same dims, not empty, within the shape
// *out = what both hold; false (and *out untouched) where that is nothing.
bool box_intersect(const Box *a, const Box *b, Box *out);

// Whether no element is in two of the boxes, all of the same dims and none empty. O(count log count) where straight cuts take
// them apart, as they do wherever tensors are cut into parts; of more than a thousand that interlock it says false.
bool boxes_disjoint(const Box *boxes, int count);

// Appends to out[0 ..] the boxes of elements [begin, end) of the list's order, and returns how many: at most
// count * BOX_MOST_OF_RANGE. The range must lie within the list.
int boxes_of_range(const Box *boxes, int count, int64_t begin, int64_t end, Box *out);

// A run of elements that are neighbours in both lists: `count` elements from place `from` of one and `to` of the other.
typedef struct BoxRun {
    int64_t from, to, count;
} BoxRun;

// Calls `run` for every run of elements that the lists `from` and `to` share, both lists of boxes of one tensor, each without
// overlaps. Runs come in the order of `to`'s boxes. Stops early and returns false where `run` does. Through *covered (may be
// NULL), unless stopped early, comes how many elements they share: `from` has all of `to` where that is boxes_count(to).
bool boxes_runs(const Box *from, int from_count, const Box *to, int to_count, bool (*run)(void *context, BoxRun run),
                void *context, int64_t *covered);
