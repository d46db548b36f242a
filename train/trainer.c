// Training: see trainer.h. This file is the story of a run: prepare, resume, step after step, end.
#include "train/trainer.h"

#include "core/clock.h"
#include "core/durable.h"
#include "core/log.h"
#include "core/text.h"
#include "data/loader.h"
#include "parallel/buckets.h"
#include "parallel/mesh.h"
#include "parallel/sharding.h"
#include "train/evaluate.h"
#include "train/generate.h"
#include "train/metrics.h"
#include "train/run_record.h"
#include "train/saved_run.h"

#include <math.h>
#include <signal.h>

// This many steps in a row without a finite gradient mean that the model is lost.
enum { MOST_SKIPPED_IN_A_ROW = 50 };

typedef struct Trainer {
    RunConfig *config;
    const char *config_path;
    Comm *world;
    Mesh *mesh;
    Device *device;
    Corpus corpus, validation;
    bool has_validation;
    Tokenizer *tokenizer;
    Order *order;
    Loader *loader;
    Model *model;
    Buckets *buckets;
    CheckpointWriter *writer;
    CheckpointTensor *tensors;
    CheckpointSlice *slices;
    int slice_count;
    Metrics *metrics;  // rank 0
    RunRecord record;
    Schedule schedule;
    int64_t micro_batches;  // per rank and step
    int64_t step;           // steps done
    int64_t skipped, skipped_in_a_row;
    bool resumed;
} Trainer;

static volatile sig_atomic_t stop_requested;

void train_request_stop(void) {
    stop_requested = 1;
}

// ---- Prepare: what each rank can do alone
// -----------------------------------------------------------------------------------------------

static Error *open_corpora(Trainer *t) {
    const RunConfig *config = t->config;
    TRY(corpus_open(config->data.corpus, &t->corpus));
    if (t->corpus.tokenizer_path != NULL) {
        TRY(tokenizer_load(t->corpus.tokenizer_path, &t->tokenizer));
        if (t->corpus.tokenizer_fingerprint != 0 && tokenizer_fingerprint(t->tokenizer) != t->corpus.tokenizer_fingerprint) {
            return damaged("%s is not the tokenizer that made %s; build the corpus again", t->corpus.tokenizer_path,
                           t->corpus.path);
        }
    } else if (config->model.vocabulary == 0) {
        return failure("%s: corpus %s does not tell its vocabulary; set model.vocabulary", t->config_path, t->corpus.path);
    }
    if (config->data.validation == NULL) {
        return NULL;
    }
    t->has_validation = true;
    TRY(corpus_open(config->data.validation, &t->validation));
    if (t->corpus.tokenizer_fingerprint != 0 && t->validation.tokenizer_fingerprint != 0 &&
        t->corpus.tokenizer_fingerprint != t->validation.tokenizer_fingerprint) {
        return failure("%s and %s were built with different tokenizers; build one of them again", t->corpus.path,
                       t->validation.path);
    }
    return NULL;
}

static int choose_threads(const Trainer *t) {
    int share = threads_available() / t->world->host_size;
    return t->config->threads > 0 ? (int)t->config->threads : share > 1 ? share : 1;
}

static LoaderOptions loader_options(const Trainer *t) {
    const RunConfig *config = t->config;
    return (LoaderOptions){.order = t->order,
                           .corpus = &t->corpus,
                           .sequences = config->train.micro_batch,
                           .length = config->data.sequence_length,
                           .micro_batches = t->micro_batches,
                           .rank = t->mesh->coordinate[MESH_DATA],
                           .ranks = t->mesh->size[MESH_DATA],
                           .first_step = t->step,
                           .prefetch = (int)config->data.prefetch,
                           .documents_apart = config->data.documents_apart};
}

