// NCCL over MPI. A call puts an operation into its stream; when that reaches the head, non-blocking MPI calls start, and are
// polled while other streams go on. Memory is read when an operation starts and written when it ends. Every rank gets all the
// parts and combines them in the order of the ranks, rounding to the type at each addition, so sums are the same bits
// everywhere and always. A message waits for the other side, however small it is: whoever relies on buffers waits for ever.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <unistd.h>

#include "runtime.h"

#include "progress.h"

#include <cuda_fp16.h>
#include <nccl.h>

using namespace simulator;

struct SimulatedNccl {
    MPI_Comm ranks;
    int rank, size;
    ncclResult_t broken;  // the asynchronous error
    bool aborted;
    bool connected;                 // by an operation before
    std::set<int> met;              // whom messages went to (peer + 1) or came from (-peer - 1)
    std::shared_ptr<int> recorded;  // shared by the operations that streams and graphs hold
};

namespace {

typedef std::lock_guard<std::recursive_mutex> Hold;
typedef std::vector<unsigned char> Bytes;

enum { TAG_HELLO = 20011, TAG_MEMBERS = 20012, TAG_GROUP = 20013, TAG_PEER = 20014, MOST_CREATED = 4096 };

std::string last_error;
ncclResult_t refuse_next, break_next;
int created;

ncclResult_t failed(ncclResult_t result, const std::string &why) {
    last_error = why;
    return result;
}

// ---- Elements

size_t size_of(ncclDataType_t type) {
    switch (type) {
    case ncclInt8:
        return 1;
    case ncclFloat32:
        return 4;
    case ncclFloat64:
        return 8;
    case ncclFloat16:
    case ncclBfloat16:
        return 2;
    }
    return 0;
}

struct Bf16 {
    uint16_t bits;
    operator float() const {
        uint32_t wide = (uint32_t)bits << 16;
        float value;
        memcpy(&value, &wide, sizeof value);
        return value;
    }
    Bf16(float value) {
        uint32_t wide;
        memcpy(&wide, &value, sizeof wide);
        bits = value != value ? 0x7FC0 : (uint16_t)((wide + 0x7FFF + (wide >> 16 & 1)) >> 16);
    }
};

// to[i] = parts[0][i] (+ or max) parts[1][i] ...; Sum is the type that two are added in.
template <typename T, typename Sum>
void combine(void *to, const unsigned char *parts, size_t part_bytes, int ranks, size_t count, ncclRedOp_t how) {
    for (size_t i = 0; i < count; i++) {
        Sum sum = (Sum)((const T *)parts)[i];
        for (int r = 1; r < ranks; r++) {
            Sum value = (Sum)((const T *)(parts + (size_t)r * part_bytes))[i];
            sum = how == ncclMax ? (value > sum || value != value ? value : sum) : (Sum)(T)(sum + value);
        }
        ((T *)to)[i] = (T)(how == ncclAvg ? (Sum)(sum / (Sum)ranks) : sum);
    }
}

void combine(ncclDataType_t type, void *to, const unsigned char *parts, size_t part_bytes, int ranks, size_t count,
             ncclRedOp_t how) {
    switch (type) {
    case ncclInt8:
        return combine<int8_t, int>(to, parts, part_bytes, ranks, count, how);
    case ncclFloat32:
        return combine<float, float>(to, parts, part_bytes, ranks, count, how);
    case ncclFloat64:
        return combine<double, double>(to, parts, part_bytes, ranks, count, how);
    case ncclFloat16:
        return combine<__half, float>(to, parts, part_bytes, ranks, count, how);
    case ncclBfloat16:
        return combine<Bf16, float>(to, parts, part_bytes, ranks, count, how);
    }
}

// ---- Operations

std::vector<Bytes> abandoned;
std::vector<ncclComm_t> aborted;

// A started MPI call with the memory it needs, and what is done with that at its end.
struct MpiPending : Pending {
    ncclComm_t comm;
    MPI_Request request = MPI_REQUEST_NULL;
    Bytes memory;
    std::function<void(const Bytes &)> end;

    explicit MpiPending(ncclComm_t comm_) : comm(comm_) {
    }

