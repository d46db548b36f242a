// Copies that end later: cp.async, mbarriers, TMA.
//
// A copy to shared memory fills its destination with poison when it is asked for, since from then on the card may write there.
// It is done when Timing says, at the latest: cp.async in the wait that covers it; a load of TMA when no thread of its cluster
// can run and one waits for its mbarrier; a store of TMA reads shared memory in the wait for reading, and writes global memory
// in the wait for completion or when the block ends.
//
// Not caught: a missing fence_async between writes to shared memory and a store or wgmma that reads them, but where the block
// never calls it.
#include "tests/simulated/machine.h"

namespace simulator {

static void need_sm90(const char *what) {
    if (engine.settings.architecture < 90) {
        fault("%s before sm_90", what);
    }
}

static void check_global(const void *global, const char *what) {
    if (global == NULL || (uintptr_t)global % 16 != 0) {
        fault("%s at global memory %p, which is not aligned to 16 bytes", what, global);
    }
}

// The first group that a wait does not cover which leaves `groups` unfinished.
static unsigned groups_covered(unsigned group, unsigned groups) {
    return group > groups ? group - groups : 0;
}

// ---- cp.async

static void copy_do(const AsyncCopy &copy) {
    if (copy.from != NULL) {
        memcpy(copy.to, copy.from, 16);
    } else {
        memset(copy.to, 0, 16);
    }
}

void copy_async_16(uint32_t shared, const void *global, bool valid) {
    Thread *thread = engine.thread;
    check_global(global, "copy_async_16");
    AsyncCopy copy = {thread->block->shared + shared_offset(shared, 16, 16, "copy_async_16"), valid ? global : NULL,
                      thread->copies.group};
    if (done_at_once()) {
        copy_do(copy);
    } else {
        poison(copy.to, 16);
        thread->copies.items.push_back(copy);
    }
}

void copy_async_commit() {
    engine.thread->copies.group++;
}

void copies_finish(Thread *thread, unsigned groups_before) {
    Queue<AsyncCopy> &copies = thread->copies;
    while (!copies.empty() && copies.items[copies.done].group < groups_before) {
        copy_do(copies.items[copies.done++]);
    }
    if (copies.empty()) {
        copies.clear();
    } else if (copies.done > 256) {
        copies.items.erase(copies.items.begin(), copies.items.begin() + (ptrdiff_t)copies.done);
        copies.done = 0;
    }
}

void copy_async_wait(unsigned groups) {
    Thread *thread = engine.thread;
    copies_finish(thread, groups_covered(thread->copies.group, groups));
}

// ---- mbarriers. Their state is beside shared memory, where a mark stands for it.

static const int64_t MBARRIER_MOST = (1 << 20) - 1;

static uint64_t mbarrier_mark(unsigned offset) {
    return 0x7FFF4D4252520000 ^ offset;
}

static Mbarrier &mbarrier_at(Block *block, unsigned offset, const char *what) {
    uint64_t word;
    shared_check(block, offset, 8, 8, what);
    memcpy(&word, block->shared + offset, 8);
    for (Mbarrier &barrier : block->mbarriers) {
        if (barrier.offset == offset && word == mbarrier_mark(offset)) {
            return barrier;
        }
    }
    fault("%s of the mbarrier at %#x in block (%u, %u, %u), which is not initialised, or was written over", what, offset,
          block->index.x, block->index.y, block->index.z);
}

void mbarrier_init(uint32_t address, uint32_t count) {
    need_sm90("mbarrier_init");
    Block *block = engine.thread->block;
    unsigned offset = shared_offset(address, 8, 8, "mbarrier_init");
    if (count == 0 || count > MBARRIER_MOST) {
        fault("mbarrier_init for %u arrivals", count);
    }
    Mbarrier *barrier = NULL;
    for (Mbarrier &other : block->mbarriers) {
        if (other.offset == offset) {
            barrier = &other;
        }
    }
    if (barrier == NULL) {
        barrier = &block->mbarriers.emplace_back();
    } else if (!barrier->waiting.empty()) {
        fault("mbarrier_init at %#x, where threads wait", offset);
    }
    barrier->offset = offset;
    barrier->count = barrier->pending = count;
    barrier->bytes = 0;
    barrier->phase = 0;
    uint64_t mark = mbarrier_mark(offset);
    memcpy(block->shared + offset, &mark, 8);
}

static void phase_check(Mbarrier &barrier) {
    if (barrier.bytes > MBARRIER_MOST || barrier.bytes < -MBARRIER_MOST) {
        fault("the mbarrier at %#x counts %lld bytes: at most 2^20 - 1", barrier.offset, (long long)barrier.bytes);
    }
    if (barrier.pending == 0 && barrier.bytes == 0) {
        barrier.phase++;
        barrier.pending = barrier.count;
        for (Thread *thread : barrier.waiting) {
            thread_ready(thread);
        }
        barrier.waiting.clear();
        engine.events++;
    }
}

static void arrive(Mbarrier &barrier, uint32_t expected_bytes) {
    if (barrier.pending == 0) {
        fault("one arrival more than the %u of a phase at the mbarrier at %#x, which waits for %lld bytes", barrier.count,
              barrier.offset, (long long)barrier.bytes);
    }
    barrier.bytes += expected_bytes;
    barrier.pending--;
    phase_check(barrier);
}

void mbarrier_arrive(uint32_t address, uint32_t expected_bytes) {
    Block *block = engine.thread->block;
    const char *name = expected_bytes > 0 ? "mbarrier_expect" : "mbarrier_arrive";
    arrive(mbarrier_at(block, shared_offset(address, 8, 8, name), name), expected_bytes);
}

// A block of the cluster that has not ended.
static Block *block_of_rank(unsigned rank, const char *what) {
    Cluster *cluster = engine.thread->block->cluster;
    if (rank >= cluster->blocks.size()) {
        fault("%s in block %u of a cluster of %zu", what, rank, cluster->blocks.size());
    }
    if (cluster->blocks[rank]->alive == 0) {
        fault("%s in block %u of the cluster, which has ended", what, rank);
    }
    return cluster->blocks[rank];
}

void mbarrier_arrive_remote(uint32_t address, uint32_t rank) {
    Block *block = block_of_rank(rank, "mbarrier_arrive_remote");
    arrive(mbarrier_at(block, shared_offset(address, 8, 8, "mbarrier_arrive_remote"), "mbarrier_arrive_remote"), 0);
}

void cluster_store(uint32_t address, uint32_t rank, int value) {
    Block *block = block_of_rank(rank, "cluster_store");
    memcpy(block->shared + shared_offset(address, 4, 4, "cluster_store"), &value, 4);
}

// Woken threads look again, as on a card: one for which the barrier ran a whole turn ahead waits on.
void mbarrier_wait(uint32_t address, uint32_t parity) {
    Thread *thread = engine.thread;
    unsigned offset = shared_offset(address, 8, 8, "mbarrier_wait");
    if (parity > 1) {
        fault("mbarrier_wait for a parity of %u", parity);
    }
    for (;;) {
        Mbarrier &barrier = mbarrier_at(thread->block, offset, "mbarrier_wait");
        if ((barrier.phase & 1) != parity) {
            return;
        }
        barrier.waiting.push_back(thread);
        thread->barrier = offset;
        thread->parity = parity;
        thread_wait(Wait::MBARRIER);
    }
}

// ---- TMA: loads

static const TensorMap &map_of(const CUtensorMap *descriptor, int rank, const char *what) {
    const TensorMap *map = tensor_map_of(descriptor);
    if (map == NULL) {
        fault("%s by %p, which is no CUtensorMap that cuTensorMapEncodeTiled made, or not aligned to 64 bytes", what,
              (const void *)descriptor);
    }
    if (rank != 0 && map->rank != rank) {
        fault("%s with %d coordinates by a CUtensorMap of rank %d", what, rank, map->rank);
    }
    return *map;
}

// A swizzle moves bytes within lines of 128.
static size_t box_span(const TensorMap &map) {
    size_t bytes = tensor_map_box_bytes(map);
    return map.swizzle != CU_TENSOR_MAP_SWIZZLE_NONE ? (bytes + 127) / 128 * 128 : bytes;
}

void tma_prefetch(const CUtensorMap *map) {
    map_of(map, 0, "tma_prefetch");
}

static void load_do(const AsyncLoad &load) {
    unsigned char *to = load.to->shared + load.offset;
    if (load.global != NULL) {
        memcpy(to, load.global, load.bytes);
    } else {
        tensor_map_load(load.map, load.coordinate, to, load.offset);
    }
    Mbarrier &barrier = mbarrier_at(load.to, load.barrier, "a load of TMA");
    barrier.bytes -= (int64_t)load.bytes;
    phase_check(barrier);
}

static void load_begin(const AsyncLoad &load, size_t span) {
    shared_check(load.to, load.offset, span, load.global != NULL ? 16 : 128, "a load of TMA");
    mbarrier_at(load.to, load.barrier, "a load of TMA");
    if (done_at_once()) {
        load_do(load);
    } else {
        poison(load.to->shared + load.offset, span);
        engine.thread->block->cluster->loads.push_back(load);
    }
}

void tma_load(int rank, uint32_t shared, const CUtensorMap *descriptor, uint32_t barrier, unsigned blocks,
              const int *coordinates) {
    need_sm90("tma_load");
    Block *block = engine.thread->block;
    AsyncLoad load = {};
    load.map = map_of(descriptor, rank, "tma_load");
    memcpy(load.coordinate, coordinates, (size_t)rank * sizeof(int));
    load.bytes = tensor_map_box_bytes(load.map);
    load.offset = shared_offset(shared, load.bytes, 128, "tma_load");
    load.barrier = shared_offset(barrier, 8, 8, "tma_load");
    if (blocks == 0) {
        blocks = 1u << block->rank;
    }
    for (unsigned r = 0; r < 16; r++) {
        if (blocks >> r & 1) {
            load.to = block_of_rank(r, "tma_load");
            load_begin(load, box_span(load.map));
        }
    }
}

void bulk_load(uint32_t shared, const void *global, uint32_t bytes, uint32_t barrier) {
    need_sm90("bulk_load");
    check_global(global, "bulk_load");
    if (bytes == 0 || bytes % 16 != 0) {
        fault("bulk_load of %u bytes: not a multiple of 16", bytes);
    }
    AsyncLoad load = {};
    load.global = global;
    load.bytes = bytes;
    load.to = engine.thread->block;
    load.offset = shared_offset(shared, bytes, 16, "bulk_load");
    load.barrier = shared_offset(barrier, 8, 8, "bulk_load");
    load_begin(load, bytes);
}

static bool awaited(const AsyncLoad &load) {
    for (const Mbarrier &barrier : load.to->mbarriers) {
        if (barrier.offset == load.barrier) {
            return !barrier.waiting.empty();
        }
    }
    return false;
}

bool load_finish_one(Cluster *cluster) {
    std::vector<AsyncLoad> &loads = cluster->loads;
    size_t count = loads.size(), first = engine.settings.seed != 0 && count > 0 ? random_next() % count : 0;
    for (size_t i = 0; i < count; i++) {
        size_t at = (first + i) % count;
        if (awaited(loads[at])) {
            AsyncLoad load = loads[at];
            loads.erase(loads.begin() + (ptrdiff_t)at);
            load_do(load);
            return true;
        }
    }
    return false;
}

void loads_check(Cluster *cluster, Block *block) {
    for (const AsyncLoad &load : cluster->loads) {
        if (load.to == block) {
            fault("the block ends while a load of TMA to %#x is under way: nobody waits for it", load.offset);
        }
    }
}

// ---- TMA: stores

void fence_async() {
    need_sm90("fence_async");
    engine.thread->block->async_fenced = true;
}

static void store_read(Thread *thread, AsyncStore &store) {
    if (!store.was_read) {
        const unsigned char *from = thread->block->shared + store.offset;
        size_t bytes = store.global != NULL ? store.bytes : box_span(store.map);
        store.data.assign(from, from + bytes);
        store.was_read = true;
    }
}

static void store_write(const AsyncStore &store) {
    if (store.global == NULL) {
        tensor_map_store(store.map, store.coordinate, store.data.data(), store.offset, store.kind == AsyncStore::BOX_ADD);
        return;
    }
    for (size_t i = 0; i < store.bytes / 4; i++) {
        float value;
        memcpy(&value, &store.data[4 * i], 4);
        store.global[i] = store.kind == AsyncStore::BYTES_ADD ? store.global[i] + value : value;
    }
}

static void store_begin(AsyncStore &store) {
    Thread *thread = engine.thread;
    if (!thread->block->async_fenced) {
        fault("a store of TMA, but no thread of the block called fence_async after writing shared memory");
    }
    store.group = thread->stores.group;
    if (done_at_once()) {
        store_read(thread, store);
        store_write(store);
    } else {
        thread->stores.items.push_back(store);
    }
}

void tma_store(int rank, const CUtensorMap *descriptor, uint32_t shared, bool add, const int *coordinates) {
    const char *name = add ? "tma_add" : "tma_store";
    need_sm90(name);
    AsyncStore store = {};
    store.kind = add ? AsyncStore::BOX_ADD : AsyncStore::BOX;
    store.map = map_of(descriptor, rank, name);
    if (add && store.map.type != CU_TENSOR_MAP_DATA_TYPE_FLOAT32) {
        fault("tma_add by a CUtensorMap of another type than fp32");
    }
    memcpy(store.coordinate, coordinates, (size_t)rank * sizeof(int));
    store.offset = shared_offset(shared, box_span(store.map), 128, name);
    store_begin(store);
}

void bulk_store(float *global, uint32_t shared, uint32_t bytes, bool add) {
    const char *name = add ? "bulk_add_float" : "bulk_store";
    need_sm90(name);
    check_global(global, name);
    if (bytes == 0 || bytes % 16 != 0) {
        fault("%s of %u bytes: not a multiple of 16", name, bytes);
    }
    AsyncStore store = {};
    store.kind = add ? AsyncStore::BYTES_ADD : AsyncStore::BYTES;
    store.global = global;
    store.bytes = bytes;
    store.offset = shared_offset(shared, bytes, 16, name);
    store_begin(store);
}

void adds_finish(Thread *thread) {
    for (const Add &add : thread->adds) {
        for (int i = 0; i < 4; i++) {
            add.global[i] += add.value[i];
        }
    }
    thread->adds.clear();
}

void add_float4(float *global, float x, float y, float z, float w) {
    Thread *thread = engine.thread;
    need_sm90("add_float4");
    check_global(global, "add_float4");
    thread->adds.push_back({global, {x, y, z, w}});
    if (done_at_once()) {
        adds_finish(thread);
    }
}

void adds_perform() {
    adds_finish(engine.thread);
}

void tma_store_commit() {
    engine.thread->stores.group++;
}

static void stores_complete(Thread *thread, unsigned groups_before, bool read_only) {
    Queue<AsyncStore> &stores = thread->stores;
    for (size_t i = stores.done; i < stores.items.size() && stores.items[i].group < groups_before; i++) {
        store_read(thread, stores.items[i]);
        if (!read_only) {
            store_write(stores.items[i]);
            stores.items[i].data = {};
            stores.done = i + 1;
        }
    }
    if (stores.empty()) {
        stores.clear();
    }
}

void tma_store_wait(unsigned groups, bool read_only) {
    Thread *thread = engine.thread;
    stores_complete(thread, groups_covered(thread->stores.group, groups), read_only);
}

void stores_finish(Thread *thread) {
    for (const AsyncStore &store : thread->stores.items) {
        if (!store.was_read) {
            fault("the block ends while a store of TMA still reads %#x: nobody waits for it", store.offset);
        }
    }
    stores_complete(thread, UINT32_MAX, false);
}

}  // namespace simulator
