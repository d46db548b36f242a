// The instructions of <simulated_ptx.h> without their types: what ../warp.cpp, ../async.cpp and ../wgmma.cpp do.
#pragma once

#include <simulated_device.h>

struct CUtensorMap_st;

namespace simulator {

enum class Half : uint8_t { BF16, FP16 };  // the format of 16-bit operands

// ---- Order

void barrier_sync(int id, int threads);
void barrier_arrive(int id, int threads);
void cluster_sync();
uint32_t cluster_rank();
void cluster_store(uint32_t shared, uint32_t rank, int value);
void fence_async();
void registers_set(int count, bool grow);

// ---- A warp

void mma_16816(Half format, float *d, const uint32_t *a, const uint32_t *b);
void ldmatrix_x4(uint32_t *r, uint32_t address, bool transpose);
void stmatrix_x4(uint32_t address, const uint32_t *r, bool transpose);

// ---- Asynchronous copies

void copy_async_16(uint32_t shared, const void *global, bool valid);
void copy_async_commit();
void copy_async_wait(unsigned groups);

void mbarrier_init(uint32_t barrier, uint32_t count);
void mbarrier_arrive(uint32_t barrier, uint32_t expected_bytes);
void mbarrier_arrive_remote(uint32_t barrier, uint32_t rank);
void mbarrier_wait(uint32_t barrier, uint32_t parity);

// Boxes of `rank` coordinates. blocks: the ranks of a cluster that get it; 0: this block.
void tma_prefetch(const CUtensorMap_st *map);
void tma_load(int rank, uint32_t shared, const CUtensorMap_st *map, uint32_t barrier, unsigned blocks, const int *coordinates);
void tma_store(int rank, const CUtensorMap_st *map, uint32_t shared, bool add, const int *coordinates);
void bulk_load(uint32_t shared, const void *global, uint32_t bytes, uint32_t barrier);
// Done when a barrier, a release or the thread's end must show them to others, or at once: Timing.
void add_float4(float *global, float x, float y, float z, float w);
void adds_perform();
// Floats: added to those of global memory, or written.
void bulk_store(float *global, uint32_t shared, uint32_t bytes, bool add);
void tma_store_commit();
void tma_store_wait(unsigned groups, bool read_only);

// ---- A warpgroup

struct WgmmaShape {
    int n;
    Half format;
    bool a_in_registers, a_transposed, b_transposed;
    bool operator==(const WgmmaShape &) const = default;
};
// a: 4 registers, or NULL for a_descriptor.
void wgmma(const WgmmaShape &shape, float *d, const uint32_t *a, uint64_t a_descriptor, uint64_t b_descriptor, bool accumulate);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(unsigned groups);

}  // namespace simulator
