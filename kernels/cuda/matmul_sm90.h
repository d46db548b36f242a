// The matrix product of Hopper: one persistent kernel, a template over tile, form and epilogue. Device code of matmul*_sm90.cu.
//
// A block is three warpgroups. The first one's first warp loads tiles of A and B with TMA into a ring of stages; the other
// two multiply them (wgmma), each 64 of the tile's 128 rows, and finish their own part of C. Stages are handed over by two
// mbarriers each: `full` (the bytes have come) and `empty` (all warps have read them). The loader runs ahead over the end of a
// tile, so the next tile's first stages come in while the last one is finished; the two consumers run apart by as much as the
// ring allows, so that one finishes while the other has the tensor cores.
//
//   one stage, 64 along K                            a block's work: tile (row, column) of C, a range of K
//   +--------------+-----------------------------+     A tile 128 x 64, its two halves of 64 rows for the two consumers
//   | A 128 x 64   |  B COLUMNS x 64             |     B tile COLUMNS x 64, read by both
//   +--------------+-----------------------------+
//
// Two blocks of a cluster take the tiles (2 i, j) and (2 i + 1, j): they share B's tile, and each loads one half of it into
// both.
//
// Operands lie in shared memory as TMA writes them with the 128-byte swizzle:
//   K-major    rows of 64 elements along K (128 bytes), one below the other; a step of 16 along K is 32 bytes
//   MN-major   boxes of 64 (MN) x 64 (K), 8 KiB each, rows along MN; a step of 16 along K is 16 rows = 2048 bytes
//
// By the numbers, for a tile of 128 x 256 on a card of 132 multiprocessors:
//   shared memory   4 stages of 48 KiB, 4 KiB for each consuming warp: 229,440 of 232,448 bytes
//   registers       168 at launch; 40 for the loader, 232 for a consumer, 128 of them accumulators
//   tensor cores    a stage takes 1024 cycles (4 wgmma of m64n256k16 for each consumer, 128 cycles each)
//   shared memory   wgmma reads 10 KiB in 128 cycles, 80 of 128 bytes a cycle
//   L2              32 KiB a stage with the cluster, 48 KiB without: 32 or 48 bytes a cycle, of about 46 that it gives each
//   so the tensor cores are the limit, but for what is before the first and after the last stage of a tile. Not measured yet.
#pragma once

#include "kernels/cuda/activation.h"
#include "kernels/cuda/matmul_sm90_plan.h"
#include "kernels/cuda/ptx.h"

