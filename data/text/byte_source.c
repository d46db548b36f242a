// Decompressed bytes of a file: see byte_source.h.
#include "data/text/byte_source.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

enum { INPUT_BYTES = 128 << 10, HEAD_BYTES = 16, WINDOW_LOG_MOST = 27 };

struct ByteSource {
    char *name;
    ByteKind kind;
    int descriptor;  // -1 for memory
    unsigned char *buffer;
    const unsigned char *input;  // stored bytes that wait: [at, size)
    size_t at, size;
    bool ended;     // no stored bytes beyond `size`
    bool inside;    // inside a frame or member
    bool may_hold;  // the decompressor filled the output, so it may hold more
    int64_t taken;  // stored bytes before `input`
    size_t head_size;
    unsigned char head[HEAD_BYTES];
    ZSTD_DStream *zstd;
    z_stream gzip;
};

// Replaces used-up input by the next bytes of the file.
static Error *refill(ByteSource *source) {
    if (source->ended || source->at < source->size) {
        return NULL;
    }
    if (source->descriptor < 0) {
        source->ended = true;
        return NULL;
    }
    source->taken += (int64_t)source->size;
    source->at = source->size = 0;
    for (;;) {
        ssize_t got = read(source->descriptor, source->buffer, INPUT_BYTES);
        if (got >= 0) {
            source->size = (size_t)got;
            source->ended = got == 0;
            return NULL;
        }
        if (errno != EINTR) {
            return error_system(errno, "%s cannot be read", source->name);
        }
    }
}

// Fills the head, so that the kind can be told even where a pipe hands out single bytes.
static Error *read_head(ByteSource *source) {
    if (source->descriptor >= 0) {
        while (source->size < HEAD_BYTES && !source->ended) {
            ssize_t got = read(source->descriptor, source->buffer + source->size, INPUT_BYTES - source->size);
            if (got < 0 && errno != EINTR) {
                return error_system(errno, "%s cannot be read", source->name);
            }
            source->size += got > 0 ? (size_t)got : 0;
            source->ended = got == 0;
        }
        // `ended` means that nothing waits behind `size`; what was read here is still to be used.
    }
    source->head_size = source->size < HEAD_BYTES ? source->size : HEAD_BYTES;
    memcpy(source->head, source->input, source->head_size);
    return NULL;
}

// RFC 8878, section 3.1: frames start with FD2FB528, skippable ones with 184D2A5? (little-endian). RFC 1952: 1F 8B 08.
static ByteKind kind_of(const unsigned char *head, size_t size) {
    if (size >= 4 && head[1] == 0xB5 && head[0] == 0x28 && head[2] == 0x2F && head[3] == 0xFD) {
        return BYTES_ZSTD;
    }
    if (size >= 4 && (head[0] & 0xF0) == 0x50 && head[1] == 0x2A && head[2] == 0x4D && head[3] == 0x18) {
        return BYTES_ZSTD;
    }
    if (size >= 3 && head[0] == 0x1F && head[1] == 0x8B && head[2] == 0x08) {
        return BYTES_GZIP;
    }
    return BYTES_PLAIN;
}

static Error *start(ByteSource *source, ByteSource **out) {
    Error *error = read_head(source);
    if (error != NULL) {
        byte_source_close(source);
        return error;
    }
    source->kind = kind_of(source->head, source->head_size);
    if (source->kind == BYTES_ZSTD) {
        source->zstd = ZSTD_createDStream();
        ensure(source->zstd != NULL, "no memory for a decompressor");
        ZSTD_DCtx_setParameter(source->zstd, ZSTD_d_windowLogMax, WINDOW_LOG_MOST);
    } else if (source->kind == BYTES_GZIP) {
        ensure(inflateInit2(&source->gzip, 15 + 16) == Z_OK, "no memory for a decompressor");
    }
    *out = source;
    return NULL;
}

Error *byte_source_open(const char *path, ByteSource **out) {
    *out = NULL;
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) {
        return error_system(errno, "%s cannot be opened", path);
    }
    struct stat info;
    if (fstat(descriptor, &info) != 0 || S_ISDIR(info.st_mode)) {
        close(descriptor);
        return failure("%s is a folder, a file is needed", path);
    }
    posix_fadvise(descriptor, 0, 0, POSIX_FADV_SEQUENTIAL);
    ByteSource *source = memory_zeroed(1, sizeof *source);
    source->name = memory_string(path);
    source->descriptor = descriptor;
    source->buffer = memory_new(INPUT_BYTES, 1);
    source->input = source->buffer;
    return start(source, out);
}

Error *byte_source_memory(const char *name, const void *bytes, size_t size, ByteSource **out) {
    ByteSource *source = memory_zeroed(1, sizeof *source);
    source->name = memory_string(name);
    source->descriptor = -1;
    source->input = size > 0 ? bytes : (const void *)"";
    source->size = size;
    return start(source, out);
}

