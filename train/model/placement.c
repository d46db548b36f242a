// Where a rank keeps the rows of the parameter table: see placement.h.
#include "train/model/placement.h"

#include "parallel/sharding.h"
#include "train/model/tensor.h"

enum { WEIGHT_ALIGN = 64 };  // bytes; with PARAM_ALIGN elements of 4 or 2 bytes the same gaps as in the other spaces

static int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

RankShare rank_share_whole(const ParamTable *table) {
    return (RankShare){.tensor_ranks = 1, .stages = {{-1, table->layer_count + 1}}, .stage_count = 1, .shards = 1};
}

int moments_of(OptimizerKind kind) {
    return kind == OPTIMIZER_ADAMW ? 2 : 1;
}

DataType moment_type(const Storage *storage, int moment) {
    return storage->moments == MOMENT_FP32 ? TYPE_FP32 : moment == 1 ? TYPE_CODE8 : TYPE_CODE8_UNSIGNED;
}

// ---- Boxes

// True where the row's blocks of quantised values are whole within the boxes, so that they are the same wherever it lies.
static bool keeps_blocks(const Param *row, const Place *place) {
    enum { BLOCK = DATA_TYPE_BLOCK };
    int64_t columns = row->shape[1];
    for (int i = 0; i < place->box_count; i++) {
        const Box *box = &place->boxes[i];
        bool wide = row->dims == 1 || (box->begin[1] == 0 && box->end[1] == columns);
        int64_t begin = box->begin[0] * columns, end = box->end[0] * columns;
        bool last = end == row->count && i + 1 == place->box_count;
        bool whole = wide ? begin % BLOCK == 0 && (end % BLOCK == 0 || last)
                          : columns % BLOCK == 0 && box->begin[1] % BLOCK == 0 && box->end[1] % BLOCK == 0;
        if (!whole) {
            return false;
        }
    }
    return true;
}

static Error *cut_row(const Param *row, const RankShare *share, Place *place) {
    for (int i = 0; i < row->part_count; i++) {
        const ParamPart *part = &row->parts[i];
        Box box = box_whole(row->dims, row->shape);
        box.begin[0] = part->begin;
        box.end[0] = part->end;
        if (part->cut != CUT_NONE) {
            int64_t first = box.begin[part->cut], units = (box.end[part->cut] - first) / part->unit;
            if (part->unit > 1 ? units % share->tensor_ranks != 0 : units < share->tensor_ranks) {
                return failure("%s: %lld %s cannot be divided among %d tensor-parallel ranks", row->name, (long long)units,
                               part->units, share->tensor_ranks);
            }
            Range cut = tensor_cut(units, share->tensor_ranks, share->tensor);
            box.begin[part->cut] = first + cut.begin * part->unit;
            box.end[part->cut] = first + cut.end * part->unit;
        }
        // Neighbours join, so that an uncut tensor is one box.
        Box *before = place->box_count > 0 ? &place->boxes[place->box_count - 1] : NULL;
        bool joins = before != NULL && before->end[0] == box.begin[0] &&
                     (row->dims == 1 || (before->begin[1] == box.begin[1] && before->end[1] == box.end[1]));
        if (joins) {
            before->end[0] = box.end[0];
        } else {
            place->boxes[place->box_count++] = box;
        }
    }
    for (int i = 0; i < place->box_count; i++) {
        place->shape[0] += place->boxes[i].end[0] - place->boxes[i].begin[0];
    }
    place->shape[1] = row->dims == 1 ? 1 : place->boxes[0].end[1] - place->boxes[0].begin[1];
    place->count = place->shape[0] * place->shape[1];
    return NULL;
}

// ---- Spaces

// Whether rows lie as parts of units.
static bool has_units(const RankShare *share) {
    return share->zero >= 3 || (share->zero == 2 && share->whole_gradients == 0);
}

