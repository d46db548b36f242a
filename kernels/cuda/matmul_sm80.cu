// Matrix products on the tensor cores of every card since sm_80: mma.sync fed by cp.async. Any shape, deterministic.
//
// A block of 4 warps (2 x 2) computes a tile of C, TILE x TILE, slice by slice along K; a warp a quarter of it in registers.
//
//   global --cp.async--> ring of STAGES slices of A and B in shared memory --ldmatrix--> fragments --mma--> sums in registers
//
//   tile  slice  sums a thread  shared bytes read a multiply-add   blocks a multiprocessor
//   128   32     128            1/64                               2
//   64    64     32             1/32                               3
//
// Shared memory holds lines of the contiguous dimension (K of a K-major operand, M or N of the others), so that both are copied
// 16 bytes at a time; ldmatrix transposes where the line runs along M or N. The chunks of 16 bytes within a line are permuted
// by the line's number (operand_offset), so that the 8 rows of every ldmatrix lie in 8 different groups of banks.
//
// Lines that begin aligned are copied so whatever their length, in the forms of the backward pass (GPT-2's vocabulary of 50,257
// columns in rows of 50,264). The last chunk then has up to 7 numbers behind the line's end, which count for nothing: along M
// or N they make rows or columns of C that are not stored; along K (A of the gradient of an input) the lines of B that they
// meet are beyond the end and therefore zeros. In the forward form both operands would have them, so there K must be a multiple
// of 8.
//
// Gated products: of every 16 lines of the tile of B, 8 are rows of the gate and 8 the rows of the values of the same columns,
// so a thread holds both sums of a column.
//
// Few tiles and a long K: the slices are split over several blocks (`parts`), whose sums go to the workspace as fp32 and are
// added in their order by product_finish_sums. Tile and parts follow from the shape and the number of multiprocessors alone.
#include "kernels/cuda/matmul_epilogue.h"
#include "kernels/cuda/ptx.h"

