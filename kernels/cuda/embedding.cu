// Embedding: rows looked up, and their gradients summed back.
//
//   y[r] = scale * token_table[tokens[r]] + position_table[positions[r]]
//   dtoken_table[tokens[r]] += scale * dy[r];  dposition_table[positions[r]] += dy[r]
//
// Forward, a table row is read for each row that asks for it (from L2 where tokens repeat) and y is written once.
//
// Backward, several rows add to one row of a table, and the order of additions must not depend on who comes first. So the rows
// are sorted by their index (radix_sort.h: stable, so that rows of one index stay in order), which puts those of one index side
// by side, in a run, and each run has a single owner:
//   - a run of less than LONG_RUN rows: a block, whose threads share the columns and add the rows in order;
//   - a longer one (a frequent token, a position): for each stretch of columns a block, whose warps add every LONG_WARPS-th
//     row, and whose first warp adds what the warps have, in order.
// dy is read once a table, each row of the table that occurs is read and written once, in fp32.
#include "kernels/cuda/flat.h"
#include "kernels/cuda/radix_sort.h"

namespace BACKEND {

// ---- Forward

struct LookUp {
    int64_t rows;
    uint32_t units;  // of a row
    const int32_t *tokens, *positions;
    float scale;
    uint32_t first, vocabulary;  // the tokens that the table has
};

template <int N, typename T>
static __global__ void __launch_bounds__(FLAT_THREADS)
    look_up_kernel(LookUp a, const T *token_table, const T *position_table, T *y) {
    RowWalk walk = row_walk(a.units);
    Unit<T, N> token[FLAT_UNITS], position[FLAT_UNITS];
    uint32_t unit;
#pragma unroll
    for (int u = 0; u < FLAT_UNITS; u++) {
        int64_t row = row_at(walk, u, &unit);
        if (row < a.rows) {
            uint32_t place = (uint32_t)a.tokens[row] - a.first;
            token[u] = place < a.vocabulary ? load_unit<N>(token_table + ((int64_t)place * a.units + unit) * N) : Unit<T, N>{};
            if (position_table != NULL) {
                position[u] = load_unit<N>(position_table + ((int64_t)a.positions[row] * a.units + unit) * N);
            }
        }
    }
#pragma unroll
    for (int u = 0; u < FLAT_UNITS; u++) {
        int64_t row = row_at(walk, u, &unit);
        if (row < a.rows) {
#pragma unroll
            for (int j = 0; j < N; j++) {
                float sum = a.scale * to_float(token[u].at[j]);
                token[u].at[j] = from_float<T>(position_table != NULL ? sum + to_float(position[u].at[j]) : sum);
            }
            store_unit(y + (row * a.units + unit) * N, token[u]);
        }
    }
}

template <int N, typename T> static void look_up(Card *card, const EmbeddingForward *a) {
    LookUp look = {
        a->rows, row_units(a->width, N), a->tokens, a->positions, a->scale, (uint32_t)a->first, (uint32_t)a->vocabulary};
    launch(card, "embedding_forward", look_up_kernel<N, T>, flat_grid(a->rows * look.units), FLAT_THREADS, 0, look,
           (const T *)a->token_table, (const T *)a->position_table, (T *)a->y);
}

void embedding_forward(Device *device, const EmbeddingForward *a) {
    WITH_TYPE(device->type, T, {
        if (row_of_packs<T>(a->width) && aligned_16(a->token_table) && aligned_16(a->position_table) && aligned_16(a->y)) {
            look_up<Pack<T>::COUNT, T>(card_of(device), a);
        } else {
            look_up<1, T>(card_of(device), a);
        }
    })
}

// ---- Backward

enum {
    LONG_RUN = 64,
    LONG_WARPS = 16,
    OWNER_THREADS = 128,  // of a short run, at most
    AT_ONCE = 4,          // rows whose loads are in flight together
};

// The sorted pairs of index and row, and what is summed.
struct Runs {
    int64_t count;  // rows
    const uint32_t *indices, *rows;
    uint32_t units;  // of a row
    float scale;
    uint32_t first, limit;  // indices that the table has: first .. first + limit - 1
};

// sum += dy rows rows[first], rows[first + step] ... before `end`, in this order, unit `unit` of each.
template <int N, typename T>
static __device__ __forceinline__ void sum_rows(const Runs &runs, const T *dy, int64_t first, int64_t end, int step,
                                                uint32_t unit, float (&sum)[N]) {
    for (int64_t i = first; i < end; i += AT_ONCE * step) {
        Unit<T, N> some[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            if (i + k * step < end) {
                some[k] = load_unit_once<N>(dy + ((int64_t)runs.rows[i + k * step] * runs.units + unit) * N);
            }
        }
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            if (i + k * step < end) {
#pragma unroll
                for (int j = 0; j < N; j++) {
                    sum[j] += to_float(some[k].at[j]);
                }
            }
        }
    }
}

// held += scale * sum, where held are N floats of the table.
template <int N>
static __device__ __forceinline__ void store_sum(float scale, const float (&sum)[N], float (&held)[N], float *to) {
#pragma unroll
    for (int j = 0; j < N; j++) {
        held[j] += scale * sum[j];
    }
    store_floats<N>(to, held);
}

