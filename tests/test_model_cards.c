// Whole models on cards against the CPU: the loss, every gradient, ten steps; the same bits again, recorded or not; parameters
// and moments in fewer bits. The simulated card as sm_80 and sm_90, or with ATHANOR_TEST_DEVICE=cuda the first real one.
#include "tests/support/check.h"
#include "tests/support/models.h"

#include <math.h>
#include <stdio.h>

enum { SEQUENCES = 2, LENGTH = 37, STEPS = 10, SKIPPED = 77 };

// Widths that tiles divide and widths that they do not; all switches of the block.
static const char *const yamls[] = {
    "model:\n  family: gpt2\n  layers: 2\n  width: 64\n  heads: 2\n  context: 64\n  vocabulary: 101\n",
    "model:\n  family: llama\n  layers: 2\n  width: 48\n  heads: 3\n  groups: 1\n  head_width: 40\n  ffn_width: 72\n"
    "  context: 64\n  vocabulary: 128\n",
    "model:\n  family: llama\n  layers: 1\n  width: 40\n  heads: 4\n  groups: 2\n  head_width: 64\n  ffn_width: 56\n"
    "  context: 64\n  vocabulary: 77\n  norm: layer\n  qkv_bias: true\n  gated: false\n  activation: gelu_erf\n"
    "  rotary_fraction: 0.5\n  rotary_interleaved: true\n  tied_head: true\n  embedding_scale: 1.7\n  dropout: 0.2\n",
};
enum { MODELS = sizeof yamls / sizeof *yamls };

static const char *const architectures[] = {"80", "90"};
static int architecture_count = 2;
static DeviceKind card_kind = DEVICE_SIMULATED;

static Device *open_card(int architecture, DataType type) {
    Device *device;
    setenv("ATHANOR_SIMULATED_ARCH", architectures[architecture], 1);
    CHECK_OK(device_open_card(card_kind, 0, type, 1, &device));
    return device;
}

static ModelOptions options_with(Recompute recompute) {
    return (ModelOptions){.sequences = SEQUENCES,
                          .length = LENGTH,
                          .recompute = recompute,
                          .head_rows = 30,
                          .masters = true,
                          .deterministic = true,
                          .weight_decay = 0.1};
}

static StepResult run_once(Model *model, const Batch *batch) {
    StepOptions step = {.grad_scale = 1.0F / (SEQUENCES * LENGTH), .z_loss = 0.01F, .seed = 5};
    StepResult result;
    weights_zero_gradients(&model->weights);
    model_forward_backward(model, batch, &step, &result);
    return result;
}

// The relative error of each tensor's gradient in the root of the mean square; the worst.
static double worst_gradient(const Model *model, const float *ours, const float *theirs, double scale, char *where) {
    double worst = 0;
    for (int32_t i = 0; i < model->table.count; i++) {
        const Param *row = &model->table.rows[i];
        double difference = 0, size = 0;
        for (int64_t j = row->index; j < row->index + row->count; j++) {
            difference += pow((double)ours[j] / scale - (double)theirs[j], 2);
            size += pow((double)theirs[j], 2);
        }
        double error = sqrt(difference / (size > 0 ? size : 1e-30));
        if (!(error <= worst)) {
            worst = error;
            snprintf(where, PARAM_NAME_SIZE, "%s", row->name);
        }
    }
    return worst;
}

// How far a 16-bit model may be from fp32: about forty roundings lie between a parameter and its gradient, each of at most half
// a unit in the last place and independent of the others, so sqrt(40) of them, and twice that for luck.
static double tolerance(DataType type) {
    return type == TYPE_FP32 ? 2e-5 : 2 * sqrt(40.0) * (type == TYPE_BF16 ? 0x1p-9 : 0x1p-12);
}

static const char *const names[] = {"fp32", "bf16", "fp16"};

