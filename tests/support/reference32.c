// The same formulas in single precision: see reference.h and reference_body.h.
#define REAL float
#define REFERENCE(name) reference32_##name
#include "tests/support/reference_body.h"
