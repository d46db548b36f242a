// One update of the parameters: AdamW, Lion or SGD (formulas in kernels.h).
//
// One pass over parameters, gradients and moments, so memory bandwidth is the limit (28 bytes a parameter for AdamW).
// Segments are cut into blocks that the threads take; elements do not depend on each other.
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/parts.h"

#include <math.h>

enum { OPTIMIZER_BLOCK = 1 << 15 };

typedef struct OptimizerWork {
    const OptimizerStep *a;
    float correction1, correction2;  // 1 / (1 - beta^step)
} OptimizerWork;

static void adamw(const OptimizerWork *w, const OptimizerSegment *s, int64_t begin, int64_t count) {
    const OptimizerStep *a = w->a;
    const float *restrict grads = a->grads + begin;
    float *restrict params = a->params + begin, *restrict moment1 = a->moment1 + begin, *restrict moment2 = a->moment2 + begin;
    float b1 = a->beta1, b2 = a->beta2, c1 = w->correction1, c2 = w->correction2, epsilon = a->epsilon, scale = a->grad_scale;
    float rate = s->learning_rate, decay = s->weight_decay;
    for (int64_t i = 0; i < count; i++) {
        float g = grads[i] * scale, p = params[i];
        float m = b1 * moment1[i] + (1 - b1) * g;
        float v = b2 * moment2[i] + (1 - b2) * (g * g);
        moment1[i] = m;
        moment2[i] = v;
        params[i] = p - rate * (m * c1 / (sqrtf(v * c2) + epsilon) + decay * p);
    }
}

static void lion(const OptimizerWork *w, const OptimizerSegment *s, int64_t begin, int64_t count) {
    const OptimizerStep *a = w->a;
    const float *restrict grads = a->grads + begin;
    float *restrict params = a->params + begin, *restrict moment1 = a->moment1 + begin;
    float b1 = a->beta1, b2 = a->beta2, scale = a->grad_scale, rate = s->learning_rate, decay = s->weight_decay;
    for (int64_t i = 0; i < count; i++) {
        float g = grads[i] * scale, m = moment1[i], p = params[i];
        float mixed = b1 * m + (1 - b1) * g;
        float sign = mixed > 0 ? 1.0f : mixed < 0 ? -1.0f : mixed;  // NaN stays NaN
        moment1[i] = b2 * m + (1 - b2) * g;
        params[i] = p - rate * (sign + decay * p);
    }
}

static void sgd(const OptimizerWork *w, const OptimizerSegment *s, int64_t begin, int64_t count) {
    const OptimizerStep *a = w->a;
    const float *restrict grads = a->grads + begin;
    float *restrict params = a->params + begin, *restrict moment1 = a->moment1 + begin;
    float b1 = a->beta1, scale = a->grad_scale, rate = s->learning_rate, decay = s->weight_decay;
    for (int64_t i = 0; i < count; i++) {
        float p = params[i];
        float m = b1 * moment1[i] + grads[i] * scale;
        moment1[i] = m;
        params[i] = p - rate * (m + decay * p);
    }
}

// Block `task` of all segments, counted through.
static void optimizer_block(void *context, int64_t task, int thread) {
    const OptimizerWork *w = context;
    const OptimizerSegment *s = w->a->segments;
    int64_t blocks;
    while (task >= (blocks = (s->count + OPTIMIZER_BLOCK - 1) / OPTIMIZER_BLOCK)) {
        task -= blocks;
        s++;
    }
    int64_t begin = task * OPTIMIZER_BLOCK;
    int64_t count = s->count - begin < OPTIMIZER_BLOCK ? s->count - begin : OPTIMIZER_BLOCK;
    switch (w->a->kind) {
    case OPTIMIZER_ADAMW:
        adamw(w, s, s->offset + begin, count);
        break;
    case OPTIMIZER_LION:
        lion(w, s, s->offset + begin, count);
        break;
    case OPTIMIZER_SGD:
        sgd(w, s, s->offset + begin, count);
        break;
    }
}

void CPU_NAME(cpu_optimizer_step)(Device *device, const OptimizerStep *a) {
    OptimizerWork w = {a, (float)(1 / (1 - pow((double)a->beta1, (double)a->step))),
                       (float)(1 / (1 - pow((double)a->beta2, (double)a->step)))};
    int64_t blocks = 0;
    for (int64_t i = 0; i < a->segment_count; i++) {
        blocks += (a->segments[i].count + OPTIMIZER_BLOCK - 1) / OPTIMIZER_BLOCK;
    }
    threads_run(device->pool, blocks, optimizer_block, &w);
}
