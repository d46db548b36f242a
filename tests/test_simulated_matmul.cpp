// The matrix product of Hopper on the simulated card, against float64, with the cut of the product given: tiles of 128 and 256
// columns, one block and clusters of two, parts of K, every form and epilogue; asynchronous work as late and as early as may
// be, and at random. Streamed products too, with fewer and more multiprocessors than tiles: the same bits whatever the order of
// blocks, one after another, and from a recorded graph. Then that the cut chosen for a shape is sensible.
//
//   test_simulated_matmul --plan FORM M N K [WORDS [MULTIPROCESSORS]]      prints the cut that is chosen, without a card
//     FORM: forward, input or weight; WORDS, with commas between: bias residual pre accumulate float gated
//     gelu_tanh gelu_erf relu silu, or none; MULTIPROCESSORS: 132
//
// An element may err by one rounding of its type, by what fp32 sums of that length err and by what an activation's value and
// slope may (tests/test_activations.c). Rows have gaps, which must stay.
#define _Noreturn [[noreturn]]
extern "C" {
#include "core/hash.h"
#include "core/memory.h"
#include "core/philox.h"
#include "tests/support/check.h"
#include "tests/support/op_check.h"
}
#undef _Noreturn
#include "kernels/cuda/matmul_sm90_plan.h"

#include <math.h>
#include <stdio.h>

#include <engine.h>

using namespace simulated;

// One product. The flags say which of the epilogue's tensors there are.
enum { BIAS = 1, RESIDUAL = 2, PRE = 4, ACCUMULATE = 8, FLOAT = 16, IN_PLACE = 32 };  // the last: the residual is C
typedef struct Row {
    ProductForm form;
    ProductEpilogue epilogue;
    Activation activation;
    int flags;
    int m, n, k;
    int columns, cluster, parts;  // columns 0: the portable body
} Row;

static const ProductForm F = PRODUCT_FORWARD, I = PRODUCT_BACKWARD_INPUT, W = PRODUCT_BACKWARD_WEIGHT;
static const ProductEpilogue P = EPILOGUE_FORWARD, G = EPILOGUE_GATED, B = EPILOGUE_BACKWARD, D = EPILOGUE_GATED_BACKWARD;
static const Activation NONE = ACTIVATION_NONE, TANH = ACTIVATION_GELU_TANH, ERF = ACTIVATION_GELU_ERF, RELU = ACTIVATION_RELU,
                        SILU = ACTIVATION_SILU;

