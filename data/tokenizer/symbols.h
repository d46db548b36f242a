// The alphabet of one pattern: characters that no part of the pattern tells apart are one symbol, a byte.
//
// A pattern asks of a character only whether it lies in some of its sets. So text becomes one byte a character, the pattern one
// over bytes, and whatever matches it needs to know nothing of Unicode: the same pieces everywhere, found faster.
#pragma once

#include "data/tokenizer/code_set.h"
#include "data/tokenizer/unicode.h"

enum { SYMBOLS_MOST = 256, SYMBOL_PAGES = UNICODE_INVALID / 256 + 1 };

typedef struct Symbols {
    uint16_t page[SYMBOL_PAGES];  // of each 256 characters, where their symbols start in `bytes`, in units of 256
    uint8_t *bytes;
} Symbols;

// What the sets of a pattern make of the characters, while the pattern is read: at first all are one symbol, and each set
// splits those that it has in part.
typedef struct SymbolSplit {
    uint8_t of[CODES];
    int count;
    uint32_t members[SYMBOLS_MOST];  // characters of each symbol
    uint8_t parent[SYMBOLS_MOST];    // the symbol that it was a part of
} SymbolSplit;

// A set as the symbols that it has among the first `count`; what came later is where its parent is.
typedef struct SymbolSet {
    uint64_t bits[SYMBOLS_MOST / 64];
    int count;
} SymbolSet;

SymbolSplit *symbol_split_create(void);  // freed with free
// Splits the symbols by a set; false if there would be more than SYMBOLS_MOST.
bool symbol_split(SymbolSplit *split, const CodeSet *codes, SymbolSet *set);
bool symbol_set_has(const SymbolSplit *split, const SymbolSet *set, int symbol);

void symbols_create(const SymbolSplit *split, Symbols *symbols);
void symbols_free(Symbols *symbols);

// Writes one byte for each character of `text` to `out` (room for `size`) and returns their number.
size_t symbols_of(const Symbols *symbols, const uint8_t *text, size_t size, uint8_t *out);
