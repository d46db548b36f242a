// Reading checkpoints: see checkpoint.h.
//
// A file's HDF5 structure is read once, when its first part is asked for; after that a run of elements is a pread at a place
// that was checked against the file's size. Order of trust: manifest (parsed with checks), sizes and checksums, then HDF5.
//
// Boxes of others share many short runs with a part (a matrix cut by columns: one for each row). Runs that lie near each other
// in the file are read together, with what lies between them, through a buffer of a few MiB.
#include "train/checkpoint/manifest.h"
#include "train/checkpoint/part.h"
#include "train/checkpoint/parts_h5.h"
#include "train/checkpoint/steps.h"
#include "train/checkpoint/stream_file.h"

#include "core/digest.h"
#include "core/durable.h"
#include "core/hash.h"
#include "core/log.h"
#include "kernels/values.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

// Where a part's elements and scales lie in its file, in bytes.
typedef struct StoredAt {
    int64_t elements, scales;
} StoredAt;

struct Checkpoint {
    char *path;
    Manifest manifest;
    CheckpointInfo info;
    Checkpoint *base;  // the caller's, NULL until attached
    uint64_t key;      // of its manifest in its folder
    pthread_mutex_t mutex;
    StoredAt *places;  // of each part
    bool *located;     // of each file: the places of its parts are known
};

// ---- what this process knows of checkpoints ----

typedef struct Verdict {
    uint64_t key;  // of a manifest, which names all checksums, in its folder
    bool whole;
} Verdict;

static pthread_mutex_t verdict_mutex = PTHREAD_MUTEX_INITIALIZER;
static Verdict *verdicts;  // for the life of the process
static int verdict_count, verdict_capacity;

static bool known(const Checkpoint *c, bool whole) {
    bool found = false;
    pthread_mutex_lock(&verdict_mutex);
    for (int i = 0; i < verdict_count && !found; i++) {
        found = verdicts[i].key == c->key && verdicts[i].whole == whole;
    }
    pthread_mutex_unlock(&verdict_mutex);
    return found;
}

static void learn(const Checkpoint *c, bool whole) {
    if (!known(c, whole)) {
        Verdict verdict = {c->key, whole};
        pthread_mutex_lock(&verdict_mutex);
        array_push(verdicts, verdict_count, verdict_capacity, verdict);
        pthread_mutex_unlock(&verdict_mutex);
    }
}

void checkpoint_known_whole(const Checkpoint *c) {
    learn(c, true);
}

void checkpoint_known_damaged(const Checkpoint *c) {
    learn(c, false);
}

// ---- opening ----

// What it means that a file of this folder was not read. Too large for what it should be is damage, and so is a file that is
// missing in a folder that is there, for one that is removed goes as a whole, by a rename. A link that leads nowhere is of a
// disk that is not there now.
static Error *judge(const char *folder, Error *error) {
    struct stat info;
    if (error != NULL && error->kind == ERROR_MISSING && lstat(folder, &info) == 0) {
        error->kind = stat(folder, &info) == 0 ? ERROR_DAMAGED : ERROR_UNREADABLE;
    } else if (error != NULL && error->kind == ERROR_FAILURE) {
        error->kind = ERROR_DAMAGED;
    }
    return error;
}

static Error *look_at(const char *path, struct stat *info) {
    int tries = 0;
    Error *error;
    do {
        error = lstat(path, info) != 0 ? error_system(errno, "%s cannot be read", path) : NULL;
    } while (file_try_again(&error, &tries));
    return error;
}

static Error *verify_file(const char *folder, const ManifestFile *file, bool checksum) {
    char *path = path_join(folder, file->name);
    struct stat info;
    int64_t bytes = 0;
    uint64_t hash = 0;
    Error *error = look_at(path, &info);
    if (error != NULL) {
        error = judge(folder, error);
    } else if (!S_ISREG(info.st_mode)) {
        error = damaged("%s is not a plain file", path);
    } else if (info.st_size != file->bytes) {
        error = damaged("%s has %lld bytes, not %" PRId64, path, (long long)info.st_size, file->bytes);
    } else if (checksum) {
        error = judge(folder, stream_file_hash(path, -1, &bytes, &hash));
        if (error == NULL && (bytes != file->bytes || hash != file->hash)) {
            error = damaged("%s: its checksum is not the one in the manifest", path);
        }
    }
    free(path);
    return error;
}

