// Runs launches: who is next, barriers, deadlocks (engine.h, machine.h).
//
// Order. Clusters start in an order shuffled by the seed, a few at a time. A warp runs, lane after lane, until all of its lanes
// wait for something outside of it; then another warp of the block runs, chosen by the seed. So between two barriers warps run
// one after another in any order, which is what shows a missing barrier. When no thread can run, a load that somebody waits for
// is finished; then those look again that nap; then another cluster starts; otherwise it is a deadlock.
#include "tests/simulated/machine.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <string>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace simulator {

Engine engine;

// ---- Settings

static const int REGISTERS_OF_BLOCK = 65536;

static Settings settings_of_environment() {
    Settings s = {0, Timing::LATE, 90};
    const char *seed = getenv("ATHANOR_SIMULATED_SEED"), *timing = getenv("ATHANOR_SIMULATED_TIMING");
    if (seed != NULL) {
        s.seed = strtoull(seed, NULL, 10);
    }
    if (timing != NULL) {
        s.timing = strcmp(timing, "early") == 0 ? Timing::EARLY : strcmp(timing, "random") == 0 ? Timing::RANDOM : Timing::LATE;
        if (s.timing == Timing::LATE && strcmp(timing, "late") != 0) {
            fault("ATHANOR_SIMULATED_TIMING is %s, not late, early or random", timing);
        }
    }
    return s;
}

static int architecture_of(const char *text) {
    for (int known : {75, 80, 86, 89, 90, 100}) {
        if (atoi(text) == known) {
            return known;
        }
    }
    fault("ATHANOR_SIMULATED_ARCH is %s, not 75, 80, 86, 89, 90 or 100", text);
}

Settings &settings() {
    static Settings s = settings_of_environment();
    static std::string seen;
    const char *architecture = getenv("ATHANOR_SIMULATED_ARCH");
    if (architecture != NULL && seen != architecture) {
        s.architecture = architecture_of(architecture);
        seen = architecture;
    }
    return s;
}

size_t shared_limit() {
    int architecture = settings().architecture;
    return (architecture >= 90 ? 227 : architecture == 80 ? 163 : 99) * 1024;
}

const char *launch_fault(const Launch &launch) {
    const dim3 &g = launch.grid, &b = launch.block;
    uint64_t threads = (uint64_t)b.x * b.y * b.z;
    if (threads == 0 || threads > 1024 || b.z > 64) {
        return "blocks have 1 to 1024 threads";
    }
    if (g.x == 0 || g.y == 0 || g.z == 0 || g.x > 0x7FFFFFFF || g.y > 0xFFFF || g.z > 0xFFFF) {
        return "grids have 1 to 2^31 - 1 blocks along x, to 65535 along y and z";
    }
    if (launch.cluster == 0 || launch.cluster > 8 || (launch.cluster > 1 && settings().architecture < 90)) {
        return "clusters have 1 to 8 blocks, and 1 before sm_90";
    }
    if (g.x % launch.cluster != 0) {
        return "the grid is no whole number of clusters";
    }
    if (launch.dynamic_shared > shared_limit()) {
        return "more shared memory than a block can have";
    }
    return NULL;
}

static uint64_t mix(uint64_t x) {  // SplitMix64
    x += 0x9E3779B97F4A7C15;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
    x = (x ^ x >> 27) * 0x94D049BB133111EB;
    return x ^ x >> 31;
}

uint64_t random_next() {
    engine.random += 0x9E3779B97F4A7C15;
    return mix(engine.random);
}

bool done_at_once() {
    Timing timing = engine.settings.timing;
    return timing == Timing::EARLY || (timing == Timing::RANDOM && random_next() % 2 == 0);
}

bool inside() {
    return engine.thread != NULL;
}

// ---- Messages

static std::string format(const char *text, ...) __attribute__((format(printf, 1, 2)));
static std::string format(const char *text, ...) {
    char line[512];
    va_list arguments;
    va_start(arguments, text);
    vsnprintf(line, sizeof line, text, arguments);
    va_end(arguments);
    return line;
}

static std::string describe(const Where &where) {
    return where.line() == 0 ? "" : format(" (%s:%u)", where.file_name(), (unsigned)where.line());
}

