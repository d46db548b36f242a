// Byte-level BPE tokenizers: the object, decoding, the fingerprint. See tokenizer.h; encoding is in encoder.c.
#include "data/tokenizer/tokenizer.h"

#include "core/durable.h"
#include "core/file_kind.h"
#include "core/hash.h"
#include "core/text.h"
#include "data/tokenizer/tokenizer_parts.h"
#include "data/tokenizer/unicode.h"

enum { FILE_MOST = 512 << 20 };

bool tokenizer_set_token(Tokenizer *tokenizer, int32_t id, const char *bytes, size_t size, unsigned flags) {
    size_t needed = (size_t)id + 1;
    if (needed > tokenizer->token_capacity) {
        size_t capacity = needed < 2 * tokenizer->token_capacity ? 2 * tokenizer->token_capacity : needed + 64;
        tokenizer->tokens = memory_resize(tokenizer->tokens, capacity, sizeof *tokenizer->tokens);
        memset(tokenizer->tokens + tokenizer->token_capacity, 0,
               (capacity - tokenizer->token_capacity) * sizeof *tokenizer->tokens);
        tokenizer->token_capacity = capacity;
    }
    if (tokenizer->tokens[id].flags & TOKEN_PRESENT) {
        return false;
    }
    tokenizer->tokens[id] = (TokenSpan){(uint32_t)tokenizer->bytes.size, (uint32_t)size, flags | TOKEN_PRESENT};
    buffer_append(&tokenizer->bytes, bytes, size);
    if (id >= tokenizer->vocabulary) {
        tokenizer->vocabulary = id + 1;
    }
    return true;
}

void tokenizer_add(Tokenizer *tokenizer, AddedToken token) {
    if (!tokenizer_set_token(tokenizer, token.id, token.text, token.size, 0)) {
        TokenSpan *span = &tokenizer->tokens[token.id];  // in the vocabulary too: its text is what counts
        if (span->size != token.size || memcmp(tokenizer->bytes.data + span->offset, token.text, token.size) != 0) {
            *span = (TokenSpan){(uint32_t)tokenizer->bytes.size, (uint32_t)token.size, TOKEN_PRESENT};
            buffer_append(&tokenizer->bytes, token.text, token.size);
        }
    }
    tokenizer->tokens[token.id].flags |= token.special ? TOKEN_SPECIAL : 0;
    char *text = memory_new(token.size + 1, 1);
    memcpy(text, token.text, token.size);
    text[token.size] = 0;
    token.text = text;
    array_push(tokenizer->added, tokenizer->added_count, tokenizer->added_capacity, token);
    tokenizer->added_longest = token.size > tokenizer->added_longest ? token.size : tokenizer->added_longest;
}

void tokenizer_add_stage(Tokenizer *tokenizer, Pattern *pattern) {
    ensure(tokenizer->stage_count < STAGES_MOST, "too many stages");
    tokenizer->stages[tokenizer->stage_count++] = pattern;
}

// The place of the token with these bytes, or the empty one where it belongs.
static WholeToken *whole_place(const Tokenizer *tokenizer, const uint8_t *bytes, size_t size, uint64_t hash) {
    size_t mask = ((size_t)1 << (64 - tokenizer->whole_shift)) - 1, i = (size_t)(hash >> tokenizer->whole_shift);
    for (; tokenizer->whole[i].id >= 0; i = (i + 1) & mask) {
        const TokenSpan *span = &tokenizer->tokens[tokenizer->whole[i].id];
        if (tokenizer->whole[i].tag == (uint32_t)hash && span->size == size &&
            memcmp(tokenizer->bytes.data + span->offset, bytes, size) == 0) {
            break;
        }
    }
    return &tokenizer->whole[i];
}