// This rank's slices of weights and moments: its even part of the flat arrays (each data-parallel rank saves a part of what all
// hold).
static void make_slices(Trainer *t) {
    const ParamTable *table = &t->model->table;
    t->tensors = memory_zeroed((size_t)table->count, sizeof *t->tensors);
    ShardTensor *places = memory_new((size_t)table->count, sizeof *places);
    for (int32_t i = 0; i < table->count; i++) {
        const Param *param = &table->rows[i];
        places[i] = (ShardTensor){param->offset, param->count};
        t->tensors[i] =
            (CheckpointTensor){.name = param->name, .dims = param->rank, .shape = {param->shape[0], param->shape[1]}};
    }
    ShardPiece *pieces;
    Range own = shard_owned(table->elements, t->world->size, t->world->rank);
    int count = shard_pieces(places, table->count, own, &pieces);
    const float *const arrays[SLICE_KINDS] = {t->model->params, t->model->moment1, t->model->moment2};
    t->slices = memory_zeroed((size_t)count * SLICE_KINDS + 1, sizeof *t->slices);
    for (int kind = 0; kind < SLICE_KINDS; kind++) {
        for (int i = 0; arrays[kind] != NULL && i < count; i++) {
            t->slices[t->slice_count++] = (CheckpointSlice){pieces[i].tensor, (SliceKind)kind, pieces[i].begin, pieces[i].end,
                                                            arrays[kind] + pieces[i].flat};
        }
    }
    free(pieces);
    free(places);
}

static Error *make_model(Trainer *t) {
    const RunConfig *config = t->config;
    int64_t program = (int64_t)memory_resident();
    ModelOptions options = {.sequences = config->train.micro_batch,
                            .length = config->data.sequence_length,
                            .recompute = (Recompute)config->train.recompute,
                            .optimizer = (OptimizerKind)config->optimizer.kind,
                            .head_rows = config->train.head_rows};
    TRY(model_create(t->device, &config->model, &options, &t->model));
    make_slices(t);
    MemoryPlan *plan = &t->model->plan;
    LoaderOptions loader = loader_options(t);
    memory_plan_add(plan, "batches", (int64_t)loader_bytes(&loader), "%lld + 1 micro-batches",
                    (long long)config->data.prefetch);
    memory_plan_add(plan, "checkpoint snapshot", (int64_t)checkpoint_snapshot_bytes(t->slices, t->slice_count),
                    "this rank's share of weights and moments");
    memory_plan_add(plan, "program and corpus index", program, "resident before the model was made");
    return NULL;
}

static Error *prepare_alone(Trainer *t) {
    RunConfig *config = t->config;
    TRY(open_corpora(t));
    TRY(run_config_resolve(config, t->corpus.vocabulary > 0 ? t->corpus.vocabulary : 0, t->mesh->size[MESH_DATA],
                           t->config_path));
    TRY(order_create(&t->corpus, config->data.sequence_length, &config->data.mixture, &config->data.epochs,
                     (uint64_t)config->seed, &t->order));
    t->micro_batches =
        config->train.batch_tokens / (config->train.micro_batch * config->data.sequence_length * t->mesh->size[MESH_DATA]);
    t->schedule = (Schedule){.kind = (ScheduleKind)config->schedule.kind,
                             .peak = config->optimizer.learning_rate,
                             .floor = config->schedule.floor,
                             .warmup_steps = config->schedule.warmup_steps,
                             .decay_steps = config->schedule.decay_steps,
                             .steps = config->train.steps};
    TRY(device_open_cpu(choose_threads(t), config->instruction_set, &t->device));
    TRY(make_model(t));
    return memory_plan_check(&t->model->plan);
}

static Error *make_mesh(Trainer *t) {
    const RunConfig *config = t->config;
    if (config->parallel.tensor != 1 || config->parallel.pipeline != 1 || config->parallel.context != 1) {
        return failure(
            "%s: parallel.tensor, parallel.pipeline and parallel.context must be 1: this version is data-parallel only",
            t->config_path);
    }
    int sizes[MESH_AXES] = {(int)config->parallel.data, 1, 1, 1};
    return mesh_create(t->world, sizes, &t->mesh);
}

// ---- The run folder and resuming
// --------------------------------------------------------------------------------------------------------

static Error *make_writer(Trainer *t) {
    const RunConfig *config = t->config;
    if (t->world->rank == 0) {
        TRY(folder_create(config->folder));
    }
    char layout[96];
    CheckpointPlan plan = {.run_folder = config->folder,
                           .rank = t->world->rank,
                           .ranks = t->world->size,
                           .keep_last = (int)config->checkpoint.keep_last,
                           .keep_every = config->checkpoint.keep_every,
                           .layout = mesh_layout(t->mesh, layout),
                           .model = model_config_hash(&config->model),
                           .seed = (uint64_t)config->seed,
                           .tensors = t->tensors,
                           .tensor_count = t->model->table.count,
                           .slices = t->slices,
                           .slice_count = t->slice_count};
    return checkpoint_writer_create(&plan, &t->writer);
}

