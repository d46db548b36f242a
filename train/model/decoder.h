// Generation: the model one token at a time, with the keys and values of earlier tokens kept.
//
//   Decoder *d = decoder_create(model, 4, 512);
//   decoder_prefill(d, 0, prompt, n, logits);          // each sequence by itself
//   decoder_step(d, tokens, logits);                   // then all sequences together
//
// Logits equal those of the full forward pass within rounding. Each sequence is one document from position 0.
#pragma once

#include "train/model/model.h"

typedef struct Decoder Decoder;

// `batch` sequences of at most `capacity` tokens (capped at the context). The model's parameters are used, not copied, and
// must outlive the decoder; the model may be one that trains.
Error *decoder_create(const Model *model, int64_t batch, int64_t capacity, Decoder **out) MUST_CHECK;
void decoder_destroy(Decoder *decoder);

int64_t decoder_capacity(const Decoder *decoder);
int64_t decoder_length(const Decoder *decoder, int64_t sequence);  // tokens held

// Restarts `sequence` with `count` tokens (1 .. capacity) and writes the logits [V] after the last one to host memory.
void decoder_prefill(Decoder *decoder, int64_t sequence, const int32_t *tokens, int64_t count, float *logits);

// Appends one token to each sequence (tokens[B]; every length must be under the capacity) and writes the logits [B,V].
void decoder_step(Decoder *decoder, const int32_t *tokens, float *logits);
