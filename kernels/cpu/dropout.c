// Dropout in place: element i is kept where philox_unit(word (first + i) % 4 of philox(seed, stream, (first + i) / 4)) >=
// probability, and then scaled by 1 / (1 - probability). Nothing is stored: the backward pass draws the same mask again.
#include "core/philox.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/parts.h"

typedef struct DropoutWork {
    const Dropout *a;
    int64_t parts;
    float scale;
} DropoutWork;

static void dropout_part(void *context, int64_t task, int thread) {
    const DropoutWork *w = context;
    const Dropout *a = w->a;
    Range range = range_part(a->count, 1024, w->parts, task);
    float *x = a->x;
    for (int64_t i = range.begin; i < range.end; i++) {
        uint64_t index = a->first + (uint64_t)i;
        Philox r = philox(a->seed, a->stream, index / 4);
        x[i] = philox_unit(r.word[index % 4]) >= (double)a->probability ? x[i] * w->scale : 0;
    }
}

void CPU_NAME(cpu_dropout)(Device *device, const Dropout *a) {
    ensure(a->probability >= 0 && a->probability < 1, "dropout %g", (double)a->probability);
    ensure(a->first % 4 == 0, "dropout of elements from %llu", (unsigned long long)a->first);
    DropoutWork w = {a, part_count(device, a->count, 8), 1.0f / (1.0f - a->probability)};
    threads_run(device->pool, w.parts, dropout_part, &w);
}
