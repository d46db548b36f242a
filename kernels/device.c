// A device: see device.h. The CPU's backend stands here; a card's is in kernels/cuda/device.cu.
#include "kernels/device.h"

#include "core/memory.h"
#include "kernels/cpu/cpu.h"

// ---- The CPU

typedef struct Variant {
    const char *name;
    const Operations *operations;
    bool (*supported)(void);
} Variant;

static bool always(void) {
    return true;
}

#if defined(__x86_64__)
static bool has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
static bool has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && has_avx2();
}
#endif

// Best first.
static const Variant variants[] = {
#if defined(__x86_64__)
    {"avx512", &cpu_operations_avx512, has_avx512},
    {"avx2", &cpu_operations_avx2, has_avx2},
#endif
    {"baseline", &cpu_operations_baseline, always},
};
enum { VARIANT_COUNT = sizeof variants / sizeof *variants };

const char *const *device_cpu_variants(void) {
    static const char *names[VARIANT_COUNT + 1];
    int count = 0;
    for (int i = 0; i < VARIANT_COUNT; i++) {
        if (variants[i].supported()) {
            names[count++] = variants[i].name;
        }
    }
    names[count] = NULL;
    return names;
}

static void cpu_close(Device *device) {
    memory_tensor_free(device->scratch, device->scratch_bytes);
    free(device);
}

static Error *cpu_allocate(Device *device, size_t bytes, void **out) {
    *out = memory_tensor(bytes);
    return NULL;
}

static void cpu_release(Device *device, void *memory, size_t bytes) {
    memory_tensor_free(memory, bytes);
}

static size_t cpu_available(Device *device) {
    return memory_available();
}

static void *cpu_staging(Device *device, size_t bytes) {
    return memory_tensor(bytes);
}

static void cpu_copy(Device *device, void *to, const void *from, size_t bytes) {
    memmove(to, from, bytes);
}

static Error *cpu_finish(Device *device) {
    return NULL;
}

static DeviceMark *cpu_mark_create(Device *device) {
    return NULL;
}

static void cpu_mark_nothing(Device *device, DeviceMark *mark) {
}

static bool cpu_mark_reached(Device *device, DeviceMark *mark) {
    return true;
}

static Error *cpu_mark_wait(Device *device, DeviceMark *mark) {
    return NULL;
}

static bool cpu_record(Device *device) {
    return false;
}

static void *cpu_stream(Device *device) {
    return NULL;
}

static const DeviceBackend cpu_backend = {
    .name = "cpu",
    .close = cpu_close,
    .allocate = cpu_allocate,
    .release = cpu_release,
    .available = cpu_available,
    .staging = cpu_staging,
    .staging_release = cpu_release,
    .upload = cpu_copy,
    .download = cpu_copy,
    .finish = cpu_finish,
    .mark_create = cpu_mark_create,
    .mark_set = cpu_mark_nothing,
    .mark_reached = cpu_mark_reached,
    .mark_wait = cpu_mark_wait,
    .mark_destroy = cpu_mark_nothing,
    .record = cpu_record,
    .stream = cpu_stream,
};

Error *device_open_cpu(int threads, const char *instruction_set, Device **out) {
    bool automatic = instruction_set == NULL || strcmp(instruction_set, "auto") == 0;
    for (int i = 0; i < VARIANT_COUNT; i++) {
        if (variants[i].supported() && (automatic || strcmp(instruction_set, variants[i].name) == 0)) {
            Device *device = memory_zeroed(1, sizeof *device);
            device->kind = DEVICE_CPU;
            device->type = TYPE_FP32;
            device->op = variants[i].operations;
            device->backend = &cpu_backend;
            device->pool = threads_create(threads);
            memcpy(device->name, variants[i].operations->name, strlen(variants[i].operations->name) + 1);
            *out = device;
            return NULL;
        }
    }
    Buffer names = {0};
    for (const char *const *name = device_cpu_variants(); *name != NULL; name++) {
        buffer_printf(&names, "%s%s", names.size > 0 ? ", " : "", *name);
    }
    Error *error = failure("this processor cannot run instruction set '%s'; it runs: %s", instruction_set, names.data);
    buffer_free(&names);
    return error;
}

void *device_scratch(Device *device, size_t bytes_per_thread) {
    size_t bytes = (bytes_per_thread + 4095) / 4096 * 4096 * (size_t)threads_count(device->pool);
    if (bytes > device->scratch_bytes) {
        memory_tensor_free(device->scratch, device->scratch_bytes);
        device->scratch = memory_tensor(bytes);
        device->scratch_bytes = bytes;
    }
    return device->scratch;
}

// ---- Cards

