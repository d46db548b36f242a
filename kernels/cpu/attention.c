// Causal attention, forward: blocks of queries against blocks of keys with a running maximum and sum (Milakov & Gimelshein
// 2018; Rabe & Staats 2021; Dao et al. 2022). attention.h says how blocks lie.
//
// Tasks are parts of a (sequence, group): every parts-th block of its queries, for all heads of the group. A query's result
// does not depend on how tasks are cut, so bits do not depend on the threads.
//
// attention_merge stands here too: joining what was seen of different keys.
//
// Scratch of a thread: the keys and values of one group, 2 Tk D floats (padded), and 3 BLOCK D + BLOCK^2.
#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu.h"

typedef struct ForwardWork {
    const AttentionForward *a;
    int64_t parts;
    char *scratch;
    size_t scratch_bytes;  // of one thread
} ForwardWork;

// A thread's scratch.
typedef struct ForwardRoom {
    float *keys, *values;        // [Tk][padded]
    float *query;                // [padded][BLOCK]: transposed
    float *scores;               // [BLOCK][BLOCK]: key, query
    float *out;                  // [BLOCK][padded]
    float *most, *sum, *shrink;  // [BLOCK]: running maximum (scaled) and sum, and the factor for what came before
} ForwardRoom;

static ForwardRoom forward_room(const AttentionShape *s, Scratch *scratch) {
    int64_t padded = round_up(s->head_width, VEC_LANES), rows = round_up(s->keys, 2);
    ForwardRoom room = {
        .keys = scratch_take(scratch, rows * padded),
        .values = scratch_take(scratch, rows * padded),
        .query = scratch_take(scratch, padded * BLOCK),
        .scores = scratch_take(scratch, BLOCK * BLOCK),
        .out = scratch_take(scratch, BLOCK * padded),
        .most = scratch_take(scratch, BLOCK),
        .sum = scratch_take(scratch, BLOCK),
        .shrink = scratch_take(scratch, BLOCK),
    };
    return room;
}

// Turns the scores of vector v of the queries into probabilities relative to the running maximum.
VEC_INLINE void softmax_vector(const ForwardRoom *room, const Queries *q, const Pair *p, const ProbabilityDropout *dropout,
                               float unit, int64_t v, const bool masked, const bool dropped) {
    float *scores = room->scores + v * VEC_LANES;
    int64_t keys = pair_keys(p, v);
    Vec most = vec_set(-INFINITY), most_odd = most;
    Sight sight = masked ? sight_of(q, p, v) : (Sight){0};
    for (int64_t k = 0; k < keys; k += 2) {
        Vec even = vec_load(scores + k * BLOCK), odd = vec_load(scores + (k + 1) * BLOCK);
        if (masked) {
            even = sight_apply(sight, k, even);
            odd = sight_apply(sight, k + 1, odd);
            vec_store(scores + k * BLOCK, even);
            vec_store(scores + (k + 1) * BLOCK, odd);
        }
        most = vec_max(even, most);
        most_odd = vec_max(odd, most_odd);
    }
    // The running maximum is kept as it is subtracted: scaled and rounded. So what is subtracted now and what was subtracted
    // from earlier keys differ by just what `shrink` makes good.
    Vec before = vec_load(room->most + v * VEC_LANES), zero = vec_max(vec_max(most, most_odd) * unit, before);
    Vec shrink = vec_exp2(before - zero);
    Vec sum = vec_load(room->sum + v * VEC_LANES) * shrink, sum_odd = vec_set(0);
    ProbabilityDropout draw = *dropout;
    Vec64 index = dropout_indices(&draw, q->position + v * VEC_LANES) + (uint64_t)p->key;
    for (int64_t k = 0; k < keys; k += 2) {
        Vec even = vec_exp2(vec_load(scores + k * BLOCK) * unit - zero),
            odd = vec_exp2(vec_load(scores + (k + 1) * BLOCK) * unit - zero);
        sum += even;
        sum_odd += odd;
        if (dropped) {
            even *= dropout_factor(draw, index + (uint64_t)k);
            odd *= dropout_factor(draw, index + (uint64_t)k + 1);
        }
        vec_store(scores + k * BLOCK, even);
        vec_store(scores + (k + 1) * BLOCK, odd);
    }
    vec_store(room->most + v * VEC_LANES, zero);
    vec_store(room->sum + v * VEC_LANES, sum + sum_odd);
    vec_store(room->shrink + v * VEC_LANES, shrink);
}

