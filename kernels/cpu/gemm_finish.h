// What happens to a tile of a matrix product besides the sum: bias, activation or its slope, residual, and the way to memory.
#pragma once

#include "kernels/cpu/activation.h"
#include "kernels/cpu/gemm.h"

// Where a tile is and which block of k it adds.
typedef struct GemmPlace {
    int64_t row, column, rows, columns;
    bool first, last;
} GemmPlace;

// y = activation(partial sums + tile + bias) + residual, or the tile times the activation's slope.
VEC_INLINE void gemm_finish_with(const Gemm *g, const GemmPlace *p, const float *tile, int64_t tile_stride,
                                 const Activation activation, const float *partial) {
    for (int64_t m = 0; m < p->rows; m++) {
        int64_t at = (p->row + m) * g->c_stride + p->column;
        for (int64_t n = 0; n < p->columns; n += VEC_LANES) {
            int64_t lanes = p->columns - n < VEC_LANES ? p->columns - n : VEC_LANES;
            Vec x = vec_load(tile + m * tile_stride + n);
#define LOAD(from) (lanes == VEC_LANES ? vec_load(from) : vec_load_partial(from, lanes))
#define STORE(to, value) (lanes == VEC_LANES ? vec_store(to, value) : vec_store_partial(to, value, lanes))
            if (g->slope_at != NULL) {
                x = x * vec_activation_slope(activation, LOAD(g->slope_at + at + n));
                if (g->accumulate || !p->first) {
                    x += LOAD(g->c + at + n);
                }
            } else {
                if (partial != NULL) {
                    x += LOAD(partial + at + n);
                }
                if (g->bias != NULL) {
                    x += LOAD(g->bias + p->column + n);
                }
                if (g->pre != NULL) {
                    STORE(g->pre + at + n, x);
                }
                x = vec_activation(activation, x);
                if (g->residual != NULL) {
                    x += LOAD(g->residual + at + n);
                }
            }
            STORE(g->c + at + n, x);
        }
    }
}

static void gemm_finish(const Gemm *g, const GemmPlace *p, const float *tile, int64_t tile_stride, const float *partial) {
    switch (g->activation) {
    case ACTIVATION_GELU_TANH:
        gemm_finish_with(g, p, tile, tile_stride, ACTIVATION_GELU_TANH, partial);
        break;
    case ACTIVATION_GELU_ERF:
        gemm_finish_with(g, p, tile, tile_stride, ACTIVATION_GELU_ERF, partial);
        break;
    case ACTIVATION_RELU:
        gemm_finish_with(g, p, tile, tile_stride, ACTIVATION_RELU, partial);
        break;
    case ACTIVATION_SILU:
        gemm_finish_with(g, p, tile, tile_stride, ACTIVATION_SILU, partial);
        break;
    default:
        gemm_finish_with(g, p, tile, tile_stride, ACTIVATION_NONE, partial);
        break;
    }
}

// A tile at the right edge, whose last vector is not whole: to (= or +=) tile.
VEC_INLINE void gemm_copy_tile(const GemmPlace *p, const float *tile, int64_t tile_stride, float *to, int64_t to_stride,
                               bool accumulate) {
    for (int64_t m = 0; m < p->rows; m++) {
        for (int64_t n = 0; n < p->columns; n += VEC_LANES) {
            int64_t lanes = p->columns - n < VEC_LANES ? p->columns - n : VEC_LANES;
            Vec x = vec_load(tile + m * tile_stride + n);
            float *out = to + m * to_stride + n;
            vec_store_partial(out, accumulate ? vec_load_partial(out, lanes) + x : x, lanes);
        }
    }
}
