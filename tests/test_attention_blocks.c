// Attention over blocks of keys, one after the other, is attention over all keys: how a ring of ranks computes it, and what
// attention_merge, positions and the dropout's counter are for. On every instruction set that this processor runs and on cards.
//
// Sequences are cut into blocks of queries and of keys. Forward, the results of each block of queries with each block of keys
// are merged; backward, each pair is called with the merged output and log-sum-exp, and its gradients are added up. Both must
// be, within the rounding of the type, what one call over everything gives.
#include "core/memory.h"
#include "core/philox.h"
#include "tests/support/check.h"
#include "tests/support/op_check.h"

#include <math.h>
#include <stdio.h>

enum { MOST_BLOCKS = 4, BATCH = 2 };

typedef struct Case {
    const char *name;
    int64_t length;
    int32_t heads, groups, width;
    int64_t window;
    float dropout, softcap;
    bool documents, slopes;
    int64_t query_ends[MOST_BLOCKS], key_ends[MOST_BLOCKS];  // 0 ends them
} Case;

static const Case cases[] = {
    {"causal", 150, 2, 2, 64, 0, 0, 0, false, false, {64, 150}, {64, 128, 150}},
    {"grouped queries", 131, 4, 2, 32, 0, 0, 0, false, false, {131}, {1, 50, 131}},
    {"documents", 140, 2, 1, 40, 0, 0, 0, true, false, {70, 140}, {35, 70, 105, 140}},
    {"window", 133, 2, 1, 128, 40, 0, 0, false, false, {60, 133}, {60, 133}},
    {"dropout", 70, 2, 1, 24, 0, 0.3f, 0, true, false, {35, 70}, {35, 70}},
    {"modified scores", 100, 2, 2, 64, 70, 0, 5, true, true, {50, 100}, {30, 100}},
    {"wide heads", 90, 2, 1, 160, 0, 0, 0, false, false, {45, 90}, {45, 90}},
    {"odd width", 33, 2, 1, 5, 9, 0.2f, 0, true, true, {20, 33}, {7, 33}},
};

// Everything of a case on the host, in the order q [B,T,H,D], k, v [B,T,G,D] and out, dout like q.
typedef struct Numbers {
    const Case *c;
    float *q, *k, *v, *dout, *slopes;
    int32_t *first;
} Numbers;

static int64_t query_count(const Case *c, int64_t tokens) {
    return BATCH * tokens * c->heads * c->width;
}
static int64_t key_count(const Case *c, int64_t tokens) {
    return BATCH * tokens * c->groups * c->width;
}

static float *numbers_new(DataType type, int64_t count, uint64_t which) {
    float *x = memory_new((size_t)count, sizeof *x);
    philox_normal(5, philox_stream(RANDOM_TEST, which), 0, 1.0f, x, count);
    for (int64_t i = 0; i < count; i++) {
        x[i] = op_round(type, x[i]);
    }
    return x;
}

// ---- Tensors on a device

static void *upload(Device *device, DataType type, const float *from, int64_t count) {
    size_t bytes = (size_t)(count * data_type_bytes(type));
    void *encoded = memory_new(bytes + 1, 1), *there;
    op_encode(type, from, encoded, count);
    CHECK_OK(device_allocate(device, bytes + 1, &there));
    device_upload(device, there, encoded, bytes);
    CHECK_OK(device_finish(device));
    free(encoded);
    return there;
}
static void release(Device *device, DataType type, void *there, int64_t count) {
    device_release(device, there, (size_t)(count * data_type_bytes(type)) + 1);
}
// Returns the numbers and releases the memory.
static float *download(Device *device, DataType type, void *there, int64_t count) {
    size_t bytes = (size_t)(count * data_type_bytes(type));
    void *encoded = memory_new(bytes + 1, 1);
    float *to = memory_new((size_t)count + 1, sizeof *to);
    device_download(device, encoded, there, bytes);
    CHECK_OK(device_finish(device));
    op_decode(type, encoded, to, count);
    free(encoded);
    release(device, type, there, count);
    return to;
}

