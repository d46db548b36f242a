// LayerNorm and RMSNorm, forward and backward (formulas and shapes in kernels.h).
//
// Backward, with n = (x - mean) rstd (mean 0 for RMSNorm) and g = dy weight:
//   dx = rstd (g - mean(g) - n mean(g n))        RMSNorm: without mean(g)
//   dweight += sum over rows of dy n;  dbias += sum over rows of dy
//
// Memory moved, in elements of the compute type a value:
//   forward   2: x read, y written; with `add` 4: x and add read, sum and y written
//   backward  3: dy and x read, dx written; 4 where dx is accumulated into; and 16 bytes of fp32 a column and multiprocessor
//             for dweight and dbias
//
// Rows of whole packs are held in registers, FORWARD_PACKS or BACKWARD_PACKS packs a thread, so each is read once. A row is
// shared by 32, 64 .. TEAM_MOST threads (a team), the fewest that can hold it: in 16 bits up to 16384 elements forward and 8192
// backward. Sums over a row are sums over lanes, then over warps in order. All other rows (odd widths, longer ones) are walked
// several times, by a team that is a block.
//
// Backward, a block is TEAM_MOST threads, one block a multiprocessor, and goes from row to row: each team adds dweight and
// dbias of its rows in registers (a thread has the same columns in each) and loads the next row while it finishes one; then the
// block's teams are added in order in shared memory, and the blocks' sums go to the workspace, where a second kernel adds them
// in order. So the bits depend on the card's number of multiprocessors, and on nothing else.
#include "kernels/cuda/flat.h"
#include "kernels/cuda/ptx.h"

namespace BACKEND {

enum {
    FORWARD_PACKS = 4,
    BACKWARD_PACKS = 2,
    TEAM_MOST = 512,
    FORWARD_THREADS = 128,  // of a block whose teams are warps
    COLUMN_THREADS = 128,   // a column each
    COLUMN_ROWS = 64,       // rows whose dweight one of them sums
    SUM_WARPS = 16,
};

// ---- Teams

// The threads of a team for rows of `packs` packs, `each` a thread; 0: too long.
static int team_threads(int64_t packs, int each) {
    int threads = 32;
    while (threads <= TEAM_MOST && (int64_t)threads * each < packs) {
        threads *= 2;
    }
    return threads <= TEAM_MOST ? threads : 0;
}

// The threads of a block that walks a row of `units` units: few units each where there are few.
static int walk_threads(int64_t units) {
    int threads = 32;
    while (threads < TEAM_MOST && threads * 4 < units) {
        threads *= 2;
    }
    return threads;
}

// Sums over a team, at most two at a time. The warps' parts lie in one half of `parts` and the next time in the other, so that
// one barrier is enough: who writes a half again has passed the barrier of the sum between.
struct Team {
    int threads, number, lane;  // number in the block, thread in the team
    int turn;
    float (*parts)[2][TEAM_MOST / 32];
};
#define TEAM_PARTS(name) SHARED(float, name, [2][2][TEAM_MOST / 32])
static __device__ __forceinline__ Team team_of(int threads, float (*parts)[2][TEAM_MOST / 32]) {
    return Team{threads, (int)threadIdx.x / threads, (int)threadIdx.x % threads, 0, parts};
}
// WHOLE: a team of more than 32 threads is a whole block. Only the barrier of a block has a number that the compiler knows;
// a kernel with others claims all 16 barriers, which limits how many blocks a multiprocessor takes.
template <bool WHOLE, int COUNT> static __device__ __forceinline__ void team_sum(Team &team, float (&x)[COUNT]) {
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        x[k] = warp_sum(x[k]);
    }
    if (team.threads == 32) {
        return;
    }
    int warps = team.threads / 32, first = team.number * warps;
    if (team.lane % 32 == 0) {
#pragma unroll
        for (int k = 0; k < COUNT; k++) {
            team.parts[team.turn][k][first + team.lane / 32] = x[k];
        }
    }
    if (WHOLE) {
        __syncthreads();
    } else {
        barrier_sync(1 + team.number, team.threads);
    }
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        x[k] = team.parts[team.turn][k][first];
        for (int w = 1; w < warps; w++) {
            x[k] += team.parts[team.turn][k][first + w];
        }
    }
    team.turn ^= 1;
}

