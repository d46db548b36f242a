// JSON documents: see json.h.
#include "core/json.h"

#include "core/durable.h"
#include "core/hash.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

// The library's own answer to memory that is not to be had would pass for a document that is wrong.
static void *allocate(size_t size) {
    return memory_new(size, 1);
}

__attribute__((constructor)) static void end_where_memory_ends(void) {
    json_set_alloc_funcs(allocate, free);
}

Error *json_read_bytes(const char *name, const char *bytes, size_t size, json_t **out) {
    json_error_t problem;
    *out = json_loadb(bytes, size, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &problem);
    if (*out == NULL) {
        return damaged("%s:%d:%d: not valid JSON: %s", name, problem.line, problem.column, problem.text);
    }
    return NULL;
}

Error *json_read_file(const char *path, size_t limit, json_t **out) {
    Buffer text = {0};
    *out = NULL;
    Error *error = file_read(path, limit, &text);
    if (error == NULL) {
        error = json_read_bytes(path, text.data, text.size, out);
    }
    buffer_free(&text);
    return error;
}

Error *json_write_file(const char *path, const json_t *document) {
    char *text = json_dumps(document, JSON_INDENT(2) | JSON_REAL_PRECISION(17));
    ensure(text != NULL, "document for %s cannot be written as JSON", path);
    size_t size = strlen(text);
    text = memory_resize(text, size + 2, 1);
    text[size] = '\n';
    Error *error = file_write(path, text, size + 1);
    free(text);
    return error;
}

static Error *field(const json_t *object, const char *where, const char *key, json_t **value) {
    if (!json_is_object(object)) {
        return damaged("%s: an object with \"%s\" is expected", where, key);
    }
    *value = json_object_get(object, key);
    return *value == NULL ? damaged("%s: \"%s\" is missing", where, key) : NULL;
}

Error *json_field_i64(const json_t *object, const char *where, const char *key, int64_t least, int64_t most, int64_t *out) {
    json_t *value;
    TRY(field(object, where, key, &value));
    if (!json_is_integer(value)) {
        return damaged("%s: \"%s\" must be a whole number", where, key);
    }
    *out = json_integer_value(value);
    if (*out < least || *out > most) {
        return damaged("%s: \"%s\" is %" PRId64 ", it must be between %" PRId64 " and %" PRId64, where, key, *out, least, most);
    }
    return NULL;
}

Error *json_field_f64(const json_t *object, const char *where, const char *key, double *out) {
    json_t *value;
    TRY(field(object, where, key, &value));
    if (!json_is_number(value)) {
        return damaged("%s: \"%s\" must be a number", where, key);
    }
    *out = json_number_value(value);
    return NULL;
}

Error *json_field_bool(const json_t *object, const char *where, const char *key, bool *out) {
    json_t *value;
    TRY(field(object, where, key, &value));
    if (!json_is_boolean(value)) {
        return damaged("%s: \"%s\" must be true or false", where, key);
    }
    *out = json_is_true(value);
    return NULL;
}

Error *json_field_string(const json_t *object, const char *where, const char *key, const char **out) {
    json_t *value;
    TRY(field(object, where, key, &value));
    if (!json_is_string(value) || strlen(json_string_value(value)) != json_string_length(value)) {
        return damaged("%s: \"%s\" must be a text", where, key);
    }
    *out = json_string_value(value);
    return NULL;
}

Error *json_field_object(const json_t *object, const char *where, const char *key, json_t **out) {
    TRY(field(object, where, key, out));
    return json_is_object(*out) ? NULL : damaged("%s: \"%s\" must be an object", where, key);
}

Error *json_field_array(const json_t *object, const char *where, const char *key, json_t **out) {
    TRY(field(object, where, key, out));
    return json_is_array(*out) ? NULL : damaged("%s: \"%s\" must be a list", where, key);
}

json_t *json_hex64(uint64_t value) {
    char text[17];
    snprintf(text, sizeof text, "%016" PRIx64, value);
    return json_string(text);
}

Error *json_field_hex64(const json_t *object, const char *where, const char *key, uint64_t *out) {
    const char *text = NULL;
    TRY(json_field_string(object, where, key, &text));
    if (strlen(text) != 16 || strspn(text, "0123456789abcdef") != 16) {
        return damaged("%s: \"%s\" must be 16 hexadecimal digits", where, key);
    }
    *out = strtoull(text, NULL, 16);
    return NULL;
}

static uint64_t seal_of(const json_t *document) {
    json_t *copy = json_copy((json_t *)(uintptr_t)document);
    json_object_del(copy, "checksum");
    char *text = json_dumps(copy, JSON_COMPACT | JSON_SORT_KEYS | JSON_REAL_PRECISION(17));
    ensure(text != NULL, "a document cannot be written as JSON");
    uint64_t sum = hash64(text, strlen(text));
    free(text);
    json_decref(copy);
    return sum;
}

void json_seal(json_t *document) {
    json_object_set_new(document, "checksum", json_hex64(seal_of(document)));
}

Error *json_check_seal(const json_t *document, const char *where) {
    uint64_t checksum = 0;
    TRY(json_field_hex64(document, where, "checksum", &checksum));
    return checksum == seal_of(document) ? NULL : damaged("%s: its checksum is not the one of what it says", where);
}
