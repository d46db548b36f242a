// The update of all parameters on a card, in one launch: contract in kernels.h, formulas in kernels/update.h.
//
// One pass over everything, so bandwidth is the limit. Bytes a parameter with AdamW (bf16 weights):
//
//   fp32 moments       read g 4, m 4, v 4, p 4; write m 4, v 4, p 4, weight 2: 30.  Without masters (weight 2 + 2): 24.
//   eight-bit moments  read g 4, m 1, v 1, p 4; write m 1, v 1, p 4, weight 2: 18.  Without masters:              12.
//
// A thread takes four neighbouring parameters at a time, in 128-bit accesses of everything in fp32. A block walks over a range
// of the optimizer's state: one binary search finds its first segment, and as segments rise, a cursor finds the others. Four
// neighbours from a multiple of four on belong to one segment at most; its last ones are accessed as single values.
//
// Eight-bit moments: a warp takes a block of 256 values, eight a lane, so that the largest magnitude needs no shared memory;
// values of codes and ends of codes are looked up in shared memory, codes computed (kernels/quantize.h). Elements do not depend
// on the grid: deterministic.
#include "kernels/cuda/element.h"
#include "kernels/quantize.h"
#include "kernels/update.h"

namespace BACKEND {

static const int THREADS = 256;
static const int WARPS = THREADS / 32;
static const int GROUP = 4;      // parameters that a thread takes at a time
static const unsigned ALL = 15;  // the mask of a whole group

// x rounded to the type of the weights, without bias.
template <typename T> __device__ __forceinline__ T round_stochastic(float x, uint32_t word);
template <> __device__ __forceinline__ float round_stochastic<float>(float x, uint32_t word) {
    return x;
}
template <> __device__ __forceinline__ bf16 round_stochastic<bf16>(float x, uint32_t word) {
    uint16_t bits = round_stochastic_bf16(x, word);
    return *(bf16 *)&bits;
}
template <> __device__ __forceinline__ fp16 round_stochastic<fp16>(float x, uint32_t word) {
    uint16_t bits = round_stochastic_fp16(x, word);
    return *(fp16 *)&bits;
}

// Four elements in one access (16 or 8 bytes).
template <typename T> struct alignas(GROUP * sizeof(T)) Four { T at[GROUP]; };
template <typename T> __device__ __forceinline__ Four<T> load_four(const T *from) {
    return *(const Four<T> *)from;
}
template <> __device__ __forceinline__ Four<float> load_four<float>(const float *from) {
    Pack<float> pack = load_pack_once(from);
    return *(Four<float> *)&pack;
}
template <typename T> __device__ __forceinline__ void store_four(T *to, const Four<T> &four) {
    *(Four<T> *)to = four;
}
template <> __device__ __forceinline__ void store_four<float>(float *to, const Four<float> &four) {
    store_pack_once(to, *(const Pack<float> *)&four);
}

// The segment that holds the element of the state looked at, or the next one behind it.
struct Cursor {
    int number;
    int64_t begin, end;        // of the state; both the largest number behind the last segment
    int64_t weight, gradient;  // what to add to a place in the state
};

__device__ __forceinline__ void cursor_set(const OptimizerUpdate &a, Cursor *c, int number) {
    c->number = number;
    c->begin = c->end = INT64_MAX;
    if (number < a.segment_count) {
        const UpdateSegment *s = &a.segments[number];
        c->begin = s->state;
        c->end = s->state + s->count;
        c->weight = s->weight - s->state;
        c->gradient = s->gradient - s->state;
    }
}

__device__ __forceinline__ Cursor cursor_find(const OptimizerUpdate &a, int64_t at) {
    int low = 0, high = (int)a.segment_count;
    while (low < high) {
        int middle = (low + high) / 2;
        if (a.segments[middle].state + a.segments[middle].count > at) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Cursor cursor = {};
    cursor_set(a, &cursor, low);
    return cursor;
}

__device__ __forceinline__ void cursor_advance(const OptimizerUpdate &a, Cursor *c, int64_t at) {
    while (c->end <= at) {
        cursor_set(a, c, c->number + 1);
    }
}

// Which of the elements at .. + GROUP of the state lie in the cursor's segment, a bit each.
__device__ __forceinline__ unsigned cursor_mask(const Cursor &c, int64_t at) {
    int64_t left = c.end - at;
    return c.begin > at || left <= 0 ? 0 : left >= GROUP ? ALL : (1u << left) - 1;
}

// The elements of `mask`, zeros elsewhere.
template <typename T> __device__ __forceinline__ Four<T> load_masked(const T *from, unsigned mask) {
    Four<T> four = {};
    if (mask == ALL) {
        four = load_four(from);
    } else {
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            if (mask >> i & 1) {
                four.at[i] = from[i];
            }
        }
    }
    return four;
}
template <typename T> __device__ __forceinline__ void store_masked(T *to, const Four<T> &four, unsigned mask) {
    if (mask == ALL) {
        store_four(to, four);
    } else {
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            if (mask >> i & 1) {
                to[i] = four.at[i];
            }
        }
    }
}

