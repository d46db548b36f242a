// Errors as values: see error.h.
#include "core/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static Error *error_make(ErrorKind kind, const char *prefix_format, va_list arguments, const char *suffix) {
    va_list copy;
    va_copy(copy, arguments);
    int length = vsnprintf(NULL, 0, prefix_format, copy);
    va_end(copy);
    ensure(length >= 0, "bad format %s", prefix_format);
    size_t head = (size_t)length, tail = suffix != NULL ? strlen(suffix) : 0;
    Error *error = malloc(sizeof(Error) + head + tail + 3);
    if (error == NULL) {  // what went wrong is still told, on the way out that memory.h takes
        fputs("athanor: out of memory, after this: ", stderr);
        vfprintf(stderr, prefix_format, arguments);
        fprintf(stderr, "%s%s\n", suffix != NULL ? ": " : "", suffix != NULL ? suffix : "");
        exit(1);
    }
    error->kind = kind;
    error->passes = false;
    vsnprintf(error->message, head + 1, prefix_format, arguments);
    if (suffix != NULL) {
        memcpy(error->message + head, ": ", 2);
        memcpy(error->message + head + 2, suffix, tail + 1);
    }
    for (char *c = error->message; *c; c++) {  // text from files may be part of it
        *c = (unsigned char)*c < 0x20 || *c == 0x7F ? '?' : *c;
    }
    return error;
}

Error *error_new(ErrorKind kind, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    Error *error = error_make(kind, format, arguments, NULL);
    va_end(arguments);
    return error;
}

Error *error_system(int errno_value, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    char text[128];
    bool missing = errno_value == ENOENT || errno_value == ENOTDIR;
    const char *reason = strerror_r(errno_value, text, sizeof text);
    Error *error = error_make(missing ? ERROR_MISSING : ERROR_UNREADABLE, format, arguments, reason);
    va_end(arguments);
    error->passes = errno_value == EIO || errno_value == ESTALE || errno_value == EAGAIN || errno_value == EINTR ||
                    errno_value == ETIMEDOUT || errno_value == ENOSPC || errno_value == EDQUOT;
    return error;
}

Error *error_wrap(Error *inner, const char *format, ...) {
    if (inner == NULL) {
        return NULL;
    }
    va_list arguments;
    va_start(arguments, format);
    Error *error = error_make(inner->kind, format, arguments, inner->message);
    error->passes = inner->passes;
    va_end(arguments);
    free(inner);
    return error;
}

void error_free(Error *error) {
    free(error);
}

void error_keep(Error **slot, Error *error) {
    Error *empty = NULL;
    if (error != NULL && !__atomic_compare_exchange_n(slot, &empty, error, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
        error_free(error);
    }
}

_Noreturn void ensure_failed(const char *file, int line, const char *condition, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "athanor: bug at %s:%d (%s): ", file, line, condition);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\nPlease report this line together with the command that led to it.\n");
    va_end(arguments);
    abort();
}
