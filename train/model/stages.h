// The stages of a pipeline on a rank: which layers they are, what a step holds of them, and the walk through the schedule.
//
// The layers are cut evenly into ranks x chunks stages (parallel/pipeline.h); the first has the embedding, the last the final
// norm and the head. A step's micro-batches go through them by the rank's list of actions:
//
//     receive output       into a stream of its own, started one computation ahead
//     forward              through the stage, whose activations stay in the micro-batch's set
//     send output          from where the last layer left it
//     receive gradient     likewise, and the way back goes on in that stream
//     input gradient       the head and the loss too, in the last stage; the embedding's, in the first
//     send gradient        the stream that it leaves
//     weight gradient      frees the set
//
// Nothing waits on the host of a card: messages are part of its order of operations, and a whole step can be recorded.
//
// Where a rank has all layers there are no stages, and the calls below that exchange something do nothing.
#pragma once

#include "parallel/links.h"
#include "train/model/placement.h"
#include "train/model/workspace.h"

typedef struct Model Model;
typedef struct Pass Pass;
typedef struct StepOptions StepOptions;

// A rank's share. shape.ranks 0 or 1: it has all layers.
typedef struct StageShare {
    PipelineShape shape;
    int rank;
} StageShare;

// Fails where the layers cannot be cut so, or the schedule is none: named, with what can.
Error *stages_check(const StageShare *share, int64_t layers) MUST_CHECK;

// How many stages are here (1 of all layers), and the layers of one; begin -1 where the embedding belongs to it and
// end `layers` + 1 where the head does.
int stages_here(const StageShare *share);
Range stages_range(const StageShare *share, int64_t layers, int chunk);
// The number of layers here, and which of these a layer is.
int64_t stages_layers_here(const StageShare *share, int64_t layers);
int64_t stages_layer_here(const StageShare *share, int64_t layers, int64_t layer);

// What a step of a rank does and holds, a function of the share alone.
typedef struct StagePlan {
    ActionList list;  // with receives as early as they are started
    WorkspaceChunk chunks[RANK_MOST_STAGES];
    int streams;              // buffers of the stream that come, go or are worked on at a time
    int gradients_under_way;  // sent and not known to be received, for each stage
} StagePlan;
StagePlan stage_plan_create(const StageShare *share, int64_t layers);  // of a share that was checked
void stage_plan_free(StagePlan *plan);

// The state of a walk.
typedef struct Stages Stages;
Stages *stages_create(const StageShare *share, int64_t layers);
void stages_destroy(Stages *stages);
const StagePlan *stages_plan(const Stages *stages);

// Forward and backward of a step's micro-batches [shape.micro_batches], which lie in device memory until the step is done.
// Gradients and sums as in model_run_batch, of which it is the step; options->gradients_final is called during the last one's.
void stages_run(Model *model, const Batch *batches, const StepOptions *options);

// The layers of a pass that only looks, over all ranks: on the one with the last stage its output is then there.
void stages_look(const Pass *pass);
// Whether this rank has the last stage; and `count` elements of it, brought to all ranks.
bool stages_has_head(const Model *model);
void stages_share(const Model *model, ElementType type, void *data, int64_t count);

// The tied embedding's new weights, from the rank that has them to the copy (placement.h).
void stages_share_tied(Model *model);
