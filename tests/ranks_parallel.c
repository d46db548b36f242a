// parallel/ under mpirun, in memory of the host: the control plane, every operation of the data plane against values computed
// here, big counts in pieces, groups over several axes, parts of arrays, buckets against the plain sum.
#include "core/philox.h"
#include "parallel/buckets.h"
#include "parallel/comm_backend.h"
#include "parallel/mesh.h"
#include "parallel/sharding.h"
#include "tests/support/check.h"
#include "tests/support/collectives.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static Comm *world;
static Group *group;  // of the same ranks

static const int64_t chunks[] = {1 << 28, 1000, 7};
enum { CHUNKS = sizeof chunks / sizeof *chunks };

static void test_operations(void) {
    static const int64_t counts[] = {0, 1, 2, 7, 1000, 20011};
    for (int k = 0; k < CHUNKS; k++) {
        comm_chunk_elements = chunks[k];
        for (int c = 0; c < 6 - (chunks[k] == 7); c++) {
            check_operations(group, counts[c], c + k);
            check_messages(group, counts[c], c + k);
        }
        check_many_under_way(group, 501, k);
        check_rounding(group, 1003);
    }
    comm_chunk_elements = chunks[0];
}

static void test_doubles(void) {
    for (int k = 0; k < CHUNKS; k++) {
        comm_chunk_elements = chunks[k];
        double sums[3] = {world->rank, 1, -world->rank}, most[9];
        CHECK_OK(comm_all_reduce_doubles(world, sums, 3, COMM_SUM));
        CHECK(sums[0] == world->size * (world->size - 1) / 2.0 && sums[1] == world->size && sums[2] == -sums[0]);
        for (int i = 0; i < 9; i++) {
            most[i] = world->rank == i % world->size ? 5 + i : -1;
        }
        CHECK_OK(comm_all_reduce_doubles(world, most, 9, COMM_MAX));
        for (int i = 0; i < 9; i++) {
            CHECK(most[i] == 5 + i);
        }
    }
    comm_chunk_elements = chunks[0];
}

static void test_bytes(void) {
    for (int round = 0; round < 2; round++) {
        comm_chunk_elements = round == 0 ? 1 << 28 : 5;
        int root = world->size - 1;
        char text[64] = "";
        if (world->rank == root) {
            snprintf(text, sizeof text, "from rank %d, more than five bytes", root);
        }
        CHECK_OK(comm_broadcast(world, text, sizeof text, root));
        CHECK(strstr(text, "more than five bytes") != NULL);

        Buffer buffer = {0};
        for (int i = 0; world->rank == root && i < 1000; i++) {
            buffer_printf(&buffer, "%d ", i);
        }
        CHECK_OK(comm_broadcast_buffer(world, &buffer, root));
        CHECK_I64(buffer.size, 3890);
        CHECK_TEXT(buffer.data + 3882, "998 999 ");
        buffer_free(&buffer);

        // Parts of different sizes, an empty one among them.
        Buffer all = {0};
        int64_t ends[64];
        char part[64];
        memset(part, 'a' + world->rank, sizeof part);
        CHECK_OK(comm_gather(world, part, world->rank * 3 % 7, &all, ends));
        if (world->rank == 0) {
            int64_t at = 0;
            for (int r = 0; r < world->size; r++) {
                CHECK_I64(ends[r], at + r * 3 % 7);
                for (; at < ends[r]; at++) {
                    CHECK(all.data[at] == 'a' + r);
                }
            }
        }
        buffer_free(&all);
        CHECK_OK(comm_barrier(world));
    }
    comm_chunk_elements = 1 << 28;
}

static void test_agree(void) {
    CHECK_OK(comm_agree(world, NULL));
    Error *error = comm_agree(world, failure("rank %d cannot", world->rank));
    CHECK_TEXT(error->message, world->rank == 0 ? "rank 0 cannot" : "");
    error_free(error);
    int last = world->size - 1;
    error = comm_agree(world, world->rank == last ? error_new(ERROR_MISSING, "no file x") : NULL);
    CHECK(error != NULL && error->kind == ERROR_MISSING);
    if (world->rank == 0) {
        CHECK(strstr(error->message, "no file x") != NULL);
        CHECK((strncmp(error->message, "rank 3 on ", 10) == 0) == (last == 3));
    } else {
        CHECK_TEXT(error->message, "");
    }
    error_free(error);
}

