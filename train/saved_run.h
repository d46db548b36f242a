// A run as others read it: generate, eval and inspect open RUN, or one of its checkpoints, and get the model with its weights.
#pragma once

#include "data/tokenizer/tokenizer.h"
#include "train/checkpoint/checkpoint.h"
#include "train/model/model.h"
#include "train/run_config.h"

typedef struct SavedRun {
    char *folder, *checkpoint;  // paths
    RunConfig config;
    Tokenizer *tokenizer;  // NULL where the run has none (a foreign corpus)
    int64_t step;
    Device *device;
    Model *model;  // forward only
} SavedRun;

// `path`: a run folder or a checkpoint folder inside one. Of a run folder it is the newest good checkpoint, whatever shows that
// one is damaged, its loading too: those passed over are warned about. One that a training run removes in the meantime is
// looked for again.
// `sequences` of the run's sequence length fit the model. `threads` 0: all cores.
Error *saved_run_open(const char *path, int64_t sequences, int threads, SavedRun *out) MUST_CHECK;
void saved_run_close(SavedRun *run);

// Whether a checkpoint of that state was made by steps that learned: one within a streak of steps without a finite gradient
// proves no model.
bool saved_run_learned(const json_t *state);
