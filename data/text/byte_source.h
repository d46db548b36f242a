// The bytes of a file, decompressed as they are read: zstd frames, gzip members, or the file as it is.
//
// The kind is told by the file's first bytes, never by its name. Concatenated frames and members are one stream. Memory is
// bounded: a zstd frame may ask for a window of at most 128 MiB (windowLog 27, what zstd itself accepts without --long) unless
// more is allowed. Zero bytes behind a gzip member are padding, as gzip itself takes them.
#pragma once

#include "core/memory.h"

typedef enum ByteKind { BYTES_PLAIN, BYTES_ZSTD, BYTES_GZIP } ByteKind;

typedef struct ByteSource ByteSource;

// Opens a file. A folder or a file that cannot be opened is an error. An empty file is plain.
Error *byte_source_open(const char *path, ByteSource **out) MUST_CHECK;

// The same from memory, which must outlive the source. `name` stands for the path in messages.
Error *byte_source_memory(const char *name, const void *bytes, size_t size, ByteSource **out) MUST_CHECK;

// Lets zstd frames ask for a window of up to `bytes`, which is memory (2 GiB at most: what zstd --long=31 writes). Before
// reading.
void byte_source_allow_window(ByteSource *source, int64_t bytes);

ByteKind byte_source_kind(const ByteSource *source);

// The stored bytes at the start of the file (at most 16), to recognise formats that are not read here.
const unsigned char *byte_source_head(const ByteSource *source, size_t *size);

// Reads up to `capacity` > 0 bytes; *got is 0 only at the end. ERROR_DAMAGED if the compressed stream is cut off, broken, or
// followed by something else.
Error *byte_source_read(ByteSource *source, void *out, size_t capacity, size_t *got) MUST_CHECK;

// Stored (compressed) bytes taken so far, for progress.
int64_t byte_source_taken(const ByteSource *source);

void byte_source_close(ByteSource *source);  // NULL is fine
