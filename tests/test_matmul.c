// The three matrix products on every instruction set that this processor runs, against double precision.
//
// A result may err at most twice what the textbook loop in fp32 errs on the same numbers, plus one rounding of the largest
// value. Sentinels stand before and behind every output; every result must be the same bits for 1, 2 and 3 threads and twice.
#include "core/memory.h"
#include "core/philox.h"
#include "kernels/device.h"
#include "tests/support/check.h"

#include <math.h>
#include <stdio.h>

enum { GUARD = 64 };  // floats on each side of a tensor
static const float SENTINEL = -12345.678f;

static float *tensor_new(int64_t count) {
    float *memory = memory_tensor((size_t)(count + 2 * GUARD) * sizeof(float));
    for (int64_t i = 0; i < count + 2 * GUARD; i++) {
        memory[i] = SENTINEL;
    }
    return memory + GUARD;
}

static float *tensor_random(int64_t count, uint64_t which, float deviation) {
    float *x = tensor_new(count);
    philox_normal(7, philox_stream(RANDOM_TEST, which), 0, deviation, x, count);
    return x;
}

static bool tensor_guarded(const float *x, int64_t count) {
    for (int64_t i = 0; i < GUARD; i++) {
        if (x[-1 - i] != SENTINEL || x[count + i] != SENTINEL) {
            return false;
        }
    }
    return true;
}

static void tensor_free(float *x, int64_t count) {
    if (x != NULL) {
        memory_tensor_free(x - GUARD, (size_t)(count + 2 * GUARD) * sizeof(float));
    }
}

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
    bool accumulate;
} Case;

typedef struct Tensors {
    float *a, *b, *bias, *residual, *pre, *start;  // inputs; pre: of the backward pass; start: what `+=` adds to
    double *want, *want_second;                    // the result; and pre (forward) or dbias
    float *plain, *plain_second;                   // the same by the textbook loop in fp32
    int64_t count, second_count;
} Tensors;

static double largest_error(const double *want, const float *have, int64_t count) {
    double worst = 0;
    for (int64_t i = 0; i < count; i++) {
        double error = fabs((double)have[i] - want[i]);
        worst = error > worst || isnan(error) ? error : worst;
    }
    return worst;
}

static double largest(const double *x, int64_t count) {
    double most = 0;
    for (int64_t i = 0; i < count; i++) {
        most = fabs(x[i]) > most ? fabs(x[i]) : most;
    }
    return most;
}

// A[m,k] and B[k,n] of the case's product.
static void operands(const Case *c, int64_t *m, int64_t *n, int64_t *k, int64_t strides[4]) {
    switch (c->form) {
    case FORWARD:
        *m = c->rows, *n = c->out, *k = c->in;
        memcpy(strides, (int64_t[4]){c->in, 1, 1, c->in}, 4 * sizeof(int64_t));
        break;
    case BACKWARD_INPUT:
        *m = c->rows, *n = c->in, *k = c->out;
        memcpy(strides, (int64_t[4]){c->out, 1, c->in, 1}, 4 * sizeof(int64_t));
        break;
    default:
        *m = c->out, *n = c->in, *k = c->rows;
        memcpy(strides, (int64_t[4]){1, c->out, c->in, 1}, 4 * sizeof(int64_t));
        break;
    }
}

static void reference(const Case *c, Tensors *t) {
    int64_t m, n, k, s[4];
    operands(c, &m, &n, &k, s);
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < n; j++) {
            double sum = 0;
            float plain = 0;
            for (int64_t l = 0; l < k; l++) {
                float a = t->a[i * s[0] + l * s[1]], b = t->b[l * s[2] + j * s[3]];
                sum += (double)a * (double)b;
                plain += a * b;
            }
            int64_t at = i * n + j;
            if (c->form == FORWARD) {
                double bias = c->bias ? t->bias[j] : 0, residual = c->residual ? t->residual[at] : 0;
                t->want_second[at] = sum + bias;
                t->plain_second[at] = plain + (float)bias;
                t->want[at] = activate(c->activation, sum + bias, false) + residual;
                t->plain[at] = activate_single(c->activation, plain + (float)bias, false) + (float)residual;
            } else {
                double slope = c->activation != ACTIVATION_NONE ? activate(c->activation, t->pre[at], true) : 1;
                float plain_slope = c->activation != ACTIVATION_NONE ? activate_single(c->activation, t->pre[at], true) : 1;
                double start = c->accumulate ? t->start[at] : 0;
                t->want[at] = sum * slope + start;
                t->plain[at] = plain * plain_slope + (float)start;
            }
        }
    }
    if (c->form == BACKWARD_WEIGHT) {
        for (int64_t o = 0; o < c->out; o++) {
            double sum = t->bias[o];
            float plain = t->bias[o];
            for (int64_t r = 0; r < c->rows; r++) {
                sum += t->a[r * c->out + o];
                plain += t->a[r * c->out + o];
            }
            t->want_second[o] = sum;
            t->plain_second[o] = plain;
        }
    }
}

