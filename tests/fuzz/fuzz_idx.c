// Fuzzes token files: any .idx is opened and then used everywhere, or refused.
//
// Input: two bytes for the size of the .bin (which is zeros), then the .idx.
#include "data/tokens/token_file.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char prefix[64], idx[80], bin[80];

static void remove_files(void) {
    unlink(idx);
    unlink(bin);
}

static void put(const char *path, const void *bytes, size_t size, size_t whole) {
    int descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    ensure(descriptor >= 0 && write(descriptor, bytes, size) == (ssize_t)size && ftruncate(descriptor, (off_t)whole) == 0,
           "%s cannot be written", path);
    close(descriptor);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) {
        return 0;
    }
    if (prefix[0] == 0) {
        snprintf(prefix, sizeof prefix, "%s/athanor-fuzz-%d", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp",
                 (int)getpid());
        snprintf(idx, sizeof idx, "%s.idx", prefix);
        snprintf(bin, sizeof bin, "%s.bin", prefix);
        atexit(remove_files);
    }
    put(idx, data + 2, size - 2, size - 2);
    put(bin, "", 0, (size_t)data[0] | (size_t)data[1] << 8);
    TokenFile file;
    Error *error = token_file_open(prefix, &file);
    if (error != NULL) {
        error_free(error);
        return 0;
    }
    int32_t tokens[64], lowest, highest;
    error_free(token_file_range(&file, &lowest, &highest));
    int64_t before = 0;
    for (int64_t d = 0; d <= file.documents; d++) {
        int64_t start = token_file_document_start(&file, d);
        ensure(start >= before && start <= file.tokens, "document %lld starts at %lld", (long long)d, (long long)start);
        if (start < file.tokens) {
            int64_t at = token_file_document_at(&file, start);
            ensure(at >= d && token_file_document_start(&file, at) == start, "document %lld is found at %lld", (long long)d,
                   (long long)at);
        }
        int64_t count = start - before < 64 ? start - before : 64;
        error_free(token_file_read(&file, before, count, tokens));
        before = start;
    }
    ensure(before == file.tokens, "documents end at %lld of %lld", (long long)before, (long long)file.tokens);
    token_file_close(&file);
    return 0;
}
