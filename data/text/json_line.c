// The scanner of one JSON line: see json_line.h.
#include "data/text/json_line.h"

#include "core/text.h"

#include <string.h>

enum State {
    VALUE,        // a value must come
    ARRAY_FIRST,  // a value or ]
    KEY_FIRST,    // a key or }
    KEY,          // a key
    COLON,
    AFTER,  // after a value: , or the container's end; at depth 0 nothing
    STRING,
    ESCAPE,         // after a backslash
    HEX,            // inside \uXXXX
    LOW_BACKSLASH,  // after a first surrogate: the second's backslash,
    LOW_U,          // and its u
    LITERAL,        // inside true, false, null
    MINUS,          // inside a number: after -
    ZERO,           // after a leading 0
    INTEGER,
    POINT,  // after the point
    FRACTION,
    EXPONENT,  // after e
    EXPONENT_SIGN,
    EXPONENT_DIGITS,
};

// What the value that comes means.
enum Role { ROLE_OTHER, ROLE_TOP, ROLE_TEXT, ROLE_ITEM, ROLE_META, ROLE_NAME };

// Where a string's characters go.
enum Sink { SINK_NONE, SINK_KEY, SINK_TEXT, SINK_NAME };

typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint64_t Words2 __attribute__((vector_size(16)));

// Where the first of 16 bytes is that does not stand for itself; 16 if all do.
static inline size_t plain_of_16(Bytes16 v) {
    Words2 stop = (Words2)((v == '"') | (v == '\\') | (v < 0x20));
    if ((stop[0] | stop[1]) == 0) {
        return 16;
    }
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return (size_t)(stop[0] != 0 ? __builtin_ctzll(stop[0]) / 8 : 8 + __builtin_ctzll(stop[1]) / 8);
#else
    return (size_t)(stop[0] != 0 ? __builtin_clzll(stop[0]) / 8 : 8 + __builtin_clzll(stop[1]) / 8);
#endif
}

size_t json_plain_run(const char *bytes, size_t size) {
    size_t i = 0;
    for (; size - i >= 16; i += 16) {
        Bytes16 v;
        memcpy(&v, bytes + i, 16);
        size_t n = plain_of_16(v);
        if (n < 16) {
            return i + n;
        }
    }
    for (; i < size; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if (c == '"' || c == '\\' || c < 0x20) {
            break;
        }
    }
    return i;
}

void json_line_begin(JsonLine *line) {
    JsonLine fresh = {
        .text = line->text, .text_capacity = line->text_capacity, .replace = line->replace, .state = VALUE, .role = ROLE_TOP};
    *line = fresh;
}

static bool bad(JsonLine *line, const char *reason) {
    line->reason = reason;
    return false;
}

static bool in_object(const JsonLine *line) {
    return line->depth > 0 && (line->objects >> (line->depth - 1) & 1) != 0;
}

// Adds decoded bytes of a string to where it goes. Text has room (full is kept true to that).
static void store(JsonLine *line, const char *bytes, size_t size) {
    switch (line->sink) {
    case SINK_TEXT:
        memcpy(line->text + line->text_size, bytes, size);
        line->text_size += size;
        break;
    case SINK_KEY:
        for (size_t i = 0; i < size && line->key_size < sizeof line->key; i++) {
            line->key[line->key_size++] = bytes[i];  // a key that fills the space is none that matters
        }
        break;
    case SINK_NAME:
        for (size_t i = 0; i < size; i++) {
            if ((unsigned char)bytes[i] < 0x20 || line->name_size >= SET_NAME_BYTES - 1) {
                line->reason = "the set's name is longer than 255 bytes or has control characters";
                return;
            }
            line->name[line->name_size++] = bytes[i];
        }
        break;
    default:
        break;
    }
}

static bool store_code(JsonLine *line, uint32_t code) {
    char bytes[4];
    store(line, bytes, (size_t)utf8_encode(code, bytes));
    line->state = STRING;
    return line->reason == NULL;
}

static bool open_container(JsonLine *line, bool object) {
    if (line->depth == JSON_LINE_DEPTH) {
        return bad(line, "it is nested more than 32 deep");
    }
    uint32_t bit = 1u << line->depth;
    line->objects = object ? line->objects | bit : line->objects & ~bit;
    line->depth++;
    line->state = object ? KEY_FIRST : ARRAY_FIRST;
    return true;
}

