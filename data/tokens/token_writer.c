// Writing token files: see token_file.h.
//
// Files grow: PREFIX.bin.partial (tokens), PREFIX.sums.partial (a checksum for each of its blocks), and at the end
// PREFIX.idx.partial, made in three passes over PREFIX.lengths.partial (one i32 a document), so that memory does not grow with
// the number of documents.
#include "data/tokens/token_file.h"

#include "core/hash.h"
#include "core/output.h"
#include "data/tokens/token_format.h"

#include <unistd.h>

struct TokenWriter {
    char *prefix;
    int bytes_per_token;
    Output *bin, *sums, *lengths;
    Hasher *block;    // of the open block of the .bin
    size_t in_block;  // its bytes
    int64_t documents;
    int64_t length;  // tokens of the open document
};

static char *partial_name(const TokenWriter *writer, const char *kind) {
    return memory_format("%s.%s%s", writer->prefix, kind, PARTIAL_SUFFIX);
}

static Error *create_part(const TokenWriter *writer, const char *kind, Output **out) {
    char *path = partial_name(writer, kind);
    Error *error = output_create(path, out);
    free(path);
    return error;
}

static void release(TokenWriter *writer) {
    output_abandon(writer->bin);
    output_abandon(writer->sums);
    output_abandon(writer->lengths);
    hasher_destroy(writer->block);
    free(writer->prefix);
    free(writer);
}

Error *token_writer_create(const char *prefix, int bytes_per_token, TokenWriter **out) {
    ensure(bytes_per_token == 2 || bytes_per_token == 4, "%d bytes a token", bytes_per_token);
    TokenWriter *writer = memory_zeroed(1, sizeof *writer);
    writer->prefix = memory_string(prefix);
    writer->bytes_per_token = bytes_per_token;
    writer->block = hasher_create();
    *out = NULL;
    Error *error = create_part(writer, "bin", &writer->bin);
    if (error == NULL) {
        error = create_part(writer, "sums", &writer->sums);
    }
    if (error == NULL) {
        uint32_t numbers[2] = {SUMS_VERSION, BLOCK_BYTES};
        error = output_write(writer->sums, SUMS_MAGIC, 8);
        error = error == NULL ? output_write(writer->sums, numbers, sizeof numbers) : error;
    }
    if (error == NULL) {
        error = create_part(writer, "lengths", &writer->lengths);
    }
    if (error != NULL) {
        release(writer);
        return error;
    }
    *out = writer;
    return NULL;
}

static Error *end_block(TokenWriter *writer) {
    uint64_t sum = hasher_result(writer->block);
    hasher_restart(writer->block);
    writer->in_block = 0;
    return output_write(writer->sums, &sum, sizeof sum);
}

static Error *write_tokens(TokenWriter *writer, const char *bytes, size_t size) {
    TRY(output_write(writer->bin, bytes, size));
    for (size_t piece; size > 0; bytes += piece, size -= piece) {
        piece = BLOCK_BYTES - writer->in_block < size ? BLOCK_BYTES - writer->in_block : size;
        hasher_add(writer->block, bytes, piece);
        writer->in_block += piece;
        if (writer->in_block == BLOCK_BYTES) {
            TRY(end_block(writer));
        }
    }
    return NULL;
}

Error *token_writer_append_raw(TokenWriter *writer, const void *tokens, size_t count) {
    if ((int64_t)count > INT32_MAX - writer->length) {
        return failure("%s: document %lld has more than 2147483647 tokens, the format's limit", writer->prefix,
                       (long long)writer->documents);
    }
    writer->length += (int64_t)count;
    return write_tokens(writer, tokens, count * (size_t)writer->bytes_per_token);
}

Error *token_writer_append(TokenWriter *writer, const int32_t *tokens, size_t count) {
    if (writer->bytes_per_token == 4) {
        return token_writer_append_raw(writer, tokens, count);
    }
    enum { STEP = 4096 };
    uint16_t narrow[STEP];
    for (size_t first = 0; first < count; first += STEP) {
        size_t n = count - first < STEP ? count - first : STEP;
        int32_t all = 0;
        for (size_t i = 0; i < n; i++) {
            all |= tokens[first + i];
            narrow[i] = (uint16_t)tokens[first + i];
        }
        ensure((all & ~0xFFFF) == 0, "a token does not fit into 16 bits");
        TRY(token_writer_append_raw(writer, narrow, n));
    }
    return NULL;
}

