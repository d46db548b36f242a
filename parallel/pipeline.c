// Schedules of pipelines: see pipeline.h.
//
// A list is made in two steps: the order of a rank's computations, then the messages between them. 1F1B, interleaved and ZB-H1
// have an order that can be written down. ZB-V has none: ranks are let loose in a simulated step, each doing what it can by
// fixed preferences, and the preferences that idle least give the order.
#include "parallel/pipeline.h"

#include "core/memory.h"

const char *const pipeline_kind_names[PIPELINE_KINDS] = {"1f1b", "interleaved", "zb-h1", "zb-v"};

static int smaller(int a, int b) {
    return a < b ? a : b;
}

// ---- Stages

int pipeline_stage(const PipelineShape *shape, int rank, int chunk) {
    bool back = shape->kind == PIPELINE_ZB_V && chunk == 1;
    return back ? 2 * shape->ranks - 1 - rank : chunk * shape->ranks + rank;
}

int pipeline_chunk(const PipelineShape *shape, int stage) {
    return stage / shape->ranks;
}

int pipeline_rank(const PipelineShape *shape, int stage) {
    bool back = shape->kind == PIPELINE_ZB_V && stage >= shape->ranks;
    return back ? 2 * shape->ranks - 1 - stage : stage % shape->ranks;
}

static int stages_of(const PipelineShape *shape) {
    return shape->ranks * shape->chunks;
}

// ---- An order that can be written down

static void add(ActionList *list, ActionKind kind, int stage, int micro_batch) {
    list->actions[list->count++] = (Action){kind, stage, micro_batch, -1};
}

// Micro-batches go through a rank's chunks in groups of at least as many as there are ranks: a group through one chunk, then
// through the next, so that it comes around to a rank just when that is free.
typedef struct Groups {
    int count, micro_batches;
} Groups;

static Groups groups_of(const PipelineShape *shape) {
    int count = shape->micro_batches / shape->ranks;
    return (Groups){count > 0 ? count : 1, shape->micro_batches};
}
static int group_begin(Groups groups, int group) {
    return (int)((int64_t)groups.micro_batches * group / groups.count);
}
static int largest_group(Groups groups) {
    return (groups.micro_batches + groups.count - 1) / groups.count;
}

// The stages and micro-batches of a rank in the order in which they go forward, or back.
static void rank_order(const PipelineShape *shape, int rank, ActionKind kind, ActionList *order) {
    Groups groups = groups_of(shape);
    for (int group = 0; group < groups.count; group++) {
        for (int i = 0; i < shape->chunks; i++) {
            int chunk = kind == ACTION_FORWARD ? i : shape->chunks - 1 - i;
            for (int m = group_begin(groups, group); m < group_begin(groups, group + 1); m++) {
                add(order, kind, pipeline_stage(shape, rank, chunk), m);
            }
        }
    }
}

// Some micro-batches forward, then one back for each that goes forward, then the rest back. Weights' gradients follow their
// inputs' with a lag: none, or in ZB-H1 as many as make a rank hold P micro-batches; what is put off fills the end, where a
// rank waits for the ranks behind it.
static void alternate(const PipelineShape *shape, int rank, ActionList *list, ActionList scratch[2]) {
    int all = shape->micro_batches * shape->chunks, behind = shape->ranks - 1 - rank, weights = 0;
    int lag = shape->kind == PIPELINE_ZB_H1 ? rank : 0;
    int ahead = shape->chunks > 1 ? 2 * behind + (shape->chunks - 1) * largest_group(groups_of(shape)) : behind;
    const Action *forward = scratch[0].actions, *back = scratch[1].actions;
    scratch[0].count = scratch[1].count = 0;
    rank_order(shape, rank, ACTION_FORWARD, &scratch[0]);
    rank_order(shape, rank, ACTION_INPUT_GRADIENT, &scratch[1]);
    ahead = smaller(ahead, all);
    for (int i = 0; i < ahead; i++) {
        add(list, ACTION_FORWARD, forward[i].stage, forward[i].micro_batch);
    }
    for (int i = 0; i < all; i++) {
        if (ahead + i < all) {
            add(list, ACTION_FORWARD, forward[ahead + i].stage, forward[ahead + i].micro_batch);
        }
        add(list, ACTION_INPUT_GRADIENT, back[i].stage, back[i].micro_batch);
        for (; weights <= i - lag; weights++) {
            add(list, ACTION_WEIGHT_GRADIENT, back[weights].stage, back[weights].micro_batch);
        }
    }
    for (; weights < all; weights++) {
        add(list, ACTION_WEIGHT_GRADIENT, back[weights].stage, back[weights].micro_batch);
    }
}

