// The patterns of pre-tokenization: the known ones by their text, others compiled by PCRE2. See pretokenize.h.
//
// Patterns are written for Oniguruma (tokenizer.json) or for Rust's regex engine (tiktoken). Where the same text means
// something else to PCRE2 it is written out (\s, \S, \w, \W) or refused (\b, \h, \v, sets inside sets), never silently read
// differently. \p{...} follows PCRE2's own version of Unicode: characters that are younger than it may be cut differently.
#include "data/tokenizer/pretokenize.h"

#include <stdio.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

enum { LONGEST_PATTERN = 8192 };

#define GPT2_PATTERN "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define LLAMA_START "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define LLAMA_END "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define GPT4_START "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+"

#define GPT4_END "| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*+|\\s++$|\\s*[\\r\\n]|\\s+(?!\\S)|\\s"

// The first text of a kind is the one we write.
static const struct {
    PatternKind kind;
    const char *name, *text;
} known[] = {
    {PATTERN_WHOLE, "whole", ""},
    {PATTERN_GPT2, "gpt2", GPT2_PATTERN},
    {PATTERN_GPT2, "gpt2", "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"},
    {PATTERN_GPT2, "gpt2", "'(?:[sdmt]|ll|ve|re)| ?\\p{L}++| ?\\p{N}++| ?[^\\s\\p{L}\\p{N}]++|\\s++$|\\s+(?!\\S)|\\s"},
    {PATTERN_LLAMA3, "llama3", LLAMA_START "\\p{N}{1,3}" LLAMA_END},
    {PATTERN_LLAMA3, "llama3", GPT4_START "\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+"},
    {PATTERN_QWEN, "qwen", LLAMA_START "\\p{N}" LLAMA_END},
    {PATTERN_CL100K, "gpt4", GPT4_START "\\p{L}++|\\p{N}{1,3}" GPT4_END},
    {PATTERN_CL100K_RUNS, "gpt4-runs", GPT4_START "\\p{L}++|\\p{N}{1,3}+" GPT4_END},
    {PATTERN_DIGIT, "digit", "\\p{N}"},
    {PATTERN_DIGITS, "digits", "\\p{N}+"},
};
enum { KNOWN = sizeof known / sizeof *known };

const char *pattern_name(PatternKind kind) {
    for (int i = 0; i < KNOWN; i++) {
        if (known[i].kind == kind) {
            return known[i].name;
        }
    }
    return "other";
}

Pattern *pattern_known(PatternKind kind) {
    Pattern *pattern = memory_zeroed(1, sizeof *pattern);
    for (int i = 0; i < KNOWN && pattern->text == NULL; i++) {
        if (known[i].kind == kind) {
            pattern->kind = kind;
            pattern->text = memory_string(known[i].text);
        }
    }
    ensure(pattern->text != NULL, "pattern %d is not a known one", (int)kind);
    return pattern;
}

void pattern_free(Pattern *pattern) {
    if (pattern != NULL) {
        pcre2_code_free(pattern->code);
        free(pattern->text);
        free(pattern);
    }
}

// White space and what is not, as ranges inside a set; the characters of words.
#define SPACES "\\t-\\r \\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}"
#define NO_SPACES                                                                                                              \
    "\\x{0}-\\x{8}\\x{E}-\\x{1F}!-\\x{84}\\x{86}-\\x{9F}\\x{A1}-\\x{167F}\\x{1681}-\\x{1FFF}\\x{200B}-\\x{2027}"               \
    "\\x{202A}-\\x{202E}\\x{2030}-\\x{205E}\\x{2060}-\\x{2FFF}\\x{3001}-\\x{D7FF}\\x{E000}-\\x{10FFFF}"
#define WORDS                                                                                                                  \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}"

