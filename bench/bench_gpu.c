// Rows of measurements on a card, served one by one: bench/gpu drives it beside PyTorch, so that both are measured in turn.
//
//   bench_gpu --list     a line a row: name, kind of limit, work (flops or bytes) of one run
//   bench_gpu --serve    reads "NAME SECONDS" lines and answers each with the seconds of one run (a mean over runs that take at
//                        least SECONDS together, after a run that does not count), or "error: why"
//   bench_gpu            measures every row itself, without peers
//
// Inputs are normal random numbers: a card draws less power on zeros and then runs faster than it ever will. Rows named
// "... cublas" run the same operation with cuBLASLt in the place of our matrix product.
#include "core/clock.h"
#include "core/philox.h"
#include "core/text.h"
#include "train/model/model.h"

#include <math.h>
#include <stdio.h>

enum { MOST_BUFFERS = 8, RANDOM_COUNT = 1 << 24 };

typedef struct Row Row;

// What a row works on; made for it and thrown away after it.
typedef struct Work {
    Device *device;
    const Row *row;
    void *buffers[MOST_BUFFERS];
    size_t bytes[MOST_BUFFERS];
    int count;
    Model *model;
    Batch batch;
} Work;

struct Row {
    char name[96];
    const char *limit;  // "tensor" or "memory"
    double work;        // flops or bytes
    Error *(*make)(Work *work);
    void (*run)(Work *work);
    bool cublas;
    // Meaning depends on the row: R I O of a product; B T H G D of attention; R C of rows; a model's shape.
    int64_t a, b, c, d, e;
    int model;
};

static Row rows[128];
static int row_count;

static Row *add_row(const char *limit, double work, Error *(*make)(Work *), void (*run)(Work *)) {
    ensure(row_count < (int)(sizeof rows / sizeof *rows), "room for more rows");
    Row *row = &rows[row_count++];
    *row = (Row){.limit = limit, .work = work, .make = make, .run = run};
    return row;
}

// ---- Memory

static const float *random_floats(void) {
    static float *values;
    if (values == NULL) {
        values = memory_new(RANDOM_COUNT, sizeof *values);
        philox_normal(1, philox_stream(RANDOM_TEST, 0), 0, 0.5F, values, RANDOM_COUNT);
    }
    return values;
}

// A buffer of `count` random elements of the compute type, or of fp32.
static Error *take(Work *w, int64_t count, bool fp32) {
    Device *device = w->device;
    size_t bytes = (size_t)count * (fp32 ? sizeof(float) : (size_t)data_type_bytes(device->type));
    void *memory, *floats;
    TRY(device_allocate(device, bytes, &memory));
    w->bytes[w->count] = bytes;
    w->buffers[w->count++] = memory;
    int64_t most = count < RANDOM_COUNT ? count : RANDOM_COUNT;
    TRY(device_allocate(device, (size_t)most * sizeof(float), &floats));
    device_upload(device, floats, random_floats(), (size_t)most * sizeof(float));
    for (int64_t i = 0; i < count; i += most) {
        int64_t part = count - i < most ? count - i : most;
        device->op->convert(device, &(Convert){part, TYPE_FP32, fp32 ? TYPE_FP32 : device->type, floats,
                                               (char *)memory + i * (fp32 ? 4 : data_type_bytes(device->type))});
    }
    Error *error = device_finish(device);
    device_release(device, floats, (size_t)most * sizeof(float));
    return error;
}

// A buffer of whole numbers below `limit`, scattered or (limit 0) zeros, or (limit < 0) i % -limit.
static Error *take_numbers(Work *w, int64_t count, int64_t limit) {
    int32_t *values = memory_zeroed((size_t)count, sizeof *values);
    for (int64_t i = 0; i < count && limit != 0; i++) {
        values[i] = (int32_t)(limit > 0 ? (int64_t)(philox_u64(2, 3, (uint64_t)i) % (uint64_t)limit) : i % -limit);
    }
    Error *error = device_allocate(w->device, (size_t)count * sizeof *values, &w->buffers[w->count]);
    if (error == NULL) {
        w->bytes[w->count] = (size_t)count * sizeof *values;
        device_upload(w->device, w->buffers[w->count++], values, (size_t)count * sizeof *values);
    }
    free(values);
    return error;
}

