// The simulated card's engine: that it computes what PTX says, layouts and swizzles against tables of the manual and products
// against float64; and that it shows mistakes: kernels with one mistake each must give a wrong result, or end with a message
// that names it, under some seed and timing.
#define _Noreturn [[noreturn]]
extern "C" {
#include "tests/support/check.h"
}
#undef _Noreturn
#include "kernels/cuda/ptx.h"

#include "tests/simulated/engine.h"

#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

namespace BACKEND {

using simulator::Timing;
typedef std::function<void()> Body;

enum { SEEDS = 24 };

static void start(dim3 grid, dim3 block, size_t shared, const Body &body, unsigned cluster = 1) {
    simulator::run({"test", grid, block, cluster, shared}, body);
}

static void set(uint64_t seed, Timing timing) {
    simulator::settings().seed = seed;
    simulator::settings().timing = timing;
}

// Runs something under all timings and some seeds.
static void everyhow(const Body &body) {
    for (Timing timing : {Timing::LATE, Timing::EARLY, Timing::RANDOM}) {
        for (uint64_t seed : {0, 1, 2, 3}) {
            set(seed, timing);
            body();
        }
    }
    set(0, Timing::LATE);
}

// A small number that each place has of its own; exact in bf16 and fp16.
static float value_at(int row, int column) {
    return (float)((row * 31 + column * 17 + row * column % 7) % 61 - 30) / 8;
}

// ---- Threads

static void test_every_thread_runs_once(void) {
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        set(seed, Timing::LATE);
        std::vector<int> count(3 * 5 * 2 * 6 * 4 * 3);
        bool in_order = true;
        unsigned before = 0;
        start(dim3(3, 5, 2), dim3(6, 4, 3), 0, [&] {
            unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
            unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
            in_order = in_order && block * 72 + thread >= before;
            before = block * 72 + thread;
            count[before]++;
        });
        bool once = true;
        for (int n : count) {
            once = once && n == 1;
        }
        CHECK(once);
        CHECK(in_order == (seed == 0));
    }
    set(0, Timing::LATE);
    CHECK(simulator::launch_fault({"", dim3(7), dim3(32), 2, 0}) != NULL);
    CHECK(simulator::launch_fault({"", dim3(8), dim3(1025), 1, 0}) != NULL);
    CHECK(simulator::launch_fault({"", dim3(8), dim3(32), 1, 228 * 1024}) != NULL);
    CHECK(simulator::launch_fault({"", dim3(8), dim3(1024), 2, 227 * 1024}) == NULL);
    simulator::settings().architecture = 80;
    CHECK(simulator::launch_fault({"", dim3(8), dim3(1024), 2, 0}) != NULL);
    CHECK(simulator::launch_fault({"", dim3(8), dim3(1024), 1, 164 * 1024}) != NULL);
    simulator::settings().architecture = 90;
    setenv("ATHANOR_SIMULATED_ARCH", "86", 1);
    CHECK_I64(simulator::settings().architecture, 86);
    CHECK_I64(simulator::shared_limit(), 99 * 1024);
    setenv("ATHANOR_SIMULATED_ARCH", "90", 1);
    CHECK_I64(simulator::settings().architecture, 90);
}

static void test_warps(void) {
    everyhow([] {
        unsigned wrong = 0;
        start(dim3(2), dim3(80), 0, [&] {
            int lane = (int)threadIdx.x % 32;
            unsigned all = threadIdx.x < 64 ? 0xFFFFFFFF : 0xFFFF;
            int lanes = threadIdx.x < 64 ? 32 : 16;
            wrong += __shfl_sync(all, lane * 3, 5) != 15;
            wrong += __shfl_sync(all, lane * 3, 18, 8) != (lane / 8 * 8 + 2) * 3;
            wrong += __shfl_up_sync(all, lane, 3) != (lane < 3 ? lane : lane - 3);
            wrong += __shfl_up_sync(all, lane, 3, 16) != (lane % 16 < 3 ? lane : lane - 3);
            wrong += __shfl_down_sync(all, (double)lane, 1, 4) != (lane % 4 == 3 ? lane : lane + 1);
            wrong += __shfl_xor_sync(all, (long long)lane << 40, 4) != (long long)(lane ^ 4) << 40;
            wrong += __shfl_xor_sync(all, (unsigned short)lane, 15) != (lane ^ 15);
            wrong += __ballot_sync(all, lane % 3 == 0) != (0x49249249 & all);
            wrong += !__any_sync(all, lane == 7) || __any_sync(all, lane > 99);
            wrong += !__all_sync(all, lane < 99) || __all_sync(all, lane != 7);
            wrong += __reduce_add_sync(all, lane) != lanes * (lanes - 1) / 2;
            wrong += __reduce_max_sync(all, lane - 40) != lanes - 41;
            wrong += __reduce_min_sync(all, (unsigned)lane + 2) != 2;
            wrong += __match_any_sync(all, lane % 16) != ((0x10001u << lane % 16) & all);
            if (lane % 2 == 0) {  // a part of the warp
                wrong += __shfl_xor_sync(0x55555555, lane, 2) != (lane ^ 2);
            }
            __syncwarp(all);
            if (lane > 10) {
                return;
            }
            wrong += __ballot_sync(0x7FF, 1) != 0x7FF;
        });
        CHECK_I64(wrong, 0);
    });
}

static void test_blocks(void) {
    everyhow([] {
        float sum = 0;
        unsigned wrong = 0;
        int counter = 0;
        start(dim3(3), dim3(256), 4096, [&] {
            DYNAMIC_SHARED(bytes);
            SHARED(int, table, [256]);
            SHARED(double, one);
            int t = (int)threadIdx.x;
            wrong += shared_address(bytes) % 1024 != 0;
            table[t] = t;
            ((float *)bytes)[t] = (float)t;
            __syncthreads();
            wrong += table[255 - t] != 255 - t || ((float *)bytes)[t ^ 77] != (float)(t ^ 77);
            wrong += __syncthreads_count(t % 3 == 0) != 86;
            wrong += !__syncthreads_or(t == 9) || __syncthreads_and(t != 9);
            if (t == 200) {
                one = 2.5;
            }
            __syncthreads();
            wrong += one != 2.5;
            float of_block = block_sum<256>((float)t);
            if (t == 0) {
                sum += of_block;
            }
            if (t >= 100 && t < 170) {
                return;  // the others' barriers do not wait for those that have ended
            }
            __syncthreads();
            atomicAdd(&counter, 1);
        });
        CHECK_I64(wrong, 0);
        CHECK(sum == 3 * 255 * 128);
        CHECK_I64(counter, 3 * 186);
    });
}

static void test_atomics(void) {
    int sum = 0, most = -5;
    unsigned turn = 0, bits = 0, down = 2;
    unsigned long long wide = 0;
    start(dim3(4), dim3(100), 0, [&] {
        atomicAdd(&sum, (int)threadIdx.x);
        atomicMax(&most, (int)threadIdx.x);
        atomicInc(&turn, 6);
        atomicDec(&down, 2);
        atomicOr(&bits, 1u << threadIdx.x % 20);
        atomicAdd(&wide, 1ull << 33);
        for (int old = sum; (old = atomicCAS(&sum, old, old)) != sum;) {
        }
    });
    CHECK_I64(sum, 4 * 4950);
    CHECK_I64(most, 99);
    CHECK_I64(turn, 400 % 7);
    CHECK_I64(down, 1);
    CHECK_I64(bits, (1 << 20) - 1);
    CHECK(wide == 400ull << 33);
}

// Named barriers hand a buffer back and forth between a producer and a consumer; arrivals do not wait.
static void test_named_barriers(void) {
    everyhow([] {
        int wrong = 0;
        start(dim3(2), dim3(96), 0, [&] {
            enum { FULL = 1, EMPTY = 2 };
            SHARED(int, buffer, [32]);
            int lane = (int)threadIdx.x % 32;
            if (threadIdx.x < 32) {
                for (int i = 0; i < 9; i++) {
                    barrier_sync(EMPTY, 96);
                    buffer[lane] = 100 * i + lane;
                    barrier_arrive(FULL, 96);
                }
            } else {
                barrier_arrive(EMPTY, 96);
                for (int i = 0; i < 9; i++) {
                    barrier_sync(FULL, 96);
                    wrong += buffer[31 - lane] != 100 * i + 31 - lane;
                    if (i < 8) {
                        barrier_arrive(EMPTY, 96);
                    }
                }
            }
        });
        CHECK_I64(wrong, 0);
    });
}

