// The manifest of a checkpoint: see manifest.h.
#include "train/checkpoint/manifest.h"

#include "core/hash.h"
#include "train/checkpoint/part.h"

#include <inttypes.h>
#include <stdio.h>

bool manifest_plain_name(const char *name) {
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t n = strlen(name);
    return n > 0 && n <= MANIFEST_NAME_BYTES && name[0] != '.' && strspn(name, plain) == n;
}

bool manifest_kind(const char *word) {
    size_t n = strlen(word);
    return n > 0 && n <= MANIFEST_KIND_BYTES && strspn(word, "abcdefghijklmnopqrstuvwxyz0123456789_") == n;
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

// Weights first, then by the word.
static int compare_kinds(const char *a, const char *b) {
    int weights = (strcmp(b, "weight") == 0) - (strcmp(a, "weight") == 0);
    return weights != 0 ? weights : strcmp(a, b);
}

// The first content that is not before (tensor, kind); NULL is before every kind.
static int content_at(const Manifest *m, int tensor, const char *kind) {
    int low = 0, high = m->content_count;
    while (low < high) {
        int middle = low + (high - low) / 2;
        const ManifestContent *c = &m->contents[middle];
        if (c->tensor < tensor || (c->tensor == tensor && kind != NULL && compare_kinds(c->kind, kind) < 0)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

const ManifestContent *manifest_content(const Manifest *manifest, int tensor, const char *kind) {
    int at = content_at(manifest, tensor, kind);
    const ManifestContent *c = &manifest->contents[at];
    return at < manifest->content_count && c->tensor == tensor && strcmp(c->kind, kind) == 0 ? c : NULL;
}

int manifest_contents_of(const Manifest *manifest, int tensor) {
    return content_at(manifest, tensor, NULL);
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
    if (json_array_size(shape) > BOX_MOST_DIMS) {
        return damaged("%s: tensor %s has %zu dimensions, more than %d", where, tensor->name, json_array_size(shape),
                       BOX_MOST_DIMS);
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

// ---- parts ----

// The tensor, kind and file that a part names.
static Error *parse_names(const char *where, const json_t *item, const Manifest *m, ManifestPart *p) {
    const char *tensor = NULL, *file = NULL;
    TRY(json_field_string(item, where, "tensor", &tensor));
    TRY(json_field_string(item, where, "kind", &p->part.kind));
    TRY(json_field_string(item, where, "file", &file));
    p->part.tensor = manifest_tensor(m, tensor);
    p->file = manifest_file(m, file);
    if (p->part.tensor < 0 || p->file < 0) {
        return damaged("%s: a part names %s \"%.*s\", which is not listed", where, p->part.tensor < 0 ? "tensor" : "file",
                       MANIFEST_NAME_BYTES, p->part.tensor < 0 ? tensor : file);
    }
    if (!manifest_kind(p->part.kind)) {
        return damaged("%s: the kind of a part of %s is not a word of at most %d small letters, digits and '_'", where, tensor,
                       MANIFEST_KIND_BYTES);
    }
    m->files[p->file].has_parts = true;
    return NULL;
}

static bool parse_box(const json_t *item, const CheckpointTensor *tensor, Box *box) {
    box->dims = tensor->dims;
    if (!json_is_array(item) || json_array_size(item) != (size_t)tensor->dims) {
        return false;
    }
    for (int d = 0; d < tensor->dims; d++) {
        const json_t *bounds = json_array_get(item, (size_t)d), *begin = json_array_get(bounds, 0),
                     *end = json_array_get(bounds, 1);
        if (json_array_size(bounds) != 2 || !json_is_integer(begin) || !json_is_integer(end)) {
            return false;
        }
        box->begin[d] = json_integer_value(begin);
        box->end[d] = json_integer_value(end);
    }
    return box_inside(box, tensor->dims, tensor->shape);
}

static Error *parse_part(const char *where, const json_t *item, const Manifest *m, ManifestPart *p) {
    const char *type = NULL;
    json_t *list = NULL;
    TRY(parse_names(where, item, m, p));
    TRY(json_field_string(item, where, "type", &type));
    TRY(json_field_array(item, where, "boxes", &list));
    const CheckpointTensor *tensor = &m->tensors[p->part.tensor];
    if (!data_type_named(type, &p->part.type)) {
        return damaged("%s: %s %s is of type \"%.*s\", which this athanor does not read", where, p->part.kind, tensor->name,
                       MANIFEST_KIND_BYTES, type);
    }
    size_t count = json_array_size(list);
    Box *boxes = memory_zeroed(count, sizeof *boxes);
    p->part.boxes = boxes;
    p->part.box_count = (int)count;
    bool good = count > 0;
    for (size_t i = 0; i < count && good; i++) {
        // The tensor's elements bound each box and, up to the first that is too much, their sum.
        good = parse_box(json_array_get(list, i), tensor, &boxes[i]) && p->count <= m->elements[p->part.tensor];
        p->count += good ? box_count(&boxes[i]) : 0;
    }
    if (!good) {
        return damaged("%s: a box of %s %s is not possible", where, p->part.kind, tensor->name);
    }
    if (data_type_has_scales(p->part.type) && !part_has_whole_blocks(tensor, &p->part)) {
        return damaged("%s: the boxes of %s %s cut through blocks of %d values that share a scale", where, p->part.kind,
                       tensor->name, DATA_TYPE_BLOCK);
    }
    return NULL;
}

// A range of version 1.
static Error *parse_slice(const char *where, const json_t *item, const Manifest *m, ManifestPart *p) {
    int64_t begin, end;
    TRY(parse_names(where, item, m, p));
    const CheckpointTensor *tensor = &m->tensors[p->part.tensor];
    TRY(json_field_i64(item, where, "begin", 0, m->elements[p->part.tensor] - 1, &begin));
    TRY(json_field_i64(item, where, "end", begin + 1, m->elements[p->part.tensor], &end));
    TRY(json_field_string(item, where, "dataset", &p->dataset));
    char *expected = begin == 0 ? memory_format("/%s/%s", p->part.kind, tensor->name)
                                : memory_format("/%s/%s@%" PRId64, p->part.kind, tensor->name, begin);
    bool fits = strcmp(p->dataset, expected) == 0;
    free(expected);
    if (!fits) {
        return damaged("%s: the dataset of %s %s from %" PRId64 " has a name that does not fit", where, p->part.kind,
                       tensor->name, begin);
    }
    Box whole = box_whole(tensor->dims, tensor->shape), *boxes = memory_new(BOX_MOST_OF_RANGE, sizeof *boxes);
    p->part.type = TYPE_FP32;
    p->part.boxes = boxes;
    p->part.box_count = boxes_of_range(&whole, 1, begin, end, boxes);
    p->count = end - begin;
    return NULL;
}

static int compare_parts(const void *left, const void *right) {
    const ManifestPart *a = left, *b = right;
    if (a->part.tensor != b->part.tensor) {
        return a->part.tensor < b->part.tensor ? -1 : 1;
    }
    int kinds = compare_kinds(a->part.kind, b->part.kind);
    return kinds != 0 ? kinds : (a->file > b->file) - (a->file < b->file);
}

// The parts of a tensor and kind are all of it, each element once.
static Error *check_content(const char *where, const Manifest *m, const ManifestContent *c) {
    const char *name = m->tensors[c->tensor].name;
    const ManifestPart *parts = m->parts + c->first;
    int boxes = 0;
    for (int i = 0; i < c->count; i++) {
        boxes += parts[i].part.box_count;
        if (i > 0 && parts[i].file == parts[i - 1].file && m->version > 1) {
            return damaged("%s: %s has two parts of %s %s", where, m->files[parts[i].file].name, c->kind, name);
        }
    }
    Box *all = memory_new((size_t)boxes, sizeof *all);
    int64_t count = 0;
    int n = 0;
    for (int i = 0; i < c->count && count <= m->elements[c->tensor]; i++) {
        memcpy(all + n, parts[i].part.boxes, (size_t)parts[i].part.box_count * sizeof *all);
        n += parts[i].part.box_count;
        count += parts[i].count;
    }
    bool disjoint = count <= m->elements[c->tensor] && boxes_disjoint(all, n);
    free(all);
    if (!disjoint) {
        return damaged("%s: boxes of %s %s overlap", where, c->kind, name);
    }
    return count == m->elements[c->tensor]
               ? NULL
               : damaged("%s: %s %s is not whole: %" PRId64 " of its %" PRId64 " elements are there", where, c->kind, name,
                         count, m->elements[c->tensor]);
}

// Puts the sorted parts together and gives every content its digest, of which there are as many.
static Error *parse_contents(const char *where, const json_t *tensors, Manifest *m) {
    m->contents = memory_zeroed((size_t)m->part_count, sizeof *m->contents);
    for (int i = 0; i < m->part_count; i++) {
        ManifestContent *c = &m->contents[m->content_count];
        const CheckpointPart *part = &m->parts[i].part;
        if (m->content_count == 0 || c[-1].tensor != part->tensor || strcmp(c[-1].kind, part->kind) != 0) {
            *c = (ManifestContent){.tensor = part->tensor, .kind = part->kind, .first = i};
            m->content_count++;
        }
        m->contents[m->content_count - 1].count++;
    }
    ManifestContent *c = m->contents, *end = c + m->content_count;
    for (int t = 0; t < m->tensor_count; t++) {
        json_t *digests = NULL;
        if (m->version > 1) {
            TRY(json_field_object(json_array_get(tensors, (size_t)t), where, "digests", &digests));
        }
        if (!m->has_base && (c == end || c->tensor != t || strcmp(c->kind, "weight") != 0)) {
            return damaged("%s: tensor %s has no weights, and no base is named", where, m->tensors[t].name);
        }
        size_t kinds = 0;
        for (; c < end && c->tensor == t; c++, kinds++) {
            TRY(check_content(where, m, c));
            c->has_digest = digests != NULL;
            if (c->has_digest) {
                TRY(json_field_hex64(digests, where, c->kind, &c->digest));
            }
        }
        if (json_object_size(digests) > kinds) {
            return damaged("%s: tensor %s has a digest of what is not there", where, m->tensors[t].name);
        }
    }
    return NULL;
}

static Error *parse_parts(const char *where, const json_t *list, Manifest *m) {
    size_t count = json_array_size(list);
    m->parts = memory_zeroed(count, sizeof *m->parts);
    for (size_t i = 0; i < count; i++) {
        ManifestPart *p = &m->parts[m->part_count++];
        TRY((m->version == 1 ? parse_slice : parse_part)(where, json_array_get(list, i), m, p));
        // No file can hold more than its size: a hostile box cannot make a reader ask for memory in vain.
        if (p->count > m->files[p->file].bytes / data_type_bytes(p->part.type)) {
            return damaged("%s: %s %s has more elements than its file %s can hold", where, p->part.kind,
                           m->tensors[p->part.tensor].name, m->files[p->file].name);
        }
    }
    qsort(m->parts, count, sizeof *m->parts, compare_parts);
    return NULL;
}

// ---- the document ----

void manifest_seal(json_t *document) {
    json_seal(document);
}

// What version 2 added.
static Error *parse_identity(const char *where, const json_t *root, Manifest *m) {
    TRY(json_check_seal(root, where));
    TRY(json_field_hex64(root, where, "run", &m->run));
    if (m->run == 0) {
        return damaged("%s: \"run\" is 0", where);
    }
    const json_t *base = json_object_get(root, "base");
    m->has_base = base != NULL;
    if (m->has_base) {
        TRY(json_field_hex64(base, where, "fingerprint", &m->base.fingerprint));
        TRY(json_field_string(base, where, "path", &m->base.path));
    }
    return NULL;
}

static Error *parse_document(const char *where, Manifest *m) {
    const char *format = NULL;
    const json_t *root = m->document;
    json_t *state = NULL, *tensors = NULL, *files = NULL, *parts = NULL;
    int64_t version, ranks;
    TRY(json_field_string(root, where, "format", &format));
    if (strcmp(format, "athanor checkpoint") != 0) {
        return damaged("%s is not the manifest of a checkpoint", where);
    }
    TRY(json_field_i64(root, where, "version", 1, INT64_MAX, &version));
    if (version > MANIFEST_VERSION) {
        return damaged("%s: version %" PRId64 " is newer than this athanor reads (%d)", where, version, MANIFEST_VERSION);
    }
    m->version = (int)version;
    if (version > 1) {
        TRY(parse_identity(where, root, m));
    }
    TRY(json_field_i64(root, where, "step", 0, MANIFEST_MOST_STEP, &m->step));
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
    TRY(json_field_array(root, where, version > 1 ? "parts" : "slices", &parts));
    TRY(parse_tensors(where, tensors, m));
    TRY(parse_files(where, files, m));
    TRY(parse_parts(where, parts, m));
    return parse_contents(where, tensors, m);
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
    for (int i = 0; i < manifest->part_count; i++) {
        free((Box *)(uintptr_t)manifest->parts[i].part.boxes);
    }
    free(manifest->tensors);
    free(manifest->elements);
    free(manifest->tensors_by_name);
    free(manifest->files);
    free(manifest->parts);
    free(manifest->contents);
    json_decref(manifest->document);
    *manifest = (Manifest){0};
}

// ---- parts of documents ----

json_t *manifest_file_json(const char *name, int64_t bytes, uint64_t hash) {
    return json_pack("{s:s, s:I, s:o}", "name", name, "bytes", (json_int_t)bytes, "xxh3", json_hex64(hash));
}

json_t *manifest_part_json(const CheckpointTensor *tensor, const CheckpointPart *part, const char *file) {
    json_t *boxes = json_array();
    for (int i = 0; i < part->box_count; i++) {
        json_t *box = json_array();
        for (int d = 0; d < tensor->dims; d++) {
            json_array_append_new(box,
                                  json_pack("[I, I]", (json_int_t)part->boxes[i].begin[d], (json_int_t)part->boxes[i].end[d]));
        }
        json_array_append_new(boxes, box);
    }
    return json_pack("{s:s, s:s, s:s, s:o, s:s}", "tensor", tensor->name, "kind", part->kind, "type",
                     data_type_name(part->type), "boxes", boxes, "file", file);
}

json_t *manifest_tensors_json(const CheckpointTensor *tensors, int count) {
    json_t *list = json_array();
    for (int i = 0; i < count; i++) {
        json_t *shape = json_array();
        for (int d = 0; d < tensors[i].dims; d++) {
            json_array_append_new(shape, json_integer(tensors[i].shape[d]));
        }
        json_array_append_new(list, json_pack("{s:s, s:o, s:{}}", "name", tensors[i].name, "shape", shape, "digests"));
    }
    return list;
}
