// Fuzz target: a configuration from hostile bytes. What is accepted lies in its ranges, is printed, and reads back the same.
#include "core/config.h"
#include "tests/support/settings.h"

static Error *read_text(Settings *settings, const char *text, size_t size) {
    bool seen[SETTINGS] = {false};
    *settings = (Settings){0};
    keys_defaults(settings_keys, SETTINGS, settings);
    return config_read_text(settings_keys, SETTINGS, settings, "/nowhere/fuzz.yaml", text, size, seen);
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    Settings first, second;
    Error *error = read_text(&first, (const char *)data, size);
    if (error != NULL) {
        ensure(error->message[0] != 0, "an error without words");
        error_free(error);
        keys_free(settings_keys, SETTINGS, &first);
        return 0;
    }
    ensure(first.count >= 1 && first.count <= 100 && first.rate >= 0 && first.rate <= 1, "a value outside of its range");
    ensure(first.kind == 0 || first.kind == 1, "a choice that there is not");
    Buffer once = {0}, twice = {0};
    config_write(settings_keys, SETTINGS, &first, data[0] % 2 == 0, &once);
    error = read_text(&second, once.data, once.size);
    ensure(error == NULL, "%s\n%s", error->message, once.data);
    config_write(settings_keys, SETTINGS, &second, data[0] % 2 == 0, &twice);
    ensure(strcmp(once.data, twice.data) == 0, "%s\nis not\n%s", twice.data, once.data);
    buffer_free(&once);
    buffer_free(&twice);
    keys_free(settings_keys, SETTINGS, &first);
    keys_free(settings_keys, SETTINGS, &second);
    return 0;
}
