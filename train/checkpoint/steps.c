// The folder RUN/checkpoints: see steps.h.
#include "train/checkpoint/steps.h"

#include "core/durable.h"
#include "core/text.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/file.h>
#include <unistd.h>

void (*checkpoint_stage)(const char *name);

static const char prefix[] = "step-";

char *steps_folder(const char *run_folder) {
    return path_join(run_folder, "checkpoints");
}

char *steps_path(const char *folder, int64_t step) {
    return memory_format("%s/%s%08" PRId64, folder, prefix, step);
}

char *steps_partial(const char *folder, int64_t step) {
    return memory_format("%s/%s%08" PRId64 "%s", folder, prefix, step, PARTIAL_SUFFIX);
}

void steps_rank_file(char out[32], int rank, const char *extension) {
    snprintf(out, 32, "rank-%05d.%s", rank, extension);
}

int64_t steps_named(const char *name) {
    if (!text_starts_with(name, prefix)) {
        return -1;
    }
    const char *digits = name + strlen(prefix);
    size_t n = strlen(digits);
    if (n < 8 || n > 18 || strspn(digits, "0123456789") != n) {
        return -1;
    }
    return strtoll(digits, NULL, 10);
}

static int compare_steps(const void *left, const void *right) {
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return a < b ? -1 : a > b;
}

Error *steps_list(const char *folder, int64_t **steps, int *count) {
    *steps = NULL;
    *count = 0;
    if (!path_is_folder(folder)) {
        return NULL;
    }
    Strings names = {0};
    Error *error = folder_list(folder, &names);
    int capacity = 0;
    for (size_t i = 0; i < names.count && error == NULL; i++) {
        int64_t step = steps_named(names.items[i]);
        if (step >= 0) {
            array_push(*steps, *count, capacity, step);
        }
    }
    strings_free(&names);
    if (*count > 0) {
        qsort(*steps, (size_t)*count, sizeof **steps, compare_steps);
    }
    return error;
}

Error *steps_lock(const char *folder, int *descriptor) {
    char *path = path_join(folder, "lock");
    Error *error = NULL;
    *descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (*descriptor < 0) {
        error = error_system(errno, "%s cannot be created", path);
    } else if (flock(*descriptor, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
        error = failure("another run writes to %s: wait for it to end, or give this run a folder of its own", folder);
        close(*descriptor);
        *descriptor = -1;
    }
    free(path);
    return error;
}

Error *steps_clean(const char *folder) {
    Strings names = {0};
    Error *error = folder_list(folder, &names);
    for (size_t i = 0; i < names.count && error == NULL; i++) {
        if (text_ends_with(names.items[i], PARTIAL_SUFFIX)) {
            char *path = path_join(folder, names.items[i]);
            error = folder_remove(path);
            free(path);
        }
    }
    strings_free(&names);
    return error;
}

// Moves a committed folder out of sight and removes it. `aside` must not exist.
static Error *remove_committed(const char *path) {
    char *aside = memory_format("%s.old%s", path, PARTIAL_SUFFIX);
    Error *error = folder_remove(aside);
    if (error == NULL && rename(path, aside) != 0) {
        error = error_system(errno, "%s cannot be removed", path);
    }
    checkpoint_reached("old one moved aside");
    if (error == NULL) {
        error = folder_remove(aside);
    }
    free(aside);
    return error;
}

Error *steps_publish(const char *folder, int64_t step) {
    char *partial = steps_partial(folder, step), *final = steps_path(folder, step);
    Error *error = NULL;
    if (path_exists(final)) {
        // A run that went back to an older checkpoint meets its own future. Neither of the two may be lost before the other is
        // there.
        if (renameat2(AT_FDCWD, partial, AT_FDCWD, final, RENAME_EXCHANGE) == 0) {
            checkpoint_reached("exchanged");
            error = file_sync(folder);
            if (error == NULL) {
                error = folder_remove(partial);
            }
        } else {
            error = remove_committed(final);
            error = error == NULL ? file_commit(partial, final) : error;
        }
    } else {
        error = file_commit(partial, final);
    }
    free(partial);
    free(final);
    return error;
}

Error *steps_retain(const char *folder, int64_t newest, int keep_last, int64_t keep_every) {
    int64_t *steps;
    int count;
    TRY(steps_list(folder, &steps, &count));
    Error *error = NULL;
    int kept = 0;
    // From the newest down; what lies after `newest` belongs to another course of this run and is left alone.
    for (int i = count - 1; i >= 0 && error == NULL; i--) {
        if (steps[i] > newest) {
            continue;
        }
        bool keep = kept < keep_last || steps[i] == newest || (keep_every > 0 && steps[i] % keep_every == 0);
        kept++;
        if (!keep) {
            char *path = steps_path(folder, steps[i]);
            error = remove_committed(path);
            free(path);
        }
    }
    free(steps);
    return error;
}
