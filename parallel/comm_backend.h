// What a control plane's backend must do. For comm.c, group.c and the backends; no header for anybody else (tests excepted).
#pragma once

#include "parallel/comm.h"

// Counts are at least 1 and arguments are checked before these are called.
struct CommBackend {
    const char *name;                    // "self", "mpi"
    const struct Transport *host_plane;  // the data plane that goes with it, for memory of the host (transport.h)
    Error *(*all_reduce_doubles)(Comm *comm, double *values, int64_t count, CommReduce how);
    Error *(*broadcast)(Comm *comm, void *bytes, int64_t size, int root);
    Error *(*gather)(Comm *comm, const void *bytes, int64_t size, void *all, const int64_t *sizes);
    Error *(*barrier)(Comm *comm);
    Error *(*split)(Comm *comm, int colour, int key, Comm **out);
    void (*close)(Comm *comm);
    void (*abort)(Comm *comm, int code);
};

// The largest number of elements handed to the library in one call. Tests make it small to walk the way that sizes beyond
// INT_MAX take.
extern int64_t comm_chunk_elements;

// Initialises MPI and opens the world. `expected`: the ranks the launcher announced, 0 where unknown; another number is an
// error.
Error *comm_mpi_open(int expected, Comm **out) MUST_CHECK;
const char *comm_mpi_library(void);
