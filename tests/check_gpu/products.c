// Matrix products on a card: every form and epilogue in the sizes of training, sums in parts, several tiles for every
// multiprocessor, long sums, odd sizes. Ours against float64 (samples), the portable body and cuBLASLt (all of it).
#include "tests/check_gpu/checks.h"

#include "tests/support/op_check.h"

#include <stdio.h>

typedef enum Form { FORWARD, INPUT, WEIGHT } Form;
static const char *const form_names[] = {"forward", "input", "weight"};

typedef struct ProductCheck {
    const char *name;
    Form form;
    int64_t rows, in, out;
    DataType type;
    Activation activation;
    bool bias, residual, pre, accumulate, gated, float_output;
    const char *body;  // that must compute it on an sm_90; NULL: any
} ProductCheck;

#define BF16 TYPE_BF16
#define FP16 TYPE_FP16
#define FP32 TYPE_FP32
#define GELU ACTIVATION_GELU_TANH
#define SILU ACTIVATION_SILU
enum { TOKENS = 16384, LONG_TOKENS = 8192, SAMPLES = 48 };

// The smallest ones of each kernel come first: a hanging one is named at the least cost.
static const ProductCheck small_products[] = {
    {"plain", FORWARD, 256, 256, 256, BF16, .body = "sm90"},
    {"plain", FORWARD, 512, 192, 520, FP16, .body = "sm90"},
    {"bias", FORWARD, 256, 256, 256, BF16, .bias = true, .body = "sm90"},
    {"bias-residual", FORWARD, 256, 256, 256, BF16, .bias = true, .residual = true, .body = "sm90"},
    {"gelu-pre", FORWARD, 256, 256, 256, BF16, GELU, .bias = true, .pre = true, .body = "sm90"},
    {"gated-pre", FORWARD, 256, 256, 512, BF16, SILU, .pre = true, .gated = true, .body = "sm90"},
    {"plain", INPUT, 256, 256, 256, BF16, .body = "sm90"},
    {"accumulate", INPUT, 256, 256, 256, BF16, .accumulate = true, .body = "sm90"},
    {"gelu", INPUT, 256, 256, 256, BF16, GELU, .body = "sm90"},
    {"gated", INPUT, 256, 256, 256, BF16, SILU, .gated = true, .body = "sm90"},
    {"plain", WEIGHT, 256, 256, 256, BF16, .body = "sm90"},
    {"long", WEIGHT, 4096, 256, 256, BF16, .bias = true, .body = "sm90"},
    {"long", FORWARD, 256, 4096, 256, BF16, .body = "sm90"},
    {"float", FORWARD, 256, 256, 264, BF16, .float_output = true, .body = "sm90"},
    {"odd", FORWARD, 255, 129, 257, BF16, .bias = true},
    {"few", FORWARD, 4, 512, 512, BF16, .bias = true, .body = "few"},
    {"fp32", FORWARD, 48, 300, 40, FP32, .body = "float"},
};

