// The limits of this machine, measured in the run that compares itself with them: fp32 multiply-adds a second from registers,
// and memory bandwidth. Best of several short bursts, because a limit is what the machine can do.
#pragma once

#include "core/clock.h"
#include "core/memory.h"
#include "core/threads.h"

// Independent chains of multiply-adds in registers: long enough to hide the latency, few enough for the registers.
#define MEASURE_CHAINS(bytes, chains)                                                                                          \
    typedef float V __attribute__((vector_size(bytes)));                                                                       \
    V sum[chains], x = {0}, y = {0};                                                                                           \
    x += 0.999f;                                                                                                               \
    y += 0.001f;                                                                                                               \
    _Pragma("GCC unroll 24") for (int i = 0; i < (chains); i++) {                                                              \
        sum[i] = y * (float)i;                                                                                                 \
    }                                                                                                                          \
    for (int64_t round = 0; round < rounds; round++) {                                                                         \
        _Pragma("GCC unroll 24") for (int i = 0; i < (chains); i++) {                                                          \
            sum[i] = sum[i] * x + y;                                                                                           \
        }                                                                                                                      \
        __asm__ volatile("");                                                                                                  \
    }                                                                                                                          \
    _Pragma("GCC unroll 24") for (int i = 0; i < (chains); i++) {                                                              \
        *sink += sum[i][0];                                                                                                    \
    }                                                                                                                          \
    return 2.0 * (chains) * ((bytes) / 4) * (double)rounds

#if defined(__x86_64__)
__attribute__((target("avx512f,fma"))) static inline double measure_chains_512(int64_t rounds, float *sink) {
    MEASURE_CHAINS(64, 24);
}
__attribute__((target("avx2,fma"))) static inline double measure_chains_256(int64_t rounds, float *sink) {
    MEASURE_CHAINS(32, 12);
}
#endif
static inline double measure_chains_128(int64_t rounds, float *sink) {
    MEASURE_CHAINS(16, 12);
}

typedef struct MeasurePeak {
    double (*loop)(int64_t rounds, float *sink);
    double flops[256];
    float sinks[256 * 16];
} MeasurePeak;

static inline void measure_peak_task(void *context, int64_t task, int thread) {
    MeasurePeak *peak = context;
    peak->flops[task] = peak->loop(200000, &peak->sinks[task * 16]);
}

// fp32 operations a second of all threads of a pool (256 at most), with the vectors of `variant` ("cpu avx512").
static inline double measure_peak_flops(const char *variant, ThreadPool *pool) {
    MeasurePeak peak = {.loop = measure_chains_128};
#if defined(__x86_64__)
    if (strstr(variant, "avx512") != NULL) {
        peak.loop = measure_chains_512;
    } else if (strstr(variant, "avx2") != NULL) {
        peak.loop = measure_chains_256;
    }
#endif
    double best = 0;
    int threads = threads_count(pool);
    for (int i = 0; i < 40; i++) {
        double start = clock_seconds();
        threads_run(pool, threads, measure_peak_task, &peak);
        double rate = peak.flops[0] * threads / (clock_seconds() - start);
        best = rate > best ? rate : best;
    }
    return best;
}

typedef enum MeasureTraffic { TRAFFIC_READ, TRAFFIC_COPY, TRAFFIC_TRIAD, TRAFFIC_UPDATE } MeasureTraffic;

typedef struct MeasureStream {
    MeasureTraffic kind;
    float *a, *b, *c;
    int64_t count;
    int threads;
    float sums[256 * 16];
} MeasureStream;

static inline void measure_stream_task(void *context, int64_t task, int thread) {
    MeasureStream *s = context;
    Range r = range_part(s->count, 1024, s->threads, task);
    float *restrict a = s->a;
    const float *restrict b = s->b, *restrict c = s->c;
    if (s->kind == TRAFFIC_READ) {
        typedef float V __attribute__((vector_size(64)));
        V sum[4] = {{0}};
        for (int64_t i = r.begin; i + 64 <= r.end; i += 64) {
            for (int j = 0; j < 4; j++) {
                sum[j] += *(const V *)(const void *)(b + i + 16 * j);
            }
        }
        s->sums[task * 16] = (sum[0] + sum[1] + sum[2] + sum[3])[0];
    } else if (s->kind == TRAFFIC_COPY) {
        memcpy(a + r.begin, b + r.begin, (size_t)(r.end - r.begin) * sizeof(float));
    } else if (s->kind == TRAFFIC_TRIAD) {
        for (int64_t i = r.begin; i < r.end; i++) {
            a[i] = b[i] + 3.0f * c[i];
        }
    } else {
        for (int64_t i = r.begin; i < r.end; i++) {
            a[i] += 3.0f * c[i];
        }
    }
}

// Bytes a second over arrays far larger than the caches, each reading and each writing counted: two for a copied byte, three
// for a triad's (a = b + 3 c) and for an update's (a += 3 c), which moves no line that it only overwrites.
static inline double measure_bandwidth(MeasureTraffic kind, ThreadPool *pool) {
    MeasureStream s = {.kind = kind, .count = 32 << 20, .threads = threads_count(pool)};
    size_t bytes = (size_t)s.count * sizeof(float);
    float **arrays[] = {&s.a, &s.b, &s.c};
    for (int i = 0; i < 3; i++) {
        *arrays[i] = memory_tensor(bytes);
        memset(*arrays[i], 1, bytes);
    }
    static const double passes[] = {[TRAFFIC_READ] = 1, [TRAFFIC_COPY] = 2, [TRAFFIC_TRIAD] = 3, [TRAFFIC_UPDATE] = 3};
    double best = 0;
    for (int i = 0; i < 8; i++) {
        double start = clock_seconds();
        threads_run(pool, s.threads, measure_stream_task, &s);
        double rate = (double)bytes * passes[kind] / (clock_seconds() - start);
        best = rate > best ? rate : best;
    }
    for (int i = 0; i < 3; i++) {
        memory_tensor_free(*arrays[i], bytes);
    }
    return best;
}
