// athanor data info: what is in a corpus.
#include "data/tokens/describe.h"
#include "launch/commands.h"

#include <stdio.h>

typedef struct Options {
    bool verify;
} Options;

static const Key flags[] = {
    {"verify", KEY_BOOL, offsetof(Options, verify), "false", .help = "Read everything and compare it with the checksums."},
};

static Error *run(const void *given, int count, char **arguments) {
    const Options *options = given;
    Buffer out = {0};
    Error *error = corpus_describe(arguments[0], options->verify, &out);
    if (error == NULL) {
        fputs(out.data, stdout);
    }
    buffer_free(&out);
    return error;
}

const Command command_data_info = {
    .name = "data info",
    .arguments = "CORPUS",
    .summary = "tell what is in a corpus",
    .details = "CORPUS is a folder made by 'athanor data build', or a token file (PREFIX.bin and PREFIX.idx) of Megatron's or\n"
               "GPT-NeoX's making.",
    .example = "  # after launch/quickstart, in the folder of the clone:\n"
               "  athanor data info corpora/train\n  athanor data info quickstart/corpus --verify",
    .flags = flags,
    .flag_count = sizeof flags / sizeof *flags,
    .options_size = sizeof(Options),
    .least_arguments = 1,
    .most_arguments = 1,
    .run = run,
};
