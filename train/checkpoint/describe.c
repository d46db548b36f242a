// What a person wants to know of a checkpoint: see checkpoint.h.
#include "train/checkpoint/checkpoint.h"
#include "train/checkpoint/steps.h"

#include "core/durable.h"
#include "core/text.h"

#include <inttypes.h>

static double elements_of(const CheckpointTensor *tensor) {
    double n = 1;
    for (int d = 0; d < tensor->dims; d++) {
        n *= (double)tensor->shape[d];
    }
    return n;
}

static void describe_tensor(const Checkpoint *c, const CheckpointTensor *tensor, Buffer *out) {
    Buffer shape = {0};
    for (int d = 0; d < tensor->dims; d++) {
        buffer_printf(&shape, "%s%" PRId64, d > 0 ? " x " : "", tensor->shape[d]);
    }
    buffer_printf(out, "  %-40s %-20s", tensor->name, shape.size > 0 ? shape.data : "scalar");
    DataType type;
    const char *kind;
    bool weights = false;
    for (int i = 0; (kind = checkpoint_kind(c, checkpoint_tensor(c, tensor->name), i, &type)) != NULL; i++) {
        buffer_printf(out, " %s", kind);
        if (type != TYPE_FP32) {
            buffer_printf(out, " (%s)", data_type_name(type));
        }
        weights = weights || strcmp(kind, "weight") == 0;
    }
    buffer_text(out, weights ? "" : " in the base");
    buffer_text(out, "\n");
    buffer_free(&shape);
}

// Opens a checkpoint; with `verify` everything that could make a resume refuse it is looked at.
static Error *open_and_look(const char *path, bool verify, Checkpoint **out) {
    TRY(checkpoint_open(path, verify, out));
    Error *error = verify ? checkpoint_check_contents(*out) : NULL;
    if (error != NULL) {
        checkpoint_close(*out);
        *out = NULL;
    }
    return error;
}

// One checkpoint in full.
static void describe_opened(const Checkpoint *c, const char *path, bool verify, Buffer *out) {
    const CheckpointInfo *info = checkpoint_info(c);
    double parameters = 0;
    for (int t = 0; t < info->tensor_count; t++) {
        parameters += elements_of(&info->tensors[t]);
    }
    char size[32], count[32];
    uint64_t fingerprint;
    buffer_printf(out, "checkpoint  %s\n", path);
    if (info->run != 0) {
        buffer_printf(out, "run         %016" PRIx64 "\n", info->run);
    }
    buffer_printf(out, "step        %" PRId64 "\n", info->step);
    buffer_printf(out, "written by  %d rank%s (%s)\n", info->ranks, info->ranks == 1 ? "" : "s", info->layout);
    buffer_printf(out, "parameters  %s in %d tensors\n", text_count(count, parameters), info->tensor_count);
    buffer_printf(out, "size        %s\n", text_bytes(size, (double)info->bytes));
    buffer_printf(out, "model       %016" PRIx64 "\n", info->model);
    buffer_printf(out, "seed        %" PRIu64 "\n", info->seed);
    if (info->base != NULL) {
        buffer_printf(out, "base        %016" PRIx64 " (%s)\n", info->base->fingerprint, info->base->path);
    }
    char *state = json_dumps(info->state, JSON_COMPACT);
    buffer_printf(out, "state       %s\n", state != NULL ? state : "{}");
    free(state);
    buffer_printf(out, "whole       %s\n",
                  !verify ? "not checked beyond file sizes"
                  : checkpoint_fingerprint(c, &fingerprint)
                      ? "yes: all sizes, checksums and digests are right"
                      : "yes: all sizes and checksums of files are right; it is of version 1, "
                        "whose manifest has no checksum");
    buffer_text(out, "tensors\n");
    for (int t = 0; t < info->tensor_count; t++) {
        describe_tensor(c, &info->tensors[t], out);
    }
}

// A run's checkpoints, and the newest that can be taken, in full. *wrong: there is one that cannot.
static void describe_steps(const char *folder, const int64_t *steps, int count, uint64_t run, bool verify, Buffer *out,
                           bool *wrong) {
    Checkpoint *best = NULL;
    char *best_path = NULL;
    for (int i = 0; i < count; i++) {
        char *path = steps_path(folder, steps[i]);
        Checkpoint *c = NULL;
        Error *error = open_and_look(path, verify, &c);
        bool other = error == NULL && run != 0 && checkpoint_info(c)->run != 0 && checkpoint_info(c)->run != run;
        if (error != NULL) {
            buffer_printf(out, "%s  %s: %s\n", path_name(path), error->kind == ERROR_DAMAGED ? "DAMAGED" : "CANNOT BE READ NOW",
                          error->message);
        } else if (other) {
            buffer_printf(out, "%s  OF ANOTHER RUN: %016" PRIx64 "; this folder's is %016" PRIx64 "\n", path_name(path),
                          checkpoint_info(c)->run, run);
        } else {
            char size[32];
            buffer_printf(out, "%s  %s, %d rank%s%s\n", path_name(path), text_bytes(size, (double)checkpoint_info(c)->bytes),
                          checkpoint_info(c)->ranks, checkpoint_info(c)->ranks == 1 ? "" : "s", verify ? ", whole" : "");
            checkpoint_close(best);
            free(best_path);
            best = c;
            best_path = path;
            continue;
        }
        *wrong = true;
        checkpoint_close(c);
        error_free(error);
        free(path);
    }
    if (best != NULL) {
        buffer_text(out, "\n");
        describe_opened(best, best_path, verify, out);
    }
    checkpoint_close(best);
    free(best_path);
}

static Error *describe_run(const char *path, const char *folder, bool verify, Buffer *out) {
    int64_t *steps;
    int count;
    uint64_t run = 0;
    bool wrong = false;
    TRY(checkpoint_run_of(path, &run));
    TRY(steps_list(folder, &steps, &count));
    describe_steps(folder, steps, count, run, verify, out, &wrong);
    free(steps);
    if (count == 0) {
        return error_new(ERROR_MISSING, "%s holds no checkpoint", path);
    }
    return wrong ? damaged("%s: not all of its checkpoints are whole", path) : NULL;
}

// What is being written, or what an interrupted save left: no checkpoint.
static Error *list_unfinished(const char *folder, Buffer *out) {
    Strings names = {0};
    Error *error = folder_list(folder, &names);
    for (size_t i = 0; i < names.count; i++) {
        if (text_ends_with(names.items[i], PARTIAL_SUFFIX)) {
            buffer_printf(out, "%s  unfinished: being written, or left by a save that was interrupted\n", names.items[i]);
        }
    }
    strings_free(&names);
    return error;
}

Error *checkpoint_describe(const char *path, bool verify, Buffer *out) {
    char *folder = steps_folder(path);
    Error *error;
    if (path_is_folder(folder)) {
        error = list_unfinished(folder, out);
        error = error == NULL ? describe_run(path, folder, verify, out) : error;
    } else {
        Checkpoint *c;
        error = open_and_look(path, verify, &c);
        if (error == NULL) {
            describe_opened(c, path, verify, out);
            checkpoint_close(c);
        }
    }
    free(folder);
    return error;
}
