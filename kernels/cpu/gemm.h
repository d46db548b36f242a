// The matrix product under all products of the CPU backend: C[M,N] = A[M,K] B[K,N], with what surrounds it fused in.
//
// Blocks as in Goto & van de Geijn 2008 ("Anatomy of high-performance matrix multiplication"): gemm_kernel.h computes a tile of
// C that fits the registers, gemm_pack.h lays out what it reads, gemm.c cuts the product into tasks for the threads.
//
// Every element of C is one sum over k = 0 .. K-1 in order, in blocks of k whose bounds depend on K alone; so its bits do not
// depend on the number of threads.
#pragma once

#include "kernels/cpu/cpu.h"
#include "kernels/device.h"

typedef struct Gemm {
    int64_t m, n, k;
    const float *a;  // A[m,k] at a[m * a_stride + k], or a[k * a_stride + m] where a_transposed
    int64_t a_stride;
    const float *b;  // B[k,n] at b[k * b_stride + n], or b[n * b_stride + k] where b_transposed
    int64_t b_stride;
    bool a_transposed, b_transposed;
    bool accumulate;  // c += instead of c =; not together with bias, activation or residual
    Activation activation;
    const float *bias;      // [N], may be NULL
    const float *residual;  // like c, may be NULL, may be c
    const float *slope_at;  // like c: the product is multiplied by activation'(slope_at); NULL: activation is applied to it
    float *pre;             // like c: = the value before the activation, may be NULL
    float *c;  // C[m,n] at c[m * c_stride + n]; residual, slope_at and pre have this stride too; NULL: a_sums alone
    int64_t c_stride;
    float *a_sums;  // [M] += sums of A over k (a_transposed only), may be NULL
} Gemm;

void CPU_NAME(gemm)(Device *device, const Gemm *g);

// The same for at most GEMM_FEW_ROWS rows and B stored transposed, which then is read once, at the speed of memory
// (gemm_few.c). gemm calls it.
enum { GEMM_FEW_ROWS = 16 };
void CPU_NAME(gemm_few)(Device *device, const Gemm *g);
