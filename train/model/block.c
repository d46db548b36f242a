// The decoder block: see block.h.
//
// Shapes of one layer:  x[R,C] -> norm1[R,C] -> qkv[R,(H+2G)D] -> attention[R,H D] -> middle[R,C] = x + attention Wout
//                       -> norm2[R,C] -> pre[R,F or 2F] -> inner[R,F] -> output[R,C] = middle + inner Wdown
// Backward goes through the same list from its end, each branch in two steps: gradients of inputs, which lead on to the layer
// before, and gradients of weights, which nothing waits for. It reads the stream (x, middle), qkv, attention and pre as they
// were kept, and norm1, norm2, inner either kept or computed again by the same operations from the same inputs, so that
// gradients are the same bits.
#include "train/model/block.h"

#include "train/model/travel.h"

#include "core/philox.h"

#include <math.h>

// ---- Small steps

void block_copy(const Pass *pass, const void *from, void *to) {
    Device *device = pass->model->device;
    int64_t row = pass->model->here.width * data_type_bytes(device->type);
    device->op->copy_rows(device, &(CopyRows){pass->own_rows, row, from, row, to, row});
}

void block_drop(const Pass *pass, int64_t layer, DropoutSite site, void *x) {
    const ModelConfig *config = &pass->model->here;
    Device *device = pass->model->device;
    uint64_t which = (uint64_t)layer * SITE_COUNT + site, width = (uint64_t)config->width,
             bytes = (uint64_t)data_type_bytes(device->type);
    for (int64_t row = 0, count; row < pass->own_rows && pass->dropout > 0; row += count) {
        uint64_t first = context_row(pass, pass->own_first + row, &count);  // in the order of one rank that has everything
        count = count < pass->own_rows - row ? count : pass->own_rows - row;
        device->op->dropout(device, &(Dropout){
                                        .count = count * config->width,
                                        .probability = pass->dropout,
                                        .seed = pass->seed,
                                        .stream = philox_stream(RANDOM_DROPOUT, which),
                                        .first = first * width,
                                        .x = (char *)x + (uint64_t)row * width * bytes,
                                    });
    }
}

void block_norm(const Model *model, int64_t rows, int32_t weight, int32_t bias, const void *x, void *y, float *mean,
                float *rstd) {
    model->device->op->norm_forward(model->device, &(NormForward){
                                                       .kind = (NormKind)model->here.norm,
                                                       .rows = rows,
                                                       .width = model->here.width,
                                                       .epsilon = (float)model->here.norm_epsilon,
                                                       .x = x,
                                                       .weight = weights_row(&model->weights, weight),
                                                       .bias = weights_row(&model->weights, bias),
                                                       .y = y,
                                                       .mean = mean,
                                                       .rstd = rstd,
                                                   });
}

void block_norm_backward(const Pass *pass, int32_t weight, int32_t bias, const void *x, const float *mean, const float *rstd,
                         const void *dy, bool accumulate) {
    const Model *model = pass->model;
    model->device->op->norm_backward(model->device, &(NormBackward){
                                                        .kind = (NormKind)model->here.norm,
                                                        .rows = pass->own_rows,
                                                        .width = model->here.width,
                                                        .dy = dy,
                                                        .x = x,
                                                        .weight = weights_row(&model->weights, weight),
                                                        .mean = mean,
                                                        .rstd = rstd,
                                                        .accumulate = accumulate,
                                                        .dx = pass->workspace->dstream,
                                                        .dweight = weights_gradient(&model->weights, weight),
                                                        .dbias = weights_gradient(&model->weights, bias),
                                                    });
}

// The door through which every projection of a layer goes: y = x W^T + bias (+ residual), its input's gradient (through the
// activation below it, where `pre` is given), its weights'.
static MatmulForward projection(const Pass *pass, int32_t weight, int32_t bias, const void *x, void *y) {
    const ModelWeights *weights = &pass->model->weights;
    const int64_t *shape = weights->placement.places[weight].shape;
    return (MatmulForward){.rows = pass->rows,
                           .in = shape[1],
                           .out = shape[0],
                           .x = x,
                           .w = weights_row(weights, weight),
                           .bias = weights_row(weights, bias),
                           .y = y};
}

// Where row `row` of a tensor [R,columns] begins; NULL stays NULL.
static const void *row_at(const Pass *pass, const void *x, int64_t row, int64_t columns) {
    return x != NULL ? (const char *)x + row * columns * data_type_bytes(pass->model->device->type) : NULL;
}

