// The head fused with cross-entropy against double precision, on every instruction set that this processor runs and on cards:
// losses, z, dx, dw and dbias; rows of weight 0, targets of -1, z-loss, loss scales, chunks of every size, split vocabularies.
//
// Errors are bounded by twice those of the textbook formula in the same type (logits and their gradient stored in it) plus a
// rounding of the largest value. Sentinels stand around every output; 1, 2 and 3 threads and a second run must give the same
// bits.
#include "core/memory.h"
#include "core/philox.h"
#include "kernels/scratch.h"
#include "tests/support/check.h"
#include "tests/support/op_check.h"

#include <math.h>
#include <stdio.h>

enum { GUARD = 64, OUTPUTS = 5, RANKS = 2, MOST_CALLS = 16 };
static const float SENTINEL = -12345.678f;
static const char *const output_names[OUTPUTS] = {"losses", "zs", "dx", "dw", "dbias"};
static OpDevices cpus, cards;

typedef struct Case {
    int64_t rows, width, vocabulary, chunk_rows;
    float z_loss, grad_scale;
    bool bias, dbias, zs, gradient;
    float spread;      // deviation of the logits
    int zeros;         // 0: no row has weight 0, 1: some, 2: all
    float loss_scale;  // 0: none
    bool frozen;       // dw is NULL
    int64_t masked;    // the first columns, whose bias is -infinity
} Case;

typedef struct Inputs {
    DataType type;
    float *x, *w, *bias, *loss_weights;  // x, w and bias: numbers of the type
    int32_t *targets;
    int64_t counts[OUTPUTS];
    float *start[OUTPUTS];  // what outputs hold before
    double *want[OUTPUTS];
    float *plain[OUTPUTS];
} Inputs;

static DataType output_type(DataType type, int output) {
    return output == 2 ? type : TYPE_FP32;
}

static float *random_new(DataType type, int64_t count, uint64_t which, float deviation) {
    float *x = memory_new((size_t)count, sizeof(float));
    philox_normal(11, philox_stream(RANDOM_TEST, which), 0, deviation, x, count);
    for (int64_t i = 0; i < count; i++) {
        x[i] = op_round(type, x[i]);
    }
    return x;
}

// The formulas of kernels.h in double precision and, step by step the same, in the type.
static void reference(const Case *c, Inputs *in) {
    int64_t C = c->width, V = c->vocabulary;
    double *logits = memory_new((size_t)V, sizeof *logits), grad_scale = (double)c->grad_scale;
    grad_scale *= c->loss_scale > 0 ? (double)c->loss_scale : 1;
    float *plain = memory_new((size_t)V, sizeof *plain);
    for (int i = 0; i < OUTPUTS; i++) {
        for (int64_t j = 0; j < in->counts[i]; j++) {
            in->want[i][j] = i < 3 ? 0 : in->start[i][j];
            in->plain[i][j] = i < 3 ? 0 : in->start[i][j];
        }
    }
    for (int64_t r = 0; r < c->rows; r++) {
        double top = -INFINITY, sum = 0;
        float plain_top = -INFINITY, plain_sum = 0;
        for (int64_t v = 0; v < V; v++) {
            logits[v] = 0;
            plain[v] = 0;
            for (int64_t i = 0; i < C; i++) {
                logits[v] += (double)in->x[r * C + i] * (double)in->w[v * C + i];
                plain[v] += in->x[r * C + i] * in->w[v * C + i];
            }
            logits[v] += c->bias ? in->bias[v] : 0;
            plain[v] = op_round(in->type, plain[v] + (c->bias ? in->bias[v] : 0));
            top = fmax(top, logits[v]);
            plain_top = fmaxf(plain_top, plain[v]);
        }
        for (int64_t v = 0; v < V; v++) {
            sum += exp(logits[v] - top);
            plain_sum += expf(plain[v] - plain_top);
        }
        double z = top + log(sum);
        float plain_z = plain_top + logf(plain_sum);
        int32_t target = in->targets[r];
        in->want[0][r] = target >= 0 ? z - logits[target] : 0;
        in->plain[0][r] = target >= 0 ? plain_z - plain[target] : 0;
        in->want[1][r] = z;
        in->plain[1][r] = plain_z;
        if (in->loss_weights[r] == 0) {
            continue;
        }
        double scale = (double)in->loss_weights[r] * grad_scale;
        float plain_scale = in->loss_weights[r] * (float)grad_scale;
        for (int64_t v = 0; v < V; v++) {
            double p = exp(logits[v] - z);
            float plain_p = expf(plain[v] - plain_z);
            double d = scale * (p * (1 + 2 * (double)c->z_loss * z) - (v == target));
            float plain_d = op_round(in->type, plain_scale * (plain_p * (1 + 2 * c->z_loss * plain_z) - (float)(v == target)));
            for (int64_t i = 0; i < C; i++) {
                in->want[2][r * C + i] += d * (double)in->w[v * C + i];
                in->plain[2][r * C + i] += plain_d * in->w[v * C + i];
                in->want[3][v * C + i] += d * (double)in->x[r * C + i];
                in->plain[3][v * C + i] += plain_d * in->x[r * C + i];
            }
            in->want[4][v] += d;
            in->plain[4][v] += plain_d;
        }
        for (int64_t i = 0; i < C; i++) {
            in->plain[2][r * C + i] = op_round(in->type, in->plain[2][r * C + i]);
        }
    }
    free(logits);
    free(plain);
}

