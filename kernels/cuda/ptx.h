// Every PTX instruction that the kernels use, each behind one function.
//
// The comment is the contract; below stands its form in PTX, and tests/simulated has the same functions for the host with the
// same fragment layouts, descriptors, swizzles and rules (<simulated_ptx.h>). Source: PTX ISA 8.x; section names are quoted.
// Shared memory is addressed by 32-bit addresses (shared_address). "Warp", "warpgroup" (4 warps, the first a multiple of 4):
// all of its threads call together with the same arguments, but for fragments.
#pragma once

#include "kernels/cuda/element.h"

// The type of TMA descriptors, CUtensorMap. Only types are used of it: the encoder is asked of the driver at run time.
#include <cuda.h>

namespace BACKEND {

// ---- Addresses, barriers, order

// The shared-memory address of a pointer into this block's shared memory.
__device__ __forceinline__ uint32_t shared_address(const void *pointer);
// The same of the block's dynamic shared memory, which TMA's and wgmma's swizzle needs at a multiple of 1024. The compiler
// does not promise that, though it does so where a kernel has no other shared memory: stops the kernel otherwise.
__device__ __forceinline__ uint32_t shared_address_swizzled(const void *memory);

// Named barrier `id` (1 to 15; 0 is __syncthreads) for `threads` threads of the block, a multiple of 32. arrive does not wait.
__device__ __forceinline__ void barrier_sync(int id, int threads);
__device__ __forceinline__ void barrier_arrive(int id, int threads);

// Makes this thread's writes to shared memory visible to the asynchronous proxy (TMA, wgmma) ("fence.proxy.async").
__device__ __forceinline__ void fence_async();
// Orders what this thread has seen of global memory before its asynchronous copies and additions to it.
__device__ __forceinline__ void fence_async_global();

// A word in global memory that blocks hand to each other: load with acquire, add with release, at the device's scope; nap
// between looks.
__device__ __forceinline__ int load_acquire(const int *word);
__device__ __forceinline__ void add_release(int *word, int value);
// Adds to four fp32 in global memory, aligned to 16; does not wait ("red", .v4.f32, sm_90). Not deterministic unless the
// callers order themselves.
__device__ __forceinline__ void add_float4(float4 *to, float4 value);
__device__ __forceinline__ void nap();

// ---- Arithmetic

// 2^x and tanh(x), one instruction each; relative error 2^-22, absolute error 2^-11.
__device__ __forceinline__ float exp2_fast(float x);
__device__ __forceinline__ float tanh_fast(float x);
// 1 / x, one instruction: relative error 2^-23; 0 where it is below 2^-126, infinity where x is.
__device__ __forceinline__ float reciprocal_fast(float x);
// The lesser and the greater of two, NaN where one is, which fminf and fmaxf would not keep.
__device__ __forceinline__ float min_or_nan(float x, float y);
__device__ __forceinline__ float max_or_nan(float x, float y);

// ---- Tensor cores of sm_80: a warp

// d[16,8] += a[16,16] b[16,8] ("mma.m16n8k16"). With g = lane / 4, t = lane % 4:
//   a[0] = (g, 2t..2t+1), a[1] = (g+8, 2t..), a[2] = (g, 2t+8..), a[3] = (g+8, 2t+8..);  b[0] = (k 2t..2t+1, n g), b[1] = (k
//   2t+8.., n g);  d[0..1] = (g, 2t..2t+1), d[2..3] = (g+8, 2t..2t+1). The lower index is in the low half.
template <typename T> __device__ __forceinline__ void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

// Four 8 x 8 matrices of 16-bit elements ("ldmatrix"): lane 8 i + r gives the address of row r of matrix i (16 bytes, aligned);
// r[i] of lane l = elements 2 (l % 4), +1 of row l / 4 of matrix i; with trans of its transpose.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t address);
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t address);
// The way back ("stmatrix", sm_90).
__device__ __forceinline__ void stmatrix_x4(uint32_t address, const uint32_t (&r)[4]);
__device__ __forceinline__ void stmatrix_x4_trans(uint32_t address, const uint32_t (&r)[4]);

// ---- Asynchronous copies of sm_80: a thread

// 16 bytes from global to shared memory, past L1; zeros where not `valid` (then `global` is not read but must be a pointer).
__device__ __forceinline__ void copy_async_16(uint32_t shared, const void *global, bool valid);
__device__ __forceinline__ void copy_async_commit();
// Waits until at most N of this thread's committed groups are unfinished.
template <int N> __device__ __forceinline__ void copy_async_wait();

