// Small tokenizers and corpora for tests: see texts.h.
#include "tests/support/texts.h"

#include "core/philox.h"
#include "tests/support/check.h"

static void must(Error *error) {
    ensure(error == NULL, "%s", error->message);
}

Tokenizer *texts_tokenizer(bool end) {
    Buffer json = {0};
    buffer_printf(
        &json,
        "{\"added_tokens\": [%s], \"normalizer\": null, \"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": "
        "false, \"use_regex\": true}, \"decoder\": {\"type\": \"ByteLevel\"}, \"model\": {\"type\": \"BPE\", \"merges\": [], "
        "\"vocab\": {%s\"\\u0120\": %d",
        end ? "{\"id\": 0, \"content\": \"<|endoftext|>\", \"special\": true, \"normalized\": false, \"single_word\": "
              "false, \"lstrip\": false, \"rstrip\": false}"
            : "",
        end ? "\"<|endoftext|>\": 0, " : "", end);
    for (int c = '!'; c <= '~'; c++) {
        buffer_printf(&json, ", \"\\u%04x\": %d", c, c - ' ' + end);
    }
    buffer_text(&json, "}}}");
    Tokenizer *tokenizer;
    must(tokenizer_load_bytes("tokenizer.json", json.data, json.size, &tokenizer));
    buffer_free(&json);
    return tokenizer;
}

Corpus texts_corpus(int sets, const int64_t *counts, int64_t document, int32_t vocabulary, uint64_t seed) {
    Corpus corpus = {.path = memory_string(check_folder()),
                     .sets = memory_zeroed((size_t)sets, sizeof *corpus.sets),
                     .set_count = sets,
                     .vocabulary = vocabulary,
                     .end_of_text = -1};
    for (int d = 0; d < sets; d++) {
        CorpusSet *set = &corpus.sets[d];
        TokenWriter *writer;
        set->name = memory_format("%c", 'a' + d);
        set->prefix = path_join(corpus.path, set->name);
        must(token_writer_create(set->prefix, 2, &writer));
        for (int64_t i = 0; i < counts[d]; i++) {
            uint64_t stream = philox_stream(RANDOM_TEST, (uint64_t)d);
            int32_t token = (int32_t)(philox(seed, stream, (uint64_t)i).word[0] % (uint32_t)vocabulary);
            must(token_writer_append(writer, &token, 1));
            if ((i + 1) % document == 0 || i + 1 == counts[d]) {
                must(token_writer_end_document(writer));
            }
        }
        must(token_writer_commit(writer));
        must(token_file_open(set->prefix, &set->file));
        set->documents = set->file.documents;
        set->tokens = set->file.tokens;
        set->text_bytes = -1;
    }
    return corpus;
}

void texts_close(Corpus *corpus) {
    for (int d = 0; d < corpus->set_count; d++) {
        token_file_close(&corpus->sets[d].file);
        free(corpus->sets[d].name);
        free(corpus->sets[d].prefix);
    }
    free(corpus->sets);
    free(corpus->path);
}
