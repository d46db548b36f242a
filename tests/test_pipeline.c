// parallel/pipeline: every kind over ranks, chunks and micro-batches, walked without a model.
#include "core/memory.h"
#include "parallel/pipeline.h"
#include "tests/support/check.h"

#include <stdio.h>

static const PipelineCosts UNIT = {1, 1, 1, 0};

static PipelineSchedule *pipeline_of(PipelineKind kind, int ranks, int chunks, int micro_batches) {
    PipelineSchedule *schedule = NULL;
    CHECK_OK(pipeline_create(&(PipelineShape){kind, ranks, chunks, micro_batches}, &schedule));
    return schedule;
}

// Calls `check` for every shape with up to 8 ranks (3 chunks where interleaved) and many numbers of micro-batches.
static void each_shape(void (*check)(const PipelineSchedule *schedule)) {
    for (PipelineKind kind = 0; kind < PIPELINE_KINDS; kind++) {
        int most = kind == PIPELINE_INTERLEAVED ? 3 : kind == PIPELINE_ZB_V ? 2 : 1, least = kind == PIPELINE_ZB_V ? 2 : 1;
        for (int ranks = 1; ranks <= 8; ranks++) {
            for (int chunks = least; chunks <= most; chunks++) {
                const int counts[] = {1, ranks - 1, ranks, ranks + 1, 2 * ranks - 1, 2 * ranks, 3 * ranks + 2, 5 * ranks};
                for (int i = 0; i < 8; i++) {
                    PipelineSchedule *schedule = pipeline_of(kind, ranks, chunks, counts[i] > 0 ? counts[i] : 1);
                    check(schedule);
                    pipeline_destroy(schedule);
                }
            }
        }
    }
}

// Every stage is at one place, and every computation is done once, by the rank that has the stage, after what it needs there.
static void check_complete(const PipelineSchedule *s) {
    int stages = s->shape.ranks * s->shape.chunks, count = s->shape.micro_batches;
    int(*done)[3] = memory_zeroed((size_t)(stages * count), sizeof *done);
    bool right = true;
    for (int rank = 0; rank < s->shape.ranks; rank++) {
        for (int chunk = 0; chunk < s->shape.chunks; chunk++) {
            int stage = pipeline_stage(&s->shape, rank, chunk);
            right = right && pipeline_rank(&s->shape, stage) == rank && pipeline_chunk(&s->shape, stage) == chunk;
        }
        for (int i = 0; i < s->rank[rank].count; i++) {
            const Action *a = &s->rank[rank].actions[i];
            int what = a->kind == ACTION_FORWARD           ? 0
                       : a->kind == ACTION_INPUT_GRADIENT  ? 1
                       : a->kind == ACTION_WEIGHT_GRADIENT ? 2
                                                           : -1;
            right = right && (what < 0) == (a->peer >= 0) && a->peer != rank;
            if (what >= 0) {
                int *mine = done[a->stage * count + a->micro_batch];
                right = right && pipeline_rank(&s->shape, a->stage) == rank && mine[what]++ == 0 &&
                        (what == 0 || mine[what - 1] == 1);
            }
        }
    }
    for (int i = 0; i < stages * count; i++) {
        right = right && done[i][0] == 1 && done[i][1] == 1 && done[i][2] == 1;
    }
    if (!CHECK(right)) {
        printf("%s ranks %d chunks %d micro-batches %d\n", pipeline_kind_names[s->shape.kind], s->shape.ranks, s->shape.chunks,
               count);
    }
    free(done);
}
static void test_complete(void) {
    each_shape(check_complete);
}

// Nobody waits for ever, whatever the costs; all that a stage needs has come when it computes.
static void check_dependencies(const PipelineSchedule *s) {
    static const PipelineCosts costs[] = {{1, 1, 1, 0}, {1, 3, 0.2, 0}, {5, 1, 1, 0.3}, {1, 1.1, 0.9, 7}};
    PipelineTimes times;
    for (int i = 0; i < 4; i++) {
        if (!CHECK(pipeline_measure(s, &costs[i], &times))) {
            printf("%s ranks %d chunks %d micro-batches %d: rank %d stands at %d\n", pipeline_kind_names[s->shape.kind],
                   s->shape.ranks, s->shape.chunks, s->shape.micro_batches, times.stuck, times.stuck_at);
        }
    }
    // A computation that needs another rank is preceded by its message.
    bool right = true;
    int stages = s->shape.ranks * s->shape.chunks;
    for (int rank = 0; rank < s->shape.ranks; rank++) {
        const ActionList *list = &s->rank[rank];
        for (int i = 0; i < list->count; i++) {
            const Action *a = &list->actions[i], *before = i > 0 ? a - 1 : NULL;
            bool forward = a->kind == ACTION_FORWARD, back = a->kind == ACTION_INPUT_GRADIENT;
            int from = forward ? a->stage - 1 : back ? a->stage + 1 : -1;
            if (from >= 0 && from < stages && pipeline_rank(&s->shape, from) != rank) {
                right = right && before != NULL &&
                        before->kind == (forward ? ACTION_RECEIVE_OUTPUT : ACTION_RECEIVE_GRADIENT) &&
                        before->stage == a->stage && before->micro_batch == a->micro_batch &&
                        before->peer == pipeline_rank(&s->shape, from);
            }
        }
    }
    CHECK(right);
}
static void test_dependencies(void) {
    each_shape(check_dependencies);
}

