// Every operation of every CPU variant against float64 (tests/support/op_check.h), and the reference's gradients against
// central differences.
#include "core/memory.h"
#include "core/philox.h"
#include "tests/support/check.h"
#include "tests/support/op_check.h"

#include <math.h>
#include <stdio.h>

enum { THREAD_COUNTS = 3 };
static const int variant_threads[THREAD_COUNTS] = {1, 2, 3};
static const unsigned char guard_byte = 0xA5;

static void test_cases(void) {
    OpDevices devices = {0};
    op_devices_cpu(&devices);
    op_check_cases(&devices, 1);
    op_devices_close(&devices);
}

// The reference's gradients against central differences (five points) of its forward formula.
static void test_gradients(void) {
    for (int number = 0; number < op_case_count; number++) {
        const OpCase *c = &op_cases[number];
        if (c->kind->objective == NULL) {
            continue;
        }
        OpTensor tensors[OP_TENSORS] = {0};
        int count = c->kind->tensors(c, tensors);
        double *t[OP_TENSORS] = {0};
        for (int i = 0; i < count; i++) {
            t[i] = memory_zeroed((size_t)tensors[i].count + 1, sizeof(double));
            op_fill(&tensors[i], (uint64_t)number, philox_stream(RANDOM_TEST, (uint64_t)i), t[i]);
        }
        if (c->kind->prepare != NULL) {
            c->kind->prepare(c, t);
        }
        for (int g = 0; c->kind->gradients[g][1] != 0; g++) {
            int input = c->kind->gradients[g][0], output = c->kind->gradients[g][1];
            if (tensors[input].count != tensors[output].count) {
                continue;  // they lie otherwise than their gradients
            }
            // "+=" starts from what the tensor holds; that is subtracted again.
            size_t bytes = (size_t)tensors[output].count * sizeof(double);
            double *before = memory_new(bytes + 1, 1);
            memcpy(before, t[output], bytes);
            c->kind->reference64(c, t);
            bool added = tensors[output].role == OP_UPDATE;
            int64_t step = tensors[output].count / 10 + 1;
            for (int64_t e = 0; e < tensors[output].count; e += step) {
                double analytic = t[output][e] - (added ? before[e] : 0), value = t[input][e], h = 1e-4;
                long double at[4];
                for (int side = 0; side < 4; side++) {
                    static const int steps[4] = {-2, -1, 1, 2};
                    t[input][e] = value + steps[side] * h;
                    at[side] = c->kind->objective(c, t);
                }
                t[input][e] = value;
                double difference = (double)((8 * (at[2] - at[1]) - (at[3] - at[0])) / (12 * h));
                if (!CHECK_NEAR(analytic, difference, 1e-7 * (1 + fabs(analytic)))) {
                    fprintf(stderr, "%s, row %d: gradient %s[%lld]\n", c->kind->name, number, tensors[output].name,
                            (long long)e);
                }
            }
            if (c->kind->prepare != NULL) {
                c->kind->prepare(c, t);
            }
            free(before);
        }
        for (int i = 0; i < count; i++) {
            free(t[i]);
        }
    }
}

static double squares(Device *device, int64_t count, const float *x) {
    double sum;
    device->op->squares(device, count, x, &sum);
    return sum;
}

// Sums of squares: exact to double precision, the same with any number of threads, not finite where an element is not.
static void test_sum_of_squares(void) {
    static const int64_t counts[] = {0, 1, 31, 1000, 32769, 300001};
    float *x = memory_tensor(300001 * sizeof *x);
    philox_normal(3, 5, 0, 2.0f, x, 300001);
    for (const char *const *name = device_cpu_variants(); *name != NULL; name++) {
        double results[THREAD_COUNTS];
        for (size_t n = 0; n < sizeof counts / sizeof *counts; n++) {
            long double exact = 0;
            for (int64_t i = 0; i < counts[n]; i++) {
                exact += (long double)x[i] * (long double)x[i];
            }
            for (int d = 0; d < THREAD_COUNTS; d++) {
                Device *device;
                CHECK_OK(device_open_cpu(variant_threads[d], *name, &device));
                results[d] = squares(device, counts[n], x);
                CHECK_NEAR(results[d], (double)exact, 1e-13 * (double)exact);
                CHECK(results[d] == results[0]);
                for (int64_t bad = counts[n] - 1; bad >= 0; bad -= counts[n] / 5 + 1) {
                    float value = x[bad];
                    x[bad] = bad % 2 == 0 ? NAN : -INFINITY;
                    CHECK(!isfinite(squares(device, counts[n], x)));
                    x[bad] = value;
                }
                float large = x[0];
                x[0] = 3e38f;
                CHECK(counts[n] == 0 || isfinite(squares(device, counts[n], x)));
                x[0] = large;
                device_close(device);
            }
        }
    }
    memory_tensor_free(x, 300001 * sizeof *x);
}

