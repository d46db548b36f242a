// Context parallelism: see context.h.
#include "train/model/context.h"

#include "train/model/pass.h"

#include <inttypes.h>

// Messages of the ring.
enum { TAG_KEYS, TAG_GRADIENTS };

int64_t context_part(const ContextShare *share, int64_t length) {
    return length / (2 * share->ranks);
}

int64_t context_tokens(const ContextShare *share, int64_t length) {
    return share->ranks > 1 ? 2 * context_part(share, length) : length;
}

Error *context_check(const ContextShare *share, int64_t length) {
    if (share->ranks <= 1 || length % (2 * share->ranks) == 0) {
        return NULL;
    }
    int64_t unit = 2 * (int64_t)share->ranks, below = length / unit * unit;
    int most = share->ranks;
    while (most > 1 && length % (2 * most) != 0) {
        most--;
    }
    char shorter[48] = "";
    if (below > 0) {
        snprintf(shorter, sizeof shorter, "%" PRId64 " or ", below);
    }
    return failure("sequences of %" PRId64 " tokens cannot be cut into %" PRId64
                   " equal parts, two for each of %d context-parallel ranks: %s%" PRId64 " tokens can, or %d %s",
                   length, unit, share->ranks, shorter, below + unit, most, most > 1 ? "ranks" : "rank");
}

void context_lay_out(ContextBuffers *buffers, const ContextShare *share, const ModelConfig *config, int64_t rows,
                     bool forward_only, DataType type, Layout *layout) {
    int64_t ring = share->ranks > 1, back = ring && !forward_only, element = data_type_bytes(type);
    int64_t wide = model_attention_width(config), narrow = 2 * config->groups * config->head_width;
    for (int i = 0; i < 2; i++) {
        buffers->keys[i] = layout_take(layout, i == 0 ? "keys of the ring" : "keys on their way", ring, rows, narrow, element);
        buffers->dkeys[i] =
            layout_take(layout, i == 0 ? "gradients of the ring" : "gradients on their way", back, rows, narrow, sizeof(float));
    }
    buffers->part = layout_take(layout, "attention to a part", ring, rows / 2, wide, element);
    buffers->part_lse = layout_take(layout, "its statistics", ring, rows / 2, config->heads, sizeof(float));
    buffers->part_keys = layout_take(layout, "gradients of a part's keys", back, rows / 2, narrow, element);
    buffers->sum = layout_take(layout, "sums over parts", ring, rows, wide, sizeof(float));
}

bool context_is_cut(const Pass *pass) {
    return pass->workspace->options.context.ranks > 1;
}

uint64_t context_row(const Pass *pass, int64_t row, int64_t *run) {
    const Batch *batch = &pass->batch;
    const ContextShare *share = &pass->workspace->options.context;
    if (!context_is_cut(pass)) {
        *run = pass->rows - row;
        return batch->first_sample * (uint64_t)batch->length + (uint64_t)row;
    }
    int64_t sequences = batch->sequences / 2, part = row / batch->length, token = row % batch->length;
    int64_t place = batch_part(share->rank, share->ranks, (int)(part / sequences)) * batch->length + token;
    *run = batch->length - token;
    return (batch->first_sample + (uint64_t)(part % sequences)) * (uint64_t)(2 * share->ranks * batch->length) +
           (uint64_t)place;
}

// ---- The ring

// A ring under way in one layer: B sequences, P tokens a part.
typedef struct Ring {
    const Pass *pass;
    const ContextBuffers *buffers;
    const struct LayerActivations *at;
    AttentionShape shape;  // of a pair of parts, but for what a pair changes
    int rank, ranks;
    int64_t part;                // P
    int64_t rows, wide, narrow;  // B P, H D, 2 G D
    int64_t qkv_row;             // elements
    int64_t element;
} Ring;

static Ring ring_of(const Pass *pass, const AttentionShape *whole, const struct LayerActivations *at) {
    const ContextShare *share = &pass->workspace->options.context;
    Ring ring = {.pass = pass,
                 .buffers = &pass->workspace->ring,
                 .at = at,
                 .shape = *whole,
                 .rank = share->rank,
                 .ranks = share->ranks,
                 .part = pass->batch.length,
                 .rows = pass->rows / 2,
                 .wide = (int64_t)whole->heads * whole->head_width,
                 .narrow = 2 * (int64_t)whole->groups * whole->head_width,
                 .element = data_type_bytes(pass->model->device->type)};
    ring.qkv_row = ring.wide + ring.narrow;
    ring.shape.batch = pass->batch.sequences / 2;
    ring.shape.length = 2 * ring.ranks * ring.part;
    return ring;
}

// Messages under way to the next rank and from the one before. Where one failed nothing is exchanged any more, and `failed`
// says so.
typedef struct Exchange {
    GroupRequest *sent, *received;
} Exchange;

static void keep(const Ring *ring, Error *error) {
    error_keep(&ring->pass->model->tensor->failed, error);
}

// Lets it advance: on a CPU messages move only while they are asked for.
static void exchange_advance(const Ring *ring, Exchange *exchange) {
    bool done;
    if (ring->pass->model->tensor->failed == NULL) {
        keep(ring, group_test(&exchange->received, &done));
    }
}

