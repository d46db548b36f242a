// train/model: configs, parameter table, gradients, recompute, accumulation, documents, decoding, dropout, the plan.
#include "core/config.h"
#include "core/philox.h"
#include "tests/support/check.h"
#include "tests/support/models.h"
#include "train/model/decoder.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static const char tiny_gpt2[] =
    "model:\n  family: gpt2\n  layers: 2\n  width: 24\n  heads: 3\n  context: 16\n  vocabulary: 37\n";
static const char tiny_llama[] = "model:\n  family: llama\n  layers: 3\n  width: 32\n  heads: 4\n  groups: 2\n  ffn_width: 40\n"
                                 "  context: 16\n  vocabulary: 37\n";
// The switches that the two families leave unused, with dropout.
static const char tiny_mixed[] =
    "model:\n  family: llama\n  layers: 2\n  width: 20\n  heads: 4\n  groups: 1\n  head_width: 8\n  ffn_width: 24\n  context: "
    "16\n"
    "  vocabulary: 37\n  norm: layer\n  qkv_bias: true\n  gated: false\n  activation: gelu_erf\n  rotary_fraction: 0.5\n"
    "  rotary_interleaved: true\n  tied_head: true\n  embedding_scale: 1.7\n  dropout: 0.2\n";
static const char tiny_plain[] =
    "model:\n  family: gpt2\n  layers: 1\n  width: 16\n  heads: 2\n  position: none\n  gated: true\n"
    "  activation: gelu_tanh\n  norm_bias: false\n  context: 16\n  vocabulary: 37\n";

enum { SEQUENCES = 2, LENGTH = 13 };

static ModelOptions options_with(Recompute recompute) {
    return (ModelOptions){.sequences = SEQUENCES, .length = LENGTH, .recompute = recompute, .head_rows = 7};
}

static double objective(Model *model, const Batch *batch, const StepOptions *step) {
    StepResult result;
    model_forward_backward(model, batch, step, &result);
    return (result.loss_sum + (double)step->z_loss * result.z_sum) * (double)step->grad_scale;
}

static bool same_bits(const float *a, const float *b, int64_t count) {
    return memcmp(a, b, (size_t)count * sizeof *a) == 0;
}

// The largest difference relative to the largest element.
static double worst_error(const float *a, const float *b, int64_t count) {
    double worst = 0, largest = 0;
    for (int64_t i = 0; i < count; i++) {
        worst = fmax(worst, fabs((double)a[i] - (double)b[i]));
        largest = fmax(largest, fabs((double)b[i]));
    }
    return largest > 0 ? worst / largest : worst;
}

// ---- Configs and the parameter table

static Error *resolve(const char *yaml, ModelConfig *config) {
    bool *seen = memory_zeroed((size_t)model_key_count, sizeof *seen);
    *config = (ModelConfig){0};
    keys_defaults(model_keys, model_key_count, config);
    Error *error = config_read_text(model_keys, model_key_count, config, "x.yaml", yaml, strlen(yaml), seen);
    if (error == NULL) {
        error = model_config_resolve(config, seen, 100, "x.yaml");
    }
    free(seen);
    return error;
}

static void test_config(void) {
    ModelConfig config, other;
    CHECK_OK(resolve("model:\n  family: llama\n  layers: 2\n", &config));
    CHECK_I64(config.norm, NORM_RMS);
    CHECK_I64(config.position, POSITION_ROTARY);
    CHECK_I64(config.activation, ACTIVATION_SILU);
    CHECK(config.gated && !config.tied_head && !config.qkv_bias);
    CHECK_I64(config.ffn_width, 2048);
    CHECK_I64(config.groups, 12);
    CHECK_I64(config.head_width, 64);
    CHECK_I64(config.vocabulary, 100);
    // What the user gives wins over the family.
    CHECK_OK(resolve("model:\n  tied_head: true\n  norm: layer\n  family: llama\n  layers: 2\n", &other));
    CHECK(other.norm == NORM_LAYER && other.tied_head && other.gated);
    CHECK(model_config_hash(&config) != model_config_hash(&other));
    CHECK_FAILS(model_config_same(&config, &other, "run"), "run is of another model: model.norm is rms there, layer here");
    other = config;
    other.dropout = 0.5;
    CHECK(model_config_hash(&config) == model_config_hash(&other));
    CHECK_OK(model_config_same(&config, &other, "run"));
    // A resolved config written out reads back as itself.
    Buffer text = {0};
    config_write(model_keys, model_key_count, &config, true, &text);
    CHECK_OK(resolve(text.data, &other));
    CHECK(model_config_hash(&config) == model_config_hash(&other));
    buffer_free(&text);
}

