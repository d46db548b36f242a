// Fuzz target: a configuration from hostile bytes. What is accepted lies in its ranges, is printed, and reads back the same.
#include "core/config.h"

typedef struct Settings {
    bool flag;
    int64_t count;
    double rate;
    char *name;
    int kind;
    Strings list;
    Weights mixture;
} Settings;
static const char *const kinds[] = {"adamw", "lion", NULL};
static const Key keys[] = {
    {"count", KEY_INT, offsetof(Settings, count), "3", 1, 100, NULL, "steps", "How many."},
    {"model.flag", KEY_BOOL, offsetof(Settings, flag), "true", .help = "Whether."},
    {"model.name", KEY_TEXT, offsetof(Settings, name), NULL, .help = "A name."},
    {"model.deep.rate", KEY_FLOAT, offsetof(Settings, rate), "0.1", 0, 1, .help = "A rate."},
    {"model.deep.kind", KEY_CHOICE, offsetof(Settings, kind), "adamw", .choices = kinds, .help = "A kind."},
    {"data.list", KEY_LIST, offsetof(Settings, list), NULL, .help = "A list."},
    {"data.mixture", KEY_WEIGHTS, offsetof(Settings, mixture), NULL, .help = "Weights."},
};
enum { KEYS = sizeof keys / sizeof *keys };

static Error *read_text(Settings *settings, const char *text, size_t size) {
    bool seen[KEYS] = {false};
    *settings = (Settings){0};
    keys_defaults(keys, KEYS, settings);
    return config_read_text(keys, KEYS, settings, "/nowhere/fuzz.yaml", text, size, seen);
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    Settings first, second;
    Error *error = read_text(&first, (const char *)data, size);
    if (error != NULL) {
        ensure(error->message[0] != 0, "an error without words");
        error_free(error);
        keys_free(keys, KEYS, &first);
        return 0;
    }
    ensure(first.count >= 1 && first.count <= 100 && first.rate >= 0 && first.rate <= 1, "a value outside of its range");
    ensure(first.kind == 0 || first.kind == 1, "a choice that there is not");
    Buffer once = {0}, twice = {0};
    config_write(keys, KEYS, &first, data[0] % 2 == 0, &once);
    error = read_text(&second, once.data, once.size);
    ensure(error == NULL, "%s\n%s", error->message, once.data);
    config_write(keys, KEYS, &second, data[0] % 2 == 0, &twice);
    ensure(strcmp(once.data, twice.data) == 0, "%s\nis not\n%s", twice.data, once.data);
    buffer_free(&once);
    buffer_free(&twice);
    keys_free(keys, KEYS, &first);
    keys_free(keys, KEYS, &second);
    return 0;
}