namespace BACKEND {

enum {
    SM90_BOX = 64,  // elements of a row of a TMA box: 128 bytes
    SM90_BOX_BYTES = SM90_BOX * SM90_DEPTH * 2,
    SM90_CONSUMERS = 2,
    SM90_WARPS = 4 * SM90_CONSUMERS,  // those that consume
    SM90_THREADS = 128 * (1 + SM90_CONSUMERS),
    SM90_A_BYTES = SM90_ROWS * SM90_DEPTH * 2,
    SM90_PIECE_BYTES = 4096,  // of a consuming warp, for the end of a tile
};

// Shared memory of a block.
template <int COLUMNS> struct Sm90Shared {
    static const int STAGES = COLUMNS == 256 ? 4 : 6;
    static const int STAGE_BYTES = SM90_A_BYTES + COLUMNS * SM90_DEPTH * 2;
    static const int PIECES = STAGES * STAGE_BYTES;  // one for each consuming warp
    static const int BARRIERS = PIECES + SM90_WARPS * SM90_PIECE_BYTES;
    static const int BYTES = BARRIERS + 2 * STAGES * 8;
};

// ---- Who does what

typedef struct Sm90Work {
    int row, column;    // of C's tile in units of tiles
    int first, blocks;  // of K, in blocks of 64
    int part;
} Sm90Work;

// Work number `index`, for block `rank` of a cluster. Units of a group are walked down first, then the columns, then the
// groups.
__device__ __forceinline__ Sm90Work sm90_work(const Sm90Plan &plan, int index, int rank) {
    int tiles = plan.units * plan.column_tiles;
    Sm90Work work;
    work.part = index / tiles;
    index -= work.part * tiles;
    int in_group = plan.group * plan.column_tiles;
    int group = index / in_group;
    index -= group * in_group;
    int height = min(plan.group, plan.units - group * plan.group);
    work.column = index / height;
    work.row = (group * plan.group + index - work.column * height) * plan.cluster + rank;
    work.first = work.part * plan.part_blocks;
    work.blocks = min(plan.part_blocks, plan.k_blocks - work.first);
    return work;
}

// The ring of stages as one side walks it.
template <int COLUMNS> struct Sm90Ring {
    uint32_t shared;  // address of the block's shared memory
    int stage;
    uint32_t parity;

    __device__ __forceinline__ uint32_t a() const {
        return shared + stage * Sm90Shared<COLUMNS>::STAGE_BYTES;
    }
    __device__ __forceinline__ uint32_t b() const {
        return a() + SM90_A_BYTES;
    }
    __device__ __forceinline__ uint32_t full(int at) const {
        return shared + Sm90Shared<COLUMNS>::BARRIERS + at * 8;
    }
    __device__ __forceinline__ uint32_t empty(int at) const {
        return full(at) + Sm90Shared<COLUMNS>::STAGES * 8;
    }
    __device__ __forceinline__ void next() {
        if (++stage == Sm90Shared<COLUMNS>::STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// ---- Loading: one warp, most of it one thread

template <ProductForm FORM> constexpr bool SM90_A_TURNED = FORM == PRODUCT_BACKWARD_WEIGHT;  // MN-major
template <ProductForm FORM> constexpr bool SM90_B_TURNED = FORM != PRODUCT_FORWARD;

// Half `half` of B's tile, COLUMNS / 2 of its columns from `at` on, into this block or both.
template <int COLUMNS, ProductForm FORM>
__device__ __forceinline__ void sm90_load_b(const CUtensorMap *b, uint32_t to, uint32_t full, bool both, int half, int at,
                                            int k) {
    if constexpr (SM90_B_TURNED<FORM>) {
#pragma unroll
        for (int i = 0; i < COLUMNS / 2 / SM90_BOX; i++) {
            uint32_t box = to + (half * (COLUMNS / 2 / SM90_BOX) + i) * SM90_BOX_BYTES;
            if (both) {
                tma_load_2d_multicast(box, b, full, 3, at + i * SM90_BOX, k);
            } else {
                tma_load_2d(box, b, full, at + i * SM90_BOX, k);
            }
        }
    } else {
        uint32_t rows = to + half * (COLUMNS / 2) * (SM90_DEPTH * 2);
        if (both) {
            tma_load_2d_multicast(rows, b, full, 3, k, at);
        } else {
            tma_load_2d(rows, b, full, k, at);
        }
    }
}

// What the end of a tile reads is asked for when its loads begin, so that it comes from L2 when it is needed. All of the first
// warp.
__device__ __forceinline__ void sm90_prefetch_rows(const void *tensor, int64_t at, int64_t stride, int element, int rows,
                                                   int columns) {
    const char *from = (const char *)tensor + at * element;
#pragma unroll 1
    for (int i = (int)threadIdx.x; i < rows; i += 32) {
        prefetch_bytes(from + i * stride * element, (uint32_t)(columns * element));
    }
}

template <ProductForm FORM> __device__ __forceinline__ void sm90_prefetch(const Product &p, int row, int column, int columns) {
    int rows = (int)min(p.m - row, (int64_t)SM90_ROWS);
    columns = min(columns, (int)p.n - column);
    const void *added = FORM == PRODUCT_FORWARD ? p.residual : p.accumulate ? p.c : NULL;
    if (added != NULL) {
        sm90_prefetch_rows(added, row * p.c_stride + column, p.c_stride, FORM != PRODUCT_FORWARD && p.float_output ? 4 : 2,
                           rows, columns);
    }
    if (FORM == PRODUCT_BACKWARD_INPUT && p.pre != NULL) {
        int64_t at = row * p.pre_stride + column;
        sm90_prefetch_rows(p.pre, at, p.pre_stride, 2, rows, columns);
        if (p.epilogue == EPILOGUE_GATED_BACKWARD) {
            sm90_prefetch_rows(p.pre, at + p.n, p.pre_stride, 2, rows, columns);
        }
    }
}

template <int COLUMNS, ProductForm FORM>
__device__ __forceinline__ void sm90_load_tile(const CUtensorMap *a, const CUtensorMap *b, Sm90Ring<COLUMNS> &ring,
                                               const Sm90Work &work, int cluster, int rank, int row, int column, int apart) {
    for (int block = work.first; block < work.first + work.blocks; block++) {
        uint32_t full = ring.full(ring.stage);
        int k = block * SM90_DEPTH;
        mbarrier_wait(ring.empty(ring.stage), ring.parity ^ 1);
        mbarrier_expect(full, Sm90Shared<COLUMNS>::STAGE_BYTES);
        if constexpr (SM90_A_TURNED<FORM>) {
            tma_load_2d(ring.a(), a, full, row, k);
            tma_load_2d(ring.a() + SM90_BOX_BYTES, a, full, row + SM90_BOX, k);
        } else {
            tma_load_2d(ring.a(), a, full, k, row);
        }
        if (cluster == 2) {
            sm90_load_b<COLUMNS, FORM>(b, ring.b(), full, true, rank, column + rank * apart, k);
        } else {
            sm90_load_b<COLUMNS, FORM>(b, ring.b(), full, false, 0, column, k);
            sm90_load_b<COLUMNS, FORM>(b, ring.b(), full, false, 1, column + apart, k);
        }
        ring.next();
    }
}

template <int COLUMNS, ProductForm FORM>
__device__ __forceinline__ void sm90_load(const CUtensorMap *a, const CUtensorMap *b, const Product &p, const Sm90Plan &plan,
                                          uint32_t shared) {
    int more = plan.cluster - 1, rank = (int)blockIdx.x & more;  // clusters are of 1 or 2 blocks along x
    // Of a gated product the halves of B's tile are the gate's and the value's columns of the same numbers.
    bool gated = FORM == PRODUCT_FORWARD && p.epilogue == EPILOGUE_GATED;
    int columns = gated ? COLUMNS / 2 : COLUMNS, apart = gated ? (int)p.n : COLUMNS / 2;
    Sm90Ring<COLUMNS> ring = {shared, 0, 0};
    for (int index = (int)blockIdx.x >> more; index < plan.works; index += (int)gridDim.x >> more) {
        Sm90Work work = sm90_work(plan, index, rank);
        int row = work.row * SM90_ROWS, column = work.column * columns;
        sm90_prefetch<FORM>(p, row, column, columns);
        if (threadIdx.x == 0) {
            sm90_load_tile<COLUMNS, FORM>(a, b, ring, work, plan.cluster, rank, row, column, apart);
        }
        __syncwarp();
    }
}

// ---- Multiplying: a warpgroup

// The stage has been read by this warp: tells the loaders of the blocks that wrote it.
template <int COLUMNS>
__device__ __forceinline__ void sm90_release(const Sm90Ring<COLUMNS> &ring, int stage, int blocks, int lane) {
    if (lane < blocks) {
        mbarrier_arrive_remote(ring.empty(stage), lane);
    }
}

// sum = A B over `blocks` of K. The last block's products are still under way on return: wait, then release `*last`.
template <typename T, int COLUMNS, ProductForm FORM>
__device__ __forceinline__ void sm90_multiply(float (&sum)[COLUMNS / 2], Sm90Ring<COLUMNS> &ring, int consumer, int blocks,
                                              int cluster, int lane, int *last) {
    constexpr int A_TURNED = SM90_A_TURNED<FORM>, B_TURNED = SM90_B_TURNED<FORM>;
    constexpr uint64_t A_STEP = (A_TURNED ? 2048 : 32) >> 4, B_STEP = (B_TURNED ? 2048 : 32) >> 4;  // 16 along K, encoded
    int before = 0;
    for (int block = 0; block < blocks; block++) {
        mbarrier_wait(ring.full(ring.stage), ring.parity);
        // The consumer's 64 rows of A are 8 KiB in both layouts. Along MN, boxes are 8 KiB apart.
        uint64_t a = wgmma_descriptor(ring.a() + consumer * SM90_BOX_BYTES, A_TURNED ? SM90_BOX_BYTES : 16, 1024);
        uint64_t b = wgmma_descriptor(ring.b(), B_TURNED ? SM90_BOX_BYTES : 16, 1024);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < SM90_DEPTH / 16; step++) {
            wgmma_shared<COLUMNS, T, A_TURNED, B_TURNED>(sum, a + step * A_STEP, b + step * B_STEP, block > 0 || step > 0);
        }
        wgmma_commit();
        wgmma_wait<1>();  // the block before is done with
        if (block > 0) {
            sm90_release(ring, before, cluster, lane);
        }
        before = ring.stage;
        ring.next();
    }
    *last = before;
}

// ---- Finishing: a warp, which holds 16 rows; no other takes part
//
// wgmma leaves two adjacent columns of rows lane / 4 and lane / 4 + 8 to a lane, of every 8 columns (a fragment each); memory
// is moved in runs of 8 columns. Between the two, the warp's piece of shared memory turns one into the other, without bank
// conflicts, by one of two ways:
//   plain     the sums with bias and a tensor added, all in fragments, 64 columns at a time as 16-bit elements. Most products.
//   general   strips of 32 columns in fp32, then run by run whatever the epilogue asks for. Twice the traffic in shared memory;
//             activations (2 special-function instructions an element, 2048 cycles for a consumer's tile) hide it.
// What a step needs of memory is fetched steps ahead, for the first ones before the last sums are there.

typedef struct Sm90Part {
    unsigned char *piece;  // SM90_PIECE_BYTES of shared memory
    int lane;
    int row_count;     // rows of C here: at most 16, none where not positive
    int column_count;  // columns of C from `column` on
    int64_t row;       // the first, of where C lies
    int column;        // the first
} Sm90Part;

// Plain: 4 runs of a box. General: 0 the residual or (gated: the gate's) pre or the first half of a float run of C; 1 C or the
// value's pre or the second half; 2 and 3 the bias, of the gate and of the value.
typedef struct Sm90Ahead {
    uint4 at[4];
} Sm90Ahead;

template <typename T> __device__ __forceinline__ float2 unpack_two(uint32_t two);
template <> __device__ __forceinline__ float2 unpack_two<bf16>(uint32_t two) {
    return make_float2(__uint_as_float(two << 16), __uint_as_float(two & 0xFFFF0000u));
}
template <> __device__ __forceinline__ float2 unpack_two<fp16>(uint32_t two) {
    __half2 half = *(__half2 *)&two;
    return __half22float2(half);
}

// Plain: a lane's 8 runs of a box of 64 columns are 8 columns of rows lane / 8 + 4 i; a warp's access is 4 rows of 128 bytes.
// In the piece the box is a swizzled tile of 16 rows; fragment 2 j + h of it is row lane / 4 + 8 h, columns 8 j + 2 (lane % 4)
// and the next.

template <typename T>
__device__ __forceinline__ void sm90_fetch_box(Sm90Ahead &ahead, const Sm90Part &part, const void *tensor, int64_t stride,
                                               int column) {
    int row = part.lane / 8;
    column += part.lane % 8 * 8;
    const T *from = (const T *)tensor + (part.row + row) * stride + part.column + column;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        ahead.at[i] = make_uint4(0, 0, 0, 0);
        if (row + 4 * i < part.row_count && column < part.column_count) {
            ahead.at[i] = *(const uint4 *)(from + 4 * i * stride);
        }
    }
}

template <typename T>
__device__ __forceinline__ void sm90_add_bias(float (&x)[32], const Sm90Part &part, const void *bias, int column) {
    column += part.lane % 4 * 2;
    const T *from = (const T *)bias + part.column + column;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float2 two = make_float2(0.0f, 0.0f);
        if (column + 8 * j < part.column_count) {
            two = unpack_two<T>(*(const uint32_t *)(from + 8 * j));
        }
        x[4 * j] += two.x;
        x[4 * j + 1] += two.y;
        x[4 * j + 2] += two.x;
        x[4 * j + 3] += two.y;
    }
}

// `fragments`: the address in the piece that this lane gives to ldmatrix and stmatrix for the first 16 columns; `rows`: the
// offset in it of this lane's first run.
template <typename T>
__device__ __forceinline__ void sm90_add_box(float (&x)[32], const Sm90Part &part, const Sm90Ahead &ahead, uint32_t fragments,
                                             uint32_t rows) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        *(uint4 *)(part.piece + (rows ^ (uint32_t)(i % 2 * 64)) + i * 512) = ahead.at[i];
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t four[4];
        ldmatrix_x4(four, fragments ^ (uint32_t)(i * 32));
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float2 two = unpack_two<T>(four[j]);
            x[8 * i + 2 * j] += two.x;
            x[8 * i + 2 * j + 1] += two.y;
        }
    }
}

