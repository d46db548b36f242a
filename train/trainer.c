// Training: see trainer.h. This file is the story of a run: step after step, from the first to the last.
#include "train/trainer_state.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/text.h"
#include "train/replicas.h"

#include <signal.h>
#include <time.h>

enum { MOST_SKIPPED_AT_END = 10 };

static volatile sig_atomic_t stop_requested;

void train_request_stop(int signal_number) {
    stop_requested = signal_number;
}

// ---- A step
// -----------------------------------------------------------------------------------------------------------------------------

typedef struct BackwardContext {
    Trainer *trainer;
    int leaf;      // that is final
    int64_t from;  // so far
    Error *error;  // of the callback
} BackwardContext;

static void gradients_final(void *context, int64_t offset) {
    BackwardContext *c = context;
    Trainer *t = c->trainer;
    if (t->config->train.reproducible) {
        leaves_merge(t->model, c->leaf, offset, c->from);
        c->from = offset;
    }
    if (c->error == NULL) {
        c->error = buckets_final_from(t->buckets, offset);
    }
}

// The next micro-batch, as it lies on the device in place `m`.
static Batch load_batch(Trainer *t, int64_t m) {
    return model_bring_batch(t->model, trainer_next_batch(t), t->batches != NULL ? t->batches[m].tokens : NULL);
}

// A step's micro-batches, before any of them is computed on.
static void load_batches(Trainer *t) {
    for (int64_t m = 0; m < t->micro_batches; m++) {
        t->batches[m] = load_batch(t, m);
    }
}

static StepOptions step_options(const Trainer *t) {
    const RunConfig *config = t->config;
    // Scaled by the step's nominal number of targets, so that sums stay near means; the exact weight sum is put right by
    // step_decide.
    return (StepOptions){.grad_scale = (float)(1.0 / (double)config->train.batch_tokens),
                         .z_loss = (float)config->train.z_loss,
                         .seed = (uint64_t)config->seed};
}

// Forward and backward over micro-batches [begin, end) of this rank. `loaded`: they are on the device already; `last`:
// gradients are final, and `options` says who wants to know.
static void run_batches(Trainer *t, int64_t begin, int64_t end, bool loaded, bool last, StepOptions options) {
    void (*told)(void *, int64_t) = last && weights_gradients_whole(&t->model->weights) ? options.gradients_final : NULL;
    if (t->model->stages != NULL) {
        options.gradients_final = told;
        stages_run(t->model, t->batches + begin, &options);
        return;
    }
    for (int64_t m = begin; m < end && t->model->tensor->failed == NULL; m++) {
        Batch batch = loaded ? t->batches[m] : load_batch(t, m);
        options.gradients_final = m + 1 == end ? told : NULL;
        model_run_batch(t->model, &batch, &options);
    }
}

// Forward and backward over this rank's micro-batches; the gradient sums start to travel during the last backward pass. Leaves
// of sums in order are run one by one. `loaded`: the batches are on the device already.
static Error *compute_gradients(Trainer *t, bool loaded) {
    int leaves = leaves_here(&t->model->options.leaves);
    bool in_order = t->config->train.reproducible;
    BackwardContext context = {.trainer = t, .leaf = leaves - 1, .from = t->model->weights.placement.gradients};
    StepOptions options = step_options(t);
    options.gradients_final = gradients_final;
    options.context = &context;
    weights_zero_gradients(&t->model->weights);
    if (in_order) {
        leaves_begin(t->model);
    }
    if (t->model->stages != NULL && !loaded) {
        load_batches(t);
    }
    for (int leaf = 0; leaf < leaves && context.error == NULL && t->model->tensor->failed == NULL; leaf++) {
        bool last = leaf + 1 == leaves;
        if (last) {
            buckets_begin(t->buckets);
        }
        run_batches(t, t->micro_batches * leaf / leaves, t->micro_batches * (leaf + 1) / leaves, loaded, last, options);
        if (in_order) {
            leaves_put_losses(t->model, leaf);
        }
        if (!last) {
            leaves_merge(t->model, leaf, 0, t->model->weights.placement.gradients);
            leaves_keep(t->model, leaf);
        }
    }
    error_keep(&context.error, model_tensor_error(t->model));
    return context.error;
}

