// Descriptors of tensors for TMA: made by the driver, kept for the next call with the same tensor.
#pragma once

#include "kernels/cuda/card.h"

#include <cuda.h>

namespace BACKEND {

enum { TENSOR_MAP_MOST_DIMENSIONS = 5 };

// A tensor in device memory and the box that one TMA instruction moves. Dimension 0 is the fastest and has stride 1. Boxes lie
// in shared memory with the 128-byte swizzle, so box[0] is at most 128 bytes; a box of fewer than 128 bytes a row has no
// swizzle that the kernels use, so box[0] is exactly 128 bytes. Reads outside of `extent` give 0.
typedef struct TensorBox {
    const void *base;
    DataType type;
    int dimensions;                              // 1 to 5
    int64_t extent[TENSOR_MAP_MOST_DIMENSIONS];  // in elements, at most 2^32
    int64_t stride[TENSOR_MAP_MOST_DIMENSIONS];  // in elements; stride[0] is 1
    int box[TENSOR_MAP_MOST_DIMENSIONS];         // in elements, at most 256
} TensorBox;

// *map = the descriptor. False where TMA cannot read such a tensor (base not aligned to 16 bytes, a stride that is no multiple
// of 16 bytes or not below 2^40) or the driver has no TMA.
bool tensor_map(Card *card, const TensorBox *tensor, CUtensorMap *map);

// Frees what tensor_map keeps; when the card is closed.
void tensor_maps_release(Card *card);

}  // namespace BACKEND
