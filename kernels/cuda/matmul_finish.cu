// The epilogue of products whose sums lie in memory: parts of a split sum, or what the vendor's library left.
//
// A thread takes 4 columns of a row, adds the parts in their order and goes on as every other body does. Bound by memory.
#include "kernels/cuda/matmul_epilogue.h"

namespace BACKEND {

static const int THREADS = 256;

// Sums in memory: [part][M][N or 2 N], rows `stride` apart.
template <typename R> struct RawSums {
    const R *at;
    int64_t stride;
    int parts;
    bool aligned;  // four columns at a time
};

// x = the sum over parts of columns column .. + 4 of a row; first: 0, or N for the values of a gated product.
template <typename R>
static __device__ __forceinline__ void parts_add(const Product &p, const RawSums<R> &raw, int64_t row, int64_t first,
                                                 int64_t column, float (&x)[4]) {
    const R *from = raw.at + row * raw.stride + first + column;
    run_load<R, 4>(from, raw.aligned, p.n - column, x);
    for (int part = 1; part < raw.parts; part++) {
        float more[4];
        from += p.m * raw.stride;
        run_load<R, 4>(from, raw.aligned, p.n - column, more);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            x[i] += more[i];
        }
    }
}

// registers: at most 64
template <typename T, typename R>
static __global__ void __launch_bounds__(THREADS, 4) finish_sums(const Product p, const RawSums<R> raw) {
    int64_t runs = (p.n + 3) / 4;
    int64_t index = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    // A division of 64 bits takes longer than the rest.
    int64_t row = index >> 32 == 0 && runs >> 32 == 0 ? (int64_t)((uint32_t)index / (uint32_t)runs) : index / runs;
    int64_t column = (index - row * runs) * 4;
    if (row >= p.m) {
        return;
    }
    alignas(16) float x[4];
    if (p.epilogue == EPILOGUE_GATED) {
        alignas(16) float value[4];
        parts_add(p, raw, row, 0, column, x);
        parts_add(p, raw, row, p.n, column, value);
        product_finish_gated<T, 4>(p, p.activation, row, column, x, value);
    } else {
        parts_add(p, raw, row, 0, column, x);
        product_finish<T, 4>(p, p.epilogue, p.activation, row, column, x);
    }
}

void product_finish_sums(Card *card, const Product *p, const void *raw, int64_t stride, bool raw_float, int parts) {
    bool aligned = aligned_16(raw) && stride % 4 == 0 && (p->epilogue != EPILOGUE_GATED || p->n % 4 == 0);
    dim3 grid((unsigned)divide_up(p->m * divide_up(p->n, 4), THREADS));
    WITH_TYPE(
        p->type, T,
        if (raw_float) {
            const RawSums<float> sums = {(const float *)raw, stride, parts, aligned};
            launch(card, "matmul epilogue", finish_sums<T, float>, grid, THREADS, 0, *p, sums);
        } else {
            const RawSums<T> sums = {(const T *)raw, stride, parts, aligned};
            launch(card, "matmul epilogue", finish_sums<T, T>, grid, THREADS, 0, *p, sums);
        });
}

}  // namespace BACKEND
