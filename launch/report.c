// athanor report: a run folder as one HTML page.
#include "train/report/report.h"
#include "core/durable.h"
#include "launch/commands.h"

#include <stdio.h>

typedef struct Options {
    char *out;
} Options;

static const Key flags[] = {
    {"out", KEY_PATH, offsetof(Options, out), NULL, 0, 0, NULL, NULL, "The file to write. Default: RUN/report.html."},
};

static Error *run(const void *options, int count, char **arguments) {
    const Options *given = options;
    char *out = given->out != NULL ? memory_string(given->out) : path_join(arguments[0], "report.html");
    Buffer summary = {0};
    Error *error = report_write(arguments[0], out, &summary);
    if (error == NULL) {
        printf("%sreport           %s\n", summary.size > 0 ? summary.data : "", out);
    }
    buffer_free(&summary);
    free(out);
    return error;
}

const Command command_report = {
    .name = "report",
    .arguments = "RUN",
    .summary = "draw a run's losses, speed and samples as one HTML page",
    .details = "Reads the run folder that 'athanor train' writes, also while it trains, and prints a summary. The page\n"
               "needs no network and no scripts: open it in any browser, mail it, print it.",
    .example = "  # after launch/quickstart, in the folder of the clone:\n"
               "  athanor report runs/tiny\n  athanor report runs/tiny --out tiny.html",
    .flags = flags,
    .flag_count = sizeof flags / sizeof *flags,
    .options_size = sizeof(Options),
    .least_arguments = 1,
    .most_arguments = 1,
    .run = run,
};
