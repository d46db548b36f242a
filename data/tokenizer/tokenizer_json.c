// Reading Hugging Face's tokenizer.json into a Tokenizer.
//
// The file is one object: added_tokens, normalizer, pre_tokenizer, post_processor, decoder, model. Read here: byte-level BPE,
// that is model BPE behind a ByteLevel pre-tokenizer, after Split, Digits and NFC where they are there. Its vocabulary writes
// each byte as one character: 0x21-0x7E, 0xA1-0xAC and 0xAE-0xFF as themselves, the other 68 in order as U+0100 and up. What is
// not supported is an error that names it: reading a file half would give wrong ids in silence.
#include "core/json.h"
#include "core/text.h"
#include "data/tokenizer/tokenizer_parts.h"
#include "data/tokenizer/unicode.h"

#include <inttypes.h>

enum { NESTING_MOST = 8, ADDED_MOST = 1 << 20, ADDED_LONGEST = 4096 };

// The byte that a character of the vocabulary's alphabet stands for, -1 for none.
static int alphabet_byte(uint32_t code) {
    if ((code >= 0x21 && code <= 0x7E) || (code >= 0xA1 && code <= 0xFF && code != 0xAD)) {
        return (int)code;
    }
    if (code < 0x100 || code >= 0x100 + 68) {
        return -1;
    }
    int n = (int)code - 0x100;
    return n < 0x21 ? n : n < 0x21 + 0x22 ? 0x7F + n - 0x21 : 0xAD;
}

// Appends the bytes that a vocabulary entry stands for; false if it has characters outside the alphabet.
static bool entry_bytes(const char *entry, size_t size, Buffer *out) {
    const uint8_t *p = (const uint8_t *)entry, *end = p + size;
    for (int n; p < end; p += n) {
        int byte = alphabet_byte(unicode_decode(p, end, &n));
        if (byte < 0) {
            return false;
        }
        buffer_byte(out, (char)byte);
    }
    return true;
}

static const char *type_of(const json_t *value) {
    const char *type = json_string_value(json_object_get(value, "type"));
    return type != NULL ? type : "without a type";
}

static bool is_absent(const json_t *value) {
    return value == NULL || json_is_null(value);
}

// A field that may be missing or null.
static Error *optional_bool(const json_t *object, const char *where, const char *key, bool *out) {
    return is_absent(json_object_get(object, key)) ? NULL : json_field_bool(object, where, key, out);
}

static Error *read_normalizer(const json_t *value, const char *name, int depth, bool *nfc) {
    if (is_absent(value)) {
        return NULL;
    }
    if (strcmp(type_of(value), "NFC") == 0) {
        *nfc = true;
        return NULL;
    }
    if (strcmp(type_of(value), "Sequence") != 0 || depth == NESTING_MOST) {
        return failure("%s: a normalizer of type %s is not supported, only NFC is", name, type_of(value));
    }
    json_t *parts;
    TRY(json_field_array(value, name, "normalizers", &parts));
    for (size_t i = 0; i < json_array_size(parts); i++) {
        TRY(read_normalizer(json_array_get(parts, i), name, depth + 1, nfc));
    }
    return NULL;
}

// What reading the pre-tokenizer has found so far.
typedef struct Stages {
    Tokenizer *tokenizer;
    const char *name;
    bool byte_level;
} Stages;

// The expression of a Split: its Regex, or its String with what has a meaning in expressions escaped.
static Error *split_expression(const json_t *pattern, const char *name, Buffer *out) {
    const json_t *regex = json_object_get(pattern, "Regex"), *string = json_object_get(pattern, "String");
    if (!json_is_string(regex) && !json_is_string(string)) {
        return damaged("%s: a Split pre-tokenizer has neither a Regex nor a String", name);
    }
    const json_t *text = json_is_string(regex) ? regex : string;
    buffer_reserve(out, 1);
    for (size_t i = 0; i < json_string_length(text); i++) {
        char c = json_string_value(text)[i];
        if (text == string && text_one_of(c, "\\.+*?()|[]{}^$")) {
            buffer_byte(out, '\\');
        }
        buffer_byte(out, c);
    }
    return NULL;
}

