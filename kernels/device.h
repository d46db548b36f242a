// A device: where tensors live and operations run.
//
// The CPU, a card (CUDA), or in the tests a simulated card: one table of operations each (kernels.h), and one DeviceBackend for
// memory, copies and waiting. A process has one Device per rank. Operations and copies of a device happen in the order of the
// calls; on a card the calls return before the work is done, and what went wrong there is told by device_finish.
#pragma once

#include "core/memory.h"
#include "core/threads.h"
#include "kernels/kernels.h"

typedef enum DeviceKind { DEVICE_CPU, DEVICE_CUDA, DEVICE_SIMULATED } DeviceKind;

typedef struct DeviceBackend DeviceBackend;
typedef struct DeviceDescription DeviceDescription;
typedef struct DeviceGraph DeviceGraph;  // recorded operations
typedef struct DeviceMark DeviceMark;    // a place in the order of operations

struct Device {
    DeviceKind kind;
    DataType type;  // of weights and activations
    const Operations *op;
    const DeviceBackend *backend;
    char name[128];         // "NVIDIA H200", "cpu avx512"
    ThreadPool *pool;       // of the host: CPU kernels, initial weights
    void *scratch;          // of the CPU kernels: see device_scratch
    const char *attention;  // of cards: the body that computed attention last ("sm90"), for those who check it; NULL: none did
    size_t scratch_bytes;
};

// What a backend must do; the functions below say what each means.
struct DeviceBackend {
    const char *name;                                       // "cpu", "cuda", "simulated"
    Error *(*open)(int card, DataType type, Device **out);  // cards only; fills all but pool
    Error *(*describe)(DeviceDescription *out);             // cards only
    Error *(*count)(int *out);                              // cards only
    void (*close)(Device *device);
    Error *(*allocate)(Device *device, size_t bytes, void **out);
    void (*release)(Device *device, void *memory, size_t bytes);
    size_t (*available)(Device *device);
    void *(*staging)(Device *device, size_t bytes);
    void (*staging_release)(Device *device, void *memory, size_t bytes);
    void (*upload)(Device *device, void *to, const void *from, size_t bytes);
    void (*download)(Device *device, void *to, const void *from, size_t bytes);
    Error *(*finish)(Device *device);
    DeviceMark *(*mark_create)(Device *device);
    void (*mark_set)(Device *device, DeviceMark *mark);
    bool (*mark_reached)(Device *device, DeviceMark *mark);
    Error *(*mark_wait)(Device *device, DeviceMark *mark);
    void (*mark_destroy)(Device *device, DeviceMark *mark);
    bool (*record)(Device *device);
    Error *(*record_end)(Device *device, DeviceGraph **out);
    void (*graph_run)(Device *device, DeviceGraph *graph);
    void (*graph_destroy)(Device *device, DeviceGraph *graph);
    void *(*stream)(Device *device);
    // The choice of kernels, for `athanor doctor`, a run's records and exact resumes.
    Error *(*set_choice)(Device *device, const char *products);
    void (*describe_choices)(Device *device, Buffer *out);
    Error *(*load_choices)(Device *device, const char *text);
};

// ---- Opening

// Opens the CPU with that many threads. `instruction_set` chooses a variant ("avx512", "avx2", "baseline"; NULL or "auto": the
// best that this processor runs). An unknown or unsupported one is an error that lists what there is.
Error *device_open_cpu(int threads, const char *instruction_set, Device **out) MUST_CHECK;

// Opens card number `card` of this host (or the simulated one) for tensors of `type`; `threads` of the host for what it does
// beside. Errors: not built in, no driver, driver too old, no such card, card too old.
Error *device_open_card(DeviceKind kind, int card, DataType type, int threads, Device **out) MUST_CHECK;
void device_close(Device *device);

