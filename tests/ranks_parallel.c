// parallel/ under mpirun: every operation against sums computed here, big counts in pieces, buckets against the plain sum.
#include "core/durable.h"
#include "core/philox.h"
#include "core/threads.h"
#include "parallel/buckets.h"
#include "parallel/comm_backends.h"
#include "parallel/mesh.h"
#include "parallel/sharding.h"
#include "tests/support/check.h"

#include <stdio.h>

static Comm *world;

// What rank `rank` holds at index i; small multiples of 1/8, so that sums are exact in any order.
static float exact_value(int rank, int64_t i) {
    return (float)((i * 7 + rank * 13) % 101 - 50) * 0.125f;
}

static float exact_sum(int ranks, int64_t i) {
    float sum = 0;
    for (int r = 0; r < ranks; r++) {
        sum += exact_value(r, i);
    }
    return sum;
}

static int64_t wrong_sums(const float *data, int64_t count, int ranks) {
    int64_t wrong = 0;
    for (int64_t i = 0; i < count; i++) {
        wrong += data[i] != exact_sum(ranks, i);
    }
    return wrong;
}

static void fill_exact(float *data, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        data[i] = exact_value(world->rank, i);
    }
}

static void test_sums(void) {
    static const int64_t counts[] = {0, 1, 2, 7, 1000, 100003};
    static const int64_t chunks[] = {1 << 28, 1000, 7};
    for (size_t k = 0; k < sizeof chunks / sizeof *chunks; k++) {
        comm_chunk_elements = chunks[k];
        for (size_t c = 0; c < sizeof counts / sizeof *counts - (chunks[k] == 7); c++) {
            float *data = memory_new((size_t)counts[c] + 1, sizeof *data);
            fill_exact(data, counts[c]);
            data[counts[c]] = 12345;
            CHECK_OK(comm_all_reduce(world, data, counts[c]));
            CHECK_I64(wrong_sums(data, counts[c], world->size), 0);

            fill_exact(data, counts[c]);
            CommRequest *request = NULL;
            CHECK_OK(comm_start_all_reduce(world, data, counts[c], &request));
            bool done = false;
            while (!done) {
                CHECK_OK(comm_test(&request, &done));
            }
            CHECK(request == NULL);
            CHECK_OK(comm_wait(&request));
            CHECK_I64(wrong_sums(data, counts[c], world->size), 0);
            CHECK(data[counts[c]] == 12345);
            free(data);
        }
    }
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
    comm_chunk_elements = 1 << 28;
}

