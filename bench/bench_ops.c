// What the operations around the products reach of this machine's limits.
//
//   bench_ops [--threads 2] [--variant avx2] [--seconds 0.1] [part of a row's name ...]
//
// First the limits, measured in this run. Then each operation at the shapes of GPT-2 124M (256 and 1024 rows) and of a model
// of 4 layers of width 128: median time over repeats, the best in brackets, and GB/s of the bytes that must move (each input
// read once, each output written once) beside the copy bandwidth of memory. Tensors of the small shapes stay in the caches, so
// more than 100% is possible there. Attention counts the multiply-adds of what a causal mask leaves (4 D per query and key
// forward, 10 D backward), beside the peak.
#include "bench/measure.h"
#include "bench/program.h"
#include "kernels/device.h"

#include <stdio.h>
#include <unistd.h>

typedef struct Settings {
    int64_t threads;
    char *variant;
    double seconds;
} Settings;

static const Key flags[] = {
    {"threads", KEY_INT, offsetof(Settings, threads), "0", 0, 256, NULL, NULL, "threads; 0: one for each core"},
    {"variant", KEY_TEXT, offsetof(Settings, variant), "auto", 0, 0, NULL, NULL, "avx512, avx2, baseline, auto"},
    {"seconds", KEY_FLOAT, offsetof(Settings, seconds), "0.1", 0.001, 60, NULL, "seconds", "time for each number"},
};
enum { FLAG_COUNT = sizeof flags / sizeof *flags };

// Dimensions as in kernels/kernels.h.
typedef struct Shape {
    const char *name;
    int64_t batch, length, width;
    int32_t heads, groups;
    float dropout;
    int64_t window;
} Shape;

typedef struct Tensors {
    float *t[8];
    int32_t *tokens, *positions, *first;
} Tensors;

typedef struct Kind {
    const char *name;
    void (*run)(Device *device, const Shape *s, const Tensors *t);
    double tensors;  // of R x C floats that move; 0: counted in flops
    double flops;    // per query, key and element of a head
} Kind;

static int64_t rows_of(const Shape *s) {
    return s->batch * s->length;
}

static AttentionShape attention_of(const Shape *s, const Tensors *t) {
    int32_t head_width = (int32_t)(s->width / s->heads);
    return (AttentionShape){.batch = s->batch,
                            .queries = s->length,
                            .keys = s->length,
                            .heads = s->heads,
                            .groups = s->groups,
                            .head_width = head_width,
                            .scale = 0.125f,
                            .first = t->first,
                            .window = s->window,
                            .dropout = s->dropout,
                            .seed = 1,
                            .stream = 2,
                            .first_sample = 3};
}

