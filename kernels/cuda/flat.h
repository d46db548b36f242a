// How flat arrays and dense rows are shared out to the threads of a grid, for operations whose elements do not depend on each
// other.
//
// The array is cut into units: packs of 16 bytes, or single elements where a pointer or the width of a row does not allow
// packs. A block takes FLAT_BLOCK units in a row, a thread FLAT_UNITS of them, FLAT_THREADS apart, so that a warp's loads are
// contiguous. A kernel loads all of its thread's units before it uses the first: 2048 threads with two packs in flight are 64
// KiB a multiprocessor, more than bandwidth times latency of any card (4.8 TB/s * 0.8 us / 132 = 29 KiB).
#pragma once

#include "kernels/cuda/element.h"

namespace BACKEND {

enum { FLAT_THREADS = 256, FLAT_UNITS = 2, FLAT_BLOCK = FLAT_THREADS * FLAT_UNITS };

// N elements that one instruction moves: N is 1 or Pack<T>::COUNT.
template <typename T, int N> struct alignas(N * sizeof(T)) Unit { T at[N]; };
template <int N, typename T> __device__ __forceinline__ Unit<T, N> load_unit(const T *from) {
    Unit<T, N> unit;
    if constexpr (N == 1) {
        unit.at[0] = *from;
    } else {
        static_assert(N == Pack<T>::COUNT);
        *(uint4 *)&unit = *(const uint4 *)from;
    }
    return unit;
}
// For what is read once.
template <int N, typename T> __device__ __forceinline__ Unit<T, N> load_unit_once(const T *from) {
    Unit<T, N> unit;
    if constexpr (N == 1) {
        unit.at[0] = *from;
    } else {
        static_assert(N == Pack<T>::COUNT);
        *(uint4 *)&unit = __ldcs((const uint4 *)from);
    }
    return unit;
}
template <typename T, int N> __device__ __forceinline__ void store_unit(T *to, const Unit<T, N> &unit) {
    if constexpr (N == 1) {
        *to = unit.at[0];
    } else {
        *(uint4 *)to = *(const uint4 *)&unit;
    }
}

// N floats, N a multiple of 4 with `from` aligned to 16 bytes, or 1.
template <int N> __device__ __forceinline__ void load_floats(const float *from, float (&x)[N]) {
    if constexpr (N == 1) {
        x[0] = *from;
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            float4 four = *(const float4 *)(from + i);
            x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
        }
    }
}
template <int N> __device__ __forceinline__ void store_floats(float *to, const float (&x)[N]) {
    if constexpr (N == 1) {
        *to = x[0];
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            *(float4 *)(to + i) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
        }
    }
}

// The number of blocks for that many units.
static inline dim3 flat_grid(int64_t units) {
    int64_t blocks = divide_up(units, FLAT_BLOCK);
    ensure(blocks <= INT32_MAX, "%lld units in one launch", (long long)units);
    return dim3((unsigned)blocks);
}

// ---- Flat arrays: packs, then what is left. Where a pointer is not aligned all is left over, one element at a time.

// The number of packs of `count` elements, 0 where they cannot be used.
static inline int64_t flat_packs(int64_t count, int pack, bool aligned) {
    return aligned ? count / pack : 0;
}

// Unit number u of this thread.
__device__ __forceinline__ int64_t flat_unit(int u) {
    return (int64_t)blockIdx.x * FLAT_BLOCK + u * FLAT_THREADS + threadIdx.x;
}

// The elements that packs leave over: for (int64_t i = flat_rest(first); i < count; i += flat_rest_step()).
__device__ __forceinline__ int64_t flat_rest(int64_t first) {
    return first + (int64_t)blockIdx.x * FLAT_THREADS + threadIdx.x;
}
__device__ __forceinline__ int64_t flat_rest_step() {
    return (int64_t)gridDim.x * FLAT_THREADS;
}

// y = change of x, which may be y: change(unit, i) changes unit number i of its size in place, Unit<T, COUNT> or Unit<T, 1>.
template <typename T, typename Change>
__device__ __forceinline__ void flat_map(int64_t count, int64_t packs, const T *x, T *y, Change change) {
    const int N = Pack<T>::COUNT;
    Unit<T, N> some[FLAT_UNITS];
#pragma unroll
    for (int u = 0; u < FLAT_UNITS; u++) {
        int64_t i = flat_unit(u);
        if (i < packs) {
            some[u] = load_unit<N>(x + i * N);
        }
    }
#pragma unroll
    for (int u = 0; u < FLAT_UNITS; u++) {
        int64_t i = flat_unit(u);
        if (i < packs) {
            change(some[u], i);
            store_unit(y + i * N, some[u]);
        }
    }
    for (int64_t i = flat_rest(packs * N); i < count; i += flat_rest_step()) {
        Unit<T, 1> one = load_unit<1>(x + i);
        change(one, i);
        store_unit(y + i, one);
    }
}

// ---- Rows of `units` units each, counted through

// Whether rows of `width` elements can be walked in packs; every pointer and every offset into a row has to allow it too.
template <typename T> static inline bool row_of_packs(int64_t width) {
    return width % Pack<T>::COUNT == 0;
}

// The number of units of one row, checked so that the walk below can do with 32 bits within a row.
static inline uint32_t row_units(int64_t width, int unit) {
    int64_t units = width / unit;
    ensure(units <= INT32_MAX - FLAT_BLOCK, "rows of %lld elements", (long long)width);
    return (uint32_t)units;
}

// Where this block's first unit lies. One 64-bit division a thread; those within the block are of 32 bits.
struct RowWalk {
    int64_t row;
    uint32_t unit, units;
};
__device__ __forceinline__ RowWalk row_walk(uint32_t units) {
    uint64_t first = (uint64_t)blockIdx.x * FLAT_BLOCK;
    RowWalk walk;
    walk.row = (int64_t)(first / units);
    walk.unit = (uint32_t)(first % units);
    walk.units = units;
    return walk;
}
// Row and unit in the row of unit number u of this thread.
__device__ __forceinline__ int64_t row_at(const RowWalk &walk, int u, uint32_t *unit) {
    uint32_t offset = walk.unit + u * FLAT_THREADS + threadIdx.x, rows = offset / walk.units;
    *unit = offset - rows * walk.units;
    return walk.row + rows;
}

}  // namespace BACKEND
