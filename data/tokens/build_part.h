// A part of a corpus in the making: the tokens of one shard's documents, in the shard's order.
//
//   PATH.tokens      u16 or i32, one document behind the other
//   PATH.documents   one DocumentRecord each
//   PATH.json        counts, the sets' names; written last: a part without it is not finished
#pragma once

#include "core/durable.h"
#include "data/tokenizer/tokenizer.h"

enum { PART_SETS_MOST = 1000 };

typedef struct DocumentRecord {
    int64_t tokens;
    int64_t text_bytes;
    int64_t set;  // index into the part's names
} DocumentRecord;

typedef struct PartCounts {
    int64_t documents, tokens, bad_lines, empty_documents;
} PartCounts;

typedef struct PartWriter PartWriter;

// Starts PATH's files anew. `job` must agree when the part is opened.
Error *part_writer_create(const char *path, int bytes_per_token, uint64_t job, PartWriter **out) MUST_CHECK;

// The index of a set's name in this part, added if it is new. At most PART_SETS_MOST. One thread may call this while another
// adds tokens.
Error *part_writer_set(PartWriter *writer, const char *name, int64_t *index) MUST_CHECK;

// Adds tokens to the open document; closes it; forgets what it has so far.
Error *part_writer_tokens(PartWriter *writer, const int32_t *tokens, size_t count) MUST_CHECK;
Error *part_writer_end(PartWriter *writer, int64_t text_bytes, int64_t set) MUST_CHECK;
Error *part_writer_forget(PartWriter *writer) MUST_CHECK;

// Makes the part durable and finished. Frees the writer in every case.
Error *part_writer_finish(PartWriter *writer, int64_t bad_lines, int64_t empty_documents) MUST_CHECK;
void part_writer_abandon(PartWriter *writer);  // removes the files; frees the writer; NULL is fine

typedef struct Part {
    PartCounts counts;
    Strings sets;
    Mapped tokens, documents;
} Part;

// Opens a finished part and checks its sizes. ERROR_MISSING if there is none, ERROR_DAMAGED if it is not whole or not of `job`.
Error *part_open(const char *path, int bytes_per_token, uint64_t job, Part *out) MUST_CHECK;
void part_close(Part *part);
