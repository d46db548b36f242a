// What comm.c needs of the backends; no header for anybody else (tests excepted).
#pragma once

#include "parallel/comm.h"

// The largest number of elements handed to the library in one call. Tests make it small to walk the way that sizes beyond
// INT_MAX take.
extern int64_t comm_chunk_elements;

// What every request starts with; a backend puts its own behind.
struct CommRequest {
    Comm *comm;
    bool on_card;  // started by the functions of comm->card
};

// How memory of a card is reached. Counts are at least 1, and the group has several ranks.
typedef enum CommType { COMM_FLOATS, COMM_DOUBLES } CommType;
typedef struct CommCardBackend {
    // Whether it can be used, the same on all ranks; `why` says what is in the way. NULL: always.
    Error *(*usable)(Comm *comm, Device *device, bool *usable, Buffer *why);
    Error *(*open)(Comm *comm, Device *device, CommCard **out);
    void (*close)(Comm *comm, CommCard *card, bool failed);
    Error *(*all_reduce)(Comm *comm, void *data, int64_t count, CommType type, CommReduce how);
    Error *(*start_all_reduce)(Comm *comm, float *data, int64_t count, CommRequest **out);
    Error *(*test)(CommRequest *request, bool *done);
    Error *(*wait)(CommRequest *request);
    void (*free_request)(CommRequest *request);
    Error *(*reduce_scatter)(Comm *comm, float *data, int64_t count_each);
    Error *(*all_gather)(Comm *comm, void *data, int64_t bytes_each);
    Error *(*check)(Comm *comm);   // NULL: nothing can go wrong unseen
    const char *(*version)(void);  // "2.28.9"; NCCL only
} CommCardBackend;

// What the state of every one starts with.
struct CommCard {
    const CommCardBackend *backend;
    Device *device;
    char name[64];
    bool recordable;
};

extern const CommCardBackend comm_staged_backend;
extern const CommCardBackend cuda_comm_nccl, simulated_comm_nccl;  // comm_nccl.c, compiled for each

// All parts, one after the other, on every rank: comm_all_gather for memory of the host.
Error *comm_host_all_gather(Comm *comm, void *data, int64_t bytes_each) MUST_CHECK;

// Initialises MPI and opens the world. `expected`: the ranks the launcher announced, 0 where unknown; another number is an
// error.
Error *comm_mpi_open(int expected, Comm **out) MUST_CHECK;
const char *comm_mpi_library(void);
