// bf16 as <cuda_bf16.h> has it: the top half of an fp32.
#pragma once

#include <simulated_math.h>

struct __nv_bfloat16;
inline __nv_bfloat16 __float2bfloat16_rn(float x);
inline float __bfloat162float(__nv_bfloat16 x);

struct alignas(2) __nv_bfloat16 {
    unsigned short bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float x) {
        *this = __float2bfloat16_rn(x);
    }
    operator float() const {
        return __bfloat162float(*this);
    }
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;

inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) {
    return x.bits;
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
    __nv_bfloat16 x;
    x.bits = bits;
    return x;
}
inline short __bfloat16_as_short(__nv_bfloat16 x) {
    return (short)x.bits;
}
inline __nv_bfloat16 __short_as_bfloat16(short bits) {
    return __ushort_as_bfloat16((unsigned short)bits);
}
inline float __bfloat162float(__nv_bfloat16 x) {
    return __uint_as_float((unsigned)x.bits << 16);
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    unsigned bits = __float_as_uint(x);
    if (x != x) {
        return __ushort_as_bfloat16(0x7FFF);
    }
    return __ushort_as_bfloat16((unsigned short)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16));
}
inline __nv_bfloat16 __float2bfloat16_rz(float x) {
    return __ushort_as_bfloat16(x != x ? 0x7FFF : (unsigned short)(__float_as_uint(x) >> 16));
}
inline __nv_bfloat16 __float2bfloat16(float x) {
    return __float2bfloat16_rn(x);
}
inline __nv_bfloat16 __double2bfloat16(double x) {  // rounded once: to odd first
    float nearest = (float)x;
    unsigned bits = __float_as_uint(nearest);
    if (x == x && (double)nearest != x) {
        bits = fabs((double)nearest) > fabs(x) ? bits - 1 : bits;
        bits |= 1;
    }
    return __float2bfloat16_rn(__uint_as_float(bits));
}
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 low, __nv_bfloat16 high) {
    return {low, high};
}
inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 low, __nv_bfloat16 high) {
    return {low, high};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float low, float high) {
    return {__float2bfloat16_rn(low), __float2bfloat16_rn(high)};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 x) {
    return __floats2bfloat162_rn(x.x, x.y);
}
inline __nv_bfloat162 __float2bfloat162_rn(float x) {
    return __floats2bfloat162_rn(x, x);
}
inline float2 __bfloat1622float2(__nv_bfloat162 x) {
    return {__bfloat162float(x.x), __bfloat162float(x.y)};
}
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 x) {
    return x.x;
}
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 x) {
    return x.y;
}
inline float __low2float(__nv_bfloat162 x) {
    return __bfloat162float(x.x);
}
inline float __high2float(__nv_bfloat162 x) {
    return __bfloat162float(x.y);
}
inline bool __hisnan(__nv_bfloat16 x) {
    return (x.bits & 0x7FFF) > 0x7F80;
}
