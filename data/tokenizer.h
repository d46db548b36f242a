// Byte-level BPE tokenizers: text to ids and back, identical to the reference implementations.
//
// Reads Hugging Face tokenizer.json (GPT-2, GPT-NeoX, Llama-3 and Qwen kinds, and ours) and .tiktoken files. A Tokenizer is
// immutable and shared by threads; an Encoder holds one thread's state (word cache, text that waits for more).
#pragma once

#include "core/memory.h"

typedef struct Tokenizer Tokenizer;
typedef struct Encoder Encoder;

typedef struct Tokens {
    int32_t *ids;
    size_t count, capacity;
} Tokens;

// Loads a tokenizer file, its kind told by content. Errors name the file and what is wrong. Caller owns *out.
//
// Of a tokenizer.json the post-processor, truncation and padding are not applied: they would add or drop ids of a whole text.
// A .tiktoken file does not say how text is cut nor which special tokens there are: both follow from a hint in the file's name
// (gpt2, r50k, p50k, cl100k, o200k, llama3, qwen) or from the number of tokens, see tokenizer_tiktoken.c.
Error *tokenizer_load(const char *path, Tokenizer **out) MUST_CHECK;
// The same from memory. `name` stands for the file in messages, and for hints.
Error *tokenizer_load_bytes(const char *name, const char *bytes, size_t size, Tokenizer **out) MUST_CHECK;
void tokenizer_free(Tokenizer *tokenizer);

// The number of ids, highest id + 1 (added tokens included).
int32_t tokenizer_vocabulary(const Tokenizer *tokenizer);

// The id that ends a document (<|endoftext|> and its kin), -1 where there is none (plain bytes).
int32_t tokenizer_end_of_text(const Tokenizer *tokenizer);

// Tokenizers with equal fingerprints encode every text to the same ids and decode them to the same bytes.
uint64_t tokenizer_fingerprint(const Tokenizer *tokenizer);

// The bytes that `id` stands for in decoded text; NULL with size 0 for an id that is none. Special tokens decode to nothing
// when `with_special` is false.
const char *tokenizer_token(const Tokenizer *tokenizer, int32_t id, bool with_special, size_t *size);

// Appends lines that describe the tokenizer: its format, sizes, pattern, normalizer, added tokens, fingerprint.
void tokenizer_describe(const Tokenizer *tokenizer, Buffer *out);

// An encoder. Not shared between threads.
Encoder *encoder_create(const Tokenizer *tokenizer);
void encoder_free(Encoder *encoder);

// Appends the ids of one whole text. `text` must be valid UTF-8. Added tokens in the text (such as "<|endoftext|>") are
// recognised, as the reference implementation does, if `added_tokens`; for corpora that is false for special ones.
void encoder_encode(Encoder *encoder, const char *text, size_t size, bool special_tokens, Tokens *out);

// The same in pieces of any size (cut anywhere, even inside a character), in bounded memory: ids that can no longer change are
// appended as the text arrives. The ids equal those of encoder_encode on the whole.
void encoder_feed(Encoder *encoder, const char *text, size_t size, bool special_tokens, Tokens *out);
void encoder_finish(Encoder *encoder, bool special_tokens, Tokens *out);

// Appends the bytes of these ids (not necessarily whole characters). Ids out of range are skipped.
void tokenizer_decode(const Tokenizer *tokenizer, const int32_t *ids, size_t count, bool with_special, Buffer *out);