namespace BACKEND {

static const int THREADS = 128;
static const int STAGES = 3;
static const int SUPERTILE = 8;  // rows of tiles that are computed together, so that they share B in the L2 cache

template <int TILE> constexpr int SLICE = TILE == 128 ? 32 : 64;
template <int TILE> constexpr int OPERAND_BYTES = TILE *SLICE<TILE> * 2;            // 8 KiB
template <int TILE> constexpr int SHARED_BYTES = STAGES * 2 * OPERAND_BYTES<TILE>;  // 48 KiB
template <int TILE> constexpr int SUM_PITCH = TILE + 8;                             // floats; see sums_store
static_assert(64 * SUM_PITCH<128> * 4 <= SHARED_BYTES<128>, "half a tile of sums replaces the slices");

// How the tile of an operand lies in shared memory: LINES lines of LINE elements.
template <bool MN_MAJOR, int TILE> struct Operand {
    static constexpr int LINE = MN_MAJOR ? TILE : SLICE<TILE>, LINES = MN_MAJOR ? SLICE<TILE> : TILE;
    static constexpr int CHUNKS = LINE / 8;        // of 16 bytes
    static constexpr int STEP = THREADS / CHUNKS;  // lines that the block copies at a time: a multiple of 8
    static constexpr int COPIES = LINES / STEP;    // chunks that a thread copies
    static constexpr int STEP_BYTES = STEP * LINE * 2;
};

// Where chunk `chunk` of line `line` lies.
template <int CHUNKS> __device__ __forceinline__ uint32_t operand_offset(uint32_t line, uint32_t chunk) {
    if constexpr (CHUNKS == 4) {  // two lines of 64 bytes fill the banks
        return line * 64 + ((chunk ^ (line >> 1 & 3)) << 4);
    } else {
        return line * (CHUNKS * 16) + ((chunk ^ (line & 7)) << 4);
    }
}

// What a thread copies of an operand: COPIES chunks, STEP lines apart.
template <typename T> struct Copier {
    const T *from;        // its first chunk in the next slice
    int64_t line_stride;  // elements between its chunks
    int64_t advance;      // elements from slice to slice
    int rows_step;        // K-major: rows between its chunks
    int across;           // rows (or columns, MN-major) of the operand from its first chunk to the end
    int along;            // the same along K, for the next slice
    uint32_t to;          // offset of its first chunk in shared memory
    bool chunks;          // 16 bytes at a time
};

// `base` + row * stride (K-major) or + k * stride (MN-major); the tile begins at row or column `first` of `extent`, its slices
// at `k` and end before `k_end`. gate_rows > 0: rows of B are taken alternately, 8 from row `first`, 8 from gate_rows + first.
template <bool MN_MAJOR, int TILE, typename T>
static __device__ __forceinline__ Copier<T> copier_new(const void *base, int64_t stride, int first, int extent, int k,
                                                       int k_end, int gate_rows, bool chunks) {
    typedef Operand<MN_MAJOR, TILE> O;
    int line = (int)threadIdx.x / O::CHUNKS, chunk = (int)threadIdx.x % O::CHUNKS;
    Copier<T> c;
    c.to = operand_offset<O::CHUNKS>((uint32_t)line, (uint32_t)chunk);
    c.chunks = chunks;
    if (MN_MAJOR) {
        c.from = (const T *)base + (int64_t)(k + line) * stride + first + chunk * 8;
        c.line_stride = O::STEP * stride;
        c.advance = SLICE<TILE> * stride;
        c.rows_step = 0;
        c.across = extent - first - chunk * 8;
        c.along = k_end - k - line;
    } else {
        int row = gate_rows > 0 ? first + line / 16 * 8 + line % 8 : first + line;
        int gate = gate_rows > 0 && line / 8 % 2 != 0 ? gate_rows : 0;
        c.from = (const T *)base + (int64_t)(row + gate) * stride + k + chunk * 8;
        c.rows_step = gate_rows > 0 ? O::STEP / 2 : O::STEP;
        c.line_stride = c.rows_step * stride;
        c.advance = SLICE<TILE>;
        c.across = extent - row;
        c.along = k_end - k - chunk * 8;
    }
    return c;
}

// Element by element, for lines that are not aligned.
template <bool MN_MAJOR, int TILE, typename T>
static __device__ __forceinline__ void copy_elements(const Copier<T> &c, unsigned char *to) {
    typedef Operand<MN_MAJOR, TILE> O;
#pragma unroll 1
    for (int i = 0; i < O::COPIES; i++) {
        bool line_valid = MN_MAJOR ? i * O::STEP < c.along : i * c.rows_step < c.across;
        int valid = !line_valid ? 0 : MN_MAJOR ? c.across : c.along;
        const T *from = c.from + i * c.line_stride;
        Pack<T> pack;
#pragma unroll
        for (int e = 0; e < 8; e++) {
            pack.at[e] = e < valid ? from[e] : from_float<T>(0.0f);
        }
        *(uint4 *)(to + c.to + i * O::STEP_BYTES) = *(const uint4 *)&pack;
    }
}

// Starts the copy of the next slice into `to` and goes on to the one after it. Beyond the end: zeros.
template <bool MN_MAJOR, int TILE, typename T>
static __device__ __forceinline__ void copy_slice(Copier<T> &c, unsigned char *to) {
    typedef Operand<MN_MAJOR, TILE> O;
    if (TILE == 128 || c.chunks) {
        uint32_t address = shared_address(to) + c.to;
#pragma unroll
        for (int i = 0; i < O::COPIES; i++) {
            bool valid = MN_MAJOR ? c.across > 0 && i * O::STEP < c.along : c.along > 0 && i * c.rows_step < c.across;
            copy_async_16(address + i * O::STEP_BYTES, c.from + i * c.line_stride, valid);
        }
    } else {
        copy_elements<MN_MAJOR, TILE>(c, to);
    }
    c.from += c.advance;
    c.along -= SLICE<TILE>;
}

// The fragments of one step of 16 along K: TILE / 32 of A (16 x 16), TILE / 16 of B (16 x 8).
template <int TILE> struct Fragments {
    uint32_t a[TILE / 32][4], b[TILE / 32][4];  // b: two fragments each
};

// m, n: where the warp's quarter begins in the tile; k in steps of 16.
template <bool A_MAJOR, bool B_MAJOR, int TILE>
static __device__ __forceinline__ void fragments_load(Fragments<TILE> &f, uint32_t a, uint32_t b, int m, int n, int k) {
    const int lane = threadIdx.x % 32;
    constexpr int A_CHUNKS = Operand<A_MAJOR, TILE>::CHUNKS, B_CHUNKS = Operand<B_MAJOR, TILE>::CHUNKS;
#pragma unroll
    for (int i = 0; i < TILE / 32; i++) {
        if constexpr (A_MAJOR) {
            int line = k * 16 + lane / 16 * 8 + lane % 8, chunk = (m + i * 16) / 8 + lane / 8 % 2;
            ldmatrix_x4_trans(f.a[i], a + operand_offset<A_CHUNKS>((uint32_t)line, (uint32_t)chunk));
        } else {
            int line = m + i * 16 + lane % 16, chunk = k * 2 + lane / 16;
            ldmatrix_x4(f.a[i], a + operand_offset<A_CHUNKS>((uint32_t)line, (uint32_t)chunk));
        }
    }
#pragma unroll
    for (int j = 0; j < TILE / 32; j++) {
        if constexpr (B_MAJOR) {
            int line = k * 16 + lane % 16, chunk = (n + j * 16) / 8 + lane / 16;
            ldmatrix_x4_trans(f.b[j], b + operand_offset<B_CHUNKS>((uint32_t)line, (uint32_t)chunk));
        } else {
            int line = n + j * 16 + lane / 16 * 8 + lane % 8, chunk = k * 2 + lane / 8 % 2;
            ldmatrix_x4(f.b[j], b + operand_offset<B_CHUNKS>((uint32_t)line, (uint32_t)chunk));
        }
    }
}

template <int TILE> struct Sums { float at[TILE / 32][TILE / 16][4]; };

template <typename T, int TILE> static __device__ __forceinline__ void sums_add(Sums<TILE> &sums, const Fragments<TILE> &f) {
#pragma unroll
    for (int i = 0; i < TILE / 32; i++) {
#pragma unroll
        for (int j = 0; j < TILE / 16; j++) {
            const uint32_t b[2] = {f.b[j / 2][j % 2 * 2], f.b[j / 2][j % 2 * 2 + 1]};
            mma_16816<T>(sums.at[i][j], f.a[i], b);
        }
    }
}

// The warp's quarter into shared memory, row by row, as floats. A pitch of 8 more than a multiple of 32 keeps the 4 rows that
// half a warp writes in different banks.
template <int TILE> static __device__ __forceinline__ void sums_store(const Sums<TILE> &sums, float *to) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < TILE / 32; i++) {
#pragma unroll
        for (int j = 0; j < TILE / 16; j++) {
            float *at = to + (i * 16 + lane / 4) * SUM_PITCH<TILE> + j * 8 + lane % 4 * 2;
            *(float2 *)at = make_float2(sums.at[i][j][0], sums.at[i][j][1]);
            *(float2 *)(at + 8 * SUM_PITCH<TILE>) = make_float2(sums.at[i][j][2], sums.at[i][j][3]);
        }
    }
}

