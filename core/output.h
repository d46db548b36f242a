// A file that is written from front to back through a buffer: few system calls, the first failure kept and told.
#pragma once

#include "core/memory.h"

typedef struct Output Output;

// Creates (or empties) a file for writing and for reading back.
Error *output_create(const char *path, Output **out) MUST_CHECK;
Error *output_write(Output *output, const void *bytes, size_t size) MUST_CHECK;

// Bytes written so far.
int64_t output_size(const Output *output);

// Forgets everything written behind `size`.
Error *output_cut(Output *output, int64_t size) MUST_CHECK;

// Copies bytes [offset, offset + size) of what was written; they must exist.
Error *output_read_back(Output *output, int64_t offset, void *out, size_t size) MUST_CHECK;

// Writes what waits, fsyncs and closes. Frees the output in every case; on failure the file remains. `checksum` (may be NULL)
// gets the XXH3-64 of the file; an output that was cut has none.
Error *output_finish(Output *output, uint64_t *checksum) MUST_CHECK;

// Closes and removes the file. Frees the output. NULL is fine.
void output_abandon(Output *output);
