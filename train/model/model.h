// A model on a device: its parameters and a step's state. Activations are a workspace's (workspace.h), the way through the
// layers is a pass (pass.h); a model has one workspace of its own for the callers that need no other.
//
// Everything is deterministic: the same parameters and batch give the same bits with any number of threads and with any
// recompute mode. Gradients accumulate (+=) over calls until they are zeroed, so micro-batches add up.
// One thread at a time per model.
//
// On a card nothing here waits for it, but for what says so: a step is begun, its micro-batches run, it is finished, and its
// losses come back later:
//
//     model_begin_step(model, learning_rate);
//     weights_zero_gradients(&model->weights);
//     for each micro-batch: model_run_batch(model, batch in device memory, &options);
//     (sum gradients and model->control's sums over ranks; those in shards: model_finish_gradients)
//     model_finish_step(model, &update);
//     model_send_control(model);
//     ... the next step ...
//     model_receive_control(model, &control);
#pragma once

#include "train/model/leaves.h"
#include "train/model/stages.h"
#include "train/model/tensor.h"
#include "train/model/weights.h"
#include "train/model/workspace.h"

// What a model is created for.
typedef struct ModelOptions {
    int64_t sequences, length;  // of its own workspace's largest batch: B, T
    Recompute recompute;
    OptimizerKind optimizer;
    int64_t head_rows;   // rows of logits held at a time; 0: chosen
    bool forward_only;   // no gradients, moments or kept activations
    bool masters;        // fp32 copies of parameters of 16 bits; without, updates are rounded stochastically
    bool deterministic;  // gradients are the same bits each time; else AttentionBackward.any_order
    double weight_decay;
    MomentType moments;
    TensorShare tensor;    // ranks 0 or 1: this rank has everything
    ContextShare context;  // ranks 0 or 1: this rank has whole sequences
    StageShare stages;     // of a pipeline; ranks 0 or 1: all layers are here
    int shard, shards;     // of the optimizer's state; shards 0 or 1: this rank keeps all
    int zero;              // what else is in shards: see RankShare
    LeafShare leaves;      // of sums that are the same bits in many layouts
} ModelOptions;

typedef struct Model {
    Device *device;
    ModelConfig config;  // of the whole model
    ModelConfig here;    // of what this rank has of it: see tensor_config
    ModelOptions options;
    TensorRanks *tensor;  // its groups are set by whoever made it, before the first pass
    Stages *stages;       // NULL without a pipeline
    ParamTable table;
    ModelWeights weights;
    Workspace workspace;
    Leaves leaves;
    int32_t *cut;           // host: a batch as this context-parallel rank has it, on its way to the device
    StepControl *control;   // device memory
    float *norm_gradients;  // where tensor-parallel ranks sum them, NULL where they do not
    MemoryPlan plan;
    void *arena;  // of weights, workspace and control
    int64_t arena_bytes;
    // Results on their way back: two, host memory and a mark each.
    StepControl *returned;
    DeviceMark *marks[2];
    int64_t sent, received;
} Model;

// Where a rank keeps a table's rows; and before, whether it can: an error where its tensors cannot be cut so.
Error *model_check_placement(const ModelConfig *config, const ModelOptions *options, DataType type) MUST_CHECK;
Placement model_placement(const ParamTable *table, const ModelOptions *options, DataType type);

// The memory of a model on a machine: the same lines as in Model.plan, without creating it.
void model_plan(const ModelConfig *config, const ModelOptions *options, const Machine *machine, MemoryPlan *out);

// Allocates everything of the plan, on a device that must outlive the model. Parameters are zero until model_initialise or a
// checkpoint fills them. The config must be complete (model_config_resolve) and is copied. Errors: more memory than the device
// has, length over the context.
Error *model_create(Device *device, const ModelConfig *config, const ModelOptions *options, Model **out) MUST_CHECK;
void model_destroy(Model *model);

void model_initialise(Model *model, uint64_t seed);

// Waits for the sums of gradients in shards (fetch.h), behind a step's last micro-batch. Does nothing where there are none.
void model_finish_gradients(Model *model);

