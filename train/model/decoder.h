// Generation: the model one token at a time, with the keys and values of earlier tokens kept.
//
//   TRY(decoder_create(model, 4, 512, &d));
//   decoder_prefill(d, 0, prompt, n);                   // each sequence by itself
//   decoder_draw(d, &sampling, usable, &index, &token); // where the logits are: they stay on the device
//   decoder_step(d, tokens);                            // then all sequences together
//
// Logits equal those of the full forward pass within rounding. Each sequence is one document from position 0.
#pragma once

#include "train/model/model.h"

typedef struct Decoder Decoder;

// `batch` sequences of at most `capacity` tokens, for which the device gets memory of its own. The model's parameters are used,
// not copied, and must outlive the decoder; the model may be one that trains. Errors: a capacity over the context, more memory
// than the device has.
Error *decoder_create(const Model *model, int64_t batch, int64_t capacity, Decoder **out) MUST_CHECK;
void decoder_destroy(Decoder *decoder);

// Adds to a plan the line of what a decoder takes of a machine's memory.
// `model`: of the rank.
void decoder_plan(const ModelConfig *config, const ModelOptions *model, const Machine *machine, int64_t batch, int64_t capacity,
                  MemoryPlan *plan);

int64_t decoder_capacity(const Decoder *decoder);
int64_t decoder_length(const Decoder *decoder, int64_t sequence);  // tokens held

// Appends `count` tokens (1 .. what the capacity leaves) to `sequence`. Its logits after the last one are then the decoder's
// only row. Prefill restarts the sequence with them.
void decoder_extend(Decoder *decoder, int64_t sequence, const int32_t *tokens, int64_t count);
void decoder_prefill(Decoder *decoder, int64_t sequence, const int32_t *tokens, int64_t count);

// Appends one token to each sequence (tokens[B]; every length must be under the capacity). There is a row of logits for each.
void decoder_step(Decoder *decoder, const int32_t *tokens);

typedef struct Sampling {
    double temperature;  // 0: the most likely token (the lowest id among equals)
    int64_t top_k;       // 0: all
    double top_p;        // 1: all
    uint64_t seed;
} Sampling;

// Draws a token from each row of logits into tokens[r] of the host: one of the ids below `usable` (the tokenizer's, where the
// vocabulary is padded). index[r] is the token's number in its text, from which and the seed chance is drawn. Waits.
// A row with a logit below `usable` that is not finite draws -1, and nothing can go on from it: decoder_not_finite says why.
void decoder_draw(Decoder *decoder, const Sampling *sampling, int64_t usable, const int64_t *index, int32_t *tokens);

// The rows of logits [rows, V], to host memory. Waits.
void decoder_logits(const Decoder *decoder, float *logits);

// Why the logits behind these tokens (a sequence's, at most the capacity) are not finite: see pass_not_finite. The sequences
// stay as they are, the logits do not. Waits. The caller frees the text.
char *decoder_not_finite(Decoder *decoder, const int32_t *tokens, int64_t count);
