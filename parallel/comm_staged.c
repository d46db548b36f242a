// Memory of a card through the host: copied to pinned memory, exchanged by the group's own backend, copied back.
//
// A started sum is copied down at once, behind what the card was told before; its exchange is done when it, or a later one, is
// waited for, because ranks may wait in different orders but must exchange in the order of the starts. Nothing can be recorded.
#include "parallel/comm_backends.h"

#include <stdio.h>

// Pinned memory with a mark behind the last copy that uses it.
typedef struct Stage {
    void *memory;
    size_t bytes;
    DeviceMark *mark;
    bool taken;
} Stage;

typedef struct StagedRequest {
    CommRequest base;  // first
    float *data;       // on the card
    int64_t count;
    int stage;
    bool exchanged;
    struct StagedRequest *next;  // started after it and not exchanged
} StagedRequest;

typedef struct StagedCard {
    CommCard base;  // first
    Stage *stages;
    int count, capacity;
    StagedRequest *first, *last;
} StagedCard;

static StagedCard *state_of(Comm *comm) {
    return (StagedCard *)comm->card;
}

static Error *staged_open(Comm *comm, Device *device, CommCard **out) {
    StagedCard *state = memory_zeroed(1, sizeof *state);
    snprintf(state->base.name, sizeof state->base.name, "%s through host memory", comm->backend->name);
    *out = &state->base;
    return NULL;
}

static void staged_close(Comm *comm, CommCard *card, bool failed) {
    StagedCard *state = (StagedCard *)card;
    for (int i = 0; i < state->count; i++) {
        device_staging_release(card->device, state->stages[i].memory, state->stages[i].bytes);
        device_mark_destroy(card->device, state->stages[i].mark);
    }
    free(state->stages);
    free(state);
}

// Finds a free stage, the smallest that is large enough if there is one, and waits for the copies that use it.
static Error *take_stage(StagedCard *state, size_t bytes, int *out) {
    int best = -1;
    for (int i = 0; i < state->count; i++) {
        const Stage *stage = &state->stages[i];
        if (!stage->taken && stage->bytes >= bytes && (best < 0 || stage->bytes < state->stages[best].bytes)) {
            best = i;
        }
    }
    if (best < 0) {
        Device *device = state->base.device;
        Stage stage = {device_staging(device, bytes), bytes, device_mark_create(device), false};
        array_push(state->stages, state->count, state->capacity, stage);
        best = state->count - 1;
    }
    TRY(device_mark_wait(state->base.device, state->stages[best].mark));
    state->stages[best].taken = true;
    *out = best;
    return NULL;
}

// Copies from the card; wait_stage says when it is there.
static void fill_stage(StagedCard *state, int index, const void *from, size_t bytes) {
    Stage *stage = &state->stages[index];
    device_download(state->base.device, stage->memory, from, bytes);
    device_mark_set(state->base.device, stage->mark);
}

static Error *wait_stage(StagedCard *state, int index) {
    return device_mark_wait(state->base.device, state->stages[index].mark);
}

// Copies to the card and gives the stage back.
static void empty_stage(StagedCard *state, int index, void *to, const void *from, size_t bytes) {
    Stage *stage = &state->stages[index];
    device_upload(state->base.device, to, from, bytes);
    device_mark_set(state->base.device, stage->mark);
    stage->taken = false;
}

// Exchanges what was started, the oldest first, up to `until` (NULL: all).
static Error *exchange(Comm *comm, const StagedRequest *until) {
    StagedCard *state = state_of(comm);
    while (state->first != NULL && (until == NULL || !until->exchanged)) {
        StagedRequest *request = state->first;
        float *memory = state->stages[request->stage].memory;
        TRY(wait_stage(state, request->stage));
        TRY(comm->backend->all_reduce(comm, memory, request->count, COMM_SUM));
        empty_stage(state, request->stage, request->data, memory, (size_t)request->count * sizeof *memory);
        request->exchanged = true;
        state->first = request->next;
    }
    return NULL;
}

static Error *staged_all_reduce(Comm *comm, void *data, int64_t count, CommType type, CommReduce how) {
    StagedCard *state = state_of(comm);
    size_t bytes = (size_t)count * (type == COMM_FLOATS ? sizeof(float) : sizeof(double));
    int stage;
    TRY(exchange(comm, NULL));
    TRY(take_stage(state, bytes, &stage));
    fill_stage(state, stage, data, bytes);
    TRY(wait_stage(state, stage));
    void *memory = state->stages[stage].memory;
    TRY(type == COMM_FLOATS ? comm->backend->all_reduce(comm, memory, count, how)
                            : comm->backend->all_reduce_doubles(comm, memory, count, how));
    empty_stage(state, stage, data, memory, bytes);
    return NULL;
}

static Error *staged_start_all_reduce(Comm *comm, float *data, int64_t count, CommRequest **out) {
    StagedCard *state = state_of(comm);
    int stage;
    TRY(take_stage(state, (size_t)count * sizeof *data, &stage));
    fill_stage(state, stage, data, (size_t)count * sizeof *data);
    StagedRequest *request = memory_zeroed(1, sizeof *request);
    *request = (StagedRequest){.base = {.comm = comm}, .data = data, .count = count, .stage = stage};
    if (state->first == NULL) {
        state->first = request;
    } else {
        state->last->next = request;
    }
    state->last = request;
    *out = &request->base;
    return NULL;
}

// The exchange is not done before somebody waits: ranks may ask different numbers of times.
static Error *staged_test(CommRequest *request, bool *done) {
    *done = ((StagedRequest *)request)->exchanged;
    return NULL;
}

static Error *staged_wait(CommRequest *request) {
    StagedRequest *own = (StagedRequest *)request;
    return own->exchanged ? NULL : exchange(request->comm, own);
}

static void staged_free_request(CommRequest *request) {
    free(request);
}

static Error *staged_reduce_scatter(Comm *comm, float *data, int64_t count_each) {
    return staged_all_reduce(comm, data, count_each * comm->size, COMM_FLOATS, COMM_SUM);
}

static Error *staged_all_gather(Comm *comm, void *data, int64_t bytes_each) {
    StagedCard *state = state_of(comm);
    size_t own = (size_t)(comm->rank * bytes_each), bytes = (size_t)(comm->size * bytes_each);
    int stage;
    TRY(exchange(comm, NULL));
    TRY(take_stage(state, bytes, &stage));
    char *memory = state->stages[stage].memory;
    device_download(state->base.device, memory + own, (char *)data + own, (size_t)bytes_each);
    device_mark_set(state->base.device, state->stages[stage].mark);
    TRY(wait_stage(state, stage));
    TRY(comm_host_all_gather(comm, memory, bytes_each));
    empty_stage(state, stage, data, memory, bytes);
    return NULL;
}

const CommCardBackend comm_staged_backend = {
    .open = staged_open,
    .close = staged_close,
    .all_reduce = staged_all_reduce,
    .start_all_reduce = staged_start_all_reduce,
    .test = staged_test,
    .wait = staged_wait,
    .free_request = staged_free_request,
    .reduce_scatter = staged_reduce_scatter,
    .all_gather = staged_all_gather,
};
