// How well a model foretells a corpus: see evaluate.h.
#include "train/evaluate.h"

#include "core/log.h"
#include "data/tokens/batch.h"

#include <math.h>
#include <stdio.h>

// The bytes of text each id stands for; an end-of-text token stands for none.
static float *token_bytes(const Tokenizer *tokenizer, int64_t vocabulary) {
    float *bytes = memory_zeroed((size_t)vocabulary, sizeof *bytes);
    for (int64_t id = 0; tokenizer != NULL && id < vocabulary && id < tokenizer_vocabulary(tokenizer); id++) {
        size_t size;
        tokenizer_token(tokenizer, (int32_t)id, false, &size);
        bytes[id] = (float)size;
    }
    return bytes;
}

// Adds a batch's losses to the score of its set; batch->loss_weights says which count. Returns the first of these that is not
// finite, -1 where all are.
static int64_t add_scores(const Batch *batch, const float *losses, const float *bytes, int64_t vocabulary, SetScore *score) {
    for (int64_t i = 0; i < batch->sequences * batch->length; i++) {
        if (batch->loss_weights[i] > 0) {
            if (!isfinite(losses[i])) {
                return i;
            }
            score->loss_sum += (double)losses[i];
            score->tokens += 1;
            score->bytes += batch->targets[i] < vocabulary ? (double)bytes[batch->targets[i]] : 0;
        }
    }
    return -1;
}

// A loss that is not finite: of token `token` of sequence `sequence` of the batch, whose first token is the set's number
// `place`.
static Error *not_finite(Model *model, const Batch *batch, int64_t sequence, int64_t token, const Corpus *corpus,
                         const char *set, int64_t place) {
    char *why = model_not_finite(model, batch, sequence, token);
    // The target is the token behind.
    Error *error =
        error_new(ERROR_NOT_FINITE,
                  "corpus %s, set '%s': the model's loss of token %lld is not finite: %s; an earlier checkpoint of the "
                  "run may be sound",
                  corpus->path, set, (long long)(place + token + 2), why);
    free(why);
    return error;
}

// An id that the model has no row for must not reach the kernels.
static Error *check_batch(const Batch *batch, int64_t vocabulary, const Corpus *corpus, const char *set) {
    for (int64_t i = 0; i < batch->sequences * batch->length; i++) {
        if (batch->tokens[i] < 0 || batch->tokens[i] >= vocabulary || batch->targets[i] >= vocabulary) {
            return failure(
                "corpus %s, set '%s' holds token %d, but the model's vocabulary has %lld; was it built with another tokenizer?",
                corpus->path, set,
                batch->tokens[i] < 0 || batch->tokens[i] >= vocabulary ? batch->tokens[i] : batch->targets[i],
                (long long)vocabulary);
        }
    }
    return NULL;
}

// How many sequences of a set there are, and how many of them are scored.
static int64_t sequences_of(const CorpusSet *set, int64_t length) {
    return set->tokens > 1 ? (set->tokens - 1 + length - 1) / length : 0;
}

static int64_t scored_of(const CorpusSet *set, int64_t length, int64_t most) {
    int64_t whole = sequences_of(set, length);
    return most > 0 && whole > most ? most : whole;
}

// The first token of the scored sequence `j`: they are spread evenly.
static int64_t place_of(const CorpusSet *set, int64_t length, int64_t most, int64_t j) {
    int64_t whole = sequences_of(set, length), samples = scored_of(set, length, most);
    return (samples == whole ? j : (int64_t)((double)j * (double)whole / (double)samples)) * length;
}

// What one rank's evaluation holds.
typedef struct Evaluation {
    Model *model;
    const Corpus *corpus;
    bool documents_apart;
    int64_t most;
    const Comm *comm;
    Progress *progress;  // NULL: not shown
    Batch batch;
    float *losses, *bytes;
    Error *error;  // the first one of this rank
} Evaluation;

// The group of sequences from the scored sequence `j` on, as far as there are any.
static Error *fill_group(Evaluation *e, const CorpusSet *set, int64_t j) {
    Batch *batch = &e->batch;
    int64_t length = batch->length, samples = scored_of(set, length, e->most);
    for (int64_t b = 0; b < batch->sequences; b++) {
        if (j + b < samples) {
            TRY(batch_fill(batch, b, &set->file, place_of(set, length, e->most, j + b), e->corpus->end_of_text,
                           e->documents_apart));
        } else {
            batch_fill_empty(batch, b);
        }
    }
    return check_batch(batch, e->model->config.vocabulary, e->corpus, set->name);
}