// ---- An order that is found

// What a rank of the simulated step prefers: stages behind the turn go forward first, those before it back first, and weights'
// gradients wait for a moment with nothing else to do.
typedef struct Preference {
    bool forward_first;
    int reserve;  // of what it may hold, kept from the first chunk: what has gone out must be able to come back
} Preference;

typedef struct Walk {
    const PipelineShape *shape;
    Preference prefers;
    int *forward, *back;  // [stages] micro-batches that have begun
    int *ends;            // [2][stages][micro-batches] the time at which each ends, forward and back; 0 before it has begun
    int *weights, *held;  // [ranks] weights' gradients begun; what is held
    int *busy_until;      // [ranks]
    ActionList *rank;
    ActionList *owed;  // [ranks] of weights' gradients, in order
} Walk;

static int *end_of(Walk *w, bool back, int stage, int micro_batch) {
    return &w->ends[((int64_t)back * stages_of(w->shape) + stage) * w->shape->micro_batches + micro_batch];
}

static bool has_ended(Walk *w, bool back, int stage, int micro_batch, int now) {
    int end = *end_of(w, back, stage, micro_batch);
    return end > 0 && end <= now;
}

static bool can_forward(Walk *w, int rank, int stage, int now) {
    int m = w->forward[stage], most = 2 * w->shape->ranks - (pipeline_chunk(w->shape, stage) == 0 ? w->prefers.reserve : 0);
    return m < w->shape->micro_batches && w->held[rank] < most && (stage == 0 || has_ended(w, false, stage - 1, m, now));
}

static bool can_back(Walk *w, int stage, int now) {
    int m = w->back[stage];
    return m < w->shape->micro_batches && has_ended(w, false, stage, m, now) &&
           (stage == stages_of(w->shape) - 1 || has_ended(w, true, stage + 1, m, now));
}

static bool try_forward(Walk *w, int rank, int now) {
    for (int chunk = 1; chunk >= 0; chunk--) {
        int stage = pipeline_stage(w->shape, rank, chunk);
        if (can_forward(w, rank, stage, now)) {
            add(&w->rank[rank], ACTION_FORWARD, stage, w->forward[stage]);
            *end_of(w, false, stage, w->forward[stage]++) = now + 1;
            w->held[rank]++;
            return true;
        }
    }
    return false;
}

static bool try_back(Walk *w, int rank, int now) {
    for (int chunk = 0; chunk < 2; chunk++) {
        int stage = pipeline_stage(w->shape, rank, chunk);
        if (can_back(w, stage, now)) {
            add(&w->rank[rank], ACTION_INPUT_GRADIENT, stage, w->back[stage]);
            add(&w->owed[rank], ACTION_WEIGHT_GRADIENT, stage, w->back[stage]);
            *end_of(w, true, stage, w->back[stage]++) = now + 1;
            return true;
        }
    }
    return false;
}

static bool try_weights(Walk *w, int rank) {
    if (w->weights[rank] == w->owed[rank].count) {
        return false;
    }
    Action owed = w->owed[rank].actions[w->weights[rank]++];
    add(&w->rank[rank], owed.kind, owed.stage, owed.micro_batch);
    w->held[rank]--;
    return true;
}

