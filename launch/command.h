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
    const Key *(*settings)(int *count);   // what its arguments key=value set; NULL: it has none
    // Does the work. `options` holds the parsed flags. Errors are printed and decide the exit code in main.
    Error *(*run)(const void *options, int argument_count, char **arguments);
} Command;

// The run that generate and eval read: their first argument, or --checkpoint.
static inline Error *command_run(const char *checkpoint, int count, char **arguments, const char **path) {
    *path = count > 0 ? arguments[0] : checkpoint;
    return *path == NULL                     ? usage_error("RUN is missing: a run folder, or one of its checkpoints")
           : count > 0 && checkpoint != NULL ? usage_error("give RUN or --checkpoint, not both")
                                             : NULL;
}
