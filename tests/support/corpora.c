// Small corpora: see corpora.h.
#include "tests/support/corpora.h"

#include "core/durable.h"
#include "tests/support/check.h"

void write_byte_tokenizer(const char *path) {
    Buffer json = {0};
    buffer_text(&json,
                "{\"added_tokens\": [{\"id\": 0, \"content\": \"<|endoftext|>\", \"special\": true, \"normalized\": false, "
                "\"single_word\": false, \"lstrip\": false, \"rstrip\": false}], \"normalizer\": null, \"pre_tokenizer\": "
                "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": true}, \"decoder\": {\"type\": "
                "\"ByteLevel\"}, \"model\": {\"type\": \"BPE\", \"merges\": [], \"vocab\": {\"<|endoftext|>\": 0");
    int other = 0;
    for (int b = 0; b < 256; b++) {
        bool plain = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
        buffer_printf(&json, ", \"\\u%04x\": %d", plain ? b : 256 + other, b + 1);
        other += !plain;
    }
    buffer_text(&json, "}}}");
    CHECK_OK(file_write(path, json.data, json.size));
    buffer_free(&json);
}
