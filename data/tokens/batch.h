// Batches: what a model sees of the corpus.
//
// A sample of T + 1 tokens gives T inputs and T targets. Where documents are kept apart, each one opens with the end-of-text
// token that closed the one before (so the model also learns how texts begin), sees nothing before it, and its positions start
// at 0. In a stream without end-of-text tokens a document opens with its own first token, and the prediction across the seam
// has weight 0.
//
// Ranks that share sequences (context parallelism) see parts of them. A sequence is cut into 2 C equal parts, and rank r of C
// has parts r and 2 C - 1 - r: of what a causal mask leaves, the first has little to look at and the second much, together the
// same on all ranks. So a batch is made whole, as on one rank, and then cut.
#pragma once

#include "data/tokens/corpus.h"

typedef struct Batch {
    int64_t sequences, length;  // B, T
    int32_t *tokens;            // [B,T] in [0, vocabulary)
    int32_t *targets;           // [B,T] in [0, vocabulary), or -1 where the weight is 0
    float *loss_weights;        // [B,T] weight of each target in the loss
    int32_t *positions;         // [B,T]
    int32_t *first;             // [B,T] the first position of the same sequence that position t may attend to
    uint64_t first_sample;      // global index of sequence 0; sequence b is first_sample + b
    int ranks;                  // that share the sequences, if it was cut: see batch_cut; 0: it is whole
} Batch;

enum { BATCH_ARRAYS = 5 };

// The arrays lie behind each other in one block, in the order above, so that one copy brings a batch to a card. Points them
// into memory for sequences * length * BATCH_ARRAYS elements.
void batch_place(Batch *batch, int32_t *memory, int64_t sequences, int64_t length);

// One block of memory for a batch of that size.
void batch_allocate(Batch *batch, int64_t sequences, int64_t length);
void batch_free(Batch *batch);
size_t batch_bytes(int64_t sequences, int64_t length);

// The block of a batch, batch_block_bytes long. Not for one whose arrays are parts of a larger batch's.
const void *batch_block(const Batch *batch);
size_t batch_block_bytes(const Batch *batch);

// A batch of the same shape in other memory, as a copy of the block will lie there.
Batch batch_at(const Batch *batch, int32_t *memory);

// What rank `rank` of `ranks` has of a batch whose length 2 * ranks divides, in memory of batch_cut_bytes. With P tokens a part
// the result has 2 B sequences of P tokens: the B parts `rank` of the sequences, then the B parts 2 ranks - 1 - rank. Tokens,
// targets, weights and positions are those of the whole batch. `first` is [2 ranks + 1, B, P]: an entry for each pair of an own
// part and a part of keys at or before it (batch_pair), counted from the first of these keys, as attention over them asks.
Batch batch_cut(const Batch *whole, int rank, int ranks, int32_t *memory);
size_t batch_cut_bytes(int64_t sequences, int64_t length, int ranks);  // of the whole batch; ranks 0 or 1: batch_bytes

// Which part of a sequence is the half (0 or 1) of what a rank has, and which entry of `first` is that of the half against part
// `keys`.
static inline int64_t batch_part(int rank, int ranks, int half) {
    return half == 0 ? rank : 2 * (int64_t)ranks - 1 - rank;
}
static inline int64_t batch_pair(int rank, int half, int64_t keys) {
    return half == 0 ? keys : rank + 1 + keys;
}

// Fills sequence b from tokens [first_token, first_token + length] of the file. A stream that ends earlier is padded with
// weight 0; at least two tokens must be there. `end_of_text` is -1 where there is none. Fails where the file cannot be read or
// is not what it was; the sequence is then undefined.
Error *batch_fill(Batch *batch, int64_t b, const TokenFile *file, int64_t first_token, int32_t end_of_text,
                  bool documents_apart) MUST_CHECK;

// Fills sequence b with padding of weight 0.
void batch_fill_empty(Batch *batch, int64_t b);
