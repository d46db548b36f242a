// Checkpoints where the system refuses: what cannot be read now is not damaged, what cannot be written or has no room is told
// before the first step, nothing is durable before it was synced, and a save short of memory fails alone.
//
// The program's calls of open, read, pread, write, fsync, rename and others come through the functions below, which are linked
// in the place of the C library's: they log what makes files durable, and fail where a test wants it.
#include "core/durable.h"
#include "core/hash.h"
#include "core/philox.h"
#include "tests/support/check.h"
#include "tests/support/checkpoints.h"
#include "tests/support/models.h"
#include "train/checkpoint/manifest.h"
#include "train/checkpoint/steps.h"
#include "train/model_checkpoint.h"
#include "train/saved_run.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

// ---- calls of the system ----

typedef enum Call { CALL_OPEN, CALL_READ, CALL_STAT, CALL_LIST, CALL_WRITE, CALL_SYNC, CALL_RENAME, CALL_UNLINK, CALLS } Call;

// The next `times` calls on paths that contain `part` fail.
static struct {
    const char *part;
    Call call;
    int error, times;
} fault;
static double slept;  // seconds, which tests do not wait for

typedef struct Event {
    Call call;            // of CALL_WRITE, CALL_SYNC, CALL_RENAME
    ino_t inode, folder;  // what was written, synced or renamed; RENAME: and the folder that it came to
    char path[512];
} Event;
static Event *events;
static int event_count, event_capacity;
static bool logging;
static pthread_mutex_t log_mutex = PTHREAD_MUTEX_INITIALIZER;

static bool fails(Call call, const char *path) {
    if (fault.part == NULL || fault.call != call || fault.times == 0 || strstr(path, fault.part) == NULL) {
        return false;
    }
    fault.times--;
    errno = fault.error;
    return true;
}

static const char *path_of(int descriptor, char out[512]) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, out, 511);
    out[size > 0 ? size : 0] = 0;
    return out;
}

static void log_event(Call call, int descriptor, const char *path) {
    struct stat info, above;
    if (!logging || (descriptor >= 0 ? fstat(descriptor, &info) : stat(path, &info)) != 0) {
        return;
    }
    char *folder = path_folder(path);
    Event event = {.call = call, .inode = info.st_ino, .folder = stat(folder, &above) == 0 ? above.st_ino : 0};
    snprintf(event.path, sizeof event.path, "%s", path);
    free(folder);
    pthread_mutex_lock(&log_mutex);
    array_push(events, event_count, event_capacity, event);
    pthread_mutex_unlock(&log_mutex);
}

#define REAL(name) ((__typeof__(&name))(uintptr_t)dlsym(RTLD_NEXT, #name))

int open(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = (flags & O_CREAT) != 0 ? va_arg(more, mode_t) : 0;
    va_end(more);
    return fails(CALL_OPEN, path) ? -1 : REAL(open)(path, flags, mode);
}

ssize_t read(int descriptor, void *to, size_t size) {
    char path[512];
    return fault.part != NULL && fails(CALL_READ, path_of(descriptor, path)) ? -1 : REAL(read)(descriptor, to, size);
}

ssize_t pread(int descriptor, void *to, size_t size, off_t offset) {
    char path[512];
    return fault.part != NULL && fails(CALL_READ, path_of(descriptor, path)) ? -1 : REAL(pread)(descriptor, to, size, offset);
}

int lstat(const char *restrict path, struct stat *restrict info) {
    return fails(CALL_STAT, path) ? -1 : REAL(lstat)(path, info);
}

DIR *opendir(const char *path) {
    return fault.error > 0 && fails(CALL_LIST, path) ? NULL : REAL(opendir)(path);
}

struct dirent *readdir(DIR *folder) {
    char path[512];
    // Of an `error` below 0 it is the list itself that breaks off.
    if (fault.part != NULL && fault.call == CALL_LIST && fault.error < 0 && fault.times > 0 &&
        strstr(path_of(dirfd(folder), path), fault.part) != NULL) {
        fault.times--;
        errno = -fault.error;
        return NULL;
    }
    return REAL(readdir)(folder);
}

ssize_t write(int descriptor, const void *from, size_t size) {
    char path[512];
    if (fault.part != NULL && fails(CALL_WRITE, path_of(descriptor, path))) {
        return -1;
    }
    if (logging) {
        log_event(CALL_WRITE, descriptor, path_of(descriptor, path));
    }
    return REAL(write)(descriptor, from, size);
}

int fsync(int descriptor) {
    char path[512];
    path_of(descriptor, path);
    if (fails(CALL_SYNC, path)) {
        return -1;
    }
    int result = REAL(fsync)(descriptor);
    log_event(CALL_SYNC, descriptor, path);
    return result;
}

int rename(const char *from, const char *to) {
    if (fails(CALL_RENAME, to)) {
        return -1;
    }
    int result = REAL(rename)(from, to);
    log_event(CALL_RENAME, -1, to);
    return result;
}

