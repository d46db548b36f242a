// What the CPU and cards compute alike at the end of a step: the decision about the update, and the update of one parameter
// (contracts in kernels.h).
#pragma once

#include "kernels/kernels.h"

#include <math.h>

#ifdef __CUDACC__
#define UPDATE_FUNCTION static inline __host__ __device__
#else
#define UPDATE_FUNCTION static inline
#endif

enum { LOSS_SCALE_PATIENCE = 2000 };  // good steps before the loss scale doubles

UPDATE_FUNCTION void step_decide_control(const StepDecide *a, StepControl *c) {
    double mean = a->batch_weight / c->weight_sum;
    double norm = sqrt(c->grad_squares) * mean / (double)c->loss_scale;
    c->grad_norm = norm;
    c->skip = !(norm >= 0 && norm <= 1.7976931348623157e308 && c->weight_sum > 0);
    if (c->skip) {
        c->grad_scale = 0;
        c->skipped++;
        c->good_steps = 0;
        if (a->dynamic_scale && c->loss_scale > 1) {
            c->loss_scale = c->loss_scale > 2 ? c->loss_scale / 2 : 1;
        } else {
            c->skipped_in_a_row++;
        }
        return;
    }
    double clip = (double)a->clip, factor = clip > 0 && norm > clip ? clip / norm : 1;
    c->grad_scale = (float)(mean / (double)c->loss_scale * factor);
    c->updates++;
    c->correction1 = (float)(1 / (1 - pow((double)a->beta1, (double)c->updates)));
    c->correction2 = (float)(1 / (1 - pow((double)a->beta2, (double)c->updates)));
    c->skipped_in_a_row = 0;
    c->good_steps++;
    if (a->dynamic_scale && c->good_steps >= LOSS_SCALE_PATIENCE) {
        c->loss_scale = c->loss_scale < 8388608.0f ? c->loss_scale * 2 : 16777216.0f;
        c->good_steps = 0;
    }
}

// What all parameters of a segment share.
typedef struct UpdateRule {
    float beta1, beta2, epsilon, correction1, correction2, rate, decay;
} UpdateRule;

// Each returns the new parameter for p with gradient g.
UPDATE_FUNCTION float update_adamw(UpdateRule u, float g, float p, float *moment1, float *moment2) {
    float m = u.beta1 * *moment1 + (1 - u.beta1) * g;
    float v = u.beta2 * *moment2 + (1 - u.beta2) * (g * g);
    *moment1 = m;
    *moment2 = v;
    return p - u.rate * (m * u.correction1 / (sqrtf(v * u.correction2) + u.epsilon) + u.decay * p);
}
UPDATE_FUNCTION float update_lion(UpdateRule u, float g, float p, float *moment1) {
    float m = *moment1, mixed = u.beta1 * m + (1 - u.beta1) * g;
    float sign = mixed > 0 ? 1.0f : mixed < 0 ? -1.0f : mixed;  // NaN stays NaN
    *moment1 = u.beta2 * m + (1 - u.beta2) * g;
    return p - u.rate * (sign + u.decay * p);
}
UPDATE_FUNCTION float update_sgd(UpdateRule u, float g, float p, float *moment1) {
    float m = u.beta1 * *moment1 + g;
    *moment1 = m;
    return p - u.rate * (m + u.decay * p);
}
