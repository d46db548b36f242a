// LayerNorm and RMSNorm, forward and backward (formulas and shapes in kernels.h).
//
// Backward, with n = (x - mean) rstd (mean 0 for RMSNorm) and g = dy weight:
//   dx = rstd (g - mean(g) - n mean(g n))        RMSNorm: without mean(g)
//   dweight += sum over rows of dy n;  dbias += sum over rows of dy
//
// The sums over rows are made in blocks of rows whose number depends on the shape alone: each block leaves its partial sums in
// scratch, and then the partial sums of a column are added in the order of the blocks. So bits do not depend on the threads.
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/parts.h"
#include "kernels/cpu/vector.h"

#include <math.h>

enum { BLOCK_ROWS = 32, MOST_BLOCKS = 32 };

typedef struct NormWork {
    const NormForward *a;
    int64_t parts;
} NormWork;

// The first `count` lanes, 0 in the others.
VEC_INLINE Vec vec_first(Vec x, int64_t count) {
    float lanes[VEC_LANES];
    vec_store(lanes, x);
    return vec_load_partial(lanes, count);
}

static float row_sum(const float *x, int64_t width) {
    Vec sum[4] = {vec_set(0), vec_set(0), vec_set(0), vec_set(0)};
    int64_t c = 0;
    for (; c + 4 * VEC_LANES <= width; c += 4 * VEC_LANES) {
        for (int i = 0; i < 4; i++) {
            sum[i] += vec_load(x + c + i * VEC_LANES);
        }
    }
    for (; c + VEC_LANES <= width; c += VEC_LANES) {
        sum[0] += vec_load(x + c);
    }
    if (c < width) {
        sum[1] += vec_load_partial(x + c, width - c);
    }
    return vec_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

static float row_squares(const float *x, float mean, int64_t width) {
    Vec sum[4] = {vec_set(0), vec_set(0), vec_set(0), vec_set(0)};
    int64_t c = 0;
    for (; c + 4 * VEC_LANES <= width; c += 4 * VEC_LANES) {
        for (int i = 0; i < 4; i++) {
            Vec d = vec_load(x + c + i * VEC_LANES) - mean;
            sum[i] += d * d;
        }
    }
    for (; c + VEC_LANES <= width; c += VEC_LANES) {
        Vec d = vec_load(x + c) - mean;
        sum[0] += d * d;
    }
    if (c < width) {
        Vec d = vec_first(vec_load_partial(x + c, width - c) - mean, width - c);
        sum[1] += d * d;
    }
    return vec_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

VEC_INLINE void normalise(const float *x, float mean, float rstd, const float *weight, const float *bias, float *y,
                          int64_t width) {
    int64_t c = 0;
    for (; c + VEC_LANES <= width; c += VEC_LANES) {
        Vec n = (vec_load(x + c) - mean) * rstd * vec_load(weight + c);
        vec_store(y + c, bias != NULL ? n + vec_load(bias + c) : n);
    }
    if (c < width) {
        int64_t left = width - c;
        Vec n = (vec_load_partial(x + c, left) - mean) * rstd * vec_load_partial(weight + c, left);
        vec_store_partial(y + c, bias != NULL ? n + vec_load_partial(bias + c, left) : n, left);
    }
}

static void norm_forward_part(void *context, int64_t task, int thread) {
    const NormWork *w = context;
    const NormForward *a = w->a;
    Range range = range_part(a->rows, 1, w->parts, task);
    for (int64_t r = range.begin; r < range.end; r++) {
        const float *x = (const float *)a->x + r * a->width;
        if (a->add != NULL) {
            const float *other = (const float *)a->add + r * a->width;
            float *sum = (float *)a->sum + r * a->width;  // may be x or other
            for (int64_t c = 0; c < a->width; c++) {
                sum[c] = x[c] + other[c];
            }
            x = sum;
        }
        float mean = 0;
        if (a->kind == NORM_LAYER) {
            mean = row_sum(x, a->width) / (float)a->width;
            a->mean[r] = mean;
        }
        float rstd = 1 / sqrtf(row_squares(x, mean, a->width) / (float)a->width + a->epsilon);
        a->rstd[r] = rstd;
        normalise(x, mean, rstd, a->weight, a->bias, (float *)a->y + r * a->width, a->width);
    }
}

void CPU_NAME(cpu_norm_forward)(Device *device, const NormForward *a) {
    NormWork w = {a, part_count(device, a->rows, a->width)};
    threads_run(device->pool, w.parts, norm_forward_part, &w);
}

typedef struct NormBackwardWork {
    const NormBackward *a;
    int64_t blocks, parts;
    float *sums;  // [blocks][2][width]: partial dweight, dbias
} NormBackwardWork;

enum { AT_ONCE = 4 };  // rows that share one walk along dweight and dbias

VEC_INLINE Vec load_some(const float *x, int64_t count) {
    return count == VEC_LANES ? vec_load(x) : vec_load_partial(x, count);
}

VEC_INLINE void store_some(float *x, Vec value, int64_t count) {
    if (count == VEC_LANES) {
        vec_store(x, value);
    } else {
        vec_store_partial(x, value, count);
    }
}

// Statistics of some rows.
typedef struct Rows {
    float mean[AT_ONCE], rstd[AT_ONCE];
    Vec g[AT_ONCE], gn[AT_ONCE];  // sums of g and g n, lane by lane
} Rows;

// Columns c .. c + count - 1: adds to the rows' sums, to dweight and to dbias.
VEC_INLINE void gather(Rows *s, const int rows, const float *dy, const float *x, int64_t width, const float *weight,
                       float *dweight, float *dbias, int64_t c, int64_t count) {
    Vec w = load_some(weight + c, count), dw = load_some(dweight + c, count), db = load_some(dbias + c, count);
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
        Vec d = load_some(dy + i * width + c, count), n = (load_some(x + i * width + c, count) - s->mean[i]) * s->rstd[i];
        Vec g = d * w;  // 0 in lanes beyond the row
        s->g[i] += g;
        s->gn[i] += g * n;
        dw += d * n;
        db += d;
    }
    store_some(dweight + c, dw, count);
    store_some(dbias + c, db, count);
}

VEC_INLINE void scatter(float mean, float rstd, float mean_g, float mean_gn, const float *dy, const float *x,
                        const float *weight, float *dx, const bool accumulate, int64_t count) {
    Vec n = (load_some(x, count) - mean) * rstd;
    Vec d = rstd * (load_some(dy, count) * load_some(weight, count) - mean_g - n * mean_gn);
    store_some(dx, accumulate ? load_some(dx, count) + d : d, count);
}

VEC_INLINE void norm_backward_rows(const NormBackward *a, int64_t r, const int rows, float *dweight, float *dbias,
                                   const bool accumulate) {
    int64_t width = a->width, whole = width / VEC_LANES * VEC_LANES;
    const float *dy = (const float *)a->dy + r * width, *x = (const float *)a->x + r * width, *weight = a->weight;
    float *dx = (float *)a->dx + r * width;  // may be dy
    Rows s;
    for (int i = 0; i < rows; i++) {
        s.mean[i] = a->kind == NORM_LAYER ? a->mean[r + i] : 0;
        s.rstd[i] = a->rstd[r + i];
        s.g[i] = s.gn[i] = vec_set(0);
    }
    for (int64_t c = 0; c < whole; c += VEC_LANES) {
        gather(&s, rows, dy, x, width, weight, dweight, dbias, c, VEC_LANES);
    }
    if (whole < width) {
        gather(&s, rows, dy, x, width, weight, dweight, dbias, whole, width - whole);
    }
    for (int i = 0; i < rows; i++, dy += width, x += width, dx += width) {
        float mean_g = a->kind == NORM_LAYER ? vec_sum(s.g[i]) / (float)width : 0, mean_gn = vec_sum(s.gn[i]) / (float)width;
        for (int64_t c = 0; c < whole; c += VEC_LANES) {
            scatter(s.mean[i], s.rstd[i], mean_g, mean_gn, dy + c, x + c, weight + c, dx + c, accumulate, VEC_LANES);
        }
        if (whole < width) {
            scatter(s.mean[i], s.rstd[i], mean_g, mean_gn, dy + whole, x + whole, weight + whole, dx + whole, accumulate,
                    width - whole);
        }
    }
}

static void norm_backward_block(void *context, int64_t task, int thread) {
    const NormBackwardWork *w = context;
    const NormBackward *a = w->a;
    Range range = range_part(a->rows, 1, w->blocks, task);
    float *dweight = w->sums + task * 2 * a->width, *dbias = dweight + a->width;
    for (int64_t c = 0; c < 2 * a->width; c++) {
        dweight[c] = 0;
    }
    int64_t r = range.begin;
    for (; r + AT_ONCE <= range.end; r += AT_ONCE) {
        if (a->accumulate) {
            norm_backward_rows(a, r, AT_ONCE, dweight, dbias, true);
        } else {
            norm_backward_rows(a, r, AT_ONCE, dweight, dbias, false);
        }
    }
    for (; r < range.end; r++) {
        if (a->accumulate) {
            norm_backward_rows(a, r, 1, dweight, dbias, true);
        } else {
            norm_backward_rows(a, r, 1, dweight, dbias, false);
        }
    }
}

static void norm_backward_columns(void *context, int64_t task, int thread) {
    const NormBackwardWork *w = context;
    const NormBackward *a = w->a;
    Range range = range_part(a->width, 16, w->parts, task);
    for (int64_t block = 0; block < w->blocks; block++) {
        const float *restrict dweight = w->sums + block * 2 * a->width, *restrict dbias = dweight + a->width;
        float *restrict weights = a->dweight, *restrict biases = a->dbias;
        if (weights != NULL) {
            for (int64_t c = range.begin; c < range.end; c++) {
                weights[c] += dweight[c];
            }
        }
        if (biases != NULL) {
            for (int64_t c = range.begin; c < range.end; c++) {
                biases[c] += dbias[c];
            }
        }
    }
}

void CPU_NAME(cpu_norm_backward)(Device *device, const NormBackward *a) {
    int64_t blocks = (a->rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    blocks = blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS;
    size_t bytes = (size_t)blocks * 2 * (size_t)a->width * sizeof(float), threads = (size_t)threads_count(device->pool);
    NormBackwardWork w = {a, blocks, part_count(device, (a->width + 15) / 16, blocks * 32),
                          device_scratch(device, (bytes + threads - 1) / threads)};
    threads_run(device->pool, blocks, norm_backward_block, &w);
    threads_run(device->pool, w.parts, norm_backward_columns, &w);
}
