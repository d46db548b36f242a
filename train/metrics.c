// What a run writes about itself: see metrics.h.
#include "train/metrics.h"

#include "core/clock.h"
#include "core/durable.h"
#include "core/log.h"
#include "core/text.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

enum { RETRY_SECONDS = 1 };

typedef struct Journal {
    char *path;
    Buffer history;
    int descriptor;       // of the file, at whose end lines are added; -1: the next attempt writes the file as a whole
    size_t written;       // where it is open: this much of the history is in it
    bool begun, failing;  // failing: the last attempt failed, which was told
    double next_try;      // where failing: clock_seconds of the next one
} Journal;

struct Metrics {
    Journal records, samples;
};

static void journal_create(Journal *journal, const char *folder, const char *name, const Buffer *history) {
    *journal = (Journal){.path = path_join(folder, name), .descriptor = -1};
    if (history != NULL) {
        buffer_append(&journal->history, history->data, history->size);
    }
}

static void close_file(Journal *journal) {
    if (journal->descriptor >= 0) {
        close(journal->descriptor);
    }
    journal->descriptor = -1;
}

static Error *write_whole(Journal *journal) {
    TRY(file_write(journal->path, journal->history.data, journal->history.size));
    journal->descriptor = open(journal->path, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (journal->descriptor < 0) {
        return error_system(errno, "%s cannot be opened", journal->path);
    }
    journal->written = journal->history.size;
    return NULL;
}

// Adds what is missing, in one write: a reader never sees half a line, except where a write fails half-way and what it left
// cannot be cut off; then the next attempt writes the file as a whole.
static Error *add_missing(Journal *journal) {
    size_t missing = journal->history.size - journal->written;
    Error *error = file_write_all(journal->descriptor, journal->path, journal->history.data + journal->written, missing);
    if (error == NULL) {
        journal->written = journal->history.size;
    } else if (ftruncate(journal->descriptor, (off_t)journal->written) != 0) {
        close_file(journal);
    }
    return error;
}

// Brings the file up to the history. A file that was removed is made again.
static Error *journal_write(Journal *journal) {
    struct stat info;
    if (journal->descriptor >= 0 && fstat(journal->descriptor, &info) == 0 && info.st_nlink == 0) {
        close_file(journal);
    }
    return journal->descriptor >= 0 ? add_missing(journal) : write_whole(journal);
}

// The same where a failure is no error; it is told once, and once when it is over.
static void journal_follow(Journal *journal, bool at_once) {
    if (!journal->begun || (journal->failing && !at_once && clock_seconds() < journal->next_try)) {
        return;
    }
    Error *error = journal_write(journal);
    if (error != NULL && !journal->failing) {
        log_warning("%s; training goes on, and what is missing is written as soon as that is possible", error->message);
    } else if (error == NULL && journal->failing) {
        log_info("%s is written again, and nothing is missing in it", journal->path);
    }
    journal->failing = error != NULL;
    journal->next_try = clock_seconds() + RETRY_SECONDS;
    error_free(error);
}

static void journal_close(Journal *journal) {
    if (journal->failing) {
        journal_follow(journal, true);
    }
    close_file(journal);
    free(journal->path);
    buffer_free(&journal->history);
}

// Takes `record`.
static void journal_add(Journal *journal, json_t *record) {
    char *text = json_dumps(record, JSON_COMPACT | JSON_REAL_PRECISION(9));
    ensure(text != NULL, "a record of %s cannot be written as JSON", journal->path);
    json_decref(record);
    buffer_printf(&journal->history, "%s\n", text);
    free(text);
    journal_follow(journal, false);
}

// JSON has no infinities: such a value becomes null.
static json_t *number(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

Metrics *metrics_create(const char *folder, const Buffer *history, const Buffer *samples) {
    Metrics *metrics = memory_zeroed(1, sizeof *metrics);
    journal_create(&metrics->records, folder, "metrics.jsonl", history);
    journal_create(&metrics->samples, folder, "samples.jsonl", samples);
    return metrics;
}

Error *metrics_begin(Metrics *metrics) {
    metrics->records.begun = metrics->samples.begun = true;
    TRY(journal_write(&metrics->records));
    return journal_write(&metrics->samples);
}

void metrics_close(Metrics *metrics) {
    if (metrics != NULL) {
        journal_close(&metrics->records);
        journal_close(&metrics->samples);
        free(metrics);
    }
}

static json_t *groups_of(const TrainRecord *r) {
    json_t *groups = json_object();
    for (int axes = 0; axes <= OVER_ALL && r->mesh != NULL; axes++) {
        const Group *group = r->mesh->group[axes];
        if (group != NULL && r->traffic.sent[axes] > 0) {
            json_object_set_new(groups, group->name,
                                json_pack("{s:I, s:I, s:o}", "sent", (json_int_t)r->traffic.sent[axes], "operations",
                                          (json_int_t)r->traffic.operations[axes], "wait",
                                          number(r->traffic.waited[axes] / r->step_seconds)));
        }
    }
    return groups;
}

void metrics_train(Metrics *metrics, const TrainRecord *r) {
    json_t *record = json_pack("{s:s, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:I}", "kind", "train", "step",
                               (json_int_t)r->step, "tokens", (json_int_t)r->tokens, "loss", number(r->loss), "lr",
                               number(r->learning_rate), "grad_norm", number(r->grad_norm), "tokens_per_second",
                               number(r->tokens_per_second), "step_seconds", number(r->step_seconds), "data_wait",
                               number(r->data_wait), "comm_wait", number(r->comm_wait), "skipped", (json_int_t)r->skipped);
    json_t *groups = groups_of(r);
    if (json_object_size(groups) > 0) {
        json_object_set(record, "groups", groups);
    }
    json_decref(groups);
    journal_add(&metrics->records, record);
}

void metrics_valid(Metrics *metrics, int64_t step, const char *set, double loss, double bits_per_byte) {
    json_t *record = json_pack("{s:s, s:I, s:s, s:o, s:o}", "kind", "valid", "step", (json_int_t)step, "set", set, "loss",
                               number(loss), "perplexity", number(exp(loss)));
    if (!isnan(bits_per_byte)) {
        json_object_set_new(record, "bits_per_byte", number(bits_per_byte));
    }
    journal_add(&metrics->records, record);
}

void metrics_resume(Metrics *metrics, int64_t step) {
    journal_add(&metrics->records, json_pack("{s:s, s:I}", "kind", "resume", "step", (json_int_t)step));
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

void metrics_sample(Metrics *metrics, int64_t step, const char *prompt, const char *text, size_t size) {
    journal_add(&metrics->samples, json_pack("{s:I, s:o, s:o}", "step", (json_int_t)step, "prompt",
                                             lossy_text(prompt, strlen(prompt)), "text", lossy_text(text, size)));
}

const Buffer *metrics_history(const Metrics *metrics) {
    return &metrics->records.history;
}

const Buffer *metrics_samples(const Metrics *metrics) {
    return &metrics->samples.history;
}
