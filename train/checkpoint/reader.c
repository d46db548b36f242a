// Reading checkpoints: see checkpoint.h.
//
// A file's HDF5 structure is read once, when its first slice is asked for; after that a range is a pread at a place that
// was checked against the file's size. Order of trust: manifest (parsed with checks), sizes and checksums, then HDF5.
#include "train/checkpoint/folder.h"
#include "train/checkpoint/manifest.h"
#include "train/checkpoint/slices_h5.h"

#include "core/durable.h"
#include "core/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

struct Checkpoint {
    char *path;
    Manifest manifest;
    CheckpointInfo info;
    pthread_mutex_t mutex;
    int64_t *offsets;  // of each slice in its file
    bool *located;     // of each file: the offsets of its slices are known
};

// ---- opening ----

static Error *verify_file(const char *folder, const ManifestFile *file, bool checksum) {
    char *path = path_join(folder, file->name);
    struct stat info;
    Error *error = NULL;
    int64_t bytes = 0;
    uint64_t hash = 0;
    if (lstat(path, &info) != 0) {
        error = error_system(errno, "%s cannot be read", path);
    } else if (!S_ISREG(info.st_mode)) {
        error = damaged("%s is not a plain file", path);
    } else if (info.st_size != file->bytes) {
        error = damaged("%s has %lld bytes, not %" PRId64, path, (long long)info.st_size, file->bytes);
    } else if (checksum) {
        error = file_hash(path, &bytes, &hash);
        if (error == NULL && (bytes != file->bytes || hash != file->hash)) {
            error = damaged("%s: its checksum is not the one in the manifest", path);
        }
    }
    free(path);
    return error;
}

static Error *read_manifest(const char *folder, Manifest *out) {
    char *path = path_join(folder, MANIFEST_NAME);
    Buffer text = {0};
    Error *error = file_read(path, MANIFEST_MOST_BYTES, &text);
    if (error == NULL) {
        error = manifest_parse(path, text.data, text.size, out);
    }
    buffer_free(&text);
    free(path);
    return error;
}

Error *checkpoint_open(const char *path, bool verify, Checkpoint **out) {
    *out = NULL;
    Manifest manifest = {0};
    TRY(read_manifest(path, &manifest));
    int64_t total = 0;
    for (int i = 0; i < manifest.file_count; i++) {
        Error *error = verify_file(path, &manifest.files[i], verify);
        if (error != NULL) {
            manifest_free(&manifest);
            return error;
        }
        total += manifest.files[i].bytes;
    }
    Checkpoint *c = memory_zeroed(1, sizeof *c);
    c->path = memory_string(path);
    c->manifest = manifest;
    c->offsets = memory_zeroed((size_t)manifest.slice_count, sizeof *c->offsets);
    c->located = memory_zeroed((size_t)manifest.file_count, sizeof *c->located);
    c->info = (CheckpointInfo){.step = manifest.step,
                               .ranks = manifest.ranks,
                               .layout = manifest.layout,
                               .model = manifest.model,
                               .seed = manifest.seed,
                               .state = manifest.state,
                               .tensors = manifest.tensors,
                               .tensor_count = manifest.tensor_count,
                               .bytes = total};
    pthread_mutex_init(&c->mutex, NULL);
    *out = c;
    return NULL;
}

void checkpoint_close(Checkpoint *c) {
    if (c != NULL) {
        pthread_mutex_destroy(&c->mutex);
        manifest_free(&c->manifest);
        free(c->offsets);
        free(c->located);
        free(c->path);
        free(c);
    }
}

const CheckpointInfo *checkpoint_info(const Checkpoint *c) {
    return &c->info;
}

int checkpoint_tensor(const Checkpoint *c, const char *name) {
    return manifest_tensor(&c->manifest, name);
}

bool checkpoint_has(const Checkpoint *c, const char *name, SliceKind kind) {
    int tensor = manifest_tensor(&c->manifest, name);
    return tensor >= 0 && manifest_missing(&c->manifest, tensor, kind, 0, c->manifest.elements[tensor]) < 0;
}

// ---- finding ----

// Tries one checkpoint; what is wrong with it becomes a line of `skipped`.
static bool verifies(const char *path, Strings *skipped) {
    Checkpoint *checkpoint;
    Error *error = checkpoint_open(path, true, &checkpoint);
    if (error == NULL) {
        checkpoint_close(checkpoint);
        return true;
    }
    if (skipped != NULL) {
        char *line = memory_format("%s is damaged and was skipped: %s", path_name(path), error->message);
        strings_add(skipped, line);
        free(line);
    }
    error_free(error);
    return false;
}

