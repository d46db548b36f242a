// The decoder block: see block.h.
//
// Shapes of one layer:  x[R,C] -> norm1[R,C] -> qkv[R,(H+2G)D] -> attention[R,H D] -> middle[R,C] = x + attention Wout
//                       -> norm2[R,C] -> pre[R,F or 2F] -> inner[R,F] -> output[R,C] = middle + inner Wdown
// Backward goes through the same list from its end. It reads the stream (x, middle), qkv, attention and pre as they were kept,
// and norm1, norm2, inner either kept or computed again by the same operations from the same inputs, so that gradients are the
// same bits.
#include "train/model/block.h"

#include "core/philox.h"

#include <math.h>

const void *block_weight(const Model *model, int32_t row) {
    return row < 0 ? NULL : (const char *)model->weights + model->table.rows[row].offset * data_type_bytes(model->device->type);
}

static float *gradient(const Model *model, int32_t row) {
    return row < 0 ? NULL : model->grads + model->table.rows[row].offset;
}

// ---- Small steps

static void drop(const Pass *pass, int64_t layer, DropoutSite site, void *x) {
    const ModelConfig *config = &pass->model->config;
    Device *device = pass->model->device;
    uint64_t which = (uint64_t)layer * SITE_COUNT + site;
    device->op->dropout(device, &(Dropout){
                                    .count = pass->rows * config->width,
                                    .probability = pass->dropout,
                                    .seed = pass->seed,
                                    .stream = philox_stream(RANDOM_DROPOUT, which),
                                    .first = pass->first_sample * (uint64_t)(pass->length * config->width),
                                    .x = x,
                                });
}

void block_norm(const Model *model, int64_t rows, int32_t weight, int32_t bias, const void *x, void *y, float *mean,
                float *rstd) {
    model->device->op->norm_forward(model->device, &(NormForward){
                                                       .kind = (NormKind)model->config.norm,
                                                       .rows = rows,
                                                       .width = model->config.width,
                                                       .epsilon = (float)model->config.norm_epsilon,
                                                       .x = x,
                                                       .weight = block_weight(model, weight),
                                                       .bias = block_weight(model, bias),
                                                       .y = y,
                                                       .mean = mean,
                                                       .rstd = rstd,
                                                   });
}

// dstream += the gradient through a norm whose output's gradient is dy.
static void norm_backward(const Pass *pass, int32_t weight, int32_t bias, const void *x, const float *mean, const float *rstd,
                          const void *dy, void *dstream) {
    const Model *model = pass->model;
    model->device->op->norm_backward(model->device, &(NormBackward){
                                                        .kind = (NormKind)model->config.norm,
                                                        .rows = pass->rows,
                                                        .width = model->config.width,
                                                        .dy = dy,
                                                        .x = x,
                                                        .weight = block_weight(model, weight),
                                                        .mean = mean,
                                                        .rstd = rstd,
                                                        .accumulate = true,
                                                        .dx = dstream,
                                                        .dweight = gradient(model, weight),
                                                        .dbias = gradient(model, bias),
                                                    });
}

void block_project(const Model *model, int64_t rows, int32_t weight, int32_t bias, const void *x, const void *residual,
                   void *y) {
    const Param *row = &model->table.rows[weight];
    model->device->op->matmul_forward(model->device, &(MatmulForward){
                                                         .rows = rows,
                                                         .in = row->shape[1],
                                                         .out = row->shape[0],
                                                         .x = x,
                                                         .w = block_weight(model, weight),
                                                         .bias = block_weight(model, bias),
                                                         .residual = residual,
                                                         .y = y,
                                                     });
}

void block_logits(const Model *model, int64_t rows, const void *x, float *logits) {
    const Param *row = &model->table.rows[model->table.head];
    model->device->op->matmul_forward(model->device, &(MatmulForward){
                                                         .rows = rows,
                                                         .in = row->shape[1],
                                                         .out = row->shape[0],
                                                         .x = x,
                                                         .w = block_weight(model, model->table.head),
                                                         .y = logits,
                                                         .float_output = true,
                                                     });
}

