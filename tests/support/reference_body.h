// The body of reference64.c and reference32.c: every formula of kernels/kernels.h in the plainest form, for REAL = double and
// float; STORED(x) is x as it is kept in the compute type on the way (probabilities, say). No blocking, no vectors, sums in the
// order of the indices.
#include "core/memory.h"
#include "core/philox.h"
#include "tests/support/reference.h"

#include <tgmath.h>

#define R(constant) ((REAL)(constant))

static REAL activated(Activation activation, REAL x) {
    switch (activation) {
    case ACTIVATION_NONE:
        return x;
    case ACTIVATION_GELU_TANH:
        return R(0.5) * x * (1 + tanh(R(0.79788456080286535588) * (x + R(0.044715) * x * x * x)));
    case ACTIVATION_GELU_ERF:
        return R(0.5) * x * (1 + erf(x * R(0.70710678118654752440)));
    case ACTIVATION_RELU:
        return x > 0 ? x : 0;
    case ACTIVATION_SILU:
        return x / (1 + exp(-x));
    }
    return 0;
}

static REAL slope(Activation activation, REAL x) {
    switch (activation) {
    case ACTIVATION_NONE:
        return 1;
    case ACTIVATION_GELU_TANH: {
        REAL c = R(0.79788456080286535588), h = tanh(c * (x + R(0.044715) * x * x * x));
        return R(0.5) * (1 + h) + R(0.5) * x * (1 - h * h) * c * (1 + R(0.134145) * x * x);
    }
    case ACTIVATION_GELU_ERF:
        return R(0.5) * (1 + erf(x * R(0.70710678118654752440))) + x * R(0.39894228040143267794) * exp(R(-0.5) * x * x);
    case ACTIVATION_RELU:
        return x > 0 ? 1 : 0;
    case ACTIVATION_SILU: {
        REAL s = 1 / (1 + exp(-x));
        return s * (1 + x * (1 - s));
    }
    }
    return 0;
}

// The factor of dropout on the probability of the query at position q and key k, for head h in sequence b.
static REAL kept(const AttentionShape *s, int64_t b, int64_t h, int64_t q, int64_t k) {
    if (s->dropout == 0) {
        return 1;
    }
    uint64_t t = (uint64_t)(s->length > 0 ? s->length : s->keys), start = (uint64_t)s->key_first;
    uint64_t heads = (uint64_t)(s->all_heads > 0 ? s->all_heads : s->heads);
    uint64_t head = (s->first_sample + (uint64_t)b) * heads + (uint64_t)s->first_head + (uint64_t)h;
    Philox r = philox(s->seed, s->stream, head * t * t + (start + (uint64_t)q) * t + start + (uint64_t)k);
    return philox_unit(r.word[0]) >= (double)s->dropout ? 1 / (1 - R(s->dropout)) : 0;
}

// Of one head of a sequence: what it reads, and the position of its query 0.
typedef struct REFERENCE(Head) {
    const REAL *q, *k, *v;
    const int32_t *first;  // may be NULL
    int64_t keys, offset;
    REAL slope;
} REFERENCE(Head);

static REFERENCE(Head) head_of(const AttentionShape *s, const AttentionRows *in, REAL **t, int64_t b, int64_t h) {
    int64_t g = h / (s->heads / s->groups);
    REFERENCE(Head)
    head = {(const REAL *)in->q + b * in->q_stride.sequence + h * s->head_width,
            (const REAL *)in->k + b * in->k_stride.sequence + g * s->head_width,
            (const REAL *)in->v + b * in->v_stride.sequence + g * s->head_width,
            s->first != NULL ? s->first + b * s->queries : NULL,
            s->keys,
            s->offset,
            s->slopes != NULL ? t[5][h] : 0};
    if (s->key_lengths != NULL) {
        head.keys = s->key_lengths[b];
        head.offset = head.keys - s->queries;
    }
    return head;
}

