// The stages of a pipeline on a rank: see stages.h.
#include "train/model/stages.h"

#include "train/model/block.h"

#include <inttypes.h>

// ---- Which layers

static int stages_of(const StageShare *share) {
    return share->shape.ranks * share->shape.chunks;
}

static bool cut(const StageShare *share) {
    return share->shape.ranks > 1;
}

Error *stages_check(const StageShare *share, int64_t layers) {
    if (!cut(share)) {
        return NULL;
    }
    PipelineSchedule *schedule;
    TRY(pipeline_create(&share->shape, &schedule));
    pipeline_destroy(schedule);
    if (share->shape.chunks > RANK_MOST_STAGES) {
        return failure("%d stages a rank are too many: at most %d", share->shape.chunks, RANK_MOST_STAGES);
    }
    if (stages_of(share) > layers) {
        return failure("%" PRId64
                       " layers cannot be cut into %d stages (%d ranks with %d each): use fewer ranks or chunks, at most "
                       "%" PRId64 " stages in all",
                       layers, stages_of(share), share->shape.ranks, share->shape.chunks, layers);
    }
    return NULL;
}

int stages_here(const StageShare *share) {
    return cut(share) ? share->shape.chunks : 1;
}

static Range layers_of(const StageShare *share, int64_t layers, int stage) {
    int64_t stages = stages_of(share);
    return (Range){layers * stage / stages, layers * (stage + 1) / stages};
}

// Those of a chunk.
static Range chunk_layers(const StageShare *share, int64_t layers, int chunk) {
    return cut(share) ? layers_of(share, layers, pipeline_stage(&share->shape, share->rank, chunk)) : (Range){0, layers};
}

Range stages_range(const StageShare *share, int64_t layers, int chunk) {
    Range range = chunk_layers(share, layers, chunk);
    range.begin = range.begin == 0 ? -1 : range.begin;
    range.end = range.end == layers ? layers + 1 : range.end;
    return range;
}

int64_t stages_layers_here(const StageShare *share, int64_t layers) {
    int64_t here = 0;
    for (int c = 0; c < stages_here(share); c++) {
        Range range = chunk_layers(share, layers, c);
        here += range.end - range.begin;
    }
    return here;
}

int64_t stages_layer_here(const StageShare *share, int64_t layers, int64_t layer) {
    int64_t before = 0;
    for (int c = 0; c < stages_here(share); c++) {
        Range range = chunk_layers(share, layers, c);
        if (layer >= range.begin && layer < range.end) {
            return before + layer - range.begin;
        }
        before += range.end - range.begin;
    }
    ensure(false, "layer %" PRId64 " is not here", layer);
    return -1;
}

// ---- The plan of a step

static bool is_receive(const Action *a) {
    return a->kind == ACTION_RECEIVE_OUTPUT || a->kind == ACTION_RECEIVE_GRADIENT;
}

static bool is_send(const Action *a) {
    return a->kind == ACTION_SEND_OUTPUT || a->kind == ACTION_SEND_GRADIENT;
}

// The list with each receive in front of the computation before the one that waits for it, so that it is under way meanwhile.
static ActionList early_receives(const ActionList *list) {
    ActionList out = {memory_new((size_t)list->count, sizeof *out.actions), list->count};
    int computed = -1;  // where the last computation went
    for (int i = 0; i < list->count; i++) {
        int at = i;
        if (is_receive(&list->actions[i]) && computed >= 0) {
            memmove(out.actions + computed + 1, out.actions + computed, (size_t)(i - computed) * sizeof *out.actions);
            at = computed++;
        }
        out.actions[at] = list->actions[i];
        computed = !is_receive(&list->actions[i]) && !is_send(&list->actions[i]) ? at : computed;
    }
    return out;
}

// The fewest gradients under way with which the ranks do not wait for each other for ever.
static int fewest_under_way(const PipelineSchedule *schedule) {
    for (int most = 1;; most++) {
        PipelineTimes times;
        if (pipeline_measure(schedule, &(PipelineCosts){1, 1, 1, 0, most}, &times)) {
            return most;
        }
        ensure(most <= schedule->shape.micro_batches, "a schedule in which rank %d is stuck", times.stuck);
    }
}

// Where a stage is that hands on within the rank: the one before or behind is here too.
static bool is_here(const StageShare *share, int stage) {
    return stage >= 0 && stage < stages_of(share) && pipeline_rank(&share->shape, stage) == share->rank;
}

