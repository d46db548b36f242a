// Encoding: text to ids, whole or as it arrives. The way a text takes is told in tokenizer_parts.h.
//
// Pieces are handled in batches: the splitter stores the lengths of many, then each is looked up in the word cache, and only
// what is not there goes through BPE. Ids are written straight behind those that are there.
//
// A text that arrives in parts waits in a buffer until enough of it is there, then is cut at a place where neither pieces, nor
// NFC, nor added tokens can reach across (pattern_cut, added_set_crosses), and what stands before is encoded. Where a text has
// no such place (a megabyte of one letter) it waits until there is one, or until its end: the ids are right, the memory is that
// of the wait.
#include "data/tokenizer/tokenizer.h"
#include "data/tokenizer/tokenizer_parts.h"
#include "data/tokenizer/unicode.h"
#include "data/tokenizer/word_cache.h"

enum { BATCH = 256, FEED_BYTES = 1 << 16 };

struct Encoder {
    const Tokenizer *tokenizer;
    WordCache cache;
    BpeScratch scratch;
    Splitter splitters[STAGES_MOST];
    Buffer normal;    // a piece after NFC
    Buffer prefixed;  // a piece behind a space
    Buffer waiting;   // fed text that is not yet encoded
    size_t searched;  // so far no place for a cut was found in `waiting`
    size_t enough;    // look for a place when so much waits
};

Encoder *encoder_create(const Tokenizer *tokenizer) {
    Encoder *encoder = memory_zeroed(1, sizeof *encoder);
    encoder->tokenizer = tokenizer;
    encoder->enough = FEED_BYTES;
    word_cache_create(&encoder->cache);
    return encoder;
}

void encoder_free(Encoder *encoder) {
    if (encoder == NULL) {
        return;
    }
    word_cache_free(&encoder->cache);
    bpe_scratch_free(&encoder->scratch);
    for (int i = 0; i < STAGES_MOST; i++) {
        splitter_free(&encoder->splitters[i]);
    }
    buffer_free(&encoder->normal);
    buffer_free(&encoder->prefixed);
    buffer_free(&encoder->waiting);
    free(encoder);
}

static void tokens_reserve(Tokens *tokens, size_t more) {
    if (tokens->capacity - tokens->count < more) {
        size_t needed = tokens->count + more;
        tokens->capacity = needed < 2 * tokens->capacity ? 2 * tokens->capacity : needed;
        tokens->ids = memory_resize(tokens->ids, tokens->capacity, sizeof *tokens->ids);
    }
}

static void tokens_add(Tokens *tokens, int32_t id) {
    tokens_reserve(tokens, 1);
    tokens->ids[tokens->count++] = id;
}

// A piece that the cache does not hold. `out` has room for its size.
static size_t encode_word(Encoder *encoder, const uint8_t *word, size_t size, int32_t *out) {
    const Tokenizer *tokenizer = encoder->tokenizer;
    if (tokenizer->ignore_merges) {
        int32_t id = tokenizer_find_whole(tokenizer, word, size);
        if (id >= 0) {
            out[0] = id;
            return 1;
        }
    }
    return bpe_merge(&tokenizer->bpe, &encoder->scratch, word, size, out);
}

// A piece that is not in the first table of the cache: because it is long, has many ids, or was not met. `key` is NULL for a
// long one.
static void encode_rare(Encoder *encoder, const WordKey *key, const uint8_t *word, size_t size, Tokens *out) {
    tokens_reserve(out, size);
    int32_t *ids = out->ids + out->count;
    size_t count = 0;
    const int32_t *known = size <= WORD_LONGEST ? word_find_long(&encoder->cache, word, size, &count) : NULL;
    if (known != NULL) {
        memcpy(ids, known, count * sizeof *ids);
    } else {
        count = encode_word(encoder, word, size, ids);
        if (key != NULL && count <= WORD_IDS) {
            word_store(&encoder->cache, *key, ids, count);
        } else if (size <= WORD_LONGEST) {
            word_store_long(&encoder->cache, word, size, ids, count);
        }
    }
    out->count += count;
    tokens_reserve(out, BATCH * WORD_IDS);
}