    Progress advance() override {
        if (comm->aborted) {
            abandoned.push_back(std::move(memory));  // MPI may still use it
            return Progress::DONE;
        }
        int done = request == MPI_REQUEST_NULL;  // one rank alone
        if (!done && PMPI_Test(&request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) {
            die("MPI failed under an NCCL operation");
        }
        if (!done) {
            return Progress::NONE;
        }
        end(memory);
        return Progress::DONE;
    }
};

struct NothingPending : Pending {
    Progress advance() override {
        return Progress::DONE;
    }
};

// Several at once: what stands between ncclGroupStart and ncclGroupEnd.
struct GroupPending : Pending {
    std::vector<std::unique_ptr<Pending>> parts;

    Progress advance() override {
        Progress progress = Progress::NONE;
        for (size_t i = parts.size(); i-- > 0;) {
            Progress one = parts[i]->advance();
            if (one == Progress::DONE) {
                parts.erase(parts.begin() + (ptrdiff_t)i);
            }
            progress = one != Progress::NONE ? Progress::SOME : progress;
        }
        return parts.empty() ? Progress::DONE : progress;
    }
};

typedef std::function<std::unique_ptr<Pending>()> Start;
struct Grouped {
    cudaStream_t stream;
    std::string name;
    Start start;
};
thread_local int group_depth;
thread_local std::vector<Grouped> grouped;

bool is_recording(cudaStream_t stream) {
    cudaStreamCaptureStatus recording = cudaStreamCaptureStatusNone;
    cudaStreamIsCapturing(stream, &recording);
    return recording != cudaStreamCaptureStatusNone;
}

void meet(ncclComm_t comm, cudaStream_t stream, int whom) {
    if (comm->met.insert(whom).second && is_recording(stream)) {
        die("the first message of two ranks is recorded: NCCL would connect them inside of the recording");
    }
}

ncclResult_t put(ncclComm_t comm, cudaStream_t stream, const char *name, Start start) {
    if (refuse_next != ncclSuccess) {
        ncclResult_t result = refuse_next;
        refuse_next = ncclSuccess;
        return failed(result, std::string(name) + " was refused by a test");
    }
    if (break_next != ncclSuccess) {
        ncclResult_t result = break_next;
        break_next = ncclSuccess;
        start = [comm, result] {
            comm->broken = result;
            return std::make_unique<NothingPending>();
        };
    }
    if (comm->size > 1 && !comm->connected && is_recording(stream)) {
        die("the first operation of a group is recorded: NCCL would connect the ranks inside of the recording");
    }
    comm->connected = true;
    std::shared_ptr<int> recorded = comm->recorded;
    Start unless_aborted = [comm, start, recorded]() -> std::unique_ptr<Pending> {
        if (comm->aborted) {
            return std::make_unique<NothingPending>();
        }
        return start();
    };
    if (group_depth > 0) {
        grouped.push_back({stream, name, unless_aborted});
        return ncclSuccess;
    }
    cudaError_t error = enqueue(stream, {name, {}, unless_aborted});
    return error == cudaSuccess ? ncclSuccess : failed(ncclUnhandledCudaError, cudaGetErrorString(error));
}

ncclResult_t check_memory(const char *name, const void *memory, size_t count, ncclDataType_t type, int parts = 1) {
    size_t bytes = count * size_of(type);
    if (size_of(type) == 0 || bytes * (size_t)parts > INT32_MAX) {
        return failed(ncclInvalidArgument, std::string(name) + ": type or size is beyond the simulator");
    }
    if (!is_device_memory(memory, bytes * (size_t)parts)) {
        return failed(ncclInvalidArgument, std::string(name) + ": not in the memory of a card");
    }
    return ncclSuccess;
}

// Starts a gathering of `bytes` of every rank to all of them.
std::unique_ptr<Pending> start_gather(ncclComm_t comm, const void *from, size_t bytes, std::function<void(const Bytes &)> end) {
    auto pending = std::make_unique<MpiPending>(comm);
    pending->memory.resize(bytes * (size_t)comm->size);
    pending->end = std::move(end);
    // The own part is copied: other operations may not see MPI read it late.
    memcpy(pending->memory.data() + (size_t)comm->rank * bytes, from, bytes);
    if (comm->size > 1 && PMPI_Iallgather(MPI_IN_PLACE, 0, MPI_BYTE, pending->memory.data(), (int)bytes, MPI_BYTE, comm->ranks,
                                          &pending->request) != MPI_SUCCESS) {
        die("MPI_Iallgather failed");
    }
    return pending;
}

}  // namespace

const char *ncclGetErrorString(ncclResult_t result) {
    switch (result) {
    case ncclSuccess:
        return "no error";
    case ncclUnhandledCudaError:
        return "unhandled cuda error";
    case ncclSystemError:
        return "unhandled system error";
    case ncclInternalError:
        return "internal error";
    case ncclInvalidArgument:
        return "invalid argument";
    case ncclInvalidUsage:
        return "invalid usage";
    case ncclRemoteError:
        return "remote process exited or there was a network error";
    case ncclInProgress:
        return "NCCL operation in progress";
    }
    return "unknown result code";
}

const char *ncclGetLastError(ncclComm_t comm) {
    return last_error.c_str();
}

ncclResult_t ncclGetVersion(int *version) {
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

// ---- Communicators

namespace {

struct IdText {  // what an id carries
    char mark[16];
    int root;  // in the world
    int number;
};

struct Member {
    int rank, world_rank, card;
    char host[64];
};

const char ID_MARK[16] = "simulated nccl";

int world_rank() {
    int rank = 0, initialised = 0;
    MPI_Initialized(&initialised);
    if (initialised) {
        MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    }
    return rank;
}

void send_bytes(const void *bytes, size_t size, int peer, int tag) {
    MPI_Request request;
    PMPI_Isend(bytes, (int)size, MPI_BYTE, peer, tag, MPI_COMM_WORLD, &request);
    wait_for_mpi(&request);
}

void receive_bytes(void *bytes, size_t size, int peer, int tag) {
    MPI_Request request;
    PMPI_Irecv(bytes, (int)size, MPI_BYTE, peer, tag, MPI_COMM_WORLD, &request);
    wait_for_mpi(&request);
}

// The members in the order of their ranks. The rank that made the id is one of them and introduces the others.
std::vector<Member> find_members(const IdText &id, int ranks, int rank) {
    std::vector<Member> members((size_t)ranks);
    Member own = {rank, world_rank(), 0, {}};
    int tag = id.number % MOST_CREATED * 4 + TAG_HELLO;
    cudaGetDevice(&own.card);
    gethostname(own.host, sizeof own.host - 1);
    if (own.world_rank != id.root) {
        send_bytes(&own, sizeof own, id.root, tag);
        receive_bytes(members.data(), sizeof own * members.size(), id.root, tag + 1);
        return members;
    }
    members[(size_t)rank] = own;
    for (int i = 1; i < ranks; i++) {
        Member other;
        receive_bytes(&other, sizeof other, MPI_ANY_SOURCE, tag);
        members[(size_t)other.rank] = other;
    }
    for (const Member &member : members) {
        if (member.world_rank != id.root) {
            send_bytes(members.data(), sizeof own * members.size(), member.world_rank, tag + 1);
        }
    }
    return members;
}

}  // namespace

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    IdText text = {{}, world_rank(), created++};
    memset(id, 0, sizeof *id);
    memcpy(text.mark, ID_MARK, sizeof text.mark);
    memcpy(id->internal, &text, sizeof text);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank) {
    Hold hold(simulator::lock);
    IdText text;
    *comm = NULL;
    memcpy(&text, id.internal, sizeof text);
    if (memcmp(text.mark, ID_MARK, sizeof text.mark) != 0 || rank < 0 || rank >= ranks) {
        return failed(ncclInvalidArgument, "no such id or rank");
    }
    if (ranks == 1) {
        *comm = new SimulatedNccl{MPI_COMM_NULL, 0, 1, ncclSuccess, false, false, {}, std::make_shared<int>()};
        return ncclSuccess;
    }
    watch_mpi();
    run_until(idle);
    std::vector<Member> members = find_members(text, ranks, rank);
    for (size_t i = 0; i < members.size(); i++) {
        for (size_t j = 0; j < i; j++) {
            if (members[i].card == members[j].card && strcmp(members[i].host, members[j].host) == 0) {
                return failed(ncclInvalidUsage, "Duplicate GPU detected");
            }
        }
    }
    MPI_Group world, group;
    std::vector<int> world_ranks;
    for (const Member &member : members) {
        world_ranks.push_back(member.world_rank);
    }
    *comm = new SimulatedNccl{MPI_COMM_NULL, rank, ranks, ncclSuccess, false, false, {}, std::make_shared<int>()};
    MPI_Comm_group(MPI_COMM_WORLD, &world);
    MPI_Group_incl(world, ranks, world_ranks.data(), &group);
    MPI_Comm_create_group(MPI_COMM_WORLD, group, text.number % MOST_CREATED * 4 + TAG_GROUP, &(*comm)->ranks);
    MPI_Group_free(&group);
    MPI_Group_free(&world);
    return ncclSuccess;
}

ncclResult_t ncclCommSplit(ncclComm_t comm, int colour, int key, ncclComm_t *part, void *config) {
    Hold hold(simulator::lock);
    run_until(idle);
    *part = new SimulatedNccl{MPI_COMM_NULL, 0, 1, ncclSuccess, false, false, {}, std::make_shared<int>()};
    if (comm->size > 1) {
        PMPI_Comm_split(comm->ranks, colour, key, &(*part)->ranks);
        MPI_Comm_rank((*part)->ranks, &(*part)->rank);
        MPI_Comm_size((*part)->ranks, &(*part)->size);
    }
    return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    Hold hold(simulator::lock);
    run_until(idle);
    if (comm->recorded.use_count() > 1) {
        die("ncclCommDestroy while a graph holds operations of the group: NCCL would wait for that graph's end for ever");
    }
    if (comm->ranks != MPI_COMM_NULL) {
        MPI_Comm_free(&comm->ranks);
    }
    delete comm;
    return ncclSuccess;
}

// Operations that are in streams end without doing anything. Others may still talk to this rank: its end of that stays.
ncclResult_t ncclCommAbort(ncclComm_t comm) {
    Hold hold(simulator::lock);
    comm->aborted = true;
    aborted.push_back(comm);
    return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error) {
    Hold hold(simulator::lock);
    if (comm->broken != ncclSuccess) {
        last_error = "an operation was broken by a test";
    }
    *error = comm->broken;
    return ncclSuccess;
}

// ---- Collectives

#define CHECK_MEMORY(...)                                                                                                      \
    do {                                                                                                                       \
        ncclResult_t result_ = check_memory(__VA_ARGS__);                                                                      \
        if (result_ != ncclSuccess) {                                                                                          \
            return result_;                                                                                                    \
        }                                                                                                                      \
    } while (0)

ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t how, ncclComm_t comm,
                           cudaStream_t stream) {
    Hold hold(simulator::lock);
    size_t bytes = count * size_of(type);
    CHECK_MEMORY("ncclAllReduce", from, count, type);
    CHECK_MEMORY("ncclAllReduce", to, count, type);
    return put(comm, stream, "ncclAllReduce", [=] {
        return start_gather(comm, from, bytes,
                            [=](const Bytes &parts) { combine(type, to, parts.data(), bytes, comm->size, count, how); });
    });
}

