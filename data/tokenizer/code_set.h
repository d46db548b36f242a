// Sets of characters, by code point: what stands for \p{L}, \s or [a-z] in a pattern, of Unicode 16 whatever libraries know.
#pragma once

#include "core/memory.h"

enum { CODES = 0x110000, CODE_WORDS = CODES / 64 };

// One bit for each code point, 136 KiB: from memory_zeroed, freed with free.
typedef struct CodeSet {
    uint64_t bits[CODE_WORDS];
} CodeSet;

static inline bool code_set_has(const CodeSet *set, uint32_t code) {
    return set->bits[code >> 6] >> (code & 63) & 1;
}

static inline void code_set_add(CodeSet *set, uint32_t code) {
    set->bits[code >> 6] |= (uint64_t)1 << (code & 63);
}

void code_set_add_range(CodeSet *set, uint32_t first, uint32_t last);
void code_set_unite(CodeSet *set, const CodeSet *other);
void code_set_intersect(CodeSet *set, const CodeSet *other);
void code_set_invert(CodeSet *set);

// Adds the characters of a property, as Oniguruma knows it: a general category ("L", "Lu", "Uppercase_Letter"), a script
// ("Han", "Hira"), a binary property ("Alphabetic") or a class of POSIX ("alnum", "word"); small and capital letters, blanks,
// "_" and
// "-" make no difference. False: there is none of this name.
bool code_set_add_property(CodeSet *set, const char *name, size_t size);
// The same for a name between [: and :], where punct has symbols in it.
bool code_set_add_posix(CodeSet *set, const char *name, size_t size);
void code_set_add_space(CodeSet *set);       // \s
void code_set_add_word(CodeSet *set);        // \w inside of a set
void code_set_add_word_alone(CodeSet *set);  // \w outside, where Oniguruma's has \u00B2 \u00B3 \u00B9 \u00BC-\u00BE too

// Adds every character that differs only in case from one of the set.
void code_set_add_case(CodeSet *set);
// The least character that differs only in case from this one.
uint32_t code_fold(uint32_t code);
