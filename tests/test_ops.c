// Every operation of every CPU variant against float64, over the table of cases in tests/support/ops.c.
//
// For each case: results within tolerance, inputs unchanged, not a byte written outside the buffers, "=" outputs fully
// overwritten, the same bits when run again and with 1, 2 and 3 threads; and the reference's gradients against central
// differences.
//
// Tolerance: the largest error of an output may be twice the largest error of the plain formula in single precision
// (reference32) plus the rounding floor, one unit in the last place of the output's largest value. Small cases are drawn
// several times and the errors pooled, because a single number says little about an error.
#include "core/memory.h"
#include "core/philox.h"
#include "tests/support/check.h"
#include "tests/support/ops.h"

#include <math.h>
#include <stdio.h>

enum { GUARD = 256, THREAD_COUNTS = 3, MOST_VARIANTS = 8, POOLED = 1500 };
static const unsigned char guard_byte = 0xA5;

// One tensor's values in every form that a case needs.
typedef struct Values {
    OpTensor tensor;
    double *exact;          // OP_INT32: holds int32_t
    float *plain;           // the same
    void *start;            // what the device gets
    size_t bytes;           // of the device's form
    unsigned char *memory;  // guard, device buffer, guard
    void *device;
    void *result;  // what the first run gave
} Values;

static int variant_threads[THREAD_COUNTS] = {1, 2, 3};

static void fill(const OpTensor *t, uint64_t seed, uint64_t stream, double *exact) {
    if (t->type == OP_INT32) {
        int32_t *out = (int32_t *)(void *)exact;
        for (int64_t i = 0; i < t->count; i++) {
            uint64_t random = philox_u64(seed, stream, (uint64_t)i);
            if (t->fill == OP_FIRST) {
                // A new document starts at one token in 24; a sequence starts one.
                int64_t at = i % t->limit;
                out[i] = at == 0 ? 0 : random % 24 == 0 ? (int32_t)at : out[i - 1];
            } else {
                out[i] = (int32_t)(random % (uint64_t)t->limit) + (t->fill == OP_LENGTH);
            }
        }
        return;
    }
    float deviation = t->deviation > 0 ? (float)t->deviation : 1.0f, *values = memory_new((size_t)t->count + 1, sizeof *values);
    philox_normal(seed, stream, 0, deviation, values, t->count);
    for (int64_t i = 0; i < t->count; i++) {
        exact[i] = t->fill == OP_POSITIVE ? (double)(values[i] * values[i]) : (double)values[i];
    }
    free(values);
}

static void to_float(const OpTensor *t, const double *exact, float *out) {
    if (t->type == OP_INT32) {
        memcpy(out, exact, (size_t)t->count * sizeof *out);
        return;
    }
    for (int64_t i = 0; i < t->count; i++) {
        out[i] = (float)exact[i];
    }
}

static int prepare(const OpCase *c, uint64_t seed, Values *v) {
    OpTensor tensors[OP_TENSORS] = {0};
    int count = c->kind->tensors(c, tensors);
    double *exact[OP_TENSORS] = {0};
    for (int i = 0; i < count; i++) {
        size_t elements = (size_t)tensors[i].count;
        v[i].tensor = tensors[i];
        v[i].exact = exact[i] = memory_zeroed(elements + 1, sizeof(double));
        v[i].plain = memory_zeroed(elements + 1, sizeof(float));
        v[i].bytes = elements * sizeof(float);
        v[i].start = memory_zeroed(v[i].bytes + 1, 1);
        v[i].result = memory_zeroed(v[i].bytes + 1, 1);
        v[i].memory = aligned_alloc(64, (v[i].bytes + 2 * GUARD + 63) / 64 * 64);
        v[i].device = v[i].memory + GUARD;
        fill(&tensors[i], seed, philox_stream(RANDOM_TEST, (uint64_t)i), exact[i]);
    }
    if (c->kind->prepare != NULL) {
        c->kind->prepare(c, exact);
    }
    for (int i = 0; i < count; i++) {
        // Everything starts from the same rounded inputs.
        to_float(&tensors[i], exact[i], v[i].start);
        memcpy(v[i].plain, v[i].start, v[i].bytes);
        for (int64_t e = 0; e < tensors[i].count && tensors[i].type != OP_INT32; e++) {
            exact[i][e] = (double)v[i].plain[e];
        }
    }
    return count;
}

