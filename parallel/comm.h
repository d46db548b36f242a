// A group of ranks that work together: a small interface, one file a backend (comm_self.c, comm_mpi.c). Memory of cards goes
// through one of two more (comm_nccl.c, comm_staged.c): see "Memory of a card" below.
//
// Every operation except rank, size and abort is collective: all ranks of the group call it in the same order with the same
// counts. One thread of a process, the one that opened the world, makes all calls. Counts are 64-bit; a backend cuts what its
// library cannot take at once.
//
// Determinism: for a given number of ranks and count the sums are the same bits on every rank and in every run. Sums over two
// ranks are the same bits whichever operation made them.
//
// Errors: a failed operation returns an error that names the rank, its host and the operation. A group is not usable after
// that: the caller reports it and calls comm_abort, because the other ranks may be waiting for this one.
#pragma once

#include "core/memory.h"
#include "kernels/device.h"

typedef struct Comm Comm;
typedef struct CommRequest CommRequest;
typedef struct CommCard CommCard;

typedef enum CommReduce { COMM_SUM, COMM_MAX } CommReduce;

// The functions of a backend; counts are at least 1 and arguments are checked before they are called.
typedef struct CommBackend {
    const char *name;  // "self", "mpi"
    Error *(*all_reduce)(Comm *comm, float *data, int64_t count, CommReduce how);
    Error *(*all_reduce_doubles)(Comm *comm, double *values, int64_t count, CommReduce how);
    Error *(*start_all_reduce)(Comm *comm, float *data, int64_t count, CommRequest **out);
    Error *(*test)(CommRequest *request, bool *done);
    Error *(*wait)(CommRequest *request);
    void (*free_request)(CommRequest *request);
    Error *(*broadcast)(Comm *comm, void *bytes, int64_t size, int root);
    Error *(*gather)(Comm *comm, const void *bytes, int64_t size, void *all, const int64_t *sizes);
    Error *(*barrier)(Comm *comm);
    Error *(*split)(Comm *comm, int colour, int key, Comm **out);
    void (*close)(Comm *comm);
    void (*abort)(Comm *comm, int code);
} CommBackend;

struct Comm {
    const CommBackend *backend;
    int rank, size;
    int host_rank, host_size;  // among the ranks of this group on this host
    char host[64];
    bool agreed;     // the last comm_agree returned an error: all ranks leave the same way
    void *state;     // the backend's
    CommCard *card;  // how memory of a card is reached, NULL: no card is attached
};

// Opens the group of all ranks. MPI is initialised only where mpirun, mpiexec or srun started the process with several ranks or
// with one (their environment variables tell); else the world is this process alone. Started with several ranks but built
// without MPI is an error. Sets the rank for log messages. At most once in a process.
Error *comm_open_world(Comm **out) MUST_CHECK;

// A group of this process alone; costs nothing.
Comm *comm_open_self(void);

// Ends the group; for the world it waits for the other ranks (MPI_Finalize), so it is not for the way out after an error that
// only this rank has: see comm_abort. NULL is fine.
void comm_close(Comm *comm);

// Ends the program on all ranks of the world at once, this one with that exit code. `comm` may be any group, or NULL: the world
// if one was opened. Use after an error that other ranks do not share; they would wait for ever otherwise. After an error of
// comm_agree, which all ranks share, it waits until every rank has come here, so that rank 0's report is not cut off.
_Noreturn void comm_abort(Comm *comm, int code);

// True where the environment says that an MPI launcher started this process.
bool comm_started_by_launcher(void);

// Whether this build has MPI, and its version for `athanor doctor`: "Open MPI v4.1.4" or "none".
const char *comm_library(void);

// Sums `data` element-wise over the ranks, in place.
Error *comm_all_reduce(Comm *comm, float *data, int64_t count) MUST_CHECK;
// The same for a few doubles, sum or maximum.
Error *comm_all_reduce_doubles(Comm *comm, double *values, int64_t count, CommReduce how) MUST_CHECK;

// The version of NCCL this build has: "2.27.3", or "not built".
const char *comm_nccl_version(void);

// Starts a sum of `data` in place; the memory must not be touched until comm_test said done or comm_wait returned. Several may
// be under way; all ranks start them in the same order. *out is freed by the wait or the test that finishes it.
Error *comm_start_all_reduce(Comm *comm, float *data, int64_t count, CommRequest **out) MUST_CHECK;
// Lets communication advance and tells whether *request has finished; then it is freed and set to NULL. Cheap (about a
// microsecond): call it between layers.
Error *comm_test(CommRequest **request, bool *done) MUST_CHECK;
// Waits for it, frees it, sets it to NULL. A NULL *request is fine.
Error *comm_wait(CommRequest **request) MUST_CHECK;

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

// ---- Memory of a card

// From now on the floats of comm_all_reduce and comm_start_all_reduce, and all that the functions below take, lie in the memory
// of that card, and communication is part of its order of operations: it begins when what was called before is done, and what
// is called after comm_wait (or after the functions that do not start something) comes behind it. Nothing waits on the host, so
// that a bucket is reduced on a stream of its own while the backward pass goes on, and all of it can be recorded
// (device_record) where comm_recordable says so. Broadcast, gather, agree, barrier and the doubles of comm_all_reduce_doubles
// stay what they were: memory of the host.
//
// NCCL does it where it is built in and no two ranks share a card. Otherwise copies go through pinned memory of the host and
// the group's own backend: right and slow, and rank 0 says so once. On the CPU and in a group of one rank nothing changes.
//
// Collective. `device` is open on this rank, of the same kind on all ranks of the group, and closed after the group (or after
// comm_detach_device). Groups made by comm_split are attached on their own.
Error *comm_attach_device(Comm *comm, Device *device) MUST_CHECK;
// Collective, with nothing under way and no recording left (device_graph_destroy) that the group was part of; comm_close does
// it too. After an error that other ranks may not have, `failed` says so: then it waits for none of them, and what is under way
// ends as it may.
void comm_detach_device(Comm *comm, bool failed);

// "nccl 2.28.9", "mpi through host memory"; the group's backend where no card is attached.
const char *comm_transport(const Comm *comm);
// False where the host has to wait in between: then nothing that communicates may be recorded.
bool comm_recordable(const Comm *comm);

// Sums or maxima over the ranks, in place, in memory of the card (of the host where none is attached).
Error *comm_all_reduce_device(Comm *comm, float *data, int64_t count, bool maximum) MUST_CHECK;
Error *comm_all_reduce_device_doubles(Comm *comm, double *values, int64_t count) MUST_CHECK;
// `data` has size * count_each floats. Afterwards rank r holds the sums of its part, [r * count_each, (r + 1) * count_each);
// the other parts are undefined.
Error *comm_reduce_scatter(Comm *comm, float *data, int64_t count_each) MUST_CHECK;
// `data` has size * bytes_each bytes. Every rank brings its own part, at rank * bytes_each, and gets the others'.
Error *comm_all_gather(Comm *comm, void *data, int64_t bytes_each) MUST_CHECK;

// What went wrong meanwhile on the way between cards, such as a rank that is gone. Call it at the end of every step; costs
// nothing. An error of it ends the use of the group.
Error *comm_check(Comm *comm) MUST_CHECK;
