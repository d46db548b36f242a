// What the program tells people while it works.
//
// Messages go to standard error, one line each; results of a command go to standard output and are not logged.
// In a run of several ranks only rank 0 prints information; warnings and errors of other ranks carry "[rank 3 on host]".
#pragma once

#include "core/error.h"

#include <stdint.h>

void log_set_rank(int rank, int ranks);
// From here on messages hold up nothing: one that nobody takes within a second is dropped, and those after it while that lasts.
// For work that goes on without a reader. Messages that cannot be written are always dropped.
void log_never_wait(void);
void log_info(const char *format, ...) PRINTF_LIKE(1, 2);     // rank 0 only
void log_warning(const char *format, ...) PRINTF_LIKE(1, 2);  // every rank
void log_error(const char *format, ...) PRINTF_LIKE(1, 2);    // every rank

// A meter for work that may take more than two seconds. Silent before that, then a line that is rewritten in place on a
// terminal, or a plain line every five seconds elsewhere: "tokenize: 120 MiB of 480 MiB, 61 MiB/s, 6 s left".
// progress_add may be called from any thread.
typedef struct Progress {
    const char *what;
    const char *unit;  // "B" formats as bytes; anything else is counted: "documents", "steps"
    double total;      // 0: unknown
    _Atomic int64_t done;
    _Atomic int64_t next_report_ms;
    double start;
    bool shown;
} Progress;

void progress_begin(Progress *progress, const char *what, const char *unit, double total);
void progress_add(Progress *progress, int64_t amount);
void progress_end(Progress *progress);  // removes or finishes the line
