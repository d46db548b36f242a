// Unicode 16 as numbers: what unicode.c and expression.c make sets of characters from. Made by make_unicode_table.py.
//
// All tables are runs over the code points from 0 to 0x10FFFF, in order.
#pragma once

#include <stdint.h>

// The general category of a character, in the order of the table.
enum {
    // clang-format off
    CATEGORY_CN, CATEGORY_CC, CATEGORY_CF, CATEGORY_CO, CATEGORY_CS, CATEGORY_LU, CATEGORY_LL, CATEGORY_LT, CATEGORY_LM,
    CATEGORY_LO, CATEGORY_MN, CATEGORY_MC, CATEGORY_ME, CATEGORY_ND, CATEGORY_NL, CATEGORY_NO, CATEGORY_PC, CATEGORY_PD,
    CATEGORY_PS, CATEGORY_PE, CATEGORY_PI, CATEGORY_PF, CATEGORY_PO, CATEGORY_SM, CATEGORY_SC, CATEGORY_SK, CATEGORY_SO,
    CATEGORY_ZS, CATEGORY_ZL, CATEGORY_ZP, CATEGORIES
    // clang-format on
};

// length << 5 | category. Of a run of category CATEGORIES every second character is LU, the ones between are LL.
extern const uint32_t unicode_category_runs[];

// length << 8 | script, 0: none; script i has the names |a|b|c| at unicode_script_names[i - 1], in small letters.
extern const uint32_t unicode_script_runs[];
extern const char *const unicode_script_names[];
extern const int unicode_scripts;

typedef struct UnicodeProperty {
    const char *name;
    const uint32_t *runs;  // lengths: without the property, with it, without ...
} UnicodeProperty;
extern const UnicodeProperty unicode_properties[];
extern const int unicode_property_count;

// Case: four numbers a run, first, count, stride, distance: each of these characters differs only in case from the one at that
// distance below it, the least of its kind.
extern const uint32_t unicode_fold_runs[];
extern const int unicode_folds;

// A character that, case aside, is several others: U+00DF is "ss".
typedef struct UnicodeExpansion {
    uint32_t code;
    const char *folded;
} UnicodeExpansion;
extern const UnicodeExpansion unicode_expansions[];
extern const int unicode_expansion_count;
