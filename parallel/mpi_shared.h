// What the two files that call MPI share: comm_mpi.c and transport_mpi.c.
#pragma once

#include "parallel/comm_backend.h"

#include <mpi.h>

MPI_Comm comm_mpi_handle(const Comm *comm);

// MPI's own words for a code, as one line; NULL for MPI_SUCCESS.
Error *mpi_error(int code) MUST_CHECK;

// The size of the next piece of `left` elements: MPI's counts are int.
static inline int mpi_next_chunk(int64_t left) {
    return (int)(left < comm_chunk_elements ? left : comm_chunk_elements);
}