int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    int result = REAL(renameat2)(from_folder, from, to_folder, to, flags);
    log_event(CALL_RENAME, -1, to);
    return result;
}

int unlink(const char *path) {
    return fails(CALL_UNLINK, path) ? -1 : REAL(unlink)(path);
}

int usleep(useconds_t time) {
    slept += time * 1e-6;
    return time > 1000 ? sched_yield() : REAL(usleep)(time);
}

// ---- durability ----

static int last_event(Call call, ino_t inode, int before) {
    for (int i = before - 1; i >= 0; i--) {
        if (events[i].call == call && events[i].inode == inode) {
            return i;
        }
    }
    return -1;
}

// Something that leaves: nobody needs its bytes.
static bool text_is_moved_aside(const char *path) {
    return strstr(path, ".old" PARTIAL_SUFFIX) != NULL;
}

// Nothing gets a name before its bytes are durable, and each name is made durable too.
static void check_renames(void) {
    for (int i = 0; i < event_count; i++) {
        const Event *e = &events[i];
        if (e->call != CALL_RENAME || text_is_moved_aside(e->path)) {
            continue;
        }
        int synced = last_event(CALL_SYNC, e->inode, i), written = last_event(CALL_WRITE, e->inode, i), named = -1;
        for (int k = i + 1; k < event_count && named < 0; k++) {
            named = events[k].call == CALL_SYNC && events[k].inode == e->folder ? k : -1;
        }
        if (!CHECK(synced >= 0 && synced > written && named >= 0)) {
            fprintf(stderr, "%s: written %d, synced %d, renamed %d, its folder synced %d\n", e->path, written, synced, i,
                    named);
        }
    }
}

// Every file of a committed folder, whoever wrote it; the folder after all names in it were made.
static void check_folder_synced(const char *path) {
    struct stat info;
    Strings names = {0};
    CHECK(stat(path, &info) == 0);
    int committed = last_event(CALL_RENAME, info.st_ino, event_count), inside = -1;
    CHECK(committed >= 0);
    ino_t folder = info.st_ino;
    CHECK_OK(folder_list(path, &names));
    for (size_t i = 0; i < names.count; i++) {
        char *file = path_join(path, names.items[i]);
        CHECK(stat(file, &info) == 0);
        int written = last_event(CALL_WRITE, info.st_ino, event_count), synced = last_event(CALL_SYNC, info.st_ino, committed);
        if (!CHECK(written >= 0 && written < synced && synced < committed)) {
            fprintf(stderr, "%s: written %d, synced %d, committed %d\n", file, written, synced, committed);
        }
        int renamed = last_event(CALL_RENAME, info.st_ino, event_count);
        inside = renamed > inside ? renamed : inside;
        inside = written > inside ? written : inside;
        free(file);
    }
    CHECK(inside >= 0 && last_event(CALL_SYNC, folder, committed) > inside);
    strings_free(&names);
}

static void begin_log(void) {
    event_count = 0;
    logging = true;
}

static void test_durability(void) {
    const char *base = check_folder();
    char *run = path_join(base, "run"), *folder = steps_folder(run), *file = path_join(base, "file");
    begin_log();
    CHECK_OK(file_write(file, "words", 5));
    check_renames();
    CHECK_I64(event_count, 4);  // written, synced, renamed, its folder synced

    Toy toy;
    struct stat above, between;
    begin_log();
    CHECK_OK(toy_open(&toy, run, TOY_RANGES, 3, 3, 2, 0));
    CHECK(stat(base, &above) == 0 && stat(run, &between) == 0);
    CHECK(last_event(CALL_SYNC, above.st_ino, event_count) >= 0 && last_event(CALL_SYNC, between.st_ino, event_count) >= 0);
    for (int round = 0; round < 4; round++) {
        int64_t step = round < 2 ? round + 1 : 2;  // the last two replace what is there
        begin_log();
        CHECK(toy_save(&toy, step) == CHECKPOINT_COMMITTED);
        check_renames();
        char *path = steps_path(folder, step);
        check_folder_synced(path);
        free(path);
    }
    logging = false;
    toy_close(&toy);
    free(file);
    free(folder);
    free(run);
}

static void fetch_bytes(void *context, const CheckpointPart *part, void *to, float *scales) {
    ensure(scales == NULL, "fp32 has no scales");
    memcpy(to, context, (size_t)boxes_count(part->boxes, part->box_count) * sizeof(float));
}

