// Philox-4x32-10 on vectors (core/philox.h): many counters at once, the same bits.
//
// A counter sits in a 64-bit lane. Of the four words of the state only the low halves of the lanes count; the high halves hold
// leftovers of the products, which the multiplication ignores, so that a round is two products, two shifts and four
// exclusive-ors.
#pragma once

#include "core/philox.h"
#include "kernels/cpu/vector.h"

typedef uint64_t Vec64 __attribute__((vector_size(VEC_LANES * 4), may_alias));
typedef uint32_t VecU __attribute__((vector_size(VEC_LANES * 4), may_alias));

enum { VEC_LANES64 = VEC_LANES / 2 };

typedef struct PhiloxVec {
    Vec64 word[4];  // low halves
} PhiloxVec;

// The product of the low halves.
VEC_INLINE Vec64 vec_multiply_low(Vec64 a, Vec64 b) {
#if VEC_LANES == 16
    return (Vec64)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif VEC_LANES == 8
    return (Vec64)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (Vec64)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
    return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

VEC_INLINE PhiloxVec philox_vec(uint64_t seed, uint64_t stream, Vec64 index) {
    Vec64 zero = {0}, m0 = zero + 0xD2511F53u, m1 = zero + 0xCD9E8D57u;
    Vec64 c0 = index, c1 = index >> 32, c2 = zero + (uint32_t)stream, c3 = zero + (stream >> 32);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        Vec64 p0 = vec_multiply_low(m0, c0), p1 = vec_multiply_low(m1, c2);
        c0 = (p1 >> 32) ^ c1 ^ (zero + k0);
        c2 = (p0 >> 32) ^ c3 ^ (zero + k1);
        c1 = p1;
        c3 = p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (PhiloxVec){{c0, c1, c2, c3}};
}

// All ones in the lanes whose word keeps its element.
VEC_INLINE VecI vec_kept(VecU words, uint32_t threshold) {
    return (VecI)(words >= (VecU){0} + threshold);
}