// What this host has, for `athanor doctor` and the choice of a device. An error says why cards cannot be used.
enum { DEVICE_MOST_CARDS = 64 };
typedef struct DeviceCard {
    char name[128];
    int architecture;  // 90 for sm_90
    int multiprocessors;
    size_t memory, available;  // bytes
    bool usable;               // new enough
    const char *bodies;        // which kernels this build has for it, and why
} DeviceCard;
struct DeviceDescription {
    int driver, runtime;  // 13000 for 13.0
    int cards;
    DeviceCard card[DEVICE_MOST_CARDS];
};
Error *device_describe_cards(DeviceKind kind, DeviceDescription *out) MUST_CHECK;
// Only how many there are (at least 1): touches none of them, so that every rank can ask.
Error *device_count_cards(DeviceKind kind, int *out) MUST_CHECK;

// True where this build has a backend for cards of that kind.
bool device_built(DeviceKind kind);

// The names of the instruction sets compiled in that this processor can run, best first, NULL-terminated.
const char *const *device_cpu_variants(void);

// ---- Memory

// Memory of the device, zeroed, aligned to 256 bytes (64 on the CPU). The error says what was wanted and what there is.
Error *device_allocate(Device *device, size_t bytes, void **out) MUST_CHECK;
void device_release(Device *device, void *memory, size_t bytes);
// Bytes that could be allocated now.
size_t device_available(Device *device);

// Host memory that copies reach directly (pinned), zeroed. Device NULL or the CPU: plain memory.
void *device_staging(Device *device, size_t bytes);
void device_staging_release(Device *device, void *memory, size_t bytes);

// Copies to the device. `from` may be changed as soon as the call returns, unless it is staging memory: then not before a mark
// set after it was reached.
void device_upload(Device *device, void *to, const void *from, size_t bytes);
// Copies from the device. Into staging memory: done when a mark set after it is reached. Elsewhere: done on return.
void device_download(Device *device, void *to, const void *from, size_t bytes);

// ---- Order

// Waits until all is done. The error names the first kernel or call that failed; the device is of no use after that.
Error *device_finish(Device *device) MUST_CHECK;

// A mark is set behind what was called so far, and can be waited for by the host. A mark never set is reached.
DeviceMark *device_mark_create(Device *device);
void device_mark_set(Device *device, DeviceMark *mark);
Error *device_mark_wait(Device *device, DeviceMark *mark) MUST_CHECK;
// True where device_mark_wait would return at once, be it with an error.
bool device_mark_reached(Device *device, DeviceMark *mark);
void device_mark_destroy(Device *device, DeviceMark *mark);

// Records the operations that follow instead of doing them; false where the device cannot (the CPU). Between, no memory may be
// allocated and nothing be waited for. A graph runs the same operations on the same memory again, in one call.
bool device_record(Device *device);
Error *device_record_end(Device *device, DeviceGraph **out) MUST_CHECK;
void device_graph_run(Device *device, DeviceGraph *graph);
void device_graph_destroy(Device *device, DeviceGraph *graph);

// The stream of operations (cudaStream_t) for libraries that join it; NULL on the CPU.
void *device_stream(Device *device);

// ---- Which kernels

// Which body computes matrix products on a card: "auto" (the faster by trial for each shape), "ours", "cublas"; "sm80" forces
// the portable bodies of ours, of attention too. Before the first operation.
Error *device_set_products(Device *device, const char *products) MUST_CHECK;
// One line a shape: what was chosen and why, with times. The same text given to device_load_choices makes the same choices, so
// that a resumed run computes the same bits. Nothing on the CPU.
void device_describe_choices(Device *device, Buffer *out);
Error *device_load_choices(Device *device, const char *text) MUST_CHECK;

// Scratch of the CPU kernels: bytes_per_thread for each thread of the pool, thread t's part at t * bytes_per_thread rounded up
// to 4096. Aligned, content undefined, valid until the next operation. It only ever grows; its size is part of the memory plan.
void *device_scratch(Device *device, size_t bytes_per_thread);
