// data/: tokenizers. Ids against the reference implementations (golden files), round trips, parts against the whole,
// adversarial text by its count of merges, bad files each with its message.
#include "core/durable.h"
#include "core/philox.h"
#include "core/text.h"
#include "data/tokenizer/tokenizer_parts.h"
#include "data/tokenizer/unicode.h"
#include "tests/support/check.h"

#include <stdio.h>

static const char *const golden[] = {"llama3.json",          "qwen.json",          "gpt4.json",    "prefix.json",
                                     "digits.json",          "other.json",         "trained.json", "tiny.gpt2.tiktoken",
                                     "tiny.cl100k.tiktoken", "tiny.o200k.tiktoken"};
enum { GOLDEN = sizeof golden / sizeof *golden };

static char *golden_path(const char *name) {
    const char *source = getenv("ATHANOR_SOURCE");
    return memory_format("%s/tests/golden/tokenizer/%s", source != NULL ? source : ".", name);
}

// One line of a .cases file.
typedef struct Case {
    bool special;
    Buffer text;
    Tokens ids;
} Case;

static const char *read_case(const char *line, Case *out) {
    out->special = *line == 'S';
    buffer_clear(&out->text);
    buffer_reserve(&out->text, 1);
    out->ids.count = 0;
    line += 2;
    for (unsigned byte; *line != ' ' && *line != '\n' && sscanf(line, "%2x", &byte) == 1; line += 2) {
        buffer_byte(&out->text, (char)byte);
    }
    line += *line == '.';
    while (*line == ' ') {
        char *end;
        array_push(out->ids.ids, out->ids.count, out->ids.capacity, (int32_t)strtol(line, &end, 10));
        line = end;
    }
    return line + 1;
}

static bool same_ids(const Tokens *a, const Tokens *b) {
    return a->count == b->count && (a->count == 0 || memcmp(a->ids, b->ids, a->count * sizeof *a->ids) == 0);
}

// Loads a tokenizer, and the file of its cases.
static bool load_pair(const char *tokenizer_path, const char *cases_name, Tokenizer **tokenizer, Buffer *cases) {
    char *path = golden_path(cases_name);
    bool loaded = CHECK_OK(tokenizer_load(tokenizer_path, tokenizer)) && CHECK_OK(file_read(path, 1 << 22, cases));
    free(path);
    return loaded;
}

static void check_cases(const char *tokenizer_path, const char *cases_name) {
    Tokenizer *tokenizer = NULL;
    Buffer cases = {0};
    if (load_pair(tokenizer_path, cases_name, &tokenizer, &cases)) {
        Encoder *encoder = encoder_create(tokenizer);
        Case one = {0};
        Tokens ids = {0};
        int count = 0, wrong = 0;
        for (const char *line = cases.data; *line;) {
            line = read_case(line, &one);
            ids.count = 0;
            encoder_encode(encoder, one.text.data, one.text.size, one.special, &ids);
            count++;
            if (!same_ids(&ids, &one.ids) && wrong++ == 0) {
                printf("%s: case %d differs\n", cases_name, count);
            }
        }
        CHECK(count > 100);
        CHECK_I64(wrong, 0);
        free(ids.ids);
        free(one.ids.ids);
        buffer_free(&one.text);
        encoder_free(encoder);
    }
    tokenizer_free(tokenizer);
    buffer_free(&cases);
}

static char *cases_name(const char *name) {
    const char *dot = strrchr(name, '.');
    return memory_format("%.*s.cases", (int)(dot - name), name);
}

static void test_golden(void) {
    for (int i = 0; i < GOLDEN; i++) {
        char *path = golden_path(golden[i]), *cases = cases_name(golden[i]);
        check_cases(path, cases);
        free(path);
        free(cases);
    }
}

// Tokenizers that are not part of the project, where a folder with them is given.
static void test_real(void) {
    static const char *const names[] = {"gpt-neox-20b.json", "gpt2.tiktoken"};
    const char *folder = getenv("ATHANOR_TOKENIZERS");
    for (int i = 0; i < 2 && folder != NULL; i++) {
        char *path = path_join(folder, names[i]), *name = cases_name(names[i]), *cases = path_join("real", name);
        if (path_exists(path)) {
            check_cases(path, cases);
        }
        free(path);
        free(name);
        free(cases);
    }
}

// The texts of all golden cases behind one another, many times: longer than what an encoder waits for.
static void long_text(Buffer *out) {
    char *path = golden_path("qwen.cases");
    Buffer cases = {0};
    Case one = {0};
    if (CHECK_OK(file_read(path, 1 << 22, &cases))) {
        for (int round = 0; round < 100; round++) {
            int count = 0;
            for (const char *line = cases.data; *line; count++) {
                line = read_case(line, &one);
                if (philox(round, 1, (uint64_t)count).word[0] % 3 > 0) {
                    buffer_append(out, one.text.data, one.text.size);
                }
            }
        }
    }
    free(one.ids.ids);
    buffer_free(&one.text);
    buffer_free(&cases);
    free(path);
}

