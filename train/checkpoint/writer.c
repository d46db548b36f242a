// Writing checkpoints in the background: see checkpoint.h.
//
// Phases, the same on all ranks after the same calls of begin and advance:
//
//     idle --begin--> writing --> checking --> committing (rank 0's thread) --> idle: committed
//                        ^           |             |
//                        |           a rank failed in any of them
//                        |           v
//                        +------ removing   (rank 0's thread) --> idle: failed
//
// Each goes to the next when all ranks are done. From removing a save goes back to writing, of the same snapshot and after a
// pause, where all that failed it may pass (EIO, a stale handle, a full disk) and attempts are left; so a failed write costs no
// checkpoint and no step.
//
// The thread is as important as any: it mostly waits for the disk, and what it computes (a copy, a hash and a digest of each
// byte) is computed some time in any case. A nicer one next to threads that never rest is kept from asking the disk for more,
// and a save takes many times as long.
//
// Each rank's thread does one job at a time: prepare (touch the snapshot's memory), write, check (read back what another rank
// wrote), commit, remove. A rank's side file
// rank-R.json, written last and durably, says that its data is complete: size, checksum, parts with their digests. The commit
// trusts nothing else: it reads all of them, builds the manifest, checks that every tensor's weights are whole, and only then
// renames.
#include "train/checkpoint/manifest.h"
#include "train/checkpoint/part.h"
#include "train/checkpoint/parts_h5.h"
#include "train/checkpoint/retention.h"
#include "train/checkpoint/steps.h"
#include "train/checkpoint/stream_file.h"

#include "core/clock.h"
#include "core/durable.h"
#include "core/hash.h"
#include "core/log.h"
#include "core/text.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

typedef enum Phase { PHASE_IDLE, PHASE_WRITING, PHASE_CHECKING, PHASE_COMMITTING, PHASE_REMOVING } Phase;
typedef enum Job { JOB_NONE, JOB_PREPARE, JOB_WRITE, JOB_CHECK, JOB_COMMIT, JOB_REMOVE, JOB_QUIT } Job;

enum { WAIT_US = 1000, MOST_ATTEMPTS = 5 };

typedef struct OwnBlob {
    char *name;
    Buffer bytes;
} OwnBlob;

// A part, and where its elements and scales lie in the snapshot.
typedef struct OwnPart {
    CheckpointPart part;
    int64_t count;
    size_t elements_at, scales_at;
} OwnPart;

struct CheckpointWriter {
    // The plan, copied.
    char *folder, *layout;
    int rank, ranks;
    Retention retention;  // of the run that saves
    uint64_t model, seed;
    CheckpointTensor *tensors;
    OwnPart *parts;
    int tensor_count, part_count;
    CheckpointBase *base;  // NULL: none
    void (*fetch)(void *context, const CheckpointPart *part, void *to, float *scales);
    void *fetch_context;
    int lock;  // descriptor, rank 0

    H5Layout file;       // what the rank's file has beside the snapshot's numbers
    size_t *numbers_at;  // of each of its datasets: where they lie in the snapshot

    // The snapshot: written by begin, read by the thread while it writes.
    char *snapshot;
    size_t snapshot_bytes;
    uint64_t run;
    int64_t step;
    json_t *state;
    OwnBlob *blobs;
    int blob_count;

    Phase phase;
    int attempt;  // of this save, from 0
    bool again;   // what failed may pass: another attempt follows
    double begun;
    CheckpointTime time;

    // Between the threads.
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    Job job;
    Error *error;  // of the last job
    _Atomic bool leaving;
};

// Bytes of a piece of the snapshot: whole cache lines.
static size_t lines(int64_t bytes) {
    return ((size_t)bytes + 63) / 64 * 64;
}

size_t checkpoint_snapshot_bytes(const CheckpointPart *parts, int count) {
    size_t bytes = 0;
    for (int i = 0; i < count; i++) {
        int64_t elements = part_count(&parts[i]);
        bytes += lines(part_bytes(parts[i].type, elements)) + lines(part_scale_bytes(parts[i].type, elements));
    }
    return bytes;
}

static float *scales_of(const CheckpointWriter *w, const OwnPart *own) {
    return data_type_has_scales(own->part.type) ? (float *)(void *)(w->snapshot + own->scales_at) : NULL;
}

