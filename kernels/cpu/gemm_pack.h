// What the tiles of a matrix product read, laid out in the order in which they read it.
//
// B becomes panels [k][width], each as wide as one tile (a multiple of VEC_LANES; beyond N it holds zeros). A, where it is
// stored transposed, becomes panels [k][TILE_ROWS]; otherwise its rows are read in place.
#pragma once

#include "kernels/cpu/gemm_kernel.h"

// Rows k .. k + depth of `columns` (at most VEC_LANES) columns of B, which lie at b[k * stride]: out[k * width].
VEC_INLINE void gemm_pack_rows(int64_t depth, const float *b, int64_t stride, int64_t columns, float *out, int64_t width) {
    if (columns == VEC_LANES) {
        for (int64_t k = 0; k < depth; k++) {
            vec_store(out + k * width, vec_load(b + k * stride));
        }
    } else {
        for (int64_t k = 0; k < depth; k++) {
            vec_store(out + k * width, vec_load_partial(b + k * stride, columns));
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

// The same for B stored transposed: column n at b[n * stride + k]. Full vectors are transposed in 4 x 4 blocks, one in each
// group of four lanes.
VEC_INLINE void gemm_pack_transposed(int64_t depth, const float *b, int64_t stride, int64_t columns, float *out,
                                     int64_t width) {
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
VEC_INLINE void gemm_pack_a(int64_t depth, int64_t rows, const float *a, int64_t stride, float *out) {
    for (int64_t m = 0; m < rows; m += TILE_ROWS) {
        float *to = out + m * depth;
        if (m + TILE_ROWS <= rows) {
            for (int64_t k = 0; k < depth; k++) {
                memcpy(to + k * TILE_ROWS, a + k * stride + m, TILE_ROWS * sizeof(float));
            }
        } else {
            for (int64_t k = 0; k < depth; k++) {
                for (int64_t i = 0; i < TILE_ROWS; i++) {
                    to[k * TILE_ROWS + i] = m + i < rows ? a[k * stride + m + i] : 0;
                }
            }
        }
    }
}