// ---- Forward

struct Forward {
    bool layer;
    int64_t rows, width;
    float epsilon;
    float *mean, *rstd;
};

static __device__ __forceinline__ float rstd_of(float squares, int64_t width, float epsilon) {
    return 1.0f / sqrtf(squares / (float)width + epsilon);
}

template <typename T>
static __global__ void __launch_bounds__(TEAM_MOST)
    norm_forward_kernel(Forward a, int threads, const T *x, const T *other, T *summed, const T *weight, const T *bias, T *y) {
    const int N = Pack<T>::COUNT;
    TEAM_PARTS(parts);
    Team team = team_of(threads, parts);
    int64_t row = (int64_t)blockIdx.x * (blockDim.x / threads) + team.number;
    if (row >= a.rows) {
        return;
    }
    int packs = (int)(a.width / N);
    Pack<T> held[FORWARD_PACKS];
#pragma unroll
    for (int p = 0; p < FORWARD_PACKS; p++) {
        int i = p * threads + team.lane;
        if (i < packs) {
            held[p] = load_pack(x + row * a.width + i * N);
        }
    }
    if (other != NULL) {
        Pack<T> added[FORWARD_PACKS];
#pragma unroll
        for (int p = 0; p < FORWARD_PACKS; p++) {
            int i = p * threads + team.lane;
            if (i < packs) {
                added[p] = load_pack_once(other + row * a.width + i * N);
            }
        }
#pragma unroll
        for (int p = 0; p < FORWARD_PACKS; p++) {
            int i = p * threads + team.lane;
            if (i < packs) {
#pragma unroll
                for (int j = 0; j < N; j++) {
                    held[p].at[j] = from_float<T>(to_float(held[p].at[j]) + to_float(added[p].at[j]));
                }
                store_pack(summed + row * a.width + i * N, held[p]);
            }
        }
    }
    float mean = 0;
    if (a.layer) {
        float sum[1] = {};
#pragma unroll
        for (int p = 0; p < FORWARD_PACKS; p++) {
            if (p * threads + team.lane < packs) {
#pragma unroll
                for (int j = 0; j < N; j++) {
                    sum[0] += to_float(held[p].at[j]);
                }
            }
        }
        team_sum<true>(team, sum);
        mean = sum[0] / (float)a.width;
    }
    float squares[1] = {};
#pragma unroll
    for (int p = 0; p < FORWARD_PACKS; p++) {
        if (p * threads + team.lane < packs) {
#pragma unroll
            for (int j = 0; j < N; j++) {
                float d = to_float(held[p].at[j]) - mean;
                squares[0] += d * d;
            }
        }
    }
    team_sum<true>(team, squares);
    float rstd = rstd_of(squares[0], a.width, a.epsilon);
    if (team.lane == 0) {
        a.rstd[row] = rstd;
        if (a.layer) {
            a.mean[row] = mean;
        }
    }
#pragma unroll
    for (int p = 0; p < FORWARD_PACKS; p++) {
        int i = p * threads + team.lane;
        if (i < packs) {
            Pack<T> w = load_pack(weight + i * N), b;
            if (bias != NULL) {
                b = load_pack(bias + i * N);
            }
#pragma unroll
            for (int j = 0; j < N; j++) {
                float n = (to_float(held[p].at[j]) - mean) * rstd * to_float(w.at[j]);
                held[p].at[j] = from_float<T>(bias != NULL ? n + to_float(b.at[j]) : n);
            }
            store_pack(y + row * a.width + i * N, held[p]);
        }
    }
}

