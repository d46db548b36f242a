// Checksums and fingerprints: XXH3, 64 and 128 bits (the xxHash library). Not cryptographic.
#pragma once

#include <stddef.h>
#include <stdint.h>

uint64_t hash64(const void *bytes, size_t size);
uint64_t hash64_seeded(const void *bytes, size_t size, uint64_t seed);

// A 128-bit hash as two words: equal documents have equal keys, and two different ones will not meet.
typedef struct Hash128 {
    uint64_t low, high;
} Hash128;
Hash128 hash128(const void *bytes, size_t size);

// A hash of a stream of bytes: equal to hash64, and to hash128, of the whole.
typedef struct Hasher Hasher;
Hasher *hasher_create(void);
void hasher_add(Hasher *hasher, const void *bytes, size_t size);
uint64_t hasher_result(const Hasher *hasher);
Hash128 hasher_result128(const Hasher *hasher);
void hasher_restart(Hasher *hasher);
void hasher_destroy(Hasher *hasher);
