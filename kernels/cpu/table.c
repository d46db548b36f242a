// The CPU backend's table of operations, one per instruction set (cpu.h).
#include "kernels/cpu/cpu.h"

#define TEXT_(name) #name
#define TEXT(name) TEXT_(name)
#define ROW(operation) .operation = CPU_NAME(cpu_##operation)

const Operations CPU_NAME(cpu_operations) = {
    .name = "cpu " TEXT(CPU_VARIANT),
    ROW(matmul_forward),
    ROW(matmul_backward_input),
    ROW(matmul_backward_weight),
    ROW(attention_forward),
    ROW(attention_backward),
    ROW(attention_merge),
    ROW(norm_forward),
    ROW(norm_backward),
    ROW(rotary),
    ROW(activation_forward),
    ROW(gated_forward),
    ROW(gated_backward),
    ROW(embedding_forward),
    ROW(embedding_backward),
    ROW(dropout),
    ROW(classifier),
    ROW(classifier_scratch_bytes),
    ROW(add),
    ROW(zero),
    ROW(scale),
    ROW(convert),
    ROW(copy_rows),
    ROW(squares),
    ROW(loss_sums),
    ROW(step_decide),
    ROW(optimizer_update),
    ROW(sample),
    ROW(sample_scratch_bytes),
};
