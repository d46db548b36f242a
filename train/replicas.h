// Whether what several ranks hold alike is still alike: the search for silent corruption.
//
// Data-parallel ranks compute the same update from the same sums, tensor-parallel ranks the same norms, the two ends of a
// pipeline share an embedding: all of it must stay the same to the bit. A bit that flips in memory, on a link or in a
// multiplier breaks that long before a loss shows it. Each rank digests what its passes read (core/digest.h), and rank 0
// compares the digests of all that hold the same boxes of a tensor. The log says what it took: 0.3 s for a GB of weights
// on a CPU with AVX-512.
#pragma once

#include "parallel/comm.h"
#include "train/model/weights.h"

// Collective over `world`, between steps; waits for the device. An error, the same on all ranks, where ranks differ: it names
// the tensor, and those of the ranks that are fewer. Weights in shards (ZeRO 3) have no replicas and are not looked at.
Error *replicas_check(const ModelWeights *weights, Comm *world) MUST_CHECK;
