// Which layouts a configuration can train in: see run_layout.h.
#include "train/run_layout.h"

#include "train/run_plan.h"

#include <math.h>

enum { MOST_NAMED = 3 };

static int64_t asked(const RunConfig *config, MeshAxis axis) {
    const int64_t sizes[MESH_AXES] = {[MESH_DATA] = config->parallel.data,
                                      [MESH_TENSOR] = config->parallel.tensor,
                                      [MESH_PIPELINE] = config->parallel.pipeline,
                                      [MESH_CONTEXT] = config->parallel.context};
    return sizes[axis];
}

// ---- What each axis needs

static Error *check_tensor(const RunConfig *config, const int size[MESH_AXES], int64_t length) {
    int ranks = size[MESH_TENSOR];
    TensorShare share = {0, ranks, ranks > 1 && config->parallel.sequence};
    ModelConfig here;
    TRY(error_wrap(tensor_config(&config->model, &share, &here), "parallel.tensor"));
    int64_t rows = config->train.micro_batch * length / size[MESH_CONTEXT];
    if (share.cut_rows && rows % ranks != 0) {
        return failure("the %lld tokens of a micro-batch cannot be divided among parallel.tensor %d ranks; change "
                       "train.micro_batch or data.sequence_length, or give parallel.sequence=false",
                       (long long)rows, ranks);
    }
    ModelOptions options = run_model_options(config);
    options.tensor = share;
    return error_wrap(model_check_placement(&config->model, &options, TYPE_FP32), "parallel.tensor");
}

static Error *check_pipeline(const RunConfig *config, const int size[MESH_AXES], int64_t length) {
    RunConfig whole = *config;
    whole.data.sequence_length = length;
    whole.train.batch_tokens =
        config->train.batch_tokens > 0 ? config->train.batch_tokens : config->train.micro_batch * length * size[MESH_DATA];
    RunLayout layout = run_layout_of(&whole, size, 0);
    // That there are micro-batches at all is checked elsewhere, with what would do.
    if (layout.micro_batches == 0) {
        return NULL;
    }
    return error_wrap(stages_check(&layout.stages, config->model.layers), "parallel.pipeline");
}

static Error *check_context(const RunConfig *config, const int size[MESH_AXES], int64_t length) {
    ContextShare share = {0, size[MESH_CONTEXT]};
    if (config->train.reproducible && share.ranks > 1) {
        return failure("train.reproducible adds whole sequences in order: it needs parallel.context=1");
    }
    return error_wrap(context_check(&share, length), "parallel.context");
}

// More data ranks than the step has micro-batches; what does not divide is run_config_resolve's, which knows what would.
static Error *check_data(const RunConfig *config, const int size[MESH_AXES], int64_t length) {
    int64_t batch = config->train.batch_tokens, count = batch / (config->train.micro_batch * length);
    if (batch % (config->train.micro_batch * length) != 0) {
        return NULL;
    }
    if (batch > 0 && size[MESH_DATA] > 1 && count >= 1 && count < size[MESH_DATA]) {
        return failure("a step of train.batch_tokens %lld has %lld micro-batch%s, too few for %d data-parallel ranks",
                       (long long)batch, (long long)count, count == 1 ? "" : "es", size[MESH_DATA]);
    }
    // From there on the ranks exchange something for each micro-batch, so all must have as many.
    if (batch > 0 && config->parallel.zero >= 2 && count % size[MESH_DATA] != 0) {
        return failure("with parallel.zero %lld the %lld micro-batches of a step must be divisible by %d data-parallel ranks",
                       (long long)config->parallel.zero, (long long)count, size[MESH_DATA]);
    }
    int64_t parts = run_config_parts(config, count);
    if (config->train.reproducible && batch > 0 && parts % size[MESH_DATA] != 0) {
        return failure("train.reproducible_parts %lld cannot be shared by %d data-parallel ranks", (long long)parts,
                       size[MESH_DATA]);
    }
    return NULL;
}

Error *run_layout_check(const RunConfig *config, const int size[MESH_AXES]) {
    int64_t length = config->data.sequence_length > 0 ? config->data.sequence_length : config->model.context;
    TRY(check_context(config, size, length));
    TRY(check_tensor(config, size, length));
    TRY(check_data(config, size, length));
    TRY(check_pipeline(config, size, length));
    return NULL;
}

// ---- The nearest that work

int run_layout_list(const RunConfig *config, int ranks, LayoutSizes **out) {
    int count = 0, capacity = 0;
    *out = NULL;
    for (int tensor = 1; tensor <= ranks; tensor++) {
        for (int pipeline = 1; ranks % tensor == 0 && pipeline <= ranks / tensor; pipeline++) {
            int rest = ranks / tensor;
            for (int context = 1; rest % pipeline == 0 && context <= rest / pipeline; context++) {
                if (rest / pipeline % context != 0) {
                    continue;
                }
                LayoutSizes sizes = {{[MESH_DATA] = rest / pipeline / context,
                                      [MESH_TENSOR] = tensor,
                                      [MESH_PIPELINE] = pipeline,
                                      [MESH_CONTEXT] = context}};
                Error *error = run_layout_check(config, sizes.size);
                if (error == NULL) {
                    array_push(*out, count, capacity, sizes);
                }
                error_free(error);
            }
        }
    }
    return count;
}

