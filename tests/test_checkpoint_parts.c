// What checkpoints hold: any boxes by any ranks, any element type, digests that no layout changes, bases, and version 1.
#include "core/digest.h"
#include "core/durable.h"
#include "core/half.h"
#include "core/philox.h"
#include "kernels/quantize.h"
#include "tests/support/check.h"
#include "tests/support/checkpoints.h"
#include "tests/support/models.h"
#include "train/checkpoint/part.h"
#include "train/checkpoint/steps.h"
#include "train/model_checkpoint.h"

#include <stdio.h>
#include <unistd.h>

static char *step_path(const char *run, int64_t step) {
    char *folder = steps_folder(run), *path = steps_path(folder, step);
    free(folder);
    return path;
}

// ---- digests ----

// The formula of digest.h and docs/checkpoints.md, one element at a time.
static uint64_t naive_mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
}

static uint64_t naive(int64_t index, float value) {
    return naive_mix((uint64_t)index * 0x9E3779B97F4A7C15 + (uint64_t)float_to_bits(value) * 0xD1B54A32D192ED03);
}

static uint64_t toy_digest(int64_t step, int tensor, int kind) {
    uint64_t sum = 0;
    for (int64_t i = 0; i < toy_elements(tensor); i++) {
        sum += naive(i, toy_value(step, tensor, kind, i));
    }
    return sum;
}

static void test_digest_values(void) {
    // Pinned: checkpoints that exist hold these.
    CHECK(digest_run(0, (float[]){0}, 1) == 0);
    CHECK(digest_run(0, (float[]){1}, 1) == 0x98E2938694897102);
    CHECK(digest_run(1, (float[]){-0.0f}, 1) == naive(1, -0.0f) && naive(1, -0.0f) != naive(1, 0));
    enum { ROWS = 5, COLUMNS = 37 };
    static const int64_t shape[] = {ROWS, COLUMNS};
    float values[ROWS * COLUMNS];
    uint64_t sum = 0;
    for (int i = 0; i < ROWS * COLUMNS; i++) {
        values[i] = (float)(i * i) - 100.5f;
        sum += naive(i, values[i]);
    }
    Box whole = box_whole(2, shape);
    CHECK(digest_boxes(2, shape, &whole, 1, values) == sum);
    // Two values exchanged, and one changed in its last bit.
    float kept = values[7];
    values[7] = values[100];
    values[100] = kept;
    CHECK(digest_boxes(2, shape, &whole, 1, values) != sum);
    values[100] = values[7];
    values[7] = float_from_bits(float_to_bits(kept) ^ 1);
    CHECK(digest_boxes(2, shape, &whole, 1, values) != sum);
}

// Whoever writes which boxes: the same digests, the same fingerprint, and they are those of the naive loop.
static void test_digests(void) {
    uint64_t fingerprint = 0;
    for (ToySplit split = 0; split < TOY_SPLITS; split++) {
        for (int ranks = 1; ranks <= 5; ranks += 2) {
            const char *run = check_folder();
            Toy toy;
            CHECK_OK(toy_open(&toy, run, split, ranks, 3, 1, 0));
            CHECK(toy_save(&toy, 9) == CHECKPOINT_COMMITTED);
            toy_close(&toy);
            char *path = step_path(run, 9);
            Checkpoint *c;
            CHECK_OK(checkpoint_open(path, true, &c));
            for (int t = 0; t < TOY_TENSORS; t++) {
                for (int k = 0; k < TOY_KINDS; k++) {
                    uint64_t found = 0;
                    CHECK(checkpoint_digest(c, toy_tensors[t].name, toy_kinds[k], &found) && found == toy_digest(9, t, k));
                }
            }
            uint64_t found = 0;
            CHECK(checkpoint_fingerprint(c, &found) && (fingerprint == 0 || found == fingerprint));
            CHECK(!checkpoint_digest(c, "tail", "weight", &found) && !checkpoint_digest(c, "head", "moment3", &found));
            fingerprint = found;
            checkpoint_close(c);
            free(path);
        }
    }
}

// ---- reading ----

