// A card as a Device: opening it, memory, copies, waiting, graphs (contracts in kernels/device.h).
//
// All work of a card goes to one stream that waits for no other. The host waits in device_finish and device_mark_wait, in
// downloads to ordinary memory, when memory is released, and when an upload finds every slot of its ring on its way; nowhere
// else. Calls return no errors: the first one is kept in the Card, launches after it are skipped, and the next wait tells it.
#include "kernels/cuda/tensor_map.h"

#define _Atomic
extern "C" {
#include "core/log.h"
#include "core/text.h"
}
#undef _Atomic

#include <stdio.h>
#include <unistd.h>

namespace BACKEND {

extern const Operations operations;

enum {
    RING_SLOTS = 4,
    RING_SLOT_BYTES = 4 << 20,
    OLDEST_ARCHITECTURE = 80,
    WORKSPACE_ALIGNMENT = 1024,
    WORKSPACE_STEP = 2 << 20,
};

// Host memory given out by device_staging.
struct Staging {
    unsigned char *memory;
    size_t bytes;
    bool pinned;
};

// Uploads from ordinary memory go through a ring of pinned slots. A slot is filled from front to back by one upload or many;
// its event is recorded behind the last, and waited for before the slot is filled anew.
struct CardMemory {
    unsigned char *ring;
    cudaEvent_t slot_reached[RING_SLOTS];
    int slot;
    size_t filled;  // bytes of the slot
    Staging *staging;
    size_t staging_count, staging_capacity;
    void *workspace;  // as allocated
    // Workspaces that graphs were recorded with: they stay until the card is closed, though operations have a larger one now.
    void **retired;
    size_t retired_count, retired_capacity;
    int graphs;     // that exist
    size_t wanted;  // bytes, where the failure is cudaErrorMemoryAllocation
};

static const char *host_name(void) {
    static char name[64];
    if (name[0] == 0) {
        gethostname(name, sizeof name - 1);
    }
    return name;
}

static void use(const Card *card) {
    cudaSetDevice(card->ordinal);  // a thread that did not open the card has another, or none
}

// ---- Opening

static Error *check_driver(int *driver, int *runtime) {
    *driver = *runtime = 0;
    cudaDriverGetVersion(driver);
    cudaRuntimeGetVersion(runtime);
    if (*driver == 0) {
        return failure("%s has no NVIDIA driver (nvidia-smi would show one): install it, or use device=cpu", host_name());
    }
    // Within a major version older drivers run newer runtimes.
    if (*driver / 1000 < *runtime / 1000) {
        return failure("the NVIDIA driver of %s supports CUDA %d.%d, but this athanor was built with CUDA %d.%d: update the "
                       "driver, or build with an older toolkit",
                       host_name(), *driver / 1000, *driver % 1000 / 10, *runtime / 1000, *runtime % 1000 / 10);
    }
    return NULL;
}

static Error *count_cards(int *count) {
    int driver, runtime;
    *count = 0;
    TRY(check_driver(&driver, &runtime));
    cudaError_t code = cudaGetDeviceCount(count);
    if (code == cudaErrorNoDevice || (code == cudaSuccess && *count == 0)) {
        cudaGetLastError();
        *count = 0;
        const char *visible = getenv("CUDA_VISIBLE_DEVICES");
        return visible != NULL ? failure("%s shows no card to this process: CUDA_VISIBLE_DEVICES is '%s'", host_name(), visible)
                               : failure("%s has an NVIDIA driver but no card", host_name());
    }
    if (code != cudaSuccess) {
        cudaGetLastError();
        return failure("the cards of %s cannot be used: %s (%s)", host_name(), cudaGetErrorString(code),
                       cudaGetErrorName(code));
    }
    return NULL;
}

static Error *opening_failed(int ordinal, const char *what, cudaError_t code) {
    cudaGetLastError();
    return failure("card %d of %s could not be opened: %s: %s (%s)", ordinal, host_name(), what, cudaGetErrorString(code),
                   cudaGetErrorName(code));
}

static void close_card(Device *device) {
    Card *card = card_of(device);
    CardMemory *memory = card->memory;
    use(card);
    if (card->stream != NULL) {
        cudaStreamSynchronize(card->stream);
    }
    for (int i = 0; i < RING_SLOTS; i++) {
        if (memory->slot_reached[i] != NULL) {
            cudaEventDestroy(memory->slot_reached[i]);
        }
    }
    matmul_close(card);
    tensor_maps_release(card);
    cudaFreeHost(memory->ring);
    cudaFree(card->turns);
    cudaFree(memory->workspace);
    for (size_t i = 0; i < memory->retired_count; i++) {
        cudaFree(memory->retired[i]);
    }
    free(memory->retired);
    if (card->stream != NULL) {
        cudaStreamDestroy(card->stream);
    }
    cudaGetLastError();
    free(memory->staging);
    free(memory);
    free(card);
}

// What opening needs of the driver; an error leaves the rest to close_card.
static Error *prepare(Card *card) {
    CardMemory *memory = card->memory;
    cudaError_t code = cudaStreamCreateWithFlags(&card->stream, cudaStreamNonBlocking);
    if (code != cudaSuccess) {
        return opening_failed(card->ordinal, "no stream", code);
    }
    code = cudaHostAlloc((void **)&memory->ring, (size_t)RING_SLOTS * RING_SLOT_BYTES, cudaHostAllocPortable);
    if (code != cudaSuccess) {
        return opening_failed(card->ordinal, "no pinned host memory for copies", code);
    }
    for (int i = 0; i < RING_SLOTS; i++) {
        code = cudaEventCreateWithFlags(&memory->slot_reached[i], cudaEventDisableTiming);
        if (code != cudaSuccess) {
            return opening_failed(card->ordinal, "no event", code);
        }
    }
    code = cudaMalloc((void **)&card->turns, CARD_TURNS * sizeof(int));
    if (code == cudaSuccess) {
        code = cudaMemsetAsync(card->turns, 0, CARD_TURNS * sizeof(int), card->stream);
    }
    return code == cudaSuccess ? NULL : opening_failed(card->ordinal, "no memory", code);
}

static Error *open_card(int ordinal, DataType type, Device **out) {
    int count;
    *out = NULL;
    TRY(count_cards(&count));
    if (ordinal < 0 || ordinal >= count) {
        return failure("%s has no card %d: it has %d, numbered from 0", host_name(), ordinal, count);
    }
    cudaDeviceProp properties;
    cudaError_t code = cudaGetDeviceProperties(&properties, ordinal);
    if (code != cudaSuccess) {
        return opening_failed(ordinal, "no properties", code);
    }
    int architecture = properties.major * 10 + properties.minor;
    if (architecture < OLDEST_ARCHITECTURE) {
        return failure("card %d of %s, %s, is too old: its compute capability is %d.%d, at least 8.0 is needed", ordinal,
                       host_name(), properties.name, properties.major, properties.minor);
    }
    // Makes the card's context: the first call that finds a card in use by others, or out of order.
    code = cudaSetDevice(ordinal);
    if (code != cudaSuccess) {
        return opening_failed(ordinal, properties.name, code);
    }
    Card *card = (Card *)memory_zeroed(1, sizeof *card);
    card->memory = (CardMemory *)memory_zeroed(1, sizeof *card->memory);
    card->device.op = &operations;
    snprintf(card->device.name, sizeof card->device.name, "%.127s", properties.name);
    card->ordinal = ordinal;
    card->multiprocessors = properties.multiProcessorCount;
    card->architecture = architecture;
    card->shared_limit = properties.sharedMemPerBlockOptin;
    Error *error = prepare(card);
    if (error != NULL) {
        close_card(&card->device);
        return error;
    }
    *out = &card->device;
    return NULL;
}

// The free memory of a card. Asking makes a context on it, which takes a moment and memory: one that was not there before is
// taken down again.
static size_t ask_available(int ordinal) {
    typedef int (*PrimaryState)(int, unsigned *, int *);  // CUresult and CUdevice, which are int too
    PrimaryState state = NULL;
    cudaDriverEntryPointQueryResult found;
    unsigned flags;
    int active = 1;
    if (cudaGetDriverEntryPointByVersion("cuDevicePrimaryCtxGetState", (void **)&state, 12000, cudaEnableDefault, &found) ==
            cudaSuccess &&
        found == cudaDriverEntryPointSuccess) {
        state(ordinal, &flags, &active);
    }
    size_t available = 0, total;
    if (cudaSetDevice(ordinal) == cudaSuccess && cudaMemGetInfo(&available, &total) == cudaSuccess && !active) {
        cudaDeviceReset();
    }
    cudaGetLastError();
    return available;
}

// What a card of that architecture runs.
static const char *bodies_for(int architecture) {
    if (architecture < OLDEST_ARCHITECTURE) {
        return "none: the kernels need sm_80 or later";
    }
#ifdef ATHANOR_HAVE_SM90
    if (architecture == 90) {
        return "wgmma and TMA (sm_90a) for matrix products and attention where shapes allow, mma.sync elsewhere";
    }
#else
    if (architecture == 90) {
        return "mma.sync: this build was made without sm_90a, so the faster wgmma kernels are missing";
    }
#endif
    return "mma.sync (sm_80 code): wgmma is for sm_90 alone";
}

static Error *describe_cards(DeviceDescription *out) {
    TRY(check_driver(&out->driver, &out->runtime));
    TRY(count_cards(&out->cards));
    out->cards = out->cards < DEVICE_MOST_CARDS ? out->cards : (int)DEVICE_MOST_CARDS;
    int current = -1;
    cudaGetDevice(&current);
    for (int i = 0; i < out->cards; i++) {
        DeviceCard *card = &out->card[i];
        cudaDeviceProp properties;
        cudaError_t code = cudaGetDeviceProperties(&properties, i);
        if (code != cudaSuccess) {
            return opening_failed(i, "no properties", code);
        }
        snprintf(card->name, sizeof card->name, "%.127s", properties.name);
        card->architecture = properties.major * 10 + properties.minor;
        card->multiprocessors = properties.multiProcessorCount;
        card->memory = properties.totalGlobalMem;
        card->usable = card->architecture >= OLDEST_ARCHITECTURE;
        card->available = ask_available(i);
        card->bodies = bodies_for(card->architecture);
    }
    cudaSetDevice(current);
    return NULL;
}

// ---- Failures

// The failure that is kept, if any.
static Error *failed(const Card *card) {
    if (card->failed == NULL) {
        return NULL;
    }
    Buffer about = {};
    if (card->failure == cudaErrorMemoryAllocation) {
        char wanted[32], left[32];
        size_t available = 0, total;
        cudaMemGetInfo(&available, &total);
        buffer_printf(&about, "; %s wanted, %s free", text_bytes(wanted, (double)card->memory->wanted),
                      text_bytes(left, (double)available));
    }
    Error *error =
        failure("%s failed on card %d (%s) of %s: %s (%s)%s", card->failed, card->ordinal, card->device.name, host_name(),
                cudaGetErrorString(card->failure), cudaGetErrorName(card->failure), about.data != NULL ? about.data : "");
    buffer_free(&about);
    return error;
}

// A wait that fails tells of an operation before it, and not of which.
static const char *const UNKNOWN_OPERATION = "an operation (CUDA_LAUNCH_BLOCKING=1 makes this message name it)";

static Error *finish(Device *device) {
    Card *card = card_of(device);
    card_failed(card, UNKNOWN_OPERATION, cudaStreamSynchronize(card->stream));
    Error *error = failed(card);
    card->failed = NULL;
    card->failure = cudaSuccess;
    cudaGetLastError();
    return error;
}

// ---- Memory

static size_t available(Device *device) {
    size_t bytes = 0, total;
    use(card_of(device));
    cudaMemGetInfo(&bytes, &total);
    return bytes;
}

static Error *allocate(Device *device, size_t bytes, void **out) {
    Card *card = card_of(device);
    ensure(!card->capturing, "memory is allocated while operations are recorded");
    bytes = bytes > 0 ? bytes : 1;
    *out = NULL;
    use(card);
    cudaError_t code = cudaMalloc(out, bytes);
    if (code == cudaErrorMemoryAllocation) {
        char wanted[32], left[32], all[32];
        size_t free_bytes = 0, total = 0;
        cudaGetLastError();
        cudaMemGetInfo(&free_bytes, &total);
        return failure("card %d (%s) of %s is too full: %s wanted, %s of %s free", card->ordinal, card->device.name,
                       host_name(), text_bytes(wanted, (double)bytes), text_bytes(left, (double)free_bytes),
                       text_bytes(all, (double)total));
    }
    if (code == cudaSuccess) {
        code = cudaMemsetAsync(*out, 0, bytes, card->stream);
    }
    if (code != cudaSuccess) {
        card_failed(card, "allocating memory", code);
        return failed(card);
    }
    return NULL;
}

// Operations that use the memory may still be under way.
static void release(Device *device, void *memory, size_t bytes) {
    Card *card = card_of(device);
    ensure(!card->capturing, "memory is released while operations are recorded");
    use(card);
    card_failed(card, UNKNOWN_OPERATION, cudaStreamSynchronize(card->stream));
    card_failed(card, "releasing memory", cudaFree(memory));
}

// Where no more memory can be pinned, ordinary memory does what staging must, only slower.
static void *staging(Device *device, size_t bytes) {
    Card *card = card_of(device);
    CardMemory *memory = card->memory;
    void *pointer = NULL;
    use(card);
    bool pinned = cudaHostAlloc(&pointer, bytes > 0 ? bytes : 1, cudaHostAllocPortable) == cudaSuccess;
    if (pinned) {
        memset(pointer, 0, bytes);
    } else {
        static bool warned;
        char size[32];
        cudaGetLastError();
        if (!warned) {
            log_warning("%s of host memory cannot be pinned for copies to card %d: they will be slower",
                        text_bytes(size, (double)bytes), card->ordinal);
            warned = true;
        }
        pointer = memory_tensor(bytes);
    }
    if (memory->staging_count == memory->staging_capacity) {
        memory->staging_capacity = 2 * memory->staging_capacity + 16;
        memory->staging = (Staging *)memory_resize(memory->staging, memory->staging_capacity, sizeof *memory->staging);
    }
    memory->staging[memory->staging_count++] = {(unsigned char *)pointer, bytes, pinned};
    return pointer;
}

static Staging *find_staging(const Card *card, const void *pointer) {
    const unsigned char *p = (const unsigned char *)pointer;
    for (size_t i = 0; i < card->memory->staging_count; i++) {
        Staging *part = &card->memory->staging[i];
        if (p >= part->memory && p < part->memory + (part->bytes > 0 ? part->bytes : 1)) {
            return part;
        }
    }
    return NULL;
}

static void staging_release(Device *device, void *memory, size_t bytes) {
    Card *card = card_of(device);
    Staging *part = find_staging(card, memory);
    ensure(part != NULL && part->memory == memory, "no such staging memory");
    use(card);
    card_failed(card, UNKNOWN_OPERATION, cudaStreamSynchronize(card->stream));  // copies may be under way
    if (part->pinned) {
        card_failed(card, "releasing pinned memory", cudaFreeHost(memory));
    } else {
        memory_tensor_free(memory, part->bytes);
    }
    *part = card->memory->staging[--card->memory->staging_count];
}

// ---- Copies

// Makes the next slot of the ring free: usually its copies were done long ago.
static void next_slot(Card *card) {
    CardMemory *memory = card->memory;
    card_failed(card, "upload", cudaEventRecord(memory->slot_reached[memory->slot], card->stream));
    memory->slot = (memory->slot + 1) % RING_SLOTS;
    memory->filled = 0;
    card_failed(card, UNKNOWN_OPERATION, cudaEventSynchronize(memory->slot_reached[memory->slot]));
}

static void upload(Device *device, void *to, const void *from, size_t bytes) {
    Card *card = card_of(device);
    CardMemory *memory = card->memory;
    use(card);
    if (find_staging(card, from) != NULL) {
        card_failed(card, "upload", cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, card->stream));
        return;
    }
    ensure(!card->capturing, "an upload from ordinary memory cannot be recorded");
    unsigned char *target = (unsigned char *)to;
    const unsigned char *source = (const unsigned char *)from;
    while (bytes > 0) {
        if (memory->filled >= RING_SLOT_BYTES) {
            next_slot(card);
        }
        size_t part = RING_SLOT_BYTES - memory->filled;
        part = part < bytes ? part : bytes;
        unsigned char *place = memory->ring + (size_t)memory->slot * RING_SLOT_BYTES + memory->filled;
        memcpy(place, source, part);
        card_failed(card, "upload", cudaMemcpyAsync(target, place, part, cudaMemcpyHostToDevice, card->stream));
        memory->filled += (part + 255) / 256 * 256;
        target += part;
        source += part;
        bytes -= part;
    }
}

