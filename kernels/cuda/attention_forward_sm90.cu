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
//     Q  2 tiles of 64 queries                    16    32    64
//     K  2 stages of a block of keys              32    64    80
//     V  2 stages                                 32    64    80
//     O  2 tiles of 64 queries                    16    32   (in Q's place)
//                                                 96   192   224
//
// A consumer hides the softmax of a block behind the product of the block before it, and the two consumers hide theirs behind
// each other's products (for D <= 128; `turn` are named barriers):
//
//     consumer 0   S1 | O += P0 V0 | softmax 1 ........ | S2 | O += P1 V1 | softmax 2 ......
//                      turn of 1 -> \                turn of 0 ^
//     consumer 1                     S1 | O += P0 V0 | softmax 1 ........ | S2 | ...
//
//   who waits for whom, by mbarriers (full: bytes have come; empty: both consumers have read):
//     producer  -- k_full[stage], v_full[stage] -->  consumers  -- k_empty[stage], v_empty[stage] -->  producer
//     producer  -- q_full[w] (and the tile's number) -->  consumer w  -- q_empty[w] -->  producer
//
// Scores are kept in units of log2, so that P is one FMA and one exp2 an element. P goes from the accumulator of the first
// product into the A operand of the second without leaving its registers: their layouts agree. Blocks of keys that no query of
// the tile sees are skipped, and only blocks on an edge (the diagonal, a document's start, the window's) are masked.
//
// One block a multiprocessor stays for the whole launch and takes tiles by ticket, the longest first within as many heads as
// the second-level cache holds keys and values of (attention_place). While a tile ends, the producer is in the next one.
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
    static const bool TURNS = D <= 128;  // above, there are no registers to spare and the products outweigh the softmax
    static const bool OUT_APART = D <= 128;
    static const uint32_t QUERY_BYTES = PANELS * STORE_PANEL;  // of one consumer
    static const uint32_t KEY_PANEL = KEYS * PANEL_ROW_BYTES, KEY_BYTES = PANELS * KEY_PANEL;
    // Places in shared memory.
    static const uint32_t QUERY = 0, KEY = QUERY + FORWARD_CONSUMERS * QUERY_BYTES, VALUE = KEY + FORWARD_STAGES * KEY_BYTES;
    static const uint32_t OUT = OUT_APART ? VALUE + FORWARD_STAGES * KEY_BYTES : QUERY;
    static const uint32_t BARRIERS = VALUE + FORWARD_STAGES * KEY_BYTES + (OUT_APART ? FORWARD_CONSUMERS * QUERY_BYTES : 0);
    static const uint32_t BYTES = BARRIERS + 256;
};

// The addresses of the mbarriers, from ForwardTile::BARRIERS on, and behind them the tile's number for each consumer.
struct ForwardBarriers {
    uint32_t base;
    __device__ uint32_t q_full(int w) const {
        return base + 8u * (uint32_t)w;
    }
    __device__ uint32_t q_empty(int w) const {
        return base + 8u * (uint32_t)(FORWARD_CONSUMERS + w);
    }
    __device__ uint32_t k_full(int stage) const {
        return base + 8u * (uint32_t)(2 * FORWARD_CONSUMERS + stage);
    }
    __device__ uint32_t k_empty(int stage) const {
        return base + 8u * (uint32_t)(2 * FORWARD_CONSUMERS + FORWARD_STAGES + stage);
    }
    __device__ uint32_t v_full(int stage) const {
        return base + 8u * (uint32_t)(2 * FORWARD_CONSUMERS + 2 * FORWARD_STAGES + stage);
    }
    __device__ uint32_t v_empty(int stage) const {
        return base + 8u * (uint32_t)(2 * FORWARD_CONSUMERS + 3 * FORWARD_STAGES + stage);
    }
};
enum { FORWARD_BARRIERS = 2 * FORWARD_CONSUMERS + 4 * FORWARD_STAGES };

// What all tiles of a launch share.
struct ForwardWork {
    AttentionPlan plan;
    int64_t tiles;
    int blocks, near;  // blocks of queries of a sequence
    int *ticket;       // 0 at first
    float *lse;
};

// ---- The producer: one thread

