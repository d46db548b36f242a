// Matrix products in fp32, for debugging: any shape, all epilogues, sums along K in their order, no tensor cores.
//
// A block of 256 threads computes a tile of 64 x 64 in slices of 16 along K; a thread 4 x 4 of it. Where gated, the 4 lines of
// B that belong to a thread are two gates and their two values.
#include "kernels/cuda/matmul_epilogue.h"

namespace BACKEND {

static const int TILE = 64;
static const int SLICE = 16;
static const int THREADS = 256;
static const int PITCH = TILE + 4;  // floats between the lines of a slice

// slice[k][line] = from[(row of the line) * row_stride + k * k_stride], zero beyond the ends. Neighbouring threads read along
// the contiguous dimension.
static __device__ __forceinline__ void slice_load(float (*slice)[PITCH], const float *from, int64_t row_stride,
                                                  int64_t k_stride, int64_t first, int64_t extent, int64_t k, int64_t k_end,
                                                  int64_t gate_rows) {
    for (int i = (int)threadIdx.x; i < TILE * SLICE; i += THREADS) {
        int line = k_stride == 1 ? i / SLICE : i % TILE, step = k_stride == 1 ? i % SLICE : i / TILE;
        int64_t row = gate_rows > 0 ? first + line / 4 * 2 + line % 2 : first + line;
        int64_t at = row + (gate_rows > 0 && line % 4 >= 2 ? gate_rows : 0);
        slice[step][line] = row < extent && k + step < k_end ? from[at * row_stride + (k + step) * k_stride] : 0.0f;
    }
}

// registers: at most 128
static __global__ void __launch_bounds__(THREADS) product_tiles_float(const Product p) {
    SHARED(float, a, [SLICE][PITCH]);
    SHARED(float, b, [SLICE][PITCH]);
    const bool gated = p.epilogue == EPILOGUE_GATED, a_major = p.form == PRODUCT_BACKWARD_WEIGHT;
    const bool b_major = p.form != PRODUCT_FORWARD;
    const int64_t first_m = (int64_t)blockIdx.x * TILE, first_n = (int64_t)blockIdx.y * (gated ? TILE / 2 : TILE);
    const int m = (int)threadIdx.x / 16 * 4, n = (int)threadIdx.x % 16 * 4;
    float sums[4][4] = {};
    for (int64_t k = 0; k < p.k; k += SLICE) {
        slice_load(a, (const float *)p.a, a_major ? 1 : p.a_stride, a_major ? p.a_stride : 1, first_m, p.m, k, p.k, 0);
        slice_load(b, (const float *)p.b, b_major ? 1 : p.b_stride, b_major ? p.b_stride : 1, first_n, p.n, k, p.k,
                   gated ? p.n : 0);
        __syncthreads();
        for (int step = 0; step < SLICE; step++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    sums[i][j] += a[step][m + i] * b[step][n + j];
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int64_t row = first_m + m + i, column = first_n + (gated ? n / 2 : n);
        if (row >= p.m || column >= p.n) {
            continue;
        }
        if (gated) {
            alignas(8) float gate[2] = {sums[i][0], sums[i][1]}, value[2] = {sums[i][2], sums[i][3]};
            product_finish_gated<float, 2>(p, p.activation, row, column, gate, value);
        } else {
            alignas(16) float x[4] = {sums[i][0], sums[i][1], sums[i][2], sums[i][3]};
            product_finish<float, 4>(p, p.epilogue, p.activation, row, column, x);
        }
    }
}

bool product_float(Card *card, const Product *p) {
    int64_t across = divide_up(p->n, p->epilogue == EPILOGUE_GATED ? TILE / 2 : TILE);
    if (p->type != TYPE_FP32 || across > 65535) {  // the most blocks along y
        return false;
    }
    dim3 grid((unsigned)divide_up(p->m, TILE), (unsigned)across);
    launch(card, "matmul in fp32", product_tiles_float, grid, THREADS, 0, *p);
    return true;
}

}  // namespace BACKEND
