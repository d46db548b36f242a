// Attention forward for Hopper: wgmma and TMA, after FlashAttention-3 (Shah et al. 2024).
//
//   S = scale Q K^T (soft-capped, biased, masked: attention.h)     [queries, keys]
//   P = softmax(S) over the keys, O = P V                          by blocks of keys, with a running maximum and sum
//
// Deterministic: a row's keys are added up in one order, from the last block to the first, whatever block computes it.
//
// Tiles: 128 queries against blocks of 128 keys (80 where D > 128, as much as the shared memory holds). Three warpgroups:
//
//     producer        one thread copies Q, K and V by TMA into shared memory, always as far ahead as there is room
//     consumer 0, 1   64 queries each: both products by wgmma, the softmax between them in registers
//
//   shared memory of a block, in KiB          D = 64   128   256
//     Q  2 tiles of 64 queries, D <= 128 twice    32    64    64
//     K  2 stages of a block of keys              32    64    80
//     V  2 stages                                 32    64    80
//     O  2 tiles of 64 queries                    16    32   (in Q's place)
//                                                112   224   224
//
// A consumer hides the softmax of a block behind the product of the block before it, and the two consumers hide theirs behind
// each other's products (for D <= 128; `turn` are named barriers):
//
//     consumer 0   S1 | O += P0 V0 | softmax 1 ........ | S2 | O += P1 V1 | softmax 2 ......
//                      turn of 1 -> \                turn of 0 ^
//     consumer 1                     S1 | O += P0 V0 | softmax 1 ........ | S2 | ...
//
// Of a thread's two rows the first one's exponentials stand behind the product; the product's end is waited for between the
// rows, and the second one's exponentials hide the scaling of O and the packing of P.
//
//   who waits for whom, by mbarriers (full: bytes have come; empty: both consumers have read):
//     producer  -- k_full[stage], v_full[stage] -->  consumers  -- k_empty[stage], v_empty[stage] -->  producer
//     producer  -- q_full[task] (and which tile and blocks of keys) -->  consumer w  -- q_empty[task] -->  producer
//
// Scores are kept in units of log2, so that P is one FMA and one exp2 an element. P goes from the accumulator of the first
// product into the A operand of the second without leaving its registers: their layouts agree. Blocks of keys that no query of
// the tile sees are skipped, and only blocks on an edge (the diagonal, a document's start, the window's) are masked.
//
// One block a multiprocessor stays for the whole launch and takes tiles by ticket, the longest first within as many heads as
// the second-level cache holds keys and values of (attention_place). The producer draws a tile before the one at hand is
// loaded, and says with Q which one it is and which blocks of keys it meets: consumers divide nothing and load nothing that
// they do not mask with. For D <= 128 tiles are chained: the first S of a tile is issued before the last O += P V of the tile
// before, as within a tile, and what ends a tile (log-sum-exp, division, the copy of O) stands between products of the next:
//
//     S1' | O += Pn Vn | log-sum-exp ... | softmax 1' ........ | O out | S2' | O' += P1' V1' | softmax 2' ......
//
// Above 128 O is copied by way of Q's place, and a tile begins when that before has ended.
//
// Registers of a thread: the launch gives 168; the producer gives back all but 40, the consumers take 232. Of them the
// accumulators are S 64 + O 64 and P 32 at D = 128 (S 40 + O 128 and P 20 at D = 256).
#include "kernels/cuda/attention_sm90.h"

