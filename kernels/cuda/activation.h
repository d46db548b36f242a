// The activations and their slopes in fp32 (formulas: kernels.h, Activation). Used by the products' epilogues and by the
// element-wise operations, so that both give the same bits.
//
// With T = float all are within a few units in the last place of fp32 of the formula (expf and erff are the accurate ones;
// __fdividef errs by two units and gives 0 where the quotient is below 2^-126). With T of 16 bits a value errs, beside T's
// rounding, by less than a sixteenth of half a unit of T, and is cheaper (below). Both are finite wherever the formula is, to
// the largest float, and NaN where x is NaN.
//
// Instructions an element, of them MUFU in brackets (each 8 cycles of a scheduler's special functions):
//
//                          value: fp32   16 bits    slope: fp32   16 bits    both: 16 bits
//   SiLU                      17 (2)      5 (2)        24 (2)      8 (2)        9 (2)
//   GELU (tanh form)          20 (2)      7 (2)        30 (2)     12 (2)       13 (2)
//   GELU (erf form)           31 (1)     14 (1)        47 (2)     20 (2)       21 (2)
#pragma once

#include "kernels/cuda/ptx.h"

namespace BACKEND {

// Runs its last arguments with A a constant, so that the choice is made once: WITH_ACTIVATION(activation, A, f<A>(x)). In host
// or device code.
#define WITH_ACTIVATION(activation, A, ...)                                                                                    \
    switch (activation) {                                                                                                      \
    case ACTIVATION_NONE: {                                                                                                    \
        constexpr Activation A = ACTIVATION_NONE;                                                                              \
        __VA_ARGS__;                                                                                                           \
        break;                                                                                                                 \
    }                                                                                                                          \
    case ACTIVATION_GELU_TANH: {                                                                                               \
        constexpr Activation A = ACTIVATION_GELU_TANH;                                                                         \
        __VA_ARGS__;                                                                                                           \
        break;                                                                                                                 \
    }                                                                                                                          \
    case ACTIVATION_GELU_ERF: {                                                                                                \
        constexpr Activation A = ACTIVATION_GELU_ERF;                                                                          \
        __VA_ARGS__;                                                                                                           \
        break;                                                                                                                 \
    }                                                                                                                          \
    case ACTIVATION_RELU: {                                                                                                    \
        constexpr Activation A = ACTIVATION_RELU;                                                                              \
        __VA_ARGS__;                                                                                                           \
        break;                                                                                                                 \
    }                                                                                                                          \
    case ACTIVATION_SILU: {                                                                                                    \
        constexpr Activation A = ACTIVATION_SILU;                                                                              \
        __VA_ARGS__;                                                                                                           \
        break;                                                                                                                 \
    }                                                                                                                          \
    }

// ---- For fp32

// 1 / (1 + e^-v): 0 where e^-v overflows.
__device__ __forceinline__ float sigmoid(float v) {
    return __fdividef(1.0f, 1.0f + expf(-v));
}

// v with 0.5 (1 + tanh(v / 2)) = sigmoid(v): the tanh form of GELU is x sigmoid(v). One exponential and one division.
__device__ __forceinline__ float gelu_tanh_inner(float x) {
    return x * (x * x * 0.0713548162726f + 1.5957691216057308f);
}

// x between -limit and limit; NaN stays NaN, which fminf and fmaxf would not let it.
__device__ __forceinline__ float clamped(float x, float limit) {
    x = x > limit ? limit : x;
    return x < -limit ? -limit : x;
}

__device__ __forceinline__ float exact_value(Activation activation, float x) {
    switch (activation) {
    case ACTIVATION_GELU_TANH:
        return x * sigmoid(gelu_tanh_inner(x));
    case ACTIVATION_GELU_ERF:
        return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case ACTIVATION_RELU:
        return x < 0.0f ? 0.0f : x;
    case ACTIVATION_SILU:
        return x * sigmoid(x);
    default:
        return x;
    }
}

// For x s(v), s the sigmoid, the slope is
// s + x v' s (1 - s), with 1 - s = e^-v s, which does not cancel. What is beyond the clamps has a slope of 1 or 0.
__device__ __forceinline__ void exact_both(Activation activation, float x, float *value, float *slope) {
    switch (activation) {
    case ACTIVATION_GELU_TANH: {
        float near = clamped(x, 9.0f), e = expf(-gelu_tanh_inner(near)), s = __fdividef(1.0f, 1.0f + e);
        *value = x < -9.0f ? 0.0f : x * s;
        *slope = s + near * (near * near * 0.2140644488178f + 1.5957691216057308f) * (e * s) * s;
        break;
    }
    case ACTIVATION_GELU_ERF: {
        float near = clamped(x, 13.0f), gate = 0.5f * (1.0f + erff(x * 0.70710678118654752f));
        *value = x * gate;
        *slope = gate + near * (0.39894228040143268f * expf(-0.5f * near * near));
        break;
    }
    case ACTIVATION_RELU:
        *value = x < 0.0f ? 0.0f : x;
        *slope = x > 0.0f ? 1.0f : 0.0f;
        break;
    case ACTIVATION_SILU: {
        float near = clamped(x, 80.0f), e = expf(-near), s = __fdividef(1.0f, 1.0f + e);
        *value = x < -80.0f ? 0.0f : x * s;
        *slope = s + near * (e * s) * s;
        break;
    }
    default:
        *value = x;
        *slope = 1.0f;
        break;
    }
}

// ---- For 16-bit types
//
// e^-v is 2^t with -log2(e) among the constants of t, by one instruction, and so is the reciprocal; both instructions take and
// give 0 for what is below 2^-126. Relative errors: 2^-22 and 2^-23 of the instructions, and |t| 2^-23 of t's roundings.
//
// The erf form is x Phi(x), with Phi(-a) = 2^-R(a) of a polynomial R, fitted to -log2 Phi(-a) up to a = 13.2 where Phi is below
// 2^-126 (minimax, weighted by the unit of the result in the type that has the smaller one). So the tail keeps its relative
// error, which 1 + erf(x) loses, and x > 0 follows from Phi(x) = 1 - Phi(-x).

// 1 / (1 + 2^t).
__device__ __forceinline__ float logistic2(float t) {
    return reciprocal_fast(1.0f + exp2_fast(t));
}

// 2^t = e^-v of the tanh form of GELU.
__device__ __forceinline__ float gelu_tanh_exponent(float x) {
    return x * (x * x * -0.102943239f + -2.30220819f);
}

// 2^-R(a).
__device__ __forceinline__ float normal_tail(float a) {
    float r = -0x1.29273ap-29f;
    r = r * a + 0x1.4d43a6p-23f;
    r = r * a + -0x1.47e6fap-18f;
    r = r * a + 0x1.770434p-14f;
    r = r * a + -0x1.179af6p-10f;
    r = r * a + 0x1.22eca2p-7f;
    r = r * a + -0x1.be7e34p-5f;
    r = r * a + -0x1.d5129ep-2f;
    r = r * a + -0x1.26bf10p+0f;
    r = r * a + -0x1.fffed2p-1f;
    return exp2_fast(r);
}

__device__ __forceinline__ float short_value(Activation activation, float x) {
    switch (activation) {
    case ACTIVATION_GELU_TANH:
        return x * logistic2(gelu_tanh_exponent(x));
    case ACTIVATION_GELU_ERF: {
        float a = min_or_nan(fabsf(x), 13.2f);
        return fmaxf(x, 0.0f) - a * normal_tail(a);
    }
    case ACTIVATION_SILU:
        return x * logistic2(x * -1.44269504f);
    default:
        return exact_value(activation, x);
    }
}

// Beyond the clamps 2^t is infinite or 0 and s is 0 or 1. s (1 - s) = s - s s is one rounding of the exact number.
__device__ __forceinline__ void short_both(Activation activation, float x, float *value, float *slope) {
    switch (activation) {
    case ACTIVATION_GELU_TANH: {
        float low = max_or_nan(x, -10.25f), near = min_or_nan(low, 10.25f), s = logistic2(gelu_tanh_exponent(near));
        *value = low * s;
        *slope = s + (s - s * s) * near * (near * near * 0.2140644488178f + 1.5957691216057308f);
        break;
    }
    case ACTIVATION_GELU_ERF: {
        float a = min_or_nan(fabsf(x), 13.2f), tail = normal_tail(a);
        float below = tail - a * (0.39894228040143268f * exp2_fast(a * (a * -0.721347520f)));  // the slope at -a
        *value = fmaxf(x, 0.0f) - a * tail;
        *slope = x > 0.0f ? 1.0f - below : below;
        break;
    }
    case ACTIVATION_SILU: {
        float low = max_or_nan(x, -90.0f), near = min_or_nan(low, 90.0f), s = logistic2(near * -1.44269504f);
        *value = low * s;
        *slope = s + (s - s * s) * near;
        break;
    }
    default:
        exact_both(activation, x, value, slope);
        break;
    }
}

// ---- For products and element-wise operations that compute in T

// activation(x).
template <typename T> __device__ __forceinline__ float activation_value(Activation activation, float x) {
    if constexpr (sizeof(T) == sizeof(float)) {
        return exact_value(activation, x);
    } else {
        return short_value(activation, x);
    }
}

// activation(x) and d activation(x) / dx; the slope of ReLU at 0 is 0.
template <typename T>
__device__ __forceinline__ void activation_both(Activation activation, float x, float *value, float *slope) {
    if constexpr (sizeof(T) == sizeof(float)) {
        exact_both(activation, x, value, slope);
    } else {
        short_both(activation, x, value, slope);
    }
}

// d activation(x) / dx alone.
template <typename T> __device__ __forceinline__ float activation_slope(Activation activation, float x) {
    float value, slope;
    activation_both<T>(activation, x, &value, &slope);
    return slope;
}

}  // namespace BACKEND