// What a training step of GPT-2 (124M) and of a LLaMA consists of, then what stresses a product in other ways.
static const ProductCheck large_products[] = {
    {"up-gelu-pre", FORWARD, TOKENS, 768, 3072, BF16, GELU, .bias = true, .pre = true, .body = "sm90"},
    {"down-gelu", INPUT, TOKENS, 3072, 768, BF16, GELU, .body = "sm90"},
    {"up-gated-pre", FORWARD, LONG_TOKENS, 2048, 16384, BF16, SILU, .pre = true, .gated = true, .body = "sm90"},
    {"down-gated", INPUT, LONG_TOKENS, 8192, 2048, BF16, SILU, .gated = true, .body = "sm90"},
    {"qkv-bias", FORWARD, TOKENS, 768, 2304, BF16, .bias = true, .body = "sm90"},
    {"projection-bias-residual", FORWARD, TOKENS, 768, 768, BF16, .bias = true, .residual = true, .body = "sm90"},
    {"down-bias-residual", FORWARD, TOKENS, 3072, 768, BF16, .bias = true, .residual = true, .body = "sm90"},
    {"up", INPUT, TOKENS, 768, 3072, BF16, .body = "sm90"},
    {"qkv-accumulate", INPUT, TOKENS, 768, 2304, BF16, .accumulate = true, .body = "sm90"},
    {"projection", WEIGHT, TOKENS, 768, 768, BF16, .bias = true, .body = "sm90"},
    {"qkv", WEIGHT, TOKENS, 768, 2304, BF16, .bias = true, .body = "sm90"},
    {"up", WEIGHT, TOKENS, 768, 3072, BF16, .bias = true, .body = "sm90"},
    {"down", WEIGHT, TOKENS, 3072, 768, BF16, .bias = true, .body = "sm90"},
    {"up-gelu-pre-fp16", FORWARD, TOKENS, 768, 3072, FP16, GELU, .bias = true, .pre = true, .body = "sm90"},
    {"down-gelu-fp16", INPUT, TOKENS, 3072, 768, FP16, GELU, .body = "sm90"},
    {"square", FORWARD, 8192, 8192, 8192, BF16, .body = "sm90"},
    {"square", INPUT, 8192, 8192, 8192, BF16, .body = "sm90"},
    {"square", WEIGHT, 8192, 8192, 8192, BF16, .body = "sm90"},
    {"long", FORWARD, 256, 65536, 256, BF16, .body = "sm90"},
    {"long", INPUT, 512, 512, 65536, BF16, GELU, .body = "sm90"},
    {"long", WEIGHT, 65536, 768, 768, BF16, .body = "sm90"},
    {"vocabulary-50304", FORWARD, 4096, 768, 50304, BF16, .body = "sm90"},
    {"vocabulary-50257", FORWARD, 4096, 768, 50257, BF16},
    {"vocabulary-50257", INPUT, 4096, 768, 50257, BF16},
    {"vocabulary-50257", WEIGHT, 4096, 768, 50257, BF16},
    {"odd", FORWARD, 16381, 769, 3071, BF16, GELU, .bias = true, .pre = true},
    {"ragged", FORWARD, 16381, 776, 3080, BF16, GELU, .bias = true, .pre = true, .body = "sm90"},
    {"ragged", INPUT, 16381, 3080, 776, BF16, GELU, .body = "sm90"},
    {"ragged", WEIGHT, 16381, 3080, 776, BF16, .body = "sm90"},
};

// The operands of one product, and one set of results.
typedef struct Operands {
    Tensor a, b;  // x and w, dy and w, dy and x
    Tensor bias, residual, pre;
} Operands;
typedef struct Results {
    Tensor c, second;  // second: pre of a forward, dbias of a weight's product
} Results;

static ProductCheck divided(const ProductCheck *check, bool small) {
    ProductCheck c = *check;
    if (!small && rehearsal) {
        // Whole packs stay whole packs, tokens several tiles, and what is small already is only halved.
        int64_t *sizes[] = {&c.rows, &c.in, &c.out};
        for (int i = 0; i < 3; i++) {
            int64_t size = *sizes[i], divisor = size < 700 ? 2 : size >= 50000 ? 64 : i == 0 ? 48 : 10;
            *sizes[i] = size % 8 == 0 ? (size / divisor + 15) / 16 * 16 : size / divisor | 1;
        }
    }
    return c;
}

// Columns of C, and of what lies beside each other in a row of sums.
static int64_t result_rows(const ProductCheck *c) {
    return c->form == WEIGHT ? c->out : c->rows;
}
static int64_t sum_columns(const ProductCheck *c) {
    return c->form == FORWARD ? c->out : c->in;
}
static int64_t result_columns(const ProductCheck *c) {
    return c->form == FORWARD ? c->out / (c->gated ? 2 : 1) : c->in * (c->gated ? 2 : 1);
}
static int64_t sum_length(const ProductCheck *c) {
    return c->form == FORWARD ? c->in : c->form == INPUT ? c->out : c->rows;
}
static bool has_second(const ProductCheck *c) {
    return (c->form == FORWARD && c->pre) || (c->form == WEIGHT && c->bias);
}

static Error *operands_make(const ProductCheck *c, Device *device, Operands *o) {
    int64_t a = c->rows * (c->form == FORWARD ? c->in : c->out), b = c->form == WEIGHT ? c->rows * c->in : c->out * c->in;
    int exponent = -(int)lround(log2(sqrt((double)sum_length(c))));  // sums of deviation 1, where activations bend
    TRY(tensor_random(device, c->type, a, 0, 0, &o->a));
    TRY(tensor_random(device, c->type, b, 1, exponent, &o->b));
    if (c->form == FORWARD && c->bias) {
        TRY(tensor_random(device, c->type, c->out, 2, 0, &o->bias));
    }
    if (c->residual) {
        TRY(tensor_random(device, c->type, c->rows * result_columns(c), 3, 0, &o->residual));
    }
    if (c->form == INPUT && c->activation != ACTIVATION_NONE) {
        TRY(tensor_random(device, c->type, c->rows * result_columns(c), 4, 0, &o->pre));
    }
    return NULL;
}

