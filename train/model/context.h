// Context parallelism: ranks share sequences, and keys and values go around a ring (Liu et al. 2023, "Ring attention").
//
// A sequence of T tokens is cut into 2 C equal parts, of which rank r of C has parts r and 2 C - 1 - r: what a causal mask
// leaves of their attention is the same amount on every rank (Brandon et al. 2023, "Striped attention", has the idea; this cut
// is that of Megatron's context parallelism). All that works on rows does not care. Attention works on pairs of parts, queries
// of one and keys of another, with the offset between them (kernels.h); pairs of which the mask hides everything are left out:
//
//     C = 2: rank 0 has parts 0 and 3, rank 1 has 1 and 2
//
//                     keys of part
//                     0  1  2  3      round 0  each rank attends to its own parts: 3 pairs
//     queries of 0    #               round s  to those of rank r - s, which came from rank r - 1
//                1    #  #                     while the round before was computed: 2 pairs, whatever r is
//                2    #  #  #
//                3    #  #  #  #
//
//     forward    keys and values [2 B P, 2 G D] go C - 1 times from rank r to r + 1. What the pairs of a query
//                give is joined in fp32 by attention_merge.
//     backward   the same, and behind them go the sums of their gradients, in fp32, which come home after C
//                times. Each is summed in one order: own rank first, then the ranks behind it. Gradients of
//                queries stay.
//
// A message is started before the products that hide it, and waited for behind them. All is deterministic if the kernels are.
// Dropout draws by position in the whole sequence (AttentionShape.key_first), so the ranks draw what one rank would.
//
// Errors of messages are kept and found as those of tensor-parallel ranks: TensorRanks (tensor.h).
#pragma once

#include "kernels/device.h"
#include "train/model/config.h"
#include "train/model/layout.h"

// A rank's share. ranks 0 or 1: it has whole sequences.
typedef struct ContextShare {
    int rank, ranks;
} ContextShare;

// What a ring needs beside a layer's activations; nothing where there is none. R = 2 B P rows, those of a rank.
typedef struct ContextBuffers {
    void *keys[2];    // [R, 2 G D] keys and values: those under way, and those being computed with
    float *dkeys[2];  // [R, 2 G D] sums of their gradients
    void *part;       // [R / 2, H D] what a pair of parts gives: outputs, or gradients of queries
    float *part_lse;  // [B,H,P]
    void *part_keys;  // [R / 2, 2 G D] gradients of keys and values
    float *sum;       // [R, H D] of outputs, or of gradients of queries
} ContextBuffers;

// Tokens of a part of a sequence of `length`, and those that a rank has of it.
int64_t context_part(const ContextShare *share, int64_t length);
int64_t context_tokens(const ContextShare *share, int64_t length);

// An error where sequences of that length cannot be cut, with lengths that can and how many ranks could share this one.
Error *context_check(const ContextShare *share, int64_t length) MUST_CHECK;

// `config`: what this rank has of the model. `rows`: of the largest batch, on this rank.
void context_lay_out(ContextBuffers *buffers, const ContextShare *share, const ModelConfig *config, int64_t rows,
                     bool forward_only, DataType type, Layout *layout);

// ---- Of a pass

typedef struct Pass Pass;
struct LayerActivations;

// Whether this pass sees parts of sequences.
bool context_is_cut(const Pass *pass);

// The number that row `row` of the pass has on one rank that has everything, over the whole run; *run rows from it on follow
// each other there too.
uint64_t context_row(const Pass *pass, int64_t row, int64_t *run);

// Attention of a layer, from at->qkv to at->attention (and, in a pass that keeps, at->lse), and back from
// workspace->dnarrow to at->dqkv. `whole`: of the pass as block_attention_shape gives it.
void context_attend(const Pass *pass, const AttentionShape *whole, const struct LayerActivations *at);
void context_attend_backward(const Pass *pass, const AttentionShape *whole, const struct LayerActivations *at);

// The losses of whole sequences [B,T], from each rank's own ones, all in memory of the host.
void context_share_losses(const Pass *pass, const float *own, float *losses);