// Some of a product's rows.
static void project(const Pass *pass, MatmulForward product, Range rows) {
    int64_t columns = product.gated ? product.out / 2 : product.out;
    product.rows = rows.end - rows.begin;
    product.x = row_at(pass, product.x, rows.begin, product.in);
    product.residual = row_at(pass, product.residual, rows.begin, columns);
    product.y = (void *)(uintptr_t)row_at(pass, product.y, rows.begin, columns);
    product.pre = (void *)(uintptr_t)row_at(pass, product.pre, rows.begin, product.out);
    pass->model->device->op->matmul_forward(pass->model->device, &product);
}

// The product of all ranks' rows of the stream, of which `own` are here: block after block, as they come.
static void project_gathered(const Pass *pass, MatmulForward product, const void *own) {
    Travel travel = travel_gather(pass, own, pass->workspace->whole);
    product.x = travel.rows;
    for (Range rows; travel_gathered(&travel, &rows);) {
        project(pass, product, rows);
    }
}

static MatmulBackwardInput input_gradient(const Pass *pass, int32_t weight, const void *dy, void *dx) {
    const ModelWeights *weights = &pass->model->weights;
    const int64_t *shape = weights->placement.places[weight].shape;
    return (MatmulBackwardInput){.in = shape[1], .out = shape[0], .dy = dy, .w = weights_row(weights, weight), .dx = dx};
}

static void project_inputs(const Pass *pass, MatmulBackwardInput product, Range rows) {
    int64_t columns = product.gated ? 2 * product.in : product.in;
    product.rows = rows.end - rows.begin;
    product.dy = row_at(pass, product.dy, rows.begin, product.out);
    product.pre = row_at(pass, product.pre, rows.begin, columns);
    product.dx = (void *)(uintptr_t)row_at(pass, product.dx, rows.begin, columns);
    pass->model->device->op->matmul_backward_input(pass->model->device, &product);
}

// Of a branch's output gradient, whose rows are on their way.
static void project_inputs_gathered(const Pass *pass, MatmulBackwardInput product, Travel *dbranch) {
    product.dy = dbranch->rows;
    for (Range rows; travel_gathered(dbranch, &rows);) {
        project_inputs(pass, product, rows);
    }
}

// Into the gradient of a norm's output, of which each rank has a part: under way afterwards.
static Travel project_inputs_summed(const Pass *pass, int32_t weight, const void *dy) {
    Travel sums = travel_sum(pass, travel_is_cut(pass) ? pass->workspace->partial : pass->workspace->dnarrow);
    for (Range rows; travel_to_sum(&sums, &rows);) {
        project_inputs(pass, input_gradient(pass, weight, dy, sums.rows), rows);
    }
    return sums;
}

static void project_weights(const Pass *pass, int32_t weight, int32_t bias, const void *x, const void *dy) {
    const ModelWeights *weights = &pass->model->weights;
    const int64_t *shape = weights->placement.places[weight].shape;
    weights->device->op->matmul_backward_weight(weights->device, &(MatmulBackwardWeight){
                                                                     .rows = pass->rows,
                                                                     .in = shape[1],
                                                                     .out = shape[0],
                                                                     .dy = dy,
                                                                     .x = x,
                                                                     .dw = weights_gradient(weights, weight),
                                                                     .dbias = weights_gradient(weights, bias),
                                                                 });
}

static void rotate(const Pass *pass, void *qkv, bool inverse) {
    const Model *model = pass->model;
    const ModelConfig *config = &model->here;
    if (config->position != POSITION_ROTARY) {
        return;
    }
    model->device->op->rotary(model->device, &(Rotary){
                                                 .rows = pass->rows,
                                                 .row_stride = model_qkv_width(config),
                                                 .heads = (int32_t)(config->heads + config->groups),
                                                 .head_width = (int32_t)config->head_width,
                                                 .rotary_width = (int32_t)model_rotary_width(config),
                                                 .interleaved = config->rotary_interleaved,
                                                 .inverse = inverse,
                                                 .positions = pass->batch.positions,
                                                 .cos_sin = pass->workspace->cos_sin,
                                                 .x = qkv,
                                             });
}

// ---- Attention

