// athanor tokenizer train: a tokenizer.json from shards.
#include "data/tokenizer/tokenizer_train.h"
#include "core/durable.h"
#include "core/log.h"
#include "core/text.h"
#include "data/text/shard_files.h"
#include "data/text/shards.h"
#include "launch/commands.h"

#include <stdio.h>
#include <sys/stat.h>

typedef struct Options {
    Strings input;
    char *out;
    int64_t vocabulary, most_bytes, most_bad_lines, workers;
    int pattern;
} Options;

static const char *const patterns[] = {"gpt2", "llama3", "qwen", "gpt4", NULL};
static const PatternKind pattern_kinds[] = {PATTERN_GPT2, PATTERN_LLAMA3, PATTERN_QWEN, PATTERN_CL100K};

static const Key flags[] = {
    {"input", KEY_LIST, offsetof(Options, input), NULL,
     .help = "Shards (.jsonl.zst, .jsonl.gz, .jsonl): a file or a pattern in quotes."},
    {"vocab-size", KEY_INT, offsetof(Options, vocabulary), "32768", 256, 1000000, .unit = "tokens",
     .help = "How many ids there shall be, <|endoftext|> included; 256 is plain bytes."},
    {"out", KEY_PATH, offsetof(Options, out), NULL, .help = "The tokenizer.json to write."},
    {"pattern", KEY_CHOICE, offsetof(Options, pattern), "gpt2", .choices = patterns,
     .help = "How text is cut before merging: numbers whole (gpt2), in threes (llama3, gpt4) or digit by digit (qwen)."},
    {"max-bytes", KEY_INT, offsetof(Options, most_bytes), "0", 0, 9e15, .unit = "bytes",
     .help = "Learn from the first so many bytes of text, the same share of each shard; 0 is all."},
    {"max-bad-lines", KEY_INT, offsetof(Options, most_bad_lines), "1000", 0, 9e15, .unit = "lines",
     .help = "Give up after so many lines that cannot be read."},
    {"workers", KEY_INT, offsetof(Options, workers), "0", 0, 1024, .unit = "threads", .help = "0 is one per core."},
};

enum { BAD_LINES_SHOWN = 10 };

typedef struct Intake {
    const Options *options;
    Trainer *trainer;
    Progress progress;
    int64_t documents, bytes, bad_lines;
} Intake;

// Hands a shard's text to the trainer, at most `most` bytes of it (0: all).
static Error *take_events(Intake *intake, const char *path, ShardReader *reader, int64_t most) {
    ShardEvent event = {0};
    int64_t stored = 0, taken = 0;
    do {
        TRY(shard_next(reader, &event));
        if (event.kind == SHARD_BAD_LINE) {
            if (++intake->bad_lines <= BAD_LINES_SHOWN) {
                log_warning("%s:%lld: bad line, skipped: %s%s", path, (long long)event.line, event.reason,
                            intake->bad_lines == BAD_LINES_SHOWN ? " (more are only counted)" : "");
            }
            if (intake->bad_lines > intake->options->most_bad_lines) {
                return failure("%s:%lld: more than %lld bad lines; %s", path, (long long)event.line,
                               (long long)intake->options->most_bad_lines,
                               taken == 0 ? "if these are files of text, 'athanor data pack' makes shards of them"
                                          : "raise --max-bad-lines to pass over more");
            }
        } else if (event.kind != SHARD_END) {
            trainer_add(intake->trainer, event.text, event.size);
            taken += (int64_t)event.size;
            intake->documents += event.kind == SHARD_DOCUMENT;
        }
        int64_t now = shard_taken(reader);
        progress_add(&intake->progress, now - stored);
        stored = now;
    } while (event.kind != SHARD_END && (most == 0 || taken < most));
    intake->bytes += taken;
    return NULL;
}

static Error *take_shards(Intake *intake, const Strings *files) {
    double total = 0;
    for (size_t i = 0; i < files->count; i++) {
        struct stat info;
        total += stat(files->items[i], &info) == 0 ? (double)info.st_size : 0;
    }
    int64_t most = intake->options->most_bytes, share = (most + (int64_t)files->count - 1) / (int64_t)files->count;
    progress_begin(&intake->progress, "count words", "B", most > 0 ? 0 : total);
    Error *error = NULL;
    for (size_t i = 0; i < files->count && error == NULL; i++) {
        ShardReader *reader;
        error = shard_open(files->items[i], &reader);
        if (error == NULL) {
            error = take_events(intake, files->items[i], reader, share);
            shard_close(reader);
        }
    }
    progress_end(&intake->progress);
    return error;
}

static Error *learn(Intake *intake) {
    const Options *options = intake->options;
    Buffer json = {0};
    int32_t vocabulary = 0;
    char bytes[32];
    if (intake->bytes == 0 && options->vocabulary > 257) {
        return failure("there is no text in the input: it has to be shards, which 'athanor data pack' makes of text files");
    }
    Error *error = trainer_finish(intake->trainer, (int32_t)options->vocabulary, &json, &vocabulary);
    if (error == NULL) {
        error = file_write(options->out, json.data, json.size);
    }
    buffer_free(&json);
    if (error != NULL) {
        return error;
    }
    if (vocabulary < options->vocabulary) {
        log_warning(
            "the text repeats too little for %lld tokens: the vocabulary has %d; give more text or a smaller --vocab-size",
            (long long)options->vocabulary, vocabulary);
    }
    if (trainer_dropped(intake->trainer) > 0) {
        log_info("%lld rare words were dropped to bound memory", (long long)trainer_dropped(intake->trainer));
    }
    if (intake->bad_lines > BAD_LINES_SHOWN) {
        char bad[64];
        log_warning("%s skipped", text_number_of(bad, intake->bad_lines, "bad line"));
    }
    printf("wrote %s: %d tokens, learned from %lld documents, %s\n", options->out, vocabulary, (long long)intake->documents,
           text_bytes(bytes, (double)intake->bytes));
    return NULL;
}

static Error *run(const void *given, int count, char **arguments) {
    const Options *options = given;
    if (options->input.count == 0 || options->out == NULL) {
        return usage_error("%s is missing", options->out == NULL ? "--out" : "--input");
    }
    Strings matched = {0}, files = {0};
    Error *error = NULL;
    for (size_t i = 0; i < options->input.count && error == NULL; i++) {
        error = path_glob(options->input.items[i], &matched);
    }
    error = error == NULL ? shard_files_once(&matched, &files) : error;
    strings_free(&matched);
    if (error == NULL) {
        ThreadPool *pool = threads_create(options->workers > 0 ? (int)options->workers : threads_available());
        Intake intake = {.options = options, .trainer = trainer_create(pool, pattern_kinds[options->pattern])};
        error = take_shards(&intake, &files);
        if (error == NULL) {
            error = learn(&intake);
        }
        trainer_free(intake.trainer);
        threads_destroy(pool);
    }
    strings_free(&files);
    return error;
}

const Command command_tokenizer_train = {
    .name = "tokenizer train",
    .arguments = "",
    .summary = "learn a byte-level BPE tokenizer from shards",
    .details =
        "Ids 0 to 255 are the bytes, then come the merges in the order learned, then <|endoftext|>. The same input gives the\n"
        "same file on any number of threads. Hugging Face's tokenizers library reads the file.",
    .example = "  # after launch/quickstart, in the folder of the clone:\n"
               "  athanor tokenizer train --input 'quickstart/shards/train/*.jsonl.zst' --vocab-size 8192 --out tokenizer.json",
    .flags = flags,
    .flag_count = sizeof flags / sizeof *flags,
    .options_size = sizeof(Options),
    .run = run,
};
