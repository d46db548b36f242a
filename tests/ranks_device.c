// Ranks with simulated cards: sums in memory of cards by NCCL (one card a rank) and through host memory (one card for all),
// their order with the operations of the card, recording, and errors.
#include "parallel/buckets.h"
#include "parallel/comm_backends.h"
#include "tests/support/check.h"

#include <math.h>
#include <stdio.h>

#if defined(ATHANOR_HAVE_SIMULATED) && defined(ATHANOR_HAVE_MPI)
#include <cuda_runtime_api.h>
#include <nccl.h>

static Comm *world, *group;  // group: the world again, with cards attached
static Device *device;
static bool staged;

static const char *const timings[] = {"late", "early", "random"};

// What rank `rank` holds at index i; small multiples of 1/8, so that sums are exact in any order.
static float exact_value(int rank, int64_t i, int round) {
    return (float)((i * 7 + rank * 13 + round * 29) % 101 - 50) * 0.125f;
}

static int64_t wrong_sums(const float *data, int64_t count, int round) {
    int64_t wrong = 0;
    for (int64_t i = 0; i < count; i++) {
        float sum = 0;
        for (int r = 0; r < group->size; r++) {
            sum += exact_value(r, i, round);
        }
        wrong += data[i] != sum;
    }
    return wrong;
}

static void fill(float *data, int64_t count, int round) {
    for (int64_t i = 0; i < count; i++) {
        data[i] = exact_value(group->rank, i, round);
    }
}

static void *allocate(size_t bytes) {
    void *memory = NULL;
    CHECK_OK(device_allocate(device, bytes, &memory));
    return memory;
}

static void test_sums(void) {
    static const int64_t counts[] = {0, 1, 2, 7, 1000, 100003};
    enum { MOST = 100003 };
    float *host = memory_new(MOST, sizeof *host), *data = allocate(MOST * sizeof *data);
    for (int round = 0; round < 6; round++) {
        int64_t count = counts[round];
        simulated_settings((uint64_t)(round + 10 * world->rank), timings[round % 3]);
        fill(host, count, round);
        device_upload(device, data, host, (size_t)count * sizeof *host);
        CHECK_OK(comm_all_reduce(group, data, count));
        device_download(device, host, data, (size_t)count * sizeof *host);
        CHECK_I64(wrong_sums(host, count, round), 0);

        fill(host, count, round + 1);
        device_upload(device, data, host, (size_t)count * sizeof *host);
        CommRequest *request = NULL;
        CHECK_OK(comm_start_all_reduce(group, data, count, &request));
        bool done;
        for (int i = 0; i < 3 && request != NULL; i++) {
            CHECK_OK(comm_test(&request, &done));
        }
        CHECK_OK(comm_wait(&request));
        CHECK(request == NULL);
        device_download(device, host, data, (size_t)count * sizeof *host);
        CHECK_I64(wrong_sums(host, count, round + 1), 0);
    }
    simulated_settings(0, "late");
    // Maxima, doubles.
    float most[9];
    for (int i = 0; i < 9; i++) {
        most[i] = group->rank == i % group->size ? 5.0f + (float)i : -1;
    }
    device_upload(device, data, most, sizeof most);
    CHECK_OK(comm_all_reduce_device(group, data, 9, true));
    device_download(device, most, data, sizeof most);
    for (int i = 0; i < 9; i++) {
        CHECK(most[i] == 5 + i);
    }
    double sums[3] = {group->rank, 1, 1.0 / 3};
    device_upload(device, data, sums, sizeof sums);
    CHECK_OK(comm_all_reduce_device_doubles(group, (double *)data, 3));
    device_download(device, sums, data, sizeof sums);
    CHECK(sums[0] == group->size * (group->size - 1) / 2.0 && sums[1] == group->size);
    CHECK_NEAR(sums[2], group->size / 3.0, 1e-15);
    CHECK_OK(comm_check(group));
    CHECK_OK(device_finish(device));
    device_release(device, data, MOST * sizeof *data);
    free(host);
}

