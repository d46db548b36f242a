// Attention backward for Hopper: wgmma and TMA, after FlashAttention-3 (Shah et al. 2024), deterministic.
//
//   P = exp(S - lse), S the scores as in the forward pass         delta = rowsum(dO * O)
//   dV = P^T dO      dP = dO V^T      dS = P * (dP - delta) (times the soft-cap's derivative)
//   dK = scale dS^T Q      dQ = scale dS K
//
// Three kernels: `prepare` computes delta, the log-sum-exp in units of log2 and the last query that sees each key; `main` does
// the five products; `finish` rounds dQ from its fp32 sum, where `main` has not done that.
//
// main: one block of threads a multiprocessor, each of which works on one task after the other. A task: 128 keys of a group (64
// where D > 128), whose K and V stay in shared memory while the block walks the group's query heads and their blocks of queries
// (64, or 128 where D = 64). Everything is transposed, [keys, queries], so that P^T and dS^T come out of the accumulators as A
// operands in registers:
//
//     producer warp    one thread draws the tasks, and copies K and V, Q, lse and dO, delta of the next blocks by TMA
//     dQ warp          adds the block's part of dQ to its sum in global memory, in order
//     consumer 0, 1    64 keys each
//
//     S^T = K Q^T ; dP^T = V dO^T       wgmma, both operands shared
//     P^T = exp2(S^T - lse)             registers, while dP^T is computed
//     dS^T = P^T (dP^T - delta)         registers; also written to shared memory
//     dV += P^T dO                      wgmma, P^T in registers; meanwhile
//     -- both consumers have written dS --
//     dQ = dS K                         wgmma, each consumer a half of it (of its columns; of its rows where D = 64)
//     dK += dS^T Q                      wgmma, dS^T in registers; meanwhile dQ goes to shared memory, and to the dQ warp
//
//   shared memory of a block, in KiB          D = 64   128   192   256
//     K, V   128 keys, or 64; of D = 64 2 stages  64    64    48    64
//     Q, dO  2 stages of a block of queries       64    64    96   128
//     dS     2, so that one is written while the other is still read     64    32    16    16
//     P      the same                              -     -    16    16
//     dQ     2 halves of 64 x 64 fp32             32    32     -     -
//     lse, delta   2 stages                        2     1     1     1
//                                                226   193   177   225
//
// With short sequences the beginnings and ends of tasks cost as much as what lies between. So the producer runs ahead: while
// the consumers finish a task, the next one's first Q and dO are already on their way, and where there are two stages its K and
// V too; with one stage they follow as soon as the last dQ is done. dK and dV leave for global memory by way
// of what held dS (dK of D = 128 by way of what held dQ, and the dQ warp copies it), not of K and V, so that the next K and V
// need not wait for them. Wide heads have no such room: there dK and dV lie in the places of K and V.
//
// Wide heads (D > 128, padded to 192 or 256): dK and dV of 64 keys are all that the registers hold, and a consumer has one of
// them whole. P and dS are made by halves and go to both through shared memory; with the next block of queries' S and dP under
// way behind the sums of this one, little but the tensor cores' work is left to wait for:
//
//     -- both consumers have written P and dS of block m --
//     dV += P^T dO, or dK += dS^T Q     wgmma, consumer 0 dV, consumer 1 dK
//     S^T = K Q^T of block m + 1        wgmma, each consumer 32 of the queries
//     dQ = dS K                         wgmma, 64 of its columns
//     dP^T = V dO^T of block m + 1      wgmma, 32 of the queries
//     P^T = exp2(S^T - lse)             while dQ and dP are computed; to shared memory
//     dQ                                added to its sum in global memory, by the consumer itself: the dQ warp tells its turn
//     dQ = dS K                         wgmma, the next 64 columns (of D = 192 consumer 1 has 64 alone)
//     dS^T = P^T (dP^T - delta)         meanwhile; to shared memory
//     dQ                                added
//
// The consumers add to dQ from their registers because shared memory has no room for it, nor bandwidth to spare: the operands
// of 64 x 64 products alone are all that it can deliver in their time (128 bytes a clock).
//
//   who waits for whom
//     producer    -- keys_full, values_full -->  consumers  -- keys_empty, values_empty -->  producer     (once a task)
//     producer    -- keys_full -->  dQ warp  -- keys_empty -->  producer                             (which task it is)
//     producer    -- q_full[stage], o_full[stage] -->  consumers  -- q_empty[stage], o_empty[stage] -->  producer
//     consumer w  -- QUERY_FULL + w -->  dQ warp  -- QUERY_EMPTY + w -->  consumer w        (named barriers; wide heads: it has
//                                                                     added, it may add)
//     dQ warp of the block with the next keys  -- turns[head, block of queries] -->  dQ warp of this block
//     dQ warp     -- QUERY_TURN + w -->  consumer w                     (its part of dQ is the last: the others have added)
//
// Determinism: a sum in fp32 depends on its order, so the blocks of keys add to a block of queries in one order: from its
// diagonal down to the first keys. Each waits until the block with the keys behind its own has added; the one on the diagonal
// waits for nobody, and stores its part where others add, so nothing is cleared before. (If the diagonal block meets no queries
// here, no other block does: `until` does not decrease with the key. Then turns stays 0 and `finish` writes zeros.)
//
// Of narrow heads (BACKWARD_ROUNDS) the last one, with the first keys that these queries see, does not add: its consumers take
// the sum to their registers while the tensor cores still work, add their part, and dQ is rounded there and leaves by way of
// the same shared memory. So what would be the last addition and all of `finish` is neither written nor read. In any order
// nobody is last.
//
// Blocks of threads take their tasks by ticket, the last keys first, and work on them in the order of their tickets. So of all
// tasks that are not done, the one with the least ticket waits for nobody, and its block has nothing else to do: there is
// always one that moves, also where a block has drawn its next task ahead of time. As the block with the last keys has the
// fewest queries and each starts at its diagonal, in a full step all of them work one block of queries apart from each other,
// and none waits (the order "shortest first" of FlashAttention-3's deterministic backward). dK and dV of a group are summed
// over its heads by one block of threads. In any order nobody waits: `prepare` clears the sum, all add, and the first keys,
// which most queries see, come first.
//
// lse and delta are read by ordinary loads and then written by the asynchronous proxy. Each thread's fence for dS (fence_async)
// stands between its loads and the barrier before its consumer gives the stage back, so that order is kept too.
//
// Registers of a thread: the launch gives 168; the producer's warpgroup gives back all but 40, the consumers take 232. Of them
// the accumulators are dK 64 + dV 64 + S 32 + dP 32 (then P 16 + dS 16 + dQ 32) at D = 128, at
// D = 64 dK 32 + dV 32 + S 64 + dP 64 (then P 32 + dS 32 + dQ 32), at D = 256 dK or dV 128 + S 16 + dP 16 + dQ 32.
#include "kernels/cuda/attention_sm90.h"

