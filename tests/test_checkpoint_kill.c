// Checkpoints under SIGKILL and on a full disk: what was committed stays, what was not does not exist.
//
// A child saves step after step with two ranks' writers and tells each commit through a pipe. It is killed at every stage of
// the save, one after another, and then at random moments. After each kill the parent must find a whole checkpoint that is
// not older than the last one the child told of, and no damaged one; the next child starts where it left off.
#include "core/durable.h"
#include "core/philox.h"
#include "tests/support/check.h"
#include "tests/support/checkpoints.h"
#include "train/checkpoint/steps.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { STAGES = 110, RANDOM_KILLS = 100, MOST_DELAY_US = 60000 };

static _Atomic int stages_left;

static void kill_at_stage(const char *name) {
    if (atomic_fetch_sub(&stages_left, 1) == 1) {
        kill(getpid(), SIGKILL);
    }
}

static _Noreturn void save_until_killed(const char *run, int64_t first, int told) {
    Toy toy;
    Error *error = toy_open(&toy, run, TOY_RANGES, 2, 3, 2, 10);
    if (error != NULL) {
        fprintf(stderr, "%s\n", error->message);
        _exit(3);
    }
    for (int64_t step = first;; step++) {
        if (toy_save(&toy, step) != CHECKPOINT_COMMITTED || write(told, &step, sizeof step) != sizeof step) {
            _exit(4);
        }
    }
}

// One child; `stage` > 0: dies at that stage, else after `delay_us`. Returns the step found afterwards.
static int64_t one_kill(const char *run, int64_t first, int stage, unsigned delay_us) {
    int ends[2];
    ensure(pipe(ends) == 0, "no pipe");
    pid_t child = fork();
    ensure(child >= 0, "no child");
    if (child == 0) {
        close(ends[0]);
        stages_left = stage;
        checkpoint_stage = stage > 0 ? kill_at_stage : NULL;
        save_until_killed(run, first, ends[1]);
    }
    close(ends[1]);
    if (stage == 0) {
        usleep(delay_us);
        kill(child, SIGKILL);
    }
    int64_t step, last = -1;
    while (read(ends[0], &step, sizeof step) == sizeof step) {
        last = step;
    }
    close(ends[0]);
    int status;
    waitpid(child, &status, 0);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);

    char *path = NULL;
    Strings skipped = {0};
    Error *error = checkpoint_find(run, INT64_MAX, 0, &path, &skipped);
    int64_t found = -1;
    if (error == NULL) {
        found = strtoll(strrchr(path, '-') + 1, NULL, 10);
        CHECK(toy_matches(path, 3, 3));
    } else {
        CHECK(error->kind == ERROR_MISSING);
        error_free(error);
    }
    CHECK_I64(skipped.count, 0);
    CHECK(found >= last);
    CHECK(found >= first - 1);
    strings_free(&skipped);
    free(path);
    return found;
}

static void test_kills(void) {
    const char *run = check_folder();
    int64_t found = -1;
    for (int stage = 1; stage <= STAGES; stage++) {
        // Every third child saves once more what is there already, so that replacing is interrupted too.
        found = one_kill(run, found < 0 || stage % 3 != 0 ? found + 1 : found, stage, 0);
    }
    CHECK(found >= 10);
    for (int i = 0; i < RANDOM_KILLS; i++) {
        unsigned delay = (unsigned)(philox_u64(1, philox_stream(RANDOM_TEST, 0), (uint64_t)i) % MOST_DELAY_US);
        found = one_kill(run, found + 1, 0, delay);
    }
    fprintf(stderr, "%d kills, %lld steps committed\n", STAGES + RANDOM_KILLS, (long long)found + 1);
}

// ---- full disks ----

static int folder_entries(const char *path) {
    Strings names = {0};
    CHECK_OK(folder_list(path, &names));
    int count = (int)names.count;
    strings_free(&names);
    return count;
}

