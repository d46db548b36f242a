// The control plane over MPI.
//
// One thread makes all calls, so MPI_THREAD_FUNNELED is enough. Sizes beyond comm_chunk_elements are cut into several calls,
// because MPI's counts are int. Errors come back as codes and are told with rank, host and operation.
#include "parallel/mpi_shared.h"
#include "parallel/transport.h"

#include <unistd.h>

typedef struct MpiState {
    MPI_Comm handle;
    bool is_world;
} MpiState;

enum { TAG_GATHER = 17 };

MPI_Comm comm_mpi_handle(const Comm *comm) {
    return ((const MpiState *)comm->state)->handle;
}

Error *mpi_error(int code) {
    char text[MPI_MAX_ERROR_STRING] = "unknown error";
    int length;
    if (code == MPI_SUCCESS) {
        return NULL;
    }
    MPI_Error_string(code, text, &length);
    for (char *p = text; *p != 0; p++) {
        *p = *p == '\n' ? ' ' : *p;
    }
    return failure("MPI failed: %s", text);
}

static Error *mpi_check(const Comm *comm, const char *operation, int code) {
    return error_wrap(mpi_error(code), "rank %d of %d on %s: %s", comm->rank, comm->size, comm->host, operation);
}

static Error *mpi_all_reduce_doubles(Comm *comm, double *values, int64_t count, CommReduce how) {
    while (count > 0) {
        int n = mpi_next_chunk(count);
        MPI_Op operation = how == COMM_SUM ? MPI_SUM : MPI_MAX;
        TRY(mpi_check(comm, "all-reduce of scalars",
                      MPI_Allreduce(MPI_IN_PLACE, values, n, MPI_DOUBLE, operation, comm_mpi_handle(comm))));
        values += n;
        count -= n;
    }
    return NULL;
}

static Error *mpi_broadcast(Comm *comm, void *bytes, int64_t size, int root) {
    char *p = bytes;
    while (size > 0) {
        int n = mpi_next_chunk(size);
        TRY(mpi_check(comm, "broadcast", MPI_Bcast(p, n, MPI_BYTE, root, comm_mpi_handle(comm))));
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
            int n = mpi_next_chunk(left);
            TRY(mpi_check(comm, "gather", MPI_Send(p, n, MPI_BYTE, 0, TAG_GATHER, comm_mpi_handle(comm))));
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
            int n = mpi_next_chunk(left);
            TRY(mpi_check(comm, "gather", MPI_Recv(p, n, MPI_BYTE, r, TAG_GATHER, comm_mpi_handle(comm), MPI_STATUS_IGNORE)));
            p += n;
            left -= n;
        }
    }
    return NULL;
}

static Error *mpi_barrier(Comm *comm) {
    return mpi_check(comm, "barrier", MPI_Barrier(comm_mpi_handle(comm)));
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
    .host_plane = &transport_mpi,
    .all_reduce_doubles = mpi_all_reduce_doubles,
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
    TRY(mpi_check(comm, "splitting the ranks", MPI_Comm_split(comm_mpi_handle(comm), colour, key, &part)));
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
