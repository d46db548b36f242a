// The state of a running launch: clusters of blocks of warps of threads, what each thread waits for, and what is under way.
//
//   engine.cpp       runs them: who is next, barriers, deadlocks
//   shared.cpp       shared memory
//   warp.cpp         what a warp does together: shuffles, votes, matrix fragments, products of sm_80
//   async.cpp        copies that end later: cp.async, mbarriers, TMA
//   tensor_map.cpp   descriptors of TMA, and boxes between global and shared memory
//   wgmma.cpp        products of sm_90
#pragma once

#include "tests/simulated/engine.h"
#include "tests/simulated/fiber.h"
#include "tests/simulated/tensor_map.h"

#include <cstring>
#include <simulated_instructions.h>
#include <vector>

namespace simulator {

struct Warp;
struct Block;
struct Cluster;

// Uninitialised memory and registers: a NaN as fp32 and fp64 and, each half, as bf16 and fp16; as a number, far out of any
// range.
const uint32_t POISON = 0x7FFF7FFF;
static inline void poison(void *memory, size_t bytes) {  // bytes: a multiple of 4
    for (size_t i = 0; i < bytes; i += 4) {
        memcpy((char *)memory + i, &POISON, 4);
    }
}

// ---- Asynchronous work of one thread. Groups count from 0; the one being filled is `group`.

struct AsyncCopy {  // cp.async
    unsigned char *to;
    const void *from;  // NULL: zeros
    unsigned group;
};

struct AsyncStore {  // TMA from shared to global memory
    enum Kind { BOX, BOX_ADD, BYTES, BYTES_ADD } kind;
    TensorMap map;
    int coordinate[5];
    float *global;  // BYTES and BYTES_ADD, otherwise NULL
    size_t bytes;
    unsigned offset;                  // in the block's shared memory
    std::vector<unsigned char> data;  // what was read of it
    bool was_read;
    unsigned group;
};

struct Add {  // of four registers to global memory
    float *global, value[4];
};

struct Product {  // wgmma
    WgmmaShape shape;
    float *d;
    uint32_t a[4];
    uint64_t a_descriptor, b_descriptor;
    bool accumulate;
    unsigned group;
    size_t saved;  // where d's content lies in `accumulators`
};

template <typename T> struct Queue {
    std::vector<T> items;
    size_t done;     // items before this one
    unsigned group;  // that is being filled
    bool empty() const {
        return done == items.size();
    }
    void clear() {
        items.clear();
        done = 0;
    }
    void reset() {
        clear();
        group = 0;
    }
};

// ---- Threads

enum class Wait : uint8_t { NOTHING, WARP, BARRIER, CLUSTER, MBARRIER, REGISTERS, WARPGROUP, NAP, EXITED };

// An operation of a whole warp: run by the lane that arrives last, for all lanes of `mask` that have not exited.
struct WarpOperation {
    const char *name;
    void (*run)(Warp *warp, unsigned mask);
};

struct Thread {
    uint3 index;  // threadIdx
    Fiber *fiber;
    Block *block;
    Warp *warp;
    unsigned number, lane;  // in the block, in the warp

    Wait wait;
    Where where;                     // the line of the kernel, where it is known
    const WarpOperation *operation;  // WARP, WARPGROUP
    unsigned mask;
    void *argument;
    unsigned barrier;  // BARRIER: its id; MBARRIER: its offset
    unsigned parity;   // MBARRIER

    Queue<AsyncCopy> copies;
    Queue<AsyncStore> stores;
    std::vector<Add> adds;
    Queue<Product> products;
    std::vector<float> accumulators;  // of products under way: their content
    bool products_fenced;
    unsigned products_issued;
    int registers;  // setmaxnreg
};

struct Warp {
    Block *block;
    Thread *thread;  // 32
    unsigned number;
    uint32_t alive, ready, gathered, napping;  // lanes: not exited; can run; in a WarpOperation; wait to look again
    unsigned last;                             // lane that ran
    Where sync_where;                          // of the first lane that came to the block's barrier
    uint32_t syncing;                          // lanes that came
    // Values handed to and from warp operations.
    uint64_t value[32], result[32];
    int source[32];
};

struct Barrier {
    const char *name;
    unsigned arrived, expected;  // threads; expected 0: nobody came yet
    unsigned yes, result;        // votes, and those of the phase that ended
    uint32_t waiting[32];        // lanes of each warp
};

struct Mbarrier {
    unsigned offset;
    uint32_t count, pending;
    int64_t bytes;  // announced and not arrived; negative: arrived and not announced
    uint32_t phase;
    std::vector<Thread *> waiting;
};

struct Allocation {
    unsigned begin, end;  // offsets in shared memory
    const char *name;
};

struct Block {
    Cluster *cluster;
    unsigned rank;  // in the cluster
    uint3 index;
    unsigned alive;
    uint32_t ready_warps;
    bool backwards;  // lanes in falling order
    unsigned late;   // how often another block goes first, where one can
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    Barrier barriers[16];
    std::vector<Mbarrier> mbarriers;
    int free_registers;

    unsigned char *shared;  // 256 KiB of addresses
    unsigned shared_top;    // end of what is in use
    size_t shared_bytes;    // static and dynamic
    std::vector<Allocation> allocations;
    std::vector<unsigned char *> slots;  // of SHARED, by number
    bool async_fenced;                   // some thread called fence_async
    unsigned gathered[8];                // threads of each warpgroup that wait for the rest
};

struct AsyncLoad {  // TMA to shared memory
    TensorMap map;
    int coordinate[5];
    const void *global;  // of bytes without a map
    size_t bytes;
    Block *to;
    unsigned offset, barrier;
};

struct Cluster {
    std::vector<Block *> blocks;
    unsigned alive;
    unsigned arrived;  // at the cluster's barrier
    std::vector<AsyncLoad> loads;
};

struct Engine {
    Launch launch;
    const std::function<void()> *body;
    Settings settings;  // as the launch began
    uint64_t random;
    uint64_t launches;
    Thread *thread;  // that runs
    Fiber main;
    std::vector<Cluster *> resident;
    size_t resident_wanted;
    uint64_t napping;  // threads
    uint64_t clusters, next_cluster, cluster_factor, cluster_offset;
    uint64_t events;  // anything but naps
};
extern Engine engine;

// ---- shared.cpp

void shared_begin(Block *block);
void shared_end(Block *block);
// The offset of bytes in the running thread's block that a 32-bit address names. A fault unless they are aligned and allocated.
unsigned shared_offset(uint32_t address, size_t bytes, size_t alignment, const char *what);
// The same for an offset in a block.
void shared_check(const Block *block, unsigned offset, size_t bytes, size_t alignment, const char *what);

// ---- engine.cpp

uint64_t random_next();
// Whether asynchronous work that is asked for now is done at once.
bool done_at_once();

// The running thread cannot go on: runs others until somebody made it ready.
void thread_wait(Wait why);
void thread_ready(Thread *thread);

// ---- warp.cpp

// Waits until all lanes of the mask are here, of which the last one runs the operation.
void warp_operation(const WarpOperation *operation, unsigned mask, void *argument, const Where &where);
// After a lane exited: operations that waited for it alone.
void warp_recheck(Warp *warp);

// ---- async.cpp

// Finishes one load that somebody waits for; false if there is none.
bool load_finish_one(Cluster *cluster);
void loads_check(Cluster *cluster, Block *block);
void copies_finish(Thread *thread, unsigned groups_before);
void stores_finish(Thread *thread);
void adds_finish(Thread *thread);

// ---- wgmma.cpp

void products_check(Thread *thread);

}  // namespace simulator
