// A few rows times a matrix stored transposed: C[m,n] = dot(A[m,:], B[:,n]), both contiguous in k.
//
// What generating text does. Packing B would cost more than the product: so vectors run along k, and B is read once, front to
// back, one column at a time with all rows of A (which stay in the cache): with one stream the hardware prefetches at the full
// speed of memory, with four side by side it reached half of it. A sum over k is VEC_LANES strands, folded at the end in a
// fixed order.
#include "kernels/cpu/gemm_finish.h"

enum {
    ROWS_AT_ONCE = 8,
    COLUMNS_OF_TILE = 64,
    AHEAD = 1024,              // elements of B that are fetched before they are used
    BYTES_AT_LEAST = 1 << 16,  // of B that are worth a task of their own
};

// tile[m * COLUMNS_OF_TILE] = dot(a + m * a_stride, b) over `depth`.
VEC_INLINE void dot_rows(const int rows, int64_t depth, const float *a, int64_t a_stride, const float *b, float *tile) {
    Vec sum[ROWS_AT_ONCE];
#pragma GCC unroll 8
    for (int m = 0; m < rows; m++) {
        sum[m] = (Vec){0};
    }
    int64_t k = 0;
    for (; k + VEC_LANES <= depth; k += VEC_LANES) {
        Vec column = vec_load(b + k);
        __builtin_prefetch(b + k + AHEAD);
#pragma GCC unroll 8
        for (int m = 0; m < rows; m++) {
            sum[m] += vec_load(a + m * a_stride + k) * column;
        }
    }
    if (k < depth) {
        Vec column = vec_load_partial(b + k, depth - k);
#pragma GCC unroll 8
        for (int m = 0; m < rows; m++) {
            sum[m] += vec_load_partial(a + m * a_stride + k, depth - k) * column;
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < rows; m++) {
        tile[m * COLUMNS_OF_TILE] = vec_sum(sum[m]);
    }
}

static void dot_column(const Gemm *g, int64_t column, float *tile) {
    const float *b = g->b + column * g->b_stride;
    for (int64_t m = 0; m < g->m; m += ROWS_AT_ONCE) {
        const float *a = g->a + m * g->a_stride;
        float *out = tile + m * COLUMNS_OF_TILE;
        switch (g->m - m) {
#define ROWS(rows)                                                                                                             \
    case rows:                                                                                                                 \
        dot_rows(rows, g->k, a, g->a_stride, b, out);                                                                          \
        break;
            ROWS(1)
            ROWS(2)
            ROWS(3)
            ROWS(4)
            ROWS(5)
            ROWS(6)
            ROWS(7)
#undef ROWS
        default:
            dot_rows(8, g->k, a, g->a_stride, b, out);
            break;
        }
    }
}

typedef struct Few {
    const Gemm *g;
    int64_t parts;
} Few;

static void run_part(void *context, int64_t part, int thread) {
    const Few *few = context;
    const Gemm *g = few->g;
    Range columns = range_part(g->n, VEC_LANES, few->parts, part);
    _Alignas(64) float tile[GEMM_FEW_ROWS * COLUMNS_OF_TILE];
    GemmPlace p = {.rows = g->m, .first = true, .last = true};
    for (p.column = columns.begin; p.column < columns.end; p.column += COLUMNS_OF_TILE) {
        p.columns = columns.end - p.column < COLUMNS_OF_TILE ? columns.end - p.column : COLUMNS_OF_TILE;
        for (int64_t n = 0; n < p.columns; n++) {
            dot_column(g, p.column + n, tile + n);
        }
        gemm_finish(g, &p, tile, COLUMNS_OF_TILE, g->accumulate ? g->c : NULL);
    }
}

void CPU_NAME(gemm_few)(Device *device, const Gemm *g) {
    Few few = {g, 1};
    int64_t threads = threads_count(device->pool), worth = g->n * g->k * (int64_t)sizeof(float) / BYTES_AT_LEAST;
    if (threads > 1 && worth > 1) {
        few.parts = worth < 4 * threads ? (worth < threads ? worth : threads) : 4 * threads;
    }
    threads_run(device->pool, few.parts, run_part, &few);
}