namespace BACKEND {

enum { BACKWARD_CONSUMERS = 2 };
enum { BACKWARD_THREADS = WARPGROUP * (1 + BACKWARD_CONSUMERS), BACKWARD_PADDING = 128 };

// Named barriers; 0 is that of the block.
enum { BOTH_CONSUMERS = 1, ONE_CONSUMER = 2, QUERY_FULL = 4, QUERY_EMPTY = 6, QUERY_TURN = 8, QUERY_THREADS = WARPGROUP + 32 };

// A part of the gradient of a block of queries: 64 x 64, in the order in which the accumulator's threads hold it.
enum { PART_FLOATS = 64 * 64, PART_BYTES = PART_FLOATS * 4 };

template <int D> struct BackwardTile {
    static const bool WIDE = D > 128;
    static const int ROWS = D == 64 ? 128 : 64;  // of queries
    static const int KEYS = WIDE ? 64 : 64 * BACKWARD_CONSUMERS;
    static const int PANELS = D / PANEL_COLUMNS;
    static const int PARTS = ROWS * D / PART_FLOATS;  // of dQ, a block of queries
    static const int KEY_STAGES = D == 64 ? 2 : 1;    // of K and V
    static const int LANES = D == 192 ? 32 : D / 8;   // that prepare a query
    static const uint32_t KEY_PANEL = (uint32_t)KEYS * PANEL_ROW_BYTES, KEY_BYTES = PANELS * KEY_PANEL;
    static const uint32_t ROW_PANEL = ROWS * PANEL_ROW_BYTES, ROW_BYTES = PANELS * ROW_PANEL;
    static const uint32_t STAT_BYTES = ROWS * 4;
    // dS^T, and P^T where it goes through shared memory: panels of 64 queries, KEYS rows each.
    static const uint32_t SLOPE_BYTES = ROWS / PANEL_COLUMNS * KEY_PANEL;
    // Places in shared memory.
    static const uint32_t KEY = 0, VALUE = KEY + KEY_STAGES * KEY_BYTES, QUERY = VALUE + KEY_STAGES * KEY_BYTES;
    static const uint32_t OUT = QUERY + RING_STAGES * ROW_BYTES, SLOPE = OUT + RING_STAGES * ROW_BYTES;
    static const uint32_t PROBABILITY = SLOPE + 2 * SLOPE_BYTES, PART = PROBABILITY + (WIDE ? 2 * SLOPE_BYTES : 0);
    static const uint32_t LSE = PART + (WIDE ? 0 : (uint32_t)BACKWARD_CONSUMERS * PART_BYTES);
    static const uint32_t DELTA = LSE + RING_STAGES * STAT_BYTES, BARRIERS = DELTA + RING_STAGES * STAT_BYTES;
    static const uint32_t TASKS = BARRIERS + 128, FIRST = TASKS + 2 * KEY_STAGES * 32, BYTES = FIRST + 16;
    // Where the consumers of narrow heads lay dV and dK for their copies: in what is their own of dS, by panels; but dK of 128
    // columns where their parts of dQ lie, and the dQ warp copies it.
    static const bool KEY_IN_PART = D == 128;
    static_assert(BYTES <= 232448, "more shared memory than a block has");
};

// Where the consumers have registers for it.
template <int D, bool MODIFIED> constexpr bool BACKWARD_ROUNDS = D == 64 || (D == 128 && !MODIFIED);

// The addresses of the mbarriers, from BackwardTile::BARRIERS on.
struct BackwardBarriers {
    uint32_t base;
    __device__ uint32_t at(int which, int stage) const {
        return base + 8u * (uint32_t)(2 * which + stage);
    }
    __device__ uint32_t q_full(int stage) const {
        return at(0, stage);
    }
    __device__ uint32_t q_empty(int stage) const {
        return at(1, stage);
    }
    __device__ uint32_t o_full(int stage) const {
        return at(2, stage);
    }
    __device__ uint32_t o_empty(int stage) const {
        return at(3, stage);
    }
    __device__ uint32_t keys_full(int stage) const {
        return at(4, stage);
    }
    __device__ uint32_t keys_empty(int stage) const {
        return at(5, stage);
    }
    __device__ uint32_t values_full(int stage) const {
        return at(6, stage);
    }
    __device__ uint32_t values_empty(int stage) const {
        return at(7, stage);
    }
};

// What all blocks of a launch share. T': the queries rounded up to BACKWARD_PADDING. A key's own query is the row that stands
// at it, which may lie before the first or behind the last.
struct BackwardWork {
    AttentionPlan plan;
    int padded;        // T'
    int blocks, near;  // blocks of keys of a sequence; groups worked on at a time
    int query_blocks;  // T'/ROWS
    int tasks;         // blocks of keys of all groups
    bool any_order;    // nobody waits for a turn; dq is cleared before
    bool rounds;       // who adds last to dq rounds it: BACKWARD_ROUNDS, and not in any order
    int *ticket;       // 0 at first
    int *turns;        // [B,H,T'/ROWS]: how many blocks of keys have added to dq
    int *until;        // [B,Tk]: the last query that sees a key; the one before its own where none does
    float *lse;        // [B,H,T'] in units of log2, infinity from Tq on and where a query sees nothing
    float *delta;      // [B,H,T'], 0 from Tq on
    float *dq;         // [B,H,T'/ROWS][PARTS][64 x 64]
};

// ---- Before: delta, lse, who sees whom; and zeros

template <typename T> struct BackwardInputs {
    const T *out, *dout;
    const float *lse;
};

// LANES lanes a row of [B,H,T'], 8 elements each.
template <typename T, int D>
__global__ void __launch_bounds__(256) attention_backward_prepare(BackwardInputs<T> in, BackwardWork work) {
    const AttentionPlan &plan = work.plan;
    const int LANES = BackwardTile<D>::LANES;
    // 32 bits: see backward_launch. Divisions of 64 would cost more than all else here.
    unsigned index = blockIdx.x * 256 + threadIdx.x, row = index / LANES, padded = (unsigned)work.padded;
    unsigned heads = (unsigned)plan.heads, keys = (unsigned)plan.keys, pairs = (unsigned)plan.batch * heads,
             rows = pairs * padded;
    if (index < (unsigned)plan.batch * keys) {
        int b = (int)(index / keys), key = (int)(index % keys), own = key - plan.offset;
        int from = own > 0 ? own : 0, to = plan.queries - 1;
        if (from > to || attention_least(plan, b, from) > key) {
            from = to = own - 1;
        }
        while (from < to) {  // the last query whose least is not above the key
            int middle = from + (to - from + 1) / 2;
            if (attention_least(plan, b, middle) <= key) {
                from = middle;
            } else {
                to = middle - 1;
            }
        }
        work.until[index] = from;
    }
    if (index < pairs * (padded / BackwardTile<D>::ROWS)) {
        work.turns[index] = 0;
    }
    if (index == 0) {
        *work.ticket = 0;
    }
    unsigned pair = row / padded, sequence = pair / heads;
    int lane = (int)threadIdx.x % LANES, query = (int)(row - pair * padded);
    float sum = 0;
    if (row < rows && query < plan.queries && lane * 8 < plan.width) {
        int64_t at = (((int64_t)sequence * plan.queries + query) * heads + (pair - sequence * heads)) * plan.width + lane * 8;
        Pack<T> out = load_pack_once(in.out + at), dout = load_pack(in.dout + at);
        for (int i = 0; i < Pack<T>::COUNT; i++) {
            sum += to_float(out.at[i]) * to_float(dout.at[i]);
        }
    }
    for (int offset = LANES / 2; offset > 0; offset /= 2) {
        sum += __shfl_xor_sync(0xFFFFFFFFu, sum, offset);
    }
    if (row >= rows) {
        return;
    }
    if (lane == 0) {
        work.delta[row] = sum;
        float sum = query < plan.queries ? in.lse[(int64_t)pair * plan.queries + query] : INFINITY;
        work.lse[row] = sum > -INFINITY ? sum * 1.4426950408889634f : INFINITY;
    }
    if (work.any_order && lane * 8 < D) {
        float4 zero = {0, 0, 0, 0};
        float4 *clear = (float4 *)(work.dq + (int64_t)row * D + lane * 8);
        clear[0] = zero;
        clear[1] = zero;
    }
}

// ---- Which blocks of queries a block of keys meets

// begin .. end - 1, at least one; from whole_begin to whole_end - 1 (perhaps none) without a mask.
template <int D> __device__ __forceinline__ AttentionBlocks backward_blocks(const BackwardWork &work, int b, int key) {
    const int ROWS = BackwardTile<D>::ROWS, KEYS = BackwardTile<D>::KEYS;
    int keys = work.plan.keys, last = key + KEYS < keys ? key + KEYS - 1 : keys - 1,
        all = (work.plan.queries + ROWS - 1) / ROWS;
    int own = key - work.plan.offset, own_last = own + KEYS - 1;
    const int *until = work.until + (size_t)(unsigned)b * (unsigned)keys;
    AttentionBlocks blocks;
    blocks.begin = own > 0 ? own / ROWS : 0;
    blocks.begin = blocks.begin < all ? blocks.begin : all - 1;
    blocks.end = until[last] >= 0 ? until[last] / ROWS + 1 : 0;
    blocks.end = blocks.end < all ? blocks.end : all;
    blocks.end = blocks.end > blocks.begin ? blocks.end : blocks.begin + 1;
    blocks.whole_begin = own_last > 0 ? (own_last + ROWS - 1) / ROWS : 0;
    blocks.whole_end = key + KEYS <= keys ? (until[key] + 1) / ROWS : 0;  // keys that there are not would spoil dQ
    return blocks;
}

// ---- Tasks: the blocks of keys that a block of threads works on, one after the other

// place.block: -1 when nothing is left. last_from: from this block of queries on no other block of keys adds after this one,
// and this one rounds dQ.
struct alignas(16) BackwardTask {
    AttentionPlace place;
    AttentionBlocks blocks;
    int last_from;
};

// The task of a ticket, with the last keys first. In any order with the first keys, which most queries see: the longest. Only
// `near` groups at a time. (attention_place in words of 32 bits: the producer has few registers.)
__device__ __forceinline__ AttentionPlace backward_place(const BackwardWork &work, unsigned ticket) {
    unsigned blocks = (unsigned)work.blocks, near = (unsigned)work.near, groups = (unsigned)work.plan.groups;
    unsigned start = ticket / (near * blocks) * near, within = ticket - start * blocks;
    unsigned others = (unsigned)work.plan.batch * groups - start, count = others < near ? others : near;
    unsigned pair = start + within % count, block = within / count;
    return AttentionPlace{(int)(pair / groups), (int)(pair % groups), (int)(work.any_order ? block : blocks - 1 - block)};
}

// The place of block m of the queries of a head among all: so turns, lse, delta and dq lie.
__device__ __forceinline__ unsigned backward_block(const BackwardWork &work, int b, int head, int m) {
    return (unsigned)((b * work.plan.heads + head) * work.query_blocks + m);
}

// Where a task stands in shared memory: it may be read until its block's next task but one is handed over.
template <int D> __device__ __forceinline__ BackwardTask *backward_slot(unsigned char *memory, Ring held) {
    typedef BackwardTile<D> Tile;
    return (BackwardTask *)(memory + Tile::TASKS) + held.stage + Tile::KEY_STAGES * (int)held.parity;
}

// The task that comes with the keys at `held`, once they are there.
template <int D>
__device__ __forceinline__ BackwardTask backward_task(unsigned char *memory, BackwardBarriers barriers, Ring held) {
    mbarrier_wait(barriers.keys_full(held.stage), held.parity);
    const int4 *slot = (const int4 *)backward_slot<D>(memory, held);
    int4 half = slot[0], other = slot[1];
    int words[8] = {half.x, half.y, half.z, half.w, other.x, other.y, other.z, other.w};
    for (int i = 0; i < 8; i++) {
        words[i] = __shfl_sync(0xFFFFFFFFu, words[i], 0);  // tells the compiler that a warp goes one way
    }
    return BackwardTask{{words[0], words[1], words[2]}, {words[3], words[4], words[5], words[6]}, words[7]};
}

// How many blocks of keys add to block m of the queries before `block` does: from the last that meets these queries down.
template <int D> __device__ __forceinline__ int backward_before(const BackwardWork &work, int m, int block) {
    int next = (m + 1) * BackwardTile<D>::ROWS;
    int top = next < work.plan.queries ? (next + work.plan.offset - 1) / BackwardTile<D>::KEYS : work.blocks - 1;
    return (top < work.blocks ? top : work.blocks - 1) - block;
}

// The first block of queries that the keys before `key` do not meet; beyond all where `finish` rounds.
template <int D> __device__ __forceinline__ int backward_last_from(const BackwardWork &work, int b, int key) {
    typedef BackwardTile<D> Tile;
    if (!work.rounds) {
        return INT32_MAX;
    }
    if (key == 0) {
        return 0;
    }
    int until = work.until[(size_t)(unsigned)b * (unsigned)work.plan.keys + key - 1], own = key - Tile::KEYS - work.plan.offset;
    int end = until >= 0 ? until / Tile::ROWS + 1 : 0, begin = own > 0 ? own / Tile::ROWS : 0;
    int all = (work.plan.queries + Tile::ROWS - 1) / Tile::ROWS;
    begin = begin < all ? begin : all - 1;  // each meets one block of queries at least: see backward_blocks
    end = end < all ? end : all;
    return end > begin ? end : begin + 1;
}

// ---- The producer: one thread

// Q and lse, dO and delta of block m of the queries of a head.
template <int D>
__device__ __forceinline__ void backward_bring_queries(const BackwardWork &work, BackwardBarriers barriers, uint32_t shared,
                                                       Ring &ring, int b, int head, int m, const CUtensorMap *query_map,
                                                       const CUtensorMap *out_map) {
    typedef BackwardTile<D> Tile;
    uint32_t stage = (uint32_t)ring.stage;
    shared = computed_anew(shared);  // registers are scarce
    int64_t stats = (int64_t)backward_block(work, b, head, m) * Tile::ROWS;
    int row = m * Tile::ROWS;
    mbarrier_wait(barriers.q_empty(ring.stage), ring.parity ^ 1);
    mbarrier_expect(barriers.q_full(ring.stage), Tile::ROW_BYTES + Tile::STAT_BYTES);
    for (int j = 0; j < Tile::PANELS; j++) {
        tma_load_4d(shared + Tile::QUERY + stage * Tile::ROW_BYTES + (uint32_t)j * Tile::ROW_PANEL, query_map,
                    barriers.q_full(ring.stage), j * PANEL_COLUMNS, head, row, b);
    }
    bulk_load(shared + Tile::LSE + stage * Tile::STAT_BYTES, work.lse + stats, Tile::STAT_BYTES, barriers.q_full(ring.stage));
    mbarrier_wait(barriers.o_empty(ring.stage), ring.parity ^ 1);
    mbarrier_expect(barriers.o_full(ring.stage), Tile::ROW_BYTES + Tile::STAT_BYTES);
    for (int j = 0; j < Tile::PANELS; j++) {
        tma_load_4d(shared + Tile::OUT + stage * Tile::ROW_BYTES + (uint32_t)j * Tile::ROW_PANEL, out_map,
                    barriers.o_full(ring.stage), j * PANEL_COLUMNS, head, row, b);
    }
    bulk_load(shared + Tile::DELTA + stage * Tile::STAT_BYTES, work.delta + stats, Tile::STAT_BYTES,
              barriers.o_full(ring.stage));
    ring.advance();
}

// A tile of K or V, all panels.
template <int D>
__device__ __forceinline__ void backward_bring_keys(uint32_t tile, const CUtensorMap *map, uint32_t barrier,
                                                    AttentionPlace place) {
    typedef BackwardTile<D> Tile;
    mbarrier_expect(barrier, Tile::KEY_BYTES);
    for (int i = 0; i < Tile::PANELS; i++) {
        tma_load_4d(tile + (uint32_t)i * Tile::KEY_PANEL, map, barrier, i * PANEL_COLUMNS, place.head, place.block * Tile::KEYS,
                    place.b);
    }
}

template <int D>
__device__ __forceinline__ void backward_produce(const BackwardWork &work, BackwardBarriers barriers, unsigned char *memory,
                                                 const CUtensorMap *key_map, const CUtensorMap *value_map,
                                                 const CUtensorMap *query_map, const CUtensorMap *out_map) {
    typedef BackwardTile<D> Tile;
    const AttentionPlan &plan = work.plan;
    uint32_t shared = shared_address(memory);
    Ring ring = {0, 0};
    Ring held = {0, 0};
    for (;;) {
        BackwardTask task = {{0, 0, -1}, {0, 0, 0, 0}, 0};
        int ticket = atomicAdd(work.ticket, 1);
        if (ticket >= work.tasks) {
            mbarrier_wait(barriers.keys_empty(held.stage), held.parity ^ 1);
            *backward_slot<D>(memory, held) = task;
            mbarrier_arrive(barriers.keys_full(held.stage));
            return;
        }
        task.place = backward_place(work, (unsigned)ticket);
        task.blocks = backward_blocks<D>(work, task.place.b, task.place.block * Tile::KEYS);
        task.last_from = backward_last_from<D>(work, task.place.b, task.place.block * Tile::KEYS);
        int m = task.blocks.begin, head = task.place.head * plan.share;
        int steps = plan.share * (task.blocks.end - task.blocks.begin);
#pragma unroll 1
        for (int step = 0; step < steps; step++) {
            backward_bring_queries<D>(work, barriers, shared, ring, task.place.b, head, m, query_map, out_map);
            m++;
            if (m == task.blocks.end) {
                m = task.blocks.begin;
                head++;
            }
            if (step > 0) {
                continue;
            }
            // Behind the first queries, since the task before must end for them.
            uint32_t tile = shared + (uint32_t)held.stage * Tile::KEY_BYTES;
            mbarrier_wait(barriers.values_empty(held.stage), held.parity ^ 1);
            backward_bring_keys<D>(tile + Tile::VALUE, value_map, barriers.values_full(held.stage), task.place);
            mbarrier_wait(barriers.keys_empty(held.stage), held.parity ^ 1);
            *backward_slot<D>(memory, held) = task;
            backward_bring_keys<D>(tile + Tile::KEY, key_map, barriers.keys_full(held.stage), task.place);
        }
        held.advance<Tile::KEY_STAGES>();
    }
}

// ---- The dQ warp. With wide heads the consumers add, and it tells them when, and who is the first.

// Of narrow heads: the consumers' parts of a block of queries of the sum, as they come.
template <int D> __device__ __forceinline__ void backward_add_parts(float *to, uint32_t shared, bool first, bool elected) {
    typedef BackwardTile<D> Tile;
    for (int w = 0; w < BACKWARD_CONSUMERS; w++) {
        uint32_t part = shared + Tile::PART + (uint32_t)w * PART_BYTES;
        barrier_sync(QUERY_FULL + w, QUERY_THREADS);
        if (elected) {
            if (first) {
                bulk_store(to + w * PART_FLOATS, part, PART_BYTES);
            } else {
                bulk_add_float(to + w * PART_FLOATS, part, PART_BYTES);
            }
            tma_store_commit();
        }
    }
    if (elected) {
        tma_store_wait_read<0>();
    }
    __syncwarp();
    for (int w = 0; w < BACKWARD_CONSUMERS; w++) {
        barrier_arrive(QUERY_EMPTY + w, QUERY_THREADS);
    }
    if (elected) {
        tma_store_wait<0>();
    }
}

// What the consumers have rounded, and came the way of a part: 64 rows of `panels` panels each, the second consumer's so many
// columns and rows further on.
template <int D>
__device__ __forceinline__ void backward_store_parts(uint32_t shared, const CUtensorMap *map, int panels, int head, int row,
                                                     int b, int columns_on, int rows_on, bool elected) {
    typedef BackwardTile<D> Tile;
    for (int w = 0; w < BACKWARD_CONSUMERS; w++) {
        barrier_sync(QUERY_FULL + w, QUERY_THREADS);
        if (elected) {
            for (int i = 0; i < panels; i++) {
                tma_store_4d(map, shared + Tile::PART + (uint32_t)w * PART_BYTES + (uint32_t)i * STORE_PANEL,
                             i * PANEL_COLUMNS + w * columns_on, head, row + w * rows_on, b);
            }
            tma_store_commit();
        }
    }
    if (elected) {
        tma_store_wait_read<0>();
    }
    __syncwarp();
    for (int w = 0; w < BACKWARD_CONSUMERS; w++) {
        barrier_arrive(QUERY_EMPTY + w, QUERY_THREADS);
    }
}

template <int D>
__device__ __forceinline__ void backward_add_queries(const BackwardWork &work, BackwardBarriers barriers, unsigned char *memory,
                                                     const CUtensorMap *dq_map, const CUtensorMap *dk_map) {
    typedef BackwardTile<D> Tile;
    const AttentionPlan &plan = work.plan;
    uint32_t shared = shared_address(memory);
    bool elected = threadIdx.x % 32 == 0;
    for (int w = 0; w < BACKWARD_CONSUMERS && !Tile::WIDE; w++) {
        barrier_arrive(QUERY_EMPTY + w, QUERY_THREADS);
    }
    for (Ring held = {0, 0};; held.advance<Tile::KEY_STAGES>()) {
        BackwardTask task = backward_task<D>(memory, barriers, held);
        if (task.place.block < 0) {
            break;
        }
        if (elected) {
            mbarrier_arrive(barriers.keys_empty(held.stage));
        }
        for (int i = 0; i < plan.share; i++) {
#pragma unroll 1
            for (int m = task.blocks.begin; m < task.blocks.end; m++) {
                unsigned block = backward_block(work, task.place.b, task.place.head * plan.share + i, m);
                int *turn = work.turns + block;
                int before = work.any_order ? 1 : backward_before<D>(work, m, task.place.block);
                if (elected && !work.any_order && before > 0) {
                    while (load_acquire(turn) != before) {
                        nap();
                    }
                    fence_async_global();  // the blocks before have added; now the bulk additions below may
                }
                if (Tile::WIDE) {
                    if (elected) {
                        *(volatile int *)(memory + Tile::FIRST) = before == 0;
                    }
                    __syncwarp();
                    for (int w = 0; w < BACKWARD_CONSUMERS; w++) {
                        barrier_arrive(QUERY_EMPTY + w, QUERY_THREADS);
                    }
                    for (int w = 0; w < BACKWARD_CONSUMERS; w++) {
                        barrier_sync(QUERY_FULL + w, QUERY_THREADS);
                    }
                } else if (m >= task.last_from) {
                    __syncwarp();
                    for (int w = 0; w < BACKWARD_CONSUMERS; w++) {
                        barrier_arrive(QUERY_TURN + w, QUERY_THREADS);
                    }
                    backward_store_parts<D>(shared, dq_map, 1, task.place.head * plan.share + i, m * Tile::ROWS, task.place.b,
                                            D == 64 ? 0 : PANEL_COLUMNS, D == 64 ? 64 : 0, elected);
                } else {
                    __syncwarp();
                    backward_add_parts<D>(work.dq + (int64_t)block * Tile::PARTS * PART_FLOATS, shared, before == 0, elected);
                }
                if (elected && !work.any_order) {
                    add_release(turn, 1);
                }
            }
        }
        if (Tile::KEY_IN_PART) {
            backward_store_parts<D>(shared, dk_map, Tile::PANELS, task.place.head, task.place.block * Tile::KEYS, task.place.b,
                                    0, 64, elected);
        }
    }
    if (elected) {
        tma_store_wait<0>();
    }
}

// ---- The steps of a consumer: a warpgroup. A thread holds two keys and pairs of queries.

struct BackwardKeys {
    int own[2];        // the key's own query
    unsigned seen[2];  // by how many queries, from its own on; 0 beyond the end
};
// Those of the thread, of the 64 from `key` on.
__device__ __forceinline__ BackwardKeys backward_keys(const BackwardWork &work, int b, int key) {
    BackwardKeys keys;
    key += (int)threadIdx.x % WARPGROUP / 32 * 16 + (int)threadIdx.x % 32 / 4;
    const int *until = work.until + (size_t)(unsigned)b * (unsigned)work.plan.keys + key;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        keys.own[r] = key + 8 * r - work.plan.offset;
        keys.seen[r] = key + 8 * r < work.plan.keys ? (unsigned)(until[8 * r] - keys.own[r] + 1) : 0;
    }
    return keys;
}