// The checksum is of the whole file: a change at any place is found, beyond whatever is read at once.
static void test_whole_checksum(void) {
    enum { BYTES = (5 << 20) + 12345, PLACES = 40 };
    const char *run = check_folder();
    char *bytes = memory_new(BYTES, 1), *path = path_join(run, "file");
    for (int i = 0; i < BYTES; i++) {
        bytes[i] = (char)(i * 7 + i / 1000);
    }
    int64_t size;
    uint64_t hash;
    CHECK_OK(file_write(path, bytes, BYTES));
    CHECK_OK(file_hash(path, &size, &hash));
    CHECK(size == BYTES && hash == hash64(bytes, BYTES));

    // In a checkpoint whose files, the numbers' and the blob, are of that size.
    static const CheckpointTensor tensor = {"w", 1, {BYTES / 4}};
    const char *saved = check_folder();
    Toy toy;
    CHECK_OK(toy_open(&toy, saved, TOY_RANGES, 1, 1, 1, 0));
    toy_close(&toy);
    Box whole = box_whole(1, tensor.shape);
    CheckpointPart part = {.kind = "weight", .boxes = &whole, .box_count = 1};
    CheckpointPlan plan = {.run_folder = saved,
                           .ranks = 1,
                           .keep_last = 1,
                           .layout = "",
                           .tensors = &tensor,
                           .tensor_count = 1,
                           .parts = &part,
                           .part_count = 1,
                           .fetch = fetch_bytes,
                           .fetch_context = bytes};
    CheckpointBlob blob = {"blob", bytes, BYTES};
    CheckpointWriter *w;
    json_t *state = json_object();
    CHECK_OK(checkpoint_writer_create(&plan, &w));
    checkpoint_writer_begin(w, 1, 1, state, &blob, 1);
    CheckpointEvent event = CHECKPOINT_NOTHING;
    while (event == CHECKPOINT_NOTHING) {
        double flags[CHECKPOINT_FLAGS];
        checkpoint_writer_flags(w, flags);
        event = checkpoint_writer_advance(w, flags);
    }
    CHECK(event == CHECKPOINT_COMMITTED);
    json_decref(state);
    checkpoint_writer_destroy(w);
    for (int i = 0; i < PLACES; i++) {
        char *file = memory_format("%s/checkpoints/step-00000001/%s", saved, i % 2 == 0 ? "rank-00000.h5" : "blob");
        struct stat info;
        CHECK(stat(file, &info) == 0);
        off_t at = i < 4 ? info.st_size - 1 - i : (off_t)(philox_u64(1, 2, (uint64_t)i) % (uint64_t)info.st_size);
        int descriptor = open(file, O_RDWR);
        char byte = 0, changed;
        CHECK(pread(descriptor, &byte, 1, at) == 1);
        changed = (char)(byte ^ 16);
        CHECK(pwrite(descriptor, &changed, 1, at) == 1);
        char *found;
        CHECK_FAILS(checkpoint_find(saved, INT64_MAX, 0, &found, NULL), "none of its 1 checkpoints can be taken");
        CHECK(pwrite(descriptor, &byte, 1, at) == 1);
        close(descriptor);
        free(file);
    }
    free(bytes);
    free(path);
}

// ---- what cannot be read now ----

static const int lasting[] = {EACCES, EPERM, ENOMEM, EMFILE, ENFILE, ELOOP, EBUSY, EROFS, ENODEV, EHOSTDOWN, ENOTCONN};
static const int passing[] = {EIO, ESTALE, EAGAIN, ETIMEDOUT};

static Error *find_with(const char *run, const char *part, Call call, int reason, int times, char **path, Strings *skipped) {
    fault.part = part;
    fault.call = call;
    fault.error = reason;
    fault.times = times;
    slept = 0;
    Error *error = checkpoint_find(run, INT64_MAX, 0, path, skipped);
    fault.part = NULL;
    return error;
}

