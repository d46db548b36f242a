// Matrix products by the vendor's library (cuBLASLt), the alternative to ours where a machine has it. Not in the simulator.
//
// The library thinks in columns: our row-major C[M,N] is its C^T[N,M] = B^T A^T, so w or x comes first and the activations
// second. What its epilogues cannot express is done behind it: it leaves the plain sums, rounded to the compute type, in C, in
// pre or in the workspace, and product_finish_sums takes them from there.
//
// The algorithm is the library's first suggestion for a shape and is kept; sums split along K are added in fp32, in a fixed
// order. Products that it does not take are left to ours.
#ifndef ATHANOR_SIMULATED

#include "kernels/cuda/element.h"
#include "kernels/cuda/matmul.h"

#include <cublasLt.h>

namespace BACKEND {

static const size_t LIBRARY_WORKSPACE = (size_t)32 << 20;

// What the library is asked for: D = epilogue(A B + bias) + beta * C.
typedef struct Request {
    int64_t m, n, k;  // of C; n: rows of B
    int64_t a_stride, b_stride, c_stride, d_stride, aux_stride;
    int32_t form, type, d_type, epilogue, has_beta;
    int32_t a_alignment, b_alignment, c_alignment, d_alignment;
} Request;

typedef struct Plan {
    Request request;
    bool possible;
    cublasLtMatmulAlgo_t algorithm;
} Plan;

struct CublasPlans {
    cublasLtHandle_t library;
    Plan *plans;
    size_t count, capacity;
};

// The pointers of a request.
typedef struct Places {
    const void *a, *b, *c, *bias, *aux;
    void *d;
} Places;

typedef struct Descriptors {
    cublasLtMatmulDescOpaque_t product;
    cublasLtMatrixLayoutOpaque_t first, second, c, d;
} Descriptors;

static cudaDataType_t library_type(int32_t type) {
    return type == TYPE_BF16 ? CUDA_R_16BF : type == TYPE_FP16 ? CUDA_R_16F : CUDA_R_32F;
}

static int32_t alignment(const void *pointer) {
    uintptr_t lowest = (uintptr_t)pointer & -(uintptr_t)pointer;
    return pointer == NULL || lowest > 256 ? 256 : (int32_t)lowest;
}

static bool describe(const Request *r, const Places *at, Descriptors *out) {
    cudaDataType_t type = library_type(r->type), d_type = library_type(r->d_type);
    bool a_major = r->form == PRODUCT_BACKWARD_WEIGHT, b_major = r->form != PRODUCT_FORWARD;
    cublasOperation_t first = b_major ? CUBLAS_OP_N : CUBLAS_OP_T, second = a_major ? CUBLAS_OP_T : CUBLAS_OP_N;
    uint64_t m = (uint64_t)r->m, n = (uint64_t)r->n, k = (uint64_t)r->k;
    cublasLtEpilogue_t epilogue = (cublasLtEpilogue_t)r->epilogue;
    bool good =
        cublasLtMatmulDescInit(&out->product, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS &&
        cublasLtMatrixLayoutInit(&out->first, type, b_major ? n : k, b_major ? k : n, r->b_stride) == CUBLAS_STATUS_SUCCESS &&
        cublasLtMatrixLayoutInit(&out->second, type, a_major ? m : k, a_major ? k : m, r->a_stride) == CUBLAS_STATUS_SUCCESS &&
        cublasLtMatrixLayoutInit(&out->c, d_type, n, m, r->c_stride) == CUBLAS_STATUS_SUCCESS &&
        cublasLtMatrixLayoutInit(&out->d, d_type, n, m, r->d_stride) == CUBLAS_STATUS_SUCCESS;
#define SET(attribute, value)                                                                                                  \
    good = good && cublasLtMatmulDescSetAttribute(&out->product, attribute, &value, sizeof value) == CUBLAS_STATUS_SUCCESS
    SET(CUBLASLT_MATMUL_DESC_TRANSA, first);
    SET(CUBLASLT_MATMUL_DESC_TRANSB, second);
    SET(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
    if (at->bias != NULL) {
        SET(CUBLASLT_MATMUL_DESC_BIAS_POINTER, at->bias);
    }
    if (at->aux != NULL) {
        SET(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, at->aux);
        SET(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, r->aux_stride);
    }
#undef SET
    return good;
}

// Asks the library for its algorithm.
static bool suggest(cublasLtHandle_t library, const Request *r, Descriptors *d, cublasLtMatmulAlgo_t *out) {
    cublasLtMatmulPreferenceOpaque_t preference;
    bool good = cublasLtMatmulPreferenceInit(&preference) == CUBLAS_STATUS_SUCCESS;
    uint64_t workspace = LIBRARY_WORKSPACE;
    uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    uint32_t first = (uint32_t)r->b_alignment, second = (uint32_t)r->a_alignment;
    uint32_t c = (uint32_t)r->c_alignment, result = (uint32_t)r->d_alignment;
#define SET(attribute, value)                                                                                                  \
    good = good && cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof value) == CUBLAS_STATUS_SUCCESS
    SET(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace);
    SET(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
    SET(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, first);
    SET(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, second);
    SET(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c);
    SET(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, result);
#undef SET
    cublasLtMatmulHeuristicResult_t found = {};
    int count = 0;
    good = good && cublasLtMatmulAlgoGetHeuristic(library, &d->product, &d->first, &d->second, &d->c, &d->d, &preference, 1,
                                                  &found, &count) == CUBLAS_STATUS_SUCCESS;
    *out = found.algo;
    return good && count > 0 && found.state == CUBLAS_STATUS_SUCCESS;
}

static CublasPlans *plans_of(Card *card) {
    struct MatmulChoices *choices = card->choices;
    if (choices->cublas == NULL) {
        CublasPlans *plans = (CublasPlans *)memory_zeroed(1, sizeof *plans);
        cudaSetDevice(card->ordinal);
        if (cublasLtCreate(&plans->library) != CUBLAS_STATUS_SUCCESS) {
            plans->library = NULL;
        }
        choices->cublas = plans;
    }
    return choices->cublas;
}

// False where the library cannot; then nothing was done.
static bool compute(Card *card, Request *r, const Places *at, void *workspace) {
    CublasPlans *plans = plans_of(card);
    if (plans->library == NULL) {
        return false;
    }
    r->has_beta = at->c != NULL;
    r->a_alignment = alignment(at->a);
    r->b_alignment = alignment(at->b);
    r->c_alignment = at->c != NULL ? alignment(at->c) : alignment(at->d);
    r->d_alignment = alignment(at->d);
    Descriptors d;
    bool described = describe(r, at, &d);
    Plan *plan = NULL;
    for (size_t i = 0; i < plans->count && plan == NULL; i++) {
        plan = memcmp(&plans->plans[i].request, r, sizeof *r) == 0 ? &plans->plans[i] : NULL;
    }
    if (plan == NULL) {
        if (plans->count == plans->capacity) {
            plans->capacity = plans->capacity > 0 ? 2 * plans->capacity : 32;
            plans->plans = (Plan *)memory_resize(plans->plans, plans->capacity, sizeof(Plan));
        }
        plan = &plans->plans[plans->count++];
        plan->request = *r;
        plan->possible = described && suggest(plans->library, r, &d, &plan->algorithm);
    }
    if (!plan->possible) {
        return false;
    }
    float one = 1, beta = at->c != NULL ? 1.0f : 0.0f;
    return cublasLtMatmul(plans->library, &d.product, &one, at->b, &d.first, at->a, &d.second, &beta,
                          at->c != NULL ? at->c : at->d, &d.c, at->d, &d.d, &plan->algorithm, workspace, LIBRARY_WORKSPACE,
                          card->stream) == CUBLAS_STATUS_SUCCESS;
}

// The epilogue of the library that is all of ours, if there is one.
static bool library_epilogue(const Product *p, cublasLtEpilogue_t *out) {
    bool bias = p->bias != NULL, pre = p->pre != NULL, eights = p->aligned && p->n % 8 == 0;
    *out = bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    if (p->type == TYPE_FP32) {
        return p->activation == ACTIVATION_NONE && !pre && !bias && p->epilogue != EPILOGUE_GATED &&
               p->epilogue != EPILOGUE_GATED_BACKWARD;
    }
    if (p->epilogue == EPILOGUE_FORWARD) {
        if (p->activation == ACTIVATION_NONE) {
            return !pre && !(bias && p->float_output);
        }
        if (p->activation == ACTIVATION_RELU && !pre && p->residual == NULL) {
            *out = bias ? CUBLASLT_EPILOGUE_RELU_BIAS : CUBLASLT_EPILOGUE_RELU;
            return true;
        }
        if (p->activation == ACTIVATION_GELU_TANH && eights && p->residual == NULL) {
            *out = pre    ? bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX
                   : bias ? CUBLASLT_EPILOGUE_GELU_BIAS
                          : CUBLASLT_EPILOGUE_GELU;
            return true;
        }
    } else if (p->epilogue == EPILOGUE_BACKWARD) {
        if (p->activation == ACTIVATION_GELU_TANH && eights && !p->accumulate) {
            *out = CUBLASLT_EPILOGUE_DGELU;
            return true;
        }
        return p->activation == ACTIVATION_NONE;
    }
    return false;
}

bool product_cublas(Card *card, const Product *p) {
    Request r = {};
    r.m = p->m;
    r.n = product_b_rows(p);
    r.k = p->k;
    r.a_stride = p->a_stride;
    r.b_stride = p->b_stride;
    r.form = p->form;
    r.type = p->type;
    Places at = {};
    at.a = p->a;
    at.b = p->b;
    cublasLtEpilogue_t epilogue;
    if (library_epilogue(p, &epilogue)) {
        r.d_type = p->float_output ? TYPE_FP32 : p->type;
        r.epilogue = epilogue;
        r.c_stride = r.d_stride = p->c_stride;
        at.d = p->c;
        at.c = p->accumulate ? p->c : p->residual;
        at.bias = p->bias;
        if (epilogue == CUBLASLT_EPILOGUE_GELU_AUX || epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS ||
            epilogue == CUBLASLT_EPILOGUE_DGELU) {
            at.aux = p->pre;
            r.aux_stride = p->pre_stride;
        }
        void *workspace = card_workspace(card, LIBRARY_WORKSPACE);
        if (workspace != NULL && compute(card, &r, &at, workspace)) {
            return true;
        }
    }

    // The plain product, then our epilogue. Sums may lie where the result or pre will be written, place by place.
    bool raw_float = p->float_output;
    bool in_pre = p->pre != NULL && p->form == PRODUCT_FORWARD && p->pre_stride == r.n && !raw_float;
    bool in_c = !in_pre && !p->accumulate && p->residual != p->c && r.n == p->n && p->epilogue != EPILOGUE_GATED_BACKWARD &&
                p->c_stride == p->n;
    size_t raw_bytes = in_pre || in_c ? 0 : (size_t)(r.m * r.n * (raw_float ? 4 : data_type_bytes(p->type)));
    unsigned char *workspace = (unsigned char *)card_workspace(card, LIBRARY_WORKSPACE + raw_bytes);
    if (workspace == NULL) {
        return false;
    }
    r.d_type = raw_float ? TYPE_FP32 : p->type;
    r.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    r.c_stride = r.d_stride = r.n;
    r.aux_stride = 0;
    at.d = in_pre ? p->pre : in_c ? p->c : workspace + LIBRARY_WORKSPACE;
    at.c = at.bias = at.aux = NULL;
    if (!compute(card, &r, &at, workspace)) {
        return false;
    }
    product_finish_sums(card, p, at.d, r.n, raw_float, 1);
    return true;
}

bool product_cublas_exists(void) {
    cublasLtHandle_t library = NULL;
    bool exists = cublasLtCreate(&library) == CUBLAS_STATUS_SUCCESS;
    if (exists) {
        cublasLtDestroy(library);
    }
    return exists;
}

void product_cublas_close(Card *card) {
    CublasPlans *plans = card->choices->cublas;
    if (plans != NULL) {
        if (plans->library != NULL) {
            cublasLtDestroy(plans->library);
        }
        free(plans->plans);
        free(plans);
        card->choices->cublas = NULL;
    }
}

}  // namespace BACKEND

#endif
