// Gradients, and weights, in shards over data-parallel ranks against one rank that has everything: the loss, every gradient and
// every updated weight, for families, odd vocabularies, recompute modes, dropout, 8-bit moments, several micro-batches, with
// and without tensor parallelism, on the CPU and in 16 bits on a simulated card; the memory that it takes; and that layers are
// brought, and gradients reduced, while their neighbours are computed.
#include "parallel/mesh.h"
#include "parallel/sharding.h"
#include "parallel/transport.h"
#include "tests/support/check.h"
#include "tests/support/models.h"

#include <math.h>
#include <stdio.h>

enum { LAYERS = 4, LENGTH = 24, MICRO_BATCHES = 2, EACH = 2 };

static Comm *world;

static const char *const models[] = {
    // GPT-2: learned positions, biases, a tied head; a vocabulary that nobody divides.
    "model:\n  family: gpt2\n  layers: 4\n  width: 48\n  heads: 6\n  context: 24\n  vocabulary: 61\n",
    // LLaMA: grouped queries, gated, an untied head; feed-forward channels that are odd for tensor ranks.
    "model:\n  family: llama\n  layers: 4\n  width: 48\n  heads: 4\n  groups: 2\n  ffn_width: 131\n  context: 24\n  "
    "vocabulary: 83\n",
};

// A layout of the world and what is looked at in it.
typedef struct Case {
    int model, tensor, zero;
    double dropout;
    Recompute recompute;
    MomentType moments;
    DataType type;  // but for fp32 on a simulated card
} Case;

static Model *open_model(const Case *c, const Mesh *mesh, Device *device) {
    ModelConfig config = models_config(models[c->model]);
    config.dropout = c->dropout;
    ModelOptions options = {.sequences = EACH,
                            .length = LENGTH,
                            .recompute = c->recompute,
                            .optimizer = OPTIMIZER_ADAMW,
                            .head_rows = 16,
                            .deterministic = true,
                            .masters = true,
                            .weight_decay = 0.1,
                            .moments = c->moments};
    if (mesh != NULL) {
        options.tensor = (TensorShare){mesh->coordinate[MESH_TENSOR], mesh->size[MESH_TENSOR], mesh->size[MESH_TENSOR] > 1};
        options.shard = mesh->coordinate[MESH_DATA];
        options.shards = mesh->size[MESH_DATA];
        options.zero = c->zero;
    } else {
        options.sequences *= world->size / c->tensor;
    }
    Model *model;
    CHECK_OK(model_create(device, &config, &options, &model));
    if (mesh != NULL) {
        model->tensor->group = mesh_group(mesh, OVER_TENSOR);
        model->tensor->owners = mesh_group(mesh, OVER_DATA);
        model->tensor->norm = mesh_group(mesh, OVER_DATA | OVER_TENSOR);
    }
    model_initialise(model, 7);
    return model;
}

// ---- Rows, by logical element

typedef struct Copy {
    const float *from;
    float *to;
} Copy;

static bool copy_run(void *context, BoxRun run) {
    const Copy *copy = context;
    memcpy(copy->to + run.to, copy->from + run.from, (size_t)run.count * sizeof(float));
    return true;
}

// What this rank has of a row is put to its logical elements in `logical`, or taken from there. Returns how many.
static int64_t exchange_row(Model *model, WeightsArray array, int32_t row, bool write, float *logical) {
    const Param *param = &model->table.rows[row];
    const Place *place = &model->weights.placement.places[row];
    Range extent = weights_extent(&model->weights, array, row);
    Box whole = box_whole(param->dims, param->shape), boxes[PARAM_MOST_PARTS * BOX_MOST_OF_RANGE];
    int64_t count = extent.end - extent.begin;
    float *local = memory_new((size_t)count + 1, sizeof *local);
    int parts = boxes_of_range(place->boxes, place->box_count, extent.begin, extent.end, boxes);
    if (write) {
        boxes_runs(&whole, 1, boxes, parts, copy_run, &(Copy){logical, local}, NULL);
        weights_write(&model->weights, array, row, extent.begin, extent.end, local);
    } else {
        weights_read(&model->weights, array, row, extent.begin, extent.end, local);
        boxes_runs(boxes, parts, &whole, 1, copy_run, &(Copy){local, logical}, NULL);
    }
    free(local);
    return count;
}

