// What the lanes of a warp do together: shuffles, votes, sums, matrix fragments, products of sm_80.
//
// A lane that arrives leaves its arguments and waits; the last lane does the operation for all and goes on. Lanes that have
// ended are not waited for; what is read of them, or of lanes outside the mask, is poison.
#include "tests/simulated/machine.h"

#include <cmath>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace simulator {

// ---- Gathering

static void run_gathered(Warp *warp, const WarpOperation *operation, unsigned mask, Thread *self) {
    uint32_t lanes = mask & warp->alive;
    for (uint32_t left = lanes; left != 0; left &= left - 1) {
        const Thread &other = warp->thread[__builtin_ctz(left)];
        if (other.operation != operation || other.mask != mask) {
            fault("diverged warp: %s with lanes %08x here, but %s with lanes %08x in thread (%u, %u, %u) (%s:%u)",
                  operation->name, mask, other.operation->name, other.mask, other.index.x, other.index.y, other.index.z,
                  other.where.file_name(), (unsigned)other.where.line());
        }
    }
    warp->gathered &= ~lanes;
    operation->run(warp, lanes);
    if (self != NULL) {
        lanes &= ~(1u << self->lane);
    }
    warp->ready |= lanes;
    if (lanes != 0) {
        warp->block->ready_warps |= 1u << warp->number;
    }
    engine.events++;
}

void warp_operation(const WarpOperation *operation, unsigned mask, void *argument, const Where &where) {
    Thread *thread = engine.thread;
    Warp *warp = thread->warp;
    uint32_t bit = 1u << thread->lane;
    if ((mask & bit) == 0) {
        fault("%s with lanes %08x, of which the caller is none", operation->name, mask);
    }
    thread->operation = operation;
    thread->mask = mask;
    thread->argument = argument;
    thread->where = where;
    warp->gathered |= bit;
    if ((mask & warp->alive & ~warp->gathered) != 0) {
        thread_wait(Wait::WARP);
    } else {
        run_gathered(warp, operation, mask, thread);
    }
}

void warp_recheck(Warp *warp) {
    for (uint32_t left = warp->gathered; left != 0; left &= left - 1) {
        const Thread &thread = warp->thread[__builtin_ctz(left)];
        if (thread.wait == Wait::WARP && (thread.mask & warp->alive & ~warp->gathered) == 0) {
            run_gathered(warp, thread.operation, thread.mask, NULL);
            left &= warp->gathered;
            if (left == 0) {
                break;
            }
        }
    }
}

template <typename T> static T *argument_of(Warp *warp, int lane) {
    return (T *)warp->thread[lane].argument;
}

// ---- Votes and shuffles

static void do_nothing(Warp *, unsigned) {
}
static const WarpOperation SYNC = {"__syncwarp", do_nothing};

void warp_sync(unsigned mask, const Where &where) {
    warp_operation(&SYNC, mask, NULL, where);
}

static void do_shuffle(Warp *warp, unsigned lanes) {
    const uint64_t nothing = (uint64_t)POISON << 32 | POISON;
    for (uint32_t left = lanes; left != 0; left &= left - 1) {
        int lane = __builtin_ctz(left), source = warp->source[lane];
        warp->result[lane] = lanes >> source & 1 ? warp->value[source] : nothing;
    }
}
static const WarpOperation SHUFFLES[] = {
    {"__shfl_sync", do_shuffle},
    {"__shfl_up_sync", do_shuffle},
    {"__shfl_down_sync", do_shuffle},
    {"__shfl_xor_sync", do_shuffle},
};

// The source lanes are those of PTX's shfl: outside of a segment of `width` lanes it is the lane itself.
uint64_t warp_shuffle(Shuffle kind, unsigned mask, uint64_t value, int by, int width, const Where &where) {
    Thread *thread = engine.thread;
    Warp *warp = thread->warp;
    int lane = (int)thread->lane, first = lane & ~(width - 1), last = first + width - 1, source = lane;
    if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
        fault("%s with a width of %d: not a power of two up to 32", SHUFFLES[(int)kind].name, width);
    }
    switch (kind) {
    case Shuffle::INDEX:
        source = first | (by & (width - 1));
        break;
    case Shuffle::UP:
        source = (unsigned)by > (unsigned)(lane - first) ? lane : lane - by;
        break;
    case Shuffle::DOWN:
        source = (unsigned)by > (unsigned)(last - lane) ? lane : lane + by;
        break;
    case Shuffle::XOR:
        source = (lane ^ (by & 31)) > last ? lane : lane ^ (by & 31);
        break;
    }
    warp->value[lane] = value;
    warp->source[lane] = source;
    warp_operation(&SHUFFLES[(int)kind], mask, NULL, where);
    return warp->result[lane];
}

static void do_ballot(Warp *warp, unsigned lanes) {
    uint64_t ballot = 0;
    for (uint32_t left = lanes; left != 0; left &= left - 1) {
        int lane = __builtin_ctz(left);
        ballot |= warp->value[lane] << lane;
    }
    for (uint32_t left = lanes; left != 0; left &= left - 1) {
        warp->result[__builtin_ctz(left)] = ballot;
    }
}
static const WarpOperation BALLOT = {"__ballot_sync, __any_sync or __all_sync", do_ballot};

