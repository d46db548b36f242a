// data/tokens/corpus, block_file and kept_sums: nothing of a corpus is believed. Every byte of what describes it, every block
// of its tokens, its tokenizer and the names of its files are changed, one at a time, and each change must be refused at
// opening, or by the loader when it comes to the place.
#include "core/json.h"
#include "core/log.h"
#include "core/philox.h"
#include "data/tokens/kept_sums.h"
#include "data/tokens/loader.h"
#include "tests/support/check.h"
#include "tests/support/corpora.h"

#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SETS = 2, LENGTH = 64, BIG = 90001, VOCABULARY = 257 };

static const char *folder_here(void) {
    static const char *folder;
    return folder = folder != NULL ? folder : check_folder();
}

static char *in_folder(const char *name) {
    return path_join(folder_here(), name);
}

static char *const names[SETS] = {"ArXiv", "Pile-CC"};

// Writes documents of 1 to 300 tokens, each closed by 0.
static void write_tokens(const char *prefix, uint64_t seed, int64_t tokens, CorpusSet *set) {
    TokenWriter *writer;
    CHECK_OK(token_writer_create(prefix, 2, &writer));
    for (int64_t at = 0, length; at < tokens; at += length) {
        int32_t document[300];
        length = 1 + (int64_t)(philox_u64(seed, 1, (uint64_t)at) % 300);
        length = length < tokens - at ? length : tokens - at;
        for (int64_t i = 0; i < length; i++) {
            document[i] = i + 1 < length ? 1 + (int32_t)(philox_u64(seed, 2, (uint64_t)(at + i)) % 256) : 0;
        }
        CHECK_OK(token_writer_append(writer, document, (size_t)length));
        CHECK_OK(token_writer_end_document(writer));
        set->documents++;
    }
    TokenSums sums = {0};
    CHECK_OK(token_writer_commit_sums(writer, &sums));
    set->tokens = tokens;
    set->text_bytes = tokens - set->documents;
    set->checksum = sums.bin;
    set->index_checksum = sums.idx;
    set->sums_checksum = sums.sums;
}

// Makes a corpus of two sets of equal size in a fresh folder.
static char *make_corpus(const char *name, int64_t tokens) {
    char *folder = in_folder(name), *tokenizer = path_join(folder, "tokenizer.json");
    CHECK_OK(folder_create(folder));
    write_byte_tokenizer(tokenizer);
    CorpusSet sets[SETS] = {0};
    for (int i = 0; i < SETS; i++) {
        sets[i].name = names[i];
        sets[i].prefix = memory_format("%s/%s_text_document", folder, names[i]);
        write_tokens(sets[i].prefix, (uint64_t)i, tokens, &sets[i]);
    }
    Tokenizer *loaded = NULL;
    CHECK_OK(tokenizer_load(tokenizer, &loaded));
    CorpusInput input = {"00\xFF.jsonl.zst", 123};
    Corpus corpus = {.sets = sets,
                     .set_count = SETS,
                     .vocabulary = VOCABULARY,
                     .end_of_text = 0,
                     .tokenizer_path = tokenizer,
                     .tokenizer_fingerprint = tokenizer_fingerprint(loaded),
                     .inputs = &input,
                     .input_count = 1,
                     .bad_lines = 2,
                     .job = 7};
    CHECK_OK(corpus_write_manifest(&corpus, folder));
    for (int i = 0; i < SETS; i++) {
        free(sets[i].prefix);
    }
    tokenizer_free(loaded);
    free(tokenizer);
    return folder;
}

static Buffer read_whole(const char *path) {
    Buffer bytes = {0};
    CHECK_OK(file_read(path, 1 << 24, &bytes));
    return bytes;
}

static void put_back(const char *path, Buffer *bytes) {
    CHECK_OK(file_write(path, bytes->data, bytes->size));
    buffer_free(bytes);
}

