// One update of the parameters: AdamW, Lion or SGD (contract in kernels.h, formulas in kernels/update.h).
//
// One pass over parameters, gradients and moments, so memory bandwidth is the limit (28 bytes a parameter for AdamW; 16 with
// eight-bit moments). The optimizer's state is cut into blocks that the threads take; elements do not depend on each other, and
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
    CodeTable table1, table2;
} OptimizerWork;

// The first segment that ends behind element `at` of the state.
static int64_t segment_at(const OptimizerUpdate *a, int64_t at) {
    int64_t low = 0, high = a->segment_count;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (a->segments[middle].state + a->segments[middle].count > at) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

// Updates elements [from, from + count) of a segment; moment1[0] and moment2[0] are those of element `from`.
static void update_part(const OptimizerWork *w, const UpdateSegment *s, int64_t from, int64_t count, float *moment1,
                        float *moment2) {
    const OptimizerUpdate *a = w->a;
    // The CPU computes in fp32, so weights without masters need no rounding.
    float *weights = (float *)a->weights + s->weight + from, *params = weights;
    if (a->masters != NULL) {
        params = a->masters + s->state + from;
    }
    UpdateRule rule = w->rule;
    rule.rate = a->control->learning_rate * s->rate_scale;
    rule.decay = s->weight_decay;
    update_run(a->kind, rule, a->control->grad_scale, count, a->grads + s->gradient + from, params, moment1, moment2);
    if (params != weights) {
        memcpy(weights, params, (size_t)count * sizeof *weights);
    }
}

// The same of at most one block of eight-bit moments, from its start.
static void update_eight_bit(const OptimizerWork *w, const UpdateSegment *s, int64_t from, int64_t count) {
    const OptimizerUpdate *a = w->a;
    int64_t at = s->state + from, block = at / MOMENT_BLOCK;
    float m[MOMENT_BLOCK], v[MOMENT_BLOCK];
    uint8_t *codes1 = (uint8_t *)a->moment1 + at, *codes2 = a->moment2 != NULL ? (uint8_t *)a->moment2 + at : NULL;
    block_decode(&w->table1, codes1, a->scale1[block], count, m);
    if (codes2 != NULL) {
        block_decode(&w->table2, codes2, a->scale2[block], count, v);
    }
    update_part(w, s, from, count, m, codes2 != NULL ? v : NULL);
    block_encode(&w->table1, m, count, codes1, &a->scale1[block]);
    if (codes2 != NULL) {
        block_encode(&w->table2, v, count, codes2, &a->scale2[block]);
    }
}

static void optimizer_task(void *context, int64_t task, int thread) {
    const OptimizerWork *w = context;
    const OptimizerUpdate *a = w->a;
    int64_t begin = task * OPTIMIZER_BLOCK, end = begin + OPTIMIZER_BLOCK;
    const UpdateSegment *last = a->segments + a->segment_count;
    for (const UpdateSegment *s = a->segments + segment_at(a, begin); s < last && s->state < end; s++) {
        int64_t from = s->state < begin ? begin - s->state : 0, to = s->count < end - s->state ? s->count : end - s->state;
        if (a->moment_type == MOMENT_FP32) {
            float *moment1 = (float *)a->moment1 + s->state + from;
            update_part(w, s, from, to - from, moment1, a->moment2 != NULL ? (float *)a->moment2 + s->state + from : NULL);
            continue;
        }
        for (; from < to; from += MOMENT_BLOCK) {
            update_eight_bit(w, s, from, to - from < MOMENT_BLOCK ? to - from : MOMENT_BLOCK);
        }
    }
}

static void check_segments(const OptimizerUpdate *a) {
    int64_t end = 0, aligned = a->moment_type == MOMENT_8BIT ? MOMENT_BLOCK : 4;
    for (const UpdateSegment *s = a->segments; s < a->segments + a->segment_count; s++) {
        ensure((s->weight | s->gradient | (int64_t)s->random) % 4 == 0 && s->state % aligned == 0, "a segment out of line");
        ensure(s->state >= end && s->state + s->count <= a->count, "a segment outside of its place");
        end = s->state + s->count;
    }
}

void CPU_NAME(cpu_optimizer_update)(Device *device, const OptimizerUpdate *a) {
    ensure((a->moment2 != NULL) == (a->kind == OPTIMIZER_ADAMW), "an update with the wrong moments");
    ensure(a->moment_type == MOMENT_FP32 || a->count % MOMENT_BLOCK == 0, "eight-bit moments in parts of blocks");
    check_segments(a);
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
        code_table_fill(TYPE_CODE8, &w.table1);
        code_table_fill(TYPE_CODE8_UNSIGNED, &w.table2);
    }
    threads_run(device->pool, (a->count + OPTIMIZER_BLOCK - 1) / OPTIMIZER_BLOCK, optimizer_task, &w);
}