namespace BACKEND {

enum { FORWARD_CONSUMERS = 2, FORWARD_ROWS = 64 * FORWARD_CONSUMERS, FORWARD_THREADS = WARPGROUP * (1 + FORWARD_CONSUMERS) };
enum { FORWARD_STAGES = RING_STAGES };

// Named barriers; 0 is that of the block.
enum { FORWARD_TURN = 1, FORWARD_STORE = 1 + FORWARD_CONSUMERS };

template <int D> struct ForwardTile {
    static const int KEYS = D <= 128 ? 128 : 80;
    static const int PANELS = D / PANEL_COLUMNS;
    static const bool TURNS = D <= 128;    // above, there are no registers to spare and the products outweigh the softmax
    static const bool CHAINED = D <= 128;  // Q has two places and O its own, so that the next tile begins before this one ends
    static const int TASKS = CHAINED ? 2 : 1;
    static const uint32_t QUERY_BYTES = PANELS * STORE_PANEL;  // of one consumer
    static const uint32_t KEY_PANEL = KEYS * PANEL_ROW_BYTES, KEY_BYTES = PANELS * KEY_PANEL;
    // Places in shared memory.
    static const uint32_t QUERY = 0, KEY = QUERY + TASKS * FORWARD_CONSUMERS * QUERY_BYTES;
    static const uint32_t VALUE = KEY + FORWARD_STAGES * KEY_BYTES, OUT = CHAINED ? VALUE + FORWARD_STAGES * KEY_BYTES : QUERY;
    static const uint32_t BARRIERS = VALUE + FORWARD_STAGES * KEY_BYTES + (CHAINED ? FORWARD_CONSUMERS * QUERY_BYTES : 0);
    static const uint32_t BYTES = BARRIERS + 256;
};

// A tile as the producer tells a consumer of it, in shared memory.
struct alignas(16) ForwardTask {
    AttentionBlocks blocks;  // end = 0: there are no more tiles
    AttentionPlace place;
};

// The addresses of the mbarriers, from ForwardTile::BARRIERS on. Behind them stand the tasks. `task` is the place of a task and
// its Q: FORWARD_CONSUMERS times the number in the ring and the consumer's number.
enum { FORWARD_TASKS = 2 * FORWARD_CONSUMERS, FORWARD_BARRIERS = 2 * FORWARD_TASKS + 4 * FORWARD_STAGES };
struct ForwardBarriers {
    uint32_t base;
    __device__ uint32_t q_full(int task) const {
        return base + 8u * (uint32_t)task;
    }
    __device__ uint32_t q_empty(int task) const {
        return base + 8u * (uint32_t)(FORWARD_TASKS + task);
    }
    __device__ uint32_t k_full(int stage) const {
        return base + 8u * (uint32_t)(2 * FORWARD_TASKS + stage);
    }
    __device__ uint32_t k_empty(int stage) const {
        return base + 8u * (uint32_t)(2 * FORWARD_TASKS + FORWARD_STAGES + stage);
    }
    __device__ uint32_t v_full(int stage) const {
        return base + 8u * (uint32_t)(2 * FORWARD_TASKS + 2 * FORWARD_STAGES + stage);
    }
    __device__ uint32_t v_empty(int stage) const {
        return base + 8u * (uint32_t)(2 * FORWARD_TASKS + 3 * FORWARD_STAGES + stage);
    }
};

// What all tiles of a launch share.
struct ForwardWork {
    AttentionPlan plan;
    int64_t tiles;
    int blocks, near;  // blocks of queries of a sequence
    int *ticket;       // 0 at first
    float *lse;
};

// ---- The producer: one thread

// Tile number `tile` of the launch.
template <int D> __device__ __forceinline__ ForwardTask forward_task(const ForwardWork &work, int tile) {
    ForwardTask task = {};
    if (tile < work.tiles) {
        const AttentionPlan &plan = work.plan;
        task.place = attention_place(tile, plan.batch, plan.heads, work.blocks, work.near, true);
        task.blocks =
            attention_key_blocks<FORWARD_ROWS, ForwardTile<D>::KEYS, true>(plan, task.place.b, task.place.block * FORWARD_ROWS);
    }
    return task;
}

template <int D>
__device__ __forceinline__ void forward_produce(const ForwardWork &work, ForwardBarriers barriers, uint32_t shared,
                                                ForwardTask *tasks, const CUtensorMap *query_map, const CUtensorMap *key_map,
                                                const CUtensorMap *value_map) {
    typedef ForwardTile<D> Tile;
    tma_prefetch(query_map);
    tma_prefetch(key_map);
    tma_prefetch(value_map);
    Ring ring = {0, 0}, turn = {0, 0};
    ForwardTask task = forward_task<D>(work, (int)blockIdx.x);
    for (bool more = true; more; turn.advance<Tile::TASKS>()) {
        more = task.blocks.end > 0;
        for (int w = 0; w < FORWARD_CONSUMERS; w++) {
            int at = turn.stage * FORWARD_CONSUMERS + w;
            mbarrier_wait(barriers.q_empty(at), turn.parity ^ 1);
            tasks[at] = task;
            mbarrier_expect(barriers.q_full(at), more ? Tile::QUERY_BYTES : 0);
            for (int i = 0; more && i < Tile::PANELS; i++) {
                tma_load_4d(shared + Tile::QUERY + (uint32_t)at * Tile::QUERY_BYTES + (uint32_t)i * STORE_PANEL, query_map,
                            barriers.q_full(at), i * PANEL_COLUMNS, task.place.head, task.place.block * FORWARD_ROWS + w * 64,
                            task.place.b);
            }
        }
        int group = task.place.head / work.plan.share, b = task.place.b, begin = task.blocks.begin;
#pragma unroll 1
        for (int n = task.blocks.end - 1; n >= begin; n--) {
            uint32_t stage = (uint32_t)ring.stage * Tile::KEY_BYTES;
            // Late, so that what is left goes to who is first; but it comes while there is no room for the last K, and what it
            // means is worked out while there is none for V.
            int ticket = n == begin ? atomicAdd(work.ticket, 1) : 0;
            mbarrier_wait(barriers.k_empty(ring.stage), ring.parity ^ 1);
            mbarrier_expect(barriers.k_full(ring.stage), Tile::KEY_BYTES);
            for (int i = 0; i < Tile::PANELS; i++) {
                tma_load_4d(shared + Tile::KEY + stage + (uint32_t)i * Tile::KEY_PANEL, key_map, barriers.k_full(ring.stage),
                            i * PANEL_COLUMNS, group, n * Tile::KEYS, b);
            }
            if (n == begin) {
                task = forward_task<D>(work, (int)gridDim.x + ticket);
            }
            mbarrier_wait(barriers.v_empty(ring.stage), ring.parity ^ 1);
            mbarrier_expect(barriers.v_full(ring.stage), Tile::KEY_BYTES);
            for (int i = 0; i < Tile::PANELS; i++) {
                tma_load_4d(shared + Tile::VALUE + stage + (uint32_t)i * Tile::KEY_PANEL, value_map,
                            barriers.v_full(ring.stage), i * PANEL_COLUMNS, group, n * Tile::KEYS, b);
            }
            ring.advance();
        }
    }
}

// ---- The steps of a consumer: a warpgroup. A thread holds two rows, `row` and row + 8 of its tile. Keys count as the rows
// that stand at them here.

// S = Q K^T, asynchronous.
template <typename T, int D>
__device__ __forceinline__ void issue_scores(float (&s)[ForwardTile<D>::KEYS / 2], uint32_t query, uint32_t key) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        wgmma_shared<ForwardTile<D>::KEYS, T, 0, 0>(s, operand_along_width(query, STORE_PANEL, i),
                                                    operand_along_width(key, ForwardTile<D>::KEY_PANEL, i), i > 0);
    }
    wgmma_commit();
}