static void feed_in_parts(Encoder *encoder, const Buffer *text, uint64_t seed, uint32_t most, bool special, Tokens *out) {
    out->count = 0;
    for (size_t at = 0, part; at < text->size; at += part) {
        part = 1 + philox(seed, 2, at).word[0] % most;
        part = part < text->size - at ? part : text->size - at;
        encoder_feed(encoder, text->data + at, part, special, out);
    }
    encoder_finish(encoder, special, out);
}

static void test_parts(void) {
    Buffer text = {0};
    long_text(&text);
    CHECK(text.size > 200000);
    for (int i = 0; i < GOLDEN; i++) {
        char *path = golden_path(golden[i]);
        Tokenizer *tokenizer;
        if (CHECK_OK(tokenizer_load(path, &tokenizer))) {
            Encoder *encoder = encoder_create(tokenizer);
            Tokens whole = {0}, parts = {0};
            static const uint32_t most[] = {50, 5000, 200000};
            for (int k = 0; k < 3; k++) {
                whole.count = 0;
                encoder_encode(encoder, text.data, text.size, k % 2, &whole);
                feed_in_parts(encoder, &text, (uint64_t)k, most[k], k % 2, &parts);
                if (!CHECK(same_ids(&whole, &parts))) {
                    printf("%s, parts of up to %u bytes\n", golden[i], most[k]);
                }
            }
            free(whole.ids);
            free(parts.ids);
            encoder_free(encoder);
            tokenizer_free(tokenizer);
        }
        free(path);
    }
    buffer_free(&text);
}

static void test_round_trip(void) {
    static const char *const names[] = {"llama3.json", "gpt4.json", "trained.json", "tiny.cl100k.tiktoken"};
    Buffer text = {0}, back = {0};
    long_text(&text);
    for (int i = 0; i < 4; i++) {
        char *path = golden_path(names[i]);
        Tokenizer *tokenizer;
        if (CHECK_OK(tokenizer_load(path, &tokenizer))) {
            Encoder *encoder = encoder_create(tokenizer);
            Tokens ids = {0};
            encoder_encode(encoder, text.data, text.size, true, &ids);
            buffer_clear(&back);
            tokenizer_decode(tokenizer, ids.ids, ids.count, true, &back);
            CHECK(back.size == text.size && memcmp(back.data, text.data, text.size) == 0);
            free(ids.ids);
            encoder_free(encoder);
            tokenizer_free(tokenizer);
        }
        free(path);
    }
    buffer_free(&text);
    buffer_free(&back);
}

static void test_decoding(void) {
    char *path = golden_path("qwen.json");
    Tokenizer *tokenizer;
    if (CHECK_OK(tokenizer_load(path, &tokenizer))) {
        const int32_t ids[] = {-1,      420, 68,
                               1000000, 424, 421};  // none, <|endoftext|>, e, none, a token with accents, <|im_start|>
        Buffer out = {0};
        tokenizer_decode(tokenizer, ids, 6, true, &out);
        CHECK_TEXT(out.data, "<|endoftext|>e\u00E9t\u00E9<|im_start|>");
        buffer_clear(&out);
        tokenizer_decode(tokenizer, ids, 6, false, &out);
        CHECK_TEXT(out.data, "e\u00E9t\u00E9");
        CHECK_I64(tokenizer_end_of_text(tokenizer), 420);
        CHECK_I64(tokenizer_vocabulary(tokenizer), 433);
        size_t size;
        CHECK(tokenizer_token(tokenizer, 433, true, &size) == NULL && size == 0);
        Tokenizer *again;
        if (CHECK_OK(tokenizer_load(path, &again))) {
            CHECK(tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(again));
            tokenizer_free(again);
        }
        buffer_clear(&out);
        tokenizer_describe(tokenizer, &out);
        CHECK(strstr(out.data, "normalizer   NFC") != NULL);
        buffer_free(&out);
        tokenizer_free(tokenizer);
    }
    free(path);
}