// ---- mbarriers of sm_90: 8 bytes of shared memory, 8-aligned

// For `count` arrivals a phase. One thread; then fence_mbarrier_init and a block (or cluster) barrier before others use it.
__device__ __forceinline__ void mbarrier_init(uint32_t barrier, uint32_t count);
__device__ __forceinline__ void fence_mbarrier_init();
__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier);
// An arrival that also announces `bytes` of asynchronous copies to come in this phase.
__device__ __forceinline__ void mbarrier_expect(uint32_t barrier, uint32_t bytes);
// An arrival at the barrier at the same address in block `rank` of the cluster. Says that this thread has read what it waited
// for; ordinary writes to shared or global memory are not published by it (that would be a fence of the whole device each
// time).
__device__ __forceinline__ void mbarrier_arrive_remote(uint32_t barrier, uint32_t rank);
// Waits until the phase of that parity (0 for the first) is over. A fresh barrier's phase "before the first" (parity 1) is
// over.
__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, uint32_t parity);

// ---- Clusters

__device__ __forceinline__ uint32_t cluster_rank();
// A barrier of all threads of the cluster. Of what they wrote it publishes only what fence_mbarrier_init does.
__device__ __forceinline__ void cluster_sync();
// Writes a word of shared memory at the same address of block `rank`, which must have begun (cluster_sync); seen there behind
// another cluster_sync.
__device__ __forceinline__ void cluster_store(uint32_t shared, uint32_t rank, int value);

// ---- TMA: one thread. Coordinates in elements, the fastest dimension first; what lies outside reads as 0 and is not written.

__device__ __forceinline__ void tma_prefetch(const CUtensorMap *map);
// A box into shared memory; its bytes arrive at `barrier`.
__device__ __forceinline__ void tma_load_2d(uint32_t shared, const CUtensorMap *map, uint32_t barrier, int c0, int c1);
__device__ __forceinline__ void tma_load_3d(uint32_t shared, const CUtensorMap *map, uint32_t barrier, int c0, int c1, int c2);
__device__ __forceinline__ void tma_load_4d(uint32_t shared, const CUtensorMap *map, uint32_t barrier, int c0, int c1, int c2,
                                            int c3);
// The same into the same place of every block of the cluster whose bit is set in `blocks`, arriving at each one's barrier.
__device__ __forceinline__ void tma_load_2d_multicast(uint32_t shared, const CUtensorMap *map, uint32_t barrier,
                                                      uint16_t blocks, int c0, int c1);
// A box out of shared memory (written, then fence_async by its writers, then a barrier, before this).
__device__ __forceinline__ void tma_store_2d(const CUtensorMap *map, uint32_t shared, int c0, int c1);
__device__ __forceinline__ void tma_store_3d(const CUtensorMap *map, uint32_t shared, int c0, int c1, int c2);
__device__ __forceinline__ void tma_store_4d(const CUtensorMap *map, uint32_t shared, int c0, int c1, int c2, int c3);
// Adds a box of fp32 to global memory. Not deterministic unless the callers order themselves. Numbers below 2^-126 may count as
// 0, in bulk_add_float and add_float4 too.
__device__ __forceinline__ void tma_add_3d(const CUtensorMap *map, uint32_t shared, int c0, int c1, int c2);
// The same for `bytes` (a multiple of 16) of fp32 ("cp.reduce.async.bulk").
__device__ __forceinline__ void bulk_add_float(float *global, uint32_t shared, uint32_t bytes);
// Writes them instead.
__device__ __forceinline__ void bulk_store(float *global, uint32_t shared, uint32_t bytes);
// `bytes` (a multiple of 16) from global to shared memory; they arrive at `barrier` ("cp.async.bulk").
__device__ __forceinline__ void bulk_load(uint32_t shared, const void *global, uint32_t bytes, uint32_t barrier);
// Begins to bring the 128 bytes around an address into the second-level cache ("prefetch"). (The bulk form takes one address
// for all lanes.)
__device__ __forceinline__ void prefetch_line(const void *global);
__device__ __forceinline__ void tma_store_commit();
// Until at most N committed groups of stores have not read their shared memory; for tma_store_wait: are not complete.
template <int N> __device__ __forceinline__ void tma_store_wait_read();
template <int N> __device__ __forceinline__ void tma_store_wait();

// ---- wgmma of sm_90a: a warpgroup

