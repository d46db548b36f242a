// Sums along one tree: see leaves.h.
#include "train/model/leaves.h"

#include "train/model/model.h"

int leaves_here(const LeafShare *share) {
    return share->parts > share->ranks ? share->parts / share->ranks : 1;
}

static int levels_of(const LeafShare *share) {
    return __builtin_ctz((unsigned)leaves_here(share));
}

void leaves_lay_out(Leaves *leaves, const LeafShare *share, const Placement *placement, int64_t layers, Layout *layout) {
    bool used = share->parts > 0;
    leaves->kept =
        layout_take(layout, "gradients of micro-batches before", used, levels_of(share), placement->gradients, sizeof(float));
    leaves->exchange =
        layout_take(layout, "gradients of other ranks", used && share->ranks > 1, 2, share->bucket, sizeof(float));
    leaves->sums = layout_take(layout, "losses of micro-batches", used, share->parts, 3, sizeof(double));
    leaves->squares = layout_take(layout, "squares of gradients", used, 2, layers + 2, sizeof(double));
}

static int64_t squares_count(const Model *model) {
    return 2 * (model->config.layers + 2);
}

void leaves_begin(Model *model) {
    int64_t bytes = 3 * (int64_t)sizeof(double);
    model->device->op->zero(model->device, model->options.leaves.parts * bytes, model->leaves.sums);
    model->device->op->zero(model->device, bytes, &model->control->loss_sum);
}

void leaves_put_losses(Model *model, int leaf) {
    const LeafShare *share = &model->options.leaves;
    int64_t bytes = 3 * (int64_t)sizeof(double), place = (int64_t)share->rank * leaves_here(share) + leaf;
    double *to = model->leaves.sums + 3 * place;
    model->device->op->copy_rows(model->device, &(CopyRows){1, bytes, &model->control->loss_sum, bytes, to, bytes});
    model->device->op->zero(model->device, bytes, &model->control->loss_sum);
}

static void add(Model *model, const float *left, float *right, int64_t count) {
    model->device->op->sum_parts(model->device, &(SumParts){false, count, 2, right - left, left, right});
}

void leaves_merge(Model *model, int leaf, int64_t begin, int64_t end) {
    const ModelWeights *weights = &model->weights;
    int64_t count;
    float *head = weights_head_apart(weights, &count);
    if (begin == 0 && head != NULL) {
        add(model, head, weights_gradient(weights, model->table.token), count);
    }
    for (int level = 0; (leaf >> level) % 2 == 1; level++) {
        const float *kept = model->leaves.kept + level * weights->placement.gradients + begin;
        add(model, kept, weights_all_gradients(weights) + begin, end - begin);
    }
}

void leaves_keep(Model *model, int leaf) {
    const ModelWeights *weights = &model->weights;
    int64_t count = weights->placement.gradients, bytes = count * (int64_t)sizeof(float);
    float *kept = model->leaves.kept + __builtin_ctz(~(unsigned)leaf) * count;
    model->device->op->copy_rows(model->device, &(CopyRows){1, bytes, weights_all_gradients(weights), bytes, kept, bytes});
    weights_zero_gradients(weights);
}

Error *leaves_sum_losses(Model *model, Group *group) {
    int parts = model->options.leaves.parts;
    // Each leaf's are on one rank, or the same on several of which one takes part: the others add nothing.
    TRY(group_all_reduce(group, ELEMENT_FP64, COMM_SUM, model->leaves.sums, (int64_t)3 * parts));
    model->device->op->sum_parts(model->device, &(SumParts){true, 3, parts, 3, model->leaves.sums, &model->control->loss_sum});
    return NULL;
}

Error *leaves_sum_squares(Model *model) {
    Device *device = model->device;
    double *squares = model->leaves.squares;
    int64_t layers = model->config.layers + 2;
    device->op->zero(device, squares_count(model) * (int64_t)sizeof *squares, squares);
    for (int cut = model->options.tensor.rank > 0; cut < 2; cut++) {
        for (int64_t layer = 0; layer < layers; layer++) {
            int64_t count;
            const float *from = weights_layer_gradients(&model->weights, layer - 1, cut, &count);
            if (count > 0) {
                device->op->squares(device, count, from, squares + cut * layers + layer);
            }
        }
    }
    if (model->options.tensor.ranks > 1) {
        TRY(group_all_reduce(model->tensor->group, ELEMENT_FP64, COMM_SUM, squares, squares_count(model)));
    }
    if (model->tensor->links != NULL) {
        TRY(group_all_reduce(model->tensor->links->all, ELEMENT_FP64, COMM_SUM, squares, squares_count(model)));
    }
    device->op->sum_parts(device, &(SumParts){true, 1, squares_count(model), 1, squares, &model->control->grad_squares});
    return NULL;
}