// Boxes that fit no rank's: every corner of every tensor of every layout, and lists of several.
static void check_reads(Checkpoint *c, int64_t step) {
    uint64_t draw = 0;
    for (int t = 0; t < TOY_TENSORS; t++) {
        const CheckpointTensor *tensor = &toy_tensors[t];
        for (int round = 0; round < 40; round++) {
            Box boxes[2];
            int count = tensor->dims > 0 ? 2 : 1;
            for (int b = 0; b < count; b++) {
                boxes[b] = box_whole(tensor->dims, tensor->shape);
                for (int d = 0; d < tensor->dims; d++) {
                    int64_t extent = tensor->shape[d];
                    boxes[b].begin[d] = (int64_t)(philox_u64(5, 1, draw++) % (uint64_t)extent);
                    boxes[b].end[d] =
                        boxes[b].begin[d] + 1 + (int64_t)(philox_u64(5, 1, draw++) % (uint64_t)(extent - boxes[b].begin[d]));
                }
            }
            float *values = memory_new((size_t)boxes_count(boxes, count), sizeof *values);
            CHECK_OK(checkpoint_read(c, tensor->name, "moment1", boxes, count, values));
            bool same = true;
            int64_t at = 0;
            for (int b = 0; b < count; b++) {
                for (int64_t i = 0; i < box_count(&boxes[b]); i++) {
                    int64_t left = i, index = 0, stride = 1;
                    for (int d = tensor->dims - 1; d >= 0; d--) {
                        int64_t extent = boxes[b].end[d] - boxes[b].begin[d];
                        index += (boxes[b].begin[d] + left % extent) * stride;
                        left /= extent;
                        stride *= tensor->shape[d];
                    }
                    same = same && values[at++] == toy_value(step, t, 1, index);
                }
            }
            CHECK(same);
            free(values);
        }
    }
}

static void test_reads(void) {
    for (ToySplit split = 0; split < TOY_SPLITS; split++) {
        const char *run = check_folder();
        Toy toy;
        CHECK_OK(toy_open(&toy, run, split, 2, 2, 1, 0));
        CHECK(toy_save(&toy, 3) == CHECKPOINT_COMMITTED);
        toy_close(&toy);
        char *path = step_path(run, 3);
        Checkpoint *c;
        CHECK_OK(checkpoint_open(path, false, &c));
        check_reads(c, 3);
        checkpoint_close(c);
        free(path);
    }
}

// ---- plans made by hand ----

typedef struct Source {
    const CheckpointTensor *tensors;
    DataType type;
} Source;

// Element `index` of any tensor, as it is stored; scales are powers of two by the block of the tensor.
static uint32_t stored(DataType type, int64_t index) {
    uint32_t word = (uint32_t)philox_u64(77, 1, (uint64_t)index);
    return type == TYPE_FP32   ? float_to_bits((float)(word % 100000) - 5e4f)
           : type == TYPE_BF16 ? bf16_from_float((float)(word % 10000) - 5e3f)
           : type == TYPE_FP16 ? fp16_from_float((float)(word % 4000) / 8 - 250)
                               : word % 256;
}

static float scale_of(int64_t index) {
    return 0.37f + (float)(index / DATA_TYPE_BLOCK);
}

static float value_of(DataType type, int64_t index) {
    uint32_t bits = stored(type, index);
    return type == TYPE_FP32   ? float_from_bits(bits)
           : type == TYPE_BF16 ? bf16_to_float((uint16_t)bits)
           : type == TYPE_FP16 ? fp16_to_float((uint16_t)bits)
                               : code_value(type == TYPE_CODE8, (int)bits) * scale_of(index);
}

typedef struct Filling {
    DataType type;
    char *to;
    float *scales;
} Filling;

static bool fill_run(void *context, BoxRun run) {
    const Filling *f = context;
    for (int64_t i = 0; i < run.count; i++) {
        uint32_t bits = stored(f->type, run.from + i);
        memcpy(f->to + part_bytes(f->type, run.to + i), &bits, (size_t)data_type_bytes(f->type));
        if (f->scales != NULL) {
            f->scales[(run.to + i) / DATA_TYPE_BLOCK] = scale_of(run.from + i);
        }
    }
    return true;
}

