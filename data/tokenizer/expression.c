// Reading Oniguruma's language and writing PCRE2's: see expression.h.
//
// What differs between the two, and is resolved here: \s \w \d \h and \p{..} (by our tables; \w alone has six characters more
// than in a set), sets inside of sets and &&, ^ and $ (at lines), {n}? (an optional {n}), {n,m}+ (a + behind an interval, not a
// possessive one), (?i) in the middle of alternatives (it takes the rest of its group, with its bars), case (simple folding;
// where case makes one character of several, as in ss, the pattern is refused).
//
// While an expression is read its sets are not yet symbols for good: `out` holds three bytes for each, SET_MARK and its number.
#include "data/tokenizer/expression.h"

#include "core/text.h"
#include "data/tokenizer/unicode_table.h"

#include <ctype.h>
#include <strings.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

enum { NESTING_MOST = 64, REPEAT_MOST = 65535, SETS_MOST = EXPRESSION_LONGEST };
#define SET_MARK ((char)0xFF)

typedef struct Reader {
    const char *text;
    size_t size, at;
    int depth;
    bool fold, dot_all, extended;  // (?i) (?m) (?x)
    Buffer out;
    SymbolSplit *split;
    SymbolSet *sets;
    size_t set_count, set_capacity;
    CodeSet *scratch;  // the set that is being read at depth 0
    Buffer literals;   // characters one behind another under (?i), folded
} Reader;

// What an atom is to a repeat behind it.
typedef enum AtomKind { ATOM_NOTHING, ATOM_PLACE, ATOM_TEXT } AtomKind;

static Error *read_alternatives(Reader *reader);

static int peek(const Reader *reader, size_t ahead) {
    return reader->at + ahead < reader->size ? (uint8_t)reader->text[reader->at + ahead] : -1;
}

static bool skip(Reader *reader, const char *what) {
    size_t size = strlen(what);
    bool there = reader->size - reader->at >= size && memcmp(reader->text + reader->at, what, size) == 0;
    reader->at += there ? size : 0;
    return there;
}

static Error *not_supported(const Reader *reader, size_t at, const char *what) {
    return failure("%s, at byte %zu of the pattern, is not supported", what, at);
}

static Error *next_code(Reader *reader, uint32_t *code) {
    int length;
    const uint8_t *p = (const uint8_t *)reader->text + reader->at;
    *code = unicode_decode(p, (const uint8_t *)reader->text + reader->size, &length);
    if (*code == UNICODE_INVALID) {
        return failure("the pattern is not UTF-8 at byte %zu", reader->at);
    }
    reader->at += (size_t)length;
    return NULL;
}

// ---- Sets become symbols

static Error *emit_set(Reader *reader, const CodeSet *set) {
    SymbolSet made;
    if (!symbol_split(reader->split, set, &made)) {
        return failure("the pattern tells more than %d kinds of characters apart", SYMBOLS_MOST);
    }
    array_push(reader->sets, reader->set_count, reader->set_capacity, made);
    size_t number = reader->set_count - 1;
    const char mark[3] = {SET_MARK, (char)(number >> 8), (char)number};
    buffer_append(&reader->out, mark, sizeof mark);
    return NULL;
}

static Error *emit_code(Reader *reader, uint32_t code) {
    memset(reader->scratch, 0, sizeof *reader->scratch);
    code_set_add(reader->scratch, code);
    if (reader->fold) {
        code_set_add_case(reader->scratch);
    }
    return emit_set(reader, reader->scratch);
}

// The characters of a short list, as an atom.
static Error *emit_codes(Reader *reader, const char *list, bool others) {
    memset(reader->scratch, 0, sizeof *reader->scratch);
    for (; *list; list++) {
        code_set_add(reader->scratch, (uint8_t)*list);
    }
    if (others) {
        code_set_invert(reader->scratch);
    }
    return emit_set(reader, reader->scratch);
}

