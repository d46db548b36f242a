// Context-parallel ranks against one rank that has whole sequences: the loss and every gradient of the same model and batch,
// for families, head forms, documents or none, uneven weights, recompute modes, dropout, and with tensor-parallel ranks beside
// them; losses of evaluation; all of it on the CPU, and some on simulated cards, whose messages go as late as they may.
#include "parallel/mesh.h"
#include "tests/support/check.h"
#include "tests/support/models.h"

#include <math.h>
#include <stdio.h>

enum { SEQUENCES = 2, LENGTH = 48 };

static Comm *world;
static Mesh *mesh;
static Device *device;  // of both models that are compared

static const char *const models[] = {
    // GPT-2: learned positions, biases, a tied head, as many groups as heads.
    "model:\n  family: gpt2\n  layers: 2\n  width: 48\n  heads: 4\n  context: 48\n  vocabulary: 61\n",
    // LLaMA: rotary positions, grouped queries, gated, an untied head.
    "model:\n  family: llama\n  layers: 3\n  width: 48\n  heads: 8\n  groups: 2\n  ffn_width: 68\n  context: 48\n  vocabulary: "
    "83\n",
};

typedef struct Settings {
    const char *yaml;
    double dropout;
    Recompute recompute;
    bool documents, cut_rows;
} Settings;

static Model *open_model(const Settings *settings, bool whole) {
    ModelConfig config = models_config(settings->yaml);
    config.dropout = settings->dropout;
    ModelOptions options = {.sequences = SEQUENCES,
                            .length = LENGTH,
                            .recompute = settings->recompute,
                            .optimizer = OPTIMIZER_ADAMW,
                            .head_rows = 16,
                            .deterministic = true};
    if (!whole) {
        options.context = (ContextShare){mesh->coordinate[MESH_CONTEXT], mesh->size[MESH_CONTEXT]};
        options.tensor = (TensorShare){mesh->coordinate[MESH_TENSOR], mesh->size[MESH_TENSOR], settings->cut_rows};
    }
    Model *model;
    CHECK_OK(model_create(device, &config, &options, &model));
    model->tensor->group = whole ? NULL : mesh_group(mesh, OVER_TENSOR);
    model->tensor->context = whole ? NULL : mesh_group(mesh, OVER_CONTEXT);
    model_initialise(model, 7);
    models_disturb(model);
    return model;
}

// Two micro-batches, whose gradients add up. Returns this rank's loss.
static double run(Model *model, bool documents) {
    StepOptions step = {.grad_scale = 0.03F, .z_loss = 0.01F, .seed = 5};
    double loss = 0;
    for (uint64_t micro = 0; micro < 2; micro++) {
        Batch batch = models_batch(SEQUENCES, LENGTH, model->config.vocabulary, documents, 3 + micro);
        batch.first_sample = 10 + 2 * micro;
        StepResult result;
        model_forward_backward(model, &batch, &step, &result);
        loss += result.loss_sum;
        batch_free(&batch);
    }
    return loss;
}

static void check_evaluation(Model *part, Model *whole, bool documents) {
    float ours[SEQUENCES * LENGTH], theirs[SEQUENCES * LENGTH];
    Batch batch = models_batch(SEQUENCES, LENGTH, part->config.vocabulary, documents, 9);
    model_evaluate(part, &batch, ours);
    model_evaluate(whole, &batch, theirs);
    for (int i = 0; i < SEQUENCES * LENGTH; i++) {
        CHECK_NEAR((double)ours[i], (double)theirs[i], 1e-5 * fmax(1, fabs((double)theirs[i])));
    }
    batch_free(&batch);
}

