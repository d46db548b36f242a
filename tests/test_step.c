// The end of a step and the drawing of tokens, on every instruction set of the CPU and on cards: sums of losses, the decision
// about the update, eight-bit moments, rounding at random, sampling. (The formulas of the update stand in tests/support/ops.c.)
#include "core/memory.h"
#include "core/philox.h"
#include "kernels/quantize.h"
#include "kernels/scratch.h"
#include "kernels/values.h"
#include "tests/support/check.h"
#include "tests/support/op_check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static OpDevices devices;  // of the CPU first, then cards
static int cards_from;

// Device memory that holds `from`.
static void *put(Device *device, const void *from, size_t bytes) {
    void *memory;
    CHECK_OK(device_allocate(device, bytes, &memory));
    device_upload(device, memory, from, bytes);
    return memory;
}

// Brings it back and releases it.
static void take(Device *device, void *to, void *memory, size_t bytes) {
    device_download(device, to, memory, bytes);
    CHECK_OK(device_finish(device));
    device_release(device, memory, bytes);
}

// ---- Sums

static void test_squares(void) {
    static const int64_t counts[] = {0, 1, 3, 1023, 4097, 70001};
    enum { MOST = 70001 };
    float *x = memory_new(MOST, sizeof *x);
    philox_normal(3, 5, 0, 2.0f, x, MOST);
    for (int d = 0; d < devices.count; d++) {
        Device *device = devices.twins[d].of[0];
        for (size_t n = 0; n < sizeof counts / sizeof *counts; n++) {
            long double exact = 0;
            for (int64_t i = 0; i < counts[n]; i++) {
                exact += (long double)x[i] * (long double)x[i];
            }
            for (int bad = 0; bad < 2; bad++) {
                double sums[2] = {-1, -1};
                float value = counts[n] > 0 ? x[counts[n] - 1] : 0;
                x[counts[n] > 0 ? counts[n] - 1 : 0] = bad ? NAN : value;
                for (int run = 0; run < 2; run++) {
                    void *in = put(device, x, MOST * sizeof *x), *out = put(device, &sums[run], sizeof *sums);
                    device->op->squares(device, counts[n], in, out);
                    take(device, &sums[run], out, sizeof *sums);
                    device_release(device, in, MOST * sizeof *x);
                }
                x[counts[n] > 0 ? counts[n] - 1 : 0] = value;
                if (bad && counts[n] > 0) {
                    CHECK(isnan(sums[0]));
                } else {
                    CHECK_NEAR(sums[0], (double)exact, 1e-13 * (double)exact);
                    CHECK(sums[0] == sums[1]);
                }
            }
        }
    }
    free(x);
}

// The tree itself: of any number of parts, in both types, the same bits as the tree of halves; and in place.
static double tree(const double *x, int64_t parts, bool wide) {
    int64_t left = 1;
    while (left * 2 < parts) {
        left *= 2;
    }
    double a = parts == 1 ? x[0] : tree(x, left, wide), b = parts == 1 ? 0 : tree(x + left, parts - left, wide);
    return parts == 1 ? a : wide ? a + b : (double)((float)a + (float)b);
}

static void test_sum_parts(void) {
    enum { MOST = 37, COUNT = 3 };
    for (int d = 0; d < devices.count; d++) {
        Device *device = devices.twins[d].of[0];
        for (int parts = 1; parts <= MOST; parts++) {
            for (int wide = 0; wide < 2; wide++) {
                double x[MOST * COUNT], one[MOST];
                float narrow[MOST * COUNT];
                for (int i = 0; i < MOST * COUNT; i++) {
                    narrow[i] = (float)philox_unit(philox(4, 2, (uint64_t)i).word[0]) - 0.4F;
                    x[i] = wide ? (double)narrow[i] / 3 : (double)narrow[i];
                }
                void *from = wide ? (void *)x : (void *)narrow;
                size_t bytes = wide ? sizeof x : sizeof narrow;
                void *in = put(device, from, bytes);
                SumParts sum = {wide, COUNT, parts, COUNT, in, in};
                device->op->sum_parts(device, &sum);
                double found[MOST * COUNT];
                take(device, found, in, bytes);
                for (int i = 0; i < COUNT; i++) {
                    for (int p = 0; p < parts; p++) {
                        one[p] = x[p * COUNT + i];
                    }
                    double here = wide ? found[i] : (double)((float *)(void *)found)[i];
                    CHECK(here == tree(one, parts, wide));
                }
            }
        }
    }
}

