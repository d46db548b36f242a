// Dropout in place: element i is kept where philox_unit(word (first + i) % 4 of philox(seed, stream, (first + i) / 4)) >=
// probability, and then scaled by 1 / (1 - probability). Nothing is stored: the backward pass draws the same mask again.
//
// x is read and written once. A draw gives the four words of four elements: about 16 instructions an element, half of them
// 32-bit multiplications at half rate, so in 16 bits the arithmetic takes about as long as the 4 bytes of an element.
#include "kernels/cuda/flat.h"

namespace BACKEND {

// What a draw needs; the same for all elements.
struct Draws {
    uint64_t seed, stream, first;  // first: the counter of element 0
    uint32_t threshold;
    float scale;

    template <typename T> __device__ __forceinline__ T kept(T x, uint32_t word) const {
        return from_float<T>(word >= threshold ? to_float(x) * scale : 0.0f);
    }
    template <typename T, int N> __device__ __forceinline__ void operator()(Unit<T, N> &x, int64_t i) const {
#pragma unroll
        for (int j = 0; j < N; j += 4) {
            Philox r = philox(seed, stream, first + (uint64_t)(i * (N / 4) + j / 4));
#pragma unroll
            for (int k = 0; k < 4; k++) {
                x.at[j + k] = kept(x.at[j + k], r.word[k]);
            }
        }
    }
    template <typename T> __device__ __forceinline__ void operator()(Unit<T, 1> &x, int64_t i) const {
        Philox r = philox(seed, stream, first + (uint64_t)(i / 4));
        // Not r.word[i % 4]: an array indexed at run time lies in local memory.
        uint32_t low = i % 2 == 0 ? r.word[0] : r.word[1], high = i % 2 == 0 ? r.word[2] : r.word[3];
        x.at[0] = kept(x.at[0], i % 4 < 2 ? low : high);
    }
};

template <typename T>
static __global__ void __launch_bounds__(FLAT_THREADS) dropout_kernel(int64_t count, int64_t packs, Draws draws, T *x) {
    flat_map(count, packs, x, x, draws);
}

void dropout(Device *device, const Dropout *a) {
    ensure(a->probability >= 0 && a->probability < 1, "dropout %g", (double)a->probability);
    ensure(a->first % 4 == 0, "dropout of elements from %llu", (unsigned long long)a->first);
    Draws draws = {a->seed, a->stream, a->first / 4, philox_threshold(a->probability), 1.0f / (1.0f - a->probability)};
    WITH_TYPE(device->type, T, {
        int64_t packs = flat_packs(a->count, Pack<T>::COUNT, aligned_16(a->x));
        launch(card_of(device), "dropout", dropout_kernel<T>, flat_grid(divide_up(a->count, Pack<T>::COUNT)), FLAT_THREADS, 0,
               a->count, packs, draws, (T *)a->x);
    })
}

}  // namespace BACKEND
