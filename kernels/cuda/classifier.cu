// The output head fused with softmax cross-entropy on a card: contract in kernels.h.
//
// For each chunk of rows: logits = x w^T + bias into scratch, by the matrix products of this folder; one kernel turns a row of
// logits into its loss and, in the same memory, its gradient
//
//   dlogits[v] = s ((1 + 2 z_loss z) exp(logits[v] - z) - [v = target]),   s = weight * grad_scale * loss_scale
//
// then dx = dlogits w, dw += dlogits^T x, dbias += the sums of the columns. Logits are kept in the compute type: rounding them
// once errs as much as rounding any activation does, and a chunk then moves 10 bytes a logit (written, read, written, read
// by two products) instead of 18; the statistics are fp32. Rows are `stride` apart, the vocabulary rounded up to 8 columns, so
// that the products and the kernels move 16 bytes at a time whatever the vocabulary. The columns added begin as whatever was
// there; the gradient in them is exp(-infinity) = 0, which the products read along with the last columns.
//
// A block takes a row: the largest logit and the sum of exponentials together in one pass (Milakov & Gimelshein 2018, "Online
// normalizer calculation for softmax"), the gradient in a second one. Each thread keeps the packs of its first pass in shared
// memory for its second: where two rows fit a multiprocessor (57,000 columns of 16 bits) a logit is read once and written once,
// and what does not fit is read again. Four packs are in flight and take one comparison with the largest so far. The columns
// added are made -infinity, so that every pack is whole. The last rows of a chunk were written last, so the first blocks take
// those. A row of weight 0 becomes zeros.
//
// Exponentials of 16-bit logits are powers of two, 2^(x log2(e) - shift), one multiplication and addition and one instruction
// of the card: shifts, and what a row knows of itself, are logarithms to base 2 then. fp32 has expf and natural ones.
//
// With a vocabulary split over ranks the two passes are two kernels, and between them the ranks exchange the rows' maxima, then
// their sums and the logits of the targets. Every sum has one order: deterministic.
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/ptx.h"
#include "kernels/scratch.h"