static void test_loss_sums(void) {
    enum { ROWS = 3001 };
    static float weights[ROWS], losses[ROWS], zs[ROWS];
    long double loss = 0, z = 0, weight = 0;
    for (int r = 0; r < ROWS; r++) {
        weights[r] = r % 3 == 0 ? 0 : 0.5f * (float)(r % 5);
        losses[r] = weights[r] == 0 ? NAN : 1 + (float)r / ROWS;  // rows of weight 0 do not count, whatever their loss
        zs[r] = weights[r] == 0 ? INFINITY : 3 - (float)r / ROWS;
        loss += weights[r] > 0 ? (long double)weights[r] * losses[r] : 0;
        z += weights[r] > 0 ? (long double)weights[r] * zs[r] * zs[r] : 0;
        weight += weights[r];
    }
    for (int d = 0; d < devices.count; d++) {
        Device *device = devices.twins[d].of[0];
        StepControl control = {.loss_sum = 10, .z_sum = 20, .weight_sum = 30, .loss_scale = 7, .updates = 9};
        void *w = put(device, weights, sizeof weights), *l = put(device, losses, sizeof losses);
        void *zz = put(device, zs, sizeof zs), *c = put(device, &control, sizeof control);
        device->op->loss_sums(device, &(LossSums){.rows = ROWS, .loss_weights = w, .losses = l, .zs = zz, .control = c});
        device->op->loss_sums(device, &(LossSums){.rows = ROWS, .loss_weights = w, .losses = l, .control = c});
        device->op->loss_sums(device, &(LossSums){.rows = 0, .loss_weights = w, .losses = l, .control = c});
        take(device, &control, c, sizeof control);
        CHECK_NEAR(control.loss_sum, 10 + 2 * (double)loss, 1e-12 * (double)loss);
        CHECK_NEAR(control.z_sum, 20 + (double)z, 1e-12 * (double)z);
        CHECK_NEAR(control.weight_sum, 30 + 2 * (double)weight, 1e-12 * (double)weight);
        CHECK(control.loss_scale == 7 && control.updates == 9);
        device_release(device, w, sizeof weights);
        device_release(device, l, sizeof losses);
        device_release(device, zz, sizeof zs);
    }
}

// ---- The decision

static StepControl decide(Device *device, StepControl control, StepDecide a) {
    a.control = put(device, &control, sizeof control);
    device->op->step_decide(device, &a);
    take(device, &control, a.control, sizeof control);
    return control;
}

static void test_step_decide(void) {
    for (int d = 0; d < devices.count; d++) {
        Device *device = devices.twins[d].of[0];
        StepDecide a = {.batch_weight = 6, .beta1 = 0.9f, .beta2 = 0.95f};
        StepControl start = {.weight_sum = 3, .grad_squares = 16, .updates = 4, .loss_scale = 1, .skipped_in_a_row = 2};
        // mean 2: the norm is 4 * 2.
        StepControl c = decide(device, start, a);
        CHECK_NEAR(c.grad_norm, 8, 1e-14);
        CHECK(c.grad_scale == 2 && c.skip == 0 && c.skipped == 0 && c.skipped_in_a_row == 0 && c.good_steps == 1);
        CHECK_I64(c.updates, 5);
        CHECK_NEAR(c.correction1, 1 / (1 - pow((double)0.9f, 5)), 1e-6);
        CHECK_NEAR(c.correction2, 1 / (1 - pow((double)0.95f, 5)), 1e-6);
        a.clip = 2;  // a quarter
        CHECK(decide(device, start, a).grad_scale == 0.5f);
        a.clip = 8;
        CHECK(decide(device, start, a).grad_scale == 2);
        start.loss_scale = 32;  // gradients are 32 times too large
        start.grad_squares = 16 * 1024;
        a.clip = 2;
        c = decide(device, start, a);
        CHECK_NEAR(c.grad_norm, 8, 1e-14);
        CHECK(c.grad_scale == 0.5f / 32 && c.loss_scale == 32);
        // Skips: a gradient that is not finite, no weight. Corrections and updates stay; the scale moves only where it may.
        static const double squares[] = {INFINITY, NAN, 16, 16}, weights[] = {3, 3, 0, NAN};
        for (int i = 0; i < 4; i++) {
            for (int dynamic = 0; dynamic < 2; dynamic++) {
                StepControl bad = start;
                bad.grad_squares = squares[i];
                bad.weight_sum = weights[i];
                bad.good_steps = 7;
                a.dynamic_scale = dynamic == 1;
                c = decide(device, bad, a);
                // What a falling scale explains does not count towards a streak; at a scale of 1 nothing falls.
                CHECK(c.skip == 1 && c.skipped == 1 && c.good_steps == 0 && c.updates == 4);
                CHECK(c.skipped_in_a_row == (dynamic == 1 ? 2 : 3));
                bad.loss_scale = 1;
                CHECK(decide(device, bad, a).skipped_in_a_row == 3);
                CHECK(c.grad_scale == 0 && c.correction1 == 0 && c.loss_scale == (dynamic == 1 ? 16 : 32));
            }
        }
        // The scale halves down to 1 and doubles after 2000 good steps, up to 2^24.
        static const float scales[][3] = {
            {1, 1, 2}, {1.5f, 1, 3}, {2, 1, 4}, {1 << 23, 1 << 22, 1 << 24}, {1 << 24, 1 << 23, 1 << 24}};
        for (size_t i = 0; i < sizeof scales / sizeof *scales; i++) {
            StepControl s = start;
            s.loss_scale = scales[i][0];
            s.grad_squares = INFINITY;
            CHECK(decide(device, s, a).loss_scale == scales[i][1]);
            s.grad_squares = 1;
            s.good_steps = 1998;
            c = decide(device, s, a);
            CHECK(c.loss_scale == scales[i][0] && c.good_steps == 1999);
            c = decide(device, c, a);
            CHECK(c.loss_scale == scales[i][2] && c.good_steps == 0 && c.skip == 0);
        }
    }
}

// ---- The update

enum { PARAMS = 2500, BLOCKS = (PARAMS + MOMENT_BLOCK - 1) / MOMENT_BLOCK, PLACES = BLOCKS * MOMENT_BLOCK, SEGMENTS = 8 };