// ---- the thread: writing ----

// The HDF5 file of this rank, durable, from its first byte to its last: the structure, and between it the snapshot's numbers.
static Error *write_file(CheckpointWriter *w, const char *path, uint64_t *hash) {
    StreamFile *file;
    TRY(stream_file_create(path, w->file.bytes, &file));
    Error *error = NULL;
    for (int i = 0; i < w->file.piece_count && error == NULL; i++) {
        const H5Piece *piece = &w->file.pieces[i];
        const char *from =
            piece->dataset < 0 ? w->file.structure.data + piece->at : w->snapshot + w->numbers_at[piece->dataset];
        error = stream_file_add(file, from, (size_t)piece->bytes);
        checkpoint_reached("piece written");
    }
    error = error == NULL ? stream_file_finish(file, hash) : error;
    stream_file_destroy(file);
    checkpoint_reached("file durable");
    return error;
}

// The file, and this rank's parts of the manifest, each with what it adds to its digest.
static Error *write_parts(CheckpointWriter *w, const char *partial, json_t *files, json_t *parts) {
    char name[32];
    uint64_t hash;
    double start = clock_seconds();
    steps_rank_file(name, w->rank, "h5");
    char *path = path_join(partial, name);
    Error *error = write_file(w, path, &hash);
    free(path);
    TRY(error);
    w->time.bytes = w->file.bytes;
    w->time.write = clock_seconds() - start;
    json_array_append_new(files, manifest_file_json(name, w->file.bytes, hash));
    for (int i = 0; i < w->part_count; i++) {
        const OwnPart *own = &w->parts[i];
        const CheckpointTensor *tensor = &w->tensors[own->part.tensor];
        json_t *part = manifest_part_json(tensor, &own->part, name);
        uint64_t digest = part_digest(tensor, &own->part, w->snapshot + own->elements_at, scales_of(w, own));
        json_object_set_new(part, "digest", json_hex64(digest));
        json_array_append_new(parts, part);
    }
    return NULL;
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

// What a save allocates beside its snapshot, in small pieces, each of which would end the program if it could not be had, must
// be there before it begins: training goes on without a save, and the next one may have it.
static Error *spare_memory(const CheckpointWriter *w) {
    enum { BASE_BYTES = 16 << 20, PART_BYTES = 4096 };
    size_t parts = (size_t)w->part_count * (w->rank == 0 ? (size_t)w->ranks : 1), blobs = 0;
    for (int i = 0; i < w->blob_count; i++) {
        blobs += w->blobs[i].bytes.size;
    }
    void *spare = NULL;
    TRY(memory_try(1, BASE_BYTES + parts * PART_BYTES + blobs, "saving a checkpoint", &spare));
    free(spare);
    return NULL;
}

// Before a save is tried again: what failed it may pass. In naps, for the run may end meanwhile.
static void back_off(const CheckpointWriter *w) {
    enum { NAPS = 20 };
    for (int i = 0; w->attempt > 0 && i < NAPS << (w->attempt - 1) && !w->leaving; i++) {
        usleep((useconds_t)(checkpoint_pause_us / NAPS));
    }
}

static Error *write_job(CheckpointWriter *w) {
    back_off(w);
    char *partial = steps_partial(w->folder, w->step), side_name[32];
    steps_rank_file(side_name, w->rank, "json");
    char *side_path = path_join(partial, side_name);
    json_t *files = json_array(), *parts = json_array();
    Error *error = spare_memory(w);
    int tries = 0;
    do {
        error = error == NULL ? folder_create(partial) : error;
    } while (file_try_again(&error, &tries));
    checkpoint_reached("folder made");
    if (error == NULL) {
        error = write_parts(w, partial, files, parts);
    }
    if (error == NULL) {
        error = write_blobs(w, partial, files);
    }
    if (error == NULL) {
        json_t *side = json_pack("{s:I, s:i, s:i, s:O, s:O}", "step", (json_int_t)w->step, "rank", w->rank, "ranks", w->ranks,
                                 "files", files, "parts", parts);
        error = json_write_file(side_path, side);
        json_decref(side);
        checkpoint_reached("side file durable");
    }
    json_decref(files);
    json_decref(parts);
    free(side_path);
    free(partial);
    return error;
}

// ---- the thread: reading back ----

// A rank's side file, once it is to be seen here.
static Error *read_side(const CheckpointWriter *w, const char *partial, int rank, char **path, json_t **side) {
    char name[32];
    steps_rank_file(name, rank, "json");
    *path = path_join(partial, name);
    *side = NULL;
    int tries = 0;
    int64_t value;
    Error *error;
    do {
        error = json_read_file(*path, MANIFEST_MOST_BYTES, side);
    } while (steps_try_again(partial, &error, &tries));
    TRY(error);
    TRY(json_field_i64(*side, *path, "step", w->step, w->step, &value));
    TRY(json_field_i64(*side, *path, "rank", rank, rank, &value));
    return json_field_i64(*side, *path, "ranks", w->ranks, w->ranks, &value);
}

static Error *check_file(const char *partial, const char *side_path, const json_t *item) {
    const char *name = NULL;
    int64_t wanted, bytes = 0;
    uint64_t hash, found = 0;
    TRY(json_field_string(item, side_path, "name", &name));
    TRY(json_field_i64(item, side_path, "bytes", 0, INT64_MAX, &wanted));
    TRY(json_field_hex64(item, side_path, "xxh3", &hash));
    if (!manifest_plain_name(name)) {
        return damaged("%s: \"name\" is no plain name", side_path);
    }
    char *path = path_join(partial, name);
    Error *error = stream_file_hash(path, wanted, &bytes, &found);
    if (error == NULL && (bytes != wanted || hash != found)) {
        error = error_system(
            EIO, "%s was read back with %" PRId64 " bytes and the checksum %016" PRIx64 ", not %" PRId64 " and %016" PRIx64,
            path, bytes, found, wanted, hash);
    }
    free(path);
    return error;
}

// Reads what another rank wrote, one as far away as can be: most likely of another host, which sees what the file system has
// and not what its writer remembers.
static Error *check_job(CheckpointWriter *w) {
    double start = clock_seconds();
    char *partial = steps_partial(w->folder, w->step), *path = NULL;
    json_t *side = NULL, *files = NULL;
    Error *error = read_side(w, partial, (w->rank + (w->ranks + 1) / 2) % w->ranks, &path, &side);
    error = error == NULL ? json_field_array(side, path, "files", &files) : error;
    for (size_t i = 0; error == NULL && i < json_array_size(files); i++) {
        error = check_file(partial, path, json_array_get(files, i));
    }
    checkpoint_reached("read back");
    w->time.check = clock_seconds() - start;
    json_decref(side);
    free(path);
    free(partial);
    return error;
}

// ---- the thread of rank 0: committing ----

// Moves a part of a side file to the manifest, and its digest to its tensor's, of which `tensors` has one by each name.
static Error *collect_part(const char *path, json_t *part, const json_t *tensors, json_t *parts) {
    const char *tensor = NULL, *kind = NULL;
    uint64_t own, sum = 0;
    TRY(json_field_string(part, path, "tensor", &tensor));
    TRY(json_field_string(part, path, "kind", &kind));
    TRY(json_field_hex64(part, path, "digest", &own));
    json_t *digests = json_object_get(tensors, tensor);
    if (json_object_get(digests, kind) != NULL) {
        TRY(json_field_hex64(digests, path, kind, &sum));
    }
    json_object_set_new(digests, kind, json_hex64(sum + own));
    json_object_del(part, "digest");
    json_array_append(parts, part);
    return NULL;
}

// Moves the lists of a rank's side file to the manifest's.
static Error *collect_rank(CheckpointWriter *w, const char *partial, int rank, json_t *files, const json_t *tensors,
                           json_t *parts) {
    char *path = NULL;
    json_t *side = NULL, *list = NULL;
    Error *error = read_side(w, partial, rank, &path, &side);
    if (error == NULL && (error = json_field_array(side, path, "files", &list)) == NULL) {
        json_array_extend(files, list);
    }
    if (error == NULL) {
        error = json_field_array(side, path, "parts", &list);
    }
    for (size_t i = 0; error == NULL && i < json_array_size(list); i++) {
        error = collect_part(path, json_array_get(list, i), tensors, parts);
    }
    json_decref(side);
    free(path);
    return error;
}

// Every file there with its size, as one who opens it now sees it.
static Error *check_size(const char *partial, const ManifestFile *file) {
    struct stat info = {0};
    char *path = path_join(partial, file->name);
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    Error *error = descriptor < 0 || fstat(descriptor, &info) != 0 ? error_system(errno, "%s cannot be read", path) : NULL;
    if (error == NULL && info.st_size != file->bytes) {
        error = error_system(ESTALE, "%s has %lld bytes, not the %" PRId64 " that were written", path, (long long)info.st_size,
                             file->bytes);
    }
    if (descriptor >= 0) {
        close(descriptor);
    }
    free(path);
    return error;
}

static Error *check_sizes(const Manifest *m, const char *partial) {
    for (int i = 0; i < m->file_count; i++) {
        int tries = 0;
        Error *error;
        do {
            error = check_size(partial, &m->files[i]);
        } while (steps_try_again(partial, &error, &tries));
        TRY(error);
    }
    return NULL;
}

static Error *remove_side_files(const CheckpointWriter *w, const char *partial) {
    Error *error = NULL;
    for (int r = 0; r < w->ranks && error == NULL; r++) {
        char name[32];
        steps_rank_file(name, r, "json");
        char *path = path_join(partial, name);
        error = folder_remove(path);
        free(path);
    }
    return error;
}

// The manifest of all that the ranks' side files tell.
static Error *make_manifest(CheckpointWriter *w, const char *partial, json_t **out) {
    json_t *files = json_array(), *tensors = manifest_tensors_json(w->tensors, w->tensor_count), *parts = json_array();
    json_t *digests = json_object();  // by the tensor's name; the same objects as in `tensors`
    for (int t = 0; t < w->tensor_count; t++) {
        json_object_set(digests, w->tensors[t].name, json_object_get(json_array_get(tensors, (size_t)t), "digests"));
    }
    Error *error = NULL;
    for (int r = 0; r < w->ranks && error == NULL; r++) {
        error = collect_rank(w, partial, r, files, digests, parts);
    }
    json_decref(digests);
    char stamp[24];
    *out = json_pack("{s:s, s:i, s:o, s:I, s:i, s:s, s:s, s:o, s:o, s:O, s:o, s:o, s:o}", "format", "athanor checkpoint",
                     "version", MANIFEST_VERSION, "run", json_hex64(w->run), "step", (json_int_t)w->step, "ranks", w->ranks,
                     "layout", w->layout, "created", clock_stamp(stamp), "model", json_hex64(w->model), "seed",
                     json_hex64(w->seed), "state", w->state, "tensors", tensors, "files", files, "parts", parts);
    ensure(*out != NULL, "the manifest of %s cannot be made", partial);
    if (w->base != NULL) {
        json_object_set_new(*out, "base",
                            json_pack("{s:o, s:s}", "fingerprint", json_hex64(w->base->fingerprint), "path", w->base->path));
    }
    manifest_seal(*out);
    return error;
}

static Error *commit_manifest(CheckpointWriter *w, const char *partial) {
    char *path = path_join(partial, MANIFEST_NAME);
    json_t *document;
    Manifest manifest = {0};
    Error *error = make_manifest(w, partial, &document);
    if (error != NULL) {
        json_decref(document);
    } else {
        error = manifest_from_json(path, document, &manifest);  // what a reader would refuse is refused here
    }
    if (error == NULL) {
        error = check_sizes(&manifest, partial);
    }
    if (error == NULL) {
        error = json_write_file(path, document);
        checkpoint_reached("manifest durable");
    }
    manifest_free(&manifest);
    free(path);
    return error;
}

// What was just committed need not be read again to count.
static void know_whole(const CheckpointWriter *w) {
    char *path = steps_path(w->folder, w->step);
    Checkpoint *committed;
    Error *error = checkpoint_open(path, false, &committed);
    if (error == NULL) {
        checkpoint_known_whole(committed);
        checkpoint_close(committed);
    }
    error_free(error);
    free(path);
}

static Error *commit_job(CheckpointWriter *w) {
    char *partial = steps_partial(w->folder, w->step);
    Error *error = spare_memory(w);
    error = error == NULL ? commit_manifest(w, partial) : error;
    if (error == NULL) {
        error = remove_side_files(w, partial);
    }
    if (error == NULL) {
        error = file_sync(partial);
    }
    checkpoint_reached("before the rename");
    if (error == NULL) {
        error = steps_publish(w->folder, w->step);
    }
    checkpoint_reached("committed");
    if (error != NULL) {
        error_free(folder_remove(partial));
    } else {
        w->retention.run = w->run;
        know_whole(w);
        Error *old = retention_apply(w->folder, &w->retention, w->step);
        if (old != NULL) {
            log_warning("an old checkpoint stays: %s", old->message);  // the new one is safe
            error_free(old);
        }
        checkpoint_reached("old ones removed");
    }
    free(partial);
    return error;
}

// Takes away what a failed save left, and what it could not remove of older ones, which may have been the room that it lacked.
static Error *remove_job(CheckpointWriter *w) {
    char *partial = steps_partial(w->folder, w->step);
    Error *error = folder_remove(partial), *old = retention_sweep(w->folder);
    error_keep(&error, old);
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
                       : job == JOB_CHECK  ? check_job(w)
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
        ensure(plan->tensors[t].dims >= 0 && plan->tensors[t].dims <= BOX_MOST_DIMS, "%d dims", plan->tensors[t].dims);
    }
    for (int i = 0; i < plan->part_count; i++) {
        const CheckpointPart *part = &plan->parts[i];
        ensure(part->tensor >= 0 && part->tensor < plan->tensor_count, "tensor %d", part->tensor);
        const CheckpointTensor *tensor = &plan->tensors[part->tensor];
        ensure(manifest_kind(part->kind), "kind '%s' of %s", part->kind, tensor->name);
        ensure(part->box_count > 0, "%s %s has no boxes", part->kind, tensor->name);
        for (int b = 0; b < part->box_count; b++) {
            ensure(box_inside(&part->boxes[b], tensor->dims, tensor->shape), "box %d of %s %s", b, part->kind, tensor->name);
        }
        ensure(!data_type_has_scales(part->type) || part_has_whole_blocks(tensor, part),
               "the boxes of %s %s cut through blocks", part->kind, tensor->name);
    }
}

