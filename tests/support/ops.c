// The table of operation cases: see ops.h.
#include "tests/support/ops.h"

#include "core/memory.h"
#include "tests/support/check.h"
#include "tests/support/reference.h"

#include <math.h>

// ---- Attention

// Stand in a row's shape for a tensor that may be NULL, which the case then has.
static const float with_slopes, with_add;
static const int32_t with_lengths;

// Of a shape's tensors 0, 1 and 2 (or 9, 10 and 11, the gradients), where they are of `element` bytes. Packed: the first holds
// all. Apart: queries lie in packed rows and keys and values in a cache that has room for more, gradients lie dense.
static AttentionRows attention_rows(const OpCase *c, void **t, int64_t element, bool dense) {
    const AttentionShape *s = &c->attention_forward.shape;  // it lies first in both
    int64_t q = (int64_t)s->heads * s->head_width, k = (int64_t)s->groups * s->head_width, row = q + 2 * k;
    if (!c->apart) {
        HeadStrides stride = {row, row * s->keys};
        return (AttentionRows){t[0], (char *)t[0] + q * element, (char *)t[0] + (q + k) * element, stride, stride, stride};
    }
    q = dense ? q : row;
    int64_t room = dense ? s->keys : s->keys + 3;
    return (AttentionRows){t[0], t[1], t[2], {q, q * s->queries}, {k, k * room}, {k, k * room}};
}
static void attention_rows_tensors(const OpCase *c, OpRole role, bool dense, OpTensor *t) {
    AttentionRows rows = attention_rows(c, (void *[3]){NULL}, 0, dense);
    int64_t batch = c->attention_forward.shape.batch;
    t[0] = (OpTensor){.name = "q", role, OP_COMPUTE, batch * rows.q_stride.sequence};
    t[1] = (OpTensor){.name = "k", role, OP_COMPUTE, c->apart ? batch * rows.k_stride.sequence : 0};
    t[2] = (OpTensor){.name = "v", role, OP_COMPUTE, c->apart ? batch * rows.v_stride.sequence : 0};
}

static int attention_forward_tensors(const OpCase *c, OpTensor *t) {
    const AttentionShape *s = &c->attention_forward.shape;
    ensure(c->apart || s->queries == s->keys, "packed rows hold as many keys as queries");
    attention_rows_tensors(c, OP_INPUT, false, t);
    // Documents are about 24 tokens long, or (bare) a sequence is one: then blocks meet many others.
    t[3] =
        (OpTensor){.name = "first", OP_INPUT, OP_INT32, c->bare ? 0 : s->batch * s->queries, OP_FIRST, s->queries, s->offset};
    t[4] = (OpTensor){.name = "key_lengths", OP_INPUT, OP_INT32, s->key_lengths != NULL ? s->batch : 0, OP_LENGTH, s->keys};
    t[5] = (OpTensor){.name = "slopes", OP_INPUT, OP_FLOAT, s->slopes != NULL ? s->heads : 0, OP_POSITIVE, .deviation = 0.5};
    t[6] = (OpTensor){.name = "out", OP_OUTPUT, OP_COMPUTE, s->batch * s->queries * s->heads * s->head_width};
    t[7] = (OpTensor){.name = "lse", OP_OUTPUT, OP_FLOAT, s->batch * s->heads * s->queries};
    if (c->bare && s->key_lengths != NULL && c->kind->objective == NULL) {
        t[7].count = 0;
    }
    return 8;
}
AttentionForward op_attention_forward(const OpCase *c, void **t, int64_t element) {
    OpTensor tensors[OP_TENSORS] = {0};
    attention_forward_tensors(c, tensors);
    AttentionForward a = {.shape = c->attention_forward.shape, .in = attention_rows(c, t, element, false), .out = t[6]};
    a.shape.first = tensors[3].count > 0 ? t[3] : NULL;
    a.shape.key_lengths = tensors[4].count > 0 ? t[4] : NULL;
    a.shape.slopes = tensors[5].count > 0 ? t[5] : NULL;
    a.lse = tensors[7].count > 0 ? t[7] : NULL;
    return a;
}
// What lies in a cache behind the keys of a sequence is nobody's, and may be anything.
static void attention_forward_prepare(const OpCase *c, double **t) {
    AttentionForward a = op_attention_forward(c, (void **)t, sizeof(double));
    HeadStrides stride = a.in.k_stride;
    for (int64_t b = 0; b < a.shape.batch && c->apart; b++) {
        int64_t keys = a.shape.key_lengths != NULL ? a.shape.key_lengths[b] : a.shape.keys;
        for (int64_t i = keys * stride.token; i < stride.sequence; i++) {
            t[1][b * stride.sequence + i] = t[2][b * stride.sequence + i] = NAN;
        }
    }
}
static void attention_forward_run(Device *device, const OpCase *c, void **t) {
    AttentionForward a = op_attention_forward(c, t, data_type_bytes(device->type));
    device->op->attention_forward(device, &a);
}

static int attention_backward_tensors(const OpCase *c, OpTensor *t) {
    attention_forward_tensors(c, t);
    t[6].role = t[7].role = OP_INPUT;
    t[8] = (OpTensor){.name = "dout", OP_INPUT, OP_COMPUTE, t[6].count};
    attention_rows_tensors(c, OP_OUTPUT, true, t + 9);
    return 12;
}
AttentionBackward op_attention_backward(const OpCase *c, void **t, int64_t element) {
    AttentionForward a = op_attention_forward(c, t, element);
    return (AttentionBackward){.shape = a.shape,
                               .in = a.in,
                               .out = t[6],
                               .dout = t[8],
                               .lse = t[7],
                               .gradients = attention_rows(c, t + 9, element, true),
                               .any_order = c->loose};
}
static void attention_backward_run(Device *device, const OpCase *c, void **t) {
    AttentionBackward a = op_attention_backward(c, t, data_type_bytes(device->type));
    device->op->attention_backward(device, &a);
}
static void attention_backward_prepare(const OpCase *c, double **t) {
    attention_forward_prepare(c, t);
    reference64_attention_forward(c, t);
}
static long double attention_objective(const OpCase *c, double **t) {
    reference64_attention_forward(c, t);
    const AttentionShape *s = &c->attention_backward.shape;
    long double sum = 0;
    for (int64_t i = 0; i < s->batch * s->queries * s->heads * s->head_width; i++) {
        sum += (long double)t[8][i] * t[6][i];
    }
    return sum;
}