static void test_gradients(void) {
    for (int m = 0; m < MODELS; m++) {
        ModelConfig config = models_config(yamls[m]);
        ModelOptions options = options_with(RECOMPUTE_NONE);
        Batch batch = models_batch(SEQUENCES, LENGTH, config.vocabulary, true, 3);
        Model *here = models_open(&config, &options, 2);
        StepResult expected = run_once(here, &batch);
        float *right = models_values(here, ARRAY_GRADIENT);
        for (int a = 0; a < architecture_count; a++) {
            for (DataType type = TYPE_FP32; type <= TYPE_FP16; type++) {
                Model *there = models_open_on(open_card(a, type), &config, &options);
                StepResult result = run_once(there, &batch);
                float *first = models_values(there, ARRAY_GRADIENT);
                char where[PARAM_NAME_SIZE] = "";
                double scale = (double)model_control(there).loss_scale;
                double worst = worst_gradient(here, first, right, scale, where);
                bool near = worst <= tolerance(type);
                near &= fabs(result.loss_sum - expected.loss_sum) <= tolerance(type) * expected.loss_sum;
                near &= fabs(result.weight_sum - expected.weight_sum) <= 1e-6 * expected.weight_sum;
                near &= fabs(result.z_sum - expected.z_sum) <= 2 * tolerance(type) * expected.z_sum;
                if (!CHECK(near)) {
                    printf("  model %d as sm_%s in %s: loss %.6f, expected %.6f; worst gradient %s off by %.3g\n", m,
                           architectures[a], names[type], result.loss_sum, expected.loss_sum, where, worst);
                }
                run_once(there, &batch);
                float *second = models_values(there, ARRAY_GRADIENT);
                CHECK(memcmp(first, second, (size_t)there->table.elements * sizeof *first) == 0);
                free(first);
                free(second);
                models_close(there);
            }
        }
        free(right);
        models_close(here);
        batch_free(&batch);
    }
}

// ---- Steps

typedef struct Steps {
    double losses[STEPS];
    float *params;
} Steps;

static void one_step(Model *model, const Batch *batch) {
    StepOptions step = {.grad_scale = 1.0F / (SEQUENCES * LENGTH), .seed = 5};
    weights_zero_gradients(&model->weights);
    model_run_batch(model, batch, &step);
    model_finish_step(
        model, &(UpdateOptions){
                   .batch_weight = SEQUENCES * LENGTH, .clip = 1, .beta1 = 0.9F, .beta2 = 0.95F, .epsilon = 1e-8F, .seed = 7});
}

// An operation that needs more scratch than any of the model's: the record must not lose what it was made with.
static void want_more_scratch(Device *device) {
    enum { ROWS = 600000 };
    int32_t *tokens = memory_zeroed(ROWS, sizeof *tokens);
    void *there, *gradients, *table;
    CHECK_OK(device_allocate(device, ROWS * sizeof *tokens, &there));
    CHECK_OK(device_allocate(device, ROWS * sizeof(float), &gradients));
    CHECK_OK(device_allocate(device, 16, &table));
    device_upload(device, there, tokens, ROWS * sizeof *tokens);
    device->op->embedding_backward(
        device,
        &(EmbeddingBackward){
            .rows = ROWS, .width = 1, .vocabulary = 4, .tokens = there, .dy = gradients, .scale = 1, .dtoken_table = table});
    CHECK_OK(device_finish(device));
    device_release(device, there, ROWS * sizeof *tokens);
    device_release(device, gradients, ROWS * sizeof(float));
    device_release(device, table, 16);
    free(tokens);
}

static Steps run_steps(Model *model, const Batch *batch, bool recorded) {
    Steps steps;
    Device *device = model->device;
    DeviceGraph *graph = NULL;
    for (int i = 0; i < STEPS; i++) {
        model_begin_step(model, 1e-2);
        Batch there = batch_to_device(device, batch, model->workspace.batch_memory);
        if (graph == NULL && recorded && i > 0) {
            CHECK(device_record(device));
            one_step(model, &there);
            CHECK_OK(device_record_end(device, &graph));
        }
        if (graph != NULL) {
            if (i == STEPS / 2) {
                want_more_scratch(device);
            }
            device_graph_run(device, graph);
        } else {
            one_step(model, &there);
        }
        model_send_control(model);
        if (i > 0) {
            StepControl control;
            CHECK_OK(model_receive_control(model, &control));
            steps.losses[i - 1] = control.loss_sum / control.weight_sum;
        }
    }
    StepControl control;
    CHECK_OK(model_receive_control(model, &control));
    steps.losses[STEPS - 1] = control.loss_sum / control.weight_sum;
    CHECK(control.updates + control.skipped == STEPS && control.skipped <= 1);
    CHECK_OK(device_finish(device));
    if (graph != NULL) {
        device_graph_destroy(device, graph);
    }
    steps.params = models_values(model, ARRAY_WEIGHT);
    return steps;
}

static void check_losses(const char *what, const Steps *ours, const Steps *theirs, double most) {
    double worst = 0;
    for (int i = 0; i < STEPS; i++) {
        worst = fmax(worst, fabs(ours->losses[i] - theirs->losses[i]) / theirs->losses[i]);
    }
    if (!CHECK(worst <= most && ours->losses[STEPS - 1] < 0.9 * ours->losses[0])) {
        printf("  %s: losses from %.5f to %.5f, expected from %.5f to %.5f\n", what, ours->losses[0], ours->losses[STEPS - 1],
               theirs->losses[0], theirs->losses[STEPS - 1]);
    }
}

