// What a run folder says about a run: see run_data.h.
#include "train/report/run_data.h"

#include "core/durable.h"
#include "core/log.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <sys/stat.h>

enum { MOST_LINE_BYTES = 4 << 20, MOST_SAMPLES = 48, MOST_FILE_BYTES = 4 << 20 };

// Calls take(data, object) for each line of `folder`/`name` that is a JSON object. The file may be absent. Lines that are too
// long are skipped; a last line without its newline is being written and not counted as bad.
typedef void (*TakeLine)(RunData *data, const json_t *object);

static void count_bad_line(RunData *data, const char *name, int64_t line) {
    if (data->bad_lines++ == 0) {
        data->first_bad_line = memory_format("%s:%lld", name, (long long)line);
    }
}

static void take_text(RunData *data, const char *name, int64_t line, const Buffer *text, bool whole, TakeLine take) {
    size_t blank = strspn(text->data, " \t\r\n");
    if (blank >= text->size) {
        return;
    }
    json_t *object = json_loadb(text->data, text->size, JSON_ALLOW_NUL, NULL);
    if (json_is_object(object)) {
        take(data, object);
    } else if (whole) {
        count_bad_line(data, name, line);
    }
    json_decref(object);
}

// Gathers bytes into lines of bounded length.
typedef struct Lines {
    RunData *data;
    const char *name;
    TakeLine take;
    Buffer text;
    int64_t line;
    bool too_long;
} Lines;

static void end_line(Lines *lines, bool whole) {
    if (lines->too_long) {
        count_bad_line(lines->data, lines->name, lines->line);
    } else if (lines->text.size > 0) {
        take_text(lines->data, lines->name, lines->line, &lines->text, whole, lines->take);
    }
    buffer_clear(&lines->text);
    lines->too_long = false;
    lines->line++;
}

static void add_bytes(Lines *lines, const char *bytes, size_t size) {
    while (size > 0) {
        const char *newline = memchr(bytes, '\n', size);
        size_t part = newline != NULL ? (size_t)(newline - bytes) : size;
        lines->too_long |= lines->text.size + part > MOST_LINE_BYTES;
        if (!lines->too_long) {
            buffer_append(&lines->text, bytes, part);
        }
        if (newline != NULL) {
            end_line(lines, true);
            part++;
        }
        bytes += part;
        size -= part;
    }
}

static Error *read_lines(RunData *data, const char *folder, const char *name, TakeLine take) {
    char *path = path_join(folder, name);
    FILE *file = fopen(path, "rb");
    Error *error = NULL;
    if (file == NULL) {
        error = errno == ENOENT ? NULL : error_system(errno, "%s", path);
        free(path);
        return error;
    }
    struct stat status;
    Progress progress;
    progress_begin(&progress, name, "B", fstat(fileno(file), &status) == 0 ? (double)status.st_size : 0);
    Lines lines = {.data = data, .name = name, .take = take, .line = 1};
    char chunk[1 << 16];
    size_t size;
    while ((size = fread(chunk, 1, sizeof chunk, file)) > 0) {
        add_bytes(&lines, chunk, size);
        progress_add(&progress, (int64_t)size);
    }
    end_line(&lines, false);
    progress_end(&progress);
    error = ferror(file) ? error_system(errno, "%s", path) : NULL;
    fclose(file);
    buffer_free(&lines.text);
    free(path);
    return error;
}

