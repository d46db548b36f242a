// The decoder block: one layer, forward and back. Private to train/model.
#pragma once

#include "train/model/pass.h"

// Dropout sites; each layer has its own stream for each.
typedef enum DropoutSite {
    SITE_ATTENTION,         // probabilities
    SITE_ATTENTION_BRANCH,  // after attention's output projection
    SITE_MLP_BRANCH,
    SITE_EMBEDDING,  // layer 0
    SITE_COUNT,
} DropoutSite;

void block_forward(const Pass *pass, int64_t layer);
void block_backward(const Pass *pass, int64_t layer, Gradients which);

// What attention of a layer is, over whole sequences.
AttentionShape block_attention_shape(const Pass *pass, int64_t layer);

// What stands around the layers uses too, of own rows of the stream: a copy, dropout in place (nothing where the pass has
// none), a norm, and the way back through one into dstream (+= where accumulate).
void block_copy(const Pass *pass, const void *from, void *to);
void block_drop(const Pass *pass, int64_t layer, DropoutSite site, void *x);
void block_norm(const Model *model, int64_t rows, int32_t weight, int32_t bias, const void *x, void *y, float *mean,
                float *rstd);
void block_norm_backward(const Pass *pass, int32_t weight, int32_t bias, const void *x, const float *mean, const float *rstd,
                         const void *dy, bool accumulate);
