// Tensor-parallel ranks against one rank that has everything: the loss and every gradient of the same model and batch, with the
// stream's rows cut and not, for families, odd vocabularies, grouped queries, documents, recompute modes and dropout.
#include "parallel/mesh.h"
#include "tests/support/check.h"
#include "tests/support/models.h"

#include <math.h>
#include <stdio.h>

static Comm *world;

static const char *const models[] = {
    // GPT-2: learned positions, biases, a tied head; a vocabulary that nobody divides.
    "model:\n  family: gpt2\n  layers: 2\n  width: 48\n  heads: 12\n  context: 24\n  vocabulary: 61\n",
    // LLaMA: grouped queries, gated, an untied head; feed-forward channels that 3 and 4 do not divide.
    "model:\n  family: llama\n  layers: 3\n  width: 96\n  heads: 24\n  groups: 12\n  ffn_width: 130\n  context: 24\n  "
    "vocabulary: 83\n",
};

static Model *open_model(const char *yaml, double dropout, Recompute recompute, TensorShare share, Group *group) {
    ModelConfig config = models_config(yaml);
    config.dropout = dropout;
    ModelOptions options = {.sequences = 2,
                            .length = 24,
                            .recompute = recompute,
                            .optimizer = OPTIMIZER_ADAMW,
                            .head_rows = 16,
                            .deterministic = true,
                            .tensor = share};
    Device *device;
    CHECK_OK(device_open_cpu(1, NULL, &device));
    Model *model;
    CHECK_OK(model_create(device, &config, &options, &model));
    model->tensor->group = group;
    model_initialise(model, 7);
    return model;
}

static void compare(const char *yaml, double dropout, Recompute recompute, bool cut_rows, Group *group) {
    TensorShare share = {group->rank, group->size, cut_rows};
    Model *part = open_model(yaml, dropout, recompute, share, group);
    Model *whole = open_model(yaml, dropout, recompute, (TensorShare){0}, NULL);
    models_disturb(part);
    models_disturb(whole);
    StepOptions step = {.grad_scale = 0.03F, .z_loss = 0.01F, .seed = 5};
    StepResult of_part = {0}, of_whole = {0};
    for (uint64_t micro = 0; micro < 2; micro++) {  // gradients add up
        Batch batch = models_batch(2, 24, part->config.vocabulary, true, 3 + micro);
        batch.first_sample = 10 + 2 * micro;
        StepResult a, b;
        model_forward_backward(part, &batch, &step, &a);
        model_forward_backward(whole, &batch, &step, &b);
        of_part.loss_sum += a.loss_sum, of_whole.loss_sum += b.loss_sum;
        batch_free(&batch);
    }
    model_sum_tensor_gradients(part);
    CHECK_OK(part->tensor->failed);
    part->tensor->failed = NULL;
    CHECK_NEAR(of_part.loss_sum, of_whole.loss_sum, 1e-5 * fabs(of_whole.loss_sum));
    double most = 0, largest;
    for (int32_t i = 0; i < part->table.count; i++) {
        models_difference(part, whole, i, &largest);
        most = fmax(most, largest);
    }
    for (int32_t i = 0; i < part->table.count; i++) {
        double worst = models_difference(part, whole, i, &largest), scale = fmax(largest, 1e-3 * most);
        if (!CHECK(worst <= 1e-5 * scale)) {
            printf("rank %d: %s differs by %g of %g\n", group->rank, part->table.rows[i].name, worst, scale);
        }
    }
    models_close(part);
    models_close(whole);
}

static Group *tensor_group;

static void test_rows_whole(void) {
    for (int m = 0; m < 2; m++) {
        compare(models[m], 0, RECOMPUTE_NONE, false, tensor_group);
        compare(models[m], 0, RECOMPUTE_FULL, false, tensor_group);
    }
}

static void test_rows_cut(void) {
    for (int m = 0; m < 2; m++) {
        compare(models[m], 0, RECOMPUTE_NONE, true, tensor_group);
        compare(models[m], 0, RECOMPUTE_SELECTIVE, true, tensor_group);
        compare(models[m], 0, RECOMPUTE_FULL, true, tensor_group);
    }
}

static void test_dropout(void) {
    compare(models[0], 0.2, RECOMPUTE_NONE, false, tensor_group);
    compare(models[0], 0.2, RECOMPUTE_SELECTIVE, true, tensor_group);
}

int main(void) {
    CHECK_OK(comm_open_world(&world));
    CHECK_OK(group_create(world, "tensor", NULL, &tensor_group));
    RUN(test_rows_whole);
    RUN(test_rows_cut);
    RUN(test_dropout);
    group_close(tensor_group, false);
    int code = check_report();
    comm_close(world);
    return code;
}
