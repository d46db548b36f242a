// How well a model foretells a corpus, set by set.
#pragma once

#include "data/tokenizer/tokenizer.h"
#include "data/tokens/corpus.h"
#include "parallel/comm.h"
#include "train/model/model.h"

typedef struct SetScore {
    const char *name;  // the corpus's
    double loss_sum;   // nats
    double tokens;     // targets scored
    double bytes;      // of UTF-8 text that these targets stand for; 0 where the tokenizer is not known
} SetScore;

// Scores at most `most_samples` sequences of each set (0: every token), spread evenly over it, shared by the ranks of `comm`;
// all ranks get the sums, which do not depend on the number of ranks beyond rounding. scores has corpus->set_count entries.
// `tokenizer` may be NULL. `show_progress` prints a meter where it takes long. ERROR_NOT_FINITE where a loss is not, with the
// set, the token and the layer; a corpus in which no set has a token to score is an error too, a single set is not.
Error *evaluate_corpus(Model *model, const Corpus *corpus, const Tokenizer *tokenizer, bool documents_apart,
                       int64_t most_samples, Comm *comm, bool show_progress, SetScore *scores) MUST_CHECK;

// Mean loss in nats a token, NAN where none was scored; bits a byte of text, NAN where bytes are not known.
double score_loss(const SetScore *score);
double score_bits_per_byte(const SetScore *score);

// The perplexity e^loss as text, whatever its size: "12.345", "1.2e+40", "over 1e308"; "unknown" where none was scored. Returns
// `text`.
enum { PERPLEXITY_TEXT = 32 };
const char *score_perplexity_text(char text[PERPLEXITY_TEXT], const SetScore *score);

// The sum over sets, named "all".
SetScore score_total(const SetScore *scores, int count);
