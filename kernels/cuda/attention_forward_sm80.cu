// Attention forward on the tensor cores of sm_80 and later (FlashAttention-2: Dao 2023), any head width up to 256.
//
// A block of four warps owns 128 queries of one head (64 where the head is wider than 128) and walks over the blocks of 64 keys
// that they see (32 for widths of 96 and 128, whose accumulators leave less room), from the diagonal backwards:
//
//     S = Q K^T;  m' = max(m, rowmax S);  P = 2^(S - m');  l = l 2^(m - m') + rowsum P;  O = O 2^(m - m') + P V
//
// S, P and O stay in registers. The copy of V runs behind Q K^T, that of the next K behind the softmax and P V. Only blocks on
// the diagonal, at a window's edge or at the start of a document are masked; blocks that nothing is seen of are not visited.
//
// Shared memory: rows and twice the keys of D elements, 48.5 KiB for D = 128, so two blocks run on a multiprocessor.
// Deterministic: a query's sums have one order. Writes out and lse (=).
#include "kernels/cuda/attention_sm80.h"

namespace BACKEND {

static const float ln_2 = 0.693147180559945f;

// The rows of a thread: row[m][half] = first + 16 m + 8 half.
template <int M> struct Softmax {
    float most[M][2], sum[M][2];  // of unscaled scores, and over this thread's columns only
};

// Soft-cap and slopes: scores become units of log2.
template <int M, int N>
__device__ __forceinline__ void modify_scores(const AttentionPlan &p, float slope, int row, int key, float (&s)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float derivative;
                s[m][n][i] = attention_score(p, slope, s[m][n][i], row + 16 * m + i / 2 * 8, key + 8 * n + i % 2, &derivative);
            }
        }
    }
}

// sight[r]: the first and the last key that row r from this thread's first sees.
template <int M, int N> __device__ __forceinline__ void mask_scores(const int2 *sight, int key, float (&s)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int first = sight[16 * m + 8 * half].x - key, last = sight[16 * m + 8 * half].y - key;
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    int k = 8 * n + i;
                    s[m][n][2 * half + i] = k >= first && k <= last ? s[m][n][2 * half + i] : -INFINITY;
                }
            }
        }
    }
}

// Turns scores into probabilities relative to the running maximum; shrinks what was summed before.
template <int M, int N, int OUT>
__device__ __forceinline__ void softmax_step(Softmax<M> &softmax, float unit, float (&s)[M][N][4], float (&out)[M][OUT][4]) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = softmax.most[m][half];
#pragma unroll
            for (int n = 0; n < N; n++) {
                most = fmaxf(most, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
            }
            most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFFu, most, 1));
            most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFFu, most, 2));
            float zero = most == -INFINITY ? 0.0f : most * unit;  // a row may see nothing of this block
            float shrink = exp2_fast(softmax.most[m][half] * unit - zero), sum = softmax.sum[m][half] * shrink;
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    s[m][n][i] = exp2_fast(s[m][n][i] * unit - zero);
                    sum += s[m][n][i];
                }
            }
#pragma unroll
            for (int n = 0; n < OUT; n++) {
                out[m][n][2 * half] *= shrink;
                out[m][n][2 * half + 1] *= shrink;
            }
            softmax.most[m][half] = most;
            softmax.sum[m][half] = sum;
        }
    }
}

// Zeroes what dropout drops of packed probabilities; what is kept is scaled with the output.
template <int K>
__device__ __forceinline__ void drop(const AttentionPlan &p, uint64_t draws, int row, int key, uint32_t (&packed)[K][4]) {
    uint32_t kept = tile_kept<2 * K, false>(p, draws, row, key);
#pragma unroll
    for (int k = 0; k < K; k++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t two = kept >> (8 * k + 2 * i % 4 + i / 2 * 4);
            packed[k][i] &= (two & 1 ? 0xFFFFu : 0) | (two & 2 ? 0xFFFF0000u : 0);
        }
    }
}

template <typename T, int D> struct ForwardTile {
    static const int M = D <= 128 ? 2 : 1, ROWS = 64 * M, KEYS = D == 96 || D == 128 ? 32 : 64;
    static const int TILES = (ROWS + 2 * KEYS) * Tile<D>::BYTES, SHARED_BYTES = TILES + ROWS * 8;
    static_assert(SHARED_BYTES <= 99 * 1024, "what a block of sm_86 and sm_89 may have");
};

