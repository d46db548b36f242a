// A device: see device.h.
#include "kernels/device.h"

#include "core/memory.h"
#include "kernels/cpu/cpu.h"

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

Error *device_open_cpu(int threads, const char *instruction_set, Device **out) {
    bool automatic = instruction_set == NULL || strcmp(instruction_set, "auto") == 0;
    for (int i = 0; i < VARIANT_COUNT; i++) {
        if (variants[i].supported() && (automatic || strcmp(instruction_set, variants[i].name) == 0)) {
            Device *device = memory_zeroed(1, sizeof *device);
            device->kind = DEVICE_CPU;
            device->op = variants[i].operations;
            device->pool = threads_create(threads);
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

void device_close(Device *device) {
    if (device != NULL) {
        threads_destroy(device->pool);
        memory_tensor_free(device->scratch, device->scratch_bytes);
        free(device);
    }
}

void *device_allocate(Device *device, size_t bytes) {
    return memory_tensor(bytes);
}

void device_release(Device *device, void *memory, size_t bytes) {
    memory_tensor_free(memory, bytes);
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