void byte_source_allow_window(ByteSource *source, int64_t bytes) {
    int log = WINDOW_LOG_MOST;
    while (log < 31 && (int64_t)1 << log < bytes) {
        log++;
    }
    if (source->kind == BYTES_ZSTD) {
        size_t code = ZSTD_DCtx_setParameter(source->zstd, ZSTD_d_windowLogMax, log);
        ensure(!ZSTD_isError(code), "a window of 2^%d: %s", log, ZSTD_getErrorName(code));
    }
}

ByteKind byte_source_kind(const ByteSource *source) {
    return source->kind;
}

const unsigned char *byte_source_head(const ByteSource *source, size_t *size) {
    *size = source->head_size;
    return source->head;
}

int64_t byte_source_taken(const ByteSource *source) {
    return source->taken + (int64_t)source->at;
}

void byte_source_close(ByteSource *source) {
    if (source == NULL) {
        return;
    }
    if (source->kind == BYTES_GZIP) {
        inflateEnd(&source->gzip);
    }
    ZSTD_freeDStream(source->zstd);
    if (source->descriptor >= 0) {
        close(source->descriptor);
    }
    free(source->buffer);
    free(source->name);
    free(source);
}

static Error *cut_off(const ByteSource *source) {
    return damaged("%s is truncated: the %s stream breaks off after %lld stored bytes; fetch the file again", source->name,
                   source->kind == BYTES_ZSTD ? "zstd" : "gzip", (long long)byte_source_taken(source));
}

static Error *broken(const ByteSource *source, const char *reason) {
    return damaged("%s is damaged at stored byte %lld: %s", source->name, (long long)byte_source_taken(source), reason);
}

// One step of zstd from the input to out[*done ..).
static Error *step_zstd(ByteSource *source, void *out, size_t capacity, size_t *done) {
    ZSTD_inBuffer in = {source->input, source->size, source->at};
    ZSTD_outBuffer to = {out, capacity, *done};
    bool between = !source->inside;
    size_t left = ZSTD_decompressStream(source->zstd, &to, &in);
    source->at = in.pos;
    *done = to.pos;
    if (ZSTD_isError(left)) {
        if (between && byte_source_taken(source) > 0 && ZSTD_getErrorCode(left) == ZSTD_error_prefix_unknown) {
            return broken(source, "there is something after the zstd frames that is none");
        }
        return broken(source, ZSTD_getErrorCode(left) == ZSTD_error_frameParameter_windowTooLarge
                                  ? "it needs a larger window than is allowed; give 'data build' --max-window=2Gi, "
                                    "or compress it again without --long"
                                  : ZSTD_getErrorName(left));
    }
    source->inside = left != 0;
    source->may_hold = left != 0 && to.pos == to.size;
    return NULL;
}

// One step of gzip from the input to out[*done ..).
static Error *step_gzip(ByteSource *source, unsigned char *out, size_t capacity, size_t *done) {
    z_stream *z = &source->gzip;
    size_t in = source->size - source->at, room = capacity - *done;
    in = in < (1u << 30) ? in : 1u << 30;
    room = room < (1u << 30) ? room : 1u << 30;
    z->next_out = out + *done;
    z->avail_out = (uInt)room;
    bool between = !source->inside;
    for (; between && byte_source_taken(source) > 0 && in > 0 && source->input[source->at] == 0; in--) {
        source->at++;  // padding behind a member
    }
    if (in == 0 && between) {
        return NULL;
    }
    source->inside = true;
    z->next_in = (unsigned char *)(uintptr_t)(source->input + source->at);
    z->avail_in = (uInt)in;
    int result = inflate(z, Z_NO_FLUSH);
    source->at += in - z->avail_in;
    *done += room - z->avail_out;
    source->may_hold = result == Z_OK && z->avail_out == 0;
    if (result == Z_STREAM_END) {
        source->inside = false;
        return inflateReset(z) == Z_OK ? NULL : broken(source, "the gzip stream cannot be continued");
    }
    if (result != Z_OK && result != Z_BUF_ERROR) {
        return broken(source, between && byte_source_taken(source) > 4
                                  ? "there is something after the gzip members that is none"
                                  : (z->msg != NULL ? z->msg : "the gzip stream is broken"));
    }
    return NULL;
}

Error *byte_source_read(ByteSource *source, void *out, size_t capacity, size_t *got) {
    *got = 0;
    while (*got < capacity) {
        if (source->at == source->size && !source->may_hold) {
            TRY(refill(source));
            if (source->at == source->size) {
                // What was read before the end is handed out first; the next call tells of the break.
                return *got == 0 && source->inside ? cut_off(source) : NULL;
            }
        }
        if (source->kind == BYTES_PLAIN) {
            size_t n = source->size - source->at;
            n = n < capacity - *got ? n : capacity - *got;
            memcpy((char *)out + *got, source->input + source->at, n);
            source->at += n;
            *got += n;
            return NULL;
        }
        TRY(source->kind == BYTES_ZSTD ? step_zstd(source, out, capacity, got) : step_gzip(source, out, capacity, got));
    }
    return NULL;
}