// O += P V, asynchronous.
template <typename T, int D>
__device__ __forceinline__ void issue_values(float (&o)[D / 2], const uint32_t (&p)[ForwardTile<D>::KEYS / 16][4],
                                             uint32_t value) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < ForwardTile<D>::KEYS / 16; i++) {
        wgmma_registers<D, T, 1>(o, p[i], operand_along_rows(value, ForwardTile<D>::KEY_PANEL, i), true);
    }
    wgmma_commit();
}

// The two rows of a thread and what they have seen so far.
struct ForwardRows {
    int query, first[2];    // the first row; for each what first[] says
    float most[2], sum[2];  // the running maximum, in units of log2, and sum (this thread's columns)
};

// Soft-cap and slopes: scores in units of log2. `key` is that of the thread's first column.
template <int KEYS>
__device__ __forceinline__ void modify_scores(float (&s)[KEYS / 2], const AttentionPlan &plan, float slope,
                                              const ForwardRows &rows, int key) {
    if (plan.cap > 0) {
        float derivative;
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++) {
            s[i] = attention_capped(plan, s[i], &derivative);
        }
    } else {
#pragma unroll
        for (int i = 0; i < KEYS / 2; i++) {
            s[i] *= plan.scale_log2;
        }
    }
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) {
        s[i] += slope * (float)(key + i / 4 * 8 + i % 2 - rows.query - i / 2 % 2 * 8);
    }
}

