// The folder RUN/checkpoints: see steps.h.
#include "train/checkpoint/steps.h"

#include "core/clock.h"
#include "core/durable.h"
#include "core/log.h"
#include "core/text.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

void (*checkpoint_stage)(const char *name);
int checkpoint_pause_us = 1000000;

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
    Strings names = {0};
    Error *error = folder_list(folder, &names);
    if (error != NULL && error->kind == ERROR_MISSING) {
        error_free(error);
        return NULL;
    }
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

// Writes who holds the lock into it, for those who are refused; it is held without that too.
static void name_holder(int descriptor) {
    char host[HOST_NAME_MAX + 1] = "?", stamp[24], line[160];
    gethostname(host, sizeof host - 1);
    int size =
        snprintf(line, sizeof line, "host %.100s, process %lld, since %s\n", host, (long long)getpid(), clock_stamp(stamp));
    if (ftruncate(descriptor, 0) != 0 || pwrite(descriptor, line, (size_t)size, 0) != size) {
        errno = 0;
    }
}

Error *steps_lock(const char *folder, int *descriptor) {
    char *path = path_join(folder, "lock");
    Error *error = NULL;
    *descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (*descriptor < 0) {
        error = error_system(errno, "%s cannot be created", path);
    } else if (flock(*descriptor, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
        char holder[160] = "";
        ssize_t size = pread(*descriptor, holder, sizeof holder - 1, 0);
        holder[size > 0 ? strcspn(holder, "\n") : 0] = 0;
        error = failure("another run writes to %s%s%s%s: wait for it to end, or give this run a folder of its own", folder,
                        *holder != 0 ? " (" : "", holder, *holder != 0 ? ")" : "");
        close(*descriptor);
        *descriptor = -1;
    } else {
        name_holder(*descriptor);
    }
    free(path);
    return error;
}

// NAME.1234.partial: what file_write of that process left.
static bool is_left_file(const char *name) {
    size_t size = strlen(name) - strlen(PARTIAL_SUFFIX), digits = 0;
    while (digits < size && name[size - digits - 1] >= '0' && name[size - digits - 1] <= '9') {
        digits++;
    }
    return digits > 0 && digits + 1 < size && name[size - digits - 1] == '.';
}

// Bytes of the plain files in a folder, or of one such file.
static int64_t bytes_below(const char *path) {
    struct stat info;
    Strings names = {0};
    int64_t bytes = 0;
    if (lstat(path, &info) != 0 || !S_ISDIR(info.st_mode)) {
        return lstat(path, &info) == 0 ? info.st_size : 0;
    }
    error_free(folder_list(path, &names));
    for (size_t i = 0; i < names.count; i++) {
        char *file = path_join(path, names.items[i]);
        bytes += lstat(file, &info) == 0 && S_ISREG(info.st_mode) ? info.st_size : 0;
        free(file);
    }
    strings_free(&names);
    return bytes;
}

int64_t steps_bytes(const char *folder, int64_t step) {
    char *path = steps_path(folder, step);
    int64_t bytes = bytes_below(path);
    free(path);
    return bytes;
}

static Error *clean_folder(const char *folder, bool files_alone) {
    Strings names = {0};
    Error *error = folder_list(folder, &names);
    for (size_t i = 0; i < names.count && error == NULL; i++) {
        char *path = path_join(folder, names.items[i]);
        if (text_ends_with(names.items[i], PARTIAL_SUFFIX) &&
            (!files_alone || (is_left_file(names.items[i]) && !path_is_folder(path)))) {
            char size[32];
            text_bytes(size, (double)bytes_below(path));
            error = folder_remove(path);
            if (error == NULL && !text_ends_with(path, ".layout" PARTIAL_SUFFIX)) {  // they may be of ranks that begin just now
                log_info("removed %s (%s), which an interrupted save left", path, size);
            }
        }
        free(path);
    }
    strings_free(&names);
    return error;
}

Error *steps_clean(const char *folder, const char *run_folder) {
    TRY(clean_folder(folder, false));
    return clean_folder(run_folder, true);
}

bool steps_try_again(const char *folder, Error **error, int *tries) {
    enum { MOST_TRIES = 20, FIRST_SLEEP_US = 50000, LONGEST_SLEEP_US = 5000000 };
    bool missing = *error != NULL && (*error)->kind == ERROR_MISSING && path_is_folder(folder);  // else all of it is gone
    if (*error == NULL || (!(*error)->passes && !missing) || *tries == MOST_TRIES) {
        return false;
    }
    error_free(*error);
    *error = NULL;
    int64_t sleep = (int64_t)FIRST_SLEEP_US << (*tries)++;
    usleep((useconds_t)(sleep < LONGEST_SLEEP_US ? sleep : LONGEST_SLEEP_US));
    Strings names = {0};
    error_free(folder_list(folder, &names));
    strings_free(&names);
    return true;
}

Error *steps_probe(const char *folder) {
    static const char zeros[4096];
    char *path = path_join(folder, "probe" PARTIAL_SUFFIX);
    Error *error = file_write(path, zeros, sizeof zeros);
    Error *removed = folder_remove(path);
    error_keep(&error, removed);
    free(path);
    return error_wrap(error, "no checkpoint could be saved in %s", folder);
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

Error *steps_remove(const char *folder, int64_t step) {
    char *path = steps_path(folder, step);
    Error *error = remove_committed(path);
    free(path);
    return error;
}
