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
    batch->positions = (int32_t *)(void *)(batch->loss_weights + count);
    batch->first = batch->positions + count;
}

Batch batch_at(const Batch *batch, int32_t *memory) {
    Batch at;
    batch_place(&at, memory, batch->sequences, batch->length);
    at.first_sample = batch->first_sample;
    at.ranks = batch->ranks;
    return at;
}

void batch_free(Batch *batch) {
    memory_tensor_free(batch->tokens, batch_block_bytes(batch));
    *batch = (Batch){0};
}

size_t batch_bytes(int64_t sequences, int64_t length) {
    return (size_t)(sequences * length) * BATCH_ARRAYS * sizeof(int32_t);
}

size_t batch_cut_bytes(int64_t sequences, int64_t length, int ranks) {
    if (ranks <= 1) {
        return batch_bytes(sequences, length);
    }
    int64_t part = sequences * (length / (2 * ranks));
    return (size_t)((BATCH_ARRAYS - 1) * 2 * part + (2 * ranks + 1) * part) * sizeof(int32_t);
}

size_t batch_block_bytes(const Batch *batch) {
    return batch->ranks == 0 ? batch_bytes(batch->sequences, batch->length)
                             : batch_cut_bytes(batch->sequences / 2, batch->length * 2 * batch->ranks, batch->ranks);
}

// The half of what a rank has: parts `part` of all sequences.
static void cut_half(const Batch *whole, int rank, int ranks, int half, Batch *out) {
    int64_t length = out->length, part = batch_part(rank, ranks, half);
    size_t bytes = (size_t)length * sizeof(int32_t);
    for (int64_t b = 0; b < whole->sequences; b++) {
        int64_t from = b * whole->length + part * length, to = (half * whole->sequences + b) * length;
        memcpy(out->tokens + to, whole->tokens + from, bytes);
        memcpy(out->targets + to, whole->targets + from, bytes);
        memcpy(out->loss_weights + to, whole->loss_weights + from, bytes);
        memcpy(out->positions + to, whole->positions + from, bytes);
        for (int64_t keys = 0; keys <= part; keys++) {
            int32_t *first = out->first + (batch_pair(rank, half, keys) * whole->sequences + b) * length;
            for (int64_t t = 0; t < length; t++) {
                first[t] = whole->first[from + t] - (int32_t)(keys * length);
            }
        }
    }
}

Batch batch_cut(const Batch *whole, int rank, int ranks, int32_t *memory) {
    ensure(whole->ranks == 0 && rank >= 0 && rank < ranks && whole->length % (2 * ranks) == 0,
           "sequences of %lld tokens among %d ranks", (long long)whole->length, ranks);
    Batch out;
    batch_place(&out, memory, 2 * whole->sequences, whole->length / (2 * ranks));
    out.first_sample = whole->first_sample;
    out.ranks = ranks;
    cut_half(whole, rank, ranks, 0, &out);
    cut_half(whole, rank, ranks, 1, &out);
    return out;
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