static int attention_merge_tensors(const OpCase *c, OpTensor *t) {
    const AttentionMerge *a = &c->attention_merge;
    int64_t rows = a->batch * a->queries * a->heads;
    t[0] = (OpTensor){.name = "other", OP_INPUT, OP_COMPUTE, rows * a->head_width};
    t[1] = (OpTensor){.name = "other_lse", OP_INPUT, OP_FLOAT, rows, .deviation = 4};
    t[2] = (OpTensor){.name = "out", OP_UPDATE, OP_FLOAT, rows * a->head_width};
    t[3] = (OpTensor){.name = "lse", OP_UPDATE, OP_FLOAT, rows, .deviation = 4};
    return 4;
}
// Every fifth query has seen nothing on one side, or on both.
static void attention_merge_prepare(const OpCase *c, double **t) {
    const AttentionMerge *a = &c->attention_merge;
    for (int64_t row = 0; row < a->batch * a->queries * a->heads; row++) {
        int64_t h = row % a->heads, query = row / a->heads % a->queries, b = row / a->heads / a->queries;
        int64_t at = (b * a->heads + h) * a->queries + query;
        for (int side = 0; side < 2; side++) {
            if (row % 5 == side || row % 15 == 2) {
                t[2 * side + 1][at] = -INFINITY;
                memset(t[2 * side] + row * a->head_width, 0, (size_t)a->head_width * sizeof **t);
            }
        }
    }
}
static void attention_merge_run(Device *device, const OpCase *c, void **t) {
    AttentionMerge a = c->attention_merge;
    a.other = t[0], a.other_lse = t[1], a.out = t[2], a.lse = t[3];
    device->op->attention_merge(device, &a);
}

// ---- Rows

static int norm_forward_tensors(const OpCase *c, OpTensor *t) {
    const NormForward *a = &c->norm_forward;
    bool layer = a->kind == NORM_LAYER;
    t[0] = (OpTensor){.name = "x", OP_INPUT, OP_COMPUTE, a->rows * a->width};
    t[1] = (OpTensor){.name = "weight", OP_INPUT, OP_COMPUTE, a->width};
    t[2] = (OpTensor){.name = "bias", OP_INPUT, OP_COMPUTE, c->bare ? 0 : a->width};
    t[3] = (OpTensor){.name = "y", OP_OUTPUT, OP_COMPUTE, a->rows * a->width};
    t[4] = (OpTensor){.name = "mean", OP_OUTPUT, OP_FLOAT, layer ? a->rows : 0};
    t[5] = (OpTensor){.name = "rstd", OP_OUTPUT, OP_FLOAT, a->rows};
    t[6] = (OpTensor){.name = "add", OP_INPUT, OP_COMPUTE, a->add != NULL ? a->rows * a->width : 0};
    t[7] = (OpTensor){.name = "sum", OP_OUTPUT, OP_COMPUTE, t[6].count};
    return 8;
}
static void norm_forward_run(Device *device, const OpCase *c, void **t) {
    NormForward a = c->norm_forward;
    a.x = t[0], a.weight = t[1], a.bias = t[2], a.y = t[3], a.mean = t[4], a.rstd = t[5], a.add = t[6], a.sum = t[7];
    device->op->norm_forward(device, &a);
}

static int norm_backward_tensors(const OpCase *c, OpTensor *t) {
    const NormBackward *a = &c->norm_backward;
    t[0] = (OpTensor){.name = "dy", OP_INPUT, OP_COMPUTE, a->rows * a->width};
    t[1] = (OpTensor){.name = "x", OP_INPUT, OP_COMPUTE, a->rows * a->width};
    t[2] = (OpTensor){.name = "weight", OP_INPUT, OP_COMPUTE, a->width};
    t[3] = (OpTensor){.name = "mean", OP_INPUT, OP_FLOAT, a->kind == NORM_LAYER ? a->rows : 0};
    t[4] = (OpTensor){.name = "rstd", OP_INPUT, OP_FLOAT, a->rows};
    t[5] = (OpTensor){.name = "dx", a->accumulate ? OP_UPDATE : OP_OUTPUT, OP_COMPUTE, a->rows * a->width};
    t[6] = (OpTensor){.name = "dweight", OP_UPDATE, OP_FLOAT, c->frozen ? 0 : a->width};
    t[7] = (OpTensor){.name = "dbias", OP_UPDATE, OP_FLOAT, c->bare ? 0 : a->width};
    return 8;
}
static void norm_backward_run(Device *device, const OpCase *c, void **t) {
    NormBackward a = c->norm_backward;
    a.dy = t[0], a.x = t[1], a.weight = t[2], a.mean = t[3], a.rstd = t[4], a.dx = t[5], a.dweight = t[6], a.dbias = t[7];
    device->op->norm_backward(device, &a);
}
// The forward formula on the tensors of a backward case: y into `y`, the statistics where the case has them.
static void norm_forward_of(const OpCase *c, double **t, double *y) {
    const NormBackward *a = &c->norm_backward;
    OpCase forward = {.bare = true, .norm_forward = {a->kind, a->rows, a->width, 1e-5f}};
    double *tensors[] = {t[1], t[2], NULL, y, t[3], t[4], NULL, NULL};
    reference64_norm_forward(&forward, tensors);
}
static void norm_backward_prepare(const OpCase *c, double **t) {
    double *y = memory_new((size_t)(c->norm_backward.rows * c->norm_backward.width) + 1, sizeof *y);
    norm_forward_of(c, t, y);
    free(y);
}
static long double norm_objective(const OpCase *c, double **t) {
    int64_t count = c->norm_backward.rows * c->norm_backward.width;
    double *y = memory_new((size_t)count + 1, sizeof *y);
    long double sum = 0;
    norm_forward_of(c, t, y);
    for (int64_t i = 0; i < count; i++) {
        sum += (long double)t[0][i] * y[i];
    }
    free(y);
    return sum;
}

static int rotary_tensors(const OpCase *c, OpTensor *t) {
    const Rotary *a = &c->rotary;
    enum { POSITIONS = 11 };
    t[0] = (OpTensor){.name = "positions", OP_INPUT, OP_INT32, a->rows, OP_INDEX, POSITIONS};
    t[1] = (OpTensor){.name = "cos_sin", OP_INPUT, OP_FLOAT, POSITIONS * a->rotary_width};
    t[2] = (OpTensor){.name = "x", OP_UPDATE, OP_COMPUTE, a->rows * a->row_stride};
    return 3;
}
static void rotary_run(Device *device, const OpCase *c, void **t) {
    Rotary a = c->rotary;
    a.positions = t[0], a.cos_sin = t[1], a.x = t[2];
    device->op->rotary(device, &a);
}