// Everything that an update may hold.
typedef struct State {
    _Alignas(64) float grads[PLACES];
    _Alignas(64) float masters[PLACES];
    _Alignas(64) uint8_t weights[4 * PLACES];  // in the compute type
    _Alignas(64) float moment1[PLACES];
    _Alignas(64) float moment2[PLACES];
    _Alignas(64) uint8_t codes1[PLACES];
    _Alignas(64) uint8_t codes2[PLACES];
    _Alignas(64) float scale1[BLOCKS];
    _Alignas(64) float scale2[BLOCKS];
    _Alignas(64) StepControl control;
    _Alignas(64) UpdateSegment segments[SEGMENTS];
} State;

// Runs an update on a copy in the device's memory; of `a`, moment_type, kind, factors and the number of segments count, and
// whether it has masters.
static void update(Device *device, OptimizerUpdate a, State *state) {
    char *at = put(device, state, sizeof *state);
#define AT(field) ((void *)(at + offsetof(State, field)))
    bool eight_bit = a.moment_type == MOMENT_8BIT, adamw = a.kind == OPTIMIZER_ADAMW;
    a.count = PLACES;
    a.segments = AT(segments);
    a.control = AT(control);
    a.grads = AT(grads);
    a.masters = a.masters != NULL ? AT(masters) : NULL;
    a.weights = AT(weights);
    a.moment1 = eight_bit ? AT(codes1) : AT(moment1);
    a.moment2 = !adamw ? NULL : eight_bit ? AT(codes2) : AT(moment2);
    a.scale1 = eight_bit ? AT(scale1) : NULL;
    a.scale2 = eight_bit && adamw ? AT(scale2) : NULL;
    device->op->optimizer_update(device, &a);
    take(device, state, at, sizeof *state);
}

static State *state_new(uint64_t seed) {
    State *state = memory_tensor(sizeof *state);
    philox_normal(seed, 1, 0, 1, state->grads, PLACES);
    philox_normal(seed, 2, 0, 1, state->masters, PLACES);
    for (int i = 0; i < PLACES; i++) {
        // Gradients of very different sizes, blocks of zeros among them.
        state->grads[i] *= i / MOMENT_BLOCK == 3 ? 0 : expf(3 * sinf((float)i));
    }
    state->control = (StepControl){
        .updates = 3, .learning_rate = 0.01f, .grad_scale = 0.5f, .correction1 = 1, .correction2 = 1, .loss_scale = 1};
    return state;
}

static void state_free(State *state) {
    memory_tensor_free(state, sizeof *state);
}

// A skipped step leaves everything as it is.
static void test_skip(void) {
    for (int d = 0; d < devices.count; d++) {
        for (int eight_bit = 0; eight_bit < 2; eight_bit++) {
            State *state = state_new(1), *before = memory_tensor(sizeof *before);
            state->segments[0] = (UpdateSegment){.count = PARAMS, .rate_scale = 1, .weight_decay = 0.1f};
            state->control.skip = 1;
            *before = *state;
            update(devices.twins[d].of[0],
                   (OptimizerUpdate){.segment_count = 1,
                                     .beta1 = 0.9f,
                                     .masters = state->masters,
                                     .beta2 = 0.99f,
                                     .moment_type = eight_bit ? MOMENT_8BIT : MOMENT_FP32},
                   state);
            CHECK(memcmp(state, before, sizeof *state) == 0);
            state_free(state);
            state_free(before);
        }
    }
}

// Segments of all lengths, in other places and another order in weights and gradients.
static const UpdateSegment scattered[SEGMENTS] = {
    {.weight = 1400, .gradient = 2012, .state = 0, .count = 1, .random = 4, .rate_scale = 1, .weight_decay = 0.1f},
    {.weight = 1404, .gradient = 4, .state = 256, .count = 255, .random = 1ull << 33, .rate_scale = 0.3f},
    {.weight = 1100, .gradient = 2004, .state = 512, .count = 7, .random = 8, .rate_scale = 2, .weight_decay = 0.3f},
    {.weight = 4, .gradient = 260, .state = 768, .count = 1029, .random = 16, .rate_scale = 1, .weight_decay = 0.1f},
    {.weight = 1112, .gradient = 2100, .state = 2048, .count = 256, .random = 1ull << 40, .rate_scale = 0.5f},
    {.weight = 2000, .gradient = 1500, .state = 2304, .count = 254, .random = 2000, .rate_scale = 1},
};

// Moves a segment's elements from places `from` to places `to`.
static void move_segment(const State *have, const UpdateSegment *from, State *out, const UpdateSegment *to, size_t element) {
    size_t floats = (size_t)from->count * sizeof(float), count = (size_t)from->count;
    int64_t blocks = (from->count + MOMENT_BLOCK - 1) / MOMENT_BLOCK;
    memcpy(out->grads + to->gradient, have->grads + from->gradient, floats);
    memcpy(out->weights + (size_t)to->weight * element, have->weights + (size_t)from->weight * element, count * element);
    memcpy(out->masters + to->state, have->masters + from->state, floats);
    memcpy(out->moment1 + to->state, have->moment1 + from->state, floats);
    memcpy(out->moment2 + to->state, have->moment2 + from->state, floats);
    memcpy(out->codes1 + to->state, have->codes1 + from->state, (size_t)(blocks * MOMENT_BLOCK));
    memcpy(out->codes2 + to->state, have->codes2 + from->state, (size_t)(blocks * MOMENT_BLOCK));
    memcpy(out->scale1 + to->state / MOMENT_BLOCK, have->scale1 + from->state / MOMENT_BLOCK, (size_t)blocks * sizeof(float));
    memcpy(out->scale2 + to->state / MOMENT_BLOCK, have->scale2 + from->state / MOMENT_BLOCK, (size_t)blocks * sizeof(float));
}

