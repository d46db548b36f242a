// Tiles of attention's portable body: rows of D 16-bit elements in shared memory, their fragments, and the two products.
//
// A tile is [rows][D], 2 D bytes a row, in chunks of 16 bytes; a chunk's number is exclusive-ored with bits of its row, so that
// the eight rows that one ldmatrix reads, or eight threads write, lie in different banks. D is the head width rounded up to
// 32, 64, 96, 128, 192 or 256; columns beyond the width are loaded as zeros, which add nothing to any product.
//
// Every warp of a block of four owns 16 rows (or 2 x 16) of the left factor and of the result:
//
//     scores   [rows][columns] = left [rows][D] . right [columns][D]^T     both by ldmatrix
//     result   [rows][D]      += weights [rows][columns] . right [columns][D]
//                                weights are the accumulators of scores, turned into fragments without leaving the registers
#pragma once

#include "kernels/cuda/attention.h"

namespace BACKEND {

enum { ATTENTION_THREADS = 128 };

// How many of a thread's copies run side by side. One less address in registers is what backward for D = 128 needs on sm_100.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
enum { TILE_LOADS = 1 };
#else
enum { TILE_LOADS = 2 };
#endif

template <int D> struct Tile {
    static const int BYTES = 2 * D;               // of a row
    static const int CHUNKS = D / 8;              // of a row
    static const int MASK = D % 64 == 0 ? 7 : 3;  // the bits of a chunk's number that are swizzled

    __device__ static __forceinline__ uint32_t offset(int row, int chunk) {
        return (uint32_t)(row * BYTES + ((chunk ^ swizzle(row)) << 4));
    }
    __device__ static __forceinline__ int swizzle(int row) {
        return MASK == 7 ? row & 7 : row >> 1 & 3;
    }
    // From the address of chunk c (0 or 1) of a row to that of chunk c + even.
    __device__ static __forceinline__ uint32_t move(uint32_t address, int even) {
        return (address ^ (uint32_t)((even & MASK) << 4)) + (uint32_t)((even & ~MASK) << 4);
    }
    // What a lane gives to ldmatrix for the fragment at row 0, chunk 0; `move` and multiples of 16 BYTES lead to the others.
    //   left: a 16 x 16 piece as mma's a.  right: 16 columns (rows of the tile) x 16 as two of mma's b.
    //   right_trans (with ldmatrix_x4_trans): 16 rows x 16 as two of mma's b, summed over the rows.
    __device__ static __forceinline__ uint32_t left(uint32_t tile) {
        int lane = (int)threadIdx.x % 32;
        return tile + offset(lane % 16, lane / 16);
    }
    __device__ static __forceinline__ uint32_t right(uint32_t tile) {
        int lane = (int)threadIdx.x % 32;
        return tile + offset(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    }
    __device__ static __forceinline__ uint32_t right_trans(uint32_t tile) {
        return left(tile);
    }
};

// Starts copies of rows 0 .. ROWS - 1, `stride` elements apart, into a tile: zeros from row `rows` and column `width` on. An
// int holds the stride (attention_packs has looked), and is one where registers are scarce.
template <typename T, int ROWS, int D, typename Stride>
__device__ __forceinline__ void tile_load(uint32_t tile, const T *from, Stride stride, int rows, int width) {
    static_assert(ROWS * Tile<D>::CHUNKS % ATTENTION_THREADS == 0, "whole copies for every thread");
#pragma unroll TILE_LOADS
    for (int i = 0; i < ROWS * Tile<D>::CHUNKS / ATTENTION_THREADS; i++) {
        int index = (int)threadIdx.x + i * ATTENTION_THREADS, row = index / Tile<D>::CHUNKS, chunk = index % Tile<D>::CHUNKS;
        bool valid = row < rows && chunk * 8 < width;
        copy_async_16(tile + Tile<D>::offset(row, chunk), valid ? from + (int64_t)row * stride + chunk * 8 : from, valid);
    }
}

// scores[m][n] = the product of rows 16 m .. of `left` and columns 8 n .. of `right` (addresses of Tile::left and ::right).
template <typename T, int D, int M, int N>
__device__ __forceinline__ void tile_scores(float (&scores)[M][N][4], uint32_t left, uint32_t right) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                scores[m][n][i] = 0;
            }
        }
    }
#pragma unroll 4  // more would let loads run so far ahead that registers spill
    for (int k = 0; k < D / 16; k++) {
        uint32_t a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            ldmatrix_x4(a[m], Tile<D>::move(left, 2 * k) + m * 16 * Tile<D>::BYTES);
        }
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t b[4];
            ldmatrix_x4(b, Tile<D>::move(right, 2 * k) + n * 8 * Tile<D>::BYTES);
            uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_16816<T>(scores[m][n], a[m], b0);
                mma_16816<T>(scores[m][n + 1], a[m], b1);
            }
        }
    }
}

