// athanor eval: how well a trained model foretells a corpus, set by set.
#include "core/log.h"
#include "launch/commands.h"
#include "train/evaluate.h"
#include "train/saved_run.h"

#include <math.h>
#include <stdio.h>

typedef struct Options {
    char *checkpoint, *corpus;
    int64_t samples, batch, threads;
} Options;

#define AT(member) offsetof(Options, member)
static const Key flags[] = {
    {"checkpoint", KEY_PATH, AT(checkpoint), .help = "Another way to give RUN: a run folder, or one of its checkpoints."},
    {"corpus", KEY_PATH, AT(corpus), .help = "A corpus built with the run's tokenizer."},
    {"samples", KEY_INT, AT(samples), "0", 0, 1e12, .unit = "sequences",
     .help = "Most sequences of each set, spread evenly; 0: every token."},
    {"batch", KEY_INT, AT(batch), "8", 1, 1 << 20, .unit = "sequences", .help = "How many to compute at a time."},
    {"threads", KEY_INT, AT(threads), "0", 0, 4096, .help = "Threads; 0: all cores."},
};

static Error *evaluate(const Options *options, SavedRun *saved, Corpus *corpus) {
    if (saved->tokenizer != NULL && corpus->tokenizer_fingerprint != 0 &&
        tokenizer_fingerprint(saved->tokenizer) != corpus->tokenizer_fingerprint) {
        return failure("corpus %s was built with another tokenizer than %s was trained with; build it with the tokenizer in "
                       "the run folder",
                       corpus->path, saved->folder);
    }
    SetScore *scores = memory_zeroed((size_t)corpus->set_count + 1, sizeof *scores);
    Comm *self = comm_open_self();
    Error *error = evaluate_corpus(saved->model, corpus, saved->tokenizer, saved->config.data.documents_apart, options->samples,
                                   self, true, scores);
    comm_close(self);
    if (error == NULL) {
        scores[corpus->set_count] = score_total(scores, corpus->set_count);
        printf("%-28s %14s %10s %12s %14s\n", "set", "tokens", "loss", "perplexity", "bits per byte");
        for (int d = 0; d <= corpus->set_count; d++) {
            char bits[32] = "unknown";
            if (scores[d].bytes > 0) {
                snprintf(bits, sizeof bits, "%.4f", score_bits_per_byte(&scores[d]));
            }
            printf("%-28s %14.0f %10.4f %12.3f %14s\n", scores[d].name, scores[d].tokens, score_loss(&scores[d]),
                   exp(score_loss(&scores[d])), bits);
        }
    }
    free(scores);
    return error;
}

static Error *run(const void *given, int count, char **arguments) {
    const Options *options = given;
    const char *path;
    TRY(command_run(options->checkpoint, count, arguments, &path));
    if (options->corpus == NULL) {
        return usage_error("--corpus is missing: what to score on");
    }
    SavedRun saved = {0};
    Corpus corpus = {0};
    TRY(corpus_open(options->corpus, &corpus));
    Error *error = saved_run_open(path, options->batch, (int)options->threads, &saved);
    if (error == NULL) {
        error = evaluate(options, &saved, &corpus);
        saved_run_close(&saved);
    }
    corpus_close(&corpus);
    return error;
}

const Command command_eval = {
    .name = "eval",
    .arguments = "RUN",
    .summary = "score a trained model on a corpus: loss, perplexity, bits per byte for each set",
    .example = "  athanor eval --checkpoint runs/tiny --corpus corpora/held-out",
    .flags = flags,
    .flag_count = sizeof flags / sizeof *flags,
    .options_size = sizeof(Options),
    .most_arguments = 1,
    .run = run,
};
