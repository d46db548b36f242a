// What this machine's processor can do, and what the products of a training step reach of it.
//
//   bench_cpu [--threads 2] [--variant avx2] [--seconds 0.3] [--no-libraries] [part of a row's name ...]
//
// First the limits, measured in this run: fp32 multiply-adds a second from registers, and memory bandwidth. Then each product
// on the shapes of GPT-2 124M and of a tiny model, beside OpenBLAS (cblas_sgemm) and oneDNN (dnnl_sgemm) where these libraries
// can be loaded. Each number is the median over repeats, in brackets the best one; percent are of the measured peak. The
// libraries' products are bare; ours include bias, activation and residual where the row says so.
#include "bench/measure.h"
#include "bench/program.h"
#include "kernels/device.h"
#include "kernels/scratch.h"

#include <dlfcn.h>
#include <stdio.h>
#include <unistd.h>

typedef struct Settings {
    int64_t threads;
    char *variant;
    double seconds;
    bool libraries;
} Settings;

static const Key flags[] = {
    {"threads", KEY_INT, offsetof(Settings, threads), "0", 0, 1024, NULL, NULL, "threads; 0: one for each core"},
    {"variant", KEY_TEXT, offsetof(Settings, variant), "auto", 0, 0, NULL, NULL,
     "instruction set: avx512, avx2, baseline, auto"},
    {"seconds", KEY_FLOAT, offsetof(Settings, seconds), "0.3", 0.001, 60, NULL, "seconds", "time for each number"},
    {"libraries", KEY_BOOL, offsetof(Settings, libraries), "true", 0, 0, NULL, NULL, "measure OpenBLAS and oneDNN too"},
};
enum { FLAG_COUNT = sizeof flags / sizeof *flags };

// ---- The other libraries

typedef void (*CblasSgemm)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float *a, int lda,
                           const float *b, int ldb, float beta, float *c, int ldc);
typedef int (*DnnlSgemm)(char trans_a, char trans_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda,
                         const float *b, int64_t ldb, float beta, float *c, int64_t ldc);
static CblasSgemm cblas_sgemm;
static DnnlSgemm dnnl_sgemm;

static void load_libraries(const char *variant, int threads) {
    // OpenBLAS does not know newer processors; the kernels of the same instruction set are chosen by name, before it loads.
    setenv("OPENBLAS_CORETYPE", strstr(variant, "avx512") != NULL ? "SKYLAKEX" : "HASWELL", 0);
    if (strstr(variant, "avx512") == NULL) {
        setenv("DNNL_MAX_CPU_ISA", "AVX2", 0);
    }
    void *blas = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    if (blas != NULL) {
        *(void **)&cblas_sgemm = dlsym(blas, "cblas_sgemm");
        void (*set_threads)(int);
        *(void **)&set_threads = dlsym(blas, "openblas_set_num_threads");
        if (set_threads != NULL) {
            set_threads(threads);
        }
    }
    static const char *const names[] = {"libdnnl.so.2", "libdnnl.so.3", "libdnnl.so"};
    void *dnnl = NULL;
    for (int i = 0; i < 3 && dnnl == NULL; i++) {
        dnnl = dlopen(names[i], RTLD_NOW | RTLD_GLOBAL);
    }
    if (dnnl != NULL) {
        *(void **)&dnnl_sgemm = dlsym(dnnl, "dnnl_sgemm");
        void (*set_threads)(int);
        *(void **)&set_threads = dlsym(RTLD_DEFAULT, "omp_set_num_threads");
        if (set_threads != NULL) {
            set_threads(threads);
        }
    }
}

// ---- One row of the table

typedef enum Form { FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT, CLASSIFIER } Form;

typedef struct Row {
    const char *name;
    Form form;
    int64_t rows, in, out;
    Activation activation;
    bool residual;
} Row;

