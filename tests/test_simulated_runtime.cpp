// The runtime of the simulated card, and the product's device on it: that what is called late is done late, that orders which
// events leave open do happen, that misuse is a wrong answer or an error; then opening, memory, copies, marks and graphs.
#define _Noreturn [[noreturn]]
extern "C" {
#include "core/memory.h"
#include "kernels/device.h"
#include "tests/support/check.h"
}
#undef _Noreturn

#include <math.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include <cuda_runtime.h>

#define CHECK_CUDA(call) CHECK_TEXT(cudaGetErrorName(call), "cudaSuccess")
#define CHECK_CUDA_FAILS(call, name) CHECK_TEXT(cudaGetErrorName(call), name)

enum { SEEDS = 40 };

static cudaStream_t new_stream(void) {
    cudaStream_t stream;
    CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
}

static cudaEvent_t new_event(void) {
    cudaEvent_t event;
    CHECK_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    return event;
}

static std::string order;  // of host functions, a letter each

static void note_letter(void *letter) {
    order += *(const char *)letter;
}

static void put(cudaStream_t stream, const char *letter) {
    CHECK_CUDA(cudaLaunchHostFunc(stream, note_letter, (void *)letter));
}

static void test_when_things_run(void) {
    cudaStream_t stream = new_stream();
    simulated_settings(0, "late");
    order = "";
    put(stream, "a");
    put(stream, "b");
    CHECK_I64(simulated_pending(), 2);
    CHECK_TEXT(order.c_str(), "");
    CHECK_CUDA_FAILS(cudaStreamQuery(stream), "cudaErrorNotReady");
    CHECK_CUDA(cudaStreamSynchronize(stream));
    CHECK_TEXT(order.c_str(), "ab");
    CHECK_CUDA(cudaStreamQuery(stream));
    simulated_settings(0, "early");
    put(stream, "c");
    CHECK_TEXT(order.c_str(), "abc");
    CHECK_I64(simulated_pending(), 0);
    // At random: what is called is done some time before the next wait, in order.
    bool some = false, none = false;
    for (int seed = 1; seed <= SEEDS; seed++) {
        simulated_settings((uint64_t)seed, "random");
        order = "";
        put(stream, "a");
        put(stream, "b");
        some |= !order.empty();
        none |= order.empty();
        CHECK_CUDA(cudaStreamSynchronize(stream));
        CHECK_TEXT(order.c_str(), "ab");
    }
    CHECK(some && none);
    simulated_settings(0, "late");
    CHECK_CUDA(cudaStreamDestroy(stream));
}

static void test_events(void) {
    cudaStream_t first = new_stream(), second = new_stream();
    cudaEvent_t event = new_event();
    CHECK_CUDA(cudaEventSynchronize(event));  // never recorded: reached
    CHECK_CUDA(cudaStreamWaitEvent(second, event, 0));
    bool orders[2] = {false, false};
    for (int seed = 1; seed <= SEEDS; seed++) {
        simulated_settings((uint64_t)seed, "late");
        order = "";
        put(first, "a");
        CHECK_CUDA(cudaEventRecord(event, first));
        CHECK_CUDA(cudaStreamWaitEvent(second, event, 0));
        put(second, "b");
        put(first, "-");
        CHECK_CUDA(cudaDeviceSynchronize());
        CHECK(order.find('a') < order.find('b'));

        // The same without the wait: both orders happen.
        order = "";
        put(first, "a");
        put(second, "b");
        CHECK_CUDA(cudaDeviceSynchronize());
        orders[order == "ab"] = true;

        // A wait is for the record before it, not for a later one.
        order = "";
        CHECK_CUDA(cudaEventRecord(event, first));
        CHECK_CUDA(cudaStreamWaitEvent(second, event, 0));
        CHECK_CUDA(cudaStreamWaitEvent(first, event, 0));
        put(second, "b");
        CHECK_CUDA(cudaEventRecord(event, second));
        CHECK_CUDA(cudaStreamWaitEvent(first, event, 0));
        put(first, "a");
        CHECK_CUDA(cudaEventRecord(event, first));
        CHECK_CUDA(cudaEventSynchronize(event));
        CHECK_TEXT(order.c_str(), "ba");
    }
    CHECK(orders[0] && orders[1]);
    cudaEvent_t begin, end;
    float ms = -1;
    CHECK_CUDA(cudaEventCreate(&begin));
    CHECK_CUDA(cudaEventCreate(&end));
    CHECK_CUDA(cudaEventRecord(begin, first));
    put(first, "c");
    CHECK_CUDA(cudaEventRecord(end, first));
    CHECK_CUDA_FAILS(cudaEventElapsedTime(&ms, begin, end), "cudaErrorNotReady");
    while (cudaEventQuery(end) == cudaErrorNotReady) {
    }
    CHECK_CUDA(cudaEventElapsedTime(&ms, begin, end));
    CHECK(ms >= 0 && ms < 1e4);
    cudaEvent_t events[] = {event, begin, end};
    for (cudaEvent_t each : events) {
        CHECK_CUDA(cudaEventDestroy(each));
    }
    CHECK_CUDA(cudaStreamDestroy(first));
    CHECK_CUDA(cudaStreamDestroy(second));
    simulated_settings(0, "late");
}

