// Attention on a card, forward and backward, to 8192 tokens: causal, grouped queries, documents, both head widths of Hopper's
// bodies. Ours against float64 (rows of out and lse, of dq, dk and dv) and against the portable body (all of it). Backward the
// outputs of ours and their lse are inputs, as kernels.h has it.
#include "tests/check_gpu/checks.h"

#include "core/philox.h"
#include "tests/support/op_check.h"

enum { SAMPLES = 48 };

typedef struct AttentionCheck {
    const char *name;
    bool small;
    int64_t batch, length;
    int32_t heads, groups, width;
    DataType type;
    bool documents, any_order;
} AttentionCheck;

static const AttentionCheck attentions[] = {
    {"causal", true, 1, 256, 2, 2, 64, TYPE_BF16, false, false},
    {"causal", true, 1, 256, 2, 2, 128, TYPE_BF16, false, false},
    {"documents", true, 2, 200, 4, 2, 64, TYPE_FP16, true, false},
    {"any-order", true, 1, 320, 2, 1, 128, TYPE_BF16, false, true},
    {"causal", false, 16, 1024, 12, 12, 64, TYPE_BF16, false, false},
    {"documents", false, 16, 1024, 12, 12, 64, TYPE_BF16, true, false},
    {"causal", false, 1, 8192, 16, 16, 64, TYPE_BF16, false, false},
    {"causal", false, 1, 8192, 32, 8, 128, TYPE_BF16, false, false},
    {"documents", false, 1, 8192, 32, 8, 128, TYPE_BF16, true, false},
    {"any-order", false, 1, 8192, 32, 8, 128, TYPE_BF16, false, true},
    {"ragged", false, 2, 4093, 12, 4, 64, TYPE_BF16, true, false},
    {"causal", false, 1, 8192, 16, 16, 128, TYPE_FP16, false, false},
};

static AttentionCheck divided(const AttentionCheck *check) {
    AttentionCheck c = *check;
    if (!c.small && rehearsal) {
        int32_t a_group = c.heads / c.groups;
        c.batch = part(c.batch, 8), c.length = c.length < 4096 ? 320 : 320 + c.length % 128;  // several blocks of keys
        c.groups = 2, c.heads = 2 * a_group;
    }
    return c;
}

typedef struct Attention {
    AttentionCheck c;
    Tensor qkv, dout;
    int32_t *first;
    void *first_there;
} Attention;
typedef struct Results {
    Tensor out, lse, gradients;  // [B,T,H,D], [B,H,T], [B,T,H + 2 G,D]
} Results;

static int64_t token_heads(const AttentionCheck *c) {
    return c->heads + 2 * c->groups;
}

static AttentionShape shape_of(const Attention *a) {
    const AttentionCheck *c = &a->c;
    return (AttentionShape){.batch = c->batch,
                            .queries = c->length,
                            .keys = c->length,
                            .heads = c->heads,
                            .groups = c->groups,
                            .head_width = c->width,
                            .scale = (float)(1 / sqrt((double)c->width)),
                            .first = a->first_there};
}

static Error *attention_make(Device *device, Attention *a) {
    const AttentionCheck *c = &a->c;
    int64_t tokens = c->batch * c->length;
    a->first = memory_new((size_t)tokens, sizeof(int32_t));
    for (int64_t i = 0; i < tokens; i++) {  // a document starts at a token in 300, in a rehearsal in 40
        bool starts = i % c->length == 0 || (c->documents && philox_u64(23, 1, (uint64_t)i) % (uint64_t)part(300, 8) == 0);
        a->first[i] = i % c->length == 0 ? 0 : starts ? (int32_t)(i % c->length) : a->first[i - 1];
    }
    TRY(tensor_random(device, c->type, tokens * token_heads(c) * c->width, 0, 0, &a->qkv));
    TRY(tensor_random(device, c->type, tokens * c->heads * c->width, 1, 0, &a->dout));
    TRY(device_allocate(device, (size_t)tokens * sizeof(int32_t), &a->first_there));
    device_upload(device, a->first_there, a->first, (size_t)tokens * sizeof(int32_t));
    return device_finish(device);
}