static const Row rows[] = {
    {"gpt2 B4 T64 qkv forward", FORWARD, 256, 768, 2304, ACTIVATION_NONE, false},
    {"gpt2 B4 T64 qkv dx", BACKWARD_INPUT, 256, 768, 2304, ACTIVATION_NONE, false},
    {"gpt2 B4 T64 qkv dw", BACKWARD_WEIGHT, 256, 768, 2304, ACTIVATION_NONE, false},
    {"gpt2 B4 T64 proj forward", FORWARD, 256, 768, 768, ACTIVATION_NONE, true},
    {"gpt2 B4 T64 proj dx", BACKWARD_INPUT, 256, 768, 768, ACTIVATION_NONE, false},
    {"gpt2 B4 T64 proj dw", BACKWARD_WEIGHT, 256, 768, 768, ACTIVATION_NONE, false},
    {"gpt2 B4 T64 up forward, GELU", FORWARD, 256, 768, 3072, ACTIVATION_GELU_TANH, false},
    {"gpt2 B4 T64 up dx", BACKWARD_INPUT, 256, 768, 3072, ACTIVATION_NONE, false},
    {"gpt2 B4 T64 up dw", BACKWARD_WEIGHT, 256, 768, 3072, ACTIVATION_NONE, false},
    {"gpt2 B4 T64 down forward", FORWARD, 256, 3072, 768, ACTIVATION_NONE, true},
    {"gpt2 B4 T64 down dx, GELU'", BACKWARD_INPUT, 256, 3072, 768, ACTIVATION_GELU_TANH, false},
    {"gpt2 B4 T64 down dw", BACKWARD_WEIGHT, 256, 3072, 768, ACTIVATION_NONE, false},
    {"gpt2 B4 T64 head forward", FORWARD, 256, 768, 50257, ACTIVATION_NONE, false},
    {"gpt2 B4 T64 head dx", BACKWARD_INPUT, 256, 768, 50257, ACTIVATION_NONE, false},
    {"gpt2 B4 T64 head dw", BACKWARD_WEIGHT, 256, 768, 50257, ACTIVATION_NONE, false},
    {"gpt2 B4 T64 classifier", CLASSIFIER, 256, 768, 50257, ACTIVATION_NONE, false},
    {"gpt2 B1 T1024 qkv forward", FORWARD, 1024, 768, 2304, ACTIVATION_NONE, false},
    {"gpt2 B1 T1024 qkv dx", BACKWARD_INPUT, 1024, 768, 2304, ACTIVATION_NONE, false},
    {"gpt2 B1 T1024 qkv dw", BACKWARD_WEIGHT, 1024, 768, 2304, ACTIVATION_NONE, false},
    {"gpt2 B1 T1024 proj forward", FORWARD, 1024, 768, 768, ACTIVATION_NONE, true},
    {"gpt2 B1 T1024 proj dx", BACKWARD_INPUT, 1024, 768, 768, ACTIVATION_NONE, false},
    {"gpt2 B1 T1024 proj dw", BACKWARD_WEIGHT, 1024, 768, 768, ACTIVATION_NONE, false},
    {"gpt2 B1 T1024 up forward, GELU", FORWARD, 1024, 768, 3072, ACTIVATION_GELU_TANH, false},
    {"gpt2 B1 T1024 up dx", BACKWARD_INPUT, 1024, 768, 3072, ACTIVATION_NONE, false},
    {"gpt2 B1 T1024 up dw", BACKWARD_WEIGHT, 1024, 768, 3072, ACTIVATION_NONE, false},
    {"gpt2 B1 T1024 down forward", FORWARD, 1024, 3072, 768, ACTIVATION_NONE, true},
    {"gpt2 B1 T1024 down dx, GELU'", BACKWARD_INPUT, 1024, 3072, 768, ACTIVATION_GELU_TANH, false},
    {"gpt2 B1 T1024 down dw", BACKWARD_WEIGHT, 1024, 3072, 768, ACTIVATION_NONE, false},
    {"gpt2 B1 T1024 classifier", CLASSIFIER, 1024, 768, 50257, ACTIVATION_NONE, false},
    {"tiny qkv forward", FORWARD, 768, 128, 384, ACTIVATION_NONE, false},
    {"tiny qkv dx", BACKWARD_INPUT, 768, 128, 384, ACTIVATION_NONE, false},
    {"tiny qkv dw", BACKWARD_WEIGHT, 768, 128, 384, ACTIVATION_NONE, false},
    {"tiny proj forward", FORWARD, 768, 128, 128, ACTIVATION_NONE, true},
    {"tiny proj dx", BACKWARD_INPUT, 768, 128, 128, ACTIVATION_NONE, false},
    {"tiny proj dw", BACKWARD_WEIGHT, 768, 128, 128, ACTIVATION_NONE, false},
    {"tiny up forward", FORWARD, 768, 128, 512, ACTIVATION_NONE, false},
    {"tiny up forward, GELU", FORWARD, 768, 128, 512, ACTIVATION_GELU_TANH, false},
    {"tiny up dx", BACKWARD_INPUT, 768, 128, 512, ACTIVATION_NONE, false},
    {"tiny up dw", BACKWARD_WEIGHT, 768, 128, 512, ACTIVATION_NONE, false},
    {"tiny down forward", FORWARD, 768, 512, 128, ACTIVATION_NONE, true},
    {"tiny down dx", BACKWARD_INPUT, 768, 512, 128, ACTIVATION_NONE, false},
    {"tiny down dx, GELU'", BACKWARD_INPUT, 768, 512, 128, ACTIVATION_GELU_TANH, false},
    {"tiny down dw", BACKWARD_WEIGHT, 768, 512, 128, ACTIVATION_NONE, false},
    {"tiny classifier", CLASSIFIER, 768, 128, 256, ACTIVATION_NONE, false},
    {"decode 1 row", FORWARD, 1, 768, 50257, ACTIVATION_NONE, false},
    {"decode 4 rows", FORWARD, 4, 768, 50257, ACTIVATION_NONE, false},
    {"decode 8 rows", FORWARD, 8, 768, 50257, ACTIVATION_NONE, false},
};
enum { ROW_COUNT = sizeof rows / sizeof *rows };

