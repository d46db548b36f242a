// Checking operations on devices: see op_check.h.
#include "tests/support/op_check.h"

#include "core/memory.h"
#include "core/philox.h"
#include "tests/support/check.h"
#include "tests/support/reference.h"

#include <math.h>
#include <stdio.h>
#include <time.h>

enum { GUARD = 256, POOLED = 1500 };
static const unsigned char guard_byte = 0xA5;

// ---- Types

static const struct {
    int mantissa, least_exponent;  // stored bits, exponent of the smallest normal number
    double largest;
} formats[] = {
    [TYPE_FP32] = {23, -126, 3.402823466e38}, [TYPE_BF16] = {7, -126, 3.38953139e38}, [TYPE_FP16] = {10, -14, 65504}};

float op_round(DataType type, float x) {
    if (type == TYPE_FP32 || x == 0 || !isfinite(x)) {
        return x;
    }
    int exponent;
    frexpf(x, &exponent);  // x = f 2^exponent, 0.5 <= |f| < 1
    exponent = exponent - 1 > formats[type].least_exponent ? exponent - 1 : formats[type].least_exponent;
    double unit = ldexp(1, exponent - formats[type].mantissa), rounded = nearbyint((double)x / unit) * unit;
    return fabs(rounded) > formats[type].largest ? copysignf(INFINITY, x) : (float)rounded;
}

static uint16_t encode_one(DataType type, float x) {
    uint32_t bits;
    x = op_round(type, x);
    memcpy(&bits, &x, sizeof bits);
    if (type == TYPE_BF16) {
        return (uint16_t)(bits >> 16);
    }
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    float size = fabsf(x);
    if (isnan(x)) {
        return (uint16_t)(sign | 0x7E00);
    }
    if (isinf(x)) {
        return (uint16_t)(sign | 0x7C00);
    }
    if (size < 0x1p-14f) {
        return (uint16_t)(sign | (uint16_t)(size * 0x1p24f));
    }
    return (uint16_t)(sign | ((bits >> 23 & 0xFF) - 112) << 10 | (bits >> 13 & 0x3FF));
}

static float decode_one(DataType type, uint16_t bits) {
    float x;
    if (type == TYPE_BF16) {
        uint32_t wide = (uint32_t)bits << 16;
        memcpy(&x, &wide, sizeof x);
        return x;
    }
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    x = exponent == 31  ? (fraction != 0 ? NAN : INFINITY)
        : exponent == 0 ? (float)fraction * 0x1p-24f
                        : ldexpf((float)(1024 + fraction), exponent - 25);
    return bits & 0x8000 ? -x : x;
}

void op_encode(DataType type, const float *from, void *to, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        if (type == TYPE_FP32) {
            ((float *)to)[i] = from[i];
        } else {
            ((uint16_t *)to)[i] = encode_one(type, from[i]);
        }
    }
}

void op_decode(DataType type, const void *from, float *to, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        to[i] = type == TYPE_FP32 ? ((const float *)from)[i] : decode_one(type, ((const uint16_t *)from)[i]);
    }
}

// ---- Devices

static OpTwins *add_twins(OpDevices *devices, const char *label, DataType type) {
    ensure(devices->count < OP_DEVICES, "room for %d devices", OP_DEVICES);
    OpTwins *twins = &devices->twins[devices->count++];
    *twins = (OpTwins){.label = label, .type = type};
    return twins;
}

void op_devices_cpu(OpDevices *devices) {
    for (const char *const *name = device_cpu_variants(); *name != NULL; name++) {
        OpTwins *twins = add_twins(devices, *name, TYPE_FP32);
        for (int d = 0; d < OP_TWINS; d++) {
            CHECK_OK(device_open_cpu(d + 1, *name, &twins->of[d]));
        }
    }
}

static void add_cards(OpDevices *devices, DeviceKind kind, const char *const labels[3]) {
    for (int type = TYPE_FP32; type <= TYPE_FP16; type++) {
        OpTwins *twins = add_twins(devices, labels[type], (DataType)type);
        if (CHECK_OK(device_open_card(kind, 0, (DataType)type, 1, &twins->of[0]))) {
            CHECK_OK(device_set_products(twins->of[0], "ours"));  // a library's products are not what is tested
        }
    }
}