static Error *read_split(const json_t *value, Stages *stages) {
    const char *name;
    bool invert = false;
    json_t *pattern;
    TRY(json_field_string(value, stages->name, "behavior", &name));
    TRY(optional_bool(value, stages->name, "invert", &invert));
    int behavior = 0;
    while (behavior < BEHAVIORS && strcmp(name, pattern_behaviors[behavior]) != 0) {
        behavior++;
    }
    if (behavior == BEHAVIORS) {
        return damaged("%s: a Split pre-tokenizer has the behavior \"%.40s\", which is none of Isolated, Removed, "
                       "MergedWithPrevious, MergedWithNext and Contiguous",
                       stages->name, name);
    }
    TRY(json_field_object(value, stages->name, "pattern", &pattern));
    Buffer expression = {0};
    TRY(split_expression(pattern, stages->name, &expression));
    Pattern *compiled;
    Error *error = pattern_create(expression.data, expression.size, &compiled);
    buffer_free(&expression);
    TRY(error_wrap(error, "%s: the pre-tokenizer's pattern", stages->name));
    pattern_behave(compiled, (PatternBehavior)behavior, invert);
    tokenizer_add_stage(stages->tokenizer, compiled);
    return NULL;
}

static Error *read_byte_level(const json_t *value, Stages *stages) {
    bool use_regex = true;
    TRY(json_field_bool(value, stages->name, "add_prefix_space", &stages->tokenizer->prefix_space));
    TRY(optional_bool(value, stages->name, "use_regex", &use_regex));
    stages->byte_level = true;
    // The space goes before the piece that this stage cuts, so there must be a stage, if only one that does not cut. Pieces are
    // removed between stages, so what removes some is not the last.
    int before = stages->tokenizer->stage_count;
    bool last_removes = before > 0 && stages->tokenizer->stages[before - 1]->behavior == BEHAVIOR_REMOVED;
    if (use_regex || stages->tokenizer->prefix_space || before == 0 || last_removes) {
        tokenizer_add_stage(stages->tokenizer, pattern_known(use_regex ? PATTERN_GPT2 : PATTERN_WHOLE));
    }
    return NULL;
}

static Error *read_pre_tokenizer(const json_t *value, int depth, Stages *stages) {
    if (is_absent(value)) {
        return NULL;
    }
    const char *type = type_of(value);
    if (strcmp(type, "Sequence") == 0 && depth < NESTING_MOST) {
        json_t *parts;
        TRY(json_field_array(value, stages->name, "pretokenizers", &parts));
        for (size_t i = 0; i < json_array_size(parts); i++) {
            TRY(read_pre_tokenizer(json_array_get(parts, i), depth + 1, stages));
        }
        return NULL;
    }
    if (stages->byte_level) {
        return failure("%s: a pre-tokenizer (%s) after ByteLevel is not supported", stages->name, type);
    }
    if (stages->tokenizer->stage_count + 1 >= STAGES_MOST) {
        return failure("%s: more than %d pre-tokenizers in sequence are not supported", stages->name, STAGES_MOST - 1);
    }
    if (strcmp(type, "Split") == 0) {
        return read_split(value, stages);
    }
    if (strcmp(type, "ByteLevel") == 0) {
        return read_byte_level(value, stages);
    }
    if (strcmp(type, "Digits") == 0) {
        bool single = false;
        TRY(json_field_bool(value, stages->name, "individual_digits", &single));
        tokenizer_add_stage(stages->tokenizer, pattern_known(single ? PATTERN_DIGIT : PATTERN_DIGITS));
        return NULL;
    }
    return failure("%s: a pre-tokenizer of type %s is not supported, only ByteLevel, Split, Digits and Sequence are",
                   stages->name, type);
}

static Error *check_decoder(const json_t *value, const char *name, int depth) {
    if (is_absent(value) || strcmp(type_of(value), "ByteLevel") == 0) {
        return NULL;
    }
    if (strcmp(type_of(value), "Sequence") != 0 || depth == NESTING_MOST) {
        return failure("%s: a decoder of type %s is not supported, only ByteLevel is", name, type_of(value));
    }
    json_t *parts;
    TRY(json_field_array(value, name, "decoders", &parts));
    for (size_t i = 0; i < json_array_size(parts); i++) {
        TRY(check_decoder(json_array_get(parts, i), name, depth + 1));
    }
    return NULL;
}

static Error *check_model(const json_t *model, const char *name) {
    const char *type = json_string_value(json_object_get(model, "type"));
    if (type != NULL && strcmp(type, "BPE") != 0) {
        return failure("%s: a model of type %s is not supported, only byte-level BPE is", name, type);
    }
    bool byte_fallback = false;
    TRY(optional_bool(model, name, "byte_fallback", &byte_fallback));
    if (byte_fallback) {
        return failure("%s: byte_fallback (BPE of the SentencePiece kind) is not supported, only byte-level BPE is", name);
    }
    const json_t *dropout = json_object_get(model, "dropout");
    if (!is_absent(dropout) && json_number_value(dropout) != 0) {
        return failure("%s: dropout of merges is not supported", name);
    }
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++) {
        const json_t *affix = json_object_get(model, affixes[i]);
        if (!is_absent(affix) && json_string_length(affix) > 0) {
            return failure("%s: %s is not supported", name, affixes[i]);
        }
    }
    return NULL;
}

