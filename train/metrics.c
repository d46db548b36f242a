// What a run writes about itself: see metrics.h.
#include "train/metrics.h"

#include "core/durable.h"
#include "core/text.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <unistd.h>

typedef struct Journal {
    char *path;
    int descriptor;
    Buffer history;
} Journal;

struct Metrics {
    Journal records, samples;
};

static Error *journal_open(Journal *journal, const char *folder, const char *name, const Buffer *history) {
    journal->path = path_join(folder, name);
    if (history != NULL) {
        buffer_append(&journal->history, history->data, history->size);
    }
    TRY(file_write(journal->path, journal->history.data, journal->history.size));
    journal->descriptor = open(journal->path, O_WRONLY | O_APPEND | O_CLOEXEC);
    return journal->descriptor < 0 ? error_system(errno, "%s cannot be opened", journal->path) : NULL;
}

static void journal_close(Journal *journal) {
    if (journal->descriptor >= 0) {
        close(journal->descriptor);
    }
    free(journal->path);
    buffer_free(&journal->history);
}

// One line, in one write: a reader never sees half of it. Takes `record`.
static Error *journal_add(Journal *journal, json_t *record) {
    char *text = json_dumps(record, JSON_COMPACT | JSON_REAL_PRECISION(9));
    ensure(text != NULL, "a record of %s cannot be written as JSON", journal->path);
    json_decref(record);
    size_t start = journal->history.size;
    buffer_printf(&journal->history, "%s\n", text);
    free(text);
    return file_write_all(journal->descriptor, journal->path, journal->history.data + start, journal->history.size - start);
}

// JSON has no infinities: such a value becomes null.
static json_t *number(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

Error *metrics_open(const char *folder, const Buffer *history, const Buffer *samples, Metrics **out) {
    Metrics *metrics = memory_zeroed(1, sizeof *metrics);
    metrics->records.descriptor = metrics->samples.descriptor = -1;
    Error *error = journal_open(&metrics->records, folder, "metrics.jsonl", history);
    if (error == NULL) {
        error = journal_open(&metrics->samples, folder, "samples.jsonl", samples);
    }
    if (error != NULL) {
        metrics_close(metrics);
        metrics = NULL;
    }
    *out = metrics;
    return error;
}

void metrics_close(Metrics *metrics) {
    if (metrics != NULL) {
        journal_close(&metrics->records);
        journal_close(&metrics->samples);
        free(metrics);
    }
}

Error *metrics_train(Metrics *metrics, const TrainRecord *r) {
    return journal_add(&metrics->records,
                       json_pack("{s:s, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:I}", "kind", "train", "step",
                                 (json_int_t)r->step, "tokens", (json_int_t)r->tokens, "loss", number(r->loss), "lr",
                                 number(r->learning_rate), "grad_norm", number(r->grad_norm), "tokens_per_second",
                                 number(r->tokens_per_second), "step_seconds", number(r->step_seconds), "data_wait",
                                 number(r->data_wait), "comm_wait", number(r->comm_wait), "skipped", (json_int_t)r->skipped));
}

Error *metrics_valid(Metrics *metrics, int64_t step, const char *set, double loss, double bits_per_byte) {
    json_t *record = json_pack("{s:s, s:I, s:s, s:o, s:o}", "kind", "valid", "step", (json_int_t)step, "set", set, "loss",
                               number(loss), "perplexity", number(exp(loss)));
    if (!isnan(bits_per_byte)) {
        json_object_set_new(record, "bits_per_byte", number(bits_per_byte));
    }
    return journal_add(&metrics->records, record);
}

Error *metrics_resume(Metrics *metrics, int64_t step) {
    return journal_add(&metrics->records, json_pack("{s:s, s:I}", "kind", "resume", "step", (json_int_t)step));
}

// A text that may be cut inside a character: what is no UTF-8 becomes U+FFFD.
static json_t *lossy_text(const char *text, size_t size) {
    Buffer clean = {0};
    for (size_t i = 0; i < size;) {
        size_t valid = utf8_valid_prefix(text + i, size - i);
        buffer_append(&clean, text + i, valid);
        i += valid;
        if (i < size) {
            buffer_text(&clean, "\xEF\xBF\xBD");
            i++;
        }
    }
    json_t *out = json_stringn(clean.data ? clean.data : "", clean.size);
    buffer_free(&clean);
    return out;
}

Error *metrics_sample(Metrics *metrics, int64_t step, const char *prompt, const char *text, size_t size) {
    return journal_add(&metrics->samples, json_pack("{s:I, s:o, s:o}", "step", (json_int_t)step, "prompt",
                                                    lossy_text(prompt, strlen(prompt)), "text", lossy_text(text, size)));
}

const Buffer *metrics_history(const Metrics *metrics) {
    return &metrics->records.history;
}

const Buffer *metrics_samples(const Metrics *metrics) {
    return &metrics->samples.history;
}