// What a thread does, for the report of a deadlock.
static std::string describe(const Thread *thread) {
    switch (thread->wait) {
    case Wait::NOTHING:
        return "can run";
    case Wait::WARP:
        return format("waits in %s with lanes %08x", thread->operation->name, thread->mask) + describe(thread->where);
    case Wait::WARPGROUP:
        return format("waits in %s for its warpgroup", thread->operation->name);
    case Wait::BARRIER: {
        const Barrier &barrier = thread->block->barriers[thread->barrier];
        unsigned expected = barrier.expected == UINT32_MAX ? thread->block->alive : barrier.expected;
        return format("waits in %s, barrier %u, where %u of %u threads are", barrier.name, thread->barrier, barrier.arrived,
                      expected) +
               (thread->barrier == 0 ? describe(thread->where) : "");
    }
    case Wait::CLUSTER:
        return format("waits in cluster_sync, where %u of %u threads are", thread->block->cluster->arrived,
                      thread->block->cluster->alive);
    case Wait::MBARRIER:
        for (const Mbarrier &barrier : thread->block->mbarriers) {
            if (barrier.offset == thread->barrier) {
                return format(
                    "waits for the mbarrier at %#x to end a phase of parity %u: it is in phase %u, waits for %u of %u "
                    "arrivals and %lld bytes",
                    barrier.offset, thread->parity, barrier.phase, barrier.pending, barrier.count, (long long)barrier.bytes);
            }
        }
        return "waits for an mbarrier";
    case Wait::REGISTERS:
        return "waits in registers_grow for registers";
    case Wait::NAP:
        return "naps";
    case Wait::EXITED:
        return "has ended";
    }
    return "";
}

[[noreturn]] static void stop(const std::string &message) {
    fflush(stdout);
    fprintf(stderr, "%s\n", message.c_str());
    abort();
}

void fault(const char *text, ...) {
    char line[1024];
    va_list arguments;
    va_start(arguments, text);
    vsnprintf(line, sizeof line, text, arguments);
    va_end(arguments);
    if (engine.thread == NULL) {
        stop(format("simulated GPU: %s", line));
    }
    uint3 b = engine.thread->block->index, t = engine.thread->index;
    stop(format("simulated GPU: kernel %s, block (%u, %u, %u), thread (%u, %u, %u): ", engine.launch.kernel, b.x, b.y, b.z, t.x,
                t.y, t.z) +
         line);
}

[[noreturn]] static void stuck(const char *what) {
    std::string message = format("simulated GPU: kernel %s: %s", engine.launch.kernel, what);
    int blocks = 0;
    for (const Cluster *cluster : engine.resident) {
        for (const Block *block : cluster->blocks) {
            if (++blocks > 4) {
                continue;
            }
            message += format("\n  block (%u, %u, %u):", block->index.x, block->index.y, block->index.z);
            for (size_t i = 0, next; i < block->threads.size(); i = next) {
                std::string does = describe(&block->threads[i]);
                for (next = i + 1; next < block->threads.size() && describe(&block->threads[next]) == does; next++) {
                }
                message += format("\n    threads %zu to %zu: each ", i, next - 1) + does;
            }
        }
    }
    if (blocks > 4) {
        message += format("\n  and %d more blocks", blocks - 4);
    }
    stop(message);
}

// ---- Who is next

static const uint64_t NAPS_MOST = 1000000;  // rounds in which all nap and nothing happens

static Thread *take_lane(Warp *warp) {
    uint32_t ready = warp->ready, ahead;
    unsigned lane;
    if (!warp->block->backwards) {
        ahead = ready & ~(((uint32_t)2 << warp->last) - 1);
        lane = (unsigned)__builtin_ctz(ahead != 0 ? ahead : ready);
    } else {
        ahead = ready & (((uint32_t)1 << warp->last) - 1);
        lane = 31 - (unsigned)__builtin_clz(ahead != 0 ? ahead : ready);
    }
    warp->last = lane;
    warp->ready = ready & ~(1u << lane);
    if (warp->ready == 0) {
        warp->block->ready_warps &= ~(1u << warp->number);
    }
    return &warp->thread[lane];
}

static Thread *take_warp(Block *block) {
    uint32_t ready = block->ready_warps;
    if (engine.settings.seed == 0) {
        return take_lane(&block->warps[(unsigned)__builtin_ctz(ready)]);
    }
    unsigned turn = (unsigned)random_next() % 32;
    uint32_t turned = ready >> turn | ready << (31 & (32 - turn));
    return take_lane(&block->warps[((unsigned)__builtin_ctz(turned) + turn) % 32]);
}

