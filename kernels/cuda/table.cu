// The table of operations of a card. A function of the same name stands in the file of its operation.
#include "kernels/cuda/card.h"

namespace BACKEND {

extern const Operations operations;
const Operations operations = {
    .name = "card",
    .matmul_forward = matmul_forward,
    .matmul_backward_input = matmul_backward_input,
    .matmul_backward_weight = matmul_backward_weight,
    .attention_forward = attention_forward,
    .attention_backward = attention_backward,
    .attention_merge = attention_merge,
    .norm_forward = norm_forward,
    .norm_backward = norm_backward,
    .rotary = rotary,
    .activation_forward = activation_forward,
    .gated_forward = gated_forward,
    .gated_backward = gated_backward,
    .embedding_forward = embedding_forward,
    .embedding_backward = embedding_backward,
    .dropout = dropout,
    .classifier = classifier,
    .classifier_scratch_bytes = classifier_scratch_bytes,
    .add = add,
    .zero = zero,
    .gated_products = true,
    .squares = squares,
    .loss_sums = loss_sums,
    .step_decide = step_decide,
    .optimizer_update = optimizer_update,
    .convert = convert,
    .copy_rows = copy_rows,
    .sample = sample,
    .sample_scratch_bytes = sample_scratch_bytes,
    .scale = scale,
};

}  // namespace BACKEND
