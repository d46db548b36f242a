// The operation table: every operation of training, declared once.
//
// A backend is one filled `Operations`; a Device is a backend with its threads or card. Forward and backward are explicit
// calls, there is no autograd. Model code sees this header alone.
//
// Conventions
//   Dimensions  B sequences, T tokens a sequence, R = B*T rows, C width, V vocabulary, H query heads, G key/value groups
//               (G divides H), D head width, F feed-forward width.
//   Layout      dense, row-major, last dimension fastest. Pointers are aligned to 64 bytes unless said otherwise.
//   Types       `const void *` / `void *` tensors have the device's compute type (Device.type: fp32 on the CPU; bf16, fp16 or
//               fp32 on cards). `float *` is fp32 everywhere: gradients of weights, statistics, losses, optimizer state. Tokens
//               are int32. All products and sums accumulate in fp32.
//   Places      every pointer is device memory, except where "host" is said.
//   Writes      "=" an output is overwritten, "+=" an output is accumulated into. Inputs are never changed. Outputs do not
//               overlap inputs unless "may alias" is said.
//   Order       Operations of one Device happen in the order of the calls. On the CPU a call returns when it is done; on a card
//               it returns at once, and reads only the struct itself, not what it points to.
//   Determinism Every operation gives the same bits for the same input, whatever the number of threads.
//   NULL        is allowed only where "may be NULL" is said.
//   Counts      0 rows are allowed and do nothing.
#pragma once

#include "core/data_type.h"
#include "core/error.h"

typedef struct Device Device;

typedef enum Activation {
    ACTIVATION_NONE,
    ACTIVATION_GELU_TANH,  // 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): Hendrycks & Gimpel 2016, tanh form
    ACTIVATION_GELU_ERF,   // 0.5 x (1 + erf(x / sqrt 2))
    ACTIVATION_RELU,
    ACTIVATION_SILU,  // x / (1 + exp(-x))
} Activation;

// ---- Matrix products
// ---------------------------------------------------------------------------------------------------------

// y[R,O] = activation(x[R,I] w[O,I]^T + bias[O]) + residual[R,O].
// pre[R,O] = the value before the activation, for the backward pass. residual may alias y.
// gated (only where Operations.gated_products): rows 0 .. O/2 - 1 of w give the gate, the others the value it is applied to:
// y[R,O/2] = activation(gate) * value + residual[R,O/2] (Shazeer 2020), and pre[R,O] = [gate | value].
typedef struct MatmulForward {
    int64_t rows, in, out;
    const void *x, *w;
    const void *bias;      // may be NULL
    const void *residual;  // may be NULL
    Activation activation;
    void *pre;          // may be NULL
    void *y;            // =
    bool gated;         // see above
    bool float_output;  // y is float; then neither activation, residual nor pre
} MatmulForward;

// dx[R,I] = (dy[R,O] w[O,I]) * activation'(pre[R,I]); += instead of = where `accumulate`.
// gated (only where Operations.gated_products): with d = dy w, of [R,I], and pre[R,2I] = [gate | value] this gives
// dx[R,2I] = [d * value * activation'(gate) | d * activation(gate)].
typedef struct MatmulBackwardInput {
    int64_t rows, in, out;
    const void *dy, *w;
    Activation activation;  // of the layer below, whose output was x
    const void *pre;        // NULL iff activation is ACTIVATION_NONE and not gated
    bool accumulate;        // not where gated
    void *dx;
    bool gated;
} MatmulBackwardInput;

// dw[O,I] += dy[R,O]^T x[R,I];  dbias[O] += sum over rows of dy.
typedef struct MatmulBackwardWeight {
    int64_t rows, in, out;
    const void *dy, *x;
    float *dw;     // +=, may be NULL: then x may be too
    float *dbias;  // +=, may be NULL
} MatmulBackwardWeight;

// ---- Attention
// ---------------------------------------------------------------------------------------------------------------