static void operands_free(Operands *o) {
    tensor_free(&o->a);
    tensor_free(&o->b);
    tensor_free(&o->bias);
    tensor_free(&o->residual);
    tensor_free(&o->pre);
}

// One run on a device, into fresh results.
static Error *product_run(const ProductCheck *c, Device *device, const Operands *o, Results *r) {
    int64_t count = result_rows(c) * result_columns(c);
    DataType type = c->form == WEIGHT || c->float_output ? TYPE_FP32 : c->type;
    bool adds = c->form == WEIGHT || c->accumulate;
    TRY(adds ? tensor_random(device, type, count, 5, 0, &r->c) : tensor_zeros(device, type, count, &r->c));
    if (has_second(c)) {
        TRY(c->form == WEIGHT ? tensor_random(device, TYPE_FP32, c->out, 6, 0, &r->second)
                              : tensor_zeros(device, c->type, c->rows * c->out, &r->second));
    }
    if (c->form == FORWARD) {
        device->op->matmul_forward(device, &(MatmulForward){.rows = c->rows,
                                                            .in = c->in,
                                                            .out = c->out,
                                                            .x = o->a.at,
                                                            .w = o->b.at,
                                                            .bias = o->bias.at,
                                                            .residual = o->residual.at,
                                                            .activation = c->activation,
                                                            .pre = r->second.at,
                                                            .y = r->c.at,
                                                            .gated = c->gated,
                                                            .float_output = c->float_output});
    } else if (c->form == INPUT) {
        device->op->matmul_backward_input(device, &(MatmulBackwardInput){.rows = c->rows,
                                                                         .in = c->in,
                                                                         .out = c->out,
                                                                         .dy = o->a.at,
                                                                         .w = o->b.at,
                                                                         .activation = c->activation,
                                                                         .pre = o->pre.at,
                                                                         .accumulate = c->accumulate,
                                                                         .dx = r->c.at,
                                                                         .gated = c->gated});
    } else {
        device->op->matmul_backward_weight(device, &(MatmulBackwardWeight){.rows = c->rows,
                                                                           .in = c->in,
                                                                           .out = c->out,
                                                                           .dy = o->a.at,
                                                                           .x = o->b.at,
                                                                           .dw = r->c.at,
                                                                           .dbias = r->second.at});
    }
    return device_finish(device);
}

static void results_free(Results *r) {
    tensor_free(&r->c);
    tensor_free(&r->second);
}

// ---- Samples: some rows of C, crossed with some columns of sums

typedef struct Samples {
    const ProductCheck *check;
    const Operands *operands;
    const Tensor *start;  // what C began with
    int64_t rows[SAMPLES], columns[SAMPLES];
    float *a, *b;  // SAMPLES lines of each operand, as long as the sum
    // The results of a column of sums: one, two where the backward pass is gated; and pre.
    double exact[SAMPLES][3 * SAMPLES], partial[SAMPLES];
    float plain[SAMPLES][3 * SAMPLES];
} Samples;

static double activate(Activation kind, double x, bool slope) {
    double c = sqrt(2 / M_PI), t = tanh(c * (x + 0.044715 * x * x * x)), s = 1 / (1 + exp(-x));
    switch (kind) {
    case ACTIVATION_GELU_TANH:
        return slope ? 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x) : 0.5 * x * (1 + t);
    case ACTIVATION_SILU:
        return slope ? s + x * s * (1 - s) : x * s;
    default:
        return slope ? 1 : x;
    }
}
static float activate_single(Activation kind, float x, bool slope) {
    float c = sqrtf(2 / (float)M_PI), t = tanhf(c * (x + 0.044715F * x * x * x)), s = 1 / (1 + expf(-x));
    switch (kind) {
    case ACTIVATION_GELU_TANH:
        return slope ? 0.5F * (1 + t) + 0.5F * x * (1 - t * t) * c * (1 + 3 * 0.044715F * x * x) : 0.5F * x * (1 + t);
    case ACTIVATION_SILU:
        return slope ? s + x * s * (1 - s) : x * s;
    default:
        return slope ? 1 : x;
    }
}