// Blocks that add to a word in the order of their numbers, whatever the order in which they start.
static void test_blocks_in_order(void) {
    everyhow([] {
        int word = 0;
        std::string order;
        start(dim3(20), dim3(64), 0, [&] {
            if (threadIdx.x == 0) {
                while (load_acquire(&word) != (int)blockIdx.x) {
                    if (blockIdx.x % 2 == 0) {  // to nap is good manners, not needed
                        nap();
                    }
                }
            }
            __syncthreads();
            if (threadIdx.x == 33) {
                order += (char)('a' + blockIdx.x);
            }
            __syncthreads();
            if (threadIdx.x == 0) {
                add_release(&word, 1);
            }
        });
        CHECK_TEXT(order.c_str(), "abcdefghijklmnopqrst");
    });
}

// Registers: 3 warpgroups of 168 each; two grow by what the first gives back.
static void test_registers(void) {
    everyhow([] {
        int done = 0;
        start(dim3(1), dim3(384), 0, [&] {
            if (threadIdx.x < 128) {
                registers_shrink<24>();
            } else {
                registers_grow<240>();
            }
            atomicAdd(&done, 1);
        });
        CHECK_I64(done, 384);
    });
}

// ---- Conversions

static double decode(unsigned bits, int exponent_bits, int mantissa_bits) {
    unsigned exponent = bits >> mantissa_bits & ((1u << exponent_bits) - 1), mantissa = bits & ((1u << mantissa_bits) - 1);
    int bias = (1 << (exponent_bits - 1)) - 1;
    double sign = bits >> 15 ? -1 : 1;
    if (exponent == (1u << exponent_bits) - 1) {
        return mantissa != 0 ? NAN : sign * INFINITY;
    }
    if (exponent == 0) {
        return sign * ldexp(mantissa, 1 - bias - mantissa_bits);
    }
    return sign * ldexp(mantissa | 1u << mantissa_bits, (int)exponent - bias - mantissa_bits);
}

static void test_conversions(void) {
    int wrong = 0;
    for (unsigned bits = 0; bits < 65536; bits++) {
        double fp16_value = decode(bits, 5, 10), bf16_value = decode(bits, 8, 7);
        float from_fp16 = __half2float(__ushort_as_half((unsigned short)bits));
        float from_bf16 = __bfloat162float(__ushort_as_bfloat16((unsigned short)bits));
        if (std::isnan(fp16_value)) {
            wrong += !std::isnan(from_fp16) || !__hisnan(__float2half_rn(from_fp16));
        } else {
            wrong += from_fp16 != fp16_value || __half_as_ushort(__float2half_rn(from_fp16)) != bits;
        }
        if (std::isnan(bf16_value)) {
            wrong += !std::isnan(from_bf16) || !__hisnan(__float2bfloat16_rn(from_bf16));
        } else {
            wrong += from_bf16 != bf16_value || __bfloat16_as_ushort(__float2bfloat16_rn(from_bf16)) != bits;
        }
        // Between this number and the next: below, at (to even) and above the middle.
        unsigned next = bits + 1;
        double fp16_next = decode(next, 5, 10), bf16_next = decode(next, 8, 7);
        if (bits % 32768 < 0x7C00 - 1) {
            double middle = (fp16_value + fp16_next) / 2, far = fp16_next - fp16_value;
            wrong += __half_as_ushort(__float2half_rn((float)middle)) != (bits % 2 == 0 ? bits : next);
            wrong += __half_as_ushort(__float2half_rn((float)(middle - far / 8))) != bits;
            wrong += __half_as_ushort(__float2half_rn((float)(middle + far / 8))) != next;
            wrong += __half_as_ushort(__float2half_rz((float)(middle + far / 8))) != bits;
        }
        if (bits % 32768 < 0x7F80 - 1 && bits % 32768 > 0x80) {
            double middle = (bf16_value + bf16_next) / 2, far = bf16_next - bf16_value;
            wrong += __bfloat16_as_ushort(__float2bfloat16_rn((float)middle)) != (bits % 2 == 0 ? bits : next);
            wrong += __bfloat16_as_ushort(__float2bfloat16_rn((float)(middle - far / 8))) != bits;
            wrong += __bfloat16_as_ushort(__double2bfloat16(middle * (1 + 1e-12))) != next;
            wrong += __bfloat16_as_ushort(__double2bfloat16(middle * (1 - 1e-12))) != bits;
        }
    }
    CHECK_I64(wrong, 0);
    CHECK(__half_as_ushort(__float2half_rn(65519.f)) == 0x7BFF && __half_as_ushort(__float2half_rn(65520.f)) == 0x7C00);
    CHECK(__half_as_ushort(__float2half_rn(-1e30f)) == 0xFC00);
    CHECK(__bfloat16_as_ushort(__float2bfloat16_rn(3.4e38f)) == 0x7F80);
    CHECK(pack_two<bf16>(1, -2) == 0xC0003F80 && pack_two<fp16>(1, -2) == 0xC0003C00);
}

static void test_bits(void) {
    CHECK(__popc(0xF0F0u) == 8 && __clz(1) == 31 && __clz(0) == 32 && __ffs(0) == 0 && __ffs(8) == 4);
    CHECK(__brev(1) == 0x80000000 && __brev(0x12345678) == 0x1E6A2C48);
    CHECK(__umulhi(0xFFFFFFFF, 0xFFFFFFFF) == 0xFFFFFFFE && __mulhi(-1, 1) == -1);
    CHECK(__umul64hi(1ull << 63, 6) == 3);
    CHECK(__byte_perm(0x33221100, 0x77665544, 0x7531) == 0x77553311 && __byte_perm(0x80, 0, 0x0008) == 0x808080FF);
    CHECK(__funnelshift_l(0x80000000, 1, 1) == 3 && __funnelshift_r(0, 1, 1) == 0x80000000);
    CHECK(__float2int_rn(2.5f) == 2 && __float2int_rz(-2.9f) == -2 && __float2int_rz(NAN) == 0);
    CHECK(__float2uint_rn(-3.f) == 0 && __float2int_rn(1e20f) == INT32_MAX);
    CHECK(__saturatef(NAN) == 0 && __saturatef(2) == 1);
    CHECK(fabs(tanh_fast(0.3f) / tanh(0.3) - 1) < 0x1p-11 && tanh_fast(0.3f) != tanhf(0.3f));
    CHECK(exp2_fast(-150) == 0 && exp2_fast(3) == 8);
}

// ---- Fragments

// Where the elements of registers lie, as the PTX manual prints it ("Matrix Fragments for mma.m16n8k16"), for some lanes:
// lane; (row, column) of a0 .. a7, b0 .. b3, c0 .. c3.
static const int MMA_TABLE[][33] = {
    {0, 0, 0, 0, 1, 8, 0, 8, 1, 0, 8, 0, 9, 8, 8, 8, 9, 0, 0, 1, 0, 8, 0, 9, 0, 0, 0, 0, 1, 8, 0, 8, 1},
    {3, 0, 6, 0, 7, 8, 6, 8, 7, 0, 14, 0, 15, 8, 14, 8, 15, 6, 0, 7, 0, 14, 0, 15, 0, 0, 6, 0, 7, 8, 6, 8, 7},
    {4, 1, 0, 1, 1, 9, 0, 9, 1, 1, 8, 1, 9, 9, 8, 9, 9, 0, 1, 1, 1, 8, 1, 9, 1, 1, 0, 1, 1, 9, 0, 9, 1},
    {13, 3, 2, 3, 3, 11, 2, 11, 3, 3, 10, 3, 11, 11, 10, 11, 11, 2, 3, 3, 3, 10, 3, 11, 3, 3, 2, 3, 3, 11, 2, 11, 3},
    {31, 7, 6, 7, 7, 15, 6, 15, 7, 7, 14, 7, 15, 15, 14, 15, 15, 6, 7, 7, 7, 14, 7, 15, 7, 7, 6, 7, 7, 15, 6, 15, 7},
};

// The same by the manual's formulas, which are checked against the table.
static void mma_a_place(int lane, int i, int *row, int *column) {
    *row = i < 2 || (4 <= i && i < 6) ? lane >> 2 : (lane >> 2) + 8;
    *column = i < 4 ? lane % 4 * 2 + (i & 1) : lane % 4 * 2 + (i & 1) + 8;
}
static void mma_b_place(int lane, int i, int *row, int *column) {
    *row = i < 2 ? lane % 4 * 2 + (i & 1) : lane % 4 * 2 + (i & 1) + 8;
    *column = lane >> 2;
}
static void mma_c_place(int lane, int i, int *row, int *column) {
    *row = i < 2 ? lane >> 2 : (lane >> 2) + 8;
    *column = lane % 4 * 2 + (i & 1);
}

