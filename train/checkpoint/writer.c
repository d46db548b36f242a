// Writing checkpoints in the background: see checkpoint.h.
//
// Phases, the same on all ranks after the same calls of begin and advance:
//
//     idle --begin--> writing --all ranks have written--> committing (rank 0's thread) --> idle: committed or failed
//                        \------a rank failed-----------> removing   (rank 0's thread) --> idle: failed
//
// Each rank's thread does one job at a time: prepare (touch the snapshot's memory), write, commit, remove. A rank's side file
// rank-R.json, written last and durably, says that its data is complete: size, checksum, slices. The commit trusts nothing
// else: it reads all of them, builds the manifest, checks that every tensor's weights are whole, and only then renames.
#include "train/checkpoint/folder.h"
#include "train/checkpoint/manifest.h"
#include "train/checkpoint/slices_h5.h"

#include "core/clock.h"
#include "core/durable.h"
#include "core/hash.h"
#include "core/log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

typedef enum Phase { PHASE_IDLE, PHASE_WRITING, PHASE_COMMITTING, PHASE_REMOVING } Phase;
typedef enum Job { JOB_NONE, JOB_PREPARE, JOB_WRITE, JOB_COMMIT, JOB_REMOVE, JOB_QUIT } Job;

enum { THREAD_NICE = 10, WAIT_US = 1000 };

typedef struct OwnBlob {
    char *name;
    Buffer bytes;
} OwnBlob;

struct CheckpointWriter {
    // The plan, copied.
    char *folder, *layout;
    int rank, ranks, keep_last;
    int64_t keep_every;
    uint64_t model, seed;
    CheckpointTensor *tensors;
    CheckpointSlice *slices;
    int tensor_count, slice_count;
    void (*fetch)(void *context, const CheckpointSlice *slice, float *to);
    void *fetch_context;
    int lock;  // descriptor, rank 0

    // The snapshot: written by begin, read by the thread while it writes.
    char *snapshot;
    size_t snapshot_bytes;
    size_t *snapshot_at;  // of each slice
    int64_t step;
    json_t *state;
    OwnBlob *blobs;
    int blob_count;

    Phase phase;
    double begun;
    CheckpointTime time;

    // Between the threads.
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    Job job;
    Error *error;  // of the last job
};

size_t checkpoint_snapshot_bytes(const CheckpointSlice *slices, int count) {
    size_t bytes = 0;
    for (int i = 0; i < count; i++) {
        bytes += ((size_t)(slices[i].end - slices[i].begin) * sizeof(float) + 63) / 64 * 64;
    }
    return bytes;
}

// ---- the thread: writing ----

// Writes the snapshot of each slice to its place in the file that HDF5 has laid out.
static Error *write_numbers(CheckpointWriter *w, const char *path, const H5Slice *layout, int64_t bytes) {
    int descriptor = open(path, O_WRONLY | O_CLOEXEC);
    if (descriptor < 0) {
        return error_system(errno, "%s cannot be opened", path);
    }
    Error *error = NULL;
    // All space is taken before the first byte, so that a full disk is found at once. Some file systems cannot.
    if (fallocate(descriptor, 0, 0, bytes) != 0 && errno != EOPNOTSUPP && errno != ENOSYS) {
        error = error_system(errno, "%s cannot be written", path);
    }
    checkpoint_reached("space taken");
    for (int i = 0; i < w->slice_count && error == NULL; i++) {
        if (lseek(descriptor, layout[i].offset, SEEK_SET) < 0) {
            error = error_system(errno, "%s cannot be written", path);
        } else {
            error = file_write_all(descriptor, path, w->snapshot + w->snapshot_at[i], (size_t)layout[i].count * sizeof(float));
        }
        checkpoint_reached("slice written");
    }
    if (error == NULL && fsync(descriptor) != 0) {
        error = error_system(errno, "%s cannot be made durable", path);
    }
    if (close(descriptor) != 0 && error == NULL) {
        error = error_system(errno, "%s cannot be closed", path);
    }
    return error;
}

