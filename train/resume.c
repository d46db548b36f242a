// The run folder, checkpoints and going on from one (trainer_state.h).
#include "train/trainer_state.h"

#include "core/clock.h"
#include "core/durable.h"
#include "core/hash.h"
#include "core/log.h"
#include "train/checkpoint/steps.h"
#include "train/saved_run.h"

#include <float.h>
#include <unistd.h>

// ---- The run folder and resuming
// --------------------------------------------------------------------------------------------------------

// A run in a checkpoint, a corpus or a run's folder of checkpoints would write over what belongs to others.
static Error *refuse_folder(const char *folder) {
    char *manifest = path_join(folder, "manifest.json");
    int64_t *steps = NULL;
    int count = 0;
    Error *error = NULL;
    if (path_exists(manifest)) {
        error = failure(
            "%s is no folder for a run: it holds a checkpoint or a corpus (%s); give the run's own folder, or a new one",
            folder, manifest);
    } else if (path_is_folder(folder)) {
        error = steps_list(folder, &steps, &count);
        if (error == NULL && count > 0) {
            error = failure(
                "%s is no folder for a run: it holds the checkpoints of one; give the folder of the run, or a new one", folder);
        }
    }
    free(steps);
    free(manifest);
    return error;
}

static Error *make_writer(Trainer *t, int64_t total_bytes) {
    const RunConfig *config = t->config;
    if (t->world->rank == 0) {
        TRY(refuse_folder(config->folder));
        TRY(folder_create(config->folder));
    }
    char layout[96];
    CheckpointPlan plan = {.run_folder = config->folder,
                           .rank = t->world->rank,
                           .ranks = t->world->size,
                           .keep_last = (int)config->checkpoint.keep_last,
                           .keep_every = config->checkpoint.keep_every,
                           .learned = saved_run_learned,
                           .total_bytes = total_bytes,
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

// The identity of a run that has none: of when and where it began.
static uint64_t draw_run(const Trainer *t) {
    char *begin =
        memory_format("%.9f %s %lld %s", clock_wall_seconds(), t->world->host, (long long)getpid(), t->config->folder);
    uint64_t run = hash64(begin, strlen(begin));
    free(begin);
    return run != 0 ? run : 1;
}

// Whether the file is there. A network file system may tell the others late.
static bool appears(const char *path) {
    enum { TRIES = 30, SLEEP_US = 100000 };
    for (int i = 0; i < TRIES && !path_exists(path); i++) {
        usleep(SLEEP_US);
    }
    return path_exists(path);
}

// The same path may be another folder elsewhere: on another host's disk, or from another working directory. Then no checkpoint
// would ever be whole. Rank 0 makes a file of a name that nobody had before, which all must see.
static Error *compare_folders(const Trainer *t) {
    if (t->world->size == 1) {
        return NULL;
    }
    Buffer path = {0};
    Error *error = NULL;
    if (t->world->rank == 0) {
        buffer_printf(&path, "%s/checkpoints/ranks-%016llx.partial", t->config->folder, (unsigned long long)draw_run(t));
        error = file_write(path.data, "", 0);
    }
    TRY_GOTO(error, out, comm_agree(t->world, error));
    TRY_GOTO(error, out, comm_broadcast_buffer(t->world, &path, 0));
    bool seen = appears(path.data);
    error =
        seen ? NULL
             : failure("the run folder %s is not the one of rank 0: all ranks need the same, on a file system that their hosts "
                       "share and from the same working directory",
                       t->config->folder);
    error = comm_agree(t->world, error);
    if (t->world->rank == 0) {
        error_free(folder_remove(path.data));
    }
out:
    buffer_free(&path);
    return error;
}

Error *trainer_make_writer(Trainer *t) {
    double total = (double)checkpoint_snapshot_bytes(t->parts.parts, t->parts.count);
    TRY(comm_all_reduce_doubles(t->world, &total, 1, COMM_SUM));
    // Rank 0 first, which makes the folder and takes what an interrupted save left out of the others' way.
    TRY(comm_agree(t->world, t->world->rank == 0 ? make_writer(t, (int64_t)total) : NULL));
    TRY(compare_folders(t));
    return comm_agree(t->world, t->world->rank != 0 ? make_writer(t, (int64_t)total) : NULL);
}

// The configuration that the run had until now.
static Error *saved_config(const Trainer *t, RunConfig *out) {
    char *path = path_join(t->config->folder, "config.yaml");
    Error *error = run_config_read(out, path, NULL, 0);
    error = error == NULL ? run_config_resolve(out, 0, t->mesh->size[MESH_DATA], path) : error;
    free(path);
    return error;
}

// The checkpoint is of another model: says in which key, as far as the saved configuration tells.
static Error *other_model(const Trainer *t, const char *checkpoint) {
    RunConfig there = {0};
    Error *error = saved_config(t, &there);
    error = error == NULL ? model_config_same(&there.model, &t->config->model, checkpoint) : error;
    Error *told = failure("%s; choose another folder", error != NULL ? error->message : "the checkpoint is of another model");
    error_free(error);
    run_config_free(&there);
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

// Takes what the checkpoint says of the course so far, which must agree with itself.
static Error *take_state(Trainer *t, const CheckpointInfo *info, const char *path) {
    int64_t batch_tokens, length, samples, skipped, in_a_row, good, updates;
    double loss_scale;
    TRY(json_field_i64(info->state, path, "batch_tokens", 1, (int64_t)1e12, &batch_tokens));
    TRY(json_field_i64(info->state, path, "sequence_length", 1, 1 << 24, &length));
    TRY(json_field_i64(info->state, path, "samples", 0, INT64_MAX, &samples));
    TRY(json_field_i64(info->state, path, "skipped", 0, INT32_MAX / 2, &skipped));
    TRY(json_field_i64(info->state, path, "skipped_in_a_row", 0, skipped, &in_a_row));
    TRY(json_field_i64(info->state, path, "updates", 0, info->step, &updates));
    TRY(json_field_i64(info->state, path, "good_steps", 0, updates < INT32_MAX / 2 ? updates : INT32_MAX / 2, &good));
    TRY(json_field_f64(info->state, path, "loss_scale", &loss_scale));
    if (info->step > INT64_MAX / batch_tokens || samples != info->step * (batch_tokens / length) ||
        updates + skipped != info->step) {
        return damaged("%s: its step %lld, %lld samples, %lld updates and %lld skipped steps do not agree", path,
                       (long long)info->step, (long long)samples, (long long)updates, (long long)skipped);
    }
    if (!(loss_scale > 0 && loss_scale < FLT_MAX)) {
        return damaged("%s: loss_scale is %g, it must be positive", path, loss_scale);
    }
    t->control.updates = updates;
    t->control.skipped = (int32_t)skipped;
    t->control.skipped_in_a_row = (int32_t)in_a_row;
    t->control.good_steps = (int32_t)good;
    t->control.loss_scale = (float)loss_scale;
    // The loss scale is fp16's: where the run was of another type, it begins anew.
    const char *type = json_string_value(json_object_get(info->state, "type"));
    if (type == NULL || strcmp(type, data_type_name(t->device->type)) != 0) {
        t->control.loss_scale = model_control(t->model).loss_scale;
        t->control.good_steps = 0;
    }
    t->step = info->step;
    t->told = t->step;
    t->run = info->run;
    return NULL;
}

// The run's steps were of other sizes than the configuration's: says what makes these ranks take the same.
static Error *other_step(const Trainer *t, const char *path, int64_t batch_tokens, int64_t length) {
    const RunConfig *config = t->config;
    int ranks = t->mesh->size[MESH_DATA];
    int64_t fits = run_config_micro_batch(batch_tokens, length, config->train.micro_batch, &ranks);
    char share[64] = "", fewer[32] = "";
    if (fits > 0 && fits != config->train.micro_batch) {
        snprintf(share, sizeof share, " train.micro_batch=%lld", (long long)fits);
    }
    if (ranks != t->mesh->size[MESH_DATA]) {
        snprintf(fewer, sizeof fewer, " on %d %s", ranks, ranks == 1 ? "rank" : "ranks");
    }
    return failure(
        "%s was trained with data.sequence_length=%lld and train.batch_tokens=%lld; here they are %lld and %lld: give "
        "it data.sequence_length=%lld train.batch_tokens=%lld%s%s, or choose another folder",
        path, (long long)length, (long long)batch_tokens, (long long)config->data.sequence_length,
        (long long)config->train.batch_tokens, (long long)length, (long long)batch_tokens, share, fewer);
}

// The run goes on only where everything that decides its course is the same. The state was taken: its fields are there.
static Error *check_course(const Trainer *t, const CheckpointInfo *info, const char *path) {
    int64_t batch_tokens = json_integer_value(json_object_get(info->state, "batch_tokens"));
    int64_t length = json_integer_value(json_object_get(info->state, "sequence_length"));
    uint64_t corpus, order;
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
        return other_step(t, path, batch_tokens, length);
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

// The histories of metrics and samples go on where the checkpoint ends. Rank 0.
static Error *open_metrics(Trainer *t, Checkpoint *checkpoint) {
    Buffer history = {0}, samples = {0};
    Error *error = checkpoint_blob(checkpoint, "metrics.jsonl", &history);
    error = error == NULL ? checkpoint_blob(checkpoint, "samples.jsonl", &samples) : error;
    if (error == NULL) {
        t->metrics = metrics_create(t->config->folder, &history, &samples);
        metrics_resume(t->metrics, t->step);
    }
    buffer_free(&history);
    buffer_free(&samples);
    return error;
}

// What is wrong with a checkpoint, as a whole, is damage, and the one before is tried; that it is of another course is the
// user's doing. Of a manifest without a checksum (version 1) nobody can tell: where the one before is of this course, it was
// damage.
static Error *try_checkpoint(Trainer *t, const char *path, bool *may_be_damage) {
    Checkpoint *checkpoint = NULL;
    Error *error;
    TRY(checkpoint_open_shared(t->world, path, &checkpoint));
    const CheckpointInfo *info = checkpoint_info(checkpoint);
    TRY_GOTO(error, out, comm_agree(t->world, take_state(t, info, path)));
    *may_be_damage = info->run == 0;
    TRY_GOTO(error, out, comm_agree(t->world, check_course(t, info, path)));
    *may_be_damage = false;
    TRY_GOTO(error, out, comm_agree(t->world, model_load(checkpoint, &t->model->weights, true)));
    if (t->world->size > 1) {
        TRY_GOTO(error, out, comm_agree(t->world, compare_ranks(t, checkpoint)));
    }
    TRY_GOTO(error, out, comm_agree(t->world, t->world->rank == 0 ? open_metrics(t, checkpoint) : NULL));
    model_set_control(t->model, &t->control);
    t->resumed = true;
out:
    if (error != NULL && error->kind == ERROR_DAMAGED) {
        checkpoint_known_damaged(checkpoint);  // so that it does not count among those that are kept
    }
    checkpoint_close(checkpoint);
    return error;
}

// The newest checkpoint of this run before that step which is whole, for all ranks; an empty path where there is none.
static Error *find_checkpoint(const Trainer *t, int64_t before, Buffer *path) {
    char *found = NULL;
    Error *error = NULL;
    if (t->world->rank == 0) {
        Strings skipped = {0};
        uint64_t run = 0;
        error = checkpoint_run_of(t->config->folder, &run);
        error = error == NULL ? checkpoint_find(t->config->folder, before, run, &found, &skipped) : error;
        for (size_t i = 0; i < skipped.count; i++) {
            log_warning("%s", skipped.items[i]);
        }
        strings_free(&skipped);
        if (error != NULL && error->kind == ERROR_MISSING) {
            error_free(error);
            error = NULL;
        }
        buffer_text(path, found != NULL ? found : "");
        free(found);
    }
    TRY(comm_agree(t->world, error));
    return comm_broadcast_buffer(t->world, path, 0);
}

// Goes on from the newest checkpoint with which all is well. *found: there was one at all.
static Error *go_on(Trainer *t, bool *found) {
    Error *refused = NULL, *error = NULL;  // refused: the newest one may be of another course, or its record damaged
    *found = false;
    for (int64_t before = INT64_MAX;;) {
        Buffer path = {0};
        bool may_be_damage = false;
        error = find_checkpoint(t, before, &path);
        if (error != NULL || path.size == 0) {
            buffer_free(&path);
            break;
        }
        *found = true;
        before = steps_named(path_name(path.data));
        error = try_checkpoint(t, path.data, &may_be_damage);
        buffer_free(&path);
        if (error == NULL || (error->kind != ERROR_DAMAGED && !may_be_damage)) {
            break;
        }
        if (error->kind != ERROR_DAMAGED) {
            error_keep(&refused, error);
            continue;
        }
        if (t->world->rank == 0) {
            log_warning("%s; the checkpoint before is tried", error->message);
        }
        error_free(error);
    }
    // That no older one is well says nothing new of the newest.
    if (error != NULL && error->kind == ERROR_DAMAGED && refused != NULL) {
        error_free(error);
        return refused;
    }
    error_free(refused);
    return error;
}

// Says which settings are others than those that the run had until now: all that need not be the same.
static void tell_changes(const Trainer *t) {
    if (t->world->rank != 0) {
        return;
    }
    RunConfig before = {0};
    Error *error = saved_config(t, &before);
    int count;
    const Key *keys = run_config_keys(&count);
    Buffer told = {0};
    for (int i = 0; i < count && error == NULL; i++) {
        Buffer was = {0}, is = {0};
        key_print(&keys[i], &before, &was);
        key_print(&keys[i], t->config, &is);
        if (!keys[i].per_rank && strcmp(keys[i].name, "folder") != 0 && strcmp(was.data, is.data) != 0) {
            buffer_printf(&told, "%s%s was %s and is %s", told.size > 0 ? "; " : "", keys[i].name, was.data, is.data);
        }
        buffer_free(&was);
        buffer_free(&is);
    }
    if (told.size > 0) {
        log_info("changed   %s", told.data);
    }
    error_free(error);  // a run of an older version, or one that never got to its first step
    buffer_free(&told);
    run_config_free(&before);
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

Error *trainer_resume(Trainer *t) {
    bool found;
    TRY(go_on(t, &found));
    if (found) {
        log_info("continue %s after step %lld", t->config->folder, (long long)t->step);
        tell_changes(t);
    } else {
        model_initialise(t->model, (uint64_t)t->config->seed);
        if (t->world->rank == 0) {
            t->metrics = metrics_create(t->config->folder, NULL, NULL);
        }
    }
    t->run = t->run != 0 ? t->run : draw_run(t);
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