static void attention_free(Device *device, Attention *a) {
    tensor_free(&a->qkv);
    tensor_free(&a->dout);
    device_release(device, a->first_there, (size_t)(a->c.batch * a->c.length) * sizeof(int32_t));
    free(a->first);
}

static Error *run_forward(const Attention *a, Device *device, Results *r) {
    const AttentionCheck *c = &a->c;
    AttentionShape shape = shape_of(a);
    int64_t rows = c->batch * c->length * c->heads;
    TRY(tensor_zeros(device, c->type, rows * c->width, &r->out));
    TRY(tensor_zeros(device, TYPE_FP32, rows, &r->lse));
    device->op->attention_forward(
        device, &(AttentionForward){shape, attention_packed(&shape, c->type, a->qkv.at), r->out.at, r->lse.at});
    return device_finish(device);
}

// With out and lse of `of`.
static Error *run_backward(const Attention *a, Device *device, const Results *of, Results *r) {
    const AttentionCheck *c = &a->c;
    AttentionShape shape = shape_of(a);
    TRY(tensor_zeros(device, c->type, a->qkv.count, &r->gradients));
    device->op->attention_backward(device, &(AttentionBackward){.shape = shape,
                                                                .in = attention_packed(&shape, c->type, a->qkv.at),
                                                                .out = of->out.at,
                                                                .dout = a->dout.at,
                                                                .lse = of->lse.at,
                                                                .gradients = attention_packed(&shape, c->type, r->gradients.at),
                                                                .any_order = c->any_order});
    return device_finish(device);
}

static void results_free(Results *r) {
    tensor_free(&r->out);
    tensor_free(&r->lse);
    tensor_free(&r->gradients);
}

// ---- Samples: rows of D elements, by formulas in double precision and plainly, with P and dS rounded to the type

typedef enum Kind { OUT, DQ, DK, DV, KINDS } Kind;
static const char *const kind_names[KINDS] = {"out", "dq", "dk", "dv"};

typedef struct Samples {
    const Attention *a;
    float *out, *lse;  // as the card gave them
    int64_t tokens[SAMPLES], heads[SAMPLES], groups[SAMPLES];
    double exact_lse[SAMPLES], partial[SAMPLES];
    double noise[KINDS][SAMPLES];  // what dP - delta loses where they cancel, in single precision
    float plain_lse[SAMPLES];
    double *exact[KINDS];
    float *plain[KINDS];
} Samples;

typedef enum Which { QUERY, KEY, VALUE } Which;
static void read_head(const Attention *a, Which which, int64_t token, int64_t head, float *to) {
    const AttentionCheck *c = &a->c;
    int64_t before = which == QUERY ? 0 : which == KEY ? c->heads : c->heads + c->groups;
    tensor_start(&a->qkv, (token * token_heads(c) + before + head) * c->width, 1, c->width, to);
}

// size: of what was added, without signs.
static double dot(const float *a, const float *b, int64_t count, float *plain, double *size) {
    double exact = 0;
    *plain = 0;
    *size = 0;
    for (int64_t i = 0; i < count; i++) {
        exact += (double)a[i] * (double)b[i];
        *size += fabs((double)a[i] * (double)b[i]);
        *plain += a[i] * b[i];
    }
    return exact;
}

// A sum of D terms in single precision errs by about sqrt(D) roundings of what is added (Higham & Mary 2019), times x.
static void note_noise(Samples *s, Kind kind, int at, double size, const float *x) {
    double largest = 0, D = (double)s->a->c.width;
    for (int64_t i = 0; i < s->a->c.width; i++) {
        largest = fmax(largest, fabs((double)x[i]));
    }
    s->noise[kind][at] = fmax(s->noise[kind][at], size * sqrt(D) * 0x1p-24 * largest);
}

