// Tensor-parallel ranks against one rank that has everything: the loss and every gradient of the same model and batch, with the
// stream's rows cut and not, for families, odd vocabularies, grouped queries, documents, recompute modes and dropout; on
// simulated cards too, where rows travel in blocks while others are computed with.
#include "parallel/mesh.h"
#include "parallel/transport.h"
#include "tests/support/check.h"
#include "tests/support/models.h"

#include <math.h>
#include <stdio.h>

static Comm *world;
static Device *card;         // NULL: the CPU
static int64_t length = 24;  // of sequences

static const char *const models[] = {
    // GPT-2: learned positions, biases, a tied head; a vocabulary that nobody divides.
    "model:\n  family: gpt2\n  layers: 2\n  width: 48\n  heads: 12\n  context: 32\n  vocabulary: 61\n",
    // LLaMA: grouped queries, gated, an untied head; feed-forward channels that 3 and 4 do not divide.
    "model:\n  family: llama\n  layers: 3\n  width: 96\n  heads: 24\n  groups: 12\n  ffn_width: 130\n  context: 32\n  "
    "vocabulary: 83\n",
};

static Model *open_model(const char *yaml, double dropout, Recompute recompute, TensorShare share, Group *group) {
    ModelConfig config = models_config(yaml);
    config.dropout = dropout;
    ModelOptions options = {.sequences = 2,
                            .length = length,
                            .recompute = recompute,
                            .optimizer = OPTIMIZER_ADAMW,
                            .head_rows = 16,
                            .deterministic = true,
                            .tensor = share};
    Device *device = card;
    if (card == NULL) {
        CHECK_OK(device_open_cpu(1, NULL, &device));
    }
    Model *model;
    CHECK_OK(model_create(device, &config, &options, &model));
    model->tensor->group = group;
    model_initialise(model, 7);
    return model;
}

// Its device too, where that is its own.
static void close_model(Model *model) {
    if (card == NULL) {
        models_close(model);
    } else {
        model_destroy(model);
    }
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
        Batch batch = models_batch(2, length, part->config.vocabulary, true, 3 + micro);
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
    close_model(part);
    close_model(whole);
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

// ---- On cards

// How many exchanges of rows were under way at each product, as they were called.
static const Operations *operations;
static const Transport *way;
static int under_way, products, overlapped;

static bool of_rows(const GroupRequest *request) {
    return request->what.type != ELEMENT_FP64 && request->what.count % 48 == 0;
}

static Error *noted_start(GroupRequest *request) {
    under_way += of_rows(request);
    return way->start(request);
}

static Error *noted_wait(GroupRequest *request) {
    under_way -= of_rows(request);
    return way->wait(request);
}

static void note_product(void) {
    products++;
    overlapped += under_way > 0;
}

static void noted_forward(Device *device, const MatmulForward *a) {
    note_product();
    operations->matmul_forward(device, a);
}

static void noted_input(Device *device, const MatmulBackwardInput *a) {
    note_product();
    operations->matmul_backward_input(device, a);
}

static void noted_weight(Device *device, const MatmulBackwardWeight *a) {
    note_product();
    operations->matmul_backward_weight(device, a);
}

// In a layer there are four products forward and four of inputs back, in as many blocks as ranks where their rows travel, and
// four of weights. While a block is computed others come (all own rows need not wait for), or those before it are summed; the
// gradients of weights are computed while the sums in front of them, or a norm's rows, travel.
static void check_overlap(bool cut_rows) {
    enum { LAYERS = 2 };
    int ranks = tensor_group->size;
    Transport noted = *(way = tensor_group->way);
    Operations ops = *(operations = card->op);
    noted.start = noted_start;
    noted.wait = noted_wait;
    ops.matmul_forward = noted_forward;
    ops.matmul_backward_input = noted_input;
    ops.matmul_backward_weight = noted_weight;
    Model *model = open_model(models[0], 0, RECOMPUTE_NONE, (TensorShare){tensor_group->rank, ranks, cut_rows}, tensor_group);
    Batch batch = models_batch(2, length, model->config.vocabulary, true, 3);
    StepOptions step = {.grad_scale = 0.03F, .seed = 5};
    under_way = products = overlapped = 0;
    tensor_group->way = &noted;
    card->op = &ops;
    model_forward_backward(model, &batch, &step, NULL);
    tensor_group->way = way;
    card->op = operations;
    int gathers = cut_rows ? 4 * ranks : 4, sums = 4 * ranks, weights = 4;
    CHECK_I64(products, LAYERS * (gathers + sums + weights));
    // A gather's blocks all meet the sending of own rows; of a sum's the first goes alone.
    int met = (cut_rows ? 4 * ranks : 0) + 4 * (ranks - 1) + weights;
    CHECK_I64(overlapped, LAYERS * met);
    CHECK_I64(under_way, 0);
    CHECK_OK(model_tensor_error(model));
    CHECK_OK(device_finish(card));
    batch_free(&batch);
    model_destroy(model);
}

static void test_cards(void) {
    Group *of_host = tensor_group;
    if (!device_built(DEVICE_SIMULATED) || world->size == 1) {
        return;
    }
    CHECK_OK(device_open_card(DEVICE_SIMULATED, world->rank, TYPE_FP32, 1, &card));
    CHECK_OK(group_create(world, "tensor", card, &tensor_group));
    length = 8 * world->size;  // blocks of 16 rows
    compare(models[0], 0, RECOMPUTE_NONE, true, tensor_group);
    compare(models[1], 0, RECOMPUTE_FULL, true, tensor_group);
    compare(models[0], 0.2, RECOMPUTE_SELECTIVE, false, tensor_group);
    check_overlap(true);
    check_overlap(false);
    group_close(tensor_group, false);
    device_close(card);
    card = NULL;
    tensor_group = of_host;
}

int main(void) {
    CHECK_OK(comm_open_world(&world));
    CHECK_OK(group_create(world, "tensor", NULL, &tensor_group));
    RUN(test_rows_whole);
    RUN(test_rows_cut);
    RUN(test_dropout);
    RUN(test_cards);
    group_close(tensor_group, false);
    int code = check_report();
    comm_close(world);
    return code;
}