static Error *read_vocabulary(const json_t *model, const char *name, Tokenizer *tokenizer) {
    json_t *vocabulary, *value;
    const char *entry;
    TRY(json_field_object(model, name, "vocab", &vocabulary));
    Buffer bytes = {0};
    Error *error = NULL;
    json_object_foreach(vocabulary, entry, value) {
        json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id >= TOKEN_IDS_MOST) {
            error =
                damaged("%s: the id of token \"%.80s\" is not a whole number from 0 to %d", name, entry, TOKEN_IDS_MOST - 1);
            break;
        }
        buffer_clear(&bytes);
        buffer_reserve(&bytes, 1);
        bool byte_level = entry_bytes(entry, strlen(entry), &bytes) && bytes.size > 0;
        if (!(byte_level ? tokenizer_set_token(tokenizer, (int32_t)id, bytes.data, bytes.size, TOKEN_BYTES)
                         : tokenizer_set_token(tokenizer, (int32_t)id, entry, strlen(entry), 0))) {
            error = damaged("%s: two tokens have the id %" JSON_INTEGER_FORMAT, name, id);
            break;
        }
        if (byte_level && bytes.size == 1) {
            tokenizer->bpe.byte_ids[(uint8_t)bytes.data[0]] = (int32_t)id;
        }
    }
    buffer_free(&bytes);
    return error;
}

// A merge as its two parts, zero-terminated, in `parts`; *second is where the second starts.
static bool merge_parts(const json_t *merge, Buffer *parts, size_t *second) {
    buffer_clear(parts);
    buffer_reserve(parts, 1);
    if (json_is_string(merge)) {
        const char *text = json_string_value(merge), *blank = strchr(text, ' ');
        if (blank == NULL || strlen(text) != json_string_length(merge) || strchr(blank + 1, ' ') != NULL) {
            return false;
        }
        buffer_append(parts, text, strlen(text));
        *second = (size_t)(blank - text) + 1;
        parts->data[*second - 1] = 0;
        return true;
    }
    if (json_array_size(merge) != 2 || !json_is_string(json_array_get(merge, 0)) || !json_is_string(json_array_get(merge, 1))) {
        return false;
    }
    buffer_text(parts, json_string_value(json_array_get(merge, 0)));
    buffer_byte(parts, 0);
    *second = parts->size;
    buffer_text(parts, json_string_value(json_array_get(merge, 1)));
    return true;
}

static Error *read_merge(const json_t *merge, const json_t *vocabulary, const char *name, size_t rank, Buffer *parts,
                         Tokenizer *tokenizer) {
    size_t second;
    if (!merge_parts(merge, parts, &second)) {
        return damaged("%s: merge %zu is neither \"a b\" nor [\"a\", \"b\"]", name, rank);
    }
    const json_t *left = json_object_get(vocabulary, parts->data), *right = json_object_get(vocabulary, parts->data + second);
    memmove(parts->data + second - 1, parts->data + second, parts->size - second + 1);
    const json_t *whole = json_object_get(vocabulary, parts->data);
    if (left == NULL || right == NULL || whole == NULL) {
        return damaged("%s: merge %zu, which makes \"%.80s\", has a part that is not in the vocabulary", name, rank,
                       parts->data);
    }
    bpe_add(&tokenizer->bpe, (int32_t)json_integer_value(left), (int32_t)json_integer_value(right), (int32_t)rank,
            (int32_t)json_integer_value(whole));
    return NULL;
}

static Error *read_model(const json_t *model, const char *name, Tokenizer *tokenizer) {
    json_t *merges;
    TRY(check_model(model, name));
    TRY(optional_bool(model, name, "ignore_merges", &tokenizer->ignore_merges));
    TRY(json_field_array(model, name, "merges", &merges));
    size_t count = json_array_size(merges);
    if (count > TOKEN_IDS_MOST) {
        return damaged("%s: %zu merges, at most %d are supported", name, count, TOKEN_IDS_MOST);
    }
    TRY(bpe_create(&tokenizer->bpe, count));
    tokenizer->merges = count;
    TRY(read_vocabulary(model, name, tokenizer));
    Buffer parts = {0};
    Error *error = NULL;
    for (size_t rank = 0; rank < count && error == NULL; rank++) {
        error = read_merge(json_array_get(merges, rank), json_object_get(model, "vocab"), name, rank, &parts, tokenizer);
    }
    buffer_free(&parts);
    // A byte without a token vanishes, unless an unknown token takes its place; only the former is supported.
    for (int byte = 0; byte < 256 && error == NULL; byte++) {
        if (tokenizer->bpe.byte_ids[byte] < 0 && !is_absent(json_object_get(model, "unk_token"))) {
            error = failure("%s: the vocabulary lacks byte 0x%02X and has an unknown token for it, which is not supported",
                            name, (unsigned)byte);
        }
    }
    return error;
}

