// Memory of the host by MPI's non-blocking operations, which advance only while this process is inside MPI: group_test between
// layers is what makes overlap happen.
//
// What is too much for one call is cut into pieces (MPI's counts are int): sums and messages into smaller ones of the same
// kind, all-gathers into broadcasts of pieces of each rank's part, all-to-alls into messages. A reduce-scatter that is cut, or
// that is in place, which MPI does not take in this form, is a reduce to each part's owner.
//
// 16-bit floats travel as integers that operations of ours add or compare as fp32 and round to nearest even.
#include "core/half.h"
#include "parallel/mpi_shared.h"
#include "parallel/transport.h"

typedef struct MpiRequest {
    GroupRequest base;  // first
    int count, capacity;
    MPI_Request *parts;
} MpiRequest;

enum { TAG_ALL_TO_ALL = GROUP_MOST_TAG + 1 };

#define HALF_OPERATION(name, half, result)                                                                                     \
    static void name(void *from, void *to, int *count, MPI_Datatype *type) {                                                   \
        const uint16_t *x = from;                                                                                              \
        uint16_t *y = to;                                                                                                      \
        for (int i = 0; i < *count; i++) {                                                                                     \
            float a = half##_to_float(x[i]), b = half##_to_float(y[i]);                                                        \
            y[i] = half##_from_float(result);                                                                                  \
        }                                                                                                                      \
    }
HALF_OPERATION(bf16_sum, bf16, a + b)
HALF_OPERATION(bf16_max, bf16, a > b ? a : b)
HALF_OPERATION(fp16_sum, fp16, a + b)
HALF_OPERATION(fp16_max, fp16, a > b ? a : b)

static MPI_Datatype type_of(ElementType type) {
    switch (type) {
    case ELEMENT_FP32:
        return MPI_FLOAT;
    case ELEMENT_FP64:
        return MPI_DOUBLE;
    case ELEMENT_BF16:
    case ELEMENT_FP16:
        return MPI_UINT16_T;
    case ELEMENT_BYTE:
        break;
    }
    return MPI_BYTE;
}

// Ours are made when they are first needed and stay.
static int operation_of(const Collective *what, MPI_Op *out) {
    static MPI_Op made[2][2];
    static MPI_User_function *const functions[2][2] = {{bf16_sum, bf16_max}, {fp16_sum, fp16_max}};
    static bool is_made[2][2];
    bool maximum = what->reduce == COMM_MAX, fp16 = what->type == ELEMENT_FP16;
    if (!fp16 && what->type != ELEMENT_BF16) {
        *out = maximum ? MPI_MAX : MPI_SUM;
        return MPI_SUCCESS;
    }
    int code = is_made[fp16][maximum] ? MPI_SUCCESS : MPI_Op_create(functions[fp16][maximum], 1, &made[fp16][maximum]);
    is_made[fp16][maximum] = code == MPI_SUCCESS;
    *out = made[fp16][maximum];
    return code;
}

static Error *mpi_open(Group *group) {
    MPI_Comm *ranks = memory_zeroed(1, sizeof *ranks);
    // Ranks of their own: no message of the control plane can be taken for one of the group.
    int code = MPI_Comm_dup(comm_mpi_handle(group->comm), ranks);
    if (code != MPI_SUCCESS) {
        free(ranks);
        return mpi_error(code);
    }
    MPI_Comm_set_errhandler(*ranks, MPI_ERRORS_RETURN);
    group->state = ranks;
    return NULL;
}

static void mpi_close(Group *group, bool failed) {
    if (!failed) {
        MPI_Comm_free(group->state);
    }
    free(group->state);
}

// Where MPI puts the handle of the next part.
static MPI_Request *next_part(MpiRequest *request) {
    array_push(request->parts, request->count, request->capacity, MPI_REQUEST_NULL);
    return &request->parts[request->count - 1];
}

// `n` elements from one place on; of each part, where there is one for each rank.
typedef struct Piece {
    MpiRequest *request;
    const Group *group;
    MPI_Comm ranks;
    MPI_Datatype type;
    MPI_Op how;
    const char *send;
    char *receive;
    int n;
    int64_t part, own;  // bytes from one rank's part to the next, and to this rank's
    bool whole;         // nothing was cut, and all parts are not too much for one call
} Piece;

static int reduce_scatter(const Piece *p) {
    bool in_place = p->receive == p->send + p->own;
    if (p->whole && !in_place) {
        return MPI_Ireduce_scatter_block(p->send, p->receive, p->n, p->type, p->how, p->ranks, next_part(p->request));
    }
    int code = MPI_SUCCESS;
    for (int r = 0; r < p->group->size && code == MPI_SUCCESS; r++) {
        const void *from = in_place && r == p->group->rank ? MPI_IN_PLACE : p->send + r * p->part;
        code = MPI_Ireduce(from, p->receive, p->n, p->type, p->how, r, p->ranks, next_part(p->request));
    }
    return code;
}