// Weights that are not trivially right: each is moved by a function of its row and logical element.
static void disturb(Model *model, const Model *whole) {
    for (int32_t i = 0; i < model->table.count; i++) {
        int64_t count = model->table.rows[i].count;
        float *values = memory_zeroed((size_t)count, sizeof *values);
        exchange_row((Model *)(uintptr_t)whole, ARRAY_WEIGHT, i, false, values);
        for (int64_t j = 0; j < count && model == whole; j++) {
            values[j] += 0.1F * sinf((float)(i * 37 + j * 11 % 1013));
        }
        exchange_row(model, ARRAY_WEIGHT, i, true, values);
        free(values);
    }
}

// What the ranks have of an array between them is what one rank has, and no element of a gradient is had twice.
static void compare(const Case *c, Model *part, Model *whole, const Mesh *mesh, WeightsArray array, double tolerance) {
    double most = 0, *largest = memory_zeroed((size_t)whole->table.count, sizeof *largest);
    float **ours = memory_zeroed((size_t)whole->table.count, sizeof *ours),
          **all = memory_zeroed((size_t)whole->table.count, sizeof *all);
    for (int32_t i = 0; i < whole->table.count; i++) {
        int64_t count = whole->table.rows[i].count;
        all[i] = memory_zeroed((size_t)count, sizeof **all);
        exchange_row(whole, array, i, false, all[i]);
        ours[i] = memory_new((size_t)count, sizeof **ours);
        memcpy(ours[i], all[i], (size_t)count * sizeof **ours);
        double here = (double)exchange_row(part, array, i, false, ours[i]);
        CHECK_OK(comm_all_reduce_doubles(mesh_comm(mesh, OVER_DATA), &here, 1, COMM_SUM));
        bool shared = array != ARRAY_WEIGHT || c->zero == 3;
        CHECK_I64((int64_t)here, part->weights.placement.places[i].count * (shared ? 1 : mesh->size[MESH_DATA]));
        for (int64_t j = 0; j < count; j++) {
            largest[i] = fmax(largest[i], fabs((double)all[i][j]));
        }
        most = fmax(most, largest[i]);
    }
    for (int32_t i = 0; i < whole->table.count; i++) {
        double worst = 0, scale = fmax(largest[i], 1e-3 * most);
        for (int64_t j = 0; j < whole->table.rows[i].count; j++) {
            double difference = fabs((double)ours[i][j] - (double)all[i][j]);
            worst = fmax(worst, isnan(difference) ? INFINITY : difference);
        }
        if (!CHECK(worst <= tolerance * scale)) {
            printf("rank %d, zero %d, tensor %d, model %d: %s of %s differs by %g of %g\n", world->rank, c->zero, c->tensor,
                   c->model, weights_array_name(array), whole->table.rows[i].name, worst, scale);
        }
        free(ours[i]);
        free(all[i]);
    }
    free(ours);
    free(all);
    free(largest);
}

// ---- Steps

// Micro-batch `m` of a step: of all data-parallel ranks, or this one's part.
static void run_batch(Model *model, const Mesh *mesh, const Case *c, int m) {
    int data = world->size / c->tensor;
    Batch batch = models_batch((int64_t)data * EACH, LENGTH, model->config.vocabulary, true, (uint64_t)(3 + m));
    batch.first_sample = (uint64_t)(10 + m * data * EACH);
    Batch own = mesh != NULL ? models_batch_rows(&batch, (int64_t)mesh->coordinate[MESH_DATA] * EACH, EACH) : batch;
    if (mesh != NULL && model->device->kind != DEVICE_CPU) {
        // A card takes whole blocks.
        Batch block;
        batch_allocate(&block, EACH, LENGTH);
        size_t bytes = (size_t)(EACH * LENGTH) * sizeof(int32_t);
        memcpy(block.tokens, own.tokens, bytes);
        memcpy(block.targets, own.targets, bytes);
        memcpy(block.loss_weights, own.loss_weights, bytes);
        memcpy(block.first, own.first, bytes);
        memcpy(block.positions, own.positions, bytes);
        block.first_sample = own.first_sample;
        model_forward_backward(model, &block, &(StepOptions){.grad_scale = 0.01F, .z_loss = 0.01F, .seed = 5}, NULL);
        batch_free(&block);
    } else {
        model_forward_backward(model, &own, &(StepOptions){.grad_scale = 0.01F, .z_loss = 0.01F, .seed = 5}, NULL);
    }
    batch_free(&batch);
}

