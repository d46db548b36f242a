// Vectors of fp32 as the CPU kernels use them: 16 lanes (AVX-512), 8 (AVX2) or 4 (SSE2, NEON), and the elementary functions on
// them.
//
// A Vec is the compiler's own vector type, so + - * / and comparisons just work; only what the language has no word for
// (partial loads, minimum, rounding, choosing by a comparison) is written per instruction set. a * b + c becomes one fused
// instruction where the processor has it (-ffp-contract=fast).
//
// The elementary functions reduce their argument and evaluate a polynomial; the coefficients are minimax fits of the relative
// error (Remez exchange, 40 digits), below 2e-8 before rounding. Largest errors measured against double precision, in units in
// the last place: exp 1.1, log 0.8, tanh 1.3, erf 1.6, sigmoid 2.5.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define VEC_LANES 16
#elif defined(__AVX2__)
#include <immintrin.h>
#define VEC_LANES 8
#elif defined(__SSE2__)
#include <emmintrin.h>
#define VEC_LANES 4
#else
#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif
#define VEC_LANES 4
#endif

typedef float Vec __attribute__((vector_size(VEC_LANES * 4)));
typedef int32_t VecI __attribute__((vector_size(VEC_LANES * 4)));
typedef float VecUnaligned __attribute__((vector_size(VEC_LANES * 4), aligned(4), may_alias));
typedef int32_t VecIUnaligned __attribute__((vector_size(VEC_LANES * 4), aligned(4), may_alias));

#define VEC_INLINE static inline __attribute__((always_inline, unused))

// ---- Memory, none of it needs alignment

VEC_INLINE Vec vec_load(const float *p) {
    return (Vec) * (const VecUnaligned *)p;
}

VEC_INLINE void vec_store(float *p, Vec x) {
    *(VecUnaligned *)p = (VecUnaligned)x;
}

VEC_INLINE Vec vec_set(float x) {
    return x - (Vec){0};
}

VEC_INLINE VecI vec_set_int(int32_t x) {
    return x - (VecI){0};
}

#if VEC_LANES == 8
// The first `count` lanes all ones.
VEC_INLINE __m256i vec_tail_mask(int64_t count) {
    static const int32_t ones_then_zeros[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const __m256i *)(ones_then_zeros + 8 - count));
}
#endif

// The first `count` elements (0 .. VEC_LANES), the other lanes 0. Memory behind them is not touched.
VEC_INLINE Vec vec_load_partial(const float *p, int64_t count) {
#if VEC_LANES == 16
    return _mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p);
#elif VEC_LANES == 8
    return _mm256_maskload_ps(p, vec_tail_mask(count));
#else
    Vec x = {0};
    for (int64_t i = 0; i < count; i++) {
        x[i] = p[i];
    }
    return x;
#endif
}

VEC_INLINE void vec_store_partial(float *p, Vec x, int64_t count) {
#if VEC_LANES == 16
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), x);
#elif VEC_LANES == 8
    _mm256_maskstore_ps(p, vec_tail_mask(count), x);
#else
    for (int64_t i = 0; i < count; i++) {
        p[i] = x[i];
    }
#endif
}

// ---- What has no operator

// The greater lane by lane; b where either is not a number.
VEC_INLINE Vec vec_max(Vec a, Vec b) {
#if VEC_LANES == 16
    return _mm512_max_ps(a, b);
#elif VEC_LANES == 8
    return _mm256_max_ps(a, b);
#elif defined(__SSE2__)
    return _mm_max_ps(a, b);
#else
    VecI greater = a > b;
    return (Vec)((greater & (VecI)a) | (~greater & (VecI)b));
#endif
}

// The lesser lane by lane; b where either is not a number.
VEC_INLINE Vec vec_min(Vec a, Vec b) {
#if VEC_LANES == 16
    return _mm512_min_ps(a, b);
#elif VEC_LANES == 8
    return _mm256_min_ps(a, b);
#elif defined(__SSE2__)
    return _mm_min_ps(a, b);
#else
    VecI less = a < b;
    return (Vec)((less & (VecI)a) | (~less & (VecI)b));
#endif
}

// x < y ? a : b, lane by lane (b where x or y is not a number).
VEC_INLINE Vec vec_where_less(Vec x, Vec y, Vec a, Vec b) {
#if VEC_LANES == 16
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), b, a);
#elif VEC_LANES == 8
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, y, _CMP_LT_OQ));
#else
    VecI less = x < y;
    return (Vec)((less & (VecI)a) | (~less & (VecI)b));
