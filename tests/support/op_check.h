// Every operation of a list of devices against float64, over the table of cases in tests/support/ops.c.
//
// For each case: results within tolerance, inputs unchanged, not a byte written outside the buffers, "=" outputs fully
// overwritten, the same bits when run again and, on the CPU, with every number of threads.
//
// Tolerance: the largest error of an output may be twice the largest error of the plain formula in the same type (reference32,
// for 16-bit types with what they store rounded) plus the rounding floor, one unit in the last place of the output's largest
// value. Small cases are drawn several times and the errors pooled, because a single number says little about an error.
#pragma once

#include "tests/support/ops.h"

enum { OP_TWINS = 3, OP_DEVICES = 16 };

// Devices that must give the same bits: of the CPU with several numbers of threads, or one card.
typedef struct OpTwins {
    const char *label;
    DataType type;
    Device *of[OP_TWINS];  // NULL ends them
} OpTwins;

typedef struct OpDevices {
    int count;
    OpTwins twins[OP_DEVICES];
} OpDevices;

// All variants of the CPU, with 1, 2 and 3 threads.
void op_devices_cpu(OpDevices *devices);
// The simulated card as sm_80 and sm_90, or where ATHANOR_TEST_DEVICE is "cuda" the first real one; in fp32, bf16 and fp16.
// None where the build has none.
void op_devices_cards(OpDevices *devices);
void op_devices_close(OpDevices *devices);

// Checks every case on every device; with `each` above 1 one row in so many, which ones with the day, or ATHANOR_TEST_ROWS.
void op_check_cases(const OpDevices *devices, int each);

// Rounds to the nearest number of a type, ties to even.
float op_round(DataType type, float x);
// Between float and a type's elements.
void op_encode(DataType type, const float *from, void *to, int64_t count);
void op_decode(DataType type, const void *from, float *to, int64_t count);

// Fills a tensor from its description; OP_INT32 tensors hold int32_t.
void op_fill(const OpTensor *t, uint64_t seed, uint64_t stream, double *exact);