// Weights and gradients, which do not depend on who owns the state.
static Error *place_row(const Param *row, const RankShare *share, int64_t align, Placement *out, Place *place) {
    const Storage *storage = &out->storage;
    TRY(cut_row(row, share, place));
    bool frozen = !row->trainable;
    place->type = frozen && row->dims == 2 ? storage->frozen_type : storage->type;
    place->trainable = storage->learns && !frozen;
    bool quantised = data_type_has_scales(place->type) || (place->trainable && storage->moments == MOMENT_8BIT);
    if (quantised && !keeps_blocks(row, place)) {
        return failure(
            "%s: its cut among %d tensor-parallel ranks goes through blocks of %d quantised values; use fewer ranks, "
            "or values of 16 or 32 bits",
            row->name, share->tensor_ranks, DATA_TYPE_BLOCK);
    }
    place->held = (Range){0, place->count};
    place->unit = -1;
    if (place->trainable && has_units(share)) {
        return NULL;  // its unit's
    }
    int64_t bytes = data_type_bytes(place->type);
    place->weight_at = out->weight_bytes;
    out->weight_bytes += round_up(round_up(place->count, align) * bytes, WEIGHT_ALIGN);
    place->scale_at = out->weight_scales;
    out->weight_scales += data_type_scales(place->type, place->count);
    return NULL;
}

// Gradients in the order of the table; but where rows are cut, those of whole ones first, so that they can be counted once. A
// copy's lies behind them all, where nobody who goes through them looks.
static void place_gradients(const ParamTable *table, const RankShare *share, int64_t align, Placement *out) {
    for (int cut = 0; cut < 2; cut++) {
        for (int32_t i = 0; i < table->count; i++) {
            Place *place = &out->places[i];
            if (place->trainable && !place->copy && (share->tensor_ranks > 1 && place->count < table->rows[i].count) == cut) {
                place->gradient_at = out->gradients;
                place->summed = (Range){0, place->count};
                out->gradients += round_up(place->count, align);
            }
        }
        out->whole_gradients = cut == 0 ? out->gradients : out->whole_gradients;
    }
    if (share->whole_gradients > 0) {
        out->gradients = shard_padded(out->gradients, share->whole_gradients);  // they are exchanged in equal parts
    }
    for (int32_t i = 0; i < table->count; i++) {
        Place *place = &out->places[i];
        if (place->trainable && (place->copy || place->apart)) {
            int64_t *at = place->apart ? &out->head_at : &place->gradient_at;
            *at = out->gradients + out->copied;
            place->summed = (Range){0, place->count};
            out->copied += round_up(place->count, align);
        }
    }
}

// ---- Units and their slots

// The unit of a row, which is made where it is the first of it. Matrices go to the shards in turn.
static int32_t unit_of(const ParamTable *table, int32_t row, bool whole, Placement *out) {
    const Param *param = &table->rows[row];
    bool matrix = param->update == UPDATE_MATRIX, alone = matrix || param->layer < 0 || param->layer >= table->layer_count;
    int32_t matrices = 0;
    for (int32_t i = 0; i < out->unit_count; i++) {
        const Unit *unit = &out->units[i];
        if (!alone && unit->owner < 0 && unit->layer == param->layer && unit->whole == whole) {
            return i;
        }
        matrices += unit->owner >= 0;
    }
    out->units[out->unit_count] = (Unit){.layer = param->layer,
                                         .whole = whole,
                                         .copy = out->places[row].copy,
                                         .owner = matrix ? matrices % out->share.shards : -1};
    return out->unit_count++;
}

