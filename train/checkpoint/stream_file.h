// A large file written, and read back, as one stream past the page cache.
//
// The cache is what makes a background writer slow and its neighbours slower: each byte is copied into it by a core that the
// step wants, pages pile up until the kernel stops the writer to clean them, and reading the file back meets the cache and says
// nothing of the disk. So the bytes go through one aligned buffer of a few MiB with O_DIRECT. Where a file system has no such
// thing they go through the cache, which is told after each buffer to write it and after the file to let go of it.
//
// The hash of what was handed over (not of what the disk made of it) comes with the last byte: reading back compares with it.
#pragma once

#include "core/memory.h"

typedef struct StreamFile StreamFile;

enum { STREAM_FILE_BYTES = 4 << 20 };  // of memory that one takes, and reading one back

// Makes `path` (replaced if it exists) for exactly `bytes` bytes, whose space is taken at once where the file system can, so
// that a full disk is found before the first.
Error *stream_file_create(const char *path, int64_t bytes, StreamFile **out) MUST_CHECK;

// The next bytes.
Error *stream_file_add(StreamFile *file, const void *bytes, size_t size) MUST_CHECK;

// Writes what is left, makes the file durable and closes it: all bytes were added. *hash is hash64 of the whole.
Error *stream_file_finish(StreamFile *file, uint64_t *hash) MUST_CHECK;

// Frees it; what was not finished is left as it is. NULL is fine.
void stream_file_destroy(StreamFile *file);

// The size and hash64 of a whole file, opened anew and read from the disk where the system lets us pass by the cache. Tries
// again as file_try_again does; where another host may have written it just now, `expected` is its size, and the file is waited
// for (steps_try_again) until it has so many bytes. -1: it was committed long ago.
Error *stream_file_hash(const char *path, int64_t expected, int64_t *bytes, uint64_t *hash) MUST_CHECK;