static int activation_forward_tensors(const OpCase *c, OpTensor *t) {
    t[0] = (OpTensor){.name = "x", OP_INPUT, OP_COMPUTE, c->activation_forward.count, .deviation = 2};
    t[1] = (OpTensor){.name = "y", OP_OUTPUT, OP_COMPUTE, c->activation_forward.count};
    return 2;
}
static void activation_forward_run(Device *device, const OpCase *c, void **t) {
    ActivationForward a = c->activation_forward;
    a.x = t[0], a.y = t[1];
    device->op->activation_forward(device, &a);
}

static int gated_forward_tensors(const OpCase *c, OpTensor *t) {
    const GatedForward *a = &c->gated_forward;
    t[0] = (OpTensor){.name = "pre", OP_INPUT, OP_COMPUTE, a->rows * 2 * a->width, .deviation = 2};
    t[1] = (OpTensor){.name = "y", OP_OUTPUT, OP_COMPUTE, a->rows * a->width};
    return 2;
}
static void gated_forward_run(Device *device, const OpCase *c, void **t) {
    GatedForward a = c->gated_forward;
    a.pre = t[0], a.y = t[1];
    device->op->gated_forward(device, &a);
}

static int gated_backward_tensors(const OpCase *c, OpTensor *t) {
    const GatedBackward *a = &c->gated_backward;
    t[0] = (OpTensor){.name = "dy", OP_INPUT, OP_COMPUTE, a->rows * a->width};
    t[1] = (OpTensor){.name = "pre", OP_INPUT, OP_COMPUTE, a->rows * 2 * a->width, .deviation = 2};
    t[2] = (OpTensor){.name = "dpre", OP_OUTPUT, OP_COMPUTE, a->rows * 2 * a->width};
    return 3;
}
static void gated_backward_run(Device *device, const OpCase *c, void **t) {
    GatedBackward a = c->gated_backward;
    a.dy = t[0], a.pre = t[1], a.dpre = t[2];
    device->op->gated_backward(device, &a);
}
static long double gated_objective(const OpCase *c, double **t) {
    const GatedBackward *a = &c->gated_backward;
    OpCase forward = {.gated_forward = {a->activation, a->rows, a->width}};
    double *y = memory_new((size_t)(a->rows * a->width) + 1, sizeof *y), *tensors[] = {t[1], y};
    long double sum = 0;
    reference64_gated_forward(&forward, tensors);
    for (int64_t i = 0; i < a->rows * a->width; i++) {
        sum += (long double)t[0][i] * y[i];
    }
    free(y);
    return sum;
}

static int embedding_forward_tensors(const OpCase *c, OpTensor *t) {
    const EmbeddingForward *a = &c->embedding_forward;
    t[0] = (OpTensor){
        .name = "tokens", OP_INPUT, OP_INT32, a->rows, OP_INDEX, a->tokens_most > 0 ? a->tokens_most : a->vocabulary};
    t[1] = (OpTensor){.name = "positions", OP_INPUT, OP_INT32, c->bare ? 0 : a->rows, OP_INDEX, a->positions_most};
    t[2] = (OpTensor){.name = "token_table", OP_INPUT, OP_COMPUTE, a->vocabulary * a->width};
    t[3] = (OpTensor){.name = "position_table", OP_INPUT, OP_COMPUTE, c->bare ? 0 : a->positions_most * a->width};
    t[4] = (OpTensor){.name = "y", OP_OUTPUT, OP_COMPUTE, a->rows * a->width};
    return 5;
}
static void embedding_forward_run(Device *device, const OpCase *c, void **t) {
    EmbeddingForward a = c->embedding_forward;
    a.tokens = t[0], a.positions = t[1], a.token_table = t[2], a.position_table = t[3], a.y = t[4];
    device->op->embedding_forward(device, &a);
}

static int embedding_backward_tensors(const OpCase *c, OpTensor *t) {
    const EmbeddingBackward *a = &c->embedding_backward;
    t[0] = (OpTensor){
        .name = "tokens", OP_INPUT, OP_INT32, a->rows, OP_INDEX, a->tokens_most > 0 ? a->tokens_most : a->vocabulary};
    t[1] = (OpTensor){.name = "positions", OP_INPUT, OP_INT32, c->bare ? 0 : a->rows, OP_INDEX, a->positions_most};
    t[2] = (OpTensor){.name = "dy", OP_INPUT, OP_COMPUTE, a->rows * a->width};
    t[3] = (OpTensor){.name = "dtoken_table", OP_UPDATE, OP_FLOAT, c->frozen ? 0 : a->vocabulary * a->width};
    t[4] = (OpTensor){.name = "dposition_table", OP_UPDATE, OP_FLOAT, c->bare ? 0 : a->positions_most * a->width};
    return 5;
}
static void embedding_backward_run(Device *device, const OpCase *c, void **t) {
    EmbeddingBackward a = c->embedding_backward;
    a.tokens = t[0], a.positions = t[1], a.dy = t[2], a.dtoken_table = t[3], a.dposition_table = t[4];
    device->op->embedding_backward(device, &a);
}
static long double embedding_objective(const OpCase *c, double **t) {
    // The tables of the forward pass stand where the backward pass has their gradients.
    const EmbeddingBackward *a = &c->embedding_backward;
    OpCase forward = {.bare = c->bare,
                      .embedding_forward = {.rows = a->rows,
                                            .width = a->width,
                                            .vocabulary = a->vocabulary,
                                            .scale = a->scale,
                                            .first = a->first,
                                            .tokens_most = a->tokens_most}};
    double *y = memory_new((size_t)(a->rows * a->width) + 1, sizeof *y);
    double *none = c->frozen ? memory_zeroed((size_t)(a->vocabulary * a->width) + 1, sizeof *none) : NULL;
    double *tensors[] = {t[0], t[1], c->frozen ? none : t[3], t[4], y};
    long double sum = 0;
    reference64_embedding_forward(&forward, tensors);
    for (int64_t i = 0; i < a->rows * a->width; i++) {
        sum += (long double)t[2][i] * y[i];
    }
    free(none);
    free(y);
    return sum;
}

static int dropout_tensors(const OpCase *c, OpTensor *t) {
    t[0] = (OpTensor){.name = "x", OP_UPDATE, OP_COMPUTE, c->dropout.count};
    return 1;
}
static void dropout_run(Device *device, const OpCase *c, void **t) {
    Dropout a = c->dropout;
    a.x = t[0];
    device->op->dropout(device, &a);
}

// ---- Parameters