// A block for each sorted place: the block where a short run starts owns it.
template <int N, typename T>
static __global__ void __launch_bounds__(OWNER_THREADS) short_runs_kernel(Runs runs, const T *dy, float *table) {
    int64_t start = blockIdx.x, end = start + 1;
    uint32_t index = runs.indices[start];
    if ((start > 0 && runs.indices[start - 1] == index) || index - runs.first >= runs.limit) {
        return;
    }
    if (start + LONG_RUN <= runs.count && runs.indices[start + LONG_RUN - 1] == index) {
        return;
    }
    while (end < runs.count && runs.indices[end] == index) {
        end++;
    }
    for (uint32_t unit = threadIdx.x; unit < runs.units; unit += blockDim.x) {
        float *to = table + ((int64_t)(index - runs.first) * runs.units + unit) * N, sum[N] = {}, held[N];
        load_floats<N>(to, held);  // in flight with the rows
        sum_rows<N>(runs, dy, start, end, 1, unit, sum);
        store_sum<N>(runs.scale, sum, held, to);
    }
}

// The first place in [low, high] whose index is not less than `index`; sorted[high] counts as larger.
static __device__ __forceinline__ int64_t lower_bound(const uint32_t *sorted, int64_t low, int64_t high, uint32_t index) {
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (sorted[middle] < index) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

// A block for each LONG_RUN-th sorted place (x) and stretch of 32 units (y). A long run holds such a place at least; the block
// of the first one owns the run.
template <int N, typename T>
static __global__ void __launch_bounds__(LONG_WARPS * 32) long_runs_kernel(Runs runs, const T *dy, float *table) {
    SHARED(float, sums, [LONG_WARPS][32][N + 1]);  // one float more: lanes in different banks
    int64_t place = (int64_t)blockIdx.x * LONG_RUN;
    uint32_t index = runs.indices[place];
    if ((place > 0 && runs.indices[place - LONG_RUN] == index) || index - runs.first >= runs.limit) {
        return;
    }
    int64_t start = lower_bound(runs.indices, place > 0 ? place - LONG_RUN + 1 : 0, place, index);
    if (start + LONG_RUN > runs.count || runs.indices[start + LONG_RUN - 1] != index) {
        return;
    }
    int64_t end = lower_bound(runs.indices, start + LONG_RUN, runs.count, index + 1);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t unit = blockIdx.y * 32 + lane;
    float sum[N] = {};
    if (unit < runs.units) {
        sum_rows<N>(runs, dy, start + warp, end, LONG_WARPS, unit, sum);
    }
#pragma unroll
    for (int j = 0; j < N; j++) {
        sums[warp][lane][j] = sum[j];
    }
    __syncthreads();
    if (warp == 0 && unit < runs.units) {
        for (int w = 1; w < LONG_WARPS; w++) {
#pragma unroll
            for (int j = 0; j < N; j++) {
                sum[j] += sums[w][lane][j];
            }
        }
        float *to = table + ((int64_t)(index - runs.first) * runs.units + unit) * N, held[N];
        load_floats<N>(to, held);
        store_sum<N>(runs.scale, sum, held, to);
    }
}

template <int N, typename T> static void sum_runs(Card *card, const Runs *runs, const void *dy, float *table) {
    int threads = runs->units >= OWNER_THREADS ? OWNER_THREADS : (int)divide_up(runs->units, 32) * 32;
    launch(card, "embedding_backward short runs", short_runs_kernel<N, T>, dim3((unsigned)runs->count), threads, 0, *runs,
           (const T *)dy, table);
    launch(card, "embedding_backward long runs", long_runs_kernel<N, T>,
           dim3((unsigned)divide_up(runs->count, LONG_RUN), (unsigned)divide_up(runs->units, 32)), LONG_WARPS * 32, 0, *runs,
           (const T *)dy, table);
}

// table[indices[r] - first] += scale * dy[r] for all rows whose index the table has, `limit` from `first` on; indices are below
// `most`.
static void scatter_add(Card *card, DataType type, int64_t rows, int64_t width, const int32_t *indices, int64_t first,
                        int64_t limit, int64_t most, const void *dy, float scale, float *table) {
    RadixSorted sorted = radix_sort(card, indices, rows, most);
    if (sorted.keys == NULL) {
        return;  // no memory, which the card remembers
    }
    Runs runs = {rows, sorted.keys, sorted.values, 0, scale, (uint32_t)first, (uint32_t)limit};
    WITH_TYPE(type, T, {
        if (row_of_packs<T>(width) && aligned_16(dy) && aligned_16(table)) {
            runs.units = row_units(width, Pack<T>::COUNT);
            sum_runs<Pack<T>::COUNT, T>(card, &runs, dy, table);
        } else {
            runs.units = row_units(width, 1);
            sum_runs<1, T>(card, &runs, dy, table);
        }
    })
}

void embedding_backward(Device *device, const EmbeddingBackward *a) {
    if (a->rows == 0 || a->width == 0) {
        return;
    }
    ensure(a->rows <= INT32_MAX, "%lld rows of an embedding", (long long)a->rows);
    ensure(divide_up(a->width, 32) <= 65535, "rows of %lld elements", (long long)a->width);
    Card *card = card_of(device);
    if (a->dtoken_table != NULL) {
        int64_t most = a->tokens_most > 0 ? a->tokens_most : a->vocabulary;
        scatter_add(card, device->type, a->rows, a->width, a->tokens, a->first, a->vocabulary, most, a->dy, a->scale,
                    a->dtoken_table);
    }
    if (a->dposition_table != NULL) {
        scatter_add(card, device->type, a->rows, a->width, a->positions, 0, a->positions_most, a->positions_most, a->dy, 1.0f,
                    a->dposition_table);
    }
}

}  // namespace BACKEND
