// train/model/placement and weights: rows that no model has yet (cut by rows, by columns and in parts; absent; frozen and
// quantised; updated as whole matrices) go through allocation, a step, a save, and a load into another placement, on ranks that
// share them in different ways, and end as on one rank that has everything.
#include "core/philox.h"
#include "kernels/device.h"
#include "tests/support/check.h"
#include "train/model_checkpoint.h"

#include <math.h>
#include <stdio.h>
#include <unistd.h>

enum { LAYERS = 2, WIDTH = 24, MOST_RANKS = 4 };

static void add(ParamTable *table, const char *name, int64_t layer, int64_t rows, int64_t columns, int parts,
                const ParamPart *part, bool trainable, ParamUpdate update) {
    Param row = {.dims = columns > 0 ? 2 : 1,
                 .shape = {rows, columns > 0 ? columns : 1},
                 .layer = layer,
                 .part_count = parts,
                 .init = INIT_NORMAL,
                 .deviation = 0.5F,
                 .decay = columns > 0,
                 .trainable = trainable,
                 .rate_scale = layer == 0 ? 2 : 1,
                 .update = update};
    snprintf(row.name, sizeof row.name, "%s", name);
    memcpy(row.parts, part, (size_t)parts * sizeof *part);
    params_add(table, &row);
}

static ParamTable make_table(void) {
    ParamTable table = {.layer_count = LAYERS, .token = 0, .position = -1, .final_norm = -1, .final_norm_bias = -1, .head = 8};
    const ParamPart rows = {"", 0, 40, CUT_ROWS, 1, "rows of the vocabulary"};
    const ParamPart fused[] = {{"query", 0, 32, CUT_ROWS, 8, "heads"},
                               {"key", 32, 48, CUT_ROWS, 8, "key/value heads"},
                               {"value", 48, 64, CUT_ROWS, 8, "key/value heads"}};
    const ParamPart columns = {"", 0, WIDTH, CUT_COLUMNS, 8, "heads"}, base = {"", 0, 16, CUT_COLUMNS, 1, "channels"};
    add(&table, "embedding", -1, 40, WIDTH, 1, &rows, true, UPDATE_ELEMENTWISE);
    add(&table, "fused", 0, 64, WIDTH, 3, fused, true, UPDATE_ELEMENTWISE);
    add(&table, "fused.bias", 0, 64, 0, 3, fused, true, UPDATE_ELEMENTWISE);
    add(&table, "norm", 0, 23, 0, 0, fused, true, UPDATE_ELEMENTWISE);
    add(&table, "out", 0, WIDTH, 32, 1, &columns, true, UPDATE_ELEMENTWISE);
    add(&table, "base", 1, 16, 512, 1, &base, false, UPDATE_ELEMENTWISE);
    add(&table, "frozen.norm", 1, WIDTH, 0, 0, fused, false, UPDATE_ELEMENTWISE);
    add(&table, "matrix", 1, WIDTH, WIDTH, 0, fused, true, UPDATE_MATRIX);
    add(&table, "head", LAYERS, 40, WIDTH, 1, &rows, true, UPDATE_ELEMENTWISE);
    return table;
}

// ---- Ranks

// A way to share the table among ranks: stages x tensor ranks x shards, of what `zero` says.
typedef struct Sharing {
    int stages, tensor, shards, zero;
} Sharing;

static int ranks_of(Sharing s) {
    return s.stages * s.tensor * s.shards;
}

static RankShare share_of(Sharing s, int rank) {
    int stage = rank / (s.tensor * s.shards);
    // The first stage ends behind layer 0.
    Range layers = s.stages == 1 ? (Range){-1, LAYERS + 1} : stage == 0 ? (Range){-1, 1} : (Range){1, LAYERS + 1};
    return (RankShare){.tensor = rank / s.shards % s.tensor,
                       .tensor_ranks = s.tensor,
                       .stages = {layers},
                       .stage_count = 1,
                       .shard = rank % s.shards,
                       .shards = s.shards,
                       .zero = s.zero};
}

typedef struct Rank {
    ModelWeights weights;
    StepControl *control;
    void *arena;
    size_t bytes;
} Rank;

