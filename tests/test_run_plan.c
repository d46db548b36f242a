// train/run_plan: the memory of a run from its configuration, layout and machine alone; and what a container leaves.
#include "core/durable.h"
#include "data/tokens/loader.h"
#include "parallel/buckets.h"
#include "tests/support/check.h"
#include "train/run_plan.h"

#include <stdio.h>

static RunConfig read_config(const char *more) {
    char *path = path_join(check_folder(), "run.yaml");
    char *text = memory_format("folder: x\n"
                               "model: {family: llama, layers: 4, width: 256, heads: 4, context: 128, vocabulary: 1000}\n"
                               "data: {corpus: none}\n"
                               "train: {steps: 10, micro_batch: 8, batch_tokens: 4096%s}\n",
                               more);
    RunConfig config = {0};
    CHECK_OK(file_write(path, text, strlen(text)));
    CHECK_OK(run_config_read(&config, path, NULL, 0));
    CHECK_OK(run_config_resolve(&config, 1000, 1, path));
    free(text);
    free(path);
    return config;
}

static const RunLayout alone = {.ranks = 1, .data_ranks = 1, .micro_batches = 4};

static int64_t line_bytes(const MemoryPlan *plan, const char *name) {
    int64_t bytes = 0;
    for (int i = 0; i < plan->count; i++) {
        bytes += strcmp(plan->lines[i].name, name) == 0 ? plan->lines[i].bytes : 0;
    }
    return bytes;
}

// A card that is not here, of a kind that this build may not have.
static void test_pure(void) {
    RunConfig config = read_config("");
    Machine card = {.kind = DEVICE_CUDA, .type = TYPE_BF16, .threads = 8, .memory = (int64_t)80 << 30};
    MemoryPlan plan, again, shared;
    run_plan(&config, &alone, &card, &plan);
    run_plan(&config, &alone, &card, &again);
    CHECK(memcmp(&plan, &again, sizeof plan) == 0);
    int64_t parameters = params_count(&config.model), gaps = 64 * 50;
    int64_t weights = line_bytes(&plan, "parameters"), masters = line_bytes(&plan, "fp32 parameters");
    CHECK(weights >= 2 * parameters && weights <= 2 * parameters + gaps && masters >= 4 * parameters);
    CHECK(line_bytes(&plan, "micro-batches on the card") == 4 * (int64_t)batch_bytes(8, 128));
    int64_t snapshot = line_bytes(&plan, "checkpoint snapshot");
    CHECK(snapshot == 12 * parameters);  // masters and two moments
    CHECK(plan.host >= snapshot && plan.total > masters + weights);
    // Everything is in one of the two sums.
    int64_t sum = 0;
    for (int i = 0; i < plan.count; i++) {
        sum += plan.lines[i].bytes;
    }
    CHECK_I64(sum, plan.total + plan.host);
    // Ranks share what is saved, and bring buckets.
    RunLayout two = {.ranks = 2, .rank = 1, .data_ranks = 2, .data_rank = 1, .micro_batches = 2};
    run_plan(&config, &two, &card, &shared);
    RunLayout first = two;
    first.rank = first.data_rank = 0;
    MemoryPlan other;
    run_plan(&config, &first, &card, &other);
    CHECK_I64(line_bytes(&shared, "checkpoint snapshot") + line_bytes(&other, "checkpoint snapshot"), snapshot);
    CHECK_I64(line_bytes(&shared, "reduction buffers"),
              buckets_bytes(line_bytes(&shared, "gradients") / 4, run_bucket_bytes(&config), 2));
    run_config_free(&config);
}

