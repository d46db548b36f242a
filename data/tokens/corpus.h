// A corpus: a folder with one token file per set, a manifest and the tokenizer that made it.
//
//   CORPUS/manifest.json     sets with documents, tokens, text bytes, checksums; the tokenizer's fingerprint and vocabulary
//   CORPUS/tokenizer.json    a copy (or tokenizer.tiktoken)
//   CORPUS/<set>_text_document.bin/.idx
//
// The manifest is committed last: a folder without one is no corpus yet.
#pragma once

#include "data/tokens/token_file.h"

#define CORPUS_MANIFEST "manifest.json"

typedef struct CorpusSet {
    char *name;    // "Pile-CC"
    char *prefix;  // path without .bin/.idx
    int64_t documents, tokens;
    int64_t text_bytes;       // UTF-8 bytes of the documents; -1 if unknown (a foreign token file)
    uint64_t checksum;        // XXH3-64 of the .bin; 0 if unknown
    uint64_t index_checksum;  // XXH3-64 of the .idx; 0 if unknown
    TokenFile file;           // opened
} CorpusSet;

// A shard that a corpus was built from.
typedef struct CorpusInput {
    char *name;  // without folders
    int64_t bytes;
} CorpusInput;

typedef struct Corpus {
    char *path;
    CorpusSet *sets;  // sorted by name
    int set_count;
    int64_t vocabulary;              // -1 if unknown
    int32_t end_of_text;             // -1 if none or unknown
    char *tokenizer_path;            // NULL if unknown
    uint64_t tokenizer_fingerprint;  // 0 if unknown
    uint64_t fingerprint;            // of the whole corpus: equal means the same tokens in the same order
    bool has_manifest;               // false: a foreign token file
    CorpusInput *inputs;
    int input_count;
    int64_t bad_lines, empty_documents;  // passed over when it was built
    uint64_t job;                        // of the build: inputs, their sizes and times, tokenizer
} Corpus;

// Opens a corpus folder, or a foreign token file's prefix as a corpus of one set (named after the file). Sizes are checked
// against the manifest, checksums are not (corpus_verify does). An empty corpus is an error.
//
// A foreign file's fingerprint covers its index, its size and 64 samples of its tokens.
Error *corpus_open(const char *path, Corpus *out) MUST_CHECK;
void corpus_close(Corpus *corpus);

// Reads everything, compares checksums, and checks that every id lies in the vocabulary where it is known.
Error *corpus_verify(const Corpus *corpus) MUST_CHECK;

// The fingerprint that belongs to these sets (of a corpus with checksums).
uint64_t corpus_fingerprint(const Corpus *corpus);

// Writes `corpus`'s manifest into `folder`. Prefixes and the tokenizer's path are stored as names inside the folder.
Error *corpus_write_manifest(const Corpus *corpus, const char *folder) MUST_CHECK;
