// The three matrix products against double precision: on every instruction set of the CPU, and on cards (the simulated one as
// sm_80 and sm_90; with ATHANOR_TEST_DEVICE=cuda the first real one) in fp32, bf16 and fp16.
//
// A result may err at most twice what the textbook loop in fp32 errs on the same numbers, its result rounded to the type, plus
// one rounding of the largest value. Sentinels stand before and behind every output; every result must be the same bits when
// run twice and, on the CPU, with 1, 2 and 3 threads.
#include "core/memory.h"
#include "core/philox.h"
#include "kernels/device.h"
#include "tests/support/check.h"
#include "tests/support/op_check.h"

#include <math.h>
#include <stdio.h>

enum { GUARD = 256 };  // bytes on each side of a tensor
static const unsigned char SENTINEL = 0xA5;

static double activate(Activation kind, double x, bool slope) {
    double c = sqrt(2 / M_PI), u = c * (x + 0.044715 * x * x * x), s = 1 / (1 + exp(-x));
    switch (kind) {
    case ACTIVATION_GELU_TANH:
        return slope ? 0.5 * (1 + tanh(u)) + 0.5 * x * (1 - tanh(u) * tanh(u)) * c * (1 + 3 * 0.044715 * x * x)
                     : 0.5 * x * (1 + tanh(u));
    case ACTIVATION_GELU_ERF:
        return slope ? 0.5 * (1 + erf(x / sqrt(2))) + x * exp(-x * x / 2) / sqrt(2 * M_PI) : 0.5 * x * (1 + erf(x / sqrt(2)));
    case ACTIVATION_RELU:
        return slope ? x > 0 : x > 0 ? x : 0;
    case ACTIVATION_SILU:
        return slope ? s + x * s * (1 - s) : x * s;
    default:
        return slope ? 1 : x;
    }
}

static float activate_single(Activation kind, float x, bool slope) {
    float c = sqrtf(2 / (float)M_PI), u = c * (x + 0.044715f * x * x * x), s = 1 / (1 + expf(-x)), t = tanhf(u);
    switch (kind) {
    case ACTIVATION_GELU_TANH:
        return slope ? 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * c * (1 + 3 * 0.044715f * x * x) : 0.5f * x * (1 + t);
    case ACTIVATION_GELU_ERF:
        return slope ? 0.5f * (1 + erff(x / sqrtf(2))) + x * expf(-x * x / 2) / sqrtf(2 * (float)M_PI)
                     : 0.5f * x * (1 + erff(x / sqrtf(2)));
    case ACTIVATION_SILU:
        return slope ? s + x * s * (1 - s) : x * s;
    default:
        return (float)activate(kind, x, slope);
    }
}

// One case: a form, a shape and its switches. Names as in kernels.h; R, I, O.
typedef enum Form { FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT } Form;

typedef struct Case {
    Form form;
    int64_t rows, in, out;
    Activation activation;
    bool bias, residual, alias, pre;  // bias: dbias in the backward pass of the weight
    bool accumulate, gated, float_output;
    bool frozen;  // dw is NULL
} Case;

// A result, and what it should be.
typedef struct Result {
    int64_t count;  // 0: none
    DataType type;
    double *want;
    float *plain;  // by the textbook loop in fp32, rounded to the type
    float *start;  // what `+=` adds to
    void *first;   // the bytes of the first run
} Result;

typedef struct Tensors {
    DataType type;
    float *a, *b, *bias, *residual, *pre;  // inputs; pre: of the backward pass
    int64_t a_count, b_count, pre_count;
    Result y, second;  // second: pre (forward) or dbias
} Tensors;

static float *random_floats(DataType type, int64_t count, uint64_t which, float deviation) {
    float *x = memory_zeroed((size_t)count + 1, sizeof *x);
    philox_normal(7, philox_stream(RANDOM_TEST, which), 0, deviation, x, count);
    for (int64_t i = 0; i < count; i++) {
        x[i] = op_round(type, x[i]);
    }
    return x;
}

// C[m,n] = sum over k of A B, where A[m,k] and B[k,n] lie by these strides.
typedef struct Operands {
    int64_t m, n, k, a_m, a_k, b_k, b_n;
} Operands;

