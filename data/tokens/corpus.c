// Corpora: see corpus.h. The manifest is JSON:
//
//   {"format": "athanor corpus", "version": 2,
//    "tokenizer": {"file", "fingerprint", "vocabulary", "end_of_text"},
//    "sets": [{"name", "prefix", "documents", "tokens", "text_bytes", "checksum", "index_checksum", "sums_checksum"}, ...],
//    "source": {"inputs": [{"name", "bytes"}, ...], "bad_lines", "empty_documents", "job"},
//    "fingerprint", "checksum"}
//
// Version 1 has neither "sums_checksum" nor "checksum", and its fingerprint leaves out vocabulary and end-of-text.
#include "data/tokens/corpus.h"

#include "core/hash.h"
#include "core/json.h"
#include "core/text.h"
#include "data/text/set_names.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>

#define FORMAT "athanor corpus"

enum { VERSION = 2, MANIFEST_LIMIT = 64 << 20, SETS_LIMIT = 100000, TOKENS_LIMIT_LOG2 = 60 };

static const int64_t most = (int64_t)1 << TOKENS_LIMIT_LOG2;

// A name inside the corpus's folder. A manifest must not lead elsewhere.
static Error *check_inside(const char *where, const char *key, const char *name) {
    if (*name == 0 || *name == '.' || strchr(name, '/') != NULL) {
        return damaged("%s: \"%s\" is '%s', it must be a file's name without a folder", where, key, name);
    }
    return NULL;
}

// Opens a set's files. The index is read whole by that, so it is compared at once.
static Error *open_set(const char *where, CorpusSet *set) {
    TRY(token_file_open(set->prefix, &set->file));
    if (set->file.tokens != set->tokens || set->file.documents != set->documents) {
        return damaged("%s.idx has %lld documents of %lld tokens, %s says %lld of %lld: they do not belong together",
                       set->prefix, (long long)set->file.documents, (long long)set->file.tokens, where,
                       (long long)set->documents, (long long)set->tokens);
    }
    uint64_t found = hash64(set->file.idx.data, set->file.idx.size);
    if (found != set->index_checksum) {
        return damaged("%s.idx is damaged: its checksum is %016" PRIx64 ", %s says %016" PRIx64
                       "; restore the corpus from where it came, or build it again",
                       set->prefix, found, where, set->index_checksum);
    }
    if (set->sums_checksum == 0) {
        return NULL;
    }
    char *sums = memory_format("%s.sums", set->prefix);
    Error *error = block_file_expect(set->file.bin, sums, set->sums_checksum);
    free(sums);
    return error;
}

static Error *read_set(Corpus *corpus, const char *where, const json_t *entry, bool sums, CorpusSet *set) {
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
    if (sums) {
        TRY(json_field_hex64(entry, where, "sums_checksum", &set->sums_checksum));
    }
    return open_set(where, set);
}

