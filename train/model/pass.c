// A pass: see pass.h. The layers are in block.c; here is what stands before and after them.
#include "train/model/pass.h"

#include "train/model/block.h"

Pass pass_looking(const Model *model, Workspace *workspace, const Batch *batch) {
    const WorkspaceOptions *options = &workspace->options;
    ensure(batch->length <= options->length && batch->sequences * batch->length <= options->sequences * options->length,
           "a batch of %lld x %lld tokens in a workspace for %lld x %lld", (long long)batch->sequences,
           (long long)batch->length, (long long)options->sequences, (long long)options->length);
    return (Pass){.model = model, .workspace = workspace, .batch = *batch, .rows = batch->sequences * batch->length};
}

Pass pass_learning(const Model *model, Workspace *workspace, const Batch *batch, uint64_t seed) {
    ensure(model->weights.placement.storage.learns && !workspace->options.forward_only, "made for forward passes only");
    Pass pass = pass_looking(model, workspace, batch);
    pass.keeps = true;
    pass.dropout = (float)model->config.dropout;
    pass.seed = seed;
    return pass;
}

const LayerActivations *pass_layer(const Pass *pass, int64_t layer) {
    const Workspace *workspace = pass->workspace;
    Range layers = workspace->options.layers;
    ensure(layer >= layers.begin && layer < layers.end, "layer %lld in a workspace of layers %lld to %lld", (long long)layer,
           (long long)layers.begin, (long long)layers.end);
    return pass->keeps ? &workspace->layers[layer - layers.begin] : &workspace->shared;
}

// ---- Embedding

void pass_embed(const Pass *pass) {
    const Model *model = pass->model;
    const ParamTable *table = &model->table;
    void *x = pass_layer(pass, 0)->input;
    model->device->op->embedding_forward(model->device, &(EmbeddingForward){
                                                            .rows = pass->rows,
                                                            .width = model->config.width,
                                                            .vocabulary = model->config.vocabulary,
                                                            .positions_most = model->config.context,
                                                            .tokens = pass->batch.tokens,
                                                            .positions = pass->batch.positions,
                                                            .token_table = weights_row(&model->weights, table->token),
                                                            .position_table = weights_row(&model->weights, table->position),
                                                            .scale = (float)model->config.embedding_scale,
                                                            .y = x,
                                                        });
    block_drop(pass, 0, SITE_EMBEDDING, x);
}

void pass_embed_backward(const Pass *pass) {
    const Model *model = pass->model;
    const ParamTable *table = &model->table;
    void *dx = pass->workspace->dstream;
    block_drop(pass, 0, SITE_EMBEDDING, dx);
    model->device->op->embedding_backward(model->device,
                                          &(EmbeddingBackward){
                                              .rows = pass->rows,
                                              .width = model->config.width,
                                              .vocabulary = model->config.vocabulary,
                                              .positions_most = model->config.context,
                                              .tokens = pass->batch.tokens,
                                              .positions = pass->batch.positions,
                                              .dy = dx,
                                              .scale = (float)model->config.embedding_scale,
                                              .dtoken_table = weights_gradient(&model->weights, table->token),
                                              .dposition_table = weights_gradient(&model->weights, table->position),
                                          });
}

// ---- Layers

void pass_forward(const Pass *pass, Range layers) {
    for (int64_t layer = layers.begin; layer < layers.end; layer++) {
        block_forward(pass, layer);
    }
}

void pass_backward(const Pass *pass, Range layers, Gradients which) {
    ensure(which == GRADIENTS_ALL || pass->workspace->options.weights_later, "the workspace keeps nothing for later");
    for (int64_t layer = layers.end - 1; layer >= layers.begin; layer--) {
        block_backward(pass, layer, which);
    }
}

// ---- Head

// The final norm of `count` rows of the last layer's output, the first of which is `begin`.
static void final_norm(const Pass *pass, int64_t begin, int64_t count) {
    const Model *model = pass->model;
    const Workspace *w = pass->workspace;
    int64_t row = model->config.width * data_type_bytes(model->device->type);
    const char *x = pass_layer(pass, model->config.layers - 1)->output;
    block_norm(model, count, model->table.final_norm, model->table.final_norm_bias, x + begin * row, w->final, w->final_mean,
               w->final_rstd);
}

void pass_loss(const Pass *pass, float grad_scale, float z_loss) {
    const Model *model = pass->model;
    const Workspace *w = pass->workspace;
    int32_t head = model->table.head;
    bool fp16 = model->device->type == TYPE_FP16;
    final_norm(pass, 0, pass->rows);
    model->device->op->classifier(model->device, &(Classifier){
                                                     .rows = pass->rows,
                                                     .width = model->config.width,
                                                     .vocabulary = model->config.vocabulary,
                                                     .x = w->final,
                                                     .w = weights_row(&model->weights, head),
                                                     .targets = pass->batch.targets,
                                                     .loss_weights = pass->batch.loss_weights,
                                                     .z_loss = z_loss,
                                                     .grad_scale = grad_scale,
                                                     .losses = w->losses,
                                                     .zs = w->zs,
                                                     .dx = pass->keeps ? w->dnarrow : NULL,
                                                     .dw = pass->keeps ? weights_gradient(&model->weights, head) : NULL,
                                                     .chunk_rows = w->head_rows,
                                                     .scratch = w->head_scratch,
                                                     .loss_scale = fp16 ? &model->control->loss_scale : NULL,
                                                 });
}

void pass_loss_backward(const Pass *pass) {
    const Model *model = pass->model;
    const Workspace *w = pass->workspace;
    block_norm_backward(pass, model->table.final_norm, model->table.final_norm_bias,
                        pass_layer(pass, model->config.layers - 1)->output, w->final_mean, w->final_rstd, w->dnarrow, false);
}

void pass_logits(const Pass *pass, int64_t begin, int64_t count, float *logits) {
    const Model *model = pass->model;
    const Param *row = &model->table.rows[model->table.head];
    final_norm(pass, begin, count);
    model->device->op->matmul_forward(model->device, &(MatmulForward){
                                                         .rows = count,
                                                         .in = row->shape[1],
                                                         .out = row->shape[0],
                                                         .x = pass->workspace->final,
                                                         .w = weights_row(&model->weights, model->table.head),
                                                         .y = logits,
                                                         .float_output = true,
                                                     });
}
