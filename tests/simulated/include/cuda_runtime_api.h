// The CUDA runtime API of the simulated GPU, for C and C++: what the product calls of it and no more, so that a new call does
// not compile until the simulator does it too. The real runtime is linked into the same program: every function has another
// name here, and macros map CUDA's. Meanings and codes are those of CUDA 13.0; what the simulator adds is said in runtime.cpp.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#include <simulated_device.h>
extern "C" {
#else
typedef struct dim3 {
    unsigned x, y, z;
} dim3;
#endif

#define CUDART_VERSION 13000

typedef enum cudaError {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInitializationError = 3,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorSymbolNotFound = 500,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorLaunchFailure = 719,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901,
    cudaErrorStreamCaptureUnmatched = 903,
    cudaErrorStreamCaptureUnjoined = 904,
    cudaErrorStreamCaptureIsolation = 905,
    cudaErrorCapturedEvent = 907,
} cudaError_t;

typedef struct SimulatedStream *cudaStream_t;
typedef struct SimulatedEvent *cudaEvent_t;
typedef struct SimulatedGraph *cudaGraph_t;
typedef struct SimulatedGraphRun *cudaGraphExec_t;
typedef void (*cudaHostFn_t)(void *data);

typedef struct cudaUUID_t {
    char bytes[16];
} cudaUUID_t;

typedef struct cudaDeviceProp {
    char name[256];
    cudaUUID_t uuid;
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor;
    int regsPerBlock, regsPerMultiprocessor, warpSize, maxThreadsPerBlock, maxThreadsPerMultiProcessor;
    int multiProcessorCount, major, minor, l2CacheSize, pciDomainID, pciBusID, pciDeviceID;
} cudaDeviceProp;

typedef enum cudaMemcpyKind {
    cudaMemcpyHostToHost = 0,
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3,
    cudaMemcpyDefault = 4,
} cudaMemcpyKind;

typedef enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 } cudaFuncAttribute;
typedef struct cudaFuncAttributes {
    size_t sharedSizeBytes;  // 0 always: static shared memory is not known before a launch
    int maxDynamicSharedSizeBytes, maxThreadsPerBlock;
} cudaFuncAttributes;

typedef enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal = 0,
    cudaStreamCaptureModeThreadLocal = 1,
    cudaStreamCaptureModeRelaxed = 2,
} cudaStreamCaptureMode;
typedef enum cudaStreamCaptureStatus {
    cudaStreamCaptureStatusNone = 0,
    cudaStreamCaptureStatusActive = 1,
    cudaStreamCaptureStatusInvalidated = 2,
} cudaStreamCaptureStatus;

typedef enum cudaDriverEntryPointQueryResult {
    cudaDriverEntryPointSuccess = 0,
    cudaDriverEntryPointSymbolNotFound = 1,
    cudaDriverEntryPointVersionNotSufficent = 2,
} cudaDriverEntryPointQueryResult;

typedef enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension = 4 } cudaLaunchAttributeID;
typedef union cudaLaunchAttributeValue {
    struct {
        unsigned x, y, z;
    } clusterDim;
} cudaLaunchAttributeValue;
typedef struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    cudaLaunchAttributeValue val;
} cudaLaunchAttribute;
typedef struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute *attrs;
    unsigned numAttrs;
} cudaLaunchConfig_t;

enum { cudaStreamNonBlocking = 1 };  // the only kind of stream here
enum { cudaEventDefault = 0, cudaEventBlockingSync = 1, cudaEventDisableTiming = 2 };
enum { cudaHostAllocDefault = 0, cudaHostAllocPortable = 1 };
enum { cudaEnableDefault = 0 };

