// How often each pre-token occurs in a corpus: what BPE training needs of it.
//
// Text is collected into blocks of fixed size; a full block is counted by all threads. Words are kept apart by hash in parts,
// so that threads never share a table. When the words take more than the limit, the rarest are dropped, between blocks only:
// which ones depends on the text and its order, never on the number of threads. Memory is bounded whatever the size of the
// corpus.
#pragma once

#include "core/threads.h"
#include "data/tokenizer/pretokenize.h"

enum { COUNTED_LONGEST = 1024 };  // a longer pre-token counts as several words

typedef struct CountedWord {
    uint64_t hash;    // 0: empty place
    uint32_t offset;  // in the part's bytes
    uint32_t size;
    int64_t count;
} CountedWord;

typedef struct WordPart {
    CountedWord *words;  // open addressing
    size_t count, capacity;
    Buffer bytes;
} WordPart;

typedef struct WordCounts WordCounts;

// `pattern` stays the caller's. `block` and `limit` are in bytes: of a block, and of the words that are kept (0: the defaults).
WordCounts *word_counts_create(ThreadPool *pool, const Pattern *pattern, size_t block, size_t limit);
void word_counts_free(WordCounts *counts);

// Adds a document, or the next part of one. From one thread.
void word_counts_add(WordCounts *counts, const char *text, size_t size);

// Counts what still waits, and gives the words as parts (their number in *parts). They belong to `counts`.
const WordPart *word_counts_finish(WordCounts *counts, int *parts);

// Words that were dropped so far.
int64_t word_counts_dropped(const WordCounts *counts);
