// TMA's descriptors and the boxes that they describe. What lies in a CUtensorMap here is a TensorMap.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>

namespace simulator {

struct TensorMap {
    uint64_t magic;
    unsigned char *address;
    uint64_t stride[5];  // bytes; that of dimension 0 is element_bytes
    uint32_t dimension_less_1[5];
    uint16_t box[5];
    uint8_t element_stride[5];
    uint8_t rank, type, swizzle, fill_nan;
};

// The map in a descriptor that a kernel got; NULL where there is none.
const TensorMap *tensor_map_of(const CUtensorMap *descriptor);

int tensor_map_element_bytes(const TensorMap &map);
// Bytes of shared memory that a box takes, and that arrive at a barrier.
size_t tensor_map_box_bytes(const TensorMap &map);

// Copies the box at a coordinate between global memory and shared memory, whose first byte is at `shared` and has the address
// `offset` (of which the swizzle takes its bits). `add` adds fp32.
void tensor_map_load(const TensorMap &map, const int *coordinate, unsigned char *shared, unsigned offset);
void tensor_map_store(const TensorMap &map, const int *coordinate, const unsigned char *shared, unsigned offset, bool add);

// The place of a byte at `address` under a swizzle that spans 32, 64 or 128 bytes (16: none).
static inline unsigned swizzle_address(unsigned address, unsigned span) {
    return address ^ (address >> 7 & (span / 16 - 1)) << 4;
}

}  // namespace simulator
