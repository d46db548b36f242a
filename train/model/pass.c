// A pass: see pass.h. The layers are in block.c; here is what stands before and after them.
#include "train/model/pass.h"

#include "train/model/block.h"
#include "train/model/travel.h"

// ---- Layers in shards (fetch.h)

enum { BEFORE_LAYERS = -1 };

static Fetch *fetch_of(const Pass *pass) {
    return pass->model->weights.fetch;
}

// What the head needs: the rows behind the layers, and where it is the token table, those before them.
static void of_head(const Pass *pass, void (*act)(Fetch *, int64_t)) {
    const ParamTable *table = &pass->model->table;
    act(fetch_of(pass), pass->model->config.layers);
    if (table->head == table->token) {
        act(fetch_of(pass), BEFORE_LAYERS);
    }
}

// What follows a layer, if that is here.
static void begin_next(const Pass *pass, int64_t layer) {
    if (layer + 1 == pass->model->config.layers) {
        of_head(pass, fetch_begin);
    } else {
        fetch_begin(fetch_of(pass), layer + 1);
    }
}

Pass pass_looking(const Model *model, Workspace *workspace, const Batch *batch) {
    const WorkspaceOptions *options = &workspace->options;
    int64_t rows = batch->sequences * batch->length;
    ensure(batch->length <= options->length && rows <= options->sequences * context_tokens(&options->context, options->length),
           "a batch of %lld x %lld tokens in a workspace for %lld x %lld", (long long)batch->sequences,
           (long long)batch->length, (long long)options->sequences, (long long)options->length);
    ensure(batch->ranks == (options->context.ranks > 1 ? options->context.ranks : 0), "a batch cut for %d ranks", batch->ranks);
    const TensorShare *tensor = &options->tensor;
    int64_t parts = tensor->cut_rows ? tensor->ranks : 1, own = rows / parts;
    ensure(rows % parts == 0, "%lld rows among %d tensor-parallel ranks", (long long)rows, tensor->ranks);
    return (Pass){.model = model,
                  .workspace = workspace,
                  .batch = *batch,
                  .rows = rows,
                  .own_first = tensor->cut_rows ? tensor->rank * own : 0,
                  .own_rows = own};
}

Pass pass_learning_in(const Model *model, Workspace *workspace, const Batch *batch, uint64_t seed, int chunk, int set) {
    ensure(model->weights.placement.storage.learns && !workspace->options.forward_only, "made for forward passes only");
    Pass pass = pass_looking(model, workspace, batch);
    pass.keeps = true;
    pass.dropout = (float)model->config.dropout;
    pass.seed = seed;
    pass.layers = workspace->options.chunks[chunk].layers;
    pass.kept = workspace_set(workspace, chunk, set);
    return pass;
}

Pass pass_learning(const Model *model, Workspace *workspace, const Batch *batch, uint64_t seed) {
    return pass_learning_in(model, workspace, batch, seed, 0, 0);
}

const LayerActivations *pass_layer(const Pass *pass, int64_t layer) {
    if (!pass->keeps) {
        return &pass->workspace->shared;
    }
    ensure(layer >= pass->layers.begin && layer < pass->layers.end, "layer %lld in a pass through layers %lld to %lld",
           (long long)layer, (long long)pass->layers.begin, (long long)pass->layers.end);
    return &pass->kept[layer - pass->layers.begin];
}

// ---- Embedding

// Positions are added by the first of the ranks that the vocabulary is cut over, and their gradients are the same on all.
void pass_embed(const Pass *pass) {
    const Model *model = pass->model;
    const ParamTable *table = &model->table;
    const TensorShare *tensor = &model->options.tensor;
    bool first = tensor->rank == 0;
    void *x = pass_layer(pass, 0)->input, *sums = travel_is_cut(pass) ? pass->workspace->partial : x;
    fetch_ready(fetch_of(pass), BEFORE_LAYERS);
    fetch_begin(fetch_of(pass), 0);
    model->device->op->embedding_forward(model->device,
                                         &(EmbeddingForward){
                                             .rows = pass->rows,
                                             .width = model->config.width,
                                             .vocabulary = model->here.vocabulary,
                                             .positions_most = model->config.context,
                                             .tokens = pass->batch.tokens,
                                             .positions = pass->batch.positions,
                                             .token_table = weights_row(&model->weights, table->token),
                                             .position_table = weights_row(&model->weights, first ? table->position : -1),
                                             .scale = (float)model->config.embedding_scale,
                                             .y = sums,
                                             .first = tensor_first_token(&model->config, tensor),
                                             .tokens_most = model->config.vocabulary,
                                         });
    fetch_drop(fetch_of(pass), BEFORE_LAYERS);
    sums = travel_sum_all(pass, sums);
    if (sums != x) {
        block_copy(pass, sums, x);
    }
    block_drop(pass, 0, SITE_EMBEDDING, x);
}

void pass_embed_backward(const Pass *pass) {
    const Model *model = pass->model;
    const ParamTable *table = &model->table;
    block_drop(pass, 0, SITE_EMBEDDING, pass->workspace->dstream);
    const void *dx = travel_gather_all(pass, pass->workspace->dstream, pass->workspace->whole);
    fetch_open(fetch_of(pass), BEFORE_LAYERS);
    model->device->op->embedding_backward(model->device,
                                          &(EmbeddingBackward){
                                              .rows = pass->rows,
                                              .width = model->config.width,
                                              .vocabulary = model->here.vocabulary,
                                              .positions_most = model->config.context,
                                              .tokens = pass->batch.tokens,
                                              .positions = pass->batch.positions,
                                              .dy = dx,
                                              .scale = (float)model->config.embedding_scale,
                                              .dtoken_table = weights_gradient(&model->weights, table->token),
                                              .dposition_table = weights_gradient(&model->weights, table->position),
                                              .first = tensor_first_token(&model->config, &model->options.tensor),
                                              .tokens_most = model->config.vocabulary,
                                          });
    fetch_close(fetch_of(pass), BEFORE_LAYERS);
}