template <int D>
__device__ __forceinline__ void forward_produce(const ForwardWork &work, ForwardBarriers barriers, uint32_t shared,
                                                volatile int *tile_of, const CUtensorMap *query_map, const CUtensorMap *key_map,
                                                const CUtensorMap *value_map) {
    typedef ForwardTile<D> Tile;
    const AttentionPlan &plan = work.plan;
    tma_prefetch(query_map);
    tma_prefetch(key_map);
    tma_prefetch(value_map);
    Ring ring = {0, 0};
    uint32_t parity = 0;
    for (int64_t tile = blockIdx.x; tile < work.tiles; tile = (int64_t)gridDim.x + atomicAdd(work.ticket, 1)) {
        AttentionPlace place = attention_place(tile, plan.batch, plan.heads, work.blocks, work.near, true);
        int row = place.block * FORWARD_ROWS, group = place.head / plan.share;
        for (int w = 0; w < FORWARD_CONSUMERS; w++) {
            mbarrier_wait(barriers.q_empty(w), parity ^ 1);
            tile_of[w] = (int)tile;
            mbarrier_expect(barriers.q_full(w), Tile::QUERY_BYTES);
            for (int i = 0; i < Tile::PANELS; i++) {
                tma_load_4d(shared + Tile::QUERY + (uint32_t)w * Tile::QUERY_BYTES + (uint32_t)i * STORE_PANEL, query_map,
                            barriers.q_full(w), i * PANEL_COLUMNS, place.head, row + w * 64, place.b);
            }
        }
        parity ^= 1;
        AttentionBlocks blocks = attention_key_blocks<FORWARD_ROWS, Tile::KEYS, true>(plan, place.b, row);
#pragma unroll 1
        for (int n = blocks.end - 1; n >= blocks.begin; n--) {
            uint32_t stage = (uint32_t)ring.stage * Tile::KEY_BYTES;
            mbarrier_wait(barriers.k_empty(ring.stage), ring.parity ^ 1);
            mbarrier_expect(barriers.k_full(ring.stage), Tile::KEY_BYTES);
            for (int i = 0; i < Tile::PANELS; i++) {
                tma_load_4d(shared + Tile::KEY + stage + (uint32_t)i * Tile::KEY_PANEL, key_map, barriers.k_full(ring.stage),
                            i * PANEL_COLUMNS, group, n * Tile::KEYS, place.b);
            }
            mbarrier_wait(barriers.v_empty(ring.stage), ring.parity ^ 1);
            mbarrier_expect(barriers.v_full(ring.stage), Tile::KEY_BYTES);
            for (int i = 0; i < Tile::PANELS; i++) {
                tma_load_4d(shared + Tile::VALUE + stage + (uint32_t)i * Tile::KEY_PANEL, value_map,
                            barriers.v_full(ring.stage), i * PANEL_COLUMNS, group, n * Tile::KEYS, place.b);
            }
            ring.advance();
        }
    }
    for (int w = 0; w < FORWARD_CONSUMERS; w++) {
        mbarrier_wait(barriers.q_empty(w), parity ^ 1);
        tile_of[w] = -1;
        mbarrier_arrive(barriers.q_full(w));
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
    int query[2], least[2];  // the row, and the row of the first key that it sees
    float most[2], sum[2];   // the running maximum, in units of log2, and sum (this thread's columns)
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
        s[i] += slope * (float)(key + i / 4 * 8 + i % 2 - rows.query[i / 2 % 2]);
    }
}

// The keys end at row `keys`.
template <int KEYS>
__device__ __forceinline__ void mask_scores(float (&s)[KEYS / 2], const ForwardRows &rows, int key, int keys) {
    unsigned seen[2];  // how many each sees
    int from[2] = {key - rows.least[0], key - rows.least[1]};
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int end = rows.query[r] < keys ? rows.query[r] + 1 : keys;
        seen[r] = end > rows.least[r] ? (unsigned)(end - rows.least[r]) : 0;
    }
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) {
        s[i] = (unsigned)(from[i / 2 % 2] + i / 4 * 8 + i % 2) < seen[i / 2 % 2] ? s[i] : -INFINITY;
    }
}

