// A corpus: a folder with one token file per set, a manifest and the tokenizer that made it.
//
//   CORPUS/manifest.json     sets with documents, tokens, text bytes, checksums; the tokenizer's fingerprint and vocabulary
//   CORPUS/tokenizer.json    a copy (or tokenizer.tiktoken)
//   CORPUS/<set>_text_document.bin/.idx, and .sums: a checksum for each block of the .bin (block_file.h)
//
// The manifest is committed last: a folder without one is no corpus yet. It protects all else, and a checksum over all that it
// says protects the manifest: manifest and indices are compared when a corpus is opened, a block of tokens when it is first
// read. Corpora of version 1 have no .sums, and a manifest without a checksum: a run keeps sums of their blocks from the first
// reading on, as it does of token files of others (kept_sums.h).
#pragma once

#include "data/tokenizer/tokenizer.h"
#include "data/tokens/token_file.h"

#define CORPUS_MANIFEST "manifest.json"

typedef struct CorpusSet {
    char *name;    // "Pile-CC"
    char *prefix;  // path without .bin/.idx
    int64_t documents, tokens;
    int64_t text_bytes;       // UTF-8 bytes of the documents; -1 if unknown (a foreign token file)
    uint64_t checksum;        // XXH3-64 of the .bin; 0 if unknown
    uint64_t index_checksum;  // XXH3-64 of the .idx; 0 if unknown
    uint64_t sums_checksum;   // XXH3-64 of the .sums; 0 if there is none
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
    uint64_t fingerprint;            // of the whole corpus: equal means the same tokens in the same order, cut alike
    bool has_manifest;               // false: a foreign token file
    CorpusInput *inputs;
    int input_count;
    int64_t bad_lines, empty_documents;  // passed over when it was built
    uint64_t job;                        // of the build: inputs, their sizes and times, tokenizer
} Corpus;

// Opens a corpus folder, or a foreign token file's prefix as a corpus of one set (named after the file). The manifest is
// compared with its own checksum, the indices (which are read whole in any case) and the .sums with those it gives; tokens are
// compared as they are read. An empty corpus is an error, ERROR_MISSING says that there is none.
//
// A foreign file's fingerprint covers its index, its size and 64 samples of its tokens.
Error *corpus_open(const char *path, Corpus *out) MUST_CHECK;
void corpus_close(Corpus *corpus);

// Loads the tokenizer that lies beside the tokens and compares it with what the manifest says of it: fingerprint, vocabulary,
// end-of-text. NULL in *out where the corpus has none (a foreign token file).
Error *corpus_load_tokenizer(const Corpus *corpus, Tokenizer **out) MUST_CHECK;

// Reads everything, compares checksums and the tokenizer, and checks that every id lies in the vocabulary where it is known.
Error *corpus_verify(const Corpus *corpus) MUST_CHECK;

// Whether a run that saw a corpus of this fingerprint can go on with this one. Older versions left vocabulary and end-of-text
// out of the fingerprint: theirs is taken too.
bool corpus_matches(const Corpus *corpus, uint64_t fingerprint);
uint64_t corpus_fingerprint_before(const Corpus *corpus);  // by the older formula

// Writes `corpus`'s manifest into `folder`. Prefixes and the tokenizer's path are stored as names inside the folder.
Error *corpus_write_manifest(const Corpus *corpus, const char *folder) MUST_CHECK;
