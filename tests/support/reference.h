// The operations written straightforwardly, in double and in single precision.
//
// reference64_* is what is right. reference32_* is the same source in float: what it errs is what a plain implementation errs,
// and twice that is what ours may (see tests/test_ops.c). Arguments: a case and its tensors in the order of its kind
// (tests/support/ops.c); "+=" tensors are updated in place.
#pragma once

#include "tests/support/ops.h"

// What reference32_* rounds the numbers to that an implementation in that type keeps in it on the way.
extern DataType reference32_type;

#define REFERENCES(suffix, real)                                                                                               \
    void reference##suffix##_attention_forward(const OpCase *c, real **t);                                                     \
    void reference##suffix##_attention_backward(const OpCase *c, real **t);                                                    \
    void reference##suffix##_attention_merge(const OpCase *c, real **t);                                                       \
    void reference##suffix##_norm_forward(const OpCase *c, real **t);                                                          \
    void reference##suffix##_norm_backward(const OpCase *c, real **t);                                                         \
    void reference##suffix##_rotary(const OpCase *c, real **t);                                                                \
    void reference##suffix##_activation_forward(const OpCase *c, real **t);                                                    \
    void reference##suffix##_gated_forward(const OpCase *c, real **t);                                                         \
    void reference##suffix##_gated_backward(const OpCase *c, real **t);                                                        \
    void reference##suffix##_embedding_forward(const OpCase *c, real **t);                                                     \
    void reference##suffix##_embedding_backward(const OpCase *c, real **t);                                                    \
    void reference##suffix##_dropout(const OpCase *c, real **t);                                                               \
    void reference##suffix##_optimizer_update(const OpCase *c, real **t);                                                      \
    void reference##suffix##_add(const OpCase *c, real **t);                                                                   \
    void reference##suffix##_accumulate(const OpCase *c, real **t);                                                            \
    void reference##suffix##_scale(const OpCase *c, real **t);                                                                 \
    void reference##suffix##_convert(const OpCase *c, real **t);                                                               \
    void reference##suffix##_sum_parts(const OpCase *c, real **t);                                                             \
    void reference##suffix##_copy_rows(const OpCase *c, real **t);

REFERENCES(64, double)
REFERENCES(32, float)
#undef REFERENCES
