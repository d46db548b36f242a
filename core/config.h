// Configurations: YAML files read into a struct by a Key table (keys.h).
//
// A dotted key names a nested map: optimizer.learning_rate is
//     optimizer:
//       learning_rate: 3e-4
// A top-level `include: file.yaml` (or a list) reads other files first, relative to the including one; later values win. Within
// one file a key is given once, whatever its spelling. Anchors, tags and several documents are refused: a configuration is
// plain data, and small (a limit on everything: depth, number and length of values, files). Unknown keys are errors that
// suggest what may be meant.
//
// Words as YAML 1.1 and 1.2 have them: null, Null, NULL, ~ or nothing is no value; true/false, yes/no, on/off in any capitals.
// Numbers as core/text.h reads them; what the two versions read differently (017), or people do not mean (0x10, .inf), is
// refused.
#pragma once

#include "core/keys.h"

// Reads `path`, then the overrides "key.path=value" in order. `base` must hold the defaults. A key of type list or map that is
// given replaces the earlier value. Of overrides of one key the last counts, so that scripts can add theirs. `seen` (count
// entries, may be NULL) is set for each key that was given anywhere. What is wrong with an override is ERROR_USAGE.
Error *config_read(const Key *keys, int count, void *base, const char *path, char *const *overrides, int override_count,
                   bool *seen) MUST_CHECK;

// Parses YAML text (for tests and fuzzing). `name` stands for the file in messages and its folder for includes.
Error *config_read_text(const Key *keys, int count, void *base, const char *name, const char *text, size_t size,
                        bool *seen) MUST_CHECK;

// Appends every key with its value as YAML that config_read reads back to the same struct, with a comment per key if `explain`.
void config_write(const Key *keys, int count, const void *base, bool explain, Buffer *out);
