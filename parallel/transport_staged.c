// Memory of a card through the host: copied to pinned memory, exchanged by the transport of the host, copied back.
//
// What is sent is copied down at once, behind what the card was told before. The transport of the host gets operations in the
// order of the starts, each when its copy is there: as many as are, when one is tested; all, when one is waited for, because
// ranks may wait in different orders, and messages in both directions must be under way. Nothing can be recorded.
#include "parallel/transport.h"

#include <stdio.h>

// Pinned memory with a mark behind the last copy that uses it.
typedef struct Stage {
    void *memory;
    size_t bytes;
    DeviceMark *mark;
    bool taken;
} Stage;

typedef struct StagedRequest {
    GroupRequest base;  // first
    int stage;
    GroupRequest *exchange;      // on the host, once it was handed over
    struct StagedRequest *next;  // started after it, and not handed over either
} StagedRequest;

typedef struct StagedState {
    Group host;  // the same ranks, and memory of the host
    Stage *stages;
    int count, capacity;
    StagedRequest *first, *last;  // started and not handed to the host
} StagedState;

// Where an operation's memory lies in its stage, in bytes: what is copied down before the exchange, and up after it.
typedef struct Layout {
    int64_t bytes, down_at, down, up_at, up;
} Layout;

static Layout layout_of(const GroupRequest *request) {
    const Collective *what = &request->what;
    int64_t each = what->count * element_bytes(what->type), all = each * request->group->size,
            own = each * request->group->rank;
    switch (what->operation) {
    case GROUP_REDUCE:
        return (Layout){each, 0, each, 0, what->peer == request->group->rank ? each : 0};
    case GROUP_REDUCE_SCATTER:
        return (Layout){all, 0, all, own, each};
    case GROUP_ALL_GATHER:
        return (Layout){all, own, each, 0, all};
    case GROUP_BROADCAST:
        return what->peer == request->group->rank ? (Layout){each, 0, each, 0, 0} : (Layout){each, 0, 0, 0, each};
    case GROUP_ALL_TO_ALL:
        return (Layout){2 * all, 0, all, all, all};
    case GROUP_SEND:
        return (Layout){each, 0, each, 0, 0};
    case GROUP_RECEIVE:
        return (Layout){each, 0, 0, 0, each};
    case GROUP_ALL_REDUCE:
    case GROUP_OPERATIONS:
        break;
    }
    return (Layout){each, 0, each, 0, each};
}

static Error *staged_open(Group *group) {
    StagedState *state = memory_zeroed(1, sizeof *state);
    state->host = *group;
    state->host.device = NULL;
    state->host.way = group->comm->backend->host_plane;
    Error *error = state->host.way->open(&state->host);
    if (error != NULL) {
        free(state);
        return error;
    }
    snprintf(group->transport, sizeof group->transport, "%s through host memory", state->host.way->name);
    group->state = state;
    return NULL;
}

static void staged_close(Group *group, bool failed) {
    StagedState *state = group->state;
    for (int i = 0; i < state->count; i++) {
        device_staging_release(group->device, state->stages[i].memory, state->stages[i].bytes);
        device_mark_destroy(group->device, state->stages[i].mark);
    }
    state->host.way->close(&state->host, failed);
    free(state->stages);
    free(state);
}

// Finds a free stage, the smallest that is large enough if there is one, and waits for the copies that use it.
static Error *take_stage(Group *group, size_t bytes, int *out) {
    StagedState *state = group->state;
    int best = -1;
    for (int i = 0; i < state->count; i++) {
        const Stage *stage = &state->stages[i];
        if (!stage->taken && stage->bytes >= bytes && (best < 0 || stage->bytes < state->stages[best].bytes)) {
            best = i;
        }
    }
    if (best < 0) {
        Stage stage = {device_staging(group->device, bytes), bytes, device_mark_create(group->device), false};
        array_push(state->stages, state->count, state->capacity, stage);
        best = state->count - 1;
    }
    TRY(device_mark_wait(group->device, state->stages[best].mark));
    state->stages[best].taken = true;
    *out = best;
    return NULL;
}

static Error *staged_start(GroupRequest *request) {
    StagedRequest *own = (StagedRequest *)request;
    StagedState *state = request->group->state;
    Device *device = request->group->device;
    Layout layout = layout_of(request);
    TRY(take_stage(request->group, (size_t)layout.bytes, &own->stage));
    const Stage *stage = &state->stages[own->stage];
    if (layout.down > 0) {
        device_download(device, (char *)stage->memory + layout.down_at, request->what.send, (size_t)layout.down);
        device_mark_set(device, stage->mark);
    }
    if (state->first == NULL) {
        state->first = own;
    } else {
        state->last->next = own;
    }
    state->last = own;
    return NULL;
}

// Hands to the host what was started, the oldest first; `all`: also what is not there yet.
static Error *hand_over(Group *group, bool all) {
    StagedState *state = group->state;
    while (state->first != NULL) {
        StagedRequest *request = state->first;
        const Stage *stage = &state->stages[request->stage];
        if (!all && !device_mark_reached(group->device, stage->mark)) {
            break;
        }
        state->first = request->next;
        TRY(device_mark_wait(group->device, stage->mark));
        Layout layout = layout_of(&request->base);
        Collective what = request->base.what;
        what.send = (char *)stage->memory + layout.down_at;
        what.receive = (char *)stage->memory + layout.up_at;
        TRY(request_start(&state->host, &what, request->base.sequence, &request->exchange));
    }
    return NULL;
}

// The exchange is done: copies to the card, and gives the stage back.
static void receive(StagedRequest *request) {
    Group *group = request->base.group;
    Stage *stage = &((StagedState *)group->state)->stages[request->stage];
    Layout layout = layout_of(&request->base);
    if (layout.up > 0) {
        device_upload(group->device, request->base.what.receive, (char *)stage->memory + layout.up_at, (size_t)layout.up);
        device_mark_set(group->device, stage->mark);
    }
    stage->taken = false;
}

static Error *staged_test(GroupRequest *request, bool *done) {
    StagedRequest *own = (StagedRequest *)request;
    TRY(hand_over(request->group, false));
    *done = false;
    if (own->exchange != NULL) {
        TRY(own->exchange->group->way->test(own->exchange, done));
    }
    if (*done) {
        receive(own);
    }
    return NULL;
}

static Error *staged_wait(GroupRequest *request) {
    StagedRequest *own = (StagedRequest *)request;
    TRY(hand_over(request->group, true));
    TRY(own->exchange->group->way->wait(own->exchange));
    receive(own);
    return NULL;
}

static void staged_free(GroupRequest *request) {
    request_free(&((StagedRequest *)request)->exchange);
}

const Transport transport_staged = {
    .name = "staged",
    .request_bytes = sizeof(StagedRequest),
    .open = staged_open,
    .close = staged_close,
    .start = staged_start,
    .test = staged_test,
    .wait = staged_wait,
    .free = staged_free,
};