static StepControl run_step(Model *model, const Mesh *mesh, const Case *c) {
    model_begin_step(model, 0.01);
    weights_zero_gradients(&model->weights);
    for (int m = 0; m < MICRO_BATCHES; m++) {
        run_batch(model, mesh, c, m);
    }
    if (mesh != NULL) {
        model_finish_gradients(model);
        model_sum_tensor_gradients(model);
        CHECK_OK(group_all_reduce(mesh_group(mesh, OVER_DATA), ELEMENT_FP64, COMM_SUM, &model->control->loss_sum, 3));
    }
    return model_control(model);
}

static StepControl finish_step(Model *model, const Mesh *mesh) {
    // With so large an epsilon an update is a smooth function of the gradient.
    model_finish_step(model, &(UpdateOptions){.batch_weight = 100, .clip = 1, .beta1 = 0.9F, .beta2 = 0.99F, .epsilon = 0.1F});
    if (mesh != NULL) {
        CHECK_OK(model_share_weights(model, mesh_group(mesh, OVER_DATA)));
        CHECK_OK(model_tensor_error(model));
    }
    return model_control(model);
}

static Device *open_device(DataType type) {
    Device *device;
    if (type == TYPE_FP32) {
        CHECK_OK(device_open_cpu(1, NULL, &device));
    } else {
        CHECK_OK(device_open_card(DEVICE_SIMULATED, world->rank, type, 1, &device));
    }
    return device;
}

// What a model writes of a batch without dropout: the weights that its passes see.
static void compare_losses(Model *part, Model *whole, double tolerance) {
    Batch batch = models_batch(EACH, LENGTH, part->config.vocabulary, true, 99);
    float ours[EACH * LENGTH], theirs[EACH * LENGTH];
    model_evaluate(part, &batch, ours);
    model_evaluate(whole, &batch, theirs);
    CHECK_OK(model_tensor_error(part));
    double worst = 0;
    for (int i = 0; i < EACH * LENGTH; i++) {
        worst = fmax(worst, fabs((double)ours[i] - (double)theirs[i]));
    }
    CHECK(worst <= tolerance);
    batch_free(&batch);
}

static void check_case(const Case *c) {
    if (world->size % c->tensor != 0 || (c->type != TYPE_FP32 && !device_built(DEVICE_SIMULATED))) {
        return;
    }
    Device *device = open_device(c->type), *other = open_device(c->type);
    Mesh *mesh;
    CHECK_OK(
        mesh_create(world, (const int[MESH_AXES]){[MESH_TENSOR] = c->tensor, [MESH_PIPELINE] = 1, [MESH_CONTEXT] = 1}, &mesh));
    CHECK_OK(mesh_attach(mesh, device, (const int[]){OVER_DATA, OVER_TENSOR, OVER_DATA | OVER_TENSOR}, 3));
    Model *part = open_model(c, mesh, device), *whole = open_model(c, NULL, other);
    bool coarse = c->type != TYPE_FP32;
    compare(c, part, whole, mesh, ARRAY_WEIGHT, coarse && c->zero < 3 ? 4e-3 : 0);  // masters are not on all ranks
    disturb(whole, whole);
    disturb(part, whole);
    double tolerance = coarse ? 3e-2 : 1e-5;
    compare_losses(part, whole, coarse ? 3e-2 : 2e-5);
    StepControl ours = run_step(part, mesh, c), theirs = run_step(whole, NULL, c);
    CHECK_NEAR(ours.loss_sum, theirs.loss_sum, (coarse ? 1e-3 : 1e-6) * fabs(theirs.loss_sum));
    CHECK_NEAR(ours.weight_sum, theirs.weight_sum, 1e-9 * theirs.weight_sum);
    compare(c, part, whole, mesh, ARRAY_GRADIENT, tolerance);
    ours = finish_step(part, mesh);
    theirs = finish_step(whole, NULL);
    CHECK_NEAR(ours.grad_norm, theirs.grad_norm, (coarse ? 1e-2 : 1e-5) * (double)theirs.grad_norm);
    compare(c, part, whole, mesh, ARRAY_WEIGHT, coarse ? 6e-3 : 1e-5);
    compare_losses(part, whole, coarse ? 3e-2 : 2e-5);  // with the new weights
    model_destroy(part);
    model_destroy(whole);
    mesh_detach(mesh, false);
    mesh_destroy(mesh);
    device_close(device);
    device_close(other);
}