// Every action takes one unit of time. Returns the number of units, 0 where the ranks wait for ever.
static int walk(Walk *w) {
    int ranks = w->shape->ranks, left = 3 * stages_of(w->shape) * w->shape->micro_batches, now = 0;
    for (; left > 0; now++) {
        int before = left;
        for (int rank = 0; rank < ranks; rank++) {
            bool forward = w->prefers.forward_first && try_forward(w, rank, now);
            left -= forward || try_back(w, rank, now) || (!w->prefers.forward_first && try_forward(w, rank, now)) ||
                    try_weights(w, rank);
        }
        if (left == before) {
            return 0;
        }
    }
    return now;
}

static void clear(Walk *w) {
    const PipelineShape *s = w->shape;
    size_t stages = (size_t)stages_of(s), ranks = (size_t)s->ranks;
    memset(w->forward, 0, stages * sizeof *w->forward);
    memset(w->back, 0, stages * sizeof *w->back);
    memset(w->ends, 0, 2 * stages * (size_t)s->micro_batches * sizeof *w->ends);
    memset(w->weights, 0, ranks * sizeof *w->weights);
    memset(w->held, 0, ranks * sizeof *w->held);
    for (int rank = 0; rank < s->ranks; rank++) {
        w->rank[rank].count = w->owed[rank].count = 0;
    }
}

static void lists_free(ActionList *lists, int count) {
    for (int i = 0; lists != NULL && i < count; i++) {
        free(lists[i].actions);
    }
    free(lists);
}

static ActionList *lists_new(int count, int capacity) {
    ActionList *lists = memory_zeroed((size_t)count, sizeof *lists);
    for (int i = 0; i < count; i++) {
        lists[i].actions = memory_new((size_t)capacity, sizeof *lists[i].actions);
    }
    return lists;
}

// The order of the least idle preferences, into `lists`.
static void search(const PipelineShape *shape, ActionList *lists) {
    enum { RESERVES = 3 };
    size_t stages = (size_t)stages_of(shape), ranks = (size_t)shape->ranks;
    Walk w = {.shape = shape, .rank = lists, .owed = lists_new(shape->ranks, 2 * shape->micro_batches)};
    w.forward = memory_new(stages, sizeof *w.forward);
    w.back = memory_new(stages, sizeof *w.back);
    w.ends = memory_new(2 * stages * (size_t)shape->micro_batches, sizeof *w.ends);
    w.weights = memory_new(ranks, sizeof *w.weights);
    w.held = memory_new(ranks, sizeof *w.held);
    Preference best = {false, 0};
    int least = 0;
    for (int i = 0; i < 2 * RESERVES; i++) {
        clear(&w);
        w.prefers = (Preference){i >= RESERVES, i % RESERVES};
        int units = walk(&w);
        if (units > 0 && (least == 0 || units < least)) {
            least = units;
            best = w.prefers;
        }
    }
    ensure(least > 0, "no order for %d ranks and %d micro-batches", shape->ranks, shape->micro_batches);
    clear(&w);
    w.prefers = best;
    (void)walk(&w);
    free(w.forward), free(w.back), free(w.ends), free(w.weights), free(w.held);
    lists_free(w.owed, shape->ranks);
}

// ---- Messages

// The rank that a computation waits for, and the one that waits for it; -1 where it is this one, or nobody.
static int other_rank(const PipelineShape *shape, int rank, int stage) {
    int other = stage < 0 || stage >= stages_of(shape) ? -1 : pipeline_rank(shape, stage);
    return other == rank ? -1 : other;
}

static void add_message(ActionList *list, ActionKind kind, const Action *computed, int peer) {
    if (peer >= 0) {
        list->actions[list->count++] = (Action){kind, computed->stage, computed->micro_batch, peer};
    }
}

