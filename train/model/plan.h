// The memory plan: every buffer of a rank, sized before the first step, printed, and then what is used.
//
// Plans are made from a machine's description alone, without a device or a model, so that a run is refused (and another one
// proposed) before anything is allocated. A model's part of it is model_plan; train/run_plan.h adds what a whole run takes.
#pragma once

#include "kernels/device.h"

#include <stdio.h>

typedef enum Recompute {
    RECOMPUTE_NONE,       // keep what backward needs
    RECOMPUTE_SELECTIVE,  // keep no output of norms and activation functions: cheap to compute again
    RECOMPUTE_FULL,       // keep only each layer's input and run the layer again
} Recompute;
extern const char *const recompute_names[];  // "none", "selective", "full", NULL: for a KEY_CHOICE

// What a plan needs to know of where one rank computes.
typedef struct Machine {
    DeviceKind kind;
    DataType type;  // that it computes in
    int threads;
    int64_t program;      // bytes of the host that the process has already, what MPI and libraries mapped included
    int64_t memory;       // of the device, for this rank; 0: not known
    int64_t host_memory;  // of the host, for this rank, beside `program`; 0: not known. On the CPU `memory` is the same.
} Machine;

// The machine of an open device, whose host (and card, where there is one) so many ranks share between them. What this process
// has already is part of `program`, not of what there is: ask on all ranks before any of them allocates.
Machine machine_of(Device *device, int host_sharers, int card_sharers);

typedef struct PlanLine {
    bool host;  // in the host's memory though the device is a card
    char name[48];
    char detail[64];  // "12 x 4096 x 768 x 4 B"
    int64_t bytes;
} PlanLine;

enum { PLAN_LINES = 64 };
#define PLAN_MOST_BYTES ((int64_t)1 << 56)  // what a larger line is counted as, so that a plan's sums cannot overflow

typedef struct MemoryPlan {
    PlanLine lines[PLAN_LINES];
    int count;
    int64_t total;  // of the device; on the CPU `program` included
    int64_t host;   // of the host beside a card
} MemoryPlan;

void memory_plan_add(MemoryPlan *plan, const char *name, int64_t bytes, const char *detail, ...) PRINTF_LIKE(4, 5);
// A line of the host's memory, which counts as the device's where that is the CPU.
void memory_plan_add_host(MemoryPlan *plan, DeviceKind kind, const char *name, int64_t bytes, const char *detail, ...)
    PRINTF_LIKE(5, 6);

// Prints the plan as a table with a total, and beside it the memory that the machine has for this rank.
void memory_plan_print(const MemoryPlan *plan, const Machine *machine, FILE *out);

// An error where the plan exceeds what the machine has, with what to change.
Error *memory_plan_check(const MemoryPlan *plan, const Machine *machine) MUST_CHECK;