// From the gradients of all micro-batches to new parameters.
static Error *finish_operations(Trainer *t) {
    const RunConfig *config = t->config;
    TRY(buckets_finish(t->buckets));
    model_finish_gradients(t->model);
    model_sum_tensor_gradients(t->model);
    if (t->watch != NULL && t->record.loop_start > 0) {
        t->watch->gradients(t->watch->context, t);
    }
    Group *sharing = mesh_group(t->mesh, OVER_TOKENS | OVER_PIPELINE);
    TRY(config->train.reproducible ? leaves_sum_losses(t->model, sharing)
                                   : group_all_reduce(sharing, ELEMENT_FP64, COMM_SUM, &t->model->control->loss_sum, 3));
    model_finish_step(t->model, &(UpdateOptions){.batch_weight = (double)config->train.batch_tokens,
                                                 .clip = (float)config->optimizer.clip,
                                                 .beta1 = (float)config->optimizer.beta1,
                                                 .beta2 = (float)config->optimizer.beta2,
                                                 .epsilon = (float)config->optimizer.epsilon,
                                                 .seed = (uint64_t)config->seed});
    TRY(model_tensor_error(t->model));
    return model_share_weights(t->model, config->parallel.zero > 0 ? mesh_group(t->mesh, OVER_TOKENS) : NULL);
}

// The sets of axes that training exchanges over.
enum { SETS = 7 };
typedef struct Sets {
    int axes[SETS];
} Sets;

// Those over whose ranks a step's gradients lie in parts.
static int over_parts(const Trainer *t) {
    return (t->config->parallel.zero > 0 ? OVER_TOKENS : 0) | OVER_TENSOR | OVER_PIPELINE;
}

static Sets sets_of(const Trainer *t) {
    // Data alone: who validates, each with texts of its own.
    return (Sets){
        {OVER_DATA, OVER_CONTEXT, OVER_TOKENS, OVER_TENSOR, OVER_PIPELINE, OVER_TOKENS | OVER_PIPELINE, over_parts(t)}};
}

// What went wrong between ranks since it was last asked.
static Error *check_groups(Trainer *t) {
    Sets sets = sets_of(t);
    for (int i = 0; i < SETS; i++) {
        TRY(group_check(mesh_group(t->mesh, sets.axes[i])));
    }
    return t->links != NULL ? pipeline_links_check(t->links) : NULL;
}

// The operations of a step, from the batches to new parameters. On a card all of them are only called here, not waited for.
static Error *operations(Trainer *t, bool loaded) {
    TRY(compute_gradients(t, loaded));
    return finish_operations(t);
}

// Takes the results of the oldest step under way. Where other ranks take part, what goes wrong between them is asked for all
// the while: the card itself would wait for ever.
static Error *receive_control(Trainer *t) {
    const struct timespec nap = {.tv_nsec = 50000};
    while (t->world->size > 1 && !model_control_returned(t->model)) {
        TRY(check_groups(t));
        nanosleep(&nap, NULL);
    }
    TRY(model_receive_control(t->model, &t->control));
    return check_groups(t);
}

// Runs the end of a step once without effect: libraries connect the ranks, and code is loaded, when they are first used, which
// must not be while a step is recorded.
static Error *rehearse_exchange(Trainer *t) {
    if (!t->late) {
        return NULL;
    }
    StepControl control = model_control(t->model);
    model_begin_step(t->model, 0);
    if (t->config->train.reproducible) {
        leaves_begin(t->model);
        leaves_merge(t->model, leaves_here(&t->model->options.leaves) - 1, 0, t->model->weights.placement.gradients);
    }
    weights_zero_gradients(&t->model->weights);
    buckets_begin(t->buckets);
    TRY(finish_operations(t));
    model_send_control(t->model);
    TRY(receive_control(t));
    ensure(t->control.skip != 0, "a step without tokens was not skipped");
    model_set_control(t->model, &control);
    return NULL;
}

