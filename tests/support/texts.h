// A tokenizer, models and corpora for tests of what a model writes and how it is scored.
#pragma once

#include "data/tokenizer/tokenizer.h"
#include "data/tokens/corpus.h"

// A token for each printable character of ASCII, ' ' first, so that a text without zero bytes has as many bytes as tokens; with
// `end`, id 0 is an end-of-text token and ' ' is 1, else ' ' is 0.
Tokenizer *texts_tokenizer(bool end);

// A corpus of sets named "a", "b" ... in a fresh folder: set d holds counts[d] tokens, drawn below `vocabulary` from `seed`, in
// documents of at most `document` tokens. It has no manifest and no end-of-text token. Close with texts_close.
Corpus texts_corpus(int sets, const int64_t *counts, int64_t document, int32_t vocabulary, uint64_t seed);
void texts_close(Corpus *corpus);
