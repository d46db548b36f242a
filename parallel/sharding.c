// Who owns what of a flat array: see sharding.h.
#include "parallel/sharding.h"

#include "core/memory.h"

int64_t shard_padded(int64_t count, int ranks) {
    ensure(count >= 0 && ranks > 0, "count %lld, %d ranks", (long long)count, ranks);
    int64_t unit = (int64_t)SHARD_ALIGNMENT * ranks;
    return (count + unit - 1) / unit * unit;
}

Range shard_part(int64_t count, int ranks, int rank) {
    ensure(rank >= 0 && rank < ranks, "rank %d of %d", rank, ranks);
    int64_t part = shard_padded(count, ranks) / ranks, begin = part * rank, end = begin + part;
    return (Range){begin < count ? begin : count, end < count ? end : count};
}

int shard_pieces(const ShardTensor *tensors, int count, Range flat, ShardPiece **out) {
    *out = NULL;
    int pieces = 0, capacity = 0;
    // The first tensor that ends after flat.begin: tensors are sorted.
    int low = 0, high = count;
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (tensors[middle].offset + tensors[middle].count <= flat.begin) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    for (int t = low; t < count && tensors[t].offset < flat.end; t++) {
        int64_t begin = flat.begin > tensors[t].offset ? flat.begin - tensors[t].offset : 0;
        int64_t end = flat.end - tensors[t].offset < tensors[t].count ? flat.end - tensors[t].offset : tensors[t].count;
        if (begin < end) {
            ShardPiece piece = {t, begin, end, tensors[t].offset + begin};
            array_push(*out, pieces, capacity, piece);
        }
    }
    return pieces;
}
