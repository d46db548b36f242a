// Character classes as the reference tokenizers see them, and Unicode's composed normal form (NFC).
//
// Both reference engines (the Oniguruma in Hugging Face's tokenizers, the regex crate in tiktoken) know Unicode 16, measured
// over all code points. So does the table unicode_table.c, from which all classes come, those of patterns that only PCRE2
// matches too: they do not depend on the libraries of the machine. (The reference's pre-tokenizer Digits alone follows its
// compiler's Unicode: of version 0.23.3, 13 digits of Unicode 17 are numbers there and not here.) Hugging Face's NFC knows
// Unicode 9 only: younger marks are inert in it, and here.
#pragma once

#include "core/memory.h"

enum {
    UNICODE_LETTER = 1,  // \p{L}
    UNICODE_NUMBER = 2,  // \p{N}
    UNICODE_SPACE = 4,   // \s, White_Space
    UNICODE_WORD = 8,    // \w: alphabetic, marks, decimal digits, connectors, join controls
    UNICODE_ACTIVE = 16  // may change under NFC, or change what stands before it
};

// One byte of classes for each code point, 0x110000 of them; and one class 0 byte at UNICODE_INVALID. Built at the first call.
#define UNICODE_INVALID 0x110000u
const uint8_t *unicode_classes(void);

// The code point at `p` (p < end) and its length. What is not UTF-8 counts as one byte, UNICODE_INVALID.
static inline uint32_t unicode_decode(const uint8_t *p, const uint8_t *end, int *length) {
    uint32_t c = p[0];
    *length = 1;
    if (c < 0x80) {
        return c;
    }
    if (c >= 0xC2 && c < 0xE0 && end - p >= 2) {
        *length = 2;
        return (c & 0x1F) << 6 | (p[1] & 0x3F);
    }
    if (c >= 0xE0 && c < 0xF0 && end - p >= 3) {
        *length = 3;
        return (c & 0x0F) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3F);
    }
    if (c >= 0xF0 && c < 0xF5 && end - p >= 4) {
        uint32_t code = (c & 7) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3F);
        if (code < UNICODE_INVALID) {
            *length = 4;
            return code;
        }
    }
    return UNICODE_INVALID;
}

// Whether `text` is certainly its own NFC. False means: it may not be.
bool unicode_is_nfc(const char *text, size_t size);

// Appends the NFC of `text` (valid UTF-8) to `out`. Time is linear in size, whatever the text.
void unicode_nfc(const char *text, size_t size, Buffer *out);