// s becomes exp(score - new maximum); `shrink` is the factor for what was summed up with the old one. The maximum is kept as it
// is subtracted, scaled and rounded, so that shrink makes good just what changed.
template <int KEYS>
__device__ __forceinline__ void softmax(float (&s)[KEYS / 2], ForwardRows &rows, float unit, float (&shrink)[2]) {
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
        float zero = most == -INFINITY ? 0 : most;  // a block may be hidden from a row altogether
        shrink[r] = exp2_fast(rows.most[r] - zero);
        rows.most[r] = most;
        float sum = 0;
#pragma unroll
        for (int i = 0; i < KEYS / 8; i++) {
            s[4 * i + 2 * r] = exp2_fast(s[4 * i + 2 * r] * unit - zero);
            s[4 * i + 2 * r + 1] = exp2_fast(s[4 * i + 2 * r + 1] * unit - zero);
            sum += s[4 * i + 2 * r] + s[4 * i + 2 * r + 1];
        }
        rows.sum[r] = rows.sum[r] * shrink[r] + sum;
    }
}

template <int D> __device__ __forceinline__ void scale_rows(float (&o)[D / 2], const float (&factor)[2]) {
#pragma unroll
    for (int i = 0; i < D / 2; i++) {
        o[i] *= factor[i / 2 % 2];
    }
}

// ---- A consumer: all tiles of this block