// A sum in double precision, its largest partial sum, and in single precision.
typedef struct Sum {
    double exact, partial;
    float plain;
} Sum;
static Sum sum_of(const float *a, const float *b, int64_t length) {
    Sum sum = {0};
    for (int64_t i = 0; i < length; i++) {
        sum.exact += (double)a[i] * (double)b[i];
        sum.plain += a[i] * b[i];
        sum.partial = fmax(sum.partial, fabs(sum.exact));
    }
    return sum;
}

static float one(const Tensor *t, int64_t at) {
    float value = 0;
    if (t->at != NULL) {
        tensor_start(t, at, 1, 1, &value);
    }
    return value;
}

// The results of sample (i, j), behind each other: of C, in the backward pass of a gated unit two, and then pre.
static void sample_results(Samples *s, int i, int j, const Sum *sum, const Sum *value_sum) {
    const ProductCheck *c = s->check;
    const Operands *o = s->operands;
    DataType type = c->form == WEIGHT || c->float_output ? TYPE_FP32 : c->type;
    int64_t row = s->rows[i], column = s->columns[j], width = result_columns(c);
    double *exact = &s->exact[i][j];
    float *plain = &s->plain[i][j];
    if (c->form == FORWARD) {
        double bias = (double)one(&o->bias, column);
        float residual = one(&o->residual, row * width + column);
        double y = activate(c->activation, sum->exact + bias, false);
        float plain_y = activate_single(c->activation, sum->plain + (float)bias, false);
        if (c->gated) {
            double value_bias = (double)one(&o->bias, column + width);
            y *= value_sum->exact + value_bias;
            plain_y *= value_sum->plain + (float)value_bias;
            exact[2 * SAMPLES] = value_sum->exact + value_bias;
            plain[2 * SAMPLES] = op_round(c->type, value_sum->plain + (float)value_bias);
        }
        exact[0] = y + (double)residual;
        plain[0] = op_round(type, plain_y + residual);
        exact[SAMPLES] = sum->exact + bias;
        plain[SAMPLES] = op_round(c->type, sum->plain + (float)bias);
    } else if (c->gated) {
        float gate = one(&o->pre, row * width + column), value = one(&o->pre, row * width + c->in + column);
        exact[0] = sum->exact * (double)value * activate(c->activation, (double)gate, true);
        exact[SAMPLES] = sum->exact * activate(c->activation, (double)gate, false);
        plain[0] = op_round(type, sum->plain * value * activate_single(c->activation, gate, true));
        plain[SAMPLES] = op_round(type, sum->plain * activate_single(c->activation, gate, false));
    } else {
        float pre = one(&o->pre, row * width + column), start = one(s->start, row * width + column);
        exact[0] = sum->exact * activate(c->activation, (double)pre, true) + (double)start;
        plain[0] = op_round(type, sum->plain * activate_single(c->activation, pre, true) + start);
    }
}

static void sample_task(void *context, int64_t i, int thread) {
    Samples *s = context;
    const ProductCheck *c = s->check;
    int64_t length = sum_length(c);
    for (int j = 0; j < SAMPLES; j++) {
        Sum sum = sum_of(s->a + i * length, s->b + j * length, length), value = {0};
        if (c->form == FORWARD && c->gated) {
            value = sum_of(s->a + i * length, s->b + (SAMPLES + j) * length, length);
        }
        s->partial[i] = fmax(s->partial[i], fmax(sum.partial, value.partial));
        sample_results(s, (int)i, j, &sum, &value);
    }
}

// Line `at` of an operand along the sum.
static void read_line(const ProductCheck *c, const Operands *o, bool of_b, int64_t at, float *to) {
    const Tensor *t = of_b ? &o->b : &o->a;
    int64_t length = sum_length(c), width;
    if (of_b) {
        width = c->in;
        tensor_start(t, c->form == FORWARD ? at * width : at, c->form == FORWARD ? 1 : width, length, to);
    } else {
        width = c->form == FORWARD ? c->in : c->out;
        tensor_start(t, c->form == WEIGHT ? at : at * width, c->form == WEIGHT ? width : 1, length, to);
    }
}

