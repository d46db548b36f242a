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
#ifndef BACKEND
#error "compile with -DBACKEND=cuda or -DBACKEND=simulated"
#endif

#include "parallel/comm_backends.h"

#include <cuda_runtime_api.h>
#include <nccl.h>
#include <stdio.h>

typedef struct NcclRequest {
    CommRequest base;  // first
    cudaEvent_t done;
    struct NcclRequest *next;  // of the free ones
} NcclRequest;

typedef struct NcclCard {
    CommCard base;  // first
    ncclComm_t group;
    cudaStream_t operations, communication;
    cudaEvent_t ready;  // recorded in the one, waited for by the other, at once
    NcclRequest *unused;
    bool broken;  // an error was told: the group cannot be ended in good order
} NcclCard;

typedef struct CardId {
    char uuid[16];
    int32_t ordinal;  // on its host
} CardId;

static NcclCard *state_of(const Comm *comm) {
    return (NcclCard *)comm->card;
}

static Error *nccl_check(const Comm *comm, NcclCard *state, const char *operation, ncclResult_t code) {
    if (code == ncclSuccess) {
        return NULL;
    }
    state->broken = true;
    const char *detail = ncclGetLastError(state->group);
    bool has_detail = detail != NULL && *detail != 0;
    return failure("rank %d of %d on %s: %s failed in NCCL: %s%s%s (NCCL_DEBUG=WARN tells more)", comm->rank, comm->size,
                   comm->host, operation, ncclGetErrorString(code), has_detail ? ": " : "", has_detail ? detail : "");
}

static Error *cuda_check(const Comm *comm, NcclCard *state, const char *operation, cudaError_t code) {
    if (code == cudaSuccess) {
        return NULL;
    }
    state->broken = true;
    return failure("rank %d of %d on %s: %s failed on the card: %s (%s)", comm->rank, comm->size, comm->host, operation,
                   cudaGetErrorString(code), cudaGetErrorName(code));
}

// ---- Opening

// NCCL before 2.30 refuses two ranks on one card; later versions take them where the environment allows it.
static bool allows_shared_cards(void) {
    int version = 0;
    const char *allowed = getenv("NCCL_MULTI_RANK_GPU_ENABLE");
    return ncclGetVersion(&version) == ncclSuccess && version >= 23000 && allowed != NULL && strcmp(allowed, "1") == 0;
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
    return NULL;
}

static Error *nccl_usable(Comm *comm, Device *device, bool *usable, Buffer *why) {
    CardId *ids = memory_zeroed((size_t)comm->size, sizeof *ids);
    Error *error = comm_agree(comm, own_card(comm, &ids[comm->rank]));
    if (error == NULL) {
        error = comm_host_all_gather(comm, ids, sizeof *ids);
    }
    *usable = true;
    for (int i = 0; error == NULL && *usable && i < comm->size; i++) {
        for (int j = 0; *usable && j < i && !allows_shared_cards(); j++) {
            if (memcmp(ids[i].uuid, ids[j].uuid, sizeof ids[i].uuid) == 0) {
                *usable = false;
                buffer_printf(why, "ranks %d and %d share card %d of a host, which NCCL refuses", j, i, ids[i].ordinal);
            }
        }
    }
    free(ids);
    return error;
}

static void nccl_close(Comm *comm, CommCard *card, bool failed) {
    NcclCard *state = (NcclCard *)card;
    if (state->group != NULL) {
        if (failed || state->broken) {
            ncclCommAbort(state->group);
        } else {
            cudaStreamSynchronize(state->communication);
            ncclCommDestroy(state->group);
        }
    }
    while (state->unused != NULL) {
        NcclRequest *request = state->unused;
        state->unused = request->next;
        cudaEventDestroy(request->done);
        free(request);
    }
    if (state->ready != NULL) {
        cudaEventDestroy(state->ready);
    }
    if (state->communication != NULL) {
        cudaStreamDestroy(state->communication);
    }
    free(state);
}