static const Row table[] = {
    // The main loop: one and several blocks of K, more and fewer than stages; edges of K, M and N; odd numbers of row tiles.
    {F, P, NONE, 0, 128, 256, 64, 256, 1, 1},
    {F, P, NONE, 0, 256, 256, 640, 256, 2, 1},
    {F, P, NONE, 0, 1, 8, 8, 128, 1, 1},
    {F, P, NONE, 0, 129, 264, 72, 256, 2, 1},
    {F, P, NONE, 0, 383, 520, 200, 256, 2, 1},
    {F, P, NONE, 0, 127, 120, 456, 128, 2, 1},
    {F, P, NONE, 0, 1100, 392, 136, 128, 2, 1},  // several tiles for each of the simulated card's six multiprocessors
    {F, P, NONE, 0, 1100, 392, 136, 128, 1, 1},
    {F, P, NONE, 0, 900, 776, 328, 256, 1, 1},
    {I, B, NONE, 0, 128, 256, 64, 256, 1, 1},
    {I, B, NONE, 0, 257, 264, 200, 256, 2, 1},
    {I, B, NONE, 0, 640, 392, 72, 128, 2, 1},
    {I, B, NONE, 0, 130, 136, 520, 128, 1, 1},
    {W, B, NONE, FLOAT, 128, 256, 64, 256, 1, 1},
    {W, B, NONE, FLOAT, 264, 264, 200, 256, 2, 1},
    {W, B, NONE, FLOAT | ACCUMULATE, 392, 520, 77, 128, 2, 1},
    {W, B, NONE, FLOAT | ACCUMULATE, 136, 72, 1000, 128, 1, 1},
    {W, B, NONE, FLOAT | ACCUMULATE, 8, 8, 1, 128, 1, 1},
    // Ends of tiles: what is added, in fragments ...
    {F, P, NONE, BIAS, 200, 264, 72, 256, 2, 1},
    {F, P, NONE, RESIDUAL, 200, 264, 72, 256, 1, 1},
    {F, P, NONE, BIAS | RESIDUAL, 300, 328, 72, 128, 2, 1},
    {I, B, NONE, ACCUMULATE, 200, 520, 72, 256, 2, 1},
    {I, B, NONE, ACCUMULATE, 200, 200, 72, 128, 1, 1},
    // ... what is derived and written twice ...
    {F, P, NONE, BIAS | PRE, 140, 264, 72, 256, 2, 1},
    {F, P, TANH, BIAS | PRE, 140, 264, 72, 256, 2, 1},
    {F, P, ERF, BIAS | PRE | RESIDUAL, 260, 136, 72, 128, 2, 1},
    {F, P, RELU, RESIDUAL, 140, 264, 72, 256, 1, 1},
    {F, P, SILU, 0, 140, 104, 72, 128, 1, 1},
    {F, G, SILU, PRE, 140, 264, 72, 256, 2, 1},
    {F, G, TANH, BIAS | PRE | RESIDUAL, 300, 200, 136, 256, 2, 1},
    {F, G, NONE, BIAS, 140, 72, 136, 128, 1, 1},
    {F, G, ERF, 0, 520, 104, 72, 128, 2, 1},
    {I, B, TANH, PRE, 140, 264, 72, 256, 2, 1},
    {I, B, SILU, PRE | ACCUMULATE, 140, 264, 72, 256, 1, 1},
    {I, B, ERF, PRE | ACCUMULATE, 260, 72, 72, 128, 2, 1},
    {I, B, RELU, PRE, 140, 72, 72, 128, 1, 1},
    {I, D, SILU, PRE, 140, 264, 72, 256, 2, 1},
    {I, D, TANH, PRE, 300, 136, 72, 128, 2, 1},
    {I, D, NONE, PRE, 140, 72, 72, 128, 1, 1},
    // ... and fp32.
    {F, P, NONE, BIAS | FLOAT, 140, 264, 72, 256, 2, 1},
    {F, P, NONE, BIAS | FLOAT, 300, 392, 72, 128, 1, 1},
    {I, B, NONE, FLOAT, 200, 264, 72, 256, 1, 1},
    {I, B, NONE, FLOAT | ACCUMULATE, 140, 200, 72, 128, 2, 1},
    // Parts of K, the last one shorter.
    {W, B, NONE, FLOAT | ACCUMULATE, 136, 264, 1000, 256, 2, 4},
    {W, B, NONE, FLOAT | ACCUMULATE, 264, 136, 700, 128, 1, 3},
    {F, P, TANH, BIAS | PRE | RESIDUAL, 140, 264, 456, 256, 2, 3},
    {F, G, SILU, BIAS | PRE, 140, 136, 456, 128, 2, 3},
    {I, D, SILU, PRE, 140, 136, 456, 128, 1, 2},
    {I, B, NONE, ACCUMULATE, 140, 136, 456, 128, 2, 2},
    // N, M and K that are no multiple of 8, between columns that must stay and whose numbers must not count.
    {F, P, NONE, 0, 140, 257, 71, 256, 2, 1},
    {F, P, NONE, 0, 129, 131, 200, 128, 1, 1},
    {F, P, NONE, 0, 1100, 449, 130, 256, 2, 1},
    {F, P, NONE, 0, 130, 1, 65, 128, 1, 1},
    {F, P, NONE, BIAS, 140, 263, 66, 256, 1, 1},
    {F, P, TANH, BIAS | PRE, 140, 389, 66, 128, 2, 1},
    {F, P, NONE, BIAS | FLOAT, 140, 261, 66, 256, 2, 1},
    {F, P, NONE, BIAS | FLOAT, 140, 515, 456, 256, 2, 3},
    {F, P, NONE, BIAS, 140, 131, 456, 128, 1, 2},
    {I, B, NONE, 0, 140, 261, 71, 256, 2, 1},
    {I, B, NONE, FLOAT | ACCUMULATE, 140, 135, 71, 128, 1, 1},
    {I, B, TANH, PRE, 140, 264, 257, 256, 1, 1},
    {W, B, NONE, FLOAT | ACCUMULATE, 257, 264, 71, 256, 2, 1},
    {W, B, NONE, FLOAT | ACCUMULATE, 135, 131, 71, 128, 1, 1},
    {W, B, NONE, FLOAT | ACCUMULATE, 135, 131, 520, 128, 2, 3},
    // Every end with several tiles for each multiprocessor and one box, several and a part of one in the last tile of a row.
    {F, P, NONE, BIAS | RESIDUAL | IN_PLACE, 1100, 456, 136, 256, 2, 1},
    {F, P, NONE, RESIDUAL | IN_PLACE, 900, 328, 456, 128, 1, 1},
    {F, P, TANH, BIAS | PRE, 1100, 328, 136, 256, 1, 1},
    {F, G, SILU, PRE | RESIDUAL | IN_PLACE, 900, 328, 136, 256, 2, 1},
    {I, B, NONE, ACCUMULATE, 1100, 456, 136, 256, 1, 1},
    {I, B, TANH, PRE, 1100, 456, 136, 256, 2, 1},
    {I, B, ERF, PRE | ACCUMULATE, 900, 328, 136, 256, 1, 1},
    {I, D, SILU, PRE, 1100, 392, 136, 256, 2, 1},
    {W, B, NONE, FLOAT | ACCUMULATE, 904, 456, 136, 256, 2, 1},
    // The second consumer starts behind the other by less than the blocks of a tile, by all of them, by one.
    {F, P, NONE, BIAS, 900, 264, 192, 256, 2, 1},
    {F, P, NONE, BIAS, 900, 264, 128, 256, 1, 1},
    {F, P, NONE, BIAS, 900, 264, 64, 256, 2, 1},
    {F, P, NONE, BIAS, 900, 264, 256, 128, 2, 1},
    {F, P, NONE, BIAS, 129, 8, 64, 128, 2, 1},
    // The portable body, which cuts as it likes: odd sizes in tiles of 128, of 64 and in parts of K, between the same columns.
    {I, B, NONE, 0, 140, 264, 257},
    {I, B, NONE, FLOAT | ACCUMULATE, 392, 261, 261},
    {I, B, TANH, PRE, 135, 131, 71},
    {I, B, NONE, ACCUMULATE, 40, 72, 1501},
    {W, B, NONE, FLOAT | ACCUMULATE, 257, 264, 71},
    {W, B, NONE, FLOAT | ACCUMULATE, 391, 263, 140},
    {W, B, NONE, FLOAT | ACCUMULATE, 135, 131, 71},
    {W, B, NONE, FLOAT | ACCUMULATE, 41, 73, 1501},
    {F, P, NONE, BIAS, 140, 257, 72},
    {F, P, NONE, 0, 140, 257, 71},
};

