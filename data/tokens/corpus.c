// Corpora: see corpus.h. The manifest is JSON:
//
//   {"format": "athanor corpus", "version": 1,
//    "tokenizer": {"file", "fingerprint", "vocabulary", "end_of_text"},
//    "sets": [{"name", "prefix", "documents", "tokens", "text_bytes", "checksum", "index_checksum"}, ...],
//    "source": {"inputs": [{"name", "bytes"}, ...], "bad_lines", "empty_documents", "job"},
//    "fingerprint"}
#include "data/tokens/corpus.h"

#include "core/hash.h"
#include "core/json.h"
#include "core/text.h"
#include "data/text/set_names.h"

#include <inttypes.h>
#include <stdio.h>

#define FORMAT "athanor corpus"

enum { MANIFEST_LIMIT = 64 << 20, SETS_LIMIT = 100000, TOKENS_LIMIT_LOG2 = 60 };

static const int64_t most = (int64_t)1 << TOKENS_LIMIT_LOG2;

// A name inside the corpus's folder. A manifest must not lead elsewhere.
static Error *check_inside(const char *where, const char *key, const char *name) {
    if (*name == 0 || *name == '.' || strchr(name, '/') != NULL) {
        return damaged("%s: \"%s\" is '%s', it must be a file's name without a folder", where, key, name);
    }
    return NULL;
}

static Error *read_set(Corpus *corpus, const char *where, const json_t *entry, CorpusSet *set) {
    const char *name, *prefix;
    TRY(json_field_string(entry, where, "name", &name));
    TRY(json_field_string(entry, where, "prefix", &prefix));
    TRY(check_inside(where, "prefix", prefix));
    if (*name == 0 || strlen(name) >= SET_NAME_BYTES) {
        return damaged("%s: a set's name has %zu bytes, it must have 1 to %d", where, strlen(name), SET_NAME_BYTES - 1);
    }
    set->name = memory_string(name);
    set->prefix = path_join(corpus->path, prefix);
    TRY(json_field_i64(entry, where, "documents", 0, most, &set->documents));
    TRY(json_field_i64(entry, where, "tokens", 0, most, &set->tokens));
    TRY(json_field_i64(entry, where, "text_bytes", -1, most, &set->text_bytes));
    TRY(json_field_hex64(entry, where, "checksum", &set->checksum));
    TRY(json_field_hex64(entry, where, "index_checksum", &set->index_checksum));
    TRY(token_file_open(set->prefix, &set->file));
    if (set->file.tokens != set->tokens || set->file.documents != set->documents) {
        return damaged("%s.idx has %lld documents of %lld tokens, %s says %lld of %lld: they do not belong together",
                       set->prefix, (long long)set->file.documents, (long long)set->file.tokens, where,
                       (long long)set->documents, (long long)set->tokens);
    }
    return NULL;
}

static Error *read_sets(Corpus *corpus, const char *where, const json_t *manifest) {
    json_t *sets;
    TRY(json_field_array(manifest, where, "sets", &sets));
    size_t count = json_array_size(sets);
    if (count > SETS_LIMIT) {
        return damaged("%s has %zu sets, at most %d make sense", where, count, SETS_LIMIT);
    }
    corpus->sets = memory_zeroed(count + 1, sizeof *corpus->sets);
    for (size_t i = 0; i < count; i++) {
        corpus->set_count = (int)i + 1;
        TRY(read_set(corpus, where, json_array_get(sets, i), &corpus->sets[i]));
        if (i > 0 && strcmp(corpus->sets[i - 1].name, corpus->sets[i].name) >= 0) {
            return damaged("%s: the sets are not sorted by name", where);
        }
    }
    return NULL;
}

static Error *read_source(Corpus *corpus, const char *where, const json_t *manifest) {
    json_t *source, *inputs;
    TRY(json_field_object(manifest, where, "source", &source));
    TRY(json_field_i64(source, where, "bad_lines", 0, most, &corpus->bad_lines));
    TRY(json_field_i64(source, where, "empty_documents", 0, most, &corpus->empty_documents));
    TRY(json_field_hex64(source, where, "job", &corpus->job));
    TRY(json_field_array(source, where, "inputs", &inputs));
    corpus->inputs = memory_zeroed(json_array_size(inputs) + 1, sizeof *corpus->inputs);
    for (size_t i = 0; i < json_array_size(inputs); i++) {
        const char *name;
        json_t *entry = json_array_get(inputs, i);
        TRY(json_field_string(entry, where, "name", &name));
        TRY(json_field_i64(entry, where, "bytes", 0, most, &corpus->inputs[i].bytes));
        corpus->inputs[i].name = memory_string(name);
        corpus->input_count = (int)i + 1;
    }
    return NULL;
}

