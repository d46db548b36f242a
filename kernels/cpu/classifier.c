// The output head fused with softmax cross-entropy: contract in kernels.h.
//
// For each chunk of rows: logits = x w^T + bias into scratch; per row the maximum, then the sum of exponentials, so z = maximum
// + log(sum) and loss = z - logits[target]; then the logits are overwritten by the gradient
//
//   dlogits[v] = s ((1 + 2 z_loss z) exp(logits[v] - z) - [v = target]),   s = weight * grad_scale
//
// and dx = dlogits w, dw += dlogits^T x. Rows of weight 0 at the ends of a chunk take no part in those two products; inside it
// they are rows of zeros. Chunks are cut from the number of rows alone, and every sum has a fixed order: deterministic.
//
// With a vocabulary split over ranks, the rows' maxima, then their sums of exponentials and target logits are exchanged between
// the two passes over a chunk: three floats a row.
#include "kernels/cpu/gemm.h"

#include "kernels/cpu/activation.h"
#include "kernels/scratch.h"

#include <math.h>

typedef struct Chunk {
    const Classifier *a;
    int64_t first, stride;  // row of the chunk in the batch, floats from row to row of logits
    float grad_scale;       // with the loss scale
    float *logits;
    float *largest, *shift, *sums, *targets;  // [chunk_rows] each: maximum here and of all ranks, sum, logit of the target
} Chunk;

// The maximum, then the sum of exp(x - maximum), in four independent strands each.
static float row_sum_exp(const float *x, int64_t count, float *largest) {
    enum { STRANDS = 4 };
    Vec top[STRANDS], sum[STRANDS];
    for (int i = 0; i < STRANDS; i++) {
        top[i] = vec_set(-INFINITY);
        sum[i] = vec_set(0);
    }
    int64_t v = 0;
    for (; v + STRANDS * VEC_LANES <= count; v += STRANDS * VEC_LANES) {
        for (int i = 0; i < STRANDS; i++) {
            top[i] = vec_max(vec_load(x + v + i * VEC_LANES), top[i]);
        }
    }
    float maximum = vec_max_lane(vec_max(vec_max(top[0], top[1]), vec_max(top[2], top[3])));
    for (int64_t i = v; i < count; i++) {
        maximum = x[i] > maximum ? x[i] : maximum;
    }
    Vec shift = vec_set(maximum);
    v = 0;
    for (; v + STRANDS * VEC_LANES <= count; v += STRANDS * VEC_LANES) {
        for (int i = 0; i < STRANDS; i++) {
            sum[i] += vec_exp(vec_load(x + v + i * VEC_LANES) - shift);
        }
    }
    float total = vec_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
    for (; v < count; v += VEC_LANES) {
        int64_t lanes = count - v < VEC_LANES ? count - v : VEC_LANES;
        float exponentials[VEC_LANES];
        vec_store(exponentials, vec_exp(vec_load_partial(x + v, lanes) - shift));
        for (int64_t i = 0; i < lanes; i++) {
            total += exponentials[i];
        }
    }
    *largest = maximum;
    return total;
}

// The place of row r's target among the columns here, or -1.
static int64_t target_here(const Classifier *a, int64_t r) {
    int64_t place = a->targets[r] - (a->share != NULL ? a->share->first : 0);
    return a->targets[r] >= 0 && place >= 0 && place < a->vocabulary ? place : -1;
}

// Between the maximum and the gradient: what the row knows of itself.
static void row_statistics(void *context, int64_t row, int thread) {
    const Chunk *chunk = context;
    const Classifier *a = chunk->a;
    const float *x = chunk->logits + row * chunk->stride;
    int64_t r = chunk->first + row, target = target_here(a, r);
    ensure(target >= 0 || a->targets[r] < 0 || a->share != NULL, "row %lld has target %d of a vocabulary of %lld", (long long)r,
           (int)a->targets[r], (long long)a->vocabulary);
    ensure(a->targets[r] >= 0 || a->loss_weights[r] == 0, "row %lld has a weight but no target", (long long)r);
    chunk->sums[row] = row_sum_exp(x, a->vocabulary, &chunk->largest[row]);
    chunk->shift[row] = chunk->largest[row];
    chunk->targets[row] = target >= 0 ? x[target] : 0;
}