// Computes the samples; `start` is what C began with.
static Samples *samples_make(const ProductCheck *c, const Operands *o, const Tensor *start, ThreadPool *pool) {
    Samples *s = memory_zeroed(1, sizeof *s);
    int64_t length = sum_length(c), columns = c->form == FORWARD ? result_columns(c) : sum_columns(c);
    s->check = c, s->operands = o, s->start = start;
    s->a = memory_new((size_t)(SAMPLES * length), sizeof(float));
    s->b = memory_new((size_t)(2 * SAMPLES * length), sizeof(float));
    sample_places(1, result_rows(c), SAMPLES, s->rows);
    sample_places(2, columns, SAMPLES, s->columns);
    for (int i = 0; i < SAMPLES; i++) {
        read_line(c, o, false, s->rows[i], s->a + i * length);
        read_line(c, o, true, s->columns[i], s->b + i * length);
        if (c->form == FORWARD && c->gated) {
            read_line(c, o, true, s->columns[i] + columns, s->b + (SAMPLES + i) * length);
        }
    }
    threads_run(pool, SAMPLES, sample_task, s);
    return s;
}

// Holds a result against its samples: block `at` of theirs, whose columns lie `shift` further in the result.
static void samples_look(const Samples *s, int at, const Tensor *result, int64_t width, int64_t shift, double cut,
                         Bound *bound) {
    static double exact[SAMPLES * SAMPLES];
    static float plain[SAMPLES * SAMPLES], given[SAMPLES * SAMPLES];
    double largest = 0;
    float *line = memory_new((size_t)width, sizeof *line);
    for (int i = 0; i < SAMPLES; i++) {
        tensor_now(result, s->rows[i] * width, width, line);
        for (int j = 0; j < SAMPLES; j++) {
            int to = i * SAMPLES + j;
            exact[to] = s->exact[i][at * SAMPLES + j];
            plain[to] = s->plain[i][at * SAMPLES + j];
            given[to] = line[shift + s->columns[j]];
            largest = fmax(largest, fabs(exact[to]));
        }
    }
    bound->type = result->type;
    bound_row(bound, largest, cut, SAMPLES * SAMPLES, exact, plain, given);
    free(line);
}

// Bounds of C and of pre, and whether ours is within them.
static void check_samples(const ProductCheck *c, const Operands *o, const Results *ours, ThreadPool *pool, Finding *finding,
                          Bound *bounds) {
    Samples *s = samples_make(c, o, &ours->c, pool);
    double partial = 0;
    for (int i = 0; i < SAMPLES; i++) {
        partial = fmax(partial, s->partial[i]);
    }
    double cut = card_cut(sum_length(c), partial);
    samples_look(s, 0, &ours->c, result_columns(c), 0, cut, &bounds[0]);
    if (c->form == INPUT && c->gated) {
        samples_look(s, 1, &ours->c, result_columns(c), c->in, cut, &bounds[0]);
    }
    finding_samples(finding, "result", &bounds[0]);
    if (c->form == FORWARD && c->pre) {
        samples_look(s, 1, &ours->second, c->out, 0, cut, &bounds[1]);
        if (c->gated) {
            samples_look(s, 2, &ours->second, c->out, c->out / 2, cut, &bounds[1]);
        }
        finding_samples(finding, "pre", &bounds[1]);
    }
    free(s->a);
    free(s->b);
    free(s);
}

// dbias: all of it, for it is one row.
static void check_bias(const ProductCheck *c, const Operands *o, const Results *ours, Finding *finding, Bound *bound) {
    double *exact = memory_zeroed((size_t)c->out, sizeof *exact), largest = 0;
    float *plain = memory_new((size_t)c->out, sizeof *plain), *given = memory_new((size_t)c->out, sizeof *given);
    float *line = memory_new((size_t)c->out, sizeof *line);
    tensor_start(&ours->second, 0, 1, c->out, plain);
    for (int64_t j = 0; j < c->out; j++) {
        exact[j] = (double)plain[j];
    }
    for (int64_t r = 0; r < c->rows; r++) {
        tensor_start(&o->a, r * c->out, 1, c->out, line);
        for (int64_t j = 0; j < c->out; j++) {
            exact[j] += (double)line[j];
            plain[j] += line[j];
        }
    }
    for (int64_t j = 0; j < c->out; j++) {
        largest = fmax(largest, fabs(exact[j]));
    }
    tensor_now(&ours->second, 0, c->out, given);
    bound->type = TYPE_FP32;
    bound_row(bound, largest, 0, c->out, exact, plain, given);
    finding_samples(finding, "dbias", bound);
    free(exact);
    free(plain);
    free(given);
    free(line);
}

