// A large file past the page cache: see stream_file.h.
#include "train/checkpoint/stream_file.h"

#include "core/durable.h"
#include "core/hash.h"
#include "train/checkpoint/steps.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PIECE = STREAM_FILE_BYTES, ALIGNMENT = 4096 };  // the largest block of any disk that takes direct writes

struct StreamFile {
    char *path;
    int descriptor;
    bool direct;  // O_DIRECT is on
    void *memory;
    char *buffer;    // PIECE bytes of it, aligned
    size_t waiting;  // bytes in it
    int64_t written, bytes;
    Hasher *hasher;
};

// PIECE aligned bytes within `memory`, which is the caller's to free.
static Error *make_buffer(void **memory, char **buffer) {
    TRY(memory_try(PIECE + ALIGNMENT, 1, "saving a checkpoint", memory));
    *buffer = (char *)*memory + (ALIGNMENT - (uintptr_t)*memory % ALIGNMENT) % ALIGNMENT;
    return NULL;
}

// Opens past the cache where that can be; *direct tells.
static int open_direct(const char *path, int flags, bool *direct) {
    int descriptor = open(path, flags | O_DIRECT | O_CLOEXEC, 0666);
    *direct = descriptor >= 0;
    return descriptor >= 0 || errno != EINVAL ? descriptor : open(path, flags | O_CLOEXEC, 0666);
}

// From now on through the cache.
static bool leave_direct(int descriptor, bool *direct) {
    int flags = fcntl(descriptor, F_GETFL);
    *direct = false;
    return flags >= 0 && fcntl(descriptor, F_SETFL, flags & ~O_DIRECT) == 0;
}

Error *stream_file_create(const char *path, int64_t bytes, StreamFile **out) {
    *out = NULL;
    bool direct;
    void *memory = NULL;
    char *buffer;
    TRY(make_buffer(&memory, &buffer));
    int descriptor = open_direct(path, O_WRONLY | O_CREAT | O_TRUNC, &direct);
    Error *error = descriptor < 0 ? error_system(errno, "%s cannot be created", path) : NULL;
    if (error == NULL && bytes > 0 && fallocate(descriptor, 0, 0, bytes) != 0 && errno != EOPNOTSUPP && errno != ENOSYS) {
        error = error_system(errno, "%s cannot be written", path);
        close(descriptor);
    }
    checkpoint_reached("space taken");
    if (error != NULL) {
        free(memory);
        return error;
    }
    *out = memory_new(1, sizeof **out);
    **out = (StreamFile){.path = memory_string(path),
                         .descriptor = descriptor,
                         .direct = direct,
                         .memory = memory,
                         .buffer = buffer,
                         .bytes = bytes,
                         .hasher = hasher_create()};
    return NULL;
}

// Writes `size` bytes of the buffer. What a short direct write left is no longer aligned, and a file system that took O_DIRECT
// may refuse it at the first write: both go on through the cache.
static Error *write_buffer(StreamFile *f, size_t size) {
    for (size_t done = 0; done < size;) {
        ssize_t written = write(f->descriptor, f->buffer + done, size - done);
        if (written > 0) {
            done += (size_t)written;
            f->written += written;
        } else if (written == 0) {
            return error_system(EIO, "%s cannot be written", f->path);
        } else if (errno == EINVAL && f->direct) {
            if (!leave_direct(f->descriptor, &f->direct)) {
                return error_system(errno, "%s cannot be written", f->path);
            }
            continue;
        } else if (errno != EINTR) {
            return error_system(errno, "%s cannot be written", f->path);
        }
        if (f->direct && done % ALIGNMENT != 0 && !leave_direct(f->descriptor, &f->direct)) {
            return error_system(errno, "%s cannot be written", f->path);
        }
    }
    if (!f->direct && size > 0) {
        sync_file_range(f->descriptor, f->written - (int64_t)size, (int64_t)size, SYNC_FILE_RANGE_WRITE);  // begins, waits not
    }
    f->waiting = 0;
    return NULL;
}