// d[64 keys, N] = a[64 keys, D] rows[N, D]^T, asynchronous: the scores, and dP.
template <typename T, int D, int N>
__device__ __forceinline__ void issue_transposed(float (&d)[N / 2], uint32_t keys, uint32_t rows) {
    typedef BackwardTile<D> Tile;
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        wgmma_shared<N, T, 0, 0>(d, operand_along_width(keys, Tile::KEY_PANEL, i),
                                 operand_along_width(rows, Tile::ROW_PANEL, i), i > 0);
    }
    wgmma_commit();
}

// d[64 keys, D] += a[64 keys, ROWS] rows[ROWS, D], asynchronous: dV and dK.
template <typename T, int D>
__device__ __forceinline__ void issue_gradient(float (&d)[D / 2], const uint32_t (&a)[BackwardTile<D>::ROWS / 16][4],
                                               uint32_t rows) {
    typedef BackwardTile<D> Tile;
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < Tile::ROWS / 16; i++) {
        wgmma_registers<D, T, 1>(d, a[i], operand_along_rows(rows, Tile::ROW_PANEL, i), true);
    }
    wgmma_commit();
}

// d[64 queries, 64] = a part of dS K, asynchronous: of a panel of dS^T and one of K.
template <typename T, int D> __device__ __forceinline__ void issue_queries(float (&d)[32], uint32_t slopes, uint32_t keys) {
    typedef BackwardTile<D> Tile;
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < Tile::KEYS / 16; i++) {
        wgmma_shared<64, T, 1, 1>(d, operand_along_rows(slopes, Tile::KEY_PANEL, i),
                                  operand_along_rows(keys, Tile::KEY_PANEL, i), i > 0);
    }
    wgmma_commit();
}