// Tokenizers that are put together of parts, each with texts: what Split may say and do, and the flags of added tokens.
static void test_golden_parts(void) {
    char *base_path = golden_path("bytes.json"), *path = golden_path("parts.cases");
    Buffer base = {0}, cases = {0}, before = {0};
    Tokenizer *tokenizer = NULL;
    Encoder *encoder = NULL;
    Case one = {0};
    Tokens ids = {0};
    int count = 0, wrong = 0;
    bool loaded = CHECK_OK(file_read(base_path, 1 << 20, &base)) && CHECK_OK(file_read(path, 1 << 22, &cases));
    for (const char *line = cases.data; loaded && *line;) {
        const char *tab = strchr(line, '\t');
        if (before.size != (size_t)(tab - line) || memcmp(before.data, line, before.size) != 0) {
            buffer_clear(&before);
            buffer_append(&before, line, (size_t)(tab - line));
            char *document = memory_format("%.*s,%s", (int)(tab - line - 1), line, base.data + 1);
            encoder_free(encoder);
            tokenizer_free(tokenizer);
            Error *error = tokenizer_load_bytes("parts", document, strlen(document), &tokenizer);
            encoder = error == NULL ? encoder_create(tokenizer) : NULL;
            free(document);
            if (error != NULL && !CHECK(strstr(error->message, "without case") != NULL)) {  // case that makes one of several
                printf("%s\n%s\n", error->message, before.data);
            }
            error_free(error);
        }
        if (encoder == NULL) {
            line = strchr(line, '\n') + 1;
            continue;
        }
        line = read_case(tab + 1, &one);
        for (int parts = 0; parts < 2; parts++) {
            ids.count = 0;
            if (parts) {
                feed_in_parts(encoder, &one.text, (uint64_t)count, 3, one.special, &ids);
            } else {
                encoder_encode(encoder, one.text.data, one.text.size, one.special, &ids);
            }
            if (!same_ids(&ids, &one.ids) && wrong++ == 0) {
                printf("case %d differs: %s\n", count, before.data);
            }
        }
        count++;
    }
    CHECK(count > 400);
    CHECK_I64(wrong, 0);
    encoder_free(encoder);
    tokenizer_free(tokenizer);
    free(ids.ids);
    free(one.ids.ids);
    buffer_free(&one.text);
    buffer_free(&base);
    buffer_free(&cases);
    buffer_free(&before);
    free(base_path);
    free(path);
}

// Whether the symbols of the text of one character are what the expression matches, for all characters: two sums, as in the
// file.
static void check_class(const char *expression, size_t size, int64_t count, uint64_t sum, uint64_t squares) {
    char *whole = memory_format("[%.*s]", (int)size, expression);
    bool alone = strncmp(expression, "\\w", 2) == 0 || strncmp(expression, "\\p{Word", 7) == 0 || *expression == '(';
    Pattern *pattern;
    if (CHECK_OK(pattern_create(alone ? expression : whole, alone ? size : strlen(whole), &pattern))) {
        // Which symbols match is asked once each: of the first character that has it.
        int8_t matches[SYMBOLS_MOST];
        memset(matches, -1, sizeof matches);
        int64_t found = 0;
        uint64_t first = 0, second = 0;
        pattern_behave(pattern, BEHAVIOR_REMOVED, false);
        Splitter splitter = {0};
        for (uint32_t code = 0; code < CODES; code++) {
            code = code == 0xD800 ? 0xE000 : code;
            char text[4];
            uint8_t symbol;
            size_t bytes = (size_t)utf8_encode(code, text);
            symbols_of(&pattern->expression->symbols, (const uint8_t *)text, bytes, &symbol);
            if (matches[symbol] < 0) {
                uint32_t length = 0;
                splitter_begin(&splitter, pattern, text, bytes);
                splitter_next(&splitter, &length, 1);
                matches[symbol] = (length & PIECE_REMOVED) != 0;
            }
            if (matches[symbol]) {
                found++;
                first += code;
                second += (uint64_t)code * code;
            }
        }
        splitter_free(&splitter);
        if (!CHECK(found == count && first == sum && second % ((uint64_t)1 << 61) == squares)) {
            printf("%.*s has %lld characters, not %lld\n", (int)size, expression, (long long)found, (long long)count);
        }
        pattern_free(pattern);
    }
    free(whole);
}

// Every property, script and class against the reference engine, over all characters.
static void test_golden_classes(void) {
    char *path = golden_path("classes.cases");
    Buffer cases = {0};
    int count = 0;
    if (CHECK_OK(file_read(path, 1 << 20, &cases))) {
        for (char *line = cases.data, *end; *line; line = end + 1, count++) {
            int64_t characters = strtoll(line, &line, 10);
            uint64_t sum = strtoull(line, &line, 10), squares = strtoull(line, &line, 10);
            end = strchr(line, '\n');
            check_class(line + 1, (size_t)(end - line - 1), characters, sum, squares);
        }
    }
    CHECK(count > 200);
    buffer_free(&cases);
    free(path);
}

