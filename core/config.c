// Configurations: see config.h.
#include "core/config.h"

#include "core/durable.h"
#include "core/text.h"

#include <stdio.h>
#include <yaml.h>

enum {
    MOST_INCLUDES = 8,     // nesting of includes
    MOST_DEPTH = 8,        // nesting of maps
    MOST_BYTES = 1 << 20,  // of one file
};

typedef struct Reader {
    const Key *keys;
    int count;
    void *base;
    const char *name;  // the file, for messages
    bool *seen;
    int include_depth;
    yaml_document_t document;
} Reader;

static Error *read_file(const Key *keys, int count, void *base, const char *path, bool *seen, int include_depth);

static const char *scalar(const yaml_node_t *node) {
    return (const char *)node->data.scalar.value;
}

// "file.yaml:12", in a buffer that lives until the next call of the same thread.
static const char *place(const Reader *reader, const yaml_node_t *node) {
    static _Thread_local char text[512];
    snprintf(text, sizeof text, "%s:%zu", reader->name, node->start_mark.line + 1);
    return text;
}

static bool plain_null(const yaml_node_t *node) {
    return node->type == YAML_SCALAR_NODE && node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
           (strcmp(scalar(node), "null") == 0 || strcmp(scalar(node), "~") == 0 || *scalar(node) == 0);
}

static Error *need_text(const Reader *reader, const yaml_node_t *node, const char *what) {
    if (node->type != YAML_SCALAR_NODE) {
        return failure("%s: %s must be a single value", place(reader, node), what);
    }
    if (strlen(scalar(node)) != node->data.scalar.length) {
        return failure("%s: %s has a zero byte inside", place(reader, node), what);
    }
    return NULL;
}

static Error *set_proportions(Reader *reader, const Key *key, const yaml_node_t *node) {
    if (node->type != YAML_MAPPING_NODE) {
        return failure("%s: %s must be a map from name to number", place(reader, node), key->name);
    }
    for (yaml_node_pair_t *pair = node->data.mapping.pairs.start; pair < node->data.mapping.pairs.top; pair++) {
        yaml_node_t *name = yaml_document_get_node(&reader->document, pair->key);
        yaml_node_t *value = yaml_document_get_node(&reader->document, pair->value);
        TRY(need_text(reader, name, key->name));
        TRY(need_text(reader, value, key->name));
        double number;
        if (!text_to_f64(scalar(value), &number)) {
            return failure("%s: %s: '%s' must be a number", place(reader, value), key->name, scalar(value));
        }
        TRY(key_add_proportion(key, reader->base, scalar(name), number, place(reader, name)));
    }
    return NULL;
}

static Error *set_key(Reader *reader, const Key *key, const yaml_node_t *node) {
    if (reader->seen != NULL) {
        reader->seen[key - reader->keys] = true;
    }
    key_clear(key, reader->base);
    if (plain_null(node)) {
        if (key->type == KEY_TEXT || key->type == KEY_LIST || key->type == KEY_PROPORTIONS) {
            return NULL;
        }
        return failure("%s: %s must have a value", place(reader, node), key->name);
    }
    if (key->type == KEY_PROPORTIONS) {
        return set_proportions(reader, key, node);
    }
    if (key->type == KEY_LIST && node->type == YAML_SEQUENCE_NODE) {
        for (yaml_node_item_t *item = node->data.sequence.items.start; item < node->data.sequence.items.top; item++) {
            yaml_node_t *child = yaml_document_get_node(&reader->document, *item);
            TRY(need_text(reader, child, key->name));
            TRY(key_parse(key, reader->base, scalar(child), place(reader, child)));
        }
        return NULL;
    }
    TRY(need_text(reader, node, key->name));
    return key_parse(key, reader->base, scalar(node), place(reader, node));
}

// True where some key lies below `prefix`.
static bool is_section(const Reader *reader, const char *prefix) {
    size_t length = strlen(prefix);
    for (int i = 0; i < reader->count; i++) {
        if (strncmp(reader->keys[i].name, prefix, length) == 0 && reader->keys[i].name[length] == '.') {
            return true;
        }
    }
    return false;
}

