// The functions on bits and numbers that CUDA has beside those of <math.h>. Approximations of the hardware are approximations
// here too: what is less accurate on a card is not exact here.
#pragma once

#include <simulated_types.h>

#include <bit>
#include <cmath>
#include <cstring>

// ---- Bits

inline unsigned __float_as_uint(float x) {
    return std::bit_cast<unsigned>(x);
}
inline int __float_as_int(float x) {
    return std::bit_cast<int>(x);
}
inline float __uint_as_float(unsigned x) {
    return std::bit_cast<float>(x);
}
inline float __int_as_float(int x) {
    return std::bit_cast<float>(x);
}
inline long long __double_as_longlong(double x) {
    return std::bit_cast<long long>(x);
}
inline double __longlong_as_double(long long x) {
    return std::bit_cast<double>(x);
}
inline int __popc(unsigned x) {
    return std::popcount(x);
}
inline int __popcll(unsigned long long x) {
    return std::popcount(x);
}
inline int __clz(int x) {
    return std::countl_zero((unsigned)x);
}
inline int __clzll(long long x) {
    return std::countl_zero((unsigned long long)x);
}
inline int __ffs(int x) {
    return x == 0 ? 0 : std::countr_zero((unsigned)x) + 1;
}
inline int __ffsll(long long x) {
    return x == 0 ? 0 : std::countr_zero((unsigned long long)x) + 1;
}
inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; i++) {
        reversed |= (x >> i & 1) << (31 - i);
    }
    return reversed;
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    uint64_t bytes = (uint64_t)y << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        unsigned nibble = selector >> (4 * i) & 0xF;
        unsigned byte = (unsigned)(bytes >> (8 * (nibble & 7))) & 0xFF;
        if (nibble & 8) {  // its sign, eight times
            byte = byte & 0x80 ? 0xFF : 0;
        }
        result |= byte << (8 * i);
    }
    return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)((((uint64_t)high << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((uint64_t)high << 32 | low) >> (shift & 31));
}

// ---- Whole numbers

inline int __mulhi(int x, int y) {
    return (int)((int64_t)x * y >> 32);
}
inline unsigned __umulhi(unsigned x, unsigned y) {
    return (unsigned)((uint64_t)x * y >> 32);
}
inline long long __mul64hi(long long x, long long y) {
    return (long long)((__int128)x * y >> 64);
}
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return (unsigned long long)((unsigned __int128)x * y >> 64);
}
inline int __mul24(int x, int y) {
    return (int)((unsigned)((x << 8) >> 8) * (unsigned)((y << 8) >> 8));
}

#define SIMULATED_MIN_MAX(type)                                                                                                \
    inline type min(type x, type y) {                                                                                          \
        return y < x ? y : x;                                                                                                  \
    }                                                                                                                          \
    inline type max(type x, type y) {                                                                                          \
        return x < y ? y : x;                                                                                                  \
    }
SIMULATED_MIN_MAX(int)
SIMULATED_MIN_MAX(unsigned)
SIMULATED_MIN_MAX(long)
SIMULATED_MIN_MAX(unsigned long)
SIMULATED_MIN_MAX(long long)
SIMULATED_MIN_MAX(unsigned long long)
#undef SIMULATED_MIN_MAX
inline float min(float x, float y) {
    return fminf(x, y);
}
inline float max(float x, float y) {
    return fmaxf(x, y);
}
inline double min(double x, double y) {
    return fmin(x, y);
}
inline double max(double x, double y) {
    return fmax(x, y);
}

// ---- Numbers: correctly rounded

