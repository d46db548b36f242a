// The matrix product of Hopper: which tile, cluster and parts of K a shape gets, and the start of the kernel (matmul_sm90.h).
//
// A product with fewer tiles than multiprocessors, or with a last wave that is mostly empty, is cut along K too:
//   parts     fp32 sums of as many parts of K go to the workspace; product_finish_sums adds them and does the epilogue
//   streamed  a gradient of a weight, whose sums are added to C anyway ("stream-K", Osama et al. 2023): the tiles that are left
//             behind the whole waves, one after another, are one long row of blocks of K, of which each cluster has a stretch.
//             A tile's parts are added to C in the order of K: each waits for its turn.
//
//       tile 0                  tile 1                  tile 2
//     |-----------------------|-----------------------|-----------------------|      k_blocks each
//     |  0     |  1  |   2    :  2   |  3   |   4     :  4    | ...                  clusters
//
//   A cluster works from the end of its stretch to its beginning, so that the first part of a tile, which nobody need wait for,
//   is done before the last, which waits for the others. In between, each part ends later than the one before by the time of
//   an end of a tile, so that none should wait (sm90_cut). So who waits, waits for clusters with lower numbers, and for what
//   these do first; and a cluster draws its number when it starts (a ticket). Whatever order the card starts blocks in and
//   however many fit, who is waited for runs and waits for nobody who does not: there is no deadlock.
//
//   Clusters of several groups that work on the same place of their stretch share the panels of the tiles' shorter side, when
//   tiles are numbered along the longer one; the other panels are read again soon enough to be in L2. (GPT-2 124M's gradients,
//   by a model of a least recently used cache of 24 MiB: 52 to 164 MiB from memory of 144 to 576 MiB read, 1.7 to 2.1 TB/s.
//   Numbered along the shorter side it would be up to 3.4.)
//
//   A part's turn is known by a word for the 16 rows of each warp that counts the blocks of K which are in C. The last adder
//   sets it to 0, and the last ticket sets tickets to 0: the words (Card.turns) are 0 between products, in a recorded graph
//   too. A kernel that is ended from outside leaves them otherwise, but takes the card's context with it.
//
// Deterministic: a sum is added in the order of K; parts of it are added in their order. How a product is cut depends on its
// shape and the number of multiprocessors alone.
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

// ---- What it costs, in cycles of a multiprocessor: derived from the machine code and the hardware's rates, not measured

// A block of K: tensor cores do 4096 operations a cycle; L2 gives one multiprocessor about 38 bytes a cycle.
static double sm90_block_cycles(const Sm90Plan *plan) {
    double bytes = (int)SM90_A_BYTES + (double)(plan->columns * SM90_DEPTH * 2) / plan->cluster;
    return fmax(4.0 * plan->columns, bytes / 38);
}

// Instructions that a consumer's warp issues for the end of a tile, as the disassembly has them (nvcc 13.0, bf16): once, and
// for each 64 columns of the result.
enum {
    SLOTS_TILE = 200,        // turns of loops, places, half of the sums moved
    SLOTS_BOX = 55,          // rounded, written, stored
    SLOTS_BOX_FLOAT = 125,   // the same in fp32: two boxes
    SLOTS_BIAS = 60,         // handed round and added
    SLOTS_READ = 85,         // a tensor's box fetched, passed through shared memory, added
    SLOTS_ACTIVATION = 225,  // GELU: 64 of the special functions' instructions, which take 2 slots, are among them
    SLOTS_SLOPE = 380,       // the slope too
};

