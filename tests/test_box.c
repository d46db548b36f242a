// core/box: ranges and runs of boxes against a walk over every element.
#include "core/box.h"
#include "core/memory.h"
#include "core/philox.h"
#include "tests/support/check.h"

enum { MOST = 400 };

// Writes the logical row-major index of each element of a list, in the list's order.
static int64_t indices(const Box *boxes, int count, const int64_t *shape, int64_t *out) {
    int64_t n = 0;
    for (int i = 0; i < count; i++) {
        int64_t at[BOX_MOST_DIMS];
        for (int64_t e = 0; e < box_count(&boxes[i]); e++) {
            int64_t rest = e, logical = 0;
            for (int d = boxes[i].dims - 1; d >= 0; d--) {
                int64_t extent = boxes[i].end[d] - boxes[i].begin[d];
                at[d] = boxes[i].begin[d] + rest % extent;
                rest /= extent;
            }
            for (int d = 0; d < boxes[i].dims; d++) {
                logical = logical * shape[d] + at[d];
            }
            out[n++] = logical;
        }
    }
    return n;
}

static int64_t draw(uint64_t *state, int64_t below) {
    return (int64_t)(philox_u64(7, 1, (*state)++) % (uint64_t)below);
}

static Box random_box(uint64_t *state, int dims, const int64_t *shape) {
    Box box = {.dims = dims};
    for (int d = 0; d < dims; d++) {
        box.begin[d] = draw(state, shape[d]);
        box.end[d] = box.begin[d] + 1 + draw(state, shape[d] - box.begin[d]);
    }
    return box;
}

static void test_ranges(void) {
    uint64_t state = 0;
    for (int round = 0; round < 2000; round++) {
        int64_t shape[BOX_MOST_DIMS], whole[3 * MOST], part[3 * MOST];
        int dims = (int)draw(&state, BOX_MOST_DIMS + 1), count = 1 + (int)draw(&state, 3);
        for (int d = 0; d < dims; d++) {
            shape[d] = 1 + draw(&state, 4);
        }
        Box boxes[3], out[3 * BOX_MOST_OF_RANGE];
        for (int i = 0; i < count; i++) {
            boxes[i] = random_box(&state, dims, shape);
        }
        int64_t all = indices(boxes, count, shape, whole);
        CHECK_I64(boxes_count(boxes, count), all);
        int64_t begin = draw(&state, all + 1), end = begin + draw(&state, all - begin + 1);
        int made = boxes_of_range(boxes, count, begin, end, out);
        CHECK(made <= count * BOX_MOST_OF_RANGE);
        for (int i = 0; i < made; i++) {
            CHECK(box_inside(&out[i], dims, shape));
        }
        CHECK_I64(indices(out, made, shape, part), end - begin);
        CHECK(memcmp(part, whole + begin, (size_t)(end - begin) * sizeof *part) == 0);
    }
}

typedef struct Copy {
    const int64_t *from;
    int64_t *to;
    int64_t runs;
} Copy;

static bool copy_run(void *context, BoxRun run) {
    Copy *copy = context;
    memcpy(copy->to + run.to, copy->from + run.from, (size_t)run.count * sizeof *copy->to);
    copy->runs++;
    return true;
}

