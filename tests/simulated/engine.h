// The execution engine of the simulated GPU: runs one launch of a kernel on the CPU, to its end.
//
// Every CUDA thread is a fiber; all run on the OS thread that calls simulator::run, so a run is reproducible: order and timing
// follow from the settings alone. What a real card would leave undefined is made to go wrong where it can be: shared memory and
// registers in flight hold NaNs, warps and blocks run in shuffled orders, asynchronous copies and products happen at the latest
// (or the earliest) moment that the rules allow. A misuse that can be named (diverged barriers, deadlock, addresses outside of
// shared memory ...) ends the process with a message that tells kernel, block and thread.
#pragma once

#include <simulated_device.h>

#include <cstddef>
#include <cstdint>
#include <functional>

namespace simulator {

// When asynchronous work is done: as late as its wait allows, at once, or at random (by the seed) one or the other.
enum class Timing { LATE, EARLY, RANDOM };

struct Settings {
    uint64_t seed;     // of the orders in which blocks and warps run; 0: as they are numbered
    Timing timing;     // LATE
    int architecture;  // 80, 86, 89, 90 or 100: limits, and which instructions exist
};

// The settings of launches to come. At first they are those of the environment: ATHANOR_SIMULATED_SEED (0),
// ATHANOR_SIMULATED_TIMING (late, early, random), ATHANOR_SIMULATED_ARCH (90). The last one counts again whenever it changes,
// so that one process can open cards of several architectures.
Settings &settings();

// Shared memory that a block may have at most, static and dynamic together, on settings().architecture.
size_t shared_limit();

struct Launch {
    const char *kernel;  // its name, for messages
    dim3 grid, block;
    unsigned cluster;  // blocks of a cluster along x; 1: none
    size_t dynamic_shared;
};

// What is wrong with a launch (block of more than 1024 threads, a grid that clusters do not divide, ...): a card would refuse
// it with cudaErrorInvalidConfiguration. NULL: nothing.
const char *launch_fault(const Launch &launch);

// Runs thread() once for every thread of the grid and returns when all are done. The launch must be without fault. Callers on
// several OS threads take turns.
void run(const Launch &launch, const std::function<void()> &thread);

// True while the caller is itself a simulated thread.
bool inside();

}  // namespace simulator