static int sm90_end_slots(const Product *p, const Sm90Plan *plan) {
    int boxes = plan->columns / 64, sides = p->epilogue == EPILOGUE_GATED || p->epilogue == EPILOGUE_GATED_BACKWARD ? 2 : 1;
    int bias = p->bias != NULL ? sides * SLOTS_BIAS : 0;
    if (p->float_output || plan->parts > 1) {
        return SLOTS_TILE + boxes * (SLOTS_BOX_FLOAT + (plan->parts > 1 ? 0 : bias));
    }
    int box = SLOTS_BOX + bias + (p->residual != NULL || p->accumulate ? SLOTS_READ : 0);
    if (p->form == PRODUCT_FORWARD) {
        box += p->activation != ACTIVATION_NONE ? SLOTS_ACTIVATION : 0;
        box += p->pre != NULL ? sides * SLOTS_BOX : 0;
    } else if (p->pre != NULL) {
        box += SLOTS_SLOPE + sides * SLOTS_READ + (sides - 1) * SLOTS_BOX;
    }
    return SLOTS_TILE + (p->epilogue == EPILOGUE_GATED ? boxes / 2 : boxes) * box;
}

// The end of a tile, of which the tensor cores see nothing. A warp of each consumer is on each of the four schedulers, so what
// one issues counts twice; and the last products' and the first and last boxes' ways are waited for.
static double sm90_end_cycles(const Product *p, const Sm90Plan *plan) {
    return 2 * sm90_end_slots(p, plan) + 1000;
}

// From the beginning of a part's end to that of the next one's: until additions are complete in L2, and another has seen it.
static double sm90_turn_cycles(const Product *p, const Sm90Plan *plan) {
    return sm90_end_cycles(p, plan) + 2400;
}

// ---- Cutting

static int whole_blocks(double blocks) {
    return blocks > 0 ? (int)blocks : 0;
}

// Cuts the tiles of a group into stretches of which none takes longer than `limit`; false: there are too few streams for that.
// `end` and `turn` are the times of sm90_end_cycles and sm90_turn_cycles; all times in those of a block of K.
//
// Where a tile has parts, the last ends at the limit, and the others soon enough for its turn and those between.
static bool sm90_cut(Sm90Plan *plan, int limit, double end, double turn) {
    int at = 0, stream = 0;
    double room = limit;  // of the stream
    plan->first[0] = 0;
    for (int tile = 0; tile < plan->stream_tiles; tile++) {
        int left = plan->k_blocks, last = whole_blocks(limit - end);
        if (left + end <= room) {
            room -= left + end;
            at += left;
            continue;
        }
        // The fewest parts between the first and the last.
        int between = 0, first = 0, most = 0;
        for (;; between++) {
            first = whole_blocks(fmin(room - end, limit - end - (between + 1) * turn));
            first = first < SM90_LEAST_BLOCKS ? 0 : first;
            if (first + most + last >= left) {
                break;
            }
            int length = whole_blocks(limit - end - (between + 1) * turn);
            if (length < SM90_LEAST_BLOCKS || stream + between + 1 >= plan->streams) {
                return false;
            }
            most += length;
        }
        for (int part = between + 1; part > 0; part--) {
            int length = part > between ? first : whole_blocks(limit - end - part * turn);
            length = length < left - SM90_LEAST_BLOCKS ? length : left - SM90_LEAST_BLOCKS;
            length = length < SM90_LEAST_BLOCKS ? 0 : length;
            at += length;
            left -= length;
            plan->first[++stream] = at;
        }
        if (stream >= plan->streams || left > last) {
            return false;
        }
        at += left;
        room = limit - end - left;
    }
    while (stream < plan->streams) {
        plan->first[++stream] = at;
    }
    return true;
}

static int greatest_divisor(int a, int b) {
    return b == 0 ? a : greatest_divisor(b, a % b);
}

static_assert(1 + 2 * SM90_MOST_STREAMS * SM90_WARPS <= CARD_TURNS, "too few words for the turns of two waves");