// Draws an epoch of every set. The first error, or NULL.
static Error *draw_epoch(const Corpus *corpus) {
    Order *order;
    TRY(order_create(corpus, LENGTH, NULL, NULL, 5, &order));
    LoaderOptions options = {.order = order,
                             .corpus = corpus,
                             .vocabulary = VOCABULARY,
                             .sequences = 8,
                             .length = LENGTH,
                             .micro_batches = 1,
                             .ranks = 1,
                             .prefetch = 2,
                             .documents_apart = true};
    int64_t samples = 0;
    for (int d = 0; d < corpus->set_count; d++) {
        samples += order_set_samples(order, d);
    }
    Loader *loader = loader_create(&options);
    Error *error = NULL;
    const Batch *batch;
    for (int64_t i = 0; i < samples + samples / 4 && error == NULL; i += options.sequences) {
        error = loader_next(loader, &batch);
    }
    loader_destroy(loader);
    order_free(order);
    return error;
}

// What training does with a corpus: opens it, loads its tokenizer, draws from it.
static Error *train_on(const char *path) {
    Corpus corpus;
    Tokenizer *tokenizer = NULL;
    TRY(corpus_open(path, &corpus));
    Error *error = corpus_load_tokenizer(&corpus, &tokenizer);
    error = error == NULL ? draw_epoch(&corpus) : error;
    tokenizer_free(tokenizer);
    corpus_close(&corpus);
    return error;
}

static Error *verify(const char *path) {
    Corpus corpus;
    TRY(corpus_open(path, &corpus));
    Error *error = corpus_verify(&corpus);
    corpus_close(&corpus);
    return error;
}

// What changes must not do: nobody refuses, neither training nor inspection.
static void refused(const char *folder, const char *what, const char *part) {
    Error *error = train_on(folder);
    if (error == NULL || strstr(error->message, part) == NULL) {
        fprintf(stderr, "%s: '%s' is expected, not '%s'\n", what, part, error != NULL ? error->message : "no error");
        CHECK(false);
    }
    error_free(error);
    error = verify(folder);
    CHECK(error != NULL);
    error_free(error);
}

static void test_open(void) {
    char *folder = make_corpus("open", BIG);
    Corpus corpus;
    CHECK_OK(corpus_open(folder, &corpus));
    CHECK(corpus.set_count == SETS && corpus.sets[1].tokens == BIG && corpus.vocabulary == VOCABULARY &&
          corpus.end_of_text == 0);
    CHECK(corpus.bad_lines == 2 && corpus.input_count == 1 && corpus.job == 7);
    CHECK_TEXT(corpus.sets[0].name, "ArXiv");
    CHECK_TEXT(corpus.inputs[0].name, "00?.jsonl.zst");
    CHECK_OK(corpus_verify(&corpus));
    CHECK_OK(draw_epoch(&corpus));
    // An epoch touched every block, and a second reads only what it uses.
    BlockTraffic first = block_file_traffic(corpus.sets[0].file.bin);
    CHECK_OK(draw_epoch(&corpus));
    BlockTraffic second = block_file_traffic(corpus.sets[0].file.bin);
    CHECK_I64(second.taken - first.taken, second.asked - first.asked);
    corpus.vocabulary = 255;
    CHECK_FAILS(corpus_verify(&corpus), "says a vocabulary of 255");
    corpus_close(&corpus);

    // A token file alone is a corpus of one set.
    char *prefix = path_join(folder, "ArXiv_text_document");
    CHECK_OK(corpus_open(prefix, &corpus));
    CHECK(corpus.set_count == 1 && corpus.vocabulary == -1 && corpus.sets[0].text_bytes == -1 && corpus.fingerprint != 0);
    CHECK(corpus_matches(&corpus, corpus.fingerprint) && !corpus_matches(&corpus, 1));
    CHECK_TEXT(corpus.sets[0].name, "ArXiv_text_document");
    CHECK_OK(corpus_verify(&corpus));
    corpus_close(&corpus);
    CHECK_FAILS(corpus_open("/nowhere/corpus", &corpus), "there is no corpus /nowhere/corpus");
    CHECK_FAILS(corpus_open(folder_here(), &corpus), "it has no manifest.json");
    free(prefix);
    free(folder);
}