// Of a row's columns that a thread holds, 0, 1, 8, 9, 16 ..., those below `end`: a bit each.
__device__ __forceinline__ uint32_t columns_below(int end) {
    end = end > 0 ? end : 0;
    int count = end / 8 * 2 + (end % 8 < 2 ? end % 8 : 2);
    return count < 32 ? (1u << count) - 1 : 0xFFFFFFFFu;
}

// Hides what comes after a row's query, before its first key and, of the keys, from row `keys` on. Bits become predicates many
// at a time: a selection a score, where comparisons would be as much again.
template <int KEYS>
__device__ __forceinline__ void mask_scores(float (&s)[KEYS / 2], const AttentionPlan &plan, const ForwardRows &rows, int key,
                                            int keys) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int query = rows.query + 8 * r, end = query < keys ? query + 1 : keys, edge = query - plan.window + 1;
        int first = rows.first[r] > 0 ? rows.first[r] : 0;
        first = (first < plan.keys ? first : plan.keys) - plan.offset;
        uint32_t seen = columns_below(end - key) & ~columns_below((first > edge ? first : edge) - key);
#pragma unroll
        for (int i = 0; i < KEYS / 4; i++) {
            float &score = s[i / 2 * 4 + 2 * r + i % 2];
            score = (seen & 1u << i) != 0 ? score : -INFINITY;
        }
    }
}

// The rows' new maxima; `shrink` is the factor for what was summed up with the old ones. A maximum is kept as it is subtracted,
// scaled and rounded, so that shrink makes good just what changed.
template <int KEYS>
__device__ __forceinline__ void row_maxima(const float (&s)[KEYS / 2], ForwardRows &rows, float unit, float (&shrink)[2]) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float most = s[2 * r];
#pragma unroll
        for (int i = 0; i < KEYS / 8; i++) {
            most = fmaxf(most, fmaxf(s[4 * i + 2 * r], s[4 * i + 2 * r + 1]));
        }
        most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFFu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFFu, most, 2));
        most = fmaxf(rows.most[r], most * unit);
        shrink[r] = exp2_fast(rows.most[r] - (most == -INFINITY ? 0 : most));  // a block may be hidden from a row altogether
        rows.most[r] = most;
    }
}

// Of row r, s becomes exp(score - maximum).
template <int KEYS>
__device__ __forceinline__ void row_exponentials(float (&s)[KEYS / 2], ForwardRows &rows, float unit, const float (&shrink)[2],
                                                 int r) {
    float zero = rows.most[r] == -INFINITY ? 0 : rows.most[r], sum = 0;
#pragma unroll
    for (int i = 0; i < KEYS / 8; i++) {
        s[4 * i + 2 * r] = exp2_fast(s[4 * i + 2 * r] * unit - zero);
        s[4 * i + 2 * r + 1] = exp2_fast(s[4 * i + 2 * r + 1] * unit - zero);
        sum += s[4 * i + 2 * r] + s[4 * i + 2 * r + 1];
    }
    rows.sum[r] = rows.sum[r] * shrink[r] + sum;
}

template <int D> __device__ __forceinline__ void scale_rows(float (&o)[D / 2], const float (&factor)[2]) {
#pragma unroll
    for (int i = 0; i < D / 2; i++) {
        o[i] *= factor[i / 2 % 2];
    }
}