static void test_steps(void) {
    for (int m = 0; m < 2; m++) {
        ModelConfig config = models_config(yamls[m]);
        ModelOptions options = options_with(RECOMPUTE_SELECTIVE);
        Batch batch = models_batch(SEQUENCES, LENGTH, config.vocabulary, true, 3);
        Model *here = models_open(&config, &options, 2);
        Steps expected = run_steps(here, &batch, false);
        for (DataType type = TYPE_FP32; type <= TYPE_FP16; type++) {
            Steps steps[2];
            for (int recorded = 0; recorded < 2; recorded++) {
                Model *there = models_open_on(open_card(architecture_count - 1, type), &config, &options);
                steps[recorded] = run_steps(there, &batch, recorded);
                // Adam divides by the size of a gradient, so that the sign of one near zero decides: errors grow with steps.
                check_losses(names[type], &steps[recorded], &expected, 10 * tolerance(type));
                models_close(there);
            }
            CHECK(memcmp(steps[0].params, steps[1].params, (size_t)here->table.elements * sizeof(float)) == 0);
            free(steps[0].params);
            free(steps[1].params);
        }
        free(expected.params);
        models_close(here);
        batch_free(&batch);
    }
}

// bf16 parameters without masters and moments of 8 bits: learns as well, the same bits twice, and what is read and written back
// changes nothing.
static void test_fewer_bits(void) {
    ModelConfig config = models_config(yamls[0]);
    Batch batch = models_batch(SEQUENCES, LENGTH, config.vocabulary, true, 3);
    ModelOptions options = options_with(RECOMPUTE_FULL);
    Model *here = models_open(&config, &options, 2);
    Steps expected = run_steps(here, &batch, false);
    for (int mode = 1; mode < 4; mode++) {
        Steps steps[2];
        options.masters = !(mode & 1);
        options.moments = mode & 2 ? MOMENT_8BIT : MOMENT_FP32;
        for (int again = 0; again < 2; again++) {
            Model *there = models_open_on(open_card(architecture_count - 1, TYPE_BF16), &config, &options);
            CHECK((there->weights.masters != NULL) == options.masters);
            steps[again] = run_steps(there, &batch, false);
            check_losses(mode == 1 ? "no masters" : mode == 2 ? "8-bit moments" : "both", &steps[again], &expected, 0.2);
            for (WeightsArray array = ARRAY_WEIGHT; array <= ARRAY_MOMENT2; array++) {
                float *values = models_values(there, array);
                models_write(there, array, values);
                float *back = models_values(there, array);
                CHECK(memcmp(values, back, (size_t)there->table.elements * sizeof *back) == 0);
                free(values);
                free(back);
            }
            models_close(there);
        }
        CHECK(memcmp(steps[0].params, steps[1].params, (size_t)here->table.elements * sizeof(float)) == 0);
        free(steps[0].params);
        free(steps[1].params);
    }
    free(expected.params);
    models_close(here);
    batch_free(&batch);
}

// A model that takes most of a card fits it before and after it is there; one that takes more than all does not.
static void test_memory(void) {
    ModelConfig config = models_config(yamls[0]);
    ModelOptions options = options_with(RECOMPUTE_FULL);
    Device *card = open_card(0, TYPE_BF16);
    int64_t card_bytes = (int64_t)device_available(card);
    Machine machine = machine_of(card, 1, 1);
    MemoryPlan plan;
    do {
        config.vocabulary += config.vocabulary / 4;
        model_plan(&config, &options, &machine, &plan);
    } while (plan.total < card_bytes * 6 / 10);
    CHECK(plan.total < card_bytes);
    Model *model = NULL;
    if (CHECK_OK(model_create(card, &config, &options, &model))) {
        CHECK((int64_t)device_available(card) < plan.total);  // what is left is less than what it has
        CHECK_OK(memory_plan_check(&model->plan, &machine));
        model_destroy(model);
    }
    config.vocabulary *= 2;
    CHECK_FAILS(model_create(card, &config, &options, &model), "of the card's memory");
    device_close(card);
}

int main(void) {
    const char *wanted = getenv("ATHANOR_TEST_DEVICE");
    if (wanted != NULL && strcmp(wanted, "cuda") == 0) {
        card_kind = DEVICE_CUDA;
        architecture_count = 1;
    }
    if (!device_built(card_kind)) {
        printf("skipped: this build has no %s card\n", card_kind == DEVICE_CUDA ? "real" : "simulated");
        return SKIPPED;
    }
    RUN(test_gradients);
    RUN(test_steps);
    RUN(test_fewer_bits);
    if (card_kind == DEVICE_SIMULATED) {
        RUN(test_memory);
    }
    return check_report();
}
