// The CPU backend: one source, compiled once per instruction set.
//
// CMake compiles every kernels/cpu/*.c with CPU_VARIANT = baseline, avx2, avx512 (x86-64) or baseline alone (elsewhere: on
// arm64 that is NEON). A function that other files of the backend call is named CPU_NAME(x), so that the variants do not clash;
// everything else is static. Vectors are the compiler's own (vector.h), not intrinsics of one machine, wherever both reach the
// same speed.
#pragma once

#include "kernels/kernels.h"

extern const Operations cpu_operations_baseline;
#if defined(__x86_64__)
extern const Operations cpu_operations_avx2;
extern const Operations cpu_operations_avx512;
#endif

#ifdef CPU_VARIANT
#define CPU_PASTE_(a, b) a##_##b
#define CPU_PASTE(a, b) CPU_PASTE_(a, b)
#define CPU_NAME(name) CPU_PASTE(name, CPU_VARIANT)

// The operations of this variant, each in the file of its name, and a body of one of them.
#define DECLARE(operation, ...) void CPU_NAME(cpu_##operation)(Device * device, __VA_ARGS__);
EACH_OPERATION(DECLARE)
#undef DECLARE
void CPU_NAME(cpu_attention_decode)(Device *device, const AttentionForward *a);  // a body of attention_forward
#endif
