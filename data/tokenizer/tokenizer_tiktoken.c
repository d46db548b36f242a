// Reading .tiktoken files into a Tokenizer.
//
// Each line is the base64 of a token's bytes, a blank and its rank, which is its id. There are no merges: of two adjacent
// tokens whose bytes together are a token, the pair of lowest rank merges first. That is a table of pairs, too: every way to
// cut a token into two tokens is a pair with the token's rank.
//
// A token may have no bytes, written "=": Whisper's multilingual file ends with one, which is why its end of text is not the id
// that its merges tell (they are as many as GPT-2's) but one more.
//
// The file tells neither the pattern nor the special tokens. They follow from a hint in its name, else from the number of
// ranks; before both goes a first line that we allow, "# encoding NAME" or "# encoding NAME end-of-text ID".
#include "core/durable.h"
#include "data/tokenizer/tokenizer_parts.h"

#include <inttypes.h>
#include <stdio.h>

enum { TOKEN_LONGEST = 1024 };

typedef struct Special {
    int32_t id;
    const char *text;
} Special;

// What is known of a file: by a word in its name, or by its number of ranks.
typedef struct Encoding {
    const char *hint;
    int64_t ranks;  // 0: any
    PatternKind pattern;
    Special special[6];  // ends with text NULL; none: <|endoftext|> behind the last rank
} Encoding;

#define O200K_LOWER                                                                                                            \
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
#define O200K_UPPER                                                                                                            \
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
static const char o200k_pattern[] =
    O200K_LOWER "|" O200K_UPPER "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

static const Encoding encodings[] = {
    {"gpt2", 50256, PATTERN_GPT2, {{50256, "<|endoftext|>"}}},
    {"r50k", 50256, PATTERN_GPT2, {{50256, "<|endoftext|>"}}},
    {"p50k", 50280, PATTERN_GPT2, {{50256, "<|endoftext|>"}}},
    {"multilingual", 50257, PATTERN_GPT2, {{50257, "<|endoftext|>"}}},
    {"cl100k",
     100256,
     PATTERN_CL100K,
     {{100257, "<|endoftext|>"},
      {100258, "<|fim_prefix|>"},
      {100259, "<|fim_middle|>"},
      {100260, "<|fim_suffix|>"},
      {100276, "<|endofprompt|>"}}},
    {"o200k", 199998, PATTERN_OTHER, {{199999, "<|endoftext|>"}, {200018, "<|endofprompt|>"}}},
    {"llama3", 128000, PATTERN_LLAMA3, {{128000, "<|begin_of_text|>"}, {128001, "<|end_of_text|>"}}},
    {"qwen", 151643, PATTERN_QWEN, {{151643, "<|endoftext|>"}, {151644, "<|im_start|>"}, {151645, "<|im_end|>"}}},
};

enum { ENCODINGS = sizeof encodings / sizeof *encodings };

// The bytes of a base64 text into `out` (room for TOKEN_LONGEST); -1 if it is not one.
static int decode_base64(const char *text, size_t size, char *out) {
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    if (size == 1 && *text == '=') {
        return 0;
    }
    if (size == 0 || size % 4 != 0 || size / 4 * 3 > TOKEN_LONGEST) {
        return -1;
    }
    int count = 0;
    for (size_t i = 0; i < size; i += 4) {
        uint32_t bits = 0;
        int padding = 0;
        for (int k = 0; k < 4; k++) {
            char c = text[i + (size_t)k];
            const char *place = c == 0 ? NULL : strchr(alphabet, c);
            if (c == '=' && i + 4 == size && k >= 2) {
                padding++;
            } else if (place == NULL || padding > 0) {
                return -1;
            }
            bits = bits << 6 | (place == NULL ? 0 : (uint32_t)(place - alphabet));
        }
        for (int k = 0; k < 3 - padding; k++) {
            out[count++] = (char)(bits >> (16 - 8 * k));
        }
    }
    return count;
}