typedef struct Ranks {
    Sharing sharing;
    Storage storage;
    Device *device;
    const ParamTable *table;
    Rank rank[MOST_RANKS];
    int count;
} Ranks;

static bool open_rank(Ranks *all, int r) {
    Rank *rank = &all->rank[r];
    Placement placement;
    RankShare share = share_of(all->sharing, r);
    for (int pass = 0; pass < 2; pass++) {
        Layout layout = {.base = rank->arena};
        if (!CHECK_OK(placement_create(all->table, &all->storage, &share, &placement))) {
            return false;
        }
        weights_lay_out(&rank->weights, all->table, placement, &layout);
        rank->control = layout_take(&layout, "control", 1, 1, 1, sizeof *rank->control);
        if (pass == 0) {
            weights_free(&rank->weights);
            rank->bytes = (size_t)layout.used;
            CHECK_OK(device_allocate(all->device, rank->bytes, &rank->arena));
        }
    }
    rank->weights.device = all->device;
    weights_fill(&rank->weights, 0.1);
    return true;
}

static Ranks open_ranks(Device *device, const ParamTable *table, Storage storage, Sharing sharing) {
    Ranks all = {.sharing = sharing, .storage = storage, .device = device, .table = table, .count = ranks_of(sharing)};
    for (int r = 0; r < all.count; r++) {
        ensure(open_rank(&all, r), "rank %d", r);
    }
    return all;
}

static void close_ranks(Ranks *all) {
    for (int r = 0; r < all->count; r++) {
        weights_free(&all->rank[r].weights);
        device_release(all->device, all->rank[r].arena, all->rank[r].bytes);
    }
}

// ---- From logical tensors to ranks and back, through boxes

typedef struct Copy {
    const float *from;
    float *to;
} Copy;

static bool copy_run(void *context, BoxRun run) {
    const Copy *copy = context;
    memcpy(copy->to + run.to, copy->from + run.from, (size_t)run.count * sizeof(float));
    return true;
}

// What a rank can tell of a row in an array: of a weight with a master, the master's part.
static Range told_extent(const ModelWeights *w, WeightsArray array, int32_t row) {
    const Place *place = &w->placement.places[row];
    return array == ARRAY_WEIGHT && w->masters != NULL && place->trainable ? place->owned : weights_extent(w, array, row);
}

enum { MOST_BOXES = PARAM_MOST_PARTS * BOX_MOST_OF_RANGE, MOST_ELEMENTS = 1 << 14 };

// Gathers a row of an array from all ranks, logical; every element must be held, equal where it is held twice.
static void gather(const Ranks *all, WeightsArray array, int32_t row, float *out) {
    const Param *param = &all->table->rows[row];
    Box whole = box_whole(param->dims, param->shape), boxes[MOST_BOXES];
    float local[MOST_ELEMENTS], seen[MOST_ELEMENTS];
    for (int64_t i = 0; i < param->count; i++) {
        out[i] = NAN;
    }
    for (int r = 0; r < all->count; r++) {
        const ModelWeights *w = &all->rank[r].weights;
        const Place *place = &w->placement.places[row];
        Range extent = told_extent(w, array, row);
        int count = boxes_of_range(place->boxes, place->box_count, extent.begin, extent.end, boxes);
        weights_read(w, array, row, extent.begin, extent.end, local);
        memcpy(seen, out, (size_t)param->count * sizeof *seen);
        boxes_runs(boxes, count, &whole, 1, copy_run, &(Copy){local, out}, NULL);
        bool same = true;
        for (int64_t i = 0; i < param->count; i++) {
            same &= isnan(seen[i]) || memcmp(&seen[i], &out[i], sizeof *out) == 0;
        }
        CHECK(same);
    }
}

static float gradient_of(int32_t row, int64_t element) {
    return (float)philox_unit(philox(3, philox_stream(RANDOM_TEST, (uint64_t)row), (uint64_t)element).word[0]) - 0.5F;
}

