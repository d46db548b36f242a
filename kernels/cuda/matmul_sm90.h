// The matrix product of Hopper: one persistent kernel, a template over type, tile, form and activation. Device code of
// matmul*_sm90.cu.
//
// A block is three warpgroups. The first one's first warp loads tiles of A and B with TMA into a ring of stages; the other
// two multiply them (wgmma), each 64 of the tile's 128 rows, and finish their own part of C. Stages are handed over by two
// mbarriers each: `full` (the bytes have come) and `empty` (all warps have read them). The loader runs ahead over the end of a
// tile, so the next tile's first stages come in while the last one is finished; the two consumers run some blocks of K apart,
// so that one finishes while the other has the tensor cores. C leaves by TMA.
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
    SM90_APART_BARRIER = 1,   // named barrier by which the second consumer starts later
};

// Shared memory of a block.
template <int COLUMNS> struct Sm90Shared {
    static const int STAGES = COLUMNS == 256 ? 4 : 6;
    static const int APART = COLUMNS == 256 ? 3 : 4;  // blocks of K by which the second consumer starts later
    static const int STAGE_BYTES = SM90_A_BYTES + COLUMNS * SM90_DEPTH * 2;
    static const int PIECES = STAGES * STAGE_BYTES;  // one for each consuming warp
    static const int BARRIERS = PIECES + SM90_WARPS * SM90_PIECE_BYTES;
    static const int TICKET = BARRIERS + 2 * STAGES * 8;
    static const int BYTES = TICKET + 8;
};

// The tensors as TMA sees them. C and pre are [M, slabs, N]: slabs are parts of K, or the gate's and the value's columns.
typedef struct Sm90Maps {
    const CUtensorMap *a, *b, *c, *pre;
} Sm90Maps;

// ---- Who does what

typedef struct Sm90Work {
    int row, column;    // of C's tile in units of tiles
    int first, blocks;  // of K, in blocks of 64
    int part;
    int streamed;  // its number among the streamed tiles of blocks; negative: it is none
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
    work.streamed = -1;
    return work;
}

// The works of a cluster, one after another: whole ones, then its stretch of the stream from its end (matmul_sm90.cu).
typedef struct Sm90Walk {
    int next;        // whole work
    int begin, end;  // what is left of the stretch, in blocks of K of all streamed tiles
} Sm90Walk;

template <ProductForm FORM> constexpr bool SM90_STREAMS = FORM == PRODUCT_BACKWARD_WEIGHT;

// Of this block's cluster. A cluster draws its number where there is a stream.
template <int COLUMNS, ProductForm FORM>
__device__ __forceinline__ Sm90Walk sm90_walk(const Sm90Plan &plan, const unsigned char *memory) {
    Sm90Walk walk = {(int)blockIdx.x >> (plan.cluster - 1), 0, 0};  // clusters are of 1 or 2 blocks along x
    if (SM90_STREAMS<FORM> && plan.streams > 0) {
        int number = *(const volatile int *)(memory + Sm90Shared<COLUMNS>::TICKET);
        number = __shfl_sync(0xFFFFFFFFu, number, 0);  // tells the compiler that a warp goes one way
        int group = number / plan.streams, stream = number - group * plan.streams;
        int before = group * plan.stream_tiles * plan.k_blocks;
        walk.next = number;
        walk.begin = before + plan.first[stream];
        walk.end = before + plan.first[stream + 1];
    }
    return walk;
}

