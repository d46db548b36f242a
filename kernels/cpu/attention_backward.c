// Causal attention, backward (Dao et al. 2022, algorithm 4): the probabilities are computed again from the saved log-sum-exp.
//
//   P = exp(scale Q K^T - lse);  Z = dropout factors (1 where there is none);  delta = sum over d of dout out
//   dV = (P Z)^T dout;  dP = dout V^T;  dS = P (dP Z - delta);  dQ = scale dS K;  dK = scale dS^T Q
//
// With a soft-cap c, dS is multiplied by its derivative, 1 - tanh^2(scale q.k / c).
//
// A task is a (sequence, group): its blocks of queries in order, each against its blocks of keys in order, so that dK and dV
// are summed in the same order whatever the threads. More threads than groups times sequences would idle.
//
// Scratch of a thread: keys, values and their gradients of one group, 4 Tk D floats (padded), and 5 BLOCK D + 3 BLOCK^2.
#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu.h"

typedef struct BackwardWork {
    const AttentionBackward *a;
    char *scratch;
    size_t scratch_bytes;  // of one thread
} BackwardWork;

typedef struct BackwardRoom {
    float *keys, *values, *dkeys, *dvalues;  // [Tk][padded]
    float *query_t, *dout_t;                 // [padded][BLOCK]: transposed
    float *query, *dout, *dquery;            // [BLOCK][padded]
    float *scores, *dscores, *steep;         // [BLOCK][BLOCK]: key, query; steep: the soft-cap's derivative
    float *lse, *lse_rest, *delta;           // [BLOCK], lse in units of log2 and what its rounding left
} BackwardRoom;

static BackwardRoom backward_room(const AttentionShape *s, Scratch *scratch) {
    int64_t padded = round_up(s->head_width, VEC_LANES), rows = round_up(s->keys, 2);
    BackwardRoom room = {
        .keys = scratch_take(scratch, rows * padded),
        .values = scratch_take(scratch, rows * padded),
        .dkeys = scratch_take(scratch, rows * padded),
        .dvalues = scratch_take(scratch, rows * padded),
        .query_t = scratch_take(scratch, padded * BLOCK),
        .dout_t = scratch_take(scratch, padded * BLOCK),
        .query = scratch_take(scratch, BLOCK * padded),
        .dout = scratch_take(scratch, BLOCK * padded),
        .dquery = scratch_take(scratch, BLOCK * padded),
        .scores = scratch_take(scratch, BLOCK * BLOCK),
        .dscores = scratch_take(scratch, BLOCK * BLOCK),
        .steep = scratch_take(scratch, s->softcap > 0 ? BLOCK * BLOCK : 0),
        .lse = scratch_take(scratch, BLOCK),
        .lse_rest = scratch_take(scratch, BLOCK),
        .delta = scratch_take(scratch, BLOCK),
    };
    return room;
}

// delta[i] = sum over d of x[i][d] y[i][d], 0 in the padding.
static void row_products(int64_t rows, int64_t width, const float *x, const float *y, int64_t row, float *delta) {
    for (int64_t i = 0; i < rows; i += VEC_LANES) {
        Vec sums[VEC_LANES];
        for (int k = 0; k < VEC_LANES; k++) {
            Vec sum = vec_set(0);
            const float *a = x + (i + k) * row, *b = y + (i + k) * row;
            int64_t c = 0;
            for (; i + k < rows && c + VEC_LANES <= width; c += VEC_LANES) {
                sum += vec_load(a + c) * vec_load(b + c);
            }
            if (i + k < rows && c < width) {
                sum += vec_load_partial(a + c, width - c) * vec_load_partial(b + c, width - c);
            }
            sums[k] = sum;
        }
        vec_store(delta + i, vec_sums(sums));
    }
}

