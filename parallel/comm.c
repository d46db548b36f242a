// The control plane: what is the same for all backends. See comm.h.
#include "parallel/comm.h"

#include "core/log.h"
#include "core/text.h"
#include "parallel/comm_backend.h"

#include <limits.h>
#include <stdio.h>
#include <unistd.h>

int64_t comm_chunk_elements = 1 << 28;
static Comm *world;  // for comm_abort from places that know no group

// The value of an environment variable as a number of ranks, 0 where it is unset or no such number.
static int ranks_from(const char *variable) {
    const char *text = getenv(variable);
    int64_t value;
    return text != NULL && text_to_i64(text, &value) && value > 0 && value < INT_MAX ? (int)value : 0;
}

// What the launcher announced: its name (NULL: none) and the number of ranks (0: not told).
// Open MPI's mpirun sets OMPI_COMM_WORLD_SIZE, MPICH's and Intel's PMI_SIZE. Slurm sets SLURM_PROCID in a batch script too,
// where nobody has started ranks; only srun sets SLURM_STEP_ID.
static const char *find_launcher(int *ranks) {
    if ((*ranks = ranks_from("OMPI_COMM_WORLD_SIZE")) > 0 || (*ranks = ranks_from("PMI_SIZE")) > 0) {
        return "mpirun";
    }
    if (getenv("SLURM_STEP_ID") != NULL && getenv("SLURM_PROCID") != NULL) {
        *ranks = ranks_from("SLURM_STEP_NUM_TASKS");
        return *ranks == 1 ? NULL : "srun";
    }
    *ranks = 0;
    return getenv("PMIX_RANK") != NULL ? "an MPI launcher" : NULL;
}

bool comm_started_by_launcher(void) {
    int ranks;
    return find_launcher(&ranks) != NULL;
}

#ifdef ATHANOR_HAVE_MPI
const char *comm_library(void) {
    return comm_mpi_library();
}
#else
const char *comm_library(void) {
    return "none";
}
#endif

Error *comm_open_world(Comm **out) {
    ensure(world == NULL, "the world is open already");
    *out = NULL;
    int ranks = 0;
    const char *launcher = find_launcher(&ranks);
    if (launcher == NULL) {
        *out = comm_open_self();
    } else {
#ifdef ATHANOR_HAVE_MPI
        TRY(comm_mpi_open(ranks, out));
#else
        if (ranks != 1) {
            return failure("%s started several ranks, but this athanor was built without MPI: install libopenmpi-dev and "
                           "openmpi-bin and build again, or start it without %s",
                           launcher, launcher);
        }
        *out = comm_open_self();
#endif
    }
    world = *out;
    log_set_rank(world->rank, world->size);
    return NULL;
}

void comm_close(Comm *comm) {
    if (comm == NULL) {
        return;
    }
    comm->backend->close(comm);
    if (comm == world) {
        world = NULL;
    }
    free(comm);
}

_Noreturn void comm_abort(Comm *comm, int code) {
    fflush(NULL);
    if (world != NULL && world->agreed) {
        world->backend->close(world);
        _exit(code);
    }
    Comm *any = comm != NULL ? comm : world;
    if (any != NULL) {
        any->backend->abort(any, code);
    }
    _exit(code);
}

Error *comm_all_reduce_doubles(Comm *comm, double *values, int64_t count, CommReduce how) {
    ensure(count >= 0, "count %lld", (long long)count);
    return count > 0 ? comm->backend->all_reduce_doubles(comm, values, count, how) : NULL;
}

Error *comm_broadcast(Comm *comm, void *bytes, int64_t size, int root) {
    ensure(size >= 0 && root >= 0 && root < comm->size, "size %lld, root %d", (long long)size, root);
    return size > 0 ? comm->backend->broadcast(comm, bytes, size, root) : NULL;
}

Error *comm_broadcast_buffer(Comm *comm, Buffer *buffer, int root) {
    int64_t size = (int64_t)buffer->size;
    TRY(comm_broadcast(comm, &size, sizeof size, root));
    if (comm->rank != root) {
        buffer_clear(buffer);
        buffer_reserve(buffer, (size_t)size);
        buffer->size = (size_t)size;
        buffer->data[size] = 0;
    }
    return comm_broadcast(comm, buffer->data, size, root);
}

Error *comm_gather(Comm *comm, const void *bytes, int64_t size, Buffer *all, int64_t *ends) {
    ensure(size >= 0, "size %lld", (long long)size);
    // First the sizes, then what they announce.
    int64_t *sizes = memory_zeroed((size_t)comm->size, sizeof *sizes), *each = memory_new((size_t)comm->size, sizeof *each);
    for (int r = 0; r < comm->size; r++) {
        each[r] = sizeof size;
    }
    Error *error = comm->backend->gather(comm, &size, sizeof size, sizes, each);
    if (error == NULL) {
        if (comm->rank == 0) {
            int64_t total = 0;
            for (int r = 0; r < comm->size; r++) {
                total += sizes[r];
                ends[r] = total;
            }
            buffer_clear(all);
            buffer_reserve(all, (size_t)total);
            all->size = (size_t)total;
            all->data[total] = 0;
        }
        error = comm->backend->gather(comm, bytes, size, comm->rank == 0 ? all->data : NULL, sizes);
    }
    free(sizes);
    free(each);
    return error;
}

Error *comm_barrier(Comm *comm) {
    return comm->backend->barrier(comm);
}

Error *comm_split(Comm *comm, int colour, int key, Comm **out) {
    ensure(colour >= 0, "colour %d", colour);
    *out = NULL;
    return comm->backend->split(comm, colour, key, out);
}

Error *comm_agree(Comm *comm, Error *own) {
    if (comm->size == 1) {
        return own;
    }
    double worst = own != NULL ? comm->size - comm->rank : 0;
    Buffer message = {0};
    Error *broken = comm_all_reduce_doubles(comm, &worst, 1, COMM_MAX);
    int reporter = comm->size - (int)worst;
    if (broken == NULL && reporter < comm->size) {
        if (reporter == comm->rank) {
            buffer_byte(&message, (char)own->kind);
            if (comm->rank != 0) {
                buffer_printf(&message, "rank %d on %s: ", comm->rank, comm->host);
            }
            buffer_text(&message, own->message);
        }
        broken = comm_broadcast_buffer(comm, &message, reporter);
    }
    error_free(own);
    Error *shared = broken;
    if (broken == NULL && reporter < comm->size) {
        shared = error_new((ErrorKind)message.data[0], "%s", comm->rank == 0 ? message.data + 1 : "");
    }
    comm->agreed = broken == NULL && shared != NULL;
    buffer_free(&message);
    return shared;
}
