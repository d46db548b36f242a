// Attention backward on the tensor cores of sm_80 and later, any head width up to 256. Deterministic, without atomics.
//
//   P = 2^(S - lse);  Z = dropout factors (1 where there is none);  delta = sum over d of dout out
//   dV = (P Z)^T dout;  dP = dout V^T;  dS = P (dP Z - delta);  dQ = scale dS K;  dK = scale dS^T Q
//   (with a soft-cap dS is also multiplied by its derivative)
//
// One kernel in two roles. It owns 64 rows, of which it holds two tiles, and walks over blocks of columns:
//
//     role        rows     tiles of the rows   tiles of the columns   scores        results
//     of keys     keys     K, V                Q, dout                S^T, dP^T     dK += dS^T Q, dV += (P Z)^T dout
//     of queries  queries  Q, dout             K, V                   S, dP         dQ += dS K
//
// Scores become weights in the registers and go straight into the next product as left factors; nothing but the tiles passes
// through shared memory. In the role of keys the walk is over all heads of the group, so that dK and dV of grouped queries are
// summed in registers too, in a fixed order.
//
// The price of two passes is that S and dP are computed twice: 7 products where adding dQ to memory would take 5, 1.4 times
// the work. The other deterministic way, blocks that wait for each other to add in order, needs a workspace of dQ in fp32 and
// a scheduler that promises progress; Hopper's body may do that. Heads wider than 128 have no room in registers for both dK and
// dV and take a pass for each (8 products).
//
// Shared memory: 80 KiB for D = 128, 96 KiB for D = 256. Writes dq, dk and dv (=).
#include "kernels/cuda/attention_sm80.h"

namespace BACKEND {

enum Role { DK_AND_DV, DK, DV, DQ };

template <int D, Role ROLE> struct BackwardTile {
    static const bool KEYS = ROLE != DQ;                                             // what the rows are
    static const bool FIRST = ROLE != DV, SECOND = ROLE == DK_AND_DV || ROLE == DV;  // which results
    static const int ROWS = 64, COLUMNS = D <= 128 ? 64 : 32;
    static const int STAGES = D <= 192 ? 2 : 1;  // of the columns' first tile, which is needed at the start and at the end
    static const int ROW_TILE = ROWS * Tile<D>::BYTES, COLUMN_TILE = COLUMNS * Tile<D>::BYTES;
    static const int TILES = 2 * ROW_TILE + (STAGES + 1) * COLUMN_TILE, SHARED_BYTES = TILES + COLUMNS * 12;
    static_assert(SHARED_BYTES <= 99 * 1024, "what a block of sm_86 and sm_89 may have");
};

// What the kernel knows of a query beside its row: the log-sum-exp in units of log2, delta, and the first key it sees. Rows
// beyond the end and those that see nothing get probabilities of 0.
struct QueryFacts {
    float lse, delta;
    int least;
};
__device__ __forceinline__ QueryFacts query_facts(const AttentionPlan &p, const float *lse, const float *delta, int b, int h,
                                                  int row) {
    int64_t at = ((int64_t)b * p.heads + h) * p.queries + row;
    bool valid = row < p.queries;
    float sum = valid ? lse[at] : INFINITY;
    return QueryFacts{sum > -INFINITY ? sum * 1.4426950408889634f : INFINITY, valid ? delta[at] : 0.0f,
                      attention_least(p, b, row)};
}

// s := P Z and dp := dS, where every query sees every key and nothing changes the score.
template <bool KEYS, int N>
__device__ __forceinline__ void weights_whole(float unit, const QueryFacts (&of_row)[2], const float *lse, const float *delta,
                                              float (&s)[N][4], float (&dp)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float l = KEYS ? lse[8 * n + i % 2] : of_row[i / 2].lse, d = KEYS ? delta[8 * n + i % 2] : of_row[i / 2].delta;
            float probability = exp2_fast(s[n][i] * unit - l);
            s[n][i] = probability;
            dp[n][i] = probability * (dp[n][i] - d);
        }
    }
}