// The next work of block `rank` of the cluster; false: there is none.
template <ProductForm FORM>
__device__ __forceinline__ bool sm90_next(const Sm90Plan &plan, Sm90Walk &walk, int rank, Sm90Work &work) {
    if (walk.next < plan.whole) {
        work = sm90_work(plan, walk.next, rank);
        walk.next += plan.clusters;
        return true;
    }
    if (SM90_STREAMS<FORM> && walk.begin < walk.end) {
        int tile = (walk.end - 1) / plan.k_blocks, first = max(walk.begin - tile * plan.k_blocks, 0);
        work = sm90_work(plan, plan.whole + tile, rank);
        work.first = first;
        work.blocks = walk.end - tile * plan.k_blocks - first;
        work.streamed = tile * plan.cluster + rank;
        walk.end -= work.blocks;
        return true;
    }
    return false;
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

// What the end of a tile reads (of 16-bit tensors) is asked for when its loads begin, so that it comes from L2 when it is
// needed. All of the first warp.
__device__ __forceinline__ void sm90_prefetch_rows(const void *tensor, int64_t at, int64_t stride, int rows, int columns) {
    for (int i = (int)threadIdx.x; i < rows; i += 32) {
        const char *from = (const char *)tensor + (at + i * stride) * 2, *end = from + columns * 2;
        for (const char *line = from - (uintptr_t)from % 128; line < end; line += 128) {
            prefetch_line(line);
        }
    }
}

template <ProductForm FORM> __device__ __forceinline__ void sm90_prefetch(const Product &p, int row, int column, int columns) {
    int rows = (int)min(p.m - row, (int64_t)SM90_ROWS);
    columns = min(columns, (int)p.n - column);
    const void *added = FORM == PRODUCT_FORWARD ? p.residual : p.accumulate && !p.float_output ? p.c : NULL;
    if (added != NULL) {
        sm90_prefetch_rows(added, row * p.c_stride + column, p.c_stride, rows, columns);
    }
    if (FORM == PRODUCT_BACKWARD_INPUT && p.pre != NULL) {
        int64_t at = row * p.pre_stride + column;
        sm90_prefetch_rows(p.pre, at, p.pre_stride, rows, columns);
        if (p.epilogue == EPILOGUE_GATED_BACKWARD) {
            sm90_prefetch_rows(p.pre, at + p.n, p.pre_stride, rows, columns);
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
__device__ __forceinline__ void sm90_load(const Sm90Maps &maps, const Product &p, const Sm90Plan &plan,
                                          const unsigned char *memory) {
    int rank = (int)blockIdx.x & (plan.cluster - 1);
    // Of a gated product the halves of B's tile are the gate's and the value's columns of the same numbers.
    bool gated = FORM == PRODUCT_FORWARD && p.epilogue == EPILOGUE_GATED;
    int columns = gated ? COLUMNS / 2 : COLUMNS, apart = gated ? (int)p.n : COLUMNS / 2;
    Sm90Ring<COLUMNS> ring = {shared_address(memory), 0, 0};
    Sm90Walk walk = sm90_walk<COLUMNS, FORM>(plan, memory);
    Sm90Work work;
    while (sm90_next<FORM>(plan, walk, rank, work)) {
        int row = work.row * SM90_ROWS, column = work.column * columns;
        sm90_prefetch<FORM>(p, row, column, columns);
        if (threadIdx.x == 0) {
            sm90_load_tile<COLUMNS, FORM>(maps.a, maps.b, ring, work, plan.cluster, rank, row, column, apart);
        }
        __syncwarp();
    }
    // The other block's warps tell this one's barriers until they have read the last stages: it must be there for that.
    for (int i = 0; plan.cluster == 2 && threadIdx.x == 0 && i < Sm90Shared<COLUMNS>::STAGES; i++) {
        mbarrier_wait(ring.empty(ring.stage), ring.parity ^ 1);
        ring.next();
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

// sum = A B over `blocks` of K, one at least. The last block's products are still under way on return: wait, then release
// `*last`.
//
// Side by side the consumers would end their tiles together and leave the tensor cores to nobody. So at the `first` tile of a
// kernel the second one waits until the other has begun block APART, or its last if there are fewer: the blocks until then lie
// in stages of their own, so that nobody needs to have released one. From then on the ring keeps them apart: the one that ends
// its tile first has the tensor cores to itself again while the other ends its own. Counted in cycles, with the ring and what
// L2 gives (a consumer alone takes 512 a block of 256 columns, both 1024), whole products gain 9% at K = 768 and 1.6% at K =
// 4096, 12% and 3% with an activation at the end of 2200 instructions, and less with one block more or less between them. Not
// measured.
template <typename T, int COLUMNS, ProductForm FORM>
__device__ __forceinline__ void sm90_multiply(float (&sum)[COLUMNS / 2], Sm90Ring<COLUMNS> &ring, int consumer, int blocks,
                                              int cluster, int lane, bool first, int *last) {
    constexpr int A_TURNED = SM90_A_TURNED<FORM>, B_TURNED = SM90_B_TURNED<FORM>;
    constexpr uint64_t A_STEP = (A_TURNED ? 2048 : 32) >> 4, B_STEP = (B_TURNED ? 2048 : 32) >> 4;  // 16 along K, encoded
    int before = 0, tells = first && consumer == 0 ? min((int)Sm90Shared<COLUMNS>::APART, blocks) - 1 : -1;
    if (first && consumer == 1) {
        barrier_sync(SM90_APART_BARRIER, 128 * SM90_CONSUMERS);
    }
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
        if (block == tells) {
            barrier_arrive(SM90_APART_BARRIER, 128 * SM90_CONSUMERS);
        }
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
// wgmma leaves two adjacent columns of rows lane / 4 and lane / 4 + 8 to a lane, of every 8 columns (a fragment each). All that
// is done to the sums is done there. What that needs of memory and what it makes passes through the warp's piece of shared
// memory as boxes of 16 rows of 128 bytes (64 columns, or 32 of fp32) in TMA's swizzle, without bank conflicts:
//   in    fetched two boxes ahead in runs of 16 bytes, 4 rows of 128 bytes an access; read as fragments with ldmatrix
//   out   written as fragments with stmatrix, stored by TMA, which leaves out what lies beyond C, element by element
// The piece is two boxes: one is written while TMA reads the other. The first loads of a tile are under way before the wait for
// its last products, those of a later box from the store of the one two before it on, behind the fence of that store: a fence
// waits for all that its warp has asked of memory, so what is asked for just before it is paid in full. The bias comes with the
// first loads, a lane two columns of every box, and is handed round by shuffles.
//
// fp32 sums that C accumulates are added by TMA, in L2: no other product adds to C meanwhile and each element has one addition,
// so that the result has one value. (The instruction may take fp32 numbers below 2^-126 for 0.)

typedef struct Sm90Part {
    unsigned char *piece;  // SM90_PIECE_BYTES of shared memory
    uint32_t shared, box;  // its address there; the offset of the one of its boxes that is written next
    int lane;
    int row_count;     // rows of C here: at most 16, none where not positive
    int column_count;  // columns of C in this tile
    int row, column;   // the first
    int part;          // of K
    bool add;          // fp32 sums to C
} Sm90Part;

// A lane's runs of a box of a 16-bit tensor: 8 columns from 8 (lane % 8) on, of rows lane / 8 + 4 i.
typedef struct Sm90Runs {
    uint4 at[4];
} Sm90Runs;

// What the end of a tile has asked of memory before it needs it.
template <int COLUMNS> struct Sm90Ahead {
    Sm90Runs box[2];  // of one tensor: of boxes of even and odd number; where a box needs two of them (pre and C, or pre of
                      // the gate and of the value): of both
    uint32_t bias[COLUMNS / 64];  // of sums 32 i .. 32 i + 31: that of the box's columns 2 lane, 2 lane + 1
};

template <typename T> __device__ __forceinline__ float2 unpack_two(uint32_t two);
template <> __device__ __forceinline__ float2 unpack_two<bf16>(uint32_t two) {
    return make_float2(__uint_as_float(two << 16), __uint_as_float(two & 0xFFFF0000u));
}
template <> __device__ __forceinline__ float2 unpack_two<fp16>(uint32_t two) {
    __half2 half = *(__half2 *)&two;
    return __half22float2(half);
}

// 16 columns of a warp are 8 sums of a lane, and 4 registers of ldmatrix and stmatrix.
template <typename T> __device__ __forceinline__ void unpack_sums(float (&x)[8], const uint32_t (&four)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 two = unpack_two<T>(four[i]);
        x[2 * i] = two.x;
        x[2 * i + 1] = two.y;
    }
}
template <typename T> __device__ __forceinline__ void pack_sums(uint32_t (&four)[4], const float (&x)[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        four[i] = pack_two<T>(x[2 * i], x[2 * i + 1]);
    }
}
// The address that this lane gives to ldmatrix and stmatrix for 16 columns of a box.
__device__ __forceinline__ uint32_t sm90_fragments(const Sm90Part &part, int sixteen) {
    return part.shared + part.box + (swizzle_128(part.lane % 16, part.lane / 16) ^ (uint32_t)(sixteen * 32));
}

// Before a box is written: TMA has read what was in it.
__device__ __forceinline__ void sm90_take_box() {
    tma_store_wait_read<1>();
    __syncwarp();
}

// The box that has been written goes to columns `column` .. of the tile; y, z: its other coordinates, see map_result. The other
// box is next.
template <bool ADD>
__device__ __forceinline__ void sm90_send_box(Sm90Part &part, const CUtensorMap *to, int column, int y, int z) {
    fence_async();
    __syncwarp();
    if (part.lane == 0) {
        if (ADD) {
            tma_add_3d(to, part.shared + part.box, part.column + column, y, z);
        } else {
            tma_store_3d(to, part.shared + part.box, part.column + column, y, z);
        }
        tma_store_commit();
    }
    part.box ^= SM90_PIECE_BYTES / 2;
}

// Asks for the box of columns `column` .. of the tile. Instead of rows and columns beyond C it takes others of C: what comes of
// them is not stored.
__device__ __forceinline__ void sm90_fetch(Sm90Runs &runs, const Sm90Part &part, const void *tensor, int64_t stride,
                                           int column) {
    int lane = (int)computed_anew((uint32_t)part.lane);  // else it keeps addresses in registers from box to box
    int row = lane / 8;
    column += lane % 8 * 8;
    column = part.column + (column < part.column_count ? column : 0);
    const char *from = (const char *)tensor + 2 * (part.row * stride + column);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        runs.at[i] = *(const uint4 *)(from + (uint32_t)min(row + 4 * i, part.row_count - 1) * (2 * (uint32_t)stride));
    }
}

// What was fetched, into the box.
__device__ __forceinline__ void sm90_stage(const Sm90Runs &runs, const Sm90Part &part) {
    uint32_t at = part.box + swizzle_128(part.lane / 8, part.lane % 8);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        *(uint4 *)(part.piece + (at ^ (uint32_t)(i % 2 * 64)) + i * 512) = runs.at[i];
    }
    __syncwarp();
}

// Two columns of the bias of columns `column` .. of the tile.
template <typename T> __device__ __forceinline__ uint32_t sm90_fetch_bias(const Sm90Part &part, const void *bias, int column) {
    column += part.lane * 2;
    const T *from = (const T *)bias + part.column + column;
    uint32_t two = 0;
    if (column + 1 < part.column_count) {
        two = *(const uint32_t *)from;
    } else if (column < part.column_count) {
        two = *(const uint16_t *)from;  // the last of an odd number
    }
    return two;
}

template <typename T, int COLUMNS>
__device__ __forceinline__ void sm90_add_bias(float (&sum)[COLUMNS / 2], const Sm90Part &part,
                                              const uint32_t (&bias)[COLUMNS / 64]) {
#pragma unroll
    for (int i = 0; i < COLUMNS / 8; i++) {
        float2 two = unpack_two<T>(__shfl_sync(0xFFFFFFFFu, bias[i / 8], part.lane % 4 + i % 8 * 4));
        sum[4 * i] += two.x;
        sum[4 * i + 1] += two.y;
        sum[4 * i + 2] += two.x;
        sum[4 * i + 3] += two.y;
    }
}

template <typename T, int AT, int COUNT>
__device__ __forceinline__ void sm90_store_box(const float (&sum)[COUNT], Sm90Part &part, const CUtensorMap *to, int column,
                                               int half) {
    sm90_take_box();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t four[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            four[j] = pack_two<T>(sum[AT + 8 * i + 2 * j], sum[AT + 8 * i + 2 * j + 1]);
        }
        stmatrix_x4(sm90_fragments(part, i), four);
    }
    sm90_send_box<false>(part, to, column, half, part.row);
}

template <typename T, Activation A> __device__ __forceinline__ void activate(float (&x)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        x[i] = activation_value<T>(A, x[i]);
    }
}
template <typename T, Activation A>
__device__ __forceinline__ void activate_both(const float (&x)[8], float (&value)[8], float (&slope)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        activation_both<T>(A, x[i], &value[i], &slope[i]);
    }
}

// The first loads of a tile's end.
template <typename T, int COLUMNS, ProductForm FORM>
__device__ __forceinline__ void sm90_fetch_first(Sm90Ahead<COLUMNS> &ahead, const Product &p, const Sm90Part &part) {
    bool gated = p.epilogue == EPILOGUE_GATED || p.epilogue == EPILOGUE_GATED_BACKWARD;
    if (FORM == PRODUCT_FORWARD && p.bias != NULL) {
#pragma unroll
        for (int i = 0; i < COLUMNS / 64; i++) {
            bool value = gated && i >= COLUMNS / 128;
            ahead.bias[i] =
                sm90_fetch_bias<T>(part, (const T *)p.bias + (value ? p.n : 0), 64 * (value ? i - COLUMNS / 128 : i));
        }
    }
    if (FORM == PRODUCT_FORWARD && p.residual != NULL) {
        sm90_fetch(ahead.box[0], part, p.residual, p.c_stride, 0);
        sm90_fetch(ahead.box[1], part, p.residual, p.c_stride, 64);
    } else if (FORM == PRODUCT_BACKWARD_INPUT && p.pre != NULL) {
        bool both = gated || p.accumulate;
        sm90_fetch(ahead.box[0], part, p.pre, p.pre_stride, 0);
        sm90_fetch(ahead.box[1], part,
                   gated  ? (const T *)p.pre + p.n
                   : both ? p.c
                          : p.pre,
                   both && !gated ? p.c_stride : p.pre_stride, both ? 0 : 64);
    } else if (FORM == PRODUCT_BACKWARD_INPUT && p.accumulate && !p.float_output) {
        sm90_fetch(ahead.box[0], part, p.c, p.c_stride, 0);
        sm90_fetch(ahead.box[1], part, p.c, p.c_stride, 64);
    }
}

// A box of y = activation(x w^T + bias) [* the value's sum] + residual, and of pre. X: the first of its sums, Y: of the
// value's.
template <typename T, Activation A, int X, int Y, bool GATED, bool RESIDUAL, int COLUMNS, int COUNT>
__device__ __forceinline__ void sm90_finish_forward(float (&sum)[COUNT], Sm90Ahead<COLUMNS> &ahead, const Product &p,
                                                    const Sm90Maps &maps, Sm90Part &part, int column) {
    Sm90Runs &residual = ahead.box[X / 32 % 2];
    if (p.pre != NULL) {
        sm90_store_box<T, X>(sum, part, maps.pre, column, 0);
        if constexpr (GATED) {
            sm90_store_box<T, Y>(sum, part, maps.pre, column, 1);
        }
    }
    sm90_take_box();
    if constexpr (RESIDUAL) {
        sm90_stage(residual, part);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float x[8];
        uint32_t four[4];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            x[j] = sum[X + 8 * i + j];
        }
        activate<T, A>(x);
        if constexpr (GATED) {
#pragma unroll
            for (int j = 0; j < 8; j++) {
                x[j] *= sum[Y + 8 * i + j];
            }
        }
        if constexpr (RESIDUAL) {
            float more[8];
            ldmatrix_x4(four, sm90_fragments(part, i));
            __syncwarp();
            unpack_sums<T>(more, four);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                x[j] += more[j];
            }
        }
        pack_sums<T>(four, x);
        stmatrix_x4(sm90_fragments(part, i), four);
    }
    sm90_send_box<false>(part, maps.c, column, 0, part.row);
    if (RESIDUAL && column + 128 < part.column_count) {
        sm90_fetch(residual, part, p.residual, p.c_stride, column + 128);
    }
}

