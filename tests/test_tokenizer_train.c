// data/: training tokenizers. Merges by hand, the same file on any number of threads and for any blocks, bounded memory by
// dropping rare words, and the golden file that the reference implementation has read.
#include "core/durable.h"
#include "core/json.h"
#include "core/philox.h"
#include "data/tokenizer/merge_training.h"
#include "data/tokenizer/tokenizer.h"
#include "data/tokenizer/tokenizer_train.h"
#include "tests/support/check.h"

#include <stdio.h>

static void train(int threads, PatternKind kind, const char *text, size_t size, size_t part, int32_t vocabulary, Buffer *out,
                  int32_t *got) {
    ThreadPool *pool = threads_create(threads);
    Trainer *trainer = trainer_create(pool, kind);
    for (size_t at = 0; at < size; at += part) {
        trainer_add(trainer, text + at, part < size - at ? part : size - at);
    }
    CHECK_OK(trainer_finish(trainer, vocabulary, out, got));
    trainer_free(trainer);
    threads_destroy(pool);
}

static void test_by_hand(void) {
    // "abab" 3 times, "cab" 2 times: ab 8; then (ab, ab) 3; then (c, ab) 2; then nothing occurs twice.
    const char *words[] = {"abab", "cab", "zz"};
    const int64_t counts[] = {3, 2, 1};
    CountedWord counted[3];
    WordPart part = {.words = counted, .count = 3, .capacity = 3};
    for (int i = 0; i < 3; i++) {
        counted[i] = (CountedWord){(uint64_t)i + 1, (uint32_t)part.bytes.size, (uint32_t)strlen(words[i]), counts[i]};
        buffer_text(&part.bytes, words[i]);
    }
    Merges merges;
    if (CHECK_OK(merges_learn(&part, 1, 400, &merges))) {
        CHECK_I64(merges.tokens, 259);
        CHECK_I64(merges.count, 3);
        CHECK(merges.items[0].left == 'a' && merges.items[0].right == 'b' && merges.items[0].id == 256);
        CHECK(merges.items[1].left == 256 && merges.items[1].right == 256 && merges.items[1].id == 257);
        CHECK(merges.items[2].left == 'c' && merges.items[2].right == 256 && merges.items[2].id == 258);
    }
    merges_free(&merges);
    buffer_free(&part.bytes);
}

// The same bytes made in two ways are one token: abc from (ab, c) and from (a, bc).
static void test_one_token_for_equal_bytes(void) {
    const char *words[] = {"xab", "ybc", "abc", "zabq", "abcabcabc", "bcbcbc", "aaaaaaa"};
    CountedWord counted[7];
    WordPart part = {.words = counted, .count = 7, .capacity = 7};
    for (int i = 0; i < 7; i++) {
        counted[i] = (CountedWord){(uint64_t)i + 1, (uint32_t)part.bytes.size, (uint32_t)strlen(words[i]), 10 + i};
        buffer_text(&part.bytes, words[i]);
    }
    Merges merges;
    if (CHECK_OK(merges_learn(&part, 1, 300, &merges))) {
        Buffer bytes = {0};
        uint64_t *ends;
        merges_bytes(&merges, &bytes, &ends);
        for (int32_t a = 1; a < merges.tokens; a++) {
            for (int32_t b = 0; b < a; b++) {
                size_t from_a = ends[a - 1], from_b = b > 0 ? ends[b - 1] : 0, size = ends[a] - from_a;
                CHECK(size != ends[b] - from_b || memcmp(bytes.data + from_a, bytes.data + from_b, size) != 0);
            }
        }
        buffer_free(&bytes);
        free(ends);
    }
    merges_free(&merges);
    buffer_free(&part.bytes);
}

