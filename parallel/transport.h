// What a way of moving data must do for a group of ranks: one file transport_NAME.c with one table. For group.c and the
// transports; no header for anybody else (tests excepted).
//
// group.c has checked the arguments, counts the operations, names them in errors, and gives requests their memory. A transport
// only moves data: its errors are a few words ("MPI failed: message truncated"), which group.c puts the rest in front of. It
// promises what group.h says: any number of operations under way, the order of sums, messages in both directions at once, and
// on a card the order with the device's operations. It finds the other ranks through group->comm (agree, broadcast, gather),
// which need not be of MPI. One thread makes all calls.
//
// A transport for memory of the host belongs to a backend of the control plane (CommBackend.host_plane); group.c chooses for
// cards. So a new one is one file, a table declared here, and the backend whose ranks it serves.
#pragma once

#include "parallel/comm_backend.h"
#include "parallel/group.h"

// What every request begins with; a transport puts its own behind, zeroed at the start.
struct GroupRequest {
    Group *group;
    int64_t sequence;
    Collective what;  // `send` of a broadcast is its `receive`
};

typedef struct Transport {
    const char *name;
    size_t request_bytes;  // of its requests

    // Whether it can be used between these ranks' devices, the same answer on all; `why` says what is in the way. Collective.
    // NULL: always.
    Error *(*usable)(Comm *comm, bool *usable, Buffer *why);
    // Collective. Sets state, and recordable and transport where they are not `false` and the name. Closes after itself where
    // it fails; a rank that fails alone must not leave the others waiting (comm_agree).
    Error *(*open)(Group *group);
    void (*close)(Group *group, bool failed);

    // The count is at least 1. Must not wait for other ranks. What a failed start leaves is freed by `free`.
    Error *(*start)(GroupRequest *request);
    // Lets this and other requests advance.
    Error *(*test)(GroupRequest *request, bool *done);
    Error *(*wait)(GroupRequest *request);
    // Frees what the request holds besides itself; NULL: nothing. After test said done, after wait, or after an error.
    void (*free)(GroupRequest *request);

    Error *(*check)(Group *group);  // NULL: nothing can go wrong unseen
    const char *(*version)(void);   // of its library, NULL: none to tell
} Transport;

extern const Transport transport_self, transport_mpi, transport_staged;
extern const Transport cuda_transport_nccl, simulated_transport_nccl;  // transport_nccl.c, compiled for each

// For a transport that stands on another: a request of `group`, whose name, rank, size, comm, way and state are set, without
// checks and without counting. test and wait are then called by the table; request_free frees all.
Error *request_start(Group *group, const Collective *what, int64_t sequence, GroupRequest **out) MUST_CHECK;
void request_free(GroupRequest **request);
