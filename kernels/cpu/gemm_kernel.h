// The tile of a matrix product that lives in registers: TILE_ROWS rows by up to TILE_VECTORS vectors of C.
//
// For each k one row of the B panel is loaded, the rows of A are broadcast, and every accumulator gets one multiply-add. The
// tile is as large as the registers allow, so that loads stay well below multiply-adds:
//
//                registers   tile (rows x lanes)   accumulators   loads per k
//     AVX-512    32          8 x 48                24             11
//     AVX2       16          6 x 16                12              8
//     NEON       32          6 x 12                18             9
//     SSE2       16          4 x 8                  8              6
//
// Tiles at the edges of C are instances with fewer rows or vectors, not padded ones.
#pragma once

#include "kernels/cpu/vector.h"

#if VEC_LANES == 16
enum { TILE_ROWS = 8, TILE_VECTORS = 3 };
#elif VEC_LANES == 8
enum { TILE_ROWS = 6, TILE_VECTORS = 2 };
#elif defined(__SSE2__)
enum { TILE_ROWS = 4, TILE_VECTORS = 2 };
#else
enum { TILE_ROWS = 6, TILE_VECTORS = 3 };
#endif
enum { TILE_WIDTH = TILE_VECTORS * VEC_LANES };

// c[m,n] = (+= where accumulate) sum over k of A[m,k] b[k * vectors * VEC_LANES + n]. A is rows a[m * a_stride + k], or a panel
// a[k * TILE_ROWS + m] where `panel`.
VEC_INLINE void gemm_tile(const int rows, const int vectors, const bool panel, int64_t depth, const float *restrict a,
                          int64_t a_stride, const float *restrict b, float *restrict c, int64_t c_stride, bool accumulate) {
    Vec sum[TILE_ROWS][TILE_VECTORS];
#pragma GCC unroll 8
    for (int m = 0; m < rows; m++) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            sum[m][v] = (Vec){0};
            __builtin_prefetch(c + m * c_stride + v * VEC_LANES, 1);
        }
    }
    const int64_t a_row = panel ? 1 : a_stride, a_step = panel ? TILE_ROWS : 1;
    for (int64_t k = 0; k < depth; k++) {
        Vec b_row[TILE_VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            b_row[v] = vec_load(b + (k * vectors + v) * VEC_LANES);
        }
#pragma GCC unroll 8
        for (int m = 0; m < rows; m++) {
            Vec factor = vec_set(a[m * a_row + k * a_step]);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) {
                sum[m][v] += factor * b_row[v];
            }
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < rows; m++) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            float *out = c + m * c_stride + v * VEC_LANES;
            vec_store(out, accumulate ? vec_load(out) + sum[m][v] : sum[m][v]);
        }
    }
}

typedef void (*GemmKernel)(int64_t depth, const float *a, int64_t a_stride, const float *b, float *c, int64_t c_stride,
                           bool accumulate);

#define GEMM_KERNEL(rows, vectors)                                                                                             \
    static void gemm_rows_##rows##_##vectors(int64_t depth, const float *a, int64_t a_stride, const float *b, float *c,        \
                                             int64_t c_stride, bool accumulate) {                                              \
        gemm_tile(rows, vectors, false, depth, a, a_stride, b, c, c_stride, accumulate);                                       \
    }                                                                                                                          \
    static void gemm_panel_##rows##_##vectors(int64_t depth, const float *a, int64_t a_stride, const float *b, float *c,       \
                                              int64_t c_stride, bool accumulate) {                                             \
        gemm_tile(rows, vectors, true, depth, a, a_stride, b, c, c_stride, accumulate);                                        \
    }
#if defined(__SSE2__) && VEC_LANES < 16
#define GEMM_KERNELS_OF_ROWS(rows) GEMM_KERNEL(rows, 1) GEMM_KERNEL(rows, 2)
#define GEMM_ROW_OF_TABLE(kind, rows)                                                                                          \
    { gemm_##kind##_##rows##_1, gemm_##kind##_##rows##_2 }
#else
#define GEMM_KERNELS_OF_ROWS(rows) GEMM_KERNEL(rows, 1) GEMM_KERNEL(rows, 2) GEMM_KERNEL(rows, 3)
#define GEMM_ROW_OF_TABLE(kind, rows)                                                                                          \
    { gemm_##kind##_##rows##_1, gemm_##kind##_##rows##_2, gemm_##kind##_##rows##_3 }
#endif

GEMM_KERNELS_OF_ROWS(1)
GEMM_KERNELS_OF_ROWS(2)
GEMM_KERNELS_OF_ROWS(3)
GEMM_KERNELS_OF_ROWS(4)
#if VEC_LANES == 8 || (VEC_LANES == 4 && !defined(__SSE2__))
GEMM_KERNELS_OF_ROWS(5)
GEMM_KERNELS_OF_ROWS(6)
#define GEMM_TABLE(kind)                                                                                                       \
    GEMM_ROW_OF_TABLE(kind, 1), GEMM_ROW_OF_TABLE(kind, 2), GEMM_ROW_OF_TABLE(kind, 3), GEMM_ROW_OF_TABLE(kind, 4),            \
        GEMM_ROW_OF_TABLE(kind, 5), GEMM_ROW_OF_TABLE(kind, 6)
#elif VEC_LANES == 16
GEMM_KERNELS_OF_ROWS(5)
GEMM_KERNELS_OF_ROWS(6)
GEMM_KERNELS_OF_ROWS(7)
GEMM_KERNELS_OF_ROWS(8)
#define GEMM_TABLE(kind)                                                                                                       \
    GEMM_ROW_OF_TABLE(kind, 1), GEMM_ROW_OF_TABLE(kind, 2), GEMM_ROW_OF_TABLE(kind, 3), GEMM_ROW_OF_TABLE(kind, 4),            \
        GEMM_ROW_OF_TABLE(kind, 5), GEMM_ROW_OF_TABLE(kind, 6), GEMM_ROW_OF_TABLE(kind, 7), GEMM_ROW_OF_TABLE(kind, 8)
#else
#define GEMM_TABLE(kind)                                                                                                       \
    GEMM_ROW_OF_TABLE(kind, 1), GEMM_ROW_OF_TABLE(kind, 2), GEMM_ROW_OF_TABLE(kind, 3), GEMM_ROW_OF_TABLE(kind, 4)
#endif

// [A is a panel][rows - 1][vectors - 1]
static const GemmKernel gemm_kernels[2][TILE_ROWS][TILE_VECTORS] = {{GEMM_TABLE(rows)}, {GEMM_TABLE(panel)}};