template <typename T> static void test_mma_of(void) {
    for (const int *line : MMA_TABLE) {
        int row, column, wrong = 0;
        for (int i = 0; i < 8; i++) {
            mma_a_place(line[0], i, &row, &column);
            wrong += row != line[1 + 2 * i] || column != line[2 + 2 * i];
        }
        for (int i = 0; i < 4; i++) {
            mma_b_place(line[0], i, &row, &column);
            wrong += row != line[17 + 2 * i] || column != line[18 + 2 * i];
            mma_c_place(line[0], i, &row, &column);
            wrong += row != line[25 + 2 * i] || column != line[26 + 2 * i];
        }
        CHECK_I64(wrong, 0);
    }
    int wrong = 0;
    start(dim3(1), dim3(64), 0, [&] {
        int lane = (int)threadIdx.x % 32, row[8], column[8];
        uint32_t a[4], b[2];
        float d[4];
        for (int i = 0; i < 8; i++) {
            mma_a_place(lane, i, &row[i], &column[i]);
        }
        for (int i = 0; i < 4; i++) {
            a[i] = pack_two<T>(value_at(row[2 * i], column[2 * i]), value_at(row[2 * i + 1], column[2 * i + 1]));
        }
        for (int i = 0; i < 4; i++) {
            mma_b_place(lane, i, &row[i], &column[i]);
        }
        for (int i = 0; i < 2; i++) {
            b[i] = pack_two<T>(value_at(50 + row[2 * i], column[2 * i]), value_at(50 + row[2 * i + 1], column[2 * i + 1]));
        }
        for (int i = 0; i < 4; i++) {
            mma_c_place(lane, i, &row[i], &column[i]);
            d[i] = value_at(100 + row[i], column[i]);
        }
        mma_16816<T>(d, a, b);
        for (int i = 0; i < 4; i++) {
            double sum = value_at(100 + row[i], column[i]);
            for (int k = 0; k < 16; k++) {
                sum += (double)value_at(row[i], k) * value_at(50 + k, column[i]);
            }
            wrong += d[i] != sum;  // small multiples of 1/64: exact
        }
    });
    CHECK_I64(wrong, 0);
}

static void test_mma(void) {
    test_mma_of<bf16>();
    test_mma_of<fp16>();
}

static void test_ldmatrix(void) {
    everyhow([] {
        int wrong = 0;
        start(dim3(1), dim3(32), 0, [&] {
            // Four matrices of 8 rows; rows are 40 bytes wide, so that they start anywhere.
            struct Row {
                alignas(16) uint16_t at[24];
            };
            SHARED(Row, rows, [32]);
            SHARED(Row, back, [32]);
            int lane = (int)threadIdx.x;
            for (int i = 0; i < 8; i++) {
                rows[lane].at[i] = (uint16_t)(lane * 8 + i);
            }
            __syncthreads();
            uint32_t r[4], t[4];
            ldmatrix_x4(r, shared_address(&rows[lane]));
            ldmatrix_x4_trans(t, shared_address(&rows[lane]));
            for (int i = 0; i < 4; i++) {
                // Thread 4 y + x holds elements 2 x and 2 x + 1 of row y.
                int y = lane / 4, x = lane % 4;
                wrong += r[i] != (uint32_t)((8 * i + y) * 8 + 2 * x) + ((uint32_t)((8 * i + y) * 8 + 2 * x + 1) << 16);
                wrong += t[i] != (uint32_t)((8 * i + 2 * x) * 8 + y) + ((uint32_t)((8 * i + 2 * x + 1) * 8 + y) << 16);
            }
            stmatrix_x4(shared_address(&back[lane]), r);
            __syncwarp();
            wrong += memcmp(&back[lane], &rows[lane], 16) != 0;
            stmatrix_x4_trans(shared_address(&back[lane]), t);
            __syncwarp();
            wrong += memcmp(&back[lane], &rows[lane], 16) != 0;
            stmatrix_x4_trans(shared_address(&back[lane]), r);
            __syncwarp();
            for (int i = 0; i < 8; i++) {
                wrong += back[lane].at[i] != (lane / 8 * 8 + i) * 8 + lane % 8;
            }
        });
        CHECK_I64(wrong, 0);
    });
}

static void test_copy_async(void) {
    everyhow([] {
        enum { STAGES = 3, STEPS = 17 };
        std::vector<uint4> from(64 * STEPS);
        for (size_t i = 0; i < from.size(); i++) {
            from[i] = make_uint4((unsigned)i, (unsigned)i * 3, 5, 7);
        }
        int wrong = 0;
        start(dim3(2), dim3(64), 0, [&] {
            SHARED(uint4, stage, [STAGES][64]);
            int t = (int)threadIdx.x;
            auto fetch = [&](int step) {
                if (step < STEPS) {
                    copy_async_16(shared_address(&stage[step % STAGES][t]), &from[(size_t)(64 * step + t)], t != 5);
                }
                copy_async_commit();
            };
            fetch(0);
            fetch(1);
            for (int step = 0; step < STEPS; step++) {
                copy_async_wait<1>();
                __syncthreads();
                fetch(step + 2);
                int other = 63 - t;
                unsigned expected = other == 5 ? 0 : (unsigned)(64 * step + other);
                wrong += stage[step % STAGES][other].x != expected || stage[step % STAGES][other].y != 3 * expected;
            }
        });
        CHECK_I64(wrong, 0);
    });
}

// ---- TMA