// Writes the pattern for PCRE2: each set as the bytes of its symbols.
static void write_symbols(const Reader *reader, Buffer *out) {
    for (size_t i = 0; i < reader->out.size; i++) {
        if (reader->out.data[i] != SET_MARK) {
            buffer_byte(out, reader->out.data[i]);
            continue;
        }
        size_t number = (size_t)(uint8_t)reader->out.data[i + 1] << 8 | (uint8_t)reader->out.data[i + 2];
        i += 2;
        int in = 0;
        size_t start = out->size;
        buffer_byte(out, '[');
        for (int symbol = 0; symbol < reader->split->count; symbol++) {
            if (reader->split->members[symbol] > 0 && symbol_set_has(reader->split, &reader->sets[number], symbol)) {
                buffer_printf(out, "\\x%02x", (unsigned)symbol);
                in++;
            }
        }
        if (in == 0) {  // nothing is in it
            out->size = start;
            buffer_text(out, "(?!)");
        } else {
            buffer_byte(out, ']');
        }
    }
    buffer_byte(out, 0);
    out->size--;
}

// ---- Case that changes the number of characters

// Whether one character is, case aside, the last ones of `literals`: then a match might be shorter than the pattern says.
static Error *check_expansions(const Reader *reader, size_t at) {
    Buffer folded = {0};
    Error *error = NULL;
    for (int i = 0; i < unicode_expansion_count && error == NULL; i++) {
        buffer_clear(&folded);
        const char *p = unicode_expansions[i].folded, *end = p + strlen(p);
        for (int length; p < end; p += length) {
            char bytes[4];
            uint32_t code = code_fold(unicode_decode((const uint8_t *)p, (const uint8_t *)end, &length));
            buffer_append(&folded, bytes, (size_t)utf8_encode(code, bytes));
        }
        if (folded.size <= reader->literals.size &&
            memcmp(reader->literals.data + reader->literals.size - folded.size, folded.data, folded.size) == 0) {
            error =
                failure("\"%s\" without case, before byte %zu of the pattern, is also the one character U+%04X, which is not "
                        "supported",
                        unicode_expansions[i].folded, at, (unsigned)unicode_expansions[i].code);
        }
    }
    buffer_free(&folded);
    return error;
}

static Error *check_set_expansions(const CodeSet *set, size_t at) {
    for (int i = 0; i < unicode_expansion_count; i++) {
        if (code_set_has(set, unicode_expansions[i].code)) {
            return failure("U+%04X without case, at byte %zu of the pattern, is also \"%s\", which is not supported",
                           (unsigned)unicode_expansions[i].code, at, unicode_expansions[i].folded);
        }
    }
    return NULL;
}

static Error *emit_literal(Reader *reader, uint32_t code, size_t at) {
    TRY(emit_code(reader, code));
    if (!reader->fold) {
        buffer_clear(&reader->literals);
        return NULL;
    }
    TRY(check_set_expansions(reader->scratch, at));
    char bytes[4];
    buffer_append(&reader->literals, bytes, (size_t)utf8_encode(code_fold(code), bytes));
    return check_expansions(reader, reader->at);
}

// ---- Escapes

// Digits of a base up to 16, at most `most` of them.
static uint32_t read_digits(Reader *reader, int base, int most) {
    uint32_t value = 0;
    for (int c; most-- > 0 && (c = peek(reader, 0)) >= 0 && isxdigit(c); reader->at++) {
        int digit = isdigit(c) ? c - '0' : tolower(c) - 'a' + 10;
        if (digit >= base) {
            break;
        }
        value = value * (uint32_t)base + (uint32_t)digit;
    }
    return value;
}

// A character behind a backslash, `at` its place. *found is false for what is no single character.
static Error *read_escaped_code(Reader *reader, size_t at, uint32_t *code, bool *found) {
    static const char letters[] = "tnrfvae", values[] = "\t\n\r\f\v\a\x1B";
    int c = peek(reader, 0);
    const char *letter = c > 0 && c < 0x80 ? strchr(letters, c) : NULL;
    *found = true;
    if (letter != NULL) {
        reader->at++;
        *code = (uint8_t)values[letter - letters];
    } else if (c == 'x' && peek(reader, 1) == '{') {
        reader->at += 2;
        *code = read_digits(reader, 16, 8);
        if (!skip(reader, "}")) {
            return not_supported(reader, at, "\\x{..} that is no hexadecimal number");
        }
    } else if (c == 'x' || c == 'u') {
        reader->at++;
        size_t start = reader->at;
        *code = read_digits(reader, 16, c == 'x' ? 2 : 4);
        if (reader->at == start || (c == 'u' && reader->at < start + 4)) {
            return not_supported(reader, at, "\\x or \\u without its digits");
        }
        if (c == 'x' && *code >= 0x80) {
            return not_supported(reader, at, "\\xHH beyond 7F (write \\x{HH})");
        }
    } else if (c == '0') {
        *code = read_digits(reader, 8, 3);
        if (*code >= 0x80) {
            return not_supported(reader, at, "an octal number beyond 177");
        }
    } else if (c < 0) {
        return not_supported(reader, at, "a backslash at the end");
    } else if (isalnum(c)) {
        *found = false;
        return NULL;
    } else {
        return next_code(reader, code);
    }
    if (*code >= CODES || (*code >= 0xD800 && *code < 0xE000)) {
        return not_supported(reader, at, "a number that is no character");
    }
    return NULL;
}

