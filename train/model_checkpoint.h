// A model's arrays in the words of a checkpoint: which parts a rank saves, how they are fetched, and the way back.
#pragma once

#include "train/checkpoint/checkpoint.h"
#include "train/model/weights.h"

// What a rank saves. The lists stay valid as long as it.
typedef struct ModelParts {
    const ModelWeights *weights;
    CheckpointTensor *tensors;  // one a row of the table, in its order
    CheckpointPart *parts;
    SavedPart *saved;  // what each part is
    Box *boxes;        // of all parts
    int count;
} ModelParts;

// What rank `rank` of `ranks` with equal placements saves: its share of weights and moments, each in the type in which it lies.
ModelParts model_parts(const ModelWeights *weights, int ranks, int rank);
void model_parts_free(ModelParts *parts);

// CheckpointPlan.fetch; the context is the ModelParts.
void model_parts_fetch(void *context, const CheckpointPart *part, void *to, float *scales);

// Compares what the model holds with the checkpoint's digests: a tensor that became another one on the way is damage, told by
// name. A row of which this rank has a part is left to the sums below; what is here in fewer bits than the checkpoint has
// cannot be compared.
Error *model_compare(const Checkpoint *checkpoint, const ModelWeights *weights, bool moments) MUST_CHECK;

// What lies on several ranks is compared as a sum: of each array and row, the digest of the parts that this rank saves, which
// no other rank has, and their elements; only where it holds the very values that the checkpoint has. Added over all ranks, and
// handed to model_compare_shares on one of them, a row whose elements are all told is compared like a whole one.
typedef struct DigestShare {
    uint64_t digest;  // modulo 2^64
    int64_t count;
} DigestShare;

int64_t model_share_count(const ParamTable *table);
void model_digest_shares(const Checkpoint *checkpoint, const ModelParts *parts, DigestShare *shares);  // [model_share_count]
void model_add_shares(const ParamTable *table, DigestShare *sums, const DigestShare *shares);
Error *model_compare_shares(const Checkpoint *checkpoint, const ParamTable *table, const DigestShare *sums) MUST_CHECK;

// Reads what lies on this rank of all weights (and, where `moments`, of the optimizer's state), and compares it.
Error *model_load(Checkpoint *checkpoint, ModelWeights *weights, bool moments) MUST_CHECK;