// The computations of a rank with what they need before them and what they give behind them.
static ActionList with_messages(const PipelineShape *shape, int rank, const ActionList *computed) {
    ActionList list = {memory_new(3 * (size_t)computed->count, sizeof *list.actions), 0};
    for (int i = 0; i < computed->count; i++) {
        const Action *a = &computed->actions[i];
        int before = other_rank(shape, rank, a->stage - 1), behind = other_rank(shape, rank, a->stage + 1);
        bool forward = a->kind == ACTION_FORWARD, back = a->kind == ACTION_INPUT_GRADIENT;
        add_message(&list, forward ? ACTION_RECEIVE_OUTPUT : ACTION_RECEIVE_GRADIENT, a, forward ? before : back ? behind : -1);
        list.actions[list.count++] = *a;
        add_message(&list, forward ? ACTION_SEND_OUTPUT : ACTION_SEND_GRADIENT, a, forward ? behind : back ? before : -1);
    }
    return list;
}

Error *pipeline_create(const PipelineShape *shape, PipelineSchedule **out) {
    enum { MOST = 1 << 20 };
    *out = NULL;
    int chunks = shape->kind == PIPELINE_INTERLEAVED ? shape->chunks : shape->kind == PIPELINE_ZB_V ? 2 : 1;
    if (shape->ranks < 1 || shape->chunks < 1 || shape->micro_batches < 1) {
        return failure("a pipeline of %d ranks with %d stages each and %d micro-batches: all must be 1 or more", shape->ranks,
                       shape->chunks, shape->micro_batches);
    }
    if (shape->chunks != chunks) {
        return failure("schedule %s has %d stage%s a rank, not %d", pipeline_kind_names[shape->kind], chunks,
                       chunks > 1 ? "s" : "", shape->chunks);
    }
    if (shape->ranks > MOST / shape->chunks / shape->micro_batches) {
        return failure("a pipeline of %d ranks with %d stages each and %d micro-batches is too long: at most %d in all",
                       shape->ranks, shape->chunks, shape->micro_batches, (int)MOST);
    }
    int ranks = shape->ranks, each = shape->micro_batches * shape->chunks;
    ActionList *computed = lists_new(ranks, 3 * each), *scratch = lists_new(2, each);
    if (shape->kind == PIPELINE_ZB_V) {
        search(shape, computed);
    }
    for (int rank = 0; rank < ranks && shape->kind != PIPELINE_ZB_V; rank++) {
        alternate(shape, rank, &computed[rank], scratch);
    }
    PipelineSchedule *schedule = memory_new(1, sizeof *schedule);
    *schedule = (PipelineSchedule){*shape, memory_new((size_t)ranks, sizeof *schedule->rank)};
    for (int rank = 0; rank < ranks; rank++) {
        schedule->rank[rank] = with_messages(shape, rank, &computed[rank]);
    }
    lists_free(computed, ranks);
    lists_free(scratch, 2);
    *out = schedule;
    return NULL;
}

void pipeline_destroy(PipelineSchedule *schedule) {
    if (schedule != NULL) {
        lists_free(schedule->rank, schedule->shape.ranks);
        free(schedule);
    }
}

// ---- Walking the lists

// A boundary of stages in one direction: when each message arrives, by micro-batch, in the order of their sending.
typedef struct Boundary {
    double *arrives;
    int sent, received;
} Boundary;

typedef struct Measure {
    const PipelineSchedule *schedule;
    const PipelineCosts *costs;
    Boundary *output, *gradient;  // [stages]: of stage s to s + 1, and to s - 1
    double *clock, *work;         // [ranks]
    int *at, *held;               // [ranks]
    PipelineTimes *times;
} Measure;

static bool send_message(Measure *m, Boundary *boundary, const Action *a, int rank) {
    if (boundary->sent != a->micro_batch) {
        return false;
    }
    boundary->arrives[boundary->sent++] = m->clock[rank] + m->costs->message;
    return true;
}

// Whether one more may be under way. The time of waiting for it is not counted.
static bool has_room(const Measure *m, const Boundary *boundary) {
    int most = m->costs->gradients_under_way;
    return most == 0 || boundary->sent - boundary->received < most;
}

