// Who owns what of the flat parameter space.
//
// Parameters lie one after another in one flat array of floats. A rank owns one contiguous part of it, whatever the tensors in
// it: parts differ by at most one 64-byte line. A part covers pieces of tensors; checkpoints store those pieces.
#pragma once

#include "core/error.h"
#include "core/threads.h"

#include <stdint.h>

enum { SHARD_ALIGNMENT = 16 };  // floats: 64 bytes

// The part [begin, end) of a flat array of `count` floats that `rank` of `ranks` owns. Bounds are multiples of SHARD_ALIGNMENT
// (the last end excepted). May be empty.
Range shard_owned(int64_t count, int ranks, int rank);

// Where a tensor lies in the flat array. Tensors are sorted by offset and do not overlap; there may be gaps (alignment).
typedef struct ShardTensor {
    int64_t offset, count;  // floats
} ShardTensor;

// A piece of one tensor: elements [begin, end) of tensor `tensor`, which lie at flat offset `flat`.
typedef struct ShardPiece {
    int tensor;
    int64_t begin, end;
    int64_t flat;
} ShardPiece;

// The pieces of tensors in the flat range, in order. Returns their number; *out is owned by the caller (free), NULL where none.
int shard_pieces(const ShardTensor *tensors, int count, Range flat, ShardPiece **out);
