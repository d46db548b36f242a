// The parameter table: one row per tensor, and nothing else lists parameters.
//
// Parameters, gradients and each optimizer moment are flat fp32 arrays of `elements`; a row is a place in all of them.
// Order: embeddings, layers 0 .. L-1, final norm, head. Rows start at multiples of the table's alignment; the padding between
// them is zero in every array and stays zero. Names:
//
//   embedding.token                          [V, C]
//   embedding.position                       [context, C]           learned positions
//   layers.N.attention.norm.weight, .bias    [C]
//   layers.N.attention.qkv.weight, .bias     [(H + 2 G) D, C], [(H + 2 G) D]     rows: H query, G key, G value heads
//   layers.N.attention.out.weight, .bias     [C, H D], [C]
//   layers.N.mlp.norm.weight, .bias          [C]
//   layers.N.mlp.up.weight, .bias            [F, C], [F]; gated [2 F, C], [2 F]  rows: gate, then up
//   layers.N.mlp.down.weight, .bias          [C, F], [C]
//   final_norm.weight, .bias                 [C]
//   head.weight                              [V, C]                 where not tied to embedding.token
//
// Initial values are a function of (seed, row, logical element), so they depend on no layout.
#pragma once

#include "core/threads.h"
#include "train/model/config.h"

typedef enum ParamInit { INIT_NORMAL, INIT_ONES, INIT_ZEROS } ParamInit;

// How tensor parallelism over N ranks cuts a tensor.
typedef enum ParamSplit {
    SPLIT_NONE,     // every rank has the whole
    SPLIT_ROWS,     // rank r has the r-th N-th of the rows (vocabulary rows, feed-forward rows)
    SPLIT_COLUMNS,  // ... of the columns
    SPLIT_QKV,      // ... of the query, of the key and of the value heads' rows
    SPLIT_GATE_UP,  // ... of the gate's and of the up projection's rows
} ParamSplit;

enum { PARAM_NAME_SIZE = 48, PARAM_ALIGN = 32 };  // PARAM_ALIGN in elements, the least: 64 bytes of 16 bits

typedef struct Param {
    char name[PARAM_NAME_SIZE];
    int rank;          // 1 or 2
    int64_t shape[2];  // logical; shape[1] is 1 for vectors
    int64_t offset;    // in elements of the flat array
    int64_t count;
    int64_t layer;  // 0 .. L-1; -1 before the layers, L after them
    ParamSplit split;
    ParamInit init;
    float deviation;  // INIT_NORMAL
    bool decay;       // weight decay applies
    bool trainable;
    float rate_scale;  // multiplies the learning rate
} Param;

// Rows of one layer, as indices into ParamTable.rows; -1 where the model has none.
typedef struct LayerParams {
    int32_t attention_norm, attention_norm_bias, qkv, qkv_bias, out, out_bias;
    int32_t mlp_norm, mlp_norm_bias, up, up_bias, down, down_bias;
} LayerParams;

typedef struct ParamTable {
    Param *rows;
    int32_t count;
    int64_t alignment;   // of rows, in elements
    int64_t elements;    // of a flat array, padding included
    int64_t parameters;  // without padding: "124,439,808 parameters"
    int64_t layer_count;
    LayerParams *layers;
    int32_t token, position;                    // -1 without learned positions
    int32_t final_norm, final_norm_bias, head;  // head: equal to `token` where tied
} ParamTable;

// Makes the table of a checked config, its rows at multiples of `alignment` elements: PARAM_ALIGN, or MOMENT_BLOCK where
// moments are 8-bit (see UpdateSegment).
void params_create(const ModelConfig *config, int64_t alignment, ParamTable *out);
void params_free(ParamTable *table);

// The row of that name, or NULL.
const Param *params_find(const ParamTable *table, const char *name);

// The number of parameters of a config (without a table in memory).
int64_t params_count(const ModelConfig *config);

// Writes initial values of the part [begin, end) of the flat array to out[0 ..] (padding becomes zero), with the threads of
// `pool`.
void params_initialise(const ParamTable *table, uint64_t seed, ThreadPool *pool, Range part, float *out);

// The runs of trainable rows with equal settings, for Operations.optimizer_update, clipped to [begin, end) of the flat array (a
// rank's slice; 0 and elements for all). The caller frees *out. Returns the count.
int64_t params_segments(const ParamTable *table, double weight_decay, int64_t begin, int64_t end, UpdateSegment **out);
