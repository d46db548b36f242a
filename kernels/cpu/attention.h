// What attention's forward and backward pass share: blocks of queries and keys, what a query may see, dropout of probabilities.
//
// Both walk blocks of BLOCK queries against blocks of BLOCK keys. Scores are kept transposed, scores[key][query], so that
// the lanes of a vector are queries: sums and maxima over keys are then plain vector operations, and all products read their
// factors in the layout in which they lie:
//
//     scores^T [key][query] = K [key][d]      (Q^T [d][query])        K by elements, Q^T by vectors
//     out      [query][d]   = P^T transposed  (V   [key][d])          P^T by elements, V by vectors
//
// Blocks start at multiples of BLOCK, so where the offset is one too, a pair of blocks is either whole or on the diagonal; on
// the diagonal the work is cut into strips of STRIP keys or queries and what no query sees is not computed. With other offsets
// pairs on an edge are computed whole and masked. The exponential is 2^x: scores are multiplied by
// scale * log2(e) on the way into it.
#pragma once

#include "kernels/cpu/packed_blocks.h"
#include "kernels/cpu/random.h"
#include "kernels/device.h"

#include <math.h>

enum { BLOCK = 64, STRIP = 16 };

static const double log2_e = 1.4426950408889634;
static const float ln_2 = 0.693147180559945f;

VEC_INLINE int64_t least_of(int64_t a, int64_t b) {
    return a < b ? a : b;
}

// 2^x for x <= 1; 0 below -126 and for -infinity. x = n + r, |r| <= 1/2, and the polynomial of vec_exp in r ln 2.
VEC_INLINE Vec vec_exp2(Vec x) {
    Vec n = vec_round(x), r = x - n;
    Vec p = vec_set(0x1.414deep-13f);
    p = p * r + 0x1.5f049ep-10f;
    p = p * r + 0x1.3b2e0ep-7f;
    p = p * r + 0x1.c6af86p-5f;
    p = p * r + 0x1.ebfbdcp-3f;
    p = p * r + 0x1.62e430p-1f;
    p = p * r + 1.0f;
#if VEC_LANES == 16
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ), p, n);
#else
    VecI whole = __builtin_convertvector(vec_max(vec_set(-126.0f), n), VecI);
    return vec_where_less(x, vec_set(-126.0f), vec_set(0), p * (Vec)((whole + 127) << 23));
#endif
}

// How many keys a sequence has, and the first of those and the position of query 0 (which may lie outside of them).
static inline int64_t sequence_keys(const AttentionShape *s, int64_t b) {
    return s->key_lengths != NULL ? s->key_lengths[b] : s->keys;
}
static inline int64_t sequence_offset(const AttentionShape *s, int64_t b) {
    return s->key_lengths != NULL ? s->key_lengths[b] - s->queries : s->offset;
}

// The first key that query t sees, 0 .. keys.
static inline int64_t first_key(const AttentionShape *s, int64_t b, int64_t t) {
    int64_t first = s->first != NULL ? s->first[b * s->queries + t] : 0;
    int64_t edge = s->window > 0 ? sequence_offset(s, b) + t - s->window + 1 : 0;
    first = first > edge ? first : edge;
    return first > 0 ? least_of(first, sequence_keys(s, b)) : 0;
}

// A block of queries of one sequence, and which keys they see. Queries that stand beyond the end (padding) see what the last
// one does, and nobody reads what they give.
typedef struct Queries {
    int64_t begin, count;  // count <= BLOCK
    int64_t position;      // of the first
    int64_t keys;          // of the sequence
    int64_t first_block;   // the first key that any of them sees, rounded down to a block
    int64_t end;           // behind the last key that any of them sees
    int64_t all_see;       // from this key on (up to the first one's position) all of them see every key
    float least[BLOCK];    // the first key that each sees, less first_block
} Queries;

static inline Queries queries_at(const AttentionShape *s, int64_t b, int64_t begin) {
    Queries q = {.begin = begin,
                 .count = least_of(BLOCK, s->queries - begin),
                 .position = sequence_offset(s, b) + begin,
                 .keys = sequence_keys(s, b)};
    int64_t least[BLOCK];
    for (int64_t i = 0; i < BLOCK; i++) {
        least[i] = first_key(s, b, begin + least_of(i, q.count - 1));
    }
    q.first_block = least[0] / BLOCK * BLOCK;
    q.end = least_of(q.position + q.count, q.keys);
    q.all_see = least[BLOCK - 1];
    for (int64_t i = 0; i < BLOCK; i++) {
        q.least[i] = (float)(least[i] - q.first_block);
    }
    return q;
}