// Sums of random numbers: MPI's within rounding, and the same bits on every rank and in every run.
static void test_rounding(void) {
    enum { COUNT = 5001 };
    float *own = memory_new(COUNT, sizeof *own), *expected = memory_new(COUNT, sizeof *own);
    float *first = memory_new(COUNT, sizeof *own), *again = memory_new(COUNT, sizeof *own);
    for (int i = 0; i < COUNT; i++) {
        own[i] = expected[i] = (float)((i * 2654435761u + (unsigned)world->rank * 40503u) % 1000003) / 1000003.0f - 0.5f;
    }
    CHECK_OK(comm_all_reduce(world, expected, COUNT));
    float *data = allocate(COUNT * sizeof *data);
    for (int run = 0; run < 2; run++) {
        simulated_settings((uint64_t)(run * 7 + world->rank), timings[run * 2]);
        device_upload(device, data, own, COUNT * sizeof *own);
        CHECK_OK(comm_all_reduce(group, data, COUNT));
        device_download(device, run == 0 ? first : again, data, COUNT * sizeof *own);
    }
    simulated_settings(0, "late");
    CHECK(memcmp(first, again, COUNT * sizeof *own) == 0);
    double worst = 0;
    for (int i = 0; i < COUNT; i++) {
        worst = fmax(worst, fabs((double)first[i] - expected[i]));
    }
    CHECK(worst <= 4 * 6e-8 * world->size);
    memcpy(again, first, COUNT * sizeof *own);
    CHECK_OK(comm_broadcast(world, again, COUNT * sizeof *own, 0));
    CHECK(memcmp(first, again, COUNT * sizeof *own) == 0);
    device_release(device, data, COUNT * sizeof *data);
    free(own);
    free(expected);
    free(first);
    free(again);
}

// A started sum takes what was there before and nothing after; operations behind the wait see it; those before may not.
static void test_order(void) {
    enum { COUNT = 300 };
    float *data = allocate(COUNT * sizeof *data), *other = allocate(COUNT * sizeof *data);
    float *staging = device_staging(device, 3 * COUNT * sizeof *staging), *early = staging + COUNT, *after = early + COUNT;
    bool saw_early = false;
    for (int seed = 1; seed <= 30; seed++) {
        simulated_settings((uint64_t)(seed + 100 * world->rank), "late");
        fill(staging, COUNT, seed);
        device_upload(device, data, staging, COUNT * sizeof *data);
        CommRequest *request = NULL;
        CHECK_OK(comm_start_all_reduce(group, data, COUNT, &request));
        // Other work goes on beside the sum ...
        device_upload(device, other, staging, COUNT * sizeof *data);
        // ... and whoever forgets to wait may read what is not summed yet.
        device_download(device, early, data, COUNT * sizeof *data);
        CHECK_OK(comm_wait(&request));
        device_download(device, after, data, COUNT * sizeof *data);
        CHECK(simulated_pending() > 0);  // nobody waited on the host
        CHECK_OK(device_finish(device));
        CHECK_I64(wrong_sums(after, COUNT, seed), 0);
        saw_early |= wrong_sums(early, COUNT, seed) > 0;
    }
    CHECK(saw_early || group->size == 1);
    simulated_settings(0, "late");
    device_staging_release(device, staging, 3 * COUNT * sizeof *staging);
    device_release(device, data, COUNT * sizeof *data);
    device_release(device, other, COUNT * sizeof *data);
}

// Buckets over a card's gradients; every rank polls as often as it likes, and waits in another order than it started.
static void test_buckets(void) {
    enum { COUNT = 10007 };
    float *data = allocate(COUNT * sizeof *data), *host = memory_new(COUNT, sizeof *host);
    for (int round = 0; round < 3; round++) {
        simulated_settings((uint64_t)(round + world->rank), timings[round]);
        fill(host, COUNT, round);
        device_upload(device, data, host, COUNT * sizeof *host);
        Buckets *buckets = buckets_create(group, data, COUNT, 4000);
        for (int step = 0; step < 2; step++) {
            buckets_begin(buckets);
            for (int64_t offset = COUNT; offset > 0; offset -= 2500) {
                CHECK_OK(buckets_final_from(buckets, offset));
                for (int i = 0; i < world->rank; i++) {
                    CHECK_OK(buckets_progress(buckets));
                }
            }
            CHECK_OK(buckets_finish(buckets));
        }
        buckets_destroy(buckets);
        device_download(device, host, data, COUNT * sizeof *host);
        for (int i = 0; i < COUNT; i++) {
            host[i] /= (float)group->size;  // the second step summed sums
        }
        CHECK_I64(wrong_sums(host, COUNT, round), 0);
        fill(host, COUNT, round);
        device_upload(device, data, host, COUNT * sizeof *host);
        CommRequest *requests[5];
        for (int i = 0; i < 5; i++) {
            CHECK_OK(comm_start_all_reduce(group, data + i * 2000, i < 4 ? 2000 : COUNT - 8000, &requests[i]));
        }
        for (int i = 0; i < 5; i++) {
            CHECK_OK(comm_wait(&requests[(i * 3 + world->rank) % 5]));
        }
        device_download(device, host, data, COUNT * sizeof *host);
        CHECK_I64(wrong_sums(host, COUNT, round), 0);
    }
    simulated_settings(0, "late");
    device_release(device, data, COUNT * sizeof *data);
    free(host);
}