static Inputs inputs_new(const Case *c, DataType type) {
    int64_t R = c->rows, C = c->width, V = c->vocabulary;
    Inputs in = {.type = type, .counts = {R, R, R * C, V * C, V}};
    in.x = random_new(type, R * C, 1, c->spread);
    in.w = random_new(type, V * C, 2, 1 / sqrtf((float)C));
    in.bias = random_new(type, V, 3, 1);
    for (int64_t v = 0; v < c->masked; v++) {
        in.bias[v] = -INFINITY;
    }
    in.loss_weights = memory_new((size_t)R, sizeof(float));
    in.targets = memory_new((size_t)R, sizeof(int32_t));
    for (int64_t r = 0; r < R; r++) {
        uint64_t random = philox_u64(11, philox_stream(RANDOM_TEST, 4), (uint64_t)r);
        bool zero = c->zeros == 2 || (c->zeros == 1 && (random % 3 == 0 || r == 0 || r == R - 1));
        in.loss_weights[r] = zero ? 0 : 0.25f * (float)(1 + random % 7);
        in.targets[r] =
            zero && random % 2 == 0 ? -1 : (int32_t)((random >> 8) % (uint64_t)(V - c->masked) + (uint64_t)c->masked);
    }
    for (int i = 0; i < OUTPUTS; i++) {
        in.start[i] = random_new(output_type(type, i), in.counts[i], 5 + (uint64_t)i, 0.1f);
        in.want[i] = memory_new((size_t)in.counts[i], sizeof(double));
        in.plain[i] = memory_new((size_t)in.counts[i], sizeof(float));
    }
    reference(c, &in);
    return in;
}

static void inputs_free(Inputs *in) {
    free(in->x);
    free(in->w);
    free(in->bias);
    free(in->loss_weights);
    free(in->targets);
    for (int i = 0; i < OUTPUTS; i++) {
        free(in->start[i]);
        free(in->want[i]);
        free(in->plain[i]);
    }
}

static bool present(const Case *c, int output) {
    return output == 0 || (output == 1 ? c->zs : c->gradient && (output == 2 || (output == 3 ? !c->frozen : c->dbias)));
}

// `count` floats in device memory, in a type, with guards around them where asked.
typedef struct Tensor {
    DataType type;
    int64_t count, guard;
    char *memory, *at;
} Tensor;

static size_t tensor_bytes(const Tensor *t) {
    return (size_t)((t->count + 2 * t->guard) * data_type_bytes(t->type));
}

static Tensor tensor_new(Device *device, DataType type, const float *values, int64_t count, int64_t guard) {
    Tensor t = {.type = type, .count = count, .guard = guard};
    float *all = memory_new((size_t)(count + 2 * guard), sizeof *all);
    for (int64_t i = 0; i < guard; i++) {
        all[i] = all[guard + count + i] = SENTINEL;
    }
    memcpy(all + guard, values, (size_t)count * sizeof *all);
    char *encoded = memory_new(tensor_bytes(&t), 1);
    op_encode(type, all, encoded, count + 2 * guard);
    void *memory;
    CHECK_OK(device_allocate(device, tensor_bytes(&t), &memory));
    device_upload(device, memory, encoded, tensor_bytes(&t));
    t.memory = memory;
    t.at = t.memory + guard * data_type_bytes(type);
    free(all);
    free(encoded);
    return t;
}