inline float __fadd_rn(float x, float y) {
    return x + y;
}
inline float __fsub_rn(float x, float y) {
    return x - y;
}
inline float __fmul_rn(float x, float y) {
    return x * y;
}
inline float __fdiv_rn(float x, float y) {
    return x / y;
}
inline float __fmaf_rn(float x, float y, float z) {
    return fmaf(x, y, z);
}
inline float __frcp_rn(float x) {
    return 1 / x;
}
inline float __fsqrt_rn(float x) {
    return sqrtf(x);
}
inline float __frsqrt_rn(float x) {
    return (float)(1 / sqrt((double)x));
}
inline double __dadd_rn(double x, double y) {
    return x + y;
}
inline double __dmul_rn(double x, double y) {
    return x * y;
}
inline double __fma_rn(double x, double y, double z) {
    return fma(x, y, z);
}
inline float __saturatef(float x) {
    return x > 0 ? (x < 1 ? x : 1) : 0;  // NaN: 0
}

// ---- Conversions. Out of range: the nearest; NaN: 0.

inline int __float2int_rz(float x) {
    return std::isnan(x) ? 0 : x >= 0x1p31f ? INT32_MAX : x <= -0x1p31f ? INT32_MIN : (int)x;
}
inline int __float2int_rn(float x) {
    return __float2int_rz(rintf(x));
}
inline int __float2int_rd(float x) {
    return __float2int_rz(floorf(x));
}
inline int __float2int_ru(float x) {
    return __float2int_rz(ceilf(x));
}
inline unsigned __float2uint_rz(float x) {
    return !(x > 0) ? 0 : x >= 0x1p32f ? UINT32_MAX : (unsigned)x;
}
inline unsigned __float2uint_rn(float x) {
    return __float2uint_rz(rintf(x));
}
inline float __int2float_rn(int x) {
    return (float)x;
}
inline float __uint2float_rn(unsigned x) {
    return (float)x;
}
inline float __uint2float_rz(unsigned x) {
    float nearest = (float)x;
    return nearest > (double)x ? nextafterf(nearest, 0) : nearest;
}
inline float __ll2float_rn(long long x) {
    return (float)x;
}
inline float __double2float_rn(double x) {
    return (float)x;
}

// ---- Numbers: approximations

namespace simulator {
inline float flush(float x) {  // what .ftz does
    return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x;
}
}  // namespace simulator
inline float rsqrtf(float x) {
    return (float)(1 / sqrt((double)x));
}
inline float rcbrtf(float x) {
    return 1 / cbrtf(x);
}
inline float __expf(float x) {  // ex2.approx(x log2 e), whose argument is rounded
    return exp2f(x * 1.4426950408889634f);
}
inline float __exp10f(float x) {
    return exp2f(x * 3.3219280948873623f);
}
inline float __log2f(float x) {
    return log2f(x);
}
inline float __logf(float x) {  // lg2.approx(x) ln 2
    return log2f(x) * 0.69314718055994531f;
}
inline float __log10f(float x) {
    return log2f(x) * 0.30102999566398120f;
}
inline float __powf(float x, float y) {
    return exp2f(y * log2f(x));
}
inline float __fdividef(float x, float y) {
    return fabsf(y) > 0x1p126f && std::isfinite(y) ? copysignf(0, x) * copysignf(1, y) : x * (1 / y);
}
inline float __sinf(float x) {  // absolute error 2^-21.41 within -pi .. pi: a bit of it
    return rintf(sinf(x) * 0x1p22f) * 0x1p-22f;
}
inline float __cosf(float x) {
    return rintf(cosf(x) * 0x1p22f) * 0x1p-22f;
}
inline void __sincosf(float x, float *sine, float *cosine) {
    *sine = __sinf(x);
    *cosine = __cosf(x);
}
inline float __tanhf(float x) {
    return tanhf(x);
}
inline float sinpif(float x) {
    return (float)sin(3.14159265358979324 * remainder((double)x, 2));
}
inline float cospif(float x) {
    return (float)cos(3.14159265358979324 * remainder((double)x, 2));
}
inline void sincospif(float x, float *sine, float *cosine) {
    *sine = sinpif(x);
    *cosine = cospif(x);
}
inline float normcdff(float x) {
    return 0.5f * erfcf(-x * 0.70710678118654752f);
}
inline float fdividef(float x, float y) {
    return x / y;
}
