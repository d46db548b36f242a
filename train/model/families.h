// Model families: a row of switches and a name map each.
//
// Sources: transformers' configuration and modelling files of each family. A new family that the block's switches can express
// is a new row here and nothing else.
#pragma once

#include "train/model/params.h"

typedef struct FamilySwitch {
    const char *key, *value;  // of model_keys, as a user would write it
} FamilySwitch;

// One tensor of a published checkpoint. '*' stands for the layer's number in both names. Several rows with the same `ours` are
// its parts. A row whose `ours` the model's table lacks does not apply.
typedef struct FamilyName {
    const char *ours, *theirs;
    const char *part;  // of ours that theirs holds (params.h); "": all of it
    bool transposed;   // theirs is [in, out]
} FamilyName;

typedef struct Family {
    const char *name;
    const FamilySwitch *switches;
    int switch_count;
    const FamilyName *names;
    int name_count;
} Family;

// The list of families, and their names as the key model.family gives them (NULL-terminated), by the same index.
extern const Family families[];
extern const char *const family_names[];

// The index of the family of that name, which must exist: for tables of models in tests and benchmarks.
int family_find(const char *name);

// The name maps and what follows wait for their first caller: the import and export of published checkpoints.

// Writes `pattern` with '*' replaced by `layer` to out (size bytes, at least PARAM_NAME_SIZE) and returns out.
const char *family_name(const char *pattern, int64_t layer, char *out, size_t size);
