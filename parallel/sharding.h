// Who owns what of a flat array: one rule for parameters, gradients and moments, for sums in parts, and for checkpoints.
//
// All parts are equal, whatever the tensors in them: the array is padded at its end to ranks * part. A part is a multiple of
// SHARD_ALIGNMENT elements, so that blocks of 8-bit moments stay whole and accesses of 16 bytes fit, whatever the type.
//
//     part 0            | part 1            | part 2            | part 3            |
//     elements ............................................|     padding            |
#pragma once

#include "core/error.h"
#include "core/threads.h"

#include <stdint.h>

enum { SHARD_ALIGNMENT = 256 };  // elements

// The number of elements of an array of `count` with its padding: `ranks` equal parts.
int64_t shard_padded(int64_t count, int ranks);

// The part [begin, end) of the array that `rank` owns, without padding: the last ones may be shorter, or empty.
Range shard_part(int64_t count, int ranks, int rank);
