// Sums and fills of flat arrays.
//
//   add             y[i] += x[i]
//   zero            x = 0
//   sum_of_squares  sum of x[i]^2 in double precision: the array is cut into blocks whose length depends on the count alone,
//                   each block is summed in a fixed order, and the blocks are added in order. Not finite where an element is
//                   not: the square of the largest float is far below the largest double, so nothing else overflows.
//   squares         the same, into memory
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/parts.h"

#include <string.h>

typedef struct Add {
    int64_t count, parts;
    const float *x;
    float *y;
} Add;

static void add_part(void *context, int64_t task, int thread) {
    const Add *a = context;
    Range range = range_part(a->count, 1024, a->parts, task);
    const float *restrict x = a->x;
    float *restrict y = a->y;
    for (int64_t i = range.begin; i < range.end; i++) {
        y[i] += x[i];
    }
}

void CPU_NAME(cpu_add)(Device *device, int64_t count, const void *x, void *y) {
    Add a = {count, part_count(device, count, 1), x, y};
    threads_run(device->pool, a.parts, add_part, &a);
}

typedef struct Zero {
    int64_t bytes, parts;
    char *x;
} Zero;

static void zero_part(void *context, int64_t task, int thread) {
    const Zero *a = context;
    Range range = range_part(a->bytes, 4096, a->parts, task);
    memset(a->x + range.begin, 0, (size_t)(range.end - range.begin));
}

void CPU_NAME(cpu_zero)(Device *device, int64_t bytes, void *x) {
    Zero a = {bytes, part_count(device, bytes / 4 + (bytes % 4 != 0), 1), x};
    threads_run(device->pool, a.parts, zero_part, &a);
}

enum { SQUARE_BLOCK = 1 << 15, SQUARE_BLOCKS = 4096, SQUARE_LANES = 32 };

typedef struct Squares {
    int64_t count, block;
    const float *x;
    double *sums;  // one a block
} Squares;

static void squares_block(void *context, int64_t task, int thread) {
    const Squares *a = context;
    int64_t begin = task * a->block, end = begin + a->block < a->count ? begin + a->block : a->count;
    const float *x = a->x;
    double lanes[SQUARE_LANES] = {0};
    int64_t i = begin;
    for (; i + SQUARE_LANES <= end; i += SQUARE_LANES) {
        for (int l = 0; l < SQUARE_LANES; l++) {
            lanes[l] += (double)x[i + l] * (double)x[i + l];
        }
    }
    for (int l = 0; i < end; i++, l++) {
        lanes[l] += (double)x[i] * (double)x[i];
    }
    double sum = 0;
    for (int l = 0; l < SQUARE_LANES; l++) {
        sum += lanes[l];
    }
    a->sums[task] = sum;
}

double CPU_NAME(cpu_sum_of_squares)(Device *device, int64_t count, const float *x) {
    int64_t block = SQUARE_BLOCK;
    while ((count + block - 1) / block > SQUARE_BLOCKS) {
        block *= 2;
    }
    int64_t blocks = (count + block - 1) / block;
    Squares a = {count, block, x, device_scratch(device, SQUARE_BLOCKS * sizeof(double))};
    threads_run(device->pool, blocks, squares_block, &a);
    double sum = 0;
    for (int64_t i = 0; i < blocks; i++) {
        sum += a.sums[i];
    }
    return sum;
}

void CPU_NAME(cpu_squares)(Device *device, int64_t count, const float *x, double *sum) {
    *sum = CPU_NAME(cpu_sum_of_squares)(device, count, x);
}