unsigned warp_ballot(unsigned mask, bool yes, const Where &where) {
    Thread *thread = engine.thread;
    thread->warp->value[thread->lane] = yes;
    warp_operation(&BALLOT, mask, NULL, where);
    return (unsigned)thread->warp->result[thread->lane];
}

static void do_match(Warp *warp, unsigned lanes) {
    for (int lane = 0; lane < 32; lane++) {
        uint64_t same = 0;
        for (int other = 0; other < 32; other++) {
            same |= (uint64_t)((lanes >> other & 1) && warp->value[other] == warp->value[lane]) << other;
        }
        if (lanes >> lane & 1) {
            warp->result[lane] = same;
        }
    }
}
static const WarpOperation MATCH = {"__match_any_sync", do_match};

unsigned warp_match(unsigned mask, uint64_t value, const Where &where) {
    Thread *thread = engine.thread;
    thread->warp->value[thread->lane] = value;
    warp_operation(&MATCH, mask, NULL, where);
    return (unsigned)thread->warp->result[thread->lane];
}

struct ReduceArgument {
    Reduce kind;
    bool is_signed;
    unsigned value, result;
};
static void do_reduce(Warp *warp, unsigned lanes) {
    const ReduceArgument *first = argument_of<ReduceArgument>(warp, __builtin_ctz(lanes));
    unsigned result = first->value;
    for (uint32_t left = lanes & (lanes - 1); left != 0; left &= left - 1) {
        unsigned value = argument_of<ReduceArgument>(warp, __builtin_ctz(left))->value;
        bool less = first->is_signed ? (int)value < (int)result : value < result;
        switch (first->kind) {
        case Reduce::ADD:
            result += value;
            break;
        case Reduce::MINIMUM:
            result = less ? value : result;
            break;
        case Reduce::MAXIMUM:
            result = less ? result : value;
            break;
        case Reduce::AND:
            result &= value;
            break;
        case Reduce::OR:
            result |= value;
            break;
        case Reduce::XOR:
            result ^= value;
            break;
        }
    }
    for (uint32_t left = lanes; left != 0; left &= left - 1) {
        argument_of<ReduceArgument>(warp, __builtin_ctz(left))->result = result;
    }
}
static const WarpOperation REDUCE = {"__reduce_*_sync", do_reduce};

unsigned warp_reduce(Reduce kind, bool is_signed, unsigned mask, unsigned value, const Where &where) {
    ReduceArgument argument = {kind, is_signed, value, 0};
    warp_operation(&REDUCE, mask, &argument, where);
    return argument.result;
}

unsigned warp_alive() {
    return engine.thread->warp->alive;
}

// ---- Fragments

static void all_lanes(unsigned lanes, const char *what) {
    if (lanes != 0xFFFFFFFF) {
        fault("%s in a warp of which only lanes %08x are left", what, lanes);
    }
}

struct MatrixArgument {
    unsigned char *row;  // in shared memory
    uint32_t *r;
};
static void do_ldmatrix(Warp *warp, unsigned lanes) {
    all_lanes(lanes, "ldmatrix_x4");
    for (int i = 0; i < 4; i++) {
        uint32_t rows[8][4];  // 8 elements of 16 bits
        for (int row = 0; row < 8; row++) {
            memcpy(rows[row], argument_of<MatrixArgument>(warp, 8 * i + row)->row, 16);
        }
        for (int lane = 0; lane < 32; lane++) {
            argument_of<MatrixArgument>(warp, lane)->r[i] = rows[lane / 4][lane % 4];
        }
    }
}
static void do_ldmatrix_trans(Warp *warp, unsigned lanes) {
    all_lanes(lanes, "ldmatrix_x4_trans");
    for (int i = 0; i < 4; i++) {
        uint16_t rows[8][8];
        for (int row = 0; row < 8; row++) {
            memcpy(rows[row], argument_of<MatrixArgument>(warp, 8 * i + row)->row, 16);
        }
        for (int lane = 0; lane < 32; lane++) {
            int row = lane / 4, column = lane % 4 * 2;
            argument_of<MatrixArgument>(warp, lane)->r[i] = rows[column][row] | (uint32_t)rows[column + 1][row] << 16;
        }
    }
}
static void do_stmatrix(Warp *warp, unsigned lanes) {
    all_lanes(lanes, "stmatrix_x4");
    for (int i = 0; i < 4; i++) {
        for (int row = 0; row < 8; row++) {
            uint32_t elements[4];
            for (int j = 0; j < 4; j++) {
                elements[j] = argument_of<MatrixArgument>(warp, 4 * row + j)->r[i];
            }
            memcpy(argument_of<MatrixArgument>(warp, 8 * i + row)->row, elements, 16);
        }
    }
}
static void do_stmatrix_trans(Warp *warp, unsigned lanes) {
    all_lanes(lanes, "stmatrix_x4_trans");
    for (int i = 0; i < 4; i++) {
        uint16_t rows[8][8];
        for (int lane = 0; lane < 32; lane++) {
            int row = lane / 4, column = lane % 4 * 2;
            uint32_t two = argument_of<MatrixArgument>(warp, lane)->r[i];
            rows[column][row] = (uint16_t)two;
            rows[column + 1][row] = (uint16_t)(two >> 16);
        }
        for (int row = 0; row < 8; row++) {
            memcpy(argument_of<MatrixArgument>(warp, 8 * i + row)->row, rows[row], 16);
        }
    }
}
static const WarpOperation LDMATRIX = {"ldmatrix_x4", do_ldmatrix}, LDMATRIX_TRANS = {"ldmatrix_x4_trans", do_ldmatrix_trans},
                           STMATRIX = {"stmatrix_x4", do_stmatrix}, STMATRIX_TRANS = {"stmatrix_x4_trans", do_stmatrix_trans};

