// The ranks as a grid: data x tensor x pipeline x context.
//
// A rank has one coordinate on each axis and belongs to one group per axis: the ranks that differ from it on that axis alone.
// Gradients are summed over the data group, and so on; model code asks the mesh for a group and never names a backend.
// Tensor is the axis that varies fastest with the rank, then context, data, pipeline: what talks most sits closest.
#pragma once

#include "parallel/comm.h"

typedef enum MeshAxis { MESH_DATA, MESH_TENSOR, MESH_PIPELINE, MESH_CONTEXT, MESH_AXES } MeshAxis;

typedef struct Mesh {
    Comm *world;                // not owned
    int size[MESH_AXES];        // product = ranks of the world
    int coordinate[MESH_AXES];  // of this rank
    Comm *group[MESH_AXES];     // owned; a group of one where the size is 1
} Mesh;

// Lays the grid over the world. size[MESH_DATA] = 0 means: what the others leave. The sizes must multiply to the number of
// ranks. Collective. Axes other than data are not supported by the trainer yet and are refused there.
Error *mesh_create(Comm *world, const int size[MESH_AXES], Mesh **out) MUST_CHECK;
void mesh_destroy(Mesh *mesh);

// The world's rank at a coordinate, and the coordinate of a rank.
int mesh_rank(const Mesh *mesh, const int coordinate[MESH_AXES]);
void mesh_coordinate(const Mesh *mesh, int rank, int coordinate[MESH_AXES]);

// "data", "tensor", ...
const char *mesh_axis_name(MeshAxis axis);
// "data 2", "data 4 x tensor 2": the axes larger than one ("one rank" if none), into `out` (at least 96 bytes), which is
// returned.
const char *mesh_layout(const Mesh *mesh, char *out);
