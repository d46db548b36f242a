// Fibers: stacks of their own that one OS thread runs in turn.
#pragma once

#include <cstddef>

namespace simulator {

struct Fiber {
    void *stack_pointer;  // while it does not run
    void *bottom;         // of the stack, NULL: the OS thread's own
    size_t bytes;         // of the stack
    void *sanitizer;      // AddressSanitizer's, while it does not run
    void (*body)();       // never returns
};

// A fiber that runs body when it is first switched to. It is never freed: fibers are few and used again.
Fiber *fiber_create(void (*body)());

// Stops the running fiber `from` and goes on with `to`; returns when somebody switches back.
void fiber_switch(Fiber *from, Fiber *to);

}  // namespace simulator