// Tokens begin .. end - 1 of each sequence of x[B, length, row].
static float *tokens_of(const float *x, int64_t length, int64_t row, int64_t begin, int64_t end) {
    float *part = memory_new((size_t)(BATCH * (end - begin) * row) + 1, sizeof *part);
    for (int64_t b = 0; b < BATCH; b++) {
        memcpy(part + b * (end - begin) * row, x + (b * length + begin) * row, (size_t)((end - begin) * row) * sizeof *part);
    }
    return part;
}
// Adds them there, or (set) puts them there.
static void tokens_add(const float *part, int64_t length, int64_t row, int64_t begin, int64_t end, float *x) {
    for (int64_t b = 0; b < BATCH; b++) {
        for (int64_t i = 0; i < (end - begin) * row; i++) {
            x[(b * length + begin) * row + i] += part[b * (end - begin) * row + i];
        }
    }
}

// ---- A pair of blocks

typedef struct Pair {
    Device *device;
    const Numbers *n;
    int64_t q0, q1, k0, k1;
    // Device memory:
    AttentionForward forward;
    int32_t *first;
    float *slopes;
} Pair;

static void pair_open(Device *device, const Numbers *n, int64_t q0, int64_t q1, int64_t k0, int64_t k1, Pair *p) {
    const Case *c = n->c;
    DataType type = device->type;
    int64_t queries = q1 - q0, keys = k1 - k0, wide = c->heads * c->width, narrow = c->groups * c->width;
    *p = (Pair){.device = device, .n = n, .q0 = q0, .q1 = q1, .k0 = k0, .k1 = k1};
    float *q = tokens_of(n->q, c->length, wide, q0, q1), *k = tokens_of(n->k, c->length, narrow, k0, k1);
    float *v = tokens_of(n->v, c->length, narrow, k0, k1);
    int32_t *first = memory_new((size_t)(BATCH * queries), sizeof *first);
    for (int64_t i = 0; i < BATCH * queries; i++) {
        first[i] = n->first[i / queries * c->length + q0 + i % queries] - (int32_t)k0;
    }
    CHECK_OK(device_allocate(device, (size_t)(BATCH * queries) * sizeof *first, (void **)&p->first));
    device_upload(device, p->first, first, (size_t)(BATCH * queries) * sizeof *first);
    CHECK_OK(device_finish(device));
    p->slopes = upload(device, TYPE_FP32, n->slopes, c->heads);
    p->forward = (AttentionForward){
        .shape = {.batch = BATCH,
                  .queries = queries,
                  .keys = keys,
                  .heads = c->heads,
                  .groups = c->groups,
                  .head_width = c->width,
                  .scale = (float)(1 / sqrt((double)c->width)),
                  .offset = q0 - k0,
                  .first = c->documents ? p->first : NULL,
                  .window = c->window,
                  .softcap = c->softcap,
                  .slopes = c->slopes ? p->slopes : NULL,
                  .dropout = c->dropout,
                  .seed = 3,
                  .first_sample = 7,
                  .key_first = k0,
                  .length = c->length},
        .in = {upload(device, type, q, query_count(c, queries)),
               upload(device, type, k, key_count(c, keys)),
               upload(device, type, v, key_count(c, keys)),
               {wide, wide * queries},
               {narrow, narrow * keys},
               {narrow, narrow * keys}},
    };
    free(q);
    free(k);
    free(v);
    free(first);
}
static void pair_close(Pair *p) {
    const Case *c = p->n->c;
    DataType type = p->device->type;
    release(p->device, type, p->forward.in.q, query_count(c, p->q1 - p->q0));
    release(p->device, type, p->forward.in.k, key_count(c, p->k1 - p->k0));
    release(p->device, type, p->forward.in.v, key_count(c, p->k1 - p->k0));
    release(p->device, TYPE_FP32, p->slopes, c->heads);
    device_release(p->device, p->first, (size_t)(BATCH * (p->q1 - p->q0)) * sizeof *p->first);
}