int op_segments(int64_t count, UpdateSegment *out) {
    int64_t first = (count + 1) / 2, next = (first + 3) / 4 * 4, second = count - next - 4;
    out[0] = (UpdateSegment){.weight = second > 0 ? (second + 3) / 4 * 4 + 8 : 4,
                             .gradient = 12,
                             .count = first,
                             .rate_scale = 1,
                             .weight_decay = 0.1f};
    out[1] = (UpdateSegment){
        .weight = 4, .gradient = next + 16, .state = next + 4, .count = second, .random = 1ull << 40, .rate_scale = 0.3f};
    return second > 0 ? 2 : 1;
}
StepControl op_control(const OptimizerUpdate *a) {
    double updates = 1 + (double)(a->count % 7);
    return (StepControl){.updates = (int64_t)updates,
                         .learning_rate = 1e-2f,
                         .grad_scale = 0.7f,
                         .correction1 = (float)(1 / (1 - pow((double)a->beta1, updates))),
                         .correction2 = (float)(1 / (1 - pow((double)a->beta2, updates)))};
}
static int optimizer_update_tensors(const OpCase *c, OpTensor *t) {
    const OptimizerUpdate *a = &c->optimizer_update;
    t[0] = (OpTensor){.name = "grads", OP_INPUT, OP_FLOAT, a->count + OP_SEGMENTS_ROOM};
    t[1] = (OpTensor){.name = "masters", OP_UPDATE, OP_FLOAT, c->bare ? 0 : a->count};
    t[2] = (OpTensor){.name = "weights", OP_UPDATE, OP_COMPUTE, a->count + OP_SEGMENTS_ROOM};
    t[3] = (OpTensor){.name = "moment1", OP_UPDATE, OP_FLOAT, a->count, .deviation = 0.1};
    t[4] = (OpTensor){.name = "moment2", OP_UPDATE, OP_FLOAT, a->kind == OPTIMIZER_ADAMW ? a->count : 0, OP_POSITIVE};
    return 5;
}
static void optimizer_update_run(Device *device, const OpCase *c, void **t) {
    UpdateSegment segments[2];
    OptimizerUpdate a = c->optimizer_update;
    StepControl control = op_control(&a);
    void *memory[2];
    a.segment_count = op_segments(a.count, segments);
    size_t bytes[2] = {(size_t)a.segment_count * sizeof *segments, sizeof control};
    for (int i = 0; i < 2; i++) {
        CHECK_OK(device_allocate(device, bytes[i], &memory[i]));
        device_upload(device, memory[i], i == 0 ? (const void *)segments : &control, bytes[i]);
    }
    a.segments = memory[0], a.control = memory[1];
    a.grads = t[0], a.masters = t[1], a.weights = t[2], a.moment1 = t[3], a.moment2 = t[4];
    device->op->optimizer_update(device, &a);
    CHECK_OK(device_finish(device));
    for (int i = 0; i < 2; i++) {
        device_release(device, memory[i], bytes[i]);
    }
}

static int add_tensors(const OpCase *c, OpTensor *t) {
    t[0] = (OpTensor){.name = "x", OP_INPUT, OP_COMPUTE, c->add};
    t[1] = (OpTensor){.name = "y", OP_UPDATE, OP_COMPUTE, c->add};
    return 2;
}
static void add_run(Device *device, const OpCase *c, void **t) {
    device->op->add(device, c->add, t[0], t[1]);
}

static int accumulate_tensors(const OpCase *c, OpTensor *t) {
    t[0] = (OpTensor){.name = "x", OP_INPUT, OP_COMPUTE, c->accumulate};
    t[1] = (OpTensor){.name = "y", OP_UPDATE, OP_FLOAT, c->accumulate};
    return 2;
}
static void accumulate_run(Device *device, const OpCase *c, void **t) {
    device->op->accumulate(device, c->accumulate, t[0], t[1]);
}

static int scale_tensors(const OpCase *c, OpTensor *t) {
    t[0] = (OpTensor){.name = "x", OP_UPDATE, OP_FLOAT, c->scale};
    return 1;
}
static void scale_run(Device *device, const OpCase *c, void **t) {
    device->op->scale(device, c->scale, op_scale, t[0]);
}

static OpType element_type(DataType type) {
    return type == TYPE_FP32 ? OP_FLOAT : type == TYPE_BF16 ? OP_BF16 : OP_FP16;
}
static int convert_tensors(const OpCase *c, OpTensor *t) {
    const Convert *a = &c->convert;
    t[0] = (OpTensor){.name = "from", OP_INPUT, element_type(a->from_type), a->count};
    t[1] = (OpTensor){.name = "to", OP_OUTPUT, element_type(a->to_type), a->count};
    return 2;
}
static void convert_run(Device *device, const OpCase *c, void **t) {
    Convert a = c->convert;
    a.from = t[0], a.to = t[1];
    device->op->convert(device, &a);
}

static int copy_rows_tensors(const OpCase *c, OpTensor *t) {
    const CopyRows *a = &c->copy_rows;
    t[0] = (OpTensor){.name = "from", OP_INPUT, OP_FLOAT, a->rows * a->from_stride / 4};
    t[1] = (OpTensor){.name = "to", OP_UPDATE, OP_FLOAT, a->rows * a->to_stride / 4};  // what is between rows stays
    return 2;
}
static void copy_rows_run(Device *device, const OpCase *c, void **t) {
    CopyRows a = c->copy_rows;
    a.from = t[0], a.to = t[1];
    device->op->copy_rows(device, &a);
}

static int sum_parts_tensors(const OpCase *c, OpTensor *t) {
    const SumParts *a = &c->sum_parts;
    t[0] = (OpTensor){.name = "x", OP_INPUT, OP_FLOAT, (a->parts - 1) * a->stride + a->count};
    t[1] = (OpTensor){.name = "y", OP_OUTPUT, OP_FLOAT, a->count};
    return 2;
}
static void sum_parts_run(Device *device, const OpCase *c, void **t) {
    SumParts a = c->sum_parts;
    a.x = t[0], a.y = t[1];
    device->op->sum_parts(device, &a);
}

// ---- Kinds and rows

#define KIND(operation, ...)                                                                                                   \
    static const OpKind operation = {.name = #operation,                                                                       \
                                     .tensors = operation##_tensors,                                                           \
                                     .run = operation##_run,                                                                   \
                                     .reference64 = reference64_##operation,                                                   \
                                     .reference32 = reference32_##operation,                                                   \
                                     __VA_ARGS__}
KIND(attention_forward, .prepare = attention_forward_prepare);
KIND(attention_backward, .prepare = attention_backward_prepare, .objective = attention_objective,
     .gradients = {{0, 9}, {1, 10}, {2, 11}});