static void release(Work *w) {
    for (int i = 0; i < w->count; i++) {
        device_release(w->device, w->buffers[i], w->bytes[i]);
    }
    if (w->model != NULL) {
        model_destroy(w->model);
        batch_free(&w->batch);
    }
}

// ---- Products: Y = X W^T, dX = dY W, dW += dY^T X

static Error *make_product(Work *w) {
    const Row *r = w->row;
    TRY(take(w, r->a * r->b, false));
    TRY(take(w, r->c * r->b, false));
    TRY(take(w, r->a * r->c, false));
    return take(w, r->c * r->b, true);
}
static void run_forward(Work *w) {
    const Row *r = w->row;
    w->device->op->matmul_forward(
        w->device,
        &(MatmulForward){.rows = r->a, .in = r->b, .out = r->c, .x = w->buffers[0], .w = w->buffers[1], .y = w->buffers[2]});
}
static void run_backward_input(Work *w) {
    const Row *r = w->row;
    w->device->op->matmul_backward_input(
        w->device, &(MatmulBackwardInput){
                       .rows = r->a, .in = r->b, .out = r->c, .dy = w->buffers[2], .w = w->buffers[1], .dx = w->buffers[0]});
}
static void run_backward_weight(Work *w) {
    const Row *r = w->row;
    w->device->op->matmul_backward_weight(
        w->device, &(MatmulBackwardWeight){
                       .rows = r->a, .in = r->b, .out = r->c, .dy = w->buffers[2], .x = w->buffers[0], .dw = w->buffers[3]});
}

static void add_products(const char *what, int64_t count, int64_t in, int64_t out) {
    static const struct {
        const char *name;
        void (*run)(Work *);
    } forms[] = {{"forward", run_forward}, {"input", run_backward_input}, {"weight", run_backward_weight}};
    for (int f = 0; f < 3; f++) {
        for (int cublas = 0; cublas < 2; cublas++) {
            Row *row = add_row("tensor", 2.0 * (double)count * (double)in * (double)out, make_product, forms[f].run);
            snprintf(row->name, sizeof row->name, "product/%s/%s/%lldx%lldx%lld%s", forms[f].name, what, (long long)count,
                     (long long)in, (long long)out, cublas ? "/cublas" : "");
            row->a = count, row->b = in, row->c = out, row->cublas = cublas;
        }
    }
}

// ---- Attention, causal

static Error *make_attention(Work *w) {
    const Row *r = w->row;
    int64_t width = (r->c + 2 * r->d) * r->e;
    TRY(take(w, r->a * r->b * width, false));
    TRY(take(w, r->a * r->b * r->c * r->e, false));
    TRY(take(w, r->a * r->b * r->c, true));
    TRY(take(w, r->a * r->b * r->c * r->e, false));
    TRY(take(w, r->a * r->b * width, false));
    return take_numbers(w, r->a * r->b, 0);
}
static AttentionShape attention_shape(const Row *r) {
    return (AttentionShape){.batch = r->a,
                            .length = r->b,
                            .heads = (int32_t)r->c,
                            .groups = (int32_t)r->d,
                            .head_width = (int32_t)r->e,
                            .scale = (float)(1 / sqrt((double)r->e))};
}
static void run_attention(Work *w) {
    w->device->op->attention_forward(
        w->device, &(AttentionForward){attention_shape(w->row), w->buffers[0], w->buffers[5], w->buffers[1], w->buffers[2]});
}
static Error *make_attention_backward(Work *w) {
    TRY(make_attention(w));
    run_attention(w);
    return device_finish(w->device);
}
static void run_attention_backward(Work *w) {
    w->device->op->attention_backward(w->device, &(AttentionBackward){.shape = attention_shape(w->row),
                                                                      .qkv = w->buffers[0],
                                                                      .out = w->buffers[1],
                                                                      .dout = w->buffers[3],
                                                                      .lse = w->buffers[2],
                                                                      .first = w->buffers[5],
                                                                      .dqkv = w->buffers[4]});
}

static void add_attention(int64_t batch, int64_t length, int64_t heads, int64_t groups, int64_t width) {
    double product = (double)batch * (double)heads * (double)length * (double)length * (double)width;  // 2 flops, half of them
    for (int back = 0; back < 2; back++) {
        Row *row = add_row("tensor", (back ? 5 : 2) * product, back ? make_attention_backward : make_attention,
                           back ? run_attention_backward : run_attention);
        snprintf(row->name, sizeof row->name, "attention/%s/B%lld-T%lld-H%lld-G%lld-D%lld", back ? "backward" : "forward",
                 (long long)batch, (long long)length, (long long)heads, (long long)groups, (long long)width);
        row->a = batch, row->b = length, row->c = heads, row->d = groups, row->e = width;
    }
}

