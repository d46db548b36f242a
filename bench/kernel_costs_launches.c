// Which kernels an operation launches on a Hopper card, and with which parameters, told without a card: for bench/kernel_costs.
//
//   kernel_costs_launches PARAMETERS < ROWS
//
// The host side of the kernels is the program's own, linked from the build for cards; what stands below in place of CUDA's
// runtime says that there is one H100, gives out addresses behind which nothing lies, and prints a launch instead of making it.
// So bodies, tiles, clusters, parts and grids are those that a card would see. Nothing is computed.
//
// PARAMETERS has a line a kernel of the build, "name bytes offset size offset size ...": where its parameters lie. ROWS has a
// line an operation, its name and numbers; the answer is a line "launch name grid.x grid.y grid.z threads cluster shared
// parameters" (in hexadecimal) for each launch, then "done", or "failed: why".
#include "kernels/device.h"
#include "kernels/scratch.h"

#include <cuda_runtime_api.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- The runtime

enum { MOST_KERNELS = 4096, MOST_PARAMETERS = 16, H100_MULTIPROCESSORS = 132, H100_SHARED = 232448 };

typedef struct Kernel {
    const void *host;
    char *name;
    int count, bytes;
    int offset[MOST_PARAMETERS], size[MOST_PARAMETERS];
} Kernel;

static Kernel kernels[MOST_KERNELS];
static int kernel_count;
static uintptr_t next_address = (uintptr_t)0x700000000000;

static Kernel *kernel_named(const char *name) {
    for (int i = 0; i < kernel_count; i++) {
        if (strcmp(kernels[i].name, name) == 0) {
            return &kernels[i];
        }
    }
    ensure(kernel_count < MOST_KERNELS, "too many kernels");
    kernels[kernel_count].name = strdup(name);
    return &kernels[kernel_count++];
}

void **__cudaRegisterFatBinary(void *binary);
void __cudaRegisterFatBinaryEnd(void **handle);
void __cudaUnregisterFatBinary(void **handle);
void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name, int limit, void *a, void *b,
                            void *c, void *d, int *e);
cudaError_t __cudaPopCallConfiguration(void *grid, void *block, size_t *shared, void *stream);
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *host);
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                               cudaStream_t stream);

void **__cudaRegisterFatBinary(void *binary) {
    static void *handle;
    return &handle;
}
void __cudaRegisterFatBinaryEnd(void **handle) {
}
void __cudaUnregisterFatBinary(void **handle) {
}
void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name, int limit, void *a, void *b,
                            void *c, void *d, int *e) {
    kernel_named(name)->host = host;
}
cudaError_t __cudaPopCallConfiguration(void *grid, void *block, size_t *shared, void *stream) {
    return cudaErrorInvalidValue;
}
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *host) {
    *kernel = (cudaKernel_t)(uintptr_t)host;
    return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                               cudaStream_t stream) {
    ensure(false, "a launch without a configuration");
    return cudaErrorInvalidValue;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *host, void **arguments) {
    const Kernel *kernel = NULL;
    for (int i = 0; i < kernel_count && kernel == NULL; i++) {
        kernel = kernels[i].host == host ? &kernels[i] : NULL;
    }
    ensure(kernel != NULL, "a launch of a kernel that nobody has registered");
    unsigned cluster = config->numAttrs > 0 ? config->attrs[0].val.clusterDim.x : 1;
    printf("launch %s %u %u %u %u %u %zu ", kernel->name, config->gridDim.x, config->gridDim.y, config->gridDim.z,
           config->blockDim.x, cluster, config->dynamicSmemBytes);
    unsigned char bytes[4096] = {0};
    for (int i = 0; i < kernel->count; i++) {
        memcpy(bytes + kernel->offset[i], arguments[i], (size_t)kernel->size[i]);
    }
    for (int i = 0; i < kernel->bytes; i++) {
        printf("%02x", bytes[i]);
    }
    printf("%s\n", kernel->bytes == 0 ? "-" : "");
    return cudaSuccess;
}

// Small things that are brought to the card decide what kernels do: "memory address bytes".
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
    if (kind == cudaMemcpyHostToDevice && bytes <= 4096) {
        printf("memory %" PRIuPTR " ", (uintptr_t)to);
        for (size_t i = 0; i < bytes; i++) {
            printf("%02x", ((const unsigned char *)from)[i]);
        }
        printf("\n");
    }
    return cudaSuccess;
}

