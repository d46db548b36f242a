// Checkpoints: a set of parts of logical tensors, whole or absent.
//
//     RUN/checkpoints/step-00001000/
//         manifest.json      what is in it: tensors, digests, parts, sizes and checksums of all files (manifest.h)
//         rank-00000.h5      the parts that rank 0 owns, contiguous HDF5 datasets /KIND/NAME (docs/checkpoints.md)
//         rank-00001.h5      ...
//         metrics.jsonl ...  the caller's blobs, one file each
//
// A tensor's content of one kind ("weight", "moment1", ...) is cut into boxes (core/box.h): each rank writes those that it
// owns, together they are all of it. A reader asks for any other boxes, so any layout reads any checkpoint. Every content has a
// digest of its logical values (core/digest.h), which no layout changes: a reader compares it with what it holds in the end.
//
// A save is a snapshot (the only time that training stands still), files written and fsynced by a background thread of each
// rank in step-N.partial, read back and compared by another rank's, and a commit by rank 0: manifest, rename, fsync. What did
// not commit does not exist. A save that fails for a reason that may pass is tried again from the same snapshot.
//
// The trainer drives a save without waiting, on every rank, with the scalars it all-reduces each step anyway:
//
//     if (time to save && checkpoint_writer_idle(writer)) checkpoint_writer_begin(writer, run, step, state, blobs, count);
//     ...
//     double flags[CHECKPOINT_FLAGS];
//     checkpoint_writer_flags(writer, flags);
//     comm_all_reduce_doubles(world, flags, CHECKPOINT_FLAGS, COMM_MAX);      (together with its own scalars)
//     CheckpointEvent event = checkpoint_writer_advance(writer, flags);
//
// and at the end of the run checkpoint_writer_wait(writer, world).
#pragma once

#include "core/box.h"
#include "core/data_type.h"
#include "core/json.h"
#include "parallel/comm.h"

enum { CHECKPOINT_FLAGS = 2 };

// A logical tensor of the model, the same list in the same order on all ranks. Names: 1 to 200 of [A-Za-z0-9._-], not beginning
// with a dot, all different.
typedef struct CheckpointTensor {
    const char *name;
    int dims;
    int64_t shape[BOX_MOST_DIMS];
} CheckpointTensor;

// What one rank has of one kind of a tensor: the elements of its boxes, one box after the other. Kinds are words, 1 to 32 of
// [a-z0-9_]: "weight" is what a model is, every other ("moment1", "moment2") comes and goes with the optimizer. A rank has at
// most one part of a tensor and kind; the parts of all ranks do not overlap and are all of the tensor, or there are none (SGD
// has no second moments). Of a type with scales a part's boxes hold whole blocks of DATA_TYPE_BLOCK neighbours of the row-major
// tensor, in rising order; its last block may be short.
typedef struct CheckpointPart {
    int tensor;  // index into the tensors
    const char *kind;
    DataType type;
    const Box *boxes;
    int box_count;
} CheckpointPart;

// What a checkpoint builds upon and does not contain: weights of tensors that have none in it. `path` is a hint for people.
typedef struct CheckpointBase {
    uint64_t fingerprint;
    const char *path;
} CheckpointBase;

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
    int keep_last;       // committed checkpoints kept, the newest ones that are good (retention.h); at least 1
    int64_t keep_every;  // and those whose step is a multiple of it; 0: none
    // Whether the model of a checkpoint with that state was made by steps that learned. It is called in the thread that writes.
    // NULL: all were.
    bool (*learned)(const json_t *state);
    int64_t total_bytes;  // of one save over all ranks; 0: not known
    const char *layout;   // of the ranks, for people: "data 2"
    uint64_t model;       // a hash of what makes a model the same; resume compares it
    uint64_t seed;
    const CheckpointTensor *tensors;
    int tensor_count;
    const CheckpointPart *parts;  // of this rank
    int part_count;
    const CheckpointBase *base;  // NULL: every tensor has its weights here
    // Copies a part's elements, in the part's type and the boxes' order, to host memory while training stands still, and the
    // scales of its blocks (NULL where the type has none).
    void (*fetch)(void *context, const CheckpointPart *part, void *to, float *scales);
    void *fetch_context;
} CheckpointPlan;

typedef enum CheckpointEvent {
    CHECKPOINT_NOTHING,
    CHECKPOINT_COMMITTED,  // the save is durable and will be found
    CHECKPOINT_FAILED,     // it is not, after several attempts where that could help; warnings were logged
} CheckpointEvent;