static CUresult encode(CUtensorMap *map, int rank, const void *address, const cuuint64_t *dimensions, const cuuint64_t *strides,
                       const cuuint32_t *box, CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_NONE,
                       CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_UINT16) {
    const cuuint32_t ones[5] = {1, 1, 1, 1, 1};
    return cuTensorMapEncodeTiled(map, type, (cuuint32_t)rank, (void *)address, dimensions, strides, box, ones,
                                  CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

static void test_encoding(void) {
    alignas(128) static unsigned char memory[1024];
    CUtensorMap map;
    cuuint64_t dimensions[5] = {64, 64, 64, 4, 4}, strides[4] = {128, 8192, 524288, 2097152};
    cuuint32_t box[5] = {64, 8, 2, 1, 1};
#define REFUSED(change, undo)                                                                                                  \
    change;                                                                                                                    \
    CHECK(encode(&map, 5, memory, dimensions, strides, box, CU_TENSOR_MAP_SWIZZLE_128B) == CUDA_ERROR_INVALID_VALUE);          \
    undo
    CHECK(encode(&map, 5, memory, dimensions, strides, box, CU_TENSOR_MAP_SWIZZLE_128B) == CUDA_SUCCESS);
    REFUSED(box[0] = 72, box[0] = 64);
    REFUSED(box[0] = 4, box[0] = 64);
    REFUSED(box[1] = 257, box[1] = 8);
    REFUSED(box[1] = 0, box[1] = 8);
    REFUSED(dimensions[2] = 0, dimensions[2] = 64);
    REFUSED(dimensions[2] = ((cuuint64_t)1 << 32) + 1, dimensions[2] = 64);
    REFUSED(strides[0] = 136, strides[0] = 128);
    REFUSED(strides[3] = (cuuint64_t)1 << 40, strides[3] = 2097152);
    REFUSED(strides[0] = 112, strides[0] = 128);      // less than a row
    REFUSED(strides[2] = 4096, strides[2] = 524288);  // less than the stride before
    dimensions[0] = 57;                               // extents are any number
    CHECK(encode(&map, 5, memory, dimensions, strides, box, CU_TENSOR_MAP_SWIZZLE_128B) == CUDA_SUCCESS);
#undef REFUSED
    CHECK(encode(&map, 5, memory + 8, dimensions, strides, box) == CUDA_ERROR_INVALID_VALUE);
    CHECK(encode(&map, 6, memory, dimensions, strides, box) == CUDA_ERROR_INVALID_VALUE);
    CHECK(encode(&map, 0, memory, dimensions, strides, box) == CUDA_ERROR_INVALID_VALUE);
    CHECK(encode(&map, 2, memory, dimensions, strides, box, CU_TENSOR_MAP_SWIZZLE_64B) == CUDA_ERROR_INVALID_VALUE);
}

// One thread loads a box and hands it to `look`, which all threads call.
static void load_box(const CUtensorMap &map, int rank, const int *c, uint32_t bytes, size_t shared,
                     const std::function<void(const unsigned char *)> &look) {
    start(dim3(1), dim3(32), shared, [&] {
        DYNAMIC_SHARED(memory);
        SHARED(uint64_t, barrier);
        uint32_t full = shared_address(&barrier);
        if (threadIdx.x == 0) {
            mbarrier_init(full, 1);
            fence_mbarrier_init();
            mbarrier_expect(full, bytes);
            switch (rank) {
            case 2:
                tma_load_2d(shared_address(memory), &map, full, c[0], c[1]);
                break;
            case 3:
                tma_load_3d(shared_address(memory), &map, full, c[0], c[1], c[2]);
                break;
            case 4:
                tma_load_4d(shared_address(memory), &map, full, c[0], c[1], c[2], c[3]);
                break;
            default:
                simulator::tma_load(rank, shared_address(memory), &map, full, 0, c);
            }
        }
        __syncthreads();
        mbarrier_wait(full, 0);
        if (threadIdx.x == 31) {
            look(memory);
        }
    });
}

// Boxes of all ranks, across all edges of the tensor, with every swizzle.
static void test_boxes(void) {
    static const int size[5] = {24, 5, 4, 3, 3};
    alignas(128) static uint16_t tensor[3][3][4][5][32];  // rows are padded to 64 bytes
    for (int i = 0; i < 3 * 3 * 4 * 5 * 32; i++) {
        (&tensor[0][0][0][0][0])[i] = (uint16_t)(i + 1);
    }
    cuuint64_t dimensions[5], strides[4] = {64, 320, 1280, 3840};
    for (int i = 0; i < 5; i++) {
        dimensions[i] = (cuuint64_t)size[i];
    }
    const cuuint32_t box[5] = {16, 3, 2, 2, 2};  // 32 bytes a row
    for (int rank = 1; rank <= 5; rank++) {
        for (int swizzle = 0; swizzle < 2; swizzle++) {
            CUtensorMap map;
            CHECK(encode(&map, rank, tensor, dimensions, strides, box, (CUtensorMapSwizzle)swizzle) == CUDA_SUCCESS);
            int elements = 1;
            for (int i = 0; i < rank; i++) {
                elements *= (int)box[i];
            }
            for (int place = 0; place < 12; place++) {
                int c[5], wrong = 0;
                for (int i = 0; i < 5; i++) {
                    c[i] = (place * (3 + i)) % (size[i] + (int)box[i]) - (int)box[i] / 2;
                }
                load_box(map, rank, c, (uint32_t)elements * 2, 4096, [&](const unsigned char *shared) {
                    for (int e = 0; e < elements; e++) {
                        int at[5], left = e;
                        bool inside = true;
                        for (int i = 0; i < 5; i++) {
                            at[i] = i < rank ? c[i] + left % (int)box[i] : 0;
                            left = i < rank ? left / (int)box[i] : left;
                            inside = inside && at[i] >= 0 && at[i] < size[i];
                        }
                        uint16_t expected = inside ? tensor[at[4]][at[3]][at[2]][at[1]][at[0]] : 0, got;
                        unsigned byte = (unsigned)e * 2;
                        if (swizzle == 1) {  // 32 bytes: the halves of rows change places in lines 1, 3, 5 ... of 128 bytes
                            byte ^= (byte / 128 % 2) * 16;
                        }
                        memcpy(&got, shared + byte, 2);
                        wrong += got != expected;
                    }
                });
                CHECK_I64(wrong, 0);
            }
        }
    }
}

// The places of 16-byte chunks in a tile of 8 rows, as the manual draws them: line by line of 128 bytes, which chunk (of 8 of
// that line) lies at each place.
static const char *const SWIZZLES[4] = {
    "01234567 01234567 01234567 01234567 01234567 01234567 01234567 01234567",  // none
    "01234567 10325476 01234567 10325476 01234567 10325476 01234567 10325476",  // 32 bytes
    "01234567 10325476 23016745 32107654 01234567 10325476 23016745 32107654",  // 64 bytes
    "01234567 10325476 23016745 32107654 45670123 54761032 67452301 76543210",  // 128 bytes
};

static void test_swizzles(void) {
    alignas(128) static uint16_t tensor[64][64];
    for (int i = 0; i < 64 * 64; i++) {
        (&tensor[0][0])[i] = (uint16_t)i;
    }
    for (int swizzle = 1; swizzle <= 3; swizzle++) {
        cuuint32_t width = 8u << swizzle;  // elements of a row of the swizzle's span
        cuuint64_t dimensions[2] = {64, 64}, strides[1] = {128};
        cuuint32_t box[2] = {width, 64};
        CUtensorMap map;
        CHECK(encode(&map, 2, tensor, dimensions, strides, box, (CUtensorMapSwizzle)swizzle) == CUDA_SUCCESS);
        int c[2] = {0, 0}, wrong = 0;
        load_box(map, 2, c, width * 128, 8192, [&](const unsigned char *shared) {
            for (unsigned line = 0; line < width; line++) {
                for (unsigned place = 0; place < 8; place++) {
                    unsigned chunk = line * 8 + (unsigned)(SWIZZLES[swizzle][line % 8 * 9 + place] - '0');
                    unsigned element = chunk * 8;
                    wrong += memcmp(shared + line * 128 + place * 16, &tensor[element / width][element % width], 16) != 0;
                }
            }
        });
        CHECK_I64(wrong, 0);
    }
    for (unsigned row = 0; row < 16; row++) {
        for (unsigned chunk = 0; chunk < 8; chunk++) {
            unsigned at = swizzle_128(row, chunk);
            CHECK(at / 128 == row && SWIZZLES[3][row % 8 * 9 + at / 16 % 8] - '0' == (int)chunk);
        }
    }
}

static void test_stores(void) {
    everyhow([] {
        alignas(128) static float to[20][32];  // 30 columns are the tensor's
        for (int i = 0; i < 20 * 32; i++) {
            to[i / 32][i % 32] = 1000;
        }
        cuuint64_t dimensions[2] = {30, 20}, strides[1] = {128};
        cuuint32_t box[2] = {32, 8};
        CUtensorMap map, plain;
        CHECK(encode(&map, 2, to, dimensions, strides, box, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_DATA_TYPE_FLOAT32) ==
              CUDA_SUCCESS);
        cuuint64_t slabs[3] = {30, 1, 20}, apart[2] = {128, 128};
        cuuint32_t slab[3] = {32, 1, 8};
        CHECK(encode(&plain, 3, to, slabs, apart, slab, CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_DATA_TYPE_FLOAT32) ==
              CUDA_SUCCESS);
        alignas(16) static float sums[64];
        memset(sums, 0, sizeof sums);
        start(dim3(3), dim3(128), 0, [&] {
            struct Tile {
                alignas(1024) float at[8][32];
            };
            SHARED(Tile, tile);
            int row = (int)threadIdx.x / 16, two = (int)threadIdx.x % 16 * 2, first = (int)blockIdx.x * 8;
            auto put = [&](int column, float x) {
                *(float *)((char *)&tile + swizzle_128((uint32_t)row, (uint32_t)column / 4) + column % 4 * 4) = x;
            };
            put(two, (float)(100 * (first + row) + two));
            put(two + 1, (float)(100 * (first + row) + two + 1));
            fence_async();
            __syncthreads();
            if (threadIdx.x == 0) {
                tma_store_2d(&map, shared_address(&tile), 0, first);
                tma_store_commit();
                tma_store_wait_read<0>();
            }
            __syncthreads();
            tile.at[row][two] = 0.5f;
            tile.at[row][two + 1] = 0.25f;
            fence_async();
            __syncthreads();
            if (blockIdx.x == 1 && threadIdx.x < 8) {
                add_float4((float4 *)sums + 8 + threadIdx.x, float4{1, 2, 3, (float)threadIdx.x});
            }
            if (threadIdx.x == 0) {
                tma_store_wait<0>();
                tma_add_3d(&plain, shared_address(&tile), 0, 0, first);
                bulk_add_float(sums, shared_address(&tile), 128);
                tma_store_commit();
                tma_store_wait<0>();
            }
        });
        int wrong = 0;
        for (int row = 0; row < 20; row++) {
            for (int column = 0; column < 32; column++) {
                float expected = column < 30 ? (float)(100 * row + column) + (column % 2 == 0 ? 0.5f : 0.25f) : 1000;
                wrong += to[row][column] != expected;
            }
        }
        for (int i = 0; i < 64; i++) {
            wrong += sums[i] != (i < 32 ? (i % 2 == 0 ? 1.5f : 0.75f) : (float)(i % 4 < 3 ? i % 4 + 1 : i / 4 - 8));
        }
        CHECK_I64(wrong, 0);
    });
}

// ---- mbarriers

static void test_mbarriers(void) {
    everyhow([] {
        alignas(16) static unsigned char from[256];
        for (int i = 0; i < 256; i++) {
            from[i] = (unsigned char)i;
        }
        // Phases end in turn; bytes may come before they are announced; the parity before the first is over.
        int wrong = 0;
        std::string order;
        start(dim3(1), dim3(64), 0, [&] {
            SHARED(uint64_t, barrier);
            struct Bytes {
                alignas(16) unsigned char at[256];
            };
            SHARED(Bytes, to);
            uint32_t b = shared_address(&barrier);
            if (threadIdx.x == 0) {
                mbarrier_init(b, 2);
                fence_mbarrier_init();
            }
            __syncthreads();
            mbarrier_wait(b, 1);
            if (threadIdx.x == 0) {
                bulk_load(shared_address(&to), from, 128, b);
                bulk_load(shared_address(&to.at[128]), from + 128, 128, b);
                mbarrier_expect(b, 256);
                order += "a";
                mbarrier_arrive(b);
                mbarrier_wait(b, 0);
                wrong += to.at[200] != 200;
                order += "b";
                mbarrier_arrive(b);
            } else if (threadIdx.x == 32) {
                mbarrier_wait(b, 0);
                wrong += to.at[100] != 100;
                mbarrier_arrive(b);
                mbarrier_wait(b, 1);
                order += "c";
            }
        });
        CHECK_I64(wrong, 0);
        CHECK_TEXT(order.c_str(), "abc");
    });
}

// The usual ring: a producer warp loads, two consumer warps read and give back.
static void test_pipeline(void) {
    everyhow([] {
        enum { STAGES = 3, STEPS = 20 };
        alignas(128) static uint16_t from[STEPS * 8][64];
        for (int i = 0; i < STEPS * 8 * 64; i++) {
            (&from[0][0])[i] = (uint16_t)(i * 7);
        }
        cuuint64_t dimensions[2] = {64, STEPS * 8}, strides[1] = {128};
        cuuint32_t box[2] = {64, 8};
        CUtensorMap map;
        CHECK(encode(&map, 2, from, dimensions, strides, box, CU_TENSOR_MAP_SWIZZLE_128B) == CUDA_SUCCESS);
        int wrong = 0;
        start(dim3(2), dim3(96), STAGES * 1024, [&] {
            DYNAMIC_SHARED(memory);
            SHARED(uint64_t, barriers, [2 * STAGES]);
            uint32_t full = shared_address(barriers), empty = full + 8 * STAGES;
            if (threadIdx.x == 0) {
                for (uint32_t i = 0; i < STAGES; i++) {
                    mbarrier_init(full + 8 * i, 1);
                    mbarrier_init(empty + 8 * i, 2);
                }
                fence_mbarrier_init();
                tma_prefetch(&map);
            }
            __syncthreads();
            if (threadIdx.x / 32 == 0) {
                for (int step = 0; threadIdx.x == 0 && step < STEPS; step++) {
                    uint32_t stage = (uint32_t)step % STAGES, phase = (uint32_t)step / STAGES % 2;
                    mbarrier_wait(empty + 8 * stage, phase ^ 1);
                    mbarrier_expect(full + 8 * stage, 1024);
                    tma_load_2d(shared_address(memory + 1024 * stage), &map, full + 8 * stage, 0, 8 * step);
                }
                return;
            }
            for (int step = 0; step < STEPS; step++) {
                uint32_t stage = (uint32_t)step % STAGES, phase = (uint32_t)step / STAGES % 2;
                mbarrier_wait(full + 8 * stage, phase);
                for (uint32_t row = 0; row < 8; row++) {
                    uint32_t column = threadIdx.x - 32;
                    uint16_t got;
                    memcpy(&got, memory + 1024 * stage + swizzle_128(row, column / 8) + column % 8 * 2, 2);
                    wrong += got != from[8 * step + (int)row][column];
                }
                __syncwarp();
                if (threadIdx.x % 32 == 0) {
                    mbarrier_arrive(empty + 8 * stage);
                }
            }
        });
        CHECK_I64(wrong, 0);
    });
}

// Two blocks load half of a tile each for both, and give stages back to both.
static void test_clusters(void) {
    everyhow([] {
        enum { STEPS = 6 };
        alignas(128) static uint16_t from[STEPS * 16][64];
        for (int i = 0; i < STEPS * 16 * 64; i++) {
            (&from[0][0])[i] = (uint16_t)(i * 3);
        }
        cuuint64_t dimensions[2] = {64, STEPS * 16}, strides[1] = {128};
        cuuint32_t box[2] = {64, 8};
        CUtensorMap map;
        CHECK(encode(&map, 2, from, dimensions, strides, box, CU_TENSOR_MAP_SWIZZLE_128B) == CUDA_SUCCESS);
        int wrong = 0, ranks[2] = {0, 0};
        start(
            dim3(6), dim3(64), 2048,
            [&] {
                DYNAMIC_SHARED(memory);
                SHARED(uint64_t, barriers, [2]);
                uint32_t full = shared_address(barriers), empty = full + 8, rank = cluster_rank();
                wrong += rank != blockIdx.x % 2;
                if (threadIdx.x == 0) {
                    ranks[rank]++;
                    mbarrier_init(full, 1);
                    mbarrier_init(empty, 2);
                    fence_mbarrier_init();
                }
                cluster_sync();
                for (int step = 0; step < STEPS; step++) {
                    uint32_t phase = (uint32_t)step % 2;
                    if (threadIdx.x == 0) {
                        mbarrier_wait(empty, phase ^ 1);
                        mbarrier_expect(full, 2048);
                        tma_load_2d_multicast(shared_address(memory + 1024 * rank), &map, full, 3, 0,
                                              16 * step + 8 * (int)rank);
                    }
                    mbarrier_wait(full, phase);
                    for (uint32_t row = 0; row < 16; row++) {
                        uint16_t got;
                        memcpy(&got, memory + swizzle_128(row, threadIdx.x / 8) + threadIdx.x % 8 * 2, 2);
                        wrong += got != from[16 * step + (int)row][threadIdx.x];
                    }
                    __syncthreads();
                    if (threadIdx.x < 2) {
                        mbarrier_arrive_remote(empty, threadIdx.x);
                    }
                }
                cluster_sync();
            },
            2);
        CHECK_I64(wrong, 0);
        CHECK(ranks[0] == 3 && ranks[1] == 3);
    });
}

// ---- wgmma

enum Layout { NONE, SPAN_32, SPAN_64, SPAN_128 };

// Writes an operand of `extent` x 16 K elements into shared memory by the rule of its layout, and makes the descriptor of step
// `step` of 16 along K. The layout functions are those of PTX ("Strides", "Canonical Layouts").
struct Operand {
    bool transposed;
    Layout layout;
    int extent, depth;

    int span() const {
        return 16 << layout;
    }
    // The place of an element before the swizzle.
    int place(int i, int k) const {
        int w = span() / 2;                   // elements
        if (!transposed && layout != NONE) {  // atoms of 8 rows x w, first along the extent, then along K
            return (k / w * (extent / 8) + i / 8) * 8 * span() + i % 8 * span() + k % w * 2;
        }
        if (!transposed) {  // 8 x 8, first along the extent
            return (k / 8 * (extent / 8) + i / 8) * 128 + i % 8 * 16 + k % 8 * 2;
        }
        // Rows of w along the extent, 8 of them along K an atom; atoms first along K.
        return (i / w * (depth / 8) + k / 8) * 8 * span() + k % 8 * span() + i % w * 2;
    }
    int bytes() const {
        int w = span() / 2;
        return (transposed ? (extent + w - 1) / w * w * depth : extent * ((depth + w - 1) / w * w)) * 2;
    }
    uint64_t descriptor(uint32_t address, int step) const {
        uint32_t leading = 16, stride = 8 * (uint32_t)span();
        int k = 16 * step;
        if (!transposed && layout == NONE) {
            leading = (uint32_t)extent / 8 * 128;
            stride = 128;
        } else if (transposed && layout == NONE) {  // here the leading dimension is K
            leading = 128;
            stride = (uint32_t)depth / 8 * 128;
        } else if (transposed) {
            leading = (uint32_t)depth * (uint32_t)span();
        }
        static const uint64_t codes[4] = {0, 3, 2, 1};
        uint64_t descriptor = wgmma_descriptor(address + (uint32_t)place(0, k), leading, stride);
        return (descriptor & ~((uint64_t)3 << 62)) | codes[layout] << 62;
    }
    template <typename T> void fill(unsigned char *shared, int seed) const {
        for (int i = 0; i < extent; i++) {
            for (int k = 0; k < depth; k++) {
                int at = place(i, k);
                at ^= (at >> 7 & ((1 << layout) - 1)) << 4;
                T x = from_float<T>(value_at(seed + i, k));
                memcpy(shared + at, &x, 2);
            }
        }
    }
};

// K-major operands of 128 bytes, as everybody uses them: the kernels' own descriptor and advance.
template <int N, typename T, int TRANS_A, int TRANS_B> static void test_wgmma_of(Layout layout, bool a_in_registers) {
    enum { DEPTH = 64 };
    Operand a = {TRANS_A != 0, layout, 64, DEPTH}, b = {TRANS_B != 0, layout, N, DEPTH};
    double worst = 0;
    int wrong = 0;
    size_t a_bytes = (size_t)(a.bytes() + 1023) / 1024 * 1024, b_bytes = (size_t)(b.bytes() + 1023) / 1024 * 1024;
    start(dim3(1), dim3(256), 2 * (a_bytes + b_bytes), [&] {
        DYNAMIC_SHARED(memory);
        int group = (int)threadIdx.x / 128, t = (int)threadIdx.x % 128, warp = t / 32, lane = t % 32;
        unsigned char *mine = memory + (size_t)group * (a_bytes + b_bytes);
        if (t == 0) {
            a.fill<T>(mine, 100 * group);
            b.fill<T>(mine + a_bytes, 1000 + 100 * group);
            fence_async();
        }
        __syncthreads();
        float d[N / 2];
        uint32_t fragments[DEPTH / 16][4];
        for (int step = 0; step < DEPTH / 16; step++) {
            for (int i = 0; i < 8; i += 2) {
                int row, column;
                mma_a_place(lane, i, &row, &column);
                row += 16 * warp + 100 * group;
                column += 16 * step;
                fragments[step][i / 2] = pack_two<T>(value_at(row, column), value_at(row, column + 1));
            }
        }
        wgmma_fence();
        for (int step = 0; step < DEPTH / 16; step++) {
            uint64_t of_a = a.descriptor(shared_address(mine), step), of_b = b.descriptor(shared_address(mine + a_bytes), step);
            if (a_in_registers) {
                wgmma_registers<N, T, TRANS_B>(d, fragments[step], of_b, step > 0);
            } else {
                wgmma_shared<N, T, TRANS_A, TRANS_B>(d, of_a, of_b, step > 0);
            }
        }
        wgmma_commit();
        wgmma_wait<0>();
        registers_fence(d);
        for (int i = 0; i < N / 2; i++) {
            // "Register Fragments" of D: row and column of di.
            int row = 16 * warp + lane / 4 + (i / 2 % 2) * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
            double sum = 0;
            for (int k = 0; k < DEPTH; k++) {
                sum += (double)value_at(100 * group + row, k) * value_at(1000 + 100 * group + column, k);
            }
            worst = fmax(worst, fabs(d[i] - sum));
            wrong += !(d[i] == sum);  // small multiples of 1/64: exact
        }
    });
    CHECK_I64(wrong, 0);
    CHECK_NEAR(worst, 0, 0);
}

template <int N, typename T> static void test_wgmma_forms(Layout layout) {
    test_wgmma_of<N, T, 0, 0>(layout, false);
    test_wgmma_of<N, T, 1, 0>(layout, false);
    test_wgmma_of<N, T, 0, 1>(layout, false);
    test_wgmma_of<N, T, 1, 1>(layout, false);
    test_wgmma_of<N, T, 0, 0>(layout, true);
    test_wgmma_of<N, T, 0, 1>(layout, true);
}

static void test_wgmma(void) {
    for (Layout layout : {NONE, SPAN_32, SPAN_64, SPAN_128}) {
        test_wgmma_forms<64, bf16>(layout);
    }
    test_wgmma_forms<64, fp16>(SPAN_128);
    test_wgmma_forms<128, fp16>(SPAN_128);
    test_wgmma_forms<192, bf16>(SPAN_128);
    test_wgmma_forms<256, bf16>(SPAN_128);
    everyhow([] {
        test_wgmma_of<32, bf16, 0, 0>(SPAN_128, false);
        test_wgmma_of<96, bf16, 0, 0>(SPAN_128, false);
        test_wgmma_of<80, fp16, 0, 0>(SPAN_128, true);
        test_wgmma_of<160, bf16, 0, 0>(SPAN_128, false);
        test_wgmma_of<128, bf16, 1, 1>(SPAN_128, false);
    });
}

// Two accumulators in flight, added to over many groups with one group left unfinished.
static void test_wgmma_groups(void) {
    everyhow([] {
        Operand a = {false, SPAN_128, 64, 64}, b = {false, SPAN_128, 64, 64};
        int wrong = 0;
        start(dim3(1), dim3(128), 16384, [&] {
            DYNAMIC_SHARED(memory);
            if (threadIdx.x == 0) {
                a.fill<bf16>(memory, 0);
                b.fill<bf16>(memory + 8192, 500);
                fence_async();
            }
            __syncthreads();
            float x[32], y[32];
            for (int i = 0; i < 32; i++) {
                x[i] = 1;
                y[i] = 2;
            }
            for (int round = 0; round < 5; round++) {
                wgmma_fence();
                for (int step = 0; step < 4; step++) {
                    uint64_t of_a = a.descriptor(shared_address(memory), step);
                    uint64_t of_b = b.descriptor(shared_address(memory + 8192), step);
                    wgmma_shared<64, bf16, 0, 0>(x, of_a, of_b, true);
                    if (round % 2 == 0) {
                        wgmma_shared<64, bf16, 0, 0>(y, of_a, of_b, true);
                    }
                }
                wgmma_commit();
                wgmma_wait<1>();
            }
            wgmma_wait<0>();
            for (int i = 0; i < 32; i++) {
                int row = (int)threadIdx.x / 32 * 16 + (int)threadIdx.x % 32 / 4 + i / 2 % 2 * 8;
                int column = i / 4 * 8 + (int)threadIdx.x % 4 * 2 + i % 2;
                double sum = 0;
                for (int k = 0; k < 64; k++) {
                    sum += (double)value_at(row, k) * value_at(500 + column, k);
                }
                wrong += x[i] != 1 + 5 * sum || y[i] != 2 + 3 * sum;
            }
        });
        CHECK_I64(wrong, 0);
    });
}

// ---- Mistakes

// Runs `body` in a child; true if it was ended by a signal, or exited with other than 0. What it said is in `text`.
static bool dies(const Body &body, std::string *text) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        body();
        _exit(0);
    }
    close(ends[1]);
    char part[4096];
    text->clear();
    for (ssize_t n; (n = read(ends[0], part, sizeof part)) > 0;) {
        text->append(part, (size_t)n);
    }
    close(ends[0]);
    int status;
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) || WEXITSTATUS(status) != 0;
}

