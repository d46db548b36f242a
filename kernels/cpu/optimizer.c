// One update of the parameters: AdamW, Lion or SGD (contract in kernels.h, formulas in kernels/update.h).
//
// One pass over parameters, gradients and moments, so memory bandwidth is the limit (28 bytes a parameter for AdamW; 16 with
// eight-bit moments). The flat array is cut into blocks that the threads take; elements do not depend on each other, and
// blocks are whole blocks of eight-bit moments, which do.
#include "kernels/cpu/cpu.h"
#include "kernels/device.h"
#include "kernels/quantize.h"
#include "kernels/update.h"

enum { OPTIMIZER_BLOCK = 1 << 15 };
_Static_assert(OPTIMIZER_BLOCK % MOMENT_BLOCK == 0, "a block of moments belongs to one thread");

// `count` neighbouring parameters of one segment.
static void update_run(OptimizerKind kind, UpdateRule rule, float scale, int64_t count, const float *restrict grads,
                       float *restrict params, float *restrict moment1, float *restrict moment2) {
    switch (kind) {
    case OPTIMIZER_ADAMW:
        for (int64_t i = 0; i < count; i++) {
            params[i] = update_adamw(rule, grads[i] * scale, params[i], &moment1[i], &moment2[i]);
        }
        break;
    case OPTIMIZER_LION:
        for (int64_t i = 0; i < count; i++) {
            params[i] = update_lion(rule, grads[i] * scale, params[i], &moment1[i]);
        }
        break;
    case OPTIMIZER_SGD:
        for (int64_t i = 0; i < count; i++) {
            params[i] = update_sgd(rule, grads[i] * scale, params[i], &moment1[i]);
        }
        break;
    }
}

typedef struct OptimizerWork {
    const OptimizerUpdate *a;
    UpdateRule rule;  // but for rate and decay
    MomentTable table1, table2;
} OptimizerWork;

// The first segment that ends behind flat element `at`.
static int64_t segment_at(const OptimizerUpdate *a, int64_t at) {
    int64_t low = 0, high = a->segment_count;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (a->segments[middle].offset + a->segments[middle].count > at) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

// Updates elements [begin, end) of the arrays; moment1[0] and moment2[0] are those of element `begin`.
static void update_range(const OptimizerWork *w, int64_t begin, int64_t end, float *moment1, float *moment2) {
    const OptimizerUpdate *a = w->a;
    // The CPU computes in fp32, so weights without masters are parameters that need no rounding.
    float *params = a->params != NULL ? a->params : a->weights;
    for (int64_t i = segment_at(a, a->first + begin); i < a->segment_count; i++) {
        const UpdateSegment *s = &a->segments[i];
        int64_t from = s->offset - a->first, to = from + s->count;
        if (from >= end) {
            break;
        }
        from = from > begin ? from : begin;
        to = to < end ? to : end;
        UpdateRule rule = w->rule;
        rule.rate = a->control->learning_rate * s->rate_scale;
        rule.decay = s->weight_decay;
        update_run(a->kind, rule, a->control->grad_scale, to - from, a->grads + from, params + from, moment1 + (from - begin),
                   moment2 != NULL ? moment2 + (from - begin) : NULL);
        if (a->params != NULL && a->weights != NULL) {
            memcpy((float *)a->weights + from, params + from, (size_t)(to - from) * sizeof(float));
        }
    }
}

static void decode(const float *value, const uint8_t *codes, float scale, int64_t count, float *out) {
    for (int64_t i = 0; i < count; i++) {
        out[i] = value[codes[i]] * scale;
    }
}

static void encode(const MomentTable *table, bool has_sign, const float *x, int64_t count, uint8_t *codes, float *scale) {
    float largest = 0;
    for (int64_t i = 0; i < count; i++) {
        float magnitude = fabsf(x[i]);
        largest = magnitude > largest ? magnitude : largest;
    }
    *scale = block_scale(largest);
    float inverse = block_inverse(*scale);
    for (int64_t i = 0; i < count; i++) {
        float y = x[i] * inverse;
        codes[i] = (uint8_t)(has_sign ? code_nearest(table->tree, y) : code_nearest_unsigned(table->tree, y));
    }
}

// One block of eight-bit moments. What lies between segments keeps its value, as far as the new scale allows.
static void update_eight_bit(const OptimizerWork *w, int64_t begin, int64_t end) {
    const OptimizerUpdate *a = w->a;
    int64_t segment = segment_at(a, a->first + begin), block = begin / MOMENT_BLOCK, count = end - begin;
    if (segment == a->segment_count || a->segments[segment].offset >= a->first + end) {
        return;
    }
    float m[MOMENT_BLOCK], v[MOMENT_BLOCK];
    uint8_t *codes1 = (uint8_t *)a->moment1 + begin, *codes2 = a->moment2 != NULL ? (uint8_t *)a->moment2 + begin : NULL;
    decode(w->table1.value, codes1, a->scale1[block], count, m);
    if (codes2 != NULL) {
        decode(w->table2.value, codes2, a->scale2[block], count, v);
    }
    update_range(w, begin, end, m, codes2 != NULL ? v : NULL);
    encode(&w->table1, true, m, count, codes1, &a->scale1[block]);
    if (codes2 != NULL) {
        encode(&w->table2, false, v, count, codes2, &a->scale2[block]);
    }
}

static void optimizer_task(void *context, int64_t task, int thread) {
    const OptimizerWork *w = context;
    const OptimizerUpdate *a = w->a;
    int64_t begin = task * OPTIMIZER_BLOCK, end = begin + OPTIMIZER_BLOCK < a->count ? begin + OPTIMIZER_BLOCK : a->count;
    if (a->moment_type == MOMENT_FP32) {
        update_range(w, begin, end, (float *)a->moment1 + begin, a->moment2 != NULL ? (float *)a->moment2 + begin : NULL);
        return;
    }
    for (int64_t at = begin; at < end; at += MOMENT_BLOCK) {
        update_eight_bit(w, at, at + MOMENT_BLOCK < end ? at + MOMENT_BLOCK : end);
    }
}

void CPU_NAME(cpu_optimizer_update)(Device *device, const OptimizerUpdate *a) {
    ensure(a->params != NULL || a->weights != NULL, "an update without parameters");
    ensure(a->first % MOMENT_BLOCK == 0, "an update from the middle of a block of moments");
    ensure((a->moment2 != NULL) == (a->kind == OPTIMIZER_ADAMW), "an update with the wrong moments");
    if (a->control->skip) {
        return;
    }
    OptimizerWork w = {.a = a,
                       .rule = {.beta1 = a->beta1,
                                .beta2 = a->beta2,
                                .epsilon = a->epsilon,
                                .correction1 = a->control->correction1,
                                .correction2 = a->control->correction2}};
    if (a->moment_type == MOMENT_8BIT) {
        moment_table_fill(true, &w.table1);
        moment_table_fill(false, &w.table2);
    }
    threads_run(device->pool, (a->count + OPTIMIZER_BLOCK - 1) / OPTIMIZER_BLOCK, optimizer_task, &w);
}
