// The runtime of the simulated GPU as its files see it: operations, the streams that hold them, and the memory of cards.
//
// A stream is a queue of operations. Nothing runs before something waits for it (timing late), or everything runs at once
// (early), or some of it (random); whenever several streams could go on, the seed chooses. So whatever the order of events does
// not forbid happens under some seed, and a wait that is missing is a wrong answer and not luck.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <cuda_runtime.h>

namespace simulator {

// What an operation that cannot be done in one go did when it was asked to go on.
enum class Progress { NONE, SOME, DONE };
struct Pending {
    virtual ~Pending() = default;
    virtual Progress advance() = 0;
};

// One of the two functions is set. An operation may run many times (in a graph), so neither changes it.
struct Operation {
    std::string name;
    std::function<void()> run;
    std::function<std::unique_ptr<Pending>()> start;
};

// A moment in the order of operations; events and waits for them share it.
struct Moment {
    bool reached = false;
    double seconds = 0;
};

struct Item {
    std::shared_ptr<const Operation> operation;
    std::shared_ptr<Moment> reaches, waits_for;  // instead of an operation
    std::unique_ptr<Pending> pending;            // of an operation that was started
};

// All calls hold this lock.
extern std::recursive_mutex lock;

// Puts an operation into the stream, or into the graph that the stream is being recorded to.
cudaError_t enqueue(cudaStream_t stream, Operation operation);

// Runs what may run until the condition holds. Ends the process where nothing can go on.
void run_until(const std::function<bool()> &condition);
// Runs one operation, or lets one that waits for other ranks go on. False where nothing could.
bool run_one();
bool idle();  // nothing is pending

// A number below `count`: 0 for seed 0.
size_t choose(size_t count);

// Remembers an error as cudaGetLastError's, and returns it.
cudaError_t note(cudaError_t error);
// The error of an operation that failed while it ran: every call returns it from then on, and nothing runs any more.
extern cudaError_t sticky;

// True where [memory, memory + bytes) lies within one allocation of a card; of pinned host memory.
bool is_device_memory(const void *memory, size_t bytes);
bool is_pinned_memory(const void *memory, size_t bytes);
// Where a call may not be made while this thread records a graph: ends the recording and returns the error for it.
cudaError_t forbid_while_recording();

// Checks the margins around all allocations; ends the process, naming the operation, where one was overwritten.
void check_margins(const std::string &operation);

[[noreturn]] void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace simulator