// A host buffer that changes before its copy was waited for is a wrong answer where it is pinned, and none where it is not.
static void test_copies(void) {
    cudaStream_t stream = new_stream();
    int *pinned, *device, ordinary[4] = {5, 6, 7, 8}, back[4] = {0};
    CHECK_CUDA(cudaHostAlloc((void **)&pinned, sizeof back, cudaHostAllocPortable));
    CHECK_CUDA(cudaMalloc((void **)&device, sizeof back));
    pinned[0] = 1;
    CHECK_CUDA(cudaMemcpyAsync(device, pinned, sizeof back, cudaMemcpyHostToDevice, stream));
    pinned[0] = 2;
    CHECK_CUDA(cudaStreamSynchronize(stream));
    CHECK_CUDA(cudaMemcpy(back, device, sizeof back, cudaMemcpyDeviceToHost));
    CHECK_I64(back[0], 2);
    simulated_settings(0, "early");
    pinned[0] = 3;
    CHECK_CUDA(cudaMemcpyAsync(device, pinned, sizeof back, cudaMemcpyHostToDevice, stream));
    pinned[0] = 4;
    CHECK_CUDA(cudaMemcpy(back, device, sizeof back, cudaMemcpyDeviceToHost));
    CHECK_I64(back[0], 3);
    simulated_settings(0, "late");
    CHECK_CUDA(cudaMemcpyAsync(device, ordinary, sizeof back, cudaMemcpyHostToDevice, stream));
    ordinary[0] = 9;
    CHECK_CUDA(cudaMemcpyAsync(back, device, sizeof back, cudaMemcpyDeviceToHost, stream));  // done on return
    CHECK_I64(back[0], 5);
    // Into pinned memory: not before something waits.
    CHECK_CUDA(cudaMemcpyAsync(pinned, device, sizeof back, cudaMemcpyDeviceToHost, stream));
    CHECK_I64(pinned[0], 4);
    CHECK_CUDA(cudaStreamSynchronize(stream));
    CHECK_I64(pinned[0], 5);
    // Every second int.
    CHECK_CUDA(cudaMemsetAsync(device, 0, sizeof back, stream));
    CHECK_CUDA(cudaMemcpy2DAsync(device, 8, pinned, 4, 4, 2, cudaMemcpyHostToDevice, stream));
    CHECK_CUDA(cudaMemcpyAsync(back, device, sizeof back, cudaMemcpyDeviceToHost, stream));
    CHECK(back[0] == 5 && back[1] == 0 && back[2] == 6 && back[3] == 0);
    // Memory of the wrong kind, or too little of it.
    CHECK_CUDA_FAILS(cudaMemcpyAsync(back, pinned, 8, cudaMemcpyDeviceToHost, stream), "cudaErrorInvalidValue");
    CHECK_CUDA_FAILS(cudaMemcpyAsync(device, pinned, 17, cudaMemcpyHostToDevice, stream), "cudaErrorInvalidValue");
    CHECK_CUDA_FAILS(cudaMemsetAsync(device + 1, 0, 16, stream), "cudaErrorInvalidValue");
    CHECK_CUDA_FAILS(cudaGetLastError(), "cudaErrorInvalidValue");
    CHECK_CUDA(cudaGetLastError());
    CHECK_CUDA(cudaFreeHost(pinned));
    CHECK_CUDA(cudaFree(device));
    CHECK_CUDA(cudaStreamDestroy(stream));
}

