// Shards that are given more than once: see shard_files.h.
#include "data/text/shard_files.h"

#include "core/log.h"

#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>

enum { COMPARE_BYTES = 64 << 10 };

// Whether two files of one size hold the same bytes.
static Error *compare_files(const char *a, const char *b, bool *same) {
    static const char cannot[] = "%s cannot be read";
    FILE *files[2] = {fopen(a, "rbe"), NULL};
    if (files[0] == NULL) {
        return error_system(errno, cannot, a);
    }
    files[1] = fopen(b, "rbe");
    Error *error = files[1] == NULL ? error_system(errno, cannot, b) : NULL;
    char *bytes = memory_new(2, COMPARE_BYTES);
    *same = true;
    for (size_t got[2] = {1, 1}; error == NULL && *same && got[0] > 0;) {
        for (int i = 0; i < 2; i++) {
            got[i] = fread(bytes + i * COMPARE_BYTES, 1, COMPARE_BYTES, files[i]);
            if (ferror(files[i]) && error == NULL) {
                error = error_system(errno, cannot, i == 0 ? a : b);
            }
        }
        *same = got[0] == got[1] && memcmp(bytes, bytes + COMPARE_BYTES, got[0]) == 0;
    }
    free(bytes);
    fclose(files[0]);
    if (files[1] != NULL) {
        fclose(files[1]);
    }
    return error;
}

// The first of `count` files that file `path` is, or holds the same as; -1 if there is none.
static Error *find_before(const Strings *once, const struct stat *infos, const char *path, const struct stat *info,
                          int64_t *at) {
    for (size_t i = 0; i < once->count; i++) {
        bool same = infos[i].st_dev == info->st_dev && infos[i].st_ino == info->st_ino;
        if (!same && S_ISREG(info->st_mode) && info->st_size > 0 && infos[i].st_size == info->st_size) {
            TRY(compare_files(once->items[i], path, &same));
        }
        if (same) {
            *at = (int64_t)i;
            return NULL;
        }
    }
    *at = -1;
    return NULL;
}

Error *shard_files_once(const Strings *given, Strings *once) {
    struct stat *infos = memory_new(given->count + 1, sizeof *infos), info;
    Error *error = NULL;
    for (size_t i = 0; i < given->count && error == NULL; i++) {
        const char *path = given->items[i];
        int64_t before = -1;
        if (stat(path, &info) != 0) {
            error = error_system(errno, "%s cannot be read", path);
            break;
        }
        error = find_before(once, infos, path, &info, &before);
        if (error == NULL && before < 0) {
            infos[once->count] = info;
            strings_add(once, path);
        } else if (error == NULL && strcmp(once->items[before], path) != 0) {
            bool link = infos[before].st_dev == info.st_dev && infos[before].st_ino == info.st_ino;
            log_warning("%s %s %s: it counts once", path, link ? "is the same file as" : "holds the same as",
                        once->items[before]);
        }
    }
    free(infos);
    return error;
}
