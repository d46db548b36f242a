// Streaming reader of shards: see shards.h.
//
//   file -> byte_source: decompressed blocks -> segments of a line, checked to be UTF-8 -> json_line: text and set name
//
// Every byte passes three loops that each run at memory speed: memchr for the newline, the UTF-8 check, the string scan.
// A block's last up to three bytes wait for the next block if they may begin a character.
#include "data/text/shards.h"

#include "core/text.h"
#include "data/text/byte_source.h"
#include "data/text/json_line.h"

enum { BLOCK_BYTES = 128 << 10, PIECE_BYTES = 1 << 20, CARRY_BYTES = 3 };

struct ShardReader {
    char *name;
    ByteSource *source;
    char *block;
    size_t step;                 // bytes read at a time
    size_t at, checked, filled;  // in block: taken up to `at`, known to be UTF-8 up to `checked`, filled up to `filled`
    bool line_ends;              // a newline follows at `checked`
    bool skipping;               // the line is bad: pass over the rest of it
    bool pieces;                 // pieces of this line were handed out
    bool line_done;              // the last event ended the line
    bool begun;                  // the file's first bytes were looked at
    bool ended;                  // the file has no more blocks
    int64_t line;
    JsonLine json;
};

static const struct {
    const char *magic;
    int size;
    const char *what;
} foreign[] = {{"\xFD"
                "7zXZ\0",
                6, "an xz file"},
               {"BZh", 3, "a bzip2 file"},
               {"PK\x03\x04", 4, "a zip archive"},
               {"PAR1", 4, "a Parquet file"},
               {"\x04\x22\x4D\x18", 4, "an lz4 file"},
               {"7z\xBC\xAF\x27\x1C", 6, "a 7z archive"},
               {"\x89HDF\r\n\x1A\n", 8, "an HDF5 file"},
               {"MMIDIDX\0\0", 9, "the index of a token file"},
               {"version https://", 16, "a git-lfs pointer that stands for a file ('git lfs pull' fetches it)"},
               {"<", 1, "a web page or XML"}};

static Error *refuse_foreign(const char *name, const ByteSource *source) {
    size_t size;
    const unsigned char *head = byte_source_head(source, &size);
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) {
        if (size >= (size_t)foreign[i].size && memcmp(head, foreign[i].magic, (size_t)foreign[i].size) == 0) {
            return failure("%s is %s; shards are .jsonl.zst, .jsonl.gz or .jsonl", name, foreign[i].what);
        }
    }
    if (byte_source_kind(source) == BYTES_PLAIN && (text_ends_with(name, ".zst") || text_ends_with(name, ".gz"))) {
        return damaged("%s is %s; fetch the file again", name,
                       size == 0 ? "truncated: it is empty" : "damaged: it does not start like a compressed file");
    }
    return NULL;
}

// Reads the next block behind what waits of the last one. At the end of the file nothing is added.
static Error *next_block(ShardReader *reader) {
    size_t waiting = reader->filled - reader->at;
    memmove(reader->block, reader->block + reader->at, waiting);
    reader->at = reader->checked = 0;
    reader->filled = waiting;
    size_t got = 0;
    TRY(byte_source_read(reader->source, reader->block + waiting, reader->step, &got));
    reader->filled += got;
    reader->ended = got == 0;
    // A byte order mark at the start of the file is no part of its first line.
    if (!reader->begun && reader->filled >= 3) {
        reader->begun = true;
        bool mark = reader->line == 1 && reader->json.position == 0 && memcmp(reader->block, "\xEF\xBB\xBF", 3) == 0;
        reader->at = reader->checked = mark ? 3 : 0;
    }
    return NULL;
}

static Error *start(const char *name, ByteSource *source, size_t step, size_t piece, ShardReader **out) {
    Error *error = refuse_foreign(name, source);
    if (error != NULL) {
        byte_source_close(source);
        return error;
    }
    ShardReader *reader = memory_zeroed(1, sizeof *reader);
    reader->name = memory_string(name);
    reader->source = source;
    reader->step = step;
    reader->block = memory_new(step + CARRY_BYTES + 1, 1);
    reader->json.text_capacity = piece + JSON_LINE_SLACK;
    reader->json.text = memory_new(reader->json.text_capacity, 1);
    json_line_begin(&reader->json);
    reader->line = 1;
    *out = reader;
    return NULL;
}

Error *shard_open(const char *path, ShardReader **out) {
    ByteSource *source;
    *out = NULL;
    TRY(byte_source_open(path, &source));
    return start(path, source, BLOCK_BYTES, PIECE_BYTES, out);
}

Error *shard_open_memory(const char *name, const void *bytes, size_t size, size_t step, size_t piece, ShardReader **out) {
    ensure(step > 0 && piece >= 8, "step %zu, piece %zu", step, piece);
    ByteSource *source;
    *out = NULL;
    TRY(byte_source_memory(name, bytes, size, &source));
    return start(name, source, step, piece, out);
}

