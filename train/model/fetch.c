// Layers that are in use of weights and gradients in shards: see fetch.h.
#include "train/model/fetch.h"

enum { NOBODY = INT32_MIN };

// What a slot holds.
typedef struct Slot {
    int64_t brought;  // the layer whose weights are here or on their way
    int64_t summed;   // whose gradients are here, or on their way to their owners
    bool in_use;      // the weights
    bool open;        // the gradients: more is to come
} Slot;

struct Fetch {
    Device *device;
    Placement placement;  // the owner's arrays
    TensorRanks *ranks;
    char *weights, *slot_weights;
    float *sums, *slot_gradients;
    GroupRequest **bringing, **reducing;  // one a unit
    Slot slots[PLACEMENT_SLOTS];
};

Fetch *fetch_create(Device *device, const Placement *placement, void *weights, float *sums, void *slot_weights,
                    float *slot_gradients) {
    if (placement->units == NULL) {
        return NULL;
    }
    Fetch *fetch = memory_zeroed(1, sizeof *fetch);
    *fetch = (Fetch){.device = device,
                     .placement = *placement,
                     .weights = weights,
                     .slot_weights = slot_weights,
                     .sums = sums,
                     .slot_gradients = slot_gradients};
    fetch->bringing = memory_zeroed((size_t)placement->unit_count, sizeof *fetch->bringing);
    fetch->reducing = memory_zeroed((size_t)placement->unit_count, sizeof *fetch->reducing);
    for (int i = 0; i < PLACEMENT_SLOTS; i++) {
        fetch->slots[i] = (Slot){.brought = NOBODY, .summed = NOBODY};
    }
    return fetch;
}

void fetch_free(Fetch *fetch) {
    if (fetch != NULL) {
        free(fetch->bringing);
        free(fetch->reducing);
        free(fetch);
    }
}

void fetch_connect(Fetch *fetch, TensorRanks *ranks) {
    if (fetch != NULL) {
        fetch->ranks = ranks;
    }
}

// ---- What is exchanged

static void start(Fetch *fetch, const Collective *what, GroupRequest **request) {
    if (fetch->ranks->failed == NULL) {
        fetch->ranks->failed = group_start(fetch->ranks->owners, what, request);
    }
}

static void await(Fetch *fetch, GroupRequest **request) {
    if (*request != NULL && fetch->ranks->failed == NULL) {
        fetch->ranks->failed = group_wait(request);
    }
}

// Lets the oldest of these advance, and with it all that are under way.
static void advance(Fetch *fetch, GroupRequest **requests) {
    for (int32_t i = 0; i < fetch->placement.unit_count; i++) {
        if (requests[i] != NULL && fetch->ranks->failed == NULL) {
            bool done;
            fetch->ranks->failed = group_test(&requests[i], &done);
            return;
        }
    }
}

static void copy(Fetch *fetch, const void *from, void *to, int64_t bytes) {
    if (bytes > 0) {
        fetch->device->op->copy_rows(fetch->device, &(CopyRows){1, bytes, from, bytes, to, bytes});
    }
}

static int64_t own_count(const Fetch *fetch, int32_t unit) {
    Range part = placement_unit_part(&fetch->placement, unit, fetch->placement.share.shard);
    return part.end - part.begin;
}

// Gathers a unit from its owners into `to`: from this rank's part, which lies at `own`, or (in place) in `to`.
static void gather(Fetch *fetch, int32_t unit, char *own, char *to) {
    const Unit *u = &fetch->placement.units[unit];
    DataType type = fetch->placement.storage.type;
    if (u->owner < 0) {
        Collective all = {GROUP_ALL_GATHER, element_of(type), COMM_SUM, own_count(fetch, unit), own, to};
        start(fetch, &all, &fetch->bringing[unit]);
        return;
    }
    if (own != to) {
        copy(fetch, own, to, own_count(fetch, unit) * data_type_bytes(type));
    }
    Collective one = {GROUP_BROADCAST, element_of(type), COMM_SUM, u->count, NULL, to, u->owner};
    start(fetch, &one, &fetch->bringing[unit]);
}

