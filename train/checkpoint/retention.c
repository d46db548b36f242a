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

// How a step stands. Checksums are looked at only where that decides.
static Standing stands(const Retention *rule, const char *folder, int64_t step, bool decides) {
    char *path = steps_path(folder, step);
    Checkpoint *checkpoint = NULL;
    Error *error = checkpoint_open(path, false, &checkpoint);
    Standing standing = error == NULL ? standing_of(rule, checkpoint) : STANDS_DAMAGED;
    if (standing == STANDS_GOOD && decides) {
        error = checkpoint_whole(checkpoint);
        standing = error == NULL ? STANDS_GOOD : STANDS_DAMAGED;
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

Error *retention_apply(const char *folder, const Retention *rule, int64_t newest) {
    int64_t *steps;
    int count, good = 0;
    Error *error = retention_sweep(folder), *listed = steps_list(folder, &steps, &count);
    error_keep(&error, listed);
    for (int i = count - 1; i >= 0; i--) {
        if (steps[i] > newest) {
            continue;
        }
        bool enough = good >= rule->keep_last;
        bool spared = steps[i] == newest || (rule->keep_every > 0 && steps[i] % rule->keep_every == 0);
        if (enough && spared) {
            continue;
        }
        // What was just committed was read back by those who wrote it.
        Standing standing = stands(rule, folder, steps[i], !enough && steps[i] != newest);
        good += standing == STANDS_GOOD;
        bool goes = enough ? standing != STANDS_APART : standing == STANDS_UNLEARNED;
        if (goes && !spared) {
            Error *removed = steps_remove(folder, steps[i]);
            error_keep(&error, removed);
        }
    }
    free(steps);
    return error;
}
