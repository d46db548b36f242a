// One table of settings: see keys.h.
#include "core/keys.h"

#include "core/durable.h"
#include "core/hash.h"
#include "core/text.h"

#include <ctype.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#define VALUE(type, key, base) ((type *)(void *)((char *)(base) + (key)->offset))

static bool limited(const Key *key) {
    return key->least != 0 || key->most != 0;
}

// The shortest form of at least `digits` digits that reads back as the same number. `out` has room for 40 bytes.
static const char *shortest(char *out, double value, int digits) {
    for (; digits <= 17; digits++) {
        snprintf(out, 40, "%.*g", digits, value);
        if (strtod(out, NULL) == value) {
            break;
        }
    }
    return out;
}

// A limit of a key: whole numbers in full.
static const char *limit_text(char *out, const Key *key, double value) {
    if (key->type != KEY_INT) {
        return shortest(out, value, 6);
    }
    snprintf(out, 40, "%.0f", value);
    return out;
}

static Error *check_range(const Key *key, double value, const char *written, const char *where) {
    if (limited(key) && !(value >= key->least && value <= key->most)) {
        char least[40], most[40];
        return failure("%s: %s is %s, it must be between %s and %s%s%s", where, key->name, written,
                       limit_text(least, key, key->least), limit_text(most, key, key->most), key->unit ? " " : "",
                       key->unit ? key->unit : "");
    }
    return NULL;
}

Error *key_parse(const Key *key, void *base, const char *text, const char *where) {
    switch (key->type) {
    case KEY_BOOL:
        if (!text_to_bool(text, VALUE(bool, key, base))) {
            return failure("%s: %s is '%.100s', it must be true or false", where, key->name, text);
        }
        return NULL;
    case KEY_INT: {
        int64_t value;
        if (!text_to_i64(text, &value)) {
            return failure("%s: %s is '%.100s', it must be a whole number such as 1000, 1e6, 10k or 4M", where, key->name,
                           text);
        }
        TRY(check_range(key, (double)value, text, where));
        *VALUE(int64_t, key, base) = value;
        return NULL;
    }
    case KEY_FLOAT: {
        double value;
        if (!text_to_f64(text, &value)) {
            return failure("%s: %s is '%.100s', it must be a number such as 0.1 or 3e-4", where, key->name, text);
        }
        TRY(check_range(key, value, text, where));
        *VALUE(double, key, base) = value;
        return NULL;
    }
    case KEY_TEXT:
        free(*VALUE(char *, key, base));
        *VALUE(char *, key, base) = memory_string(text);
        return NULL;
    case KEY_PATH: {
        if (*text == 0) {
            return failure("%s: %s is empty, it must be a path", where, key->name);
        }
        bool word;
        if (text_to_bool(text, &word)) {
            return failure("%s: %s is '%.100s', it must be a path: ./%s, if that is its name", where, key->name, text, text);
        }
        char *path;
        TRY(error_wrap(path_home(text, &path), "%s: %s", where, key->name));
        free(*VALUE(char *, key, base));
        *VALUE(char *, key, base) = path;
        return NULL;
    }
    case KEY_CHOICE: {
        int count = 0;
        for (; key->choices[count] != NULL; count++) {
            if (strcmp(key->choices[count], text) == 0) {
                *VALUE(int, key, base) = count;
                return NULL;
            }
        }
        Buffer all = {0};
        for (int i = 0; i < count; i++) {
            buffer_printf(&all, "%s%s", i > 0 ? ", " : "", key->choices[i]);
        }
        Error *error = failure("%s: %s is '%.100s', it must be one of: %s", where, key->name, text, all.data);
        buffer_free(&all);
        return error;
    }
    case KEY_LIST:
        strings_add(VALUE(Strings, key, base), text);
        return NULL;
    case KEY_PROPORTIONS: {
        const char *equals = strrchr(text, '=');
        double value;
        if (equals == NULL || equals == text || !text_to_f64(equals + 1, &value)) {
            return failure("%s: %s is '%.100s', it must be NAME=NUMBER", where, key->name, text);
        }
        char *name = memory_format("%.*s", (int)(equals - text), text);
        Error *error = key_add_proportion(key, base, name, value, where);
        free(name);
        return error;
    }
    }
    return failure("%s: %s has no type", where, key->name);
}

