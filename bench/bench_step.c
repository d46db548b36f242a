// A whole training step on the CPU, beside what the machine allows.
//
//   bench_step [--threads 2] [--variant avx2] [--seconds 5] [part of a case's name ...]
//
// One step: gradients to zero, forward, backward, AdamW. For each case: tokens a second (median and best over the steps), and,
// of the best step, by kind of operation the time, its share, and the limit: the sum over its calls of max(operations / peak,
// bytes / bandwidth), with the peak of fp32 multiply-adds and the best memory bandwidth measured in this run. Operations are
// the multiply-adds of matrix products and of attention (its causal half; scores once more in backward). Bytes are those of
// parameters, gradients and moments, where these are larger than the caches; activations count nothing. The bandwidth is the
// best that plain streams or our own update over arrays of the same size reach. So the limit is below
// what any program could reach.
#include "bench/measure.h"
#include "bench/program.h"
#include "core/philox.h"
#include "core/text.h"
#include "train/model/model.h"

#include <math.h>
#include <stdio.h>
#include <time.h>

// ---- A device whose operations are timed

typedef enum Kind {
    KIND_MATMUL_FORWARD,
    KIND_MATMUL_INPUT,
    KIND_MATMUL_WEIGHT,
    KIND_ATTENTION_FORWARD,
    KIND_ATTENTION_BACKWARD,
    KIND_CLASSIFIER,
    KIND_NORM,
    KIND_ACTIVATION,
    KIND_ROTARY,
    KIND_EMBEDDING,
    KIND_OPTIMIZER,
    KIND_ZERO,
    KIND_COUNT,
} Kind;

static const char *const kind_names[KIND_COUNT] = {
    "matmul forward",
    "matmul backward input",
    "matmul backward weight",
    "attention forward",
    "attention backward",
    "head and loss",
    "norms",
    "activations",
    "rotary",
    "embedding",
    "optimizer",
    "zero",
};

static bool cpu_time;

