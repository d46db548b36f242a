// Tensor parallelism: see tensor.h. What is exchanged during a pass is in travel.c.
#include "train/model/tensor.h"

#include <inttypes.h>

Range tensor_cut(int64_t units, int ranks, int rank) {
    ranks = ranks > 1 ? ranks : 1;
    int64_t grain = units % ranks == 0 ? 1 : 8;
    while (grain > 1 && (units + grain - 1) / grain < ranks) {
        grain /= 2;
    }
    return range_part(units, grain, ranks, rank);
}

static Error *check_heads(int64_t heads, const char *what, const char *key, int ranks) {
    if (heads % ranks == 0) {
        return NULL;
    }
    int most = ranks;
    while (heads % most != 0) {
        most--;
    }
    return failure("%" PRId64 " %s (%s) cannot be divided among %d tensor-parallel ranks: %d can", heads, what, key, ranks,
                   most);
}

Error *tensor_config(const ModelConfig *config, const TensorShare *share, ModelConfig *out) {
    *out = *config;
    if (share->ranks <= 1) {
        return NULL;
    }
    TRY(check_heads(config->groups, "key/value heads", "model.groups", share->ranks));
    TRY(check_heads(config->heads, "heads", "model.heads", share->ranks));
    if (config->vocabulary < share->ranks || config->ffn_width < share->ranks) {
        return failure("a vocabulary of %" PRId64 " and %" PRId64
                       " feed-forward channels are too few for %d tensor-parallel ranks",
                       config->vocabulary, config->ffn_width, share->ranks);
    }
    Range channels = tensor_cut(config->ffn_width, share->ranks, share->rank);
    Range tokens = tensor_cut(config->vocabulary, share->ranks, share->rank);
    out->heads /= share->ranks;
    out->groups /= share->ranks;
    out->ffn_width = channels.end - channels.begin;
    out->vocabulary = tokens.end - tokens.begin;
    return NULL;
}

int64_t tensor_first_token(const ModelConfig *config, const TensorShare *share) {
    return tensor_cut(config->vocabulary, share->ranks, share->rank).begin;
}
