// The output head fused with softmax cross-entropy on a card: contract in kernels.h.
//
// For each chunk of rows: logits = x w^T + bias into scratch, by the matrix products of this folder; one kernel turns a row of
// logits into its loss and, in the same memory, its gradient
//
//   dlogits[v] = s ((1 + 2 z_loss z) exp(logits[v] - z) - [v = target]),   s = weight * grad_scale * loss_scale
//
// then dx = dlogits w, dw += dlogits^T x, dbias += the sums of the columns. Logits are kept in the compute type: rounding them
// once errs as much as rounding any activation does, and a chunk then moves 12 bytes a logit (written, read twice, written,
// read by two products) instead of 18; the statistics are fp32. Rows are `stride` apart, the vocabulary rounded up to 8
// columns, so that the products and the kernels move 16 bytes at a time whatever the vocabulary; the columns added are never
// read as numbers.
//
// A block takes a row: the largest logit and the sum of exponentials together in one pass (Milakov & Gimelshein 2018, "Online
// normalizer calculation for softmax"), the gradient in a second one, which finds the row in the second-level cache. The last
// rows of a chunk were written last, so the first blocks take those. A row of weight 0 becomes zeros.
//
// With a vocabulary split over ranks the two passes are two kernels, and between them the ranks exchange the rows' maxima, then
// their sums and the logits of the targets. Every sum has one order: deterministic.
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/ptx.h"
#include "kernels/scratch.h"

