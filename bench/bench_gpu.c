// Rows of measurements on a card, served one by one: bench/gpu drives it beside PyTorch, so that both are measured in turn.
//
//   bench_gpu --list     a line a row: name, kind of limit, work (flops or bytes) of one run, and key=value words for peers
//   bench_gpu --serve    answers each line of its input with one. "NAME SECONDS": the seconds of one run (a mean over runs that
//                        take at least SECONDS together, after one that does not count), or "absent: why" where the row cannot
//                        be made here, or "error: why" where a run failed, which ends the program. What was made is held, so
//                        that the next line with the same name measures at once; "release" frees it and answers "released"
//   bench_gpu            measures every row itself, without peers
//
// --rehearse before any of these does the same on the simulated card with every size divided (see `part`): it shows that each
// row runs, and its times mean nothing.
//
// Inputs are normal random numbers: a card draws less power on zeros and then runs faster than it ever will. Rows named
// ".../cublas" run the same operation with cuBLASLt in the place of our matrix product, and ".../driver" copies as the driver
// does. A step is recorded once and repeated, as a run does it.
#include "core/clock.h"
#include "core/library.h"
#include "core/philox.h"
#include "core/text.h"
#include "kernels/scratch.h"
#include "train/model/families.h"
#include "train/model/model.h"

#include <math.h>
#include <stdio.h>

enum { MOST_BUFFERS = 12, MOST_HELD = 2 };

static bool rehearsal;

// A size, in a rehearsal the divisor-th part of it: what the simulated card computes in a moment, by the same kernels where
// their choice hangs on whole packs and tiles and on the head width, which stays.
static int64_t part(int64_t size, int64_t divisor) {
    return !rehearsal ? size : size > divisor ? size / divisor : 1;
}

typedef struct Row Row;

// What a row works on; made for it and thrown away after it.
typedef struct Work {
    Device *device;
    const Row *row;
    void *buffers[MOST_BUFFERS];
    size_t bytes[MOST_BUFFERS];
    int count;
    Model *model;
    Batch batch, batch_there;
    int runs;
    bool refused;        // by the driver
    DeviceGraph *graph;  // of a step
    Error *failed;       // its recording
} Work;

// What a product does beside multiplying.
typedef struct Epilogue {
    Activation activation;
    bool bias, residual, pre, gated;
} Epilogue;

typedef enum Form { FORM_FORWARD, FORM_INPUT, FORM_WEIGHT } Form;

// Who computes a row in the place of ours.
typedef enum Library { LIBRARY_NONE, LIBRARY_CUBLAS, LIBRARY_DRIVER } Library;

struct Row {
    char name[96];
    const char *limit;  // "tensor" or "memory"
    double work;        // flops or bytes
    Error *(*make)(Work *work);
    void (*run)(Work *work);
    Library library;
    enum { UNKNOWN, TAKES, REFUSES } takes;  // the library: known after the first run
    Form form;
    Epilogue epilogue;
    // Meaning depends on the row: R I O of a product; B T H G D of attention; R C of rows; the number of a model's shape.
    int64_t a, b, c, d, e;
    int model;
};

static Row rows[192];
static int row_count;

static Row *add_row(const char *limit, double work, Error *(*make)(Work *), void (*run)(Work *)) {
    ensure(row_count < (int)(sizeof rows / sizeof *rows), "room for more rows");
    Row *row = &rows[row_count++];
    *row = (Row){.limit = limit, .work = work, .make = make, .run = run};
    return row;
}

// ---- Memory

static int64_t random_count(void) {
    return part(1 << 24, 256);
}
static const float *random_floats(void) {
    static float *values;
    if (values == NULL) {
        values = memory_new((size_t)random_count(), sizeof *values);
        philox_normal(1, philox_stream(RANDOM_TEST, 0), 0, 0.5F, values, random_count());
    }
    return values;
}

// A buffer of the work's.
static Error *take_bytes(Work *w, size_t bytes) {
    ensure(w->count < MOST_BUFFERS, "room for more buffers");
    TRY(device_allocate(w->device, bytes, &w->buffers[w->count]));
    w->bytes[w->count++] = bytes;
    return NULL;
}