#endif
}

VEC_INLINE Vec vec_abs(Vec x) {
    return (Vec)((VecI)x & vec_set_int(0x7FFFFFFF));
}

// |magnitude| with the sign of `sign`. The magnitude must not be negative.
VEC_INLINE Vec vec_with_sign(Vec magnitude, Vec sign) {
    return (Vec)((VecI)magnitude | ((VecI)sign & vec_set_int(INT32_MIN)));
}

VEC_INLINE Vec vec_sqrt(Vec x) {
#if VEC_LANES == 16
    return _mm512_sqrt_ps(x);
#elif VEC_LANES == 8
    return _mm256_sqrt_ps(x);
#elif defined(__SSE2__)
    return _mm_sqrt_ps(x);
#else
    for (int i = 0; i < VEC_LANES; i++) {
        x[i] = __builtin_sqrtf(x[i]);
    }
    return x;
#endif
}

// To the nearest integer, ties to even, |x| < 2^22.
VEC_INLINE Vec vec_round(Vec x) {
#if VEC_LANES == 16
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif VEC_LANES == 8
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    // Adding 1.5 * 2^23 leaves no bits for a fraction.
    return (x + 12582912.0f) - 12582912.0f;
#endif
}

// Folds a vector: the upper half onto the lower until one lane is left; so the order is fixed.
#if VEC_LANES == 16
#define VEC_FOLD(x, fold_8, fold_4)                                                                                            \
    __m256 eight = fold_8(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));                                            \
    Vec4 four = (Vec4)fold_4(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1))
#elif VEC_LANES == 8
#define VEC_FOLD(x, fold_8, fold_4) Vec4 four = (Vec4)fold_4(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1))
#else
#define VEC_FOLD(x, fold_8, fold_4) Vec4 four = x
#endif
typedef float Vec4 __attribute__((vector_size(16)));

// The sum of all lanes, in a fixed order.
VEC_INLINE float vec_sum(Vec x) {
    VEC_FOLD(x, _mm256_add_ps, _mm_add_ps);
    Vec4 two = four + __builtin_shufflevector(four, four, 2, 3, 2, 3);
    return two[0] + two[1];
}

// The greatest lane.
VEC_INLINE float vec_max_lane(Vec x) {
    VEC_FOLD(x, _mm256_max_ps, _mm_max_ps);
    float low = four[0] > four[2] ? four[0] : four[2], high = four[1] > four[3] ? four[1] : four[3];
    return low > high ? low : high;
}

// ---- Elementary functions

// x = n ln 2 + r with |r| <= ln 2 / 2: returns e^r, and n.
VEC_INLINE Vec vec_exp_reduced(Vec x, Vec *n) {
    *n = vec_round(x * 1.44269504f);
    // ln 2 in two parts, the first with few enough bits that n times it is exact.
    Vec r = x - *n * 0x1.62e400p-1f - *n * 0x1.7f7d1cp-20f;
    Vec p = vec_set(0x1.6a234cp-10f);
    p = p * r + 0x1.123a6cp-7f;
    p = p * r + 0x1.5558f4p-5f;
    p = p * r + 0x1.555490p-3f;
    p = p * r + 0x1.fffffcp-2f;
    return (p * r) * r + r + 1.0f;
}

// e^x; 0 far below, infinity far above, NaN stays.
VEC_INLINE Vec vec_exp(Vec x) {
    Vec n, p = vec_exp_reduced(vec_min(vec_set(89.0f), vec_max(vec_set(-104.0f), x)), &n);
#if VEC_LANES == 16
    return _mm512_scalef_ps(p, n);
#else
    // 2^n in two factors: n reaches from -150 to 128, one exponent from -126 to 127.
    VecI whole = __builtin_convertvector(n, VecI), half = whole >> 1;
    return p * (Vec)((half + 127) << 23) * (Vec)((whole - half + 127) << 23);
#endif
}

// e^x where |x| <= 87 is known, cheaper. NaN stays.
VEC_INLINE Vec vec_exp_bounded(Vec x) {
    Vec n, p = vec_exp_reduced(x, &n);
#if VEC_LANES == 16
    return _mm512_scalef_ps(p, n);
#else
    return p * (Vec)((__builtin_convertvector(n, VecI) + 127) << 23);
#endif
}