// Each setting that should move a line does.
static void test_settings(void) {
    Machine machine = {.kind = DEVICE_CPU, .type = TYPE_FP32, .threads = 2};
    RunConfig config = read_config("");
    MemoryPlan plan, other;
    run_plan(&config, &alone, &machine, &plan);
    CHECK(plan.host == 0 && line_bytes(&plan, "sample texts") == 0);
    config.samples.every = 5;
    strings_add(&config.samples.prompts, "once upon a time");
    RunLayout with_prompt = alone;
    with_prompt.prompt_tokens = 40;
    config.samples.tokens = 60;
    run_plan(&config, &with_prompt, &machine, &other);
    int64_t keys = 2 * 4 * 100 * 256 * (int64_t)sizeof(float), texts = line_bytes(&other, "sample texts");
    CHECK(texts > keys && texts < 3 * keys);
    with_prompt.ranks = with_prompt.data_ranks = 2;
    with_prompt.rank = with_prompt.data_rank = 1;  // only the first rank writes them
    run_plan(&config, &with_prompt, &machine, &other);
    CHECK(line_bytes(&other, "sample texts") == 0);
    config.train.recompute = RECOMPUTE_FULL;
    run_plan(&config, &alone, &machine, &other);
    CHECK(line_bytes(&other, "queries, keys, values") * 4 == line_bytes(&plan, "queries, keys, values"));
    config.train.recompute = RECOMPUTE_SELECTIVE;
    run_plan(&config, &alone, &machine, &other);
    CHECK(line_bytes(&other, "feed-forward norm outputs") == 0 && line_bytes(&plan, "feed-forward norm outputs") > 0);
    run_config_free(&config);
}

static void test_refusal(void) {
    RunConfig config = read_config("");
    Machine machine = {.kind = DEVICE_CPU, .type = TYPE_FP32, .threads = 2, .program = 1 << 20};
    MemoryPlan plan;
    run_plan(&config, &alone, &machine, &plan);
    machine.memory = machine.host_memory = plan.total - machine.program;  // what the program has is no longer free
    CHECK_OK(run_plan_check(&config, &alone, &machine));
    machine.memory -= 1;
    CHECK_FAILS(run_plan_check(&config, &alone, &machine), "train.micro_batch=8 train.recompute=selective would fit, with");
    machine.memory = plan.total * 3 / 4;
    CHECK_FAILS(run_plan_check(&config, &alone, &machine), "would fit, with");
    machine.memory = 1 << 20;
    Error *error = run_plan_check(&config, &alone, &machine);
    CHECK(error != NULL && strstr(error->message, "would fit") == NULL &&
          strstr(error->message, "the largest part is") != NULL);
    error_free(error);
    // The host beside a card.
    Machine card = {.kind = DEVICE_CUDA, .type = TYPE_BF16, .threads = 8, .memory = (int64_t)80 << 30, .host_memory = 1 << 20};
    CHECK_FAILS(run_plan_check(&config, &alone, &card), "of the host's memory beside the card's");
    // The largest part of what the card lacks is one of the card's, however large the program is.
    card = (Machine){.kind = DEVICE_CUDA, .type = TYPE_BF16, .threads = 8, .memory = 1 << 20, .program = (int64_t)1 << 40};
    CHECK_FAILS(run_plan_check(&config, &alone, &card), "the largest part is kernels' workspace");
    run_config_free(&config);
}

// What the CPU's kernels took for themselves is what was planned, for long sequences too, whose attention takes most.
static void test_scratch(void) {
    enum { LENGTH = 2048, THREADS = 3 };
    Device *device;
    Model *model;
    RunConfig config = read_config("");
    config.model.layers = 1;
    config.model.context = LENGTH;
    CHECK_OK(device_open_cpu(THREADS, NULL, &device));
    ModelOptions options = {.sequences = 1, .length = LENGTH};
    CHECK_OK(model_create(device, &config.model, &options, &model));
    model_initialise(model, 1);
    Batch batch;
    batch_allocate(&batch, 1, LENGTH);
    for (int32_t i = 0; i < LENGTH; i++) {
        batch.tokens[i] = batch.targets[i] = i % 1000;
        batch.positions[i] = i;
        batch.loss_weights[i] = 1;
        batch.first[i] = 0;
    }
    model_forward_backward(model, &batch, &(StepOptions){.grad_scale = 1}, NULL);
    CHECK_OK(device_finish(device));
    int64_t planned = line_bytes(&model->plan, "kernels' scratch");
    CHECK((int64_t)device->scratch_bytes <= planned && planned - (int64_t)device->scratch_bytes < planned / 20);
    batch_free(&batch);
    model_destroy(model);
    device_close(device);
    run_config_free(&config);
}