static void test_unicode(void) {
    const uint8_t *classes = unicode_classes();
    int64_t letters = 0, numbers = 0, spaces = 0;
    for (uint32_t code = 0; code < UNICODE_INVALID; code++) {
        letters += (classes[code] & UNICODE_LETTER) != 0;
        numbers += (classes[code] & UNICODE_NUMBER) != 0;
        spaces += (classes[code] & UNICODE_SPACE) != 0;
    }
    CHECK_I64(spaces, 25);
    CHECK_I64(letters, 141028);  // of Unicode 16
    CHECK_I64(numbers, 1911);
    static const char *const pairs[][2] = {{"e\u0301", "\u00E9"},
                                           {"\u1100\u1161\u11A8", "\uAC01"},
                                           {"a\u0301\u0327", "\u00E1\u0327"},
                                           {"\u212B", "\u00C5"},
                                           {"\u0958", "\u0915\u093C"},
                                           {"x\u0344", "\u1E8D\u0301"},
                                           {"a\u1AC1\u0301", "a\u1AC1\u0301"},  // younger than the reference's normalizer
                                           {"\u09C7\u09BE", "\u09CB"}};
    Buffer out = {0};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        buffer_clear(&out);
        unicode_nfc(pairs[i][0], strlen(pairs[i][0]), &out);
        CHECK_TEXT(out.data, pairs[i][1]);
        CHECK(unicode_is_nfc("plain \u00E9t\u00E9", 11));
    }
    buffer_free(&out);
}

// Merging as it is defined: the pair of lowest rank, the leftmost of equals, until there is none. Time O(n^2).
static size_t merge_naively(const Bpe *bpe, const uint8_t *word, size_t size, int32_t *ids) {
    size_t count = 0;
    for (size_t i = 0; i < size; i++) {
        ids[count] = bpe->byte_ids[word[i]];
        count += ids[count] >= 0;
    }
    for (;;) {
        const BpePair *best = NULL;
        size_t place = 0;
        for (size_t i = 0; i + 1 < count; i++) {
            const BpePair *pair = bpe_find(bpe, ids[i], ids[i + 1]);
            if (pair != NULL && (best == NULL || pair->rank < best->rank)) {
                best = pair;
                place = i;
            }
        }
        if (best == NULL) {
            return count;
        }
        ids[place] = best->id;
        memmove(ids + place + 1, ids + place + 2, (count - place - 2) * sizeof *ids);
        count--;
    }
}

// Merges by chance over `letters` letters: some pairs of tokens of the ones before, many with the same rank behind another.
static void random_merges(Bpe *bpe, int letters, int merges, uint64_t seed) {
    CHECK_OK(bpe_create(bpe, (size_t)merges));
    for (int byte = 0; byte < 256; byte++) {
        bpe->byte_ids[byte] = byte == 255 ? -1 : byte;  // one is left out
    }
    for (int i = 0; i < merges; i++) {
        Philox draw = philox(seed, 5, (uint64_t)i);
        int32_t side[2];
        for (int k = 0; k < 2; k++) {
            uint32_t any = draw.word[k] % (uint32_t)(letters + i);
            side[k] = any < (uint32_t)letters ? 'a' + (int32_t)any : 256 + (int32_t)any - letters;
        }
        bpe_add(bpe, side[0], side[1], i, 256 + i);
    }
}

// Words of 1 to 400 bytes of one to four letters, where ties are many: each against the definition.
static void test_merging(void) {
    BpeScratch scratch = {0};
    int64_t words = 0, wrong = 0;
    for (uint64_t seed = 0; seed < 40; seed++) {
        Bpe bpe;
        int letters = 1 + (int)(seed % 4);
        random_merges(&bpe, letters, seed % 3 == 0 ? 4 : 40, seed);
        for (uint64_t i = 0; i < 120; i++) {
            uint8_t word[400];
            int32_t ids[400], naive[400];
            size_t size = i < 60 ? 1 + philox(seed, 6, i).word[0] % 400 : 44 + i % 60;
            for (size_t k = 0; k < size; k++) {
                uint32_t any = philox(seed, 7 + i, k).word[0];
                word[k] = any % 97 == 0 ? 255 : (uint8_t)('a' + (any >> 8) % (uint32_t)letters);
            }
            size_t count = bpe_merge(&bpe, &scratch, word, size, ids), expected = merge_naively(&bpe, word, size, naive);
            wrong += count != expected || memcmp(ids, naive, count * sizeof *ids) != 0;
            words++;
        }
        bpe_free(&bpe);
    }
    CHECK(words > 4000);
    CHECK_I64(wrong, 0);
    bpe_scratch_free(&scratch);
}

