// train/schedule, train/metrics: the small functions that a run is made of.
#include "core/durable.h"
#include "core/json.h"
#include "tests/support/check.h"
#include "train/metrics.h"
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

// The histories that a checkpoint carries bring back the same files.
static void test_metrics(void) {
    const char *folder = check_folder();
    Metrics *metrics;
    metrics = metrics_create(folder, NULL, NULL);
    CHECK_OK(metrics_begin(metrics));
    metrics_train(metrics, &(TrainRecord){.step = 1, .loss = 2.5, .grad_norm = NAN});
    metrics_valid(metrics, 1, "a \"set\"", 2, NAN);
    metrics_sample(metrics, 1, "x", "half a character \xE2\x82", 19);
    Buffer history = {0}, samples = {0}, text = {0};
    buffer_append(&history, metrics_history(metrics)->data, metrics_history(metrics)->size);
    buffer_append(&samples, metrics_samples(metrics)->data, metrics_samples(metrics)->size);
    metrics_train(metrics, &(TrainRecord){.step = 2});  // lost by a kill
    metrics_close(metrics);
    metrics = metrics_create(folder, &history, &samples);
    CHECK_OK(metrics_begin(metrics));
    metrics_resume(metrics, 1);
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
    RUN(test_metrics);
    return check_report();
}