static Operands operands(const Case *c) {
    switch (c->form) {
    case FORWARD:
        return (Operands){c->rows, c->out, c->in, c->in, 1, 1, c->in};
    case BACKWARD_INPUT:
        return (Operands){c->rows, c->in, c->out, c->out, 1, c->in, 1};
    default:
        return (Operands){c->out, c->in, c->rows, 1, c->out, c->in, 1};
    }
}

// One element of the epilogue, in double and in single precision.
static void set(Result *r, int64_t at, double want, float plain, bool accumulate) {
    r->want[at] = want + (accumulate ? (double)r->start[at] : 0);
    r->plain[at] = op_round(r->type, plain + (accumulate ? r->start[at] : 0));
}

static void reference_forward(const Case *c, Tensors *t, const double *sum, const float *plain, int64_t row) {
    int64_t n = c->out, width = c->gated ? n / 2 : n;
    for (int64_t j = 0; j < n; j++) {
        double bias = c->bias ? (double)t->bias[j] : 0;
        if (c->pre) {
            set(&t->second, row * n + j, sum[j] + bias, plain[j] + (float)bias, false);
        }
    }
    for (int64_t j = 0; j < width; j++) {
        int64_t at = row * width + j;
        float bias = c->bias ? t->bias[j] : 0, residual = c->residual ? t->residual[at] : 0;
        double y = activate(c->activation, sum[j] + (double)bias, false);
        float plain_y = activate_single(c->activation, plain[j] + bias, false);
        if (c->gated) {
            float second_bias = c->bias ? t->bias[width + j] : 0;
            y *= sum[width + j] + (double)second_bias;
            plain_y *= plain[width + j] + second_bias;
        }
        set(&t->y, at, y + (double)residual, plain_y + residual, false);
    }
}

static void reference_backward_input(const Case *c, Tensors *t, const double *sum, const float *plain, int64_t row) {
    int64_t n = c->in;
    for (int64_t j = 0; j < n; j++) {
        if (c->gated) {
            float gate = t->pre[row * 2 * n + j], value = t->pre[row * 2 * n + n + j];
            set(&t->y, row * 2 * n + j, sum[j] * (double)value * activate(c->activation, (double)gate, true),
                plain[j] * value * activate_single(c->activation, gate, true), false);
            set(&t->y, row * 2 * n + n + j, sum[j] * activate(c->activation, (double)gate, false),
                plain[j] * activate_single(c->activation, gate, false), false);
        } else {
            float pre = c->activation != ACTIVATION_NONE ? t->pre[row * n + j] : 0;
            set(&t->y, row * n + j, sum[j] * activate(c->activation, (double)pre, true),
                plain[j] * activate_single(c->activation, pre, true), c->accumulate);
        }
    }
}

static void reference(const Case *c, Tensors *t) {
    Operands o = operands(c);
    double *sum = memory_new((size_t)o.n, sizeof *sum);
    float *plain = memory_new((size_t)o.n, sizeof *plain);
    for (int64_t i = 0; i < o.m; i++) {
        for (int64_t j = 0; j < o.n; j++) {
            sum[j] = 0;
            plain[j] = 0;
            for (int64_t l = 0; l < o.k; l++) {
                float a = t->a[i * o.a_m + l * o.a_k], b = t->b[l * o.b_k + j * o.b_n];
                sum[j] += (double)a * (double)b;
                plain[j] += a * b;
            }
        }
        if (c->form == FORWARD) {
            reference_forward(c, t, sum, plain, i);
        } else if (c->form == BACKWARD_INPUT) {
            reference_backward_input(c, t, sum, plain, i);
        } else {
            for (int64_t j = 0; j < o.n; j++) {
                set(&t->y, i * o.n + j, c->frozen ? 0 : sum[j], c->frozen ? 0 : plain[j], true);
            }
        }
    }
    for (int64_t j = 0; j < o.m && c->form == BACKWARD_WEIGHT && c->bias; j++) {
        double total = 0;
        float plain_total = 0;
        for (int64_t r = 0; r < c->rows; r++) {
            total += (double)t->a[r * c->out + j];
            plain_total += t->a[r * c->out + j];
        }
        set(&t->second, j, total, plain_total, true);
    }
    free(sum);
    free(plain);
}

static Result result_new(DataType type, int64_t count, uint64_t which) {
    return (Result){.count = count,
                    .type = type,
                    .want = memory_zeroed((size_t)count + 1, sizeof(double)),
                    .plain = memory_zeroed((size_t)count + 1, sizeof(float)),
                    .start = random_floats(type, count, which, 1),
                    .first = memory_zeroed((size_t)count + 1, sizeof(float))};
}