static bool receive_message(Measure *m, Boundary *boundary, const Action *a, int rank) {
    if (boundary->received != a->micro_batch || boundary->sent <= a->micro_batch) {
        return false;
    }
    double arrives = boundary->arrives[boundary->received++];
    m->clock[rank] = arrives > m->clock[rank] ? arrives : m->clock[rank];
    return true;
}

static bool act(Measure *m, const Action *a, int rank) {
    double cost = 0;
    switch (a->kind) {
    case ACTION_RECEIVE_OUTPUT:
        return receive_message(m, &m->output[a->stage - 1], a, rank);
    case ACTION_SEND_OUTPUT:
        return send_message(m, &m->output[a->stage], a, rank);
    case ACTION_RECEIVE_GRADIENT:
        return receive_message(m, &m->gradient[a->stage + 1], a, rank);
    case ACTION_SEND_GRADIENT:
        return has_room(m, &m->gradient[a->stage]) && send_message(m, &m->gradient[a->stage], a, rank);
    case ACTION_FORWARD:
        cost = m->costs->forward;
        m->held[rank]++;
        break;
    case ACTION_INPUT_GRADIENT:
        cost = m->costs->input_gradient;
        break;
    case ACTION_WEIGHT_GRADIENT:
        cost = m->costs->weight_gradient;
        break;
    }
    m->times->held = m->held[rank] > m->times->held ? m->held[rank] : m->times->held;
    m->held[rank] -= a->kind == ACTION_WEIGHT_GRADIENT;
    m->clock[rank] += cost;
    m->work[rank] += cost;
    return true;
}

// As far as everybody comes.
static void measure_walk(Measure *m) {
    int ranks = m->schedule->shape.ranks;
    for (bool moved = true; moved;) {
        moved = false;
        for (int rank = 0; rank < ranks; rank++) {
            const ActionList *list = &m->schedule->rank[rank];
            while (m->at[rank] < list->count && act(m, &list->actions[m->at[rank]], rank)) {
                m->at[rank]++;
                moved = true;
            }
        }
    }
}

static Boundary *boundaries_new(int stages, int micro_batches) {
    Boundary *boundaries = memory_zeroed((size_t)stages, sizeof *boundaries);
    for (int i = 0; i < stages; i++) {
        boundaries[i].arrives = memory_new((size_t)micro_batches, sizeof *boundaries[i].arrives);
    }
    return boundaries;
}

static void boundaries_free(Boundary *boundaries, int stages) {
    for (int i = 0; i < stages; i++) {
        free(boundaries[i].arrives);
    }
    free(boundaries);
}

bool pipeline_measure(const PipelineSchedule *schedule, const PipelineCosts *costs, PipelineTimes *times) {
    int ranks = schedule->shape.ranks, stages = stages_of(&schedule->shape), count = schedule->shape.micro_batches;
    *times = (PipelineTimes){.stuck = -1, .stuck_at = -1};
    Measure m = {schedule, costs, boundaries_new(stages, count), boundaries_new(stages, count)};
    m.clock = memory_zeroed((size_t)ranks, sizeof *m.clock);
    m.work = memory_zeroed((size_t)ranks, sizeof *m.work);
    m.at = memory_zeroed((size_t)ranks, sizeof *m.at);
    m.held = memory_zeroed((size_t)ranks, sizeof *m.held);
    m.times = times;
    measure_walk(&m);
    double least_work = m.work[0];
    for (int rank = ranks - 1; rank >= 0; rank--) {
        times->seconds = m.clock[rank] > times->seconds ? m.clock[rank] : times->seconds;
        least_work = m.work[rank] < least_work ? m.work[rank] : least_work;
        if (m.at[rank] < schedule->rank[rank].count) {
            times->stuck = rank;
            times->stuck_at = m.at[rank];
        }
    }
    times->idle = times->seconds - least_work;
    boundaries_free(m.output, stages);
    boundaries_free(m.gradient, stages);
    free(m.clock), free(m.work), free(m.at), free(m.held);
    return times->stuck < 0;
}