static void add(Samples *s, Kind kind, int at, double exact, float plain, const float *x) {
    int64_t D = s->a->c.width;
    for (int64_t i = 0; i < D; i++) {
        s->exact[kind][at * D + i] += exact * (double)x[i];
        s->plain[kind][at * D + i] += plain * x[i];
    }
}
static void settle(Samples *s, Kind kind, int at) {
    int64_t D = s->a->c.width;
    for (int64_t i = 0; i < D; i++) {
        s->plain[kind][at * D + i] = op_round(s->a->c.type, s->plain[kind][at * D + i]);
    }
}

// out, lse and dq of query `token` (of all sequences) and a head.
static void sample_query(Samples *s, int at) {
    const Attention *a = s->a;
    const AttentionCheck *c = &a->c;
    int64_t token = s->tokens[at], head = s->heads[at], group = head / (c->heads / c->groups), D = c->width;
    int64_t begin = token - token % c->length + a->first[token], count = token + 1 - begin;
    float scale = (float)(1 / sqrt((double)D)), *q = memory_new((size_t)(4 * D), sizeof *q), *k = q + D, *v = k + D,
          *dout = v + D;
    float *plain = memory_new((size_t)count, sizeof *plain), plain_top = -INFINITY, plain_sum = 0, plain_delta;
    double delta_size, size;
    double *exact = memory_new((size_t)count, sizeof *exact), top = -INFINITY, sum = 0;
    read_head(a, QUERY, token, head, q);
    for (int64_t j = 0; j < count; j++) {
        read_head(a, KEY, begin + j, group, k);
        exact[j] = (double)scale * dot(q, k, D, &plain[j], &size);
        plain[j] *= scale;
        top = fmax(top, exact[j]);
        plain_top = fmaxf(plain_top, plain[j]);
        s->partial[at] = fmax(s->partial[at], fabs(exact[j]));
    }
    for (int64_t j = 0; j < count; j++) {
        sum += exp(exact[j] - top);
        plain_sum += expf(plain[j] - plain_top);
    }
    s->exact_lse[at] = top + log(sum);
    s->plain_lse[at] = plain_top + logf(plain_sum);
    // Backward: out and lse as they were given.
    int64_t row = token * c->heads + head, sequence = token / c->length;
    float lse = s->lse[(sequence * c->heads + head) * c->length + token % c->length];
    tensor_start(&a->dout, row * D, 1, D, dout);
    double delta = dot(dout, s->out + row * D, D, &plain_delta, &delta_size);
    for (int64_t j = 0; j < count; j++) {
        float plain_dp;
        read_head(a, VALUE, begin + j, group, v);
        add(s, OUT, at, exp(exact[j] - top) / sum, op_round(c->type, expf(plain[j] - plain_top)) / plain_sum, v);
        double p = exp(exact[j] - (double)lse), ds = p * (dot(dout, v, D, &plain_dp, &size) - delta);
        plain_dp = op_round(c->type, expf(plain[j] - lse) * (plain_dp - plain_delta));
        read_head(a, KEY, begin + j, group, k);
        add(s, DQ, at, (double)scale * ds, scale * plain_dp, k);
        note_noise(s, DQ, at, (double)scale * p * (size + delta_size), k);
    }
    settle(s, OUT, at);
    settle(s, DQ, at);
    free(q);
    free(plain);
    free(exact);
}

// dk and dv of key `token` and a group.
static void sample_key(Samples *s, int at) {
    const Attention *a = s->a;
    const AttentionCheck *c = &a->c;
    int64_t token = s->tokens[at], group = s->groups[at], a_group = c->heads / c->groups, D = c->width;
    int64_t start = token - token % c->length, place = token % c->length;
    float scale = (float)(1 / sqrt((double)D)), *q = memory_new((size_t)(4 * D), sizeof *q), *k = q + D, *v = k + D,
          *dout = v + D;
    read_head(a, KEY, token, group, k);
    read_head(a, VALUE, token, group, v);
    for (int64_t t = place; t < c->length && a->first[start + t] <= place; t++) {
        for (int64_t head = group * a_group; head < (group + 1) * a_group; head++) {
            int64_t row = (start + t) * c->heads + head;
            float lse = s->lse[(token / c->length * c->heads + head) * c->length + t], plain, plain_dp, plain_delta;
            read_head(a, QUERY, start + t, head, q);
            tensor_start(&a->dout, row * D, 1, D, dout);
            double size, delta_size, p = exp((double)scale * dot(q, k, D, &plain, &size) - (double)lse);
            double delta = dot(dout, s->out + row * D, D, &plain_delta, &delta_size);
            double ds = p * (dot(dout, v, D, &plain_dp, &size) - delta);
            note_noise(s, DK, at, (double)scale * p * (size + delta_size), q);
            plain = expf(scale * plain - lse);
            add(s, DV, at, p, op_round(c->type, plain), dout);
            add(s, DK, at, (double)scale * ds, scale * op_round(c->type, plain * (plain_dp - plain_delta)), q);
        }
    }
    settle(s, DK, at);
    settle(s, DV, at);
    free(q);
}

