// train/generate: what a model writes. Chance is what it says, nothing is written that is no token, a text beyond the context
// goes on from its newer half, and a model whose numbers are lost ends with one line that says where.
#include "train/generate.h"

#include "core/philox.h"
#include "tests/support/check.h"
#include "tests/support/models.h"
#include "tests/support/op_check.h"
#include "tests/support/texts.h"

#include <math.h>
#include <stdio.h>

static const char gpt2[] = "model:\n  family: gpt2\n  layers: 2\n  width: 24\n  heads: 3\n  context: 16\n  vocabulary: 128\n";
static const char llama[] =
    "model:\n  family: llama\n  layers: 3\n  width: 32\n  heads: 4\n  groups: 2\n  ffn_width: 40\n  context: "
    "16\n  vocabulary: 128\n";

static const ModelOptions forward = {.sequences = 1, .length = 16, .forward_only = true};

static const Sampling plain = {.temperature = 1, .top_p = 1, .seed = 5};

static bool collect(void *context, const char *bytes, size_t size) {
    buffer_append(context, bytes, size);
    return true;
}

// ---- Chance

// A model whose logits are all zero: every token that may be drawn is as likely as every other.
static Model *uniform_model(void) {
    ModelConfig config = models_config(llama);
    Model *model = models_open(&config, &forward, 1);
    memset(models_weight(model, model->table.head), 0, (size_t)model->table.rows[model->table.head].count * sizeof(float));
    return model;
}

// Pearson's sum for `cells` equally likely cells; its mean is cells - 1, its deviation about sqrt(2 cells).
static double chi_square(const int *counts, int cells, int draws) {
    double sum = 0, expected = (double)draws / cells;
    for (int i = 0; i < cells; i++) {
        sum += (counts[i] - expected) * (counts[i] - expected) / expected;
    }
    return sum;
}

// Tokens are drawn evenly and one after the other without regard of the one before, by id (no cut) and by weight (a cut that
// cuts nothing); a larger model vocabulary and the highest temperature draw nothing beyond the tokenizer's.
static void test_uniform(void) {
    enum { DRAWS = 9500, CELLS = 95 };
    Model *model = uniform_model();
    Tokenizer *tokenizer = texts_tokenizer(false);
    CHECK_I64(tokenizer_vocabulary(tokenizer), CELLS);
    char *before = NULL;
    for (int kind = 0; kind < 4; kind++) {
        GenerateOptions options = {.tokens = DRAWS, .sampling = plain};
        options.sampling.top_k = kind == 1 ? CELLS : 0;
        options.sampling.temperature = kind == 2 ? 100 : 1;
        options.sampling.seed = kind == 3 ? 6 : 5;
        Buffer text = {0};
        int64_t drawn = 0;
        CHECK_OK(generate_text(model, tokenizer, "a", 1, &options, collect, &text, &drawn));
        CHECK_I64(drawn, DRAWS);
        CHECK_I64(text.size, DRAWS);  // each of them one character
        int counts[CELLS] = {0}, steps[CELLS] = {0};
        for (size_t i = 0; i < text.size; i++) {
            int cell = text.data[i] - ' ';
            CHECK(cell >= 0 && cell < CELLS);
            counts[cell]++;
            steps[(cell - (i > 0 ? text.data[i - 1] - ' ' : 0) + CELLS) % CELLS]++;
        }
        CHECK_NEAR(chi_square(counts, CELLS, DRAWS), CELLS - 1, 5 * sqrt(2.0 * CELLS));
        CHECK_NEAR(chi_square(steps, CELLS, DRAWS), CELLS - 1, 5 * sqrt(2.0 * CELLS));
        if (kind == 3) {
            int equal = 0;
            for (size_t i = 0; i < text.size; i++) {
                equal += text.data[i] == before[i];
            }
            CHECK_NEAR(equal, DRAWS / CELLS, 5 * sqrt(DRAWS / CELLS));  // another seed, other chance
        }
        free(before);
        before = memory_format("%.*s", (int)text.size, text.data);
        buffer_free(&text);
    }
    free(before);
    tokenizer_free(tokenizer);
    models_close(model);
}

// ---- Contexts