static __device__ __forceinline__ void sums_load(const float *from, float (&x)[4]) {
    *(float4 *)x = *(const float4 *)from;
}

// The epilogue of `rows` rows of sums in shared memory, which are rows from `row` of C (of the part's sums where raw).
template <typename T, int TILE>
static __device__ __forceinline__ void sums_finish(const Product &p, const float *sums, int rows, int row, int column,
                                                   bool gated, bool raw) {
    int64_t first = raw ? (int64_t)blockIdx.y * p.m : 0;
    const int run_bits = (TILE == 128 ? 5 : 4) - gated;  // a row has 2^run_bits runs of 4 columns
#pragma unroll 1
    for (int i = (int)threadIdx.x; i < rows << run_bits; i += THREADS) {
        int r = i >> run_bits, run = i & ((1 << run_bits) - 1);
        if (row + r >= p.m || column + run * 4 >= p.n) {
            continue;
        }
        alignas(16) float x[4];
        if (!gated) {
            sums_load(sums + r * SUM_PITCH<TILE> + run * 4, x);
            product_finish<T, 4>(p, p.epilogue, p.activation, first + row + r, column + run * 4, x);
            continue;
        }
        alignas(16) float value[4];
        const float *from = sums + r * SUM_PITCH<TILE> + run / 2 * 16 + run % 2 * 4;
        sums_load(from, x);
        sums_load(from + 8, value);
        if (raw) {
            float *part = (float *)p.c + (first + row + r) * p.c_stride;
            run_store<float, 4>(p, part, column + run * 4, x);
            run_store<float, 4>(p, part + p.n, column + run * 4, value);
        } else {
            product_finish_gated<T, 4>(p, p.activation, row + r, column + run * 4, x, value);
        }
    }
}

