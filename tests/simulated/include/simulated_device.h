// The device half of <cuda_runtime.h> for the simulated GPU: what kernels call of CUDA C. The work is done in ../engine*.cpp.
#pragma once

#include <simulated_math.h>
#include <simulated_types.h>

namespace simulator {

// The line of the kernel, for messages: std::source_location, which clang 14 does not have.
class Where {
    const char *file = "";
    unsigned at = 0;

  public:
    static constexpr Where current(const char *file = __builtin_FILE(), unsigned line = __builtin_LINE()) {
        Where where;
        where.file = file;
        where.at = line;
        return where;
    }
    constexpr const char *file_name() const {
        return file;
    }
    constexpr unsigned line() const {
        return at;
    }
};

// Shared memory: a SHARED has one slot, which is each block's own memory in turn.
struct SharedSlot {
    int number;  // 0: not met yet
};
void *shared_memory(SharedSlot &slot, size_t bytes, size_t alignment, const char *name);
unsigned char *dynamic_shared();
uint32_t shared_address(const void *pointer);

template <typename T> T &shared(SharedSlot &slot, const char *name) {
    return *(T *)shared_memory(slot, sizeof(T), alignof(T), name);
}

// Operations of a warp: the last lane of the mask that arrives does them for all.
enum class Shuffle : uint8_t { INDEX, UP, DOWN, XOR };
enum class Reduce : uint8_t { ADD, MINIMUM, MAXIMUM, AND, OR, XOR };
void warp_sync(unsigned mask, const Where &where);
uint64_t warp_shuffle(Shuffle kind, unsigned mask, uint64_t value, int by, int width, const Where &where);
unsigned warp_ballot(unsigned mask, bool yes, const Where &where);
unsigned warp_match(unsigned mask, uint64_t value, const Where &where);
unsigned warp_reduce(Reduce kind, bool is_signed, unsigned mask, unsigned value, const Where &where);
unsigned warp_alive();

// __syncthreads; of all threads' votes: how many said yes.
int block_sync(const char *name, bool yes, const Where &where);

void thread_nap();
void thread_poll();  // a look at what another block may write: a nap now and then
[[noreturn]] void fault(const char *format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace simulator

// Where the running thread stands; the engine sets them when it changes threads.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

// What kernels/cuda/card.h says of these.
#define SHARED(type, name, ...)                                                                                                \
    static ::simulator::SharedSlot name##_slot;                                                                                \
    auto &name = ::simulator::shared<type __VA_ARGS__>(name##_slot, #name)
#define DYNAMIC_SHARED(name) unsigned char *name = ::simulator::dynamic_shared()

// ---- Barriers and order. There is one thread at a time: what it wrote is seen by all that run after it.

inline void __syncthreads(const simulator::Where &where = simulator::Where::current()) {
    simulator::block_sync("__syncthreads", false, where);
}
inline int __syncthreads_count(int yes, const simulator::Where &where = simulator::Where::current()) {
    return simulator::block_sync("__syncthreads_count", yes != 0, where);
}
inline int __syncthreads_or(int yes, const simulator::Where &where = simulator::Where::current()) {
    return simulator::block_sync("__syncthreads_or", yes != 0, where) > 0;
}
inline int __syncthreads_and(int yes, const simulator::Where &where = simulator::Where::current()) {
    return simulator::block_sync("__syncthreads_and", yes == 0, where) == 0;
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFF, const simulator::Where &where = simulator::Where::current()) {
    simulator::warp_sync(mask, where);
}
inline void __threadfence() {
    __asm__ volatile("" ::: "memory");
}
inline void __threadfence_block() {
    __asm__ volatile("" ::: "memory");
}
inline void __threadfence_system() {
    __asm__ volatile("" ::: "memory");
}
inline void __nanosleep(unsigned) {
    simulator::thread_nap();
}
[[noreturn]] inline void __trap() {
    simulator::fault("__trap");
}
inline size_t __cvta_generic_to_shared(const void *pointer) {
    return simulator::shared_address(pointer);
}

// ---- A warp together

namespace simulator {
template <typename T> inline T shuffle(Shuffle kind, unsigned mask, T value, int by, int width, const Where &where) {
    static_assert(sizeof(T) <= 8);
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = warp_shuffle(kind, mask, bits, by, width, where);
    memcpy(&value, &bits, sizeof value);
    return value;
}
}  // namespace simulator

template <typename T>
inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32,
                     const simulator::Where &where = simulator::Where::current()) {
    return simulator::shuffle(simulator::Shuffle::INDEX, mask, value, lane, width, where);
}
template <typename T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32,
                        const simulator::Where &where = simulator::Where::current()) {
    return simulator::shuffle(simulator::Shuffle::UP, mask, value, (int)by, width, where);
}
template <typename T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32,
                          const simulator::Where &where = simulator::Where::current()) {
    return simulator::shuffle(simulator::Shuffle::DOWN, mask, value, (int)by, width, where);
}
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int by, int width = 32,
                         const simulator::Where &where = simulator::Where::current()) {
    return simulator::shuffle(simulator::Shuffle::XOR, mask, value, by, width, where);
}
inline unsigned __ballot_sync(unsigned mask, int yes, const simulator::Where &where = simulator::Where::current()) {
    return simulator::warp_ballot(mask, yes != 0, where);
}
inline int __any_sync(unsigned mask, int yes, const simulator::Where &where = simulator::Where::current()) {
    return simulator::warp_ballot(mask, yes != 0, where) != 0;
}
inline int __all_sync(unsigned mask, int yes, const simulator::Where &where = simulator::Where::current()) {
    return simulator::warp_ballot(mask, yes == 0, where) == 0;
}
template <typename T>
inline unsigned __match_any_sync(unsigned mask, T value, const simulator::Where &where = simulator::Where::current()) {
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    return simulator::warp_match(mask, bits, where);
}
inline unsigned __activemask() {
    return simulator::warp_alive();
}

