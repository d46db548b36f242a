// Which layout trains fastest: one search over all layouts that a configuration allows on so many ranks.
//
// A pure function of configuration, machine, ranks and costs. Each layout of run_layout_list, with each level of ZeRO that the
// configuration knows from its own on, gets
//
//     memory    what the first rank's plan says (run_plan), and whether the machine has it
//     sent      bytes that a rank sends in a step, and in how many messages, by what the algorithms of group.h move at least
//     seconds   (alpha per message + beta per byte) of it, and what a rank stands idle: a pipeline's bubble, an uneven share
//
// The arithmetic itself is the same in all, and left out. Those that fit come first, the fastest of them first; where seconds
// are equal within a hundredth, the lower level of ZeRO, then fewer axes.
//
//     data, zero 0      all-reduce of the gradients: 2 (n-1)/n of them
//     zero 1            reduce to the owners and broadcast of new weights: as much
//     zero 2, 3         the reduction after each micro-batch; of 3 weights gathered forward and back in each
//     tensor            in each layer, forward and back, two gathers and two reductions of the stream: (t-1)/t of it each (an
//                       all-reduce where rows are not cut: as much), once more forward where layers are computed again
//     pipeline          the stream over each boundary, and its gradient back
//     context           keys and values C - 1 times around the ring, forward and back, and C times the fp32 sums of
//                       their gradients
#pragma once

#include "train/run_layout.h"
#include "train/run_plan.h"

typedef struct LayoutCosts {
    double message_seconds, byte_seconds;  // alpha and beta of a transport
    double rank_flops;                     // a second, of one rank: what idle time is weighed with
} LayoutCosts;

// Of ranks on CPUs, and on cards. Guesses, which bench/layouts is there to replace: what counts here is their order.
LayoutCosts layout_costs(const Machine *machine);

typedef struct LayoutScore {
    int size[MESH_AXES];
    int64_t zero;
    int64_t memory;  // bytes, of the planned device
    bool fits;
    double sent[MESH_AXES], messages;  // by axis, of a rank and step; zero's are data's
    double idle;                       // seconds
    double seconds;                    // of both
} LayoutScore;

// All of them into *out, the best first, which the caller frees; returns how many. The configuration must be resolved but for
// its layout.
int layout_search(const RunConfig *config, const Machine *machine, int ranks, const LayoutCosts *costs, LayoutScore **out);

// Of one layout.
LayoutScore layout_score(const RunConfig *config, const Machine *machine, const int size[MESH_AXES], int64_t zero,
                         const LayoutCosts *costs);

// "data 2 x tensor 2, zero 1: 3.1 GiB of 8.0 GiB, sends 12 MiB in a step": why, in one line, beside the next best. The caller
// frees it.
char *layout_why(const LayoutScore *scores, int count, const Machine *machine);
