// The checksums that a run keeps of a corpus that has none: token files of others, and corpora of older versions.
//
// What a block of tokens holds when a run first reads it is what it must hold ever after (block_file.h). Ranks read different
// blocks, so each keeps its own file, and all of them are read when the run goes on:
//
//   FOLDER/rank-00003.sums    "ATHKEPT\0", u32 version 1, u32 BLOCK_BYTES, u64 the corpus's fingerprint, then chunks of
//                             u64 set, u64 count, u64 XXH3-64 of set, count and records, {u64 block, u64 sum}[count]
//
// A save appends chunks and fsyncs. A chunk that is not whole ends a file: what a kill cut off is read anew. Sums that belong
// to another corpus are not used. A corpus whose blocks all have sums keeps nothing, and makes no folder.
#pragma once

#include "data/tokens/corpus.h"

typedef struct KeptSums KeptSums;

// Reads what all ranks kept in `folder` (which need not exist) and keeps what this rank adds. `corpus` must outlive the result.
// Two ranks that read different bytes are an error that names the file. Not during reads of the corpus.
Error *kept_sums_open(Corpus *corpus, const char *folder, int rank, KeptSums **out) MUST_CHECK;

// Makes durable what was first read since the last save. What could not be saved is tried again with the next one.
Error *kept_sums_save(KeptSums *kept) MUST_CHECK;

void kept_sums_close(KeptSums *kept);  // saves nothing; NULL is fine
