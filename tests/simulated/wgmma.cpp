// Products of sm_90: wgmma.
//
// A thread that issues one only notes it, saves its accumulators and fills them with poison. The products are done in the wait
// that covers them (or at once: Timing), when all 128 threads of the warpgroup are there: operands are read from shared memory
// then, and accumulators written when no product is left that adds to them. The registers of an operand a are read at issue:
// that they change before the wait is not caught.
#include "tests/simulated/machine.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace simulator {

// ---- Operands in shared memory

struct Descriptor {
    unsigned start, leading, stride, span;  // bytes; span: of the swizzle, 16: none
};

static Descriptor descriptor_of(uint64_t bits) {
    static const unsigned spans[4] = {16, 128, 64, 32};
    if ((bits >> 49 & 7) != 0) {
        fault("a wgmma descriptor with a base offset: not modelled");
    }
    return {(unsigned)(bits & 0x3FFF) << 4, (unsigned)(bits >> 16 & 0x3FFF) << 4, (unsigned)(bits >> 32 & 0x3FFF) << 4,
            spans[bits >> 62]};
}

// Eight elements that lie together in shared memory.
static void read_chunk(const Block *block, const Allocation *&within, unsigned address, unsigned span, Half format,
                       float *out) {
    address = swizzle_address(address, span);
    if (within == NULL || address < within->begin || address + 16 > within->end) {
        shared_check(block, address, 16, 16, "an operand of wgmma");
        for (const Allocation &a : block->allocations) {
            if (a.begin <= address && address + 16 <= a.end) {
                within = &a;
            }
        }
    }
    uint16_t elements[8];
    memcpy(elements, block->shared + address, 16);
    for (int i = 0; i < 8; i++) {
        out[i] =
            format == Half::BF16 ? __uint_as_float((uint32_t)elements[i] << 16) : __half2float(__ushort_as_half(elements[i]));
    }
}

// An operand of `extent` (along M or N) x 16 (along K) elements. K-major: out[i][k], else out[k][i]; `pitch` floats a row. The
// canonical layouts are those of PTX, "Shared Memory Matrix Layout": atoms of 8 rows of `span` bytes.
static void read_operand(const Block *block, const Descriptor &d, bool transposed, int extent, Half format, float *out,
                         int pitch) {
    const Allocation *within = NULL;
    if (!transposed) {
        for (int i = 0; i < extent; i++) {
            unsigned row = d.start + (unsigned)(i / 8) * d.stride + (unsigned)(i % 8) * d.span;
            for (unsigned k = 0; k < 2; k++) {
                unsigned step = d.span == 16 ? k * d.leading : k * 16;
                read_chunk(block, within, row + step, d.span, format, out + i * pitch + 8 * k);
            }
        }
        return;
    }
    unsigned atom = d.span / 2;  // elements along M or N
    unsigned along_k = d.span == 16 ? d.leading : d.stride, along_i = d.span == 16 ? d.stride : d.leading;
    for (unsigned k = 0; k < 16; k++) {
        for (unsigned i = 0; i < (unsigned)extent; i += 8) {
            unsigned address = d.start + k / 8 * along_k + k % 8 * d.span + i / atom * along_i + i % atom * 2;
            read_chunk(block, within, address, d.span, format, out + k * (unsigned)pitch + i);
        }
    }
}

// ---- The product of 64 x 16 and 16 x N

static const int WIDEST = 256, MOST_STRIPS = 2;

typedef float Strip __attribute__((vector_size(64)));  // of 16 columns

struct Operands {
    alignas(64) float a[64][16], b[16][WIDEST], d[64][WIDEST];
};