static void fetch_stored(void *context, const CheckpointPart *part, void *to, float *scales) {
    const CheckpointTensor *tensor = &((const Source *)context)->tensors[part->tensor];
    Box whole = box_whole(tensor->dims, tensor->shape);
    Filling filling = {part->type, to, scales};
    CHECK((scales != NULL) == data_type_has_scales(part->type));
    boxes_runs(&whole, 1, part->boxes, part->box_count, fill_run, &filling, NULL);
}

// One save by ranks that each have `parts[r]`; a plan's rank-independent fields are in `plan`.
static CheckpointEvent save(const char *run, CheckpointPlan plan, const CheckpointPart *const *parts, const int *counts,
                            int ranks) {
    CheckpointWriter *writers[4];
    Source source = {.tensors = plan.tensors};
    json_t *state = json_object();
    for (int r = 0; r < ranks; r++) {
        plan.run_folder = run;
        plan.rank = r;
        plan.ranks = ranks;
        plan.keep_last = 1;
        plan.layout = "test";
        plan.parts = parts[r];
        plan.part_count = counts[r];
        if (plan.fetch == NULL) {
            plan.fetch = fetch_stored;
            plan.fetch_context = &source;
        }
        CHECK_OK(checkpoint_writer_create(&plan, &writers[r]));
        checkpoint_writer_begin(writers[r], 1, 1, state, NULL, 0);
    }
    CheckpointEvent event = CHECKPOINT_NOTHING;
    while (event == CHECKPOINT_NOTHING) {
        double most[CHECKPOINT_FLAGS] = {0}, flags[CHECKPOINT_FLAGS];
        for (int r = 0; r < ranks; r++) {
            checkpoint_writer_flags(writers[r], flags);
            for (int f = 0; f < CHECKPOINT_FLAGS; f++) {
                most[f] = flags[f] > most[f] ? flags[f] : most[f];
            }
        }
        for (int r = 0; r < ranks; r++) {
            event = checkpoint_writer_advance(writers[r], most);
        }
        usleep(200);
    }
    for (int r = 0; r < ranks; r++) {
        checkpoint_writer_destroy(writers[r]);
    }
    json_decref(state);
    return event;
}

// Ranks of different types cut a tensor by columns; values and digest are those of the values that the elements stand for.
static void test_types(void) {
    static const CheckpointTensor tensor = {"w", 2, {5, 1024}};
    static const DataType types[] = {TYPE_FP32, TYPE_BF16, TYPE_FP16, TYPE_CODE8, TYPE_CODE8_UNSIGNED};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        const char *run = check_folder();
        Box left = {2, {0, 0}, {5, 512}}, right[2] = {{2, {0, 512}, {1, 1024}}, {2, {1, 512}, {5, 1024}}};
        CheckpointPart a = {.kind = "weight", .type = types[i], .boxes = &left, .box_count = 1};
        CheckpointPart b = {.kind = "weight", .type = types[i], .boxes = right, .box_count = 2};
        CHECK(save(run, (CheckpointPlan){.tensors = &tensor, .tensor_count = 1}, (const CheckpointPart *[]){&a, &b},
                   (int[]){1, 1}, 2) == CHECKPOINT_COMMITTED);
        char *path = step_path(run, 1);
        Checkpoint *c;
        CHECK_OK(checkpoint_open(path, true, &c));
        Box all = box_whole(2, tensor.shape), some = {2, {1, 301}, {4, 777}};
        float *values = memory_new(5 * 1024, sizeof *values);
        CHECK_OK(checkpoint_read(c, "w", "weight", &all, 1, values));
        uint64_t sum = 0, found = 0;
        bool same = true;
        for (int64_t k = 0; k < 5 * 1024; k++) {
            same = same && float_to_bits(values[k]) == float_to_bits(value_of(types[i], k));
            sum += naive(k, value_of(types[i], k));
        }
        CHECK_OK(checkpoint_read(c, "w", "weight", &some, 1, values));
        for (int64_t k = 0; k < box_count(&some); k++) {
            same = same && values[k] == value_of(types[i], (1 + k / 476) * 1024 + 301 + k % 476);
        }
        CHECK(same);
        CHECK(checkpoint_digest(c, "w", "weight", &found) && found == sum);
        DataType type = TYPE_COUNT;
        CHECK_TEXT(checkpoint_kind(c, 0, 0, &type), "weight");
        CHECK(type == types[i] && checkpoint_kind(c, 0, 1, &type) == NULL);
        Buffer text = {0};
        CHECK_OK(checkpoint_describe(path, true, &text));
        char *words = memory_format("weight (%s)", data_type_name(types[i]));
        CHECK((strstr(text.data, words) != NULL) == (types[i] != TYPE_FP32));
        free(words);
        buffer_free(&text);
        checkpoint_close(c);
        free(values);
        free(path);
    }
}