// A box of dx = dy w * activation'(pre) [+ dx], or of [d * value * activation'(gate) | d * activation(gate)].
template <typename T, Activation A, int X, bool GATED, bool ADD, int COLUMNS, int COUNT>
__device__ __forceinline__ void sm90_finish_input(float (&sum)[COUNT], Sm90Ahead<COLUMNS> &ahead, const Product &p,
                                                  const Sm90Maps &maps, Sm90Part &part, int column) {
    constexpr bool DERIVED = GATED || A != ACTIVATION_NONE;
    constexpr bool BOTH = DERIVED && (GATED || ADD);
    Sm90Runs &first = ahead.box[BOTH ? 0 : X / 32 % 2], &second = ahead.box[BOTH ? 1 : X / 32 % 2];
    const void *last = GATED ? (const T *)p.pre + p.n : ADD ? p.c : p.pre;
    int64_t last_stride = ADD ? p.c_stride : p.pre_stride;
    constexpr int NEXT = BOTH ? 64 : 128;
    sm90_take_box();
    if constexpr (DERIVED) {
        sm90_stage(first, part);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t four[4];
            float at[8], value[8], slope[8];
            ldmatrix_x4(four, sm90_fragments(part, i));
            unpack_sums<T>(at, four);
            activate_both<T, A>(at, value, slope);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                value[j] *= sum[X + 8 * i + j];
                sum[X + 8 * i + j] *= slope[j];
            }
            if constexpr (GATED) {
                __syncwarp();
                pack_sums<T>(four, value);
                stmatrix_x4(sm90_fragments(part, i), four);
            }
        }
        if constexpr (GATED) {
            sm90_send_box<false>(part, maps.c, column, 1, part.row);
            if (column + NEXT < part.column_count) {
                sm90_fetch(first, part, p.pre, p.pre_stride, column + NEXT);
            }
            sm90_take_box();
        } else {
            __syncwarp();
        }
    }
    if constexpr (GATED || ADD) {
        sm90_stage(second, part);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float x[8];
        uint32_t four[4];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            x[j] = sum[X + 8 * i + j];
        }
        if constexpr (GATED || ADD) {
            float other[8];
            ldmatrix_x4(four, sm90_fragments(part, i));
            __syncwarp();
            unpack_sums<T>(other, four);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                x[j] = GATED ? x[j] * other[j] : x[j] + other[j];
            }
        }
        pack_sums<T>(four, x);
        stmatrix_x4(sm90_fragments(part, i), four);
    }
    sm90_send_box<false>(part, maps.c, column, 0, part.row);
    if ((DERIVED || ADD) && column + NEXT < part.column_count) {
        if (BOTH && ADD) {
            sm90_fetch(first, part, p.pre, p.pre_stride, column + NEXT);
        }
        sm90_fetch(second, part, last, last_stride, column + NEXT);
    }
}