// A block, which is a team, a row, unit after unit: the row is read again for each sum and for y, from the caches.
template <int N, typename T>
static __global__ void __launch_bounds__(TEAM_MOST)
    norm_forward_walk_kernel(Forward a, const T *x, const T *other, T *summed, const T *weight, const T *bias, T *y) {
    TEAM_PARTS(parts);
    Team team = team_of(blockDim.x, parts);
    int64_t row = blockIdx.x;
    const T *from = (other != NULL ? summed : x) + row * a.width;
    if (other != NULL) {
        for (int64_t c = threadIdx.x * N; c < a.width; c += blockDim.x * N) {
            Unit<T, N> one = load_unit<N>(x + row * a.width + c), two = load_unit<N>(other + row * a.width + c);
#pragma unroll
            for (int j = 0; j < N; j++) {
                one.at[j] = from_float<T>(to_float(one.at[j]) + to_float(two.at[j]));
            }
            store_unit(summed + row * a.width + c, one);  // read again by this thread alone
        }
    }
    float mean = 0;
    if (a.layer) {
        float sum[1] = {};
        for (int64_t c = threadIdx.x * N; c < a.width; c += blockDim.x * N) {
            Unit<T, N> some = load_unit<N>(from + c);
#pragma unroll
            for (int j = 0; j < N; j++) {
                sum[0] += to_float(some.at[j]);
            }
        }
        team_sum<true>(team, sum);
        mean = sum[0] / (float)a.width;
    }
    float squares[1] = {};
    for (int64_t c = threadIdx.x * N; c < a.width; c += blockDim.x * N) {
        Unit<T, N> some = load_unit<N>(from + c);
#pragma unroll
        for (int j = 0; j < N; j++) {
            float d = to_float(some.at[j]) - mean;
            squares[0] += d * d;
        }
    }
    team_sum<true>(team, squares);
    float rstd = rstd_of(squares[0], a.width, a.epsilon);
    if (threadIdx.x == 0) {
        a.rstd[row] = rstd;
        if (a.layer) {
            a.mean[row] = mean;
        }
    }
    for (int64_t c = threadIdx.x * N; c < a.width; c += blockDim.x * N) {
        Unit<T, N> some = load_unit<N>(from + c), w = load_unit<N>(weight + c), b;
        if (bias != NULL) {
            b = load_unit<N>(bias + c);
        }
#pragma unroll
        for (int j = 0; j < N; j++) {
            float n = (to_float(some.at[j]) - mean) * rstd * to_float(w.at[j]);
            some.at[j] = from_float<T>(bias != NULL ? n + to_float(b.at[j]) : n);
        }
        store_unit(y + row * a.width + c, some);
    }
}

template <typename T> static void norm_forward_of(Card *card, const NormForward *a) {
    Forward f = {a->kind == NORM_LAYER, a->rows, a->width, a->epsilon, a->mean, a->rstd};
    const T *x = (const T *)a->x, *other = (const T *)a->add, *weight = (const T *)a->weight, *bias = (const T *)a->bias;
    T *summed = (T *)a->sum, *y = (T *)a->y;
    bool packs = row_of_packs<T>(a->width) && aligned_16(x) && aligned_16(other) && aligned_16(summed) && aligned_16(weight) &&
                 aligned_16(bias) && aligned_16(y);
    int threads = team_threads(a->width / Pack<T>::COUNT, FORWARD_PACKS);
    if (packs && threads > 0) {
        int block = threads > 32 ? threads : FORWARD_THREADS;  // a team of several warps is a block
        launch(card, "norm_forward", norm_forward_kernel<T>, dim3((unsigned)divide_up(a->rows, block / threads)), block, 0, f,
               threads, x, other, summed, weight, bias, y);
    } else if (packs) {
        launch(card, "norm_forward", norm_forward_walk_kernel<Pack<T>::COUNT, T>, dim3((unsigned)a->rows),
               walk_threads(a->width / Pack<T>::COUNT), 0, f, x, other, summed, weight, bias, y);
    } else {
        launch(card, "norm_forward", norm_forward_walk_kernel<1, T>, dim3((unsigned)a->rows), walk_threads(a->width), 0, f, x,
               other, summed, weight, bias, y);
    }
}

void norm_forward(Device *device, const NormForward *a) {
    ensure(a->rows <= INT32_MAX, "%lld rows of a norm", (long long)a->rows);
    WITH_TYPE(device->type, T, norm_forward_of<T>(card_of(device), a))
}

// ---- Backward

struct Backward {
    bool layer, accumulate;
    int64_t rows, width;
    float inverse_width;
    const float *mean, *rstd;
    float *sums;  // [blocks][2][width]: dweight and dbias of each block's rows
};

// dx of one value from what was summed over its row.
static __device__ __forceinline__ float norm_slope(float g, float n, float rstd, float mean_g, float mean_gn) {
    return rstd * (g - mean_g - n * mean_gn);
}