// Which boxes hold whole blocks, against a walk over all elements.
static bool walk_blocks(const CheckpointTensor *tensor, const CheckpointPart *part) {
    Box whole = box_whole(tensor->dims, tensor->shape);
    int64_t elements = box_count(&whole), expected = 0;
    bool good = true;
    for (int b = 0; b < part->box_count; b++) {
        const Box *box = &part->boxes[b];
        for (int64_t i = 0; i < box_count(box); i++) {
            int64_t left = i, index = 0, stride = 1;
            for (int d = tensor->dims - 1; d >= 0; d--) {
                int64_t extent = box->end[d] - box->begin[d];
                index += (box->begin[d] + left % extent) * stride;
                left /= extent;
                stride *= tensor->shape[d];
            }
            good = good &&
                   (expected % DATA_TYPE_BLOCK != 0 ? index == expected : index % DATA_TYPE_BLOCK == 0 && index >= expected);
            expected = index + 1;
        }
    }
    return good && (expected % DATA_TYPE_BLOCK == 0 || expected == elements);
}

static void test_blocks(void) {
    static const int64_t extents[] = {1, 2, 3, 64, 128, 256, 384, 512};
    int good = 0;
    uint64_t draw = 0;
    for (int round = 0; round < 4000; round++) {
        CheckpointTensor tensor = {"t", 3, {0}};
        for (int d = 0; d < 3; d++) {
            tensor.shape[d] = extents[philox_u64(8, 1, draw++) % (d < 2 ? 4 : 8)];
        }
        Box boxes[2], pieces[2 * BOX_MOST_OF_RANGE];
        for (int b = 0; b < 2; b++) {
            boxes[b] = box_whole(3, tensor.shape);
            for (int d = 0; d < 3; d++) {
                if (philox_u64(8, 1, draw++) % 3 == 0) {
                    int64_t unit = tensor.shape[d] % 64 == 0 ? 64 : 1, units = tensor.shape[d] / unit;
                    boxes[b].begin[d] = unit * (int64_t)(philox_u64(8, 1, draw++) % (uint64_t)units);
                    boxes[b].end[d] = tensor.shape[d];
                }
            }
        }
        // A box, a range of one, or two boxes.
        int64_t count = box_count(&boxes[0]), begin = (int64_t)(philox_u64(8, 1, draw++) % (uint64_t)(count / 256 + 1)) * 256;
        CheckpointPart part = {.type = TYPE_CODE8, .boxes = boxes, .box_count = round % 3 == 2 ? 2 : 1};
        if (round % 3 == 1 && begin < count) {
            part.boxes = pieces;
            part.box_count = boxes_of_range(boxes, 1, begin, count, pieces);
        }
        bool whole = walk_blocks(&tensor, &part);
        good += whole;
        CHECK(part_has_whole_blocks(&tensor, &part) == whole);
    }
    CHECK(good > 500 && good < 3500);
}

// A matrix cut by columns, read by columns: not a read for every short row.
static int64_t reads_so_far(void) {
    FILE *file = fopen("/proc/self/io", "r");
    char line[128];
    long long reads = -1;
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        sscanf(line, "syscr: %lld", &reads);
    }
    if (file != NULL) {
        fclose(file);
    }
    return reads;
}

