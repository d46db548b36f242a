// Small dense products and transposes between packed blocks in a thread's cache, for attention.
//
// A block's rows are padded to whole vectors. The product keeps a tile of TILE_ROWS x TILE_VECS vectors of the result in
// registers while it walks along the summed dimension; rows come in pairs, so a block has an even number of them.
#pragma once

#include "kernels/cpu/vector.h"

#include <stdbool.h>

enum { TILE_ROWS = 6 };
#if VEC_LANES == 16 || defined(__ARM_NEON)  // 32 registers
#define TILE_VECS 4
#else
#define TILE_VECS 2
#endif

// The left factor of a product: element (i, r) at data[i * row + r * column].
typedef struct Factor {
    const float *data;
    int64_t row, column;
} Factor;

VEC_INLINE void product_tile(const int rows, const int vecs, int64_t depth, Factor a, const float *b, int64_t b_row, float *c,
                             int64_t c_row, bool add) {
    Vec sum[TILE_ROWS][TILE_VECS];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++) {
            sum[i][v] = add ? vec_load(c + i * c_row + v * VEC_LANES) : vec_set(0);
        }
    }
    for (int64_t r = 0; r < depth; r++) {
        Vec right[TILE_VECS];
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++) {
            right[v] = vec_load(b + r * b_row + v * VEC_LANES);
        }
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            Vec left = vec_set(a.data[i * a.row + r * a.column]);
#pragma GCC unroll 8
            for (int v = 0; v < vecs; v++) {
                sum[i][v] += left * right[v];
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 8
        for (int v = 0; v < vecs; v++) {
            vec_store(c + i * c_row + v * VEC_LANES, sum[i][v]);
        }
    }
}

VEC_INLINE void product_rows(const int vecs, int64_t rows, int64_t depth, Factor a, const float *b, int64_t b_row, float *c,
                             int64_t c_row, bool add) {
    for (; rows >= TILE_ROWS; rows -= TILE_ROWS) {
        product_tile(TILE_ROWS, vecs, depth, a, b, b_row, c, c_row, add);
        a.data += TILE_ROWS * a.row;
        c += TILE_ROWS * c_row;
    }
    if (rows == 4) {
        product_tile(4, vecs, depth, a, b, b_row, c, c_row, add);
    } else if (rows == 2) {
        product_tile(2, vecs, depth, a, b, b_row, c, c_row, add);
    }
}

// c[rows, vecs * VEC_LANES] = or += (add) a[rows, depth] b[depth, vecs * VEC_LANES]. rows is even.
static __attribute__((noinline, unused)) void block_product(int64_t rows, int64_t vecs, int64_t depth, Factor a, const float *b,
                                                            int64_t b_row, float *c, int64_t c_row, bool add) {
    while (vecs > 0) {
        // 5 vectors are 3 and 2 rather than 4 and 1.
        int64_t now = vecs <= TILE_VECS ? vecs : vecs < 2 * TILE_VECS ? (vecs + 1) / 2 : TILE_VECS;
        switch (now) {
        case 1:
            product_rows(1, rows, depth, a, b, b_row, c, c_row, add);
            break;
        case 2:
            product_rows(2, rows, depth, a, b, b_row, c, c_row, add);
            break;
#if TILE_VECS == 4
        case 3:
            product_rows(3, rows, depth, a, b, b_row, c, c_row, add);
            break;
        case 4:
            product_rows(4, rows, depth, a, b, b_row, c, c_row, add);
            break;
#endif
        }
        vecs -= now;
        b += now * VEC_LANES;
        c += now * VEC_LANES;
    }
}

// ---- Transposes

// Interleaves the lower (upper) halves of two vectors: a0 b0 a1 b1 ...
VEC_INLINE Vec vec_interleave_low(Vec a, Vec b) {
#if VEC_LANES == 16
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif VEC_LANES == 8
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
    return __builtin_shufflevector(a, b, 0, 4, 1, 5);
#endif
}

VEC_INLINE Vec vec_interleave_high(Vec a, Vec b) {
#if VEC_LANES == 16
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif VEC_LANES == 8
    return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
    return __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}

// Transposes a square of VEC_LANES x VEC_LANES: log2(VEC_LANES) perfect shuffles of its rows.
VEC_INLINE void vec_transpose(Vec x[VEC_LANES]) {
    Vec y[VEC_LANES];
#pragma GCC unroll 4
    for (int step = VEC_LANES; step > 1; step /= 2) {
#pragma GCC unroll 16
        for (int i = 0; i < VEC_LANES / 2; i++) {
            y[2 * i] = vec_interleave_low(x[i], x[i + VEC_LANES / 2]);
            y[2 * i + 1] = vec_interleave_high(x[i], x[i + VEC_LANES / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < VEC_LANES; i++) {
            x[i] = y[i];
        }
    }
}

// Lane i of the result is the sum of the lanes of x[i].
VEC_INLINE Vec vec_sums(Vec x[VEC_LANES]) {
    vec_transpose(x);
#pragma GCC unroll 4
    for (int half = VEC_LANES / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < half; i++) {
            x[i] += x[i + half];
        }
    }
    return x[0];
}

VEC_INLINE int64_t round_up(int64_t count, int64_t grain) {
    return (count + grain - 1) / grain * grain;
}

// to[rows padded to even, padded width] = from[rows, width], zeros elsewhere.
static inline void block_copy(int64_t rows, int64_t width, const float *from, int64_t from_row, float *to) {
    int64_t padded = round_up(width, VEC_LANES);
    for (int64_t i = 0; i < rows; i++, from += from_row, to += padded) {
        int64_t c = 0;
        for (; c + VEC_LANES <= width; c += VEC_LANES) {
            vec_store(to + c, vec_load(from + c));
        }
        if (c < width) {
            vec_store(to + c, vec_load_partial(from + c, width - c));
        }
    }
    if (rows % 2 != 0) {
        memset(to, 0, (size_t)padded * sizeof *to);
    }
}

// to[padded width, to_row] = transpose of from[rows, width], zeros in the columns rows .. columns - 1 (columns: a
// multiple of VEC_LANES).
static inline void block_transpose(int64_t rows, int64_t columns, int64_t width, const float *from, int64_t from_row, float *to,
                                   int64_t to_row) {
    for (int64_t c = 0; c < width; c += VEC_LANES) {
        int64_t wide = width - c < VEC_LANES ? width - c : VEC_LANES;
        for (int64_t i = 0; i < columns; i += VEC_LANES) {
            Vec x[VEC_LANES];
            if (i + VEC_LANES <= rows && wide == VEC_LANES) {
#pragma GCC unroll 16
                for (int k = 0; k < VEC_LANES; k++) {
                    x[k] = vec_load(from + (i + k) * from_row + c);
                }
            } else {
                for (int k = 0; k < VEC_LANES; k++) {
                    bool there = i + k < rows;
                    x[k] = vec_load_partial(from + (there ? i + k : 0) * from_row + c, there ? wide : 0);
                }
            }
            vec_transpose(x);
#pragma GCC unroll 16
            for (int k = 0; k < VEC_LANES; k++) {
                vec_store(to + (c + k) * to_row + i, x[k]);
            }
        }
    }
}