// The HDF5 file of this rank, and its part of the manifest.
static Error *write_slices(CheckpointWriter *w, const char *partial, json_t *files, json_t *slices) {
    char name[32];
    store_rank_file(name, w->rank, "h5");
    char *path = path_join(partial, name);
    H5Slice *layout = memory_zeroed((size_t)w->slice_count, sizeof *layout);
    for (int i = 0; i < w->slice_count; i++) {
        const CheckpointSlice *slice = &w->slices[i];
        const CheckpointTensor *tensor = &w->tensors[slice->tensor];
        layout[i] = (H5Slice){.path = manifest_dataset(tensor, slice),
                              .count = slice->end - slice->begin,
                              .begin = slice->begin,
                              .dims = tensor->dims,
                              .shape = tensor->shape};
        json_array_append_new(slices, manifest_slice_json(tensor, slice, name, layout[i].path));
    }
    int64_t bytes = 0, hashed = 0;
    uint64_t hash = 0;
    Error *error = h5_create(path, layout, w->slice_count, &bytes);
    checkpoint_reached("structure written");
    if (error == NULL) {
        error = write_numbers(w, path, layout, bytes);
    }
    checkpoint_reached("file durable");
    if (error == NULL) {
        error = h5_locate(path, layout, w->slice_count);  // a reader will find everything
    }
    if (error == NULL) {
        error = file_hash(path, &hashed, &hash);
    }
    if (error == NULL && hashed != bytes) {
        error = failure("%s has %" PRId64 " bytes after writing %" PRId64, path, hashed, bytes);
    }
    if (error == NULL) {
        w->time.bytes = bytes;
        json_array_append_new(files, manifest_file_json(name, bytes, hash));
    }
    for (int i = 0; i < w->slice_count; i++) {
        free((char *)(uintptr_t)layout[i].path);
    }
    free(layout);
    free(path);
    return error;
}

static Error *write_blobs(CheckpointWriter *w, const char *partial, json_t *files) {
    Error *error = NULL;
    for (int i = 0; i < w->blob_count && error == NULL; i++) {
        const OwnBlob *blob = &w->blobs[i];
        char *path = path_join(partial, blob->name);
        error = file_write(path, blob->bytes.data, blob->bytes.size);
        free(path);
        uint64_t hash = hash64(blob->bytes.data, blob->bytes.size);
        json_array_append_new(files, manifest_file_json(blob->name, (int64_t)blob->bytes.size, hash));
        checkpoint_reached("blob durable");
    }
    return error;
}

static Error *write_job(CheckpointWriter *w) {
    char *partial = store_partial(w->folder, w->step), side_name[32];
    store_rank_file(side_name, w->rank, "json");
    char *side_path = path_join(partial, side_name);
    json_t *files = json_array(), *slices = json_array();
    Error *error = folder_create(partial);
    checkpoint_reached("folder made");
    if (error == NULL) {
        error = write_slices(w, partial, files, slices);
    }
    if (error == NULL) {
        error = write_blobs(w, partial, files);
    }
    if (error == NULL) {
        json_t *side = json_pack("{s:I, s:i, s:i, s:O, s:O}", "step", (json_int_t)w->step, "rank", w->rank, "ranks", w->ranks,
                                 "files", files, "slices", slices);
        error = json_write_file(side_path, side);
        json_decref(side);
        checkpoint_reached("side file durable");
    }
    json_decref(files);
    json_decref(slices);
    free(side_path);
    free(partial);
    return error;
}

// ---- the thread of rank 0: committing ----

