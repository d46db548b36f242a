// What happens to the sums of a matrix product on their way to memory (ProductEpilogue in matmul.h). Device code.
//
// A thread brings W adjacent columns of one row in registers, W a power of two up to 8 and `column` a multiple of W. All of
// these take a row < M and a column < N; columns beyond N are left alone. Each thread reads what it needs of residual, pre and
// C just before it writes the same place, so that these may be the same memory.
//
//   product_finish         from the sum to memory, for all epilogues but EPILOGUE_GATED
//   product_finish_gated   the same for EPILOGUE_GATED, from two sums
//
// or in two steps, for a body that stores C by other means: product_value(_gated), then its own store. Where the epilogue or
// the activation is known to the compiler, its choice folds away.
#pragma once

#include "kernels/cuda/activation.h"
#include "kernels/cuda/matmul.h"

namespace BACKEND {

// W elements as the largest words that their alignment allows.
template <typename T, int W> __device__ __forceinline__ void run_copy(T *to, const T *from) {
    constexpr int BYTES = W * (int)sizeof(T);
    if constexpr (BYTES % 16 == 0) {
#pragma unroll
        for (int i = 0; i < BYTES / 16; i++) {
            ((uint4 *)to)[i] = ((const uint4 *)from)[i];
        }
    } else if constexpr (BYTES == 8) {
        *(uint2 *)to = *(const uint2 *)from;
    } else if constexpr (BYTES == 4) {
        *(uint32_t *)to = *(const uint32_t *)from;
    } else {
        *to = *from;
    }
}

// x = W elements from a place on, of which `count` are there; at once where `aligned`, as the place is, and all are there.
template <typename T, int W>
__device__ __forceinline__ void run_load(const T *from, bool aligned, int64_t count, float (&x)[W]) {
    if (aligned && W <= count) {
        alignas(16) T run[W];
        run_copy<T, W>(run, from);
#pragma unroll
        for (int i = 0; i < W; i++) {
            x[i] = to_float(run[i]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < W; i++) {
            x[i] = i < count ? to_float(from[i]) : 0.0f;
        }
    }
}

// x = columns column .. + W of a row of N columns.
template <typename T, int W>
__device__ __forceinline__ void run_load(const Product &p, const void *row, int64_t column, float (&x)[W]) {
    run_load<T, W>((const T *)row + column, p.aligned, p.n - column, x);
}

template <typename T, int W>
__device__ __forceinline__ void run_store(const Product &p, void *row, int64_t column, const float (&x)[W]) {
    T *to = (T *)row + column;
    if (p.aligned && column + W <= p.n) {
        alignas(16) T run[W];
#pragma unroll
        for (int i = 0; i < W; i++) {
            run[i] = from_float<T>(x[i]);
        }
        run_copy<T, W>(to, run);
    } else {
#pragma unroll
        for (int i = 0; i < W; i++) {
            if (column + i < p.n) {
                to[i] = from_float<T>(x[i]);
            }
        }
    }
}

// Adds columns of a row that may be NULL.
template <typename T, int W>
__device__ __forceinline__ void run_add(const Product &p, const void *row, int64_t column, float (&x)[W]) {
    float more[W];
    run_load<T, W>(p, row, column, more);
#pragma unroll
    for (int i = 0; i < W; i++) {
        x[i] += more[i];
    }
}

// C = x, or C += x.
template <typename T, int W>
__device__ __forceinline__ void product_store(const Product &p, int64_t row, int64_t column, float (&x)[W]) {
    if (p.float_output) {
        float *c = (float *)p.c + row * p.c_stride;
        if (p.accumulate) {
            run_add<float, W>(p, c, column, x);
        }
        run_store<float, W>(p, c, column, x);
    } else {
        T *c = (T *)p.c + row * p.c_stride;
        if (p.accumulate) {
            run_add<T, W>(p, c, column, x);
        }
        run_store<T, W>(p, c, column, x);
    }
}

// EPILOGUE_FORWARD and EPILOGUE_BACKWARD: from the sum to the value that product_store takes; writes pre in the forward pass.
template <typename T, int W>
__device__ __forceinline__ void product_value(const Product &p, ProductEpilogue epilogue, Activation activation, int64_t row,
                                              int64_t column, float (&x)[W]) {
    T *pre = (T *)p.pre + row * p.pre_stride;
    if (epilogue == EPILOGUE_FORWARD) {
        if (p.bias != NULL) {
            run_add<T, W>(p, p.bias, column, x);
        }
        if (p.pre != NULL) {
            run_store<T, W>(p, pre, column, x);
        }
#pragma unroll
        for (int i = 0; i < W; i++) {
            x[i] = activation_value<T>(activation, x[i]);
        }
        if (p.residual != NULL) {
            run_add<T, W>(p, (const T *)p.residual + row * p.c_stride, column, x);
        }
    } else if (activation != ACTIVATION_NONE) {
        float at[W];
        run_load<T, W>(p, pre, column, at);
#pragma unroll
        for (int i = 0; i < W; i++) {
            x[i] *= activation_slope<T>(activation, at[i]);
        }
    }
}

// EPILOGUE_GATED: from both sums to the value, in `gate`; writes pre.
template <typename T, int W>
__device__ __forceinline__ void product_value_gated(const Product &p, Activation activation, int64_t row, int64_t column,
                                                    float (&gate)[W], float (&value)[W]) {
    if (p.bias != NULL) {
        run_add<T, W>(p, p.bias, column, gate);
        run_add<T, W>(p, (const T *)p.bias + p.n, column, value);
    }
    if (p.pre != NULL) {
        T *pre = (T *)p.pre + row * p.pre_stride;
        run_store<T, W>(p, pre, column, gate);
        run_store<T, W>(p, pre + p.n, column, value);
    }
#pragma unroll
    for (int i = 0; i < W; i++) {
        gate[i] = activation_value<T>(activation, gate[i]) * value[i];
    }
    if (p.residual != NULL) {
        run_add<T, W>(p, (const T *)p.residual + row * p.c_stride, column, gate);
    }
}

// EPILOGUE_GATED_BACKWARD: from the sum to the gradients of the gate (in x) and of the value it is applied to.
template <typename T, int W>
__device__ __forceinline__ void product_value_gated_backward(const Product &p, Activation activation, int64_t row,
                                                             int64_t column, float (&x)[W], float (&dvalue)[W]) {
    const T *pre = (const T *)p.pre + row * p.pre_stride;
    float gate[W], value[W];
    run_load<T, W>(p, pre, column, gate);
    run_load<T, W>(p, pre + p.n, column, value);
#pragma unroll
    for (int i = 0; i < W; i++) {
        float activated, slope;
        activation_both<T>(activation, gate[i], &activated, &slope);
        dvalue[i] = x[i] * activated;
        x[i] *= value[i] * slope;
    }
}

template <typename T, int W>
__device__ __forceinline__ void product_finish(const Product &p, ProductEpilogue epilogue, Activation activation, int64_t row,
                                               int64_t column, float (&x)[W]) {
    if (epilogue == EPILOGUE_GATED_BACKWARD) {
        float dvalue[W];
        product_value_gated_backward<T, W>(p, activation, row, column, x, dvalue);
        T *c = (T *)p.c + row * p.c_stride;
        run_store<T, W>(p, c, column, x);
        run_store<T, W>(p, c + p.n, column, dvalue);
    } else {
        product_value<T, W>(p, epilogue, activation, row, column, x);
        product_store<T, W>(p, row, column, x);
    }
}

template <typename T, int W>
__device__ __forceinline__ void product_finish_gated(const Product &p, Activation activation, int64_t row, int64_t column,
                                                     float (&gate)[W], float (&value)[W]) {
    product_value_gated<T, W>(p, activation, row, column, gate, value);
    product_store<T, W>(p, row, column, gate);
}

}  // namespace BACKEND
