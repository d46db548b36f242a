// A model's arrays in the words of a checkpoint: see model_checkpoint.h.
#include "train/model_checkpoint.h"

#include "core/digest.h"

enum { PIECE = 1 << 22 };  // elements read at a time, whole blocks of quantised values

// ---- Saving

ModelParts model_parts(const ModelWeights *weights, int ranks, int rank) {
    const ParamTable *table = weights->table;
    ModelParts out = {.weights = weights};
    out.tensors = memory_new((size_t)table->count, sizeof *out.tensors);
    for (int32_t i = 0; i < table->count; i++) {
        const Param *row = &table->rows[i];
        out.tensors[i] = (CheckpointTensor){row->name, row->dims, {row->shape[0], row->shape[1]}};
    }
    out.count = weights_saved(weights, ranks, rank, &out.saved);
    out.parts = memory_new((size_t)out.count, sizeof *out.parts);
    out.boxes = memory_new((size_t)out.count, PARAM_MOST_PARTS * BOX_MOST_OF_RANGE * sizeof *out.boxes);
    Box *boxes = out.boxes;
    for (int i = 0; i < out.count; i++) {
        const SavedPart *saved = &out.saved[i];
        const Place *place = &weights->placement.places[saved->row];
        int count = boxes_of_range(place->boxes, place->box_count, saved->begin, saved->end, boxes);
        out.parts[i] = (CheckpointPart){.tensor = saved->row,
                                        .kind = weights_array_name(saved->array),
                                        .type = weights_type(weights, saved->array, saved->row),
                                        .boxes = boxes,
                                        .box_count = count};
        boxes += count;
    }
    return out;
}

void model_parts_free(ModelParts *parts) {
    free(parts->tensors);
    free(parts->parts);
    free(parts->saved);
    free(parts->boxes);
    *parts = (ModelParts){0};
}

void model_parts_fetch(void *context, const CheckpointPart *part, void *to, float *scales) {
    const ModelParts *parts = context;
    for (int i = 0; i < parts->count; i++) {
        const SavedPart *saved = &parts->saved[i];
        if (saved->row == part->tensor && strcmp(weights_array_name(saved->array), part->kind) == 0) {
            weights_fetch(parts->weights, saved->array, saved->row, saved->begin, saved->end, to, scales);
            return;
        }
    }
    ensure(false, "no part %s of tensor %d", part->kind, part->tensor);
}

// ---- Loading

static Error *load_row(Checkpoint *checkpoint, ModelWeights *weights, WeightsArray array, int32_t row, float *values) {
    const Place *place = &weights->placement.places[row];
    Range extent = weights_extent(weights, array, row);
    for (int64_t begin = extent.begin; begin < extent.end; begin += PIECE) {
        int64_t end = begin + PIECE < extent.end ? begin + PIECE : extent.end;
        Box boxes[PARAM_MOST_PARTS * BOX_MOST_OF_RANGE];
        int count = boxes_of_range(place->boxes, place->box_count, begin, end, boxes);
        TRY(checkpoint_read(checkpoint, weights->table->rows[row].name, weights_array_name(array), boxes, count, values));
        weights_write(weights, array, row, begin, end, values);
    }
    return NULL;
}

// ---- Comparing

typedef struct RowReader {
    const ModelWeights *weights;
    WeightsArray array;
    int32_t row;
    float *to;
} RowReader;

// Quantised values come in whole blocks.
static bool read_run(void *context, BoxRun run) {
    const RowReader *r = context;
    Range extent = weights_extent(r->weights, r->array, r->row);
    int64_t block = data_type_has_scales(weights_type(r->weights, r->array, r->row)) ? DATA_TYPE_BLOCK : 1;
    int64_t begin = run.from - (run.from - extent.begin) % block, end = run.from + run.count;
    float *values = memory_new((size_t)(end - begin), sizeof *values);
    weights_read(r->weights, r->array, r->row, begin, end, values);
    memcpy(r->to + run.to, values + (run.from - begin), (size_t)run.count * sizeof *values);
    free(values);
    return true;
}

static void read_row(void *context, const Box *boxes, int count, float *to) {
    RowReader *r = context;
    const Place *place = &r->weights->placement.places[r->row];
    r->to = to;
    boxes_runs(place->boxes, place->box_count, boxes, count, read_run, r, NULL);
}

// Whether the model holds the very values that the checkpoint has.
static bool holds_exactly(const Checkpoint *checkpoint, const ModelWeights *weights, WeightsArray array, int32_t row) {
    DataType here = weights_type(weights, array, row), there;
    int tensor = checkpoint_tensor(checkpoint, weights->table->rows[row].name);
    const char *kind;
    for (int i = 0; tensor >= 0 && (kind = checkpoint_kind(checkpoint, tensor, i, &there)) != NULL; i++) {
        if (strcmp(kind, weights_array_name(array)) == 0) {
            return here == TYPE_FP32 || here == there;
        }
    }
    return false;
}

