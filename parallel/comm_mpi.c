// The group of ranks over MPI.
//
// Non-blocking sums are MPI_Iallreduce, which advances only while this process is inside MPI: comm_test between layers is what
// makes overlap happen. One thread makes all calls, so MPI_THREAD_FUNNELED is enough. Counts beyond comm_chunk_elements are cut
// into several calls, because MPI's counts are int. Errors come back as codes and are told with rank, host and operation.
#include "parallel/comm_backends.h"

#include "core/log.h"

#include <mpi.h>
#include <stdio.h>
#include <unistd.h>

typedef struct MpiState {
    MPI_Comm handle;
    bool is_world;
} MpiState;

typedef struct MpiAllReduce {
    CommRequest base;  // first
    int count;
    MPI_Request parts[];
} MpiAllReduce;

enum { TAG_GATHER = 17 };

static MPI_Comm handle_of(const Comm *comm) {
    return ((const MpiState *)comm->state)->handle;
}

static Error *mpi_check(const Comm *comm, const char *operation, int code) {
    if (code == MPI_SUCCESS) {
        return NULL;
    }
    char text[MPI_MAX_ERROR_STRING] = "unknown error";
    int length;
    MPI_Error_string(code, text, &length);
    for (char *p = text; *p != 0; p++) {
        *p = *p == '\n' ? ' ' : *p;
    }
    return failure("rank %d of %d on %s: %s failed in MPI: %s", comm->rank, comm->size, comm->host, operation, text);
}

// The size of the next piece of `left` elements.
static int next_chunk(int64_t left) {
    return (int)(left < comm_chunk_elements ? left : comm_chunk_elements);
}

static Error *mpi_all_reduce(Comm *comm, float *data, int64_t count, CommReduce how) {
    while (count > 0) {
        int n = next_chunk(count);
        MPI_Op operation = how == COMM_SUM ? MPI_SUM : MPI_MAX;
        TRY(mpi_check(comm, "all-reduce", MPI_Allreduce(MPI_IN_PLACE, data, n, MPI_FLOAT, operation, handle_of(comm))));
        data += n;
        count -= n;
    }
    return NULL;
}

static Error *mpi_all_reduce_doubles(Comm *comm, double *values, int64_t count, CommReduce how) {
    while (count > 0) {
        int n = next_chunk(count);
        MPI_Op operation = how == COMM_SUM ? MPI_SUM : MPI_MAX;
        TRY(mpi_check(comm, "all-reduce of scalars",
                      MPI_Allreduce(MPI_IN_PLACE, values, n, MPI_DOUBLE, operation, handle_of(comm))));
        values += n;
        count -= n;
    }
    return NULL;
}

static Error *mpi_start_all_reduce(Comm *comm, float *data, int64_t count, CommRequest **out) {
    int parts = (int)((count + comm_chunk_elements - 1) / comm_chunk_elements);
    MpiAllReduce *request = memory_zeroed(1, sizeof *request + (size_t)parts * sizeof request->parts[0]);
    request->base.comm = comm;
    request->count = parts;
    for (int i = 0; i < parts; i++) {
        int n = next_chunk(count);
        int code = MPI_Iallreduce(MPI_IN_PLACE, data, n, MPI_FLOAT, MPI_SUM, handle_of(comm), &request->parts[i]);
        if (code != MPI_SUCCESS) {
            free(request);  // the parts before it stay with MPI: the caller ends the program
            return mpi_check(comm, "start of an all-reduce", code);
        }
        data += n;
        count -= n;
    }
    *out = &request->base;
    return NULL;
}

static Error *mpi_test(CommRequest *request, bool *done) {
    MpiAllReduce *own = (MpiAllReduce *)request;
    int flag = 0;
    TRY(mpi_check(request->comm, "progress of an all-reduce", MPI_Testall(own->count, own->parts, &flag, MPI_STATUSES_IGNORE)));
    *done = flag != 0;
    return NULL;
}

static Error *mpi_wait(CommRequest *request) {
    MpiAllReduce *own = (MpiAllReduce *)request;
    return mpi_check(request->comm, "end of an all-reduce", MPI_Waitall(own->count, own->parts, MPI_STATUSES_IGNORE));
}

static void mpi_free_request(CommRequest *request) {
    free(request);
}

static Error *mpi_broadcast(Comm *comm, void *bytes, int64_t size, int root) {
    char *p = bytes;
    while (size > 0) {
        int n = next_chunk(size);
        TRY(mpi_check(comm, "broadcast", MPI_Bcast(p, n, MPI_BYTE, root, handle_of(comm))));
        p += n;
        size -= n;
    }
    return NULL;
}

