// Attention by the plainest deterministic kernels: a warp a row, in fp32, for any type, head width and address. In fp32 it is
// what runs; in 16 bits it takes the odd widths that the tensor cores do not.
//
// A warp walks over 32 keys (or queries) at a time. First its lanes are those keys: each computes its product with the row
// alone, so that only maxima and sums cross lanes. Then its lanes are the columns of the result: each adds the 32 rows up, in
// their order, by the weights that lie in shared memory.
#include "kernels/cuda/attention.h"

namespace BACKEND {

enum { WARPS = 4, LANES = 32 };

template <typename T> __device__ __forceinline__ float row_product(const T *x, const T *y, int width) {
    float sum = 0;
    for (int d = 0; d < width; d++) {
        sum += to_float(x[d]) * to_float(y[d]);
    }
    return sum;
}

// The score in natural units, with accurate functions: what is not to be seen in fp32 is to be small in fp32.
__device__ __forceinline__ float plain_score(const AttentionPlan &p, float slope, float dot, int q, int k, float *derivative) {
    float score = dot * p.scale;
    *derivative = 1;
    if (p.cap > 0) {
        float t = tanhf(score / p.cap);
        *derivative = 1 - t * t;
        score = t * p.cap;
    }
    return score + slope * (float)(k - q);
}

// y[d] = shrink * y[d] + sum over i < count of weights[i] rows[i][d].
template <typename T>
__device__ __forceinline__ void add_rows(float *y, float shrink, const float *weights, const T *rows, int64_t stride, int count,
                                         int width) {
    for (int d = (int)threadIdx.x % LANES; d < width; d += LANES) {
        float sum = y[d] * shrink;
        for (int i = 0; i < count; i++) {
            sum += weights[i] * to_float(rows[i * stride + d]);
        }
        y[d] = sum;
    }
}

template <typename T> __device__ __forceinline__ void write_row(const float *y, float factor, T *to, int width) {
    for (int d = (int)threadIdx.x % LANES; d < width; d += LANES) {
        to[d] = from_float<T>(y[d] * factor);
    }
}

__device__ __forceinline__ void zero_row(float *y, int width) {
    for (int d = (int)threadIdx.x % LANES; d < width; d += LANES) {
        y[d] = 0;
    }
}

// One query over keys least .. q: writes out, returns the log-sum-exp. `room`: LANES + width floats of this warp.
template <typename T>
__device__ float attend(const AttentionPlan &p, float slope, uint64_t draws, const T *query, const T *keys, const T *values,
                        int64_t stride, int least, int q, float *room, T *out) {
    int lane = (int)threadIdx.x % LANES;
    float *weights = room, *y = room + LANES, most = -INFINITY, sum = 0, derivative;
    zero_row(y, p.width);
    for (int begin = least; begin <= q; begin += LANES) {
        int k = begin + lane, count = q - begin + 1 < LANES ? q - begin + 1 : LANES;
        float score = -INFINITY;
        if (k <= q) {
            score = plain_score(p, slope, row_product(query, keys + k * stride, p.width), q, k, &derivative);
        }
        float now = fmaxf(most, warp_max(score)), shrink = expf(most - now), probability = expf(score - now);
        sum = sum * shrink + warp_sum(probability);
        most = now;
        weights[lane] = p.dropout && k <= q ? probability * attention_kept(p, draws, q, k) : probability;
        __syncwarp();
        add_rows(y, shrink, weights, values + begin * stride, stride, count, p.width);
        __syncwarp();
    }
    write_row(y, 1 / sum, out, p.width);
    return most + logf(sum);
}

template <typename T>
__global__ void attention_forward_plain_kernel(const AttentionPlan p, int64_t rows, const T *qkv, T *out, float *lse) {
    DYNAMIC_SHARED(memory);
    int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / LANES;  // [B,H,T]
    if (row >= rows) {
        return;
    }
    float *room = (float *)memory + threadIdx.x / LANES * (LANES + p.width);
    int q = (int)(row % p.length), h = (int)(row / p.length % p.heads), b = (int)(row / p.length / p.heads);
    int64_t stride = attention_row(p);
    const T *keys = qkv + attention_part(p, b, p.heads + h / p.share), *values = keys + (int64_t)p.groups * p.width;
    T *to = out + (((int64_t)b * p.length + q) * p.heads + h) * p.width;
    float sum = attend(p, p.slopes != NULL ? p.slopes[h] : 0.0f, attention_draws(p, b, h),
                       qkv + attention_part(p, b, h) + q * stride, keys, values, stride, attention_least(p, b, q), q, room, to);
    if (threadIdx.x % LANES == 0) {
        lse[row] = sum;
    }
}

// dS of one query and key (without `scale`), and its probability after dropout.
struct PlainWeights {
    float ds, probability;
};
template <typename T>
__device__ __forceinline__ PlainWeights plain_weights(const AttentionPlan &p, int b, int h, int q, int k, const T *query,
                                                      const T *key, const T *value, const T *dout, const float *lse,
                                                      const float *delta) {
    int64_t at = ((int64_t)b * p.heads + h) * p.length + q;
    float derivative, slope = p.slopes != NULL ? p.slopes[h] : 0.0f;
    float probability = expf(plain_score(p, slope, row_product(query, key, p.width), q, k, &derivative) - lse[at]);
    float factor = p.dropout ? attention_kept(p, attention_draws(p, b, h), q, k) : 1.0f;
    float ds = probability * (row_product(dout, value, p.width) * factor - delta[at]) * derivative;
    return PlainWeights{ds, probability * factor};
}

template <typename T>
__global__ void attention_dq_plain_kernel(const AttentionPlan p, int64_t rows, const T *qkv, const T *dout, const float *lse,
                                          const float *delta, T *dqkv) {
    DYNAMIC_SHARED(memory);
    int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / LANES;  // [B,H,T]
    if (row >= rows) {
        return;
    }
    float *weights = (float *)memory + threadIdx.x / LANES * (LANES + p.width), *y = weights + LANES;
    int lane = (int)threadIdx.x % LANES;
    int q = (int)(row % p.length), h = (int)(row / p.length % p.heads), b = (int)(row / p.length / p.heads);
    int64_t stride = attention_row(p), to_query = attention_part(p, b, h) + q * stride;
    const T *keys = qkv + attention_part(p, b, p.heads + h / p.share), *values = keys + (int64_t)p.groups * p.width;
    const T *from = dout + (((int64_t)b * p.length + q) * p.heads + h) * p.width;
    zero_row(y, p.width);
    for (int begin = attention_least(p, b, q); begin <= q; begin += LANES) {
        int k = begin + lane, count = q - begin + 1 < LANES ? q - begin + 1 : LANES;
        weights[lane] = 0;
        if (k <= q) {
            weights[lane] =
                plain_weights(p, b, h, q, k, qkv + to_query, keys + k * stride, values + k * stride, from, lse, delta).ds;
        }
        __syncwarp();
        add_rows(y, 1, weights, keys + begin * stride, stride, count, p.width);
        __syncwarp();
    }
    write_row(y, p.scale, dqkv + to_query, p.width);
}

template <typename T>
__global__ void attention_dkv_plain_kernel(const AttentionPlan p, int64_t rows, const T *qkv, const T *dout, const float *lse,
                                           const float *delta, T *dqkv) {
    DYNAMIC_SHARED(memory);
    int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / LANES;  // [B,G,T]
    if (row >= rows) {
        return;
    }
    float *weights = (float *)memory + threadIdx.x / LANES * 2 * (LANES + p.width), *probabilities = weights + LANES;
    float *dkey = probabilities + LANES, *dvalue = dkey + p.width;
    int lane = (int)threadIdx.x % LANES;
    int k = (int)(row % p.length), group = (int)(row / p.length % p.groups), b = (int)(row / p.length / p.groups);
    int64_t stride = attention_row(p), out_stride = (int64_t)p.heads * p.width;
    int64_t to_key = attention_part(p, b, p.heads + group) + k * stride, to_value = to_key + (int64_t)p.groups * p.width;
    zero_row(dkey, p.width);
    zero_row(dvalue, p.width);
    for (int h = group * p.share; h < (group + 1) * p.share; h++) {
        const T *queries = qkv + attention_part(p, b, h);
        const T *douts = dout + ((int64_t)b * p.length * p.heads + h) * p.width;
        for (int begin = k; begin < p.length; begin += LANES) {
            int q = begin + lane, count = p.length - begin < LANES ? p.length - begin : LANES;
            PlainWeights w = {0, 0};
            bool sees = q < p.length && attention_least(p, b, q) <= k;
            if (sees) {
                w = plain_weights(p, b, h, q, k, queries + q * stride, qkv + to_key, qkv + to_value, douts + q * out_stride,
                                  lse, delta);
            }
            weights[lane] = w.ds;
            probabilities[lane] = w.probability;
            if (__ballot_sync(0xFFFFFFFFu, sees) == 0) {
                break;  // nor do later ones
            }
            __syncwarp();
            add_rows(dkey, 1, weights, queries + begin * stride, stride, count, p.width);
            add_rows(dvalue, 1, probabilities, douts + begin * out_stride, out_stride, count, p.width);
            __syncwarp();
        }
    }
    write_row(dkey, p.scale, dqkv + to_key, p.width);
    write_row(dvalue, 1, dqkv + to_value, p.width);
}

template <typename T>
__global__ void attention_decode_plain_kernel(const AttentionPlan p, int64_t rows, int64_t window, int64_t capacity, const T *q,
                                              int64_t q_stride, const T *keys, const T *values, const int32_t *lengths,
                                              T *out) {
    DYNAMIC_SHARED(memory);
    int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / LANES;  // [B,H]
    if (row >= rows) {
        return;
    }
    float *room = (float *)memory + threadIdx.x / LANES * (LANES + p.width);
    int h = (int)(row % p.heads), b = (int)(row / p.heads), length = lengths[b];
    int least = attention_decode_least(length, window);
    int64_t stride = (int64_t)p.groups * p.width, at = b * capacity * stride + (int64_t)(h / p.share) * p.width;
    attend(p, p.slopes != NULL ? p.slopes[h] : 0.0f, 0, q + b * q_stride + (int64_t)h * p.width, keys + at, values + at, stride,
           least, length - 1, room, out + row * p.width);
}

static dim3 grid_of(int64_t rows) {
    return dim3((unsigned)divide_up(rows, WARPS));
}

void attention_forward_plain(Card *card, const AttentionForward *a) {
    AttentionPlan p = attention_plan(&a->shape, a->first);
    int64_t rows = (int64_t)p.batch * p.heads * p.length;
    size_t shared = (size_t)(LANES + p.width) * WARPS * sizeof(float);
    WITH_TYPE(card->device.type, T,
              launch(card, "attention_forward", attention_forward_plain_kernel<T>, grid_of(rows), WARPS * LANES, shared, p,
                     rows, (const T *)a->qkv, (T *)a->out, a->lse))
}

void attention_backward_plain(Card *card, const AttentionBackward *a, const float *delta) {
    AttentionPlan p = attention_plan(&a->shape, a->first);
    int64_t rows = (int64_t)p.batch * p.heads * p.length, key_rows = (int64_t)p.batch * p.groups * p.length;
    size_t shared = (size_t)(LANES + p.width) * WARPS * sizeof(float);
    WITH_TYPE(card->device.type, T, {
        launch(card, "attention_backward dq", attention_dq_plain_kernel<T>, grid_of(rows), WARPS * LANES, shared, p, rows,
               (const T *)a->qkv, (const T *)a->dout, a->lse, delta, (T *)a->dqkv);
        launch(card, "attention_backward dkv", attention_dkv_plain_kernel<T>, grid_of(key_rows), WARPS * LANES, 2 * shared, p,
               key_rows, (const T *)a->qkv, (const T *)a->dout, a->lse, delta, (T *)a->dqkv);
    })
}

void attention_decode_plain(Card *card, const AttentionDecode *a) {
    AttentionPlan p = attention_plan_of(a);
    int64_t rows = a->batch * a->heads;
    size_t shared = (size_t)(LANES + p.width) * WARPS * sizeof(float);
    WITH_TYPE(card->device.type, T,
              launch(card, "attention_decode", attention_decode_plain_kernel<T>, grid_of(rows), WARPS * LANES, shared, p, rows,
                     a->window, a->capacity, (const T *)a->q, a->q_stride, (const T *)a->keys, (const T *)a->values, a->lengths,
                     (T *)a->out))
}

}  // namespace BACKEND
