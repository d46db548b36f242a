// Configurations: see config.h.
#include "core/config.h"

#include "core/durable.h"
#include "core/text.h"

#include <stdio.h>
#include <yaml.h>

// A configuration is small. What is larger is no configuration, and must not take the time or the memory of one that is.
enum {
    MOST_INCLUDES = 8,      // nesting of includes
    MOST_FILES = 64,        // that one configuration reads
    MOST_DEPTH = 8,         // nesting of maps and lists
    MOST_VALUES = 10000,    // names and values of one file
    MOST_LENGTH = 1 << 16,  // of one value, in bytes
    MOST_BYTES = 1 << 20,   // of one file
};

typedef struct Reader {
    const Key *keys;
    int count;
    void *base;
    const char *name;  // the file, for messages; NULL: a value on the command line
    bool *seen;
    size_t *lines;  // where this file gives each key, counted from 1; 0: not
    int include_depth;
    int *files;  // that were read
    yaml_document_t document;
} Reader;

static Error *read_file(const Reader *from, const char *path);

static const char *scalar(const yaml_node_t *node) {
    return (const char *)node->data.scalar.value;
}

static size_t line_of(const yaml_node_t *node) {
    return node->start_mark.line + 1;
}

// "file.yaml:12", in a buffer that lives until the next call of the same thread.
static const char *place(const Reader *reader, const yaml_node_t *node) {
    static _Thread_local char text[512];
    if (reader->name == NULL) {
        return "command line";
    }
    snprintf(text, sizeof text, "%s:%zu", reader->name, line_of(node));
    return text;
}

static bool is_null(const char *text) {
    static const char *const nulls[] = {"", "~", "null", "Null", "NULL"};
    for (size_t i = 0; i < sizeof nulls / sizeof *nulls; i++) {
        if (strcmp(text, nulls[i]) == 0) {
            return true;
        }
    }
    return false;
}

static bool plain_null(const yaml_node_t *node) {
    return node->type == YAML_SCALAR_NODE && node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE && is_null(scalar(node));
}

