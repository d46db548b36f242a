// Reading token files: see token_file.h. Writing them is token_writer.c.
#include "data/tokens/token_file.h"

#include "core/hash.h"
#include "core/text.h"
#include "data/tokens/token_format.h"

char *token_file_prefix(const char *path) {
    char *prefix = memory_string(path);
    if (text_ends_with(path, ".bin") || text_ends_with(path, ".idx")) {
        prefix[strlen(prefix) - 4] = 0;
    }
    return prefix;
}

static int64_t load_i64(const void *array, int64_t index) {
    int64_t value;
    memcpy(&value, (const char *)array + 8 * index, 8);
    return value;
}

static int32_t load_i32(const void *array, int64_t index) {
    int32_t value;
    memcpy(&value, (const char *)array + 4 * index, 4);
    return value;
}

// The token width that the header's dtype code stands for.
static Error *check_dtype(const char *name, int code, int *bytes_per_token) {
    static const char *const names[] = {"?", "8-bit", "8-bit", "16-bit signed", "i32", "64-bit", "a float", "a float", "u16"};
    if (code == TOKEN_DTYPE_U16 || code == TOKEN_DTYPE_I32) {
        *bytes_per_token = code == TOKEN_DTYPE_U16 ? 2 : 4;
        return NULL;
    }
    if (code == 6 || code == 7) {
        return failure("%s: dtype %d is a float (32 or 64 bits, Megatron and GPT-NeoX disagree which), tokens are u16 (8) or "
                       "i32 (4)",
                       name, code);
    }
    return failure("%s: dtype %d is %s, tokens are u16 (8) or i32 (4)", name, code,
                   code > 0 && code < 9 ? names[code] : "unknown");
}

// The header, and that the arrays it announces fill the file.
static Error *check_header(const char *name, TokenFile *file, int64_t *indices) {
    const unsigned char *idx = file->idx.data;
    size_t size = file->idx.size;
    if (size >= 6 && memcmp(idx, "TNTIDX", 6) == 0) {
        return failure("%s is in the old fairseq format (magic TNTIDX); convert it with the tool that wrote it", name);
    }
    if (size >= 16 && memcmp(idx, "version https://", 16) == 0) {
        return failure("%s is a git-lfs pointer that stands for a file; 'git lfs pull' fetches it", name);
    }
    if (size >= 9 && memcmp(idx, TOKEN_MAGIC, 9) != 0) {
        return failure("%s is no index of a token file: it does not start with MMIDIDX", name);
    }
    if (size < TOKEN_HEADER_BYTES) {
        return damaged("%s is truncated: %zu bytes, the header alone has %d", name, size, TOKEN_HEADER_BYTES);
    }
    uint64_t version, sequences, documents;
    memcpy(&version, idx + 9, 8);
    memcpy(&sequences, idx + 18, 8);
    memcpy(&documents, idx + 26, 8);
    if (version != 1) {
        return failure("%s: version %llu, only 1 is known", name, (unsigned long long)version);
    }
    TRY(check_dtype(name, idx[17], &file->bytes_per_token));
    size_t room = size - TOKEN_HEADER_BYTES;
    if (sequences > room / 12 || documents > room / 8 || 12 * sequences + 8 * documents > room) {
        return damaged("%s is truncated: %llu sequences and %llu document indices do not fit into its %zu bytes", name,
                       (unsigned long long)sequences, (unsigned long long)documents, size);
    }
    size_t extra = room - 12 * sequences - 8 * documents;
    if (extra != 0 && extra == sequences) {
        return failure("%s has a mode per sequence: multimodal data is not text", name);
    }
    if (extra != 0) {
        return damaged("%s: %zu bytes follow after the document indices", name, extra);
    }
    if (documents == 0) {
        return damaged("%s: there are no document indices, not even the first 0", name);
    }
    file->sequences = (int64_t)sequences;
    file->documents = (int64_t)documents - 1;
    file->byte_offsets = idx + TOKEN_HEADER_BYTES + 4 * sequences;
    file->document_index = idx + TOKEN_HEADER_BYTES + 12 * sequences;
    *indices = (int64_t)documents;
    return NULL;
}

