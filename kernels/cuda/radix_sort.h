// A stable sort of indices on the card: where each row with a given token lies, for the backward pass of the embedding.
//
// Least significant digit first, DIGITS values a digit, three launches a digit (Satish et al. 2009, "Designing efficient
// sorting algorithms for manycore GPUs"): count each tile's digits; the exclusive sums over (digit, tile) are where a tile's
// first key of a digit belongs; then place the keys. Within a tile a warp ranks 32 keys at a time by comparing their digits, in
// the order of the keys, so there is nothing atomic and the order is always the same.
//
// 8 bytes are read and written for each key and digit, which is little beside the rows that are summed afterwards: a vocabulary
// of up to 2^18 takes two digits.
#pragma once

#include "kernels/cuda/element.h"

namespace BACKEND {

enum {
    SORT_BITS = 9,
    SORT_DIGITS = 1 << SORT_BITS,
    SORT_WARPS = 8,
    SORT_STEPS = 8,  // keys a thread
    SORT_TILE = SORT_WARPS * 32 * SORT_STEPS,
    SCAN_THREADS = 1024,
};

struct RadixSorted {
    const uint32_t *keys, *values;  // [count] keys in rising order; values: where each was. In the workspace.
};

// The digit of each of the thread's keys, and how many keys of the tile with the same digit stand before it, as far as this
// warp's keys go: warp w holds keys w * 32 * SORT_STEPS ... of the tile, lane l keys l, 32 + l, ... of these.
// counts[w][d] becomes the number of warp w's keys with digit d.
struct SortTile {
    uint32_t key[SORT_STEPS];
    int digit[SORT_STEPS], rank[SORT_STEPS];  // digit -1: beyond the end
};

static __device__ __forceinline__ void sort_rank(const uint32_t *keys, int64_t count, int shift, int bits,
                                                 int (*counts)[SORT_DIGITS], SortTile *tile) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int64_t first = (int64_t)blockIdx.x * SORT_TILE + warp * 32 * SORT_STEPS + lane;
    for (int d = lane; d < SORT_DIGITS; d += 32) {
        counts[warp][d] = 0;
    }
#pragma unroll
    for (int s = 0; s < SORT_STEPS; s++) {
        int64_t i = first + s * 32;
        tile->key[s] = i < count ? keys[i] : 0;
        tile->digit[s] = i < count ? (int)(tile->key[s] >> shift & ((1u << bits) - 1)) : -1;
    }
    __syncwarp();
#pragma unroll
    for (int s = 0; s < SORT_STEPS; s++) {
        if (first - lane + s * 32 >= count) {
            break;  // the whole warp is beyond the end
        }
        // The lanes whose digit is this lane's.
        int digit = tile->digit[s];
        unsigned same = __ballot_sync(0xFFFFFFFFu, digit >= 0);
        same = digit >= 0 ? same : ~same;
        for (int b = 0; b < bits; b++) {
            unsigned set = __ballot_sync(0xFFFFFFFFu, digit >> b & 1);
            same &= digit >> b & 1 ? set : ~set;
        }
        int before = __popc(same & ((1u << lane) - 1)), known = digit >= 0 ? counts[warp][digit] : 0;
        tile->rank[s] = known + before;
        __syncwarp();
        if (digit >= 0 && before == 0) {
            counts[warp][digit] = known + __popc(same);
        }
        __syncwarp();
    }
}

// places[d * tiles + t] = how many keys of tile t have digit d.
static __global__ void __launch_bounds__(SORT_WARPS * 32)
    sort_count_kernel(const uint32_t *keys, int64_t count, int shift, int bits, int64_t tiles, int *places) {
    SHARED(int, counts, [SORT_WARPS][SORT_DIGITS]);
    SortTile tile;
    sort_rank(keys, count, shift, bits, counts, &tile);
    __syncthreads();
    for (int d = threadIdx.x; d < 1 << bits; d += SORT_WARPS * 32) {
        int sum = 0;
        for (int w = 0; w < SORT_WARPS; w++) {
            sum += counts[w][d];
        }
        places[d * tiles + blockIdx.x] = sum;
    }
}

