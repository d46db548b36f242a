// Stages of a pipeline against one rank that has all layers: a step of several micro-batches by every schedule, with unequal
// stages, recompute and dropout. The losses and gradients are the same bits, because micro-batches add up in the same order;
// only a tied embedding's gradient is a sum of two. Looking at a batch gives the same losses on all ranks.
#include "tests/support/check.h"
#include "tests/support/models.h"
#include "train/model/pass.h"

#include <math.h>
#include <stdio.h>

// Streams of several KiB, which MPI does not copy aside: who writes into one too early is seen.
enum { SEQUENCES = 2, LENGTH = 24 };

static Comm *world;
static Group *all;

static const char *const models[] = {
    // A tied head, learned positions; layers that few numbers of stages divide.
    "model:\n  family: gpt2\n  layers: 9\n  width: 48\n  heads: 3\n  context: 24\n  vocabulary: 61\n",
    "model:\n  family: llama\n  layers: 10\n  width: 64\n  heads: 4\n  groups: 2\n  context: 24\n  vocabulary: 83\n",
};

static Model *open_model(const ModelConfig *config, Recompute recompute, StageShare stages) {
    ModelOptions options = {.sequences = SEQUENCES,
                            .length = LENGTH,
                            .recompute = recompute,
                            .optimizer = OPTIMIZER_ADAMW,
                            .head_rows = 8,
                            .deterministic = true,
                            .stages = stages};
    Device *device;
    CHECK_OK(device_open_cpu(1, NULL, &device));
    Model *model;
    CHECK_OK(model_create(device, config, &options, &model));
    model_initialise(model, 7);
    return model;
}

// Gradients that were called final before the step had them all would not be what they are at its end.
typedef struct Announced {
    const Model *model;
    float *gradients;  // as they were when they were called final
    int64_t from;
} Announced;

static void gradients_final(void *context, int64_t from) {
    Announced *a = context;
    CHECK(from <= a->from);
    memcpy(a->gradients + from, a->model->weights.grads + from, (size_t)(a->from - from) * sizeof(float));
    a->from = from;
}

static void check_announced(const Announced *a) {
    int64_t count = a->model->weights.placement.gradients;
    CHECK_I64(a->from, 0);
    CHECK(memcmp(a->gradients, a->model->weights.grads, (size_t)count * sizeof(float)) == 0);
}

// Row by row, of what is here.
static void compare_gradients(const Model *part, const Model *whole, const PipelineShape *shape) {
    for (int32_t i = 0; i < part->table.count; i++) {
        const Place *place = &part->weights.placement.places[i];
        bool tied = i == part->table.token && i == part->table.head;
        if (place->box_count == 0 || place->copy) {
            continue;
        }
        size_t count = (size_t)place->count;
        float *a = memory_new(count, sizeof *a), *b = memory_new(count, sizeof *b);
        double worst = 0, largest = 0;
        weights_read(&part->weights, ARRAY_GRADIENT, i, 0, place->count, a);
        weights_read(&whole->weights, ARRAY_GRADIENT, i, 0, place->count, b);
        for (size_t j = 0; j < count; j++) {
            worst = fmax(worst, fabs((double)a[j] - (double)b[j]));
            largest = fmax(largest, fabs((double)b[j]));
        }
        if (!CHECK(tied ? worst <= 1e-6 * largest : memcmp(a, b, count * sizeof *a) == 0)) {
            printf("%s, %d ranks, %d micro-batches: %s differs by %g of %g\n", pipeline_kind_names[shape->kind], shape->ranks,
                   shape->micro_batches, part->table.rows[i].name, worst, largest);
        }
        free(a);
        free(b);
    }
}