static void download(Device *device, void *to, const void *from, size_t bytes) {
    Card *card = card_of(device);
    bool ordinary = find_staging(card, to) == NULL;
    ensure(!card->capturing || !ordinary, "a download to ordinary memory cannot be recorded");
    use(card);
    card_failed(card, "download", cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, card->stream));
    if (ordinary) {
        card_failed(card, UNKNOWN_OPERATION, cudaStreamSynchronize(card->stream));
    }
}

// ---- Marks and graphs: a DeviceMark is an event, a DeviceGraph a graph ready to launch

static DeviceMark *mark_create(Device *device) {
    Card *card = card_of(device);
    cudaEvent_t event = NULL;
    use(card);
    card_failed(card, "creating a mark", cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    return (DeviceMark *)event;
}

static void mark_set(Device *device, DeviceMark *mark) {
    Card *card = card_of(device);
    ensure(!card->capturing, "a mark cannot be recorded");
    if (mark != NULL) {
        card_failed(card, "setting a mark", cudaEventRecord((cudaEvent_t)mark, card->stream));
    }
}

static bool mark_reached(Device *device, DeviceMark *mark) {
    Card *card = card_of(device);
    ensure(!card->capturing, "a mark is asked for while operations are recorded");
    return mark == NULL || card->failed != NULL || cudaEventQuery((cudaEvent_t)mark) != cudaErrorNotReady;
}

static Error *mark_wait(Device *device, DeviceMark *mark) {
    Card *card = card_of(device);
    ensure(!card->capturing, "a mark is waited for while operations are recorded");
    if (mark != NULL) {
        card_failed(card, UNKNOWN_OPERATION, cudaEventSynchronize((cudaEvent_t)mark));
    }
    return failed(card);
}

static void mark_destroy(Device *device, DeviceMark *mark) {
    cudaEventDestroy((cudaEvent_t)mark);
}

static bool record(Device *device) {
    Card *card = card_of(device);
    ensure(!card->capturing, "operations are being recorded already");
    use(card);
    // Only this thread's calls are watched: others may allocate memory meanwhile.
    cudaError_t code = cudaStreamBeginCapture(card->stream, cudaStreamCaptureModeThreadLocal);
    card_failed(card, "recording operations", code);
    card->capturing = code == cudaSuccess;
    return card->capturing;
}

static Error *record_end(Device *device, DeviceGraph **out) {
    Card *card = card_of(device);
    ensure(card->capturing, "nothing is being recorded");
    card->capturing = false;
    *out = NULL;
    cudaGraph_t graph = NULL;
    cudaGraphExec_t run = NULL;
    card_failed(card, "recording operations", cudaStreamEndCapture(card->stream, &graph));
    if (graph != NULL) {
        if (card->failed == NULL) {
            // Else all of them would have the priority of this stream, communication too.
            card_failed(card, "preparing recorded operations",
                        cudaGraphInstantiate(&run, graph, cudaGraphInstantiateFlagUseNodePriority));
        }
        cudaGraphDestroy(graph);
    }
    *out = (DeviceGraph *)run;
    card->memory->graphs += run != NULL;
    return failed(card);
}

static void graph_run(Device *device, DeviceGraph *graph) {
    Card *card = card_of(device);
    if (card->failed == NULL) {
        card_failed(card, "a graph of recorded operations", cudaGraphLaunch((cudaGraphExec_t)graph, card->stream));
    }
}

static void graph_destroy(Device *device, DeviceGraph *graph) {
    Card *card = card_of(device);
    card_failed(card, UNKNOWN_OPERATION, cudaStreamSynchronize(card->stream));  // it may be running
    cudaGraphExecDestroy((cudaGraphExec_t)graph);
    card->memory->graphs--;
}

static void *stream(Device *device) {
    return card_of(device)->stream;
}

// ---- What operations need

void *card_workspace(Card *card, size_t bytes) {
    if (bytes > card->workspace_bytes) {
        ensure(!card->capturing, "the workspace must grow to %zu bytes while operations are recorded", bytes);
        CardMemory *memory = card->memory;
        size_t size = (bytes + WORKSPACE_STEP - 1) / WORKSPACE_STEP * WORKSPACE_STEP;
        use(card);
        if (memory->graphs > 0 && memory->workspace != NULL) {
            if (memory->retired_count == memory->retired_capacity) {
                memory->retired_capacity = memory->retired_capacity > 0 ? 2 * memory->retired_capacity : 8;
                memory->retired = (void **)memory_resize(memory->retired, memory->retired_capacity, sizeof(void *));
            }
            memory->retired[memory->retired_count++] = memory->workspace;
        } else {
            card_failed(card, UNKNOWN_OPERATION, cudaStreamSynchronize(card->stream));  // the old one may be in use
            cudaFree(memory->workspace);
        }
        memory->workspace = card->workspace = NULL;
        card->workspace_bytes = 0;
        cudaError_t code = cudaMalloc(&memory->workspace, size + WORKSPACE_ALIGNMENT);
        if (code != cudaSuccess) {
            // The operation that asked is not launched, nor any after it, and the next wait says why.
            memory->wanted = size;
            card_failed(card, "allocating scratch memory for an operation", code);
            cudaGetLastError();
            return NULL;
        }
        uintptr_t place = ((uintptr_t)memory->workspace + WORKSPACE_ALIGNMENT - 1) / WORKSPACE_ALIGNMENT * WORKSPACE_ALIGNMENT;
        card->workspace = (void *)place;
        card->workspace_bytes = size;
    }
    return card->workspace;
}

// A kernel is allowed all that its static shared memory leaves, so that it is asked once whatever its launches take.
void card_allow_shared(Card *card, const void *kernel, size_t bytes) {
    for (int i = 0; i < card->allowed_count; i++) {
        if (card->allowed[i] == kernel) {
            return;
        }
    }
    cudaFuncAttributes attributes;
    cudaError_t code = cudaFuncGetAttributes(&attributes, kernel);
    if (code == cudaSuccess) {
        int most = (int)(card->shared_limit - attributes.sharedSizeBytes);
        code = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    }
    card_failed(card, "allowing a kernel its shared memory", code);
    ensure(card->allowed_count < (int)(sizeof card->allowed / sizeof *card->allowed), "too many kernels");
    card->allowed[card->allowed_count++] = kernel;
}

}  // namespace BACKEND

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)