template <typename T>
__device__ __forceinline__ void sm90_store_box(const float (&x)[32], const Sm90Part &part, void *tensor, int64_t stride,
                                               int column, uint32_t fragments, uint32_t rows) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t four[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            four[j] = pack_two<T>(x[8 * i + 2 * j], x[8 * i + 2 * j + 1]);
        }
        stmatrix_x4(fragments ^ (uint32_t)(i * 32), four);
    }
    __syncwarp();
    int row = part.lane / 8;
    column += part.lane % 8 * 8;
    T *to = (T *)tensor + (part.row + row) * stride + part.column + column;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (row + 4 * i < part.row_count && column < part.column_count) {
            *(uint4 *)(to + 4 * i * stride) = *(const uint4 *)(part.piece + (rows ^ (uint32_t)(i % 2 * 64)) + i * 512);
        }
    }
}

// What the plain way adds, rows c_stride apart; NULL: nothing.
template <ProductForm FORM> __device__ __forceinline__ const void *sm90_added(const Product &p) {
    return FORM == PRODUCT_FORWARD ? p.residual : p.accumulate ? p.c : NULL;
}

template <typename T, int COLUMNS, ProductForm FORM>
__device__ __forceinline__ void sm90_finish_plain(const float (&sum)[COLUMNS / 2], Sm90Ahead &ahead, const Product &p,
                                                  const Sm90Part &part) {
    uint32_t fragments = shared_address(part.piece) + swizzle_128(part.lane % 16, part.lane / 16);
    uint32_t rows = swizzle_128(part.lane / 8, part.lane % 8);
    const void *added = sm90_added<FORM>(p);
#pragma unroll
    for (int column = 0; column < COLUMNS; column += 64) {
        if (column < part.column_count) {
            float x[32];
#pragma unroll
            for (int i = 0; i < 32; i++) {
                x[i] = sum[column / 2 + i];
            }
            if (FORM == PRODUCT_FORWARD && p.bias != NULL) {
                sm90_add_bias<T>(x, part, p.bias, column);
            }
            if (added != NULL) {
                sm90_add_box<T>(x, part, ahead, fragments, rows);
                if (column + 64 < COLUMNS) {
                    sm90_fetch_box<T>(ahead, part, added, p.c_stride, column + 64);
                }
            }
            sm90_store_box<T>(x, part, p.c, p.c_stride, column, fragments, rows);
        }
    }
}

