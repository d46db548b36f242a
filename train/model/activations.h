// Where a model's buffers lie: one layout that is walked twice, to size the plan and to cut the arena.
//
// Private to train/model. R = B T rows of the largest batch; a smaller batch uses the front of each buffer.
#pragma once

#include "train/model/plan.h"

// One layer's activations. Which of them are the layer's own and which are shared follows from the recompute mode; in a forward
// pass without a backward one all layers share everything, and input, middle and output are one buffer.
typedef struct LayerActivations {
    void *input;           // [R,C] the residual stream as it enters
    void *norm1;           // [R,C]
    float *mean1, *rstd1;  // [R]; mean1 NULL for RMSNorm
    void *qkv;             // [R,(H+2G)D] after the rotation
    void *attention;       // [R,H D]
    float *lse;            // [B,H,T]
    void *middle;          // [R,C] the stream after attention
    void *norm2;           // [R,C]
    float *mean2, *rstd2;  // [R]
    void *pre;             // [R,F] or [R,2F] before the activation; NULL where nothing will read it
    void *inner;           // [R,F] after it
    void *output;          // [R,C] the stream as it leaves
} LayerActivations;

typedef struct Activations {
    LayerActivations *layers;  // [L], NULL where forward_only
    LayerActivations shared;   // for passes without backward
    void *last;                // [R,C] the stream after the last layer
    void *final;               // [R,C] final norm
    float *final_mean, *final_rstd;
    // Gradients: of the residual stream, of the widest rows, of `inner` (gated), of the narrow rows, of a branch (dropout).
    void *dstream, *dwide, *dinner, *dnarrow, *dbranch;
    float *losses, *zs;  // [R]
    void *head_scratch;
    int64_t head_rows;
    float *cos_sin;  // [T, rotary width]
} Activations;

// Cuts consecutive parts off an arena; with base NULL it only counts.
typedef struct Layout {
    char *base;
    int64_t used;
    MemoryPlan *plan;  // may be NULL
    int64_t element;   // bytes of the compute type
} Layout;

// `count` tensors of rows x columns elements of `size` bytes, as one line of the plan. NULL where base is.
void *layout_take(Layout *layout, const char *name, int64_t count, int64_t rows, int64_t columns, int64_t size);

// Tensor `index` of a line of `count` such tensors (count 1: the one that all share); NULL where base is.
void *layout_part(void *base, int64_t index, int64_t count, int64_t elements, int64_t size);

// Rows of logits held at a time, where the options leave the choice.
int64_t head_rows_chosen(const ModelConfig *config, const ModelOptions *options, const Device *device);

// Lays out the activations. out->layers must hold config->layers entries unless forward_only.
void activations_layout(const ModelConfig *config, const ModelOptions *options, const Device *device, Layout *layout,
                        Activations *out);

// Fills a rotary table [positions, W]: W/2 cosines, then W/2 sines of position * theta^(-2 i / W), computed in double.
void rotary_table(const ModelConfig *config, int64_t positions, float *cos_sin);
// The same to device memory; nothing where the model turns nothing.
void model_upload_rotary(Device *device, const ModelConfig *config, int64_t positions, float *cos_sin);