// A matrix on the card and on the host, rows `stride` elements apart; `float_elements`: fp32 instead of the type.
typedef struct Matrix {
    int64_t rows, width, stride;
    DataType type;
    float *host;
    void *card;
} Matrix;

static const float GAP = -77;

static Matrix matrix_new(Device *device, DataType type, int64_t rows, int64_t width, int64_t gap, float deviation,
                         uint64_t stream) {
    Matrix x = {rows, width, (width + 7) / 8 * 8 + gap, type, NULL, NULL};
    int64_t count = rows * x.stride;
    size_t bytes = (size_t)(count * data_type_bytes(type));
    x.host = (float *)memory_new((size_t)count, sizeof(float));
    philox_normal(11, philox_stream(RANDOM_TEST, stream), 0, deviation, x.host, count);
    for (int64_t i = 0; i < count; i++) {
        x.host[i] = i % x.stride < width ? op_round(type, x.host[i]) : GAP;
    }
    void *encoded = memory_new(bytes, 1);
    op_encode(type, x.host, encoded, count);
    CHECK_OK(device_allocate(device, bytes, &x.card));
    device_upload(device, x.card, encoded, bytes);
    CHECK_OK(device_finish(device));
    free(encoded);
    return x;
}

static void matrix_free(Device *device, Matrix *x) {
    if (x->card != NULL) {
        device_release(device, x->card, (size_t)(x->rows * x->stride * data_type_bytes(x->type)));
        free(x->host);
    }
}

static double activation(Activation kind, double x, bool slope) {
    double c = sqrt(2 / M_PI), t = tanh(c * (x + 0.044715 * x * x * x)), s = 1 / (1 + exp(-x));
    switch (kind) {
    case ACTIVATION_GELU_TANH:
        return slope ? 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x) : 0.5 * x * (1 + t);
    case ACTIVATION_GELU_ERF:
        return slope ? 0.5 * (1 + erf(x / sqrt(2))) + x * exp(-x * x / 2) / sqrt(2 * M_PI) : 0.5 * x * (1 + erf(x / sqrt(2)));
    case ACTIVATION_RELU:
        return slope ? x > 0 : x > 0 ? x : 0;
    case ACTIVATION_SILU:
        return slope ? s + x * s * (1 - s) : x * s;
    default:
        return slope ? 1 : x;
    }
}

typedef struct Tensors {
    Matrix a, b, bias, residual, pre, c;
} Tensors;

static double sum_of(const Row *r, const Tensors *t, int64_t i, int64_t j) {
    double sum = 0;
    for (int64_t k = 0; k < r->k; k++) {
        float a = r->form == W ? t->a.host[k * t->a.stride + i] : t->a.host[i * t->a.stride + k];
        float b = r->form == F ? t->b.host[j * t->b.stride + k] : t->b.host[k * t->b.stride + j];
        sum += (double)a * (double)b;
    }
    return sum;
}