static void test_parts(void) {
    enum { EACH = 123 };
    size_t bytes = (size_t)group->size * EACH * sizeof(float);
    float *data = allocate(bytes), *host = memory_new(bytes, 1);
    fill(host, group->size * EACH, 3);
    device_upload(device, data, host, bytes);
    CHECK_OK(comm_reduce_scatter(group, data, EACH));
    CHECK_OK(comm_all_gather(group, data, EACH * sizeof *data));
    device_download(device, host, data, bytes);
    CHECK_I64(wrong_sums(host, group->size * EACH, 3), 0);
    device_release(device, data, bytes);
    // The same in memory of the host, by the world.
    fill(host, world->size * EACH, 4);
    CHECK_OK(comm_reduce_scatter(world, host, EACH));
    CHECK_OK(comm_all_gather(world, host, EACH * sizeof *host));
    CHECK_I64(wrong_sums(host, world->size * EACH, 4), 0);
    free(host);
}

static void test_recording(void) {
    enum { COUNT = 500 };
    CHECK(comm_recordable(group) == !(staged && group->size > 1));
    if (!comm_recordable(group)) {
        return;
    }
    float *data = allocate(COUNT * sizeof *data), *host = memory_new(COUNT, sizeof *host);
    float *staging = device_staging(device, COUNT * sizeof *staging);
    Buckets *buckets = buckets_create(group, data, COUNT, 400);
    CHECK(device_record(device));
    device_upload(device, data, staging, COUNT * sizeof *data);
    buckets_begin(buckets);
    CHECK_OK(buckets_final_from(buckets, 200));
    CHECK_OK(buckets_finish(buckets));
    CHECK_OK(comm_all_reduce_device(group, data, COUNT, true));  // of what is equal everywhere: changes nothing
    DeviceGraph *graph = NULL;
    CHECK_OK(device_record_end(device, &graph));
    buckets_destroy(buckets);
    for (int round = 0; round < 4; round++) {
        simulated_settings((uint64_t)(round + 10 * world->rank), timings[round % 3]);
        fill(staging, COUNT, round);
        device_graph_run(device, graph);
        CHECK_OK(device_finish(device));
        device_download(device, host, data, COUNT * sizeof *data);
        CHECK_I64(wrong_sums(host, COUNT, round), 0);
    }
    simulated_settings(0, "late");
    device_graph_destroy(device, graph);
    device_staging_release(device, staging, COUNT * sizeof *staging);
    device_release(device, data, COUNT * sizeof *data);
    free(host);
}

// One rank waits for its card and then in MPI, the others in MPI first, with their share of the sum still in a stream.
static void test_waiting_for_hosts(void) {
    float one = 1, *data = allocate(sizeof one);
    for (int first = 0; first < world->size; first++) {
        one = 1;
        device_upload(device, data, &one, sizeof one);
        CHECK_OK(comm_all_reduce(group, data, 1));
        double sum = 1;
        if (world->rank == first) {
            CHECK_OK(device_finish(device));
        }
        CHECK_OK(comm_all_reduce_doubles(world, &sum, 1, COMM_SUM));
        CHECK_OK(comm_agree(world, NULL));
        Buffer all = {0};
        int64_t *ends = memory_zeroed((size_t)world->size, sizeof *ends);
        CHECK_OK(comm_gather(world, &sum, sizeof sum, &all, ends));
        buffer_free(&all);
        free(ends);
        device_download(device, &one, data, sizeof one);
        CHECK(one == (float)world->size && sum == world->size);
    }
    device_release(device, data, sizeof one);
}

