// A model on a device: parameters, and a step's forward and backward pass as explicit calls of operations.
//
// Everything is deterministic: the same parameters and batch give the same bits with any number of threads and with any
// recompute mode. Gradients accumulate (+=) over calls until model_zero_gradients, so micro-batches add up.
// One thread at a time per model.
#pragma once

#include "data/batch.h"
#include "train/model/plan.h"

typedef struct Model {
    Device *device;
    ModelConfig config;
    ModelOptions options;
    ParamTable table;
    MemoryPlan plan;
    float *params;        // [table.elements] fp32 master weights
    const void *weights;  // the same in the device's compute type; on the CPU it is `params`
    float *grads;         // [table.elements], NULL where forward_only
    float *moment1;       // [table.elements], NULL where the optimizer has none
    float *moment2;
    void *arena;
    int64_t arena_bytes;
    struct Activations *activations;
} Model;

// Allocates everything of the plan. Parameters are zero until model_initialise or a checkpoint fills them. The config must be
// complete (model_config_resolve). Errors: more memory than the machine has, length over the context.
Error *model_create(Device *device, const ModelConfig *config, const ModelOptions *options, Model **out) MUST_CHECK;
void model_destroy(Model *model);

void model_initialise(Model *model, uint64_t seed);
void model_zero_gradients(Model *model);

// Must be called after `params` changed (optimizer step, load), before the next use: refreshes the compute-type weights.
void model_params_changed(Model *model);

// One row's part of a flat array.
static inline float *model_row(const Model *model, float *flat, int32_t row) {
    return row < 0 ? NULL : flat + model->table.rows[row].offset;
}

typedef struct StepOptions {
    float grad_scale;  // multiplies the gradient (1 / weight sum of the global batch)
    float z_loss;      // coefficient of z^2
    uint64_t seed;     // of dropout
    // May be NULL. Called during the last micro-batch's backward pass when all gradients at or after element `offset` of the
    // flat array are final; offsets fall, the last is 0. From the calling thread, between operations.
    void (*gradients_final)(void *context, int64_t offset);
    void *context;
} StepOptions;

typedef struct StepResult {
    double loss_sum;    // sum of weight * loss
    double weight_sum;  // sum of weights
    double z_sum;       // sum of weight * z^2 (without the coefficient)
} StepResult;

// Forward and backward of one micro-batch: grads += d(grad_scale * sum of weight * (loss + z_loss * z^2)) / d(params).
// The batch must fit the options. Dropout applies.
void model_forward_backward(Model *model, const Batch *batch, const StepOptions *options, StepResult *result);

// Losses per token without dropout and weights: losses[B,T] (0 where the target is -1). No gradients. batch->weights is not
// used and may be NULL.
void model_evaluate(Model *model, const Batch *batch, float *losses);

// Logits [B,T,V] without dropout, all at once: for tests and small batches. targets and weights are not used.
void model_logits(Model *model, const Batch *batch, float *logits);

// The compute of one optimizer step over [begin, end) of the flat array: a thin wrapper that fills OptimizerStep from the
// table's segments. `step` has beta1, beta2, epsilon, step number and grad_scale set.
void model_optimizer_step(Model *model, const OptimizerStep *step, double learning_rate, double weight_decay, int64_t begin,
                          int64_t end);