// fp32 sums, 32 columns a box. Rows of a pair that differ in their lowest bit would meet in the banks: the odd one writes its 8
// columns in another order.
template <typename T, int COLUMNS, bool ADD>
__device__ __forceinline__ void sm90_finish_float(const float (&sum)[COLUMNS / 2], const Sm90Maps &maps, Sm90Part &part) {
    bool odd = part.lane / 4 % 2;
    uint32_t first = (swizzle_128(part.lane / 4, part.lane % 4 / 2) ^ (odd ? 64u : 0u)) + (uint32_t)(part.lane % 2 * 8);
#pragma unroll
    for (int column = 0; column < COLUMNS; column += 32) {
        if (column < part.column_count) {
            sm90_take_box();
            unsigned char *to = part.piece + part.box;
#pragma unroll
            for (int i = 0; i < 8; i++) {  // 8 columns and half of the rows
                int even = column / 2 + i / 2 * 4 + i % 2 * 2, at = column / 2 + (i / 2 ^ 2) * 4 + i % 2 * 2;
                *(float2 *)(to + (first ^ (uint32_t)(i / 2 * 32)) + i % 2 * 1024) =
                    make_float2(odd ? sum[at] : sum[even], odd ? sum[at + 1] : sum[even + 1]);
            }
            sm90_send_box<ADD>(part, maps.c, column, part.row, part.part);
        }
    }
}