// Groups of two, each with its own communicator.
static void test_pairs(void) {
    Comm *pair;
    CHECK_OK(comm_split(world, world->rank / 2, 0, &pair));
    CHECK_OK(comm_attach_device(pair, device));
    float value = (float)world->rank, *data = allocate(sizeof value);
    device_upload(device, data, &value, sizeof value);
    CHECK_OK(comm_all_reduce(pair, data, 1));
    device_download(device, &value, data, sizeof value);
    CHECK(value == (float)(pair->size == 1 ? world->rank : world->rank / 2 * 4 + 1));
    device_release(device, data, sizeof value);
    comm_close(pair);
}

static void open_all(int card) {
    CHECK_OK(device_open_card(DEVICE_SIMULATED, card, TYPE_FP32, 1, &device));
    CHECK_OK(comm_split(world, 0, 0, &group));
    CHECK_OK(comm_attach_device(group, device));
}

static void close_all(void) {
    CHECK_OK(device_finish(device));
    comm_close(group);
    device_close(device);
}

// A sum that one rank never enters: the others leave it by an abort, and their cards can be closed.
static void test_abort(void) {
    if (world->size == 1) {
        return;
    }
    Comm *other;
    float *data = allocate(400);
    CHECK_OK(comm_split(world, 0, 0, &other));
    CHECK_OK(comm_attach_device(other, device));
    if (world->rank != 0) {
        CHECK_OK(comm_all_reduce(other, data, 100));
    }
    comm_detach_device(other, true);
    CHECK_OK(device_finish(device));
    device_release(device, data, 400);
    comm_close(other);
}

static void test_errors(void) {
    if (group->size == 1) {
        return;
    }
    char who[64];
    float *data = allocate(400);
    snprintf(who, sizeof who, "rank %d of %d on ", world->rank, world->size);
    // Refused at once, on every rank.
    simulated_nccl_refuse(ncclSystemError);
    CommRequest *request = NULL;
    Error *error = comm_start_all_reduce(group, data, 100, &request);
    CHECK(error != NULL && strstr(error->message, "start of an all-reduce failed in NCCL: unhandled system error") != NULL);
    CHECK(error != NULL && strncmp(error->message, who, strlen(who)) == 0 && request == NULL);
    error_free(error);
    // Broken behind the caller's back: told by the check at the end of the step.
    simulated_nccl_break(ncclRemoteError);
    CHECK_OK(comm_all_reduce(group, data, 100));
    CHECK_OK(comm_check(group));
    CHECK_OK(device_finish(device));
    error = comm_check(group);
    CHECK(error != NULL && strncmp(error->message, who, strlen(who)) == 0 && strstr(error->message, "remote process") != NULL);
    error_free(error);
    device_release(device, data, 400);
}

// One rank whose card is gone before the group is made: all hear of it, nobody waits.
static void test_failure_while_opening(void) {
    if (world->size == 1) {
        return;
    }
    Comm *other;
    CHECK_OK(comm_split(world, 0, 0, &other));
    if (world->rank == world->size - 1) {
        setenv("ATHANOR_SIMULATED_DRIVER", "0", 1);  // every call fails from here on
    }
    Error *error = comm_attach_device(other, device);
    unsetenv("ATHANOR_SIMULATED_DRIVER");
    CHECK(error != NULL && strstr(world->rank == 0 ? error->message : "has no properties", "has no properties") != NULL);
    error_free(error);
    cudaGetLastError();
    comm_close(other);
}

int main(void) {
    Error *error = comm_open_world(&world);
    if (error != NULL) {
        fprintf(stderr, "%s\n", error->message);
        return 1;
    }
    for (int round = 0; round < 2; round++) {
        staged = round == 1;
        open_all(staged ? 0 : world->rank);
        CHECK_TEXT(comm_transport(group), world->size == 1 ? group->backend->name
                                          : staged         ? "mpi through host memory"
                                                           : "nccl 2.28.9");
        RUN(test_sums);
        RUN(test_rounding);
        RUN(test_order);
        RUN(test_buckets);
        RUN(test_parts);
        RUN(test_recording);
        RUN(test_waiting_for_hosts);
        if (!staged) {
            RUN(test_pairs);
            RUN(test_failure_while_opening);
            RUN(test_abort);
            RUN(test_errors);
        }
        close_all();
    }
    int result = check_report();
    comm_close(world);
    return result;
}
#else
int main(void) {
    return 77;
}
#endif