// ---- Rows of memory: R = a, C = b

static Error *make_rows(Work *w) {
    int64_t count = w->row->a * w->row->b;
    TRY(take(w, count, false));
    TRY(take(w, count, false));
    TRY(take(w, count, false));
    TRY(take(w, w->row->b, false));
    TRY(take(w, w->row->a + w->row->b, true));
    TRY(take(w, w->row->a + w->row->b, true));
    return take_numbers(w, w->row->a, -1024);
}
static void run_copy(Work *w) {
    int64_t bytes = w->row->a * w->row->b * data_type_bytes(w->device->type);
    w->device->op->copy_rows(w->device, &(CopyRows){1, bytes, w->buffers[0], bytes, w->buffers[1], bytes});
}
static void run_add(Work *w) {
    w->device->op->add(w->device, w->row->a * w->row->b, w->buffers[0], w->buffers[1]);
}
static void run_norm(Work *w) {
    NormKind kind = (NormKind)w->row->c;
    w->device->op->norm_forward(w->device, &(NormForward){.kind = kind,
                                                          .rows = w->row->a,
                                                          .width = w->row->b,
                                                          .epsilon = 1e-5F,
                                                          .x = w->buffers[0],
                                                          .weight = w->buffers[3],
                                                          .y = w->buffers[1],
                                                          .mean = kind == NORM_LAYER ? w->buffers[4] : NULL,
                                                          .rstd = w->buffers[5]});
}
static void run_norm_backward(Work *w) {
    NormKind kind = (NormKind)w->row->c;
    w->device->op->norm_backward(w->device, &(NormBackward){.kind = kind,
                                                            .rows = w->row->a,
                                                            .width = w->row->b,
                                                            .dy = w->buffers[0],
                                                            .x = w->buffers[1],
                                                            .weight = w->buffers[3],
                                                            .mean = kind == NORM_LAYER ? w->buffers[4] : NULL,
                                                            .rstd = w->buffers[5],
                                                            .accumulate = true,
                                                            .dx = w->buffers[2],
                                                            .dweight = w->buffers[4]});
}
static void run_gated(Work *w) {
    w->device->op->gated_forward(w->device,
                                 &(GatedForward){ACTIVATION_SILU, w->row->a, w->row->b / 2, w->buffers[0], w->buffers[1]});
}
static void run_squares(Work *w) {
    int64_t count = w->row->a * w->row->b * data_type_bytes(w->device->type) / (int64_t)sizeof(float);
    w->device->op->squares(w->device, count, w->buffers[0], w->buffers[4]);
}

static void add_rows(const char *what, void (*run)(Work *), int64_t count, int64_t width, double passes, int64_t kind) {
    Row *row = add_row("memory", (double)count * (double)width * passes, make_rows, run);
    snprintf(row->name, sizeof row->name, "rows/%s/%lldx%lld", what, (long long)count, (long long)width);
    row->a = count, row->b = width, row->c = kind;
}

// ---- The update of `a` parameters

static Error *make_update(Work *w) {
    for (int i = 0; i < 4; i++) {
        TRY(take(w, w->row->a, true));
    }
    TRY(take(w, w->row->a, false));
    UpdateSegment all = {.count = w->row->a, .rate_scale = 1, .weight_decay = 0.1F};
    StepControl control = {.learning_rate = 1e-4F, .grad_scale = 1, .correction1 = 1, .correction2 = 1, .loss_scale = 1};
    TRY(device_allocate(w->device, sizeof all, &w->buffers[5]));
    TRY(device_allocate(w->device, sizeof control, &w->buffers[6]));
    w->bytes[5] = sizeof all, w->bytes[6] = sizeof control, w->count = 7;
    device_upload(w->device, w->buffers[5], &all, sizeof all);
    device_upload(w->device, w->buffers[6], &control, sizeof control);
    w->device->op->zero(w->device, w->row->a * (int64_t)sizeof(float), w->buffers[3]);
    return device_finish(w->device);
}
static void run_update(Work *w) {
    w->device->op->optimizer_update(w->device, &(OptimizerUpdate){.kind = OPTIMIZER_ADAMW,
                                                                  .segments = w->buffers[5],
                                                                  .segment_count = 1,
                                                                  .count = w->row->a,
                                                                  .beta1 = 0.9F,
                                                                  .beta2 = 0.95F,
                                                                  .epsilon = 1e-8F,
                                                                  .control = w->buffers[6],
                                                                  .grads = w->buffers[0],
                                                                  .params = w->buffers[1],
                                                                  .weights = w->buffers[4],
                                                                  .moment1 = w->buffers[2],
                                                                  .moment2 = w->buffers[3]});
}

