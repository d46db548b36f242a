// A run as others read it: see saved_run.h.
#include "train/saved_run.h"

#include "core/durable.h"
#include "core/log.h"

Error *checkpoint_load_model(Checkpoint *checkpoint, Model *model, bool moments) {
    float *const arrays[SLICE_KINDS] = {[SLICE_WEIGHT] = model->params,
                                        [SLICE_MOMENT1] = moments ? model->moment1 : NULL,
                                        [SLICE_MOMENT2] = moments ? model->moment2 : NULL};
    for (int kind = 0; kind < SLICE_KINDS; kind++) {
        for (int32_t i = 0; arrays[kind] != NULL && i < model->table.count; i++) {
            const Param *param = &model->table.rows[i];
            TRY(checkpoint_read(checkpoint, param->name, (SliceKind)kind, 0, param->count, arrays[kind] + param->offset));
        }
    }
    model_params_changed(model);
    return NULL;
}

// The run that a path belongs to: itself, or two folders up from one of its checkpoints.
static Error *find_run(const char *path, char **folder) {
    char *config = path_join(path, "config.yaml");
    bool is_run = path_exists(config);
    free(config);
    if (is_run) {
        *folder = memory_string(path);
        return NULL;
    }
    char *up = path_join(path, "../..");
    config = path_join(up, "config.yaml");
    bool is_checkpoint = path_exists(config);
    free(config);
    if (is_checkpoint) {
        *folder = up;
        return NULL;
    }
    free(up);
    return error_new(ERROR_MISSING, "%s is no run folder: it has no config.yaml%s", path,
                     path_exists(path) ? "" : ", it does not exist");
}

static Error *load_tokenizer(SavedRun *run) {
    static const char *const names[] = {"tokenizer.json", "tokenizer.tiktoken"};
    Error *error = NULL;
    for (int i = 0; i < 2 && run->tokenizer == NULL && error == NULL; i++) {
        char *path = path_join(run->folder, names[i]);
        error = path_exists(path) ? tokenizer_load(path, &run->tokenizer) : NULL;
        free(path);
    }
    return error;
}

static Error *open_all(const char *path, int64_t sequences, int threads, SavedRun *run) {
    TRY(find_run(path, &run->folder));
    char *config_path = path_join(run->folder, "config.yaml");
    Strings skipped = {0};
    Checkpoint *checkpoint = NULL;
    Error *error;
    TRY_GOTO(error, out, run_config_read(&run->config, config_path, NULL, 0));
    TRY_GOTO(error, out, run_config_resolve(&run->config, 0, 1, config_path));
    error = checkpoint_find(path, &run->checkpoint, &skipped);
    for (size_t i = 0; i < skipped.count; i++) {
        log_warning("%s", skipped.items[i]);
    }
    if (error != NULL) {
        goto out;
    }
    TRY_GOTO(error, out, load_tokenizer(run));
    TRY_GOTO(error, out, checkpoint_open(run->checkpoint, false, &checkpoint));
    run->step = checkpoint_info(checkpoint)->step;
    if (checkpoint_info(checkpoint)->model != model_config_hash(&run->config.model)) {
        error = failure("%s is of another model than %s says", run->checkpoint, config_path);
        goto out;
    }
    TRY_GOTO(error, out,
             device_open_cpu(threads > 0 ? threads : threads_available(), run->config.instruction_set, &run->device));
    ModelOptions options = {.sequences = sequences,
                            .length = run->config.data.sequence_length,
                            .forward_only = true,
                            .head_rows = run->config.train.head_rows};
    TRY_GOTO(error, out, model_create(run->device, &run->config.model, &options, &run->model));
    error = checkpoint_load_model(checkpoint, run->model, false);
out:
    checkpoint_close(checkpoint);
    strings_free(&skipped);
    free(config_path);
    return error;
}

Error *saved_run_open(const char *path, int64_t sequences, int threads, SavedRun *out) {
    *out = (SavedRun){0};
    Error *error = open_all(path, sequences, threads, out);
    if (error != NULL) {
        saved_run_close(out);
    }
    return error;
}

void saved_run_close(SavedRun *run) {
    if (run->model != NULL) {
        model_destroy(run->model);
    }
    device_close(run->device);
    if (run->tokenizer != NULL) {
        tokenizer_free(run->tokenizer);
    }
    run_config_free(&run->config);
    free(run->folder);
    free(run->checkpoint);
    *run = (SavedRun){0};
}