static Error *read_tokenizer(Corpus *corpus, const char *where, const json_t *manifest) {
    json_t *tokenizer;
    const char *file;
    int64_t end_of_text;
    TRY(json_field_object(manifest, where, "tokenizer", &tokenizer));
    TRY(json_field_string(tokenizer, where, "file", &file));
    TRY(check_inside(where, "file", file));
    TRY(json_field_hex64(tokenizer, where, "fingerprint", &corpus->tokenizer_fingerprint));
    TRY(json_field_i64(tokenizer, where, "vocabulary", 1, INT32_MAX, &corpus->vocabulary));
    TRY(json_field_i64(tokenizer, where, "end_of_text", -1, corpus->vocabulary - 1, &end_of_text));
    corpus->end_of_text = (int32_t)end_of_text;
    corpus->tokenizer_path = path_join(corpus->path, file);
    return path_exists(corpus->tokenizer_path)
               ? NULL
               : error_new(ERROR_MISSING, "%s is missing, %s names it", corpus->tokenizer_path, where);
}

static Error *read_manifest(Corpus *corpus, const char *where, const json_t *manifest) {
    const char *format;
    int64_t version;
    TRY(json_field_string(manifest, where, "format", &format));
    if (strcmp(format, FORMAT) != 0) {
        return failure("%s is no corpus: its format is '%s'", where, format);
    }
    TRY(json_field_i64(manifest, where, "version", 1, most, &version));
    if (version != 1) {
        return failure("%s has version %lld, this program knows 1", where, (long long)version);
    }
    TRY(read_tokenizer(corpus, where, manifest));
    TRY(read_sets(corpus, where, manifest));
    TRY(read_source(corpus, where, manifest));
    TRY(json_field_hex64(manifest, where, "fingerprint", &corpus->fingerprint));
    if (corpus->fingerprint != corpus_fingerprint(corpus)) {
        return damaged("%s: the fingerprint does not belong to the sets; the manifest was changed", where);
    }
    return NULL;
}

uint64_t corpus_fingerprint(const Corpus *corpus) {
    Hasher *hasher = hasher_create();
    uint64_t head[2] = {corpus->tokenizer_fingerprint, (uint64_t)corpus->set_count};
    hasher_add(hasher, head, sizeof head);
    for (int i = 0; i < corpus->set_count; i++) {
        const CorpusSet *set = &corpus->sets[i];
        uint64_t words[4] = {(uint64_t)set->documents, (uint64_t)set->tokens, set->checksum, set->index_checksum};
        hasher_add(hasher, set->name, strlen(set->name) + 1);
        hasher_add(hasher, words, sizeof words);
    }
    uint64_t result = hasher_result(hasher);
    hasher_destroy(hasher);
    return result;
}

static Error *open_folder(Corpus *corpus) {
    char *where = path_join(corpus->path, CORPUS_MANIFEST);
    json_t *manifest = NULL;
    Error *error = NULL;
    if (!path_exists(where)) {
        error = error_new(ERROR_MISSING, "%s is no corpus: it has no %s; 'athanor data build' makes one", corpus->path,
                          CORPUS_MANIFEST);
    } else {
        error = json_read_file(where, MANIFEST_LIMIT, &manifest);
    }
    if (error == NULL) {
        corpus->has_manifest = true;
        error = read_manifest(corpus, where, manifest);
    }
    json_decref(manifest);
    free(where);
    return error;
}

// The index, the size, and 64 samples of 4 KiB spread over the tokens.
static uint64_t foreign_fingerprint(const TokenFile *file) {
    enum { SAMPLES = 64, SAMPLE_BYTES = 4096 };
    Hasher *hasher = hasher_create();
    hasher_add(hasher, file->idx.data, file->idx.size);
    hasher_add(hasher, &file->bin.size, sizeof file->bin.size);
    size_t size = file->bin.size;
    for (size_t i = 0; i < SAMPLES && size > 0; i++) {
        size_t bytes = size < SAMPLE_BYTES ? size : SAMPLE_BYTES, at = (size - bytes) / (SAMPLES - 1) * i;
        hasher_add(hasher, (const char *)file->bin.data + at, bytes);
    }
    uint64_t result = hasher_result(hasher);
    hasher_destroy(hasher);
    return result;
}

static Error *open_foreign(Corpus *corpus) {
    CorpusSet *set = corpus->sets = memory_zeroed(1, sizeof *set);
    corpus->set_count = 1;
    set->prefix = token_file_prefix(corpus->path);
    set->name = memory_string(path_name(set->prefix));
    set->text_bytes = -1;
    TRY(token_file_open(set->prefix, &set->file));
    set->documents = set->file.documents;
    set->tokens = set->file.tokens;
    corpus->fingerprint = foreign_fingerprint(&set->file);
    return NULL;
}