static void result_free(Result *r) {
    free(r->want);
    free(r->plain);
    free(r->start);
    free(r->first);
}

static Tensors tensors_new(const Case *c, DataType type) {
    Operands o = operands(c);
    int64_t y_count = c->form == FORWARD && c->gated          ? o.m * o.n / 2
                      : c->form == BACKWARD_INPUT && c->gated ? 2 * o.m * o.n
                                                              : o.m * o.n;
    DataType y_type = c->form == BACKWARD_WEIGHT || c->float_output ? TYPE_FP32 : type;
    Tensors t = {.type = type, .a_count = o.m * o.k, .b_count = o.k * o.n};
    t.pre_count = c->form == BACKWARD_INPUT && (c->gated || c->activation != ACTIVATION_NONE) ? y_count : 0;
    t.a = random_floats(type, t.a_count, 1, 1);
    t.b = random_floats(type, t.b_count, 2, 1 / sqrtf((float)o.k));
    t.bias = random_floats(type, c->out, 3, 1);
    t.residual = random_floats(type, y_count, 4, 1);
    t.pre = random_floats(type, t.pre_count, 5, 1);
    t.y = result_new(y_type, y_count, 6);
    t.second = c->form == FORWARD ? result_new(type, c->pre ? o.m * o.n : 0, 7)
                                  : result_new(TYPE_FP32, c->form == BACKWARD_WEIGHT && c->bias ? c->out : 0, 7);
    reference(c, &t);
    return t;
}

static void tensors_free(Tensors *t) {
    free(t->a);
    free(t->b);
    free(t->bias);
    free(t->residual);
    free(t->pre);
    result_free(&t->y);
    result_free(&t->second);
}

// ---- Memory of a device, between sentinels

typedef struct Placed {
    unsigned char *memory;  // of the device
    void *at;
    size_t bytes;
} Placed;

static Placed place(Device *device, DataType type, const float *values, int64_t count) {
    Placed placed = {.bytes = (size_t)(count * data_type_bytes(type))};
    unsigned char *image = memory_new(placed.bytes + 2 * GUARD, 1);
    void *memory = NULL;
    memset(image, SENTINEL, placed.bytes + 2 * GUARD);
    op_encode(type, values, image + GUARD, count);
    CHECK_OK(device_allocate(device, placed.bytes + 2 * GUARD, &memory));
    device_upload(device, memory, image, placed.bytes + 2 * GUARD);
    free(image);
    placed.memory = memory;
    placed.at = placed.memory + GUARD;
    return placed;
}

// Gives the memory back; its bytes go to `out` where that is not NULL. Returns whether the sentinels stand.
static bool take(Device *device, Placed *placed, void *out) {
    unsigned char *image = memory_new(placed->bytes + 2 * GUARD, 1);
    device_download(device, image, placed->memory, placed->bytes + 2 * GUARD);
    CHECK_OK(device_finish(device));
    device_release(device, placed->memory, placed->bytes + 2 * GUARD);
    bool whole = true;
    for (int i = 0; i < GUARD; i++) {
        whole = whole && image[i] == SENTINEL && image[GUARD + placed->bytes + (size_t)i] == SENTINEL;
    }
    if (out != NULL) {
        memcpy(out, image + GUARD, placed->bytes);
    }
    free(image);
    return whole;
}

// ---- Running a case

static void call(Device *device, const Case *c, const void *a, const void *b, const void *bias, const void *residual,
                 const void *pre, void *y, void *second) {
    if (c->form == FORWARD) {
        device->op->matmul_forward(device, &(MatmulForward){.rows = c->rows,
                                                            .in = c->in,
                                                            .out = c->out,
                                                            .x = a,
                                                            .w = b,
                                                            .bias = c->bias ? bias : NULL,
                                                            .residual = !c->residual ? NULL
                                                                        : c->alias   ? y
                                                                                     : residual,
                                                            .activation = c->activation,
                                                            .pre = c->pre ? second : NULL,
                                                            .y = y,
                                                            .gated = c->gated,
                                                            .float_output = c->float_output});
    } else if (c->form == BACKWARD_INPUT) {
        device->op->matmul_backward_input(
            device, &(MatmulBackwardInput){.rows = c->rows,
                                           .in = c->in,
                                           .out = c->out,
                                           .dy = a,
                                           .w = b,
                                           .activation = c->activation,
                                           .pre = c->activation != ACTIVATION_NONE || c->gated ? pre : NULL,
                                           .accumulate = c->accumulate,
                                           .dx = y,
                                           .gated = c->gated});
    } else {
        device->op->matmul_backward_weight(device, &(MatmulBackwardWeight){.rows = c->rows,
                                                                           .in = c->in,
                                                                           .out = c->out,
                                                                           .dy = a,
                                                                           .x = c->frozen ? NULL : b,
                                                                           .dw = c->frozen ? NULL : y,
                                                                           .dbias = c->bias ? second : NULL});
    }
}