// Reads a rank's side file and moves its lists to the manifest's.
static Error *collect_rank(CheckpointWriter *w, const char *partial, int rank, json_t *files, json_t *slices) {
    char name[32];
    store_rank_file(name, rank, "json");
    char *path = path_join(partial, name);
    json_t *side = NULL, *list = NULL;
    int64_t value;
    Error *error = json_read_file(path, MANIFEST_MOST_BYTES, &side);
    if (error == NULL) {
        error = json_field_i64(side, path, "step", w->step, w->step, &value);
    }
    if (error == NULL) {
        error = json_field_i64(side, path, "rank", rank, rank, &value);
    }
    if (error == NULL) {
        error = json_field_i64(side, path, "ranks", w->ranks, w->ranks, &value);
    }
    if (error == NULL && (error = json_field_array(side, path, "files", &list)) == NULL) {
        json_array_extend(files, list);
    }
    if (error == NULL && (error = json_field_array(side, path, "slices", &list)) == NULL) {
        json_array_extend(slices, list);
    }
    json_decref(side);
    free(path);
    return error;
}

// Every file there with its size, every tensor's weights whole, and every other kind whole or absent.
static Error *check_whole(const Manifest *m, const char *partial) {
    for (int i = 0; i < m->file_count; i++) {
        struct stat info;
        char *path = path_join(partial, m->files[i].name);
        Error *error = NULL;
        if (stat(path, &info) != 0) {
            error = error_system(errno, "%s cannot be read", path);
        } else if (info.st_size != m->files[i].bytes) {
            error = failure("%s has %lld bytes, not the %" PRId64 " that were written", path, (long long)info.st_size,
                            m->files[i].bytes);
        }
        free(path);
        TRY(error);
    }
    for (int t = 0; t < m->tensor_count; t++) {
        for (int kind = 0; kind < SLICE_KINDS; kind++) {
            bool absent = manifest_slice_after(m, t, (SliceKind)kind, 0) == m->slice_count;
            int64_t missing = manifest_missing(m, t, (SliceKind)kind, 0, m->elements[t]);
            if (missing >= 0 && (kind == SLICE_WEIGHT || !absent)) {
                return failure("no rank wrote element %" PRId64 " of %s %s", missing, slice_kind_name((SliceKind)kind),
                               m->tensors[t].name);
            }
        }
    }
    return NULL;
}

static Error *remove_side_files(const CheckpointWriter *w, const char *partial) {
    Error *error = NULL;
    for (int r = 0; r < w->ranks && error == NULL; r++) {
        char name[32];
        store_rank_file(name, r, "json");
        char *path = path_join(partial, name);
        error = folder_remove(path);
        free(path);
    }
    return error;
}

static Error *commit_manifest(CheckpointWriter *w, const char *partial) {
    json_t *files = json_array(), *slices = json_array();
    Error *error = NULL;
    for (int r = 0; r < w->ranks && error == NULL; r++) {
        error = collect_rank(w, partial, r, files, slices);
    }
    char stamp[24], *path = path_join(partial, MANIFEST_NAME);
    json_t *document =
        json_pack("{s:s, s:i, s:I, s:i, s:s, s:s, s:o, s:o, s:O, s:o, s:o, s:o}", "format", "athanor checkpoint", "version",
                  MANIFEST_VERSION, "step", (json_int_t)w->step, "ranks", w->ranks, "layout", w->layout, "created",
                  clock_stamp(stamp), "model", json_hex64(w->model), "seed", json_hex64(w->seed), "state", w->state, "tensors",
                  manifest_tensors_json(w->tensors, w->tensor_count), "files", files, "slices", slices);
    ensure(document != NULL, "the manifest of %s cannot be made", partial);
    if (error != NULL) {
        json_decref(document);
    } else {
        // What a reader would refuse is refused here.
        Manifest manifest;
        error = manifest_from_json(path, document, &manifest);
        if (error == NULL) {
            error = check_whole(&manifest, partial);
            if (error == NULL) {
                error = json_write_file(path, document);
                checkpoint_reached("manifest durable");
            }
            manifest_free(&manifest);
        }
    }
    free(path);
    return error;
}