// Whatever the bytes, even those that are no text: decoding gives them back, whole and in parts; and whatever the ids, those
// that are none of the vocabulary decode to nothing.
static void test_every_byte(void) {
    static const char *const names[] = {"llama3.json", "gpt4.json", "trained.json", "tiny.o200k.tiktoken"};
    for (int i = 0; i < 4; i++) {
        char *path = golden_path(names[i]);
        Tokenizer *tokenizer;
        if (CHECK_OK(tokenizer_load(path, &tokenizer))) {
            Encoder *encoder = encoder_create(tokenizer);
            Buffer text = {0}, back = {0}, alone = {0};
            Tokens ids = {0};
            for (uint64_t k = 0; k < 300; k++) {
                buffer_clear(&text);
                for (uint64_t n = 0; n < 1 + k % 97; n++) {
                    buffer_byte(&text, (char)(k < 256 && n == 0 ? k : philox(k, 3, n).word[0]));
                }
                ids.count = 0;
                buffer_clear(&back);
                encoder_encode(encoder, text.data, text.size, false, &ids);
                tokenizer_decode(tokenizer, ids.ids, ids.count, true, &back);
                CHECK(back.size == text.size && memcmp(back.data, text.data, text.size) == 0);
                for (size_t n = 0; n < ids.count; n++) {
                    CHECK(ids.ids[n] >= 0 && ids.ids[n] < tokenizer_vocabulary(tokenizer));
                }
            }
            // Every id decodes to its bytes, which encode and decode to the same; beyond the vocabulary there is nothing.
            for (int32_t id = -2; id < tokenizer_vocabulary(tokenizer) + 2; id++) {
                buffer_clear(&alone);
                buffer_reserve(&alone, 1);
                tokenizer_decode(tokenizer, &id, 1, true, &alone);
                CHECK((alone.size == 0) == (id < 0 || id >= tokenizer_vocabulary(tokenizer)));
                ids.count = 0;
                buffer_clear(&back);
                encoder_encode(encoder, alone.data, alone.size, true, &ids);
                tokenizer_decode(tokenizer, ids.ids, ids.count, true, &back);
                CHECK(back.size == alone.size && (alone.size == 0 || memcmp(back.data, alone.data, alone.size) == 0));
            }
            buffer_free(&text);
            buffer_free(&back);
            buffer_free(&alone);
            free(ids.ids);
            encoder_free(encoder);
            tokenizer_free(tokenizer);
        }
        free(path);
    }
}

// The tiny gpt2 ranks behind a line, with `more` at their end: the id that ends a document, or the message.
static void check_declared(const char *name, const char *first, const char *more, int32_t end_of_text, const char *declaration,
                           const char *message) {
    char *path = golden_path("tiny.gpt2.tiktoken");
    Buffer file = {0}, ranks = {0};
    Tokenizer *tokenizer;
    CHECK_OK(file_read(path, 1 << 20, &ranks));
    buffer_printf(&file, "%s%s%s", first, ranks.data, more);
    Error *error = tokenizer_load_bytes(name, file.data, file.size, &tokenizer);
    if (message != NULL) {
        CHECK_FAILS(error, message);
    } else if (CHECK_OK(error)) {
        CHECK_I64(tokenizer_end_of_text(tokenizer), end_of_text);
        CHECK_TEXT(tokenizer_declaration(tokenizer), declaration);
        // A copy under another name, with its declaration, is the same tokenizer.
        Buffer copy = {0};
        Tokenizer *again;
        buffer_printf(&copy, "%s%s", tokenizer_declaration(tokenizer), file.data);
        if (CHECK_OK(tokenizer_load_bytes("tokenizer.tiktoken", copy.data, copy.size, &again))) {
            CHECK(tokenizer_fingerprint(again) == tokenizer_fingerprint(tokenizer));
            tokenizer_free(again);
        }
        buffer_free(&copy);
        tokenizer_free(tokenizer);
    }
    buffer_free(&file);
    buffer_free(&ranks);
    free(path);
}