Error *stream_file_add(StreamFile *f, const void *bytes, size_t size) {
    const char *from = bytes;
    ensure(f->written + (int64_t)(f->waiting + size) <= f->bytes, "%s gets more than %" PRId64 " bytes", f->path, f->bytes);
    while (size > 0) {
        size_t part = PIECE - f->waiting < size ? PIECE - f->waiting : size;
        memcpy(f->buffer + f->waiting, from, part);
        hasher_add(f->hasher, f->buffer + f->waiting, part);  // what was just copied is in the core's cache
        f->waiting += part;
        from += part;
        size -= part;
        if (f->waiting == PIECE) {
            TRY(write_buffer(f, PIECE));
        }
    }
    return NULL;
}

Error *stream_file_finish(StreamFile *f, uint64_t *hash) {
    ensure(f->written + (int64_t)f->waiting == f->bytes, "%s is not complete", f->path);
    size_t whole = f->direct ? f->waiting / ALIGNMENT * ALIGNMENT : f->waiting, rest = f->waiting - whole;
    TRY(write_buffer(f, whole));
    if (rest > 0) {
        memmove(f->buffer, f->buffer + whole, rest);
        if (f->direct && !leave_direct(f->descriptor, &f->direct)) {
            return error_system(errno, "%s cannot be written", f->path);
        }
        TRY(write_buffer(f, rest));
    }
    if (fsync(f->descriptor) != 0) {
        return error_system(errno, "%s cannot be made durable", f->path);
    }
    posix_fadvise(f->descriptor, 0, 0, POSIX_FADV_DONTNEED);
    int descriptor = f->descriptor;
    f->descriptor = -1;
    if (close(descriptor) != 0) {
        return error_system(errno, "%s cannot be closed", f->path);
    }
    *hash = hasher_result(f->hasher);
    return NULL;
}

void stream_file_destroy(StreamFile *f) {
    if (f != NULL) {
        if (f->descriptor >= 0) {
            close(f->descriptor);
        }
        hasher_destroy(f->hasher);
        free(f->memory);
        free(f->path);
        free(f);
    }
}

// ---- reading back ----

static Error *hash_descriptor(const char *path, int descriptor, bool direct, char *buffer, Hasher *hasher, int64_t *bytes) {
    for (;;) {
        ssize_t got = read(descriptor, buffer, PIECE);
        if (got > 0) {
            hasher_add(hasher, buffer, (size_t)got);
            *bytes += got;
        } else if (got == 0) {
            return NULL;
        } else if (errno == EINVAL && direct) {
            if (!leave_direct(descriptor, &direct)) {
                return error_system(errno, "%s cannot be read", path);
            }
            continue;
        } else if (errno != EINTR) {
            return error_system(errno, "%s cannot be read", path);
        }
        if (direct && *bytes % ALIGNMENT != 0 && !leave_direct(descriptor, &direct)) {  // the end of the file, or a short read
            return error_system(errno, "%s cannot be read", path);
        }
    }
}

static Error *hash_once(const char *path, int64_t *bytes, uint64_t *hash) {
    bool direct;
    struct stat info;
    void *memory = NULL;
    char *buffer;
    *bytes = 0;
    TRY(make_buffer(&memory, &buffer));
    int descriptor = open_direct(path, O_RDONLY | O_NOCTTY | O_NONBLOCK, &direct);
    if (descriptor < 0) {
        free(memory);
        return error_system(errno, "%s cannot be opened", path);
    }
    Error *error = NULL;
    if (fstat(descriptor, &info) != 0 || !S_ISREG(info.st_mode)) {
        error = damaged("%s is not a plain file", path);
    }
    Hasher *hasher = hasher_create();
    error = error == NULL ? hash_descriptor(path, descriptor, direct, buffer, hasher, bytes) : error;
    *hash = hasher_result(hasher);
    hasher_destroy(hasher);
    free(memory);
    close(descriptor);
    return error;
}

Error *stream_file_hash(const char *path, int64_t expected, int64_t *bytes, uint64_t *hash) {
    char *folder = path_folder(path);
    int tries = 0;
    Error *error;
    do {
        error = hash_once(path, bytes, hash);
        if (error == NULL && *bytes < expected) {
            error = error_new(ERROR_MISSING, "%s has %" PRId64 " bytes yet, not %" PRId64, path, *bytes, expected);
        }
    } while (expected >= 0 ? steps_try_again(folder, &error, &tries) : file_try_again(&error, &tries));
    free(folder);
    return error;
}