ncclResult_t ncclReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t how, int root,
                        ncclComm_t comm, cudaStream_t stream) {
    Hold hold(simulator::lock);
    size_t bytes = count * size_of(type);
    bool receives = comm->rank == root;
    CHECK_MEMORY("ncclReduce", from, count, type);
    if (receives) {
        CHECK_MEMORY("ncclReduce", to, count, type);
    }
    return put(comm, stream, "ncclReduce", [=] {
        return start_gather(comm, from, bytes, [=](const Bytes &parts) {
            if (receives) {
                combine(type, to, parts.data(), bytes, comm->size, count, how);
            }
        });
    });
}

ncclResult_t ncclReduceScatter(const void *from, void *to, size_t count_each, ncclDataType_t type, ncclRedOp_t how,
                               ncclComm_t comm, cudaStream_t stream) {
    Hold hold(simulator::lock);
    size_t each = count_each * size_of(type), bytes = each * (size_t)comm->size;
    CHECK_MEMORY("ncclReduceScatter", from, count_each, type, comm->size);
    CHECK_MEMORY("ncclReduceScatter", to, count_each, type);
    return put(comm, stream, "ncclReduceScatter", [=] {
        return start_gather(comm, from, bytes, [=](const Bytes &parts) {
            combine(type, to, parts.data() + (size_t)comm->rank * each, bytes, comm->size, count_each, how);
        });
    });
}

