// A regular expression of a tokenizer.json, in the language of Oniguruma (its Ruby syntax), matched as Oniguruma does.
//
// It is read here in full and written again for PCRE2, over the bytes of its own alphabet (symbols.h): classes, properties,
// case and the ends of lines are resolved on the way, from the tables of Unicode 16. PCRE2 sees groups, repeats and sets of
// bytes. What is not understood, or would mean something else, is refused with its place.
#pragma once

#include "data/tokenizer/symbols.h"

enum { EXPRESSION_LONGEST = 8192 };

typedef struct Expression {
    Symbols symbols;
    void *code;  // what PCRE2 compiled
} Expression;

Error *expression_create(const char *text, size_t size, Expression **out) MUST_CHECK;
void expression_free(Expression *expression);