// Gradients are a function of the logical element, so every sharing must make the same step.
static void set_gradients(const Ranks *all) {
    for (int r = 0; r < all->count; r++) {
        const ModelWeights *w = &all->rank[r].weights;
        for (int32_t row = 0; row < all->table->count; row++) {
            const Param *param = &all->table->rows[row];
            const Place *place = &w->placement.places[row];
            Box whole = box_whole(param->dims, param->shape);
            float logical[MOST_ELEMENTS], local[MOST_ELEMENTS];
            for (int64_t i = 0; i < param->count; i++) {
                logical[i] = gradient_of(row, i);
            }
            boxes_runs(&whole, 1, place->boxes, place->box_count, copy_run, &(Copy){logical, local}, NULL);
            Range extent = weights_extent(w, ARRAY_GRADIENT, row);
            Range all_of_it = {0, place->box_count > 0 && param->trainable ? place->count : 0};
            Range expected = w->placement.share.zero >= 2 ? place->owned : all_of_it;
            CHECK(extent.begin == expected.begin && extent.end == expected.end);
            weights_write((ModelWeights *)(uintptr_t)w, ARRAY_GRADIENT, row, extent.begin, extent.end, local + extent.begin);
        }
    }
}

static void step(Ranks *all, int steps) {
    for (int s = 1; s <= steps; s++) {
        for (int r = 0; r < all->count; r++) {
            Rank *rank = &all->rank[r];
            const ModelWeights *w = &rank->weights;
            StepControl control = {.updates = s,
                                   .learning_rate = 0.01F,
                                   .grad_scale = 1,
                                   .loss_scale = 1,
                                   .correction1 = (float)(1 / (1 - pow(0.9, s))),
                                   .correction2 = (float)(1 / (1 - pow(0.99, s)))};
            device_upload(all->device, rank->control, &control, sizeof control);
            all->device->op->optimizer_update(all->device, &(OptimizerUpdate){.kind = all->storage.optimizer,
                                                                              .segments = w->segments,
                                                                              .segment_count = w->segment_count,
                                                                              .count = w->placement.state,
                                                                              .beta1 = 0.9F,
                                                                              .beta2 = 0.99F,
                                                                              .epsilon = 1e-8F,
                                                                              .control = rank->control,
                                                                              .grads = w->grads,
                                                                              .masters = w->masters,
                                                                              .weights = w->weights,
                                                                              .moment_type = all->storage.moments,
                                                                              .moment1 = w->moment1,
                                                                              .moment2 = w->moment2,
                                                                              .scale1 = w->scale1,
                                                                              .scale2 = w->scale2,
                                                                              .seed = 5});
        }
    }
    CHECK_OK(device_finish(all->device));
}

// With shards, what a rank does not own has not moved; its owner tells it (an all-gather, when there are ranks).
static void share_weights(Ranks *all) {
    if (all->sharing.shards == 1 || all->sharing.zero >= 3) {
        return;
    }
    for (int32_t row = 0; row < all->table->count; row++) {
        for (int r = 0; r < all->count; r++) {
            Range owned = all->rank[r].weights.placement.places[row].owned;
            float values[MOST_ELEMENTS];
            weights_read(&all->rank[r].weights, ARRAY_WEIGHT, row, owned.begin, owned.end, values);
            for (int other = 0; other < all->count && owned.begin < owned.end; other++) {
                if (other != r && other / all->sharing.shards == r / all->sharing.shards) {
                    weights_write(&all->rank[other].weights, ARRAY_WEIGHT, row, owned.begin, owned.end, values);
                }
            }
        }
    }
}

static bool has_moment(const Ranks *all, WeightsArray array, int32_t row) {
    const Param *param = &all->table->rows[row];
    bool second = all->storage.optimizer == OPTIMIZER_ADAMW && param->update == UPDATE_ELEMENTWISE;
    return param->trainable && (array == ARRAY_MOMENT1 || second);
}

// The same bits in all arrays, row by row.
static void check_equal(const char *what, const Ranks *ours, const Ranks *theirs) {
    for (int32_t row = 0; row < ours->table->count; row++) {
        for (WeightsArray array = ARRAY_WEIGHT; array <= ARRAY_MOMENT2; array++) {
            float a[MOST_ELEMENTS], b[MOST_ELEMENTS];
            const Param *param = &ours->table->rows[row];
            gather(ours, array, row, a);
            gather(theirs, array, row, b);
            bool expected = array == ARRAY_WEIGHT || has_moment(ours, array, row), same = true;
            for (int64_t i = 0; i < param->count; i++) {
                same &= expected ? a[i] == b[i] && !isnan(a[i]) : isnan(a[i]) && isnan(b[i]);
            }
            if (!CHECK(same)) {
                printf("  %s: %s of %s\n", what, weights_array_name(array), param->name);
            }
        }
    }
}

