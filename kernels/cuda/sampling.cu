// Drawing tokens from logits on a card: contract in kernels.h, the same steps as kernels/cpu/sample.c. A block a row.
//
// Weights exp((logit - largest) / temperature) are written once (4 bytes a column, in scratch) and then read a few times.
// Without a cut by k or p, tokens stand in the order of their ids, and the token is found by running sums in that order. With
// a cut they stand in the order of weight, then id, but are not sorted: three questions are asked of that order,
//
//   how much do the first k weigh;  where does the running sum reach p;  where does it pass the point drawn
//
// and each descends through the bits of the weights (exponent, then 8, 8 and 7 bits of the fraction): a histogram of one digit
// among those that share the digits above tells which digit the place has. Weights of one exponent are whole multiples of one
// unit, so histograms hold exact sums in integers, and the order in which threads add does not matter: deterministic. Among
// tokens of equal weight the place is a number, counted through in the order of ids.
//
// A row of 2^17 columns is read about 12 times, out of the second-level cache: about 0.1 ms, little against a step of decoding.
#include "kernels/cuda/element.h"

namespace BACKEND {

static const int THREADS = 1024;
static const int WARPS = THREADS / 32;
static const int BINS = 256;
static const int LEVELS = 4;
static const unsigned WARP = 0xFFFFFFFFu;

// For each digit: tokens, and the sum of their weights in units, in two parts of 12 bits so that 2^20 tokens fit.
struct Histogram {
    unsigned count[BINS], low[BINS], high[BINS];
};

// A place in the order of weights: the `number`th (from 1) of the tokens of this weight.
struct Place {
    uint32_t key;  // the bits of the weight
    unsigned number;
    unsigned rank;  // in the whole order, from 1
    double sum;     // of the weights up to this place
};

struct Shared {
    Histogram first, later;  // of the exponents; of the level looked at
    Place place;
    double sums[WARPS];
    float best[WARPS];
    int ids[WARPS];
    unsigned counts[WARPS];
    uint32_t prefix;
    int token;
};

// A row and what the block knows of it.
struct Row {
    const float *weights;
    int count;
    Shared *shared;
};

__device__ __forceinline__ int level_shift(int level) {
    return level == 0 ? 23 : level == 1 ? 15 : level == 2 ? 7 : 0;
}

__device__ __forceinline__ bool likelier(float a, int a_id, float b, int b_id) {
    return a > b || (a == b && a_id < b_id);
}

// The id of the largest logit, the lowest among equals; -1 where one is not finite, which is likelier than all that are.
__device__ static int find_best(const float *logits, int count, Shared *shared) {
    float best = -INFINITY;
    int id = INT32_MAX;
    for (int i = threadIdx.x; i < count; i += THREADS) {
        bool finite = fabsf(logits[i]) < INFINITY;
        float x = finite ? logits[i] : INFINITY;
        int candidate = finite ? i : -1;
        if (likelier(x, candidate, best, id)) {
            best = x;
            id = candidate;
        }
    }
    for (int offset = 16; offset > 0; offset /= 2) {
        float other = __shfl_xor_sync(WARP, best, offset);
        int other_id = __shfl_xor_sync(WARP, id, offset);
        if (likelier(other, other_id, best, id)) {
            best = other;
            id = other_id;
        }
    }
    if (threadIdx.x % 32 == 0) {
        shared->best[threadIdx.x / 32] = best;
        shared->ids[threadIdx.x / 32] = id;
    }
    __syncthreads();
    best = shared->best[0];
    id = shared->ids[0];
    for (int w = 1; w < WARPS; w++) {
        if (likelier(shared->best[w], shared->ids[w], best, id)) {
            best = shared->best[w];
            id = shared->ids[w];
        }
    }
    return id;
}

__device__ static void fill_weights(const float *logits, float *weights, int count, int best, double temperature) {
    double largest = (double)logits[best];
    for (int i = threadIdx.x; i < count; i += THREADS) {
        weights[i] = (float)exp(((double)logits[i] - largest) / temperature);
    }
    __syncthreads();
}

// ---- In the order of weights

// The histogram of the digit at `level` among the weights whose digits above are `prefix`.
__device__ static void count_digits(const Row &row, int level, uint32_t prefix, Histogram *h) {
    for (int i = threadIdx.x; i < BINS; i += THREADS) {
        h->count[i] = h->low[i] = h->high[i] = 0;
    }
    __syncthreads();
    int shift = level_shift(level), above = level > 0 ? level_shift(level - 1) : 31;
    for (int i = threadIdx.x; i < row.count; i += THREADS) {
        uint32_t key = __float_as_uint(row.weights[i]);
        if (key >> above == prefix) {
            uint32_t digit = key >> shift & ((1u << (above - shift)) - 1);
            uint32_t units = (key & 0x7FFFFFu) | (key >> 23 > 0 ? 0x800000u : 0);
            atomicAdd(&h->count[digit], 1u);
            atomicAdd(&h->low[digit], units & 0xFFFu);
            atomicAdd(&h->high[digit], units >> 12);
        }
    }
    __syncthreads();
}

// The unit of weights with that exponent.
__device__ __forceinline__ double unit_of(uint32_t exponent) {
    return ldexp(1.0, (exponent > 0 ? (int)exponent : 1) - 150);
}

enum Until { UNTIL_COUNT, UNTIL_REACHED, UNTIL_PASSED };

__device__ __forceinline__ bool arrived(Until until, unsigned rank, double sum, unsigned count, double target) {
    return until == UNTIL_COUNT ? rank >= count : until == UNTIL_REACHED ? sum >= target : sum > target;
}

// By one thread: the digit of the place, heavier ones first. Where rounding hides the place it is in the lightest digit.
__device__ static uint32_t choose_digit(const Histogram *h, int level, uint32_t prefix, Until until, unsigned count,
                                        double target, unsigned *rank, double *sum) {
    int shift = level_shift(level);
    uint32_t chosen = 0;
    unsigned before = *rank;
    double sum_before = *sum;
    for (int digit = BINS - 1; digit >= 0; digit--) {
        if (h->count[digit] > 0) {
            *rank = before;
            *sum = sum_before;
            chosen = (uint32_t)digit;
            uint32_t exponent = level == 0 ? (uint32_t)digit : prefix >> (23 - level_shift(level - 1));
            before += h->count[digit];
            sum_before += ((double)h->high[digit] * 4096.0 + (double)h->low[digit]) * unit_of(exponent);
            if (arrived(until, before, sum_before, count, target)) {
                break;
            }
        }
    }
    return chosen | (prefix << ((level > 0 ? level_shift(level - 1) : 31) - shift));
}

// By one thread: which of the equal weights behind `rank` and `sum`.
__device__ static Place choose_number(uint32_t key, unsigned equals, Until until, unsigned count, double target, unsigned rank,
                                      double sum) {
    double weight = (double)__uint_as_float(key), guess = (target - sum) / weight;
    unsigned number = until == UNTIL_COUNT           ? count - rank
                      : guess >= 1 && guess < equals ? (unsigned)guess
                      : guess < 1                    ? 1
                                                     : equals;
    number = number < 1 ? 1 : number > equals ? equals : number;
    while (number > 1 && arrived(until, rank + number - 1, sum + (number - 1) * weight, count, target)) {
        number--;
    }
    while (number < equals && !arrived(until, rank + number, sum + number * weight, count, target)) {
        number++;
    }
    Place place = {key, number, rank + number, sum + number * weight};
    return place;
}

// The first place in the order of weights at which `until` holds. By the whole block; shared->first is the histogram of level
// 0.
__device__ static Place find_place(const Row &row, Until until, unsigned count, double target) {
    Shared *shared = row.shared;
    unsigned rank = 0;  // thread 0's
    double sum = 0;
    for (int level = 0; level < LEVELS; level++) {
        const Histogram *h = &shared->first;
        if (level > 0) {
            count_digits(row, level, shared->prefix, &shared->later);
            h = &shared->later;
        }
        if (threadIdx.x == 0) {
            uint32_t prefix = choose_digit(h, level, level > 0 ? shared->prefix : 0, until, count, target, &rank, &sum);
            shared->prefix = prefix;
            if (level == LEVELS - 1) {
                shared->place = choose_number(prefix, h->count[prefix & 127], until, count, target, rank, sum);
            }
        }
        __syncthreads();
    }
    return shared->place;
}

// Every warp has its own neighbouring ids, so that their order is that of the warps, then of steps, then of lanes.
__device__ __forceinline__ void warp_range(int count, int *begin, int *end) {
    int each = (count + THREADS - 1) / THREADS * 32;
    *begin = min(count, (int)(threadIdx.x / 32) * each);
    *end = min(count, *begin + each);
}

// The id of a place.
__device__ static int find_id(const Row &row, Place place) {
    Shared *shared = row.shared;
    int begin, end, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    warp_range(row.count, &begin, &end);
    unsigned mine = 0;
    for (int i = begin + lane; i - lane < end; i += 32) {
        mine += (unsigned)__popc(__ballot_sync(WARP, i < end && __float_as_uint(row.weights[i]) == place.key));
    }
    if (lane == 0) {
        shared->counts[warp] = mine;
    }
    __syncthreads();
    unsigned left = place.number;
    for (int w = 0; w < warp; w++) {
        left = left > shared->counts[w] ? left - shared->counts[w] : 0;
    }
    if (left > 0 && left <= mine) {
        for (int i = begin + lane; i - lane < end; i += 32) {
            bool equal = i < end && __float_as_uint(row.weights[i]) == place.key;
            unsigned equals = __ballot_sync(WARP, equal), number = (unsigned)__popc(equals & ((2u << lane) - 1));
            if (equal && number == left) {
                shared->token = i;
            }
            if ((unsigned)__popc(equals) >= left) {
                break;
            }
            left -= (unsigned)__popc(equals);
        }
    }
    __syncthreads();
    return shared->token;
}

__device__ static int draw_by_weight(const Row &row, int64_t top_k, double top_p, double point) {
    count_digits(row, 0, 0, &row.shared->first);
    int64_t kept = top_k > 0 && top_k < row.count ? top_k : row.count;
    Place last = find_place(row, UNTIL_COUNT, (unsigned)kept, 0);
    if (top_p < 1) {
        // The share is one of the sum of all.
        double total = last.sum;
        if (kept < row.count) {
            total = find_place(row, UNTIL_COUNT, (unsigned)row.count, 0).sum;
        }
        Place enough = find_place(row, UNTIL_REACHED, 0, top_p * total);
        last = enough.rank < last.rank ? enough : last;
    }
    point *= last.sum;
    Place drawn = point < last.sum ? find_place(row, UNTIL_PASSED, 0, point) : find_place(row, UNTIL_COUNT, 1, 0);
    return find_id(row, drawn.rank < last.rank ? drawn : last.rank > 0 && point < last.sum ? last : drawn);
}

// ---- In the order of ids

// The inclusive running sum over the lanes of a warp.
__device__ __forceinline__ double warp_running_sum(double x) {
    int lane = threadIdx.x % 32;
    for (int offset = 1; offset < 32; offset *= 2) {
        double before = __shfl_up_sync(WARP, x, offset);
        x += lane >= offset ? before : 0;
    }
    return x;
}

__device__ static int draw_by_id(const Row &row, int best, double point) {
    Shared *shared = row.shared;
    int begin, end, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    warp_range(row.count, &begin, &end);
    double mine = 0;
    for (int i = begin + lane; i - lane < end; i += 32) {
        mine += __shfl_sync(WARP, warp_running_sum(i < end ? (double)row.weights[i] : 0), 31);
    }
    if (lane == 0) {
        shared->sums[warp] = mine;
    }
    if (threadIdx.x == 0) {
        shared->token = best;
    }
    __syncthreads();
    double total = 0, before = 0;
    for (int w = 0; w < WARPS; w++) {
        before = w == warp ? total : before;
        total += shared->sums[w];
    }
    point *= total;
    if (before <= point && point < before + mine) {
        for (int i = begin + lane; i - lane < end; i += 32) {
            double running = before + warp_running_sum(i < end ? (double)row.weights[i] : 0);
            unsigned passed = __ballot_sync(WARP, i < end && running > point);
            if (passed != 0) {
                if (lane == __ffs((int)passed) - 1) {
                    shared->token = i;
                }
                break;
            }
            before = __shfl_sync(WARP, running, 31);
        }
    }
    __syncthreads();
    return shared->token;
}

static __global__ void __launch_bounds__(THREADS) sample_rows(Sample a, int usable, float *weights) {
    SHARED(Shared, shared, [1]);
    const float *logits = a.logits + blockIdx.x * a.vocabulary;
    Row row = {weights + blockIdx.x * a.vocabulary, usable, shared};
    int token = find_best(logits, usable, shared);
    if (token >= 0 && a.temperature > 0) {
        fill_weights(logits, weights + blockIdx.x * a.vocabulary, usable, token, a.temperature);
        double point = (double)(philox_u64(a.seed, a.stream, (uint64_t)a.index[blockIdx.x]) >> 11) * 0x1p-53;
        bool limited = (a.top_k > 0 && a.top_k < usable) || a.top_p < 1;
        token = limited ? draw_by_weight(row, a.top_k, a.top_p, point) : draw_by_id(row, token, point);
    }
    if (threadIdx.x == 0) {
        a.tokens[blockIdx.x] = token;
    }
}

void sample(Device *device, const Sample *a) {
    int64_t usable = a->usable < a->vocabulary ? a->usable : a->vocabulary;
    ensure(usable >= 1 && usable <= 1 << 20, "a draw from %lld tokens", (long long)usable);
    launch(card_of(device), "sample", sample_rows, dim3((unsigned)a->rows), THREADS, 0, *a, (int)usable, (float *)a->scratch);
}

}  // namespace BACKEND
