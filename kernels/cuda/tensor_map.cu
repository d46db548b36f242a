// The cache of TMA descriptors. Tensors of a training run stay where they are, so after the first step every lookup hits; a
// descriptor is a function of its key alone, so an entry that another tensor takes over is merely made again.
#include "kernels/cuda/tensor_map.h"

namespace BACKEND {

enum { TENSOR_MAPS = 4096 };

typedef CUresult (*EncodeTiled)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *, const cuuint64_t *,
                                const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

typedef struct TensorMapEntry {
    bool used;
    TensorBox key;
    CUtensorMap map;
} TensorMapEntry;

struct TensorMaps {
    EncodeTiled encode;  // NULL: the driver has none
    TensorMapEntry entries[TENSOR_MAPS];
};

static struct TensorMaps *maps_of(Card *card) {
    if (card->maps == NULL) {
        card->maps = (struct TensorMaps *)memory_tensor(sizeof(struct TensorMaps));
        void *function = NULL;
        cudaDriverEntryPointQueryResult found;
        // The library of the driver is not linked, so that one program runs with and without a card.
        cudaError_t result =
            cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
        if (result == cudaSuccess && found == cudaDriverEntryPointSuccess) {
            card->maps->encode = (EncodeTiled)function;
        }
    }
    return card->maps;
}

void tensor_maps_release(Card *card) {
    memory_tensor_free(card->maps, sizeof(struct TensorMaps));
    card->maps = NULL;
}

static bool same_tensor(const TensorBox *a, const TensorBox *b) {
    bool same = a->base == b->base && a->type == b->type && a->dimensions == b->dimensions;
    for (int i = 0; same && i < a->dimensions; i++) {
        same = a->extent[i] == b->extent[i] && a->stride[i] == b->stride[i] && a->box[i] == b->box[i];
    }
    return same;
}

static uint64_t hash_tensor(const TensorBox *a) {
    uint64_t hash = (uint64_t)(uintptr_t)a->base + (uint64_t)a->type;
    for (int i = 0; i < a->dimensions; i++) {
        hash = (hash ^ (uint64_t)a->extent[i]) * 0x9E3779B97F4A7C15u;
        hash = (hash ^ (hash >> 32) ^ (uint64_t)a->stride[i] ^ (uint64_t)a->box[i] << 40) * 0x9E3779B97F4A7C15u;
    }
    return hash >> 32;
}

static bool encode(EncodeTiled function, const TensorBox *a, CUtensorMap *map) {
    int64_t bytes = data_type_bytes(a->type);
    cuuint64_t extent[TENSOR_MAP_MOST_DIMENSIONS], stride[TENSOR_MAP_MOST_DIMENSIONS];
    cuuint32_t box[TENSOR_MAP_MOST_DIMENSIONS], step[TENSOR_MAP_MOST_DIMENSIONS];
    for (int i = 0; i < a->dimensions; i++) {
        extent[i] = (cuuint64_t)a->extent[i];
        box[i] = (cuuint32_t)a->box[i];
        step[i] = 1;
        if (i > 0) {
            int64_t apart = a->stride[i] * bytes;
            if (apart % 16 != 0 || apart >= (int64_t)1 << 40) {
                return false;
            }
            stride[i - 1] = (cuuint64_t)apart;  // of dimension 0 none is given
        }
    }
    CUtensorMapDataType type = a->type == TYPE_BF16   ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                               : a->type == TYPE_FP16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                      : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    return function(map, type, (cuuint32_t)a->dimensions, (void *)a->base, extent, stride, box, step,
                    CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                    CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

bool tensor_map(Card *card, const TensorBox *tensor, CUtensorMap *map) {
    struct TensorMaps *maps = maps_of(card);
    if (maps->encode == NULL || ((uintptr_t)tensor->base & 15) != 0) {
        return false;
    }
    TensorMapEntry *entry = &maps->entries[hash_tensor(tensor) % TENSOR_MAPS];
    if (!entry->used || !same_tensor(&entry->key, tensor)) {
        entry->used = encode(maps->encode, tensor, &entry->map);
        entry->key = *tensor;
    }
    *map = entry->map;
    return entry->used;
}

}  // namespace BACKEND