Error *key_add_proportion(const Key *key, void *base, const char *name, double value, const char *where) {
    Proportions *proportions = VALUE(Proportions, key, base);
    if (!isfinite(value)) {
        return failure("%s: %s: '%s' must be a finite number", where, key->name, name);
    }
    char written[40];
    TRY(error_wrap(check_range(key, value, shortest(written, value, 6), where), "%s: '%s'", where, name));
    for (size_t i = 0; i < proportions->count; i++) {
        if (strcmp(proportions->names[i], name) == 0) {
            return failure("%s: %s names '%s' twice", where, key->name, name);
        }
    }
    proportions->names = memory_resize(proportions->names, proportions->count + 1, sizeof *proportions->names);
    proportions->values = memory_resize(proportions->values, proportions->count + 1, sizeof *proportions->values);
    proportions->names[proportions->count] = memory_string(name);
    proportions->values[proportions->count++] = value;
    return NULL;
}

void key_clear(const Key *key, void *base) {
    if (key->type == KEY_TEXT || key->type == KEY_PATH) {
        free(*VALUE(char *, key, base));
        *VALUE(char *, key, base) = NULL;
    } else if (key->type == KEY_LIST) {
        strings_free(VALUE(Strings, key, base));
    } else if (key->type == KEY_PROPORTIONS) {
        Proportions *proportions = VALUE(Proportions, key, base);
        for (size_t i = 0; i < proportions->count; i++) {
            free(proportions->names[i]);
        }
        free(proportions->names);
        free(proportions->values);
        *proportions = (Proportions){0};
    }
}

void keys_defaults(const Key *keys, int count, void *base) {
    for (int i = 0; i < count; i++) {
        if (keys[i].default_value != NULL) {
            Error *error = key_parse(&keys[i], base, keys[i].default_value, "default");
            ensure(error == NULL, "%s", error->message);
        } else {
            ensure(keys[i].type >= KEY_TEXT && keys[i].type != KEY_CHOICE, "%s needs a default", keys[i].name);
        }
    }
}

void keys_free(const Key *keys, int count, void *base) {
    for (int i = 0; i < count; i++) {
        key_clear(&keys[i], base);
    }
}

const Key *keys_find(const Key *keys, int count, const char *name) {
    for (int i = 0; i < count; i++) {
        if (strcmp(keys[i].name, name) == 0) {
            return &keys[i];
        }
    }
    return NULL;
}

// The length of a character at `p` that YAML does not allow in a file, or reads as a line break, and its code; 0 for others:
// control characters (C0, DEL, C1), the separators U+2028 and U+2029, the byte order mark, U+FFFE and U+FFFF.
static int unprintable(const char *p, unsigned *code) {
    static const struct {
        const char *bytes;
        unsigned code;
    } others[] = {{"\xE2\x80\xA8", 0x2028},
                  {"\xE2\x80\xA9", 0x2029},
                  {"\xEF\xBB\xBF", 0xFEFF},
                  {"\xEF\xBF\xBE", 0xFFFE},
                  {"\xEF\xBF\xBF", 0xFFFF}};
    unsigned first = (unsigned char)p[0], second = first != 0 ? (unsigned char)p[1] : 0;
    if (first < 0x20 || first == 0x7F) {
        *code = first;
        return 1;
    }
    if (first == 0xC2 && second < 0xA0) {
        *code = second;
        return 2;
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        if (strncmp(p, others[i].bytes, 3) == 0) {
            *code = others[i].code;
            return 3;
        }
    }
    return 0;
}

