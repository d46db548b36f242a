// Memory that is planned before it is used: see layout.h.
#include "train/model/layout.h"

static int64_t aligned(int64_t bytes) {
    return (bytes + 255) / 256 * 256;
}

void *layout_take(Layout *layout, const char *name, int64_t count, int64_t rows, int64_t columns, int64_t size) {
    int64_t bytes;
    bool absurd = __builtin_mul_overflow(rows, columns, &bytes) || __builtin_mul_overflow(bytes, size, &bytes) ||
                  bytes > PLAN_MOST_BYTES || __builtin_mul_overflow(aligned(bytes), count, &bytes) || bytes > PLAN_MOST_BYTES;
    bytes = absurd ? PLAN_MOST_BYTES : bytes;
    void *part = layout->base != NULL && bytes > 0 ? layout->base + layout->used : NULL;
    layout->used += bytes;
    if (layout->plan != NULL && bytes > 0) {
        char shape[64];
        int written = count > 1 ? snprintf(shape, sizeof shape, "%lld x ", (long long)count) : 0;
        written += snprintf(shape + written, sizeof shape - (size_t)written, "%lld", (long long)rows);
        if (columns > 1) {
            snprintf(shape + written, sizeof shape - (size_t)written, " x %lld", (long long)columns);
        }
        memory_plan_add(layout->plan, name, bytes, "%s x %lld B", shape, (long long)size);
    }
    return part;
}

void *layout_part(void *base, int64_t index, int64_t count, int64_t elements, int64_t size) {
    if (base == NULL) {
        return NULL;
    }
    return (char *)base + (count > 1 ? index * aligned(elements * size) : 0);
}