static void matrix(const WarpOperation *operation, uint32_t address, uint32_t *r) {
    Block *block = engine.thread->block;
    MatrixArgument argument = {block->shared + shared_offset(address, 16, 16, operation->name), r};
    warp_operation(operation, 0xFFFFFFFF, &argument, Where());
}

void ldmatrix_x4(uint32_t *r, uint32_t address, bool transpose) {
    matrix(transpose ? &LDMATRIX_TRANS : &LDMATRIX, address, r);
}

void stmatrix_x4(uint32_t address, const uint32_t *r, bool transpose) {
    if (engine.settings.architecture < 90) {
        fault("stmatrix_x4 before sm_90");
    }
    matrix(transpose ? &STMATRIX_TRANS : &STMATRIX, address, (uint32_t *)r);
}

// ---- Products

struct MmaArgument {
    float *d;
    const uint32_t *a, *b;
};

static inline float low(uint32_t two, bool bf16) {
    return bf16 ? __uint_as_float(two << 16) : __half2float(__ushort_as_half((unsigned short)two));
}
static inline float high(uint32_t two, bool bf16) {
    return bf16 ? __uint_as_float(two & 0xFFFF0000) : __half2float(__ushort_as_half((unsigned short)(two >> 16)));
}

// d += a b, row by row. Eight sums are one vector; the compiler's own choice of vectors is much slower.
typedef float Eight __attribute__((vector_size(32)));

static inline __attribute__((always_inline)) void multiply(const float (&a)[16][16], const float (&b)[16][8],
                                                           float (&d)[16][8]) {
    Eight rows[16];
    memcpy(rows, b, sizeof rows);
    for (int m = 0; m < 16; m++) {
        Eight sum;
        memcpy(&sum, d[m], sizeof sum);
        for (int k = 0; k < 16; k++) {
            sum += a[m][k] * rows[k];
        }
        memcpy(d[m], &sum, sizeof sum);
    }
}
typedef void Multiply(const float (&a)[16][16], const float (&b)[16][8], float (&d)[16][8]);
#ifdef __x86_64__
__attribute__((target("avx2,fma"))) static void multiply_avx2(const float (&a)[16][16], const float (&b)[16][8],
                                                              float (&d)[16][8]) {
    multiply(a, b, d);
}
#endif
static void multiply_any(const float (&a)[16][16], const float (&b)[16][8], float (&d)[16][8]) {
    multiply(a, b, d);
}
static Multiply *choose_multiply() {
#ifdef __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return multiply_avx2;
    }
#endif
    return multiply_any;
}

template <bool BF16> static void do_mma(Warp *warp, unsigned lanes) {
    static Multiply *const multiply_best = choose_multiply();
    all_lanes(lanes, "mma_16816");
    float a[16][16], b[16][8], d[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const MmaArgument *argument = argument_of<MmaArgument>(warp, lane);
        int g = lane / 4, t = lane % 4 * 2;
        for (int i = 0; i < 4; i++) {
            a[g + i % 2 * 8][t + i / 2 * 8] = low(argument->a[i], BF16);
            a[g + i % 2 * 8][t + i / 2 * 8 + 1] = high(argument->a[i], BF16);
            d[g + i / 2 * 8][t + i % 2] = argument->d[i];
        }
        for (int i = 0; i < 2; i++) {
            b[t + i * 8][g] = low(argument->b[i], BF16);
            b[t + i * 8 + 1][g] = high(argument->b[i], BF16);
        }
    }
    multiply_best(a, b, d);
    for (int lane = 0; lane < 32; lane++) {
        const MmaArgument *argument = argument_of<MmaArgument>(warp, lane);
        int g = lane / 4, t = lane % 4 * 2;
        for (int i = 0; i < 4; i++) {
            argument->d[i] = d[g + i / 2 * 8][t + i % 2];
        }
    }
}
static const WarpOperation MMA_BF16 = {"mma_16816 (bf16)", do_mma<true>}, MMA_FP16 = {"mma_16816 (fp16)", do_mma<false>};

void mma_16816(Half format, float *d, const uint32_t *a, const uint32_t *b) {
    MmaArgument argument = {d, a, b};
    warp_operation(format == Half::BF16 ? &MMA_BF16 : &MMA_FP16, 0xFFFFFFFF, &argument, Where());
}

}  // namespace simulator