// With a seed, blocks take turns at random, and now and then one falls far behind the others: what they hand to each other
// must be right then too.
static Block *ready_block(Block *now) {
    bool change = engine.settings.seed != 0 && engine.resident.size() > 1 && random_next() % 8 == 0;
    if (now != NULL && now->ready_warps != 0 && !change) {
        return now;
    }
    size_t count = engine.resident.size(), first = engine.settings.seed != 0 && count > 0 ? random_next() % count : 0;
    Block *last = NULL;
    for (size_t i = 0; i < count; i++) {
        for (Block *block : engine.resident[(first + i) % count]->blocks) {
            if (block->ready_warps != 0 && block->late == 0) {
                if (change && random_next() % 16 == 0) {
                    block->late = 1u << random_next() % 10;
                }
                return block;
            }
            if (block->ready_warps != 0) {
                block->late--;
                last = block;
            }
        }
    }
    return last;
}

static void wake_nappers() {
    for (Cluster *cluster : engine.resident) {
        for (Block *block : cluster->blocks) {
            for (Warp &warp : block->warps) {
                if (warp.napping != 0) {
                    warp.ready |= warp.napping;
                    warp.napping = 0;
                    block->ready_warps |= 1u << warp.number;
                }
            }
        }
    }
    engine.napping = 0;
}

static void cluster_begin();

// A thread that can run; NULL: all are done.
static Thread *choose(Block *now) {
    static uint64_t events_seen, idle_rounds;
    for (;;) {
        Block *block = ready_block(now);
        if (block != NULL) {
            return take_warp(block);
        }
        if (engine.resident.empty()) {
            return NULL;
        }
        bool finished = false;
        for (size_t i = 0; i < engine.resident.size() && !finished; i++) {
            finished = load_finish_one(engine.resident[i]);
        }
        if (finished) {
            continue;
        }
        if (engine.napping == 0) {
            stuck("deadlock: no thread can go on");
        }
        if (engine.events == events_seen && engine.next_cluster < engine.clusters) {
            engine.resident_wanted++;
            cluster_begin();
            continue;
        }
        idle_rounds = engine.events == events_seen ? idle_rounds + 1 : 0;
        if (idle_rounds > NAPS_MOST) {
            stuck("all threads wait or nap, and nothing happens");
        }
        events_seen = engine.events;
        wake_nappers();
    }
}

static void resume(Thread *next) {
    Fiber *from = engine.thread != NULL ? engine.thread->fiber : &engine.main;
    Fiber *to = next != NULL ? next->fiber : &engine.main;
    engine.thread = next;
    if (next != NULL) {
        threadIdx = next->index;
        blockIdx = next->block->index;
    }
    if (to != from) {
        fiber_switch(from, to);
    }
}

static void yield() {
    Warp *warp = engine.thread->warp;
    // Mostly the lanes of a warp go on together; where blocks run side by side, other ones may come between.
    bool stay = warp->ready != 0 && (engine.settings.seed == 0 || engine.resident.size() == 1 || random_next() % 16 != 0);
    resume(stay ? take_lane(warp) : choose(warp->block));
}

void thread_wait(Wait why) {
    Thread *thread = engine.thread;
    thread->wait = why;
    yield();
    thread->wait = Wait::NOTHING;
}

void thread_ready(Thread *thread) {
    thread->warp->ready |= 1u << thread->lane;
    thread->block->ready_warps |= 1u << thread->warp->number;
    thread->wait = Wait::NOTHING;
}

void thread_nap() {
    Thread *thread = engine.thread;
    thread->warp->napping |= 1u << thread->lane;
    engine.napping++;
    thread_wait(Wait::NAP);
}

void thread_poll() {
    static unsigned looks;
    if (++looks % 256 == 0) {
        thread_nap();
    }
}

// ---- Blocks and threads

// Used again, and never freed: at exit fibers still stand on their stacks.
static std::vector<Block *> &idle_blocks = *new std::vector<Block *>;
static std::vector<Cluster *> &idle_clusters = *new std::vector<Cluster *>;
static std::vector<Fiber *> &idle_fibers = *new std::vector<Fiber *>;

static void thread_exit();

