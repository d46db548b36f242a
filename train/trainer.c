// Training: see trainer.h. This file is the story of a run: step after step, from the first to the last.
#include "train/trainer_state.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/text.h"

#include <math.h>
#include <signal.h>

// This many steps in a row without a finite gradient mean that the model is lost.
enum { MOST_SKIPPED_IN_A_ROW = 50 };

static volatile sig_atomic_t stop_requested;

void train_request_stop(void) {
    stop_requested = 1;
}

// ---- A step
// -----------------------------------------------------------------------------------------------------------------------------

typedef struct StepState {
    double loss_sum, weight_sum, z_sum;
    double grad_norm;
    Error *bucket_error;  // of the callback during the backward pass
    bool stop;            // some rank was asked to stop
} StepState;

typedef struct BackwardContext {
    Buckets *buckets;
    StepState *state;
} BackwardContext;

static void gradients_final(void *context, int64_t offset) {
    BackwardContext *c = context;
    if (c->state->bucket_error == NULL) {
        c->state->bucket_error = buckets_final_from(c->buckets, offset);
    }
}

// Forward and backward over this rank's micro-batches; the gradient sums start to travel during the last backward pass.
static Error *compute_gradients(Trainer *t, StepState *state) {
    const RunConfig *config = t->config;
    BackwardContext context = {t->buckets, state};
    model_zero_gradients(t->model);
    for (int64_t m = 0; m < t->micro_batches; m++) {
        const Batch *batch;
        TRY(loader_next(t->loader, &batch));
        bool last = m + 1 == t->micro_batches;
        if (last) {
            buckets_begin(t->buckets);
        }
        // Scaled by the step's nominal number of targets, so that sums stay near means; the exact weight sum is put right in
        // update.
        StepOptions options = {.grad_scale = (float)(1.0 / (double)config->train.batch_tokens),
                               .z_loss = (float)config->train.z_loss,
                               .seed = (uint64_t)config->seed,
                               .gradients_final = last ? gradients_final : NULL,
                               .context = &context};
        StepResult result;
        model_forward_backward(t->model, batch, &options, &result);
        state->loss_sum += result.loss_sum;
        state->weight_sum += result.weight_sum;
        state->z_sum += result.z_sum;
        if (state->bucket_error != NULL) {
            return state->bucket_error;
        }
    }
    return NULL;
}

// All that the ranks must agree on once a step, in two small all-reduces.
static Error *share_scalars(Trainer *t, StepState *state) {
    double sums[3] = {state->loss_sum, state->weight_sum, state->z_sum};
    TRY(comm_all_reduce_doubles(t->world, sums, 3, COMM_SUM));
    state->loss_sum = sums[0];
    state->weight_sum = sums[1];
    state->z_sum = sums[2];
    double most[1 + CHECKPOINT_FLAGS] = {(double)stop_requested};
    checkpoint_writer_flags(t->writer, most + 1);
    TRY(comm_all_reduce_doubles(t->world, most, 1 + CHECKPOINT_FLAGS, COMM_MAX));
    state->stop = most[0] > 0;
    checkpoint_writer_advance(t->writer, most + 1);  // a failed save was logged by the writer; the next one tries again
    return NULL;
}

// Clips and applies the summed gradients, which are the same bits on every rank; skips a step without a finite gradient.
static Error *update(Trainer *t, StepState *state, double learning_rate) {
    const RunConfig *config = t->config;
    double mean = state->weight_sum > 0 ? (double)config->train.batch_tokens / state->weight_sum : 0;
    double norm = sqrt(t->device->op->sum_of_squares(t->device, t->model->table.elements, t->model->grads)) * mean;
    state->grad_norm = norm;
    if (!isfinite(norm) || state->weight_sum <= 0) {
        t->skipped++;
        if (++t->skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW) {
            return failure("%d steps in a row had no finite gradient (now step %lld): the model is lost; continue from an "
                           "older checkpoint with a lower "
                           "optimizer.learning_rate",
                           MOST_SKIPPED_IN_A_ROW, (long long)t->step + 1);
        }
        log_info("step %lld is skipped: its gradient is not finite", (long long)t->step + 1);
        return NULL;
    }
    t->skipped_in_a_row = 0;
    double clip = config->optimizer.clip > 0 && norm > config->optimizer.clip ? config->optimizer.clip / norm : 1;
    OptimizerStep step = {.kind = (OptimizerKind)config->optimizer.kind,
                          .beta1 = (float)config->optimizer.beta1,
                          .beta2 = (float)config->optimizer.beta2,
                          .epsilon = (float)config->optimizer.epsilon,
                          .step = t->step + 1 - t->skipped,
                          .grad_scale = (float)(mean * clip)};
    model_optimizer_step(t->model, &step, learning_rate, config->optimizer.weight_decay, 0, t->model->table.elements);
    model_params_changed(t->model);
    return NULL;
}