static Error *read_sets(Corpus *corpus, const char *where, const json_t *manifest, bool sums) {
    json_t *sets;
    TRY(json_field_array(manifest, where, "sets", &sets));
    size_t count = json_array_size(sets);
    if (count > SETS_LIMIT) {
        return damaged("%s has %zu sets, at most %d make sense", where, count, SETS_LIMIT);
    }
    corpus->sets = memory_zeroed(count + 1, sizeof *corpus->sets);
    for (size_t i = 0; i < count; i++) {
        corpus->set_count = (int)i + 1;
        TRY(read_set(corpus, where, json_array_get(sets, i), sums, &corpus->sets[i]));
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

// The fingerprint of a corpus with a manifest by the older formula.
static uint64_t sets_fingerprint(const Corpus *corpus) {
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

// The same as it is now: with how the ids are to be read.
static uint64_t corpus_fingerprint(const Corpus *corpus) {
    int64_t words[3] = {(int64_t)sets_fingerprint(corpus), corpus->vocabulary, corpus->end_of_text};
    return hash64(words, sizeof words);
}

uint64_t corpus_fingerprint_before(const Corpus *corpus) {
    return corpus->has_manifest ? sets_fingerprint(corpus) : corpus->fingerprint;
}

bool corpus_matches(const Corpus *corpus, uint64_t fingerprint) {
    return fingerprint == corpus->fingerprint || fingerprint == corpus_fingerprint_before(corpus);
}

static Error *read_manifest(Corpus *corpus, const char *where, const json_t *manifest) {
    const char *format;
    int64_t version;
    uint64_t fingerprint;
    TRY(json_field_string(manifest, where, "format", &format));
    if (strcmp(format, FORMAT) != 0) {
        return failure("%s is no corpus: its format is '%s'", where, format);
    }
    TRY(json_field_i64(manifest, where, "version", 1, most, &version));
    if (version > VERSION) {
        return failure("%s has version %lld, this program knows up to %d", where, (long long)version, VERSION);
    }
    if (version > 1) {
        TRY(error_wrap(json_check_seal(manifest, where), "the manifest was changed"));
    }
    TRY(read_tokenizer(corpus, where, manifest));
    TRY(read_sets(corpus, where, manifest, version > 1));
    TRY(read_source(corpus, where, manifest));
    TRY(json_field_hex64(manifest, where, "fingerprint", &fingerprint));
    corpus->fingerprint = corpus_fingerprint(corpus);
    if (fingerprint != (version > 1 ? corpus->fingerprint : sets_fingerprint(corpus))) {
        return damaged("%s: the fingerprint does not belong to the sets; the manifest was changed", where);
    }
    return NULL;
}

static Error *open_folder(Corpus *corpus) {
    char *where = path_join(corpus->path, CORPUS_MANIFEST);
    json_t *manifest = NULL;
    Error *error = json_read_file(where, MANIFEST_LIMIT, &manifest);
    if (error != NULL && error->kind == ERROR_MISSING) {
        error_free(error);
        error = error_new(ERROR_MISSING, "%s is no corpus: it has no %s; 'athanor data build' makes one", corpus->path,
                          CORPUS_MANIFEST);
    } else if (error == NULL) {
        corpus->has_manifest = true;
        error = read_manifest(corpus, where, manifest);
    }
    json_decref(manifest);
    free(where);
    return error;
}

// The index, the size, and 64 samples of 4 KiB spread over the tokens.
static Error *foreign_fingerprint(const TokenFile *file, uint64_t *fingerprint) {
    enum { SAMPLES = 64, SAMPLE_BYTES = 4096 };
    char sample[SAMPLE_BYTES];
    Hasher *hasher = hasher_create();
    size_t size = (size_t)block_file_size(file->bin);
    Error *error = NULL;
    hasher_add(hasher, file->idx.data, file->idx.size);
    hasher_add(hasher, &size, sizeof size);
    for (size_t i = 0; i < SAMPLES && size > 0 && error == NULL; i++) {
        size_t bytes = size < SAMPLE_BYTES ? size : SAMPLE_BYTES, at = (size - bytes) / (SAMPLES - 1) * i;
        error = block_file_read(file->bin, (int64_t)at, sample, bytes);
        if (error == NULL) {
            hasher_add(hasher, sample, bytes);
        }
    }
    *fingerprint = hasher_result(hasher);
    hasher_destroy(hasher);
    return error;
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
    return foreign_fingerprint(&set->file, &corpus->fingerprint);
}

// What lies at `path`. That it cannot be told is an error, and not the same as nothing being there.
static Error *look_at(const char *path, bool *found, bool *folder) {
    struct stat info;
    *found = stat(path, &info) == 0;
    *folder = *found && S_ISDIR(info.st_mode);
    return *found || errno == ENOENT || errno == ENOTDIR ? NULL : error_system(errno, "%s cannot be looked at", path);
}

static Error *open_either(const char *path, Corpus *out) {
    bool found, folder;
    TRY(look_at(path, &found, &folder));
    if (folder) {
        return open_folder(out);
    }
    char *prefix = token_file_prefix(path), *idx = memory_format("%s.idx", prefix);
    Error *error = look_at(idx, &found, &folder);
    if (error == NULL) {
        error =
            found
                ? open_foreign(out)
                : error_new(
                      ERROR_MISSING,
                      "there is no corpus %s, neither a folder nor the prefix of a token file; 'athanor data build' makes one",
                      path);
    }
    free(prefix);
    free(idx);
    return error;
}

Error *corpus_open(const char *path, Corpus *out) {
    *out = (Corpus){.path = memory_string(path), .vocabulary = -1, .end_of_text = -1};
    Error *error = open_either(path, out);
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

Error *corpus_load_tokenizer(const Corpus *corpus, Tokenizer **out) {
    *out = NULL;
    if (corpus->tokenizer_path == NULL) {
        return NULL;
    }
    Tokenizer *tokenizer;
    TRY(tokenizer_load(corpus->tokenizer_path, &tokenizer));
    uint64_t fingerprint = tokenizer_fingerprint(tokenizer);
    int32_t vocabulary = tokenizer_vocabulary(tokenizer), end_of_text = tokenizer_end_of_text(tokenizer);
    Error *error = NULL;
    if (fingerprint != corpus->tokenizer_fingerprint) {
        error = damaged("%s is not the tokenizer that made %s: its fingerprint is %016" PRIx64 ", the manifest says %016" PRIx64
                        "; restore it, or build the corpus again",
                        corpus->tokenizer_path, corpus->path, fingerprint, corpus->tokenizer_fingerprint);
    } else if (vocabulary != corpus->vocabulary || end_of_text != corpus->end_of_text) {
        error =
            damaged("%s/%s says a vocabulary of %lld and end-of-text %d, its tokenizer has %d and %d; the manifest was changed",
                    corpus->path, CORPUS_MANIFEST, (long long)corpus->vocabulary, corpus->end_of_text, vocabulary, end_of_text);
    }
    if (error != NULL) {
        tokenizer_free(tokenizer);
        tokenizer = NULL;
    }
    *out = tokenizer;
    return error;
}

static Error *verify_set(const Corpus *corpus, const CorpusSet *set) {
    int32_t lowest, highest;
    TRY(token_file_range(&set->file, &lowest, &highest));
    if (corpus->has_manifest) {
        TokenSums sums;
        TRY(token_file_sums(&set->file, &sums));
        if (sums.bin != set->checksum) {
            return damaged("%s.bin is damaged: its checksum is %016" PRIx64 ", the manifest says %016" PRIx64, set->prefix,
                           sums.bin, set->checksum);
        }
    }
    if (lowest < 0) {
        return damaged("%s.bin holds the negative id %d", set->prefix, lowest);
    }
    if (corpus->vocabulary >= 0 && highest >= corpus->vocabulary) {
        return damaged("%s.bin holds the id %d, the vocabulary has %lld", set->prefix, highest, (long long)corpus->vocabulary);
    }
    return NULL;
}

Error *corpus_verify(const Corpus *corpus) {
    Tokenizer *tokenizer;
    TRY(corpus_load_tokenizer(corpus, &tokenizer));
    tokenizer_free(tokenizer);
    for (int i = 0; i < corpus->set_count; i++) {
        TRY(verify_set(corpus, &corpus->sets[i]));
    }
    return NULL;
}

static json_t *set_entry(const CorpusSet *set) {
    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:o, s:o, s:o}", "name", set->name, "prefix", path_name(set->prefix),
                     "documents", (json_int_t)set->documents, "tokens", (json_int_t)set->tokens, "text_bytes",
                     (json_int_t)set->text_bytes, "checksum", json_hex64(set->checksum), "index_checksum",
                     json_hex64(set->index_checksum), "sums_checksum", json_hex64(set->sums_checksum));
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
    json_t *manifest =
        json_pack("{s:s, s:i, s:{s:o, s:o, s:I, s:i}, s:o, s:{s:o, s:I, s:I, s:o}, s:o}", "format", FORMAT, "version", VERSION,
                  "tokenizer", "file", name_text(path_name(corpus->tokenizer_path)), "fingerprint",
                  json_hex64(corpus->tokenizer_fingerprint), "vocabulary", (json_int_t)corpus->vocabulary, "end_of_text",
                  corpus->end_of_text, "sets", sets, "source", "inputs", inputs, "bad_lines", (json_int_t)corpus->bad_lines,
                  "empty_documents", (json_int_t)corpus->empty_documents, "job", json_hex64(corpus->job), "fingerprint",
                  json_hex64(corpus_fingerprint(corpus)));
    ensure(manifest != NULL, "the manifest of %s cannot be made", folder);
    json_seal(manifest);
    char *path = path_join(folder, CORPUS_MANIFEST);
    Error *error = json_write_file(path, manifest);
    free(path);
    json_decref(manifest);
    return error;
}
