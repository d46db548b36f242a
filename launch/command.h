// A subcommand of athanor: one constant a file, listed in main.c.
#pragma once

#include "core/keys.h"

typedef struct Command {
    const char *name;       // "data pack"
    const char *arguments;  // what stands after the flags: "CONFIG.yaml [key.path=value ...]"; "" for none
    const char *summary;    // one line
    const char *details;    // more lines for --help, or NULL
    const char *example;    // at least one full command line, each line indented by two blanks
    const Key *flags;
    int flag_count;
    size_t options_size;                  // of the struct the flags describe
    int least_arguments, most_arguments;  // most -1: any number
    // Does the work. `options` holds the parsed flags. Errors are printed and decide the exit code in main.
    Error *(*run)(const void *options, int argument_count, char **arguments);
} Command;
