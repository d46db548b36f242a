// The ranks as a grid: data x tensor x pipeline x context.
//
// A rank has one coordinate on each axis. For any set of axes it belongs to one group: the ranks that differ from it on those
// axes alone. Gradients and the loss are summed over data and context together, and so on; model code asks the mesh for a
// group and never names a transport. Tensor is the axis that varies fastest with the rank, then context, data, pipeline: what
// talks most sits closest. Ranks of a group are in that order too.
#pragma once

#include "parallel/group.h"

typedef enum MeshAxis { MESH_DATA, MESH_TENSOR, MESH_PIPELINE, MESH_CONTEXT, MESH_AXES } MeshAxis;

// Sets of axes: OVER_DATA | OVER_CONTEXT.
enum {
    OVER_DATA = 1 << MESH_DATA,
    OVER_TENSOR = 1 << MESH_TENSOR,
    OVER_PIPELINE = 1 << MESH_PIPELINE,
    OVER_CONTEXT = 1 << MESH_CONTEXT,
    OVER_TOKENS = OVER_DATA | OVER_CONTEXT,  // ranks that hold the same weights and see other tokens of a step
    OVER_ALL = (1 << MESH_AXES) - 1,
};

typedef struct Mesh {
    Comm *world;                 // not owned
    int size[MESH_AXES];         // product = ranks of the world
    int coordinate[MESH_AXES];   // of this rank
    Comm *comm[OVER_ALL + 1];    // by set of axes; where attached
    Group *group[OVER_ALL + 1];  // see mesh_group
} Mesh;

// Lays the grid over the world; exchanges nothing. size[MESH_DATA] = 0 means: what the others leave. The sizes must multiply to
// the number of ranks.
Error *mesh_create(Comm *world, const int size[MESH_AXES], Mesh **out) MUST_CHECK;
void mesh_destroy(Mesh *mesh);  // after mesh_detach; NULL is fine

// Makes the groups of these sets of axes, in memory of `device` (see group_create): all that the program will ask for, once,
// before the first operation. Collective over the world, with the same sets in the same order.
Error *mesh_attach(Mesh *mesh, Device *device, const int *sets, int count) MUST_CHECK;
// Closes them, before the device; `failed` as in group_close. Does nothing where nothing is attached.
void mesh_detach(Mesh *mesh, bool failed);

// The group of this rank over a set of axes that was attached. It is named by its axes, "data x context". Axes of size one make
// no difference: sets that differ in those alone are one group; that of one rank alone is called "one rank".
Group *mesh_group(const Mesh *mesh, int axes);

// The ranks of that group, for the control plane.
Comm *mesh_comm(const Mesh *mesh, int axes);

// What this rank's groups have sent and waited so far, by set of axes; and what lies between two of these.
typedef struct MeshTraffic {
    int64_t sent[OVER_ALL + 1];  // Group.sent
    int64_t operations[OVER_ALL + 1];
    double waited[OVER_ALL + 1];
} MeshTraffic;
MeshTraffic mesh_traffic(const Mesh *mesh);
MeshTraffic mesh_traffic_between(const MeshTraffic *before, const MeshTraffic *after);

// The world's rank at a coordinate, and the coordinate of a rank.
int mesh_rank(const Mesh *mesh, const int coordinate[MESH_AXES]);
void mesh_coordinate(const Mesh *mesh, int rank, int coordinate[MESH_AXES]);

// "data", "tensor", ...
const char *mesh_axis_name(MeshAxis axis);
// "data 2", "data 4 x tensor 2": the axes larger than one ("one rank" if none), into `out` (at least 96 bytes), which is
// returned.
const char *mesh_layout(const Mesh *mesh, char *out);