// The descriptor of an operand tile in shared memory, 128-byte swizzle, tile aligned to 1024 bytes ("matrix-descriptor").
//   K-major: rows of 64 elements (128 bytes), 8 rows an atom of 1024 bytes; stride = 1024 (bytes from atom to atom along M or
//   N), leading unused (16). A step of 16 along K adds 32 bytes to `address`.
//   MN-major (trans): atoms of 8 (K) x 64 (MN); stride = bytes from atom to atom along K, leading = along MN. A step of 16
//   along K adds 2 * stride.
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t address, uint32_t leading, uint32_t stride) {
    return (uint64_t)((address & 0x3FFFF) >> 4) | (uint64_t)((leading & 0x3FFFF) >> 4) << 16 |
           (uint64_t)((stride & 0x3FFFF) >> 4) << 32 | (uint64_t)1 << 62;
}
// The same tile `bytes` further on, a multiple of 16: one addition, where a descriptor anew is several instructions, and
// registers if the compiler keeps it.
__device__ __forceinline__ uint64_t wgmma_advance(uint64_t descriptor, uint32_t bytes) {
    return (descriptor & 0xFFFFFFFF00000000) | (uint32_t)((uint32_t)descriptor + bytes / 16);
}
// Byte offset of 16-byte chunk `chunk` of row `row` (of 128 bytes) in a tile with the 128-byte swizzle.
__device__ __forceinline__ uint32_t swizzle_128(uint32_t row, uint32_t chunk) {
    return row * 128 + ((chunk ^ (row & 7)) << 4);
}

// Before the first wgmma, and after registers that one will read or add to were written otherwise.
__device__ __forceinline__ void wgmma_fence();
__device__ __forceinline__ void wgmma_commit();
// Until at most N committed groups are unfinished. Accumulators may not be touched before.
template <int N> __device__ __forceinline__ void wgmma_wait();
// Tells the compiler that the registers change here, so that it moves no use of them across.
template <int COUNT> __device__ __forceinline__ void registers_fence(float (&d)[COUNT]);
// x, of which the compiler does not know that it is x: what it computes of the result it computes behind this, and keeps none
// of it in registers from before, as it likes to with the descriptors of a loop's tiles.
__device__ __forceinline__ uint32_t computed_anew(uint32_t x);

// d[64,N] = (accumulate ? d : 0) + a[64,16] b[16,N], asynchronous. Warp w, lane l holds rows 16 w + l / 4 and + 8; for each
// group j of 8 columns d[4 j ..] = (row, 8 j + 2 (l % 4)), (row, +1), (row + 8, same), (row + 8, +1). TRANS: the operand is
// MN-major. N: 32, 64, 80, 96, 128, 160, 192 or 256.
template <int N, typename T, int TRANS_A, int TRANS_B>
__device__ __forceinline__ void wgmma_shared(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate);
// The same with a in registers, laid out as in mma_16816 for the warp's 16 rows.
template <int N, typename T, int TRANS_B>
__device__ __forceinline__ void wgmma_registers(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate);

// Gives registers back or takes more: N per thread, a multiple of 8 in 24..256, all warps of a warpgroup ("setmaxnreg").
template <int N> __device__ __forceinline__ void registers_shrink();
template <int N> __device__ __forceinline__ void registers_grow();

}  // namespace BACKEND

#ifdef ATHANOR_SIMULATED
#include <simulated_ptx.h>
#else

namespace BACKEND {

__device__ __forceinline__ uint32_t shared_address(const void *pointer) {
    return (uint32_t)__cvta_generic_to_shared(pointer);
}
__device__ __forceinline__ uint32_t shared_address_swizzled(const void *memory) {
    uint32_t address = shared_address(memory);
    if (address % 1024 != 0) {
        __trap();
    }
    return address;
}
__device__ __forceinline__ void barrier_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void barrier_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void fence_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void fence_async_global() {
    asm volatile("fence.proxy.async.global;" ::: "memory");
}
__device__ __forceinline__ int load_acquire(const int *word) {
    int value;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
    return value;
}
__device__ __forceinline__ void add_release(int *word, int value) {
    asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}
__device__ __forceinline__ void add_float4(float4 *to, float4 value) {
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(value.x), "f"(value.y),
                 "f"(value.z), "f"(value.w)
                 : "memory");
}
__device__ __forceinline__ void nap() {
    asm volatile("nanosleep.u32 64;" ::: "memory");
}
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float tanh_fast(float x) {
    float y;
    asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float reciprocal_fast(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float min_or_nan(float x, float y) {
    float z;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
    return z;
}
__device__ __forceinline__ float max_or_nan(float x, float y) {
    float z;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
    return z;
}

#define MMA_16816(type)                                                                                                        \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "            \
                 "{%8, %9}, {%0, %1, %2, %3};"                                                                                 \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
template <> __device__ __forceinline__ void mma_16816<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    MMA_16816("bf16");
}
template <> __device__ __forceinline__ void mma_16816<fp16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    MMA_16816("f16");
}
#undef MMA_16816

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void stmatrix_x4(uint32_t address, const uint32_t (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]), "r"(r[1]),
                 "r"(r[2]), "r"(r[3])
                 : "memory");
}
__device__ __forceinline__ void stmatrix_x4_trans(uint32_t address, const uint32_t (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]), "r"(r[1]),
                 "r"(r[2]), "r"(r[3])
                 : "memory");
}

