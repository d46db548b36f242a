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

// One query, at position q, over keys least .. last: writes out, returns the log-sum-exp. `room`: LANES + width floats of this
// warp.
template <typename T>
__device__ float attend(const AttentionPlan &p, float slope, uint64_t draws, const T *query, const T *keys, const T *values,
                        int least, int last, int q, float *room, T *out) {
    int lane = (int)threadIdx.x % LANES;
    float *weights = room, *y = room + LANES, most = -INFINITY, sum = 0, derivative;
    zero_row(y, p.width);
    for (int begin = least; begin <= last; begin += LANES) {
        int k = begin + lane, count = last - begin + 1 < LANES ? last - begin + 1 : LANES;
        float score = -INFINITY;
        if (k <= last) {
            score = plain_score(p, slope, row_product(query, keys + k * p.k_stride.token, p.width), q, k, &derivative);
        }
        float now = fmaxf(most, warp_max(score)), shrink = expf(most - now), probability = expf(score - now);
        sum = sum * shrink + warp_sum(probability);
        most = now;
        weights[lane] = p.dropout && k <= last ? probability * attention_kept(p, draws, q, k) : probability;
        __syncwarp();
        add_rows(y, shrink, weights, values + begin * p.v_stride.token, p.v_stride.token, count, p.width);
        __syncwarp();
    }
    write_row(y, sum > 0 ? 1 / sum : 0, out, p.width);
    return most + logf(sum);
}

// What the rows of a head's kernels are about.
struct PlainRow {
    int b, h, row, q, least, last;  // query `row`, at position q, sees keys least .. last
};
// Of row `index` of [B,H,Tq].
__device__ __forceinline__ PlainRow plain_row(const AttentionPlan &p, int64_t index) {
    PlainRow r;
    r.row = (int)(index % p.queries);
    r.h = (int)(index / p.queries % p.heads);
    r.b = (int)(index / p.queries / p.heads);
    r.q = r.row + attention_offset(p, r.b);
    r.least = attention_least(p, r.b, r.row);
    r.last = r.q < attention_keys(p, r.b) ? r.q : attention_keys(p, r.b) - 1;
    return r;
}

template <typename T>
__global__ void attention_forward_plain_kernel(const AttentionPlan p, int64_t rows, const T *q, const T *k, const T *v, T *out,
                                               float *lse) {
    DYNAMIC_SHARED(memory);
    int64_t index = (int64_t)blockIdx.x * WARPS + threadIdx.x / LANES;  // [B,H,Tq]
    if (index >= rows) {
        return;
    }
    float *room = (float *)memory + threadIdx.x / LANES * (LANES + p.width);
    PlainRow r = plain_row(p, index);
    float sum =
        attend(p, p.slopes != NULL ? p.slopes[r.h] : 0.0f, attention_draws(p, r.b, r.h),
               q + attention_part(p, p.q_stride, r.b, r.h) + r.row * p.q_stride.token,
               k + attention_part(p, p.k_stride, r.b, r.h / p.share), v + attention_part(p, p.v_stride, r.b, r.h / p.share),
               r.least, r.last, r.q, room, out + (((int64_t)r.b * p.queries + r.row) * p.heads + r.h) * p.width);
    if (threadIdx.x % LANES == 0 && lse != NULL) {
        lse[index] = sum;
    }
}

// dS of one query (row `row`, at position q) and key (without `scale`), and its probability after dropout.
struct PlainWeights {
    float ds, probability;
};
template <typename T>
__device__ __forceinline__ PlainWeights plain_weights(const AttentionPlan &p, int b, int h, int row, int q, int k,
                                                      const T *query, const T *key, const T *value, const T *dout,
                                                      const float *lse, const float *delta) {
    int64_t at = ((int64_t)b * p.heads + h) * p.queries + row;
    float derivative, slope = p.slopes != NULL ? p.slopes[h] : 0.0f;
    float probability = expf(plain_score(p, slope, row_product(query, key, p.width), q, k, &derivative) - lse[at]);
    float factor = p.dropout ? attention_kept(p, attention_draws(p, b, h), q, k) : 1.0f;
    float ds = probability * (row_product(dout, value, p.width) * factor - delta[at]) * derivative;
    return PlainWeights{ds, probability * factor};
}

// What the backward pass reads.
template <typename T> struct PlainInputs {
    const T *q, *k, *v, *dout;
    const float *lse, *delta;
};