// How many sets of each kind the list needs, and how many streams live at a time.
static void count_sets(const StageShare *share, StagePlan *plan) {
    int last = stages_of(share) - 1, live = 0, most = 0, sending = 0;
    int begun[RANK_MOST_STAGES] = {0}, back[RANK_MOST_STAGES] = {0}, done[RANK_MOST_STAGES] = {0};
    for (int i = 0; i < plan->list.count; i++) {
        const Action *a = &plan->list.actions[i];
        int c = pipeline_chunk(&share->shape, a->stage);
        WorkspaceChunk *chunk = &plan->chunks[c];
        bool local = is_here(share, a->stage + 1);
        live += is_receive(a) || (a->kind == ACTION_INPUT_GRADIENT && a->stage == last);
        most = live > most ? live : most;
        switch (a->kind) {
        case ACTION_FORWARD:
            ensure(begun[c]++ == a->micro_batch, "micro-batch %d out of turn", a->micro_batch);
            live -= a->stage > 0 && !is_here(share, a->stage - 1);
            break;
        case ACTION_INPUT_GRADIENT:
            ensure(back[c]++ == a->micro_batch && (local || a->stage == last || live > 0), "micro-batch %d out of turn",
                   a->micro_batch);
            live -= a->stage == 0;
            break;
        case ACTION_WEIGHT_GRADIENT:
            ensure(done[c]++ == a->micro_batch, "micro-batch %d out of turn", a->micro_batch);
            break;
        case ACTION_SEND_GRADIENT:
            live--;
            sending |= 1 << c;
            break;
        default:
            break;
        }
        int held = begun[c] - done[c], owed = back[c] - done[c];
        chunk->sets = held > chunk->sets ? held : chunk->sets;
        chunk->later = owed > chunk->later ? owed : chunk->later;
    }
    ensure(live == 0, "%d streams are left", live);
    plan->streams = most + plan->gradients_under_way * __builtin_popcount((unsigned)sending);
}

StagePlan stage_plan_create(const StageShare *share, int64_t layers) {
    StagePlan plan = {0};
    PipelineSchedule *schedule;
    Error *error = pipeline_create(&share->shape, &schedule);
    ensure(error == NULL, "%s", error->message);  // stages_check has seen to it
    plan.list = early_receives(&schedule->rank[share->rank]);
    plan.gradients_under_way = fewest_under_way(schedule);
    pipeline_destroy(schedule);
    for (int c = 0; c < share->shape.chunks; c++) {
        plan.chunks[c] = (WorkspaceChunk){chunk_layers(share, layers, c), 1, 1};
    }
    count_sets(share, &plan);
    return plan;
}

void stage_plan_free(StagePlan *plan) {
    free(plan->list.actions);
    *plan = (StagePlan){0};
}

// ---- The state of a walk

// A stream that is on its way in, or out, or waits to be gone on with.
typedef struct Travel {
    GroupRequest *request;
    int stream;  // -1: none
} Travel;

struct Stages {
    StageShare share;
    StagePlan plan;
    // Of micro-batch m of chunk c at [c * micro_batches + m]: outputs and gradients received or handed over, outputs sent.
    Travel *outputs, *gradients;
    GroupRequest **sent;
    Travel *leaving;  // [chunks * gradients_under_way] gradients sent, of micro-batch m at m % gradients_under_way
    int *vacant;      // streams that nobody uses
    int vacant_count;
};

Stages *stages_create(const StageShare *share, int64_t layers) {
    if (!cut(share)) {
        return NULL;
    }
    Stages *s = memory_zeroed(1, sizeof *s);
    s->share = *share;
    s->plan = stage_plan_create(share, layers);
    size_t all = (size_t)share->shape.chunks * (size_t)share->shape.micro_batches;
    s->outputs = memory_zeroed(all, sizeof *s->outputs);
    s->gradients = memory_zeroed(all, sizeof *s->gradients);
    s->sent = memory_zeroed(all, sizeof *s->sent);
    s->leaving = memory_zeroed((size_t)(share->shape.chunks * s->plan.gradients_under_way), sizeof *s->leaving);
    s->vacant = memory_zeroed((size_t)s->plan.streams, sizeof *s->vacant);
    return s;
}

void stages_destroy(Stages *s) {
    if (s != NULL) {
        stage_plan_free(&s->plan);
        free(s->outputs);
        free(s->gradients);
        free(s->sent);
        free(s->leaving);
        free(s->vacant);
        free(s);
    }
}