// What is the same for all threads of a warp, and the compiler is told so: where it has to think that they part, it moves every
// descriptor anew from each thread's registers.
__device__ __forceinline__ bool all_alike(bool yes) {
    return __any_sync(0xFFFFFFFFu, yes) != 0;
}
__device__ __forceinline__ int all_alike(int x) {
    return __shfl_sync(0xFFFFFFFFu, x, 0);
}

// The scores of block n of a task, whose product with K is there: modified, masked, and the rows' maxima.
template <typename T, int D, bool MODIFIED>
__device__ __forceinline__ void block_scores(float (&s)[ForwardTile<D>::KEYS / 2], const AttentionPlan &plan,
                                             const ForwardTask &task, int n, ForwardRows &rows, float (&shrink)[2]) {
    const int KEYS = ForwardTile<D>::KEYS;
    int key = n * KEYS + (int)threadIdx.x % 4 * 2 - plan.offset;
    if (MODIFIED) {  // the slope is loaded anew: there are no registers to keep it
        modify_scores<KEYS>(s, plan, attention_slope(plan, task.place.head), rows, key);
    }
    if (all_alike(n >= task.blocks.whole_end || n < task.blocks.whole_begin)) {
        mask_scores<KEYS>(s, plan, rows, key, plan.keys - plan.offset);
    }
    row_maxima<KEYS>(s, rows, MODIFIED ? 1.0f : plan.scale_log2, shrink);
}

// ---- A tile's beginning and end

// Waits for task and Q at `at`.
__device__ __forceinline__ ForwardTask take_task(ForwardBarriers barriers, const ForwardTask *tasks, int at, uint32_t parity) {
    mbarrier_wait(barriers.q_full(at), parity);
    return tasks[at];
}

// The thread's rows of a tile of consumer w, which have seen nothing yet. What is loaded here is first looked at in masks.
__device__ __forceinline__ ForwardRows first_rows(const AttentionPlan &plan, AttentionPlace place, int w) {
    ForwardRows rows;
    int thread = (int)threadIdx.x % WARPGROUP;
    rows.query = place.block * FORWARD_ROWS + w * 64 + thread / 32 * 16 + thread % 32 / 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int row = rows.query + 8 * r < plan.queries ? rows.query + 8 * r : plan.queries - 1;
        rows.first[r] = plan.first != NULL ? plan.first[(int64_t)place.b * plan.queries + row] : 0;
        rows.most[r] = -INFINITY;
        rows.sum[r] = 0;
    }
    return rows;
}

// Rows that have seen all: their log-sum-exp is written; share[] is what a row of P V is to be multiplied with.
__device__ __forceinline__ void last_rows(const ForwardWork &work, AttentionPlace place, const ForwardRows &rows,
                                          float (&share)[2]) {
    const AttentionPlan &plan = work.plan;
    float sum[2], lse[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] = rows.sum[r] + __shfl_xor_sync(0xFFFFFFFFu, rows.sum[r], 1);
        sum[r] += __shfl_xor_sync(0xFFFFFFFFu, sum[r], 2);
        lse[r] = rows.most[r] * 0.693147180559945f + logf(sum[r]);
    }
    if (work.lse != NULL && threadIdx.x % 4 == 0) {
        int head = (int)computed_anew((uint32_t)place.head);  // or every block of keys would compute the address
        float *at = work.lse + ((int64_t)place.b * plan.heads + head) * plan.queries + rows.query;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (rows.query + 8 * r < plan.queries) {
                at[8 * r] = lse[r];
            }
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        // 1 / sum as the division would give it, one Newton step behind the instruction; 0: a row that sees nothing.
        float near = reciprocal_fast(sum[r]);
        share[r] = sum[r] > 0 ? fmaf(near, fmaf(-sum[r], near, 1.0f), near) : 0.0f;
    }
}

