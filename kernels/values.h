// Values of any element type as floats of the host, and back: for what goes in and out of devices and files.
#pragma once

#include "core/data_type.h"

// The values of `count` elements, exactly. `from` points at the first of them, which lies `at` elements behind the start of a
// block; `scales` (NULL where the type has none) at the scale of its block.
void values_widen(DataType type, const void *from, const float *scales, int64_t at, int64_t count, float *to);

// `count` values to the nearest that the type has; from the start of a block where it has scales. Then `to` has room for whole
// blocks, whose last codes are those of zeros.
void values_narrow(DataType type, const float *from, int64_t count, void *to, float *scales);
