// What a file is, by its first bytes: see file_kind.h.
#include "core/file_kind.h"

#include <ctype.h>
#include <stdint.h>
#include <string.h>

typedef struct FileKind {
    const char *start;
    size_t size;
    const char *what, *advice;
} FileKind;

#define KIND(start, what, advice)                                                                                              \
    { start, sizeof(start) - 1, what, advice }
#define FILE_ITSELF "download the file itself"

static const FileKind kinds[] = {
    KIND("version https://git-lfs.github.com/spec/", "a git-lfs pointer", "fetch what it points to with git lfs pull"),
    KIND("PK\x03\x04", "a zip archive, as PyTorch writes weights", "unpack it, or give another file"),
    KIND("\x1F\x8B", "compressed by gzip", "decompress it"),
    KIND("\x28\xB5\x2F\xFD", "compressed by zstd", "decompress it"),
    KIND("BZh", "compressed by bzip2", "decompress it"),
    KIND("\xFD"
         "7zXZ",
         "compressed by xz", "decompress it"),
    KIND("\x89HDF\r\n\x1A\n", "an HDF5 file", "give another file"),
    KIND("GGUF", "a GGUF file, which holds weights", "give another file"),
    KIND("PAR1", "a Parquet file", "give another file"),
    KIND("\x93NUMPY", "an array of NumPy", "give another file"),
    KIND("%PDF-", "a PDF document", "give another file"),
    KIND("\x7F"
         "ELF",
         "a program", "give another file"),
    KIND("#version: 0.", "the merges of a tokenizer without its vocabulary", "give its tokenizer.json"),
    KIND("\xFF\xFE", "text in UTF-16", "convert it, such as with iconv -f UTF-16 -t UTF-8"),
    KIND("\xFE\xFF", "text in UTF-16", "convert it, such as with iconv -f UTF-16 -t UTF-8"),
};
enum { KINDS = sizeof kinds / sizeof *kinds };

static const FileKind empty_file = KIND("", "empty", "give another file");
static const FileKind web_page = KIND("", "a web page", FILE_ITSELF ", by its raw link");
static const FileKind pickle = KIND("", "a pickle of Python, as PyTorch writes weights", "give another file");
static const FileKind safetensors = KIND("", "a safetensors file, which holds weights", "give another file");
static const FileKind sentencepiece = KIND("", "a SentencePiece model", "give another file; its tokens are not bytes");
static const FileKind tar = KIND("", "a tar archive", "unpack it");

// A page: <!doctype html, <html, <head or <?xml, after blanks, in any case.
static bool is_web_page(const char *bytes, size_t size) {
    static const char *const starts[] = {"<!doctype", "<html", "<head", "<?xml"};
    while (size > 0 && isspace((unsigned char)*bytes)) {
        bytes++;
        size--;
    }
    for (int i = 0; i < 4; i++) {
        size_t same = 0;
        while (starts[i][same] != 0 && same < size && tolower((unsigned char)bytes[same]) == starts[i][same]) {
            same++;
        }
        if (starts[i][same] == 0) {
            return true;
        }
    }
    return false;
}

// A protobuf whose first field is a piece: its size, then its text with a size, then its score, a float.
static bool is_sentencepiece(const char *bytes, size_t size) {
    const uint8_t *b = (const uint8_t *)bytes;
    return size > 8 && b[0] == 0x0A && b[1] < 0x80 && b[2] == 0x0A && b[3] > 0 && b[3] + 2 <= b[1] && (size_t)b[3] + 4 < size &&
           (b[4 + b[3]] == 0x15 || b[3] + 2 == b[1]);
}

// The size of the header in 8 bytes, then the header, which is JSON.
static bool is_safetensors(const char *bytes, size_t size) {
    uint64_t header = 0;
    for (size_t i = 8; i-- > 0 && size > 8;) {
        header = header << 8 | (uint8_t)bytes[i];
    }
    return size > 9 && header > 1 && header < (uint64_t)1 << 40 && bytes[8] == '{' && (bytes[9] == '"' || bytes[9] == '}');
}

static const FileKind *find_kind(const char *bytes, size_t size) {
    for (int i = 0; i < KINDS; i++) {
        if (size >= kinds[i].size && memcmp(bytes, kinds[i].start, kinds[i].size) == 0) {
            return &kinds[i];
        }
    }
    size_t blank = 0;
    while (blank < size && isspace((unsigned char)bytes[blank])) {
        blank++;
    }
    if (blank == size) {
        return &empty_file;
    }
    if (is_web_page(bytes, size)) {
        return &web_page;
    }
    if (size > 2 && (uint8_t)bytes[0] == 0x80 && bytes[1] >= 2 && bytes[1] <= 5) {
        return &pickle;
    }
    if (is_safetensors(bytes, size)) {
        return &safetensors;
    }
    if (is_sentencepiece(bytes, size)) {
        return &sentencepiece;
    }
    return size > 262 && memcmp(bytes + 257, "ustar", 5) == 0 ? &tar : NULL;
}

Error *file_kind_check(const char *name, const char *wanted, const char *bytes, size_t size) {
    const FileKind *kind = find_kind(bytes, size);
    return kind == NULL ? NULL
                        : damaged("%s: this file is %s, where %s is expected; %s", name, kind->what, wanted, kind->advice);
}
