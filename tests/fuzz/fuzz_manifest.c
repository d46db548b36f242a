// Fuzz target: a checkpoint's manifest from hostile bytes. What parses must hold its promises and survive being written anew.
// Nobody guesses a checksum, so documents are looked at as they are and with the one that fits.
#include "train/checkpoint/manifest.h"

static void check_promises(const Manifest *m) {
    for (int t = 0; t < m->tensor_count; t++) {
        ensure(manifest_tensor(m, m->tensors[t].name) == t, "tensor %d is not found by its name", t);
        ensure(m->elements[t] >= 1 && m->elements[t] <= MANIFEST_MOST_ELEMENTS, "elements");
        ensure(m->has_base || manifest_content(m, t, "weight") != NULL, "tensor %d has no weights", t);
    }
    for (int f = 0; f < m->file_count; f++) {
        ensure(manifest_plain_name(m->files[f].name) && manifest_file(m, m->files[f].name) == f, "file %d", f);
    }
    // What is there of a tensor's kind is all of it.
    int parts = 0;
    for (int i = 0; i < m->content_count; i++) {
        const ManifestContent *c = &m->contents[i];
        ensure(manifest_kind(c->kind) && manifest_content(m, c->tensor, c->kind) == c && c->first == parts, "content %d", i);
        ensure(c->has_digest == (m->version > 1), "content %d and its digest", i);
        int64_t elements = 0;
        for (int k = 0; k < c->count; k++, parts++) {
            const ManifestPart *p = &m->parts[parts];
            ensure(p->part.tensor == c->tensor && strcmp(p->part.kind, c->kind) == 0, "part %d", parts);
            ensure(boxes_count(p->part.boxes, p->part.box_count) == p->count && p->count > 0, "elements of part %d", parts);
            ensure(p->count * data_type_bytes(p->part.type) <= m->files[p->file].bytes, "part %d and its file", parts);
            for (int b = 0; b < p->part.box_count; b++) {
                ensure(box_inside(&p->part.boxes[b], m->tensors[c->tensor].dims, m->tensors[c->tensor].shape), "box %d", b);
            }
            elements += p->count;
        }
        ensure(elements == m->elements[c->tensor], "content %d is not whole", i);
    }
    ensure(parts == m->part_count, "parts of no content");
}

static void parse(json_t *document) {
    Manifest m;
    Error *error = manifest_from_json("fuzz", document, &m);
    if (error != NULL) {
        ensure(error->kind == ERROR_DAMAGED && error->message[0] != 0, "an error without words");
        error_free(error);
        return;
    }
    check_promises(&m);
    char *text = json_dumps(m.document, JSON_COMPACT | JSON_REAL_PRECISION(17));
    manifest_free(&m);
    if (text != NULL) {
        error = manifest_parse("again", text, strlen(text), &m);
        ensure(error == NULL, "%s", error->message);
        manifest_free(&m);
    }
    free(text);
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    json_t *document;
    Error *error = json_read_bytes("fuzz", (const char *)data, size, &document);
    if (error != NULL) {
        error_free(error);
        return 0;
    }
    parse(json_deep_copy(document));
    if (json_is_object(document)) {
        manifest_seal(document);
        parse(json_incref(document));
    }
    json_decref(document);
    return 0;
}