// The text as its definition says it: for every token a fresh reading of all that is kept.
static void write_slowly(const Model *model, const Tokenizer *tokenizer, const char *prompt, const GenerateOptions *options,
                         Buffer *text) {
    int32_t ids[256];
    size_t count = 0, kept = 0, context = (size_t)model->config.context;
    for (const char *c = prompt; *c != 0; c++) {
        ids[count++] = *c - ' ';
    }
    size_t capacity = count + (size_t)options->tokens < context ? count + (size_t)options->tokens : context;
    kept = count < capacity ? count : capacity;
    Decoder *decoder;
    CHECK_OK(decoder_create(model, 1, (int64_t)capacity, &decoder));
    for (int64_t number = 0; number < options->tokens; number++, kept++) {
        kept = kept > capacity ? (capacity + 1) / 2 : kept;
        decoder_prefill(decoder, 0, ids + count - kept, (int64_t)kept);
        decoder_draw(decoder, &options->sampling, tokenizer_vocabulary(tokenizer), &number, &ids[count]);
        buffer_byte(text, (char)(ids[count++] + ' '));
    }
    decoder_destroy(decoder);
}

static void test_full_context(void) {
    static const char *const yamls[] = {gpt2, llama};
    static const char *const prompts[] = {"a", "a prompt of 15..", "sixteen are full", "one more than it.",
                                          "far more than the sixteen that there are"};
    Tokenizer *tokenizer = texts_tokenizer(false);
    for (size_t i = 0; i < 2; i++) {
        ModelConfig config = models_config(yamls[i]);
        Model *model = models_open(&config, &forward, 1);
        for (size_t p = 0; p < sizeof prompts / sizeof *prompts; p++) {
            GenerateOptions options = {.tokens = 60, .sampling = plain};
            Buffer text = {0}, slow = {0};
            CHECK_OK(generate_to_buffer(model, tokenizer, prompts[p], &options, &text));
            write_slowly(model, tokenizer, prompts[p], &options, &slow);
            buffer_byte(&text, 0);
            buffer_byte(&slow, 0);
            CHECK_TEXT(text.data, slow.data);
            buffer_free(&text);
            buffer_free(&slow);
        }
        models_close(model);
    }
    tokenizer_free(tokenizer);
}

// ---- Numbers that are lost

// A number in the middle of one tensor: what is written is text, or the error names the place and, where it can be seen, the
// tensor.
static bool write_poisoned(Model *model, const Tokenizer *tokenizer, int32_t row, int64_t at, float value) {
    float good;
    weights_read(&model->weights, ARRAY_WEIGHT, row, at, at + 1, &good);
    weights_write(&model->weights, ARRAY_WEIGHT, row, at, at + 1, &value);
    GenerateOptions options = {.tokens = 6, .sampling = plain};
    Buffer text = {0};
    int64_t drawn = -1;
    Error *error = generate_text(model, tokenizer, "abc", 3, &options, collect, &text, &drawn);
    if (error != NULL) {
        const char *name = model->table.rows[row].name;
        char *place = memory_format("token %lld of the text (the prompt has 4)", 4 + (long long)drawn + 1);
        bool said = error->kind == ERROR_NOT_FINITE && strstr(error->message, place) != NULL &&
                    strstr(error->message, "it begins in ") != NULL;
        char *whose = memory_format("whose %s holds %s", name, isnan(value) ? "nan" : value > 0 ? "inf" : "-inf");
        said = said && (isfinite(value) || strstr(error->message, whose) != NULL);
        const char *layer = strstr(error->message, "it begins in layers.");
        said = said && (isfinite(value) || layer == NULL || strtol(layer + 20, NULL, 10) == model->table.rows[row].layer);
        free(whose);
        if (!CHECK(said && text.size == (size_t)drawn)) {
            fprintf(stderr, "%s[%lld] = %g: %s\n", name, (long long)at, (double)value, error->message);
        }
        free(place);
    } else {
        CHECK(drawn == 0 || text.size > 0);
        CHECK(memchr(text.data != NULL ? text.data : "", 0, text.size) == NULL);
    }
    bool lost = error != NULL;
    error_free(error);
    buffer_free(&text);
    weights_write(&model->weights, ARRAY_WEIGHT, row, at, at + 1, &good);
    return lost;
}

