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
