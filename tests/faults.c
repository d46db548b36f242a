// Preloaded into a program, makes calls that change files fail or take long: what a full, slow or broken disk does. For tests;
// linked to nothing. Environment:
//
//   FAULT_FOLDER   only calls on paths that contain this text count
//   FAULT_ERRNO    the number of the failure; 0 or unset: none
//   FAULT_AT       the first call that fails, from 1
//   FAULT_COUNT    how many fail from there on (default 1)
//   FAULT_SHORT    1: the first write that fails has written half of its bytes before
//   FAULT_FSYNC_MS fsync takes so much longer
//   FAULT_TOTAL    a file that gets the number of calls that counted, at exit
//   FAULT_HURRY    usleep sleeps so many times shorter: for those who would wait before they try again
//   FAULT_INIT_MS, FAULT_LOOKUP_MS   MPI_Init_thread, getaddrinfo take so much longer
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static _Atomic long calls;

static long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text != NULL ? atol(text) : otherwise;
}

static void nap(long ms) {
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

static int counts(const char *path) {
    const char *folder = getenv("FAULT_FOLDER");
    return folder != NULL && path != NULL && strstr(path, folder) != NULL;
}

static int counts_descriptor(int descriptor) {
    char name[64], path[4096];
    snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
    ssize_t n = readlink(name, path, sizeof path - 1);
    path[n > 0 ? n : 0] = 0;
    return counts(path);
}

// Counts a call; 0, or the place among those that fail, from 1.
static long fails(void) {
    long call = ++calls, at = setting("FAULT_AT", 0), error = setting("FAULT_ERRNO", 0);
    if (error == 0 || call < at || call >= at + setting("FAULT_COUNT", 1)) {
        return 0;
    }
    errno = (int)error;
    return call - at + 1;
}

__attribute__((destructor)) static void tell(void) {
    const char *path = getenv("FAULT_TOTAL");
    FILE *file = path != NULL && calls > 0 ? fopen(path, "w") : NULL;
    if (file != NULL) {
        fprintf(file, "%ld\n", (long)calls);
        fclose(file);
    }
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                                                                                             \
    int name(const char *path, int flags, ...) {                                                                               \
        va_list rest;                                                                                                          \
        va_start(rest, flags);                                                                                                 \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                                \
        va_end(rest);                                                                                                          \
        return (flags & O_ACCMODE) != O_RDONLY && counts(path) && fails() ? -1 : NEXT(name)(path, flags, mode);                \
    }
OPEN(open)
OPEN(open64)

ssize_t write(int descriptor, const void *bytes, size_t size) {
    long place = counts_descriptor(descriptor) ? fails() : 0;
    if (place == 1 && setting("FAULT_SHORT", 0) && size > 1) {
        return NEXT(write)(descriptor, bytes, size / 2);
    }
    return place ? -1 : NEXT(write)(descriptor, bytes, size);
}

ssize_t pwrite(int descriptor, const void *bytes, size_t size, off_t at) {
    return counts_descriptor(descriptor) && fails() ? -1 : NEXT(pwrite)(descriptor, bytes, size, at);
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t size, off64_t at) {
    return counts_descriptor(descriptor) && fails() ? -1 : NEXT(pwrite64)(descriptor, bytes, size, at);
}

int fsync(int descriptor) {
    if (counts_descriptor(descriptor)) {
        nap(setting("FAULT_FSYNC_MS", 0));
        return fails() ? -1 : NEXT(fsync)(descriptor);
    }
    return NEXT(fsync)(descriptor);
}

int ftruncate(int descriptor, off_t size) {
    return counts_descriptor(descriptor) && fails() ? -1 : NEXT(ftruncate)(descriptor, size);
}

int fallocate(int descriptor, int mode, off_t at, off_t size) {
    return counts_descriptor(descriptor) && fails() ? -1 : NEXT(fallocate)(descriptor, mode, at, size);
}

int rename(const char *from, const char *to) {
    return counts(to) && fails() ? -1 : NEXT(rename)(from, to);
}

int mkdir(const char *path, mode_t mode) {
    return counts(path) && fails() ? -1 : NEXT(mkdir)(path, mode);
}

int unlink(const char *path) {
    return counts(path) && fails() ? -1 : NEXT(unlink)(path);
}

int rmdir(const char *path) {
    return counts(path) && fails() ? -1 : NEXT(rmdir)(path);
}

int usleep(useconds_t time) {
    return NEXT(usleep)((useconds_t)(time / setting("FAULT_HURRY", 1)));
}

int MPI_Init_thread(int *argc, char ***argv, int wanted, int *given);
int MPI_Init_thread(int *argc, char ***argv, int wanted, int *given) {
    nap(setting("FAULT_INIT_MS", 0));
    return NEXT(MPI_Init_thread)(argc, argv, wanted, given);
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    nap(setting("FAULT_LOOKUP_MS", 0));
    return NEXT(getaddrinfo)(name, service, hints, found);
}