// Writes the pattern for PCRE2 into `out`.
static Error *translate(const char *text, size_t size, Buffer *out) {
    bool in_set = false;
    for (size_t i = 0; i < size; i++) {
        char c = text[i], next = i + 1 < size ? text[i + 1] : 0;
        if (c == '\\' && i + 1 < size) {
            i++;
            if (next == 'u' && i + 4 < size && strspn(text + i + 1, "0123456789abcdefABCDEF") >= 4) {
                buffer_printf(out, "\\x{%.4s}", text + i + 1);
                i += 4;
                continue;
            }
            const char *set = next == 's' || (next == 'S' && !in_set)   ? SPACES
                              : next == 'S'                             ? NO_SPACES
                              : next == 'w' || (next == 'W' && !in_set) ? WORDS
                                                                        : NULL;
            if (set != NULL) {
                buffer_printf(out, in_set ? "%s" : next == 'S' || next == 'W' ? "[^%s]" : "[%s]", set);
            } else if (strchr("bBhHvVRXKGNQEWCgkc", next) != NULL && !(in_set && next == 'b')) {
                return failure("\\%c at byte %zu of the pattern is not supported", next, i - 1);
            } else {
                buffer_byte(out, '\\');
                buffer_byte(out, next);
            }
            continue;
        }
        if (!in_set && c == '}' && next == '+') {
            return failure("a + behind an interval, at byte %zu of the pattern, is not supported", i + 1);
        }
        if (in_set && ((c == '[' && next != ':') || (c == '&' && next == '&'))) {
            return failure("a set inside a set, at byte %zu of the pattern, is not supported", i);
        }
        buffer_byte(out, c);
        if (in_set && c == '[') {  // [:name:]
            while (i + 1 < size && text[i + 1] != ']') {
                buffer_byte(out, text[++i]);
            }
            if (i + 1 < size) {
                buffer_byte(out, text[++i]);
            }
        } else if (!in_set && c == '[') {
            in_set = true;
            if (next == '^') {
                buffer_byte(out, text[++i]);
            }
            if (i + 1 < size && text[i + 1] == ']') {
                return failure("an empty set, at byte %zu of the pattern, is not supported", i);
            }
        } else if (in_set && c == ']') {
            in_set = false;
        }
    }
    return NULL;
}

static Error *compile(const Buffer *text, void **code) {
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    ensure(context != NULL, "no memory for a pattern");
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    int problem = 0;
    PCRE2_SIZE where = 0;
    *code = pcre2_compile((PCRE2_SPTR)text->data, text->size, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                          &problem, &where, context);
    pcre2_compile_context_free(context);
    if (*code == NULL) {
        PCRE2_UCHAR message[160] = "unknown problem";
        pcre2_get_error_message(problem, message, sizeof message);
        return failure("the pattern is no regular expression that PCRE2 accepts: %s", (const char *)message);
    }
    pcre2_jit_compile(*code, PCRE2_JIT_COMPLETE);  // where there is no JIT, matching is slower
    return NULL;
}

Error *pattern_create(const char *expression, size_t size, Pattern **out) {
    *out = NULL;
    for (int i = 1; i < KNOWN; i++) {
        if (strlen(known[i].text) == size && memcmp(known[i].text, expression, size) == 0) {
            *out = pattern_known(known[i].kind);
            return NULL;
        }
    }
    if (size == 0 || size > LONGEST_PATTERN || memchr(expression, 0, size) != NULL) {
        return failure("a pattern of %zu bytes is not supported: it must have 1 to %d, none of them zero", size,
                       LONGEST_PATTERN);
    }
    Buffer text = {0};
    void *code = NULL;
    Error *error = translate(expression, size, &text);
    if (error == NULL) {
        error = compile(&text, &code);
    }
    buffer_free(&text);
    if (error != NULL) {
        return error;
    }
    Pattern *pattern = memory_zeroed(1, sizeof *pattern);
    pattern->kind = PATTERN_OTHER;
    pattern->code = code;
    pattern->text = memory_format("%.*s", (int)size, expression);
    *out = pattern;
    return NULL;
}
