// Streams go on while the host waits in MPI.
//
// A card works while its host waits for other ranks in MPI; the streams of the simulated one run on the host's thread. So where
// the product blocks in MPI while NCCL operations of its streams are due, other ranks would wait for those for ever. Here stand
// the blocking functions of MPI that the product calls, in front of MPI's own (its profiling interface): from the first NCCL
// communicator on, collective ones begin with a non-blocking barrier, during which streams go on; behind it nobody waits for
// a stream. Before that they are MPI's own.
#include <thread>

#include "runtime.h"

#include "progress.h"

namespace simulator {

namespace {

bool watching;

int gather(MPI_Comm comm) {
    MPI_Request request;
    int code = watching ? PMPI_Ibarrier(comm, &request) : MPI_SUCCESS;
    return code == MPI_SUCCESS && watching ? wait_for_mpi(&request) : code;
}

}  // namespace

int wait_for_mpi(MPI_Request *request) {
    for (;;) {
        int done = 0, code = PMPI_Test(request, &done, MPI_STATUS_IGNORE);
        if (code != MPI_SUCCESS || done) {
            return code;
        }
        std::lock_guard<std::recursive_mutex> hold(lock);
        if (!run_one()) {
            std::this_thread::yield();
        }
    }
}

void watch_mpi() {
    watching = true;
}

}  // namespace simulator

using namespace simulator;

extern "C" {

int MPI_Barrier(MPI_Comm comm) {
    int code = gather(comm);
    return code == MPI_SUCCESS ? PMPI_Barrier(comm) : code;
}

int MPI_Allreduce(const void *from, void *to, int count, MPI_Datatype type, MPI_Op how, MPI_Comm comm) {
    int code = gather(comm);
    return code == MPI_SUCCESS ? PMPI_Allreduce(from, to, count, type, how, comm) : code;
}

int MPI_Bcast(void *data, int count, MPI_Datatype type, int root, MPI_Comm comm) {
    int code = gather(comm);
    return code == MPI_SUCCESS ? PMPI_Bcast(data, count, type, root, comm) : code;
}

int MPI_Comm_dup(MPI_Comm comm, MPI_Comm *out) {
    int code = gather(comm);
    return code == MPI_SUCCESS ? PMPI_Comm_dup(comm, out) : code;
}

int MPI_Comm_split(MPI_Comm comm, int colour, int key, MPI_Comm *out) {
    int code = gather(comm);
    return code == MPI_SUCCESS ? PMPI_Comm_split(comm, colour, key, out) : code;
}

int MPI_Send(const void *from, int count, MPI_Datatype type, int peer, int tag, MPI_Comm comm) {
    MPI_Request request;
    int code = PMPI_Isend(from, count, type, peer, tag, comm, &request);
    return code == MPI_SUCCESS ? wait_for_mpi(&request) : code;
}

int MPI_Recv(void *to, int count, MPI_Datatype type, int peer, int tag, MPI_Comm comm, MPI_Status *status) {
    MPI_Request request;
    if (!watching || status != MPI_STATUS_IGNORE) {
        return PMPI_Recv(to, count, type, peer, tag, comm, status);
    }
    int code = PMPI_Irecv(to, count, type, peer, tag, comm, &request);
    return code == MPI_SUCCESS ? wait_for_mpi(&request) : code;
}

int MPI_Waitall(int count, MPI_Request *requests, MPI_Status *statuses) {
    int done = 0, code = MPI_SUCCESS;
    while (watching && code == MPI_SUCCESS && !done) {
        code = PMPI_Testall(count, requests, &done, statuses);
        std::lock_guard<std::recursive_mutex> hold(simulator::lock);
        if (!done && !run_one()) {
            std::this_thread::yield();
        }
    }
    return done || code != MPI_SUCCESS ? code : PMPI_Waitall(count, requests, statuses);
}
}
