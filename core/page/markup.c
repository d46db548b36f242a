// Text for HTML and SVG: see markup.h.
#include "core/page/markup.h"

#include "core/text.h"

#include <math.h>
#include <stdio.h>

static const char replacement[] = "\xEF\xBF\xBD";

// U+202A .. U+202E and U+2066 .. U+2069 (embeddings, overrides, isolates): E2 80 AA..AE, E2 81 A6..A9. U+FFFE and U+FFFF are
// no characters.
static bool turns_direction(const unsigned char *p) {
    return p[0] == 0xE2 && ((p[1] == 0x80 && p[2] >= 0xAA && p[2] <= 0xAE) || (p[1] == 0x81 && p[2] >= 0xA6 && p[2] <= 0xA9));
}

static bool no_character(const unsigned char *p) {
    return p[0] == 0xEF && p[1] == 0xBF && p[2] >= 0xBE;
}

static size_t character_size(unsigned char lead) {
    return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

static void append_character(Buffer *out, const unsigned char *p, size_t size) {
    switch (*p) {
    case '&':
        buffer_text(out, "&amp;");
        return;
    case '<':
        buffer_text(out, "&lt;");
        return;
    case '>':
        buffer_text(out, "&gt;");
        return;
    case '"':
        buffer_text(out, "&quot;");
        return;
    case '\'':
        buffer_text(out, "&#39;");
        return;
    case '\r':
        return;  // of CR LF; alone it would be read as a line's end
    default:
        break;
    }
    if ((*p < 0x20 && *p != '\n' && *p != '\t') || *p == 0x7F || (size == 3 && no_character(p))) {
        buffer_text(out, replacement);
    } else if (!(size == 3 && turns_direction(p))) {
        buffer_append(out, p, size);
    }
}

void markup_text(Buffer *out, const char *text, size_t size, size_t limit) {
    size_t end = size < limit ? size : limit, i = 0;
    while (i < end) {
        size_t whole = i + utf8_valid_prefix(text + i, size - i);  // of all the text, so that the cut is at a character
        while (i < whole && i < end) {
            const unsigned char *p = (const unsigned char *)text + i;
            append_character(out, p, character_size(*p));
            i += character_size(*p);
        }
        if (i < end && i >= whole) {
            buffer_text(out, replacement);
            i++;
        }
    }
    if (size > limit) {
        buffer_text(out, "\xE2\x80\xA6");
    }
}

void markup_string(Buffer *out, const char *text) {
    markup_text(out, text, strlen(text), SIZE_MAX);
}

void markup_number(Buffer *out, double value, double step) {
    double size = fabs(value);
    if (size < 1e-300) {
        buffer_byte(out, '0');
        return;
    }
    double grain = step > 0 ? step : pow(10, floor(log10(size)) - 2);
    if (size < 1e-2 && grain < 1e-3) {
        int exponent = (int)floor(log10(size) + 1e-9);
        buffer_printf(out, "%ge%d", round(value / grain) * grain / pow(10, exponent), exponent);
        return;
    }
    static const char *const suffixes[] = {"", "k", "M", "G", "T", "P"};
    int suffix = 0;
    while (size >= 999.5 && suffix < 5) {
        value /= 1000;
        grain /= 1000;
        size /= 1000;
        suffix++;
    }
    int digits = (int)ceil(-log10(grain) - 1e-9);
    digits = digits < 0 ? 0 : digits > 6 ? 6 : digits;
    char text[64];
    int length = snprintf(text, sizeof text, "%.*f", digits, value);
    if (suffix > 0 && step > 0 && digits > 0) {
        while (text[length - 1] == '0') {
            length--;
        }
        length -= text[length - 1] == '.';
    }
    buffer_printf(out, "%.*s%s", length, text, suffixes[suffix]);
}

void markup_name(Buffer *out, const char *name, size_t limit) {
    size_t size = strlen(name), begin = 0;
    for (size_t i = 0; i + 1 < size && i < limit; i++) {
        if (strchr("_/.", name[i]) != NULL) {
            markup_text(out, name + begin, i + 1 - begin, SIZE_MAX);
            buffer_text(out, "<wbr/>");
            begin = i + 1;
        }
    }
    markup_text(out, name + begin, size - begin, limit - begin);
}
