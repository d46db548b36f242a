// Training a tokenizer: see tokenizer_train.h. Counting is in word_counts.c, learning in merge_training.c; here the file is
// written.
#include "data/tokenizer/tokenizer_train.h"

#include "core/text.h"
#include "data/tokenizer/merge_training.h"

struct Trainer {
    Pattern *pattern;
    WordCounts *counts;
};

Trainer *trainer_create(ThreadPool *pool, PatternKind kind) {
    Trainer *trainer = memory_zeroed(1, sizeof *trainer);
    trainer->pattern = pattern_known(kind);
    trainer->counts = word_counts_create(pool, trainer->pattern, 0, 0);
    return trainer;
}

void trainer_free(Trainer *trainer) {
    if (trainer != NULL) {
        word_counts_free(trainer->counts);
        pattern_free(trainer->pattern);
        free(trainer);
    }
}

void trainer_add(Trainer *trainer, const char *text, size_t size) {
    word_counts_add(trainer->counts, text, size);
}

int64_t trainer_dropped(const Trainer *trainer) {
    return word_counts_dropped(trainer->counts);
}

// The text of a byte string in the alphabet of byte-level BPE (see tokenizer_json.c), quoted for JSON.
static void write_token(const char *bytes, size_t size, Buffer *out) {
    buffer_byte(out, '"');
    for (size_t i = 0; i < size; i++) {
        uint8_t byte = (uint8_t)bytes[i];
        char text[4];
        if (byte == '"' || byte == '\\') {
            buffer_byte(out, '\\');
        }
        uint32_t code = byte <= 0x20                   ? 0x100u + byte
                        : byte >= 0x7F && byte <= 0xA0 ? 0x121u + byte - 0x7F
                        : byte == 0xAD                 ? 0x143u
                                                       : byte;
        buffer_append(out, text, (size_t)utf8_encode(code, text));
    }
    buffer_byte(out, '"');
}

static void write_pre_tokenizer(const Pattern *pattern, Buffer *out) {
    const char *byte_level =
        "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": %s}";
    if (pattern->kind == PATTERN_GPT2) {
        buffer_printf(out, byte_level, "true");
        return;
    }
    buffer_text(out, "{\"type\": \"Sequence\", \"pretokenizers\": [\n    {\"type\": \"Split\", \"pattern\": {\"Regex\": \"");
    for (const char *p = pattern->text; *p; p++) {
        if (*p == '\\' || *p == '"') {
            buffer_byte(out, '\\');
        }
        buffer_byte(out, *p);
    }
    buffer_text(out, "\"}, \"behavior\": \"Isolated\", \"invert\": false},\n    ");
    buffer_printf(out, byte_level, "false");
    buffer_text(out, "\n  ]}");
}

static void write_json(const Pattern *pattern, const Merges *merges, bool end_of_text, Buffer *out) {
    Buffer bytes = {0};
    uint64_t *ends;
    merges_bytes(merges, &bytes, &ends);
    buffer_text(out, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n  \"added_tokens\": [");
    if (end_of_text) {
        buffer_printf(
            out,
            "\n    {\"id\": %d, \"content\": \"<|endoftext|>\", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, "
            "\"normalized\": false, \"special\": true}\n  ",
            merges->tokens);
    }
    buffer_text(out, "],\n  \"normalizer\": null,\n  \"pre_tokenizer\": ");
    write_pre_tokenizer(pattern, out);
    buffer_text(
        out,
        ",\n  \"post_processor\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"trim_offsets\": false, "
        "\"use_regex\": true},\n"
        "  \"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true, \"trim_offsets\": true, \"use_regex\": true},\n"
        "  \"model\": {\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": null,\n"
        "    \"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null,\n    \"fuse_unk\": false,\n"
        "    \"byte_fallback\": false,\n    \"ignore_merges\": false,\n    \"vocab\": {");
    for (int32_t id = 0; id < merges->tokens; id++) {
        size_t from = id > 0 ? ends[id - 1] : 0;
        buffer_text(out, id > 0 ? ",\n      " : "\n      ");
        write_token(bytes.data + from, ends[id] - from, out);
        buffer_printf(out, ": %d", id);
    }
    buffer_text(out, "\n    },\n    \"merges\": [");
    for (size_t m = 0; m < merges->count; m++) {
        buffer_text(out, m > 0 ? ",\n      [" : "\n      [");
        const int32_t sides[2] = {merges->items[m].left, merges->items[m].right};
        for (int i = 0; i < 2; i++) {
            size_t from = sides[i] > 0 ? ends[sides[i] - 1] : 0;
            write_token(bytes.data + from, ends[sides[i]] - from, out);
            buffer_text(out, i == 0 ? ", " : "]");
        }
    }
    buffer_text(out, merges->count > 0 ? "\n    ]\n  }\n}\n" : "]\n  }\n}\n");
    buffer_free(&bytes);
    free(ends);
}

Error *trainer_finish(Trainer *trainer, int32_t size, Buffer *out, int32_t *vocabulary) {
    ensure(size >= 256 && size <= 1000000, "a vocabulary of %d", size);
    bool end_of_text = size > 256;
    int part_count;
    const WordPart *parts = word_counts_finish(trainer->counts, &part_count);
    Merges merges;
    Error *error = merges_learn(parts, part_count, size - end_of_text, &merges);
    if (error == NULL) {
        write_json(trainer->pattern, &merges, end_of_text, out);
        *vocabulary = merges.tokens + end_of_text;
    }
    merges_free(&merges);
    return error;
}