// A step on a card: recorded the first time, where that is possible, and then repeated as a whole.
static Error *card_operations(Trainer *t) {
    load_batches(t);
    if (t->graph != NULL) {
        device_graph_run(t->device, t->graph);
        return NULL;
    }
    // Dropout's bits depend on the number of the sample, which a record would repeat.
    bool can =
        t->config->train.graph && t->config->model.dropout == 0 && (t->links == NULL || pipeline_links_recordable(t->links));
    Sets sets = sets_of(t);
    for (int i = 0; i < SETS; i++) {
        can &= mesh_group(t->mesh, sets.axes[i])->recordable;
    }
    bool recording = can && device_record(t->device);
    Error *error = operations(t, true);
    if (recording) {
        Error *ended = device_record_end(t->device, &t->graph);
        error_keep(&error, ended);
        if (error == NULL) {
            device_graph_run(t->device, t->graph);
        }
    }
    return error;
}

// What happened on any of the ranks.
typedef struct Shared {
    int stop;         // the number of a signal that asks to stop, or 0
    bool lost, gone;  // see Ending
} Shared;

// What the ranks must agree on once a step without the device's help: how the run ends, and the checkpoint under way.
static Error *share_flags(Trainer *t, Shared *shared) {
    trainer_watch_folder(t);
    double most[3 + CHECKPOINT_FLAGS] = {(double)stop_requested, t->ending.lost != NULL, t->ending.gone != NULL};
    checkpoint_writer_flags(t->writer, most + 3);
    TRY(comm_all_reduce_doubles(t->world, most, 3 + CHECKPOINT_FLAGS, COMM_MAX));
    *shared = (Shared){(int)most[0], most[1] > 0, most[2] > 0};
    checkpoint_writer_advance(t->writer, most + 3);  // a failed save was logged by the writer; the next one tries again
    return NULL;
}

static void print_step(const Trainer *t, const TrainRecord *r, double start, int64_t start_step) {
    char rate[32], left[32];
    double per_step = (clock_seconds() - start) / (double)(r->step - start_step);
    Buffer axes = {0};  // the wait for other ranks, by set of axes
    for (int set = 0; set <= OVER_ALL; set++) {
        const Group *group = t->mesh->group[set];
        if (group != NULL && r->traffic.sent[set] > 0) {
            buffer_printf(&axes, "%s%s %.1f%%", axes.size > 0 ? ", " : " (", group->name,
                          100 * r->traffic.waited[set] / r->step_seconds);
        }
    }
    buffer_text(&axes, axes.size > 0 ? ")" : "");
    log_info("step %lld/%lld  loss %.4f  lr %.2e  grad norm %.2f  %s tokens/s  data wait %.1f%%  comm wait %.1f%%%s  %s left",
             (long long)r->step, (long long)t->config->train.steps, r->loss, r->learning_rate, r->grad_norm,
             text_count(rate, r->tokens_per_second), 100 * r->data_wait, 100 * r->comm_wait, axes.data,
             text_duration(left, per_step * (double)(t->config->train.steps - r->step)));
    buffer_free(&axes);
}

// A streak of steps without a finite gradient: the model has gone where no step leads out of. What was saved before the streak
// is kept (trainer_make_writer). All ranks have the same control, so all come here.
static Error *check_streak(const Trainer *t, int64_t most) {
    int64_t streak = t->control.skipped_in_a_row;
    if (streak == 0 || streak < most) {
        return NULL;
    }
    const char *folder = t->config->folder;
    return comm_agree(t->world,
                      failure("%s: the last %lld steps, to step %lld, had no finite gradient: the model is lost; to go on from "
                              "before, move the checkpoints after step %lld out of %s/checkpoints and lower "
                              "optimizer.learning_rate",
                              folder, (long long)streak, (long long)t->told, (long long)(t->told - streak), folder));
}

// A run does not end well in a streak, if only a short one.
static Error *check_end(const Trainer *t) {
    int64_t most = t->config->train.most_skipped;
    most = most < MOST_SKIPPED_AT_END ? most : MOST_SKIPPED_AT_END;
    return check_streak(t, most < t->told ? most : t->told);
}