// Updates those of the parameters at .. + GROUP of the state that are in `mask`, all of the cursor's segment. Of m and v, only
// what is in `mask` changes.
template <typename T>
__device__ __forceinline__ void update_group(const OptimizerUpdate &a, const Cursor &cursor, int64_t at, unsigned mask,
                                             Four<float> *m, Four<float> *v) {
    const StepControl *c = a.control;
    const UpdateSegment *s = &a.segments[cursor.number];
    UpdateRule rule;
    rule.beta1 = a.beta1;
    rule.beta2 = a.beta2;
    rule.epsilon = a.epsilon;
    rule.correction1 = c->correction1;
    rule.correction2 = c->correction2;
    rule.rate = c->learning_rate * s->rate_scale;
    rule.decay = s->weight_decay;
    float scale = c->grad_scale;
    Four<float> g = load_masked(a.grads + cursor.gradient + at, mask), p = {};
    T *weights = (T *)a.weights + cursor.weight + at;
    if (a.masters != NULL) {
        p = load_masked(a.masters + at, mask);
    } else {
        Four<T> rounded = load_masked(weights, mask);
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            p.at[i] = to_float(rounded.at[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
        float one = m->at[i], two = v->at[i], gradient = g.at[i] * scale;
        p.at[i] = a.kind == OPTIMIZER_ADAMW  ? update_adamw(rule, gradient, p.at[i], &one, &two)
                  : a.kind == OPTIMIZER_LION ? update_lion(rule, gradient, p.at[i], &one)
                                             : update_sgd(rule, gradient, p.at[i], &one);
        m->at[i] = mask >> i & 1 ? one : m->at[i];
        v->at[i] = mask >> i & 1 ? two : v->at[i];
    }
    Four<T> rounded;
    if (a.masters != NULL) {
        store_masked(a.masters + at, p, mask);
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            rounded.at[i] = from_float<T>(p.at[i]);
        }
    } else {
        uint64_t stream = philox_stream(RANDOM_ROUNDING, (uint64_t)c->updates);
        Philox random = philox(a.seed, stream, (s->random + (uint64_t)(at - cursor.begin)) / GROUP);
#pragma unroll
        for (int i = 0; i < GROUP; i++) {
            rounded.at[i] = round_stochastic<T>(p.at[i], random.word[i]);
        }
    }
    store_masked(weights, rounded, mask);
}

// A block updates `range` neighbouring elements of the state.
template <typename T> static __global__ void __launch_bounds__(THREADS, 4) update_fp32(OptimizerUpdate a, int64_t range) {
    if (a.control->skip) {
        return;
    }
    int64_t begin = blockIdx.x * range, end = min(a.count, begin + range);
    Cursor cursor = cursor_find(a, begin);
    for (int64_t at = begin + threadIdx.x * GROUP; at < end; at += THREADS * GROUP) {
        cursor_advance(a, &cursor, at);
        unsigned mask = cursor_mask(cursor, at);
        if (mask == 0) {
            continue;  // between segments
        }
        float *moment1 = (float *)a.moment1 + at, *moment2 = (float *)a.moment2 + at;
        Four<float> m = load_masked(moment1, mask), v = {};
        if (a.kind == OPTIMIZER_ADAMW) {
            v = load_masked(moment2, mask);
        }
        update_group<T>(a, cursor, at, mask, &m, &v);
        store_masked(moment1, m, mask);
        if (a.kind == OPTIMIZER_ADAMW) {
            store_masked(moment2, v, mask);
        }
    }
}

struct CodeTables {
    float value1[MOMENT_CODES], end1[MOMENT_CODES], value2[MOMENT_CODES], end2[MOMENT_CODES];
    CodeLine lines[CODE_LINES];
};

// Each of MOMENT_CODES threads its part.
__device__ __forceinline__ void fill_tables(CodeTables *tables, int code) {
    int last = code < MOMENT_CODES - 1 ? code : MOMENT_CODES - 2;  // the last code has no end
    tables->value1[code] = code_value(1, code);
    tables->value2[code] = code_value(0, code);
    tables->end1[code] = code_end(1, last);
    tables->end2[code] = code_end(0, last);
    if (code < CODE_LINES) {
        tables->lines[code] = code_line(code);
    }
}

// The values of `mask`, zeros elsewhere.
__device__ __forceinline__ Four<float> decode_four(const float *value, const uint8_t *codes, unsigned mask, float scale) {
    Four<uint8_t> four = load_four(codes);
    Four<float> out;
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
        out.at[i] = mask >> i & 1 ? value[four.at[i]] * scale : 0;
    }
    return out;
}

