// Which layouts a configuration can train in: refused with the nearest ones that work, before anything is made.
//
// A pure function of configuration and sizes: what each axis needs of the model (heads and groups for tensor, layers for
// pipeline, tokens for context), of the step (samples for data, micro-batches for pipeline), and of the ranks.
#pragma once

#include "parallel/mesh.h"
#include "train/run_config.h"

// Why the layout of these sizes (all at least 1, data too) cannot train, or NULL. The model must be resolved
// (model_config_resolve); the rest of the configuration need not be.
Error *run_layout_check(const RunConfig *config, const int size[MESH_AXES]) MUST_CHECK;

// The sizes that the configuration asks of `ranks` ranks, into `size`: data filled in where it is open. Where they cannot
// train, the error names up to three that can: of as many ranks where there are any, else of the nearest number; and the
// micro-batch with which these sizes could. A batch that is no multiple of the micro-batch is left to run_config_resolve.
Error *run_layout_resolve(const RunConfig *config, int ranks, const char *where, int size[MESH_AXES]) MUST_CHECK;

// Every layout of `ranks` ranks that run_layout_check takes, into *out, which the caller frees; returns how many.
typedef struct LayoutSizes {
    int size[MESH_AXES];
} LayoutSizes;
int run_layout_list(const RunConfig *config, int ranks, LayoutSizes **out);

// "parallel.data=2 parallel.tensor=4" appended: every axis that is not one, or that the configuration sets to another value.
void run_layout_write(const RunConfig *config, const int size[MESH_AXES], Buffer *out);
