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

// One checkpoint in full.
static Error *describe_one(const char *path, bool verify, Buffer *out) {
    Checkpoint *c;
    TRY(checkpoint_open(path, verify, &c));
    const CheckpointInfo *info = checkpoint_info(c);
    double parameters = 0;
    for (int t = 0; t < info->tensor_count; t++) {
        parameters += elements_of(&info->tensors[t]);
    }
    char size[32], count[32];
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
    buffer_printf(out, "whole       %s\n", verify ? "yes: all sizes and checksums are right" : "not checked beyond file sizes");
    buffer_text(out, "tensors\n");
    for (int t = 0; t < info->tensor_count; t++) {
        describe_tensor(c, &info->tensors[t], out);
    }
    checkpoint_close(c);
    return NULL;
}

// All of a run, one line each. The newest whole one is *best (owned by the caller), NULL if there is none.
static void list_run(const char *folder, const int64_t *steps, int count, bool verify, Buffer *out, char **best) {
    *best = NULL;
    for (int i = 0; i < count; i++) {
        char *path = steps_path(folder, steps[i]);
        Checkpoint *c;
        Error *error = checkpoint_open(path, verify, &c);
        if (error != NULL) {
            buffer_printf(out, "%s  DAMAGED: %s\n", path_name(path), error->message);
            error_free(error);
            free(path);
            continue;
        }
        char size[32];
        buffer_printf(out, "%s  %s, %d rank%s%s\n", path_name(path), text_bytes(size, (double)checkpoint_info(c)->bytes),
                      checkpoint_info(c)->ranks, checkpoint_info(c)->ranks == 1 ? "" : "s", verify ? ", whole" : "");
        checkpoint_close(c);
        free(*best);
        *best = path;
    }
}

Error *checkpoint_describe(const char *path, bool verify, Buffer *out) {
    char *folder = steps_folder(path);
    int64_t *steps = NULL;
    int count = 0;
    Error *error = NULL;
    if (!path_is_folder(folder)) {
        error = describe_one(path, verify, out);
    } else if ((error = steps_list(folder, &steps, &count)) == NULL) {
        size_t before = out->size;
        char *best = NULL;
        list_run(folder, steps, count, verify, out, &best);
        bool any_damaged = out->size > before && strstr(out->data + before, "  DAMAGED: ") != NULL;
        if (best != NULL) {
            buffer_text(out, "\n");
            error = describe_one(best, verify, out);
        } else if (count == 0) {
            error = error_new(ERROR_MISSING, "%s holds no checkpoint", path);
        }
        if (error == NULL && any_damaged) {
            error = damaged("%s: not all of its checkpoints are whole", path);
        }
        free(best);
    }
    free(steps);
    free(folder);
    return error;
}
