// The memory plan: every buffer of a model, sized before the first step, printed, and then what is used.
//
// One arena holds all device buffers of a model; each line of the plan is a part of it. Lines that others own (batches,
// a checkpoint's snapshot, communication) are added by their owners with memory_plan_add, so that the printed total is the
// process's.
#pragma once

#include "kernels/device.h"
#include "train/model/params.h"

#include <stdio.h>

typedef enum Recompute {
    RECOMPUTE_NONE,       // keep what backward needs
    RECOMPUTE_SELECTIVE,  // keep no output of norms and activation functions: cheap to compute again
    RECOMPUTE_FULL,       // keep only each layer's input and run the layer again
} Recompute;
extern const char *const recompute_names[];  // "none", "selective", "full", NULL: for a KEY_CHOICE

// What a model is created for.
typedef struct ModelOptions {
    int64_t sequences, length;  // the largest batch: B, T
    Recompute recompute;
    OptimizerKind optimizer;
    int64_t head_rows;   // rows of logits held at a time; 0: chosen
    bool forward_only;   // no gradients, moments or kept activations
    int64_t batches;     // micro-batches that a card holds at once; 0: one
    bool masters;        // an fp32 copy of parameters of 16 bits; without it updates are rounded stochastically
    bool deterministic;  // else gradients are not the same bits each time: AttentionBackward's any_order
    double weight_decay;
    MomentType moments;
} ModelOptions;

typedef struct PlanLine {
    bool host;  // in the host's memory though the device is a card
    char name[48];
    char detail[64];  // "12 layers x 4096 x 768 x 4 B"
    int64_t bytes;
} PlanLine;

enum { PLAN_LINES = 48, CARD_WORKSPACE = 256 << 20 };

typedef struct MemoryPlan {
    PlanLine lines[PLAN_LINES];
    int count;
    int64_t total;  // of the device
    int64_t host;   // of the host beside a card
    int64_t held;   // of total, what the device has given already
} MemoryPlan;

void memory_plan_add(MemoryPlan *plan, const char *name, int64_t bytes, const char *detail, ...) PRINTF_LIKE(4, 5);
// A line of the host's memory: the same where the device is the CPU.
void memory_plan_add_host(MemoryPlan *plan, const Device *device, const char *name, int64_t bytes, const char *detail, ...)
    PRINTF_LIKE(5, 6);

// Prints the plan as a table with a total, and beside it the memory that the device has free. device NULL: the host.
void memory_plan_print(const MemoryPlan *plan, Device *device, FILE *out);

// The plan of a model on a device, without creating it. The same lines are in Model.plan.
void model_plan(const ModelConfig *config, const ModelOptions *options, Device *device, MemoryPlan *out);

// An error where the plan's total exceeds the memory available now, with what to change. device NULL: the host.
Error *memory_plan_check(const MemoryPlan *plan, Device *device) MUST_CHECK;