static void test_memory(void) {
    setenv("ATHANOR_SIMULATED_MEMORY", "1Mi", 1);
    size_t free_bytes, total;
    unsigned char *some, *more, back[16];
    CHECK_CUDA(cudaMemGetInfo(&free_bytes, &total));
    CHECK_I64(total, 1 << 20);
    CHECK_I64(free_bytes, total);
    CHECK_CUDA(cudaMalloc((void **)&some, 1 << 19));
    CHECK_I64((uintptr_t)some % 256, 0);
    CHECK_CUDA_FAILS(cudaMalloc((void **)&more, (1 << 19) + 1), "cudaErrorMemoryAllocation");
    CHECK_CUDA_FAILS(cudaGetLastError(), "cudaErrorMemoryAllocation");
    CHECK_CUDA(cudaMemGetInfo(&free_bytes, &total));
    CHECK_I64(free_bytes, 1 << 19);
    // Fresh memory is NaN in every type.
    CHECK_CUDA(cudaMemcpy(back, some, sizeof back, cudaMemcpyDeviceToHost));
    float one;
    double two;
    memcpy(&one, back, sizeof one);
    memcpy(&two, back, sizeof two);
    CHECK(isnan(one) && isnan(two));
    CHECK_CUDA(cudaFree(some));
    CHECK_CUDA(cudaMalloc((void **)&more, 1 << 20));
    CHECK_CUDA(cudaFree(more));
    CHECK_CUDA_FAILS(cudaFree(more), "cudaErrorInvalidValue");
    cudaGetLastError();
    unsetenv("ATHANOR_SIMULATED_MEMORY");
}

__global__ static void multiply_add(float *y, const float *x, float factor, int count) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < count) {
        y[i] += factor * x[i];
    }
}

static cudaError_t start_multiply_add(cudaStream_t stream, float *y, const float *x, float factor, int count, int block) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(count + 63) / 64);
    config.blockDim = dim3((unsigned)block);
    config.stream = stream;
    simulated_launch_name("multiply_add");
    return cudaLaunchKernelEx(&config, multiply_add, y, (const float *)x, factor, count);
}

