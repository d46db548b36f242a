// A small made-up model and its writers: see checkpoints.h.
#include "tests/support/checkpoints.h"

#include "core/philox.h"
#include "parallel/sharding.h"

#include <stdio.h>
#include <unistd.h>

const CheckpointTensor toy_tensors[TOY_TENSORS] = {
    {"embedding", 2, {37, 16}}, {"block.0.weight", 2, {16, 50}},  {"block.0.bias", 1, {16}},
    {"scale", 0, {0}},          {"block.1.weight", 3, {3, 5, 7}}, {"head", 2, {1, 1000}},
};

int64_t toy_elements(int tensor) {
    int64_t n = 1;
    for (int d = 0; d < toy_tensors[tensor].dims; d++) {
        n *= toy_tensors[tensor].shape[d];
    }
    return n;
}

float toy_value(int64_t step, int tensor, SliceKind kind, int64_t i) {
    return (float)(philox_u64((uint64_t)step, philox_stream(RANDOM_TEST, (uint64_t)(tensor * 4 + (int)kind)), (uint64_t)i) >>
                   41);
}

// Tensors lie in the flat array with gaps, each on a cache line.
static int64_t toy_layout(ShardTensor out[TOY_TENSORS]) {
    int64_t at = 0;
    for (int t = 0; t < TOY_TENSORS; t++) {
        out[t] = (ShardTensor){at, toy_elements(t)};
        at += (toy_elements(t) + 15) / 16 * 16;
    }
    return at;
}

Error *toy_open(Toy *toy, const char *run, int ranks, int kinds, int keep_last, int64_t keep_every) {
    *toy = (Toy){.ranks = ranks, .kinds = kinds};
    ShardTensor layout[TOY_TENSORS];
    int64_t total = toy_layout(layout);
    for (int k = 0; k < SLICE_KINDS; k++) {
        toy->flat[k] = memory_zeroed((size_t)total, sizeof(float));
    }
    for (int r = 0; r < ranks; r++) {
        CheckpointSlice slices[TOY_TENSORS * SLICE_KINDS];
        ShardPiece *pieces;
        int n = 0, count = shard_pieces(layout, TOY_TENSORS, shard_part(total, ranks, r), &pieces);
        for (int i = 0; i < count * kinds; i++) {
            const ShardPiece *p = &pieces[i / kinds];
            SliceKind kind = (SliceKind)(i % kinds);
            slices[n++] = (CheckpointSlice){p->tensor, kind, p->begin, p->end, toy->flat[kind] + p->flat};
        }
        free(pieces);
        CheckpointPlan plan = {.run_folder = run,
                               .rank = r,
                               .ranks = ranks,
                               .keep_last = keep_last,
                               .keep_every = keep_every,
                               .layout = "data",
                               .model = 0x1234,
                               .seed = UINT64_MAX,
                               .tensors = toy_tensors,
                               .tensor_count = TOY_TENSORS,
                               .slices = slices,
                               .slice_count = n};
        TRY(checkpoint_writer_create(&plan, &toy->writers[r]));
    }
    return NULL;
}

void toy_close(Toy *toy) {
    for (int r = 0; r < toy->ranks; r++) {
        checkpoint_writer_destroy(toy->writers[r]);
    }
    for (int k = 0; k < SLICE_KINDS; k++) {
        free(toy->flat[k]);
    }
    *toy = (Toy){0};
}

// What the all-reduce of the flags and the step after it do on every rank.
static CheckpointEvent advance_all(Toy *toy) {
    double most[CHECKPOINT_FLAGS] = {0}, flags[CHECKPOINT_FLAGS];
    for (int r = 0; r < toy->ranks; r++) {
        checkpoint_writer_flags(toy->writers[r], flags);
        for (int f = 0; f < CHECKPOINT_FLAGS; f++) {
            most[f] = flags[f] > most[f] ? flags[f] : most[f];
        }
    }
    CheckpointEvent event = CHECKPOINT_NOTHING;
    for (int r = 0; r < toy->ranks; r++) {
        CheckpointEvent own = checkpoint_writer_advance(toy->writers[r], most);
        ensure(r == 0 || own == event, "ranks disagree");
        event = own;
    }
    return event;
}

CheckpointEvent toy_save(Toy *toy, int64_t step) {
    ShardTensor layout[TOY_TENSORS];
    toy_layout(layout);
    for (int t = 0; t < TOY_TENSORS; t++) {
        for (int k = 0; k < SLICE_KINDS; k++) {
            for (int64_t i = 0; i < toy_elements(t); i++) {
                toy->flat[k][layout[t].offset + i] = toy_value(step, t, (SliceKind)k, i);
            }
        }
    }
    char history[64];
    CheckpointBlob blob = {"metrics.jsonl", history, (size_t)snprintf(history, sizeof history, "up to %lld", (long long)step)};
    json_t *state = json_pack("{s:I}", "step", (json_int_t)step);
    for (int r = 0; r < toy->ranks; r++) {
        checkpoint_writer_begin(toy->writers[r], step, state, &blob, 1);
    }
    json_decref(state);
    // The snapshot is taken: training may go on and change everything.
    for (int k = 0; k < SLICE_KINDS; k++) {
        toy->flat[k][0] = -1;
    }
    CheckpointEvent event;
    while ((event = advance_all(toy)) == CHECKPOINT_NOTHING) {
        usleep(200);
    }
    ensure(checkpoint_writer_idle(toy->writers[0]), "not idle after the end");
    return event;
}

bool toy_matches(const char *path, int kinds, int parts) {
    Checkpoint *c;
    Error *error = checkpoint_open(path, true, &c);
    if (error != NULL) {
        fprintf(stderr, "%s\n", error->message);
        error_free(error);
        return false;
    }
    const CheckpointInfo *info = checkpoint_info(c);
    int64_t step = info->step;
    bool same = info->tensor_count == TOY_TENSORS && info->seed == UINT64_MAX && info->model == 0x1234 &&
                json_integer_value(json_object_get(info->state, "step")) == step;
    for (int t = 0; t < TOY_TENSORS && same; t++) {
        int64_t n = toy_elements(t);
        float *values = memory_new((size_t)n, sizeof *values);
        for (int k = 0; k < kinds; k++) {
            for (int p = 0; p < parts && error == NULL; p++) {
                Range part = range_part(n, 1, parts, p);
                error = checkpoint_read(c, toy_tensors[t].name, (SliceKind)k, part.begin, part.end, values + part.begin);
            }
            for (int64_t i = 0; i < n && error == NULL; i++) {
                same = same && values[i] == toy_value(step, t, (SliceKind)k, i);
            }
        }
        free(values);
    }
    Buffer blob = {0};
    char history[64];
    snprintf(history, sizeof history, "up to %lld", (long long)step);
    if (error == NULL) {
        error = checkpoint_blob(c, "metrics.jsonl", &blob);
    }
    same = same && error == NULL && strcmp(blob.data, history) == 0;
    if (error != NULL) {
        fprintf(stderr, "%s\n", error->message);
        error_free(error);
    }
    buffer_free(&blob);
    checkpoint_close(c);
    return same;
}
