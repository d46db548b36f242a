// What each rank of a pipeline does in a step, and in which order: a list of actions, made without a model.
//
// The layers are cut into ranks * chunks stages, one behind the other; every micro-batch goes through all of them forward and
// back. The way back through a stage is two actions, because only the first of them has anybody waiting for it: the gradient of
// its input, which the stage before needs, and those of its weights.
//
//   stages of 4 ranks      chunk 0     chunk 1
//   1F1B, ZB-H1            0 1 2 3
//   interleaved            0 1 2 3     4 5 6 7         (Narayanan et al. 2021)
//   ZB-V                   0 1 2 3     7 6 5 4         rank 0 has the first and the last
//
//   kind          idle time of a step             micro-batches held by a rank, in stages
//   1F1B          (P - 1) (F + B)                 P - rank
//   interleaved   (P - 1) (F + B), of stages that are 1 / chunks as long      2 (P - rank) - 1 + (chunks - 1) P
//   ZB-H1         (P - 1) (F + B - W)             P
//   ZB-V          (P - 1) F where F = B = W       2 P, of stages half as long
//
// ZB-H1 and ZB-V: Qi et al. 2023, "Zero Bubble Pipeline Parallelism"; Qi et al. 2024, section 6 and "V-Half".
// P ranks; F, B, W: times of a stage forward, for its input's gradient, for its weights' gradients. The table holds for P
// micro-batches or more; ZB-V's idle time may be up to W longer for some numbers of them (pipeline_measure tells). The
// published 1F1B has idle (P - 1) (F + B + W): here the gradient of the input leaves before those of the weights are begun.
//
// Messages over one boundary of stages in one direction are sent and received in the order of the micro-batches, so that any
// transport that keeps the order of one boundary and direction is enough, and a receiver may ask for them ahead.
#pragma once

#include "core/error.h"

#include <stdint.h>

typedef enum PipelineKind { PIPELINE_1F1B, PIPELINE_INTERLEAVED, PIPELINE_ZB_H1, PIPELINE_ZB_V, PIPELINE_KINDS } PipelineKind;

extern const char *const pipeline_kind_names[PIPELINE_KINDS];  // "1f1b", "interleaved", "zb-h1", "zb-v"

typedef struct PipelineShape {
    PipelineKind kind;
    int ranks, chunks;  // chunks: stages of a rank; 1 of 1F1B and ZB-H1, 2 of ZB-V
    int micro_batches;
} PipelineShape;

typedef enum ActionKind {
    ACTION_RECEIVE_OUTPUT,    // of the stage before, for micro_batch at `stage`
    ACTION_FORWARD,           // micro_batch through `stage`
    ACTION_SEND_OUTPUT,       // of `stage` to the one behind
    ACTION_RECEIVE_GRADIENT,  // of `stage`'s output, from the one behind
    ACTION_INPUT_GRADIENT,
    ACTION_SEND_GRADIENT,  // of `stage`'s input, to the one before
    ACTION_WEIGHT_GRADIENT,
} ActionKind;

typedef struct Action {
    ActionKind kind;
    int stage, micro_batch;
    int peer;  // the other rank of a message; -1 of what is none
} Action;

typedef struct ActionList {
    Action *actions;
    int count;
} ActionList;

typedef struct PipelineSchedule {
    PipelineShape shape;
    ActionList *rank;  // [ranks]
} PipelineSchedule;

// The stage that is chunk `chunk` of `rank`, and where a stage is.
int pipeline_stage(const PipelineShape *shape, int rank, int chunk);
int pipeline_rank(const PipelineShape *shape, int stage);
int pipeline_chunk(const PipelineShape *shape, int stage);

// Fails where the shape is none: the numbers of chunks above, and 1 .. 2^20 micro-batches times stages. The caller destroys
// the schedule. A function of the shape alone: all ranks make the same.
Error *pipeline_create(const PipelineShape *shape, PipelineSchedule **out) MUST_CHECK;
void pipeline_destroy(PipelineSchedule *schedule);  // NULL is fine

typedef struct PipelineCosts {
    double forward, input_gradient, weight_gradient;  // of a stage
    double message;                                   // from its sending to its arrival
    int gradients_under_way;  // that one stage may have sent and the one before not yet received; 0: any number
} PipelineCosts;

// What walking the lists takes: each rank does its actions in order, sending takes it no time (but where too many gradients are
// under way it waits, which costs no time here, until one is received), and a receiver waits until the message is there. False
// where they wait for each other for ever, or for a message that nobody sends or that comes in another order; then `stuck` is
// the rank and the action at which the first rank stands.
typedef struct PipelineTimes {
    double seconds;       // until the last rank has done its last action
    double idle;          // seconds less a rank's work
    int held;             // by the rank that holds most: micro-batches times stages between forward and weights' gradients
    int stuck, stuck_at;  // -1 where nobody is
} PipelineTimes;
bool pipeline_measure(const PipelineSchedule *schedule, const PipelineCosts *costs, PipelineTimes *times);