static void test_recording(void) {
    cudaStream_t first = new_stream(), second = new_stream();
    cudaEvent_t fork = new_event(), join = new_event();
    enum { COUNT = 100 };
    float host[COUNT], *x, *y;
    CHECK_CUDA(cudaMalloc((void **)&x, sizeof host));
    CHECK_CUDA(cudaMalloc((void **)&y, sizeof host));
    for (int i = 0; i < COUNT; i++) {
        host[i] = (float)i;
    }
    CHECK_CUDA(cudaMemcpy(x, host, sizeof host, cudaMemcpyHostToDevice));
    CHECK_CUDA(cudaMemsetAsync(y, 0, sizeof host, first));
    // A line: recorded, not run; replayed twice.
    cudaGraph_t graph;
    cudaGraphExec_t run;
    CHECK_CUDA(cudaStreamBeginCapture(first, cudaStreamCaptureModeThreadLocal));
    CHECK_CUDA(start_multiply_add(first, y, x, 2, COUNT, 64));
    CHECK_CUDA(cudaStreamEndCapture(first, &graph));
    CHECK_CUDA(cudaGraphInstantiate(&run, graph, 0));
    CHECK_CUDA(cudaGraphDestroy(graph));
    CHECK_CUDA(cudaStreamSynchronize(first));
    CHECK_CUDA(cudaMemcpy(host, y, sizeof host, cudaMemcpyDeviceToHost));
    CHECK(host[5] == 0);
    for (int i = 0; i < 3; i++) {
        CHECK_CUDA(cudaGraphLaunch(run, first));
    }
    CHECK_CUDA(cudaStreamSynchronize(first));
    CHECK_CUDA(cudaMemcpy(host, y, sizeof host, cudaMemcpyDeviceToHost));
    CHECK(host[5] == 30 && host[99] == 594);
    CHECK_CUDA(cudaGraphExecDestroy(run));
    // A fork and its join: 'a' before, 'd' behind, 'b' and 'c' in any order.
    CHECK_CUDA(cudaStreamBeginCapture(first, cudaStreamCaptureModeThreadLocal));
    put(first, "a");
    CHECK_CUDA(cudaEventRecord(fork, first));
    CHECK_CUDA(cudaStreamWaitEvent(second, fork, 0));
    put(first, "b");
    put(second, "c");
    CHECK_CUDA(cudaEventRecord(join, second));
    CHECK_CUDA(cudaStreamWaitEvent(first, join, 0));
    put(first, "d");
    CHECK_CUDA(cudaStreamEndCapture(first, &graph));
    CHECK_CUDA(cudaGraphInstantiate(&run, graph, 0));
    bool orders[2] = {false, false};
    for (int seed = 1; seed <= SEEDS; seed++) {
        simulated_settings((uint64_t)seed, "late");
        order = "";
        CHECK_CUDA(cudaGraphLaunch(run, first));
        CHECK_CUDA(cudaStreamSynchronize(first));
        CHECK(order == "abcd" || order == "acbd");
        orders[order == "abcd"] = true;
    }
    CHECK(orders[0] && orders[1]);
    simulated_settings(0, "late");
    CHECK_CUDA(cudaGraphExecDestroy(run));
    CHECK_CUDA(cudaGraphDestroy(graph));
    // Mistakes.
    CHECK_CUDA_FAILS(cudaEventSynchronize(join), "cudaErrorCapturedEvent");
    CHECK_CUDA(cudaStreamBeginCapture(first, cudaStreamCaptureModeThreadLocal));
    CHECK_CUDA(cudaEventRecord(fork, first));
    CHECK_CUDA(cudaStreamWaitEvent(second, fork, 0));
    put(second, "c");
    CHECK_CUDA_FAILS(cudaStreamEndCapture(first, &graph), "cudaErrorStreamCaptureUnjoined");
    CHECK_CUDA(cudaStreamBeginCapture(first, cudaStreamCaptureModeThreadLocal));
    CHECK_CUDA_FAILS(cudaStreamSynchronize(first), "cudaErrorStreamCaptureUnsupported");
    CHECK_CUDA_FAILS(cudaStreamEndCapture(first, &graph), "cudaErrorStreamCaptureInvalidated");
    CHECK_CUDA(cudaStreamBeginCapture(first, cudaStreamCaptureModeThreadLocal));
    float *late;
    CHECK_CUDA_FAILS(cudaMalloc((void **)&late, 16), "cudaErrorStreamCaptureUnsupported");
    CHECK_CUDA_FAILS(cudaStreamEndCapture(first, &graph), "cudaErrorStreamCaptureInvalidated");
    CHECK_CUDA(cudaEventRecord(join, second));
    CHECK_CUDA(cudaStreamBeginCapture(first, cudaStreamCaptureModeThreadLocal));
    CHECK_CUDA_FAILS(cudaStreamWaitEvent(first, join, 0), "cudaErrorStreamCaptureIsolation");
    CHECK_CUDA_FAILS(cudaStreamEndCapture(first, &graph), "cudaErrorStreamCaptureInvalidated");
    cudaGetLastError();
    CHECK_CUDA(cudaFree(x));
    CHECK_CUDA(cudaFree(y));
    CHECK_CUDA(cudaEventDestroy(fork));
    CHECK_CUDA(cudaEventDestroy(join));
    CHECK_CUDA(cudaStreamDestroy(first));
    CHECK_CUDA(cudaStreamDestroy(second));
}