// to[i][d] = scale * from[i][d], rows `row` apart.
static void scaled_rows(int64_t rows, int64_t width, float scale, const float *from, float *to, int64_t row) {
    int64_t padded = round_up(width, VEC_LANES);
    for (int64_t i = 0; i < rows; i++, from += padded, to += row) {
        int64_t c = 0;
        for (; c + VEC_LANES <= width; c += VEC_LANES) {
            vec_store(to + c, vec_load(from + c) * scale);
        }
        if (c < width) {
            vec_store_partial(to + c, vec_load(from + c) * scale, width - c);
        }
    }
}

// A number of log2 units in two floats: scores may be large, and the rounding of what turns them into log2 units would show in
// every probability.
typedef struct Split {
    float most, rest;
} Split;

static Split split(double exact) {
    float most = (float)exact;
    return (Split){most, (float)(exact - (double)most)};
}

// scores := P Z and dscores := dS for vector v of the queries, from scores and dP.
VEC_INLINE void gradient_vector(const BackwardRoom *room, const Queries *q, const Pair *p, const ProbabilityDropout *dropout,
                                Split unit, int64_t v, const bool masked, const bool dropped) {
    float *scores = room->scores + v * VEC_LANES, *dscores = room->dscores + v * VEC_LANES;
    Vec lse = vec_load(room->lse + v * VEC_LANES), rest = vec_load(room->lse_rest + v * VEC_LANES);
    Vec delta = vec_load(room->delta + v * VEC_LANES);
    Sight sight = masked ? sight_of(q, p, v) : (Sight){0};
    int64_t keys = pair_keys(p, v);
    ProbabilityDropout draw = *dropout;
    Vec64 index = dropout_indices(&draw, q->position + v * VEC_LANES) + (uint64_t)p->key;
    for (int64_t k = 0; k < keys; k++) {
        Vec score = vec_load(scores + k * BLOCK), dp = vec_load(dscores + k * BLOCK);
        Vec power = (score * unit.most - lse) + (score * unit.rest - rest);
        if (masked) {
            power = sight_apply(sight, k, power);
        }
        Vec probability = vec_exp2(power), kept = probability;
        if (dropped) {
            Vec factor = dropout_factor(draw, index + (uint64_t)k);
            kept *= factor;
            dp *= factor;
        }
        vec_store(scores + k * BLOCK, kept);
        vec_store(dscores + k * BLOCK, probability * (dp - delta));
    }
}

static void gradient(const BackwardRoom *room, const Queries *q, const Pair *p, const ProbabilityDropout *dropout, Split unit) {
    for (int64_t v = 0; v < p->vecs; v++) {
        if (dropout->on) {
            gradient_vector(room, q, p, dropout, unit, v, true, true);
        } else if (p->masked) {
            gradient_vector(room, q, p, dropout, unit, v, true, false);
        } else {
            gradient_vector(room, q, p, dropout, unit, v, false, false);
        }
    }
}

// dscores *= steep.
static void gradient_capped(const BackwardRoom *room, const Pair *p) {
    for (int64_t v = 0; v < p->vecs; v++) {
        int64_t keys = pair_keys(p, v);
        for (int64_t at = v * VEC_LANES; at < keys * BLOCK; at += BLOCK) {
            vec_store(room->dscores + at, vec_load(room->dscores + at) * vec_load(room->steep + at));
        }
    }
}