template <typename T>
__global__ void attention_dq_plain_kernel(const AttentionPlan p, int64_t rows, const PlainInputs<T> in, T *dq,
                                          HeadStrides stride) {
    DYNAMIC_SHARED(memory);
    int64_t index = (int64_t)blockIdx.x * WARPS + threadIdx.x / LANES;  // [B,H,Tq]
    if (index >= rows) {
        return;
    }
    float *weights = (float *)memory + threadIdx.x / LANES * (LANES + p.width), *y = weights + LANES;
    int lane = (int)threadIdx.x % LANES;
    PlainRow r = plain_row(p, index);
    const T *query = in.q + attention_part(p, p.q_stride, r.b, r.h) + r.row * p.q_stride.token;
    const T *keys = in.k + attention_part(p, p.k_stride, r.b, r.h / p.share);
    const T *values = in.v + attention_part(p, p.v_stride, r.b, r.h / p.share);
    const T *dout = in.dout + (((int64_t)r.b * p.queries + r.row) * p.heads + r.h) * p.width;
    zero_row(y, p.width);
    for (int begin = r.least; begin <= r.last; begin += LANES) {
        int k = begin + lane, count = r.last - begin + 1 < LANES ? r.last - begin + 1 : LANES;
        weights[lane] = 0;
        if (k <= r.last) {
            weights[lane] = plain_weights(p, r.b, r.h, r.row, r.q, k, query, keys + k * p.k_stride.token,
                                          values + k * p.v_stride.token, dout, in.lse, in.delta)
                                .ds;
        }
        __syncwarp();
        add_rows(y, 1, weights, keys + begin * p.k_stride.token, p.k_stride.token, count, p.width);
        __syncwarp();
    }
    write_row(y, p.scale, dq + attention_part(p, stride, r.b, r.h) + r.row * stride.token, p.width);
}

template <typename T>
__global__ void attention_dkv_plain_kernel(const AttentionPlan p, int64_t rows, const PlainInputs<T> in, T *dk,
                                           HeadStrides dk_stride, T *dv, HeadStrides dv_stride) {
    DYNAMIC_SHARED(memory);
    int64_t index = (int64_t)blockIdx.x * WARPS + threadIdx.x / LANES;  // [B,G,Tk]
    if (index >= rows) {
        return;
    }
    float *weights = (float *)memory + threadIdx.x / LANES * 2 * (LANES + p.width), *probabilities = weights + LANES;
    float *dkey = probabilities + LANES, *dvalue = dkey + p.width;
    int lane = (int)threadIdx.x % LANES;
    int k = (int)(index % p.keys), group = (int)(index / p.keys % p.groups), b = (int)(index / p.keys / p.groups);
    int64_t stride = p.q_stride.token, out_stride = (int64_t)p.heads * p.width;
    const T *key = in.k + attention_part(p, p.k_stride, b, group) + k * p.k_stride.token;
    const T *value = in.v + attention_part(p, p.v_stride, b, group) + k * p.v_stride.token;
    int offset = attention_offset(p, b), own = k > offset ? k - offset : 0;  // the first query that stands at k or behind
    zero_row(dkey, p.width);
    zero_row(dvalue, p.width);
    for (int h = group * p.share; h < (group + 1) * p.share; h++) {
        const T *queries = in.q + attention_part(p, p.q_stride, b, h);
        const T *douts = in.dout + ((int64_t)b * p.queries * p.heads + h) * p.width;
        for (int begin = own; begin < p.queries; begin += LANES) {
            int row = begin + lane, count = p.queries - begin < LANES ? p.queries - begin : LANES;
            PlainWeights w = {0, 0};
            bool sees = row < p.queries && attention_least(p, b, row) <= k;
            if (sees) {
                w = plain_weights(p, b, h, row, row + offset, k, queries + row * stride, key, value, douts + row * out_stride,
                                  in.lse, in.delta);
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
    write_row(dkey, p.scale, dk + attention_part(p, dk_stride, b, group) + k * dk_stride.token, p.width);
    write_row(dvalue, 1, dv + attention_part(p, dv_stride, b, group) + k * dv_stride.token, p.width);
}

static dim3 grid_of(int64_t rows) {
    return dim3((unsigned)divide_up(rows, WARPS));
}

void attention_forward_plain(Card *card, const AttentionForward *a) {
    AttentionPlan p = attention_plan(&a->shape, &a->in);
    int64_t rows = (int64_t)p.batch * p.heads * p.queries;
    size_t shared = (size_t)(LANES + p.width) * WARPS * sizeof(float);
    WITH_TYPE(card->device.type, T,
              launch(card, "attention_forward", attention_forward_plain_kernel<T>, grid_of(rows), WARPS * LANES, shared, p,
                     rows, (const T *)a->in.q, (const T *)a->in.k, (const T *)a->in.v, (T *)a->out, a->lse))
}

void attention_backward_plain(Card *card, const AttentionBackward *a, const float *delta) {
    AttentionPlan p = attention_plan(&a->shape, &a->in);
    const AttentionRows *to = &a->gradients;
    int64_t rows = (int64_t)p.batch * p.heads * p.queries, key_rows = (int64_t)p.batch * p.groups * p.keys;
    size_t shared = (size_t)(LANES + p.width) * WARPS * sizeof(float);
    WITH_TYPE(card->device.type, T, {
        PlainInputs<T> in = {(const T *)a->in.q, (const T *)a->in.k, (const T *)a->in.v, (const T *)a->dout, a->lse, delta};
        if (rows > 0) {
            launch(card, "attention_backward dq", attention_dq_plain_kernel<T>, grid_of(rows), WARPS * LANES, shared, p, rows,
                   in, (T *)to->q, to->q_stride);
        }
        if (key_rows > 0) {
            launch(card, "attention_backward dkv", attention_dkv_plain_kernel<T>, grid_of(key_rows), WARPS * LANES, 2 * shared,
                   p, key_rows, in, (T *)to->k, to->k_stride, (T *)to->v, to->v_stride);
        }
    })
}

}  // namespace BACKEND
