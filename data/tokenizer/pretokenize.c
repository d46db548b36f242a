// Pre-tokenization: see pretokenize.h.
//
// Each splitter is the alternation of its pattern written out: the first alternative that matches decides. The runs (letters,
// numbers, white space, others) are scanned eight ASCII bytes at a time where that pays (letters), else through the class
// table.
//
//   gpt2    's|'t|'re|'ve|'m|'ll|'d| ?L+| ?N+| ?O+|\s+(?!\S)|\s+
//   llama3  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\nLN]?L+|N{1,3}| ?O+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
//   qwen    the same with N in place of N{1,3}
//   cl100k  the same as llama3, but \s++$ before \s*[\r\n]: white space that ends the text stays whole
#include "data/tokenizer/pretokenize.h"

#include "data/tokenizer/unicode.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

enum { L = UNICODE_LETTER, N = UNICODE_NUMBER, S = UNICODE_SPACE };
typedef const uint8_t *Place;

// The classes of the character at p, 0 at the end, and the place behind it.
static inline unsigned class_at(Place p, Place end, const uint8_t *classes, Place *behind) {
    *behind = p;
    if (p >= end) {
        return 0;
    }
    if (*p < 0x80) {
        *behind = p + 1;
        return classes[*p];
    }
    int length;
    uint32_t code = unicode_decode(p, end, &length);
    *behind = p + length;
    return classes[code];
}

// Behind the run of ASCII letters at p: in each byte of `word` the high bit is set where it is a letter.
static inline Place ascii_letters(Place p, Place end) {
    const uint64_t ones = 0x0101010101010101u, high = 0x8080808080808080u;
    while (end - p >= 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        uint64_t low = (word | ones * 0x20) & ~high;
        uint64_t letters = (low + ones * (0x80 - 'a')) & ~(low + ones * (0x7F - 'z')) & ~word & high;
        if (letters != high) {
            return p + (__builtin_ctzll(~letters & high) >> 3);
        }
        p += 8;
    }
    while (p < end && (uint8_t)((*p | 0x20) - 'a') < 26) {
        p++;
    }
    return p;
}

static inline Place letters(Place p, Place end, const uint8_t *classes) {
    for (;;) {
        Place behind;
        p = ascii_letters(p, end);
        if (p == end || *p < 0x80 || !(class_at(p, end, classes, &behind) & L)) {
            return p;
        }
        p = behind;
    }
}

// Behind the run of characters whose classes & mask equal `value`, at most `most` of them.
static inline Place run(Place p, Place end, const uint8_t *classes, unsigned mask, unsigned value, size_t most) {
    Place behind;
    while (most > 0 && p < end && (class_at(p, end, classes, &behind) & mask) == value) {
        p = behind;
        most--;
    }
    return p;
}

static inline Place others(Place p, Place end, const uint8_t *classes) {
    return run(p, end, classes, L | N | S, 0, SIZE_MAX);
}

static inline Place line_ends(Place p, Place end) {
    while (p < end && (*p == '\r' || *p == '\n')) {
        p++;
    }
    return p;
}

// Behind 's 't 're 've 'm 'll 'd at p, where an apostrophe stands; or p. `fold`: capitals too, and U+017F, the long s.
static inline Place contraction(Place p, Place end, bool fold) {
    if (end - p < 2) {
        return p;
    }
    uint8_t bit = fold ? 0x20 : 0, a = p[1] | bit;
    if (a == 's' || a == 't' || a == 'm' || a == 'd') {
        return p + 2;
    }
    if (end - p < 3) {
        return p;
    }
    uint8_t b = p[2] | bit;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) {
        return p + 3;
    }
    return fold && p[1] == 0xC5 && p[2] == 0xBF ? p + 3 : p;
}

// Behind the white space of which p is the first: \s+(?!\S)|\s+, that is all but the last character if more text follows.
static inline Place spaces(Place p, Place end, const uint8_t *classes) {
    Place last = p, behind = p;
    for (Place q = p; q < end && (class_at(q, end, classes, &behind) & S); q = behind) {
        last = q;
    }
    Place stop = run(last, end, classes, S, S, 1);
    return stop == end || last == p ? stop : last;
}

