// Character classes and NFC: see unicode.h.
//
// Classes: a flat table of one byte per code point, filled once from utf8proc's categories, then corrected by the ranges below.
//
// NFC works on stretches. A character that is not UNICODE_ACTIVE neither changes nor joins what stands before it, so text is
// cut before each such character, and only a stretch that holds an active one is decomposed, sorted by combining class (by
// counting, so a megabyte of marks takes no longer than a megabyte of letters) and composed again (Unicode Standard,
// section 3.11).
#include "data/tokenizer/unicode.h"

#include "core/text.h"

#include <pthread.h>
#include <utf8proc.h>

typedef struct CodeRange {
    uint32_t first, last;
} CodeRange;

// Letters, numbers and marks that Unicode 15.1 and 16 added.
static const CodeRange new_letters[] = {
    {0x1C89, 0x1C8A},   {0xA7CB, 0xA7CD},   {0xA7DA, 0xA7DC},   {0x105C0, 0x105F3}, {0x10D4A, 0x10D65}, {0x10D6F, 0x10D85},
    {0x10EC2, 0x10EC4}, {0x11380, 0x11389}, {0x1138B, 0x1138B}, {0x1138E, 0x1138E}, {0x11390, 0x113B5}, {0x113B7, 0x113B7},
    {0x113D1, 0x113D1}, {0x113D3, 0x113D3}, {0x11BC0, 0x11BE0}, {0x13460, 0x143FA}, {0x16100, 0x1611D}, {0x16D40, 0x16D6C},
    {0x18CFF, 0x18CFF}, {0x1E5D0, 0x1E5ED}, {0x1E5F0, 0x1E5F0}, {0x2EBF0, 0x2EE5D},
};
static const CodeRange new_numbers[] = {
    {0x10D40, 0x10D49}, {0x116D0, 0x116E3}, {0x11BF0, 0x11BF9}, {0x16130, 0x16139},
    {0x16D70, 0x16D79}, {0x1CCF0, 0x1CCF9}, {0x1E5F1, 0x1E5FA},
};
static const CodeRange new_marks[] = {
    {0x897, 0x897},     {0x10D69, 0x10D6D}, {0x10EFC, 0x10EFC}, {0x113B8, 0x113C0}, {0x113C2, 0x113C2},
    {0x113C5, 0x113C5}, {0x113C7, 0x113CA}, {0x113CC, 0x113D0}, {0x113D2, 0x113D2}, {0x113E1, 0x113E2},
    {0x11F5A, 0x11F5A}, {0x1611E, 0x1612F}, {0x1E5EE, 0x1E5EF},
};
// Alphabetic, hence \w, but neither letters nor numbers nor marks: circled and squared Latin letters.
static const CodeRange alphabetic_symbols[] = {
    {0x24B6, 0x24E9}, {0x1F130, 0x1F149}, {0x1F150, 0x1F169}, {0x1F170, 0x1F189}, {0x200C, 0x200D},
};
// What has a combining class or a decomposition in Unicode, but came after Unicode 9.
static const CodeRange inert[] = {
    {0x7FD, 0x7FD},     {0x897, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},     {0xC3C, 0xC3C},     {0xD3B, 0xD3C},
    {0xEBA, 0xEBA},     {0x1715, 0x1715},   {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},   {0xA82C, 0xA82C},   {0x105C9, 0x105C9},
    {0x105E4, 0x105E4}, {0x10D24, 0x10D27}, {0x10D69, 0x10D6D}, {0x10EAB, 0x10EAC}, {0x10EFC, 0x10EFF}, {0x10F46, 0x10F50},
    {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x11383, 0x113E2}, {0x1145E, 0x1145E}, {0x11839, 0x1183A},
    {0x11930, 0x11943}, {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D45},
    {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x1611E, 0x1612F}, {0x16D63, 0x16D6A}, {0x16FF0, 0x16FF1}, {0x1E08F, 0x1E08F},
    {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF}, {0x1E5EE, 0x1E5EF},
};
#define LENGTH(array) ((int)(sizeof(array) / sizeof *(array)))

static uint8_t classes[UNICODE_INVALID + 1];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static bool is_inert(uint32_t code) {
    int low = 0, high = LENGTH(inert);
    while (low < high) {
        int middle = (low + high) / 2;
        if (code > inert[middle].last) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < LENGTH(inert) && code >= inert[low].first;
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

static uint8_t category_classes(uint32_t code) {
    switch (utf8proc_category((utf8proc_int32_t)code)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return UNICODE_LETTER | UNICODE_WORD;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
        return UNICODE_NUMBER | UNICODE_WORD;
    case UTF8PROC_CATEGORY_NO:
        return UNICODE_NUMBER;
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_PC:
        return UNICODE_WORD;
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return UNICODE_SPACE;
    default:
        return (code >= 9 && code <= 13) || code == 0x85 ? UNICODE_SPACE : 0;
    }
}

static void set_ranges(const CodeRange *ranges, int count, uint8_t value) {
    for (int i = 0; i < count; i++) {
        memset(classes + ranges[i].first, value, ranges[i].last - ranges[i].first + 1);
    }
}

static void build_classes(void) {
    for (uint32_t code = 0; code < UNICODE_INVALID; code++) {
        if (code == 0x40000) {
            code = 0xE0000;  // planes 4 to 13 hold nothing, 15 and 16 are for private use
        } else if (code == 0xF0000) {
            break;
        }
        classes[code] |= category_classes(code);
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
    set_ranges(new_letters, LENGTH(new_letters), UNICODE_LETTER | UNICODE_WORD);
    set_ranges(new_numbers, LENGTH(new_numbers), UNICODE_NUMBER | UNICODE_WORD);
    set_ranges(new_marks, LENGTH(new_marks), UNICODE_WORD);
    for (int i = 0; i < LENGTH(alphabetic_symbols); i++) {
        for (uint32_t code = alphabetic_symbols[i].first; code <= alphabetic_symbols[i].last; code++) {
            classes[code] |= UNICODE_WORD;
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