template <int N> __device__ __forceinline__ void mask_transposed(float (&s)[N / 2], const BackwardKeys &keys, int query) {
    int from[2] = {query - keys.own[0], query - keys.own[1]};
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        s[i] = (unsigned)(from[i / 2 % 2] + i / 4 * 8 + i % 2) < keys.seen[i / 2 % 2] ? s[i] : -INFINITY;
    }
}

// The products s become P. lse: those of the thread's columns.
template <int N> __device__ __forceinline__ void probabilities(float (&s)[N / 2], float unit, const float *lse) {
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        float2 zero = *(const float2 *)(lse + 8 * j);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            s[4 * j + 2 * r] = exp2_fast(s[4 * j + 2 * r] * unit - zero.x);
            s[4 * j + 2 * r + 1] = exp2_fast(s[4 * j + 2 * r + 1] * unit - zero.y);
        }
    }
}

// With a soft-cap (CAPPED) or slopes: the products s become P, and dp becomes dS; masks too. `query` is that of the thread's
// first column.
template <int N, bool CAPPED>
__device__ __forceinline__ void modified_probabilities(float (&s)[N / 2], float (&dp)[N / 2], const AttentionPlan &plan,
                                                       float slope, const BackwardKeys &keys, bool masked, int query,
                                                       const float *lse, const float *delta) {
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        float2 zero = *(const float2 *)(lse + 8 * j), mean = *(const float2 *)(delta + 8 * j);
#pragma unroll
        for (int i = 4 * j; i < 4 * j + 4; i++) {
            float derivative = 1;
            int behind = query + 8 * j + i % 2 - keys.own[i / 2 % 2];
            float score = CAPPED ? attention_capped(plan, s[i], &derivative) : s[i] * plan.scale_log2;
            score -= slope * (float)behind;
            score = masked && (unsigned)behind >= keys.seen[i / 2 % 2] ? -INFINITY : score;
            s[i] = exp2_fast(score - (i % 2 == 0 ? zero.x : zero.y));
            dp[i] = s[i] * (dp[i] - (i % 2 == 0 ? mean.x : mean.y));
            dp[i] = CAPPED ? dp[i] * derivative : dp[i];
        }
    }
}

// dp becomes dS = P (dP - delta).
template <int N>
__device__ __forceinline__ void score_gradients(const float (&p)[N / 2], float (&dp)[N / 2], const float *delta) {
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        float2 mean = *(const float2 *)(delta + 8 * j);
#pragma unroll
        for (int i = 4 * j; i < 4 * j + 4; i++) {
            dp[i] = p[i] * (dp[i] - (i % 2 == 0 ? mean.x : mean.y));
        }
    }
}

