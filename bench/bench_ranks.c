// What it costs ranks to work together: sums of gradients, and checkpoints.
//
//   mpirun -n 2 bench_ranks [--parameters 124M] [--folder DIR] [--repeats 5]
//
// Sums: an array of that many floats, summed at once and in buckets of several sizes, alone and while the rank computes (pieces
// of arithmetic of about 5 ms, a poll after each, as a backward pass does); "exposed" is what the step then still waits. Then
// the other operations that layouts are made of, each with that array as the larger side, and neighbours that exchange
// messages. Checkpoints: three arrays of that size, saved by all ranks together: how long training stands still, how long until
// the commit, then finding (all checksums) and reading back. Beside them the speed of a plain copy in the same run. Medians.
#include "core/clock.h"
#include "core/durable.h"
#include "core/log.h"
#include "core/options.h"
#include "core/text.h"
#include "parallel/buckets.h"
#include "parallel/sharding.h"
#include "train/checkpoint/checkpoint.h"

#include <stdio.h>

typedef struct Settings {
    int64_t parameters, repeats;
    char *folder;
} Settings;

static const Key flags[] = {
    {"parameters", KEY_INT, offsetof(Settings, parameters), "124M", 1, 1e12, NULL, "floats", "size of the model"},
    {"repeats", KEY_INT, offsetof(Settings, repeats), "5", 1, 1000, NULL, NULL, "measurements of each number"},
    {"folder", KEY_TEXT, offsetof(Settings, folder), "/tmp/athanor-bench-ranks", 0, 0, NULL, NULL,
     "where checkpoints are written and removed again"},
};
enum { FLAG_COUNT = sizeof flags / sizeof *flags, MOST_REPEATS = 1000, KINDS = 3 };

static Comm *world;
static Group *group;  // of the same ranks

static void stop_on(Error *error) {
    if (error != NULL) {
        log_error("%s", error->message);
        comm_abort(world, 1);
    }
}

static int compare_doubles(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return a < b ? -1 : a > b;
}

static double median(double *values, int64_t count) {
    qsort(values, (size_t)count, sizeof *values, compare_doubles);
    return values[count / 2];
}

static double together(void) {
    stop_on(comm_barrier(world));
    return clock_seconds();
}

static void print_rate(const char *what, double seconds, double bytes) {
    if (world->rank == 0) {
        printf("%-44s %8.3f s  %7.2f GB/s\n", what, seconds, bytes / seconds * 1e-9);
    }
}

// Arithmetic for about `seconds`, in registers, with a poll after each piece.
static void compute(double seconds, double piece, Buckets *buckets, int64_t count) {
    for (double start = clock_seconds(), now = start; now - start < seconds; now = clock_seconds()) {
        float x = 1;
        while (clock_seconds() - now < piece) {
            for (int i = 0; i < 1000; i++) {
                x = x * 0.999f + 0.001f;
            }
        }
        __asm__ volatile("" : "+m"(x));
        // Gradients become final at an even pace over the first nine tenths.
        double left = 1 - (clock_seconds() - start) / (0.9 * seconds);
        stop_on(buckets_final_from(buckets, left > 0 ? (int64_t)(left * (double)count) : 0));
    }
}