static void test_few_reads(void) {
    enum { ROWS = 20000, COLUMNS = 64 };
    static const CheckpointTensor tensor = {"w", 2, {ROWS, COLUMNS}};
    const char *run = check_folder();
    Box all = box_whole(2, tensor.shape), column = {2, {0, 3}, {ROWS, 5}};
    CheckpointPart part = {.kind = "weight", .boxes = &all, .box_count = 1};
    CHECK(save(run, (CheckpointPlan){.tensors = &tensor, .tensor_count = 1}, (const CheckpointPart *[]){&part}, (int[]){1},
               1) == CHECKPOINT_COMMITTED);
    char *path = step_path(run, 1);
    Checkpoint *c;
    CHECK_OK(checkpoint_open(path, false, &c));
    float *values = memory_new(2 * ROWS, sizeof *values);
    CHECK_OK(checkpoint_read(c, "w", "weight", &column, 1, values));
    int64_t before = reads_so_far();
    CHECK_OK(checkpoint_read(c, "w", "weight", &column, 1, values));
    if (before >= 0) {
        CHECK(reads_so_far() - before < 50);
    }
    bool same = true;
    for (int64_t i = 0; i < 2 * ROWS; i++) {
        same = same && values[i] == value_of(TYPE_FP32, i / 2 * COLUMNS + 3 + i % 2);
    }
    CHECK(same);
    checkpoint_close(c);
    free(values);
    free(path);
}

// ---- comparing what was loaded ----

typedef struct Held {
    float *values;
    const CheckpointTensor *tensor;
} Held;

static bool held_run(void *context, BoxRun run) {
    float **ends = context;
    memcpy(ends[1] + run.to, ends[0] + run.from, (size_t)run.count * sizeof(float));
    return true;
}

static void read_held(void *context, const Box *boxes, int count, float *to) {
    const Held *held = context;
    Box whole = box_whole(held->tensor->dims, held->tensor->shape);
    float *ends[] = {held->values, to};
    boxes_runs(&whole, 1, boxes, count, held_run, ends, NULL);
}

static void test_compare(void) {
    static const CheckpointTensor tensor = {"layers.0.up", 3, {3, 700, 1000}};
    const char *run = check_folder();
    Box all = box_whole(3, tensor.shape);
    CheckpointPart part = {.kind = "weight", .boxes = &all, .box_count = 1};
    CHECK(save(run, (CheckpointPlan){.tensors = &tensor, .tensor_count = 1}, (const CheckpointPart *[]){&part}, (int[]){1},
               1) == CHECKPOINT_COMMITTED);
    char *path = step_path(run, 1);
    Checkpoint *c;
    CHECK_OK(checkpoint_open(path, false, &c));
    Held held = {memory_new((size_t)box_count(&all), sizeof(float)), &tensor};
    CHECK_OK(checkpoint_read(c, "layers.0.up", "weight", &all, 1, held.values));
    CHECK_OK(checkpoint_compare(c, "layers.0.up", "weight", read_held, &held));
    CHECK_OK(checkpoint_compare(c, "layers.0.up", "moment1", read_held, &held));  // nothing is said of these
    held.values[2000001] = float_from_bits(float_to_bits(held.values[2000001]) ^ 1);
    CHECK_FAILS(checkpoint_compare(c, "layers.0.up", "weight", read_held, &held),
                "weight layers.0.up was not loaded as it was saved");
    checkpoint_close(c);
    free(held.values);
    free(path);
}

// A model takes its weights and moments back, and one that does not hold what was saved is found.
static void save_model(const char *run, Model *model) {
    ModelParts parts = model_parts(&model->weights, 1, 0);
    CheckpointPlan plan = {
        .tensors = parts.tensors, .tensor_count = model->table.count, .fetch = model_parts_fetch, .fetch_context = &parts};
    CHECK(save(run, plan, (const CheckpointPart *[]){parts.parts}, (int[]){parts.count}, 1) == CHECKPOINT_COMMITTED);
    model_parts_free(&parts);
}

