// Attention of one query per sequence over a cache of keys and values, a body of attention_forward. The cache is read once, so
// memory bandwidth is the limit and the tensor cores would have nothing to do.
//
// A block takes up to four heads of a group (they share the keys; registers hold no more, and further ones find the keys in
// the second-level cache) and a part of the sequence's keys, 64 at a time. Lanes lie along the head width, eight elements each;
// where the width needs fewer than 32 lanes, a warp looks at several keys at once:
//
//     scores   each warp its keys: a product per head, summed over the lanes of a key     -> shared memory
//     softmax  each warp its heads: running maximum and sum; scores become probabilities
//     values   each thread adds its eight columns of its keys; over threads they are summed once, at the end
//
// Few sequences and heads would leave most multiprocessors idle: then the keys are split among several blocks, and a second
// kernel combines their results, in the order of the splits. How many splits follows from the shape and the card alone, so the
// result is deterministic.
#include "kernels/cuda/attention.h"

namespace BACKEND {

static const float ln_2 = 0.693147180559945f;

enum { WARPS = 4, THREADS = 32 * WARPS, CHUNK = 64, ELEMENTS = 8, MOST_WIDTH = 32 * ELEMENTS };

struct DecodeWork {
    int splits, sections, lanes;  // sections of a group's heads; lanes of a key
    // Of each split: out before the division by the sum [splits, B H, D], and maximum and sum [splits, B H, 2].
    float *partial, *state;
};

template <typename T, int HEADS>
__global__ void __launch_bounds__(THREADS) attention_decode_kernel(const AttentionPlan p, const DecodeWork w, const T *q,
                                                                   const T *keys, const T *values, T *out, float *lse) {
    SHARED(float, scores, [HEADS][CHUNK]);
    SHARED(float, shrink, [HEADS]);
    SHARED(float, most, [HEADS]);
    SHARED(float, sum, [HEADS]);
    SHARED(float, columns, [WARPS][MOST_WIDTH]);
    int index = (int)blockIdx.x, split = index % w.splits, section = index / w.splits % w.sections;
    int group = index / w.splits / w.sections % p.groups, b = index / w.splits / w.sections / p.groups;
    int first_head = group * p.share + section * HEADS, left = p.share - section * HEADS, heads = left < HEADS ? left : HEADS;
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, part = lane % w.lanes * ELEMENTS, mine = lane / w.lanes;
    int step = 32 / w.lanes;  // keys that a warp looks at at once
    bool active = part < p.width;

    int length = attention_keys(p, b), begin = attention_least(p, b, 0);
    begin = begin < length ? begin : length;
    int each = ((length - begin + w.splits - 1) / w.splits + CHUNK - 1) / CHUNK * CHUNK;
    int end = begin + (split + 1) * each < length ? begin + (split + 1) * each : length;
    begin += split * each;

    float query[HEADS][ELEMENTS], y[HEADS][ELEMENTS];
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        Pack<T> pack = {};
        if (active && h < heads) {
            pack = load_pack(q + attention_part(p, p.q_stride, b, first_head + h) + part);
        }
#pragma unroll
        for (int i = 0; i < ELEMENTS; i++) {
            query[h][i] = active && h < heads ? to_float(pack.at[i]) : 0.0f;
            y[h][i] = 0;
        }
    }
    if ((int)threadIdx.x < HEADS) {
        most[threadIdx.x] = -INFINITY;
        sum[threadIdx.x] = 0;
    }
    keys += attention_part(p, p.k_stride, b, group) + part;
    values += attention_part(p, p.v_stride, b, group) + part;
    for (int chunk = begin; chunk < end; chunk += CHUNK) {
#pragma unroll 4
        for (int at = warp * step + mine; at < CHUNK; at += WARPS * step) {
            int k = chunk + at;
            Pack<T> key = {};
            if (active && k < end) {
                key = load_pack_once(keys + k * p.k_stride.token);
            }
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                float dot = 0, derivative;
#pragma unroll
                for (int i = 0; i < ELEMENTS; i++) {
                    dot += active && k < end ? query[h][i] * to_float(key.at[i]) : 0.0f;
                }
                for (int offset = w.lanes / 2; offset > 0; offset /= 2) {
                    dot += __shfl_xor_sync(0xFFFFFFFFu, dot, offset);
                }
                if (part == 0) {
                    float slope = h < heads ? attention_slope(p, first_head + h) : 0.0f;
                    scores[h][at] = k < end ? attention_score(p, slope, dot, length - 1, k, &derivative) : -INFINITY;
                }
            }
        }
        __syncthreads();
        for (int h = warp; h < HEADS; h += WARPS) {
            float one = scores[h][lane], two = scores[h][lane + 32], before = most[h];
            float now = fmaxf(before, warp_max(fmaxf(one, two)));
            one = exp2_fast(one - now);
            two = exp2_fast(two - now);
            scores[h][lane] = one;
            scores[h][lane + 32] = two;
            float total = warp_sum(one + two);
            if (lane == 0) {
                shrink[h] = exp2_fast(before - now);
                sum[h] = sum[h] * shrink[h] + total;
                most[h] = now;
            }
        }
        __syncthreads();
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
#pragma unroll
            for (int i = 0; i < ELEMENTS; i++) {
                y[h][i] *= shrink[h];
            }
        }