static void reduce(Fetch *fetch, int32_t unit) {
    const Unit *u = &fetch->placement.units[unit];
    float *from = fetch->slot_gradients + placement_unit_slot(&fetch->placement, unit);
    float *to = placement_unit_sums(&fetch->placement, unit, fetch->sums);
    Collective sum = {.operation = u->owner < 0 ? GROUP_REDUCE_SCATTER : GROUP_REDUCE,
                      .type = ELEMENT_FP32,
                      .reduce = COMM_SUM,
                      .count = u->owner < 0 ? own_count(fetch, unit) : u->count,
                      .send = from,
                      .receive = own_count(fetch, unit) > 0 ? to : from,
                      .peer = u->owner < 0 ? 0 : u->owner};
    start(fetch, &sum, &fetch->reducing[unit]);
}

// ---- Weights

static bool brings(const Fetch *fetch) {
    return fetch != NULL && fetch->slot_weights != NULL;
}

// The slot of a layer, NULL where it has no rows here.
static Slot *slot_of(Fetch *fetch, int64_t layer) {
    for (int32_t i = 0; i < fetch->placement.unit_count; i++) {
        if (fetch->placement.units[i].layer == layer) {
            return &fetch->slots[fetch->placement.units[i].slot];
        }
    }
    return NULL;
}

static void await_layer(Fetch *fetch, GroupRequest **requests, int64_t layer) {
    for (int32_t i = 0; i < fetch->placement.unit_count; i++) {
        if (fetch->placement.units[i].layer == layer) {
            await(fetch, &requests[i]);
        }
    }
}

void fetch_begin(Fetch *fetch, int64_t layer) {
    Slot *slot = brings(fetch) ? slot_of(fetch, layer) : NULL;
    if (slot == NULL || slot->brought == layer || slot->in_use) {
        return;
    }
    await_layer(fetch, fetch->bringing, slot->brought);
    slot->brought = layer;
    const Placement *placement = &fetch->placement;
    for (int32_t i = 0; i < placement->unit_count; i++) {
        if (placement->units[i].layer == layer) {
            int64_t at = placement_unit_slot(placement, i) * data_type_bytes(placement->storage.type);
            gather(fetch, i, placement_unit_weights(placement, i, fetch->weights), fetch->slot_weights + at);
        }
    }
}

void fetch_ready(Fetch *fetch, int64_t layer) {
    fetch_begin(fetch, layer);
    Slot *slot = brings(fetch) ? slot_of(fetch, layer) : NULL;
    if (slot != NULL) {
        ensure(slot->brought == layer, "layer %lld is wanted while layer %lld is in use", (long long)layer,
               (long long)slot->brought);
        await_layer(fetch, fetch->bringing, layer);
        slot->in_use = true;
    }
}

void fetch_drop(Fetch *fetch, int64_t layer) {
    Slot *slot = brings(fetch) ? slot_of(fetch, layer) : NULL;
    if (slot != NULL) {
        ensure(slot->in_use && slot->brought == layer, "layer %lld is not in use", (long long)layer);
        slot->in_use = false;
    }
}

void fetch_forget(Fetch *fetch) {
    for (int i = 0; brings(fetch) && i < PLACEMENT_SLOTS; i++) {
        Slot *slot = &fetch->slots[i];
        ensure(!slot->in_use, "layer %lld is in use", (long long)slot->brought);
        await_layer(fetch, fetch->bringing, slot->brought);
        slot->brought = NOBODY;
    }
}

const void *fetch_weight(Fetch *fetch, int32_t row) {
    const Placement *placement = &fetch->placement;
    int32_t unit = row >= 0 ? placement->places[row].unit : -1;
    advance(fetch, fetch->bringing);
    advance(fetch, fetch->reducing);
    if (!brings(fetch) || unit < 0 || placement->places[row].box_count == 0) {
        return placement_weight(placement, row, fetch->weights);
    }
    const Unit *u = &placement->units[unit];
    const Slot *slot = &fetch->slots[u->slot];
    ensure(slot->in_use && slot->brought == u->layer, "row %d is asked for, and layer %lld is not here", row,
           (long long)u->layer);
    return fetch->slot_weights + placement_row_slot(placement, row) * data_type_bytes(placement->storage.type);
}