// d += a b, four rows and STRIPS strips at a time. Columns beyond n, up to the next whole strip, are computed and not used.
template <int STRIPS> static inline __attribute__((always_inline)) void multiply(Operands &o, int n) {
    const int step = 16 * STRIPS;
    for (int column = 0; column < n; column += step) {
        for (int row = 0; row < 64; row += 4) {
            Strip sum[4][STRIPS], b[STRIPS];
            for (int i = 0; i < 4; i++) {
                memcpy(sum[i], &o.d[row + i][column], sizeof sum[i]);
            }
            for (int k = 0; k < 16; k++) {
                memcpy(b, &o.b[k][column], sizeof b);
                for (int i = 0; i < 4; i++) {
                    for (int j = 0; j < STRIPS; j++) {
                        sum[i][j] += o.a[row + i][k] * b[j];
                    }
                }
            }
            for (int i = 0; i < 4; i++) {
                memcpy(&o.d[row + i][column], sum[i], sizeof sum[i]);
            }
        }
    }
}
#ifdef __x86_64__
__attribute__((target("avx512f,prefer-vector-width=512"))) static void multiply_avx512(Operands &o, int n) {
    multiply<MOST_STRIPS>(o, n);
}
__attribute__((target("avx2,fma"))) static void multiply_avx2(Operands &o, int n) {
    multiply<1>(o, n);
}
#endif
static void multiply_any(Operands &o, int n) {
    multiply<1>(o, n);
}
static void (*choose_multiply())(Operands &, int) {
#ifdef __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) {
        return multiply_avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return multiply_avx2;
    }
#endif
    return multiply_any;
}

// ---- Accumulators. Elements 4 j .. 4 j + 3 of a thread: two of row_of and two of eight rows below, from column_of + 8 j on.

static inline int row_of(int t) {
    return t / 32 * 16 + t % 32 / 4;
}
static inline int column_of(int t) {
    return t % 4 * 2;
}

static void gather_sums(Thread *threads, size_t item, Operands &o) {
    for (int t = 0; t < 128; t++) {
        const Product &p = threads[t].products.items[item];
        const float *saved = &threads[t].accumulators[p.saved];
        float *upper = &o.d[row_of(t)][column_of(t)], *lower = &o.d[row_of(t) + 8][column_of(t)];
        for (int j = 0; j < p.shape.n / 8; j++) {
            memcpy(upper + 8 * j, saved + 4 * j, 8);
            memcpy(lower + 8 * j, saved + 4 * j + 2, 8);
        }
    }
}

static void scatter_sums(Thread *threads, size_t item, const Operands &o, bool ended) {
    for (int t = 0; t < 128; t++) {
        Product &p = threads[t].products.items[item];
        float *to = ended ? p.d : &threads[t].accumulators[p.saved];
        const float *upper = &o.d[row_of(t)][column_of(t)], *lower = &o.d[row_of(t) + 8][column_of(t)];
        for (int j = 0; j < p.shape.n / 8; j++) {
            memcpy(to + 4 * j, upper + 8 * j, 8);
            memcpy(to + 4 * j + 2, lower + 8 * j, 8);
        }
    }
}

// ---- Doing them

static void check_same(const Product &p, const Thread &thread, size_t item) {
    if (item < thread.products.items.size()) {
        const Product &q = thread.products.items[item];
        if (q.shape == p.shape && q.a_descriptor == p.a_descriptor && q.b_descriptor == p.b_descriptor &&
            q.accumulate == p.accumulate && q.group == p.group && q.saved == p.saved) {
            return;
        }
    }
    fault("the threads of a warpgroup issued different products (wgmma): see thread %u of the block", thread.number);
}

