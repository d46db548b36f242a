// athanor tokenizer decode: ids from standard input, text to standard output.
#include "core/log.h"
#include "data/tokenizer/tokenizer.h"
#include "launch/commands.h"

#include <stdio.h>

typedef struct Options {
    char *tokenizer;
    bool special;
} Options;

static const Key flags[] = {
    {"tokenizer", KEY_PATH, offsetof(Options, tokenizer), NULL, .help = "A tokenizer.json or .tiktoken file."},
    {"special", KEY_BOOL, offsetof(Options, special), "true", .help = "Write special tokens such as <|endoftext|> too."},
};

// The next id; *found is false at the end of the input. `position` counts ids for the message.
static Error *read_id(const Tokenizer *tokenizer, int64_t position, int32_t *id, bool *found) {
    enum { DIGITS_MOST = 19 };
    char word[DIGITS_MOST + 1];
    size_t size = 0;
    int c = getchar_unlocked();
    while (c == ' ' || (c >= '\t' && c <= '\r')) {
        c = getchar_unlocked();
    }
    *found = c != EOF;
    int64_t value = 0;
    bool number = true;
    for (; c != EOF && c != ' ' && !(c >= '\t' && c <= '\r'); c = getchar_unlocked()) {
        if (size < DIGITS_MOST) {
            word[size++] = (char)c;
        }
        number = number && c >= '0' && c <= '9' && value < tokenizer_vocabulary(tokenizer);
        value = number ? 10 * value + (c - '0') : value;
    }
    word[size] = 0;
    *id = (int32_t)value;
    if (*found && (!number || value >= tokenizer_vocabulary(tokenizer))) {
        return failure("standard input: word %lld, '%s', is no id from 0 to %d", (long long)position, word,
                       tokenizer_vocabulary(tokenizer) - 1);
    }
    return ferror(stdin) ? failure("standard input cannot be read") : NULL;
}

static Error *decode_input(const Tokenizer *tokenizer, bool special) {
    Progress progress;
    progress_begin(&progress, "decode", "ids", 0);
    Error *error = NULL;
    bool found = true;
    for (int64_t position = 1; error == NULL; position++) {
        int32_t id;
        size_t size;
        error = read_id(tokenizer, position, &id, &found);
        if (error != NULL || !found) {
            break;
        }
        const char *bytes = tokenizer_token(tokenizer, id, special, &size);
        if (size > 0) {
            fwrite(bytes, 1, size, stdout);
        }
        if (position % 65536 == 0) {
            progress_add(&progress, 65536);
        }
    }
    progress_end(&progress);
    return error;
}

static Error *run(const void *given, int count, char **arguments) {
    const Options *options = given;
    Tokenizer *tokenizer;
    if (options->tokenizer == NULL) {
        return usage_error("--tokenizer is missing");
    }
    TRY(tokenizer_load(options->tokenizer, &tokenizer));
    Error *error = decode_input(tokenizer, options->special);
    tokenizer_free(tokenizer);
    return error;
}

const Command command_tokenizer_decode = {
    .name = "tokenizer decode",
    .arguments = "",
    .summary = "turn token ids back into text",
    .details = "Reads ids separated by blanks or line ends from standard input and writes their bytes to standard output.",
    .example = "  # after launch/quickstart, in the folder of the clone:\n"
               "  athanor tokenizer decode --tokenizer quickstart/tokenizer.json < ids.txt",
    .flags = flags,
    .flag_count = sizeof flags / sizeof *flags,
    .options_size = sizeof(Options),
    .run = run,
};