// fsync of the folder that holds `path`.
static Error *sync_above(const char *path) {
    char *folder = path_folder(path);
    Error *error = file_sync(folder);
    free(folder);
    return error;
}

// Whether there is room: for one save at least, better for as many as are kept and the one that is written before the oldest
// goes, of which some are here already.
static Error *check_room(const CheckpointWriter *w, int64_t save_bytes) {
    struct statvfs disk;
    if (save_bytes == 0 || statvfs(w->folder, &disk) != 0 || disk.f_blocks == 0) {
        return NULL;
    }
    double room = (double)disk.f_bavail * (double)disk.f_frsize, save = (double)save_bytes;
    char free_text[32], need_text[32];
    text_bytes(free_text, room);
    if (room < save) {
        return failure("%s has room for %s, and one checkpoint takes %s: make room, or choose a folder on another disk",
                       w->folder, free_text, text_bytes(need_text, save));
    }
    int64_t *steps;
    int count;
    TRY(steps_list(w->folder, &steps, &count));
    double need = save * (w->retention.keep_last + 1);
    for (int i = count - 1; i >= 0 && i >= count - w->retention.keep_last; i--) {
        need -= (double)steps_bytes(w->folder, steps[i]);
    }
    free(steps);
    if (room < need) {
        log_warning(
            "%s has room for %s, and the checkpoints of this run will take %s more (checkpoint.keep_last=%d and the one "
            "being written, of %s each)",
            w->folder, free_text, text_bytes(need_text, need), w->retention.keep_last, text_bytes((char[32]){0}, save));
    }
    return NULL;
}

