// A cache from pre-token to ids, of bounded size: a word that is met again costs one look at one cache line.
//
// It starts small, so that an encoder for a few words costs little, and grows to 8 MiB as new words come.
//
// Words of up to 15 bytes that have at most three ids lie in buckets of two entries, keyed by their bytes; a new word takes the
// place of the older one. Longer words and longer results lie in a second table, whose bytes and ids are kept in one arena;
// when that is full, the second table starts anew. Results never depend on what is cached.
#pragma once

#include "core/memory.h"

enum { WORD_SHORT = 15, WORD_IDS = 3, WORD_LONGEST = 256 };

typedef struct WordKey {
    uint64_t low, high;  // the bytes, zero-filled; the last byte is the size
} WordKey;

typedef struct WordEntry {
    WordKey key;
    int32_t ids[WORD_IDS];
    uint32_t count;
} WordEntry;

typedef struct LongEntry {
    uint64_t hash;
    uint32_t offset;       // in the arena, in units of 4 bytes: first the ids, then the bytes
    uint16_t size, count;  // size 0: empty
} LongEntry;

typedef struct WordCache {
    WordEntry *entries;
    int bits;       // log2 of the number of buckets
    size_t stored;  // words, since the table has this size
    LongEntry *long_entries;
    int32_t *arena;
    size_t arena_used;
} WordCache;

enum { WORD_BITS_LEAST = 8, WORD_BITS_MOST = 17, LONG_BITS = 12, LONG_ARENA = 1 << 17 };

void word_cache_create(WordCache *cache);
void word_cache_free(WordCache *cache);

// The key of 16 readable bytes of which `size` (1 .. 15) count.
static inline WordKey word_key(const uint8_t *word, size_t size) {
    WordKey key;
    memcpy(&key, word, 16);
    unsigned bits = 8 * (unsigned)size;
    uint64_t low_mask = bits >= 64 ? ~0ull : (1ull << bits) - 1, high_mask = bits > 64 ? (1ull << (bits - 64)) - 1 : 0;
    key.low &= low_mask;
    key.high = (key.high & high_mask) | (uint64_t)size << 56;
    return key;
}

// The bucket of a key: two entries, 64 bytes.
static inline WordEntry *word_bucket(const WordCache *cache, WordKey key) {
    unsigned __int128 product = (unsigned __int128)(key.low ^ 0xA0761D6478BD642Fu) * (key.high ^ 0xE7037ED1A0B428DBu);
    uint64_t hash = (uint64_t)product ^ (uint64_t)(product >> 64);
    return cache->entries + 2 * (hash >> (64 - cache->bits));
}

// The entry of `key` in its bucket, or NULL.
static inline WordEntry *word_find(WordEntry *bucket, WordKey key) {
    for (int i = 0; i < 2; i++) {
        if (bucket[i].key.low == key.low && bucket[i].key.high == key.high) {
            return &bucket[i];
        }
    }
    return NULL;
}

// Keeps at most WORD_IDS ids for a key. Buckets move.
void word_store(WordCache *cache, WordKey key, const int32_t *ids, size_t count);

// The ids of a word of any size up to WORD_LONGEST; NULL if they are not there.
const int32_t *word_find_long(const WordCache *cache, const uint8_t *word, size_t size, size_t *count);
void word_store_long(WordCache *cache, const uint8_t *word, size_t size, const int32_t *ids, size_t count);
