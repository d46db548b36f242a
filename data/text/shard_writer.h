// Writing shards: one line of JSON a document, zstd level 3, the document's text in pieces.
#pragma once

#include "core/memory.h"

typedef struct ShardWriter ShardWriter;

// Creates (or empties) the file. It is for the caller to see that it appears whole.
Error *shard_writer_create(const char *path, ShardWriter **out) MUST_CHECK;

// A document is begin, any number of pieces of valid UTF-8, end with the set's name.
Error *shard_writer_begin(ShardWriter *writer) MUST_CHECK;
Error *shard_writer_text(ShardWriter *writer, const char *text, size_t size) MUST_CHECK;
Error *shard_writer_end(ShardWriter *writer, const char *set) MUST_CHECK;

// Ends the frame, fsyncs, closes. Frees the writer in every case.
Error *shard_writer_finish(ShardWriter *writer) MUST_CHECK;
void shard_writer_abandon(ShardWriter *writer);  // removes the file; frees the writer; NULL is fine
