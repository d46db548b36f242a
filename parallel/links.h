// What the ranks of a pipeline talk over: groups of two for each boundary of stages and direction, and one of all.
//
// A message must never wait behind one that its receiver asks for later, and some transports keep all messages of a group in
// the order in which they were started (group.h). Over one boundary in one direction the order is that of the micro-batches, so
// each of these has a group of its own.
//
//     stage   0 ---outputs[0]--> 1 ---outputs[1]--> 2 ---outputs[2]--> 3
//             0 <-gradients[1]-- 1 <-gradients[2]-- 2 <-gradients[3]-- 3
#pragma once

#include "parallel/group.h"
#include "parallel/pipeline.h"

typedef struct PipelineLinks {
    PipelineShape shape;
    int rank;           // of the pipeline
    Group *all;         // not owned
    Group **outputs;    // [stages]: of stage s to s + 1; NULL where this rank has neither or both
    Group **gradients;  // [stages]: of stage s to s - 1; likewise
    Group *ends;        // of the ranks with the first stage (rank 0) and the last; NULL elsewhere, and where one rank has both
    Comm **pairs;       // [ranks] of rank r and the next one around; NULL where this rank is none of them
} PipelineLinks;

// Collective over the ranks of `all`, which are the pipeline's in order, and which must outlive the links. `device` as in
// group_create.
Error *pipeline_links_create(Group *all, const PipelineShape *shape, Device *device, PipelineLinks **out) MUST_CHECK;
void pipeline_links_close(PipelineLinks *links, bool failed);  // as group_close; NULL is fine

// The other rank of a group of two.
static inline int pipeline_peer(const Group *pair) {
    return 1 - pair->rank;
}

// Whether all of them can be recorded: see group.h.
bool pipeline_links_recordable(const PipelineLinks *links);

// Adds what their groups have sent and waited so far: see Group.
void pipeline_links_count(const PipelineLinks *links, int64_t *sent, double *waited);

// What went wrong meanwhile in any of the groups: see group_check.
Error *pipeline_links_check(const PipelineLinks *links) MUST_CHECK;
