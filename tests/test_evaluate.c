// train/evaluate: how a model is scored. Every number that is told of a corpus is computed here from the model's logits, by its
// definition; ranks score every token once; what has no number is an error.
#include "train/evaluate.h"

#include "tests/support/check.h"
#include "tests/support/models.h"
#include "tests/support/texts.h"

#include <math.h>
#include <stdio.h>

static const char llama[] =
    "model:\n  family: llama\n  layers: 2\n  width: 32\n  heads: 4\n  groups: 2\n  ffn_width: 40\n  context: "
    "16\n  vocabulary: 128\n";
static const char gpt2[] = "model:\n  family: gpt2\n  layers: 2\n  width: 24\n  heads: 3\n  context: 16\n  vocabulary: 128\n";

static const ModelOptions forward = {.sequences = 2, .length = 16, .forward_only = true};

// Cross-entropy of a set in nats, token after token: sequences of the model's length, each seeing nothing of the one before.
static double loss_by_definition(Model *model, const CorpusSet *set) {
    int64_t vocabulary = model->config.vocabulary, length = model->options.length;
    float *logits = memory_new((size_t)(length * vocabulary), sizeof *logits);
    double sum = 0;
    for (int64_t begin = 0; begin + 1 < set->tokens; begin += length) {
        int64_t count = set->tokens - 1 - begin < length ? set->tokens - 1 - begin : length;
        Batch batch;
        batch_allocate(&batch, 1, count);
        CHECK_OK(batch_fill(&batch, 0, &set->file, begin, -1, false));
        model_logits(model, &batch, logits);
        for (int64_t t = 0; t < count; t++) {
            double total = 0;
            for (int64_t v = 0; v < vocabulary; v++) {
                total += exp((double)logits[t * vocabulary + v]);
            }
            sum += log(total) - (double)logits[t * vocabulary + batch.targets[t]];
        }
        batch_free(&batch);
    }
    free(logits);
    return sum;
}

// Sets of one scored token, of 99 and of others: sums, means, perplexity, bits per byte, each and all together.
static void test_scores(void) {
    const int64_t counts[] = {2, 100, 17, 1};
    enum { SETS = 4 };
    Corpus corpus = texts_corpus(SETS, counts, 1000, 95, 3);
    Tokenizer *tokenizer = texts_tokenizer(false);
    ModelConfig config = models_config(llama);
    Model *model = models_open(&config, &forward, 1);
    Comm *self = comm_open_self();
    SetScore scores[SETS];
    CHECK_OK(evaluate_corpus(model, &corpus, tokenizer, false, 0, self, false, scores));
    double all = 0, tokens = 0;
    for (int d = 0; d < SETS; d++) {
        double nats = loss_by_definition(model, &corpus.sets[d]);
        CHECK_TEXT(scores[d].name, corpus.sets[d].name);
        CHECK_I64(scores[d].tokens, counts[d] - 1);
        CHECK_I64(scores[d].bytes, counts[d] - 1);  // every token is a character
        CHECK_NEAR(scores[d].loss_sum, nats, 1e-5 * (nats + 1));
        if (counts[d] > 1) {
            double mean = nats / (double)(counts[d] - 1);
            CHECK_NEAR(score_loss(&scores[d]), mean, 1e-5 * mean);
            CHECK_NEAR(score_bits_per_byte(&scores[d]), mean / log(2), 1e-5 * mean);
        }
        all += nats;
        tokens += (double)counts[d] - 1;
    }
    SetScore total = score_total(scores, SETS);
    CHECK_TEXT(total.name, "all");
    CHECK_I64(total.tokens, 1 + 99 + 16);
    CHECK_NEAR(score_loss(&total), all / tokens, 1e-5 * all / tokens);
    CHECK_NEAR(score_bits_per_byte(&total), all / tokens / log(2), 1e-5 * all / tokens);
    CHECK(fabs(score_loss(&scores[0]) - score_loss(&scores[1])) > 0.1);  // a mean of means would be another
    CHECK(isnan(score_loss(&scores[3])) && isnan(score_bits_per_byte(&scores[3])));
    // Fewer sequences, spread evenly: of 7 the 3 that begin at 0, 2 and 4.
    double some = 0;
    CHECK_OK(evaluate_corpus(model, &corpus, NULL, false, 3, self, false, scores));
    CHECK_I64(scores[1].tokens, 48);
    CHECK(scores[1].bytes == 0 && isnan(score_bits_per_byte(&scores[1])));
    for (int64_t s = 0; s < 5; s += 2) {
        CorpusSet part = corpus.sets[1];
        float losses[32];
        Batch batch;
        batch_allocate(&batch, 2, 16);
        CHECK_OK(batch_fill(&batch, 0, &part.file, s * 16, -1, false));
        batch_fill_empty(&batch, 1);
        model_evaluate(model, &batch, losses);
        for (int t = 0; t < 16; t++) {
            some += (double)losses[t];
        }
        batch_free(&batch);
    }
    CHECK_NEAR(scores[1].loss_sum, some, 1e-6 * some);
    comm_close(self);
    models_close(model);
    tokenizer_free(tokenizer);
    texts_close(&corpus);
}