static Error *read_line(const char *name, int64_t line, const char *text, size_t size, Tokenizer *tokenizer) {
    char bytes[TOKEN_LONGEST];
    const char *blank = memchr(text, ' ', size);
    int count = blank == NULL ? -1 : decode_base64(text, (size_t)(blank - text), bytes);
    if (count < 0) {
        return damaged("%s:%" PRId64 ": not the base64 of a token of at most %d bytes and a rank", name, line, TOKEN_LONGEST);
    }
    int64_t rank = 0;
    const char *digit = blank + 1, *end = text + size;
    for (; digit < end && *digit >= '0' && *digit <= '9' && rank < TOKEN_IDS_MOST; digit++) {
        rank = 10 * rank + (*digit - '0');
    }
    if (digit != end || blank + 1 == end || rank >= TOKEN_IDS_MOST) {
        return damaged("%s:%" PRId64 ": the rank is not a whole number below %d", name, line, TOKEN_IDS_MOST);
    }
    if (!tokenizer_set_token(tokenizer, (int32_t)rank, bytes, (size_t)count, TOKEN_BYTES)) {
        return damaged("%s:%" PRId64 ": rank %" PRId64 " stands twice", name, line, rank);
    }
    return NULL;
}

static Error *read_lines(const char *name, const char *bytes, size_t size, int64_t line, Tokenizer *tokenizer, int64_t *ranks) {
    *ranks = 0;
    for (size_t start = 0, end; start < size; start = end + 1) {
        const char *newline = memchr(bytes + start, '\n', size - start);
        end = newline == NULL ? size : (size_t)(newline - bytes);
        size_t length = end - start;
        length -= length > 0 && bytes[end - 1] == '\r';
        line++;
        if (length > 0) {
            TRY(read_line(name, line, bytes + start, length, tokenizer));
            ++*ranks;
        }
    }
    return NULL;
}

// The pairs that make token `id`; those are added if `add`. Returns their number.
static size_t token_pairs(Tokenizer *tokenizer, int32_t id, bool add) {
    const TokenSpan *span = &tokenizer->tokens[id];
    const uint8_t *bytes = (const uint8_t *)tokenizer->bytes.data + span->offset;
    size_t count = 0;
    for (size_t cut = 1; cut < span->size; cut++) {
        int32_t left = tokenizer_find_whole(tokenizer, bytes, cut);
        int32_t right = left < 0 ? -1 : tokenizer_find_whole(tokenizer, bytes + cut, span->size - cut);
        if (right >= 0) {
            count++;
            if (add) {
                bpe_add(&tokenizer->bpe, left, right, id, id);
            }
        }
    }
    return count;
}

static Error *build_pairs(const char *name, Tokenizer *tokenizer) {
    tokenizer_index_whole(tokenizer);
    size_t count = 0;
    for (int32_t id = 0; id < tokenizer->vocabulary; id++) {
        const TokenSpan *span = &tokenizer->tokens[id];
        if ((span->flags & TOKEN_BYTES) &&
            tokenizer_find_whole(tokenizer, (const uint8_t *)tokenizer->bytes.data + span->offset, span->size) != id) {
            return damaged("%s: ranks %d and another have the same bytes", name, id);
        }
        count += token_pairs(tokenizer, id, false);
    }
    TRY(bpe_create(&tokenizer->bpe, count));
    for (int byte = 0; byte < 256; byte++) {
        uint8_t bytes[1] = {(uint8_t)byte};
        tokenizer->bpe.byte_ids[byte] = tokenizer_find_whole(tokenizer, bytes, 1);
        if (tokenizer->bpe.byte_ids[byte] < 0) {
            return damaged("%s: the byte 0x%02X has no rank; a .tiktoken file has one for every byte", name, (unsigned)byte);
        }
    }
    for (int32_t id = 0; id < tokenizer->vocabulary; id++) {
        tokenizer->merges += tokenizer->tokens[id].size > 1;
        token_pairs(tokenizer, id, true);
    }
    return NULL;
}

static Error *find_encoding(const char *name, int64_t ranks, const Tokenizer *tokenizer, const Encoding **out) {
    const char *file = path_name(name);
    for (int i = 0; i < ENCODINGS; i++) {
        if (strstr(file, encodings[i].hint) != NULL) {
            *out = &encodings[i];
            return NULL;
        }
    }
    for (int i = 0; i < ENCODINGS; i++) {
        if (encodings[i].ranks == ranks) {
            *out = &encodings[i];
            return NULL;
        }
    }
    return failure("%s: %" PRId64 " ranks tell no known encoding; name the file after the one it uses: "
                   "gpt2, r50k, p50k, multilingual, cl100k, o200k, llama3 or qwen, such as my.gpt2.tiktoken, or let its first "
                   "line be \"# encoding gpt2 end-of-text %d\" with the id that ends a document",
                   name, ranks, tokenizer->vocabulary);
}