// What needs no other rank: rank 0 makes the id that all meet by.
static Error *prepare(Comm *comm, NcclCard *state, ncclUniqueId *id) {
    int least = 0, greatest = 0;
    TRY(cuda_check(comm, state, "asking for priorities", cudaDeviceGetStreamPriorityRange(&least, &greatest)));
    // First in line: its kernels are few, and other ranks wait for them.
    TRY(cuda_check(comm, state, "making a stream",
                   cudaStreamCreateWithPriority(&state->communication, cudaStreamNonBlocking, greatest)));
    TRY(cuda_check(comm, state, "making an event", cudaEventCreateWithFlags(&state->ready, cudaEventDisableTiming)));
    // Sums made inside of NVLink's switches need not have one order; rings and trees do. A user may allow them.
    setenv("NCCL_NVLS_ENABLE", "0", 0);
    return comm->rank == 0 ? nccl_check(comm, state, "making an id", ncclGetUniqueId(id)) : NULL;
}

static const char *nccl_version(void) {
    static char text[32];
    int version = 0;
    ncclGetVersion(&version);
    snprintf(text, sizeof text, "%d.%d.%d", version / 10000, version / 100 % 100, version % 100);
    return text;
}

static Error *nccl_open(Comm *comm, Device *device, CommCard **out) {
    NcclCard *state = memory_zeroed(1, sizeof *state);
    ncclUniqueId id = {{0}};
    state->operations = device_stream(device);
    // A rank that cannot go on says so before the others wait for it.
    Error *error = comm_agree(comm, prepare(comm, state, &id));
    if (error == NULL) {
        error = comm_broadcast(comm, &id, sizeof id, 0);
    }
    if (error == NULL) {
        error = nccl_check(comm, state, "joining the group", ncclCommInitRank(&state->group, comm->size, id, comm->rank));
    }
    if (error != NULL) {
        nccl_close(comm, &state->base, true);
        return error;
    }
    snprintf(state->base.name, sizeof state->base.name, "nccl %s", nccl_version());
    state->base.recordable = true;
    *out = &state->base;
    return NULL;
}

// ---- Order

// What comes next in communication waits for the operations so far.
static Error *enter(Comm *comm, NcclCard *state, const char *operation) {
    TRY(cuda_check(comm, state, operation, cudaEventRecord(state->ready, state->operations)));
    return cuda_check(comm, state, operation, cudaStreamWaitEvent(state->communication, state->ready, 0));
}

// Operations to come wait for the communication so far.
static Error *leave(Comm *comm, NcclCard *state, const char *operation) {
    TRY(cuda_check(comm, state, operation, cudaEventRecord(state->ready, state->communication)));
    return cuda_check(comm, state, operation, cudaStreamWaitEvent(state->operations, state->ready, 0));
}

static Error *nccl_all_reduce(Comm *comm, void *data, int64_t count, CommType type, CommReduce how) {
    NcclCard *state = state_of(comm);
    TRY(enter(comm, state, "all-reduce"));
    TRY(nccl_check(comm, state, "all-reduce",
                   ncclAllReduce(data, data, (size_t)count, type == COMM_FLOATS ? ncclFloat32 : ncclFloat64,
                                 how == COMM_SUM ? ncclSum : ncclMax, state->group, state->communication)));
    return leave(comm, state, "all-reduce");
}

static Error *take_request(Comm *comm, NcclCard *state, NcclRequest **out) {
    NcclRequest *request = state->unused;
    if (request != NULL) {
        state->unused = request->next;
    } else {
        request = memory_zeroed(1, sizeof *request);
        request->base.comm = comm;
        Error *error =
            cuda_check(comm, state, "making an event", cudaEventCreateWithFlags(&request->done, cudaEventDisableTiming));
        if (error != NULL) {
            free(request);
            return error;
        }
    }
    *out = request;
    return NULL;
}

