// The simulated GPU's cards, errors and memory.
//
// What goes wrong on purpose:
//   - device memory holds NaNs (0xFF bytes: NaN in fp64, fp32, fp16 and bf16, -1 as an integer) when it is allocated and when
//   it
//     is freed, and is not handed out again soon;
//   - an operation that writes outside of an allocation ends the process: the margins around allocations are checked behind
//     every operation; under AddressSanitizer allocations have its redzones instead, and reads are caught too;
//   - what ATHANOR_SIMULATED_MEMORY (2Gi a card) does not hold is cudaErrorMemoryAllocation.
// Not caught: the host reading or writing device memory through a plain pointer.
//
// Environment: ATHANOR_SIMULATED_CARDS (8), _MEMORY (bytes a card), _DRIVER (13000; 0: none), _CAPABILITY (what properties say
// of the compute capability, such as 75; otherwise the engine's architecture), _FAIL (how many launches go well before one ends
// in an illegal address), and the engine's settings.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "runtime.h"

#include "tests/simulated/engine.h"

extern "C" void cuTensorMapEncodeTiled(void);  // tensor_map.cpp's; only its address is of interest here

namespace simulator {

std::recursive_mutex lock;
cudaError_t sticky = cudaSuccess;

namespace {

typedef std::lock_guard<std::recursive_mutex> Hold;

#ifdef __SANITIZE_ADDRESS__
const size_t MARGIN = 0, QUARANTINE = 0;
#else
const size_t MARGIN = 256, QUARANTINE = 64 << 20;
#endif
const int MOST_CARDS = 64;

struct Block {
    unsigned char *base;  // margin, memory, margin
    size_t bytes;
    int card;
};

cudaError_t last = cudaSuccess;
thread_local int current;
std::map<uintptr_t, Block> blocks;
std::map<uintptr_t, size_t> pinned;
std::deque<Block> quarantine;
size_t quarantined;
size_t used[MOST_CARDS];
bool active[MOST_CARDS];

long long number_from(const char *variable, long long otherwise) {
    const char *text = getenv(variable);
    if (text == NULL || *text == 0) {
        return otherwise;
    }
    char *end;
    long long value = strtoll(text, &end, 10);
    for (int shift = 0; const char *suffix : {"", "Ki", "Mi", "Gi"}) {
        if (strcmp(end, suffix) == 0 && end != text) {
            return value << shift;
        }
        shift += 10;
    }
    die("%s is '%s', not a number", variable, text);
}

int driver_version() {
    return (int)number_from("ATHANOR_SIMULATED_DRIVER", CUDART_VERSION);
}

int card_count() {
    long long count = number_from("ATHANOR_SIMULATED_CARDS", 8);
    return (int)(count < MOST_CARDS ? count : MOST_CARDS);
}

size_t card_memory() {
    return (size_t)number_from("ATHANOR_SIMULATED_MEMORY", 2LL << 30);
}

// What every call meets first: no usable driver.
cudaError_t ready() {
    int driver = driver_version();
    if (driver == 0) {
        return cudaErrorNoDevice;
    }
    return driver / 1000 < CUDART_VERSION / 1000 ? cudaErrorInsufficientDriver : sticky;
}

bool is_filled(const unsigned char *bytes, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (bytes[i] != 0xFF) {
            return false;
        }
    }
    return true;
}

void check_block(const Block &block, const std::string &operation) {
    if (!is_filled(block.base, MARGIN)) {
        die("%s wrote in front of an allocation of %zu bytes", operation.c_str(), block.bytes);
    }
    if (!is_filled(block.base + MARGIN + block.bytes, MARGIN)) {
        die("%s wrote behind the end of an allocation of %zu bytes", operation.c_str(), block.bytes);
    }
}

unsigned char *memory_of(const Block &block) {
    return block.base + MARGIN;
}

void forget_block(const Block &block) {
    used[block.card] -= block.bytes;
    memset(memory_of(block), 0xFF, block.bytes);
    quarantine.push_back(block);
    quarantined += block.bytes;
    while (quarantined > QUARANTINE || (QUARANTINE == 0 && !quarantine.empty())) {
        Block &oldest = quarantine.front();
        if (!is_filled(oldest.base, oldest.bytes + 2 * MARGIN)) {
            die("memory of %zu bytes was written after it was freed", oldest.bytes);
        }
        quarantined -= oldest.bytes;
        free(oldest.base);
        quarantine.pop_front();
    }
}

template <typename Value>
typename std::map<uintptr_t, Value>::iterator find_range(std::map<uintptr_t, Value> &ranges, const void *memory) {
    auto after = ranges.upper_bound((uintptr_t)memory);
    return after == ranges.begin() ? ranges.end() : std::prev(after);
}

extern "C" int primary_state(int card, unsigned *flags, int *is_active) {
    *flags = 0;
    *is_active = card >= 0 && card < card_count() && active[card];
    return 0;
}

}  // namespace