namespace BACKEND {

static const int THREADS = 512;
static const int FLIGHT = 4;  // packs that a thread loads before it uses the first; four are compared below
static const int ROUND = FLIGHT * THREADS;

// What rows know of themselves between two kernels; [chunk_rows] each. Sums and targets lie side by side.
struct RowStatistics {
    float *largest;  // of the columns here: a shift
    float *shift;    // of all columns
    float *sums;     // of power(logit, shift)
    float *targets;  // the logit of the target, 0 where another rank has it
};
// A chunk, as the kernels see it.
struct Chunk {
    int64_t vocabulary, stride;
    int64_t first;  // of the columns here, in the whole vocabulary
    int packs;      // of a row; the last may have columns behind the vocabulary
    int kept;       // of these, from the first on, in shared memory: all, or a multiple of ROUND
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

// The logarithm that a shift of x is, its way back, and that of a sum.
template <typename T> __device__ __forceinline__ float shift_of(float x) {
    return x * 1.44269504f;
}
template <> __device__ __forceinline__ float shift_of<float>(float x) {
    return x;
}
template <typename T> __device__ __forceinline__ float shift_natural(float shift) {
    return shift * 0.693147181f;
}
template <> __device__ __forceinline__ float shift_natural<float>(float shift) {
    return shift;
}
template <typename T> __device__ __forceinline__ float shift_of_sum(float sum) {
    return log2f(sum);
}
template <> __device__ __forceinline__ float shift_of_sum<float>(float sum) {
    return logf(sum);
}
// The exponential of the difference of two shifts, and of x less a shift.
template <typename T> __device__ __forceinline__ float shift_power(float difference) {
    return exp2_fast(difference);
}
template <> __device__ __forceinline__ float shift_power<float>(float difference) {
    return expf(difference);
}
template <typename T> __device__ __forceinline__ float power(float x, float shift) {
    return exp2_fast(__fmaf_rn(x, 1.44269504f, -shift));
}
template <> __device__ __forceinline__ float power<float>(float x, float shift) {
    return expf(x - shift);
}
// Where all was -infinity so far, or no number: exp(-inf + inf) would be no number, and what is none must stay it.
__device__ __forceinline__ float finite_shift(float shift) {
    return shift > -INFINITY ? shift : 0;
}

// The shift of the largest logit and the sum of exponentials relative to it.
struct Normalizer {
    float shift, sum;
};

template <typename T> __device__ __forceinline__ Normalizer block_merge(Normalizer n) {
    SHARED(Normalizer, parts, [THREADS / 32]);
    float shift = warp_max(n.shift), sum = warp_sum(n.sum * shift_power<T>(n.shift - finite_shift(shift)));
    if (threadIdx.x % 32 == 0) {
        parts[threadIdx.x / 32] = {shift, sum};
    }
    __syncthreads();
    n = {-INFINITY, 0};
    for (int i = 0; i < THREADS / 32; i++) {
        n.shift = fmaxf(n.shift, parts[i].shift);
    }
    for (int i = 0; i < THREADS / 32; i++) {
        n.sum += parts[i].sum * shift_power<T>(parts[i].shift - finite_shift(n.shift));
    }
    return n;
}

// Packs first, first + THREADS ..: those of a thread in one round, and whether there is number u of them. ALL: all are.
template <bool ALL> __device__ __forceinline__ bool in_row(const Chunk &c, int first, int u) {
    return ALL || first + u * THREADS < c.packs;
}
template <bool ALL, typename T>
__device__ __forceinline__ void load_round(const Chunk &c, const T *row, int first, Pack<T> (&packs)[FLIGHT]) {
#pragma unroll
    for (int u = 0; u < FLIGHT; u++) {
        if (in_row<ALL>(c, first, u)) {
            packs[u] = load_pack(row + (first + u * THREADS) * Pack<T>::COUNT);
        } else {
#pragma unroll
            for (int i = 0; i < Pack<T>::COUNT; i++) {
                packs[u].at[i] = from_float<T>(-INFINITY);
            }
        }
    }
}

// round<ALL>(c, at, ...) for each of a thread's rounds from `first` on.
#define EACH_ROUND(c, first, round, ...)                                                                                       \
    {                                                                                                                          \
        int at = first;                                                                                                        \
        for (; at + (FLIGHT - 1) * THREADS < c.packs; at += ROUND) {                                                           \
            round<true>(c, at, __VA_ARGS__);                                                                                   \
        }                                                                                                                      \
        if (at < c.packs) {                                                                                                    \
            round<false>(c, at, __VA_ARGS__);                                                                                  \
        }                                                                                                                      \
    }

// Adds a round to what a thread knows of its row, and keeps it.
template <bool ALL, typename T>
__device__ __forceinline__ void normalize_round(const Chunk &c, int first, const T *row, T *kept, Normalizer &n) {
    const int N = Pack<T>::COUNT;
    Pack<T> packs[FLIGHT];
    load_round<ALL>(c, row, first, packs);
    float x[FLIGHT][N], top[FLIGHT];
#pragma unroll
    for (int u = 0; u < FLIGHT; u++) {
        pack_floats(packs[u], x[u]);
        top[u] = x[u][0];
#pragma unroll
        for (int i = 1; i < N; i++) {
            top[u] = fmaxf(top[u], x[u][i]);
        }
    }
    if (kept != NULL && first < c.kept) {
#pragma unroll
        for (int u = 0; u < FLIGHT; u++) {
            if (in_row<ALL>(c, first, u)) {
                store_pack(kept + (first + u * THREADS) * N, packs[u]);
            }
        }
    }
    float largest = fmaxf(fmaxf(top[0], top[1]), fmaxf(top[2], top[3]));
    float shift = fmaxf(n.shift, shift_of<T>(largest)), zero = finite_shift(shift);
    n.sum *= shift_power<T>(n.shift - zero);
    n.shift = shift;
#pragma unroll
    for (int u = 0; u < FLIGHT; u++) {
        float sum = power<T>(x[u][0], zero);
#pragma unroll
        for (int i = 1; i < N; i++) {
            sum += power<T>(x[u][i], zero);
        }
        n.sum += sum;
    }
}

// The normalizer of a row, in every thread. Puts packs of the row into `kept`, as many as the chunk says; a thread finds there
// what itself will ask for.
template <typename T> __device__ __forceinline__ Normalizer row_normalizer(const Chunk &c, T *row, T *kept) {
    if (threadIdx.x == (c.packs - 1) % THREADS) {  // whose pack that is
#pragma unroll 1
        for (int64_t column = c.vocabulary; column < (int64_t)c.packs * Pack<T>::COUNT; column++) {
            row[column] = from_float<T>(-INFINITY);
        }
    }
    __syncwarp();  // for the compiler: whole packs are loaded after that
    Normalizer n = {-INFINITY, 0};
    EACH_ROUND(c, threadIdx.x, normalize_round, row, kept, n)
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

struct Slope {
    float shift, factor;
};

template <typename T> __device__ __forceinline__ void store_gradient(T *to, Pack<T> pack, Slope s) {
    float x[Pack<T>::COUNT];
    pack_floats(pack, x);
#pragma unroll
    for (int i = 0; i < Pack<T>::COUNT; i++) {
        pack.at[i] = from_float<T>(power<T>(x[i], s.shift) * s.factor);
    }
    store_pack(to, pack);
}
template <bool ALL, typename T> __device__ __forceinline__ void gradient_round(const Chunk &c, int first, T *row, Slope s) {
    Pack<T> packs[FLIGHT];
    load_round<ALL>(c, row, first, packs);
#pragma unroll
    for (int u = 0; u < FLIGHT; u++) {
        if (in_row<ALL>(c, first, u)) {
            store_gradient(row + (first + u * THREADS) * Pack<T>::COUNT, packs[u], s);
        }
    }
}

// The gradient in the place of the logits; that of the target once more, by the thread that wrote its pack.
template <typename T>
__device__ __forceinline__ void row_gradient(const Chunk &c, int64_t r, T *row, const T *kept, float shift,
                                             float target_logit) {
    const int N = Pack<T>::COUNT;
    float weight = c.loss_weights[r], scale = weight * c.grad_scale * (c.loss_scale != NULL ? *c.loss_scale : 1);
    int pack = threadIdx.x;
    if (weight == 0) {
        for (; pack < c.packs; pack += THREADS) {
            store_pack(row + pack * N, Pack<T>{});
        }
        return;
    }
    Slope slope = {shift, scale * (1.0f + 2.0f * c.z_loss * shift_natural<T>(shift))};
#pragma unroll 4
    for (; kept != NULL && pack < c.kept; pack += THREADS) {
        store_gradient(row + pack * N, load_pack(kept + pack * N), slope);
    }
    EACH_ROUND(c, pack, gradient_round, row, slope)
    __syncwarp();  // for the compiler: after the packs
    int64_t target = target_here(c, c.targets[r]);
    if (target >= 0 && target / N % THREADS == threadIdx.x) {
        row[target] = from_float<T>(power<T>(target_logit, shift) * slope.factor - scale);
    }
}

// registers: at most 64, two blocks a multiprocessor, whose rows its shared memory holds
template <typename T> static __global__ void __launch_bounds__(THREADS, 2) classify_rows(Chunk c) {
    DYNAMIC_SHARED(memory);
    T *kept = (T *)memory;
    int64_t r = gridDim.x - 1 - blockIdx.x;
    T *row = (T *)c.logits + r * c.stride;
    int64_t target = target_here(c, c.targets[r]);
    float target_logit = target >= 0 ? to_float(row[target]) : 0;  // before it is overwritten
    Normalizer n = row_normalizer(c, row, kept);
    float shift = n.shift + shift_of_sum<T>(n.sum);
    if (threadIdx.x == 0) {
        finish_loss(c, r, shift_natural<T>(shift), target_logit);
    }
    if (c.gradient) {
        row_gradient(c, r, row, kept, shift, target_logit);
    }
}

// ---- With a share: two kernels, so nothing is kept

template <typename T> static __global__ void __launch_bounds__(THREADS, 2) share_statistics(Chunk c) {
    int64_t r = gridDim.x - 1 - blockIdx.x;
    T *row = (T *)c.logits + r * c.stride;
    Normalizer n = row_normalizer(c, row, (T *)NULL);
    if (threadIdx.x == 0) {
        int64_t target = target_here(c, c.targets[r]);
        c.row.largest[r] = c.row.shift[r] = n.shift;
        c.row.sums[r] = n.sum;
        c.row.targets[r] = target >= 0 ? to_float(row[target]) : 0;
    }
}

// The sums relative to the maximum of all ranks.
template <typename T> static __global__ void __launch_bounds__(THREADS) share_shift(Chunk c, int64_t rows) {
    int64_t r = blockIdx.x * (int64_t)THREADS + threadIdx.x;
    if (r < rows) {
        c.row.sums[r] *= shift_power<T>(c.row.largest[r] - c.row.shift[r]);
    }
}

template <typename T> static __global__ void __launch_bounds__(THREADS, 2) share_finish(Chunk c) {
    int64_t r = gridDim.x - 1 - blockIdx.x;
    float shift = c.row.shift[r] + shift_of_sum<T>(c.row.sums[r]);
    if (threadIdx.x == 0) {
        finish_loss(c, r, shift_natural<T>(shift), c.row.targets[r]);
    }
    if (c.gradient) {
        row_gradient(c, r, (T *)c.logits + r * c.stride, (const T *)NULL, shift, c.row.targets[r]);
    }
}

template <typename T> static void classify_shared(Card *card, const ClassifierShare *share, const Chunk &c, int64_t rows) {
    launch(card, "classifier", share_statistics<T>, dim3((unsigned)rows), THREADS, 0, c);
    share->all_reduce(share->context, c.row.shift, rows, true);
    launch(card, "classifier", share_shift<T>, dim3((unsigned)divide_up(rows, THREADS)), THREADS, 0, c, rows);
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

// Packs of a row that shared memory keeps where a multiprocessor has two of them.
static int kept_packs(const Card *card, int packs) {
    int room = (int)((card->shared_limit / 2 - 2048) / sizeof(uint4));
    return packs <= room ? packs : room / ROUND * ROUND;
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
    c.packs = (int)divide_up(a->vocabulary * bytes, sizeof(uint4));
    c.kept = c.shared ? 0 : kept_packs(card, c.packs);
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
                launch(card, "classifier", classify_rows<T>, dim3((unsigned)rows), THREADS, c.kept * sizeof(uint4), c);
            }
        });
        if (c.gradient) {
            gradients_of(card, a, rows, x, (char *)a->dx + first * a->width * bytes, c);
        }
    }
}

}  // namespace BACKEND