// ---- A consumer of narrow heads

// Both gradients of a task, to global memory. dV by way of what is the consumer's own of dS, dK too where it has room.
template <typename T, int D>
__device__ __forceinline__ void narrow_end(BackwardTask task, const BackwardWork &work, uint32_t shared, float (&dk)[D / 2],
                                           const float (&dv)[D / 2], const CUtensorMap *dk_map, const CUtensorMap *dv_map,
                                           int w) {
    typedef BackwardTile<D> Tile;
    uint32_t own = shared + Tile::SLOPE + (uint32_t)w * 64 * PANEL_ROW_BYTES;
    int row = task.place.block * Tile::KEYS + w * 64, head = task.place.head, b = task.place.b;
#pragma unroll
    for (int i = 0; i < D / 2; i++) {
        dk[i] *= work.plan.scale;
    }
    barrier_sync(BOTH_CONSUMERS, BACKWARD_CONSUMERS * WARPGROUP);  // dS was read by both
    store_rows<T, D>(dv, own, Tile::SLOPE_BYTES, dv_map, 0, head, row, b, ONE_CONSUMER + w);
    if (Tile::KEY_IN_PART) {
        uint32_t a[D / 16][4];
        pack_operand<T, D>(a, dk);
        barrier_sync(QUERY_EMPTY + w, QUERY_THREADS);
        store_operand<D>(shared + Tile::PART + (uint32_t)w * PART_BYTES, STORE_PANEL, a);
        fence_async();
        barrier_arrive(QUERY_FULL + w, QUERY_THREADS);
    } else {
        store_rows<T, D>(dk, own + Tile::SLOPE_BYTES, 0, dk_map, 0, head, row, b, ONE_CONSUMER + w);
    }
}

// P and dS of a block of queries.
template <typename T, int D>
__device__ __forceinline__ void
narrow_gradients(unsigned char *memory, BackwardBarriers barriers, Ring ring, uint32_t key, uint32_t value,
                 const AttentionPlan &plan, const BackwardKeys &keys, bool masked, int m, float (&s)[BackwardTile<D>::ROWS / 2],
                 uint32_t (&p)[BackwardTile<D>::ROWS / 16][4], uint32_t (&ds)[BackwardTile<D>::ROWS / 16][4]) {
    typedef BackwardTile<D> Tile;
    const int ROWS = Tile::ROWS;
    int column = (int)threadIdx.x % 4 * 2;
    uint32_t stats = (uint32_t)ring.stage * Tile::STAT_BYTES + (uint32_t)column * 4;
    float dp[ROWS / 2];
    mbarrier_wait(barriers.q_full(ring.stage), ring.parity);
    issue_transposed<T, D, ROWS>(s, key, shared_address(memory) + Tile::QUERY + (uint32_t)ring.stage * Tile::ROW_BYTES);
    mbarrier_wait(barriers.o_full(ring.stage), ring.parity);
    issue_transposed<T, D, ROWS>(dp, value, shared_address(memory) + Tile::OUT + (uint32_t)ring.stage * Tile::ROW_BYTES);
    wgmma_wait<1>();
    registers_fence(s);
    if (masked) {
        mask_transposed<ROWS>(s, keys, m * ROWS + column);
    }
    probabilities<ROWS>(s, plan.scale_log2, (const float *)(memory + Tile::LSE + stats));
    keep_before(s);  // dP hides the exponentials
    wgmma_wait<0>();
    registers_fence(dp);
    score_gradients<ROWS>(s, dp, (const float *)(memory + Tile::DELTA + stats));
    pack_operand<T, ROWS>(p, s);
    pack_operand<T, ROWS>(ds, dp);
}

// The same of modified scores, which need more registers: they come in halves.
template <typename T, int D>
__device__ __forceinline__ void
narrow_modified(unsigned char *memory, BackwardBarriers barriers, Ring ring, uint32_t key, uint32_t value,
                const AttentionPlan &plan, float slope, const BackwardKeys &keys, bool masked, int m,
                uint32_t (&p)[BackwardTile<D>::ROWS / 16][4], uint32_t (&ds)[BackwardTile<D>::ROWS / 16][4]) {
    typedef BackwardTile<D> Tile;
    const int ROWS = Tile::ROWS, N = ROWS / 2;
    uint32_t query = shared_address(memory) + Tile::QUERY + (uint32_t)ring.stage * Tile::ROW_BYTES;
    uint32_t out = shared_address(memory) + Tile::OUT + (uint32_t)ring.stage * Tile::ROW_BYTES;
    mbarrier_wait(barriers.q_full(ring.stage), ring.parity);
#pragma unroll
    for (int part = 0; part < 2; part++) {
        float s[N / 2], dp[N / 2];
        issue_transposed<T, D, N>(s, key, query + (uint32_t)(part * N) * PANEL_ROW_BYTES);
        if (part == 0) {
            mbarrier_wait(barriers.o_full(ring.stage), ring.parity);
        }
        issue_transposed<T, D, N>(dp, value, out + (uint32_t)(part * N) * PANEL_ROW_BYTES);
        int column = part * N + (int)threadIdx.x % 4 * 2;
        uint32_t stats = (uint32_t)ring.stage * Tile::STAT_BYTES + (uint32_t)column * 4;
        const float *lse = (const float *)(memory + Tile::LSE + stats), *delta = (const float *)(memory + Tile::DELTA + stats);
        wgmma_wait<0>();
        registers_fence(s);
        registers_fence(dp);
        if (plan.cap > 0) {
            modified_probabilities<N, true>(s, dp, plan, slope, keys, masked, m * ROWS + column, lse, delta);
        } else {
            modified_probabilities<N, false>(s, dp, plan, slope, keys, masked, m * ROWS + column, lse, delta);
        }
        pack_operand<T, N>(*(uint32_t(*)[N / 16][4]) & p[part * N / 16], s);
        pack_operand<T, N>(*(uint32_t(*)[N / 16][4]) & ds[part * N / 16], dp);
    }
}

// The thread's numbers of a part of the sum of dQ, from `from` on in global memory, where others have added; zeros where nobody
// has.
__device__ __forceinline__ void load_part(float4 (&held)[8], const float4 *from, bool some) {
#pragma unroll
    for (int j = 0; j < 8; j++) {
        held[j] = some ? __ldcg(from + j * WARPGROUP) : make_float4(0, 0, 0, 0);
    }
}

// dQ rounded, as an operand, of its part and of what others have added. -0 becomes 0, as in a sum that begins with 0.
template <typename T>
__device__ __forceinline__ void round_part(uint32_t (&a)[4][4], float (&dq)[32], const float4 (&held)[8], float scale) {
#pragma unroll
    for (int j = 0; j < 8; j++) {
        dq[4 * j] = fmaf(held[j].x + dq[4 * j], scale, 0.0f);
        dq[4 * j + 1] = fmaf(held[j].y + dq[4 * j + 1], scale, 0.0f);
        dq[4 * j + 2] = fmaf(held[j].z + dq[4 * j + 2], scale, 0.0f);
        dq[4 * j + 3] = fmaf(held[j].w + dq[4 * j + 3], scale, 0.0f);
    }
    pack_operand<T, 64>(a, dq);
}

