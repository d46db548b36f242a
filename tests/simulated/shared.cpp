// Shared memory of blocks: 256 KiB of addresses each, of which a block may use what it asked for.
//
//   0            1024                                                              shared_top
//   | reserved   | dynamic | gap | a SHARED | gap | a SHARED | gap ...             | nothing
//
// As on a card the first KiB is the system's. Gaps hold poison, which is looked at when the block ends; under AddressSanitizer
// they and all beyond must not be touched. A 32-bit address has the block's rank in its cluster above bit 24.
#include "tests/simulated/machine.h"

#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define FORBID(memory, bytes) __asan_poison_memory_region(memory, bytes)
#define PERMIT(memory, bytes) __asan_unpoison_memory_region(memory, bytes)
#else
#define FORBID(memory, bytes) (void)(memory)
#define PERMIT(memory, bytes) (void)(memory)
#endif

namespace simulator {

static const unsigned SPACE = 256 * 1024, RESERVED = 1024, GAP = 64;
static const size_t STATIC_MOST = 48 * 1024;
static int slots;

static unsigned char *allocate(Block *block, size_t bytes, size_t alignment, const char *name) {
    block->shared_bytes += bytes;
    if (block->shared_bytes > shared_limit()) {
        fault("%zu bytes of shared memory: a block has at most %zu", block->shared_bytes, shared_limit());
    }
    unsigned begin = (unsigned)((block->shared_top + alignment - 1) / alignment * alignment);
    unsigned end = begin + (unsigned)bytes;
    unsigned top = (end + GAP + GAP - 1) / GAP * GAP;
    if (top > SPACE) {
        fault("too many pieces of shared memory");
    }
    PERMIT(block->shared + block->shared_top, top - block->shared_top);
    poison(block->shared + block->shared_top, top - block->shared_top);
    FORBID(block->shared + block->shared_top, begin - block->shared_top);
    FORBID(block->shared + end, top - end);
    block->shared_top = top;
    block->allocations.push_back({begin, end, name});
    return block->shared + begin;
}

void shared_begin(Block *block) {
    if (block->shared == NULL) {
        void *memory = mmap(NULL, 2 * SPACE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) {
            fault("no memory for another block");
        }
        block->shared = (unsigned char *)(((uintptr_t)memory + SPACE - 1) / SPACE * SPACE);
        FORBID(block->shared, SPACE);
    }
    block->shared_top = RESERVED;
    block->shared_bytes = 0;
    block->allocations.clear();
    block->slots.assign((size_t)slots + 1, NULL);
    allocate(block, engine.launch.dynamic_shared, 1024, "its dynamic part");
}

void shared_end(Block *block) {
    FORBID(block->shared, SPACE);
#if !defined(__SANITIZE_ADDRESS__)
    for (size_t i = 0; i < block->allocations.size(); i++) {
        const Allocation &a = block->allocations[i];
        unsigned gap_end = i + 1 < block->allocations.size() ? block->allocations[i + 1].begin : block->shared_top;
        for (unsigned at = (a.end + 3) / 4 * 4; at < gap_end; at += 4) {
            if (memcmp(block->shared + at, &POISON, 4) != 0) {
                fault("block (%u, %u, %u) wrote past the end of shared memory: %s, offset %u of %u bytes", block->index.x,
                      block->index.y, block->index.z, a.name, at - a.begin, a.end - a.begin);
            }
        }
    }
#endif
}

void *shared_memory(SharedSlot &slot, size_t bytes, size_t alignment, const char *name) {
    if (slot.number == 0) {
        slot.number = ++slots;
    }
    Block *block = engine.thread->block;
    if ((size_t)slot.number >= block->slots.size()) {
        block->slots.resize((size_t)slot.number + 1, NULL);
    }
    if (block->slots[(size_t)slot.number] == NULL) {
        if (block->shared_bytes - engine.launch.dynamic_shared + bytes > STATIC_MOST) {
            fault("more than 48 KiB of static shared memory");
        }
        block->slots[(size_t)slot.number] = allocate(block, bytes, alignment > 16 ? alignment : 16, name);
    }
    return block->slots[(size_t)slot.number];
}

unsigned char *dynamic_shared() {
    return engine.thread->block->shared + RESERVED;
}

uint32_t shared_address(const void *pointer) {
    Block *block = engine.thread->block;
    uintptr_t offset = (uintptr_t)pointer - (uintptr_t)block->shared;
    if (offset < RESERVED || offset > block->shared_top) {
        fault("shared_address of %p, which is not in the block's shared memory", pointer);
    }
    return block->rank << 24 | (uint32_t)offset;
}

void shared_check(const Block *block, unsigned offset, size_t bytes, size_t alignment, const char *what) {
    if (offset % alignment != 0) {
        fault("%s at shared memory %#x, which is not aligned to %zu bytes", what, offset, alignment);
    }
    for (const Allocation &a : block->allocations) {
        if (a.begin <= offset && offset + bytes <= a.end) {
            return;
        }
    }
    fault("%s at shared memory %#x, %zu bytes, which is not within what the block asked for", what, offset, bytes);
}

unsigned shared_offset(uint32_t address, size_t bytes, size_t alignment, const char *what) {
    Block *block = engine.thread->block;
    if (address >> 24 != block->rank) {
        fault("%s at %#x, which is no address of the block's own shared memory", what, address);
    }
    unsigned offset = address & 0xFFFFFF;
    shared_check(block, offset, bytes, alignment, what);
    return offset;
}

}  // namespace simulator
