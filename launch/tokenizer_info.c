// athanor tokenizer info: what a tokenizer file holds.
#include "data/tokenizer/tokenizer.h"
#include "launch/commands.h"

#include <stdio.h>

static Error *run(const void *options, int count, char **arguments) {
    Tokenizer *tokenizer;
    TRY(tokenizer_load(arguments[0], &tokenizer));
    Buffer text = {0};
    tokenizer_describe(tokenizer, &text);
    fwrite(text.data, 1, text.size, stdout);
    buffer_free(&text);
    tokenizer_free(tokenizer);
    return NULL;
}

const Command command_tokenizer_info = {
    .name = "tokenizer info",
    .arguments = "FILE",
    .summary = "tell what a tokenizer file holds",
    .example = "  # after launch/quickstart, in the folder of the clone:\n"
               "  athanor tokenizer info quickstart/tokenizer.json",
    .least_arguments = 1,
    .most_arguments = 1,
    .run = run,
};