static void test_declared(void) {
    check_declared("a.gpt2.tiktoken", "", "", 400, "# encoding gpt2\n", NULL);
    check_declared("a.multilingual.tiktoken", "", "= 400\n", 401, "# encoding multilingual\n", NULL);  // a token without bytes
    check_declared("a.tiktoken", "# encoding cl100k\r\n", "", 400, "", NULL);
    check_declared("a.gpt2.tiktoken", "# encoding o200k end-of-text 512\n", "", 512, "", NULL);
    check_declared("a.tiktoken", "", "", 0, NULL, "end-of-text 400");
    check_declared("a.gpt2.tiktoken", "", "= 400\n= 401\n", 0, NULL, "have the same bytes");
    check_declared("a.gpt2.tiktoken", "", "== 400\n", 0, NULL, ":401: not the base64");
    static const char *const lines[] = {"#\n",
                                        "# encoding\n",
                                        "# encoding gpt3\n",
                                        "# encoding gpt2 \n",
                                        "#encoding gpt2\n",
                                        "# encoding gpt2 end-of-text\n",
                                        "# encoding gpt2 end-of-text -1\n",
                                        "# encoding gpt2 end-of-text 4194304\n",
                                        "# encoding gpt2 end-of-text 99999999999\n",
                                        "# encoding gpt2 end-of-text 500 x\n",
                                        "# encoding gpt2 end-of-text 0500\n"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        check_declared("a.gpt2.tiktoken", lines[i], "", 0, NULL, ":1: a line that begins with #");
    }
    check_declared("a.gpt2.tiktoken", "# encoding gpt2 end-of-text 399\n", "", 0, NULL, "end-of-text 399 is a rank");
    // A whole Whisper file, by the number of its ranks alone, where the merges of GPT-2 are at hand.
    const char *folder = getenv("ATHANOR_TOKENIZERS");
    char *path = folder == NULL ? NULL : path_join(folder, "gpt2.tiktoken");
    if (path != NULL && path_exists(path)) {
        Buffer file = {0};
        Tokenizer *tokenizer;
        CHECK_OK(file_read(path, 1 << 24, &file));
        buffer_text(&file, "= 50256\n");
        if (CHECK_OK(tokenizer_load_bytes("tokenizer.tiktoken", file.data, file.size, &tokenizer))) {
            CHECK_I64(tokenizer_end_of_text(tokenizer), 50257);
            CHECK_I64(tokenizer_vocabulary(tokenizer), 50258);
            CHECK_TEXT(tokenizer_declaration(tokenizer), "");
            tokenizer_free(tokenizer);
        }
        buffer_free(&file);
    }
    free(path);
}

// The merges tried for a word of `size` bytes that repeats `unit`.
static uint64_t merge_work(const Tokenizer *tokenizer, const char *unit, size_t size) {
    BpeScratch scratch = {0};
    Buffer word = {0};
    while (word.size < size) {
        buffer_text(&word, unit);
    }
    int32_t *ids = memory_new(word.size, sizeof *ids);
    CHECK(bpe_merge(&tokenizer->bpe, &scratch, (const uint8_t *)word.data, size, ids) > 0);
    uint64_t work = scratch.work;
    free(ids);
    buffer_free(&word);
    bpe_scratch_free(&scratch);
    return work;
}

static void test_adversarial(void) {
    char *path = golden_path("trained.json");
    Tokenizer *tokenizer;
    if (!CHECK_OK(tokenizer_load(path, &tokenizer))) {
        free(path);
        return;
    }
    static const char *const units[] = {"a", "ab", "the", "=", "----====", "\xE4\xBD\xA0"};
    for (int i = 0; i < 6; i++) {
        uint64_t once = merge_work(tokenizer, units[i], 60000), twice = merge_work(tokenizer, units[i], 120000);
        CHECK(twice <= 2 * once + once / 8 && once <= 4 * 60000);
    }
    // A megabyte each, through everything; what is quadratic would not come to an end here.
    char *qwen_path = golden_path("qwen.json");
    Tokenizer *qwen;
    if (CHECK_OK(tokenizer_load(qwen_path, &qwen))) {
        static const char *const texts[] = {"a", " ",      "aB",    "\n", " \n", "1", "'", "\u0301", "a\u0301\u0327",
                                            "<", "  left", "\u3042"};
        for (int i = 0; i < 12; i++) {
            Buffer text = {0};
            while (text.size < 1 << 20) {
                buffer_text(&text, texts[i]);
            }
            for (int k = 0; k < 2; k++) {
                Encoder *encoder = encoder_create(k ? qwen : tokenizer);
                Tokens whole = {0}, parts = {0};
                encoder_encode(encoder, text.data, text.size, true, &whole);
                feed_in_parts(encoder, &text, 3, 100000, true, &parts);
                CHECK(same_ids(&whole, &parts));
                free(whole.ids);
                free(parts.ids);
                encoder_free(encoder);
            }
            buffer_free(&text);
        }
        tokenizer_free(qwen);
    }
    free(qwen_path);
    tokenizer_free(tokenizer);
    free(path);
}

static void bad_file(const char *name, const char *text, const char *part) {
    Tokenizer *tokenizer;
    CHECK_FAILS(tokenizer_load_bytes(name, text, strlen(text), &tokenizer), part);
    CHECK(tokenizer == NULL);
}

#define BYTE_LEVEL "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false}, "
#define SMALL_VOCABULARY "\"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2}"