static Tensors tensors_new(const Case *c) {
    int64_t m, n, k, s[4];
    operands(c, &m, &n, &k, s);
    Tensors t = {.count = m * n, .second_count = c->form == FORWARD ? m * n : c->out};
    t.a = tensor_random(m * k, 1, 1);
    t.b = tensor_random(k * n, 2, 1 / sqrtf((float)k));
    t.bias = tensor_random(c->out, 3, 1);
    t.residual = tensor_random(t.count, 4, 1);
    t.pre = tensor_random(t.count, 5, 1);
    t.start = tensor_random(t.count, 6, 1);
    t.want = memory_zeroed((size_t)t.count, sizeof(double));
    t.want_second = memory_zeroed((size_t)t.second_count, sizeof(double));
    t.plain = memory_zeroed((size_t)t.count, sizeof(float));
    t.plain_second = memory_zeroed((size_t)t.second_count, sizeof(float));
    reference(c, &t);
    return t;
}

static void tensors_free(const Case *c, Tensors *t) {
    int64_t m, n, k, s[4];
    operands(c, &m, &n, &k, s);
    tensor_free(t->a, m * k);
    tensor_free(t->b, k * n);
    tensor_free(t->bias, c->out);
    tensor_free(t->residual, t->count);
    tensor_free(t->pre, t->count);
    tensor_free(t->start, t->count);
    free(t->want);
    free(t->want_second);
    free(t->plain);
    free(t->plain_second);
}

// Runs the case into y and second, which get their starting values here.
static void run(Device *device, const Case *c, const Tensors *t, float *y, float *second) {
    size_t bytes = (size_t)t->count * sizeof(float);
    if (c->form == FORWARD) {
        memcpy(y, c->alias ? t->residual : t->start, bytes);
        device->op->matmul_forward(device, &(MatmulForward){.rows = c->rows,
                                                            .in = c->in,
                                                            .out = c->out,
                                                            .x = t->a,
                                                            .w = t->b,
                                                            .bias = c->bias ? t->bias : NULL,
                                                            .residual = !c->residual ? NULL
                                                                        : c->alias   ? y
                                                                                     : t->residual,
                                                            .activation = c->activation,
                                                            .pre = c->pre ? second : NULL,
                                                            .y = y});
    } else if (c->form == BACKWARD_INPUT) {
        memcpy(y, t->start, bytes);
        device->op->matmul_backward_input(device,
                                          &(MatmulBackwardInput){.rows = c->rows,
                                                                 .in = c->in,
                                                                 .out = c->out,
                                                                 .dy = t->a,
                                                                 .w = t->b,
                                                                 .activation = c->activation,
                                                                 .pre = c->activation != ACTIVATION_NONE ? t->pre : NULL,
                                                                 .accumulate = c->accumulate,
                                                                 .dx = y});
    } else {
        memcpy(y, t->start, bytes);
        memcpy(second, t->bias, (size_t)c->out * sizeof(float));
        device->op->matmul_backward_weight(
            device,
            &(MatmulBackwardWeight){
                .rows = c->rows, .in = c->in, .out = c->out, .dy = t->a, .x = t->b, .dw = y, .dbias = c->bias ? second : NULL});
    }
}

static void check_result(const Case *c, const char *variant, const char *what, const double *want, const float *plain,
                         const float *have, int64_t count) {
    double bound = 2 * largest_error(want, plain, count) + 6e-8 * largest(want, count);
    double error = largest_error(want, have, count);
    if (!(error <= bound)) {
        printf("%s form %d R=%lld I=%lld O=%lld activation %d: %s errs by %g, allowed %g\n", variant, (int)c->form,
               (long long)c->rows, (long long)c->in, (long long)c->out, (int)c->activation, what, error, bound);
        CHECK(error <= bound);
    }
}

