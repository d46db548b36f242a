// NCCL of the simulated GPU, for C and C++: what the product calls of it, answered over MPI (../nccl.cpp). The real library may
// be linked into the same program: every function has another name here, and macros map NCCL's. Meanings are those of 2.28.
#pragma once

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NCCL_VERSION_CODE 22809

typedef struct SimulatedNccl *ncclComm_t;
enum { NCCL_UNIQUE_ID_BYTES = 128 };
typedef struct ncclUniqueId {
    char internal[NCCL_UNIQUE_ID_BYTES];
} ncclUniqueId;

typedef enum ncclResult {
    ncclSuccess = 0,
    ncclUnhandledCudaError = 1,
    ncclSystemError = 2,
    ncclInternalError = 3,
    ncclInvalidArgument = 4,
    ncclInvalidUsage = 5,
    ncclRemoteError = 6,
    ncclInProgress = 7,
} ncclResult_t;
typedef enum ncclRedOp { ncclSum = 0, ncclMax = 2, ncclAvg = 4 } ncclRedOp_t;
typedef enum ncclDataType {
    ncclInt8 = 0,
    ncclChar = 0,
    ncclFloat16 = 6,
    ncclHalf = 6,
    ncclFloat32 = 7,
    ncclFloat = 7,
    ncclFloat64 = 8,
    ncclDouble = 8,
    ncclBfloat16 = 9,
} ncclDataType_t;

#define ncclGetVersion simulated_ncclGetVersion
#define ncclGetErrorString simulated_ncclGetErrorString
#define ncclGetLastError simulated_ncclGetLastError
#define ncclGetUniqueId simulated_ncclGetUniqueId
#define ncclCommInitRank simulated_ncclCommInitRank
#define ncclCommSplit simulated_ncclCommSplit
#define ncclCommDestroy simulated_ncclCommDestroy
#define ncclCommAbort simulated_ncclCommAbort
#define ncclCommGetAsyncError simulated_ncclCommGetAsyncError
ncclResult_t ncclGetVersion(int *version);
const char *ncclGetErrorString(ncclResult_t result);
const char *ncclGetLastError(ncclComm_t comm);
ncclResult_t ncclGetUniqueId(ncclUniqueId *id);
ncclResult_t ncclCommInitRank(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank);
ncclResult_t ncclCommSplit(ncclComm_t comm, int colour, int key, ncclComm_t *part, void *config);
ncclResult_t ncclCommDestroy(ncclComm_t comm);
ncclResult_t ncclCommAbort(ncclComm_t comm);
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error);

#define ncclAllReduce simulated_ncclAllReduce
#define ncclReduce simulated_ncclReduce
#define ncclReduceScatter simulated_ncclReduceScatter
#define ncclAllGather simulated_ncclAllGather
#define ncclBroadcast simulated_ncclBroadcast
#define ncclSend simulated_ncclSend
#define ncclRecv simulated_ncclRecv
#define ncclGroupStart simulated_ncclGroupStart
#define ncclGroupEnd simulated_ncclGroupEnd
ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t how, ncclComm_t comm,
                           cudaStream_t stream);
ncclResult_t ncclReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t how, int root,
                        ncclComm_t comm, cudaStream_t stream);
ncclResult_t ncclReduceScatter(const void *from, void *to, size_t count_each, ncclDataType_t type, ncclRedOp_t how,
                               ncclComm_t comm, cudaStream_t stream);
ncclResult_t ncclAllGather(const void *from, void *to, size_t count_each, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream);
ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                           cudaStream_t stream);
ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream);
ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream);
ncclResult_t ncclGroupStart(void);
ncclResult_t ncclGroupEnd(void);

// ---- The simulator's own, for tests

// The next call that puts an operation into a stream returns `now`; ncclSuccess: none.
void simulated_nccl_refuse(ncclResult_t now);
// The next operation of this rank does nothing, and its communicator has that asynchronous error from then on.
void simulated_nccl_break(ncclResult_t later);

#ifdef __cplusplus
}
#endif