// Cuts a tensor in two lists of boxes without overlap, and copies one way through runs.
static void test_runs(void) {
    uint64_t state = 0;
    for (int round = 0; round < 2000; round++) {
        int64_t shape[BOX_MOST_DIMS], whole[MOST], from[MOST], to[MOST];
        int dims = (int)draw(&state, BOX_MOST_DIMS + 1);
        for (int d = 0; d < dims; d++) {
            shape[d] = 1 + draw(&state, 4);
        }
        Box all = box_whole(dims, shape), source[2 * BOX_MOST_OF_RANGE], target = random_box(&state, dims, shape);
        int64_t count = box_count(&all), cut = draw(&state, count + 1);
        // The second part first, so that the lists' orders differ.
        int n = boxes_of_range(&all, 1, cut, count, source);
        n += boxes_of_range(&all, 1, 0, cut, source + n);
        CHECK_I64(indices(source, n, shape, from), count);
        int64_t wanted = indices(&target, 1, shape, whole), covered;
        memset(to, 0xFF, sizeof to);
        Copy copy = {from, to, 0};
        CHECK(boxes_runs(source, n, &target, 1, copy_run, &copy, &covered));
        CHECK_I64(covered, wanted);
        CHECK(memcmp(to, whole, (size_t)wanted * sizeof *to) == 0);
    }
    // Whole rows are one run; columns are one a row.
    const int64_t shape[2] = {6, 8};
    Box all = box_whole(2, shape), rows = all, columns = all;
    rows.end[0] = 3;
    columns.begin[1] = 2;
    int64_t from[48] = {0}, to[48];
    Copy copy = {from, to, 0};
    boxes_runs(&rows, 1, &all, 1, copy_run, &copy, NULL);
    CHECK_I64(copy.runs, 1);
    copy.runs = 0;
    boxes_runs(&all, 1, &columns, 1, copy_run, &copy, NULL);
    CHECK_I64(copy.runs, 6);
}

// Pieces of straight and of interlocked cuts, in a random order, with one of them made larger or not.
static void test_disjoint(void) {
    static const Box pinwheel[] = {
        {2, {0, 0}, {1, 2}}, {2, {0, 2}, {2, 3}}, {2, {2, 1}, {3, 3}}, {2, {1, 0}, {3, 1}}, {2, {1, 1}, {2, 2}}};
    Box boxes[4 * BOX_MOST_OF_RANGE];
    uint64_t state = 0;
    for (int round = 0; round < 3000; round++) {
        int64_t shape[BOX_MOST_DIMS] = {3, 3};
        int dims = round % 3 == 0 ? 2 : (int)draw(&state, BOX_MOST_DIMS + 1), count = 0;
        for (int d = 0; d < dims && round % 3 != 0; d++) {
            shape[d] = 1 + draw(&state, 4);
        }
        Box whole = box_whole(dims, shape);
        for (int64_t begin = 0, all = box_count(&whole), end; begin < all && round % 3 != 0; begin = end) {
            end = count >= 3 * BOX_MOST_OF_RANGE ? all : begin + 1 + draw(&state, all - begin);
            count += boxes_of_range(&whole, 1, begin, end, boxes + count);
        }
        for (; round % 3 == 0 && count < 5; count++) {
            boxes[count] = pinwheel[count];
        }
        for (int i = count - 1; i > 0; i--) {
            int other = (int)draw(&state, i + 1);
            Box kept = boxes[i];
            boxes[i] = boxes[other];
            boxes[other] = kept;
        }
        CHECK(boxes_disjoint(boxes, count));
        if (count > 1) {
            Box *larger = &boxes[draw(&state, count)];
            int d = (int)draw(&state, dims);
            if (larger->begin[d] > 0) {
                larger->begin[d]--;
                CHECK(!boxes_disjoint(boxes, count));
            }
        }
    }
}

static void test_pairs(void) {
    Box a = {.dims = 2, .begin = {0, 0}, .end = {2, 4}}, b = {.dims = 2, .begin = {1, 2}, .end = {3, 6}}, both;
    CHECK(box_intersect(&a, &b, &both) && both.begin[0] == 1 && both.end[0] == 2 && both.begin[1] == 2 && both.end[1] == 4);
    b.begin[0] = 2;
    CHECK(!box_intersect(&a, &b, &both));
    CHECK(box_equal(&a, &a) && !box_equal(&a, &b));
    const int64_t shape[2] = {2, 4};
    CHECK(box_inside(&a, 2, shape) && !box_inside(&b, 2, shape) && !box_inside(&a, 1, shape));
    Box scalar = {.dims = 0};
    CHECK_I64(box_count(&scalar), 1);
}

int main(void) {
    RUN(test_ranges);
    RUN(test_runs);
    RUN(test_disjoint);
    RUN(test_pairs);
    return check_report();
}
