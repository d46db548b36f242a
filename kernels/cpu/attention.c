// Causal attention with grouped queries, forward, backward and one token at a time (contract in kernels.h).
#include "core/philox.h"
#include "kernels/cpu/cpu.h"
#include "kernels/device.h"

#include <math.h>
#include <string.h>

typedef struct Work {
    const AttentionShape *s;
    const AttentionForward *forward;
    const AttentionBackward *backward;
    char *scratch;
    size_t scratch_stride;
} Work;

static float dot(const float *a, const float *b, int width) {
    float sum = 0;
    for (int i = 0; i < width; i++) {
        sum += a[i] * b[i];
    }
    return sum;
}

static void add_scaled(float *restrict y, float scale, const float *restrict x, int width) {
    for (int i = 0; i < width; i++) {
        y[i] += scale * x[i];
    }
}

static int64_t least_key(const AttentionShape *s, const int32_t *first, int64_t b, int64_t t) {
    int64_t least = first[b * s->length + t];
    if (s->window > 0 && t - s->window + 1 > least) {
        least = t - s->window + 1;
    }
    return least;
}

// The factor of dropout on one probability: 0 or 1 / (1 - dropout).
static float dropped(const AttentionShape *s, int64_t b, int64_t h, int64_t q, int64_t k) {
    if (s->dropout == 0) {
        return 1;
    }
    uint64_t length = (uint64_t)s->length;
    uint64_t index = ((s->first_sample + (uint64_t)b) * (uint64_t)s->heads + (uint64_t)h) * length * length +
                     (uint64_t)q * length + (uint64_t)k;
    return philox_unit(philox(s->seed, s->stream, index).word[0]) >= (double)s->dropout ? 1 / (1 - s->dropout) : 0;
}

static void forward_task(void *context, int64_t task, int thread) {
    const Work *w = context;
    const AttentionShape *s = w->s;
    const AttentionForward *a = w->forward;
    int64_t b = task / s->heads, h = task % s->heads, g = h / (s->heads / s->groups), length = s->length;
    int width = s->head_width;
    int64_t stride = (int64_t)(s->heads + 2 * s->groups) * width;
    const float *rows = (const float *)a->qkv + b * length * stride;
    const float *keys = rows + (s->heads + g) * width, *values = keys + (int64_t)s->groups * width;
    float *p = (float *)(void *)(w->scratch + (size_t)thread * w->scratch_stride);
    for (int64_t q = 0; q < length; q++) {
        int64_t least = least_key(s, a->first, b, q);
        float most = -INFINITY, sum = 0;
        for (int64_t k = least; k <= q; k++) {
            p[k] = s->scale * dot(rows + q * stride + h * width, keys + k * stride, width);
            most = p[k] > most ? p[k] : most;
        }
        float *out = (float *)a->out + (b * length + q) * s->heads * width + h * width;
        memset(out, 0, (size_t)width * sizeof *out);
        for (int64_t k = least; k <= q; k++) {
            p[k] = expf(p[k] - most);
            sum += p[k];
        }
        for (int64_t k = least; k <= q; k++) {
            add_scaled(out, p[k] / sum * dropped(s, b, h, q, k), values + k * stride, width);
        }
        a->lse[(b * s->heads + h) * length + q] = most + logf(sum);
    }
}

static void backward_task(void *context, int64_t task, int thread) {
    const Work *w = context;
    const AttentionShape *s = w->s;
    const AttentionBackward *a = w->backward;
    int64_t b = task / s->groups, g = task % s->groups, length = s->length, share = s->heads / s->groups;
    int width = s->head_width;
    int64_t stride = (int64_t)(s->heads + 2 * s->groups) * width;
    const float *rows = (const float *)a->qkv + b * length * stride;
    float *drows = (float *)a->dqkv + b * length * stride;
    int64_t to_key = (s->heads + g) * width, to_value = to_key + (int64_t)s->groups * width;
    for (int64_t k = 0; k < length; k++) {
        memset(drows + k * stride + to_key, 0, (size_t)width * sizeof *drows);
        memset(drows + k * stride + to_value, 0, (size_t)width * sizeof *drows);
    }
    for (int64_t h = g * share; h < (g + 1) * share; h++) {
        for (int64_t q = 0; q < length; q++) {
            const float *query = rows + q * stride + h * width;
            float *dquery = drows + q * stride + h * width;
            const float *dout = (const float *)a->dout + (b * length + q) * s->heads * width + h * width;
            const float *out = (const float *)a->out + (b * length + q) * s->heads * width + h * width;
            float lse = a->lse[(b * s->heads + h) * length + q], delta = dot(dout, out, width);
            memset(dquery, 0, (size_t)width * sizeof *dquery);
            for (int64_t k = least_key(s, a->first, b, q); k <= q; k++) {
                float p = expf(s->scale * dot(query, rows + k * stride + to_key, width) - lse);
                float kept = dropped(s, b, h, q, k);
                float ds = p * (kept * dot(dout, rows + k * stride + to_value, width) - delta) * s->scale;
                add_scaled(drows + k * stride + to_value, p * kept, dout, width);
                add_scaled(dquery, ds, rows + k * stride + to_key, width);
                add_scaled(drows + k * stride + to_key, ds, query, width);
            }
        }
    }
}

void CPU_NAME(cpu_attention_forward)(Device *device, const AttentionForward *a) {
    const AttentionShape *s = &a->shape;
    size_t bytes = ((size_t)s->length * sizeof(float) + 4095) / 4096 * 4096;
    Work w = {s, a, NULL, device_scratch(device, bytes), bytes};
    threads_run(device->pool, s->batch * s->heads, forward_task, &w);
}

void CPU_NAME(cpu_attention_backward)(Device *device, const AttentionBackward *a) {
    Work w = {&a->shape, NULL, a, NULL, 0};
    threads_run(device->pool, a->shape.batch * a->shape.groups, backward_task, &w);
}

static void decode_task(void *context, int64_t task, int thread) {
    const AttentionDecode *a = context;
    int64_t b = task / a->heads, h = task % a->heads, g = h / (a->heads / a->groups),
            stride = (int64_t)a->groups * a->head_width;
    int width = a->head_width;
    const float *q = (const float *)a->q + b * a->q_stride + h * width;
    const float *keys = (const float *)a->keys + b * a->capacity * stride + g * width;
    const float *values = (const float *)a->values + b * a->capacity * stride + g * width;
    float *out = (float *)a->out + b * a->heads * width + h * width;
    float most = -INFINITY, sum = 0;
    memset(out, 0, (size_t)width * sizeof *out);
    for (int64_t k = 0; k < a->lengths[b]; k++) {
        float score = a->scale * dot(q, keys + k * stride, width);
        if (score > most) {
            float shrink = expf(most - score);
            sum *= shrink;
            for (int i = 0; i < width; i++) {
                out[i] *= shrink;
            }
            most = score;
        }
        float p = expf(score - most);
        sum += p;
        add_scaled(out, p, values + k * stride, width);
    }
    for (int i = 0; i < width; i++) {
        out[i] /= sum;
    }
}

void CPU_NAME(cpu_attention_decode)(Device *device, const AttentionDecode *a) {
    threads_run(device->pool, a->batch * a->heads, decode_task, (void *)a);
}
