// Elements of the compute type, 128-bit packs of them, and sums over warps and blocks. Device code.
#pragma once

#include "kernels/cuda/card.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace BACKEND {

typedef __nv_bfloat16 bf16;
typedef __half fp16;

// float <-> element, rounding to nearest even.
__device__ __forceinline__ float to_float(float x) {
    return x;
}
__device__ __forceinline__ float to_float(bf16 x) {
    return __bfloat162float(x);
}
__device__ __forceinline__ float to_float(fp16 x) {
    return __half2float(x);
}
template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) {
    return __float2bfloat16_rn(x);
}
template <> __device__ __forceinline__ fp16 from_float<fp16>(float x) {
    return __float2half_rn(x);
}

// Two floats as one register of two 16-bit elements, `low` in the low half.
template <typename T> __device__ __forceinline__ uint32_t pack_two(float low, float high);
template <> __device__ __forceinline__ uint32_t pack_two<bf16>(float low, float high) {
    __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
    return *(uint32_t *)&two;
}
template <> __device__ __forceinline__ uint32_t pack_two<fp16>(float low, float high) {
    __half2 two = __floats2half2_rn(low, high);
    return *(uint32_t *)&two;
}

// 16 bytes of elements, moved by one instruction. Addresses are multiples of 16.
template <typename T> struct alignas(16) Pack {
    static const int COUNT = 16 / sizeof(T);
    T at[COUNT];
};
template <typename T> __device__ __forceinline__ Pack<T> load_pack(const T *from) {
    Pack<T> pack;
    *(uint4 *)&pack = *(const uint4 *)from;
    return pack;
}
// For what is read once: does not push other lines out of the cache.
template <typename T> __device__ __forceinline__ Pack<T> load_pack_once(const T *from) {
    Pack<T> pack;
    *(uint4 *)&pack = __ldcs((const uint4 *)from);
    return pack;
}
// What was computed from the pack before is computed again from here on, instead of lying in registers: for packs that are used
// on both sides of a barrier, where they are half as large as their floats. The value stays.
template <typename T> __device__ __forceinline__ void keep_packed(Pack<T> &pack) {
    uint4 *words = (uint4 *)&pack;
    asm volatile("" : "+r"(words->x), "+r"(words->y), "+r"(words->z), "+r"(words->w));
}
template <typename T> __device__ __forceinline__ void store_pack(T *to, const Pack<T> &pack) {
    *(uint4 *)to = *(const uint4 *)&pack;
}
template <typename T> __device__ __forceinline__ void store_pack_once(T *to, const Pack<T> &pack) {
    __stcs((uint4 *)to, *(const uint4 *)&pack);
}

// The numbers of a pack, an instruction each.
__device__ __forceinline__ void pack_floats(const Pack<float> &pack, float (&x)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[i] = pack.at[i];
    }
}
__device__ __forceinline__ void pack_floats(const Pack<bf16> &pack, float (&x)[8]) {
    const uint32_t *two = (const uint32_t *)&pack;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[2 * i] = __uint_as_float(two[i] << 16);
        x[2 * i + 1] = __uint_as_float(two[i] & 0xFFFF0000u);
    }
}
__device__ __forceinline__ void pack_floats(const Pack<fp16> &pack, float (&x)[8]) {
    const __half2 *two = (const __half2 *)&pack;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 numbers = __half22float2(two[i]);
        x[2 * i] = numbers.x;
        x[2 * i + 1] = numbers.y;
    }
}

static inline bool aligned_16(const void *pointer) {
    return ((uintptr_t)pointer & 15) == 0;
}

// The sum and the maximum over the 32 lanes of a warp, in every lane; a fixed order.
__device__ __forceinline__ float warp_sum(float x) {
    for (int offset = 16; offset > 0; offset /= 2) {
        x += __shfl_xor_sync(0xFFFFFFFFu, x, offset);
    }
    return x;
}
__device__ __forceinline__ double warp_sum(double x) {
    for (int offset = 16; offset > 0; offset /= 2) {
        x += __shfl_xor_sync(0xFFFFFFFFu, x, offset);
    }
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
    for (int offset = 16; offset > 0; offset /= 2) {
        x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, offset));
    }
    return x;
}

// The sum over a block of THREADS threads (a multiple of 32), in every thread. Two barriers: may be called again at once.
template <int THREADS, typename T> __device__ __forceinline__ T block_sum(T x) {
    SHARED(T, parts, [THREADS / 32]);
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) {
        parts[threadIdx.x / 32] = x;
    }
    __syncthreads();
    T sum = parts[0];
    for (int i = 1; i < THREADS / 32; i++) {
        sum += parts[i];
    }
    __syncthreads();
    return sum;
}
template <int THREADS> __device__ __forceinline__ float block_max(float x) {
    SHARED(float, parts, [THREADS / 32]);
    x = warp_max(x);
    if (threadIdx.x % 32 == 0) {
        parts[threadIdx.x / 32] = x;
    }
    __syncthreads();
    float most = parts[0];
    for (int i = 1; i < THREADS / 32; i++) {
        most = fmaxf(most, parts[i]);
    }
    __syncthreads();
    return most;
}

// Runs `body` with the element type of a device: WITH_TYPE(device->type, T, kernel<T>...); in host code.
#define WITH_TYPE(type, T, ...)                                                                                                \
    switch (type) {                                                                                                            \
    case TYPE_FP32: {                                                                                                          \
        typedef float T;                                                                                                       \
        __VA_ARGS__;                                                                                                           \
        break;                                                                                                                 \
    }                                                                                                                          \
    case TYPE_BF16: {                                                                                                          \
        typedef bf16 T;                                                                                                        \
        __VA_ARGS__;                                                                                                           \
        break;                                                                                                                 \
    }                                                                                                                          \
    case TYPE_FP16: {                                                                                                          \
        typedef fp16 T;                                                                                                        \
        __VA_ARGS__;                                                                                                           \
        break;                                                                                                                 \
    }                                                                                                                          \
    default:                                                                                                                   \
        ensure(false, "no kernel computes in %s", data_type_name(type));                                                       \
    }

}  // namespace BACKEND