static void test_zero(void) {
    enum { BYTES = 100003 };
    unsigned char *memory = memory_new(BYTES + 128, 1);
    for (const char *const *name = device_cpu_variants(); *name != NULL; name++) {
        Device *device;
        CHECK_OK(device_open_cpu(2, *name, &device));
        for (int64_t bytes = 0; bytes <= BYTES; bytes = bytes * 7 + 1) {
            memset(memory, guard_byte, BYTES + 128);
            device->op->zero(device, bytes, memory + 64);
            int64_t zeros = 0, others = 0;
            for (int64_t i = 0; i < BYTES + 128; i++) {
                zeros += memory[i] == 0;
                others += memory[i] == guard_byte;
            }
            CHECK_I64(zeros, bytes);
            CHECK_I64(others, BYTES + 128 - bytes);
        }
        device_close(device);
    }
    free(memory);
}

// Far from zero every activation is x or 0 and its slope 1 or 0, to the largest float; NaN stays NaN.
static void test_activation_extremes(void) {
    static const float far[] = {30, -30, 100, -100, 1e10f, -1e10f, 3e38f, -3e38f, 0, -0.0f, NAN};
    enum { FAR = sizeof far / sizeof *far };
    for (const char *const *name = device_cpu_variants(); *name != NULL; name++) {
        Device *device;
        CHECK_OK(device_open_cpu(1, *name, &device));
        for (Activation activation = ACTIVATION_GELU_TANH; activation <= ACTIVATION_SILU; activation++) {
            for (int i = 0; i < FAR; i++) {
                float y, pre[2] = {far[i], 1}, dy = 1, dpre[2], positive = far[i] > 0 ? far[i] : 0;
                device->op->activation_forward(device, &(ActivationForward){activation, 1, &far[i], &y});
                device->op->gated_backward(device, &(GatedBackward){activation, 1, 1, &dy, pre, dpre});
                if (isnan(far[i])) {
                    CHECK(isnan(y) && isnan(dpre[1]));
                } else {
                    CHECK_NEAR(y, positive, 1e-6 * fabs((double)far[i]));
                    CHECK_NEAR(dpre[1], positive, 1e-6 * fabs((double)far[i]));
                    CHECK(far[i] == 0 || fabsf(dpre[0] - (far[i] > 0)) < 1e-5f);
                }
            }
        }
        device_close(device);
    }
}

// Dropout keeps the right share, each word of a draw alike, and neighbours independently.
static void test_dropout_statistics(void) {
    enum { COUNT = 1 << 20 };
    float *x = memory_tensor(COUNT * sizeof *x);
    Device *device;
    CHECK_OK(device_open_cpu(2, NULL, &device));
    for (int64_t i = 0; i < COUNT; i++) {
        x[i] = 1;
    }
    device->op->dropout(device, &(Dropout){COUNT, 0.3f, 21, 22, 0, x});
    double kept[4] = {0}, pairs = 0;
    for (int64_t i = 0; i < COUNT; i++) {
        CHECK(x[i] == 0 || x[i] == 1 / (1 - 0.3f));
        kept[i % 4] += x[i] != 0;
        pairs += i > 0 && x[i] != 0 && x[i - 1] != 0;
    }
    for (int word = 0; word < 4; word++) {
        CHECK_NEAR(kept[word] / (COUNT / 4), 0.7, 5 * sqrt(0.21 / (COUNT / 4)));
    }
    CHECK_NEAR(pairs / COUNT, 0.49, 5 * sqrt(0.49 * 0.51 / COUNT));
    device_close(device);
    memory_tensor_free(x, COUNT * sizeof *x);
}

int main(void) {
    RUN(test_gradients);
    RUN(test_cases);
    RUN(test_sum_of_squares);
    RUN(test_zero);
    RUN(test_activation_extremes);
    RUN(test_dropout_statistics);
    return check_report();
}
