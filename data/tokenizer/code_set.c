// Sets of characters: see code_set.h. The names of categories and of POSIX classes are here, all else in unicode_table.c.
#include "data/tokenizer/code_set.h"

#include "data/tokenizer/unicode_table.h"

#include <ctype.h>

void code_set_add_range(CodeSet *set, uint32_t first, uint32_t last) {
    for (uint32_t code = first; code <= last;) {
        if ((code & 63) == 0 && last - code >= 63) {
            set->bits[code >> 6] = ~(uint64_t)0;
            code += 64;
        } else {
            code_set_add(set, code++);
        }
    }
}

void code_set_unite(CodeSet *set, const CodeSet *other) {
    for (int i = 0; i < CODE_WORDS; i++) {
        set->bits[i] |= other->bits[i];
    }
}

void code_set_intersect(CodeSet *set, const CodeSet *other) {
    for (int i = 0; i < CODE_WORDS; i++) {
        set->bits[i] &= other->bits[i];
    }
}

void code_set_invert(CodeSet *set) {
    for (int i = 0; i < CODE_WORDS; i++) {
        set->bits[i] = ~set->bits[i];
    }
}

// Bits of categories.
#define ONE(category) (1u << CATEGORY_##category)
#define CASED_LETTER (ONE(LU) | ONE(LL) | ONE(LT))
#define LETTER (CASED_LETTER | ONE(LM) | ONE(LO))
#define MARK (ONE(MN) | ONE(MC) | ONE(ME))
#define NUMBER (ONE(ND) | ONE(NL) | ONE(NO))
#define PUNCTUATION (ONE(PC) | ONE(PD) | ONE(PS) | ONE(PE) | ONE(PI) | ONE(PF) | ONE(PO))
#define SYMBOL (ONE(SM) | ONE(SC) | ONE(SK) | ONE(SO))
#define SEPARATOR (ONE(ZS) | ONE(ZL) | ONE(ZP))
#define EVERY ((1u << CATEGORIES) - 1)

static const struct {
    const char *names;
    uint32_t categories;
} named_categories[] = {
    {"|any|", EVERY},
    {"|assigned|", EVERY & ~ONE(CN)},
    {"|l|letter|", LETTER},
    {"|lc|casedletter|", CASED_LETTER},
    {"|lu|uppercaseletter|", ONE(LU)},
    {"|ll|lowercaseletter|", ONE(LL)},
    {"|lt|titlecaseletter|", ONE(LT)},
    {"|lm|modifierletter|", ONE(LM)},
    {"|lo|otherletter|", ONE(LO)},
    {"|m|mark|combiningmark|", MARK},
    {"|mn|nonspacingmark|", ONE(MN)},
    {"|mc|spacingmark|", ONE(MC)},
    {"|me|enclosingmark|", ONE(ME)},
    {"|n|number|", NUMBER},
    {"|nd|decimalnumber|digit|", ONE(ND)},
    {"|nl|letternumber|", ONE(NL)},
    {"|no|othernumber|", ONE(NO)},
    {"|p|punctuation|punct|", PUNCTUATION},
    {"|pc|connectorpunctuation|", ONE(PC)},
    {"|pd|dashpunctuation|", ONE(PD)},
    {"|ps|openpunctuation|", ONE(PS)},
    {"|pe|closepunctuation|", ONE(PE)},
    {"|pi|initialpunctuation|", ONE(PI)},
    {"|pf|finalpunctuation|", ONE(PF)},
    {"|po|otherpunctuation|", ONE(PO)},
    {"|s|symbol|", SYMBOL},
    {"|sm|mathsymbol|", ONE(SM)},
    {"|sc|currencysymbol|", ONE(SC)},
    {"|sk|modifiersymbol|", ONE(SK)},
    {"|so|othersymbol|", ONE(SO)},
    {"|z|separator|", SEPARATOR},
    {"|zs|spaceseparator|", ONE(ZS)},
    {"|zl|lineseparator|", ONE(ZL)},
    {"|zp|paragraphseparator|", ONE(ZP)},
    {"|c|other|", ONE(CC) | ONE(CF) | ONE(CO) | ONE(CS) | ONE(CN)},
    {"|cc|control|cntrl|", ONE(CC)},
    {"|cf|format|", ONE(CF)},
    {"|co|privateuse|", ONE(CO)},
    {"|cs|surrogate|", ONE(CS)},
    {"|cn|unassigned|", ONE(CN)},
};
enum { NAMED_CATEGORIES = sizeof named_categories / sizeof *named_categories };

