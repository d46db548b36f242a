// A checkpoint written anew into another number of files: see reshard.h.
#include "train/checkpoint/reshard.h"

#include "core/clock.h"
#include "core/digest.h"
#include "core/durable.h"
#include "core/hash.h"
#include "core/threads.h"
#include "kernels/values.h"
#include "train/checkpoint/manifest.h"
#include "train/checkpoint/part.h"
#include "train/checkpoint/parts_h5.h"
#include "train/checkpoint/steps.h"
#include "train/checkpoint/stream_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <unistd.h>

enum { PIECE = 1 << 20 };  // elements at a time, whole blocks

// A part of the file being made.
typedef struct NewPart {
    CheckpointPart part;
    const ManifestContent *content;
    bool same_type;  // all parts of the source's content are of part.type: copied as they are stored
    int64_t count;
} NewPart;

typedef struct Reshard {
    Checkpoint *from;
    const Manifest *manifest;
    const char *folder;  // the one being written
    int files;
    uint64_t *digests;  // of each content, of what was written so far
    json_t *file_list, *part_list;
    NewPart *parts;  // of the present file
    int part_count;
    char *elements;
    float *scales;
} Reshard;

// ---- the parts of a file ----

// The type that all parts of a content have; fp32, which holds any value, where they differ.
static DataType type_of(const Manifest *m, const ManifestContent *content, bool *same) {
    DataType type = m->parts[content->first].part.type;
    *same = true;
    for (int i = 1; i < content->count; i++) {
        *same = *same && m->parts[content->first + i].part.type == type;
    }
    return *same ? type : TYPE_FP32;
}

static void cut_parts(Reshard *r, int file) {
    const Manifest *m = r->manifest;
    r->part_count = 0;
    for (int i = 0; i < m->content_count; i++) {
        const ManifestContent *content = &m->contents[i];
        const CheckpointTensor *tensor = &m->tensors[content->tensor];
        bool same;
        DataType type = type_of(m, content, &same);
        Range range =
            range_part(m->elements[content->tensor], data_type_has_scales(type) ? DATA_TYPE_BLOCK : 1, r->files, file);
        if (range.begin >= range.end) {
            continue;
        }
        Box whole = box_whole(tensor->dims, tensor->shape), *boxes = memory_new(BOX_MOST_OF_RANGE, sizeof *boxes);
        int count = boxes_of_range(&whole, 1, range.begin, range.end, boxes);
        r->parts[r->part_count++] =
            (NewPart){{content->tensor, content->kind, type, boxes, count}, content, same, range.end - range.begin};
    }
}

static void free_parts(Reshard *r) {
    for (int i = 0; i < r->part_count; i++) {
        free((Box *)(uintptr_t)r->parts[i].part.boxes);
    }
    r->part_count = 0;
}

// ---- numbers ----

// Reads elements [at, at + count) of a part, with the scales of their blocks.
static Error *read_piece(Reshard *r, const NewPart *new, int64_t at, int64_t count, Box *boxes, int *box_count) {
    *box_count = boxes_of_range(new->part.boxes, new->part.box_count, at, at + count, boxes);
    return new->same_type ? checkpoint_read_stored(r->from, new->content, boxes, *box_count, r->elements, r->scales)
                          : checkpoint_read(r->from, r->manifest->tensors[new->part.tensor].name, new->part.kind, boxes,
                                            *box_count, (float *)(void *)r->elements);
}

// Writes all elements of a part, or all its scales, and adds the elements to the content's digest.
static Error *copy_part(Reshard *r, StreamFile *file, const NewPart *new, bool scales) {
    const CheckpointTensor *tensor = &r->manifest->tensors[new->part.tensor];
    Box *boxes = memory_new((size_t) new->part.box_count *BOX_MOST_OF_RANGE, sizeof *boxes);
    Error *error = NULL;
    for (int64_t at = 0; at < new->count &&error == NULL; at += PIECE) {
        int64_t count = new->count - at < PIECE ? new->count - at : PIECE;
        int box_count;
        error = read_piece(r, new, at, count, boxes, &box_count);
        if (error == NULL && scales) {
            error = stream_file_add(file, r->scales, (size_t)part_scale_bytes(new->part.type, count));
        } else if (error == NULL) {
            CheckpointPart piece = {new->part.tensor, new->part.kind, new->part.type, boxes, box_count};
            r->digests[new->content - r->manifest->contents] +=
                part_digest(tensor, &piece, r->elements, data_type_has_scales(new->part.type) ? r->scales : NULL);
            error = stream_file_add(file, r->elements, (size_t)part_bytes(new->part.type, count));
        }
    }
    free(boxes);
    return error;
}