// Runs the case; y and second get the bytes of the results. Returns whether all sentinels stand.
static bool run(Device *device, const Case *c, const Tensors *t, void *y, void *second) {
    Placed a = place(device, t->type, t->a, t->a_count), b = place(device, t->type, t->b, t->b_count);
    Placed bias = place(device, t->type, t->bias, c->out), residual = place(device, t->type, t->residual, t->y.count);
    Placed pre = place(device, t->type, t->pre, t->pre_count);
    Placed to = place(device, t->y.type, c->alias ? t->residual : t->y.start, t->y.count);
    Placed to_second = place(device, t->second.type, t->second.start, t->second.count);
    call(device, c, a.at, b.at, bias.at, residual.at, pre.at, to.at, to_second.at);
    bool whole = take(device, &to, y);
    whole = take(device, &to_second, second) && whole;
    take(device, &a, NULL);
    take(device, &b, NULL);
    take(device, &bias, NULL);
    take(device, &residual, NULL);
    take(device, &pre, NULL);
    return whole;
}

static double largest_error(const Result *r, const float *have) {
    double worst = 0;
    for (int64_t i = 0; i < r->count; i++) {
        double error = fabs((double)have[i] - r->want[i]);
        worst = error > worst || isnan(error) ? error : worst;
    }
    return worst;
}

static void check_result(const Case *c, const char *label, const char *what, const Result *r, const void *bytes) {
    static const int rounding[] = {[TYPE_FP32] = 24, [TYPE_BF16] = 8, [TYPE_FP16] = 11};
    float *have = memory_new((size_t)r->count + 1, sizeof *have);
    op_decode(r->type, bytes, have, r->count);
    double largest = 0;
    for (int64_t i = 0; i < r->count; i++) {
        largest = fmax(largest, fabs(r->want[i]));
    }
    double bound = 2 * largest_error(r, r->plain) + ldexp(largest, -rounding[r->type]), error = largest_error(r, have);
    if (!(error <= bound)) {
        printf("%s form %d R=%lld I=%lld O=%lld activation %d%s%s%s%s%s%s: %s errs by %g, allowed %g\n", label, (int)c->form,
               (long long)c->rows, (long long)c->in, (long long)c->out, (int)c->activation, c->bias ? " bias" : "",
               c->residual ? " residual" : "", c->pre ? " pre" : "", c->accumulate ? " accumulate" : "",
               c->gated ? " gated" : "", c->float_output ? " float" : "", what, error, bound);
        CHECK(error <= bound);
    }
    free(have);
}

// The devices of one label must give the same bits; each label's first one runs twice.
static void check_case(const Case *c, const OpTwins *twins) {
    Tensors t = tensors_new(c, twins->type);
    void *y = memory_zeroed((size_t)t.y.count + 1, sizeof(float)),
         *second = memory_zeroed((size_t)t.second.count + 1, sizeof(float));
    size_t bytes = (size_t)(t.y.count * data_type_bytes(t.y.type));
    size_t second_bytes = (size_t)(t.second.count * data_type_bytes(t.second.type));
    for (int i = 0; i < OP_TWINS && twins->of[i] != NULL; i++) {
        for (int repeat = 0; repeat < (i == 0 ? 2 : 1); repeat++) {
            CHECK(run(twins->of[i], c, &t, y, second));
            if (i == 0 && repeat == 0) {
                check_result(c, twins->label, "the result", &t.y, y);
                check_result(c, twins->label, "pre or dbias", &t.second, second);
                memcpy(t.y.first, y, bytes);
                memcpy(t.second.first, second, second_bytes);
            } else {
                CHECK(memcmp(t.y.first, y, bytes) == 0);
                CHECK(memcmp(t.second.first, second, second_bytes) == 0);
            }
        }
    }
    free(y);
    free(second);
    tensors_free(&t);
}