void die(const char *format, ...) {
    va_list arguments;
    fflush(stdout);
    fputs("simulated GPU: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    abort();
}

cudaError_t note(cudaError_t error) {
    if (error != cudaSuccess && error != cudaErrorNotReady) {
        last = error;
    }
    return error;
}

bool is_device_memory(const void *memory, size_t bytes) {
    auto at = find_range(blocks, memory);
    return at != blocks.end() && (uintptr_t)memory + bytes <= at->first + at->second.bytes;
}

bool is_pinned_memory(const void *memory, size_t bytes) {
    auto at = find_range(pinned, memory);
    return at != pinned.end() && (uintptr_t)memory + bytes <= at->first + at->second;
}

void check_margins(const std::string &operation) {
    if (MARGIN > 0) {
        for (const auto &[address, block] : blocks) {
            check_block(block, operation);
        }
    }
}

}  // namespace simulator

using namespace simulator;

// ---- Errors, versions

#define ERRORS(_)                                                                                                              \
    _(cudaSuccess, "no error")                                                                                                 \
    _(cudaErrorInvalidValue, "invalid argument")                                                                               \
    _(cudaErrorMemoryAllocation, "out of memory")                                                                              \
    _(cudaErrorInitializationError, "initialization error")                                                                    \
    _(cudaErrorInvalidConfiguration, "invalid configuration argument")                                                         \
    _(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version")                             \
    _(cudaErrorNoDevice, "no CUDA-capable device is detected")                                                                 \
    _(cudaErrorInvalidDevice, "invalid device ordinal")                                                                        \
    _(cudaErrorInvalidResourceHandle, "invalid resource handle")                                                               \
    _(cudaErrorSymbolNotFound, "named symbol not found")                                                                       \
    _(cudaErrorNotReady, "device not ready")                                                                                   \
    _(cudaErrorIllegalAddress, "an illegal memory access was encountered")                                                     \
    _(cudaErrorLaunchFailure, "unspecified launch failure")                                                                    \
    _(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing")                                   \
    _(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture")                            \
    _(cudaErrorStreamCaptureUnmatched, "capture was not ended in the same stream as it began")                                 \
    _(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work")                                                    \
    _(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream")                              \
    _(cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capturing stream")

const char *cudaGetErrorName(cudaError_t error) {
#define NAME(code, text)                                                                                                       \
    case code:                                                                                                                 \
        return #code;
    switch (error) { ERRORS(NAME) }
#undef NAME
    return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t error) {
#define TEXT(code, text)                                                                                                       \
    case code:                                                                                                                 \
        return text;
    switch (error) { ERRORS(TEXT) }
#undef TEXT
    return "unrecognized error code";
}

cudaError_t cudaGetLastError(void) {
    Hold hold(simulator::lock);
    cudaError_t error = last;
    last = sticky;
    return error;
}

cudaError_t cudaPeekAtLastError(void) {
    Hold hold(simulator::lock);
    return last;
}