static Error *read_property(Reader *reader, size_t at, bool outside, CodeSet *set) {
    size_t start = reader->at;
    bool not = skip(reader, "^");
    size_t name = reader->at;
    while (peek(reader, 0) > 0 && peek(reader, 0) != '}') {
        reader->at++;
    }
    size_t size = reader->at - name;
    CodeSet *one = memory_zeroed(1, sizeof *one);
    bool known = skip(reader, "}") && code_set_add_property(one, reader->text + name, size);
    if (known && outside && size == 4 && strncasecmp(reader->text + name, "word", 4) == 0) {
        code_set_add_word_alone(one);
    }
    if (not ) {
        code_set_invert(one);
    }
    code_set_unite(set, one);
    free(one);
    return known ? NULL
                 : failure("\\p{%.*s}, at byte %zu of the pattern, is no category, script or property that is known here",
                           (int)(size < 40 ? size : 40), reader->text + start, at);
}

// \s and its kin, added to `set`. *found is false for another letter. `outside`: not inside of brackets.
static Error *read_class(Reader *reader, size_t at, bool outside, CodeSet *set, bool *found) {
    int c = peek(reader, 0);
    *found = c > 0 && c < 0x80 && text_one_of((char)c, "sSdDwWhHpP");
    if (!*found) {
        return NULL;
    }
    reader->at++;
    CodeSet *one = memory_zeroed(1, sizeof *one);
    Error *error = NULL;
    switch (tolower(c)) {
    case 's':
        code_set_add_space(one);
        break;
    case 'd':
        code_set_add_property(one, "Nd", 2);
        break;
    case 'h':
        code_set_add_posix(one, "xdigit", 6);
        break;
    case 'w':
        if (outside) {
            code_set_add_word_alone(one);
        } else {
            code_set_add_word(one);
        }
        break;
    default:
        error = skip(reader, "{") ? read_property(reader, at, outside, one)
                                  : not_supported(reader, at, "\\p without the braces of a name");
    }
    if (isupper(c)) {
        code_set_invert(one);
    }
    code_set_unite(set, one);
    free(one);
    return error;
}

// ---- Sets

static Error *read_set(Reader *reader, CodeSet *set, bool *negated);

// [:name:] or [:^name:], if one stands here.
static Error *read_posix(Reader *reader, CodeSet *set, bool *found) {
    const char *start = reader->text + reader->at, *end = reader->text + reader->size, *close = start + 2;
    while (close < end && (isalpha((unsigned char)*close) || *close == '^')) {
        close++;
    }
    *found = end - close >= 2 && close[0] == ':' && close[1] == ']';
    if (!*found) {
        return NULL;
    }
    bool not = start[2] == '^';
    const char *name = start + 2 + not ;
    CodeSet *one = memory_zeroed(1, sizeof *one);
    bool known = code_set_add_posix(one, name, (size_t)(close - name));
    if (not ) {
        code_set_invert(one);
    }
    code_set_unite(set, one);
    free(one);
    Error *error = known ? NULL : not_supported(reader, reader->at, "[: :] with a name that is not POSIX's");
    reader->at = (size_t)(close + 2 - reader->text);
    return error;
}

// One character of a set, as it is or escaped; *found false for a class (which is read into `set`).
static Error *read_set_code(Reader *reader, CodeSet *set, uint32_t *code, bool *found) {
    size_t at = reader->at;
    if (!skip(reader, "\\")) {
        *found = true;
        return next_code(reader, code);
    }
    if (skip(reader, "b")) {
        *code = '\b';
        *found = true;
        return NULL;
    }
    bool class = false;
    TRY(read_escaped_code(reader, at, code, found));
    if (*found) {
        return NULL;
    }
    TRY(read_class(reader, at, false, set, &class));
    return class ? NULL : failure("\\%c, at byte %zu of the pattern, is not supported", peek(reader, 0), at);
}