static void test_model(void) {
    const char *run = check_folder();
    ModelConfig config =
        models_config("model:\n  family: llama\n  layers: 2\n  width: 20\n  heads: 2\n  context: 16\n  vocabulary: 37\n");
    ModelOptions options = {.sequences = 1, .length = 16};
    Device *device;
    Model *saved, *loaded;
    CHECK_OK(device_open_cpu(1, NULL, &device));
    CHECK_OK(model_create(device, &config, &options, &saved));
    CHECK_OK(model_create(device, &config, &options, &loaded));
    model_initialise(saved, 5);
    float *values = models_values(saved, ARRAY_WEIGHT);
    models_write(saved, ARRAY_MOMENT1, values);
    models_write(saved, ARRAY_MOMENT2, values);
    save_model(run, saved);
    char *path = step_path(run, 1);
    Checkpoint *c;
    CHECK_OK(checkpoint_open(path, true, &c));
    CHECK_OK(model_load(c, &loaded->weights, true));
    for (WeightsArray array = ARRAY_WEIGHT; array <= ARRAY_MOMENT2; array++) {
        float *back = models_values(loaded, array);
        CHECK(memcmp(back, values, (size_t)saved->table.elements * sizeof *back) == 0);
        free(back);
    }
    const Param *down = params_find(&loaded->table, "layers.1.mlp.down.weight");
    int32_t row = (int32_t)(down - loaded->table.rows);
    const float *right = &values[down->index + 77];
    float flipped = float_from_bits(float_to_bits(*right) ^ 1);
    weights_write(&loaded->weights, ARRAY_WEIGHT, row, 77, 78, &flipped);
    CHECK_FAILS(model_compare(c, &loaded->weights, true), "weight layers.1.mlp.down.weight was not loaded as it was saved");
    weights_write(&loaded->weights, ARRAY_WEIGHT, row, 77, 78, right);
    weights_write(&loaded->weights, ARRAY_MOMENT2, row, 0, 1, &flipped);
    CHECK_FAILS(model_compare(c, &loaded->weights, true), "moment2 layers.1.mlp.down.weight was not loaded as it was saved");
    CHECK_OK(model_compare(c, &loaded->weights, false));
    checkpoint_close(c);
    free(values);
    free(path);
    model_destroy(saved);
    model_destroy(loaded);
    device_close(device);
}

// ---- bases ----

static void test_base(void) {
    static const CheckpointTensor tensors[] = {{"a", 2, {4, 6}}, {"b", 1, {7}}, {"a.lora", 2, {2, 6}}};
    static const CheckpointTensor others[] = {{"a", 2, {6, 4}}, {"b", 1, {7}}};
    Box wholes[3];
    CheckpointPart parts[3];
    for (int t = 0; t < 3; t++) {
        wholes[t] = box_whole(tensors[t].dims, tensors[t].shape);
        parts[t] = (CheckpointPart){.tensor = t, .kind = "weight", .boxes = &wholes[t], .box_count = 1};
    }
    const char *base_run = check_folder(), *run = check_folder(), *other_run = check_folder();
    CheckpointPlan plan = {.tensors = tensors, .tensor_count = 2};
    CHECK(save(base_run, plan, (const CheckpointPart *[]){parts}, (int[]){2}, 1) == CHECKPOINT_COMMITTED);
    Box other_whole = box_whole(2, others[0].shape);
    CheckpointPart other_parts[] = {{.kind = "weight", .boxes = &other_whole, .box_count = 1}, parts[1]};
    plan.tensors = others;
    CHECK(save(other_run, plan, (const CheckpointPart *[]){other_parts}, (int[]){2}, 1) == CHECKPOINT_COMMITTED);
    char *base_path = step_path(base_run, 1), *path = step_path(run, 1), *other_path = step_path(other_run, 1);
    Checkpoint *base, *other, *c;
    CHECK_OK(checkpoint_open(base_path, true, &base));
    CHECK_OK(checkpoint_open(other_path, true, &other));
    CheckpointBase name = {.path = "runs/base"};
    CHECK(checkpoint_fingerprint(base, &name.fingerprint));

    // An adapter alone is no checkpoint unless it names its base.
    plan = (CheckpointPlan){.tensors = tensors, .tensor_count = 3};
    CHECK(save(run, plan, (const CheckpointPart *[]){parts + 2}, (int[]){1}, 1) == CHECKPOINT_FAILED);
    plan.base = &name;
    CHECK(save(run, plan, (const CheckpointPart *[]){parts + 2}, (int[]){1}, 1) == CHECKPOINT_COMMITTED);
    CHECK_OK(checkpoint_open(path, true, &c));
    CHECK(checkpoint_info(c)->base != NULL && checkpoint_info(c)->base->fingerprint == name.fingerprint);
    CHECK_TEXT(checkpoint_info(c)->base->path, "runs/base");
    float values[24];
    uint64_t digest, expected, own;
    CHECK(!checkpoint_has(c, "a", "weight") && checkpoint_has(c, "a.lora", "weight"));
    CHECK_FAILS(checkpoint_read(c, "a", "weight", &wholes[0], 1, values), "in its base");
    CHECK_FAILS(checkpoint_attach_base(base, c), "is complete in itself");
    CHECK_FAILS(checkpoint_attach_base(c, other), "is another, of fingerprint");
    CHECK_FAILS(checkpoint_attach_base(c, other), "(runs/base)");
    CHECK_OK(checkpoint_attach_base(c, base));
    CHECK(checkpoint_has(c, "a", "weight") && !checkpoint_has(c, "a", "moment1"));
    CHECK_OK(checkpoint_read(c, "a", "weight", &wholes[0], 1, values));
    CHECK(values[23] == value_of(TYPE_FP32, 23));
    CHECK_OK(checkpoint_read(c, "a.lora", "weight", &wholes[2], 1, values));
    CHECK(checkpoint_digest(c, "a", "weight", &digest) && checkpoint_digest(base, "a", "weight", &expected) &&
          digest == expected);
    CHECK(checkpoint_fingerprint(c, &own) && own != name.fingerprint);
    Buffer text = {0};
    CHECK_OK(checkpoint_describe(path, true, &text));
    CHECK(strstr(text.data, "(runs/base)\n") != NULL && strstr(text.data, " in the base\n") != NULL);
    buffer_free(&text);
    checkpoint_close(c);
    checkpoint_close(base);
    checkpoint_close(other);
    free(base_path);
    free(other_path);
    free(path);
}