// Causal attention with grouped queries (Ainslie et al. 2023), documents kept apart, never a Tq x Tk matrix in memory (Rabe &
// Staats 2021; Dao et al. 2022).
//
// A sequence has Tq queries and Tk keys. Query t stands at key `offset` + t, its position, which may be negative or beyond the
// last key. It attends to the keys from first[t] (and, where window > 0, at most the last `window` up to its position) to its
// position, as far as there are such keys; where there are none, out = 0 and lse = -infinity. So
//
//     self-attention       Tq = Tk, offset 0
//     a cache              keys and values are [B, capacity, G, D], Tk = capacity, and key_lengths[b] of them count: the last
//                          query stands at the last of these. Decoding has one query, a part of a prompt has more.
//     a block of a ring    keys of another rank: offset is the position of the first query less that of the first key, and
//                          key_first the latter in the whole sequence. attention_merge joins what the blocks give. Backward is
//                          called for each block with the merged out and lse: it gives the block's part of dq and these
//                          queries' part of the block's dk and dv, and the caller adds the parts up.
//
// The score of a query at position q and key k is s = scale q.k; with a soft-cap c it becomes c tanh(s / c) (Gemma 2); with
// slopes (ALiBi: Press et al. 2022) slopes[h] * (k - q) is added after that. Dropout on the probabilities: with Q, K the
// positions in the whole sequence (q and k plus key_first) and T its length, kept where philox_unit(word 0 of
// philox(seed, stream, ((first_sample + b) * H + h) * T * T + Q * T + K)) >= dropout, then scaled by 1 / (1 - dropout). Where
// heads are cut over ranks, H counts those of all and h begins with first_head.
typedef struct AttentionShape {
    int64_t batch, queries, keys;  // sequences; Tq, Tk; below 2^29
    int32_t heads, groups, head_width;
    float scale;                 // usually 1 / sqrt(D)
    int64_t offset;              // between -2^29 and 2^29 - Tq
    const int32_t *key_lengths;  // [B] at most Tk, may be NULL; else query t stands at key_lengths[b] - Tq + t
    const int32_t *first;        // [B,Tq] not decreasing within a sequence, also < 0 or > Tk; may be NULL: 0
    int64_t window;              // 0: none
    float softcap;               // 0: none
    const float *slopes;         // [H], may be NULL
    float dropout;               // 0: none
    uint64_t seed, stream;       // of the dropout
    uint64_t first_sample;       // global index of sequence 0
    // Only dropout asks:
    int64_t key_first, length;      // position of key 0 in the whole sequence, and its length (0: Tk)
    int32_t first_head, all_heads;  // of this rank's heads in all, and their number (0: `heads`)
} AttentionShape;

// Elements from token to token and from sequence to sequence. Head h of a token lies h * D behind its first.
typedef struct HeadStrides {
    int64_t token, sequence;
} HeadStrides;

// Queries [B,Tq,H,D], keys and values [B,Tk,G,D], or their gradients. The bodies on tensor cores take addresses and strides
// that are multiples of 16 bytes; others go to slower ones.
typedef struct AttentionRows {
    void *q, *k, *v;
    HeadStrides q_stride, k_stride, v_stride;
} AttentionRows;

// Of Tq = Tk packed rows [H query heads | G key heads | G value heads], as one projection makes them.
static inline AttentionRows attention_packed(const AttentionShape *s, DataType type, void *qkv) {
    int64_t part = s->head_width * data_type_bytes(type), token = (int64_t)(s->heads + 2 * s->groups) * s->head_width;
    char *k = (char *)qkv + s->heads * part;
    HeadStrides stride = {token, s->keys * token};
    AttentionRows rows = {qkv, k, k + s->groups * part, stride, stride, stride};
    return rows;
}

typedef struct AttentionForward {
    AttentionShape shape;
    AttentionRows in;  // not written
    void *out;         // = [B,Tq,H D]
    float *lse;        // = [B,H,Tq] natural log of the sum of exponentials of scores, may be NULL
} AttentionForward;

typedef struct AttentionBackward {
    AttentionShape shape;
    AttentionRows in;         // not written
    const void *out, *dout;   // [B,Tq,H D]
    const float *lse;         // [B,H,Tq]
    AttentionRows gradients;  // =
    bool any_order;  // parts of a sum may be added as they come: other bits each time, faster where a body makes use of it
} AttentionBackward;

