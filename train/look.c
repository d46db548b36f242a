// Looking at a model on the way: validation and sample texts (trainer_state.h).
#include "train/trainer_state.h"

#include "core/log.h"
#include "train/evaluate.h"
#include "train/generate.h"

#include <stdio.h>

// ---- On the way: validation, samples, checkpoints
// ---------------------------------------------------------------------------------------

static Error *validate(Trainer *t) {
    if (!t->has_validation || t->config->validation.every == 0) {
        return NULL;
    }
    SetScore *scores = memory_zeroed((size_t)t->validation.set_count, sizeof *scores);
    Error *error = evaluate_corpus(t->model, &t->validation, t->tokenizer, t->config->data.documents_apart,
                                   t->config->validation.samples, mesh_comm(t->mesh, OVER_DATA), false, scores);
    error = comm_agree(t->world, error);  // those that scored other texts, or have other layers, know nothing of it
    if (error == NULL && t->world->rank == 0) {
        SetScore total = score_total(scores, t->validation.set_count);
        char bits[48] = "", perplexity[PERPLEXITY_TEXT];
        if (total.bytes > 0) {
            snprintf(bits, sizeof bits, ", %.3f bits per byte", score_bits_per_byte(&total));
        }
        log_info("step %lld: held-out loss %.4f, perplexity %s%s", (long long)t->step, score_loss(&total),
                 score_perplexity_text(perplexity, &total), bits);
        for (int d = 0; d < t->validation.set_count && t->validation.set_count > 1; d++) {
            if (scores[d].tokens > 0) {
                metrics_valid(t->metrics, t->step, scores[d].name, score_loss(&scores[d]), score_bits_per_byte(&scores[d]));
            }
        }
        metrics_valid(t->metrics, t->step, "all", score_loss(&total), score_bits_per_byte(&total));
    }
    free(scores);
    return error;
}

// A model whose numbers are lost on one text may learn on others (fp16), and one that is lost altogether is ended by its
// skipped steps: on the way this is a warning. Before the first step and behind the last it is the error that it is.
static Error *tolerate(const Trainer *t, bool edge, Error *error) {
    if (edge || error == NULL || error->kind != ERROR_NOT_FINITE) {
        return error;
    }
    if (t->world->rank == 0) {
        log_warning("step %lld: %s", (long long)t->step, error->message);
    }
    error_free(error);
    return NULL;
}

// Rank 0, with those that share its layers or weights, writes sample texts; the others meet it at the next collective.
static Error *write_samples(Trainer *t, bool edge) {
    const RunConfig *config = t->config;
    bool first = t->mesh->coordinate[MESH_DATA] == 0 && t->mesh->coordinate[MESH_CONTEXT] == 0;
    if (config->samples.every == 0 || t->tokenizer == NULL || (!first && config->parallel.zero < 3)) {
        return NULL;
    }
    GenerateOptions options = {.tokens = config->samples.tokens,
                               .sampling = {.temperature = config->samples.temperature,
                                            .top_k = config->samples.top_k,
                                            .top_p = config->samples.top_p,
                                            .seed = (uint64_t)config->seed}};
    for (size_t i = 0; i < config->samples.prompts.count; i++) {
        Buffer text = {0};
        const char *prompt = config->samples.prompts.items[i];
        Error *error = tolerate(t, edge, generate_to_buffer(t->model, t->tokenizer, prompt, &options, &text));
        if (error == NULL && t->world->rank == 0) {
            metrics_sample(t->metrics, t->step, prompt, text.data ? text.data : "", text.size);
        }
        buffer_free(&text);
        TRY(error);
    }
    return NULL;
}

bool trainer_due(int64_t every, int64_t step) {
    return every > 0 && step % every == 0;
}

bool trainer_looks(const Trainer *t) {
    return trainer_due(t->config->validation.every, t->step) || trainer_due(t->config->samples.every, t->step);
}

Error *trainer_look(Trainer *t, bool edge) {
    if (edge || trainer_due(t->config->validation.every, t->step)) {
        TRY(tolerate(t, edge, validate(t)));
        TRY(comm_agree(t->world, NULL));  // nobody fails: what was tolerated is over
    }
    if (edge || trainer_due(t->config->samples.every, t->step)) {
        TRY(write_samples(t, edge));
    }
    return NULL;
}