static Exchange exchange_start(const Ring *ring, ElementType type, const void *send, void *receive, int tag) {
    const TensorRanks *ranks = ring->pass->model->tensor;
    Exchange exchange = {NULL, NULL};
    Collective what = {.operation = GROUP_SEND, .type = type, .count = 2 * ring->rows * ring->narrow, .send = send, .tag = tag};
    what.peer = (ring->rank + 1) % ring->ranks;
    if (ranks->failed == NULL) {
        keep(ring, group_start(ranks->context, &what, &exchange.sent));
    }
    what.operation = GROUP_RECEIVE;
    what.send = NULL;
    what.receive = receive;
    what.peer = (ring->rank + ring->ranks - 1) % ring->ranks;
    if (ranks->failed == NULL) {
        keep(ring, group_start(ranks->context, &what, &exchange.received));
    }
    exchange_advance(ring, &exchange);  // lets both go
    return exchange;
}

static void exchange_wait(const Ring *ring, Exchange *exchange) {
    if (ring->pass->model->tensor->failed == NULL) {
        keep(ring, group_wait(&exchange->received));
    }
    if (ring->pass->model->tensor->failed == NULL) {
        keep(ring, group_wait(&exchange->sent));
    }
}

// Keys and values go to the next rank while round `round` computes with them; after the last nobody needs them.
static Exchange send_keys(const Ring *ring, int round) {
    void *const *keys = ring->buffers->keys;
    if (round + 1 == ring->ranks) {
        return (Exchange){NULL, NULL};
    }
    return exchange_start(ring, element_of(ring->pass->model->device->type), keys[round % 2], keys[(round + 1) % 2], TAG_KEYS);
}

// Columns [from, from + columns) of all rows of qkv, or of its gradient: to or from dense rows.
static void copy_columns(const Ring *ring, int64_t rows, void *qkv, int64_t from, int64_t columns, void *dense, bool out) {
    Device *device = ring->pass->model->device;
    int64_t row = ring->qkv_row * ring->element, bytes = columns * ring->element;
    char *part = (char *)qkv + from * ring->element;
    device->op->copy_rows(
        device, &(CopyRows){rows, bytes, out ? part : dense, out ? row : bytes, out ? dense : part, out ? bytes : row});
}

static void *of_half(void *x, int64_t half, int64_t count, int64_t bytes) {
    return (char *)x + half * count * bytes;
}

// Own half `half` against the parts that came in round `round`, of which `came` is one (0 or 1).
typedef struct Parts {
    int half, came;
    bool seen;   // the mask leaves something of it
    bool first;  // the first that the half sees
    AttentionShape shape;
    AttentionRows in;
} Parts;

static Parts parts_of(const Ring *ring, int round, int half, int came) {
    int from = (ring->rank + ring->ranks - round) % ring->ranks;
    int64_t queries = batch_part(ring->rank, ring->ranks, half), keys = batch_part(from, ring->ranks, came);
    Parts p = {.half = half, .came = came, .seen = keys <= queries, .first = round == 0 && came == 0, .shape = ring->shape};
    p.shape.queries = p.shape.keys = ring->part;
    p.shape.offset = (queries - keys) * ring->part;
    p.shape.key_first = keys * ring->part;
    p.shape.first += p.seen ? batch_pair(ring->rank, half, keys) * ring->rows : 0;
    p.in.q = of_half(ring->at->qkv, half, ring->rows * ring->qkv_row, ring->element);
    p.in.q_stride = (HeadStrides){ring->qkv_row, ring->part * ring->qkv_row};
    p.in.k = of_half(ring->buffers->keys[round % 2], came, ring->rows * ring->narrow, ring->element);
    p.in.v = (char *)p.in.k + ring->narrow / 2 * ring->element;
    p.in.k_stride = p.in.v_stride = (HeadStrides){ring->narrow, ring->part * ring->narrow};
    return p;
}

static float *lse_of(const Ring *ring, int half) {
    return ring->at->lse + half * ring->rows * ring->shape.heads;
}

static void attend_part(const Ring *ring, const Parts *p) {
    Device *device = ring->pass->model->device;
    const ContextBuffers *b = ring->buffers;
    float *sum = b->sum + p->half * ring->rows * ring->wide, *lse = lse_of(ring, p->half);
    device->op->attention_forward(
        device, &(AttentionForward){.shape = p->shape, .in = p->in, .out = b->part, .lse = p->first ? lse : b->part_lse});
    if (p->first) {
        device->op->convert(device, &(Convert){ring->rows * ring->wide, device->type, TYPE_FP32, b->part, sum});
        return;
    }
    device->op->attention_merge(device, &(AttentionMerge){.batch = p->shape.batch,
                                                          .queries = ring->part,
                                                          .heads = p->shape.heads,
                                                          .head_width = p->shape.head_width,
                                                          .other = b->part,
                                                          .other_lse = b->part_lse,
                                                          .out = sum,
                                                          .lse = lse});
}