// How the work is cut.
typedef struct Cut {
    int tiles_m, tiles_n;
    int part_slices;                // slices along K of each part; blockIdx.y is the part
    bool raw;                       // C is the workspace: fp32 sums [part][M][N]; the product has no epilogue
    bool gated;                     // tiles are of gates and values
    bool a_in_chunks, b_in_chunks;  // else: element by element (only tiles of 64)
} Cut;

// registers: at most 255 (TILE 128), 128 (TILE 64)
template <typename T, ProductForm FORM, int TILE>
static __global__ void __launch_bounds__(THREADS, TILE == 128 ? 2 : 3) product_tiles(const Product p, const Cut cut) {
    constexpr bool A_MAJOR = FORM == PRODUCT_BACKWARD_WEIGHT, B_MAJOR = FORM != PRODUCT_FORWARD;
    constexpr int STEPS = SLICE<TILE> / 16;
    DYNAMIC_SHARED(memory);
    const int group = (int)blockIdx.x / (SUPERTILE * cut.tiles_n), within = (int)blockIdx.x % (SUPERTILE * cut.tiles_n);
    const int group_rows = min(SUPERTILE, cut.tiles_m - group * SUPERTILE);
    const int row = (group * SUPERTILE + within % group_rows) * TILE;
    const int column = within / group_rows * (cut.gated ? TILE / 2 : TILE);
    const int k = (int)blockIdx.y * cut.part_slices * SLICE<TILE>;
    const int k_end = min((int)p.k, k + cut.part_slices * SLICE<TILE>);
    const int slices = (k_end - k + SLICE<TILE> - 1) / SLICE<TILE>;

    Copier<T> a = copier_new<A_MAJOR, TILE, T>(p.a, p.a_stride, row, (int)p.m, k, k_end, 0, cut.a_in_chunks);
    Copier<T> b =
        copier_new<B_MAJOR, TILE, T>(p.b, p.b_stride, column, (int)p.n, k, k_end, cut.gated ? (int)p.n : 0, cut.b_in_chunks);
    // The ring: STAGES slices of A, then of B.
    unsigned char *ring_a = memory, *ring_b = memory + STAGES * OPERAND_BYTES<TILE>;
    for (int s = 0; s < STAGES - 1; s++) {
        copy_slice<A_MAJOR, TILE>(a, ring_a + s * OPERAND_BYTES<TILE>);
        copy_slice<B_MAJOR, TILE>(b, ring_b + s * OPERAND_BYTES<TILE>);
        copy_async_commit();
    }
    copy_async_wait<STAGES - 2>();
    __syncthreads();

    const int warp = threadIdx.x / 32, m = warp / 2 * (TILE / 2), n = warp % 2 * (TILE / 2);
    Sums<TILE> sums = {};
    Fragments<TILE> f[2];
    uint32_t read_a = shared_address(ring_a), read_b = shared_address(ring_b);
    fragments_load<A_MAJOR, B_MAJOR, TILE>(f[0], read_a, read_b, m, n, 0);
    int read = 0, write = STAGES - 1;
#pragma unroll 1
    for (int s = 0; s < slices; s++) {
        // Each step loads the fragments of the next one before its own multiplications. The last step of a slice has them from
        // the next slice; the barrier that makes that one readable also says that all warps have left this one behind.
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            if (step == STEPS - 1) {
                copy_async_wait<STAGES - 2>();
                __syncthreads();
                read = read + 1 == STAGES ? 0 : read + 1;
                read_a = shared_address(ring_a) + read * OPERAND_BYTES<TILE>;
                read_b = shared_address(ring_b) + read * OPERAND_BYTES<TILE>;
            }
            fragments_load<A_MAJOR, B_MAJOR, TILE>(f[(step + 1) % 2], read_a, read_b, m, n, (step + 1) % STEPS);
            if (step == 0) {
                copy_slice<A_MAJOR, TILE>(a, ring_a + write * OPERAND_BYTES<TILE>);
                copy_slice<B_MAJOR, TILE>(b, ring_b + write * OPERAND_BYTES<TILE>);
                copy_async_commit();
                write = write + 1 == STAGES ? 0 : write + 1;
            }
            sums_add<T, TILE>(sums, f[step % 2]);
        }
    }

    copy_async_wait<0>();
    for (int half = 0; half < 2; half++) {
        __syncthreads();
        if (warp / 2 == half) {
            sums_store<TILE>(sums, (float *)memory + n);
        }
        __syncthreads();
        sums_finish<T, TILE>(p, (float *)memory, TILE / 2, row + half * (TILE / 2), column, cut.gated, cut.raw);
    }
}