// Segments wherever they lie give the bits that each gives alone at the start of all arrays, and nothing else changes.
static void check_places(Device *device, OptimizerUpdate a) {
    size_t element = (size_t)data_type_bytes(device->type);
    State *together = state_new(6), *expected = memory_tensor(sizeof *expected), *alone = state_new(7);
    op_encode(device->type, together->grads, together->weights, PLACES);
    for (int i = 0; i < PLACES; i++) {
        together->moment1[i] = 0.1f * together->masters[i];
        together->moment2[i] = together->grads[i] * together->grads[i];
        together->codes1[i] = together->codes2[i] = (uint8_t)(i * 7);
        together->scale1[i / MOMENT_BLOCK] = together->scale2[i / MOMENT_BLOCK] = 0.5f;
    }
    for (a.segment_count = 0; scattered[a.segment_count].count > 0; a.segment_count++) {
        together->segments[a.segment_count] = scattered[a.segment_count];
    }
    a.masters = a.masters != NULL ? together->masters : NULL;
    *expected = *together;
    for (int64_t i = 0; i < a.segment_count; i++) {
        OptimizerUpdate one = a;
        UpdateSegment start = scattered[i];
        start.weight = start.gradient = start.state = 0;
        move_segment(together, &scattered[i], alone, &start, element);
        alone->segments[0] = start;
        one.segment_count = 1;
        update(device, one, alone);
        move_segment(alone, &start, expected, &scattered[i], element);
    }
    update(device, a, together);
    CHECK(memcmp(together, expected, sizeof *together) == 0);
    state_free(together);
    state_free(expected);
    state_free(alone);
}

static void test_places(void) {
    for (int d = 0; d < devices.count; d++) {
        for (int mode = 0; mode < 8; mode++) {
            static float some;
            OptimizerUpdate a = {.kind = mode & 1 ? OPTIMIZER_ADAMW : OPTIMIZER_LION,
                                 .beta1 = 0.9f,
                                 .beta2 = 0.99f,
                                 .epsilon = 1e-8f,
                                 .moment_type = mode & 2 ? MOMENT_8BIT : MOMENT_FP32,
                                 .masters = mode & 4 ? &some : NULL,
                                 .seed = 12};
            check_places(devices.twins[d].of[0], a);
        }
    }
}

// The largest error of a code for x: half a cell of the last decade; -1 stands where a cell is missing, so half of two there.
static double half_cell(bool has_sign, double x) {
    return !has_sign ? 0.45 / 128 : x < -(1 - 2.7 / 128) ? 1.35 / 128 : 0.45 / 64;
}

static int code_of(const CodeTable *table, float x) {
    return table->type == TYPE_CODE8 ? code_nearest(table->lines, table->end, x)
                                     : code_nearest_unsigned(table->lines, table->end, x);
}

// The code of x that its ends give, found from `code`, that of a number not further from 0.
static int code_by_ends(const CodeTable *table, float x, int code) {
    while (x > table->end[code] && code < MOMENT_CODES - 1) {
        code++;
    }
    while (code > 0 && !(x > table->end[code - 1])) {
        code--;
    }
    return code == 0 && x > 0 ? 1 : code;
}

// Every ATHANOR_TEST_STRIDE-th float of both signs, infinities and what is no number among them: the code that the ends give.
// With a stride of 1, all of them, in a minute.
static void test_every_code(void) {
    const char *asked = getenv("ATHANOR_TEST_STRIDE");
    uint64_t stride = asked != NULL && atoi(asked) > 0 ? (uint64_t)atoi(asked) : 1009;
    for (int table_of = 0; table_of < 4; table_of++) {
        CodeTable table;
        code_table_fill(table_of & 1 ? TYPE_CODE8 : TYPE_CODE8_UNSIGNED, &table);
        int code = table_of & 1 ? MOMENT_ZERO_SIGNED : 0;
        int64_t wrong = 0;
        for (uint64_t bits = 0; bits < 1ull << 31; bits += stride) {
            float x = float_of_bits((uint32_t)bits | (table_of & 2 ? 1u << 31 : 0));
            code = code_by_ends(&table, x, code);
            wrong += code_of(&table, x) != code;
        }
        // And what stands around each end.
        for (int end = 0; end < MOMENT_CODES - 1; end++) {
            for (uint32_t near = 0; near < 200; near++) {
                float x = float_of_bits(bits_of_float(table.end[end]) + near - 100);
                wrong += code_of(&table, x) != code_by_ends(&table, x, end);
            }
        }
        CHECK_I64(wrong, 0);
    }
}