// Takes the results of the oldest step that is not told yet, and tells them.
static Error *tell_step(Trainer *t) {
    TRY(receive_control(t));
    const StepControl *control = &t->control;
    double now = clock_seconds(), seconds = now - t->told_at;
    t->told++;
    t->told_at = now;
    run_record_step(&t->record, seconds);
    if (t->watch != NULL) {
        t->watch->told(t->watch->context, t);
    }
    if (control->skip != 0) {
        TRY(check_streak(t, t->config->train.most_skipped));
        log_info("step %lld is skipped: its gradient is not finite", (long long)t->told);
    }
    if (t->world->rank != 0) {
        return NULL;
    }
    TrainRecord record = {.step = t->told,
                          .tokens = t->told * t->config->train.batch_tokens,
                          .skipped = control->skipped,
                          .loss = control->loss_sum / control->weight_sum,
                          .learning_rate = t->pending[t->told % 2].learning_rate,
                          .grad_norm = control->grad_norm,
                          .tokens_per_second = (double)t->config->train.batch_tokens / seconds,
                          .step_seconds = seconds,
                          .data_wait = t->pending[t->told % 2].data_waited / seconds,
                          .comm_wait = t->pending[t->told % 2].comm_waited / seconds,
                          .mesh = t->mesh,
                          .traffic = t->pending[t->told % 2].traffic};
    if (trainer_due(t->config->log.every, t->told) || t->told == t->config->train.steps) {
        print_step(t, &record, t->record.loop_start, t->record.first_step);
    }
    metrics_train(t->metrics, &record);
    trainer_warn_grace(t, seconds);
    return NULL;
}

// Tells all steps but the last `under_way` ones.
static Error *tell_steps(Trainer *t, int64_t under_way) {
    while (t->step - t->told > under_way) {
        TRY(tell_step(t));
    }
    return NULL;
}

// A step that some rank had no data for was skipped by all. Takes it back: the next save is that of the step before.
static Error *undo_step(Trainer *t) {
    TRY(tell_steps(t, 0));
    StepControl control = t->control;
    TRY(receive_control(t));
    ensure(t->control.skip != 0, "a step without data was not skipped");
    t->control = control;
    model_set_control(t->model, &control);
    return NULL;
}

// Between the ranks of a pipeline, messages count too.
static MeshTraffic traffic_so_far(const Trainer *t) {
    MeshTraffic traffic = mesh_traffic(t->mesh);
    if (t->links != NULL) {
        pipeline_links_count(t->links, &traffic.sent[OVER_PIPELINE], &traffic.waited[OVER_PIPELINE]);
    }
    return traffic;
}

static Error *train_step(Trainer *t, Shared *shared) {
    double data_before = loader_waited(t->loader), learning_rate = schedule_rate(&t->schedule, t->step);
    MeshTraffic traffic_before = traffic_so_far(t), traffic_after, traffic;
    model_begin_step(t->model, learning_rate);
    TRY(t->late ? card_operations(t) : operations(t, false));
    model_send_control(t->model);
    double before = clock_seconds();
    TRY(share_flags(t, shared));
    double comm_waited = clock_seconds() - before;
    traffic_after = traffic_so_far(t);
    traffic = mesh_traffic_between(&traffic_before, &traffic_after);
    for (int axes = 0; axes <= OVER_ALL; axes++) {
        comm_waited += traffic.waited[axes];
    }
    if (shared->lost) {
        return undo_step(t);
    }
    t->step++;
    t->pending[t->step % 2].learning_rate = learning_rate;
    t->pending[t->step % 2].data_waited = loader_waited(t->loader) - data_before;
    t->pending[t->step % 2].comm_waited = comm_waited;
    t->pending[t->step % 2].traffic = traffic;
    return tell_steps(t, t->late ? 1 : 0);
}

// Validation and samples. What goes wrong there, on one rank or all, is told and does not end the run, but for a model that is
// lost, and for what is wrong before anything was done.
static Error *look(Trainer *t, bool edge) {
    if (!edge && !trainer_looks(t)) {
        return NULL;
    }
    double before = clock_seconds();
    Error *error = comm_agree(t->world, trainer_look(t, edge));
    t->told_at += clock_seconds() - before;
    if (error == NULL || error->kind == ERROR_NOT_FINITE || t->step == 0) {
        return error;
    }
    if (*error->message != 0) {
        log_warning("step %lld: %s; training goes on", (long long)t->step, error->message);
    }
    error_free(error);
    return comm_agree(t->world, NULL);  // the ranks do not leave after all; where they cannot agree, they do
}