// The values, after the guards were looked at.
static void tensor_take(Device *device, const Tensor *t, float *out) {
    float *all = memory_new((size_t)(t->count + 2 * t->guard), sizeof *all);
    char *encoded = memory_new(tensor_bytes(t), 1);
    device_download(device, encoded, t->memory, tensor_bytes(t));
    op_decode(t->type, encoded, all, t->count + 2 * t->guard);
    float sentinel = op_round(t->type, SENTINEL);
    for (int64_t i = 0; i < t->guard; i++) {
        CHECK(all[i] == sentinel && all[t->guard + t->count + i] == sentinel);
    }
    memcpy(out, all + t->guard, (size_t)t->count * sizeof *out);
    free(all);
    free(encoded);
}

static void tensor_free(Device *device, Tensor *t) {
    device_release(device, t->memory, tensor_bytes(t));
}

// One call on columns first .. + columns of the vocabulary; `share` may be NULL. out[i] holds what came back.
static void run(Device *device, const Case *c, const Inputs *in, int64_t first, int64_t columns, const ClassifierShare *share,
                float *const *out) {
    DataType type = device->type;
    int64_t R = c->rows, C = c->width;
    int64_t counts[OUTPUTS] = {R, R, R * C, columns * C, columns};
    int64_t offsets[OUTPUTS] = {0, 0, 0, first * C, first};
    Tensor x = tensor_new(device, type, in->x, R * C, 0), w = tensor_new(device, type, in->w + first * C, columns * C, 0);
    Tensor bias = tensor_new(device, type, in->bias + first, columns, 0);
    Tensor loss_weights = tensor_new(device, TYPE_FP32, in->loss_weights, R, 0), loss_scale;
    Tensor targets = tensor_new(device, TYPE_FP32, (const float *)(const void *)in->targets, R, 0);
    Tensor outputs[OUTPUTS];
    loss_scale = tensor_new(device, TYPE_FP32, &c->loss_scale, 1, 0);
    for (int i = 0; i < OUTPUTS; i++) {
        outputs[i] = tensor_new(device, output_type(type, i), in->start[i] + offsets[i], counts[i], GUARD);
    }
    int64_t bytes = classifier_scratch_bytes(device->kind != DEVICE_CPU, type, c->chunk_rows, columns);
    char *rubbish = memory_new((size_t)bytes + GUARD, 1);
    memset(rubbish, 0xA5, (size_t)bytes + GUARD);
    void *scratch;
    CHECK_OK(device_allocate(device, (size_t)bytes + GUARD, &scratch));
    device_upload(device, scratch, rubbish, (size_t)bytes + GUARD);
    device->op->classifier(device, &(Classifier){.rows = R,
                                                 .width = C,
                                                 .vocabulary = columns,
                                                 .x = x.at,
                                                 .w = w.at,
                                                 .bias = c->bias ? bias.at : NULL,
                                                 .targets = (void *)targets.at,
                                                 .loss_weights = (void *)loss_weights.at,
                                                 .z_loss = c->z_loss,
                                                 .grad_scale = c->grad_scale,
                                                 .losses = (void *)outputs[0].at,
                                                 .zs = present(c, 1) ? (void *)outputs[1].at : NULL,
                                                 .dx = present(c, 2) ? (void *)outputs[2].at : NULL,
                                                 .dw = present(c, 3) ? (void *)outputs[3].at : NULL,
                                                 .dbias = present(c, 4) ? (void *)outputs[4].at : NULL,
                                                 .chunk_rows = c->chunk_rows,
                                                 .scratch = scratch,
                                                 .loss_scale = c->loss_scale > 0 ? (void *)loss_scale.at : NULL,
                                                 .share = share});
    CHECK_OK(device_finish(device));
    device_download(device, rubbish, scratch, (size_t)bytes + GUARD);
    for (int i = 0; i < GUARD; i++) {
        CHECK((unsigned char)rubbish[bytes + i] == 0xA5);
    }
    free(rubbish);
    device_release(device, scratch, (size_t)bytes + GUARD);
    for (int i = 0; i < OUTPUTS; i++) {
        tensor_take(device, &outputs[i], out[i]);
        tensor_free(device, &outputs[i]);
    }
    Tensor *inputs[] = {&x, &w, &bias, &loss_weights, &targets, &loss_scale};
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) {
        tensor_free(device, inputs[i]);
    }
}

static double worst(const double *want, const float *have, int64_t count) {
    double most = 0;
    for (int64_t i = 0; i < count; i++) {
        double error = have != NULL ? fabs((double)have[i] - want[i]) : fabs(want[i]);
        most = error > most || isnan(error) ? error : most;
    }
    return most;
}