void tokenizer_index_whole(Tokenizer *tokenizer) {
    tokenizer->whole_shift = 60;
    while ((size_t)1 << (64 - tokenizer->whole_shift) < 2 * (size_t)tokenizer->vocabulary) {
        tokenizer->whole_shift--;
    }
    size_t places = (size_t)1 << (64 - tokenizer->whole_shift);
    tokenizer->whole = memory_new(places, sizeof *tokenizer->whole);
    memset(tokenizer->whole, -1, places * sizeof *tokenizer->whole);
    for (int32_t id = 0; id < tokenizer->vocabulary; id++) {
        const TokenSpan *span = &tokenizer->tokens[id];
        if (span->flags & TOKEN_BYTES) {
            const uint8_t *bytes = (const uint8_t *)tokenizer->bytes.data + span->offset;
            uint64_t hash = hash64(bytes, span->size);
            WholeToken *place = whole_place(tokenizer, bytes, span->size, hash);
            if (place->id < 0) {
                *place = (WholeToken){id, (uint32_t)hash};
            }
        }
    }
}

int32_t tokenizer_find_whole(const Tokenizer *tokenizer, const uint8_t *bytes, size_t size) {
    return whole_place(tokenizer, bytes, size, hash64(bytes, size))->id;
}

// Special tokens come before others in both sets, as in the reference implementation: it matters where two have one text.
static void build_added_sets(Tokenizer *tokenizer) {
    Buffer normal = {0};
    for (int pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < tokenizer->added_count; i++) {
            const AddedToken *token = &tokenizer->added[i];
            if (token->special != (pass == 0)) {
                continue;
            }
            if (!token->normalized) {
                added_set_add(&tokenizer->raw, (int32_t)i, token->text, token->size);
                continue;
            }
            buffer_clear(&normal);
            buffer_reserve(&normal, 1);
            if (tokenizer->nfc) {
                unicode_nfc(token->text, token->size, &normal);
            } else {
                buffer_append(&normal, token->text, token->size);
            }
            added_set_add(&tokenizer->normalized, (int32_t)i, normal.data, normal.size);
            tokenizer->added_longest = normal.size > tokenizer->added_longest ? normal.size : tokenizer->added_longest;
        }
    }
    buffer_free(&normal);
}

static void find_end_of_text(Tokenizer *tokenizer) {
    static const char *const names[] = {
        "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "<\uFF5Cend\u2581of\u2581sentence\uFF5C>"};
    tokenizer->end_of_text = -1;
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        for (size_t i = 0; i < tokenizer->added_count; i++) {
            if (strcmp(tokenizer->added[i].text, names[n]) == 0) {
                tokenizer->end_of_text = tokenizer->added[i].id;
                return;
            }
        }
    }
}

static void add_fingerprint(Tokenizer *tokenizer) {
    Hasher *hasher = hasher_create();
    for (int32_t id = 0; id < tokenizer->vocabulary; id++) {
        const TokenSpan *span = &tokenizer->tokens[id];
        uint32_t head[2] = {span->size, span->flags};
        hasher_add(hasher, head, sizeof head);
        if (span->size > 0) {
            hasher_add(hasher, tokenizer->bytes.data + span->offset, span->size);
        }
    }
    hasher_add(hasher, tokenizer->bpe.byte_ids, sizeof tokenizer->bpe.byte_ids);
    uint64_t pairs = 0;  // their places depend on the order of insertion: a sum does not
    for (size_t i = 0, places = (size_t)1 << (64 - tokenizer->bpe.shift); i < places; i++) {
        pairs += tokenizer->bpe.pairs[i].key != 0 ? hash64(&tokenizer->bpe.pairs[i], sizeof(BpePair)) : 0;
    }
    hasher_add(hasher, &pairs, sizeof pairs);
    for (size_t i = 0; i < tokenizer->added_count; i++) {
        const AddedToken *token = &tokenizer->added[i];
        uint32_t head[4] = {(uint32_t)token->id, (uint32_t)token->size,
                            token->single_word | token->lstrip << 1 | token->rstrip << 2 | token->normalized << 3,
                            token->special};
        hasher_add(hasher, head, sizeof head);
        hasher_add(hasher, token->text, token->size);
    }
    for (int i = 0; i < tokenizer->stage_count; i++) {
        const Pattern *stage = tokenizer->stages[i];
        const char *text = stage->kind == PATTERN_OTHER ? stage->text : pattern_name(stage->kind);
        hasher_add(hasher, text, strlen(text) + 1);
        if (stage->behavior != BEHAVIOR_ISOLATED) {
            hasher_add(hasher, pattern_behaviors[stage->behavior], strlen(pattern_behaviors[stage->behavior]) + stage->invert);
        }
    }
    bool flags[3] = {tokenizer->nfc, tokenizer->prefix_space, tokenizer->ignore_merges};
    hasher_add(hasher, flags, sizeof flags);
    tokenizer->fingerprint = hasher_result(hasher);
    hasher_destroy(hasher);
}