static void compare(const char *yaml, double dropout, Recompute recompute, PipelineKind kind, int micro_batches) {
    PipelineShape shape = {kind, all->size, kind == PIPELINE_INTERLEAVED || kind == PIPELINE_ZB_V ? 2 : 1, micro_batches};
    ModelConfig config = models_config(yaml);
    config.dropout = dropout;
    Model *part = open_model(&config, recompute, (StageShare){shape, all->rank});
    Model *whole = open_model(&config, recompute, (StageShare){0});
    PipelineLinks *links;
    CHECK_OK(pipeline_links_create(all, &shape, NULL, &links));
    part->tensor->links = links;
    Batch *batches = memory_zeroed((size_t)micro_batches, sizeof *batches);
    float *gradients = memory_zeroed((size_t)part->weights.placement.gradients + 1, sizeof *gradients);
    Announced announced = {part, gradients, part->weights.placement.gradients};
    StepOptions options = {.grad_scale = 0.03F, .z_loss = 0.01F, .seed = 5};
    for (int m = 0; m < micro_batches; m++) {
        batches[m] = models_batch(SEQUENCES, LENGTH, config.vocabulary, true, 3 + (uint64_t)m);
        batches[m].first_sample = 10 + SEQUENCES * (uint64_t)m;
        model_forward_backward(whole, &batches[m], &options, NULL);
    }
    options.gradients_final = gradients_final;
    options.context = &announced;
    stages_run(part, batches, &options);
    CHECK_OK(model_tensor_error(part));
    check_announced(&announced);
    compare_gradients(part, whole, &shape);
    // The rank with the head has the loss's sums.
    CHECK(!stages_has_head(part) || part->control->loss_sum == whole->control->loss_sum);
    float ours[SEQUENCES * LENGTH], theirs[SEQUENCES * LENGTH];
    model_evaluate(part, &batches[0], ours);
    model_evaluate(whole, &batches[0], theirs);
    CHECK(memcmp(ours, theirs, sizeof ours) == 0);
    for (int m = 0; m < micro_batches; m++) {
        batch_free(&batches[m]);
    }
    free(batches);
    free(gradients);
    pipeline_links_close(links, false);
    models_close(part);
    models_close(whole);
}

static void test_schedules(void) {
    for (int kind = 0; kind < PIPELINE_KINDS && all->size > 1; kind++) {
        for (int micro_batches = 1; micro_batches <= 9; micro_batches += 4) {
            compare(models[kind % 2], 0, RECOMPUTE_NONE, (PipelineKind)kind, micro_batches);
            compare(models[1 - kind % 2], 0, RECOMPUTE_FULL, (PipelineKind)kind, micro_batches + 1);
        }
    }
}

static void test_dropout(void) {
    for (int kind = 0; kind < PIPELINE_KINDS && all->size > 1; kind++) {
        compare(models[0], 0.2, RECOMPUTE_SELECTIVE, (PipelineKind)kind, 5);
    }
}

// A copy of the embedding gets the first stage's weights.
static void test_tied(void) {
    if (all->size == 1) {
        return;
    }
    ModelConfig config = models_config(models[0]);
    PipelineShape shape = {PIPELINE_1F1B, all->size, 1, 2};
    Model *model = open_model(&config, RECOMPUTE_NONE, (StageShare){shape, all->rank});
    PipelineLinks *links;
    CHECK_OK(pipeline_links_create(all, &shape, NULL, &links));
    model->tensor->links = links;
    int32_t row = model->table.token;
    int64_t count = model->weights.placement.places[row].count;
    CHECK((count > 0) == (all->rank == 0 || all->rank == all->size - 1));
    float *weights = (float *)placement_weight(&model->weights.placement, row, model->weights.weights);
    for (int64_t i = 0; i < count; i++) {
        weights[i] = all->rank == 0 ? (float)i : -1;
    }
    CHECK_OK(model_share_weights(model, NULL));
    for (int64_t i = 0; i < count; i++) {
        CHECK(weights[i] == (float)i);
    }
    pipeline_links_close(links, false);
    models_close(model);
}

int main(void) {
    CHECK_OK(comm_open_world(&world));
    CHECK_OK(group_create(world, "pipeline", NULL, &all));
    RUN(test_schedules);
    RUN(test_dropout);
    RUN(test_tied);
    group_close(all, false);
    int code = check_report();
    comm_close(world);
    return code;
}