static void bad_json(const char *fields, const char *part) {
    char *text = memory_format("{%s}", fields);
    bad_file("t.json", text, part);
    free(text);
}

static void bad_model(const char *model, const char *part) {
    char *fields = memory_format(BYTE_LEVEL "\"model\": {%s}", model);
    bad_json(fields, part);
    free(fields);
}

static void bad_pre_tokenizer(const char *value, const char *part) {
    char *fields = memory_format("\"pre_tokenizer\": %s, \"model\": {" SMALL_VOCABULARY ", \"merges\": []}", value);
    bad_json(fields, part);
    free(fields);
}

// Files of nothing but blanks, or of zero bytes as a disk leaves them after a crash, in memory that ends with them.
static void test_nothing_in_it(void) {
    const char fills[] = {0, ' ', '\n'};
    for (size_t i = 0; i < sizeof fills; i++) {
        for (size_t size = 1; size <= 64; size += 21) {
            char *bytes = memory_zeroed(size, 1);
            memset(bytes, fills[i], size);
            Tokenizer *tokenizer;
            Error *error = tokenizer_load_bytes("t.json", bytes, size, &tokenizer);
            CHECK(error != NULL && strncmp(error->message, "t.json", 6) == 0 && strchr(error->message, '\n') == NULL);
            error_free(error);
            free(bytes);
        }
    }
}

static void test_bad_json(void) {
    bad_file("t.json", "", "t.json: this file is empty");
    bad_file("t.json", "\xEF\xBB\xBF{}", "a byte order mark");
    bad_file("t.json", "{\"model\": ", "t.json:1");
    bad_json("", "this is not a tokenizer.json");
    bad_json("\"model\": 3", "this is not a tokenizer.json");
    bad_json("\"model\": {\"type\": \"Unigram\"}", "a model of type Unigram");
    bad_json("\"model\": {\"type\": \"WordPiece\"}", "a model of type WordPiece");
    bad_json("\"model\": {\"byte_fallback\": true}", "byte_fallback");
    bad_json("\"model\": {\"dropout\": 0.1}", "dropout");
    bad_json("\"model\": {\"end_of_word_suffix\": \"</w>\"}", "end_of_word_suffix");
    bad_json("\"model\": {\"continuing_subword_prefix\": \"##\"}", "continuing_subword_prefix");
    bad_json("\"model\": {}", "no ByteLevel pre-tokenizer");
    bad_json("\"normalizer\": {\"type\": \"Lowercase\"}, \"model\": {}", "a normalizer of type Lowercase");
    bad_json(BYTE_LEVEL "\"decoder\": {\"type\": \"Metaspace\"}, \"model\": {}", "a decoder of type Metaspace");
    bad_model("\"merges\": []", "\"vocab\" is missing");
    bad_model(SMALL_VOCABULARY, "\"merges\" is missing");
    bad_model("\"vocab\": {\"a\": -1}, \"merges\": []", "the id of token \"a\"");
    bad_model("\"vocab\": {\"a\": 99999999}, \"merges\": []", "the id of token \"a\"");
    bad_model("\"vocab\": {\"a\": 1, \"b\": 1}, \"merges\": []", "two tokens have the id 1");
    bad_model(SMALL_VOCABULARY ", \"merges\": [\"ab\"]", "merge 0 is neither");
    bad_model(SMALL_VOCABULARY ", \"merges\": [\"a b c\"]", "merge 0 is neither");
    bad_model(SMALL_VOCABULARY ", \"merges\": [[\"a\"]]", "merge 0 is neither");
    bad_model(SMALL_VOCABULARY ", \"merges\": [\"a b\", \"b a\"]", "merge 1, which makes \"ba\"");
    bad_model(SMALL_VOCABULARY ", \"merges\": [], \"unk_token\": \"a\"", "lacks byte 0x00");
    bad_pre_tokenizer("{\"type\": \"Metaspace\"}", "a pre-tokenizer of type Metaspace");
    bad_pre_tokenizer("{\"type\": \"Split\", \"pattern\": {\"Regex\": \"a\"}, \"behavior\": \"removed\"}",
                      "the behavior \"removed\"");
    bad_pre_tokenizer("{\"type\": \"Split\", \"pattern\": {}, \"behavior\": \"Isolated\"}", "neither a Regex nor a String");
    bad_pre_tokenizer("{\"type\": \"Split\", \"pattern\": {\"Regex\": \"(a\"}, \"behavior\": \"Isolated\"}", "missing closing");
    bad_pre_tokenizer("{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"ByteLevel\", \"add_prefix_space\": false}, "
                      "{\"type\": \"Digits\", \"individual_digits\": true}]}",
                      "(Digits) after ByteLevel");
    bad_json(BYTE_LEVEL "\"added_tokens\": [{\"id\": 7, \"content\": \"<s>\"}], \"model\": {" SMALL_VOCABULARY
                        ", \"merges\": []}",
             "\"<s>\" has the id 7, but by the vocabulary and the tokens before it must be 3");
    bad_json(BYTE_LEVEL "\"added_tokens\": [{\"id\": 3}], \"model\": {" SMALL_VOCABULARY ", \"merges\": []}", "\"content\"");
}