// The largest error of a matrix on the card in units of its tolerance; want[rows, width]; activations: what these may err,
// NULL: there is none.
static double worst_of(Device *device, const Matrix *x, const double *want, const double *activations, double sums) {
    int64_t count = x->rows * x->stride;
    size_t bytes = (size_t)(count * data_type_bytes(x->type));
    void *encoded = memory_new(bytes, 1);
    float *have = (float *)memory_new((size_t)count, sizeof(float));
    device_download(device, encoded, x->card, bytes);
    CHECK_OK(device_finish(device));
    op_decode(x->type, encoded, have, count);
    double worst = 0, unit = x->type == TYPE_BF16 ? 0x1p-8 : x->type == TYPE_FP16 ? 0x1p-11 : 0x1p-24;
    for (int64_t i = 0; i < x->rows; i++) {
        for (int64_t j = 0; j < x->stride; j++) {
            float at = have[i * x->stride + j];
            double error;
            if (j < x->width) {
                double right = want[i * x->width + j];
                double slack = activations != NULL ? activations[i * x->width + j] : 0;
                error = fabs((double)at - right) / (1.001 * unit * fabs(right) + sums + slack);
            } else {
                error = at == GAP ? 0 : INFINITY;
            }
            worst = error > worst || isnan(error) ? error : worst;
        }
    }
    free(encoded);
    free(have);
    return worst;
}

static void check_row(Device *device, const Row *r) {
    Card *card = card_of(device);
    DataType type = device->type, c_type = r->flags & FLOAT ? TYPE_FP32 : type;
    bool gated = r->epilogue == G, gated_back = r->epilogue == D;
    int64_t m = r->m, n = r->n, k = r->k, b_rows = gated ? 2 * n : n;
    Tensors t = {};
    t.a = matrix_new(device, type, r->form == W ? k : m, r->form == W ? m : k, 8, 1, 1);
    t.b = matrix_new(device, type, r->form == F ? b_rows : k, r->form == F ? k : n, 16, 1 / sqrtf((float)k), 2);
    t.c = matrix_new(device, c_type, m, gated_back ? 2 * n : n, 8, 1, 3);
    t.bias = r->flags & BIAS ? matrix_new(device, type, 1, b_rows, 0, 1, 4) : t.bias;
    t.residual = r->flags & RESIDUAL ? matrix_new(device, type, m, n, 8, 1, 5) : t.residual;
    t.pre = r->flags & PRE ? matrix_new(device, type, m, gated || gated_back ? 2 * n : n, 24, 1, 6) : t.pre;

    // What is to come out.
    double *c = (double *)memory_new((size_t)(m * t.c.width), sizeof(double));
    double *slack = (double *)memory_zeroed((size_t)(m * t.c.width), sizeof(double));
    bool exact = r->activation == NONE;
    double sixteenth = exact ? 0 : (type == TYPE_BF16 ? 0x1p-8 : 0x1p-11) / 16, terms = exact ? 0 : 0x1p-15;
    int64_t pre_width = r->flags & PRE ? t.pre.width : 2 * n;
    double *pre = (double *)memory_new((size_t)(m * pre_width), sizeof(double));
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < n; j++) {
            double sum = sum_of(r, &t, i, j) + (r->flags & BIAS ? t.bias.host[j] : 0);
            double *to = &c[i * t.c.width + j], *pre_to = &pre[i * pre_width + j], *slack_to = &slack[i * t.c.width + j];
            const float *at = r->flags & PRE ? &t.pre.host[i * t.pre.stride + j] : NULL;
            const Matrix *added = r->flags & IN_PLACE ? &t.c : &t.residual;
            double residual = r->flags & RESIDUAL ? added->host[i * added->stride + j] : 0;
            double old = r->flags & ACCUMULATE ? t.c.host[i * t.c.stride + j] : 0;
            if (gated) {
                double value = sum_of(r, &t, i, n + j) + (r->flags & BIAS ? t.bias.host[n + j] : 0);
                *to = activation(r->activation, sum, false) * value + residual;
                *slack_to = sixteenth * fabs(*to - residual);
                pre_to[0] = sum;
                pre_to[n] = value;
            } else if (gated_back) {
                to[0] = sum * (double)at[n] * activation(r->activation, at[0], true);
                to[n] = sum * activation(r->activation, at[0], false);
                slack_to[0] = sixteenth * fabs(to[0]) + terms * fabs(sum * (double)at[n]);
                slack_to[n] = sixteenth * fabs(to[n]);
            } else if (r->form == F) {
                *to = activation(r->activation, sum, false) + residual;
                *slack_to = sixteenth * fabs(*to - residual);
                *pre_to = sum;
            } else {
                *to = sum * (at != NULL ? activation(r->activation, at[0], true) : 1) + old;
                *slack_to = at != NULL ? sixteenth * fabs(*to - old) + terms * fabs(sum) : 0;
            }
        }
    }

    Product p = {};
    p.form = r->form;
    p.epilogue = r->epilogue;
    p.activation = r->activation;
    p.type = type;
    p.float_output = r->flags & FLOAT;
    p.accumulate = r->flags & ACCUMULATE;
    p.aligned = true;
    p.m = m;
    p.n = n;
    p.k = k;
    p.a = t.a.card;
    p.b = t.b.card;
    p.a_stride = t.a.stride;
    p.b_stride = t.b.stride;
    p.bias = t.bias.card;
    p.residual = r->flags & IN_PLACE ? t.c.card : t.residual.card;
    p.pre = t.pre.card;
    p.c = t.c.card;
    p.c_stride = t.c.stride;
    p.pre_stride = t.pre.stride;
    if (r->columns == 0) {
        CHECK(product_sm80(card, &p));
    } else {
        CHECK(sm90_takes(card, &p));
        Sm90Plan plan = sm90_plan(&p, card->multiprocessors, r->columns, r->cluster, r->parts);
        CHECK_I64(plan.parts, r->parts);
        CHECK(sm90_run(card, &p, &plan));
    }
    CHECK_OK(device_finish(device));

    double sums = 2e-6 * (1 + sqrt((double)k) / 16);
    double worst = worst_of(device, &t.c, c, slack, sums);
    if (r->flags & PRE && r->form == F) {
        double also = worst_of(device, &t.pre, pre, NULL, sums);
        worst = also > worst || isnan(also) ? also : worst;
    }
    if (!CHECK(worst <= 1)) {
        printf("row %d: %d x %d x %d, worst error %g of its tolerance\n", (int)(r - table), r->m, r->n, r->k, worst);
    }
    Matrix *all[] = {&t.a, &t.b, &t.c, &t.bias, &t.residual, &t.pre};
    for (Matrix *x : all) {
        matrix_free(device, x);
    }
    free(c);
    free(pre);
    free(slack);
}

