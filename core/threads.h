// A pool of threads that share loops.
//
// The calling thread works too, so a pool of one has no threads of its own. Workers spin briefly for the next loop, because
// a training step issues thousands of short ones, then sleep. Loops are cut the same way whatever the timing, so a kernel
// whose tasks write disjoint results is deterministic.
#pragma once

#include <stdint.h>

typedef struct ThreadPool ThreadPool;

// A task: index in [0, tasks), and the thread that runs it in [0, threads) for per-thread scratch.
typedef void (*ThreadTask)(void *context, int64_t task, int thread);

// Starts threads - 1 workers. Never returns NULL. threads >= 1.
ThreadPool *threads_create(int threads);
void threads_destroy(ThreadPool *pool);
int threads_count(const ThreadPool *pool);

// Runs task 0 .. tasks - 1, each once, and returns when all are done. Not reentrant: one loop at a time, from one thread.
void threads_run(ThreadPool *pool, int64_t tasks, ThreadTask task, void *context);

// Cuts [0, count) into `parts` pieces whose bounds are multiples of `grain` (the last one excepted): piece `part`.
typedef struct Range {
    int64_t begin, end;
} Range;
Range range_part(int64_t count, int64_t grain, int64_t parts, int64_t part);

// The number of cores this process may use (its affinity mask, then the cgroup's quota).
int threads_available(void);
