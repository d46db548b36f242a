// Names of a corpus's sets: the Pile's 22 and the aliases under which its shards may carry them.
#pragma once

#define SET_NAME_DEFAULT "text"  // the set of documents that name none

enum { SET_NAME_BYTES = 256 };  // the longest accepted name, in bytes

// The Pile's name that `name` is an alias of (the-pile's components call four of them differently), else `name` itself.
const char *set_name_canonical(const char *name);

// Writes a file-name form of `name` to `out` (at least SET_NAME_BYTES): letters, digits, '.', '-' and '_' stay, runs of
// anything else become one '_'. Never empty, never starting with '.' or '-'. Different names may have equal forms.
void set_name_file(const char *name, char *out);