typedef struct Arrays {
    float *x, *w, *y, *dx, *dw, *bias, *dbias, *losses, *loss_weights, *scratch;
    int32_t *targets;
    size_t sizes[3], scratch_size;
} Arrays;

static Arrays arrays_new(Device *device, const Row *r) {
    Arrays a = {.sizes = {(size_t)(r->rows * r->in) * 4, (size_t)(r->out * r->in) * 4, (size_t)(r->rows * r->out) * 4}};
    a.x = memory_tensor(a.sizes[0]);
    a.dx = memory_tensor(a.sizes[0]);
    a.w = memory_tensor(a.sizes[1]);
    a.dw = memory_tensor(a.sizes[1]);
    a.y = memory_tensor(a.sizes[2]);
    for (int64_t i = 0; i < r->rows * r->in; i++) {
        a.x[i] = (float)(i % 7 - 3) * 0.1f;
    }
    for (int64_t i = 0; i < r->out * r->in; i++) {
        a.w[i] = (float)(i % 11 - 5) * 0.02f;
    }
    for (int64_t i = 0; i < r->rows * r->out; i++) {
        a.y[i] = (float)(i % 13 - 6) * 0.1f;
    }
    a.bias = memory_tensor((size_t)r->out * 4);
    a.dbias = memory_tensor((size_t)r->out * 4);
    a.losses = memory_tensor((size_t)r->rows * 4);
    a.loss_weights = memory_tensor((size_t)r->rows * 4);
    a.targets = memory_tensor((size_t)r->rows * 4);
    for (int64_t i = 0; i < r->rows; i++) {
        a.loss_weights[i] = 1;
        a.targets[i] = (int32_t)(i % r->out);
    }
    if (r->form == CLASSIFIER) {
        a.scratch_size = (size_t)classifier_scratch_bytes(false, device->type, 256, r->out);
        a.scratch = memory_tensor(a.scratch_size);
    }
    return a;
}

