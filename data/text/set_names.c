// Names of sets: see set_names.h.
#include "data/text/set_names.h"

#include <string.h>

// the-pile/the_pile/datasets.py: what .name() says where it differs from the README's name, which the shards carry.
static const struct {
    const char *alias, *name;
} aliases[] = {
    {"CommonCrawl", "Pile-CC"}, {"Bibliotik", "Books3"}, {"USPTO", "USPTO Backgrounds"}, {"BookCorpus", "BookCorpus2"}};

const char *set_name_canonical(const char *name) {
    for (unsigned i = 0; i < sizeof aliases / sizeof *aliases; i++) {
        if (strcmp(name, aliases[i].alias) == 0) {
            return aliases[i].name;
        }
    }
    return name;
}

void set_name_file(const char *name, char *out) {
    enum { LONGEST = 100 };
    int n = 0;
    for (const char *p = name; *p != 0 && n < LONGEST; p++) {
        if ((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9') ||
            (n > 0 && (*p == '.' || *p == '-'))) {
            out[n++] = *p;
        } else if (n > 0 && out[n - 1] != '_') {
            out[n++] = '_';
        }
    }
    while (n > 0 && (out[n - 1] == '_' || out[n - 1] == '.')) {
        n--;
    }
    out[n] = 0;
    if (n == 0) {
        strcpy(out, "set");
    }
}
