// Operations that have no kernels yet end the program. Each disappears when its file is written.
#include "kernels/cuda/card.h"

namespace BACKEND {

#define MISSING __attribute__((weak))

bool attention_forward_sm90(Card *card, const AttentionForward *a);
bool attention_backward_sm90(Card *card, const AttentionBackward *a);
MISSING bool attention_forward_sm90(Card *card, const AttentionForward *a) {
    return false;
}
MISSING bool attention_backward_sm90(Card *card, const AttentionBackward *a) {
    return false;
}

}  // namespace BACKEND