// The probabilities of query t over all keys (0 where it may not look), from the log-sum-exp where it is known (`saved`), and
// the log-sum-exp. steep[k] is what the score gains for each unit of the product q.k; may be NULL.
static REAL probabilities(const AttentionShape *s, const AttentionRows *in, const REFERENCE(Head) * head, int64_t t,
                          const REAL *saved, REAL *p, REAL *steep) {
    REAL most = -R(INFINITY), sum = 0;
    int64_t position = head->offset + t;
    const REAL *query = head->q + t * in->q_stride.token;
    for (int64_t k = 0; k < head->keys; k++) {
        p[k] = -R(INFINITY);
        if (k > position || (head->first != NULL && k < head->first[t]) || (s->window > 0 && k <= position - s->window)) {
            continue;
        }
        REAL score = 0, gain = R(s->scale);
        for (int d = 0; d < s->head_width; d++) {
            score += query[d] * head->k[k * in->k_stride.token + d];
        }
        score *= R(s->scale);
        if (s->softcap > 0) {
            REAL x = tanh(score / R(s->softcap));
            score = R(s->softcap) * x;
            gain *= 1 - x * x;
        }
        p[k] = score + head->slope * R(k - position);
        if (steep != NULL) {
            steep[k] = gain;
        }
        most = p[k] > most ? p[k] : most;
    }
    bool blind = most == -R(INFINITY);
    if (saved != NULL) {
        most = *saved;
    }
    for (int64_t k = 0; k < head->keys; k++) {
        p[k] = blind || p[k] == -R(INFINITY) ? 0 : exp(p[k] - most);
        sum += p[k];
    }
    for (int64_t k = 0; k < head->keys && saved == NULL && !blind; k++) {
        p[k] /= sum;
    }
    return blind ? most : most + log(sum);
}

void REFERENCE(attention_forward)(const OpCase *c, REAL **t) {
    AttentionForward a = op_attention_forward(c, (void **)t, sizeof(REAL));
    const AttentionShape *s = &a.shape;
    int64_t width = s->head_width;
    REAL *p = memory_new((size_t)s->keys + 1, sizeof *p);
    for (int64_t b = 0; b < s->batch; b++) {
        for (int64_t h = 0; h < s->heads; h++) {
            REFERENCE(Head) head = head_of(s, &a.in, t, b, h);
            for (int64_t q = 0; q < s->queries; q++) {
                REAL lse = probabilities(s, &a.in, &head, q, NULL, p, NULL);
                if (a.lse != NULL) {
                    t[7][(b * s->heads + h) * s->queries + q] = lse;
                }
                REAL *out = t[6] + ((b * s->queries + q) * s->heads + h) * width;
                for (int64_t d = 0; d < width; d++) {
                    out[d] = 0;
                }
                for (int64_t k = 0; k < head.keys; k++) {
                    REAL weight = p[k] > 0 ? STORED(p[k] * kept(s, b, h, head.offset + q, k)) : 0;
                    for (int64_t d = 0; d < width && weight > 0; d++) {
                        out[d] += weight * head.v[k * a.in.v_stride.token + d];
                    }
                }
            }
        }
    }
    free(p);
}

