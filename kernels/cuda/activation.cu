// Activations and gated units (formulas in kernels.h; values and slopes in activation.h).
//
//   activation_forward  y = activation(x)                        2 elements a value: x read, y written, once
//   gated_forward       y = activation(gate) up                  3: both read, y written
//   gated_backward      dgate = dy up activation'(gate)          5: dy, gate and up read, dgate and dup written
//                       dup = dy activation(gate)
//
// Limited by memory: in 16 bits the dearest (GELU's erf form backward) has 10 bytes for about 40 instructions, a quarter of
// what a multiprocessor can issue in the time that these bytes take. The activation is chosen once for a thread's units.
#include "kernels/cuda/activation.h"
#include "kernels/cuda/flat.h"

namespace BACKEND {

template <Activation A> struct Activating {
    template <typename T, int N> __device__ __forceinline__ void operator()(Unit<T, N> &x, int64_t i) const {
#pragma unroll
        for (int j = 0; j < N; j++) {
            x.at[j] = from_float<T>(activation_value<T>(A, to_float(x.at[j])));
        }
    }
};

template <typename T>
static __global__ void __launch_bounds__(FLAT_THREADS)
    activation_kernel(Activation activation, int64_t count, int64_t packs, const T *x, T *y) {
    WITH_ACTIVATION(activation, A, flat_map(count, packs, x, y, Activating<A>{}))
}

void activation_forward(Device *device, const ActivationForward *a) {
    WITH_TYPE(device->type, T, {
        int64_t packs = flat_packs(a->count, Pack<T>::COUNT, aligned_16(a->x) && aligned_16(a->y));
        launch(card_of(device), "activation_forward", activation_kernel<T>, flat_grid(divide_up(a->count, Pack<T>::COUNT)),
               FLAT_THREADS, 0, a->activation, a->count, packs, (const T *)a->x, (T *)a->y);
    })
}

// ---- Gated units. Rows of pre hold `units` units of gates, then as many of values.

template <Activation A, int N, typename T>
static __device__ __forceinline__ void gate_some(int64_t rows, uint32_t units, const T *pre, T *y) {
    RowWalk walk = row_walk(units);
    Unit<T, N> gate[FLAT_UNITS], up[FLAT_UNITS];
    uint32_t unit;
#pragma unroll
    for (int u = 0; u < FLAT_UNITS; u++) {
        int64_t row = row_at(walk, u, &unit);
        if (row < rows) {
            const T *from = pre + (row * 2 * units + unit) * N;
            gate[u] = load_unit<N>(from);
            up[u] = load_unit<N>(from + (int64_t)units * N);
        }
    }
#pragma unroll
    for (int u = 0; u < FLAT_UNITS; u++) {
        int64_t row = row_at(walk, u, &unit);
        if (row < rows) {
#pragma unroll
            for (int j = 0; j < N; j++) {
                gate[u].at[j] = from_float<T>(activation_value<T>(A, to_float(gate[u].at[j])) * to_float(up[u].at[j]));
            }
            store_unit(y + (row * units + unit) * N, gate[u]);
        }
    }
}

template <int N, typename T>
static __global__ void __launch_bounds__(FLAT_THREADS)
    gated_forward_kernel(Activation activation, int64_t rows, uint32_t units, const T *pre, T *y) {
    WITH_ACTIVATION(activation, A, gate_some<A, N>(rows, units, pre, y))
}

template <int N, typename T> static void gated_forward_by(Card *card, const GatedForward *a) {
    uint32_t units = row_units(a->width, N);
    launch(card, "gated_forward", gated_forward_kernel<N, T>, flat_grid(a->rows * units), FLAT_THREADS, 0, a->activation,
           a->rows, units, (const T *)a->pre, (T *)a->y);
}

void gated_forward(Device *device, const GatedForward *a) {
    WITH_TYPE(device->type, T, {
        if (row_of_packs<T>(a->width) && aligned_16(a->pre) && aligned_16(a->y)) {
            gated_forward_by<Pack<T>::COUNT, T>(card_of(device), a);
        } else {
            gated_forward_by<1, T>(card_of(device), a);
        }
    })
}

template <Activation A, int N, typename T>
static __device__ __forceinline__ void gate_some_backward(int64_t rows, uint32_t units, const T *dy, const T *pre, T *dpre) {
    RowWalk walk = row_walk(units);
    Unit<T, N> d[FLAT_UNITS], gate[FLAT_UNITS], up[FLAT_UNITS];
    uint32_t unit;
#pragma unroll
    for (int u = 0; u < FLAT_UNITS; u++) {
        int64_t row = row_at(walk, u, &unit);
        if (row < rows) {
            const T *from = pre + (row * 2 * units + unit) * N;
            d[u] = load_unit_once<N>(dy + (row * units + unit) * N);
            gate[u] = load_unit_once<N>(from);
            up[u] = load_unit_once<N>(from + (int64_t)units * N);
        }
    }
#pragma unroll
    for (int u = 0; u < FLAT_UNITS; u++) {
        int64_t row = row_at(walk, u, &unit);
        if (row < rows) {
#pragma unroll
            for (int j = 0; j < N; j++) {
                float value, slope, dj = to_float(d[u].at[j]);
                activation_both<T>(A, to_float(gate[u].at[j]), &value, &slope);
                gate[u].at[j] = from_float<T>(dj * to_float(up[u].at[j]) * slope);
                up[u].at[j] = from_float<T>(dj * value);
            }
            T *to = dpre + (row * 2 * units + unit) * N;
            store_unit(to, gate[u]);
            store_unit(to + (int64_t)units * N, up[u]);
        }
    }
}

template <int N, typename T>
static __global__ void __launch_bounds__(FLAT_THREADS)
    gated_backward_kernel(Activation activation, int64_t rows, uint32_t units, const T *dy, const T *pre, T *dpre) {
    WITH_ACTIVATION(activation, A, gate_some_backward<A, N>(rows, units, dy, pre, dpre))
}

template <int N, typename T> static void gated_backward_by(Card *card, const GatedBackward *a) {
    uint32_t units = row_units(a->width, N);
    launch(card, "gated_backward", gated_backward_kernel<N, T>, flat_grid(a->rows * units), FLAT_THREADS, 0, a->activation,
           a->rows, units, (const T *)a->dy, (const T *)a->pre, (T *)a->dpre);
}

void gated_backward(Device *device, const GatedBackward *a) {
    WITH_TYPE(device->type, T, {
        if (row_of_packs<T>(a->width) && aligned_16(a->dy) && aligned_16(a->pre) && aligned_16(a->dpre)) {
            gated_backward_by<Pack<T>::COUNT, T>(card_of(device), a);
        } else {
            gated_backward_by<1, T>(card_of(device), a);
        }
    })
}

}  // namespace BACKEND
