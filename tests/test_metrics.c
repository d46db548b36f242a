// Histories whose files cannot be written for a while.
#include "core/durable.h"
#include "tests/support/check.h"
#include "train/metrics.h"

#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

static void limit_files(rlim_t bytes) {
    struct rlimit limit = {bytes, RLIM_INFINITY};
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
}

// The file is the history, whole lines only, at every moment at which it can be.
static void check_file(const char *path, const Buffer *history, bool whole) {
    Buffer text = {0};
    CHECK_OK(file_read(path, 1 << 20, &text));
    CHECK(text.size <= history->size && memcmp(text.data, history->data, text.size) == 0);
    CHECK(text.size == 0 || text.data[text.size - 1] == '\n');
    CHECK(!whole || text.size == history->size);
    buffer_free(&text);
}

// However many bytes of a line still fit, the lines that do not are kept, and are written later.
static void test_full(void) {
    const char *folder = check_folder();
    char *path = path_join(folder, "metrics.jsonl");
    for (rlim_t room = 0; room < 300; room += 13) {
        Metrics *metrics = metrics_create(folder, NULL, NULL);
        CHECK_OK(metrics_begin(metrics));
        metrics_train(metrics, &(TrainRecord){.step = 1});
        const Buffer *history = metrics_history(metrics);
        check_file(path, history, true);
        limit_files(history->size + room);
        for (int step = 2; step < 5; step++) {
            metrics_train(metrics, &(TrainRecord){.step = step});
            check_file(path, history, false);
        }
        limit_files(RLIM_INFINITY);
        Buffer all = {0};
        buffer_append(&all, history->data, history->size);
        metrics_close(metrics);
        check_file(path, &all, true);
        buffer_free(&all);
    }
    free(path);
}

// Nothing is written before the run begins; a file that is removed under it is made again.
static void test_begin(void) {
    const char *folder = check_folder();
    char *path = path_join(folder, "metrics.jsonl");
    error_free(folder_remove(path));
    Metrics *metrics = metrics_create(folder, NULL, NULL);
    metrics_resume(metrics, 3);
    CHECK(!path_exists(path));
    metrics_close(metrics);
    CHECK(!path_exists(path));
    metrics = metrics_create(folder, NULL, NULL);
    CHECK_OK(metrics_begin(metrics));
    metrics_resume(metrics, 3);
    CHECK(unlink(path) == 0);
    metrics_resume(metrics, 4);
    check_file(path, metrics_history(metrics), true);
    metrics_close(metrics);
    free(path);
}

int main(void) {
    signal(SIGXFSZ, SIG_IGN);
    RUN(test_full);
    RUN(test_begin);
    return check_report();
}
