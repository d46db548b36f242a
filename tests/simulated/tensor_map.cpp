// See tensor_map.h. The limits are those of cuTensorMapEncodeTiled's description in CUDA's <cuda.h>: addresses, strides and the
// rows of boxes are multiples of 16 bytes; extents are any. It makes each stride of the one before it, so none may be less.
#include "tests/simulated/tensor_map.h"

#include <cmath>
#include <cstring>

namespace simulator {

static const uint64_t MAGIC = 0x70616D726F736E54;

static int element_bytes(int type) {
    switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8:
        return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
        return 2;
    case CU_TENSOR_MAP_DATA_TYPE_UINT64:
    case CU_TENSOR_MAP_DATA_TYPE_INT64:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT64:
        return 8;
    default:
        return 4;
    }
}

static bool is_floating(int type) {
    return type >= CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
}

// Bytes that a swizzle spans; 16: none.
static unsigned swizzle_span(int swizzle) {
    return 16u << swizzle;  // none, 32, 64, 128
}

int tensor_map_element_bytes(const TensorMap &map) {
    return element_bytes(map.type);
}

const TensorMap *tensor_map_of(const CUtensorMap *descriptor) {
    const TensorMap *map = (const TensorMap *)descriptor;
    return (uintptr_t)descriptor % 64 == 0 && map->magic == MAGIC ? map : NULL;
}

static int box_elements(const TensorMap &map, int i) {
    return (map.box[i] + map.element_stride[i] - 1) / map.element_stride[i];
}

size_t tensor_map_box_bytes(const TensorMap &map) {
    size_t bytes = (size_t)element_bytes(map.type);
    for (int i = 0; i < map.rank; i++) {
        bytes *= (size_t)box_elements(map, i);
    }
    return bytes;
}

// Calls copy(global, shared, offset, bytes, inside) for each run of 16 bytes or less of the box; `inside` is how many of the
// bytes lie in the tensor.
template <typename Copy> static void for_box(const TensorMap &map, const int *coordinate, unsigned offset, Copy copy) {
    unsigned span = swizzle_span(map.swizzle);
    int64_t element = element_bytes(map.type), row_bytes = map.box[0] * element;
    int count[5], at[5] = {};
    for (int i = 0; i < 5; i++) {
        count[i] = i < map.rank ? box_elements(map, i) : 1;
    }
    unsigned linear = offset;
    for (at[4] = 0; at[4] < count[4]; at[4]++) {
        for (at[3] = 0; at[3] < count[3]; at[3]++) {
            for (at[2] = 0; at[2] < count[2]; at[2]++) {
                for (at[1] = 0; at[1] < count[1]; at[1]++) {
                    unsigned char *row = map.address;
                    bool inside = true;
                    for (int i = 1; i < map.rank; i++) {
                        int64_t c = (int64_t)coordinate[i] + (int64_t)at[i] * map.element_stride[i];
                        inside = inside && c >= 0 && c <= (int64_t)map.dimension_less_1[i];
                        row += c * (int64_t)map.stride[i];
                    }
                    int64_t begin = coordinate[0] * element, end = ((int64_t)map.dimension_less_1[0] + 1) * element;
                    for (int64_t x = 0; x < row_bytes; x += 16, linear += 16) {
                        // The part of these 16 bytes that lies in the tensor.
                        int64_t first = inside && begin + x < 0 ? -(begin + x) : 0;
                        int64_t last = inside ? end - (begin + x) : 0;
                        first = first < 16 ? first : 16;
                        last = last < 0 ? 0 : last < 16 ? last : 16;
                        copy(row + begin + x, swizzle_address(linear, span) - offset, (int)first, (int)last);
                    }
                }
            }
        }
    }
}

void tensor_map_load(const TensorMap &map, const int *coordinate, unsigned char *shared, unsigned offset) {
    unsigned char outside[16] = {};
    if (map.fill_nan) {
        memset(outside, 0xFF, sizeof outside);
    }
    for_box(map, coordinate, offset, [&](const unsigned char *global, unsigned to, int first, int last) {
        memcpy(shared + to, outside, 16);
        if (first < last) {
            memcpy(shared + to + first, global + first, (size_t)(last - first));
        }
    });
}

void tensor_map_store(const TensorMap &map, const int *coordinate, const unsigned char *shared, unsigned offset, bool add) {
    for_box(map, coordinate, offset, [&](unsigned char *global, unsigned from, int first, int last) {
        if (first >= last) {
            return;
        }
        if (!add) {
            memcpy(global + first, shared + from + first, (size_t)(last - first));
            return;
        }
        for (int i = first; i < last; i += 4) {
            float x, y;
            memcpy(&x, global + i, 4);
            memcpy(&y, shared + from + i, 4);
            x += y;
            memcpy(global + i, &x, 4);
        }
    });
}

}  // namespace simulator

extern "C" CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                           const cuuint64_t *dimensions, const cuuint64_t *strides, const cuuint32_t *box,
                                           const cuuint32_t *element_strides, CUtensorMapInterleave interleave,
                                           CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                           CUtensorMapFloatOOBfill fill) {
    using namespace simulator;
    if (map == NULL || (uintptr_t)map % 64 != 0 || address == NULL || (uintptr_t)address % 16 != 0 || dimensions == NULL ||
        box == NULL || element_strides == NULL) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if ((int)type < 0 || type > CU_TENSOR_MAP_DATA_TYPE_TFLOAT32_FTZ || rank < 1 || rank > 5 || (rank > 1 && strides == NULL)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    // Interleaved layouts and the swizzles of other atoms exist, but are not modelled.
    if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE || (int)swizzle < 0 || swizzle > CU_TENSOR_MAP_SWIZZLE_128B ||
        (int)promotion < 0 || promotion > CU_TENSOR_MAP_L2_PROMOTION_L2_256B || (int)fill < 0 || (int)fill > 1) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA && !is_floating(type)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    TensorMap result = {};
    result.magic = MAGIC;
    result.address = (unsigned char *)address;
    result.rank = (uint8_t)rank;
    result.type = (uint8_t)type;
    result.swizzle = (uint8_t)swizzle;
    result.fill_nan = fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA;
    cuuint64_t element = (cuuint64_t)element_bytes(type);
    for (cuuint32_t i = 0; i < rank; i++) {
        cuuint64_t stride = i == 0 ? element : strides[i - 1];
        if (dimensions[i] == 0 || dimensions[i] > (cuuint64_t)1 << 32 || box[i] == 0 || box[i] > 256 ||
            element_strides[i] == 0 || element_strides[i] > 8) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        cuuint64_t least = i == 0 ? element : i == 1 ? dimensions[0] * element : strides[i - 2];
        if ((i > 0 && (stride % 16 != 0 || stride >= (cuuint64_t)1 << 40)) || stride < least) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        result.dimension_less_1[i] = (uint32_t)(dimensions[i] - 1);
        result.stride[i] = stride;
        result.box[i] = (uint16_t)box[i];
        result.element_stride[i] = (uint8_t)(i == 0 ? 1 : element_strides[i]);
    }
    if (box[0] * element % 16 != 0 || (swizzle != CU_TENSOR_MAP_SWIZZLE_NONE && box[0] * element > swizzle_span(swizzle))) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    memcpy(map->opaque, &result, sizeof result);
    memset((char *)map->opaque + sizeof result, 0, sizeof map->opaque - sizeof result);
    static_assert(sizeof result <= sizeof map->opaque);
    return CUDA_SUCCESS;
}