Error *token_writer_end_document(TokenWriter *writer) {
    if (writer->length == 0) {
        return NULL;
    }
    int32_t length = (int32_t)writer->length;
    writer->length = 0;
    writer->documents++;
    return output_write(writer->lengths, &length, sizeof length);
}

enum Array { ARRAY_LENGTHS, ARRAY_OFFSETS, ARRAY_DOCUMENTS };

// Writes one array of the index from the stored lengths.
static Error *write_array(TokenWriter *writer, Output *idx, enum Array array) {
    enum { STEP = 8192 };
    int32_t lengths[STEP];
    int64_t wide[STEP], offset = 0;
    for (int64_t first = 0; first < writer->documents; first += STEP) {
        int64_t n = writer->documents - first < STEP ? writer->documents - first : STEP;
        if (array != ARRAY_DOCUMENTS) {
            TRY(output_read_back(writer->lengths, 4 * first, lengths, 4 * (size_t)n));
        }
        if (array == ARRAY_LENGTHS) {
            TRY(output_write(idx, lengths, 4 * (size_t)n));
            continue;
        }
        for (int64_t i = 0; i < n; i++) {
            wide[i] = array == ARRAY_OFFSETS ? offset : first + i;
            offset += array == ARRAY_OFFSETS ? (int64_t)lengths[i] * writer->bytes_per_token : 0;
        }
        TRY(output_write(idx, wide, 8 * (size_t)n));
    }
    return array == ARRAY_DOCUMENTS ? output_write(idx, &writer->documents, 8) : NULL;
}

static Error *write_index(TokenWriter *writer, Output *idx) {
    unsigned char header[TOKEN_HEADER_BYTES];
    uint64_t version = 1, sequences = (uint64_t)writer->documents, indices = sequences + 1;
    memcpy(header, TOKEN_MAGIC, 9);
    memcpy(header + 9, &version, 8);
    header[17] = writer->bytes_per_token == 2 ? TOKEN_DTYPE_U16 : TOKEN_DTYPE_I32;
    memcpy(header + 18, &sequences, 8);
    memcpy(header + 26, &indices, 8);
    TRY(output_write(idx, header, sizeof header));
    TRY(write_array(writer, idx, ARRAY_LENGTHS));
    TRY(write_array(writer, idx, ARRAY_OFFSETS));
    return write_array(writer, idx, ARRAY_DOCUMENTS);
}

static Error *commit_part(const TokenWriter *writer, const char *kind) {
    char *from = partial_name(writer, kind), *to = memory_format("%s.%s", writer->prefix, kind);
    Error *error = file_commit(from, to);
    free(from);
    free(to);
    return error;
}

static void remove_part(const TokenWriter *writer, const char *kind) {
    char *path = partial_name(writer, kind);
    unlink(path);
    free(path);
}

// Takes *output and makes the file durable under its partial name.
static Error *finish_part(Output **output, uint64_t *checksum) {
    Output *part = *output;
    *output = NULL;
    return output_finish(part, checksum);
}

static Error *commit(TokenWriter *writer, TokenSums *sums) {
    static const char *const kinds[] = {"sums", "bin", "idx"};
    Output *idx = NULL;
    TRY(create_part(writer, "idx", &idx));
    Error *error = write_index(writer, idx);
    if (error == NULL && writer->in_block > 0) {
        error = end_block(writer);
    }
    if (error != NULL) {
        output_abandon(idx);
        return error;
    }
    error = finish_part(&idx, &sums->idx);
    error = error == NULL ? finish_part(&writer->bin, &sums->bin) : error;
    error = error == NULL ? finish_part(&writer->sums, &sums->sums) : error;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds && error == NULL; i++) {
        error = commit_part(writer, kinds[i]);
    }
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds && error != NULL; i++) {
        remove_part(writer, kinds[i]);
    }
    return error;
}

Error *token_writer_commit_sums(TokenWriter *writer, TokenSums *sums) {
    ensure(writer->length == 0, "a document is still open");
    Error *error = commit(writer, sums);
    release(writer);
    return error;
}

Error *token_writer_commit(TokenWriter *writer) {
    TokenSums sums;
    return token_writer_commit_sums(writer, &sums);
}

void token_writer_abandon(TokenWriter *writer) {
    if (writer != NULL) {
        release(writer);
    }
}