KIND(attention_merge, .prepare = attention_merge_prepare);
KIND(norm_forward, .alias = {0, 7});
KIND(norm_backward, .prepare = norm_backward_prepare, .objective = norm_objective, .gradients = {{1, 5}, {2, 6}},
     .alias = {0, 5});
KIND(rotary);
KIND(activation_forward, .alias = {0, 1});
KIND(gated_forward);
KIND(gated_backward, .objective = gated_objective, .gradients = {{1, 2}});
KIND(embedding_forward);
KIND(embedding_backward, .objective = embedding_objective, .gradients = {{3, 3}, {4, 4}});
KIND(dropout);
KIND(optimizer_update);
KIND(add);
KIND(accumulate);
KIND(scale);
KIND(convert, .alias = {0, 1});
KIND(copy_rows);
KIND(sum_parts);

// Forward and backward of a shape, with the case's switches in parentheses.
#define ATTENTION_CASE(SWITCHES, ...)                                                                                          \
    {.kind = &attention_forward, UNPACK SWITCHES.attention_forward = {.shape = {__VA_ARGS__}}}, {                              \
        .kind = &attention_backward, UNPACK SWITCHES.attention_backward = {.shape = {__VA_ARGS__} }                            \
    }
#define UNPACK(...) __VA_ARGS__
#define ATTENTION(B, T, H, G, D, ...) ATTENTION_CASE((.bare = false, ), B, T, T, H, G, D, __VA_ARGS__)
// The same of one document a sequence.
#define ATTENTION_WHOLE(B, T, H, G, D, ...) ATTENTION_CASE((.bare = true, ), B, T, T, H, G, D, __VA_ARGS__)
// Queries and keys apart, with documents and without.
#define ATTENTION_APART(B, Q, K, H, G, D, ...) ATTENTION_CASE((.apart = true, ), B, Q, K, H, G, D, __VA_ARGS__)
#define ATTENTION_WHOLE_APART(B, Q, K, H, G, D, ...)                                                                           \
    ATTENTION_CASE((.apart = true, .bare = true, ), B, Q, K, H, G, D, __VA_ARGS__)
// One query a sequence at the end of a cache.
#define DECODE(BARE, B, K, H, G, D, ...)                                                                                       \
    {                                                                                                                          \
        .kind = &attention_forward, .apart = true, .bare = BARE, .attention_forward = {                                        \
            .shape = {B, 1, K, H, G, D, 0.3f, .key_lengths = &with_lengths, __VA_ARGS__}                                       \
        }                                                                                                                      \
    }
#define MERGE(B, T, H, D)                                                                                                      \
    {                                                                                                                          \
        .kind = &attention_merge, .attention_merge = { B, T, H, D }                                                            \
    }
#define NORM_EASY(R, C)                                                                                                        \
    {.kind = &norm_forward, .norm_forward = {NORM_LAYER, R, C, 1e-5f}},                                                        \
        {.kind = &norm_forward, .bare = true, .norm_forward = {NORM_RMS, R, C, 1e-6f}},                                        \
        {.kind = &norm_forward, .norm_forward = {NORM_LAYER, R, C, 1e-5f, .add = &with_add}},                                  \
        {.kind = &norm_forward, .bare = true, .alias = true, .norm_forward = {NORM_RMS, R, C, 1e-6f, .add = &with_add}},       \
        {.kind = &norm_backward, .bare = true, .alias = true, .norm_backward = {NORM_RMS, R, C}}, {                            \
        .kind = &norm_backward, .bare = true, .norm_backward = { NORM_RMS, R, C, .accumulate = true }                          \
    }
#define NORM(R, C)                                                                                                             \
    NORM_EASY(R, C), {.kind = &norm_backward, .norm_backward = {NORM_LAYER, R, C}},                                            \
        {.kind = &norm_backward, .alias = true, .norm_backward = {NORM_LAYER, R, C}}, {                                        \
        .kind = &norm_backward, .norm_backward = { NORM_LAYER, R, C, .accumulate = true }                                      \
    }
#define ROTARY(R, H, D, W)                                                                                                     \
    {.kind = &rotary, .rotary = {R, (H + 3) * D, H, D, W, false, false}},                                                      \
        {.kind = &rotary, .rotary = {R, (H + 3) * D, H, D, W, false, true}},                                                   \
        {.kind = &rotary, .rotary = {R, (H + 3) * D, H, D, W, true, false}}, {                                                 \
        .kind = &rotary, .rotary = { R, (H + 3) * D, H, D, W, true, true }                                                     \
    }
#define ACTIVATION(which, N, R, F)                                                                                             \
    {.kind = &activation_forward, .activation_forward = {which, N}},                                                           \
        {.kind = &activation_forward, .alias = true, .activation_forward = {which, R * F}},                                    \
        {.kind = &gated_forward, .gated_forward = {which, R, F}}, {.kind = &gated_backward, .gated_backward = {which, R, F}},  \
    {                                                                                                                          \
        .kind = &gated_backward, .gated_backward = { which, 67, 131 }                                                          \
    }
// A table of V tokens from `first` on, of `most`.
#define EMBEDDING_CUT(R, C, V, P, FIRST, MOST)                                                                                 \
    {.kind = &embedding_forward, .embedding_forward = {R, C, V, P, .scale = 0.5f, .first = FIRST, .tokens_most = MOST}},       \
        {.kind = &embedding_forward,                                                                                           \
         .bare = true,                                                                                                         \
         .embedding_forward = {R, C, V, .scale = 0.5f, .first = FIRST, .tokens_most = MOST}},                                  \
        {.kind = &embedding_backward, .embedding_backward = {R, C, V, P, .scale = 0.5f, .first = FIRST, .tokens_most = MOST}}, \
    {                                                                                                                          \
        .kind = &embedding_backward, .bare = true, .embedding_backward = {                                                     \
            R,                                                                                                                 \
            C,                                                                                                                 \
            V,                                                                                                                 \
            .scale = 0.5f,                                                                                                     \
            .first = FIRST,                                                                                                    \
            .tokens_most = MOST                                                                                                \
        }                                                                                                                      \
    }
#define EMBEDDING(R, C, V, P, S)                                                                                               \
    {.kind = &embedding_forward, .embedding_forward = {R, C, V, P, .scale = S}},                                               \
        {.kind = &embedding_forward, .bare = true, .embedding_forward = {R, C, V, .scale = S}},                                \
        {.kind = &embedding_backward, .embedding_backward = {R, C, V, P, .scale = S}}, {                                       \
        .kind = &embedding_backward, .bare = true, .embedding_backward = { R, C, V, .scale = S }                               \
    }