// One block of queries of one head.
static void backward_block(const AttentionBackward *a, const BackwardRoom *room, const Queries *q, int64_t b, int64_t h) {
    const AttentionShape *s = &a->shape;
    int64_t width = s->head_width, padded = round_up(width, VEC_LANES), stride = a->in.q_stride.token;
    int64_t out = ((b * s->queries + q->begin) * s->heads + h) * width;
    int64_t out_stride = s->heads * width, columns = round_up(q->count, VEC_LANES);
    const float *query = (const float *)a->in.q + b * a->in.q_stride.sequence + q->begin * stride + h * width;
    const float *dout = (const float *)a->dout + out;
    block_transpose(q->count, columns, width, query, stride, room->query_t, BLOCK);
    block_transpose(q->count, columns, width, dout, out_stride, room->dout_t, BLOCK);
    block_copy(q->count, width, query, stride, room->query);
    block_copy(q->count, width, dout, out_stride, room->dout);
    row_products(q->count, width, dout, (const float *)a->out + out, out_stride, room->delta);
    const float *lse = a->lse + (b * s->heads + h) * s->queries + q->begin;
    for (int64_t i = 0; i < columns; i++) {
        Split exact = split(i < q->count ? (double)lse[i] * log2_e : 0);
        room->lse[i] = exact.most;
        room->lse_rest[i] = exact.rest;
    }
    memset(room->dquery, 0, (size_t)(round_up(q->count, 2) * padded) * sizeof *room->dquery);
    ProbabilityDropout dropout = dropout_of(s, b, h);
    ScoreRule rule = score_rule(s->scale, s->softcap, s->slopes, h);
    Split unit = split(rule.on ? log2_e : (double)s->scale * log2_e);
    for (int64_t key = q->first_block; key < q->end; key += BLOCK) {
        Pair p = pair_of(q, key);
        int64_t at = key * padded;
        pair_scores(&p, width, room->keys + at, room->query_t, room->scores);
        pair_scores(&p, width, room->values + at, room->dout_t, room->dscores);
        pair_apply(&rule, q, &p, room->scores, rule.capped ? room->steep : NULL);
        gradient(room, q, &p, &dropout, unit);
        if (rule.capped) {
            gradient_capped(room, &p);
        }
        pair_to_keys(&p, padded, room->scores, room->dout, room->dvalues + at);
        pair_to_keys(&p, padded, room->dscores, room->query, room->dkeys + at);
        pair_to_queries(&p, padded, room->dscores, room->keys + at, room->dquery);
    }
    HeadStrides to = a->gradients.q_stride;
    scaled_rows(q->count, width, s->scale, room->dquery,
                (float *)a->gradients.q + b * to.sequence + q->begin * to.token + h * width, to.token);
}

static void backward_task(void *context, int64_t task, int thread) {
    const BackwardWork *w = context;
    const AttentionBackward *a = w->a;
    const AttentionShape *s = &a->shape;
    int64_t g = task % s->groups, b = task / s->groups, share = s->heads / s->groups, width = s->head_width;
    int64_t padded = round_up(width, VEC_LANES), keys = sequence_keys(s, b);
    Scratch scratch = {(float *)(void *)(w->scratch + (size_t)thread * w->scratch_bytes), 0};
    BackwardRoom room = backward_room(s, &scratch);
    const AttentionRows *in = &a->in, *to = &a->gradients;
    block_copy(keys, width, (const float *)in->k + b * in->k_stride.sequence + g * width, in->k_stride.token, room.keys);
    block_copy(keys, width, (const float *)in->v + b * in->v_stride.sequence + g * width, in->v_stride.token, room.values);
    size_t bytes = (size_t)(round_up(s->keys, 2) * padded) * sizeof(float);
    memset(room.dkeys, 0, bytes);
    memset(room.dvalues, 0, bytes);
    for (int64_t begin = 0; begin < s->queries; begin += BLOCK) {
        Queries q = queries_at(s, b, begin);
        for (int64_t h = g * share; h < (g + 1) * share; h++) {
            backward_block(a, &room, &q, b, h);
        }
    }
    scaled_rows(s->keys, width, s->scale, room.dkeys, (float *)to->k + b * to->k_stride.sequence + g * width,
                to->k_stride.token);
    scaled_rows(s->keys, width, 1.0f, room.dvalues, (float *)to->v + b * to->v_stride.sequence + g * width, to->v_stride.token);
}

void CPU_NAME(cpu_attention_backward)(Device *device, const AttentionBackward *a) {
    const AttentionShape *s = &a->shape;
    attention_check(s);
    if (s->batch == 0 || (s->queries == 0 && s->keys == 0)) {
        return;
    }
    Scratch scratch = {0};
    backward_room(s, &scratch);
    size_t bytes = ((size_t)scratch.used * sizeof(float) + 4095) / 4096 * 4096;
    BackwardWork w = {a, device_scratch(device, bytes), bytes};
    threads_run(device->pool, s->batch * s->groups, backward_task, &w);
}