// What stands between the brackets until && or the end.
static Error *read_set_part(Reader *reader, CodeSet *set) {
    for (bool after_class = false;;) {
        size_t at = reader->at;
        int c = peek(reader, 0);
        if (c == ']' || (c == '&' && peek(reader, 1) == '&')) {
            return NULL;
        }
        if (c < 0) {
            return failure("missing terminating ] for a set of the pattern");
        }
        if (c == '[') {
            bool posix = false, negated = false;
            if (peek(reader, 1) == ':') {
                TRY(read_posix(reader, set, &posix));
            }
            if (!posix) {
                reader->at++;
                CodeSet *inner = memory_zeroed(1, sizeof *inner);
                Error *error = read_set(reader, inner, &negated);
                if (negated) {
                    code_set_invert(inner);
                }
                code_set_unite(set, inner);
                free(inner);
                TRY(error);
            }
            after_class = true;
            continue;
        }
        uint32_t first, last;
        bool single;
        if (c == '-' && after_class && peek(reader, 1) != ']') {
            return not_supported(reader, at, "a - behind a class in a set");
        }
        TRY(read_set_code(reader, set, &first, &single));
        after_class = !single;
        if (!single) {
            continue;
        }
        last = first;
        if (peek(reader, 0) == '-' && peek(reader, 1) != ']' && peek(reader, 1) >= 0) {
            reader->at++;
            if (peek(reader, 0) == '[' || (peek(reader, 0) == '&' && peek(reader, 1) == '&')) {
                return not_supported(reader, at, "a range that does not end with a character");
            }
            TRY(read_set_code(reader, set, &last, &single));
            if (!single || last < first) {
                return not_supported(reader, at, "a range that does not end with a later character");
            }
        }
        code_set_add_range(set, first, last);
    }
}

// A set behind its [, to behind its ]. What it says without its ^ goes to `set` (empty before).
static Error *read_set(Reader *reader, CodeSet *set, bool *negated) {
    size_t at = reader->at - 1;
    *negated = skip(reader, "^");
    if (peek(reader, 0) == ']') {
        return not_supported(reader, at, "an empty set");
    }
    if (reader->depth++ == NESTING_MOST) {
        return not_supported(reader, at, "nesting as deep as this");
    }
    Error *error = read_set_part(reader, set);
    if (error == NULL && peek(reader, 0) == '&') {
        CodeSet *part = memory_new(1, sizeof *part);
        while (error == NULL && skip(reader, "&&")) {
            memset(part, 0, sizeof *part);
            error = read_set_part(reader, part);
            code_set_intersect(set, part);
        }
        free(part);
    }
    reader->depth--;
    reader->at += error == NULL;
    return error;
}

static Error *read_set_atom(Reader *reader) {
    size_t at = reader->at++;
    bool negated = false;
    CodeSet *set = memory_zeroed(1, sizeof *set);
    Error *error = read_set(reader, set, &negated);
    if (error == NULL && reader->fold) {
        code_set_add_case(set);
        error = negated ? NULL : check_set_expansions(set, at);
    }
    if (negated) {
        code_set_invert(set);
    }
    if (error == NULL) {
        error = emit_set(reader, set);
    }
    free(set);
    return error;
}

// ---- Groups

// The letters of (?imx-imx; what follows is left.
static Error *read_flags(Reader *reader, size_t at) {
    for (bool on = true;; reader->at++) {
        int c = peek(reader, 0);
        if (c == '-') {
            on = false;
        } else if (c == 'i') {
            reader->fold = on;
        } else if (c == 'm') {
            reader->dot_all = on;
        } else if (c == 'x') {
            reader->extended = on;
        } else if (c == ':' || c == ')') {
            return NULL;
        } else {
            return not_supported(reader, at, "a group of this kind");
        }
    }
}

static Error *close_group(Reader *reader, size_t at) {
    if (!skip(reader, ")")) {
        return failure("missing closing parenthesis for the one at byte %zu of the pattern", at);
    }
    buffer_byte(&reader->out, ')');
    return NULL;
}