static void check_all(const OpDevices *devices, const Case *cases, int count) {
    for (int i = 0; i < count; i++) {
        for (int d = 0; d < devices->count; d++) {
            if (!cases[i].gated || devices->twins[d].of[0]->op->gated_products) {
                check_case(&cases[i], &devices->twins[d]);
            }
        }
    }
}

static OpDevices cpus, cards;

// Sizes around 1, primes, and the edges of the tiles and blocks of every variant.
static void test_shapes(void) {
    static const int64_t shapes[][3] = {{1, 1, 1},       {1, 5, 7},     {2, 3, 1},      {3, 1, 17},     {4, 64, 48},
                                        {5, 31, 33},     {6, 16, 16},   {7, 17, 15},    {8, 128, 47},   {9, 127, 49},
                                        {8, 100, 1000},  {1, 769, 130}, {13, 47, 101},  {16, 32, 96},   {17, 33, 97},
                                        {23, 95, 144},   {29, 97, 31},  {48, 48, 48},   {49, 47, 145},  {64, 128, 256},
                                        {101, 103, 107}, {97, 193, 50}, {193, 50, 199}, {32, 769, 64},  {40, 30, 770},
                                        {771, 40, 24},   {5, 1601, 11}, {11, 19, 1603}, {1601, 19, 13}, {385, 200, 3}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        int64_t r = shapes[i][0], in = shapes[i][1], out = shapes[i][2];
        const Case cases[] = {
            {.form = FORWARD, .rows = r, .in = in, .out = out},
            {.form = FORWARD, .rows = r, .in = in, .out = out, .float_output = true, .bias = i % 2 == 0},
            {.form = FORWARD, .rows = r, .in = in, .out = out, .bias = true, .residual = true, .alias = true},
            {.form = BACKWARD_INPUT, .rows = r, .in = in, .out = out},
            {.form = BACKWARD_INPUT, .rows = r, .in = in, .out = out, .accumulate = true},
            {.form = BACKWARD_WEIGHT, .rows = r, .in = in, .out = out, .accumulate = true, .bias = i % 2 == 0},
            {.form = BACKWARD_WEIGHT, .rows = r, .in = in, .out = out, .bias = i % 3 != 0, .frozen = true},
        };
        check_all(&cpus, cases, sizeof cases / sizeof *cases);
    }
}

// Every activation with what may stand around it, on one block of k and on several.
static void test_surroundings(void) {
    static const int64_t shapes[][3] = {{21, 37, 51}, {3, 50, 37}, {19, 1700, 70}, {19, 70, 1700}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        int64_t r = shapes[i][0], in = shapes[i][1], out = shapes[i][2];
        for (Activation activation = ACTIVATION_NONE; activation <= ACTIVATION_SILU; activation++) {
            Case cases[20];
            int count = 0;
            for (int bits = 0; bits < 16; bits++) {
                cases[count] = (Case){.form = FORWARD, .rows = r, .in = in, .out = out, .activation = activation};
                cases[count].bias = bits & 1;
                cases[count].residual = bits & 2;
                cases[count].alias = bits & 4;
                cases[count].pre = bits & 8;
                count += !(cases[count].alias && !cases[count].residual);
            }
            for (int accumulate = 0; accumulate < 2; accumulate++) {
                cases[count++] = (Case){.form = BACKWARD_INPUT,
                                        .rows = r,
                                        .in = in,
                                        .out = out,
                                        .activation = activation,
                                        .accumulate = accumulate};
            }
            check_all(&cpus, cases, count);
        }
    }
}

static void test_no_rows(void) {
    for (int group = 0; group < 2; group++) {
        const OpDevices *devices = group == 0 ? &cpus : &cards;
        for (int d = 0; d < devices->count; d++) {
            Device *device = devices->twins[d].of[0];
            DataType type = devices->twins[d].type;
            float values[16] = {3, 4, 5}, back[16] = {0}, want[16] = {0};
            Placed x = place(device, type, values, 16), y = place(device, type, values, 16);
            Placed dw = place(device, TYPE_FP32, values, 16);
            device->op->matmul_forward(device, &(MatmulForward){.in = 4, .out = 4, .x = x.at, .w = x.at, .y = y.at});
            device->op->matmul_backward_input(device,
                                              &(MatmulBackwardInput){.in = 4, .out = 4, .dy = x.at, .w = x.at, .dx = y.at});
            device->op->matmul_backward_weight(
                device, &(MatmulBackwardWeight){.in = 4, .out = 4, .dy = x.at, .x = x.at, .dw = dw.at, .dbias = dw.at});
            op_encode(type, values, want, 16);
            CHECK(take(device, &y, back) && memcmp(back, want, (size_t)(16 * data_type_bytes(type))) == 0);
            CHECK(take(device, &dw, back) && memcmp(back, values, sizeof values) == 0);
            take(device, &x, NULL);
        }
    }
}