static void thread_main() {
    for (;;) {  // a fiber serves one thread after another
        (*engine.body)();
        thread_exit();
    }
}

static void thread_begin(Block *block, unsigned number) {
    const dim3 &size = engine.launch.block;
    Thread &thread = block->threads[number];
    thread.index = {number % size.x, number / size.x % size.y, number / size.x / size.y};
    if (thread.fiber == NULL && !idle_fibers.empty()) {
        thread.fiber = idle_fibers.back();
        idle_fibers.pop_back();
    } else if (thread.fiber == NULL) {
        thread.fiber = fiber_create(thread_main);
    }
    thread.block = block;
    thread.warp = &block->warps[number / 32];
    thread.number = number;
    thread.lane = number % 32;
    thread.wait = Wait::NOTHING;
    thread.where = Where();
    thread.copies.reset();
    thread.stores.reset();
    thread.products.reset();
    thread.accumulators.clear();
    thread.products_fenced = false;
    thread.products_issued = 0;
    thread.registers = std::min(256, REGISTERS_OF_BLOCK / (int)(size.x * size.y * size.z) / 8 * 8);
}

static Block *block_begin(Cluster *cluster, unsigned rank, uint3 index) {
    Block *block;
    if (idle_blocks.empty()) {
        block = new Block{};
    } else {
        block = idle_blocks.back();
        idle_blocks.pop_back();
    }
    unsigned threads = engine.launch.block.x * engine.launch.block.y * engine.launch.block.z;
    unsigned warps = (threads + 31) / 32;
    block->cluster = cluster;
    block->rank = rank;
    block->index = index;
    block->alive = threads;
    block->backwards = engine.settings.seed != 0 && random_next() % 2 == 0;
    for (size_t i = threads; i < block->threads.size(); i++) {
        idle_fibers.push_back(block->threads[i].fiber);
    }
    block->threads.resize(threads);
    block->warps.resize(warps);
    block->mbarriers.clear();
    block->late = 0;
    block->free_registers = 0;
    block->async_fenced = false;
    memset(block->gathered, 0, sizeof block->gathered);
    memset(block->barriers, 0, sizeof block->barriers);
    for (unsigned i = 0; i < threads; i++) {
        thread_begin(block, i);
    }
    for (unsigned i = 0; i < warps; i++) {
        Warp &warp = block->warps[i];
        unsigned lanes = std::min(32u, threads - 32 * i);
        warp.block = block;
        warp.thread = &block->threads[32 * i];
        warp.number = i;
        warp.alive = warp.ready = (uint32_t)(((uint64_t)1 << lanes) - 1);
        warp.gathered = warp.napping = warp.syncing = 0;
        warp.last = block->backwards ? 0 : 31;
    }
    block->ready_warps = (uint32_t)(((uint64_t)1 << warps) - 1);
    shared_begin(block);
    return block;
}

// Starts the next cluster in the order of the seed, which is i -> i * factor + offset.
static void cluster_begin() {
    uint64_t i = engine.next_cluster++;
    i = (uint64_t)(((unsigned __int128)i * engine.cluster_factor + engine.cluster_offset) % engine.clusters);
    Cluster *cluster;
    if (idle_clusters.empty()) {
        cluster = new Cluster{};
    } else {
        cluster = idle_clusters.back();
        idle_clusters.pop_back();
    }
    unsigned size = engine.launch.cluster, along_x = engine.launch.grid.x / size;
    cluster->blocks.clear();
    cluster->alive = cluster->arrived = 0;
    cluster->loads.clear();
    for (unsigned rank = 0; rank < size; rank++) {
        uint3 index = {(unsigned)(i % along_x) * size + rank, (unsigned)(i / along_x % engine.launch.grid.y),
                       (unsigned)(i / along_x / engine.launch.grid.y)};
        cluster->blocks.push_back(block_begin(cluster, rank, index));
        cluster->alive += cluster->blocks[rank]->alive;
    }
    engine.resident.push_back(cluster);
    engine.events++;
}

static void cluster_end(Cluster *cluster) {
    for (Block *block : cluster->blocks) {
        shared_end(block);
        idle_blocks.push_back(block);
    }
    idle_clusters.push_back(cluster);
    engine.resident.erase(std::find(engine.resident.begin(), engine.resident.end(), cluster));
    while (engine.resident.size() < engine.resident_wanted && engine.next_cluster < engine.clusters) {
        cluster_begin();
    }
}