// The snapshot's size in bytes on this rank, for the memory plan.
size_t checkpoint_snapshot_bytes(const CheckpointPart *parts, int count);

// Copies the plan (what fetch_context points at stays the caller's), allocates the snapshot, lays the rank's file out, starts
// the thread. Rank 0 also creates the folder, takes its lock (a second run in the same folder is an error that names it),
// removes what unfinished saves left, and sees whether a save can succeed: that the folder can be written, and that there is
// room for total_bytes, are needed; room for less than keep_last + 1 saves is a warning.
Error *checkpoint_writer_create(const CheckpointPlan *plan, CheckpointWriter **out) MUST_CHECK;

// Waits for this rank's thread and frees everything. A save that has not been committed by then is lost: see
// checkpoint_writer_wait. NULL is fine.
void checkpoint_writer_destroy(CheckpointWriter *writer);

// True where no save is under way. The same on all ranks after the same calls.
bool checkpoint_writer_idle(const CheckpointWriter *writer);

// Takes the snapshot of all parts, the run's identity `run` (not 0: which course of training it is, kept over resumes; rank 0's
// counts), `state` (an object: data position, fingerprints ...; rank 0's is kept) and blobs (rank 0's are kept) and starts to
// write. Returns as soon as everything is copied. The writer must be idle. Collective in the sense that all ranks must call it
// for the same step.
void checkpoint_writer_begin(CheckpointWriter *writer, uint64_t run, int64_t step, const json_t *state,
                             const CheckpointBlob *blobs, int count);

// This rank's state as numbers for an all-reduce by maximum, and what follows from the reduced numbers: rank 0 commits in
// the background once all have written and read back; after a failure anywhere it removes the partial folder. Never blocks.
void checkpoint_writer_flags(CheckpointWriter *writer, double flags[CHECKPOINT_FLAGS]);
CheckpointEvent checkpoint_writer_advance(CheckpointWriter *writer, const double flags[CHECKPOINT_FLAGS]);

// Waits, with the other ranks of `world`, until no save is under way. *event (may be NULL) tells how the last one ended.
Error *checkpoint_writer_wait(CheckpointWriter *writer, Comm *world, CheckpointEvent *event) MUST_CHECK;

// Seconds: of the last snapshot (training stood still), of the last committed save from begin to commit, and within it until
// this rank's file was durable and while it read another's back.
typedef struct CheckpointTime {
    double snapshot, save, write, check;
    int64_t bytes;  // this rank's file
} CheckpointTime;
CheckpointTime checkpoint_writer_time(const CheckpointWriter *writer);

// ---- reading ----

typedef struct Checkpoint Checkpoint;

// The newest checkpoint of a run, of a step before `before` (INT64_MAX: of any), that verifies: manifest readable and of the
// folder's step, all files there with the right size and checksum, of the course of training `run` (0: of any). One of version
// 1 does not say its run: it is taken, unless an older checkpoint of the folder is of `run`, which then began before the
// newer one was written. `folder` is the run's folder, or a checkpoint's own folder, where `before` and `run` do not count.
// *path is owned by the caller. What is passed over is left alone and adds a line to `skipped` (may be NULL) that says which
// and why.
//
// No checkpoint in the folder at all: ERROR_MISSING. None before `before` that can be taken: ERROR_DAMAGED. What cannot be read
// now, after some seconds, may be good, so it ends the search: ERROR_UNREADABLE. One that another process removes in the
// meantime is not missed: the search begins anew.
Error *checkpoint_find(const char *folder, int64_t before, uint64_t run, char **path, Strings *skipped) MUST_CHECK;

// The course of training that a run's folder is of: "id" of its run.json; 0 where there is none, or, with a warning, where it
// is damaged.
Error *checkpoint_run_of(const char *folder, uint64_t *run) MUST_CHECK;

// Opens a checkpoint folder: reads and checks its manifest and the sizes of its files; with `verify` also their checksums.
// ERROR_MISSING: the whole folder is not there; a file that is missing in it is ERROR_DAMAGED.
Error *checkpoint_open(const char *path, bool verify, Checkpoint **out) MUST_CHECK;
// The same for all ranks of `world` together: rank 0 alone reads the manifest and looks at the files, for thousands that ask a
// file system for one record at once are what it is slowest at. All have the same one, or all the same error.
Error *checkpoint_open_shared(Comm *world, const char *path, Checkpoint **out) MUST_CHECK;
void checkpoint_close(Checkpoint *checkpoint);

