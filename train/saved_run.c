// A run as others read it: see saved_run.h.
#include "train/saved_run.h"

#include "core/durable.h"
#include "core/log.h"
#include "train/run_device.h"

// Fills one array of a row.
static Error *load_row(Checkpoint *checkpoint, ModelWeights *weights, WeightsArray array, int32_t row, float *values,
                       int64_t room) {
    const Param *param = &weights->table->rows[row];
    Range extent = weights_extent(weights, array, row);
    for (int64_t begin = extent.begin; begin < extent.end; begin += room) {
        int64_t end = begin + room < extent.end ? begin + room : extent.end;
        TRY(checkpoint_read(checkpoint, param->name, (SliceKind)array, begin, end, values));
        weights_write(weights, array, row, begin, end, values);
    }
    return NULL;
}

Error *checkpoint_load_model(Checkpoint *checkpoint, Model *model, bool moments) {
    enum { PART = 1 << 24 };  // elements at a time, whole blocks of moments
    float *values = memory_new(PART, sizeof *values);
    Error *error = NULL;
    for (WeightsArray array = ARRAY_WEIGHT; array <= (moments ? ARRAY_MOMENT2 : ARRAY_WEIGHT); array++) {
        for (int32_t row = 0; row < model->table.count && error == NULL; row++) {
            error = load_row(checkpoint, &model->weights, array, row, values, PART);
            if (error != NULL && array != ARRAY_WEIGHT) {
                error =
                    error_wrap(error, "no moments for this optimizer.kind: set it back if it was another, or choose another "
                                      "folder");
            }
        }
    }
    free(values);
    return error;
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