// Every place where the newest is read, every reason: never the one before, never a word of damage.
static void test_unreadable(void) {
    static const struct {
        const char *part;
        Call call;
        int sign;
    } places[] = {{"step-00000002/manifest.json", CALL_OPEN, 1},
                  {"step-00000002/manifest.json", CALL_READ, 1},
                  {"step-00000002/rank-00001.h5", CALL_OPEN, 1},
                  {"step-00000002/rank-00001.h5", CALL_READ, 1},
                  {"step-00000002/metrics.jsonl", CALL_STAT, 1},
                  {"step-00000002/metrics.jsonl", CALL_OPEN, 1},
                  {"checkpoints", CALL_LIST, 1},
                  {"checkpoints", CALL_LIST, -1}};
    const char *run = check_folder();
    Toy toy;
    CHECK_OK(toy_open(&toy, run, TOY_RANGES, 2, 2, 2, 0));
    CHECK(toy_save(&toy, 1) == CHECKPOINT_COMMITTED && toy_save(&toy, 2) == CHECKPOINT_COMMITTED);
    toy_close(&toy);
    enum { LASTING = sizeof lasting / sizeof *lasting, PASSING = sizeof passing / sizeof *passing };
    for (size_t p = 0; p < sizeof places / sizeof *places; p++) {
        for (int r = 0; r < LASTING + PASSING; r++) {
            int reason = r < LASTING ? lasting[r] : passing[r - LASTING];
            char *path = NULL;
            Strings skipped = {0};
            Error *error = find_with(run, places[p].part, places[p].call, places[p].sign * reason, 1 << 30, &path, &skipped);
            if (!CHECK(error != NULL && error->kind == ERROR_UNREADABLE && path == NULL && skipped.count == 0)) {
                fprintf(stderr, "%s call %d: %s: %s\n", places[p].part, (int)places[p].call, strerror(reason),
                        error != NULL ? error->message : path);
            }
            CHECK(error == NULL || (strstr(error->message, strerror(reason)) != NULL &&
                                    strstr(error->message, "damaged") == NULL && strstr(error->message, "remove") == NULL));
            CHECK(r < LASTING ? slept < 0.1 : slept > 1 && slept < 6);
            error_free(error);
            strings_free(&skipped);
            free(path);
            if (r >= LASTING) {  // it passes
                CHECK_OK(find_with(run, places[p].part, places[p].call, places[p].sign * reason, 3, &path, NULL));
                CHECK(path != NULL && strstr(path, "step-00000002") != NULL && slept < 1);
                free(path);
            }
        }
    }
    // Later, while it is read.
    char *path;
    Checkpoint *c;
    float value;
    Box first = {.dims = 2, .end = {1, 1}};
    Buffer blob = {0};
    CHECK_OK(checkpoint_find(run, INT64_MAX, 0, &path, NULL));
    for (int r = 0; r < LASTING + PASSING; r++) {
        int reason = r < LASTING ? lasting[r] : passing[r - LASTING];
        for (int place = 0; place < 4; place++) {  // opened and read by HDF5; then by us
            CHECK_OK(checkpoint_open(path, false, &c));
            if (place >= 2) {
                CHECK_OK(checkpoint_read(c, "embedding", "weight", &first, 1, &value));
            }
            fault.part = "step-00000002/rank-00000.h5";
            fault.call = place % 2 == 0 ? CALL_OPEN : CALL_READ;
            fault.error = reason;
            fault.times = 1 << 30;
            Error *error = checkpoint_read(c, "embedding", "weight", &first, 1, &value);
            fault.times = 1;
            Error *after = checkpoint_read(c, "embedding", "weight", &first, 1, &value);
            fault.part = NULL;
            if (!CHECK(error != NULL && error->kind == ERROR_UNREADABLE)) {
                fprintf(stderr, "place %d: %s: %s\n", place, strerror(reason), error != NULL ? error->message : "read");
            }
            CHECK(r < LASTING ? after != NULL && after->kind == ERROR_UNREADABLE : after == NULL);
            CHECK_OK(checkpoint_read(c, "embedding", "weight", &first, 1, &value));
            error_free(error);
            error_free(after);
            checkpoint_close(c);
        }
        CHECK_OK(checkpoint_open(path, false, &c));
        fault.part = "metrics.jsonl";
        fault.call = CALL_OPEN;
        fault.error = reason;
        fault.times = 1 << 30;
        Error *error = checkpoint_blob(c, "metrics.jsonl", &blob);
        fault.part = NULL;
        CHECK(error != NULL && error->kind == ERROR_UNREADABLE);
        error_free(error);
        checkpoint_close(c);
    }
    buffer_free(&blob);
    // Retention does not count what it cannot read, and leaves it.
    Toy later;
    CHECK_OK(toy_open(&later, run, TOY_RANGES, 1, 2, 1, 0));
    fault.part = "step-00000001/";
    fault.call = CALL_OPEN;
    fault.error = EACCES;
    fault.times = 1 << 30;
    CHECK(toy_save(&later, 3) == CHECKPOINT_COMMITTED);
    fault.part = NULL;
    char *one = memory_format("%s/checkpoints/step-00000001", run);
    CHECK(path_exists(one) && !path_exists(path));
    toy_close(&later);
    free(one);
    free(path);
}

// Things in a step's place that are no folder, and links.
static void test_strange_steps(void) {
    const char *run = check_folder();
    Toy toy;
    CHECK_OK(toy_open(&toy, run, TOY_RANGES, 1, 1, 2, 0));
    CHECK(toy_save(&toy, 1) == CHECKPOINT_COMMITTED);
    toy_close(&toy);
    char *two = memory_format("%s/checkpoints/step-00000002", run), *manifest = path_join(two, MANIFEST_NAME), *path;
    Strings skipped = {0};
    CHECK_OK(file_write(two, "", 0));
    CHECK_OK(checkpoint_find(run, INT64_MAX, 0, &path, &skipped));
    CHECK(skipped.count == 1 && strstr(path, "step-00000001") != NULL);
    free(path);
    CHECK_OK(folder_remove(two));
    CHECK_OK(folder_create(two));
    CHECK_OK(checkpoint_find(run, INT64_MAX, 0, &path, &skipped));
    CHECK_I64(skipped.count, 2);
    free(path);
    CHECK_OK(folder_create(manifest));
    CHECK_OK(checkpoint_find(run, INT64_MAX, 0, &path, &skipped));
    CHECK(skipped.count == 3 && strstr(skipped.items[2], "is a folder") != NULL);
    free(path);
    CHECK_OK(folder_remove(two));
    // A disk that is not there now.
    CHECK(symlink("/nowhere/step-00000002", two) == 0);
    Error *error = checkpoint_find(run, INT64_MAX, 0, &path, &skipped);
    CHECK(error != NULL && error->kind == ERROR_UNREADABLE);
    error_free(error);
    strings_free(&skipped);
    free(manifest);
    free(two);
}

