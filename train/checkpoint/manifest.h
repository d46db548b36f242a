// The manifest of a checkpoint: manifest.json as a checked struct.
//
//     { "format": "athanor checkpoint", "version": 2, "run": "<16 hex digits>", "step": 1000, "ranks": 2, "layout": "data 2",
//       "model": "<16 hex digits>", "seed": "<16 hex digits>", "created": "2026-01-31T12:34:56Z",
//       "state":   { the caller's },
//       "base":    {"fingerprint": "<16 hex digits>", "path": "runs/base"},         only where weights of tensors are not here
//       "tensors": [ {"name": "embedding", "shape": [8192, 256], "digests": {"weight": "<16 hex digits>"}}, ... ],
//       "files":   [ {"name": "rank-00000.h5", "bytes": 123456, "xxh3": "<16 hex digits>"}, ... ],
//       "parts":   [ {"tensor": "embedding", "kind": "weight", "type": "fp32", "boxes": [[[0, 4096], [0, 256]]],
//                     "file": "rank-00000.h5"}, ... ],
//       "checksum": "<16 hex digits>" }
//
// A box is [begin, end] for each dimension. A file has at most one part of a tensor and kind; its numbers are the dataset
// /KIND/NAME of the file, of the box's extents where it is one box, else one-dimensional; the scales of a type that has them
// are /KIND.scales/NAME. The parts of a tensor and kind do not overlap and are all of it, and have a digest, or there are none.
// A tensor without weights is one of the base. A file that no part names is a blob.
//
// "checksum" is XXH3 (64 bits) of the document without that key, written compactly: keys sorted, no space, UTF-8 (only '"', '\'
// and control characters are escaped), real numbers with 17 significant digits as C's %.17g and with ".0" where that would
// look like a whole number. A fingerprint is XXH3 of a text
// with a line "NAME SHAPE DIGEST\n" for each tensor in the order of names ("embedding 8192x256 0123456789abcdef"; the digest is
// that of its weights, or the word "base") and, where there is a base, a last line "base FINGERPRINT\n".
//
// Version 1 had "slices" in the place of "parts", ranges of the row-major tensor in fp32: {"tensor", "kind", "begin", "end",
// "file", "dataset"}, with /KIND/NAME as dataset if it begins at 0, else /KIND/NAME@BEGIN, always one-dimensional. It had no
// run, base, digests and checksum. A slice is read as a part of up to BOX_MOST_OF_RANGE boxes.
//
// The bytes may come from anybody: every name, count and range is checked here, once, and nowhere else.
#pragma once

#include "train/checkpoint/checkpoint.h"

#define MANIFEST_NAME "manifest.json"

enum {
    MANIFEST_VERSION = 2,
    MANIFEST_MOST_RANKS = 1 << 20,
    MANIFEST_NAME_BYTES = 200,
    MANIFEST_KIND_BYTES = 32,
};
#define MANIFEST_MOST_STEP ((int64_t)9000000000000000)  // as train.steps
#define MANIFEST_MOST_BYTES ((size_t)256 << 20)
#define MANIFEST_MOST_ELEMENTS ((int64_t)1 << 48)  // of one tensor; a petabyte

typedef struct ManifestFile {
    const char *name;
    int64_t bytes;
    uint64_t hash;  // XXH3, 64 bits, of the whole file
    bool has_parts;
} ManifestFile;

typedef struct ManifestPart {
    CheckpointPart part;
    int64_t count;  // elements
    int file;
    const char *dataset;  // version 1; NULL: /KIND/NAME
} ManifestPart;

// All of one kind of a tensor: parts [first, first + count).
typedef struct ManifestContent {
    int tensor;
    const char *kind;
    int first, count;
    bool has_digest;
    uint64_t digest;
} ManifestContent;

typedef struct Manifest {
    json_t *document;  // owns every text below
    int version;
    uint64_t run;  // 0 in version 1
    int64_t step;
    int ranks;
    const char *layout, *created;
    uint64_t model, seed;
    const json_t *state;
    bool has_base;
    CheckpointBase base;
    CheckpointTensor *tensors;  // in the document's order
    int64_t *elements;          // of each tensor
    int *tensors_by_name;
    int tensor_count;
    ManifestFile *files;  // sorted by name
    int file_count;
    ManifestPart *parts;  // sorted by tensor, kind, file
    int part_count;
    ManifestContent *contents;  // sorted by tensor, kind
    int content_count;
} Manifest;

// Parses and checks. `where` names the file in messages; errors are ERROR_DAMAGED.
Error *manifest_parse(const char *where, const char *bytes, size_t size, Manifest *out) MUST_CHECK;
// The same for a document (taken, also on failure).
Error *manifest_from_json(const char *where, json_t *document, Manifest *out) MUST_CHECK;
void manifest_free(Manifest *manifest);

// The manifest of an open checkpoint. Its boxes of a content as they are stored, where all parts of that are of one type: into
// elements[0 ..] and, of a type that has scales, whole blocks' scales[0 ..].
const Manifest *checkpoint_manifest(const Checkpoint *checkpoint);
Error *checkpoint_read_stored(Checkpoint *checkpoint, const ManifestContent *content, const Box *boxes, int count,
                              void *elements, float *scales) MUST_CHECK;

// Gives a document its checksum.
void manifest_seal(json_t *document);

// The index of a tensor or file, -1 if there is none.
int manifest_tensor(const Manifest *manifest, const char *name);
int manifest_file(const Manifest *manifest, const char *name);

// The content of (tensor, kind), NULL if there is none; the first of a tensor, an index into contents.
const ManifestContent *manifest_content(const Manifest *manifest, int tensor, const char *kind);
int manifest_contents_of(const Manifest *manifest, int tensor);

// Whether `name` may become part of a path: 1 to MANIFEST_NAME_BYTES of [A-Za-z0-9._-], not starting with a dot. Whether `word`
// is a kind: 1 to MANIFEST_KIND_BYTES of [a-z0-9_].
bool manifest_plain_name(const char *name);
bool manifest_kind(const char *word);

// Parts of documents, for the writer.
json_t *manifest_file_json(const char *name, int64_t bytes, uint64_t hash);
json_t *manifest_part_json(const CheckpointTensor *tensor, const CheckpointPart *part, const char *file);
json_t *manifest_tensors_json(const CheckpointTensor *tensors, int count);  // digests are empty
