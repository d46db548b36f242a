// Building a corpus: shards of documents become one token file per set (corpus.h).
//
// Three stages:
//   1. each shard becomes a part, its documents' tokens in the shard's order     OUT.partial/parts/   (build_shards.c)
//   2. the parts' documents are sorted into their sets, shard after shard        OUT.partial/whole/
//   3. tokenizer and manifest are added and the folder gets its name             OUT/
// A part that is finished survives a kill: the same command continues with the shards that are missing. The files do not depend
// on the number of workers, nor on how often the work was broken off. Memory is bounded by the workers, not by the shards.
//
// Every document ends with the tokenizer's end-of-text id, if it has one. Empty documents are dropped. Special tokens that
// stand in a text are encoded as text. Shards that are given twice, under whatever name, count once (shard_files.h).
//
// A text can be cut, and its memory given back, only where a word ends (and nowhere under a pattern that only PCRE2 knows). A
// document that goes on for more than word_most bytes without such a place is a bad line: it takes that much memory while it
// waits, and some 30 times that much where a word just fits, whatever its length.
#pragma once

#include "core/memory.h"

enum { BUILD_WORD_MOST = 8 << 20 };

typedef struct BuildPlan {
    Strings inputs;  // shards, in the order in which their documents shall come
    const char *tokenizer;
    const char *out;
    int workers;
    int64_t bad_lines_most;   // one more is an error
    int64_t word_most;        // bytes that a text may go on without the end of a word; 0: BUILD_WORD_MOST
    int64_t window_most;      // bytes of a zstd window; 0: 128 MiB
    bool replace_surrogates;  // half of a surrogate pair in a text becomes U+FFFD; else the line is bad
} BuildPlan;

typedef struct BuildResult {
    bool done_before;           // OUT existed already and comes from the same shards and tokenizer
    int shards, shards_before;  // of all, those that an earlier run had finished
    int64_t bad_lines;
    double seconds;
} BuildResult;

Error *build_corpus(const BuildPlan *plan, BuildResult *result) MUST_CHECK;