// ---- The cut of a shape

// About the clocks that a cut takes on `multiprocessors`: blocks share the tensor cores of theirs (1024 multiply-adds a clock);
// tiles of 64 read twice as much shared memory; sums of several parts are written and read once more at some 16 bytes a clock
// and multiprocessor. Only the order of the results matters.
static double cut_clocks(const Product *p, int tile, int64_t parts, int multiprocessors) {
    int64_t columns = product_b_rows(p), slice = tile == 128 ? 32 : 64;
    int64_t blocks = divide_up(p->m, tile) * divide_up(columns, tile) * parts;
    int64_t slices = divide_up(divide_up(p->k, slice), parts);
    double slice_clocks = tile == 128 ? 560 : 420, block_clocks = tile == 128 ? 3000 : 1500;
    double clocks = (double)divide_up(blocks, multiprocessors) * ((double)slices * slice_clocks + block_clocks);
    if (parts > 1) {
        clocks += 4000 + (double)(p->m * columns * 4 * (2 * parts + 1)) / (16.0 * multiprocessors);
    }
    return clocks;
}

// The tile and the number of parts that take the fewest clocks. A part has at least 4 slices.
static void choose_cut(const Product *p, bool chunks, int multiprocessors, int *tile, int64_t *parts) {
    double best = 0;
    for (int t = 64; t <= (chunks ? 128 : 64); t *= 2) {
        int64_t slices = divide_up(p->k, t == 128 ? 32 : 64);
        for (int64_t s = 1; s <= 32 && (s == 1 || slices / s >= 4); s++) {
            double clocks = cut_clocks(p, t, s, multiprocessors);
            if (best == 0 || clocks < best) {
                best = clocks;
                *tile = t;
                *parts = s;
            }
        }
    }
}