// General: step 2 s + h takes rows 8 h .. 8 h + 7 of strip s. A lane's run is in row 8 h + lane / 8 + 4 (lane / 4 % 2), columns
// 8 (lane % 4) .. + 7 of the strip; a warp's access is 8 rows of 64 bytes.

// Offset in the piece of 16 bytes (4 columns): writers hold 2 columns of 4 adjacent rows, readers 4 columns of rows r and r
// + 4. Another even chunk 2 j is 32 j exclusive-or, 8 rows are 1024 bytes.
__device__ __forceinline__ uint32_t sm90_strip(int row, int chunk) {
    return (uint32_t)(row * 128 + ((chunk ^ (row % 4 * 2 + row / 4 % 2)) * 16));
}

__device__ __forceinline__ int sm90_run_row(const Sm90Part &part, int step) {
    return step % 2 * 8 + part.lane / 8 + part.lane / 4 % 2 * 4;
}
__device__ __forceinline__ int sm90_run_column(const Sm90Part &part, int step) {
    return step / 2 * 32 + part.lane % 4 * 8;
}

template <typename T, ProductForm FORM>
__device__ __forceinline__ void sm90_fetch_run(Sm90Ahead &ahead, const Product &p, const Sm90Part &part, int step) {
    int row = sm90_run_row(part, step), column = sm90_run_column(part, step);
    if (row >= part.row_count || column >= part.column_count) {
        return;
    }
    int64_t at = part.row + row;
    column += part.column;
    if constexpr (FORM == PRODUCT_FORWARD) {
        if (p.residual != NULL) {
            ahead.at[0] = *(const uint4 *)((const T *)p.residual + at * p.c_stride + column);
        }
        if (p.bias != NULL) {
            ahead.at[2] = *(const uint4 *)((const T *)p.bias + column);
            if (p.epilogue == EPILOGUE_GATED) {
                ahead.at[3] = *(const uint4 *)((const T *)p.bias + p.n + column);
            }
        }
    } else {
        if (p.pre != NULL) {
            ahead.at[0] = *(const uint4 *)((const T *)p.pre + at * p.pre_stride + column);
            if (p.epilogue == EPILOGUE_GATED_BACKWARD) {
                ahead.at[1] = *(const uint4 *)((const T *)p.pre + at * p.pre_stride + p.n + column);
            }
        }
        if (p.accumulate && p.float_output) {
            ahead.at[0] = *(const uint4 *)((const float *)p.c + at * p.c_stride + column);
            ahead.at[1] = *(const uint4 *)((const float *)p.c + at * p.c_stride + column + 4);
        } else if (p.accumulate) {
            ahead.at[1] = *(const uint4 *)((const T *)p.c + at * p.c_stride + column);
        }
    }
}

