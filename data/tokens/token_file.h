// Token files in Megatron's and GPT-NeoX's format: PREFIX.bin (raw little-endian tokens) and PREFIX.idx.
//
// Format (Megatron-LM megatron/core/datasets/indexed_dataset.py, GPT-NeoX megatron/data/indexed_dataset.py), little-endian:
//   "MMIDIDX\0\0", u64 version 1, u8 dtype (8: u16, 4: i32), u64 S sequences, u64 D document indices,
//   i32 length[S], i64 byte_offset[S], i64 document_index[D] (the first is 0, the last S).
// The arrays start at byte 34 and are misaligned.
#pragma once

#include "core/durable.h"
#include "data/tokens/block_file.h"

typedef struct TokenFile {
    BlockFile *bin;
    Mapped idx;
    int bytes_per_token;  // 2 or 4
    int64_t tokens;
    int64_t documents;
    const void *document_index;  // inside idx, misaligned
    const void *byte_offsets;
    int64_t sequences;
} TokenFile;

// Opens PREFIX.bin and PREFIX.idx and checks every count, length and offset against the files' sizes. Sequences must lie one
// after the other. `prefix` may also be given with .bin or .idx. Errors name the file and the field; ids are not looked at.
Error *token_file_open(const char *prefix, TokenFile *out) MUST_CHECK;
void token_file_close(TokenFile *file);

// `path` without a final .bin or .idx, owned by the caller.
char *token_file_prefix(const char *path);

// Copies tokens [first, first + count) of the whole stream. The range must lie inside. This is the one place where tokens are
// read: where the .bin has sums of its blocks (block_file.h), what was damaged or changed is an error here.
Error *token_file_read(const TokenFile *file, int64_t first, int64_t count, int32_t *out) MUST_CHECK;

// The position in the stream where document d starts; d == documents gives the number of tokens.
int64_t token_file_document_start(const TokenFile *file, int64_t document);

// The document that holds position `token` (the last one that starts at or before it). O(log documents).
int64_t token_file_document_at(const TokenFile *file, int64_t token);

// The lowest and highest id of the whole file, which is read for it. 0 and -1 for a file without tokens.
Error *token_file_range(const TokenFile *file, int32_t *lowest, int32_t *highest) MUST_CHECK;

// XXH3-64 of the whole .bin, .idx and .sums.
typedef struct TokenSums {
    uint64_t bin, idx;
    uint64_t sums;  // of the .sums file; set by the writer alone
} TokenSums;
Error *token_file_sums(const TokenFile *file, TokenSums *out) MUST_CHECK;

// Writes the files, and the sums of the .bin's blocks into PREFIX.sums, in fixed memory. Tokens are appended document by
// document; nothing has its final name before commit.
typedef struct TokenWriter TokenWriter;
Error *token_writer_create(const char *prefix, int bytes_per_token, TokenWriter **out) MUST_CHECK;
Error *token_writer_append(TokenWriter *writer, const int32_t *tokens, size_t count) MUST_CHECK;   // part of a document
Error *token_writer_append_raw(TokenWriter *writer, const void *tokens, size_t count) MUST_CHECK;  // as stored, little-endian
Error *token_writer_end_document(TokenWriter *writer) MUST_CHECK;                  // an empty document is dropped
Error *token_writer_commit(TokenWriter *writer) MUST_CHECK;                        // fsync, rename, .idx last; frees the writer
Error *token_writer_commit_sums(TokenWriter *writer, TokenSums *sums) MUST_CHECK;  // the same, and tells the checksums
void token_writer_abandon(TokenWriter *writer);  // removes what was written; frees the writer; NULL is fine
