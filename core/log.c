// What the program tells people: see log.h.
#include "core/log.h"

#include "core/clock.h"
#include "core/text.h"

#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

static int own_rank = 0;
static int all_ranks = 1;
static int wait_ms = -1;  // for a reader; -1: without end

enum { READER_MS = 1000 };

void log_set_rank(int rank, int ranks) {
    own_rank = rank;
    all_ranks = ranks;
}

void log_never_wait(void) {
    wait_ms = READER_MS;
}

// A pipe that nobody reads is full at some time.
static bool reader_takes(void) {
    struct pollfd reader = {.fd = STDERR_FILENO, .events = POLLOUT};
    if (wait_ms < 0) {
        return true;
    }
    bool takes = poll(&reader, 1, wait_ms) != 0;
    wait_ms = takes ? READER_MS : 0;
    return takes;
}

static void print_line(const char *label, const char *format, va_list arguments) {
    char line[4096], host[64] = "?";
    int n = 0;
    if (all_ranks > 1 && (own_rank != 0 || *label)) {
        gethostname(host, sizeof host - 1);
        n = snprintf(line, sizeof line, "[rank %d on %s] ", own_rank, host);
    }
    n += snprintf(line + n, sizeof line - (size_t)n, "%s", label);
    vsnprintf(line + n, sizeof line - (size_t)n, format, arguments);
    if (reader_takes()) {
        fprintf(stderr, "%s\n", line);  // one call, so that lines of several ranks do not mix
    }
}

void log_info(const char *format, ...) {
    if (own_rank != 0) {
        return;
    }
    va_list arguments;
    va_start(arguments, format);
    print_line("", format, arguments);
    va_end(arguments);
}

void log_warning(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    print_line("warning: ", format, arguments);
    va_end(arguments);
}

void log_error(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    print_line("athanor: ", format, arguments);
    va_end(arguments);
}

enum { FIRST_REPORT_MS = 2000, TERMINAL_REPORT_MS = 200, PLAIN_REPORT_MS = 5000 };

void progress_begin(Progress *progress, const char *what, const char *unit, double total) {
    progress->what = what;
    progress->unit = unit;
    progress->total = total;
    progress->done = 0;
    progress->next_report_ms = FIRST_REPORT_MS;
    progress->start = clock_seconds();
    progress->shown = false;
}

static const char *amount_text(char *out, const Progress *progress, double amount) {
    return progress->unit[0] == 'B' && progress->unit[1] == 0 ? text_bytes(out, amount) : text_count(out, amount);
}

void progress_add(Progress *progress, int64_t amount) {
    int64_t done = (int64_t)atomic_fetch_add(&progress->done, amount) + amount;
    double elapsed = clock_seconds() - progress->start;
    int64_t due = progress->next_report_ms;
    if (own_rank != 0 || elapsed * 1e3 < (double)due) {
        return;
    }
    bool terminal = isatty(STDERR_FILENO);
    int64_t next = (int64_t)(elapsed * 1e3) + (terminal ? TERMINAL_REPORT_MS : PLAIN_REPORT_MS);
    if (!__atomic_compare_exchange_n((int64_t *)&progress->next_report_ms, &due, next, false, __ATOMIC_RELAXED,
                                     __ATOMIC_RELAXED)) {
        return;  // another thread reports
    }
    char amount_now[32], amount_all[32], rate[32], left[32];
    double speed = (double)done / elapsed;
    const char *unit = progress->unit[0] == 'B' && progress->unit[1] == 0 ? "" : progress->unit;
    amount_text(amount_now, progress, (double)done);
    amount_text(rate, progress, speed);
    char line[256];
    if (progress->total > 0) {
        snprintf(line, sizeof line, "%s: %s of %s%s%s, %s%s%s/s, %s left", progress->what, amount_now,
                 amount_text(amount_all, progress, progress->total), *unit ? " " : "", unit, rate, *unit ? " " : "", unit,
                 text_duration(left, (progress->total - (double)done) / speed));
    } else {
        snprintf(line, sizeof line, "%s: %s%s%s, %s%s%s/s", progress->what, amount_now, *unit ? " " : "", unit, rate,
                 *unit ? " " : "", unit);
    }
    fprintf(stderr, "%s%s%s", terminal ? "\r\033[K" : "", line, terminal ? "" : "\n");
    progress->shown = true;
}

void progress_end(Progress *progress) {
    if (progress->shown && isatty(STDERR_FILENO)) {
        fprintf(stderr, "\r\033[K");
    }
}