AttentionShape block_attention_shape(const Pass *pass, int64_t layer) {
    const ModelConfig *config = &pass->model->here;
    return (AttentionShape){
        .batch = pass->batch.sequences,
        .queries = pass->batch.length,
        .keys = pass->batch.length,
        .heads = (int32_t)config->heads,
        .groups = (int32_t)config->groups,
        .head_width = (int32_t)config->head_width,
        .scale = (float)(1.0 / sqrt((double)config->head_width)),
        .first = pass->batch.first,
        .dropout = pass->dropout,
        .seed = pass->seed,
        .stream = philox_stream(RANDOM_DROPOUT, (uint64_t)layer * SITE_COUNT + SITE_ATTENTION),
        .first_sample = pass->batch.first_sample,
        .first_head = (int32_t)(config->heads * pass->model->options.tensor.rank),
        .all_heads = (int32_t)pass->model->config.heads,
    };
}

// Where a sequence's part of a layer's cache starts, in elements.
static int64_t cache_at(const Pass *pass, int64_t layer, int64_t sequence) {
    const KeyCache *cache = pass->cache;
    int64_t row = pass->model->here.groups * pass->model->here.head_width;
    int64_t each = (cache->batch * cache->capacity * row + PARAM_ALIGN - 1) / PARAM_ALIGN * PARAM_ALIGN;
    int64_t here = stages_layer_here(&pass->model->options.stages, pass->model->config.layers, layer);
    return here * each + sequence * cache->capacity * row;
}

// Appends the keys and values of this pass to the cache. True where they are all that it holds.
static bool remember(const Pass *pass, int64_t layer, const char *qkv) {
    const ModelConfig *config = &pass->model->here;
    const KeyCache *cache = pass->cache;
    Device *device = pass->model->device;
    int64_t element = data_type_bytes(device->type), row = config->groups * config->head_width * element;
    int64_t stride = model_qkv_width(config) * element, length = pass->batch.length;
    const char *keys = qkv + model_attention_width(config) * element;
    bool fresh = true;
    for (int64_t b = 0; b < pass->batch.sequences; b++) {
        int64_t held = cache->lengths[pass->first_cached + b];
        int64_t at = cache_at(pass, layer, pass->first_cached + b) * element + held * row;
        const char *from = keys + b * length * stride;
        device->op->copy_rows(device, &(CopyRows){length, row, from, stride, cache->keys + at, row});
        device->op->copy_rows(device, &(CopyRows){length, row, from + row, stride, cache->values + at, row});
        fresh &= held == 0;
    }
    return fresh;
}

// Over the keys of this pass, or where a cache holds earlier ones, over all that it holds, or over those of all ranks that
// share the sequences.
static void attend(const Pass *pass, int64_t layer, const LayerActivations *at) {
    Device *device = pass->model->device;
    const KeyCache *cache = pass->cache;
    AttentionShape shape = block_attention_shape(pass, layer);
    if (context_is_cut(pass)) {
        context_attend(pass, &shape, at);
        return;
    }
    AttentionRows rows = attention_packed(&shape, device->type, at->qkv);
    if (cache != NULL && !remember(pass, layer, at->qkv)) {
        int64_t start = cache_at(pass, layer, pass->first_cached) * data_type_bytes(device->type);
        int64_t token = pass->model->here.groups * pass->model->here.head_width;
        rows.k = cache->keys + start;
        rows.v = cache->values + start;
        rows.k_stride = rows.v_stride = (HeadStrides){token, cache->capacity * token};
        shape.keys = cache->capacity;
        shape.key_lengths = cache->lengths_with + pass->first_cached;
    }
    float *lse = pass->keeps ? at->lse : NULL;
    device->op->attention_forward(device, &(AttentionForward){.shape = shape, .in = rows, .out = at->attention, .lse = lse});
}

// ---- Forward

// to = from + dropout(x W^T + bias). On one rank without dropout the sum is part of the product. `to` may be `from` where the
// pass has no dropout.
static void project_into_stream(const Pass *pass, int64_t layer, DropoutSite site, int32_t weight, int32_t bias, const void *x,
                                const void *from, void *to) {
    Device *device = pass->model->device;
    bool cut = travel_is_cut(pass), first = pass->model->options.tensor.rank == 0;
    MatmulForward product = projection(pass, weight, first ? bias : -1, x, cut ? pass->workspace->partial : to);
    product.residual = cut || pass->dropout > 0 ? NULL : from;
    Travel sums = travel_sum(pass, product.y);
    for (Range rows; travel_to_sum(&sums, &rows);) {
        project(pass, product, rows);
    }
    if (!cut && pass->dropout == 0) {
        return;
    }
    void *branch = travel_summed(&sums);
    block_drop(pass, layer, site, branch);
    if (cut && to != from) {
        block_copy(pass, from, to);
    }
    device->op->add(device, pass->own_rows * pass->model->here.width, cut ? branch : from, to);
}

