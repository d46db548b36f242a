// A run as others read it: see saved_run.h.
#include "train/saved_run.h"

#include "core/durable.h"
#include "core/log.h"
#include "train/model_checkpoint.h"
#include "train/run_device.h"

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
    return error_new(ERROR_MISSING, "%s is no run folder: it %s", path,
                     path_exists(path) ? "has no config.yaml" : "does not exist");
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
    error = checkpoint_find(path, INT64_MAX, 0, &run->checkpoint, &skipped);
    for (size_t i = 0; i < skipped.count; i++) {
        log_warning("%s", skipped.items[i]);
    }
    if (error != NULL) {
        goto out;
    }
    TRY_GOTO(error, out, load_tokenizer(run));
    TRY_GOTO(error, out, checkpoint_open(run->checkpoint, false, &checkpoint));
    run->step = checkpoint_info(checkpoint)->step;
    if (!model_config_matches(&run->config.model, checkpoint_info(checkpoint)->model)) {
        error = failure("%s is of another model than %s says", run->checkpoint, config_path);
        goto out;
    }
    // Where it was trained does not matter: on a card where there is one.
    run->config.device = RUN_DEVICE_AUTO;
    run->config.train.type = RUN_TYPE_AUTO;
    run->config.threads = threads;
    TRY_GOTO(error, out, run_device_open(&run->config, 0, 1, &run->device));
    ModelOptions options = {.sequences = sequences,
                            .length = run->config.data.sequence_length,
                            .forward_only = true,
                            .head_rows = run->config.train.head_rows};
    TRY_GOTO(error, out, model_create(run->device, &run->config.model, &options, &run->model));
    error = model_load(checkpoint, &run->model->weights, false);
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