// Where units lie in use. Of one layer they lie side by side; layers that follow each other have different slots.
static void place_slots(const ParamTable *table, Placement *out) {
    int64_t size[PLACEMENT_SLOTS] = {0}, base = 0;
    int layers = 0;
    for (int32_t i = 0; i < out->unit_count; i++) {
        Unit *unit = &out->units[i];
        bool before = unit->layer < 0, after = unit->layer >= table->layer_count;
        unit->slot = before ? 0 : after ? table->head == table->token : -1;
        for (int32_t other = 0; other < i; other++) {
            if (out->units[other].layer == unit->layer) {
                unit->slot = out->units[other].slot;
                unit->slot_at += out->units[other].count;
            }
        }
        unit->slot = unit->slot >= 0 ? unit->slot : 2 + layers++ % 2;
        int64_t end = unit->slot_at + unit->count;
        size[unit->slot] = end > size[unit->slot] ? end : size[unit->slot];
    }
    for (int slot = 0; slot < PLACEMENT_SLOTS; slot++) {
        for (int32_t i = 0; i < out->unit_count; i++) {
            out->units[i].slot_at += out->units[i].slot == slot ? base : 0;
        }
        base += size[slot];
    }
    out->slots = base;
}

Range placement_unit_part(const Placement *placement, int32_t unit, int shard) {
    const Unit *u = &placement->units[unit];
    int64_t part = u->count / placement->share.shards;
    return u->owner < 0 ? (Range){part * shard, part * (shard + 1)} : u->owner == shard ? (Range){0, u->count} : (Range){0, 0};
}

// What is owned of each unit: sums, and weights or all of them.
static void place_unit_parts(Placement *out) {
    int64_t bytes = data_type_bytes(out->storage.type);
    for (int kind = 0; kind < 3; kind++) {  // whole ones, cut ones, copies
        for (int32_t i = 0; i < out->unit_count; i++) {
            Unit *unit = &out->units[i];
            if (kind == (unit->copy ? 2 : !unit->whole)) {
                Range part = placement_unit_part(out, i, out->share.shard);
                unit->sum_at = out->gradients + out->copied;
                if (out->share.whole_gradients == 0) {
                    *(unit->copy ? &out->copied : &out->gradients) += part.end - part.begin;
                }
                unit->weight_at = out->weight_bytes;
                out->weight_bytes += (out->share.zero >= 3 ? part.end - part.begin : unit->count) * bytes;
            }
        }
        out->whole_gradients = kind == 0 && out->share.whole_gradients == 0 ? out->gradients : out->whole_gradients;
    }
}

static void place_units(const ParamTable *table, int64_t align, Placement *out) {
    const RankShare *share = &out->share;
    out->units = memory_zeroed((size_t)table->count, sizeof *out->units);
    for (int32_t i = 0; i < table->count; i++) {
        Place *place = &out->places[i];
        if (place->trainable) {
            place->unit = unit_of(table, i, share->tensor_ranks > 1 && place->count == table->rows[i].count, out);
            place->unit_at = out->units[place->unit].count;
            out->units[place->unit].count += round_up(place->count, align);
        }
    }
    for (int32_t i = 0; i < out->unit_count; i++) {
        Unit *unit = &out->units[i];
        unit->count = shard_padded(unit->count, unit->owner < 0 ? share->shards : 1);
    }
    place_slots(table, out);
    place_unit_parts(out);
    for (int32_t i = 0; i < table->count; i++) {
        Place *place = &out->places[i];
        if (!place->trainable) {
            continue;
        }
        const Unit *unit = &out->units[place->unit];
        Range part = placement_unit_part(out, place->unit, share->shard);
        int64_t begin = place->unit_at > part.begin ? place->unit_at : part.begin,
                end = place->unit_at + place->count < part.end ? place->unit_at + place->count : part.end;
        Range own = begin < end ? (Range){begin - place->unit_at, end - place->unit_at} : (Range){0, 0};
        place->held = share->zero >= 3 ? own : place->held;
        place->owned = place->copy ? place->owned : own;
        if (share->whole_gradients == 0) {
            place->summed = own;
            place->gradient_at = unit->sum_at + begin - part.begin;
        }
        int64_t at = share->zero >= 3 ? begin - part.begin : place->unit_at;
        place->weight_at = unit->weight_at + at * data_type_bytes(place->type);
    }
}

