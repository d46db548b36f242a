// Which layout trains fastest: see layout_search.h.
#include "train/layout_search.h"

#include "core/text.h"

#include <math.h>

LayoutCosts layout_costs(const Machine *machine) {
    if (machine->kind == DEVICE_CPU) {
        return (LayoutCosts){30e-6, 0.5e-9, 20e9 * machine->threads};
    }
    return (LayoutCosts){10e-6, 0.01e-9, 300e12};
}

// What a layout is made of, gathered once.
typedef struct Shape {
    RunConfig config;  // with the layout put in
    int data, tensor, pipeline, context;
    RunLayout layout;       // of the first rank
    int64_t length, rows;   // of a sequence, of a micro-batch
    int64_t micro_batches;  // of the rank that has most
    double fair;            // of each rank, were they even
    int64_t layers;         // of a rank
    int64_t gradients, weight_bytes;
} Shape;

static Shape shape_of(const RunConfig *config, const Machine *machine, const int size[MESH_AXES], int64_t zero) {
    Shape s = {.config = *config,
               .data = size[MESH_DATA],
               .tensor = size[MESH_TENSOR],
               .pipeline = size[MESH_PIPELINE],
               .context = size[MESH_CONTEXT]};
    s.config.parallel.data = size[MESH_DATA];
    s.config.parallel.tensor = size[MESH_TENSOR];
    s.config.parallel.pipeline = size[MESH_PIPELINE];
    s.config.parallel.context = size[MESH_CONTEXT];
    s.config.parallel.zero = zero;
    s.length = s.config.data.sequence_length > 0 ? s.config.data.sequence_length : s.config.model.context;
    s.config.data.sequence_length = s.length;
    s.rows = s.config.train.micro_batch * s.length / size[MESH_CONTEXT];
    int64_t *batch = &s.config.train.batch_tokens, round = s.config.train.micro_batch * s.length;
    *batch = *batch > 0 ? *batch : round * s.data;
    s.micro_batches = run_config_micro_batches(&s.config, s.data, 0);
    s.fair = (double)*batch / (double)round / s.data;
    s.layers = (s.config.model.layers + s.pipeline - 1) / s.pipeline;
    s.layout = run_layout_of(&s.config, size, 0);
    RunConfig unsharded = s.config;  // all that is computed with, however it is kept
    unsharded.parallel.zero = 0;
    ModelOptions options = run_rank_options(&unsharded, &s.layout);
    ParamTable table;
    params_create(&s.config.model, &table);
    Placement placement = model_placement(&table, &options, machine->type);
    s.gradients = placement.gradients;
    s.weight_bytes = placement.weight_bytes;
    placement_free(&placement);
    params_free(&table);
    return s;
}

// Adds `count` collectives in which each of n ranks sends `bytes` by a ring, to and fro.
static void add(LayoutScore *score, MeshAxis axis, double count, int n, double bytes) {
    score->sent[axis] += count * bytes;
    score->messages += count * (n - 1);
}

static void count_data(LayoutScore *score, const Shape *s) {
    int n = s->data * s->context;  // ranks of one sequence sum gradients as those of several do
    if (n == 1) {
        return;
    }
    double part = (double)(n - 1) / n, gradients = 4.0 * (double)s->gradients;
    double buckets = ceil(gradients / (s->config.parallel.bucket_mib * 1048576));
    if (score->zero == 0) {
        add(score, MESH_DATA, buckets, n, 2 * part * gradients / buckets);
        return;
    }
    double times = score->zero >= 2 ? (double)s->micro_batches : 1;  // that gradients are reduced
    double gathers = score->zero >= 3 ? 2 * times : 1, weights = part * (double)s->weight_bytes;
    add(score, MESH_DATA, times * buckets, n, part * gradients / buckets);
    add(score, MESH_DATA, gathers * (double)s->layers, n, weights / (double)s->layers);
}