void REFERENCE(attention_backward)(const OpCase *c, REAL **t) {
    AttentionBackward a = op_attention_backward(c, (void **)t, sizeof(REAL));
    const AttentionShape *s = &a.shape;
    const AttentionRows *to = &a.gradients;
    int64_t width = s->head_width;
    OpTensor tensors[OP_TENSORS] = {0};
    c->kind->tensors(c, tensors);
    REAL *p = memory_new((size_t)s->keys + 1, sizeof *p), *steep = memory_new((size_t)s->keys + 1, sizeof *steep);
    for (int gradient = 9; gradient < 12; gradient++) {
        for (int64_t i = 0; i < tensors[gradient].count; i++) {
            t[gradient][i] = 0;
        }
    }
    for (int64_t b = 0; b < s->batch; b++) {
        for (int64_t h = 0; h < s->heads; h++) {
            REFERENCE(Head) head = head_of(s, &a.in, t, b, h);
            int64_t g = h / (s->heads / s->groups);
            REAL *dq = (REAL *)to->q + b * to->q_stride.sequence + h * width;
            REAL *dk = (REAL *)to->k + b * to->k_stride.sequence + g * width;
            REAL *dv = (REAL *)to->v + b * to->v_stride.sequence + g * width;
            for (int64_t q = 0; q < s->queries; q++) {
                int64_t at = ((b * s->queries + q) * s->heads + h) * width;
                const REAL *dout = t[8] + at, *out = t[6] + at;
                probabilities(s, &a.in, &head, q, &t[7][(b * s->heads + h) * s->queries + q], p, steep);
                REAL delta = 0;  // sum over keys of p dp, which is
                for (int64_t d = 0; d < width; d++) {
                    delta += dout[d] * out[d];
                }
                for (int64_t k = 0; k < head.keys; k++) {
                    if (p[k] == 0) {
                        continue;
                    }
                    REAL dp = 0, keep = kept(s, b, h, head.offset + q, k);
                    for (int64_t d = 0; d < width; d++) {
                        dp += dout[d] * head.v[k * a.in.v_stride.token + d];
                    }
                    REAL gain = steep[k] / R(s->scale), weight = STORED(p[k] * keep);
                    REAL ds = STORED(p[k] * (keep * dp - delta) * gain) * R(s->scale);
                    for (int64_t d = 0; d < width; d++) {
                        dv[k * to->v_stride.token + d] += weight * dout[d];
                        dq[q * to->q_stride.token + d] += ds * head.k[k * a.in.k_stride.token + d];
                        dk[k * to->k_stride.token + d] += ds * head.q[q * a.in.q_stride.token + d];
                    }
                }
            }
        }
    }
    free(steep);
    free(p);
}

void REFERENCE(attention_merge)(const OpCase *c, REAL **t) {
    const AttentionMerge *a = &c->attention_merge;
    for (int64_t row = 0; row < a->batch * a->queries * a->heads; row++) {
        int64_t h = row % a->heads, query = row / a->heads % a->queries, b = row / a->heads / a->queries;
        int64_t at = (b * a->heads + h) * a->queries + query;
        REAL mine = t[3][at], its = t[1][at], most = mine > its ? mine : its;
        if (most == -R(INFINITY)) {
            continue;
        }
        REAL lse = most + log(exp(mine - most) + exp(its - most));
        for (int64_t d = row * a->head_width; d < (row + 1) * a->head_width; d++) {
            t[2][d] = exp(mine - lse) * t[2][d] + exp(its - lse) * t[0][d];
        }
        t[3][at] = lse;
    }
}

void REFERENCE(norm_forward)(const OpCase *c, REAL **t) {
    const NormForward *a = &c->norm_forward;
    for (int64_t r = 0; r < a->rows; r++) {
        const REAL *x = t[0] + r * a->width;
        REAL mean = 0, square = 0;
        for (int64_t i = 0; i < a->width && a->add != NULL; i++) {
            t[7][r * a->width + i] = STORED(x[i] + t[6][r * a->width + i]);
        }
        x = a->add != NULL ? t[7] + r * a->width : x;
        for (int64_t i = 0; i < a->width && a->kind == NORM_LAYER; i++) {
            mean += x[i];
        }
        mean /= R(a->width);
        for (int64_t i = 0; i < a->width; i++) {
            square += (x[i] - mean) * (x[i] - mean);
        }
        REAL rstd = 1 / sqrt(square / R(a->width) + R(a->epsilon));
        for (int64_t i = 0; i < a->width; i++) {
            t[3][r * a->width + i] = (x[i] - mean) * rstd * t[1][i] + (c->bare ? 0 : t[2][i]);
        }
        if (a->kind == NORM_LAYER) {
            t[4][r] = mean;
        }
        t[5][r] = rstd;
    }
}

