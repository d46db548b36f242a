// What a run writes about itself: RUN/metrics.jsonl, RUN/samples.jsonl, RUN/run.json. Rank 0 only.
//
// Both histories are held in memory too, so that a checkpoint carries them: a resumed run rewrites its files from the
// checkpoint, and the steps that were lost leave no trace. Records:
//   {"kind":"train","step":..,"tokens":..,"loss":..,"lr":..,"grad_norm":..,"tokens_per_second":..,"step_seconds":..,"data_wait":..,
//    "comm_wait":..,"skipped":..}          step: steps done; data_wait, comm_wait: shares of the step's time
//   {"kind":"valid","step":..,"set":"..","loss":..,"perplexity":..,"bits_per_byte":..}   set "all": over all sets
//   {"kind":"resume","step":..}
#pragma once

#include "core/memory.h"

#include <jansson.h>

typedef struct Metrics Metrics;

typedef struct TrainRecord {
    int64_t step, tokens, skipped;
    double loss, learning_rate, grad_norm, tokens_per_second, step_seconds, data_wait, comm_wait;
} TrainRecord;

// Starts the histories: from these bytes (a checkpoint's) or empty where NULL. Files of an earlier attempt are replaced.
Error *metrics_open(const char *folder, const Buffer *history, const Buffer *samples, Metrics **out) MUST_CHECK;
void metrics_close(Metrics *metrics);  // NULL is fine

Error *metrics_train(Metrics *metrics, const TrainRecord *record) MUST_CHECK;
// bits_per_byte may be NAN: left out.
Error *metrics_valid(Metrics *metrics, int64_t step, const char *set, double loss, double bits_per_byte) MUST_CHECK;
Error *metrics_resume(Metrics *metrics, int64_t step) MUST_CHECK;
Error *metrics_sample(Metrics *metrics, int64_t step, const char *prompt, const char *text, size_t size) MUST_CHECK;

// The histories so far, for a checkpoint.
const Buffer *metrics_history(const Metrics *metrics);
const Buffer *metrics_samples(const Metrics *metrics);