static Error *read_added_token(const json_t *value, const char *name, AddedToken *token) {
    int64_t id;
    TRY(json_field_i64(value, name, "id", 0, TOKEN_IDS_MOST - 1, &id));
    const json_t *content = json_object_get(value, "content");
    if (!json_is_string(content) || json_string_length(content) > ADDED_LONGEST) {
        return damaged("%s: added token %" PRId64 " must have a \"content\" of at most %d bytes", name, id, ADDED_LONGEST);
    }
    *token = (AddedToken){.id = (int32_t)id,
                          .text = (char *)(uintptr_t)json_string_value(content),
                          .size = json_string_length(content),
                          .normalized = true};
    TRY(optional_bool(value, name, "single_word", &token->single_word));
    TRY(optional_bool(value, name, "lstrip", &token->lstrip));
    TRY(optional_bool(value, name, "rstrip", &token->rstrip));
    TRY(optional_bool(value, name, "special", &token->special));
    token->normalized = !token->special;
    return optional_bool(value, name, "normalized", &token->normalized);
}

// Adds a token under the id that Hugging Face's library gives it, whatever the file says: that of the vocabulary, or the next
// free one. A file that says something else is refused. `known` maps texts to ids, *most is the highest id so far.
static Error *add_token(const AddedToken *token, const char *name, const json_t *vocabulary, json_t *known, int64_t *most,
                        Tokenizer *tokenizer) {
    if (strlen(token->text) != token->size) {
        return failure("%s: added token %d has a zero byte, which is not supported", name, token->id);
    }
    if (token->size == 0) {
        return NULL;
    }
    const json_t *before = json_object_get(known, token->text), *entry = json_object_get(vocabulary, token->text);
    int64_t size = (int64_t)json_object_size(vocabulary), id = *most >= size ? *most + 1 : size;
    id = before != NULL ? json_integer_value(before) : entry != NULL ? json_integer_value(entry) : id;
    if (id != token->id) {
        return damaged("%s: added token \"%s\" has the id %d, but by the vocabulary and the tokens before it must be %" PRId64,
                       name, token->text, token->id, id);
    }
    if (before == NULL) {
        *most = id > *most ? id : *most;
        ensure(json_object_set_new(known, token->text, json_integer(id)) == 0, "no memory for added tokens");
        tokenizer_add(tokenizer, *token);
    }
    return NULL;
}

static Error *read_added_tokens(const json_t *document, const char *name, Tokenizer *tokenizer) {
    const json_t *list = json_object_get(document, "added_tokens");
    const json_t *vocabulary = json_object_get(json_object_get(document, "model"), "vocab");
    if (is_absent(list)) {
        return NULL;
    }
    if (!json_is_array(list) || json_array_size(list) > ADDED_MOST) {
        return damaged("%s: \"added_tokens\" must be a list of at most %d", name, ADDED_MOST);
    }
    json_t *known = json_object();
    int64_t most = -1;
    Error *error = NULL;
    for (size_t i = 0; i < json_array_size(list) && error == NULL; i++) {
        AddedToken token;
        error = read_added_token(json_array_get(list, i), name, &token);
        if (error == NULL) {
            error = add_token(&token, name, vocabulary, known, &most, tokenizer);
        }
    }
    json_decref(known);
    return error;
}

static Error *read_document(const json_t *document, const char *name, Tokenizer *tokenizer) {
    json_t *model;
    Stages stages = {tokenizer, name, false};
    if (!json_is_object(json_object_get(document, "model"))) {
        return damaged("%s: no \"model\": this is not a tokenizer.json", name);
    }
    TRY(json_field_object(document, name, "model", &model));
    TRY(check_model(model, name));
    TRY(read_normalizer(json_object_get(document, "normalizer"), name, 0, &tokenizer->nfc));
    TRY(read_pre_tokenizer(json_object_get(document, "pre_tokenizer"), 0, &stages));
    if (!stages.byte_level) {
        return failure("%s: there is no ByteLevel pre-tokenizer; only byte-level BPE is supported", name);
    }
    TRY(check_decoder(json_object_get(document, "decoder"), name, 0));
    TRY(read_model(model, name, tokenizer));
    return read_added_tokens(document, name, tokenizer);
}

Error *tokenizer_from_json(const char *name, const char *bytes, size_t size, Tokenizer *out) {
    json_t *document;
    out->format = "tokenizer.json";
    TRY(json_read_bytes(name, bytes, size, &document));
    Error *error = read_document(document, name, out);
    json_decref(document);
    return error;
}