// The kernel must end the process with a message that has `part` in it.
static void check_dies(int line, const char *part, const Body &body) {
    std::string text;
    bool died = dies(body, &text);
    if (!check_true(__FILE__, line, died && text.find(part) != std::string::npos, part)) {
        fprintf(stderr, "it said: %s\n", text.c_str());
    }
}
#define CHECK_DIES(part, ...) check_dies(__LINE__, part, __VA_ARGS__)

// `body` counts what is wrong: with the mistake in some seed and timing, without it never.
static void check_shows(int line, const std::function<int(bool mistake)> &body) {
    bool shows = false;
    int wrong = 0;
    for (Timing timing : {Timing::LATE, Timing::EARLY, Timing::RANDOM}) {
        for (uint64_t seed = 0; seed < SEEDS; seed++) {
            set(seed, timing);
            shows = shows || body(true) != 0;
            wrong += body(false);
        }
    }
    set(0, Timing::LATE);
    check_true(__FILE__, line, shows, "the mistake shows");
    check_i64(__FILE__, line, "wrong without the mistake", wrong, 0);
}
#define CHECK_SHOWS(...) check_shows(__LINE__, __VA_ARGS__)

static void test_missing_barriers(void) {
    // Between writing and reading.
    CHECK_SHOWS([](bool mistake) {
        int wrong = 0;
        start(dim3(1), dim3(64), 0, [&] {
            SHARED(int, x, [64]);
            x[threadIdx.x] = (int)threadIdx.x;
            if (!mistake) {
                __syncthreads();
            }
            wrong += x[63 - threadIdx.x] != 63 - (int)threadIdx.x;
        });
        return wrong;
    });
    // Between reading and writing anew.
    CHECK_SHOWS([](bool mistake) {
        int wrong = 0;
        start(dim3(1), dim3(64), 0, [&] {
            SHARED(int, x, [64]);
            for (int i = 0; i < 3; i++) {
                x[threadIdx.x] = i;
                __syncthreads();
                wrong += x[63 - threadIdx.x] != i;
                if (!mistake) {
                    __syncthreads();
                }
            }
        });
        return wrong;
    });
    // Between blocks: each adds in the order of its ticket, step after step, and the sum depends on the order.
    CHECK_SHOWS([](bool mistake) {
        int ticket = 0, turns[6] = {};
        unsigned sums[6] = {}, expected = 0;
        start(dim3(3), dim3(32), 0, [&] {
            int mine = __shfl_sync(0xFFFFFFFFu, threadIdx.x == 0 ? atomicAdd(&ticket, 1) : 0, 0);
            for (int i = 0; i < 6; i++) {
                if (threadIdx.x == 0) {
                    while (!mistake && load_acquire(&turns[i]) != mine) {
                        nap();
                    }
                    sums[i] = sums[i] * 10 + (unsigned)mine + 1;
                    add_release(&turns[i], 1);
                }
                __syncwarp();
            }
        });
        int wrong = 0;
        for (int i = 0; i < 3; i++) {
            expected = expected * 10 + (unsigned)i + 1;
        }
        for (unsigned sum : sums) {
            wrong += sum != expected;
        }
        return wrong;
    });
    // Within a warp.
    CHECK_SHOWS([](bool mistake) {
        int wrong = 0;
        start(dim3(1), dim3(32), 0, [&] {
            SHARED(int, x, [32]);
            x[threadIdx.x] = 1;
            if (!mistake) {
                __syncwarp();
            }
            wrong += x[(threadIdx.x + 1) % 32] != 1;
        });
        return wrong;
    });
    // Memory that nobody wrote.
    CHECK_SHOWS([](bool mistake) {
        int wrong = 0;
        start(dim3(1), dim3(32), 256, [&] {
            DYNAMIC_SHARED(memory);
            float *x = (float *)memory;
            if (!mistake) {
                x[threadIdx.x] = 0;
                __syncthreads();
            }
            wrong += !(x[0] == 0);
        });
        return wrong;
    });
}

