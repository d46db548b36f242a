// The parameter table: one logical row per tensor, and nothing else lists parameters.
//
// A row says what a tensor is: its name, shape and parts, how it begins, how it is updated. Where a rank keeps it is a second
// table (placement.h). Order: embeddings, layers 0 .. L-1, final norm, head. Names:
//
//   embedding.token                          [V, C]
//   embedding.position                       [context, C]           learned positions
//   layers.N.attention.norm.weight, .bias    [C]
//   layers.N.attention.qkv.weight, .bias     [(H + 2 G) D, C], [(H + 2 G) D]     parts: H query, G key, G value heads
//   layers.N.attention.out.weight, .bias     [C, H D], [C]
//   layers.N.mlp.norm.weight, .bias          [C]
//   layers.N.mlp.up.weight, .bias            [F, C], [F]; gated [2 F, C], [2 F]  parts: gate, then up
//   layers.N.mlp.down.weight, .bias          [C, F], [C]
//   final_norm.weight, .bias                 [C]
//   head.weight                              [V, C]                 where not tied to embedding.token
//
// Initial values are a function of (seed, row, logical element), so they depend on no layout.
#pragma once

#include "core/box.h"
#include "core/threads.h"
#include "train/model/config.h"

typedef enum ParamInit { INIT_NORMAL, INIT_ONES, INIT_ZEROS } ParamInit;

// Which rule turns a gradient into an update, and with it what is kept for each element.
typedef enum ParamUpdate {
    UPDATE_ELEMENTWISE,  // OptimizerKind's: an element needs nothing but its own gradient and moments
    UPDATE_MATRIX,       // of whole matrices, with one moment (Muon). Waits for its first optimizer.
} ParamUpdate;

enum { CUT_NONE = -1, CUT_ROWS = 0, CUT_COLUMNS = 1 };

// A fused tensor is made of parts, one after another along its rows; most tensors are one part. Tensor parallelism over N ranks
// cuts each part into N along dimension `cut`, between units (tensor_cut of tensor.h). Published models' names, adapters and
// matrix optimizers see the same parts.
typedef struct ParamPart {
    const char *name;    // "query"; "" where the tensor is one part
    int64_t begin, end;  // rows
    int cut;             // CUT_*
    int64_t unit;        // rows or columns that stay together: the channels of a head
    const char *units;   // what they are, for messages: "heads"
} ParamPart;

enum { PARAM_NAME_SIZE = 48, PARAM_MOST_PARTS = 3, PARAM_ALIGN = 32 };

typedef struct Param {
    char name[PARAM_NAME_SIZE];
    int dims;          // 1 or 2
    int64_t shape[2];  // shape[1] is 1 for vectors
    int64_t count;
    int64_t index;  // of its first element among all elements of the table; a multiple of PARAM_ALIGN
    int64_t layer;  // 0 .. L-1; -1 before the layers, L after them
    ParamPart parts[PARAM_MOST_PARTS];
    int part_count;
    ParamInit init;
    float deviation;   // INIT_NORMAL
    bool decay;        // weight decay applies
    bool trainable;    // else neither gradient nor state
    float rate_scale;  // multiplies the learning rate
    ParamUpdate update;
} Param;

// Rows of one layer, as indices into ParamTable.rows; -1 where the model has none.
typedef struct LayerParams {
    int32_t attention_norm, attention_norm_bias, qkv, qkv_bias, out, out_bias;
    int32_t mlp_norm, mlp_norm_bias, up, up_bias, down, down_bias;
} LayerParams;

typedef struct ParamTable {
    Param *rows;
    int32_t count, capacity;
    int64_t elements;    // the end of the last row's indices, gaps included
    int64_t parameters;  // without gaps: "124,439,808 parameters"
    int64_t layer_count;
    LayerParams *layers;
    int32_t token, position;                    // -1 without learned positions
    int32_t final_norm, final_norm_bias, head;  // head: equal to `token` where tied
} ParamTable;

// Makes the table of a checked config.
void params_create(const ModelConfig *config, ParamTable *out);
void params_free(ParamTable *table);

// Appends a row, whose count and index are worked out here (and whose parts, where it has none: one that nobody cuts). Returns
// its number. A model's rows come from params_create; adapters add theirs behind.
int32_t params_add(ParamTable *table, const Param *row);

// The row of that name, or NULL.
const Param *params_find(const ParamTable *table, const char *name);

// The part of a row of that name, which must exist; "" is all of it.
ParamPart param_part(const Param *row, const char *name);

// The number of parameters of a config (without a table in memory).
int64_t params_count(const ModelConfig *config);

// Writes the initial values of elements [begin, end) of a list of boxes of a row to out[0 ..], with the threads of `pool`.
void params_initial_values(const ParamTable *table, int32_t row, uint64_t seed, ThreadPool *pool, const Box *boxes,
                           int box_count, int64_t begin, int64_t end, float *out);
