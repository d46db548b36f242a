// A device: where tensors live and operations run.
//
// Today the CPU; a card becomes another kind with the same table. A process has one Device per rank.
#pragma once

#include "core/threads.h"
#include "kernels/kernels.h"

typedef enum DeviceKind { DEVICE_CPU } DeviceKind;

struct Device {
    DeviceKind kind;
    const Operations *op;
    ThreadPool *pool;  // CPU
    void *scratch;     // of the CPU kernels: see device_scratch
    size_t scratch_bytes;
};

// Opens the CPU with that many threads. `instruction_set` chooses a variant ("avx512", "avx2", "baseline"; NULL or "auto": the
// best that this processor runs). An unknown or unsupported one is an error that lists what there is.
Error *device_open_cpu(int threads, const char *instruction_set, Device **out) MUST_CHECK;
void device_close(Device *device);

// Memory of the device, zeroed, aligned to 64 bytes.
void *device_allocate(Device *device, size_t bytes);
void device_release(Device *device, void *memory, size_t bytes);

// The names of the instruction sets compiled in that this processor can run, best first, NULL-terminated.
const char *const *device_cpu_variants(void);

// Scratch of the CPU kernels: bytes_per_thread for each thread of the pool, thread t's part at t * bytes_per_thread rounded up
// to 4096. Aligned, content undefined, valid until the next operation. It only ever grows; its size is part of the memory plan.
void *device_scratch(Device *device, size_t bytes_per_thread);
