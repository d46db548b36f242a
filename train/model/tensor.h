// Tensor parallelism: a layer's matrices are cut over ranks (params.h says along which dimension), and what these exchange on
// the way through it: travel.h (Shoeybi et al. 2019; with the rows of the stream cut too: Korthikanti et al. 2022).
//
//     stream [R,C] - norm - gather - qkv (its rows cut: own heads) - attention - out (its columns cut) - reduce - + stream
//                                                                    and the feed-forward branch alike, and the head
//
//                 rows of the stream cut                         not cut
//     gather      all-gather: own rows to all rows               nothing: all are here
//     reduce      reduce-scatter: everybody's sums to own rows   all-reduce
//
// On the way back each is the other's mirror, at the same places. Where one rank has everything, both do nothing.
//
// Vectors that are added behind a sum over ranks (biases of `out` and `down`, positions) are added by rank 0, before the sum,
// and so once. Rows that are not cut have the same weights on all ranks. Their gradients are the same bits on all ranks too,
// but with the stream's rows cut those of norms are sums over own rows, which model_sum_tensor_gradients makes whole.
#pragma once

#include "parallel/links.h"
#include "train/model/config.h"
#include "train/model/params.h"

// A rank's share. ranks 0 or 1: it has everything.
typedef struct TensorShare {
    int rank, ranks;
    bool cut_rows;  // of the stream
} TensorShare;

// What passes exchange over. After an error nothing is exchanged any more, and the caller finds it in `failed` when it next
// looks, before it believes any number: a pass itself cannot fail.
typedef struct TensorRanks {
    Group *group;                // not owned; NULL where ranks is 1
    Group *owners;               // of those with parts of gradients or weights, rank r of it with shard r; NULL: none has parts
    Group *norm;                 // of all ranks among which a step's gradients lie in parts; NULL where one has all
    Group *context;              // of ranks that share sequences (context.h); NULL where one has whole ones
    const PipelineLinks *links;  // not owned; NULL without a pipeline
    Error *failed;
} TensorRanks;

// Units [begin, end) of `units` that fall to a rank: the one rule for vocabularies, feed-forward channels and heads. Even where
// it can be, and else in multiples of 8 as far as every rank gets one.
Range tensor_cut(int64_t units, int ranks, int rank);

// The model as it is on this rank: its heads, groups, feed-forward channels and vocabulary are those that lie here. Errors:
// what cannot be cut, named, with numbers of ranks that can.
Error *tensor_config(const ModelConfig *config, const TensorShare *share, ModelConfig *out) MUST_CHECK;

// The first token of the embedding's rows here.
int64_t tensor_first_token(const ModelConfig *config, const TensorShare *share);