static void block_end(Block *block) {
    for (Thread &thread : block->threads) {
        stores_finish(&thread);
        adds_finish(&thread);
    }
    loads_check(block->cluster, block);
    for (size_t i = 0; i + 128 <= block->threads.size(); i += 128) {
        for (size_t j = 32; j < 128; j += 32) {
            if (block->threads[i].registers != block->threads[i + j].registers) {
                fault("registers_shrink or registers_grow by some warps only of threads %zu to %zu", i, i + 127);
            }
        }
    }
}

// ---- Barriers

static void barrier_end(Block *block, Barrier &barrier) {
    barrier.result = barrier.yes;
    barrier.arrived = barrier.expected = barrier.yes = 0;
    for (Warp &warp : block->warps) {
        uint32_t waiting = barrier.waiting[warp.number];
        if (waiting != 0) {
            barrier.waiting[warp.number] = 0;
            warp.ready |= waiting;
            warp.syncing &= ~waiting;
            block->ready_warps |= 1u << warp.number;
        }
    }
    engine.events++;
}

// An arrival of the running thread; true: it was the last one. `expected`: UINT32_MAX for all that have not ended.
static bool barrier_come(Barrier &barrier, const char *name, unsigned expected, bool yes) {
    Block *block = engine.thread->block;
    adds_finish(engine.thread);
    if (barrier.arrived == 0) {
        barrier.expected = expected;
        barrier.name = name;
    } else if (barrier.expected != expected ||
               (barrier.name != name && name[0] == '_' && barrier.name[0] == '_' && strcmp(barrier.name, name) != 0)) {
        fault("%s for %d threads at a barrier where others came by %s for %d (-1: all)", name, (int)expected, barrier.name,
              (int)barrier.expected);
    }
    barrier.arrived++;
    barrier.yes += yes;
    return barrier.arrived == (expected == UINT32_MAX ? block->alive : expected);
}

static void barrier_stay(Barrier &barrier, unsigned id) {
    Thread *thread = engine.thread;
    thread->barrier = id;
    barrier.waiting[thread->warp->number] |= 1u << thread->lane;
    thread_wait(Wait::BARRIER);
}

static bool same_line(const Where &a, const Where &b) {
    return a.line() == b.line() && (a.file_name() == b.file_name() || strcmp(a.file_name(), b.file_name()) == 0);
}

int block_sync(const char *name, bool yes, const Where &where) {
    Thread *thread = engine.thread;
    Warp *warp = thread->warp;
    Barrier &barrier = thread->block->barriers[0];
    if (warp->syncing == 0) {
        warp->sync_where = where;
    } else if (!same_line(warp->sync_where, where)) {
        fault("diverged %s: this lane is at %s:%u, another of its warp waits at %s:%u", name, where.file_name(),
              (unsigned)where.line(), warp->sync_where.file_name(), (unsigned)warp->sync_where.line());
    }
    warp->syncing |= 1u << thread->lane;
    thread->where = where;
    if (barrier_come(barrier, name, UINT32_MAX, yes)) {
        warp->syncing &= ~(1u << thread->lane);
        barrier_end(thread->block, barrier);
    } else {
        barrier_stay(barrier, 0);
    }
    return (int)barrier.result;
}

static Barrier &named_barrier(int id, int threads, const char *name) {
    unsigned size = (unsigned)engine.thread->block->threads.size();
    if (id < 0 || id > 15) {
        fault("%s of barrier %d: there are 0 to 15", name, id);
    }
    if (threads <= 0 || threads % 32 != 0 || (unsigned)threads > (size + 31) / 32 * 32) {
        fault("%s for %d threads: neither a multiple of 32 nor within the block's %u", name, threads, size);
    }
    return engine.thread->block->barriers[id];
}

// Barrier 0 for all threads is that of __syncthreads.
static unsigned expected_threads(int id, int threads) {
    return id == 0 && (unsigned)threads >= engine.thread->block->threads.size() ? UINT32_MAX : (unsigned)threads;
}

void barrier_sync(int id, int threads) {
    Barrier &barrier = named_barrier(id, threads, "barrier_sync");
    if (barrier_come(barrier, "barrier_sync", expected_threads(id, threads), false)) {
        barrier_end(engine.thread->block, barrier);
    } else {
        barrier_stay(barrier, (unsigned)id);
    }
}