static Error *commit_job(CheckpointWriter *w) {
    char *partial = store_partial(w->folder, w->step);
    Error *error = commit_manifest(w, partial);
    if (error == NULL) {
        error = remove_side_files(w, partial);
    }
    if (error == NULL) {
        error = file_sync(partial);
    }
    checkpoint_reached("before the rename");
    if (error == NULL) {
        error = store_publish(w->folder, w->step);
    }
    checkpoint_reached("committed");
    if (error != NULL) {
        error_free(folder_remove(partial));
    } else {
        Error *old = store_retain(w->folder, w->step, w->keep_last, w->keep_every);
        if (old != NULL) {
            log_warning("an old checkpoint stays: %s", old->message);  // the new one is safe
            error_free(old);
        }
        checkpoint_reached("old ones removed");
    }
    free(partial);
    return error;
}

static Error *remove_job(CheckpointWriter *w) {
    char *partial = store_partial(w->folder, w->step);
    Error *error = folder_remove(partial);
    free(partial);
    return error;
}

static Error *prepare_job(CheckpointWriter *w) {
    // Touches every page, so that the first snapshot does not stand still for the kernel to find memory.
    memset(w->snapshot, 0, w->snapshot_bytes);
    return NULL;
}

static void *thread_main(void *context) {
    CheckpointWriter *w = context;
    setpriority(PRIO_PROCESS, (id_t)gettid(), THREAD_NICE);  // the step in front matters more
    for (;;) {
        pthread_mutex_lock(&w->mutex);
        while (w->job == JOB_NONE) {
            pthread_cond_wait(&w->changed, &w->mutex);
        }
        Job job = w->job;
        pthread_mutex_unlock(&w->mutex);
        if (job == JOB_QUIT) {
            return NULL;
        }
        Error *error = job == JOB_PREPARE  ? prepare_job(w)
                       : job == JOB_WRITE  ? write_job(w)
                       : job == JOB_COMMIT ? commit_job(w)
                                           : remove_job(w);
        pthread_mutex_lock(&w->mutex);
        w->error = error;
        w->job = JOB_NONE;
        pthread_cond_broadcast(&w->changed);
        pthread_mutex_unlock(&w->mutex);
    }
}

static void post(CheckpointWriter *w, Job job) {
    pthread_mutex_lock(&w->mutex);
    while (w->job != JOB_NONE) {
        pthread_cond_wait(&w->changed, &w->mutex);
    }
    w->job = job;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->mutex);
}

static void wait_for_thread(CheckpointWriter *w) {
    pthread_mutex_lock(&w->mutex);
    while (w->job != JOB_NONE) {
        pthread_cond_wait(&w->changed, &w->mutex);
    }
    pthread_mutex_unlock(&w->mutex);
}

// ---- what the trainer calls ----

static void check_plan(const CheckpointPlan *plan) {
    ensure(plan->ranks >= 1 && plan->ranks <= MANIFEST_MOST_RANKS && plan->rank >= 0 && plan->rank < plan->ranks,
           "rank %d of %d", plan->rank, plan->ranks);
    ensure(plan->keep_last >= 1 && plan->keep_every >= 0, "keep %d, every %lld", plan->keep_last, (long long)plan->keep_every);
    for (int t = 0; t < plan->tensor_count; t++) {
        ensure(manifest_plain_name(plan->tensors[t].name), "tensor name '%s'", plan->tensors[t].name);
        ensure(plan->tensors[t].dims >= 0 && plan->tensors[t].dims <= CHECKPOINT_MOST_DIMS, "%d dims", plan->tensors[t].dims);
    }
    for (int i = 0; i < plan->slice_count; i++) {
        const CheckpointSlice *slice = &plan->slices[i];
        ensure(slice->tensor >= 0 && slice->tensor < plan->tensor_count, "tensor %d", slice->tensor);
        ensure(slice->begin >= 0 && slice->begin < slice->end, "slice of %s: %lld to %lld", plan->tensors[slice->tensor].name,
               (long long)slice->begin, (long long)slice->end);
    }
}

// fsync of the folder that holds `path`.
static Error *sync_above(const char *path) {
    char *folder = path_folder(path);
    Error *error = file_sync(folder);
    free(folder);
    return error;
}

