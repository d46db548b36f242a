// data/tokens/token_file: written, read back, and every way in which an index may lie. Corpora are tests/test_corpus.c.
#include "core/output.h"
#include "core/philox.h"
#include "data/tokens/token_file.h"
#include "tests/support/check.h"

#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>

// One folder for all tests of this file.
static const char *folder_here(void) {
    static const char *folder;
    return folder = folder != NULL ? folder : check_folder();
}

static int32_t token_at(int document, int i, int bytes) {
    uint64_t r = philox_u64(1, philox_stream(RANDOM_TEST, (uint64_t)document), (uint64_t)i);
    return bytes == 2 ? (int32_t)(r & 0xFFFF) : (int32_t)(r & 0x7FFFFFFF);
}

static int length_of(int document) {
    return document % 7 == 3 ? 0 : document == 5 ? 300000 : document * 37 % 101;
}

static Error *write_file(const char *prefix, int bytes, int documents) {
    TokenWriter *writer;
    TRY(token_writer_create(prefix, bytes, &writer));
    for (int d = 0; d < documents; d++) {
        int n = length_of(d);
        int32_t *tokens = memory_new((size_t)n + 1, sizeof *tokens);
        for (int i = 0; i < n; i++) {
            tokens[i] = token_at(d, i, bytes);
        }
        Error *error = token_writer_append(writer, tokens, (size_t)n / 3);
        error = error != NULL ? error : token_writer_append(writer, tokens + n / 3, (size_t)(n - n / 3));
        error = error != NULL ? error : token_writer_end_document(writer);
        free(tokens);
        if (error != NULL) {
            token_writer_abandon(writer);
            return error;
        }
    }
    return token_writer_commit(writer);
}

static void test_round_trip(void) {
    char *prefix = path_join(folder_here(), "round");
    for (int bytes = 2; bytes <= 4; bytes += 2) {
        enum { DOCUMENTS = 100 };
        CHECK_OK(write_file(prefix, bytes, DOCUMENTS));
        TokenFile file;
        CHECK_OK(token_file_open(prefix, &file));
        int64_t at = 0, kept = 0;
        for (int d = 0; d < DOCUMENTS; d++) {
            int n = length_of(d);
            if (n == 0) {
                continue;  // empty documents are dropped
            }
            CHECK_I64(token_file_document_start(&file, kept), at);
            CHECK_I64(token_file_document_at(&file, at), kept);
            CHECK_I64(token_file_document_at(&file, at + n - 1), kept);
            int32_t *tokens = memory_new((size_t)n, sizeof *tokens);
            CHECK_OK(token_file_read(&file, at, n, tokens));
            bool same = true;
            for (int i = 0; i < n; i++) {
                same = same && tokens[i] == token_at(d, i, bytes);
            }
            CHECK(same);
            free(tokens);
            at += n;
            kept++;
        }
        CHECK_I64(file.tokens, at);
        CHECK_I64(file.documents, kept);
        CHECK_I64(token_file_document_start(&file, kept), at);
        token_file_close(&file);
    }
    // The names with endings open the same file; an empty file is fine.
    TokenFile file;
    char *idx = memory_format("%s.idx", prefix), *bin = memory_format("%s.bin", prefix);
    CHECK_OK(token_file_open(idx, &file));
    token_file_close(&file);
    CHECK_OK(write_file(prefix, 2, 0));
    CHECK_OK(token_file_open(bin, &file));
    CHECK(file.tokens == 0 && file.documents == 0);
    int32_t lowest, highest;
    CHECK_OK(token_file_range(&file, &lowest, &highest));
    CHECK(lowest == 0 && highest == -1);
    token_file_close(&file);
    Strings names = {0};
    CHECK_OK(folder_list(folder_here(), &names));
    for (size_t i = 0; i < names.count; i++) {
        CHECK(strstr(names.items[i], "partial") == NULL);
    }
    strings_free(&names);
    free(prefix);
    free(idx);
    free(bin);
}