// The checkpoint is of another model: says in which key, as far as the saved configuration tells.
static Error *other_model(const Trainer *t, const char *checkpoint) {
    char *path = path_join(t->config->folder, "config.yaml");
    RunConfig there = {0};
    Error *error = run_config_read(&there, path, NULL, 0);
    error = error == NULL ? run_config_resolve(&there, 0, 1, path) : error;
    error = error == NULL ? model_config_same(&there.model, &t->config->model, checkpoint) : error;
    Error *told = failure("%s; choose another folder, or remove this run",
                          error != NULL ? error->message : "the checkpoint is of another model");
    error_free(error);
    run_config_free(&there);
    free(path);
    return told;
}

// What a checkpoint says of the run beside its weights.
static json_t *make_state(const Trainer *t) {
    return json_pack("{s:I, s:I, s:I, s:o, s:o, s:I, s:I}", "samples",
                     (json_int_t)(t->step * (t->config->train.batch_tokens / t->config->data.sequence_length)), "batch_tokens",
                     (json_int_t)t->config->train.batch_tokens, "sequence_length", (json_int_t)t->config->data.sequence_length,
                     "corpus", json_hex64(t->corpus.fingerprint), "order", json_hex64(order_fingerprint(t->order)), "skipped",
                     (json_int_t)t->skipped, "skipped_in_a_row", (json_int_t)t->skipped_in_a_row);
}

// The run goes on only where everything that decides its course is the same.
static Error *check_state(Trainer *t, const CheckpointInfo *info, const char *path) {
    int64_t batch_tokens, length;
    uint64_t corpus, order;
    TRY(json_field_i64(info->state, path, "batch_tokens", 1, INT64_MAX, &batch_tokens));
    TRY(json_field_i64(info->state, path, "sequence_length", 1, INT64_MAX, &length));
    TRY(json_field_i64(info->state, path, "skipped", 0, INT64_MAX, &t->skipped));
    TRY(json_field_i64(info->state, path, "skipped_in_a_row", 0, INT64_MAX, &t->skipped_in_a_row));
    TRY(json_field_hex64(info->state, path, "corpus", &corpus));
    TRY(json_field_hex64(info->state, path, "order", &order));
    if (info->model != model_config_hash(&t->config->model)) {
        return other_model(t, path);
    }
    if (corpus != t->corpus.fingerprint) {
        return failure("%s was trained on another corpus than %s is now; restore the corpus or choose another folder", path,
                       t->corpus.path);
    }
    if (length != t->config->data.sequence_length || batch_tokens != t->config->train.batch_tokens) {
        return failure("%s was trained with data.sequence_length=%lld and train.batch_tokens=%lld; here they are %lld and %lld",
                       path, (long long)length, (long long)batch_tokens, (long long)t->config->data.sequence_length,
                       (long long)t->config->train.batch_tokens);
    }
    if (order != order_fingerprint(t->order) || info->seed != (uint64_t)t->config->seed) {
        return failure("%s was trained with another seed, data.mixture or data.epochs: the samples would not go on; restore "
                       "them or choose another folder",
                       path);
    }
    return NULL;
}

static Error *load_checkpoint(Trainer *t, const char *path) {
    Checkpoint *checkpoint;
    Buffer history = {0}, samples = {0};
    TRY(checkpoint_open(path, false, &checkpoint));
    Error *error = check_state(t, checkpoint_info(checkpoint), path);
    if (error == NULL) {
        t->step = checkpoint_info(checkpoint)->step;
        t->resumed = true;
        error = checkpoint_load_model(checkpoint, t->model, true);
    }
    if (error == NULL && t->world->rank == 0) {
        error = checkpoint_blob(checkpoint, "metrics.jsonl", &history);
        error = error == NULL ? checkpoint_blob(checkpoint, "samples.jsonl", &samples) : error;
        error = error == NULL ? metrics_open(t->config->folder, &history, &samples, &t->metrics) : error;
        error = error == NULL ? metrics_resume(t->metrics, t->step) : error;
    }
    buffer_free(&history);
    buffer_free(&samples);
    checkpoint_close(checkpoint);
    return error;
}