static Error *open_store(CheckpointWriter *w, const char *run_folder) {
    TRY(folder_create(w->folder));
    if (w->rank != 0) {
        return NULL;
    }
    // A commit syncs the folder of checkpoints; the names that lead to it are made durable here.
    TRY(sync_above(w->folder));
    TRY(sync_above(run_folder));
    TRY(store_lock(w->folder, &w->lock));
    return store_clean(w->folder);
}

Error *checkpoint_writer_create(const CheckpointPlan *plan, CheckpointWriter **out) {
    check_plan(plan);
    *out = NULL;
    CheckpointWriter *w = memory_zeroed(1, sizeof *w);
    w->folder = store_folder(plan->run_folder);
    w->layout = memory_string(plan->layout);
    w->rank = plan->rank;
    w->ranks = plan->ranks;
    w->keep_last = plan->keep_last;
    w->keep_every = plan->keep_every;
    w->model = plan->model;
    w->seed = plan->seed;
    w->lock = -1;
    w->tensor_count = plan->tensor_count;
    w->tensors = memory_new((size_t)plan->tensor_count, sizeof *w->tensors);
    for (int t = 0; t < plan->tensor_count; t++) {
        w->tensors[t] = plan->tensors[t];
        w->tensors[t].name = memory_string(plan->tensors[t].name);
    }
    w->fetch = plan->fetch;
    w->fetch_context = plan->fetch_context;
    w->slice_count = plan->slice_count;
    w->slices = memory_new((size_t)plan->slice_count, sizeof *w->slices);
    w->snapshot_at = memory_new((size_t)plan->slice_count, sizeof *w->snapshot_at);
    for (int i = 0; i < plan->slice_count; i++) {
        w->slices[i] = plan->slices[i];
        w->snapshot_at[i] = checkpoint_snapshot_bytes(plan->slices, i);
    }
    w->snapshot_bytes = checkpoint_snapshot_bytes(plan->slices, plan->slice_count);
    w->snapshot = memory_tensor(w->snapshot_bytes);
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->changed, NULL);
    w->job = JOB_PREPARE;
    Error *error = open_store(w, plan->run_folder);
    int failed = error == NULL ? pthread_create(&w->thread, NULL, thread_main, w) : 0;
    if (failed != 0) {
        error = error_system(failed, "the thread that writes checkpoints cannot be started");
    }
    if (error != NULL) {
        w->job = JOB_QUIT;  // no thread to end
        checkpoint_writer_destroy(w);
        return error;
    }
    *out = w;
    return NULL;
}

static void drop_step(CheckpointWriter *w) {
    json_decref(w->state);
    w->state = NULL;
    for (int i = 0; i < w->blob_count; i++) {
        free(w->blobs[i].name);
        buffer_free(&w->blobs[i].bytes);
    }
    free(w->blobs);
    w->blobs = NULL;
    w->blob_count = 0;
}

void checkpoint_writer_destroy(CheckpointWriter *w) {
    if (w == NULL) {
        return;
    }
    if (w->job != JOB_QUIT) {
        post(w, JOB_QUIT);
        pthread_join(w->thread, NULL);
    }
    error_free(w->error);
    drop_step(w);
    for (int t = 0; t < w->tensor_count; t++) {
        free((char *)(uintptr_t)w->tensors[t].name);
    }
    if (w->lock >= 0) {
        close(w->lock);
    }
    pthread_mutex_destroy(&w->mutex);
    pthread_cond_destroy(&w->changed);
    memory_tensor_free(w->snapshot, w->snapshot_bytes);
    free(w->tensors);
    free(w->slices);
    free(w->snapshot_at);
    free(w->folder);
    free(w->layout);
    free(w);
}

bool checkpoint_writer_idle(const CheckpointWriter *w) {
    return w->phase == PHASE_IDLE;
}