static void sample_task(void *context, int64_t task, int thread) {
    (task % 2 == 0 ? sample_query : sample_key)(context, (int)(task / 2));
}

static void samples_make(Samples *s, const Attention *a, const Results *ours, ThreadPool *pool) {
    const AttentionCheck *c = &a->c;
    *s = (Samples){.a = a};
    s->out = memory_new((size_t)ours->out.count, sizeof(float));
    s->lse = memory_new((size_t)ours->lse.count, sizeof(float));
    tensor_now(&ours->out, 0, ours->out.count, s->out);
    tensor_now(&ours->lse, 0, ours->lse.count, s->lse);
    sample_places(5, c->batch * c->length, SAMPLES, s->tokens);
    sample_places(6, c->heads, SAMPLES, s->heads);
    sample_places(7, c->groups, SAMPLES, s->groups);
    for (int i = 0; i < KINDS; i++) {
        s->exact[i] = memory_zeroed((size_t)(SAMPLES * c->width), sizeof(double));
        s->plain[i] = memory_zeroed((size_t)(SAMPLES * c->width), sizeof(float));
    }
    threads_run(pool, 2 * SAMPLES, sample_task, s);
}

static void samples_free(Samples *s) {
    free(s->out);
    free(s->lse);
    for (int i = 0; i < KINDS; i++) {
        free(s->exact[i]);
        free(s->plain[i]);
    }
}

// Where row `at` of a kind lies, in heads of D elements.
static int64_t head_place(const Samples *s, Kind kind, int at) {
    const AttentionCheck *c = &s->a->c;
    switch (kind) {
    case OUT:
        return s->tokens[at] * c->heads + s->heads[at];
    case DQ:
        return s->tokens[at] * token_heads(c) + s->heads[at];
    default:
        return s->tokens[at] * token_heads(c) + c->heads + s->groups[at] + (kind == DV ? c->groups : 0);
    }
}

// The rows of a kind against the samples; `given`: what the card gave, from its first element on.
static void look(const Samples *s, Kind kind, const Tensor *of, Finding *finding, Bound *bound) {
    int64_t D = s->a->c.width;
    float *given = memory_new((size_t)D, sizeof *given);
    double largest = 0;
    for (int64_t i = 0; i < SAMPLES * D; i++) {
        largest = fmax(largest, fabs(s->exact[kind][i]));
    }
    Bound own = {.type = of->type};
    for (int at = 0; at < SAMPLES; at++) {
        tensor_now(of, head_place(s, kind, at) * D, D, given);
        bound_row(&own, largest, s->noise[kind][at], D, s->exact[kind] + at * D, s->plain[kind] + at * D, given);
    }
    finding_samples(finding, kind_names[kind], &own);
    // The gradients lie in one tensor and share a bound when all of it is compared.
    *bound = (Bound){.type = of->type,
                     .largest = fmax(bound->largest, own.largest),
                     .relative = fmax(bound->relative, own.relative),
                     .cut = fmax(bound->cut, own.cut)};
    free(given);
}

typedef struct Bounds {
    Bound out, lse, gradients;
} Bounds;