// ---- One check

// The name of the body that ran, by the account of a device that ran nothing else.
static void body_of(Device *device, char name[static 16]) {
    Buffer text = {0};
    device_describe_choices(device, &text);
    const char *body = text.data != NULL ? strrchr(text.data, ':') : NULL;
    snprintf(name, 16, "%.*s", body != NULL ? (int)strcspn(body + 2, " ") : 0, body != NULL ? body + 2 : "");
    buffer_free(&text);
}

static void check_body(const ProductCheck *c, Device *device, Finding *finding) {
    char body[16];
    body_of(device, body);
    bool expected = c->body == NULL || (!card_is_hopper() && strcmp(c->body, "sm90") == 0) || strcmp(body, c->body) == 0;
    finding_add(finding, !expected, "by %s%s%s", body, expected ? "" : " in the place of ", expected ? "" : c->body);
}

// Runs another body and holds ours against it.
static Error *check_other(const ProductCheck *c, const Operands *o, const char *body, const Results *ours, const Bound *bounds,
                          Finding *finding) {
    Device *device = NULL;
    Results its = {0};
    TRY(card_open(c->type, body, &device));
    char ran[16];
    Error *error = product_run(c, device, o, &its);
    body_of(device, ran);
    if (error == NULL && strcmp(ran, body) != 0 && strcmp(body, "cublas") == 0) {
        finding_add(finding, false, "cuBLASLt does not take it");
    } else if (error == NULL) {
        finding_other_body(finding, "result", body, &ours->c, &its.c, &bounds[0], 0);
        if (has_second(c)) {
            finding_other_body(finding, c->form == WEIGHT ? "dbias" : "pre", body, &ours->second, &its.second, &bounds[1], 0);
        }
    }
    results_free(&its);
    device_close(device);
    return error;
}

static Error *check_on(const ProductCheck *c, Device *device, Operands *o, Results *ours, Results *again, Finding *finding) {
    Bound bounds[2] = {{0}};
    TRY(operands_make(c, device, o));
    TRY(product_run(c, device, o, ours));
    check_body(c, device, finding);
    TRY(product_run(c, device, o, again));
    plant(&ours->c);
    plant(&again->c);
    check_samples(c, o, ours, device->pool, finding, bounds);
    if (c->form == WEIGHT && c->bias) {
        check_bias(c, o, ours, finding, &bounds[1]);
    }
    finding_same_bits(finding, "result", &ours->c, &again->c);
    if (has_second(c)) {
        finding_same_bits(finding, c->form == WEIGHT ? "dbias" : "pre", &ours->second, &again->second);
    }
    results_free(again);
    if (c->type != TYPE_FP32) {
        TRY(check_other(c, o, "sm80", ours, bounds, finding));
    }
    return rehearsal ? device_finish(device) : check_other(c, o, "cublas", ours, bounds, finding);
}

static Error *check_product(const ProductCheck *what, bool small, Finding *finding) {
    ProductCheck c = divided(what, small);
    Device *device = NULL;
    Operands operands = {0};
    Results ours = {0}, again = {0};
    TRY(card_open(c.type, "ours", &device));
    Error *error = check_on(&c, device, &operands, &ours, &again, finding);
    operands_free(&operands);
    results_free(&ours);
    results_free(&again);
    device_close(device);
    return error;
}
static Error *check_small(const void *what, Finding *finding) {
    return check_product(what, true, finding);
}
static Error *check_large(const void *what, Finding *finding) {
    return check_product(what, false, finding);
}

static void list(const ProductCheck *checks, size_t count, bool small) {
    for (size_t i = 0; i < count; i++) {
        ProductCheck c = divided(&checks[i], small);
        check_add(small ? check_small : check_large, &checks[i], "%s/%s/%s/%lldx%lldx%lld", small ? "smoke" : "product",
                  form_names[c.form], c.name, (long long)c.rows, (long long)c.in, (long long)c.out);
    }
}

void list_products(void) {
    list(small_products, sizeof small_products / sizeof *small_products, true);
    list(large_products, sizeof large_products / sizeof *large_products, false);
}