static inline Place next_gpt2(Place p, Place end, const uint8_t *classes) {
    if (*p == '\'') {
        Place behind = contraction(p, end, false);
        if (behind != p) {
            return behind;
        }
    }
    Place start = p + (*p == ' ' && end - p > 1), behind;
    unsigned class = class_at(start, end, classes, &behind);
    if (class & L) {
        return letters(behind, end, classes);
    }
    if (class & S) {
        return spaces(p, end, classes);
    }
    return class & N ? run(behind, end, classes, N, N, SIZE_MAX) : others(behind, end, classes);
}

// llama3, qwen and cl100k.
static inline Place next_llama(Place p, Place end, const uint8_t *classes, size_t digits, bool whole_end) {
    if (*p == '\'') {
        Place behind = contraction(p, end, true);
        if (behind != p) {
            return behind;
        }
    }
    Place behind, second = p;
    unsigned class = class_at(p, end, classes, &behind);
    if (class & L) {
        return letters(behind, end, classes);
    }
    if (class & N) {
        return run(behind, end, classes, N, N, digits - 1);
    }
    if (*p != '\r' && *p != '\n' && (class_at(behind, end, classes, &second) & L)) {
        return letters(second, end, classes);
    }
    if (!(class & S)) {
        return line_ends(others(behind, end, classes), end);
    }
    if (*p == ' ' && behind < end && !(class_at(behind, end, classes, &second) & (L | N | S))) {
        return line_ends(others(second, end, classes), end);
    }
    Place line_end = p, q = p;  // behind the last line end of this white space
    while (q < end && (class_at(q, end, classes, &behind) & S)) {
        line_end = *q == '\r' || *q == '\n' ? behind : line_end;
        q = behind;
    }
    if (line_end != p && !(whole_end && q == end)) {
        return line_end;
    }
    return spaces(p, end, classes);
}

static inline Place next_digits(Place p, Place end, const uint8_t *classes, size_t most) {
    Place behind = run(p, end, classes, N, N, most);
    return behind != p ? behind : run(p, end, classes, N, 0, SIZE_MAX);
}

// Limits for patterns from files: steps for one match, and memory for backtracking.
enum { MATCH_STEPS = 10000000, MATCH_STACK = 16 << 20 };
#define NONE SIZE_MAX

// The text as symbols (places are counted in characters), and where the search of matches stands.
struct Matcher {
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
    uint8_t *symbols;
    size_t count, capacity;
    bool begun, one_byte;  // the text is in `symbols`; each of its characters is one byte
    size_t place, from;    // behind what was given; where the next search starts
    size_t last_end;       // of the last match, NONE before
    size_t start, stop;    // a match that was found and is not given yet, NONE: there is none
    Place behind;          // the byte at `place`
};

static struct Matcher *matcher_create(void) {
    struct Matcher *matcher = memory_zeroed(1, sizeof *matcher);
    matcher->data = pcre2_match_data_create(1, NULL);
    matcher->context = pcre2_match_context_create(NULL);
    ensure(matcher->data != NULL && matcher->context != NULL, "no memory for matching");
    pcre2_set_match_limit(matcher->context, MATCH_STEPS);
    pcre2_set_heap_limit(matcher->context, MATCH_STACK >> 10);
    matcher->stack = pcre2_jit_stack_create(32 << 10, MATCH_STACK, NULL);
    if (matcher->stack != NULL) {
        pcre2_jit_stack_assign(matcher->context, NULL, matcher->stack);
    }
    return matcher;
}

static struct Matcher *matcher_begin(Splitter *splitter) {
    if (splitter->matcher == NULL) {
        splitter->matcher = matcher_create();
    }
    struct Matcher *matcher = splitter->matcher;
    size_t size = (size_t)(splitter->end - splitter->text);
    if (size > matcher->capacity) {
        free(matcher->symbols);
        matcher->capacity = size + size / 2;
        matcher->symbols = memory_new(matcher->capacity, 1);
    }
    matcher->count = symbols_of(&splitter->pattern->expression->symbols, splitter->text, size, matcher->symbols);
    matcher->one_byte = matcher->count == size;
    matcher->place = matcher->from = 0;
    matcher->last_end = matcher->start = NONE;
    matcher->behind = splitter->text;
    matcher->begun = true;
    return matcher;
}

