// The ranks as a grid: see mesh.h.
#include "parallel/mesh.h"

#include <stdio.h>

// The axes from the one that varies fastest with the rank to the slowest.
static const MeshAxis order[MESH_AXES] = {MESH_TENSOR, MESH_CONTEXT, MESH_DATA, MESH_PIPELINE};

const char *mesh_axis_name(MeshAxis axis) {
    static const char *const names[MESH_AXES] = {"data", "tensor", "pipeline", "context"};
    return names[axis];
}

int mesh_rank(const Mesh *mesh, const int coordinate[MESH_AXES]) {
    int rank = 0;
    for (int i = MESH_AXES - 1; i >= 0; i--) {
        rank = rank * mesh->size[order[i]] + coordinate[order[i]];
    }
    return rank;
}

void mesh_coordinate(const Mesh *mesh, int rank, int coordinate[MESH_AXES]) {
    for (int i = 0; i < MESH_AXES; i++) {
        coordinate[order[i]] = rank % mesh->size[order[i]];
        rank /= mesh->size[order[i]];
    }
}

// The axes of a set that are larger than one, with their sizes or without, into `out` (96 bytes).
static const char *name_axes(const Mesh *mesh, int axes, bool sizes, char *out) {
    int n = 0;
    snprintf(out, 96, "one rank");
    for (int axis = 0; axis < MESH_AXES; axis++) {
        if (axes >> axis & 1 && mesh->size[axis] > 1) {
            n += snprintf(out + n, 96 - (size_t)n, "%s%s", n > 0 ? " x " : "", mesh_axis_name(axis));
            n += sizes ? snprintf(out + n, 96 - (size_t)n, " %d", mesh->size[axis]) : 0;
        }
    }
    return out;
}

const char *mesh_layout(const Mesh *mesh, char *out) {
    return name_axes(mesh, OVER_ALL, true, out);
}

// Checks the sizes against the number of ranks and fills in data where it was left open.
static Error *resolve_sizes(const Comm *world, const int wanted[MESH_AXES], int size[MESH_AXES]) {
    int64_t others = 1;
    for (int axis = 0; axis < MESH_AXES; axis++) {
        size[axis] = wanted[axis];
        if (wanted[axis] < (axis == MESH_DATA ? 0 : 1) || wanted[axis] > world->size) {
            return failure("%d %s-parallel ranks cannot be had of %d rank%s: start more ranks or make it smaller", wanted[axis],
                           mesh_axis_name(axis), world->size, world->size == 1 ? "" : "s");
        }
        others *= axis == MESH_DATA ? 1 : wanted[axis];
        others = others < INT32_MAX ? others : INT32_MAX;
    }
    if (wanted[MESH_DATA] == 0) {
        if (world->size % others != 0) {
            return failure("tensor %d x pipeline %d x context %d does not divide %d ranks: start a multiple of %d",
                           wanted[MESH_TENSOR], wanted[MESH_PIPELINE], wanted[MESH_CONTEXT], world->size, (int)others);
        }
        size[MESH_DATA] = world->size / (int)others;
    } else if (others * wanted[MESH_DATA] != world->size) {
        return failure("data %d x tensor %d x pipeline %d x context %d is %lld ranks, but %d %s started", wanted[MESH_DATA],
                       wanted[MESH_TENSOR], wanted[MESH_PIPELINE], wanted[MESH_CONTEXT],
                       (long long)(others * wanted[MESH_DATA]), world->size, world->size == 1 ? "was" : "were");
    }
    return NULL;
}

Error *mesh_create(Comm *world, const int size[MESH_AXES], Mesh **out) {
    *out = NULL;
    Mesh *mesh = memory_zeroed(1, sizeof *mesh);
    mesh->world = world;
    Error *error = resolve_sizes(world, size, mesh->size);
    if (error != NULL) {
        mesh_destroy(mesh);
        return error;
    }
    mesh_coordinate(mesh, world->rank, mesh->coordinate);
    *out = mesh;
    return NULL;
}

void mesh_destroy(Mesh *mesh) {
    free(mesh);
}

// The axes of a set that are larger than one: what its group depends on.
static int axes_that_count(const Mesh *mesh, int axes) {
    for (int axis = 0; axis < MESH_AXES; axis++) {
        axes &= mesh->size[axis] > 1 ? ~0 : ~(1 << axis);
    }
    return axes;
}

static Error *attach(Mesh *mesh, Device *device, int axes) {
    // The ranks with my coordinates on the other axes, called after the one of them that is first.
    int first[MESH_AXES];
    char name[96];
    for (int axis = 0; axis < MESH_AXES; axis++) {
        first[axis] = axes >> axis & 1 ? 0 : mesh->coordinate[axis];
    }
    if (axes == 0) {
        mesh->comm[axes] = comm_open_self();
    } else {
        TRY(comm_split(mesh->world, mesh_rank(mesh, first), mesh->world->rank, &mesh->comm[axes]));
    }
    return group_create(mesh->comm[axes], name_axes(mesh, axes, false, name), device, &mesh->group[axes]);
}

Error *mesh_attach(Mesh *mesh, Device *device, const int *sets, int count) {
    for (int i = 0; i < count; i++) {
        int axes = axes_that_count(mesh, sets[i]);
        if (mesh->group[axes] == NULL) {
            TRY(attach(mesh, device, axes));
        }
    }
    return NULL;
}

void mesh_detach(Mesh *mesh, bool failed) {
    for (int axes = 0; axes <= OVER_ALL; axes++) {
        group_close(mesh->group[axes], failed);
        comm_close(mesh->comm[axes]);
        mesh->group[axes] = NULL;
        mesh->comm[axes] = NULL;
    }
}

Comm *mesh_comm(const Mesh *mesh, int axes) {
    Comm *comm = mesh->comm[axes_that_count(mesh, axes)];
    ensure(comm != NULL, "no group over the axes %d was attached", axes);
    return comm;
}

Group *mesh_group(const Mesh *mesh, int axes) {
    Group *group = mesh->group[axes_that_count(mesh, axes)];
    ensure(group != NULL, "no group over the axes %d was attached", axes);
    return group;
}

MeshTraffic mesh_traffic(const Mesh *mesh) {
    MeshTraffic out = {0};
    for (int axes = 0; axes <= OVER_ALL; axes++) {
        if (mesh->group[axes] != NULL) {
            out.sent[axes] = mesh->group[axes]->sent;
            out.operations[axes] = mesh->group[axes]->operations;
            out.waited[axes] = mesh->group[axes]->waited;
        }
    }
    return out;
}

MeshTraffic mesh_traffic_between(const MeshTraffic *before, const MeshTraffic *after) {
    MeshTraffic out;
    for (int axes = 0; axes <= OVER_ALL; axes++) {
        out.sent[axes] = after->sent[axes] - before->sent[axes];
        out.operations[axes] = after->operations[axes] - before->operations[axes];
        out.waited[axes] = after->waited[axes] - before->waited[axes];
    }
    return out;
}