__device__ __forceinline__ void copy_async_16(uint32_t shared, const void *global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int N> __device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void mbarrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive_remote(uint32_t barrier, uint32_t rank) {
    asm volatile("{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(barrier),
                 "r"(rank)
                 : "memory");
}
__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, uint32_t parity) {
    asm volatile("{\n.reg .pred done;\nlook:\nmbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra look;\n}" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
}

__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_store(uint32_t shared, uint32_t rank, int value) {
    asm volatile("{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
                 "st.shared::cluster.s32 [remote], %2;\nfence.acq_rel.cluster;\n}" ::"r"(shared),
                 "r"(rank), "r"(value)
                 : "memory");
}

__device__ __forceinline__ void tma_prefetch(const CUtensorMap *map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
#define TMA_LOAD "cp.async.bulk.tensor."
#define TMA_BYTES ".shared::cluster.global.mbarrier::complete_tx::bytes"
__device__ __forceinline__ void tma_load_2d(uint32_t shared, const CUtensorMap *map, uint32_t barrier, int c0, int c1) {
    asm volatile(TMA_LOAD "2d" TMA_BYTES " [%0], [%1, {%3, %4}], [%2];" ::"r"(shared), "l"(map), "r"(barrier), "r"(c0), "r"(c1)
                 : "memory");
}
__device__ __forceinline__ void tma_load_3d(uint32_t shared, const CUtensorMap *map, uint32_t barrier, int c0, int c1, int c2) {
    asm volatile(TMA_LOAD "3d" TMA_BYTES " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared), "l"(map), "r"(barrier), "r"(c0),
                 "r"(c1), "r"(c2)
                 : "memory");
}
__device__ __forceinline__ void tma_load_4d(uint32_t shared, const CUtensorMap *map, uint32_t barrier, int c0, int c1, int c2,
                                            int c3) {
    asm volatile(TMA_LOAD "4d" TMA_BYTES " [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared), "l"(map), "r"(barrier), "r"(c0),
                 "r"(c1), "r"(c2), "r"(c3)
                 : "memory");
}
__device__ __forceinline__ void tma_load_2d_multicast(uint32_t shared, const CUtensorMap *map, uint32_t barrier,
                                                      uint16_t blocks, int c0, int c1) {
    asm volatile(TMA_LOAD "2d" TMA_BYTES ".multicast::cluster [%0], [%1, {%4, %5}], [%2], %3;" ::"r"(shared), "l"(map),
                 "r"(barrier), "h"(blocks), "r"(c0), "r"(c1)
                 : "memory");
}
#undef TMA_LOAD
#undef TMA_BYTES
__device__ __forceinline__ void tma_store_2d(const CUtensorMap *map, uint32_t shared, int c0, int c1) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map), "r"(shared), "r"(c0),
                 "r"(c1)
                 : "memory");
}
__device__ __forceinline__ void tma_store_3d(const CUtensorMap *map, uint32_t shared, int c0, int c1, int c2) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map), "r"(shared),
                 "r"(c0), "r"(c1), "r"(c2)
                 : "memory");
}
__device__ __forceinline__ void tma_store_4d(const CUtensorMap *map, uint32_t shared, int c0, int c1, int c2, int c3) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map), "r"(shared),
                 "r"(c0), "r"(c1), "r"(c2), "r"(c3)
                 : "memory");
}
__device__ __forceinline__ void tma_add_3d(const CUtensorMap *map, uint32_t shared, int c0, int c1, int c2) {
    asm volatile("cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
                 "r"(shared), "r"(c0), "r"(c1), "r"(c2)
                 : "memory");
}
__device__ __forceinline__ void bulk_add_float(float *global, uint32_t shared, uint32_t bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(global), "r"(shared),
                 "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void bulk_store(float *global, uint32_t shared, uint32_t bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global), "r"(shared), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void bulk_load(uint32_t shared, const void *global, uint32_t bytes, uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared),
                 "l"(global), "r"(bytes), "r"(barrier)
                 : "memory");
}
__device__ __forceinline__ void prefetch_line(const void *global) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(global) : "memory");
}
__device__ __forceinline__ void tma_store_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
template <int N> __device__ __forceinline__ void tma_store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
template <int N> __device__ __forceinline__ void tma_store_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}