// The largest sizes that a configuration may have are refused like others.
static void test_absurd(void) {
    RunConfig config = read_config("");
    config.model.layers = 4096;
    config.model.width = 1 << 18;
    config.model.ffn_width = 1 << 20;
    config.model.context = config.data.sequence_length = 1 << 24;
    Machine machine = {.kind = DEVICE_CPU, .type = TYPE_FP32, .threads = 2, .memory = (int64_t)1 << 40};
    MemoryPlan plan;
    for (int64_t sequences = 1; sequences <= 1 << 20; sequences *= 2) {
        config.train.micro_batch = sequences;
        run_plan(&config, &alone, &machine, &plan);
        bool rise = plan.total > PLAN_MOST_BYTES;
        for (int i = 0; i < plan.count; i++) {
            rise &= plan.lines[i].bytes >= 0;
        }
        CHECK(rise);
    }
    Error *error = run_plan_check(&config, &alone, &machine);
    CHECK(error != NULL && strstr(error->message, "would fit") == NULL);
    error_free(error);
    run_config_free(&config);
}

// ---- Containers

static void put(const char *root, const char *folder, const char *name, const char *text) {
    char *path = memory_format("%s%s", root, folder), *file = path_join(path, name);
    for (char *slash = path + strlen(root); (slash = strchr(slash + 1, '/')) != NULL; *slash = '/') {
        *slash = 0;
        CHECK_OK(folder_create(path));
    }
    CHECK_OK(folder_create(path));
    CHECK_OK(file_write(file, text, strlen(text)));
    free(file);
    free(path);
}

static void test_container(void) {
    const char *root = check_folder();
    size_t before = memory_available();
    memory_system_root = root;
    CHECK(memory_available() >= before / 2);  // no limits at all
    // Version 2: a limit above the process's own group counts, and pages of files can be given up.
    put(root, "/proc/self", "cgroup", "0::/machine/job\n");
    put(root, "/sys/fs/cgroup/machine/job", "memory.max", "max\n");
    put(root, "/sys/fs/cgroup/machine/job", "memory.current", "5000000\n");
    put(root, "/sys/fs/cgroup/machine", "memory.max", "9000000\n");
    put(root, "/sys/fs/cgroup/machine", "memory.current", "6000000\n");
    put(root, "/sys/fs/cgroup/machine", "memory.stat", "anon 4000000\nfile 2000000\ninactive_file 1500000\n");
    CHECK_I64(memory_available(), 4500000);
    // The group's own path is not seen within a container, its limit stands at the root.
    put(root, "/proc/self", "cgroup", "0::/not/seen/here\n");
    put(root, "/sys/fs/cgroup", "memory.max", "7000000\n");
    put(root, "/sys/fs/cgroup", "memory.current", "8000000\n");
    CHECK_I64(memory_available(), 0);
    // Version 1.
    put(root, "/proc/self", "cgroup", "5:cpu:/a\n4:memory:/job\n1:name=systemd:/\n");
    put(root, "/sys/fs/cgroup/memory/job", "memory.limit_in_bytes", "3000000\n");
    put(root, "/sys/fs/cgroup/memory/job", "memory.usage_in_bytes", "1000000\n");
    put(root, "/sys/fs/cgroup/memory/job", "memory.stat", "inactive_file 7\ntotal_inactive_file 250000\n");
    CHECK_I64(memory_available(), 2250000);
    memory_system_root = "";
}

int main(void) {
    RUN(test_pure);
    RUN(test_settings);
    RUN(test_refusal);
    RUN(test_scratch);
    RUN(test_absurd);
    RUN(test_container);
    return check_report();
}