const StagePlan *stages_plan(const Stages *stages) {
    return &stages->plan;
}

// ---- Messages, which end with the first error

static void start(const Model *model, Group *group, GroupOperation operation, int64_t count, void *data, int tag,
                  GroupRequest **request) {
    TensorRanks *ranks = model->tensor;
    if (ranks->failed == NULL) {
        ranks->failed = group_start(group,
                                    &(Collective){.operation = operation,
                                                  .type = element_of(model->device->type),
                                                  .count = count,
                                                  .send = operation == GROUP_SEND ? data : NULL,
                                                  .receive = operation == GROUP_RECEIVE ? data : NULL,
                                                  .peer = pipeline_peer(group),
                                                  .tag = tag % GROUP_MOST_TAG},
                                    request);
    }
    // A transport may keep a message until it is asked for: it should go now.
    bool done;
    if (ranks->failed == NULL) {
        ranks->failed = group_test(request, &done);
    }
}

static void finish(const Model *model, GroupRequest **request) {
    TensorRanks *ranks = model->tensor;
    if (ranks->failed == NULL) {
        ranks->failed = group_wait(request);
    }
}

// ---- The walk

typedef struct Walk {
    Model *model;
    Stages *stages;
    const Batch *batches;
    const StepOptions *options;
    Workspace *workspace;
    int done[RANK_MOST_STAGES];  // micro-batches whose weights' gradients are there
} Walk;

static int chunk_of(const Walk *w, const Action *a) {
    return pipeline_chunk(&w->stages->share.shape, a->stage);
}

// What is kept for each micro-batch of a stage, at its place.
static size_t place_of(const Walk *w, int stage, int micro_batch) {
    const PipelineShape *shape = &w->stages->share.shape;
    return (size_t)pipeline_chunk(shape, stage) * (size_t)shape->micro_batches + (size_t)micro_batch;
}

static int take_stream(Walk *w) {
    ensure(w->stages->vacant_count > 0, "no stream is vacant");
    return w->stages->vacant[--w->stages->vacant_count];
}

static void leave_stream(Walk *w, int stream) {
    w->stages->vacant[w->stages->vacant_count++] = stream;
}

static void *stream_at(const Walk *w, int stream) {
    return workspace_stream(w->workspace, &w->model->config, stream);
}

static Pass pass_of(const Walk *w, const Action *a) {
    int chunk = chunk_of(w, a), set = a->micro_batch % w->stages->plan.chunks[chunk].sets;
    return pass_learning_in(w->model, w->workspace, &w->batches[a->micro_batch], w->options->seed, chunk, set);
}

static int64_t stream_elements(const Pass *pass) {
    return pass->own_rows * pass->model->config.width;
}

// Lets messages of the host advance.
static void progress(Walk *w) {
    Stages *s = w->stages;
    for (int i = 0; i < s->share.shape.chunks * s->plan.gradients_under_way; i++) {
        bool done;
        if (w->model->tensor->failed == NULL && s->leaving[i].request != NULL) {
            w->model->tensor->failed = group_test(&s->leaving[i].request, &done);
        }
    }
}

static void receive(Walk *w, const Action *a, Group *group, Travel *travels) {
    Travel *travel = &travels[place_of(w, a->stage, a->micro_batch)];
    Pass pass = pass_of(w, a);
    travel->stream = take_stream(w);
    start(w->model, group, GROUP_RECEIVE, stream_elements(&pass), stream_at(w, travel->stream), a->micro_batch,
          &travel->request);
}

static void forward(Walk *w, const Action *a) {
    Pass pass = pass_of(w, a);
    Range layers = pass.layers;
    void *input = pass_layer(&pass, layers.begin)->input;
    // The set may still be on its way out: of the micro-batch before in it, whose gradient has long come back.
    int before = a->micro_batch - w->stages->plan.chunks[chunk_of(w, a)].sets;
    if (before >= 0) {
        finish(w->model, &w->stages->sent[place_of(w, a->stage, before)]);
    }
    if (a->stage == 0) {
        pass_embed(&pass);
    } else if (is_here(&w->stages->share, a->stage - 1)) {
        Action other = {.stage = a->stage - 1, .micro_batch = a->micro_batch};
        Pass earlier = pass_of(w, &other);
        block_copy(&pass, pass_layer(&earlier, earlier.layers.end - 1)->output, input);
    } else {
        Travel *travel = &w->stages->outputs[place_of(w, a->stage, a->micro_batch)];
        finish(w->model, &travel->request);
        block_copy(&pass, stream_at(w, travel->stream), input);
        leave_stream(w, travel->stream);
    }
    for (int64_t layer = layers.begin; layer < layers.end; layer++) {
        pass_forward(&pass, (Range){layer, layer + 1});
        progress(w);
    }
}