static void bad_config(const char *settings, const char *part) {
    char *yaml = memory_format("model:\n%s", settings);
    ModelConfig config;
    CHECK_FAILS(resolve(yaml, &config), part);
    free(yaml);
}

static void test_bad_configs(void) {
    bad_config("  width: 100\n  heads: 3\n", "model.width 100 is not a multiple of model.heads 3");
    bad_config("  heads: 12\n  groups: 5\n", "model.groups 5 does not divide model.heads 12");
    bad_config("  family: llama\n  width: 24\n  heads: 8\n", "must be an even number");
    bad_config("  family: llama\n  rotary_fraction: 0.3\n", "must be an even number");
    bad_config("  vocabulary: 99\n", "smaller than the tokenizer's 100");
    bad_config("  layers: 0\n", "must be between 1 and");
    bad_config("  gated: true\n  activation: none\n", "needs an activation");
    bad_config("  dropout: 0.1\n  width: 15\n  heads: 3\n", "multiple of 4");
    bad_config("  layer: 3\n", "did you mean model.layers?");
    ModelConfig config = models_config(tiny_gpt2);
    config.heads = 0;
    CHECK_FAILS(model_config_check(&config, "file"), "model.heads is 0");
    config = models_config(tiny_gpt2);
    Device *device;
    Model *model;
    CHECK_OK(device_open_cpu(1, NULL, &device));
    ModelOptions options = {.sequences = 1, .length = 17};
    CHECK_FAILS(model_create(device, &config, &options, &model), "longer than model.context 16");
    options = (ModelOptions){.sequences = 0, .length = 4};
    CHECK_FAILS(model_create(device, &config, &options, &model), "not possible");
    CHECK_OK(resolve("model:\n  layers: 4000\n  width: 200000\n  heads: 10000\n", &config));
    options = (ModelOptions){.sequences = 1, .length = 4};
    CHECK_FAILS(model_create(device, &config, &options, &model), "is available; the largest part is");
    device_close(device);
}

static void test_params(void) {
    ModelConfig config = models_config(tiny_llama);
    ParamTable table;
    params_create(&config, &table);
    CHECK_I64(table.count, 2 + 3 * 6 + 1);
    CHECK_TEXT(table.rows[0].name, "embedding.token");
    CHECK_TEXT(table.rows[table.count - 1].name, "head.weight");
    const Param *qkv = params_find(&table, "layers.1.attention.qkv.weight");
    CHECK(qkv != NULL && qkv->shape[0] == 64 && qkv->shape[1] == 32 && qkv->layer == 1 && qkv->part_count == 3 && qkv->decay);
    CHECK(params_find(&table, "layers.1.attention.qkv.bias") == NULL);
    int64_t end = 0;
    for (int32_t i = 0; i < table.count; i++) {
        const Param *row = &table.rows[i];
        CHECK(row->index % PARAM_ALIGN == 0 && row->index >= end && row->index - end < PARAM_ALIGN);
        CHECK(row->decay == (row->dims == 2));
        end = row->index + row->count;
        // The parts of a row follow each other and are all of it.
        int64_t at = 0;
        for (int p = 0; p < row->part_count; p++) {
            CHECK_I64(row->parts[p].begin, at);
            at = row->parts[p].end;
        }
        CHECK_I64(at, row->shape[0]);
    }
    params_free(&table);
}