// Whether a key may be without a value.
static bool may_be_null(const Key *key) {
    bool kind = key->type == KEY_TEXT || key->type == KEY_PATH || key->type == KEY_LIST || key->type == KEY_PROPORTIONS;
    return kind && key->default_value == NULL;
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

// Refuses a map that gives one name twice.
static Error *refuse_twice(Reader *reader, const yaml_node_t *map, const char *what) {
    for (yaml_node_pair_t *pair = map->data.mapping.pairs.start; pair < map->data.mapping.pairs.top; pair++) {
        yaml_node_t *name = yaml_document_get_node(&reader->document, pair->key);
        TRY(need_text(reader, name, what));
        for (yaml_node_pair_t *other = map->data.mapping.pairs.start; other < pair; other++) {
            yaml_node_t *earlier = yaml_document_get_node(&reader->document, other->key);
            if (strcmp(scalar(earlier), scalar(name)) == 0) {
                return failure("%s: '%.100s' stands twice, first in line %zu", place(reader, name), scalar(name),
                               line_of(earlier));
            }
        }
    }
    return NULL;
}

static Error *set_proportions(Reader *reader, const Key *key, const yaml_node_t *node) {
    if (node->type != YAML_MAPPING_NODE) {
        return failure("%s: %s must be a map from name to number", place(reader, node), key->name);
    }
    TRY(refuse_twice(reader, node, key->name));
    for (yaml_node_pair_t *pair = node->data.mapping.pairs.start; pair < node->data.mapping.pairs.top; pair++) {
        yaml_node_t *name = yaml_document_get_node(&reader->document, pair->key);
        yaml_node_t *value = yaml_document_get_node(&reader->document, pair->value);
        TRY(need_text(reader, value, key->name));
        double number;
        if (!text_to_f64(scalar(value), &number)) {
            return failure("%s: %s: '%.100s' must be a number%s", place(reader, value), key->name, scalar(value),
                           *scalar(value) == 0 ? ", with a blank between colon and number" : "");
        }
        TRY(key_add_proportion(key, reader->base, scalar(name), number, place(reader, name)));
    }
    return NULL;
}

static Error *set_list(Reader *reader, const Key *key, const yaml_node_t *node) {
    for (yaml_node_item_t *item = node->data.sequence.items.start; item < node->data.sequence.items.top; item++) {
        yaml_node_t *child = yaml_document_get_node(&reader->document, *item);
        TRY(need_text(reader, child, key->name));
        if (plain_null(child)) {
            return failure("%s: %s has an item without a value; an empty text is written \"\"", place(reader, child),
                           key->name);
        }
        TRY(key_parse(key, reader->base, scalar(child), place(reader, child)));
    }
    return NULL;
}

// Sets a key to what stands at `node`; `name`: where the key stands.
static Error *set_key(Reader *reader, const Key *key, const yaml_node_t *name, const yaml_node_t *node) {
    size_t *line = &reader->lines[key - reader->keys];
    if (*line != 0) {
        return failure("%s: %s is given twice, first in line %zu", place(reader, name), key->name, *line);
    }
    *line = line_of(name);
    if (reader->seen != NULL) {
        reader->seen[key - reader->keys] = true;
    }
    key_clear(key, reader->base);
    if (plain_null(node)) {
        return may_be_null(key) ? NULL : failure("%s: %s must have a value", place(reader, node), key->name);
    }
    if (key->type == KEY_PROPORTIONS) {
        return set_proportions(reader, key, node);
    }
    if (key->type == KEY_LIST && node->type == YAML_SEQUENCE_NODE) {
        return set_list(reader, key, node);
    }
    TRY(need_text(reader, node, key->name));
    return key_parse(key, reader->base, scalar(node), place(reader, node));
}

// ---- Sections
// ------------------------------------------------------------------------------------------------------------------------

// True where some key lies below `prefix`.
static bool is_section(const Key *keys, int count, const char *prefix) {
    size_t length = strlen(prefix);
    for (int i = 0; i < count; i++) {
        if (strncmp(keys[i].name, prefix, length) == 0 && keys[i].name[length] == '.') {
            return true;
        }
    }
    return false;
}

// The names of all sections, in the order of their keys.
static void list_sections(const Key *keys, int count, Strings *out) {
    for (int i = 0; i < count; i++) {
        for (const char *dot = strchr(keys[i].name, '.'); dot != NULL; dot = strchr(dot + 1, '.')) {
            char *name = memory_format("%.*s", (int)(dot - keys[i].name), keys[i].name);
            bool known = false;
            for (size_t s = 0; s < out->count; s++) {
                known |= strcmp(out->items[s], name) == 0;
            }
            if (!known) {
                strings_add(out, name);
            }
            free(name);
        }
    }
}

// How many of the names in `map` are keys of `section`, or mean one of them.
static int keys_of_section(const Reader *reader, const yaml_node_t *map, const char *section) {
    yaml_document_t *document = (yaml_document_t *)(uintptr_t)&reader->document;
    size_t length = strlen(section);
    int found = 0;
    for (yaml_node_pair_t *pair = map->data.mapping.pairs.start; pair < map->data.mapping.pairs.top; pair++) {
        const yaml_node_t *name = yaml_document_get_node(document, pair->key);
        const Key *meant[KEYS_MEANT];
        int count = name->type == YAML_SCALAR_NODE ? keys_meant(reader->keys, reader->count, scalar(name), meant) : 0;
        for (int i = 0; i < count; i++) {
            if (strncmp(meant[i]->name, section, length) == 0 &&
                strchr(meant[i]->name + length, '.') == meant[i]->name + length) {
                found++;
                break;
            }
        }
    }
    return found;
}

// A map under a name that is no section: the section of that name but for a slip, or the one that has most of what stands in
// it.
static Error *unknown_section(const Reader *reader, const char *full, const yaml_node_t *name, const yaml_node_t *map) {
    Strings sections = {0};
    list_sections(reader->keys, reader->count, &sections);
    const char *dot = strrchr(full, '.');
    int meant = text_nearest(dot != NULL ? dot + 1 : full, (const char *const *)sections.items, (int)sections.count), most = 0;
    for (size_t i = 0; meant < 0 && i < sections.count; i++) {
        int found = keys_of_section(reader, map, sections.items[i]);
        most = found > most ? found : most;
    }
    for (size_t i = 0, ties = 0; most > 0 && i < sections.count; i++) {
        if (keys_of_section(reader, map, sections.items[i]) == most) {
            meant = ties++ == 0 ? (int)i : -1;
        }
    }
    Buffer hint = {0};
    if (meant >= 0) {
        buffer_printf(&hint, "did you mean %s?", sections.items[meant]);
    } else {
        buffer_text(&hint, "the sections are ");
        for (size_t i = 0; i < sections.count; i++) {
            buffer_printf(&hint, "%s%s", i > 0 ? ", " : "", sections.items[i]);
        }
    }
    Error *error = failure("%s: unknown section %.200s; %s", place(reader, name), full, hint.data);
    buffer_free(&hint);
    strings_free(&sections);
    return error;
}

// A section that is given a value, as the key that chooses its kind has it elsewhere.
static Error *section_without_keys(const Key *keys, int count, const char *name, const char *where) {
    Buffer hint = {0};
    buffer_text(&hint, "");
    keys_suggest(keys, count, name, "", &hint);
    Error *error = failure("%s: %s is a section, it must hold keys%s", where, name, hint.data);
    buffer_free(&hint);
    return error;
}

static Error *read_map(Reader *reader, const char *prefix, const yaml_node_t *map) {
    TRY(refuse_twice(reader, map, "a key"));
    for (yaml_node_pair_t *pair = map->data.mapping.pairs.start; pair < map->data.mapping.pairs.top; pair++) {
        yaml_node_t *name = yaml_document_get_node(&reader->document, pair->key);
        yaml_node_t *value = yaml_document_get_node(&reader->document, pair->value);
        if (*prefix == 0 && strcmp(scalar(name), "include") == 0) {
            continue;  // read before everything else
        }
        char *full = *prefix ? memory_format("%s.%s", prefix, scalar(name)) : memory_string(scalar(name));
        const Key *key = keys_find(reader->keys, reader->count, full);
        bool map_below = value->type == YAML_MAPPING_NODE, section = is_section(reader->keys, reader->count, full);
        Error *error = NULL;
        if (key != NULL) {
            error = set_key(reader, key, name, value);
        } else if (section && map_below) {
            error = read_map(reader, full, value);
        } else if (section && !plain_null(value)) {
            error = section_without_keys(reader->keys, reader->count, full, place(reader, name));
        } else if (!section && map_below) {
            error = unknown_section(reader, full, name, value);
        } else if (!section) {
            error = keys_unknown(reader->keys, reader->count, full, place(reader, name), "key", "");
        }
        free(full);
        TRY(error);
    }
    return NULL;
}

// ---- Files
// ---------------------------------------------------------------------------------------------------------------------------

static Error *read_include(Reader *reader, const yaml_node_t *node) {
    TRY(need_text(reader, node, "include"));
    if (plain_null(node)) {
        return failure("%s: include names no file", place(reader, node));
    }
    if (reader->include_depth >= MOST_INCLUDES) {
        return failure("%s: includes are nested deeper than %d", place(reader, node), MOST_INCLUDES);
    }
    char *given;
    TRY(error_wrap(path_home(scalar(node), &given), "%s", place(reader, node)));
    char *folder = path_folder(reader->name);
    char *path = *given == '/' ? memory_string(given) : path_join(folder, given);
    Error *error = error_wrap(read_file(reader, path), "%s", place(reader, node));
    free(path);
    free(folder);
    free(given);
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

// What the YAML parser could not read, and where: "file.yaml:3:7: not valid YAML: ...".
static Error *invalid(const char *name, const yaml_parser_t *parser, const char *text, const Key *key) {
    const char *problem = parser->problem != NULL ? parser->problem : "unknown problem";
    size_t line = parser->problem_mark.line + 1, column = parser->problem_mark.column + 1;
    char opened[120] = "";
    if (parser->error == YAML_READER_ERROR) {
        // It knows the byte alone.
        line = column = 1;
        for (size_t i = 0; i < parser->problem_offset; i++) {
            column = text[i] == '\n' ? 1 : column + 1;
            line += text[i] == '\n';
        }
    } else if (parser->context != NULL && parser->context_mark.line + 1 < line) {
        snprintf(opened, sizeof opened, " (%s that begins in line %zu)", parser->context, parser->context_mark.line + 1);
    }
    if (key != NULL) {
        return failure("command line: %s is not valid YAML: %s", key->name, problem);
    }
    return failure("%s:%zu:%zu: not valid YAML: %s%s", name, line, column, problem, opened);
}

// What there may not be in a configuration, at this event: aliases could make a small file expand without bound, tags have no
// meaning here, and what is larger than the limits is something else.
static const char *unwanted(const yaml_event_t *event, int documents, int depth, int values) {
    const unsigned char *anchor = NULL, *tag = NULL;
    if (event->type == YAML_SCALAR_EVENT) {
        anchor = event->data.scalar.anchor;
        tag = event->data.scalar.tag;
    } else if (event->type == YAML_SEQUENCE_START_EVENT) {
        anchor = event->data.sequence_start.anchor;
        tag = event->data.sequence_start.tag;
    } else if (event->type == YAML_MAPPING_START_EVENT) {
        anchor = event->data.mapping_start.anchor;
        tag = event->data.mapping_start.tag;
    }
    return event->type == YAML_ALIAS_EVENT || anchor != NULL ? "YAML anchors and aliases are not used here; write the value out"
           : tag != NULL          ? "YAML tags (!) have no meaning here; put a text that begins with ! in quotes"
           : documents > 1        ? "one document a file, please"
           : depth > MOST_DEPTH   ? "maps and lists are nested too deeply for a configuration (at most 8 levels)"
           : values > MOST_VALUES ? "too many values for a configuration (at most 10000 in a file)"
           : event->type == YAML_SCALAR_EVENT && event->data.scalar.length > MOST_LENGTH
               ? "a value is too long for a configuration (at most 64 KiB)"
               : NULL;
}

// Reads through the text, event by event, before anything of it is kept.
static Error *refuse_unwanted(const char *name, const char *text, size_t size, const Key *key) {
    yaml_parser_t parser;
    yaml_event_t event;
    ensure(yaml_parser_initialize(&parser), "no memory for a YAML parser");
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, size);
    Error *error = NULL;
    for (int documents = 0, depth = 0, values = 0, done = 0; !done && error == NULL;) {
        if (!yaml_parser_parse(&parser, &event)) {
            error = invalid(name, &parser, text, key);
            break;
        }
        bool begins = event.type == YAML_SEQUENCE_START_EVENT || event.type == YAML_MAPPING_START_EVENT;
        bool ends = event.type == YAML_SEQUENCE_END_EVENT || event.type == YAML_MAPPING_END_EVENT;
        documents += event.type == YAML_DOCUMENT_START_EVENT;
        depth += begins - ends;
        values += begins || event.type == YAML_SCALAR_EVENT;
        const char *reason = unwanted(&event, documents, depth, values);
        if (reason != NULL && key != NULL) {
            error = failure("command line: %s: %s", key->name, reason);
        } else if (reason != NULL) {
            error = failure("%s:%zu: %s", name, event.start_mark.line + 1, reason);
        }
        done = event.type == YAML_STREAM_END_EVENT;
        yaml_event_delete(&event);
    }
    yaml_parser_delete(&parser);
    return error;
}

static Error *read_root(Reader *reader, const yaml_node_t *root) {
    if (root->type != YAML_MAPPING_NODE) {
        return plain_null(root) ? NULL : failure("%s: keys with values are expected, such as 'seed: 1'", place(reader, root));
    }
    TRY(read_includes(reader, root));
    return read_map(reader, "", root);
}

// Reads a file's text, or with `key` its value on the command line.
static Error *read_text(const Reader *like, const char *name, const char *text, size_t size, const Key *key) {
    TRY(refuse_unwanted(name, text, size, key));
    Reader reader = *like;
    reader.name = name;
    reader.lines = memory_zeroed((size_t)like->count, sizeof *reader.lines);
    yaml_parser_t parser;
    ensure(yaml_parser_initialize(&parser), "no memory for a YAML parser");
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, size);
    Error *error = NULL;
    if (!yaml_parser_load(&parser, &reader.document)) {
        error = invalid(name, &parser, text, key);
    } else {
        yaml_node_t *root = yaml_document_get_root_node(&reader.document);
        if (root != NULL) {
            error = key != NULL ? set_key(&reader, key, root, root) : read_root(&reader, root);
        }
        yaml_document_delete(&reader.document);
    }
    yaml_parser_delete(&parser);
    free(reader.lines);
    return error;
}

