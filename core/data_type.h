// Types of a tensor's elements, in memory and in files. A type with scales keeps one float for each block of values that are
// neighbours in the logical tensor's row-major order: value = code's value * scale (kernels/quantize.h).
#pragma once

#include <stdint.h>
#include <string.h>

typedef enum DataType {
    TYPE_FP32,
    TYPE_BF16,
    TYPE_FP16,
    TYPE_CODE8,           // a code of one byte with a sign, a scale for each DATA_TYPE_BLOCK values
    TYPE_CODE8_UNSIGNED,  // without a sign
    TYPE_COUNT,
} DataType;

enum { DATA_TYPE_BLOCK = 256 };

// Bytes of one element, without its share of a scale.
static inline int64_t data_type_bytes(DataType type) {
    return type == TYPE_FP32 ? 4 : type == TYPE_BF16 || type == TYPE_FP16 ? 2 : 1;
}

static inline int data_type_has_scales(DataType type) {
    return type == TYPE_CODE8 || type == TYPE_CODE8_UNSIGNED;
}

// The number of scales that `count` elements have, counted from the start of a block.
static inline int64_t data_type_scales(DataType type, int64_t count) {
    return data_type_has_scales(type) ? (count + DATA_TYPE_BLOCK - 1) / DATA_TYPE_BLOCK : 0;
}

// "fp32", "bf16", "fp16", "code8", "code8u": as files call them, and configurations those that are floats.
static inline const char *data_type_name(DataType type) {
    static const char *const names[TYPE_COUNT] = {"fp32", "bf16", "fp16", "code8", "code8u"};
    return names[type];
}

// False where no type is called that.
static inline int data_type_named(const char *name, DataType *out) {
    for (int i = 0; i < TYPE_COUNT; i++) {
        if (strcmp(name, data_type_name((DataType)i)) == 0) {
            *out = (DataType)i;
            return 1;
        }
    }
    return 0;
}
