// The first stage of a build: shards become parts, all cores busy (see build.h).
#pragma once

#include "core/threads.h"
#include "data/tokens/build_part.h"

typedef struct ShardJob {
    const char *shard;  // path
    char *part;         // path of the part to make
} ShardJob;

typedef struct ShardsPlan {
    const Tokenizer *tokenizer;
    int bytes_per_token;
    uint64_t job;
    const ShardJob *jobs;  // the shards that are still to do
    int job_count;
    int64_t stored_bytes;    // of these shards, for progress
    int64_t bad_lines;       // in: of the parts that were finished before; out: of all
    int64_t bad_lines_most;  // one more is an error
    int64_t word_most;       // of a BuildPlan, and what follows
    int64_t window_most;
    bool replace_surrogates;
    int finished;  // out: parts that were made
} ShardsPlan;

// Makes the parts. Parts that were finished when an error came up stay.
Error *build_shards(ShardsPlan *plan, ThreadPool *pool) MUST_CHECK;