// Reads a file that `from` includes.
static Error *read_file(const Reader *from, const char *path) {
    Reader reader = *from;
    reader.include_depth++;
    if (++*reader.files > MOST_FILES) {
        return failure("more than %d files are included", MOST_FILES);
    }
    Buffer text = {0};
    Error *error = file_read_stream(path, MOST_BYTES, &text);
    if (error == NULL) {
        error = read_text(&reader, path, text.data, text.size, NULL);
    }
    buffer_free(&text);
    return error;
}

Error *config_read_text(const Key *keys, int count, void *base, const char *name, const char *text, size_t size, bool *seen) {
    int files = 1;
    return read_text(&(Reader){.keys = keys, .count = count, .base = base, .seen = seen, .files = &files}, name, text, size,
                     NULL);
}

// An override "key=value". A list or map may be written in YAML flow style: data.mixture={a: 1, b: 2}.
static Error *override_key(const Reader *reader, const char *text) {
    const Key *keys = reader->keys;
    const char *equals = strchr(text, '=');
    if (equals == NULL || equals == text) {
        return keys_find(keys, reader->count, text) != NULL
                   ? failure("command line: '%s' has no value; write %s=VALUE", text, text)
                   : failure("command line: '%s' is no setting; write key.path=value", text);
    }
    char *name = memory_format("%.*s", (int)(equals - text), text);
    const char *value = equals + 1;
    const Key *key = keys_find(keys, reader->count, name);
    Error *error = NULL;
    if (key == NULL) {
        error = is_section(keys, reader->count, name) ? section_without_keys(keys, reader->count, name, "command line")
                                                      : keys_unknown(keys, reader->count, name, "command line", "key", "");
    } else if (key->type == KEY_LIST || key->type == KEY_PROPORTIONS) {
        key_clear(key, reader->base);
        error = read_text(reader, NULL, value, strlen(value), key);
    } else {
        key_clear(key, reader->base);
        error = may_be_null(key) && is_null(value) ? NULL : key_parse(key, reader->base, value, "command line");
    }
    if (key != NULL && reader->seen != NULL) {
        reader->seen[key - keys] = true;
    }
    free(name);
    return error;
}

Error *config_read(const Key *keys, int count, void *base, const char *path, char *const *overrides, int override_count,
                   bool *seen) {
    int files = 0;
    Reader reader = {.keys = keys, .count = count, .base = base, .seen = seen, .files = &files, .include_depth = -1};
    TRY(read_file(&reader, path));
    Error *error = NULL;
    for (int i = 0; i < override_count && error == NULL; i++) {
        error = override_key(&reader, overrides[i]);
    }
    if (error != NULL) {
        error->kind = ERROR_USAGE;
    }
    return error;
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