static void softmax(const ForwardRoom *room, const Queries *q, const Pair *p, const ProbabilityDropout *dropout, float unit) {
    for (int64_t v = 0; v < p->vecs; v++) {
        if (dropout->on) {
            softmax_vector(room, q, p, dropout, unit, v, true, true);
        } else if (p->masked) {
            softmax_vector(room, q, p, dropout, unit, v, true, false);
        } else {
            softmax_vector(room, q, p, dropout, unit, v, false, false);
        }
    }
}

static void shrink_out(const ForwardRoom *room, int64_t queries, int64_t padded) {
    for (int64_t i = 0; i < queries; i++) {
        float shrink = room->shrink[i], *out = room->out + i * padded;
        if (shrink != 1) {
            for (int64_t c = 0; c < padded; c += VEC_LANES) {
                vec_store(out + c, vec_load(out + c) * shrink);
            }
        }
    }
}

// One block of queries of one head.
static void forward_block(const AttentionForward *a, const ForwardRoom *room, const Queries *q, int64_t b, int64_t h) {
    const AttentionShape *s = &a->shape;
    int64_t width = s->head_width, padded = round_up(width, VEC_LANES), stride = a->in.q_stride.token;
    const float *query = (const float *)a->in.q + b * a->in.q_stride.sequence + q->begin * stride + h * width;
    int64_t vecs = (q->count + VEC_LANES - 1) / VEC_LANES;
    block_transpose(q->count, vecs * VEC_LANES, width, query, stride, room->query, BLOCK);
    for (int64_t v = 0; v < vecs * VEC_LANES; v += VEC_LANES) {
        vec_store(room->most + v, vec_set(-1e30f));  // finite: a block of keys may be hidden from a query altogether
        vec_store(room->sum + v, vec_set(0));
    }
    memset(room->out, 0, (size_t)(round_up(q->count, 2) * padded) * sizeof *room->out);
    ProbabilityDropout dropout = dropout_of(s, b, h);
    ScoreRule rule = score_rule(s->scale, s->softcap, s->slopes, h);
    float unit = (float)(rule.on ? log2_e : (double)s->scale * log2_e);
    for (int64_t key = q->first_block; key < q->end; key += BLOCK) {
        Pair p = pair_of(q, key);
        pair_scores(&p, width, room->keys + key * padded, room->query, room->scores);
        pair_apply(&rule, q, &p, room->scores, NULL);
        softmax(room, q, &p, &dropout, unit);
        shrink_out(room, q->count, padded);
        pair_to_queries(&p, padded, room->scores, room->values + key * padded, room->out);
    }
    float *out = (float *)a->out + ((b * s->queries + q->begin) * s->heads + h) * width;
    for (int64_t i = 0; i < q->count; i++, out += s->heads * width) {
        const float *from = room->out + i * padded;
        float share = room->sum[i] > 0 ? 1 / room->sum[i] : 0;  // 0: it sees no key
        int64_t c = 0;
        for (; c + VEC_LANES <= width; c += VEC_LANES) {
            vec_store(out + c, vec_load(from + c) * share);
        }
        if (c < width) {
            vec_store_partial(out + c, vec_load(from + c) * share, width - c);
        }
    }
    for (int64_t i = 0; i < q->count && a->lse != NULL; i += VEC_LANES) {
        Vec sum = vec_load(room->sum + i), natural = vec_load(room->most + i) * ln_2 + vec_log(sum);
        vec_store_partial(a->lse + (b * s->heads + h) * s->queries + q->begin + i,
                          vec_where_less(vec_set(0), sum, natural, vec_set(-INFINITY)), least_of(VEC_LANES, q->count - i));
    }
}