void barrier_arrive(int id, int threads) {
    Barrier &barrier = named_barrier(id, threads, "barrier_arrive");
    if (barrier_come(barrier, "barrier_arrive", expected_threads(id, threads), false)) {
        barrier_end(engine.thread->block, barrier);
    }
}

static void cluster_release(Cluster *cluster) {
    cluster->arrived = 0;
    for (Block *block : cluster->blocks) {
        for (Thread &thread : block->threads) {
            if (thread.wait == Wait::CLUSTER) {
                thread_ready(&thread);
            }
        }
    }
    engine.events++;
}

void cluster_sync() {
    Cluster *cluster = engine.thread->block->cluster;
    if (++cluster->arrived == cluster->alive) {
        cluster_release(cluster);
    } else {
        thread_wait(Wait::CLUSTER);
    }
}

uint32_t cluster_rank() {
    return engine.thread->block->rank;
}

// setmaxnreg: registers come from, and go to, those that the launch gave to the block.
void registers_set(int count, bool grow) {
    const char *name = grow ? "registers_grow" : "registers_shrink";
    Thread *thread = engine.thread;
    Block *block = thread->block;
    if (count < 24 || count > 256 || count % 8 != 0) {
        fault("%s to %d: not a multiple of 8 in 24 to 256", name, count);
    }
    if (grow ? count < thread->registers : count > thread->registers) {
        fault("%s to %d: this thread has %d", name, count, thread->registers);
    }
    warp_sync(0xFFFFFFFF, Where());
    while (block->free_registers < count - thread->registers) {
        thread_wait(Wait::REGISTERS);
    }
    block->free_registers -= count - thread->registers;
    thread->registers = count;
    for (Thread &other : block->threads) {
        if (other.wait == Wait::REGISTERS) {
            thread_ready(&other);
        }
    }
    engine.events++;
}

// ---- Ends and beginnings

static void thread_exit() {
    Thread *thread = engine.thread;
    Warp *warp = thread->warp;
    Block *block = thread->block;
    Cluster *cluster = block->cluster;
    copies_finish(thread, UINT32_MAX);
    products_check(thread);
    thread->wait = Wait::EXITED;
    warp->alive &= ~(1u << thread->lane);
    block->alive--;
    cluster->alive--;
    engine.events++;
    // Those who wait for all that have not ended may go on now.
    if (warp->gathered != 0) {
        warp_recheck(warp);
    }
    Barrier &barrier = block->barriers[0];
    if (barrier.expected == UINT32_MAX && barrier.arrived == block->alive && block->alive > 0) {
        barrier_end(block, barrier);
    }
    if (cluster->arrived > 0 && cluster->arrived == cluster->alive) {
        cluster_release(cluster);
    }
    if (block->alive == 0) {
        block_end(block);
    }
    if (cluster->alive == 0) {
        cluster_end(cluster);
        resume(choose(NULL));  // another thread of a new block, or this fiber as one
    } else {
        yield();
    }
}

void run(const Launch &launch, const std::function<void()> &thread) {
    static std::mutex turns;
    std::lock_guard<std::mutex> turn(turns);
    const char *wrong = launch_fault(launch);
    if (wrong != NULL) {
        fault("kernel %s: %s", launch.kernel, wrong);
    }
    engine.launch = launch;
    engine.body = &thread;
    gridDim = launch.grid;
    blockDim = launch.block;
    engine.settings = settings();
    engine.random = mix(engine.settings.seed ^ mix(engine.launches++));
    engine.clusters = (uint64_t)launch.grid.x * launch.grid.y * launch.grid.z / launch.cluster;
    engine.next_cluster = 0;
    engine.cluster_factor = 1;
    engine.cluster_offset = 0;
    engine.resident_wanted = 1;
    engine.napping = 0;
    if (engine.settings.seed != 0) {
        engine.resident_wanted = 1 + random_next() % 3;
        engine.cluster_offset = random_next() % engine.clusters;
        do {
            engine.cluster_factor = 1 + random_next() % engine.clusters;
        } while (std::gcd(engine.cluster_factor, engine.clusters) != 1);
    }
    while (engine.resident.size() < engine.resident_wanted && engine.next_cluster < engine.clusters) {
        cluster_begin();
    }
    resume(choose(NULL));
}

}  // namespace simulator
