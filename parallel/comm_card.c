// Memory of a card between ranks: which way it goes, and what is the same for both. See "Memory of a card" in comm.h.
#include "parallel/comm_backends.h"

#include "core/log.h"

#include <stdio.h>

// NCCL for that kind of card, NULL where it is not built in.
static const CommCardBackend *nccl_for(DeviceKind kind) {
#if defined(ATHANOR_HAVE_CUDA) && defined(ATHANOR_HAVE_NCCL)
    if (kind == DEVICE_CUDA) {
        return &cuda_comm_nccl;
    }
#endif
#if defined(ATHANOR_HAVE_SIMULATED) && defined(ATHANOR_HAVE_MPI)
    if (kind == DEVICE_SIMULATED) {
        return &simulated_comm_nccl;
    }
#endif
    return NULL;
}

const char *comm_nccl_version(void) {
    const CommCardBackend *nccl = nccl_for(DEVICE_CUDA);
    return nccl != NULL ? nccl->version() : "not built";
}

Error *comm_attach_device(Comm *comm, Device *device) {
    ensure(comm->card == NULL, "a card is attached already");
    if (comm->size == 1 || device->kind == DEVICE_CPU) {
        return NULL;
    }
    const CommCardBackend *nccl = nccl_for(device->kind);
    Buffer why = {0};
    bool usable = nccl != NULL;
    Error *error = NULL;
    if (usable) {
        error = nccl->usable(comm, device, &usable, &why);
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
    if (error == NULL) {
        const CommCardBackend *backend = usable ? nccl : &comm_staged_backend;
        CommCard *card = NULL;
        error = backend->open(comm, device, &card);
        if (error == NULL) {
            card->backend = backend;
            card->device = device;
            comm->card = card;
        }
    }
    return error;
}

void comm_detach_device(Comm *comm, bool failed) {
    if (comm->card != NULL) {
        comm->card->backend->close(comm, comm->card, failed);
        comm->card = NULL;
    }
}

const char *comm_transport(const Comm *comm) {
    return comm->card != NULL ? comm->card->name : comm->backend->name;
}

bool comm_recordable(const Comm *comm) {
    return comm->card != NULL ? comm->card->recordable : comm->size == 1;
}

Error *comm_all_reduce_device(Comm *comm, float *data, int64_t count, bool maximum) {
    ensure(count >= 0, "count %lld", (long long)count);
    CommReduce how = maximum ? COMM_MAX : COMM_SUM;
    if (count == 0) {
        return NULL;
    }
    return comm->card != NULL ? comm->card->backend->all_reduce(comm, data, count, COMM_FLOATS, how)
                              : comm->backend->all_reduce(comm, data, count, how);
}

Error *comm_all_reduce_device_doubles(Comm *comm, double *values, int64_t count) {
    ensure(count >= 0, "count %lld", (long long)count);
    if (count == 0) {
        return NULL;
    }
    return comm->card != NULL ? comm->card->backend->all_reduce(comm, values, count, COMM_DOUBLES, COMM_SUM)
                              : comm->backend->all_reduce_doubles(comm, values, count, COMM_SUM);
}

Error *comm_reduce_scatter(Comm *comm, float *data, int64_t count_each) {
    ensure(count_each >= 0, "count %lld", (long long)count_each);
    if (count_each == 0 || comm->size == 1) {
        return NULL;
    }
    return comm->card != NULL ? comm->card->backend->reduce_scatter(comm, data, count_each)
                              : comm->backend->all_reduce(comm, data, count_each * comm->size, COMM_SUM);
}

Error *comm_host_all_gather(Comm *comm, void *data, int64_t bytes_each) {
    Buffer all = {0};
    int64_t *ends = memory_zeroed((size_t)comm->size, sizeof *ends);
    Error *error = comm_gather(comm, (char *)data + comm->rank * bytes_each, bytes_each, &all, ends);
    if (error == NULL && comm->rank == 0) {
        memcpy(data, all.data, all.size);
    }
    if (error == NULL) {
        error = comm_broadcast(comm, data, bytes_each * comm->size, 0);
    }
    buffer_free(&all);
    free(ends);
    return error;
}

Error *comm_all_gather(Comm *comm, void *data, int64_t bytes_each) {
    ensure(bytes_each >= 0, "%lld bytes", (long long)bytes_each);
    if (bytes_each == 0 || comm->size == 1) {
        return NULL;
    }
    return comm->card != NULL ? comm->card->backend->all_gather(comm, data, bytes_each)
                              : comm_host_all_gather(comm, data, bytes_each);
}

Error *comm_check(Comm *comm) {
    return comm->card != NULL && comm->card->backend->check != NULL ? comm->card->backend->check(comm) : NULL;
}
