// Writing shards: see shard_writer.h.
#include "data/text/shard_writer.h"

#include "core/output.h"
#include "data/text/json_line.h"

#include <stdio.h>
#include <zstd.h>

enum { LINE_BYTES = 128 << 10, ZSTD_LEVEL = 3 };

struct ShardWriter {
    Output *output;
    ZSTD_CCtx *zstd;
    char *path;
    char *packed;  // compressed bytes
    size_t packed_capacity;
    size_t size;  // of `line`
    char line[LINE_BYTES];
};

Error *shard_writer_create(const char *path, ShardWriter **out) {
    Output *output;
    *out = NULL;
    TRY(output_create(path, &output));
    ShardWriter *writer = memory_new(1, sizeof *writer);
    writer->output = output;
    writer->path = memory_string(path);
    writer->zstd = ZSTD_createCCtx();
    ensure(writer->zstd != NULL, "no memory for a compressor");
    ZSTD_CCtx_setParameter(writer->zstd, ZSTD_c_compressionLevel, ZSTD_LEVEL);
    ZSTD_CCtx_setParameter(writer->zstd, ZSTD_c_checksumFlag, 1);
    writer->packed_capacity = ZSTD_CStreamOutSize();
    writer->packed = memory_new(writer->packed_capacity, 1);
    writer->size = 0;
    *out = writer;
    return NULL;
}

// Compresses what waits in `line`.
static Error *compress(ShardWriter *writer, ZSTD_EndDirective end) {
    ZSTD_inBuffer in = {writer->line, writer->size, 0};
    size_t left;
    do {
        ZSTD_outBuffer out = {writer->packed, writer->packed_capacity, 0};
        left = ZSTD_compressStream2(writer->zstd, &out, &in, end);
        if (ZSTD_isError(left)) {
            return failure("%s cannot be compressed: %s", writer->path, ZSTD_getErrorName(left));
        }
        TRY(output_write(writer->output, writer->packed, out.pos));
    } while (in.pos < in.size || (end == ZSTD_e_end && left != 0));
    writer->size = 0;
    return NULL;
}

static Error *put(ShardWriter *writer, const char *bytes, size_t size) {
    while (size > 0) {
        size_t n = LINE_BYTES - writer->size < size ? LINE_BYTES - writer->size : size;
        memcpy(writer->line + writer->size, bytes, n);
        writer->size += n;
        bytes += n;
        size -= n;
        if (writer->size == LINE_BYTES) {
            TRY(compress(writer, ZSTD_e_continue));
        }
    }
    return NULL;
}

static Error *put_text(ShardWriter *writer, const char *text) {
    return put(writer, text, strlen(text));
}

// What a character that does not stand for itself is in a JSON string (RFC 8259, section 7).
static int escape(char c, char *out) {
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
    const char *found = c != 0 ? strchr(from, c) : NULL;
    return found != NULL ? sprintf(out, "\\%c", to[found - from]) : sprintf(out, "\\u%04x", (unsigned)c);
}

Error *shard_writer_begin(ShardWriter *writer) {
    return put_text(writer, "{\"text\": \"");
}

Error *shard_writer_text(ShardWriter *writer, const char *text, size_t size) {
    for (size_t i = 0; i < size;) {
        size_t n = json_plain_run(text + i, size - i);
        TRY(put(writer, text + i, n));
        i += n;
        if (i < size) {
            char escaped[8];
            TRY(put(writer, escaped, (size_t)escape(text[i++], escaped)));
        }
    }
    return NULL;
}

Error *shard_writer_end(ShardWriter *writer, const char *set) {
    TRY(put_text(writer, "\", \"meta\": {\"pile_set_name\": \""));
    TRY(shard_writer_text(writer, set, strlen(set)));
    return put_text(writer, "\"}}\n");
}

static void release(ShardWriter *writer) {
    output_abandon(writer->output);
    ZSTD_freeCCtx(writer->zstd);
    free(writer->packed);
    free(writer->path);
    free(writer);
}

Error *shard_writer_finish(ShardWriter *writer) {
    Error *error = compress(writer, ZSTD_e_end);
    if (error == NULL) {
        error = output_finish(writer->output, NULL);
        writer->output = NULL;
    }
    release(writer);
    return error;
}

void shard_writer_abandon(ShardWriter *writer) {
    if (writer != NULL) {
        release(writer);
    }
}
