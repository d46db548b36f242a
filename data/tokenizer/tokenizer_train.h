// Training a tokenizer: text in, tokenizer.json out.
//
// Ids 0 to 255 are the bytes themselves, then come the merges in the order in which they were learned, then <|endoftext|>. A
// vocabulary of 256 has neither merges nor <|endoftext|>, one of 257 no merges. The file depends on the text and its order
// alone, not on the number of threads. Hugging Face's library loads it and encodes with it to the same ids.
#pragma once

#include "core/memory.h"
#include "core/threads.h"
#include "data/tokenizer/pretokenize.h"

typedef struct Trainer Trainer;

// `pool` stays the caller's; `kind` is PATTERN_GPT2, PATTERN_LLAMA3, PATTERN_QWEN or PATTERN_CL100K.
Trainer *trainer_create(ThreadPool *pool, PatternKind kind);
void trainer_free(Trainer *trainer);

// Adds a document, or the next part of one. From one thread; the text is not kept. Memory stays below about 1 GiB.
void trainer_add(Trainer *trainer, const char *text, size_t size);

// Learns the merges and appends the tokenizer.json to `out`. Where the text has too few repeated pairs the vocabulary becomes
// smaller than asked; *vocabulary is what it is. 256 <= size <= 1,000,000.
Error *trainer_finish(Trainer *trainer, int32_t size, Buffer *out, int32_t *vocabulary) MUST_CHECK;

// Rare words that were dropped to bound memory.
int64_t trainer_dropped(const Trainer *trainer);
