// A run as others read it: see saved_run.h.
#include "train/saved_run.h"

#include "core/durable.h"
#include "core/log.h"
#include "train/run_device.h"

const char *const model_kinds[MODEL_KINDS] = {"weight", "moment1", "moment2"};

static ModelArray array_of(const char *kind) {
    int array = 0;
    while (array < MODEL_KINDS - 1 && strcmp(model_kinds[array], kind) != 0) {
        array++;
    }
    return (ModelArray)array;
}

typedef struct RowReader {
    const Model *model;
    int32_t row;
    const char *kind;
    float *to;
} RowReader;

static bool read_run(void *context, BoxRun run) {
    const RowReader *r = context;
    model_read(r->model, array_of(r->kind), r->model->table.rows[r->row].offset + run.from, run.count, r->to + run.to);
    return true;
}

void model_read_boxes(const Model *model, int32_t row, const char *kind, const Box *boxes, int count, float *to) {
    const Param *param = &model->table.rows[row];
    Box whole = box_whole(param->rank, param->shape);
    RowReader reader = {model, row, kind, to};
    boxes_runs(&whole, 1, boxes, count, read_run, &reader, NULL);
}

static void read_row(void *context, const Box *boxes, int count, float *to) {
    const RowReader *r = context;
    model_read_boxes(r->model, r->row, r->kind, boxes, count, to);
}

Error *checkpoint_compare_model(const Checkpoint *checkpoint, const Model *model, bool moments) {
    for (int array = 0; array < (moments ? MODEL_KINDS : 1); array++) {
        bool exact = array == MODEL_PARAMS ? model->params != NULL : model->options.moments == MOMENT_FP32;
        for (int32_t row = 0; row < model->table.count && exact && model_has(model, (ModelArray)array); row++) {
            RowReader reader = {model, row, model_kinds[array], NULL};
            TRY(checkpoint_compare(checkpoint, model->table.rows[row].name, reader.kind, read_row, &reader));
        }
    }
    return NULL;
}

// Fills values[0 ..] with elements [begin, end) of a flat array; padding is zero.
static Error *read_part(Checkpoint *checkpoint, const ParamTable *table, const char *kind, int64_t begin, int64_t end,
                        float *values) {
    memset(values, 0, (size_t)(end - begin) * sizeof *values);
    for (int32_t i = 0; i < table->count; i++) {
        const Param *param = &table->rows[i];
        int64_t first = param->offset > begin ? param->offset : begin;
        int64_t last = param->offset + param->count < end ? param->offset + param->count : end;
        if (first < last) {
            Box whole = box_whole(param->rank, param->shape), boxes[BOX_MOST_OF_RANGE];
            int count = boxes_of_range(&whole, 1, first - param->offset, last - param->offset, boxes);
            TRY(checkpoint_read(checkpoint, param->name, kind, boxes, count, values + first - begin));
        }
    }
    return NULL;
}

Error *checkpoint_load_model(Checkpoint *checkpoint, Model *model, bool moments) {
    enum { PART = 1 << 24 };  // elements at a time, whole blocks of moments
    int64_t elements = model->table.elements;
    float *values = memory_new((size_t)(elements < PART ? elements : PART), sizeof *values);
    Error *error = NULL;
    for (int kind = 0; kind < (moments ? MODEL_KINDS : 1); kind++) {
        for (int64_t begin = 0; begin < elements && model_has(model, (ModelArray)kind) && error == NULL; begin += PART) {
            int64_t end = begin + PART < elements ? begin + PART : elements;
            error = read_part(checkpoint, &model->table, model_kinds[kind], begin, end, values);
            if (error != NULL && kind != MODEL_PARAMS) {
                error =
                    error_wrap(error, "no moments for this optimizer.kind: set it back if it was another, or choose another "
                                      "folder");
            }
            if (error == NULL) {
                model_write(model, (ModelArray)kind, begin, end - begin, values);
            }
        }
    }
    free(values);
    return error == NULL ? checkpoint_compare_model(checkpoint, model, moments) : error;
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