static void test_initial_values(void) {
    ModelConfig config = models_config(tiny_gpt2);
    ParamTable table;
    params_create(&config, &table);
    const Param *row = params_find(&table, "layers.1.attention.out.weight");
    int32_t number = (int32_t)(row - table.rows);
    float *one = memory_new((size_t)row->count, sizeof *one), *two = memory_new((size_t)row->count, sizeof *two);
    ThreadPool *single = threads_create(1), *pair = threads_create(2);
    Box whole = box_whole(row->dims, row->shape), right = whole;
    params_initial_values(&table, number, 5, single, &whole, 1, 0, row->count, one);
    // In parts, by two threads.
    int64_t cut = row->count / 3 + 7;
    params_initial_values(&table, number, 5, pair, &whole, 1, 0, cut, two);
    params_initial_values(&table, number, 5, pair, &whole, 1, cut, row->count, two + cut);
    CHECK(same_bits(one, two, row->count));
    // A value belongs to its logical element, wherever its column lies.
    right.begin[1] = 9;
    params_initial_values(&table, number, 5, pair, &right, 1, 0, box_count(&right), two);
    for (int64_t i = 0; i < box_count(&right); i++) {
        int64_t width = row->shape[1] - 9;
        CHECK(two[i] == one[i / width * row->shape[1] + 9 + i % width]);
    }
    float expected[4];
    philox_normal(5, philox_stream(RANDOM_INIT, (uint64_t)number), 0, (float)(0.02 / sqrt(4.0)), expected, 4);
    CHECK(same_bits(one, expected, 4));
    params_initial_values(&table, (int32_t)(params_find(&table, "final_norm.weight") - table.rows), 5, single,
                          &(Box){.dims = 1, .end = {24}}, 1, 0, 24, two);
    CHECK(two[0] == 1 && two[23] == 1);
    params_initial_values(&table, (int32_t)(params_find(&table, "final_norm.bias") - table.rows), 5, single,
                          &(Box){.dims = 1, .end = {24}}, 1, 0, 24, two);
    CHECK(two[0] == 0 && two[23] == 0);
    threads_destroy(single);
    threads_destroy(pair);
    free(one);
    free(two);
    params_free(&table);
}

// The first line of each preset: "# 124,439,808 parameters with a vocabulary of 50,257: ...".
static int64_t number_after(const char **text) {
    int64_t value = 0;
    for (; **text != 0 && (**text < '0' || **text > '9'); ++*text) {
    }
    for (; (**text >= '0' && **text <= '9') || **text == ','; ++*text) {
        value = **text == ',' ? value : 10 * value + (**text - '0');
    }
    return value;
}

static void test_presets(void) {
    const char *source = getenv("ATHANOR_SOURCE");
    char *folder = memory_format("%s/configs/models", source != NULL ? source : ".");
    DIR *listing = opendir(folder);
    ensure(listing != NULL, "%s cannot be listed", folder);
    int presets = 0;
    for (struct dirent *entry; (entry = readdir(listing)) != NULL;) {
        if (strstr(entry->d_name, ".yaml") == NULL) {
            continue;
        }
        char *path = memory_format("%s/%s", folder, entry->d_name), line[256];
        FILE *file = fopen(path, "r");
        ensure(file != NULL && fgets(line, sizeof line, file) != NULL, "%s cannot be read", path);
        fclose(file);
        const char *text = line;
        int64_t parameters = number_after(&text), vocabulary = number_after(&text);
        ModelConfig config;
        CHECK_OK(model_config_read(path, vocabulary, &config));
        if (!CHECK_I64(params_count(&config), parameters)) {
            printf("  in %s\n", path);
        }
        free(path);
        presets++;
    }
    closedir(listing);
    free(folder);
    CHECK(presets >= 12);
}

// ---- Gradients
//
// Against central differences of fourth order along directions d of length 1 within one tensor:
//   f'(0) ~ (8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / (12 h)
// Float32 leaves noise of about 1e-6 of the objective (about 4) in f, so 1e-4 in the quotient at h = 0.03; the truncation error
// is of order h^4 = 1e-6 times a fifth derivative. A derivative along the gradient itself equals its norm: the strongest
// signal. Tolerance: 5e-4 absolute and 1e-3 relative to the gradient's norm. A missing or doubled term errs by 0.1 and more.

