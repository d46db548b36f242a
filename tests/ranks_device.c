// Ranks with simulated cards: every operation in memory of cards by NCCL (one card a rank) and through host memory (one card
// for all), the order with the operations of the card, recording, and errors.
#include "parallel/buckets.h"
#include "parallel/mesh.h"
#include "tests/support/check.h"
#include "tests/support/collectives.h"

#include <stdio.h>
#include <unistd.h>

#if defined(ATHANOR_HAVE_SIMULATED) && defined(ATHANOR_HAVE_MPI)
#include <cuda_runtime_api.h>
#include <nccl.h>

static Comm *world;
static Group *group;  // of the same ranks, between their cards
static Device *device;
static bool staged;

static const char *const timings[] = {"late", "early", "random"};

static int64_t wrong_sums(const float *data, int64_t count, int round) {
    int64_t wrong = 0;
    for (int64_t i = 0; i < count; i++) {
        wrong += data[i] != exact_sum(ELEMENT_FP32, group->size, i, round);
    }
    return wrong;
}

static void fill(float *data, int64_t count, int round) {
    for (int64_t i = 0; i < count; i++) {
        data[i] = (float)exact_value(ELEMENT_FP32, group->rank, i, round);
    }
}

static void *allocate(size_t bytes) {
    return group_memory(group, bytes);
}

static Error *sum_floats(Group *of, float *data, int64_t count) {
    return group_all_reduce(of, ELEMENT_FP32, COMM_SUM, data, count);
}

static Error *start_sum(float *data, int64_t count, GroupRequest **out) {
    return group_start(group, &(Collective){GROUP_ALL_REDUCE, ELEMENT_FP32, COMM_SUM, count, data, data}, out);
}

static void test_operations(void) {
    static const int64_t counts[] = {0, 1, 7, 300, 4001};
    for (int round = 0; round < 5; round++) {
        simulated_settings((uint64_t)(round + 10 * world->rank), timings[round % 3]);
        check_operations(group, counts[round], round);
        check_messages(group, counts[round], round);
        check_many_under_way(group, counts[round] / 8, round);
        CHECK_OK(group_check(group));
        CHECK_OK(device_finish(device));
    }
    simulated_settings(0, "late");
    check_rounding(group, 501);
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
        GroupRequest *request = NULL;
        CHECK_OK(start_sum(data, COUNT, &request));
        // Other work goes on beside the sum ...
        device_upload(device, other, staging, COUNT * sizeof *data);
        // ... and whoever forgets to wait may read what is not summed yet.
        device_download(device, early, data, COUNT * sizeof *data);
        CHECK_OK(group_wait(&request));
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
        Buckets *buckets = buckets_create(group, data, COUNT, 4000, false);
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
        GroupRequest *requests[5];
        for (int i = 0; i < 5; i++) {
            CHECK_OK(start_sum(data + i * 2000, i < 4 ? 2000 : COUNT - 8000, &requests[i]));
        }
        for (int i = 0; i < 5; i++) {
            CHECK_OK(group_wait(&requests[(i * 3 + world->rank) % 5]));
        }
        device_download(device, host, data, COUNT * sizeof *host);
        CHECK_I64(wrong_sums(host, COUNT, round), 0);
    }
    simulated_settings(0, "late");
    device_release(device, data, COUNT * sizeof *data);
    free(host);
}

// Neighbours exchange beside an operation of the card, and each goes on with what it got.
static void test_exchange(void) {
    enum { COUNT = 200 };
    if (group->size == 1) {
        return;
    }
    int next = (group->rank + 1) % group->size, last = (group->rank + group->size - 1) % group->size;
    float *data = allocate(3 * COUNT * sizeof *data), *host = device_staging(device, 2 * COUNT * sizeof *host);
    for (int round = 0; round < 6; round++) {
        simulated_settings((uint64_t)(round + 10 * world->rank), timings[round % 3]);
        fill(host, COUNT, round);
        device_upload(device, data, host, COUNT * sizeof *host);
        GroupRequest *sent, *received;
        CHECK_OK(
            group_start(group, &(Collective){GROUP_SEND, ELEMENT_FP32, .count = COUNT, .send = data, .peer = next}, &sent));
        CHECK_OK(group_start(group,
                             &(Collective){GROUP_RECEIVE, ELEMENT_FP32, .count = COUNT, .receive = data + COUNT, .peer = last},
                             &received));
        // Something else is started before the messages are waited for, or after, as each rank likes.
        GroupRequest *sum = NULL;
        bool early = (group->rank + round) % 2 == 0;
        if (early) {
            CHECK_OK(start_sum(data + 2 * COUNT, COUNT, &sum));
        }
        CHECK_OK(group_wait(round % 2 == 0 ? &sent : &received));
        CHECK_OK(group_wait(round % 2 == 0 ? &received : &sent));
        if (!early) {
            CHECK_OK(start_sum(data + 2 * COUNT, COUNT, &sum));
        }
        CHECK_OK(group_wait(&sum));
        device->op->zero(device, COUNT * sizeof *data, data);  // what was sent may be written now
        CHECK_OK(sum_floats(group, data + COUNT, COUNT));
        device_download(device, host, data, 2 * COUNT * sizeof *host);
        CHECK_OK(device_finish(device));
        CHECK_I64(wrong_sums(host + COUNT, COUNT, round), 0);
        CHECK(host[0] == 0 && host[COUNT - 1] == 0);
    }
    simulated_settings(0, "late");
    device_staging_release(device, host, 2 * COUNT * sizeof *host);
    device_release(device, data, 3 * COUNT * sizeof *data);
}

