// The bodies of kernels/cuda/ptx.h for the simulated GPU. Contracts stand there.
#pragma once

#include <simulated_instructions.h>

namespace BACKEND {

template <typename T> inline constexpr simulator::Half HALF_FORMAT = simulator::Half::FP16;
template <> inline constexpr simulator::Half HALF_FORMAT<bf16> = simulator::Half::BF16;

inline uint32_t shared_address(const void *pointer) {
    return simulator::shared_address(pointer);
}
inline uint32_t shared_address_swizzled(const void *memory) {
    uint32_t address = simulator::shared_address(memory);
    ensure(address % 1024 == 0, "dynamic shared memory at %u", address);
    return address;
}
inline void barrier_sync(int id, int threads) {
    simulator::barrier_sync(id, threads);
}
inline void barrier_arrive(int id, int threads) {
    simulator::barrier_arrive(id, threads);
}
inline void fence_async() {
    simulator::fence_async();
}
inline void fence_async_global() {
}
inline int load_acquire(const int *word) {
    simulator::thread_poll();
    return *(const volatile int *)word;
}
inline void add_release(int *word, int value) {
    simulator::adds_perform();
    atomicAdd(word, value);
}
inline void add_float4(float4 *to, float4 value) {
    simulator::add_float4(&to->x, value.x, value.y, value.z, value.w);
}
inline void nap() {
    simulator::thread_nap();
}
inline float exp2_fast(float x) {
    return simulator::flush(exp2f(simulator::flush(x)));
}
inline float tanh_fast(float x) {  // keeps 11 bits, which is what the instruction promises
    return __uint_as_float((__float_as_uint(tanhf(x)) + 0x1000) & 0xFFFFE000);
}
// One unit in the last place beside the quotient, to a side that x decides: the instruction promises no more. Of a power of two
// it is exact.
inline float reciprocal_fast(float x) {
    x = simulator::flush(x);
    uint32_t bits = __float_as_uint(x), y = __float_as_uint(1 / x);
    if ((bits & 0x7FFFFF) != 0 && (y & 0x7FFFFF) != 0) {
        y += (bits * 0x9E3779B1u >> 30) % 3 - 1;
    }
    return simulator::flush(__uint_as_float(y));
}
inline float min_or_nan(float x, float y) {
    return x != x || y != y ? NAN : x < y ? x : y;
}
inline float max_or_nan(float x, float y) {
    return x != x || y != y ? NAN : x > y ? x : y;
}

template <typename T> inline void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    simulator::mma_16816(HALF_FORMAT<T>, d, a, b);
}
inline void ldmatrix_x4(uint32_t (&r)[4], uint32_t address) {
    simulator::ldmatrix_x4(r, address, false);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t address) {
    simulator::ldmatrix_x4(r, address, true);
}
inline void stmatrix_x4(uint32_t address, const uint32_t (&r)[4]) {
    simulator::stmatrix_x4(address, r, false);
}
inline void stmatrix_x4_trans(uint32_t address, const uint32_t (&r)[4]) {
    simulator::stmatrix_x4(address, r, true);
}

inline void copy_async_16(uint32_t shared, const void *global, bool valid) {
    simulator::copy_async_16(shared, global, valid);
}
inline void copy_async_commit() {
    simulator::copy_async_commit();
}
template <int N> inline void copy_async_wait() {
    simulator::copy_async_wait(N);
}

inline void mbarrier_init(uint32_t barrier, uint32_t count) {
    simulator::mbarrier_init(barrier, count);
}
inline void fence_mbarrier_init() {
    __threadfence();
}
inline void mbarrier_arrive(uint32_t barrier) {
    simulator::mbarrier_arrive(barrier, 0);
}
inline void mbarrier_expect(uint32_t barrier, uint32_t bytes) {
    simulator::mbarrier_arrive(barrier, bytes);
}
inline void mbarrier_arrive_remote(uint32_t barrier, uint32_t rank) {
    simulator::mbarrier_arrive_remote(barrier, rank);
}
inline void mbarrier_wait(uint32_t barrier, uint32_t parity) {
    simulator::mbarrier_wait(barrier, parity);
}

inline uint32_t cluster_rank() {
    return simulator::cluster_rank();
}
inline void cluster_sync() {
    simulator::cluster_sync();
}

