// Boxes: see box.h.
#include "core/box.h"

#include "core/memory.h"

Box box_whole(int dims, const int64_t *shape) {
    ensure(dims >= 0 && dims <= BOX_MOST_DIMS, "%d dimensions", dims);
    Box box = {.dims = dims};
    for (int d = 0; d < dims; d++) {
        box.end[d] = shape[d];
    }
    return box;
}

int64_t box_count(const Box *box) {
    int64_t count = 1;
    for (int d = 0; d < box->dims; d++) {
        int64_t extent = box->end[d] - box->begin[d];
        count *= extent > 0 ? extent : 0;
    }
    return count;
}

int64_t boxes_count(const Box *boxes, int count) {
    int64_t sum = 0;
    for (int i = 0; i < count; i++) {
        sum += box_count(&boxes[i]);
    }
    return sum;
}

bool box_equal(const Box *a, const Box *b) {
    bool equal = a->dims == b->dims;
    for (int d = 0; equal && d < a->dims; d++) {
        equal = a->begin[d] == b->begin[d] && a->end[d] == b->end[d];
    }
    return equal;
}

bool box_inside(const Box *box, int dims, const int64_t *shape) {
    bool inside = box->dims == dims;
    for (int d = 0; inside && d < dims; d++) {
        inside = box->begin[d] >= 0 && box->begin[d] < box->end[d] && box->end[d] <= shape[d];
    }
    return inside;
}

bool box_intersect(const Box *a, const Box *b, Box *out) {
    ensure(a->dims == b->dims, "boxes of %d and %d dimensions", a->dims, b->dims);
    Box both = {.dims = a->dims};
    for (int d = 0; d < a->dims; d++) {
        both.begin[d] = a->begin[d] > b->begin[d] ? a->begin[d] : b->begin[d];
        both.end[d] = a->end[d] < b->end[d] ? a->end[d] : b->end[d];
        if (both.begin[d] >= both.end[d]) {
            return false;
        }
    }
    *out = both;
    return true;
}

// ---- Overlaps

enum { MOST_CUTS = 32, MOST_INTERLOCKED = 1000 };

static int compare_begins(const void *left, const void *right, void *dimension) {
    const Box *a = left, *b = right;
    int d = *(const int *)dimension;
    return a->begin[d] < b->begin[d] ? -1 : a->begin[d] > b->begin[d];
}

static bool pairs_disjoint(const Box *boxes, int count) {
    for (int i = 0; i < count && count <= MOST_INTERLOCKED; i++) {
        for (int j = i + 1; j < count; j++) {
            Box both;
            if (box_intersect(&boxes[i], &boxes[j], &both)) {
                return false;
            }
        }
    }
    return count <= MOST_INTERLOCKED;
}

// Cuts the boxes (sorting them) across dimension d wherever no box is cut, and what lies between the cuts across the next
// dimension; `whole` dimensions in a row had no cut.
static bool cut(Box *boxes, int count, int d, int whole, int cuts) {
    if (count <= 1) {
        return true;
    }
    if (whole == boxes->dims || cuts == MOST_CUTS) {
        return pairs_disjoint(boxes, count);
    }
    qsort_r(boxes, (size_t)count, sizeof *boxes, compare_begins, &d);
    bool disjoint = true;
    for (int first = 0, next; first < count && disjoint; first = next) {
        int64_t end = boxes[first].end[d];
        for (next = first + 1; next < count && boxes[next].begin[d] < end; next++) {
            end = boxes[next].end[d] > end ? boxes[next].end[d] : end;
        }
        int still = next - first == count ? whole + 1 : 0;
        disjoint = cut(boxes + first, next - first, (d + 1) % boxes->dims, still, cuts + 1);
    }
    return disjoint;
}

bool boxes_disjoint(const Box *boxes, int count) {
    if (count <= 1) {
        return true;
    }
    Box *copy = memory_new((size_t)count, sizeof *copy);
    memcpy(copy, boxes, (size_t)count * sizeof *copy);
    bool disjoint = cut(copy, count, 0, 0, 0);
    free(copy);
    return disjoint;
}

// ---- Ranges

