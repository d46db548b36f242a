// train/model/pass: a pass in parts is the same pass. Weights' gradients called later, layers on two workspaces as two stages
// of a pipeline, two micro-batches under way at once: the same bits as the model's own whole pass, in every recompute mode.
#include "tests/support/check.h"
#include "tests/support/models.h"
#include "train/model/pass.h"

#include <stdio.h>

static const char *const yamls[] = {
    "model:\n  family: gpt2\n  layers: 3\n  width: 24\n  heads: 3\n  context: 16\n  vocabulary: 37\n  dropout: 0.2\n",
    "model:\n  family: llama\n  layers: 4\n  width: 32\n  heads: 4\n  groups: 2\n  ffn_width: 40\n  context: 16\n"
    "  vocabulary: 37\n",
    "model:\n  family: gpt2\n  layers: 2\n  width: 16\n  heads: 2\n  position: none\n  gated: true\n  activation: gelu_tanh\n"
    "  norm_bias: false\n  context: 16\n  vocabulary: 37\n",
};
enum { MODELS = sizeof yamls / sizeof *yamls, SEQUENCES = 2, LENGTH = 13, SEED = 11 };

static const float grad_scale = 0.1F, z_loss = 0.01F;

typedef struct Case {
    ModelConfig config;
    Model *model;
    Batch batch;
    Recompute recompute;
    float *expected;  // gradients of the model's own pass
} Case;

static Case open_case(int number, Recompute recompute, DataType type) {
    Case c = {.config = models_config(yamls[number]), .recompute = recompute};
    ModelOptions options = {.sequences = SEQUENCES,
                            .length = LENGTH,
                            .recompute = recompute,
                            .head_rows = 7,
                            .masters = true,
                            .deterministic = true};
    StepOptions step = {.grad_scale = grad_scale, .z_loss = z_loss, .seed = SEED};
    if (type == TYPE_FP32) {
        c.model = models_open(&c.config, &options, 1);
    } else {
        Device *device;
        CHECK_OK(device_open_card(DEVICE_SIMULATED, 0, type, 1, &device));
        c.model = models_open_on(device, &c.config, &options);
    }
    c.batch = models_batch(SEQUENCES, LENGTH, c.config.vocabulary, true, 3);
    c.batch.first_sample = 5;
    model_forward_backward(c.model, &c.batch, &step, NULL);
    c.expected = models_values(c.model, ARRAY_GRADIENT);
    return c;
}

static void close_case(Case *c) {
    free(c->expected);
    batch_free(&c->batch);
    models_close(c->model);
}

static Workspace *open_workspace(const Case *c, Range layers, bool weights_later) {
    WorkspaceOptions options = {.sequences = SEQUENCES,
                                .length = LENGTH,
                                .recompute = c->recompute,
                                .layers = layers,
                                .weights_later = weights_later,
                                .head_rows = 7};
    Workspace *w;
    CHECK_OK(workspace_create(c->model->device, &c->config, &options, &w));
    return w;
}

static void check_gradients(const Case *c, const char *what) {
    float *values = models_values(c->model, ARRAY_GRADIENT);
    for (int32_t i = 0; i < c->model->table.count; i++) {
        const Param *row = &c->model->table.rows[i];
        size_t bytes = (size_t)row->count * sizeof *values;
        if (!CHECK(memcmp(values + row->index, c->expected + row->index, bytes) == 0)) {
            printf("  %s, recompute %s: %s\n", what, recompute_names[c->recompute], row->name);
        }
    }
    free(values);
}

static void test_weights_later(Case *c) {
    Workspace *w = open_workspace(c, (Range){0, 0}, true);
    Range all = {0, c->config.layers};
    // Twice: the second time every buffer is dirty.
    for (int again = 0; again < 2; again++) {
        weights_zero_gradients(&c->model->weights);
        Batch there = batch_to_device(c->model->device, &c->batch, w->batch_memory);
        Pass pass = pass_learning(c->model, w, &there, SEED);
        pass_embed(&pass);
        pass_forward(&pass, all);
        pass_loss(&pass, grad_scale, z_loss);
        pass_loss_backward(&pass);
        pass_backward(&pass, all, GRADIENTS_OF_INPUTS);
        pass_embed_backward(&pass);
        for (int64_t layer = 0; layer < all.end; layer++) {  // in any order
            pass_backward(&pass, (Range){layer, layer + 1}, GRADIENTS_OF_WEIGHTS);
        }
        check_gradients(c, "weights later");
    }
    workspace_destroy(w);
}

