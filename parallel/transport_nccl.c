// Memory of cards between ranks by NCCL. Compiled twice, like the kernels: against NVIDIA's headers (BACKEND = cuda) and
// against those of the simulated card (BACKEND = simulated).
//
// Communication has a stream of its own beside the card's stream of operations. An exchange waits there for an event of the
// operations before it, and the operations behind it wait for an event of the exchange; the host waits for nothing:
//
//     operations      backward 3 |ready 3| backward 2 |ready 2| backward 1 ...            |wait| update
//     communication              `-> sum of bucket 3          `-> sum of bucket 2 ... |done|---^
//
// All exchanges of a group run on that one stream in the order of the calls, the same on all ranks, as NCCL demands.
//
// NCCL's messages hold up the stream until the other side has come, except those of one ncclGroup, which go side by side. So
// messages gather until one of them is waited for or tested, or something else is started, and go as one: two ranks that each
// send first, then receive, meet. What they wait for on the card was said at their start; only the host's call comes late.
#ifndef BACKEND
#error "compile with -DBACKEND=cuda or -DBACKEND=simulated"
#endif

#include "parallel/transport.h"

#include <cuda_runtime_api.h>
#include <nccl.h>
#include <stdio.h>

typedef struct NcclRequest {
    GroupRequest base;  // first
    cudaEvent_t done;
    struct NcclRequest *next;  // message that gathers behind it
} NcclRequest;

typedef struct NcclState {
    ncclComm_t ranks;
    cudaStream_t operations, communication;
    cudaEvent_t ready;    // recorded in the one, waited for by the other, at once
    cudaEvent_t *unused;  // of requests that ended
    int unused_count, unused_capacity;
    NcclRequest *first, *last;  // messages that gather
    bool broken;                // an error was told: the group cannot be ended in good order
} NcclState;

typedef struct CardId {
    char uuid[16];
    int32_t ordinal;  // on its host
    int32_t nccl;     // the library's version there; 0: there is none
} CardId;

static Error *nccl_error(NcclState *state, ncclResult_t code) {
    if (code == ncclSuccess) {
        return NULL;
    }
    state->broken = true;
    const char *detail = ncclGetLastError(state->ranks);
    bool has_detail = detail != NULL && *detail != 0;
    return failure("NCCL failed: %s%s%s (NCCL_DEBUG=WARN tells more)", ncclGetErrorString(code), has_detail ? ": " : "",
                   has_detail ? detail : "");
}

static Error *cuda_error(NcclState *state, cudaError_t code) {
    if (code == cudaSuccess) {
        return NULL;
    }
    state->broken = true;
    return failure("the card failed: %s (%s)", cudaGetErrorString(code), cudaGetErrorName(code));
}

// ---- Opening

// 0 where this machine has no such library.
static int library_version(void) {
    int version = 0;
    return ncclGetVersion(&version) == ncclSuccess ? version : 0;
}

// NCCL before 2.30 refuses two ranks on one card; later versions take them where the environment allows it.
static bool allows_shared_cards(void) {
    const char *allowed = getenv("NCCL_MULTI_RANK_GPU_ENABLE");
    return library_version() >= 23000 && allowed != NULL && strcmp(allowed, "1") == 0;
}

// Which card this rank computes on: hosts may have one name, cards on one place of the bus may be parts of one. The thread that
// opened the device calls.
static Error *own_card(Comm *comm, CardId *id) {
    int ordinal = -1;
    struct cudaDeviceProp properties;
    cudaError_t code = cudaGetDevice(&ordinal);
    code = code == cudaSuccess ? cudaGetDeviceProperties(&properties, ordinal) : code;
    if (code != cudaSuccess) {
        return failure("rank %d of %d on %s: card %d has no properties: %s", comm->rank, comm->size, comm->host, ordinal,
                       cudaGetErrorString(code));
    }
    memcpy(id->uuid, properties.uuid.bytes, sizeof id->uuid);
    id->ordinal = ordinal;
    id->nccl = library_version();
    return NULL;
}

static Error *nccl_usable(Comm *comm, bool *usable, Buffer *why) {
    CardId own = {{0}};
    Buffer all = {0};
    int64_t *ends = memory_zeroed((size_t)comm->size, sizeof *ends);
    Error *error = comm_agree(comm, own_card(comm, &own));
    error = error == NULL ? comm_gather(comm, &own, sizeof own, &all, ends) : error;
    error = error == NULL ? comm_broadcast_buffer(comm, &all, 0) : error;
    const CardId *ids = (const CardId *)all.data;
    *usable = true;
    for (int i = 0; error == NULL && *usable && i < comm->size; i++) {
        if (ids[i].nccl == 0) {
            *usable = false;
            buffer_printf(why, "rank %d finds no libnccl.so.2 (LD_LIBRARY_PATH names where it lies)", i);
        }
        for (int j = 0; *usable && j < i && !allows_shared_cards(); j++) {
            if (memcmp(ids[i].uuid, ids[j].uuid, sizeof ids[i].uuid) == 0) {
                *usable = false;
                buffer_printf(why, "ranks %d and %d share card %d of a host, which NCCL refuses", j, i, ids[i].ordinal);
            }
        }
    }
    free(ends);
    buffer_free(&all);
    return error;
}

