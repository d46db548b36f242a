// fp16 as <cuda_fp16.h> has it: IEEE binary16.
#pragma once

#include <simulated_math.h>

struct __half;
inline __half __float2half_rn(float x);
inline float __half2float(__half x);

struct alignas(2) __half {
    unsigned short bits;
    __half() = default;
    __half(float x) {
        *this = __float2half_rn(x);
    }
    operator float() const {
        return __half2float(*this);
    }
};
struct alignas(4) __half2 {
    __half x, y;
};
typedef __half half;
typedef __half2 half2;

inline unsigned short __half_as_ushort(__half x) {
    return x.bits;
}
inline __half __ushort_as_half(unsigned short bits) {
    __half x;
    x.bits = bits;
    return x;
}
inline short __half_as_short(__half x) {
    return (short)x.bits;
}
inline __half __short_as_half(short bits) {
    return __ushort_as_half((unsigned short)bits);
}
inline float __half2float(__half x) {
    // The exponent moved by a product, which makes subnormals right too; then what 2^5 * 2^10 had been infinite or NaN.
    unsigned magnitude = (unsigned)(x.bits & 0x7FFF) << 13;
    float value = __uint_as_float(magnitude) * 0x1p112f;
    unsigned bits = __float_as_uint(value) | (magnitude >= 0x0F800000 ? 0x7F800000 : 0);
    return __uint_as_float(bits | (unsigned)(x.bits & 0x8000) << 16);
}
inline __half __float2half_rn(float x) {
    unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
    unsigned result;
    if (magnitude > 0x7F800000) {
        return __ushort_as_half(0x7FFF);
    }
    if (magnitude >= 0x47800000) {  // 2^16 and more
        result = 0x7C00;
    } else if (magnitude < 0x38800000) {  // subnormal: the sum's last bit is 2^-24
        result = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3F000000;
    } else {
        result = (magnitude - 0x38000000 + 0xFFF + (magnitude >> 13 & 1)) >> 13;
    }
    return __ushort_as_half((unsigned short)(sign | result));
}
inline __half __float2half(float x) {
    return __float2half_rn(x);
}
inline __half __float2half_rz(float x) {
    __half nearest = __float2half_rn(x);
    if (fabsf(__half2float(nearest)) > fabsf(x)) {
        nearest.bits--;
    }
    return nearest;
}
inline __half2 __halves2half2(__half low, __half high) {
    return {low, high};
}
inline __half2 make_half2(__half low, __half high) {
    return {low, high};
}
inline __half2 __floats2half2_rn(float low, float high) {
    return {__float2half_rn(low), __float2half_rn(high)};
}
inline __half2 __float22half2_rn(float2 x) {
    return __floats2half2_rn(x.x, x.y);
}
inline __half2 __float2half2_rn(float x) {
    return __floats2half2_rn(x, x);
}
inline float2 __half22float2(__half2 x) {
    return {__half2float(x.x), __half2float(x.y)};
}
inline __half __low2half(__half2 x) {
    return x.x;
}
inline __half __high2half(__half2 x) {
    return x.y;
}
inline float __low2float(__half2 x) {
    return __half2float(x.x);
}
inline float __high2float(__half2 x) {
    return __half2float(x.y);
}
inline bool __hisnan(__half x) {
    return (x.bits & 0x7FFF) > 0x7C00;
}