// Joins attention over some keys with that over others: with L = log(exp(lse) + exp(other_lse)),
// out = exp(lse - L) out + exp(other_lse - L) other and lse = L. What has seen no key (-infinity) has no share. `out` stays
// fp32 until all is joined: rounded each time, every further block of keys would cost accuracy.
typedef struct AttentionMerge {
    int64_t batch, queries;
    int32_t heads, head_width;
    const void *other;       // [B,Tq,H D]
    const float *other_lse;  // [B,H,Tq]
    float *out;              // [B,Tq,H D], changed in place
    float *lse;              // changed in place
} AttentionMerge;

// ---- Rows
// --------------------------------------------------------------------------------------------------------------------

typedef enum NormKind { NORM_LAYER, NORM_RMS } NormKind;

// LayerNorm (Ba et al. 2016): y = (x - mean) * rstd * weight + bias, rstd = 1 / sqrt(var + eps), biased variance.
// RMSNorm (Zhang & Sennrich 2019): y = x * rstd * weight, rstd = 1 / sqrt(mean(x^2) + eps).
typedef struct NormForward {
    NormKind kind;
    int64_t rows, width;
    float epsilon;
    const void *x;       // [R,C]
    const void *weight;  // [C]
    const void *bias;    // [C], may be NULL
    void *y;             // = [R,C]
    float *mean;         // = [R], NULL for RMSNorm
    float *rstd;         // = [R]
    const void *add;     // [R,C], may be NULL: sum = x + add in the compute type, and sum is normed instead of x
    void *sum;           // = [R,C], NULL iff add is; may alias x or add
} NormForward;

// dx = (or += where accumulate) the gradient through the norm; dweight +=, dbias +=.
typedef struct NormBackward {
    NormKind kind;
    int64_t rows, width;
    const void *dy, *x, *weight;
    const float *mean;  // NULL for RMSNorm
    const float *rstd;
    bool accumulate;
    void *dx;        // [R,C]; may alias dy where not accumulate
    float *dweight;  // +=, may be NULL
    float *dbias;    // +=, may be NULL
} NormBackward;

// Rotary position embedding (Su et al. 2021), in place, on the first `heads` heads of each row (the queries and keys of a qkv
// row): within a head, pair (i, i + W/2) (LLaMA, GPT-NeoX) or, where interleaved, (2i, 2i + 1) (GPT-J) of the first W =
// rotary_width elements is turned by the angle positions[r] * frequency[i], i < W/2. `inverse` turns back (the backward pass).
typedef struct Rotary {
    int64_t rows, row_stride;  // stride in elements
    int32_t heads, head_width, rotary_width;
    bool interleaved, inverse;
    const int32_t *positions;  // [R]
    const float *cos_sin;      // [most positions, W]: W/2 cosines, then W/2 sines for each position
    void *x;                   // [R, row_stride], changed in place
} Rotary;

// y = activation(x), count elements; may alias.
typedef struct ActivationForward {
    Activation activation;
    int64_t count;
    const void *x;
    void *y;  // =
} ActivationForward;

// Gated units (Shazeer 2020): pre[R,2F] = [gate | up]; y[R,F] = activation(gate) * up.
typedef struct GatedForward {
    Activation activation;
    int64_t rows, width;  // width: F
    const void *pre;
    void *y;  // =
} GatedForward;

typedef struct GatedBackward {
    Activation activation;
    int64_t rows, width;
    const void *dy, *pre;
    void *dpre;  // = [R,2F]
} GatedBackward;

// y[R,C] = scale * token_table[tokens[r]] + position_table[positions[r]]. Of a vocabulary split over ranks the table here has
// the rows of tokens first .. first + vocabulary - 1: others look up zeros and add to nothing, and the ranks' y add up.
typedef struct EmbeddingForward {
    int64_t rows, width, vocabulary;
    int64_t positions_most;      // rows of the position table; any where there is none
    const int32_t *tokens;       // [R], each in [0, tokens_most), or [0, vocabulary) where that is 0
    const int32_t *positions;    // [R], each in [0, positions_most); may be NULL where position_table is
    const void *token_table;     // [V,C]
    const void *position_table;  // [positions_most, C], may be NULL
    float scale;
    void *y;  // =
    int64_t first, tokens_most;
} EmbeddingForward;