// This thread's packs of a row.
template <typename T> struct Held {
    Pack<T> dy[BACKWARD_PACKS], x[BACKWARD_PACKS];
    float mean, rstd;
};

template <typename T>
static __device__ __forceinline__ void hold(Held<T> *held, const Backward &a, const Team &team, int64_t row, const T *dy,
                                            const T *x) {
    const int N = Pack<T>::COUNT;
    if (row >= a.rows) {
        return;
    }
    int packs = (int)(a.width / N);
#pragma unroll
    for (int p = 0; p < BACKWARD_PACKS; p++) {
        int i = p * team.threads + team.lane;
        if (i < packs) {
            held->dy[p] = load_pack_once(dy + row * a.width + i * N);
            held->x[p] = load_pack_once(x + row * a.width + i * N);
        }
    }
    held->mean = a.layer ? a.mean[row] : 0;
    held->rstd = a.rstd[row];
}

// sums[0 .. width) = dweight of the block's rows, sums[width .. 2 width) = dbias: one team after the other adds what it has to
// `both`, of the same size, and the last one writes the sums.
template <int N>
static __device__ __forceinline__ void sum_teams(const Team &team, int teams, int64_t width, float *both, float *sums,
                                                 float (&dweight)[BACKWARD_PACKS][N], float (&dbias)[BACKWARD_PACKS][N]) {
    int packs = (int)(width / N);
    for (int t = 0; t < teams; t++) {
        float *to = t < teams - 1 ? both : sums;
#pragma unroll
        for (int p = 0; p < BACKWARD_PACKS; p++) {
            int i = p * team.threads + team.lane;
            if (team.number == t && i < packs) {
                float before[2][N] = {};
                if (t > 0) {
                    load_floats<N>(both + i * N, before[0]);
                    load_floats<N>(both + width + i * N, before[1]);
                }
#pragma unroll
                for (int j = 0; j < N; j++) {
                    before[0][j] += dweight[p][j];
                    before[1][j] += dbias[p][j];
                }
                store_floats<N>(to + i * N, before[0]);
                store_floats<N>(to + width + i * N, before[1]);
            }
        }
        __syncthreads();
    }
}

// Teams of `threads` threads; team t of block b has the rows t * blocks + b + k * teams * blocks.
template <typename T>
static __global__ void __launch_bounds__(TEAM_MOST, 1)
    norm_backward_kernel(Backward a, int threads, const T *dy, const T *x, const T *weight, T *dx) {
    const int N = Pack<T>::COUNT;
    TEAM_PARTS(parts);
    DYNAMIC_SHARED(shared);  // [2][width] floats where there are several teams
    Team team = team_of(threads, parts);
    int teams = TEAM_MOST / threads, packs = (int)(a.width / N);
    int64_t step = (int64_t)teams * gridDim.x, row = (int64_t)team.number * gridDim.x + blockIdx.x;
    float dweight[BACKWARD_PACKS][N] = {}, dbias[BACKWARD_PACKS][N] = {};
    Held<T> now, next;
    hold(&now, a, team, row, dy, x);
    for (; row < a.rows; row += step, now = next) {
        Pack<T> before[BACKWARD_PACKS];
        float sum[2] = {};  // of g and g n
#pragma unroll
        for (int p = 0; p < BACKWARD_PACKS; p++) {
            int i = p * threads + team.lane;
            if (i < packs && a.accumulate) {
                before[p] = load_pack(dx + row * a.width + i * N);
            }
        }
#pragma unroll
        for (int p = 0; p < BACKWARD_PACKS; p++) {
            int i = p * threads + team.lane;
            if (i < packs) {
                Pack<T> w = load_pack(weight + i * N);
#pragma unroll
                for (int j = 0; j < N; j++) {
                    float d = to_float(now.dy[p].at[j]), n = (to_float(now.x[p].at[j]) - now.mean) * now.rstd;
                    float g = d * to_float(w.at[j]);
                    sum[0] += g;
                    sum[1] += g * n;
                    dweight[p][j] += d * n;
                    dbias[p][j] += d;
                }
            }
        }
        hold(&next, a, team, row + step, dy, x);
        team_sum<false>(team, sum);
        float mean_g = a.layer ? sum[0] * a.inverse_width : 0, mean_gn = sum[1] * a.inverse_width;
#pragma unroll
        for (int p = 0; p < BACKWARD_PACKS; p++) {
            keep_packed(now.dy[p]);
            keep_packed(now.x[p]);
            int i = p * threads + team.lane;
            if (i < packs) {
                Pack<T> w = load_pack(weight + i * N);
#pragma unroll
                for (int j = 0; j < N; j++) {
                    float g = to_float(now.dy[p].at[j]) * to_float(w.at[j]);
                    float n = (to_float(now.x[p].at[j]) - now.mean) * now.rstd;
                    float slope = norm_slope(g, n, now.rstd, mean_g, mean_gn);
                    w.at[j] = from_float<T>(a.accumulate ? to_float(before[p].at[j]) + slope : slope);
                }
                store_pack(dx + row * a.width + i * N, w);
            }
        }
    }
    sum_teams<N>(team, teams, a.width, (float *)shared, a.sums + (int64_t)blockIdx.x * 2 * a.width, dweight, dbias);
}