// The gradient of a projection: of its input (through the activation below it, where `pre` is given) and of its parameters.
static void project_backward(const Pass *pass, int32_t weight, int32_t bias, const void *x, const void *dy,
                             Activation activation, bool gated, const void *pre, void *dx) {
    const Model *model = pass->model;
    const Param *row = &model->table.rows[weight];
    model->device->op->matmul_backward_input(model->device, &(MatmulBackwardInput){
                                                                .rows = pass->rows,
                                                                .in = row->shape[1],
                                                                .out = row->shape[0],
                                                                .dy = dy,
                                                                .w = block_weight(model, weight),
                                                                .activation = activation,
                                                                .gated = gated,
                                                                .pre = pre,
                                                                .dx = dx,
                                                            });
    model->device->op->matmul_backward_weight(model->device, &(MatmulBackwardWeight){
                                                                 .rows = pass->rows,
                                                                 .in = row->shape[1],
                                                                 .out = row->shape[0],
                                                                 .dy = dy,
                                                                 .x = x,
                                                                 .dw = gradient(model, weight),
                                                                 .dbias = gradient(model, bias),
                                                             });
}

void block_rotate(const Pass *pass, void *qkv, bool inverse) {
    const Model *model = pass->model;
    const ModelConfig *config = &model->config;
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
                                                 .positions = pass->positions,
                                                 .cos_sin = model->activations->cos_sin,
                                                 .x = qkv,
                                             });
}

static AttentionShape attention_shape(const Pass *pass, int64_t layer) {
    const ModelConfig *config = &pass->model->config;
    return (AttentionShape){
        .batch = pass->sequences,
        .queries = pass->length,
        .keys = pass->length,
        .heads = (int32_t)config->heads,
        .groups = (int32_t)config->groups,
        .head_width = (int32_t)config->head_width,
        .scale = (float)(1.0 / sqrt((double)config->head_width)),
        .first = pass->first,
        .dropout = pass->dropout,
        .seed = pass->seed,
        .stream = philox_stream(RANDOM_DROPOUT, (uint64_t)layer * SITE_COUNT + SITE_ATTENTION),
        .first_sample = pass->first_sample,
    };
}

// ---- Embedding

void embedding_pass(const Pass *pass, void *x) {
    const Model *model = pass->model;
    model->device->op->embedding_forward(model->device, &(EmbeddingForward){
                                                            .rows = pass->rows,
                                                            .width = model->config.width,
                                                            .vocabulary = model->config.vocabulary,
                                                            .tokens = pass->tokens,
                                                            .positions = pass->positions,
                                                            .token_table = block_weight(model, model->table.token),
                                                            .position_table = block_weight(model, model->table.position),
                                                            .scale = (float)model->config.embedding_scale,
                                                            .y = x,
                                                        });
    if (pass->dropout > 0) {
        drop(pass, 0, SITE_EMBEDDING, x);
    }
}

void embedding_pass_backward(const Pass *pass, void *dx) {
    const Model *model = pass->model;
    if (pass->dropout > 0) {
        drop(pass, 0, SITE_EMBEDDING, dx);
    }
    model->device->op->embedding_backward(model->device, &(EmbeddingBackward){
                                                             .rows = pass->rows,
                                                             .width = model->config.width,
                                                             .vocabulary = model->config.vocabulary,
                                                             .tokens = pass->tokens,
                                                             .positions = pass->positions,
                                                             .dy = dx,
                                                             .scale = (float)model->config.embedding_scale,
                                                             .dtoken_table = gradient(model, model->table.token),
                                                             .dposition_table = gradient(model, model->table.position),
                                                         });
}

// ---- Forward