// Errors, versions, cards
#define cudaGetErrorName simulated_cudaGetErrorName
#define cudaGetErrorString simulated_cudaGetErrorString
#define cudaGetLastError simulated_cudaGetLastError
#define cudaPeekAtLastError simulated_cudaPeekAtLastError
#define cudaDriverGetVersion simulated_cudaDriverGetVersion
#define cudaRuntimeGetVersion simulated_cudaRuntimeGetVersion
#define cudaGetDeviceCount simulated_cudaGetDeviceCount
#define cudaSetDevice simulated_cudaSetDevice
#define cudaGetDevice simulated_cudaGetDevice
#define cudaGetDeviceProperties simulated_cudaGetDeviceProperties
#define cudaDeviceSynchronize simulated_cudaDeviceSynchronize
#define cudaDeviceReset simulated_cudaDeviceReset
#define cudaGetDriverEntryPointByVersion simulated_cudaGetDriverEntryPointByVersion
const char *cudaGetErrorName(cudaError_t error);
const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError(void);
cudaError_t cudaPeekAtLastError(void);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device);
cudaError_t cudaDeviceSynchronize(void);
cudaError_t cudaDeviceReset(void);
cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version, unsigned long long flags,
                                             cudaDriverEntryPointQueryResult *status);

// Memory
#define cudaMalloc simulated_cudaMalloc
#define cudaFree simulated_cudaFree
#define cudaHostAlloc simulated_cudaHostAlloc
#define cudaFreeHost simulated_cudaFreeHost
#define cudaMemGetInfo simulated_cudaMemGetInfo
#define cudaMemcpy simulated_cudaMemcpy
#define cudaMemcpyAsync simulated_cudaMemcpyAsync
#define cudaMemcpy2DAsync simulated_cudaMemcpy2DAsync
#define cudaMemsetAsync simulated_cudaMemsetAsync
cudaError_t cudaMalloc(void **memory, size_t bytes);
cudaError_t cudaFree(void *memory);
cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void *memory);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total);
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                              cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream);

// Streams and events
#define cudaStreamCreateWithFlags simulated_cudaStreamCreateWithFlags
#define cudaStreamCreateWithPriority simulated_cudaStreamCreateWithPriority
#define cudaDeviceGetStreamPriorityRange simulated_cudaDeviceGetStreamPriorityRange
#define cudaStreamDestroy simulated_cudaStreamDestroy
#define cudaStreamSynchronize simulated_cudaStreamSynchronize
#define cudaStreamQuery simulated_cudaStreamQuery
#define cudaStreamWaitEvent simulated_cudaStreamWaitEvent
#define cudaLaunchHostFunc simulated_cudaLaunchHostFunc
#define cudaEventCreate simulated_cudaEventCreate
#define cudaEventCreateWithFlags simulated_cudaEventCreateWithFlags
#define cudaEventDestroy simulated_cudaEventDestroy
#define cudaEventRecord simulated_cudaEventRecord
#define cudaEventSynchronize simulated_cudaEventSynchronize
#define cudaEventQuery simulated_cudaEventQuery
#define cudaEventElapsedTime simulated_cudaEventElapsedTime
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority);
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data);
cudaError_t cudaEventCreate(cudaEvent_t *event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end);

// Capture and graphs
#define cudaStreamBeginCapture simulated_cudaStreamBeginCapture
#define cudaStreamEndCapture simulated_cudaStreamEndCapture
#define cudaStreamIsCapturing simulated_cudaStreamIsCapturing
#define cudaGraphInstantiate simulated_cudaGraphInstantiate
#define cudaGraphDestroy simulated_cudaGraphDestroy
#define cudaGraphLaunch simulated_cudaGraphLaunch
#define cudaGraphExecDestroy simulated_cudaGraphExecDestroy
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status);
#define cudaGraphInstantiateFlagUseNodePriority 8
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *run, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphLaunch(cudaGraphExec_t run, cudaStream_t stream);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t run);

// Kernels
#define cudaFuncSetAttribute simulated_cudaFuncSetAttribute
#define cudaFuncGetAttributes simulated_cudaFuncGetAttributes
cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value);
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *kernel);

// ---- The simulator's own, for tests

// Names the next launch in messages.
void simulated_launch_name(const char *name);
// The launch `after` launches from now fails when it runs, with a sticky error. Negative: none does.
void simulated_fail_launch(int after);
// Forgets what failed, as a new process would. Nothing may be pending.
void simulated_forget_errors(void);
// The seed of orders and the time at which things happen ("late", "early", "random"), from now on.
void simulated_settings(uint64_t seed, const char *timing);
// Operations that have been called and not run.
int simulated_pending(void);

#ifdef __cplusplus
}
#endif