void REFERENCE(norm_backward)(const OpCase *c, REAL **t) {
    const NormBackward *a = &c->norm_backward;
    for (int64_t r = 0; r < a->rows; r++) {
        const REAL *dy = t[0] + r * a->width, *x = t[1] + r * a->width;
        REAL *dx = t[5] + r * a->width, mean = a->kind == NORM_LAYER ? t[3][r] : 0, rstd = t[4][r];
        REAL mean_g = 0, mean_gn = 0;
        for (int64_t i = 0; i < a->width; i++) {
            REAL n = (x[i] - mean) * rstd;
            mean_g += a->kind == NORM_LAYER ? dy[i] * t[2][i] : 0;
            mean_gn += dy[i] * t[2][i] * n;
            if (!c->frozen) {
                t[6][i] += dy[i] * n;
            }
            if (!c->bare) {
                t[7][i] += dy[i];
            }
        }
        mean_g /= R(a->width);
        mean_gn /= R(a->width);
        for (int64_t i = 0; i < a->width; i++) {
            REAL gradient = rstd * (dy[i] * t[2][i] - mean_g - (x[i] - mean) * rstd * mean_gn);
            dx[i] = a->accumulate ? dx[i] + gradient : gradient;
        }
    }
}

void REFERENCE(rotary)(const OpCase *c, REAL **t) {
    const Rotary *a = &c->rotary;
    const int32_t *positions = (const void *)t[0];
    int half = a->rotary_width / 2;
    for (int64_t r = 0; r < a->rows; r++) {
        for (int h = 0; h < a->heads; h++) {
            REAL *x = t[2] + r * a->row_stride + h * a->head_width;
            for (int i = 0; i < half; i++) {
                REAL cosine = t[1][positions[r] * a->rotary_width + i], sine = t[1][positions[r] * a->rotary_width + half + i];
                int one = a->interleaved ? 2 * i : i, two = a->interleaved ? 2 * i + 1 : i + half;
                REAL u = x[one], v = x[two];
                sine = a->inverse ? -sine : sine;
                x[one] = u * cosine - v * sine;
                x[two] = v * cosine + u * sine;
            }
        }
    }
}

void REFERENCE(activation_forward)(const OpCase *c, REAL **t) {
    for (int64_t i = 0; i < c->activation_forward.count; i++) {
        t[1][i] = activated(c->activation_forward.activation, t[0][i]);
    }
}

void REFERENCE(gated_forward)(const OpCase *c, REAL **t) {
    const GatedForward *a = &c->gated_forward;
    for (int64_t i = 0; i < a->rows * a->width; i++) {
        const REAL *gate = t[0] + i / a->width * 2 * a->width + i % a->width;
        t[1][i] = activated(a->activation, gate[0]) * gate[a->width];
    }
}

void REFERENCE(gated_backward)(const OpCase *c, REAL **t) {
    const GatedBackward *a = &c->gated_backward;
    for (int64_t i = 0; i < a->rows * a->width; i++) {
        int64_t at = i / a->width * 2 * a->width + i % a->width;
        t[2][at] = t[0][i] * t[1][at + a->width] * slope(a->activation, t[1][at]);
        t[2][at + a->width] = t[0][i] * activated(a->activation, t[1][at]);
    }
}

void REFERENCE(embedding_forward)(const OpCase *c, REAL **t) {
    const EmbeddingForward *a = &c->embedding_forward;
    const int32_t *tokens = (const void *)t[0], *positions = (const void *)t[1];
    for (int64_t r = 0; r < a->rows; r++) {
        int64_t token = tokens[r] - a->first;
        bool here = token >= 0 && token < a->vocabulary;
        for (int64_t i = 0; i < a->width; i++) {
            t[4][r * a->width + i] =
                (here ? R(a->scale) * t[2][token * a->width + i] : 0) + (c->bare ? 0 : t[3][positions[r] * a->width + i]);
        }
    }
}