static void test_recording(void) {
    enum { COUNT = 500 };
    CHECK(group->recordable == !(staged && group->size > 1));
    if (!group->recordable) {
        return;
    }
    int next = (group->rank + 1) % group->size, last = (group->rank + group->size - 1) % group->size;
    float *data = allocate(2 * COUNT * sizeof *data), *host = memory_new(COUNT, sizeof *host);
    float *staging = device_staging(device, COUNT * sizeof *staging);
    Buckets *buckets = buckets_create(group, data, COUNT, 400, false);
    CHECK(device_record(device));
    device_upload(device, data, staging, COUNT * sizeof *data);
    buckets_begin(buckets);
    CHECK_OK(buckets_final_from(buckets, 200));
    CHECK_OK(buckets_finish(buckets));
    // Of what is equal everywhere: changes nothing.
    CHECK_OK(group_all_reduce(group, ELEMENT_FP32, COMM_MAX, data, COUNT));
    if (group->size > 1) {
        GroupRequest *sent, *received;
        CHECK_OK(
            group_start(group, &(Collective){GROUP_SEND, ELEMENT_FP32, .count = COUNT, .send = data, .peer = next}, &sent));
        CHECK_OK(group_start(group,
                             &(Collective){GROUP_RECEIVE, ELEMENT_FP32, .count = COUNT, .receive = data + COUNT, .peer = last},
                             &received));
        bool done;
        CHECK_OK(group_test(&received, &done));
        CHECK(!done);
        CHECK_OK(group_wait(&received));
        CHECK_OK(group_wait(&sent));
    }
    DeviceGraph *graph = NULL;
    CHECK_OK(device_record_end(device, &graph));
    buckets_destroy(buckets);
    for (int round = 0; round < 4; round++) {
        simulated_settings((uint64_t)(round + 10 * world->rank), timings[round % 3]);
        fill(staging, COUNT, round);
        device_graph_run(device, graph);
        CHECK_OK(device_finish(device));
        device_download(device, host, data + (group->size > 1 ? COUNT : 0), COUNT * sizeof *data);
        CHECK_I64(wrong_sums(host, COUNT, round), 0);
    }
    simulated_settings(0, "late");
    device_graph_destroy(device, graph);
    device_staging_release(device, staging, COUNT * sizeof *staging);
    device_release(device, data, 2 * COUNT * sizeof *data);
    free(host);
}