// Pipes, devices and sockets are not waited for, whoever reads.
static void test_no_plain_files(void) {
    const char *folder = check_folder();
    char *pipe_path = path_join(folder, "pipe.json"), *socket_path = path_join(folder, "socket.json");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", socket_path);
    int descriptor = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(mkfifo(pipe_path, 0600) == 0 && bind(descriptor, (struct sockaddr *)&address, sizeof address) == 0);
    const char *const paths[] = {pipe_path, socket_path, "/dev/zero", "/dev/tty0", folder};
    alarm(60);
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        Buffer bytes = {0};
        Mapped mapped;
        int64_t size;
        uint64_t hash;
        for (int reader = 0; reader < 3; reader++) {
            Error *error = reader == 0   ? file_read(paths[i], 100, &bytes)
                           : reader == 1 ? file_map(paths[i], &mapped)
                                         : file_hash(paths[i], &size, &hash);
            CHECK(error != NULL && (error->kind == ERROR_DAMAGED || !path_exists(paths[i])));
            error_free(error);
        }
        buffer_free(&bytes);
    }
    // The whole program, of every place that it looks at.
    const char *program = getenv("ATHANOR");
    static const char *const names[] = {"pipe.json",
                                        "pipe.bin",
                                        "pipe.idx",
                                        "a/config.yaml",
                                        "b/manifest.json",
                                        "c/checkpoints/step-00000001/manifest.json",
                                        "step-00000001/manifest.json",
                                        "d/checkpoints/lock",
                                        "d/run.json"};
    for (size_t i = 0; program != NULL && *program != 0 && i < sizeof names / sizeof *names; i++) {
        char *path = path_join(folder, names[i]), *inside = path_folder(path);
        CHECK_OK(folder_create(inside));
        mkfifo(path, 0600);
        size_t top = strlen(folder) + 1 + strcspn(names[i], "/");
        char *command = memory_format("timeout 20 '%s' inspect '%.*s' > /dev/null 2>&1", program, (int)top, path);
        int status = system(command);
        CHECK_I64(WIFEXITED(status) ? WEXITSTATUS(status) : -1, 1);
        free(command);
        free(inside);
        free(path);
    }
    alarm(0);
    close(descriptor);
    free(pipe_path);
    free(socket_path);
}

// ---- before the first step ----

// Whatever keeps a save from succeeding is told when the writer is made.
static void test_probe(void) {
    static const struct {
        const char *part;
        Call call;
    } places[] = {{"probe.partial", CALL_OPEN},   {"probe.partial", CALL_WRITE},  {"probe.partial", CALL_SYNC},
                  {"probe.partial", CALL_RENAME}, {"probe.partial", CALL_UNLINK}, {"/checkpoints", CALL_SYNC}};
    static const int reasons[] = {EACCES, EPERM, EROFS, ENOSPC, EDQUOT, EIO, ESTALE};
    for (size_t p = 0; p < sizeof places / sizeof *places; p++) {
        for (size_t r = 0; r < sizeof reasons / sizeof *reasons; r++) {
            const char *run = check_folder();
            Toy toy;
            fault.part = places[p].part;
            fault.call = places[p].call;
            fault.error = reasons[r];
            fault.times = 1 << 30;
            CHECK_FAILS(toy_open(&toy, run, TOY_RANGES, 1, 1, 1, 0), strerror(reasons[r]));
            fault.part = NULL;
            toy.ranks = 0;
            toy_close(&toy);
            CHECK_OK(toy_open(&toy, run, TOY_RANGES, 1, 1, 1, 0));
            CHECK(toy_save(&toy, 1) == CHECKPOINT_COMMITTED);
            toy_close(&toy);
        }
    }
    const char *run = check_folder();
    char *file = steps_folder(run), *below = path_join(file, "run");
    Toy toy;
    CHECK_OK(file_write(file, "", 0));
    CHECK_FAILS(toy_open(&toy, run, TOY_RANGES, 1, 1, 1, 0), "cannot be created");
    toy.ranks = 0;
    toy_close(&toy);
    CHECK_FAILS(toy_open(&toy, below, TOY_RANGES, 1, 1, 1, 0), "cannot be created");
    toy.ranks = 0;
    toy_close(&toy);
    free(file);
    free(below);
}

