// A corpus: a folder with one token file per set, a manifest and the tokenizer that made it.
//
//   CORPUS/manifest.json     sets with documents, tokens, text bytes, checksums; the tokenizer's fingerprint and vocabulary
//   CORPUS/tokenizer.json    a copy (or tokenizer.tiktoken)
//   CORPUS/<set>_text_document.bin/.idx
//
// The manifest is committed last: a folder without one is no corpus yet.
#pragma once

#include "data/token_file.h"

typedef struct CorpusSet {
    char *name;    // "Pile-CC"
    char *prefix;  // path without .bin/.idx
    int64_t documents, tokens;
    int64_t text_bytes;  // UTF-8 bytes of the documents; -1 if unknown (a foreign token file)
    uint64_t checksum;   // XXH3-64 of the .bin; 0 if unknown
    TokenFile file;      // opened
} CorpusSet;

typedef struct Corpus {
    char *path;
    CorpusSet *sets;  // sorted by name
    int set_count;
    int64_t vocabulary;              // -1 if unknown
    int32_t end_of_text;             // -1 if none or unknown
    char *tokenizer_path;            // NULL if unknown
    uint64_t tokenizer_fingerprint;  // 0 if unknown
    uint64_t fingerprint;            // of the whole corpus: equal means the same tokens in the same order
} Corpus;

// Opens a corpus folder, or a foreign token file's prefix as a corpus of one set. Sizes are checked against the manifest,
// checksums are not (corpus_verify does). An empty corpus is an error.
Error *corpus_open(const char *path, Corpus *out) MUST_CHECK;
void corpus_close(Corpus *corpus);

// Reads everything and compares checksums.
Error *corpus_verify(const Corpus *corpus) MUST_CHECK;