// Text of words that follow a steep distribution, so that some are frequent and many occur once.
static void word_text(Buffer *out, int words) {
    for (int i = 0; i < words; i++) {
        Philox r = philox(5, philox_stream(RANDOM_TEST, 1), (uint64_t)i);
        double u = philox_unit(r.word[0]);
        uint32_t word = (uint32_t)(20000 * u * u * u * u);
        for (uint32_t rest = word * 2654435761u, k = 0; k < 2 + word % 7; k++, rest /= 11) {
            buffer_byte(out, "etaoinshrdl"[rest % 11]);
        }
        buffer_byte(out, r.word[1] % 9 == 0 ? '\n' : ' ');
    }
}

static void test_same_file_on_any_threads(void) {
    Buffer text = {0};
    word_text(&text, 60000);
    static const PatternKind kinds[] = {PATTERN_GPT2, PATTERN_LLAMA3, PATTERN_QWEN, PATTERN_CL100K};
    for (int k = 0; k < 4; k++) {
        Buffer first = {0};
        int32_t got;
        train(1, kinds[k], text.data, text.size, 1000, 900, &first, &got);
        CHECK_I64(got, 900);
        for (int threads = 2; threads <= 5; threads += 3) {
            Buffer other = {0};
            train(threads, kinds[k], text.data, text.size, 1000, 900, &other, &got);
            CHECK(first.size == other.size && memcmp(first.data, other.data, first.size) == 0);
            buffer_free(&other);
        }
        Tokenizer *tokenizer;
        if (CHECK_OK(tokenizer_load_bytes("trained", first.data, first.size, &tokenizer))) {
            CHECK_I64(tokenizer_vocabulary(tokenizer), 900);
            CHECK_I64(tokenizer_end_of_text(tokenizer), 899);
            Encoder *encoder = encoder_create(tokenizer);
            Tokens ids = {0};
            Buffer back = {0};
            encoder_encode(encoder, text.data, text.size, false, &ids);
            tokenizer_decode(tokenizer, ids.ids, ids.count, true, &back);
            CHECK(ids.count < text.size / 2 && back.size == text.size && memcmp(back.data, text.data, back.size) == 0);
            buffer_free(&back);
            free(ids.ids);
            encoder_free(encoder);
            tokenizer_free(tokenizer);
        }
        buffer_free(&first);
    }
    buffer_free(&text);
}

// Counts with small blocks and little room: the sum of hashes of the words and counts that are kept.
static uint64_t counted_sum(int threads, const Buffer *text, size_t block, size_t limit, int64_t *dropped, size_t *bytes) {
    ThreadPool *pool = threads_create(threads);
    Pattern *pattern = pattern_known(PATTERN_GPT2);
    WordCounts *counts = word_counts_create(pool, pattern, block, limit);
    for (size_t at = 0; at < text->size; at += 777) {
        word_counts_add(counts, text->data + at, text->size - at < 777 ? text->size - at : 777);
    }
    int count;
    const WordPart *parts = word_counts_finish(counts, &count);
    uint64_t sum = 0;
    *bytes = 0;
    for (int p = 0; p < count; p++) {
        for (size_t i = 0; i < parts[p].capacity; i++) {
            sum += parts[p].words[i].hash * (uint64_t)parts[p].words[i].count;
            *bytes += parts[p].words[i].hash != 0 ? parts[p].words[i].size : 0;
        }
    }
    *dropped = word_counts_dropped(counts);
    word_counts_free(counts);
    pattern_free(pattern);
    threads_destroy(pool);
    return sum;
}

static void test_bounded_words(void) {
    Buffer text = {0};
    word_text(&text, 60000);
    int64_t dropped, dropped_again;
    size_t bytes;
    uint64_t all = counted_sum(1, &text, 1 << 20, 0, &dropped, &bytes);
    CHECK_I64(dropped, 0);
    CHECK(counted_sum(3, &text, 5000, 0, &dropped, &bytes) == all);  // blocks do not matter while there is room
    uint64_t few = counted_sum(1, &text, 20000, 16000, &dropped, &bytes);
    CHECK(few != all && dropped > 0 && bytes < 16000);
    CHECK(counted_sum(4, &text, 20000, 16000, &dropped_again, &bytes) == few);
    CHECK_I64(dropped_again, dropped);
    buffer_free(&text);
}