static Error *read_map(Reader *reader, const char *prefix, const yaml_node_t *map, int depth) {
    if (depth > MOST_DEPTH) {
        return failure("%s: nested deeper than %d", place(reader, map), MOST_DEPTH);
    }
    for (yaml_node_pair_t *pair = map->data.mapping.pairs.start; pair < map->data.mapping.pairs.top; pair++) {
        yaml_node_t *name = yaml_document_get_node(&reader->document, pair->key);
        yaml_node_t *value = yaml_document_get_node(&reader->document, pair->value);
        TRY(need_text(reader, name, "a key"));
        for (yaml_node_pair_t *other = map->data.mapping.pairs.start; other < pair; other++) {
            yaml_node_t *earlier = yaml_document_get_node(&reader->document, other->key);
            if (strcmp(scalar(earlier), scalar(name)) == 0) {
                return failure("%s: '%s' stands twice", place(reader, name), scalar(name));
            }
        }
        if (*prefix == 0 && strcmp(scalar(name), "include") == 0) {
            continue;  // read before everything else
        }
        char *full = *prefix ? memory_format("%s.%s", prefix, scalar(name)) : memory_string(scalar(name));
        const Key *key = keys_find(reader->keys, reader->count, full);
        Error *error = NULL;
        if (key != NULL) {
            error = set_key(reader, key, value);
        } else if (value->type == YAML_MAPPING_NODE && is_section(reader, full)) {
            error = read_map(reader, full, value, depth + 1);
        } else if (is_section(reader, full)) {
            error = plain_null(value) ? NULL : failure("%s: %s is a section, it must hold keys", place(reader, name), full);
        } else {
            error = keys_unknown(reader->keys, reader->count, full, place(reader, name), "key", "");
        }
        free(full);
        TRY(error);
    }
    return NULL;
}

static Error *read_include(Reader *reader, const yaml_node_t *node) {
    TRY(need_text(reader, node, "include"));
    if (reader->include_depth >= MOST_INCLUDES) {
        return failure("%s: includes are nested deeper than %d", place(reader, node), MOST_INCLUDES);
    }
    char *folder = path_folder(reader->name);
    char *path = scalar(node)[0] == '/' ? memory_string(scalar(node)) : path_join(folder, scalar(node));
    Error *error =
        error_wrap(read_file(reader->keys, reader->count, reader->base, path, reader->seen, reader->include_depth + 1), "%s",
                   place(reader, node));
    free(path);
    free(folder);
    return error;
}

static Error *read_includes(Reader *reader, const yaml_node_t *root) {
    for (yaml_node_pair_t *pair = root->data.mapping.pairs.start; pair < root->data.mapping.pairs.top; pair++) {
        yaml_node_t *name = yaml_document_get_node(&reader->document, pair->key);
        yaml_node_t *value = yaml_document_get_node(&reader->document, pair->value);
        if (name->type != YAML_SCALAR_NODE || strcmp(scalar(name), "include") != 0) {
            continue;
        }
        if (value->type == YAML_SEQUENCE_NODE) {
            for (yaml_node_item_t *item = value->data.sequence.items.start; item < value->data.sequence.items.top; item++) {
                TRY(read_include(reader, yaml_document_get_node(&reader->document, *item)));
            }
        } else {
            TRY(read_include(reader, value));
        }
    }
    return NULL;
}

// Anchors could make a small file expand without bound, and tags have no meaning here.
static Error *refuse_aliases(const char *name, const char *text, size_t size) {
    yaml_parser_t parser;
    yaml_event_t event;
    ensure(yaml_parser_initialize(&parser), "no memory for a YAML parser");
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, size);
    Error *error = NULL;
    for (int documents = 0, done = 0; !done && error == NULL;) {
        if (!yaml_parser_parse(&parser, &event)) {
            error = failure("%s:%zu: not valid YAML: %s", name, parser.problem_mark.line + 1,
                            parser.problem ? parser.problem : "unknown problem");
            break;
        }
        documents += event.type == YAML_DOCUMENT_START_EVENT;
        if (event.type == YAML_ALIAS_EVENT) {
            error = failure("%s:%zu: YAML aliases are not used here; write the value out", name, event.start_mark.line + 1);
        } else if (documents > 1) {
            error = failure("%s:%zu: one document a file, please", name, event.start_mark.line + 1);
        }
        done = event.type == YAML_STREAM_END_EVENT;
        yaml_event_delete(&event);
    }
    yaml_parser_delete(&parser);
    return error;
}

static Error *read_text(const Key *keys, int count, void *base, const char *name, const char *text, size_t size, bool *seen,
                        int include_depth) {
    TRY(refuse_aliases(name, text, size));
    Reader reader = {.keys = keys, .count = count, .base = base, .name = name, .seen = seen, .include_depth = include_depth};
    yaml_parser_t parser;
    ensure(yaml_parser_initialize(&parser), "no memory for a YAML parser");
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, size);
    Error *error = NULL;
    if (!yaml_parser_load(&parser, &reader.document)) {
        error = failure("%s:%zu: not valid YAML: %s", name, parser.problem_mark.line + 1,
                        parser.problem ? parser.problem : "unknown problem");
        yaml_parser_delete(&parser);
        return error;
    }
    yaml_node_t *root = yaml_document_get_root_node(&reader.document);
    if (root != NULL && root->type != YAML_MAPPING_NODE && !plain_null(root)) {
        error = failure("%s: keys with values are expected, such as 'seed: 1'", name);
    } else if (root != NULL && root->type == YAML_MAPPING_NODE) {
        error = read_includes(&reader, root);
        if (error == NULL) {
            error = read_map(&reader, "", root, 1);
        }
    }
    yaml_document_delete(&reader.document);
    yaml_parser_delete(&parser);
    return error;
}