static void test_many_requests(void) {
    enum { REQUESTS = 12, EACH = 5000 };
    float *data = memory_new((size_t)REQUESTS * EACH, sizeof *data);
    CommRequest *requests[REQUESTS];
    fill_exact(data, REQUESTS * EACH);
    for (int i = 0; i < REQUESTS; i++) {
        CHECK_OK(comm_start_all_reduce(world, data + i * EACH, EACH, &requests[i]));
    }
    for (int i = 0; i < REQUESTS; i++) {  // waiting in another order than starting
        CHECK_OK(comm_wait(&requests[(i * 5) % REQUESTS]));
    }
    CHECK_I64(wrong_sums(data, REQUESTS * EACH, world->size), 0);
    free(data);
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

static void test_mesh(void) {
    Mesh *mesh;
    int plain[MESH_AXES] = {0, 1, 1, 1};
    char layout[96];
    CHECK_OK(mesh_create(world, plain, &mesh));
    CHECK_I64(mesh->size[MESH_DATA], world->size);
    CHECK_I64(mesh->group[MESH_DATA]->size, world->size);
    CHECK_I64(mesh->group[MESH_DATA]->rank, world->rank);
    CHECK_I64(mesh->group[MESH_TENSOR]->size, 1);
    mesh_layout(mesh, layout);
    CHECK((strcmp(layout, "one rank") == 0) == (world->size == 1));
    mesh_destroy(mesh);

    int wrong[MESH_AXES] = {world->size + 1, 1, 1, 1}, odd[MESH_AXES] = {0, 3, 1, 1}, negative[MESH_AXES] = {1, 1, 0, 1};
    CHECK_FAILS(mesh_create(world, wrong, &mesh), "data-parallel");
    CHECK_FAILS(mesh_create(world, odd, &mesh), world->size < 3 ? "3 tensor-parallel ranks" : "start a multiple of 3");
    CHECK_FAILS(mesh_create(world, negative, &mesh), "pipeline-parallel");
    if (world->size < 4) {
        return;
    }
    int few[MESH_AXES] = {1, 2, 1, 1};
    CHECK_FAILS(mesh_create(world, few, &mesh), "is 2 ranks, but 4 were started");
    int grid[MESH_AXES] = {2, 2, 1, 1};
    CHECK_OK(mesh_create(world, grid, &mesh));
    CHECK_TEXT(mesh_layout(mesh, layout), "data 2 x tensor 2");
    for (int r = 0; r < world->size; r++) {
        int at[MESH_AXES];
        mesh_coordinate(mesh, r, at);
        CHECK_I64(mesh_rank(mesh, at), r);
        CHECK(at[MESH_TENSOR] == r % 2 && at[MESH_DATA] == r / 2);
    }
    // The sum of ranks over my data group: those with my tensor coordinate.
    float sum = (float)world->rank;
    CHECK_OK(comm_all_reduce(mesh->group[MESH_DATA], &sum, 1));
    CHECK_I64(sum, world->rank % 2 == 0 ? 0 + 2 : 1 + 3);
    sum = (float)world->rank;
    CHECK_OK(comm_all_reduce(mesh->group[MESH_TENSOR], &sum, 1));
    CHECK_I64(sum, world->rank < 2 ? 0 + 1 : 2 + 3);
    CHECK_I64(mesh->group[MESH_TENSOR]->host_size, 2);
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
    static const int64_t counts[] = {0, 5, 16, 1000, 100001};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        int64_t end = 0;
        for (int r = 0; r < 7; r++) {
            Range part = shard_owned(counts[c], 7, r);
            CHECK(part.begin == end && part.end >= part.begin);
            CHECK(part.end % SHARD_ALIGNMENT == 0 || part.end == counts[c]);
            CHECK(part.end - part.begin <= counts[c] / 7 + SHARD_ALIGNMENT);
            end = part.end;
        }
        CHECK_I64(end, counts[c]);
    }
    // Gaps between the tensors, an empty one, a part that starts inside.
    const ShardTensor tensors[] = {{0, 10}, {16, 32}, {48, 0}, {48, 5}, {64, 100}};
    int64_t covered = 0;
    for (int r = 0; r < 3; r++) {
        ShardPiece *pieces;
        Range part = shard_owned(164, 3, r);
        int n = shard_pieces(tensors, 5, part, &pieces);
        for (int i = 0; i < n; i++) {
            const ShardTensor *t = &tensors[pieces[i].tensor];
            CHECK(pieces[i].begin >= 0 && pieces[i].begin < pieces[i].end && pieces[i].end <= t->count);
            CHECK_I64(pieces[i].flat, t->offset + pieces[i].begin);
            CHECK(pieces[i].flat >= part.begin && pieces[i].flat + pieces[i].end - pieces[i].begin <= part.end);
            covered += pieces[i].end - pieces[i].begin;
        }
        free(pieces);
    }
    CHECK_I64(covered, 147);
    ShardPiece *pieces;
    CHECK_I64(shard_pieces(tensors, 5, (Range){10, 16}, &pieces), 0);
    CHECK(pieces == NULL);
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
        Buckets *buckets = buckets_create(world, data, sizes[k] == 4 ? 999 : COUNT, sizes[k]);
        int64_t count = sizes[k] == 4 ? 999 : COUNT;
        for (int step = 0; step < 3; step++) {
            fill_random(plain, count, step);
            CHECK_OK(comm_all_reduce(world, plain, count));
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

int main(void) {
    Error *error = comm_open_world(&world);
    if (error != NULL) {
        fprintf(stderr, "%s\n", error->message);
        comm_abort(NULL, 1);
    }
    RUN(test_sums);
    RUN(test_many_requests);
    RUN(test_bytes);
    RUN(test_agree);
    RUN(test_mesh);
    RUN(test_split_order);
    RUN(test_sharding);
    RUN(test_buckets);
    comm_close(world);
    return check_report();
}