static int encode_map(void) {
    return 0;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version, unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *found) {
    bool known = strcmp(symbol, "cuTensorMapEncodeTiled") == 0;
    *function = known ? (void *)(uintptr_t)encode_map : NULL;
    *found = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return known ? cudaSuccess : cudaErrorNotSupported;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
    memset(properties, 0, sizeof *properties);
    strcpy(properties->name, "H100");
    properties->major = 9;
    properties->multiProcessorCount = H100_MULTIPROCESSORS;
    properties->sharedMemPerBlockOptin = H100_SHARED;
    properties->totalGlobalMem = (size_t)80 << 30;
    return cudaSuccess;
}
cudaError_t cudaMalloc(void **memory, size_t bytes) {
    *memory = (void *)next_address;
    next_address += (bytes + 1023) / 1024 * 1024;
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *available = *total = (size_t)80 << 30;
    return cudaSuccess;
}
cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned flags) {
    *memory = calloc(bytes, 1);
    return *memory != NULL ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void *memory) {
    free(memory);
    return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function) {
    memset(attributes, 0, sizeof *attributes);
    return cudaSuccess;
}
static cudaError_t one(int *number) {
    *number = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *count) {
    return one(count);
}
static cudaError_t newest(int *version) {
    *version = 99000;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) {
    return newest(version);
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    return newest(version);
}
cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end) {
    *ms = 1;
    return cudaSuccess;
}
const char *cudaGetErrorName(cudaError_t error) {
    return "";
}
const char *cudaGetErrorString(cudaError_t error) {
    return "";
}

// Those that do nothing, and well.
#define NOTHING(name, ...)                                                                                                     \
    cudaError_t name(__VA_ARGS__) {                                                                                            \
        return cudaSuccess;                                                                                                    \
    }
NOTHING(cudaDeviceReset, void)
NOTHING(cudaGetLastError, void)
NOTHING(cudaSetDevice, int device)
NOTHING(cudaFree, void *memory)
NOTHING(cudaFuncSetAttribute, const void *function, enum cudaFuncAttribute attribute, int value)
NOTHING(cudaEventCreate, cudaEvent_t *event)
NOTHING(cudaEventCreateWithFlags, cudaEvent_t *event, unsigned flags)
NOTHING(cudaEventDestroy, cudaEvent_t event)
NOTHING(cudaEventQuery, cudaEvent_t event)
NOTHING(cudaEventRecord, cudaEvent_t event, cudaStream_t stream)
NOTHING(cudaEventSynchronize, cudaEvent_t event)
NOTHING(cudaGraphDestroy, cudaGraph_t graph)
NOTHING(cudaGraphExecDestroy, cudaGraphExec_t graph)
NOTHING(cudaGraphInstantiate, cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long flags)
NOTHING(cudaGraphLaunch, cudaGraphExec_t graph, cudaStream_t stream)
NOTHING(cudaMemsetAsync, void *memory, int value, size_t bytes, cudaStream_t stream)
NOTHING(cudaStreamBeginCapture, cudaStream_t stream, enum cudaStreamCaptureMode mode)
NOTHING(cudaStreamCreateWithFlags, cudaStream_t *stream, unsigned flags)
NOTHING(cudaStreamDestroy, cudaStream_t stream)
NOTHING(cudaStreamEndCapture, cudaStream_t stream, cudaGraph_t *graph)
NOTHING(cudaStreamSynchronize, cudaStream_t stream)

// The vendor's products are never asked for (device_set_products).
#define ABSENT(name)                                                                                                           \
    int name(void);                                                                                                            \
    int name(void) {                                                                                                           \
        return 1;                                                                                                              \
    }
ABSENT(cublasLtCreate)
ABSENT(cublasLtDestroy)
ABSENT(cublasLtMatmul)
ABSENT(cublasLtMatmulAlgoGetHeuristic)
ABSENT(cublasLtMatmulDescInit_internal)
ABSENT(cublasLtMatmulDescSetAttribute)
ABSENT(cublasLtMatmulPreferenceInit_internal)
ABSENT(cublasLtMatmulPreferenceSetAttribute)
ABSENT(cublasLtMatrixLayoutInit_internal)

// ---- Rows

typedef struct Asked {
    char what[64];
    int64_t n[12];
} Asked;

static void *memory_of(Device *device, int64_t bytes) {
    void *memory;
    Error *error = device_allocate(device, (size_t)bytes, &memory);
    ensure(error == NULL, "%s", error != NULL ? error->message : "");
    return memory;
}