template <typename T, int D, bool MODIFIED>
__device__ __forceinline__ void backward_consume(const BackwardWork &work, BackwardBarriers barriers, unsigned char *memory,
                                                 const CUtensorMap *dk_map, const CUtensorMap *dv_map, int w) {
    typedef BackwardTile<D> Tile;
    const int ROWS = Tile::ROWS;
    const AttentionPlan &plan = work.plan;
    uint32_t shared = shared_address(memory);
    bool elected = threadIdx.x % WARPGROUP == 0;
    // The rows of this consumer, in each panel of K, V and dS.
    uint32_t own = (uint32_t)w * 64 * PANEL_ROW_BYTES;
    float4 *sum = (float4 *)(memory + Tile::PART + (uint32_t)w * PART_BYTES) + threadIdx.x % WARPGROUP;
    Ring ring = {0, 0};
    for (unsigned number = 0;; number++) {
        Ring held = {(int)(number % Tile::KEY_STAGES), number / Tile::KEY_STAGES % 2};
        BackwardTask task = backward_task<D>(memory, barriers, held);
        if (task.place.block < 0) {
            break;
        }
        BackwardKeys keys = backward_keys(work, task.place.b, task.place.block * Tile::KEYS + w * 64);
        uint32_t key = shared + Tile::KEY + (uint32_t)held.stage * Tile::KEY_BYTES;
        uint32_t value = shared + Tile::VALUE + (uint32_t)held.stage * Tile::KEY_BYTES + own;
        float dk[D / 2], dv[D / 2];
#pragma unroll
        for (int i = 0; i < D / 2; i++) {
            dk[i] = 0;
            dv[i] = 0;
        }
        mbarrier_wait(barriers.values_full(held.stage), held.parity);
        if (elected) {
            tma_store_wait_read<0>();  // of the gradients of the task before, which lie where dS will
        }
        barrier_sync(ONE_CONSUMER + w, WARPGROUP);
        int left = plan.share * (task.blocks.end - task.blocks.begin), m = task.blocks.begin;
        int head = task.place.head * plan.share;
        float slope = MODIFIED ? attention_slope(plan, head) : 0;
        for (; left > 0; left--) {
            uint32_t query = shared + Tile::QUERY + (uint32_t)ring.stage * Tile::ROW_BYTES;
            uint32_t out = shared + Tile::OUT + (uint32_t)ring.stage * Tile::ROW_BYTES;
            uint32_t slopes = shared + Tile::SLOPE + (uint32_t)ring.stage * Tile::SLOPE_BYTES;
            AttentionBlocks blocks = backward_slot<D>(memory, held)->blocks;  // registers are scarce
            if (m == blocks.end) {
                m = blocks.begin;
                head++;
                slope = MODIFIED ? attention_slope(plan, head) : 0;
            }
            bool last = BACKWARD_ROUNDS<D, MODIFIED> && m >= backward_slot<D>(memory, held)->last_from;
            bool masked = m < blocks.whole_begin || m >= blocks.whole_end;
            uint32_t p[ROWS / 16][4], ds[ROWS / 16][4];
            if (MODIFIED) {
                narrow_modified<T, D>(memory, barriers, ring, key + own, value, plan, slope, keys, masked, m, p, ds);
            } else {
                float s[ROWS / 2];
                narrow_gradients<T, D>(memory, barriers, ring, key + own, value, plan, keys, masked, m, s, p, ds);
            }
            store_operand<ROWS>(slopes + own, Tile::KEY_PANEL, ds);
            registers_fence(dv);
            issue_gradient<T, D>(dv, p, out);
            fence_async();
            barrier_sync(BOTH_CONSUMERS, BACKWARD_CONSUMERS * WARPGROUP);
            float dq[32];
            // Its 64 queries, or its 64 columns.
            uint32_t part = (uint32_t)w * Tile::KEY_PANEL;
            issue_queries<T, D>(dq, slopes + (D == 64 ? part : 0), key + (D == 64 ? 0 : part));
            registers_fence(dk);
            issue_gradient<T, D>(dk, ds, query);
            wgmma_wait<2>();
            registers_fence(dv);
            if (elected) {
                mbarrier_arrive(barriers.o_empty(ring.stage));
            }
            if (last) {
                float4 others[8];
                uint32_t a[4][4];
                AttentionPlace place = backward_slot<D>(memory, held)->place;
                int64_t block = (int64_t)backward_block(work, place.b, head, m) * Tile::PARTS + w;
                barrier_sync(QUERY_TURN + w, QUERY_THREADS);
                load_part(others, (const float4 *)(work.dq + block * PART_FLOATS) + threadIdx.x % WARPGROUP,
                          backward_before<D>(work, m, place.block) > 0);
                wgmma_wait<1>();
                registers_fence(dq);
                round_part<T>(a, dq, others, plan.scale);
                barrier_sync(QUERY_EMPTY + w, QUERY_THREADS);
                store_operand<64>(shared + Tile::PART + (uint32_t)w * PART_BYTES, 0, a);
            } else {
                wgmma_wait<1>();
                registers_fence(dq);
                barrier_sync(QUERY_EMPTY + w, QUERY_THREADS);
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    sum[j * WARPGROUP] = make_float4(dq[4 * j], dq[4 * j + 1], dq[4 * j + 2], dq[4 * j + 3]);
                }
            }
            fence_async();
            barrier_arrive(QUERY_FULL + w, QUERY_THREADS);
            wgmma_wait<0>();
            registers_fence(dk);
            if (elected) {
                mbarrier_arrive(barriers.q_empty(ring.stage));
            }
            ring.advance();
            m++;
        }
        if (elected) {
            mbarrier_arrive(barriers.values_empty(held.stage));
            mbarrier_arrive(barriers.keys_empty(held.stage));
        }
        narrow_end<T, D>(*backward_slot<D>(memory, held), work, shared, dk, dv, dk_map, dv_map, w);
    }
    barrier_sync(QUERY_EMPTY + w, QUERY_THREADS);  // the dQ warp's last word
    if (elected) {
        tma_store_wait<0>();
    }
}

// ---- A consumer of wide heads

// d[64 keys, D] += a[64 keys, 64 queries] rows[64 queries, D], asynchronous: dV or dK, P^T or dS^T in shared memory.
template <typename T, int D> __device__ __forceinline__ void issue_sum(float (&d)[D / 2], uint32_t a, uint32_t rows) {
    typedef BackwardTile<D> Tile;
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < Tile::ROWS / 16; i++) {
        wgmma_shared<D, T, 0, 1>(d, operand_along_width(a, Tile::KEY_PANEL, i), operand_along_rows(rows, Tile::ROW_PANEL, i),
                                 true);
    }
    wgmma_commit();
}

// Adds a part to the sum of dQ, of which `to` is this thread's place, or begins the sum with it.
__device__ __forceinline__ void add_part(float4 *to, const float (&dq)[32], bool first) {
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float4 four = make_float4(dq[4 * j], dq[4 * j + 1], dq[4 * j + 2], dq[4 * j + 3]);
        if (first) {
            to[j * WARPGROUP] = four;
        } else {
            add_float4(to + j * WARPGROUP, four);
        }
    }
}

// A consumer's half of P^T or dS^T, 64 keys x N queries, into the tile of both.
template <typename T, int N> __device__ __forceinline__ void store_half(uint32_t tile, const float (&d)[N / 2], int w) {
    uint32_t a[N / 16][4];
    pack_operand<T, N>(a, d);
    store_operand<N>(tile, 0, a, (uint32_t)(w * N / 8));
}

// The products s of consumer w with block m of the queries become P, which also goes to shared memory.
template <typename T, int D>
__device__ __forceinline__ void wide_probabilities(unsigned char *memory, float (&s)[BackwardTile<D>::ROWS / 4],
                                                   const AttentionPlan &plan, const BackwardKeys &keys,
                                                   const AttentionBlocks &blocks, int stage, int m, int w) {
    typedef BackwardTile<D> Tile;
    const int N = Tile::ROWS / BACKWARD_CONSUMERS;
    int column = w * N + (int)threadIdx.x % 4 * 2;
    if (m < blocks.whole_begin || m >= blocks.whole_end) {
        mask_transposed<N>(s, keys, m * Tile::ROWS + column);
    }
    probabilities<N>(s, plan.scale_log2, (const float *)(memory + Tile::LSE + (uint32_t)stage * Tile::STAT_BYTES) + column);
    store_half<T, N>(shared_address(memory) + Tile::PROBABILITY + (uint32_t)stage * Tile::SLOPE_BYTES, s, w);
}

// dp becomes dS, which also goes to shared memory. MODIFIED: s, until here the products, becomes P.
template <typename T, int D, bool MODIFIED>
__device__ __forceinline__ void wide_gradients(unsigned char *memory, float (&s)[BackwardTile<D>::ROWS / 4],
                                               float (&dp)[BackwardTile<D>::ROWS / 4], const AttentionPlan &plan, float slope,
                                               const BackwardKeys &keys, const AttentionBlocks &blocks, int stage, int m,
                                               int w) {
    typedef BackwardTile<D> Tile;
    const int N = Tile::ROWS / BACKWARD_CONSUMERS;
    int column = w * N + (int)threadIdx.x % 4 * 2, query = m * Tile::ROWS + column;
    const float *lse = (const float *)(memory + Tile::LSE + (uint32_t)stage * Tile::STAT_BYTES) + column;
    const float *delta = (const float *)(memory + Tile::DELTA + (uint32_t)stage * Tile::STAT_BYTES) + column;
    uint32_t tile = shared_address(memory) + (uint32_t)stage * Tile::SLOPE_BYTES;
    if (MODIFIED) {
        bool masked = m < blocks.whole_begin || m >= blocks.whole_end;
        if (plan.cap > 0) {
            modified_probabilities<N, true>(s, dp, plan, slope, keys, masked, query, lse, delta);
        } else {
            modified_probabilities<N, false>(s, dp, plan, slope, keys, masked, query, lse, delta);
        }
        store_half<T, N>(tile + Tile::PROBABILITY, s, w);
    } else {
        score_gradients<N>(s, dp, delta);
    }
    store_half<T, N>(tile + Tile::SLOPE, dp, w);
}