static void test_launches(void) {
    cudaStream_t stream = new_stream();
    float *x;
    CHECK_CUDA(cudaMalloc((void **)&x, 400));
    CHECK_CUDA_FAILS(start_multiply_add(stream, x, x, 1, 100, 1025), "cudaErrorInvalidConfiguration");
    CHECK_CUDA_FAILS(cudaGetLastError(), "cudaErrorInvalidConfiguration");
    // The second launch fails when it runs; from then on everything does.
    simulated_fail_launch(1);
    CHECK_CUDA(start_multiply_add(stream, x, x, 1, 100, 64));
    CHECK_CUDA(start_multiply_add(stream, x, x, 1, 100, 64));
    CHECK_CUDA(cudaPeekAtLastError());
    CHECK_CUDA_FAILS(cudaStreamSynchronize(stream), "cudaErrorIllegalAddress");
    CHECK_CUDA_FAILS(cudaMalloc((void **)&x, 4), "cudaErrorIllegalAddress");
    CHECK_CUDA_FAILS(cudaGetLastError(), "cudaErrorIllegalAddress");
    CHECK_CUDA_FAILS(cudaGetLastError(), "cudaErrorIllegalAddress");
    simulated_forget_errors();
    CHECK_CUDA(cudaGetLastError());
    CHECK_CUDA(cudaDeviceReset());
    CHECK_CUDA(cudaStreamDestroy(stream));
}

// Runs `body` in a child; what it printed to standard error, and whether it ended by abort.
static bool dies(void (*body)(void), char *text, size_t size) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        body();
        _exit(0);
    }
    close(ends[1]);
    size_t got = 0;
    for (ssize_t n; got + 1 < size && (n = read(ends[0], text + got, size - 1 - got)) > 0;) {
        got += (size_t)n;
    }
    text[got] = 0;
    close(ends[0]);
    int status;
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) || WEXITSTATUS(status) != 0;
}

__global__ static void count_up(int *x) {
    x[threadIdx.x] = (int)threadIdx.x;
}

static void write_behind_the_end(void) {
    cudaLaunchConfig_t config = {};
    int *x;
    config.gridDim = dim3(1);
    config.blockDim = dim3(101);
    config.stream = new_stream();
    cudaMalloc((void **)&x, 400);
    simulated_launch_name("count_up");
    cudaLaunchKernelEx(&config, count_up, x);
    cudaStreamSynchronize(config.stream);
}

static void use_the_legacy_stream(void) {
    float *x;
    cudaMalloc((void **)&x, 400);
    cudaMemsetAsync(x, 0, 400, NULL);
}

static void test_deaths(void) {
    static char text[1 << 16];
    CHECK(dies(write_behind_the_end, text, sizeof text));
#ifndef __SANITIZE_ADDRESS__
    CHECK(strstr(text, "count_up wrote behind the end of an allocation of 400 bytes") != NULL);
#else
    CHECK(strstr(text, "heap-buffer-overflow") != NULL);
#endif
    CHECK(dies(use_the_legacy_stream, text, sizeof text));
    CHECK(strstr(text, "legacy stream") != NULL);
}

// ---- The product's device

static void test_opening_errors(void) {
    Device *device = NULL;
    DeviceDescription cards;
    setenv("ATHANOR_SIMULATED_DRIVER", "0", 1);
    CHECK_FAILS(device_open_card(DEVICE_SIMULATED, 0, TYPE_BF16, 1, &device), "has no NVIDIA driver");
    setenv("ATHANOR_SIMULATED_DRIVER", "12040", 1);
    CHECK_FAILS(device_open_card(DEVICE_SIMULATED, 0, TYPE_BF16, 1, &device), "supports CUDA 12.4, but");
    CHECK_FAILS(device_describe_cards(DEVICE_SIMULATED, &cards), "was built with CUDA 13.0");
    unsetenv("ATHANOR_SIMULATED_DRIVER");
    setenv("ATHANOR_SIMULATED_CARDS", "0", 1);
    CHECK_FAILS(device_open_card(DEVICE_SIMULATED, 0, TYPE_BF16, 1, &device), "but no card");
    setenv("ATHANOR_SIMULATED_CARDS", "2", 1);
    CHECK_FAILS(device_open_card(DEVICE_SIMULATED, 2, TYPE_BF16, 1, &device), "has no card 2: it has 2, numbered from 0");
    CHECK_FAILS(device_open_card(DEVICE_SIMULATED, -1, TYPE_BF16, 1, &device), "has no card -1");
    setenv("ATHANOR_SIMULATED_CAPABILITY", "75", 1);
    CHECK_FAILS(device_open_card(DEVICE_SIMULATED, 1, TYPE_BF16, 1, &device), "compute capability is 7.5, at least 8.0");
    CHECK_OK(device_describe_cards(DEVICE_SIMULATED, &cards));
    CHECK(cards.cards == 2 && cards.card[0].architecture == 75 && !cards.card[1].usable);
    unsetenv("ATHANOR_SIMULATED_CAPABILITY");
    int count = 0;
    CHECK_OK(device_count_cards(DEVICE_SIMULATED, &count));
    CHECK_I64(count, 2);
    CHECK_OK(device_describe_cards(DEVICE_SIMULATED, &cards));
    CHECK(cards.card[1].usable && cards.card[1].available == cards.card[1].memory && cards.card[1].memory > 0);
    CHECK(cards.driver == 13000 && cards.runtime == 13000);
    unsetenv("ATHANOR_SIMULATED_CARDS");
    CHECK(device == NULL);
}

