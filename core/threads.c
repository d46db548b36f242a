// A pool of threads that share loops: see threads.h.
//
// A loop is published by bumping `generation`; workers that spin or sleep on it take task numbers until none is left, and
// count themselves out in `finished`. The publisher waits until every worker has counted itself out, so a worker can never
// take a task of a later loop with the pointers of an earlier one.
//
// Each thread has a share of the task numbers, the same for loops of equally many tasks, and helps the others when its own is
// done: a thread meets rows again that it has in its own caches from the loop before.
#include "core/threads.h"

#include "core/memory.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

// How long a worker spins before it sleeps: longer than the gap between two kernels, far shorter than a time slice.
enum { SPIN_ROUNDS = 20000 };

// The next task of a thread's share, on a cache line of its own.
typedef struct Share {
    _Alignas(64) _Atomic int64_t next;
} Share;

struct ThreadPool {
    int threads;
    Share *shares;  // [threads]
    pthread_t *handles;
    ThreadTask task;
    void *context;
    int64_t tasks;
    _Alignas(64) _Atomic uint32_t generation;
    _Atomic int sleepers;
    _Alignas(64) _Atomic int finished;
    _Atomic bool stop;
};

typedef struct Worker {
    ThreadPool *pool;
    int thread;
} Worker;

static inline void cpu_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void futex_wait(_Atomic uint32_t *word, uint32_t expected) {
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *word) {
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

static int64_t share_begin(const ThreadPool *pool, int thread) {
    return pool->tasks * thread / pool->threads;
}

static void run_tasks(ThreadPool *pool, int thread) {
    for (int i = 0; i < pool->threads; i++) {
        int owner = (thread + i) % pool->threads;
        int64_t end = share_begin(pool, owner + 1), task;
        while ((task = atomic_fetch_add_explicit(&pool->shares[owner].next, 1, memory_order_relaxed)) < end) {
            pool->task(pool->context, task, thread);
        }
    }
}

static uint32_t wait_for_generation(ThreadPool *pool, uint32_t seen) {
    for (int spin = 0; spin < SPIN_ROUNDS; spin++) {
        uint32_t now = atomic_load_explicit(&pool->generation, memory_order_acquire);
        if (now != seen) {
            return now;
        }
        cpu_relax();
    }
    atomic_fetch_add(&pool->sleepers, 1);
    uint32_t now;
    while ((now = atomic_load(&pool->generation)) == seen) {
        futex_wait(&pool->generation, seen);
    }
    atomic_fetch_sub(&pool->sleepers, 1);
    return now;
}

static void *worker_main(void *argument) {
    Worker worker = *(Worker *)argument;
    free(argument);
    ThreadPool *pool = worker.pool;
    uint32_t seen = 0;
    for (;;) {
        seen = wait_for_generation(pool, seen);
        if (atomic_load(&pool->stop)) {
            return NULL;
        }
        run_tasks(pool, worker.thread);
        atomic_fetch_add_explicit(&pool->finished, 1, memory_order_release);
    }
}

ThreadPool *threads_create(int threads) {
    ensure(threads >= 1, "%d threads", threads);
    ThreadPool *pool = aligned_alloc(64, (sizeof *pool + 63) / 64 * 64);
    ensure(pool != NULL, "no memory for a thread pool");
    memset(pool, 0, sizeof *pool);
    pool->threads = threads;
    pool->handles = memory_zeroed((size_t)threads, sizeof *pool->handles);
    pool->shares = aligned_alloc(64, (size_t)threads * sizeof *pool->shares);
    ensure(pool->shares != NULL, "no memory for a thread pool");
    for (int i = 1; i < threads; i++) {
        Worker *worker = memory_new(1, sizeof *worker);
        *worker = (Worker){pool, i};
        int failed = pthread_create(&pool->handles[i], NULL, worker_main, worker);
        ensure(failed == 0, "thread %d could not be started: error %d", i, failed);
    }
    return pool;
}

static void publish(ThreadPool *pool) {
    atomic_fetch_add(&pool->generation, 1);
    if (atomic_load(&pool->sleepers) > 0) {
        futex_wake_all(&pool->generation);
    }
}

void threads_destroy(ThreadPool *pool) {
    if (pool == NULL) {
        return;
    }
    atomic_store(&pool->stop, true);
    publish(pool);
    for (int i = 1; i < pool->threads; i++) {
        pthread_join(pool->handles[i], NULL);
    }
    free(pool->handles);
    free(pool->shares);
    free(pool);
}

int threads_count(const ThreadPool *pool) {
    return pool->threads;
}

void threads_run(ThreadPool *pool, int64_t tasks, ThreadTask task, void *context) {
    if (pool->threads == 1 || tasks <= 1) {
        for (int64_t i = 0; i < tasks; i++) {
            task(context, i, 0);
        }
        return;
    }
    pool->task = task;
    pool->context = context;
    pool->tasks = tasks;
    for (int i = 0; i < pool->threads; i++) {
        atomic_store_explicit(&pool->shares[i].next, share_begin(pool, i), memory_order_relaxed);
    }
    atomic_store_explicit(&pool->finished, 0, memory_order_relaxed);
    publish(pool);
    run_tasks(pool, 0);
    for (int spin = 0; atomic_load_explicit(&pool->finished, memory_order_acquire) < pool->threads - 1; spin++) {
        cpu_relax();
        if (spin > SPIN_ROUNDS) {
            sched_yield();  // more threads than cores: let the others finish
        }
    }
}

Range range_part(int64_t count, int64_t grain, int64_t parts, int64_t part) {
    int64_t blocks = (count + grain - 1) / grain;
    int64_t begin = blocks * part / parts * grain, end = blocks * (part + 1) / parts * grain;
    return (Range){begin < count ? begin : count, end < count ? end : count};
}

// The cgroup's CPU quota in cores, 0 where there is none: cpu.max of version 2.
static int cgroup_cores(void) {
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (file == NULL) {
        return 0;
    }
    long quota = 0, period = 0;
    int found = fscanf(file, "%ld %ld", &quota, &period);
    fclose(file);
    return found == 2 && quota > 0 && period > 0 ? (int)((quota + period - 1) / period) : 0;
}

int threads_available(void) {
    cpu_set_t set;
    int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN);
    int quota = cgroup_cores();
    if (quota > 0 && quota < cores) {
        cores = quota;
    }
    return cores > 0 ? cores : 1;
}
