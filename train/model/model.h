// A model on a device: parameters, and a step's forward and backward pass as explicit calls of operations.
//
// Everything is deterministic: the same parameters and batch give the same bits with any number of threads and with any
// recompute mode. Gradients accumulate (+=) over calls until model_zero_gradients, so micro-batches add up.
// One thread at a time per model.
//
// On a card nothing here waits for it, but for what says so: a step is begun, its micro-batches run, it is finished, and its
// losses come back later:
//
//     model_begin_step(model, learning_rate);
//     for each micro-batch m: model_load_batch(model, m, batch);
//     model_zero_gradients(model);
//     for each micro-batch m: model_run_batch(model, m, &options);
//     (sum gradients and model->control's sums over ranks)
//     model_finish_step(model, &update);
//     model_send_control(model);
//     ... the next step ...
//     model_receive_control(model, &control);
#pragma once

#include "data/tokens/batch.h"
#include "train/model/plan.h"

typedef struct Model {
    Device *device;
    ModelConfig config;
    ModelOptions options;
    ParamTable table;
    MemoryPlan plan;
    // Device memory.
    float *params;  // [table.elements] fp32 masters; NULL where options.no_masters
    void *weights;  // the same in the device's compute type; `params` where that is fp32
    float *grads;   // [table.elements], NULL where forward_only
    void *moment1;  // [table.elements] of options.moments, NULL where the optimizer has none
    void *moment2;
    float *scale1, *scale2;  // of 8-bit moments
    UpdateSegment *segments;
    int64_t segment_count;
    StepControl *control;
    Batch *batches;  // [options.batches] on a card; on the CPU the one that was loaded last
    void *arena;
    int64_t arena_bytes;
    struct Activations *activations;
    // Results on their way back: two, host memory and a mark each.
    StepControl *returned;
    DeviceMark *marks[2];
    int64_t sent, received;
} Model;

// Allocates everything of the plan. Parameters are zero until model_initialise or a checkpoint fills them. The config must be
// complete (model_config_resolve). Errors: more memory than the device has, length over the context.
Error *model_create(Device *device, const ModelConfig *config, const ModelOptions *options, Model **out) MUST_CHECK;
void model_destroy(Model *model);

void model_initialise(Model *model, uint64_t seed);
void model_zero_gradients(Model *model);

// Must be called after `params` changed otherwise than through model_write or model_finish_step: refreshes the compute-type
// weights.
void model_params_changed(Model *model);

// One row's part of a flat array.
static inline float *model_row(const Model *model, float *flat, int32_t row) {
    return row < 0 ? NULL : flat + model->table.rows[row].offset;
}

// ---- Its arrays as floats of the host (store.c)

typedef enum ModelArray { MODEL_PARAMS, MODEL_MOMENT1, MODEL_MOMENT2, MODEL_GRADS } ModelArray;  // the first as in checkpoints

bool model_has(const Model *model, ModelArray array);
// Elements [offset, offset + count) of a flat array, out of the device and back, exactly: also of 16-bit parameters and 8-bit
// moments, of which whole blocks of MOMENT_BLOCK must be written at a time. Reading waits.
void model_read(const Model *model, ModelArray array, int64_t offset, int64_t count, float *to);
void model_write(Model *model, ModelArray array, int64_t offset, int64_t count, const float *from);

// ---- A step (step.c)

// Zeroes the sums of the control and sets its learning rate. Waits for nothing, allocates nothing; not part of a recording.
void model_begin_step(Model *model, double learning_rate);

typedef struct UpdateOptions {
    double batch_weight;  // what grad_scale of the passes divided by: the step's nominal number of targets
    float clip;           // 0: none
    float beta1, beta2, epsilon;
    uint64_t seed;  // of stochastic rounding
} UpdateOptions;

// From the summed gradients and control sums to new parameters (or a skipped update): see StepDecide and OptimizerUpdate.
void model_finish_step(Model *model, const UpdateOptions *options);

// Starts to bring the control back; at most two may be under way.
void model_send_control(Model *model);
// Whether the oldest one sent is there.
bool model_control_returned(Model *model);
// The oldest one sent; waits for it. The error is the device's.
Error *model_receive_control(Model *model, StepControl *out) MUST_CHECK;
// At once (waits), and the way in, for resumes.
StepControl model_control(const Model *model);
void model_set_control(Model *model, const StepControl *control);

// ---- Passes (model.c)

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

// Brings a micro-batch to place `slot` of the device. On the CPU there is one place and nothing is copied: the batch must stay
// until it has run.
void model_load_batch(Model *model, int64_t slot, const Batch *batch);

// Forward and backward of the micro-batch at `slot`: grads += d(grad_scale * sum of weight * (loss + z_loss * z^2)) / d(params)
// (times control->loss_scale in fp16), and control's sums +=. The batch must fit the options. Dropout applies.
void model_run_batch(Model *model, int64_t slot, const StepOptions *options);

// Both, and with `result` (may be NULL) this micro-batch's sums alone: waits for them.
void model_forward_backward(Model *model, const Batch *batch, const StepOptions *options, StepResult *result);

// Losses per token without dropout and weights, to host memory: losses[B,T] (0 where the target is -1). No gradients.
// batch->weights is not used and may be NULL. Waits.
void model_evaluate(Model *model, const Batch *batch, float *losses);

// Logits [B,T,V] without dropout, to host memory, all at once: for tests and small batches. targets and weights are not used.
void model_logits(Model *model, const Batch *batch, float *logits);
