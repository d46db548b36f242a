// Sixteen-bit floating point on the host: bf16 (the upper half of a float's bits) and IEEE binary16 (5 bits of exponent, 10 of
// fraction). Rounds to nearest, ties to even; NaN stays NaN. Without branches, so that loops over them become vectors.
#pragma once

#include <stdint.h>
#include <string.h>

static inline uint32_t float_to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
static inline float float_from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline float bf16_to_float(uint16_t half) {
    return float_from_bits((uint32_t)half << 16);
}
static inline uint16_t bf16_from_float(float x) {
    uint32_t bits = float_to_bits(x), rounded = bits + 0x7FFF + (bits >> 16 & 1);
    return (uint16_t)((bits & 0x7FFFFFFF) > 0x7F800000 ? bits >> 16 | 0x40 : rounded >> 16);
}

static inline float fp16_to_float(uint16_t half) {
    uint32_t size = half & 0x7FFF, sign = (uint32_t)(half & 0x8000) << 16;
    // As bits of fp32 the exponent is 112 too small, which a product with 2^112 mends, for subnormal numbers too.
    float x = float_from_bits(size << 13) * 0x1p112f;
    return float_from_bits(sign | (size >= 0x7C00 ? 0x7F800000 | size << 13 : float_to_bits(x)));
}
static inline uint16_t fp16_from_float(float x) {
    uint32_t bits = float_to_bits(x), size = bits & 0x7FFFFFFF, sign = bits >> 16 & 0x8000;
    // Below 2^-14 the unit is 2^-24: adding 0.5, whose unit that is in fp32, rounds there.
    uint32_t small = float_to_bits(float_from_bits(size) + 0.5f) - 0x3F000000;
    uint32_t normal = (size - (112u << 23) + 0xFFF + (size >> 13 & 1)) >> 13;
    uint32_t large = size > 0x7F800000 ? 0x7E00 : 0x7C00;  // from 65520 on: infinity
    return (uint16_t)(sign | (size < 0x38800000 ? small : size < 0x477FF000 ? normal : large));
}
