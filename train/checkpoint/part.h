// A part of a tensor in memory: its size, whether it may be quantised, its values as floats, its digest.
#pragma once

#include "train/checkpoint/checkpoint.h"

static inline int64_t part_count(const CheckpointPart *part) {
    return boxes_count(part->boxes, part->box_count);
}

// Bytes of `count` elements and of the scales that belong to them, the first at the start of a block.
static inline int64_t part_scale_bytes(DataType type, int64_t count) {
    return data_type_scales(type, count) * (int64_t)sizeof(float);
}
static inline int64_t part_bytes(DataType type, int64_t count) {
    return count * data_type_bytes(type);
}

// Whether these boxes hold whole blocks of DATA_TYPE_BLOCK neighbours of the row-major tensor in rising order, so that block i
// of the part is one block of the tensor; the tensor's last block may be short. The boxes must lie within the tensor.
bool part_has_whole_blocks(const CheckpointTensor *tensor, const CheckpointPart *part);

// What the part adds to its tensor's digest (core/digest.h).
uint64_t part_digest(const CheckpointTensor *tensor, const CheckpointPart *part, const void *elements, const float *scales);
