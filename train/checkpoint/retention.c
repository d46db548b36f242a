// Which committed checkpoints of a run stay: see retention.h.
#include "train/checkpoint/retention.h"

#include "core/durable.h"
#include "core/text.h"
#include "train/checkpoint/steps.h"

typedef enum Standing { STANDS_GOOD, STANDS_UNLEARNED, STANDS_DAMAGED, STANDS_APART } Standing;

static Standing standing_of(const Retention *rule, const Checkpoint *checkpoint) {
    const CheckpointInfo *info = checkpoint_info(checkpoint);
    if (info->run != 0 && info->run != rule->run) {
        return STANDS_APART;
    }
    return rule->learned == NULL || rule->learned(info->state) ? STANDS_GOOD : STANDS_UNLEARNED;
}

// How a step stands. Checksums are looked at only where that decides: of what would count as good, and of the first that is
// whole at all.
static Standing stands(const Retention *rule, const char *folder, int64_t step, bool decides, bool first) {
    char *path = steps_path(folder, step);
    Checkpoint *checkpoint = NULL;
    Error *error = checkpoint_open(path, false, &checkpoint);
    Standing standing = error == NULL ? standing_of(rule, checkpoint) : STANDS_DAMAGED;
    if (decides && (standing == STANDS_GOOD || (standing == STANDS_UNLEARNED && first))) {
        error = checkpoint_whole(checkpoint);
        standing = error == NULL ? standing : STANDS_DAMAGED;
    }
    if (error != NULL && error->kind != ERROR_DAMAGED) {
        standing = STANDS_APART;
    }
    checkpoint_close(checkpoint);
    error_free(error);
    free(path);
    return standing;
}

Error *retention_sweep(const char *folder) {
    Strings names = {0};
    Error *error = folder_list(folder, &names);
    for (size_t i = 0; i < names.count && error == NULL; i++) {
        if (text_ends_with(names.items[i], ".old" PARTIAL_SUFFIX)) {
            char *path = path_join(folder, names.items[i]);
            error = folder_remove(path);
            free(path);
        }
    }
    strings_free(&names);
    return error;
}

Error *retention_choose(const char *folder, const Retention *rule, int64_t newest, RetentionChoice **out, int *count) {
    int64_t *steps;
    int good = 0, whole = 0;
    *out = NULL;
    TRY(steps_list(folder, &steps, count));
    *out = memory_zeroed((size_t)*count, sizeof **out);
    for (int i = *count - 1; i >= 0; i--) {
        RetentionChoice *choice = &(*out)[i];
        *choice = (RetentionChoice){.step = steps[i], .why = "of another course"};
        if (newest >= 0 && steps[i] > newest) {
            continue;
        }
        bool enough = good >= rule->keep_last;
        bool multiple = rule->keep_every > 0 && steps[i] % rule->keep_every == 0, spared = steps[i] == newest || multiple;
        choice->why = multiple ? "a multiple of keep_every" : "the newest";
        if (enough && spared) {
            continue;
        }
        // What was just committed was read back when it was written.
        Standing standing = stands(rule, folder, steps[i], !enough && steps[i] != newest, whole == 0);
        bool is_whole = standing == STANDS_GOOD || standing == STANDS_UNLEARNED;
        choice->goes = !spared && (enough ? standing != STANDS_APART : standing == STANDS_UNLEARNED && whole > 0);
        choice->why = standing == STANDS_APART       ? "of another run, or cannot be read now"
                      : standing == STANDS_DAMAGED   ? enough ? "damaged" : "damaged: it may be mended"
                      : standing == STANDS_UNLEARNED ? choice->goes ? "its steps learned nothing" : "the newest whole one"
                      : choice->goes                 ? "enough newer ones are whole"
                                                     : "among the newest whole ones";
        good += standing == STANDS_GOOD;
        whole += is_whole;
    }
    free(steps);
    return NULL;
}

Error *retention_remove(const char *folder, const RetentionChoice *choices, int count) {
    Error *error = NULL;
    for (int i = count - 1; i >= 0; i--) {
        Error *removed = choices[i].goes ? steps_remove(folder, choices[i].step) : NULL;
        error_keep(&error, removed);
    }
    return error;
}

Error *retention_apply(const char *folder, const Retention *rule, int64_t newest) {
    RetentionChoice *choices;
    int count = 0;
    Error *error = retention_sweep(folder), *chosen = retention_choose(folder, rule, newest, &choices, &count);
    if (chosen == NULL) {
        chosen = retention_remove(folder, choices, count);
    }
    error_keep(&error, chosen);
    free(choices);
    return error;
}
