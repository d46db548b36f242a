// Attention on cards: which body computes a launch, and what all of them need before. The page attention.md tells why the
// bodies are as they are.
//
//     one query, a cache  attention_decode.cu     16-bit, without dropout
//     sm_90, 16-bit       attention_*_sm90.cu     without key_lengths and dropout
//     16-bit              attention_*_sm80.cu     widths that are multiples of 8, up to 256
//     anything            attention_plain.cu
//
// The choice "sm80" of device_set_products leaves Hopper's out.
//
// Here too: attention_merge.
#include "kernels/cuda/attention.h"

namespace BACKEND {

static bool hopper(Card *card) {
    return card->architecture == 90 && !matmul_portable(card);
}

// The body that computes a launch, which the device remembers.
static const char *forward_body(Card *card, const AttentionForward *a) {
    if (attention_decode(card, a)) {
        return "decode";
    }
#ifdef ATHANOR_HAVE_SM90
    if (hopper(card) && attention_forward_sm90(card, a)) {
        return "sm90";
    }
#endif
    if (attention_forward_sm80(card, a)) {
        return "sm80";
    }
    attention_forward_plain(card, a);
    return "plain";
}

void attention_forward(Device *device, const AttentionForward *a) {
    if (a->shape.batch > 0 && a->shape.queries > 0 && a->shape.heads > 0) {
        device->attention = forward_body(card_of(device), a);
    }
}

// Eight lanes a row of `width` elements.
template <typename T>
__global__ void attention_delta_kernel(int64_t rows, int heads, int64_t queries, int width, bool packs, const T *out,
                                       const T *dout, float *delta) {
    int64_t row = (int64_t)blockIdx.x * (blockDim.x / 8) + threadIdx.x / 8;  // [B,Tq,H]
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
        int64_t token = row / heads, b = token / queries;
        delta[(b * heads + row % heads) * queries + token % queries] = sum;
    }
}

void attention_delta(Card *card, const AttentionBackward *a, float *delta) {
    enum { THREADS = 256 };
    const AttentionShape *s = &a->shape;
    int64_t rows = s->batch * s->queries * s->heads;
    if (rows == 0) {
        return;
    }
    WITH_TYPE(card->device.type, T, {
        bool packs = s->head_width % Pack<T>::COUNT == 0 && aligned_16(a->out) && aligned_16(a->dout);
        launch(card, "attention_delta", attention_delta_kernel<T>, dim3((unsigned)divide_up(rows, THREADS / 8)), THREADS, 0,
               rows, s->heads, s->queries, s->head_width, packs, (const T *)a->out, (const T *)a->dout, delta);
    })
}

static const char *backward_body(Card *card, const AttentionBackward *a) {
    const AttentionShape *s = &a->shape;
#ifdef ATHANOR_HAVE_SM90
    if (hopper(card) && attention_backward_sm90(card, a)) {
        return "sm90";
    }
#endif
    float *delta = (float *)card_workspace(card, sizeof(float) * (size_t)(s->batch * s->queries * s->heads + 1));
    if (delta == NULL) {
        return NULL;  // the card remembers the failure
    }
    attention_delta(card, a, delta);
    if (attention_backward_sm80(card, a, delta)) {
        return "sm80";
    }
    attention_backward_plain(card, a, delta);
    return "plain";
}

void attention_backward(Device *device, const AttentionBackward *a) {
    const AttentionShape *s = &a->shape;
    if (s->batch > 0 && (s->queries > 0 || s->keys > 0) && s->heads > 0) {
        device->attention = backward_body(card_of(device), a);
    }
}

// Eight lanes a row of `width` elements.
template <typename T>
__global__ void attention_merge_kernel(int64_t rows, int heads, int64_t queries, int width, const T *other,
                                       const float *other_lse, float *out, float *lse) {
    int64_t row = (int64_t)blockIdx.x * (blockDim.x / 8) + threadIdx.x / 8;  // [B,Tq,H]
    bool valid = row < rows;
    int64_t token = row / heads, at = valid ? (token / queries * heads + row % heads) * queries + token % queries : 0;
    float mine = lse[at], its = other_lse[at], most = fmaxf(mine, its);
    __syncwarp();  // all lanes have read what one of them writes
    if (!valid || most == -INFINITY) {
        return;  // out is 0 and stays
    }
    float own = expf(mine - most), others = expf(its - most), sum = own + others;
    own /= sum;
    others /= sum;
    for (int64_t i = row * width + threadIdx.x % 8; i < (row + 1) * width; i += 8) {
        out[i] = own * out[i] + others * to_float(other[i]);
    }
    if (threadIdx.x % 8 == 0) {
        lse[at] = most + logf(sum);
    }
}

void attention_merge(Device *device, const AttentionMerge *a) {
    enum { THREADS = 256 };
    Card *card = card_of(device);
    int64_t rows = a->batch * a->queries * a->heads;
    if (rows == 0) {
        return;
    }
    WITH_TYPE(device->type, T,
              launch(card, "attention_merge", attention_merge_kernel<T>, dim3((unsigned)divide_up(rows, THREADS / 8)), THREADS,
                     0, rows, a->heads, a->queries, a->head_width, (const T *)a->other, a->other_lse, a->out, a->lse))
}

}  // namespace BACKEND