// Makes the gradients of rows that are not cut whole, where tensor-parallel ranks have the stream's rows each: sums of norms
// over the ranks. Once a step, after its last micro-batch; see tensor.h for errors.
void model_sum_tensor_gradients(Model *model);

// ---- A step (step.c)

// Zeroes the sums of the control and sets its learning rate. Waits for nothing, allocates nothing; not part of a recording.
void model_begin_step(Model *model, double learning_rate);

typedef struct UpdateOptions {
    double batch_weight;  // what grad_scale of the passes divided by: the step's nominal number of targets
    float clip;           // 0: none
    float beta1, beta2, epsilon;
    uint64_t seed;  // of stochastic rounding
} UpdateOptions;

// What went wrong between the ranks that share the model since it was last asked; NULL: nothing.
Error *model_tensor_error(Model *model) MUST_CHECK;

// From the summed gradients and control sums to new parameters (or a skipped update): see StepDecide and OptimizerUpdate. Of
// state in shards only this rank's gradients are looked at, and only its parameters are new: model_share_weights brings the
// others' from the ranks of `owners` (NULL: state is not in shards), rank r of which has shard r, and a tied embedding's copy.
void model_finish_step(Model *model, const UpdateOptions *options);

Error *model_share_weights(Model *model, Group *owners) MUST_CHECK;

// Starts to bring the control back; at most two may be under way.
void model_send_control(Model *model);
// Whether the oldest one sent is there.
bool model_control_returned(Model *model);
// The oldest one sent; waits for it. The error is the device's.
Error *model_receive_control(Model *model, StepControl *out) MUST_CHECK;
// The control as it is now (waits), and putting one in its place, for resumes.
StepControl model_control(const Model *model);
void model_set_control(Model *model, const StepControl *control);

// ---- Whole passes in the model's own workspace (model.c)

typedef struct StepOptions {
    float grad_scale;  // multiplies the gradient (1 / weight sum of the global batch)
    float z_loss;      // coefficient of z^2
    uint64_t seed;     // of dropout
    // May be NULL. Called during the backward pass when all gradients at or after element `from` of the flat gradients are
    // final; `from` falls, the last is 0. From the calling thread, between operations.
    void (*gradients_final)(void *context, int64_t from);
    void *context;
} StepOptions;

typedef struct StepResult {
    double loss_sum;    // sum of weight * loss
    double weight_sum;  // sum of weights
    double z_sum;       // sum of weight * z^2 (without the coefficient)
} StepResult;

// A batch of the host in memory of the device that the caller owns (batch_cut_bytes), or, with NULL, where the model keeps one
// until the next call (on the CPU, where a whole one is used where it is). Of context-parallel ranks each brings its part.
Batch model_bring_batch(Model *model, const Batch *batch, int32_t *memory);

// Forward and backward of a micro-batch in device memory (model_bring_batch), on a rank with all layers; with stages a whole
// step is run at once (stages_run): grads += d(grad_scale * sum of weight * (loss + z_loss * z^2)) / d(params) (times
// control->loss_scale in fp16), and control's sums +=. The batch must fit the options. Dropout applies.
void model_run_batch(Model *model, const Batch *batch, const StepOptions *options);

// The same for a batch of the host, and with `result` (may be NULL) this micro-batch's sums alone: waits for them.
void model_forward_backward(Model *model, const Batch *batch, const StepOptions *options, StepResult *result);

// Losses per token without dropout and weights, to host memory: losses[B,T] (0 where the target is -1). No gradients.
// batch->loss_weights is not used. Waits. Context-parallel ranks call it together, and all get all losses.
void model_evaluate(Model *model, const Batch *batch, float *losses);

// Logits [B,T,V] without dropout, to host memory, all at once: for tests and small batches. targets and weights are not used.
void model_logits(Model *model, const Batch *batch, float *logits);

// Why the loss or the logits of token `token` of sequence `sequence` are not finite: see pass_not_finite. Waits. The caller
// frees the text.
char *model_not_finite(Model *model, const Batch *batch, int64_t sequence, int64_t token);
