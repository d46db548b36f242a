// The main function of a measurement: options, one function, one line for an error.
#pragma once

#include "core/error.h"
#include "core/memory.h"
#include "core/options.h"

#include <stdio.h>

// `settings` has the layout of `flags` and is zero; `run` gets it with what was no flag. Returns the exit code.
static inline int program_main(const char *name, const Key *flags, int flag_count, void *settings,
                               Error *(*run)(const void *settings, int rest_count, char **rest), int argc, char **argv) {
    char **rest = memory_new((size_t)argc, sizeof *rest);
    int rest_count = 0;
    keys_defaults(flags, flag_count, settings);
    Error *error = options_parse(flags, flag_count, settings, argc - 1, argv + 1, rest, &rest_count);
    if (error == NULL) {
        error = run(settings, rest_count, rest);
    }
    if (error != NULL) {
        fprintf(stderr, "%s: %s\n", name, error->message);
    }
    int code = error == NULL ? 0 : error->kind == ERROR_USAGE ? 2 : 1;
    error_free(error);
    keys_free(flags, flag_count, settings);
    free(rest);
    return code;
}
