// Attention on cards: which body computes a launch, and what all of them need before. The page attention.md tells why the
// bodies are as they are.
//
//     sm_90, 16-bit       attention_*_sm90.cu     where it applies
//     16-bit              attention_*_sm80.cu     widths that are multiples of 8, up to 256
//     anything            attention_plain.cu
#include "kernels/cuda/attention.h"

namespace BACKEND {

static bool nothing(const AttentionShape *s) {
    return s->batch == 0 || s->length == 0 || s->heads == 0;
}

void attention_forward(Device *device, const AttentionForward *a) {
    Card *card = card_of(device);
    if (nothing(&a->shape)) {
        return;
    }
#ifdef ATHANOR_HAVE_SM90
    if (card->architecture == 90 && attention_forward_sm90(card, a)) {
        return;
    }
#endif
    if (!attention_forward_sm80(card, a)) {
        attention_forward_plain(card, a);
    }
}

// Eight lanes a row of `width` elements.
template <typename T>
__global__ void attention_delta_kernel(int64_t rows, int heads, int64_t length, int width, bool packs, const T *out,
                                       const T *dout, float *delta) {
    int64_t row = (int64_t)blockIdx.x * (blockDim.x / 8) + threadIdx.x / 8;  // [B,T,H]
    bool valid = row < rows;
    const T *x = out + (valid ? row : 0) * width, *y = dout + (valid ? row : 0) * width;
    float sum = 0;
    int part = (int)threadIdx.x % 8;
    if (packs) {
        for (int d = part * Pack<T>::COUNT; d < width; d += 8 * Pack<T>::COUNT) {
            Pack<T> a = load_pack(x + d), b = load_pack(y + d);
            for (int i = 0; i < Pack<T>::COUNT; i++) {
                sum += to_float(a.at[i]) * to_float(b.at[i]);
            }
        }
    } else {
        for (int d = part; d < width; d += 8) {
            sum += to_float(x[d]) * to_float(y[d]);
        }
    }
    for (int offset = 4; offset > 0; offset /= 2) {
        sum += __shfl_xor_sync(0xFFFFFFFFu, sum, offset);
    }
    if (valid && part == 0) {
        int64_t token = row / heads, b = token / length;
        delta[(b * heads + row % heads) * length + token % length] = sum;
    }
}

void attention_delta(Card *card, const AttentionBackward *a, float *delta) {
    enum { THREADS = 256 };
    const AttentionShape *s = &a->shape;
    int64_t rows = s->batch * s->length * s->heads;
    WITH_TYPE(card->device.type, T, {
        bool packs = s->head_width % Pack<T>::COUNT == 0 && aligned_16(a->out) && aligned_16(a->dout);
        launch(card, "attention_delta", attention_delta_kernel<T>, dim3((unsigned)divide_up(rows, THREADS / 8)), THREADS, 0,
               rows, s->heads, s->length, s->head_width, packs, (const T *)a->out, (const T *)a->dout, delta);
    })
}

void attention_backward(Device *device, const AttentionBackward *a) {
    Card *card = card_of(device);
    const AttentionShape *s = &a->shape;
    if (nothing(s)) {
        return;
    }
#ifdef ATHANOR_HAVE_SM90
    if (card->architecture == 90 && attention_backward_sm90(card, a)) {
        return;
    }
#endif
    float *delta = (float *)card_workspace(card, sizeof(float) * (size_t)(s->batch * s->length * s->heads));
    if (delta == NULL) {
        return;  // the card remembers the failure
    }
    attention_delta(card, a, delta);
    if (!attention_backward_sm80(card, a, delta)) {
        attention_backward_plain(card, a, delta);
    }
}

}  // namespace BACKEND
