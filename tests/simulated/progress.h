// Waiting for MPI while streams go on.
#pragma once

#define OMPI_SKIP_MPICXX 1
#include <mpi.h>

namespace simulator {

// Waits until the request is done. Meanwhile what is in streams runs, as it would on a card.
int wait_for_mpi(MPI_Request *request);

// From now on blocking calls of MPI let streams go on too (progress.cpp). All ranks say so before their next collective call.
void watch_mpi();

}  // namespace simulator