// Streams what whole waves leave, and a wave more where there is one, so that no tile has more than two parts then.
static void sm90_stream(const Product *p, Sm90Plan *plan, int clusters) {
    int left = plan->works % clusters + (plan->works > clusters ? clusters : 0);
    if (plan->works % clusters == 0 || clusters * plan->cluster > SM90_MOST_STREAMS ||
        (int64_t)left * plan->k_blocks > INT32_MAX) {
        return;
    }
    int groups = greatest_divisor(left, clusters);
    plan->streams = clusters / groups;
    plan->stream_tiles = left / groups;
    plan->whole = plan->works - left;
    plan->clusters = clusters;
    if (plan->whole == 0) {
        plan->group = plan->units >= plan->column_tiles ? plan->units : 1;
    }
    double block = sm90_block_cycles(plan), end = sm90_end_cycles(p, plan) / block, turn = sm90_turn_cycles(p, plan) / block;
    // Between an even division and whole tiles.
    int tiles = (int)divide_up(plan->stream_tiles, plan->streams);
    int low = plan->stream_tiles * plan->k_blocks / plan->streams, high = tiles * (plan->k_blocks + (int)ceil(end));
    while (low + 1 < high) {
        int middle = (low + high) / 2;
        if (sm90_cut(plan, middle, end, turn)) {
            high = middle;
        } else {
            low = middle;
        }
    }
    ensure(sm90_cut(plan, high, end, turn), "no cut of %d tiles for %d clusters", left, clusters);
    plan->stream_blocks = high;
}

static bool sm90_streams(const Product *p) {
    return p->form == PRODUCT_BACKWARD_WEIGHT;
}

Sm90Plan sm90_plan(const Product *p, int multiprocessors, int columns, int cluster, int parts) {
    bool streamed = parts == SM90_STREAMED;
    Sm90Plan plan = {};
    plan.columns = columns;
    plan.cluster = cluster;
    plan.units = (int)divide_up(p->m, SM90_ROWS * cluster);
    plan.column_tiles = (int)divide_up(sums_columns(p), columns);
    plan.k_blocks = (int)divide_up(p->k, SM90_DEPTH);
    plan.part_blocks = (int)divide_up(plan.k_blocks, streamed ? 1 : parts);
    plan.parts = (int)divide_up(plan.k_blocks, plan.part_blocks);
    plan.works = plan.units * plan.column_tiles * plan.parts;
    // What runs at once is about as many rows as columns: the least of A and B in L2.
    plan.group = (int)lround(sqrt((double)(multiprocessors * columns) / (int)SM90_ROWS) / cluster);
    plan.group = plan.group < 1 ? 1 : plan.group;
    int clusters = multiprocessors > cluster ? multiprocessors / cluster : 1;
    plan.whole = plan.works;
    plan.clusters = plan.works < clusters ? plan.works : clusters;
    if (streamed) {
        sm90_stream(p, &plan, clusters);
    }
    return plan;
}

double sm90_cycles(const Product *p, const Sm90Plan *plan) {
    double block = sm90_block_cycles(plan), end = sm90_end_cycles(p, plan);
    double waves = (double)divide_up(plan->whole, plan->clusters);
    double cycles = 2000 + waves * (plan->part_blocks * block + end) + plan->stream_blocks * block;
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
            for (int parts = sm90_streams(p) ? (int)SM90_STREAMED : 1; parts <= SM90_MOST_PARTS; parts++) {
                Sm90Plan plan = sm90_plan(p, multiprocessors, columns, cluster, parts);
                if (parts > 1 && plan.works / plan.parts >= multiprocessors / cluster) {
                    break;  // all are busy with whole sums
                }
                // Whole waves where they are as good, as far as estimates can tell.
                double cycles = sm90_cycles(p, &plan) * (plan.streams > 0 ? 1.02 : 1);
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
    launch_cluster(card, "matmul sm90", sm90_product<T, COLUMNS, FORM, A>, dim3((unsigned)(plan.clusters * plan.cluster)),
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
    Sm90Plan run = *plan;
    run.turns = card->turns;
    if (p->type == TYPE_BF16) {
        sm90_launch_columns<bf16>(card, maps, sums, run);
    } else {
        sm90_launch_columns<fp16>(card, maps, sums, run);
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