// ---- files ----

static Error *lay_out(const Reshard *r, const char *path, H5Layout *out) {
    H5Dataset *datasets = memory_zeroed(2 * (size_t)r->part_count, sizeof *datasets);
    int count = 0;
    for (int i = 0; i < r->part_count; i++) {
        count += h5_part(&r->manifest->tensors[r->parts[i].part.tensor], &r->parts[i].part, datasets + count);
    }
    char *scratch = memory_format("%s.layout", path);
    Error *error = h5_lay_out(scratch, datasets, count, out);
    if (error != NULL) {
        h5_free(datasets, count);
    }
    free(scratch);
    return error;
}

// The part of a dataset, and whether it is the one of its scales.
static const NewPart *part_of(const Reshard *r, int dataset, bool *scales) {
    for (int i = 0, at = 0; i < r->part_count; i++) {
        int has = data_type_has_scales(r->parts[i].part.type) ? 2 : 1;
        if (dataset < at + has) {
            *scales = dataset > at;
            return &r->parts[i];
        }
        at += has;
    }
    ensure(false, "dataset %d", dataset);
}

// What was just made is read back, and stands in the list.
static Error *list_file(const Reshard *r, const char *path, const char *name, int64_t bytes, uint64_t hash) {
    int64_t there = 0;
    uint64_t found = 0;
    TRY(stream_file_hash(path, bytes, &there, &found));
    if (there != bytes || found != hash) {
        return failure("%s was not read back as it was written: the disk or its memory is not to be trusted", path);
    }
    json_array_append_new(r->file_list, manifest_file_json(name, bytes, hash));
    return NULL;
}

static Error *write_pieces(Reshard *r, StreamFile *file, const H5Layout *layout) {
    Error *error = NULL;
    for (int i = 0; i < layout->piece_count && error == NULL; i++) {
        const H5Piece *piece = &layout->pieces[i];
        if (piece->dataset < 0) {
            error = stream_file_add(file, layout->structure.data + piece->at, (size_t)piece->bytes);
        } else {
            bool scales;
            const NewPart *part = part_of(r, piece->dataset, &scales);
            error = copy_part(r, file, part, scales);
        }
    }
    return error;
}

static Error *write_file(Reshard *r, int number) {
    char name[32];
    uint64_t hash = 0;
    steps_rank_file(name, number, "h5");
    cut_parts(r, number);
    char *path = path_join(r->folder, name);
    H5Layout layout = {0};
    StreamFile *file = NULL;
    Error *error = lay_out(r, path, &layout);
    error = error == NULL ? stream_file_create(path, layout.bytes, &file) : error;
    error = error == NULL ? write_pieces(r, file, &layout) : error;
    error = error == NULL ? stream_file_finish(file, &hash) : error;
    error = error == NULL ? list_file(r, path, name, layout.bytes, hash) : error;
    for (int i = 0; i < r->part_count && error == NULL; i++) {
        const CheckpointPart *part = &r->parts[i].part;
        json_array_append_new(r->part_list, manifest_part_json(&r->manifest->tensors[part->tensor], part, name));
    }
    stream_file_destroy(file);
    h5_layout_free(&layout);
    free_parts(r);
    free(path);
    return error;
}

static Error *copy_bytes(const char *path, int descriptor, StreamFile *file, int64_t bytes, char *buffer) {
    for (int64_t done = 0; done < bytes;) {
        ssize_t got = read(descriptor, buffer, PIECE);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            return got < 0 ? error_system(errno, "%s cannot be read", path)
                           : damaged("%s became shorter while it was read", path);
        }
        got = got < bytes - done ? got : (ssize_t)(bytes - done);
        TRY(stream_file_add(file, buffer, (size_t)got));
        done += got;
    }
    return NULL;
}

