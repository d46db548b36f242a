// Buffered files: see output.h.
#include "core/output.h"

#include "core/durable.h"
#include "core/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

enum { OUTPUT_BUFFER = 256 << 10 };

struct Output {
    char *path;
    int descriptor;
    int64_t flushed;  // bytes in the file
    size_t waiting;   // bytes in the buffer
    bool cut;
    Hasher *hasher;
    char buffer[OUTPUT_BUFFER];
};

Error *output_create(const char *path, Output **out) {
    *out = NULL;
    int descriptor = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (descriptor < 0) {
        return error_system(errno, "%s cannot be created", path);
    }
    Output *output = memory_new(1, sizeof *output);
    output->path = memory_string(path);
    output->descriptor = descriptor;
    output->flushed = 0;
    output->waiting = 0;
    output->cut = false;
    output->hasher = hasher_create();
    *out = output;
    return NULL;
}

static Error *flush(Output *output) {
    TRY(file_write_all(output->descriptor, output->path, output->buffer, output->waiting));
    hasher_add(output->hasher, output->buffer, output->waiting);
    output->flushed += (int64_t)output->waiting;
    output->waiting = 0;
    return NULL;
}

Error *output_write(Output *output, const void *bytes, size_t size) {
    if (size >= OUTPUT_BUFFER) {
        TRY(flush(output));
        TRY(file_write_all(output->descriptor, output->path, bytes, size));
        hasher_add(output->hasher, bytes, size);
        output->flushed += (int64_t)size;
        return NULL;
    }
    if (size > OUTPUT_BUFFER - output->waiting) {
        TRY(flush(output));
    }
    memcpy(output->buffer + output->waiting, bytes, size);
    output->waiting += size;
    return NULL;
}

int64_t output_size(const Output *output) {
    return output->flushed + (int64_t)output->waiting;
}

Error *output_cut(Output *output, int64_t size) {
    ensure(size >= 0 && size <= output_size(output), "cut to %lld of %lld", (long long)size, (long long)output_size(output));
    output->cut = true;
    if (size >= output->flushed) {
        output->waiting = (size_t)(size - output->flushed);
        return NULL;
    }
    output->waiting = 0;
    if (ftruncate(output->descriptor, size) != 0 || lseek(output->descriptor, size, SEEK_SET) < 0) {
        return error_system(errno, "%s cannot be cut back", output->path);
    }
    output->flushed = size;
    return NULL;
}

Error *output_read_back(Output *output, int64_t offset, void *out, size_t size) {
    ensure(offset >= 0 && offset + (int64_t)size <= output_size(output), "reading back %lld + %zu of %lld", (long long)offset,
           size, (long long)output_size(output));
    TRY(flush(output));
    char *to = out;
    while (size > 0) {
        ssize_t got = pread(output->descriptor, to, size, offset);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            return error_system(got < 0 ? errno : EIO, "%s cannot be read back", output->path);
        }
        to += got;
        offset += got;
        size -= (size_t)got;
    }
    return NULL;
}

static void release(Output *output) {
    hasher_destroy(output->hasher);
    free(output->path);
    free(output);
}

Error *output_finish(Output *output, uint64_t *checksum) {
    Error *error = flush(output);
    if (checksum != NULL) {
        ensure(!output->cut, "a checksum of %s, which was cut", output->path);
        *checksum = hasher_result(output->hasher);
    }
    if (error == NULL && fsync(output->descriptor) != 0) {
        error = error_system(errno, "%s cannot be made durable", output->path);
    }
    if (close(output->descriptor) != 0 && error == NULL) {
        error = error_system(errno, "%s cannot be closed", output->path);
    }
    release(output);
    return error;
}

void output_abandon(Output *output) {
    if (output != NULL) {
        close(output->descriptor);
        unlink(output->path);
        release(output);
    }
}
