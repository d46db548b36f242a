// Sixteen-bit floating point on the host: bf16 (the upper half of a float) and IEEE binary16. Rounds to nearest, ties to even.
#pragma once

#include <stdint.h>
#include <string.h>

static inline float bf16_to_float(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

static inline uint16_t bf16_from_float(float value) {
    uint32_t wide;
    memcpy(&wide, &value, sizeof wide);
    if ((wide & 0x7FFFFFFFu) > 0x7F800000u) {
        return (uint16_t)(wide >> 16 | 0x40);  // NaN, quiet
    }
    return (uint16_t)((wide + 0x7FFF + (wide >> 16 & 1)) >> 16);
}

static inline float fp16_to_float(uint16_t bits) {
    uint32_t exponent = bits >> 10 & 31, fraction = bits & 1023;
    uint32_t wide = exponent == 31 ? 0x7F800000u | fraction << 13 : (exponent + 112) << 23 | fraction << 13;
    float value;
    memcpy(&value, &wide, sizeof value);
    value = exponent == 0 ? (float)fraction * 0x1p-24f : value;
    return bits & 0x8000 ? -value : value;
}

static inline uint16_t fp16_from_float(float value) {
    uint32_t wide;
    memcpy(&wide, &value, sizeof wide);
    uint16_t sign = (uint16_t)(wide >> 16 & 0x8000);
    uint32_t size = wide & 0x7FFFFFFFu;
    if (size > 0x7F800000u) {
        return (uint16_t)(sign | 0x7E00);
    }
    if (size >= 0x477FF000u) {
        return (uint16_t)(sign | 0x7C00);  // 65520 and more round to infinity
    }
    if (size < 0x38800000u) {
        // Below 2^-14: adding 1/2 leaves a multiple of 2^-24 in the last bits, rounded by the addition itself.
        float shifted;
        memcpy(&shifted, &size, sizeof shifted);
        shifted += 0.5f;
        memcpy(&size, &shifted, sizeof size);
        return (uint16_t)(sign | (uint16_t)(size - 0x3F000000u));
    }
    return (uint16_t)(sign | (uint16_t)((size - 0x38000000u + 0xFFF + (size >> 13 & 1)) >> 13));
}
