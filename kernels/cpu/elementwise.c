// Sums, fills, scales, conversions and copies of flat arrays and strided rows.
//
//   add             y[i] += x[i]
//   accumulate      the same: the compute type is fp32 here
//   zero            x = 0
//   scale           x[i] *= scale
//   convert         to[i] = from[i] in another type, rounded to nearest even
//   copy_rows       rows with strides
//   sum_parts       a binary tree over the parts, for some elements at a time
//   squares         sum of x[i]^2 in double precision: the array is cut into blocks whose length depends on the count alone,
//                   each block is summed in a fixed order, and the blocks are added in order. Not finite where an element is
//                   not: the square of the largest float is far below the largest double, so nothing else overflows.
#include "core/half.h"
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

void CPU_NAME(cpu_accumulate)(Device *device, int64_t count, const void *x, float *y) {
    CPU_NAME(cpu_add)(device, count, x, y);
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

typedef struct Scale {
    int64_t count, parts;
    float scale;
    float *x;
} Scale;

static void scale_part(void *context, int64_t task, int thread) {
    const Scale *a = context;
    Range range = range_part(a->count, 1024, a->parts, task);
    float *x = a->x, scale = a->scale;
    for (int64_t i = range.begin; i < range.end; i++) {
        x[i] *= scale;
    }
}

void CPU_NAME(cpu_scale)(Device *device, int64_t count, float scale, float *x) {
    Scale a = {count, part_count(device, count, 1), scale, x};
    threads_run(device->pool, a.parts, scale_part, &a);
}

// ---- Types

enum { CONVERT_CHUNK = 1024 };

static void decode(DataType type, const void *from, int64_t first, int64_t count, float *restrict out) {
    const uint16_t *bits = (const uint16_t *)from + first;
    switch (type) {
    case TYPE_FP32:
        memcpy(out, (const float *)from + first, (size_t)count * sizeof *out);
        break;
    case TYPE_BF16:
        for (int64_t i = 0; i < count; i++) {
            out[i] = bf16_to_float(bits[i]);
        }
        break;
    case TYPE_FP16:
        for (int64_t i = 0; i < count; i++) {
            out[i] = fp16_to_float(bits[i]);
        }
        break;
    default:
        ensure(false, "no conversion from %s", data_type_name(type));
    }
}

static void encode(DataType type, const float *restrict from, int64_t count, void *to, int64_t first) {
    uint16_t *restrict bits = (uint16_t *)to + first;
    switch (type) {
    case TYPE_FP32:
        memcpy((float *)to + first, from, (size_t)count * sizeof *from);
        break;
    case TYPE_BF16:
        for (int64_t i = 0; i < count; i++) {
            bits[i] = bf16_from_float(from[i]);
        }
        break;
    case TYPE_FP16:
        for (int64_t i = 0; i < count; i++) {
            bits[i] = fp16_from_float(from[i]);
        }
        break;
    default:
        ensure(false, "no conversion to %s", data_type_name(type));
    }
}

typedef struct ConvertWork {
    const Convert *a;
    int64_t parts;
} ConvertWork;

static void convert_part(void *context, int64_t task, int thread) {
    const ConvertWork *w = context;
    const Convert *a = w->a;
    Range range = range_part(a->count, CONVERT_CHUNK, w->parts, task);
    float values[CONVERT_CHUNK];
    for (int64_t i = range.begin; i < range.end; i += CONVERT_CHUNK) {
        int64_t count = range.end - i < CONVERT_CHUNK ? range.end - i : CONVERT_CHUNK;
        decode(a->from_type, a->from, i, count, values);
        encode(a->to_type, values, count, a->to, i);
    }
}

void CPU_NAME(cpu_convert)(Device *device, const Convert *a) {
    ConvertWork w = {a, part_count(device, a->count, 1)};
    threads_run(device->pool, w.parts, convert_part, &w);
}

typedef struct CopyRowsWork {
    const CopyRows *a;
    int64_t parts;
} CopyRowsWork;

static void copy_rows_part(void *context, int64_t task, int thread) {
    const CopyRowsWork *w = context;
    const CopyRows *a = w->a;
    Range range = range_part(a->rows, 1, w->parts, task);
    for (int64_t r = range.begin; r < range.end; r++) {
        memcpy((char *)a->to + r * a->to_stride, (const char *)a->from + r * a->from_stride, (size_t)a->row_bytes);
    }
}

void CPU_NAME(cpu_copy_rows)(Device *device, const CopyRows *a) {
    CopyRowsWork w = {a, part_count(device, a->rows, a->row_bytes / 4)};
    threads_run(device->pool, w.parts, copy_rows_part, &w);
}

// ---- Sums of parts: what a run of 2^k parts adds up to is kept at level k until the run beside it is there

enum { SUM_BLOCK = 64 };

#define SUM_BLOCK_OF(REAL)                                                                                                     \
    static void sum_block_##REAL(const SumParts *a, int64_t begin, int64_t count) {                                            \
        REAL kept[SUM_PARTS_LEVELS][SUM_BLOCK], sum[SUM_BLOCK];                                                                \
        for (int64_t p = 0; p < a->parts; p++) {                                                                               \
            bool last = p + 1 == a->parts;                                                                                     \
            int level = 0;                                                                                                     \
            memcpy(sum, (const REAL *)a->x + p * a->stride + begin, (size_t)count * sizeof *sum);                              \
            for (; p >> level != 0 && (last || (p >> level) % 2 == 1); level++) {                                              \
                for (int64_t i = 0; i < count && (p >> level) % 2 == 1; i++) {                                                 \
                    sum[i] = kept[level][i] + sum[i];                                                                          \
                }                                                                                                              \
            }                                                                                                                  \
            if (!last) {                                                                                                       \
                memcpy(kept[level], sum, (size_t)count * sizeof *sum);                                                         \
            }                                                                                                                  \
        }                                                                                                                      \
        memcpy((REAL *)a->y + begin, sum, (size_t)count * sizeof *sum);                                                        \
    }
