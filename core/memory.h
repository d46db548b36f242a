// Host memory: allocation that is checked once, here, and two growable containers.
#pragma once

#include "core/error.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// Allocate count * size bytes (zeroed for memory_zeroed). Overflow and exhaustion end the program with one
// clear line: use them for sizes that the program chose. For sizes that came from a file use memory_try.
void *memory_new(size_t count, size_t size) __attribute__((returns_nonnull, malloc));
void *memory_zeroed(size_t count, size_t size) __attribute__((returns_nonnull, malloc));
void *memory_resize(void *old, size_t count, size_t size) __attribute__((returns_nonnull));
char *memory_string(const char *text) __attribute__((returns_nonnull, malloc));
char *memory_format(const char *format, ...) PRINTF_LIKE(1, 2) __attribute__((returns_nonnull, malloc));

// Allocates count * size bytes or says what was wanted: "`what` needs 12.3 GiB, which ...".
Error *memory_try(size_t count, size_t size, const char *what, void **out) MUST_CHECK;

// Memory for tensors: zeroed, aligned to 64 bytes (2 MiB and huge pages where it is large). `bytes` may be 0.
void *memory_tensor(size_t bytes) __attribute__((returns_nonnull));
void memory_tensor_free(void *tensor, size_t bytes);

// The resident size of this process at its peak so far, and the machine's memory that is still available; in bytes.
size_t memory_peak_resident(void);
size_t memory_available(void);

// Bytes that grow. `data` is always followed by a zero byte once anything was appended. Zero-initialise to start.
typedef struct Buffer {
    char *data;
    size_t size, capacity;
} Buffer;

void buffer_reserve(Buffer *buffer, size_t more);
void buffer_append(Buffer *buffer, const void *bytes, size_t size);
void buffer_text(Buffer *buffer, const char *text);
void buffer_printf(Buffer *buffer, const char *format, ...) PRINTF_LIKE(2, 3);
void buffer_clear(Buffer *buffer);  // keeps the capacity
void buffer_free(Buffer *buffer);

static inline void buffer_byte(Buffer *buffer, char byte) {
    if (buffer->size + 2 > buffer->capacity) {
        buffer_reserve(buffer, 1);
    }
    buffer->data[buffer->size++] = byte;
    buffer->data[buffer->size] = 0;
}

// A list of owned strings.
typedef struct Strings {
    char **items;
    size_t count, capacity;
} Strings;

void strings_add(Strings *strings, const char *text);
void strings_sort(Strings *strings);
void strings_free(Strings *strings);

// Appends `value` to a typed growable array: array_push(items, count, capacity, value).
#define array_push(items, count, capacity, value)                                                                              \
    do {                                                                                                                       \
        if ((count) == (capacity)) {                                                                                           \
            (capacity) = (capacity) ? 2 * (capacity) : 16;                                                                     \
            (items) = memory_resize((items), (size_t)(capacity), sizeof *(items));                                             \
        }                                                                                                                      \
        (items)[(count)++] = (value);                                                                                          \
    } while (0)