static void test_missing_waits(void) {
    alignas(128) static uint16_t from[64][64];
    for (int i = 0; i < 64 * 64; i++) {
        (&from[0][0])[i] = (uint16_t)(i + 1);
    }
    CHECK_SHOWS([](bool mistake) {  // cp.async
        int wrong = 0;
        start(dim3(1), dim3(32), 512, [&] {
            DYNAMIC_SHARED(memory);
            copy_async_16(shared_address(memory + 16 * threadIdx.x), from[threadIdx.x], true);
            copy_async_commit();
            if (!mistake) {
                copy_async_wait<0>();
            }
            __syncthreads();
            wrong += *(uint16_t *)(memory + 16 * (31 - threadIdx.x)) != from[31 - threadIdx.x][0];
        });
        return wrong;
    });
    CHECK_SHOWS([](bool mistake) {  // a copy into what is still read
        int wrong = 0;
        start(dim3(1), dim3(64), 1024, [&] {
            DYNAMIC_SHARED(memory);
            for (int i = 0; i < 4; i++) {
                copy_async_16(shared_address(memory + 16 * threadIdx.x), &from[threadIdx.x][8 * i], true);
                copy_async_commit();
                copy_async_wait<0>();
                __syncthreads();
                wrong += *(uint16_t *)(memory + 16 * (63 - threadIdx.x)) != from[63 - threadIdx.x][8 * i];
                if (!mistake) {
                    __syncthreads();
                }
            }
        });
        return wrong;
    });
    cuuint64_t dimensions[2] = {64, 64}, strides[1] = {128};
    cuuint32_t box[2] = {64, 8};
    static CUtensorMap map;
    CHECK(encode(&map, 2, from, dimensions, strides, box, CU_TENSOR_MAP_SWIZZLE_128B) == CUDA_SUCCESS);
    CHECK_SHOWS([](bool mistake) {  // TMA: read before the barrier's phase is over
        int wrong = 0;
        start(dim3(1), dim3(32), 1024, [&] {
            DYNAMIC_SHARED(memory);
            SHARED(uint64_t, barrier);
            uint32_t full = shared_address(&barrier);
            if (threadIdx.x == 0) {
                mbarrier_init(full, 1);
                fence_mbarrier_init();
                mbarrier_expect(full, 1024);
                tma_load_2d(shared_address(memory), &map, full, 0, 0);
            }
            __syncthreads();
            mbarrier_wait(full, mistake ? 1 : 0);
            wrong += *(uint16_t *)memory != from[0][0];
            mbarrier_wait(full, 0);
        });
        return wrong;
    });
    CHECK_SHOWS([](bool mistake) {  // a store of TMA whose memory is written too soon
        alignas(128) static uint16_t to[8][64];
        memset(to, 0, sizeof to);
        cuuint64_t dimensions_to[2] = {64, 8}, strides_to[1] = {128};
        cuuint32_t box_to[2] = {64, 8};
        CUtensorMap map_to;
        encode(&map_to, 2, to, dimensions_to, strides_to, box_to);
        start(dim3(1), dim3(64), 1024, [&] {
            DYNAMIC_SHARED(memory);
            uint16_t *x = (uint16_t *)memory;
            for (int i = 0; i < 8; i++) {
                x[64 * i + (int)threadIdx.x] = 9;
            }
            fence_async();
            __syncthreads();
            if (threadIdx.x == 0) {
                tma_store_2d(&map_to, shared_address(memory), 0, 0);
                tma_store_commit();
                if (!mistake) {
                    tma_store_wait_read<0>();
                }
            }
            __syncthreads();
            x[threadIdx.x] = 1;
            tma_store_wait_read<0>();
        });
        int wrong = 0;
        for (int i = 0; i < 64; i++) {
            wrong += to[0][i] != 9;
        }
        return wrong;
    });
    CHECK_SHOWS([](bool mistake) {  // the wrong swizzle
        int wrong = 0;
        start(dim3(1), dim3(32), 1024, [&] {
            DYNAMIC_SHARED(memory);
            SHARED(uint64_t, barrier);
            uint32_t full = shared_address(&barrier);
            if (threadIdx.x == 0) {
                mbarrier_init(full, 1);
                fence_mbarrier_init();
                mbarrier_expect(full, 1024);
                tma_load_2d(shared_address(memory), &map, full, 0, 0);
            }
            __syncthreads();
            mbarrier_wait(full, 0);
            uint32_t row = threadIdx.x / 4, chunk = threadIdx.x % 4;
            uint32_t at = mistake ? row * 128 + ((chunk ^ (row & 3)) << 4) : swizzle_128(row, chunk);
            wrong += *(uint16_t *)(memory + at) != from[row][8 * chunk];
        });
        return wrong;
    });
}

