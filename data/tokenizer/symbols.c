// The alphabet of one pattern: see symbols.h.
#include "data/tokenizer/symbols.h"

SymbolSplit *symbol_split_create(void) {
    SymbolSplit *split = memory_zeroed(1, sizeof *split);
    split->count = 1;
    split->members[0] = CODES;
    return split;
}

// The characters of a set, or those outside, whichever are fewer, one after another: `word` and `rest` begin as 0.
typedef struct SetWalk {
    const CodeSet *set;
    uint64_t flip, rest;
    uint32_t word;
} SetWalk;

static SetWalk walk_fewer(const CodeSet *set) {
    uint32_t inside = 0;
    for (int i = 0; i < CODE_WORDS; i++) {
        inside += (uint32_t)__builtin_popcountll(set->bits[i]);
    }
    return (SetWalk){.set = set, .flip = inside > CODES / 2 ? ~(uint64_t)0 : 0};
}

static bool walk_next(SetWalk *walk, uint32_t *code) {
    while (walk->rest == 0) {
        if (walk->word == CODE_WORDS) {
            return false;
        }
        walk->rest = walk->set->bits[walk->word++] ^ walk->flip;
    }
    *code = 64 * (walk->word - 1) + (uint32_t)__builtin_ctzll(walk->rest);
    walk->rest &= walk->rest - 1;
    return true;
}

bool symbol_split(SymbolSplit *split, const CodeSet *codes, SymbolSet *set) {
    uint32_t walked[SYMBOLS_MOST] = {0}, code;
    SetWalk walk = walk_fewer(codes), again = walk;
    while (walk_next(&walk, &code)) {
        walked[split->of[code]]++;
    }
    // A symbol that is walked in part gives that part to a new one.
    int before = split->count, becomes[SYMBOLS_MOST];
    for (int i = 0; i < before; i++) {
        becomes[i] = i;
        if (walked[i] > 0 && walked[i] < split->members[i]) {
            if (split->count == SYMBOLS_MOST) {
                split->count = before;
                return false;
            }
            becomes[i] = split->count++;
            split->parent[becomes[i]] = (uint8_t)i;
            split->members[becomes[i]] = walked[i];
        }
    }
    for (int i = 0; i < before; i++) {
        split->members[i] -= becomes[i] != i ? walked[i] : 0;
    }
    *set = (SymbolSet){.count = split->count};
    for (int i = 0; i < split->count; i++) {
        bool in_walk = i >= before || (walked[i] > 0 && becomes[i] == i);
        if (in_walk != (walk.flip != 0)) {
            set->bits[i / 64] |= (uint64_t)1 << i % 64;
        }
    }
    if (split->count > before) {
        while (walk_next(&again, &code)) {
            split->of[code] = (uint8_t)becomes[split->of[code]];
        }
    }
    return true;
}

bool symbol_set_has(const SymbolSplit *split, const SymbolSet *set, int symbol) {
    while (symbol >= set->count) {
        symbol = split->parent[symbol];
    }
    return set->bits[symbol / 64] >> symbol % 64 & 1;
}

void symbols_create(const SymbolSplit *split, Symbols *symbols) {
    // Pages that are alike are kept once: of 4,353 a few dozen are left.
    size_t pages = 0, capacity = 0;
    uint8_t *bytes = NULL, page[256];
    for (int i = 0; i < SYMBOL_PAGES; i++) {
        if (i < CODES / 256) {
            memcpy(page, split->of + 256 * i, 256);
        } else {  // what is no character, is as the sign for it
            memset(page, split->of[0xFFFD], 256);
        }
        size_t same = pages;
        while (same > 0 && memcmp(bytes + 256 * (same - 1), page, 256) != 0) {
            same--;
        }
        if (same == 0) {
            if (pages == capacity) {
                capacity = 2 * capacity + 16;
                bytes = memory_resize(bytes, capacity, 256);
            }
            memcpy(bytes + 256 * pages, page, 256);
            same = ++pages;
        }
        symbols->page[i] = (uint16_t)(same - 1);
    }
    symbols->bytes = bytes;
}

void symbols_free(Symbols *symbols) {
    free(symbols->bytes);
    symbols->bytes = NULL;
}

size_t symbols_of(const Symbols *symbols, const uint8_t *text, size_t size, uint8_t *out) {
    const uint8_t *p = text, *end = text + size, *ascii = symbols->bytes + 256 * (size_t)symbols->page[0];
    uint8_t *to = out;
    while (p < end) {
        if (*p < 0x80) {
            *to++ = ascii[*p++];
            continue;
        }
        int length;
        uint32_t code = unicode_decode(p, end, &length);
        *to++ = symbols->bytes[256 * (size_t)symbols->page[code >> 8] + (code & 255)];
        p += length;
    }
    return (size_t)(to - out);
}