// ---- version 1 ----

// A checkpoint as it was written before, and digests that were computed of it elsewhere (tests/golden/checkpoint).
static void test_version1(void) {
    char *golden = memory_format("%s/tests/golden/checkpoint", getenv("ATHANOR_SOURCE"));
    char *path = path_join(golden, "version1"), *digests = path_join(golden, "version1.digests");
    Checkpoint *c;
    CHECK_OK(checkpoint_open(path, true, &c));
    CHECK(checkpoint_info(c)->step == 3 && checkpoint_info(c)->run == 0 && checkpoint_info(c)->ranks == 2);
    Buffer text = {0};
    CHECK_OK(file_read(digests, 1 << 20, &text));
    char name[64], kind[33];
    unsigned long long expected;
    int used, seen = 0;
    for (const char *p = text.data; sscanf(p, "%63s %32s %llx %n", name, kind, &expected, &used) == 3; p += used, seen++) {
        int t = checkpoint_tensor(c, name);
        uint64_t none;
        if (!CHECK(t >= 0 && checkpoint_has(c, name, kind) && !checkpoint_digest(c, name, kind, &none))) {
            continue;
        }
        const CheckpointTensor *tensor = &checkpoint_info(c)->tensors[t];
        Box whole = box_whole(tensor->dims, tensor->shape);
        float *values = memory_new((size_t)box_count(&whole), sizeof *values);
        CHECK_OK(checkpoint_read(c, name, kind, &whole, 1, values));
        CHECK(digest_boxes(tensor->dims, tensor->shape, &whole, 1, values) == expected);
        free(values);
    }
    CHECK(seen == 2 * checkpoint_info(c)->tensor_count && seen > 10);
    uint64_t fingerprint;
    CHECK(!checkpoint_fingerprint(c, &fingerprint));
    Buffer words = {0};
    CHECK_OK(checkpoint_describe(path, true, &words));
    CHECK(strstr(words.data, "weight moment1\n") != NULL && strstr(words.data, "run  ") == NULL);
    buffer_free(&words);
    buffer_free(&text);
    checkpoint_close(c);
    free(golden);
    free(path);
    free(digests);
}

int main(void) {
    RUN(test_digest_values);
    RUN(test_digests);
    RUN(test_reads);
    RUN(test_types);
    RUN(test_blocks);
    RUN(test_few_reads);
    RUN(test_compare);
    RUN(test_model);
    RUN(test_base);
    RUN(test_version1);
    return check_report();
}
