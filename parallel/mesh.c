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

const char *mesh_layout(const Mesh *mesh, char *out) {
    int n = 0;
    snprintf(out, 96, "one rank");
    for (int axis = 0; axis < MESH_AXES; axis++) {
        if (mesh->size[axis] > 1) {
            n += snprintf(out + n, 96 - (size_t)n, "%s%s %d", n > 0 ? " x " : "", mesh_axis_name(axis), mesh->size[axis]);
        }
    }
    return out;
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
    if (error == NULL) {
        mesh_coordinate(mesh, world->rank, mesh->coordinate);
    }
    for (int axis = 0; axis < MESH_AXES && error == NULL; axis++) {
        // The group: all ranks with my other coordinates; named by the one at position 0 of this axis, ordered by the position.
        int first[MESH_AXES];
        memcpy(first, mesh->coordinate, sizeof first);
        first[axis] = 0;
        if (mesh->size[axis] == 1) {
            mesh->group[axis] = comm_open_self();
        } else {
            error = comm_split(world, mesh_rank(mesh, first), mesh->coordinate[axis], &mesh->group[axis]);
        }
    }
    if (error != NULL) {
        mesh_destroy(mesh);
        return error;
    }
    *out = mesh;
    return NULL;
}

void mesh_destroy(Mesh *mesh) {
    if (mesh == NULL) {
        return;
    }
    for (int axis = 0; axis < MESH_AXES; axis++) {
        comm_close(mesh->group[axis]);
    }
    free(mesh);
}