// A YAML scalar in double quotes, so that nothing in it is read as something else.
static void print_text(Buffer *out, const char *text) {
    buffer_byte(out, '"');
    for (const char *p = text; *p != 0;) {
        unsigned code;
        int length = unprintable(p, &code);
        if (length > 0) {
            buffer_printf(out, code < 0x100 ? "\\x%02x" : "\\u%04x", code);
            p += length;
        } else {
            buffer_text(out, *p == '"' || *p == '\\' ? "\\" : "");
            buffer_byte(out, *p++);
        }
    }
    buffer_byte(out, '"');
}

void key_print(const Key *key, const void *base, Buffer *out) {
    switch (key->type) {
    case KEY_BOOL:
        buffer_text(out, *VALUE(const bool, key, base) ? "true" : "false");
        break;
    case KEY_INT:
        buffer_printf(out, "%" PRId64, *VALUE(const int64_t, key, base));
        break;
    case KEY_FLOAT: {
        char text[40];
        buffer_text(out, shortest(text, *VALUE(const double, key, base), 1));
        break;
    }
    case KEY_PATH:
    case KEY_TEXT: {
        const char *text = *VALUE(char *const, key, base);
        if (text == NULL) {
            buffer_text(out, "null");
        } else {
            print_text(out, text);
        }
        break;
    }
    case KEY_CHOICE:
        buffer_text(out, key->choices[*VALUE(const int, key, base)]);
        break;
    case KEY_LIST: {
        const Strings *strings = VALUE(const Strings, key, base);
        buffer_byte(out, '[');
        for (size_t i = 0; i < strings->count; i++) {
            buffer_text(out, i > 0 ? ", " : "");
            print_text(out, strings->items[i]);
        }
        buffer_byte(out, ']');
        break;
    }
    case KEY_PROPORTIONS: {
        const Proportions *proportions = VALUE(const Proportions, key, base);
        buffer_byte(out, '{');
        for (size_t i = 0; i < proportions->count; i++) {
            buffer_text(out, i > 0 ? ", " : "");
            print_text(out, proportions->names[i]);
            buffer_printf(out, ": %.17g", proportions->values[i]);
        }
        buffer_byte(out, '}');
        break;
    }
    }
}

bool key_neutral(const Key *key, const void *base) {
    Buffer value = {0};
    key_print(key, base, &value);
    bool neutral = key->neutral != NULL && strcmp(value.data, key->neutral) == 0;
    buffer_free(&value);
    return neutral;
}

uint64_t keys_identity(const Key *keys, int count, const void *base) {
    uint64_t sum = 0;
    for (int i = 0; i < count; i++) {
        if (keys[i].identity && !key_neutral(&keys[i], base)) {
            Buffer line = {0};
            buffer_printf(&line, "%s=", keys[i].name);
            key_print(&keys[i], base, &line);
            sum += hash64(line.data, line.size);
            buffer_free(&line);
        }
    }
    return sum;
}

// ---- Suggestions
// ---------------------------------------------------------------------------------------------------------------------

enum { WORD = 64 };  // longer words are cut: they are far from every key

// A word as suggestions see it: small letters and digits alone.
static const char *squash(char *out, const char *text, size_t size) {
    size_t to = 0;
    for (size_t i = 0; i < size && to + 1 < WORD; i++) {
        if (isalnum((unsigned char)text[i])) {
            out[to++] = (char)tolower((unsigned char)text[i]);
        }
    }
    out[to] = 0;
    return out;
}

static const char *last_word(const char *name) {
    const char *dot = strrchr(name, '.');
    return dot != NULL ? dot + 1 : name;
}

// A name in its parts, squashed.
typedef struct Name {
    char whole[WORD], last[WORD], section[WORD];
} Name;

static Name parts_of(const char *text) {
    Name name;
    const char *last = last_word(text);
    squash(name.whole, text, strlen(text));
    squash(name.last, last, strlen(last));
    squash(name.section, text, (size_t)(last - text));
    return name;
}