void op_devices_cards(OpDevices *devices) {
    static const char *const real[] = {"cuda fp32", "cuda bf16", "cuda fp16"};
    static const char *const sm80[] = {"simulated sm_80 fp32", "simulated sm_80 bf16", "simulated sm_80 fp16"};
    static const char *const sm90[] = {"simulated sm_90 fp32", "simulated sm_90 bf16", "simulated sm_90 fp16"};
    const char *wanted = getenv("ATHANOR_TEST_DEVICE");
    if (wanted != NULL && strcmp(wanted, "cuda") == 0) {
        add_cards(devices, DEVICE_CUDA, real);
    } else if (device_built(DEVICE_SIMULATED)) {
        setenv("ATHANOR_SIMULATED_ARCH", "80", 1);
        add_cards(devices, DEVICE_SIMULATED, sm80);
        setenv("ATHANOR_SIMULATED_ARCH", "90", 1);
        add_cards(devices, DEVICE_SIMULATED, sm90);
    }
}

void op_devices_close(OpDevices *devices) {
    for (int i = 0; i < devices->count; i++) {
        for (int d = 0; d < OP_TWINS && devices->twins[i].of[d] != NULL; d++) {
            device_close(devices->twins[i].of[d]);
        }
    }
    devices->count = 0;
}

// ---- A case

// One tensor's values in every form that a case needs.
typedef struct Values {
    OpTensor tensor;
    DataType type;           // of its elements; int32 counts as fp32
    double *exact;           // OP_INT32: holds int32_t
    float *plain;            // the same
    void *start;             // what the device gets
    size_t bytes;            // of the device's form
    unsigned char *guarded;  // guard, the device's form, guard: as it goes to the device and as it came back
    void *result;            // what the first run gave
} Values;

