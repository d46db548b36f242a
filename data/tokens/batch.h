// Batches: what a model sees of the corpus.
//
// A sample of T + 1 tokens gives T inputs and T targets. Where documents are kept apart, each one opens with the end-of-text
// token that closed the one before (so the model also learns how texts begin), sees nothing before it, and its positions start
// at 0. In a stream without end-of-text tokens a document opens with its own first token, and the prediction across the seam
// has weight 0.
#pragma once

#include "data/tokens/corpus.h"

typedef struct Batch {
    int64_t sequences, length;  // B, T
    int32_t *tokens;            // [B,T] in [0, vocabulary)
    int32_t *targets;           // [B,T] in [0, vocabulary), or -1 where the weight is 0
    float *loss_weights;        // [B,T] weight of each target in the loss
    int32_t *first;             // [B,T] the first position of the same sequence that position t may attend to
    int32_t *positions;         // [B,T]
    uint64_t first_sample;      // global index of sequence 0; sequence b is first_sample + b
} Batch;

enum { BATCH_ARRAYS = 5 };

// The arrays lie behind each other in one block, in the order above, so that one copy brings a batch to a card. Points them
// into memory for sequences * length * BATCH_ARRAYS elements.
void batch_place(Batch *batch, int32_t *memory, int64_t sequences, int64_t length);

// One block of memory for a batch of that size.
void batch_allocate(Batch *batch, int64_t sequences, int64_t length);
void batch_free(Batch *batch);
size_t batch_bytes(int64_t sequences, int64_t length);

// The block of a batch, batch_bytes(sequences, length) long. Not for one whose arrays are parts of a larger batch's.
const void *batch_block(const Batch *batch);

// Fills sequence b from tokens [first_token, first_token + length] of the file. A stream that ends earlier is padded with
// weight 0; at least two tokens must be there. `end_of_text` is -1 where there is none. Fails where the file cannot be read or
// is not what it was; the sequence is then undefined.
Error *batch_fill(Batch *batch, int64_t b, const TokenFile *file, int64_t first_token, int32_t end_of_text,
                  bool documents_apart) MUST_CHECK;

// Fills sequence b with padding of weight 0.
void batch_fill_empty(Batch *batch, int64_t b);
