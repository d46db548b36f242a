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

// The operations of this variant, each in the file of its name.
void CPU_NAME(cpu_matmul_forward)(Device *device, const MatmulForward *a);
void CPU_NAME(cpu_matmul_backward_input)(Device *device, const MatmulBackwardInput *a);
void CPU_NAME(cpu_matmul_backward_weight)(Device *device, const MatmulBackwardWeight *a);
void CPU_NAME(cpu_attention_forward)(Device *device, const AttentionForward *a);
void CPU_NAME(cpu_attention_decode)(Device *device, const AttentionForward *a);  // a body of attention_forward
void CPU_NAME(cpu_attention_backward)(Device *device, const AttentionBackward *a);
void CPU_NAME(cpu_attention_merge)(Device *device, const AttentionMerge *a);
void CPU_NAME(cpu_norm_forward)(Device *device, const NormForward *a);
void CPU_NAME(cpu_norm_backward)(Device *device, const NormBackward *a);
void CPU_NAME(cpu_rotary)(Device *device, const Rotary *a);
void CPU_NAME(cpu_activation_forward)(Device *device, const ActivationForward *a);
void CPU_NAME(cpu_gated_forward)(Device *device, const GatedForward *a);
void CPU_NAME(cpu_gated_backward)(Device *device, const GatedBackward *a);
void CPU_NAME(cpu_embedding_forward)(Device *device, const EmbeddingForward *a);
void CPU_NAME(cpu_embedding_backward)(Device *device, const EmbeddingBackward *a);
void CPU_NAME(cpu_dropout)(Device *device, const Dropout *a);
void CPU_NAME(cpu_classifier)(Device *device, const Classifier *a);
int64_t CPU_NAME(cpu_classifier_scratch_bytes)(DataType type, int64_t chunk_rows, int64_t width, int64_t vocabulary);
void CPU_NAME(cpu_add)(Device *device, int64_t count, const void *x, void *y);
void CPU_NAME(cpu_zero)(Device *device, int64_t bytes, void *x);
void CPU_NAME(cpu_scale)(Device *device, int64_t count, float scale, float *x);
void CPU_NAME(cpu_convert)(Device *device, const Convert *a);
void CPU_NAME(cpu_copy_rows)(Device *device, const CopyRows *a);
void CPU_NAME(cpu_squares)(Device *device, int64_t count, const float *x, double *sum);
void CPU_NAME(cpu_loss_sums)(Device *device, const LossSums *a);
void CPU_NAME(cpu_step_decide)(Device *device, const StepDecide *a);
void CPU_NAME(cpu_optimizer_update)(Device *device, const OptimizerUpdate *a);
void CPU_NAME(cpu_sample)(Device *device, const Sample *a);
int64_t CPU_NAME(cpu_sample_scratch_bytes)(int64_t rows, int64_t vocabulary);
#endif