typedef struct Slope {
    Model *model;
    const Batch *batch;
    const StepOptions *step;
    float *values;       // the tensor
    const float *saved;  // and its values
    int64_t count;
} Slope;

static double value_at(const Slope *slope, const double *direction, double h) {
    for (int64_t i = 0; i < slope->count; i++) {
        slope->values[i] = (float)((double)slope->saved[i] + h * direction[i]);
    }
    return objective(slope->model, slope->batch, slope->step);
}

static double slope_along(const Slope *slope, const double *direction) {
    const double h = 0.03;
    double near = value_at(slope, direction, h) - value_at(slope, direction, -h);
    double far = value_at(slope, direction, 2 * h) - value_at(slope, direction, -2 * h);
    memcpy(slope->values, slope->saved, (size_t)slope->count * sizeof *slope->values);
    return (8 * near - far) / (12 * h);
}

static void check_row(Slope *slope, const Param *row, const float *gradient) {
    double norm = 0, *direction = memory_zeroed((size_t)slope->count, sizeof *direction);
    int64_t largest = 0;
    for (int64_t i = 0; i < slope->count; i++) {
        norm += (double)gradient[i] * (double)gradient[i];
        largest = fabsf(gradient[i]) > fabsf(gradient[largest]) ? i : largest;
    }
    norm = sqrt(norm);
    double tolerance = 5e-4 + 1e-3 * norm;
    bool right = CHECK(norm > 0);
    // Along the gradient, along a random direction, along the largest and one other element.
    for (int kind = 0; kind < 4; kind++) {
        double expected = 0;
        for (int64_t i = 0; i < slope->count; i++) {
            bool sign = philox(9, philox_stream(RANDOM_TEST, (uint64_t)row->index), (uint64_t)i).word[0] & 1;
            double along = kind == 0   ? (double)gradient[i] / norm
                           : kind == 1 ? (sign ? 1 : -1) / sqrt((double)slope->count)
                                       : i == (kind == 2 ? largest : slope->count / 2);
            direction[i] = along;
            expected += along * (double)gradient[i];
        }
        right = CHECK_NEAR(slope_along(slope, direction), expected, tolerance) && right;
    }
    if (!right) {
        printf("  %s (gradient norm %g)\n", row->name, norm);
    }
    free(direction);
}

static void check_gradients(const char *yaml) {
    ModelConfig config = models_config(yaml);
    ModelOptions options = options_with(RECOMPUTE_NONE);
    Model *model = models_open(&config, &options, 1);
    Batch batch = models_batch(SEQUENCES, LENGTH, config.vocabulary, true, 3);
    StepOptions step = {.grad_scale = 1.0F / (SEQUENCES * LENGTH), .z_loss = 0.01F, .seed = 11};
    objective(model, &batch, &step);
    float *grads = models_values(model, ARRAY_GRADIENT), *params = models_values(model, ARRAY_WEIGHT);
    for (int32_t i = 0; i < model->table.count; i++) {
        const Param *row = &model->table.rows[i];
        Slope slope = {model, &batch, &step, models_weight(model, i), params + row->index, row->count};
        check_row(&slope, row, grads + row->index);
    }
    free(grads);
    free(params);
    batch_free(&batch);
    models_close(model);
}

static void test_gradients_gpt2(void) {
    check_gradients(tiny_gpt2);
}

static void test_gradients_llama(void) {
    check_gradients(tiny_llama);
}

static void test_gradients_mixed(void) {
    check_gradients(tiny_mixed);
}

static void test_gradients_plain(void) {
    check_gradients(tiny_plain);
}

// ---- Same bits

// One step's gradients and losses; the caller frees both.
typedef struct Outcome {
    float *grads;
    int64_t count;
    StepResult result;
} Outcome;

static Outcome outcome_of(const ModelConfig *config, Recompute recompute, int threads, const char *variant, const Batch *batch,
                          uint64_t seed) {
    ModelOptions options = {.sequences = batch->sequences, .length = batch->length, .recompute = recompute};
    Model *model = models_open_variant(config, &options, threads, variant);
    StepOptions step = {.grad_scale = 0.1F, .z_loss = 0.01F, .seed = seed};
    Outcome out = {.count = model->table.elements};
    // Twice: the second time every buffer is dirty.
    model_forward_backward(model, batch, &step, &out.result);
    weights_zero_gradients(&model->weights);
    model_forward_backward(model, batch, &step, &out.result);
    out.grads = models_values(model, ARRAY_GRADIENT);
    models_close(model);
    return out;
}

