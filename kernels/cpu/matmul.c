// The three products of a linear layer: contracts in kernels.h, the work in gemm.h.
//
//   forward          y[R,O]  = x[R,I] w[O,I]^T        A = x,     B = w^T
//   backward input   dx[R,I] = dy[R,O] w[O,I]         A = dy,    B = w
//   backward weight  dw[O,I] += dy[R,O]^T x[R,I]      A = dy^T,  B = x
#include "kernels/cpu/gemm.h"

void CPU_NAME(cpu_matmul_forward)(Device *device, const MatmulForward *a) {
    CPU_NAME(gemm)
    (device, &(Gemm){
                 .m = a->rows,
                 .n = a->out,
                 .k = a->in,
                 .a = a->x,
                 .a_stride = a->in,
                 .b = a->w,
                 .b_stride = a->in,
                 .b_transposed = true,
                 .bias = a->bias,
                 .residual = a->residual,
                 .activation = a->activation,
                 .pre = a->pre,
                 .c = a->y,
                 .c_stride = a->out,
             });
}

void CPU_NAME(cpu_matmul_backward_input)(Device *device, const MatmulBackwardInput *a) {
    ensure((a->pre == NULL) == (a->activation == ACTIVATION_NONE), "an activation's slope needs the value before it");
    CPU_NAME(gemm)
    (device, &(Gemm){
                 .m = a->rows,
                 .n = a->in,
                 .k = a->out,
                 .a = a->dy,
                 .a_stride = a->out,
                 .b = a->w,
                 .b_stride = a->in,
                 .activation = a->activation,
                 .slope_at = a->pre,
                 .accumulate = a->accumulate,
                 .c = a->dx,
                 .c_stride = a->in,
             });
}

void CPU_NAME(cpu_matmul_backward_weight)(Device *device, const MatmulBackwardWeight *a) {
    CPU_NAME(gemm)
    (device, &(Gemm){
                 .m = a->out,
                 .n = a->in,
                 .k = a->rows,
                 .a = a->dy,
                 .a_stride = a->out,
                 .a_transposed = true,
                 .b = a->x,
                 .b_stride = a->in,
                 .accumulate = true,
                 .c = a->dw,
                 .c_stride = a->in,
                 .a_sums = a->dbias,
             });
}