static void complete(Tokenizer *tokenizer) {
    build_added_sets(tokenizer);
    find_end_of_text(tokenizer);
    if (tokenizer->ignore_merges && tokenizer->whole == NULL) {
        tokenizer_index_whole(tokenizer);
    }
    bool word_stage = false, other_stage = false;
    for (int i = 0; i < tokenizer->stage_count; i++) {
        word_stage |= pattern_ends_words(tokenizer->stages[i]);
        other_stage |= tokenizer->stages[i]->kind == PATTERN_OTHER || tokenizer->stages[i]->behavior != BEHAVIOR_ISOLATED;
    }
    tokenizer->can_cut = word_stage && !other_stage;
    add_fingerprint(tokenizer);
}

Error *tokenizer_load_bytes(const char *name, const char *bytes, size_t size, Tokenizer **out) {
    *out = NULL;
    size_t start = 0;
    while (start < size && text_one_of(bytes[start], " \t\r\n")) {
        start++;
    }
    TRY(file_kind_check(name, "a tokenizer.json or .tiktoken file", bytes, size));
    if (size >= 3 && memcmp(bytes, "\xEF\xBB\xBF", 3) == 0) {
        return damaged(
            "%s: the file begins with a byte order mark, which other readers refuse too; remove its first three bytes", name);
    }
    Tokenizer *tokenizer = memory_zeroed(1, sizeof *tokenizer);
    added_set_create(&tokenizer->raw);
    added_set_create(&tokenizer->normalized);
    Error *error = start < size && bytes[start] == '{' ? tokenizer_from_json(name, bytes, size, tokenizer)
                                                       : tokenizer_from_tiktoken(name, bytes, size, tokenizer);
    if (error != NULL) {
        tokenizer_free(tokenizer);
        return error;
    }
    complete(tokenizer);
    *out = tokenizer;
    return NULL;
}

Error *tokenizer_load(const char *path, Tokenizer **out) {
    *out = NULL;
    Buffer text = {0};
    Error *error = file_read(path, FILE_MOST, &text);
    if (error == NULL) {
        error = tokenizer_load_bytes(path, text.data, text.size, out);
    }
    buffer_free(&text);
    return error;
}

void tokenizer_free(Tokenizer *tokenizer) {
    if (tokenizer == NULL) {
        return;
    }
    bpe_free(&tokenizer->bpe);
    buffer_free(&tokenizer->bytes);
    free(tokenizer->tokens);
    free(tokenizer->whole);
    for (size_t i = 0; i < tokenizer->added_count; i++) {
        free(tokenizer->added[i].text);
    }
    free(tokenizer->added);
    added_set_free(&tokenizer->raw);
    added_set_free(&tokenizer->normalized);
    for (int i = 0; i < tokenizer->stage_count; i++) {
        pattern_free(tokenizer->stages[i]);
    }
    free(tokenizer);
}

int32_t tokenizer_vocabulary(const Tokenizer *tokenizer) {
    return tokenizer->vocabulary;
}

int32_t tokenizer_end_of_text(const Tokenizer *tokenizer) {
    return tokenizer->end_of_text;
}

uint64_t tokenizer_fingerprint(const Tokenizer *tokenizer) {
    return tokenizer->fingerprint;
}