static void compare(const Settings *settings) {
    Model *part = open_model(settings, false), *whole = open_model(settings, true);
    Group *group = mesh_group(mesh, OVER_CONTEXT);
    double ours = run(part, settings->documents), theirs = run(whole, settings->documents), most = 0, largest;
    CHECK_OK(comm_all_reduce_doubles(group->comm, &ours, 1, COMM_SUM));
    CHECK_OK(group_all_reduce(group, ELEMENT_FP32, COMM_SUM, part->weights.grads, part->weights.placement.gradients));
    model_sum_tensor_gradients(part);
    CHECK_NEAR(ours, theirs, 1e-5 * fabs(theirs));
    for (int32_t i = 0; i < part->table.count; i++) {
        models_difference(part, whole, i, &largest);
        most = fmax(most, largest);
    }
    for (int32_t i = 0; i < part->table.count; i++) {
        double worst = models_difference(part, whole, i, &largest), scale = fmax(largest, 1e-3 * most);
        if (!CHECK(worst <= 1e-5 * scale)) {
            printf("rank %d: %s differs by %g of %g\n", world->rank, part->table.rows[i].name, worst, scale);
        }
    }
    check_evaluation(part, whole, settings->documents);
    CHECK_OK(model_tensor_error(part));
    model_destroy(part);
    model_destroy(whole);
}

static void compare_all(bool cut_rows) {
    for (int m = 0; m < 2; m++) {
        for (int recompute = RECOMPUTE_NONE; recompute <= RECOMPUTE_FULL; recompute++) {
            compare(&(Settings){models[m], 0, (Recompute)recompute, false, cut_rows});
            compare(&(Settings){models[m], 0.2, (Recompute)recompute, true, cut_rows});
        }
        compare(&(Settings){models[m], 0.2, RECOMPUTE_NONE, false, cut_rows});
    }
}

// A mesh of all ranks between whose devices the ring goes.
static void open_mesh(DeviceKind kind, int tensor) {
    const int sizes[MESH_AXES] = {
        [MESH_DATA] = 1, [MESH_PIPELINE] = 1, [MESH_TENSOR] = tensor, [MESH_CONTEXT] = world->size / tensor};
    if (kind == DEVICE_CPU) {
        CHECK_OK(device_open_cpu(1, NULL, &device));
    } else {
        CHECK_OK(device_open_card(kind, world->rank, TYPE_FP32, 1, &device));
    }
    CHECK_OK(mesh_create(world, sizes, &mesh));
    CHECK_OK(mesh_attach(mesh, device, (const int[]){OVER_TENSOR, OVER_CONTEXT}, 2));
}

static void close_mesh(void) {
    CHECK_OK(device_finish(device));
    mesh_detach(mesh, false);
    mesh_destroy(mesh);
    device_close(device);
}

static void test_context(void) {
    open_mesh(DEVICE_CPU, 1);
    compare_all(false);
    close_mesh();
}

// Where there are four ranks: rings of two beside tensor-parallel ranks.
static void test_context_and_tensor(void) {
    for (int cut_rows = 0; cut_rows < 2 && world->size == 4; cut_rows++) {
        open_mesh(DEVICE_CPU, 2);
        compare_all(cut_rows);
        close_mesh();
    }
}

// A ring gives the same bits each time.
static void test_same_bits(void) {
    open_mesh(DEVICE_CPU, 1);
    Settings settings = {.yaml = models[1], .dropout = 0.1};
    Model *one = open_model(&settings, false), *two = open_model(&settings, false);
    double first = run(one, false), second = run(two, false);
    CHECK(first == second);
    CHECK(memcmp(one->weights.grads, two->weights.grads, (size_t)one->weights.placement.gradients * sizeof(float)) == 0);
    model_destroy(one);
    model_destroy(two);
    close_mesh();
}

#ifdef ATHANOR_HAVE_SIMULATED
static void test_cards(void) {
    open_mesh(DEVICE_SIMULATED, 1);
    compare(&(Settings){models[1], 0, RECOMPUTE_NONE, false, false});
    compare(&(Settings){models[1], 0.2, RECOMPUTE_SELECTIVE, true, false});
    close_mesh();
}
#endif

int main(void) {
    CHECK_OK(comm_open_world(&world));
    RUN(test_context);
    RUN(test_context_and_tensor);
    RUN(test_same_bits);
#ifdef ATHANOR_HAVE_SIMULATED
    RUN(test_cards);
#endif
    int code = check_report();
    comm_close(world);
    return code;
}