// The same in every other case. `row` and `column` are the position and the key of this thread's first score, or the other way
// round; least, lse and delta are those of columns from this thread's first on. There are `keys` keys.
template <bool KEYS, int N>
__device__ __forceinline__ void weights_any(const AttentionPlan &p, float slope, uint64_t draws, int row, int column, int keys,
                                            const QueryFacts (&of_row)[2], const int *least, const float *lse,
                                            const float *delta, float (&s)[N][4], float (&dp)[N][4]) {
    uint32_t kept = p.dropout ? tile_kept<N, KEYS>(p, draws, row, column) : 0xFFFFFFFFu;
    float keep = p.dropout ? p.keep_scale : 1.0f;
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float d = KEYS ? delta[8 * n + i % 2] : of_row[i / 2].delta;
            dp[n][i] = dp[n][i] * (kept >> (4 * n + i) & 1 ? keep : 0.0f) - d;
        }
    }
    if (p.cap > 0) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float derivative;
                s[n][i] = attention_capped(p, s[n][i], &derivative);
                dp[n][i] *= derivative;
            }
        }
    } else {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[n][i] *= p.scale_log2;
            }
        }
    }
    if (p.slopes != NULL) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int r = row + i / 2 * 8, c = column + 8 * n + i % 2, q = KEYS ? c : r, k = KEYS ? r : c;
                s[n][i] += slope * (float)(k - q);
            }
        }
    }
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int r = row + i / 2 * 8, c = column + 8 * n + i % 2, q = KEYS ? c : r, k = KEYS ? r : c;
            float l = KEYS ? lse[8 * n + i % 2] : of_row[i / 2].lse;
            int first = KEYS ? least[8 * n + i % 2] : of_row[i / 2].least;
            float probability = k >= first && k <= q && (KEYS || k < keys) ? exp2_fast(s[n][i] - l) : 0.0f;
            s[n][i] = kept >> (4 * n + i) & 1 ? probability * keep : 0.0f;
            dp[n][i] *= probability;
        }
    }
}

template <typename T> struct BackwardTensors {
    const T *q, *k, *v, *dout;
    const float *lse, *delta;
};
// Of a role: dq or dk, and dv.
template <typename T> struct BackwardResults {
    T *first, *second;
    HeadStrides first_stride, second_stride;
};

