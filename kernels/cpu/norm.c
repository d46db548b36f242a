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

#include <math.h>

enum { LANES = 16, BLOCK_ROWS = 32, MOST_BLOCKS = 32 };

typedef struct NormWork {
    const NormForward *a;
    int64_t parts;
} NormWork;

static float lanes_sum(const float *lanes) {
    float sum[LANES];
    for (int i = 0; i < LANES; i++) {
        sum[i] = lanes[i];
    }
    for (int half = LANES / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) {
            sum[i] += sum[i + half];
        }
    }
    return sum[0];
}

static float row_sum(const float *x, int64_t width) {
    float lanes[LANES] = {0};
    int64_t c = 0;
    for (; c + LANES <= width; c += LANES) {
        for (int i = 0; i < LANES; i++) {
            lanes[i] += x[c + i];
        }
    }
    for (int i = 0; c < width; c++, i++) {
        lanes[i] += x[c];
    }
    return lanes_sum(lanes);
}

static float row_squares(const float *x, float mean, int64_t width) {
    float lanes[LANES] = {0};
    int64_t c = 0;
    for (; c + LANES <= width; c += LANES) {
        for (int i = 0; i < LANES; i++) {
            lanes[i] += (x[c + i] - mean) * (x[c + i] - mean);
        }
    }
    for (int i = 0; c < width; c++, i++) {
        lanes[i] += (x[c] - mean) * (x[c] - mean);
    }
    return lanes_sum(lanes);
}

static void norm_forward_part(void *context, int64_t task, int thread) {
    const NormWork *w = context;
    const NormForward *a = w->a;
    Range range = range_part(a->rows, 1, w->parts, task);
    int64_t width = a->width;
    const float *restrict weight = a->weight, *restrict bias = a->bias;
    for (int64_t r = range.begin; r < range.end; r++) {
        const float *x = (const float *)a->x + r * width;
        float *restrict y = (float *)a->y + r * width;
        float mean = 0;
        if (a->kind == NORM_LAYER) {
            mean = row_sum(x, width) / (float)width;
            a->mean[r] = mean;
        }
        float rstd = 1 / sqrtf(row_squares(x, mean, width) / (float)width + a->epsilon);
        a->rstd[r] = rstd;
        if (bias != NULL) {
            for (int64_t c = 0; c < width; c++) {
                y[c] = (x[c] - mean) * rstd * weight[c] + bias[c];
            }
        } else {
            for (int64_t c = 0; c < width; c++) {
                y[c] = (x[c] - mean) * rstd * weight[c];
            }
        }
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

static void norm_backward_row(const NormBackward *a, int64_t r, float *restrict dweight, float *restrict dbias) {
    int64_t width = a->width;
    const float *dy = (const float *)a->dy + r * width, *x = (const float *)a->x + r * width, *weight = a->weight;
    float *dx = (float *)a->dx + r * width;  // may be dy
    float mean = a->kind == NORM_LAYER ? a->mean[r] : 0, rstd = a->rstd[r];
    float sum_g[LANES] = {0}, sum_gn[LANES] = {0};
    int64_t c = 0;
    for (; c + LANES <= width; c += LANES) {
        for (int i = 0; i < LANES; i++) {
            float n = (x[c + i] - mean) * rstd, d = dy[c + i], g = d * weight[c + i];
            sum_g[i] += g;
            sum_gn[i] += g * n;
            dweight[c + i] += d * n;
            dbias[c + i] += d;
        }
    }
    for (int i = 0; c < width; c++, i++) {
        float n = (x[c] - mean) * rstd, d = dy[c], g = d * weight[c];
        sum_g[i] += g;
        sum_gn[i] += g * n;
        dweight[c] += d * n;
        dbias[c] += d;
    }
    float mean_g = a->kind == NORM_LAYER ? lanes_sum(sum_g) / (float)width : 0;
    float mean_gn = lanes_sum(sum_gn) / (float)width;
    if (a->accumulate) {
        for (c = 0; c < width; c++) {
            float n = (x[c] - mean) * rstd;
            dx[c] += rstd * (dy[c] * weight[c] - mean_g - n * mean_gn);
        }
    } else {
        for (c = 0; c < width; c++) {
            float n = (x[c] - mean) * rstd;
            dx[c] = rstd * (dy[c] * weight[c] - mean_g - n * mean_gn);
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
    for (int64_t r = range.begin; r < range.end; r++) {
        norm_backward_row(a, r, dweight, dbias);
    }
}

static void norm_backward_columns(void *context, int64_t task, int thread) {
    const NormBackwardWork *w = context;
    const NormBackward *a = w->a;
    Range range = range_part(a->width, 16, w->parts, task);
    for (int64_t block = 0; block < w->blocks; block++) {
        const float *restrict dweight = w->sums + block * 2 * a->width, *restrict dbias = dweight + a->width;
        float *restrict weights = a->dweight, *restrict biases = a->dbias;
        for (int64_t c = range.begin; c < range.end; c++) {
            weights[c] += dweight[c];
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
