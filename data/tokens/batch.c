// Batches: see batch.h.
#include "data/tokens/batch.h"

void batch_allocate(Batch *batch, int64_t sequences, int64_t length) {
    batch_place(batch, memory_tensor(batch_bytes(sequences, length)), sequences, length);
}

void batch_place(Batch *batch, int32_t *memory, int64_t sequences, int64_t length) {
    size_t count = (size_t)(sequences * length);
    *batch = (Batch){.sequences = sequences, .length = length, .tokens = memory};
    batch->targets = batch->tokens + count;
    batch->loss_weights = (float *)(void *)(batch->targets + count);
    batch->first = (int32_t *)(void *)(batch->loss_weights + count);
    batch->positions = batch->first + count;
}

void batch_free(Batch *batch) {
    memory_tensor_free(batch->tokens, batch_bytes(batch->sequences, batch->length));
    *batch = (Batch){0};
}

size_t batch_bytes(int64_t sequences, int64_t length) {
    return (size_t)(sequences * length) * BATCH_ARRAYS * sizeof(int32_t);
}

const void *batch_block(const Batch *batch) {
    Batch block;
    batch_place(&block, batch->tokens, batch->sequences, batch->length);
    ensure(batch->targets == block.targets && batch->loss_weights == block.loss_weights && batch->first == block.first &&
               batch->positions == block.positions,
           "a batch whose arrays are no block");
    return batch->tokens;
}

void batch_fill_empty(Batch *batch, int64_t b) {
    for (int64_t t = 0, i = b * batch->length; t < batch->length; t++, i++) {
        batch->tokens[i] = 0;
        batch->targets[i] = -1;
        batch->loss_weights[i] = 0;
        batch->first[i] = 0;
        batch->positions[i] = (int32_t)t;
    }
}

Error *batch_fill(Batch *batch, int64_t b, const TokenFile *file, int64_t first_token, int32_t end_of_text,
                  bool documents_apart) {
    int64_t length = batch->length, base = b * length;
    int64_t inputs = file->tokens - 1 - first_token;
    inputs = inputs < length ? inputs : length;
    ensure(first_token >= 0 && inputs >= 1, "a sample from token %lld of %lld", (long long)first_token,
           (long long)file->tokens);
    batch_fill_empty(batch, b);
    int32_t *tokens = batch->tokens + base, *targets = batch->targets + base;
    TRY(token_file_read(file, first_token, inputs, tokens));
    for (int64_t t = 0; t + 1 < inputs; t++) {
        targets[t] = tokens[t + 1];
    }
    TRY(token_file_read(file, first_token + inputs, 1, &targets[inputs - 1]));
    for (int64_t t = 0; t < inputs; t++) {
        batch->loss_weights[base + t] = 1;
    }
    if (!documents_apart) {
        return NULL;
    }
    // Walk the document starts inside (first_token, first_token + inputs]: `seam` is the input index of a document's first
    // token.
    int64_t begin = 0, document = token_file_document_at(file, first_token) + 1;
    for (;;) {
        int64_t seam = document < file->documents ? token_file_document_start(file, document) - first_token : inputs + 1;
        document++;
        bool opened_by_end =
            seam <= inputs && (seam < inputs ? tokens[seam - 1] : tokens[inputs - 1]) == end_of_text && end_of_text >= 0;
        int64_t end = seam > inputs ? inputs : opened_by_end ? seam - 1 : seam;
        for (int64_t t = begin; t < end; t++) {
            batch->first[base + t] = (int32_t)begin;
            batch->positions[base + t] = (int32_t)(t - begin);
        }
        if (seam > inputs) {
            break;
        }
        if (!opened_by_end) {
            batch->loss_weights[base + seam - 1] = 0;  // the next document's first token cannot be foretold from this one
            targets[seam - 1] = -1;
        }
        begin = end > begin ? end : begin;
    }
    for (int64_t t = inputs; t < length; t++) {
        batch->first[base + t] = (int32_t)inputs;  // padding sees only padding
        batch->positions[base + t] = (int32_t)(t - inputs);
    }
    return NULL;
}
