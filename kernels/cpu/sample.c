// Drawing tokens from logits: temperature, top-k, top-p (Holtzman et al. 2020); contract in kernels.h.
//
//   weight[i] = exp((logit[i] - largest) / temperature), in double, rounded to float
//
// Candidates are ordered by weight, then by id, so that the order is total, and cut by k and p; the token is the first whose
// running sum of weights passes the point (a share of the sum). Without a cut the order is that of the ids.
#include "kernels/cpu/cpu.h"

#include "core/philox.h"
#include "kernels/device.h"

#include <math.h>

typedef struct Candidate {
    float weight;
    int32_t id;
} Candidate;
_Static_assert(sizeof(Candidate) == 8, "see sample_scratch_bytes");

static int heavier_first(const void *a, const void *b) {
    const Candidate *x = a, *y = b;
    if (x->weight != y->weight) {
        return x->weight > y->weight ? -1 : 1;
    }
    return x->id < y->id ? -1 : 1;
}

static int32_t draw(const Sample *a, const float *logits, int64_t index, Candidate *candidates) {
    int64_t usable = a->usable < a->vocabulary ? a->usable : a->vocabulary;
    int32_t best = 0;
    for (int32_t i = 0; i < usable; i++) {
        if (!isfinite(logits[i])) {
            return -1;
        }
        best = logits[i] > logits[best] ? i : best;
    }
    if (a->temperature <= 0) {
        return best;
    }
    double total = 0;
    for (int32_t i = 0; i < usable; i++) {
        float weight = (float)exp(((double)logits[i] - (double)logits[best]) / a->temperature);
        candidates[i] = (Candidate){weight, i};
        total += (double)candidates[i].weight;
    }
    int64_t count = usable;
    bool limited = (a->top_k > 0 && a->top_k < count) || a->top_p < 1;
    if (limited) {
        qsort(candidates, (size_t)count, sizeof *candidates, heavier_first);
        count = a->top_k > 0 && a->top_k < count ? a->top_k : count;
        // The smallest set whose share of the whole reaches top_p; at least one token.
        double sum = 0, enough = a->top_p * total;
        int64_t kept = 0;
        while (kept < count && (kept == 0 || sum < enough)) {
            sum += (double)candidates[kept++].weight;
        }
        count = kept;
        total = sum;
    }
    double point = (double)(philox_u64(a->seed, a->stream, (uint64_t)index) >> 11) * 0x1p-53 * total;
    for (int64_t i = 0; i < count; i++) {
        point -= (double)candidates[i].weight;
        if (point < 0) {
            return candidates[i].id;
        }
    }
    return limited ? candidates[0].id : best;
}

static void run_row(void *context, int64_t row, int thread) {
    const Sample *a = context;
    Candidate *candidates = (Candidate *)a->scratch + row * a->vocabulary;
    a->tokens[row] = draw(a, a->logits + row * a->vocabulary, a->index[row], candidates);
}

void CPU_NAME(cpu_sample)(Device *device, const Sample *a) {
    threads_run(device->pool, a->rows, run_row, (void *)a);
}
