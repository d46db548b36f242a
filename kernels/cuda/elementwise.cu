// Sums, fills, scales, conversions and copies of flat arrays and strided rows.
//
//   add        y += x               reads x and y once, writes y once: 3 elements a pair
//   accumulate y += x, y fp32       reads x and y once, writes y once
//   zero       x = 0                writes x once (the driver's memset)
//   scale      x *= factor          fp32; reads and writes x once
//   convert    to = (type) from     reads once, writes once; nearest even; may be in place between types of one size
//   sum_parts  trees over parts     reads each part once, writes once, 4 or 8 bytes at a time: coalesced
//   copy_rows  rows with strides    reads once, writes once, 16, 4 or 1 bytes at a time, as strides and addresses allow
//
// All are limited by memory: what moves is the sizes above. Elements do not depend on each other.
#include "kernels/cuda/flat.h"

#include <type_traits>

namespace BACKEND {

template <typename T>
static __global__ void __launch_bounds__(FLAT_THREADS) add_kernel(int64_t count, int64_t packs, const T *x, T *y) {
    const int N = Pack<T>::COUNT;
    Pack<T> some[FLAT_UNITS], sum[FLAT_UNITS];
#pragma unroll
    for (int u = 0; u < FLAT_UNITS; u++) {
        int64_t i = flat_unit(u);
        if (i < packs) {
            some[u] = load_pack_once(x + i * N);
            sum[u] = load_pack(y + i * N);
        }
    }
#pragma unroll
    for (int u = 0; u < FLAT_UNITS; u++) {
        int64_t i = flat_unit(u);
        if (i < packs) {
#pragma unroll
            for (int j = 0; j < N; j++) {
                sum[u].at[j] = from_float<T>(to_float(some[u].at[j]) + to_float(sum[u].at[j]));
            }
            store_pack(y + i * N, sum[u]);
        }
    }
    for (int64_t i = flat_rest(packs * N); i < count; i += flat_rest_step()) {
        y[i] = from_float<T>(to_float(x[i]) + to_float(y[i]));
    }
}

void add(Device *device, int64_t count, const void *x, void *y) {
    WITH_TYPE(device->type, T, {
        int64_t packs = flat_packs(count, Pack<T>::COUNT, aligned_16(x) && aligned_16(y));
        launch(card_of(device), "add", add_kernel<T>, flat_grid(divide_up(count, Pack<T>::COUNT)), FLAT_THREADS, 0, count,
               packs, (const T *)x, (T *)y);
    })
}

template <typename T>
static __global__ void __launch_bounds__(FLAT_THREADS) accumulate_kernel(int64_t count, int64_t packs, const T *x, float *y) {
    const int N = Pack<T>::COUNT;
    Pack<T> some[FLAT_UNITS];
    float sum[FLAT_UNITS][N];
#pragma unroll
    for (int u = 0; u < FLAT_UNITS; u++) {
        int64_t i = flat_unit(u);
        if (i < packs) {
            some[u] = load_pack_once(x + i * N);
            load_floats<N>(y + i * N, sum[u]);
        }
    }
#pragma unroll
    for (int u = 0; u < FLAT_UNITS; u++) {
        int64_t i = flat_unit(u);
        if (i < packs) {
#pragma unroll
            for (int j = 0; j < N; j++) {
                sum[u][j] += to_float(some[u].at[j]);
            }
            store_floats<N>(y + i * N, sum[u]);
        }
    }
    for (int64_t i = flat_rest(packs * N); i < count; i += flat_rest_step()) {
        y[i] += to_float(x[i]);
    }
}

void accumulate(Device *device, int64_t count, const void *x, float *y) {
    WITH_TYPE(device->type, T, {
        int64_t packs = flat_packs(count, Pack<T>::COUNT, aligned_16(x) && aligned_16(y));
        launch(card_of(device), "accumulate", accumulate_kernel<T>, flat_grid(divide_up(count, Pack<T>::COUNT)), FLAT_THREADS,
               0, count, packs, (const T *)x, y);
    })
}

void zero(Device *device, int64_t bytes, void *x) {
    if (bytes > 0) {
        card_failed(card_of(device), "zero", cudaMemsetAsync(x, 0, (size_t)bytes, card_of(device)->stream));
    }
}

struct Scaling {
    float factor;
    template <int N> __device__ __forceinline__ void operator()(Unit<float, N> &x, int64_t i) const {
#pragma unroll
        for (int j = 0; j < N; j++) {
            x.at[j] *= factor;
        }
    }
};

static __global__ void __launch_bounds__(FLAT_THREADS) scale_kernel(int64_t count, int64_t packs, float factor, float *x) {
    flat_map(count, packs, x, x, Scaling{factor});
}

void scale(Device *device, int64_t count, float factor, float *x) {
    int64_t packs = flat_packs(count, Pack<float>::COUNT, aligned_16(x));
    launch(card_of(device), "scale", scale_kernel, flat_grid(divide_up(count, Pack<float>::COUNT)), FLAT_THREADS, 0, count,
           packs, factor, x);
}

// Groups of 8 elements: one pack of 16 bits, two of 32.
enum { CONVERT_GROUP = 8 };

template <typename T> struct alignas(16) Group { T at[CONVERT_GROUP]; };

template <typename From, typename To>
static __global__ void __launch_bounds__(FLAT_THREADS) convert_kernel(int64_t count, int64_t groups, const From *from, To *to) {
    const int FROM_PACKS = sizeof(Group<From>) / 16, TO_PACKS = sizeof(Group<To>) / 16;
    Group<From> some[FLAT_UNITS];
#pragma unroll
    for (int u = 0; u < FLAT_UNITS; u++) {
        int64_t i = flat_unit(u);
        if (i < groups) {
#pragma unroll
            for (int p = 0; p < FROM_PACKS; p++) {
                ((uint4 *)&some[u])[p] = __ldcs((const uint4 *)(from + i * CONVERT_GROUP) + p);
            }
        }
    }
#pragma unroll
    for (int u = 0; u < FLAT_UNITS; u++) {
        int64_t i = flat_unit(u);
        if (i < groups) {
            Group<To> other;
#pragma unroll
            for (int j = 0; j < CONVERT_GROUP; j++) {
                other.at[j] = from_float<To>(to_float(some[u].at[j]));
            }
#pragma unroll
            for (int p = 0; p < TO_PACKS; p++) {
                ((uint4 *)(to + i * CONVERT_GROUP))[p] = ((uint4 *)&other)[p];
            }
        }
    }
    for (int64_t i = flat_rest(groups * CONVERT_GROUP); i < count; i += flat_rest_step()) {
        to[i] = from_float<To>(to_float(from[i]));
    }
}

template <typename From, typename To> static void convert_between(Card *card, const Convert *a) {
    if constexpr (!std::is_same_v<From, To>) {
        int64_t groups = flat_packs(a->count, CONVERT_GROUP, aligned_16(a->from) && aligned_16(a->to));
        launch(card, "convert", convert_kernel<From, To>, flat_grid(divide_up(a->count, CONVERT_GROUP)), FLAT_THREADS, 0,
               a->count, groups, (const From *)a->from, (To *)a->to);
    } else if (a->from != a->to && a->count > 0) {
        size_t bytes = (size_t)a->count * sizeof(To);
        card_failed(card, "convert", cudaMemcpyAsync(a->to, a->from, bytes, cudaMemcpyDeviceToDevice, card->stream));
    }
}

void convert(Device *device, const Convert *a) {
    WITH_TYPE(a->from_type, From, WITH_TYPE(a->to_type, To, convert_between<From, To>(card_of(device), a)))
}

// Rows of `units` units of type U.
template <typename U>
static __global__ void __launch_bounds__(FLAT_THREADS)
    copy_rows_kernel(int64_t rows, uint32_t units, const char *from, int64_t from_stride, char *to, int64_t to_stride) {
    RowWalk walk = row_walk(units);
    U some[FLAT_UNITS] = {};
#pragma unroll
    for (int u = 0; u < FLAT_UNITS; u++) {
        uint32_t unit;
        int64_t row = row_at(walk, u, &unit);
        if (row < rows) {
            some[u] = ((const U *)(from + row * from_stride))[unit];
        }
    }
#pragma unroll
    for (int u = 0; u < FLAT_UNITS; u++) {
        uint32_t unit;
        int64_t row = row_at(walk, u, &unit);
        if (row < rows) {
            ((U *)(to + row * to_stride))[unit] = some[u];
        }
    }
}

template <typename U> static void copy_rows_by(Card *card, const CopyRows *a) {
    uint32_t units = row_units(a->row_bytes, sizeof(U));
    launch(card, "copy_rows", copy_rows_kernel<U>, flat_grid(a->rows * units), FLAT_THREADS, 0, a->rows, units,
           (const char *)a->from, a->from_stride, (char *)a->to, a->to_stride);
}

void copy_rows(Device *device, const CopyRows *a) {
    Card *card = card_of(device);
    uint64_t all =
        (uint64_t)a->row_bytes | (uintptr_t)a->from | (uintptr_t)a->to | (uint64_t)a->from_stride | (uint64_t)a->to_stride;
    if (a->rows == 0 || a->row_bytes == 0) {
        return;
    }
    if (all % 16 == 0) {
        copy_rows_by<uint4>(card, a);
    } else if (all % 4 == 0) {
        copy_rows_by<uint32_t>(card, a);
    } else {
        copy_rows_by<uint8_t>(card, a);
    }
}

// The tree of kernels.h, an element a thread: what a run of 2^k parts adds up to is kept at level k.
template <typename T> static __global__ void __launch_bounds__(FLAT_THREADS) sum_parts_kernel(SumParts a) {
    int64_t i = (int64_t)blockIdx.x * FLAT_THREADS + threadIdx.x;
    T kept[SUM_PARTS_LEVELS], sum = 0;
    if (i >= a.count) {
        return;
    }
    for (int64_t p = 0; p < a.parts; p++) {
        bool last = p + 1 == a.parts;
        int level = 0;
        sum = ((const T *)a.x)[p * a.stride + i];
        for (; p >> level != 0 && (last || (p >> level) % 2 == 1); level++) {
            sum = (p >> level) % 2 == 1 ? kept[level] + sum : sum;
        }
        if (!last) {
            kept[level] = sum;
        }
    }
    ((T *)a.y)[i] = sum;
}

void sum_parts(Device *device, const SumParts *a) {
    ensure(a->parts >= 1 && a->parts <= 1 << SUM_PARTS_LEVELS, "%lld parts", (long long)a->parts);
    dim3 grid((unsigned)divide_up(a->count, FLAT_THREADS));
    if (a->wide) {
        launch(card_of(device), "sum_parts", sum_parts_kernel<double>, grid, FLAT_THREADS, 0, *a);
    } else {
        launch(card_of(device), "sum_parts", sum_parts_kernel<float>, grid, FLAT_THREADS, 0, *a);
    }
}

}  // namespace BACKEND