// Begins a save. One before that is still being written is waited for where this one must not be left out.
static Error *save(Trainer *t, bool needed) {
    bool kept = trainer_due(t->config->checkpoint.keep_every, t->step);
    if (kept && !needed && !checkpoint_writer_idle(t->writer)) {
        log_info("step %lld: training waits for the checkpoint before, because this one is to be kept (checkpoint.keep_every)",
                 (long long)t->step);
    }
    if (needed || kept) {
        TRY(trainer_finish_checkpoint(t, false));
    }
    if (checkpoint_writer_idle(t->writer)) {
        trainer_begin_checkpoint(t);
    } else {
        log_info("step %lld: the checkpoint before is still being written; this one is left out", (long long)t->step);
    }
    return NULL;
}

// Where it is due, that ranks still hold alike what they should.
static Error *check_replicas(Trainer *t) {
    int64_t every = t->config->train.check_replicas;
    if (t->world->size == 1 || !trainer_due(every, t->step)) {
        return NULL;
    }
    double before = clock_seconds();
    Error *error = replicas_check(&t->model->weights, t->world);
    double seconds = clock_seconds() - before;
    t->told_at += seconds;
    if (error == NULL && t->step == every) {
        log_info("step %lld: what ranks hold alike is the same to the bit, which took %.2f s to find (train.check_replicas)",
                 (long long)t->step, seconds);
    }
    // Rank 0 tells it for all.
    return error != NULL && *error->message != 0 ? error_wrap(error, "step %lld", (long long)t->step) : error;
}

static Error *train_loop(Trainer *t, bool *stopped) {
    const RunConfig *config = t->config;
    if (t->step == 0) {
        TRY(look(t, true));
    }
    t->control = model_control(t->model);
    if (t->watch != NULL) {
        t->watch->begun(t->watch->context, t);
    }
    run_record_loop(&t->record, t->step);
    t->told_at = clock_seconds();
    while (t->step < config->train.steps && !*stopped) {
        Shared shared;
        TRY(train_step(t, &shared));
        if (shared.lost || shared.gone) {
            return shared.gone ? trainer_end_gone(t) : trainer_end_lost(t);
        }
        bool last = t->step == config->train.steps, due = last || trainer_due(config->checkpoint.every, t->step);
        *stopped = shared.stop != 0 && !last;
        if (*stopped) {
            log_info("SIG%s asks to stop: the run is saved after step %lld and ends", sigabbrev_np(shared.stop),
                     (long long)t->step);
        }
        if (due || *stopped || trainer_looks(t)) {
            TRY(tell_steps(t, 0));
        }
        TRY(check_replicas(t));
        TRY(look(t, last));
        if (due || *stopped) {
            TRY(save(t, last || *stopped));
        }
    }
    TRY(trainer_finish_checkpoint(t, true));
    return check_end(t);
}

// ---- The whole
// --------------------------------------------------------------------------------------------------------------------------

static Buckets *make_buckets(const Trainer *t) {
    const ModelWeights *weights = &t->model->weights;
    Group *group = mesh_group(t->mesh, OVER_TOKENS);
    // Gradients in shards are summed layer by layer, whatever the size of a bucket.
    int64_t count = weights_gradients_whole(weights) ? weights->placement.gradients : 0;
    if (t->config->train.reproducible) {
        return buckets_create_in_order(group, t->device, weights->grads, count, t->model->options.leaves.bucket,
                                       t->model->leaves.exchange);
    }
    return buckets_create(group, weights->grads, count, run_bucket_bytes(t->config), t->config->parallel.zero > 0);
}

