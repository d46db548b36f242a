// train/run_layout, train/layout_search: which layouts work, which are the nearest, and which is chosen; without a device.
#include "core/durable.h"
#include "tests/support/check.h"
#include "train/layout_search.h"

#include <stdio.h>

static RunConfig read_config(const char *model, const char *parallel) {
    char *path = path_join(check_folder(), "run.yaml");
    char *text = memory_format("folder: x\nmodel: {%s, context: 512, vocabulary: 1001}\ndata: {corpus: none}\n"
                               "train: {steps: 10, micro_batch: 2, batch_tokens: 65536}\nparallel: {%s}\n",
                               model, parallel);
    RunConfig config = {0};
    CHECK_OK(file_write(path, text, strlen(text)));
    CHECK_OK(run_config_read(&config, path, NULL, 0));
    CHECK_OK(run_config_resolve_model(&config, 1001, path));
    config.data.sequence_length = config.model.context;
    free(text);
    free(path);
    return config;
}

static const char llama[] = "family: llama, layers: 6, width: 192, heads: 12, groups: 6";

static void check_resolve(const char *parallel, int ranks, const char *told) {
    RunConfig config = read_config(llama, parallel);
    int size[MESH_AXES];
    if (told == NULL) {
        CHECK_OK(run_layout_resolve(&config, ranks, "x", size));
        CHECK_I64(size[MESH_DATA] * size[MESH_TENSOR] * size[MESH_PIPELINE] * size[MESH_CONTEXT], ranks);
    } else {
        CHECK_FAILS(run_layout_resolve(&config, ranks, "x", size), told);
    }
    run_config_free(&config);
}

static void test_refused(void) {
    check_resolve("", 8, NULL);
    check_resolve("tensor: 2", 8, NULL);
    check_resolve("data: 4, tensor: 2", 8, NULL);
    check_resolve("data: 3", 8, "x: parallel.data=3 cannot be made of 8 ranks; parallel.data=8 or parallel.data=4 parallel.");
    check_resolve("tensor: 4", 8, "6 key/value heads (model.groups) cannot be divided among 4 tensor-parallel ranks: 3 can; ");
    check_resolve("tensor: 4", 9, "parallel.tensor=4 cannot be made of 9 ranks; parallel.data=9 parallel.tensor=1");
    check_resolve("tensor: 12", 12, "12 tensor-parallel ranks: 6 can; parallel.");
    check_resolve("tensor: 1000000", 12, "1000000 tensor-parallel ranks cannot be had of 12 ranks; ");
    check_resolve("tensor: 1000000, data: 1000000", 12, "cannot be had of 12 ranks; ");
    check_resolve("data: 3", 3, NULL);
    check_resolve("data: 3, zero: 1", 3, NULL);
    check_resolve("data: 3, zero: 2", 3,
                  "with parallel.zero 2 the 64 micro-batches of a step must be divisible by 3 data-parallel");
    // 64 micro-batches: 67, a prime, and no axis that could take the rest; but sequences one by one are enough.
    check_resolve("", 67, "has 64 micro-batches, too few for 67 data-parallel ranks; parallel.");
    check_resolve("", 67, "would do; train.micro_batch=1 would do too");
    check_resolve("data: 128, zero: 2", 128, "would do; train.micro_batch=1 would do too");
    // 1100 tokens are no multiple of anything here, whoever shares them: run_config_resolve says so, with what would do.
    RunConfig config = read_config(llama, "");
    int size[MESH_AXES];
    config.train.batch_tokens = 1100;
    CHECK_OK(run_layout_resolve(&config, 8, "x", size));
    run_config_free(&config);
}

// Every layout that is listed is accepted, and every one that is not is refused.
static void test_list(void) {
    RunConfig config = read_config(llama, "");
    for (int ranks = 1; ranks <= 24; ranks++) {
        LayoutSizes *list;
        int count = run_layout_list(&config, ranks, &list), accepted = 0;
        for (int data = 1; data <= ranks; data++) {
            for (int tensor = 1; tensor <= ranks; tensor++) {
                for (int pipeline = 1; pipeline <= ranks; pipeline++) {
                    for (int context = 1; context <= ranks; context++) {
                        if (data * tensor * pipeline * context == ranks) {
                            Error *error = run_layout_check(&config, (const int[]){data, tensor, pipeline, context});
                            accepted += error == NULL;
                            error_free(error);
                        }
                    }
                }
            }
        }
        CHECK_I64(count, accepted);
        for (int i = 0; i < count; i++) {
            CHECK_OK(run_layout_check(&config, list[i].size));
        }
        free(list);
    }
    run_config_free(&config);
}

static LayoutScore best(const RunConfig *config, int64_t memory, int ranks) {
    Machine machine = {.kind = DEVICE_CPU, .type = TYPE_FP32, .threads = 1, .memory = memory, .host_memory = memory};
    LayoutCosts costs = layout_costs(&machine);
    LayoutScore *scores, first;
    int count = layout_search(config, &machine, ranks, &costs, &scores);
    CHECK(count > 0);
    for (int i = 1; i < count; i++) {
        CHECK(scores[i - 1].fits >= scores[i].fits);
    }
    char *why = layout_why(scores, count, &machine);
    CHECK((count == 1 || strstr(why, "next best") != NULL) && strchr(why, '\n') == NULL);
    free(why);
    first = scores[0];
    free(scores);
    return first;
}

// With room for all, what sends least; with less, what fits; with none, what is smallest.
static void test_search(void) {
    RunConfig config = read_config("family: llama, layers: 12, width: 768, heads: 12", "");
    LayoutScore roomy = best(&config, (int64_t)64 << 30, 4);
    if (!CHECK(roomy.fits && roomy.size[MESH_DATA] == 4 && roomy.zero == 0)) {
        printf("data %d tensor %d pipeline %d context %d zero %d\n", roomy.size[0], roomy.size[1], roomy.size[2], roomy.size[3],
               (int)roomy.zero);
    }
    LayoutScore tight = best(&config, roomy.memory - 1, 4);
    CHECK(tight.fits && tight.memory < roomy.memory);
    CHECK(tight.zero > 0 || tight.size[MESH_DATA] < 4);
    LayoutScore none = best(&config, 1 << 20, 4);
    CHECK(!none.fits && none.memory <= tight.memory);
    run_config_free(&config);
    // What is given is kept.
    config = read_config("family: llama, layers: 12, width: 768, heads: 12", "tensor: 2, zero: 1");
    LayoutScore kept = best(&config, (int64_t)64 << 30, 4);
    CHECK(kept.size[MESH_TENSOR] == 2 && kept.zero >= 1);
    run_config_free(&config);
}

// Ranks' shares of a step add up to it, and differ by one micro-batch at most.
static void test_shares(void) {
    RunConfig config = read_config(llama, "");
    for (int ranks = 1; ranks <= 64; ranks++) {
        int64_t sum = 0;
        for (int rank = 0; rank < ranks; rank++) {
            int64_t share = run_config_micro_batches(&config, ranks, rank);
            CHECK(share == 64 / ranks || share == 64 / ranks + 1);
            sum += share;
        }
        CHECK_I64(sum, 64);
    }
    run_config_free(&config);
}

int main(void) {
    RUN(test_refused);
    RUN(test_list);
    RUN(test_search);
    RUN(test_shares);
    return check_report();
}
