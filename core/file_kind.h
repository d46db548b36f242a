// What a file is that is not what was asked for, told by its first bytes.
//
// People hand over a page where they meant to save a file, a pointer where git-lfs was not installed, weights where a tokenizer
// goes. A reader that knows its own format says only "line 1 is wrong"; this says what the file is and what to do.
#pragma once

#include "core/error.h"

#include <stddef.h>

// Whether these bytes, the beginning of file `name`, are of a known kind that is not `wanted` ("a tokenizer.json or .tiktoken
// file"). An error that says so in one line, or NULL: nothing is known against it. 300 bytes tell all that there is to tell;
// `size` 0 means an empty file.
Error *file_kind_check(const char *name, const char *wanted, const char *bytes, size_t size) MUST_CHECK;
