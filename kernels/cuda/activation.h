// The activations and their slopes in fp32 (formulas: kernels.h, Activation). Used by the products' epilogues and by the
// element-wise operations, so that both give the same bits.
//
// All are within a few units in the last place of fp32 of the formula (expf and erff are the accurate ones; __fdividef errs by
// two units and gives 0 where the quotient is below 2^-126), finite wherever the formula is, to the largest float, and NaN
// where x is NaN. Instructions an element, about: ReLU 1, SiLU and GELU (tanh form) 14, GELU (erf form) 25; slopes 8 more. An
// exact division would be a call beside its 8 instructions.
#pragma once

#include "kernels/cuda/element.h"

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

// activation(x).
__device__ __forceinline__ float activation_value(Activation activation, float x) {
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

// activation(x) and d activation(x) / dx; the slope of ReLU at 0 is 0. For x s(v), s the sigmoid, the slope is
// s + x v' s (1 - s), with 1 - s = e^-v s, which does not cancel. What is beyond the clamps has a slope of 1 or 0.
__device__ __forceinline__ void activation_both(Activation activation, float x, float *value, float *slope) {
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

// d activation(x) / dx alone.
__device__ __forceinline__ float activation_slope(Activation activation, float x) {
    float value, slope;
    activation_both(activation, x, &value, &slope);
    return slope;
}

}  // namespace BACKEND