// Rank 0 receives from one rank after another, in order: small messages, any 64-bit size.
static Error *mpi_gather(Comm *comm, const void *bytes, int64_t size, void *all, const int64_t *sizes) {
    if (comm->rank != 0) {
        const char *p = bytes;
        for (int64_t left = size; left > 0;) {
            int n = next_chunk(left);
            TRY(mpi_check(comm, "gather", MPI_Send(p, n, MPI_BYTE, 0, TAG_GATHER, handle_of(comm))));
            p += n;
            left -= n;
        }
        return NULL;
    }
    if (size > 0) {
        memcpy(all, bytes, (size_t)size);
    }
    char *p = (char *)all + sizes[0];
    for (int r = 1; r < comm->size; r++) {
        for (int64_t left = sizes[r]; left > 0;) {
            int n = next_chunk(left);
            TRY(mpi_check(comm, "gather", MPI_Recv(p, n, MPI_BYTE, r, TAG_GATHER, handle_of(comm), MPI_STATUS_IGNORE)));
            p += n;
            left -= n;
        }
    }
    return NULL;
}

static Error *mpi_barrier(Comm *comm) {
    return mpi_check(comm, "barrier", MPI_Barrier(handle_of(comm)));
}

static Error *mpi_split(Comm *comm, int colour, int key, Comm **out);

static void mpi_close(Comm *comm) {
    MpiState *state = comm->state;
    if (state->is_world) {
        MPI_Finalize();
    } else {
        MPI_Comm_free(&state->handle);
    }
    free(state);
}

static void mpi_abort(Comm *comm, int code) {
    MPI_Abort(MPI_COMM_WORLD, code);
}

static const CommBackend mpi_backend = {
    .name = "mpi",
    .all_reduce = mpi_all_reduce,
    .all_reduce_doubles = mpi_all_reduce_doubles,
    .start_all_reduce = mpi_start_all_reduce,
    .test = mpi_test,
    .wait = mpi_wait,
    .free_request = mpi_free_request,
    .broadcast = mpi_broadcast,
    .gather = mpi_gather,
    .barrier = mpi_barrier,
    .split = mpi_split,
    .close = mpi_close,
    .abort = mpi_abort,
};

// Wraps a handle: rank, size, and who else is on this host.
static Error *open_group(MPI_Comm handle, bool is_world, Comm **out) {
    Comm *comm = memory_zeroed(1, sizeof *comm);
    MpiState *state = memory_zeroed(1, sizeof *state);
    *state = (MpiState){handle, is_world};
    comm->backend = &mpi_backend;
    comm->state = state;
    gethostname(comm->host, sizeof comm->host - 1);
    MPI_Comm_set_errhandler(handle, MPI_ERRORS_RETURN);
    MPI_Comm_rank(handle, &comm->rank);
    MPI_Comm_size(handle, &comm->size);
    MPI_Comm local;
    Error *error = mpi_check(comm, "finding the ranks of this host",
                             MPI_Comm_split_type(handle, MPI_COMM_TYPE_SHARED, comm->rank, MPI_INFO_NULL, &local));
    if (error != NULL) {
        free(state);
        free(comm);
        return error;
    }
    MPI_Comm_rank(local, &comm->host_rank);
    MPI_Comm_size(local, &comm->host_size);
    MPI_Comm_free(&local);
    *out = comm;
    return NULL;
}

static Error *mpi_split(Comm *comm, int colour, int key, Comm **out) {
    MPI_Comm part;
    TRY(mpi_check(comm, "splitting the ranks", MPI_Comm_split(handle_of(comm), colour, key, &part)));
    return open_group(part, false, out);
}

Error *comm_mpi_open(int expected, Comm **out) {
    int provided, ranks;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS) {
        return failure("MPI could not be started: try `mpirun -n 2 hostname` first");
    }
    if (provided < MPI_THREAD_FUNNELED) {
        return failure("this MPI (%s) does not allow threads besides the one that communicates (MPI_THREAD_FUNNELED)",
                       comm_mpi_library());
    }
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    if (expected > 0 && ranks != expected) {
        return failure(
            "the launcher started %d ranks but MPI (%s) sees %d: launcher and library do not belong together; use the "
            "mpirun of that library, or with Slurm `srun --mpi=pmix`",
            expected, comm_mpi_library(), ranks);
    }
    return open_group(MPI_COMM_WORLD, true, out);
}

const char *comm_mpi_library(void) {
    static char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int length;
    if (text[0] == 0 && MPI_Get_library_version(text, &length) == MPI_SUCCESS) {
        text[strcspn(text, ",\n")] = 0;  // "Open MPI v4.1.4, package: ..."
    }
    return text;
}