static void release(Values *v, int count) {
    for (int i = 0; i < count; i++) {
        free(v[i].exact);
        free(v[i].plain);
        free(v[i].start);
        free(v[i].result);
        free(v[i].memory);
    }
}

// Runs a case on a device. Returns false where it wrote outside or changed an input.
static bool run(Device *device, const OpCase *c, Values *v, int count) {
    void *t[OP_TENSORS] = {0};
    for (int i = 0; i < count; i++) {
        memset(v[i].memory, guard_byte, v[i].bytes + 2 * GUARD);
        if (v[i].tensor.role == OP_OUTPUT) {
            memset(v[i].device, 0xFF, v[i].bytes);  // a NaN
        } else {
            memcpy(v[i].device, v[i].start, v[i].bytes);
        }
        t[i] = v[i].tensor.count > 0 ? v[i].device : NULL;
    }
    int shared = c->alias ? c->kind->alias[0] : -1;
    if (c->alias) {
        t[shared] = t[c->kind->alias[1]];
        if (t[shared] != NULL) {
            memcpy(t[shared], v[shared].start, v[shared].bytes);
        }
    }
    c->kind->run(device, c, t);
    bool whole = true;
    for (int i = 0; i < count; i++) {
        for (int g = 0; g < GUARD; g++) {
            whole &= v[i].memory[g] == guard_byte && v[i].memory[GUARD + v[i].bytes + (size_t)g] == guard_byte;
        }
        if (v[i].tensor.role == OP_INPUT && i != shared) {
            whole &= memcmp(v[i].device, v[i].start, v[i].bytes) == 0;
        }
    }
    return whole;
}

static bool same_results(const Values *v, int count) {
    bool same = true;
    for (int i = 0; i < count; i++) {
        same &= v[i].tensor.role == OP_INPUT || memcmp(v[i].device, v[i].result, v[i].bytes) == 0;
    }
    return same;
}

static double larger(double a, double b) {
    return b > a || isnan(b) ? b : a;
}

// The largest errors of a tensor over all draws.
typedef struct Errors {
    double error[MOST_VARIANTS], plain, largest;
} Errors;

static double largest_error(const Values *v, const double *exact, const float *result) {
    double most = 0;
    for (int64_t e = 0; e < v->tensor.count; e++) {
        most = larger(most, fabs((double)result[e] - exact[e]));
    }
    return most;
}

// Every variant's devices: one of each number of threads.
typedef struct Devices {
    int variants;
    Device *of[MOST_VARIANTS][THREAD_COUNTS];
} Devices;

// One draw of a case: runs it everywhere, twice, and compares.
static void draw(const Devices *devices, const OpCase *c, uint64_t seed, Errors *errors, int number) {
    Values v[OP_TENSORS] = {0};
    int count = prepare(c, seed, v);
    double *exact[OP_TENSORS] = {0};
    float *plain[OP_TENSORS] = {0};
    for (int i = 0; i < count; i++) {
        exact[i] = v[i].exact;
        plain[i] = v[i].plain;
    }
    c->kind->reference64(c, exact);
    c->kind->reference32(c, plain);
    for (int variant = 0; variant < devices->variants; variant++) {
        for (int d = 0; d < 2 * THREAD_COUNTS; d++) {
            Device *device = devices->of[variant][d / 2];
            if (!CHECK(run(device, c, v, count))) {
                fprintf(stderr, "%s, %s, row %d: wrote outside its outputs\n", device->op->name, c->kind->name, number);
            }
            for (int i = 0; i < count && d == 0; i++) {
                memcpy(v[i].result, v[i].device, v[i].bytes);
            }
            if (!CHECK(same_results(v, count))) {
                fprintf(stderr, "%s, %s, row %d: other bits with %d threads, run %d\n", device->op->name, c->kind->name, number,
                        variant_threads[d / 2], d % 2);
            }
        }
        for (int i = 0; i < count; i++) {
            double error = v[i].tensor.role == OP_INPUT ? 0 : largest_error(&v[i], exact[i], v[i].result);
            errors[i].error[variant] = larger(errors[i].error[variant], error);
        }
    }
    for (int i = 0; i < count; i++) {
        if (v[i].tensor.role != OP_INPUT) {
            errors[i].plain = larger(errors[i].plain, largest_error(&v[i], exact[i], plain[i]));
        }
        for (int64_t e = 0; e < v[i].tensor.count && v[i].tensor.role != OP_INPUT; e++) {
            errors[i].largest = larger(errors[i].largest, fabs(exact[i][e]));
        }
    }
    release(v, count);
}

