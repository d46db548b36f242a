// What a rank of a run needs, before there is one: the memory plan as a pure function of configuration, layout and machine.
//
// The trainer allocates what it says, a refusal searches it for what would fit, and what was planned is compared with what the
// rank took at its peak.
#pragma once

#include "parallel/mesh.h"
#include "train/model/model.h"
#include "train/run_config.h"

// What a rank's share of the run is, besides the configuration.
typedef struct RunLayout {
    int ranks, rank;        // of the world
    int data_ranks;         // that sum gradients: data x context
    TensorShare tensor;     // ranks that share each layer stand side by side in the world
    ContextShare context;   // so do, of these sets, those that share sequences
    StageShare stages;      // of a pipeline
    int data_rank;          // of this rank among data_ranks, where the state is in shards (parallel.zero)
    int64_t micro_batches;  // of this rank and step
    int64_t prompt_tokens;  // of the longest prompt of the samples
} RunLayout;

// That of a rank in a world laid out by these sizes (mesh.h); prompt_tokens stays the caller's. The configuration is resolved.
RunLayout run_layout_of(const RunConfig *config, const int size[MESH_AXES], int rank);

// The size of a bucket of gradients.
int64_t run_bucket_bytes(const RunConfig *config);

// What the configuration makes of a model, on a rank that has everything. It must be resolved.
ModelOptions run_model_options(const RunConfig *config);
// The same on one rank of a layout.
ModelOptions run_rank_options(const RunConfig *config, const RunLayout *layout);

// The plan of all that a rank takes in a run, the program's own memory and that of libraries included.
void run_plan(const RunConfig *config, const RunLayout *layout, const Machine *machine, MemoryPlan *out);

// An error where the plan does not fit the machine. It names what would: the largest divisor of the micro-batch and with it the
// least recompute, if any.
Error *run_plan_check(const RunConfig *config, const RunLayout *layout, const Machine *machine) MUST_CHECK;