// Every tensor of every kind of model, on the CPU and on cards in all types: nan, infinities, and what overflows.
static void test_lost_tensors(void) {
    static const char *const yamls[] = {gpt2, llama};
    static const float values[] = {NAN, INFINITY, -INFINITY, 3e38F};
    static OpDevices devices;
    Device *cpu;
    CHECK_OK(device_open_cpu(1, NULL, &cpu));
    devices.twins[devices.count++] = (OpTwins){.label = "cpu", .of = {cpu}};
    op_devices_cards(&devices);
    Tokenizer *tokenizer = texts_tokenizer(true);
    for (int d = 0; d < devices.count; d++) {
        for (size_t i = 0; i < 2; i++) {
            ModelConfig config = models_config(yamls[i]);
            Model *model = models_open_on(devices.twins[d].of[0], &config, &forward);
            int tried = 0, lost = 0;
            for (int32_t row = 0; row < model->table.count; row++) {
                int64_t last = model->table.rows[row].count - 1;
                for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
                    // On a card, where all is slow, a sixth of it.
                    if (d == 0 || (row + (int)v) % 6 == 0) {
                        tried++;
                        lost += write_poisoned(model, tokenizer, row, v % 2 ? last : last / 2, values[v]);
                    }
                }
            }
            CHECK(lost > tried / 2);
            CHECK(write_poisoned(model, tokenizer, model->table.final_norm, 3, NAN));
            CHECK(!write_poisoned(model, tokenizer, model->table.final_norm, 3, 0.5F));
            model_destroy(model);
        }
    }
    tokenizer_free(tokenizer);
    op_devices_close(&devices);
}

// A token whose embedding is lost, drawn at any place of the text: what was written before stays, the error counts.
static void test_lost_later(void) {
    ModelConfig config = models_config(llama);
    Model *model = models_open(&config, &forward, 1);
    Tokenizer *tokenizer = texts_tokenizer(false);
    GenerateOptions options = {.tokens = 40, .sampling = plain};
    Buffer whole = {0};
    CHECK_OK(generate_to_buffer(model, tokenizer, "abc", &options, &whole));
    int places = 0;
    for (size_t place = 0; place + 1 < whole.size; place++) {
        if (memchr(whole.data, whole.data[place], place) != NULL || memchr("abc", whole.data[place], 3) != NULL) {
            continue;  // it was there before
        }
        float *embedding = models_weight(model, model->table.token) + (whole.data[place] - ' ') * config.width,
              good = *embedding;
        Buffer text = {0};
        int64_t drawn;
        char *told = memory_format("token %zu of the text (the prompt has 3)", 3 + place + 2);
        *embedding = NAN;
        CHECK_FAILS(generate_text(model, tokenizer, "abc", 3, &options, collect, &text, &drawn), told);
        *embedding = good;
        CHECK_I64(drawn, place + 1);
        CHECK(text.size == place + 1 && memcmp(text.data, whole.data, text.size) == 0);
        buffer_free(&text);
        free(told);
        places++;
    }
    CHECK(places > 15);
    buffer_free(&whole);
    tokenizer_free(tokenizer);
    models_close(model);
}

// Several texts at once: one that is lost leaves the others as they are.
static void test_lost_row(void) {
    enum { ROWS = 3 };
    ModelConfig config = models_config(llama);
    Model *model = models_open(&config, &forward, 1);
    Decoder *decoder;
    CHECK_OK(decoder_create(model, ROWS, 8, &decoder));
    for (int lost = -1; lost < ROWS; lost++) {
        int32_t tokens[ROWS] = {10, 20, 30}, drawn[ROWS];
        int64_t numbers[ROWS] = {0, 0, 0};
        for (int r = 0; r < ROWS; r++) {
            decoder_prefill(decoder, r, (int32_t[]){1, 2}, 2);
        }
        float *embedding = lost < 0 ? NULL : models_weight(model, model->table.token) + tokens[lost] * config.width;
        if (embedding != NULL) {
            embedding[0] = INFINITY;
        }
        decoder_step(decoder, tokens);
        decoder_draw(decoder, &plain, 95, numbers, drawn);
        for (int r = 0; r < ROWS; r++) {
            CHECK(r == lost ? drawn[r] == -1 : drawn[r] >= 0 && drawn[r] < 95);
        }
        if (embedding != NULL) {
            char *why = decoder_not_finite(decoder, (int32_t[]){1, 2, tokens[lost]}, 3);
            CHECK_TEXT(why, "it begins in the embedding, whose embedding.token holds inf");
            free(why);
            embedding[0] = 0.1F;
        }
    }
    decoder_destroy(decoder);
    models_close(model);
}

int main(void) {
    RUN(test_uniform);
    RUN(test_full_context);
    RUN(test_lost_tensors);
    RUN(test_lost_later);
    RUN(test_lost_row);
    return check_report();
}