static const Sharing one_rank = {1, 1, 1, 0};
static const Sharing sharings[] = {{1, 2, 1, 0}, {2, 1, 1, 0}, {2, 2, 1, 0}, {1, 1, 2, 1}, {1, 1, 3, 1}, {1, 2, 2, 1},
                                   {1, 1, 3, 2}, {1, 2, 2, 2}, {1, 1, 2, 3}, {1, 1, 3, 3}, {1, 2, 2, 3}, {2, 1, 2, 3}};
enum { SHARINGS = sizeof sharings / sizeof *sharings };

static Storage storage_for(Device *device) {
    return (Storage){.type = device->type,
                     .frozen_type = TYPE_CODE8,
                     .learns = true,
                     .masters = device->type != TYPE_FP32,
                     .optimizer = OPTIMIZER_ADAMW};
}

// ---- Tests

// Rows are updated as one only where what they are updated with is the same.
static void check_segments(const Placement *p, const ParamTable *table) {
    UpdateSegment *segments;
    int64_t count = placement_segments(p, table, 0.1, &segments), at = 0;
    for (int32_t i = 0; i < table->count; i++) {
        const Param *row = &table->rows[i];
        if (!row->trainable || row->update != UPDATE_ELEMENTWISE) {
            continue;
        }
        int64_t begin = p->places[i].gradient_at;
        while (at < count && segments[at].gradient + segments[at].count <= begin) {
            at++;
        }
        if (!CHECK(at < count && segments[at].gradient <= begin && segments[at].rate_scale == row->rate_scale &&
                   segments[at].weight_decay == (row->decay ? 0.1F : 0))) {
            printf("  %s\n", row->name);
        }
    }
    CHECK(count < table->count - 3);  // of those that could, some join: three rows are in no segment
    free(segments);
}

static void test_structure(void) {
    ParamTable table = make_table();
    Storage storage = {.type = TYPE_FP32, .frozen_type = TYPE_CODE8, .learns = true, .optimizer = OPTIMIZER_ADAMW};
    Placement p;
    RankShare share = rank_share_whole(&table);
    CHECK_OK(placement_create(&table, &storage, &share, &p));
    for (int32_t i = 0; i < table.count; i++) {
        CHECK(p.places[i].box_count == 1 && p.places[i].count == table.rows[i].count);
        CHECK(p.places[i].trainable == table.rows[i].trainable);
    }
    CHECK(p.places[5].type == TYPE_CODE8 && p.places[6].type == TYPE_FP32 && p.weight_scales == 16 * 512 / DATA_TYPE_BLOCK);
    CHECK(p.second_state > 0 && p.state == p.second_state + WIDTH * WIDTH);
    CHECK(p.gradients == p.state);
    // Frozen and absent rows have nothing to point at; what points anywhere points inside.
    char weights[1], grads[1];
    CHECK(placement_weight(&p, -1, weights) == NULL && placement_gradient(&p, 5, (float *)(void *)grads) == NULL);
    CHECK(placement_state(&p, 5, grads, 4) == NULL && placement_weight(&p, 0, NULL) == NULL);
    // The flat gradients end where the last row's do, in the order of the table.
    int64_t from = p.gradients;
    for (int32_t i = table.count - 1; i >= 0; i--) {
        int64_t here = placement_gradients_from(&p, i);
        CHECK(here <= from && from - here >= (table.rows[i].trainable ? table.rows[i].count : 0));
        from = here;
    }
    CHECK_I64(from, 0);
    check_segments(&p, &table);
    placement_free(&p);
    // A stage without a row: no boxes, no memory.
    share.stages[0] = (Range){1, 2};
    CHECK_OK(placement_create(&table, &storage, &share, &p));
    CHECK(p.places[0].box_count == 0 && placement_weight(&p, 0, weights) == NULL && p.places[7].count == WIDTH * WIDTH);
    CHECK_I64(p.gradients, WIDTH * WIDTH);
    placement_free(&p);
    // The last stage of a model with a tied embedding: a copy, whose gradient lies behind the others, and that nobody updates,
    // counts, saves or hands on. The first stage has the row itself.
    table.head = 0;
    share.stages[0] = (Range){1, LAYERS + 1};
    CHECK_OK(placement_create(&table, &storage, &share, &p));
    const Place *copy = &p.places[0];
    float gradients[1];
    WeightRun *runs;
    CHECK(copy->copy && copy->count == 40 * WIDTH && copy->owned.end == 0 && placement_weight(&p, 0, weights) != NULL);
    CHECK(p.copied >= copy->count && placement_gradient(&p, 0, gradients) == gradients + p.gradients);
    CHECK_I64(p.gradients, WIDTH * WIDTH + 40 * WIDTH);
    CHECK(placement_saved(&p, &table, 0, 1, 0).end == 0 && placement_saved(&p, &table, 8, 1, 0).end == 40 * WIDTH);
    // The matrix and the row behind it, which lie side by side.
    CHECK_I64(placement_owned(&p, 0, weights, &runs), 1);
    CHECK(runs[0].begin == placement_weight(&p, 7, weights));
    free(runs);
    placement_free(&p);
    share.stages[0] = (Range){-1, 1};
    CHECK_OK(placement_create(&table, &storage, &share, &p));
    CHECK(!p.places[0].copy && p.copied == 0 && p.places[0].owned.end == 40 * WIDTH);
    placement_free(&p);
    // A rank with the first and the last stage needs no copy.
    share.stages[1] = (Range){1, LAYERS + 1};
    share.stage_count = 2;
    CHECK_OK(placement_create(&table, &storage, &share, &p));
    CHECK(!p.places[0].copy && p.places[8].count == 40 * WIDTH && p.elements == table.elements);
    placement_free(&p);
    params_free(&table);
}