// The idle time and what is held, against the formulas of pipeline.h.
static void check_formulas(const PipelineSchedule *s) {
    int ranks = s->shape.ranks, chunks = s->shape.chunks, count = s->shape.micro_batches;
    static const PipelineCosts costs[] = {{1, 1, 1, 0}, {1, 1.25, 0.75, 0}, {2, 2.5, 1.5, 0}};
    for (int i = 0; i < 3 && count >= ranks; i++) {
        double f = costs[i].forward, b = costs[i].input_gradient, w = costs[i].weight_gradient;
        PipelineTimes t;
        CHECK(pipeline_measure(s, &costs[i], &t));
        switch (s->shape.kind) {
        case PIPELINE_1F1B:
            CHECK_NEAR(t.idle, (ranks - 1) * (f + b), 1e-9);
            CHECK_I64(t.held, ranks);
            break;
        case PIPELINE_INTERLEAVED:
            CHECK_NEAR(t.idle, (ranks - 1) * (f + b), 1e-9);
            if (count % ranks == 0 && chunks > 1) {
                int held = 2 * ranks - 1 + (chunks - 1) * ranks;
                CHECK_I64(t.held, held < count * chunks ? held : count * chunks);
            }
            break;
        case PIPELINE_ZB_H1:
            CHECK_NEAR(t.idle, (ranks - 1) * (f + b - w), 1e-9);
            CHECK_I64(t.held, ranks);
            break;
        default:
            CHECK(t.held <= 2 * ranks);
            if (i == 0) {
                CHECK(t.idle >= ranks - 1);
                CHECK(t.idle <= ranks + 1);
            }
            break;
        }
    }
}
static void test_formulas(void) {
    each_shape(check_formulas);
}

// ZB-V reaches its formula where the number of micro-batches is a multiple of the ranks.
static void test_v_form(void) {
    for (int ranks = 1; ranks <= 16; ranks++) {
        for (int times = 1; times <= 4; times++) {
            PipelineSchedule *schedule = pipeline_of(PIPELINE_ZB_V, ranks, 2, ranks * times);
            PipelineTimes t;
            CHECK(pipeline_measure(schedule, &UNIT, &t));
            CHECK_NEAR(t.idle, ranks - 1, 1e-9);
            pipeline_destroy(schedule);
        }
    }
}

// A list with an action taken out, or two exchanged, is seen: somebody waits for ever.
static void test_broken_lists(void) {
    for (PipelineKind kind = 0; kind < PIPELINE_KINDS; kind++) {
        PipelineSchedule *s = pipeline_of(kind, 4, kind == PIPELINE_INTERLEAVED || kind == PIPELINE_ZB_V ? 2 : 1, 8);
        for (int rank = 0; rank < 4; rank++) {
            for (int i = 0; i < s->rank[rank].count; i++) {
                Action *a = &s->rank[rank].actions[i], kept = *a;
                if (a->kind == ACTION_SEND_OUTPUT || a->kind == ACTION_SEND_GRADIENT) {
                    *a = (Action){ACTION_WEIGHT_GRADIENT, a->stage, a->micro_batch, -1};
                    PipelineTimes t;
                    CHECK(!pipeline_measure(s, &UNIT, &t));
                    CHECK(t.stuck >= 0 && t.stuck_at < s->rank[t.stuck].count);
                    *a = kept;
                }
            }
        }
        pipeline_destroy(s);
    }
}

static void test_refused(void) {
    PipelineSchedule *s;
    CHECK_FAILS(pipeline_create(&(PipelineShape){PIPELINE_1F1B, 0, 1, 1}, &s), "all must be 1 or more");
    CHECK_FAILS(pipeline_create(&(PipelineShape){PIPELINE_1F1B, 2, 1, 0}, &s), "all must be 1 or more");
    CHECK_FAILS(pipeline_create(&(PipelineShape){PIPELINE_1F1B, 2, 2, 4}, &s), "schedule 1f1b has 1 stage a rank, not 2");
    CHECK_FAILS(pipeline_create(&(PipelineShape){PIPELINE_ZB_V, 2, 1, 4}, &s), "schedule zb-v has 2 stages a rank, not 1");
    CHECK_FAILS(pipeline_create(&(PipelineShape){PIPELINE_1F1B, 1 << 12, 1, 1 << 12}, &s), "too long");
    CHECK_OK(pipeline_create(&(PipelineShape){PIPELINE_1F1B, 64, 1, 512}, &s));
    pipeline_destroy(s);
    CHECK_OK(pipeline_create(&(PipelineShape){PIPELINE_ZB_V, 64, 2, 512}, &s));
    pipeline_destroy(s);
}

int main(void) {
    RUN(test_complete);
    RUN(test_dependencies);
    RUN(test_formulas);
    RUN(test_v_form);
    RUN(test_broken_lists);
    RUN(test_refused);
    return check_report();
}