// Finds the next match; false: there is none. An empty one right behind the match before is passed over. Beyond the limits one
// character is left alone, so that the rest goes on.
static bool matcher_search(struct Matcher *matcher, const Expression *expression) {
    while (matcher->from <= matcher->count) {
        int found =
            pcre2_match(expression->code, matcher->symbols, matcher->count, matcher->from, 0, matcher->data, matcher->context);
        if (found == PCRE2_ERROR_NOMATCH) {
            break;
        }
        const PCRE2_SIZE *bounds = pcre2_get_ovector_pointer(matcher->data);
        if (found < 0 || (bounds[0] == bounds[1] && bounds[1] == matcher->last_end)) {
            matcher->from++;
            continue;
        }
        matcher->start = bounds[0];
        matcher->stop = matcher->from = matcher->last_end = bounds[1];
        return true;
    }
    matcher->from = NONE;
    return false;
}

// The next match, which may be empty, or the gap before it: its end, NULL where the text is at its end.
static Place next_part(Splitter *splitter, bool *match) {
    struct Matcher *matcher = splitter->matcher;
    if (matcher == NULL || !matcher->begun) {
        matcher = matcher_begin(splitter);
    }
    size_t to = matcher->count;
    *match = false;
    if (matcher->start != NONE || (matcher->from != NONE && matcher_search(matcher, splitter->pattern->expression))) {
        *match = matcher->start == matcher->place;
        to = *match ? matcher->stop : matcher->start;
        matcher->start = *match ? NONE : matcher->start;
    } else if (matcher->place == to) {
        return NULL;
    }
    if (matcher->one_byte) {
        matcher->behind = splitter->text + to;
    } else {
        int length;
        for (size_t i = matcher->place; i < to; i++) {
            unicode_decode(matcher->behind, splitter->end, &length);
            matcher->behind += length;
        }
    }
    matcher->place = to;
    return matcher->behind;
}

void splitter_begin(Splitter *splitter, const Pattern *pattern, const char *text, size_t size) {
    splitter->pattern = pattern;
    splitter->text = splitter->at = splitter->group_end = (Place)text;
    splitter->end = (Place)text + size;
    splitter->ahead = NULL;
    if (splitter->matcher != NULL) {
        splitter->matcher->begun = false;
    }
}

void splitter_free(Splitter *splitter) {
    if (splitter->matcher != NULL) {
        pcre2_match_data_free(splitter->matcher->data);
        pcre2_match_context_free(splitter->matcher->context);
        pcre2_jit_stack_free(splitter->matcher->stack);
        free(splitter->matcher->symbols);
        free(splitter->matcher);
        splitter->matcher = NULL;
    }
}

#define LONGEST_PIECE ((size_t)1 << 29)

// The loop of each splitter: pieces until the text or the room ends.
#define EACH_PIECE(behind_piece)                                                                                               \
    while (count < capacity && p < end) {                                                                                      \
        Place behind = (behind_piece);                                                                                         \
        if (__builtin_expect((size_t)(behind - p) > LONGEST_PIECE, 0)) {                                                       \
            behind = p + LONGEST_PIECE;                                                                                        \
        }                                                                                                                      \
        lengths[count++] = (uint32_t)(behind - p);                                                                             \
        p = behind;                                                                                                            \
    }                                                                                                                          \
    break

// Pieces of a pattern that is written out, each isolated.
static size_t next_known(Splitter *splitter, uint32_t *lengths, size_t capacity) {
    Place p = splitter->at, end = splitter->end;
    const uint8_t *classes = unicode_classes();
    size_t count = 0;
    switch (splitter->pattern->kind) {
    case PATTERN_WHOLE:
        EACH_PIECE(end);
    case PATTERN_GPT2:
        EACH_PIECE(next_gpt2(p, end, classes));
    case PATTERN_LLAMA3:
        EACH_PIECE(next_llama(p, end, classes, 3, false));
    case PATTERN_QWEN:
        EACH_PIECE(next_llama(p, end, classes, 1, false));
    case PATTERN_CL100K:
        EACH_PIECE(next_llama(p, end, classes, 3, true));
    case PATTERN_CL100K_RUNS:
        EACH_PIECE(next_llama(p, end, classes, SIZE_MAX, true));
    case PATTERN_DIGIT:
        EACH_PIECE(next_digits(p, end, classes, 1));
    case PATTERN_DIGITS:
        EACH_PIECE(next_digits(p, end, classes, SIZE_MAX));
    case PATTERN_OTHER:
        break;
    }
    splitter->at = p;
    return count;
}