// Rank 0 finds the newest good checkpoint and tells the others; none means a new run.
static Error *resume_or_start(Trainer *t) {
    Buffer path = {0};
    Error *error = NULL;
    if (t->world->rank == 0) {
        char *found = NULL;
        Strings skipped = {0};
        error = checkpoint_find(t->config->folder, &found, &skipped);
        for (size_t i = 0; i < skipped.count; i++) {
            log_warning("%s", skipped.items[i]);
        }
        if (error != NULL && error->kind == ERROR_MISSING) {
            error_free(error);
            error = NULL;
        }
        buffer_text(&path, found != NULL ? found : "");
        strings_free(&skipped);
        free(found);
    }
    TRY(comm_agree(t->world, error));
    TRY(comm_broadcast_buffer(t->world, &path, 0));
    if (path.size > 0) {
        error = load_checkpoint(t, path.data);
        if (error == NULL) {
            log_info("continue %s after step %lld", t->config->folder, (long long)t->step);
        }
    } else {
        model_initialise(t->model, (uint64_t)t->config->seed);
        if (t->world->rank == 0) {
            error = metrics_open(t->config->folder, NULL, NULL, &t->metrics);
        }
    }
    buffer_free(&path);
    return comm_agree(t->world, error);
}

static Error *write_run_files(Trainer *t) {
    if (t->world->rank != 0) {
        return NULL;
    }
    Buffer yaml = {0};
    run_config_write(t->config, &yaml);
    char *path = path_join(t->config->folder, "config.yaml");
    Error *error = file_write(path, yaml.data, yaml.size);
    free(path);
    buffer_free(&yaml);
    if (error == NULL && t->corpus.tokenizer_path != NULL) {
        error = file_read(t->corpus.tokenizer_path, (size_t)1 << 30, &yaml);
        path = path_join(t->config->folder, path_name(t->corpus.tokenizer_path));
        error = error == NULL ? file_write(path, yaml.data, yaml.size) : error;
        free(path);
        buffer_free(&yaml);
    }
    return error;
}

// ---- On the way: validation, samples, checkpoints
// ---------------------------------------------------------------------------------------

static Error *validate(Trainer *t) {
    if (!t->has_validation || t->config->validation.every == 0) {
        return NULL;
    }
    SetScore *scores = memory_zeroed((size_t)t->validation.set_count, sizeof *scores);
    Error *error = evaluate_corpus(t->model, &t->validation, t->tokenizer, t->config->data.documents_apart,
                                   t->config->validation.samples, t->world, false, scores);
    if (error == NULL && t->world->rank == 0) {
        SetScore total = score_total(scores, t->validation.set_count);
        log_info("step %lld: held-out loss %.4f, perplexity %.2f, %.3f bits per byte", (long long)t->step, score_loss(&total),
                 exp(score_loss(&total)), score_bits_per_byte(&total));
        for (int d = 0; d < t->validation.set_count && error == NULL && t->validation.set_count > 1; d++) {
            if (scores[d].tokens > 0) {
                error =
                    metrics_valid(t->metrics, t->step, scores[d].name, score_loss(&scores[d]), score_bits_per_byte(&scores[d]));
            }
        }
        error =
            error == NULL ? metrics_valid(t->metrics, t->step, "all", score_loss(&total), score_bits_per_byte(&total)) : error;
    }
    free(scores);
    return error;
}

// Rank 0 writes sample texts; the others meet it at the next collective.
static Error *write_samples(Trainer *t) {
    const RunConfig *config = t->config;
    if (config->samples.every == 0 || t->tokenizer == NULL || t->world->rank != 0) {
        return NULL;
    }
    GenerateOptions options = {.tokens = config->samples.tokens,
                               .sampling = {.temperature = config->samples.temperature,
                                            .top_k = config->samples.top_k,
                                            .top_p = config->samples.top_p,
                                            .seed = (uint64_t)config->seed}};
    for (size_t i = 0; i < config->samples.prompts.count; i++) {
        Buffer text = {0};
        const char *prompt = config->samples.prompts.items[i];
        Error *error = generate_to_buffer(t->model, t->tokenizer, prompt, &options, &text);
        if (error == NULL) {
            error = metrics_sample(t->metrics, t->step, prompt, text.data ? text.data : "", text.size);
        }
        buffer_free(&text);
        TRY(error);
    }
    return NULL;
}