static void add_categories(CodeSet *set, uint32_t categories) {
    uint32_t code = 0;
    for (int i = 0; code < CODES; i++) {
        uint32_t length = unicode_category_runs[i] >> 5, category = unicode_category_runs[i] & 31;
        if (category < CATEGORIES) {
            if (categories >> category & 1) {
                code_set_add_range(set, code, code + length - 1);
            }
        } else {  // capital, small, capital ...
            for (uint32_t k = 0; k < length; k++) {
                if (categories & (k % 2 ? ONE(LL) : ONE(LU))) {
                    code_set_add(set, code + k);
                }
            }
        }
        code += length;
    }
}

static void add_binary(CodeSet *set, const char *name) {
    for (int i = 0; i < unicode_property_count; i++) {
        if (strcmp(unicode_properties[i].name, name) == 0) {
            uint32_t code = 0;
            for (int k = 0; code < CODES; k++) {
                uint32_t length = unicode_properties[i].runs[k];
                if (k % 2) {
                    code_set_add_range(set, code, code + length - 1);
                }
                code += length;
            }
        }
    }
}

static void add_script(CodeSet *set, uint32_t script) {
    uint32_t code = 0;
    for (int i = 0; code < CODES; i++) {
        uint32_t length = unicode_script_runs[i] >> 8;
        if ((unicode_script_runs[i] & 255) == script) {
            code_set_add_range(set, code, code + length - 1);
        }
        code += length;
    }
}

void code_set_add_space(CodeSet *set) {
    add_categories(set, SEPARATOR);
    code_set_add_range(set, '\t', '\r');
    code_set_add(set, 0x85);
}

void code_set_add_word(CodeSet *set) {
    add_categories(set, MARK | ONE(ND) | ONE(PC));
    add_binary(set, "alphabetic");
}

void code_set_add_word_alone(CodeSet *set) {
    code_set_add_word(set);
    code_set_add_range(set, 0xB2, 0xB3);
    code_set_add(set, 0xB9);
    code_set_add_range(set, 0xBC, 0xBE);
}

// What is seen: all that is assigned but white space, controls and surrogates.
static void add_graph(CodeSet *set) {
    CodeSet *space = memory_zeroed(1, sizeof *space), *graph = memory_zeroed(1, sizeof *graph);
    code_set_add_space(space);
    code_set_invert(space);
    add_categories(graph, EVERY & ~(ONE(CN) | ONE(CC) | ONE(CS)));
    code_set_intersect(graph, space);
    code_set_unite(set, graph);
    free(space);
    free(graph);
}

static bool add_posix(CodeSet *set, const char *name) {
    static const char *const names[] = {"alnum", "alpha", "ascii", "blank", "graph", "lower",
                                        "print", "space", "upper", "word",  "xdigit"};
    int which = 0, count = sizeof names / sizeof *names;
    while (which < count && strcmp(names[which], name) != 0) {
        which++;
    }
    switch (which) {
    case 0:
        add_categories(set, ONE(ND));
        add_binary(set, "alphabetic");
        break;
    case 1:
        add_binary(set, "alphabetic");
        break;
    case 2:
        code_set_add_range(set, 0, 0x7F);
        break;
    case 3:
        add_categories(set, ONE(ZS));
        code_set_add(set, '\t');
        break;
    case 4:
        add_graph(set);
        break;
    case 5:
        add_binary(set, "lowercase");
        break;
    case 6:
        add_graph(set);
        add_categories(set, ONE(ZS));
        break;
    case 7:
        code_set_add_space(set);
        break;
    case 8:
        add_binary(set, "uppercase");
        break;
    case 9:
        code_set_add_word(set);
        break;
    case 10:
        code_set_add_range(set, '0', '9');
        code_set_add_range(set, 'A', 'F');
        code_set_add_range(set, 'a', 'f');
        break;
    default:
        return false;
    }
    return true;
}

