// Training of byte-pair encoding: the merges that a list of counted words asks for (Sennrich et al. 2016, algorithm 1).
//
// Each step merges the adjacent pair of tokens with the highest count, of equal counts the one whose left id is lowest, then
// whose right id is lowest. So the merges depend on the words and their counts alone. The work is proportional to the number of
// places that change, not to the size of the words.
#pragma once

#include "core/memory.h"
#include "data/tokenizer/word_counts.h"

typedef struct Merge {
    int32_t left, right, id;  // ids 0 .. 255 are the bytes
} Merge;

typedef struct Merges {
    Merge *items;
    size_t count, capacity;
    int32_t tokens;  // 256 and the tokens that merges made: the same bytes made in two ways are one token
} Merges;

// Learns merges until there are `tokens` tokens, or no pair occurs twice. Words of one byte are of no use and skipped.
Error *merges_learn(const WordPart *parts, int part_count, int32_t tokens, Merges *out) MUST_CHECK;
void merges_free(Merges *merges);

// The bytes of each token: token i is bytes[ends[i - 1] .. ends[i]). The caller frees both.
void merges_bytes(const Merges *merges, Buffer *bytes, uint64_t **ends);
