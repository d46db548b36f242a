// athanor tokenizer encode: text from standard input, ids to standard output.
#include "core/log.h"
#include "core/text.h"
#include "data/tokenizer/tokenizer.h"
#include "launch/commands.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

enum { READ_BYTES = 1 << 18 };

typedef struct Options {
    char *tokenizer;
    bool count, special;
} Options;

static const Key flags[] = {
    {"tokenizer", KEY_PATH, offsetof(Options, tokenizer), NULL, .help = "A tokenizer.json or .tiktoken file."},
    {"count", KEY_BOOL, offsetof(Options, count), "false", .help = "Print the number of ids instead of the ids."},
    {"special", KEY_BOOL, offsetof(Options, special), "false",
     .help = "Recognise special tokens such as <|endoftext|> in the text; otherwise they are text like any other."},
};

typedef struct Encoding {
    const Options *options;
    Encoder *encoder;
    Tokens ids;
    Buffer text;     // read, not yet known to be whole characters
    Buffer printed;  // scratch
    int64_t offset;  // of text in the input
    int64_t total;
} Encoding;

static void print_ids(Encoding *encoding) {
    if (!encoding->options->count && encoding->ids.count > 0) {
        buffer_clear(&encoding->printed);
        for (size_t i = 0; i < encoding->ids.count; i++) {
            buffer_printf(&encoding->printed, encoding->total + (int64_t)i > 0 ? " %d" : "%d", encoding->ids.ids[i]);
        }
        fwrite(encoding->printed.data, 1, encoding->printed.size, stdout);
    }
    encoding->total += (int64_t)encoding->ids.count;
    encoding->ids.count = 0;
}

// Encodes the whole characters of what was read. A character may be cut at its end unless `last`.
static Error *encode_read(Encoding *encoding, bool last) {
    size_t size = encoding->text.size, valid = utf8_valid_prefix(encoding->text.data, size);
    if (size - valid > 3 || (last && size > valid)) {
        return failure("standard input is not UTF-8 at byte %lld; convert it first, such as with iconv",
                       (long long)(encoding->offset + (int64_t)valid));
    }
    encoder_feed(encoding->encoder, encoding->text.data, valid, encoding->options->special, &encoding->ids);
    memmove(encoding->text.data, encoding->text.data + valid, size - valid);
    encoding->text.size = size - valid;
    encoding->offset += (int64_t)valid;
    print_ids(encoding);
    return NULL;
}

static Error *encode_input(Encoding *encoding) {
    Progress progress;
    progress_begin(&progress, "encode", "B", 0);
    Error *error = NULL;
    for (;;) {
        buffer_reserve(&encoding->text, READ_BYTES);
        ssize_t got = read(STDIN_FILENO, encoding->text.data + encoding->text.size, READ_BYTES);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            error = error_system(errno, "standard input cannot be read");
        } else {
            encoding->text.size += (size_t)got;
            error = encode_read(encoding, got == 0);
            progress_add(&progress, got);
        }
        if (got <= 0 || error != NULL) {
            break;
        }
    }
    progress_end(&progress);
    if (error == NULL) {
        encoder_finish(encoding->encoder, encoding->options->special, &encoding->ids);
        print_ids(encoding);
        if (encoding->options->count) {
            printf("%lld", (long long)encoding->total);
        }
        printf("\n");
    }
    return error;
}

static Error *run(const void *given, int count, char **arguments) {
    const Options *options = given;
    Tokenizer *tokenizer;
    if (options->tokenizer == NULL) {
        return usage_error("--tokenizer is missing");
    }
    TRY(tokenizer_load(options->tokenizer, &tokenizer));
    Encoding encoding = {.options = options, .encoder = encoder_create(tokenizer)};
    Error *error = encode_input(&encoding);
    encoder_free(encoding.encoder);
    free(encoding.ids.ids);
    buffer_free(&encoding.text);
    buffer_free(&encoding.printed);
    tokenizer_free(tokenizer);
    return error;
}

const Command command_tokenizer_encode = {
    .name = "tokenizer encode",
    .arguments = "",
    .summary = "turn text into token ids",
    .details = "Reads UTF-8 text from standard input and writes its ids, separated by blanks, to standard output.",
    .example = "  # after launch/quickstart, in the folder of the clone:\n"
               "  athanor tokenizer encode --tokenizer quickstart/tokenizer.json < README.md > ids.txt\n"
               "  athanor tokenizer encode --tokenizer quickstart/tokenizer.json --count < README.md",
    .flags = flags,
    .flag_count = sizeof flags / sizeof *flags,
    .options_size = sizeof(Options),
    .run = run,
};