static void check_errors(const Case *c, const char *label, const Inputs *in, float *const *out) {
    static const double units[] = {[TYPE_FP32] = 1.2e-7, [TYPE_BF16] = 0x1p-7, [TYPE_FP16] = 0x1p-10};
    for (int i = 0; i < OUTPUTS; i++) {
        if (present(c, i)) {
            double floor = units[output_type(in->type, i)] * worst(in->want[i], NULL, in->counts[i]);
            // A loss is the difference of z and a logit, so z's rounding is its floor.
            floor = i == 0 ? fmax(floor, 1.2e-7 * worst(in->want[1], NULL, c->rows)) : floor;
            double bound = 2 * worst(in->want[i], in->plain[i], in->counts[i]) + floor;
            double error = worst(in->want[i], out[i], in->counts[i]);
            if (!CHECK(error <= bound)) {
                printf("%s R=%lld C=%lld V=%lld: %s errs by %g, allowed %g\n", label, (long long)c->rows, (long long)c->width,
                       (long long)c->vocabulary, output_names[i], error, bound);
            }
        } else {
            CHECK(memcmp(out[i], in->start[i], (size_t)in->counts[i] * sizeof(float)) == 0);
        }
    }
}

static void outputs_new(const Inputs *in, float **out) {
    for (int i = 0; i < OUTPUTS; i++) {
        out[i] = memory_new((size_t)in->counts[i], sizeof(float));
    }
}

static void outputs_free(float **out) {
    for (int i = 0; i < OUTPUTS; i++) {
        free(out[i]);
    }
}

static void check_twins(const OpTwins *twins, const Case *c) {
    Inputs in = inputs_new(c, twins->type);
    float *out[OUTPUTS], *first[OUTPUTS];
    outputs_new(&in, out);
    outputs_new(&in, first);
    for (int d = 0; d < 2 * OP_TWINS && twins->of[d / 2] != NULL; d++) {
        run(twins->of[d / 2], c, &in, 0, c->vocabulary, NULL, d == 0 ? first : out);
        if (d == 0) {
            check_errors(c, twins->label, &in, first);
        }
        for (int i = 0; i < OUTPUTS && d > 0; i++) {
            CHECK(memcmp(first[i], out[i], (size_t)in.counts[i] * sizeof(float)) == 0);
        }
    }
    outputs_free(out);
    outputs_free(first);
    inputs_free(&in);
}

static void check_case(const Case *c) {
    for (int i = 0; i < cpus.count; i++) {
        check_twins(&cpus.twins[i], c);
    }
    for (int i = 0; i < cards.count; i++) {
        check_twins(&cards.twins[i], c);
    }
}

// Two ranks in one process, one after the other, again and again: calls below `known` give what both ranks brought to them
// before, the others only remember what was brought.
typedef struct Exchange {
    Device *device;
    int rank, call, known;
    float *brought[RANKS][MOST_CALLS];
} Exchange;

static void exchange(void *context, float *values, int64_t count, bool maximum) {
    Exchange *e = context;
    int call = e->call++;
    ensure(call < MOST_CALLS, "room for %d exchanges", MOST_CALLS);
    float *mine = memory_resize(e->brought[e->rank][call], (size_t)count, sizeof *mine);
    device_download(e->device, mine, values, (size_t)count * sizeof *mine);
    e->brought[e->rank][call] = mine;
    if (call < e->known) {
        float *all = memory_new((size_t)count, sizeof *all);
        for (int64_t i = 0; i < count; i++) {
            float a = e->brought[0][call][i], b = e->brought[1][call][i];
            all[i] = maximum ? fmaxf(a, b) : a + b;
        }
        device_upload(e->device, values, all, (size_t)count * sizeof *all);
        CHECK_OK(device_finish(e->device));
        free(all);
    }
}

