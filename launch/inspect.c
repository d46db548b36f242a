// athanor inspect: what a file or folder of ours holds, and whether it is whole.
#include "core/durable.h"
#include "core/text.h"
#include "data/tokenizer/tokenizer.h"
#include "data/tokens/describe.h"
#include "launch/commands.h"
#include "train/checkpoint/checkpoint.h"

#include <stdio.h>
#include <string.h>

static bool has(const char *folder, const char *name) {
    char *path = path_join(folder, name);
    bool there = path_exists(path);
    free(path);
    return there;
}

static Error *describe_tokenizer(const char *path, Buffer *out) {
    Tokenizer *tokenizer;
    TRY(tokenizer_load(path, &tokenizer));
    tokenizer_describe(tokenizer, out);
    tokenizer_free(tokenizer);
    return NULL;
}

// A folder is told by what lies in it, a file by its name.
static Error *describe(const char *path, Buffer *out) {
    if (!path_is_folder(path)) {
        if (text_ends_with(path, ".json") || text_ends_with(path, ".tiktoken")) {
            return describe_tokenizer(path, out);
        }
        char *prefix = token_file_prefix(path), *idx = memory_format("%s.idx", prefix);
        Error *error = NULL;
        if (!path_exists(idx) && !path_exists(path)) {
            error =
                error_new(ERROR_MISSING, "there is no %s, neither a file nor a folder nor the prefix of a token file", path);
        } else if (!path_exists(idx) && strcmp(prefix, path) == 0) {
            error = failure("%s is no token file (.bin, .idx) and no tokenizer (.json, .tiktoken)", path);
        } else {
            error = token_file_describe(path, true, out);
        }
        free(prefix);
        free(idx);
        return error;
    }
    if (has(path, "config.yaml") || has(path, "checkpoints") || text_starts_with(path_name(path), "step-")) {
        return checkpoint_describe(path, true, out);
    }
    if (has(path, "manifest.json")) {
        return corpus_describe(path, true, out);
    }
    return failure("%s is no run, checkpoint or corpus: it has neither config.yaml nor manifest.json", path);
}

static Error *run(const void *options, int count, char **arguments) {
    Buffer text = {0};
    Error *error = describe(arguments[0], &text);
    if (text.size > 0) {
        fputs(text.data, stdout);
    }
    buffer_free(&text);
    return error;
}

const Command command_inspect = {
    .name = "inspect",
    .arguments = "FILE-OR-FOLDER",
    .summary = "tell what a run, checkpoint, corpus, token file or tokenizer holds, and whether it is whole",
    .example = "  # after launch/quickstart, in the folder of the clone:\n"
               "  athanor inspect runs/tiny\n  athanor inspect quickstart/corpus",
    .least_arguments = 1,
    .most_arguments = 1,
    .run = run,
};