// What an expression must not be, each with its reason.
static void test_bad_expressions(void) {
    static const char *const bad[][2] = {
        {"(a", "missing closing parenthesis"},
        {"a)", "unmatched closing parenthesis at byte 1"},
        {"[a", "missing terminating ]"},
        {"[]a]", "an empty set, at byte 0"},
        {"[z-a]", "a later character"},
        {"[a-\\d]", "a later character"},
        {"[\\w-x]", "a - behind a class"},
        {"[[:letter:]]", "not POSIX's"},
        {"*a", "nothing to repeat at byte 0"},
        {"a|+", "nothing to repeat at byte 2"},
        {"^*", "a repeat of a place, at byte 1"},
        {"(?=a)?", "a repeat of a place, at byte 5"},
        {"a+?*", "lazy or possessive repeat, at byte 3"},
        {"a{3,2}", "an interval like this"},
        {"a{65536}", "an interval like this"},
        {"(a)\\1", "\\1 at byte 3"},
        {"\\Ka", "\\K at byte 0"},
        {"\\p{Lx}", "\\p{Lx}, at byte 0"},
        {"\\pL", "without the braces"},
        {"\\xe9", "write \\x{HH}"},
        {"\\x{110000}", "no character"},
        {"a\\", "a backslash at the end"},
        {"(?s:a)", "a group of this kind"},
        {"(?P<n>a)", "a group of this kind"},
        {"(?i)ss", "U+00DF"},
        {"(?i:a[b-\u0100])", "U+00DF"},
        {"(?i:\\x{df})", "is also \"ss\""},
        {"\xff", "not UTF-8 at byte 0"},
        {"(?<=a+)b", "PCRE2"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        Expression *expression;
        if (!CHECK_FAILS(expression_create(bad[i][0], strlen(bad[i][0]), &expression), bad[i][1])) {
            printf("%s\n", bad[i][0]);
        }
    }
    Buffer deep = {0};
    Expression *expression;
    for (int i = 0; i < 2000; i++) {
        buffer_text(&deep, i % 2 ? "(" : "(?i)");
    }
    CHECK_FAILS(expression_create(deep.data, deep.size, &expression), "nesting");
    buffer_clear(&deep);
    for (uint32_t code = 0x4E00; code < 0x4E00 + 300; code++) {
        char bytes[4];
        buffer_append(&deep, bytes, (size_t)utf8_encode(code, bytes));
    }
    CHECK_FAILS(expression_create(deep.data, deep.size, &expression), "more than 256 kinds of characters");
    buffer_free(&deep);
}

static void test_bad_tiktoken(void) {
    bad_file("x.gpt2.tiktoken", "hello", "x.gpt2.tiktoken:1: not the base64");
    bad_file("x.gpt2.tiktoken", "IQ== 0\nIg= 1\n", "x.gpt2.tiktoken:2: not the base64");
    bad_file("x.gpt2.tiktoken", "IQ== 0\nIg== x\n", ":2: the rank");
    bad_file("x.gpt2.tiktoken", "IQ== 99999999999999999999\n", ":1: the rank");
    bad_file("x.gpt2.tiktoken", "IQ== 0\nIg== 0\n", "rank 0 stands twice");
    bad_file("x.gpt2.tiktoken", "IQ== 0\nIQ== 1\n", "have the same bytes");
    bad_file("x.gpt2.tiktoken", "IQ== 0\n", "the byte 0x00 has no rank");
    bad_file("x.tiktoken", "IQ== 0\n", "tell no known encoding");
    Tokenizer *tokenizer;
    CHECK_FAILS(tokenizer_load("/nowhere/tokenizer.json", &tokenizer), "/nowhere/tokenizer.json");
}

int main(void) {
    RUN(test_golden);
    RUN(test_real);
    RUN(test_parts);
    RUN(test_round_trip);
    RUN(test_decoding);
    RUN(test_golden_parts);
    RUN(test_golden_classes);
    RUN(test_unicode);
    RUN(test_merging);
    RUN(test_every_byte);
    RUN(test_declared);
    RUN(test_adversarial);
    RUN(test_nothing_in_it);
    RUN(test_bad_json);
    RUN(test_bad_expressions);
    RUN(test_bad_tiktoken);
    return check_report();
}