template <typename T> __device__ __forceinline__ void unpack_run(float (&x)[8], const uint4 &run) {
    const uint32_t two[4] = {run.x, run.y, run.z, run.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 both = unpack_two<T>(two[i]);
        x[2 * i] = both.x;
        x[2 * i + 1] = both.y;
    }
}
template <typename T> __device__ __forceinline__ void add_run(float (&x)[8], const uint4 &run) {
    float more[8];
    unpack_run<T>(more, run);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        x[i] += more[i];
    }
}
template <typename T> __device__ __forceinline__ void store_run(void *to, const float (&x)[8]) {
    *(uint4 *)to =
        make_uint4(pack_two<T>(x[0], x[1]), pack_two<T>(x[2], x[3]), pack_two<T>(x[4], x[5]), pack_two<T>(x[6], x[7]));
}

template <Activation A> __device__ __forceinline__ void activate_run(float (&x)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        x[i] = activation_value(A, x[i]);
    }
}
template <Activation A>
__device__ __forceinline__ void activate_run_both(const float (&x)[8], float (&value)[8], float (&slope)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        activation_both(A, x[i], &value[i], &slope[i]);
    }
}

// From the sums of a run to memory. x: the sums, of the gate where gated; y: then those of the value.
template <typename T, ProductForm FORM>
__device__ __forceinline__ void sm90_finish_run(float (&x)[8], float (&y)[8], const Sm90Ahead &ahead, const Product &p,
                                                int64_t row, int column) {
    T *pre = (T *)p.pre + row * p.pre_stride + column;
    if constexpr (FORM == PRODUCT_FORWARD) {
        bool gated = p.epilogue == EPILOGUE_GATED;
        if (p.bias != NULL) {
            add_run<T>(x, ahead.at[2]);
            if (gated) {
                add_run<T>(y, ahead.at[3]);
            }
        }
        if (p.pre != NULL) {
            store_run<T>(pre, x);
            if (gated) {
                store_run<T>(pre + p.n, y);
            }
        }
        WITH_ACTIVATION(p.activation, A, activate_run<A>(x));
        if (gated) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                x[i] *= y[i];
            }
        }
        if (p.residual != NULL) {
            add_run<T>(x, ahead.at[0]);
        }
    } else if constexpr (FORM == PRODUCT_BACKWARD_INPUT) {
        if (p.pre != NULL) {
            float gate[8], value[8], slope[8];
            unpack_run<T>(gate, ahead.at[0]);
            WITH_ACTIVATION(p.activation, A, activate_run_both<A>(gate, value, slope));
            if (p.epilogue == EPILOGUE_GATED_BACKWARD) {
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    y[i] = x[i] * value[i];
                }
                store_run<T>((T *)p.c + row * p.c_stride + p.n + column, y);
                unpack_run<T>(value, ahead.at[1]);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    slope[i] *= value[i];
                }
            }