// The pieces of the last stage. A batch goes through twice: first its places in the cache are worked out and asked for, then
// looked at, so that one piece does not wait for the memory of another.
static void encode_pieces(Encoder *encoder, Splitter *splitter, Tokens *out) {
    uint32_t lengths[BATCH];
    WordKey keys[BATCH];
    const uint8_t *p = splitter->text, *end = splitter->end;
    for (size_t count; (count = splitter_next(splitter, lengths, BATCH)) > 0;) {
        const uint8_t *word = p;
        for (size_t i = 0; i < count; word += lengths[i++]) {
            if (__builtin_expect(end - word >= 16, 1)) {
                keys[i] = word_key(word, lengths[i] <= WORD_SHORT ? lengths[i] : WORD_SHORT);
            } else {  // a key is loaded from 16 bytes, which the end of a text does not have
                uint8_t last[16] = {0};
                memcpy(last, word, (size_t)(end - word));
                keys[i] = word_key(last, lengths[i]);
            }
            __builtin_prefetch(word_bucket(&encoder->cache, keys[i]));
        }
        tokens_reserve(out, BATCH * WORD_IDS);
        for (size_t i = 0; i < count; p += lengths[i++]) {
            if (lengths[i] > WORD_SHORT) {
                encode_rare(encoder, NULL, p, lengths[i], out);
                continue;
            }
            const WordEntry *entry = word_find(word_bucket(&encoder->cache, keys[i]), keys[i]);
            if (__builtin_expect(entry != NULL, 1)) {
                memcpy(out->ids + out->count, entry->ids, sizeof entry->ids);
                out->count += entry->count;
            } else {
                encode_rare(encoder, &keys[i], p, lengths[i], out);
            }
        }
    }
}

// A piece that enters `stage`.
static void encode_stage(Encoder *encoder, int stage, const char *text, size_t size, Tokens *out) {
    const Tokenizer *tokenizer = encoder->tokenizer;
    Splitter *splitter = &encoder->splitters[stage];
    bool last = stage + 1 == tokenizer->stage_count;
    if (last && tokenizer->prefix_space && text[0] != ' ') {
        buffer_clear(&encoder->prefixed);
        buffer_byte(&encoder->prefixed, ' ');
        buffer_append(&encoder->prefixed, text, size);
        text = encoder->prefixed.data;
        size = encoder->prefixed.size;
    }
    splitter_begin(splitter, tokenizer->stages[stage], text, size);
    if (last) {
        encode_pieces(encoder, splitter, out);
        return;
    }
    uint32_t length;
    while (splitter_next(splitter, &length, 1) > 0) {
        if (length & PIECE_REMOVED) {
            length -= PIECE_REMOVED;
        } else {
            encode_stage(encoder, stage + 1, text, length, out);
        }
        text += length;
    }
}

// Text after NFC, without added tokens of the raw kind.
static void encode_normal(Encoder *encoder, const char *text, size_t size, bool special, Tokens *out) {
    const Tokenizer *tokenizer = encoder->tokenizer;
    AddedMatch match;
    size_t scan = 0, taken = 0;
    while (added_set_next(&tokenizer->normalized, tokenizer->added, text, size, special, &scan, taken, &match)) {
        if (taken < match.start) {
            encode_stage(encoder, 0, text + taken, match.start - taken, out);
        }
        tokens_add(out, match.token->id);
        taken = match.end;
    }
    if (taken < size) {
        encode_stage(encoder, 0, text + taken, size - taken, out);
    }
}

static void encode_raw(Encoder *encoder, const char *text, size_t size, bool special, Tokens *out) {
    if (encoder->tokenizer->nfc && !unicode_is_nfc(text, size)) {
        buffer_clear(&encoder->normal);
        unicode_nfc(text, size, &encoder->normal);
        text = encoder->normal.data;
        size = encoder->normal.size;
    }
    encode_normal(encoder, text, size, special, out);
}