template <typename T, int D, Role ROLE>
__global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_backward_kernel(const AttentionPlan p, int near, const BackwardTensors<T> t, const BackwardResults<T> to) {
    typedef BackwardTile<D, ROLE> Shape;
    const int ROWS = Shape::ROWS, COLUMNS = Shape::COLUMNS, N = COLUMNS / 8;
    DYNAMIC_SHARED(memory);
    uint32_t row_tile = shared_address(memory), column_second = row_tile + 2 * Shape::ROW_TILE;
    uint32_t column_first = column_second + Shape::COLUMN_TILE;
    float *column_lse = (float *)(memory + Shape::TILES), *column_delta = column_lse + COLUMNS;
    int *column_least = (int *)(column_delta + COLUMNS);

    int parts = Shape::KEYS ? p.groups : p.heads;
    AttentionPlace place =
        attention_place(blockIdx.x, p.batch, parts, ((Shape::KEYS ? p.keys : p.queries) + ROWS - 1) / ROWS, near, !Shape::KEYS);
    int b = place.b, rows = place.block * ROWS, warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    int h = Shape::KEYS ? place.head * p.share : place.head, group = h / p.share;
    int row = rows + warp * 16 + lane / 4, column = lane % 4 * 2;
    int out_stride = p.heads * p.width;
    const T *keys = t.k + attention_part(p, p.k_stride, b, group), *values = t.v + attention_part(p, p.v_stride, b, group);
    const T *queries = t.q + attention_part(p, p.q_stride, b, h);
    const T *douts = t.dout + ((int64_t)b * p.queries * p.heads + h) * p.width;
    int count = Shape::KEYS ? p.queries : attention_keys(p, b);  // of columns
    AttentionBlocks blocks =
        Shape::KEYS ? attention_query_blocks<COLUMNS, ROWS>(p, b, rows) : attention_key_blocks<ROWS, COLUMNS>(p, b, rows);

    // Tiles of the rows, and the columns' first one of the first step.
    int left = (Shape::KEYS ? attention_keys(p, b) : p.queries) - rows;
    if (Shape::KEYS) {
        tile_load<T, ROWS, D>(row_tile, keys + rows * p.k_stride.token, (int)p.k_stride.token, left, p.width);
        tile_load<T, ROWS, D>(row_tile + Shape::ROW_TILE, values + rows * p.v_stride.token, (int)p.v_stride.token, left,
                              p.width);
    } else {
        tile_load<T, ROWS, D>(row_tile, queries + rows * p.q_stride.token, (int)p.q_stride.token, left, p.width);
        tile_load<T, ROWS, D>(row_tile + Shape::ROW_TILE, douts + (int64_t)rows * out_stride, out_stride, left, p.width);
    }
    int at = blocks.begin * COLUMNS;
    int stride = (int)(Shape::KEYS ? p.q_stride.token : p.k_stride.token);  // of the columns' first tile
    tile_load<T, COLUMNS, D>(column_first, (Shape::KEYS ? queries : keys) + (int64_t)at * stride, stride, count - at, p.width);
    copy_async_commit();

    QueryFacts of_row[2] = {};
    if (!Shape::KEYS) {
        of_row[0] = query_facts(p, t.lse, t.delta, b, h, row);
        of_row[1] = query_facts(p, t.lse, t.delta, b, h, row + 8);
    }
    float first[1][D / 8][4], second[1][D / 8][4], s[1][N][4], dp[1][N][4];
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            first[0][n][i] = second[0][n][i] = 0;
        }
    }
    uint32_t rows_first = Tile<D>::left(row_tile + warp * 16 * Tile<D>::BYTES), rows_second = rows_first + Shape::ROW_TILE;

    // Steps: the blocks of columns, in the role of keys for every head of the group.
    int stage = 0;
    for (int share = 0, j = blocks.begin; share < (Shape::KEYS ? p.share : 1);) {
        int next = j + 1 < blocks.end ? j + 1 : blocks.begin, next_share = next > j ? share : share + 1;
        bool more = next_share < (Shape::KEYS ? p.share : 1);
        at = j * COLUMNS;
        b = (int)computed_anew((uint32_t)b);  // keep nothing that follows from it: registers are scarce
        copy_async_wait<0>();  // the columns' first tile is there, and nobody needs the second one before any more
        __syncthreads();
        uint32_t first_tile = column_first + stage * Shape::COLUMN_TILE;
        const T *from = Shape::KEYS ? douts + share * p.width + (int64_t)at * out_stride : values + at * p.v_stride.token;
        tile_load<T, COLUMNS, D>(column_second, from, Shape::KEYS ? out_stride : (int)p.v_stride.token, count - at, p.width);
        copy_async_commit();
        from = (Shape::KEYS ? queries + next_share * p.width : keys) + (int64_t)(next * COLUMNS) * stride;
        if (Shape::STAGES == 2) {
            stage ^= 1;
            if (more) {
                tile_load<T, COLUMNS, D>(column_first + stage * Shape::COLUMN_TILE, from, stride, count - next * COLUMNS,
                                         p.width);
            }
            copy_async_commit();
        }
        if (Shape::KEYS && (int)threadIdx.x < COLUMNS) {
            QueryFacts facts = query_facts(p, t.lse, t.delta, b, h + share, at + (int)threadIdx.x);
            column_lse[threadIdx.x] = facts.lse;
            column_delta[threadIdx.x] = facts.delta;
            column_least[threadIdx.x] = facts.least;
        }
        tile_scores<T, D, 1, N>(s, rows_first, Tile<D>::right(first_tile));
        copy_async_wait<Shape::STAGES - 1>();
        __syncthreads();
        if constexpr (Shape::FIRST) {
            tile_scores<T, D, 1, N>(dp, rows_second, Tile<D>::right(column_second));
        }
        // Before whole_begin: in the role of keys that is found again with less to keep.
        bool early = Shape::KEYS ? at + attention_offset(p, b) < rows + ROWS - 1 : j < blocks.whole_begin;
        if (p.modified || p.dropout || early || j >= blocks.whole_end) {
            row = rows + warp * 16 + (int)computed_anew(threadIdx.x % 32) / 4;
            int offset = attention_offset(p, b);
            weights_any<Shape::KEYS, N>(p, attention_slope(p, h + share), attention_draws(p, b, h + share),
                                        Shape::KEYS ? row : row + offset, Shape::KEYS ? at + column + offset : at + column,
                                        count, of_row, column_least + column, column_lse + column, column_delta + column, s[0],
                                        dp[0]);
        } else {
            weights_whole<Shape::KEYS, N>(p.scale_log2, of_row, column_lse + column, column_delta + column, s[0], dp[0]);
        }
        uint32_t packed[1][N / 2][4];
        if (Shape::SECOND) {
            tile_pack<T, N>(packed[0], s[0]);
            tile_apply<T, D, 1, N / 2>(second, packed, Tile<D>::right_trans(column_second));
        }
        if (Shape::FIRST) {
            tile_pack<T, N>(packed[0], dp[0]);
            tile_apply<T, D, 1, N / 2>(first, packed, Tile<D>::right_trans(first_tile));
        }
        if (Shape::STAGES == 1) {
            __syncthreads();
            if (more) {
                tile_load<T, COLUMNS, D>(column_first, from, stride, count - next * COLUMNS, p.width);
                copy_async_commit();
            }
        }
        j = next;
        share = next_share;
    }

    // The rows' tiles have served: each warp writes by way of its own rows of them.
    unsigned char *own = memory + warp * 16 * Tile<D>::BYTES;
    int64_t token = rows + warp * 16;
    left = (Shape::KEYS ? p.keys : p.queries) - rows - warp * 16;
    if (Shape::FIRST) {
        float factor[2] = {p.scale, p.scale};
        T *into = to.first + attention_part(p, to.first_stride, b, Shape::KEYS ? group : h) + token * to.first_stride.token;
        tile_store<T, D>(first[0], factor, own, into, to.first_stride.token, left, p.width);
    }
    if (Shape::SECOND) {
        float factor[2] = {1, 1};
        T *into = to.second + attention_part(p, to.second_stride, b, group) + token * to.second_stride.token;
        tile_store<T, D>(second[0], factor, own, into, to.second_stride.token, left, p.width);
    }
}