static void check_split(const OpTwins *twins, const Case *c) {
    Device *device = twins->of[0];
    Inputs in = inputs_new(c, twins->type);
    int64_t columns[RANKS] = {c->vocabulary / 3, c->vocabulary - c->vocabulary / 3}, C = c->width;
    Exchange e = {.device = device};
    float *whole[OUTPUTS], *part[RANKS][OUTPUTS];
    outputs_new(&in, whole);
    outputs_new(&in, part[0]);
    outputs_new(&in, part[1]);
    do {
        for (e.rank = 0; e.rank < RANKS; e.rank++) {
            ClassifierShare share = {.first = e.rank * columns[0], .all_reduce = exchange, .context = &e};
            e.call = 0;
            run(device, c, &in, share.first, columns[e.rank], &share, part[e.rank]);
        }
    } while (e.known++ < e.call);
    int64_t chunks = (c->rows + c->chunk_rows - 1) / c->chunk_rows;
    CHECK_I64(e.call, 2 * chunks);
    for (int i = 0; i < 2; i++) {
        CHECK(memcmp(part[0][i], part[1][i], (size_t)in.counts[i] * sizeof(float)) == 0);
        memcpy(whole[i], part[0][i], (size_t)in.counts[i] * sizeof(float));
    }
    for (int64_t i = 0; i < in.counts[2]; i++) {
        whole[2][i] = c->gradient ? part[0][2][i] + part[1][2][i] : in.start[2][i];
    }
    for (int i = 3; i < OUTPUTS; i++) {
        int64_t each = i == 3 ? C : 1;
        memcpy(whole[i], part[0][i], (size_t)(columns[0] * each) * sizeof(float));
        memcpy(whole[i] + columns[0] * each, part[1][i], (size_t)(columns[1] * each) * sizeof(float));
    }
    check_errors(c, twins->label, &in, whole);
    for (int i = 0; i < MOST_CALLS; i++) {
        free(e.brought[0][i]);
        free(e.brought[1][i]);
    }
    outputs_free(whole);
    outputs_free(part[0]);
    outputs_free(part[1]);
    inputs_free(&in);
}

static void test_training(void) {
    static const int64_t shapes[][4] = {{1, 1, 1, 1},      {3, 5, 2, 2},      {7, 16, 17, 7},      {8, 13, 31, 3},
                                        {16, 32, 64, 5},   {33, 24, 101, 16}, {50, 48, 256, 64},   {19, 7, 1601, 19},
                                        {40, 64, 997, 13}, {24, 770, 49, 24}, {130, 136, 261, 130}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        Case c = {shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], .grad_scale = 0.125f, .gradient = true, .spread = 2};
        check_case(&c);
        c.bias = c.dbias = c.zs = true;
        c.z_loss = 0.01f;
        c.zeros = 1;
        c.loss_scale = 64;
        check_case(&c);
        c.frozen = true;
        c.dbias = i % 2 == 0;
        check_case(&c);
    }
}

static void test_split_vocabulary(void) {
    static const Case split[] = {
        {7, 16, 17, 7, .grad_scale = 0.5f, .gradient = true, .spread = 2, .zs = true},
        {19, 24, 403, 7, 0.01f, 0.125f, .bias = true, .dbias = true, .zs = true, .gradient = true, .spread = 2, .zeros = 1},
        {5, 8, 40, 5, .grad_scale = 1, .spread = 100},
    };
    for (size_t i = 0; i < sizeof split / sizeof *split; i++) {
        for (int d = 0; d < cpus.count; d++) {
            check_split(&cpus.twins[d], &split[i]);
        }
        for (int d = 0; d < cards.count; d++) {
            check_split(&cards.twins[d], &split[i]);
        }
    }
}

static void test_forward_only(void) {
    check_case(&(Case){17, 20, 300, 5, .grad_scale = 1, .spread = 3});
    check_case(&(Case){17, 20, 300, 17, .grad_scale = 1, .spread = 3, .bias = true, .zs = true, .zeros = 1});
}

static void test_no_weight(void) {
    check_case(&(Case){9, 12, 40, 4, .grad_scale = 1, .gradient = true, .dbias = true, .zs = true, .spread = 1, .zeros = 2});
}

// Logits of several hundred: exp would overflow without the shift by the maximum.
static void test_large_logits(void) {
    check_case(&(Case){12, 16, 130, 12, .grad_scale = 1, .gradient = true, .zs = true, .spread = 300});
}

// Rows of many packs for each thread of a block: GPT-2's own vocabulary, of which a card keeps all or a part in shared memory;
// a round that is just full, and one pack more; threads whose first packs are -infinity.
static void test_wide(void) {
    Case c = {2, 4, 50257, 2, 0.01f, 0.5f, .bias = true, .dbias = true, .zs = true, .gradient = true, .spread = 2};
    c.masked = 20000;
    check_case(&c);
    c.vocabulary = 16384;
    c.masked = 0;
    check_case(&c);
    c.vocabulary = 16385;
    c.masked = 16000;
    for (int d = 0; d < cards.count; d++) {
        check_twins(&cards.twins[d], &c);
        check_split(&cards.twins[d], &c);
    }
}

int main(void) {
    op_devices_cpu(&cpus);
    op_devices_cards(&cards);
    RUN(test_training);
    RUN(test_split_vocabulary);
    RUN(test_forward_only);
    RUN(test_no_weight);
    RUN(test_large_logits);
    RUN(test_wide);
    op_devices_close(&cpus);
    op_devices_close(&cards);
    return check_report();
}
