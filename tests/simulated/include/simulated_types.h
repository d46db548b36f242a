// Qualifiers and vector types of CUDA C for the host's compiler.
#pragma once

#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __constant__
#define __align__(bytes) alignas(bytes)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {
    }
};

// name1 .. name4 with the alignment of CUDA, and make_name1 .. make_name4.
#define SIMULATED_VECTORS(name, type)                                                                                          \
    struct name##1 {                                                                                                           \
        type x;                                                                                                                \
    };                                                                                                                         \
    struct alignas(2 * sizeof(type)) name##2 {                                                                                 \
        type x, y;                                                                                                             \
    };                                                                                                                         \
    struct name##3 {                                                                                                           \
        type x, y, z;                                                                                                          \
    };                                                                                                                         \
    struct alignas(sizeof(type) < 8 ? 4 * sizeof(type) : 16) name##4 {                                                         \
        type x, y, z, w;                                                                                                       \
    };                                                                                                                         \
    inline name##1 make_##name##1(type x) {                                                                                    \
        return {x};                                                                                                            \
    }                                                                                                                          \
    inline name##2 make_##name##2(type x, type y) {                                                                            \
        return {x, y};                                                                                                         \
    }                                                                                                                          \
    inline name##3 make_##name##3(type x, type y, type z) {                                                                    \
        return {x, y, z};                                                                                                      \
    }                                                                                                                          \
    inline name##4 make_##name##4(type x, type y, type z, type w) {                                                            \
        return {x, y, z, w};                                                                                                   \
    }
SIMULATED_VECTORS(char, signed char)
SIMULATED_VECTORS(uchar, unsigned char)
SIMULATED_VECTORS(short, short)
SIMULATED_VECTORS(ushort, unsigned short)
SIMULATED_VECTORS(int, int)
SIMULATED_VECTORS(uint, unsigned)
SIMULATED_VECTORS(long, long)
SIMULATED_VECTORS(ulong, unsigned long)
SIMULATED_VECTORS(longlong, long long)
SIMULATED_VECTORS(ulonglong, unsigned long long)
SIMULATED_VECTORS(float, float)
SIMULATED_VECTORS(double, double)
#undef SIMULATED_VECTORS