// Known losses.
static void test_units(void) {
    char text[PERPLEXITY_TEXT];
    SetScore score = {.loss_sum = 40 * log(8), .tokens = 40, .bytes = 120};
    CHECK_NEAR(score_loss(&score), 2.0794415416798357, 1e-12);
    CHECK_NEAR(score_bits_per_byte(&score), 1, 1e-12);  // three bits for three bytes
    CHECK_TEXT(score_perplexity_text(text, &score), "8.000");
    score.loss_sum = 40 * 100;
    CHECK_TEXT(score_perplexity_text(text, &score), "2.688e+43");
    score.loss_sum = 40 * 1e6;
    CHECK_TEXT(score_perplexity_text(text, &score), "over 1e308");
    score.tokens = 0;
    CHECK_TEXT(score_perplexity_text(text, &score), "unknown");
}

// Ranks share the sequences: together they score each once, whatever their number, also where some have none.
static void test_ranks(void) {
    const int64_t counts[] = {100, 3, 333};
    Corpus corpus = texts_corpus(3, counts, 40, 95, 3);
    ModelConfig config = models_config(llama);
    Model *model = models_open(&config, &forward, 1);
    Comm *self = comm_open_self();
    for (int64_t most = 0; most < 8; most += 7) {
        SetScore whole[3];
        CHECK_OK(evaluate_corpus(model, &corpus, NULL, true, most, self, false, whole));
        for (int size = 2; size <= 5; size++) {
            double loss[3] = {0}, tokens[3] = {0};
            for (int rank = 0; rank < size; rank++) {
                SetScore part[3];
                Comm one = *self;  // its sums are its own
                one.rank = rank;
                one.size = size;
                Error *error = evaluate_corpus(model, &corpus, NULL, true, most, &one, false, part);
                CHECK(error == NULL || part[0].tokens + part[1].tokens + part[2].tokens == 0);
                error_free(error);
                for (int d = 0; d < 3; d++) {
                    loss[d] += part[d].loss_sum;
                    tokens[d] += part[d].tokens;
                }
            }
            for (int d = 0; d < 3; d++) {
                CHECK_I64(tokens[d], whole[d].tokens);
                CHECK_NEAR(loss[d], whole[d].loss_sum, 1e-6 * whole[d].loss_sum);
            }
        }
    }
    comm_close(self);
    models_close(model);
    texts_close(&corpus);
}