// Boxes of 16-bit C from column `column` of the tile on, of sums X .. END - 1. MORE: there is a residual, or C accumulates.
template <typename T, ProductForm FORM, Activation A, bool GATED, bool MORE, int X, int END, int COLUMNS>
__device__ __forceinline__ void sm90_finish_boxes(float (&sum)[COLUMNS / 2], Sm90Ahead<COLUMNS> &ahead, const Product &p,
                                                  const Sm90Maps &maps, Sm90Part &part, int column) {
    if constexpr (FORM == PRODUCT_FORWARD) {
        sm90_finish_forward<T, A, X, COLUMNS / 4 + X, GATED, MORE>(sum, ahead, p, maps, part, column);
    } else {
        sm90_finish_input<T, A, X, GATED, MORE>(sum, ahead, p, maps, part, column);
    }
    if constexpr (X + 32 < END) {
        if (column + 64 < part.column_count) {
            sm90_finish_boxes<T, FORM, A, GATED, MORE, X + 32, END>(sum, ahead, p, maps, part, column + 64);
        }
    }
}

// 16-bit C. Where there is an activation its code exists for two boxes: behind them, sums 64 .. 127 move to their place.
template <typename T, ProductForm FORM, Activation A, bool GATED, bool MORE, int COLUMNS>
__device__ __forceinline__ void sm90_finish_tile(float (&sum)[COLUMNS / 2], Sm90Ahead<COLUMNS> &ahead, const Product &p,
                                                 const Sm90Maps &maps, Sm90Part &part) {
    constexpr int SUMS = GATED && FORM == PRODUCT_FORWARD ? COLUMNS / 4 : COLUMNS / 2;  // where gated those of the gate
    if constexpr (A == ACTIVATION_NONE || SUMS <= 64) {
        sm90_finish_boxes<T, FORM, A, GATED, MORE, 0, SUMS>(sum, ahead, p, maps, part, 0);
    } else {
#pragma unroll 1
        for (int column = 0; column < COLUMNS && column < part.column_count; column += 128) {
            if (column > 0) {
#pragma unroll
                for (int i = 0; i < 64; i++) {
                    sum[i] = sum[i + 64];
                }
                registers_fence(sum);  // a branch, not a choice between two for every sum
            }
            sm90_finish_boxes<T, FORM, A, GATED, MORE, 0, 64>(sum, ahead, p, maps, part, column);
        }
    }
}