// The codes of the paper's dynamic map: its ends, its order, and for any value the nearest code.
static void test_codes(void) {
    for (int has_sign = 0; has_sign < 2; has_sign++) {
        CodeTable table;
        code_table_fill(has_sign ? TYPE_CODE8 : TYPE_CODE8_UNSIGNED, &table);
        for (int i = 1; i < MOMENT_CODES; i++) {
            CHECK(table.value[i] > table.value[i - 1]);
        }
        CHECK(table.value[255] == 1 && table.value[has_sign ? 127 : 0] == 0);
        // 0.1 + 0.9 / 2 in the least decade; the largest cell.
        CHECK_NEAR(table.value[has_sign ? 128 : 1], has_sign ? 0.55e-6 : 0.325e-6, 1e-13);
        CHECK_NEAR(table.value[254], 1 - 0.9 / (has_sign ? 128 : 256), 1e-7);
        CHECK(table.value[0] == (has_sign ? -1 : 0));
        for (int i = 0; i < 200000; i++) {
            uint32_t random = (uint32_t)philox_u64(1, 2, (uint64_t)i);
            float x = (float)(random >> 8) / 16777216.0f, size = powf(10, -8 * (float)(random & 255) / 255);
            x = i % 2 == 0 ? x : size;
            x = has_sign && i % 4 < 2 ? -x : x;
            int code = code_of(&table, x);
            double error = fabs((double)table.value[code] - (double)x);
            // What is not 0 takes no 0 of a second moment.
            bool first = !has_sign && code <= 1;
            CHECK(first || code == 0 || error <= fabs((double)table.value[code - 1] - (double)x));
            CHECK(code == 255 || error <= fabs((double)table.value[code + 1] - (double)x) * (1 + 1e-6) + 1e-14);
            CHECK(error <= half_cell(has_sign == 1, (double)x) * (1 + 1e-5));
        }
    }
}

// A square that overflows makes no NaN of its block, and what is read from it is written again as the same.
static void test_infinite_moment(void) {
    for (int has_sign = 0; has_sign < 2; has_sign++) {
        DataType type = has_sign ? TYPE_CODE8 : TYPE_CODE8_UNSIGNED;
        float values[DATA_TYPE_BLOCK], read[DATA_TYPE_BLOCK], again[DATA_TYPE_BLOCK], scale;
        uint8_t codes[DATA_TYPE_BLOCK];
        for (int i = 0; i < DATA_TYPE_BLOCK; i++) {
            values[i] = i == 7 ? (float)INFINITY : (float)i;
        }
        values_narrow(type, values, DATA_TYPE_BLOCK, codes, &scale);
        values_widen(type, codes, &scale, 0, DATA_TYPE_BLOCK, read);
        values_narrow(type, read, DATA_TYPE_BLOCK, codes, &scale);
        values_widen(type, codes, &scale, 0, DATA_TYPE_BLOCK, again);
        CHECK(memcmp(read, again, sizeof read) == 0);
        bool finite = true;
        for (int i = 0; i < DATA_TYPE_BLOCK; i++) {
            finite &= isfinite(read[i]) != 0;
        }
        CHECK(finite);
    }
}

// Moments of b1 = b2 = 0 are the gradient and its square: after an update the codes hold those, within half a cell.
static void test_eight_bit_moments(void) {
    State *first = NULL;
    for (int d = 0; d < devices.count; d++) {
        for (int kind = OPTIMIZER_ADAMW; kind <= OPTIMIZER_SGD; kind++) {
            State *state = state_new(2);
            // Elements 700 .. 767 belong to none: what is behind a segment's end in its last block becomes 0.
            state->segments[0] = (UpdateSegment){.count = 700, .rate_scale = 1};
            state->segments[1] = (UpdateSegment){
                .weight = 768, .gradient = 768, .state = 768, .count = PARAMS - 768, .rate_scale = 0.5f, .weight_decay = 0.1f};
            memset(state->codes1 + 700, 3, 68);
            memset(state->codes2 + 700, 3, 68);
            update(devices.twins[d].of[0],
                   (OptimizerUpdate){.kind = (OptimizerKind)kind,
                                     .segment_count = 2,
                                     .epsilon = 1e-8f,
                                     .masters = state->masters,
                                     .moment_type = MOMENT_8BIT},
                   state);
            bool adamw = kind == OPTIMIZER_ADAMW;
            for (int i = 0; i < PLACES; i++) {
                bool none = (i >= 700 && i < 768) || i >= PARAMS;
                double g = none ? 0 : (double)state->grads[i] * 0.5, square = g * g;
                double scale1 = (double)state->scale1[i / MOMENT_BLOCK], scale2 = (double)state->scale2[i / MOMENT_BLOCK];
                CHECK(fabs(g) <= scale1 && (!adamw || square <= scale2 * (1 + 1e-6)));
                CHECK_NEAR((double)code_value(1, state->codes1[i]) * scale1, g,
                           half_cell(true, g / scale1) * scale1 * (1 + 1e-5));
                if (adamw) {
                    CHECK_NEAR((double)code_value(0, state->codes2[i]) * scale2, square, 0.45 / 128 * scale2 * (1 + 1e-5));
                    CHECK(square == 0 || state->codes2[i] > 0 || scale2 == 0);
                }
            }
            if (adamw && first == NULL) {
                first = state;
                continue;
            }
            if (adamw) {  // the same bits on every device
                CHECK(memcmp(first->codes1, state->codes1, PLACES) == 0 && memcmp(first->codes2, state->codes2, PLACES) == 0);
                CHECK(memcmp(first->scale1, state->scale1, sizeof first->scale1) == 0);
                CHECK(memcmp(first->scale2, state->scale2, sizeof first->scale2) == 0);
            }
            state_free(state);
        }
    }
    state_free(first);
}