template <typename T, int D, Role ROLE>
static void backward_role(Card *card, const AttentionBackward *a, const AttentionPlan &p, const float *delta) {
    typedef BackwardTile<D, ROLE> Shape;
    int64_t blocks = divide_up(Shape::KEYS ? p.keys : p.queries, Shape::ROWS), parts = Shape::KEYS ? p.groups : p.heads;
    // What stays in the cache: two columns of T rows for each head.
    int near = attention_near((int64_t)(Shape::KEYS ? p.queries : p.keys) * p.width * 4 * (Shape::KEYS ? p.share : 1) /
                              (Shape::KEYS ? 1 : p.share));
    const AttentionRows *to = &a->gradients;
    BackwardTensors<T> tensors = {
        (const T *)a->in.q, (const T *)a->in.k, (const T *)a->in.v, (const T *)a->dout, a->lse, delta};
    BackwardResults<T> results = {(T *)(Shape::KEYS ? to->k : to->q), (T *)to->v, Shape::KEYS ? to->k_stride : to->q_stride,
                                  to->v_stride};
    launch(card, "attention_backward", attention_backward_kernel<T, D, ROLE>, dim3((unsigned)(blocks * p.batch * parts)),
           ATTENTION_THREADS, Shape::SHARED_BYTES, p, near, tensors, results);
}

template <typename T, int D> static void backward(Card *card, const AttentionBackward *a, const float *delta) {
    AttentionPlan p = attention_plan(&a->shape, &a->in);
    if constexpr (D <= 128) {
        backward_role<T, D, DK_AND_DV>(card, a, p, delta);
    } else {
        backward_role<T, D, DK>(card, a, p, delta);
        backward_role<T, D, DV>(card, a, p, delta);
    }
    backward_role<T, D, DQ>(card, a, p, delta);
}

bool attention_backward_sm80(Card *card, const AttentionBackward *a, const float *delta) {
    if (!attention_packs(card, &a->shape, &a->in) || !attention_packs(card, &a->shape, &a->gradients) || !aligned_16(a->dout)) {
        return false;
    }
    if (card->device.type == TYPE_BF16) {
        ATTENTION_WIDTHS(a->shape.head_width, D, backward<bf16, D>(card, a, delta))
    } else {
        ATTENTION_WIDTHS(a->shape.head_width, D, backward<fp16, D>(card, a, delta))
    }
    return true;
}

}  // namespace BACKEND
