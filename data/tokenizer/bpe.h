// Byte-pair encoding of one pre-token: starting from its bytes, merge the adjacent pair of lowest rank, the leftmost of equals,
// until no pair can be merged (Sennrich et al. 2016, algorithm 1, on bytes).
//
// A merge is a pair of ids with a rank (below 2^25) and the id it becomes. Time is O(n log n) in the length of a pre-token.
#pragma once

#include "core/memory.h"

typedef struct BpePair {
    uint64_t key;  // left id + 1 in the upper half, right id in the lower; 0: empty
    int32_t rank, id;
} BpePair;

typedef struct Bpe {
    int32_t byte_ids[256];  // -1: this byte has no token and is left out of the ids
    BpePair *pairs;         // open addressing
    int shift;              // 64 - log2 of its size
    size_t count;
} Bpe;

// Room for `pairs` pairs. Pairs are added before the first merge; adding a pair again replaces its rank and id.
Error *bpe_create(Bpe *bpe, size_t pairs) MUST_CHECK;
void bpe_add(Bpe *bpe, int32_t left, int32_t right, int32_t rank, int32_t id);
void bpe_free(Bpe *bpe);

// The pair, or NULL if these two do not merge.
const BpePair *bpe_find(const Bpe *bpe, int32_t left, int32_t right);

// Scratch of one thread. Zero-initialise to start.
typedef struct BpeScratch {
    void *links, *heap;
    size_t link_capacity, heap_capacity;
    uint64_t work;  // merges tried so far, for tests of linearity
} BpeScratch;
void bpe_scratch_free(BpeScratch *scratch);

// Writes the ids of `word` to `out` (room for `size` ids) and returns their number. size < 2^31.
size_t bpe_merge(const Bpe *bpe, BpeScratch *scratch, const uint8_t *word, size_t size, int32_t *out);
