// What the bodies of attention share: the score of a query and a key, what a query may see, which blocks meet, dropout.
//
// The operation's contract is in kernels/kernels.h. Two bodies compute it: the portable one (attention.cu, attention_*_sm80.cu)
// and Hopper's (attention_*_sm90.cu), which returns false where it does not apply.
//
//   score      z = scale q.k; z = c tanh(z / c) with a soft-cap; z += slope[h] (k - q) with slopes. In units of log2 (times
//              log2 e), so that the exponential is one instruction: p = 2^(z - max).
//   place      query t of a sequence stands at position t + attention_offset; rows are numbers of queries, q is a position.
//   sight      a query sees the keys attention_least .. q, as far as there are such. attention_least does not decrease with the
//              query (neither first[] nor the window's edge does), and all skipping of blocks rests on that: the keys that a
//              block of queries needs begin at the least of its first row; the queries that a block of keys needs end where the
//              least passes its last key. A block always meets one other, if only to find everything masked: so rows that see
//              nothing need no code of their own but the division by their sum of 0.
//   dropout    a function of (seed, stream, sample, head, q, k) alone, so every body, block shape and pass draws the same.
#pragma once

#include "kernels/cuda/ptx.h"

namespace BACKEND {

// What no position exceeds.
enum { ATTENTION_FAR = 1 << 29 };

// One launch, by value in the kernels' parameters.
struct AttentionPlan {
    int batch, queries, keys, heads, groups, share, width;  // share: query heads of a group
    int offset;                                             // where there are no key_lengths
    int window;                                             // ATTENTION_FAR where there is none
    const int32_t *key_lengths;                             // [B] or NULL
    HeadStrides q_stride, k_stride, v_stride;               // of the inputs
    float scale, scale_log2;                                // scale * log2 e
    bool modified;                                          // softcap or slopes: the score is not just scale q.k
    float cap, cap_in, cap_log2;                            // the soft-cap c (0: none), scale / c, c * log2 e
    const float *slopes;                                    // [H] or NULL
    const int32_t *first;                                   // [B,Tq] or NULL
    bool dropout;
    uint32_t threshold;  // kept where the word is not less
    float keep_scale;    // 1 / (1 - dropout)
    uint64_t seed, stream, first_head;
    int32_t all_heads;      // of a sequence, those of other ranks too
    int key_first, length;  // of the whole sequence
};

static inline AttentionPlan attention_plan(const AttentionShape *s, const AttentionRows *in) {
    ensure(s->groups > 0 && s->heads % s->groups == 0, "%d heads in %d groups", s->heads, s->groups);
    ensure(s->scale > 0, "scale %g", (double)s->scale);
    ensure(s->dropout >= 0 && s->dropout < 1, "dropout %g", (double)s->dropout);
    ensure(s->queries < ATTENTION_FAR && s->keys < ATTENTION_FAR && s->batch <= INT32_MAX, "a batch too large");
    ensure(s->offset >= -ATTENTION_FAR && s->offset + s->queries <= ATTENTION_FAR, "offset %lld", (long long)s->offset);
    const double log2_e = 1.4426950408889634;
    AttentionPlan p = {};
    p.batch = (int)s->batch;
    p.queries = (int)s->queries;
    p.keys = (int)s->keys;
    p.offset = (int)s->offset;
    p.key_lengths = s->key_lengths;
    p.q_stride = in->q_stride;
    p.k_stride = in->k_stride;
    p.v_stride = in->v_stride;
    p.heads = s->heads;
    p.groups = s->groups;
    p.share = s->heads / s->groups;
    p.width = s->head_width;
    p.window = s->window > 0 && s->window < ATTENTION_FAR ? (int)s->window : ATTENTION_FAR;
    p.scale = s->scale;
    p.scale_log2 = (float)((double)s->scale * log2_e);
    p.modified = s->softcap > 0 || s->slopes != NULL;
    p.cap = s->softcap;
    p.cap_in = s->softcap > 0 ? (float)((double)s->scale / (double)s->softcap) : 0;
    p.cap_log2 = (float)((double)s->softcap * log2_e);
    p.slopes = s->slopes;
    p.first = s->first;
    p.dropout = s->dropout > 0;
    double words = (double)s->dropout * 4294967296.0;  // exact; the least whole number that is not less
    uint64_t whole = (uint64_t)words;
    p.threshold = (uint32_t)(whole + ((double)whole < words));
    p.keep_scale = 1.0f / (1.0f - s->dropout);
    p.seed = s->seed;
    p.stream = s->stream;
    p.all_heads = s->all_heads > 0 ? s->all_heads : s->heads;
    p.first_head = s->first_sample * (uint64_t)p.all_heads + (uint64_t)s->first_head;
    ensure(s->key_first >= 0 && s->key_first <= ATTENTION_FAR && s->length <= ATTENTION_FAR, "a sequence too long");
    p.key_first = (int)s->key_first;
    p.length = (int)(s->length > 0 ? s->length : s->keys);
    return p;
}

// True where the bodies of 16-bit types can load these rows: whole chunks of 16 bytes, aligned, and heads of up to 256 columns;
// and there are some.
static inline bool attention_packs(const Card *card, const AttentionShape *s, const AttentionRows *rows) {
    int64_t odd = s->head_width | rows->q_stride.token | rows->q_stride.sequence | rows->k_stride.token |
                  rows->k_stride.sequence | rows->v_stride.token | rows->v_stride.sequence;
    int64_t far = rows->q_stride.token | rows->k_stride.token | rows->v_stride.token;
    return card->device.type != TYPE_FP32 && far <= INT32_MAX && s->queries > 0 && s->keys > 0 && odd % 8 == 0 &&
           s->head_width <= 256 && aligned_16(rows->q) && aligned_16(rows->k) && aligned_16(rows->v);
}

// Elements from a tensor's start to the head's part of the first token of sequence b.
__device__ __forceinline__ int64_t attention_part(const AttentionPlan &p, HeadStrides stride, int b, int head) {
    return (int64_t)b * stride.sequence + (int64_t)head * p.width;
}

// ---- The score, in units of log2

// tanh(x) to a few units in the last place: a score is c times it, so tanh_fast's error would show in every probability. Near 0
// a polynomial; elsewhere 1 - 2 / (e^2x + 1), which is right at both ends: e^2x overflows to infinity or vanishes.
__device__ __forceinline__ float attention_tanh(float x) {
    float square = x * x, p = 0x1.197b80p-9f;
    p = fmaf(p, square, -0x1.0c2148p-7f);
    p = fmaf(p, square, 0x1.6394dap-6f);
    p = fmaf(p, square, -0x1.b9ef7cp-5f);
    p = fmaf(p, square, 0x1.11106cp-3f);
    p = fmaf(p, square, -0x1.555554p-2f);
    float far = 1.0f - __fdividef(2.0f, 1.0f + exp2_fast(x * 2.8853900817779268f));
    return fabsf(x) < 0.625f ? fmaf(p * square, x, x) : far;
}

// The soft-capped score of the product `dot` = q.k, without slopes, where p.cap > 0; *derivative is that of the score by
// scale dot.
__device__ __forceinline__ float attention_capped(const AttentionPlan &p, float dot, float *derivative) {
    float t = attention_tanh(dot * p.cap_in);
    *derivative = 1.0f - t * t;
    return t * p.cap_log2;
}

// slopes[h] in units of log2, 0 where there are none: the score gains attention_slope * (k - q).
__device__ __forceinline__ float attention_slope(const AttentionPlan &p, int h) {
    return p.slopes != NULL ? p.slopes[h] * 1.4426950408889634f : 0.0f;
}

// The whole score of `dot`, in any case.
__device__ __forceinline__ float attention_score(const AttentionPlan &p, float slope, float dot, int q, int k,
                                                 float *derivative) {
    *derivative = 1.0f;
    float score = p.cap > 0 ? attention_capped(p, dot, derivative) : dot * p.scale_log2;
    return score + slope * (float)(k - q);
}

// ---- Sight

// The keys of sequence b, and the position of its query 0. ALIKE: there are no key_lengths, said where registers are scarce.
template <bool ALIKE = false> __device__ __forceinline__ int attention_keys(const AttentionPlan &p, int b) {
    return !ALIKE && p.key_lengths != NULL ? p.key_lengths[b] : p.keys;
}
template <bool ALIKE = false> __device__ __forceinline__ int attention_offset(const AttentionPlan &p, int b) {
    return !ALIKE && p.key_lengths != NULL ? p.key_lengths[b] - p.queries : p.offset;
}

// The first key that row `row` of sequence b sees, 0 .. Tk. Rows from Tq on (padding of a block) see what the last row does.
template <bool ALIKE = false> __device__ __forceinline__ int attention_least(const AttentionPlan &p, int b, int row) {
    row = row < p.queries ? row : p.queries - 1;
    int least = p.first != NULL ? p.first[(int64_t)b * p.queries + row] : 0,
        edge = row + attention_offset<ALIKE>(p, b) - p.window + 1;
    least = least > edge ? least : edge;
    least = least > 0 ? least : 0;
    return least < p.keys ? least : p.keys;
}

// Blocks begin .. end - 1 meet, at least one; of these whole_begin .. whole_end - 1 (perhaps none) need no mask.
struct AttentionBlocks {
    int begin, end, whole_begin, whole_end;
};

// The blocks of KEYS keys that the ROWS queries from `row` on need.
template <int ROWS, int KEYS, bool ALIKE = false>
__device__ __forceinline__ AttentionBlocks attention_key_blocks(const AttentionPlan &p, int b, int row) {
    int last = row + ROWS < p.queries ? row + ROWS - 1 : p.queries - 1;
    int offset = attention_offset<ALIKE>(p, b), keys = attention_keys<ALIKE>(p, b);
    int seen = last + offset + 1, all_see = row + offset + 1;  // behind the last key that some see, that all see
    seen = seen < keys ? seen : keys;
    all_see = all_see < keys ? all_see : keys;
    AttentionBlocks blocks;
    blocks.begin = attention_least<ALIKE>(p, b, row) / KEYS;
    blocks.end = seen > blocks.begin * KEYS ? (seen - 1) / KEYS + 1 : blocks.begin + 1;
    blocks.whole_begin = (attention_least<ALIKE>(p, b, last) + KEYS - 1) / KEYS;
    blocks.whole_end = all_see > 0 ? all_see / KEYS : 0;
    return blocks;
}

// The first of the blocks `from` .. `end` - 1 of ROWS queries whose row `row` does not see back to `key`. A warp calls together
// and looks at 32 blocks at a time.
template <int ROWS>
__device__ __forceinline__ int attention_blind(const AttentionPlan &p, int b, int row, int key, int from, int end) {
    while (from < end) {
        int step = (end - from + 31) / 32, at = from + (int)(threadIdx.x % 32) * step;
        bool sees = at < end && attention_least(p, b, at * ROWS + row) <= key;
        int count = __popc(__ballot_sync(0xFFFFFFFFu, sees));  // those that see come first
        if (count == 0) {
            break;
        }
        int blind = from + count * step;
        end = blind < end ? blind : end;
        from += (count - 1) * step + 1;
    }
    return from;
}

// The blocks of ROWS queries that need the KEYS keys from `key` on. Queries from Tq on are not masked: give them a log-sum-exp
// of infinity. Neither are keys from Tk on: what they get is nobody's.
template <int ROWS, int KEYS>
__device__ __forceinline__ AttentionBlocks attention_query_blocks(const AttentionPlan &p, int b, int key) {
    int all = (p.queries + ROWS - 1) / ROWS, keys = attention_keys(p, b), last = key + KEYS < keys ? key + KEYS - 1 : keys - 1;
    int own = key - attention_offset(p, b), own_last = own + KEYS - 1;  // the rows that stand at the first and last key
    AttentionBlocks blocks;
    blocks.begin = own > 0 ? own / ROWS : 0;
    blocks.begin = blocks.begin < all ? blocks.begin : all - 1;
    blocks.end = attention_blind<ROWS>(p, b, 0, last, blocks.begin, all);
    blocks.whole_begin = own_last > 0 ? (own_last + ROWS - 1) / ROWS : 0;
    blocks.whole_end = attention_blind<ROWS>(p, b, ROWS - 1, key, blocks.begin, blocks.end);
    blocks.end = blocks.end > blocks.begin ? blocks.end : blocks.begin + 1;
    return blocks;
}

// ---- The order of blocks

// Which (sequence, head, block) block `index` of a grid of batch * heads * blocks works on. The longest first, so that short
// ones fill the last wave: the last block of queries sees most keys (`last_longest`), the first block of keys is seen by most
// queries. But only `near` heads at a time, as many as the second-level cache holds the keys and values of.
struct AttentionPlace {
    int b, head, block;
};
__device__ __forceinline__ AttentionPlace attention_place(int64_t index, int batch, int heads, int blocks, int near,
                                                          bool last_longest) {
    int64_t all = (int64_t)batch * heads, section = index / ((int64_t)near * blocks), start = section * near;
    int64_t within = index - start * blocks;
    int count = (int)(all - start < near ? all - start : near);
    int64_t pair = start + within % count;
    int block = (int)(within / count);
    return AttentionPlace{(int)(pair / heads), (int)(pair % heads), last_longest ? blocks - 1 - block : block};
}
// `near` for heads of `bytes` each.
static inline int attention_near(int64_t bytes) {
    const int64_t cache = 16 << 20;
    return bytes * 4 < cache ? (int)(cache / (bytes > 0 ? bytes : 1)) : 4;
}

// ---- Dropout

// The index of the first position's query and key of a head; those of others are less than length^2 more.
__device__ __forceinline__ uint64_t attention_draws(const AttentionPlan &p, int b, int h) {
    return (p.first_head + (uint64_t)b * (uint64_t)p.all_heads + (uint64_t)h) * (uint64_t)p.length * (uint64_t)p.length;
}
// The factor of a probability: 0 or 1 / (1 - dropout).
__device__ __forceinline__ float attention_kept(const AttentionPlan &p, uint64_t draws, int q, int k) {
    uint64_t index = draws + (uint64_t)(q + p.key_first) * (uint64_t)p.length + (uint64_t)(k + p.key_first);
    return philox(p.seed, p.stream, index).word[0] >= p.threshold ? p.keep_scale : 0.0f;
}

// ---- Bodies

// delta[B,H,Tq] = sum over d of dout out, in fp32: what the backward pass needs of a query's row beside its log-sum-exp.
void attention_delta(Card *card, const AttentionBackward *a, float *delta);

// Hopper's bodies: false where they do not apply to this launch (then nothing was done).
bool attention_forward_sm90(Card *card, const AttentionForward *a);
bool attention_backward_sm90(Card *card, const AttentionBackward *a);

// The plain body, one warp a row: any type, width and address. For fp32, where it is a means to find faults rather than to
// train.
void attention_forward_plain(Card *card, const AttentionForward *a);
void attention_backward_plain(Card *card, const AttentionBackward *a, const float *delta);

// The portable bodies on tensor cores; false for types, widths and addresses that they do not take.
bool attention_forward_sm80(Card *card, const AttentionForward *a);
bool attention_backward_sm80(Card *card, const AttentionBackward *a, const float *delta);

// One query a sequence at the end of its keys, 16-bit types, without dropout; false for others.
bool attention_decode(Card *card, const AttentionForward *a);

}  // namespace BACKEND