// rows, in, out, bias, residual, activation, pre, gated
static void forward(Device *d, const int64_t *n) {
    int64_t columns = n[2] / (n[7] ? 2 : 1);
    MatmulForward a = {.rows = n[0], .in = n[1], .out = n[2], .activation = (Activation)n[5], .gated = n[7] != 0};
    a.x = memory_of(d, n[0] * n[1] * 2);
    a.w = memory_of(d, n[2] * n[1] * 2);
    a.bias = n[3] ? memory_of(d, n[2] * 2) : NULL;
    a.residual = n[4] ? memory_of(d, n[0] * columns * 2) : NULL;
    a.pre = n[6] ? memory_of(d, n[0] * n[2] * 2) : NULL;
    a.y = memory_of(d, n[0] * columns * 2);
    d->op->matmul_forward(d, &a);
}
// rows, in, out, activation, accumulate, gated
static void input(Device *d, const int64_t *n) {
    int64_t columns = n[1] * (n[5] ? 2 : 1);
    MatmulBackwardInput a = {.rows = n[0], .in = n[1], .out = n[2], .activation = (Activation)n[3]};
    a.accumulate = n[4] != 0;
    a.gated = n[5] != 0;
    a.dy = memory_of(d, n[0] * n[2] * 2);
    a.w = memory_of(d, n[2] * n[1] * 2);
    a.pre = n[3] || n[5] ? memory_of(d, n[0] * columns * 2) : NULL;
    a.dx = memory_of(d, n[0] * columns * 2);
    d->op->matmul_backward_input(d, &a);
}
// rows, in, out
static void weight(Device *d, const int64_t *n) {
    MatmulBackwardWeight a = {.rows = n[0], .in = n[1], .out = n[2]};
    a.dy = memory_of(d, n[0] * n[2] * 2);
    a.x = memory_of(d, n[0] * n[1] * 2);
    a.dw = memory_of(d, n[2] * n[1] * 4);
    d->op->matmul_backward_weight(d, &a);
}
// batch, length, heads, groups, width; backward: any order
static void attention(Device *d, const int64_t *n, bool backward) {
    AttentionShape shape = {.batch = n[0],
                            .queries = n[1],
                            .keys = n[1],
                            .heads = (int32_t)n[2],
                            .groups = (int32_t)n[3],
                            .head_width = (int32_t)n[4],
                            .scale = 0.125F};
    int64_t rows = n[0] * n[1], packed = rows * (n[2] + 2 * n[3]) * n[4] * 2, out = rows * n[2] * n[4] * 2;
    AttentionRows in = attention_packed(&shape, d->type, memory_of(d, packed));
    float *lse = memory_of(d, rows * n[2] * 4);
    if (backward) {
        AttentionBackward a = {.shape = shape, .in = in, .out = memory_of(d, out), .dout = memory_of(d, out), .lse = lse};
        a.gradients = attention_packed(&shape, d->type, memory_of(d, packed));
        a.any_order = n[5] != 0;
        d->op->attention_backward(d, &a);
    } else {
        AttentionForward a = {.shape = shape, .in = in, .out = memory_of(d, out), .lse = lse};
        d->op->attention_forward(d, &a);
    }
}
// rows, width, vocabulary, chunk
static void classify(Device *d, const int64_t *n) {
    Classifier a = {.rows = n[0], .width = n[1], .vocabulary = n[2], .chunk_rows = n[3], .grad_scale = 1};
    a.x = memory_of(d, n[0] * n[1] * 2);
    a.w = memory_of(d, n[2] * n[1] * 2);
    a.targets = memory_of(d, n[0] * 4);
    a.loss_weights = memory_of(d, n[0] * 4);
    a.losses = memory_of(d, n[0] * 4);
    a.dx = memory_of(d, n[0] * n[1] * 2);
    a.dw = memory_of(d, n[2] * n[1] * 4);
    a.scratch = memory_of(d, 2 * (n[3] + 64) * (n[2] + 64) * 2);
    d->op->classifier(d, &a);
}
// kind, rows, width
static void norm(Device *d, const int64_t *n, bool backward) {
    int64_t bytes = n[1] * n[2] * 2;
    float *mean = n[0] == NORM_LAYER ? memory_of(d, n[1] * 4) : NULL;
    if (backward) {
        NormBackward a = {.kind = (NormKind)n[0], .rows = n[1], .width = n[2], .mean = mean, .accumulate = true};
        a.dy = memory_of(d, bytes);
        a.x = memory_of(d, bytes);
        a.weight = memory_of(d, n[2] * 2);
        a.rstd = memory_of(d, n[1] * 4);
        a.dx = memory_of(d, bytes);
        a.dweight = memory_of(d, n[2] * 4);
        a.dbias = n[0] == NORM_LAYER ? memory_of(d, n[2] * 4) : NULL;
        d->op->norm_backward(d, &a);
    } else {
        NormForward a = {.kind = (NormKind)n[0], .rows = n[1], .width = n[2], .epsilon = 1e-5F, .mean = mean};
        a.x = memory_of(d, bytes);
        a.weight = memory_of(d, n[2] * 2);
        a.bias = n[0] == NORM_LAYER ? memory_of(d, n[2] * 2) : NULL;
        a.y = memory_of(d, bytes);
        a.rstd = memory_of(d, n[1] * 4);
        d->op->norm_forward(d, &a);
    }
}
// count, eight-bit
static void update(Device *d, const int64_t *n) {
    OptimizerUpdate a = {.kind = OPTIMIZER_ADAMW, .segment_count = 1, .count = n[0], .beta1 = 0.9F, .beta2 = 0.95F};
    a.epsilon = 1e-8F;
    UpdateSegment segment = {.count = n[0], .rate_scale = 1};
    StepControl control = {.updates = 1, .learning_rate = 1e-3F, .grad_scale = 1, .correction1 = 1, .correction2 = 1};
    void *segments = memory_of(d, sizeof segment), *step = memory_of(d, sizeof control);
    device_upload(d, segments, &segment, sizeof segment);
    device_upload(d, step, &control, sizeof control);
    a.segments = segments;
    a.control = step;
    a.grads = memory_of(d, n[0] * 4);
    a.weights = memory_of(d, n[0] * 2);
    a.moment_type = n[1] ? MOMENT_8BIT : MOMENT_FP32;
    a.masters = n[1] ? NULL : memory_of(d, n[0] * 4);
    a.moment1 = memory_of(d, n[0] * 4);
    a.moment2 = memory_of(d, n[0] * 4);
    a.scale1 = n[1] ? memory_of(d, n[0] / MOMENT_BLOCK * 4) : NULL;
    a.scale2 = n[1] ? memory_of(d, n[0] / MOMENT_BLOCK * 4) : NULL;
    d->op->optimizer_update(d, &a);
}
// activation, count
static void activate(Device *d, const int64_t *n) {
    ActivationForward a = {.activation = (Activation)n[0], .count = n[1]};
    a.x = memory_of(d, n[1] * 2);
    a.y = memory_of(d, n[1] * 2);
    d->op->activation_forward(d, &a);
}