// One block of keys against a block of queries.
typedef struct Pair {
    int64_t key;      // the first key
    int64_t keys;     // how many, an even number: one may be padding
    int64_t queries;  // how many, and in vectors
    int64_t vecs;
    bool diagonal, masked;
} Pair;

static inline Pair pair_of(const Queries *q, int64_t key) {
    Pair p = {.key = key, .queries = q->count, .vecs = (q->count + VEC_LANES - 1) / VEC_LANES};
    p.diagonal = key == q->position;
    p.keys = round_up(least_of(BLOCK, q->end - key), 2);
    p.masked = key < q->all_see || key + p.keys > least_of(q->position + 1, q->keys);
    return p;
}

// The keys that vector v of the queries needs.
VEC_INLINE int64_t pair_keys(const Pair *p, int64_t v) {
    return p->diagonal ? least_of(p->keys, v * VEC_LANES / STRIP * STRIP + STRIP) : p->keys;
}

// What vector v of a block of queries sees: score, or -infinity where key `k` of the pair is hidden.
typedef struct Sight {
    Vec least, last;  // relative to the pair's first key
} Sight;

VEC_INLINE Sight sight_of(const Queries *q, const Pair *p, int64_t v) {
    Vec last;
    for (int i = 0; i < VEC_LANES; i++) {
        last[i] = (float)i;
    }
    // Who stands far behind the block sees all that is there of it.
    last =
        vec_min(last + (float)(least_of(q->position - p->key, BLOCK) + v * VEC_LANES), vec_set((float)(q->keys - 1 - p->key)));
    return (Sight){vec_load(q->least + v * VEC_LANES) - (float)(p->key - q->first_block), last};
}

VEC_INLINE Vec sight_apply(Sight sight, int64_t k, Vec score) {
    Vec key = vec_set((float)k), hidden = vec_set(-INFINITY);
    return vec_where_less(key, sight.least, hidden, vec_where_less(sight.last, key, hidden, score));
}

// What scores become beside the product with `scale` (kernels.h): soft-cap and slopes. Rare, so a pass of its own over the
// scores of a pair; where it is on, scores are natural ones after it.
typedef struct ScoreRule {
    bool on, capped;
    float scale, cap, slope;
} ScoreRule;

static inline ScoreRule score_rule(float scale, float softcap, const float *slopes, int64_t h) {
    return (ScoreRule){softcap > 0 || slopes != NULL, softcap > 0, softcap > 0 ? scale / softcap : scale,
                       softcap > 0 ? softcap : 1.0f, slopes != NULL ? slopes[h] : 0};
}

// The score of the product `dot`, the key `distance` behind the query (0 or less); *steep is the soft-cap's derivative.
VEC_INLINE Vec rule_apply(const ScoreRule r, Vec dot, Vec distance, Vec *steep) {
    Vec score = dot * r.scale;
    *steep = vec_set(1.0f);
    if (r.capped) {
        Vec t = vec_tanh(score);
        *steep = 1.0f - t * t;
        score = t * r.cap;
    }
    return score + distance * r.slope;
}

// Scores of a pair, in place. steep[key][query] may be NULL.
static inline void pair_apply(const ScoreRule *rule, const Queries *q, const Pair *p, float *scores, float *steep) {
    Vec lanes;
    for (int i = 0; i < VEC_LANES; i++) {
        lanes[i] = (float)i;
    }
    for (int64_t v = 0; v < p->vecs && rule->on; v++) {
        Vec query = lanes + (float)(q->position - p->key + v * VEC_LANES), gain;
        int64_t keys = pair_keys(p, v);
        for (int64_t k = 0; k < keys; k++) {
            int64_t at = k * BLOCK + v * VEC_LANES;
            vec_store(scores + at, rule_apply(*rule, vec_load(scores + at), vec_set((float)k) - query, &gain));
            if (steep != NULL) {
                vec_store(steep + at, gain);
            }
        }
    }
}

// c[key][query] = rows[key][d] queries[d][query] (rows: K or V of this block, padded width apart).
static inline void pair_scores(const Pair *p, int64_t width, const float *rows, const float *transposed, float *c) {
    int64_t padded = round_up(width, VEC_LANES);
    if (!p->diagonal) {
        block_product(p->keys, p->vecs, width, (Factor){rows, padded, 1}, transposed, BLOCK, c, BLOCK, false);
        return;
    }
    for (int64_t s = 0; s < p->keys; s += STRIP) {
        block_product(least_of(STRIP, p->keys - s), p->vecs - s / VEC_LANES, width, (Factor){rows + s * padded, padded, 1},
                      transposed + s, BLOCK, c + s * BLOCK + s, BLOCK, false);
    }
}

