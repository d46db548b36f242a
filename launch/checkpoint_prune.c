// athanor checkpoint prune: removes old checkpoints of a run, by the rule that a run itself goes by.
#include "core/durable.h"
#include "core/text.h"
#include "launch/commands.h"
#include "train/checkpoint/retention.h"
#include "train/checkpoint/steps.h"
#include "train/run_config.h"
#include "train/saved_run.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

typedef struct Options {
    int64_t keep, keep_every;
    bool remove;
} Options;

#define AT(member) offsetof(Options, member)
static const Key flags[] = {
    {"keep", KEY_INT, AT(keep), "0", 0, 1e6,
     .help = "How many of the newest whole ones stay; 0: checkpoint.keep_last of the run."},
    {"keep-every", KEY_INT, AT(keep_every), "-1", -1, 9e15, .unit = "steps",
     .help = "Those whose step is a multiple of it stay; 0: none; -1: checkpoint.keep_every of the run."},
    {"remove", KEY_BOOL, AT(remove), "false", .help = "Remove them; without it they are only named."},
};

// What the run's configuration says, where the command line does not.
static Error *make_rule(const char *path, const Options *options, Retention *rule) {
    *rule = (Retention){.keep_last = (int)options->keep, .keep_every = options->keep_every, .learned = saved_run_learned};
    if (options->keep == 0 || options->keep_every < 0) {
        RunConfig config = {0};
        char *file = path_join(path, "config.yaml");
        Error *error = run_config_read(&config, file, NULL, 0);
        free(file);
        rule->keep_last = options->keep == 0 ? (int)config.checkpoint.keep_last : rule->keep_last;
        rule->keep_every = options->keep_every < 0 ? config.checkpoint.keep_every : rule->keep_every;
        run_config_free(&config);
        TRY(error_wrap(error, "the run does not say what to keep (give --keep and --keep-every)"));
    }
    return checkpoint_run_of(path, &rule->run);
}

static void print_choices(const char *folder, const RetentionChoice *choices, int count, bool remove) {
    double freed = 0;
    int goes = 0;
    char size[32];
    for (int i = 0; i < count; i++) {
        double bytes = (double)steps_bytes(folder, choices[i].step);
        printf("%10" PRId64 "  %10s  %s: %s\n", choices[i].step, text_bytes(size, bytes), choices[i].goes ? "goes " : "stays",
               choices[i].why);
        freed += choices[i].goes ? bytes : 0;
        goes += choices[i].goes;
    }
    printf("%d of %d, %s%s\n", goes, count, text_bytes(size, freed),
           remove     ? ", are removed"
           : goes > 0 ? ", would be removed: give --remove"
                      : "");
    fflush(stdout);
}

static Error *prune(const char *path, const char *folder, const Options *options) {
    Retention rule;
    RetentionChoice *choices = NULL;
    int count = 0, lock = -1;
    TRY(make_rule(path, options, &rule));
    if (!path_is_folder(folder)) {
        return error_new(ERROR_MISSING, "%s holds no checkpoint: give the folder of a run", path);
    }
    if (options->remove) {
        TRY(error_wrap(steps_lock(folder, &lock), "nothing was removed"));
    }
    Error *error = retention_choose(folder, &rule, -1, &choices, &count);
    if (error == NULL) {
        print_choices(folder, choices, count, options->remove);
    }
    if (error == NULL && options->remove) {
        Error *removed = retention_remove(folder, choices, count);
        error = retention_sweep(folder);
        error_keep(&error, removed);
    }
    free(choices);
    if (lock >= 0) {
        close(lock);
    }
    return error;
}

static Error *run(const void *given, int count, char **arguments) {
    char *folder = steps_folder(arguments[0]);
    Error *error = prune(arguments[0], folder, given);
    free(folder);
    return error;
}

const Command command_checkpoint_prune = {
    .name = "checkpoint prune",
    .arguments = "RUN",
    .summary = "remove a run's old checkpoints, never the newest whole one",
    .details = "An older one goes only when enough newer ones were read and found whole. Names what would go; --remove does "
               "it, unless\n"
               "a run writes there.",
    .example = "  athanor checkpoint prune runs/tiny --keep 1\n  athanor checkpoint prune runs/tiny --keep 2 --keep-every "
               "10000 --remove",
    .flags = flags,
    .flag_count = sizeof flags / sizeof *flags,
    .options_size = sizeof(Options),
    .least_arguments = 1,
    .most_arguments = 1,
    .run = run,
};