// What the backward pass asks of attention.
static const Operations *operations;
static bool order_is_free;

static void note_order(Device *device, const AttentionBackward *a) {
    order_is_free = a->any_order;
    operations->attention_backward(device, a);
}

static void test_deterministic(void) {
    ModelConfig config = models_config(tiny_llama);
    Batch batch = models_batch(SEQUENCES, LENGTH, config.vocabulary, true, 3);
    for (int deterministic = 0; deterministic < 2; deterministic++) {
        ModelOptions options = options_with(RECOMPUTE_NONE);
        options.deterministic = deterministic == 1;
        Model *model = models_open(&config, &options, 1);
        operations = model->device->op;
        Operations noting = *operations;
        noting.attention_backward = note_order;
        model->device->op = &noting;
        objective(model, &batch, &(StepOptions){.grad_scale = 1});
        model->device->op = operations;
        CHECK(order_is_free == (deterministic == 0));
        models_close(model);
    }
    batch_free(&batch);
}

static void check_same(const Outcome *a, const Outcome *b) {
    CHECK(same_bits(a->grads, b->grads, a->count));
    CHECK(a->result.loss_sum == b->result.loss_sum && a->result.z_sum == b->result.z_sum);
}

static void check_recompute(const char *yaml, const char *variant) {
    ModelConfig config = models_config(yaml);
    Batch batch = models_batch(SEQUENCES, LENGTH, config.vocabulary, true, 3);
    Outcome plain = outcome_of(&config, RECOMPUTE_NONE, 1, variant, &batch, 7);
    for (int threads = 1; threads <= 2; threads++) {
        for (Recompute mode = RECOMPUTE_NONE; mode <= RECOMPUTE_FULL; mode++) {
            Outcome other = outcome_of(&config, mode, threads, variant, &batch, 7);
            check_same(&plain, &other);
            free(other.grads);
        }
    }
    Outcome reseeded = outcome_of(&config, RECOMPUTE_NONE, 1, variant, &batch, 8);
    CHECK((config.dropout > 0) == !same_bits(plain.grads, reseeded.grads, plain.count));
    free(reseeded.grads);
    free(plain.grads);
    batch_free(&batch);
}

static void test_recompute_and_threads(void) {
    const char *yamls[] = {tiny_gpt2, tiny_llama, tiny_mixed, tiny_plain};
    for (const char *const *variant = device_cpu_variants(); *variant != NULL; variant++) {
        for (int i = 0; i < 4; i++) {
            check_recompute(yamls[i], *variant);
        }
    }
}

// A batch equals its parts, with dropout too: it is a function of the sample's index.
static void test_accumulation(void) {
    const char *yamls[] = {tiny_gpt2, tiny_mixed};
    for (int i = 0; i < 2; i++) {
        ModelConfig config = models_config(yamls[i]);
        Batch batch = models_batch(4, LENGTH, config.vocabulary, true, 3);
        batch.first_sample = 40;
        Outcome whole = outcome_of(&config, RECOMPUTE_NONE, 1, NULL, &batch, 7);
        ModelOptions options = options_with(RECOMPUTE_NONE);
        Model *model = models_open(&config, &options, 1);
        StepOptions step = {.grad_scale = 0.1F, .z_loss = 0.01F, .seed = 7};
        double loss = 0, weight = 0;
        for (int64_t begin = 0; begin < 4; begin += 2) {
            Batch part = models_batch_rows(&batch, begin, 2);
            StepResult result;
            model_forward_backward(model, &part, &step, &result);
            loss += result.loss_sum;
            weight += result.weight_sum;
        }
        CHECK_NEAR(loss, whole.result.loss_sum, 1e-6 * loss);
        CHECK_NEAR(weight, whole.result.weight_sum, 1e-12 * weight);
        float *grads = models_values(model, ARRAY_GRADIENT);
        CHECK(worst_error(grads, whole.grads, whole.count) < 2e-6);
        free(grads);
        models_close(model);
        free(whole.grads);
        batch_free(&batch);
    }
}