// What cannot be looked at is not what is not there.
static void test_unreadable(void) {
    char *loop = in_folder("loop"), *inside = path_join(loop, "corpus"), *folder = in_folder("unreadable");
    char *manifest = path_join(folder, CORPUS_MANIFEST), *name = memory_new(5001, 1);
    Corpus corpus;
    CHECK(symlink(loop, loop) == 0);
    CHECK_FAILS(corpus_open(loop, &corpus), "Too many levels of symbolic links");
    CHECK_FAILS(corpus_open(inside, &corpus), "Too many levels of symbolic links");
    memset(name, 'x', 5000);
    name[5000] = 0;
    CHECK_FAILS(corpus_open(name, &corpus), "File name too long");
    CHECK_OK(folder_create(folder));
    CHECK(symlink(manifest, manifest) == 0);
    CHECK_FAILS(corpus_open(folder, &corpus), "Too many levels of symbolic links");
    CHECK(unlink(manifest) == 0 && mkdir(manifest, 0777) == 0);
    Error *error = corpus_open(folder, &corpus);
    CHECK(error != NULL && error->kind != ERROR_MISSING);
    error_free(error);
    free(loop);
    free(inside);
    free(folder);
    free(manifest);
    free(name);
}

// Replaces `from` by `to` in the manifest and seals it again, as a program would that does not know better.
static void resealed(const char *folder, const char *from, const char *to, const char *part) {
    char *path = path_join(folder, CORPUS_MANIFEST);
    Buffer text = read_whole(path), other = {0};
    char *at = strstr(text.data, from);
    if (CHECK(at != NULL)) {
        buffer_append(&other, text.data, (size_t)(at - text.data));
        buffer_text(&other, to);
        buffer_text(&other, at + strlen(from));
        CHECK_OK(file_write(path, other.data, other.size));
        json_t *document = json_loadb(other.data, other.size, 0, NULL);
        if (document != NULL) {
            json_seal(document);
            CHECK_OK(json_write_file(path, document));
            json_decref(document);
        }
        refused(folder, to, part);
    }
    put_back(path, &text);
    buffer_free(&other);
    free(path);
}

static void test_manifest(void) {
    char *folder = make_corpus("manifest", 1000);
    CHECK_OK(train_on(folder));
    resealed(folder, "athanor corpus", "another corpus", "is no corpus: its format is 'another corpus'");
    resealed(folder, "\"version\": 2", "\"version\": 3", "has version 3");
    resealed(folder, "\"ArXiv_text", "\"../ArXiv_text", "it must be a file's name without a folder");
    resealed(folder, "\"tokens\": 1000", "\"tokens\": 1001", "they do not belong together");
    resealed(folder, "\"tokens\": 1000", "\"tokens\": -1", "\"tokens\" is -1");
    resealed(folder, "\"vocabulary\": 257", "\"vocabulary\": \"257\"", "\"vocabulary\" must be a whole number");
    resealed(folder, "\"vocabulary\": 257", "\"vocabulary\": 258", "the fingerprint does not belong");
    resealed(folder, "\"end_of_text\": 0", "\"end_of_text\": 1", "the fingerprint does not belong");
    resealed(folder, "\"name\": \"ArXiv\"", "\"name\": \"Zoo\"", "not sorted");
    resealed(folder, "\"name\": \"ArXiv\"", "\"name\": \"Arxiv\"", "the fingerprint does not belong");
    resealed(folder, "\"tokenizer.json\"", "\"tokenizer.other\"", "tokenizer.other is missing");
    resealed(folder, "{", "[", "not valid JSON");
    // A manifest that claims to be older loses its seal, and its fingerprint is no longer the right one.
    resealed(folder, "\"version\": 2", "\"version\": 1", "the fingerprint does not belong");
    CHECK_OK(train_on(folder));
    free(folder);
}

