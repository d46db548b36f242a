// Errors on several ranks: what all share is one line of rank 0, what one rank has ends the others, and nobody waits for ever.
//
// The program starts itself under mpirun with the name of a case.
#include "core/log.h"
#include "parallel/group.h"
#include "tests/support/check.h"

#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef ATHANOR_HAVE_MPI
#include <mpi.h>

// Stands in front of MPI's own: Open MPI waits for ever for a rank that is gone; others say so, and here it does.
static bool unreachable;
int MPI_Iallreduce(const void *from, void *to, int count, MPI_Datatype type, MPI_Op how, MPI_Comm ranks, MPI_Request *out) {
    return unreachable ? MPI_ERR_OTHER : PMPI_Iallreduce(from, to, count, type, how, ranks, out);
}

static _Noreturn void lose_a_rank(Comm *world) {
    Group *group = NULL;
    float data[8] = {0};
    Error *error = group_create(world, "data x context", NULL, &group);
    for (int i = 0; i < 4 && error == NULL; i++) {
        if (i == 2 && world->rank == 2) {
            pause();
        }
        unreachable = i == 2;
        error = group_all_reduce(group, ELEMENT_FP32, COMM_SUM, data, i == 1 ? 0 : 8);
    }
    log_error("%s", error != NULL ? error->message : "a rank went on");
    comm_abort(world, 7);
}
#else
static _Noreturn void lose_a_rank(Comm *world) {
    comm_abort(world, 1);
}
#endif

static _Noreturn void as_rank(const char *which) {
    Comm *world;
    Error *error = comm_open_world(&world);
    if (error != NULL) {
        log_error("%s", error->message);
        comm_abort(NULL, 1);
    }
    if (strcmp(which, "shared") == 0) {
        // Rank 0 is the slowest: its report must not be cut off by the others' end.
        error = comm_agree(world, world->rank == 1 ? failure("file x is bad") : NULL);
        if (world->rank == 0) {
            usleep(300000);
        }
        if (*error->message != 0) {
            log_error("%s", error->message);
        }
        comm_abort(world, 1);
    }
    if (strcmp(which, "lost") == 0) {
        lose_a_rank(world);
    }
    // The others are inside an operation that can never end.
    if (world->rank == 2) {
        usleep(100000);
        if (strcmp(which, "killed") == 0) {
            kill(getpid(), SIGKILL);
        }
        log_error("disk y is gone");
        comm_abort(strcmp(which, "alone") == 0 ? world : NULL, 5);
    }
    error_free(comm_barrier(world));
    printf("a rank went on\n");
    comm_abort(world, 6);
}

// Runs this program as `which` behind `launcher`.
static int start_with(const char *launcher, const char *which, char *output, size_t size) {
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    char *command = memory_format("timeout 60 %s '%s' %s 2>&1", launcher, self, which);
    FILE *pipe = popen(command, "r");
    size_t got = fread(output, 1, size - 1, pipe);
    output[got] = 0;
    int status = pclose(pipe);
    free(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int start(const char *which, char *output, size_t size) {
    return start_with("mpirun -n 3", which, output, size);
}

static int count_of(const char *text, const char *part) {
    int count = 0;
    for (const char *p = text; (p = strstr(p, part)) != NULL; p++) {
        count++;
    }
    return count;
}

static void test_shared_error(void) {
    char output[8192];
    for (int repeat = 0; repeat < 3; repeat++) {
        CHECK_I64(start("shared", output, sizeof output), 1);
        CHECK_I64(count_of(output, "athanor: "), 1);
        CHECK(strstr(output, "athanor: rank 1 on ") != NULL && strstr(output, ": file x is bad\n") != NULL);
    }
}

static void test_error_of_one_rank(void) {
    static const char *const cases[] = {"alone", "without-a-group"};
    char output[8192];
    for (int i = 0; i < 2; i++) {
        CHECK_I64(start(cases[i], output, sizeof output), 5);
        CHECK(strstr(output, "[rank 2 on ") != NULL && strstr(output, "disk y is gone") != NULL);
        CHECK(strstr(output, "a rank went on") == NULL);
    }
}

static void test_killed_rank(void) {
    char output[8192];
    int code = start("killed", output, sizeof output);
    CHECK(code != 0 && code != 124);  // 124: still waiting after a minute
    CHECK(strstr(output, "a rank went on") == NULL);
}

// Who, what, its number (those without elements count), of which group.
static void test_lost_rank(void) {
    char output[8192];
    CHECK_I64(start("lost", output, sizeof output), 7);
    CHECK(strstr(output, "athanor: rank 0 of 3 on ") != NULL || strstr(output, ": rank 1 of 3 on ") != NULL);
    CHECK(strstr(output, ": all-reduce 3 of group data x context: MPI failed: ") != NULL);
    CHECK(strstr(output, "a rank went on") == NULL);
}

// A launcher of another MPI starts several processes that each see themselves alone: they must not train four times.
static void test_foreign_launcher(void) {
    char output[8192];
    if (strncmp(comm_library(), "Open MPI", 8) == 0) {
        CHECK_I64(start_with("env PMI_SIZE=4 PMI_RANK=1", "shared", output, sizeof output), 1);
        CHECK(strstr(output, "the launcher started 4 ranks but MPI") != NULL);
    }
}

int main(int argc, char **argv) {
    if (argc == 2) {
        as_rank(argv[1]);
    }
    if (strcmp(comm_library(), "none") == 0) {
        return 77;
    }
    RUN(test_shared_error);
    RUN(test_error_of_one_rank);
    RUN(test_killed_rank);
    RUN(test_lost_rank);
    RUN(test_foreign_launcher);
    return check_report();
}