static int all_gather(const Piece *p) {
    bool in_place = p->send == p->receive + p->own;
    if (p->whole) {
        return MPI_Iallgather(in_place ? MPI_IN_PLACE : p->send, p->n, p->type, p->receive, p->n, p->type, p->ranks,
                              next_part(p->request));
    }
    if (!in_place) {
        memcpy(p->receive + p->own, p->send, (size_t)(p->n * element_bytes(p->request->base.what.type)));
    }
    int code = MPI_SUCCESS;
    for (int r = 0; r < p->group->size && code == MPI_SUCCESS; r++) {
        code = MPI_Ibcast(p->receive + r * p->part, p->n, p->type, r, p->ranks, next_part(p->request));
    }
    return code;
}

static int all_to_all(const Piece *p) {
    if (p->whole) {
        return MPI_Ialltoall(p->send, p->n, p->type, p->receive, p->n, p->type, p->ranks, next_part(p->request));
    }
    int code = MPI_SUCCESS;
    for (int r = 0; r < p->group->size && code == MPI_SUCCESS; r++) {
        code = MPI_Irecv(p->receive + r * p->part, p->n, p->type, r, TAG_ALL_TO_ALL, p->ranks, next_part(p->request));
        if (code == MPI_SUCCESS) {
            code = MPI_Isend(p->send + r * p->part, p->n, p->type, r, TAG_ALL_TO_ALL, p->ranks, next_part(p->request));
        }
    }
    return code;
}

static int start_piece(const Piece *p) {
    const Collective *what = &p->request->base.what;
    switch (what->operation) {
    case GROUP_ALL_REDUCE:
        return MPI_Iallreduce(p->send == p->receive ? MPI_IN_PLACE : p->send, p->receive, p->n, p->type, p->how, p->ranks,
                              next_part(p->request));
    case GROUP_REDUCE: {
        bool in_place = p->send == p->receive && what->peer == p->group->rank;
        return MPI_Ireduce(in_place ? MPI_IN_PLACE : p->send, p->receive, p->n, p->type, p->how, what->peer, p->ranks,
                           next_part(p->request));
    }
    case GROUP_REDUCE_SCATTER:
        return reduce_scatter(p);
    case GROUP_ALL_GATHER:
        return all_gather(p);
    case GROUP_BROADCAST:
        return MPI_Ibcast(p->receive, p->n, p->type, what->peer, p->ranks, next_part(p->request));
    case GROUP_ALL_TO_ALL:
        return all_to_all(p);
    case GROUP_SEND:
        return MPI_Isend(p->send, p->n, p->type, what->peer, what->tag, p->ranks, next_part(p->request));
    case GROUP_RECEIVE:
        return MPI_Irecv(p->receive, p->n, p->type, what->peer, what->tag, p->ranks, next_part(p->request));
    case GROUP_OPERATIONS:
        break;
    }
    return MPI_ERR_OP;
}

// Parts that were started before one that fails stay with MPI: the caller ends the program.
static Error *mpi_start(GroupRequest *request) {
    const Group *group = request->group;
    const Collective *what = &request->what;
    int64_t bytes = element_bytes(what->type), part = what->count * bytes;
    Piece piece = {.request = (MpiRequest *)request,
                   .group = group,
                   .ranks = *(MPI_Comm *)group->state,
                   .type = type_of(what->type),
                   .part = part,
                   .own = part * group->rank,
                   .whole = what->count <= comm_chunk_elements / group->size};
    TRY(mpi_error(operation_of(what, &piece.how)));
    for (int64_t at = 0; at < what->count; at += piece.n) {
        piece.n = mpi_next_chunk(what->count - at);
        piece.send = (const char *)what->send + at * bytes;
        piece.receive = (char *)what->receive + at * bytes;
        TRY(mpi_error(start_piece(&piece)));
    }
    return NULL;
}

static Error *mpi_test(GroupRequest *request, bool *done) {
    MpiRequest *own = (MpiRequest *)request;
    int flag = 0;
    TRY(mpi_error(MPI_Testall(own->count, own->parts, &flag, MPI_STATUSES_IGNORE)));
    *done = flag != 0;
    return NULL;
}

static Error *mpi_wait(GroupRequest *request) {
    MpiRequest *own = (MpiRequest *)request;
    return mpi_error(MPI_Waitall(own->count, own->parts, MPI_STATUSES_IGNORE));
}

static void mpi_free(GroupRequest *request) {
    free(((MpiRequest *)request)->parts);
}

const Transport transport_mpi = {
    .name = "mpi",
    .request_bytes = sizeof(MpiRequest),
    .open = mpi_open,
    .close = mpi_close,
    .start = mpi_start,
    .test = mpi_test,
    .wait = mpi_wait,
    .free = mpi_free,
};