// A buffer of `count` random elements of the compute type, or of fp32.
static Error *take(Work *w, int64_t count, bool fp32) {
    Device *device = w->device;
    void *floats;
    TRY(take_bytes(w, (size_t)count * (fp32 ? sizeof(float) : (size_t)data_type_bytes(device->type))));
    void *memory = w->buffers[w->count - 1];
    int64_t most = count < random_count() ? count : random_count();
    TRY(device_allocate(device, (size_t)most * sizeof(float), &floats));
    device_upload(device, floats, random_floats(), (size_t)most * sizeof(float));
    for (int64_t i = 0; i < count; i += most) {
        int64_t now = count - i < most ? count - i : most;
        device->op->convert(device, &(Convert){now, TYPE_FP32, fp32 ? TYPE_FP32 : device->type, floats,
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
    Error *error = take_bytes(w, (size_t)count * sizeof *values);
    if (error == NULL) {
        device_upload(w->device, w->buffers[w->count - 1], values, (size_t)count * sizeof *values);
    }
    free(values);
    return error;
}

static void release(Work *w) {
    for (int i = 0; i < w->count; i++) {
        device_release(w->device, w->buffers[i], w->bytes[i]);
    }
    if (w->model != NULL) {
        device_graph_destroy(w->device, w->graph);
        model_destroy(w->model);
        batch_free(&w->batch);
    }
    *w = (Work){0};
}

// ---- Products: Y = X W^T, dX = dY W, dW += dY^T X

enum { X, W, Y, DW, BIAS, RESIDUAL, PRE };

// x or dx, w, y or dy, and what the form and the epilogue need.
static Error *make_product(Work *w) {
    const Row *r = w->row;
    Epilogue e = r->epilogue;
    bool doubled = e.gated && r->form == FORM_INPUT;  // of a gated unit: gate and value
    int64_t x = r->a * r->b * (doubled ? 2 : 1), y = r->a * r->c;
    TRY(take(w, x, false));
    TRY(take(w, r->c * r->b, false));
    TRY(take(w, y, false));
    TRY(take(w, r->form == FORM_WEIGHT ? r->c * r->b : 1, true));
    TRY(take(w, e.bias ? r->c : 1, false));
    TRY(take(w, e.residual ? y : 1, false));
    return take(w, !e.pre ? 1 : r->form == FORM_FORWARD ? y : x, false);
}
static void run_forward(Work *w) {
    const Row *r = w->row;
    Epilogue e = r->epilogue;
    w->device->op->matmul_forward(w->device, &(MatmulForward){.rows = r->a,
                                                              .in = r->b,
                                                              .out = r->c,
                                                              .x = w->buffers[X],
                                                              .w = w->buffers[W],
                                                              .y = w->buffers[Y],
                                                              .activation = e.activation,
                                                              .bias = e.bias ? w->buffers[BIAS] : NULL,
                                                              .residual = e.residual ? w->buffers[RESIDUAL] : NULL,
                                                              .pre = e.pre ? w->buffers[PRE] : NULL,
                                                              .gated = e.gated});
}
static void run_backward_input(Work *w) {
    const Row *r = w->row;
    Epilogue e = r->epilogue;
    w->device->op->matmul_backward_input(w->device, &(MatmulBackwardInput){.rows = r->a,
                                                                           .in = r->b,
                                                                           .out = r->c,
                                                                           .dy = w->buffers[Y],
                                                                           .w = w->buffers[W],
                                                                           .dx = w->buffers[X],
                                                                           .activation = e.activation,
                                                                           .pre = e.pre ? w->buffers[PRE] : NULL,
                                                                           .gated = e.gated});
}
static void run_backward_weight(Work *w) {
    const Row *r = w->row;
    w->device->op->matmul_backward_weight(
        w->device, &(MatmulBackwardWeight){
                       .rows = r->a, .in = r->b, .out = r->c, .dy = w->buffers[Y], .x = w->buffers[X], .dw = w->buffers[DW]});
}

// A rehearsal's part of a size of a product, odd where the size is.
static int64_t odd_part(int64_t size, int64_t divisor) {
    return part(size, divisor) | size % 2;
}

// Ours, and the library's in its place.
static void add_product(Form form, const char *what, int64_t count, int64_t in, int64_t out, Epilogue epilogue) {
    static const char *const names[] = {"forward", "input", "weight"};
    static void (*const runs[])(Work *) = {run_forward, run_backward_input, run_backward_weight};
    count = part(count, 128), in = odd_part(in, 32), out = odd_part(out, 32);
    for (Library library = LIBRARY_NONE; library <= LIBRARY_CUBLAS; library++) {
        Row *row = add_row("tensor", 2.0 * (double)count * (double)in * (double)out, make_product, runs[form]);
        snprintf(row->name, sizeof row->name, "product/%s/%s/%lldx%lldx%lld%s", names[form], what, (long long)count,
                 (long long)in, (long long)out, library == LIBRARY_NONE ? "" : "/cublas");
        row->a = count, row->b = in, row->c = out, row->form = form, row->library = library, row->epilogue = epilogue;
    }
}
static void add_products(const char *what, int64_t count, int64_t in, int64_t out) {
    for (Form form = FORM_FORWARD; form <= FORM_WEIGHT; form++) {
        add_product(form, what, count, in, out, (Epilogue){0});
    }
}

// The feed-forward net of GPT-2: up with bias, GELU and what its backward pass needs; the gradient through down and GELU.
static void add_gelu_pair(const char *up, const char *down, int64_t count, int64_t width, int64_t inner) {
    add_product(FORM_FORWARD, up, count, width, inner, (Epilogue){ACTIVATION_GELU_TANH, .bias = true, .pre = true});
    add_product(FORM_INPUT, down, count, inner, width, (Epilogue){ACTIVATION_GELU_TANH, .pre = true});
}
// Of LLaMA: gate and value side by side, and the gradient through down, product and SiLU.
static void add_gated_pair(const char *up, const char *down, int64_t count, int64_t width, int64_t inner) {
    add_product(FORM_FORWARD, up, count, width, 2 * inner, (Epilogue){ACTIVATION_SILU, .pre = true, .gated = true});
    add_product(FORM_INPUT, down, count, inner, width, (Epilogue){ACTIVATION_SILU, .pre = true, .gated = true});
}

// ---- The head and its loss: R = a, C = b, V = c, in chunks of d rows

static Error *make_classifier(Work *w) {
    const Row *r = w->row;
    TRY(take(w, r->a * r->b, false));
    TRY(take(w, r->c * r->b, false));
    TRY(take(w, r->a * r->b, false));
    TRY(take(w, r->c * r->b, true));
    TRY(take(w, 3 * r->a, true));
    TRY(take_bytes(w, (size_t)classifier_scratch_bytes(true, w->device->type, r->d, r->c)));
    return take_numbers(w, r->a, r->c);
}
static void classify(Work *w, bool gradient, bool weights) {
    const Row *r = w->row;
    float *row_floats = w->buffers[4];
    w->device->op->classifier(w->device, &(Classifier){.rows = r->a,
                                                       .width = r->b,
                                                       .vocabulary = r->c,
                                                       .x = w->buffers[0],
                                                       .w = w->buffers[1],
                                                       .targets = w->buffers[6],
                                                       .loss_weights = row_floats,
                                                       .grad_scale = 1e-4F,
                                                       .losses = row_floats + r->a,
                                                       .zs = row_floats + 2 * r->a,
                                                       .dx = gradient ? w->buffers[2] : NULL,
                                                       .dw = gradient && weights ? w->buffers[3] : NULL,
                                                       .chunk_rows = r->d,
                                                       .scratch = w->buffers[5]});
}
static void run_loss(Work *w) {
    classify(w, false, false);
}
static void run_loss_input(Work *w) {
    classify(w, true, false);
}
static void run_loss_whole(Work *w) {
    classify(w, true, true);
}

static void add_classifier(int64_t count, int64_t width, int64_t vocabulary, int64_t chunk) {
    static const struct {
        const char *name;
        double products;
        void (*run)(Work *);
    } kinds[] = {{"whole", 3, run_loss_whole}, {"loss", 1, run_loss}, {"loss-input", 2, run_loss_input}};
    count = part(count, 128), width = part(width, 32), vocabulary = odd_part(vocabulary, 32), chunk = part(chunk, 128);
    for (int i = 0; i < 3; i++) {
        double flops = kinds[i].products * 2 * (double)count * (double)width * (double)vocabulary;
        Row *row = add_row("tensor", flops, make_classifier, kinds[i].run);
        snprintf(row->name, sizeof row->name, "classifier/%s/%lldx%lldx%lld", kinds[i].name, (long long)count, (long long)width,
                 (long long)vocabulary);
        row->a = count, row->b = width, row->c = vocabulary, row->d = chunk;
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
static AttentionShape attention_shape(const Work *w) {
    const Row *r = w->row;
    return (AttentionShape){.batch = r->a,
                            .queries = r->b,
                            .keys = r->b,
                            .heads = (int32_t)r->c,
                            .groups = (int32_t)r->d,
                            .head_width = (int32_t)r->e,
                            .scale = (float)(1 / sqrt((double)r->e)),
                            .first = w->buffers[5]};
}
static void run_attention(Work *w) {
    AttentionShape shape = attention_shape(w);
    AttentionRows in = attention_packed(&shape, w->device->type, w->buffers[0]);
    w->device->op->attention_forward(w->device, &(AttentionForward){shape, in, w->buffers[1], w->buffers[2]});
}
static Error *make_attention_backward(Work *w) {
    TRY(make_attention(w));
    run_attention(w);
    return device_finish(w->device);
}
static void attention_backward(Work *w, bool any_order) {
    AttentionShape shape = attention_shape(w);
    DataType type = w->device->type;
    w->device->op->attention_backward(w->device,
                                      &(AttentionBackward){.shape = shape,
                                                           .in = attention_packed(&shape, type, w->buffers[0]),
                                                           .out = w->buffers[1],
                                                           .dout = w->buffers[3],
                                                           .lse = w->buffers[2],
                                                           .gradients = attention_packed(&shape, type, w->buffers[4]),
                                                           .any_order = any_order});
}
static void run_attention_backward(Work *w) {
    attention_backward(w, true);
}
static void run_attention_deterministic(Work *w) {
    attention_backward(w, false);
}

// Backward in any order, and as it is by default.
static void add_attention(int64_t batch, int64_t length, int64_t heads, int64_t groups, int64_t width) {
    static const char *const names[] = {"forward", "backward", "deterministic"};
    batch = part(batch, 16), length = part(length, 32), heads = part(heads, groups), groups = part(groups, groups);
    double product = (double)batch * (double)heads * (double)length * (double)length * (double)width;  // 2 flops, half of them
    for (int i = 0; i < 3; i++) {
        bool back = i > 0;
        Row *row = add_row("tensor", (back ? 5 : 2) * product, back ? make_attention_backward : make_attention,
                           i == 0   ? run_attention
                           : i == 1 ? run_attention_backward
                                    : run_attention_deterministic);
        snprintf(row->name, sizeof row->name, "attention/%s/B%lld-T%lld-H%lld-G%lld-D%lld", names[i], (long long)batch,
                 (long long)length, (long long)heads, (long long)groups, (long long)width);
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
// As the driver copies between two places of a card.
static void run_copy_driver(Work *w) {
    typedef int Copy(unsigned long long to, unsigned long long from, size_t bytes, void *stream);
    static Copy *copy;
    copy = copy != NULL ? copy : (Copy *)library_function("libcuda.so.1", NULL, "cuMemcpyDtoDAsync_v2");
    int64_t bytes = w->row->a * w->row->b * data_type_bytes(w->device->type);
    if (copy == NULL ||
        copy((uintptr_t)w->buffers[1], (uintptr_t)w->buffers[0], (size_t)bytes, device_stream(w->device)) != 0) {
        w->refused = true;
    }
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
    count = part(count, 256), width = part(width, 8);
    Row *row = add_row("memory", (double)count * (double)width * passes, make_rows, run);
    row->library = run == run_copy_driver ? LIBRARY_DRIVER : LIBRARY_NONE;
    snprintf(row->name, sizeof row->name, "rows/%s/%lldx%lld%s", what, (long long)count, (long long)width,
             row->library != LIBRARY_NONE ? "/driver" : "");
    row->a = count, row->b = width, row->c = kind;
}

// ---- The update of `a` parameters

// What every update takes, into the two buffers that come next: one segment and a control.
static Error *take_settings(Work *w) {
    UpdateSegment all = {.count = w->row->a, .rate_scale = 1, .weight_decay = 0.1F};
    StepControl control = {.learning_rate = 1e-4F, .grad_scale = 1, .correction1 = 1, .correction2 = 1, .loss_scale = 1};
    TRY(take_bytes(w, sizeof all));
    TRY(take_bytes(w, sizeof control));
    device_upload(w->device, w->buffers[w->count - 2], &all, sizeof all);
    device_upload(w->device, w->buffers[w->count - 1], &control, sizeof control);
    return device_finish(w->device);
}
static OptimizerUpdate update_of(const Work *w) {
    return (OptimizerUpdate){.kind = OPTIMIZER_ADAMW,
                             .segments = w->buffers[w->count - 2],
                             .segment_count = 1,
                             .count = w->row->a,
                             .beta1 = 0.9F,
                             .beta2 = 0.95F,
                             .epsilon = 1e-8F,
                             .control = w->buffers[w->count - 1],
                             .grads = w->buffers[0],
                             .weights = w->buffers[1]};
}

// fp32 masters and moments, and the weights' copy.
static Error *make_update(Work *w) {
    TRY(take(w, w->row->a, true));
    TRY(take(w, w->row->a, false));
    for (int i = 0; i < 3; i++) {
        TRY(take(w, w->row->a, true));
    }
    w->device->op->zero(w->device, w->row->a * (int64_t)sizeof(float), w->buffers[4]);
    return take_settings(w);
}
static void run_update(Work *w) {
    OptimizerUpdate update = update_of(w);
    update.masters = w->buffers[2];
    update.moment1 = w->buffers[3], update.moment2 = w->buffers[4];
    w->device->op->optimizer_update(w->device, &update);
}

// fp32 masters and 8-bit moments, which begin as zeros.
static Error *take_moments(Work *w) {
    size_t blocks = (size_t)(w->row->a + MOMENT_BLOCK - 1) / MOMENT_BLOCK;
    for (int i = 0; i < 2; i++) {
        TRY(take_bytes(w, blocks * MOMENT_BLOCK));
        TRY(take_bytes(w, blocks * sizeof(float)));
    }
    return take_settings(w);
}
static void update_8bit(Work *w, int first, void *masters) {
    OptimizerUpdate update = update_of(w);
    update.count = (update.count + MOMENT_BLOCK - 1) / MOMENT_BLOCK * MOMENT_BLOCK;
    update.moment_type = MOMENT_8BIT;
    update.masters = masters;
    update.moment1 = w->buffers[first], update.scale1 = w->buffers[first + 1];
    update.moment2 = w->buffers[first + 2], update.scale2 = w->buffers[first + 3];
    w->device->op->optimizer_update(w->device, &update);
}
static Error *make_update_8bit(Work *w) {
    TRY(take(w, w->row->a, true));
    TRY(take(w, w->row->a, false));
    TRY(take(w, w->row->a, true));
    return take_moments(w);
}
static void run_update_8bit(Work *w) {
    update_8bit(w, 3, w->buffers[2]);
}

// Weights alone, rounded stochastically, and 8-bit moments, which begin as zeros.
static Error *make_update_small(Work *w) {
    TRY(take(w, w->row->a, true));
    TRY(take(w, w->row->a, false));
    return take_moments(w);
}
static void run_update_small(Work *w) {
    update_8bit(w, 2, NULL);
}

static void add_update(const char *what, Error *(*make)(Work *), void (*run)(Work *), double bytes) {
    int64_t count = part(124475904, 2048);
    Row *row = add_row("memory", (double)count * bytes, make, run);
    snprintf(row->name, sizeof row->name, "update/%s/%lld", what, (long long)count);
    row->a = count;
}

// ---- A training step of a whole model

// What a step keeps for each parameter: 18 bytes of fp32 masters, bf16 weights, fp32 gradients and fp32 moments; or, where
// those cannot fit, 8 bytes of bf16 weights (updates rounded stochastically), fp32 gradients and 8-bit moments, and norm and
// activation outputs are computed again in the backward pass. By the plan the 8B model then needs 72.8 GiB, with masters 153
// GiB and more.
typedef enum StepState { STATE_MASTERS, STATE_SMALL } StepState;
static const char *const state_names[] = {"masters", "small"};

static const struct {
    const char *name, *family;
    int64_t layers, width, heads, groups, ffn, vocabulary, sequences, length;
    StepState state;
} shapes[] = {
    {"gpt2-124m", "gpt2", 12, 768, 12, 12, 3072, 50304, 16, 1024, STATE_MASTERS},
    {"gpt2-350m", "gpt2", 24, 1024, 16, 16, 4096, 50304, 16, 1024, STATE_MASTERS},
    {"gpt2-1.3b", "gpt2", 24, 2048, 16, 16, 8192, 50304, 8, 1024, STATE_MASTERS},
    {"llama-1b", "llama", 16, 2048, 32, 8, 8192, 128256, 4, 2048, STATE_MASTERS},
    {"llama-3b", "llama", 28, 3072, 24, 8, 8192, 128256, 4, 2048, STATE_MASTERS},
    {"llama-8b", "llama", 32, 4096, 32, 8, 14336, 128256, 2, 2048, STATE_SMALL},
};

static int64_t shape_sequences(int i) {
    return part(shapes[i].sequences, 8);
}
static int64_t shape_length(int i) {
    return part(shapes[i].length, 64);
}

static ModelConfig shape_config(int i) {
    ModelConfig config = {0};
    keys_defaults(model_keys, model_key_count, &config);
    int64_t groups = shapes[i].groups;
    config.family = family_find(shapes[i].family);
    config.layers = part(shapes[i].layers, 12), config.width = part(shapes[i].width, groups);
    config.heads = part(shapes[i].heads, groups), config.groups = part(groups, groups);
    config.ffn_width = part(shapes[i].ffn, groups), config.context = shape_length(i);
    config.vocabulary = part(shapes[i].vocabulary, 48);
    Error *error = model_config_resolve(&config, NULL, config.vocabulary, shapes[i].name);
    ensure(error == NULL, "%s", error->message);
    return config;
}

// An error that says how much is missing where the planned step does not fit in what the card has free.
static Error *check_room(Device *device, const ModelConfig *config, const ModelOptions *options) {
    MemoryPlan plan;
    char need[32], have[32], missing[32];
    Machine machine = machine_of(device, 1, 1);
    model_plan(config, options, &machine, &plan);
    double left = (double)machine.memory, total = (double)plan.total;
    return total <= left ? NULL
                         : failure("the step needs %s of the card's memory, %s more than the %s that are free",
                                   text_bytes(need, total), text_bytes(missing, total - left), text_bytes(have, left));
}

static Error *make_step(Work *w) {
    int i = w->row->model;
    ModelConfig config = shape_config(i);
    int64_t sequences = shape_sequences(i), length = shape_length(i);
    ModelOptions options = {
        .sequences = sequences, .length = length, .masters = true, .deterministic = true, .weight_decay = 0.1};
    if (shapes[i].state == STATE_SMALL) {
        options.masters = false;
        options.moments = MOMENT_8BIT;
        options.recompute = RECOMPUTE_SELECTIVE;
    }
    TRY(check_room(w->device, &config, &options));
    TRY(model_create(w->device, &config, &options, &w->model));
    model_initialise(w->model, 1);
    batch_allocate(&w->batch, sequences, length);
    for (int64_t r = 0; r < sequences * length; r++) {
        w->batch.tokens[r] = (int32_t)(philox_u64(4, 5, (uint64_t)r) % (uint64_t)config.vocabulary);
        w->batch.targets[r] = (int32_t)(philox_u64(6, 7, (uint64_t)r) % (uint64_t)config.vocabulary);
        w->batch.loss_weights[r] = 1;
        w->batch.first[r] = 0;
        w->batch.positions[r] = (int32_t)(r % length);
    }
    return NULL;
}
static void step_operations(Work *w) {
    double count = (double)(w->batch.sequences * w->batch.length);
    StepOptions step = {.grad_scale = (float)(1 / count)};
    weights_zero_gradients(&w->model->weights);
    model_run_batch(w->model, &w->batch_there, &step);
    model_finish_step(w->model,
                      &(UpdateOptions){.batch_weight = count, .clip = 1, .beta1 = 0.9F, .beta2 = 0.95F, .epsilon = 1e-8F});
}
// The first run sizes scratch, the second is recorded, those that follow repeat it.
static void run_step(Work *w) {
    model_begin_step(w->model, 1e-4);
    w->batch_there = batch_to_device(w->device, &w->batch, w->model->workspace.batch_memory);
    bool recording = w->runs == 1 && device_record(w->device);
    if (w->graph == NULL) {
        step_operations(w);
    }
    if (recording) {
        w->failed = device_record_end(w->device, &w->graph);
    }
    if (w->graph != NULL) {
        device_graph_run(w->device, w->graph);
    }
}

static void add_step(int i) {
    ModelConfig config = shape_config(i);
    int64_t sequences = shape_sequences(i), length = shape_length(i);
    Row *row = add_row("tensor", (double)(sequences * length) * model_flops_per_token(&config, length), make_step, run_step);
    snprintf(row->name, sizeof row->name, "step/%s/B%lld-T%lld", shapes[i].name, (long long)sequences, (long long)length);
    row->model = i;
}

static void list_rows(void) {
    enum { GPT2_ROWS = 16384, LONG_ROWS = 8192 };
    // What an epilogue costs comes first.
    add_gelu_pair("124m-up-gelu", "124m-down-gelu", GPT2_ROWS, 768, 3072);
    add_gated_pair("1b-up-gated", "1b-down-gated", LONG_ROWS, 2048, 8192);
    add_product(FORM_FORWARD, "124m-projection-residual", GPT2_ROWS, 768, 768, (Epilogue){.bias = true, .residual = true});
    add_product(FORM_FORWARD, "124m-down-residual", GPT2_ROWS, 3072, 768, (Epilogue){.bias = true, .residual = true});
    add_product(FORM_FORWARD, "124m-qkv-bias", GPT2_ROWS, 768, 2304, (Epilogue){.bias = true});
    add_classifier(GPT2_ROWS, 768, 50257, 4096);
    add_classifier(GPT2_ROWS, 768, 50304, 4096);
    add_products("124m-projection", GPT2_ROWS, 768, 768);
    add_products("124m-qkv", GPT2_ROWS, 768, 2304);
    add_products("124m-up", GPT2_ROWS, 768, 3072);
    add_products("124m-down", GPT2_ROWS, 3072, 768);
    add_products("124m-head", GPT2_ROWS, 768, 50304);
    add_products("124m-head-odd", GPT2_ROWS, 768, 50257);
    add_gelu_pair("350m-up-gelu", "350m-down-gelu", GPT2_ROWS, 1024, 4096);
    add_gelu_pair("1.3b-up-gelu", "1.3b-down-gelu", LONG_ROWS, 2048, 8192);
    add_products("1.3b-up", LONG_ROWS, 2048, 8192);
    add_products("8b-qkv", LONG_ROWS, 4096, 6144);
    add_products("8b-up", LONG_ROWS, 4096, 28672);
    add_products("square", 4096, 4096, 4096);
    add_products("square", 8192, 8192, 8192);
    add_attention(16, 1024, 12, 12, 64);
    add_attention(8, 1024, 16, 16, 128);
    add_attention(2, 8192, 16, 16, 128);
    add_attention(2, 8192, 32, 8, 128);
    add_attention(2, 8192, 16, 16, 64);
    add_attention(4, 2048, 16, 16, 64);
    add_attention(2, 4096, 8, 8, 256);
    // Bytes an element: bf16, each tensor read or written once. Of the norms also sizes that no cache holds.
    add_rows("copy", run_copy, 16384, 8192, 4, 0);
    add_rows("copy", run_copy_driver, 16384, 8192, 4, 0);
    add_rows("layernorm", run_norm, 131072, 768, 4, NORM_LAYER);
    add_rows("layernorm-backward", run_norm_backward, 131072, 768, 8, NORM_LAYER);
    add_rows("rmsnorm", run_norm, 32768, 4096, 4, NORM_RMS);
    add_rows("rmsnorm-backward", run_norm_backward, 32768, 4096, 8, NORM_RMS);
    add_rows("layernorm", run_norm, 16384, 768, 4, NORM_LAYER);
    add_rows("layernorm-backward", run_norm_backward, 16384, 768, 8, NORM_LAYER);
    add_rows("rmsnorm", run_norm, 16384, 4096, 4, NORM_RMS);
    add_rows("rmsnorm-backward", run_norm_backward, 16384, 4096, 8, NORM_RMS);
    add_rows("add", run_add, 16384, 4096, 6, 0);
    add_rows("swiglu", run_gated, 16384, 8192, 3, 0);
    add_rows("sum-of-squares", run_squares, 16384, 8192, 2, 0);
    // Bytes a parameter: what is read, then what is written.
    add_update("adamw", make_update, run_update, (4 + 3 * 4) + (3 * 4 + 2));
    add_update("adamw-8bit", make_update_8bit, run_update_8bit, (4 + 4 + 2) + (4 + 2 + 2) + 4.0 * 4 / MOMENT_BLOCK);
    add_update("adamw-small", make_update_small, run_update_small, (4 + 2 + 2) + (2 + 2) + 4.0 * 4 / MOMENT_BLOCK);
    for (int i = 0; i < (int)(sizeof shapes / sizeof *shapes); i++) {
        add_step(i);
    }
}

// ---- Measuring

// The works that are held, and what they run on: [0] with products of ours, [1] with cuBLASLt's, NULL where there is none.
typedef struct Bench {
    Device *devices[2];
    Work held[MOST_HELD];
} Bench;

static void release_held(Bench *bench) {
    for (int i = 0; i < MOST_HELD; i++) {
        release(&bench->held[i]);
    }
}

// The work of a row, made where it is not held; where as many are held as there is room for, they are freed first.
static Error *hold(Bench *bench, const Row *row, Work **out) {
    Work *free_one = NULL;
    for (int i = 0; i < MOST_HELD; i++) {
        if (bench->held[i].row == row) {
            *out = &bench->held[i];
            return NULL;
        }
        free_one = bench->held[i].row == NULL ? &bench->held[i] : free_one;
    }
    if (free_one == NULL) {
        release_held(bench);
        free_one = &bench->held[0];
    }
    static const char *const names[] = {"", "cuBLASLt", "driver"};
    if (rehearsal && row->library != LIBRARY_NONE) {
        return failure("a simulated card has no %s", names[row->library]);
    }
    Device *device = bench->devices[row->library == LIBRARY_CUBLAS];
    *free_one = (Work){.device = device, .row = row};
    Error *error = row->make(free_one);
    if (error != NULL) {
        release(free_one);
    }
    *out = free_one;
    return error;
}

static void run_once(Work *w) {
    w->row->run(w);
    w->runs++;
}

// Whether the library computes its row: where it is not here or does not take a shape, ours does, and the choice says so.
static Error *ask_library(Work *w, Row *row) {
    Buffer before = {0}, after = {0};
    device_describe_choices(w->device, &before);
    run_once(w);
    Error *error = device_finish(w->device);
    device_describe_choices(w->device, &after);
    bool ours = after.size > before.size && strstr(after.data + before.size, ": cublas by") == NULL;
    row->takes = (row->library == LIBRARY_CUBLAS && ours) || w->refused ? REFUSES : TAKES;
    buffer_free(&before);
    buffer_free(&after);
    return error;
}

static Error *measure(Work *w, double least, double *seconds) {
    for (int warm = w->runs == 0 ? 3 : 1; warm > 0; warm--) {  // a step runs, is recorded, and is repeated
        run_once(w);
    }
    TRY(device_finish(w->device));
    double start = clock_seconds(), passed = 0;
    int64_t runs = 0;
    for (int64_t more = 1; runs == 0 || passed < least; more = runs) {
        for (int64_t i = 0; i < more; i++) {
            run_once(w);
        }
        runs += more;
        TRY(device_finish(w->device));
        passed = clock_seconds() - start;
    }
    *seconds = passed / (double)runs;
    if (w->model != NULL && model_control(w->model).skipped > 0) {
        return failure("a step was skipped: its gradient is not finite");
    }
    return NULL;
}

// One line of answer. An error of a run is one of the device, which is of no use after it.
static bool answer(Bench *bench, const char *name, double least) {
    static const char *const refusals[] = {"", "cuBLASLt does not take it, or is not here", "the driver does not copy"};
    Row *row = NULL;
    for (int i = 0; i < row_count && row == NULL; i++) {
        row = strcmp(rows[i].name, name) == 0 ? &rows[i] : NULL;
    }
    if (row == NULL) {
        printf("absent: there is no row %s\n", name);
        return true;
    }
    Work *w = NULL;
    double seconds = 0;
    Error *error = hold(bench, row, &w);
    bool usable = true;
    if (error != NULL) {
        printf("absent: %s\n", error->message);
    } else {
        error = row->library != LIBRARY_NONE && row->takes == UNKNOWN ? ask_library(w, row) : NULL;
        if (error == NULL && row->takes != REFUSES) {
            error = measure(w, least, &seconds);
        }
        error_keep(&error, w->failed);
        w->failed = NULL;
        usable = error == NULL;
        if (usable && row->takes == REFUSES) {
            printf("absent: %s\n", refusals[row->library]);
        } else if (usable) {
            printf("%.9f\n", seconds);
        } else {
            printf("error: %s\n", error->message);
        }
    }
    error_free(error);
    return usable;
}

static Error *bench_open(Bench *bench) {
    DeviceKind kind = rehearsal ? DEVICE_SIMULATED : DEVICE_CUDA;
    int threads = threads_available();  // for initial weights
    TRY(device_open_card(kind, 0, TYPE_BF16, threads, &bench->devices[0]));
    TRY(device_set_products(bench->devices[0], "ours"));
    if (!rehearsal) {
        TRY(device_open_card(kind, 0, TYPE_BF16, 1, &bench->devices[1]));
        TRY(device_set_products(bench->devices[1], "cublas"));
    }
    return NULL;
}

static void bench_close(Bench *bench) {
    release_held(bench);
    device_close(bench->devices[0]);
    device_close(bench->devices[1]);
}

static void list(void) {
    for (int i = 0; i < row_count; i++) {
        const Row *row = &rows[i];
        printf("%s %s %.9g", row->name, row->limit, row->work);
        if (row->make == make_step) {
            ModelConfig c = shape_config(row->model);
            printf(
                " layers=%lld width=%lld heads=%lld groups=%lld inner=%lld vocabulary=%lld sequences=%lld length=%lld state=%s",
                (long long)c.layers, (long long)c.width, (long long)c.heads, (long long)c.groups, (long long)c.ffn_width,
                (long long)c.vocabulary, (long long)shape_sequences(row->model), (long long)shape_length(row->model),
                state_names[shapes[row->model].state]);
        }
        printf("\n");
    }
}

// False where a run failed.
static bool serve(Bench *bench) {
    char line[512], name[128];
    double least;
    bool usable = true;
    while (usable && fgets(line, sizeof line, stdin) != NULL) {
        if (strcmp(line, "release\n") == 0) {
            release_held(bench);
            printf("released\n");
        } else if (sscanf(line, "%127s %lf", name, &least) == 2) {
            usable = answer(bench, name, least);
        } else {
            printf("absent: expected: NAME SECONDS, or: release\n");
        }
    }
    return usable;
}

static bool measure_all(Bench *bench) {
    bool usable = true;
    for (int i = 0; i < row_count && usable; i++) {
        printf("%-48s ", rows[i].name);
        usable = answer(bench, rows[i].name, 0.2);
        release_held(bench);
    }
    return usable;
}

int main(int count, char **arguments) {
    int at = 1;
    rehearsal = at < count && strcmp(arguments[at], "--rehearse") == 0;
    at += rehearsal;
    const char *mode = at < count ? arguments[at] : "";
    bool listing = strcmp(mode, "--list") == 0, serving = strcmp(mode, "--serve") == 0;
    if (at + 1 < count || (*mode != 0 && !listing && !serving)) {
        fprintf(stderr, "bench_gpu: expected: bench_gpu [--rehearse] [--list | --serve]\n");
        return 1;
    }
    list_rows();
    if (listing) {
        list();
        return 0;
    }
    Bench bench = {0};
    Error *error = bench_open(&bench);
    if (error != NULL) {
        fprintf(stderr, "bench_gpu: %s\n", error->message);
        return 1;
    }
    fprintf(stderr, "%s\n", bench.devices[0]->name);
    setvbuf(stdout, NULL, _IOLBF, 0);
    bool usable = serving ? serve(&bench) : measure_all(&bench);
    bench_close(&bench);
    return usable ? 0 : 1;
}