// One bit of each byte of every file but the tokens. Of the manifest a change that JSON does not see may pass.
static void test_every_byte(void) {
    static const char *const files[] = {CORPUS_MANIFEST, "ArXiv_text_document.idx", "Pile-CC_text_document.idx",
                                        "ArXiv_text_document.sums", "Pile-CC_text_document.sums"};
    char *folder = make_corpus("bytes", 2000);
    Corpus corpus;
    int64_t passed = 0, tried = 0;
    for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
        char *path = path_join(folder, files[f]);
        Buffer bytes = read_whole(path);
        json_t *before = f == 0 ? json_loadb(bytes.data, bytes.size, 0, NULL) : NULL;
        for (size_t i = 0; i < bytes.size; i++, tried++) {
            bytes.data[i] ^= (char)(1 << i % 7);
            FILE *file = fopen(path, "wb");  // not durable: thousands of them
            CHECK(file != NULL && fwrite(bytes.data, 1, bytes.size, file) == bytes.size && fclose(file) == 0);
            Error *error = corpus_open(folder, &corpus);
            if (error == NULL) {
                json_t *after = f == 0 ? json_loadb(bytes.data, bytes.size, 0, NULL) : NULL;
                CHECK(after != NULL && json_equal(before, after));
                json_decref(after);
                corpus_close(&corpus);
                passed++;
            }
            error_free(error);
            bytes.data[i] ^= (char)(1 << i % 7);
        }
        json_decref(before);
        put_back(path, &bytes);
        free(path);
    }
    printf("%lld bytes changed, %lld of them blanks that JSON does not see\n", (long long)tried, (long long)passed);
    CHECK_OK(train_on(folder));
    free(folder);
}

// Another valid value in the place of a number or text; NULL for what has parts.
static json_t *another_value(const json_t *value) {
    if (json_is_integer(value)) {
        return json_integer(json_integer_value(value) + 1);
    }
    if (!json_is_string(value)) {
        return NULL;
    }
    char *text = memory_string(json_string_value(value)), *last = text + strlen(text) - 1;
    *last = *last == '1' ? '2' : '1';
    json_t *changed = json_string(text);
    free(text);
    return changed;
}

// Every number and every text of the manifest, each made another valid one, and each left out.
static void change_fields(const char *path, const char *folder, json_t *document, json_t *at, int *fields) {
    const char *key;
    json_t *value;
    size_t index;
    Strings keys = {0};
    json_object_foreach(at, key, value) {
        strings_add(&keys, key);
    }
    for (size_t k = 0; k < keys.count; k++) {
        value = json_object_get(at, keys.items[k]);
        json_t *changed = another_value(value);
        if (changed == NULL) {
            change_fields(path, folder, document, value, fields);
            continue;
        }
        json_incref(value);
        json_object_set_new(at, keys.items[k], changed);
        CHECK_OK(json_write_file(path, document));
        refused(folder, keys.items[k], "manifest");
        json_object_del(at, keys.items[k]);
        CHECK_OK(json_write_file(path, document));
        refused(folder, keys.items[k], "manifest");
        json_object_set_new(at, keys.items[k], value);
        ++*fields;
    }
    strings_free(&keys);
    json_array_foreach(at, index, value) {
        change_fields(path, folder, document, value, fields);
    }
}

static void test_every_field(void) {
    char *folder = make_corpus("fields", 1000), *path = path_join(folder, CORPUS_MANIFEST);
    Buffer text = read_whole(path);
    json_t *document = json_loadb(text.data, text.size, 0, NULL);
    int fields = 0;
    change_fields(path, folder, document, document, &fields);
    CHECK_I64(fields, 4 + 4 + SETS * 8 + 2 + 3);
    json_decref(document);
    put_back(path, &text);
    CHECK_OK(train_on(folder));
    free(folder);
    free(path);
}

// Flips a bit of the file in place.
static void flip(const char *path, int64_t at) {
    FILE *file = fopen(path, "r+b");
    int byte = -1;
    CHECK(file != NULL && fseek(file, (long)at, SEEK_SET) == 0 && (byte = fgetc(file)) >= 0 &&
          fseek(file, (long)at, SEEK_SET) == 0 && fputc(byte ^ 4, file) >= 0 && fclose(file) == 0);
}

