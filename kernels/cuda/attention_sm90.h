// What Hopper's two attention passes share: tiles in shared memory as TMA lays them, their wgmma descriptors, maps of tensors,
// and the way of an accumulator back to global memory.
//
// A tile of R rows and D columns of 16-bit elements lies as D / 64 panels of R rows of 128 bytes each, in the 128-byte swizzle:
//
//     panel 0           panel 1                     the same bytes serve two kinds of operand:
//     row 0  d 0..63    row 0  d 64..127              rows x d   "K-major", the product runs along d
//     row 1  ...        row 1  ...                    d x rows   "MN-major", the product runs along the rows
//     ...               ...
//
// Head widths are padded to 64, 128, 192 (backward) or 256 columns by TMA itself: what lies outside of a head or of a sequence
// reads as zero and is not written.
#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/tensor_map.h"

namespace BACKEND {

enum { WARPGROUP = 128, PANEL_COLUMNS = 64, PANEL_ROW_BYTES = 128, STORE_ROWS = 64 };
static const int STORE_PANEL = STORE_ROWS * PANEL_ROW_BYTES;  // bytes of a panel of 64 rows

enum { RING_STAGES = 2 };

// A place in a ring of stages, and the parity of its round: that of the phase of `full` in which the stage is filled; one that
// fills it waits for the phase of `empty` with the other parity.
struct Ring {
    int stage;
    uint32_t parity;
    template <int STAGES = RING_STAGES> __device__ __forceinline__ void advance() {
        stage++;
        if (stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// Step `i` (16 elements) along d of `rows` rows; `panel` is the number of bytes from panel to panel.
__device__ __forceinline__ uint64_t operand_along_width(uint32_t tile, uint32_t panel, int i) {
    return wgmma_advance(wgmma_descriptor(tile, 16, 8 * PANEL_ROW_BYTES), (uint32_t)(i / 4) * panel + (uint32_t)(i % 4) * 32);
}
// Step `i` (16 rows) along the rows of a tile: the transposed operand.
__device__ __forceinline__ uint64_t operand_along_rows(uint32_t tile, uint32_t panel, int i) {
    return wgmma_advance(wgmma_descriptor(tile, panel, 8 * PANEL_ROW_BYTES), (uint32_t)i * 16 * PANEL_ROW_BYTES);
}

// All of x, which is not negative, is computed before what stands below. The assembler would put a wait for a product before
// independent arithmetic that stands above it, and then nothing hides behind the product; it does not across a branch that
// needs the arithmetic's results.
template <int COUNT> __device__ __forceinline__ void keep_before(const float (&x)[COUNT]) {
    int signs = 0;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        signs |= __float_as_int(x[i]);
    }
    if (signs < 0) {
        nap();
    }
}

// The accumulator of 64 x 16 k elements as the first operand of the product that runs along them: step i in a[i].
template <typename T, int N> __device__ __forceinline__ void pack_operand(uint32_t (&a)[N / 16][4], const float (&d)[N / 2]) {
#pragma unroll
    for (int i = 0; i < N / 16; i++) {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            a[i][r] = pack_two<T>(d[8 * i + 2 * r], d[8 * i + 2 * r + 1]);
        }
    }
}

// Writes packed accumulators of 64 x N into a tile of 64 rows whose panels lie `panel` bytes apart, from column 8 `chunk` of
// the first panel on (not past its end, but for chunk 0). All of a warpgroup.
template <int N>
__device__ __forceinline__ void store_operand(uint32_t tile, uint32_t panel, const uint32_t (&a)[N / 16][4],
                                              uint32_t chunk = 0) {
    uint32_t thread = threadIdx.x % WARPGROUP, lane = thread % 32, row = thread / 32 * 16 + lane % 16;
#pragma unroll
    for (int i = 0; i < N / 16; i++) {
        stmatrix_x4(tile + (uint32_t)(i / 4) * panel + swizzle_128(row, chunk + (uint32_t)(i % 4) * 2 + lane / 16), a[i]);
    }
}

// The accumulator d[64, N] to rows `row` .. + 63, columns `column` .. of head `head` of sequence b, by way of a tile in shared
// memory with panels `panel` bytes apart. All of a warpgroup; `barrier` is one of its own. Returns before the copy is done: the
// warpgroup's first thread has committed it.
template <typename T, int N>
__device__ __forceinline__ void store_rows(const float (&d)[N / 2], uint32_t tile, uint32_t panel, const CUtensorMap *map,
                                           int column, int head, int row, int b, int barrier) {
    uint32_t a[N / 16][4];
    pack_operand<T, N>(a, d);
    store_operand<N>(tile, panel, a);
    fence_async();
    barrier_sync(barrier, WARPGROUP);
    if (threadIdx.x % WARPGROUP == 0) {
        for (int i = 0; i < N / PANEL_COLUMNS; i++) {
            tma_store_4d(map, tile + (uint32_t)i * panel, column + i * PANEL_COLUMNS, head, row, b);
        }
        tma_store_commit();
    }
}

// Host: the map of `heads` heads of `tokens` tokens a sequence, by boxes of `rows` tokens of one head.
static inline bool heads_map(Card *card, const AttentionShape *s, const void *base, HeadStrides stride, int64_t heads,
                             int64_t tokens, int rows, CUtensorMap *map) {
    int64_t width = s->head_width;
    TensorBox box = {base,
                     card->device.type,
                     4,
                     {width, heads, tokens, s->batch},
                     {1, width, stride.token, stride.sequence},
                     {PANEL_COLUMNS, 1, rows, 1}};
    return tensor_map(card, &box, map);
}

// Of what has no strides of its own: [B,Tq,H D].
static inline HeadStrides dense_strides(const AttentionShape *s) {
    int64_t token = (int64_t)s->heads * s->head_width;
    return HeadStrides{token, s->queries * token};
}

// Host: whether Hopper's bodies take a launch, if its rows pack. All sequences stand alike, and nothing is dropped.
static inline bool sm90_takes(const AttentionShape *s) {
    return s->dropout == 0 && s->key_lengths == NULL;
}

}  // namespace BACKEND