static void check_all(DataType type, simulator::Timing timing, uint64_t seed, int step, int first) {
    Device *device;
    simulator::settings().timing = timing;
    simulator::settings().seed = seed;
    if (CHECK_OK(device_open_card(DEVICE_SIMULATED, 0, type, 1, &device))) {
        for (size_t i = (size_t)first; i < sizeof table / sizeof *table; i += (size_t)step) {
            check_row(device, &table[i]);
        }
        device_close(device);
    }
}

static void test_late(void) {
    check_all(TYPE_BF16, simulator::Timing::LATE, 0, 1, 0);
}
static void test_early(void) {
    check_all(TYPE_FP16, simulator::Timing::EARLY, 1, 1, 0);
}
static void test_random(void) {
    for (int seed = 0; seed < 4; seed++) {
        check_all(seed % 2 ? TYPE_BF16 : TYPE_FP16, simulator::Timing::RANDOM, (uint64_t)seed + 2, 4, seed);
    }
}

// ---- Streamed products

typedef struct Stream {
    int m, n, k, columns, cluster, multiprocessors;
    int streams, whole;  // that are to be: streams of a group, 0: none; tiles done as whole ones before them
} Stream;

static const Stream streams[] = {
    {40, 72, 1500, 128, 1, 7, 7},      // one tile: its first, its last and parts between
    {40, 72, 1500, 128, 2, 7, 3},      // the second block of the cluster has no rows
    {40, 72, 1500, 256, 1, 132, 132},  // more clusters than there is work for
    {264, 72, 700, 128, 1, 2, 2},      // three tiles for two
    {264, 136, 1000, 128, 1, 4, 2},    // six for four, in groups; edges
    {264, 136, 1000, 128, 1, 7, 7},    // six for seven
    {391, 261, 640, 128, 1, 5, 5, 5},  // a whole wave of five before seven
    {391, 389, 640, 128, 2, 6, 3, 3},  // one of three before five, in clusters
    {391, 133, 640, 128, 2, 6, 3},     // four for three clusters
    {389, 517, 1100, 256, 2, 8, 2},    // six for four clusters
    {200, 520, 900, 256, 2, 11, 5},    // three for five
    {264, 72, 50, 128, 1, 7, 7},       // one block of K: nothing to cut
    {264, 72, 300, 128, 1, 2, 2},      // five blocks of K
    {264, 72, 300, 128, 1, 3, 0},      // whole waves
    {264, 72, 300, 128, 2, 1, 0},
};
enum { STREAMS = sizeof streams / sizeof *streams };