// dx alone, a block, which is a team, a row, unit after unit.
template <int N, typename T>
static __global__ void __launch_bounds__(TEAM_MOST)
    norm_backward_walk_kernel(Backward a, const T *dy, const T *x, const T *weight, T *dx) {
    TEAM_PARTS(parts);
    Team team = team_of(blockDim.x, parts);
    int64_t row = blockIdx.x;
    float mean = a.layer ? a.mean[row] : 0, rstd = a.rstd[row], sum[2] = {};  // of g and g n
    dy += row * a.width, x += row * a.width, dx += row * a.width;
    for (int64_t c = threadIdx.x * N; c < a.width; c += blockDim.x * N) {
        Unit<T, N> d = load_unit<N>(dy + c), v = load_unit<N>(x + c), w = load_unit<N>(weight + c);
#pragma unroll
        for (int j = 0; j < N; j++) {
            float g = to_float(d.at[j]) * to_float(w.at[j]);
            sum[0] += g;
            sum[1] += g * ((to_float(v.at[j]) - mean) * rstd);
        }
    }
    team_sum<true>(team, sum);
    float mean_g = a.layer ? sum[0] * a.inverse_width : 0, mean_gn = sum[1] * a.inverse_width;
    for (int64_t c = threadIdx.x * N; c < a.width; c += blockDim.x * N) {
        Unit<T, N> d = load_unit<N>(dy + c), v = load_unit<N>(x + c), w = load_unit<N>(weight + c), before;
        if (a.accumulate) {
            before = load_unit<N>(dx + c);
        }
#pragma unroll
        for (int j = 0; j < N; j++) {
            float g = to_float(d.at[j]) * to_float(w.at[j]), n = (to_float(v.at[j]) - mean) * rstd;
            float slope = norm_slope(g, n, rstd, mean_g, mean_gn);
            d.at[j] = from_float<T>(a.accumulate ? to_float(before.at[j]) + slope : slope);
        }
        store_unit(dx + c, d);
    }
}

// dweight and dbias of COLUMN_ROWS rows (blockIdx.y) alone: a thread a column. Reads dy, which dx may replace, so it goes
// first.
template <typename T>
static __global__ void __launch_bounds__(COLUMN_THREADS)
    norm_backward_columns_kernel(Backward a, int64_t rows_each, const T *dy, const T *x) {
    int64_t c = (int64_t)blockIdx.x * COLUMN_THREADS + threadIdx.x;
    int64_t first = blockIdx.y * rows_each, end = first + rows_each < a.rows ? first + rows_each : a.rows;
    if (c >= a.width) {
        return;
    }
    float dweight = 0, dbias = 0;
#pragma unroll 4
    for (int64_t row = first; row < end; row++) {
        float d = to_float(dy[row * a.width + c]), mean = a.layer ? a.mean[row] : 0;
        dweight += d * ((to_float(x[row * a.width + c]) - mean) * a.rstd[row]);
        dbias += d;
    }
    float *sums = a.sums + (int64_t)blockIdx.y * 2 * a.width;
    sums[c] = dweight;
    sums[a.width + c] = dbias;
}

