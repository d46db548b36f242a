// The run folder, checkpoints and going on from one (trainer_state.h).
#include "train/trainer_state.h"

#include "core/clock.h"
#include "core/durable.h"
#include "core/hash.h"
#include "core/log.h"
#include "train/run_device.h"

#include <float.h>
#include <unistd.h>

// ---- The run folder and resuming
// --------------------------------------------------------------------------------------------------------

Error *trainer_make_writer(Trainer *t) {
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
                           .tensors = t->parts.tensors,
                           .tensor_count = t->model->table.count,
                           .parts = t->parts.parts,
                           .part_count = t->parts.count,
                           .fetch = model_parts_fetch,
                           .fetch_context = &t->parts};
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
    const StepControl *control = &t->control;
    return json_pack("{s:s, s:I, s:I, s:I, s:o, s:o, s:i, s:i, s:I, s:f, s:i}", "type", data_type_name(t->device->type),
                     "samples", (json_int_t)(t->step * (t->config->train.batch_tokens / t->config->data.sequence_length)),
                     "batch_tokens", (json_int_t)t->config->train.batch_tokens, "sequence_length",
                     (json_int_t)t->config->data.sequence_length, "corpus", json_hex64(t->corpus.fingerprint), "order",
                     json_hex64(order_fingerprint(t->order)), "skipped", control->skipped, "skipped_in_a_row",
                     control->skipped_in_a_row, "updates", (json_int_t)control->updates, "loss_scale",
                     (double)control->loss_scale, "good_steps", control->good_steps);
}

// The run goes on only where everything that decides its course is the same.
static Error *check_state(Trainer *t, const CheckpointInfo *info, const char *path) {
    int64_t batch_tokens, length;
    uint64_t corpus, order;
    TRY(json_field_i64(info->state, path, "batch_tokens", 1, INT64_MAX, &batch_tokens));
    TRY(json_field_i64(info->state, path, "sequence_length", 1, INT64_MAX, &length));
    int64_t skipped, in_a_row, good;
    double loss_scale;
    TRY(json_field_i64(info->state, path, "skipped", 0, INT32_MAX, &skipped));
    TRY(json_field_i64(info->state, path, "skipped_in_a_row", 0, INT32_MAX, &in_a_row));
    TRY(json_field_i64(info->state, path, "updates", 0, INT64_MAX, &t->control.updates));
    TRY(json_field_i64(info->state, path, "good_steps", 0, INT32_MAX, &good));
    TRY(json_field_f64(info->state, path, "loss_scale", &loss_scale));
    t->control.skipped = (int32_t)skipped;
    t->control.skipped_in_a_row = (int32_t)in_a_row;
    t->control.good_steps = (int32_t)good;
    if (!(loss_scale > 0 && loss_scale < FLT_MAX)) {
        return damaged("%s: loss_scale is %g, it must be positive", path, loss_scale);
    }
    t->control.loss_scale = (float)loss_scale;
    // The loss scale is fp16's: where the run was of another type, it begins anew.
    const char *type = json_string_value(json_object_get(info->state, "type"));
    if (type == NULL || strcmp(type, data_type_name(t->device->type)) != 0) {
        t->control.loss_scale = model_control(t->model).loss_scale;
        t->control.good_steps = 0;
    }
    TRY(json_field_hex64(info->state, path, "corpus", &corpus));
    TRY(json_field_hex64(info->state, path, "order", &order));
    if (!model_config_matches(&t->config->model, info->model)) {
        return other_model(t, path);
    }
    if (!corpus_matches(&t->corpus, corpus)) {
        return failure("%s was trained on another corpus than %s is now; restore the corpus or choose another folder", path,
                       t->corpus.path);
    }
    if (length != t->config->data.sequence_length || batch_tokens != t->config->train.batch_tokens) {
        return failure("%s was trained with data.sequence_length=%lld and train.batch_tokens=%lld; here they are %lld and "
                       "%lld: give it the "
                       "same (train.batch_tokens=0 means one micro-batch a rank), or choose another folder",
                       path, (long long)length, (long long)batch_tokens, (long long)t->config->data.sequence_length,
                       (long long)t->config->train.batch_tokens);
    }
    if (!order_matches(t->order, order) || info->seed != (uint64_t)t->config->seed) {
        return failure("%s was trained with another seed, data.mixture or data.epochs: the samples would not go on; restore "
                       "them or choose another folder",
                       path);
    }
    return NULL;
}

