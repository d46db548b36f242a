// A card as the files of this folder see it, and how they launch kernels.
//
// Every .cu file here is compiled twice: by nvcc for real cards (BACKEND = cuda), and by the host's C++ compiler against the
// simulated GPU of tests/simulated (BACKEND = simulated). So nothing is spelled <<<>>>, extern __shared__ or asm: launch(),
// SHARED, DYNAMIC_SHARED and the functions of ptx.h stand for them. All code lies in the namespace BACKEND, so that both can be
// linked into one program; each exports one C symbol, its DeviceBackend.
#pragma once

#ifndef BACKEND
#error "compile with -DBACKEND=cuda or -DBACKEND=simulated"
#endif

#include <cuda_runtime.h>

#define _Noreturn [[noreturn]]
extern "C" {
#include "core/error.h"
#include "core/memory.h"
#include "core/philox.h"
#include "kernels/device.h"
}
#undef _Noreturn

namespace BACKEND {

enum { CARD_TURNS = 4096 };

// The state of one card in this process. A Device * of this backend is a Card *.
struct Card {
    Device device;  // first
    int ordinal;
    int multiprocessors;
    int architecture;     // 80 for sm_80, 90 for sm_90 ...
    size_t shared_limit;  // bytes of shared memory that a block may have
    cudaStream_t stream;  // where operations run
    int *turns;           // CARD_TURNS words, 0 between operations, by which blocks of one wait for each other
    void *workspace;      // card_workspace
    size_t workspace_bytes;
    const char *failed;  // the first kernel or call that failed since the last device_finish, NULL: none
    cudaError_t failure;
    bool capturing;            // operations are being recorded into a graph
    const void *allowed[256];  // kernels that may use more than 48 KiB of shared memory
    int allowed_count;
    struct CardMemory *memory;      // device.cu's: staging for copies, events
    struct MatmulChoices *choices;  // matmul.cu's
    struct TensorMaps *maps;        // tensor_map.cu's
};

static inline Card *card_of(Device *device) {
    return (Card *)device;
}

// Remembers the first failure; the next device_finish returns it as an error.
static inline void card_failed(Card *card, const char *what, cudaError_t failure) {
    if (failure != cudaSuccess && card->failed == NULL) {
        card->failed = what;
        card->failure = failure;
    }
}

// Scratch for one operation: at least `bytes`, aligned to 1024, content undefined, valid until the next operation asks. It
// grows only outside a graph's recording: what is recorded has run once before, in the trainer's rehearsal.
void *card_workspace(Card *card, size_t bytes);

// Allows a kernel that much dynamic shared memory, once.
void card_allow_shared(Card *card, const void *kernel, size_t bytes);

// Starts kernel<<<grid, block, shared>>>(arguments...) on the card's stream, in clusters of `cluster` blocks along x.
// `name` is for messages. An empty grid is no launch; nor is there one after a failure.
template <typename... Parameters, typename... Arguments>
static void launch_cluster(Card *card, const char *name, void (*kernel)(Parameters...), dim3 grid, int block, int cluster,
                           size_t shared, Arguments... arguments) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || card->failed != NULL) {
        return;
    }
#ifdef ATHANOR_SIMULATED
    simulated_launch_name(name);
#endif
    if (shared > 48 * 1024) {
        card_allow_shared(card, (const void *)kernel, shared);
    }
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = (unsigned)cluster;
    attribute.val.clusterDim.y = 1;
    attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3((unsigned)block);
    config.dynamicSmemBytes = shared;
    config.stream = card->stream;
    config.attrs = &attribute;
    config.numAttrs = cluster > 1 ? 1 : 0;
    card_failed(card, name, cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

template <typename... Parameters, typename... Arguments>
static void launch(Card *card, const char *name, void (*kernel)(Parameters...), dim3 grid, int block, size_t shared,
                   Arguments... arguments) {
    launch_cluster(card, name, kernel, grid, block, 1, shared, arguments...);
}

static inline int64_t divide_up(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

// Which body computes matrix products (device.h, "Which kernels").
Error *matmul_set_choice(Device *device, const char *products);
void matmul_describe_choices(Device *device, Buffer *out);
Error *matmul_load_choices(Device *device, const char *text);
void matmul_close(Card *card);
// The choice is "sm80": Hopper's bodies, those of attention too, are left out.
bool matmul_portable(Card *card);

// The operations, each in the file of its name.
#define DECLARE(operation, ...) void operation(Device *device, __VA_ARGS__);
EACH_OPERATION(DECLARE)
#undef DECLARE

}  // namespace BACKEND

// Shared memory of a block, uninitialised: SHARED(float, sums, [32]); and the block's dynamic part, aligned to 1024 bytes:
// DYNAMIC_SHARED(name); declares unsigned char *name. At most one DYNAMIC_SHARED name a file.
#ifndef ATHANOR_SIMULATED
#define SHARED(type, name, ...) __shared__ type name __VA_ARGS__
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#endif