inline void cluster_store(uint32_t shared, uint32_t rank, int value) {
    simulator::cluster_store(shared, rank, value);
}
inline void tma_prefetch(const CUtensorMap *map) {
    simulator::tma_prefetch(map);
}
inline void tma_load_2d(uint32_t shared, const CUtensorMap *map, uint32_t barrier, int c0, int c1) {
    const int c[] = {c0, c1};
    simulator::tma_load(2, shared, map, barrier, 0, c);
}
inline void tma_load_3d(uint32_t shared, const CUtensorMap *map, uint32_t barrier, int c0, int c1, int c2) {
    const int c[] = {c0, c1, c2};
    simulator::tma_load(3, shared, map, barrier, 0, c);
}
inline void tma_load_4d(uint32_t shared, const CUtensorMap *map, uint32_t barrier, int c0, int c1, int c2, int c3) {
    const int c[] = {c0, c1, c2, c3};
    simulator::tma_load(4, shared, map, barrier, 0, c);
}
inline void tma_load_2d_multicast(uint32_t shared, const CUtensorMap *map, uint32_t barrier, uint16_t blocks, int c0, int c1) {
    const int c[] = {c0, c1};
    simulator::tma_load(2, shared, map, barrier, blocks, c);
}
inline void tma_store_2d(const CUtensorMap *map, uint32_t shared, int c0, int c1) {
    const int c[] = {c0, c1};
    simulator::tma_store(2, map, shared, false, c);
}
inline void tma_store_3d(const CUtensorMap *map, uint32_t shared, int c0, int c1, int c2) {
    const int c[] = {c0, c1, c2};
    simulator::tma_store(3, map, shared, false, c);
}
inline void tma_store_4d(const CUtensorMap *map, uint32_t shared, int c0, int c1, int c2, int c3) {
    const int c[] = {c0, c1, c2, c3};
    simulator::tma_store(4, map, shared, false, c);
}
inline void tma_add_3d(const CUtensorMap *map, uint32_t shared, int c0, int c1, int c2) {
    const int c[] = {c0, c1, c2};
    simulator::tma_store(3, map, shared, true, c);
}
inline void bulk_add_float(float *global, uint32_t shared, uint32_t bytes) {
    simulator::bulk_store(global, shared, bytes, true);
}
inline void bulk_store(float *global, uint32_t shared, uint32_t bytes) {
    simulator::bulk_store(global, shared, bytes, false);
}
inline void bulk_load(uint32_t shared, const void *global, uint32_t bytes, uint32_t barrier) {
    simulator::bulk_load(shared, global, bytes, barrier);
}
inline void prefetch_line(const void *global) {
    (void)*(const volatile unsigned char *)global;  // must be memory
}
inline void tma_store_commit() {
    simulator::tma_store_commit();
}
template <int N> inline void tma_store_wait_read() {
    simulator::tma_store_wait(N, true);
}
template <int N> inline void tma_store_wait() {
    simulator::tma_store_wait(N, false);
}

inline void wgmma_fence() {
    simulator::wgmma_fence();
}
inline void wgmma_commit() {
    simulator::wgmma_commit();
}
template <int N> inline void wgmma_wait() {
    simulator::wgmma_wait(N);
}
template <int COUNT> inline void registers_fence(float (&d)[COUNT]) {
    __asm__ volatile("" : : "r"(d) : "memory");
}
inline uint32_t computed_anew(uint32_t x) {
    return x;
}
template <int N, typename T, int TRANS_A, int TRANS_B>
inline void wgmma_shared(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
    static_assert(N % 8 == 0 && N >= 8 && N <= 256);
    simulator::wgmma({N, HALF_FORMAT<T>, false, TRANS_A != 0, TRANS_B != 0}, d, NULL, a, b, accumulate);
}
template <int N, typename T, int TRANS_B>
inline void wgmma_registers(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    static_assert(N % 8 == 0 && N >= 8 && N <= 256);
    simulator::wgmma({N, HALF_FORMAT<T>, true, false, TRANS_B != 0}, d, a, 0, b, accumulate);
}

template <int N> inline void registers_shrink() {
    simulator::registers_set(N, false);
}
template <int N> inline void registers_grow() {
    simulator::registers_set(N, true);
}

}  // namespace BACKEND