static void test_refusals(void) {
    ParamTable table = make_table();
    Storage storage = {.type = TYPE_FP32, .frozen_type = TYPE_FP32, .learns = true};
    RankShare share = rank_share_whole(&table);
    Placement p;
    share.tensor_ranks = 3;
    CHECK_FAILS(placement_create(&table, &storage, &share, &p), "fused: 4 heads cannot be divided among 3");
    share.tensor_ranks = 4;
    CHECK_FAILS(placement_create(&table, &storage, &share, &p), "fused: 2 key/value heads cannot be divided among 4");
    // A cut between quantised values goes between blocks, whatever the type's owner: weight or moment.
    share.tensor_ranks = 2;
    storage.moments = MOMENT_8BIT;
    CHECK_FAILS(placement_create(&table, &storage, &share, &p),
                "embedding: its cut among 2 tensor-parallel ranks goes through");
    params_free(&table);
    table = make_table();
    table.rows[5].shape[1] = 510;
    storage = (Storage){.type = TYPE_FP32, .frozen_type = TYPE_CODE8, .learns = true};
    CHECK_FAILS(placement_create(&table, &storage, &share, &p), "base: its cut among 2 tensor-parallel ranks goes through");
    // On either side of the cut.
    table.rows[5].shape[1] = 3 * DATA_TYPE_BLOCK;
    for (share.tensor = 0; share.tensor < share.tensor_ranks; share.tensor++) {
        CHECK_FAILS(placement_create(&table, &storage, &share, &p), "base: its cut among 2 tensor-parallel ranks goes through");
    }
    params_free(&table);
}

