// Files and folders that are whole or absent: see durable.h.
#include "core/durable.h"

#include "core/hash.h"
#include "core/text.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

char *path_join(const char *folder, const char *name) {
    size_t n = strlen(folder);
    return memory_format("%s%s%s", folder, n > 0 && folder[n - 1] != '/' ? "/" : "", name);
}

const char *path_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

char *path_folder(const char *path) {
    const char *slash = strrchr(path, '/');
    if (slash == NULL) {
        return memory_string(".");
    }
    if (slash == path) {
        return memory_string("/");
    }
    return memory_format("%.*s", (int)(slash - path), path);
}

Error *path_home(const char *path, char **out) {
    if (path[0] != '~') {
        *out = memory_string(path);
        return NULL;
    }
    const char *home = getenv("HOME");
    if (path[1] != 0 && path[1] != '/') {
        return failure("'%s' begins with another's home, which is not looked up; write the whole path, or ./%s", path, path);
    }
    if (home == NULL || *home == 0) {
        return failure("'%s' begins with the home folder, but HOME is not set; write the whole path", path);
    }
    *out = memory_format("%s%s", home, path + 1);
    return NULL;
}

bool path_exists(const char *path) {
    return access(path, F_OK) == 0;
}

bool path_is_folder(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

bool file_try_again(Error **error, int *tries) {
    enum { MOST_TRIES = 6, FIRST_SLEEP_US = 50000 };
    if (*error == NULL || !(*error)->passes || *tries == MOST_TRIES) {
        return false;
    }
    error_free(*error);
    *error = NULL;
    usleep((useconds_t)FIRST_SLEEP_US << (*tries)++);
    return true;
}

static Error *open_for_reading(const char *path, bool stream, int *descriptor, size_t *size) {
    // Without O_NONBLOCK the opening of a pipe waits for its writer.
    *descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | (stream ? 0 : O_NONBLOCK));
    if (*descriptor < 0) {
        return errno == ENXIO ? damaged("%s is a pipe, device or socket, a plain file is needed", path)
                              : error_system(errno, "%s cannot be opened", path);
    }
    struct stat info;
    Error *error = NULL;
    if (fstat(*descriptor, &info) != 0) {
        error = error_system(errno, "%s cannot be read", path);
    } else if (S_ISDIR(info.st_mode)) {
        error = damaged("%s is a folder, a file is needed", path);
    } else if (!S_ISREG(info.st_mode) && !stream) {
        error = damaged("%s is a pipe, device or socket, a plain file is needed", path);
    }
    if (error != NULL) {
        close(*descriptor);
        return error;
    }
    *size = (size_t)info.st_size;
    return NULL;
}

static Error *read_once(const char *path, size_t limit, bool stream, Buffer *out) {
    int descriptor;
    size_t size = 0;
    TRY(open_for_reading(path, stream, &descriptor, &size));
    buffer_clear(out);
    Error *error = NULL;
    for (;;) {
        if (out->size > limit || size > limit) {
            char most[32];
            error = failure("%s is larger than %s, too large for what it should be", path, text_bytes(most, (double)limit));
            break;
        }
        buffer_reserve(out, size > out->size ? size - out->size + 1 : 65536);
        ssize_t got = read(descriptor, out->data + out->size, out->capacity - out->size - 1);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            error = error_system(errno, "%s cannot be read", path);
            break;
        }
        out->size += (size_t)got;
        out->data[out->size] = 0;
        if (got == 0) {
            break;
        }
    }
    close(descriptor);
    return error;
}

Error *file_read(const char *path, size_t limit, Buffer *out) {
    int tries = 0;
    Error *error;
    do {
        error = read_once(path, limit, false, out);
    } while (file_try_again(&error, &tries));
    return error;
}

Error *file_read_stream(const char *path, size_t limit, Buffer *out) {
    return read_once(path, limit, true, out);
}

static Error *hash_once(const char *path, int64_t *bytes, uint64_t *hash) {
    enum { PIECE = 1 << 20 };
    int descriptor;
    size_t size;
    *bytes = 0;
    TRY(open_for_reading(path, false, &descriptor, &size));
    Hasher *hasher = hasher_create();
    char *piece = memory_new(PIECE, 1);
    Error *error = NULL;
    for (;;) {
        ssize_t got = read(descriptor, piece, PIECE);
        if (got < 0 && errno != EINTR) {
            error = error_system(errno, "%s cannot be read", path);
        }
        if (got == 0 || error != NULL) {
            break;
        }
        if (got > 0) {
            hasher_add(hasher, piece, (size_t)got);
            *bytes += got;
        }
    }
    *hash = hasher_result(hasher);
    free(piece);
    hasher_destroy(hasher);
    close(descriptor);
    return error;
}

Error *file_hash(const char *path, int64_t *bytes, uint64_t *hash) {
    int tries = 0;
    Error *error;
    do {
        error = hash_once(path, bytes, hash);
    } while (file_try_again(&error, &tries));
    return error;
}