void fetch_share(Fetch *fetch) {
    for (int32_t i = 0; fetch->slot_weights == NULL && i < fetch->placement.unit_count; i++) {
        const Unit *unit = &fetch->placement.units[i];
        if (unit->copy) {
            continue;  // its weights come from where they are updated
        }
        char *whole = placement_unit_weights(&fetch->placement, i, fetch->weights);
        int64_t own = placement_unit_part(&fetch->placement, i, fetch->placement.share.shard).begin;
        gather(fetch, i, unit->owner < 0 ? whole + own * data_type_bytes(fetch->placement.storage.type) : whole, whole);
    }
    for (int32_t i = 0; i < fetch->placement.unit_count; i++) {
        await(fetch, &fetch->bringing[i]);
    }
}

// ---- Gradients

// Gradients that are whole are nobody's business here.
static bool reduces(const Fetch *fetch) {
    return fetch != NULL && fetch->slot_gradients != NULL;
}

void fetch_open(Fetch *fetch, int64_t layer) {
    Slot *slot = reduces(fetch) ? slot_of(fetch, layer) : NULL;
    if (slot == NULL || (slot->open && slot->summed == layer)) {
        return;
    }
    ensure(!slot->open, "gradients of layer %lld are asked for while those of layer %lld are open", (long long)layer,
           (long long)slot->summed);
    await_layer(fetch, fetch->reducing, slot->summed);
    slot->summed = layer;
    slot->open = true;
    const Placement *placement = &fetch->placement;
    for (int32_t i = 0; i < placement->unit_count; i++) {
        if (placement->units[i].layer == layer) {
            float *at = fetch->slot_gradients + placement_unit_slot(placement, i);
            int64_t count = placement->units[i].count, bytes = (int64_t)sizeof *at;
            fetch->device->op->zero(fetch->device, count * bytes, at);
            int64_t own = placement_unit_part(placement, i, placement->share.shard).begin;
            copy(fetch, placement_unit_sums(placement, i, fetch->sums), at + own, own_count(fetch, i) * bytes);
        }
    }
}

void fetch_close(Fetch *fetch, int64_t layer) {
    Slot *slot = reduces(fetch) ? slot_of(fetch, layer) : NULL;
    if (slot == NULL) {
        return;
    }
    ensure(slot->open && slot->summed == layer, "gradients of layer %lld are not open", (long long)layer);
    slot->open = false;
    for (int32_t i = 0; i < fetch->placement.unit_count; i++) {
        if (fetch->placement.units[i].layer == layer) {
            reduce(fetch, i);
        }
    }
}

void fetch_finish(Fetch *fetch) {
    for (int i = 0; reduces(fetch) && i < PLACEMENT_SLOTS; i++) {
        Slot *slot = &fetch->slots[i];
        ensure(!slot->open, "gradients of layer %lld are still open", (long long)slot->summed);
        await_layer(fetch, fetch->reducing, slot->summed);
        slot->summed = NOBODY;
    }
}

float *fetch_gradient(Fetch *fetch, int32_t row) {
    const Placement *placement = &fetch->placement;
    if (row < 0 || placement->places[row].box_count == 0 || !placement->places[row].trainable) {
        return NULL;
    }
    if (!reduces(fetch)) {
        return placement_gradient(placement, row, fetch->sums);
    }
    const Unit *unit = &placement->units[placement->places[row].unit];
    const Slot *slot = &fetch->slots[unit->slot];
    ensure(slot->open && slot->summed == unit->layer, "the gradient of row %d is asked for, and layer %lld is not open", row,
           (long long)unit->layer);
    return fetch->slot_gradients + placement_row_slot(placement, row);
}