// Consumer 0 sums dV, consumer 1 dK; of a block of queries each makes P and dS of a half, and dQ of two panels of columns (of
// one: consumer 1 where D = 192).
template <typename T, int D, bool MODIFIED>
__device__ __forceinline__ void backward_consume_wide(const BackwardWork &work, BackwardBarriers barriers,
                                                      unsigned char *memory, const CUtensorMap *dk_map,
                                                      const CUtensorMap *dv_map, int w) {
    typedef BackwardTile<D> Tile;
    const int N = Tile::ROWS / BACKWARD_CONSUMERS;
    const AttentionPlan &plan = work.plan;
    uint32_t shared = computed_anew(shared_address(memory));
    int thread = (int)threadIdx.x % WARPGROUP;
    bool elected = thread == 0, two_parts = Tile::PANELS == 4 || w == 0;
    uint32_t half = (uint32_t)(w * N) * PANEL_ROW_BYTES;  // its queries, in each panel of Q and dO
    Ring ring = {0, 0};
    for (Ring held = {0, 0};; held.advance<1>()) {
        BackwardTask task = backward_task<D>(memory, barriers, held);
        if (task.place.block < 0) {
            break;
        }
        AttentionPlace place = task.place;
        AttentionBlocks blocks = task.blocks;
        BackwardKeys keys = backward_keys(work, place.b, place.block * Tile::KEYS);
        int first_head = place.head * plan.share, head = first_head, m = blocks.begin;
        float slope = MODIFIED ? attention_slope(plan, head) : 0;
        float sum[D / 2], s[N / 2], dp[N / 2];
#pragma unroll
        for (int i = 0; i < D / 2; i++) {
            sum[i] = 0;
        }
        mbarrier_wait(barriers.q_full(ring.stage), ring.parity);
        issue_transposed<T, D, N>(s, shared + Tile::KEY, shared + Tile::QUERY + (uint32_t)ring.stage * Tile::ROW_BYTES + half);
        mbarrier_wait(barriers.values_full(0), held.parity);
        mbarrier_wait(barriers.o_full(ring.stage), ring.parity);
        issue_transposed<T, D, N>(dp, shared + Tile::VALUE, shared + Tile::OUT + (uint32_t)ring.stage * Tile::ROW_BYTES + half);
        wgmma_wait<0>();
        registers_fence(s);
        registers_fence(dp);
        if (!MODIFIED) {
            wide_probabilities<T, D>(memory, s, plan, keys, blocks, ring.stage, m, w);
        }
        wide_gradients<T, D, MODIFIED>(memory, s, dp, plan, slope, keys, blocks, ring.stage, m, w);
        for (;;) {
            // P and dS of block m of head `head` lie in shared memory, at ring.stage, once both consumers are here.
            shared = computed_anew(shared);
            uint32_t stage = (uint32_t)ring.stage, slopes = shared + Tile::SLOPE + stage * Tile::SLOPE_BYTES;
            uint32_t panel = shared + Tile::KEY + (uint32_t)w * 2 * Tile::KEY_PANEL;
            int64_t part = (int64_t)backward_block(work, place.b, head, m) * Tile::PARTS + 2 * w;
            float4 *to = (float4 *)(work.dq + part * PART_FLOATS) + thread;
            const volatile int *first = (const volatile int *)(memory + Tile::FIRST);
            float dq[32];
            fence_async();
            barrier_sync(BOTH_CONSUMERS, BACKWARD_CONSUMERS * WARPGROUP);
            registers_fence(sum);
            issue_sum<T, D>(sum, w == 0 ? shared + Tile::PROBABILITY + stage * Tile::SLOPE_BYTES : slopes,
                            shared + (w == 0 ? Tile::OUT : Tile::QUERY) + stage * Tile::ROW_BYTES);
            Ring before = ring;
            ring.advance();
            m++;
            if (m == blocks.end) {
                m = blocks.begin;
                head++;
                if (head == first_head + plan.share) {
                    issue_queries<T, D>(dq, slopes, panel);
                    wgmma_wait<0>();
                    registers_fence(sum);
                    registers_fence(dq);
                    if (elected) {
                        mbarrier_arrive(barriers.q_empty(before.stage));
                        mbarrier_arrive(barriers.o_empty(before.stage));
                    }
                    barrier_sync(QUERY_EMPTY + w, QUERY_THREADS);
                    add_part(to, dq, *first != 0);
                    if (two_parts) {
                        issue_queries<T, D>(dq, slopes, panel + Tile::KEY_PANEL);
                        wgmma_wait<0>();
                        registers_fence(dq);
                        add_part(to + PART_FLOATS / 4, dq, *first != 0);
                    }
                    barrier_arrive(QUERY_FULL + w, QUERY_THREADS);
                    break;
                }
                slope = MODIFIED ? attention_slope(plan, head) : 0;
            }
            mbarrier_wait(barriers.q_full(ring.stage), ring.parity);
            issue_transposed<T, D, N>(s, shared + Tile::KEY,
                                      shared + Tile::QUERY + (uint32_t)ring.stage * Tile::ROW_BYTES + half);
            issue_queries<T, D>(dq, slopes, panel);
            mbarrier_wait(barriers.o_full(ring.stage), ring.parity);
            issue_transposed<T, D, N>(dp, shared + Tile::VALUE,
                                      shared + Tile::OUT + (uint32_t)ring.stage * Tile::ROW_BYTES + half);
            wgmma_wait<3>();
            registers_fence(sum);
            if (elected) {
                mbarrier_arrive(barriers.q_empty(before.stage));
                mbarrier_arrive(barriers.o_empty(before.stage));
            }
            wgmma_wait<2>();
            registers_fence(s);
            if (!MODIFIED) {
                wide_probabilities<T, D>(memory, s, plan, keys, blocks, ring.stage, m, w);
                keep_before(s);  // dQ and dP hide the exponentials
            }
            wgmma_wait<1>();
            registers_fence(dq);
            barrier_sync(QUERY_EMPTY + w, QUERY_THREADS);
            add_part(to, dq, *first != 0);
            if (two_parts) {
                issue_queries<T, D>(dq, slopes, panel + Tile::KEY_PANEL);
                wgmma_wait<1>();
            } else {
                wgmma_wait<0>();
            }
            registers_fence(dp);
            wide_gradients<T, D, MODIFIED>(memory, s, dp, plan, slope, keys, blocks, ring.stage, m, w);
            wgmma_wait<0>();
            registers_fence(dq);
            if (two_parts) {
                add_part(to + PART_FLOATS / 4, dq, *first != 0);
            }
            barrier_arrive(QUERY_FULL + w, QUERY_THREADS);
        }
        float unit = w == 0 ? 1 : plan.scale;
#pragma unroll
        for (int i = 0; i < D / 2; i++) {
            sum[i] *= unit;
        }
        place = backward_slot<D>(memory, held)->place;                 // registers are scarce above
        barrier_sync(BOTH_CONSUMERS, BACKWARD_CONSUMERS * WARPGROUP);  // K and V were read by both
        store_rows<T, D>(sum, shared + (w == 0 ? Tile::VALUE : Tile::KEY), Tile::KEY_PANEL, w == 0 ? dv_map : dk_map, 0,
                         place.head, place.block * Tile::KEYS, place.b, ONE_CONSUMER + w);
        if (elected) {
            tma_store_wait_read<0>();
            mbarrier_arrive(barriers.values_empty(0));
            mbarrier_arrive(barriers.keys_empty(0));
        }
    }
    if (elected) {
        tma_store_wait<0>();
    }
}

template <typename T, int D, bool MODIFIED>
__global__ void __launch_bounds__(BACKWARD_THREADS, 1)
    attention_backward_sm90_kernel(const __grid_constant__ CUtensorMap key_map, const __grid_constant__ CUtensorMap value_map,
                                   const __grid_constant__ CUtensorMap query_map, const __grid_constant__ CUtensorMap out_map,
                                   const __grid_constant__ CUtensorMap dq_map, const __grid_constant__ CUtensorMap dk_map,
                                   const __grid_constant__ CUtensorMap dv_map, const __grid_constant__ BackwardWork work) {
    DYNAMIC_SHARED(memory);
    typedef BackwardTile<D> Tile;
    BackwardBarriers barriers = {shared_address_swizzled(memory) + Tile::BARRIERS};
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < Tile::KEY_STAGES; stage++) {
            mbarrier_init(barriers.keys_full(stage), 1);
            mbarrier_init(barriers.values_full(stage), 1);
            mbarrier_init(barriers.keys_empty(stage), BACKWARD_CONSUMERS + 1);  // and the dQ warp, which reads the task
            mbarrier_init(barriers.values_empty(stage), BACKWARD_CONSUMERS);
        }
        for (int stage = 0; stage < RING_STAGES; stage++) {
            mbarrier_init(barriers.q_full(stage), 1);
            mbarrier_init(barriers.o_full(stage), 1);
            mbarrier_init(barriers.q_empty(stage), BACKWARD_CONSUMERS);
            mbarrier_init(barriers.o_empty(stage), BACKWARD_CONSUMERS);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    int warp = __shfl_sync(0xFFFFFFFFu, (int)threadIdx.x / 32, 0);
    if (warp < 4) {
        registers_shrink<40>();
        if (threadIdx.x == 0) {
            backward_produce<D>(work, barriers, memory, &key_map, &value_map, &query_map, &out_map);
        } else if (warp == 1) {
            backward_add_queries<D>(work, barriers, memory, &dq_map, &dk_map);
        }
    } else {
        registers_grow<232>();
        if constexpr (Tile::WIDE) {
            backward_consume_wide<T, D, MODIFIED>(work, barriers, memory, &dk_map, &dv_map, warp / 4 - 1);
        } else {
            backward_consume<T, D, MODIFIED>(work, barriers, memory, &dk_map, &dv_map, warp / 4 - 1);
        }
    }
}

