// Text from a model: a prompt is read at once, then token after token is drawn and fed back.
#pragma once

#include "data/tokenizer/tokenizer.h"
#include "train/model/decoder.h"

// How a token is drawn (Holtzman et al. 2020). A function of (seed, number of the token), like all randomness.
typedef struct GenerateOptions {
    int64_t tokens;  // at most; fewer where the model ends its text
    Sampling sampling;
} GenerateOptions;

// Receives the bytes of each token as it is drawn (not necessarily whole characters). False ends the text: nobody reads it.
typedef bool (*GenerateSink)(void *context, const char *bytes, size_t size);

// Continues `prompt` (valid UTF-8, may be empty: a new document). The text grows beyond the model's context by forgetting its
// older half; of a prompt beyond the context only the end is read, which a warning says. *drawn (may be NULL) is the number of
// tokens. ERROR_NOT_FINITE where the logits are not: after the tokens before, if any, have gone to the sink.
Error *generate_text(const Model *model, const Tokenizer *tokenizer, const char *prompt, size_t prompt_size,
                     const GenerateOptions *options, GenerateSink sink, void *context, int64_t *drawn) MUST_CHECK;

// The same into a buffer, which is appended to, before an error too.
Error *generate_to_buffer(const Model *model, const Tokenizer *tokenizer, const char *prompt, const GenerateOptions *options,
                          Buffer *out) MUST_CHECK;