#define DROPOUT(N, P, F)                                                                                                       \
    {                                                                                                                          \
        .kind = &dropout, .dropout = { N, P, 0x123456789ABCDEFu, 0xFEDCBA987654321u, F }                                       \
    }
// A number of parameters, masters or not.
#define OPTIMIZER(which, N, BARE)                                                                                              \
    {                                                                                                                          \
        .kind = &optimizer_update, .bare = BARE, .optimizer_update = {                                                         \
            .kind = which,                                                                                                     \
            .count = N,                                                                                                        \
            .beta1 = 0.9f,                                                                                                     \
            .beta2 = 0.95f,                                                                                                    \
            .epsilon = 1e-8f,                                                                                                  \
            .seed = 5                                                                                                          \
        }                                                                                                                      \
    }

#define CONVERT(N)                                                                                                             \
    {.kind = &convert, .convert = {N, TYPE_FP32, TYPE_BF16}}, {.kind = &convert, .convert = {N, TYPE_FP32, TYPE_FP16}},        \
        {.kind = &convert, .convert = {N, TYPE_BF16, TYPE_FP32}}, {.kind = &convert, .convert = {N, TYPE_FP16, TYPE_FP32}},    \
        {.kind = &convert, .alias = true, .convert = {N, TYPE_BF16, TYPE_FP16}},                                               \
        {.kind = &convert, .convert = {N, TYPE_FP16, TYPE_BF16}}, {.kind = &convert, .convert = {N, TYPE_FP32, TYPE_FP32}}, {  \
        .kind = &convert, .alias = true, .convert = { N, TYPE_BF16, TYPE_BF16 }                                                \
    }
#define COPY_ROWS(R, bytes, from, to)                                                                                          \
    {                                                                                                                          \
        .kind = &copy_rows, .copy_rows = { R, bytes, NULL, from, NULL, to }                                                    \
    }