static void arrays_free(Arrays *a, const Row *r) {
    memory_tensor_free(a->x, a->sizes[0]);
    memory_tensor_free(a->dx, a->sizes[0]);
    memory_tensor_free(a->w, a->sizes[1]);
    memory_tensor_free(a->dw, a->sizes[1]);
    memory_tensor_free(a->y, a->sizes[2]);
    memory_tensor_free(a->bias, (size_t)r->out * 4);
    memory_tensor_free(a->dbias, (size_t)r->out * 4);
    memory_tensor_free(a->losses, (size_t)r->rows * 4);
    memory_tensor_free(a->loss_weights, (size_t)r->rows * 4);
    memory_tensor_free(a->targets, (size_t)r->rows * 4);
    if (a->scratch != NULL) {
        memory_tensor_free(a->scratch, a->scratch_size);
    }
}

typedef enum Contender { OURS, OPENBLAS, ONEDNN, CONTENDERS } Contender;

static void run_ours(Device *device, const Row *r, Arrays *a) {
    switch (r->form) {
    case FORWARD:
        device->op->matmul_forward(device, &(MatmulForward){.rows = r->rows,
                                                            .in = r->in,
                                                            .out = r->out,
                                                            .x = a->x,
                                                            .w = a->w,
                                                            .bias = a->bias,
                                                            .residual = r->residual ? a->y : NULL,
                                                            .activation = r->activation,
                                                            .y = a->y});
        break;
    case BACKWARD_INPUT:
        device->op->matmul_backward_input(device, &(MatmulBackwardInput){.rows = r->rows,
                                                                         .in = r->in,
                                                                         .out = r->out,
                                                                         .dy = a->y,
                                                                         .w = a->w,
                                                                         .activation = r->activation,
                                                                         .pre = r->activation ? a->x : NULL,
                                                                         .dx = a->dx});
        break;
    case BACKWARD_WEIGHT:
        device->op->matmul_backward_weight(
            device, &(MatmulBackwardWeight){
                        .rows = r->rows, .in = r->in, .out = r->out, .dy = a->y, .x = a->x, .dw = a->dw, .dbias = a->dbias});
        break;
    default:
        device->op->classifier(device, &(Classifier){.rows = r->rows,
                                                     .width = r->in,
                                                     .vocabulary = r->out,
                                                     .x = a->x,
                                                     .w = a->w,
                                                     .targets = a->targets,
                                                     .loss_weights = a->loss_weights,
                                                     .grad_scale = 1,
                                                     .losses = a->losses,
                                                     .dx = a->dx,
                                                     .dw = a->dw,
                                                     .chunk_rows = 256,
                                                     .scratch = a->scratch});
        break;
    }
}

