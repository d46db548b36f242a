// The patterns of pre-tokenization: the known ones by their text, others as expressions. See pretokenize.h.
//
// Patterns are written for Oniguruma (tokenizer.json) or for Rust's regex engine (tiktoken). All of them, those that are
// written out in C too, see the characters of Unicode 16 (unicode.h), whatever the libraries of this machine know.
#include "data/tokenizer/pretokenize.h"

#define GPT2_PATTERN "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define LLAMA_START "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define LLAMA_END "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define GPT4_START "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+"

#define GPT4_END "| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*+|\\s++$|\\s*[\\r\\n]|\\s+(?!\\S)|\\s"

// The first text of a kind is the one we write.
const char *const pattern_behaviors[BEHAVIORS] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"};

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

bool pattern_covers(const Pattern *pattern) {
    return pattern->kind >= PATTERN_GPT2 && pattern->kind <= PATTERN_CL100K_RUNS;
}

void pattern_behave(Pattern *pattern, PatternBehavior behavior, bool invert) {
    bool each_alone = behavior == BEHAVIOR_MERGED_WITH_PREVIOUS || behavior == BEHAVIOR_MERGED_WITH_NEXT;
    if (pattern_covers(pattern) && (each_alone || (behavior == BEHAVIOR_REMOVED && invert))) {
        behavior = BEHAVIOR_ISOLATED;  // all pieces are matches, so there is nothing to merge with or to remove
    }
    pattern->behavior = behavior;
    pattern->invert = invert && behavior != BEHAVIOR_ISOLATED;
}

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
        expression_free(pattern->expression);
        free(pattern->text);
        free(pattern);
    }
}

Error *pattern_create(const char *expression, size_t size, Pattern **out) {
    *out = NULL;
    for (int i = 1; i < KNOWN; i++) {
        if (strlen(known[i].text) == size && memcmp(known[i].text, expression, size) == 0) {
            *out = pattern_known(known[i].kind);
            return NULL;
        }
    }
    Expression *compiled;
    TRY(expression_create(expression, size, &compiled));
    Pattern *pattern = memory_zeroed(1, sizeof *pattern);
    pattern->kind = PATTERN_OTHER;
    pattern->expression = compiled;
    pattern->text = memory_format("%.*s", (int)size, expression);
    *out = pattern;
    return NULL;
}