// The natural logarithm; -infinity at 0, NaN below. x = m 2^n, sqrt(1/2) <= m < sqrt(2).
VEC_INLINE Vec vec_log(Vec x) {
    Vec tiny_scaled = vec_where_less(x, vec_set(0x1p-126f), x * 0x1p25f, x);
    Vec correction = vec_where_less(x, vec_set(0x1p-126f), vec_set(-25.0f), vec_set(0));
    // The bits of sqrt(1/2) taken off first, so that the exponent that is left changes at sqrt(1/2), not at 1.
    VecI bits = (VecI)tiny_scaled - 0x3F3504F3;
    Vec n = __builtin_convertvector(bits >> 23, Vec) + correction;
    Vec f = (Vec)((bits & 0x007FFFFF) + 0x3F3504F3) - 1.0f;
    Vec p = vec_set(0x1.1462a4p-4f);
    p = p * f + -0x1.de4f3cp-4f;
    p = p * f + 0x1.e6f600p-4f;
    p = p * f + -0x1.fc1f7cp-4f;
    p = p * f + 0x1.2336e4p-3f;
    p = p * f + -0x1.555c5ap-3f;
    p = p * f + 0x1.99a4bcp-3f;
    p = p * f + -0x1.000006p-2f;
    p = p * f + 0x1.555548p-2f;
    Vec square = f * f;
    Vec low = p * f * square + n * 0x1.7f7d1cp-20f - 0.5f * square;
    Vec y = n * 0x1.62e400p-1f + (f + low);
    y = vec_where_less(x, vec_set(__builtin_inff()), y, x);  // infinity and NaN stay
    y = vec_where_less(vec_set(0), x, y, vec_where_less(x, vec_set(0), vec_set(__builtin_nanf("")), y));
    VecI zero = x == vec_set(0);
    return (Vec)((zero & (VecI)vec_set(-__builtin_inff())) | (~zero & (VecI)y));
}

// 1 / (1 + e^-x).
VEC_INLINE Vec vec_sigmoid(Vec x) {
    return 1.0f / (1.0f + vec_exp(-x));
}

// tanh: a polynomial near 0, elsewhere 1 - 2 / (e^2x + 1).
VEC_INLINE Vec vec_tanh(Vec x) {
    Vec a = vec_abs(x), square = x * x;
    Vec p = vec_set(0x1.197b80p-9f);
    p = p * square + -0x1.0c2148p-7f;
    p = p * square + 0x1.6394dap-6f;
    p = p * square + -0x1.b9ef7cp-5f;
    p = p * square + 0x1.11106cp-3f;
    p = p * square + -0x1.555554p-2f;
    Vec near = p * square * x + x;
    Vec far = vec_with_sign(1.0f - 2.0f / (vec_exp_bounded(2.0f * vec_min(vec_set(10.0f), a)) + 1.0f), x);
    return vec_where_less(a, vec_set(0.625f), near, far);
}

// erf: a polynomial near 0, elsewhere 1 - e^(-a R(a)) with R fitted to -log(erfc(a)) / a; 1 in fp32 from 3.92 on.
VEC_INLINE Vec vec_erf(Vec x) {
    Vec a = vec_abs(x), square = x * x;
    Vec p = vec_set(-0x1.3825c8p-11f);
    p = p * square + 0x1.46c234p-8f;
    p = p * square + -0x1.b676cap-6f;
    p = p * square + 0x1.ce1904p-4f;
    p = p * square + -0x1.8126dcp-2f;
    p = p * square + 0x1.06eba8p-3f;  // 2 / sqrt(pi) - 1
    Vec near = p * x + x;
    Vec t = vec_min(vec_set(4.0f), a);
    Vec r = vec_set(0x1.78dcfep-17f);
    r = r * t + -0x1.527c42p-12f;
    r = r * t + 0x1.dd6cc6p-9f;
    r = r * t + -0x1.85515ap-6f;
    r = r * t + 0x1.b32574p-4f;
    r = r * t + 0x1.45328ep-1f;
    r = r * t + 0x1.20ef1cp+0f;
    Vec far = vec_with_sign(1.0f - vec_exp_bounded(-(r * t)), x);
    return vec_where_less(a, vec_set(0.92f), near, far);
}
