// The data plane: what is the same for all transports, and which one is taken. See group.h.
#include "core/clock.h"
#include "core/log.h"
#include "parallel/transport.h"

#include <stdio.h>

static const char *operation_name(GroupOperation operation) {
    static const char *const names[GROUP_OPERATIONS] = {"all-reduce", "reduce",     "reduce-scatter", "all-gather",
                                                        "broadcast",  "all-to-all", "send",           "receive"};
    return names[operation];
}

// ---- Making a group

// NCCL for that kind of card, NULL where it is not built in.
static const Transport *nccl_for(DeviceKind kind) {
#if defined(ATHANOR_HAVE_CUDA) && defined(ATHANOR_HAVE_NCCL)
    if (kind == DEVICE_CUDA) {
        return &cuda_transport_nccl;
    }
#endif
#if defined(ATHANOR_HAVE_SIMULATED) && defined(ATHANOR_HAVE_MPI)
    if (kind == DEVICE_SIMULATED) {
        return &simulated_transport_nccl;
    }
#endif
    return NULL;
}

const char *group_nccl_version(void) {
    const Transport *nccl = nccl_for(DEVICE_CUDA);
    return nccl != NULL ? nccl->version() : "not built";
}

// The only place where it matters whose memory it is.
static Error *choose_transport(Comm *comm, const Device *device, const Transport **out) {
    *out = comm->size == 1 ? &transport_self : comm->backend->host_plane;
    if (comm->size == 1 || device == NULL) {
        return NULL;
    }
    const Transport *nccl = nccl_for(device->kind);
    Buffer why = {0};
    bool usable = nccl != NULL;
    Error *error = NULL;
    if (usable) {
        error = nccl->usable(comm, &usable, &why);
    } else {
        buffer_text(&why, "this build has no NCCL");
    }
    if (error == NULL && !usable && comm->rank == 0) {
        static bool warned;
        if (!warned) {
            log_warning("%s: what ranks exchange goes through host memory, which is slow", why.data);
            warned = true;
        }
    }
    buffer_free(&why);
    *out = usable ? nccl : &transport_staged;
    return error;
}

Error *group_create(Comm *comm, const char *name, Device *device, Group **out) {
    *out = NULL;
    device = device != NULL && device->kind == DEVICE_CPU ? NULL : device;
    const Transport *way;
    TRY(choose_transport(comm, device, &way));
    Group *group = memory_zeroed(1, sizeof *group);
    *group = (Group){.rank = comm->rank, .size = comm->size, .device = device, .comm = comm, .way = way};
    snprintf(group->name, sizeof group->name, "%s", name);
    snprintf(group->transport, sizeof group->transport, "%s", way->name);
    Error *error = way->open(group);
    if (error != NULL) {
        free(group);
        bool told_elsewhere = *error->message == 0;  // comm_agree
        return told_elsewhere
                   ? error
                   : error_wrap(error, "rank %d of %d on %s: making group %s", comm->rank, comm->size, comm->host, name);
    }
    *out = group;
    return NULL;
}

void group_close(Group *group, bool failed) {
    if (group != NULL) {
        group->way->close(group, failed);
        free(group);
    }
}

// ---- Operations

static void check_arguments(const Group *group, const Collective *what) {
    bool message = what->operation == GROUP_SEND || what->operation == GROUP_RECEIVE;
    bool adds =
        what->operation == GROUP_ALL_REDUCE || what->operation == GROUP_REDUCE || what->operation == GROUP_REDUCE_SCATTER;
    ensure(what->operation >= 0 && what->operation < GROUP_OPERATIONS && what->count >= 0, "operation %d, count %lld",
           (int)what->operation, (long long)what->count);
    ensure(what->peer >= 0 && what->peer < group->size && (!message || what->peer != group->rank), "%s with rank %d of %d",
           operation_name(what->operation), what->peer, group->size);
    ensure(what->tag >= 0 && what->tag <= GROUP_MOST_TAG, "tag %d", what->tag);
    ensure(!adds || what->type != ELEMENT_BYTE, "bytes cannot be added");
}

// Puts in front of a transport's error what it is about.
static Error *named(const Group *group, const Collective *what, int64_t sequence, Error *error) {
    return error_wrap(error, "rank %d of %d on %s: %s %lld of group %s", group->rank, group->size, group->comm->host,
                      operation_name(what->operation), (long long)sequence, group->name);
}

Error *request_start(Group *group, const Collective *what, int64_t sequence, GroupRequest **out) {
    GroupRequest *request = memory_zeroed(1, group->way->request_bytes);
    *request = (GroupRequest){group, sequence, *what};
    if (what->operation == GROUP_BROADCAST) {
        request->what.send = what->receive;
    }
    *out = request;
    Error *error = group->way->start(request);
    if (error != NULL) {
        request_free(out);
    }
    return error;
}

void request_free(GroupRequest **request) {
    if (*request != NULL && (*request)->group->way->free != NULL) {
        (*request)->group->way->free(*request);
    }
    free(*request);
    *request = NULL;
}

static Group *account_of(Group *group) {
    return group->account != NULL ? group->account : group;
}

// Bytes that each rank must send at least, by the algorithms that move the least for large counts: rings, and a tree's leaf.
static int64_t least_sent(const Group *group, const Collective *what) {
    int64_t bytes = what->count * element_bytes(what->type), others = group->size - 1;
    switch (what->operation) {
    case GROUP_ALL_REDUCE:
        return 2 * bytes * others / group->size;
    case GROUP_REDUCE:
    case GROUP_BROADCAST:
        return bytes * others / group->size;
    case GROUP_REDUCE_SCATTER:
    case GROUP_ALL_GATHER:
    case GROUP_ALL_TO_ALL:
        return bytes * others;
    case GROUP_SEND:
        return bytes;
    case GROUP_RECEIVE:
    case GROUP_OPERATIONS:
        break;
    }
    return 0;
}

// Every operation of every group enters here, in the order of its number, and leaves through `leave`: whoever wants to record
// what a rank is doing, or stands in, hooks into these two.
Error *group_start(Group *group, const Collective *what, GroupRequest **out) {
    check_arguments(group, what);
    *out = NULL;
    group->sequence++;
    account_of(group)->sent += least_sent(group, what);
    account_of(group)->operations += what->count > 0;
    return what->count > 0 ? named(group, what, group->sequence, request_start(group, what, group->sequence, out)) : NULL;
}

// The end of an operation, good or bad.
static Error *leave(GroupRequest **request, Error *error) {
    error = named((*request)->group, &(*request)->what, (*request)->sequence, error);
    request_free(request);
    return error;
}

Error *group_test(GroupRequest **request, bool *done) {
    *done = true;
    if (*request == NULL) {
        return NULL;
    }
    Error *error = (*request)->group->way->test(*request, done);
    return error != NULL || *done ? leave(request, error) : NULL;
}

Error *group_wait(GroupRequest **request) {
    if (*request == NULL) {
        return NULL;
    }
    Group *group = (*request)->group;
    double start = clock_seconds();
    Error *error = group->way->wait(*request);
    account_of(group)->waited += clock_seconds() - start;
    return leave(request, error);
}

Error *group_run(Group *group, const Collective *what) {
    GroupRequest *request;
    TRY(group_start(group, what, &request));
    return group_wait(&request);
}

Error *group_check(Group *group) {
    Error *error = group->way->check != NULL ? group->way->check(group) : NULL;
    return error_wrap(error, "rank %d of %d on %s: group %s, not later than its operation %lld", group->rank, group->size,
                      group->comm->host, group->name, (long long)group->sequence);
}
