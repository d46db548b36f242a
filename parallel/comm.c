// The control plane: what is the same for all backends. See comm.h.
#include "parallel/comm.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/text.h"
#include "parallel/comm_backend.h"

#include <limits.h>
#include <math.h>
#include <netdb.h>
#include <pthread.h>
#include <stdio.h>
#include <time.h>
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

// Open MPI's mpirun: SIGCONT at once, after its sigkill timeout SIGTERM, and after as long again SIGKILL.
double comm_stop_seconds(void) {
    int64_t seconds = 1;
    const char *given = getenv("OMPI_MCA_odls_base_sigkill_timeout");
    if (getenv("OMPI_COMM_WORLD_SIZE") == NULL || getenv("OMPI_MCA_ess_base_jobid") == NULL) {
        return INFINITY;  // not its mpirun
    }
    return given != NULL && text_to_i64(given, &seconds) && seconds >= 0 ? (double)seconds : 1;
}

#ifdef ATHANOR_HAVE_MPI
// Watches MPI start, and speaks up while it is slow: once a host.
typedef struct Patience {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool started;
} Patience;

enum { PATIENCE_SECONDS = 5, LOOKUP_SECONDS = 2 };

static void *watch_start(void *context) {
    Patience *patience = context;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += PATIENCE_SECONDS;
    pthread_mutex_lock(&patience->lock);
    while (!patience->started && pthread_cond_timedwait(&patience->changed, &patience->lock, &until) == 0) {
    }
    if (!patience->started) {
        char host[64] = "?";
        gethostname(host, sizeof host - 1);
        log_warning(
            "MPI on %s has not started after %d s: it waits for ranks that do not start, or do not run athanor train too; or a "
            "host cannot look up its own name: `getent hosts %s` must answer at once, else add a line with its address "
            "and '%s' to /etc/hosts",
            host, PATIENCE_SECONDS, host, host);
    }
    pthread_mutex_unlock(&patience->lock);
    return NULL;
}

// Open MPI's launcher looks up the name of its host before it starts ranks, so that only the ranks can tell why it took so
// long. Nobody waits for this thread.
static void *time_lookup(void *context) {
    char host[64] = "?";
    struct addrinfo *found = NULL;
    gethostname(host, sizeof host - 1);
    double start = clock_seconds();
    if (getaddrinfo(host, NULL, NULL, &found) == 0) {
        freeaddrinfo(found);
    }
    double seconds = clock_seconds() - start;
    if (seconds > LOOKUP_SECONDS) {
        log_warning("%s took %.0f s to look up its own name, which is what a start under mpirun waits for: add a line with its "
                    "address and '%s' to /etc/hosts",
                    host, seconds, host);
    }
    return NULL;
}

static Error *open_mpi(int ranks, Comm **out) {
    Patience patience = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    const char *local = getenv("OMPI_COMM_WORLD_LOCAL_RANK");
    pthread_t watcher, lookup;
    bool first = local == NULL || strcmp(local, "0") == 0;  // of its host
    bool watched = first && pthread_create(&watcher, NULL, watch_start, &patience) == 0;
    if (first && pthread_create(&lookup, NULL, time_lookup, NULL) == 0) {
        pthread_detach(lookup);
    }
    Error *error = comm_mpi_open(ranks, out);
    if (watched) {
        pthread_mutex_lock(&patience.lock);
        patience.started = true;
        pthread_cond_signal(&patience.changed);
        pthread_mutex_unlock(&patience.lock);
        pthread_join(watcher, NULL);
    }
    return error;
}

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
        TRY(open_mpi(ranks, out));
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
    if (world != NULL && (world->agreed || world->size == 1)) {
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