Error *file_write_all(int descriptor, const char *path, const void *bytes, size_t size) {
    const char *p = bytes;
    while (size > 0) {
        ssize_t written = write(descriptor, p, size < (1u << 30) ? size : 1u << 30);
        if (written < 0 && errno == EINTR) {
            continue;
        }
        if (written < 0) {
            return error_system(errno, "%s cannot be written", path);
        }
        p += written;
        size -= (size_t)written;
    }
    return NULL;
}

Error *file_sync(const char *path) {
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) {
        return error_system(errno, "%s cannot be opened", path);
    }
    int failed = fsync(descriptor) != 0 ? errno : 0;
    close(descriptor);
    // Some file systems cannot sync a folder and say EINVAL; there is nothing more to do there.
    return failed != 0 && failed != EINVAL ? error_system(failed, "%s cannot be made durable", path) : NULL;
}

static Error *sync_parent(const char *path) {
    char *folder = path_folder(path);
    Error *error = file_sync(folder);
    free(folder);
    return error;
}

Error *file_commit(const char *from, const char *to) {
    if (rename(from, to) != 0) {
        return error_system(errno, "%s cannot be renamed to %s", from, to);
    }
    return sync_parent(to);
}

// Whether the name is that of a device, a pipe or an open descriptor (/dev/stdout, /dev/fd/3), which takes the bytes itself: a
// file that is renamed to it would take its place.
static bool takes_bytes(const char *path) {
    struct stat info;
    return strncmp(path, "/dev/stdout", 11) == 0 || strncmp(path, "/dev/stderr", 11) == 0 ||
           strncmp(path, "/dev/fd/", 8) == 0 || strncmp(path, "/proc/", 6) == 0 ||
           (stat(path, &info) == 0 && (S_ISCHR(info.st_mode) || S_ISBLK(info.st_mode) || S_ISFIFO(info.st_mode)));
}

static Error *write_into(const char *path, const void *bytes, size_t size) {
    int descriptor = open(path, O_WRONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);  // a pipe without a reader is not waited for
    if (descriptor < 0 || fcntl(descriptor, F_SETFL, O_WRONLY) != 0) {
        return error_system(errno, "%s cannot be opened", path);
    }
    Error *error = file_write_all(descriptor, path, bytes, size);
    if (close(descriptor) != 0 && error == NULL) {
        error = error_system(errno, "%s cannot be closed", path);
    }
    return error;
}

Error *file_write(const char *path, const void *bytes, size_t size) {
    if (takes_bytes(path)) {
        return write_into(path, bytes, size);
    }
    char *partial = memory_format("%s.%d%s", path, (int)getpid(), PARTIAL_SUFFIX);
    int descriptor = open(partial, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    Error *error = NULL;
    if (descriptor < 0) {
        error = error_system(errno, "%s cannot be created", path);
    } else {
        error = file_write_all(descriptor, path, bytes, size);
        if (error == NULL && fsync(descriptor) != 0) {
            error = error_system(errno, "%s cannot be made durable", path);
        }
        if (close(descriptor) != 0 && error == NULL) {
            error = error_system(errno, "%s cannot be closed", path);
        }
        if (error == NULL) {
            error = file_commit(partial, path);
        }
        if (error != NULL) {
            unlink(partial);
        }
    }
    free(partial);
    return error;
}

Error *file_map(const char *path, Mapped *out) {
    int descriptor;
    *out = (Mapped){0};
    Error *error;
    int tries = 0;
    do {
        error = open_for_reading(path, false, &descriptor, &out->size);
    } while (file_try_again(&error, &tries));
    TRY(error);
    if (out->size > 0) {
        void *data = mmap(NULL, out->size, PROT_READ, MAP_PRIVATE, descriptor, 0);
        if (data == MAP_FAILED) {
            int reason = errno;
            close(descriptor);
            return error_system(reason, "%s cannot be mapped", path);
        }
        out->data = data;
    }
    close(descriptor);
    return NULL;
}

void file_unmap(Mapped *mapped) {
    if (mapped->data != NULL) {
        munmap((void *)(uintptr_t)mapped->data, mapped->size);
    }
    *mapped = (Mapped){0};
}

void file_release(const Mapped *mapped) {
    if (mapped->data != NULL) {
        madvise((void *)(uintptr_t)mapped->data, mapped->size, MADV_DONTNEED);
    }
}

Error *folder_create(const char *path) {
    if (path_is_folder(path)) {
        return NULL;
    }
    char *copy = memory_string(path);
    for (char *p = copy + 1; *p != 0; p++) {
        if (*p == '/') {
            *p = 0;
            mkdir(copy, 0777);  // a failure shows at the last level
            *p = '/';
        }
    }
    free(copy);
    if (mkdir(path, 0777) == 0) {
        return NULL;
    }
    struct stat info;
    int reason = errno;
    if (reason == EEXIST && path_is_folder(path)) {
        return NULL;
    }
    // Another host has just made it, and a network file system does not show it here yet: that passes.
    reason = reason == EEXIST && lstat(path, &info) != 0 && errno == ENOENT ? ESTALE : reason;
    return error_system(reason, "folder %s cannot be created", path);
}

static Error *list_once(const char *path, Strings *names) {
    DIR *folder = opendir(path);
    if (folder == NULL) {
        return error_system(errno, "folder %s cannot be read", path);
    }
    errno = 0;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL; errno = 0) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            strings_add(names, entry->d_name);
        }
    }
    Error *error = errno != 0 ? error_system(errno, "folder %s cannot be read", path) : NULL;
    closedir(folder);
    return error;
}