template <bool SIGNED>
__device__ __forceinline__ void encode_four(const CodeLine *lines, const float *end, const Four<float> &x, float inverse,
                                            uint8_t *codes) {
    Four<uint8_t> four;
#pragma unroll
    for (int i = 0; i < GROUP; i++) {
        float y = x.at[i] * inverse;
        four.at[i] = (uint8_t)(SIGNED ? code_nearest(lines, end, y) : code_nearest_unsigned(lines, end, y));
    }
    store_four(codes, four);
}

__device__ __forceinline__ float largest_of(const Four<float> &x) {
    return fmaxf(fmaxf(fabsf(x.at[0]), fabsf(x.at[1])), fmaxf(fabsf(x.at[2]), fabsf(x.at[3])));
}

static const int HALVES = MOMENT_BLOCK / (32 * GROUP);  // groups of a lane in a block of moments

template <typename T> static __global__ void __launch_bounds__(THREADS, 3) update_8bit(OptimizerUpdate a, int64_t range) {
    SHARED(CodeTables, tables, [1]);
    if (a.control->skip) {
        return;
    }
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    bool adamw = a.kind == OPTIMIZER_ADAMW;
    fill_tables(tables, (int)threadIdx.x);
    __syncthreads();
    int64_t begin = blockIdx.x * range, end = min(a.count, begin + range);
    Cursor cursor = cursor_find(a, begin);
    for (int64_t block = begin + warp * MOMENT_BLOCK; block < end; block += WARPS * MOMENT_BLOCK) {
        cursor_advance(a, &cursor, block);
        if (cursor.begin > block) {
            continue;  // between segments
        }
        int64_t number = block / MOMENT_BLOCK;
        float scale1 = a.scale1[number], scale2 = adamw ? a.scale2[number] : 0, largest1 = 0, largest2 = 0;
        Four<float> m[HALVES], v[HALVES];
        uint8_t *codes1 = (uint8_t *)a.moment1 + block, *codes2 = (uint8_t *)a.moment2 + block;
#pragma unroll
        for (int h = 0; h < HALVES; h++) {
            int place = (h * 32 + lane) * GROUP;
            unsigned mask = cursor_mask(cursor, block + place);
            m[h] = decode_four(tables->value1, codes1 + place, mask, scale1);
            v[h] = {};
            if (adamw) {
                v[h] = decode_four(tables->value2, codes2 + place, mask, scale2);
            }
        }
#pragma unroll
        for (int h = 0; h < HALVES; h++) {
            int64_t at = block + (h * 32 + lane) * GROUP;
            update_group<T>(a, cursor, at, cursor_mask(cursor, at), &m[h], &v[h]);
            largest1 = fmaxf(largest1, largest_of(m[h]));
            largest2 = fmaxf(largest2, largest_of(v[h]));
        }
        scale1 = block_scale(warp_max(largest1));
        scale2 = block_scale(warp_max(largest2));
        float inverse1 = block_inverse(scale1), inverse2 = block_inverse(scale2);
#pragma unroll
        for (int h = 0; h < HALVES; h++) {
            int place = (h * 32 + lane) * GROUP;
            encode_four<true>(tables->lines, tables->end1, m[h], inverse1, codes1 + place);
            if (adamw) {
                encode_four<false>(tables->lines, tables->end2, v[h], inverse2, codes2 + place);
            }
        }
        if (lane == 0) {
            a.scale1[number] = scale1;
            if (adamw) {
                a.scale2[number] = scale2;
            }
        }
    }
}

void optimizer_update(Device *device, const OptimizerUpdate *a) {
    ensure((a->moment2 != NULL) == (a->kind == OPTIMIZER_ADAMW), "an update with the wrong moments");
    bool eight_bit = a->moment_type == MOMENT_8BIT;
    ensure(!eight_bit || a->count % MOMENT_BLOCK == 0, "eight-bit moments in parts of blocks");
    Card *card = card_of(device);
    // Many ranges for each multiprocessor, so that all finish together; fewer where each first fills its tables.
    int64_t step = eight_bit ? WARPS * MOMENT_BLOCK : THREADS * GROUP, steps = divide_up(a->count, step);
    int64_t range = divide_up(steps, (int64_t)card->multiprocessors * (eight_bit ? 8 : 32)) * step;
    dim3 grid((unsigned)(a->count > 0 ? divide_up(a->count, range) : 0));
    WITH_TYPE(device->type, T,
              launch(card, "optimizer update", eight_bit ? update_8bit<T> : update_fp32<T>, grid, THREADS, 0, *a, range));
}

}  // namespace BACKEND