static Error *read_group(Reader *reader, AtomKind *kind) {
    static const char *const places[] = {"(?=", "(?!", "(?<=", "(?<!"};
    size_t at = reader->at;
    bool fold = reader->fold, dot_all = reader->dot_all, extended = reader->extended;
    *kind = ATOM_TEXT;
    if (skip(reader, "(?#")) {
        while (peek(reader, 0) >= 0 && peek(reader, 0) != ')') {
            reader->at += peek(reader, 0) == '\\' ? 2 : 1;
        }
        *kind = ATOM_NOTHING;
        return skip(reader, ")") ? NULL : not_supported(reader, at, "a comment without an end");
    }
    if (reader->depth++ == NESTING_MOST) {
        return not_supported(reader, at, "nesting as deep as this");
    }
    const char *opening = "(?:";
    for (int i = 0; i < 4 && *kind == ATOM_TEXT; i++) {
        if (skip(reader, places[i])) {
            opening = places[i];
            *kind = ATOM_PLACE;
        }
    }
    if (*kind == ATOM_TEXT && skip(reader, "(?>")) {
        opening = "(?>";
    } else if (*kind == ATOM_TEXT && skip(reader, "(?<")) {  // a name
        while (isalnum(peek(reader, 0)) || peek(reader, 0) == '_') {
            reader->at++;
        }
        if (!skip(reader, ">")) {
            return not_supported(reader, at, "a group of this kind");
        }
    } else if (*kind == ATOM_TEXT && !skip(reader, "(?:") && skip(reader, "(?")) {
        TRY(read_flags(reader, at));
        if (skip(reader, ")")) {  // takes the rest of the group around it, which reads the parenthesis
            buffer_text(&reader->out, "(?:");
            TRY(read_alternatives(reader));
            buffer_byte(&reader->out, ')');
            reader->fold = fold;
            reader->dot_all = dot_all;
            reader->extended = extended;
            reader->depth--;
            return NULL;
        }
        reader->at++;
    } else if (*kind == ATOM_TEXT && reader->at == at) {
        reader->at++;
    }
    buffer_text(&reader->out, opening);
    TRY(read_alternatives(reader));
    reader->fold = fold;
    reader->dot_all = dot_all;
    reader->extended = extended;
    reader->depth--;
    return close_group(reader, at);
}

// ---- Atoms and repeats

// \b and \B: between a character of words and another.
static Error *emit_word_end(Reader *reader, bool inside) {
    static const char *const parts[2][5] = {{"(?:(?<=", ")(?!", ")|(?<!", ")(?=", "))"},
                                            {"(?:(?<=", ")(?=", ")|(?<!", ")(?!", "))"}};
    for (int i = 0; i < 5; i++) {
        buffer_text(&reader->out, parts[inside][i]);
        if (i < 4) {
            memset(reader->scratch, 0, sizeof *reader->scratch);
            code_set_add_word_alone(reader->scratch);
            TRY(emit_set(reader, reader->scratch));
        }
    }
    return NULL;
}

// \R: an end of a line, whole.
static Error *emit_line_end(Reader *reader) {
    buffer_text(&reader->out, "(?>");
    TRY(emit_codes(reader, "\r", false));
    TRY(emit_codes(reader, "\n", false));
    buffer_byte(&reader->out, '|');
    memset(reader->scratch, 0, sizeof *reader->scratch);
    code_set_add_range(reader->scratch, '\n', '\r');
    code_set_add(reader->scratch, 0x85);
    code_set_add_range(reader->scratch, 0x2028, 0x2029);
    TRY(emit_set(reader, reader->scratch));
    buffer_byte(&reader->out, ')');
    return NULL;
}

static Error *emit_place(Reader *reader, int letter) {
    switch (letter) {
    case 'A':
    case 'z':
        buffer_printf(&reader->out, "\\%c", letter);
        return NULL;
    case 'b':
    case 'B':
        return emit_word_end(reader, letter == 'B');
    case '^':  // not behind a line end that ends the text
        buffer_text(&reader->out, "(?:\\A|(?<=");
        TRY(emit_codes(reader, "\n", false));
        buffer_text(&reader->out, ")(?!\\z))");
        return NULL;
    default:  // $ and \Z
        buffer_text(&reader->out, "(?=\\z|");
        TRY(emit_codes(reader, "\n", false));
        buffer_text(&reader->out, letter == 'Z' ? "\\z)" : ")");
        return NULL;
    }
}