static void test_layouts(void) {
    for (int zero = 2; zero <= 3; zero++) {
        for (int model = 0; model < 2; model++) {
            check_case(&(Case){.model = model, .tensor = 2, .zero = zero, .recompute = RECOMPUTE_SELECTIVE});
            check_case(&(Case){.model = model, .tensor = 1, .zero = zero, .recompute = RECOMPUTE_FULL});
        }
        check_case(&(Case){.tensor = zero - 1, .zero = zero, .dropout = 0.2});
        check_case(&(Case){.model = 1, .tensor = 1, .zero = zero, .moments = MOMENT_8BIT});
    }
}

static void test_16_bits(void) {
    check_case(&(Case){.model = 0, .tensor = 1, .zero = 2, .type = TYPE_BF16});
    check_case(&(Case){.model = 1, .tensor = 1, .zero = 3, .type = TYPE_BF16});
}

// ---- The order of things

// What is started and waited for, and the attention of each layer, forward and back, as they are called.
static char record[512];
static const Transport *way;
static const Operations *operations;
static int64_t layer_count;  // elements of a layer's part

static void note(char what) {
    size_t length = strlen(record);
    ensure(length + 1 < sizeof record, "a long record");
    record[length] = what;
    record[length + 1] = 0;
}

static bool of_layer(const GroupRequest *request) {
    return request->what.count == layer_count;
}

static Error *noted_start(GroupRequest *request) {
    if (of_layer(request)) {
        note(request->what.operation == GROUP_ALL_GATHER ? 'G' : 'R');
    }
    return way->start(request);
}

static Error *noted_wait(GroupRequest *request) {
    if (of_layer(request)) {
        note(request->what.operation == GROUP_ALL_GATHER ? 'g' : 'r');
    }
    return way->wait(request);
}

// Nothing is seen to arrive before it is waited for.
static Error *noted_test(GroupRequest *request, bool *done) {
    *done = false;
    return NULL;
}

static void noted_forward(Device *device, const AttentionForward *a) {
    note('F');
    operations->attention_forward(device, a);
}

static void noted_backward(Device *device, const AttentionBackward *a) {
    note('B');
    operations->attention_backward(device, a);
}

static int count_of(char what, const char *end) {
    int count = 0;
    for (const char *at = record; at < end; at++) {
        count += *at == what;
    }
    return count;
}

// While a layer computes, the next one's weights are on their way, and the gradients of the one before are not waited for; a
// layer waits for nothing but its own weights, and for the slot of its gradients.
static void test_order(void) {
    if (world->size == 1) {
        return;
    }
    Case c = {.model = 1, .tensor = 1, .zero = 3};
    Device *device = open_device(TYPE_FP32);
    Mesh *mesh;
    CHECK_OK(mesh_create(world, (const int[MESH_AXES]){[MESH_TENSOR] = 1, [MESH_PIPELINE] = 1, [MESH_CONTEXT] = 1}, &mesh));
    CHECK_OK(mesh_attach(mesh, device, (const int[]){OVER_DATA, OVER_TENSOR, OVER_DATA | OVER_TENSOR}, 3));
    Model *model = open_model(&c, mesh, device);
    const Placement *placement = &model->weights.placement;
    Range part = placement_unit_part(placement, placement->places[model->table.layers[0].qkv].unit, 0);
    layer_count = part.end - part.begin;
    Group *group = mesh_group(mesh, OVER_DATA);
    Transport noted = *(way = group->way);
    noted.start = noted_start;
    noted.wait = noted_wait;
    noted.test = noted_test;
    Operations ops = *(operations = device->op);
    ops.attention_forward = noted_forward;
    ops.attention_backward = noted_backward;
    group->way = &noted;
    device->op = &ops;
    run_batch(model, mesh, &c, 0);
    model_finish_gradients(model);
    group->way = way;
    device->op = operations;
    int layer = 0;
    for (const char *at = record; *at != 0; at++) {
        int brought = count_of('G', at), arrived = count_of('g', at);
        if (*at == 'F') {
            CHECK_I64(brought, layer + 2 < LAYERS ? layer + 2 : LAYERS);
            CHECK_I64(arrived, layer + 1);
            layer++;
        } else if (*at == 'B') {
            layer--;
            // The last two layers are still in their slots.
            int again = LAYERS - 1 - layer < LAYERS - 2 ? LAYERS - 1 - layer : LAYERS - 2;
            CHECK_I64(brought, LAYERS + again);
            CHECK(arrived <= LAYERS + again - (layer > 0 && layer < LAYERS - 1));
            CHECK_I64(count_of('R', at), LAYERS - 1 - layer);
            CHECK_I64(count_of('r', at), layer < LAYERS - 2 ? LAYERS - 2 - layer : 0);
        }
    }
    if (!CHECK(layer == 0 && count_of('r', record + strlen(record)) == LAYERS)) {
        printf("%s\n", record);
    }
    CHECK_OK(model_tensor_error(model));
    model_destroy(model);
    mesh_detach(mesh, false);
    mesh_destroy(mesh);
    device_close(device);
}