static void upload(Device *device, const Matrix *x) {
    device_upload(device, x->card, x->host, (size_t)(x->rows * x->stride) * sizeof(float));
}
static uint64_t bits_of(Device *device, const Matrix *x) {
    size_t bytes = (size_t)(x->rows * x->stride) * sizeof(float);
    void *copy = memory_new(bytes, 1);
    device_download(device, copy, x->card, bytes);
    CHECK_OK(device_finish(device));
    uint64_t bits = hash64(copy, bytes);
    free(copy);
    return bits;
}

static void check_float64(Device *device, const Stream *s, const Tensors *t, bool accumulate) {
    Row r = {};
    r.form = W;
    r.k = s->k;
    double *want = (double *)memory_new((size_t)(s->m * s->n), sizeof(double));
    for (int i = 0; i < s->m; i++) {
        for (int j = 0; j < s->n; j++) {
            want[i * s->n + j] = sum_of(&r, t, i, j) + (accumulate ? (double)t->c.host[i * t->c.stride + j] : 0);
        }
    }
    double worst = worst_of(device, &t->c, want, NULL, 2e-6 * (1 + sqrt((double)s->k) / 16));
    if (!CHECK(worst <= 1)) {
        printf("stream %d: worst error %g of its tolerance\n", (int)(s - streams), worst);
    }
    free(want);
}

// `*bits`: those that it must have; 0: not known yet.
static void check_stream(Device *device, const Stream *s, bool accumulate, uint64_t *bits) {
    Card *card = card_of(device);
    Tensors t = {};
    t.a = matrix_new(device, device->type, s->k, s->m, 8, 1, 1);
    t.b = matrix_new(device, device->type, s->k, s->n, 8, 1 / sqrtf((float)s->k), 2);
    t.c = matrix_new(device, TYPE_FP32, s->m, s->n, 8, 1, 3);
    Product p = {};
    p.form = W;
    p.epilogue = B;
    p.type = device->type;
    p.float_output = p.aligned = true;
    p.accumulate = accumulate;
    p.m = s->m;
    p.n = s->n;
    p.k = s->k;
    p.a = t.a.card;
    p.b = t.b.card;
    p.c = t.c.card;
    p.a_stride = t.a.stride;
    p.b_stride = t.b.stride;
    p.c_stride = t.c.stride;
    Sm90Plan plan = sm90_plan(&p, s->multiprocessors, s->columns, s->cluster, SM90_STREAMED);
    CHECK_I64(plan.streams, s->streams);
    CHECK(s->streams == 0 || plan.whole == s->whole);
    CHECK(sm90_run(card, &p, &plan));
    uint64_t have = bits_of(device, &t.c);
    if (*bits == 0) {
        check_float64(device, s, &t, accumulate);
        *bits = have;
    }
    CHECK(have == *bits);
    // Once more behind it, and twice from a graph.
    DeviceGraph *graph = NULL;
    upload(device, &t.c);
    CHECK(sm90_run(card, &p, &plan));
    CHECK(bits_of(device, &t.c) == *bits);
    if (CHECK(device_record(device))) {
        CHECK(sm90_run(card, &p, &plan));
        CHECK_OK(device_record_end(device, &graph));
        for (int i = 0; i < 2; i++) {
            upload(device, &t.c);
            device_graph_run(device, graph);
            CHECK(bits_of(device, &t.c) == *bits);
        }
        device_graph_destroy(device, graph);
    }
    Matrix *all[] = {&t.a, &t.b, &t.c};
    for (Matrix *x : all) {
        matrix_free(device, x);
    }
}

static void test_streams(void) {
    static uint64_t bits[STREAMS][2];
    for (int seed = 0; seed < 12; seed++) {
        const simulator::Timing timings[] = {simulator::Timing::LATE, simulator::Timing::EARLY, simulator::Timing::RANDOM};
        Device *device;
        simulator::settings().timing = timings[seed % 3];
        simulator::settings().seed = (uint64_t)seed;
        if (CHECK_OK(device_open_card(DEVICE_SIMULATED, 0, TYPE_BF16, 1, &device))) {
            for (int i = 0; i < STREAMS; i++) {
                int accumulate = (i + seed / 3) % 2;
                check_stream(device, &streams[i], accumulate, &bits[i][accumulate]);
            }
            device_close(device);
        }
    }
}

// ---- The choice of a cut

