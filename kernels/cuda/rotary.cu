// Rotary position embedding in place (Su et al. 2021): pairs of a head's first rotary_width elements are turned by an angle
// whose cosine and sine come from a table row of the token's position. See kernels.h for the two ways of pairing.
//
// The turned part of x is read and written once; the table row of a position is read once for each head, from L1 but for the
// first. A thread turns two packs: the same places of both halves of a head, or, interleaved, two neighbours.
#include "kernels/cuda/flat.h"

namespace BACKEND {

// N pairs. `units` of them are a head's, heads * units a row's.
template <int N, typename T> struct Turn {
    Unit<T, N> one, two;
    float cosine[N], sine[N];
};

// First and second elements of a pair, in units and back.
template <int N, typename T> static __device__ __forceinline__ void exchange(Unit<T, N> &one, Unit<T, N> &two) {
    Unit<T, N> even, odd;
#pragma unroll
    for (int j = 0; j < N; j++) {
        even.at[j] = 2 * j < N ? one.at[2 * j % N] : two.at[2 * j % N];
        odd.at[j] = 2 * j + 1 < N ? one.at[(2 * j + 1) % N] : two.at[(2 * j + 1) % N];
    }
    one = even, two = odd;
}
template <int N, typename T> static __device__ __forceinline__ void exchange_back(Unit<T, N> &even, Unit<T, N> &odd) {
    Unit<T, N> one, two;
#pragma unroll
    for (int j = 0; j < N; j++) {
        one.at[j] = j % 2 == 0 ? even.at[j / 2] : odd.at[j / 2];
        two.at[j] = (j + N) % 2 == 0 ? even.at[(j + N) / 2] : odd.at[(j + N) / 2];
    }
    even = one, odd = two;
}

// Where unit `unit` of a row starts, and how far from it its second part lies.
static __device__ __forceinline__ int64_t turn_place(const Rotary &a, uint32_t units, uint32_t unit, int n, uint32_t *pair) {
    uint32_t head = unit / units;
    *pair = (unit - head * units) * (uint32_t)n;
    return (int64_t)head * a.head_width + (a.interleaved ? 2 * *pair : *pair);
}

template <int N, typename T> static __global__ void __launch_bounds__(FLAT_THREADS) rotary_kernel(Rotary a, uint32_t units) {
    RowWalk walk = row_walk(units * (uint32_t)a.heads);
    int half = a.rotary_width / 2, apart = a.interleaved ? N : half;
    T *x = (T *)a.x;
    Turn<N, T> turn[FLAT_UNITS];
    uint32_t unit, pair;
#pragma unroll
    for (int u = 0; u < FLAT_UNITS; u++) {
        int64_t row = row_at(walk, u, &unit);
        if (row < a.rows) {
            const T *from = x + row * a.row_stride + turn_place(a, units, unit, N, &pair);
            const float *table = a.cos_sin + (int64_t)a.positions[row] * a.rotary_width + pair;
            turn[u].one = load_unit<N>(from);
            turn[u].two = load_unit<N>(from + apart);
            load_floats<N>(table, turn[u].cosine);
            load_floats<N>(table + half, turn[u].sine);
        }
    }
#pragma unroll
    for (int u = 0; u < FLAT_UNITS; u++) {
        int64_t row = row_at(walk, u, &unit);
        if (row < a.rows) {
            if (a.interleaved) {
                exchange(turn[u].one, turn[u].two);
            }
#pragma unroll
            for (int j = 0; j < N; j++) {
                float first = to_float(turn[u].one.at[j]), second = to_float(turn[u].two.at[j]), cosine = turn[u].cosine[j];
                float sine = a.inverse ? -turn[u].sine[j] : turn[u].sine[j];
                turn[u].one.at[j] = from_float<T>(first * cosine - second * sine);
                turn[u].two.at[j] = from_float<T>(second * cosine + first * sine);
            }
            if (a.interleaved) {
                exchange_back(turn[u].one, turn[u].two);
            }
            T *to = x + row * a.row_stride + turn_place(a, units, unit, N, &pair);
            store_unit(to, turn[u].one);
            store_unit(to + apart, turn[u].two);
        }
    }
}

template <int N, typename T> static void rotary_by(Card *card, const Rotary *a) {
    uint32_t units = row_units(a->rotary_width / 2, N);
    row_units((int64_t)units * a->heads, 1);
    launch(card, "rotary", rotary_kernel<N, T>, flat_grid(a->rows * units * a->heads), FLAT_THREADS, 0, *a, units);
}

void rotary(Device *device, const Rotary *a) {
    if (a->rows == 0 || a->heads == 0 || a->rotary_width < 2) {
        return;
    }
    WITH_TYPE(device->type, T, {
        bool packs = row_of_packs<T>(a->rotary_width / 2) && row_of_packs<T>(a->head_width) && row_of_packs<T>(a->row_stride);
        if (packs && aligned_16(a->x) && aligned_16(a->cos_sin)) {
            rotary_by<Pack<T>::COUNT, T>(card_of(device), a);
        } else {
            rotary_by<1, T>(card_of(device), a);
        }
    })
}

}  // namespace BACKEND
