// Before the first step on a card: which kernels, and how much scratch (trainer_state.h).
//
// One pass over a batch of padding runs every operation of a step once. Matrix products choose their bodies by trial there, and
// workspaces grow to their size, so that no step that counts is slow, allocates or finds the device changed under its record.
// The choices of rank 0 are everybody's: they are kept as RUN/kernels.txt, and a run that goes on loads them, because another
// body would add in another order and the run would no longer be the same to the bit. Products that are new to the record
// (other micro-batches, another type) are added to it.
#include "train/trainer_state.h"

#include "core/durable.h"

#include <string.h>

enum { MOST_CHOICES = 1 << 22 };  // bytes

// A forced body needs no record.
static Error *read_choices(const Trainer *t, const char *path, Buffer *text) {
    if (!t->resumed || t->config->products != 0 || !path_exists(path)) {
        return NULL;
    }
    TRY(file_read(path, MOST_CHOICES, text));
    return memchr(text->data, 0, text->size) == NULL
               ? NULL
               : damaged(
                     "%s holds bytes that are no text: move it away, and kernels are chosen anew; results then differ in their "
                     "last bits",
                     path);
}

// The lines of `known`, which keep their times, and those of `chosen` for what is not among them. A line names its product up
// to its colon.
static void join_choices(const Buffer *known, const Buffer *chosen, Buffer *out) {
    buffer_append(out, known->data, known->size);
    if (known->size > 0 && known->data[known->size - 1] != '\n') {
        buffer_text(out, "\n");
    }
    for (const char *line = chosen->data, *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        size_t name = (size_t)(strstr(line, " : ") + 3 - line);
        bool there = false;
        for (const char *old = known->size > 0 ? known->data : NULL; old != NULL && !there;) {
            there = strncmp(old, line, name) == 0;
            old = strchr(old, '\n');
            old = old != NULL ? old + 1 : NULL;
        }
        if (!there) {
            buffer_append(out, line, (size_t)(end + 1 - line));
        }
    }
}

// Rank 0's choices after the pass, told to all and kept where they are more than the record holds.
static Error *keep_choices(Trainer *t, const char *path, const Buffer *known, Buffer *all) {
    Error *error = NULL;
    if (t->world->rank == 0) {
        Buffer chosen = {0};
        device_describe_choices(t->device, &chosen);
        if (chosen.size > 0) {
            join_choices(known, &chosen, all);
        }
        buffer_free(&chosen);
        bool same = all->size == known->size && (all->size == 0 || memcmp(all->data, known->data, all->size) == 0);
        error = same ? NULL : file_write(path, all->data, all->size);
    }
    TRY(comm_agree(t->world, error));
    TRY(comm_broadcast_buffer(t->world, all, 0));
    error = all->size > 0 ? device_load_choices(t->device, all->data) : NULL;
    return comm_agree(t->world, error_wrap(error, "rank 0 of this run has another kind of card (products=sm80 suits all)"));
}

static Error *pass_of_padding(Trainer *t) {
    Batch batch;
    batch_allocate(&batch, t->config->train.micro_batch, t->config->data.sequence_length);
    for (int64_t b = 0; b < batch.sequences; b++) {
        batch_fill_empty(&batch, b);
    }
    // One target that counts, so that the head's gradient is computed too.
    batch.targets[0] = 0;
    batch.loss_weights[0] = 1;
    StepControl control = model_control(t->model);
    StepOptions options = {.grad_scale = 1, .seed = (uint64_t)t->config->seed};
    model_forward_backward(t->model, &batch, &options, NULL);
    model_finish_gradients(t->model);
    t->device->op->squares(t->device, t->model->weights.placement.gradients, t->model->weights.grads,
                           &t->model->control->grad_squares);
    weights_zero_gradients(&t->model->weights);
    model_set_control(t->model, &control);
    Error *error = model_tensor_error(t->model);
    error = error == NULL ? device_finish(t->device) : error;
    batch_free(&batch);
    return error;
}

Error *trainer_rehearse(Trainer *t) {
    if (t->device->kind == DEVICE_CPU) {
        return NULL;
    }
    Buffer known = {0}, all = {0};
    char *path = path_join(t->config->folder, "kernels.txt");
    Error *error = comm_agree(t->world, t->world->rank == 0 ? read_choices(t, path, &known) : NULL);
    error = error == NULL ? comm_broadcast_buffer(t->world, &known, 0) : error;
    if (error == NULL && known.size > 0) {
        error = error_wrap(device_load_choices(t->device, known.data), "%s", path);
    }
    error = comm_agree(t->world, error == NULL ? pass_of_padding(t) : error);
    error = error == NULL ? keep_choices(t, path, &known, &all) : error;
    // Where rank 0 chose otherwise, what its choices need is made now.
    if (error == NULL && t->world->size > 1) {
        error = comm_agree(t->world, pass_of_padding(t));
    }
    buffer_free(&known);
    buffer_free(&all);
    free(path);
    return error;
}