// ---- A training step of a whole model

static const struct {
    const char *name;
    ModelFamily family;
    int64_t layers, width, heads, groups, ffn, vocabulary, sequences, length;
} shapes[] = {
    {"gpt2-124m", FAMILY_GPT2, 12, 768, 12, 12, 3072, 50304, 16, 1024},
    {"gpt2-350m", FAMILY_GPT2, 24, 1024, 16, 16, 4096, 50304, 16, 1024},
    {"gpt2-1.3b", FAMILY_GPT2, 24, 2048, 16, 16, 8192, 50304, 8, 1024},
    {"llama-1b", FAMILY_LLAMA, 16, 2048, 32, 8, 8192, 128256, 4, 2048},
    {"llama-3b", FAMILY_LLAMA, 28, 3072, 24, 8, 8192, 128256, 4, 2048},
};

static ModelConfig shape_config(int i) {
    ModelConfig config = {0};
    keys_defaults(model_keys, model_key_count, &config);
    config.family = shapes[i].family;
    config.layers = shapes[i].layers, config.width = shapes[i].width, config.heads = shapes[i].heads;
    config.groups = shapes[i].groups, config.ffn_width = shapes[i].ffn, config.context = shapes[i].length;
    config.vocabulary = shapes[i].vocabulary;
    Error *error = model_config_resolve(&config, NULL, shapes[i].vocabulary, shapes[i].name);
    ensure(error == NULL, "%s", error->message);
    return config;
}

static Error *make_step(Work *w) {
    int i = w->row->model;
    ModelConfig config = shape_config(i);
    ModelOptions options = {.sequences = shapes[i].sequences, .length = shapes[i].length, .weight_decay = 0.1};
    TRY(model_create(w->device, &config, &options, &w->model));
    model_initialise(w->model, 1);
    batch_allocate(&w->batch, shapes[i].sequences, shapes[i].length);
    for (int64_t r = 0; r < shapes[i].sequences * shapes[i].length; r++) {
        w->batch.tokens[r] = (int32_t)(philox_u64(4, 5, (uint64_t)r) % (uint64_t)config.vocabulary);
        w->batch.targets[r] = (int32_t)(philox_u64(6, 7, (uint64_t)r) % (uint64_t)config.vocabulary);
        w->batch.weights[r] = 1;
        w->batch.first[r] = 0;
        w->batch.positions[r] = (int32_t)(r % shapes[i].length);
    }
    return NULL;
}
static void run_step(Work *w) {
    double count = (double)(w->batch.sequences * w->batch.length);
    StepOptions step = {.grad_scale = (float)(1 / count)};
    model_begin_step(w->model, 1e-4);
    model_load_batch(w->model, 0, &w->batch);
    model_zero_gradients(w->model);
    model_run_batch(w->model, 0, &step);
    model_finish_step(w->model,
                      &(UpdateOptions){.batch_weight = count, .clip = 1, .beta1 = 0.9F, .beta2 = 0.95F, .epsilon = 1e-8F});
}

static void add_step(int i) {
    ModelConfig config = shape_config(i);
    double count = (double)(shapes[i].sequences * shapes[i].length);
    Row *row = add_row("tensor", count * model_flops_per_token(&config, shapes[i].length), make_step, run_step);
    snprintf(row->name, sizeof row->name, "step/%s/B%lld-T%lld", shapes[i].name, (long long)shapes[i].sequences,
             (long long)shapes[i].length);
    row->model = i;
}