// An index put together by hand, so that each field can be wrong.
typedef struct Index {
    const char *magic;
    uint64_t version;
    int dtype;
    uint64_t sequences, documents;
    int32_t lengths[3];
    int64_t offsets[3], indices[3];
    int extra;  // bytes more (or fewer)
} Index;

// Three sequences of 2, 1 and 3 tokens in two documents: what GPT-NeoX writes for documents of several sentences.
static const Index good = {"MMIDIDX\0\0", 1, 8, 3, 3, {2, 1, 3}, {0, 4, 6}, {0, 2, 3}, 0};

static Error *open_index(const Index *index, size_t bin_bytes, TokenFile *file) {
    Buffer bytes = {0};
    uint8_t dtype = (uint8_t)index->dtype;
    buffer_append(&bytes, index->magic, 9);
    buffer_append(&bytes, &index->version, 8);
    buffer_append(&bytes, &dtype, 1);
    buffer_append(&bytes, &index->sequences, 8);
    buffer_append(&bytes, &index->documents, 8);
    buffer_append(&bytes, index->lengths, sizeof index->lengths);
    buffer_append(&bytes, index->offsets, sizeof index->offsets);
    buffer_append(&bytes, index->indices, sizeof index->indices);
    buffer_append(&bytes, "\0\0\0\0\0\0\0\0\0", 9);
    char *idx = path_join(folder_here(), "hand.idx"), *bin = path_join(folder_here(), "hand.bin");
    CHECK_OK(file_write(idx, bytes.data, (size_t)((int64_t)bytes.size - 9 + index->extra)));
    CHECK_OK(file_write(bin, "\1\0\2\0\3\0\4\0\5\0\6\0\7\0", bin_bytes));
    buffer_free(&bytes);
    Error *error = token_file_open(idx, file);
    free(idx);
    free(bin);
    return error;
}

static void refused(Index index, size_t bin_bytes, const char *part) {
    TokenFile file;
    CHECK_FAILS(open_index(&index, bin_bytes, &file), part);
}

#define WITH(...)                                                                                                              \
    ({                                                                                                                         \
        Index changed = good;                                                                                                  \
        changed.__VA_ARGS__;                                                                                                   \
        changed;                                                                                                               \
    })

static void test_foreign_index(void) {
    TokenFile file;
    CHECK_OK(open_index(&good, 12, &file));
    CHECK(file.tokens == 6 && file.documents == 2 && file.sequences == 3 && file.bytes_per_token == 2);
    CHECK(token_file_document_start(&file, 1) == 3 && token_file_document_at(&file, 2) == 0);
    CHECK(token_file_document_at(&file, 3) == 1 && token_file_document_at(&file, 5) == 1);
    token_file_close(&file);

    refused(WITH(magic = "TNTIDX\0\0\0"), 12, "old fairseq format");
    refused(WITH(magic = "MMIDIDX\0x"), 12, "does not start with MMIDIDX");
    refused(WITH(version = 2), 12, "version 2");
    refused(WITH(dtype = 6), 12, "dtype 6 is a float");
    refused(WITH(dtype = 7), 12, "dtype 7 is a float");
    refused(WITH(dtype = 5), 12, "dtype 5 is 64-bit");
    refused(WITH(dtype = 200), 12, "dtype 200 is unknown");
    refused(WITH(sequences = 4), 12, "truncated: 4 sequences");
    refused(WITH(sequences = UINT64_MAX), 12, "truncated: 18446744073709551615 sequences");
    refused(WITH(sequences = UINT64_MAX / 12 + 4), 12, "do not fit into its");
    refused(WITH(documents = UINT64_MAX / 8 + 4), 12, "do not fit into its");
    refused(WITH(documents = 0), 12, "24 bytes follow");
    refused(WITH(extra = 3), 12, "mode per sequence");
    refused(WITH(extra = 5), 12, "5 bytes follow");
    refused(WITH(extra = -1), 12, "truncated: 3 sequences");
    refused(WITH(extra = -70), 12, "truncated");
    refused(WITH(lengths[1] = -1), 12, "sequence 1 has length -1");
    refused(WITH(lengths[2] = 4), 12, "hand.bin is truncated: sequence 2 ends at byte 14");
    refused(good, 10, "hand.bin is truncated");
    refused(good, 14, "hand.bin has 14 bytes");
    refused(WITH(offsets[1] = 2), 12, "sequence 1 starts at byte 2, the one before it ends at 4");
    refused(WITH(offsets[0] = 2), 12, "sequence 0 starts at byte 2");
    refused(WITH(offsets[2] = INT64_MIN), 12, "sequence 2 starts at byte -");
    refused(WITH(indices[0] = 1), 12, "document index 0 is 1");
    refused(WITH(indices[1] = -1), 12, "document index 1 is -1");
    refused(WITH(indices[1] = 4), 12, "document index 1 is 4");
    refused(WITH(indices[2] = 2), 12, "the last document index is 2");
    CHECK_FAILS(token_file_open("/nowhere/at/all", &file), "/nowhere/at/all.idx cannot be opened");
}