static void run_library(Contender library, const Row *r, Arrays *a) {
    bool trans_a = r->form == BACKWARD_WEIGHT, trans_b = r->form == FORWARD;
    int64_t m = r->form == BACKWARD_WEIGHT ? r->out : r->rows, n = r->form == FORWARD ? r->out : r->in;
    int64_t k = r->form == FORWARD ? r->in : r->form == BACKWARD_INPUT ? r->out : r->rows;
    const float *left = r->form == FORWARD ? a->x : a->y, *right = r->form == BACKWARD_WEIGHT ? a->x : a->w;
    float *c = r->form == FORWARD ? a->y : r->form == BACKWARD_INPUT ? a->dx : a->dw;
    int64_t lda = trans_a ? m : k, ldb = trans_b ? k : n;
    float beta = r->form == BACKWARD_WEIGHT;
    if (library == OPENBLAS) {
        cblas_sgemm(101, trans_a ? 112 : 111, trans_b ? 112 : 111, (int)m, (int)n, (int)k, 1, left, (int)lda, right, (int)ldb,
                    beta, c, (int)n);
    } else {
        dnnl_sgemm(trans_a ? 'T' : 'N', trans_b ? 'T' : 'N', m, n, k, 1, left, lda, right, ldb, beta, c, n);
    }
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

typedef struct Timing {
    double median, best;
} Timing;

static Timing measure(Contender contender, Device *device, const Row *r, Arrays *a, double seconds) {
    enum { MOST = 2000 };
    static double times[MOST];
    usleep(20000);  // let the threads of the one before fall asleep
    int count = 0;
    double begin = clock_seconds();
    while (count < MOST && (count < 4 || clock_seconds() - begin < seconds)) {
        double start = clock_seconds();
        if (contender == OURS) {
            run_ours(device, r, a);
        } else {
            run_library(contender, r, a);
        }
        times[count++] = clock_seconds() - start;
    }
    qsort(times, (size_t)count, sizeof *times, ascending);
    return (Timing){times[count / 2], times[0]};
}

static bool wanted(const Row *r, int count, char **parts) {
    bool found = count == 0;
    for (int i = 0; i < count; i++) {
        found |= strstr(r->name, parts[i]) != NULL;
    }
    return found;
}

static void print_row(Device *device, const Row *r, const Settings *s, double peak) {
    Arrays arrays = arrays_new(device, r);
    double flops = 2.0 * (double)r->rows * (double)r->in * (double)r->out * (r->form == CLASSIFIER ? 3 : 1) * 1e-9;
    printf("%-32s", r->name);
    for (Contender c = OURS; c < CONTENDERS; c++) {
        if ((c == OPENBLAS && cblas_sgemm == NULL) || (c == ONEDNN && dnnl_sgemm == NULL) ||
            (c != OURS && r->form == CLASSIFIER)) {
            printf("  %22s", "-");
            continue;
        }
        Timing t = measure(c, device, r, &arrays, s->seconds);
        printf("  %7.1f (%6.1f) %5.1f%%", flops / t.median, flops / t.best, 100 * flops / t.median / peak);
        if (c == OURS && r->rows <= 8) {
            printf(" %5.1f GB/s", 4e-9 * (double)r->in * (double)r->out / t.median);
        }
    }
    printf("\n");
    fflush(stdout);
    arrays_free(&arrays, r);
}

static Error *bench(const void *given, int part_count, char **parts) {
    const Settings *s = given;
    int threads = s->threads > 0 ? (int)s->threads : threads_available();
    Device *device;
    TRY(device_open_cpu(threads, s->variant, &device));
    const char *variant = device->op->name;
    if (s->libraries) {
        load_libraries(variant, threads);
    }
    double peak = 0;
    for (int t = 1; t <= threads; t += threads > 1 ? threads - 1 : 1) {
        ThreadPool *pool = threads_create(t);
        peak = 1e-9 * measure_peak_flops(variant, pool);
        printf("%s, %d thread%s: peak %.1f GFLOP/s; memory read %.1f, copy %.1f, triad %.1f, update %.1f GB/s\n", variant, t,
               t > 1 ? "s" : "", peak, 1e-9 * measure_bandwidth(TRAFFIC_READ, pool),
               1e-9 * measure_bandwidth(TRAFFIC_COPY, pool), 1e-9 * measure_bandwidth(TRAFFIC_TRIAD, pool),
               1e-9 * measure_bandwidth(TRAFFIC_UPDATE, pool));
        threads_destroy(pool);
    }
    printf("\n%-32s  %22s  %22s  %22s\n", "GFLOP/s: median (best), of peak", "athanor", "OpenBLAS", "oneDNN");
    for (int i = 0; i < ROW_COUNT; i++) {
        if (wanted(&rows[i], part_count, parts)) {
            print_row(device, &rows[i], s, peak);
        }
    }
    device_close(device);
    return NULL;
}

int main(int argc, char **argv) {
    Settings settings = {0};
    return program_main("bench_cpu", flags, FLAG_COUNT, &settings, bench, argc, argv);
}
