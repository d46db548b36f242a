// Command lines: see options.h.
#include "core/options.h"

#include "core/text.h"

static Error *as_usage(Error *error) {
    if (error != NULL) {
        error->kind = ERROR_USAGE;
    }
    return error;
}

Error *options_parse(const Key *keys, int count, void *base, int argc, char **argv, char **rest, int *rest_count) {
    bool *given = memory_zeroed((size_t)count, sizeof *given);
    Error *error = NULL;
    *rest_count = 0;
    for (int i = 0; i < argc && error == NULL; i++) {
        const char *argument = argv[i];
        if (strcmp(argument, "--") == 0) {
            while (++i < argc) {
                rest[(*rest_count)++] = argv[i];
            }
            break;
        }
        if (!text_starts_with(argument, "--")) {
            rest[(*rest_count)++] = argv[i];
            continue;
        }
        const char *equals = strchr(argument, '=');
        char *name =
            equals != NULL ? memory_format("%.*s", (int)(equals - argument - 2), argument + 2) : memory_string(argument + 2);
        const char *value = equals != NULL ? equals + 1 : NULL;
        const Key *key = keys_find(keys, count, name);
        if (key == NULL && text_starts_with(name, "no-") && value == NULL) {
            key = keys_find(keys, count, name + 3);
            key = key != NULL && key->type == KEY_BOOL ? key : NULL;
            value = key != NULL ? "false" : NULL;
        }
        if (key == NULL) {
            error = keys_unknown(keys, count, name, "command line", "flag", "--");
        } else {
            bool repeats = key->type == KEY_LIST || key->type == KEY_PROPORTIONS;
            if (value == NULL && key->type == KEY_BOOL) {
                value = "true";
            } else if (value == NULL) {
                value = i + 1 < argc ? argv[++i] : NULL;
            }
            if (value == NULL) {
                error = usage_error("command line: --%s needs a value", key->name);
            } else if (given[key - keys] && !repeats) {
                error = usage_error("command line: --%s is given twice", key->name);
            } else {
                if (!given[key - keys] && repeats) {
                    key_clear(key, base);  // the default goes when the first item is given
                }
                given[key - keys] = true;
                error = key_parse(key, base, value, "command line");
            }
        }
        free(name);
    }
    free(given);
    return as_usage(error);
}

void options_help(const Key *keys, int count, Buffer *out) {
    static const char *const words[] = {
        [KEY_BOOL] = "",      [KEY_INT] = " N",     [KEY_FLOAT] = " X",           [KEY_TEXT] = " TEXT",
        [KEY_PATH] = " PATH", [KEY_LIST] = " TEXT", [KEY_PROPORTIONS] = " NAME=X"};
    for (int i = 0; i < count; i++) {
        const Key *key = &keys[i];
        buffer_printf(out, "  --%s", key->name);
        if (key->type == KEY_CHOICE) {
            for (int c = 0; key->choices[c] != NULL; c++) {
                buffer_printf(out, "%c%s", c == 0 ? ' ' : '|', key->choices[c]);
            }
        } else {
            buffer_text(out, words[key->type]);
        }
        buffer_printf(out, "\n        %s", key->help);
        if (key->unit != NULL) {
            buffer_printf(out, " In %s.", key->unit);
        }
        if (key->type == KEY_LIST || key->type == KEY_PROPORTIONS) {
            buffer_text(out, " May be repeated.");
        }
        if (key->default_value != NULL && key->type != KEY_BOOL) {
            buffer_printf(out, " Default: %s.", key->default_value);
        }
        buffer_byte(out, '\n');
    }
}
