// Activations and gated units (formulas in kernels.h; GELU: Hendrycks & Gimpel 2016, gated units: Shazeer 2020).
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/parts.h"

#include <math.h>

static float value_of(Activation activation, float x) {
    switch (activation) {
    case ACTIVATION_NONE:
        return x;
    case ACTIVATION_GELU_TANH:
        return 0.5f * x * (1 + tanhf(0.797884560802865f * (x + 0.044715f * x * x * x)));
    case ACTIVATION_GELU_ERF:
        return 0.5f * x * (1 + erff(x * 0.707106781186548f));
    case ACTIVATION_RELU:
        return x > 0 ? x : 0;
    case ACTIVATION_SILU:
        return x / (1 + expf(-x));
    }
    return 0;
}

static float slope_of(Activation activation, float x) {
    switch (activation) {
    case ACTIVATION_NONE:
        return 1;
    case ACTIVATION_GELU_TANH: {
        float t = tanhf(0.797884560802865f * (x + 0.044715f * x * x * x));
        return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * 0.797884560802865f * (1 + 3 * 0.044715f * x * x);
    }
    case ACTIVATION_GELU_ERF:
        return 0.5f * (1 + erff(x * 0.707106781186548f)) + x * 0.398942280401433f * expf(-0.5f * x * x);
    case ACTIVATION_RELU:
        return x > 0 ? 1.0f : 0.0f;
    case ACTIVATION_SILU: {
        float s = 1 / (1 + expf(-x));
        return s * (1 + x * (1 - s));
    }
    }
    return 0;
}

typedef struct ActivationWork {
    const ActivationForward *a;
    int64_t parts;
} ActivationWork;

static void activation_part(void *context, int64_t task, int thread) {
    const ActivationWork *w = context;
    Range range = range_part(w->a->count, 1024, w->parts, task);
    const float *x = w->a->x;
    float *y = w->a->y;
    for (int64_t i = range.begin; i < range.end; i++) {
        y[i] = value_of(w->a->activation, x[i]);
    }
}

void CPU_NAME(cpu_activation_forward)(Device *device, const ActivationForward *a) {
    ActivationWork w = {a, part_count(device, a->count, 1)};
    threads_run(device->pool, w.parts, activation_part, &w);
}

typedef struct GatedWork {
    const GatedForward *a;
    int64_t parts;
} GatedWork;

static void gated_part(void *context, int64_t task, int thread) {
    const GatedWork *w = context;
    const GatedForward *a = w->a;
    Range range = range_part(a->rows, 1, w->parts, task);
    for (int64_t r = range.begin; r < range.end; r++) {
        const float *gate = (const float *)a->pre + r * 2 * a->width, *up = gate + a->width;
        float *y = (float *)a->y + r * a->width;
        for (int64_t c = 0; c < a->width; c++) {
            y[c] = value_of(a->activation, gate[c]) * up[c];
        }
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

static void gated_backward_part(void *context, int64_t task, int thread) {
    const GatedBackwardWork *w = context;
    const GatedBackward *a = w->a;
    Range range = range_part(a->rows, 1, w->parts, task);
    for (int64_t r = range.begin; r < range.end; r++) {
        const float *gate = (const float *)a->pre + r * 2 * a->width, *up = gate + a->width;
        const float *dy = (const float *)a->dy + r * a->width;
        float *dgate = (float *)a->dpre + r * 2 * a->width, *dup = dgate + a->width;
        for (int64_t c = 0; c < a->width; c++) {
            dgate[c] = dy[c] * up[c] * slope_of(a->activation, gate[c]);
            dup[c] = dy[c] * value_of(a->activation, gate[c]);
        }
    }
}

void CPU_NAME(cpu_gated_backward)(Device *device, const GatedBackward *a) {
    GatedBackwardWork w = {a, part_count(device, a->rows, 2 * a->width)};
    threads_run(device->pool, w.parts, gated_backward_part, &w);
}
