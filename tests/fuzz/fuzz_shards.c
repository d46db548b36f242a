// Fuzzes the shard reader: any bytes give documents, bad lines or one error, and the same ones however the bytes are cut.
//
// Input: a byte for the step, a byte for the piece, then the shard.
#include "core/hash.h"
#include "core/text.h"
#include "data/text/shards.h"

enum { TEXT_MOST = 8 << 20 };  // compressed input may stand for much more

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

// A hash of everything the reader said; 0 if it ended in an error or the text was too much.
static uint64_t read_all(const char *bytes, size_t size, size_t step, size_t piece) {
    ShardReader *reader;
    Error *error = shard_open_memory("fuzz.jsonl", bytes, size, step, piece, &reader);
    if (error != NULL) {
        error_free(error);
        return 0;
    }
    uint64_t whole = 1, document = 0;
    size_t text = 0;
    bool open = false;
    Hasher *hasher = hasher_create();
    ShardEvent event;
    do {
        error = shard_next(reader, &event);
        if (error != NULL || text > TEXT_MOST) {
            error_free(error);
            whole = 0;
            break;
        }
        ensure(event.kind == SHARD_END || event.first == !open, "first is %d, open is %d", event.first, open);
        if (event.kind == SHARD_PIECE || event.kind == SHARD_DOCUMENT) {
            ensure(utf8_valid_prefix(event.text, event.size) == event.size, "text is not UTF-8");
            ensure(event.size <= piece && (event.kind == SHARD_DOCUMENT || event.size > 0), "a piece of %zu", event.size);
            hasher_add(hasher, event.text, event.size);
            text += event.size;
        }
        open = event.kind == SHARD_PIECE;
        if (!open) {
            document = event.kind == SHARD_DOCUMENT ? hasher_result(hasher) ^ hash64(event.set, strlen(event.set)) : 7;
            document ^= event.kind == SHARD_BAD_LINE ? hash64(event.reason, strlen(event.reason)) : 0;
            whole = hash64_seeded(&document, sizeof document, whole ^ (uint64_t)event.line << 8 ^ event.kind);
            hasher_restart(hasher);
        }
    } while (event.kind != SHARD_END);
    hasher_destroy(hasher);
    shard_close(reader);
    return whole;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) {
        return 0;
    }
    const char *bytes = (const char *)data + 2;
    uint64_t cut = read_all(bytes, size - 2, (size_t)data[0] + 1, (size_t)data[1] + 8);
    uint64_t whole = read_all(bytes, size - 2, 1 << 16, 1 << 16);
    ensure(cut == whole, "a step of %d and pieces of %d read something else", data[0] + 1, data[1] + 8);
    return 0;
}