// Accumulators of scores as fragments of a left factor, rounded to T: fragment k is columns 16 k .. 16 k + 15.
template <typename T, int N>
__device__ __forceinline__ void tile_pack(uint32_t (&packed)[N / 2][4], const float (&weights)[N][4]) {
#pragma unroll
    for (int k = 0; k < N / 2; k++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            packed[k][i] = pack_two<T>(weights[2 * k + i / 2][i % 2 * 2], weights[2 * k + i / 2][i % 2 * 2 + 1]);
        }
    }
}

// result[m][n] += weights times `right` (an address of Tile::right_trans).
template <typename T, int D, int M, int K>
__device__ __forceinline__ void tile_apply(float (&result)[M][D / 8][4], const uint32_t (&weights)[M][K][4], uint32_t right) {
#pragma unroll
    for (int k = 0; k < K; k++) {
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, Tile<D>::move(right, n) + k * 16 * Tile<D>::BYTES);
            uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_16816<T>(result[m][n], weights[m][k], b0);
                mma_16816<T>(result[m][n + 1], weights[m][k], b1);
            }
        }
    }
}

// Which accumulators of scores[N][4] dropout keeps: bit 4 n + i for (row + 8 (i / 2), column + 8 n + i % 2), where `row` and
// `column` are those of this thread's first one; of rows and columns one is queries' position, the other keys. A loop that is
// not unrolled: draws are many instructions and would crowd out what the registers hold.
template <int N, bool ROWS_ARE_KEYS>
__device__ __forceinline__ uint32_t tile_kept(const AttentionPlan &p, uint64_t draws, int row, int column) {
    uint32_t bits = 0;
#pragma unroll TILE_LOADS
    for (int e = 0; e < 4 * N; e++) {
        int r = row + e % 4 / 2 * 8, c = column + e / 4 * 8 + e % 2;
        bits |= (uint32_t)(attention_kept(p, draws, ROWS_ARE_KEYS ? c : r, ROWS_ARE_KEYS ? r : c) != 0) << e;
    }
    return bits;
}

// Writes a warp's 16 rows of a result, times factor[0] (rows l / 4) and factor[1] (rows + 8), to rows 0 .. rows - 1 of `to`.
// By way of `shared`, room for 16 rows of a tile that only this warp uses, so that whole chunks are written.
template <typename T, int D>
__device__ __forceinline__ void tile_store(const float (&result)[D / 8][4], const float (&factor)[2], unsigned char *shared,
                                           T *to, int64_t stride, int rows, int width) {
    int lane = (int)threadIdx.x % 32;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t at = Tile<D>::offset(lane / 4 + 8 * half, n) + lane % 4 * 4;
            *(uint32_t *)(shared + at) =
                pack_two<T>(result[n][2 * half] * factor[half], result[n][2 * half + 1] * factor[half]);
        }
    }
    __syncwarp();
#pragma unroll 2
    for (int i = lane; i < 16 * Tile<D>::CHUNKS; i += 32) {
        int row = i / Tile<D>::CHUNKS, chunk = i % Tile<D>::CHUNKS;
        if (row < rows && chunk * 8 < width) {
            *(uint4 *)(to + row * stride + chunk * 8) = *(const uint4 *)(shared + Tile<D>::offset(row, chunk));
        }
    }
}

// Runs a statement with T the element type and D the padded head width.
#define ATTENTION_WIDTH(D, value, ...)                                                                                         \
    {                                                                                                                          \
        enum { D = value };                                                                                                    \
        __VA_ARGS__;                                                                                                           \
    }
#define ATTENTION_WIDTHS(width, D, ...)                                                                                        \
    if ((width) <= 32) {                                                                                                       \
        ATTENTION_WIDTH(D, 32, __VA_ARGS__)                                                                                    \
    } else if ((width) <= 64) {                                                                                                \
        ATTENTION_WIDTH(D, 64, __VA_ARGS__)                                                                                    \
    } else if ((width) <= 96) {                                                                                                \
        ATTENTION_WIDTH(D, 96, __VA_ARGS__)                                                                                    \
    } else if ((width) <= 128) {                                                                                               \
        ATTENTION_WIDTH(D, 128, __VA_ARGS__)                                                                                   \
    } else if ((width) <= 192) {                                                                                               \
        ATTENTION_WIDTH(D, 192, __VA_ARGS__)                                                                                   \
    } else {                                                                                                                   \
        ATTENTION_WIDTH(D, 256, __VA_ARGS__)                                                                                   \
    }

}  // namespace BACKEND