ncclResult_t ncclAllGather(const void *from, void *to, size_t count_each, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
    Hold hold(simulator::lock);
    size_t each = count_each * size_of(type);
    CHECK_MEMORY("ncclAllGather", from, count_each, type);
    CHECK_MEMORY("ncclAllGather", to, count_each, type, comm->size);
    return put(comm, stream, "ncclAllGather", [=] {
        return start_gather(comm, from, each, [=](const Bytes &parts) { memcpy(to, parts.data(), parts.size()); });
    });
}

ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                           cudaStream_t stream) {
    Hold hold(simulator::lock);
    size_t bytes = count * size_of(type);
    if (comm->rank == root) {
        CHECK_MEMORY("ncclBroadcast", from, count, type);
    }
    CHECK_MEMORY("ncclBroadcast", to, count, type);
    return put(comm, stream, "ncclBroadcast", [=] {
        auto pending = std::make_unique<MpiPending>(comm);
        pending->memory.resize(bytes);
        if (comm->rank == root) {
            memcpy(pending->memory.data(), from, bytes);
        }
        pending->end = [=](const Bytes &memory) { memcpy(to, memory.data(), bytes); };
        if (comm->size > 1) {
            PMPI_Ibcast(pending->memory.data(), (int)bytes, MPI_BYTE, root, comm->ranks, &pending->request);
        }
        return pending;
    });
}

ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
    Hold hold(simulator::lock);
    size_t bytes = count * size_of(type);
    CHECK_MEMORY("ncclSend", from, count, type);
    meet(comm, stream, peer + 1);
    return put(comm, stream, "ncclSend", [=] {
        auto pending = std::make_unique<MpiPending>(comm);
        pending->memory.assign((const unsigned char *)from, (const unsigned char *)from + bytes);
        pending->end = [](const Bytes &) {};
        PMPI_Issend(pending->memory.data(), (int)bytes, MPI_BYTE, peer, TAG_PEER, comm->ranks, &pending->request);
        return pending;
    });
}

ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
    Hold hold(simulator::lock);
    size_t bytes = count * size_of(type);
    CHECK_MEMORY("ncclRecv", to, count, type);
    meet(comm, stream, -peer - 1);
    return put(comm, stream, "ncclRecv", [=] {
        auto pending = std::make_unique<MpiPending>(comm);
        pending->memory.resize(bytes);
        pending->end = [=](const Bytes &memory) { memcpy(to, memory.data(), bytes); };
        PMPI_Irecv(pending->memory.data(), (int)bytes, MPI_BYTE, peer, TAG_PEER, comm->ranks, &pending->request);
        return pending;
    });
}

