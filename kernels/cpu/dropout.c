// Dropout in place: element i is kept where philox_unit(word (first + i) % 4 of philox(seed, stream, (first + i) / 4)) >=
// probability, and then scaled by 1 / (1 - probability). Nothing is stored: the backward pass draws the same mask again.
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/parts.h"
#include "kernels/cpu/random.h"

typedef struct DropoutWork {
    const Dropout *a;
    int64_t parts;
    uint32_t threshold;
    float scale;
} DropoutWork;

enum { GROUP = 4 * VEC_LANES64 };  // elements that one vector of counters decides: two vectors

// The masks of the GROUP elements whose counters are `index`: low for the first half, high for the second.
//
// Words 0 and 1 are put side by side, words 2 and 3 too; interleaving the two by 64-bit lanes gives the words of every second
// counter in order, so even lanes hold the first half of the counters and odd lanes the second (see counters).
VEC_INLINE void masks(uint64_t seed, uint64_t stream, Vec64 index, uint32_t threshold, VecI *low, VecI *high) {
    PhiloxVec r = philox_vec(seed, stream, index);
    Vec64 a = (r.word[0] & 0xFFFFFFFFu) | r.word[1] << 32, b = (r.word[2] & 0xFFFFFFFFu) | r.word[3] << 32;
#if VEC_LANES == 16
    Vec64 even = __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14);
    Vec64 odd = __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
#elif VEC_LANES == 8
    Vec64 even = __builtin_shufflevector(a, b, 0, 4, 2, 6);
    Vec64 odd = __builtin_shufflevector(a, b, 1, 5, 3, 7);
#else
    Vec64 even = __builtin_shufflevector(a, b, 0, 2);
    Vec64 odd = __builtin_shufflevector(a, b, 1, 3);
#endif
    *low = vec_kept((VecU)even, threshold);
    *high = vec_kept((VecU)odd, threshold);
}

static Vec64 counters(uint64_t first) {
    Vec64 index;
    for (int i = 0; i < VEC_LANES64; i++) {
        index[i] = first + (uint64_t)(i / 2 + i % 2 * (VEC_LANES64 / 2));
    }
    return index;
}

static void dropout_part(void *context, int64_t task, int thread) {
    const DropoutWork *w = context;
    Range range = range_part(w->a->count, 1024, w->parts, task);
    float *x = (float *)w->a->x + range.begin, scale = w->scale;
    int64_t count = range.end - range.begin, i = 0;
    // Copies: the compiler cannot know that stores to x leave the settings alone.
    uint64_t seed = w->a->seed, stream = w->a->stream;
    uint32_t threshold = w->threshold;
    Vec64 index = counters((w->a->first + (uint64_t)range.begin) / 4);
    VecI low, high;
    for (; i + GROUP <= count; i += GROUP, index += (uint64_t)VEC_LANES64) {
        masks(seed, stream, index, threshold, &low, &high);
        vec_store(x + i, (Vec)((VecI)(vec_load(x + i) * scale) & low));
        vec_store(x + i + VEC_LANES, (Vec)((VecI)(vec_load(x + i + VEC_LANES) * scale) & high));
    }
    if (i < count) {
        masks(seed, stream, index, threshold, &low, &high);
        int64_t left = count - i, first = left < VEC_LANES ? left : VEC_LANES;
        vec_store_partial(x + i, (Vec)((VecI)(vec_load_partial(x + i, first) * scale) & low), first);
        if (left > VEC_LANES) {
            float *rest = x + i + VEC_LANES;
            left -= VEC_LANES;
            vec_store_partial(rest, (Vec)((VecI)(vec_load_partial(rest, left) * scale) & high), left);
        }
    }
}

void CPU_NAME(cpu_dropout)(Device *device, const Dropout *a) {
    ensure(a->probability >= 0 && a->probability < 1, "dropout %g", (double)a->probability);
    ensure(a->first % 4 == 0, "dropout of elements from %llu", (unsigned long long)a->first);
    DropoutWork w = {a, part_count(device, a->count, 2), philox_threshold(a->probability), 1.0f / (1.0f - a->probability)};
    threads_run(device->pool, w.parts, dropout_part, &w);
}