// ---- State

static Range owned_of(bool matrix, const Place *place, Range shard) {
    if (matrix) {
        bool own = place->gradient_at >= shard.begin && place->gradient_at < shard.end;
        return (Range){0, own ? place->count : 0};
    }
    int64_t begin = shard.begin - place->gradient_at, end = shard.end - place->gradient_at;
    begin = begin > 0 ? begin : 0;
    end = end < place->count ? end : place->count;
    return begin < end ? (Range){begin, end} : (Range){0, 0};
}

// The state of what this rank owns: elementwise rows first, because whole-matrix rules have no second moment.
static void place_states(const ParamTable *table, const RankShare *share, int64_t align, Placement *out) {
    Range shard = shard_part(out->gradients, share->shards, share->shard);
    for (int matrices = 0; matrices < 2; matrices++) {
        for (int32_t i = 0; i < table->count; i++) {
            Place *place = &out->places[i];
            if (place->trainable && !place->copy && (table->rows[i].update == UPDATE_MATRIX) == matrices) {
                place->owned = place->unit < 0 ? owned_of(matrices, place, shard) : place->owned;
                place->matrix = matrices;
                place->state_at = out->state;
                out->state += round_up(place->owned.end - place->owned.begin, align);
            }
        }
        out->second_state = matrices == 0 && moments_of(out->storage.optimizer) > 1 ? out->state : out->second_state;
    }
}

static bool is_here(const RankShare *share, int64_t layer) {
    for (int i = 0; i < share->stage_count; i++) {
        if (layer >= share->stages[i].begin && layer < share->stages[i].end) {
            return true;
        }
    }
    return false;
}

Error *placement_create(const ParamTable *table, const Storage *storage, const RankShare *share, Placement *out) {
    *out = (Placement){.storage = *storage, .share = *share, .count = table->count};
    out->places = memory_zeroed((size_t)table->count, sizeof *out->places);
    // A block of 8-bit moments holds values of one row.
    int64_t align = storage->learns && storage->moments == MOMENT_8BIT ? MOMENT_BLOCK : PARAM_ALIGN;
    Error *error = NULL;
    int64_t index = 0;
    for (int32_t i = 0; i < table->count && error == NULL; i++) {
        const Param *row = &table->rows[i];
        Place *place = &out->places[i];
        bool here = is_here(share, row->layer), tied = i == table->token && i == table->head;
        place->copy = !here && tied && is_here(share, table->layer_count);
        place->apart = here && tied && is_here(share, table->layer_count) && share->whole_gradients > 0;
        if (here || place->copy) {
            error = place_row(row, share, align, out, place);
        }
        if (here) {
            place->index = index;
            index += round_up(row->count, PARAM_ALIGN);
        }
    }
    out->elements = index;
    if (error != NULL) {
        placement_free(out);
        return error;
    }
    if (share->zero < 2 || share->whole_gradients > 0) {
        place_gradients(table, share, align, out);
    }
    if (has_units(share)) {
        place_units(table, align, out);
    }
    place_states(table, share, align, out);
    return NULL;
}

void placement_free(Placement *placement) {
    free(placement->places);
    free(placement->units);
    *placement = (Placement){0};
}

// ---- Pointers

static const Place *place_of(const Placement *placement, int32_t row) {
    ensure(row < placement->count, "row %d of %d", row, placement->count);
    return row >= 0 && placement->places[row].box_count > 0 ? &placement->places[row] : NULL;
}

void *placement_weight(const Placement *placement, int32_t row, void *weights) {
    const Place *place = place_of(placement, row);
    bool there = place != NULL && place->held.begin < place->held.end && weights != NULL;
    return there ? (char *)weights + place->weight_at : NULL;
}