static void check_case(const Devices *devices, const OpCase *c, int number) {
    Errors errors[OP_TENSORS] = {0};
    OpTensor tensors[OP_TENSORS] = {0};
    int count = c->kind->tensors(c, tensors);
    int64_t least = INT64_MAX;
    for (int i = 0; i < count; i++) {
        if (tensors[i].role != OP_INPUT && tensors[i].count > 0 && tensors[i].count < least) {
            least = tensors[i].count;
        }
    }
    int64_t draws = POOLED / least + 1;
    draws = draws < 20 ? draws : 20;
    for (int64_t i = 0; i < draws; i++) {
        draw(devices, c, (uint64_t)(number * 100 + i), errors, number);
    }
    for (int variant = 0; variant < devices->variants; variant++) {
        for (int i = 0; i < count; i++) {
            double error = errors[i].error[variant];
            if (!CHECK(error <= 2 * errors[i].plain + 0x1p-23 * errors[i].largest)) {
                fprintf(stderr, "%s, %s, row %d: %s errs by %.3g; a plain implementation by %.3g, largest value %.3g\n",
                        devices->of[variant][0]->op->name, c->kind->name, number, tensors[i].name, error, errors[i].plain,
                        errors[i].largest);
            }
        }
    }
}

static void test_cases(void) {
    Devices devices = {0};
    for (const char *const *name = device_cpu_variants(); *name != NULL && devices.variants < MOST_VARIANTS; name++) {
        for (int d = 0; d < THREAD_COUNTS; d++) {
            CHECK_OK(device_open_cpu(variant_threads[d], *name, &devices.of[devices.variants][d]));
        }
        devices.variants++;
    }
    for (int i = 0; i < op_case_count; i++) {
        check_case(&devices, &op_cases[i], i);
    }
    for (int i = 0; i < devices.variants * THREAD_COUNTS; i++) {
        device_close(devices.of[i / THREAD_COUNTS][i % THREAD_COUNTS]);
    }
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
            fill(&tensors[i], (uint64_t)number, philox_stream(RANDOM_TEST, (uint64_t)i), t[i]);
        }
        if (c->kind->prepare != NULL) {
            c->kind->prepare(c, t);
        }
        for (int g = 0; c->kind->gradients[g][1] != 0; g++) {
            int input = c->kind->gradients[g][0], output = c->kind->gradients[g][1];
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
                results[d] = device->op->sum_of_squares(device, counts[n], x);
                CHECK_NEAR(results[d], (double)exact, 1e-13 * (double)exact);
                CHECK(results[d] == results[0]);
                for (int64_t bad = counts[n] - 1; bad >= 0; bad -= counts[n] / 5 + 1) {
                    float value = x[bad];
                    x[bad] = bad % 2 == 0 ? NAN : -INFINITY;
                    CHECK(!isfinite(device->op->sum_of_squares(device, counts[n], x)));
                    x[bad] = value;
                }
                float large = x[0];
                x[0] = 3e38f;
                CHECK(counts[n] == 0 || isfinite(device->op->sum_of_squares(device, counts[n], x)));
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