// ---- Cards

// What reaches each body and each of its tiles, its sums in one part and in several, and lines that are not aligned.
static void test_card_shapes(void) {
    static const int64_t shapes[][3] = {
        {1, 1, 1},                                                       // smaller than everything
        {7, 63, 65},    {65, 7, 63},     {63, 129, 7},    {129, 65, 1},  // lines that end within 16 bytes
        {64, 127, 129}, {257, 1, 64},    {7, 64, 72},     {16, 136, 24}, {9, 1096, 40}, {1, 8, 8},  // few rows
        {64, 64, 64},   {65, 72, 128},   {63, 128, 136},                                            // tiles of 64
        {257, 64, 264}, {264, 296, 136}, {136, 264, 264},                                           // tiles of 128
        {33, 1600, 24}, {1600, 24, 40},  {40, 16, 1608},                                            // split along K
        {515, 9, 17},                                                                               // split, and not aligned
    };
    const Case split = {.form = BACKWARD_WEIGHT, .rows = 5128, .in = 128, .out = 128};  // tiles of 128 in several parts
    check_all(&cards, &split, 1);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        int64_t r = shapes[i][0], in = shapes[i][1], out = shapes[i][2];
        const Case cases[] = {
            {.form = FORWARD, .rows = r, .in = in, .out = out, .bias = i % 2 == 0},
            {.form = BACKWARD_INPUT, .rows = r, .in = in, .out = out, .accumulate = i % 2 == 0},
            {.form = BACKWARD_WEIGHT, .rows = r, .in = in, .out = out, .bias = true},
            {.form = BACKWARD_WEIGHT, .rows = r, .in = in, .out = out, .bias = i % 3 != 0, .frozen = true},
        };
        check_all(&cards, cases, sizeof cases / sizeof *cases);
    }
}

// Every epilogue on each way to memory: few rows, one part, several parts, element by element.
static void test_card_epilogues(void) {
    static const int64_t shapes[][3] = {{11, 72, 48}, {66, 64, 48}, {34, 1032, 32}, {66, 33, 34}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        int64_t r = shapes[i][0], in = shapes[i][1], out = shapes[i][2];
#define ROW(kind, ...)                                                                                                         \
    { .form = kind, .rows = r, .in = in, .out = out, __VA_ARGS__ }
        const Case cases[] = {
            ROW(FORWARD, .activation = ACTIVATION_GELU_TANH, .bias = true, .pre = true),
            ROW(FORWARD, .activation = ACTIVATION_GELU_ERF, .bias = true, .residual = true),
            ROW(FORWARD, .activation = ACTIVATION_RELU, .residual = true, .alias = true, .pre = true),
            ROW(FORWARD, .activation = ACTIVATION_SILU, .bias = true),
            ROW(FORWARD, .bias = true, .residual = true, .alias = true),
            ROW(FORWARD, .bias = true, .float_output = true),
            ROW(FORWARD, .activation = ACTIVATION_SILU, .gated = true, .pre = true),
            ROW(FORWARD, .activation = ACTIVATION_GELU_TANH, .gated = true, .bias = true, .residual = true),
            ROW(BACKWARD_INPUT, .activation = ACTIVATION_GELU_TANH),
            ROW(BACKWARD_INPUT, .activation = ACTIVATION_GELU_ERF, .accumulate = true),
            ROW(BACKWARD_INPUT, .activation = ACTIVATION_RELU),
            ROW(BACKWARD_INPUT, .activation = ACTIVATION_SILU, .accumulate = true),
            ROW(BACKWARD_INPUT, .activation = ACTIVATION_SILU, .gated = true),
            ROW(BACKWARD_INPUT, .activation = ACTIVATION_GELU_TANH, .gated = true),
        };
#undef ROW
        check_all(&cards, cases, sizeof cases / sizeof *cases);
    }
    // In a tile of 128.
    const Case large[] = {
        {.form = FORWARD, .rows = 264, .in = 64, .out = 520, .activation = ACTIVATION_SILU, .gated = true, .pre = true},
        {.form = FORWARD, .rows = 264, .in = 64, .out = 264, .activation = ACTIVATION_GELU_TANH, .bias = true, .pre = true},
        {.form = BACKWARD_INPUT, .rows = 264, .in = 264, .out = 64, .activation = ACTIVATION_SILU, .gated = true},
    };
    check_all(&cards, large, sizeof large / sizeof *large);
}

