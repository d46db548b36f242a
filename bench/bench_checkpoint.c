// What a checkpoint costs beside the steps of a model: bench_checkpoint [--folder DIR] [--threads 2] [--repeats 5] [--plain
// true]
//
// A GPT-2 of 124M parameters trains on random tokens; its weights and moments are 1.5 GB. Each round, so that what others do to
// the machine meets all alike: the disk's own rate (`dd` of as many zeros, with fsync, through the page cache and past it),
// steps alone, a save beside steps (how long training stands still, how much longer the steps take until the commit), a save
// alone, and the checkpoint read back into the model. Medians over the rounds. --plain false leaves the saves out of the
// middle: the steps alone twice, which tells what the machine's noise is.
#include "bench/program.h"
#include "core/clock.h"
#include "core/durable.h"
#include "core/philox.h"
#include "core/threads.h"
#include "train/model/model.h"
#include "train/model_checkpoint.h"

#include <math.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

enum { MOST_REPEATS = 99, MOST_STEPS = 1000, LENGTH = 64 };

typedef struct Settings {
    char *folder;
    int64_t threads, repeats, steps;
    bool plain;
} Settings;

static const Key flags[] = {
    {"folder", KEY_PATH, offsetof(Settings, folder), "/tmp/athanor-bench-checkpoint",
     .help = "Where to write; removed at the end."},
    {"threads", KEY_INT, offsetof(Settings, threads), "0", 0, 256, .help = "Of the model; 0: one for each core."},
    {"repeats", KEY_INT, offsetof(Settings, repeats), "5", 1, MOST_REPEATS, .help = "Rounds."},
    {"steps", KEY_INT, offsetof(Settings, steps), "6", 1, 100, .help = "Steps alone in a round."},
    {"plain", KEY_BOOL, offsetof(Settings, plain), "true", .help = "Save beside the steps; false: only steps, for the noise."},
};

static const ModelConfig config = {.layers = 12,
                                   .width = 768,
                                   .heads = 12,
                                   .groups = 12,
                                   .head_width = 64,
                                   .ffn_width = 3072,
                                   .context = 1024,
                                   .vocabulary = 50257,
                                   .norm = NORM_LAYER,
                                   .norm_epsilon = 1e-5,
                                   .norm_bias = true,
                                   .qkv_bias = true,
                                   .attention_bias = true,
                                   .ffn_bias = true,
                                   .position = POSITION_LEARNED,
                                   .activation = ACTIVATION_GELU_TANH,
                                   .tied_head = true,
                                   .embedding_scale = 1,
                                   .init_deviation = 0.02,
                                   .init_scale_residual = true};

typedef enum Row {
    DISK_CACHED,
    DISK_DIRECT,
    STEP_ALONE,
    STEP_BESIDE,
    STALL,
    WRITE_BESIDE,
    SAVE_BESIDE,
    PROCESSOR,
    WRITE_ALONE,
    CHECK_ALONE,
    SAVE_ALONE,
    READ,
    ROWS
} Row;

typedef struct Bench {
    const Settings *settings;
    Model *model;
    Batch batch;
    ModelParts parts;
    CheckpointWriter *writer;
    int64_t step;
    double bytes;
    double values[ROWS][MOST_REPEATS];
} Bench;

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int64_t count) {
    qsort(values, (size_t)count, sizeof *values, ascending);
    return values[count / 2];
}

static double one_step(Bench *b) {
    double start = clock_seconds(), rows = (double)(b->batch.sequences * b->batch.length);
    StepOptions how = {.grad_scale = (float)(1 / rows)};
    model_begin_step(b->model, 1e-4);
    weights_zero_gradients(&b->model->weights);
    model_forward_backward(b->model, &b->batch, &how, NULL);
    model_finish_step(b->model, &(UpdateOptions){.batch_weight = rows, .beta1 = 0.9f, .beta2 = 0.95f, .epsilon = 1e-8f});
    ensure(isfinite(model_control(b->model).loss_sum), "the loss is not finite");
    return clock_seconds() - start;
}

// Seconds that dd takes, of the same bytes in the same folder.
static double disk(const Bench *b, const char *how) {
    char *file = path_join(b->settings->folder, "dd"),
         *command = memory_format("dd if=/dev/zero of='%s' bs=4M count=%.0f conv=fsync %s 2>/dev/null", file,
                                  ceil(b->bytes / (4 << 20)), how);
    double start = clock_seconds();
    int code = system(command);
    double seconds = clock_seconds() - start;
    ensure(code == 0, "'%s' ends with %d", command, code);
    unlink(file);
    free(command);
    free(file);
    return seconds;
}

static void begin(Bench *b) {
    json_t *state = json_object();
    checkpoint_writer_begin(b->writer, 1, ++b->step, state, NULL, 0);
    json_decref(state);
}

static bool ended(Bench *b) {
    double now[CHECKPOINT_FLAGS];
    checkpoint_writer_flags(b->writer, now);
    CheckpointEvent event = checkpoint_writer_advance(b->writer, now);
    ensure(event != CHECKPOINT_FAILED, "a save failed");
    return event == CHECKPOINT_COMMITTED;
}

