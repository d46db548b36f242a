// One table of settings makes the parser, the checks, --help and the documentation.
//
// A Key says where in a struct a value lives, its type, range, unit, default and meaning. core/config reads YAML into such a
// struct, core/options a command line. Tables are constant arrays; a default is written as a user would write it.
#pragma once

#include "core/memory.h"

typedef enum KeyType {
    KEY_BOOL,         // bool
    KEY_INT,          // int64_t; 1e6, 10k, 4M, 64Ki are accepted
    KEY_FLOAT,        // double
    KEY_TEXT,         // char *, owned; NULL where not given and no default
    KEY_PATH,         // the same, of a file or folder: ~ at its beginning is the home folder, and it is never empty
    KEY_CHOICE,       // int: index into `choices`
    KEY_LIST,         // Strings: a YAML list, or a repeated flag
    KEY_PROPORTIONS,  // Proportions: a YAML map from name to number, or a repeated flag NAME=NUMBER
} KeyType;

typedef struct Proportions {
    char **names;
    double *values;
    size_t count;
} Proportions;

typedef struct Key {
    const char *name;  // "optimizer.learning_rate", "max-tokens"
    KeyType type;
    size_t offset;               // in the struct
    const char *default_value;   // NULL: KEY_TEXT and KEY_PATH stay NULL, lists stay empty; everything else needs one
    double least, most;          // inclusive, KEY_INT and KEY_FLOAT (and each value of KEY_PROPORTIONS); both 0: no limit
    const char *const *choices;  // KEY_CHOICE: NULL-terminated
    const char *unit;            // "tokens", "seconds"; NULL: none
    const char *help;            // one sentence
    // Whether the value is part of what the struct is, and the value, as key_print writes it, that says nothing: the one that a
    // struct had before there was this key. NULL: each value says something. Unlike a default it never changes once released.
    bool identity;
    const char *neutral;
    // Whether ranks of one run may have different values: what is of a host and not of the run.
    bool per_rank;
    const char *also;  // the words that other programs have for it, separated by blanks, for suggestions; NULL: none
} Key;

// Sets every value of `base` to its default. `base` must be zeroed.
void keys_defaults(const Key *keys, int count, void *base);
void keys_free(const Key *keys, int count, void *base);

// The key of that name, or NULL.
const Key *keys_find(const Key *keys, int count, const char *name);

// Parses `text` into the value of `key`. A KEY_LIST gets one item more, KEY_PROPORTIONS one NAME=NUMBER more. `where` starts
// the message: "configs/tiny.yaml:12".
Error *key_parse(const Key *key, void *base, const char *text, const char *where) MUST_CHECK;

// Empties a list or map before it is given anew.
void key_clear(const Key *key, void *base);

// Adds one proportion (KEY_PROPORTIONS), with the key's range checked.
Error *key_add_proportion(const Key *key, void *base, const char *name, double value, const char *where) MUST_CHECK;

// Appends the value as YAML (flow style for lists and maps).
void key_print(const Key *key, const void *base, Buffer *out);

// A hash of what the values are: of every key with `identity` whose value is not the neutral one, in any order of the rows. So
// a key that is added later, at its neutral value, changes no hash.
uint64_t keys_identity(const Key *keys, int count, const void *base);

// Whether the value is the key's neutral one.
bool key_neutral(const Key *key, const void *base);

// The keys that a mistaken `name` may mean, in `out` (room for KEYS_MEANT), and how many; 0 where it may be anything. Sections,
// dots, underscores and capitals do not count, so that learningRate is optimizer.learning_rate; else the last word decides, as
// a key's own, as one of its `also`, or with a slip of the pen. Where several keys are meant equally, the section chooses.
enum { KEYS_MEANT = 4 };
int keys_meant(const Key *keys, int count, const char *name, const Key *out[KEYS_MEANT]);

// Appends "; did you mean KEY?" for what keys_meant finds, or nothing.
void keys_suggest(const Key *keys, int count, const char *name, const char *prefix, Buffer *out);

// An "unknown key" error with suggestions. `what` is "key" or "flag", `prefix` "" or "--".
Error *keys_unknown(const Key *keys, int count, const char *name, const char *where, const char *what,
                    const char *prefix) MUST_CHECK;
