// A matrix product with all that is done to its result: the one description that every body of it takes. Private to matmul*.cu.
//
//   matmul.cu         from the operations to Products; which body computes a shape
//   matmul_sm80.cu    tensor cores of any card (mma.sync), tiles of 128 x 128 and 64 x 64, split sums
//   matmul_sm90.cu    tensor cores of Hopper (wgmma), TMA, clusters
//   matmul_few.cu     few rows against many weights: decoding
//   matmul_float.cu   the fp32 compute type, for debugging
//   matmul_cublas.cu  the vendor's library
//
// What happens to a sum once it is in registers is written once: matmul_epilogue.h.
#pragma once

#include "kernels/cuda/card.h"

namespace BACKEND {

// C[M,N] from A[M,K] B[K,N]. The form says which dimension of each operand is contiguous:
//
//   form              product                  M  N  K    A at (m, k)         B at (k, n)
//   forward           y[R,O]  = x w[O,I]^T     R  O  I    m * a_stride + k    n * b_stride + k    both K-major
//   backward input    dx[R,I] = dy w[O,I]      R  I  O    m * a_stride + k    k * b_stride + n    B N-major
//   backward weight   dw[O,I] = dy[R,O]^T x    O  I  R    k * a_stride + m    k * b_stride + n    both MN-major
typedef enum ProductForm { PRODUCT_FORWARD, PRODUCT_BACKWARD_INPUT, PRODUCT_BACKWARD_WEIGHT } ProductForm;

typedef enum ProductEpilogue {
    // t = A B + bias;  pre = t;  C = activation(t) + residual.
    EPILOGUE_FORWARD,
    // Form forward only; B and bias have 2 N rows. gate = row n of them, value = row N + n:
    // pre = [gate | value], of 2 N columns;  C = activation(gate) * value + residual.
    EPILOGUE_GATED,
    // C = (or += where accumulate) A B * activation'(pre).
    EPILOGUE_BACKWARD,
    // d = A B;  pre = [gate | value] and C have 2 N columns:  C = [d * value * activation'(gate) | d * activation(gate)].
    EPILOGUE_GATED_BACKWARD,
} ProductEpilogue;

// Strides count elements, from row to row; the other dimension is contiguous. Where a stride is more than a row is long, the
// memory of the last row reaches as far as that of the others. What lies behind the rows of A and B may be read, counts for
// nothing, and is finite behind those of A in the form backward input (it is multiplied by zeros). Passed to kernels by value.
typedef struct Product {
    ProductForm form;
    ProductEpilogue epilogue;
    Activation activation;
    DataType type;      // of all tensors but a float_output C
    bool float_output;  // C is float
    bool accumulate;    // EPILOGUE_BACKWARD: C +=
    // Every row of C, pre, residual and bias begins at a multiple of 16 bytes, and so does its second half where gated, so that
    // 8 columns move at a time, but for the last ones of an odd N. Otherwise the epilogue goes element by element.
    bool aligned;
    int64_t m, n, k;
    const void *a, *b;
    int64_t a_stride, b_stride;
    const void *bias;      // [N], or [2 N] where gated; NULL: none
    const void *residual;  // [M,N], rows c_stride apart; NULL: none; may be C
    void *pre;             // written by the forward epilogues (NULL: not), read by the backward ones (NULL: no activation)
    void *c;
    int64_t c_stride, pre_stride;
} Product;

// Rows of B: twice N where gated.
static inline int64_t product_b_rows(const Product *p) {
    return p->epilogue == EPILOGUE_GATED ? 2 * p->n : p->n;
}

// ---- Bodies. Each computes the whole product, or returns false before it has done anything where it cannot take the shape.

bool product_sm80(Card *card, const Product *p);    // bf16 and fp16, any shape
bool product_sm90(Card *card, const Product *p);    // where ATHANOR_HAVE_SM90, architecture 90
bool product_few(Card *card, const Product *p);     // form forward, few rows
bool product_float(Card *card, const Product *p);   // fp32, any shape
bool product_cublas(Card *card, const Product *p);  // not in the simulator

// Which operands product_sm80 copies 16 bytes at a time. Each that it does not costs several times the instructions, and allows
// small tiles alone.
void product_sm80_chunks(const Product *p, bool *a, bool *b);

// ---- For operations that need more than the table's matrix products do: rows with strides (classifier.cu). In matmul.cu.

// The product, by the body that is chosen for its shape; `aligned` is found here.
void product_compute(Card *card, const Product *p);

// dbias[O] += sum over rows of dy[R,O], whose rows are `stride` elements apart.
void bias_gradient(Card *card, DataType type, int64_t rows, int64_t out, const void *dy, int64_t stride, float *dbias);

// Whether this machine has the vendor's library.
bool product_cublas_exists(void);
// Gives back what product_cublas keeps of a card.
void product_cublas_close(Card *card);

// The epilogue of sums that lie in memory: raw[part][M][N] (of 2 N columns where gated: [gate | value]), rows `stride` elements
// apart, fp32, or the compute type where raw_float is false; the parts are added in their order. How split sums end, and
// products of the library.
void product_finish_sums(Card *card, const Product *p, const void *raw, int64_t stride, bool raw_float, int parts);

// The stride of split sums: every row begins at a multiple of 16 bytes.
static inline int64_t product_sums_stride(const Product *p) {
    return (product_b_rows(p) + 3) / 4 * 4;
}

// ---- Which body computes a shape: matmul.cu's part of a Card

typedef enum ProductBody { BODY_FLOAT, BODY_FEW, BODY_SM90, BODY_SM80, BODY_CUBLAS, BODY_COUNT } ProductBody;

// All that a choice depends on. No padding: compared as bytes.
typedef struct ProductShape {
    int32_t form, type, activation, has;  // has: PRODUCT_HAS_...
    int64_t m, n, k;
} ProductShape;
enum {
    PRODUCT_HAS_GATE = 1,
    PRODUCT_HAS_BIAS = 2,
    PRODUCT_HAS_RESIDUAL = 4,
    PRODUCT_HAS_PRE = 8,
    PRODUCT_HAS_ACCUMULATE = 16,
    PRODUCT_HAS_FLOAT = 32,
};

typedef struct ProductChoice {
    ProductShape shape;
    ProductBody body;
    const char *why;                     // "rule", "trial" or "loaded"
    float ours_seconds, cublas_seconds;  // of the trial
} ProductChoice;

struct MatmulChoices {
    const char *products;  // as in device_set_products
    ProductChoice *items;
    size_t count, capacity;
    struct CublasPlans *cublas;  // matmul_cublas.cu's
};

}  // namespace BACKEND