static void print_step(const Trainer *t, const TrainRecord *r, double start, int64_t start_step) {
    char rate[32], left[32];
    double per_step = (clock_seconds() - start) / (double)(t->step - start_step);
    log_info("step %lld/%lld  loss %.4f  lr %.2e  grad norm %.2f  %s tokens/s  data wait %.1f%%  comm wait %.1f%%  %s left",
             (long long)t->step, (long long)t->config->train.steps, r->loss, r->learning_rate, r->grad_norm,
             text_count(rate, r->tokens_per_second), 100 * r->data_wait, 100 * r->comm_wait,
             text_duration(left, per_step * (double)(t->config->train.steps - t->step)));
}

static Error *train_step(Trainer *t, StepState *state) {
    double start = clock_seconds(), data_before = loader_waited(t->loader),
           learning_rate = schedule_rate(&t->schedule, t->step);
    TRY(compute_gradients(t, state));
    TRY(buckets_finish(t->buckets));
    double comm_waited = buckets_time(t->buckets).waited, before = clock_seconds();
    TRY(share_scalars(t, state));
    comm_waited += clock_seconds() - before;
    TRY(update(t, state, learning_rate));
    t->step++;
    double seconds = clock_seconds() - start;
    run_record_step(&t->record, seconds);
    if (t->world->rank != 0) {
        return NULL;
    }
    TrainRecord record = {.step = t->step,
                          .tokens = t->step * t->config->train.batch_tokens,
                          .skipped = t->skipped,
                          .loss = state->loss_sum / state->weight_sum,
                          .learning_rate = learning_rate,
                          .grad_norm = state->grad_norm,
                          .tokens_per_second = (double)t->config->train.batch_tokens / seconds,
                          .step_seconds = seconds,
                          .data_wait = (loader_waited(t->loader) - data_before) / seconds,
                          .comm_wait = comm_waited / seconds};
    if (trainer_due(t->config->log.every, t->step) || t->step == t->config->train.steps) {
        print_step(t, &record, t->record.loop_start, t->record.first_step);
    }
    return metrics_train(t->metrics, &record);
}

static Error *train_loop(Trainer *t, bool *stopped) {
    const RunConfig *config = t->config;
    if (t->step == 0) {
        TRY(trainer_look(t, true));
    }
    run_record_loop(&t->record, t->step);
    while (t->step < config->train.steps && !*stopped) {
        StepState state = {0};
        TRY(train_step(t, &state));
        bool last = t->step == config->train.steps;
        *stopped = state.stop && !last;
        TRY(trainer_look(t, last));
        if (trainer_due(config->checkpoint.every, t->step) || last || *stopped) {
            // An earlier save that still writes is waited for only where this one must not be left out.
            if (last || *stopped) {
                TRY(trainer_finish_checkpoint(t));
            }
            if (checkpoint_writer_idle(t->writer)) {
                trainer_begin_checkpoint(t);
            } else {
                log_info("step %lld: the checkpoint before is still being written; this one is left out", (long long)t->step);
            }
        }
    }
    return trainer_finish_checkpoint(t);
}

// ---- The whole
// --------------------------------------------------------------------------------------------------------------------------

static Error *run(Trainer *t, bool *stopped) {
    const RunConfig *config = t->config;
    // In this order, so that a mistake in the configuration is one line of rank 0 and nothing was created yet.
    TRY(comm_agree(t->world, trainer_make_mesh(t)));
    TRY(comm_agree(t->world, trainer_prepare(t)));
    TRY(comm_agree(t->world, trainer_make_writer(t)));
    TRY(trainer_resume(t));
    if (t->world->rank == 0) {
        run_record_print(config, t->model, &t->corpus, t->order, t->mesh, t->micro_batches);
        memory_plan_print(&t->model->plan, stderr);
    }
    TRY(comm_agree(t->world, trainer_write_files(t)));
    TRY(run_record_create(&t->record, config, t->model, t->world));
    LoaderOptions loader = trainer_loader_options(t);
    t->loader = loader_create(&loader);
    t->buckets = buckets_create(t->mesh->group[MESH_DATA], t->model->grads, t->model->table.elements,
                                (int64_t)(config->parallel.bucket_mib * 1048576));
    if (t->step >= config->train.steps) {
        log_info("%s has done its %lld steps; raise train.steps to go on", config->folder, (long long)t->step);
        return NULL;
    }
    TRY(train_loop(t, stopped));
    return run_record_finish(&t->record, t->world);
}

static void trainer_free(Trainer *t) {
    loader_destroy(t->loader);
    buckets_destroy(t->buckets);
    checkpoint_writer_destroy(t->writer);
    metrics_close(t->metrics);
    run_record_free(&t->record);
    free(t->tensors);
    free(t->slices);
    if (t->model != NULL) {
        model_destroy(t->model);
    }
    device_close(t->device);
    order_free(t->order);
    if (t->tokenizer != NULL) {
        tokenizer_free(t->tokenizer);
    }
    corpus_close(&t->corpus);
    if (t->has_validation) {
        corpus_close(&t->validation);
    }
    mesh_destroy(t->mesh);
}

Error *train_run(RunConfig *config, const char *config_path, Comm *world, bool *stopped) {
    Trainer trainer = {.config = config, .config_path = config_path, .world = world};
    *stopped = false;
    Error *error = run(&trainer, stopped);
    trainer_free(&trainer);
    return error;
}