void simulated_forget_errors(void) {
    Hold hold(simulator::lock);
    if (!idle()) {
        die("errors are forgotten while operations are pending");
    }
    last = sticky = cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = driver_version();
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version, unsigned long long flags,
                                             cudaDriverEntryPointQueryResult *status) {
    *function = NULL;
    if (strcmp(symbol, "cuDevicePrimaryCtxGetState") == 0) {
        *function = (void *)primary_state;
    } else if (strcmp(symbol, "cuTensorMapEncodeTiled") == 0) {
        *function = (void *)cuTensorMapEncodeTiled;
    }
    *status = *function != NULL ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

// ---- Cards

cudaError_t cudaGetDeviceCount(int *count) {
    Hold hold(simulator::lock);
    *count = 0;
    cudaError_t error = ready();
    if (error == cudaSuccess && (*count = card_count()) == 0) {
        error = cudaErrorNoDevice;
    }
    return note(error);
}

cudaError_t cudaSetDevice(int device) {
    Hold hold(simulator::lock);
    cudaError_t error = ready();
    if (error == cudaSuccess && (device < 0 || device >= card_count())) {
        error = cudaErrorInvalidDevice;
    }
    if (error == cudaSuccess) {
        current = device;
        active[device] = true;
    }
    return note(error);
}

cudaError_t cudaGetDevice(int *device) {
    *device = current;
    return note(ready());
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device) {
    Hold hold(simulator::lock);
    *properties = {};
    if (device < 0 || device >= card_count()) {
        return note(cudaErrorInvalidDevice);
    }
    int capability = (int)number_from("ATHANOR_SIMULATED_CAPABILITY", settings().architecture);
    snprintf(properties->name, sizeof properties->name, "simulated card sm_%d", capability);
    properties->totalGlobalMem = card_memory();
    properties->sharedMemPerBlock = 48 << 10;
    properties->sharedMemPerBlockOptin = shared_limit();
    properties->sharedMemPerMultiprocessor = shared_limit() + 1024;
    properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = capability == 86 || capability == 89 ? 1536 : 2048;
    properties->multiProcessorCount = 6;  // few, so that kernels whose blocks stay go round many times
    properties->major = capability / 10;
    properties->minor = capability % 10;
    properties->l2CacheSize = 4 << 20;
    properties->pciBusID = device + 1;
    gethostname(properties->uuid.bytes, sizeof properties->uuid.bytes - 1);
    properties->uuid.bytes[15] = (char)(device + 1);
    return note(ready());
}

cudaError_t cudaDeviceReset(void) {
    Hold hold(simulator::lock);
    for (auto at = blocks.begin(); at != blocks.end();) {
        if (at->second.card == current) {
            forget_block(at->second);
            at = blocks.erase(at);
        } else {
            ++at;
        }
    }
    active[current] = false;
    return note(ready());
}

// ---- Memory

cudaError_t cudaMalloc(void **memory, size_t bytes) {
    Hold hold(simulator::lock);
    *memory = NULL;
    cudaError_t error = ready();
    error = error != cudaSuccess ? error : forbid_while_recording();
    if (error != cudaSuccess || bytes == 0) {
        return note(error);
    }
    if (bytes > card_memory() || used[current] > card_memory() - bytes) {
        return note(cudaErrorMemoryAllocation);
    }
    void *base;
    if (posix_memalign(&base, 256, bytes + 2 * MARGIN) != 0) {
        return note(cudaErrorMemoryAllocation);
    }
    memset(base, 0xFF, bytes + 2 * MARGIN);
    Block block = {(unsigned char *)base, bytes, current};
    active[current] = true;
    used[current] += bytes;
    *memory = memory_of(block);
    blocks[(uintptr_t)*memory] = block;
    return cudaSuccess;
}

cudaError_t cudaFree(void *memory) {
    Hold hold(simulator::lock);
    cudaError_t error = forbid_while_recording();
    if (error != cudaSuccess) {
        return note(error);
    }
    if (memory == NULL) {
        return note(ready());
    }
    auto at = blocks.find((uintptr_t)memory);
    if (at == blocks.end()) {
        return note(cudaErrorInvalidValue);
    }
    run_until(idle);  // as CUDA does
    check_block(at->second, "an operation");
    forget_block(at->second);
    blocks.erase(at);
    return note(ready());
}

cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned flags) {
    Hold hold(simulator::lock);
    *memory = NULL;
    cudaError_t error = ready();
    error = error != cudaSuccess ? error : forbid_while_recording();
    if (error != cudaSuccess) {
        return note(error);
    }
    if (bytes > (size_t)number_from("ATHANOR_SIMULATED_PINNED", 1LL << 40) || posix_memalign(memory, 4096, bytes) != 0) {
        *memory = NULL;
        return note(cudaErrorMemoryAllocation);
    }
    memset(*memory, 0xFF, bytes);
    pinned[(uintptr_t)*memory] = bytes;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *memory) {
    Hold hold(simulator::lock);
    if (memory == NULL) {
        return note(ready());
    }
    if (pinned.erase((uintptr_t)memory) == 0) {
        return note(cudaErrorInvalidValue);
    }
    run_until(idle);
    free(memory);
    return note(ready());
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    Hold hold(simulator::lock);
    *total = card_memory();
    *free_bytes = *total > used[current] ? *total - used[current] : 0;
    active[current] = true;
    return note(ready());
}