// What a call says on standard error.
static Error *heard(Error *(*call)(const char *, int64_t, int), const char *run, int64_t bytes, int keep_last, Buffer *said) {
    const char *folder = check_folder();
    char *path = path_join(folder, "said");
    int kept = dup(2), file = open(path, O_RDWR | O_CREAT, 0600);
    dup2(file, 2);
    Error *error = call(run, bytes, keep_last);
    dup2(kept, 2);
    close(kept);
    close(file);
    CHECK_OK(file_read(path, 1 << 20, said));
    free(path);
    return error;
}

static Error *open_of_size(const char *run, int64_t bytes, int keep_last) {
    Toy toy;
    Error *error =
        toy_open_wanting(&toy, run, TOY_RANGES, 1, 1, &(CheckpointPlan){.keep_last = keep_last, .total_bytes = bytes});
    toy.ranks = error == NULL ? 1 : 0;
    toy_close(&toy);
    return error;
}

static void room_on_disk(const char *disk) {
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("athanor-test", disk, "tmpfs", 0, "size=8m") != 0) {
        fprintf(stderr, "no right to mount: room is not tested\n");
        return;
    }
    enum { MIB = 1 << 20 };
    Buffer said = {0};
    CHECK_OK(heard(open_of_size, disk, 0, 9, &said));
    CHECK(said.size == 0);
    CHECK_OK(heard(open_of_size, disk, 2 * MIB, 2, &said));
    CHECK(said.size == 0);
    CHECK_OK(heard(open_of_size, disk, 2 * MIB, 4, &said));
    CHECK(strstr(said.data, "has room for 8.00 MiB, and the checkpoints of this run will take 10.0 MiB more") != NULL);
    CHECK_FAILS(heard(open_of_size, disk, 9 * MIB, 1, &said), "has room for 8.00 MiB, and one checkpoint takes 9.00 MiB");
    // What is there already counts, as far as it will be replaced.
    char *step = memory_format("%s/checkpoints/step-00000001", disk), *file = path_join(step, "numbers");
    CHECK_OK(folder_create(step));
    int descriptor = open(file, O_WRONLY | O_CREAT, 0600);
    CHECK(descriptor >= 0 && posix_fallocate(descriptor, 0, 2 * MIB) == 0);
    close(descriptor);
    CHECK_OK(heard(open_of_size, disk, 2 * MIB, 2, &said));
    CHECK(said.size == 0);
    CHECK_OK(heard(open_of_size, disk, 2 * MIB, 3, &said));
    CHECK(said.size > 0);
    CHECK(mount("none", disk, NULL, MS_REMOUNT | MS_RDONLY, "size=8m") == 0);
    CHECK_FAILS(open_of_size(disk, MIB, 1), "Read-only file system");
    CHECK(umount(disk) == 0);
    buffer_free(&said);
    free(step);
    free(file);
}

static int in_child(void (*test)(const char *folder)) {
    const char *folder = check_folder();
    pid_t child = fork();
    ensure(child >= 0, "no child");
    if (child == 0) {
        test(folder);
        fflush(NULL);
        _exit(check_report());
    }
    int status;
    waitpid(child, &status, 0);
    return status;
}

static void test_room(void) {
    CHECK_I64(in_child(room_on_disk), 0);
}

// What was left by others is gone when a run begins, and only that.
static void test_left_behind(void) {
    const char *run = check_folder();
    static const char *const left[] = {"config.yaml.123.partial", "checkpoints/step-00000009.partial/rank-00000.h5",
                                       "checkpoints/step-00000001.old.partial/x", "checkpoints/probe.partial.77.partial",
                                       "checkpoints/rank-00007.layout.partial"};
    static const char *const own[] = {"notes.partial", "corpus.9.partial/x", "checkpoints/step-00000009/x"};
    for (size_t i = 0; i < 8; i++) {
        char *path = path_join(run, i < 5 ? left[i] : own[i - 5]), *folder = path_folder(path);
        CHECK_OK(folder_create(folder));
        CHECK_OK(file_write(path, "x", 1));
        free(folder);
        free(path);
    }
    Buffer said = {0};
    CHECK_OK(heard(open_of_size, run, 0, 1, &said));
    for (size_t i = 0; i < 8; i++) {
        char *path = path_join(run, i < 5 ? left[i] : own[i - 5]);
        CHECK(path_exists(path) == (i >= 5));
        free(path);
    }
    CHECK(strstr(said.data, "step-00000009.partial (1 B), which an interrupted save left") != NULL);
    buffer_free(&said);
    // A writer that ends in the middle of a save leaves nothing.
    Toy toy;
    json_t *state = json_object();
    CHECK_OK(toy_open(&toy, run, TOY_RANGES, 1, 1, 1, 0));
    checkpoint_writer_begin(toy.writers[0], 1, 77, state, NULL, 0);
    toy_close(&toy);
    char *partial = memory_format("%s/checkpoints/step-00000077.partial", run);
    CHECK(!path_exists(partial));
    json_decref(state);
    free(partial);
}