// How far the nearest of a key's other words is.
static int also_distance(const Key *key, const Name *given) {
    int best = WORD;
    for (const char *word = key->also; word != NULL && *word != 0;) {
        size_t length = strcspn(word, " ");
        char squashed[WORD];
        squash(squashed, word, length);
        int last = text_distance(given->last, squashed), whole = text_distance(given->whole, squashed);
        best = last < best ? last : best;
        best = whole < best ? whole : best;
        word += length + strspn(word + length, " ");
    }
    return best;
}

// How far a key is from what was given, as the kinds of evidence rank: the whole name, its last word or another word for it,
// then slips. Above `WORD`: too far.
static int meant_distance(const Key *key, const Name *given) {
    Name name = parts_of(key->name);
    if (strcmp(name.whole, given->whole) == 0) {
        return 0;
    }
    int last = text_distance(given->last, name.last), whole = text_distance(given->whole, name.whole);
    int also = also_distance(key, given);
    if (last == 0 || also == 0) {
        return 1;
    }
    int slips = last <= text_slips(given->last) ? last : WORD;
    slips = whole <= text_slips(given->whole) && whole < slips ? whole : slips;
    if (slips < WORD) {
        return 1 + slips;
    }
    return also == 1 && strlen(given->last) >= 6 ? 4 : WORD + 1;  // after two slips in a key's own word
}

// How well a key's section is the one given: 0 the same, 1 with slips, 2 another.
static int section_distance(const Key *key, const Name *given) {
    Name name = parts_of(key->name);
    int distance = text_distance(name.section, given->section);
    return distance == 0 ? 0 : distance <= text_slips(given->section) ? 1 : 2;
}

int keys_meant(const Key *keys, int count, const char *name, const Key *out[KEYS_MEANT]) {
    Name given = parts_of(name);
    int best = WORD, best_section = 0, found = 0;
    if (strlen(last_word(name)) + 1 >= WORD || given.last[0] == 0) {
        return 0;
    }
    for (int i = 0; i < count; i++) {
        int distance = meant_distance(&keys[i], &given), section = section_distance(&keys[i], &given);
        if (distance > WORD || distance > best || (distance == best && section > best_section)) {
            continue;
        }
        if (distance < best || section < best_section) {
            found = 0;
        }
        best = distance;
        best_section = section;
        if (found < KEYS_MEANT) {
            out[found] = &keys[i];
        }
        found++;
    }
    return found <= KEYS_MEANT ? found : 0;
}

void keys_suggest(const Key *keys, int count, const char *name, const char *prefix, Buffer *out) {
    const Key *meant[KEYS_MEANT];
    int found = keys_meant(keys, count, name, meant);
    for (int i = 0; i < found; i++) {
        buffer_printf(out, "%s%s%s", i == 0 ? "; did you mean " : i + 1 < found ? ", " : " or ", prefix, meant[i]->name);
    }
    if (found == 1) {
        Name key = parts_of(meant[0]->name), given = parts_of(name);
        if (text_distance(key.last, given.last) > text_slips(given.last)) {  // another word: say what it means
            const char *help = meant[0]->help, *end = strstr(help, ". ");
            size_t length = end != NULL ? (size_t)(end - help) : strlen(help) - text_ends_with(help, ".");
            buffer_printf(out, " (%.*s)", (int)length, help);
        }
    }
    buffer_text(out, found > 0 ? "?" : "");
}

Error *keys_unknown(const Key *keys, int count, const char *name, const char *where, const char *what, const char *prefix) {
    Buffer suggestion = {0};
    buffer_text(&suggestion, "");
    keys_suggest(keys, count, name, prefix, &suggestion);
    Error *error = failure("%s: unknown %s %s%.200s%s", where, what, prefix, name, suggestion.data);
    buffer_free(&suggestion);
    return error;
}