// y[query][d] += sum over keys of weights[key][query] rows[key][d].
static inline void pair_to_queries(const Pair *p, int64_t padded, const float *weights, const float *rows, float *y) {
    int64_t vecs = padded / VEC_LANES, queries = round_up(p->queries, 2);
    if (!p->diagonal) {
        block_product(queries, vecs, p->keys, (Factor){weights, 1, BLOCK}, rows, padded, y, padded, true);
        return;
    }
    for (int64_t s = 0; s < queries; s += STRIP) {
        block_product(least_of(STRIP, queries - s), vecs, least_of(s + STRIP, p->keys), (Factor){weights + s, 1, BLOCK}, rows,
                      padded, y + s * padded, padded, true);
    }
}

// y[key][d] += sum over queries of weights[key][query] rows[query][d].
static inline void pair_to_keys(const Pair *p, int64_t padded, const float *weights, const float *rows, float *y) {
    int64_t vecs = padded / VEC_LANES;
    if (!p->diagonal) {
        block_product(p->keys, vecs, p->queries, (Factor){weights, BLOCK, 1}, rows, padded, y, padded, true);
        return;
    }
    for (int64_t s = 0; s < p->keys; s += STRIP) {
        block_product(least_of(STRIP, p->keys - s), vecs, p->queries - s, (Factor){weights + s * BLOCK + s, BLOCK, 1},
                      rows + s * padded, padded, y + s * padded, padded, true);
    }
}

// Dropout of the probabilities of one head: the contract is in kernels.h.
typedef struct ProbabilityDropout {
    bool on;
    uint32_t threshold;
    float scale;
    uint64_t seed, stream, base, length;  // index = base + q length + k; q: a position
} ProbabilityDropout;

static inline ProbabilityDropout dropout_of(const AttentionShape *s, int64_t b, int64_t h) {
    uint64_t length = (uint64_t)(s->length > 0 ? s->length : s->keys), first = (uint64_t)s->key_first;
    uint64_t heads = (uint64_t)(s->all_heads > 0 ? s->all_heads : s->heads);
    uint64_t head = (s->first_sample + (uint64_t)b) * heads + (uint64_t)(s->first_head + h);
    return (ProbabilityDropout){s->dropout > 0,
                                philox_threshold(s->dropout),
                                1.0f / (1.0f - s->dropout),
                                s->seed,
                                s->stream,
                                head * length * length + first * length + first,
                                length};
}

// The indices of the queries at positions q .. q + VEC_LANES64 - 1 with key 0.
static inline Vec64 dropout_indices(const ProbabilityDropout *d, int64_t q) {
    Vec64 index;
    for (int i = 0; i < VEC_LANES64; i++) {
        index[i] = d->base + ((uint64_t)q + (uint64_t)i) * d->length;
    }
    return index;
}

// The factor (0 or 1 / (1 - dropout)) for VEC_LANES queries, the first half of which has the indices `index`. By value: the
// compiler cannot know that stores to probabilities leave the settings alone.
VEC_INLINE Vec dropout_factor(const ProbabilityDropout d, Vec64 index) {
    VecU a = (VecU)philox_vec(d.seed, d.stream, index).word[0];
    VecU b = (VecU)philox_vec(d.seed, d.stream, index + (uint64_t)VEC_LANES64 * d.length).word[0];
#if VEC_LANES == 16
    VecU words = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
#elif VEC_LANES == 8
    VecU words = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
#else
    VecU words = __builtin_shufflevector(a, b, 0, 2, 4, 6);
#endif
    return (Vec)(vec_kept(words, d.threshold) & (VecI)vec_set(d.scale));
}

// A thread's scratch, handed out in pieces on boundaries of 64 bytes. Without memory it only counts.
typedef struct Scratch {
    float *memory;
    int64_t used;  // floats
} Scratch;

VEC_INLINE float *scratch_take(Scratch *scratch, int64_t floats) {
    int64_t at = scratch->used;
    scratch->used += round_up(floats, 16);
    return scratch->memory != NULL ? scratch->memory + at : NULL;
}

static inline void attention_check(const AttentionShape *s) {
    ensure(s->groups > 0 && s->heads % s->groups == 0, "%d heads in %d groups", s->heads, s->groups);
    ensure(s->scale > 0, "scale %g", (double)s->scale);
    ensure(s->dropout >= 0 && s->dropout < 1, "dropout %g", (double)s->dropout);
    ensure(s->queries < 1 << 29 && s->keys < 1 << 29 && s->offset >= -(1 << 29) && s->offset + s->queries <= 1 << 29,
           "%lld queries from %lld on, %lld keys", (long long)s->queries, (long long)s->offset, (long long)s->keys);
}