// Each sharing begins with the same values and makes the same steps as one rank.
static void check_steps(Device *device, MomentType moments, bool masters, int first, int last) {
    ParamTable table = make_table();
    Storage storage = storage_for(device);
    storage.moments = moments;
    storage.masters &= masters;
    Ranks one = open_ranks(device, &table, storage, one_rank);
    for (int begun = 0; begun < 2; begun++) {
        for (int i = first; i < last; i++) {
            char what[64];
            snprintf(what, sizeof what, "%d stages, %d tensor, %d shards, zero %d%s", sharings[i].stages, sharings[i].tensor,
                     sharings[i].shards, sharings[i].zero, begun ? ", stepped" : "");
            Ranks other = open_ranks(device, &table, storage, sharings[i]);
            for (int r = 0; r < other.count; r++) {
                weights_initialise(&other.rank[r].weights, 7);
            }
            if (begun) {
                set_gradients(&other);
                step(&other, 3);
                share_weights(&other);
            }
            if (i == first) {
                weights_initialise(&one.rank[0].weights, 7);
                if (begun) {
                    set_gradients(&one);
                    step(&one, 3);
                }
            }
            check_equal(what, &other, &one);
            close_ranks(&other);
        }
    }
    // The step moved what it should, and nothing else.
    float before[MOST_ELEMENTS], after[MOST_ELEMENTS];
    Ranks fresh = open_ranks(device, &table, storage, one_rank);
    weights_initialise(&fresh.rank[0].weights, 7);
    for (int32_t row = 0; row < table.count; row++) {
        gather(&fresh, ARRAY_WEIGHT, row, before);
        gather(&one, ARRAY_WEIGHT, row, after);
        bool moves = table.rows[row].trainable && table.rows[row].update == UPDATE_ELEMENTWISE;
        CHECK(moves == (memcmp(before, after, (size_t)table.rows[row].count * sizeof *after) != 0));
    }
    close_ranks(&fresh);
    close_ranks(&one);
    params_free(&table);
}

static void test_steps(void) {
    Device *device;
    CHECK_OK(device_open_cpu(1, NULL, &device));
    check_steps(device, MOMENT_FP32, true, 0, SHARINGS);
    // Blocks of 8-bit moments are a row's own, so optimizer shards and stages change nothing.
    check_steps(device, MOMENT_8BIT, true, 3, 5);
    check_steps(device, MOMENT_8BIT, true, 8, 10);
    check_steps(device, MOMENT_8BIT, true, 1, 2);
    device_close(device);
}

// Masters are sharded with the moments; stochastic rounding is a function of the logical element.
static void test_steps_in_16_bits(void) {
    if (!device_built(DEVICE_SIMULATED)) {
        return;
    }
    Device *device;
    CHECK_OK(device_open_card(DEVICE_SIMULATED, 0, TYPE_BF16, 1, &device));
    check_steps(device, MOMENT_FP32, true, 4, 5);
    check_steps(device, MOMENT_FP32, false, 3, 4);
    check_steps(device, MOMENT_FP32, true, 9, 10);
    check_steps(device, MOMENT_FP32, false, 8, 9);
    check_steps(device, MOMENT_8BIT, false, 1, 2);
    device_close(device);
}

// ---- Through a checkpoint

static CheckpointEvent save(const Ranks *all, const char *run) {
    CheckpointWriter *writers[MOST_RANKS];
    ModelParts parts[MOST_RANKS];
    json_t *state = json_object();
    for (int r = 0; r < all->count; r++) {
        // Ranks that differ in their shard alone hold equal weights: each saves what it owns of them.
        int shards = all->sharing.shards, shard = r % shards;
        parts[r] = model_parts(&all->rank[r].weights, shards, shard);
        CheckpointPlan plan = {.run_folder = run,
                               .rank = r,
                               .ranks = all->count,
                               .keep_last = 1,
                               .layout = "test",
                               .tensors = parts[r].tensors,
                               .tensor_count = all->table->count,
                               .parts = parts[r].parts,
                               .part_count = parts[r].count,
                               .fetch = model_parts_fetch,
                               .fetch_context = &parts[r]};
        CHECK_OK(checkpoint_writer_create(&plan, &writers[r]));
        checkpoint_writer_begin(writers[r], 1, 1, state, NULL, 0);
    }
    CheckpointEvent event = CHECKPOINT_NOTHING;
    while (event == CHECKPOINT_NOTHING) {
        double most[CHECKPOINT_FLAGS] = {0}, flags[CHECKPOINT_FLAGS];
        for (int r = 0; r < all->count; r++) {
            checkpoint_writer_flags(writers[r], flags);
            for (int f = 0; f < CHECKPOINT_FLAGS; f++) {
                most[f] = flags[f] > most[f] ? flags[f] : most[f];
            }
        }
        for (int r = 0; r < all->count; r++) {
            event = checkpoint_writer_advance(writers[r], most);
        }
        usleep(200);
    }
    for (int r = 0; r < all->count; r++) {
        checkpoint_writer_destroy(writers[r]);
        model_parts_free(&parts[r]);
    }
    json_decref(state);
    return event;
}

