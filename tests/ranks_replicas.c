// What ranks hold alike: nothing is found while it is, and a bit that changes on one of them is found and named.
#include "tests/support/check.h"
#include "tests/support/models.h"
#include "train/replicas.h"

static Comm *world;

static Model *open_model(TensorShare tensor) {
    ModelConfig config =
        models_config("model:\n  family: gpt2\n  layers: 2\n  width: 32\n  heads: 4\n  context: 16\n  vocabulary: 61\n");
    ModelOptions options = {.sequences = 1, .length = 16, .optimizer = OPTIMIZER_ADAMW, .head_rows = 16, .tensor = tensor};
    Device *device;
    CHECK_OK(device_open_cpu(1, NULL, &device));
    Model *model;
    CHECK_OK(model_create(device, &config, &options, &model));
    model_initialise(model, 7);
    return model;
}

// The last bit of a weight's element 3.
static void flip(Model *model, const char *name) {
    int32_t row = (int32_t)(params_find(&model->table, name) - model->table.rows);
    float value;
    uint32_t bits;
    weights_read(&model->weights, ARRAY_WEIGHT, row, 3, 4, &value);
    memcpy(&bits, &value, sizeof bits);
    bits ^= 1;
    memcpy(&value, &bits, sizeof value);
    weights_write(&model->weights, ARRAY_WEIGHT, row, 3, 4, &value);
}

static void check_found(Model *model, Comm *comm, const char *part) {
    Error *error = replicas_check(&model->weights, comm);
    CHECK(error != NULL);
    if (error != NULL && comm->rank == 0 && !CHECK(strstr(error->message, part) != NULL)) {
        printf("%s\n", error->message);
    }
    error_free(error);
    CHECK_OK(comm_agree(comm, NULL));
}

// Ranks that hold everything: the odd one is named, whichever it is; of two, either may be.
static void test_whole(void) {
    Model *model = open_model((TensorShare){0});
    CHECK_OK(replicas_check(&model->weights, world));
    for (int odd = 0; odd < world->size && world->size > 1; odd++) {
        if (world->rank == odd) {
            flip(model, "layers.1.mlp.up.weight");
        }
        char part[128];
        snprintf(part, sizeof part,
                 "layers.1.mlp.up.weight is no longer the same on ranks that hold it alike: rank %d holds other",
                 world->size == 2 ? 1 : odd);
        check_found(model, world, part);
        if (world->rank == odd) {
            flip(model, "layers.1.mlp.up.weight");
        }
    }
    CHECK_OK(replicas_check(&model->weights, world));
    models_close(model);
}

// Of two tensor-parallel pairs: what is cut is alike on two ranks alone, what is not on all four.
static void test_cut(void) {
    if (world->size != 4) {
        return;
    }
    Model *model = open_model((TensorShare){world->rank % 2, 2, true});
    CHECK_OK(replicas_check(&model->weights, world));
    if (world->rank == 3) {
        flip(model, "layers.0.attention.qkv.weight");
    }
    check_found(model, world,
                "layers.0.attention.qkv.weight is no longer the same on ranks that hold it alike: rank 3 holds other values "
                "than rank 1 and 0 more of 2 (1 tensor in all)");
    if (world->rank == 2) {
        flip(model, "final_norm.bias");
    }
    if (world->rank == 3) {
        flip(model, "layers.0.attention.qkv.weight");
    }
    check_found(model, world,
                "final_norm.bias is no longer the same on ranks that hold it alike: rank 2 holds other values than rank 0 and "
                "2 more of 4");
    models_close(model);
}

int main(void) {
    CHECK_OK(comm_open_world(&world));
    RUN(test_whole);
    RUN(test_cut);
    int code = check_report();
    comm_close(world);
    return code;
}