static void count_tensor(LayoutScore *score, const Shape *s, double element) {
    int n = s->tensor;
    if (n == 1) {
        return;
    }
    bool again = s->config.train.recompute == RECOMPUTE_FULL;
    double stream = (double)s->rows * (double)s->config.model.width * element, moved = (double)(n - 1) / n * stream;
    // Forward and back: each branch gathers once and reduces once, or makes one all-reduce, which is as much.
    double passes = 2 + again, layers = (double)s->layers * 2 * passes * (double)s->micro_batches;
    add(score, MESH_TENSOR, layers * 2, n, moved);
    // Gathered rows are not kept for the gradients of weights.
    double gathers = s->config.parallel.sequence ? 2 * (double)s->layers * (double)s->micro_batches : 0;
    add(score, MESH_TENSOR, gathers, n, moved);
    // The embedding and the head.
    add(score, MESH_TENSOR, 4 * (double)s->micro_batches, n, moved);
}

static void count_pipeline(LayoutScore *score, const Shape *s, double element) {
    if (s->pipeline == 1) {
        return;
    }
    bool cut = s->layout.tensor.cut_rows;
    double stream = (double)s->rows / (cut ? s->tensor : 1) * (double)s->config.model.width * element;
    // An output and a gradient over each boundary of a stage of this rank, of which a rank in the middle has two a stage.
    add(score, MESH_PIPELINE, 2.0 * s->layout.stages.shape.chunks * (double)s->micro_batches, 2, stream);
}

static void count_context(LayoutScore *score, const Shape *s, double element) {
    if (s->context == 1) {
        return;
    }
    const ModelConfig *model = &s->config.model;
    double keys = (double)s->rows * 2 * (double)(model->groups / s->tensor * model->head_width), others = s->context - 1;
    double layers = (double)s->layers * (double)s->micro_batches;
    bool again = s->config.train.recompute == RECOMPUTE_FULL;
    add(score, MESH_CONTEXT, layers * (2 + again) * others, 2, keys * element);
    add(score, MESH_CONTEXT, layers * s->context, 2, keys * (double)sizeof(float));
}

// What a rank stands in a pipeline beside its work, where a micro-batch takes it so long.
static double bubble(const Shape *s, double micro_seconds) {
    PipelineSchedule *schedule;
    PipelineTimes times = {0};
    if (s->pipeline == 1) {
        return 0;
    }
    Error *error = pipeline_create(&s->layout.stages.shape, &schedule);
    if (error == NULL) {
        double third = micro_seconds / 3 / s->layout.stages.shape.chunks;
        pipeline_measure(schedule, &(PipelineCosts){third, third, third, 0}, &times);
        pipeline_destroy(schedule);
    }
    error_free(error);
    return times.idle;
}

LayoutScore layout_score(const RunConfig *config, const Machine *machine, const int size[MESH_AXES], int64_t zero,
                         const LayoutCosts *costs) {
    LayoutScore score = {.zero = zero};
    memcpy(score.size, size, sizeof score.size);
    Shape s = shape_of(config, machine, size, zero);
    MemoryPlan plan = {0};
    run_plan(&s.config, &s.layout, machine, &plan);
    score.memory = plan.total;
    Error *error = memory_plan_check(&plan, machine);
    score.fits = error == NULL;
    error_free(error);
    count_data(&score, &s);
    double element = (double)data_type_bytes(machine->type);
    count_tensor(&score, &s, element);
    count_pipeline(&score, &s, element);
    count_context(&score, &s, element);
    double sent = 0;
    for (int axis = 0; axis < MESH_AXES; axis++) {
        sent += score.sent[axis];
    }
    double micro_seconds = 6.0 * (double)s.gradients * (double)s.rows / costs->rank_flops;
    score.idle = ((double)s.micro_batches - s.fair) * micro_seconds + bubble(&s, micro_seconds);
    score.seconds = score.messages * costs->message_seconds + sent * costs->byte_seconds + score.idle;
    return score;
}

