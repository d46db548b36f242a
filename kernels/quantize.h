// Eight-bit moments and stochastic rounding: arithmetic that the CPU and cards share, so that their bits are the same.
//
// Moments (Dettmers et al. 2022, "8-bit optimizers via block-wise quantization", sections 2.1 and 2.2): 256 neighbouring values
// keep their largest magnitude as one float scale, and each value a code; value = code_value(code) * scale. The code is
// dynamic: decade i (0 .. 6) holds the magnitudes 10^(i-7) .. 10^(i-6), in 2^i equal cells where a sign is needed and 2^(i+1)
// where not, each at the middle of its cell; 0 and 1 stand beside them.
//
//   signed    code 127 is 0; 127 + j and 127 - j are +-cell j (j = 1 .. 127, but code 0 is not -cell 127); 255 is 1, 0 is -1
//   unsigned  code 0 is 0; j is cell j (j = 1 .. 254); 255 is 1
//
// With -1 in the place of the last negative cell (the paper has 1 alone) the largest of a block is kept exactly whatever its
// sign, so values read from a block give the same codes and the same scale again: a checkpoint holds plain floats.
//
// Codes rise with their values; a value takes the nearest code, the lower one where both are as near. Over a cell the error is
// at most half its width: 0.45 * 2^-i * 10^(i-6) of the scale (signed), half of that (unsigned), so at most 0.7% (0.35%) of
// the scale (1.1% between the last negative cell and -1), and where i > 0 at most 4.5 * 2^-i (2.25 * 2^-i) of the value.
//
// Stochastic rounding (to bf16 or fp16): away from zero with the probability that makes the mean right.
#pragma once

#include "core/data_type.h"

#include <math.h>

#ifdef __CUDACC__
#define QUANTIZE_FUNCTION static inline __host__ __device__
#else
#define QUANTIZE_FUNCTION static inline
#endif

enum { MOMENT_CODES = 256, MOMENT_ZERO_SIGNED = 127 };

QUANTIZE_FUNCTION uint32_t bits_of_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
QUANTIZE_FUNCTION float float_of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// What code `code` stands for. One division of whole numbers, so the same bits everywhere.
QUANTIZE_FUNCTION float code_value(int has_sign, int code) {
    int cell = has_sign ? code - MOMENT_ZERO_SIGNED : code;
    int magnitude = cell < 0 ? -cell : cell;
    if (cell == 0) {
        return 0;
    }
    if (code == MOMENT_CODES - 1) {
        return 1;
    }
    if (has_sign && code == 0) {
        return -1;
    }
    // Cells before decade i: 2^i - 1, or 2 (2^i - 1).
    int place = has_sign ? magnitude : magnitude + 1, decade = 0;
    while (place >> (decade + 1) != 0) {
        decade++;
    }
    int64_t cells = (int64_t)1 << decade, at = place - cells;
    decade -= has_sign ? 0 : 1;
    // 0.1 + 0.9 (at + 1/2) / cells, times 10^(decade - 6).
    int64_t denominator = 20 * cells;
    for (int i = decade; i < 6; i++) {
        denominator *= 10;
    }
    double value = (double)(2 * cells + 9 * (2 * at + 1)) / (double)denominator;
    return (float)(cell < 0 ? -value : value);
}

// Where code `code` ends: the largest value (of a scale of 1) that it takes.
QUANTIZE_FUNCTION float code_end(int has_sign, int code) {
    return 0.5f * (code_value(has_sign, code) + code_value(has_sign, code + 1));
}

// Codes by arithmetic. In decade i the signed code of a magnitude a is a line through its cells, cut down to a whole number:
//
//   y = a 2^i 10^(6-i) / 0.9 + 2^i 8/9,    cell floor(y);  unsigned: cell floor(2 y - 1), a code less than twice y
//
// y rounded to the nearest whole number is the nearest edge of a cell, and one comparison with the exact end there decides
// between its two sides. That holds on both sides of a power of ten: the ends there lie 0.2 of the upper decade's cells above
// it, and the line of the next decade may be taken from 0.45 of the lower decade's (unsigned) cells below the power to 0.225
// above it. In this room the logarithm that a float's bits are, up to 6%, finds the decade: 128 steps an octave, of which
// 426 (3.325 octaves, by 154 / 2^16) are a decade. The line of the last decade goes on to 1. That the codes are those of the
// ends is tried with every float (tests/test_step.c).
enum { CODE_LINES = 8 };

typedef struct __attribute__((aligned(8))) CodeLine {  // one access of a card
    float slope, start;
} CodeLine;

// Line number `i`; its start is for y - 1.
QUANTIZE_FUNCTION CodeLine code_line(int i) {
    double cells = 1, power = 1;
    for (int d = 0; d < 6; d++) {
        cells *= d < i ? 2 : 1;
        power *= d < i ? 1 : 10;
    }
    CodeLine line = {(float)(cells * power / 0.9), (float)(cells * 8 / 9 - 1)};
    return line;
}

// The edge nearest to a (0 .. 1), less 1. unit: 2^23, where floats count whole cells, or 2^22, where they count halves.
QUANTIZE_FUNCTION int code_edge(const CodeLine *lines, float a, float unit) {
    int step = (int)(bits_of_float(a) >> 16) - 13267;
    const CodeLine *line = &lines[(step > 0 ? step : 0) * 154 >> 16];
    return (int)(bits_of_float(a * line->slope + line->start + unit) & 255);
}

