// athanor checkpoint list: what checkpoints a run has, a line each.
#include "core/durable.h"
#include "core/text.h"
#include "launch/commands.h"
#include "train/checkpoint/checkpoint.h"
#include "train/checkpoint/steps.h"

#include <inttypes.h>
#include <stdio.h>

typedef struct Options {
    bool verify;
} Options;

static const Key flags[] = {
    {"verify", KEY_BOOL, offsetof(Options, verify), "false",
     .help = "Read all and compare it with the hashes; without it the record and the files' sizes are looked at."},
};

// A line: step, bytes, ranks and layout, date, whole or what is wrong.
static Error *list(const char *folder, int64_t step, uint64_t run, bool verify, bool *wrong) {
    char *path = steps_path(folder, step), size[32];
    Checkpoint *checkpoint = NULL;
    Error *error = checkpoint_open(path, verify, &checkpoint);
    error = error == NULL && verify ? checkpoint_check_contents(checkpoint) : error;
    if (error == NULL || checkpoint != NULL) {
        const CheckpointInfo *info = checkpoint_info(checkpoint);
        char *writer = memory_format("%d rank%s (%s)", info->ranks, info->ranks == 1 ? "" : "s", info->layout);
        printf("%10" PRId64 "  %10s  %-28s  %-20s  ", step, text_bytes(size, (double)info->bytes), writer, info->created);
        free(writer);
        if (error == NULL) {
            bool other = run != 0 && info->run != 0 && info->run != run;
            printf("%s\n", other ? "of another run" : verify ? "whole" : "whole by its record and sizes");
        }
    } else if (error->kind != ERROR_MISSING) {  // one that is removed just now is none
        printf("%10" PRId64 "  %10s  %-28s  %-20s  ", step, text_bytes(size, (double)steps_bytes(folder, step)), "?", "?");
    }
    if (error != NULL && error->kind != ERROR_MISSING) {
        printf("%s: %s\n", error->kind == ERROR_DAMAGED ? "DAMAGED" : "CANNOT BE READ NOW", error->message);
        *wrong = true;
    }
    error_free(error);
    checkpoint_close(checkpoint);
    free(path);
    return NULL;
}

static void list_unfinished(const char *folder) {
    Strings names = {0};
    error_free(folder_list(folder, &names));
    for (size_t i = 0; i < names.count; i++) {
        if (text_starts_with(names.items[i], "step-") && text_ends_with(names.items[i], PARTIAL_SUFFIX)) {
            printf("%s  unfinished: being written or removed, or left by what was interrupted\n", names.items[i]);
        }
    }
    strings_free(&names);
}

static Error *run(const void *given, int count, char **arguments) {
    const Options *options = given;
    char *folder = steps_folder(arguments[0]);
    int64_t *steps = NULL;
    int step_count = 0;
    uint64_t identity = 0;
    bool wrong = false;
    Error *error = checkpoint_run_of(arguments[0], &identity);
    error = error == NULL ? steps_list(folder, &steps, &step_count) : error;
    if (error == NULL && step_count == 0) {
        error = error_new(ERROR_MISSING, "%s holds no checkpoint: give the folder of a run", arguments[0]);
    } else if (error == NULL) {
        printf("%10s  %10s  %-28s  %-20s  %s\n", "step", "bytes", "written by", "on", "is");
        list_unfinished(folder);
    }
    for (int i = 0; i < step_count && error == NULL; i++) {
        error = list(folder, steps[i], identity, options->verify, &wrong);
    }
    free(steps);
    free(folder);
    return error == NULL && wrong ? damaged("%s: not all of its checkpoints are whole", arguments[0]) : error;
}

const Command command_checkpoint_list = {
    .name = "checkpoint list",
    .arguments = "RUN",
    .summary = "list a run's checkpoints: step, bytes, who wrote them and when, whether they are whole",
    .details = "Exit code 0: all are whole, 1: one is not, or there is none.",
    .example = "  athanor checkpoint list runs/tiny\n  athanor checkpoint list runs/tiny --verify",
    .flags = flags,
    .flag_count = sizeof flags / sizeof *flags,
    .options_size = sizeof(Options),
    .least_arguments = 1,
    .most_arguments = 1,
    .run = run,
};