static Error *open_folder(CheckpointWriter *w, const CheckpointPlan *plan) {
    const char *run_folder = plan->run_folder;
    TRY(folder_create(w->folder));
    if (w->rank != 0) {
        return NULL;
    }
    // A commit syncs the folder of checkpoints; the names that lead to it are made durable here.
    TRY(sync_above(w->folder));
    TRY(sync_above(run_folder));
    TRY(steps_lock(w->folder, &w->lock));
    TRY(steps_clean(w->folder, run_folder));
    TRY(steps_probe(w->folder));
    return check_room(w, plan->total_bytes);
}

// The datasets of the rank's parts, in their order.
static Error *lay_out(CheckpointWriter *w) {
    H5Dataset *datasets = memory_zeroed(2 * (size_t)w->part_count, sizeof *datasets);
    int count = 0, tries = 0;
    for (int i = 0; i < w->part_count; i++) {
        count += h5_part(&w->tensors[w->parts[i].part.tensor], &w->parts[i].part, datasets + count);
    }
    w->numbers_at = memory_new((size_t)count, sizeof *w->numbers_at);
    for (int i = 0, at = 0; i < w->part_count; i++) {
        w->numbers_at[at++] = w->parts[i].elements_at;
        if (data_type_has_scales(w->parts[i].part.type)) {
            w->numbers_at[at++] = w->parts[i].scales_at;
        }
    }
    char name[32];
    steps_rank_file(name, w->rank, "layout" PARTIAL_SUFFIX);
    char *scratch = path_join(w->folder, name);
    Error *error = NULL;
    do {  // rank 0 may take it for something that was left, once
        error_free(error);
        error = h5_lay_out(scratch, datasets, count, &w->file);
    } while (error != NULL && error->kind == ERROR_MISSING && w->rank != 0 && tries++ < 3);
    if (error != NULL) {
        h5_free(datasets, count);
    }
    free(scratch);
    return error_wrap(error, "no checkpoint could be saved in %s", w->folder);
}