typedef struct EmbeddingBackward {
    int64_t rows, width, vocabulary, positions_most;
    const int32_t *tokens, *positions;
    const void *dy;
    float scale;
    float *dtoken_table;     // +=, may be NULL
    float *dposition_table;  // +=, may be NULL
    int64_t first, tokens_most;
} EmbeddingBackward;

// Element i of x is kept where philox_unit(word (first + i) % 4 of philox(seed, stream, (first + i) / 4)) >= probability and
// then scaled by 1 / (1 - probability), else zero. In place; the backward pass is the same call on the gradient.
typedef struct Dropout {
    int64_t count;
    float probability;
    uint64_t seed, stream, first;  // first: global index of element 0, a multiple of 4
    void *x;
} Dropout;

// ---- Head and loss
// -----------------------------------------------------------------------------------------------------------

// The output head fused with softmax cross-entropy, in chunks of rows: the full [R,V] logits never exist.
//   logits = x[R,C] w[V,C]^T (+ bias[V]);  z = log sum exp(logits);  loss[r] = z - logits[target]
// The objective is sum over r of loss_weights[r] * (loss[r] + z_loss * z^2) (z-loss: Chowdhery et al. 2022, section 5) times
// grad_scale; dx = its gradient, and dw and dbias += theirs, where dx is not NULL. Rows of weight 0 cost no gradient; their
// target may be -1 (loss 0).
//
// With a `share` the vocabulary is split over ranks: this one holds rows share->first .. + vocabulary - 1 of w, targets are
// those of the whole vocabulary, losses and zs come out whole on every rank, and dx is this rank's part of a sum over ranks.
typedef struct ClassifierShare {
    int64_t first;  // in the whole vocabulary
    // Replaces values[count] (device memory) by the sum or the maximum over the ranks, in the order of the device's operations.
    void (*all_reduce)(void *context, float *values, int64_t count, bool maximum);
    void *context;
} ClassifierShare;

typedef struct Classifier {
    int64_t rows, width, vocabulary;
    const void *x, *w;
    const void *bias;           // may be NULL
    const int32_t *targets;     // [R]
    const float *loss_weights;  // [R]
    float z_loss, grad_scale;
    float *losses;                 // = [R] without weight and z-loss
    float *zs;                     // = [R] z, may be NULL
    void *dx;                      // = [R,C], NULL: forward only
    float *dw;                     // += [V,C], may be NULL, and is where dx is
    float *dbias;                  // += [V], may be NULL, and is where dx is
    int64_t chunk_rows;            // rows of logits held at a time
    void *scratch;                 // classifier_scratch_bytes of scratch.h
    const float *loss_scale;       // one float that also multiplies grad_scale, may be NULL
    const ClassifierShare *share;  // host, may be NULL
} Classifier;

// One token for each row of logits: among the top_k likeliest (0: all), of these the likeliest that together make up top_p of
// the probability (1: all), at that temperature (0: the likeliest, the lowest id among equals). Ids >= usable are never drawn.
// A row with a usable logit that is not finite draws -1. Row r is decided by the upper 53 bits of philox_u64(seed, stream,
// index[r]).
typedef struct Sample {
    int64_t rows, vocabulary, usable;
    const float *logits;  // [R,V]
    double temperature, top_p;
    int64_t top_k;
    uint64_t seed, stream;
    const int64_t *index;  // [R]
    int32_t *tokens;       // = [R], -1 where there is nothing to draw from
    void *scratch;         // sample_scratch_bytes of scratch.h, device memory
} Sample;

// ---- Parameters
// --------------------------------------------------------------------------------------------------------------

typedef enum OptimizerKind {
    OPTIMIZER_ADAMW,  // Loshchilov & Hutter 2019, algorithm 2 (decoupled decay): both moments
    OPTIMIZER_LION,   // Chen et al. 2023, algorithm 2: first moment
    OPTIMIZER_SGD,    // momentum, decoupled decay: first moment
} OptimizerKind;

// ---- The step
// --------------------------------------------------------------------------------------------------------------------

