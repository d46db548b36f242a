// One table of cases for every operation of kernels/kernels.h.
//
// A case is a row: the operation, its shape and its switches. The same row serves correctness (against float64), sentinels,
// determinism, thread counts and gradients, for each backend. A new operation is a kind (which tensors, how it is called, its
// reference in tests/support/reference.h) and some rows.
#pragma once

#include "kernels/device.h"

typedef enum OpRole {
    OP_INPUT,   // must not change
    OP_OUTPUT,  // "=": filled with NaN before
    OP_UPDATE,  // "+=" or changed in place: filled like an input
} OpRole;

typedef enum OpType { OP_COMPUTE, OP_FLOAT, OP_BF16, OP_FP16, OP_INT32 } OpType;

// How a tensor is filled.
typedef enum OpFill { OP_NORMAL, OP_POSITIVE, OP_INDEX, OP_FIRST, OP_LENGTH } OpFill;

typedef struct OpTensor {
    const char *name;
    OpRole role;
    OpType type;
    int64_t count;
    OpFill fill;
    int64_t limit;     // OP_INDEX: values in [0, limit); OP_LENGTH: in [1, limit]; OP_FIRST: tokens of a sequence
    int64_t shift;     // OP_FIRST: the key at which token 0 stands
    double deviation;  // OP_NORMAL, OP_POSITIVE; 0: 1
} OpTensor;

enum { OP_TENSORS = 12 };

typedef struct OpKind OpKind;

typedef struct OpCase {
    const OpKind *kind;
    bool bare;    // tensors that may be NULL are NULL
    bool frozen;  // the gradient of the weight or token table is NULL
    bool loose;   // bits may differ from run to run: attention_backward's any_order
    bool alias;   // the output shares memory with the input that it may alias
    bool apart;   // of attention: queries, keys and values are tensors of their own, the latter in a cache
    union {
        AttentionForward attention_forward;
        AttentionBackward attention_backward;
        AttentionMerge attention_merge;
        NormForward norm_forward;
        NormBackward norm_backward;
        Rotary rotary;
        ActivationForward activation_forward;
        GatedForward gated_forward;
        GatedBackward gated_backward;
        EmbeddingForward embedding_forward;
        EmbeddingBackward embedding_backward;
        Dropout dropout;
        OptimizerUpdate optimizer_update;
        Convert convert;
        CopyRows copy_rows;
        SumParts sum_parts;
        int64_t add, accumulate, scale;  // the count
    };
} OpCase;

struct OpKind {
    const char *name;
    // Lists the tensors (at most OP_TENSORS, in the order in which `run` and the references take them) and returns their
    // number.
    int (*tensors)(const OpCase *c, OpTensor *out);
    // Calls the operation. t holds device memory.
    void (*run)(Device *device, const OpCase *c, void **t);
    // The formula, straightforward, in double and in single precision. Integer tensors are int32_t behind the pointers.
    void (*reference64)(const OpCase *c, double **t);
    void (*reference32)(const OpCase *c, float **t);
    // Computes inputs that depend on others (what a forward pass saved), in place; may be NULL.
    void (*prepare)(const OpCase *c, double **t);
    // For a backward operation: sum(dy * y) of the forward formula on the inputs of this case, for central differences.
    long double (*objective)(const OpCase *c, double **t);
    int gradients[4][2];  // for `objective`: pairs {input, gradient} by tensor number; {0, 0} ends them
    int alias[2];         // {input, output} that may share memory
};

// The factor of every case of `scale`.
static const float op_scale = 0.3f;

// What an attention case calls, where its tensors are of `element` bytes.
AttentionForward op_attention_forward(const OpCase *c, void **t, int64_t element);
AttentionBackward op_attention_backward(const OpCase *c, void **t, int64_t element);

extern const OpCase op_cases[];
extern const int op_case_count;

// The segments of an optimizer case of `count` elements of state: two that differ in rate and decay, elements between them that
// belong to none, in other places and another order in weights and gradients, of count + OP_SEGMENTS_ROOM elements. Returns
// their number.
enum { OP_SEGMENTS_ROOM = 24 };
int op_segments(int64_t count, UpdateSegment *out);

// What the update of an optimizer case is told of the step.
StepControl op_control(const OptimizerUpdate *a);
