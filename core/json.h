// JSON documents of ours and of others, through jansson: reading with limits, and fields with checks.
//
// For documents that fit in memory. Corpora are read by data/shards, which streams.
#pragma once

#include "core/memory.h"

#include <jansson.h>

// Parses a file. The error names file, line and column. Duplicate keys, NaN and trailing text are refused; nesting is
// limited by the library. The caller owns *out (json_decref).
Error *json_read_file(const char *path, size_t limit, json_t **out) MUST_CHECK;
Error *json_read_bytes(const char *name, const char *bytes, size_t size, json_t **out) MUST_CHECK;

// Writes a document atomically, indented, with a final newline.
Error *json_write_file(const char *path, const json_t *document) MUST_CHECK;

// A document that protects itself: "checksum" holds the XXH3-64 of its other members, compact and with sorted keys.
// json_check_seal fails where that is not so; `where` names the file.
void json_seal(json_t *document);
Error *json_check_seal(const json_t *document, const char *where) MUST_CHECK;

// Fields of an object. `where` names the file in messages. The value must exist, have the type, and lie in [least, most].
Error *json_field_i64(const json_t *object, const char *where, const char *key, int64_t least, int64_t most,
                      int64_t *out) MUST_CHECK;
Error *json_field_f64(const json_t *object, const char *where, const char *key, double *out) MUST_CHECK;
Error *json_field_bool(const json_t *object, const char *where, const char *key, bool *out) MUST_CHECK;
// *out belongs to the object and has no zero byte inside.
Error *json_field_string(const json_t *object, const char *where, const char *key, const char **out) MUST_CHECK;
Error *json_field_object(const json_t *object, const char *where, const char *key, json_t **out) MUST_CHECK;  // borrowed
Error *json_field_array(const json_t *object, const char *where, const char *key, json_t **out) MUST_CHECK;   // borrowed

// 64-bit checksums are written as 16 hexadecimal digits, because JSON numbers lose bits elsewhere.
json_t *json_hex64(uint64_t value);
Error *json_field_hex64(const json_t *object, const char *where, const char *key, uint64_t *out) MUST_CHECK;