static Error *read_escape(Reader *reader, AtomKind *kind) {
    size_t at = reader->at++;
    uint32_t code;
    bool found;
    TRY(read_escaped_code(reader, at, &code, &found));
    if (found) {
        return emit_literal(reader, code, at);
    }
    buffer_clear(&reader->literals);
    CodeSet *set = memory_zeroed(1, sizeof *set);
    Error *error = read_class(reader, at, true, set, &found);
    if (error == NULL && found) {
        error = emit_set(reader, set);
    }
    free(set);
    if (error != NULL || found) {
        return error;
    }
    int letter = peek(reader, 0);
    reader->at++;
    switch (letter) {
    case 'A':
    case 'z':
    case 'Z':
    case 'b':
    case 'B':
        *kind = ATOM_PLACE;
        return emit_place(reader, letter);
    case 'R':
        return emit_line_end(reader);
    case 'N':
        return emit_codes(reader, "\n", true);
    case 'O':
        return emit_codes(reader, "", true);
    default:
        return failure("\\%c at byte %zu of the pattern is not supported", letter, at);
    }
}

static Error *read_atom(Reader *reader, AtomKind *kind) {
    size_t at = reader->at;
    int c = peek(reader, 0);
    *kind = ATOM_TEXT;
    if (reader->extended && (isspace(c) || c == '#')) {
        while (c == '#' && peek(reader, 1) >= 0 && peek(reader, 1) != '\n') {
            reader->at++;
        }
        reader->at++;
        *kind = ATOM_NOTHING;
        return NULL;
    }
    if (c == '\\') {
        return read_escape(reader, kind);
    }
    if (c != '(' && c != '[' && c != '.' && c != '^' && c != '$') {
        uint32_t code;
        TRY(next_code(reader, &code));
        return emit_literal(reader, code, at);
    }
    buffer_clear(&reader->literals);
    if (c == '(') {
        return read_group(reader, kind);
    }
    if (c == '[') {
        return read_set_atom(reader);
    }
    reader->at++;
    if (c == '.') {
        return emit_codes(reader, reader->dot_all ? "" : "\n", true);
    }
    *kind = ATOM_PLACE;
    return emit_place(reader, c);
}

typedef struct Repeat {
    int64_t least, most;  // most -1: any number
    bool lazy, possessive;
} Repeat;

// A repeat, if one stands here: ? * + or an interval. A { that begins no interval is a character.
static bool read_repeat(Reader *reader, Repeat *repeat) {
    int c = peek(reader, 0);
    *repeat = (Repeat){.least = c == '+', .most = c == '?' ? 1 : -1};
    if (c == '?' || c == '*' || c == '+') {
        reader->at++;
        repeat->lazy = skip(reader, "?");
        repeat->possessive = !repeat->lazy && skip(reader, "+");
        return true;
    }
    size_t at = reader->at;
    if (!skip(reader, "{")) {
        return false;
    }
    int64_t numbers[2] = {0, -1};
    size_t digits[2] = {0, 0}, comma = 0;
    for (; isdigit(c = peek(reader, 0)) || (c == ',' && comma == 0); reader->at++) {
        if (c == ',') {
            comma = 1;
        } else {
            int64_t before = digits[comma]++ == 0 ? 0 : numbers[comma];
            numbers[comma] = before > REPEAT_MOST ? before : 10 * before + (c - '0');
        }
    }
    if (!skip(reader, "}") || digits[0] + digits[1] == 0) {
        reader->at = at;
        return false;
    }
    *repeat = (Repeat){.least = numbers[0], .most = comma ? numbers[1] : numbers[0]};
    if (peek(reader, 0) == '?') {
        reader->at += comma;  // {n}? is {n}, then ?
        repeat->lazy = comma;
    }
    return true;
}

static void insert(Buffer *out, size_t at, const char *text) {
    size_t size = strlen(text), tail = out->size - at;
    buffer_text(out, text);
    memmove(out->data + at + size, out->data + at, tail);
    memcpy(out->data + at, text, size);
}

