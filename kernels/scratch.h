// What operations need beside their arguments, as functions of sizes alone: the memory plan asks without a device, the kernels
// use the same. `card`: of cards, else of the CPU.
#pragma once

#include "core/data_type.h"

#include <stdbool.h>

// Floats that a row of the classifier keeps between its passes.
enum { CLASSIFIER_ROW_FLOATS = 4 };

// Elements from a row of logits to the next. On the CPU whole cache lines, and an odd number of them, so that equal columns of
// successive rows fall into different cache sets; on a card 8 columns, so that everything moves 16 bytes at a time.
static inline int64_t classifier_stride(bool card, int64_t vocabulary) {
    return card ? (vocabulary + 7) / 8 * 8 : ((vocabulary + 15) / 16 | 1) * 16;
}

// Classifier.scratch for `chunk_rows` rows of logits.
static inline int64_t classifier_scratch_bytes(bool card, DataType type, int64_t chunk_rows, int64_t vocabulary) {
    int64_t logits = chunk_rows * classifier_stride(card, vocabulary) * data_type_bytes(type);
    logits = card ? (logits + 255) / 256 * 256 : logits;
    return logits + chunk_rows * CLASSIFIER_ROW_FLOATS * (int64_t)sizeof(float);
}

// What attention takes of a CPU for each thread: all keys and values of a group and, with `backward`, their gradients; and
// blocks.
static inline int64_t attention_scratch_bytes(int64_t keys, int64_t head_width, bool backward) {
    enum { BLOCK = 64, LANES = 16 };  // at most, of all instruction sets
    int64_t padded = (head_width + LANES - 1) / LANES * LANES, rows = (keys + 1) / 2 * 2;
    int64_t floats = (backward ? 4 : 2) * rows * padded + 5 * BLOCK * padded + 3 * BLOCK * BLOCK + 3 * BLOCK;
    return (floats * (int64_t)sizeof(float) + 4095) / 4096 * 4096;
}

// Sample.scratch.
static inline int64_t sample_scratch_bytes(bool card, int64_t rows, int64_t vocabulary) {
    return rows * vocabulary * (card ? 4 : 8);
}