// out[c] += the sum over blocks of sums[b][c], for 32 of the columns begin .. end of dweight and dbias, which stand side by
// side: those of one alone where the other is NULL. Warp w adds blocks w, w + SUM_WARPS ... in order, then the warps are added
// in order.
static __global__ void __launch_bounds__(SUM_WARPS * 32)
    norm_sums_kernel(int64_t width, int64_t begin, int64_t end, int blocks, const float *sums, float *dweight, float *dbias) {
    SHARED(float, parts, [SUM_WARPS][32]);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int64_t c = begin + (int64_t)blockIdx.x * 32 + lane;
    float sum = 0;
#pragma unroll 4
    for (int b = warp; b < blocks; b += SUM_WARPS) {
        sum += c < end ? sums[b * 2 * width + c] : 0;
    }
    parts[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && c < end) {
        for (int w = 1; w < SUM_WARPS; w++) {
            sum += parts[w][lane];
        }
        float *out = c < width ? dweight + c : dbias + (c - width);
        *out += sum;
    }
}

template <typename T> static void norm_backward_of(Card *card, const NormBackward *a) {
    const T *dy = (const T *)a->dy, *x = (const T *)a->x, *weight = (const T *)a->weight;
    T *dx = (T *)a->dx;
    bool packs = row_of_packs<T>(a->width) && aligned_16(dy) && aligned_16(x) && aligned_16(weight) && aligned_16(dx);
    int threads = packs ? team_threads(a->width / Pack<T>::COUNT, BACKWARD_PACKS) : 0;
    // Walked rows: at most 1024 sums a column.
    int64_t rows_each = COLUMN_ROWS * divide_up(a->rows, COLUMN_ROWS * 1024);
    int64_t blocks = divide_up(a->rows, rows_each);
    if (threads > 0) {
        int64_t teams = TEAM_MOST / threads, most = divide_up(a->rows, teams);
        blocks = most < card->multiprocessors ? most : card->multiprocessors;
    }
    float *sums = (float *)card_workspace(card, (size_t)(blocks * 2 * a->width) * sizeof(float));
    if (sums == NULL) {
        return;  // no memory, which the card remembers
    }
    Backward b = {a->kind == NORM_LAYER, a->accumulate, a->rows, a->width, 1.0f / (float)a->width, a->mean, a->rstd, sums};
    int64_t begin = a->dweight != NULL ? 0 : a->width, end = a->dbias != NULL ? 2 * a->width : a->width;
    if (threads > 0) {
        size_t shared = threads < TEAM_MOST ? (size_t)a->width * 2 * sizeof(float) : 0;
        launch(card, "norm_backward", norm_backward_kernel<T>, dim3((unsigned)blocks), TEAM_MOST, shared, b, threads, dy, x,
               weight, dx);
    } else {
        if (begin < end) {
            launch(card, "norm_backward columns", norm_backward_columns_kernel<T>,
                   dim3((unsigned)divide_up(a->width, COLUMN_THREADS), (unsigned)blocks), COLUMN_THREADS, 0, b, rows_each, dy,
                   x);
        }
        if (packs) {
            launch(card, "norm_backward", norm_backward_walk_kernel<Pack<T>::COUNT, T>, dim3((unsigned)a->rows),
                   walk_threads(a->width / Pack<T>::COUNT), 0, b, dy, x, weight, dx);
        } else {
            launch(card, "norm_backward", norm_backward_walk_kernel<1, T>, dim3((unsigned)a->rows), walk_threads(a->width), 0,
                   b, dy, x, weight, dx);
        }
    }
    if (begin < end) {
        launch(card, "norm_backward sums", norm_sums_kernel, dim3((unsigned)divide_up(end - begin, 32)), SUM_WARPS * 32, 0,
               a->width, begin, end, (int)blocks, sums, a->dweight, a->dbias);
    }
}

void norm_backward(Device *device, const NormBackward *a) {
    ensure(a->rows <= INT32_MAX, "%lld rows of a norm", (long long)a->rows);
    if (a->rows > 0) {
        WITH_TYPE(device->type, T, norm_backward_of<T>(card_of(device), a))
    }
}

}  // namespace BACKEND