float *placement_weight_scales(const Placement *placement, int32_t row, float *scales) {
    const Place *place = place_of(placement, row);
    return place != NULL && scales != NULL && data_type_has_scales(place->type) ? scales + place->scale_at : NULL;
}

float *placement_gradient(const Placement *placement, int32_t row, float *gradients) {
    const Place *place = place_of(placement, row);
    bool there = place != NULL && place->summed.begin < place->summed.end && gradients != NULL;
    return there ? gradients + place->gradient_at : NULL;
}

void *placement_state(const Placement *placement, int32_t row, void *array, int64_t bytes) {
    const Place *place = place_of(placement, row);
    bool there = place != NULL && place->owned.end > place->owned.begin && array != NULL;
    return there ? (char *)array + place->state_at * bytes : NULL;
}

float *placement_state_scales(const Placement *placement, int32_t row, float *scales) {
    const Place *place = place_of(placement, row);
    bool there = place != NULL && place->owned.end > place->owned.begin && scales != NULL;
    return there ? scales + place->state_at / MOMENT_BLOCK : NULL;
}

void *placement_unit_weights(const Placement *placement, int32_t unit, void *weights) {
    return (char *)weights + placement->units[unit].weight_at;
}

float *placement_unit_sums(const Placement *placement, int32_t unit, float *gradients) {
    return gradients + placement->units[unit].sum_at;
}

int64_t placement_unit_slot(const Placement *placement, int32_t unit) {
    return placement->units[unit].slot_at;
}

int64_t placement_row_slot(const Placement *placement, int32_t row) {
    const Place *place = &placement->places[row];
    return placement->units[place->unit].slot_at + place->unit_at;
}

float *placement_layer(const Placement *placement, const ParamTable *table, int64_t layer, bool cut, float *gradients,
                       int64_t *count) {
    int64_t begin = placement->gradients, end = 0;
    for (int32_t i = 0; i < placement->count; i++) {
        const Place *place = &placement->places[i];
        bool is_cut = placement->share.tensor_ranks == 1 || place->count < table->rows[i].count;
        if (place->trainable && !place->copy && table->rows[i].layer == layer && is_cut == cut) {
            int64_t to = place->gradient_at + place->count;
            begin = place->gradient_at < begin ? place->gradient_at : begin;
            end = to > end ? to : end;
        }
    }
    *count = end > begin ? end - begin : 0;
    return gradients + begin;
}

float *placement_head_apart(const Placement *placement, int32_t row, float *gradients) {
    const Place *place = place_of(placement, row);
    return place != NULL && place->apart && place->trainable ? gradients + placement->head_at : NULL;
}

float *placement_counted(const Placement *placement, float *gradients, int64_t *count) {
    const RankShare *share = &placement->share;
    Range own = placement->units != NULL ? (Range){0, placement->gradients}
                                         : shard_part(placement->gradients, share->shards, share->shard);
    int64_t first = share->tensor > 0 ? placement->whole_gradients : 0;
    own.begin = own.begin > first ? own.begin : first;
    *count = own.begin < own.end ? own.end - own.begin : 0;
    return *count > 0 ? gradients + own.begin : gradients;
}

// Rows that one rank owns lie side by side in the weights, so that there are few runs: the padding between them goes with them.
int64_t placement_owned(const Placement *placement, int shard, void *weights, WeightRun **out) {
    ensure(placement->units == NULL, "the gradients are in shards too");
    Range part = shard_part(placement->gradients, placement->share.shards, shard);
    WeightRun *runs = memory_new((size_t)placement->count, sizeof *runs);
    int64_t count = 0;
    for (int32_t row = 0; row < placement->count; row++) {
        const Place *place = &placement->places[row];
        Range owned = place->trainable && !place->copy ? owned_of(place->matrix, place, part) : (Range){0, 0};
        if (owned.begin == owned.end) {
            continue;
        }
        int64_t bytes = data_type_bytes(place->type);
        char *begin = (char *)weights + place->weight_at + owned.begin * bytes,
             *end = begin + (owned.end - owned.begin) * bytes;
        WeightRun *last = count > 0 ? &runs[count - 1] : NULL;
        if (last != NULL && begin - ((char *)last->begin + last->bytes) < PARAM_ALIGN * bytes + WEIGHT_ALIGN) {
            last->bytes = end - (char *)last->begin;
        } else {
            runs[count++] = (WeightRun){begin, end - begin};
        }
    }
    *out = runs;
    return count;
}

