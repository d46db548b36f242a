// One rank's slices as an HDF5 file.
//
// HDF5 makes and reads the file's structure; the numbers themselves are written and read with plain system calls at the
// place that HDF5 gave them. That is allowed because the datasets are contiguous, uncompressed little-endian fp32, and it
// keeps what often fails (a full disk in the middle of gigabytes) out of a library that recovers badly from it. The result is
// an ordinary file for h5dump and h5py.
//
// HDF5 is not used by two threads at once: one lock stands around every use. Its error stack is silenced and becomes our
// message.
#pragma once

#include "core/error.h"

#include <stdint.h>

// A dataset of `count` floats at `path` ("/weight/name"). `offset` is where its numbers lie in the file, in bytes.
typedef struct H5Slice {
    const char *path;
    int64_t count;
    int64_t begin;         // stored as an attribute, for people
    int dims;              // of the logical tensor, likewise
    const int64_t *shape;  // dims extents
    int64_t offset;
} H5Slice;

// Creates `file` (replaced if it exists) with these datasets, their numbers not yet written, and fills in the offsets. `bytes`
// gets the size that the file must have in the end.
Error *h5_create(const char *file, H5Slice *slices, int count, int64_t *bytes) MUST_CHECK;

// Finds these datasets in an existing file, which may be hostile, and fills in the offsets. Each must be what h5_create
// makes: reached by hard links, one-dimensional, little-endian fp32, `count` long, contiguous, no filters, no external files,
// and inside the file.
Error *h5_locate(const char *file, H5Slice *slices, int count) MUST_CHECK;

// "1.10.8", for `athanor doctor`.
const char *h5_version(void);
