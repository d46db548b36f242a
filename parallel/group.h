// The data plane: what ranks exchange in every step, in memory of the host or of their cards.
//
// A Group is an order of operations among some ranks: it has a name, counts what it starts, and moves data by one transport
// (transport.h; one file each: self, mpi, nccl, staged). Everything has one shape: start an operation, test it or not, wait for
// it. Several may be under way; all ranks start the same ones in the same order, and may wait in any order. Groups do not
// depend on each other, also where they have the same ranks.
//
// Memory of a card: communication is part of the device's order of operations. It begins when what was called before the start
// is done, and what is called after the wait comes behind it; nothing waits on the host, so that a bucket is reduced on a
// stream of its own while the backward pass goes on, and all of it can be recorded (device_record) where group->recordable.
// Each operation must have been done once before it is recorded (messages once with each peer), because libraries connect ranks
// when they first talk.
//
//   operation       send                receive             `count` elements
//   all-reduce      count               count               receive = the sum (or maximum) of all ranks' send
//   reduce          count               count of `peer`     `peer`'s receive = the sum of all ranks' send
//   reduce-scatter  size * count        count               rank r's receive = the sum of all ranks' send[r * count ...]
//   all-gather      count               size * count        receive[r * count ...] = rank r's send, on every rank
//   broadcast       -                   count               receive = `peer`'s receive
//   all-to-all      size * count        size * count        receive[r * count ...] = rank r's send[own rank * count ...]
//   send            count               -                   to `peer`
//   receive         -                   count               from `peer`
//
// Memory that takes part must not be touched until the wait returned. Sent and received memory may be the same only so:
// all-reduce and reduce: receive == send; reduce-scatter: receive == send + rank * count (what else is in `send` is undefined
// afterwards); all-gather: send == receive + rank * count. Otherwise they do not overlap, nor does memory of two operations
// under way.
//
// Messages (send, receive) of a pair of ranks are matched in the order in which they were started, and their tags must be
// equal: a transport may match by tag, or by order alone. Both directions are under way at once if both are started before one
// is waited for. Beyond that a transport may hold a message back until the ones before it in this group are through: a schedule
// that cannot live with that has groups of its own for what must not wait for each other.
//
// Order of sums. For a given transport, number of ranks and count, and in place or not, the sums are the same bits on every
// rank and in every run. Sums over two ranks are the same bits whichever transport and operation made them (a + b = b + a).
//   mpi     MPI's trees and rings, chosen by it from the above; beyond comm_chunk_elements each piece has its own. 16-bit
//           floats are added in fp32 and rounded to nearest even at each addition, so the error grows with the ranks.
//   nccl    NCCL's rings and trees, likewise, rounded to the type at each addition; sums inside of switches (NVLS), which have
//           no order, are off unless the environment asks for them.
//   staged  as the transport for memory of the host that it goes through.
// What a maximum makes of NaN is not defined.
//
// All-to-all waits for its first caller, messages go around the rings of context parallelism.
//
// Errors name rank, host, operation, its number in the group, and the group. A group is of no use after one: the caller reports
// it and calls comm_abort.
#pragma once

#include "kernels/device.h"
#include "parallel/comm.h"

typedef enum GroupOperation {
    GROUP_ALL_REDUCE,
    GROUP_REDUCE,
    GROUP_REDUCE_SCATTER,
    GROUP_ALL_GATHER,
    GROUP_BROADCAST,
    GROUP_ALL_TO_ALL,
    GROUP_SEND,
    GROUP_RECEIVE,
    GROUP_OPERATIONS
} GroupOperation;

// Types of elements: those of tensors that are floats, by the same numbers, and two more.
typedef enum ElementType {
    ELEMENT_FP32 = TYPE_FP32,
    ELEMENT_BF16 = TYPE_BF16,
    ELEMENT_FP16 = TYPE_FP16,
    ELEMENT_FP64 = TYPE_COUNT,
    ELEMENT_BYTE,  // moved, never added
} ElementType;

// How a tensor's elements travel; codes are bytes.
static inline ElementType element_of(DataType type) {
    return type == TYPE_FP32 || type == TYPE_BF16 || type == TYPE_FP16 ? (ElementType)type : ELEMENT_BYTE;
}

static inline int64_t element_bytes(ElementType type) {
    return type == ELEMENT_FP64 ? 8 : type == ELEMENT_BYTE ? 1 : data_type_bytes((DataType)type);
}

enum { GROUP_MOST_TAG = 32000 };

