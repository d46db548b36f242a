// athanor checkpoint reshard: a checkpoint written anew into another number of files.
#include "core/log.h"
#include "launch/commands.h"
#include "train/checkpoint/reshard.h"

#include <stdio.h>

typedef struct Options {
    int64_t files;
} Options;

static const Key flags[] = {
    {"files", KEY_INT, offsetof(Options, files), "1", 1, 65536, .help = "How many files get an even share of every tensor."},
};

static Error *run(const void *given, int count, char **arguments) {
    const Options *options = given;
    char *from = NULL, *to = memory_string(arguments[1]);
    for (size_t n = strlen(to); n > 1 && to[n - 1] == '/'; n--) {
        to[n - 1] = 0;
    }
    Strings skipped = {0};
    Error *error = checkpoint_find(arguments[0], INT64_MAX, 0, &from, &skipped);
    for (size_t i = 0; i < skipped.count; i++) {
        log_warning("%s", skipped.items[i]);
    }
    error = error == NULL ? checkpoint_reshard(from, to, (int)options->files) : error;
    if (error == NULL) {
        printf("%s: %lld file%s, read back and compared with %s\n", to, (long long)options->files,
               options->files == 1 ? "" : "s", from);
    }
    strings_free(&skipped);
    free(from);
    free(to);
    return error;
}

const Command command_checkpoint_reshard = {
    .name = "checkpoint reshard",
    .arguments = "RUN-OR-CHECKPOINT TO",
    .summary = "write a checkpoint anew into another number of files",
    .details =
        "Of a run it is the newest whole one. TO is the folder to make, whose name is the checkpoint's own (step-00001000). No "
        "layout\n"
        "needs this, any reads any checkpoint: it is for few files where there were many, or many where one is too large.",
    .example = "  athanor checkpoint reshard runs/tiny /archive/tiny/checkpoints/step-00001000 --files 1",
    .flags = flags,
    .flag_count = sizeof flags / sizeof *flags,
    .options_size = sizeof(Options),
    .least_arguments = 2,
    .most_arguments = 2,
    .run = run,
};