static void copy_part(const CheckpointPart *part, size_t snapshot_at, OwnPart *own) {
    Box *boxes = memory_new((size_t)part->box_count, sizeof *boxes);
    memcpy(boxes, part->boxes, (size_t)part->box_count * sizeof *boxes);
    *own = (OwnPart){.part = *part, .count = part_count(part), .elements_at = snapshot_at};
    own->part.boxes = boxes;
    own->part.kind = memory_string(part->kind);
    own->scales_at = snapshot_at + lines(part_bytes(part->type, own->count));
}

Error *checkpoint_writer_create(const CheckpointPlan *plan, CheckpointWriter **out) {
    check_plan(plan);
    *out = NULL;
    CheckpointWriter *w = memory_zeroed(1, sizeof *w);
    w->folder = steps_folder(plan->run_folder);
    w->layout = memory_string(plan->layout);
    w->rank = plan->rank;
    w->ranks = plan->ranks;
    w->retention = (Retention){.keep_last = plan->keep_last, .keep_every = plan->keep_every, .learned = plan->learned};
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
    if (plan->base != NULL) {
        w->base = memory_new(1, sizeof *w->base);
        *w->base = (CheckpointBase){plan->base->fingerprint, memory_string(plan->base->path)};
    }
    w->part_count = plan->part_count;
    w->parts = memory_new((size_t)plan->part_count, sizeof *w->parts);
    for (int i = 0; i < plan->part_count; i++) {
        copy_part(&plan->parts[i], checkpoint_snapshot_bytes(plan->parts, i), &w->parts[i]);
    }
    w->snapshot_bytes = checkpoint_snapshot_bytes(plan->parts, plan->part_count);
    w->snapshot = memory_tensor(w->snapshot_bytes);
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->changed, NULL);
    w->job = JOB_PREPARE;
    Error *error = open_folder(w, plan);
    error = error == NULL ? lay_out(w) : error;
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
    w->leaving = true;
    if (w->job != JOB_QUIT) {
        post(w, JOB_QUIT);
        pthread_join(w->thread, NULL);
    }
    error_free(w->error);
    if (w->phase != PHASE_IDLE && w->rank == 0) {
        error_free(remove_job(w));  // of a save that nobody waited for, unless it was committed
    }
    drop_step(w);
    h5_layout_free(&w->file);
    free(w->numbers_at);
    for (int t = 0; t < w->tensor_count; t++) {
        free((char *)(uintptr_t)w->tensors[t].name);
    }
    if (w->lock >= 0) {
        close(w->lock);
    }
    pthread_mutex_destroy(&w->mutex);
    pthread_cond_destroy(&w->changed);
    memory_tensor_free(w->snapshot, w->snapshot_bytes);
    for (int i = 0; i < w->part_count; i++) {
        free((char *)(uintptr_t)w->parts[i].part.kind);
        free((Box *)(uintptr_t)w->parts[i].part.boxes);
    }
    if (w->base != NULL) {
        free((char *)(uintptr_t)w->base->path);
    }
    free(w->base);
    free(w->tensors);
    free(w->parts);
    free(w->folder);
    free(w->layout);
    free(w);
}