// What all ranks hold between them, compared as the trainer does it.
static Error *compare_sums(const Ranks *all, const Checkpoint *checkpoint, DigestShare *sums) {
    int64_t count = model_share_count(all->table);
    DigestShare own[(ARRAY_MOMENT2 + 1) * 16];
    ensure(count <= (int64_t)(sizeof own / sizeof *own), "%lld shares", (long long)count);
    memset(sums, 0, (size_t)count * sizeof *sums);
    for (int r = 0; r < all->count; r++) {
        int shards = all->sharing.shards;
        ModelParts parts = model_parts(&all->rank[r].weights, shards, r % shards);
        model_digest_shares(checkpoint, &parts, own);
        model_add_shares(all->table, sums, own);
        model_parts_free(&parts);
    }
    return model_compare_shares(checkpoint, all->table, sums);
}

// The part of a row that the last of its savers saves.
static SavedPart last_saved(const Ranks *all, WeightsArray array, int32_t row, int *rank) {
    int shards = all->sharing.shards;
    SavedPart found = {.row = -1};
    for (int r = 0; r < all->count; r++) {
        SavedPart *saved;
        int count = weights_saved(&all->rank[r].weights, shards, r % shards, &saved);
        for (int i = 0; i < count; i++) {
            if (saved[i].row == row && saved[i].array == array) {
                found = saved[i];
                *rank = r;
            }
        }
        free(saved);
    }
    ensure(found.row == row, "nobody saves row %d", row);
    return found;
}

// Every value that was saved is in a sum once, and a value that a single rank got wrong is found, in every array.
static void check_sums(Ranks *all, const Checkpoint *checkpoint) {
    DigestShare sums[(ARRAY_MOMENT2 + 1) * 16];
    CHECK_OK(compare_sums(all, checkpoint, sums));
    for (int32_t row = 0; row < all->table->count; row++) {
        for (WeightsArray array = ARRAY_WEIGHT; array <= ARRAY_MOMENT2; array++) {
            const Param *param = &all->table->rows[row];
            bool saved = checkpoint_has(checkpoint, param->name, weights_array_name(array));
            CHECK_I64(sums[array * all->table->count + row].count, saved ? param->count : 0);
            if (!saved) {
                continue;
            }
            int r = 0;
            SavedPart last = last_saved(all, array, row, &r);
            int64_t begin = (last.end - 1 - last.begin) / DATA_TYPE_BLOCK * DATA_TYPE_BLOCK + last.begin, end = last.end;
            float right[DATA_TYPE_BLOCK], wrong[DATA_TYPE_BLOCK];
            ModelWeights *w = &all->rank[r].weights;
            weights_read(w, array, row, begin, end, right);
            memcpy(wrong, right, sizeof wrong);
            wrong[end - begin - 1] = right[end - begin - 1] != 0 ? 0 : 1;
            weights_write(w, array, row, begin, end, wrong);
            Error *error = compare_sums(all, checkpoint, sums);
            char expected[96];
            snprintf(expected, sizeof expected, "%s %s was not loaded as it was saved", weights_array_name(array), param->name);
            CHECK_FAILS(error, expected);
            weights_write(w, array, row, begin, end, right);
        }
    }
    CHECK_OK(compare_sums(all, checkpoint, sums));
}