// to = from + dropout(x W^T + bias). Without dropout the sum is part of the product and `to` may be `from`.
static void project_into_stream(const Pass *pass, int64_t layer, DropoutSite site, int32_t weight, int32_t bias, const void *x,
                                const void *from, void *to) {
    Device *device = pass->model->device;
    if (pass->dropout > 0) {
        block_project(pass->model, pass->rows, weight, bias, x, NULL, to);
        drop(pass, layer, site, to);
        device->op->add(device, pass->rows * pass->model->config.width, from, to);
    } else {
        block_project(pass->model, pass->rows, weight, bias, x, from, to);
    }
}

// inner = activation of pre, or of its gated halves.
static void activate(const Model *model, int64_t rows, const LayerActivations *at) {
    const ModelConfig *config = &model->config;
    Device *device = model->device;
    if (config->gated) {
        device->op->gated_forward(device, &(GatedForward){
                                              .activation = (Activation)config->activation,
                                              .rows = rows,
                                              .width = config->ffn_width,
                                              .pre = at->pre,
                                              .y = at->inner,
                                          });
    } else {
        device->op->activation_forward(device, &(ActivationForward){
                                                   .activation = (Activation)config->activation,
                                                   .count = rows * config->ffn_width,
                                                   .x = at->pre,
                                                   .y = at->inner,
                                               });
    }
}

void block_inner(const Model *model, int64_t rows, int64_t layer, const LayerActivations *at) {
    const ModelConfig *config = &model->config;
    const LayerParams *p = &model->table.layers[layer];
    Device *device = model->device;
    if (config->gated && !device->op->gated_products) {
        block_project(model, rows, p->up, p->up_bias, at->norm2, NULL, at->pre);
        activate(model, rows, at);
    } else {
        device->op->matmul_forward(device, &(MatmulForward){
                                               .rows = rows,
                                               .in = config->width,
                                               .out = model_up_width(config),
                                               .gated = config->gated,
                                               .x = at->norm2,
                                               .w = block_weight(model, p->up),
                                               .bias = block_weight(model, p->up_bias),
                                               .activation = (Activation)config->activation,
                                               .pre = at->pre,
                                               .y = at->inner,
                                           });
    }
}

// Everything that backward reads: all but the projection into the output.
static void forward_kept(const Pass *pass, int64_t layer, const LayerActivations *at) {
    const Model *model = pass->model;
    const LayerParams *p = &model->table.layers[layer];
    Device *device = model->device;
    block_norm(model, pass->rows, p->attention_norm, p->attention_norm_bias, at->input, at->norm1, at->mean1, at->rstd1);
    block_project(model, pass->rows, p->qkv, p->qkv_bias, at->norm1, NULL, at->qkv);
    block_rotate(pass, at->qkv, false);
    AttentionShape shape = attention_shape(pass, layer);
    device->op->attention_forward(device, &(AttentionForward){
                                              .shape = shape,
                                              .in = attention_packed(&shape, device->type, at->qkv),
                                              .out = at->attention,
                                              .lse = at->lse,
                                          });
    project_into_stream(pass, layer, SITE_ATTENTION_BRANCH, p->out, p->out_bias, at->attention, at->input, at->middle);
    block_norm(model, pass->rows, p->mlp_norm, p->mlp_norm_bias, at->middle, at->norm2, at->mean2, at->rstd2);
    block_inner(model, pass->rows, layer, at);
}

void block_forward(const Pass *pass, int64_t layer, const LayerActivations *at) {
    const LayerParams *p = &pass->model->table.layers[layer];
    forward_kept(pass, layer, at);
    project_into_stream(pass, layer, SITE_MLP_BRANCH, p->down, p->down_bias, at->inner, at->middle, at->output);
}

// ---- Backward

// The gradient of a branch's output: that of the stream, with the dropped elements dropped.
static const void *branch_gradient(const Pass *pass, int64_t layer, DropoutSite site, const Activations *scratch) {
    Device *device = pass->model->device;
    int64_t count = pass->rows * pass->model->config.width;
    if (pass->dropout == 0) {
        return scratch->dstream;
    }
    device->op->zero(device, count * data_type_bytes(device->type), scratch->dbranch);
    device->op->add(device, count, scratch->dstream, scratch->dbranch);
    drop(pass, layer, site, scratch->dbranch);
    return scratch->dbranch;
}

