// Checksums and fingerprints: see hash.h.
#include "core/hash.h"

#include "core/error.h"

#include <xxhash.h>

uint64_t hash64(const void *bytes, size_t size) {
    return XXH3_64bits(bytes, size);
}

uint64_t hash64_seeded(const void *bytes, size_t size, uint64_t seed) {
    return XXH3_64bits_withSeed(bytes, size, seed);
}

Hash128 hash128(const void *bytes, size_t size) {
    XXH128_hash_t h = XXH3_128bits(bytes, size);
    return (Hash128){h.low64, h.high64};
}

Hasher *hasher_create(void) {
    XXH3_state_t *state = XXH3_createState();
    ensure(state != NULL, "no memory for a hash");
    XXH3_64bits_reset(state);
    return (Hasher *)state;
}

void hasher_add(Hasher *hasher, const void *bytes, size_t size) {
    XXH3_64bits_update((XXH3_state_t *)hasher, bytes, size);
}

uint64_t hasher_result(const Hasher *hasher) {
    return XXH3_64bits_digest((const XXH3_state_t *)hasher);
}

Hash128 hasher_result128(const Hasher *hasher) {
    // One state serves both widths (xxhash.h: the 128-bit reset and update are those of 64 bits).
    XXH128_hash_t h = XXH3_128bits_digest((const XXH3_state_t *)hasher);
    return (Hash128){h.low64, h.high64};
}

void hasher_restart(Hasher *hasher) {
    XXH3_64bits_reset((XXH3_state_t *)hasher);
}

void hasher_destroy(Hasher *hasher) {
    XXH3_freeState((XXH3_state_t *)hasher);
}
