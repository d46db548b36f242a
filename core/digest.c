// Digests of tensors: see digest.h.
#include "core/digest.h"

#include "core/half.h"

#define INDEX_FACTOR 0x9E3779B97F4A7C15u
#define BITS_FACTOR 0xD1B54A32D192ED03u

static inline uint64_t mix(uint64_t z) {
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

// No element waits for another: additions of whole numbers may be done in any order, so the compiler makes vectors of it.
__attribute__((always_inline)) static inline uint64_t sum_run(int64_t index, const float *values, int64_t count) {
    uint64_t sum = 0, first = (uint64_t)index * INDEX_FACTOR;
    for (int64_t i = 0; i < count; i++) {
        sum += mix(first + (uint64_t)i * INDEX_FACTOR + float_to_bits(values[i]) * BITS_FACTOR);
    }
    return sum;
}

#if defined(__x86_64__)
// Where there is a multiplication of vectors of 64-bit words, which is most of the work: of gigabytes, beside a training step.
__attribute__((target("avx512f,avx512dq,avx512vl"))) static uint64_t sum_run_512(int64_t index, const float *values,
                                                                                 int64_t count) {
    return sum_run(index, values, count);
}
#endif

uint64_t digest_run(int64_t index, const float *values, int64_t count) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        return sum_run_512(index, values, count);
    }
#endif
    return sum_run(index, values, count);
}

typedef struct Summed {
    const float *values;
    uint64_t sum;
} Summed;

static bool add_run(void *context, BoxRun run) {
    Summed *summed = context;
    summed->sum += digest_run(run.from, summed->values + run.to, run.count);
    return true;
}

uint64_t digest_boxes(int dims, const int64_t *shape, const Box *boxes, int count, const float *values) {
    Box whole = box_whole(dims, shape);
    Summed summed = {.values = values};
    boxes_runs(&whole, 1, boxes, count, add_run, &summed, NULL);
    return summed.sum;
}