static void forward_task(void *context, int64_t task, int thread) {
    const ForwardWork *w = context;
    const AttentionForward *a = w->a;
    const AttentionShape *s = &a->shape;
    int64_t part = task % w->parts, g = task / w->parts % s->groups, b = task / w->parts / s->groups,
            share = s->heads / s->groups;
    int64_t width = s->head_width, blocks = (s->queries + BLOCK - 1) / BLOCK;
    Scratch scratch = {(float *)(void *)(w->scratch + (size_t)thread * w->scratch_bytes), 0};
    ForwardRoom room = forward_room(s, &scratch);
    int64_t last = part + (blocks - 1 - part) / w->parts * w->parts;  // of the blocks of this part
    int64_t rows = least_of(sequence_keys(s, b), sequence_offset(s, b) + least_of(s->queries, (last + 1) * BLOCK));
    rows = rows > 0 ? rows : 0;  // all queries may stand before the keys
    const AttentionRows *in = &a->in;
    block_copy(rows, width, (const float *)in->k + b * in->k_stride.sequence + g * width, in->k_stride.token, room.keys);
    block_copy(rows, width, (const float *)in->v + b * in->v_stride.sequence + g * width, in->v_stride.token, room.values);
    for (int64_t block = part; block < blocks; block += w->parts) {
        Queries q = queries_at(s, b, block * BLOCK);
        for (int64_t h = g * share; h < (g + 1) * share; h++) {
            forward_block(a, &room, &q, b, h);
        }
    }
}

void CPU_NAME(cpu_attention_forward)(Device *device, const AttentionForward *a) {
    const AttentionShape *s = &a->shape;
    attention_check(s);
    if (s->queries == 1 && s->key_lengths != NULL && s->dropout == 0) {
        CPU_NAME(cpu_attention_decode)(device, a);
        return;
    }
    int64_t threads = threads_count(device->pool), pairs = s->batch * s->groups, blocks = (s->queries + BLOCK - 1) / BLOCK;
    if (pairs == 0 || blocks == 0) {
        return;
    }
    int64_t parts = threads == 1 || pairs >= 4 * threads ? 1 : least_of(blocks, (4 * threads + pairs - 1) / pairs);
    Scratch scratch = {0};
    forward_room(s, &scratch);
    size_t bytes = ((size_t)scratch.used * sizeof(float) + 4095) / 4096 * 4096;
    ForwardWork w = {a, parts, device_scratch(device, bytes), bytes};
    threads_run(device->pool, pairs * parts, forward_task, &w);
}

// One row of [B,Tq].
static void merge_row(void *context, int64_t row, int thread) {
    (void)thread;
    const AttentionMerge *a = context;
    int64_t b = row / a->queries, t = row % a->queries, width = a->head_width;
    for (int64_t h = 0; h < a->heads; h++) {
        int64_t at = (b * a->heads + h) * a->queries + t;
        const float *other = (const float *)a->other + (row * a->heads + h) * width;
        float *out = a->out + (row * a->heads + h) * width, mine = a->lse[at], its = a->other_lse[at];
        float most = mine > its ? mine : its;
        if (most == -INFINITY) {
            continue;  // out is 0 and stays
        }
        float own = expf(mine - most), others = expf(its - most), sum = own + others;
        own /= sum;
        others /= sum;
        for (int64_t d = 0; d < width; d++) {
            out[d] = own * out[d] + others * other[d];
        }
        a->lse[at] = most + logf(sum);
    }
}

void CPU_NAME(cpu_attention_merge)(Device *device, const AttentionMerge *a) {
    threads_run(device->pool, a->batch * a->queries, merge_row, (void *)(uintptr_t)a);
}