// The group over `axes` consists of the ranks of the world in `ranks`, in that order, and is called `name`.
static void check_members(const Mesh *mesh, int axes, const char *name, int count, const int *ranks) {
    Group *part = mesh_group(mesh, axes);
    CHECK_TEXT(part->name, name);
    if (!CHECK_I64(part->size, count)) {
        return;
    }
    CHECK_I64(ranks[part->rank], world->rank);
    double own = world->rank, members[64], sum = own, expected = 0;
    CHECK_OK(group_all_gather(part, ELEMENT_FP64, &own, members, 1));
    CHECK_OK(group_all_reduce(part, ELEMENT_FP64, COMM_SUM, &sum, 1));
    for (int i = 0; i < count; i++) {
        CHECK_I64(members[i], ranks[i]);
        expected += ranks[i];
    }
    CHECK(sum == expected);
    CHECK_I64(part->comm->host_size, count);
}

static void test_mesh_of_one_axis(void) {
    Mesh *mesh;
    int plain[MESH_AXES] = {0, 1, 1, 1};
    char layout[96];
    CHECK_OK(mesh_create(world, plain, &mesh));
    CHECK_I64(mesh->size[MESH_DATA], world->size);
    mesh_layout(mesh, layout);
    CHECK((strcmp(layout, "one rank") == 0) == (world->size == 1));
    CHECK_OK(mesh_attach(mesh, NULL, (const int[]){OVER_DATA, OVER_TENSOR, OVER_ALL}, 3));
    CHECK_I64(mesh_group(mesh, OVER_DATA)->size, world->size);
    CHECK_I64(mesh_group(mesh, OVER_DATA)->rank, world->rank);
    CHECK_I64(mesh_group(mesh, OVER_TENSOR | OVER_CONTEXT)->size, 1);
    CHECK_TEXT(mesh_group(mesh, OVER_TENSOR)->name, "one rank");
    CHECK(mesh_group(mesh, OVER_ALL) == mesh_group(mesh, OVER_DATA | OVER_PIPELINE));  // axes of size one are nothing
    CHECK_TEXT(mesh_group(mesh, OVER_ALL)->name, world->size > 1 ? "data" : "one rank");
    mesh_detach(mesh, false);
    mesh_detach(mesh, false);
    mesh_destroy(mesh);

    int wrong[MESH_AXES] = {world->size + 1, 1, 1, 1}, five[MESH_AXES] = {0, 5, 1, 1}, negative[MESH_AXES] = {1, 1, 0, 1};
    CHECK_FAILS(mesh_create(world, wrong, &mesh), "data-parallel");
    CHECK_FAILS(mesh_create(world, five, &mesh), "5 tensor-parallel ranks");
    CHECK_FAILS(mesh_create(world, negative, &mesh), "pipeline-parallel");
}

static void test_mesh(void) {
    if (world->size != 4) {
        return;
    }
    Mesh *mesh;
    int few[MESH_AXES] = {1, 2, 1, 1}, three[MESH_AXES] = {0, 3, 1, 1};
    CHECK_FAILS(mesh_create(world, few, &mesh), "is 2 ranks, but 4 were started");
    CHECK_FAILS(mesh_create(world, three, &mesh), "start a multiple of 3");
    int grid[MESH_AXES] = {2, 2, 1, 1};
    char layout[96];
    int r = world->rank;
    CHECK_OK(mesh_create(world, grid, &mesh));
    CHECK_TEXT(mesh_layout(mesh, layout), "data 2 x tensor 2");
    for (int rank = 0; rank < world->size; rank++) {
        int at[MESH_AXES];
        mesh_coordinate(mesh, rank, at);
        CHECK_I64(mesh_rank(mesh, at), rank);
        CHECK(at[MESH_TENSOR] == rank % 2 && at[MESH_DATA] == rank / 2);
    }
    CHECK_OK(mesh_attach(mesh, NULL, (const int[]){OVER_DATA, OVER_TENSOR, OVER_DATA | OVER_TENSOR, OVER_PIPELINE}, 4));
    check_members(mesh, OVER_DATA, "data", 2, (const int[]){r % 2, r % 2 + 2});
    check_members(mesh, OVER_TENSOR, "tensor", 2, (const int[]){r / 2 * 2, r / 2 * 2 + 1});
    check_members(mesh, OVER_DATA | OVER_TENSOR, "data x tensor", 4, (const int[]){0, 1, 2, 3});
    check_members(mesh, OVER_PIPELINE, "one rank", 1, &r);
    mesh_detach(mesh, false);
    mesh_destroy(mesh);

    int deep[MESH_AXES] = {2, 1, 1, 2};
    CHECK_OK(mesh_create(world, deep, &mesh));
    CHECK_OK(mesh_attach(mesh, NULL, (const int[]){OVER_DATA | OVER_CONTEXT, OVER_CONTEXT}, 2));
    check_members(mesh, OVER_DATA | OVER_CONTEXT, "data x context", 4, (const int[]){0, 1, 2, 3});
    check_members(mesh, OVER_CONTEXT, "context", 2, (const int[]){r / 2 * 2, r / 2 * 2 + 1});
    mesh_detach(mesh, false);
    mesh_destroy(mesh);

    int stages[MESH_AXES] = {1, 2, 2, 1};
    CHECK_OK(mesh_create(world, stages, &mesh));
    CHECK_OK(mesh_attach(mesh, NULL, (const int[]){OVER_PIPELINE, OVER_DATA | OVER_TENSOR}, 2));
    check_members(mesh, OVER_PIPELINE, "pipeline", 2, (const int[]){r % 2, r % 2 + 2});
    check_members(mesh, OVER_DATA | OVER_TENSOR, "tensor", 2, (const int[]){r / 2 * 2, r / 2 * 2 + 1});
    mesh_detach(mesh, false);
    mesh_destroy(mesh);
}