static void hand_over(const Case *c, const void *from, void *to) {
    int64_t bytes = c->config.width * data_type_bytes(c->model->device->type);
    c->model->device->op->copy_rows(c->model->device, &(CopyRows){SEQUENCES * LENGTH, bytes, from, bytes, to, bytes});
}

static void test_stages(Case *c) {
    int64_t cut = c->config.layers / 2;
    Range first = {0, cut}, second = {cut, c->config.layers};
    Workspace *one = open_workspace(c, first, false), *two = open_workspace(c, second, false);
    weights_zero_gradients(&c->model->weights);
    Batch there = batch_to_device(c->model->device, &c->batch, one->batch_memory);
    Pass a = pass_learning(c->model, one, &there, SEED), b = pass_learning(c->model, two, &there, SEED);
    pass_embed(&a);
    pass_forward(&a, first);
    hand_over(c, pass_layer(&a, cut - 1)->output, pass_layer(&b, cut)->input);
    pass_forward(&b, second);
    pass_loss(&b, grad_scale, z_loss);
    pass_loss_backward(&b);
    pass_backward(&b, second, GRADIENTS_ALL);
    hand_over(c, two->dstream, one->dstream);
    pass_backward(&a, first, GRADIENTS_ALL);
    pass_embed_backward(&a);
    check_gradients(c, "two stages");
    workspace_destroy(one);
    workspace_destroy(two);
}

// Two micro-batches, both forward before either goes back: the sums are those of one after the other.
static void test_two_under_way(Case *c) {
    Workspace *space[2] = {open_workspace(c, (Range){0, 0}, false), open_workspace(c, (Range){0, 0}, false)};
    Range all = {0, c->config.layers};
    StepOptions step = {.grad_scale = grad_scale, .z_loss = z_loss, .seed = SEED};
    Batch other = models_batch(SEQUENCES, LENGTH, c->config.vocabulary, true, 4);
    const Batch *batches[2] = {&c->batch, &other};
    model_forward_backward(c->model, &other, &step, NULL);  // behind what open_case added
    free(c->expected);
    c->expected = models_values(c->model, ARRAY_GRADIENT);
    Pass pass[2];
    weights_zero_gradients(&c->model->weights);
    for (int m = 0; m < 2; m++) {
        Batch there = batch_to_device(c->model->device, batches[m], space[m]->batch_memory);
        pass[m] = pass_learning(c->model, space[m], &there, SEED);
        pass_embed(&pass[m]);
        pass_forward(&pass[m], all);
    }
    for (int m = 0; m < 2; m++) {
        pass_loss(&pass[m], grad_scale, z_loss);
        pass_loss_backward(&pass[m]);
        pass_backward(&pass[m], all, GRADIENTS_ALL);
        pass_embed_backward(&pass[m]);
    }
    check_gradients(c, "two under way");
    batch_free(&other);
    workspace_destroy(space[0]);
    workspace_destroy(space[1]);
}

static void each(void (*test)(Case *c)) {
    for (int m = 0; m < MODELS; m++) {
        for (Recompute recompute = RECOMPUTE_NONE; recompute <= RECOMPUTE_FULL; recompute++) {
            Case c = open_case(m, recompute, TYPE_FP32);
            test(&c);
            close_case(&c);
        }
    }
    if (device_built(DEVICE_SIMULATED)) {
        Case c = open_case(1, RECOMPUTE_SELECTIVE, TYPE_BF16);
        test(&c);
        close_case(&c);
    }
}

static void test_all_weights_later(void) {
    each(test_weights_later);
}

static void test_all_stages(void) {
    each(test_stages);
}

static void test_all_two_under_way(void) {
    each(test_two_under_way);
}

int main(void) {
    RUN(test_all_weights_later);
    RUN(test_all_stages);
    RUN(test_all_two_under_way);
    return check_report();
}