bool checkpoint_writer_idle(const CheckpointWriter *w) {
    return w->phase == PHASE_IDLE;
}

void checkpoint_writer_begin(CheckpointWriter *w, uint64_t run, int64_t step, const json_t *state, const CheckpointBlob *blobs,
                             int count) {
    ensure(w->phase == PHASE_IDLE, "a save is under way");
    ensure(json_is_object(state) && step >= 0 && run != 0, "step %lld", (long long)step);
    w->begun = clock_seconds();
    wait_for_thread(w);  // only ever for the first touch of the snapshot's memory
    drop_step(w);
    w->run = run;
    w->step = step;
    for (int i = 0; i < w->part_count; i++) {
        const OwnPart *own = &w->parts[i];
        w->fetch(w->fetch_context, &own->part, w->snapshot + own->elements_at, scales_of(w, own));
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
    w->attempt = 0;
    w->phase = PHASE_WRITING;
    post(w, JOB_WRITE);
}

// What the second flag says, the worst of all ranks.
enum { NOTHING_FAILED, MAY_PASS, FAILED };

void checkpoint_writer_flags(CheckpointWriter *w, double flags[CHECKPOINT_FLAGS]) {
    pthread_mutex_lock(&w->mutex);
    flags[0] = w->phase != PHASE_IDLE && w->job != JOB_NONE;
    flags[1] = w->job != JOB_NONE || w->error == NULL ? NOTHING_FAILED : w->error->passes ? MAY_PASS : FAILED;
    pthread_mutex_unlock(&w->mutex);
}

// Says why this rank's part of the save failed, once.
static void report_failure(CheckpointWriter *w) {
    if (w->error != NULL) {
        if (w->again) {
            log_warning("the checkpoint of step %" PRId64 " is tried again in %g s, for attempt %d of %d failed: %s", w->step,
                        (double)(checkpoint_pause_us << w->attempt) * 1e-6, w->attempt + 1, MOST_ATTEMPTS, w->error->message);
        } else {
            log_warning("the checkpoint of step %" PRId64 " was not saved: %s", w->step, w->error->message);
        }
        error_free(w->error);
        w->error = NULL;
    }
}

static void enter_phase(CheckpointWriter *w, Phase phase) {
    w->phase = phase;
    if (phase == PHASE_WRITING || phase == PHASE_CHECKING) {
        post(w, phase == PHASE_WRITING ? JOB_WRITE : JOB_CHECK);
    } else if (w->rank == 0) {
        post(w, phase == PHASE_COMMITTING ? JOB_COMMIT : JOB_REMOVE);
    }
}

CheckpointEvent checkpoint_writer_advance(CheckpointWriter *w, const double flags[CHECKPOINT_FLAGS]) {
    if (w->phase == PHASE_IDLE || flags[0] > 0) {
        return CHECKPOINT_NOTHING;
    }
    bool failed = flags[1] > NOTHING_FAILED, committed = w->phase == PHASE_COMMITTING && !failed;
    if (failed && w->phase != PHASE_REMOVING) {
        w->again = flags[1] == MAY_PASS && w->attempt + 1 < MOST_ATTEMPTS;
    }
    report_failure(w);
    if (committed) {
        w->time.save = clock_seconds() - w->begun;
    }
    if (w->phase == PHASE_REMOVING && w->again) {
        w->attempt++;
        enter_phase(w, PHASE_WRITING);
    } else if (failed && w->phase != PHASE_REMOVING) {
        enter_phase(w, PHASE_REMOVING);
    } else if (w->phase == PHASE_WRITING || w->phase == PHASE_CHECKING) {
        enter_phase(w, w->phase + 1);
    } else {
        w->phase = PHASE_IDLE;
        return committed ? CHECKPOINT_COMMITTED : CHECKPOINT_FAILED;
    }
    return CHECKPOINT_NOTHING;
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