int64_t placement_gradients_from(const Placement *placement, int32_t row) {
    ensure(placement->units == NULL || placement->share.whole_gradients > 0, "the gradients are in shards");
    for (int32_t i = row; i < placement->count; i++) {
        const Place *place = &placement->places[i];
        if (place->trainable && !place->copy &&
            (placement->share.tensor_ranks == 1 || place->gradient_at >= placement->whole_gradients)) {
            return place->gradient_at;
        }
    }
    return placement->gradients;
}

// ---- Segments

// Gaps are zero in weights, gradients and state, so a run may cross one that is as wide in all of them: zero stays zero.
static bool joins(const UpdateSegment *before, const UpdateSegment *next) {
    int64_t gap = next->gradient - (before->gradient + before->count);
    return gap < PARAM_ALIGN && next->weight - (before->weight + before->count) == gap &&
           next->state - (before->state + before->count) == gap &&
           (int64_t)(next->random - before->random) - before->count == gap && before->rate_scale == next->rate_scale &&
           before->weight_decay == next->weight_decay;
}

int64_t placement_segments(const Placement *placement, const ParamTable *table, double weight_decay, UpdateSegment **out) {
    UpdateSegment *segments = memory_new((size_t)table->count, sizeof *segments);
    int64_t count = 0;
    for (int32_t i = 0; i < table->count; i++) {
        const Place *place = &placement->places[i];
        const Param *row = &table->rows[i];
        int64_t begin = place->owned.begin, owned = place->owned.end - begin;
        if (owned == 0 || row->update != UPDATE_ELEMENTWISE) {
            continue;
        }
        UpdateSegment segment = {.weight = place->weight_at / data_type_bytes(place->type) + begin - place->held.begin,
                                 .gradient = place->gradient_at + begin - place->summed.begin,
                                 .state = place->state_at,
                                 .count = owned,
                                 // Of a tensor that is cut: unique to its elements here, though not the same as uncut.
                                 .random = (uint64_t)(row->index + begin),
                                 .rate_scale = row->rate_scale,
                                 .weight_decay = row->decay ? (float)weight_decay : 0};
        if (count > 0 && joins(&segments[count - 1], &segment)) {
            segments[count - 1].count = segment.gradient + owned - segments[count - 1].gradient;
        } else {
            segments[count++] = segment;
        }
    }
    *out = segments;
    return count;
}

Range placement_saved(const Placement *placement, const ParamTable *table, int32_t row, int ranks, int rank) {
    const Place *place = &placement->places[row];
    int64_t index = place->index;
    if (place->copy || place->box_count == 0) {
        return (Range){0, 0};
    }
    if (place->count == table->rows[row].count) {
        rank = rank * placement->share.tensor_ranks + placement->share.tensor;
        ranks *= placement->share.tensor_ranks;
    }
    Range part = shard_part(placement->elements, ranks, rank), out;
    // Both sides of a cut move it to the same block of the row.
    int64_t begin = round_up(part.begin - index, DATA_TYPE_BLOCK), end = round_up(part.end - index, DATA_TYPE_BLOCK);
    out.begin = part.begin <= index ? 0 : begin < place->count ? begin : place->count;
    out.end = part.end <= index ? 0 : end < place->count && rank + 1 < ranks ? end : place->count;
    return out.begin < out.end ? out : (Range){0, 0};
}