// Many steps with eight-bit moments come close to those with moments in fp32: the path along a fixed gradient with noise.
static void test_eight_bit_path(void) {
    for (int d = 0; d < devices.count; d++) {
        State *states[2] = {state_new(3), state_new(3)};
        float noise[PARAMS];
        double way = 0, apart = 0;
        for (int kind = 0; kind < 2; kind++) {
            State *state = states[kind];
            state->segments[0] = (UpdateSegment){.count = PARAMS, .rate_scale = 1};
            float mean[PARAMS];
            for (int i = 0; i < PARAMS; i++) {
                mean[i] = cbrtf(state->grads[i]);  // within a block most differ by less than ten times
            }
            for (int step = 1; step <= 12; step++) {
                philox_normal(9, 9, (uint64_t)step * PARAMS, 0.3f, noise, PARAMS);
                for (int i = 0; i < PARAMS; i++) {
                    state->grads[i] = mean[i] * (1 + noise[i]);
                }
                state->control.correction1 = 1 / (1 - powf(0.9f, (float)step));
                state->control.correction2 = 1 / (1 - powf(0.99f, (float)step));
                update(devices.twins[d].of[0],
                       (OptimizerUpdate){.segment_count = 1,
                                         .beta1 = 0.9f,
                                         .beta2 = 0.99f,
                                         .epsilon = 1e-8f,
                                         .masters = state->masters,
                                         .moment_type = kind == 0 ? MOMENT_FP32 : MOMENT_8BIT},
                       state);
            }
        }
        State *start = state_new(3);
        for (int i = 0; i < PARAMS; i++) {
            way += pow((double)states[0]->masters[i] - (double)start->masters[i], 2);
            apart += pow((double)states[0]->masters[i] - (double)states[1]->masters[i], 2);
        }
        CHECK(way > 0 && sqrt(apart / way) < 0.03);
        state_free(start);
        state_free(states[0]);
        state_free(states[1]);
    }
}

// ---- Rounding

// Both neighbours with the right odds, nothing else, numbers of the type never moved; on a card as by the shared functions.
static void test_rounding(void) {
    static const float values[] = {1.0f, 1.00123f, -3.14159f, 65503.0f, 1e-6f, 3.3e-7f, 6.2e-5f, -0.00011f, 0, 1e30f};
    enum { DRAWS = 4000 };
    for (int type = TYPE_BF16; type <= TYPE_FP16; type++) {
        for (size_t n = 0; n < sizeof values / sizeof *values; n++) {
            float x = values[n], rounded;
            if (type == TYPE_FP16 && fabsf(x) > 65504) {
                continue;
            }
            double sum = 0, least = INFINITY, most = -INFINITY;
            for (uint64_t i = 0; i < DRAWS; i++) {
                uint32_t word = philox(5, 6, i).word[0];
                uint16_t bits = type == TYPE_BF16 ? round_stochastic_bf16(x, word) : round_stochastic_fp16(x, word);
                op_decode((DataType)type, &bits, &rounded, 1);
                sum += (double)rounded;
                least = fmin(least, (double)rounded);
                most = fmax(most, (double)rounded);
            }
            CHECK(least <= (double)x && most >= (double)x);
            if (op_round((DataType)type, x) == x) {
                CHECK(least == most);
            } else {
                // Neighbours: what lies between them rounds to one of them.
                float middle = (float)((least + most) / 2), nearest = op_round((DataType)type, middle);
                CHECK(most > least && ((double)nearest == least || (double)nearest == most));
            }
            CHECK_NEAR(sum / DRAWS, x, 5 * 0.5 * (most - least) / sqrt(DRAWS));
        }
        float special[] = {INFINITY, -INFINITY, NAN}, back;
        for (int i = 0; i < 3; i++) {
            uint16_t bits = type == TYPE_BF16 ? round_stochastic_bf16(special[i], 0xFFFFFFFFu)
                                              : round_stochastic_fp16(special[i], 0xFFFFFFFFu);
            op_decode((DataType)type, &bits, &back, 1);
            CHECK(isnan(special[i]) ? isnan(back) : back == special[i]);
        }
    }
}

// Weights without masters: each moved by less than they can hold, so that only the mean can follow.
static void test_weights_alone(void) {
    for (int d = cards_from; d < devices.count; d++) {
        DataType type = devices.twins[d].type;
        State *state = state_new(4), *again = memory_tensor(sizeof *again);
        float before[PARAMS], after[PARAMS];
        for (int i = 0; i < PARAMS; i++) {
            before[i] = 1.0f + (float)(i % 50) / 128.0f;
            state->grads[i] = 1;
        }
        op_encode(type, before, state->weights, PARAMS);
        state->segments[0] = (UpdateSegment){.count = PARAMS, .random = 256, .rate_scale = 1};
        state->control.learning_rate = 0.0005f;
        OptimizerUpdate a = {.kind = OPTIMIZER_SGD, .segment_count = 1, .seed = 77};
        *again = *state;
        update(devices.twins[d].of[0], a, state);
        update(devices.twins[d].of[0], a, again);
        CHECK(memcmp(state, again, sizeof *state) == 0);
        op_decode(type, state->weights, after, PARAMS);
        double sum = 0;
        for (int i = 0; i < PARAMS; i++) {
            float exact = before[i] - 0.0005f * 0.5f;
            uint64_t flat = 256 + (uint64_t)i;
            uint32_t word = philox(77, philox_stream(RANDOM_ROUNDING, 3), flat / 4).word[flat % 4];
            if (type == TYPE_FP32) {
                CHECK(after[i] == exact);
            } else {
                uint16_t bits = type == TYPE_BF16 ? round_stochastic_bf16(exact, word) : round_stochastic_fp16(exact, word);
                CHECK(memcmp(state->weights + 2 * i, &bits, 2) == 0);
            }
            sum += (double)after[i] - (double)before[i];
        }
        // One step of bf16 is 0.0078: a share of about 3% of the weights moves.
        CHECK_NEAR(sum / PARAMS, -0.00025, type == TYPE_FP32 ? 1e-7 : 5 * 0.0014 / sqrt(PARAMS));
        again->control.updates++;
        op_encode(type, before, again->weights, PARAMS);
        update(devices.twins[d].of[0], a, again);
        CHECK(type == TYPE_FP32 || memcmp(state->weights, again->weights, sizeof state->weights) != 0);  // other numbers
        state_free(state);
        state_free(again);
    }
}