static Error *read_piece(Reader *reader) {
    size_t start = reader->out.size, at = reader->at;
    AtomKind kind;
    Repeat repeat;
    int repeats = 0;
    bool greedy = true;
    if (read_repeat(reader, &repeat)) {
        return failure("nothing to repeat at byte %zu of the pattern", at);
    }
    TRY(read_atom(reader, &kind));
    if (kind == ATOM_NOTHING) {
        return NULL;
    }
    for (; at = reader->at, read_repeat(reader, &repeat); repeats++) {
        if (kind == ATOM_PLACE) {
            return not_supported(reader, at, "a repeat of a place");
        }
        if (repeat.least > REPEAT_MOST || repeat.most > REPEAT_MOST || (repeat.most >= 0 && repeat.most < repeat.least)) {
            return not_supported(reader, at, "an interval like this");
        }
        if (repeats > 0 && !(greedy && !repeat.lazy && !repeat.possessive)) {
            return not_supported(reader, at, "a repeat of a lazy or possessive repeat");
        }
        if (repeats > 0) {  // an atom is a set or stands in parentheses: it needs no others
            insert(&reader->out, start, "(?:");
            buffer_byte(&reader->out, ')');
        }
        buffer_printf(&reader->out, "{%d,", (int)repeat.least);
        if (repeat.most >= 0) {
            buffer_printf(&reader->out, "%d", (int)repeat.most);
        }
        buffer_byte(&reader->out, '}');
        greedy = !repeat.lazy && !repeat.possessive;
        if (!greedy) {
            buffer_byte(&reader->out, repeat.lazy ? '?' : '+');
        }
        buffer_clear(&reader->literals);
    }
    return NULL;
}

// Alternatives until the end or the parenthesis that closes the group, which is left.
static Error *read_alternatives(Reader *reader) {
    buffer_clear(&reader->literals);
    while (reader->at < reader->size && peek(reader, 0) != ')') {
        if (skip(reader, "|")) {
            buffer_byte(&reader->out, '|');
            buffer_clear(&reader->literals);
        } else {
            TRY(read_piece(reader));
        }
    }
    buffer_clear(&reader->literals);
    return NULL;
}

static Error *compile(const Buffer *text, void **code) {
    int problem = 0;
    PCRE2_SIZE where = 0;
    *code = pcre2_compile((PCRE2_SPTR)text->data, text->size, PCRE2_NEVER_UTF | PCRE2_NEVER_UCP, &problem, &where, NULL);
    if (*code == NULL) {
        PCRE2_UCHAR message[160] = "unknown problem";
        pcre2_get_error_message(problem, message, sizeof message);
        return failure("the pattern is no regular expression that PCRE2 accepts: %s", (const char *)message);
    }
    pcre2_jit_compile(*code, PCRE2_JIT_COMPLETE);  // where there is no JIT, matching is slower
    return NULL;
}

static Error *translate(Reader *reader, Expression *expression) {
    TRY(read_alternatives(reader));
    if (reader->at < reader->size) {
        return failure("unmatched closing parenthesis at byte %zu of the pattern", reader->at);
    }
    Buffer text = {0};
    write_symbols(reader, &text);
    Error *error = compile(&text, &expression->code);
    buffer_free(&text);
    if (error == NULL) {
        symbols_create(reader->split, &expression->symbols);
    }
    return error;
}

Error *expression_create(const char *text, size_t size, Expression **out) {
    *out = NULL;
    if (size == 0 || size > EXPRESSION_LONGEST || memchr(text, 0, size) != NULL) {
        return failure("a pattern of %zu bytes is not supported: it must have 1 to %d, none of them zero", size,
                       EXPRESSION_LONGEST);
    }
    Reader reader = {.text = text, .size = size, .split = symbol_split_create()};
    reader.scratch = memory_zeroed(1, sizeof *reader.scratch);
    Expression *expression = memory_zeroed(1, sizeof *expression);
    Error *error = translate(&reader, expression);
    buffer_free(&reader.out);
    buffer_free(&reader.literals);
    free(reader.split);
    free(reader.sets);
    free(reader.scratch);
    if (error != NULL) {
        expression_free(expression);
        return error;
    }
    *out = expression;
    return NULL;
}

void expression_free(Expression *expression) {
    if (expression != NULL) {
        pcre2_code_free(expression->code);
        symbols_free(&expression->symbols);
        free(expression);
    }
}
