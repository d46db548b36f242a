// Packing files of text into shards laid out like the Pile's.
//
//   OUT/train/00.jsonl.zst ... 29.jsonl.zst, OUT/val.jsonl.zst, OUT/test.jsonl.zst
//   {"text": "...", "meta": {"pile_set_name": "Perl docs"}}         one line a document, UTF-8, zstd level 3
//
// One file of a set is one document, under however many names (links) the set's patterns find it (a gzip or zstd file is
// unpacked; a byte order mark at its start is dropped). Documents of all sets are shuffled together, so that every shard holds
// every set by its size. The same files, names, seed and number of shards give the same bytes, whatever the number of workers:
// everything random is philox(seed, ...) of a document's place in the sorted list of its set's files.
//
// Held out for val and for test: the given share of each set, at least one document each from a set of three or more. Train
// documents equal to a held-out one are dropped. Files that are not valid UTF-8, damaged or empty are counted and skipped.
#pragma once

#include "core/memory.h"

typedef struct PackSet {
    char *name;     // canonical
    Strings files;  // the set's files
    // Filled in by pack_shards: documents and their bytes by where they went.
    int64_t train, val, test, duplicates, invalid, empty;
    int64_t train_bytes, held_out_bytes;
} PackSet;

typedef struct PackPlan {
    PackSet *sets;  // sorted by name
    int set_count;
    const char *out;
    int shards;    // at least 1
    double valid;  // share for val, and again for test: 0 to 0.4
    uint64_t seed;
    int workers;
} PackPlan;

// Adds "NAME=PATTERN" (durable.h's path_glob) to the plan's sets. Several of one name add up.
Error *pack_add_set(PackPlan *plan, const char *text) MUST_CHECK;
void pack_free(PackPlan *plan);

// Writes the shards and fills in the counts. Nothing appears under `out` before all is written.
Error *pack_shards(PackPlan *plan) MUST_CHECK;
