// A small made-up model and several writers in one process that stand for the ranks of a run.
#pragma once

#include "train/checkpoint/checkpoint.h"

enum { TOY_TENSORS = 6, TOY_MOST_RANKS = 8 };
extern const CheckpointTensor toy_tensors[TOY_TENSORS];
int64_t toy_elements(int tensor);

enum { TOY_KINDS = 3 };
extern const char *const toy_kinds[TOY_KINDS];  // "weight", "moment1", "moment2"

// What element i of a tensor holds at a step: different for every tensor, kind, element and step.
float toy_value(int64_t step, int tensor, int kind, int64_t i);

// How the ranks cut the tensors.
typedef enum ToySplit {
    TOY_RANGES,   // each has an even part of all tensors one after the other: ragged ranges of rows
    TOY_COLUMNS,  // of each tensor an even part of the last dimension
    TOY_FUSED,    // of each tensor an even part of each third of its rows, as of query, key and value
    TOY_SPLITS
} ToySplit;

typedef struct Toy {
    int ranks, kinds;  // kinds: 3 for all, 2 without second moments
    float *flat[TOY_KINDS];
    CheckpointWriter *writers[TOY_MOST_RANKS];
    uint64_t run;  // saves are of this one; TOY_RUN at first
    bool lost;     // and say that they learned nothing: state {"step": step, "lost": true}
} Toy;

// The boxes of a tensor that a rank has under a split, at most 3 or those of a range; 0 where it has none.
int toy_boxes(ToySplit split, int ranks, int rank, int tensor, Box *out);

// Opens the writers of a run. keep_last and keep_every as in CheckpointPlan.
Error *toy_open(Toy *toy, const char *run, ToySplit split, int ranks, int kinds, int keep_last, int64_t keep_every) MUST_CHECK;
// The same with what `wanted` says of retention and room.
Error *toy_open_wanting(Toy *toy, const char *run, ToySplit split, int ranks, int kinds,
                        const CheckpointPlan *wanted) MUST_CHECK;
void toy_close(Toy *toy);
bool toy_learned(const json_t *state);  // for CheckpointPlan

enum { TOY_RUN = 0xABCDEF };  // the run's identity

// Saves what toy_value says of that step, with a blob "metrics.jsonl" and a state, and waits for the end.
CheckpointEvent toy_save(Toy *toy, int64_t step);

// Whether a checkpoint holds exactly the values of its step, read in `parts` parts per tensor.
bool toy_matches(const char *path, int kinds, int parts);