static double now(void) {
    struct timespec t;
    clock_gettime(cpu_time ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static const Operations *timed;                              // the table underneath
static double seconds_of[KIND_COUNT], limit_of[KIND_COUNT];  // of the present step
static double peak_flops, bandwidth;                         // bandwidth 0: everything stays in the caches

static void count(Kind kind, double start, double flops, double bytes) {
    seconds_of[kind] += now() - start;
    limit_of[kind] += fmax(flops / peak_flops, bandwidth > 0 ? bytes / bandwidth : 0);
}

static double product(int64_t a, int64_t b, int64_t c) {
    return (double)a * (double)b * (double)c;
}

static void timed_matmul_forward(Device *device, const MatmulForward *a) {
    double start = now();
    timed->matmul_forward(device, a);
    count(KIND_MATMUL_FORWARD, start, 2 * product(a->rows, a->in, a->out), 4 * product(1, a->in, a->out));
}

static void timed_matmul_backward_input(Device *device, const MatmulBackwardInput *a) {
    double start = now();
    timed->matmul_backward_input(device, a);
    count(KIND_MATMUL_INPUT, start, 2 * product(a->rows, a->in, a->out), 4 * product(1, a->in, a->out));
}

static void timed_matmul_backward_weight(Device *device, const MatmulBackwardWeight *a) {
    double start = now();
    timed->matmul_backward_weight(device, a);
    count(KIND_MATMUL_WEIGHT, start, 2 * product(a->rows, a->in, a->out), 8 * product(1, a->in, a->out));
}

static double attention_flops(const AttentionShape *s, double products) {
    return products * (double)s->batch * s->heads * s->head_width * (double)s->queries * (double)(s->keys + 1);
}

static void timed_attention_forward(Device *device, const AttentionForward *a) {
    double start = now();
    timed->attention_forward(device, a);
    count(KIND_ATTENTION_FORWARD, start, attention_flops(&a->shape, 2), 0);
}

static void timed_attention_backward(Device *device, const AttentionBackward *a) {
    double start = now();
    timed->attention_backward(device, a);
    count(KIND_ATTENTION_BACKWARD, start, attention_flops(&a->shape, 5), 0);
}

static void timed_classifier(Device *device, const Classifier *a) {
    double start = now();
    timed->classifier(device, a);
    double weights = product(1, a->width, a->vocabulary);
    count(KIND_CLASSIFIER, start, 6 * (double)a->rows * weights, 16 * weights);
}

static void timed_optimizer_update(Device *device, const OptimizerUpdate *a) {
    double start = now();
    timed->optimizer_update(device, a);
    double elements = 0;
    for (int64_t i = 0; i < a->segment_count; i++) {
        elements += (double)a->segments[i].count;
    }
    count(KIND_OPTIMIZER, start, 0, 28 * elements);
}

static void timed_zero(Device *device, int64_t bytes, void *x) {
    double start = now();
    timed->zero(device, bytes, x);
    count(KIND_ZERO, start, 0, (double)bytes);
}

#define TIMED(operation, Arguments, kind)                                                                                      \
    static void timed_##operation(Device *device, const Arguments *a) {                                                        \
        double start = now();                                                                                                  \
        timed->operation(device, a);                                                                                           \
        count(kind, start, 0, 0);                                                                                              \
    }
TIMED(norm_forward, NormForward, KIND_NORM)
TIMED(norm_backward, NormBackward, KIND_NORM)
TIMED(rotary, Rotary, KIND_ROTARY)
TIMED(activation_forward, ActivationForward, KIND_ACTIVATION)
TIMED(gated_forward, GatedForward, KIND_ACTIVATION)
TIMED(gated_backward, GatedBackward, KIND_ACTIVATION)
TIMED(embedding_forward, EmbeddingForward, KIND_EMBEDDING)
TIMED(embedding_backward, EmbeddingBackward, KIND_EMBEDDING)

static Operations timed_operations(const Operations *inner) {
    timed = inner;
    Operations all = *inner;
    all.matmul_forward = timed_matmul_forward;
    all.matmul_backward_input = timed_matmul_backward_input;
    all.matmul_backward_weight = timed_matmul_backward_weight;
    all.attention_forward = timed_attention_forward;
    all.attention_backward = timed_attention_backward;
    all.classifier = timed_classifier;
    all.norm_forward = timed_norm_forward;
    all.norm_backward = timed_norm_backward;
    all.rotary = timed_rotary;
    all.activation_forward = timed_activation_forward;
    all.gated_forward = timed_gated_forward;
    all.gated_backward = timed_gated_backward;
    all.embedding_forward = timed_embedding_forward;
    all.embedding_backward = timed_embedding_backward;
    all.optimizer_update = timed_optimizer_update;
    all.zero = timed_zero;
    return all;
}

// ---- Cases

typedef struct Case {
    const char *name;
    ModelConfig config;
    int64_t sequences, length;
    bool cached;  // parameters, gradients and moments fit a large last-level cache
} Case;

#define GPT2_SWITCHES                                                                                                          \
    .norm = NORM_LAYER, .norm_epsilon = 1e-5, .norm_bias = true, .qkv_bias = true, .attention_bias = true, .ffn_bias = true,   \
    .position = POSITION_LEARNED, .activation = ACTIVATION_GELU_TANH, .tied_head = true, .embedding_scale = 1,                 \
    .rotary_theta = 1e4, .rotary_fraction = 1, .init_deviation = 0.02, .init_scale_residual = true
#define LLAMA_SWITCHES                                                                                                         \
    .norm = NORM_RMS, .norm_epsilon = 1e-5, .position = POSITION_ROTARY, .activation = ACTIVATION_SILU, .gated = true,         \
    .embedding_scale = 1, .rotary_theta = 1e4, .rotary_fraction = 1, .init_deviation = 0.02, .init_scale_residual = true
#define SHAPE(l, c, h, g, f, t, v)                                                                                             \
    .layers = (l), .width = (c), .heads = (h), .groups = (g), .head_width = (c) / (h), .ffn_width = (f), .context = (t),       \
    .vocabulary = (v)

static const Case cases[] = {
    {"gpt2-124m B=4 T=64", {SHAPE(12, 768, 12, 12, 3072, 1024, 50257), GPT2_SWITCHES}, 4, 64, false},
    {"gpt2-124m B=1 T=1024", {SHAPE(12, 768, 12, 12, 3072, 1024, 50257), GPT2_SWITCHES}, 1, 1024, false},
    {"tiny B=12 T=64", {SHAPE(4, 128, 4, 4, 512, 64, 256), GPT2_SWITCHES}, 12, 64, true},
    {"llama-125m B=4 T=64", {SHAPE(12, 768, 12, 4, 2048, 2048, 32000), LLAMA_SWITCHES}, 4, 64, false},
};
enum { CASES = sizeof cases / sizeof *cases };

typedef struct Settings {
    int64_t threads;
    char *variant;
    double seconds;
    int recompute;
    int64_t head_rows;
    bool cpu_time;
} Settings;

static const Key flags[] = {
    {"threads", KEY_INT, offsetof(Settings, threads), "0", 0, 256, NULL, NULL, "threads; 0: one for each core"},
    {"variant", KEY_TEXT, offsetof(Settings, variant), "auto", .help = "instruction set: avx512, avx2, baseline, auto"},
    {"seconds", KEY_FLOAT, offsetof(Settings, seconds), "5", 0.001, 600, NULL, "seconds", "time for each case"},
    {"recompute", KEY_CHOICE, offsetof(Settings, recompute), "none", .choices = recompute_names, .help = "activations"},
    {"head-rows", KEY_INT, offsetof(Settings, head_rows), "0", 0, 1 << 20, NULL, "rows", "of logits at a time; 0: chosen"},
    {"cpu-time", KEY_BOOL, offsetof(Settings, cpu_time), "false", .help = "processor time of one thread"},
};
enum { FLAG_COUNT = sizeof flags / sizeof *flags };

static void one_step(Model *model, const Batch *batch) {
    double rows = (double)(batch->sequences * batch->length);
    StepOptions how = {.grad_scale = (float)(1 / rows)};
    model_begin_step(model, 1e-4);
    weights_zero_gradients(&model->weights);
    model_forward_backward(model, batch, &how, NULL);
    model_finish_step(model, &(UpdateOptions){.batch_weight = rows, .beta1 = 0.9f, .beta2 = 0.95f, .epsilon = 1e-8f});
    ensure(isfinite(model_control(model).loss_sum), "the loss is not finite");
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// By kind, of the best step so far.
typedef struct Best {
    double step, seconds[KIND_COUNT];
} Best;

static void print_case(const Case *c, double median, const Best *best) {
    double tokens = (double)(c->sequences * c->length), limit = 0, all = 0;
    for (int k = 0; k < KIND_COUNT; k++) {
        limit += limit_of[k];
        all += best->seconds[k];
    }
    printf("%s: %.1f ms a step, %.0f tokens/s (best %.1f ms, %.0f); limit %.1f ms, %.0f tokens/s: %.1f%% of it (best %.1f%%)\n",
           c->name, 1e3 * median, tokens / median, 1e3 * best->step, tokens / best->step, 1e3 * limit, tokens / limit,
           100 * limit / median, 100 * limit / best->step);
    for (int k = 0; k < KIND_COUNT; k++) {
        double seconds = best->seconds[k];
        if (seconds > 0) {
            printf("  %-24s %9.3f ms  %5.1f%%   limit %9.3f ms  %5.1f%%\n", kind_names[k], 1e3 * seconds, 100 * seconds / all,
                   1e3 * limit_of[k], 100 * limit_of[k] / seconds);
        }
    }
    printf("  %-24s %9.3f ms\n", "between operations", 1e3 * (best->step - all));
    fflush(stdout);
}

// Bytes a second of an AdamW update over four arrays of 384 MiB. It can beat the plain streams, and a limit must not be beaten.
static double update_bandwidth(Device *device) {
    enum { ARRAYS = 4, READ_AND_WRITTEN = 7 };
    int64_t count = 96 << 20;
    float *arrays[ARRAYS];
    for (int i = 0; i < ARRAYS; i++) {
        arrays[i] = memory_tensor((size_t)count * sizeof(float));
        memset(arrays[i], 0, (size_t)count * sizeof(float));
    }
    UpdateSegment all = {.count = count, .rate_scale = 1};
    StepControl control = {.learning_rate = 1e-3f, .grad_scale = 1, .correction1 = 1, .correction2 = 1};
    double best = 0;
    for (int64_t i = 1; i <= 6; i++) {
        double start = clock_seconds();
        device->op->optimizer_update(device, &(OptimizerUpdate){
                                                 .kind = OPTIMIZER_ADAMW,
                                                 .segments = &all,
                                                 .segment_count = 1,
                                                 .count = count,
                                                 .beta1 = 0.9f,
                                                 .beta2 = 0.95f,
                                                 .epsilon = 1e-8f,
                                                 .control = &control,
                                                 .grads = arrays[0],
                                                 .weights = arrays[1],
                                                 .moment1 = arrays[2],
                                                 .moment2 = arrays[3],
                                             });
        best = fmax(best, (double)count * READ_AND_WRITTEN * sizeof(float) / (clock_seconds() - start));
    }
    for (int i = 0; i < ARRAYS; i++) {
        memory_tensor_free(arrays[i], (size_t)count * sizeof(float));
    }
    return best;
}

static Error *run_case(Device *device, const Case *c, const Settings *settings, double machine_bandwidth) {
    ModelOptions options = {.sequences = c->sequences,
                            .length = c->length,
                            .recompute = (Recompute)settings->recompute,
                            .head_rows = settings->head_rows};
    Model *model;
    TRY(model_create(device, &c->config, &options, &model));
    model_initialise(model, 1);
    size_t rows = (size_t)(c->sequences * c->length);
    Batch batch;
    batch_allocate(&batch, c->sequences, c->length);
    for (size_t r = 0; r < rows; r++) {
        Philox random = philox(1, philox_stream(RANDOM_TEST, 0), r);
        batch.tokens[r] = (int32_t)(random.word[0] % (uint64_t)c->config.vocabulary);
        batch.targets[r] = (int32_t)(random.word[1] % (uint64_t)c->config.vocabulary);
        batch.positions[r] = (int32_t)(r % (size_t)c->length);
        batch.loss_weights[r] = 1;
        batch.first[r] = 0;
    }
    enum { MOST = 4000 };
    double *times = memory_new(MOST, sizeof *times);
    bandwidth = c->cached ? 0 : machine_bandwidth;
    one_step(model, &batch);
    int steps = 0;
    Best best = {.step = INFINITY};
    for (double begin = now(); steps < MOST && (steps < 3 || now() - begin < settings->seconds); steps++) {
        memset(seconds_of, 0, sizeof seconds_of);
        memset(limit_of, 0, sizeof limit_of);
        double start = now();
        one_step(model, &batch);
        times[steps] = now() - start;
        if (times[steps] < best.step) {
            best.step = times[steps];
            memcpy(best.seconds, seconds_of, sizeof seconds_of);
        }
    }
    qsort(times, (size_t)steps, sizeof *times, ascending);
    print_case(c, times[steps / 2], &best);
    free(times);
    batch_free(&batch);
    model_destroy(model);
    return NULL;
}

static Error *bench(const void *given, int part_count, char **parts) {
    const Settings *settings = given;
    Device *device;
    int threads = settings->threads > 0 ? (int)settings->threads : threads_available();
    cpu_time = settings->cpu_time;
    if (cpu_time && threads != 1) {
        return usage_error("--cpu-time needs --threads 1");
    }
    TRY(device_open_cpu(threads, settings->variant, &device));
    // Other programs may disturb a measurement: several, spread over a second or two.
    double best = 0;
    for (int i = 0; i < 5; i++) {
        peak_flops = fmax(peak_flops, measure_peak_flops(device->op->name, device->pool));
        for (MeasureTraffic kind = TRAFFIC_READ; kind <= TRAFFIC_UPDATE; kind++) {
            best = fmax(best, measure_bandwidth(kind, device->pool));
        }
    }
    best = fmax(best, update_bandwidth(device));
    printf("%s, %d threads: %.1f GFLOP/s, %.1f GB/s\n", device->op->name, threads, peak_flops * 1e-9, best * 1e-9);
    Operations operations = timed_operations(device->op);
    device->op = &operations;
    Error *error = NULL;
    for (int i = 0; i < CASES && error == NULL; i++) {
        bool wanted = part_count == 0;
        for (int p = 0; p < part_count; p++) {
            wanted |= strstr(cases[i].name, parts[p]) != NULL;
        }
        if (wanted) {
            error = run_case(device, &cases[i], settings, best);
        }
    }
    device_close(device);
    return error;
}

int main(int argc, char **argv) {
    Settings settings = {0};
    return program_main("bench_step", flags, FLAG_COUNT, &settings, bench, argc, argv);
}
