// A workspace: the activations of one pass through layers, and the scratch of its way back. Apart from the weights, so that one
// model has several: of micro-batches under way in a pipeline, of a decoder, of validation.
//
// R = B T rows of the largest batch (of context-parallel ranks each, its share of them); a smaller batch uses the front of each
// buffer. What a layer leaves for its backward pass is one table (workspace.c): name, columns, element type, when it is kept.
#pragma once

#include "data/tokens/batch.h"
#include "train/model/config.h"
#include "train/model/context.h"
#include "train/model/layout.h"
#include "train/model/tensor.h"

// Layers that are passed through one after another, and how many micro-batches are under way between them and their way back.
typedef struct WorkspaceChunk {
    Range layers;
    int sets;   // of activations: micro-batches between forward and the gradients of weights
    int later;  // of what those read of the way back: micro-batches between the gradients of inputs and those
} WorkspaceChunk;

enum { WORKSPACE_MOST_CHUNKS = 8 };

typedef struct WorkspaceOptions {
    int64_t sequences, length;  // the largest batch, whole: B, T
    Recompute recompute;
    Range layers;  // those that pass through it; {0, 0}: all
    // Where several micro-batches are under way, in place of `layers`; 0: one micro-batch.
    WorkspaceChunk chunks[WORKSPACE_MOST_CHUNKS];
    int chunk_count;
    int streams;         // that a rank of a pipeline has under way; 0: one
    bool forward_only;   // nothing is kept for a backward pass: all layers share their buffers
    bool weights_later;  // gradients of inputs and of weights are called apart (pass.h): what the latter read is kept
    int64_t head_rows;   // rows of logits held at a time; 0: chosen, negative: none, there is no loss
    TensorShare tensor;  // where tensor.cut_rows, all batches have rows that its ranks divide
    ContextShare context;
} WorkspaceOptions;

// One layer's activations, and what its backward pass hands to its weights' gradients. Of [R,C], norm1, norm2, the stream and
// their statistics and gradients, a tensor-parallel rank that cuts rows has its own rows alone, R / ranks.
typedef struct LayerActivations {
    void *input;              // [R,C] the residual stream as it enters
    void *norm1;              // [R,C]
    float *mean1, *rstd1;     // [R]; mean1 NULL for RMSNorm
    void *qkv;                // [R,(H+2G)D] after the rotation
    void *attention;          // [R,H D]
    float *lse;               // [B,H,T]
    void *middle;             // [R,C] the stream after attention
    void *norm2;              // [R,C]
    float *mean2, *rstd2;     // [R]
    void *pre;                // [R,F] or [R,2F] before the activation; NULL where nothing will read it
    void *inner;              // [R,F] after it
    void *output;             // [R,C] the stream as it leaves
    void *dmlp, *dattention;  // [R,C] gradients of the branches' outputs; NULL: not kept
    void *dpre, *dqkv;        // gradients of pre and qkv
} LayerActivations;

typedef struct Workspace {
    Device *device;
    WorkspaceOptions options;
    // Of each chunk's layers, `sets` times; NULL where forward_only. What is kept for later gradients of weights, `later`
    // times.
    LayerActivations *layers, *later;
    LayerActivations shared;  // for passes without backward
    void *final;              // [R,C] final norm
    // [R,C] of tensor-parallel ranks: rows gathered, those of a norm gathered again, sums not yet reduced.
    void *whole, *whole_norm, *partial;
    float *final_mean, *final_rstd;
    // Gradients: of the residual stream, of the widest rows, of `inner` (gated), of the narrow rows, of a branch (dropout).
    // dstream is one of the streams, the first unless a walk through stages says otherwise.
    void *streams, *dstream, *dwide, *dinner, *dnarrow, *dbranch;
    ContextBuffers ring;
    float *losses, *zs;  // [R]
    void *head_scratch;
    int64_t head_rows;
    float *cos_sin;         // [T, rotary width]
    int32_t *batch_memory;  // where a batch of the host is brought to; NULL on the CPU, which needs none
    void *arena;            // its own, or NULL
    int64_t arena_bytes;
} Workspace;

// Lays out a workspace for a config; with a layout that only counts, nothing but sizes. Once memory is there and `device` is
// set, workspace_fill uploads constants.
void workspace_lay_out(Workspace *workspace, const Machine *machine, const ModelConfig *config, const WorkspaceOptions *options,
                       Layout *layout);
void workspace_fill(Workspace *workspace, const ModelConfig *config);

// What workspace_lay_out took for itself; the buffers stay those of the arena's owner.
void workspace_free(Workspace *workspace);

// A workspace with an arena of its own, ready for use. Errors: more memory than the device has.
Error *workspace_create(Device *device, const ModelConfig *config, const WorkspaceOptions *options, Workspace **out) MUST_CHECK;
void workspace_destroy(Workspace *workspace);  // of workspace_create; NULL is fine

// The activations of a chunk in one of its sets, from its first layer. And where its way back leaves what the gradients of
// weights read: in one of the sets for later.
LayerActivations *workspace_set(const Workspace *workspace, int chunk, int set);
void workspace_keep_later(const Workspace *workspace, int chunk, int set, int later);
// One of the streams.
void *workspace_stream(const Workspace *workspace, const ModelConfig *config, int number);

// Brings a batch of the host, whose arrays are one block (batch.h), to memory of a device that the caller owns (batch_bytes of
// the largest batch), and returns it as it lies there. On the CPU `memory` is not used and the batch itself is returned: it
// must stay until it has run.
Batch batch_to_device(Device *device, const Batch *batch, int32_t *memory);

// Fills a rotary table [positions, W]: W/2 cosines, then W/2 sines of position * theta^(-2 i / W), computed in double.
void rotary_table(const ModelConfig *config, int64_t positions, float *cos_sin);
