// athanor checkpoint verify: every byte of checkpoints against their hashes.
#include "core/durable.h"
#include "launch/commands.h"
#include "train/checkpoint/checkpoint.h"
#include "train/checkpoint/steps.h"

#include <stdio.h>

// The checkpoints that a path names: itself, or all of a run.
static Error *name_all(const char *path, Strings *paths) {
    char *folder = steps_folder(path);
    int64_t *steps = NULL;
    int count = 0;
    Error *error = NULL;
    if (path_is_folder(folder)) {
        error = steps_list(folder, &steps, &count);
        for (int i = 0; i < count; i++) {
            char *step = steps_path(folder, steps[i]);
            strings_add(paths, step);
            free(step);
        }
        if (error == NULL && count == 0) {
            error = error_new(ERROR_MISSING, "%s holds no checkpoint", path);
        }
    } else {
        strings_add(paths, path);
    }
    free(steps);
    free(folder);
    return error;
}

static Error *verify(const char *path, bool *damage) {
    Strings wrong = {0};
    Error *error = checkpoint_verify(path, &wrong);
    if (error == NULL) {
        printf("%s  %s\n", path, wrong.count == 0 ? "whole" : "DAMAGED");
        for (size_t i = 0; i < wrong.count; i++) {
            printf("  %s\n", wrong.items[i]);
        }
        fflush(stdout);  // of terabytes each takes its time
        *damage = *damage || wrong.count > 0;
    }
    strings_free(&wrong);
    return error;
}

static Error *run(const void *options, int count, char **arguments) {
    Strings paths = {0};
    Error *error = NULL;
    bool damage = false;
    for (int i = 0; i < count && error == NULL; i++) {
        error = name_all(arguments[i], &paths);
    }
    for (size_t i = 0; i < paths.count && error == NULL; i++) {
        error = verify(paths.items[i], &damage);
    }
    strings_free(&paths);
    return error == NULL && damage ? damaged("not all checkpoints are whole; what is wrong stands above") : error;
}

const Command command_checkpoint_verify = {
    .name = "checkpoint verify",
    .arguments = "RUN-OR-CHECKPOINT ...",
    .summary = "read every byte of checkpoints and compare it with their hashes",
    .details = "Names each file that is not as it was written and the tensors in it that differ. Exit code 0: all are whole,\n"
               "1: one is not, or cannot be read now.",
    .example = "  athanor checkpoint verify runs/tiny\n  athanor checkpoint verify runs/tiny/checkpoints/step-00001000",
    .least_arguments = 1,
    .most_arguments = -1,
    .run = run,
};