namespace BACKEND {

static const int THREADS = 512;

// What rows know of themselves between two kernels; [chunk_rows] each. Sums and targets lie side by side.
struct RowStatistics {
    float *largest;  // of the columns here
    float *shift;    // of all columns
    float *sums;     // of exp(logit - shift)
    float *targets;  // the logit of the target, 0 where another rank has it
};
// A chunk, as the kernels see it.
struct Chunk {
    int64_t vocabulary, stride;
    int64_t first;  // of the columns here, in the whole vocabulary
    bool shared;
    bool gradient;
    float z_loss, grad_scale;
    const float *loss_scale;  // may be NULL
    void *logits;
    const int32_t *targets;  // from here on those of the chunk's rows
    const float *loss_weights;
    float *losses, *zs;
    RowStatistics row;
};

template <typename T> __device__ __forceinline__ float exponential(float x) {
    return exp2_fast(x * 1.44269504f);
}
template <> __device__ __forceinline__ float exponential<float>(float x) {
    return expf(x);
}

// A maximum and the sum of exponentials relative to it.
struct Normalizer {
    float largest, sum;
};

template <typename T> __device__ __forceinline__ Normalizer merge(Normalizer a, Normalizer b) {
    Normalizer c;
    c.largest = fmaxf(a.largest, b.largest);
    // Nothing seen yet is -inf and 0; the difference of two -inf would be no number.
    c.sum = (a.sum == 0 ? 0 : a.sum * exponential<T>(a.largest - c.largest)) +
            (b.sum == 0 ? 0 : b.sum * exponential<T>(b.largest - c.largest));
    return c;
}

template <typename T> __device__ __forceinline__ Normalizer block_merge(Normalizer n) {
    SHARED(Normalizer, parts, [THREADS / 32]);
    for (int offset = 16; offset > 0; offset /= 2) {
        Normalizer other = {__shfl_xor_sync(0xFFFFFFFFu, n.largest, offset), __shfl_xor_sync(0xFFFFFFFFu, n.sum, offset)};
        n = merge<T>(n, other);
    }
    if (threadIdx.x % 32 == 0) {
        parts[threadIdx.x / 32] = n;
    }
    __syncthreads();
    n = parts[0];
    for (int i = 1; i < THREADS / 32; i++) {
        n = merge<T>(n, parts[i]);
    }
    return n;
}

// The logits of pack number `pack` of a row; -inf behind the vocabulary.
template <typename T>
__device__ __forceinline__ void load_logits(const Chunk &c, const T *row, int64_t pack, float (&x)[Pack<T>::COUNT]) {
    Pack<T> loaded = load_pack(row + pack * Pack<T>::COUNT);
#pragma unroll
    for (int i = 0; i < Pack<T>::COUNT; i++) {
        x[i] = pack * Pack<T>::COUNT + i < c.vocabulary ? to_float(loaded.at[i]) : -INFINITY;
    }
}

// The largest logit of a row and its sum of exponentials, in every thread.
template <typename T> __device__ __forceinline__ Normalizer row_normalizer(const Chunk &c, const T *row) {
    Normalizer n = {-INFINITY, 0};
    for (int64_t pack = threadIdx.x; pack * Pack<T>::COUNT < c.vocabulary; pack += THREADS) {
        float x[Pack<T>::COUNT], top;
        load_logits(c, row, pack, x);
        top = x[0];
#pragma unroll
        for (int i = 1; i < Pack<T>::COUNT; i++) {
            top = fmaxf(top, x[i]);
        }
        if (top > n.largest) {
            n.sum *= exponential<T>(n.largest - top);
            n.largest = top;
        }
        // All -inf so far: exp(-inf + inf) would be no number; so is that of a NaN, which must stay one.
        float shift = n.largest > -INFINITY ? n.largest : 0;
#pragma unroll
        for (int i = 0; i < Pack<T>::COUNT; i++) {
            n.sum += exponential<T>(x[i] - shift);
        }
    }
    return block_merge<T>(n);
}

// The place of a target among the columns here; -1 where there is none.
__device__ __forceinline__ int64_t target_here(const Chunk &c, int32_t target) {
    int64_t place = target - c.first;
    return target >= 0 && place >= 0 && place < c.vocabulary ? place : -1;
}

// By one thread: loss and z of a row. A target outside the vocabulary, or none where the row has a weight, is a mistake that
// shows as no number.
__device__ __forceinline__ void finish_loss(const Chunk &c, int64_t r, float z, float target_logit) {
    int32_t target = c.targets[r];
    bool wrong = target < 0 ? c.loss_weights[r] != 0 : !c.shared && target >= c.vocabulary;
    c.losses[r] = wrong ? NAN : target >= 0 ? z - target_logit : 0;
    if (c.zs != NULL) {
        c.zs[r] = z;
    }
}

// The gradient in the place of the logits.
template <typename T> __device__ __forceinline__ void row_gradient(const Chunk &c, int64_t r, T *row, float z) {
    const int N = Pack<T>::COUNT;
    float weight = c.loss_weights[r], scale = weight * c.grad_scale * (c.loss_scale != NULL ? *c.loss_scale : 1);
    float factor = scale * (1.0f + 2.0f * c.z_loss * z);
    int64_t target = target_here(c, c.targets[r]);
    for (int64_t pack = threadIdx.x; pack * N < c.vocabulary; pack += THREADS) {
        Pack<T> out = {};
        if (weight != 0) {
            float x[N];
            load_logits(c, row, pack, x);
#pragma unroll
            for (int i = 0; i < N; i++) {
                float d = exponential<T>(x[i] - z) * factor;
                out.at[i] = from_float<T>(pack * N + i == target ? d - scale : d);
            }
        }
        store_pack(row + pack * N, out);
    }
}

// registers: at most 42, three blocks a multiprocessor
template <typename T> static __global__ void __launch_bounds__(THREADS, 3) classify_rows(Chunk c) {
    int64_t r = gridDim.x - 1 - blockIdx.x;
    T *row = (T *)c.logits + r * c.stride;
    int64_t target = target_here(c, c.targets[r]);
    float target_logit = threadIdx.x == 0 && target >= 0 ? to_float(row[target]) : 0;  // before it is overwritten
    Normalizer n = row_normalizer(c, row);
    float z = n.largest + logf(n.sum);
    if (threadIdx.x == 0) {
        finish_loss(c, r, z, target_logit);
    }
    if (c.gradient) {
        row_gradient(c, r, row, z);
    }
}

// ---- With a share

template <typename T> static __global__ void __launch_bounds__(THREADS, 3) share_statistics(Chunk c) {
    int64_t r = gridDim.x - 1 - blockIdx.x;
    const T *row = (const T *)c.logits + r * c.stride;
    Normalizer n = row_normalizer(c, row);
    if (threadIdx.x == 0) {
        int64_t target = target_here(c, c.targets[r]);
        c.row.largest[r] = c.row.shift[r] = n.largest;
        c.row.sums[r] = n.sum;
        c.row.targets[r] = target >= 0 ? to_float(row[target]) : 0;
    }
}

// The sums relative to the maximum of all ranks.
static __global__ void __launch_bounds__(THREADS) share_shift(Chunk c, int64_t rows) {
    int64_t r = blockIdx.x * (int64_t)THREADS + threadIdx.x;
    if (r < rows) {
        c.row.sums[r] *= expf(c.row.largest[r] - c.row.shift[r]);
    }
}

template <typename T> static __global__ void __launch_bounds__(THREADS, 3) share_finish(Chunk c) {
    int64_t r = gridDim.x - 1 - blockIdx.x;
    float z = c.row.shift[r] + logf(c.row.sums[r]);
    if (threadIdx.x == 0) {
        finish_loss(c, r, z, c.row.targets[r]);
    }
    if (c.gradient) {
        row_gradient(c, r, (T *)c.logits + r * c.stride, z);
    }
}

template <typename T> static void classify_shared(Card *card, const ClassifierShare *share, const Chunk &c, int64_t rows) {
    launch(card, "classifier", share_statistics<T>, dim3((unsigned)rows), THREADS, 0, c);
    share->all_reduce(share->context, c.row.shift, rows, true);
    launch(card, "classifier", share_shift, dim3((unsigned)divide_up(rows, THREADS)), THREADS, 0, c, rows);
    share->all_reduce(share->context, c.row.sums, 2 * rows, false);  // and the targets
    launch(card, "classifier", share_finish<T>, dim3((unsigned)rows), THREADS, 0, c);
}

// ---- The operation

static void logits_of(Card *card, const Classifier *a, int64_t rows, const void *x, const Chunk &c) {
    Product p = {};
    p.form = PRODUCT_FORWARD;
    p.epilogue = EPILOGUE_FORWARD;
    p.type = card->device.type;
    p.float_output = p.type == TYPE_FP32;
    p.m = rows;
    p.n = a->vocabulary;
    p.k = a->width;
    p.a = x;
    p.b = a->w;
    p.a_stride = p.b_stride = a->width;
    p.bias = a->bias;
    p.c = c.logits;
    p.c_stride = p.pre_stride = c.stride;
    product_compute(card, &p);
}

static void gradients_of(Card *card, const Classifier *a, int64_t rows, const void *x, void *dx, const Chunk &c) {
    DataType type = card->device.type;
    Product p = {};
    p.form = PRODUCT_BACKWARD_INPUT;
    p.epilogue = EPILOGUE_BACKWARD;
    p.type = type;
    p.float_output = type == TYPE_FP32;
    p.m = rows;
    p.n = a->width;
    p.k = a->vocabulary;
    p.a = c.logits;
    p.a_stride = c.stride;
    p.b = a->w;
    p.c = dx;
    p.b_stride = p.c_stride = p.pre_stride = a->width;
    product_compute(card, &p);
    if (a->dw != NULL) {
        p = {};
        p.form = PRODUCT_BACKWARD_WEIGHT;
        p.epilogue = EPILOGUE_BACKWARD;
        p.type = type;
        p.float_output = p.accumulate = true;
        p.m = a->vocabulary;
        p.n = a->width;
        p.k = rows;
        p.a = c.logits;
        p.a_stride = c.stride;
        p.b = x;
        p.c = a->dw;
        p.b_stride = p.c_stride = p.pre_stride = a->width;
        product_compute(card, &p);
    }
    if (a->dbias != NULL) {
        bias_gradient(card, type, rows, a->vocabulary, c.logits, c.stride, a->dbias);
    }
}

void classifier(Device *device, const Classifier *a) {
    ensure(a->chunk_rows > 0 && (a->dx != NULL || (a->dw == NULL && a->dbias == NULL)),
           "a classifier without chunks, or with a gradient without dx");
    Card *card = card_of(device);
    int64_t bytes = data_type_bytes(device->type), stride = classifier_stride(true, a->vocabulary);
    Chunk c = {};
    c.vocabulary = a->vocabulary;
    c.stride = stride;
    c.first = a->share != NULL ? a->share->first : 0;
    c.shared = a->share != NULL;
    c.gradient = a->dx != NULL;
    c.z_loss = a->z_loss;
    c.grad_scale = a->grad_scale;
    c.loss_scale = a->loss_scale;
    c.logits = a->scratch;
    c.row.largest = (float *)((char *)a->scratch + divide_up(a->chunk_rows * stride * bytes, 256) * 256);
    c.row.shift = c.row.largest + a->chunk_rows;
    c.row.sums = c.row.shift + a->chunk_rows;
    for (int64_t first = 0; first < a->rows; first += a->chunk_rows) {
        int64_t rows = a->rows - first < a->chunk_rows ? a->rows - first : a->chunk_rows;
        const void *x = (const char *)a->x + first * a->width * bytes;
        c.targets = a->targets + first;
        c.loss_weights = a->loss_weights + first;
        c.losses = a->losses + first;
        c.zs = a->zs != NULL ? a->zs + first : NULL;
        c.row.targets = c.row.sums + rows;
        logits_of(card, a, rows, x, c);
        WITH_TYPE(device->type, T, {
            if (c.shared) {
                classify_shared<T>(card, a->share, c, rows);
            } else {
                launch(card, "classifier", classify_rows<T>, dim3((unsigned)rows), THREADS, 0, c);
            }
        });
        if (c.gradient) {
            gradients_of(card, a, rows, x, (char *)a->dx + first * a->width * bytes, c);
        }
    }
}

}  // namespace BACKEND
