// Randomness as a function: see philox.h.
#include "core/philox.h"

#include "core/error.h"

#include <math.h>

void philox_normal(uint64_t seed, uint64_t stream, uint64_t first, float deviation, float *out, int64_t count) {
    const double two_pi = 6.283185307179586476925;
    // Index pair (2p, 2p + 1) shares one Box-Muller draw.
    for (int64_t i = 0; i < count;) {
        uint64_t index = first + (uint64_t)i;
        Philox r = philox(seed, stream, index / 2);
        // 53 bits each; the first is kept away from zero for the logarithm.
        double u = ((double)r.word[0] * 2097152.0 + (double)(r.word[1] >> 11) + 0.5) * 0x1p-53;
        double v = ((double)r.word[2] * 2097152.0 + (double)(r.word[3] >> 11)) * 0x1p-53;
        double radius = sqrt(-2.0 * log(u)) * (double)deviation;
        if (index % 2 == 0) {
            out[i++] = (float)(radius * cos(two_pi * v));
            if (i < count) {
                out[i++] = (float)(radius * sin(two_pi * v));
            }
        } else {
            out[i++] = (float)(radius * sin(two_pi * v));
        }
    }
}

uint64_t philox_permute(uint64_t seed, uint64_t stream, uint64_t count, uint64_t index) {
    ensure(index < count, "permutation index %llu of %llu", (unsigned long long)index, (unsigned long long)count);
    int half = 1;
    while (half < 32 && (uint64_t)1 << (2 * half) < count) {
        half++;
    }
    uint64_t mask = ((uint64_t)1 << half) - 1, value = index;
    do {
        uint64_t left = value >> half, right = value & mask;
        for (uint64_t round = 0; round < 6; round++) {
            uint64_t mixed = philox_u64(seed, stream, round << 32 | right) & mask;
            uint64_t next = left ^ mixed;
            left = right;
            right = next;
        }
        value = left << half | right;
    } while (value >= count);
    return value;
}
