// What a run writes about itself: RUN/metrics.jsonl, RUN/samples.jsonl, RUN/run.json. Rank 0 only.
//
// Both histories are held in memory too, so that a checkpoint carries them: a resumed run rewrites its files from the
// checkpoint, and the steps that were lost leave no trace. Once a run has begun, a line that cannot be written ends nothing: a
// warning says so, and the file gets what it lacks as soon as it can be written again. Records:
//   {"kind":"train","step":..,"tokens":..,"loss":..,"lr":..,"grad_norm":..,"tokens_per_second":..,"step_seconds":..,"data_wait":..,
//    "comm_wait":..,"skipped":..,"groups":{"data":{"sent":..,"operations":..,"wait":..}}}
//        step: steps done; data_wait, comm_wait: shares of the step's time; groups: of several ranks, what rank 0 sent (bytes,
//        see Group.sent), in how many operations, and waited (a share) over each set of axes
//   {"kind":"valid","step":..,"set":"..","loss":..,"perplexity":..,"bits_per_byte":..}   set "all": over all sets
//   {"kind":"resume","step":..}
#pragma once

#include "parallel/mesh.h"

#include <jansson.h>

typedef struct Metrics Metrics;

typedef struct TrainRecord {
    int64_t step, tokens, skipped;
    double loss, learning_rate, grad_norm, tokens_per_second, step_seconds, data_wait, comm_wait;
    const Mesh *mesh;  // whose traffic it is; NULL: none
    MeshTraffic traffic;
} TrainRecord;

// Histories that begin with these bytes (a checkpoint's), or empty where NULL. Nothing is written before metrics_begin.
Metrics *metrics_create(const char *folder, const Buffer *history, const Buffer *samples);
// Writes both files; those of an earlier attempt are replaced. From here on they follow the histories.
Error *metrics_begin(Metrics *metrics) MUST_CHECK;
void metrics_close(Metrics *metrics);  // tries once more to write what is missing; NULL is fine

void metrics_train(Metrics *metrics, const TrainRecord *record);
// bits_per_byte may be NAN: left out.
void metrics_valid(Metrics *metrics, int64_t step, const char *set, double loss, double bits_per_byte);
void metrics_resume(Metrics *metrics, int64_t step);
void metrics_sample(Metrics *metrics, int64_t step, const char *prompt, const char *text, size_t size);

// The histories so far, for a checkpoint.
const Buffer *metrics_history(const Metrics *metrics);
const Buffer *metrics_samples(const Metrics *metrics);