static int axes_of(const LayoutScore *score) {
    int axes = 0;
    for (int axis = 0; axis < MESH_AXES; axis++) {
        axes += score->size[axis] > 1;
    }
    return axes;
}

static int by_worth(const void *a, const void *b) {
    const LayoutScore *x = a, *y = b;
    if (x->fits != y->fits) {
        return x->fits ? -1 : 1;
    }
    if (!x->fits && x->memory != y->memory) {
        return x->memory < y->memory ? -1 : 1;
    }
    double one = round(100 * log(x->seconds + 1e-9)), other = round(100 * log(y->seconds + 1e-9));
    if (one != other) {
        return one < other ? -1 : 1;
    }
    return x->zero != y->zero ? (x->zero > y->zero) - (x->zero < y->zero) : axes_of(x) - axes_of(y);
}

// Sizes that the configuration sets are kept.
static bool as_given(const RunConfig *config, const int size[MESH_AXES]) {
    return (config->parallel.data == 0 || config->parallel.data == size[MESH_DATA]) &&
           (config->parallel.tensor == 1 || config->parallel.tensor == size[MESH_TENSOR]) &&
           (config->parallel.pipeline == 1 || config->parallel.pipeline == size[MESH_PIPELINE]) &&
           (config->parallel.context == 1 || config->parallel.context == size[MESH_CONTEXT]);
}

int layout_search(const RunConfig *config, const Machine *machine, int ranks, const LayoutCosts *costs, LayoutScore **out) {
    LayoutSizes *list;
    int found = run_layout_list(config, ranks, &list), count = 0, capacity = 0, keys;
    const Key *table = run_config_keys(&keys);
    int64_t most = (int64_t)keys_find(table, keys, "parallel.zero")->most;
    *out = NULL;
    for (int i = 0; i < found; i++) {
        if (!as_given(config, list[i].size)) {
            continue;
        }
        int shares = list[i].size[MESH_DATA] * list[i].size[MESH_CONTEXT];
        for (int64_t zero = config->parallel.zero; zero <= (shares > 1 ? most : config->parallel.zero); zero++) {
            LayoutScore score = layout_score(config, machine, list[i].size, zero, costs);
            array_push(*out, count, capacity, score);
        }
    }
    free(list);
    if (count > 0) {
        qsort(*out, (size_t)count, sizeof **out, by_worth);
    }
    return count;
}

static void describe(const LayoutScore *score, Buffer *out) {
    char bytes[32];
    double sent = 0;
    for (int axis = 0, named = 0; axis < MESH_AXES; axis++) {
        sent += score->sent[axis];
        if (score->size[axis] > 1 || (axis == MESH_AXES - 1 && named == 0)) {
            buffer_printf(out, "%s%s %d", named++ > 0 ? " x " : "", mesh_axis_name((MeshAxis)axis), score->size[axis]);
        }
    }
    if (score->zero > 0) {
        buffer_printf(out, ", zero %lld", (long long)score->zero);
    }
    buffer_printf(out, ": %s", text_bytes(bytes, (double)score->memory));
    buffer_printf(out, " a rank, sends %s in a step", text_bytes(bytes, sent));
    if (score->idle > 0) {
        buffer_printf(out, " and stands %.2g s", score->idle);
    }
}

char *layout_why(const LayoutScore *scores, int count, const Machine *machine) {
    Buffer out = {0};
    char bytes[32];
    describe(&scores[0], &out);
    if (machine->memory > 0) {
        buffer_printf(&out, "; %s are there", text_bytes(bytes, (double)machine->memory));
    }
    int fit = 0;
    for (int i = 0; i < count; i++) {
        fit += scores[i].fits;
    }
    buffer_printf(&out, "; of %d that work %d fit", count, fit);
    if (count > 1) {
        buffer_text(&out, ", next best ");
        describe(&scores[1], &out);
    }
    return out.data;
}
