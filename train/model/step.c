// A step's state and update: see model.h and kernels.h (StepControl).
#include "train/model/model.h"

#include <stddef.h>

void model_begin_step(Model *model, double learning_rate) {
    const double zeros[3] = {0};
    float rate = (float)learning_rate;
    _Static_assert(offsetof(StepControl, weight_sum) == 2 * sizeof(double), "the sums lie together");
    device_upload(model->device, &model->control->loss_sum, zeros, sizeof zeros);
    device_upload(model->device, &model->control->learning_rate, &rate, sizeof rate);
    fetch_forget(model->weights.fetch);  // a recorded update tells nobody
}

// The squares of the summed gradients, over all ranks.
static void sum_squares(Model *model) {
    TensorRanks *tensor = model->tensor;
    StepControl *control = model->control;
    if (model->options.leaves.parts > 0) {
        if (tensor->failed == NULL) {
            tensor->failed = leaves_sum_squares(model);
        }
        return;
    }
    int64_t counted;
    const float *first = placement_counted(&model->weights.placement, model->weights.grads, &counted);
    model->device->op->squares(model->device, counted, first, &control->grad_squares);
    if (tensor->norm != NULL && tensor->failed == NULL) {
        tensor->failed = group_all_reduce(tensor->norm, ELEMENT_FP64, COMM_SUM, &control->grad_squares, 1);
    }
}

void model_finish_step(Model *model, const UpdateOptions *options) {
    Device *device = model->device;
    StepControl *control = model->control;
    const ModelWeights *weights = &model->weights;
    sum_squares(model);
    device->op->step_decide(device, &(StepDecide){
                                        .control = control,
                                        .batch_weight = options->batch_weight,
                                        .clip = options->clip,
                                        .beta1 = options->beta1,
                                        .beta2 = options->beta2,
                                        .dynamic_scale = device->type == TYPE_FP16,
                                    });
    device->op->optimizer_update(device, &(OptimizerUpdate){
                                             .kind = model->options.optimizer,
                                             .segments = weights->segments,
                                             .segment_count = weights->segment_count,
                                             .count = weights->placement.state,
                                             .beta1 = options->beta1,
                                             .beta2 = options->beta2,
                                             .epsilon = options->epsilon,
                                             .control = control,
                                             .grads = weights->grads,
                                             .masters = weights->masters,
                                             .weights = weights->weights,
                                             .moment_type = model->options.moments,
                                             .moment1 = weights->moment1,
                                             .moment2 = weights->moment2,
                                             .scale1 = weights->scale1,
                                             .scale2 = weights->scale2,
                                             .seed = options->seed,
                                         });
    fetch_forget(weights->fetch);
}

Error *model_share_weights(Model *model, Group *owners) {
    Error *error = NULL;
    if (model->weights.fetch != NULL) {
        fetch_share(model->weights.fetch);
        owners = NULL;
    }
    for (int shard = 0; owners != NULL && shard < owners->size && error == NULL; shard++) {
        WeightRun *runs;
        int64_t count = placement_owned(&model->weights.placement, shard, model->weights.weights, &runs);
        for (int64_t i = 0; i < count && error == NULL; i++) {
            error = group_broadcast(owners, ELEMENT_BYTE, runs[i].begin, runs[i].bytes, shard);
        }
        free(runs);
    }
    stages_share_tied(model);
    return error != NULL ? error : model_tensor_error(model);
}

Error *model_tensor_error(Model *model) {
    Error *failed = model->tensor->failed;
    model->tensor->failed = NULL;
    return failed;
}

void model_send_control(Model *model) {
    ensure(model->sent - model->received < 2, "two controls are under way already");
    int64_t place = model->sent++ % 2;
    device_download(model->device, &model->returned[place], model->control, sizeof *model->control);
    device_mark_set(model->device, model->marks[place]);
}

bool model_control_returned(Model *model) {
    ensure(model->received < model->sent, "no control is under way");
    return device_mark_reached(model->device, model->marks[model->received % 2]);
}

Error *model_receive_control(Model *model, StepControl *out) {
    ensure(model->received < model->sent, "no control is under way");
    int64_t place = model->received++ % 2;
    TRY(device_mark_wait(model->device, model->marks[place]));
    *out = model->returned[place];
    return NULL;
}

StepControl model_control(const Model *model) {
    StepControl control;
    device_download(model->device, &control, model->control, sizeof control);
    return control;
}

void model_set_control(Model *model, const StepControl *control) {
    device_upload(model->device, model->control, control, sizeof *control);
}