static Device *open_device(const char *variant, int threads) {
    Device *device = NULL;
    CHECK_OK(device_open_cpu(threads, variant, &device));
    return device;
}

static void check_case(const Case *c, Device *const *devices, int device_count) {
    Tensors t = tensors_new(c);
    float *y = tensor_new(t.count), *second = tensor_new(t.second_count);
    float *first_y = memory_new((size_t)t.count, sizeof(float));
    float *first_second = memory_new((size_t)t.second_count, sizeof(float));
    bool has_second = c->form == FORWARD ? c->pre : c->form == BACKWARD_WEIGHT && c->bias;
    size_t bytes = (size_t)t.count * sizeof(float), second_bytes = (size_t)t.second_count * sizeof(float);
    for (int i = 0; i < device_count; i++) {
        const char *name = devices[i]->op->name;
        bool first = i == 0 || strcmp(devices[i - 1]->op->name, name) != 0;
        for (int repeat = 0; repeat < (first ? 2 : 1); repeat++) {
            run(devices[i], c, &t, y, second);
            if (first && repeat == 0) {
                check_result(c, name, "the result", t.want, t.plain, y, t.count);
                memcpy(first_y, y, bytes);
                if (has_second) {
                    check_result(c, name, "pre or dbias", t.want_second, t.plain_second, second, t.second_count);
                    memcpy(first_second, second, second_bytes);
                }
            } else {
                CHECK(memcmp(first_y, y, bytes) == 0);
                CHECK(!has_second || memcmp(first_second, second, second_bytes) == 0);
            }
        }
        CHECK(tensor_guarded(y, t.count) && tensor_guarded(second, t.second_count));
    }
    free(first_y);
    free(first_second);
    tensor_free(y, t.count);
    tensor_free(second, t.second_count);
    tensors_free(c, &t);
}

enum { MOST_DEVICES = 9 };

// Each variant with 1, 2 and 3 threads.
static int open_devices(Device **devices) {
    int count = 0;
    for (const char *const *variant = device_cpu_variants(); *variant != NULL; variant++) {
        for (int threads = 1; threads <= 3; threads++) {
            devices[count++] = open_device(*variant, threads);
        }
    }
    return count;
}

static void check_all(const Case *cases, int count) {
    Device *devices[MOST_DEVICES];
    int device_count = open_devices(devices);
    for (int i = 0; i < count; i++) {
        check_case(&cases[i], devices, device_count);
    }
    for (int i = 0; i < device_count; i++) {
        device_close(devices[i]);
    }
}

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
            {.form = FORWARD, .rows = r, .in = in, .out = out, .bias = true, .residual = true, .alias = true},
            {.form = BACKWARD_INPUT, .rows = r, .in = in, .out = out},
            {.form = BACKWARD_INPUT, .rows = r, .in = in, .out = out, .accumulate = true},
            {.form = BACKWARD_WEIGHT, .rows = r, .in = in, .out = out, .accumulate = true, .bias = i % 2 == 0},
        };
        check_all(cases, sizeof cases / sizeof *cases);
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
            check_all(cases, count);
        }
    }
}

static void test_no_rows(void) {
    for (const char *const *variant = device_cpu_variants(); *variant != NULL; variant++) {
        Device *device = open_device(*variant, 2);
        float x[16] = {0}, w[16] = {0}, y[16] = {3}, dw[16] = {4};
        device->op->matmul_forward(device, &(MatmulForward){.in = 4, .out = 4, .x = x, .w = w, .y = y});
        device->op->matmul_backward_input(device, &(MatmulBackwardInput){.in = 4, .out = 4, .dy = x, .w = w, .dx = y});
        device->op->matmul_backward_weight(device, &(MatmulBackwardWeight){.in = 4, .out = 4, .dy = x, .x = w, .dw = dw});
        CHECK(y[0] == 3 && dw[0] == 4);
        device_close(device);
    }
}

int main(void) {
    RUN(test_shapes);
    RUN(test_surroundings);
    RUN(test_no_rows);
    return check_report();
}
