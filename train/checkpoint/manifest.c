// The manifest of a checkpoint: see manifest.h.
#include "train/checkpoint/manifest.h"

#include <inttypes.h>
#include <stdio.h>

const char *slice_kind_name(SliceKind kind) {
    static const char *const names[SLICE_KINDS] = {"weight", "moment1", "moment2"};
    return names[kind];
}

bool manifest_plain_name(const char *name) {
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t n = strlen(name);
    return n > 0 && n <= MANIFEST_NAME_BYTES && name[0] != '.' && strspn(name, plain) == n;
}

// ---- lookups ----

int manifest_tensor(const Manifest *manifest, const char *name) {
    int low = 0, high = manifest->tensor_count;
    while (low < high) {
        int middle = low + (high - low) / 2, index = manifest->tensors_by_name[middle];
        int order = strcmp(manifest->tensors[index].name, name);
        if (order == 0) {
            return index;
        }
        if (order < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return -1;
}

int manifest_file(const Manifest *manifest, const char *name) {
    int low = 0, high = manifest->file_count;
    while (low < high) {
        int middle = low + (high - low) / 2, order = strcmp(manifest->files[middle].name, name);
        if (order == 0) {
            return middle;
        }
        if (order < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return -1;
}

static int compare_slices(const void *left, const void *right) {
    const ManifestSlice *a = left, *b = right;
    if (a->tensor != b->tensor) {
        return a->tensor < b->tensor ? -1 : 1;
    }
    if (a->kind != b->kind) {
        return a->kind < b->kind ? -1 : 1;
    }
    return a->begin != b->begin ? (a->begin < b->begin ? -1 : 1) : 0;
}

int manifest_slice_after(const Manifest *manifest, int tensor, SliceKind kind, int64_t begin) {
    // Slices of a tensor and kind do not overlap, so they are sorted by their ends too.
    int low = 0, high = manifest->slice_count;
    while (low < high) {
        int middle = low + (high - low) / 2;
        const ManifestSlice *s = &manifest->slices[middle];
        bool before = s->tensor != tensor ? s->tensor < tensor : s->kind != kind ? s->kind < kind : s->end <= begin;
        if (before) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low < manifest->slice_count && manifest->slices[low].tensor == tensor && manifest->slices[low].kind == kind) {
        return low;
    }
    return manifest->slice_count;
}

int64_t manifest_missing(const Manifest *manifest, int tensor, SliceKind kind, int64_t begin, int64_t end) {
    int64_t at = begin;
    for (int i = manifest_slice_after(manifest, tensor, kind, begin); at < end && i < manifest->slice_count; i++) {
        const ManifestSlice *s = &manifest->slices[i];
        if (s->tensor != tensor || s->kind != kind || s->begin > at) {
            break;
        }
        at = s->end;
    }
    return at < end ? at : -1;
}

// ---- parsing ----

static Error *field_name(const json_t *object, const char *where, const char *key, const char **out) {
    TRY(json_field_string(object, where, key, out));
    if (!manifest_plain_name(*out)) {
        return damaged("%s: \"%s\" is not a plain name of at most %d letters, digits, '.', '_' and '-'", where, key,
                       MANIFEST_NAME_BYTES);
    }
    return NULL;
}

static Error *parse_tensor(const char *where, const json_t *item, CheckpointTensor *tensor, int64_t *elements) {
    json_t *shape = NULL;
    TRY(field_name(item, where, "name", &tensor->name));
    TRY(json_field_array(item, where, "shape", &shape));
    if (json_array_size(shape) > CHECKPOINT_MOST_DIMS) {
        return damaged("%s: tensor %s has %zu dimensions, more than %d", where, tensor->name, json_array_size(shape),
                       CHECKPOINT_MOST_DIMS);
    }
    tensor->dims = (int)json_array_size(shape);
    *elements = 1;
    for (int d = 0; d < tensor->dims; d++) {
        const json_t *extent = json_array_get(shape, (size_t)d);
        tensor->shape[d] = json_is_integer(extent) ? json_integer_value(extent) : 0;
        if (tensor->shape[d] < 1 || __builtin_mul_overflow(*elements, tensor->shape[d], elements) ||
            *elements > MANIFEST_MOST_ELEMENTS) {
            return damaged("%s: the shape of tensor %s is not possible", where, tensor->name);
        }
    }
    return NULL;
}

// qsort_r wants the table: names are compared through it.
static int compare_tensor_names(const void *left, const void *right, void *tensors) {
    const CheckpointTensor *table = tensors;
    return strcmp(table[*(const int *)left].name, table[*(const int *)right].name);
}

static Error *parse_tensors(const char *where, const json_t *list, Manifest *m) {
    size_t count = json_array_size(list);
    m->tensors = memory_zeroed(count, sizeof *m->tensors);
    m->elements = memory_zeroed(count, sizeof *m->elements);
    m->tensors_by_name = memory_zeroed(count, sizeof *m->tensors_by_name);
    for (size_t i = 0; i < count; i++) {
        TRY(parse_tensor(where, json_array_get(list, i), &m->tensors[i], &m->elements[i]));
        m->tensors_by_name[i] = (int)i;
    }
    m->tensor_count = (int)count;
    qsort_r(m->tensors_by_name, count, sizeof *m->tensors_by_name, compare_tensor_names, m->tensors);
    for (size_t i = 1; i < count; i++) {
        const char *name = m->tensors[m->tensors_by_name[i]].name;
        if (strcmp(name, m->tensors[m->tensors_by_name[i - 1]].name) == 0) {
            return damaged("%s: tensor %s stands twice", where, name);
        }
    }
    return NULL;
}

static int compare_files(const void *left, const void *right) {
    return strcmp(((const ManifestFile *)left)->name, ((const ManifestFile *)right)->name);
}

static Error *parse_files(const char *where, const json_t *list, Manifest *m) {
    size_t count = json_array_size(list);
    m->files = memory_zeroed(count, sizeof *m->files);
    for (size_t i = 0; i < count; i++) {
        const json_t *item = json_array_get(list, i);
        TRY(field_name(item, where, "name", &m->files[i].name));
        TRY(json_field_i64(item, where, "bytes", 0, INT64_MAX, &m->files[i].bytes));
        TRY(json_field_hex64(item, where, "xxh3", &m->files[i].hash));
    }
    m->file_count = (int)count;
    qsort(m->files, count, sizeof *m->files, compare_files);
    for (size_t i = 0; i < count; i++) {
        if (strcmp(m->files[i].name, MANIFEST_NAME) == 0 || (i > 0 && strcmp(m->files[i].name, m->files[i - 1].name) == 0)) {
            return damaged("%s: file %s stands twice", where, m->files[i].name);
        }
    }
    return NULL;
}

// A dataset's path is "/KIND/NAME" or "/KIND/NAME@BEGIN" and nothing else.
static bool dataset_fits(const char *dataset, const char *kind, const char *tensor, int64_t begin) {
    char expected[MANIFEST_NAME_BYTES + 64];
    int n = snprintf(expected, sizeof expected, "/%s/%s", kind, tensor);
    if (begin > 0) {
        snprintf(expected + n, sizeof expected - (size_t)n, "@%" PRId64, begin);
    }
    return strcmp(dataset, expected) == 0;
}

static Error *parse_slice(const char *where, const json_t *item, const Manifest *m, ManifestSlice *slice) {
    const char *tensor = NULL, *kind = NULL, *file = NULL;
    TRY(json_field_string(item, where, "tensor", &tensor));
    TRY(json_field_string(item, where, "kind", &kind));
    TRY(json_field_string(item, where, "file", &file));
    TRY(json_field_string(item, where, "dataset", &slice->dataset));
    slice->tensor = manifest_tensor(m, tensor);
    slice->file = manifest_file(m, file);
    int k = 0;
    while (k < SLICE_KINDS && strcmp(kind, slice_kind_name((SliceKind)k)) != 0) {
        k++;
    }
    if (slice->tensor < 0 || slice->file < 0 || k == SLICE_KINDS) {
        return damaged("%s: a slice names %s \"%.*s\", which is not listed", where,
                       slice->tensor < 0 ? "tensor"
                       : slice->file < 0 ? "file"
                                         : "kind",
                       MANIFEST_NAME_BYTES,
                       slice->tensor < 0 ? tensor
                       : slice->file < 0 ? file
                                         : kind);
    }
    slice->kind = (SliceKind)k;
    TRY(json_field_i64(item, where, "begin", 0, m->elements[slice->tensor] - 1, &slice->begin));
    TRY(json_field_i64(item, where, "end", slice->begin + 1, m->elements[slice->tensor], &slice->end));
    if (!dataset_fits(slice->dataset, kind, tensor, slice->begin)) {
        return damaged("%s: the dataset of %s %s from %" PRId64 " has a name that does not fit", where, kind, tensor,
                       slice->begin);
    }
    // No file can hold more than its size: a hostile range cannot make a reader ask for memory in vain.
    if ((slice->end - slice->begin) > m->files[slice->file].bytes / (int64_t)sizeof(float)) {
        return damaged("%s: %s %s has more elements than its file %s can hold", where, kind, tensor, file);
    }
    m->files[slice->file].has_slices = true;
    return NULL;
}

static Error *parse_slices(const char *where, const json_t *list, Manifest *m) {
    size_t count = json_array_size(list);
    m->slices = memory_zeroed(count, sizeof *m->slices);
    for (size_t i = 0; i < count; i++) {
        TRY(parse_slice(where, json_array_get(list, i), m, &m->slices[i]));
    }
    m->slice_count = (int)count;
    qsort(m->slices, count, sizeof *m->slices, compare_slices);
    for (size_t i = 1; i < count; i++) {
        const ManifestSlice *a = &m->slices[i - 1], *b = &m->slices[i];
        if (a->tensor == b->tensor && a->kind == b->kind && a->end > b->begin) {
            return damaged("%s: slices of %s %s overlap at element %" PRId64, where, slice_kind_name(a->kind),
                           m->tensors[a->tensor].name, b->begin);
        }
    }
    return NULL;
}

static Error *parse_document(const char *where, Manifest *m) {
    const char *format = NULL;
    const json_t *root = m->document;
    json_t *state = NULL, *tensors = NULL, *files = NULL, *slices = NULL;
    int64_t version, ranks;
    TRY(json_field_string(root, where, "format", &format));
    if (strcmp(format, "athanor checkpoint") != 0) {
        return damaged("%s is not the manifest of a checkpoint", where);
    }
    TRY(json_field_i64(root, where, "version", 1, INT64_MAX, &version));
    if (version > MANIFEST_VERSION) {
        return damaged("%s: version %" PRId64 " is newer than this athanor reads (%d)", where, version, MANIFEST_VERSION);
    }
    TRY(json_field_i64(root, where, "step", 0, INT64_MAX, &m->step));
    TRY(json_field_i64(root, where, "ranks", 1, MANIFEST_MOST_RANKS, &ranks));
    m->ranks = (int)ranks;
    TRY(json_field_string(root, where, "layout", &m->layout));
    TRY(json_field_string(root, where, "created", &m->created));
    TRY(json_field_hex64(root, where, "model", &m->model));
    TRY(json_field_hex64(root, where, "seed", &m->seed));
    TRY(json_field_object(root, where, "state", &state));
    m->state = state;
    TRY(json_field_array(root, where, "tensors", &tensors));
    TRY(json_field_array(root, where, "files", &files));
    TRY(json_field_array(root, where, "slices", &slices));
    TRY(parse_tensors(where, tensors, m));
    TRY(parse_files(where, files, m));
    return parse_slices(where, slices, m);
}

Error *manifest_from_json(const char *where, json_t *document, Manifest *out) {
    *out = (Manifest){.document = document};
    Error *error = parse_document(where, out);
    if (error != NULL) {
        manifest_free(out);
    }
    return error;
}

Error *manifest_parse(const char *where, const char *bytes, size_t size, Manifest *out) {
    *out = (Manifest){0};
    json_t *document;
    TRY(json_read_bytes(where, bytes, size, &document));
    return manifest_from_json(where, document, out);
}

void manifest_free(Manifest *manifest) {
    free(manifest->tensors);
    free(manifest->elements);
    free(manifest->tensors_by_name);
    free(manifest->files);
    free(manifest->slices);
    json_decref(manifest->document);
    *manifest = (Manifest){0};
}

// ---- parts of documents ----

json_t *manifest_file_json(const char *name, int64_t bytes, uint64_t hash) {
    return json_pack("{s:s, s:I, s:o}", "name", name, "bytes", (json_int_t)bytes, "xxh3", json_hex64(hash));
}

char *manifest_dataset(const CheckpointTensor *tensor, const CheckpointSlice *slice) {
    const char *kind = slice_kind_name(slice->kind);
    return slice->begin == 0 ? memory_format("/%s/%s", kind, tensor->name)
                             : memory_format("/%s/%s@%" PRId64, kind, tensor->name, slice->begin);
}

json_t *manifest_slice_json(const CheckpointTensor *tensor, const CheckpointSlice *slice, const char *file,
                            const char *dataset) {
    return json_pack("{s:s, s:s, s:I, s:I, s:s, s:s}", "tensor", tensor->name, "kind", slice_kind_name(slice->kind), "begin",
                     (json_int_t)slice->begin, "end", (json_int_t)slice->end, "file", file, "dataset", dataset);
}

json_t *manifest_tensors_json(const CheckpointTensor *tensors, int count) {
    json_t *list = json_array();
    for (int i = 0; i < count; i++) {
        json_t *shape = json_array();
        for (int d = 0; d < tensors[i].dims; d++) {
            json_array_append_new(shape, json_integer(tensors[i].shape[d]));
        }
        json_array_append_new(list, json_pack("{s:s, s:o}", "name", tensors[i].name, "shape", shape));
    }
    return list;
}