static void do_product(Thread *threads, size_t item, Operands &o) {
    static void (*const multiply_best)(Operands &, int) = choose_multiply();
    const Product &p = threads[0].products.items[item];
    const Block *block = threads[0].block;
    int n = p.shape.n;
    float transposed[WIDEST * 16];
    if (p.shape.a_in_registers) {
        for (int t = 0; t < 128; t++) {
            const Product &q = threads[t].products.items[item];
            for (int i = 0; i < 4; i++) {
                float *at = &o.a[t / 32 * 16 + t % 32 / 4 + i % 2 * 8][t % 4 * 2 + i / 2 * 8];
                uint32_t two = q.a[i];
                bool bf16 = p.shape.format == Half::BF16;
                at[0] = bf16 ? __uint_as_float(two << 16) : __half2float(__ushort_as_half((unsigned short)two));
                at[1] = bf16 ? __uint_as_float(two & 0xFFFF0000) : __half2float(__ushort_as_half((unsigned short)(two >> 16)));
            }
        }
    } else if (p.shape.a_transposed) {
        read_operand(block, descriptor_of(p.a_descriptor), true, 64, p.shape.format, transposed, 64);
        for (int i = 0; i < 64; i++) {
            for (int k = 0; k < 16; k++) {
                o.a[i][k] = transposed[64 * k + i];
            }
        }
    } else {
        read_operand(block, descriptor_of(p.a_descriptor), false, 64, p.shape.format, &o.a[0][0], 16);
    }
    if (p.shape.b_transposed) {
        read_operand(block, descriptor_of(p.b_descriptor), true, n, p.shape.format, &o.b[0][0], WIDEST);
    } else {
        read_operand(block, descriptor_of(p.b_descriptor), false, n, p.shape.format, transposed, 16);
        for (int k = 0; k < 16; k++) {
            for (int i = 0; i < n; i++) {
                o.b[k][i] = transposed[16 * i + k];
            }
        }
    }
    multiply_best(o, n);
}

// Keeps what is not done yet, and its accumulators.
static void forget_done(Thread &thread) {
    Queue<Product> &products = thread.products;
    if (products.empty()) {
        products.clear();
        thread.accumulators.clear();
        return;
    }
    std::vector<float> kept;
    products.items.erase(products.items.begin(), products.items.begin() + (ptrdiff_t)products.done);
    products.done = 0;
    for (size_t i = 0; i < products.items.size(); i++) {
        Product &p = products.items[i];
        size_t old = p.saved, sames = 0;
        while (products.items[sames].d != p.d) {
            sames++;
        }
        if (sames < i) {
            p.saved = products.items[sames].saved;
        } else {
            p.saved = kept.size();
            kept.insert(kept.end(), thread.accumulators.begin() + (ptrdiff_t)old,
                        thread.accumulators.begin() + (ptrdiff_t)old + p.shape.n / 2);
        }
    }
    thread.accumulators.swap(kept);
}

static void products_do(Thread *threads, unsigned groups_before) {
    static Operands o;
    Queue<Product> &first = threads[0].products;
    float *d = NULL;  // whose sums are in o
    while (!first.empty() && first.items[first.done].group < groups_before) {
        size_t item = first.done;
        const Product &p = first.items[item];
        for (int t = 0; t < 128; t++) {
            check_same(p, threads[t], item);
        }
        if (!p.accumulate) {
            for (int row = 0; row < 64; row++) {
                memset(o.d[row], 0, (size_t)p.shape.n * sizeof(float));
            }
        } else if (p.d != d) {
            gather_sums(threads, item, o);
        }
        d = p.d;
        do_product(threads, item, o);
        // The next product that adds to the same registers: among those to do now, or later, or none.
        size_t next = item + 1;
        while (next < first.items.size() && first.items[next].d != d) {
            next++;
        }
        bool ends = next == first.items.size(), follows = next == item + 1 && !ends && first.items[next].group < groups_before;
        if (!follows) {
            scatter_sums(threads, item, o, ends);
            d = NULL;
        }
        for (int t = 0; t < 128; t++) {
            threads[t].products.done = item + 1;
        }
    }
    for (int t = 0; t < 128; t++) {
        forget_done(threads[t]);
    }
    engine.events++;
}