#pragma unroll
            for (int i = 0; i < 8; i++) {
                x[i] *= slope[i];
            }
        }
        if (p.accumulate && !p.float_output) {
            add_run<T>(x, ahead.at[1]);
        }
    }
    if (p.float_output) {
        float *to = (float *)p.c + row * p.c_stride + column;
        if (FORM != PRODUCT_FORWARD && p.accumulate) {
            const uint32_t old[8] = {ahead.at[0].x, ahead.at[0].y, ahead.at[0].z, ahead.at[0].w,
                                     ahead.at[1].x, ahead.at[1].y, ahead.at[1].z, ahead.at[1].w};
#pragma unroll
            for (int i = 0; i < 8; i++) {
                x[i] += __uint_as_float(old[i]);
            }
        }
        ((float4 *)to)[0] = make_float4(x[0], x[1], x[2], x[3]);
        ((float4 *)to)[1] = make_float4(x[4], x[5], x[6], x[7]);
    } else {
        store_run<T>((T *)p.c + row * p.c_stride + column, x);
    }
}

// Writes strip `strip` of the sums into the piece; where gated that of the value behind that of the gate.
template <int COLUMNS>
__device__ __forceinline__ void sm90_spread(const float (&sum)[COLUMNS / 2], const Sm90Part &part, bool gated, int strip) {
    uint32_t first = sm90_strip(part.lane / 4, part.lane % 4 / 2) + (uint32_t)(part.lane % 2 * 8);
#pragma unroll
    for (int s = 0; s < COLUMNS / 32; s++) {
        int at = gated ? s % (COLUMNS / 64) : s;
        if (at == strip) {
            unsigned char *to = part.piece + (at == s ? 0 : SM90_PIECE_BYTES / 2);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                *(float2 *)(to + (first ^ (uint32_t)(i / 2 * 32)) + i % 2 * 1024) =
                    make_float2(sum[16 * s + 2 * i], sum[16 * s + 2 * i + 1]);
            }
        }
    }
}