// One bit of every block of every set: its first byte, its last, one between. The loader comes to it and names file and bytes.
static void test_every_block(void) {
    char *folder = make_corpus("blocks", BIG);
    int blocks = 0;
    for (int d = 0; d < SETS; d++) {
        char *path = memory_format("%s/%s_text_document.bin", folder, names[d]);
        for (int64_t from = 0, end; from < 2 * BIG; from = end, blocks++) {
            end = from + BLOCK_BYTES < 2 * BIG ? from + BLOCK_BYTES : 2 * BIG;
            int64_t places[3] = {from, from + (int64_t)(philox_u64(9, 9, (uint64_t)from) % (uint64_t)(end - from)), end - 1};
            char *part = memory_format("%s_text_document.bin is damaged: its bytes %lld to %lld", names[d], (long long)from,
                                       (long long)end - 1);
            for (int i = 0; i < 3; i++) {
                flip(path, places[i]);
                refused(folder, "a block", part);
                flip(path, places[i]);
            }
            free(part);
        }
        free(path);
    }
    CHECK_I64(blocks, 2 * (2 * BIG / BLOCK_BYTES + 1));
    CHECK_OK(train_on(folder));
    free(folder);
}

static void swap(const char *folder, const char *kind) {
    char *a = memory_format("%s/%s_text_document.%s", folder, names[0], kind), *c = path_join(folder, "swap");
    char *b = memory_format("%s/%s_text_document.%s", folder, names[1], kind);
    CHECK(rename(a, c) == 0 && rename(b, a) == 0 && rename(c, b) == 0);
    free(a);
    free(b);
    free(c);
}

// Files change places, alone and together: all three would be another corpus under the old names.
static void test_swaps(void) {
    static const char *const kinds[] = {"bin", "idx", "sums"};
    char *folder = make_corpus("swaps", BIG);
    for (int which = 1; which < 8; which++) {
        for (int twice = 0; twice < 2; twice++) {
            for (int i = 0; i < 3; i++) {
                if ((which >> i & 1) != 0) {
                    swap(folder, kinds[i]);
                }
            }
            if (twice == 0) {
                refused(folder, "files that changed places", "_text_document.");
            }
        }
    }
    CHECK_OK(train_on(folder));
    free(folder);
}

static void test_tokenizer(void) {
    char *folder = make_corpus("tokenizer", 1000), *path = path_join(folder, "tokenizer.json");
    Buffer bytes = read_whole(path), other = {0};
    // Two ids change places: each is as good as before, and every text becomes other ids.
    buffer_append(&other, bytes.data, bytes.size);
    char *a = strstr(other.data, ": 98,"), *b = strstr(other.data, ": 99,");
    if (CHECK(a != NULL && b != NULL)) {
        a[3] = '9';
        b[3] = '8';
        CHECK_OK(file_write(path, other.data, other.size));
        refused(folder, "another tokenizer", "is not the tokenizer that made");
    }
    CHECK_OK(file_write(path, "{}", 2));
    refused(folder, "no tokenizer", "tokenizer.json");
    CHECK(unlink(path) == 0);
    refused(folder, "a missing tokenizer", "tokenizer.json is missing");
    put_back(path, &bytes);
    CHECK_OK(train_on(folder));
    buffer_free(&other);
    free(folder);
    free(path);
}

// Files that are cut before they are opened, and while they are in use.
static void test_truncated(void) {
    static const char *const kinds[] = {"bin", "idx", "sums"};
    char *folder = make_corpus("cut", BIG);
    for (int i = 0; i < 3; i++) {
        char *path = memory_format("%s/%s_text_document.%s", folder, names[1], kinds[i]);
        Buffer bytes = read_whole(path);
        for (size_t size = 0; size < bytes.size; size += bytes.size / 7 + 1) {
            CHECK_OK(file_write(path, bytes.data, size));
            refused(folder, kinds[i], path);
        }
        CHECK(unlink(path) == 0);
        refused(folder, kinds[i], path);
        put_back(path, &bytes);
        free(path);
    }
    Corpus corpus;
    CHECK_OK(corpus_open(folder, &corpus));
    char *path = memory_format("%s/%s_text_document.bin", folder, names[1]);
    CHECK(truncate(path, BIG) == 0);
    CHECK_FAILS(draw_epoch(&corpus), "was cut off while it was in use");
    corpus_close(&corpus);
    free(path);
    free(folder);
}