// O to global memory by way of `out`.
template <typename T, int D>
__device__ __forceinline__ void write_out(const float (&o)[D / 2], uint32_t out, const CUtensorMap *out_map,
                                          AttentionPlace place, int w) {
    if (ForwardTile<D>::CHAINED) {
        if (threadIdx.x % WARPGROUP == 0) {
            tma_store_wait_read<0>();  // of the tile before
        }
        barrier_sync(FORWARD_STORE + w, WARPGROUP);
    }
    int head = all_alike(place.head), row = all_alike(place.block) * FORWARD_ROWS + w * 64, b = all_alike(place.b);
    store_rows<T, D>(o, out, STORE_PANEL, out_map, 0, head, row, b, FORWARD_STORE + w);
    __syncwarp();  // says again that a warp goes one way
}

template <int D> __device__ __forceinline__ void clear_out(float (&o)[D / 2]) {
#pragma unroll
    for (int i = 0; i < D / 2; i++) {
        o[i] = 0;
    }
}

// ---- A consumer: all tiles of this block

template <typename T, int D, bool MODIFIED>
__device__ __forceinline__ void forward_consume(const ForwardWork &work, ForwardBarriers barriers, uint32_t shared,
                                                const ForwardTask *tasks, const CUtensorMap *out_map, int w) {
    typedef ForwardTile<D> Tile;
    const int KEYS = Tile::KEYS;
    const AttentionPlan &plan = work.plan;
    uint32_t query = shared + Tile::QUERY + (uint32_t)w * Tile::QUERY_BYTES, key = shared + Tile::KEY;
    uint32_t value = shared + Tile::VALUE, out = shared + Tile::OUT + (uint32_t)w * Tile::QUERY_BYTES;
    const uint32_t QUERIES = FORWARD_CONSUMERS * Tile::QUERY_BYTES;  // from task to task
    int lane = (int)threadIdx.x % 32;
    bool elected = threadIdx.x % WARPGROUP == 0;
    float unit = MODIFIED ? 1.0f : plan.scale_log2;
    float s[KEYS / 2], o[D / 2], shrink[2], share[2];
    uint32_t p[KEYS / 16][4];
    Ring ring = {0, 0}, turn = {0, 0};
    if (Tile::TURNS && w == 1) {
        barrier_arrive(FORWARD_TURN, 2 * WARPGROUP);  // consumer 0 begins
    }
    ForwardTask task = take_task(barriers, tasks, w, 0);
    while (all_alike(task.blocks.end > 0)) {  // where tiles are chained, once
        int n = task.blocks.end - 1;
        mbarrier_wait(barriers.k_full(ring.stage), ring.parity);
        issue_scores<T, D>(s, query + (uint32_t)turn.stage * QUERIES, key + (uint32_t)ring.stage * Tile::KEY_BYTES);
        ForwardRows rows = first_rows(plan, task.place, w);
        clear_out<D>(o);
        wgmma_wait<0>();
        registers_fence(s);
        if (elected) {
            mbarrier_arrive(barriers.k_empty(ring.stage));
        }
        block_scores<T, D, MODIFIED>(s, plan, task, n, rows, shrink);
        row_exponentials<KEYS>(s, rows, unit, shrink, 0);
        row_exponentials<KEYS>(s, rows, unit, shrink, 1);
        pack_operand<T, KEYS>(p, s);
        for (;;) {
            bool ends = all_alike(n == task.blocks.begin);
            AttentionPlace place = task.place;
            if (ends) {
                if (!Tile::CHAINED) {
                    break;
                }
                if (lane == 0) {
                    mbarrier_arrive(barriers.q_empty(turn.stage * FORWARD_CONSUMERS + w));
                }
                turn.advance<Tile::TASKS>();
                task = take_task(barriers, tasks, turn.stage * FORWARD_CONSUMERS + w, turn.parity);
                if (all_alike(task.blocks.end == 0)) {
                    task.place = place;
                    break;
                }
                n = task.blocks.end;
            }
            n--;
            Ring before = ring;
            ring.advance();
            mbarrier_wait(barriers.k_full(ring.stage), ring.parity);
            if (Tile::TURNS) {
                barrier_sync(FORWARD_TURN + w, 2 * WARPGROUP);
            }
            registers_fence(o);
            issue_scores<T, D>(s, query + (uint32_t)turn.stage * QUERIES, key + (uint32_t)ring.stage * Tile::KEY_BYTES);
            mbarrier_wait(barriers.v_full(before.stage), before.parity);
            issue_values<T, D>(o, p, value + (uint32_t)before.stage * Tile::KEY_BYTES);
            if (Tile::TURNS) {
                barrier_arrive(FORWARD_TURN + 1 - w, 2 * WARPGROUP);
            }
            if (Tile::CHAINED && ends) {
                last_rows(work, place, rows, share);
                rows = first_rows(plan, task.place, w);
            }
            wgmma_wait<1>();
            registers_fence(s);
            if (elected) {
                mbarrier_arrive(barriers.k_empty(ring.stage));
            }
            block_scores<T, D, MODIFIED>(s, plan, task, n, rows, shrink);
            row_exponentials<KEYS>(s, rows, unit, shrink, 0);
            const float first[1] = {rows.sum[0]};
            keep_before(first);  // the product O += P V hides all that, the other row's exponentials hide what O and P want
            wgmma_wait<0>();
            registers_fence(o);
            if (elected) {
                mbarrier_arrive(barriers.v_empty(before.stage));
            }
            if (!Tile::CHAINED || !ends) {
                share[0] = shrink[0], share[1] = shrink[1];
            }
            scale_rows<D>(o, share);
            row_exponentials<KEYS>(s, rows, unit, shrink, 1);
            pack_operand<T, KEYS>(p, s);
            if (Tile::CHAINED && ends) {
                write_out<T, D>(o, out, out_map, place, w);
                clear_out<D>(o);
            }
        }
        mbarrier_wait(barriers.v_full(ring.stage), ring.parity);
        registers_fence(o);
        issue_values<T, D>(o, p, value + (uint32_t)ring.stage * Tile::KEY_BYTES);
        last_rows(work, task.place, rows, share);
        wgmma_wait<0>();
        registers_fence(o);
        if (elected) {
            mbarrier_arrive(barriers.v_empty(ring.stage));
        }
        ring.advance();
        scale_rows<D>(o, share);
        write_out<T, D>(o, out, out_map, task.place, w);
        if (!Tile::CHAINED) {
            if (lane == 0) {
                tma_store_wait_read<0>();  // of the one thread that has stored
                mbarrier_arrive(barriers.q_empty(w));
            }
            turn.advance<Tile::TASKS>();
            task = take_task(barriers, tasks, w, turn.parity);
        }
    }
    if (Tile::TURNS && w == 0) {
        barrier_sync(FORWARD_TURN, 2 * WARPGROUP);  // takes the turn that nobody needs any more
    }
    if (elected) {
        tma_store_wait<0>();
    }
}