// ---- Sampling

// Draws numbers 0 .. draws - 1, `rows` at a time, all from the same logits.
static void draw_many(Device *device, Sample a, const float *logits, int draws, int rows, int32_t *tokens) {
    size_t row_bytes = (size_t)a.vocabulary * sizeof *logits, bytes = (size_t)rows * row_bytes;
    float *all = memory_new((size_t)rows, row_bytes);
    int64_t *index = memory_new((size_t)rows, sizeof *index);
    for (int r = 0; r < rows; r++) {
        memcpy(all + r * a.vocabulary, logits, row_bytes);
    }
    size_t scratch_bytes = (size_t)sample_scratch_bytes(device->kind != DEVICE_CPU, rows, a.vocabulary);
    a.rows = rows;
    a.logits = put(device, all, bytes);
    CHECK_OK(device_allocate(device, scratch_bytes, &a.scratch));
    for (int from = 0; from < draws; from += rows) {
        for (int r = 0; r < rows; r++) {
            index[r] = from + r;
        }
        a.index = put(device, index, (size_t)rows * sizeof *index);
        a.tokens = put(device, index, (size_t)rows * sizeof *tokens);
        device->op->sample(device, &a);
        take(device, tokens + from, a.tokens, (size_t)rows * sizeof *tokens);
        device_release(device, (void *)a.index, (size_t)rows * sizeof *index);
    }
    device_release(device, a.scratch, scratch_bytes);
    device_release(device, (void *)a.logits, bytes);
    free(all);
    free(index);
}

enum { SIX = 6, DRAWS = 4000, SAME = 24 };

// Counts of each id over many draws on the CPU; all devices start with the same draws.
static void count_six(Sample a, const float *logits, int counts[SIX]) {
    static int32_t tokens[DRAWS], others[SAME];
    memset(counts, 0, SIX * sizeof *counts);
    a.vocabulary = SIX;
    a.seed = 4;
    for (int d = 0; d < devices.count; d++) {
        if (d == 0) {
            draw_many(devices.twins[d].of[0], a, logits, DRAWS, 1000, tokens);
        } else if (devices.twins[d].type == TYPE_FP32) {  // logits are fp32 everywhere
            draw_many(devices.twins[d].of[0], a, logits, SAME, SAME, others);
            CHECK(memcmp(tokens, others, sizeof others) == 0);
        }
    }
    for (int i = 0; i < DRAWS; i++) {
        counts[tokens[i]]++;
    }
}

static void test_sampling(void) {
    static const double shares[SIX] = {0.4, 0.05, 0.3, 0.1, 0.1, 0.05};
    float logits[SIX];
    int counts[SIX];
    for (int i = 0; i < SIX; i++) {
        logits[i] = (float)log(shares[i]) + 3;
    }
    Sample all = {.usable = SIX, .temperature = 1, .top_p = 1}, a = all;
    count_six(a, logits, counts);
    for (int i = 0; i < SIX; i++) {
        // Four standard deviations of a binomial count.
        CHECK_NEAR(counts[i], shares[i] * DRAWS, 4 * sqrt(shares[i] * DRAWS));
    }
    a.temperature = 0.5;  // squares the odds
    count_six(a, logits, counts);
    CHECK_NEAR((double)counts[0] / counts[2], 16.0 / 9, 0.3);
    a = all, a.top_k = 2;
    count_six(a, logits, counts);
    CHECK(counts[0] + counts[2] == DRAWS && counts[2] > 0);
    CHECK_NEAR(counts[0], DRAWS * 4.0 / 7, 4 * sqrt(DRAWS / 2.0));
    a.top_k = 1;
    count_six(a, logits, counts);
    CHECK_I64(counts[0], DRAWS);
    a.top_k = 4;  // of the two with 0.1 the lower id is the third, the other the fourth
    count_six(a, logits, counts);
    CHECK(counts[3] > 0 && counts[4] > 0 && counts[1] == 0 && counts[5] == 0);
    a.top_k = 3;
    count_six(a, logits, counts);
    CHECK(counts[3] > 0 && counts[4] == 0);
    a.top_k = 6, a.top_p = 0.75;  // 0.4 + 0.3 is not enough, one of 0.1 joins: the lower id
    count_six(a, logits, counts);
    CHECK(counts[3] > 0 && counts[4] == 0 && counts[1] == 0 && counts[5] == 0);
    a.top_k = 2, a.top_p = 0.99;  // k is the stricter cut
    count_six(a, logits, counts);
    CHECK(counts[0] + counts[2] == DRAWS && counts[2] > 0);
    a = all, a.top_p = 0;  // at least one token stays
    count_six(a, logits, counts);
    CHECK_I64(counts[0], DRAWS);
    a = all, a.temperature = 0;
    count_six(a, logits, counts);
    CHECK_I64(counts[0], DRAWS);
    a = all, a.usable = 2;  // ids beyond the tokenizer's are never drawn
    count_six(a, logits, counts);
    CHECK(counts[0] + counts[1] == DRAWS && counts[1] > 0);
    // Equal ones: the lowest id.
    float equal[SIX] = {1, 2, 2, 1, 2, 0};
    a = all, a.temperature = 0;
    count_six(a, equal, counts);
    CHECK_I64(counts[1], DRAWS);
    a = all, a.top_k = 1;
    count_six(a, equal, counts);
    CHECK_I64(counts[1], DRAWS);
}