// A corpus as version 1 wrote it: neither sums nor a seal.
static void make_older(const char *folder) {
    char *path = path_join(folder, CORPUS_MANIFEST);
    Buffer text = read_whole(path);
    json_t *document = json_loadb(text.data, text.size, 0, NULL), *set;
    size_t i;
    Corpus corpus;
    CHECK_OK(corpus_open(folder, &corpus));
    json_object_set_new(document, "version", json_integer(1));
    json_object_set_new(document, "fingerprint", json_hex64(corpus_fingerprint_before(&corpus)));
    json_object_del(document, "checksum");
    json_array_foreach(json_object_get(document, "sets"), i, set) {
        json_object_del(set, "sums_checksum");
    }
    CHECK_OK(json_write_file(path, document));
    corpus_close(&corpus);
    json_decref(document);
    buffer_free(&text);
    free(path);
}

// Such a corpus opens, is the same to a run, and what its fingerprint leaves out is compared with the tokenizer.
static void test_older(void) {
    char *folder = make_corpus("older", BIG), *path = path_join(folder, CORPUS_MANIFEST);
    Corpus newer, older;
    CHECK_OK(corpus_open(folder, &newer));
    make_older(folder);
    CHECK_OK(corpus_open(folder, &older));
    CHECK_OK(corpus_verify(&older));
    CHECK(older.sets[0].sums_checksum == 0 && older.fingerprint == newer.fingerprint);
    uint64_t before = corpus_fingerprint_before(&older);
    CHECK(before != older.fingerprint && corpus_matches(&older, before) && corpus_matches(&newer, before));
    CHECK(!corpus_matches(&older, before + 1));
    // The order of an older version's run, from the older fingerprint.
    Order *order, *as_before;
    CHECK_OK(order_create(&older, LENGTH, NULL, NULL, 5, &order));
    Corpus then = older;
    then.fingerprint = before;
    CHECK_OK(order_create(&then, LENGTH, NULL, NULL, 5, &as_before));
    CHECK(order_fingerprint(order) != order_fingerprint(as_before));
    CHECK(order_matches(order, order_fingerprint(as_before)) && order_matches(order, order_fingerprint(order)));
    CHECK(!order_matches(order, order_fingerprint(order) + 1));
    order_free(as_before);
    CHECK_OK(order_create(&older, LENGTH, NULL, NULL, 6, &as_before));
    CHECK(!order_matches(order, order_fingerprint(as_before)));
    order_free(as_before);
    order_free(order);
    corpus_close(&newer);
    corpus_close(&older);

    static const char *const changes[][2] = {{"\"end_of_text\": 0", "\"end_of_text\": 3"},
                                             {"\"vocabulary\": 257", "\"vocabulary\": 256"}};
    for (int i = 0; i < 2; i++) {
        Buffer text = read_whole(path), other = {0};
        char *at = strstr(text.data, changes[i][0]);
        buffer_append(&other, text.data, (size_t)(at - text.data));
        buffer_text(&other, changes[i][1]);
        buffer_text(&other, at + strlen(changes[i][0]));
        CHECK_OK(file_write(path, other.data, other.size));
        refused(folder, changes[i][1], "the manifest was changed");
        put_back(path, &text);
        buffer_free(&other);
    }
    CHECK_OK(train_on(folder));
    free(folder);
    free(path);
}

enum { FOREIGN = 1 << 20, FOREIGN_BLOCKS = 2 * FOREIGN / BLOCK_BYTES };

// Opens a token file of others as a run does; what rank `rank` reads is blocks [first, end).
static Error *read_foreign(const char *prefix, const char *folder, int rank, int64_t first, int64_t end, bool save) {
    Corpus corpus;
    KeptSums *kept;
    int32_t tokens[4];
    TRY(corpus_open(prefix, &corpus));
    Error *error = kept_sums_open(&corpus, folder, rank, &kept);
    for (int64_t b = first; b < end && error == NULL; b++) {
        error = token_file_read(&corpus.sets[0].file, b * BLOCK_BYTES / 2 + 17, 4, tokens);
    }
    if (error == NULL && save) {
        error = kept_sums_save(kept);
    }
    kept_sums_close(kept);
    corpus_close(&corpus);
    return error;
}

