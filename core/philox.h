// Randomness as a function: Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3).
//
// Every random number of a run is philox(seed, stream, index): initial weights, dropout, shuffles, sampling. There is no
// state, so nothing depends on the number of ranks, threads or on the layout, and a checkpoint stores only the seed.
// A stream names what the numbers are for (RandomUse) and which of it (tensor, layer, step ...). Plain C, so that
// device code can include it too.
#pragma once

#include <stdint.h>

#ifdef __CUDACC__
#define PHILOX_FUNCTION static inline __host__ __device__
#else
#define PHILOX_FUNCTION static inline
#endif

typedef enum RandomUse {
    RANDOM_INIT = 1,     // which: parameter row
    RANDOM_DROPOUT = 2,  // which: site in the network; index: see kernels.h
    RANDOM_SHUFFLE = 3,  // which: set and epoch
    RANDOM_MIXTURE = 4,
    RANDOM_SAMPLE = 5,  // text generation; index: token
    RANDOM_PACK = 6,    // corpus packing
    RANDOM_TEST = 7,
    RANDOM_ROUNDING = 8,  // stochastic rounding; which: update, index: element / 4
} RandomUse;

typedef struct Philox {
    uint32_t word[4];
} Philox;

// The stream for use and a 56-bit `which`.
PHILOX_FUNCTION uint64_t philox_stream(RandomUse use, uint64_t which) {
    return (uint64_t)use << 56 | (which & 0x00FFFFFFFFFFFFFFu);
}

// 128 random bits for (seed, stream, index). The key is the seed; the counter is (index, stream).
PHILOX_FUNCTION Philox philox(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32), c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    Philox out = {{c0, c1, c2, c3}};
    return out;
}

// One of the 2^32 multiples of 2^-32 in [0, 1).
PHILOX_FUNCTION double philox_unit(uint32_t word) {
    return (double)word * (1.0 / 4294967296.0);
}

// The least word that is kept with dropout: philox_unit(word) >= probability just where word >= the threshold. probability < 1.
PHILOX_FUNCTION uint32_t philox_threshold(float probability) {
    double words = (double)probability * 4294967296.0;  // exact
    uint64_t whole = (uint64_t)words;
    return (uint32_t)(whole + ((double)whole < words));
}

// 64 random bits for (seed, stream, index).
PHILOX_FUNCTION uint64_t philox_u64(uint64_t seed, uint64_t stream, uint64_t index) {
    Philox r = philox(seed, stream, index);
    return (uint64_t)r.word[1] << 32 | r.word[0];
}

// Fills out[0..count) with normal numbers of mean 0 and the given standard deviation: out[i] depends on (seed, stream,
// first + i) alone (Box-Muller in double precision). For host code.
void philox_normal(uint64_t seed, uint64_t stream, uint64_t first, float deviation, float *out, int64_t count);

// A keyed permutation of [0, count): the place that position `index` takes. O(1) expected time and no memory: a
// balanced Feistel network on the next even power of two, walked until it falls inside (Black & Rogaway 2002).
uint64_t philox_permute(uint64_t seed, uint64_t stream, uint64_t count, uint64_t index);