// `at`: offset of the first 4 columns of the run.
__device__ __forceinline__ void sm90_read_run(float (&x)[8], const unsigned char *from, uint32_t at) {
    float4 low = *(const float4 *)(from + at), high = *(const float4 *)(from + (at ^ 16));
    x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
    x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
}

// How many steps ahead memory is read: as many as there are registers for. The number of steps is a multiple.
template <ProductForm FORM> constexpr int SM90_AHEAD = FORM == PRODUCT_BACKWARD_WEIGHT ? 2 : 1;

template <typename T, int COLUMNS, ProductForm FORM>
__device__ __forceinline__ void sm90_finish_general(const float (&sum)[COLUMNS / 2], Sm90Ahead (&ahead)[SM90_AHEAD<FORM>],
                                                    const Product &p, const Sm90Part &part) {
    constexpr int AHEAD = SM90_AHEAD<FORM>;
    bool gated = FORM == PRODUCT_FORWARD && p.epilogue == EPILOGUE_GATED;
    int steps = min(gated ? COLUMNS / 32 : COLUMNS / 16, (part.column_count + 31) / 32 * 2);
#pragma unroll 1
    for (int first = 0; first < steps; first += AHEAD) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            int step = first + i;
            Sm90Ahead now = ahead[i];
            if (step + AHEAD < steps) {
                sm90_fetch_run<T, FORM>(ahead[i], p, part, step + AHEAD);
            }
            if (step % 2 == 0) {
                __syncwarp();
                sm90_spread<COLUMNS>(sum, part, gated, step / 2);
                __syncwarp();
            }
            int row = sm90_run_row(part, step), column = sm90_run_column(part, step);
            if (row < part.row_count && column < part.column_count) {
                float x[8], y[8];
                uint32_t at = sm90_strip(row, part.lane % 4 * 2);
                sm90_read_run(x, part.piece, at);
                if (gated) {
                    sm90_read_run(y, part.piece + SM90_PIECE_BYTES / 2, at);
                }
                sm90_finish_run<T, FORM>(x, y, now, p, part.row + row, part.column + column);
            }
        }
    }
}

