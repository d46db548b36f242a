// Files and folders that are whole or absent.
//
// A file is written beside its final name, fsynced, renamed, and its folder fsynced; a folder likewise. What did not
// finish is left under a name that ends in ".partial" and is never read. Every error names the path.
//
// Only plain files are read: a folder, pipe, device or socket in the place of one is an ERROR_DAMAGED, found without waiting
// for it. A read that the system refuses for a reason that passes is tried again for a few seconds.
#pragma once

#include "core/memory.h"

#define PARTIAL_SUFFIX ".partial"

// dir/name, owned by the caller.
char *path_join(const char *folder, const char *name);
const char *path_name(const char *path);  // the part after the last '/'
char *path_folder(const char *path);      // the part before it ("." where there is none), owned by the caller
// The path that a user means, owned by the caller: ~ and ~/x begin in the home folder. Another's home (~name) is an error.
Error *path_home(const char *path, char **out) MUST_CHECK;
bool path_exists(const char *path);
bool path_is_folder(const char *path);

// Whether an operation is worth another try: it failed for a reason that passes (EIO, ESTALE, a full disk ...: core/error.c)
// and *tries, 0 at first, are not used up. Then it has slept a little, in all some seconds, and *error is freed and NULL.
bool file_try_again(Error **error, int *tries);

// Reads a whole file. `limit` guards against absurd sizes (bytes). file_read_stream also takes a pipe or terminal, which a
// person named as input, and waits for its end.
Error *file_read(const char *path, size_t limit, Buffer *out) MUST_CHECK;
Error *file_read_stream(const char *path, size_t limit, Buffer *out) MUST_CHECK;

// Replaces `path` by these bytes, atomically and durably. A device, a pipe or a descriptor's
// name (/dev/stdout) is written into and stays what it is.
Error *file_write(const char *path, const void *bytes, size_t size) MUST_CHECK;

// Writes all bytes to a descriptor, whatever it takes; `path` is for the message.
Error *file_write_all(int descriptor, const char *path, const void *bytes, size_t size) MUST_CHECK;

// The size and hash64 of a whole file, read in pieces.
Error *file_hash(const char *path, int64_t *bytes, uint64_t *hash) MUST_CHECK;

// fsync of an existing file or folder.
Error *file_sync(const char *path) MUST_CHECK;

// rename(from, to), then fsync of the folder that holds `to`. `to` must not exist as a folder with content.
Error *file_commit(const char *from, const char *to) MUST_CHECK;

// A file mapped for reading. size 0 gives data NULL.
typedef struct Mapped {
    const void *data;
    size_t size;
} Mapped;
Error *file_map(const char *path, Mapped *out) MUST_CHECK;
void file_unmap(Mapped *mapped);
// Lets go of the pages that were read so far (they come back when read again), so that they do not count as this process's
// memory.
void file_release(const Mapped *mapped);

Error *folder_create(const char *path) MUST_CHECK;                // with parents; fine if it exists
Error *folder_remove(const char *path) MUST_CHECK;                // with content; fine if it does not exist
Error *folder_list(const char *path, Strings *names) MUST_CHECK;  // sorted, without . and ..

// Expands a pattern with * ? [ ] and ** (any depth of folders) to the sorted files it matches. No match is an error that
// names the pattern. ~ at its beginning is the home folder. A pattern without wildcards must be an existing file.
Error *path_glob(const char *pattern, Strings *files) MUST_CHECK;
