// Command lines: flags described by a Key table (keys.h), and what is left.
#pragma once

#include "core/keys.h"

// Parses argv[0 .. argc): "--name value", "--name=value", "--flag" and "--no-flag" for KEY_BOOL, "--" ends flags. What is no
// flag goes to `rest` in order (pointers into argv, room for argc). Errors are ERROR_USAGE. `base` must hold the defaults.
Error *options_parse(const Key *keys, int count, void *base, int argc, char **argv, char **rest, int *rest_count) MUST_CHECK;

// Appends one block per flag for --help: name, value, default, meaning.
void options_help(const Key *keys, int count, Buffer *out);