// A file that is no rank's.
static Error *copy_blob(Reshard *r, const char *source, const ManifestFile *blob) {
    char *from = path_join(source, blob->name), *to = path_join(r->folder, blob->name);
    StreamFile *file = NULL;
    uint64_t hash = 0;
    int descriptor = open(from, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    Error *error = descriptor < 0 ? error_system(errno, "%s cannot be opened", from) : NULL;
    error = error == NULL ? stream_file_create(to, blob->bytes, &file) : error;
    error = error == NULL ? copy_bytes(from, descriptor, file, blob->bytes, r->elements) : error;
    error = error == NULL ? stream_file_finish(file, &hash) : error;
    if (error == NULL && hash != blob->hash) {
        error = damaged("%s: its checksum is not the one in the manifest", from);
    }
    error = error == NULL ? list_file(r, to, blob->name, blob->bytes, hash) : error;
    stream_file_destroy(file);
    if (descriptor >= 0) {
        close(descriptor);
    }
    free(from);
    free(to);
    return error;
}

// ---- the checkpoint ----

// The source's record with other files and parts.
static Error *write_manifest(const Reshard *r) {
    json_t *document = json_deep_copy(r->manifest->document);
    // "data 2, in 5 files": of what was written anew before only the first part counts.
    static const char in[] = ", in ";
    const char *before = strstr(r->manifest->layout, in);
    size_t length = before != NULL ? (size_t)(before - r->manifest->layout) : strlen(r->manifest->layout);
    char stamp[24],
        *layout = memory_format("%.*s%s%d file%s", (int)length, r->manifest->layout, in, r->files, r->files == 1 ? "" : "s");
    json_object_set_new(document, "ranks", json_integer(r->files));
    json_object_set_new(document, "layout", json_string(layout));
    json_object_set_new(document, "created", json_string(clock_stamp(stamp)));
    json_object_set(document, "files", r->file_list);
    json_object_set(document, "parts", r->part_list);
    manifest_seal(document);
    char *path = path_join(r->folder, MANIFEST_NAME);
    Error *error = json_write_file(path, document);
    json_decref(document);
    free(layout);
    free(path);
    return error;
}

// Each tensor went over as the source's manifest says that it was saved.
static Error *compare_digests(const Reshard *r) {
    for (int i = 0; i < r->manifest->content_count; i++) {
        const ManifestContent *content = &r->manifest->contents[i];
        TRY(checkpoint_compare_digest(r->from, r->manifest->tensors[content->tensor].name, content->kind, r->digests[i]));
    }
    return NULL;
}

static Error *write_all(Reshard *r, const char *source) {
    Error *error = NULL;
    for (int f = 0; f < r->files && error == NULL; f++) {
        error = write_file(r, f);
    }
    for (int i = 0; i < r->manifest->file_count && error == NULL; i++) {
        const ManifestFile *file = &r->manifest->files[i];
        error = file->has_parts || strncmp(file->name, "rank-", 5) == 0 ? NULL : copy_blob(r, source, file);
    }
    error = error == NULL ? compare_digests(r) : error;
    error = error == NULL ? write_manifest(r) : error;
    error = error == NULL ? file_sync(r->folder) : error;
    Checkpoint *made = NULL;
    error = error == NULL ? checkpoint_open(r->folder, false, &made) : error;  // a reader will take it
    error = error == NULL ? checkpoint_check_contents(made) : error;
    checkpoint_close(made);
    return error;
}

static Error *check_target(const Manifest *m, const char *from, const char *to, const char *partial) {
    if (m->version < 2) {
        return failure("%s is of version 1, whose tensors have no digests to compare with: go on from it with 'athanor train', "
                       "which writes the present version",
                       from);
    }
    if (steps_named(path_name(to)) != m->step) {
        return failure("%s is no name for a checkpoint of step %" PRId64 ": end it in step-%08" PRId64, to, m->step, m->step);
    }
    return path_exists(to) ? failure("%s is there already: choose a folder that is not", to)
           : path_exists(partial)
               ? failure("%s is there: it is being written, or was left by what was interrupted; remove it then", partial)
               : NULL;
}

Error *checkpoint_reshard(const char *from, const char *to, int files) {
    Reshard r = {.files = files};
    TRY(checkpoint_open(from, true, &r.from));
    r.manifest = checkpoint_manifest(r.from);
    char *partial = memory_format("%s%s", to, PARTIAL_SUFFIX);
    Error *error = check_target(r.manifest, from, to, partial);
    if (error == NULL && (error = folder_create(partial)) == NULL) {
        r.folder = partial;
        r.digests = memory_zeroed((size_t)r.manifest->content_count, sizeof *r.digests);
        r.parts = memory_zeroed((size_t)r.manifest->content_count, sizeof *r.parts);
        r.elements = memory_new(PIECE, sizeof(float));
        r.scales = memory_new(PIECE / DATA_TYPE_BLOCK + 1, sizeof(float));
        r.file_list = json_array();
        r.part_list = json_array();
        error = write_all(&r, from);
        error = error == NULL ? file_commit(partial, to) : error;
        if (error != NULL) {
            error_free(folder_remove(partial));
        }
        json_decref(r.file_list);
        json_decref(r.part_list);
        free(r.digests);
        free(r.parts);
        free(r.elements);
        free(r.scales);
    }
    checkpoint_close(r.from);
    free(partial);
    return error;
}