static Error *run(Trainer *t, bool *stopped) {
    const RunConfig *config = t->config;
    // In this order, so that a mistake in the configuration is one line of rank 0 and nothing was created yet.
    TRY(trainer_compare_given(config, t->world));
    TRY(comm_agree(t->world, trainer_open(t)));
    TRY(comm_agree(t->world, trainer_make_mesh(t)));
    TRY(comm_agree(t->world, trainer_prepare(t)));
    TRY(trainer_compare_prepared(t));
    TRY(comm_agree(t->world, trainer_make_model(t)));
    TRY(trainer_make_writer(t));
    TRY(trainer_resume(t));
    if (t->step >= config->train.steps) {
        // Nothing to do, so nothing in the folder changes.
        log_info("%s has done its %lld steps; raise train.steps to go on", config->folder, (long long)t->step);
        return check_end(t);
    }
    if (t->world->rank == 0) {
        run_record_print(config, t->model, &t->corpus, t->order, t->mesh, t->micro_batches);
        memory_plan_print(&t->plan, &t->machine, stderr);
    }
    TRY(comm_agree(t->world, trainer_write_files(t)));
    TRY(comm_agree(t->world, t->world->rank == 0 ? metrics_begin(t->metrics) : NULL));
    TRY(comm_agree(t->world, run_record_create(&t->record, config, t->model, &t->plan, t->run, t->resumed, t->world)));
    LoaderOptions loader = trainer_loader_options(t);
    t->loader = loader_create(&loader);
    Sets sets = sets_of(t);
    TRY(mesh_attach(t->mesh, t->device, sets.axes, SETS));
    t->model->tensor->group = mesh_group(t->mesh, OVER_TENSOR);
    t->model->tensor->context = mesh_group(t->mesh, OVER_CONTEXT);
    t->model->tensor->owners = mesh_group(t->mesh, OVER_TOKENS);
    t->model->tensor->norm = mesh_group(t->mesh, over_parts(t))->size > 1 ? mesh_group(t->mesh, over_parts(t)) : NULL;
    if (t->model->stages != NULL) {
        TRY(pipeline_links_create(mesh_group(t->mesh, OVER_PIPELINE), &t->model->options.stages.shape, t->device, &t->links));
        t->model->tensor->links = t->links;
    }
    TRY(trainer_rehearse(t));
    t->buckets = make_buckets(t);
    TRY(rehearse_exchange(t));
    TRY(train_loop(t, stopped));
    return run_record_finish(&t->record, &t->machine, t->device, t->world);
}

static void trainer_free(Trainer *t, bool failed) {
    // A card may be waiting for ranks that never come, and NCCL gives up a group only once no graph holds it: nothing is taken
    // down then. The caller ends the process.
    if (failed && t->late && t->world->size > 1) {
        return;
    }
    if (t->graph != NULL) {
        device_graph_destroy(t->device, t->graph);
    }
    pipeline_links_close(t->links, failed);
    if (t->mesh != NULL) {
        mesh_detach(t->mesh, failed);
    }
    loader_destroy(t->loader);
    buckets_destroy(t->buckets);
    checkpoint_writer_destroy(t->writer);
    metrics_close(t->metrics);
    run_record_free(&t->record);
    trainer_ending_free(t);
    model_parts_free(&t->parts);
    if (t->batch_memory != NULL) {
        device_release(t->device, t->batch_memory, t->batch_bytes);
    }
    free(t->batches);
    model_destroy(t->model);
    device_close(t->device);
    order_free(t->order);
    if (t->tokenizer != NULL) {
        tokenizer_free(t->tokenizer);
    }
    kept_sums_close(t->kept);
    kept_sums_close(t->validation_kept);
    corpus_close(&t->corpus);
    if (t->has_validation) {
        corpus_close(&t->validation);
    }
    mesh_destroy(t->mesh);
}

Error *train_run(RunConfig *config, const char *config_path, Comm *world, bool *stopped) {
    return train_run_watched(config, config_path, world, NULL, stopped);
}

Error *train_run_watched(RunConfig *config, const char *config_path, Comm *world, const TrainerWatch *watch, bool *stopped) {
    Trainer trainer = {.watch = watch, .config = config, .config_path = config_path, .world = world};
    *stopped = false;
    Error *error = run(&trainer, stopped);
    trainer_free(&trainer, error != NULL);
    return error;
}