typedef struct Collective {
    GroupOperation operation;
    ElementType type;
    CommReduce reduce;  // of all-reduce, reduce and reduce-scatter
    int64_t count;      // may be 0: nothing happens, on all ranks
    const void *send;
    void *receive;
    int peer;  // the root of a broadcast or a reduce; the other rank of a message
    int tag;   // of a message, 0 .. GROUP_MOST_TAG
} Collective;

typedef struct Group {
    char name[64];  // "data", "data x context": unique among groups that this rank is in
    int rank, size;
    int64_t sequence;       // operations started so far
    int64_t sent;           // bytes that these make a rank send, as the best algorithm would: see group.c
    double waited;          // seconds that this thread stood in group_wait; on cards it does not stand
    int64_t operations;     // likewise: started, with something to do
    struct Group *account;  // of the same or more ranks, which both are counted on; NULL: its own
    Device *device;         // whose memory takes part; NULL: memory of the host
    bool recordable;        // false: the host has to wait in between
    char transport[64];     // "mpi", "nccl 2.28.9", "mpi through host memory"
    Comm *comm;             // of the same ranks
    const struct Transport *way;
    void *state;  // the transport's
} Group;

typedef struct GroupRequest GroupRequest;

// Collective over `comm`, which must outlive the group. `device` is open on this rank, of the same kind on all ranks, and
// closed after the group; NULL or the CPU: memory of the host. Between cards NCCL does the work where it is built in and no two
// ranks share a card; otherwise copies go through pinned memory of the host: right and slow, and rank 0 says so once.
Error *group_create(Comm *comm, const char *name, Device *device, Group **out) MUST_CHECK;
// Collective, with nothing under way and no recording left (device_graph_destroy) that the group was part of. After an error
// that other ranks may not have, `failed` says so: then it waits for none of them, and what is under way ends as it may. NULL
// is fine.
void group_close(Group *group, bool failed);

// Starts one operation. *out is freed by the wait or the test that finishes it; it is NULL where there is nothing to wait for.
Error *group_start(Group *group, const Collective *what, GroupRequest **out) MUST_CHECK;
// Lets communication advance and tells whether *request has finished; then it is freed and set to NULL. Cheap (about a
// microsecond): call it between layers. Ranks may call it as often as they like. A NULL *request has finished.
Error *group_test(GroupRequest **request, bool *done) MUST_CHECK;
// Waits for it, frees it, sets it to NULL. A NULL *request is fine.
Error *group_wait(GroupRequest **request) MUST_CHECK;
// group_start and group_wait.
Error *group_run(Group *group, const Collective *what) MUST_CHECK;

// What went wrong meanwhile on the way between cards, such as a rank that is gone. Call it at the end of every step; costs
// nothing. An error of it ends the use of the group.
Error *group_check(Group *group) MUST_CHECK;

// The version of NCCL this build has: "2.27.3", or "not built".
const char *group_nccl_version(void);

// ---- The operations, waited for at once; all-reduce in place, the others as said above

#define GROUP_RUN(group, ...) group_run((group), &(Collective){__VA_ARGS__})
MUST_CHECK static inline Error *group_all_reduce(Group *group, ElementType type, CommReduce reduce, void *data, int64_t count) {
    return GROUP_RUN(group, GROUP_ALL_REDUCE, type, reduce, count, data, data);
}
MUST_CHECK static inline Error *group_reduce_scatter(Group *group, ElementType type, const void *send, void *receive,
                                                     int64_t count) {
    return GROUP_RUN(group, GROUP_REDUCE_SCATTER, type, COMM_SUM, count, send, receive);
}
MUST_CHECK static inline Error *group_all_gather(Group *group, ElementType type, const void *send, void *receive,
                                                 int64_t count) {
    return GROUP_RUN(group, GROUP_ALL_GATHER, type, COMM_SUM, count, send, receive);
}
MUST_CHECK static inline Error *group_broadcast(Group *group, ElementType type, void *data, int64_t count, int root) {
    return GROUP_RUN(group, GROUP_BROADCAST, type, COMM_SUM, count, NULL, data, root);
}
MUST_CHECK static inline Error *group_all_to_all(Group *group, ElementType type, const void *send, void *receive,
                                                 int64_t count) {
    return GROUP_RUN(group, GROUP_ALL_TO_ALL, type, COMM_SUM, count, send, receive);
}
MUST_CHECK static inline Error *group_send(Group *group, ElementType type, const void *data, int64_t count, int to, int tag) {
    return GROUP_RUN(group, GROUP_SEND, type, COMM_SUM, count, data, NULL, to, tag);
}
MUST_CHECK static inline Error *group_receive(Group *group, ElementType type, void *data, int64_t count, int from, int tag) {
    return GROUP_RUN(group, GROUP_RECEIVE, type, COMM_SUM, count, NULL, data, from, tag);
}
