// What a run folder says about a run, read for its report.
//
//   metrics.jsonl   one object a line: "kind" is "train", "valid" or "resume", see train/metrics.h
//   samples.jsonl   {"step", "prompt", "text"} a line
//   run.json        versions, hosts, sizes, memory plan
//   config.yaml     the resolved configuration, shown as it is
//
// Only metrics.jsonl must exist. A field that is missing or of another type is left out; a line that is no JSON object is
// counted. Memory does not grow with the length of the run.
#pragma once

#include "core/json.h"
#include "core/page/series.h"

enum { MOST_SETS = 64 };

// One validation set; "all" is all of them together.
typedef struct SetHistory {
    char *name;
    Series loss;
    double last_perplexity, last_bits_per_byte;  // NaN where not recorded
} SetHistory;

typedef struct Sample {
    double step;
    char *prompt, *text;  // UTF-8, owned; may hold zero bytes
    size_t prompt_size, text_size;
} Sample;

typedef struct RunData {
    char *name;  // of the folder
    Series loss, learning_rate, grad_norm, tokens_per_second, data_wait, comm_wait;
    SetHistory sets[MOST_SETS];
    int set_count;
    Series resumes;  // x: the steps; y: 0
    Sample *samples;
    int64_t sample_count, sample_capacity;
    double last_step, tokens, seconds, skipped;
    int64_t bad_lines;
    char *first_bad_line;  // "metrics.jsonl:17", or NULL
    int64_t sets_left_out;
    json_t *run;    // run.json's object, or an empty one
    Buffer config;  // config.yaml, may be empty
} RunData;

// Reads the folder. Fails where it is none, or where its metrics hold no record.
Error *run_data_read(const char *folder, RunData *out) MUST_CHECK;
void run_data_free(RunData *data);

// The set of that name, or NULL.
const SetHistory *run_data_set(const RunData *data, const char *name);

// The set whose loss stands for the run: all together, or the only one; NULL where there is none.
const SetHistory *run_data_main_set(const RunData *data);

// The first sample and the last one of the same prompt; NULL where there is none. They may be the same.
const Sample *run_data_first_sample(const RunData *data);
const Sample *run_data_last_sample(const RunData *data);

// The text of a sample after its prompt: some begin with it. *size bytes.
const char *sample_continuation(const Sample *sample, size_t *size);

// Values of run.json: NULL and NaN where it has none of that name and type.
const char *run_data_text(const RunData *data, const char *key);
double run_data_number(const RunData *data, const char *key);