// Nothing to score: of one token, and of documents of one token each.
static void test_nothing(void) {
    ModelConfig config = models_config(llama);
    Model *model = models_open(&config, &forward, 1);
    Comm *self = comm_open_self();
    SetScore scores[2];
    for (int kind = 0; kind < 3; kind++) {
        const int64_t counts[] = {kind == 0 ? 1 : 50, kind == 2 ? 9 : 1};
        Corpus corpus = texts_corpus(2, counts, 1, 95, 3);
        bool some = kind == 2;
        Error *error = evaluate_corpus(model, &corpus, NULL, !some, 0, self, false, scores);
        if (some) {
            CHECK_OK(error);
        } else {
            CHECK_FAILS(error, "no token to score");
        }
        texts_close(&corpus);
    }
    comm_close(self);
    models_close(model);
}

// A number in one tensor of a model, whatever it is: the scores are numbers, or the error says where they end.
static void test_lost_tensors(void) {
    static const float values[] = {NAN, INFINITY, -INFINITY, 3e38F};
    const int64_t counts[] = {40, 20};
    Corpus corpus = texts_corpus(2, counts, 1000, 95, 3);
    Comm *self = comm_open_self();
    for (int kind = 0; kind < 2; kind++) {
        ModelConfig config = models_config(kind ? gpt2 : llama);
        Model *model = models_open(&config, &forward, 1);
        int lost = 0, tried = 0;
        for (int32_t row = 0; row < model->table.count; row++) {
            for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
                int64_t at = model->table.rows[row].count / (v % 2 ? 2 : 3);
                float *weight = models_weight(model, row) + at, good = *weight;
                SetScore scores[2];
                *weight = values[v];
                Error *error = evaluate_corpus(model, &corpus, NULL, false, 0, self, false, scores);
                *weight = good;
                if (error != NULL) {
                    bool said = error->kind == ERROR_NOT_FINITE &&
                                strstr(error->message, "set 'a': the model's loss of token ") &&
                                (isfinite(values[v]) || strstr(error->message, model->table.rows[row].name) != NULL);
                    if (!CHECK(said)) {
                        fprintf(stderr, "%s = %g: %s\n", model->table.rows[row].name, (double)values[v], error->message);
                    }
                } else {
                    CHECK(isfinite(score_loss(&scores[0])) && isfinite(score_loss(&scores[1])));
                }
                tried++;
                lost += error != NULL;
                error_free(error);
            }
        }
        CHECK(lost > tried / 2);
        models_close(model);
    }
    comm_close(self);
    texts_close(&corpus);
}

// The token that is named lies in the sequence whose loss is lost, and is one that is scored.
static void test_lost_place(void) {
    const int64_t counts[] = {200};
    Corpus corpus = texts_corpus(1, counts, 1000, 95, 3);
    ModelConfig config = models_config(llama);
    Model *model = models_open(&config, &forward, 1);
    Comm *self = comm_open_self();
    for (int64_t place = 5; place < 190; place += 36) {
        int32_t tokens[200];
        CHECK_OK(token_file_read(&corpus.sets[0].file, 0, 200, tokens));
        int64_t first = 0;
        while (tokens[first] != tokens[place]) {
            first++;
        }
        float *embedding = models_weight(model, model->table.token) + tokens[place] * config.width, good = *embedding;
        SetScore score;
        *embedding = NAN;
        Error *error = evaluate_corpus(model, &corpus, NULL, false, 0, self, false, &score);
        *embedding = good;
        static const char before[] = "set 'a': the model's loss of token ";
        const char *told = error != NULL ? strstr(error->message, before) : NULL;
        long long number = told != NULL ? atoll(told + strlen(before)) : 0;
        CHECK(number - 2 >= first / 16 * 16 && number - 2 <= first);  // 1 is the set's first token, 2 the first that is scored
        CHECK(error != NULL && strstr(error->message, "embedding.token holds nan") != NULL);
        error_free(error);
    }
    comm_close(self);
    models_close(model);
    texts_close(&corpus);
}

int main(void) {
    RUN(test_scores);
    RUN(test_units);
    RUN(test_ranks);
    RUN(test_nothing);
    RUN(test_lost_tensors);
    RUN(test_lost_place);
    return check_report();
}