static bool close_container(JsonLine *line, bool object) {
    if (line->depth == 0 || in_object(line) != object) {
        return bad(line, "a bracket closes what was not opened");
    }
    line->depth--;
    if (line->depth == 1) {
        line->in_meta = line->in_list = false;
    }
    line->state = AFTER;
    return true;
}

static bool begin_text(JsonLine *line) {
    if (line->has_text) {
        return bad(line, "\"text\" stands twice");
    }
    line->has_text = true;
    return true;
}

static bool begin_string(JsonLine *line) {
    line->state = STRING;
    switch (line->role) {
    case ROLE_TOP:
    case ROLE_TEXT:
        line->sink = SINK_TEXT;
        return begin_text(line);
    case ROLE_ITEM:
        line->sink = SINK_TEXT;
        if (line->separate) {
            store(line, "\n\n", 2);
        }
        line->separate = true;
        return true;
    case ROLE_NAME:
        if (line->named) {
            return bad(line, "the set's name stands twice");
        }
        line->named = true;
        line->sink = SINK_NAME;
        return true;
    default:
        line->sink = SINK_NONE;
        return true;
    }
}

// The first byte of a value.
static bool begin_value(JsonLine *line, char c) {
    int role = line->role;
    if (c == '"') {
        return begin_string(line);
    }
    if (c == '{' && (role == ROLE_TOP || role == ROLE_META || role == ROLE_OTHER)) {
        line->in_meta = role == ROLE_META || line->in_meta;
        return open_container(line, true);
    }
    if (c == '[' && role == ROLE_TEXT) {
        line->in_list = true;
        return begin_text(line) && open_container(line, false);
    }
    if (c == '[' && (role == ROLE_OTHER || role == ROLE_META)) {
        return open_container(line, false);
    }
    bool literal = c == 't' || c == 'f' || c == 'n' || c == 'N' || c == 'I', number = c == '-' || (c >= '0' && c <= '9');
    if (!literal && !number && c != '{' && c != '[') {
        return bad(line, "a value is expected");
    }
    if (role == ROLE_TOP) {
        return bad(line, "it is neither an object nor a string");
    }
    if (role == ROLE_TEXT || role == ROLE_ITEM) {
        return bad(line, "\"text\" is neither a string nor a list of strings");
    }
    if (role == ROLE_NAME && c != 'n' && c != 'N') {
        return bad(line, "\"pile_set_name\" is no string");
    }
    if (literal) {
        line->literal = c == 't' ? "rue" : c == 'f' ? "alse" : c == 'n' ? "ull" : c == 'N' ? "aN" : "nfinity";
        line->state = LITERAL;
    } else {
        line->state = c == '-' ? MINUS : c == '0' ? ZERO : INTEGER;
    }
    return true;
}

static bool key_is(const JsonLine *line, const char *name) {
    return line->key_size == strlen(name) && memcmp(line->key, name, line->key_size) == 0;
}

static void end_string(JsonLine *line) {
    if (line->sink != SINK_KEY) {
        line->state = AFTER;
        return;
    }
    line->state = COLON;
    line->role = ROLE_OTHER;
    if (line->depth == 1) {
        line->role = key_is(line, "text") ? ROLE_TEXT : key_is(line, "meta") ? ROLE_META : ROLE_OTHER;
    } else if (line->depth == 2 && line->in_meta && key_is(line, "pile_set_name")) {
        line->role = ROLE_NAME;
    }
}

// One byte after a value.
static bool after_value(JsonLine *line, char c) {
    if (line->depth == 0) {
        return bad(line, "something follows after the value");
    }
    if (c == '}' || c == ']') {
        return close_container(line, c == '}');
    }
    if (c != ',') {
        return bad(line, in_object(line) ? "a comma or } is expected" : "a comma or ] is expected");
    }
    line->state = in_object(line) ? KEY : VALUE;
    return true;
}

// What a backslash and this character mean; 0 where that is nothing, or \u.
static const char short_escapes[256] = {
    ['"'] = '"', ['\\'] = '\\', ['/'] = '/', ['b'] = '\b', ['f'] = '\f', ['n'] = '\n', ['r'] = '\r', ['t'] = '\t'};