__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
template <int COUNT> __device__ __forceinline__ void registers_fence(float (&d)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        asm volatile("" : "+f"(d[i])::"memory");
    }
}

__device__ __forceinline__ uint32_t computed_anew(uint32_t x) {
    asm volatile("" : "+r"(x));
    return x;
}

// clang-format off
// The accumulators in text and as operands, eight at a time.
#define WGMMA_N0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define WGMMA_N1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_N2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define WGMMA_N3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_N4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define WGMMA_N5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_N6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define WGMMA_N7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_N8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define WGMMA_N9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define WGMMA_N10 "%80, %81, %82, %83, %84, %85, %86, %87"
#define WGMMA_N11 "%88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_N12 "%96, %97, %98, %99, %100, %101, %102, %103"
#define WGMMA_N13 "%104, %105, %106, %107, %108, %109, %110, %111"
#define WGMMA_N14 "%112, %113, %114, %115, %116, %117, %118, %119"
#define WGMMA_N15 "%120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA_O0 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define WGMMA_O1 "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define WGMMA_O2 "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
#define WGMMA_O3 "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define WGMMA_O4 "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
#define WGMMA_O5 "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#define WGMMA_O6 "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55])
#define WGMMA_O7 "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define WGMMA_O8 "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71])
#define WGMMA_O9 "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])
#define WGMMA_O10 "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87])
#define WGMMA_O11 "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
#define WGMMA_O12 "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103])
#define WGMMA_O13 "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111])
#define WGMMA_O14 "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119])
#define WGMMA_O15 "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
#define WGMMA_NAMES_32 WGMMA_N0 ", " WGMMA_N1
#define WGMMA_OPERANDS_32 WGMMA_O0, WGMMA_O1
#define WGMMA_NAMES_64 WGMMA_NAMES_32 ", " WGMMA_N2 ", " WGMMA_N3
#define WGMMA_OPERANDS_64 WGMMA_OPERANDS_32, WGMMA_O2, WGMMA_O3
#define WGMMA_NAMES_80 WGMMA_NAMES_64 ", " WGMMA_N4
#define WGMMA_OPERANDS_80 WGMMA_OPERANDS_64, WGMMA_O4
#define WGMMA_NAMES_96 WGMMA_NAMES_80 ", " WGMMA_N5
#define WGMMA_OPERANDS_96 WGMMA_OPERANDS_80, WGMMA_O5
#define WGMMA_NAMES_128 WGMMA_NAMES_96 ", " WGMMA_N6 ", " WGMMA_N7
#define WGMMA_OPERANDS_128 WGMMA_OPERANDS_96, WGMMA_O6, WGMMA_O7
#define WGMMA_NAMES_160 WGMMA_NAMES_128 ", " WGMMA_N8 ", " WGMMA_N9
#define WGMMA_OPERANDS_160 WGMMA_OPERANDS_128, WGMMA_O8, WGMMA_O9
#define WGMMA_NAMES_192 WGMMA_NAMES_160 ", " WGMMA_N10 ", " WGMMA_N11
#define WGMMA_OPERANDS_192 WGMMA_OPERANDS_160, WGMMA_O10, WGMMA_O11
#define WGMMA_NAMES_256 WGMMA_NAMES_192 ", " WGMMA_N12 ", " WGMMA_N13 ", " WGMMA_N14 ", " WGMMA_N15
#define WGMMA_OPERANDS_256 WGMMA_OPERANDS_192, WGMMA_O12, WGMMA_O13, WGMMA_O14, WGMMA_O15
// clang-format on

