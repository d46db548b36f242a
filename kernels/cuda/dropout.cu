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
};

template <typename T> static __device__ __forceinline__ T kept(T x, uint32_t word, const Draws &draws) {
    return from_float<T>(word >= draws.threshold ? to_float(x) * draws.scale : 0.0f);
}

template <typename T>
static __global__ void __launch_bounds__(FLAT_THREADS) dropout_kernel(int64_t count, int64_t packs, Draws draws, T *x) {
    const int N = Pack<T>::COUNT;
    Pack<T> some[FLAT_UNITS];
#pragma unroll
    for (int u = 0; u < FLAT_UNITS; u++) {
        int64_t i = flat_unit(u);
        if (i < packs) {
            some[u] = load_pack(x + i * N);
        }
    }
#pragma unroll
    for (int u = 0; u < FLAT_UNITS; u++) {
        int64_t i = flat_unit(u);
        if (i < packs) {
#pragma unroll
            for (int j = 0; j < N; j += 4) {
                Philox r = philox(draws.seed, draws.stream, draws.first + (uint64_t)(i * (N / 4) + j / 4));
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    some[u].at[j + k] = kept(some[u].at[j + k], r.word[k], draws);
                }
            }
            store_pack(x + i * N, some[u]);
        }
    }
    for (int64_t i = flat_rest(packs * N); i < count; i += flat_rest_step()) {
        Philox r = philox(draws.seed, draws.stream, draws.first + (uint64_t)(i / 4));
        // Not r.word[i % 4]: an array indexed at run time lies in local memory.
        uint32_t low = i % 2 == 0 ? r.word[0] : r.word[1], high = i % 2 == 0 ? r.word[2] : r.word[3];
        x[i] = kept(x[i], i % 4 < 2 ? low : high, draws);
    }
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