// Tokens of one document change no logit of another.
static void test_documents(void) {
    const char *yamls[] = {tiny_gpt2, tiny_llama};
    for (int i = 0; i < 2; i++) {
        ModelConfig config = models_config(yamls[i]);
        ModelOptions options = {.sequences = 1, .length = LENGTH, .forward_only = true};
        Model *model = models_open(&config, &options, 1);
        Batch batch = models_batch(1, LENGTH, config.vocabulary, false, 3);
        const int starts[] = {0, 5, 6}, count = 3;
        for (int d = 0; d < count; d++) {
            for (int t = starts[d]; t < (d + 1 < count ? starts[d + 1] : LENGTH); t++) {
                batch.first[t] = starts[d];
                batch.positions[t] = t - starts[d];
            }
        }
        int64_t vocabulary = config.vocabulary, size = LENGTH * vocabulary;
        float *before = memory_new((size_t)size, sizeof *before), *after = memory_new((size_t)size, sizeof *after);
        model_logits(model, &batch, before);
        batch.tokens[2] = (batch.tokens[2] + 1) % (int32_t)vocabulary;
        batch.tokens[5] = (batch.tokens[5] + 1) % (int32_t)vocabulary;
        model_logits(model, &batch, after);
        CHECK(same_bits(before, after, 2 * vocabulary));
        CHECK(!same_bits(before + 4 * vocabulary, after + 4 * vocabulary, vocabulary));
        CHECK(same_bits(before + 6 * vocabulary, after + 6 * vocabulary, (LENGTH - 6) * vocabulary));
        free(before);
        free(after);
        batch_free(&batch);
        models_close(model);
    }
}

// Evaluation agrees with training's own losses, in a model that trains and in one that cannot.
static void test_evaluate(void) {
    const char *yamls[] = {tiny_gpt2, tiny_llama};
    for (int i = 0; i < 2; i++) {
        ModelConfig config = models_config(yamls[i]);
        Batch batch = models_batch(SEQUENCES, LENGTH, config.vocabulary, true, 3);
        float losses[SEQUENCES * LENGTH], again[SEQUENCES * LENGTH];
        StepResult result;
        StepOptions step = {.grad_scale = 1};
        for (Recompute mode = RECOMPUTE_NONE; mode <= RECOMPUTE_FULL; mode++) {
            ModelOptions options = options_with(mode);
            Model *model = models_open(&config, &options, 1);
            model_forward_backward(model, &batch, &step, &result);
            model_evaluate(model, &batch, losses);
            models_close(model);
        }
        double sum = 0;
        for (int r = 0; r < SEQUENCES * LENGTH; r++) {
            sum += (double)losses[r] * (double)batch.loss_weights[r];
            CHECK(batch.targets[r] >= 0 ? losses[r] > 0 : losses[r] == 0);
        }
        CHECK_NEAR(sum, result.loss_sum, 1e-6 * sum);
        ModelOptions options = options_with(RECOMPUTE_NONE);
        options.forward_only = true;
        Model *model = models_open(&config, &options, 2);
        CHECK(model->weights.grads == NULL && model->weights.moment1 == NULL);
        model_evaluate(model, &batch, again);
        CHECK(same_bits(losses, again, SEQUENCES * LENGTH));
        models_close(model);
        batch_free(&batch);
    }
}

// ---- Decoding

