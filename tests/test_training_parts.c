// train/schedule, train/sampling, train/metrics: the small functions that a run is made of.
#include "core/durable.h"
#include "core/json.h"
#include "tests/support/check.h"
#include "train/metrics.h"
#include "train/sampling.h"
#include "train/schedule.h"

#include <math.h>

static void test_schedules(void) {
    Schedule s = {.kind = SCHEDULE_COSINE, .peak = 2, .floor = 0.1, .warmup_steps = 10, .steps = 111};
    CHECK_NEAR(schedule_rate(&s, 0), 0.2, 1e-12);
    CHECK_NEAR(schedule_rate(&s, 9), 2, 1e-12);
    CHECK_NEAR(schedule_rate(&s, 10), 2, 1e-12);
    CHECK_NEAR(schedule_rate(&s, 60), 2 * (0.1 + 0.9 * 0.5), 1e-12);  // half way
    CHECK_NEAR(schedule_rate(&s, 110), 0.2, 1e-12);
    CHECK_NEAR(schedule_rate(&s, 1000), 0.2, 1e-12);  // a run that is extended stays on the floor
    s.kind = SCHEDULE_LINEAR;
    CHECK_NEAR(schedule_rate(&s, 35), 2 * (0.1 + 0.9 * 0.75), 1e-12);
    s.kind = SCHEDULE_CONSTANT;
    CHECK_NEAR(schedule_rate(&s, 110), 2, 1e-12);
    s.kind = SCHEDULE_WSD;
    s.decay_steps = 21;
    CHECK_NEAR(schedule_rate(&s, 89), 2, 1e-12);
    CHECK_NEAR(schedule_rate(&s, 90), 2, 1e-12);
    CHECK_NEAR(schedule_rate(&s, 100), 2 * (0.1 + 0.9 * 0.5), 1e-12);
    CHECK_NEAR(schedule_rate(&s, 110), 0.2, 1e-12);
    Schedule one = {.kind = SCHEDULE_COSINE, .peak = 1, .floor = 0.5, .steps = 1};
    CHECK(isfinite(schedule_rate(&one, 0)));
}

enum { VOCABULARY = 6, DRAWS = 20000 };

// Counts of each id over many draws.
static void draw(const Sampling *sampling, const float *logits, int64_t usable, int counts[VOCABULARY]) {
    float scratch[2 * VOCABULARY];
    memset(counts, 0, VOCABULARY * sizeof *counts);
    for (uint64_t i = 0; i < DRAWS; i++) {
        counts[sampling_draw(sampling, logits, VOCABULARY, usable, i, scratch)]++;
    }
}

static void test_sampling(void) {
    static const double shares[VOCABULARY] = {0.4, 0.05, 0.3, 0.1, 0.1, 0.05};
    float logits[VOCABULARY];
    for (int i = 0; i < VOCABULARY; i++) {
        logits[i] = (float)log(shares[i]) + 3;
    }
    int counts[VOCABULARY];
    Sampling sampling = {.temperature = 1, .top_p = 1, .seed = 4};
    draw(&sampling, logits, VOCABULARY, counts);
    for (int i = 0; i < VOCABULARY; i++) {
        // Four standard deviations of a binomial count.
        CHECK_NEAR(counts[i], shares[i] * DRAWS, 4 * sqrt(shares[i] * DRAWS));
    }
    sampling.temperature = 0.5;  // squares the odds
    draw(&sampling, logits, VOCABULARY, counts);
    CHECK_NEAR((double)counts[0] / counts[2], 16.0 / 9, 0.12);
    sampling = (Sampling){.temperature = 1, .top_p = 1, .top_k = 2, .seed = 4};
    draw(&sampling, logits, VOCABULARY, counts);
    CHECK(counts[0] + counts[2] == DRAWS && counts[2] > 0);
    CHECK_NEAR(counts[0], DRAWS * 4.0 / 7, 4 * sqrt(DRAWS / 2.0));
    sampling =
        (Sampling){.temperature = 1, .top_p = 0.75, .seed = 4};  // 0.4 + 0.3 is not enough, one of 0.1 joins: the lower id
    draw(&sampling, logits, VOCABULARY, counts);
    CHECK(counts[3] > 0 && counts[4] == 0 && counts[1] == 0 && counts[5] == 0);
    sampling = (Sampling){.temperature = 0, .top_p = 1};
    draw(&sampling, logits, VOCABULARY, counts);
    CHECK_I64(counts[0], DRAWS);
    sampling = (Sampling){.temperature = 1, .top_p = 1, .seed = 4};
    draw(&sampling, logits, 2, counts);  // rows beyond the tokenizer's ids are never drawn
    CHECK(counts[0] + counts[1] == DRAWS && counts[1] > 0);
    logits[0] = NAN;
    draw(&sampling, logits, VOCABULARY, counts);
    CHECK(counts[0] == 0 || counts[0] == DRAWS);  // a lost model still ends its loop
}

// The histories that a checkpoint carries bring back the same files.
static void test_metrics(void) {
    const char *folder = check_folder();
    Metrics *metrics;
    CHECK_OK(metrics_open(folder, NULL, NULL, &metrics));
    CHECK_OK(metrics_train(metrics, &(TrainRecord){.step = 1, .loss = 2.5, .grad_norm = NAN}));
    CHECK_OK(metrics_valid(metrics, 1, "a \"set\"", 2, NAN));
    CHECK_OK(metrics_sample(metrics, 1, "x", "half a character \xE2\x82", 19));
    Buffer history = {0}, samples = {0}, text = {0};
    buffer_append(&history, metrics_history(metrics)->data, metrics_history(metrics)->size);
    buffer_append(&samples, metrics_samples(metrics)->data, metrics_samples(metrics)->size);
    CHECK_OK(metrics_train(metrics, &(TrainRecord){.step = 2}));  // lost by a kill
    metrics_close(metrics);
    CHECK_OK(metrics_open(folder, &history, &samples, &metrics));
    CHECK_OK(metrics_resume(metrics, 1));
    metrics_close(metrics);
    char *path = path_join(folder, "metrics.jsonl");
    CHECK_OK(file_read(path, 100000, &text));
    int lines = 0;
    for (char *line = text.data, *end; (end = strchr(line, '\n')) != NULL; line = end + 1, lines++) {
        json_t *record = NULL;
        CHECK_OK(json_read_bytes("record", line, (size_t)(end - line), &record));
        CHECK(lines != 0 || json_is_null(json_object_get(record, "grad_norm")));
        json_decref(record);
    }
    CHECK_I64(lines, 3);
    free(path);
    buffer_free(&history);
    buffer_free(&samples);
    buffer_free(&text);
}

int main(void) {
    RUN(test_schedules);
    RUN(test_sampling);
    RUN(test_metrics);
    return check_report();
}