void shard_replace_surrogates(ShardReader *reader) {
    reader->json.replace = true;
}

void shard_allow_window(ShardReader *reader, int64_t bytes) {
    byte_source_allow_window(reader->source, bytes);
}

int64_t shard_taken(const ShardReader *reader) {
    return byte_source_taken(reader->source);
}

void shard_close(ShardReader *reader) {
    if (reader != NULL) {
        byte_source_close(reader->source);
        free(reader->json.text);
        free(reader->block);
        free(reader->name);
        free(reader);
    }
}

static void bad_line(ShardReader *reader, ShardEvent *event, const char *reason) {
    *event = (ShardEvent){.kind = SHARD_BAD_LINE, .first = !reader->pieces, .line = reader->line, .reason = reason};
    reader->skipping = true;
}

static void next_line(ShardReader *reader) {
    reader->line++;
    reader->skipping = reader->pieces = reader->line_ends = reader->line_done = false;
    json_line_begin(&reader->json);
}

typedef enum Found { FOUND_SEGMENT, FOUND_NOTHING, FOUND_BAD } Found;

// Finds the next segment [at, checked) of the line: up to its newline or the end of the block, as far as it is valid UTF-8.
// FOUND_NOTHING if that needs another block.
static Found find_segment(ShardReader *reader, ShardEvent *event) {
    const char *from = reader->block + reader->at;
    size_t size = reader->filled - reader->at;
    const char *newline = memchr(from, '\n', size);
    size = newline != NULL ? (size_t)(newline - from) : size;
    size_t valid = reader->skipping ? size : utf8_valid_prefix(from, size);
    if (valid == 0 && size > 0 && (newline != NULL || size > CARRY_BYTES)) {
        bad_line(reader, event, "it is not valid UTF-8");
        return FOUND_BAD;
    }
    // What stands before an invalid byte is scanned first: what is wrong with a line does not depend on how it is cut.
    reader->checked = reader->at + valid;
    reader->line_ends = newline != NULL && valid == size;
    return valid > 0 || reader->line_ends ? FOUND_SEGMENT : FOUND_NOTHING;
}

// Feeds the segment to the scanner. Returns true if there is an event.
static bool feed_segment(ShardReader *reader, ShardEvent *event) {
    JsonLine *json = &reader->json;
    if (reader->skipping) {
        reader->at = reader->checked;
        return false;
    }
    reader->at += json_line_feed(json, reader->block + reader->at, reader->checked - reader->at);
    if (json->reason != NULL) {
        bad_line(reader, event, json->reason);
        return true;
    }
    if (json->full) {
        *event = (ShardEvent){SHARD_PIECE, !reader->pieces, json->text, json->text_size, .line = reader->line};
        json->text_size = 0;
        reader->pieces = true;
        return true;
    }
    return false;
}

// At a line's end (its newline, or the end of the file). Returns true if there is an event.
static bool finish_line(ShardReader *reader, ShardEvent *event) {
    JsonLine *json = &reader->json;
    if (reader->skipping || !json_line_end(json)) {
        return false;
    }
    reader->line_done = true;
    if (json->reason != NULL) {
        bad_line(reader, event, json->reason);
        return true;
    }
    const char *set = json->named && json->name[0] != 0 ? set_name_canonical(json->name) : SET_NAME_DEFAULT;
    *event = (ShardEvent){SHARD_DOCUMENT, !reader->pieces, json->text, json->text_size, set, reader->line, NULL};
    return true;
}

Error *shard_next(ShardReader *reader, ShardEvent *event) {
    if (reader->line_done) {
        next_line(reader);  // not earlier, because the last event pointed into the line's text
    }
    for (;;) {
        if (reader->at < reader->checked) {
            if (feed_segment(reader, event)) {
                return NULL;
            }
        } else if (reader->line_ends) {
            reader->at = ++reader->checked;
            if (finish_line(reader, event)) {
                return NULL;
            }
            next_line(reader);
        } else {
            Found found = find_segment(reader, event);
            if (found == FOUND_BAD) {
                return NULL;
            }
            if (found == FOUND_NOTHING && reader->ended) {
                break;
            }
            if (found == FOUND_NOTHING) {
                TRY(next_block(reader));
            }
        }
    }
    if (!reader->skipping && (reader->at < reader->filled || json_line_open(&reader->json))) {
        return damaged("%s is truncated: its last line (%lld) ends in the middle; fetch the file again", reader->name,
                       (long long)reader->line);
    }
    if (!finish_line(reader, event)) {
        *event = (ShardEvent){.kind = SHARD_END, .first = true, .line = reader->line};
    }
    return NULL;
}