static Error *read_file(const Key *keys, int count, void *base, const char *path, bool *seen, int include_depth) {
    Buffer text = {0};
    Error *error = file_read_stream(path, MOST_BYTES, &text);
    if (error == NULL) {
        error = read_text(keys, count, base, path, text.data, text.size, seen, include_depth);
    }
    buffer_free(&text);
    return error;
}

Error *config_read_text(const Key *keys, int count, void *base, const char *name, const char *text, size_t size, bool *seen) {
    return read_text(keys, count, base, name, text, size, seen, 0);
}

// An override "key=value". A list or map may be written in YAML flow style: data.mixture={a: 1, b: 2}.
static Error *override_key(const Key *keys, int count, void *base, const char *text, bool *seen) {
    const char *equals = strchr(text, '=');
    if (equals == NULL || equals == text) {
        return usage_error("command line: '%s' is no setting; write key.path=value", text);
    }
    char *name = memory_format("%.*s", (int)(equals - text), text);
    const Key *key = keys_find(keys, count, name);
    Error *error = NULL;
    if (key == NULL) {
        error = keys_unknown(keys, count, name, "command line", "key", "");
    } else if (key->type == KEY_LIST || key->type == KEY_PROPORTIONS) {
        // Nest the value at its place and read it as YAML.
        Buffer yaml = {0};
        int depth = 0;
        for (const char *p = name; *p != 0; p++) {
            if (*p == '.') {
                buffer_printf(&yaml, ":\n%*s", ++depth * 2, "");
            } else {
                buffer_byte(&yaml, *p);
            }
        }
        buffer_printf(&yaml, ": %s\n", equals + 1);
        error = read_text(keys, count, base, "command line", yaml.data, yaml.size, seen, 0);
        buffer_free(&yaml);
    } else {
        if (seen != NULL) {
            seen[key - keys] = true;
        }
        key_clear(key, base);
        if (key->type != KEY_TEXT || strcmp(equals + 1, "null") != 0) {
            error = key_parse(key, base, equals + 1, "command line");
        }
    }
    free(name);
    return error;
}

Error *config_read(const Key *keys, int count, void *base, const char *path, char *const *overrides, int override_count,
                   bool *seen) {
    TRY(read_file(keys, count, base, path, seen, 0));
    for (int i = 0; i < override_count; i++) {
        TRY(override_key(keys, count, base, overrides[i], seen));
    }
    return NULL;
}

// The comment of a key: meaning, unit, choices or range, default.
static void print_comment(const Key *key, int indent, Buffer *out) {
    buffer_printf(out, "%*s# %s", indent, "", key->help);
    if (key->unit != NULL) {
        buffer_printf(out, " In %s.", key->unit);
    }
    if (key->type == KEY_CHOICE) {
        buffer_text(out, " One of");
        for (int i = 0; key->choices[i] != NULL; i++) {
            buffer_printf(out, "%s %s", i > 0 ? "," : ":", key->choices[i]);
        }
        buffer_byte(out, '.');
    }
    if (key->default_value != NULL) {
        buffer_printf(out, " Default: %s.", *key->default_value ? key->default_value : "empty");
    }
    buffer_byte(out, '\n');
}

void config_write(const Key *keys, int count, const void *base, bool explain, Buffer *out) {
    const char *before = "";
    for (int i = 0; i < count; i++) {
        // Open the sections that the key before did not share; keys of a section stand together in a table.
        const char *name = keys[i].name, *part = name;
        int depth = 0;
        for (const char *dot; (dot = strchr(part, '.')) != NULL; part = dot + 1, depth++) {
            size_t through = (size_t)(dot - name) + 1;
            if (strncmp(before, name, through) != 0) {
                buffer_printf(out, "%s%*s%.*s:\n", out->size > 0 && depth == 0 ? "\n" : "", depth * 2, "", (int)(dot - part),
                              part);
            }
        }
        if (explain) {
            print_comment(&keys[i], depth * 2, out);
        }
        buffer_printf(out, "%*s%s: ", depth * 2, "", part);
        key_print(&keys[i], base, out);
        buffer_byte(out, '\n');
        before = name;
    }
}