// ---- Memory

static int64_t line_of(const MemoryPlan *plan, const char *name) {
    int64_t bytes = 0;
    for (int i = 0; i < plan->count; i++) {
        bytes += strcmp(plan->lines[i].name, name) == 0 ? plan->lines[i].bytes : 0;
    }
    return bytes;
}

// What the plan says is what is allocated; and what is in shards is a part of the whole, but for what pads a unit, and beside
// it two layers, the head and what else is in no layer.
static void test_memory(void) {
    ModelConfig config =
        models_config("model:\n  family: gpt2\n  layers: 16\n  width: 64\n  heads: 2\n  context: 24\n  vocabulary: 300\n");
    const int64_t layer = 12 * 64 * 64 + 13 * 64, ends = (300 + 24 + 2) * 64, all = 16 * layer + ends;
    Device *device = open_device(TYPE_FP32);
    int64_t total = INT64_MAX;
    for (int zero = 0; zero <= 3; zero++) {
        ModelOptions options = {
            .sequences = 1, .length = 24, .optimizer = OPTIMIZER_ADAMW, .shards = zero > 0 ? 4 : 1, .shard = 1, .zero = zero};
        Machine machine = machine_of(device, 1, 1);
        MemoryPlan plan;
        Model *model;
        model_plan(&config, &options, &machine, &plan);
        CHECK_OK(model_create(device, &config, &options, &model));
        int64_t lines = 0, slack = 4 * 20 * 4 * SHARD_ALIGNMENT, slots = 2 * layer + ends;
        for (int i = 0; i < plan.count; i++) {
            lines += plan.lines[i].bytes;
        }
        lines -= line_of(&plan, "program") + line_of(&plan, "kernels' scratch");
        CHECK_I64(lines, model->arena_bytes);
        CHECK_NEAR((double)line_of(&plan, "parameters"), (double)(4 * all / (zero >= 3 ? 4 : 1)), (double)slack);
        CHECK_NEAR((double)line_of(&plan, "gradients"), (double)(4 * all / (zero >= 2 ? 4 : 1)), (double)slack);
        CHECK_NEAR((double)line_of(&plan, "optimizer's first moments"), (double)(4 * all / (zero >= 1 ? 4 : 1)), (double)slack);
        CHECK_NEAR((double)line_of(&plan, "parameters of layers in use"), (double)(zero >= 3 ? 4 * slots : 0), (double)slack);
        CHECK_NEAR((double)line_of(&plan, "gradients of layers in use"), (double)(zero >= 2 ? 4 * slots : 0), (double)slack);
        CHECK(lines < total);
        total = lines;
        model_destroy(model);
    }
    device_close(device);
}

int main(void) {
    CHECK_OK(comm_open_world(&world));
    RUN(test_layouts);
    RUN(test_16_bits);
    RUN(test_order);
    RUN(test_memory);
    int code = check_report();
    comm_close(world);
    return code;
}