// Looks at all checksums, unless this process has found them right before, here or with `verify`, under the same manifest.
// ERROR_DAMAGED where it has found the checkpoint damaged in another way. Retention asks this.
Error *checkpoint_whole(Checkpoint *checkpoint) MUST_CHECK;
// What checkpoint_whole shall answer from now on: the files were read back by those who wrote them; or what is in them is wrong
// in a way that checksums do not show. A digest that differs (checkpoint_compare) is noted by itself.
void checkpoint_known_whole(const Checkpoint *checkpoint);
void checkpoint_known_damaged(const Checkpoint *checkpoint);

// Reads all that is in it and compares it with the digests: what a resume would find only while it loads. Checkpoints of
// version 1 have none; of them all datasets must be there.
Error *checkpoint_check_contents(Checkpoint *checkpoint) MUST_CHECK;

// Reads every byte of a checkpoint and adds to `wrong` what is not as its manifest says, a line each: the file, and after it
// the tensors in it that differ; none where all is whole. An error is what says nothing of the checkpoint: it is not there, or
// cannot be read now.
Error *checkpoint_verify(const char *path, Strings *wrong) MUST_CHECK;

typedef struct CheckpointInfo {
    uint64_t run;  // 0: written before runs had an identity
    int64_t step;
    int ranks;
    const char *layout, *created;  // "2026-01-31T12:34:56Z"
    uint64_t model, seed;
    const json_t *state;
    const CheckpointBase *base;  // NULL where it is complete in itself
    const CheckpointTensor *tensors;
    int tensor_count;
    int64_t bytes;  // of all files
} CheckpointInfo;
const CheckpointInfo *checkpoint_info(const Checkpoint *checkpoint);

// Index of a tensor, or -1. Whether a kind of it can be read, here or from the base that is attached.
int checkpoint_tensor(const Checkpoint *checkpoint, const char *name);
bool checkpoint_has(const Checkpoint *checkpoint, const char *name, const char *kind);

// The kinds that a tensor has here, "weight" first: the index-th, and through *type the type of its elements; NULL after the
// last.
const char *checkpoint_kind(const Checkpoint *checkpoint, int tensor, int index, DataType *type);

// The digest of a kind of a tensor (core/digest.h: of the fp32 values that its elements stand for). False where there is none:
// checkpoints of version 1 have no digests.
bool checkpoint_digest(const Checkpoint *checkpoint, const char *name, const char *kind, uint64_t *out);

// What makes two models' weights the same, whatever the layout and however their elements are stored: a hash of all names,
// shapes and digests of weights in the order of names (manifest.h). False where there are no digests.
bool checkpoint_fingerprint(const Checkpoint *checkpoint, uint64_t *out);

// Reads weights that `checkpoint` does not contain from `base` from now on, which must be the one that it names and stays the
// caller's and open. An error names both. Waits for its first caller: adapters saved without what they adapt.
Error *checkpoint_attach_base(Checkpoint *checkpoint, Checkpoint *base) MUST_CHECK;

// Reads boxes of a logical tensor into out[0 ..] in the list's order, exactly as the fp32 values that they stand for, from
// however many files hold them. What is not there is an error that names tensor and kind. ERROR_MISSING: another process
// removed the checkpoint. May be called from any thread; calls exclude each other.
Error *checkpoint_read(Checkpoint *checkpoint, const char *name, const char *kind, const Box *boxes, int count,
                       float *out) MUST_CHECK;

// Compares what somebody holds of a whole tensor with its digest: `read` copies boxes of what is held, piece by piece. Holding
// something else is an ERROR_DAMAGED that names tensor and kind; a tensor without a digest passes.
Error *checkpoint_compare(const Checkpoint *checkpoint, const char *name, const char *kind,
                          void (*read)(void *context, const Box *boxes, int count, float *to), void *context) MUST_CHECK;

// The same where the digest of what is held is known.
Error *checkpoint_compare_digest(const Checkpoint *checkpoint, const char *name, const char *kind, uint64_t digest) MUST_CHECK;

// The bytes of a blob; ERROR_MISSING if there is none of that name. Its checksum is checked.
Error *checkpoint_blob(Checkpoint *checkpoint, const char *name, Buffer *out) MUST_CHECK;

// Appends what a person wants to know: step, ranks, layout, parameters, sizes, state, tensors; with `verify` whether it is
// whole. `path`: a run (all its checkpoints, one line each, then the newest) or one checkpoint. A damaged one is described as
// such and is an error too.
Error *checkpoint_describe(const char *path, bool verify, Buffer *out) MUST_CHECK;
