// One line of a shard, scanned as it arrives: JSON to document text and set name, in fixed memory.
//
// Accepted (RFC 8259, nesting up to 32):
//   {"text": "...", "meta": {"pile_set_name": "Pile-CC", ...}, ...}     other fields are checked and skipped
//   {"text": ["...", "..."]}                                            joined by two newlines
//   "..."                                                               a bare string
// Beside the text also what Python's writer makes though JSON has no such thing: NaN, Infinity, -Infinity, and halves of
// surrogate pairs, which become U+FFFD in a set's name. A text that stands twice, is missing or is no string makes the line
// bad, and so does half of a surrogate pair in it, unless U+FFFD is asked for.
//
// The scanner is a state machine over bytes: it can be fed any pieces, remembers one bit per nesting level, and stores
// nothing but the text that was not taken yet. It trusts that its input is valid UTF-8 cut at characters (shards.c sees to it).
#pragma once

#include "data/text/set_names.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { JSON_LINE_DEPTH = 32, JSON_LINE_SLACK = 8 };  // slack: the most that one step stores

typedef struct JsonLine {
    char *text;  // decoded text that waits; the owner empties it by text_size = 0
    size_t text_size, text_capacity;
    bool replace;        // half of a surrogate pair in a text becomes U+FFFD
    bool full;           // no room for another character: take the text, then feed on
    const char *reason;  // why the line is bad, or NULL
    int64_t position;    // bytes taken so far
    bool has_text;
    bool named;
    char name[SET_NAME_BYTES + 1];  // the set's name where `named`

    // What follows belongs to the scanner.
    uint8_t state, role, sink;
    bool in_meta, in_list, separate;
    int depth;
    uint32_t objects;  // bit d: the container at depth d + 1 is an object
    size_t name_size, key_size;
    char key[32];
    uint32_t code, high;  // of \uXXXX: digits so far, a first surrogate
    int digits;
    const char *literal;
} JsonLine;

// Prepares for a new line; text, its capacity and `replace` stay. `text_capacity` must be at least 2 * JSON_LINE_SLACK.
void json_line_begin(JsonLine *line);

// Takes bytes of the line (without its newline) until they are used up, `full` or `reason` is set. Returns how many were taken.
size_t json_line_feed(JsonLine *line, const char *bytes, size_t size);

// Ends the line. False if it was blank. Sets `reason` if it is not whole.
bool json_line_end(JsonLine *line);

// Whether a value has begun and is not whole yet.
bool json_line_open(const JsonLine *line);

// The number of leading bytes that stand for themselves in a JSON string: no quote, no backslash, nothing below 0x20.
size_t json_plain_run(const char *bytes, size_t size);