static void test_small_vocabularies(void) {
    static const int32_t sizes[] = {256, 257, 300};
    for (int i = 0; i < 3; i++) {
        Buffer json = {0};
        int32_t got;
        train(1, PATTERN_GPT2, "ab ab ", 6, 6, sizes[i], &json, &got);
        CHECK_I64(got, i < 2 ? sizes[i] : 258);  // one pair occurs twice
        Tokenizer *tokenizer;
        if (CHECK_OK(tokenizer_load_bytes("small", json.data, json.size, &tokenizer))) {
            CHECK_I64(tokenizer_vocabulary(tokenizer), got);
            CHECK_I64(tokenizer_end_of_text(tokenizer), i == 0 ? -1 : got - 1);
            Encoder *encoder = encoder_create(tokenizer);
            Tokens ids = {0};
            encoder_encode(encoder, "x\xC3\xA9", 3, false, &ids);
            CHECK(ids.count == 3 && ids.ids[0] == 'x' && ids.ids[1] == 0xC3 && ids.ids[2] == 0xA9);
            free(ids.ids);
            encoder_free(encoder);
            tokenizer_free(tokenizer);
        }
        buffer_free(&json);
    }
    Buffer json = {0};
    int32_t got;
    train(2, PATTERN_GPT2, "", 0, 1, 1000, &json, &got);
    CHECK_I64(got, 257);
    buffer_free(&json);
}

// One long word without a break, and long runs: the work must follow what changes, or this would not come to an end.
static void test_long_words(void) {
    Buffer text = {0}, json = {0};
    for (uint64_t i = 0; text.size < 1 << 20; i++) {
        buffer_byte(&text, "ACGT"[philox(1, 2, i).word[0] % 4]);
    }
    buffer_text(&text, " ");
    for (int i = 0; i < 300000; i++) {
        buffer_byte(&text, '=');
    }
    int32_t got;
    train(2, PATTERN_GPT2, text.data, text.size, text.size, 2000, &json, &got);
    CHECK_I64(got, 2000);
    buffer_free(&text);
    buffer_free(&json);
}

static void test_golden(void) {
    const char *source = getenv("ATHANOR_SOURCE");
    char *folder = memory_format("%s/tests/golden/tokenizer", source != NULL ? source : ".");
    char *input = path_join(folder, "trained.jsonl"), *expected = path_join(folder, "trained.json");
    Buffer lines = {0}, json = {0}, golden = {0};
    if (CHECK_OK(file_read(input, 1 << 20, &lines)) && CHECK_OK(file_read(expected, 1 << 20, &golden))) {
        ThreadPool *pool = threads_create(2);
        Trainer *trainer = trainer_create(pool, PATTERN_GPT2);
        for (char *line = strtok(lines.data, "\n"); line != NULL; line = strtok(NULL, "\n")) {
            json_t *document;
            const char *text;
            if (CHECK_OK(json_read_bytes(input, line, strlen(line), &document))) {
                CHECK_OK(json_field_string(document, input, "text", &text));
                trainer_add(trainer, text, strlen(text));
                json_decref(document);
            }
        }
        int32_t got;
        CHECK_OK(trainer_finish(trainer, 400, &json, &got));
        CHECK_I64(got, 400);
        CHECK(json.size == golden.size && memcmp(json.data, golden.data, json.size) == 0);
        trainer_free(trainer);
        threads_destroy(pool);
    }
    buffer_free(&lines);
    buffer_free(&json);
    buffer_free(&golden);
    free(input);
    free(expected);
    free(folder);
}

int main(void) {
    RUN(test_by_hand);
    RUN(test_one_token_for_equal_bytes);
    RUN(test_same_file_on_any_threads);
    RUN(test_bounded_words);
    RUN(test_small_vocabularies);
    RUN(test_long_words);
    RUN(test_golden);
    return check_report();
}
