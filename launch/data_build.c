// athanor data build: shards become a corpus of token files.
#include "core/log.h"
#include "core/text.h"
#include "core/threads.h"
#include "data/tokens/build.h"
#include "data/tokens/describe.h"
#include "launch/commands.h"

#include <stdio.h>

typedef struct Options {
    Strings inputs;
    char *tokenizer, *out;
    int64_t workers, bad_lines, word, window;
    bool replace;
} Options;

static const Key flags[] = {
    {"input", KEY_LIST, offsetof(Options, inputs), NULL,
     .help = "Shards (.jsonl.zst, .jsonl.gz, .jsonl), a file or a pattern in quotes."},
    {"tokenizer", KEY_PATH, offsetof(Options, tokenizer), NULL, .help = "A tokenizer.json or .tiktoken file."},
    {"out", KEY_PATH, offsetof(Options, out), NULL, .help = "The folder to make; it must not exist."},
    {"workers", KEY_INT, offsetof(Options, workers), "0", 0, 4096, .unit = "threads", .help = "0 is one per core."},
    {"max-bad-lines", KEY_INT, offsetof(Options, bad_lines), "1000", 0, 9e15, .unit = "lines",
     .help = "Lines that cannot be used are skipped and counted up to this number; one more is an error."},
    {"max-word", KEY_INT, offsetof(Options, word), "8388608", 1024, 1 << 30, .unit = "bytes",
     .help = "A document that goes on for longer without the end of a word is a bad line; up to 28 times as much memory is "
             "needed."},
    {"max-window", KEY_INT, offsetof(Options, window), "134217728", 1024, 2147483648.0, .unit = "bytes",
     .help = "Memory that a zstd shard may ask for; shards compressed with --long=31 need 2Gi."},
    {"replace-surrogates", KEY_BOOL, offsetof(Options, replace), "false",
     .help = "Put U+FFFD where a text has half of a surrogate pair; else such a line is bad."},
};

static Error *check(const Options *options) {
    const char *missing = options->inputs.count == 0   ? "--input"
                          : options->tokenizer == NULL ? "--tokenizer"
                          : options->out == NULL       ? "--out"
                                                       : NULL;
    return missing != NULL ? usage_error("%s is missing", missing) : NULL;
}

static Error *report(const char *out, const BuildResult *result) {
    if (result->done_before) {
        log_info("%s was built from these shards before: there is nothing to do", out);
    }
    Buffer text = {0};
    Error *error = corpus_describe(out, false, &text);
    if (error == NULL) {
        char time[32];
        fputs(text.data, stdout);
        if (!result->done_before) {
            printf("built in     %s\n", text_duration(time, result->seconds));
        }
    }
    buffer_free(&text);
    return error;
}

static Error *run(const void *given, int count, char **arguments) {
    const Options *options = given;
    TRY(check(options));
    BuildPlan plan = {.tokenizer = options->tokenizer,
                      .out = options->out,
                      .workers = options->workers > 0 ? (int)options->workers : threads_available(),
                      .bad_lines_most = options->bad_lines,
                      .word_most = options->word,
                      .window_most = options->window,
                      .replace_surrogates = options->replace};
    Error *error = NULL;
    for (size_t i = 0; i < options->inputs.count && error == NULL; i++) {
        error = path_glob(options->inputs.items[i], &plan.inputs);
    }
    BuildResult result;
    if (error == NULL) {
        error = build_corpus(&plan, &result);
    }
    if (error == NULL) {
        error = report(plan.out, &result);
    }
    strings_free(&plan.inputs);
    return error;
}

const Command command_data_build = {
    .name = "data build",
    .arguments = "",
    .summary = "tokenize shards into a corpus",
    .details = "Writes one token file per set in Megatron's .bin/.idx format, a manifest, and a copy of the tokenizer. Every\n"
               "document ends with the tokenizer's end-of-text id. A run that was killed continues with the shards it had not\n"
               "finished when the same command is given again.",
    .example =
        "  # after launch/quickstart, in the folder of the clone:\n"
        "  athanor data build --input 'packed/train/*.jsonl.zst' --tokenizer quickstart/tokenizer.json --out corpora/train",
    .flags = flags,
    .flag_count = sizeof flags / sizeof *flags,
    .options_size = sizeof(Options),
    .run = run,
};
