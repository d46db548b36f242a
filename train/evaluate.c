// How well a model foretells a corpus: see evaluate.h.
#include "train/evaluate.h"

#include "core/log.h"
#include "data/tokens/batch.h"

#include <math.h>

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

static void add_scores(const Batch *batch, const float *losses, const float *bytes, int64_t vocabulary, SetScore *score) {
    for (int64_t i = 0; i < batch->sequences * batch->length; i++) {
        if (batch->loss_weights[i] > 0) {
            score->loss_sum += (double)losses[i];
            score->tokens += 1;
            score->bytes += batch->targets[i] < vocabulary ? (double)bytes[batch->targets[i]] : 0;
        }
    }
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

Error *evaluate_corpus(Model *model, const Corpus *corpus, const Tokenizer *tokenizer, bool documents_apart,
                       int64_t most_samples, Comm *comm, bool show_progress, SetScore *scores) {
    int64_t length = model->options.length, sequences = model->options.sequences, vocabulary = model->config.vocabulary;
    Batch batch;
    batch_allocate(&batch, sequences, length);
    float *losses = memory_new((size_t)(sequences * length), sizeof *losses), *bytes = token_bytes(tokenizer, vocabulary);
    int64_t all = 0;
    for (int d = 0; d < corpus->set_count; d++) {
        int64_t samples = (corpus->sets[d].tokens - 1 + length - 1) / length;
        all += most_samples > 0 && samples > most_samples ? most_samples : samples;
    }
    Progress progress;
    progress_begin(&progress, "evaluate", "sequences", (double)all);
    Error *error = NULL;
    for (int d = 0; d < corpus->set_count && error == NULL; d++) {
        const CorpusSet *set = &corpus->sets[d];
        scores[d] = (SetScore){.name = set->name};
        int64_t whole = set->tokens > 1 ? (set->tokens - 1 + length - 1) / length : 0;
        int64_t samples = most_samples > 0 && whole > most_samples ? most_samples : whole;
        // Rank r scores every comm->size-th group of sequences.
        for (int64_t j = (int64_t)comm->rank * sequences; j < samples && error == NULL; j += (int64_t)comm->size * sequences) {
            for (int64_t b = 0; b < sequences && error == NULL; b++) {
                if (j + b < samples) {
                    int64_t place = samples == whole ? j + b : (int64_t)((double)(j + b) * (double)whole / (double)samples);
                    error = batch_fill(&batch, b, &set->file, place * length, corpus->end_of_text, documents_apart);
                } else {
                    batch_fill_empty(&batch, b);
                }
            }
            error = error == NULL ? check_batch(&batch, vocabulary, corpus, set->name) : error;
            if (error == NULL) {
                model_evaluate(model, &batch, losses);
                add_scores(&batch, losses, bytes, vocabulary, &scores[d]);
                if (show_progress) {
                    progress_add(&progress, sequences * comm->size);
                }
            }
        }
    }
    progress_end(&progress);
    batch_free(&batch);
    free(losses);
    free(bytes);
    TRY(comm_agree(comm, error));
    for (int d = 0; d < corpus->set_count; d++) {
        double sums[3] = {scores[d].loss_sum, scores[d].tokens, scores[d].bytes};
        TRY(comm_all_reduce_doubles(comm, sums, 3, COMM_SUM));
        scores[d].loss_sum = sums[0];
        scores[d].tokens = sums[1];
        scores[d].bytes = sums[2];
    }
    return NULL;
}

double score_loss(const SetScore *score) {
    return score->tokens > 0 ? score->loss_sum / score->tokens : NAN;
}

double score_bits_per_byte(const SetScore *score) {
    return score->bytes > 0 ? score->loss_sum / score->bytes / 0.69314718055994530942 : NAN;
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