static void close_state(NcclState *state, bool failed) {
    if (state->ranks != NULL) {
        if (failed || state->broken) {
            ncclCommAbort(state->ranks);
        } else {
            cudaStreamSynchronize(state->communication);
            ncclCommDestroy(state->ranks);
        }
    }
    for (int i = 0; i < state->unused_count; i++) {
        cudaEventDestroy(state->unused[i]);
    }
    free(state->unused);
    if (state->ready != NULL) {
        cudaEventDestroy(state->ready);
    }
    if (state->communication != NULL) {
        cudaStreamDestroy(state->communication);
    }
    free(state);
}

static void nccl_close(Group *group, bool failed) {
    close_state(group->state, failed);
}

// What needs no other rank: rank 0 makes the id that all meet by.
static Error *prepare(const Group *group, NcclState *state, ncclUniqueId *id) {
    int least = 0, greatest = 0;
    TRY(cuda_error(state, cudaDeviceGetStreamPriorityRange(&least, &greatest)));
    // First in line: its kernels are few, and other ranks wait for them.
    TRY(cuda_error(state, cudaStreamCreateWithPriority(&state->communication, cudaStreamNonBlocking, greatest)));
    TRY(cuda_error(state, cudaEventCreateWithFlags(&state->ready, cudaEventDisableTiming)));
    // Sums made inside of NVLink's switches need not have one order; rings and trees do. A user may allow them.
    setenv("NCCL_NVLS_ENABLE", "0", 0);
    return group->rank == 0 ? nccl_error(state, ncclGetUniqueId(id)) : NULL;
}

static const char *nccl_version(void) {
    static char text[32];
    int version = library_version();
    if (version == 0) {
        return "no libnccl.so.2 is found";
    }
    snprintf(text, sizeof text, "%d.%d.%d", version / 10000, version / 100 % 100, version % 100);
    return text;
}

static Error *nccl_open(Group *group) {
    NcclState *state = memory_zeroed(1, sizeof *state);
    ncclUniqueId id = {{0}};
    state->operations = device_stream(group->device);
    // A rank that cannot go on says so before the others wait for it.
    Error *error = comm_agree(group->comm, prepare(group, state, &id));
    error = error == NULL ? comm_broadcast(group->comm, &id, sizeof id, 0) : error;
    error = error == NULL ? nccl_error(state, ncclCommInitRank(&state->ranks, group->size, id, group->rank)) : error;
    if (error != NULL) {
        close_state(state, true);
        return error;
    }
    snprintf(group->transport, sizeof group->transport, "nccl %s", nccl_version());
    group->recordable = true;
    group->state = state;
    return NULL;
}

// ---- Operations

static ncclDataType_t type_of(ElementType type) {
    switch (type) {
    case ELEMENT_FP32:
        return ncclFloat32;
    case ELEMENT_FP64:
        return ncclFloat64;
    case ELEMENT_BF16:
        return ncclBfloat16;
    case ELEMENT_FP16:
        return ncclFloat16;
    case ELEMENT_BYTE:
        break;
    }
    return ncclInt8;
}

static ncclResult_t all_to_all(const Group *group, const NcclState *state, const Collective *what) {
    int64_t part = what->count * element_bytes(what->type);
    ncclDataType_t type = type_of(what->type);
    size_t count = (size_t)what->count;
    ncclResult_t code = ncclGroupStart(), end;
    for (int r = 0; r < group->size && code == ncclSuccess; r++) {
        code = ncclSend((const char *)what->send + r * part, count, type, r, state->ranks, state->communication);
        if (code == ncclSuccess) {
            code = ncclRecv((char *)what->receive + r * part, count, type, r, state->ranks, state->communication);
        }
    }
    end = ncclGroupEnd();
    return code != ncclSuccess ? code : end;
}

