// Words and numbers for people: parsing with checks, sizes and durations, the nearest of several names, UTF-8.
#pragma once

#include "core/error.h"

#include <stdint.h>

// Parse the whole of `text`. Integers accept 1_000_000, 10k, 4M, 2G (decimal) and 64Ki, 1Mi, 1Gi. False if it is no such
// number.
bool text_to_i64(const char *text, int64_t *out);
bool text_to_f64(const char *text, double *out);
bool text_to_bool(const char *text, bool *out);  // true/false, yes/no, on/off

// Format into `out` (at least 32 bytes) and return it: "1.5 GiB", "12.3 k", "1 h 02 min".
const char *text_bytes(char *out, double bytes);
const char *text_count(char *out, double count);
const char *text_duration(char *out, double seconds);

// The index of the name nearest to `word` by edit distance, or -1 where none is near enough to suggest.
int text_nearest(const char *word, const char *const *names, int count);

bool text_ends_with(const char *text, const char *suffix);
bool text_starts_with(const char *text, const char *prefix);

// The number of leading bytes of `text` that are valid UTF-8 (RFC 3629: no surrogates, no overlong forms, at most U+10FFFF).
size_t utf8_valid_prefix(const char *text, size_t size);

// Writes `code` as UTF-8 to `out` (room for 4 bytes) and returns the number of bytes. `code` must be a scalar value.
int utf8_encode(uint32_t code, char *out);