const OpCase op_cases[] = {
    ATTENTION(1, 1, 1, 1, 1, 1.0f),
    ATTENTION(2, 2, 2, 1, 3, 0.5f),
    ATTENTION(1, 17, 3, 3, 5, 0.4f),
    ATTENTION(2, 31, 4, 2, 16, 0.25f, .window = 7),
    ATTENTION(1, 64, 4, 4, 32, 0.1767767f),
    ATTENTION(2, 63, 4, 1, 32, 0.1767767f, .dropout = 0.2f, .seed = 7, .stream = 1ull << 57, .first_sample = 1ull << 40),
    ATTENTION(1, 65, 2, 1, 64, 0.125f, .window = 64),
    ATTENTION(1, 129, 2, 2, 48, 0.144f, .dropout = 0.5f, .seed = 1ull << 63, .stream = 3),
    ATTENTION(1, 200, 3, 1, 64, 0.125f),
    ATTENTION(2, 131, 6, 2, 40, 0.15f, .window = 33, .dropout = 0.1f, .seed = 11),
    ATTENTION(1, 257, 2, 2, 128, 0.0883883f),
    ATTENTION(1, 97, 2, 2, 80, 0.1118f),
    ATTENTION(1, 67, 2, 1, 256, 0.0625f),
    ATTENTION(1, 33, 1, 1, 257, 0.0625f),
    ATTENTION(1, 100, 2, 2, 64, 5.0f),  // scores far apart
    ATTENTION(1, 127, 2, 1, 32, 0.2f, .softcap = 3.0f),
    ATTENTION(1, 65, 4, 2, 64, 0.125f, .slopes = &with_slopes),
    ATTENTION(1, 130, 2, 1, 64, 0.3f, .softcap = 20.0f, .slopes = &with_slopes, .window = 70),
    ATTENTION(2, 66, 4, 2, 96, 0.1f, .softcap = 1.5f, .slopes = &with_slopes, .dropout = 0.3f, .seed = 5),
    ATTENTION(1, 63, 4, 1, 128, 0.0883883f, .window = 1),
    ATTENTION(1, 64, 2, 1, 256, 0.0625f, .dropout = 0.2f, .seed = 3),
    ATTENTION(1, 33, 2, 2, 192, 0.07f),
    ATTENTION(1, 1, 2, 1, 64, 0.125f, .softcap = 30.0f),
    ATTENTION_WHOLE(1, 325, 2, 1, 64, 0.125f),
    ATTENTION_WHOLE(1, 263, 2, 2, 128, 0.0883883f, .softcap = 8.0f),
    ATTENTION_WHOLE(1, 193, 6, 2, 96, 0.1f, .window = 150, .slopes = &with_slopes),
    ATTENTION_WHOLE(1, 257, 2, 1, 256, 0.0625f),  // wide heads
    ATTENTION_WHOLE(2, 127, 2, 2, 192, 0.07f, .softcap = 5.0f),
    ATTENTION_WHOLE(1, 193, 3, 1, 160, 0.08f, .window = 101),
    ATTENTION_WHOLE(1, 129, 4, 2, 248, 0.06f, .slopes = &with_slopes, .window = 128),
    ATTENTION(2, 131, 3, 1, 136, 0.09f),
    ATTENTION(1, 128, 2, 1, 256, 0.0625f, .softcap = 20.0f, .slopes = &with_slopes, .window = 70),
    ATTENTION(1, 65, 2, 2, 160, 0.5f),
    ATTENTION(1, 1, 2, 1, 256, 0.0625f),
    ATTENTION(1, 2, 2, 1, 192, 0.07f, .slopes = &with_slopes),
    ATTENTION(1, 64, 1, 1, 200, 0.07f, .window = 1),
    ATTENTION(0, 5, 2, 1, 8, 1.0f),
    ATTENTION(2, 0, 2, 1, 8, 1.0f),
    DECODE(true, 0, 4, 2, 1, 8),
    DECODE(true, 1, 1, 1, 1, 1),
    DECODE(true, 3, 7, 4, 2, 5),
    DECODE(true, 2, 64, 4, 4, 32),
    DECODE(true, 3, 300, 6, 2, 64),
    DECODE(true, 1, 1030, 2, 1, 128),
    DECODE(true, 2, 129, 4, 2, 64, .window = 31),
    DECODE(true, 1, 200, 12, 1, 96, .softcap = 4.0f),
    DECODE(true, 3, 65, 2, 2, 256, .slopes = &with_slopes),
    DECODE(true, 1, 520, 9, 1, 128, .window = 300, .softcap = 10.0f, .slopes = &with_slopes),
    NORM_EASY(1, 1),  // LayerNorm of one or two elements has hardly a gradient: what is left of g - g is rounding
    NORM_EASY(3, 2),
    NORM(0, 8),
    NORM(4, 3),
    NORM(5, 17),
    NORM(31, 64),
    NORM(67, 131),
    NORM(130, 128),
    NORM(33, 768),
    NORM(700, 48),
    NORM(2, 511),
    NORM(3, 1032),  // a card's rows are held by 32, 64 .. 512 threads, and walked where they are longer
    NORM(29, 2056),
    NORM(3, 4104),
    NORM(2, 8200),
    {.kind = &norm_backward, .frozen = true, .norm_backward = {NORM_LAYER, 67, 131}},  // walked, and held
    {.kind = &norm_backward, .frozen = true, .bare = true, .norm_backward = {NORM_RMS, 67, 131, .accumulate = true}},
    {.kind = &norm_backward, .frozen = true, .norm_backward = {NORM_LAYER, 130, 128, .accumulate = true}},
    {.kind = &norm_backward, .frozen = true, .bare = true, .norm_backward = {NORM_RMS, 33, 768}},
    {.kind = &norm_backward, .frozen = true, .bare = true, .norm_backward = {NORM_LAYER, 2, 8200}},
    NORM_EASY(1, 16392),
    ROTARY(0, 1, 2, 2),
    ROTARY(1, 1, 2, 2),
    ROTARY(5, 3, 6, 4),
    ROTARY(37, 4, 32, 32),
    ROTARY(130, 5, 64, 16),
    ROTARY(9, 2, 80, 38),
    ROTARY(3, 31, 128, 128),
    ROTARY(1031, 1, 16, 16),
    ACTIVATION(ACTIVATION_SILU, 0, 0, 3),
    ACTIVATION(ACTIVATION_NONE, 1, 1, 1),
    ACTIVATION(ACTIVATION_GELU_TANH, 1031, 5, 7),
    ACTIVATION(ACTIVATION_GELU_ERF, 1027, 3, 17),
    ACTIVATION(ACTIVATION_RELU, 19, 33, 2),
    ACTIVATION(ACTIVATION_SILU, 40001, 2, 33),
    ACTIVATION(ACTIVATION_GELU_TANH, 4096, 3, 1024),
    ACTIVATION(ACTIVATION_GELU_ERF, 8191, 17, 64),
    ACTIVATION(ACTIVATION_RELU, 4097, 1, 4104),
    ACTIVATION(ACTIVATION_SILU, 1024, 129, 128),
    ACTIVATION(ACTIVATION_NONE, 2047, 2, 40),
    EMBEDDING(0, 8, 3, 13, 1.0f),
    EMBEDDING(1, 1, 1, 1, 1.0f),
    EMBEDDING(37, 17, 5, 13, 0.5f),
    EMBEDDING(300, 64, 1000, 2, 1.0f),
    EMBEDDING(129, 200, 31, 129, 3.0f),
    EMBEDDING(255, 1, 2, 13, 1.0f),
    EMBEDDING(517, 40, 3, 13, 0.5f),      // tokens that come often
    EMBEDDING(2111, 64, 1031, 13, 1.0f),  // several tiles of a card's sort, two digits
    EMBEDDING(63, 1032, 64, 64, 1.0f),
    EMBEDDING(4096, 8, 512, 513, 1.0f),      // a whole digit and one more; one round of the scan
    EMBEDDING(6145, 8, 1 << 18, 511, 1.0f),  // two whole digits, two rounds
    EMBEDDING(10243, 8, 513, 512, 2.0f),     // six tiles: three rounds
    {.kind = &embedding_backward, .frozen = true, .embedding_backward = {2111, 64, 1031, 700, .scale = 2}},
    {.kind = &embedding_backward, .frozen = true, .bare = true, .embedding_backward = {300, 64, 50, .scale = 1}},
    DROPOUT(0, 0.5f, 0),
    DROPOUT(1, 0.5f, 0),
    DROPOUT(63, 0.1f, 4),
    DROPOUT(1025, 0.25f, (1ull << 34) - 8),
    DROPOUT(40003, 0.9f, 1ull << 50),
    DROPOUT(37, 0.0f, 12),
    OPTIMIZER(OPTIMIZER_ADAMW, 1, false),
    OPTIMIZER(OPTIMIZER_ADAMW, 37, true),
    OPTIMIZER(OPTIMIZER_ADAMW, 1024, false),
    OPTIMIZER(OPTIMIZER_ADAMW, 2049, true),
    OPTIMIZER(OPTIMIZER_ADAMW, 80001, false),
    OPTIMIZER(OPTIMIZER_LION, 37, false),
    OPTIMIZER(OPTIMIZER_LION, 1003, true),
    OPTIMIZER(OPTIMIZER_SGD, 37, true),
    OPTIMIZER(OPTIMIZER_SGD, 1003, false),
    {.kind = &add, .add = 0},
    {.kind = &add, .add = 1},
    {.kind = &add, .add = 17},
    {.kind = &add, .add = 40003},
    {.kind = &accumulate, .accumulate = 0},
    {.kind = &accumulate, .accumulate = 3},
    {.kind = &accumulate, .accumulate = 17},
    {.kind = &accumulate, .accumulate = 40003},
    {.kind = &sum_parts, .sum_parts = {false, 1, 1, 1}},
    {.kind = &sum_parts, .sum_parts = {false, 17, 2, 19}},
    {.kind = &sum_parts, .sum_parts = {false, 3001, 8, 3001}},
    {.kind = &sum_parts, .sum_parts = {false, 70, 7, 100}},
    {.kind = &scale, .scale = 0},
    {.kind = &scale, .scale = 1},
    {.kind = &scale, .scale = 2049},
    CONVERT(0),
    CONVERT(1),
    CONVERT(37),
    CONVERT(4096),
    CONVERT(8191),
    COPY_ROWS(0, 16, 16, 16),
    COPY_ROWS(1, 4, 4, 8),
    COPY_ROWS(7, 16, 16, 48),
    COPY_ROWS(5, 2064, 4096, 2064),
    COPY_ROWS(131, 20, 24, 28),
    COPY_ROWS(3, 0, 16, 4),
    // Sums in any order.
    {.kind = &attention_backward,
     .bare = true,
     .loose = true,
     .attention_backward = {.shape = {1, 325, 325, 2, 1, 64, 0.125f}}},
    {.kind = &attention_backward,
     .bare = true,
     .loose = true,
     .attention_backward = {.shape = {1, 193, 193, 3, 1, 128, 0.0883883f, .window = 150}}},
    {.kind = &attention_backward,
     .bare = true,
     .loose = true,
     .attention_backward = {.shape = {1, 129, 129, 2, 1, 256, 0.0625f}}},
    // Some keys lie before the queries, or behind them; blocks of queries and keys do not lie side by side.
    ATTENTION_APART(1, 1, 1, 1, 1, 1, 1.0f),
    ATTENTION_APART(2, 5, 9, 2, 1, 3, 0.5f, .offset = 4),
    ATTENTION_APART(2, 33, 70, 4, 2, 16, 0.25f, .offset = 37),
    ATTENTION_WHOLE_APART(2, 65, 193, 2, 1, 64, 0.125f, .offset = 128),
    ATTENTION_WHOLE_APART(1, 131, 259, 4, 2, 64, 0.125f, .offset = 77),
    ATTENTION_WHOLE_APART(1, 130, 197, 2, 1, 128, 0.0883883f, .offset = 300),  // all keys are behind all queries
    ATTENTION_WHOLE_APART(1, 70, 67, 2, 2, 64, 0.125f, .offset = 67, .window = 44),
    ATTENTION_WHOLE_APART(2, 150, 101, 2, 1, 64, 0.125f, .offset = -60),  // some queries stand before all keys
    ATTENTION_WHOLE_APART(1, 40, 33, 2, 1, 32, 0.2f, .offset = -64),      // all do
    ATTENTION_WHOLE_APART(1, 75, 66, 2, 1, 128, 0.0883883f, .offset = 300, .window = 100),
    ATTENTION_APART(2, 131, 129, 4, 2, 40, 0.15f, .offset = 3, .window = 50),
    ATTENTION_APART(1, 97, 200, 2, 1, 96, 0.1f, .offset = 120, .softcap = 3.0f, .slopes = &with_slopes),
    ATTENTION_WHOLE_APART(1, 140, 190, 2, 2, 64, 0.125f, .offset = 21, .window = 133, .slopes = &with_slopes),
    ATTENTION_WHOLE_APART(1, 140, 190, 2, 1, 256, 0.0625f, .offset = 90, .softcap = 8.0f),
    ATTENTION_WHOLE_APART(1, 200, 130, 2, 1, 192, 0.07f, .offset = -33),
    ATTENTION_APART(1, 65, 130, 2, 1, 136, 0.09f, .offset = 65),
    ATTENTION_APART(2, 40, 63, 2, 1, 32, 0.2f, .offset = 23, .dropout = 0.3f, .seed = 5, .key_first = 100, .length = 300),
    ATTENTION_WHOLE_APART(1, 70, 66, 4, 2, 64, 0.125f, .offset = -5, .dropout = 0.2f, .seed = 6, .key_first = 64,
                          .length = 130),
    ATTENTION_WHOLE_APART(1, 90, 90, 2, 1, 257, 0.0625f, .offset = 31, .window = 64),
    ATTENTION_APART(1, 3, 0, 2, 1, 8, 1.0f),
    ATTENTION_APART(1, 0, 3, 2, 1, 8, 1.0f),
    // A cache, sequences of several lengths: a part of a prompt that ends there.
    ATTENTION_WHOLE_APART(4, 2, 70, 2, 1, 5, 0.4f, .key_lengths = &with_lengths),
    ATTENTION_WHOLE_APART(5, 70, 300, 4, 2, 64, 0.125f, .key_lengths = &with_lengths),
    ATTENTION_WHOLE_APART(3, 33, 190, 2, 1, 128, 0.0883883f, .key_lengths = &with_lengths, .window = 40),
    ATTENTION_APART(3, 40, 90, 2, 2, 96, 0.1f, .key_lengths = &with_lengths, .softcap = 5.0f, .slopes = &with_slopes),
    MERGE(0, 3, 2, 8),
    MERGE(1, 1, 1, 1),
    MERGE(2, 7, 3, 5),
    MERGE(2, 33, 4, 64),
    MERGE(1, 5, 2, 256),
    // One query, which also tells its log-sum-exp and where documents start.
    DECODE(false, 3, 300, 6, 2, 64, .window = 90),
    DECODE(false, 2, 41, 4, 1, 5, .softcap = 3.0f),
    DECODE(false, 1, 1030, 2, 1, 128),
    // Heads and a vocabulary that are cut over ranks.
    ATTENTION(2, 63, 4, 1, 32, 0.1767767f, .dropout = 0.2f, .seed = 7, .first_sample = 3, .first_head = 8, .all_heads = 12),
    ATTENTION(2, 40, 2, 1, 24, 0.2f, .dropout = 0.3f, .seed = 9, .first_sample = 5, .first_head = 1, .all_heads = 3),
    EMBEDDING_CUT(300, 64, 400, 13, 300, 1000),
    EMBEDDING_CUT(2111, 40, 500, 13, 0, 1031),
    EMBEDDING_CUT(129, 17, 5, 129, 8, 31),
    EMBEDDING_CUT(4096, 8, 3, 513, 509, 512),
    // Several tiles for each multiprocessor: what a block carries from one to the next.
    {.kind = &attention_forward, .attention_forward = {.shape = {2, 270, 270, 4, 2, 64, 0.125f}}},
    {.kind = &attention_forward,
     .attention_forward = {.shape = {1, 260, 260, 8, 2, 128, 0.0883883f, .window = 140, .softcap = 8.0f,
                                     .slopes = &with_slopes}}},
    {.kind = &attention_forward,
     .bare = true,
     .apart = true,
     .attention_forward = {.shape = {2, 150, 101, 8, 1, 64, 0.125f, .offset = -60}}},
    // Several blocks of keys for each block of threads that stays.
    ATTENTION(4, 140, 2, 2, 64, 0.125f),
    ATTENTION(4, 70, 4, 2, 128, 0.0883883f),
    ATTENTION(7, 20, 2, 2, 128, 0.0883883f, .softcap = 8.0f),
    ATTENTION(3, 70, 2, 2, 192, 0.07f),
    {.kind = &attention_backward,
     .bare = true,
     .loose = true,
     .attention_backward = {.shape = {4, 130, 130, 2, 2, 64, 0.125f}}},
    // Whole blocks of queries that stand before all keys, so that no block of keys meets them.
    ATTENTION_WHOLE_APART(1, 300, 70, 2, 1, 64, 0.125f, .offset = -130),
    ATTENTION_WHOLE_APART(2, 200, 130, 2, 2, 128, 0.0883883f, .offset = -70),
    ATTENTION_WHOLE_APART(1, 140, 70, 2, 1, 256, 0.0625f, .offset = -66),
};
const int op_case_count = sizeof op_cases / sizeof *op_cases;
