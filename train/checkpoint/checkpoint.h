// Checkpoints: a set of named slices of logical tensors, whole or absent.
//
//     RUN/checkpoints/step-00001000/
//         manifest.json      what is in it: tensors, slices, sizes and checksums of all files
//         rank-00000.h5      the slices that rank 0 owns, contiguous fp32 HDF5 datasets /weight/NAME, /moment1/NAME,
//         /moment2/NAME rank-00001.h5      ... metrics.bin        the caller's blobs, one file each
//
// A save is a snapshot (the only time that training stands still), files written, fsynced and checksummed by a background
// thread of each rank in step-N.partial, and a commit by rank 0: manifest, rename, fsync. What did not commit does not exist.
// A reader asks for ranges of logical tensors, so any layout reads any checkpoint.
//
// The trainer drives a save without waiting, on every rank, with the scalars it all-reduces each step anyway:
//
//     if (time to save && checkpoint_writer_idle(writer)) checkpoint_writer_begin(writer, step, state, blobs, count);
//     ...
//     double flags[CHECKPOINT_FLAGS];
//     checkpoint_writer_flags(writer, flags);
//     comm_all_reduce_doubles(world, flags, CHECKPOINT_FLAGS, COMM_MAX);      (together with its own scalars)
//     CheckpointEvent event = checkpoint_writer_advance(writer, flags);
//
// and at the end of the run checkpoint_writer_wait(writer, world).
#pragma once

#include "core/json.h"
#include "parallel/comm.h"

enum { CHECKPOINT_MOST_DIMS = 4, CHECKPOINT_FLAGS = 2 };

typedef enum SliceKind { SLICE_WEIGHT, SLICE_MOMENT1, SLICE_MOMENT2, SLICE_KINDS } SliceKind;
const char *slice_kind_name(SliceKind kind);  // "weight", "moment1", "moment2"

// A logical tensor of the model, the same list in the same order on all ranks. Names: 1 to 200 of [A-Za-z0-9._-], all
// different.
typedef struct CheckpointTensor {
    const char *name;
    int dims;
    int64_t shape[CHECKPOINT_MOST_DIMS];
} CheckpointTensor;

// Elements [begin, end) of the row-major logical tensor, which this rank owns at `data`. A rank has at most one slice of a
// tensor and kind; the ranks' slices need not cover all kinds of all tensors (SGD has no second moments).
typedef struct CheckpointSlice {
    int tensor;  // index into the tensors
    SliceKind kind;
    int64_t begin, end;
    const float *data;  // NULL where the plan fetches
} CheckpointSlice;

// Bytes of the caller's own, stored as the file NAME in the checkpoint. Names: as for tensors, not "manifest.json" or
// "rank-...".
typedef struct CheckpointBlob {
    const char *name;
    const void *bytes;
    size_t size;
} CheckpointBlob;

// ---- writing ----

typedef struct CheckpointWriter CheckpointWriter;

typedef struct CheckpointPlan {
    const char *run_folder;
    int rank, ranks;
    int keep_last;       // committed checkpoints kept, the newest ones; at least 1
    int64_t keep_every;  // and those whose step is a multiple of it; 0: none
    const char *layout;  // of the ranks, for people: "data 2"
    uint64_t model;      // a hash of what makes a model the same; resume compares it
    uint64_t seed;
    const CheckpointTensor *tensors;
    int tensor_count;
    const CheckpointSlice *slices;  // of this rank; `data` must stay valid
    int slice_count;
    // Copies a slice's values to host memory while training stands still; NULL: they are read from `data`.
    void (*fetch)(void *context, const CheckpointSlice *slice, float *to);
    void *fetch_context;
} CheckpointPlan;

typedef enum CheckpointEvent {
    CHECKPOINT_NOTHING,
    CHECKPOINT_COMMITTED,  // the save is durable and will be found
    CHECKPOINT_FAILED,     // it is not; a warning was logged, the next save tries again
} CheckpointEvent;

// The snapshot's size in bytes on this rank, for the memory plan.
size_t checkpoint_snapshot_bytes(const CheckpointSlice *slices, int count);

