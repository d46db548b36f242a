// The activations of cards at every number of a 16-bit type, against float64: values and slopes of element-wise operations, and
// that the products' epilogues give the same bits.
//
// A result may err by what its type rounds (half a unit of it, which where it is tiny is half the least number) and a sixteenth
// of that; a slope, whose terms cancel, also by 2^-16 of them. In fp32, at the same numbers, by some units of fp32. Infinities
// are not looked at, NaN stays NaN.
#include "core/memory.h"
#include "tests/support/check.h"
#include "tests/support/op_check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { SKIPPED = 77, NUMBERS = 1 << 16, WIDTH = 128, ROWS = NUMBERS / WIDTH };

// activation(x) and its slope in float64, and the sizes of the slope's terms.
typedef struct Exact {
    double value, slope, terms, exponent;
} Exact;

static Exact exact_sigmoid(double x, double v, double v_slope) {
    double s = 1 / (1 + exp(-v)), rest = 1 / (1 + exp(v)), second = x * v_slope * s * rest;
    return (Exact){x * s, s + second, s + fabs(second), fabs(v)};
}

static Exact exact_of(Activation activation, double x) {
    double square = x * x, normal = 0.5 * erfc(-x * 0.70710678118654752440), density = 0.39894228040143267794 * x;
    switch (activation) {
    case ACTIVATION_GELU_TANH:
        x = fmin(1e6, fmax(-1e6, x));  // far from where it matters; the cube stays finite
        return exact_sigmoid(x, 1.59576912160573071176 * x * (1 + 0.044715 * x * x),
                             1.59576912160573071176 * (1 + 3 * 0.044715 * x * x));
    case ACTIVATION_GELU_ERF:
        density = square < 2000 ? density * exp(-0.5 * square) : 0;
        return (Exact){x * normal, normal + density, normal + fabs(density), 0.5 * square};
    case ACTIVATION_SILU:
        return exact_sigmoid(x, x, 1);
    default:
        return (Exact){fmax(x, 0), x > 0, 1, 0};
    }
}

// Half of a unit of a type at x.
static double half_unit(DataType type, double x) {
    int mantissa = type == TYPE_BF16 ? 7 : 10, least = type == TYPE_BF16 ? -126 : -14, exponent;
    frexp(x, &exponent);
    return ldexp(0.5, (exponent - 1 > least ? exponent - 1 : least) - mantissa);
}

static double value_bound(DataType type, const Exact *exact, double x) {
    if (type == TYPE_FP32) {
        return ldexp(fabs(exact->value) * (4 + exact->exponent) + fabs(x), -23);
    }
    return 1.0625 * half_unit(type, exact->value) + 0x1p-119;  // the instructions flush below 2^-126, and x is up to 100 there
}

static double slope_bound(DataType type, const Exact *exact) {
    if (type == TYPE_FP32) {
        return ldexp(exact->terms * (4 + exact->exponent) + 1, -23);
    }
    return 1.0625 * half_unit(type, exact->slope) + ldexp(exact->terms, -16) + 0x1p-118;
}

// ---- A device's arrays

typedef struct Arrays {
    Device *device;
    DataType type, numbers;  // of the device; of the numbers: 16 bits
    float x[NUMBERS];
    void *of_x, *value, *pair, *dy, *dpair;
} Arrays;

static void *array_new(const Arrays *a, const float *values, int64_t count) {
    size_t bytes = (size_t)(count * data_type_bytes(a->type));
    void *memory, *encoded = memory_new(bytes, 1);
    op_encode(a->type, values, encoded, count);
    CHECK_OK(device_allocate(a->device, bytes, &memory));
    device_upload(a->device, memory, encoded, bytes);
    free(encoded);
    return memory;
}

static void array_free(const Arrays *a, void *memory, int64_t count) {
    device_release(a->device, memory, (size_t)(count * data_type_bytes(a->type)));
}

static float *array_read(const Arrays *a, const void *memory, int64_t count) {
    size_t bytes = (size_t)(count * data_type_bytes(a->type));
    void *encoded = memory_new(bytes, 1);
    float *values = memory_new((size_t)count, sizeof *values);
    device_download(a->device, encoded, memory, bytes);
    CHECK_OK(device_finish(a->device));
    op_decode(a->type, encoded, values, count);
    free(encoded);
    return values;
}

// ---- Values and slopes, in element-wise operations

static void check_one(const Arrays *a, const char *label, Activation activation, double x, double value, double other_value,
                      double slope) {
    if (isnan(x)) {
        CHECK(isnan(value) && (activation == ACTIVATION_RELU || (isnan(other_value) && isnan(slope))));
        return;
    }
    Exact exact = exact_of(activation, x);
    exact.value = fabs(x) > 1e6 ? fmax(x, 0) : exact.value;
    double allowed = value_bound(a->type, &exact, x);
    bool right = fabs(value - exact.value) <= allowed && fabs(other_value - exact.value) <= allowed &&
                 fabs(slope - exact.slope) <= slope_bound(a->type, &exact);
    // The two ways to a value are one formula where the type is of 16 bits.
    right &= a->type == TYPE_FP32 || value == other_value;
    if (!CHECK(right)) {
        fprintf(stderr, "%s, activation %d, x %.9g: %.9g and %.9g for %.9g, slope %.9g for %.9g\n", label, activation, x, value,
                other_value, exact.value, slope, exact.slope);
    }
}