// This rank's part of a set: it scores every comm->size-th group of sequences. Ranks that exchange anything on the way through
// the model go together: one that has no group left, or has failed, goes with an empty one. False where they cannot go on.
static bool score_set(Evaluation *e, const CorpusSet *set, SetScore *score) {
    Batch *batch = &e->batch;
    const ModelOptions *options = &e->model->options;
    bool together = e->model->weights.slot_weights != NULL || options->tensor.ranks > 1 || options->context.ranks > 1 ||
                    options->stages.shape.ranks > 1;
    int64_t length = batch->length, samples = scored_of(set, length, e->most);
    int64_t own = (int64_t)e->comm->rank * batch->sequences, stride = (int64_t)e->comm->size * batch->sequences;
    for (int64_t first = 0; first < samples && (together || (e->error == NULL && first + own < samples)); first += stride) {
        int64_t j = first + own;
        if (e->error == NULL) {
            e->error = fill_group(e, set, j);
        }
        for (int64_t b = 0; e->error != NULL && b < batch->sequences; b++) {
            batch_fill_empty(batch, b);
        }
        if (e->error == NULL || together) {
            model_evaluate(e->model, batch, e->losses);
        }
        Error *exchange = model_tensor_error(e->model);
        if (exchange != NULL) {
            error_keep(&e->error, exchange);
            return false;
        }
        int64_t lost = e->error == NULL ? add_scores(batch, e->losses, e->bytes, e->model->config.vocabulary, score) : -1;
        if (lost >= 0) {
            int64_t b = lost / length;
            e->error =
                not_finite(e->model, batch, b, lost % length, e->corpus, set->name, place_of(set, length, e->most, j + b));
        }
        if (e->progress != NULL) {
            progress_add(e->progress, stride);
        }
    }
    return e->error == NULL || together;
}

static Error *add_ranks(const Corpus *corpus, Comm *comm, SetScore *scores) {
    double scored = 0;
    for (int d = 0; d < corpus->set_count; d++) {
        double sums[3] = {scores[d].loss_sum, scores[d].tokens, scores[d].bytes};
        TRY(comm_all_reduce_doubles(comm, sums, 3, COMM_SUM));
        scores[d].loss_sum = sums[0];
        scores[d].tokens = sums[1];
        scores[d].bytes = sums[2];
        scored += sums[1];
    }
    if (scored == 0) {
        return failure(
            "corpus %s has no token to score (the first token of a document or of a set is not foretold); evaluate on "
            "more text",
            corpus->path);
    }
    return NULL;
}

Error *evaluate_corpus(Model *model, const Corpus *corpus, const Tokenizer *tokenizer, bool documents_apart,
                       int64_t most_samples, Comm *comm, bool show_progress, SetScore *scores) {
    int64_t length = model->options.length, sequences = model->options.sequences, all = 0;
    for (int d = 0; d < corpus->set_count; d++) {
        scores[d] = (SetScore){.name = corpus->sets[d].name};
        all += scored_of(&corpus->sets[d], length, most_samples);
    }
    Progress progress;
    progress_begin(&progress, "evaluate", "sequences", (double)all);
    Evaluation e = {.model = model,
                    .corpus = corpus,
                    .documents_apart = documents_apart,
                    .most = most_samples,
                    .comm = comm,
                    .progress = show_progress ? &progress : NULL,
                    .losses = memory_new((size_t)(sequences * length), sizeof *e.losses),
                    .bytes = token_bytes(tokenizer, model->config.vocabulary)};
    batch_allocate(&e.batch, sequences, length);
    for (int d = 0; d < corpus->set_count && score_set(&e, &corpus->sets[d], &scores[d]); d++) {
    }
    progress_end(&progress);
    batch_free(&e.batch);
    free(e.losses);
    free(e.bytes);
    TRY(comm_agree(comm, e.error));
    return add_ranks(corpus, comm, scores);
}

double score_loss(const SetScore *score) {
    return score->tokens > 0 ? score->loss_sum / score->tokens : NAN;
}

double score_bits_per_byte(const SetScore *score) {
    return score->bytes > 0 ? score->loss_sum / score->bytes / 0.69314718055994530942 : NAN;
}

const char *score_perplexity_text(char text[PERPLEXITY_TEXT], const SetScore *score) {
    double perplexity = exp(score_loss(score));
    if (perplexity < 1e7) {
        snprintf(text, PERPLEXITY_TEXT, "%.3f", perplexity);
    } else if (isfinite(perplexity)) {
        snprintf(text, PERPLEXITY_TEXT, "%.4g", perplexity);
    } else {
        snprintf(text, PERPLEXITY_TEXT, "%s", score->tokens > 0 ? "over 1e308" : "unknown");
    }
    return text;
}

SetScore score_total(const SetScore *scores, int count) {
    SetScore total = {.name = "all"};
    for (int d = 0; d < count; d++) {
        total.loss_sum += scores[d].loss_sum;
        total.tokens += scores[d].tokens;
        total.bytes += scores[d].bytes;
    }
    return total;
}