// Copies the plan, allocates the snapshot, starts the thread. Rank 0 also creates the folder, takes its lock (a second run in
// the same folder is an error) and removes what unfinished saves left.
Error *checkpoint_writer_create(const CheckpointPlan *plan, CheckpointWriter **out) MUST_CHECK;

// Waits for this rank's thread and frees everything. A save that has not been committed by then is lost: see
// checkpoint_writer_wait. NULL is fine.
void checkpoint_writer_destroy(CheckpointWriter *writer);

// True where no save is under way. The same on all ranks after the same calls.
bool checkpoint_writer_idle(const CheckpointWriter *writer);

// Takes the snapshot of all slices, `state` (an object: data position, fingerprints ...; rank 0's is kept) and blobs (rank 0's
// are kept) and starts to write. Returns as soon as everything is copied. The writer must be idle. Collective in the sense that
// all ranks must call it for the same step.
void checkpoint_writer_begin(CheckpointWriter *writer, int64_t step, const json_t *state, const CheckpointBlob *blobs,
                             int count);

// This rank's state as numbers for an all-reduce by maximum, and what follows from the reduced numbers: rank 0 commits in
// the background once all have written; after a failure anywhere it removes the partial folder. Never blocks.
void checkpoint_writer_flags(CheckpointWriter *writer, double flags[CHECKPOINT_FLAGS]);
CheckpointEvent checkpoint_writer_advance(CheckpointWriter *writer, const double flags[CHECKPOINT_FLAGS]);

// Waits, with the other ranks of `world`, until no save is under way. *event (may be NULL) tells how the last one ended.
Error *checkpoint_writer_wait(CheckpointWriter *writer, Comm *world, CheckpointEvent *event) MUST_CHECK;

// Seconds: of the last snapshot (training stood still), and of the last committed save from begin to commit on this rank.
typedef struct CheckpointTime {
    double snapshot, save;
    int64_t bytes;  // this rank's file
} CheckpointTime;
CheckpointTime checkpoint_writer_time(const CheckpointWriter *writer);

// ---- reading ----

typedef struct Checkpoint Checkpoint;

// The newest checkpoint of a run that verifies: manifest readable, all files there with the right size and checksum. `folder`
// is the run's folder, or a checkpoint's own folder. *path is owned by the caller. Damaged ones are left alone; each adds a
// line to `skipped` (may be NULL) that says which and why. None at all: ERROR_MISSING; only damaged ones: ERROR_DAMAGED.
Error *checkpoint_find(const char *folder, char **path, Strings *skipped) MUST_CHECK;

// Opens a checkpoint folder: reads and checks its manifest; with `verify` also the size and checksum of every file.
Error *checkpoint_open(const char *path, bool verify, Checkpoint **out) MUST_CHECK;
void checkpoint_close(Checkpoint *checkpoint);

typedef struct CheckpointInfo {
    int64_t step;
    int ranks;
    const char *layout;
    uint64_t model, seed;
    const json_t *state;
    const CheckpointTensor *tensors;
    int tensor_count;
    int64_t bytes;  // of all files
} CheckpointInfo;
const CheckpointInfo *checkpoint_info(const Checkpoint *checkpoint);

// Index of a tensor, or -1. Whether all of its elements are there for a kind.
int checkpoint_tensor(const Checkpoint *checkpoint, const char *name);
bool checkpoint_has(const Checkpoint *checkpoint, const char *name, SliceKind kind);

// Reads elements [begin, end) of a logical tensor, from however many files hold them. A range that is not there is an error
// that names tensor, kind and range. May be called from any thread; calls exclude each other.
Error *checkpoint_read(Checkpoint *checkpoint, const char *name, SliceKind kind, int64_t begin, int64_t end,
                       float *out) MUST_CHECK;

// The bytes of a blob; ERROR_MISSING if there is none of that name. Its checksum is checked.
Error *checkpoint_blob(Checkpoint *checkpoint, const char *name, Buffer *out) MUST_CHECK;

// Appends what a person wants to know: step, ranks, layout, parameters, sizes, state, tensors; with `verify` whether it is
// whole. `path`: a run (all its checkpoints, one line each, then the newest) or one checkpoint. A damaged one is described as
// such and is an error too.
Error *checkpoint_describe(const char *path, bool verify, Buffer *out) MUST_CHECK;