// A row with a logit that is not finite draws -1, wherever it stands and however tokens are drawn; one beyond the usable ids
// does not matter.
static void test_not_finite_draws(void) {
    static const float odd[] = {NAN, -NAN, INFINITY, -INFINITY};
    enum { WIDE = 1500, ROWS = 3 };
    float *logits = memory_new(WIDE, sizeof *logits);
    for (int d = 0; d < devices.count; d++) {
        Device *device = devices.twins[d].of[0];
        for (int kind = 0; kind < 16 && devices.twins[d].type == TYPE_FP32; kind++) {
            Sample a = {.vocabulary = kind % 2 ? SIX : WIDE, .temperature = kind / 4 % 2, .top_p = kind / 8 ? 0.9 : 1};
            int64_t places[] = {0, 1, a.vocabulary / 2, a.vocabulary - 2, a.vocabulary - 1};
            a.usable = a.vocabulary - 1;
            a.top_k = kind / 2 % 2 ? 3 : 0;
            for (size_t p = 0; p < sizeof places / sizeof *places; p++) {
                int32_t tokens[ROWS];
                philox_normal(6, 1, 2, 3, logits, a.vocabulary);
                logits[places[p]] = odd[(p + (size_t)kind) % 4];
                draw_many(device, a, logits, ROWS, ROWS, tokens);
                for (int r = 0; r < ROWS; r++) {
                    CHECK(places[p] < a.usable ? tokens[r] == -1 : tokens[r] >= 0 && tokens[r] < a.usable);
                }
            }
        }
    }
    free(logits);
}

// Cards draw what the CPU draws, from vocabularies of every size, flat and peaked, with equal logits among them.
static void test_same_draws(void) {
    static const int64_t vocabularies[] = {1, 31, 33, 1000, 1024, 5003};
    static const Sample kinds[] = {{.temperature = 1, .top_p = 1},       {.temperature = 0.7, .top_p = 1, .top_k = 40},
                                   {.temperature = 1.3, .top_p = 0.9},   {.temperature = 0.9, .top_p = 0.5, .top_k = 7},
                                   {.temperature = 100, .top_p = 0.999}, {.temperature = 0.01, .top_p = 0.95},
                                   {.temperature = 0, .top_p = 1}};
    enum { NUMBER = 12, MOST = 5003 };
    float *logits = memory_new(MOST, sizeof *logits);
    for (size_t v = 0; v < sizeof vocabularies / sizeof *vocabularies; v++) {
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
            Sample a = kinds[k];
            a.vocabulary = vocabularies[v];
            a.usable = v % 2 == 0 ? a.vocabulary : a.vocabulary - a.vocabulary / 10;
            a.seed = 8 + k;
            a.stream = philox_stream(RANDOM_SAMPLE, 0);
            philox_normal(6, v, k, 3, logits, a.vocabulary);
            for (int64_t i = 0; i < a.vocabulary && k % 2 == 0; i++) {
                logits[i] = roundf(logits[i]);  // many equals
            }
            int32_t want[NUMBER], have[NUMBER];
            draw_many(devices.twins[0].of[0], a, logits, NUMBER, NUMBER, want);
            for (int d = 1; d < devices.count; d++) {
                if (devices.twins[d].type == TYPE_FP32) {
                    draw_many(devices.twins[d].of[0], a, logits, NUMBER, NUMBER, have);
                    if (!CHECK(memcmp(want, have, sizeof want) == 0)) {
                        fprintf(stderr, "%s: other draws from %lld tokens, kind %zu\n", devices.twins[d].label,
                                (long long)a.vocabulary, k);
                    }
                }
            }
        }
    }
    free(logits);
}

int main(void) {
    op_devices_cpu(&devices);
    cards_from = devices.count;
    op_devices_cards(&devices);
    RUN(test_squares);
    RUN(test_sum_parts);
    RUN(test_loss_sums);
    RUN(test_step_decide);
    RUN(test_skip);
    RUN(test_places);
    RUN(test_codes);
    RUN(test_every_code);
    RUN(test_infinite_moment);
    RUN(test_eight_bit_moments);
    RUN(test_eight_bit_path);
    RUN(test_rounding);
    RUN(test_weights_alone);
    RUN(test_sampling);
    RUN(test_not_finite_draws);
    RUN(test_same_draws);
    op_devices_close(&devices);
    return check_report();
}
