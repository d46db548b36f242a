// TMA descriptors of tensors of 16-bit or fp32 elements. Host code.
#pragma once

#include "kernels/cuda/card.h"

#include <cuda.h>

namespace BACKEND {

// Describes a tensor of `rank` dimensions (2 to 5), the fastest first, whose rows lie `strides[i]` bytes apart along dimension
// i + 1 (multiples of 16), and the box that one instruction moves (its first dimension at most 128 bytes: the span of the
// swizzle). In shared memory boxes lie with the 128-byte swizzle (swizzle_128) where `swizzled`, else as they are. False where
// the driver cannot do it or refuses (an address or a stride that is no multiple of 16).
static inline bool tensor_map(CUtensorMap *map, DataType type, const void *address, int rank, const int64_t *sizes,
                              const int64_t *strides, const int *box, bool swizzled) {
    static decltype(&cuTensorMapEncodeTiled) encode = NULL;
    if (encode == NULL) {
        void *found = NULL;
        cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
        if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result) !=
                cudaSuccess ||
            result != cudaDriverEntryPointSuccess) {
            return false;
        }
        encode = (decltype(encode))found;
    }
    cuuint64_t dims[5], steps[4];
    cuuint32_t boxes[5], ones[5];
    for (int i = 0; i < rank; i++) {
        dims[i] = (cuuint64_t)sizes[i];
        boxes[i] = (cuuint32_t)box[i];
        ones[i] = 1;
        if (i + 1 < rank) {
            steps[i] = (cuuint64_t)strides[i];
        }
    }
    CUtensorMapDataType kind = type == TYPE_BF16   ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                               : type == TYPE_FP16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                   : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    return encode(map, kind, (cuuint32_t)rank, (void *)(uintptr_t)address, dims, steps, boxes, ones,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, swizzled ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace BACKEND
