// core/: what a file is that is not what was asked for.
#include "core/file_kind.h"
#include "core/memory.h"
#include "core/philox.h"
#include "tests/support/check.h"

#include <string.h>

#define BYTES(text) text, sizeof(text) - 1

static const struct {
    const char *bytes;
    size_t size;
    const char *what;  // NULL: nothing is known against it
} files[] = {
    {BYTES(""), "is empty"},
    {BYTES(" \r\n\t"), "is empty"},
    {BYTES("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"), "a git-lfs pointer"},
    {BYTES("<!DOCTYPE html>\n<html>"), "a web page"},
    {BYTES("\n <html lang=en>"), "a web page"},
    {BYTES("<?xml version=\"1.0\"?><Error>"), "a web page"},
    {BYTES("PK\x03\x04\0\0archive/data.pkl"), "a zip archive"},
    {BYTES("\x80\x02}q\0X\x01"), "a pickle"},
    {BYTES("\x80\x04\x95\0\0\0"), "a pickle"},
    {BYTES("\x10\0\0\0\0\0\0\0{\"__metadata__\""), "a safetensors file"},
    {BYTES("\x02\0\0\0\0\0\0\0{}"), "a safetensors file"},
    {BYTES("\n\x0E\n\x05<unk>\x15\0\0\0\0\x18\x02\n\x0C"), "a SentencePiece model"},
    {BYTES("\n\x0B\n\x04\xE2\x96\x81t\x15\x12\x34\x56\x78"), "a SentencePiece model"},
    {BYTES("\x1F\x8B\x08\0"), "compressed by gzip"},
    {BYTES("\x28\xB5\x2F\xFD\x04"), "compressed by zstd"},
    {BYTES("\x89HDF\r\n\x1A\n\0"), "an HDF5 file"},
    {BYTES("GGUF\x03\0\0\0"), "a GGUF file"},
    {BYTES("#version: 0.2\nt h\n"), "the merges of a tokenizer"},
    {BYTES("\xFF\xFE{\0"), "text in UTF-16"},
    {BYTES("{\"model\": {}}"), NULL},
    {BYTES("  \n[1]"), NULL},
    {BYTES("IQ== 0\nIg== 1\n"), NULL},
    {BYTES("# encoding gpt2\n"), NULL},
    {BYTES("{\"text\": \"<html>\"}\n"), NULL},
    {BYTES("version of this text"), NULL},
    {BYTES("\n\n\nplain text that begins with empty lines"), NULL},
};

static void test_kinds(void) {
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        Error *error = file_kind_check("some/file", "a corpus", files[i].bytes, files[i].size);
        if (files[i].what == NULL) {
            CHECK_OK(error);
        } else if (CHECK(error != NULL)) {
            CHECK(strchr(error->message, '\n') == NULL && strncmp(error->message, "some/file: ", 11) == 0);
            CHECK(strstr(error->message, "where a corpus is expected") != NULL);
            CHECK_FAILS(error, files[i].what);
        }
    }
}

// Whatever the bytes and wherever they end: no byte behind them is looked at (they lie at the end of their own memory).
static void test_any_bytes(void) {
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        for (size_t size = 0; size <= files[i].size; size++) {
            char *bytes = memory_new(size + (size == 0), 1);
            memcpy(bytes, files[i].bytes, size);
            error_free(file_kind_check("f", "a file", bytes, size));
            free(bytes);
        }
    }
    for (uint64_t i = 0; i < 2000; i++) {
        size_t size = 1 + i % 300;
        char *bytes = memory_new(size, 1);
        for (size_t k = 0; k < size; k++) {
            bytes[k] = (char)(philox(i, 1, k).word[0] & (i % 2 ? 255 : 15));
        }
        error_free(file_kind_check("f", "a file", bytes, size));
        free(bytes);
    }
}

int main(void) {
    RUN(test_kinds);
    RUN(test_any_bytes);
    return check_report();
}
