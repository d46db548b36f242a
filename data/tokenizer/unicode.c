// Character classes and NFC: see unicode.h.
//
// Classes: a flat table of one byte per code point, filled once from the categories in unicode_table.c. Decompositions are
// utf8proc's: those of characters that Unicode 9 had are the same in all its versions, all others are inert here.
//
// NFC works on stretches. A character that is not UNICODE_ACTIVE neither changes nor joins what stands before it, so text is
// cut before each such character, and only a stretch that holds an active one is decomposed, sorted by combining class (by
// counting, so a megabyte of marks takes no longer than a megabyte of letters) and composed again (Unicode Standard,
// section 3.11).
#include "data/tokenizer/unicode.h"

#include "core/text.h"
#include "data/tokenizer/unicode_table.h"

#include <pthread.h>
#include <utf8proc.h>

typedef struct CodeRange {
    uint32_t first, last;
} CodeRange;

// Alphabetic, hence of words, but neither letters nor numbers nor marks: circled and squared Latin letters; and join controls.
static const CodeRange alphabetic_symbols[] = {
    {0x24B6, 0x24E9}, {0x1F130, 0x1F149}, {0x1F150, 0x1F169}, {0x1F170, 0x1F189}, {0x200C, 0x200D},
};
// What has a combining class or a decomposition in Unicode 16, but came after Unicode 9.
static const CodeRange inert[] = {
    {0x7FD, 0x7FD},     {0x897, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},     {0xC3C, 0xC3C},     {0xD3B, 0xD3C},
    {0xEBA, 0xEBA},     {0x1715, 0x1715},   {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},   {0xA82C, 0xA82C},   {0x105C9, 0x105C9},
    {0x105E4, 0x105E4}, {0x10D24, 0x10D27}, {0x10D69, 0x10D6D}, {0x10EAB, 0x10EAC}, {0x10EFC, 0x10EFF}, {0x10F46, 0x10F50},
    {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x11383, 0x113E2}, {0x1145E, 0x1145E}, {0x11839, 0x1183A},
    {0x11930, 0x11943}, {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D45},
    {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x1611E, 0x1612F}, {0x16D63, 0x16D6A}, {0x16FF0, 0x16FF1}, {0x1E08F, 0x1E08F},
    {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF}, {0x1E5EE, 0x1E5EF},
};
enum { INERT = 128 };  // in `classes`: NFC leaves it alone
#define LENGTH(array) ((int)(sizeof(array) / sizeof *(array)))

static uint8_t classes[UNICODE_INVALID + 1];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static bool is_inert(uint32_t code) {
    return classes[code] & INERT;
}

static int combining_class(uint32_t code) {
    return code < 0x300 || is_inert(code) ? 0 : utf8proc_get_property((utf8proc_int32_t)code)->combining_class;
}

// The full canonical decomposition of `code` into `out` (at least 8 places); returns its length.
static int decompose(uint32_t code, int32_t *out) {
    int boundary = 0;
    if (code >= 0xC0 && !is_inert(code)) {
        utf8proc_ssize_t n = utf8proc_decompose_char((utf8proc_int32_t)code, out, 8, UTF8PROC_DECOMPOSE, &boundary);
        if (n >= 1 && n <= 8) {
            return (int)n;
        }
    }
    out[0] = (int32_t)code;
    return 1;
}

// The one character that a and b compose to, or 0.
static uint32_t compose(uint32_t a, uint32_t b) {
    if (is_inert(a) || is_inert(b)) {
        return 0;
    }
    utf8proc_int32_t pair[3] = {(utf8proc_int32_t)a, (utf8proc_int32_t)b};
    return utf8proc_normalize_utf32(pair, 2, UTF8PROC_COMPOSE | UTF8PROC_STABLE) == 1 ? (uint32_t)pair[0] : 0;
}

static uint8_t category_classes(uint32_t category) {
    switch (category) {
    case CATEGORY_LU:
    case CATEGORY_LL:
    case CATEGORY_LT:
    case CATEGORY_LM:
    case CATEGORY_LO:
        return UNICODE_LETTER | UNICODE_WORD;
    case CATEGORY_ND:
    case CATEGORY_NL:
        return UNICODE_NUMBER | UNICODE_WORD;
    case CATEGORY_NO:
        return UNICODE_NUMBER;
    case CATEGORY_MN:
    case CATEGORY_MC:
    case CATEGORY_ME:
    case CATEGORY_PC:
        return UNICODE_WORD;
    case CATEGORY_ZS:
    case CATEGORY_ZL:
    case CATEGORY_ZP:
        return UNICODE_SPACE;
    case CATEGORY_CN:
        return INERT;  // younger than the table: the same on every machine
    default:
        return 0;
    }
}

static void add_ranges(const CodeRange *ranges, int count, uint8_t value) {
    for (int i = 0; i < count; i++) {
        for (uint32_t code = ranges[i].first; code <= ranges[i].last; code++) {
            classes[code] |= value;
        }
    }
}

