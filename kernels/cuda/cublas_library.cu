// cuBLASLt's functions, found when they are first called: a machine without the library has ours alone. Not in the simulator.
#ifndef ATHANOR_SIMULATED

extern "C" {
#include "core/library.h"
}

#include <cublasLt.h>

#ifndef ATHANOR_CUBLASLT  // where the build saw it
#define ATHANOR_CUBLASLT NULL
#endif
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

// Hands a call on. Without the library nothing can be made that the calls behind the first could be given.
#define FORWARD(name, parameters, arguments)                                                                                   \
    cublasStatus_t name parameters {                                                                                           \
        typedef cublasStatus_t(*Function) parameters;                                                                          \
        static const Function function =                                                                                       \
            (Function)library_function("libcublasLt.so." TEXT(CUBLAS_VER_MAJOR), ATHANOR_CUBLASLT, #name);                     \
        return function != NULL ? function arguments : CUBLAS_STATUS_NOT_INITIALIZED;                                          \
    }

FORWARD(cublasLtCreate, (cublasLtHandle_t * library), (library))
FORWARD(cublasLtDestroy, (cublasLtHandle_t library), (library))
FORWARD(cublasLtMatmulDescInit_internal,
        (cublasLtMatmulDesc_t out, size_t size, cublasComputeType_t type, cudaDataType_t scale), (out, size, type, scale))
FORWARD(cublasLtMatmulDescSetAttribute,
        (cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t attribute, const void *value, size_t size),
        (product, attribute, value, size))
FORWARD(cublasLtMatrixLayoutInit_internal,
        (cublasLtMatrixLayout_t out, size_t size, cudaDataType type, uint64_t rows, uint64_t columns, int64_t stride),
        (out, size, type, rows, columns, stride))
FORWARD(cublasLtMatmulPreferenceInit_internal, (cublasLtMatmulPreference_t out, size_t size), (out, size))
FORWARD(cublasLtMatmulPreferenceSetAttribute,
        (cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute, const void *value, size_t size),
        (preference, attribute, value, size))
FORWARD(cublasLtMatmulAlgoGetHeuristic,
        (cublasLtHandle_t library, cublasLtMatmulDesc_t product, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
         cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference, int most,
         cublasLtMatmulHeuristicResult_t results[], int *count),
        (library, product, a, b, c, d, preference, most, results, count))
FORWARD(cublasLtMatmul,
        (cublasLtHandle_t library, cublasLtMatmulDesc_t product, const void *alpha, const void *a,
         cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
         cublasLtMatrixLayout_t c_layout, void *d, cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algorithm,
         void *workspace, size_t bytes, cudaStream_t stream),
        (library, product, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout, algorithm, workspace, bytes,
         stream))

#endif
