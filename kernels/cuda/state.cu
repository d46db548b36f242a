// The end of a step on a card: sums of squares and of losses, the decision about the update (contracts in kernels.h).
//
//   squares      4 bytes a value, read once: bandwidth is the limit. Two passes: parts whose length depends on the count alone,
//                each summed by a block in double precision; then one block adds the parts' sums.
//   loss_sums    8 or 12 bytes a row: one block, each thread every 1024th row.
//   step_decide  one thread.
//
// Every sum has one order: deterministic, on any card.
#include "kernels/cuda/element.h"
#include "kernels/update.h"

namespace BACKEND {

static const int THREADS = 256;
static const int UNROLL = 4;
static const int MOST_PARTS = 4096;  // enough for several blocks on each multiprocessor
static const int LEAST_PART = THREADS * 4 * UNROLL;

__device__ __forceinline__ void add_squares(const Pack<float> &pack, double (&sum)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sum[i] += (double)pack.at[i] * (double)pack.at[i];
    }
}

static __global__ void __launch_bounds__(THREADS) square_parts(int64_t count, int64_t part, const float *x, double *sums) {
    int64_t begin = blockIdx.x * part, end = min(count, begin + part);
    double sum[4] = {};
    int64_t i = begin + threadIdx.x * 4;
    for (; i + (UNROLL - 1) * THREADS * 4 + 4 <= end; i += UNROLL * THREADS * 4) {
        Pack<float> packs[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            packs[u] = load_pack_once(x + i + u * THREADS * 4);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            add_squares(packs[u], sum);
        }
    }
    for (; i < end; i += THREADS * 4) {
        for (int64_t j = i; j < min(end, i + 4); j++) {
            sum[0] += (double)x[j] * (double)x[j];
        }
    }
    double all = block_sum<THREADS>((sum[0] + sum[1]) + (sum[2] + sum[3]));
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = all;
    }
}

static __global__ void __launch_bounds__(THREADS) square_finish(int parts, const double *sums, double *out) {
    double sum = 0;
    for (int i = threadIdx.x; i < parts; i += THREADS) {
        sum += sums[i];
    }
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0) {
        *out = sum;
    }
}

void squares(Device *device, int64_t count, const float *x, double *sum) {
    Card *card = card_of(device);
    int64_t part = divide_up(divide_up(count, MOST_PARTS), LEAST_PART) * LEAST_PART,
            parts = count > 0 ? divide_up(count, part) : 0;
    double *sums = (double *)card_workspace(card, MOST_PARTS * sizeof *sums);
    launch(card, "squares", square_parts, dim3((unsigned)parts), THREADS, 0, count, part, x, sums);
    launch(card, "squares", square_finish, dim3(1), THREADS, 0, (int)parts, (const double *)sums, sum);
}

static const int ROW_THREADS = 1024;

static __global__ void __launch_bounds__(ROW_THREADS) sum_losses(LossSums a) {
    double loss = 0, z = 0, weight = 0;
    for (int64_t r = threadIdx.x; r < a.rows; r += ROW_THREADS) {
        double w = (double)a.loss_weights[r];
        if (w != 0) {
            loss += w * (double)a.losses[r];
            z += a.zs != NULL ? w * ((double)a.zs[r] * (double)a.zs[r]) : 0;
            weight += w;
        }
    }
    loss = block_sum<ROW_THREADS>(loss);
    z = block_sum<ROW_THREADS>(z);
    weight = block_sum<ROW_THREADS>(weight);
    if (threadIdx.x == 0) {
        a.control->loss_sum += loss;
        a.control->z_sum += z;
        a.control->weight_sum += weight;
    }
}

void loss_sums(Device *device, const LossSums *a) {
    launch(card_of(device), "loss sums", sum_losses, dim3(a->rows > 0), ROW_THREADS, 0, *a);
}

static __global__ void decide(StepDecide a) {
    step_decide_control(&a, a.control);
}

void step_decide(Device *device, const StepDecide *a) {
    launch(card_of(device), "the decision about a step", decide, dim3(1), 1, 0, *a);
}

}  // namespace BACKEND