// Reads a declaration, if the file begins with one. *start is behind it, *end_of_text -1 where it names no id.
static Error *read_declaration(const char *name, const char *bytes, size_t size, size_t *start, const Encoding **encoding,
                               int32_t *end_of_text) {
    *start = 0;
    *end_of_text = -1;
    if (size == 0 || *bytes != '#') {
        return NULL;
    }
    const char *newline = memchr(bytes, '\n', size);
    size_t length = newline == NULL ? size : (size_t)(newline - bytes);
    char line[80] = "", word[16] = "", behind = 0;
    *start = newline == NULL ? size : length + 1;
    memcpy(line, bytes, length < sizeof line ? length : sizeof line - 1);
    int fields = sscanf(line, "# encoding %15[a-z0-9] end-of-text %" SCNd32 " %c", word, end_of_text, &behind);
    for (int i = 0; i < ENCODINGS; i++) {
        if (strcmp(word, encodings[i].hint) == 0) {
            *encoding = &encodings[i];
        }
    }
    char plain[80];
    snprintf(plain, sizeof plain, fields == 1 ? "# encoding %s" : "# encoding %s end-of-text %" PRId32, word, *end_of_text);
    size_t said = strlen(line) - (strlen(line) > 0 && line[strlen(line) - 1] == '\r');
    if (*encoding == NULL || fields > 2 || strncmp(plain, line, said) != 0 || strlen(plain) != said ||
        (fields == 2 && (*end_of_text < 0 || *end_of_text >= TOKEN_IDS_MOST))) {
        return damaged(
            "%s:1: a line that begins with # must be \"# encoding NAME\" or \"# encoding NAME end-of-text ID\" with one "
            "of gpt2, r50k, p50k, multilingual, cl100k, o200k, llama3 or qwen and an id below %d",
            name, TOKEN_IDS_MOST);
    }
    return NULL;
}

Error *tokenizer_from_tiktoken(const char *name, const char *bytes, size_t size, Tokenizer *out) {
    int64_t ranks;
    size_t start;
    int32_t end_of_text;
    const Encoding *encoding = NULL;
    out->format = "tiktoken";
    out->ignore_merges = true;
    TRY(read_declaration(name, bytes, size, &start, &encoding, &end_of_text));
    TRY(read_lines(name, bytes + start, size - start, start > 0, out, &ranks));
    if (encoding == NULL) {
        TRY(find_encoding(name, ranks, out, &encoding));
    }
    TRY(build_pairs(name, out));
    Pattern *pattern;
    if (encoding->pattern == PATTERN_OTHER) {
        TRY(pattern_create(o200k_pattern, sizeof o200k_pattern - 1, &pattern));
    } else {
        pattern = pattern_known(encoding->pattern);
    }
    tokenizer_add_stage(out, pattern);
    // A file with another number of ranks than the encoding's own ends documents with the id behind its last.
    const Special declared[] = {{end_of_text, "<|endoftext|>"}, {0, NULL}};  // -1: behind the last
    const Special *special = ranks == encoding->ranks && end_of_text < 0 ? encoding->special : declared;
    if (end_of_text >= 0 && end_of_text < out->vocabulary && (out->tokens[end_of_text].flags & TOKEN_PRESENT)) {
        return damaged("%s:1: end-of-text %d is a rank of the file", name, end_of_text);
    }
    const Encoding *unnamed = NULL;
    Error *untold = find_encoding("", ranks, out, &unnamed);
    if (start == 0 && unnamed != encoding) {
        snprintf(out->declaration, sizeof out->declaration, "# encoding %s\n", encoding->hint);
    }
    error_free(untold);
    for (int i = 0; special[i].text != NULL; i++) {
        AddedToken token = {.id = special[i].id < 0 ? out->vocabulary : special[i].id,
                            .text = (char *)(uintptr_t)special[i].text,
                            .size = strlen(special[i].text),
                            .special = true};
        tokenizer_add(out, token);
    }
    return NULL;
}
