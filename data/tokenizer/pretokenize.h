// Pre-tokenization: cutting text into the pieces that BPE never merges across.
//
// The patterns in use everywhere have hand-written splitters; any other is read as an expression (expression.h). Both see the
// characters of Unicode 16. A splitter covers its text without gaps: what a pattern does not match becomes a piece of its own,
// as with "Isolated" in tokenizer.json; the other behaviors of Split remove pieces or join them.
//
// The hand-written ones look at nothing before the piece's start, and those for words end a piece wherever a letter or number
// is followed by something else. So a text may be cut there without a change of its pieces: pattern_cut.
#pragma once

#include "core/memory.h"
#include "data/tokenizer/expression.h"

typedef enum PatternKind {
    PATTERN_WHOLE,        // no cutting
    PATTERN_GPT2,         // GPT-2, GPT-NeoX
    PATTERN_LLAMA3,       // numbers of up to three digits
    PATTERN_QWEN,         // the same with single digits
    PATTERN_CL100K,       // GPT-4: as LLAMA3, but white space at the end of the text is one piece
    PATTERN_CL100K_RUNS,  // the same with numbers of any length
    PATTERN_DIGIT,        // \p{N}: each number character alone, the rest uncut
    PATTERN_DIGITS,       // \p{N}+
    PATTERN_OTHER,        // an expression
} PatternKind;

// What becomes of the matches of a pattern: of Split in tokenizer.json, in the order of pattern_behaviors. `invert` calls what
// is between the matches the matches.
typedef enum PatternBehavior {
    BEHAVIOR_ISOLATED,              // each is a piece
    BEHAVIOR_REMOVED,               // they are in no piece
    BEHAVIOR_MERGED_WITH_PREVIOUS,  // each joins what stands before it, if that is no match
    BEHAVIOR_MERGED_WITH_NEXT,      // and this what stands behind it
    BEHAVIOR_CONTIGUOUS,            // neighbours join each other
    BEHAVIORS
} PatternBehavior;
extern const char *const pattern_behaviors[BEHAVIORS];

typedef struct Pattern {
    PatternKind kind;
    char *text;              // the regular expression; "" for PATTERN_WHOLE
    Expression *expression;  // PATTERN_OTHER
    PatternBehavior behavior;
    bool invert;
} Pattern;

// Compiles a regular expression as tokenizer.json and tiktoken write it. The error says where it is wrong or not supported.
Error *pattern_create(const char *expression, size_t size, Pattern **out) MUST_CHECK;
Pattern *pattern_known(PatternKind kind);  // any but PATTERN_OTHER
// Sets what becomes of matches (before: isolated). What is the same as isolated becomes isolated.
void pattern_behave(Pattern *pattern, PatternBehavior behavior, bool invert);
bool pattern_covers(const Pattern *pattern);  // whether every text is matches of it, without gaps
void pattern_free(Pattern *pattern);

const char *pattern_name(PatternKind kind);  // "gpt2", "llama3" ...

// Where splitting stands. The state belongs to one thread and one text.
typedef struct Splitter {
    const Pattern *pattern;
    const uint8_t *text, *end;  // all that is split: `end` ends it for \s+(?!\S)
    const uint8_t *at;          // the first byte that is not yet in a piece
    const uint8_t *group_end;   // pieces that were joined and are not yet given: up to here
    bool group_removed;
    const uint8_t *ahead;  // the end of the match, or of the gap, that was found ahead and does not join; NULL: none
    bool ahead_match;
    struct Matcher *matcher;  // PATTERN_OTHER: the text as symbols, and where matching stands; made at the first use
} Splitter;

enum { PIECE_REMOVED = 1 << 30 };  // added to the length of a piece that is to be left out: BEHAVIOR_REMOVED alone

void splitter_begin(Splitter *splitter, const Pattern *pattern, const char *text, size_t size);
void splitter_free(Splitter *splitter);

// Stores the lengths of the next pieces, at most `capacity`, and returns their number; 0 at the end of the text. A piece longer
// than 512 MiB comes in parts.
size_t splitter_next(Splitter *splitter, uint32_t *lengths, size_t capacity);

// Whether the pattern ends a piece wherever a letter or number is followed by a character that is neither (see pattern_cut).
bool pattern_ends_words(const Pattern *pattern);

// The last place in text[from .. size) where a letter or number is followed by a character that is neither, nor changed by NFC
// or changing what precedes it; 0 where there is none.
size_t pattern_cut(const char *text, size_t from, size_t size);