// slopes: what the slopes of all numbers are, for the products.
static void check_elements(const Arrays *a, const char *label, Activation activation, float **values, float **slopes) {
    a->device->op->activation_forward(a->device, &(ActivationForward){activation, NUMBERS, a->of_x, a->value});
    a->device->op->gated_backward(a->device, &(GatedBackward){activation, ROWS, WIDTH, a->dy, a->pair, a->dpair});
    float *both = array_read(a, a->dpair, 2 * NUMBERS);
    *values = array_read(a, a->value, NUMBERS);
    *slopes = memory_new(NUMBERS, sizeof **slopes);
    for (int i = 0; i < NUMBERS; i++) {
        int at = i / WIDTH * 2 * WIDTH + i % WIDTH;
        (*slopes)[i] = both[at];
        if (!isinf(a->x[i])) {
            check_one(a, label, activation, (double)a->x[i], (double)(*values)[i], (double)both[at + WIDTH], (double)both[at]);
        }
    }
    free(both);
}

// ---- The same in products with the identity

static void check_products(const Arrays *a, const char *label, Activation activation, const float *values,
                           const float *slopes) {
    float *finite = memory_new(NUMBERS, sizeof *finite), *identity = memory_zeroed(WIDTH * WIDTH, sizeof *identity);
    for (int i = 0; i < NUMBERS; i++) {
        finite[i] = isfinite(a->x[i]) ? a->x[i] : 0;
    }
    for (int i = 0; i < WIDTH; i++) {
        identity[i * WIDTH + i] = 1;
    }
    void *x = array_new(a, finite, NUMBERS), *w = array_new(a, identity, WIDTH * WIDTH), *y = array_new(a, finite, NUMBERS);
    void *dx = array_new(a, finite, NUMBERS);
    a->device->op->matmul_forward(
        a->device, &(MatmulForward){.rows = ROWS, .in = WIDTH, .out = WIDTH, .x = x, .w = w, .activation = activation, .y = y});
    a->device->op->matmul_backward_input(
        a->device,
        &(MatmulBackwardInput){
            .rows = ROWS, .in = WIDTH, .out = WIDTH, .dy = a->dy, .w = w, .activation = activation, .pre = x, .dx = dx});
    float *forward = array_read(a, y, NUMBERS), *backward = array_read(a, dx, NUMBERS);
    for (int i = 0; i < NUMBERS; i++) {
        if (isfinite(a->x[i]) && !CHECK(forward[i] == values[i] && backward[i] == slopes[i])) {
            fprintf(stderr, "%s, activation %d, x %.9g: products give %.9g and %.9g, operations %.9g and %.9g\n", label,
                    activation, (double)a->x[i], (double)forward[i], (double)backward[i], (double)values[i], (double)slopes[i]);
        }
    }
    array_free(a, x, NUMBERS);
    array_free(a, w, WIDTH * WIDTH);
    array_free(a, y, NUMBERS);
    array_free(a, dx, NUMBERS);
    free(finite);
    free(identity);
    free(forward);
    free(backward);
}

static void check_device(Device *device, DataType type, DataType numbers, const char *label) {
    Arrays *a = memory_zeroed(1, sizeof *a);
    float *pair = memory_new(2 * NUMBERS, sizeof *pair), *ones = memory_new(NUMBERS, sizeof *ones);
    a->device = device;
    a->type = type;
    a->numbers = numbers;
    for (int i = 0; i < NUMBERS; i++) {
        uint16_t bits = (uint16_t)i;
        op_decode(numbers, &bits, &a->x[i], 1);
        ones[i] = 1;
        pair[i / WIDTH * 2 * WIDTH + i % WIDTH] = a->x[i];
        pair[i / WIDTH * 2 * WIDTH + i % WIDTH + WIDTH] = 1;
    }
    a->of_x = array_new(a, a->x, NUMBERS);
    a->value = array_new(a, a->x, NUMBERS);
    a->pair = array_new(a, pair, 2 * NUMBERS);
    a->dy = array_new(a, ones, NUMBERS);
    a->dpair = array_new(a, pair, 2 * NUMBERS);
    for (Activation activation = ACTIVATION_GELU_TANH; activation <= ACTIVATION_SILU; activation++) {
        float *values, *slopes;
        check_elements(a, label, activation, &values, &slopes);
        if (type != TYPE_FP32) {
            check_products(a, label, activation, values, slopes);
        }
        free(values);
        free(slopes);
    }
    array_free(a, a->of_x, NUMBERS);
    array_free(a, a->value, NUMBERS);
    array_free(a, a->pair, 2 * NUMBERS);
    array_free(a, a->dy, NUMBERS);
    array_free(a, a->dpair, 2 * NUMBERS);
    free(a);
    free(pair);
    free(ones);
}

static OpDevices devices;

static void test_every_number(void) {
    for (int d = 0; d < devices.count; d++) {
        const OpTwins *twins = &devices.twins[d];
        check_device(twins->of[0], twins->type, twins->type == TYPE_FP32 ? TYPE_FP16 : twins->type, twins->label);
    }
}

int main(void) {
    op_devices_cards(&devices);
    if (devices.count == 0) {
        printf("skipped: this build has no simulated card\n");
        return SKIPPED;
    }
    RUN(test_every_number);
    op_devices_close(&devices);
    return check_report();
}