static void test_decode(void) {
    const char *yamls[] = {tiny_gpt2, tiny_llama, tiny_mixed, tiny_plain};
    for (int i = 0; i < 4; i++) {
        ModelConfig config = models_config(yamls[i]);
        ModelOptions options = options_with(RECOMPUTE_NONE);
        Model *model = models_open(&config, &options, 2);
        Batch batch = models_batch(SEQUENCES, LENGTH, config.vocabulary, false, 3);
        int64_t vocabulary = config.vocabulary;
        float *full = memory_new((size_t)(SEQUENCES * LENGTH * vocabulary), sizeof *full);
        float *logits = memory_new((size_t)(SEQUENCES * vocabulary), sizeof *logits);
        model_logits(model, &batch, full);
        Decoder *decoder;
        CHECK_OK(decoder_create(model, SEQUENCES, LENGTH, &decoder));
        // Prompts of different lengths; a first use leaves dirt behind.
        decoder_prefill(decoder, 0, batch.tokens + 3, 9);
        const int64_t prompts[SEQUENCES] = {4, 1};
        for (int b = 0; b < SEQUENCES; b++) {
            decoder_prefill(decoder, b, batch.tokens + b * LENGTH, prompts[b]);
            decoder_logits(decoder, logits);
            CHECK(worst_error(logits, full + (b * LENGTH + prompts[b] - 1) * vocabulary, vocabulary) < 1e-5);
        }
        for (int64_t s = 0; prompts[0] + s < LENGTH; s++) {
            int32_t next[SEQUENCES];
            for (int b = 0; b < SEQUENCES; b++) {
                CHECK_I64(decoder_length(decoder, b), prompts[b] + s);
                next[b] = batch.tokens[b * LENGTH + prompts[b] + s];
            }
            decoder_step(decoder, next);
            decoder_logits(decoder, logits);
            for (int b = 0; b < SEQUENCES; b++) {
                const float *expected = full + (b * LENGTH + prompts[b] + s) * vocabulary;
                CHECK(worst_error(logits + b * vocabulary, expected, vocabulary) < 1e-5);
            }
        }
        CHECK_I64(decoder_length(decoder, 0), decoder_capacity(decoder));
        // A prompt in parts is the prompt, whatever the others hold.
        for (int64_t cut = 1; cut < LENGTH; cut += 5) {
            decoder_prefill(decoder, 1, batch.tokens, cut);
            decoder_extend(decoder, 1, batch.tokens + cut, LENGTH - cut);
            decoder_logits(decoder, logits);
            CHECK(worst_error(logits, full + (LENGTH - 1) * vocabulary, vocabulary) < 1e-5);
        }
        // Drawn where the logits are: the likeliest.
        int64_t number = 0, best = 0;
        int32_t drawn;
        decoder_draw(decoder, &(Sampling){.top_p = 1}, vocabulary, &number, &drawn);
        for (int64_t v = 1; v < vocabulary; v++) {
            best = logits[v] > logits[best] ? v : best;
        }
        CHECK_I64(drawn, best);
        decoder_destroy(decoder);
        CHECK_FAILS(decoder_create(model, 1, config.context + 1, &decoder), "model.context 16");
        free(full);
        free(logits);
        batch_free(&batch);
        models_close(model);
    }
}

// ---- A step

typedef struct Finals {
    const Model *model;
    float *seen;  // what was announced as final
    int64_t from;
    int calls;
} Finals;

static void note_final(void *context, int64_t offset) {
    Finals *finals = context;
    CHECK(offset < finals->from);
    memcpy(finals->seen + offset, finals->model->weights.grads + offset, (size_t)(finals->from - offset) * sizeof(float));
    finals->from = offset;
    finals->calls++;
}

static void test_gradients_final(void) {
    const char *yamls[] = {tiny_gpt2, tiny_llama};
    for (int i = 0; i < 2; i++) {
        ModelConfig config = models_config(yamls[i]);
        ModelOptions options = options_with(RECOMPUTE_SELECTIVE);
        Model *model = models_open(&config, &options, 1);
        Batch batch = models_batch(SEQUENCES, LENGTH, config.vocabulary, true, 3);
        Finals finals = {.model = model, .from = model->weights.placement.gradients};
        finals.seen = memory_zeroed((size_t)model->weights.placement.gradients, sizeof(float));
        StepOptions step = {.grad_scale = 1, .gradients_final = note_final, .context = &finals};
        objective(model, &batch, &step);
        CHECK_I64(finals.from, 0);
        CHECK_I64(finals.calls, config.layers + 2);
        CHECK(same_bits(finals.seen, model->weights.grads, model->weights.placement.gradients));
        free(finals.seen);
        batch_free(&batch);
        models_close(model);
    }
}