// What the ranks hold between them, compared with the checkpoint on rank 0.
static Error *compare_ranks(const Trainer *t, const Checkpoint *checkpoint) {
    const ParamTable *table = &t->model->table;
    int64_t count = model_share_count(table), bytes = count * (int64_t)sizeof(DigestShare);
    DigestShare *shares = memory_new((size_t)count, sizeof *shares);
    int64_t *ends = memory_new((size_t)t->world->size, sizeof *ends);
    Buffer all = {0};
    model_digest_shares(checkpoint, &t->parts, shares);
    Error *error = comm_gather(t->world, shares, bytes, &all, ends);
    if (error == NULL && t->world->rank == 0) {
        for (int rank = 1; rank < t->world->size; rank++) {
            model_add_shares(table, shares, (const DigestShare *)(const void *)(all.data + rank * bytes));
        }
        error = model_compare_shares(checkpoint, table, shares);
    }
    buffer_free(&all);
    free(ends);
    free(shares);
    return error;
}

static Error *load_checkpoint(Trainer *t, const char *path) {
    Checkpoint *checkpoint;
    Buffer history = {0}, samples = {0};
    TRY(checkpoint_open(path, false, &checkpoint));
    Error *error = check_state(t, checkpoint_info(checkpoint), path);
    if (error == NULL) {
        t->step = checkpoint_info(checkpoint)->step;
        t->told = t->step;
        t->resumed = true;
        t->run = checkpoint_info(checkpoint)->run;
        error = model_load(checkpoint, &t->model->weights, true);
        model_set_control(t->model, &t->control);
    }
    error = comm_agree(t->world, error);
    if (error == NULL && t->world->size > 1) {
        error = compare_ranks(t, checkpoint);
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

// Opens the sums that the run keeps of corpora that come without. A run that begins anew has none: rank 0 removes what stands
// there, before the others look.
static Error *keep_sums(Trainer *t) {
    char *corpus = path_join(t->config->folder, "sums/corpus"), *validation = path_join(t->config->folder, "sums/validation");
    Error *error = NULL;
    if (t->world->rank == 0 && !t->resumed) {
        error = folder_remove(corpus);
        error = error == NULL ? folder_remove(validation) : error;
    }
    error = comm_agree(t->world, error);
    if (error == NULL) {
        error = kept_sums_open(&t->corpus, corpus, t->world->rank, &t->kept);
    }
    if (error == NULL && t->has_validation) {
        error = kept_sums_open(&t->validation, validation, t->world->rank, &t->validation_kept);
    }
    free(corpus);
    free(validation);
    return error;
}

// Failing costs the sums nothing: the next save has them too.
static void save_sums(KeptSums *kept) {
    Error *error = kept != NULL ? kept_sums_save(kept) : NULL;
    if (error != NULL) {
        log_warning("%s: the checksums of what was read of the corpus are not saved yet", error->message);
        error_free(error);
    }
}

// The identity of a run that has none: of when and where it began.
static uint64_t draw_run(const Trainer *t) {
    char *begin =
        memory_format("%.9f %s %lld %s", clock_wall_seconds(), t->world->host, (long long)getpid(), t->config->folder);
    uint64_t run = hash64(begin, strlen(begin));
    free(begin);
    return run != 0 ? run : 1;
}

// Rank 0 finds the newest good checkpoint and tells the others; none means a new run.
Error *trainer_resume(Trainer *t) {
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
    t->run = t->run != 0 ? t->run : draw_run(t);
    buffer_free(&path);
    TRY(comm_agree(t->world, error));
    return comm_agree(t->world, keep_sums(t));
}

Error *trainer_write_files(Trainer *t) {
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

void trainer_begin_checkpoint(Trainer *t) {
    save_sums(t->kept);
    save_sums(t->validation_kept);
    json_t *state = make_state(t);
    CheckpointBlob blobs[2] = {{.name = "metrics.jsonl"}, {.name = "samples.jsonl"}};
    if (t->world->rank == 0) {
        blobs[0].bytes = metrics_history(t->metrics)->data;
        blobs[0].size = metrics_history(t->metrics)->size;
        blobs[1].bytes = metrics_samples(t->metrics)->data;
        blobs[1].size = metrics_samples(t->metrics)->size;
    }
    checkpoint_writer_begin(t->writer, t->run, t->step, state, blobs, 2);
    json_decref(state);
}

Error *trainer_finish_checkpoint(Trainer *t, bool needed) {
    CheckpointEvent event = CHECKPOINT_NOTHING;
    TRY(checkpoint_writer_wait(t->writer, t->world, &event));
    if (!needed || event != CHECKPOINT_FAILED) {
        return NULL;
    }
    Error *told = failure("%s: its last checkpoint, of step %lld, could not be saved, as the warning tells: mend that and give "
                          "the same command again, which goes on from the newest one",
                          t->config->folder, (long long)t->step);
    if (t->world->rank != 0) {
        error_free(told);
        told = NULL;
    }
    return comm_agree(t->world, told);
}