// What a step knows of itself lies on the device, so that a card need not be asked before it can go on.
typedef struct StepControl {
    double loss_sum, z_sum, weight_sum;  // over micro-batches, then ranks: see LossSums; the host zeroes them
    double grad_squares;                 // sum of squares of the gradients
    double grad_norm;                    // = of the mean gradient, before clipping
    int64_t updates;                     // made so far, this one included
    float learning_rate;                 // set by the host
    float grad_scale;                    // what the update multiplies gradients by
    float correction1, correction2;      // 1 / (1 - beta^updates)
    float loss_scale;                    // 1 but for fp16
    int32_t good_steps;                  // since the loss scale last changed
    int32_t skip;                        // 1: the gradient is not finite (or has no weight), parameters stay
    int32_t skipped, skipped_in_a_row;   // counts; in a row only what a falling loss scale does not explain
    int32_t reserved;
} StepControl;

// loss_sum += sum of loss_weights * losses, z_sum += sum of loss_weights * zs^2, weight_sum += sum of loss_weights: in double,
// in an order that depends on `rows` alone. Rows of weight 0 do not count, whatever their loss.
typedef struct LossSums {
    int64_t rows;
    const float *loss_weights, *losses;
    const float *zs;  // may be NULL
    StepControl *control;
} LossSums;

// From the sums (of all ranks) to what the update needs. The gradients are sums of weight * gradient * loss_scale /
// batch_weight:
//   mean = batch_weight / weight_sum;  grad_norm = sqrt(grad_squares) * mean / loss_scale
//   grad_scale = mean / loss_scale * min(1, clip / grad_norm)  (clip 0: no clipping);  updates, corrections advance
// and where grad_norm is not finite or weight_sum is not positive: skip, and no update is counted. With dynamic_scale a skip
// halves the loss scale (not below 1) and 2000 good steps in a row double it (to at most 2^24) (Micikevicius et al. 2018).
typedef struct StepDecide {
    StepControl *control;
    double batch_weight;
    float clip;
    float beta1, beta2;
    bool dynamic_scale;
} StepDecide;

typedef enum MomentType {
    MOMENT_FP32,
    MOMENT_8BIT,  // Dettmers et al. 2022: a code a value (kernels/quantize.h: TYPE_CODE8 for the first moment,
                  // TYPE_CODE8_UNSIGNED for the second) and one float scale for each MOMENT_BLOCK values. All bytes 0 stand
                  // for moments of 0.
} MomentType;

enum { MOMENT_BLOCK = DATA_TYPE_BLOCK };

// A run of parameters that share their settings, and where it lies: the index of its first element in each of three arrays.
// Places are multiples of 4, so that cards take four elements in one access. Segments rise by `state` and do not overlap there.
// With 8-bit moments `state` is a multiple of MOMENT_BLOCK: a block of codes holds values of one segment alone.
typedef struct UpdateSegment {
    int64_t weight;    // in the weights
    int64_t gradient;  // in the gradients
    int64_t state;     // in what only the optimizer keeps: masters and moments
    int64_t count;
    uint64_t random;  // the logical flat index of its first element, a multiple of 4: decides how it is rounded
    float rate_scale, weight_decay;
} UpdateSegment;

// One update of all segments (in device memory), in one launch:  g = grads * control->grad_scale, lr = learning_rate *
// rate_scale
//   adamw  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p -= lr (m c1 / (sqrt(v c2) + eps) + decay p)
//   lion   u = sign(b1 m + (1 - b1) g);  m = b2 m + (1 - b2) g;  p -= lr (u + decay p)
//   sgd    m = b1 m + g;  p -= lr (m + decay p)
// With masters p is the master, and the weight becomes a copy of it, rounded to nearest-even. Without, p is the weight itself:
// an fp32 one is not rounded, one of 16 bits is rounded stochastically, up with the probability that makes the mean right, by
// word ((random + i) % 4) of philox(seed, stream, (random + i) / 4) for element i of a segment, where stream is
// philox_stream(RANDOM_ROUNDING, control->updates).
// What belongs to no segment is neither read nor changed, but for the codes behind a segment's end in its last block, which
// become those of 0. Does nothing where control->skip.
typedef struct OptimizerUpdate {
    OptimizerKind kind;
    const UpdateSegment *segments;
    int64_t segment_count;
    int64_t count;  // elements of the masters and of each moment; a multiple of MOMENT_BLOCK where the moments are 8-bit
    float beta1, beta2, epsilon;
    const StepControl *control;
    const float *grads;
    float *masters;  // may be NULL
    void *weights;   // in the compute type
    MomentType moment_type;
    void *moment1, *moment2;  // float or uint8_t; moment2 NULL where the kind has none
    float *scale1, *scale2;   // [count / MOMENT_BLOCK], NULL where the moments are fp32; scale2 also where moment2 is
    uint64_t seed;
} OptimizerUpdate;

