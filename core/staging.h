// A folder of results that appears whole or not at all, and may take several runs to make.
//
//   PATH.partial/lock     held while a run works on it, so that two do not
//   PATH.partial/whole/   becomes PATH at the end
//   PATH.partial/...      whatever a run keeps for the next one
#pragma once

#include "core/memory.h"

typedef struct Staging {
    char *path;     // the final name
    char *partial;  // PATH.partial
    char *whole;    // PATH.partial/whole: empty at the start
    int lock;
} Staging;

// Claims PATH. What stands there already (anything but an empty folder) is refused, and so is a PATH that another process
// works on. What an earlier run left in PATH.partial stays, except for whole/, if `keep`; else it is removed.
Error *staging_begin(const char *path, bool keep, Staging *out) MUST_CHECK;

// Makes whole/ durable, renames it to PATH and removes PATH.partial. Frees the staging in every case.
Error *staging_commit(Staging *staging) MUST_CHECK;

// Gives up: removes PATH.partial, or leaves it if `keep`. Frees the staging.
void staging_abandon(Staging *staging, bool keep);

// Removes PATH.partial. Fine if there is none.
Error *staging_clear(const char *path) MUST_CHECK;