// ---- short of memory ----

// Bytes that this process may write to.
static size_t data_bytes(void) {
    Buffer text = {0};
    CHECK_OK(file_read("/proc/self/status", 1 << 16, &text));
    const char *line = strstr(text.data, "VmData:");
    size_t bytes = line != NULL ? strtoull(line + strlen("VmData:"), NULL, 10) << 10 : 0;
    buffer_free(&text);
    return bytes;
}

// One save with so many KiB to spare, then one with all: 0 where the first failed in words or was committed and the second was
// committed, 1 where memory ended the program with a line.
static void save_in(const char *run, size_t spare) {
    Toy toy;
    mallopt(M_MMAP_THRESHOLD, 1 << 17);  // what earlier tests gave back is no room
    malloc_trim(0);
    CHECK_OK(toy_open(&toy, run, TOY_RANGES, 2, 3, 2, 0));
    CHECK(toy_save(&toy, 1) == CHECKPOINT_COMMITTED);
    struct rlimit all, little;
    getrlimit(RLIMIT_DATA, &all);
    little = all;
    little.rlim_cur = data_bytes() + spare;
    setrlimit(RLIMIT_DATA, &little);
    CheckpointEvent event = toy_save(&toy, 2);
    setrlimit(RLIMIT_DATA, &all);
    CHECK(event == CHECKPOINT_COMMITTED || event == CHECKPOINT_FAILED);
    CHECK(toy_save(&toy, 3) == CHECKPOINT_COMMITTED);
    char *path;
    CHECK_OK(checkpoint_find(run, INT64_MAX, 0, &path, NULL));
    CHECK(toy_matches(path, 3, 1));
    free(path);
    toy_close(&toy);
    _exit(check_report() != 0 ? 9 : event == CHECKPOINT_FAILED ? 3 : 0);
}

static void test_little_memory(void) {
    const char *sanitize = getenv("ATHANOR_SANITIZE");
    if (sanitize != NULL && *sanitize != 0) {
        return;  // the sanitizers' own memory has no limit
    }
    int failed = 0, saved = 0;
    for (size_t kib = 0; kib <= 32768; kib += kib < 256 ? 16 : kib < 2048 ? 256 : 4096) {
        const char *run = check_folder(), *folder = check_folder();
        char *said = path_join(folder, "said");
        pid_t child = fork();
        if (child == 0) {
            dup2(open(said, O_RDWR | O_CREAT, 0600), 2);
            save_in(run, kib << 10);
        }
        int status;
        waitpid(child, &status, 0);
        Buffer text = {0};
        CHECK_OK(file_read(said, 1 << 20, &text));
        int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
        bool told = code == 0 || (code == 3 && strstr(text.data, "was not saved: saving a checkpoint needs") != NULL) ||
                    (code == 1 && strstr(text.data, "athanor: out of memory") != NULL);
        if (!CHECK(told && strstr(text.data, "bug at") == NULL)) {
            fprintf(stderr, "%zu KiB: code %d: %s\n", kib, code, text.data);
        }
        failed += code == 3;
        saved += code == 0;
        buffer_free(&text);
        free(said);
    }
    fprintf(stderr, "short of memory: %d saves failed cleanly, %d succeeded\n", failed, saved);
    CHECK(failed >= 10 && saved >= 2);
}

// ---- those who read a run while it trains ----

static const char run_yaml[] =
    "folder: unused\nmodel: {family: llama, layers: 1, width: 16, heads: 2, context: 8, vocabulary: 19}\n"
    "data: {corpus: unused}\ntrain: {steps: 1, micro_batch: 1}\n";

typedef struct Saver {
    CheckpointWriter *writer;
    int64_t step;
    _Atomic bool stop;
} Saver;

static void save_step(CheckpointWriter *w, int64_t step) {
    json_t *state = json_object();
    checkpoint_writer_begin(w, 77, step, state, NULL, 0);
    CheckpointEvent event = CHECKPOINT_NOTHING;
    while (event == CHECKPOINT_NOTHING) {
        double flags[CHECKPOINT_FLAGS];
        checkpoint_writer_flags(w, flags);
        event = checkpoint_writer_advance(w, flags);
    }
    CHECK(event == CHECKPOINT_COMMITTED);
    json_decref(state);
}

static void *save_all_the_time(void *context) {
    Saver *s = context;
    while (!s->stop) {
        save_step(s->writer, ++s->step);
    }
    return NULL;
}

