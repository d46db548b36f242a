// tokenizer.json: whatever the bytes, loading ends with a tokenizer or one message; a tokenizer encodes a text of its own file,
// whole and in parts, to the same ids, all of them known.
#include "data/tokenizer/tokenizer.h"

#include "core/text.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    Tokenizer *tokenizer;
    Error *error = tokenizer_load_bytes("fuzz.json", (const char *)bytes, size, &tokenizer);
    if (error != NULL) {
        ensure(strchr(error->message, '\n') == NULL, "a message of several lines: %s", error->message);
        error_free(error);
        return 0;
    }
    enum { TEXT_MOST = 4096 };
    size_t text_size = utf8_valid_prefix((const char *)bytes, size < TEXT_MOST ? size : TEXT_MOST);
    Encoder *encoder = encoder_create(tokenizer);
    Tokens whole = {0}, parts = {0};
    encoder_encode(encoder, (const char *)bytes, text_size, size % 2, &whole);
    for (size_t at = 0, part; at < text_size; at += part) {
        part = at % 7 + 1 < text_size - at ? at % 7 + 1 : text_size - at;
        encoder_feed(encoder, (const char *)bytes + at, part, size % 2, &parts);
    }
    encoder_finish(encoder, size % 2, &parts);
    ensure(whole.count == parts.count, "%zu ids whole, %zu in parts", whole.count, parts.count);
    for (size_t i = 0; i < whole.count; i++) {
        size_t token_size;
        ensure(whole.ids[i] == parts.ids[i], "ids differ at %zu", i);
        ensure(tokenizer_token(tokenizer, whole.ids[i], true, &token_size) != NULL, "id %d is unknown", whole.ids[i]);
    }
    Buffer back = {0};
    tokenizer_decode(tokenizer, whole.ids, whole.count, true, &back);
    tokenizer_describe(tokenizer, &back);
    buffer_free(&back);
    free(whole.ids);
    free(parts.ids);
    encoder_free(encoder);
    tokenizer_free(tokenizer);
    return 0;
}