static bool due(int64_t every, int64_t step) {
    return every > 0 && step % every == 0;
}

static Error *look(Trainer *t, bool edge) {
    if (edge || due(t->config->validation.every, t->step)) {
        TRY(validate(t));
    }
    if (edge || due(t->config->samples.every, t->step)) {
        TRY(write_samples(t));
    }
    return NULL;
}

static void begin_checkpoint(Trainer *t) {
    json_t *state = make_state(t);
    CheckpointBlob blobs[2] = {{.name = "metrics.jsonl"}, {.name = "samples.jsonl"}};
    if (t->world->rank == 0) {
        blobs[0].bytes = metrics_history(t->metrics)->data;
        blobs[0].size = metrics_history(t->metrics)->size;
        blobs[1].bytes = metrics_samples(t->metrics)->data;
        blobs[1].size = metrics_samples(t->metrics)->size;
    }
    checkpoint_writer_begin(t->writer, t->step, state, blobs, 2);
    json_decref(state);
}

static Error *finish_checkpoint(Trainer *t) {
    CheckpointEvent event = CHECKPOINT_NOTHING;
    TRY(checkpoint_writer_wait(t->writer, t->world, &event));
    return NULL;
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
        ModelBatch input = {.sequences = batch->sequences,
                            .length = batch->length,
                            .tokens = batch->tokens,
                            .targets = batch->targets,
                            .weights = batch->weights,
                            .first = batch->first,
                            .positions = batch->positions,
                            .first_sample = batch->first_sample};
        // Scaled by the step's nominal number of targets, so that sums stay near means; the exact weight sum is put right in
        // update.
        StepOptions options = {.grad_scale = (float)(1.0 / (double)config->train.batch_tokens),
                               .z_loss = (float)config->train.z_loss,
                               .seed = (uint64_t)config->seed,
                               .gradients_final = last ? gradients_final : NULL,
                               .context = &context};
        StepResult result;
        model_forward_backward(t->model, &input, &options, &result);
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
    if (due(t->config->log.every, t->step) || t->step == t->config->train.steps) {
        print_step(t, &record, t->record.loop_start, t->record.first_step);
    }
    return metrics_train(t->metrics, &record);
}

static Error *train_loop(Trainer *t, bool *stopped) {
    const RunConfig *config = t->config;
    if (t->step == 0) {
        TRY(look(t, true));
    }
    run_record_loop(&t->record, t->step);
    while (t->step < config->train.steps && !*stopped) {
        StepState state = {0};
        TRY(train_step(t, &state));
        bool last = t->step == config->train.steps;
        *stopped = state.stop && !last;
        TRY(look(t, last));
        if (due(config->checkpoint.every, t->step) || last || *stopped) {
            // An earlier save that still writes is waited for only where this one must not be left out.
            if (last || *stopped) {
                TRY(finish_checkpoint(t));
            }
            if (checkpoint_writer_idle(t->writer)) {
                begin_checkpoint(t);
            } else {
                log_info("step %lld: the checkpoint before is still being written; this one is left out", (long long)t->step);
            }
        }
    }
    return finish_checkpoint(t);
}

// ---- The whole
// --------------------------------------------------------------------------------------------------------------------------

static Error *run(Trainer *t, bool *stopped) {
    const RunConfig *config = t->config;
    // In this order, so that a mistake in the configuration is one line of rank 0 and nothing was created yet.
    TRY(comm_agree(t->world, make_mesh(t)));
    TRY(comm_agree(t->world, prepare_alone(t)));
    TRY(comm_agree(t->world, make_writer(t)));
    TRY(resume_or_start(t));
    if (t->world->rank == 0) {
        run_record_print(config, t->model, &t->corpus, t->order, t->mesh, t->micro_batches);
        memory_plan_print(&t->model->plan, stderr);
    }
    TRY(comm_agree(t->world, write_run_files(t)));
    TRY(run_record_create(&t->record, config, t->model, t->world));
    LoaderOptions loader = loader_options(t);
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
