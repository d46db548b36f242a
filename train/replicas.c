// Whether what several ranks hold alike is still alike: see replicas.h.
#include "train/replicas.h"

#include "core/digest.h"
#include "core/hash.h"
#include "kernels/values.h"

enum { PIECE = 1 << 20 };  // elements read at a time

// Of one row on one rank: which boxes of it, 0 for none, and what they hold.
typedef struct Held {
    uint64_t boxes, digest;
} Held;

// The same for the same boxes, wherever they lie.
static uint64_t name_boxes(const Place *place) {
    Hasher *hasher = hasher_create();
    for (int i = 0; i < place->box_count; i++) {
        hasher_add(hasher, place->boxes[i].begin, sizeof place->boxes[i].begin);
        hasher_add(hasher, place->boxes[i].end, sizeof place->boxes[i].end);
    }
    uint64_t name = hasher_result(hasher);
    hasher_destroy(hasher);
    return name != 0 ? name : 1;
}

static Held digest_row(const ModelWeights *weights, int32_t row, void *bytes, float *values) {
    const Param *param = &weights->table->rows[row];
    const Place *place = &weights->placement.places[row];
    Held held = {0};
    if (place->box_count == 0 || data_type_has_scales(place->type)) {
        return held;
    }
    held.boxes = name_boxes(place);
    int64_t element = data_type_bytes(place->type);
    for (int64_t begin = 0; begin < place->count; begin += PIECE) {
        int64_t end = begin + PIECE < place->count ? begin + PIECE : place->count;
        Box boxes[PARAM_MOST_PARTS * BOX_MOST_OF_RANGE];
        int count = boxes_of_range(place->boxes, place->box_count, begin, end, boxes);
        device_download(weights->device, bytes, (const char *)weights_row(weights, row) + begin * element,
                        (size_t)((end - begin) * element));
        values_widen(place->type, bytes, NULL, 0, end - begin, values);
        held.digest += digest_boxes(param->dims, param->shape, boxes, count, values);
    }
    return held;
}

// All rows of this rank, [table->count].
static Held *digest_rows(const ModelWeights *weights) {
    Held *held = memory_zeroed((size_t)weights->table->count, sizeof *held);
    void *bytes = memory_new(PIECE, sizeof(float));
    float *values = memory_new(PIECE, sizeof *values);
    for (int32_t row = 0; row < weights->table->count && weights->slot_weights == NULL; row++) {
        held[row] = digest_row(weights, row, bytes, values);
    }
    free(bytes);
    free(values);
    return held;
}

// ---- On rank 0

typedef struct Claims {
    const Held *held;  // [ranks][rows]
    int ranks;
    int32_t rows;
} Claims;

static const Held *claim(const Claims *all, int rank, int32_t row) {
    return &all->held[(int64_t)rank * all->rows + row];
}

// How many ranks hold the same boxes of a row as `rank`; *same: how many of those the same values.
static int holders_of(const Claims *all, int rank, int32_t row, int *same) {
    const Held *own = claim(all, rank, row);
    int holders = 0;
    *same = 0;
    for (int r = 0; r < all->ranks; r++) {
        const Held *other = claim(all, r, row);
        holders += other->boxes == own->boxes;
        *same += other->boxes == own->boxes && other->digest == own->digest;
    }
    return holders;
}

// Two ranks that hold different values of the same boxes of a row; false where there are none.
static bool differ(const Claims *all, int32_t row, int *first, int *second) {
    for (*second = 0; *second < all->ranks; ++*second) {
        const Held *own = claim(all, *second, row);
        for (*first = 0; *first < *second && claim(all, *first, row)->boxes != own->boxes; ++*first) {
        }
        if (own->boxes != 0 && claim(all, *first, row)->digest != own->digest) {
            return true;
        }
    }
    return false;
}

static Error *compare(const ModelWeights *weights, const Claims *all) {
    int32_t worst = -1;
    int first, second, different = 0, agree_first, agree_second;
    for (int32_t row = all->rows - 1; row >= 0; row--) {
        if (differ(all, row, &first, &second)) {
            worst = row;
            different++;
        }
    }
    if (worst < 0) {
        return NULL;
    }
    (void)differ(all, worst, &first, &second);
    int holders = holders_of(all, first, worst, &agree_first);
    (void)holders_of(all, second, worst, &agree_second);
    int odd = agree_first < agree_second ? first : second, other = odd == first ? second : first;
    bool tie = agree_first == agree_second;
    return failure(
        "%s is no longer the same on ranks that hold it alike: rank %d holds other values than rank %d and %d more of %d "
        "(%d tensor%s in all); suspect memory or links of rank %d%s, and go on from a checkpoint before",
        weights->table->rows[worst].name, odd, other, (tie || odd == second ? agree_first : agree_second) - 1, holders,
        different, different == 1 ? "" : "s", odd, tie ? ", or as well of the other" : "");
}

Error *replicas_check(const ModelWeights *weights, Comm *world) {
    Buffer all = {0};
    Held *own = digest_rows(weights);
    int64_t *ends = memory_zeroed((size_t)world->size, sizeof *ends);
    int32_t rows = weights->table->count;
    Error *error = comm_gather(world, own, rows * (int64_t)sizeof *own, &all, ends);
    if (error == NULL && world->rank == 0) {
        Claims claims = {(const Held *)(const void *)all.data, world->size, rows};
        ensure(all.size == (size_t)world->size * (size_t)rows * sizeof *own, "digests of %zu bytes", all.size);
        error = compare(weights, &claims);
    }
    free(ends);
    free(own);
    buffer_free(&all);
    return comm_agree(world, error);
}