#ifdef ATHANOR_HAVE_CUDA
extern const DeviceBackend cuda_backend;
#endif
#ifdef ATHANOR_HAVE_SIMULATED
extern const DeviceBackend simulated_backend;
#endif

static const DeviceBackend *card_backend(DeviceKind kind) {
#ifdef ATHANOR_HAVE_CUDA
    if (kind == DEVICE_CUDA) {
        return &cuda_backend;
    }
#endif
#ifdef ATHANOR_HAVE_SIMULATED
    if (kind == DEVICE_SIMULATED) {
        return &simulated_backend;
    }
#endif
    return NULL;
}

bool device_built(DeviceKind kind) {
    return kind == DEVICE_CPU || card_backend(kind) != NULL;
}

static Error *not_built(DeviceKind kind) {
    return kind == DEVICE_SIMULATED
               ? failure("this build has no simulated card: configure with -DATHANOR_SIMULATED=ON")
               : failure(
                     "this build has no CUDA: install the CUDA toolkit (nvcc), configure and build again, or use device=cpu");
}

Error *device_describe_cards(DeviceKind kind, DeviceDescription *out) {
    const DeviceBackend *backend = card_backend(kind);
    *out = (DeviceDescription){0};
    return backend != NULL ? backend->describe(out) : not_built(kind);
}

Error *device_count_cards(DeviceKind kind, int *out) {
    const DeviceBackend *backend = card_backend(kind);
    *out = 0;
    return backend != NULL ? backend->count(out) : not_built(kind);
}

Error *device_open_card(DeviceKind kind, int card, DataType type, int threads, Device **out) {
    const DeviceBackend *backend = card_backend(kind);
    if (backend == NULL) {
        return not_built(kind);
    }
    TRY(backend->open(card, type, out));
    (*out)->kind = kind;
    (*out)->type = type;
    (*out)->backend = backend;
    (*out)->pool = threads_create(threads);
    return NULL;
}

// ---- What all have

void device_close(Device *device) {
    if (device != NULL) {
        threads_destroy(device->pool);
        device->pool = NULL;
        device->backend->close(device);
    }
}

Error *device_allocate(Device *device, size_t bytes, void **out) {
    return device->backend->allocate(device, bytes, out);
}

void device_release(Device *device, void *memory, size_t bytes) {
    if (memory != NULL) {
        device->backend->release(device, memory, bytes);
    }
}

size_t device_available(Device *device) {
    return device->backend->available(device);
}

void *device_staging(Device *device, size_t bytes) {
    return device != NULL ? device->backend->staging(device, bytes) : memory_tensor(bytes);
}

void device_staging_release(Device *device, void *memory, size_t bytes) {
    if (device == NULL) {
        memory_tensor_free(memory, bytes);
    } else if (memory != NULL) {
        device->backend->staging_release(device, memory, bytes);
    }
}

void device_upload(Device *device, void *to, const void *from, size_t bytes) {
    if (bytes > 0) {
        device->backend->upload(device, to, from, bytes);
    }
}

void device_download(Device *device, void *to, const void *from, size_t bytes) {
    if (bytes > 0) {
        device->backend->download(device, to, from, bytes);
    }
}

Error *device_finish(Device *device) {
    return device->backend->finish(device);
}

DeviceMark *device_mark_create(Device *device) {
    return device->backend->mark_create(device);
}

void device_mark_set(Device *device, DeviceMark *mark) {
    device->backend->mark_set(device, mark);
}

Error *device_mark_wait(Device *device, DeviceMark *mark) {
    return device->backend->mark_wait(device, mark);
}

bool device_mark_reached(Device *device, DeviceMark *mark) {
    return device->backend->mark_reached(device, mark);
}

void device_mark_destroy(Device *device, DeviceMark *mark) {
    if (mark != NULL) {
        device->backend->mark_destroy(device, mark);
    }
}

bool device_record(Device *device) {
    return device->backend->record(device);
}

Error *device_record_end(Device *device, DeviceGraph **out) {
    return device->backend->record_end(device, out);
}

void device_graph_run(Device *device, DeviceGraph *graph) {
    device->backend->graph_run(device, graph);
}

void device_graph_destroy(Device *device, DeviceGraph *graph) {
    if (graph != NULL) {
        device->backend->graph_destroy(device, graph);
    }
}

void *device_stream(Device *device) {
    return device->backend->stream(device);
}

Error *device_set_products(Device *device, const char *products) {
    return device->backend->set_choice != NULL ? device->backend->set_choice(device, products) : NULL;
}

void device_describe_choices(Device *device, Buffer *out) {
    if (device->backend->describe_choices != NULL) {
        device->backend->describe_choices(device, out);
    }
}

Error *device_load_choices(Device *device, const char *text) {
    return device->backend->load_choices != NULL ? device->backend->load_choices(device, text) : NULL;
}
