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

// `path`: a run folder (its newest good checkpoint; damaged ones are warned about) or a checkpoint folder inside one.
// `sequences` of the run's sequence length fit the model. `threads` 0: all cores.
Error *saved_run_open(const char *path, int64_t sequences, int threads, SavedRun *out) MUST_CHECK;
void saved_run_close(SavedRun *run);

// The kinds of a model's arrays in checkpoints: of MODEL_PARAMS, MODEL_MOMENT1 and MODEL_MOMENT2.
enum { MODEL_KINDS = 3 };
extern const char *const model_kinds[MODEL_KINDS];

// Copies boxes of a row's values, of the array of that kind, to the host (CheckpointPlan.fetch).
void model_read_boxes(const Model *model, int32_t row, const char *kind, const Box *boxes, int count, float *to);

// Compares what a model holds with a checkpoint's digests, tensor by tensor, in arrays of fp32 (others hold rounded values).
Error *checkpoint_compare_model(const Checkpoint *checkpoint, const Model *model, bool moments) MUST_CHECK;

// Reads all weights (and, where `moments`, the optimizer's state) of a checkpoint into a model, and compares them.
Error *checkpoint_load_model(Checkpoint *checkpoint, Model *model, bool moments) MUST_CHECK;