static Error *verify_files(const char *folder, const Manifest *manifest, bool checksums) {
    for (int i = 0; i < manifest->file_count; i++) {
        TRY(verify_file(folder, &manifest->files[i], checksums));
    }
    return NULL;
}

static Error *read_text(const char *folder, Buffer *text) {
    char *path = path_join(folder, MANIFEST_NAME);
    Error *error = file_read(path, MANIFEST_MOST_BYTES, text);
    free(path);
    return judge(folder, error);
}

// `key` tells this manifest in this folder from any other.
static Error *parse_text(const char *folder, const Buffer *text, Manifest *out, uint64_t *key) {
    char *path = path_join(folder, MANIFEST_NAME);
    *key = hash64_seeded(text->data, text->size, hash64(folder, strlen(folder)));
    Error *error = manifest_parse(path, text->data, text->size, out);
    // Which one is the newest is told by the folders' names.
    int64_t named = steps_named(path_name(folder));
    if (error == NULL && named >= 0 && named != out->step) {
        error = damaged("%s: it is of step %" PRId64 ", its folder of another", path, out->step);
        manifest_free(out);
    }
    free(path);
    return error;
}

static Error *read_manifest(const char *folder, Manifest *out, uint64_t *key) {
    Buffer text = {0};
    Error *error = read_text(folder, &text);
    error = error == NULL ? parse_text(folder, &text, out, key) : error;
    buffer_free(&text);
    return error;
}

// What its manifest alone tells; its files were not looked at.
static Error *open_text(const char *path, const Buffer *text, Checkpoint **out) {
    *out = NULL;
    Manifest manifest = {0};
    uint64_t key = 0;
    int64_t total = 0;
    TRY(parse_text(path, text, &manifest, &key));
    for (int i = 0; i < manifest.file_count; i++) {
        if (__builtin_add_overflow(total, manifest.files[i].bytes, &total)) {
            manifest_free(&manifest);
            return damaged("%s: its files are too large together", path);
        }
    }
    Checkpoint *c = memory_zeroed(1, sizeof *c);
    c->path = memory_string(path);
    c->manifest = manifest;
    c->places = memory_zeroed((size_t)manifest.part_count, sizeof *c->places);
    c->located = memory_zeroed((size_t)manifest.file_count, sizeof *c->located);
    c->info = (CheckpointInfo){.run = manifest.run,
                               .step = manifest.step,
                               .ranks = manifest.ranks,
                               .layout = manifest.layout,
                               .created = manifest.created,
                               .model = manifest.model,
                               .seed = manifest.seed,
                               .state = manifest.state,
                               .base = manifest.has_base ? &c->manifest.base : NULL,
                               .tensors = manifest.tensors,
                               .tensor_count = manifest.tensor_count,
                               .bytes = total};
    pthread_mutex_init(&c->mutex, NULL);
    c->key = key;
    *out = c;
    return NULL;
}

static Error *open_manifest(const char *path, Checkpoint **out) {
    Buffer text = {0};
    *out = NULL;
    Error *error = read_text(path, &text);
    error = error == NULL ? open_text(path, &text, out) : error;
    buffer_free(&text);
    return error;
}

Error *checkpoint_open_shared(Comm *world, const char *path, Checkpoint **out) {
    Buffer text = {0};
    *out = NULL;
    Error *error = comm_agree(world, world->rank == 0 ? read_text(path, &text) : NULL);
    error = error == NULL ? comm_broadcast_buffer(world, &text, 0) : error;
    if (error == NULL) {
        error = open_text(path, &text, out);
        error = error == NULL && world->rank == 0 ? verify_files(path, &(*out)->manifest, false) : error;
        error = comm_agree(world, error);
    }
    if (error != NULL) {
        checkpoint_close(*out);
        *out = NULL;
    }
    buffer_free(&text);
    return error;
}

Error *checkpoint_open(const char *path, bool verify, Checkpoint **out) {
    TRY(open_manifest(path, out));
    Error *error = verify_files(path, &(*out)->manifest, verify);
    if (error != NULL) {
        checkpoint_close(*out);
        *out = NULL;
    } else if (verify) {
        checkpoint_known_whole(*out);
    }
    return error;
}

const Manifest *checkpoint_manifest(const Checkpoint *c) {
    return &c->manifest;
}