extern "C" {
extern const DeviceBackend PASTE(BACKEND, _backend);
const DeviceBackend PASTE(BACKEND, _backend) = {
    .name = TEXT(BACKEND),
    .open = BACKEND::open_card,
    .describe = BACKEND::describe_cards,
    .count = BACKEND::count_cards,
    .close = BACKEND::close_card,
    .allocate = BACKEND::allocate,
    .release = BACKEND::release,
    .available = BACKEND::available,
    .staging = BACKEND::staging,
    .staging_release = BACKEND::staging_release,
    .upload = BACKEND::upload,
    .download = BACKEND::download,
    .finish = BACKEND::finish,
    .mark_create = BACKEND::mark_create,
    .mark_set = BACKEND::mark_set,
    .mark_reached = BACKEND::mark_reached,
    .mark_wait = BACKEND::mark_wait,
    .mark_destroy = BACKEND::mark_destroy,
    .record = BACKEND::record,
    .record_end = BACKEND::record_end,
    .graph_run = BACKEND::graph_run,
    .graph_destroy = BACKEND::graph_destroy,
    .stream = BACKEND::stream,
    .set_choice = BACKEND::matmul_set_choice,
    .describe_choices = BACKEND::matmul_describe_choices,
    .load_choices = BACKEND::matmul_load_choices,
};
}