#define WGMMA_SHARED(n, type, a_, b_, p_, ta_, tb_)                                                                            \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p_ ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type         \
                 "." type " {" WGMMA_NAMES_##n "}, %" #a_ ", %" #b_ ", p, 1, 1, %" #ta_ ", %" #tb_ ";\n}"                      \
                 : WGMMA_OPERANDS_##n                                                                                          \
                 : "l"(a), "l"(b), "r"((int)accumulate), "n"(TRANS_A), "n"(TRANS_B)                                            \
                 : "memory")
#define WGMMA_REGISTERS(n, type, a0_, a1_, a2_, a3_, b_, p_, tb_)                                                              \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p_ ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type         \
                 "." type " {" WGMMA_NAMES_##n "}, {%" #a0_ ", %" #a1_ ", %" #a2_ ", %" #a3_ "}, %" #b_ ", p, 1, 1, %" #tb_    \
                                               ";\n}"                                                                          \
                 : WGMMA_OPERANDS_##n                                                                                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate), "n"(TRANS_B)                      \
                 : "memory")
#define WGMMA_EITHER(form, n, ...)                                                                                             \
    if constexpr (IS_BF16<T>) {                                                                                                \
        form(n, "bf16", __VA_ARGS__);                                                                                          \
    } else {                                                                                                                   \
        form(n, "f16", __VA_ARGS__);                                                                                           \
    }
template <typename T> constexpr bool IS_BF16 = false;
template <> constexpr bool IS_BF16<bf16> = true;

template <int N, typename T, int TRANS_A, int TRANS_B>
__device__ __forceinline__ void wgmma_shared(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
    if constexpr (N == 32) {
        WGMMA_EITHER(WGMMA_SHARED, 32, 16, 17, 18, 19, 20);
    } else if constexpr (N == 64) {
        WGMMA_EITHER(WGMMA_SHARED, 64, 32, 33, 34, 35, 36);
    } else if constexpr (N == 80) {
        WGMMA_EITHER(WGMMA_SHARED, 80, 40, 41, 42, 43, 44);
    } else if constexpr (N == 96) {
        WGMMA_EITHER(WGMMA_SHARED, 96, 48, 49, 50, 51, 52);
    } else if constexpr (N == 128) {
        WGMMA_EITHER(WGMMA_SHARED, 128, 64, 65, 66, 67, 68);
    } else if constexpr (N == 160) {
        WGMMA_EITHER(WGMMA_SHARED, 160, 80, 81, 82, 83, 84);
    } else if constexpr (N == 192) {
        WGMMA_EITHER(WGMMA_SHARED, 192, 96, 97, 98, 99, 100);
    } else if constexpr (N == 256) {
        WGMMA_EITHER(WGMMA_SHARED, 256, 128, 129, 130, 131, 132);
    } else {
        static_assert(N == 32, "no such wgmma here");
    }
}

template <int N, typename T, int TRANS_B>
__device__ __forceinline__ void wgmma_registers(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    if constexpr (N == 32) {
        WGMMA_EITHER(WGMMA_REGISTERS, 32, 16, 17, 18, 19, 20, 21, 22);
    } else if constexpr (N == 64) {
        WGMMA_EITHER(WGMMA_REGISTERS, 64, 32, 33, 34, 35, 36, 37, 38);
    } else if constexpr (N == 80) {
        WGMMA_EITHER(WGMMA_REGISTERS, 80, 40, 41, 42, 43, 44, 45, 46);
    } else if constexpr (N == 96) {
        WGMMA_EITHER(WGMMA_REGISTERS, 96, 48, 49, 50, 51, 52, 53, 54);
    } else if constexpr (N == 128) {
        WGMMA_EITHER(WGMMA_REGISTERS, 128, 64, 65, 66, 67, 68, 69, 70);
    } else if constexpr (N == 160) {
        WGMMA_EITHER(WGMMA_REGISTERS, 160, 80, 81, 82, 83, 84, 85, 86);
    } else if constexpr (N == 192) {
        WGMMA_EITHER(WGMMA_REGISTERS, 192, 96, 97, 98, 99, 100, 101, 102);
    } else if constexpr (N == 256) {
        WGMMA_EITHER(WGMMA_REGISTERS, 256, 128, 129, 130, 131, 132, 133, 134);
    } else {
        static_assert(N == 32, "no such wgmma here");
    }
}

template <int N> __device__ __forceinline__ void registers_shrink() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N) : "memory");
}
template <int N> __device__ __forceinline__ void registers_grow() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N) : "memory");
}

}  // namespace BACKEND
#endif