static Product forward_product(int64_t m, int64_t n, int64_t k) {
    Product p = {};
    p.form = PRODUCT_FORWARD;
    p.type = TYPE_BF16;
    p.aligned = true;
    p.m = m;
    p.n = n;
    p.k = k;
    return p;
}

static void test_choice(void) {
    Product p = forward_product(16384, 12288, 4096);
    Sm90Plan plan = sm90_choose(&p, 132);
    CHECK(plan.columns == 256 && plan.cluster == 2 && plan.parts == 1);
    CHECK_I64(plan.works, 64 * 48);
    p = forward_product(2048, 768, 768);  // 48 tiles of 128 x 256, 96 of 128 x 128
    plan = sm90_choose(&p, 132);
    CHECK(plan.columns == 128 && plan.parts == 1);
    p = forward_product(768, 768, 32768);
    p.form = PRODUCT_BACKWARD_WEIGHT;
    p.epilogue = EPILOGUE_BACKWARD;
    p.float_output = true;
    plan = sm90_choose(&p, 132);
    CHECK(plan.parts == 1 && plan.streams > 0);
    p = forward_product(768, 768, 32768);
    plan = sm90_choose(&p, 132);
    CHECK(plan.parts > 2 && plan.parts * plan.part_blocks >= 512 && (plan.parts - 1) * plan.part_blocks < 512);
    // Every tile and part once, whatever the group.
    for (int cluster = 1; cluster <= 2; cluster++) {
        for (int m = 1; m < 4000; m += 777) {
            p = forward_product(m, 1000, 1000);
            plan = sm90_plan(&p, 132, 128, cluster, 3);
            CHECK_I64(plan.works, divide_up(divide_up(m, 128), cluster) * 8 * 3);
        }
    }
}

// Every block of K of every streamed tile once, in parts that are worth their end, and no cluster longer than was planned.
static void test_cuts(void) {
    for (int multiprocessors = 1; multiprocessors <= SM90_MOST_STREAMS; multiprocessors += 1 + multiprocessors / 8) {
        for (int i = 0; i < 60; i++) {
            Product p = forward_product(1 + i * 331 % 5000, 1 + i * 577 % 3000, 1 + i * i * 37 % 40000);
            p.form = PRODUCT_BACKWARD_WEIGHT;
            p.epilogue = EPILOGUE_BACKWARD;
            p.float_output = true;
            Sm90Plan plan = sm90_plan(&p, multiprocessors, i % 2 ? 128 : 256, 1 + i / 2 % 2, SM90_STREAMED);
            int left = plan.works - plan.whole, k_blocks = plan.k_blocks;
            if (plan.streams == 0) {
                CHECK_I64(left, 0);
                continue;
            }
            CHECK(plan.whole % plan.clusters == 0 && plan.clusters % plan.streams == 0);
            CHECK_I64(plan.clusters / plan.streams * plan.stream_tiles, left);
            CHECK_I64(plan.first[0], 0);
            CHECK_I64(plan.first[plan.streams], plan.stream_tiles * k_blocks);
            for (int s = 0; s < plan.streams; s++) {
                int begin = plan.first[s], end = plan.first[s + 1], length = end - begin;
                int of_tile = begin % k_blocks == 0 ? k_blocks : k_blocks - begin % k_blocks;
                CHECK(length >= 0 && length < plan.stream_blocks);
                CHECK(length == 0 || begin % k_blocks == 0 || (length < of_tile ? length : of_tile) >= SM90_LEAST_BLOCKS);
                CHECK(length == 0 || end % k_blocks == 0 ||
                      (length < end % k_blocks ? length : end % k_blocks) >= SM90_LEAST_BLOCKS);
            }
        }
    }
}

// ---- The choice for a shape that is asked for

static bool has_word(const char *words, const char *word) {
    size_t length = strlen(word);
    for (const char *at = words; (at = strstr(at, word)) != NULL; at++) {
        if ((at == words || at[-1] == ',') && (at[length] == 0 || at[length] == ',')) {
            return true;
        }
    }
    return false;
}