static Error *compare_row(const Checkpoint *checkpoint, const ModelWeights *weights, WeightsArray array, int32_t row) {
    // Of a shard's masters the rest is here in 16 bits alone, which is right and not what was saved.
    Range exact = weights_exact(weights, array, row);
    bool whole = exact.end - exact.begin == weights->table->rows[row].count;
    if (!whole || !holds_exactly(checkpoint, weights, array, row)) {
        return NULL;
    }
    RowReader reader = {weights, array, row, NULL};
    return checkpoint_compare(checkpoint, weights->table->rows[row].name, weights_array_name(array), read_row, &reader);
}

Error *model_compare(const Checkpoint *checkpoint, const ModelWeights *weights, bool moments) {
    for (WeightsArray array = ARRAY_WEIGHT; array <= (moments ? ARRAY_MOMENT2 : ARRAY_WEIGHT); array++) {
        for (int32_t row = 0; row < weights->table->count; row++) {
            TRY(compare_row(checkpoint, weights, array, row));
        }
    }
    return NULL;
}

// ---- Comparing what lies on several ranks

int64_t model_share_count(const ParamTable *table) {
    return (int64_t)(ARRAY_MOMENT2 + 1) * table->count;
}

void model_digest_shares(const Checkpoint *checkpoint, const ModelParts *parts, DigestShare *shares) {
    const ModelWeights *weights = parts->weights;
    float *values = memory_new(PIECE, sizeof *values);
    memset(shares, 0, (size_t)model_share_count(weights->table) * sizeof *shares);
    for (int i = 0; i < parts->count; i++) {
        const SavedPart *saved = &parts->saved[i];
        const Param *row = &weights->table->rows[saved->row];
        const Place *place = &weights->placement.places[saved->row];
        if (!holds_exactly(checkpoint, weights, saved->array, saved->row)) {
            continue;
        }
        DigestShare *share = &shares[(int64_t)saved->array * weights->table->count + saved->row];
        for (int64_t begin = saved->begin; begin < saved->end; begin += PIECE) {
            int64_t end = begin + PIECE < saved->end ? begin + PIECE : saved->end;
            Box boxes[PARAM_MOST_PARTS * BOX_MOST_OF_RANGE];
            int count = boxes_of_range(place->boxes, place->box_count, begin, end, boxes);
            weights_read(weights, saved->array, saved->row, begin, end, values);
            share->digest += digest_boxes(row->dims, row->shape, boxes, count, values);
            share->count += end - begin;
        }
    }
    free(values);
}

void model_add_shares(const ParamTable *table, DigestShare *sums, const DigestShare *shares) {
    for (int64_t i = 0; i < model_share_count(table); i++) {
        sums[i].digest += shares[i].digest;
        sums[i].count += shares[i].count;
    }
}

Error *model_compare_shares(const Checkpoint *checkpoint, const ParamTable *table, const DigestShare *sums) {
    for (WeightsArray array = ARRAY_WEIGHT; array <= ARRAY_MOMENT2; array++) {
        for (int32_t i = 0; i < table->count; i++) {
            const Param *row = &table->rows[i];
            const DigestShare *sum = &sums[(int64_t)array * table->count + i];
            if (sum->count == row->count) {
                TRY(checkpoint_compare_digest(checkpoint, row->name, weights_array_name(array), sum->digest));
            }
        }
    }
    return NULL;
}

// ---- Loading all of it

Error *model_load(Checkpoint *checkpoint, ModelWeights *weights, bool moments) {
    float *values = memory_new(PIECE, sizeof *values);
    Error *error = NULL;
    for (WeightsArray array = ARRAY_WEIGHT; array <= (moments ? ARRAY_MOMENT2 : ARRAY_WEIGHT); array++) {
        for (int32_t row = 0; row < weights->table->count && error == NULL; row++) {
            const char *name = weights->table->rows[row].name, *kind = weights_array_name(array);
            Range extent = weights_extent(weights, array, row);
            if (array != ARRAY_WEIGHT && extent.begin < extent.end && !checkpoint_has(checkpoint, name, kind)) {
                error =
                    failure("the checkpoint of step %lld has no %s of %s, no moments for this optimizer.kind: set it back if "
                            "it was another, or choose another folder",
                            (long long)checkpoint_info(checkpoint)->step, kind, name);
            } else {
                error = load_row(checkpoint, weights, array, row, values);
            }
        }
    }
    free(values);
    return error == NULL ? model_compare(checkpoint, weights, moments) : error;
}