Error *corpus_open(const char *path, Corpus *out) {
    *out = (Corpus){.path = memory_string(path), .vocabulary = -1, .end_of_text = -1};
    Error *error;
    if (path_is_folder(path)) {
        error = open_folder(out);
    } else {
        char *prefix = token_file_prefix(path), *idx = memory_format("%s.idx", prefix);
        error = path_exists(idx)
                    ? open_foreign(out)
                    : error_new(ERROR_MISSING, "there is no corpus %s, neither a folder nor the prefix of a token file", path);
        free(prefix);
        free(idx);
    }
    int64_t tokens = 0;
    for (int i = 0; i < out->set_count; i++) {
        tokens += out->sets[i].tokens;
    }
    if (error == NULL && tokens == 0) {
        error = failure("the corpus %s is empty: it has no tokens", path);
    }
    if (error != NULL) {
        corpus_close(out);
    }
    return error;
}

void corpus_close(Corpus *corpus) {
    for (int i = 0; i < corpus->set_count; i++) {
        free(corpus->sets[i].name);
        free(corpus->sets[i].prefix);
        token_file_close(&corpus->sets[i].file);
    }
    for (int i = 0; i < corpus->input_count; i++) {
        free(corpus->inputs[i].name);
    }
    free(corpus->sets);
    free(corpus->inputs);
    free(corpus->path);
    free(corpus->tokenizer_path);
    *corpus = (Corpus){0};
}

static Error *verify_set(const Corpus *corpus, const CorpusSet *set) {
    if (corpus->has_manifest) {
        TokenSums sums = token_file_sums(&set->file);
        bool bin = sums.bin != set->checksum;
        if (bin || sums.idx != set->index_checksum) {
            return damaged("%s.%s is damaged: its checksum is %016" PRIx64 ", the manifest says %016" PRIx64, set->prefix,
                           bin ? "bin" : "idx", bin ? sums.bin : sums.idx, bin ? set->checksum : set->index_checksum);
        }
    }
    int32_t lowest, highest;
    token_file_range(&set->file, &lowest, &highest);
    if (lowest < 0 || (corpus->vocabulary >= 0 && highest >= corpus->vocabulary)) {
        return damaged("%s.bin holds the id %d, the vocabulary has %lld", set->prefix, lowest < 0 ? lowest : highest,
                       (long long)corpus->vocabulary);
    }
    return NULL;
}

Error *corpus_verify(const Corpus *corpus) {
    for (int i = 0; i < corpus->set_count; i++) {
        TRY(verify_set(corpus, &corpus->sets[i]));
    }
    return NULL;
}

static json_t *set_entry(const CorpusSet *set) {
    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:o, s:o}", "name", set->name, "prefix", path_name(set->prefix), "documents",
                     (json_int_t)set->documents, "tokens", (json_int_t)set->tokens, "text_bytes", (json_int_t)set->text_bytes,
                     "checksum", json_hex64(set->checksum), "index_checksum", json_hex64(set->index_checksum));
}

// A file's name as JSON text, which is UTF-8: other bytes become '?'.
static json_t *name_text(const char *name) {
    char *text = memory_string(name);
    size_t size = strlen(text);
    for (size_t i = 0; (i += utf8_valid_prefix(text + i, size - i)) < size;) {
        text[i] = '?';
    }
    json_t *value = json_string(text);
    free(text);
    return value;
}

Error *corpus_write_manifest(const Corpus *corpus, const char *folder) {
    json_t *sets = json_array(), *inputs = json_array();
    for (int i = 0; i < corpus->set_count; i++) {
        json_array_append_new(sets, set_entry(&corpus->sets[i]));
    }
    for (int i = 0; i < corpus->input_count; i++) {
        json_array_append_new(inputs, json_pack("{s:o, s:I}", "name", name_text(corpus->inputs[i].name), "bytes",
                                                (json_int_t)corpus->inputs[i].bytes));
    }
    json_t *manifest = json_pack("{s:s, s:i, s:{s:o, s:o, s:I, s:i}, s:o, s:{s:o, s:I, s:I, s:o}, s:o}", "format", FORMAT,
                                 "version", 1, "tokenizer", "file", name_text(path_name(corpus->tokenizer_path)), "fingerprint",
                                 json_hex64(corpus->tokenizer_fingerprint), "vocabulary", (json_int_t)corpus->vocabulary,
                                 "end_of_text", corpus->end_of_text, "sets", sets, "source", "inputs", inputs, "bad_lines",
                                 (json_int_t)corpus->bad_lines, "empty_documents", (json_int_t)corpus->empty_documents, "job",
                                 json_hex64(corpus->job), "fingerprint", json_hex64(corpus_fingerprint(corpus)));
    ensure(manifest != NULL, "the manifest of %s cannot be made", folder);
    char *path = path_join(folder, CORPUS_MANIFEST);
    Error *error = json_write_file(path, manifest);
    free(path);
    json_decref(manifest);
    return error;
}
