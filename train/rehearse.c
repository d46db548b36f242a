// Before the first step on a card: which kernels, and how much scratch (trainer_state.h).
//
// One pass over a batch of padding runs every operation of a step once. Matrix products choose their bodies by trial there, and
// workspaces grow to their size, so that no step that counts is slow, allocates or finds the device changed under its record.
// The choices of rank 0 are everybody's: they are kept as RUN/kernels.txt, and a run that goes on loads them, because another
// body would add in another order and the run would no longer be the same to the bit.
#include "train/trainer_state.h"

#include "core/durable.h"

enum { MOST_CHOICES = 1 << 22 };  // bytes

static Error *read_choices(const char *path, Buffer *text) {
    return path_exists(path) ? file_read(path, MOST_CHOICES, text) : NULL;
}

static Error *pass_of_padding(Trainer *t) {
    Batch batch;
    batch_allocate(&batch, t->config->train.micro_batch, t->config->data.sequence_length);
    for (int64_t b = 0; b < batch.sequences; b++) {
        batch_fill_empty(&batch, b);
    }
    // One target that counts, so that the head's gradient is computed too.
    batch.targets[0] = 0;
    batch.weights[0] = 1;
    StepControl control = model_control(t->model);
    StepOptions options = {.grad_scale = 1, .seed = (uint64_t)t->config->seed};
    model_forward_backward(t->model, &batch, &options, NULL);
    t->device->op->squares(t->device, t->model->table.elements, t->model->grads, &t->model->control->grad_squares);
    model_zero_gradients(t->model);
    model_set_control(t->model, &control);
    Error *error = device_finish(t->device);
    batch_free(&batch);
    return error;
}

Error *trainer_rehearse(Trainer *t) {
    if (t->device->kind == DEVICE_CPU) {
        return NULL;
    }
    Buffer choices = {0};
    char *path = path_join(t->config->folder, "kernels.txt");
    bool known = t->resumed && path_exists(path);
    Error *error = comm_agree(t->world, t->world->rank == 0 && known ? read_choices(path, &choices) : NULL);
    error = error == NULL ? comm_broadcast_buffer(t->world, &choices, 0) : error;
    if (error == NULL && choices.size > 0) {
        error = error_wrap(device_load_choices(t->device, choices.data), "%s", path);
    }
    error = error == NULL ? comm_agree(t->world, pass_of_padding(t)) : error;
    if (error == NULL && choices.size == 0) {
        if (t->world->rank == 0) {
            device_describe_choices(t->device, &choices);
            error = choices.size > 0 ? file_write(path, choices.data, choices.size) : NULL;
        }
        error = comm_agree(t->world, error);
        error = error == NULL ? comm_broadcast_buffer(t->world, &choices, 0) : error;
        if (error == NULL && choices.size > 0) {
            error = device_load_choices(t->device, choices.data);
        }
        // Where rank 0 chose otherwise, what its choices need is made now.
        if (t->world->size > 1) {
            error = comm_agree(t->world, error == NULL ? pass_of_padding(t) : error);
        }
    }
    buffer_free(&choices);
    free(path);
    return error;
}