static bool take_escape(JsonLine *line, char c) {
    if (c == 'u') {
        line->state = HEX;
        line->code = 0;
        line->digits = 0;
        return true;
    }
    char escaped = short_escapes[(unsigned char)c];
    if (escaped == 0) {
        return bad(line, "a backslash is followed by none of \"\\/bfnrtu");
    }
    store(line, &escaped, 1);
    line->state = STRING;
    return line->reason == NULL;
}

// Half of a surrogate pair stands alone, which only a text must not have.
static bool take_half(JsonLine *line) {
    if (line->sink == SINK_TEXT && !line->replace) {
        return bad(line, "a surrogate stands alone");
    }
    line->high = 0;
    return store_code(line, 0xFFFD);
}

// One digit of \uXXXX. Two surrogates make one character; one alone is none.
static bool take_hex(JsonLine *line, char c) {
    int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    if (digit < 0) {
        return bad(line, "\\u is not followed by four hexadecimal digits");
    }
    line->code = line->code << 4 | (uint32_t)digit;
    if (++line->digits < 4) {
        return true;
    }
    bool low = line->code >= 0xDC00 && line->code <= 0xDFFF;
    if (low && line->high == 0) {
        return take_half(line);
    }
    if (!low && line->high != 0 && !take_half(line)) {
        return false;
    }
    if (low) {
        uint32_t code = 0x10000 + ((line->high - 0xD800) << 10) + (line->code - 0xDC00);
        line->high = 0;
        return store_code(line, code);
    }
    if (line->code >= 0xD800 && line->code <= 0xDBFF) {
        line->high = line->code;
        line->state = LOW_BACKSLASH;
        return true;
    }
    return store_code(line, line->code);
}

// One byte of a number. *ended is set where the byte belongs to what follows the number.
static bool take_number(JsonLine *line, char c, bool *ended) {
    bool digit = c >= '0' && c <= '9';
    switch (line->state) {
    case MINUS:
        if (c == 'I') {
            line->literal = "nfinity";
            line->state = LITERAL;
            return true;
        }
        line->state = c == '0' ? ZERO : INTEGER;
        return digit || bad(line, "a number has no digits");
    case POINT:
        line->state = FRACTION;
        return digit || bad(line, "a number has no digits after its point");
    case EXPONENT:
        line->state = digit ? EXPONENT_DIGITS : EXPONENT_SIGN;
        return digit || c == '+' || c == '-' || bad(line, "a number has no digits in its exponent");
    case EXPONENT_SIGN:
        line->state = EXPONENT_DIGITS;
        return digit || bad(line, "a number has no digits in its exponent");
    default:
        break;
    }
    if (digit) {
        return line->state != ZERO || bad(line, "a number starts with a zero");
    }
    if (c == '.' && (line->state == ZERO || line->state == INTEGER)) {
        line->state = POINT;
    } else if ((c == 'e' || c == 'E') && line->state != EXPONENT_DIGITS) {
        line->state = EXPONENT;
    } else {
        line->state = AFTER;
        *ended = true;
    }
    return true;
}

// One byte where structure, not a string's content, is read.
static bool take_structure(JsonLine *line, char c) {
    if (line->state >= MINUS) {
        bool ended = false;
        if (!take_number(line, c, &ended) || !ended) {
            return line->reason == NULL;
        }
    }
    if (line->state == LITERAL) {
        if (c != *line->literal) {
            return bad(line, "a value is expected");
        }
        if (*++line->literal == 0) {
            line->state = AFTER;
        }
        return true;
    }
    if (c == ' ' || c == '\t' || c == '\r') {
        return true;
    }
    switch (line->state) {
    case ARRAY_FIRST:
        if (c == ']') {
            return close_container(line, false);
        }
        line->state = VALUE;
        // fall through
    case VALUE:
        if (line->depth > 0 && !in_object(line)) {
            line->role = line->in_list && line->depth == 2 ? ROLE_ITEM : ROLE_OTHER;
        }
        return begin_value(line, c);
    case KEY_FIRST:
        if (c == '}') {
            return close_container(line, true);
        }
        // fall through
    case KEY:
        if (c != '"') {
            return bad(line, "a key in quotes is expected");
        }
        line->state = STRING;
        line->sink = SINK_KEY;
        line->key_size = 0;
        return true;
    case COLON:
        line->state = VALUE;
        return c == ':' || bad(line, "a colon is expected");
    default:
        return after_value(line, c);
    }
}

