// Text from a model: see generate.h.
#include "train/generate.h"

#include "core/log.h"
#include "core/text.h"

// The prompt's tokens behind the token that opens a document, where there is one.
static Error *encode_prompt(const Model *model, const Tokenizer *tokenizer, const char *prompt, size_t size, Tokens *tokens) {
    if (utf8_valid_prefix(prompt, size) != size) {
        return failure("the prompt is not valid UTF-8 at byte %zu", utf8_valid_prefix(prompt, size));
    }
    int32_t end = tokenizer_end_of_text(tokenizer);
    if (end >= 0) {
        array_push(tokens->ids, tokens->count, tokens->capacity, end);
    }
    Encoder *encoder = encoder_create(tokenizer);
    encoder_encode(encoder, prompt, size, false, tokens);
    encoder_free(encoder);
    if (tokens->count == 0) {
        return failure("an empty prompt needs a tokenizer with an end-of-text token; give --prompt a text");
    }
    for (size_t i = 0; i < tokens->count; i++) {
        if (tokens->ids[i] >= model->config.vocabulary) {
            return failure("the prompt holds token %d, but the model's vocabulary has %lld: the tokenizer is another one",
                           tokens->ids[i], (long long)model->config.vocabulary);
        }
    }
    return NULL;
}

// The logits behind the last `held` of `tokens`, the first `prompt` of which were given, are not finite.
static Error *not_finite(Decoder *decoder, const Tokens *tokens, int64_t held, size_t prompt) {
    char *why = decoder_not_finite(decoder, tokens->ids + tokens->count - held, held);
    Error *error = error_new(ERROR_NOT_FINITE,
                             "the model's logits for token %zu of the text (the prompt has %zu) are not finite: %s; an earlier "
                             "checkpoint of the run may be sound",
                             tokens->count + 1, prompt, why);
    free(why);
    return error;
}

Error *generate_text(const Model *model, const Tokenizer *tokenizer, const char *prompt, size_t prompt_size,
                     const GenerateOptions *options, GenerateSink sink, void *context, int64_t *drawn) {
    Tokens tokens = {0};
    Decoder *decoder = NULL;
    int64_t count = 0, capacity;
    int32_t end = tokenizer_end_of_text(tokenizer);
    size_t given;
    Error *error;
    TRY_GOTO(error, out, encode_prompt(model, tokenizer, prompt, prompt_size, &tokens));
    given = tokens.count;
    if ((int64_t)given > model->config.context) {
        log_warning("the prompt has %zu tokens, the model's context is %lld: only its last %lld are read", given,
                    (long long)model->config.context, (long long)model->config.context);
    }
    capacity = (int64_t)given + options->tokens;
    capacity = capacity < model->config.context ? capacity : model->config.context;
    TRY_GOTO(error, out, decoder_create(model, 1, capacity, &decoder));
    for (; count < options->tokens; count++) {
        // Read the prompt at the start; when the context is full, read its newer half again and forget the rest.
        if (count == 0 || decoder_length(decoder, 0) == capacity) {
            size_t room = count == 0 ? (size_t)capacity : ((size_t)capacity + 1) / 2;
            size_t keep = tokens.count < room ? tokens.count : room;
            decoder_prefill(decoder, 0, tokens.ids + tokens.count - keep, (int64_t)keep);
        } else {
            decoder_step(decoder, &tokens.ids[tokens.count - 1]);
        }
        int32_t id;
        decoder_draw(decoder, &options->sampling, tokenizer_vocabulary(tokenizer), &count, &id);
        if (id < 0) {
            error = not_finite(decoder, &tokens, decoder_length(decoder, 0), given);
            break;
        }
        if (id == end) {
            break;
        }
        array_push(tokens.ids, tokens.count, tokens.capacity, id);
        size_t size;
        const char *bytes = tokenizer_token(tokenizer, id, false, &size);
        if (size > 0 && !sink(context, bytes, size)) {
            break;
        }
    }
out:
    if (drawn != NULL) {
        *drawn = count;
    }
    free(tokens.ids);
    decoder_destroy(decoder);
    return error;
}

static bool append(void *context, const char *bytes, size_t size) {
    buffer_append(context, bytes, size);
    return true;
}

Error *generate_to_buffer(const Model *model, const Tokenizer *tokenizer, const char *prompt, const GenerateOptions *options,
                          Buffer *out) {
    return generate_text(model, tokenizer, prompt, strlen(prompt), options, append, out, NULL);
}