static void measure_sums(float *data, int64_t count, int64_t repeats) {
    static const int64_t mib[] = {0, 1, 2, 4, 8, 16, 64};
    double times[MOST_REPEATS], exposed[MOST_REPEATS], bytes = (double)count * sizeof(float);
    double blocking = 0;
    for (int64_t i = 0; i < repeats; i++) {
        double start = together();
        stop_on(group_all_reduce(group, ELEMENT_FP32, COMM_SUM, data, count));
        times[i] = clock_seconds() - start;
    }
    blocking = median(times, repeats);
    print_rate("sum, blocking", blocking, bytes);
    for (size_t m = 0; m < sizeof mib / sizeof *mib; m++) {
        Buckets *buckets = buckets_create(group, data, count, mib[m] << 20, false);
        char what[96];
        for (int64_t i = 0; i < repeats; i++) {
            double start = together();
            buckets_begin(buckets);
            stop_on(buckets_finish(buckets));
            times[i] = clock_seconds() - start;
            together();
            buckets_begin(buckets);
            compute(4 * blocking, 5e-3, buckets, count);
            stop_on(buckets_finish(buckets));
            exposed[i] = buckets_time(buckets).waited;
        }
        snprintf(what, sizeof what, "sum, buckets of %lld MiB%s", (long long)mib[m], mib[m] == 0 ? " (all at once)" : "");
        print_rate(what, median(times, repeats), bytes);
        if (world->rank == 0) {
            printf("    exposed beside computing of %5.2f s        %8.3f s\n", 4 * blocking, median(exposed, repeats));
        }
        buckets_destroy(buckets);
    }
}

// Every rank exchanges the array with its neighbours: to the next, from the one before.
static Error *shift(float *data, float *other, int64_t count) {
    int next = (world->rank + 1) % world->size, last = (world->rank + world->size - 1) % world->size;
    GroupRequest *sent, *received;
    TRY(group_start(group, &(Collective){GROUP_SEND, ELEMENT_FP32, .count = count, .send = data, .peer = next}, &sent));
    TRY(group_start(group, &(Collective){GROUP_RECEIVE, ELEMENT_FP32, .count = count, .receive = other, .peer = last},
                    &received));
    TRY(group_wait(&sent));
    return group_wait(&received);
}

static void measure_operations(float *data, float *other, int64_t count, int64_t repeats) {
    static const char *const names[] = {"sum of bf16",         "reduce-scatter", "reduce-scatter, in place", "all-gather",
                                        "all-gather in place", "all-to-all",     "messages around the ring"};
    double times[MOST_REPEATS];
    int64_t part = count / world->size;
    float *own = data + world->rank * part;
    for (int k = 0; k < (int)(sizeof names / sizeof *names); k++) {
        for (int64_t i = 0; i < repeats; i++) {
            double start = together();
            stop_on(k == 0   ? group_all_reduce(group, ELEMENT_BF16, COMM_SUM, data, 2 * count)
                    : k == 1 ? group_reduce_scatter(group, ELEMENT_FP32, data, other, part)
                    : k == 2 ? group_reduce_scatter(group, ELEMENT_FP32, data, own, part)
                    : k == 3 ? group_all_gather(group, ELEMENT_FP32, other, data, part)
                    : k == 4 ? group_all_gather(group, ELEMENT_FP32, own, data, part)
                    : k == 5 ? group_all_to_all(group, ELEMENT_FP32, data, other, part)
                             : shift(data, other, count));
            times[i] = clock_seconds() - start;
        }
        print_rate(names[k], median(times, repeats), (double)count * sizeof(float));
    }
}

static const char *const kinds[KINDS] = {"weight", "moment1", "moment2"};

static void fetch(void *context, const CheckpointPart *part, void *to, float *scales) {
    (void)scales;
    float **arrays = context;
    int k = 0;
    while (strcmp(kinds[k], part->kind) != 0) {
        k++;
    }
    memcpy(to, arrays[k] + part->boxes[0].begin[0], (size_t)box_count(&part->boxes[0]) * sizeof(float));
}