template <typename T, int COLUMNS, ProductForm FORM, Activation A>
__device__ __forceinline__ void sm90_finish(float (&sum)[COLUMNS / 2], Sm90Ahead<COLUMNS> &ahead, const Product &p,
                                            const Sm90Maps &maps, Sm90Part &part) {
    if (FORM == PRODUCT_FORWARD && p.bias != NULL) {
        sm90_add_bias<T, COLUMNS>(sum, part, ahead.bias);
    }
    if constexpr (FORM != PRODUCT_BACKWARD_WEIGHT) {
        bool gated = p.epilogue == EPILOGUE_GATED || p.epilogue == EPILOGUE_GATED_BACKWARD;
        bool more = FORM == PRODUCT_FORWARD ? p.residual != NULL : p.accumulate;
        if (!p.float_output && gated && FORM == PRODUCT_FORWARD && more) {
            sm90_finish_tile<T, FORM, A, true, FORM == PRODUCT_FORWARD>(sum, ahead, p, maps, part);
        } else if (!p.float_output && gated) {
            sm90_finish_tile<T, FORM, A, true, false>(sum, ahead, p, maps, part);
        } else if (!p.float_output && more) {
            sm90_finish_tile<T, FORM, A, false, true>(sum, ahead, p, maps, part);
        } else if (!p.float_output) {
            sm90_finish_tile<T, FORM, A, false, false>(sum, ahead, p, maps, part);
        }
    }
    if constexpr (A == ACTIVATION_NONE) {
        if (FORM != PRODUCT_FORWARD && p.float_output && part.add) {
            sm90_finish_float<T, COLUMNS, true>(sum, maps, part);
        } else if (FORM == PRODUCT_BACKWARD_WEIGHT || p.float_output) {
            sm90_finish_float<T, COLUMNS, false>(sum, maps, part);
        }
    }
}