// What was chosen can be read, loaded into another device, and is obeyed there.
static void test_card_choices(void) {
    if (cards.count < 2) {
        return;
    }
    DeviceKind kind = cards.twins[0].of[0]->kind;
    const Case c = {.form = FORWARD, .rows = 4, .in = 64, .out = 32, .activation = ACTIVATION_SILU, .bias = true};
    Tensors t = tensors_new(&c, TYPE_BF16);
    uint16_t y[4 * 32];
    Buffer text = {0};
    Device *device = NULL;
    CHECK_OK(device_open_card(kind, 0, TYPE_BF16, 1, &device));
    CHECK_FAILS(device_set_products(device, "fast"), "auto, ours, cublas and sm80");
    CHECK_OK(device_set_products(device, "ours"));
    CHECK(run(device, &c, &t, y, NULL));
    device_describe_choices(device, &text);
    CHECK_TEXT(text.data, "matmul forward bf16 m=4 n=32 k=64 silu bias : few by rule\n");
    device_close(device);

    CHECK_OK(device_open_card(kind, 0, TYPE_BF16, 1, &device));
    CHECK_OK(device_load_choices(device, "matmul forward bf16 m=4 n=32 k=64 silu bias : sm80 by trial, ours 1.0 us\n"));
    CHECK(run(device, &c, &t, y, NULL));
    check_result(&c, "loaded", "the result", &t.y, y);
    buffer_clear(&text);
    device_describe_choices(device, &text);
    CHECK_TEXT(text.data, "matmul forward bf16 m=4 n=32 k=64 silu bias : sm80 by loaded\n");
    CHECK_OK(device_load_choices(device, ""));
    CHECK_OK(device_load_choices(device, "\nmatmul forward fp16 m=9 n=8 k=7 : few"));
    if (kind == DEVICE_SIMULATED) {
        CHECK_FAILS(device_load_choices(device, "matmul forward fp16 m=4 n=32 k=64 gated pre : cublas\n"),
                    "lacks the kernel of line 1");
    }
    CHECK_FAILS(device_load_choices(device, "matmul forward bf16 m=4 n=32 k=64 : warp\n"), "line 1 is no choice of a kernel");
    CHECK_FAILS(device_load_choices(device, "matmul forward bf16 m=4 n=32 k=-1 : few\n"), "line 1 is no choice of a kernel");
    CHECK_FAILS(device_load_choices(device, "matmul forward bf16 m=4 n=32 k=64 bias\n"), "line 1 is no choice of a kernel");
    device_close(device);
    buffer_free(&text);
    tensors_free(&t);
}

// The rows above reached every body of ours: Hopper's on sm_90 alone.
static void test_card_bodies(void) {
    for (int d = 0; d < cards.count; d++) {
        Device *device = cards.twins[d].of[0];
        if (device->kind == DEVICE_SIMULATED) {
            bool hopper = strstr(cards.twins[d].label, "sm_90") != NULL, half = cards.twins[d].type != TYPE_FP32;
            Buffer text = {0};
            device_describe_choices(device, &text);
            CHECK((strstr(text.data, ": sm90 by rule") != NULL) == (hopper && half));
            CHECK((strstr(text.data, ": sm80 by rule") != NULL) == half);
            CHECK((strstr(text.data, ": few by rule") != NULL) == half);
            CHECK((strstr(text.data, ": float by rule") != NULL) == !half);
            buffer_free(&text);
        }
    }
}

int main(void) {
    op_devices_cpu(&cpus);
    op_devices_cards(&cards);
    RUN(test_shapes);
    RUN(test_surroundings);
    RUN(test_no_rows);
    RUN(test_card_shapes);
    RUN(test_card_epilogues);
    RUN(test_card_choices);
    RUN(test_card_bodies);
    op_devices_close(&cpus);
    op_devices_close(&cards);
    return check_report();
}
