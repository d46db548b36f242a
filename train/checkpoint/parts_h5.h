// One rank's parts as an HDF5 file.
//
// HDF5 makes and reads the file's structure; the numbers themselves are written and read with plain system calls at the
// place that HDF5 gave them. That is allowed because the datasets are contiguous, uncompressed and little-endian, and it
// keeps what often fails (a full disk in the middle of gigabytes, a machine short of memory) out of a library that does not
// recover from it. The structure is the same at every save of a run, so HDF5 makes it once, before the first step, and a save
// writes those bytes. The result is an ordinary file for h5dump and h5py.
//
// HDF5 is not used by two threads at once: one lock stands around every use. Its error stack is silenced and becomes our
// message.
#pragma once

#include "train/checkpoint/checkpoint.h"

// A dataset at `path` ("/weight/name", owned). Types: fp32 is IEEE_F32LE; fp16 and bf16 are floats of 16 bits described by
// their fields (5 bits of exponent and 10 of fraction; 8 and 7), codes are STD_U8LE. `offset` is where its numbers lie in the
// file, in bytes.
typedef struct H5Dataset {
    char *path;
    DataType type;
    int dims;
    int64_t extents[BOX_MOST_DIMS];
    // What it is of, stored as the attributes "shape" and "boxes" ([boxes, dims, 2]) for people. NULL: not stored.
    const int64_t *shape;
    const Box *boxes;
    int shape_dims, box_count;
    int64_t offset;
} H5Dataset;

// The datasets of a part: /KIND/NAME with its elements, of the box's extents where it is one box, else one-dimensional, and
// where its type has scales /KIND.scales/NAME. Returns how many.
int h5_part(const CheckpointTensor *tensor, const CheckpointPart *part, H5Dataset out[2]);
void h5_free(H5Dataset *datasets, int count);  // the paths and the array

// A file of some datasets from its first byte to its last: pieces in rising order without a gap. What is no dataset's numbers
// is of the structure, at `at` in its bytes.
typedef struct H5Piece {
    int64_t offset, bytes;
    int dataset;  // -1: of the structure
    size_t at;
} H5Piece;
typedef struct H5Layout {
    H5Dataset *datasets;
    int count;
    H5Piece *pieces;
    int piece_count;
    Buffer structure;
    int64_t bytes;  // of the file
} H5Layout;

// Lays these datasets out (taken where it succeeds; release with h5_layout_free) by making an empty file of them at `scratch`,
// which is removed again, and fills in the offsets.
Error *h5_lay_out(const char *scratch, H5Dataset *datasets, int count, H5Layout *out) MUST_CHECK;
void h5_layout_free(H5Layout *layout);

// Finds these datasets in an existing file, which may be hostile, and fills in the offsets. Each must be what h5_lay_out
// makes: reached by hard links, of that type and these extents and, if it says so, of a tensor of that shape, contiguous, no
// filters, no external files, and inside the file. ERROR_DAMAGED where it is not; what the system refused is none
// (core/error.h).
Error *h5_locate(const char *file, H5Dataset *datasets, int count) MUST_CHECK;