// Sequences lie one after the other and fill the .bin; documents are ascending runs of sequences.
static Error *check_arrays(const char *name, const char *bin_name, TokenFile *file, int64_t indices) {
    const void *lengths = (const char *)file->idx.data + TOKEN_HEADER_BYTES;
    int64_t width = file->bytes_per_token, bin_size = block_file_size(file->bin), end = 0;
    for (int64_t i = 0; i < file->sequences; i++) {
        int64_t length = load_i32(lengths, i), offset = load_i64(file->byte_offsets, i);
        if (length < 0) {
            return damaged("%s: sequence %lld has length %lld", name, (long long)i, (long long)length);
        }
        if (offset != end) {
            return damaged("%s: sequence %lld starts at byte %lld, the one before it ends at %lld", name, (long long)i,
                           (long long)offset, (long long)end);
        }
        end += length * width;
        if (end > bin_size) {
            return damaged("%s is truncated: sequence %lld ends at byte %lld, the file has %lld", bin_name, (long long)i,
                           (long long)end, (long long)bin_size);
        }
    }
    if (end != bin_size) {
        return damaged("%s has %lld bytes, %s accounts for %lld", bin_name, (long long)bin_size, name, (long long)end);
    }
    int64_t before = 0;
    for (int64_t i = 0; i < indices; i++) {
        int64_t index = load_i64(file->document_index, i);
        if (index < before || index > file->sequences || (i == 0 && index != 0)) {
            return damaged("%s: document index %lld is %lld, it must lie between %lld and %lld", name, (long long)i,
                           (long long)index, (long long)before, i == 0 ? 0LL : (long long)file->sequences);
        }
        before = index;
    }
    if (before != file->sequences) {
        return damaged("%s: the last document index is %lld, there are %lld sequences", name, (long long)before,
                       (long long)file->sequences);
    }
    file->tokens = bin_size / width;
    return NULL;
}

Error *token_file_open(const char *path, TokenFile *out) {
    *out = (TokenFile){0};
    char *prefix = token_file_prefix(path);
    char *idx = memory_format("%s.idx", prefix), *bin = memory_format("%s.bin", prefix);
    int64_t indices = 0;
    Error *error = file_map(idx, &out->idx);
    if (error == NULL) {
        error = check_header(idx, out, &indices);
    }
    if (error == NULL) {
        error = block_file_open(bin, &out->bin);
    }
    if (error == NULL) {
        error = check_arrays(idx, bin, out, indices);
    }
    if (error == NULL) {
        block_file_watch(out->bin, idx, out->idx.data, out->idx.size);
    }
    if (error != NULL) {
        token_file_close(out);
    }
    free(prefix);
    free(idx);
    free(bin);
    return error;
}

void token_file_close(TokenFile *file) {
    block_file_close(file->bin);
    file_unmap(&file->idx);
    *file = (TokenFile){0};
}

Error *token_file_read(const TokenFile *file, int64_t first, int64_t count, int32_t *out) {
    ensure(first >= 0 && count >= 0 && first <= file->tokens && count <= file->tokens - first, "tokens %lld + %lld of %lld",
           (long long)first, (long long)count, (long long)file->tokens);
    if (file->bytes_per_token == 4) {
        return block_file_read(file->bin, 4 * first, out, 4 * (size_t)count);
    }
    // The narrow tokens are read into the upper half of their place and widened from its front.
    uint16_t *narrow = (uint16_t *)(void *)out + count;
    TRY(block_file_read(file->bin, 2 * first, narrow, 2 * (size_t)count));
    for (int64_t i = 0; i < count; i++) {
        uint16_t token;
        memcpy(&token, narrow + i, sizeof token);
        out[i] = token;
    }
    return NULL;
}

int64_t token_file_document_start(const TokenFile *file, int64_t document) {
    ensure(document >= 0 && document <= file->documents, "document %lld of %lld", (long long)document,
           (long long)file->documents);
    int64_t sequence = load_i64(file->document_index, document);
    return sequence == file->sequences ? file->tokens : load_i64(file->byte_offsets, sequence) / file->bytes_per_token;
}

int64_t token_file_document_at(const TokenFile *file, int64_t token) {
    ensure(token >= 0 && token < file->tokens, "token %lld of %lld", (long long)token, (long long)file->tokens);
    int64_t low = 0, high = file->documents;  // start(low) <= token < start(high)
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (token_file_document_start(file, middle) <= token) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

Error *token_file_range(const TokenFile *file, int32_t *lowest, int32_t *highest) {
    enum { STEP = 4096 };
    int32_t low = INT32_MAX, high = INT32_MIN, tokens[STEP];
    Error *error = NULL;
    block_file_in_order(file->bin, true);
    for (int64_t first = 0, count; first < file->tokens && error == NULL; first += count) {
        count = file->tokens - first < STEP ? file->tokens - first : STEP;
        error = token_file_read(file, first, count, tokens);
        for (int64_t i = 0; i < count && error == NULL; i++) {
            low = tokens[i] < low ? tokens[i] : low;
            high = tokens[i] > high ? tokens[i] : high;
        }
    }
    block_file_in_order(file->bin, false);
    *lowest = file->tokens > 0 ? low : 0;
    *highest = file->tokens > 0 ? high : -1;
    return error;
}

Error *token_file_sums(const TokenFile *file, TokenSums *out) {
    *out = (TokenSums){.idx = hash64(file->idx.data, file->idx.size)};
    return block_file_hash(file->bin, &out->bin);
}
