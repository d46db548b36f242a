// Words and numbers for people: parsing with checks, sizes and durations, the nearest of several names, UTF-8.
#pragma once

#include "core/error.h"

#include <stdint.h>

// Parse the whole of `text`: 1000, 1_000_000, 1e6, 2.5e-4, and with 10k, 4M, 2G (decimal) or 64Ki, 1Mi, 1Gi behind it. An
// integer may be written in any of these ways if its value is whole (1e6, 1.5k). False if it is no such number: hexadecimal and
// octal forms, a zero in front (017), infinities and nan are none.
bool text_to_i64(const char *text, int64_t *out);
bool text_to_f64(const char *text, double *out);
bool text_to_bool(const char *text, bool *out);  // true/false, yes/no, on/off

// Format into `out` (at least 32 bytes) and return it: "1.5 GiB", "12.3 k", "1 h 02 min".
const char *text_bytes(char *out, double bytes);
const char *text_count(char *out, double count);
const char *text_duration(char *out, double seconds);

// "1 rank", "2 ranks", "3 micro-batches", "0 entries", into `out` (at least 64 bytes). `one` is the English singular, of at
// most 40 bytes.
const char *text_number_of(char *out, int64_t count, const char *one);

// How many letters must be changed, dropped, added or swapped with their neighbour to make one word of the other. Words of 64
// letters and more are far from everything.
int text_distance(const char *a, const char *b);
// How many such slips a word of this length may hold and still be recognised.
int text_slips(const char *word);
// The index of the one name nearest to `word`, or -1 where none is near enough to suggest, or two are equally near.
int text_nearest(const char *word, const char *const *names, int count);

bool text_one_of(char c, const char *set);  // a zero byte never is one (strchr would find the end of the set)
bool text_ends_with(const char *text, const char *suffix);
bool text_starts_with(const char *text, const char *prefix);

// The number of leading bytes of `text` that are valid UTF-8 (RFC 3629: no surrogates, no overlong forms, at most U+10FFFF).
size_t utf8_valid_prefix(const char *text, size_t size);

// Writes `code` as UTF-8 to `out` (room for 4 bytes) and returns the number of bytes. `code` must be a scalar value.
int utf8_encode(uint32_t code, char *out);
