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

const char *const toy_kinds[TOY_KINDS] = {"weight", "moment1", "moment2"};

float toy_value(int64_t step, int tensor, int kind, int64_t i) {
    return (float)(philox_u64((uint64_t)step, philox_stream(RANDOM_TEST, (uint64_t)(tensor * 4 + kind)), (uint64_t)i) >> 41);
}

// Tensors lie in the flat array with gaps, each on a cache line.
static int64_t toy_offset(int tensor) {
    int64_t at = 0;
    for (int t = 0; t < tensor; t++) {
        at += (toy_elements(t) + 15) / 16 * 16;
    }
    return at;
}

static Box toy_whole(int tensor) {
    return box_whole(toy_tensors[tensor].dims, toy_tensors[tensor].shape);
}

static int range_boxes(int ranks, int rank, int tensor, Box *out) {
    Range part = shard_part(toy_offset(TOY_TENSORS), ranks, rank);
    int64_t begin = part.begin - toy_offset(tensor), end = part.end - toy_offset(tensor), count = toy_elements(tensor);
    begin = begin > 0 ? begin : 0;
    end = end < count ? end : count;
    Box whole = toy_whole(tensor);
    return begin < end ? boxes_of_range(&whole, 1, begin, end, out) : 0;
}

int toy_boxes(ToySplit split, int ranks, int rank, int tensor, Box *out) {
    if (split == TOY_RANGES) {
        return range_boxes(ranks, rank, tensor, out);
    }
    Box whole = toy_whole(tensor);
    if (whole.dims == 0) {
        *out = whole;
        return rank == ranks - 1;
    }
    int made = 0, d = split == TOY_COLUMNS ? whole.dims - 1 : 0, thirds = split == TOY_FUSED ? 3 : 1;
    for (int third = 0; third < thirds; third++) {
        Range part = range_part(whole.end[d], 1, thirds, third);
        Range own = range_part(part.end - part.begin, 1, ranks, rank);
        Box box = whole;
        box.begin[d] = part.begin + own.begin;
        box.end[d] = part.begin + own.end;
        if (own.begin < own.end) {
            out[made++] = box;
        }
    }
    return made;
}

typedef struct Copy {
    const float *from;
    float *to;
} Copy;

static bool copy_run(void *context, BoxRun run) {
    const Copy *copy = context;
    memcpy(copy->to + run.to, copy->from + run.from, (size_t)run.count * sizeof(float));
    return true;
}

static void toy_fetch(void *context, const CheckpointPart *part, void *to, float *scales) {
    ensure(scales == NULL, "fp32 has no scales");
    int kind = 0;
    while (strcmp(toy_kinds[kind], part->kind) != 0) {
        kind++;
    }
    Box whole = toy_whole(part->tensor);
    Copy copy = {((const Toy *)context)->flat[kind] + toy_offset(part->tensor), to};
    boxes_runs(&whole, 1, part->boxes, part->box_count, copy_run, &copy, NULL);
}

Error *toy_open(Toy *toy, const char *run, ToySplit split, int ranks, int kinds, int keep_last, int64_t keep_every) {
    return toy_open_wanting(toy, run, split, ranks, kinds, &(CheckpointPlan){.keep_last = keep_last, .keep_every = keep_every});
}

bool toy_learned(const json_t *state) {
    return !json_is_true(json_object_get(state, "lost"));
}

Error *toy_open_wanting(Toy *toy, const char *run, ToySplit split, int ranks, int kinds, const CheckpointPlan *wanted) {
    *toy = (Toy){.ranks = ranks, .kinds = kinds, .run = TOY_RUN};
    int64_t total = toy_offset(TOY_TENSORS);
    for (int k = 0; k < TOY_KINDS; k++) {
        toy->flat[k] = memory_zeroed((size_t)total, sizeof(float));
    }
    for (int r = 0; r < ranks; r++) {
        CheckpointPart parts[TOY_TENSORS * TOY_KINDS];
        Box boxes[TOY_TENSORS][BOX_MOST_OF_RANGE];
        int n = 0;
        for (int t = 0; t < TOY_TENSORS; t++) {
            int count = toy_boxes(split, ranks, r, t, boxes[t]);
            for (int k = 0; k < kinds && count > 0; k++) {
                parts[n++] = (CheckpointPart){.tensor = t, .kind = toy_kinds[k], .boxes = boxes[t], .box_count = count};
            }
        }
        CheckpointPlan plan = {.run_folder = run,
                               .rank = r,
                               .ranks = ranks,
                               .keep_last = wanted->keep_last,
                               .keep_every = wanted->keep_every,
                               .learned = wanted->learned,
                               .total_bytes = wanted->total_bytes,
                               .layout = "data",
                               .model = 0x1234,
                               .seed = UINT64_MAX,
                               .tensors = toy_tensors,
                               .tensor_count = TOY_TENSORS,
                               .parts = parts,
                               .part_count = n,
                               .fetch = toy_fetch,
                               .fetch_context = toy};
        TRY(checkpoint_writer_create(&plan, &toy->writers[r]));
    }
    return NULL;
}

void toy_close(Toy *toy) {
    for (int r = 0; r < toy->ranks; r++) {
        checkpoint_writer_destroy(toy->writers[r]);
    }
    for (int k = 0; k < TOY_KINDS; k++) {
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
    for (int t = 0; t < TOY_TENSORS; t++) {
        for (int k = 0; k < TOY_KINDS; k++) {
            for (int64_t i = 0; i < toy_elements(t); i++) {
                toy->flat[k][toy_offset(t) + i] = toy_value(step, t, k, i);
            }
        }
    }
    char history[64];
    CheckpointBlob blob = {"metrics.jsonl", history, (size_t)snprintf(history, sizeof history, "up to %lld", (long long)step)};
    json_t *state = json_pack("{s:I, s:b}", "step", (json_int_t)step, "lost", toy->lost);
    for (int r = 0; r < toy->ranks; r++) {
        checkpoint_writer_begin(toy->writers[r], toy->run, step, state, &blob, 1);
    }
    json_decref(state);
    // The snapshot is taken: training may go on and change everything.
    for (int k = 0; k < TOY_KINDS; k++) {
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
                Box whole = toy_whole(t), boxes[BOX_MOST_OF_RANGE];
                int count = boxes_of_range(&whole, 1, part.begin, part.end, boxes);
                error = checkpoint_read(c, toy_tensors[t].name, toy_kinds[k], boxes, count, values + part.begin);
            }
            for (int64_t i = 0; i < n && error == NULL; i++) {
                same = same && values[i] == toy_value(step, t, k, i);
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
