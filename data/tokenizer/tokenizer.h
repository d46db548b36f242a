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
// (gpt2, r50k, p50k, multilingual, cl100k, o200k, llama3, qwen), from the number of tokens, or from a first line that only we
// read, "# encoding gpt2 end-of-text 50257", which goes before both; see tokenizer_tiktoken.c.
Error *tokenizer_load(const char *path, Tokenizer **out) MUST_CHECK;
// The same from memory. `name` stands for the file in messages, and for hints.
Error *tokenizer_load_bytes(const char *name, const char *bytes, size_t size, Tokenizer **out) MUST_CHECK;
void tokenizer_free(Tokenizer *tokenizer);

// What a copy of its file under a name without a hint must begin with, so that it is read as this one was: a line with its end,
// or "" where nothing is needed.
const char *tokenizer_declaration(const Tokenizer *tokenizer);

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

// Appends the ids of one whole text, without what a post-processor would add around it. `text` must be valid UTF-8 (of anything
// else the ids mean nothing, but no harm is done). Special tokens in it ("<|endoftext|>") become their ids if `special`, and
// are text like any other if not: for corpora it is false. Added tokens that are not special are always recognised, as the
// reference implementation does. Time is linear in the size (n log n for a single piece of n bytes, 28 bytes of memory for
// each).
void encoder_encode(Encoder *encoder, const char *text, size_t size, bool special, Tokens *out);

// The same in parts of any size (cut anywhere, even inside a character): ids that can no longer change are appended as the text
// arrives, and those of all parts together equal those of encoder_encode on the whole. `special` must be the same for all
// parts. About 128 KiB of text wait at a time; more where there is no end of a word for so long (a megabyte of one letter waits
// for its end), and the whole text where the pattern is one that only PCRE2 knows.
void encoder_feed(Encoder *encoder, const char *text, size_t size, bool special, Tokens *out);
void encoder_finish(Encoder *encoder, bool special, Tokens *out);

// Bytes of fed text that wait, for who wants to bound them; and an end without the ids of what waits.
size_t encoder_waiting(const Encoder *encoder);
void encoder_forget(Encoder *encoder);

// Appends the bytes of these ids (not necessarily whole characters). Ids out of range are skipped.
void tokenizer_decode(const Tokenizer *tokenizer, const int32_t *ids, size_t count, bool with_special, Buffer *out);