SUM_BLOCK_OF(float)
SUM_BLOCK_OF(double)

typedef struct SumPartsWork {
    const SumParts *a;
    int64_t parts;
} SumPartsWork;

static void sum_parts_part(void *context, int64_t task, int thread) {
    const SumPartsWork *w = context;
    Range range = range_part(w->a->count, SUM_BLOCK, w->parts, task);
    for (int64_t begin = range.begin; begin < range.end; begin += SUM_BLOCK) {
        int64_t count = range.end - begin < SUM_BLOCK ? range.end - begin : SUM_BLOCK;
        (w->a->wide ? sum_block_double : sum_block_float)(w->a, begin, count);
    }
}

void CPU_NAME(cpu_sum_parts)(Device *device, const SumParts *a) {
    ensure(a->parts >= 1 && a->parts <= 1 << SUM_PARTS_LEVELS, "%lld parts", (long long)a->parts);
    SumPartsWork w = {a, part_count(device, a->count, a->parts)};
    threads_run(device->pool, w.parts, sum_parts_part, &w);
}

// ---- Sums of squares

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

void CPU_NAME(cpu_squares)(Device *device, int64_t count, const float *x, double *sum) {
    int64_t block = SQUARE_BLOCK;
    while ((count + block - 1) / block > SQUARE_BLOCKS) {
        block *= 2;
    }
    int64_t blocks = (count + block - 1) / block;
    Squares a = {count, block, x, device_scratch(device, SQUARE_BLOCKS * sizeof(double))};
    threads_run(device->pool, blocks, squares_block, &a);
    double total = 0;
    for (int64_t i = 0; i < blocks; i++) {
        total += a.sums[i];
    }
    *sum = total;
}
