// Files of plain text, read in pieces: unpacked if they are gzip or zstd, checked to be UTF-8.
#pragma once

#include "core/memory.h"

// Gets each piece of a file's text: whole characters, valid UTF-8, `size` > 0.
typedef Error *(*TextSink)(void *context, const char *text, size_t size);

// Hands the file's text to `sink` in pieces of at most 256 KiB, without a byte order mark at its start. *valid is false if the
// file turned out not to be UTF-8; then the rest is not read.
Error *text_file_read(const char *path, TextSink sink, void *context, bool *valid) MUST_CHECK;
