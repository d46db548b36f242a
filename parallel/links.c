// What the ranks of a pipeline talk over: see links.h.
#include "parallel/links.h"

#include <stdio.h>

static int stages_of(const PipelineShape *shape) {
    return shape->ranks * shape->chunks;
}

// The pair of two ranks that are neighbours around the ring: numbered by the first of them.
static int pair_of(const PipelineShape *shape, int a, int b) {
    return shape->ranks == 2 ? 0 : (a + 1) % shape->ranks == b ? a : b;
}

// Splits off the ranks of pair `first`; those of no interest are left to themselves.
static Error *split_pair(PipelineLinks *links, int first) {
    int ranks = links->shape.ranks, second = (first + 1) % ranks;
    bool mine = links->rank == first || links->rank == second;
    Comm *comm;
    TRY(comm_split(links->all->comm, mine ? 0 : 1, links->rank, &comm));
    if (mine) {
        links->pairs[first] = comm;
    } else {
        comm_close(comm);
    }
    return NULL;
}

// The group over which stage `from` talks to stage `to`, where this rank has one of them.
static Error *link_stages(PipelineLinks *links, int from, int to, const char *what, Device *device, Group **out) {
    const PipelineShape *shape = &links->shape;
    int a = pipeline_rank(shape, from), b = pipeline_rank(shape, to);
    if (a == b || (links->rank != a && links->rank != b)) {
        return NULL;
    }
    char name[64];
    snprintf(name, sizeof name, "%s of stage %d to %d", what, from, to);
    TRY(group_create(links->pairs[pair_of(shape, a, b)], name, device, out));
    (*out)->account = links->all;
    return NULL;
}

static Error *create(PipelineLinks *links, Device *device) {
    const PipelineShape *shape = &links->shape;
    int stages = stages_of(shape), last = pipeline_rank(shape, stages - 1);
    // All ranks split and link in the same order.
    for (int first = 0; first < shape->ranks - (shape->ranks == 2); first++) {
        TRY(split_pair(links, first));
    }
    for (int s = 0; s + 1 < stages; s++) {
        TRY(link_stages(links, s, s + 1, "outputs", device, &links->outputs[s]));
        TRY(link_stages(links, s + 1, s, "gradients", device, &links->gradients[s + 1]));
    }
    if (last != 0 && (links->rank == 0 || links->rank == last)) {
        TRY(group_create(links->pairs[pair_of(shape, 0, last)], "ends of the pipeline", device, &links->ends));
        links->ends->account = links->all;
    }
    return NULL;
}

Error *pipeline_links_create(Group *all, const PipelineShape *shape, Device *device, PipelineLinks **out) {
    *out = NULL;
    ensure(all->size == shape->ranks, "%d ranks for a pipeline of %d", all->size, shape->ranks);
    PipelineLinks *links = memory_new(1, sizeof *links);
    *links = (PipelineLinks){.shape = *shape, .rank = all->rank, .all = all};
    links->outputs = memory_zeroed((size_t)stages_of(shape), sizeof(Group *));
    links->gradients = memory_zeroed((size_t)stages_of(shape), sizeof(Group *));
    links->pairs = memory_zeroed((size_t)shape->ranks, sizeof(Comm *));
    Error *error = create(links, device);
    if (error != NULL) {
        pipeline_links_close(links, true);
        return error;
    }
    *out = links;
    return NULL;
}

void pipeline_links_close(PipelineLinks *links, bool failed) {
    if (links == NULL) {
        return;
    }
    for (int s = 0; s < stages_of(&links->shape); s++) {
        group_close(links->outputs[s], failed);
        group_close(links->gradients[s], failed);
    }
    group_close(links->ends, failed);
    for (int r = 0; r < links->shape.ranks; r++) {
        comm_close(links->pairs[r]);
    }
    free(links->outputs);
    free(links->gradients);
    free(links->pairs);
    free(links);
}

// Calls `each` for all groups of two that this rank is in, until one fails.
static Error *for_each(const PipelineLinks *links, Error *(*each)(Group *group, void *context), void *context) {
    for (int s = 0; s < stages_of(&links->shape); s++) {
        TRY(links->outputs[s] != NULL ? each(links->outputs[s], context) : NULL);
        TRY(links->gradients[s] != NULL ? each(links->gradients[s], context) : NULL);
    }
    return links->ends != NULL ? each(links->ends, context) : NULL;
}

static Error *check(Group *group, void *context) {
    (void)context;
    return group_check(group);
}

static Error *recordable(Group *group, void *context) {
    *(bool *)context &= group->recordable;
    return NULL;
}

typedef struct Count {
    int64_t *sent;
    double *waited;
} Count;

static Error *count(Group *group, void *context) {
    const Count *sum = context;
    *sum->sent += group->sent;
    *sum->waited += group->waited;
    return NULL;
}

Error *pipeline_links_check(const PipelineLinks *links) {
    return for_each(links, check, NULL);
}

bool pipeline_links_recordable(const PipelineLinks *links) {
    bool all = true;
    error_free(for_each(links, recordable, &all));
    return all;
}

void pipeline_links_count(const PipelineLinks *links, int64_t *sent, double *waited) {
    error_free(for_each(links, count, &(Count){sent, waited}));
}