void checkpoint_writer_begin(CheckpointWriter *w, int64_t step, const json_t *state, const CheckpointBlob *blobs, int count) {
    ensure(w->phase == PHASE_IDLE, "a save is under way");
    ensure(json_is_object(state) && step >= 0, "step %lld", (long long)step);
    w->begun = clock_seconds();
    wait_for_thread(w);  // only ever for the first touch of the snapshot's memory
    drop_step(w);
    w->step = step;
    for (int i = 0; i < w->slice_count; i++) {
        const CheckpointSlice *slice = &w->slices[i];
        char *to = w->snapshot + w->snapshot_at[i];
        if (w->fetch != NULL) {
            w->fetch(w->fetch_context, slice, (float *)(void *)to);
        } else {
            memcpy(to, slice->data, (size_t)(slice->end - slice->begin) * sizeof(float));
        }
    }
    if (w->rank == 0) {
        w->state = json_deep_copy(state);
        w->blobs = memory_zeroed((size_t)count, sizeof *w->blobs);
        w->blob_count = count;
        for (int i = 0; i < count; i++) {
            ensure(manifest_plain_name(blobs[i].name) && strncmp(blobs[i].name, "rank-", 5) != 0 &&
                       strcmp(blobs[i].name, MANIFEST_NAME) != 0,
                   "blob name '%s'", blobs[i].name);
            w->blobs[i].name = memory_string(blobs[i].name);
            buffer_append(&w->blobs[i].bytes, blobs[i].bytes, blobs[i].size);
        }
    }
    w->time.snapshot = clock_seconds() - w->begun;
    w->phase = PHASE_WRITING;
    post(w, JOB_WRITE);
}

void checkpoint_writer_flags(CheckpointWriter *w, double flags[CHECKPOINT_FLAGS]) {
    pthread_mutex_lock(&w->mutex);
    flags[0] = w->phase != PHASE_IDLE && w->job != JOB_NONE;
    flags[1] = w->job == JOB_NONE && w->error != NULL;
    pthread_mutex_unlock(&w->mutex);
}

// Says why this rank's part of the save failed, once.
static void report_failure(CheckpointWriter *w) {
    if (w->error != NULL) {
        log_warning("the checkpoint of step %" PRId64 " was not saved: %s", w->step, w->error->message);
        error_free(w->error);
        w->error = NULL;
    }
}

CheckpointEvent checkpoint_writer_advance(CheckpointWriter *w, const double flags[CHECKPOINT_FLAGS]) {
    if (w->phase == PHASE_IDLE || flags[0] > 0) {
        return CHECKPOINT_NOTHING;
    }
    bool failed = flags[1] > 0;
    report_failure(w);
    if (w->phase == PHASE_WRITING) {
        w->phase = failed ? PHASE_REMOVING : PHASE_COMMITTING;
        if (w->rank == 0) {
            post(w, failed ? JOB_REMOVE : JOB_COMMIT);
        }
        return CHECKPOINT_NOTHING;
    }
    bool committed = w->phase == PHASE_COMMITTING && !failed;
    w->phase = PHASE_IDLE;
    if (committed) {
        w->time.save = clock_seconds() - w->begun;
    }
    return committed ? CHECKPOINT_COMMITTED : CHECKPOINT_FAILED;
}

Error *checkpoint_writer_wait(CheckpointWriter *w, Comm *world, CheckpointEvent *event) {
    CheckpointEvent last = CHECKPOINT_NOTHING;
    while (w->phase != PHASE_IDLE) {
        double flags[CHECKPOINT_FLAGS];
        checkpoint_writer_flags(w, flags);
        TRY(comm_all_reduce_doubles(world, flags, CHECKPOINT_FLAGS, COMM_MAX));
        last = checkpoint_writer_advance(w, flags);
        if (w->phase != PHASE_IDLE) {
            usleep(WAIT_US);
        }
    }
    if (event != NULL) {
        *event = last;
    }
    return NULL;
}

CheckpointTime checkpoint_writer_time(const CheckpointWriter *w) {
    return w->time;
}