// ---- The kernel

template <typename T, int COLUMNS, ProductForm FORM>
__device__ __forceinline__ void sm90_consume(const Product &p, const Sm90Plan &plan, unsigned char *memory) {
    int more = plan.cluster - 1, rank = (int)blockIdx.x & more;  // clusters are of 1 or 2 blocks along x
    typedef Sm90Shared<COLUMNS> Shared;
    // Of a gated product the two halves of B's tile make one half as many columns of C.
    int outputs = FORM == PRODUCT_FORWARD && p.epilogue == EPILOGUE_GATED ? COLUMNS / 2 : COLUMNS;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32 - 4, consumer = warp / 4;
    Sm90Part part;
    part.lane = lane;
    part.piece = memory + Shared::PIECES + warp * SM90_PIECE_BYTES;
    Sm90Ring<COLUMNS> ring = {shared_address(memory), 0, 0};
    for (int index = (int)blockIdx.x >> more; index < plan.works; index += (int)gridDim.x >> more) {
        Sm90Work work = sm90_work(plan, index, rank);
        float sum[COLUMNS / 2];
        int last;
        sm90_multiply<T, COLUMNS, FORM>(sum, ring, consumer, work.blocks, plan.cluster, lane, &last);
        part.row = (int64_t)work.row * SM90_ROWS + warp * 16;
        part.column = work.column * outputs;
        part.row_count = (int)min(p.m - part.row, (int64_t)16);
        part.column_count = (int)p.n - part.column;
        part.row += work.part * p.m;  // the parts of K lie below each other
        Sm90Ahead ahead[SM90_AHEAD<FORM>];
        const void *added = sm90_added<FORM>(p);
        if (plan.plain && added != NULL) {
            sm90_fetch_box<T>(ahead[0], part, added, p.c_stride, 0);
        } else if (!plan.plain) {
#pragma unroll
            for (int i = 0; i < SM90_AHEAD<FORM>; i++) {
                sm90_fetch_run<T, FORM>(ahead[i], p, part, i);
            }
        }
        wgmma_wait<0>();
        registers_fence(sum);
        sm90_release(ring, last, plan.cluster, lane);
        if (part.row_count > 0) {
            if (FORM != PRODUCT_BACKWARD_WEIGHT && plan.plain) {
                sm90_finish_plain<T, COLUMNS, FORM>(sum, ahead[0], p, part);
            } else {
                sm90_finish_general<T, COLUMNS, FORM>(sum, ahead, p, part);
            }
        }
        __syncwarp();  // wgmma takes whole warps
    }
}

template <typename T, int COLUMNS, ProductForm FORM>
__global__ void __launch_bounds__(SM90_THREADS, 1)
    sm90_product(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, const Product p,
                 const Sm90Plan plan) {
    typedef Sm90Shared<COLUMNS> Shared;
    DYNAMIC_SHARED(memory);
    if (threadIdx.x == 0) {
        Sm90Ring<COLUMNS> ring = {shared_address(memory), 0, 0};
        for (int i = 0; i < Shared::STAGES; i++) {
            mbarrier_init(ring.full(i), 1);
            mbarrier_init(ring.empty(i), (uint32_t)(SM90_WARPS * plan.cluster));
        }
        fence_mbarrier_init();
        tma_prefetch(&a);
        tma_prefetch(&b);
    }
    cluster_sync();
    if (threadIdx.x < 128) {
        registers_shrink<40>();
        if (threadIdx.x < 32) {
            sm90_load<COLUMNS, FORM>(&a, &b, p, plan, shared_address(memory));
        }
    } else {
        registers_grow<232>();
        sm90_consume<T, COLUMNS, FORM>(p, plan, memory);
    }
    cluster_sync();  // the other block may still arrive at barriers here
}

}  // namespace BACKEND