static void test_split_order(void) {
    Comm *reversed;
    CHECK_OK(comm_split(world, 0, -world->rank, &reversed));
    CHECK_I64(reversed->rank, world->size - 1 - world->rank);
    CHECK_I64(world->host_size, world->size);
    CHECK_I64(world->host_rank, world->rank);
    comm_close(reversed);
}

static void test_sharding(void) {
    static const int64_t counts[] = {0, 5, 16, 255, 256, 257, 1000, 1792, 100001};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        for (int ranks = 1; ranks <= 7; ranks++) {
            int64_t end = 0, padded = shard_padded(counts[c], ranks), part = padded / ranks;
            CHECK(padded % (256 * ranks) == 0 && padded >= counts[c] && padded - counts[c] < 256 * ranks);
            for (int r = 0; r < ranks; r++) {
                Range own = shard_part(counts[c], ranks, r);
                CHECK(own.begin == end && own.end >= own.begin);
                CHECK(own.begin == part * r || own.begin == counts[c]);
                CHECK(own.end == part * (r + 1) || own.end == counts[c]);
                end = own.end;
            }
            CHECK_I64(end, counts[c]);
        }
    }
    CHECK_I64(shard_padded(1000, 3), 1536);
    CHECK_I64(shard_padded(0, 3), 0);
}

// Random gradients: their sums round, so the order of summation shows.
static void fill_random(float *data, int64_t count, int step) {
    philox_normal(77, philox_stream(RANDOM_TEST, (uint64_t)(step * 64 + world->rank)), 0, 1.0f, data, count);
}

static void test_buckets(void) {
    enum { COUNT = 100003 };
    float *data = memory_new(COUNT, sizeof *data), *plain = memory_new(COUNT, sizeof *plain);
    float *again = memory_new(COUNT, sizeof *again);
    static const int64_t sizes[] = {0, 4, 4096, 40000, 1 << 20};
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        Buckets *buckets = buckets_create(group, data, sizes[k] == 4 ? 999 : COUNT, sizes[k], false);
        int64_t count = sizes[k] == 4 ? 999 : COUNT;
        for (int step = 0; step < 3; step++) {
            fill_random(plain, count, step);
            CHECK_OK(group_all_reduce(group, ELEMENT_FP32, COMM_SUM, plain, count));
            for (int pass = 0; pass < 2; pass++) {
                // The second pass reports in other pieces; the sums must not care.
                fill_random(data, count, step);
                buckets_begin(buckets);
                for (int64_t at = count - 1; pass == 0 && at > 0; at -= 7919) {
                    CHECK_OK(buckets_final_from(buckets, at));
                    CHECK_OK(buckets_progress(buckets));
                }
                CHECK_OK(buckets_finish(buckets));
                if (pass == 0) {
                    memcpy(again, data, (size_t)count * sizeof *data);
                }
                CHECK(memcmp(again, data, (size_t)count * sizeof *data) == 0);
            }
            if (world->size <= 2) {
                CHECK(memcmp(plain, data, (size_t)count * sizeof *data) == 0);
            } else {
                int64_t far = 0;
                for (int64_t i = 0; i < count; i++) {
                    float difference = plain[i] - data[i];
                    far += difference > 2e-6f || difference < -2e-6f;
                }
                CHECK_I64(far, 0);
            }
            BucketsTime time = buckets_time(buckets);
            CHECK(time.waited >= 0 && time.active >= 0 && time.done_early <= time.buckets);
            CHECK((time.buckets > 0) == (world->size > 1));
        }
        // All ranks hold the same bits.
        double mine = 0;
        for (int64_t i = 0; i < count; i++) {
            mine += data[i];
        }
        double both[2] = {mine, -mine};
        CHECK_OK(comm_all_reduce_doubles(world, both, 2, COMM_MAX));
        CHECK(both[0] == -both[1]);
        buckets_destroy(buckets);
    }
    free(data);
    free(plain);
    free(again);
}

