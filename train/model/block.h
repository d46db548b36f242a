// The decoder block: forward and backward of one layer, and of what stands before and after the layers.
//
// Private to train/model. A pass names what all its calls share.
#pragma once

#include "train/model/activations.h"
#include "train/model/model.h"

typedef struct Pass {
    const Model *model;
    const Batch *batch;  // NULL when decoding
    int64_t sequences, length, rows;
    const int32_t *tokens, *first, *positions;
    uint64_t first_sample;
    float dropout;  // 0 outside training
    uint64_t seed;
} Pass;

// Dropout sites; each layer has its own stream for each.
typedef enum DropoutSite {
    SITE_ATTENTION,         // probabilities
    SITE_ATTENTION_BRANCH,  // after attention's output projection
    SITE_MLP_BRANCH,
    SITE_EMBEDDING,  // layer 0
    SITE_COUNT,
} DropoutSite;

// The row of the parameters in the compute type; NULL for row -1.
const void *block_weight(const Model *model, int32_t row);

// x[R,C] = the embedding.
void embedding_pass(const Pass *pass, void *x);
void embedding_pass_backward(const Pass *pass, void *dx);  // dropout changes dx

// One layer. input, middle and output may be one buffer where there is no dropout.
void block_forward(const Pass *pass, int64_t layer, const LayerActivations *at);

// Parts of the forward pass that a decoder shares: a norm; y = x W^T + bias (+ residual); the first half of the feed-forward.
void block_norm(const Model *model, int64_t rows, int32_t weight, int32_t bias, const void *x, void *y, float *mean,
                float *rstd);
void block_project(const Model *model, int64_t rows, int32_t weight, int32_t bias, const void *x, const void *residual,
                   void *y);
void block_logits(const Model *model, int64_t rows, const void *x, float *logits);  // of the head, in fp32
void block_rotate(const Pass *pass, void *qkv, bool inverse);                       // nothing without rotary positions
void block_inner(const Model *model, int64_t rows, int64_t layer, const LayerActivations *at);  // norm2 -> inner

// The gradient through a layer: activations->dstream (in: of the output, out: of the input); parameter gradients +=. Norm
// outputs and activations are computed again where they are not kept.
void block_backward(const Pass *pass, int64_t layer, const LayerActivations *at, const Activations *scratch);
