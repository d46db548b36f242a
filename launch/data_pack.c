// athanor data pack: files of text become shards laid out like the Pile's.
#include "core/text.h"
#include "core/threads.h"
#include "data/text/pack.h"
#include "launch/commands.h"

#include <stdio.h>

typedef struct Options {
    Strings sets;
    char *out;
    int64_t shards, seed, workers;
    double valid;
} Options;

static const Key flags[] = {
    {"set", KEY_LIST, offsetof(Options, sets), NULL,
     .help = "NAME=PATTERN: a set and its files, one document each (** is any depth of folders); give one --set per set."},
    {"out", KEY_PATH, offsetof(Options, out), NULL, .help = "The folder to make; it must not exist."},
    {"shards", KEY_INT, offsetof(Options, shards), "30", 1, 100000, .unit = "files", .help = "Train shards to write."},
    {"valid", KEY_FLOAT, offsetof(Options, valid), "0.01", 0, 0.4,
     .help = "Share of each set's documents that is held out for val, and again for test."},
    {"seed", KEY_INT, offsetof(Options, seed), "0", 0, 9e18,
     .help = "What the shuffle and the held-out documents are drawn from."},
    {"workers", KEY_INT, offsetof(Options, workers), "0", 0, 4096, .unit = "threads", .help = "0 is one per core."},
};

static void print_report(const PackPlan *plan) {
    char bytes[32];
    PackSet all = {0};
    printf("%-28s %10s %8s %8s %12s\n", "set", "train", "val", "test", "text");
    for (int s = 0; s < plan->set_count; s++) {
        const PackSet *set = &plan->sets[s];
        printf("%-28s %10lld %8lld %8lld %12s\n", set->name, (long long)set->train, (long long)set->val, (long long)set->test,
               text_bytes(bytes, (double)(set->train_bytes + set->held_out_bytes)));
        all.duplicates += set->duplicates;
        all.invalid += set->invalid;
        all.empty += set->empty;
    }
    printf("left out: %lld equal to a held-out document, %lld not UTF-8 text, %lld empty\n", (long long)all.duplicates,
           (long long)all.invalid, (long long)all.empty);
    printf("wrote %s: %d train shards, val.jsonl.zst, test.jsonl.zst\n", plan->out, plan->shards);
}

static Error *run(const void *given, int count, char **arguments) {
    const Options *options = given;
    if (options->out == NULL || options->sets.count == 0) {
        return usage_error("%s is missing", options->out == NULL ? "--out" : "--set");
    }
    PackPlan plan = {.out = options->out,
                     .shards = (int)options->shards,
                     .valid = options->valid,
                     .seed = (uint64_t)options->seed,
                     .workers = options->workers > 0 ? (int)options->workers : threads_available()};
    Error *error = NULL;
    for (size_t i = 0; i < options->sets.count && error == NULL; i++) {
        error = pack_add_set(&plan, options->sets.items[i]);
    }
    if (error == NULL) {
        error = pack_shards(&plan);
    }
    if (error == NULL) {
        print_report(&plan);
    }
    pack_free(&plan);
    return error;
}

const Command command_data_pack = {
    .name = "data pack",
    .arguments = "",
    .summary = "pack files of text into shards like the Pile's",
    .details =
        "Writes OUT/train/00.jsonl.zst ..., OUT/val.jsonl.zst and OUT/test.jsonl.zst. Each file is one document. Files that\n"
        "are gzip or zstd are unpacked; files that are not UTF-8 are skipped and counted. The same files, seed and number\n"
        "of shards give the same bytes.",
    .example = "  # after launch/quickstart, in the folder of the clone:\n"
               "  athanor data pack --set \"Perl docs=quickstart/texts/perl/**/*\" --set \"Vim "
               "help=quickstart/texts/vim/**/*\" --out packed",
    .flags = flags,
    .flag_count = sizeof flags / sizeof *flags,
    .options_size = sizeof(Options),
    .run = run,
};