// Gives a checkpoint's manifest another digest: what only loading finds.
static void spoil_digest(const char *run, int64_t step) {
    char *path = memory_format("%s/checkpoints/step-%08lld/manifest.json", run, (long long)step);
    json_t *document;
    CHECK_OK(json_read_file(path, 1 << 20, &document));
    json_t *digests = json_object_get(json_array_get(json_object_get(document, "tensors"), 1), "digests");
    json_object_set_new(digests, "weight", json_hex64(1234));
    manifest_seal(document);
    CHECK_OK(json_write_file(path, document));
    json_decref(document);
    free(path);
}

static void test_saved_run(void) {
    const char *run = check_folder();
    char *yaml = path_join(run, "config.yaml"), *record = path_join(run, "run.json");
    CHECK_OK(file_write(yaml, run_yaml, sizeof run_yaml - 1));
    RunConfig config = {0};
    CHECK_OK(run_config_read(&config, yaml, NULL, 0));
    CHECK_OK(run_config_resolve(&config, 0, 1, yaml));
    Device *device;
    Model *model;
    CHECK_OK(device_open_cpu(1, NULL, &device));
    CHECK_OK(model_create(device, &config.model, &(ModelOptions){.sequences = 1, .length = 8}, &model));
    model_initialise(model, 5);
    ModelParts parts = model_parts(&model->weights, 1, 0);
    CheckpointPlan plan = {.run_folder = run,
                           .ranks = 1,
                           .keep_last = 4,
                           .layout = "",
                           .model = model_config_hash(&config.model),
                           .tensors = parts.tensors,
                           .tensor_count = model->table.count,
                           .parts = parts.parts,
                           .part_count = parts.count,
                           .fetch = model_parts_fetch,
                           .fetch_context = &parts};
    Saver saver = {.step = 4};
    CHECK_OK(checkpoint_writer_create(&plan, &saver.writer));
    for (int64_t step = 1; step <= 4; step++) {
        save_step(saver.writer, step);
    }
    // Damage that shows late takes the one before, and that one's too.
    SavedRun opened;
    spoil_digest(run, 4);
    spoil_digest(run, 3);
    CHECK_OK(saved_run_open(run, 1, 1, &opened));
    CHECK_I64(opened.step, 2);
    saved_run_close(&opened);
    // Retention has heard of it: with two to keep, the whole one before them stays.
    checkpoint_writer_destroy(saver.writer);
    plan.keep_last = 2;
    CHECK_OK(checkpoint_writer_create(&plan, &saver.writer));
    save_step(saver.writer, ++saver.step);
    for (int64_t step = 1; step <= 5; step++) {
        char *path = memory_format("%s/checkpoints/step-%08lld", run, (long long)step);
        CHECK(path_exists(path) == (step > 1));
        free(path);
    }
    Buffer text = {0};
    CHECK_FAILS(checkpoint_describe(run, true, &text), "not all of its checkpoints are whole");
    CHECK(strstr(text.data, "step-00000004  DAMAGED") != NULL && strstr(text.data, "step-00000003  DAMAGED") != NULL);
    buffer_free(&text);
    char *four = memory_format("%s/checkpoints/step-00000004", run);
    CHECK_FAILS(saved_run_open(four, 1, 1, &opened), "was not loaded as it was saved");
    // Whose it is.
    CHECK_OK(file_write(record, "{\"id\": \"0000000000000099\"}", 26));
    CHECK_FAILS(saved_run_open(run, 1, 1, &opened), "can be taken");
    CHECK_OK(file_write(record, "{\"id\": \"000000000000004d\"}", 26));
    checkpoint_writer_destroy(saver.writer);

    // While checkpoints come and go as fast as they can.
    plan.keep_last = 1;
    CHECK_OK(checkpoint_writer_create(&plan, &saver.writer));
    pthread_t thread;
    ensure(pthread_create(&thread, NULL, save_all_the_time, &saver) == 0, "no thread");
    int64_t last = 0;
    for (int i = 0; i < 60; i++) {
        Error *error = saved_run_open(run, 1, 1, &opened);
        if (CHECK_OK(error)) {
            CHECK(opened.step >= last);
            last = opened.step;
            saved_run_close(&opened);
        }
    }
    saver.stop = true;
    pthread_join(thread, NULL);
    CHECK(last > 4);
    checkpoint_writer_destroy(saver.writer);
    model_parts_free(&parts);
    model_destroy(model);
    device_close(device);
    run_config_free(&config);
    free(four);
    free(yaml);
    free(record);
}

int main(void) {
    RUN(test_little_memory);  // first, while nothing that was given back lies around
    RUN(test_durability);
    RUN(test_whole_checksum);
    RUN(test_unreadable);
    RUN(test_strange_steps);
    RUN(test_no_plain_files);
    RUN(test_probe);
    RUN(test_room);
    RUN(test_left_behind);
    RUN(test_saved_run);
    return check_report();
}
