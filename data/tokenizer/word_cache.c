// A cache from pre-token to ids: see word_cache.h.
#include "data/tokenizer/word_cache.h"

#include "core/hash.h"

static size_t table_bytes(const WordCache *cache) {
    return ((size_t)2 << cache->bits) * sizeof *cache->entries;
}

void word_cache_create(WordCache *cache) {
    *cache = (WordCache){.bits = WORD_BITS_LEAST};
    cache->entries = memory_tensor(table_bytes(cache));
    cache->long_entries = memory_zeroed((size_t)1 << LONG_BITS, sizeof *cache->long_entries);
    cache->arena = memory_new(LONG_ARENA, sizeof *cache->arena);
}

void word_cache_free(WordCache *cache) {
    if (cache->entries != NULL) {
        memory_tensor_free(cache->entries, table_bytes(cache));
    }
    free(cache->long_entries);
    free(cache->arena);
    *cache = (WordCache){0};
}

static void put(WordEntry *bucket, const WordEntry *entry) {
    bucket[1] = bucket[0];
    bucket[0] = *entry;
}

// Four times the buckets. The words that are there stay.
static void grow(WordCache *cache) {
    WordCache old = *cache;
    cache->bits += 2;
    cache->stored = 0;
    cache->entries = memory_tensor(table_bytes(cache));
    for (size_t i = 0; i < (size_t)2 << old.bits; i++) {
        const WordEntry *entry = &old.entries[i ^ 1];  // the older of a bucket first
        if (entry->key.high != 0) {
            put(word_bucket(cache, entry->key), entry);
        }
    }
    memory_tensor_free(old.entries, table_bytes(&old));
}

void word_store(WordCache *cache, WordKey key, const int32_t *ids, size_t count) {
    if (cache->stored++ >> cache->bits != 0 && cache->bits < WORD_BITS_MOST) {
        grow(cache);
    }
    WordEntry entry = {.key = key, .count = (uint32_t)count};
    memcpy(entry.ids, ids, count * sizeof *ids);
    put(word_bucket(cache, key), &entry);
}

const int32_t *word_find_long(const WordCache *cache, const uint8_t *word, size_t size, size_t *count) {
    uint64_t hash = hash64(word, size);
    const LongEntry *entry = &cache->long_entries[hash >> (64 - LONG_BITS)];
    const int32_t *ids = cache->arena + entry->offset;
    if (entry->hash != hash || entry->size != size || memcmp(ids + entry->count, word, size) != 0) {
        return NULL;
    }
    *count = entry->count;
    return ids;
}

void word_store_long(WordCache *cache, const uint8_t *word, size_t size, const int32_t *ids, size_t count) {
    size_t needed = count + (size + 3) / 4;
    if (cache->arena_used + needed > LONG_ARENA) {
        memset(cache->long_entries, 0, ((size_t)1 << LONG_BITS) * sizeof *cache->long_entries);
        cache->arena_used = 0;
    }
    uint64_t hash = hash64(word, size);
    LongEntry *entry = &cache->long_entries[hash >> (64 - LONG_BITS)];
    *entry = (LongEntry){hash, (uint32_t)cache->arena_used, (uint16_t)size, (uint16_t)count};
    if (count > 0) {
        memcpy(cache->arena + cache->arena_used, ids, count * sizeof *ids);
    }
    memcpy(cache->arena + cache->arena_used + count, word, size);
    cache->arena_used += needed;
}