const char *tokenizer_token(const Tokenizer *tokenizer, int32_t id, bool with_special, size_t *size) {
    *size = 0;
    if (id < 0 || id >= tokenizer->vocabulary || !(tokenizer->tokens[id].flags & TOKEN_PRESENT)) {
        return NULL;
    }
    const TokenSpan *span = &tokenizer->tokens[id];
    *size = !with_special && (span->flags & TOKEN_SPECIAL) ? 0 : span->size;
    return tokenizer->bytes.data + span->offset;
}

void tokenizer_decode(const Tokenizer *tokenizer, const int32_t *ids, size_t count, bool with_special, Buffer *out) {
    for (size_t i = 0; i < count; i++) {
        size_t size;
        const char *bytes = tokenizer_token(tokenizer, ids[i], with_special, &size);
        if (size > 0) {
            buffer_append(out, bytes, size);
        }
    }
}

static void describe_added(const Tokenizer *tokenizer, Buffer *out) {
    enum { SHOWN = 20 };
    for (size_t i = 0; i < tokenizer->added_count && i < SHOWN; i++) {
        const AddedToken *token = &tokenizer->added[i];
        buffer_printf(out, "  %-8d \"", token->id);
        for (size_t k = 0; k < token->size; k++) {
            uint8_t byte = (uint8_t)token->text[k];
            buffer_printf(out, byte < 0x20 || byte == 0x7F ? "\\x%02x" : "%c", byte);
        }
        buffer_printf(out, "\"%s%s%s%s%s\n", token->special ? ", special" : "", token->normalized ? ", normalized" : "",
                      token->single_word ? ", single word" : "", token->lstrip ? ", takes white space before it" : "",
                      token->rstrip ? ", takes white space behind it" : "");
    }
    if (tokenizer->added_count > SHOWN) {
        buffer_printf(out, "  and %zu more\n", tokenizer->added_count - SHOWN);
    }
}

const char *tokenizer_declaration(const Tokenizer *tokenizer) {
    return tokenizer->declaration;
}

void tokenizer_describe(const Tokenizer *tokenizer, Buffer *out) {
    int missing = 0;
    for (int byte = 0; byte < 256; byte++) {
        bool in_utf8 = byte < 0xC0 || (byte > 0xC1 && byte < 0xF5);
        missing += in_utf8 && tokenizer->bpe.byte_ids[byte] < 0;
    }
    buffer_printf(out, "format       %s, byte-level BPE\n", tokenizer->format);
    buffer_printf(out, "vocabulary   %d ids, %zu merges\n", tokenizer->vocabulary, tokenizer->merges);
    if (missing > 0) {
        buffer_printf(out, "bytes        %d of the 243 that UTF-8 uses have no token and are left out of the ids\n", missing);
    }
    buffer_printf(out, "normalizer   %s\n", tokenizer->nfc ? "NFC" : "none");
    for (int i = 0; i < tokenizer->stage_count; i++) {
        const Pattern *stage = tokenizer->stages[i];
        buffer_printf(out, "pattern      %s%s%s", pattern_name(stage->kind), *stage->text ? ": " : "", stage->text);
        if (stage->behavior != BEHAVIOR_ISOLATED) {
            buffer_printf(out, ", %s%s", pattern_behaviors[stage->behavior], stage->invert ? ", inverted" : "");
        }
        buffer_text(out,
                    i + 1 == tokenizer->stage_count && tokenizer->prefix_space ? ", with a space before the text\n" : "\n");
    }
    if (tokenizer->ignore_merges) {
        buffer_text(out, "whole words  a piece that is a token is not merged\n");
    }
    if (tokenizer->end_of_text >= 0) {
        buffer_printf(out, "end of text  %d\n", tokenizer->end_of_text);
    } else {
        buffer_text(out, "end of text  none\n");
    }
    buffer_printf(out, "fingerprint  %016llx\n", (unsigned long long)tokenizer->fingerprint);
    buffer_printf(out, "added tokens %zu\n", tokenizer->added_count);
    describe_added(tokenizer, out);
}
