// See fiber.h. On x86-64 a switch is a dozen instructions; elsewhere it is ucontext's.
#include "tests/simulated/fiber.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#include <sanitizer/common_interface_defs.h>
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif
#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace simulator {

// Frames are several times larger under AddressSanitizer. Pages that are not touched cost nothing.
static const size_t STACK_BYTES = SANITIZED ? 512 * 1024 : 128 * 1024;
// Every guard page splits a mapping, of which Linux allows 65530: beyond so many fibers there are no more guards.
static const int GUARDS_MOST = 16 * 1024;

static Fiber *previous;  // who switched to the fiber that runs

static void arrived(Fiber *self) {
#if SANITIZED
    const void *bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(self->sanitizer, &bottom, &bytes);
    if (previous->bottom == NULL) {  // the OS thread's own stack: known from now on
        previous->bottom = (void *)bottom;
        previous->bytes = bytes;
    }
#else
    (void)self;
#endif
}

static Fiber *starting;

static void fiber_main() {
    Fiber *self = starting;
    arrived(self);
    self->body();
    abort();
}

static void leave(Fiber *from, Fiber *to) {
    previous = from;
    starting = to;
#if SANITIZED
    __sanitizer_start_switch_fiber(&from->sanitizer, to->bottom, to->bytes);
#else
    (void)from;
#endif
}

static void *stack_create() {
    static int guards;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *memory = mmap(NULL, STACK_BYTES + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        fprintf(stderr, "simulated GPU: no memory for the stack of another thread\n");
        abort();
    }
    if (guards < GUARDS_MOST) {
        guards++;
        mprotect(memory, page, PROT_NONE);
    }
    return (char *)memory + page;
}

#ifdef __x86_64__

extern "C" void simulator_fiber_swap(void **save, void *load);
__asm__(".text\n"
        ".p2align 4\n"
        ".globl simulator_fiber_swap\n"
        ".hidden simulator_fiber_swap\n"
        ".type simulator_fiber_swap, @function\n"
        "simulator_fiber_swap:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size simulator_fiber_swap, .-simulator_fiber_swap\n");

Fiber *fiber_create(void (*body)()) {
    static unsigned count;
    Fiber *fiber = new Fiber{};
    fiber->bottom = stack_create();
    fiber->bytes = STACK_BYTES;
    fiber->body = body;
    // Stacks whose tops lay at the same place of a page would share the same few sets of the caches.
    uintptr_t top = (uintptr_t)fiber->bottom + STACK_BYTES - count++ % 32 * 128;
    void **frame = (void **)top;
    *--frame = NULL;  // the return address of fiber_main, which does not return
    *--frame = (void *)fiber_main;
    fiber->stack_pointer = frame - 6;  // the registers, all 0
    return fiber;
}

void fiber_switch(Fiber *from, Fiber *to) {
    leave(from, to);
    simulator_fiber_swap(&from->stack_pointer, to->stack_pointer);
    arrived(from);
}

#else

Fiber *fiber_create(void (*body)()) {
    Fiber *fiber = new Fiber{};
    fiber->bottom = stack_create();
    fiber->bytes = STACK_BYTES;
    fiber->body = body;
    ucontext_t *context = new ucontext_t;
    getcontext(context);
    context->uc_stack.ss_sp = fiber->bottom;
    context->uc_stack.ss_size = fiber->bytes;
    context->uc_link = NULL;
    makecontext(context, fiber_main, 0);
    fiber->stack_pointer = context;
    return fiber;
}

void fiber_switch(Fiber *from, Fiber *to) {
    if (from->stack_pointer == NULL) {
        from->stack_pointer = new ucontext_t;
    }
    leave(from, to);
    swapcontext((ucontext_t *)from->stack_pointer, (ucontext_t *)to->stack_pointer);
    arrived(from);
}

#endif

}  // namespace simulator
