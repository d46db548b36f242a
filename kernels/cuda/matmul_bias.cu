// The gradient of a bias: dbias[O] += the sum over rows of dy[R,O]. Deterministic.
//
// Rows are cut into parts; a block sums 256 columns of one part, a warp every eighth row of it and a thread 8 columns. The
// warps' sums meet in shared memory, those of several parts in the workspace, each in a fixed order. Reads dy once.
#include "kernels/cuda/matmul_epilogue.h"

namespace BACKEND {

static const int WARPS = 8;
static const int COLUMNS = 256;  // of a block

// part_sums[part][O] = the part's sums; where `add` (one part) part_sums is dbias and they are added to it.
// registers: at most 64
template <typename T>
static __global__ void __launch_bounds__(WARPS * 32) bias_parts(int64_t rows, int64_t out, const T *dy, int64_t stride,
                                                                int64_t part_rows, float *part_sums, bool packs, bool add) {
    SHARED(float, sums, [WARPS][COLUMNS]);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int64_t column = (int64_t)blockIdx.x * COLUMNS + lane * 8;
    int64_t first = (int64_t)blockIdx.y * part_rows, end = min(rows, first + part_rows);
    float sum[8] = {};
    for (int64_t r = first + warp; r < end && column < out; r += WARPS) {
        const T *row = dy + r * stride + column;
        if (packs) {
            alignas(16) T run[8];
            run_copy<T, 8>(run, row);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                sum[i] += to_float(run[i]);
            }
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                sum[i] += column + i < out ? to_float(row[i]) : 0.0f;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        sums[warp][lane * 8 + i] = sum[i];
    }
    __syncthreads();
    int64_t mine = (int64_t)blockIdx.x * COLUMNS + threadIdx.x;
    if (mine < out) {
        float total = sums[0][threadIdx.x];
        for (int w = 1; w < WARPS; w++) {
            total += sums[w][threadIdx.x];
        }
        float *to = part_sums + blockIdx.y * out + mine;
        *to = add ? *to + total : total;
    }
}

// registers: at most 32
static __global__ void __launch_bounds__(256) bias_add_parts(int64_t out, int parts, const float *part_sums, float *dbias) {
    int64_t column = (int64_t)blockIdx.x * 256 + threadIdx.x;
    if (column < out) {
        float total = part_sums[column];
        for (int part = 1; part < parts; part++) {
            total += part_sums[part * out + column];
        }
        dbias[column] += total;
    }
}

void bias_gradient(Card *card, DataType type, int64_t rows, int64_t out, const void *dy, int64_t stride, float *dbias) {
    if (rows == 0 || out == 0) {
        return;
    }
    // Two blocks a multiprocessor, and at least 64 rows each.
    int64_t across = divide_up(out, COLUMNS);
    int64_t parts = min(divide_up(2 * card->multiprocessors, across), divide_up(rows, (int64_t)64));
    int64_t part_rows = divide_up(rows, parts);
    parts = divide_up(rows, part_rows);
    float *sums = parts > 1 ? (float *)card_workspace(card, (size_t)(parts * out) * sizeof(float)) : dbias;
    dim3 grid((unsigned)across, (unsigned)parts);
    bool packs = stride % 8 == 0 && aligned_16(dy);  // the sums of what lies behind an odd row's end are dropped
    WITH_TYPE(type, T,
              launch(card, "bias gradient", bias_parts<T>, grid, WARPS * 32, 0, rows, out, (const T *)dy, stride, part_rows,
                     sums, packs, parts == 1));
    if (parts > 1) {
        launch(card, "bias gradient", bias_add_parts, dim3((unsigned)divide_up(out, 256)), 256, 0, out, (int)parts,
               (const float *)sums, dbias);
    }
}

}  // namespace BACKEND