static void build_categories(void) {
    uint32_t code = 0;
    for (int i = 0; code < UNICODE_INVALID; i++) {
        uint32_t length = unicode_category_runs[i] >> 5, category = unicode_category_runs[i] & 31;
        memset(classes + code, category_classes(category < CATEGORIES ? category : CATEGORY_LU), length);
        code += length;
    }
    static const CodeRange controls[] = {{9, 13}, {0x85, 0x85}};
    add_ranges(controls, LENGTH(controls), UNICODE_SPACE);
    add_ranges(alphabetic_symbols, LENGTH(alphabetic_symbols), UNICODE_WORD);
    add_ranges(inert, LENGTH(inert), INERT);
}

static void build_classes(void) {
    build_categories();
    for (uint32_t code = 0; code < 0x30000; code++) {  // no character that is not inert lies above
        int32_t parts[8];
        int n = decompose(code, parts);
        if (n == 1 && parts[0] == (int32_t)code) {
            classes[code] |= combining_class(code) ? UNICODE_ACTIVE : 0;
            continue;
        }
        // Active are: what does not come back when composed, and what joins from the right. The last part of a decomposition
        // joins what stands before it; of the others all but the first have a combining class.
        uint32_t whole = (uint32_t)parts[0];
        for (int i = 1; i < n && whole != 0; i++) {
            whole = compose(whole, (uint32_t)parts[i]);
        }
        if (whole != code) {
            classes[code] |= UNICODE_ACTIVE;
        } else if (n > 1) {
            classes[parts[n - 1]] |= UNICODE_ACTIVE;
        }
    }
}

const uint8_t *unicode_classes(void) {
    pthread_once(&once, build_classes);
    return classes;
}

// The first place at or after p where an active character stands, or end.
static const uint8_t *find_active(const uint8_t *p, const uint8_t *end) {
    while (p < end) {
        while (end - p >= 8) {
            uint64_t eight;
            memcpy(&eight, p, 8);
            if (eight & 0x8080808080808080u) {
                break;
            }
            p += 8;
        }
        if (p == end) {
            break;
        }
        int n;
        uint32_t code = unicode_decode(p, end, &n);
        if (classes[code] & UNICODE_ACTIVE) {
            return p;
        }
        p += n;
    }
    return end;
}

bool unicode_is_nfc(const char *text, size_t size) {
    unicode_classes();
    return find_active((const uint8_t *)text, (const uint8_t *)text + size) == (const uint8_t *)text + size;
}

typedef struct Stretch {
    uint32_t *codes, *sorted;
    size_t count, capacity;
} Stretch;

static void stretch_add(Stretch *stretch, uint32_t code) {
    array_push(stretch->codes, stretch->count, stretch->capacity, code);
}

// Sorts each run of characters with a combining class by that class, keeping the order of equals.
static void sort_marks(Stretch *stretch) {
    uint32_t *codes = stretch->codes;
    for (size_t begin = 0, end; begin < stretch->count; begin = end + 1) {
        size_t places[257] = {0};
        for (end = begin; end < stretch->count && combining_class(codes[end]) > 0; end++) {
            places[combining_class(codes[end]) + 1]++;
        }
        if (end - begin < 2) {
            continue;
        }
        for (int c = 0; c < 256; c++) {
            places[c + 1] += places[c];
        }
        stretch->sorted = memory_resize(stretch->sorted, end - begin, sizeof *stretch->sorted);
        for (size_t i = begin; i < end; i++) {
            stretch->sorted[places[combining_class(codes[i])]++] = codes[i];
        }
        memcpy(codes + begin, stretch->sorted, (end - begin) * sizeof *codes);
    }
}

static void compose_stretch(Stretch *stretch) {
    uint32_t *codes = stretch->codes;
    size_t kept = 0, starter = SIZE_MAX;
    int last_class = 0;
    for (size_t i = 0; i < stretch->count; i++) {
        int class = combining_class(codes[i]);
        if (starter != SIZE_MAX && (kept - 1 == starter || last_class < class)) {
            uint32_t whole = compose(codes[starter], codes[i]);
            if (whole != 0) {
                codes[starter] = whole;
                continue;
            }
        }
        if (class == 0) {
            starter = kept;
        }
        last_class = class;
        codes[kept++] = codes[i];
    }
    stretch->count = kept;
}

void unicode_nfc(const char *text, size_t size, Buffer *out) {
    unicode_classes();
    Stretch stretch = {0};
    const uint8_t *p = (const uint8_t *)text, *end = p + size;
    while (p < end) {
        const uint8_t *active = find_active(p, end);
        const uint8_t *start = active;  // the character before it takes part, if there is one
        while (active < end && start > p && (*--start & 0xC0) == 0x80) {
        }
        buffer_append(out, p, (size_t)(start - p));
        p = start;
        stretch.count = 0;
        for (int n = 0; p < end; p += n) {
            int32_t parts[8];
            uint32_t code = unicode_decode(p, end, &n);
            if (p > active && !(classes[code] & UNICODE_ACTIVE)) {
                break;
            }
            for (int i = 0, count = decompose(code, parts); i < count; i++) {
                stretch_add(&stretch, (uint32_t)parts[i]);
            }
        }
        sort_marks(&stretch);
        compose_stretch(&stretch);
        for (size_t i = 0; i < stretch.count; i++) {
            char encoded[4];
            buffer_append(out, encoded, (size_t)utf8_encode(stretch.codes[i], encoded));
        }
    }
    free(stretch.codes);
    free(stretch.sorted);
}