// What attention gives, in the order of Numbers.
typedef struct Results {
    float *out, *lse, *dq, *dk, *dv;  // lse: [B,H,T]
} Results;

static Results results_new(const Case *c) {
    return (Results){memory_zeroed((size_t)query_count(c, c->length), sizeof(float)),
                     memory_zeroed((size_t)(BATCH * c->heads * c->length), sizeof(float)),
                     memory_zeroed((size_t)query_count(c, c->length), sizeof(float)),
                     memory_zeroed((size_t)key_count(c, c->length), sizeof(float)),
                     memory_zeroed((size_t)key_count(c, c->length), sizeof(float))};
}
static void results_free(Results *r) {
    free(r->out);
    free(r->lse);
    free(r->dq);
    free(r->dk);
    free(r->dv);
}

// The results of queries q0 .. q1 - 1, with the blocks of keys that end at key_ends.
static void blocks_run(Device *device, const Numbers *n, int64_t q0, int64_t q1, const int64_t *key_ends, Results *r) {
    const Case *c = n->c;
    DataType type = device->type;
    int64_t queries = q1 - q0, wide = c->heads * c->width, narrow = c->groups * c->width, count = query_count(c, queries);
    int64_t sums = BATCH * c->heads * queries;
    float *zeros = memory_zeroed((size_t)count, sizeof *zeros), *nothing = memory_new((size_t)sums, sizeof *nothing);
    for (int64_t i = 0; i < sums; i++) {
        nothing[i] = -INFINITY;
    }
    void *out = upload(device, type, zeros, count), *other = upload(device, type, zeros, count);
    float *joined = upload(device, TYPE_FP32, zeros, count);
    float *lse = upload(device, TYPE_FP32, nothing, sums), *other_lse = upload(device, TYPE_FP32, nothing, sums);
    float *dout_here = tokens_of(n->dout, c->length, wide, q0, q1);
    void *dout = upload(device, type, dout_here, count);
    int64_t k0 = 0;
    for (int i = 0; i < MOST_BLOCKS && key_ends[i] > 0; k0 = key_ends[i], i++) {
        Pair p;
        pair_open(device, n, q0, q1, k0, key_ends[i], &p);
        p.forward.out = other;
        p.forward.lse = other_lse;
        device->op->attention_forward(device, &p.forward);
        device->op->attention_merge(device,
                                    &(AttentionMerge){BATCH, queries, c->heads, c->width, other, other_lse, joined, lse});
        CHECK_OK(device_finish(device));
        pair_close(&p);
    }
    device->op->convert(device, &(Convert){count, TYPE_FP32, type, joined, out});
    k0 = 0;
    for (int i = 0; i < MOST_BLOCKS && key_ends[i] > 0; k0 = key_ends[i], i++) {
        int64_t keys = key_ends[i] - k0, key_numbers = key_count(c, keys);
        float *key_zeros = memory_zeroed((size_t)key_numbers, sizeof *key_zeros);
        Pair p;
        pair_open(device, n, q0, q1, k0, key_ends[i], &p);
        AttentionBackward back = {.shape = p.forward.shape, .in = p.forward.in, .out = out, .dout = dout, .lse = lse};
        back.gradients = p.forward.in;
        back.gradients.q = upload(device, type, zeros, count);
        back.gradients.k = upload(device, type, key_zeros, key_numbers);
        back.gradients.v = upload(device, type, key_zeros, key_numbers);
        device->op->attention_backward(device, &back);
        CHECK_OK(device_finish(device));
        float *dq = download(device, type, back.gradients.q, count),
              *dk = download(device, type, back.gradients.k, key_numbers);
        float *dv = download(device, type, back.gradients.v, key_numbers);
        tokens_add(dq, c->length, wide, q0, q1, r->dq);
        tokens_add(dk, c->length, narrow, k0, key_ends[i], r->dk);
        tokens_add(dv, c->length, narrow, k0, key_ends[i], r->dv);
        free(dq);
        free(dk);
        free(dv);
        free(key_zeros);
        pair_close(&p);
    }
    float *merged = download(device, type, out, count), *sum = download(device, TYPE_FP32, lse, sums);
    tokens_add(merged, c->length, wide, q0, q1, r->out);
    for (int64_t row = 0; row < sums; row++) {
        r->lse[row / queries * c->length + q0 + row % queries] = sum[row];
    }
    release(device, type, other, count);
    release(device, TYPE_FP32, joined, count);
    release(device, TYPE_FP32, other_lse, sums);
    release(device, type, dout, count);
    free(merged);
    free(sum);
    free(zeros);
    free(nothing);
    free(dout_here);
}