static void send_output(Walk *w, const Action *a) {
    Pass pass = pass_of(w, a);
    start(w->model, w->model->tensor->links->outputs[a->stage], GROUP_SEND, stream_elements(&pass),
          pass_layer(&pass, pass.layers.end - 1)->output, a->micro_batch,
          &w->stages->sent[place_of(w, a->stage, a->micro_batch)]);
}

static void input_gradient(Walk *w, const Action *a) {
    Pass pass = pass_of(w, a);
    int chunk = chunk_of(w, a), last = stages_of(&w->stages->share) - 1;
    Travel *travel = &w->stages->gradients[place_of(w, a->stage, a->micro_batch)];
    workspace_keep_later(w->workspace, chunk, a->micro_batch % w->stages->plan.chunks[chunk].sets,
                         a->micro_batch % w->stages->plan.chunks[chunk].later);
    if (a->stage == last) {
        travel->stream = take_stream(w);
        w->workspace->dstream = stream_at(w, travel->stream);
        pass_head(&pass, w->options);
    } else {
        finish(w->model, &travel->request);  // nothing, where it was handed over
        w->workspace->dstream = stream_at(w, travel->stream);
    }
    for (int64_t layer = pass.layers.end - 1; layer >= pass.layers.begin; layer--) {
        pass_backward(&pass, (Range){layer, layer + 1}, GRADIENTS_OF_INPUTS);
        progress(w);
    }
    if (a->stage == 0) {
        pass_embed_backward(&pass);
        leave_stream(w, travel->stream);
    } else if (is_here(&w->stages->share, a->stage - 1)) {
        w->stages->gradients[place_of(w, a->stage - 1, a->micro_batch)].stream = travel->stream;
    }
}

static void send_gradient(Walk *w, const Action *a) {
    Pass pass = pass_of(w, a);
    int most = w->stages->plan.gradients_under_way;
    Travel *leaving = &w->stages->leaving[chunk_of(w, a) * most + a->micro_batch % most];
    if (a->micro_batch >= most) {
        finish(w->model, &leaving->request);
        leave_stream(w, leaving->stream);
    }
    leaving->stream = w->stages->gradients[place_of(w, a->stage, a->micro_batch)].stream;
    start(w->model, w->model->tensor->links->gradients[a->stage], GROUP_SEND, stream_elements(&pass),
          stream_at(w, leaving->stream), a->micro_batch, &leaving->request);
}

// Gradients are final from a layer on once all micro-batches have been through it, and through all that is behind it here:
// every schedule ends a rank's chunks in that order.
static void announce(const Walk *w, int chunk, int64_t layer) {
    const PipelineShape *shape = &w->stages->share.shape;
    for (int c = chunk + 1; c < shape->chunks; c++) {
        ensure(w->done[c] == shape->micro_batches, "chunk %d ends before chunk %d", chunk, c);
    }
    if (w->options->gradients_final != NULL) {
        int32_t row = w->model->table.layers[layer].attention_norm;
        w->options->gradients_final(w->options->context, placement_gradients_from(&w->model->weights.placement, row));
    }
}

static void weight_gradient(Walk *w, const Action *a) {
    Pass pass = pass_of(w, a);
    int chunk = chunk_of(w, a);
    bool last = a->micro_batch + 1 == w->stages->share.shape.micro_batches;
    for (int64_t layer = pass.layers.end - 1; layer >= pass.layers.begin; layer--) {
        pass_backward(&pass, (Range){layer, layer + 1}, GRADIENTS_OF_WEIGHTS);
        progress(w);
        if (last) {
            announce(w, chunk, layer);
        }
    }
    w->done[chunk]++;
}