// A place of the block that the fingerprint's 64 samples do not cover.
static int64_t unseen(int64_t block) {
    for (int64_t at = block * BLOCK_BYTES;; at++) {
        bool seen = false;
        for (int64_t i = 0; i < 64; i++) {
            int64_t from = (2 * FOREIGN - 4096) / 63 * i;
            seen = seen || (at >= from && at < from + 4096);
        }
        if (!seen) {
            return at;
        }
    }
}

// Two ranks read, and keep, what they read; a third finds every change of it, whoever it was that read it.
static void test_kept(void) {
    char *prefix = in_folder("foreign"), *bin = in_folder("foreign.bin"), *folder = in_folder("kept/sums");
    char *file = path_join(folder, "rank-00000.sums");
    CorpusSet set = {0};
    write_tokens(prefix, 3, FOREIGN, &set);
    CHECK_OK(read_foreign(prefix, folder, 0, 0, 0, true));
    CHECK(!path_exists(folder));  // nothing was read
    CHECK_OK(read_foreign(prefix, folder, 0, 0, 20, true));
    CHECK_OK(read_foreign(prefix, folder, 1, 10, 50, true));
    Buffer alone = read_whole(file);
    CHECK_I64((int64_t)alone.size, 24 + 24 + 16 * 20);
    buffer_free(&alone);
    for (int64_t b = 0; b < FOREIGN_BLOCKS; b += b < 52 ? 1 : 5) {
        flip(bin, unseen(b));
        char *part = memory_format("foreign.bin is damaged: its bytes %lld to", (long long)b * BLOCK_BYTES);
        if (b < 50) {
            CHECK_FAILS(read_foreign(prefix, folder, 2, 0, FOREIGN_BLOCKS, true), part);
        } else {
            CHECK_OK(read_foreign(prefix, folder, 2, 0, FOREIGN_BLOCKS, false));  // nobody has read it yet
        }
        flip(bin, unseen(b));
        free(part);
    }
    // What is in the samples changes the fingerprint, by which a resume refuses the corpus.
    Corpus before, after;
    CHECK_OK(corpus_open(prefix, &before));
    flip(bin, 5);
    CHECK_OK(corpus_open(prefix, &after));
    CHECK(!corpus_matches(&after, before.fingerprint));
    flip(bin, 5);
    corpus_close(&before);
    corpus_close(&after);

    // A rank that goes on adds to its file, and what it adds counts.
    CHECK_OK(read_foreign(prefix, folder, 0, 45, 60, true));
    alone = read_whole(file);
    CHECK_I64((int64_t)alone.size, 24 + 2 * 24 + 16 * (20 + 10));
    flip(bin, unseen(55));
    CHECK_FAILS(read_foreign(prefix, folder, 5, 0, 60, false), "when this run first read them");

    // A rank that saw other bytes than the others, which its file tells.
    char *other = in_folder("other/sums"), *theirs = path_join(other, "rank-00000.sums"),
         *moved = path_join(folder, "rank-00009.sums");
    CHECK_OK(read_foreign(prefix, other, 0, 50, 60, true));
    flip(bin, unseen(55));
    Buffer bytes = read_whole(theirs);
    CHECK_OK(file_write(moved, bytes.data, bytes.size));
    CHECK_FAILS(read_foreign(prefix, folder, 0, 0, 60, false), "rank-00009.sums: block 55 of");
    CHECK(unlink(moved) == 0);

    log_set_rank(1, 2);  // what it says of each is not for here
    // Cut anywhere, or a byte changed: less is known, and nothing is taken for damage that is none.
    for (size_t size = 0; size < alone.size; size += 1 + size % 5) {
        CHECK_OK(file_write(file, alone.data, size));
        CHECK_OK(read_foreign(prefix, folder, 0, 0, FOREIGN_BLOCKS, false));
        if (size % 3 == 0) {
            CHECK_OK(read_foreign(prefix, folder, 0, 0, FOREIGN_BLOCKS, true));
            flip(bin, unseen(3));
            CHECK_FAILS(read_foreign(prefix, folder, 0, 0, FOREIGN_BLOCKS, false), "when this run first read them");
            flip(bin, unseen(3));
        }
    }
    for (size_t i = 0; i < alone.size; i++) {
        alone.data[i] ^= 16;
        FILE *out = fopen(file, "wb");
        CHECK(out != NULL && fwrite(alone.data, 1, alone.size, out) == alone.size && fclose(out) == 0);
        CHECK_OK(read_foreign(prefix, folder, 0, 0, FOREIGN_BLOCKS, false));
        alone.data[i] ^= 16;
    }
    log_set_rank(0, 1);
    buffer_free(&alone);
    buffer_free(&bytes);
    free(other);
    free(theirs);
    free(moved);
    free(prefix);
    free(bin);
    free(folder);
    free(file);
}

