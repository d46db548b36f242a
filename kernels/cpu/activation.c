// Activations and gated units on flat arrays (formulas in kernels.h; vectors and slopes in activation.h).
//
// Each loop is written once for any activation and made constant by a switch outside of it.
#include "kernels/cpu/activation.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/parts.h"

// Calls step(activation, ...) with a constant activation.
#define FOR_ACTIVATION(activation, step, ...)                                                                                  \
    switch (activation) {                                                                                                      \
    case ACTIVATION_NONE:                                                                                                      \
        step(ACTIVATION_NONE, __VA_ARGS__);                                                                                    \
        break;                                                                                                                 \
    case ACTIVATION_GELU_TANH:                                                                                                 \
        step(ACTIVATION_GELU_TANH, __VA_ARGS__);                                                                               \
        break;                                                                                                                 \
    case ACTIVATION_GELU_ERF:                                                                                                  \
        step(ACTIVATION_GELU_ERF, __VA_ARGS__);                                                                                \
        break;                                                                                                                 \
    case ACTIVATION_RELU:                                                                                                      \
        step(ACTIVATION_RELU, __VA_ARGS__);                                                                                    \
        break;                                                                                                                 \
    case ACTIVATION_SILU:                                                                                                      \
        step(ACTIVATION_SILU, __VA_ARGS__);                                                                                    \
        break;                                                                                                                 \
    }

typedef struct ActivationWork {
    const ActivationForward *a;
    int64_t parts;
} ActivationWork;

VEC_INLINE void activate(Activation activation, const float *x, float *y, int64_t count) {
    int64_t i = 0;
    for (; i + VEC_LANES <= count; i += VEC_LANES) {
        vec_store(y + i, vec_activation(activation, vec_load(x + i)));
    }
    if (i < count) {
        vec_store_partial(y + i, vec_activation(activation, vec_load_partial(x + i, count - i)), count - i);
    }
}

static void activation_part(void *context, int64_t task, int thread) {
    const ActivationWork *w = context;
    const ActivationForward *a = w->a;
    Range range = range_part(a->count, 1024, w->parts, task);
    const float *x = (const float *)a->x + range.begin;
    float *y = (float *)a->y + range.begin;
    FOR_ACTIVATION(a->activation, activate, x, y, range.end - range.begin)
}

void CPU_NAME(cpu_activation_forward)(Device *device, const ActivationForward *a) {
    ActivationWork w = {a, part_count(device, a->count, 1)};
    threads_run(device->pool, w.parts, activation_part, &w);
}

typedef struct GatedWork {
    const GatedForward *a;
    int64_t parts;
} GatedWork;

VEC_INLINE void gate_row(Activation activation, const float *gate, const float *up, float *y, int64_t width) {
    int64_t c = 0;
    for (; c + VEC_LANES <= width; c += VEC_LANES) {
        vec_store(y + c, vec_activation(activation, vec_load(gate + c)) * vec_load(up + c));
    }
    if (c < width) {
        int64_t left = width - c;
        Vec product = vec_activation(activation, vec_load_partial(gate + c, left)) * vec_load_partial(up + c, left);
        vec_store_partial(y + c, product, left);
    }
}

static void gated_part(void *context, int64_t task, int thread) {
    const GatedWork *w = context;
    const GatedForward *a = w->a;
    Range range = range_part(a->rows, 1, w->parts, task);
    for (int64_t r = range.begin; r < range.end; r++) {
        const float *gate = (const float *)a->pre + r * 2 * a->width, *up = gate + a->width;
        float *y = (float *)a->y + r * a->width;
        FOR_ACTIVATION(a->activation, gate_row, gate, up, y, a->width)
    }
}

void CPU_NAME(cpu_gated_forward)(Device *device, const GatedForward *a) {
    GatedWork w = {a, part_count(device, a->rows, a->width)};
    threads_run(device->pool, w.parts, gated_part, &w);
}

typedef struct GatedBackwardWork {
    const GatedBackward *a;
    int64_t parts;
} GatedBackwardWork;

// activation(x) and its slope. For SiLU both come from one exponential.
VEC_INLINE void value_and_slope(Activation activation, Vec x, Vec *value, Vec *slope) {
    if (activation == ACTIVATION_SILU) {
        Vec near = vec_min(vec_set(80.0f), vec_max(vec_set(-80.0f), x)), e = vec_exp_bounded(-near), s = 1.0f / (1.0f + e);
        *value = x * s;
        *slope = s + near * (e * s) * s;
    } else {
        *value = vec_activation(activation, x);
        *slope = vec_activation_slope(activation, x);
    }
}

// dgate = dy up activation'(gate); dup = dy activation(gate).
VEC_INLINE void gate_row_backward(Activation activation, const float *dy, const float *gate, const float *up, float *dgate,
                                  float *dup, int64_t width) {
    int64_t c = 0;
    Vec value, slope;
    for (; c + VEC_LANES <= width; c += VEC_LANES) {
        Vec d = vec_load(dy + c);
        value_and_slope(activation, vec_load(gate + c), &value, &slope);
        vec_store(dgate + c, d * vec_load(up + c) * slope);
        vec_store(dup + c, d * value);
    }
    if (c < width) {
        int64_t left = width - c;
        Vec d = vec_load_partial(dy + c, left);
        value_and_slope(activation, vec_load_partial(gate + c, left), &value, &slope);
        vec_store_partial(dgate + c, d * vec_load_partial(up + c, left) * slope, left);
        vec_store_partial(dup + c, d * value, left);
    }
}

static void gated_backward_part(void *context, int64_t task, int thread) {
    const GatedBackwardWork *w = context;
    const GatedBackward *a = w->a;
    Range range = range_part(a->rows, 1, w->parts, task);
    for (int64_t r = range.begin; r < range.end; r++) {
        const float *gate = (const float *)a->pre + r * 2 * a->width, *up = gate + a->width;
        const float *dy = (const float *)a->dy + r * a->width;
        float *dgate = (float *)a->dpre + r * 2 * a->width, *dup = dgate + a->width;
        FOR_ACTIVATION(a->activation, gate_row_backward, dy, gate, up, dgate, dup, a->width)
    }
}

void CPU_NAME(cpu_gated_backward)(Device *device, const GatedBackward *a) {
    GatedBackwardWork w = {a, part_count(device, a->rows, 2 * a->width)};
    threads_run(device->pool, w.parts, gated_backward_part, &w);
}
