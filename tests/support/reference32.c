// The same formulas in single precision: see reference.h and reference_body.h.
#include "tests/support/op_check.h"

#define REAL float
#define REFERENCE(name) reference32_##name
#define STORED(x) op_round(reference32_type, x)
#include "tests/support/reference_body.h"

DataType reference32_type = TYPE_FP32;