void REFERENCE(embedding_backward)(const OpCase *c, REAL **t) {
    const EmbeddingBackward *a = &c->embedding_backward;
    const int32_t *tokens = (const void *)t[0], *positions = (const void *)t[1];
    for (int64_t r = 0; r < a->rows; r++) {
        int64_t token = tokens[r] - a->first;
        bool here = token >= 0 && token < a->vocabulary;
        for (int64_t i = 0; i < a->width; i++) {
            if (!c->frozen && here) {
                t[3][token * a->width + i] += R(a->scale) * t[2][r * a->width + i];
            }
            if (!c->bare) {
                t[4][positions[r] * a->width + i] += t[2][r * a->width + i];
            }
        }
    }
}

void REFERENCE(dropout)(const OpCase *c, REAL **t) {
    const Dropout *a = &c->dropout;
    for (int64_t i = 0; i < a->count; i++) {
        uint64_t index = a->first + (uint64_t)i;
        Philox r = philox(a->seed, a->stream, index / 4);
        bool keep = philox_unit(r.word[index % 4]) >= (double)a->probability;
        t[0][i] = keep ? t[0][i] / (1 - R(a->probability)) : 0;
    }
}

void REFERENCE(optimizer_update)(const OpCase *c, REAL **t) {
    const OptimizerUpdate *a = &c->optimizer_update;
    UpdateSegment segments[2];
    StepControl control = op_control(a);
    int count = op_segments(a->count, segments);
    REAL b1 = a->beta1, b2 = a->beta2;
    for (int s = 0; s < count; s++) {
        REAL rate = R(control.learning_rate) * R(segments[s].rate_scale), decay = segments[s].weight_decay;
        for (int64_t i = 0; i < segments[s].count; i++) {
            int64_t at = segments[s].state + i;
            REAL g = t[0][segments[s].gradient + i] * R(control.grad_scale), *m = &t[3][at], *v = &t[4][at];
            REAL *weight = &t[2][segments[s].weight + i], *p = c->bare ? weight : &t[1][at];
            if (a->kind == OPTIMIZER_ADAMW) {
                *m = b1 * *m + (1 - b1) * g;
                *v = b2 * *v + (1 - b2) * g * g;
                REAL root = sqrt(*v * R(control.correction2));
                *p -= rate * (*m * R(control.correction1) / (root + R(a->epsilon)) + decay * *p);
            } else if (a->kind == OPTIMIZER_LION) {
                REAL mixed = b1 * *m + (1 - b1) * g;
                *m = b2 * *m + (1 - b2) * g;
                *p -= rate * (R((mixed > 0) - (mixed < 0)) + decay * *p);
            } else {
                *m = b1 * *m + g;
                *p -= rate * (*m + decay * *p);
            }
            *weight = *p;
        }
    }
}

void REFERENCE(add)(const OpCase *c, REAL **t) {
    for (int64_t i = 0; i < c->add; i++) {
        t[1][i] += t[0][i];
    }
}

void REFERENCE(accumulate)(const OpCase *c, REAL **t) {
    for (int64_t i = 0; i < c->accumulate; i++) {
        t[1][i] += t[0][i];
    }
}

void REFERENCE(scale)(const OpCase *c, REAL **t) {
    for (int64_t i = 0; i < c->scale; i++) {
        t[0][i] *= R(op_scale);
    }
}

void REFERENCE(convert)(const OpCase *c, REAL **t) {
    for (int64_t i = 0; i < c->convert.count; i++) {
        t[1][i] = t[0][i];
    }
}

void REFERENCE(sum_parts)(const OpCase *c, REAL **t) {
    const SumParts *a = &c->sum_parts;
    for (int64_t i = 0; i < a->count; i++) {
        t[1][i] = 0;
        for (int64_t p = 0; p < a->parts; p++) {
            t[1][i] += t[0][p * a->stride + i];
        }
    }
}

void REFERENCE(copy_rows)(const OpCase *c, REAL **t) {
    const CopyRows *a = &c->copy_rows;
    for (int64_t r = 0; r < a->rows; r++) {
        for (int64_t i = 0; i < a->row_bytes / 4; i++) {
            t[1][r * a->to_stride / 4 + i] = t[0][r * a->from_stride / 4 + i];
        }
    }
}