static void act(Walk *w, const Action *a) {
    const PipelineLinks *links = w->model->tensor->links;
    switch (a->kind) {
    case ACTION_RECEIVE_OUTPUT:
        receive(w, a, links->outputs[a->stage - 1], w->stages->outputs);
        break;
    case ACTION_FORWARD:
        forward(w, a);
        break;
    case ACTION_SEND_OUTPUT:
        send_output(w, a);
        break;
    case ACTION_RECEIVE_GRADIENT:
        receive(w, a, links->gradients[a->stage + 1], w->stages->gradients);
        break;
    case ACTION_INPUT_GRADIENT:
        input_gradient(w, a);
        break;
    case ACTION_SEND_GRADIENT:
        send_gradient(w, a);
        break;
    case ACTION_WEIGHT_GRADIENT:
        weight_gradient(w, a);
        break;
    }
}

// The tied embedding's gradient, of which the head's rank has a part: into that of the rank with the embedding.
static void sum_tied(Model *model) {
    const PipelineLinks *links = model->tensor->links;
    int32_t row = model->table.token;
    if (links->ends != NULL && row == model->table.head && model->tensor->failed == NULL) {
        int64_t count;
        float *gradient = weights_sum(&model->weights, row, &count);
        model->tensor->failed = group_run(
            links->ends,
            &(Collective){
                .operation = GROUP_REDUCE, .type = ELEMENT_FP32, .count = count, .send = gradient, .receive = gradient});
    }
}

void stages_run(Model *model, const Batch *batches, const StepOptions *options) {
    Stages *s = model->stages;
    Walk w = {.model = model, .stages = s, .batches = batches, .options = options, .workspace = &model->workspace};
    size_t all = (size_t)s->share.shape.chunks * (size_t)s->share.shape.micro_batches;
    s->vacant_count = 0;
    for (int i = s->plan.streams - 1; i >= 0; i--) {
        leave_stream(&w, i);
    }
    for (int i = 0; i < s->plan.list.count && model->tensor->failed == NULL; i++) {
        act(&w, &s->plan.list.actions[i]);
    }
    for (size_t i = 0; i < all; i++) {
        finish(model, &s->sent[i]);
    }
    for (int i = 0; i < s->share.shape.chunks * s->plan.gradients_under_way; i++) {
        finish(model, &s->leaving[i].request);
    }
    model->workspace.dstream = model->workspace.streams;
    fetch_finish(model->weights.fetch);
    sum_tied(model);
    if (options->gradients_final != NULL && model->tensor->failed == NULL) {
        options->gradients_final(options->context, 0);
    }
}

void stages_share_tied(Model *model) {
    const PipelineLinks *links = model->tensor->links;
    int32_t row = model->table.token;
    if (links != NULL && links->ends != NULL && row == model->table.head && model->tensor->failed == NULL) {
        const Place *place = &model->weights.placement.places[row];
        model->tensor->failed =
            group_broadcast(links->ends, ELEMENT_BYTE, placement_weight(&model->weights.placement, row, model->weights.weights),
                            (place->held.end - place->held.begin) * data_type_bytes(place->type), 0);
    }
}

// ---- Looking

void stages_look(const Pass *pass) {
    const Model *model = pass->model;
    const StageShare *share = &model->options.stages;
    void *stream = pass->workspace->shared.input;
    if (!cut(share)) {
        pass_embed(pass);
        pass_forward(pass, (Range){0, model->config.layers});
        return;
    }
    ensure(stream == pass->workspace->shared.output, "a pass that looks goes on in place");
    for (int chunk = 0; chunk < share->shape.chunks; chunk++) {
        int stage = pipeline_stage(&share->shape, share->rank, chunk);
        GroupRequest *request = NULL;
        if (stage == 0) {
            pass_embed(pass);
        } else if (!is_here(share, stage - 1)) {
            start(model, model->tensor->links->outputs[stage - 1], GROUP_RECEIVE, stream_elements(pass), stream, 0, &request);
            finish(model, &request);
        }
        pass_forward(pass, chunk_layers(share, model->config.layers, chunk));
        if (stage + 1 < stages_of(share) && !is_here(share, stage + 1)) {
            start(model, model->tensor->links->outputs[stage], GROUP_SEND, stream_elements(pass), stream, 0, &request);
            finish(model, &request);
        }
    }
}

bool stages_has_head(const Model *model) {
    const StageShare *share = &model->options.stages;
    return !cut(share) || is_here(share, stages_of(share) - 1);
}

void stages_share(const Model *model, ElementType type, void *data, int64_t count) {
    const StageShare *share = &model->options.stages;
    if (cut(share) && model->tensor->failed == NULL) {
        model->tensor->failed =
            group_broadcast(model->tensor->links->all, type, data, count, pipeline_rank(&share->shape, stages_of(share) - 1));
    }
}