// Where parts have owners, each has its sums, in whatever buckets, and every element is somebody's.
static void test_owned_buckets(void) {
    static const int64_t counts[] = {1, 255, 1000, 100003}, sizes[] = {0, 4, 4096, 40000};
    for (int k = 0; k < 16; k++) {
        int64_t count = counts[k / 4];
        float *data = memory_new((size_t)count, sizeof *data), *plain = memory_new((size_t)count, sizeof *plain);
        Buckets *buckets = buckets_create(group, data, count, sizes[k % 4], true);
        for (int step = 0; step < 2; step++) {
            fill_random(plain, count, step);
            CHECK_OK(group_all_reduce(group, ELEMENT_FP32, COMM_SUM, plain, count));
            fill_random(data, count, step);
            buckets_begin(buckets);
            for (int64_t at = count; step == 0 && at > 0; at -= 977) {
                CHECK_OK(buckets_final_from(buckets, at));
            }
            CHECK_OK(buckets_finish(buckets));
            Range own = shard_part(count, world->size, world->rank);
            int64_t far = 0;
            for (int64_t i = own.begin; i < own.end; i++) {
                float difference = plain[i] - data[i];
                far += difference > 2e-6f || difference < -2e-6f;
            }
            CHECK_I64(far, 0);
        }
        buckets_destroy(buckets);
        free(data);
        free(plain);
    }
}

// Buckets begin where parts may begin, so a tail that is not a whole part of it is a bucket of its own.
static void test_bounds_of_buckets(void) {
    float data[1000] = {0};
    Buckets *buckets = buckets_create(group, data, 1000, 256 * sizeof(float), false);
    buckets_begin(buckets);
    static const int64_t offsets[] = {769, 768, 513, 512, 0};
    static const int started[] = {0, 1, 1, 2, 4};
    int64_t before = group->sequence;
    for (int i = 0; i < 5; i++) {
        CHECK_OK(buckets_final_from(buckets, offsets[i]));
        CHECK_I64(group->sequence - before, world->size > 1 ? started[i] : 0);
    }
    CHECK_OK(buckets_finish(buckets));
    buckets_destroy(buckets);
    CHECK_I64(buckets_bytes(1000, 400, 2), 1600);
    CHECK_I64(buckets_bytes(1000, 3000, 2), 4000);
    CHECK_I64(buckets_bytes(1000, 0, 2), 4000);
    CHECK_I64(buckets_bytes(1000, 400, 1), 0);
}

// ---- Mistakes of the caller end the program. Tried in a child each, before MPI is there.

static bool dies(const Collective *what) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        Group *alone;
        GroupRequest *request;
        int nowhere = open("/dev/null", O_WRONLY);
        dup2(nowhere, 2);
        Error *error = group_create(comm_open_self(), "alone", NULL, &alone);
        error = error == NULL ? group_start(alone, what, &request) : error;
        _exit(error != NULL);
    }
    int status = 0;
    return waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

static void test_mistakes(void) {
    float data[2];
    Collective right = {GROUP_ALL_REDUCE, ELEMENT_FP32, COMM_SUM, 1, data, data}, wrong = right;
    CHECK(!dies(&right));
    wrong = (Collective){GROUP_BROADCAST, ELEMENT_FP32, COMM_SUM, 1, NULL, data, 1};
    CHECK(dies(&wrong));
    wrong.peer = -1;
    CHECK(dies(&wrong));
    wrong = (Collective){GROUP_SEND, ELEMENT_FP32, COMM_SUM, 1, data, NULL, 0};  // to itself
    CHECK(dies(&wrong));
    wrong.operation = GROUP_RECEIVE;
    CHECK(dies(&wrong));
    wrong = right;
    wrong.type = ELEMENT_BYTE;
    CHECK(dies(&wrong));
    wrong = right;
    wrong.count = -1;
    CHECK(dies(&wrong));
    wrong = right;
    wrong.tag = GROUP_MOST_TAG + 1;
    CHECK(dies(&wrong));
}

int main(void) {
    RUN(test_mistakes);
    alarm(240);  // ranks that wait for each other for ever end here, not at the limit of the whole suite
    Error *error = comm_open_world(&world);
    error = error == NULL ? group_create(world, "all", NULL, &group) : error;
    if (error != NULL) {
        fprintf(stderr, "%s\n", error->message);
        comm_abort(NULL, 1);
    }
    CHECK_TEXT(group->transport, world->size == 1 ? "self" : "mpi");
    RUN(test_operations);
    RUN(test_doubles);
    RUN(test_bytes);
    RUN(test_agree);
    RUN(test_mesh_of_one_axis);
    RUN(test_mesh);
    RUN(test_split_order);
    RUN(test_sharding);
    RUN(test_buckets);
    RUN(test_owned_buckets);
    RUN(test_bounds_of_buckets);
    group_close(group, false);
    comm_close(world);
    return check_report();
}