static void check_samples(const Attention *a, const Results *ours, ThreadPool *pool, Finding *finding, Bounds *bounds) {
    Samples *s = memory_new(1, sizeof *s);
    samples_make(s, a, ours, pool);
    float given[SAMPLES];
    double largest = 0, partial = 0;
    for (int at = 0; at < SAMPLES; at++) {
        const AttentionCheck *c = &a->c;
        given[at] = s->lse[(s->tokens[at] / c->length * c->heads + s->heads[at]) * c->length + s->tokens[at] % c->length];
        largest = fmax(largest, fabs(s->exact_lse[at]));
        partial = fmax(partial, s->partial[at]);
    }
    bounds->lse.type = TYPE_FP32;
    bound_row(&bounds->lse, largest, card_cut(a->c.width, partial), SAMPLES, s->exact_lse, s->plain_lse, given);
    finding_samples(finding, "lse", &bounds->lse);
    look(s, OUT, &ours->out, finding, &bounds->out);
    for (Kind kind = DQ; kind < KINDS; kind++) {
        look(s, kind, &ours->gradients, finding, &bounds->gradients);
    }
    samples_free(s);
    free(s);
}

// ---- One check

static Error *check_other(const Attention *a, const Results *ours, const Bounds *bounds, Finding *finding) {
    Device *device = NULL;
    Results its = {0};
    int64_t D = a->c.width;
    TRY(card_open(a->c.type, "sm80", &device));
    Error *error = run_forward(a, device, &its);
    if (error == NULL) {
        error = run_backward(a, device, ours, &its);
    }
    if (error == NULL) {
        finding_other_body(finding, "lse", "sm80", &ours->lse, &its.lse, &bounds->lse, 0);
        finding_other_body(finding, "out", "sm80", &ours->out, &its.out, &bounds->out, D);
        finding_other_body(finding, "gradients", "sm80", &ours->gradients, &its.gradients, &bounds->gradients, D);
    }
    results_free(&its);
    device_close(device);
    return error;
}

// Which body ran, by the device's own account.
static void check_body(const Device *device, const char *direction, Finding *finding) {
    if (card_is_hopper() && (device->attention == NULL || strcmp(device->attention, "sm90") != 0)) {
        finding_add(finding, true, "%s by %s in the place of sm90", direction, device->attention);
    }
}

static Error *check_on(Device *device, Attention *a, Results *ours, Results *again, Finding *finding) {
    Bounds bounds = {0};
    TRY(attention_make(device, a));
    TRY(run_forward(a, device, ours));
    check_body(device, "forward", finding);
    TRY(run_backward(a, device, ours, ours));
    check_body(device, "backward", finding);
    TRY(run_forward(a, device, again));
    TRY(run_backward(a, device, ours, again));
    plant(&ours->gradients);
    plant(&again->gradients);
    check_samples(a, ours, device->pool, finding, &bounds);
    finding_same_bits(finding, "out", &ours->out, &again->out);
    finding_same_bits(finding, "lse", &ours->lse, &again->lse);
    if (!a->c.any_order) {
        finding_same_bits(finding, "gradients", &ours->gradients, &again->gradients);
    }
    results_free(again);
    return check_other(a, ours, &bounds, finding);
}

static Error *check_attention(const void *what, Finding *finding) {
    Attention a = {.c = divided(what)};
    Device *device = NULL;
    Results ours = {0}, again = {0};
    TRY(card_open(a.c.type, "ours", &device));
    Error *error = check_on(device, &a, &ours, &again, finding);
    results_free(&ours);
    results_free(&again);
    attention_free(device, &a);
    device_close(device);
    return error;
}

void list_attentions(void) {
    for (size_t i = 0; i < sizeof attentions / sizeof *attentions; i++) {
        AttentionCheck c = divided(&attentions[i]);
        check_add(check_attention, &attentions[i], "%sattention/%s%s/B%lld-T%lld-H%d-G%d-D%d", c.small ? "smoke/" : "", c.name,
                  c.type == TYPE_FP16 ? "-fp16" : "", (long long)c.batch, (long long)c.length, c.heads, c.groups, c.width);
    }
}
