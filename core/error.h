// Errors as values.
//
// A function that can fail because of a user, a file, the network or a full disk returns `Error *`:
// NULL means success, anything else is owned by the caller, who passes it up (TRY), turns it into
// something else, or frees it. A message is one line that says what happened, where, and what to do.
// What only a bug can cause is `ensure`, which is never compiled out. Only launch/ exits.
#pragma once

#include <stdbool.h>
#include <stddef.h>

typedef enum ErrorKind {
    ERROR_FAILURE,     // the work could not be done: exit code 1
    ERROR_USAGE,       // the command line was wrong: exit code 2
    ERROR_DAMAGED,     // a file was read and is not whole: a caller may fall back to an older one
    ERROR_MISSING,     // a file or folder does not exist
    ERROR_NOT_FINITE,  // a model's losses or logits are not finite numbers
    // The system refused (rights, a broken disk or network, too few descriptors, no memory), which says nothing about what is
    // in the file: nobody may take it for damaged or missing.
    ERROR_UNREADABLE,
} ErrorKind;

typedef struct Error {
    ErrorKind kind;
    bool passes;  // ERROR_UNREADABLE that may be over in a moment: see file_try_again; a full disk may have room again
    char message[];
} Error;

#define MUST_CHECK __attribute__((warn_unused_result))
#define PRINTF_LIKE(template, first) __attribute__((format(printf, template, first)))

// Makes an error. The message is copied; control characters in it become '?', so it stays one line. Never returns NULL.
Error *error_new(ErrorKind kind, const char *format, ...) PRINTF_LIKE(2, 3) MUST_CHECK;

// Makes an ERROR_UNREADABLE (ERROR_MISSING for ENOENT and ENOTDIR) whose message ends in strerror(errno_value).
Error *error_system(int errno_value, const char *format, ...) PRINTF_LIKE(2, 3) MUST_CHECK;

// Puts context in front of a message: "context: message". Takes `inner`, keeps its kind. NULL stays NULL.
Error *error_wrap(Error *inner, const char *format, ...) PRINTF_LIKE(2, 3) MUST_CHECK;

void error_free(Error *error);

// Puts `error` into *slot if that is empty, else frees it: the first failure of several threads. NULL is fine.
void error_keep(Error **slot, Error *error);

#define failure(...) error_new(ERROR_FAILURE, __VA_ARGS__)
#define usage_error(...) error_new(ERROR_USAGE, __VA_ARGS__)
#define damaged(...) error_new(ERROR_DAMAGED, __VA_ARGS__)

#define TRY(expression)                                                                                                        \
    do {                                                                                                                       \
        Error *try_error_ = (expression);                                                                                      \
        if (try_error_ != NULL) {                                                                                              \
            return try_error_;                                                                                                 \
        }                                                                                                                      \
    } while (0)

// Like TRY, but jumps to `label` with the error in `variable`, for functions that must clean up.
#define TRY_GOTO(variable, label, expression)                                                                                  \
    do {                                                                                                                       \
        (variable) = (expression);                                                                                             \
        if ((variable) != NULL) {                                                                                              \
            goto label;                                                                                                        \
        }                                                                                                                      \
    } while (0)

// An assertion that is always on: prints file, line and message, then aborts.
#define ensure(condition, ...)                                                                                                 \
    do {                                                                                                                       \
        if (__builtin_expect(!(condition), 0)) {                                                                               \
            ensure_failed(__FILE__, __LINE__, #condition, __VA_ARGS__);                                                        \
        }                                                                                                                      \
    } while (0)

_Noreturn void ensure_failed(const char *file, int line, const char *condition, const char *format, ...) PRINTF_LIKE(4, 5);
