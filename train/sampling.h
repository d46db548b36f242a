// Drawing a token from logits: temperature, top-k, top-p (Holtzman et al. 2020). A function of (seed, index), like all
// randomness.
#pragma once

#include <stdint.h>

typedef struct Sampling {
    double temperature;  // 0: the most likely token (the lowest id among equals)
    int64_t top_k;       // 0: all
    double top_p;        // 1: all
    uint64_t seed;
} Sampling;

// Draws from logits[0 .. vocabulary), ids at and above `usable` are never drawn. `index` numbers the draw within the seed.
// `scratch` holds 2 * vocabulary floats.
int32_t sampling_draw(const Sampling *sampling, const float *logits, int64_t vocabulary, int64_t usable, uint64_t index,
                      float *scratch);