ncclResult_t ncclGroupStart(void) {
    group_depth++;
    return ncclSuccess;
}

// All that was called since the first ncclGroupStart becomes one operation of each stream.
ncclResult_t ncclGroupEnd(void) {
    Hold hold(simulator::lock);
    if (group_depth == 0) {
        return failed(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
    }
    if (--group_depth > 0) {
        return ncclSuccess;
    }
    std::vector<Grouped> all;
    all.swap(grouped);
    while (!all.empty()) {
        cudaStream_t stream = all.front().stream;
        std::vector<Start> starts;
        for (size_t i = 0; i < all.size();) {
            if (all[i].stream == stream) {
                starts.push_back(all[i].start);
                all.erase(all.begin() + (ptrdiff_t)i);
            } else {
                i++;
            }
        }
        cudaError_t error = enqueue(stream, {"an NCCL group", {}, [starts] {
                                                 auto pending = std::make_unique<GroupPending>();
                                                 for (const Start &start : starts) {
                                                     pending->parts.push_back(start());
                                                 }
                                                 return pending;
                                             }});
        if (error != cudaSuccess) {
            return failed(ncclUnhandledCudaError, cudaGetErrorString(error));
        }
    }
    return ncclSuccess;
}

// ---- For tests

void simulated_nccl_refuse(ncclResult_t now) {
    refuse_next = now;
}

void simulated_nccl_break(ncclResult_t later) {
    break_next = later;
}