template <typename T, int D, bool MODIFIED>
__device__ __forceinline__ void forward_consume(const ForwardWork &work, ForwardBarriers barriers, uint32_t shared,
                                                const volatile int *tile_of, const CUtensorMap *out_map, int w) {
    typedef ForwardTile<D> Tile;
    const int KEYS = Tile::KEYS;
    const AttentionPlan &plan = work.plan;
    int thread = (int)threadIdx.x % WARPGROUP, lane = thread % 32;
    uint32_t query = shared + Tile::QUERY + (uint32_t)w * Tile::QUERY_BYTES;
    uint32_t out = shared + Tile::OUT + (uint32_t)w * Tile::QUERY_BYTES;
    float unit = MODIFIED ? 1.0f : plan.scale_log2;
    bool elected = thread == 0;
    Ring ring = {0, 0};
    uint32_t parity = 0;
    if (Tile::TURNS && w == 1) {
        barrier_arrive(FORWARD_TURN, 2 * WARPGROUP);  // consumer 0 begins
    }
    for (;;) {
        mbarrier_wait(barriers.q_full(w), parity);
        int tile = __shfl_sync(0xFFFFFFFFu, tile_of[w], 0);  // tells the compiler that a warp goes one way
        if (tile < 0) {
            break;
        }
        parity ^= 1;
        AttentionPlace place = attention_place(tile, plan.batch, plan.heads, work.blocks, work.near, true);
        int row = place.block * FORWARD_ROWS;
        AttentionBlocks blocks = attention_key_blocks<FORWARD_ROWS, Tile::KEYS, true>(plan, place.b, row);
        row += w * 64;
        float slope = MODIFIED ? attention_slope(plan, place.head) : 0;
        ForwardRows rows;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            rows.query[r] = row + thread / 32 * 16 + lane / 4 + 8 * r;
            rows.least[r] = attention_least<true>(plan, place.b, rows.query[r]) - plan.offset;
            rows.most[r] = -INFINITY;
            rows.sum[r] = 0;
        }
        float s[KEYS / 2], o[D / 2], shrink[2];
        uint32_t p[KEYS / 16][4];
        int key = (blocks.end - 1) * KEYS + lane % 4 * 2 - plan.offset;

        mbarrier_wait(barriers.k_full(ring.stage), ring.parity);
        issue_scores<T, D>(s, query, shared + Tile::KEY + (uint32_t)ring.stage * Tile::KEY_BYTES);
#pragma unroll
        for (int i = 0; i < D / 2; i++) {
            o[i] = 0;
        }
        wgmma_wait<0>();
        registers_fence(s);
        if (elected) {
            mbarrier_arrive(barriers.k_empty(ring.stage));
        }
        if (MODIFIED) {
            modify_scores<KEYS>(s, plan, slope, rows, key);
        }
        mask_scores<KEYS>(s, rows, key, plan.keys - plan.offset);  // the last block of a tile is nearly always on an edge
        softmax<KEYS>(s, rows, unit, shrink);
        pack_operand<T, KEYS>(p, s);

        for (int n = blocks.end - 2; n >= blocks.begin; n--) {
            Ring before = ring;
            ring.advance();
            key -= KEYS;
            mbarrier_wait(barriers.k_full(ring.stage), ring.parity);
            if (Tile::TURNS) {
                barrier_sync(FORWARD_TURN + w, 2 * WARPGROUP);
            }
            registers_fence(o);
            issue_scores<T, D>(s, query, shared + Tile::KEY + (uint32_t)ring.stage * Tile::KEY_BYTES);
            mbarrier_wait(barriers.v_full(before.stage), before.parity);
            issue_values<T, D>(o, p, shared + Tile::VALUE + (uint32_t)before.stage * Tile::KEY_BYTES);
            if (Tile::TURNS) {
                barrier_arrive(FORWARD_TURN + 1 - w, 2 * WARPGROUP);
            }
            wgmma_wait<1>();
            registers_fence(s);
            if (elected) {
                mbarrier_arrive(barriers.k_empty(ring.stage));
            }
            if (MODIFIED) {
                modify_scores<KEYS>(s, plan, slope, rows, key);
            }
            if (n >= blocks.whole_end || n < blocks.whole_begin) {
                mask_scores<KEYS>(s, rows, key, plan.keys - plan.offset);
            }
            softmax<KEYS>(s, rows, unit, shrink);
            keep_before(rows.sum);  // the product O += P V hides the softmax
            wgmma_wait<0>();
            registers_fence(o);
            if (elected) {
                mbarrier_arrive(barriers.v_empty(before.stage));
            }
            pack_operand<T, KEYS>(p, s);
            scale_rows<D>(o, shrink);
        }
        if (Tile::OUT_APART && lane == 0) {
            mbarrier_arrive(barriers.q_empty(w));  // every warp has read its tile's number
        }
        mbarrier_wait(barriers.v_full(ring.stage), ring.parity);
        registers_fence(o);
        issue_values<T, D>(o, p, shared + Tile::VALUE + (uint32_t)ring.stage * Tile::KEY_BYTES);

        float share[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float sum = rows.sum[r];
            sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
            sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 2);
            share[r] = sum > 0 ? 1.0f / sum : 0.0f;  // 0: a row that sees nothing
            if (lane % 4 == 0 && rows.query[r] < plan.queries && work.lse != NULL) {
                work.lse[((int64_t)place.b * plan.heads + place.head) * plan.queries + rows.query[r]] =
                    rows.most[r] * 0.693147180559945f + logf(sum);
            }
        }
        wgmma_wait<0>();
        registers_fence(o);
        if (elected) {
            mbarrier_arrive(barriers.v_empty(ring.stage));
        }
        ring.advance();
        scale_rows<D>(o, share);
        if (Tile::OUT_APART) {
            if (elected) {
                tma_store_wait_read<0>();  // of the tile before
            }
            barrier_sync(FORWARD_STORE + w, WARPGROUP);
        }
        store_rows<T, D>(o, out, STORE_PANEL, out_map, 0, place.head, row, place.b, FORWARD_STORE + w);
        if (!Tile::OUT_APART && lane == 0) {
            tma_store_wait_read<0>();  // of the one thread that has stored
            mbarrier_arrive(barriers.q_empty(w));
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
    volatile int *tile_of = (volatile int *)(memory + Tile::BARRIERS + FORWARD_BARRIERS * 8);
    if (threadIdx.x == 0) {
        for (int w = 0; w < FORWARD_CONSUMERS; w++) {
            mbarrier_init(barriers.q_full(w), 1);
            mbarrier_init(barriers.q_empty(w), WARPGROUP / 32);
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
            forward_produce<D>(work, barriers, shared, tile_of, &query_map, &key_map, &value_map);
        }
    } else {
        registers_grow<232>();
        forward_consume<T, D, MODIFIED>(work, barriers, shared, tile_of, &out_map, warpgroup - 1);
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
