// A small table of keys with one of each type, for tests and fuzzing of configurations and flags.
#pragma once

#include "core/keys.h"

typedef struct Settings {
    bool flag;
    int64_t count;
    double rate;
    char *name;
    int kind;
    Strings list;
    Proportions mixture;
} Settings;
static const char *const kinds[] = {"adamw", "lion", NULL};
static const Key settings_keys[] = {
    {"count", KEY_INT, offsetof(Settings, count), "3", 1, 100, NULL, "steps", "How many."},
    {"model.flag", KEY_BOOL, offsetof(Settings, flag), "true", .help = "Whether."},
    {"model.name", KEY_TEXT, offsetof(Settings, name), NULL, .help = "A name."},
    {"model.deep.rate", KEY_FLOAT, offsetof(Settings, rate), "0.1", 0, 1, .help = "A rate."},
    {"model.deep.kind", KEY_CHOICE, offsetof(Settings, kind), "adamw", .choices = kinds, .help = "A kind."},
    {"data.list", KEY_LIST, offsetof(Settings, list), NULL, .help = "A list."},
    {"data.mixture", KEY_PROPORTIONS, offsetof(Settings, mixture), NULL, .help = "Proportions."},
};
enum { SETTINGS = sizeof settings_keys / sizeof *settings_keys };
