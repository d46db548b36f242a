// NCCL's functions, found when they are first called: a machine without the library exchanges through host memory
// (transport_nccl.c asks). For real cards alone; the simulated card answers these calls itself.
#include "core/library.h"

#include <nccl.h>
#include <stdatomic.h>
#include <stddef.h>

#ifndef ATHANOR_NCCL  // where the build saw it
#define ATHANOR_NCCL NULL
#endif

// Hands a call on.
#define FORWARD_TO(result, missing, name, parameters, arguments)                                                               \
    result name parameters {                                                                                                   \
        typedef result(*Function) parameters;                                                                                  \
        static _Atomic(Function) found;                                                                                        \
        Function function = atomic_load(&found);                                                                               \
        if (function == NULL) {                                                                                                \
            function = (Function)library_function("libnccl.so.2", ATHANOR_NCCL, #name);                                        \
            atomic_store(&found, function);                                                                                    \
        }                                                                                                                      \
        return function != NULL ? function arguments : missing;                                                                \
    }
#define FORWARD(name, parameters, arguments) FORWARD_TO(ncclResult_t, ncclSystemError, name, parameters, arguments)

FORWARD_TO(const char *, "NCCL's library (libnccl.so.2) is not here", ncclGetErrorString, (ncclResult_t code), (code))
FORWARD_TO(const char *, NULL, ncclGetLastError, (ncclComm_t ranks), (ranks))
FORWARD(ncclGetVersion, (int *version), (version))
FORWARD(ncclGetUniqueId, (ncclUniqueId * id), (id))
FORWARD(ncclCommInitRank, (ncclComm_t * out, int size, ncclUniqueId id, int rank), (out, size, id, rank))
FORWARD(ncclCommDestroy, (ncclComm_t ranks), (ranks))
FORWARD(ncclCommAbort, (ncclComm_t ranks), (ranks))
FORWARD(ncclCommGetAsyncError, (ncclComm_t ranks, ncclResult_t *code), (ranks, code))
FORWARD(ncclAllReduce,
        (const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t how, ncclComm_t ranks, cudaStream_t stream),
        (from, to, count, type, how, ranks, stream))
FORWARD(ncclReduce,
        (const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t how, int root, ncclComm_t ranks,
         cudaStream_t stream),
        (from, to, count, type, how, root, ranks, stream))
FORWARD(ncclReduceScatter,
        (const void *from, void *to, size_t count_each, ncclDataType_t type, ncclRedOp_t how, ncclComm_t ranks,
         cudaStream_t stream),
        (from, to, count_each, type, how, ranks, stream))
FORWARD(ncclAllGather,
        (const void *from, void *to, size_t count_each, ncclDataType_t type, ncclComm_t ranks, cudaStream_t stream),
        (from, to, count_each, type, ranks, stream))
FORWARD(ncclBroadcast,
        (const void *from, void *to, size_t count, ncclDataType_t type, int root, ncclComm_t ranks, cudaStream_t stream),
        (from, to, count, type, root, ranks, stream))
FORWARD(ncclSend, (const void *from, size_t count, ncclDataType_t type, int peer, ncclComm_t ranks, cudaStream_t stream),
        (from, count, type, peer, ranks, stream))
FORWARD(ncclRecv, (void *to, size_t count, ncclDataType_t type, int peer, ncclComm_t ranks, cudaStream_t stream),
        (to, count, type, peer, ranks, stream))
// NCCL's header declares these two without a prototype.
ncclResult_t ncclGroupStart(void);
ncclResult_t ncclGroupEnd(void);
FORWARD(ncclGroupStart, (void), ())
FORWARD(ncclGroupEnd, (void), ())