Error *checkpoint_find(const char *folder, char **path, Strings *skipped) {
    *path = NULL;
    char *own_manifest = path_join(folder, MANIFEST_NAME);
    bool is_checkpoint = path_exists(own_manifest);
    free(own_manifest);
    if (is_checkpoint) {
        Checkpoint *checkpoint;
        TRY(checkpoint_open(folder, true, &checkpoint));
        checkpoint_close(checkpoint);
        *path = memory_string(folder);
        return NULL;
    }
    char *checkpoints = store_folder(folder);
    int64_t *steps = NULL;
    int count = 0;
    Error *error = store_steps(checkpoints, &steps, &count);
    for (int i = count - 1; i >= 0 && *path == NULL; i--) {
        char *candidate = store_step(checkpoints, steps[i]);
        if (verifies(candidate, skipped)) {
            *path = candidate;
        } else {
            free(candidate);
        }
    }
    if (error == NULL && *path == NULL) {
        error = count == 0
                    ? error_new(ERROR_MISSING, "%s holds no checkpoint", folder)
                    : damaged("%s: none of its %d checkpoints is whole; to start anew remove %s", folder, count, checkpoints);
    }
    free(steps);
    free(checkpoints);
    return error;
}

// ---- reading ----

// Finds the places of all slices that lie in a file.
static Error *locate_file(Checkpoint *c, int file) {
    const Manifest *m = &c->manifest;
    int count = 0;
    for (int i = 0; i < m->slice_count; i++) {
        count += m->slices[i].file == file;
    }
    H5Slice *places = memory_zeroed((size_t)count, sizeof *places);
    int n = 0;
    for (int i = 0; i < m->slice_count; i++) {
        const ManifestSlice *slice = &m->slices[i];
        if (slice->file == file) {
            places[n++] = (H5Slice){.path = slice->dataset, .count = slice->end - slice->begin};
        }
    }
    char *path = path_join(c->path, m->files[file].name);
    Error *error = h5_locate(path, places, count);
    free(path);
    n = 0;
    for (int i = 0; i < m->slice_count && error == NULL; i++) {
        if (m->slices[i].file == file) {
            c->offsets[i] = places[n++].offset;
        }
    }
    free(places);
    c->located[file] = error == NULL;
    return error;
}

static Error *read_at(const char *path, int64_t offset, void *out, size_t size) {
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) {
        return error_system(errno, "%s cannot be opened", path);
    }
    Error *error = NULL;
    for (char *p = out; size > 0 && error == NULL;) {
        ssize_t got = pread(descriptor, p, size, offset);
        if (got > 0) {
            p += got;
            offset += got;
            size -= (size_t)got;
        } else if (got == 0) {
            error = damaged("%s became shorter while it was read", path);
        } else if (errno != EINTR) {
            error = error_system(errno, "%s cannot be read", path);
        }
    }
    close(descriptor);
    return error;
}

// Reads what slice `index` holds of [begin, end).
static Error *read_slice(Checkpoint *c, int index, int64_t begin, int64_t end, float *out) {
    const ManifestSlice *slice = &c->manifest.slices[index];
    if (!c->located[slice->file]) {
        TRY(locate_file(c, slice->file));
    }
    char *path = path_join(c->path, c->manifest.files[slice->file].name);
    int64_t offset = c->offsets[index] + (begin - slice->begin) * (int64_t)sizeof(float);
    Error *error = read_at(path, offset, out, (size_t)(end - begin) * sizeof(float));
    free(path);
    return error;
}

Error *checkpoint_read(Checkpoint *c, const char *name, SliceKind kind, int64_t begin, int64_t end, float *out) {
    const Manifest *m = &c->manifest;
    int tensor = manifest_tensor(m, name);
    if (tensor < 0) {
        return damaged("%s has no tensor %s", c->path, name);
    }
    if (begin < 0 || begin > end || end > m->elements[tensor]) {
        return damaged("%s: tensor %s has %" PRId64 " elements, %" PRId64 " to %" PRId64 " were asked for", c->path, name,
                       m->elements[tensor], begin, end);
    }
    int64_t missing = manifest_missing(m, tensor, kind, begin, end);
    if (missing >= 0) {
        return damaged("%s: element %" PRId64 " of %s %s is not there", c->path, missing, slice_kind_name(kind), name);
    }
    pthread_mutex_lock(&c->mutex);
    Error *error = NULL;
    int64_t at = begin;
    for (int i = manifest_slice_after(m, tensor, kind, begin); at < end && error == NULL; i++) {
        int64_t stop = m->slices[i].end < end ? m->slices[i].end : end;
        error = read_slice(c, i, at, stop, out + (at - begin));
        at = stop;
    }
    pthread_mutex_unlock(&c->mutex);
    return error;
}

Error *checkpoint_blob(Checkpoint *c, const char *name, Buffer *out) {
    int file = manifest_file(&c->manifest, name);
    if (file < 0 || c->manifest.files[file].has_slices) {
        return error_new(ERROR_MISSING, "%s has no %s", c->path, name);
    }
    char *path = path_join(c->path, name);
    Error *error = file_read(path, (size_t)c->manifest.files[file].bytes, out);
    if (error == NULL && hash64(out->data, out->size) != c->manifest.files[file].hash) {
        error = damaged("%s: its checksum is not the one in the manifest", path);
    }
    free(path);
    return error;
}
