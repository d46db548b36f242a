// Folders that appear whole: see staging.h.
#include "core/staging.h"

#include "core/durable.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

static void release(Staging *staging) {
    if (staging->lock >= 0) {
        close(staging->lock);
    }
    free(staging->path);
    free(staging->partial);
    free(staging->whole);
    *staging = (Staging){.lock = -1};
}

// "corpus/" names the folder "corpus".
static char *without_slashes(const char *path) {
    size_t size = strlen(path);
    while (size > 1 && path[size - 1] == '/') {
        size--;
    }
    return memory_format("%.*s", (int)size, path);
}

static Error *refuse_existing(const char *path) {
    if (!path_exists(path)) {
        return NULL;
    }
    if (!path_is_folder(path)) {
        return failure("%s exists and is a file; choose another name", path);
    }
    Strings names = {0};
    Error *error = folder_list(path, &names);
    if (error == NULL && names.count > 0) {
        error = failure("%s exists already; choose another name", path);
    }
    strings_free(&names);
    return error;
}

static Error *take_lock(Staging *staging) {
    char *path = path_join(staging->partial, "lock");
    Error *error = NULL;
    staging->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (staging->lock < 0) {
        error = error_system(errno, "%s cannot be created", path);
    } else if (flock(staging->lock, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
        // Any other failure means that this file system has no locks; then there is nothing to wait for.
        error = failure("another process is writing %s; wait for it", staging->path);
    }
    free(path);
    return error;
}

// Removes what is in PATH.partial, the lock excepted.
static Error *clear(const Staging *staging) {
    Strings names = {0};
    Error *error = folder_list(staging->partial, &names);
    for (size_t i = 0; i < names.count && error == NULL; i++) {
        if (strcmp(names.items[i], "lock") != 0) {
            char *child = path_join(staging->partial, names.items[i]);
            error = folder_remove(child);
            free(child);
        }
    }
    strings_free(&names);
    return error;
}

Error *staging_begin(const char *path, bool keep, Staging *out) {
    out->path = without_slashes(path);
    out->partial = memory_format("%s%s", out->path, PARTIAL_SUFFIX);
    out->whole = path_join(out->partial, "whole");
    out->lock = -1;
    Error *error = *out->path == 0 ? failure("the output has no name") : refuse_existing(out->path);
    if (error == NULL) {
        error = folder_create(out->partial);
    }
    if (error == NULL) {
        error = take_lock(out);
    }
    if (error == NULL) {
        error = keep ? folder_remove(out->whole) : clear(out);
    }
    if (error == NULL) {
        error = folder_create(out->whole);
    }
    if (error != NULL) {
        release(out);
    }
    return error;
}

Error *staging_commit(Staging *staging) {
    Error *error = file_sync(staging->whole);
    if (error == NULL) {
        error = file_commit(staging->whole, staging->path);
    }
    if (error == NULL) {
        error = folder_remove(staging->partial);
    }
    release(staging);
    return error;
}

void staging_abandon(Staging *staging, bool keep) {
    if (!keep) {
        error_free(folder_remove(staging->partial));
    }
    release(staging);
}

Error *staging_clear(const char *path) {
    char *plain = without_slashes(path), *partial = memory_format("%s%s", plain, PARTIAL_SUFFIX);
    Error *error = folder_remove(partial);
    free(plain);
    free(partial);
    return error;
}
