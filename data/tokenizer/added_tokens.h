// Tokens that stand in a text as they are: "<|endoftext|>" and its kin, found before BPE sees the text.
//
// Of the tokens that start at the leftmost place the longest counts (of equal texts the first added). The flags are those of
// tokenizer.json: single_word (not inside a word), lstrip and rstrip (white space beside it belongs to it).
#pragma once

#include "core/memory.h"

typedef struct AddedToken {
    int32_t id;
    char *text;   // as in the file
    size_t size;  // may hold zero bytes
    bool single_word, lstrip, rstrip, normalized, special;
} AddedToken;

typedef struct AddedNode {
    int32_t child, sibling;  // -1: none
    int32_t token;           // index of the token that ends here, -1: none
    uint8_t byte;
} AddedNode;

// A trie over the texts of some tokens.
typedef struct AddedSet {
    AddedNode *nodes;
    int32_t root[256];  // the node of each first byte, -1: none
    int32_t count, capacity;
    int first_count;  // the number of different first bytes
    uint8_t first;    // one of them
} AddedSet;

typedef struct AddedMatch {
    size_t start, end;  // white space that was taken along included
    const AddedToken *token;
} AddedMatch;

void added_set_create(AddedSet *set);
// Adds tokens[index]; `text` is what is looked for.
void added_set_add(AddedSet *set, int32_t index, const char *text, size_t size);
void added_set_free(AddedSet *set);

// The next match in a text. *scan is where to look (0 at first) and moves on; `taken` is the end of the match before (0 at
// first). Tokens that are special are passed over unless `special`. False: there is none.
bool added_set_next(const AddedSet *set, const AddedToken *tokens, const char *text, size_t size, bool special, size_t *scan,
                    size_t taken, AddedMatch *match);

// Whether some token of the set, looked for in text[0 .. size), might reach from before `cut` to `cut` or further, or start at
// it. `longest` is the length of the longest token.
bool added_set_crosses(const AddedSet *set, const char *text, size_t size, size_t cut, size_t longest);
