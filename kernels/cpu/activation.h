// The activations and their slopes on vectors (formulas: kernels.h, Activation). Used by the products' epilogues and by the
// element-wise operations, so that both give the same bits.
#pragma once

#include "kernels/cpu/vector.h"
#include "kernels/kernels.h"

// 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3): one exponential and one division.
VEC_INLINE Vec vec_gelu_tanh_gate(Vec x) {
    return vec_sigmoid(x * (x * x * 0.0713548162726f + 1.5957691216057308f));
}

// activation(x). `activation` should be a constant where speed matters, so that the choice folds away.
VEC_INLINE Vec vec_activation(Activation activation, Vec x) {
    switch (activation) {
    case ACTIVATION_GELU_TANH:
        return x * vec_gelu_tanh_gate(x);
    case ACTIVATION_GELU_ERF:
        return 0.5f * x * (1.0f + vec_erf(x * 0.70710678118654752f));
    case ACTIVATION_RELU:
        return vec_max(vec_set(0), x);
    case ACTIVATION_SILU:
        return x * vec_sigmoid(x);
    default:
        return x;
    }
}

// The slope of x s(v), s the sigmoid and v' the slope of v: s + x s (1 - s) v'. 1 - s is e^-v s, which does not cancel.
// |v| <= 87.
VEC_INLINE Vec vec_gate_slope(Vec x, Vec v, Vec v_slope) {
    Vec e = vec_exp_bounded(-v);
    Vec s = 1.0f / (1.0f + e);
    return s + x * v_slope * (e * s) * s;
}

// d activation(x) / dx; that of ReLU at 0 is 0.
VEC_INLINE Vec vec_activation_slope(Activation activation, Vec x) {
    switch (activation) {
    case ACTIVATION_GELU_TANH: {
        x = vec_min(vec_set(9.0f), vec_max(vec_set(-9.0f), x));  // beyond it is 1, or below 1e-26
        Vec square = x * x;
        return vec_gate_slope(x, x * (square * 0.0713548162726f + 1.5957691216057308f),
                              square * 0.2140644488178f + 1.5957691216057308f);
    }
    case ACTIVATION_GELU_ERF: {
        x = vec_min(vec_set(13.0f), vec_max(vec_set(-13.0f), x));
        Vec density = vec_exp_bounded(x * x * -0.5f) * 0.39894228040143268f;
        return 0.5f * (1.0f + vec_erf(x * 0.70710678118654752f)) + x * density;
    }
    case ACTIVATION_RELU:
        return vec_where_less(vec_set(0), x, vec_set(1.0f), vec_set(0));
    case ACTIVATION_SILU:
        x = vec_min(vec_set(80.0f), vec_max(vec_set(-80.0f), x));
        return vec_gate_slope(x, x, vec_set(1.0f));
    default:
        return vec_set(1.0f);
    }
}