// A product of two tiles, with one mistake or none; how many sums are wrong.
enum WgmmaMistake { FINE, NO_WAIT_BEFORE_READING, MEMORY_WRITTEN_BEFORE_WAIT, WRONG_ADVANCE, WRONG_MAJOR, NO_FENCE, NO_WAIT };
static int wgmma_with(WgmmaMistake mistake) {
    Operand a = {false, SPAN_128, 64, 64}, b = {false, SPAN_128, 64, 64};
    int wrong = 0;
    start(dim3(1), dim3(128), 16384, [&] {
        DYNAMIC_SHARED(memory);
        if (threadIdx.x == 0) {
            a.fill<bf16>(memory, 0);
            b.fill<bf16>(memory + 8192, 500);
            fence_async();
        }
        __syncthreads();
        float d[32] = {}, early[32];
        if (mistake != NO_FENCE) {
            wgmma_fence();
        }
        for (int step = 0; step < 4; step++) {
            uint64_t of_a = a.descriptor(shared_address(memory), step),
                     of_b = b.descriptor(shared_address(memory + 8192), step);
            if (mistake == WRONG_ADVANCE) {
                of_b += (uint64_t)step * 2;
            }
            if (mistake == WRONG_MAJOR) {
                wgmma_shared<64, bf16, 0, 1>(d, of_a, of_b, true);
            } else {
                wgmma_shared<64, bf16, 0, 0>(d, of_a, of_b, true);
            }
        }
        wgmma_commit();
        if (mistake == MEMORY_WRITTEN_BEFORE_WAIT) {
            __syncthreads();
            memset(memory + 64 * threadIdx.x, 0, 64);
        }
        memcpy(early, d, sizeof d);
        if (mistake != NO_WAIT) {
            wgmma_wait<0>();
        }
        for (int i = 0; i < 32; i++) {
            int row = (int)threadIdx.x / 32 * 16 + (int)threadIdx.x % 32 / 4 + i / 2 % 2 * 8;
            int column = i / 4 * 8 + (int)threadIdx.x % 4 * 2 + i % 2;
            double sum = 0;
            for (int k = 0; k < 64; k++) {
                sum += (double)value_at(row, k) * value_at(500 + column, k);
            }
            wrong += !((mistake == NO_WAIT_BEFORE_READING ? early[i] : d[i]) == sum);
        }
    });
    return wrong;
}

static void test_wgmma_mistakes(void) {
    for (WgmmaMistake which : {NO_WAIT_BEFORE_READING, MEMORY_WRITTEN_BEFORE_WAIT, WRONG_ADVANCE, WRONG_MAJOR}) {
        if (which == WRONG_ADVANCE) {  // runs out of the tile at the last step
            CHECK_DIES("an operand of wgmma at shared memory", [=] { wgmma_with(which); });
        } else {
            CHECK_SHOWS([=](bool mistake) { return wgmma_with(mistake ? which : FINE); });
        }
    }
    CHECK_DIES("wgmma without wgmma_fence", [] { wgmma_with(NO_FENCE); });
    CHECK_DIES("no wgmma_wait", [] { wgmma_with(NO_WAIT); });
    CHECK_DIES("warpgroup of less than 128 threads", [] {
        start(dim3(1), dim3(96), 1024, [] {
            DYNAMIC_SHARED(memory);
            float d[4];
            wgmma_fence();
            simulator::wgmma({8, simulator::Half::BF16, false, false, false}, d, NULL,
                             wgmma_descriptor(shared_address(memory), 16, 1024),
                             wgmma_descriptor(shared_address(memory), 16, 1024), false);
            wgmma_commit();
            wgmma_wait<0>();
        });
    });
    CHECK_DIES("wgmma is of sm_90a alone", [] {
        simulator::settings().architecture = 80;
        start(dim3(1), dim3(128), 0, [] {
            float d[16];
            wgmma_shared<32, bf16, 0, 0>(d, 0, 0, false);
        });
    });
}