// The code nearest to x, of a scale of 1; end[code] = code_end(1, code). That of what is no number is 0.
QUANTIZE_FUNCTION int code_nearest(const CodeLine *lines, const float *end, float x) {
    float a = fabsf(x);
    int edge = code_edge(lines, a < 1 ? a : 1, 8388608.0f);
    int code = MOMENT_ZERO_SIGNED + (edge ^ -!(x >= 0));  // -1 - edge below 0
    code &= ~(code >> 31);
    return code + (x > end[code]);
}

// The code of a second moment; end[code] = code_end(0, code). One that is not zero never becomes zero, or the next update would
// divide by epsilon alone.
QUANTIZE_FUNCTION int code_nearest_unsigned(const CodeLine *lines, const float *end, float x) {
    float a = fabsf(x);
    int code = code_edge(lines, a < 1 ? a : 1, 4194304.0f);
    code += x > end[code];
    return (code + (code == 0)) & -(x > 0);
}

// A block's scale and what values are multiplied by to have a scale of 1: both 0 where nothing is as large as a normal float.
// An infinity (the square of a gradient) becomes the largest float, or every value of its block would be NaN.
QUANTIZE_FUNCTION float block_scale(float largest) {
    return largest >= 1.17549435e-38f ? largest < 3.40282347e38f ? largest : 3.40282347e38f : 0;
}
QUANTIZE_FUNCTION float block_inverse(float scale) {
    return scale > 0 ? 1 / scale : 0;
}

// ---- Blocks, on the host: one body for updates and for what goes in and out, or a resume would not be exact

typedef struct CodeTable {
    DataType type;  // TYPE_CODE8 or TYPE_CODE8_UNSIGNED
    CodeLine lines[CODE_LINES];
    float value[MOMENT_CODES], end[MOMENT_CODES];
} CodeTable;

static inline void code_table_fill(DataType type, CodeTable *table) {
    int has_sign = type == TYPE_CODE8;
    table->type = type;
    for (int i = 0; i < MOMENT_CODES; i++) {
        table->value[i] = code_value(has_sign, i);
        table->end[i] = i < MOMENT_CODES - 1 ? code_end(has_sign, i) : 0;
    }
    for (int i = 0; i < CODE_LINES; i++) {
        table->lines[i] = code_line(i);
    }
}

// The values of `count` codes of a block. Of a scale of 0 all are +0, also where memory that begins as zeros holds code 0,
// which is -1: values written back then are the same bits.
static inline void block_decode(const CodeTable *table, const uint8_t *codes, float scale, int64_t count, float *out) {
    for (int64_t i = 0; i < count; i++) {
        out[i] = table->value[codes[i]] * scale + 0.0f;
    }
}

// Writes the scale and all DATA_TYPE_BLOCK codes of a block: those of `count` values, then those of zeros.
static inline void block_encode(const CodeTable *table, const float *values, int64_t count, uint8_t *codes, float *scale) {
    int has_sign = table->type == TYPE_CODE8;
    float largest = 0;
    for (int64_t i = 0; i < count; i++) {
        float magnitude = fabsf(values[i]);
        largest = magnitude > largest ? magnitude : largest;
    }
    *scale = block_scale(largest);
    float inverse = block_inverse(*scale);
    // Numbers first, then bytes: a byte that is stored may change any table, and a loop of that cannot become one of vectors.
    int found[DATA_TYPE_BLOCK];
    if (has_sign) {
        for (int64_t i = 0; i < count; i++) {
            found[i] = code_nearest(table->lines, table->end, values[i] * inverse);
        }
    } else {
        for (int64_t i = 0; i < count; i++) {
            found[i] = code_nearest_unsigned(table->lines, table->end, values[i] * inverse);
        }
    }
    for (int64_t i = 0; i < count; i++) {
        codes[i] = (uint8_t)found[i];
    }
    memset(codes + count, has_sign ? MOMENT_ZERO_SIGNED : 0, (size_t)(DATA_TYPE_BLOCK - count));
}

// ---- Stochastic rounding

// The bits of a bf16: the lower half of x is the chance to round up, of 2^16. Infinities and NaN stay what they are.
QUANTIZE_FUNCTION uint16_t round_stochastic_bf16(float x, uint32_t word) {
    uint32_t bits = bits_of_float(x);
    if ((bits & 0x7F800000u) == 0x7F800000u) {
        return (uint16_t)(bits >> 16 | ((bits & 0xFFFFu) != 0));
    }
    return (uint16_t)((bits + (word >> 16)) >> 16);
}

// The bits of an fp16. From 65504 on there is nothing but infinity to round up to.
QUANTIZE_FUNCTION uint16_t round_stochastic_fp16(float x, uint32_t word) {
    uint32_t bits = bits_of_float(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) {
        return (uint16_t)(sign | 0x7E00u);
    }
    if (magnitude >= 0x47800000u) {  // 65536
        return (uint16_t)(sign | 0x7C00u);
    }
    if (magnitude >= 0x38800000u) {  // 2^-14, the least normal fp16: 13 bits go
        return (uint16_t)(sign | ((magnitude + (word >> 19) - 0x38000000u) >> 13));
    }
    float units = float_of_bits(magnitude) * 16777216.0f, whole = floorf(units);  // of 2^-24
    uint32_t up = (float)(word >> 8) * (1.0f / 16777216.0f) < units - whole;
    return (uint16_t)(sign | ((uint32_t)whole + up));
}