static void measure_checkpoints(const Settings *settings, float *arrays[KINDS]) {
    int64_t count = settings->parameters;
    Range mine = shard_part(count, world->size, world->rank);
    CheckpointTensor tensor = {"weights", 1, {count}};
    CheckpointPart parts[KINDS];
    Box whole = box_whole(1, &count), box = {.dims = 1, .begin = {mine.begin}, .end = {mine.end}};
    for (int k = 0; k < KINDS; k++) {
        parts[k] = (CheckpointPart){.kind = kinds[k], .boxes = &box, .box_count = 1};
    }
    CheckpointPlan plan = {.run_folder = settings->folder,
                           .rank = world->rank,
                           .ranks = world->size,
                           .keep_last = 1,
                           .layout = "data",
                           .tensors = &tensor,
                           .tensor_count = 1,
                           .parts = parts,
                           .part_count = mine.begin < mine.end ? KINDS : 0,
                           .fetch = fetch,
                           .fetch_context = arrays};
    CheckpointWriter *writer;
    stop_on(comm_agree(world, checkpoint_writer_create(&plan, &writer)));
    double stand[MOST_REPEATS], save[MOST_REPEATS];
    double bytes = 3.0 * (double)count * sizeof(float);
    json_t *state = json_object();
    for (int64_t i = 0; i < settings->repeats; i++) {
        together();
        checkpoint_writer_begin(writer, 1, i, state, NULL, 0);
        CheckpointEvent event;
        stop_on(checkpoint_writer_wait(writer, world, &event));
        ensure(event == CHECKPOINT_COMMITTED, "not saved");
        stand[i] = checkpoint_writer_time(writer).snapshot;
        save[i] = checkpoint_writer_time(writer).save;
    }
    json_decref(state);
    print_rate("checkpoint, training stands still", median(stand, settings->repeats), bytes);
    print_rate("checkpoint, begin to commit", median(save, settings->repeats), bytes);
    checkpoint_writer_destroy(writer);
    double start = together();
    if (world->rank == 0) {
        char *path;
        Checkpoint *checkpoint;
        stop_on(checkpoint_find(settings->folder, INT64_MAX, 0, &path, NULL));
        print_rate("checkpoint, found (all checksums, rank 0)", clock_seconds() - start, bytes);
        start = clock_seconds();
        stop_on(checkpoint_open(path, false, &checkpoint));
        for (int k = 0; k < KINDS; k++) {
            stop_on(checkpoint_read(checkpoint, "weights", kinds[k], &whole, 1, arrays[k]));
        }
        print_rate("checkpoint, read (rank 0)", clock_seconds() - start, bytes);
        checkpoint_close(checkpoint);
        free(path);
        stop_on(folder_remove(settings->folder));
    }
    stop_on(comm_barrier(world));
}

int main(int argc, char **argv) {
    Settings settings = {0};
    char *rest[8];
    int rest_count = 0;
    keys_defaults(flags, FLAG_COUNT, &settings);
    stop_on(options_parse(flags, FLAG_COUNT, &settings, argc - 1 < 8 ? argc - 1 : 8, argv + 1, rest, &rest_count));
    stop_on(comm_open_world(&world));
    stop_on(group_create(world, "data", NULL, &group));
    size_t bytes = (size_t)settings.parameters * sizeof(float);
    float *arrays[KINDS];
    for (int k = 0; k < KINDS; k++) {
        arrays[k] = memory_tensor(bytes);
        memset(arrays[k], 0, bytes);
    }
    char size[32];
    if (world->rank == 0) {
        printf("%d ranks, %s floats\n", world->size, text_count(size, (double)settings.parameters));
    }
    double times[MOST_REPEATS];
    for (int64_t i = 0; i < settings.repeats; i++) {
        double start = together();
        memcpy(arrays[0], arrays[1], bytes);
        times[i] = clock_seconds() - start;
    }
    print_rate("memcpy on every rank at once", median(times, settings.repeats), (double)bytes);
    if (world->size > 1) {
        measure_sums(arrays[0], settings.parameters, settings.repeats);
        measure_operations(arrays[0], arrays[1], settings.parameters, settings.repeats);
    }
    measure_checkpoints(&settings, arrays);
    for (int k = 0; k < KINDS; k++) {
        memory_tensor_free(arrays[k], bytes);
    }
    keys_free(flags, FLAG_COUNT, &settings);
    group_close(group, false);
    comm_close(world);
    return 0;
}