// ---- After: dQ from its sum, where `main` has not rounded it. A block of 128 threads a part of 64 x 64.

template <typename T, int D>
__global__ void __launch_bounds__(WARPGROUP)
    attention_backward_finish(const __grid_constant__ CUtensorMap dq_map, const __grid_constant__ BackwardWork work) {
    DYNAMIC_SHARED(memory);
    const int ROWS = BackwardTile<D>::ROWS;
    const unsigned PARTS = (unsigned)BackwardTile<D>::PARTS;
    int blocks = work.padded / ROWS, w = (int)(blockIdx.x % PARTS), m = (int)(blockIdx.x / PARTS) % blocks;
    unsigned pair = blockIdx.x / PARTS / (unsigned)blocks, sequence = pair / (unsigned)work.plan.heads;
    bool some = work.any_order || work.turns[blockIdx.x / PARTS] > 0;  // no key sees these queries: nobody has written
    if (some && work.rounds) {
        return;
    }
    const float4 *part = (const float4 *)(work.dq + (int64_t)blockIdx.x * PART_FLOATS) + threadIdx.x;
    float dq[32];
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float4 four = __ldcs(part + j * WARPGROUP);
        dq[4 * j] = some ? fmaf(four.x, work.plan.scale, 0.0f) : 0;  // -0 becomes 0, as in a sum that begins with 0
        dq[4 * j + 1] = some ? fmaf(four.y, work.plan.scale, 0.0f) : 0;
        dq[4 * j + 2] = some ? fmaf(four.z, work.plan.scale, 0.0f) : 0;
        dq[4 * j + 3] = some ? fmaf(four.w, work.plan.scale, 0.0f) : 0;
    }
    int row = m * ROWS + (D == 64 ? w * 64 : 0), column = D == 64 ? 0 : w * 64;
    store_rows<T, 64>(dq, shared_address(memory), STORE_PANEL, &dq_map, column,
                      (int)(pair - sequence * (unsigned)work.plan.heads), row, (int)sequence, ONE_CONSUMER);
    if (threadIdx.x == 0) {
        tma_store_wait<0>();
    }
}

// ---- Host

// Takes `bytes` of a workspace, or only counts where there is none yet.
static void *take(unsigned char *memory, int64_t *used, int64_t bytes) {
    void *at = memory != NULL ? memory + *used : NULL;
    *used += (bytes + 1023) / 1024 * 1024;
    return at;
}

template <int D> static int64_t backward_memory(BackwardWork *work, unsigned char *memory) {
    int64_t used = 0, pairs = (int64_t)work->plan.batch * work->plan.heads, rows = pairs * work->padded;
    work->ticket = (int *)take(memory, &used, 4);
    work->turns = (int *)take(memory, &used, rows / BackwardTile<D>::ROWS * 4);
    work->until = (int *)take(memory, &used, (int64_t)work->plan.batch * work->plan.keys * 4);
    work->lse = (float *)take(memory, &used, rows * 4);
    work->delta = (float *)take(memory, &used, rows * 4);
    work->dq = (float *)take(memory, &used, rows * D * 4);
    return used;
}

template <typename T, int D, bool MODIFIED>
static bool backward_launch(Card *card, const AttentionBackward *a, const AttentionPlan &plan) {
    typedef BackwardTile<D> Tile;
    const AttentionShape *s = &a->shape;
    const AttentionRows *in = &a->in, *to = &a->gradients;
    CUtensorMap key_map, value_map, query_map, out_map, dq_map, dk_map, dv_map;
    if (!heads_map(card, s, in->k, in->k_stride, s->groups, s->keys, Tile::KEYS, &key_map) ||
        !heads_map(card, s, in->v, in->v_stride, s->groups, s->keys, Tile::KEYS, &value_map) ||
        !heads_map(card, s, in->q, in->q_stride, s->heads, s->queries, Tile::ROWS, &query_map) ||
        !heads_map(card, s, a->dout, dense_strides(s), s->heads, s->queries, Tile::ROWS, &out_map) ||
        !heads_map(card, s, to->q, to->q_stride, s->heads, s->queries, STORE_ROWS, &dq_map) ||
        !heads_map(card, s, to->k, to->k_stride, s->groups, s->keys, STORE_ROWS, &dk_map) ||
        !heads_map(card, s, to->v, to->v_stride, s->groups, s->keys, STORE_ROWS, &dv_map)) {
        return false;
    }
    BackwardWork work = {};
    work.plan = plan;
    work.any_order = a->any_order;
    work.rounds = BACKWARD_ROUNDS<D, MODIFIED> && !a->any_order;
    work.padded = (int)divide_up(s->queries, BACKWARD_PADDING) * BACKWARD_PADDING;
    work.blocks = (int)divide_up(s->keys, Tile::KEYS);
    int64_t tasks = (int64_t)work.blocks * s->batch * s->groups, rows = s->batch * s->heads * (int64_t)work.padded;
    int64_t lanes = rows * Tile::LANES, prepare = divide_up(lanes > s->batch * s->keys ? lanes : s->batch * s->keys, 256),
            finish = rows / Tile::ROWS * Tile::PARTS;
    // `prepare` counts its threads in 32 bits; dQ alone would be 137 GB beyond that.
    if (tasks > INT32_MAX - card->multiprocessors || prepare > UINT32_MAX / 256 || finish > INT32_MAX) {
        return false;
    }
    work.query_blocks = work.padded / Tile::ROWS;
    work.tasks = (int)tasks;
    int64_t resident = tasks < card->multiprocessors ? tasks : card->multiprocessors;
    // Of a group's heads Q and dO are read again and again, and dQ in fp32 read and written.
    int64_t near = attention_near((int64_t)work.padded * D * (2 * (int64_t)sizeof(T) + 4) * plan.share);
    work.near = (int)(near < s->batch * s->groups ? near : s->batch * s->groups);
    unsigned char *memory = (unsigned char *)card_workspace(card, (size_t)backward_memory<D>(&work, NULL));
    if (memory == NULL) {
        return true;  // the card remembers the failure
    }
    backward_memory<D>(&work, memory);
    BackwardInputs<T> inputs = {(const T *)a->out, (const T *)a->dout, a->lse};
    launch(card, "attention_backward (prepare)", attention_backward_prepare<T, D>, dim3((unsigned)prepare), 256, 0, inputs,
           work);
    launch(card, "attention_backward", attention_backward_sm90_kernel<T, D, MODIFIED>, dim3((unsigned)resident),
           BACKWARD_THREADS, Tile::BYTES, key_map, value_map, query_map, out_map, dq_map, dk_map, dv_map, work);
    bool all_see = s->offset >= 0 && s->offset + s->queries <= s->keys;  // a key: their own
    if (!work.rounds || !all_see) {
        launch(card, "attention_backward (finish)", attention_backward_finish<T, D>, dim3((unsigned)finish), WARPGROUP,
               STORE_PANEL, dq_map, work);
    }
    return true;
}

template <typename T> static bool backward_widths(Card *card, const AttentionBackward *a, const AttentionPlan &plan) {
    if (plan.width <= 64) {
        return plan.modified ? backward_launch<T, 64, true>(card, a, plan) : backward_launch<T, 64, false>(card, a, plan);
    }
    if (plan.width <= 128) {
        return plan.modified ? backward_launch<T, 128, true>(card, a, plan) : backward_launch<T, 128, false>(card, a, plan);
    }
    if (plan.width <= 192) {
        return plan.modified ? backward_launch<T, 192, true>(card, a, plan) : backward_launch<T, 192, false>(card, a, plan);
    }
    return plan.modified ? backward_launch<T, 256, true>(card, a, plan) : backward_launch<T, 256, false>(card, a, plan);
}

// Takes bf16 and fp16 without dropout and key_lengths, head widths that are multiples of 8 up to 256.
bool attention_backward_sm90(Card *card, const AttentionBackward *a) {
    const AttentionShape *s = &a->shape;
    DataType type = card->device.type;
    if (!sm90_takes(s) || !attention_packs(card, s, &a->in) || !attention_packs(card, s, &a->gradients) ||
        !aligned_16(a->out)) {
        return false;
    }
    AttentionPlan plan = attention_plan(s, &a->in);
    return type == TYPE_BF16 ? backward_widths<bf16>(card, a, plan) : backward_widths<fp16>(card, a, plan);
}

}  // namespace BACKEND