static const int DIVERGED = __LINE__;
static void diverged(void) {
    if (threadIdx.x < 16) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

static void arrive_at_neighbour(void) {
    SHARED(uint64_t, barrier);
    if (threadIdx.x == 0) {
        mbarrier_init(shared_address(&barrier), 1);
    }
    cluster_sync();
    if (threadIdx.x == 0) {
        mbarrier_arrive_remote(shared_address(&barrier), 1 - cluster_rank());
    }
}

static void test_faults(void) {
    CHECK_DIES("diverged __syncthreads", [] { start(dim3(1), dim3(32), 0, diverged); });
    static const std::string lines[] = {"test_simulated_engine.cpp:" + std::to_string(DIVERGED + 3),
                                        "test_simulated_engine.cpp:" + std::to_string(DIVERGED + 5)};
    CHECK_DIES(lines[0].c_str(), [] { start(dim3(1), dim3(32), 0, diverged); });
    CHECK_DIES(lines[1].c_str(), [] { start(dim3(1), dim3(32), 0, diverged); });
    CHECK_DIES("deadlock", [] {  // part of a warp at a barrier, the rest in a shuffle
        start(dim3(1), dim3(64), 0, [] {
            if (threadIdx.x < 8) {
                __syncthreads();
            } else {
                __shfl_sync(0xFFFFFFFF, 1, 0);
            }
        });
    });
    CHECK_DIES("threads 8 to 31: each waits in __shfl_sync with lanes ffffffff", [] {
        start(dim3(1), dim3(32), 0, [] {
            if (threadIdx.x < 8) {
                __syncthreads();
            } else {
                __shfl_sync(0xFFFFFFFF, 1, 0);
            }
        });
    });
    CHECK_DIES("diverged warp: ", [] {
        start(dim3(1), dim3(32), 0, [] {
            if (threadIdx.x % 2 == 0) {
                __shfl_sync(0xFFFFFFFF, 1, 0);
            } else {
                __ballot_sync(0xFFFFFFFF, 1);
            }
        });
    });
    CHECK_DIES("of which the caller is none", [] { start(dim3(1), dim3(32), 0, [] { __syncwarp(0xFFFF); }); });
    CHECK_DIES("for 32 threads at a barrier where others came by barrier_sync for 64",
               [] { start(dim3(1), dim3(64), 0, [] { barrier_sync(3, threadIdx.x < 32 ? 64 : 32); }); });
    CHECK_DIES("waits in barrier_sync, barrier 1, where 32 of 64 threads are", [] {
        start(dim3(1), dim3(64), 0, [] {
            if (threadIdx.x < 32) {
                barrier_sync(1, 64);
            }
        });
    });
    CHECK_DIES("waits for the mbarrier at", [] {
        start(dim3(1), dim3(32), 0, [] {
            SHARED(uint64_t, barrier);
            if (threadIdx.x == 0) {
                mbarrier_init(shared_address(&barrier), 2);
                mbarrier_arrive(shared_address(&barrier));
            }
            __syncthreads();
            mbarrier_wait(shared_address(&barrier), 0);
        });
    });
    CHECK_DIES("not initialised, or was written over", [] {
        start(dim3(1), dim3(32), 0, [] {
            SHARED(uint64_t, barrier);
            mbarrier_wait(shared_address(&barrier), 0);
        });
    });
    CHECK_DIES("one arrival more than the 1 of a phase", [] {
        start(dim3(1), dim3(1), 0, [] {
            SHARED(uint64_t, barrier);
            mbarrier_init(shared_address(&barrier), 1);
            mbarrier_expect(shared_address(&barrier), 64);
            mbarrier_arrive(shared_address(&barrier));
        });
    });
    CHECK_DIES("nothing happens", [] {
        int word = 0;
        start(dim3(1), dim3(1), 0, [&] {
            while (load_acquire(&word) == 0) {
                nap();
            }
        });
    });
    CHECK_DIES("not aligned to 16 bytes", [] {
        start(dim3(1), dim3(32), 1024, [] {
            DYNAMIC_SHARED(memory);
            uint32_t r[4];
            ldmatrix_x4(r, shared_address(memory) + 8 * threadIdx.x);
        });
    });
    CHECK_DIES("not within what the block asked for", [] {
        start(dim3(1), dim3(32), 512, [] {
            DYNAMIC_SHARED(memory);
            uint32_t r[4];
            ldmatrix_x4(r, shared_address(memory) + 16 + 16 * threadIdx.x);
        });
    });
    CHECK_DIES("bytes of shared memory: a block has at most", [] {
        start(dim3(1), dim3(32), 227 * 1024, [] {
            SHARED(int, one);
            one = 1;
        });
    });
#ifdef __SANITIZE_ADDRESS__
    const char *past = "use-after-poison";
#else
    const char *past = "wrote past the end of shared memory: table, offset 128 of 128 bytes";
#endif
    CHECK_DIES(past, [] {
        start(dim3(1), dim3(33), 0, [] {
            SHARED(int, table, [32]);
            int *behind = table;
            asm("" : "+r"(behind));
            behind[threadIdx.x] = 1;
        });
    });
    CHECK_DIES("no thread of the block called fence_async", [] {
        start(dim3(1), dim3(32), 1024, [] {
            DYNAMIC_SHARED(memory);
            static float to[4];
            bulk_add_float(to, shared_address(memory), 16);
        });
    });
    CHECK_DIES("a store of TMA still reads", [] {
        for (uint64_t seed = 0; seed < SEEDS; seed++) {
            set(seed, Timing::LATE);
            start(dim3(1), dim3(32), 1024, [] {
                DYNAMIC_SHARED(memory);
                alignas(16) static float to[4];
                memory[threadIdx.x] = 0;
                fence_async();
                __syncwarp();
                if (threadIdx.x == 0) {
                    bulk_add_float(to, shared_address(memory), 16);
                    tma_store_commit();
                }
            });
        }
    });
    CHECK_DIES("no CUtensorMap", [] {
        start(dim3(1), dim3(1), 1024, [] {
            DYNAMIC_SHARED(memory);
            SHARED(uint64_t, barrier);
            CUtensorMap map = {};
            tma_load_2d(shared_address(memory), &map, shared_address(&barrier), 0, 0);
        });
    });
    CHECK_DIES("which has ended", [] {  // an arrival at a block that is gone: no cluster_sync at the end
        for (uint64_t seed = 0; seed < SEEDS; seed++) {
            set(seed, Timing::LATE);
            start(dim3(2), dim3(32), 0, arrive_at_neighbour, 2);
        }
    });
    CHECK_DIES("before sm_90", [] {
        simulator::settings().architecture = 89;
        start(dim3(1), dim3(1), 0, [] {
            SHARED(uint64_t, barrier);
            mbarrier_init(shared_address(&barrier), 1);
        });
    });
    CHECK_DIES("registers_grow for registers", [] {
        start(dim3(1), dim3(384), 0, [] {
            if (threadIdx.x < 128) {
                registers_shrink<56>();
            } else {
                registers_grow<240>();
            }
        });
    });
    CHECK_DIES("registers_shrink or registers_grow by some warps only", [] {
        start(dim3(1), dim3(128), 0, [] {
            if (threadIdx.x < 32) {
                registers_shrink<24>();
            }
        });
    });
    CHECK_DIES("kernel test, block (1, 0, 0), thread (2, 0, 0): __trap", [] {
        start(dim3(2), dim3(4), 0, [] {
            if (blockIdx.x == 1 && threadIdx.x == 2) {
                __trap();
            }
        });
    });
}

}  // namespace BACKEND

using namespace BACKEND;

int main(void) {
    RUN(test_every_thread_runs_once);
    RUN(test_warps);
    RUN(test_blocks);
    RUN(test_atomics);
    RUN(test_named_barriers);
    RUN(test_blocks_in_order);
    RUN(test_registers);
    RUN(test_conversions);
    RUN(test_bits);
    RUN(test_mma);
    RUN(test_ldmatrix);
    RUN(test_copy_async);
    RUN(test_encoding);
    RUN(test_boxes);
    RUN(test_swizzles);
    RUN(test_stores);
    RUN(test_mbarriers);
    RUN(test_pipeline);
    RUN(test_clusters);
    RUN(test_wgmma);
    RUN(test_wgmma_groups);
    RUN(test_missing_barriers);
    RUN(test_missing_waits);
    RUN(test_wgmma_mistakes);
    RUN(test_faults);
    return check_report();
}