// inner = activation of pre, or of its gated halves.
static void activate(const Pass *pass, const LayerActivations *at) {
    const ModelConfig *config = &pass->model->here;
    Device *device = pass->model->device;
    if (config->gated) {
        device->op->gated_forward(device, &(GatedForward){
                                              .activation = (Activation)config->activation,
                                              .rows = pass->rows,
                                              .width = config->ffn_width,
                                              .pre = at->pre,
                                              .y = at->inner,
                                          });
    } else {
        device->op->activation_forward(device, &(ActivationForward){
                                                   .activation = (Activation)config->activation,
                                                   .count = pass->rows * config->ffn_width,
                                                   .x = at->pre,
                                                   .y = at->inner,
                                               });
    }
}

static void attention_norm(const Pass *pass, const LayerParams *p, const LayerActivations *at) {
    block_norm(pass->model, pass->own_rows, p->attention_norm, p->attention_norm_bias, at->input, at->norm1, at->mean1,
               at->rstd1);
}

static void mlp_norm(const Pass *pass, const LayerParams *p, const LayerActivations *at) {
    block_norm(pass->model, pass->own_rows, p->mlp_norm, p->mlp_norm_bias, at->middle, at->norm2, at->mean2, at->rstd2);
}

// Everything that backward reads: all but the projection into the output.
static void forward_kept(const Pass *pass, int64_t layer, const LayerActivations *at) {
    const ModelConfig *config = &pass->model->here;
    const LayerParams *p = &pass->model->table.layers[layer];
    attention_norm(pass, p, at);
    project_gathered(pass, projection(pass, p->qkv, p->qkv_bias, NULL, at->qkv), at->norm1);
    rotate(pass, at->qkv, false);
    attend(pass, layer, at);
    project_into_stream(pass, layer, SITE_ATTENTION_BRANCH, p->out, p->out_bias, at->attention, at->input, at->middle);
    mlp_norm(pass, p, at);
    if (config->gated && !pass->model->device->op->gated_products) {
        project_gathered(pass, projection(pass, p->up, p->up_bias, NULL, at->pre), at->norm2);
        activate(pass, at);
    } else {
        MatmulForward up = projection(pass, p->up, p->up_bias, NULL, at->inner);
        up.gated = config->gated;
        up.activation = (Activation)config->activation;
        up.pre = at->pre;
        project_gathered(pass, up, at->norm2);
    }
}

void block_forward(const Pass *pass, int64_t layer) {
    const LayerParams *p = &pass->model->table.layers[layer];
    const LayerActivations *at = pass_layer(pass, layer);
    forward_kept(pass, layer, at);
    project_into_stream(pass, layer, SITE_MLP_BRANCH, p->down, p->down_bias, at->inner, at->middle, at->output);
}

// ---- Backward

// The gradient of a branch's output: that of the stream, with the dropped elements dropped; a copy where it is kept for later,
// because the stream's moves on.
static const void *branch_gradient(const Pass *pass, int64_t layer, DropoutSite site, void *kept) {
    Device *device = pass->model->device;
    const Workspace *w = pass->workspace;
    int64_t count = pass->own_rows * pass->model->here.width;
    void *branch = kept != NULL ? kept : w->dbranch;
    if (kept == NULL && pass->dropout == 0) {
        return w->dstream;
    }
    device->op->zero(device, count * data_type_bytes(device->type), branch);
    device->op->add(device, count, w->dstream, branch);
    block_drop(pass, layer, site, branch);
    return branch;
}

// From the gradient of the feed-forward branch, which is on its way, to that of its norm's output, which is then.
static Travel mlp_inputs(const Pass *pass, const LayerParams *p, const LayerActivations *at, Travel *dbranch) {
    const ModelConfig *config = &pass->model->here;
    const Workspace *w = pass->workspace;
    Device *device = pass->model->device;
    Activation activation = (Activation)config->activation;
    if (config->gated && !device->op->gated_products) {
        project_inputs_gathered(pass, input_gradient(pass, p->down, NULL, w->dinner), dbranch);
        device->op->gated_backward(device, &(GatedBackward){.activation = activation,
                                                            .rows = pass->rows,
                                                            .width = config->ffn_width,
                                                            .dy = w->dinner,
                                                            .pre = at->pre,
                                                            .dpre = at->dpre});
    } else {
        MatmulBackwardInput down = input_gradient(pass, p->down, NULL, at->dpre);
        down.activation = activation;
        down.gated = config->gated;
        down.pre = activation == ACTIVATION_NONE && !config->gated ? NULL : at->pre;
        project_inputs_gathered(pass, down, dbranch);
    }
    return project_inputs_summed(pass, p->up, at->dpre);
}