void context_attend(const Pass *pass, const AttentionShape *whole, const struct LayerActivations *at) {
    Ring ring = ring_of(pass, whole, at);
    Device *device = pass->model->device;
    copy_columns(&ring, pass->rows, at->qkv, ring.wide, ring.narrow, ring.buffers->keys[0], true);
    for (int round = 0; round < ring.ranks; round++) {
        Exchange keys = send_keys(&ring, round);
        for (int i = 0; i < 4; i++) {
            Parts p = parts_of(&ring, round, i / 2, i % 2);
            if (p.seen) {
                attend_part(&ring, &p);
                exchange_advance(&ring, &keys);
            }
        }
        exchange_wait(&ring, &keys);
    }
    device->op->convert(device, &(Convert){pass->rows * ring.wide, TYPE_FP32, device->type, ring.buffers->sum, at->attention});
}

// The gradients that a pair of parts gives, in part and part_keys.
static void attend_part_backward(const Ring *ring, const Parts *p) {
    Device *device = ring->pass->model->device;
    const ContextBuffers *b = ring->buffers;
    int64_t count = ring->rows * ring->wide;
    AttentionRows gradients = {.q = b->part,
                               .k = b->part_keys,
                               .v = (char *)b->part_keys + ring->narrow / 2 * ring->element,
                               .q_stride = {ring->wide, ring->part * ring->wide},
                               .k_stride = p->in.k_stride,
                               .v_stride = p->in.v_stride};
    device->op->attention_backward(
        device, &(AttentionBackward){.shape = p->shape,
                                     .in = p->in,
                                     .out = of_half(ring->at->attention, p->half, count, ring->element),
                                     .dout = of_half(ring->pass->workspace->dnarrow, p->half, count, ring->element),
                                     .lse = lse_of(ring, p->half),
                                     .gradients = gradients,
                                     .any_order = !ring->pass->model->options.deterministic});
}

void context_attend_backward(const Pass *pass, const AttentionShape *whole, const struct LayerActivations *at) {
    Ring ring = ring_of(pass, whole, at);
    Device *device = pass->model->device;
    const ContextBuffers *b = ring.buffers;
    int64_t queries = ring.rows * ring.wide, count = ring.rows * ring.narrow;
    Exchange gradients = {NULL, NULL};
    copy_columns(&ring, pass->rows, at->qkv, ring.wide, ring.narrow, b->keys[0], true);
    device->op->zero(device, 2 * count * (int64_t)sizeof(float), b->dkeys[0]);
    device->op->zero(device, 2 * queries * (int64_t)sizeof(float), b->sum);
    for (int round = 0; round < ring.ranks; round++) {
        Exchange keys = send_keys(&ring, round);
        float *dkeys = b->dkeys[round % 2];
        for (int i = 0; i < 4; i++) {
            Parts p = parts_of(&ring, round, i / 2, i % 2);
            if (p.seen) {
                attend_part_backward(&ring, &p);
                device->op->accumulate(device, queries, b->part, b->sum + p.half * queries);
                exchange_wait(&ring, &gradients);  // what the ranks before gave to these keys is here now
                device->op->accumulate(device, count, b->part_keys, dkeys + p.came * count);
                exchange_advance(&ring, &keys);
            }
        }
        gradients = exchange_start(&ring, ELEMENT_FP32, dkeys, b->dkeys[(round + 1) % 2], TAG_GRADIENTS);
        exchange_wait(&ring, &keys);
    }
    exchange_wait(&ring, &gradients);
    device->op->convert(device, &(Convert){2 * count, TYPE_FP32, device->type, b->dkeys[ring.ranks % 2], b->keys[0]});
    copy_columns(&ring, pass->rows, at->dqkv, ring.wide, ring.narrow, b->keys[0], false);
    for (int half = 0; half < 2; half++) {
        void *dqkv = of_half(at->dqkv, half, ring.rows * ring.qkv_row, ring.element);
        device->op->convert(device, &(Convert){queries, TYPE_FP32, device->type, b->sum + half * queries, b->part});
        copy_columns(&ring, ring.rows, dqkv, 0, ring.wide, b->part, false);
    }
}

// ---- What is looked at as a whole

void context_share_losses(const Pass *pass, const float *own, float *losses) {
    const ContextShare *share = &pass->workspace->options.context;
    TensorRanks *ranks = pass->model->tensor;
    int64_t part = pass->batch.length, sequences = pass->batch.sequences / 2, length = 2 * share->ranks * part;
    double *all = memory_zeroed((size_t)(sequences * length), sizeof *all);
    for (int64_t row = 0; row < pass->rows; row++) {
        int64_t place = batch_part(share->rank, share->ranks, (int)(row / part / sequences)) * part + row % part;
        all[row / part % sequences * length + place] = (double)own[row];
    }
    if (ranks->failed == NULL) {
        ranks->failed = comm_all_reduce_doubles(ranks->context->comm, all, sequences * length, COMM_SUM);
    }
    for (int64_t i = 0; i < sequences * length; i++) {
        losses[i] = (float)all[i];
    }
    free(all);
}