static bool run(Device *d, const Asked *asked) {
    const char *what = asked->what;
    const int64_t *n = asked->n;
    if (strcmp(what, "forward") == 0) {
        forward(d, n);
    } else if (strcmp(what, "input") == 0) {
        input(d, n);
    } else if (strcmp(what, "weight") == 0) {
        weight(d, n);
    } else if (strcmp(what, "attention") == 0 || strcmp(what, "attention-backward") == 0) {
        attention(d, n, strcmp(what, "attention") != 0);
    } else if (strcmp(what, "classifier") == 0) {
        classify(d, n);
    } else if (strcmp(what, "norm") == 0 || strcmp(what, "norm-backward") == 0) {
        norm(d, n, strcmp(what, "norm") != 0);
    } else if (strcmp(what, "update") == 0) {
        update(d, n);
    } else if (strcmp(what, "activation") == 0) {
        activate(d, n);
    } else {
        return false;
    }
    return true;
}

static void read_parameters(const char *path) {
    FILE *file = fopen(path, "r");
    ensure(file != NULL, "%s cannot be read", path);
    char name[4096];
    int bytes;
    while (fscanf(file, "%4095s %d", name, &bytes) == 2) {
        Kernel *kernel = kernel_named(name);
        kernel->bytes = bytes;
        kernel->count = 0;
        while (kernel->count < MOST_PARAMETERS &&
               fscanf(file, "%d %d", &kernel->offset[kernel->count], &kernel->size[kernel->count]) == 2) {
            kernel->count++;
        }
    }
    fclose(file);
}

int main(int count, char **arguments) {
    ensure(count == 2, "usage: kernel_costs_launches PARAMETERS < ROWS");
    read_parameters(arguments[1]);
    Device *device;
    Error *error = device_open_card(DEVICE_CUDA, 0, TYPE_BF16, 1, &device);
    ensure(error == NULL, "%s", error != NULL ? error->message : "");
    error = device_set_products(device, "ours");
    ensure(error == NULL, "%s", error != NULL ? error->message : "");
    char line[1024];
    while (fgets(line, sizeof line, stdin) != NULL) {
        Asked asked = {0};
        int at = 0, used = 0;
        sscanf(line, "%63s%n", asked.what, &at);
        for (int i = 0; i < 12 && sscanf(line + at, "%" SCNd64 "%n", &asked.n[i], &used) == 1; i++) {
            at += used;
        }
        bool known = run(device, &asked);
        error = device_finish(device);
        printf("%s%s\n",
               !known          ? "failed: no operation "
               : error != NULL ? "failed: "
                               : "done",
               !known          ? asked.what
               : error != NULL ? error->message
                               : "");
        fflush(stdout);
    }
    return 0;
}