template <typename T, int D, bool MODIFIED>
__global__ void __launch_bounds__(FORWARD_THREADS, 1)
    attention_forward_sm90_kernel(const __grid_constant__ CUtensorMap query_map, const __grid_constant__ CUtensorMap key_map,
                                  const __grid_constant__ CUtensorMap value_map, const __grid_constant__ CUtensorMap out_map,
                                  const __grid_constant__ ForwardWork work) {
    DYNAMIC_SHARED(memory);
    typedef ForwardTile<D> Tile;
    uint32_t shared = shared_address_swizzled(memory);
    ForwardBarriers barriers = {shared + Tile::BARRIERS};
    ForwardTask *tasks = (ForwardTask *)(memory + Tile::BARRIERS + FORWARD_BARRIERS * 8);
    if (threadIdx.x == 0) {
        for (int task = 0; task < FORWARD_TASKS; task++) {
            mbarrier_init(barriers.q_full(task), 1);
            mbarrier_init(barriers.q_empty(task), WARPGROUP / 32);
        }
        for (int stage = 0; stage < FORWARD_STAGES; stage++) {
            mbarrier_init(barriers.k_full(stage), 1);
            mbarrier_init(barriers.v_full(stage), 1);
            mbarrier_init(barriers.k_empty(stage), FORWARD_CONSUMERS);
            mbarrier_init(barriers.v_empty(stage), FORWARD_CONSUMERS);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    int warpgroup = __shfl_sync(0xFFFFFFFFu, (int)threadIdx.x / WARPGROUP, 0);
    if (warpgroup == 0) {
        registers_shrink<40>();
        if (threadIdx.x == 0) {
            forward_produce<D>(work, barriers, shared, tasks, &query_map, &key_map, &value_map);
        }
    } else {
        registers_grow<232>();
        forward_consume<T, D, MODIFIED>(work, barriers, shared, tasks, &out_map, warpgroup - 1);
    }
}

// ---- Host

template <typename T, int D, bool MODIFIED>
static bool forward_launch(Card *card, const AttentionForward *a, const AttentionPlan &plan) {
    typedef ForwardTile<D> Tile;
    const AttentionShape *s = &a->shape;
    CUtensorMap query_map, key_map, value_map, out_map;
    if (!heads_map(card, s, a->in.q, a->in.q_stride, s->heads, s->queries, 64, &query_map) ||
        !heads_map(card, s, a->in.k, a->in.k_stride, s->groups, s->keys, Tile::KEYS, &key_map) ||
        !heads_map(card, s, a->in.v, a->in.v_stride, s->groups, s->keys, Tile::KEYS, &value_map) ||
        !heads_map(card, s, a->out, dense_strides(s), s->heads, s->queries, STORE_ROWS, &out_map)) {
        return false;
    }
    ForwardWork work = {};
    work.plan = plan;
    work.blocks = (int)divide_up(s->queries, FORWARD_ROWS);
    work.tiles = (int64_t)work.blocks * s->batch * s->heads;
    // Heads of a group share keys and values.
    work.near = attention_near(2 * s->keys * D * (int64_t)sizeof(T)) * plan.share;
    work.lse = a->lse;
    if (work.tiles > INT32_MAX / 2) {
        return false;
    }
    work.ticket = (int *)card_workspace(card, sizeof(int));
    if (work.ticket == NULL) {
        return true;  // the card remembers the failure
    }
    card_failed(card, "attention_forward", cudaMemsetAsync(work.ticket, 0, sizeof(int), card->stream));
    int64_t grid = work.tiles < card->multiprocessors ? work.tiles : card->multiprocessors;
    launch(card, "attention_forward", attention_forward_sm90_kernel<T, D, MODIFIED>, dim3((unsigned)grid), FORWARD_THREADS,
           Tile::BYTES, query_map, key_map, value_map, out_map, work);
    return true;
}

template <typename T> static bool forward_widths(Card *card, const AttentionForward *a, const AttentionPlan &plan) {
    if (plan.width <= 64) {
        return plan.modified ? forward_launch<T, 64, true>(card, a, plan) : forward_launch<T, 64, false>(card, a, plan);
    }
    if (plan.width <= 128) {
        return plan.modified ? forward_launch<T, 128, true>(card, a, plan) : forward_launch<T, 128, false>(card, a, plan);
    }
    return plan.modified ? forward_launch<T, 256, true>(card, a, plan) : forward_launch<T, 256, false>(card, a, plan);
}

// Takes bf16 and fp16 without dropout and key_lengths, head widths that are multiples of 8 up to 256.
bool attention_forward_sm90(Card *card, const AttentionForward *a) {
    const AttentionShape *s = &a->shape;
    DataType type = card->device.type;
    if (!sm90_takes(s) || !attention_packs(card, s, &a->in)) {
        return false;
    }
    AttentionPlan plan = attention_plan(s, &a->in);
    return type == TYPE_BF16 ? forward_widths<bf16>(card, a, plan) : forward_widths<fp16>(card, a, plan);
}

}  // namespace BACKEND