// What a call of matmul.cu's operations makes of it. Tensors that there are get an address: none is read.
static Product asked_product(const char *form, const char *words, int64_t m, int64_t n, int64_t k) {
    static const char *const activations[] = {"none", "gelu_tanh", "gelu_erf", "relu", "silu"};
    static char something[1];
    Product p = forward_product(m, n, k);
    bool gated = has_word(words, "gated");
    if (strcmp(form, "forward") == 0) {
        p.epilogue = gated ? EPILOGUE_GATED : EPILOGUE_FORWARD;
    } else {
        p.form = strcmp(form, "input") == 0 ? PRODUCT_BACKWARD_INPUT : PRODUCT_BACKWARD_WEIGHT;
        p.epilogue = gated ? EPILOGUE_GATED_BACKWARD : EPILOGUE_BACKWARD;
    }
    for (int i = 1; i < 5; i++) {
        p.activation = has_word(words, activations[i]) ? (Activation)i : p.activation;
    }
    p.float_output = p.form == PRODUCT_BACKWARD_WEIGHT || has_word(words, "float");
    p.accumulate = p.form == PRODUCT_BACKWARD_WEIGHT || has_word(words, "accumulate");
    p.bias = has_word(words, "bias") ? something : NULL;
    p.residual = has_word(words, "residual") ? something : NULL;
    p.pre = has_word(words, "pre") || (p.form == PRODUCT_BACKWARD_INPUT && p.activation != ACTIVATION_NONE) ? something : NULL;
    return p;
}

static void print_plan(const Product *p, const Sm90Plan *plan) {
    printf("columns %d cluster %d parts %d works %d k_blocks %d part_blocks %d cycles %.0f", plan->columns, plan->cluster,
           plan->parts, plan->works, plan->k_blocks, plan->part_blocks, sm90_cycles(p, plan));
    if (plan->streams > 0) {
        printf(" whole %d streamed %d", plan->whole, plan->stream_tiles);
        for (int i = 0; i <= plan->streams; i++) {
            printf("%c%d", i > 0 ? ',' : ' ', plan->first[i]);
        }
    }
    printf("\n");
}

static int print_choice(int count, char **arguments) {
    if (count < 4) {
        fprintf(stderr, "--plan FORM M N K [WORDS [MULTIPROCESSORS]]\n");
        return 2;
    }
    Product p = asked_product(arguments[0], count > 4 ? arguments[4] : "none", atoll(arguments[1]), atoll(arguments[2]),
                              atoll(arguments[3]));
    int multiprocessors = count > 5 ? atoi(arguments[5]) : 132;
    Sm90Plan plan = sm90_choose(&p, multiprocessors);
    print_plan(&p, &plan);
    return 0;
}

static bool copied_in_chunks(const Product *p) {
    bool a, b;
    product_sm80_chunks(p, &a, &b);
    return a && b;
}

// GPT-2's vocabulary is no multiple of 8: its head's products are taken all the same, rows of logits being 50,264 apart, and
// the portable body copies them 16 bytes at a time. What comes in as C is written (8 columns at a time) and rows that begin
// anywhere are for others.
static void test_vocabulary(void) {
    static unsigned char memory[64];
    Device *device;
    if (!CHECK_OK(device_open_card(DEVICE_SIMULATED, 0, TYPE_BF16, 1, &device))) {
        return;
    }
    const int64_t vocabulary = 50257, stride = 50264;
    Card *card = card_of(device);
    Product p = forward_product(1024, vocabulary, 768);
    p.a = p.b = p.c = memory - (uintptr_t)memory % 16 + 16;
    p.c_stride = stride;
    CHECK(sm90_takes(card, &p));
    p.bias = p.c;
    CHECK(sm90_takes(card, &p));
    p.residual = p.c;
    CHECK(!sm90_takes(card, &p));
    p.residual = NULL;
    p.c_stride = vocabulary;
    p.aligned = false;
    CHECK(!sm90_takes(card, &p));
    p = forward_product(1024, 768, vocabulary);
    p.form = PRODUCT_BACKWARD_INPUT;
    p.epilogue = EPILOGUE_BACKWARD;
    p.a_stride = stride;
    p.b_stride = 768;
    CHECK(sm90_takes(card, &p) && copied_in_chunks(&p));
    p.form = PRODUCT_FORWARD;  // here what lies between two rows would meet what is no zero
    CHECK(!copied_in_chunks(&p));
    p = forward_product(vocabulary, 768, 1024);
    p.form = PRODUCT_BACKWARD_WEIGHT;
    p.epilogue = EPILOGUE_BACKWARD;
    p.float_output = p.accumulate = true;
    p.a_stride = stride;
    p.b_stride = 768;
    CHECK(sm90_takes(card, &p) && copied_in_chunks(&p));
    p.a_stride = vocabulary;
    CHECK(!copied_in_chunks(&p));
    device_close(device);
}

int main(int count, char **arguments) {
    if (count > 1 && strcmp(arguments[1], "--plan") == 0) {
        return print_choice(count - 2, arguments + 2);
    }
    RUN(test_choice);
    RUN(test_vocabulary);
    RUN(test_cuts);
    RUN(test_streams);
    RUN(test_late);
    RUN(test_early);
    RUN(test_random);
    return check_report();
}
