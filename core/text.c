// Words and numbers for people: see text.h.
#include "core/text.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
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

// A decimal number in parts: value = sign * digits * 10^exponent * factor.
typedef struct Decimal {
    char digits[64];  // without sign, point and underscores, no zeros in front
    bool negative;
    int exponent;
    int64_t factor;
} Decimal;

// Appends the digits at *p, with single underscores between them, leading zeros of the number left out. False: too many.
static bool take_digits(const char **p, Decimal *out, size_t *count, int *taken) {
    for (*taken = 0; isdigit((unsigned char)**p) || (**p == '_' && *taken > 0 && isdigit((unsigned char)(*p)[1])); (*p)++) {
        if (**p == '_') {
            continue;
        }
        (*taken)++;
        if (*count + 1 >= sizeof out->digits) {
            return false;
        }
        if (*count > 0 || **p != '0') {
            out->digits[(*count)++] = **p;
        }
    }
    return true;
}

// Splits [+-]digits[.digits][e[+-]digits][suffix]. A zero in front of other digits is refused: YAML 1.1 reads 017 as octal, 1.2
// does not.
static bool split_decimal(const char *text, Decimal *out) {
    *out = (Decimal){.negative = *text == '-'};
    const char *p = text + (*text == '-' || *text == '+');
    bool octal = p[0] == '0' && (isdigit((unsigned char)p[1]) || p[1] == '_');
    size_t count = 0;
    int whole, fraction = 0;
    if (octal || !take_digits(&p, out, &count, &whole)) {
        return false;
    }
    if (*p == '.') {
        p++;
        if (!take_digits(&p, out, &count, &fraction)) {
            return false;
        }
    }
    if (whole + fraction == 0) {
        return false;
    }
    if ((*p == 'e' || *p == 'E') && isdigit((unsigned char)p[1 + (p[1] == '-' || p[1] == '+')])) {
        char *end;
        long exponent = strtol(p + 1, &end, 10);
        out->exponent = exponent > 9999 ? 9999 : exponent < -9999 ? -9999 : (int)exponent;
        p = end;
    }
    out->digits[count] = 0;
    out->exponent -= fraction;
    out->factor = suffix_factor(p);
    return out->factor != 0;
}

bool text_to_i64(const char *text, int64_t *out) {
    Decimal d;
    if (!split_decimal(text, &d)) {
        return false;
    }
    // The digits times the factor, then tens: exact, or no whole number.
    __int128 value = 0, limit = (__int128)1 << 120;
    for (const char *p = d.digits; *p != 0; p++) {
        value = value * 10 + (*p - '0');
        if (value > limit / 16) {
            return false;
        }
    }
    if (__builtin_mul_overflow(value, (__int128)d.factor, &value)) {
        return false;
    }
    for (; d.exponent > 0 && value != 0; d.exponent--) {
        value *= 10;
        if (value > limit) {
            return false;
        }
    }
    for (; d.exponent < 0 && value != 0; d.exponent++) {
        if (value % 10 != 0) {
            return false;
        }
        value /= 10;
    }
    value = d.negative ? -value : value;
    *out = (int64_t)value;
    return value >= INT64_MIN && value <= INT64_MAX;
}

bool text_to_f64(const char *text, double *out) {
    Decimal d;
    if (!split_decimal(text, &d)) {
        return false;
    }
    char number[sizeof d.digits + 16];
    snprintf(number, sizeof number, "%se%d", *d.digits ? d.digits : "0", d.exponent);
    errno = 0;
    double value = strtod(number, NULL) * (double)d.factor;
    *out = d.negative && value > 0 ? -value : value;  // no negative zero
    return errno != ERANGE && isfinite(value);
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
    } else if (seconds < 0.0005) {
        snprintf(out, 32, "0 s");
    } else if (seconds < 0.9995) {
        snprintf(out, 32, "%.0f ms", seconds * 1e3);
    } else if (seconds < 59.95) {
        snprintf(out, 32, "%.1f s", seconds);
    } else {
        int64_t whole = (int64_t)(seconds + 0.05);
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

const char *text_number_of(char *out, int64_t count, const char *one) {
    size_t length = strlen(one);
    bool hisses =
        text_ends_with(one, "ch") || text_ends_with(one, "sh") || text_ends_with(one, "s") || text_ends_with(one, "x");
    bool entry = length > 1 && one[length - 1] == 'y' && strchr("aeiou", one[length - 2]) == NULL;
    const char *ending = count == 1 ? "" : entry ? "ies" : hisses ? "es" : "s";
    snprintf(out, 64, "%" PRId64 " %.*s%s", count, (int)length - (entry && count != 1), one, ending);
    return out;
}

int text_distance(const char *a, const char *b) {
    enum { MOST = 64 };
    size_t n = strlen(a), m = strlen(b);
    if (n >= MOST || m >= MOST) {
        return MOST;
    }
    int rows[3][MOST + 1];  // before the last, the last, this one
    int *before = rows[0], *last = rows[1], *row = rows[2];
    for (size_t j = 0; j <= m; j++) {
        row[j] = (int)j;
    }
    for (size_t i = 1; i <= n; i++) {
        int *oldest = before;
        before = last;
        last = row;
        row = oldest;
        row[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            int change = last[j - 1] + (a[i - 1] != b[j - 1]);
            int shift = (last[j] < row[j - 1] ? last[j] : row[j - 1]) + 1;
            row[j] = change < shift ? change : shift;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && before[j - 2] + 1 < row[j]) {
                row[j] = before[j - 2] + 1;
            }
        }
    }
    return row[m];
}

int text_slips(const char *word) {
    size_t length = strlen(word);
    return length < 3 ? 0 : length < 8 ? 1 : 2;
}

int text_nearest(const char *word, const char *const *names, int count) {
    int best = -1, best_distance = text_slips(word) + 1;
    for (int i = 0; i < count; i++) {
        int distance = text_distance(word, names[i]);
        if (distance < best_distance) {
            best = i;
            best_distance = distance;
        } else if (distance == best_distance && best >= 0 && strcmp(names[best], names[i]) != 0) {
            best = -1;  // two are as near: it may be either; a nearer one may follow
        }
    }
    return best;
}

bool text_one_of(char c, const char *set) {
    return c != 0 && strchr(set, c) != NULL;
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
