// Conversions and copies to the bit, on every device: all 65536 numbers of the 16-bit types, every tie between neighbours and
// the floats beside it, and rows of any number of bytes at any distance, from addresses that are not aligned.
#include "core/memory.h"
#include "core/philox.h"
#include "tests/support/check.h"
#include "tests/support/op_check.h"

#include <math.h>
#include <stdio.h>

enum { PATTERNS = 1 << 16 };

static OpDevices devices;

static bool is_nan(DataType type, const void *x, int64_t i) {
    float value;
    op_decode(type, (const char *)x + i * data_type_bytes(type), &value, 1);
    return isnan(value);
}

// Converts `count` elements and compares with what op_encode makes of the same floats. `shift` moves both arrays by so many
// elements, so that they are not aligned.
static void check_conversion(Device *device, const char *label, DataType from_type, DataType to_type, const void *from,
                             int64_t count, int64_t shift) {
    size_t from_bytes = (size_t)(count * data_type_bytes(from_type)), to_bytes = (size_t)(count * data_type_bytes(to_type));
    size_t from_shift = (size_t)(shift * data_type_bytes(from_type)), to_shift = (size_t)(shift * data_type_bytes(to_type));
    float *values = memory_new((size_t)count, sizeof *values);
    unsigned char *expected = memory_new(to_bytes, 1), *got = memory_new(to_bytes, 1);
    void *input, *output;
    op_decode(from_type, from, values, count);
    op_encode(to_type, values, expected, count);
    CHECK_OK(device_allocate(device, from_bytes + from_shift, &input));
    CHECK_OK(device_allocate(device, to_bytes + to_shift, &output));
    device_upload(device, (char *)input + from_shift, from, from_bytes);
    device->op->convert(device, &(Convert){count, from_type, to_type, (char *)input + from_shift, (char *)output + to_shift});
    device_download(device, got, (char *)output + to_shift, to_bytes);
    CHECK_OK(device_finish(device));
    int64_t wrong = 0, size = data_type_bytes(to_type);
    for (int64_t i = 0; i < count; i++) {
        bool same = is_nan(to_type, expected, i) ? is_nan(to_type, got, i)
                                                 : memcmp(got + i * size, expected + i * size, (size_t)size) == 0;
        if (!same && wrong++ == 0) {
            fprintf(stderr, "%s: %g (element %lld) from type %d to type %d\n", label, (double)values[i], (long long)i,
                    from_type, to_type);
        }
    }
    CHECK_I64(wrong, 0);
    device_release(device, input, from_bytes + from_shift);
    device_release(device, output, to_bytes + to_shift);
    free(values);
    free(expected);
    free(got);
}

// For each number of a 16-bit type: itself, the middle between it and the next one, and the floats on both sides of that.
static float *ties(DataType type, int64_t *count) {
    float *out = memory_new((size_t)4 * PATTERNS, sizeof *out);
    for (int i = 0; i < PATTERNS; i++) {
        uint16_t pair[2] = {(uint16_t)i, (uint16_t)(i + 1)};
        float values[2];
        op_decode(type, pair, values, 2);
        bool pairs = isfinite(values[0]) && isfinite(values[1]) && signbit(values[0]) == signbit(values[1]);
        // Behind the largest number the next one would be 2^128 or 2^16.
        double next = pairs ? (double)values[1] : (double)values[0] * (type == TYPE_FP16 ? 65536.0 / 65504 : 1);
        float middle = (float)(((double)values[0] + next) / 2);
        out[4 * i] = values[0];
        out[4 * i + 1] = middle;
        out[4 * i + 2] = nextafterf(middle, INFINITY);
        out[4 * i + 3] = nextafterf(middle, -INFINITY);
    }
    *count = (int64_t)4 * PATTERNS;
    return out;
}

static void test_conversions(void) {
    uint16_t *patterns = memory_new(PATTERNS, sizeof *patterns);
    for (int i = 0; i < PATTERNS; i++) {
        patterns[i] = (uint16_t)i;
    }
    for (int d = 0; d < devices.count; d++) {
        Device *device = devices.twins[d].of[0];
        const char *label = devices.twins[d].label;
        for (int type = TYPE_BF16; type <= TYPE_FP16; type++) {
            for (int to = TYPE_FP32; to <= TYPE_FP16; to++) {
                check_conversion(device, label, (DataType)type, (DataType)to, patterns, PATTERNS, 0);
                check_conversion(device, label, (DataType)type, (DataType)to, patterns + 30000, 9001, 1);
            }
            int64_t count;
            float *values = ties((DataType)type, &count);
            check_conversion(device, label, TYPE_FP32, (DataType)type, values, count, 0);
            check_conversion(device, label, TYPE_FP32, (DataType)type, values + 4 * 31700, 4099, 3);
            free(values);
        }
    }
    free(patterns);
}

static void test_copies(void) {
    static const struct {
        int64_t rows, bytes, from_stride, to_stride, from_offset, to_offset;
    } cases[] = {
        {1, 1, 1, 1, 0, 0},    {3, 7, 11, 13, 0, 0},        {257, 16, 32, 16, 0, 0},
        {5, 16, 16, 32, 1, 0}, {9, 48, 64, 48, 16, 32},     {4, 12, 20, 16, 4, 8},
        {100, 3, 3, 3, 5, 2},  {2, 8193, 8200, 8193, 0, 0}, {3, 16384, 16400, 16384, 0, 0},
        {7, 64, 64, 64, 0, 4}, {33, 30, 32, 30, 2, 0},
    };
    enum { BYTES = 65536 };
    unsigned char *from = memory_new(BYTES, 1), *to = memory_new(BYTES, 1), *expected = memory_new(BYTES, 1);
    for (int i = 0; i < BYTES; i++) {
        from[i] = (unsigned char)philox_u64(1, 2, (uint64_t)i);
    }
    for (int d = 0; d < devices.count; d++) {
        Device *device = devices.twins[d].of[0];
        void *input, *output;
        CHECK_OK(device_allocate(device, BYTES, &input));
        CHECK_OK(device_allocate(device, BYTES, &output));
        device_upload(device, input, from, BYTES);
        for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
            memset(expected, 0xA5, BYTES);
            device_upload(device, output, expected, BYTES);
            for (int64_t r = 0; r < cases[n].rows; r++) {
                memcpy(expected + cases[n].to_offset + r * cases[n].to_stride,
                       from + cases[n].from_offset + r * cases[n].from_stride, (size_t)cases[n].bytes);
            }
            device->op->copy_rows(device,
                                  &(CopyRows){cases[n].rows, cases[n].bytes, (char *)input + cases[n].from_offset,
                                              cases[n].from_stride, (char *)output + cases[n].to_offset, cases[n].to_stride});
            device_download(device, to, output, BYTES);
            CHECK_OK(device_finish(device));
            if (!CHECK(memcmp(to, expected, BYTES) == 0)) {
                fprintf(stderr, "%s: copy %d\n", devices.twins[d].label, (int)n);
            }
        }
        device_release(device, input, BYTES);
        device_release(device, output, BYTES);
    }
    free(from);
    free(to);
    free(expected);
}

int main(void) {
    op_devices_cpu(&devices);
    op_devices_cards(&devices);
    RUN(test_conversions);
    RUN(test_copies);
    op_devices_close(&devices);
    return check_report();
}
