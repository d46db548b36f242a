// Fuzz target: a checkpoint's manifest from hostile bytes. What parses must hold its promises and survive being written anew.
#include "train/checkpoint/manifest.h"

static void check_promises(const Manifest *m) {
    for (int t = 0; t < m->tensor_count; t++) {
        ensure(manifest_tensor(m, m->tensors[t].name) == t, "tensor %d is not found by its name", t);
        ensure(m->elements[t] >= 1 && m->elements[t] <= MANIFEST_MOST_ELEMENTS, "elements");
        for (int kind = 0; kind < SLICE_KINDS; kind++) {
            // What is said to be there is covered by slices, one after the other.
            int64_t missing = manifest_missing(m, t, (SliceKind)kind, 0, m->elements[t]);
            int64_t end = missing < 0 ? m->elements[t] : missing, at = 0;
            for (int i = manifest_slice_after(m, t, (SliceKind)kind, 0); at < end; i++) {
                ensure(i < m->slice_count && m->slices[i].tensor == t && m->slices[i].begin == at, "slice %d", i);
                at = m->slices[i].end;
            }
            ensure(at == end, "slices go beyond what is there");
        }
    }
    for (int f = 0; f < m->file_count; f++) {
        ensure(manifest_plain_name(m->files[f].name) && manifest_file(m, m->files[f].name) == f, "file %d", f);
    }
    for (int i = 0; i < m->slice_count; i++) {
        const ManifestSlice *s = &m->slices[i];
        ensure(s->begin >= 0 && s->begin < s->end && s->end <= m->elements[s->tensor], "slice %d", i);
        ensure((s->end - s->begin) * (int64_t)sizeof(float) <= m->files[s->file].bytes, "slice %d and its file", i);
    }
}

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    Manifest m;
    Error *error = manifest_parse("fuzz", (const char *)data, size, &m);
    if (error != NULL) {
        ensure(error->kind == ERROR_DAMAGED && error->message[0] != 0, "an error without words");
        error_free(error);
        return 0;
    }
    check_promises(&m);
    char *text = json_dumps(m.document, JSON_COMPACT);
    manifest_free(&m);
    if (text != NULL) {
        error = manifest_parse("again", text, strlen(text), &m);
        ensure(error == NULL, "%s", error->message);
        manifest_free(&m);
    }
    free(text);
    return 0;
}
