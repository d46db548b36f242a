// The reference in double precision: see reference.h and reference_body.h.
#define REAL double
#define REFERENCE(name) reference64_##name
#define STORED(x) (x)
#include "tests/support/reference_body.h"