static void nccl_free_request(CommRequest *base) {
    NcclRequest *request = (NcclRequest *)base;
    NcclCard *state = state_of(base->comm);
    request->next = state->unused;
    state->unused = request;
}

static Error *start(Comm *comm, NcclCard *state, NcclRequest *request, float *data, int64_t count) {
    static const char operation[] = "start of an all-reduce";
    TRY(enter(comm, state, operation));
    TRY(nccl_check(comm, state, operation,
                   ncclAllReduce(data, data, (size_t)count, ncclFloat32, ncclSum, state->group, state->communication)));
    return cuda_check(comm, state, operation, cudaEventRecord(request->done, state->communication));
}

static Error *nccl_start_all_reduce(Comm *comm, float *data, int64_t count, CommRequest **out) {
    NcclCard *state = state_of(comm);
    NcclRequest *request;
    TRY(take_request(comm, state, &request));
    Error *error = start(comm, state, request, data, count);
    if (error != NULL) {
        nccl_free_request(&request->base);
        return error;
    }
    *out = &request->base;
    return NULL;
}

// While operations are recorded nothing happens and nothing may be asked.
static Error *nccl_test(CommRequest *request, bool *done) {
    NcclCard *state = state_of(request->comm);
    enum cudaStreamCaptureStatus recording = cudaStreamCaptureStatusNone;
    TRY(cuda_check(request->comm, state, "progress of an all-reduce", cudaStreamIsCapturing(state->operations, &recording)));
    if (recording != cudaStreamCaptureStatusNone) {
        *done = false;
        return NULL;
    }
    cudaError_t code = cudaEventQuery(((NcclRequest *)request)->done);
    *done = code == cudaSuccess;
    return code == cudaErrorNotReady ? NULL : cuda_check(request->comm, state, "progress of an all-reduce", code);
}

static Error *nccl_wait(CommRequest *request) {
    NcclCard *state = state_of(request->comm);
    return cuda_check(request->comm, state, "end of an all-reduce",
                      cudaStreamWaitEvent(state->operations, ((NcclRequest *)request)->done, 0));
}

static Error *nccl_reduce_scatter(Comm *comm, float *data, int64_t count_each) {
    NcclCard *state = state_of(comm);
    TRY(enter(comm, state, "reduce-scatter"));
    TRY(nccl_check(comm, state, "reduce-scatter",
                   ncclReduceScatter(data, data + comm->rank * count_each, (size_t)count_each, ncclFloat32, ncclSum,
                                     state->group, state->communication)));
    return leave(comm, state, "reduce-scatter");
}

static Error *nccl_all_gather(Comm *comm, void *data, int64_t bytes_each) {
    NcclCard *state = state_of(comm);
    TRY(enter(comm, state, "all-gather"));
    TRY(nccl_check(comm, state, "all-gather",
                   ncclAllGather((char *)data + comm->rank * bytes_each, data, (size_t)bytes_each, ncclInt8, state->group,
                                 state->communication)));
    return leave(comm, state, "all-gather");
}

static Error *nccl_poll(Comm *comm) {
    NcclCard *state = state_of(comm);
    ncclResult_t code = ncclSuccess;
    TRY(nccl_check(comm, state, "asking for errors", ncclCommGetAsyncError(state->group, &code)));
    return nccl_check(comm, state, "communication between cards", code);
}

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)

const CommCardBackend PASTE(BACKEND, _comm_nccl) = {
    .usable = nccl_usable,
    .open = nccl_open,
    .close = nccl_close,
    .all_reduce = nccl_all_reduce,
    .start_all_reduce = nccl_start_all_reduce,
    .test = nccl_test,
    .wait = nccl_wait,
    .free_request = nccl_free_request,
    .reduce_scatter = nccl_reduce_scatter,
    .all_gather = nccl_all_gather,
    .check = nccl_poll,
    .version = nccl_version,
};