// ---- Layers

void pass_forward(const Pass *pass, Range layers) {
    for (int64_t layer = layers.begin; layer < layers.end; layer++) {
        fetch_ready(fetch_of(pass), layer);
        begin_next(pass, layer);
        block_forward(pass, layer);
        fetch_drop(fetch_of(pass), layer);
    }
}

void pass_backward(const Pass *pass, Range layers, Gradients which) {
    ensure(which == GRADIENTS_ALL || pass->workspace->options.weights_later, "the workspace keeps nothing for later");
    for (int64_t layer = layers.end - 1; layer >= layers.begin; layer--) {
        Fetch *fetch = fetch_of(pass);
        fetch_ready(fetch, layer);
        if (layer > 0) {
            fetch_begin(fetch, layer - 1);
        }
        fetch_open(fetch, layer);
        block_backward(pass, layer, which);
        fetch_close(fetch, layer);
        fetch_drop(fetch, layer);
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
    bool fp16 = model->device->type == TYPE_FP16, cut = travel_is_cut(pass);
    void *dx = cut ? w->partial : w->dnarrow;
    ClassifierShare share = {tensor_first_token(&model->config, &model->options.tensor), travel_reduce_losses, (void *)pass};
    of_head(pass, fetch_ready);
    if (pass->keeps) {
        of_head(pass, fetch_open);
    }
    final_norm(pass, 0, pass->own_rows);
    model->device->op->classifier(model->device, &(Classifier){
                                                     .rows = pass->rows,
                                                     .width = model->config.width,
                                                     .vocabulary = model->here.vocabulary,
                                                     .x = travel_gather_all(pass, w->final, w->whole),
                                                     .w = weights_row(&model->weights, head),
                                                     .targets = pass->batch.targets,
                                                     .loss_weights = pass->batch.loss_weights,
                                                     .z_loss = z_loss,
                                                     .grad_scale = grad_scale,
                                                     .losses = w->losses,
                                                     .zs = w->zs,
                                                     .dx = pass->keeps ? dx : NULL,
                                                     .dw = pass->keeps ? weights_head_gradient(&model->weights, head) : NULL,
                                                     .chunk_rows = w->head_rows,
                                                     .scratch = w->head_scratch,
                                                     .loss_scale = fp16 ? &model->control->loss_scale : NULL,
                                                     .share = cut ? &share : NULL,
                                                 });
    of_head(pass, fetch_drop);
}

void pass_loss_backward(const Pass *pass) {
    const Model *model = pass->model;
    const Workspace *w = pass->workspace;
    const void *dfinal = travel_is_cut(pass) ? travel_sum_all(pass, w->partial) : w->dnarrow;
    fetch_ready(fetch_of(pass), model->config.layers);
    fetch_begin(fetch_of(pass), model->config.layers - 1);
    block_norm_backward(pass, model->table.final_norm, model->table.final_norm_bias,
                        pass_layer(pass, model->config.layers - 1)->output, w->final_mean, w->final_rstd, dfinal, false);
    fetch_drop(fetch_of(pass), model->config.layers);
    fetch_close(fetch_of(pass), model->config.layers);
    // The token table's gradient waits for the embedding's part, where that is here.
    if (model->table.head == model->table.token && model->weights.placement.places[model->table.token].copy) {
        fetch_close(fetch_of(pass), BEFORE_LAYERS);
    }
}

void pass_head(const Pass *pass, const StepOptions *options) {
    const Workspace *w = pass->workspace;
    Device *device = pass->model->device;
    pass_loss(pass, options->grad_scale, options->z_loss);
    device->op->loss_sums(device, &(LossSums){pass->rows, pass->batch.loss_weights, w->losses, w->zs, pass->model->control});
    pass_loss_backward(pass);
}

void pass_logits(const Pass *pass, int64_t begin, int64_t count, float *logits) {
    const Model *model = pass->model;
    Device *device = model->device;
    const TensorShare *tensor = &model->options.tensor;
    ensure(!pass->workspace->options.tensor.cut_rows, "logits of a stream whose rows are cut");
    of_head(pass, fetch_ready);
    final_norm(pass, begin, count);
    MatmulForward product = {.rows = count,
                             .in = model->config.width,
                             .out = model->here.vocabulary,
                             .x = pass->workspace->final,
                             .w = weights_row(&model->weights, model->table.head),
                             .y = logits,
                             .float_output = true};
    if (!travel_is_cut(pass)) {
        device->op->matmul_forward(device, &product);
        of_head(pass, fetch_drop);
        return;
    }
    // Own columns of each row, among zeros of which the other ranks have the sums.
    int64_t vocabulary = model->config.vocabulary, first = tensor_first_token(&model->config, tensor);
    device->op->zero(device, count * vocabulary * (int64_t)sizeof *logits, logits);
    product.rows = 1;
    for (int64_t r = 0; r < count; r++) {
        product.x = (const char *)pass->workspace->final + r * model->config.width * data_type_bytes(device->type);
        product.y = logits + r * vocabulary + first;
        device->op->matmul_forward(device, &product);
    }
    of_head(pass, fetch_drop);
    travel_reduce_losses((void *)pass, logits, count * vocabulary, false);
}
