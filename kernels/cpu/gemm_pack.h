// What the tiles of a matrix product read, laid out in the order in which they read it.
//
// B becomes panels [k][width], each as wide as one tile (a multiple of VEC_LANES; beyond N it holds zeros). A, where it is
// stored transposed, becomes panels [k][TILE_ROWS]; otherwise its rows are read in place.
#pragma once

#include "kernels/cpu/gemm_kernel.h"

// `vectors` whole vectors of columns of B, which lie at b[k * stride], to out[k * vectors * VEC_LANES]. Rows far apart are
// fetched ahead, because no hardware guesses where the next one is.
VEC_INLINE void gemm_pack_vectors(const int vectors, int64_t depth, const float *b, int64_t stride, float *out) {
    enum { AHEAD = 12 };
    for (int64_t k = 0; k < depth; k++) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            __builtin_prefetch(b + (k + AHEAD) * stride + v * VEC_LANES);
            vec_store(out + (k * vectors + v) * VEC_LANES, vec_load(b + k * stride + v * VEC_LANES));
        }
    }
}

// A panel of `columns` columns of B (at most TILE_WIDTH), which lie at b[k * stride].
static void gemm_pack_rows(int64_t depth, const float *b, int64_t stride, int64_t columns, float *out) {
    switch (columns) {
    case TILE_WIDTH:
        gemm_pack_vectors(TILE_VECTORS, depth, b, stride, out);
        return;
#if VEC_LANES == 16 || !defined(__SSE2__)
    case 2 * VEC_LANES:
        gemm_pack_vectors(2, depth, b, stride, out);
        return;
#endif
    case VEC_LANES:
        gemm_pack_vectors(1, depth, b, stride, out);
        return;
    default:
        break;
    }
    int64_t width = (columns + VEC_LANES - 1) / VEC_LANES * VEC_LANES;
    for (int64_t k = 0; k < depth; k++) {
        for (int64_t n = 0; n < columns; n += VEC_LANES) {
            int64_t lanes = columns - n < VEC_LANES ? columns - n : VEC_LANES;
            vec_store(out + k * width + n, vec_load_partial(b + k * stride + n, lanes));
        }
    }
}

typedef float VecQuad __attribute__((vector_size(16), aligned(4), may_alias));

// Lane group i (of 4 floats) from row 4 i: rows lie `stride` apart.
VEC_INLINE Vec gemm_load_quads(const float *p, int64_t stride) {
#if VEC_LANES == 16
    __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(p));
    x = _mm512_insertf32x4(x, _mm_loadu_ps(p + 4 * stride), 1);
    x = _mm512_insertf32x4(x, _mm_loadu_ps(p + 8 * stride), 2);
    return _mm512_insertf32x4(x, _mm_loadu_ps(p + 12 * stride), 3);
#elif VEC_LANES == 8
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + 4 * stride), 1);
#else
    return (Vec) * (const VecQuad *)p;
#endif
}

#if VEC_LANES == 16
#define GEMM_INTERLEAVE(a, b, i, j)                                                                                            \
    __builtin_shufflevector(a, b, i, i + 16, j, j + 16, i + 4, i + 20, j + 4, j + 20, i + 8, i + 24, j + 8, j + 24, i + 12,    \
                            i + 28, j + 12, j + 28)
#define GEMM_INTERLEAVE_PAIRS(a, b, i)                                                                                         \
    __builtin_shufflevector(a, b, i, i + 1, i + 16, i + 17, i + 4, i + 5, i + 20, i + 21, i + 8, i + 9, i + 24, i + 25,        \
                            i + 12, i + 13, i + 28, i + 29)
#elif VEC_LANES == 8
#define GEMM_INTERLEAVE(a, b, i, j) __builtin_shufflevector(a, b, i, i + 8, j, j + 8, i + 4, i + 12, j + 4, j + 12)
#define GEMM_INTERLEAVE_PAIRS(a, b, i) __builtin_shufflevector(a, b, i, i + 1, i + 8, i + 9, i + 4, i + 5, i + 12, i + 13)
#else
#define GEMM_INTERLEAVE(a, b, i, j) __builtin_shufflevector(a, b, i, i + 4, j, j + 4)
#define GEMM_INTERLEAVE_PAIRS(a, b, i) __builtin_shufflevector(a, b, i, i + 1, i + 4, i + 5)
#endif

// One vector of columns of B stored transposed, column n at b[n * stride + k], into a panel of `width`. Full vectors are
// transposed in 4 x 4 blocks, one in each group of four lanes.
static void gemm_pack_transposed(int64_t depth, const float *b, int64_t stride, int64_t columns, float *out, int64_t width) {
    int64_t k = 0;
    if (columns == VEC_LANES) {
        for (; k + 4 <= depth; k += 4) {
            Vec q0 = gemm_load_quads(b + k, stride), q1 = gemm_load_quads(b + k + stride, stride);
            Vec q2 = gemm_load_quads(b + k + 2 * stride, stride), q3 = gemm_load_quads(b + k + 3 * stride, stride);
            Vec low01 = GEMM_INTERLEAVE(q0, q1, 0, 1), high01 = GEMM_INTERLEAVE(q0, q1, 2, 3);
            Vec low23 = GEMM_INTERLEAVE(q2, q3, 0, 1), high23 = GEMM_INTERLEAVE(q2, q3, 2, 3);
            float *to = out + k * width;
            vec_store(to, GEMM_INTERLEAVE_PAIRS(low01, low23, 0));
            vec_store(to + width, GEMM_INTERLEAVE_PAIRS(low01, low23, 2));
            vec_store(to + 2 * width, GEMM_INTERLEAVE_PAIRS(high01, high23, 0));
            vec_store(to + 3 * width, GEMM_INTERLEAVE_PAIRS(high01, high23, 2));
        }
    }
    for (; k < depth; k++) {
        float *to = out + k * width;
        for (int64_t n = 0; n < VEC_LANES; n++) {
            to[n] = n < columns ? b[n * stride + k] : 0;
        }
    }
}

// Rows 0 .. rows of A stored transposed, row m at a[k * stride + m]: panel i holds rows i * TILE_ROWS .. as [k][TILE_ROWS].
static void gemm_pack_a(int64_t depth, int64_t rows, const float *a, int64_t stride, float *out) {
    enum { AT_ONCE = 4, AHEAD = 8 };
    for (int64_t k = 0; k < depth; k += AT_ONCE) {
        int64_t steps = depth - k < AT_ONCE ? depth - k : AT_ONCE;
        int64_t m = 0;
        for (; m + TILE_ROWS <= rows; m += TILE_ROWS) {
            const float *from = a + k * stride + m;
            float *to = out + m * depth + k * TILE_ROWS;
            for (int64_t i = 0; i < steps; i++) {
                __builtin_prefetch(from + (i + AHEAD) * stride);
                memcpy(to + i * TILE_ROWS, from + i * stride, TILE_ROWS * sizeof(float));
            }
        }
        for (int64_t i = 0; m < rows && i < steps; i++) {
            float *to = out + m * depth + (k + i) * TILE_ROWS;
            for (int64_t j = 0; j < TILE_ROWS; j++) {
                to[j] = m + j < rows ? a[(k + i) * stride + m + j] : 0;
            }
        }
    }
}