// The number of that name, or NaN.
static double number(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static const char *text_of(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return json_is_string(value) ? json_string_value(value) : NULL;
}

static SetHistory *find_set(RunData *data, const char *name) {
    for (int i = 0; i < data->set_count; i++) {
        if (strcmp(data->sets[i].name, name) == 0) {
            return &data->sets[i];
        }
    }
    if (data->set_count == MOST_SETS) {
        data->sets_left_out++;
        return NULL;
    }
    SetHistory *set = &data->sets[data->set_count++];
    *set = (SetHistory){.name = memory_string(name), .last_perplexity = NAN, .last_bits_per_byte = NAN};
    return set;
}

const SetHistory *run_data_set(const RunData *data, const char *name) {
    for (int i = 0; i < data->set_count; i++) {
        if (strcmp(data->sets[i].name, name) == 0) {
            return &data->sets[i];
        }
    }
    return NULL;
}

static void take_train(RunData *data, const json_t *record, double step) {
    series_add(&data->loss, step, number(record, "loss"));
    series_add(&data->learning_rate, step, number(record, "lr"));
    series_add(&data->grad_norm, step, number(record, "grad_norm"));
    series_add(&data->tokens_per_second, step, number(record, "tokens_per_second"));
    series_add(&data->data_wait, step, number(record, "data_wait"));
    series_add(&data->comm_wait, step, number(record, "comm_wait"));
    double tokens = number(record, "tokens"), seconds = number(record, "step_seconds"), skipped = number(record, "skipped");
    data->tokens = isfinite(tokens) ? tokens : data->tokens;
    data->seconds += isfinite(seconds) && seconds > 0 ? seconds : 0;
    data->skipped = isfinite(skipped) ? skipped : data->skipped;
}

static void take_metrics(RunData *data, const json_t *record) {
    double step = number(record, "step");
    const char *kind = text_of(record, "kind");
    if (!(step >= 0 && step <= 1e15) || kind == NULL) {
        return;
    }
    if (strcmp(kind, "train") == 0) {
        take_train(data, record, step);
    } else if (strcmp(kind, "valid") == 0 && text_of(record, "set") != NULL) {
        SetHistory *set = find_set(data, text_of(record, "set"));
        if (set != NULL) {
            series_add(&set->loss, step, number(record, "loss"));
            set->last_perplexity = number(record, "perplexity");
            set->last_bits_per_byte = number(record, "bits_per_byte");
        }
    } else if (strcmp(kind, "resume") == 0) {
        series_add(&data->resumes, step, 0);
        return;
    } else {
        return;
    }
    data->last_step = step;
}

static void free_sample(Sample *sample) {
    free(sample->prompt);
    free(sample->text);
}

static char *copy_text(const json_t *value, size_t *size) {
    *size = json_is_string(value) ? json_string_length(value) : 0;
    char *copy = memory_new(*size + 1, 1);
    memcpy(copy, *size > 0 ? json_string_value(value) : "", *size);
    copy[*size] = 0;
    return copy;
}

// Drops the samples of every second step; the first and the last step stay.
static void thin_samples(RunData *data) {
    int64_t kept = 0, group = -1;
    double last = data->samples[data->sample_count - 1].step, step = -INFINITY;
    for (int64_t i = 0; i < data->sample_count; i++) {
        Sample sample = data->samples[i];
        group += sample.step > step;
        step = sample.step;
        if (group % 2 == 0 || step == last) {
            data->samples[kept++] = sample;
        } else {
            free_sample(&sample);
        }
    }
    data->sample_count = kept;
}

static void take_sample(RunData *data, const json_t *record) {
    double step = number(record, "step");
    if (!isfinite(step) || !json_is_string(json_object_get(record, "text"))) {
        return;
    }
    // Samples that the run wrote again after it went back replace the older ones.
    while (data->sample_count > 0 && data->samples[data->sample_count - 1].step > step) {
        free_sample(&data->samples[--data->sample_count]);
    }
    if (data->sample_count == MOST_SAMPLES) {
        thin_samples(data);
    }
    if (data->sample_count == MOST_SAMPLES) {
        return;  // that many prompts at one step
    }
    Sample sample = {.step = step};
    sample.prompt = copy_text(json_object_get(record, "prompt"), &sample.prompt_size);
    sample.text = copy_text(json_object_get(record, "text"), &sample.text_size);
    array_push(data->samples, data->sample_count, data->sample_capacity, sample);
}

const SetHistory *run_data_main_set(const RunData *data) {
    const SetHistory *all = run_data_set(data, "all");
    return all != NULL ? all : data->set_count == 1 ? &data->sets[0] : NULL;
}

const Sample *run_data_first_sample(const RunData *data) {
    return data->sample_count > 0 ? &data->samples[0] : NULL;
}

const Sample *run_data_last_sample(const RunData *data) {
    const Sample *first = run_data_first_sample(data);
    for (int64_t i = data->sample_count - 1; i > 0; i--) {
        const Sample *sample = &data->samples[i];
        if (sample->prompt_size == first->prompt_size && memcmp(sample->prompt, first->prompt, first->prompt_size) == 0) {
            return sample;
        }
    }
    return first;
}

const char *sample_continuation(const Sample *sample, size_t *size) {
    bool repeats = sample->text_size >= sample->prompt_size && memcmp(sample->text, sample->prompt, sample->prompt_size) == 0;
    *size = sample->text_size - (repeats ? sample->prompt_size : 0);
    return sample->text + (repeats ? sample->prompt_size : 0);
}

const char *run_data_text(const RunData *data, const char *key) {
    return text_of(data->run, key);
}

double run_data_number(const RunData *data, const char *key) {
    return number(data->run, key);
}

static Error *read_files(const char *folder, RunData *data) {
    TRY(read_lines(data, folder, "metrics.jsonl", take_metrics));
    if (data->loss.count == 0 && data->set_count == 0) {
        return failure("%s/metrics.jsonl holds no record of a training step yet: let the run train first", folder);
    }
    TRY(read_lines(data, folder, "samples.jsonl", take_sample));

    char *path = path_join(folder, "run.json");
    Error *error = path_exists(path) ? json_read_file(path, MOST_FILE_BYTES, &data->run) : NULL;
    free(path);
    if (error != NULL || !json_is_object(data->run)) {
        if (error != NULL) {
            count_bad_line(data, "run.json", 1);
        }
        error_free(error);
        json_decref(data->run);
        data->run = json_object();
    }
    path = path_join(folder, "config.yaml");
    error = path_exists(path) ? file_read(path, MOST_FILE_BYTES, &data->config) : NULL;
    free(path);
    return error;
}

Error *run_data_read(const char *folder, RunData *out) {
    *out = (RunData){0};
    if (!path_is_folder(folder)) {
        return error_new(ERROR_MISSING, "%s is no folder; a run folder is what 'athanor train' wrote", folder);
    }
    char *metrics = path_join(folder, "metrics.jsonl");
    bool found = path_exists(metrics);
    free(metrics);
    if (!found) {
        return error_new(ERROR_MISSING, "%s has no metrics.jsonl: is it the folder of a run?", folder);
    }
    char *whole = realpath(folder, NULL);
    out->name = memory_string(path_name(whole != NULL ? whole : folder));
    free(whole);
    Error *error = read_files(folder, out);
    if (error != NULL) {
        run_data_free(out);
    }
    return error;
}

void run_data_free(RunData *data) {
    Series *all[] = {&data->loss,      &data->learning_rate, &data->grad_norm, &data->tokens_per_second,
                     &data->data_wait, &data->comm_wait,     &data->resumes};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        series_free(all[i]);
    }
    for (int i = 0; i < data->set_count; i++) {
        series_free(&data->sets[i].loss);
        free(data->sets[i].name);
    }
    for (int64_t i = 0; i < data->sample_count; i++) {
        free_sample(&data->samples[i]);
    }
    free(data->samples);
    free(data->name);
    free(data->first_bad_line);
    buffer_free(&data->config);
    json_decref(data->run);
    *data = (RunData){0};
}
