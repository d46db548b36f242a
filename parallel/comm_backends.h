// What comm.c needs of the backends; no header for anybody else (tests excepted).
#pragma once

#include "parallel/comm.h"

// The largest number of elements handed to the library in one call. Tests make it small to walk the way that sizes beyond
// INT_MAX take.
extern int64_t comm_chunk_elements;

// What every request starts with; a backend puts its own behind.
struct CommRequest {
    Comm *comm;
};

// Initialises MPI and opens the world. `expected`: the ranks the launcher announced, 0 where unknown; another number is an
// error.
Error *comm_mpi_open(int expected, Comm **out) MUST_CHECK;
const char *comm_mpi_library(void);
