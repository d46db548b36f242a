// Words and numbers for people: see text.h.
#include "core/text.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

// The factor a suffix stands for, 0 where it is none: decimal k M G T, binary Ki Mi Gi Ti.
static int64_t suffix_factor(const char *suffix) {
    static const struct {
        const char *name;
        int64_t factor;
    } suffixes[] = {{"", 1},           {"k", 1000},       {"K", 1000},          {"M", 1000000},
                    {"G", 1000000000}, {"B", 1000000000}, {"T", 1000000000000}, {"Ki", 1 << 10},
                    {"Mi", 1 << 20},   {"Gi", 1 << 30},   {"Ti", 1LL << 40}};
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
        if (strcmp(suffix, suffixes[i].name) == 0) {
            return suffixes[i].factor;
        }
    }
    return 0;
}

bool text_to_i64(const char *text, int64_t *out) {
    char digits[32];
    size_t n = 0;
    const char *p = text;
    if (*p == '-' || *p == '+') {
        digits[n++] = *p++;
    }
    if (*p < '0' || *p > '9') {
        return false;
    }
    while ((*p >= '0' && *p <= '9') || (*p == '_' && p[1] >= '0' && p[1] <= '9')) {
        if (n + 1 >= sizeof digits) {
            return false;
        }
        if (*p != '_') {
            digits[n++] = *p;
        }
        p++;
    }
    digits[n] = 0;
    errno = 0;
    int64_t value = strtoll(digits, NULL, 10), factor = suffix_factor(p);
    return errno == 0 && factor != 0 && !__builtin_mul_overflow(value, factor, out);
}

bool text_to_f64(const char *text, double *out) {
    char *end;
    if (*text == 0 || *text == ' ') {
        return false;
    }
    errno = 0;
    double value = strtod(text, &end);
    if (end == text || errno == ERANGE) {
        return false;
    }
    int64_t factor = suffix_factor(end);
    *out = value * (double)factor;
    return factor != 0 && isfinite(*out);
}

bool text_to_bool(const char *text, bool *out) {
    static const char *const yes[] = {"true", "yes", "on"}, *const no[] = {"false", "no", "off"};
    for (int i = 0; i < 3; i++) {
        if (strcasecmp(text, yes[i]) == 0) {
            return *out = true, true;
        }
        if (strcasecmp(text, no[i]) == 0) {
            return *out = false, true;
        }
    }
    return false;
}

static const char *scaled(char *out, double value, double base, const char *const *units, int count) {
    int unit = 0;
    while (fabs(value) >= base && unit + 1 < count) {
        value /= base;
        unit++;
    }
    int digits = unit == 0 && value == floor(value) ? 0 : fabs(value) < 10 ? 2 : fabs(value) < 100 ? 1 : 0;
    snprintf(out, 32, "%.*f%s", digits, value, units[unit]);
    return out;
}

const char *text_bytes(char *out, double bytes) {
    static const char *const units[] = {" B", " KiB", " MiB", " GiB", " TiB", " PiB"};
    return scaled(out, bytes, 1024, units, 6);
}

const char *text_count(char *out, double count) {
    static const char *const units[] = {"", "k", "M", "B", "T"};
    return scaled(out, count, 1000, units, 5);
}

const char *text_duration(char *out, double seconds) {
    if (!(seconds >= 0) || seconds > 1e9) {
        snprintf(out, 32, "unknown");
    } else if (seconds < 1) {
        snprintf(out, 32, "%.0f ms", seconds * 1e3);
    } else if (seconds < 60) {
        snprintf(out, 32, "%.1f s", seconds);
    } else {
        int64_t whole = (int64_t)seconds;
        if (whole < 3600) {
            snprintf(out, 32, "%d min %02d s", (int)(whole / 60), (int)(whole % 60));
        } else if (whole < 86400) {
            snprintf(out, 32, "%d h %02d min", (int)(whole / 3600), (int)(whole / 60 % 60));
        } else {
            snprintf(out, 32, "%d d %02d h", (int)(whole / 86400), (int)(whole / 3600 % 24));
        }
    }
    return out;
}

// Levenshtein distance; words longer than the table are far from everything.
static int edit_distance(const char *a, const char *b) {
    enum { MOST = 64 };
    size_t n = strlen(a), m = strlen(b);
    if (n >= MOST || m >= MOST) {
        return MOST;
    }
    int row[MOST + 1];
    for (size_t j = 0; j <= m; j++) {
        row[j] = (int)j;
    }
    for (size_t i = 1; i <= n; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            int change = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            int shift = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            row[j] = change < shift ? change : shift;
        }
    }
    return row[m];
}

int text_nearest(const char *word, const char *const *names, int count) {
    int best = -1, best_distance = (int)(strlen(word) / 3) + 2;
    for (int i = 0; i < count; i++) {
        int distance = edit_distance(word, names[i]);
        if (distance < best_distance) {
            best = i;
            best_distance = distance;
        }
    }
    return best;
}

bool text_ends_with(const char *text, const char *suffix) {
    size_t n = strlen(text), m = strlen(suffix);
    return n >= m && memcmp(text + n - m, suffix, m) == 0;
}

bool text_starts_with(const char *text, const char *prefix) {
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

size_t utf8_valid_prefix(const char *text, size_t size) {
    const unsigned char *s = (const unsigned char *)text;
    size_t i = 0;
    while (i < size) {
        uint64_t word, four[4];
        if (size - i >= 32 && (memcpy(four, s + i, 32), ((four[0] | four[1] | four[2] | four[3]) & 0x8080808080808080u) == 0)) {
            i += 32;
            continue;
        }
        if (size - i >= 8 && (memcpy(&word, s + i, 8), (word & 0x8080808080808080u) == 0)) {
            i += 8;  // eight ASCII bytes at once
            continue;
        }
        unsigned char c = s[i];
        size_t more;
        unsigned low = 0x80, high = 0xBF;  // the allowed range of the second byte (RFC 3629, section 4)
        if (c < 0x80) {
            i++;
            continue;
        } else if (c >= 0xC2 && c <= 0xDF) {
            more = 1;
        } else if (c >= 0xE0 && c <= 0xEF) {
            more = 2;
            low = c == 0xE0 ? 0xA0 : 0x80;
            high = c == 0xED ? 0x9F : 0xBF;
        } else if (c >= 0xF0 && c <= 0xF4) {
            more = 3;
            low = c == 0xF0 ? 0x90 : 0x80;
            high = c == 0xF4 ? 0x8F : 0xBF;
        } else {
            return i;
        }
        if (size - i <= more || s[i + 1] < low || s[i + 1] > high) {
            return i;
        }
        for (size_t k = 2; k <= more; k++) {
            if ((s[i + k] & 0xC0) != 0x80) {
                return i;
            }
        }
        i += more + 1;
    }
    return i;
}

int utf8_encode(uint32_t code, char *out) {
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (char)(0xC0 | code >> 6);
        out[1] = (char)(0x80 | (code & 0x3F));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (char)(0xE0 | code >> 12);
        out[1] = (char)(0x80 | (code >> 6 & 0x3F));
        out[2] = (char)(0x80 | (code & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | code >> 18);
    out[1] = (char)(0x80 | (code >> 12 & 0x3F));
    out[2] = (char)(0x80 | (code >> 6 & 0x3F));
    out[3] = (char)(0x80 | (code & 0x3F));
    return 4;
}
