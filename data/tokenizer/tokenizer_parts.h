// What a Tokenizer is made of: shared by the readers of files, the encoder and tokenizer.c. Others use tokenizer.h.
//
// From text to ids: (1) added tokens that are not normalized are found in the text; (2) what lies between them is brought to
// NFC, if the tokenizer says so; (3) added tokens that are normalized are found in that; (4) what lies between is cut by the
// stages in turn, each cutting the pieces of the one before; (5) each piece becomes ids by BPE.
#pragma once

#include "data/tokenizer/added_tokens.h"
#include "data/tokenizer/bpe.h"
#include "data/tokenizer/pretokenize.h"
#include "data/tokenizer/tokenizer.h"

enum { TOKEN_PRESENT = 1, TOKEN_SPECIAL = 2, TOKEN_BYTES = 4 };  // TOKEN_BYTES: part of the byte-level vocabulary
enum { STAGES_MOST = 8, TOKEN_IDS_MOST = 1 << 22 };

typedef struct TokenSpan {
    uint32_t offset, size, flags;
} TokenSpan;

// A place in the table of tokens by their bytes: the id (-1: empty) and a part of the hash, so that most of what is no token is
// told at one look.
typedef struct WholeToken {
    int32_t id;
    uint32_t tag;
} WholeToken;

struct Tokenizer {
    const char *format;  // "tokenizer.json", "tiktoken"
    Bpe bpe;
    size_t merges;
    Buffer bytes;  // of all tokens
    TokenSpan *tokens;
    int32_t vocabulary;
    size_t token_capacity;
    bool ignore_merges;  // a piece that is a token as a whole is that token
    WholeToken *whole;   // tokens by their bytes, open addressing; for ignore_merges
    int whole_shift;
    AddedToken *added;
    size_t added_count, added_capacity, added_longest;
    AddedSet raw, normalized;
    bool nfc;
    Pattern *stages[STAGES_MOST];
    int stage_count;
    bool prefix_space;  // the last stage puts a space before a piece that does not start with one
    bool can_cut;       // see pattern_cut
    int32_t end_of_text;
    uint64_t fingerprint;
    char declaration[64];  // see tokenizer_declaration
};

Error *tokenizer_from_json(const char *name, const char *bytes, size_t size, Tokenizer *out) MUST_CHECK;
Error *tokenizer_from_tiktoken(const char *name, const char *bytes, size_t size, Tokenizer *out) MUST_CHECK;

// For the readers. Sets what `id` stands for; false if it was set before. 0 <= id < TOKEN_IDS_MOST.
bool tokenizer_set_token(Tokenizer *tokenizer, int32_t id, const char *bytes, size_t size, unsigned flags);
// Adds an added token (its text is copied), and what its id stands for if the vocabulary does not say so.
void tokenizer_add(Tokenizer *tokenizer, AddedToken token);
void tokenizer_add_stage(Tokenizer *tokenizer, Pattern *pattern);
// The token with exactly these bytes, -1 for none. For this tokenizer_index_whole must have been called.
void tokenizer_index_whole(Tokenizer *tokenizer);
int32_t tokenizer_find_whole(const Tokenizer *tokenizer, const uint8_t *bytes, size_t size);