static void mlp_backward(const Pass *pass, int64_t layer, const LayerActivations *at, const Activations *scratch) {
    const Model *model = pass->model;
    const ModelConfig *config = &model->config;
    const LayerParams *p = &model->table.layers[layer];
    Device *device = model->device;
    const void *dbranch = branch_gradient(pass, layer, SITE_MLP_BRANCH, scratch);
    void *dpre = scratch->dwide;
    if (config->gated && !device->op->gated_products) {
        project_backward(pass, p->down, p->down_bias, at->inner, dbranch, ACTIVATION_NONE, false, NULL, scratch->dinner);
        device->op->gated_backward(device, &(GatedBackward){
                                               .activation = (Activation)config->activation,
                                               .rows = pass->rows,
                                               .width = config->ffn_width,
                                               .dy = scratch->dinner,
                                               .pre = at->pre,
                                               .dpre = dpre,
                                           });
    } else {
        const void *pre = config->activation == ACTIVATION_NONE && !config->gated ? NULL : at->pre;
        project_backward(pass, p->down, p->down_bias, at->inner, dbranch, (Activation)config->activation, config->gated, pre,
                         dpre);
    }
    project_backward(pass, p->up, p->up_bias, at->norm2, dpre, ACTIVATION_NONE, false, NULL, scratch->dnarrow);
    norm_backward(pass, p->mlp_norm, p->mlp_norm_bias, at->middle, at->mean2, at->rstd2, scratch->dnarrow, scratch->dstream);
}

static void attention_backward(const Pass *pass, int64_t layer, const LayerActivations *at, const Activations *scratch) {
    const Model *model = pass->model;
    const LayerParams *p = &model->table.layers[layer];
    Device *device = model->device;
    const void *dbranch = branch_gradient(pass, layer, SITE_ATTENTION_BRANCH, scratch);
    project_backward(pass, p->out, p->out_bias, at->attention, dbranch, ACTIVATION_NONE, false, NULL, scratch->dnarrow);
    AttentionShape shape = attention_shape(pass, layer);
    device->op->attention_backward(device, &(AttentionBackward){
                                               .shape = shape,
                                               .in = attention_packed(&shape, device->type, at->qkv),
                                               .out = at->attention,
                                               .dout = scratch->dnarrow,
                                               .lse = at->lse,
                                               .gradients = attention_packed(&shape, device->type, scratch->dwide),
                                               .any_order = model->options.any_order,
                                           });
    block_rotate(pass, scratch->dwide, true);
    project_backward(pass, p->qkv, p->qkv_bias, at->norm1, scratch->dwide, ACTIVATION_NONE, false, NULL, scratch->dnarrow);
    norm_backward(pass, p->attention_norm, p->attention_norm_bias, at->input, at->mean1, at->rstd1, scratch->dnarrow,
                  scratch->dstream);
}

void block_backward(const Pass *pass, int64_t layer, const LayerActivations *at, const Activations *scratch) {
    const Model *model = pass->model;
    const LayerParams *p = &model->table.layers[layer];
    bool again = model->options.recompute == RECOMPUTE_SELECTIVE;
    if (model->options.recompute == RECOMPUTE_FULL) {
        forward_kept(pass, layer, at);
    }
    if (again) {
        block_norm(model, pass->rows, p->mlp_norm, p->mlp_norm_bias, at->middle, at->norm2, at->mean2, at->rstd2);
        activate(model, pass->rows, at);
    }
    mlp_backward(pass, layer, at, scratch);
    if (again) {
        block_norm(model, pass->rows, p->attention_norm, p->attention_norm_bias, at->input, at->norm1, at->mean1, at->rstd1);
    }
    attention_backward(pass, layer, at, scratch);
}