// The common case of a text: plain bytes and short escapes, 16 bytes at a time, while room is ample on both sides. What remains
// may begin inside a character.
static size_t take_text(JsonLine *line, const char *bytes, size_t size) {
    char *to = line->text + line->text_size;
    size_t i = 0, room = line->text_capacity - JSON_LINE_SLACK - line->text_size;
    // A step takes at most 16 of 32, so that the character that it may cut fits as a whole.
    while (size - i >= 16 && room >= 32) {
        Bytes16 v;
        memcpy(&v, bytes + i, 16);
        memcpy(to, &v, 16);
        size_t n = plain_of_16(v);
        i += n;
        to += n;
        room -= n;
        if (n == 16) {
            continue;
        }
        char escaped = bytes[i] == '\\' && i + 1 < size ? short_escapes[(unsigned char)bytes[i + 1]] : 0;
        if (escaped == 0) {
            break;
        }
        *to++ = escaped;
        room--;
        i += 2;
    }
    line->text_size = (size_t)(to - line->text);
    return i;
}

// Takes what stands for itself of a string's content. Stops before a character that does not fit as a whole.
static size_t take_plain(JsonLine *line, const char *bytes, size_t size) {
    size_t done = line->sink == SINK_TEXT ? take_text(line, bytes, size) : 0, left = size - done;
    size_t room = line->sink == SINK_TEXT ? line->text_capacity - JSON_LINE_SLACK - line->text_size : left;
    size_t n = json_plain_run(bytes + done, left < room ? left : room);
    if (n == room && n < left) {
        while (n > 0 && ((unsigned char)bytes[done + n] & 0xC0) == 0x80) {
            n--;  // do not cut inside a character
        }
        line->full = true;
    }
    store(line, bytes + done, n);
    return done + n;
}

size_t json_line_feed(JsonLine *line, const char *bytes, size_t size) {
    size_t i = 0;
    bool good = line->reason == NULL;
    line->full = false;
    while (good && i < size) {
        // Every step below stores at most two characters.
        if (line->text_size + JSON_LINE_SLACK > line->text_capacity - JSON_LINE_SLACK) {
            line->full = true;
            break;
        }
        if (line->state == STRING) {
            i += take_plain(line, bytes + i, size - i);
            good = line->reason == NULL;
            if (!good || line->full || i == size) {
                break;
            }
        }
        char c = bytes[i++];
        switch (line->state) {
        case STRING:
            if (c == '"') {
                end_string(line);
            } else if (c == '\\') {
                line->state = ESCAPE;
            } else {
                good = bad(line, "a string has a control character that is not escaped");
            }
            break;
        case ESCAPE:
            good = take_escape(line, c);
            break;
        case HEX:
            good = take_hex(line, c);
            break;
        case LOW_BACKSLASH:
            line->state = LOW_U;
            if (c != '\\') {
                good = take_half(line);
                i--;  // what is here instead is taken as it stands
            }
            break;
        case LOW_U:
            line->state = HEX;
            line->code = 0;
            line->digits = 0;
            if (c != 'u') {
                good = take_half(line);
                line->state = ESCAPE;
                i--;
            }
            break;
        default:
            good = take_structure(line, c);
            break;
        }
    }
    line->position += (int64_t)i;
    return i;
}

static bool blank(const JsonLine *line) {
    return line->state == VALUE && line->depth == 0;
}

bool json_line_open(const JsonLine *line) {
    return !blank(line) && !(line->state == AFTER && line->depth == 0);
}

bool json_line_end(JsonLine *line) {
    if (blank(line) && line->reason == NULL) {
        return false;
    }
    if (line->reason == NULL && json_line_open(line)) {
        line->reason = "it ends in the middle of a value";
    } else if (line->reason == NULL && !line->has_text) {
        line->reason = "it has no \"text\"";
    }
    line->name[line->name_size] = 0;
    return true;
}
