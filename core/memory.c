// Host memory: see memory.h.
#include "core/memory.h"

#include "core/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>

static _Noreturn void out_of_memory(size_t count, size_t size) {
    fprintf(stderr, "athanor: out of memory: %zu x %zu bytes could not be had; use a smaller model, batch or --workers\n",
            count, size);
    exit(1);
}

void *memory_new(size_t count, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) {
        out_of_memory(count, size);
    }
    void *block = malloc(bytes ? bytes : 1);
    if (block == NULL) {
        out_of_memory(count, size);
    }
    return block;
}

void *memory_zeroed(size_t count, size_t size) {
    void *block = calloc(count ? count : 1, size ? size : 1);
    if (block == NULL) {
        out_of_memory(count, size);
    }
    return block;
}

void *memory_resize(void *old, size_t count, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) {
        out_of_memory(count, size);
    }
    void *block = realloc(old, bytes ? bytes : 1);
    if (block == NULL) {
        out_of_memory(count, size);
    }
    return block;
}

char *memory_string(const char *text) {
    size_t size = strlen(text) + 1;
    return memcpy(memory_new(size, 1), text, size);
}

char *memory_format(const char *format, ...) {
    va_list arguments, copy;
    va_start(arguments, format);
    va_copy(copy, arguments);
    int length = vsnprintf(NULL, 0, format, copy);
    va_end(copy);
    ensure(length >= 0, "bad format %s", format);
    char *text = memory_new((size_t)length + 1, 1);
    vsnprintf(text, (size_t)length + 1, format, arguments);
    va_end(arguments);
    return text;
}

Error *memory_try(size_t count, size_t size, const char *what, void **out) {
    size_t bytes;
    *out = NULL;
    if (__builtin_mul_overflow(count, size, &bytes) || bytes > PTRDIFF_MAX) {
        return failure("%s has an absurd size (%zu x %zu bytes)", what, count, size);
    }
    *out = malloc(bytes ? bytes : 1);
    if (*out == NULL) {
        char text[32];
        return failure("%s needs %s of memory, which this machine cannot give", what, text_bytes(text, (double)bytes));
    }
    return NULL;
}

// Below this size a huge page would waste more than it saves.
enum { TENSOR_MAP_BYTES = 4 << 20 };

void *memory_tensor(size_t bytes) {
    if (bytes < TENSOR_MAP_BYTES) {
        size_t rounded = (bytes + 63) / 64 * 64;
        void *block = aligned_alloc(64, rounded ? rounded : 64);
        if (block == NULL) {
            out_of_memory(1, bytes);
        }
        return memset(block, 0, rounded ? rounded : 64);
    }
    void *block = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) {
        out_of_memory(1, bytes);
    }
    madvise(block, bytes, MADV_HUGEPAGE);
    return block;
}

void memory_tensor_free(void *tensor, size_t bytes) {
    if (tensor == NULL) {
        return;
    }
    if (bytes < TENSOR_MAP_BYTES) {
        free(tensor);
    } else {
        munmap(tensor, bytes);
    }
}

// Reads "Key:   123 kB" from a file of /proc; 0 where there is none.
static size_t proc_kilobytes(const char *path, const char *key) {
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        return 0;
    }
    char line[256];
    size_t length = strlen(key), value = 0;
    while (fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, key, length) == 0 && sscanf(line + length, " %zu", &value) == 1) {
            break;
        }
    }
    fclose(file);
    return value * 1024;
}

size_t memory_peak_resident(void) {
    return proc_kilobytes("/proc/self/status", "VmHWM:");
}

size_t memory_available(void) {
    return proc_kilobytes("/proc/meminfo", "MemAvailable:");
}

void buffer_reserve(Buffer *buffer, size_t more) {
    size_t wanted;
    if (__builtin_add_overflow(buffer->size, more, &wanted) || __builtin_add_overflow(wanted, (size_t)1, &wanted)) {
        out_of_memory(buffer->size, more);
    }
    if (wanted <= buffer->capacity) {
        return;
    }
    size_t capacity = buffer->capacity < 64 ? 64 : buffer->capacity;
    while (capacity < wanted) {
        capacity += capacity / 2;
    }
    buffer->data = memory_resize(buffer->data, capacity, 1);
    buffer->capacity = capacity;
}

void buffer_append(Buffer *buffer, const void *bytes, size_t size) {
    buffer_reserve(buffer, size);
    if (size > 0) {
        memcpy(buffer->data + buffer->size, bytes, size);
    }
    buffer->size += size;
    buffer->data[buffer->size] = 0;
}

void buffer_text(Buffer *buffer, const char *text) {
    buffer_append(buffer, text, strlen(text));
}

void buffer_printf(Buffer *buffer, const char *format, ...) {
    va_list arguments, copy;
    va_start(arguments, format);
    va_copy(copy, arguments);
    int length = vsnprintf(NULL, 0, format, copy);
    va_end(copy);
    ensure(length >= 0, "bad format %s", format);
    buffer_reserve(buffer, (size_t)length);
    vsnprintf(buffer->data + buffer->size, (size_t)length + 1, format, arguments);
    buffer->size += (size_t)length;
    va_end(arguments);
}

void buffer_clear(Buffer *buffer) {
    buffer->size = 0;
    if (buffer->data != NULL) {
        buffer->data[0] = 0;
    }
}

void buffer_free(Buffer *buffer) {
    free(buffer->data);
    *buffer = (Buffer){0};
}

void strings_add(Strings *strings, const char *text) {
    array_push(strings->items, strings->count, strings->capacity, memory_string(text));
}

static int compare_strings(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

void strings_sort(Strings *strings) {
    if (strings->count > 1) {
        qsort(strings->items, strings->count, sizeof *strings->items, compare_strings);
    }
}

void strings_free(Strings *strings) {
    for (size_t i = 0; i < strings->count; i++) {
        free(strings->items[i]);
    }
    free(strings->items);
    *strings = (Strings){0};
}
