// Products of few rows with many weights: y[R,O] = x[R,I] w[O,I]^T for R of at most 16, as decoding has them. Deterministic.
//
// Each weight is used R times only, so the time is that of reading w once, and what counts is how many bytes are on their way.
// w is the first operand of the tensor cores (16 of its rows, or 8 gates and their 8 values, a block), x the second (8 or 16
// rows). Which of the 16 products of a step along K stands where does not matter as long as both operands agree: a thread takes
// 8 neighbouring elements of a row, 16 bytes, and they serve as its elements of two steps.
//
//   w row g      |  t = 0: 0..7  |  t = 1: 8..15  |  t = 2: 16..23  |  t = 3: 24..31  |    g = lane / 4, t = lane % 4
//   step 0 takes elements 0..3 of each of these, step 1 elements 4..7
//
// Every thread copies these 16 bytes for itself, STAGES turns ahead, into places of shared memory that no other thread touches:
// registers for loads on their way, without barriers. The 8 warps of a block take turns along K, 64 elements each (128 bytes of
// a row); their sums meet in a fixed order.
#include "kernels/cuda/matmul_epilogue.h"
#include "kernels/cuda/ptx.h"

namespace BACKEND {

static const int WARPS = 8;
static const int OUTPUTS = 16;  // rows of w of a block
static const int TURN = 64;     // elements along K that a warp takes at a time
static const int STAGES = 3;    // turns in shared memory: at least 16 KiB of w on their way a block

template <int EIGHTS> constexpr int TURN_COPIES = 4 + 2 * EIGHTS;  // of 16 bytes a thread: two of each of its rows
template <int EIGHTS> constexpr int SHARED_BYTES = STAGES *TURN_COPIES<EIGHTS> *WARPS * 32 * 16;

// EIGHTS: 8 rows of x each.
// registers: at most 80
template <typename T, int EIGHTS> static __global__ void __launch_bounds__(WARPS * 32) few_rows(const Product p) {
    DYNAMIC_SHARED(memory);
    const bool gated = p.epilogue == EPILOGUE_GATED;
    const int warp = threadIdx.x / 32, g = (int)threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int64_t first = (int64_t)blockIdx.x * (gated ? OUTPUTS / 2 : OUTPUTS);
    // This thread's rows: g and g + 8 of the block's rows of w, then of x. rows[i] points at its elements of the next turn.
    const T *rows[2 + EIGHTS];
    bool valid[2 + EIGHTS];
    int64_t k = warp * TURN + t * 8;
#pragma unroll
    for (int i = 0; i < 2 + EIGHTS; i++) {
        int64_t at = i >= 2 ? (i - 2) * 8 + g : gated ? i * p.n + first + g : first + i * 8 + g;
        valid[i] = i >= 2 ? at < p.m : gated ? first + g < p.n : at < p.n;
        rows[i] = (const T *)(i >= 2 ? p.a : p.b) + (valid[i] ? at : 0) * (i >= 2 ? p.a_stride : p.b_stride) + k;
    }
    auto place = [&](int stage, int copy) {
        return memory + ((stage * TURN_COPIES<EIGHTS> + copy) * WARPS * 32 + (int)threadIdx.x) * 16;
    };
    auto copy_turn = [&](int stage) {
#pragma unroll
        for (int i = 0; i < 2 + EIGHTS; i++) {
#pragma unroll
            for (int chunk = 0; chunk < 2; chunk++) {
                copy_async_16(shared_address(place(stage, i * 2 + chunk)), rows[i] + chunk * 32,
                              valid[i] && k + chunk * 32 < p.k);
            }
            rows[i] += WARPS * TURN;
        }
        k += WARPS * TURN;
        copy_async_commit();
    };

    const int turns = (int)((p.k + WARPS * TURN - 1) / (WARPS * TURN));
    for (int s = 0; s < STAGES - 1; s++) {
        copy_turn(s);
    }
    float d[EIGHTS][4] = {};
    int read = 0, write = STAGES - 1;
#pragma unroll 1
    for (int turn = 0; turn < turns; turn++) {
        copy_turn(write);
        copy_async_wait<STAGES - 1>();
#pragma unroll
        for (int chunk = 0; chunk < 2; chunk++) {
            const uint4 low = *(const uint4 *)place(read, chunk), high = *(const uint4 *)place(read, 2 + chunk);
            const uint32_t a0[4] = {low.x, high.x, low.y, high.y}, a1[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
            for (int e = 0; e < EIGHTS; e++) {
                const uint4 x = *(const uint4 *)place(read, 4 + e * 2 + chunk);
                const uint32_t b0[2] = {x.x, x.y}, b1[2] = {x.z, x.w};
                mma_16816<T>(d[e], a0, b0);
                mma_16816<T>(d[e], a1, b1);
            }
        }
        read = read + 1 == STAGES ? 0 : read + 1;
        write = write + 1 == STAGES ? 0 : write + 1;
    }
    copy_async_wait<0>();
    __syncthreads();

    typedef float RowSums[OUTPUTS][EIGHTS * 8];
    RowSums *sums = (RowSums *)memory;  // of each warp
#pragma unroll
    for (int e = 0; e < EIGHTS; e++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sums[warp][g + i / 2 * 8][e * 8 + t * 2 + i % 2] = d[e][i];
        }
    }
    __syncthreads();

    const int pairs = gated ? OUTPUTS / 4 : OUTPUTS / 2;
    const int row = (int)threadIdx.x / pairs, output = (int)threadIdx.x % pairs * 2;
    if (row >= p.m || first + output >= p.n) {
        return;
    }
    alignas(8) float y[2] = {0, 0}, value[2] = {0, 0};
    for (int v = 0; v < WARPS; v++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            y[i] += sums[v][output + i][row];
            value[i] += sums[v][(output + i + 8) % OUTPUTS][row];
        }
    }
    if (gated) {
        product_finish_gated<T, 2>(p, p.activation, row, first + output, y, value);
    } else {
        product_finish<T, 2>(p, p.epilogue, p.activation, row, first + output, y);
    }
}

template <typename T> static void launch_few(Card *card, const Product *p) {
    dim3 grid((unsigned)divide_up(product_b_rows(p), OUTPUTS));
    if (p->epilogue == EPILOGUE_GATED) {
        grid.x = (unsigned)divide_up(p->n, OUTPUTS / 2);
    }
    if (p->m <= 8) {
        launch(card, "matmul of few rows", few_rows<T, 1>, grid, WARPS * 32, SHARED_BYTES<1>, *p);
    } else {
        launch(card, "matmul of few rows", few_rows<T, 2>, grid, WARPS * 32, SHARED_BYTES<2>, *p);
    }
}

bool product_few(Card *card, const Product *p) {
    bool chunks = p->k % 8 == 0 && p->a_stride % 8 == 0 && p->b_stride % 8 == 0 && aligned_16(p->a) && aligned_16(p->b);
    if (p->form != PRODUCT_FORWARD || p->type == TYPE_FP32 || p->m > 16 || !chunks) {
        return false;
    }
    if (p->type == TYPE_BF16) {
        launch_few<bf16>(card, p);
    } else {
        launch_few<fp16>(card, p);
    }
    return true;
}

}  // namespace BACKEND
