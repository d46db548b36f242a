// athanor generate: text from a trained model.
#include "train/generate.h"
#include "core/clock.h"
#include "core/durable.h"
#include "core/log.h"
#include "launch/commands.h"
#include "train/saved_run.h"

#include <stdio.h>

typedef struct Options {
    char *checkpoint, *prompt, *prompt_file;
    int64_t max_tokens, top_k, seed, threads;
    double temperature, top_p;
} Options;

#define AT(member) offsetof(Options, member)
static const Key flags[] = {
    {"checkpoint", KEY_PATH, AT(checkpoint), .help = "Another way to give RUN: a run folder, or one of its checkpoints."},
    {"prompt", KEY_TEXT, AT(prompt),
     .help = "The text to continue, of which the model reads as much as its context holds, from the end. Without a prompt it "
             "starts a new document."},
    {"prompt-file", KEY_PATH, AT(prompt_file), .help = "A file that holds the text to continue."},
    {"max-tokens", KEY_INT, AT(max_tokens), "200", 1, 1e9, .help = "Most tokens to write; a model may end its text earlier."},
    {"temperature", KEY_FLOAT, AT(temperature), "0.8", 0, 100, .help = "0 takes the most likely token."},
    {"top-k", KEY_INT, AT(top_k), "0", 0, 1e9, .help = "Draw among the K most likely tokens; 0: all."},
    {"top-p", KEY_FLOAT, AT(top_p), "0.95", 0, 1, .help = "Draw among the most likely tokens that make up this probability."},
    {"seed", KEY_INT, AT(seed), "1", 0, 9e15, .help = "Equal seeds write equal texts."},
    {"threads", KEY_INT, AT(threads), "0", 0, 4096, .help = "Threads; 0: all cores."},
};

// The prompt stands in front of what the model adds, and nothing is written before that is there.
typedef struct Output {
    const Buffer *prompt;
    bool begun;
} Output;

static void begin(Output *output) {
    if (!output->begun) {
        fwrite(output->prompt->data, 1, output->prompt->size, stdout);
        output->begun = true;
    }
}

static bool print_bytes(void *context, const char *bytes, size_t size) {
    begin(context);
    fwrite(bytes, 1, size, stdout);
    return fflush(stdout) == 0;
}

static Error *write_text(const Options *options, const SavedRun *saved, const Buffer *prompt) {
    GenerateOptions generate = {.tokens = options->max_tokens,
                                .sampling = {.temperature = options->temperature,
                                             .top_k = options->top_k,
                                             .top_p = options->top_p,
                                             .seed = (uint64_t)options->seed}};
    Output output = {.prompt = prompt};
    double start = clock_seconds();
    int64_t drawn;
    Error *error =
        generate_text(saved->model, saved->tokenizer, prompt->data, prompt->size, &generate, print_bytes, &output, &drawn);
    if (error == NULL) {
        begin(&output);  // a model may end its text at once
    }
    if (output.begun) {
        printf("\n");
        fflush(stdout);  // the line below goes another way and must not come first
    }
    if (error == NULL) {
        log_info("%lld tokens, %.0f tokens/s, step %lld of %s", (long long)drawn, (double)drawn / (clock_seconds() - start),
                 (long long)saved->step, saved->folder);
    }
    return error;
}

static Error *read_prompt(const Options *options, Buffer *prompt) {
    if (options->prompt != NULL && options->prompt_file != NULL) {
        return usage_error("give --prompt or --prompt-file, not both");
    }
    if (options->prompt_file != NULL) {
        return file_read_stream(options->prompt_file, (size_t)1 << 30, prompt);
    }
    buffer_text(prompt, options->prompt != NULL ? options->prompt : "");
    return NULL;
}

static Error *run(const void *given, int count, char **arguments) {
    const Options *options = given;
    const char *path;
    TRY(command_run(options->checkpoint, count, arguments, &path));
    Buffer prompt = {0};
    SavedRun saved = {0};
    Error *error = read_prompt(options, &prompt);
    error = error == NULL ? saved_run_open(path, 1, (int)options->threads, &saved) : error;
    if (error == NULL && saved.tokenizer == NULL) {
        error = failure("%s has no tokenizer: it was trained on a token file of unknown origin", path);
    }
    error = error == NULL ? write_text(options, &saved, &prompt) : error;
    saved_run_close(&saved);
    buffer_free(&prompt);
    return error;
}

const Command command_generate = {
    .name = "generate",
    .arguments = "RUN",
    .summary = "write text with a trained model",
    .example = "  # after launch/quickstart, in the folder of the clone:\n"
               "  athanor generate runs/tiny --prompt \"The file is\" --max-tokens 100 --temperature 0.7",
    .flags = flags,
    .flag_count = sizeof flags / sizeof *flags,
    .options_size = sizeof(Options),
    .most_arguments = 1,
    .run = run,
};