static void attention_forward(Device *d, const Shape *s, const Tensors *t) {
    AttentionShape shape = attention_of(s, t);
    d->op->attention_forward(d, &(AttentionForward){shape, attention_packed(&shape, d->type, t->t[0]), t->t[1], t->t[2]});
}
static void attention_backward(Device *d, const Shape *s, const Tensors *t) {
    AttentionShape shape = attention_of(s, t);
    d->op->attention_backward(d, &(AttentionBackward){.shape = shape,
                                                      .in = attention_packed(&shape, d->type, t->t[0]),
                                                      .out = t->t[1],
                                                      .dout = t->t[3],
                                                      .lse = t->t[2],
                                                      .gradients = attention_packed(&shape, d->type, t->t[4])});
}
static void norm_forward(Device *d, const Shape *s, const Tensors *t) {
    d->op->norm_forward(
        d, &(NormForward){NORM_LAYER, rows_of(s), s->width, 1e-5f, t->t[0], t->t[1], t->t[2], t->t[3], t->t[4], t->t[5]});
}
static void norm_backward(Device *d, const Shape *s, const Tensors *t) {
    d->op->norm_backward(d, &(NormBackward){NORM_LAYER, rows_of(s), s->width, t->t[0], t->t[1], t->t[2], t->t[3], t->t[4], true,
                                            t->t[5], t->t[6], t->t[7]});
}
static void rms_forward(Device *d, const Shape *s, const Tensors *t) {
    d->op->norm_forward(d,
                        &(NormForward){NORM_RMS, rows_of(s), s->width, 1e-5f, t->t[0], t->t[1], NULL, t->t[3], NULL, t->t[5]});
}
static void rotary(Device *d, const Shape *s, const Tensors *t) {
    int32_t width = (int32_t)(s->width / s->heads);
    d->op->rotary(
        d, &(Rotary){rows_of(s), 3 * s->width, 2 * s->heads, width, width, false, false, t->positions, t->t[1], t->t[0]});
}
static void gelu(Device *d, const Shape *s, const Tensors *t) {
    d->op->activation_forward(d, &(ActivationForward){ACTIVATION_GELU_TANH, 4 * rows_of(s) * s->width, t->t[0], t->t[1]});
}
static void gelu_erf(Device *d, const Shape *s, const Tensors *t) {
    d->op->activation_forward(d, &(ActivationForward){ACTIVATION_GELU_ERF, 4 * rows_of(s) * s->width, t->t[0], t->t[1]});
}
static void swiglu_forward(Device *d, const Shape *s, const Tensors *t) {
    d->op->gated_forward(d, &(GatedForward){ACTIVATION_SILU, rows_of(s), 2 * s->width, t->t[0], t->t[1]});
}
static void swiglu_backward(Device *d, const Shape *s, const Tensors *t) {
    d->op->gated_backward(d, &(GatedBackward){ACTIVATION_SILU, rows_of(s), 2 * s->width, t->t[1], t->t[0], t->t[2]});
}
static void embedding_forward(Device *d, const Shape *s, const Tensors *t) {
    d->op->embedding_forward(
        d, &(EmbeddingForward){rows_of(s), s->width, 1000, s->length, t->tokens, t->positions, t->t[0], t->t[1], 1, t->t[2]});
}
static void embedding_backward(Device *d, const Shape *s, const Tensors *t) {
    d->op->embedding_backward(
        d, &(EmbeddingBackward){rows_of(s), s->width, 1000, s->length, t->tokens, t->positions, t->t[0], 1, t->t[1], t->t[2]});
}
static void dropout(Device *d, const Shape *s, const Tensors *t) {
    d->op->dropout(d, &(Dropout){rows_of(s) * s->width, 0.1f, 1, 2, 0, t->t[0]});
}
static void add(Device *d, const Shape *s, const Tensors *t) {
    d->op->add(d, rows_of(s) * s->width, t->t[0], t->t[1]);
}
static void zero(Device *d, const Shape *s, const Tensors *t) {
    d->op->zero(d, 4 * rows_of(s) * s->width, t->t[0]);
}
static void sum_of_squares(Device *d, const Shape *s, const Tensors *t) {
    double sum;
    d->op->squares(d, rows_of(s) * s->width, t->t[0], &sum);
}
static void update(Device *d, const Shape *s, const Tensors *t, OptimizerKind kind) {
    UpdateSegment segment = {.count = rows_of(s) * s->width, .rate_scale = 1, .weight_decay = 0.1f};
    StepControl control = {.learning_rate = 1e-4f, .grad_scale = 1, .correction1 = 1, .correction2 = 1};
    d->op->optimizer_update(d, &(OptimizerUpdate){.kind = kind,
                                                  .segments = &segment,
                                                  .segment_count = 1,
                                                  .count = segment.count,
                                                  .beta1 = 0.9f,
                                                  .beta2 = 0.95f,
                                                  .epsilon = 1e-8f,
                                                  .control = &control,
                                                  .grads = t->t[0],
                                                  .weights = t->t[1],
                                                  .moment1 = t->t[2],
                                                  .moment2 = kind == OPTIMIZER_ADAMW ? t->t[3] : NULL});
}
static void adamw(Device *d, const Shape *s, const Tensors *t) {
    update(d, s, t, OPTIMIZER_ADAMW);
}
static void lion(Device *d, const Shape *s, const Tensors *t) {
    update(d, s, t, OPTIMIZER_LION);
}
static void sgd(Device *d, const Shape *s, const Tensors *t) {
    update(d, s, t, OPTIMIZER_SGD);
}

