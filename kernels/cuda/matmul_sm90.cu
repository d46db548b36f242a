// The matrix product of Hopper: which tile, cluster and parts of K a shape gets, and the start of the kernel (matmul_sm90.h).
//
// Deterministic: a sum is added in the order of K, parts of K by product_finish_sums in their order.
#include "kernels/cuda/matmul_sm90.h"
#include "kernels/cuda/tensor_map.h"

#include <math.h>

namespace BACKEND {

// ---- The plan

// B's columns that one column of C needs: two where gated.
static int64_t sums_columns(const Product *p) {
    return p->epilogue == EPILOGUE_GATED ? 2 * p->n : p->n;
}

bool sm90_takes(const Card *card, const Product *p) {
    bool forward = p->epilogue == EPILOGUE_FORWARD || p->epilogue == EPILOGUE_GATED;
    if (p->type == TYPE_FP32 || !p->aligned || forward != (p->form == PRODUCT_FORWARD) || p->k < 1) {
        return false;
    }
    // TMA leaves out what lies beyond N, whatever N is; what is read as C is written comes in runs of 8 columns.
    bool reads = p->residual != NULL || (!forward && p->pre != NULL) || (p->accumulate && !p->float_output);
    if (reads && p->n % 8 != 0) {
        return false;
    }
    bool bare = p->activation == ACTIVATION_NONE && p->pre == NULL && p->residual == NULL && p->epilogue != EPILOGUE_GATED;
    if ((forward && p->accumulate) || (p->float_output && !bare)) {
        return false;
    }
    if (p->form == PRODUCT_BACKWARD_WEIGHT && !p->float_output) {
        return false;
    }
    const int64_t most = INT32_MAX - 512, widest = 1 << 26;  // sm90_fetch has offsets of 32 bits in 16 rows
    return p->c_stride <= widest && p->pre_stride <= widest && p->m <= most && product_b_rows(p) <= most && p->k <= most &&
           card->shared_limit >= Sm90Shared<256>::BYTES &&
           divide_up(p->m, SM90_ROWS) * divide_up(product_b_rows(p), 128) * SM90_MOST_PARTS <= most;
}

Sm90Plan sm90_plan(const Product *p, int multiprocessors, int columns, int cluster, int parts) {
    Sm90Plan plan = {};
    plan.columns = columns;
    plan.cluster = cluster;
    plan.units = (int)divide_up(p->m, SM90_ROWS * cluster);
    plan.column_tiles = (int)divide_up(sums_columns(p), columns);
    plan.k_blocks = (int)divide_up(p->k, SM90_DEPTH);
    plan.part_blocks = (int)divide_up(plan.k_blocks, parts);
    plan.parts = (int)divide_up(plan.k_blocks, plan.part_blocks);
    plan.works = plan.units * plan.column_tiles * plan.parts;
    // What runs at once is about as many rows as columns: the least of A and B in L2.
    plan.group = (int)lround(sqrt((double)(multiprocessors * columns) / (int)SM90_ROWS) / cluster);
    plan.group = plan.group < 1 ? 1 : plan.group;
    return plan;
}

// Cycles of the end of a tile for each of its columns, about: what passes through shared memory, or an activation's arithmetic.
static double sm90_end_cycles(const Product *p, bool float_sums) {
    bool derived = p->activation != ACTIVATION_NONE || p->epilogue == EPILOGUE_GATED ||
                   p->epilogue == EPILOGUE_GATED_BACKWARD || (p->form == PRODUCT_FORWARD && p->pre != NULL);
    return float_sums ? 8 : derived ? 10 : 4;
}

// About how many cycles a plan takes: waves of tiles, limited by tensor cores (4096 operations a cycle) or by what L2 gives one
// multiprocessor (46 bytes a cycle), and the ends of tiles. Estimates from the numbers in matmul_sm90.h, not measured.
static double sm90_cycles(const Product *p, const Sm90Plan *plan, int multiprocessors) {
    double bytes = (int)SM90_A_BYTES + (double)(plan->columns * SM90_DEPTH * 2) / plan->cluster;
    double block = fmax(4.0 * plan->columns, bytes / 46);
    double end = plan->columns * sm90_end_cycles(p, p->float_output || plan->parts > 1) + 300;
    double waves = (double)divide_up(plan->works, multiprocessors / plan->cluster);
    double cycles = 2000 + waves * (plan->part_blocks * block + end);
    if (plan->parts > 1) {  // written and read once more, at 2500 bytes a cycle, by another kernel
        cycles += 4000 + 8.0 * plan->parts * (double)p->m * (double)sums_columns(p) / 2500;
    }
    return cycles;
}

Sm90Plan sm90_choose(const Product *p, int multiprocessors) {
    Sm90Plan best = {};
    double least = 0;
    for (int columns = 256; columns >= 128; columns /= 2) {
        for (int cluster = multiprocessors >= 2 ? 2 : 1; cluster >= 1; cluster--) {
            for (int parts = 1; parts <= SM90_MOST_PARTS; parts++) {
                Sm90Plan plan = sm90_plan(p, multiprocessors, columns, cluster, parts);
                if (parts > 1 && plan.works / plan.parts >= multiprocessors / cluster) {
                    break;  // all are busy with whole sums
                }
                double cycles = sm90_cycles(p, &plan, multiprocessors);
                if (best.works == 0 || cycles < least) {
                    best = plan;
                    least = cycles;
                }
            }
        }
    }
    return best;
}

// ---- Descriptors and launch

// An operand: a matrix of `rows` rows of `width` contiguous elements, in boxes of 64 elements of box_rows rows.
static bool map_operand(Card *card, DataType type, const void *base, int64_t width, int64_t rows, int64_t stride, int box_rows,
                        CUtensorMap *map) {
    TensorBox tensor = {};
    tensor.base = base;
    tensor.type = type;
    tensor.dimensions = 2;
    tensor.extent[0] = width;
    tensor.extent[1] = rows;
    tensor.stride[0] = 1;
    tensor.stride[1] = stride;
    tensor.box[0] = SM90_BOX;
    tensor.box[1] = box_rows;
    return tensor_map(card, &tensor, map);
}

// A result of M rows of N contiguous elements, in boxes of 16 rows of 128 bytes. The driver's description of its maps has
// dimensions in the order of their strides:
//   16 bits   [M, halves, N]   a gated product's gate and value lie side by side in a row
//   fp32      [parts, M, N]    of K, one behind the other
static bool map_result(Card *card, const Product *p, DataType type, const void *base, int64_t stride, int halves, int parts,
                       CUtensorMap *map) {
    bool sums = type == TYPE_FP32;
    TensorBox tensor = {};
    tensor.base = base;
    tensor.type = type;
    tensor.dimensions = 3;
    tensor.extent[0] = p->n;
    tensor.extent[1] = sums ? p->m : halves;
    tensor.extent[2] = sums ? parts : p->m;
    tensor.stride[0] = 1;
    tensor.stride[1] = halves > 1 ? p->n : stride;
    tensor.stride[2] = sums ? p->m * stride : stride;
    tensor.box[0] = 128 / (int)data_type_bytes(type);
    tensor.box[1] = sums ? 16 : 1;
    tensor.box[2] = sums ? 1 : 16;
    return tensor_map(card, &tensor, map);
}

typedef struct Sm90Descriptors {
    CUtensorMap a, b, c, pre;  // pre: of C where the product writes none
} Sm90Descriptors;

static bool sm90_describe(Card *card, const Product *p, const Sm90Plan *plan, Sm90Descriptors *maps) {
    bool a_turned = p->form == PRODUCT_BACKWARD_WEIGHT, b_turned = p->form != PRODUCT_FORWARD;
    bool halves = p->epilogue == EPILOGUE_GATED_BACKWARD;
    int64_t b_rows = product_b_rows(p);
    if (!(a_turned ? map_operand(card, p->type, p->a, p->m, p->k, p->a_stride, SM90_DEPTH, &maps->a)
                   : map_operand(card, p->type, p->a, p->k, p->m, p->a_stride, SM90_ROWS, &maps->a)) ||
        !(b_turned ? map_operand(card, p->type, p->b, b_rows, p->k, p->b_stride, SM90_DEPTH, &maps->b)
                   : map_operand(card, p->type, p->b, p->k, b_rows, p->b_stride, plan->columns / 2, &maps->b)) ||
        !map_result(card, p, p->float_output ? TYPE_FP32 : p->type, p->c, p->c_stride, halves ? 2 : 1, plan->parts, &maps->c)) {
        return false;
    }
    maps->pre = maps->c;
    return p->form != PRODUCT_FORWARD || p->pre == NULL ||
           map_result(card, p, p->type, p->pre, p->pre_stride, p->epilogue == EPILOGUE_GATED ? 2 : 1, 1, &maps->pre);
}

template <typename T, int COLUMNS, ProductForm FORM, Activation A>
static void sm90_launch(Card *card, const Sm90Descriptors &maps, const Product &p, const Sm90Plan &plan) {
    int clusters = card->multiprocessors / plan.cluster;
    clusters = plan.works < clusters ? plan.works : clusters;
    launch_cluster(card, "matmul sm90", sm90_product<T, COLUMNS, FORM, A>, dim3((unsigned)(clusters * plan.cluster)),
                   SM90_THREADS, plan.cluster, Sm90Shared<COLUMNS>::BYTES, maps.a, maps.b, maps.c, maps.pre, p, plan);
}

template <typename T, int COLUMNS>
static void sm90_launch_form(Card *card, const Sm90Descriptors &maps, const Product &p, const Sm90Plan &plan) {
    switch (p.form) {
    case PRODUCT_FORWARD:
        WITH_ACTIVATION(p.activation, A, sm90_launch<T, COLUMNS, PRODUCT_FORWARD, A>(card, maps, p, plan));
        break;
    case PRODUCT_BACKWARD_INPUT:
        WITH_ACTIVATION(p.activation, A, sm90_launch<T, COLUMNS, PRODUCT_BACKWARD_INPUT, A>(card, maps, p, plan));
        break;
    case PRODUCT_BACKWARD_WEIGHT:
        sm90_launch<T, COLUMNS, PRODUCT_BACKWARD_WEIGHT, ACTIVATION_NONE>(card, maps, p, plan);
        break;
    }
}

template <typename T>
static void sm90_launch_columns(Card *card, const Sm90Descriptors &maps, const Product &p, const Sm90Plan &plan) {
    if (plan.columns == 256) {
        sm90_launch_form<T, 256>(card, maps, p, plan);
    } else {
        sm90_launch_form<T, 128>(card, maps, p, plan);
    }
}

bool sm90_run(Card *card, const Product *p, const Sm90Plan *plan) {
    Product sums = *p;
    if (plan->parts > 1) {
        // The bare sums of every part to the workspace. Gated ones are a product with all columns of B.
        sums.epilogue = p->form == PRODUCT_FORWARD ? EPILOGUE_FORWARD : EPILOGUE_BACKWARD;
        sums.activation = ACTIVATION_NONE;
        sums.float_output = true;
        sums.accumulate = false;
        sums.bias = NULL;
        sums.residual = NULL;
        sums.pre = NULL;
        sums.n = sums_columns(p);
        sums.c_stride = product_sums_stride(p);
        sums.c = card_workspace(card, (size_t)(plan->parts * p->m * sums.c_stride) * sizeof(float));
        if (sums.c == NULL) {
            return true;  // and the card has failed
        }
    }
    Sm90Descriptors maps;
    if (!sm90_describe(card, &sums, plan, &maps)) {
        return false;
    }
    if (p->type == TYPE_BF16) {
        sm90_launch_columns<bf16>(card, maps, sums, *plan);
    } else {
        sm90_launch_columns<fp16>(card, maps, sums, *plan);
    }
    if (plan->parts > 1) {
        product_finish_sums(card, p, sums.c, sums.c_stride, true, plan->parts);
    }
    return true;
}

bool product_sm90(Card *card, const Product *p) {
    if (!sm90_takes(card, p)) {
        return false;
    }
    Sm90Plan plan = sm90_choose(p, card->multiprocessors);
    return sm90_run(card, p, &plan);
}

}  // namespace BACKEND