Error *checkpoint_whole(Checkpoint *c) {
    if (known(c, false)) {
        return damaged("%s was found damaged before", c->path);
    }
    if (!known(c, true)) {
        TRY(verify_files(c->path, &c->manifest, true));
        checkpoint_known_whole(c);
    }
    return NULL;
}

void checkpoint_close(Checkpoint *c) {
    if (c != NULL) {
        pthread_mutex_destroy(&c->mutex);
        manifest_free(&c->manifest);
        free(c->places);
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

const char *checkpoint_kind(const Checkpoint *c, int tensor, int index, DataType *type) {
    const Manifest *m = &c->manifest;
    int at = manifest_contents_of(m, tensor) + index;
    if (at >= m->content_count || m->contents[at].tensor != tensor) {
        return NULL;
    }
    *type = m->parts[m->contents[at].first].part.type;
    return m->contents[at].kind;
}

// ---- contents, here and in the base ----

// The content of a tensor's kind, and through *holder whose: of the base where it is weights that are not here. NULL where
// there is none.
static const ManifestContent *content_of(const Checkpoint *c, const char *name, const char *kind, const Checkpoint **holder) {
    int tensor = manifest_tensor(&c->manifest, name);
    const ManifestContent *content = tensor >= 0 ? manifest_content(&c->manifest, tensor, kind) : NULL;
    *holder = c;
    if (content == NULL && tensor >= 0 && c->base != NULL && strcmp(kind, "weight") == 0) {
        return content_of(c->base, name, kind, holder);
    }
    return content;
}

bool checkpoint_has(const Checkpoint *c, const char *name, const char *kind) {
    const Checkpoint *holder;
    return content_of(c, name, kind, &holder) != NULL;
}

bool checkpoint_digest(const Checkpoint *c, const char *name, const char *kind, uint64_t *out) {
    const Checkpoint *holder;
    const ManifestContent *content = content_of(c, name, kind, &holder);
    if (content == NULL || !content->has_digest) {
        return false;
    }
    *out = content->digest;
    return true;
}

bool checkpoint_fingerprint(const Checkpoint *c, uint64_t *out) {
    const Manifest *m = &c->manifest;
    Buffer text = {0};
    for (int i = 0; i < m->tensor_count && m->version > 1; i++) {
        int t = m->tensors_by_name[i];
        const ManifestContent *weights = manifest_content(m, t, "weight");
        buffer_printf(&text, "%s ", m->tensors[t].name);
        for (int d = 0; d < m->tensors[t].dims; d++) {
            buffer_printf(&text, "%s%" PRId64, d > 0 ? "x" : "", m->tensors[t].shape[d]);
        }
        if (weights != NULL) {
            buffer_printf(&text, " %016" PRIx64 "\n", weights->digest);
        } else {
            buffer_text(&text, " base\n");
        }
    }
    if (m->has_base) {
        buffer_printf(&text, "base %016" PRIx64 "\n", m->base.fingerprint);
    }
    *out = hash64(text.data, text.size);
    buffer_free(&text);
    return m->version > 1;
}

static bool same_shape(const CheckpointTensor *a, const CheckpointTensor *b) {
    return a->dims == b->dims && memcmp(a->shape, b->shape, (size_t)a->dims * sizeof *a->shape) == 0;
}

Error *checkpoint_attach_base(Checkpoint *c, Checkpoint *base) {
    const Manifest *m = &c->manifest;
    uint64_t fingerprint = 0;
    if (!m->has_base) {
        return failure("%s is complete in itself and has no base", c->path);
    }
    if (!checkpoint_fingerprint(base, &fingerprint)) {
        return failure("%s was written before checkpoints had digests, so it cannot be the base of %s", base->path, c->path);
    }
    if (fingerprint != m->base.fingerprint) {
        return failure("%s builds upon a base of fingerprint %016" PRIx64 " (%s); %s is another, of fingerprint %016" PRIx64,
                       c->path, m->base.fingerprint, m->base.path, base->path, fingerprint);
    }
    for (int t = 0; t < m->tensor_count; t++) {
        const char *name = m->tensors[t].name;
        int there = manifest_tensor(&base->manifest, name);
        if (manifest_content(m, t, "weight") == NULL &&
            (there < 0 || !same_shape(&m->tensors[t], &base->manifest.tensors[there]))) {
            return damaged("%s: tensor %s is neither in it nor, of that shape, in its base %s", c->path, name, base->path);
        }
    }
    c->base = base;
    return NULL;
}

// ---- finding ----

Error *checkpoint_run_of(const char *folder, uint64_t *run) {
    *run = 0;
    char *path = path_join(folder, "run.json");
    json_t *document = NULL;
    Error *error = json_read_file(path, MANIFEST_MOST_BYTES, &document);
    if (error == NULL && json_object_get(document, "id") != NULL) {
        error = json_field_hex64(document, path, "id", run);
    }
    if (error != NULL && error->kind == ERROR_DAMAGED) {
        log_warning("%s; so a checkpoint of another run is not told from this one's", error->message);
        *run = 0;
    }
    if (error != NULL && error->kind != ERROR_UNREADABLE) {
        error_free(error);
        error = NULL;
    }
    json_decref(document);
    free(path);
    return error;
}

// What the search is for, and where.
typedef struct Search {
    char *folder;  // of checkpoints
    int64_t *steps;
    int count;
    uint64_t run;
    Strings *skipped;
} Search;

static void skip(const Search *s, const char *path, const char *how, const char *reason) {
    if (s->skipped != NULL) {
        char *line = memory_format("%s %s and was skipped: %s", path_name(path), how, reason);
        strings_add(s->skipped, line);
        free(line);
    }
}

// Whether a checkpoint before steps[at] says that it is of the run.
static Error *run_before(const Search *s, int at, bool *found) {
    *found = false;
    for (int i = at - 1; i >= 0 && !*found; i--) {
        char *path = steps_path(s->folder, s->steps[i]);
        Manifest manifest = {0};
        uint64_t key;
        Error *error = read_manifest(path, &manifest, &key);
        free(path);
        if (error != NULL && error->kind == ERROR_UNREADABLE) {
            return error;
        }
        error_free(error);
        *found = manifest.run == s->run;
        manifest_free(&manifest);
    }
    return NULL;
}

// Whether steps[at], which verifies, is of the run; if not a line says so.
static Error *of_the_run(const Search *s, int at, const char *path, const CheckpointInfo *info, bool *is) {
    *is = s->run == 0 || info->run == s->run;
    bool contradicted = false;
    char reason[128];
    if (!*is && info->run == 0) {
        TRY(run_before(s, at, &contradicted));
        *is = !contradicted;
        snprintf(reason, sizeof reason, "it is of version 1, but older ones are of this run, %016" PRIx64 ", already", s->run);
    } else {
        snprintf(reason, sizeof reason, "its run is %016" PRIx64 ", this folder's (run.json) %016" PRIx64, info->run, s->run);
    }
    if (!*is) {
        skip(s, path, "is of another run", reason);
    }
    return NULL;
}

// Tries one checkpoint; what is wrong with it becomes a line. An error ends the search: ERROR_MISSING where it vanished.
static Error *try_step(const Search *s, int at, const char *path, bool *good) {
    Checkpoint *checkpoint;
    *good = false;
    Error *error = checkpoint_open(path, true, &checkpoint);
    if (error == NULL) {
        error = of_the_run(s, at, path, checkpoint_info(checkpoint), good);
        checkpoint_close(checkpoint);
    } else if (error->kind == ERROR_DAMAGED) {
        skip(s, path, "is damaged", error->message);
        error_free(error);
        error = NULL;
    } else if (error->kind != ERROR_MISSING) {
        error = error_wrap(error, "%s may be good, but cannot be read now, so nothing older is taken", path);
    }
    return error;
}

static Error *search(const Search *s, int64_t before, char **path) {
    Error *error = NULL;
    for (int i = s->count - 1; i >= 0 && *path == NULL && error == NULL; i--) {
        char *candidate = steps_path(s->folder, s->steps[i]);
        bool good = false;
        error = s->steps[i] < before ? try_step(s, i, candidate, &good) : NULL;
        if (good && error == NULL) {
            *path = candidate;
        } else {
            free(candidate);
        }
    }
    if (error != NULL || *path != NULL) {
        return error;
    }
    if (s->count == 0) {
        return error_new(ERROR_MISSING, "%s holds no checkpoint", s->folder);
    }
    return damaged("%s: none of its %d checkpoints%s can be taken; restore one from a copy, or choose another folder for a new "
                   "run",
                   s->folder, s->count, before < INT64_MAX ? " before the damaged one" : "");
}

// Whether the folder is a checkpoint itself: it holds a manifest.
static Error *is_checkpoint(const char *folder, bool *is) {
    char *manifest = path_join(folder, MANIFEST_NAME);
    struct stat info;
    Error *error = look_at(manifest, &info);
    *is = error == NULL;
    if (error != NULL && error->kind == ERROR_MISSING) {
        error_free(error);
        error = NULL;
    }
    free(manifest);
    return error;
}

Error *checkpoint_find(const char *folder, int64_t before, uint64_t run, char **path, Strings *skipped) {
    enum { MOST_TRIES = 20, PAUSE_US = 20000 };  // a run that saves removes one checkpoint in seconds
    *path = NULL;
    bool itself;
    TRY(is_checkpoint(folder, &itself));
    if (itself) {
        Checkpoint *checkpoint;
        TRY(checkpoint_open(folder, true, &checkpoint));
        checkpoint_close(checkpoint);
        *path = memory_string(folder);
        return NULL;
    }
    Error *error = NULL;
    bool none = true;
    for (int tries = 0; tries < MOST_TRIES; tries++) {
        Strings lines = {0};
        Search s = {.folder = steps_folder(folder), .run = run, .skipped = skipped != NULL ? &lines : NULL};
        error_free(error);
        error = steps_list(s.folder, &s.steps, &s.count);
        error = error == NULL ? search(&s, before, path) : error;
        none = s.count == 0;
        bool vanished = error != NULL && error->kind == ERROR_MISSING && !none;
        for (size_t i = 0; i < lines.count && !vanished; i++) {
            strings_add(skipped, lines.items[i]);
        }
        strings_free(&lines);
        free(s.steps);
        free(s.folder);
        if (!vanished) {
            break;
        }
        usleep(PAUSE_US);
    }
    if (error != NULL && error->kind == ERROR_MISSING && !none) {
        error->kind = ERROR_UNREADABLE;  // one vanished in every look
    }
    return error;
}

// ---- reading ----

// Finds the places of all parts that lie in a file.
static Error *locate_file(Checkpoint *c, int file) {
    const Manifest *m = &c->manifest;
    H5Dataset *datasets = memory_zeroed(2 * (size_t)m->part_count, sizeof *datasets);
    int count = 0;
    for (int i = 0; i < m->part_count; i++) {
        const ManifestPart *p = &m->parts[i];
        if (p->file != file) {
            continue;
        }
        H5Dataset *own = &datasets[count];
        count += h5_part(&m->tensors[p->part.tensor], &p->part, own);
        if (p->dataset != NULL) {
            free(own->path);
            own->path = memory_string(p->dataset);
            own->dims = 1;
            own->extents[0] = p->count;
        }
    }
    char *path = path_join(c->path, m->files[file].name);
    int tries = 0;
    Error *error;
    do {
        error = judge(c->path, h5_locate(path, datasets, count));
    } while (file_try_again(&error, &tries));
    free(path);
    for (int i = 0, at = 0; i < m->part_count; i++) {
        if (m->parts[i].file == file) {
            c->places[i].elements = datasets[at++].offset;
            c->places[i].scales = data_type_has_scales(m->parts[i].part.type) ? datasets[at++].offset : 0;
        }
    }
    h5_free(datasets, count);
    c->located[file] = error == NULL;
    return error;
}

static Error *read_at(const char *path, int descriptor, int64_t offset, void *out, int64_t size) {
    for (char *p = out; size > 0;) {
        ssize_t got = pread(descriptor, p, (size_t)size, offset);
        if (got > 0) {
            p += got;
            offset += got;
            size -= got;
        } else if (got == 0) {
            return damaged("%s became shorter while it was read", path);
        } else if (errno != EINTR) {
            return error_system(errno, "%s cannot be read", path);
        }
    }
    return NULL;
}

// Runs of one part that wait to be read together, as the elements [begin, end) of it.
enum { SPAN_ELEMENTS = 1 << 20, SPAN_GAP = 1 << 14, SPAN_RUNS = 4096 };

typedef struct Span {
    const char *path;  // of the file, open as `descriptor`
    int descriptor;
    DataType type;
    StoredAt place;
    float *out;  // values, or as they are stored:
    char *stored;
    float *stored_scales;
    BoxRun runs[SPAN_RUNS];  // whose `from` rise
    int count;
    int64_t begin, end;
    void *elements;  // SPAN_ELEMENTS of them, and the scales of as many
    float *scales;
    Error *error;
} Span;

static Error *read_span(Span *s) {
    int64_t at = s->place.elements + part_bytes(s->type, s->begin), count = s->end - s->begin;
    if (s->stored == NULL && s->type == TYPE_FP32 && s->count == 1) {
        return read_at(s->path, s->descriptor, at, s->out + s->runs[0].to, part_bytes(s->type, count));
    }
    if (s->stored != NULL && s->count == 1 && !data_type_has_scales(s->type)) {
        return read_at(s->path, s->descriptor, at, s->stored + part_bytes(s->type, s->runs[0].to), part_bytes(s->type, count));
    }
    TRY(read_at(s->path, s->descriptor, at, s->elements, part_bytes(s->type, count)));
    int64_t block = s->begin / DATA_TYPE_BLOCK, before = s->begin - block * DATA_TYPE_BLOCK;
    TRY(read_at(s->path, s->descriptor, s->place.scales + block * (int64_t)sizeof(float), s->scales,
                part_scale_bytes(s->type, before + count)));
    for (int i = 0; i < s->count; i++) {
        const BoxRun *run = &s->runs[i];
        const char *elements = (const char *)s->elements + part_bytes(s->type, run->from - s->begin);
        const float *scales = s->scales + (run->from / DATA_TYPE_BLOCK - block);
        if (s->stored == NULL) {
            values_widen(s->type, elements, scales, run->from, run->count, s->out + run->to);
            continue;
        }
        memcpy(s->stored + part_bytes(s->type, run->to), elements, (size_t)part_bytes(s->type, run->count));
        if (data_type_has_scales(s->type)) {  // both lists hold whole blocks, so a block begins at the same place of a run
            int64_t blocks = (run->to + run->count - 1) / DATA_TYPE_BLOCK - run->to / DATA_TYPE_BLOCK + 1;
            memcpy(s->stored_scales + run->to / DATA_TYPE_BLOCK, scales, (size_t)blocks * sizeof *scales);
        }
    }
    return NULL;
}

static bool flush_span(Span *s) {
    if (s->count > 0 && s->error == NULL) {
        s->error = read_span(s);
    }
    s->count = 0;
    return s->error == NULL;
}

// A run joins the span that waits, or has it read first. Long ones are cut.
static bool add_run(void *context, BoxRun run) {
    Span *s = context;
    while (run.count > 0) {
        int64_t count = run.count < SPAN_ELEMENTS ? run.count : SPAN_ELEMENTS;
        bool joins = s->count < SPAN_RUNS && run.from >= s->end && run.from - s->end <= SPAN_GAP &&
                     run.from + count - s->begin <= SPAN_ELEMENTS;
        if (s->count > 0 && !joins && !flush_span(s)) {
            return false;
        }
        s->begin = s->count == 0 ? run.from : s->begin;
        s->end = run.from + count;
        s->runs[s->count++] = (BoxRun){run.from, run.to, count};
        run = (BoxRun){run.from + count, run.to + count, run.count - count};
    }
    return true;
}

static bool shares_any(const CheckpointPart *part, const Box *boxes, int count) {
    for (int i = 0; i < part->box_count; i++) {
        for (int k = 0; k < count; k++) {
            Box both;
            if (box_intersect(&part->boxes[i], &boxes[k], &both)) {
                return true;
            }
        }
    }
    return false;
}

static Error *read_part_once(const CheckpointPart *part, const Box *boxes, int count, Span *s) {
    s->descriptor = open(s->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (s->descriptor < 0) {
        return error_system(errno, "%s cannot be opened", s->path);
    }
    s->count = 0;
    s->error = NULL;
    if (boxes_runs(part->boxes, part->box_count, boxes, count, add_run, s, NULL)) {
        flush_span(s);
    }
    close(s->descriptor);
    return s->error;
}

// Reads what a part holds of the boxes.
static Error *read_part(Checkpoint *c, int index, const Box *boxes, int count, Span *s) {
    const ManifestPart *p = &c->manifest.parts[index];
    if (!shares_any(&p->part, boxes, count)) {
        return NULL;
    }
    if (!c->located[p->file]) {
        TRY(locate_file(c, p->file));
    }
    char *path = path_join(c->path, c->manifest.files[p->file].name);
    s->path = path;
    s->type = p->part.type;
    s->place = c->places[index];
    int tries = 0;
    Error *error;
    do {
        error = judge(c->path, read_part_once(&p->part, boxes, count, s));
    } while (file_try_again(&error, &tries));
    free(path);
    return error;
}

static Error *check_boxes(const Checkpoint *c, const char *name, const Box *boxes, int count) {
    const CheckpointTensor *tensor = &c->manifest.tensors[manifest_tensor(&c->manifest, name)];
    for (int i = 0; i < count; i++) {
        if (!box_inside(&boxes[i], tensor->dims, tensor->shape)) {
            return damaged("%s: a box was asked for that does not lie within tensor %s", c->path, name);
        }
    }
    return NULL;
}

// Reads the boxes of the parts of a content, as the span wants them.
static Error *read_content_parts(Checkpoint *c, const ManifestContent *content, const Box *boxes, int count, Span *span) {
    Error *error = NULL;
    span->elements = memory_new(SPAN_ELEMENTS, sizeof(float));
    span->scales = memory_new(SPAN_ELEMENTS / DATA_TYPE_BLOCK + 1, sizeof(float));
    pthread_mutex_lock(&c->mutex);
    for (int i = content->first; i < content->first + content->count && error == NULL; i++) {
        error = read_part(c, i, boxes, count, span);
    }
    pthread_mutex_unlock(&c->mutex);
    free(span->elements);
    free(span->scales);
    free(span);
    return error;
}

Error *checkpoint_read_stored(Checkpoint *c, const ManifestContent *content, const Box *boxes, int count, void *elements,
                              float *scales) {
    Span *span = memory_zeroed(1, sizeof *span);
    span->stored = elements;
    span->stored_scales = scales;
    return read_content_parts(c, content, boxes, count, span);
}

Error *checkpoint_read(Checkpoint *c, const char *name, const char *kind, const Box *boxes, int count, float *out) {
    if (manifest_tensor(&c->manifest, name) < 0) {
        return damaged("%s has no tensor %s", c->path, name);
    }
    TRY(check_boxes(c, name, boxes, count));
    const Checkpoint *found;
    const ManifestContent *content = content_of(c, name, kind, &found);
    if (content == NULL && c->manifest.has_base && c->base == NULL && strcmp(kind, "weight") == 0) {
        return failure("%s: the weights of %s are in its base, of fingerprint %016" PRIx64 " (%s), which was not given",
                       c->path, name, c->manifest.base.fingerprint, c->manifest.base.path);
    }
    if (content == NULL) {
        return damaged("%s: %s %s is not there", c->path, kind, name);
    }
    if (found != c) {
        return checkpoint_read(c->base, name, kind, boxes, count, out);
    }
    Span *span = memory_zeroed(1, sizeof *span);
    span->out = out;
    return read_content_parts(c, content, boxes, count, span);
}

Error *checkpoint_compare_digest(const Checkpoint *c, const char *name, const char *kind, uint64_t digest) {
    uint64_t expected;
    if (!checkpoint_digest(c, name, kind, &expected) || digest == expected) {
        return NULL;
    }
    checkpoint_known_damaged(c);
    return damaged("%s: %s %s was not loaded as it was saved: its digest is %016" PRIx64 ", not %016" PRIx64, c->path, kind,
                   name, digest, expected);
}

Error *checkpoint_compare(const Checkpoint *c, const char *name, const char *kind,
                          void (*read)(void *context, const Box *boxes, int count, float *to), void *context) {
    enum { PIECE = 1 << 20 };
    uint64_t expected, sum = 0;
    if (!checkpoint_digest(c, name, kind, &expected)) {
        return NULL;
    }
    const CheckpointTensor *tensor = &c->manifest.tensors[manifest_tensor(&c->manifest, name)];
    Box whole = box_whole(tensor->dims, tensor->shape), boxes[BOX_MOST_OF_RANGE];
    int64_t elements = box_count(&whole);
    float *values = memory_new((size_t)(elements < PIECE ? elements : PIECE), sizeof *values);
    for (int64_t at = 0; at < elements; at += PIECE) {
        int count = boxes_of_range(&whole, 1, at, elements - at < PIECE ? elements : at + PIECE, boxes);
        read(context, boxes, count, values);
        sum += digest_boxes(tensor->dims, tensor->shape, boxes, count, values);
    }
    free(values);
    return checkpoint_compare_digest(c, name, kind, sum);
}

// What the checkpoint itself holds, for checkpoint_compare.
typedef struct ContentReader {
    Checkpoint *checkpoint;
    const char *name, *kind;
    Error *error;
} ContentReader;

static void read_content(void *context, const Box *boxes, int count, float *to) {
    ContentReader *r = context;
    if (r->error == NULL) {
        r->error = checkpoint_read(r->checkpoint, r->name, r->kind, boxes, count, to);
    }
    if (r->error != NULL) {
        memset(to, 0, (size_t)boxes_count(boxes, count) * sizeof *to);
    }
}

Error *checkpoint_check_contents(Checkpoint *c) {
    const Manifest *m = &c->manifest;
    Error *error = NULL;
    for (int f = 0; f < m->file_count && error == NULL; f++) {
        error = m->files[f].has_parts && !c->located[f] ? locate_file(c, f) : NULL;
    }
    for (int i = 0; i < m->content_count && error == NULL; i++) {
        ContentReader reader = {c, m->tensors[m->contents[i].tensor].name, m->contents[i].kind, NULL};
        Error *compared = checkpoint_compare(c, reader.name, reader.kind, read_content, &reader);
        error = reader.error;
        error_keep(&error, compared);
    }
    return error;
}

// What of a tensor lies in a file: adds a line for each kind that is not what it was, of many the first few.
static Error *name_tensors(Checkpoint *c, int file, Strings *wrong) {
    enum { MOST_NAMED = 8 };
    const Manifest *m = &c->manifest;
    int named = 0;
    for (int i = 0; i < m->part_count; i++) {
        const CheckpointPart *part = &m->parts[i].part;
        const char *name = m->tensors[part->tensor].name;
        if (m->parts[i].file != file) {
            continue;
        }
        ContentReader reader = {c, name, part->kind, NULL};
        Error *compared = checkpoint_compare(c, name, part->kind, read_content, &reader);
        if (reader.error != NULL && reader.error->kind == ERROR_UNREADABLE) {
            error_free(compared);
            return reader.error;
        }
        if ((reader.error != NULL || compared != NULL) && named++ < MOST_NAMED) {
            char *line = memory_format("  %s %s %s", part->kind, name, reader.error != NULL ? "cannot be read" : "differs");
            strings_add(wrong, line);
            free(line);
        }
        error_free(reader.error);
        error_free(compared);
    }
    char *rest = named > MOST_NAMED ? memory_format("  and %d more of its tensors", named - MOST_NAMED)
                 : named == 0       ? memory_string("  no tensor's numbers differ: it is in what lies between them")
                                    : NULL;
    if (rest != NULL && m->files[file].has_parts && m->version > 1) {
        strings_add(wrong, rest);
    }
    free(rest);
    return NULL;
}

// Takes an error that says what is wrong with the checkpoint into the list; any other is returned.
static Error *into_list(Error *error, Strings *wrong) {
    if (error == NULL || error->kind != ERROR_DAMAGED) {
        return error;
    }
    strings_add(wrong, error->message);
    error_free(error);
    return NULL;
}

Error *checkpoint_verify(const char *path, Strings *wrong) {
    Checkpoint *c = NULL;
    TRY(into_list(open_manifest(path, &c), wrong));
    Error *error = NULL;
    for (int i = 0; c != NULL && i < c->manifest.file_count && error == NULL; i++) {
        size_t before = wrong->count;
        error = into_list(verify_file(path, &c->manifest.files[i], true), wrong);
        if (error == NULL && wrong->count > before) {
            error = name_tensors(c, i, wrong);
        }
    }
    // All files as they were listed: whether what they hold is what was saved.
    if (c != NULL && error == NULL && wrong->count == 0) {
        error = into_list(checkpoint_check_contents(c), wrong);
    }
    checkpoint_close(c);
    return error;
}

Error *checkpoint_blob(Checkpoint *c, const char *name, Buffer *out) {
    int file = manifest_file(&c->manifest, name);
    if (file < 0 || c->manifest.files[file].has_parts) {
        return error_new(ERROR_MISSING, "%s has no %s", c->path, name);
    }
    char *path = path_join(c->path, name);
    Error *error = judge(c->path, file_read(path, (size_t)c->manifest.files[file].bytes, out));
    if (error == NULL && hash64(out->data, out->size) != c->manifest.files[file].hash) {
        error = damaged("%s: its checksum is not the one in the manifest", path);
    }
    free(path);
    return error;
}