#define SIMULATED_REDUCE(name, kind, type, is_signed)                                                                          \
    inline type name(unsigned mask, type value, const simulator::Where &where = simulator::Where::current()) {                 \
        return (type)simulator::warp_reduce(simulator::Reduce::kind, is_signed, mask, (unsigned)value, where);                 \
    }
SIMULATED_REDUCE(__reduce_add_sync, ADD, unsigned, false)
SIMULATED_REDUCE(__reduce_add_sync, ADD, int, true)
SIMULATED_REDUCE(__reduce_min_sync, MINIMUM, unsigned, false)
SIMULATED_REDUCE(__reduce_min_sync, MINIMUM, int, true)
SIMULATED_REDUCE(__reduce_max_sync, MAXIMUM, unsigned, false)
SIMULATED_REDUCE(__reduce_max_sync, MAXIMUM, int, true)
SIMULATED_REDUCE(__reduce_and_sync, AND, unsigned, false)
SIMULATED_REDUCE(__reduce_or_sync, OR, unsigned, false)
SIMULATED_REDUCE(__reduce_xor_sync, XOR, unsigned, false)
#undef SIMULATED_REDUCE

// ---- Atomics. Those on floating-point numbers are not deterministic on a card: they are not to be used.

#define SIMULATED_ATOMIC(name, type, result)                                                                                   \
    inline type name(type *word, type value) {                                                                                 \
        type old = *word;                                                                                                      \
        *word = result;                                                                                                        \
        return old;                                                                                                            \
    }
#define SIMULATED_ATOMICS(type)                                                                                                \
    SIMULATED_ATOMIC(atomicAdd, type, (type)(old + value))                                                                     \
    SIMULATED_ATOMIC(atomicExch, type, value)                                                                                  \
    SIMULATED_ATOMIC(atomicMin, type, value < old ? value : old)                                                               \
    SIMULATED_ATOMIC(atomicMax, type, value > old ? value : old)                                                               \
    SIMULATED_ATOMIC(atomicAnd, type, old &value)                                                                              \
    SIMULATED_ATOMIC(atomicOr, type, old | value)                                                                              \
    SIMULATED_ATOMIC(atomicXor, type, old ^ value)                                                                             \
    inline type atomicCAS(type *word, type expected, type value) {                                                             \
        type old = *word;                                                                                                      \
        *word = old == expected ? value : old;                                                                                 \
        return old;                                                                                                            \
    }
SIMULATED_ATOMICS(int)
SIMULATED_ATOMICS(unsigned)
SIMULATED_ATOMICS(unsigned long long)
#undef SIMULATED_ATOMICS
SIMULATED_ATOMIC(atomicSub, int, (int)((unsigned)old - (unsigned)value))
SIMULATED_ATOMIC(atomicSub, unsigned, old - value)
SIMULATED_ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)
SIMULATED_ATOMIC(atomicDec, unsigned, old == 0 || old > value ? value : old - 1)
SIMULATED_ATOMIC(atomicExch, float, value)
#undef SIMULATED_ATOMIC
float atomicAdd(float *word, float value) = delete;
double atomicAdd(double *word, double value) = delete;

// ---- Loads and stores with a hint for the caches: addresses must be multiples of the size, as everywhere.

#define SIMULATED_LOAD(name)                                                                                                   \
    template <typename T> inline T name(const T *from) {                                                                       \
        return *from;                                                                                                          \
    }
#define SIMULATED_STORE(name)                                                                                                  \
    template <typename T> inline void name(T *to, T value) {                                                                   \
        *to = value;                                                                                                           \
    }
SIMULATED_LOAD(__ldg)
SIMULATED_LOAD(__ldcg)
SIMULATED_LOAD(__ldca)
SIMULATED_LOAD(__ldcs)
SIMULATED_LOAD(__ldlu)
SIMULATED_LOAD(__ldcv)
SIMULATED_STORE(__stwb)
SIMULATED_STORE(__stcg)
SIMULATED_STORE(__stcs)
SIMULATED_STORE(__stwt)
#undef SIMULATED_LOAD
#undef SIMULATED_STORE
