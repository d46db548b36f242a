// Drawing a token from logits: see sampling.h.
#include "train/sampling.h"

#include "core/memory.h"
#include "core/philox.h"

#include <math.h>

typedef struct Candidate {
    float weight;
    int32_t id;
} Candidate;

// Heavier first, then the lower id, so that the order is total.
static int heavier_first(const void *a, const void *b) {
    const Candidate *x = a, *y = b;
    if (x->weight != y->weight) {
        return x->weight > y->weight ? -1 : 1;
    }
    return x->id < y->id ? -1 : 1;
}

int32_t sampling_draw(const Sampling *sampling, const float *logits, int64_t vocabulary, int64_t usable, uint64_t index,
                      float *scratch) {
    _Static_assert(sizeof(Candidate) == 2 * sizeof(float), "scratch holds the candidates");
    usable = usable < vocabulary ? usable : vocabulary;
    int32_t best = 0;
    for (int32_t i = 1; i < usable; i++) {
        best = logits[i] > logits[best] ? i : best;
    }
    if (sampling->temperature <= 0) {
        return best;
    }
    Candidate *candidates = (Candidate *)(void *)scratch;
    double total = 0;
    for (int32_t i = 0; i < usable; i++) {
        float weight = (float)exp(((double)logits[i] - (double)logits[best]) / sampling->temperature);
        candidates[i] = (Candidate){weight >= 0 ? weight : 0, i};  // a NaN is never drawn
        total += (double)candidates[i].weight;
    }
    int64_t count = usable;
    bool limited = (sampling->top_k > 0 && sampling->top_k < count) || sampling->top_p < 1;
    if (limited) {
        qsort(candidates, (size_t)count, sizeof *candidates, heavier_first);
        count = sampling->top_k > 0 && sampling->top_k < count ? sampling->top_k : count;
        // The smallest set whose share of the whole reaches top_p; at least one token.
        double sum = 0, enough = sampling->top_p * total;
        int64_t kept = 0;
        while (kept < count && (kept == 0 || sum < enough)) {
            sum += (double)candidates[kept++].weight;
        }
        count = kept;
        total = sum;
    }
    uint64_t bits = philox_u64(sampling->seed, philox_stream(RANDOM_SAMPLE, 0), index);
    double point = (double)(bits >> 11) * 0x1p-53 * total;
    for (int64_t i = 0; i < count; i++) {
        point -= (double)candidates[i].weight;
        if (point < 0) {
            return candidates[i].id;
        }
    }
    return limited ? candidates[0].id : best;
}
