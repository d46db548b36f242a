// A run as others read it: see saved_run.h.
#include "train/saved_run.h"

#include "core/durable.h"
#include "core/log.h"
#include "train/model_checkpoint.h"
#include "train/run_device.h"

// Whether a folder has a config.yaml: a plain file, for nothing else is waited for.
static Error *has_config(const char *folder, bool *has) {
    char *config = path_join(folder, "config.yaml");
    Mapped file;
    Error *error = file_map(config, &file);
    *has = error == NULL;
    if (error == NULL) {
        file_unmap(&file);
    } else if (error->kind == ERROR_MISSING) {
        error_free(error);
        error = NULL;
    }
    free(config);
    return error;
}

// The run that a path belongs to: itself, or two folders up from one of its checkpoints.
static Error *find_run(const char *path, char **folder) {
    bool is_run, is_checkpoint;
    TRY(has_config(path, &is_run));
    *folder = is_run ? memory_string(path) : path_join(path, "../..");
    TRY(has_config(*folder, &is_checkpoint));
    return is_checkpoint ? NULL
                         : error_new(ERROR_MISSING, "%s is no run folder: it %s", path,
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

// Loads one checkpoint into the model, which is made for the first.
static Error *load(SavedRun *run, const char *config_path, const ModelOptions *options, int64_t *step) {
    Checkpoint *checkpoint;
    TRY(checkpoint_open(run->checkpoint, false, &checkpoint));
    Error *error = NULL;
    *step = checkpoint_info(checkpoint)->step;
    if (!model_config_matches(&run->config.model, checkpoint_info(checkpoint)->model)) {
        error = failure("%s is of another model than %s says", run->checkpoint, config_path);
    }
    if (error == NULL && run->model == NULL) {
        error = model_create(run->device, &run->config.model, options, &run->model);
    }
    if (error == NULL) {
        error = model_load(checkpoint, &run->model->weights, false);
        run->step = *step;
    }
    checkpoint_close(checkpoint);
    return error;
}

static Error *find(const char *path, int64_t before, uint64_t identity, SavedRun *run) {
    Strings skipped = {0};
    Error *error = checkpoint_find(path, before, identity, &run->checkpoint, &skipped);
    for (size_t i = 0; i < skipped.count; i++) {
        log_warning("%s", skipped.items[i]);
    }
    strings_free(&skipped);
    return error;
}

// The newest checkpoint that loads. Damage that shows only then takes the one before; one that a training run removes in the
// meantime is looked for again.
static Error *load_newest(const char *path, const char *config_path, const ModelOptions *options, SavedRun *run) {
    enum { MOST_VANISHED = 20 };
    uint64_t identity = 0;
    int64_t before = INT64_MAX, step = 0;
    TRY(checkpoint_run_of(run->folder, &identity));
    bool of_run = strcmp(path, run->folder) == 0;  // else one checkpoint was asked for
    for (int vanished = 0;;) {
        TRY(find(path, before, identity, run));
        Error *error = load(run, config_path, options, &step);
        if (error == NULL || !of_run) {
            return error;
        }
        if (error->kind == ERROR_DAMAGED) {
            log_warning("%s is damaged, the one before it is taken: %s", path_name(run->checkpoint), error->message);
            before = step;
        } else if (error->kind != ERROR_MISSING || ++vanished == MOST_VANISHED) {
            return error;
        }
        error_free(error);
        free(run->checkpoint);
        run->checkpoint = NULL;
    }
}

static Error *open_all(const char *path, int64_t sequences, int threads, SavedRun *run) {
    TRY(find_run(path, &run->folder));
    char *config_path = path_join(run->folder, "config.yaml");
    Error *error = run_config_read(&run->config, config_path, NULL, 0);
    error = error == NULL ? run_config_resolve(&run->config, 0, 1, config_path) : error;
    error = error == NULL ? load_tokenizer(run) : error;
    // Where it was trained does not matter: on a card where there is one.
    run->config.device = RUN_DEVICE_AUTO;
    run->config.train.type = RUN_TYPE_AUTO;
    run->config.threads = threads;
    error = error == NULL ? run_device_open(&run->config, 0, 1, &run->device) : error;
    ModelOptions options = {.sequences = sequences,
                            .length = run->config.data.sequence_length,
                            .forward_only = true,
                            .head_rows = run->config.train.head_rows};
    error = error == NULL ? load_newest(path, config_path, &options, run) : error;
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

bool saved_run_learned(const json_t *state) {
    return json_integer_value(json_object_get(state, "skipped_in_a_row")) == 0;
}