// A save that fails is made up for by the next one. An older corpus keeps sums too, a corpus with sums none.
static void test_kept_later(void) {
    char *folder = make_corpus("kept-older", BIG), *sums = in_folder("later/sums"), *above = in_folder("later");
    Corpus corpus;
    KeptSums *kept;
    CHECK_OK(corpus_open(folder, &corpus));
    CHECK_OK(kept_sums_open(&corpus, sums, 0, &kept));
    CHECK(kept == NULL);
    corpus_close(&corpus);
    make_older(folder);
    CHECK_OK(corpus_open(folder, &corpus));
    CHECK_OK(kept_sums_open(&corpus, sums, 0, &kept));
    CHECK_OK(draw_epoch(&corpus));
    CHECK_OK(file_write(above, "a file", 6));
    CHECK_FAILS(kept_sums_save(kept), "later");
    CHECK(unlink(above) == 0);
    CHECK_OK(kept_sums_save(kept));
    CHECK_OK(kept_sums_save(kept));
    kept_sums_close(kept);
    corpus_close(&corpus);
    for (int d = 0; d < SETS; d++) {
        char *path = memory_format("%s/%s_text_document.bin", folder, names[d]);
        for (int64_t at = 100; at < 2 * BIG; at += BLOCK_BYTES) {
            flip(path, at);
            CHECK_OK(corpus_open(folder, &corpus));
            CHECK_OK(kept_sums_open(&corpus, sums, 1, &kept));
            CHECK_FAILS(draw_epoch(&corpus), "when this run first read them");
            kept_sums_close(kept);
            corpus_close(&corpus);
            flip(path, at);
        }
        free(path);
    }
    free(folder);
    free(sums);
    free(above);
}

static void *read_all(void *argument) {
    int32_t lowest, highest;
    return token_file_range(argument, &lowest, &highest);
}

// Four threads read one file for the first time: all see the same, and a wrong block stops each of them.
static void test_threads(void) {
    char *folder = make_corpus("threads", BIG), *path = memory_format("%s/%s_text_document.bin", folder, names[0]);
    for (int wrong = 0; wrong < 2; wrong++) {
        Corpus corpus;
        pthread_t threads[4];
        CHECK_OK(corpus_open(folder, &corpus));
        for (int t = 0; t < 4; t++) {
            CHECK(pthread_create(&threads[t], NULL, read_all, &corpus.sets[0].file) == 0);
        }
        for (int t = 0; t < 4; t++) {
            void *error;
            CHECK(pthread_join(threads[t], &error) == 0 && (error != NULL) == (wrong == 1));
            error_free(error);
        }
        corpus_close(&corpus);
        flip(path, BIG);
    }
    free(folder);
    free(path);
}

int main(void) {
    RUN(test_open);
    RUN(test_unreadable);
    RUN(test_manifest);
    RUN(test_every_byte);
    RUN(test_every_field);
    RUN(test_every_block);
    RUN(test_swaps);
    RUN(test_tokenizer);
    RUN(test_truncated);
    RUN(test_older);
    RUN(test_kept);
    RUN(test_kept_later);
    RUN(test_threads);
    return check_report();
}
