// A small made-up model and several writers in one process that stand for the ranks of a run.
#pragma once

#include "train/checkpoint/checkpoint.h"

enum { TOY_TENSORS = 6, TOY_MOST_RANKS = 8 };
extern const CheckpointTensor toy_tensors[TOY_TENSORS];
int64_t toy_elements(int tensor);

// What element i of a tensor holds at a step: different for every tensor, kind, element and step.
float toy_value(int64_t step, int tensor, SliceKind kind, int64_t i);

typedef struct Toy {
    int ranks, kinds;  // kinds: 3 for all, 2 without second moments
    float *flat[SLICE_KINDS];
    CheckpointWriter *writers[TOY_MOST_RANKS];
} Toy;

// Opens the writers of a run. keep_last and keep_every as in CheckpointPlan.
Error *toy_open(Toy *toy, const char *run, int ranks, int kinds, int keep_last, int64_t keep_every) MUST_CHECK;
void toy_close(Toy *toy);

// Saves what toy_value says of that step, with a blob "metrics.jsonl" and a state {"step": step}, and waits for the end.
CheckpointEvent toy_save(Toy *toy, int64_t step);

// Whether a checkpoint holds exactly the values of its step, read in `parts` parts per tensor.
bool toy_matches(const char *path, int kinds, int parts);