static void list_rows(void) {
    enum { GPT2_ROWS = 16384, LONG_ROWS = 8192 };
    add_products("124m-qkv", GPT2_ROWS, 768, 2304);
    add_products("124m-up", GPT2_ROWS, 768, 3072);
    add_products("124m-down", GPT2_ROWS, 3072, 768);
    add_products("1.3b-up", LONG_ROWS, 2048, 8192);
    add_products("8b-qkv", LONG_ROWS, 4096, 6144);
    add_products("8b-up", LONG_ROWS, 4096, 28672);
    add_products("square", 4096, 4096, 4096);
    add_products("square", 8192, 8192, 8192);
    add_attention(16, 1024, 12, 12, 64);
    add_attention(2, 8192, 16, 16, 128);
    add_attention(2, 8192, 32, 8, 128);
    add_attention(2, 4096, 8, 8, 256);
    // Bytes an element: bf16, each tensor read or written once.
    add_rows("copy", run_copy, 16384, 8192, 4, 0);
    add_rows("add", run_add, 16384, 4096, 6, 0);
    add_rows("layernorm", run_norm, 16384, 768, 4, NORM_LAYER);
    add_rows("layernorm-backward", run_norm_backward, 16384, 768, 8, NORM_LAYER);
    add_rows("rmsnorm", run_norm, 16384, 4096, 4, NORM_RMS);
    add_rows("rmsnorm-backward", run_norm_backward, 16384, 4096, 8, NORM_RMS);
    add_rows("swiglu", run_gated, 16384, 8192, 3, 0);
    add_rows("sum-of-squares", run_squares, 16384, 8192, 2, 0);
    Row *update = add_row("memory", 124475904.0 * (4 * 4 + 3 * 4 + 2), make_update, run_update);
    snprintf(update->name, sizeof update->name, "update/adamw/124m");
    update->a = 124475904;
    for (int i = 0; i < (int)(sizeof shapes / sizeof *shapes); i++) {
        add_step(i);
    }
}

// ---- Measuring

static Error *measure(Device *devices[2], const Row *row, double least, double *seconds) {
    Work w = {.device = devices[row->cublas], .row = row};
    Error *error = row->make(&w);
    if (error == NULL) {
        row->run(&w);
        error = device_finish(w.device);
    }
    double start = clock_seconds(), passed = 0;
    int64_t runs = 0;
    for (int64_t more = 1; error == NULL && passed < least; more = runs) {
        for (int64_t i = 0; i < more; i++) {
            row->run(&w);
        }
        runs += more;
        error = device_finish(w.device);
        passed = clock_seconds() - start;
    }
    *seconds = passed / (double)runs;
    release(&w);
    return error;
}

static void answer(Device *devices[2], const char *name, double least) {
    for (int i = 0; i < row_count; i++) {
        if (strcmp(rows[i].name, name) == 0) {
            double seconds;
            Error *error = measure(devices, &rows[i], least, &seconds);
            if (error == NULL) {
                printf("%.9f\n", seconds);
            } else {
                printf("error: %s\n", error->message);
                error_free(error);
            }
            return;
        }
    }
    printf("error: there is no row %s\n", name);
}

static Error *open_devices(DeviceKind kind, Device *devices[2]) {
    TRY(device_open_card(kind, 0, TYPE_BF16, 1, &devices[0]));
    TRY(device_set_products(devices[0], "ours"));
    TRY(device_open_card(kind, 0, TYPE_BF16, 1, &devices[1]));
    return device_set_products(devices[1], "cublas");
}

int main(int count, char **arguments) {
    const char *mode = count > 1 ? arguments[1] : "";
    list_rows();
    if (strcmp(mode, "--list") == 0) {
        for (int i = 0; i < row_count; i++) {
            printf("%s %s %.6g\n", rows[i].name, rows[i].limit, rows[i].work);
        }
        return 0;
    }
    Device *devices[2];
    Error *error = open_devices(DEVICE_CUDA, devices);
    if (error != NULL) {
        fprintf(stderr, "bench_gpu: %s\n", error->message);
        return 1;
    }
    fprintf(stderr, "%s\n", devices[0]->name);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (strcmp(mode, "--serve") == 0) {
        char line[256], name[128];
        double least;
        while (fgets(line, sizeof line, stdin) != NULL) {
            if (sscanf(line, "%127s %lf", name, &least) == 2) {
                answer(devices, name, least);
            }
        }
    } else {
        for (int i = 0; i < row_count; i++) {
            printf("%-48s ", rows[i].name);
            answer(devices, rows[i].name, 0.2);
        }
    }
    device_close(devices[0]);
    device_close(devices[1]);
    return 0;
}