static const Kind attention_kinds[] = {
    {"attention forward", attention_forward, 0, 4},
    {"attention backward", attention_backward, 0, 10},
};
static const Kind row_kinds[] = {
    {"layer norm forward", norm_forward, 2, 0},
    {"layer norm backward (dx +=)", norm_backward, 4, 0},
    {"rms norm forward", rms_forward, 2, 0},
    {"rotary, 2 of 3 thirds", rotary, 4, 0},
    {"gelu tanh, 4 C", gelu, 8, 0},
    {"gelu erf, 4 C", gelu_erf, 8, 0},
    {"swiglu forward, 2 C", swiglu_forward, 6, 0},
    {"swiglu backward, 2 C", swiglu_backward, 10, 0},
    {"embedding forward", embedding_forward, 3, 0},
    {"embedding backward", embedding_backward, 5, 0},
    {"dropout", dropout, 2, 0},
    {"add", add, 3, 0},
    {"zero", zero, 1, 0},
    {"sum of squares", sum_of_squares, 1, 0},
};
static const Kind parameter_kinds[] = {
    {"adamw", adamw, 7, 0}, {"lion", lion, 5, 0}, {"sgd", sgd, 5, 0}, {"sum of squares", sum_of_squares, 1, 0},
    {"zero", zero, 1, 0},   {"add", add, 3, 0},
};

static const Shape attention_shapes[] = {
    {"gpt2 B4 T64", 4, 64, 768, 12, 12, 0, 0},
    {"gpt2 B1 T1024", 1, 1024, 768, 12, 12, 0, 0},
    {"tiny B12 T64", 12, 64, 128, 4, 4, 0, 0},
    {"gpt2 B1 T1024 dropout", 1, 1024, 768, 12, 12, 0.1f, 0},
    {"gpt2 B1 T1024 window 256", 1, 1024, 768, 12, 12, 0, 256},
    {"B1 T2048 D128 4 of 8", 1, 2048, 1024, 8, 4, 0, 0},
};
static const Shape row_shapes[] = {
    {"gpt2 R256", 4, 64, 768, 12, 12, 0, 0},
    {"gpt2 R1024", 1, 1024, 768, 12, 12, 0, 0},
    {"tiny R768", 12, 64, 128, 4, 4, 0, 0},
};
static const Shape parameter_shapes[] = {
    {"32M parameters", 1, 1 << 15, 1024, 1, 1, 0, 0},
    {"0.8M parameters", 1, 800, 1024, 1, 1, 0, 0},
};

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

typedef struct Limits {
    double flops, copy;
    double seconds;
    char **parts;
    int part_count;
} Limits;

static void row(Device *device, const Kind *kind, const Shape *s, const Tensors *t, const Limits *limits) {
    enum { MOST = 2000 };
    static double times[MOST];
    char name[96];
    snprintf(name, sizeof name, "%s, %s", kind->name, s->name);
    bool wanted = limits->part_count == 0;
    for (int i = 0; i < limits->part_count; i++) {
        wanted |= strstr(name, limits->parts[i]) != NULL;
    }
    if (!wanted) {
        return;
    }
    int count = 0;
    kind->run(device, s, t);
    for (double begin = clock_seconds(); count < MOST && (count < 5 || clock_seconds() - begin < limits->seconds);) {
        double start = clock_seconds();
        kind->run(device, s, t);
        times[count++] = clock_seconds() - start;
    }
    qsort(times, (size_t)count, sizeof *times, ascending);
    double median = times[count / 2];
    printf("%-46s %9.1f us (%9.1f)", name, median * 1e6, times[0] * 1e6);
    if (kind->flops > 0) {
        double seen = (double)s->length, pairs = 0;
        for (int64_t q = 0; q < s->length; q++) {
            seen = s->window > 0 && q >= s->window ? (double)s->window : (double)q + 1;
            pairs += seen;
        }
        double rate = kind->flops * pairs * (double)(s->batch * s->width) / median;
        printf(" %8.1f GFLOP/s %5.1f%%\n", rate * 1e-9, 100 * rate / limits->flops);
    } else {
        double rate = kind->tensors * (double)(rows_of(s) * s->width) * 4 / median;
        printf(" %8.1f GB/s    %5.1f%%\n", rate * 1e-9, 100 * rate / limits->copy);
    }
    fflush(stdout);
}

