// The test framework: see check.h.
#include "tests/support/check.h"

#include "core/durable.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <unistd.h>

static int checks, failures;
static Strings folders;
static pid_t owner;

static bool verdict(const char *file, int line, bool held) {
    checks++;
    if (!held) {
        failures++;
        fprintf(stderr, "%s:%d: FAILED: ", file, line);
    }
    return held;
}

bool check_true(const char *file, int line, bool held, const char *condition) {
    if (!verdict(file, line, held)) {
        fprintf(stderr, "%s\n", condition);
    }
    return held;
}

bool check_i64(const char *file, int line, const char *what, int64_t actual, int64_t expected) {
    if (!verdict(file, line, actual == expected)) {
        fprintf(stderr, "%s is %" PRId64 ", expected %" PRId64 "\n", what, actual, expected);
    }
    return actual == expected;
}

bool check_text(const char *file, int line, const char *what, const char *actual, const char *expected) {
    bool held = actual != NULL && strcmp(actual, expected) == 0;
    if (!verdict(file, line, held)) {
        fprintf(stderr, "%s is \"%s\", expected \"%s\"\n", what, actual ? actual : "(null)", expected);
    }
    return held;
}

bool check_near(const char *file, int line, const char *what, double actual, double expected, double tolerance) {
    bool held = fabs(actual - expected) <= tolerance;
    if (!verdict(file, line, held)) {
        fprintf(stderr, "%s is %.9g, expected %.9g +- %.3g\n", what, actual, expected, tolerance);
    }
    return held;
}

bool check_ok(const char *file, int line, const char *what, Error *error) {
    if (!verdict(file, line, error == NULL)) {
        fprintf(stderr, "%s: %s\n", what, error->message);
        error_free(error);
        return false;
    }
    return true;
}

bool check_fails(const char *file, int line, const char *what, Error *error, const char *part) {
    bool held = error != NULL && strstr(error->message, part) != NULL;
    if (!verdict(file, line, held)) {
        fprintf(stderr, "%s: %s, expected a failure with \"%s\"\n", what, error ? error->message : "success", part);
    }
    error_free(error);
    return held;
}

void check_run(const char *name, void (*test)(void)) {
    int before = failures;
    test();
    fprintf(stderr, "%-40s %s\n", name, failures == before ? "ok" : "FAILED");
}

static void remove_folders(void) {
    if (getpid() != owner) {
        return;  // a forked child of a test leaves its parent's folders alone
    }
    for (size_t i = 0; i < folders.count; i++) {
        error_free(folder_remove(folders.items[i]));
    }
    strings_free(&folders);
}

int check_report(void) {
    fprintf(stderr, "%d checks, %d failed\n", checks, failures);
    return failures > 0;
}

const char *check_folder(void) {
    const char *base = getenv("TMPDIR");
    char *path = memory_format("%s/athanor-test-XXXXXX", base ? base : "/tmp");
    ensure(mkdtemp(path) != NULL, "no temporary folder %s", path);
    if (folders.count == 0) {
        owner = getpid();
        atexit(remove_folders);
    }
    strings_add(&folders, path);
    free(path);
    return folders.items[folders.count - 1];
}