// A part of a streamed tile adds its sums when those before it in K are in C: `word` counts the blocks of K that are, for the
// 16 rows of a warp.
__device__ __forceinline__ void sm90_await_turn(const int *word, const Sm90Work &work, int lane) {
    if (lane == 0 && work.first > 0) {
        while (load_acquire(word) != work.first) {
            nap();
        }
        fence_async_global();
    }
    __syncwarp();
}
// The last part leaves 0 for the next product.
__device__ __forceinline__ void sm90_pass_turn(int *word, const Sm90Work &work, int k_blocks, int lane) {
    if (lane == 0 && work.first + work.blocks < k_blocks) {
        tma_store_wait<0>();
        add_release(word, work.blocks);
    } else if (lane == 0 && work.first > 0) {
        *word = 0;
    }
}

// A cluster's number, drawn by thread 0 of its first block. The last one is followed by the first of the next product.
template <ProductForm FORM> __device__ __forceinline__ int sm90_draw(const Sm90Plan &plan) {
    bool draws = SM90_STREAMS<FORM> && plan.streams > 0 && threadIdx.x == 0 && cluster_rank() == 0;
    return draws ? (int)atomicInc((unsigned *)plan.turns, (unsigned)plan.clusters - 1) : 0;
}
// All threads of the cluster, whose blocks have begun.
template <ProductForm FORM> __device__ __forceinline__ void sm90_tell(const Sm90Plan &plan, int ticket, uint32_t to) {
    if (SM90_STREAMS<FORM> && plan.streams > 0) {
        if (threadIdx.x < 32) {
            ticket = __shfl_sync(0xFFFFFFFFu, ticket, 0);
            if (cluster_rank() == 0 && threadIdx.x < (unsigned)plan.cluster) {
                cluster_store(to, threadIdx.x, ticket);
            }
        }
        cluster_sync();
    }
}