// Rounds to nearest-even between types; `to` may be `from` where the types are the same size.
typedef struct Convert {
    int64_t count;
    DataType from_type, to_type;
    const void *from;
    void *to;
} Convert;

// rows of row_bytes each; strides in bytes.
typedef struct CopyRows {
    int64_t rows, row_bytes;
    const void *from;
    int64_t from_stride;
    void *to;
    int64_t to_stride;
} CopyRows;

// y[i] = the sum over p of x[p * stride + i], i < count, p < parts (1 .. 2^SUM_PARTS_LEVELS): neighbours are added, then
// neighbouring pairs, and so on; where the parts are no power of two, what is left over at the end is added to from the right.
// So the sums of runs of 2^k parts that begin at multiples of 2^k are found again within it. y may be one of the parts.
typedef struct SumParts {
    bool wide;  // doubles, else floats
    int64_t count, parts, stride;
    const void *x;
    void *y;
} SumParts;

enum { SUM_PARTS_LEVELS = 16 };

// ---- The table
// ---------------------------------------------------------------------------------------------------------------

// Every operation and what it takes, once: the table, both backends' declarations and their tables are made of this list.
// clang-format off
#define EACH_OPERATION(X)                                      \
    X(matmul_forward, const MatmulForward *a)                  \
    X(matmul_backward_input, const MatmulBackwardInput *a)     \
    X(matmul_backward_weight, const MatmulBackwardWeight *a)   \
    X(attention_forward, const AttentionForward *a)            \
    X(attention_backward, const AttentionBackward *a)          \
    X(attention_merge, const AttentionMerge *a)                \
    X(norm_forward, const NormForward *a)                      \
    X(norm_backward, const NormBackward *a)                    \
    X(rotary, const Rotary *a)                                 \
    X(activation_forward, const ActivationForward *a)          \
    X(gated_forward, const GatedForward *a)                    \
    X(gated_backward, const GatedBackward *a)                  \
    X(embedding_forward, const EmbeddingForward *a)            \
    X(embedding_backward, const EmbeddingBackward *a)          \
    X(dropout, const Dropout *a)                               \
    X(classifier, const Classifier *a)                         \
    X(sample, const Sample *a)                                 \
    X(loss_sums, const LossSums *a)                            \
    X(step_decide, const StepDecide *a)                        \
    X(optimizer_update, const OptimizerUpdate *a)              \
    X(convert, const Convert *a)                               \
    X(copy_rows, const CopyRows *a)                            \
    X(sum_parts, const SumParts *a)                            \
    /* y += x, count elements of the compute type. */          \
    X(add, int64_t count, const void *x, void *y)              \
    /* y += x, x of the compute type, y fp32. */               \
    X(accumulate, int64_t count, const void *x, float *y)      \
    /* x = 0. */                                               \
    X(zero, int64_t bytes, void *x)                            \
    /* y = x * scale in place, fp32. */                        \
    X(scale, int64_t count, float scale, float *x)             \
    /* *sum = the sum of squares, in an order that depends on count alone; not finite if any element is not. */ \
    X(squares, int64_t count, const float *x, double *sum)
// clang-format on

typedef struct Operations {
    const char *name;     // "cpu avx512"
    bool gated_products;  // the matrix products take `gated`
#define OPERATION(operation, ...) void (*operation)(Device * device, __VA_ARGS__);
    EACH_OPERATION(OPERATION)
#undef OPERATION
} Operations;
