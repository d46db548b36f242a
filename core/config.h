// Configurations: YAML files read into a struct by a Key table (keys.h).
//
// A dotted key names a nested map: optimizer.learning_rate is
//     optimizer:
//       learning_rate: 3e-4
// A top-level `include: file.yaml` (or a list) reads other files first, relative to the including one; later values win.
// Anchors, tags and several documents are refused: a configuration is plain data. Unknown keys are errors with the nearest
// name.
#pragma once

#include "core/keys.h"

// Reads `path`, then the overrides "key.path=value" in order. `base` must hold the defaults. A key of type list or map that is
// given replaces the earlier value. `seen` (count entries, may be NULL) is set for each key that was given anywhere.
Error *config_read(const Key *keys, int count, void *base, const char *path, char *const *overrides, int override_count,
                   bool *seen) MUST_CHECK;

// Parses YAML text (for tests and fuzzing). `name` stands for the file in messages and its folder for includes.
Error *config_read_text(const Key *keys, int count, void *base, const char *name, const char *text, size_t size,
                        bool *seen) MUST_CHECK;

// Appends every key with its value as YAML that config_read reads back to the same struct, with a comment per key if `explain`.
void config_write(const Key *keys, int count, const void *base, bool explain, Buffer *out);
