// How a matrix product is cut for Hopper: chosen by matmul_sm90.cu for each shape, or given by a test.
#pragma once

#include "kernels/cuda/matmul.h"

namespace BACKEND {

enum {
    SM90_ROWS = 128,          // of a tile
    SM90_DEPTH = 64,          // of a block of K
    SM90_MOST_PARTS = 16,     // of K
    SM90_STREAMED = 0,        // instead of a number of parts
    SM90_MOST_STREAMS = 144,  // multiprocessors of the largest card
    SM90_LEAST_BLOCKS = 4,    // of K, that are worth an end of a tile for themselves
};

// The work of a cluster: 1 or 2 tiles of one column below each other, over all of K or one of `parts` parts of it. Those from
// number `whole` on are streamed: the blocks of K of all of them, one after another, are cut into a stretch for each cluster,
// which may begin and end within a tile. Where `groups` groups of clusters can have as many tiles each, they are cut alike.
typedef struct Sm90Plan {
    int columns;                            // of B in a tile: 256 or 128
    int cluster;                            // blocks: 1 or 2
    int units, column_tiles, parts, works;  // units: ceil(row tiles / cluster); works = units * column_tiles * parts
    int k_blocks, part_blocks;              // of 64 along K: all, and those of one part
    int group;                              // units that are walked down before the next column: what runs at once fits L2
    int clusters;                           // that run
    int whole;                              // works that are not streamed: all where `streams` is 0
    int streams, stream_tiles;              // clusters and tiles of a group
    int first[SM90_MOST_STREAMS + 1];       // where the stretches of a group begin, in blocks of K; the last one's end
    int stream_blocks;                      // how long the stream should take, in blocks of K and their time
    int *turns;                             // the card's, where streamed
} Sm90Plan;

// Whether matmul_sm90.cu takes the product, but for what TMA asks of A and B.
bool sm90_takes(const Card *card, const Product *p);
// The plan with that tile and cluster and at most that many parts, or streamed (a gradient of a weight alone).
Sm90Plan sm90_plan(const Product *p, int multiprocessors, int columns, int cluster, int parts);
// About how many cycles of the card's clock it takes: an estimate, not a measurement.
double sm90_cycles(const Product *p, const Sm90Plan *plan);
// The plan that should take the least time.
Sm90Plan sm90_choose(const Product *p, int multiprocessors);
// Computes the product so. False: TMA cannot address one of the tensors.
bool sm90_run(Card *card, const Product *p, const Sm90Plan *plan);

}  // namespace BACKEND
