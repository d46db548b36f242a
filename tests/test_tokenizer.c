// data/: tokenizers. Ids against the reference implementations (golden files), round trips, parts against the whole, bad files.
#include "data/tokenizer.h"
#include "tests/support/check.h"

#include <stdio.h>

// A tokenizer.json with the bytes as ids, some merges, and <|endoftext|>.
static void small_json(Buffer *out) {
    buffer_text(out,
                "{\"added_tokens\": [{\"id\": 259, \"content\": \"<|endoftext|>\", \"special\": true, \"normalized\": false}],"
                "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": true},"
                "\"model\": {\"type\": \"BPE\", \"vocab\": {");
    for (int byte = 0, next = 0x100; byte < 256; byte++) {
        bool itself = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
        buffer_printf(out, "\"\\u%04x\": %d, ", (unsigned)(itself ? byte : next), byte);
        next += !itself;
    }
    buffer_text(out,
                "\"ab\": 256, \"abc\": 257, \"\\u0120ab\": 258}, \"merges\": [\"a b\", [\"ab\", \"c\"], \"\\u0120 ab\"]}}");
}

static void test_small(void) {
    Buffer json = {0};
    small_json(&json);
    Tokenizer *tokenizer;
    if (!CHECK_OK(tokenizer_load_bytes("small.json", json.data, json.size, &tokenizer))) {
        buffer_free(&json);
        return;
    }
    CHECK_I64(tokenizer_vocabulary(tokenizer), 260);
    CHECK_I64(tokenizer_end_of_text(tokenizer), 259);
    Encoder *encoder = encoder_create(tokenizer);
    Tokens ids = {0};
    const char *text = "abc ab<|endoftext|>b";
    encoder_encode(encoder, text, strlen(text), true, &ids);
    const int32_t expected[] = {257, 258, 259, 'b'};
    CHECK(ids.count == 4 && memcmp(ids.ids, expected, sizeof expected) == 0);
    Buffer back = {0};
    tokenizer_decode(tokenizer, ids.ids, ids.count, true, &back);
    CHECK_TEXT(back.data, text);
    ids.count = 0;
    encoder_encode(encoder, text, strlen(text), false, &ids);
    CHECK_I64(ids.count, 16);
    free(ids.ids);
    buffer_free(&back);
    encoder_free(encoder);
    tokenizer_free(tokenizer);
    buffer_free(&json);
}

int main(void) {
    RUN(test_small);
    return check_report();
}
