// .tiktoken: whatever the bytes, loading ends with a tokenizer or one message. The file's name, which chooses the pattern,
// follows from the first byte; what comes behind it is the file, after lines for all bytes if the second bit is set, since no
// file without them loads.
#include "data/tokenizer/tokenizer.h"

#include "core/text.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void byte_lines(Buffer *out) {
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int byte = 0; byte < 256; byte++) {
        buffer_printf(out, "%c%c== %d\n", alphabet[byte >> 2], alphabet[(byte & 3) << 4], byte);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    static const char *const names[] = {"a.gpt2.tiktoken", "a.cl100k.tiktoken", "a.o200k.tiktoken", "a.tiktoken"};
    if (size == 0) {
        return 0;
    }
    Buffer file = {0};
    if (bytes[0] & 4) {
        byte_lines(&file);
    }
    buffer_reserve(&file, size);
    buffer_append(&file, bytes + 1, size - 1);
    Tokenizer *tokenizer;
    Error *error = tokenizer_load_bytes(names[bytes[0] & 3], file.data, file.size, &tokenizer);
    if (error != NULL) {
        ensure(strchr(error->message, '\n') == NULL, "a message of several lines: %s", error->message);
        error_free(error);
    } else {
        Encoder *encoder = encoder_create(tokenizer);
        Tokens ids = {0};
        size_t text_size = utf8_valid_prefix((const char *)bytes, size);
        encoder_encode(encoder, (const char *)bytes, text_size, bytes[0] & 8, &ids);
        Buffer back = {0};
        buffer_reserve(&back, 1);
        tokenizer_decode(tokenizer, ids.ids, ids.count, true, &back);
        ensure(back.size == text_size && memcmp(back.data, bytes, text_size) == 0, "the text does not come back");
        buffer_free(&back);
        free(ids.ids);
        encoder_free(encoder);
        tokenizer_free(tokenizer);
    }
    buffer_free(&file);
    return 0;
}