// Appends the boxes of elements [begin, end) of dimensions d .. of `box`, whose earlier dimensions are one element thick.
static int range_below(Box box, int d, int64_t begin, int64_t end, Box *out) {
    if (begin >= end) {
        return 0;
    }
    if (d == box.dims || (begin == 0 && end == box_count(&box))) {
        *out = box;
        return 1;
    }
    int64_t extent = box.end[d] - box.begin[d], each = box_count(&box) / extent, from = box.begin[d];
    int64_t first = begin / each, last = end / each;  // slabs; those from the first whole one up to `last` are whole
    int64_t whole = begin % each == 0 ? first : first + 1;
    int count = 0;
    if (first < whole) {
        Box slab = box;
        slab.begin[d] = from + first;
        slab.end[d] = from + first + 1;
        int64_t stop = end - first * each < each ? end - first * each : each;
        count += range_below(slab, d + 1, begin - first * each, stop, out + count);
    }
    if (whole < last) {
        Box slabs = box;
        slabs.begin[d] = from + whole;
        slabs.end[d] = from + last;
        out[count++] = slabs;
    }
    if (last >= whole && end % each != 0) {
        Box slab = box;
        slab.begin[d] = from + last;
        slab.end[d] = from + last + 1;
        count += range_below(slab, d + 1, 0, end - last * each, out + count);
    }
    return count;
}

int boxes_of_range(const Box *boxes, int count, int64_t begin, int64_t end, Box *out) {
    ensure(begin >= 0 && begin <= end && end <= boxes_count(boxes, count), "elements %lld to %lld of %lld", (long long)begin,
           (long long)end, (long long)boxes_count(boxes, count));
    int made = 0;
    int64_t at = 0;
    for (int i = 0; i < count && at < end; i++) {
        int64_t size = box_count(&boxes[i]), first = begin > at ? begin - at : 0, last = end - at < size ? end - at : size;
        made += first < last ? range_below(boxes[i], 0, first, last, out + made) : 0;
        at += size;
    }
    return made;
}

// ---- Runs

// The place of the element at `index` within the box's own row-major order.
static int64_t place_in(const Box *box, const int64_t *index) {
    int64_t place = 0;
    for (int d = 0; d < box->dims; d++) {
        place = place * (box->end[d] - box->begin[d]) + (index[d] - box->begin[d]);
    }
    return place;
}

// How many of the last dimensions of `part` are whole in `box`: those join to longer runs.
static int whole_dims(const Box *box, const Box *part) {
    int whole = 0;
    for (int d = box->dims - 1; d >= 0 && box->begin[d] == part->begin[d] && box->end[d] == part->end[d]; d--) {
        whole++;
    }
    return whole;
}

// The runs of one pair of boxes; `from_at` and `to_at` are where they begin in their lists.
static bool pair_runs(const Box *from, int64_t from_at, const Box *to, int64_t to_at, const Box *part,
                      bool (*run)(void *context, BoxRun run), void *context) {
    int whole_from = whole_dims(from, part), whole_to = whole_dims(to, part);
    int joined = (whole_from < whole_to ? whole_from : whole_to) + 1;  // dimensions that a run spans
    int outer = part->dims > joined ? part->dims - joined : 0;
    int64_t length = 1, index[BOX_MOST_DIMS];
    for (int d = 0; d < part->dims; d++) {
        index[d] = part->begin[d];
        length *= d >= outer ? part->end[d] - part->begin[d] : 1;
    }
    for (;;) {
        if (!run(context, (BoxRun){from_at + place_in(from, index), to_at + place_in(to, index), length})) {
            return false;
        }
        int d = outer - 1;
        while (d >= 0 && ++index[d] == part->end[d]) {
            index[d] = part->begin[d];
            d--;
        }
        if (d < 0) {
            return true;
        }
    }
}

bool boxes_runs(const Box *from, int from_count, const Box *to, int to_count, bool (*run)(void *context, BoxRun run),
                void *context, int64_t *covered) {
    int64_t shared = 0, to_at = 0;
    bool go_on = true;
    for (int t = 0; t < to_count && go_on; t++) {
        int64_t from_at = 0;
        for (int f = 0; f < from_count && go_on; f++) {
            Box part;
            if (box_intersect(&from[f], &to[t], &part)) {
                shared += box_count(&part);
                go_on = pair_runs(&from[f], from_at, &to[t], to_at, &part, run, context);
            }
            from_at += box_count(&from[f]);
        }
        to_at += box_count(&to[t]);
    }
    if (covered != NULL) {
        *covered = shared;
    }
    return go_on;
}