#pragma unroll 4
        for (int at = warp * step + mine; at < CHUNK; at += WARPS * step) {
            int k = chunk + at;
            if (active && k < end) {
                Pack<T> value = load_pack_once(values + k * p.v_stride.token);
#pragma unroll
                for (int h = 0; h < HEADS; h++) {
#pragma unroll
                    for (int i = 0; i < ELEMENTS; i++) {
                        y[h][i] += scores[h][at] * to_float(value.at[i]);
                    }
                }
            }
        }
        __syncthreads();  // the scores have been read
    }

    __syncthreads();
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
#pragma unroll
        for (int i = 0; i < ELEMENTS; i++) {
            for (int offset = w.lanes; offset < 32; offset *= 2) {
                y[h][i] += __shfl_xor_sync(0xFFFFFFFFu, y[h][i], offset);
            }
            if (lane < w.lanes) {
                columns[warp][part + i] = y[h][i];
            }
        }
        __syncthreads();
        int64_t row = (int64_t)b * p.heads + first_head + h, rows = (int64_t)p.batch * p.heads;
        for (int d = (int)threadIdx.x; d < p.width && h < heads; d += THREADS) {
            float total = 0;
            for (int other = 0; other < WARPS; other++) {
                total += columns[other][d];
            }
            if (w.splits == 1) {
                out[row * p.width + d] = from_float<T>(sum[h] > 0 ? total / sum[h] : 0.0f);
            } else {
                w.partial[(split * rows + row) * p.width + d] = total;
            }
        }
        if (threadIdx.x == 0 && h < heads) {
            if (w.splits > 1) {
                w.state[(split * rows + row) * 2] = most[h];
                w.state[(split * rows + row) * 2 + 1] = sum[h];
            } else if (lse != NULL) {
                lse[row] = most[h] * ln_2 + logf(sum[h]);
            }
        }
        __syncthreads();
    }
}

// One warp a row of B H.
template <typename T>
__global__ void __launch_bounds__(THREADS) attention_combine_kernel(int64_t rows, int width, int splits, const float *partial,
                                                                    const float *state, T *out, float *lse) {
    int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= rows) {
        return;
    }
    float most = -INFINITY, sum = 0;
    for (int s = 0; s < splits; s++) {
        most = fmaxf(most, state[(s * rows + row) * 2]);
    }
    float zero = most == -INFINITY ? 0.0f : most;  // no keys at all
    for (int s = 0; s < splits; s++) {
        sum += state[(s * rows + row) * 2 + 1] * exp2_fast(state[(s * rows + row) * 2] - zero);
    }
    for (int d = (int)threadIdx.x % 32; d < width; d += 32) {
        float total = 0;
        for (int s = 0; s < splits; s++) {
            total += partial[(s * rows + row) * width + d] * exp2_fast(state[(s * rows + row) * 2] - zero);
        }
        out[row * width + d] = from_float<T>(sum > 0 ? total / sum : 0.0f);
    }
    if (lse != NULL && threadIdx.x % 32 == 0) {
        lse[row] = most * ln_2 + logf(sum);
    }
}

template <typename T, int HEADS> static void decode(Card *card, const AttentionForward *a) {
    AttentionPlan p = attention_plan(&a->shape, &a->in);
    DecodeWork w = {};
    w.sections = (int)divide_up(p.share, HEADS);
    for (w.lanes = 1; w.lanes * ELEMENTS < p.width;) {
        w.lanes *= 2;
    }
    // Four blocks a multiprocessor, but at least 256 keys a block where all of the cache is in use.
    int64_t rows = (int64_t)p.batch * p.heads, blocks = (int64_t)p.batch * p.groups * w.sections;
    int64_t seen = p.window < p.keys ? p.window : p.keys;
    int64_t wanted = divide_up((int64_t)4 * card->multiprocessors, blocks), most = divide_up(seen, 256);
    w.splits = (int)(wanted < most ? wanted : most);
    if (w.splits > 1) {
        w.partial = (float *)card_workspace(card, sizeof(float) * (size_t)(w.splits * rows * (p.width + 2)));
        if (w.partial == NULL) {
            return;  // the card remembers the failure
        }
        w.state = w.partial + w.splits * rows * p.width;
    }
    launch(card, "attention_decode", attention_decode_kernel<T, HEADS>, dim3((unsigned)(blocks * w.splits)), THREADS, 0, p, w,
           (const T *)a->in.q, (const T *)a->in.k, (const T *)a->in.v, (T *)a->out, a->lse);
    if (w.splits > 1) {
        launch(card, "attention_decode combine", attention_combine_kernel<T>, dim3((unsigned)divide_up(rows, WARPS)), THREADS,
               0, rows, p.width, w.splits, w.partial, w.state, (T *)a->out, a->lse);
    }
}

template <typename T> static void decode_heads(Card *card, const AttentionForward *a) {
    if (a->shape.heads == a->shape.groups) {
        decode<T, 1>(card, a);
    } else {
        decode<T, 4>(card, a);
    }
}

bool attention_decode(Card *card, const AttentionForward *a) {
    const AttentionShape *s = &a->shape;
    if (s->queries != 1 || s->key_lengths == NULL || s->dropout > 0 || !attention_packs(card, s, &a->in)) {
        return false;
    }
    if (card->device.type == TYPE_BF16) {
        decode_heads<bf16>(card, a);
    } else {
        decode_heads<fp16>(card, a);
    }
    return true;
}

}  // namespace BACKEND