// ---- The kernel

template <typename T, int COLUMNS, ProductForm FORM, Activation A>
__device__ __forceinline__ void sm90_consume(const Sm90Maps &maps, const Product &p, const Sm90Plan &plan,
                                             unsigned char *memory) {
    int rank = (int)blockIdx.x & (plan.cluster - 1);
    // Of a gated product the two halves of B's tile make one half as many columns of C.
    int outputs = FORM == PRODUCT_FORWARD && p.epilogue == EPILOGUE_GATED ? COLUMNS / 2 : COLUMNS;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32 - 4, consumer = warp / 4;
    Sm90Part part;
    part.lane = lane;
    part.piece = memory + Sm90Shared<COLUMNS>::PIECES + warp * SM90_PIECE_BYTES;
    part.shared = shared_address(part.piece);
    part.box = 0;
    Sm90Ring<COLUMNS> ring = {shared_address(memory), 0, 0};
    Sm90Walk walk = sm90_walk<COLUMNS, FORM>(plan, memory);
    Sm90Work work;
    bool first = true;
    while (sm90_next<FORM>(plan, walk, rank, work)) {
        float sum[COLUMNS / 2];
        int last;
        sm90_multiply<T, COLUMNS, FORM>(sum, ring, consumer, work.blocks, plan.cluster, lane, first, &last);
        first = false;
        part.row = work.row * SM90_ROWS + warp * 16;
        part.column = work.column * outputs;
        part.row_count = (int)min(p.m - part.row, (int64_t)16);
        part.column_count = min((int)p.n - part.column, outputs);
        part.part = work.part;
        bool streamed = SM90_STREAMS<FORM> && work.streamed >= 0;
        part.add = p.accumulate || (streamed && work.first > 0);
        Sm90Ahead<COLUMNS> ahead;
        if (part.row_count > 0) {
            sm90_fetch_first<T, COLUMNS, FORM>(ahead, p, part);
        }
        wgmma_wait<0>();
        registers_fence(sum);
        sm90_release(ring, last, plan.cluster, lane);
        if (part.row_count > 0) {
            int *turn = plan.turns + 1 + work.streamed * SM90_WARPS + warp;
            if (streamed) {
                sm90_await_turn(turn, work, lane);
            }
            sm90_finish<T, COLUMNS, FORM, A>(sum, ahead, p, maps, part);
            if (streamed) {
                sm90_pass_turn(turn, work, plan.k_blocks, lane);
            }
        }
        __syncwarp();  // wgmma takes whole warps
    }
    tma_store_wait_read<0>();  // shared memory lives as long as the block
}

template <typename T, int COLUMNS, ProductForm FORM, Activation A>
__global__ void __launch_bounds__(SM90_THREADS, 1)
    sm90_product(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b,
                 const __grid_constant__ CUtensorMap c, const __grid_constant__ CUtensorMap pre, const Product p,
                 const Sm90Plan plan) {
    typedef Sm90Shared<COLUMNS> Shared;
    DYNAMIC_SHARED(memory);
    const Sm90Maps maps = {&a, &b, &c, &pre};
    int ticket = sm90_draw<FORM>(plan);  // comes while the barriers are made
    if (threadIdx.x == 0) {
        Sm90Ring<COLUMNS> ring = {shared_address_swizzled(memory), 0, 0};
        for (int i = 0; i < Shared::STAGES; i++) {
            mbarrier_init(ring.full(i), 1);
            mbarrier_init(ring.empty(i), (uint32_t)(SM90_WARPS * plan.cluster));
        }
        fence_mbarrier_init();
        tma_prefetch(&a);
        tma_prefetch(&b);
        tma_prefetch(&c);
    }
    cluster_sync();
    sm90_tell<FORM>(plan, ticket, shared_address(memory) + Shared::TICKET);
    if (threadIdx.x < 128) {
        registers_shrink<40>();
        if (threadIdx.x < 32) {
            sm90_load<COLUMNS, FORM>(maps, p, plan, memory);
        }
    } else {
        registers_grow<232>();
        sm90_consume<T, COLUMNS, FORM, A>(maps, p, plan, memory);
    }
    cluster_sync();  // the other block may still arrive at barriers here
}

}  // namespace BACKEND
