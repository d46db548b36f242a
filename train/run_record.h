// RUN/run.json: what ran where, with how much memory, and how fast. Also the lines a run prints before its first step.
#pragma once

#include "core/json.h"
#include "data/tokens/order.h"
#include "parallel/mesh.h"
#include "train/model/model.h"
#include "train/run_config.h"

typedef struct RunRecord {
    json_t *document;  // rank 0
    char *path;
    double loop_start;  // of this process's first step
    int64_t first_step;
    int64_t steps;
    double step_seconds;  // sum
} RunRecord;

// Tells rank 0's terminal what is about to run: model, corpus, mixture, batch, layout.
void run_record_print(const RunConfig *config, const Model *model, const Corpus *corpus, const Order *order, const Mesh *mesh,
                      int64_t micro_batches);

// Collective: gathers the host names; rank 0 writes the file. `run` is the run's identity, rank 0's counts. Of a run that was
// `resumed` the file keeps when it was first started, and counts how often and tells when it last went on.
Error *run_record_create(RunRecord *record, const RunConfig *config, const Model *model, const MemoryPlan *planned,
                         uint64_t run, bool resumed, Comm *world) MUST_CHECK;
void run_record_loop(RunRecord *record, int64_t first_step);
void run_record_step(RunRecord *record, double seconds);

// Collective: adds the measured peaks of memory (the largest of the ranks; a card's beside the card's plan, the host's beside
// the host's) and the mean speed, writes the file again and prints both; that it cannot be written is a warning. `before`: the
// machine when the run was planned.
Error *run_record_finish(RunRecord *record, const Machine *before, Device *device, Comm *world) MUST_CHECK;
void run_record_free(RunRecord *record);
