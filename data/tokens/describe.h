// What is in a corpus or a token file, for people to read.
#pragma once

#include "data/tokens/corpus.h"

// Appends a table of the corpus at `path` (a folder, or a token file's prefix, .bin or .idx): sets with documents, tokens,
// bytes, tokens per byte and share, vocabulary, tokenizer, source, fingerprint. With `verify` everything is read and compared
// with the checksums, and the last line says that it is whole. What is not whole is an error that names file and place.
Error *corpus_describe(const char *path, bool verify, Buffer *out) MUST_CHECK;

// The same for one token file: dtype, sequences, documents, tokens, the longest document, with `verify` the range of its ids.
Error *token_file_describe(const char *path, bool verify, Buffer *out) MUST_CHECK;