// The norm's output comes while the first product goes on.
static void mlp_weights(const Pass *pass, const LayerParams *p, const LayerActivations *at, const void *dbranch) {
    if (pass->workspace->options.recompute == RECOMPUTE_SELECTIVE) {
        mlp_norm(pass, p, at);
        activate(pass, at);
    }
    Travel norm2 = travel_gather(pass, at->norm2, pass->workspace->whole_norm);
    project_weights(pass, p->down, p->down_bias, at->inner, dbranch);
    project_weights(pass, p->up, p->up_bias, travel_gathered_all(&norm2), at->dpre);
}

static void attend_backward(const Pass *pass, int64_t layer, const LayerActivations *at) {
    Device *device = pass->model->device;
    AttentionShape shape = block_attention_shape(pass, layer);
    if (context_is_cut(pass)) {
        context_attend_backward(pass, &shape, at);
        return;
    }
    device->op->attention_backward(device, &(AttentionBackward){
                                               .shape = shape,
                                               .in = attention_packed(&shape, device->type, at->qkv),
                                               .out = at->attention,
                                               .dout = pass->workspace->dnarrow,
                                               .lse = at->lse,
                                               .gradients = attention_packed(&shape, device->type, at->dqkv),
                                               .any_order = !pass->model->options.deterministic,
                                           });
}

// The same of the attention branch.
static Travel attention_inputs(const Pass *pass, int64_t layer, const LayerParams *p, const LayerActivations *at,
                               Travel *dbranch) {
    project_inputs_gathered(pass, input_gradient(pass, p->out, NULL, pass->workspace->dnarrow), dbranch);
    attend_backward(pass, layer, at);
    rotate(pass, at->dqkv, true);
    return project_inputs_summed(pass, p->qkv, at->dqkv);
}

static void attention_weights(const Pass *pass, const LayerParams *p, const LayerActivations *at, const void *dbranch) {
    if (pass->workspace->options.recompute == RECOMPUTE_SELECTIVE) {
        attention_norm(pass, p, at);
    }
    Travel norm1 = travel_gather(pass, at->norm1, pass->workspace->whole_norm);
    project_weights(pass, p->out, p->out_bias, at->attention, dbranch);
    project_weights(pass, p->qkv, p->qkv_bias, travel_gathered_all(&norm1), at->dqkv);
}

void block_backward(const Pass *pass, int64_t layer, Gradients which) {
    const LayerParams *p = &pass->model->table.layers[layer];
    const LayerActivations *at = pass_layer(pass, layer);
    void *whole = pass->workspace->whole;
    bool inputs = which & GRADIENTS_OF_INPUTS, weights = which & GRADIENTS_OF_WEIGHTS;
    Travel dbranch, sums;
    if (pass->workspace->options.recompute == RECOMPUTE_FULL) {
        forward_kept(pass, layer, at);
    }
    // The gradients of weights are computed while those of the norm's output travel.
    dbranch = travel_gather(pass, inputs ? branch_gradient(pass, layer, SITE_MLP_BRANCH, at->dmlp) : at->dmlp, whole);
    if (inputs) {
        sums = mlp_inputs(pass, p, at, &dbranch);
    }
    if (weights) {
        mlp_weights(pass, p, at, travel_gathered_all(&dbranch));
    }
    if (inputs) {
        block_norm_backward(pass, p->mlp_norm, p->mlp_norm_bias, at->middle, at->mean2, at->rstd2, travel_summed(&sums), true);
    }
    dbranch = travel_gather(pass, inputs ? branch_gradient(pass, layer, SITE_ATTENTION_BRANCH, at->dattention) : at->dattention,
                            whole);
    if (inputs) {
        sums = attention_inputs(pass, layer, p, at, &dbranch);
    }
    if (weights) {
        attention_weights(pass, p, at, travel_gathered_all(&dbranch));
    }
    if (inputs) {
        block_norm_backward(pass, p->attention_norm, p->attention_norm_bias, at->input, at->mean1, at->rstd1,
                            travel_summed(&sums), true);
    }
}