// Both families learn one batch by heart, with each optimizer.
static void test_learning(void) {
    const char *yamls[] = {tiny_gpt2, tiny_llama};
    const double rates[] = {[OPTIMIZER_ADAMW] = 1e-2, [OPTIMIZER_LION] = 2e-3, [OPTIMIZER_SGD] = 0.1};
    for (int i = 0; i < 2; i++) {
        for (OptimizerKind kind = OPTIMIZER_ADAMW; kind <= OPTIMIZER_SGD; kind++) {
            ModelConfig config = models_config(yamls[i]);
            ModelOptions options = options_with(RECOMPUTE_NONE);
            options.optimizer = kind;
            options.weight_decay = 0.01;
            Model *model = models_open(&config, &options, 1);
            Batch batch = models_batch(SEQUENCES, LENGTH, config.vocabulary, true, 3);
            double first = 0, last = 0;
            for (int step = 1; step <= 60; step++) {
                StepOptions how = {.grad_scale = 1.0F / (SEQUENCES * LENGTH)};
                model_begin_step(model, rates[kind]);
                weights_zero_gradients(&model->weights);
                last = objective(model, &batch, &how);
                first = step == 1 ? last : first;
                model_finish_step(
                    model,
                    &(UpdateOptions){.batch_weight = SEQUENCES * LENGTH, .beta1 = 0.9F, .beta2 = 0.95F, .epsilon = 1e-8F});
            }
            if (!CHECK(last < 0.5 * first)) {
                printf("  from %g to %g with optimizer %d\n", first, last, (int)kind);
            }
            batch_free(&batch);
            models_close(model);
        }
    }
}

// ---- The plan

// In a process of its own: the plan's total against the peak that the system saw. Exit code 0 if within 5%.
static int measure_plan(void) {
    ModelConfig config = models_config("model:\n  layers: 4\n  width: 512\n  heads: 8\n  context: 256\n  vocabulary: 4096\n");
    ModelOptions options = {.sequences = 4, .length = 256};
    Device *device;
    Model *model;
    CHECK_OK(device_open_cpu(2, NULL, &device));
    CHECK_OK(model_create(device, &config, &options, &model));
    model_initialise(model, 1);
    Batch batch = models_batch(4, 256, config.vocabulary, false, 3);
    StepOptions how = {.grad_scale = 1};
    model_begin_step(model, 1e-3);
    objective(model, &batch, &how);
    model_finish_step(model, &(UpdateOptions){.batch_weight = 1, .beta1 = 0.9F, .beta2 = 0.95F, .epsilon = 1e-8F});
    double ratio = (double)memory_peak_resident() / (double)model->plan.total;
    if (fabs(ratio - 1) > 0.05) {
        Machine machine = machine_of(device, 1, 1);
        memory_plan_print(&model->plan, &machine, stdout);
        printf("  the peak is %.3f of the plan\n", ratio);
    }
    return fabs(ratio - 1) <= 0.05 ? 0 : 1;
}

static void test_plan(void) {
    const char *sanitizers = getenv("ATHANOR_SANITIZE");
    if (sanitizers != NULL && sanitizers[0] != 0) {
        return;  // their shadow memory is in no plan
    }
    fflush(stdout);
    pid_t child = fork();
    ensure(child >= 0, "no child process");
    if (child == 0) {
        int code = measure_plan();
        fflush(stdout);
        _exit(code);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK_I64(status, 0);
}

int main(void) {
    RUN(test_plan);
    RUN(test_config);
    RUN(test_bad_configs);
    RUN(test_params);
    RUN(test_initial_values);
    RUN(test_presets);
    RUN(test_deterministic);
    RUN(test_gradients_gpt2);
    RUN(test_gradients_llama);
    RUN(test_gradients_mixed);
    RUN(test_gradients_plain);
    RUN(test_recompute_and_threads);
    RUN(test_accumulation);
    RUN(test_documents);
    RUN(test_evaluate);
    RUN(test_decode);
    RUN(test_gradients_final);
    RUN(test_learning);
    return check_report();
}