// The loss, and the gradient in the place of the logits.
static void row_finish(void *context, int64_t row, int thread) {
    const Chunk *chunk = context;
    const Classifier *a = chunk->a;
    int64_t r = chunk->first + row, target = target_here(a, r);
    float *x = chunk->logits + row * chunk->stride;
    float z = chunk->shift[row] + logf(chunk->sums[row]);
    a->losses[r] = a->targets[r] >= 0 ? z - chunk->targets[row] : 0;
    if (a->zs != NULL) {
        a->zs[r] = z;
    }
    if (a->dx == NULL) {
        return;
    }
    if (a->loss_weights[r] == 0) {
        memset(x, 0, (size_t)a->vocabulary * sizeof(float));
        return;
    }
    float scale = a->loss_weights[r] * chunk->grad_scale;
    Vec factor = vec_set(scale * (1.0f + 2.0f * a->z_loss * z)), shift = vec_set(z);
    int64_t v = 0;
    for (; v + VEC_LANES <= a->vocabulary; v += VEC_LANES) {
        vec_store(x + v, vec_exp(vec_load(x + v) - shift) * factor);
    }
    int64_t lanes = a->vocabulary - v;
    vec_store_partial(x + v, vec_exp(vec_load_partial(x + v, lanes) - shift) * factor, lanes);
    if (target >= 0) {
        x[target] -= scale;
    }
}

static void row_whole(void *context, int64_t row, int thread) {
    row_statistics(context, row, thread);
    row_finish(context, row, thread);
}

// Losses and gradients of a chunk whose columns lie on several ranks.
static void share_rows(Device *device, Chunk *chunk, int64_t rows) {
    const ClassifierShare *share = chunk->a->share;
    threads_run(device->pool, rows, row_statistics, chunk);
    share->all_reduce(share->context, chunk->shift, rows, true);
    for (int64_t i = 0; i < rows; i++) {
        chunk->sums[i] *= expf(chunk->largest[i] - chunk->shift[i]);
    }
    share->all_reduce(share->context, chunk->sums, 2 * rows, false);  // the targets lie behind the sums
    threads_run(device->pool, rows, row_finish, chunk);
}

static void backward(Device *device, const Chunk *chunk, int64_t begin, int64_t end) {
    const Classifier *a = chunk->a;
    const float *x = (const float *)a->x + (chunk->first + begin) * a->width;
    const float *dlogits = chunk->logits + begin * chunk->stride;
    CPU_NAME(gemm)
    (device, &(Gemm){
                 .m = end - begin,
                 .n = a->width,
                 .k = a->vocabulary,
                 .a = dlogits,
                 .a_stride = chunk->stride,
                 .b = a->w,
                 .b_stride = a->width,
                 .c = (float *)a->dx + (chunk->first + begin) * a->width,
                 .c_stride = a->width,
             });
    CPU_NAME(gemm)
    (device, &(Gemm){
                 .m = a->vocabulary,
                 .n = a->width,
                 .k = end - begin,
                 .a = dlogits,
                 .a_stride = chunk->stride,
                 .a_transposed = true,
                 .b = x,
                 .b_stride = a->width,
                 .accumulate = true,
                 .c = a->dw,
                 .c_stride = a->width,
                 .a_sums = a->dbias,
             });
}

void CPU_NAME(cpu_classifier)(Device *device, const Classifier *a) {
    ensure(a->chunk_rows > 0 && (a->dx != NULL || (a->dw == NULL && a->dbias == NULL)),
           "a classifier without chunks, or with a gradient without dx");
    Chunk chunk = {.a = a, .stride = classifier_stride(false, a->vocabulary), .logits = a->scratch};
    chunk.grad_scale = a->grad_scale * (a->loss_scale != NULL ? *a->loss_scale : 1);
    chunk.largest = chunk.logits + a->chunk_rows * chunk.stride;
    chunk.shift = chunk.largest + a->chunk_rows;
    chunk.sums = chunk.shift + a->chunk_rows;
    for (; chunk.first < a->rows; chunk.first += a->chunk_rows) {
        int64_t rows = a->rows - chunk.first < a->chunk_rows ? a->rows - chunk.first : a->chunk_rows;
        chunk.targets = chunk.sums + rows;
        CPU_NAME(gemm)
        (device, &(Gemm){
                     .m = rows,
                     .n = a->vocabulary,
                     .k = a->width,
                     .a = (const float *)a->x + chunk.first * a->width,
                     .a_stride = a->width,
                     .b = a->w,
                     .b_stride = a->width,
                     .b_transposed = true,
                     .bias = a->bias,
                     .c = chunk.logits,
                     .c_stride = chunk.stride,
                 });
        if (a->share != NULL) {
            share_rows(device, &chunk, rows);
        } else {
            threads_run(device->pool, rows, row_whole, &chunk);
        }
        if (a->dx == NULL) {
            continue;
        }
        int64_t begin = 0, end = rows;
        while (begin < end && a->loss_weights[chunk.first + begin] == 0) {
            begin++;
        }
        while (end > begin && a->loss_weights[chunk.first + end - 1] == 0) {
            end--;
        }
        float *dx = (float *)a->dx + chunk.first * a->width;
        memset(dx, 0, (size_t)(begin * a->width) * sizeof(float));
        memset(dx + end * a->width, 0, (size_t)((rows - end) * a->width) * sizeof(float));
        if (begin < end) {
            backward(device, &chunk, begin, end);
        }
    }
}