static ncclResult_t call(const GroupRequest *request) {
    const Collective *what = &request->what;
    const NcclState *state = request->group->state;
    ncclRedOp_t how = what->reduce == COMM_SUM ? ncclSum : ncclMax;
    ncclDataType_t type = type_of(what->type);
    size_t count = (size_t)what->count;
    ncclComm_t ranks = state->ranks;
    cudaStream_t stream = state->communication;
    switch (what->operation) {
    case GROUP_ALL_REDUCE:
        return ncclAllReduce(what->send, what->receive, count, type, how, ranks, stream);
    case GROUP_REDUCE:
        return ncclReduce(what->send, what->receive, count, type, how, what->peer, ranks, stream);
    case GROUP_REDUCE_SCATTER:
        return ncclReduceScatter(what->send, what->receive, count, type, how, ranks, stream);
    case GROUP_ALL_GATHER:
        return ncclAllGather(what->send, what->receive, count, type, ranks, stream);
    case GROUP_BROADCAST:
        return ncclBroadcast(what->send, what->receive, count, type, what->peer, ranks, stream);
    case GROUP_ALL_TO_ALL:
        return all_to_all(request->group, state, what);
    case GROUP_SEND:
        return ncclSend(what->send, count, type, what->peer, ranks, stream);
    case GROUP_RECEIVE:
        return ncclRecv(what->receive, count, type, what->peer, ranks, stream);
    case GROUP_OPERATIONS:
        break;
    }
    return ncclInvalidArgument;
}

// Lets the messages go that gathered.
static Error *call_messages(NcclState *state) {
    NcclRequest *first = state->first;
    state->first = state->last = NULL;
    if (first == NULL) {
        return NULL;
    }
    ncclResult_t code = ncclGroupStart(), end;
    for (NcclRequest *r = first; r != NULL && code == ncclSuccess; r = r->next) {
        code = call(&r->base);
    }
    end = ncclGroupEnd();
    TRY(nccl_error(state, code != ncclSuccess ? code : end));
    for (NcclRequest *r = first; r != NULL; r = r->next) {
        TRY(cuda_error(state, cudaEventRecord(r->done, state->communication)));
    }
    return NULL;
}

static void gather_message(NcclState *state, NcclRequest *request) {
    if (state->first == NULL) {
        state->first = request;
    } else {
        state->last->next = request;
    }
    state->last = request;
}

static Error *nccl_start(GroupRequest *base) {
    NcclRequest *request = (NcclRequest *)base;
    NcclState *state = base->group->state;
    bool is_message = base->what.operation == GROUP_SEND || base->what.operation == GROUP_RECEIVE;
    if (state->unused_count > 0) {
        request->done = state->unused[--state->unused_count];
    } else {
        TRY(cuda_error(state, cudaEventCreateWithFlags(&request->done, cudaEventDisableTiming)));
    }
    if (!is_message) {
        TRY(call_messages(state));
    }
    // What comes next in communication waits for the operations so far.
    TRY(cuda_error(state, cudaEventRecord(state->ready, state->operations)));
    TRY(cuda_error(state, cudaStreamWaitEvent(state->communication, state->ready, 0)));
    if (is_message) {
        gather_message(state, request);
        return NULL;
    }
    TRY(nccl_error(state, call(base)));
    return cuda_error(state, cudaEventRecord(request->done, state->communication));
}

// While operations are recorded nothing happens and nothing may be asked.
static Error *nccl_test(GroupRequest *request, bool *done) {
    NcclState *state = request->group->state;
    enum cudaStreamCaptureStatus recording = cudaStreamCaptureStatusNone;
    TRY(call_messages(state));
    TRY(cuda_error(state, cudaStreamIsCapturing(state->operations, &recording)));
    if (recording != cudaStreamCaptureStatusNone) {
        *done = false;
        return NULL;
    }
    cudaError_t code = cudaEventQuery(((NcclRequest *)request)->done);
    *done = code == cudaSuccess;
    return code == cudaErrorNotReady ? NULL : cuda_error(state, code);
}

// Operations to come wait for the exchange.
static Error *nccl_wait(GroupRequest *request) {
    NcclState *state = request->group->state;
    TRY(call_messages(state));
    return cuda_error(state, cudaStreamWaitEvent(state->operations, ((NcclRequest *)request)->done, 0));
}

static void nccl_free(GroupRequest *request) {
    NcclState *state = request->group->state;
    cudaEvent_t done = ((NcclRequest *)request)->done;
    if (done != NULL) {
        array_push(state->unused, state->unused_count, state->unused_capacity, done);
    }
}

static Error *nccl_check(Group *group) {
    NcclState *state = group->state;
    ncclResult_t code = ncclSuccess;
    TRY(nccl_error(state, ncclCommGetAsyncError(state->ranks, &code)));
    return nccl_error(state, code);
}

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)

const Transport PASTE(BACKEND, _transport_nccl) = {
    .name = "nccl",
    .request_bytes = sizeof(NcclRequest),
    .usable = nccl_usable,
    .open = nccl_open,
    .close = nccl_close,
    .start = nccl_start,
    .test = nccl_test,
    .wait = nccl_wait,
    .free = nccl_free,
    .check = nccl_check,
    .version = nccl_version,
};