void encoder_encode(Encoder *encoder, const char *text, size_t size, bool special, Tokens *out) {
    const Tokenizer *tokenizer = encoder->tokenizer;
    AddedMatch match;
    size_t scan = 0, taken = 0;
    while (added_set_next(&tokenizer->raw, tokenizer->added, text, size, special, &scan, taken, &match)) {
        if (taken < match.start) {
            encode_raw(encoder, text + taken, match.start - taken, special, out);
        }
        tokens_add(out, match.token->id);
        taken = match.end;
    }
    if (taken < size) {
        encode_raw(encoder, text + taken, size - taken, special, out);
    }
}

// The size of text[0 .. size) without an incomplete character at its end.
static size_t whole_characters(const char *text, size_t size) {
    size_t start = size;
    while (start > 0 && size - start < 3 && ((uint8_t)text[start - 1] & 0xC0) == 0x80) {
        start--;
    }
    if (start == 0 || (uint8_t)text[start - 1] < 0xC0) {
        return size;
    }
    uint8_t lead = (uint8_t)text[start - 1];
    size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    return size - start + 1 < length ? start - 1 : size;
}

static bool is_ascii(const char *text, size_t size) {
    bool ascii = true;
    for (size_t i = 0; i < size; i++) {
        ascii &= (uint8_t)text[i] < 0x80;
    }
    return ascii;
}

// Whether the text that waits may be encoded in two at `cut`, a place of pattern_cut.
static bool cut_is_safe(const Encoder *encoder, size_t cut) {
    const Tokenizer *tokenizer = encoder->tokenizer;
    const char *text = encoder->waiting.data;
    size_t size = encoder->waiting.size, longest = tokenizer->added_longest;
    if (tokenizer->prefix_space && text[cut] != ' ') {
        return false;
    }
    if (added_set_crosses(&tokenizer->raw, text, size, cut, longest)) {
        return false;
    }
    if (tokenizer->normalized.count == 0) {
        return true;
    }
    // Tokens that are looked for after NFC are looked for here before it: right where NFC changes nothing for their length.
    size_t before = cut < longest + 1 ? cut : longest + 1;
    if (tokenizer->nfc && (size - cut < longest + 1 || !is_ascii(text + cut - before, before + longest + 1))) {
        return false;
    }
    return !added_set_crosses(&tokenizer->normalized, text, size, cut, longest);
}

// Where to cut the text that waits, 0 for nowhere.
static size_t find_cut(Encoder *encoder) {
    enum { TRIES = 64 };
    size_t limit = whole_characters(encoder->waiting.data, encoder->waiting.size), cut = limit;
    for (int i = 0; i < TRIES; i++) {
        cut = pattern_cut(encoder->waiting.data, encoder->searched, cut);
        if (cut == 0 || cut_is_safe(encoder, cut)) {
            break;
        }
        if (i + 1 == TRIES) {
            cut = 0;
        }
    }
    size_t again = encoder->tokenizer->added_longest + 8;
    encoder->searched = limit > again ? limit - again : 0;
    return cut;
}

void encoder_feed(Encoder *encoder, const char *text, size_t size, bool special, Tokens *out) {
    Buffer *waiting = &encoder->waiting;
    while (size > 0) {
        size_t part = size < FEED_BYTES ? size : FEED_BYTES;
        buffer_append(waiting, text, part);
        text += part;
        size -= part;
        if (waiting->size < encoder->enough || !encoder->tokenizer->can_cut) {
            continue;
        }
        size_t cut = find_cut(encoder);
        if (cut == 0) {
            encoder->enough = waiting->size + waiting->size / 2;
            continue;
        }
        encoder_encode(encoder, waiting->data, cut, special, out);
        memmove(waiting->data, waiting->data + cut, waiting->size - cut);
        waiting->size -= cut;
        encoder->searched = 0;
        encoder->enough = waiting->size + FEED_BYTES;
    }
}

void encoder_finish(Encoder *encoder, bool special, Tokens *out) {
    if (encoder->waiting.size > 0) {
        encoder_encode(encoder, encoder->waiting.data, encoder->waiting.size, special, out);
    }
    encoder_forget(encoder);
}

size_t encoder_waiting(const Encoder *encoder) {
    return encoder->waiting.size;
}

void encoder_forget(Encoder *encoder) {
    buffer_clear(&encoder->waiting);
    encoder->searched = 0;
    encoder->enough = FEED_BYTES;
}