Error *folder_list(const char *path, Strings *names) {
    int tries = 0;
    Error *error;
    Strings listed = {0};
    do {
        strings_free(&listed);
        error = list_once(path, &listed);
    } while (file_try_again(&error, &tries));
    strings_sort(&listed);
    for (size_t i = 0; i < listed.count && error == NULL; i++) {
        strings_add(names, listed.items[i]);
    }
    strings_free(&listed);
    return error;
}

Error *folder_remove(const char *path) {
    struct stat info;
    if (lstat(path, &info) != 0) {
        return errno == ENOENT ? NULL : error_system(errno, "%s cannot be removed", path);
    }
    if (!S_ISDIR(info.st_mode)) {
        return unlink(path) != 0 && errno != ENOENT ? error_system(errno, "%s cannot be removed", path) : NULL;
    }
    Strings names = {0};
    Error *error = folder_list(path, &names);
    for (size_t i = 0; i < names.count && error == NULL; i++) {
        char *child = path_join(path, names.items[i]);
        error = folder_remove(child);
        free(child);
    }
    strings_free(&names);
    if (error == NULL && rmdir(path) != 0 && errno != ENOENT) {
        error = error_system(errno, "%s cannot be removed", path);
    }
    return error;
}

// Matches the rest of a pattern, one path component after another, below `folder`.
static void glob_below(const char *folder, const char *pattern, Strings *files) {
    const char *slash = strchr(pattern, '/');
    size_t length = slash != NULL ? (size_t)(slash - pattern) : strlen(pattern);
    char *part = memory_format("%.*s", (int)length, pattern);
    const char *rest = slash != NULL ? slash + 1 : NULL;
    bool any_depth = strcmp(part, "**") == 0;
    if (any_depth && rest != NULL) {
        glob_below(folder, rest, files);  // zero folders
    }
    Strings names = {0};
    error_free(folder_list(*folder ? folder : ".", &names));  // what cannot be listed cannot match
    for (size_t i = 0; i < names.count; i++) {
        char *child = *folder ? path_join(folder, names.items[i]) : memory_string(names.items[i]);
        struct stat info;
        bool is_folder = path_is_folder(child);
        if (any_depth) {
            // Links to folders are not followed at any depth, so that a loop of links ends.
            if (is_folder && lstat(child, &info) == 0 && !S_ISLNK(info.st_mode)) {
                glob_below(child, pattern, files);
            } else if (!is_folder && rest == NULL) {
                strings_add(files, child);
            }
        } else if (fnmatch(part, names.items[i], FNM_PERIOD) == 0) {
            if (rest != NULL && is_folder) {
                glob_below(child, rest, files);
            } else if (rest == NULL && !is_folder) {
                strings_add(files, child);
            }
        }
        free(child);
    }
    strings_free(&names);
    free(part);
}

static Error *glob_files(const char *pattern, Strings *files) {
    size_t before = files->count;
    if (strpbrk(pattern, "*?[") == NULL) {
        if (!path_exists(pattern)) {
            return error_system(ENOENT, "%s", pattern);
        }
        if (path_is_folder(pattern)) {
            return failure("%s is a folder: give a pattern such as '%s/*'", pattern, pattern);
        }
        strings_add(files, pattern);
        return NULL;
    }
    // Everything up to the last '/' before the first wildcard is literal.
    const char *wild = strpbrk(pattern, "*?["), *literal_end = pattern;
    for (const char *p = pattern; p < wild; p++) {
        if (*p == '/') {
            literal_end = p + 1;
        }
    }
    char *folder = memory_format("%.*s", (int)(literal_end - pattern), pattern);
    size_t n = strlen(folder);
    if (n > 1) {
        folder[n - 1] = 0;
    }
    Strings found = {0};
    glob_below(folder, literal_end, &found);
    free(folder);
    strings_sort(&found);
    for (size_t i = 0; i < found.count; i++) {
        if (i == 0 || strcmp(found.items[i], found.items[i - 1]) != 0) {
            strings_add(files, found.items[i]);
        }
    }
    strings_free(&found);
    if (files->count == before) {
        return error_new(ERROR_MISSING, "no file matches %s", pattern);
    }
    return NULL;
}

Error *path_glob(const char *pattern, Strings *files) {
    char *path;
    TRY(path_home(pattern, &path));
    Error *error = glob_files(path, files);
    free(path);
    return error;
}