static Thread *warpgroup_of(Thread *thread, const char *what) {
    Block *block = thread->block;
    unsigned first = thread->number / 128 * 128;
    if (first + 128 > block->threads.size()) {
        fault("%s in a warpgroup of less than 128 threads", what);
    }
    for (unsigned i = 0; i < 4; i++) {
        if (block->warps[first / 32 + i].alive != 0xFFFFFFFF) {
            fault("%s in a warpgroup of which threads have ended", what);
        }
    }
    return &block->threads[first];
}

static const WarpOperation WAIT = {"wgmma_wait", NULL}, ISSUE = {"wgmma", NULL};

// Waits for all 128 threads, of which the last does the products of the groups before.
static void gather_and_do(const WarpOperation *operation, unsigned groups_before) {
    Thread *thread = engine.thread, *threads = warpgroup_of(thread, operation->name);
    unsigned &gathered = thread->block->gathered[thread->number / 128];
    thread->operation = operation;
    thread->mask = groups_before;
    if (++gathered < 128) {
        thread_wait(Wait::WARPGROUP);
        return;
    }
    gathered = 0;
    for (int t = 0; t < 128; t++) {
        if (threads[t].operation != operation || threads[t].mask != groups_before) {
            fault("diverged warpgroup: %s here, but %s in thread %u of the block, or for other groups", operation->name,
                  threads[t].operation->name, threads[t].number);
        }
    }
    products_do(threads, groups_before);
    for (int t = 0; t < 128; t++) {
        if (&threads[t] != thread) {
            thread_ready(&threads[t]);
        }
    }
}

void wgmma(const WgmmaShape &shape, float *d, const uint32_t *a, uint64_t a_descriptor, uint64_t b_descriptor,
           bool accumulate) {
    Thread *thread = engine.thread;
    if (engine.settings.architecture != 90) {
        fault("wgmma is of sm_90a alone");
    }
    Queue<Product> &products = thread->products;
    Product product = {shape, d, {}, a_descriptor, b_descriptor, accumulate, products.group, thread->accumulators.size()};
    if (a != NULL) {
        memcpy(product.a, a, sizeof product.a);
    }
    bool follows = false;  // a product under way on the same registers
    for (size_t i = products.items.size(); i > products.done && !follows; i--) {
        const Product &other = products.items[i - 1];
        if (other.d == d) {
            if (other.shape.n != shape.n) {
                fault("wgmma on registers of which another shape is under way");
            }
            follows = true;
            product.saved = other.saved;
        }
    }
    size_t bytes = (size_t)shape.n / 2 * sizeof(float);
    if (!follows) {
        if (!thread->products_fenced) {
            fault("wgmma without wgmma_fence since the registers could be touched");
        }
        thread->accumulators.resize(product.saved + (size_t)shape.n / 2);
        memcpy(&thread->accumulators[product.saved], d, bytes);
    }
    poison(d, bytes);
    products.items.push_back(product);
    // The same choice in all threads of the warpgroup.
    unsigned turn = thread->products_issued++;
    uint64_t dice = (engine.settings.seed + engine.launches * 7919 + thread->number / 128 * 104729 + turn) * 0x9E3779B97F4A7C15;
    Timing timing = engine.settings.timing;
    if (timing == Timing::EARLY || (timing == Timing::RANDOM && dice >> 63 != 0)) {
        gather_and_do(&ISSUE, UINT32_MAX);
    }
}

void wgmma_fence() {
    engine.thread->products_fenced = true;
}

void wgmma_commit() {
    engine.thread->products.group++;
}

void wgmma_wait(unsigned groups) {
    Thread *thread = engine.thread;
    Queue<Product> &products = thread->products;
    unsigned before = products.group > groups ? products.group - groups : 0;
    thread->products_fenced = false;
    if (!products.empty() && products.items[products.done].group < before) {
        gather_and_do(&WAIT, before);
    }
}

void products_check(Thread *thread) {
    if (!thread->products.empty()) {
        fault("the thread ends while products (wgmma) are under way: no wgmma_wait");
    }
}

}  // namespace simulator