static bool in_chunks(const void *base, int64_t stride) {
    return aligned_16(base) && stride % 8 == 0;
}

void product_sm80_chunks(const Product *p, bool *a, bool *b) {
    bool whole = p->form != PRODUCT_FORWARD || p->k % 8 == 0;
    *a = whole && in_chunks(p->a, p->a_stride);
    *b = whole && in_chunks(p->b, p->b_stride);
}

template <typename T, int TILE> static void launch_tiles(Card *card, const Product *p, const Cut *cut, int64_t parts) {
    dim3 grid((unsigned)(cut->tiles_m * cut->tiles_n), (unsigned)parts);
    switch (p->form) {
    case PRODUCT_FORWARD:
        launch(card, "matmul forward", product_tiles<T, PRODUCT_FORWARD, TILE>, grid, THREADS, SHARED_BYTES<TILE>, *p, *cut);
        break;
    case PRODUCT_BACKWARD_INPUT:
        launch(card, "matmul backward input", product_tiles<T, PRODUCT_BACKWARD_INPUT, TILE>, grid, THREADS, SHARED_BYTES<TILE>,
               *p, *cut);
        break;
    case PRODUCT_BACKWARD_WEIGHT:
        launch(card, "matmul backward weight", product_tiles<T, PRODUCT_BACKWARD_WEIGHT, TILE>, grid, THREADS,
               SHARED_BYTES<TILE>, *p, *cut);
        break;
    }
}

template <typename T> static void launch_tile(Card *card, const Product *p, const Cut *cut, int tile, int64_t parts) {
    if (tile == 128) {
        launch_tiles<T, 128>(card, p, cut, parts);
    } else {
        launch_tiles<T, 64>(card, p, cut, parts);
    }
}

bool product_sm80(Card *card, const Product *p) {
    const int64_t most = INT32_MAX - 1024;
    int64_t columns = product_b_rows(p);
    if (p->type == TYPE_FP32 || p->m > most || columns > most || p->k > most) {
        return false;
    }
    Cut cut = {};
    cut.gated = p->epilogue == EPILOGUE_GATED;
    product_sm80_chunks(p, &cut.a_in_chunks, &cut.b_in_chunks);

    int tile = 64;
    int64_t parts = 1;
    choose_cut(p, cut.a_in_chunks && cut.b_in_chunks, card->multiprocessors, &tile, &parts);
    int64_t slice = tile == 128 ? 32 : 64;
    cut.part_slices = (int)divide_up(divide_up(p->k, slice), parts);
    parts = p->k > 0 ? divide_up(p->k, slice * cut.part_slices) : 1;  // none is empty
    cut.tiles_m = (int)divide_up(p->m, tile);
    cut.tiles_n = (int)divide_up(p->n, cut.gated ? tile / 2 : tile);

    Product sums = *p;
    if (parts > 1) {
        cut.raw = true;
        sums.epilogue = EPILOGUE_FORWARD;
        sums.activation = ACTIVATION_NONE;
        sums.float_output = true;
        sums.accumulate = false;
        sums.aligned = !cut.gated || p->n % 8 == 0;
        sums.bias = sums.residual = sums.pre = NULL;
        sums.c_stride = product_sums_stride(p);
        sums.c = card_workspace(card, (size_t)(parts * p->m * sums.c_stride) * sizeof(float));
    }
    if (p->type == TYPE_BF16) {
        launch_tile<bf16>(card, &sums, &cut, tile, parts);
    } else {
        launch_tile<fp16>(card, &sums, &cut, tile, parts);
    }
    if (parts > 1) {
        product_finish_sums(card, p, sums.c, sums.c_stride, true, (int)parts);
    }
    return true;
}

}  // namespace BACKEND