static void group(Device *device, const Kind *kinds, int kind_count, const Shape *shapes, int shape_count, int64_t widest,
                  const Limits *limits) {
    for (int i = 0; i < shape_count; i++) {
        const Shape *s = &shapes[i];
        // `widest` rows-by-width floats for each tensor, and at least room for a table of 1024 rows.
        int64_t rows = rows_of(s) > 1024 ? rows_of(s) : 1024;
        size_t bytes = (size_t)(widest * rows * s->width) * sizeof(float);
        Tensors t;
        for (int k = 0; k < 8; k++) {
            t.t[k] = memory_tensor(bytes);
            for (size_t e = 0; e < bytes / sizeof(float); e++) {
                t.t[k][e] = (float)((e * 37 + (size_t)k) % 101) * 0.02f - 1;
            }
        }
        t.tokens = memory_tensor((size_t)rows * 4);
        t.positions = memory_tensor((size_t)rows * 4);
        t.first = memory_tensor((size_t)rows * 4);
        for (int64_t r = 0; r < rows; r++) {
            t.tokens[r] = (int32_t)(r * 7919 % 1000);
            t.positions[r] = (int32_t)(r % s->length % 1024);
        }
        if (kinds == attention_kinds) {
            attention_forward(device, s, &t);  // the log-sum-exp that the backward pass needs
        }
        if (kinds == parameter_kinds) {
            memset(t.t[3], 0, bytes);  // second moments are not negative
        }
        for (int k = 0; k < kind_count; k++) {
            row(device, &kinds[k], s, &t, limits);
        }
        for (int k = 0; k < 8; k++) {
            memory_tensor_free(t.t[k], bytes);
        }
        memory_tensor_free(t.tokens, (size_t)rows * 4);
        memory_tensor_free(t.positions, (size_t)rows * 4);
        memory_tensor_free(t.first, (size_t)rows * 4);
    }
}

#define COUNT(array) (int)(sizeof(array) / sizeof *(array))

static Error *bench(const void *given, int part_count, char **parts) {
    const Settings *s = given;
    int threads = s->threads > 0 ? (int)s->threads : threads_available();
    Device *device;
    TRY(device_open_cpu(threads, s->variant, &device));
    Limits limits = {measure_peak_flops(device->op->name, device->pool), measure_bandwidth(TRAFFIC_COPY, device->pool),
                     s->seconds, parts, part_count};
    printf("%s, %d thread%s: peak %.1f GFLOP/s, copy %.1f GB/s\n\n%-46s %12s (%9s) %16s of limit\n", device->op->name, threads,
           threads > 1 ? "s" : "", limits.flops * 1e-9, limits.copy * 1e-9, "", "median", "best us", "");
    group(device, attention_kinds, COUNT(attention_kinds), attention_shapes, COUNT(attention_shapes), 3, &limits);
    group(device, row_kinds, COUNT(row_kinds), row_shapes, COUNT(row_shapes), 4, &limits);
    group(device, parameter_kinds, COUNT(parameter_kinds), parameter_shapes, COUNT(parameter_shapes), 1, &limits);
    device_close(device);
    return NULL;
}

int main(int argc, char **argv) {
    Settings settings = {0};
    return program_main("bench_ops", flags, FLAG_COUNT, &settings, bench, argc, argv);
}
