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

// Appends to `joined` those lines of `chosen` whose product is not in it yet. A line names its product up to its colon.
static void join_choices(Buffer *joined, const char *chosen, const char *chosen_end) {
    if (joined->size > 0 && joined->data[joined->size - 1] != '\n') {
        buffer_text(joined, "\n");
    }
    for (const char *line = chosen, *end; line < chosen_end; line = end + 1) {
        end = memchr(line, '\n', (size_t)(chosen_end - line));
        const char *colon = end != NULL ? memmem(line, (size_t)(end - line), " : ", 3) : NULL;
        ensure(colon != NULL, "a choice of kernels is no line with a colon");
        size_t name = (size_t)(colon + 3 - line);
        bool there = false;
        for (const char *old = joined->size > 0 ? joined->data : NULL; old != NULL && !there;) {
            there = strncmp(old, line, name) == 0;
            old = strchr(old, '\n');
            old = old != NULL ? old + 1 : NULL;
        }
        if (!there) {
            buffer_append(joined, line, (size_t)(end + 1 - line));
        }
    }
}

// Those known, which keep their times, and behind them on rank 0 the choices of all ranks in their order: stages and uneven
// shares have products that rank 0 has not. Collective.
static Error *gather_choices(Trainer *t, const Buffer *known, Buffer *joined) {
    Buffer chosen = {0}, all = {0};
    int64_t *ends = memory_zeroed((size_t)t->world->size, sizeof *ends);
    device_describe_choices(t->device, &chosen);
    Error *error = comm_gather(t->world, chosen.data, (int64_t)chosen.size, &all, ends);
    buffer_append(joined, known->data, known->size);
    if (error == NULL && t->world->rank == 0 && all.size > 0) {
        join_choices(joined, all.data, all.data + all.size);
    }
    free(ends);
    buffer_free(&all);
    buffer_free(&chosen);
    return error;
}

// They are told to all, and kept where they are more than the record holds.
static Error *keep_choices(Trainer *t, const char *path, const Buffer *known, Buffer *all) {
    Error *error = NULL;
    TRY(gather_choices(t, known, all));
    if (t->world->rank == 0) {
        bool same = all->size == known->size && (all->size == 0 || memcmp(all->data, known->data, all->size) == 0);
        error = same ? NULL : file_write(path, all->data, all->size);
    }
    TRY(comm_agree(t->world, error));
    TRY(comm_broadcast_buffer(t->world, all, 0));
    error = all->size > 0 ? device_load_choices(t->device, all->data) : NULL;
    return comm_agree(t->world, error_wrap(error, "rank 0 of this run has another kind of card (products=sm80 suits all)"));
}

// A step's pass: in a pipeline all its micro-batches.
static void run_padding(Trainer *t, const Batch *batch, const StepOptions *options) {
    if (t->model->stages == NULL) {
        model_forward_backward(t->model, batch, options, NULL);
        return;
    }
    for (int64_t m = 0; m < t->micro_batches; m++) {
        t->batches[m] = model_bring_batch(t->model, batch, t->batches[m].tokens);
    }
    stages_run(t->model, t->batches, options);
}

static Error *pass_of_padding(Trainer *t) {
    Batch batch;
    batch_allocate(&batch, t->config->train.micro_batch, t->config->data.sequence_length);
    for (int64_t b = 0; b < batch.sequences; b++) {
        batch_fill_empty(&batch, b);
    }
    // Targets that count, so that the head's gradient is computed too, whichever tokens this rank has.
    for (int64_t i = 0; i < batch.sequences * batch.length; i++) {
        batch.targets[i] = 0;
        batch.loss_weights[i] = 1;
    }
    StepControl control = model_control(t->model);
    StepOptions options = {.grad_scale = 1, .seed = (uint64_t)t->config->seed};
    run_padding(t, &batch, &options);
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