// The next match or gap behind `from`, which is where the last one ended; NULL at the end of the text.
static Place next_match(Splitter *splitter, Place from, bool *match) {
    const Pattern *pattern = splitter->pattern;
    Place behind, at = splitter->at;
    if (pattern->kind == PATTERN_OTHER) {
        behind = next_part(splitter, match);
    } else {
        uint32_t length;
        splitter->at = from;
        behind = next_known(splitter, &length, 1) == 0 ? NULL : splitter->at;
        splitter->at = at;
        *match = pattern_covers(pattern);
        if (behind != NULL && (pattern->kind == PATTERN_DIGIT || pattern->kind == PATTERN_DIGITS)) {
            *match = class_at(from, splitter->end, unicode_classes(), &at) & N;
        }
    }
    *match ^= pattern->invert;
    return behind;
}

// Whether a match (or a gap) joins the one before it.
static bool joins(PatternBehavior behavior, bool before, bool match) {
    return behavior == BEHAVIOR_CONTIGUOUS             ? before == match
           : behavior == BEHAVIOR_MERGED_WITH_PREVIOUS ? !before && match
           : behavior == BEHAVIOR_MERGED_WITH_NEXT     ? before && !match
                                                       : false;
}

// Sets the end of the next matches and gaps that are one piece; it is where it was at the end of the text.
static void next_group(Splitter *splitter) {
    PatternBehavior behavior = splitter->pattern->behavior;
    bool match = splitter->ahead_match, next_matches = false;
    Place stop = splitter->ahead != NULL ? splitter->ahead : next_match(splitter, splitter->at, &match);
    while (stop != NULL) {
        Place next = behavior < BEHAVIOR_MERGED_WITH_PREVIOUS ? NULL : next_match(splitter, stop, &next_matches);
        if (next != NULL && joins(behavior, match, next_matches)) {
            stop = next;
            match = next_matches;
            continue;
        }
        splitter->ahead = next;
        splitter->ahead_match = next_matches;
        if (stop > splitter->at) {
            splitter->group_end = stop;
            splitter->group_removed = behavior == BEHAVIOR_REMOVED && match;
            return;
        }
        match = next_matches;  // an empty match is no piece
        stop = next != NULL ? next : next_match(splitter, stop, &match);
    }
}

size_t splitter_next(Splitter *splitter, uint32_t *lengths, size_t capacity) {
    if (__builtin_expect(splitter->pattern->kind != PATTERN_OTHER && splitter->pattern->behavior == BEHAVIOR_ISOLATED, 1)) {
        return next_known(splitter, lengths, capacity);
    }
    size_t count = 0;
    for (; count < capacity && splitter->at < splitter->end; count++) {
        if (splitter->group_end == splitter->at) {
            next_group(splitter);
        }
        size_t size = (size_t)(splitter->group_end - splitter->at);
        ensure(size > 0, "a text has no more pieces before its end");
        size = size < LONGEST_PIECE ? size : LONGEST_PIECE;
        lengths[count] = (uint32_t)size | (splitter->group_removed ? PIECE_REMOVED : 0);
        splitter->at += size;
    }
    return count;
}

bool pattern_ends_words(const Pattern *pattern) {
    return pattern->kind >= PATTERN_GPT2 && pattern->kind <= PATTERN_CL100K_RUNS;
}

size_t pattern_cut(const char *text, size_t from, size_t size) {
    const uint8_t *classes = unicode_classes();
    Place begin = (Place)text, end = begin + size, behind = begin;
    unsigned after = L;  // the classes of the character at `at`
    Place at = end;
    while (at > begin + from) {
        Place before = at;
        do {
            before--;
        } while (before > begin + from && (*before & 0xC0) == 0x80);
        unsigned class = class_at(before, end, classes, &behind);
        if ((class & (L | N)) && !(after & (L | N | UNICODE_ACTIVE)) && behind == at) {
            return (size_t)(at - begin);
        }
        after = class;
        at = before;
    }
    return 0;
}