// places[i] = the sum of places[0 .. i - 1], by one block.
static __global__ void __launch_bounds__(SCAN_THREADS) sort_scan_kernel(int64_t count, int *places) {
    SHARED(int, sums, [SCAN_THREADS / 32]);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, before = 0;
    for (int64_t start = 0; start < count; start += SCAN_THREADS) {
        int64_t i = start + threadIdx.x;
        int value = i < count ? places[i] : 0, sum = value;
        for (int offset = 1; offset < 32; offset *= 2) {
            int other = __shfl_up_sync(0xFFFFFFFFu, sum, offset);
            sum += lane >= offset ? other : 0;
        }
        if (lane == 31) {
            sums[warp] = sum;
        }
        __syncthreads();
        int whole = 0;
        for (int w = 0; w < SCAN_THREADS / 32; w++) {
            sum += w < warp ? sums[w] : 0;
            whole += sums[w];
        }
        if (i < count) {
            places[i] = before + sum - value;
        }
        before += whole;
        __syncthreads();
    }
}

// values NULL: the places of the keys.
static __global__ void __launch_bounds__(SORT_WARPS * 32)
    sort_place_kernel(const uint32_t *keys, const uint32_t *values, int64_t count, int shift, int bits, int64_t tiles,
                      const int *places, uint32_t *keys_out, uint32_t *values_out) {
    SHARED(int, counts, [SORT_WARPS][SORT_DIGITS]);
    SortTile tile;
    sort_rank(keys, count, shift, bits, counts, &tile);
    __syncthreads();
    for (int d = threadIdx.x; d < 1 << bits; d += SORT_WARPS * 32) {
        int sum = places[d * tiles + blockIdx.x];
        for (int w = 0; w < SORT_WARPS; w++) {
            int own = counts[w][d];
            counts[w][d] = sum;
            sum += own;
        }
    }
    __syncthreads();
    int warp = threadIdx.x / 32;
    int64_t first = (int64_t)blockIdx.x * SORT_TILE + warp * 32 * SORT_STEPS + threadIdx.x % 32;
#pragma unroll
    for (int s = 0; s < SORT_STEPS; s++) {
        if (tile.digit[s] >= 0) {
            int64_t i = first + s * 32, place = counts[warp][tile.digit[s]] + tile.rank[s];
            keys_out[place] = tile.key[s];
            values_out[place] = values != NULL ? values[i] : (uint32_t)i;
        }
    }
}

// Sorts count > 0 keys in [0, limit). The result lies in the workspace and is valid until that is asked for again.
static inline RadixSorted radix_sort(Card *card, const int32_t *keys, int64_t count, int64_t limit) {
    int64_t tiles = divide_up(count, SORT_TILE);
    int whole = 1;
    while (whole < 31 && limit > (int64_t)1 << whole) {
        whole++;
    }
    int passes = (int)divide_up(whole, SORT_BITS), bits = (int)divide_up(whole, passes);
    int64_t array = divide_up(count, 4) * 4;
    uint32_t *memory = (uint32_t *)card_workspace(card, (size_t)(4 * array + SORT_DIGITS * tiles) * sizeof(uint32_t));
    if (memory == NULL) {
        return (RadixSorted){};
    }
    uint32_t *keys_of[2] = {memory, memory + 2 * array}, *values_of[2] = {memory + array, memory + 3 * array};
    int *places = (int *)(memory + 4 * array);
    const uint32_t *from = (const uint32_t *)keys, *values = NULL;
    for (int pass = 0; pass < passes; pass++) {
        launch(card, "sort", sort_count_kernel, dim3((unsigned)tiles), SORT_WARPS * 32, 0, from, count, pass * bits, bits,
               tiles, places);
        launch(card, "sort", sort_scan_kernel, dim3(1), SCAN_THREADS, 0, tiles << bits, places);
        launch(card, "sort", sort_place_kernel, dim3((unsigned)tiles), SORT_WARPS * 32, 0, from, values, count, pass * bits,
               bits, tiles, places, keys_of[pass % 2], values_of[pass % 2]);
        from = keys_of[pass % 2], values = values_of[pass % 2];
    }
    return (RadixSorted){from, values};
}

}  // namespace BACKEND
