// The manifest of a checkpoint: manifest.json as a checked struct.
//
//     { "format": "athanor checkpoint", "version": 1, "step": 1000, "ranks": 2, "layout": "data 2",
//       "model": "<16 hex digits>", "seed": "<16 hex digits>", "created": "2026-01-31T12:34:56Z",
//       "state":   { the caller's },
//       "tensors": [ {"name": "embedding", "shape": [8192, 256]}, ... ],
//       "files":   [ {"name": "rank-00000.h5", "bytes": 123456, "xxh3": "<16 hex digits>"}, ... ],
//       "slices":  [ {"tensor": "embedding", "kind": "weight", "begin": 0, "end": 1048576,
//                     "file": "rank-00000.h5", "dataset": "/weight/embedding"}, ... ] }
//
// "begin" and "end" count elements of the row-major tensor. Slices of one tensor and kind do not overlap. A file that no slice
// names is a blob. The bytes may come from anybody: every name, count and range is checked here, once, and nowhere else.
#pragma once

#include "train/checkpoint/checkpoint.h"

#define MANIFEST_NAME "manifest.json"

enum {
    MANIFEST_VERSION = 1,
    MANIFEST_MOST_RANKS = 1 << 20,
    MANIFEST_NAME_BYTES = 200,
};
#define MANIFEST_MOST_BYTES ((size_t)256 << 20)
#define MANIFEST_MOST_ELEMENTS ((int64_t)1 << 48)  // of one tensor; a petabyte

typedef struct ManifestFile {
    const char *name;
    int64_t bytes;
    uint64_t hash;  // XXH3, 64 bits, of the whole file
    bool has_slices;
} ManifestFile;

typedef struct ManifestSlice {
    int tensor, file;
    SliceKind kind;
    int64_t begin, end;
    const char *dataset;
} ManifestSlice;

typedef struct Manifest {
    json_t *document;  // owns every text below
    int64_t step;
    int ranks;
    const char *layout, *created;
    uint64_t model, seed;
    const json_t *state;
    CheckpointTensor *tensors;  // in the document's order
    int64_t *elements;          // of each tensor
    int *tensors_by_name;
    int tensor_count;
    ManifestFile *files;  // sorted by name
    int file_count;
    ManifestSlice *slices;  // sorted by tensor, kind, begin
    int slice_count;
} Manifest;

// Parses and checks. `where` names the file in messages; errors are ERROR_DAMAGED.
Error *manifest_parse(const char *where, const char *bytes, size_t size, Manifest *out) MUST_CHECK;
// The same for a document (taken, also on failure).
Error *manifest_from_json(const char *where, json_t *document, Manifest *out) MUST_CHECK;
void manifest_free(Manifest *manifest);

// The index of a tensor or file, -1 if there is none.
int manifest_tensor(const Manifest *manifest, const char *name);
int manifest_file(const Manifest *manifest, const char *name);

// The first slice of (tensor, kind) that ends after element `begin`, an index into slices; slice_count if there is none.
int manifest_slice_after(const Manifest *manifest, int tensor, SliceKind kind, int64_t begin);

// The first element of [begin, end) of (tensor, kind) that no slice holds; -1 if all are there.
int64_t manifest_missing(const Manifest *manifest, int tensor, SliceKind kind, int64_t begin, int64_t end);

// A name that may become part of a path: 1 to MANIFEST_NAME_BYTES of [A-Za-z0-9._-], not starting with a dot.
bool manifest_plain_name(const char *name);

// Parts of documents, for the writer. The dataset of a slice is /KIND/NAME if it begins at 0, else /KIND/NAME@BEGIN.
json_t *manifest_file_json(const char *name, int64_t bytes, uint64_t hash);
json_t *manifest_slice_json(const CheckpointTensor *tensor, const CheckpointSlice *slice, const char *file,
                            const char *dataset);
json_t *manifest_tensors_json(const CheckpointTensor *tensors, int count);
char *manifest_dataset(const CheckpointTensor *tensor, const CheckpointSlice *slice);