static void check_results(const OpTwins *twins, const Case *c, const char *what, const float *x, const float *whole,
                          int64_t count, double tolerance) {
    double most = 0, largest = 0;
    for (int64_t i = 0; i < count; i++) {
        double error = fabs((double)x[i] - (double)whole[i]);
        most = error > most || isnan(error) ? error : most;
        largest = fabs((double)whole[i]) > largest ? fabs((double)whole[i]) : largest;
    }
    if (!CHECK(most <= tolerance * largest && largest > 0)) {
        fprintf(stderr, "%s, %s: %s of blocks is off by %.3g of %.3g\n", twins->label, c->name, what, most, largest);
    }
}

static void check_case(const OpTwins *twins, const Case *c) {
    static const double tolerances[] = {[TYPE_FP32] = 3e-6, [TYPE_BF16] = 0.03, [TYPE_FP16] = 0.004};
    DataType type = twins->type;
    int64_t length = c->length;
    Numbers n = {c,
                 numbers_new(type, query_count(c, length), 1),
                 numbers_new(type, key_count(c, length), 2),
                 numbers_new(type, key_count(c, length), 3),
                 numbers_new(type, query_count(c, length), 4),
                 numbers_new(TYPE_FP32, c->heads, 5),
                 memory_new((size_t)(BATCH * length), sizeof(int32_t))};
    for (int64_t i = 0; i < BATCH * length; i++) {
        n.first[i] = (int32_t)(i % length / 30 * 30);
        n.slopes[i % c->heads] = 0.1f * (float)(i % c->heads + 1);
    }
    Results whole = results_new(c), parts = results_new(c);
    blocks_run(twins->of[0], &n, 0, length, (int64_t[MOST_BLOCKS]){length}, &whole);
    int64_t q0 = 0;
    for (int i = 0; i < MOST_BLOCKS && c->query_ends[i] > 0; q0 = c->query_ends[i], i++) {
        blocks_run(twins->of[0], &n, q0, c->query_ends[i], c->key_ends, &parts);
    }
    double tolerance = tolerances[type];
    check_results(twins, c, "out", parts.out, whole.out, query_count(c, length), tolerance);
    check_results(twins, c, "lse", parts.lse, whole.lse, BATCH * c->heads * length, tolerances[TYPE_FP32]);
    check_results(twins, c, "dq", parts.dq, whole.dq, query_count(c, length), tolerance);
    check_results(twins, c, "dk", parts.dk, whole.dk, key_count(c, length), tolerance);
    check_results(twins, c, "dv", parts.dv, whole.dv, key_count(c, length), tolerance);
    results_free(&whole);
    results_free(&parts);
    free(n.q);
    free(n.k);
    free(n.v);
    free(n.dout);
    free(n.slopes);
    free(n.first);
}

static OpDevices cpus, cards;

static void check_devices(const OpDevices *devices) {
    for (int d = 0; d < devices->count; d++) {
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            check_case(&devices->twins[d], &cases[i]);
        }
    }
}
static void test_cpus(void) {
    check_devices(&cpus);
}
static void test_cards(void) {
    check_devices(&cards);
}

int main(void) {
    op_devices_cpu(&cpus);
    op_devices_cards(&cards);
    RUN(test_cpus);
    RUN(test_cards);
    op_devices_close(&cpus);
    op_devices_close(&cards);
    return check_report();
}