// The plain form of a name, between bars, in `out`; false if it is too long to be one.
enum { NAME_ROOM = 48 };
static bool plain_name(const char *name, size_t size, char out[NAME_ROOM]) {
    size_t count = 0;
    out[count++] = '|';
    for (size_t i = 0; i < size; i++) {
        if (name[i] != ' ' && name[i] != '_' && name[i] != '-') {
            if (count + 2 >= NAME_ROOM || !isalpha((unsigned char)name[i])) {
                return false;
            }
            out[count++] = (char)tolower((unsigned char)name[i]);
        }
    }
    out[count++] = '|';
    out[count] = 0;
    return count > 2;
}

bool code_set_add_property(CodeSet *set, const char *name, size_t size) {
    char plain[NAME_ROOM];
    if (!plain_name(name, size, plain)) {
        return false;
    }
    for (int i = 0; i < NAMED_CATEGORIES; i++) {
        if (strstr(named_categories[i].names, plain) != NULL) {
            add_categories(set, named_categories[i].categories);
            return true;
        }
    }
    for (int i = 0; i < unicode_scripts; i++) {
        if (strstr(unicode_script_names[i], plain) != NULL) {
            add_script(set, (uint32_t)i + 1);
            return true;
        }
    }
    if (strcmp(plain, "|whitespace|") == 0) {
        code_set_add_space(set);
        return true;
    }
    if (strcmp(plain, "|posixpunct|") == 0) {
        add_categories(set, PUNCTUATION | SYMBOL);
        return true;
    }
    plain[strlen(plain) - 1] = 0;
    for (int i = 0; i < unicode_property_count; i++) {
        if (strcmp(unicode_properties[i].name, plain + 1) == 0) {
            add_binary(set, plain + 1);
            return true;
        }
    }
    return add_posix(set, plain + 1);
}

bool code_set_add_posix(CodeSet *set, const char *name, size_t size) {
    static const struct {
        const char *name;
        uint32_t categories;
    } others[] = {{"punct", PUNCTUATION | SYMBOL}, {"digit", ONE(ND)}, {"cntrl", ONE(CC)}};
    for (int i = 0; i < 3; i++) {
        if (strlen(others[i].name) == size && memcmp(others[i].name, name, size) == 0) {
            add_categories(set, others[i].categories);
            return true;
        }
    }
    char plain[NAME_ROOM];
    if (size + 1 > NAME_ROOM) {
        return false;
    }
    memcpy(plain, name, size);
    plain[size] = 0;
    return add_posix(set, plain);
}

// The run of unicode_fold_runs that holds `code`, or NULL.
static const uint32_t *fold_run(uint32_t code) {
    int low = 0, high = unicode_folds;  // the last run that starts at or before `code`
    while (low < high) {
        int middle = (low + high) / 2;
        if (unicode_fold_runs[4 * middle] <= code) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low == 0) {
        return NULL;
    }
    const uint32_t *run = &unicode_fold_runs[4 * (low - 1)];
    uint32_t distance = code - run[0];
    return distance % run[2] == 0 && distance / run[2] < run[1] ? run : NULL;
}

uint32_t code_fold(uint32_t code) {
    const uint32_t *run = fold_run(code);
    return run == NULL ? code : code - run[3];
}

void code_set_add_case(CodeSet *set) {
    // Twice through all characters that have a lesser one: first the least of each kind is added, then all that have it.
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < unicode_folds; i++) {
            const uint32_t *run = &unicode_fold_runs[4 * i];
            for (uint32_t k = 0, code = run[0]; k < run[1]; k++, code += run[2]) {
                uint32_t from = pass == 0 ? code : code - run[3], to = pass == 0 ? code - run[3] : code;
                if (code_set_has(set, from)) {
                    code_set_add(set, to);
                }
            }
        }
    }
}