void op_fill(const OpTensor *t, uint64_t seed, uint64_t stream, double *exact) {
    if (t->type == OP_INT32) {
        int32_t *out = (int32_t *)(void *)exact;
        for (int64_t i = 0; i < t->count; i++) {
            uint64_t random = philox_u64(seed, stream, (uint64_t)i);
            if (t->fill == OP_FIRST) {
                // A new document starts at one token in 24; a sequence starts one.
                int64_t at = i % t->limit;
                int64_t start = t->shift == 0 ? 0 : t->shift - 24;  // of the document that goes on
                out[i] = (int32_t)(at == 0 ? start : random % 24 == 0 ? at + t->shift : out[i - 1]);
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

// The type of a tensor's elements where the device computes in `compute`.
static DataType element_type(const OpTensor *t, DataType compute) {
    switch (t->type) {
    case OP_COMPUTE:
        return compute;
    case OP_BF16:
        return TYPE_BF16;
    case OP_FP16:
        return TYPE_FP16;
    default:
        return TYPE_FP32;
    }
}

static int prepare(const OpCase *c, DataType type, uint64_t seed, Values *v) {
    OpTensor tensors[OP_TENSORS] = {0};
    int count = c->kind->tensors(c, tensors);
    double *exact[OP_TENSORS] = {0};
    for (int i = 0; i < count; i++) {
        size_t elements = (size_t)tensors[i].count;
        v[i].tensor = tensors[i];
        v[i].type = element_type(&tensors[i], type);
        v[i].exact = exact[i] = memory_zeroed(elements + 1, sizeof(double));
        v[i].plain = memory_zeroed(elements + 1, sizeof(float));
        v[i].bytes = elements * (size_t)data_type_bytes(v[i].type);
        v[i].start = memory_zeroed(v[i].bytes + 1, 1);
        v[i].result = memory_zeroed(v[i].bytes + 1, 1);
        v[i].guarded = memory_zeroed(v[i].bytes + 2 * GUARD, 1);
        op_fill(&tensors[i], seed, philox_stream(RANDOM_TEST, (uint64_t)i), exact[i]);
    }
    // Everything starts from the same rounded inputs; those that follow from others are computed from the rounded ones.
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < count; i++) {
            for (int64_t e = 0; e < tensors[i].count && tensors[i].type != OP_INT32; e++) {
                exact[i][e] = (double)op_round(v[i].type, (float)exact[i][e]);
            }
        }
        if (pass == 0 && c->kind->prepare != NULL) {
            c->kind->prepare(c, exact);
        }
    }
    for (int i = 0; i < count; i++) {
        if (tensors[i].type == OP_INT32) {
            memcpy(v[i].start, exact[i], v[i].bytes);
            memcpy(v[i].plain, exact[i], v[i].bytes);
            continue;
        }
        for (int64_t e = 0; e < tensors[i].count; e++) {
            v[i].plain[e] = (float)exact[i][e];
        }
        op_encode(v[i].type, v[i].plain, v[i].start, tensors[i].count);
    }
    return count;
}

static void release(Values *v, int count) {
    for (int i = 0; i < count; i++) {
        free(v[i].exact);
        free(v[i].plain);
        free(v[i].start);
        free(v[i].result);
        free(v[i].guarded);
    }
}

// Runs a case on a device; afterwards `guarded` holds what came back. Returns false where it wrote outside or changed an input.
static bool run(Device *device, const OpCase *c, Values *v, int count) {
    void *memory[OP_TENSORS] = {0}, *t[OP_TENSORS] = {0};
    int shared = c->alias ? c->kind->alias[0] : -1;
    for (int i = 0; i < count; i++) {
        memset(v[i].guarded, guard_byte, v[i].bytes + 2 * GUARD);
        if (v[i].tensor.role == OP_OUTPUT && !(c->alias && i == c->kind->alias[1])) {
            memset(v[i].guarded + GUARD, 0xFF, v[i].bytes);  // a NaN
        } else {
            memcpy(v[i].guarded + GUARD, v[c->alias && i == c->kind->alias[1] ? shared : i].start, v[i].bytes);
        }
        CHECK_OK(device_allocate(device, v[i].bytes + 2 * GUARD, &memory[i]));
        device_upload(device, memory[i], v[i].guarded, v[i].bytes + 2 * GUARD);
        t[i] = v[i].tensor.count > 0 ? (char *)memory[i] + GUARD : NULL;
    }
    if (c->alias) {
        t[shared] = t[c->kind->alias[1]];
    }
    c->kind->run(device, c, t);
    bool whole = true;
    for (int i = 0; i < count; i++) {
        device_download(device, v[i].guarded, memory[i], v[i].bytes + 2 * GUARD);
    }
    CHECK_OK(device_finish(device));
    for (int i = 0; i < count; i++) {
        device_release(device, memory[i], v[i].bytes + 2 * GUARD);
        for (int g = 0; g < GUARD; g++) {
            whole &= v[i].guarded[g] == guard_byte && v[i].guarded[GUARD + v[i].bytes + (size_t)g] == guard_byte;
        }
        if (v[i].tensor.role == OP_INPUT && i != shared) {
            whole &= memcmp(v[i].guarded + GUARD, v[i].start, v[i].bytes) == 0;
        }
    }
    return whole;
}

static bool same_results(const Values *v, int count) {
    bool same = true;
    for (int i = 0; i < count; i++) {
        same &= v[i].tensor.role == OP_INPUT || memcmp(v[i].guarded + GUARD, v[i].result, v[i].bytes) == 0;
    }
    return same;
}

static double larger(double a, double b) {
    return b > a || isnan(b) ? b : a;
}

// The largest errors of a tensor over all draws.
typedef struct Errors {
    double error[OP_DEVICES];     // of each device
    double plain[TYPE_FP16 + 1];  // of the plain formula in each type
    double largest;
} Errors;

static double largest_error(const OpTensor *t, const double *exact, const float *result) {
    double most = 0;
    for (int64_t e = 0; e < t->count; e++) {
        // Infinities (the log-sum-exp of nothing) have no error but to be missed.
        most =
            larger(most, isinf(exact[e]) ? ((double)result[e] == exact[e] ? 0 : INFINITY) : fabs((double)result[e] - exact[e]));
    }
    return most;
}

// Runs a case on all devices of a type, twice each, and compares.
static void draw(const OpDevices *devices, DataType type, const OpCase *c, uint64_t seed, Errors *errors, int number) {
    Values v[OP_TENSORS] = {0};
    int count = prepare(c, type, seed, v);
    double *exact[OP_TENSORS] = {0};
    float *plain[OP_TENSORS] = {0};
    for (int i = 0; i < count; i++) {
        exact[i] = v[i].exact;
        plain[i] = v[i].plain;
    }
    reference32_type = type;
    c->kind->reference64(c, exact);
    c->kind->reference32(c, plain);
    reference32_type = TYPE_FP32;
    for (int number_of = 0; number_of < devices->count; number_of++) {
        const OpTwins *twins = &devices->twins[number_of];
        if (twins->type != type) {
            continue;
        }
        for (int d = 0; d < 2 * OP_TWINS && twins->of[d / 2] != NULL; d++) {
            if (!CHECK(run(twins->of[d / 2], c, v, count))) {
                fprintf(stderr, "%s, %s, row %d: wrote outside its outputs\n", twins->label, c->kind->name, number);
            }
            for (int i = 0; i < count && d == 0; i++) {
                memcpy(v[i].result, v[i].guarded + GUARD, v[i].bytes);
            }
            if (!c->loose && !CHECK(same_results(v, count))) {
                fprintf(stderr, "%s, %s, row %d: other bits with %d threads, run %d\n", twins->label, c->kind->name, number,
                        d / 2 + 1, d % 2);
            }
        }
        for (int i = 0; i < count; i++) {
            if (v[i].tensor.role != OP_INPUT && v[i].tensor.type != OP_INT32) {
                float *result = memory_new((size_t)v[i].tensor.count + 1, sizeof *result);
                op_decode(v[i].type, v[i].result, result, v[i].tensor.count);
                errors[i].error[number_of] = larger(errors[i].error[number_of], largest_error(&v[i].tensor, exact[i], result));
                free(result);
            }
        }
    }
    for (int i = 0; i < count; i++) {
        if (v[i].tensor.role == OP_INPUT || v[i].tensor.type == OP_INT32) {
            continue;
        }
        for (int64_t e = 0; e < v[i].tensor.count; e++) {
            plain[i][e] = op_round(v[i].type, plain[i][e]);
            errors[i].largest = larger(errors[i].largest, isinf(exact[i][e]) ? 0 : fabs(exact[i][e]));
        }
        errors[i].plain[type] = larger(errors[i].plain[type], largest_error(&v[i].tensor, exact[i], plain[i]));
    }
    release(v, count);
}

// The largest error of few numbers is a matter of luck, ours as the plain one's: where it is not within bounds more are drawn,
// and the largest of all compared.
enum { ROUNDS = 6 };

static bool within(const OpTensor *tensor, const OpTwins *twins, const Errors *errors, int device) {
    int mantissa = formats[element_type(tensor, twins->type)].mantissa;
    return errors->error[device] <= 2 * errors->plain[twins->type] + ldexp(errors->largest, -mantissa);
}

static bool within_bounds(const OpDevices *devices, const OpTensor *tensors, int count, const Errors *errors) {
    bool all = true;
    for (int d = 0; d < devices->count; d++) {
        for (int i = 0; i < count; i++) {
            all &= within(&tensors[i], &devices->twins[d], &errors[i], d);
        }
    }
    return all;
}

static void check_case(const OpDevices *devices, const OpCase *c, int number) {
    Errors errors[OP_TENSORS] = {0};
    OpTensor tensors[OP_TENSORS] = {0};
    int count = c->kind->tensors(c, tensors);
    int64_t least = INT64_MAX;
    bool used[TYPE_FP16 + 1] = {false};
    for (int i = 0; i < devices->count; i++) {
        used[devices->twins[i].type] = true;
    }
    for (int i = 0; i < count; i++) {
        if (tensors[i].role != OP_INPUT && tensors[i].count > 0 && tensors[i].count < least) {
            least = tensors[i].count;
        }
    }
    int64_t draws = POOLED / least + 1;
    draws = draws < 20 ? draws : 20;
    for (int64_t i = 0, round = 0; round < ROUNDS; round++) {
        for (int64_t end = i + draws; i < end; i++) {
            for (int type = TYPE_FP32; type <= TYPE_FP16; type++) {
                if (used[type]) {
                    draw(devices, (DataType)type, c, (uint64_t)(number * 100 + i), errors, number);
                }
            }
        }
        if (within_bounds(devices, tensors, count, errors)) {
            break;
        }
    }
    for (int d = 0; d < devices->count; d++) {
        const OpTwins *twins = &devices->twins[d];
        for (int i = 0; i < count; i++) {
            if (!CHECK(within(&tensors[i], twins, &errors[i], d))) {
                fprintf(stderr, "%s, %s, row %d: %s errs by %.3g; a plain implementation by %.3g, largest value %.3g\n",
                        twins->label, c->kind->name, number, tensors[i].name, errors[i].error[d], errors[i].plain[twins->type],
                        errors[i].largest);
            }
        }
    }
}

void op_check_cases(const OpDevices *devices, int each) {
    const char *only = getenv("ATHANOR_TEST_OPERATION");  // one operation alone, for who works on it
    const char *given = getenv("ATHANOR_TEST_ROWS");
    int first = given != NULL ? atoi(given) : (int)(time(NULL) / 86400 % each);
    if (each > 1) {
        printf("one row in %d, from row %d on (ATHANOR_TEST_ROWS)\n", each, first);
    }
    for (int i = 0; i < op_case_count && devices->count > 0; i++) {
        if (i % each == first % each && (only == NULL || strcmp(only, op_cases[i].kind->name) == 0)) {
            check_case(devices, &op_cases[i], i);
        }
    }
}