// What ranks that share in one way have after three steps is what ranks that share in another have after loading it.
static void check_save(Device *device, MomentType moments, Sharing from, Sharing to) {
    ParamTable table = make_table();
    Storage storage = storage_for(device);
    storage.moments = moments;
    Ranks saved = open_ranks(device, &table, storage, from), loaded = open_ranks(device, &table, storage, to);
    const char *run = check_folder();
    for (int r = 0; r < saved.count; r++) {
        weights_initialise(&saved.rank[r].weights, 7);
    }
    set_gradients(&saved);
    step(&saved, 3);
    share_weights(&saved);
    CHECK(save(&saved, run) == CHECKPOINT_COMMITTED);
    char *path;
    Checkpoint *checkpoint;
    CHECK_OK(checkpoint_find(run, INT64_MAX, 0, &path, NULL));
    CHECK_OK(checkpoint_open(path, true, &checkpoint));
    for (int r = 0; r < loaded.count; r++) {
        CHECK_OK(model_load(checkpoint, &loaded.rank[r].weights, true));
    }
    char what[96];
    snprintf(what, sizeof what, "saved by %d x %d x %d (%d), loaded by %d x %d x %d (%d)", from.stages, from.tensor,
             from.shards, from.zero, to.stages, to.tensor, to.shards, to.zero);
    check_equal(what, &loaded, &saved);
    check_sums(&loaded, checkpoint);
    checkpoint_close(checkpoint);
    free(path);
    close_ranks(&saved);
    close_ranks(&loaded);
    params_free(&table);
}

static void test_checkpoints(void) {
    Device *device;
    CHECK_OK(device_open_cpu(1, NULL, &device));
    for (int i = 0; i < SHARINGS; i++) {
        check_save(device, MOMENT_FP32, sharings[i], one_rank);
        check_save(device, MOMENT_FP32, one_rank, sharings[i]);
        check_save(device, MOMENT_FP32, sharings[i], sharings[(i + 2) % SHARINGS]);
    }
    // Codes and their scales go as they are.
    check_save(device, MOMENT_8BIT, sharings[4], sharings[1]);
    check_save(device, MOMENT_8BIT, one_rank, sharings[3]);
    check_save(device, MOMENT_8BIT, sharings[9], sharings[3]);
    device_close(device);
}

// A rank that owns a part of the masters holds the rest in 16 bits alone, which is not what was saved, and right.
static void test_checkpoints_in_16_bits(void) {
    if (!device_built(DEVICE_SIMULATED)) {
        return;
    }
    Device *device;
    CHECK_OK(device_open_card(DEVICE_SIMULATED, 0, TYPE_BF16, 1, &device));
    for (int i = 2; i < SHARINGS; i++) {
        check_save(device, MOMENT_FP32, one_rank, sharings[i]);
        check_save(device, MOMENT_FP32, sharings[i], one_rank);
        check_save(device, MOMENT_FP32, sharings[i], sharings[(i + 2) % SHARINGS]);
    }
    device_close(device);
}

// What ranks with equal placements save between them is everything, once, and about even.
static void test_saved(void) {
    ParamTable table = make_table();
    Device *device;
    CHECK_OK(device_open_cpu(1, NULL, &device));
    for (int eight = 0; eight < 2; eight++) {
        Storage storage = storage_for(device);
        storage.moments = eight ? MOMENT_8BIT : MOMENT_FP32;
        Ranks one = open_ranks(device, &table, storage, one_rank);
        for (int ranks = 1; ranks <= 5; ranks++) {
            int64_t ends[9 * ARRAY_COUNT] = {0};
            for (int r = 0; r < ranks; r++) {
                SavedPart *parts;
                int count = weights_saved(&one.rank[0].weights, ranks, r, &parts);
                for (int i = 0; i < count; i++) {
                    int64_t *end = &ends[parts[i].row * ARRAY_COUNT + (int)parts[i].array];
                    CHECK_I64(parts[i].begin, *end);
                    CHECK(parts[i].begin % DATA_TYPE_BLOCK == 0 && parts[i].begin < parts[i].end);
                    *end = parts[i].end;
                }
                free(parts);
            }
            for (int32_t row = 0; row < table.count; row++) {
                for (WeightsArray array = ARRAY_WEIGHT; array <= ARRAY_MOMENT2; array++) {
                    bool there = array == ARRAY_WEIGHT || has_moment(&one, array, row);
                    CHECK_I64(ends[row * ARRAY_COUNT + (int)array], there ? table.rows[row].count : 0);
                }
            }
        }
        close_ranks(&one);
    }
    device_close(device);
    params_free(&table);
}

int main(void) {
    RUN(test_structure);
    RUN(test_refusals);
    RUN(test_steps);
    RUN(test_steps_in_16_bits);
    RUN(test_saved);
    RUN(test_checkpoints);
    RUN(test_checkpoints_in_16_bits);
    return check_report();
}