static Device *open_device(void) {
    Device *device;
    CHECK_OK(device_open_card(DEVICE_SIMULATED, 1, TYPE_BF16, 1, &device));
    return device;
}

static void *allocate(Device *device, size_t bytes) {
    void *memory;
    CHECK_OK(device_allocate(device, bytes, &memory));
    return memory;
}

static void test_device_memory(void) {
    Device *device = open_device();
    CHECK(strncmp(device->name, "simulated card sm_", 18) == 0);
    size_t before = device_available(device);
    unsigned char back[100], *memory = (unsigned char *)allocate(device, sizeof back);
    CHECK_I64((uintptr_t)memory % 256, 0);
    memset(back, 1, sizeof back);
    device_download(device, back, memory, sizeof back);
    for (unsigned char byte : back) {
        CHECK(byte == 0);
    }
    CHECK_I64(before - device_available(device), 100);
    device_release(device, memory, sizeof back);
    CHECK_I64(device_available(device), before);
    void *none = allocate(device, 0);
    CHECK(none != NULL);
    device_release(device, none, 0);
    CHECK_FAILS(device_allocate(device, (size_t)3 << 30, &none), "is too full: 3.00 GiB wanted, 2.00 GiB of 2.00 GiB free");
    CHECK_OK(device_finish(device));
    device_close(device);
}

// Uploads beyond the ring, many and large, from memory that changes at once; under every timing.
static void test_device_copies(void) {
    enum { COUNT = 10 << 20 };
    static const char *const timings[] = {"late", "early", "random"};
    Device *device = open_device();
    int *host = (int *)memory_new(COUNT, sizeof *host), *back = (int *)memory_new(COUNT, sizeof *back);
    int *memory = (int *)allocate(device, COUNT * sizeof *host);
    for (int round = 0; round < 3; round++) {
        simulated_settings((uint64_t)round + 3, timings[round]);
        for (int i = 0; i < COUNT; i++) {
            host[i] = i * (round + 3);
        }
        device_upload(device, memory, host, COUNT * sizeof *host);
        memset(host, 0, COUNT * sizeof *host);
        device_download(device, back, memory, COUNT * sizeof *host);
        int64_t wrong = 0;
        for (int i = 0; i < COUNT; i++) {
            wrong += back[i] != i * (round + 3);
        }
        CHECK_I64(wrong, 0);
        // Small ones.
        for (int i = 0; i < 3000; i++) {
            int value = i * 7;
            device_upload(device, memory + i, &value, sizeof value);
        }
        device_upload(device, memory, host, 0);
        device_download(device, back, memory, 3000 * sizeof *host);
        for (int i = 0; i < 3000; i++) {
            wrong += back[i] != i * 7;
        }
        CHECK_I64(wrong, 0);
    }
    simulated_settings(0, "late");
    // Staging memory: in the order of marks, and no sooner.
    int *staging = (int *)device_staging(device, 4096 * sizeof *staging);
    CHECK(staging[0] == 0 && staging[4095] == 0);
    DeviceMark *mark = device_mark_create(device);
    CHECK_OK(device_mark_wait(device, mark));
    staging[1] = 11;
    staging[2] = 12;
    device_upload(device, memory, staging + 1, 8);
    device_mark_set(device, mark);
    CHECK(simulated_pending() > 0);
    CHECK_OK(device_mark_wait(device, mark));
    staging[1] = 0;
    device_download(device, staging + 100, memory, 8);
    device_mark_set(device, mark);
    CHECK_I64(staging[100], 0);
    CHECK_OK(device_mark_wait(device, mark));
    CHECK(staging[100] == 11 && staging[101] == 12);
    device_mark_destroy(device, mark);
    device_staging_release(device, staging, 4096 * sizeof *staging);
    // Where no memory can be pinned, staging is slower and as right.
    setenv("ATHANOR_SIMULATED_PINNED", "1000", 1);
    staging = (int *)device_staging(device, 4096);
    unsetenv("ATHANOR_SIMULATED_PINNED");
    staging[0] = 21;
    device_upload(device, memory, staging, 4);
    device_download(device, staging + 1, memory, 4);
    CHECK_OK(device_finish(device));
    CHECK_I64(staging[1], 21);
    device_staging_release(device, staging, 4096);
    device_release(device, memory, COUNT * sizeof *host);
    CHECK_OK(device_finish(device));
    device_close(device);
    free(host);
    free(back);
}