// How far a layout is from what was asked: factors of two, over all axes. An open axis costs little.
static double distance(const RunConfig *config, const int size[MESH_AXES]) {
    double sum = 0;
    for (int axis = 0; axis < MESH_AXES; axis++) {
        int64_t wanted = asked(config, (MeshAxis)axis);
        sum += wanted > 0 ? fabs(log2((double)size[axis] / (double)wanted)) : 0.01 * log2(size[axis]);
    }
    return sum;
}

void run_layout_write(const RunConfig *config, const int size[MESH_AXES], Buffer *out) {
    size_t before = out->size;
    for (int axis = 0; axis < MESH_AXES; axis++) {
        if (size[axis] > 1 || asked(config, (MeshAxis)axis) > 1) {
            buffer_printf(out, "%sparallel.%s=%d", out->size > before ? " " : "", mesh_axis_name((MeshAxis)axis), size[axis]);
        }
    }
    if (out->size == before) {
        buffer_text(out, "parallel.data=1");
    }
}

// Appends the nearest of so many ranks; whether there is any.
static bool name_nearest(const RunConfig *config, int ranks, int most, Buffer *out) {
    LayoutSizes *list;
    int count = run_layout_list(config, ranks, &list), named = 0;
    for (; named < count && named < most; named++) {
        int best = named;
        for (int i = named + 1; i < count; i++) {
            best = distance(config, list[i].size) < distance(config, list[best].size) ? i : best;
        }
        LayoutSizes swap = list[best];
        list[best] = list[named];
        list[named] = swap;
        buffer_text(out, named > 0 ? " or " : "");
        run_layout_write(config, swap.size, out);
    }
    free(list);
    return named > 0;
}

// The error with what would work put behind it.
static Error *advise(const RunConfig *config, int ranks, const char *where, Error *error) {
    Buffer near = {0};
    Error *told = NULL;
    if (name_nearest(config, ranks, MOST_NAMED, &near)) {
        told = failure("%s: %s; %s on %d rank%s would do", where, error->message, near.data, ranks, ranks == 1 ? "" : "s");
    }
    for (int other = 1; other < ranks && told == NULL; other++) {
        if (name_nearest(config, ranks - other, 1, &near)) {
            told = failure("%s: %s; %s on %d rank%s would do", where, error->message, near.data, ranks - other,
                           ranks - other == 1 ? "" : "s");
        }
    }
    told = told != NULL ? told : failure("%s: %s", where, error->message);
    error_free(error);
    buffer_free(&near);
    return told;
}

// The numbers of ranks alone.
static Error *factor(const RunConfig *config, int ranks, int size[MESH_AXES]) {
    int64_t others = 1;
    for (int axis = 0; axis < MESH_AXES; axis++) {
        int64_t wanted = asked(config, (MeshAxis)axis);
        if (wanted > ranks) {
            return failure("%lld %s-parallel ranks cannot be had of %d rank%s", (long long)wanted,
                           mesh_axis_name((MeshAxis)axis), ranks, ranks == 1 ? "" : "s");
        }
        size[axis] = (int)wanted;
        others *= axis == MESH_DATA ? 1 : wanted;
        others = others < INT32_MAX ? others : INT32_MAX;
    }
    int64_t data = size[MESH_DATA] > 0 ? size[MESH_DATA] : ranks / others;
    if (data * others != ranks) {
        Buffer given = {0};
        run_layout_write(config, size, &given);
        Error *error = failure("%s cannot be made of %d rank%s", given.data, ranks, ranks == 1 ? "" : "s");
        buffer_free(&given);
        return error;
    }
    size[MESH_DATA] = (int)data;
    return NULL;
}

// The error with the largest smaller micro-batch behind it with which this very layout can train, where there is one.
static Error *advise_micro_batch(const RunConfig *config, const int size[MESH_AXES], Error *error) {
    int64_t length = config->data.sequence_length > 0 ? config->data.sequence_length : config->model.context;
    RunConfig other = *config;
    while (other.train.batch_tokens > 0 && --other.train.micro_batch > 0) {
        if (other.train.batch_tokens % (other.train.micro_batch * length) == 0) {
            Error *refused = run_layout_check(&other, size);
            if (refused == NULL) {
                Error *told =
                    failure("%s; train.micro_batch=%lld would do too", error->message, (long long)other.train.micro_batch);
                error_free(error);
                return told;
            }
            error_free(refused);
        }
    }
    return error;
}

Error *run_layout_resolve(const RunConfig *config, int ranks, const char *where, int size[MESH_AXES]) {
    Error *error = factor(config, ranks, size);
    if (error != NULL) {
        return advise(config, ranks, where, error);
    }
    error = run_layout_check(config, size);
    return error != NULL ? advise_micro_batch(config, size, advise(config, ranks, where, error)) : NULL;
}