// One rank waits for its card and then in MPI, the others in MPI first, with their share of the sum still in a stream.
static void test_waiting_for_hosts(void) {
    float one = 1, *data = allocate(sizeof one);
    for (int first = 0; first < world->size; first++) {
        one = 1;
        device_upload(device, data, &one, sizeof one);
        CHECK_OK(sum_floats(group, data, 1));
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
    Mesh *mesh;
    int grid[MESH_AXES] = {0, world->size % 2 == 0 ? 2 : 1, 1, 1};
    CHECK_OK(mesh_create(world, grid, &mesh));
    CHECK_OK(mesh_attach(mesh, device, (const int[]){OVER_TENSOR, OVER_ALL, OVER_DATA}, 3));
    Group *pair = mesh_group(mesh, OVER_TENSOR);
    float value = (float)world->rank, *data = allocate(sizeof value);
    device_upload(device, data, &value, sizeof value);
    CHECK_OK(sum_floats(pair, data, 1));
    device_download(device, &value, data, sizeof value);
    CHECK(value == (float)(pair->size == 1 ? world->rank : world->rank / 2 * 4 + 1));
    CHECK_OK(sum_floats(mesh_group(mesh, OVER_DATA), data, 1));
    device_download(device, &value, data, sizeof value);
    CHECK(value == (float)(world->size * (world->size - 1) / 2));
    device_release(device, data, sizeof value);
    mesh_detach(mesh, false);
    mesh_destroy(mesh);
}

static void open_all(int card) {
    CHECK_OK(device_open_card(DEVICE_SIMULATED, card, TYPE_FP32, 1, &device));
    CHECK_OK(group_create(world, "cards", device, &group));
}

static void close_all(void) {
    CHECK_OK(device_finish(device));
    group_close(group, false);
    device_close(device);
}

// A sum that one rank never enters: the others leave it by an abort, and their cards can be closed.
static void test_abort(void) {
    if (world->size == 1) {
        return;
    }
    Group *other;
    float *data = allocate(400);
    CHECK_OK(group_create(world, "left", device, &other));
    if (world->rank != 0) {
        CHECK_OK(sum_floats(other, data, 100));
    }
    group_close(other, true);
    CHECK_OK(device_finish(device));
    device_release(device, data, 400);
}

static void test_errors(void) {
    if (group->size == 1) {
        return;
    }
    char who[256];
    float *data = allocate(400);
    // Refused at once, on every rank.
    simulated_nccl_refuse(ncclSystemError);
    GroupRequest *request = NULL;
    snprintf(who, sizeof who,
             "rank %d of %d on %s: all-reduce %lld of group cards: NCCL failed: unhandled system error: ", world->rank,
             world->size, world->host, (long long)group->sequence + 1);
    Error *error = start_sum(data, 100, &request);
    CHECK(error != NULL && strncmp(error->message, who, strlen(who)) == 0 && request == NULL);
    error_free(error);
    // A message is refused when it is waited for, and named by its own number.
    simulated_nccl_refuse(ncclSystemError);
    Collective send = {GROUP_SEND, ELEMENT_FP32, .count = 100, .send = data, .peer = (group->rank + 1) % group->size};
    CHECK_OK(group_start(group, &send, &request));
    snprintf(who, sizeof who, "rank %d of %d on %s: send %lld of group cards: NCCL failed: ", world->rank, world->size,
             world->host, (long long)group->sequence);
    error = group_wait(&request);
    CHECK(error != NULL && strncmp(error->message, who, strlen(who)) == 0 && request == NULL);
    error_free(error);
    // Broken behind the caller's back: told by the check at the end of the step.
    simulated_nccl_break(ncclRemoteError);
    CHECK_OK(sum_floats(group, data, 100));
    CHECK_OK(group_check(group));
    CHECK_OK(device_finish(device));
    snprintf(who, sizeof who, "rank %d of %d on %s: group cards, not later than its operation %lld: ", world->rank, world->size,
             world->host, (long long)group->sequence);
    error = group_check(group);
    CHECK(error != NULL && strncmp(error->message, who, strlen(who)) == 0 && strstr(error->message, "remote process") != NULL);
    error_free(error);
    device_release(device, data, 400);
}

// One rank whose card is gone before the group is made: all hear of it, nobody waits.
static void test_failure_while_opening(void) {
    if (world->size == 1) {
        return;
    }
    Group *other;
    if (world->rank == world->size - 1) {
        setenv("ATHANOR_SIMULATED_DRIVER", "0", 1);  // every call fails from here on
    }
    Error *error = group_create(world, "gone", device, &other);
    unsetenv("ATHANOR_SIMULATED_DRIVER");
    CHECK(error != NULL && strstr(world->rank == 0 ? error->message : "has no properties", "has no properties") != NULL);
    error_free(error);
    cudaGetLastError();
}

int main(void) {
    alarm(240);  // ranks that wait for each other for ever end here, not at the limit of the whole suite
    Error *error = comm_open_world(&world);
    if (error != NULL) {
        fprintf(stderr, "%s\n", error->message);
        return 1;
    }
    for (int round = 0; round < 2; round++) {
        staged = round == 1;
        open_all(staged ? 0 : world->rank);
        CHECK_TEXT(group->transport, world->size == 1 ? "self" : staged ? "mpi through host memory" : "nccl 2.28.9");
        RUN(test_operations);
        RUN(test_order);
        RUN(test_buckets);
        RUN(test_exchange);
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
