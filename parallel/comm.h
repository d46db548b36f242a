// The control plane: how a group of ranks comes to be, and how its ranks agree on small things. What a step exchanges goes
// through the data plane (group.h), which is made from a Comm. One file a backend: comm_self.c, comm_mpi.c (comm_backend.h).
//
// Memory of the host only. Every operation except rank, size and abort is collective: all ranks of the group call it in the
// same order with the same counts, and it is done when the call returns. One thread of a process, the one that opened the
// world, makes all calls. Counts are 64-bit; a backend cuts what its library cannot take at once.
//
// Errors: a failed operation returns an error that names the rank, its host and the operation. A group is not usable after
// that: the caller reports it and calls comm_abort, because the other ranks may be waiting for this one.
#pragma once

#include "core/memory.h"

typedef struct Comm Comm;
typedef struct CommBackend CommBackend;

typedef enum CommReduce { COMM_SUM, COMM_MAX } CommReduce;

struct Comm {
    const CommBackend *backend;
    int rank, size;
    int host_rank, host_size;  // among the ranks of this group on this host
    char host[64];
    bool agreed;  // the last comm_agree returned an error: all ranks leave the same way
    void *state;  // the backend's
};

// Opens the group of all ranks. MPI is initialised only where mpirun, mpiexec or srun started the process with several ranks or
// with one (their environment variables tell); else the world is this process alone. Started with several ranks but built
// without MPI is an error. Sets the rank for log messages. Where MPI, or looking up the host's own
// name, takes more than a few seconds, a warning says so and what to do. At most once in a process.
Error *comm_open_world(Comm **out) MUST_CHECK;

// A group of this process alone; costs nothing.
Comm *comm_open_self(void);

// Ends the group, after all that was made from it; for the world it waits for the other ranks (MPI_Finalize), so it is not for
// the way out after an error that only this rank has: see comm_abort. NULL is fine.
void comm_close(Comm *comm);

// Ends the program on all ranks of the world at once, this one with that exit code. `comm` may be any group, or NULL: the world
// if one was opened. Use after an error that other ranks do not share; they would wait for ever otherwise. After an error of
// comm_agree, which all ranks share, it waits until every rank has come here, so that rank 0's report is not cut off.
_Noreturn void comm_abort(Comm *comm, int code);

// True where the environment says that an MPI launcher started this process. Safe in a signal handler.
bool comm_started_by_launcher(void);

// How long the launcher leaves its ranks, after it handed a signal on to them that asks to stop, before it kills them. Infinity
// where nothing is known of such a limit.
double comm_stop_seconds(void);

// Whether this build has MPI, and its version for `athanor doctor`: "Open MPI v4.1.4" or "none".
const char *comm_library(void);

// Sums or maxima of a few doubles over the ranks, in place. The same bits on every rank.
Error *comm_all_reduce_doubles(Comm *comm, double *values, int64_t count, CommReduce how) MUST_CHECK;

// Copies `bytes` of rank `root` to all ranks. `size` is the same on all.
Error *comm_broadcast(Comm *comm, void *bytes, int64_t size, int root) MUST_CHECK;
// The same for bytes whose number only the root knows: replaces `buffer` on the others.
Error *comm_broadcast_buffer(Comm *comm, Buffer *buffer, int root) MUST_CHECK;

// Collects `size` bytes (may differ between ranks) at rank 0: `all` gets them in the order of ranks, ends[r] (comm->size
// entries) the end of rank r's part. Both are untouched on other ranks and may be NULL there.
Error *comm_gather(Comm *comm, const void *bytes, int64_t size, Buffer *all, int64_t *ends) MUST_CHECK;

Error *comm_barrier(Comm *comm) MUST_CHECK;

// Splits into groups of equal `colour` (>= 0), ordered by `key`, then by rank. *out is closed by the caller, before the world.
Error *comm_split(Comm *comm, int colour, int key, Comm **out) MUST_CHECK;

// Every rank passes the error it has, or NULL. NULL everywhere returns NULL. Else every rank gets an error (own ones are
// taken): rank 0 the message of the lowest rank that failed, the others one with an empty message, which means that rank 0
// reports it. All ranks then leave the same way, so that one bad file is one line and nobody waits. If the exchange itself
// fails, that error is returned.
Error *comm_agree(Comm *comm, Error *own) MUST_CHECK;