static void test_device_graphs(void) {
    Device *device = open_device();
    cudaStream_t stream = (cudaStream_t)device_stream(device);
    float *x = (float *)allocate(device, 400), *staging = (float *)device_staging(device, 400), sums[100];
    CHECK(device_record(device));
    device_upload(device, x, staging, 400);
    CHECK_CUDA(start_multiply_add(stream, x, x, 2, 100, 64));
    DeviceGraph *graph;
    CHECK_OK(device_record_end(device, &graph));
    for (int round = 1; round <= 3; round++) {
        for (int i = 0; i < 100; i++) {
            staging[i] = (float)(i * round);
        }
        device_graph_run(device, graph);
        CHECK_OK(device_finish(device));
        device_download(device, sums, x, 400);
        CHECK(sums[0] == 0 && sums[99] == (float)(3 * 99 * round));
    }
    device_graph_destroy(device, graph);
    // What cannot be recorded spoils the recording.
    CHECK(device_record(device));
    CHECK(cudaStreamSynchronize(stream) != cudaSuccess);
    CHECK_FAILS(device_record_end(device, &graph), "recording operations failed on card 1");
    CHECK(graph == NULL);
    CHECK_FAILS(device_finish(device), "cudaErrorStreamCaptureInvalidated");
    CHECK_OK(device_finish(device));
    device_staging_release(device, staging, 400);
    device_release(device, x, 400);
    device_close(device);
}

static void test_device_failures(void) {
    Device *device = open_device();
    float *x = (float *)allocate(device, 400);
    CHECK_OK(device_finish(device));
    simulated_fail_launch(0);
    CHECK_CUDA(start_multiply_add((cudaStream_t)device_stream(device), x, x, 2, 100, 64));
    DeviceMark *mark = device_mark_create(device);
    device_mark_set(device, mark);
    CHECK_FAILS(device_mark_wait(device, mark), "an operation (CUDA_LAUNCH_BLOCKING=1");
    CHECK_FAILS(device_finish(device), "failed on card 1 (simulated card sm_");
    CHECK_FAILS(device_finish(device), "an illegal memory access was encountered (cudaErrorIllegalAddress)");
    device_mark_destroy(device, mark);
    device_release(device, x, 400);
    device_close(device);
    simulated_forget_errors();
    cudaSetDevice(1);
    CHECK_CUDA(cudaDeviceReset());
    cudaSetDevice(0);
}

int main(void) {
    RUN(test_when_things_run);
    RUN(test_events);
    RUN(test_copies);
    RUN(test_memory);
    RUN(test_recording);
    RUN(test_launches);
    RUN(test_deaths);
    RUN(test_opening_errors);
    RUN(test_device_memory);
    RUN(test_device_copies);
    RUN(test_device_graphs);
    RUN(test_device_failures);
    return check_report();
}