// After a save that failed: the older checkpoint is whole, nothing else is there, and the writers can go on.
static void check_survived(const char *run, CheckpointEvent event, int64_t step, int64_t *committed) {
    char *folder = steps_folder(run), *path = NULL;
    if (event == CHECKPOINT_COMMITTED) {
        *committed = step;
    }
    CHECK_I64(folder_entries(folder), 2);  // the lock and one checkpoint
    CHECK_OK(checkpoint_find(run, INT64_MAX, 0, &path, NULL));
    char *expected = steps_path(folder, *committed);
    CHECK_TEXT(path, expected);
    CHECK(toy_matches(path, 3, 1));
    free(expected);
    free(folder);
    free(path);
}

// Fills the disk with one file and then leaves `room` bytes.
static void fill_disk(const char *path, int64_t room) {
    static const char block[4096];
    int descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    ensure(descriptor >= 0, "no ballast");
    int64_t size = 0;
    for (ssize_t got; (got = write(descriptor, block, sizeof block)) > 0;) {
        size += got;
    }
    CHECK(ftruncate(descriptor, size > room ? size - room : 0) == 0);
    close(descriptor);
}

static void disk_of_limited_size(const char *disk) {
    char *ballast = path_join(disk, "ballast");
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("athanor-test", disk, "tmpfs", 0, "size=512k") != 0) {
        fprintf(stderr, "no right to mount: the full disk is not tested\n");
        free(ballast);
        return;
    }
    Toy toy;
    int64_t committed = 0;
    CHECK_OK(toy_open(&toy, disk, TOY_RANGES, 2, 3, 1, 0));
    CHECK(toy_save(&toy, 0) == CHECKPOINT_COMMITTED);
    int failed = 0, saved = 0;
    for (int64_t step = 1; step <= 60; step++) {
        // Room for 0, 4, 8 ... KiB: the disk fills at one place of the save after another.
        fill_disk(ballast, step * 4096);
        CheckpointEvent event = toy_save(&toy, step);
        failed += event == CHECKPOINT_FAILED;
        saved += event == CHECKPOINT_COMMITTED;
        check_survived(disk, event, step, &committed);
        CHECK_OK(folder_remove(ballast));
    }
    CHECK(failed >= 10 && saved >= 1);
    CHECK(toy_save(&toy, 100) == CHECKPOINT_COMMITTED);
    fprintf(stderr, "full disk: %d saves failed cleanly, %d succeeded\n", failed, saved);
    toy_close(&toy);
    CHECK(umount(disk) == 0);
    free(ballast);
}

// A limit on the size of files stands for a quota: no rights needed.
static void files_of_limited_size(const char *run) {
    Toy toy;
    int64_t committed = 0;
    struct rlimit limit, all;
    signal(SIGXFSZ, SIG_IGN);
    CHECK_OK(toy_open(&toy, run, TOY_RANGES, 2, 3, 1, 0));
    CHECK(toy_save(&toy, 0) == CHECKPOINT_COMMITTED);
    getrlimit(RLIMIT_FSIZE, &all);
    for (int64_t step = 1; step <= 12; step++) {
        limit = all;
        limit.rlim_cur = (rlim_t)((1 << step) * 16);  // 32 bytes to 64 KiB
        setrlimit(RLIMIT_FSIZE, &limit);
        CheckpointEvent event = toy_save(&toy, step);
        setrlimit(RLIMIT_FSIZE, &all);
        CHECK(event == CHECKPOINT_FAILED || step > 8);
        check_survived(run, event, step, &committed);
    }
    CHECK_I64(committed, 12);
    toy_close(&toy);
}

// In a child, because mounts and limits are the process's. The folder is the parent's, which removes it at its end.
static void in_child(void (*test)(const char *folder)) {
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
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void test_full_disk(void) {
    in_child(disk_of_limited_size);
}

static void test_file_limit(void) {
    in_child(files_of_limited_size);
}

int main(void) {
    checkpoint_pause_us = 1000;
    RUN(test_full_disk);
    RUN(test_file_limit);
    RUN(test_kills);
    return check_report();
}