// A failing disk: the limit on file sizes makes write() fail as a full disk does.
static void test_full_disk(void) {
    char *prefix = path_join(folder_here(), "full");
    struct rlimit before, small;
    getrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, SIG_IGN);
    for (rlim_t bytes = 0; bytes < 800000; bytes += 100000) {
        small = before;
        small.rlim_cur = bytes;
        setrlimit(RLIMIT_FSIZE, &small);
        Error *error = write_file(prefix, 2, 100);
        setrlimit(RLIMIT_FSIZE, &before);
        char *bin = memory_format("%s.bin", prefix), *partial = memory_format("%s.bin.partial", prefix);
        if (error != NULL) {
            CHECK(strstr(error->message, "cannot be written: File too large") != NULL &&
                  strstr(error->message, prefix) != NULL);
            CHECK(!path_exists(bin) && !path_exists(partial));
        }
        CHECK((error != NULL) == (bytes <= 600000));
        error_free(error);
        free(bin);
        free(partial);
    }
    CHECK_FAILS(write_file("/proc/none", 2, 1), "/proc/none.bin.partial cannot be created");
    CHECK_FAILS(write_file("/nowhere/none", 2, 1), "/nowhere/none.bin.partial cannot be created");
    free(prefix);
}

static void test_output(void) {
    char *path = path_join(folder_here(), "output"), *bytes = memory_zeroed(1 << 20, 1), back[10];
    Output *output;
    CHECK_OK(output_create(path, &output));
    for (int i = 0; i < 1 << 20; i++) {
        bytes[i] = (char)(i * 7 >> 3);
    }
    for (size_t at = 0; at < 1 << 20; at += at / 3 + 1) {
        size_t n = at + at / 3 + 1 < 1 << 20 ? at / 3 + 1 : (1 << 20) - at;
        CHECK_OK(output_write(output, bytes + at, n));
    }
    CHECK_I64(output_size(output), 1 << 20);
    CHECK_OK(output_cut(output, 999999));
    CHECK_OK(output_write(output, "0123456789", 10));
    CHECK_OK(output_cut(output, 1000003));
    CHECK_OK(output_read_back(output, 999995, back, 8));
    CHECK(memcmp(back, bytes + 999995, 4) == 0 && memcmp(back + 4, "0123", 4) == 0);
    CHECK_OK(output_write(output, "z", 1));
    CHECK_OK(output_finish(output, NULL));
    Buffer text = {0};
    CHECK_OK(file_read(path, 2 << 20, &text));
    CHECK(text.size == 1000004 && memcmp(text.data, bytes, 999999) == 0 && memcmp(text.data + 999999, "0123z", 5) == 0);
    CHECK_OK(output_create(path, &output));
    output_abandon(output);
    CHECK(!path_exists(path));
    CHECK_OK(output_create("/dev/full", &output));
    CHECK_OK(output_write(output, "waits", 5));
    CHECK_FAILS(output_finish(output, NULL), "/dev/full cannot be written: No space left");
    buffer_free(&text);
    free(bytes);
    free(path);
}

int main(void) {
    RUN(test_output);
    RUN(test_round_trip);
    RUN(test_foreign_index);
    RUN(test_full_disk);
    return check_report();
}
