// Text from a model: see generate.h.
#include "train/generate.h"

#include "core/philox.h"
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

// What drawing needs on the model's device.
typedef struct Draw {
    float *logits;  // [V]
    int64_t *index;
    int32_t *token;
    void *scratch;
    size_t scratch_bytes;
} Draw;

static void draw_free(const Model *model, Draw *draw) {
    device_release(model->device, draw->logits, (size_t)model->config.vocabulary * sizeof *draw->logits);
    device_release(model->device, draw->index, sizeof *draw->index);
    device_release(model->device, draw->token, sizeof *draw->token);
    device_release(model->device, draw->scratch, draw->scratch_bytes);
}

static Error *draw_create(const Model *model, Draw *draw) {
    *draw = (Draw){.scratch_bytes = (size_t)model->device->op->sample_scratch_bytes(1, model->config.vocabulary)};
    TRY(device_allocate(model->device, (size_t)model->config.vocabulary * sizeof *draw->logits, (void **)&draw->logits));
    TRY(device_allocate(model->device, sizeof *draw->index, (void **)&draw->index));
    TRY(device_allocate(model->device, sizeof *draw->token, (void **)&draw->token));
    return device_allocate(model->device, draw->scratch_bytes, &draw->scratch);
}

// Token number `number` of the text from the logits before it, in host memory.
static int32_t draw_token(const Model *model, const Draw *draw, const Sampling *sampling, int64_t usable, int64_t number,
                          const float *logits) {
    device_upload(model->device, draw->logits, logits, (size_t)model->config.vocabulary * sizeof *logits);
    device_upload(model->device, draw->index, &number, sizeof number);
    model->device->op->sample(model->device, &(Sample){.rows = 1,
                                                       .vocabulary = model->config.vocabulary,
                                                       .usable = usable,
                                                       .logits = draw->logits,
                                                       .temperature = sampling->temperature,
                                                       .top_p = sampling->top_p,
                                                       .top_k = sampling->top_k,
                                                       .seed = sampling->seed,
                                                       .stream = philox_stream(RANDOM_SAMPLE, 0),
                                                       .index = draw->index,
                                                       .tokens = draw->token,
                                                       .scratch = draw->scratch});
    int32_t token;
    device_download(model->device, &token, draw->token, sizeof token);
    return token;
}

Error *generate_text(const Model *model, const Tokenizer *tokenizer, const char *prompt, size_t prompt_size,
                     const GenerateOptions *options, GenerateSink sink, void *context, int64_t *drawn) {
    Tokens tokens = {0};
    Decoder *decoder = NULL;
    Draw draw = {0};
    float *logits = NULL;
    int64_t vocabulary = model->config.vocabulary, count = 0, capacity;
    int32_t end = tokenizer_end_of_text(tokenizer);
    Error *error;
    TRY_GOTO(error, out, encode_prompt(model, tokenizer, prompt, prompt_size, &tokens));
    capacity = (int64_t)tokens.count + options->tokens;
    capacity = capacity < model->config.context ? capacity : model->config.context;
    TRY_GOTO(error, out, decoder_create(model, 1, capacity, &decoder));
    logits = memory_new((size_t)vocabulary, sizeof *logits);
    TRY_GOTO(error, out, draw_create(model, &draw));
    for (; count < options->tokens; count++) {
        // Read the prompt at the start; when the context is full, read its newer half again and forget the rest.
        if (count == 0 || decoder_length(decoder, 0) == capacity) {
            size_t room = count == 0 ? (size_t)capacity : ((size_t)capacity + 1) / 2;
            size_t keep = tokens.count < room ? tokens.count : room;
            decoder_prefill(decoder, 0, tokens.ids + tokens.count - keep, (int64_t)keep, logits);
        } else {
            decoder_step(decoder, &tokens.ids[tokens.count - 1], logits);
        }
        int32_t id = draw_token(model, &draw, &options->sampling, tokenizer_vocabulary(tokenizer), count, logits);
        if (id == end) {
            break;
        }
        array_push(tokens.ids, tokens.count, tokens.capacity, id);
        size_t size;
        const char *bytes = tokenizer_token(tokenizer, id, false, &size);
        if (size > 0) {
            sink(context, bytes, size);
        }
    }
out:
    if (drawn != NULL) {
        *drawn = count;
    }
    free(tokens.ids);
    free(logits);
    draw_free(model, &draw);
    decoder_destroy(decoder);
    return error;
}

static void append(void *context, const char *bytes, size_t size) {
    buffer_append(context, bytes, size);
}

Error *generate_to_buffer(const Model *model, const Tokenizer *tokenizer, const char *prompt, const GenerateOptions *options,
                          Buffer *out) {
    return generate_text(model, tokenizer, prompt, strlen(prompt), options, append, out, NULL);
}