static double processor(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           1e-6 * (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

static void steps_alone(Bench *b, int64_t round) {
    double times[100];
    for (int64_t i = 0; i < b->settings->steps; i++) {
        times[i] = one_step(b);
    }
    b->values[STEP_ALONE][round] = median(times, b->settings->steps);
}

// Steps until the save is committed: what one of them takes on the average, for those beside the busiest part count most.
static void steps_beside(Bench *b, int64_t round) {
    int steps = 0;
    double seconds = 0;
    if (b->settings->plain) {
        begin(b);
    }
    do {
        seconds += one_step(b);
        steps++;
    } while (b->settings->plain ? !ended(b) : steps < b->settings->steps);
    CheckpointTime time = checkpoint_writer_time(b->writer);
    b->values[STEP_BESIDE][round] = seconds / steps;
    b->values[STALL][round] = time.snapshot;
    b->values[WRITE_BESIDE][round] = time.write;
    b->values[SAVE_BESIDE][round] = time.save;
}

static void save_alone(Bench *b, int64_t round) {
    double before = processor();
    begin(b);
    while (!ended(b)) {
        usleep(1000);
    }
    CheckpointTime time = checkpoint_writer_time(b->writer);
    b->values[PROCESSOR][round] = processor() - before;
    b->values[WRITE_ALONE][round] = time.write;
    b->values[CHECK_ALONE][round] = time.check;
    b->values[SAVE_ALONE][round] = time.save;
}

static Error *load(Bench *b, int64_t round) {
    char *path = memory_format("%s/checkpoints/step-%08lld", b->settings->folder, (long long)b->step);
    Checkpoint *checkpoint = NULL;
    double start = clock_seconds();
    Error *error = checkpoint_open(path, false, &checkpoint);
    error = error == NULL ? model_load(checkpoint, &b->model->weights, true) : error;
    b->values[READ][round] = clock_seconds() - start;
    checkpoint_close(checkpoint);
    free(path);
    return error;
}

static void print_rates(Bench *b) {
    int64_t n = b->settings->repeats;
    static const char *const names[ROWS] = {[DISK_CACHED] = "dd with fsync",
                                            [DISK_DIRECT] = "dd with fsync, past the page cache",
                                            [WRITE_ALONE] = "written and durable, alone",
                                            [WRITE_BESIDE] = "written and durable, beside steps",
                                            [CHECK_ALONE] = "read back and compared, alone",
                                            [SAVE_ALONE] = "begin to commit, alone",
                                            [SAVE_BESIDE] = "begin to commit, beside steps",
                                            [READ] = "loaded into the model, digests compared"};
    double alone = median(b->values[STEP_ALONE], n), beside = median(b->values[STEP_BESIDE], n),
           cached = median(b->values[DISK_CACHED], n);
    printf("%.2f GB, medians of %lld rounds\n", b->bytes * 1e-9, (long long)n);
    for (int r = 0; r < ROWS; r++) {
        if (names[r] != NULL && (b->settings->plain || r <= DISK_DIRECT)) {
            double seconds = median(b->values[r], n);
            printf("%-42s %7.3f s %8.0f MB/s  %5.0f%% of dd\n", names[r], seconds, b->bytes * 1e-6 / seconds,
                   100 * cached / seconds);
        }
    }
    printf("%-42s %7.3f s\n", "training stands still", median(b->values[STALL], n));
    printf("%-42s %7.3f s of a processor\n", "a save alone", median(b->values[PROCESSOR], n));
    printf("%-42s %7.3f s; beside a save %.3f s, %+.1f%%\n", "a step", alone, beside, 100 * (beside / alone - 1));
}

static Error *measure(Bench *b) {
    CheckpointPlan plan = {.run_folder = b->settings->folder,
                           .ranks = 1,
                           .keep_last = 1,
                           .layout = "one rank",
                           .tensors = b->parts.tensors,
                           .tensor_count = b->model->table.count,
                           .parts = b->parts.parts,
                           .part_count = b->parts.count,
                           .fetch = model_parts_fetch,
                           .fetch_context = &b->parts};
    TRY(checkpoint_writer_create(&plan, &b->writer));
    b->bytes = (double)checkpoint_snapshot_bytes(b->parts.parts, b->parts.count);
    one_step(b);
    save_alone(b, 0);
    Error *error = NULL;
    for (int64_t round = 0; round < b->settings->repeats && error == NULL; round++) {
        b->values[DISK_CACHED][round] = disk(b, "");
        b->values[DISK_DIRECT][round] = disk(b, "oflag=direct");
        steps_alone(b, round);
        steps_beside(b, round);
        save_alone(b, round);
        error = load(b, round);
    }
    if (error == NULL) {
        print_rates(b);
    }
    checkpoint_writer_destroy(b->writer);
    return error;
}

static Error *bench(const void *given, int rest_count, char **rest) {
    Bench b = {.settings = given};
    if (rest_count > 0) {
        return usage_error("'%s' is no flag", rest[0]);
    }
    Device *device;
    TRY(device_open_cpu(b.settings->threads > 0 ? (int)b.settings->threads : threads_available(), "auto", &device));
    TRY(model_create(device, &config, &(ModelOptions){.sequences = 1, .length = LENGTH}, &b.model));
    model_initialise(b.model, 1);
    batch_allocate(&b.batch, 1, LENGTH);
    for (int r = 0; r < LENGTH; r++) {
        Philox random = philox(1, philox_stream(RANDOM_TEST, 0), (uint64_t)r);
        b.batch.tokens[r] = (int32_t)(random.word[0] % (uint64_t)config.vocabulary);
        b.batch.targets[r] = (int32_t)(random.word[1] % (uint64_t)config.vocabulary);
        b.batch.positions[r] = r;
        b.batch.loss_weights[r] = 1;
        b.batch.first[r] = 0;
    }
    b.parts = model_parts(&b.model->weights, 1, 0);
    Error *error = measure(&b), *removed = folder_remove(b.settings->folder);
    error_keep(&error, removed);
    model_parts_free(&b.parts);
    batch_free(&b.batch);
    model_destroy(b.model);
    device_close(device);
    return error;
}

int main(int argc, char **argv) {
    Settings settings = {0};
    return program_main("bench_checkpoint", flags, sizeof flags / sizeof *flags, &settings, bench, argc, argv);
}