template <typename T, int D>
__global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_forward_kernel(const AttentionPlan p, int near, const T *q, const T *k, const T *v, T *out, float *lse) {
    const int M = ForwardTile<T, D>::M, ROWS = ForwardTile<T, D>::ROWS, KEYS = ForwardTile<T, D>::KEYS, N = KEYS / 8;
    DYNAMIC_SHARED(memory);
    uint32_t queries = shared_address(memory), keys = queries + ROWS * Tile<D>::BYTES, values = keys + KEYS * Tile<D>::BYTES;
    AttentionPlace place = attention_place(blockIdx.x, p.batch, p.heads, (p.queries + ROWS - 1) / ROWS, near, true);
    int b = place.b, h = place.head, query = place.block * ROWS, group = h / p.share;
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    int row = query + warp * 16 * M + lane / 4, column = lane % 4 * 2;  // this thread's first score
    int count = attention_keys(p, b);
    k += attention_part(p, p.k_stride, b, group);
    v += attention_part(p, p.v_stride, b, group);
    AttentionBlocks blocks = attention_key_blocks<ROWS, KEYS>(p, b, query);
    float unit = p.modified ? 1.0f : p.scale_log2;

    tile_load<T, ROWS, D>(queries, q + attention_part(p, p.q_stride, b, h) + query * p.q_stride.token, p.q_stride.token,
                          p.queries - query, p.width);
    int key = (blocks.end - 1) * KEYS;
    tile_load<T, KEYS, D>(keys, k + key * p.k_stride.token, p.k_stride.token, count - key, p.width);
    copy_async_commit();
    int2 *sight = (int2 *)(memory + ForwardTile<T, D>::TILES);  // what each query sees first and last
    if (threadIdx.x < ROWS) {
        int position = query + (int)threadIdx.x + attention_offset(p, b);
        sight[threadIdx.x] =
            make_int2(attention_least(p, b, query + (int)threadIdx.x), position < count ? position : count - 1);
    }

    uint32_t left = Tile<D>::left(queries + warp * 16 * M * Tile<D>::BYTES), right = Tile<D>::right(keys);
    uint32_t right_values = Tile<D>::right_trans(values);
    Softmax<M> softmax;
    float o[M][D / 8][4], s[M][N][4];
#pragma unroll
    for (int m = 0; m < M; m++) {
        softmax.most[m][0] = softmax.most[m][1] = -INFINITY;
        softmax.sum[m][0] = softmax.sum[m][1] = 0;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            o[m][n][0] = o[m][n][1] = o[m][n][2] = o[m][n][3] = 0;
        }
    }
    for (int j = blocks.end - 1; j >= blocks.begin; j--) {
        key = j * KEYS;
        copy_async_wait<0>();  // these keys (and the queries) are there, and nobody needs the values before any more
        __syncthreads();
        tile_load<T, KEYS, D>(values, v + key * p.v_stride.token, p.v_stride.token, count - key, p.width);
        copy_async_commit();
        tile_scores<T, D, M, N>(s, left, right);
        copy_async_wait<0>();  // these values are there, and nobody needs the keys any more
        __syncthreads();
        if (j > blocks.begin) {
            tile_load<T, KEYS, D>(keys, k + (key - KEYS) * p.k_stride.token, p.k_stride.token, KEYS, p.width);
            copy_async_commit();
        }
        if (p.modified) {
            modify_scores<M, N>(p, attention_slope(p, h), row + attention_offset(p, b), key + column, s);
        }
        if (j < blocks.whole_begin || j >= blocks.whole_end) {
            mask_scores<M, N>(sight + row - query, key + column, s);
        }
        softmax_step<M, N, D / 8>(softmax, unit, s, o);
        uint32_t packed[M][N / 2][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            tile_pack<T, N>(packed[m], s[m]);
            if (p.dropout) {
                drop<N / 2>(p, attention_draws(p, b, h), row + attention_offset(p, b) + 16 * m, key + column, packed[m]);
            }
        }
        tile_apply<T, D, M, N / 2>(o, packed, right_values);
    }

    T *to = out + ((int64_t)b * p.queries * p.heads + h) * p.width;
#pragma unroll
    for (int m = 0; m < M; m++) {
        float share[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = softmax.sum[m][half];
            sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
            sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 2);
            share[half] = sum > 0 ? (p.dropout ? p.keep_scale : 1.0f) / sum : 0.0f;
            int at = row + 16 * m + 8 * half;
            if (lane % 4 == 0 && at < p.queries && lse != NULL) {
                lse[((int64_t)b * p.heads + h) * p.queries + at] = softmax.most[m][half] * unit * ln_2 + logf(sum);
            }
        }
        int first = warp * 16 * M + 16 * m;  // rows of the queries' tile that only this warp reads
        tile_store<T, D>(o[m], share, memory + first * Tile<D>::BYTES, to + (int64_t)(query + first) * p.heads * p.width,
                         (int64_t)p.heads * p.width, p.queries - query - first, p.width);
    }
}

template <typename T, int D> static void forward(Card *card, const AttentionForward *a) {
    AttentionPlan p = attention_plan(&a->shape, &a->in);
    int64_t blocks = divide_up(p.queries, ForwardTile<T, D>::ROWS);
    int near = attention_near((int64_t)p.keys * p.width * 4 / p.share);
    launch(card, "attention_forward", attention_forward_kernel<T, D>, dim3((unsigned)(blocks * p.batch * p.heads)),
           ATTENTION_THREADS, ForwardTile<T, D>::SHARED_BYTES, p, near, (const T *)a->in.q, (const T *)a->in.k,
           (const T *)a->in.v, (T *)a->out, a->lse);
}

bool attention_forward_sm80(Card *card, const AttentionForward *a) {
    if (!attention_packs(card, &a->shape, &a->in) || !aligned_16(a->out)) {
        return false;
    }
    if (card->device.type == TYPE_BF16) {
        ATTENTION_WIDTHS(a->shape.head_width, D, forward<bf16, D>(card, a))
    } else {
        ATTENTION_WIDTHS(a->shape.head_width, D, forward<fp16, D>(card, a))
    }
    return true;
}

}  // namespace BACKEND
