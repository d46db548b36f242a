// A pass: layers forward, and back, as explicit calls of operations. Training, validation, prefill and decoding are the same
// pass; whether attention reads the keys of this pass or those of a cache too is their one difference.
//
//     Pass pass = pass_learning(model, workspace, batch, seed);      a pipeline's stage calls only what is its own
//     pass_embed(&pass);
//     pass_forward(&pass, (Range){0, L});
//     pass_loss(&pass, grad_scale, z_loss);
//     pass_loss_backward(&pass);
//     pass_backward(&pass, (Range){0, L}, GRADIENTS_ALL);            or, in a workspace with weights_later, apart:
//     pass_embed_backward(&pass);                                        pass_backward(..., GRADIENTS_OF_INPUTS)
//                                                                        pass_backward(..., GRADIENTS_OF_WEIGHTS)
//
// The stream enters a range of layers in the first one's `input` and leaves it in the last one's `output`; its gradient comes
// and goes in workspace->dstream. Gradients of weights are added to the model's. All of it lies in device memory, and nothing
// waits. A Pass is a value that owns nothing: model, workspace, the batch's arrays and the cache must outlive it.
#pragma once

#include "train/model/model.h"

// Keys (after the rotation) and values of earlier tokens, for each layer [B, capacity, G, D]. All of its memory is that of
// whoever made it (decoder.c); whoever runs a pass keeps the lengths.
typedef struct KeyCache {
    int64_t batch, capacity;
    char *keys, *values;    // device memory; a layer's part starts at a multiple of 64 bytes
    int32_t *lengths;       // [B], host: tokens held before the pass
    int32_t *lengths_with;  // [B], device: with those of the pass under way
} KeyCache;

typedef struct Pass {
    const Model *model;
    Workspace *workspace;
    Batch batch;  // in device memory
    int64_t rows;
    int64_t own_first, own_rows;   // of the stream: all, or this tensor-parallel rank's
    Range layers;                  // whose activations are at hand in a learning pass
    const LayerActivations *kept;  // from the first of these
    bool keeps;                    // what a backward pass needs
    float dropout;                 // 0 outside of training
    uint64_t seed;
    // With a cache sequence b of the batch goes on in sequence first_cached + b of it.
    const KeyCache *cache;  // may be NULL
    int64_t first_cached;
} Pass;

// Of a batch that learns, and of one that is only looked at: no dropout, nothing kept.
Pass pass_learning(const Model *model, Workspace *workspace, const Batch *batch, uint64_t seed);
// The same in a set of a chunk of a workspace that has several.
Pass pass_learning_in(const Model *model, Workspace *workspace, const Batch *batch, uint64_t seed, int chunk, int set);
Pass pass_looking(const Model *model, Workspace *workspace, const Batch *batch);

// The buffers of a layer in this pass.
const LayerActivations *pass_layer(const Pass *pass, int64_t layer);

// The embedding, into the input of layer 0, which the workspace must have (and for the loss the last layer).
void pass_embed(const Pass *pass);
void pass_embed_backward(const Pass *pass);  // from dstream, which dropout changes

void pass_forward(const Pass *pass, Range layers);

typedef enum Gradients { GRADIENTS_OF_INPUTS = 1, GRADIENTS_OF_WEIGHTS = 2, GRADIENTS_ALL = 3 } Gradients;

// The way back through layers [begin, end), the last one first. Inputs: dstream (in: of the last layer's output, out: of the
// first one's input), and the gradients of norms. Weights: of the projections, from what the call for inputs left; in a
// workspace without weights_later only together with it. Where nothing was kept it is computed again, for each call that reads
// it.
void pass_backward(const Pass *pass, Range layers, Gradients which);

// From the output of the last layer: final norm, head and loss of each row, into workspace->losses and zs. In a learning pass
// also the head's gradients, and that of the final norm's output (in workspace->dnarrow), which pass_loss_backward takes to
// dstream.
void pass_loss(const Pass *pass, float grad_scale, float z_loss);
void pass_loss_backward(const Pass *pass);
// Both, with the sums of the batch's losses added to the model's control.
void pass_head(const Pass *pass, const StepOptions *options);

// The final norm and the head's logits, in fp32, of rows [begin, begin + count): logits[count, V].
void pass_logits(const Pass *pass, int64_t begin, int64_t count, float *logits);

// Where the numbers of a forward pass stop being finite, for the message of whoever met a loss or a logit that is not: runs the
// pass once more (of pass_looking, without a cache) and names the first layer that leaves such a number in these rows of the
// stream, and its tensor that holds one: "it begins in layers.1, whose layers.1.mlp.up.weight holds nan". The rows are those of
// a sequence: attention spreads such a number to those before it too (zero times it is none). `row`: the one of whose logits it
// is known, which need `logits` [V] in device memory. Waits. The caller frees the text.
char *pass_not_finite(const Pass *pass, Range rows, int64_t row, float *logits);
