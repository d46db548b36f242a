#!/usr/bin/env python3
"""Writes data/tokenizer/unicode_table.c: what patterns of tokenizers ask of Unicode 16.

    pip install unicodedata2==16.0.0 regex==2024.11.6
    python3 data/tokenizer/make_unicode_table.py

Categories come from unicodedata2, scripts, properties and case from regex; both know Unicode 16, which is checked. The format is told in
unicode_table.h. Where the references move to another version, so do the two numbers above, and all corpora with newer characters.
"""
import pathlib
import sys

import regex
import unicodedata2
from regex import _regex, _regex_core

LAST = 0x110000
CATEGORIES = "Cn Cc Cf Co Cs Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp".split()
PROPERTIES = "Alphabetic Lowercase Uppercase Emoji Emoji_Presentation Extended_Pictographic".split()
FULL_CASE = regex.IGNORECASE | regex.FULLCASE | regex.UNICODE


def codes_of(expression):
    text = "".join(map(chr, range(LAST)))
    return {match.start() for match in regex.finditer(expression, text)}


def runs(values):
    """(value, length) of each run of equals."""
    out = []
    for value in values:
        if out and out[-1][0] == value:
            out[-1][1] += 1
        else:
            out.append([value, 1])
    return out


def category_runs():
    """Runs of a category; a capital, its small letter, a capital ... in turn is one run of the category behind the last."""
    values, out, at = [CATEGORIES.index(unicodedata2.category(chr(c))) for c in range(LAST)], [], 0
    capital, small = CATEGORIES.index("Lu"), CATEGORIES.index("Ll")
    while at < LAST:
        end = at + 1
        if values[at] == capital and end < LAST and values[end] == small:
            while end < LAST and values[end] == (capital, small)[(end - at) % 2]:
                end += 1
            out.append((end - at) << 5 | len(CATEGORIES))
        else:
            while end < LAST and values[end] == values[at]:
                end += 1
            out.append((end - at) << 5 | values[at])
        at = end
    return out


def scripts():
    names, of = [], [0] * LAST
    known = _regex_core.PROPERTIES["SCRIPT"][1]
    spellings = {}
    for name, value in known.items():
        spellings.setdefault(value, []).append(name.replace("_", "").replace(" ", "").lower())
    for value, words in sorted(spellings.items()):
        codes = codes_of(rf"\p{{Script={words[0]}}}")
        if not codes or "unknown" in words:
            continue
        names.append("|" + "|".join(sorted(words)) + "|")
        for code in codes:
            of[code] = len(names)
    return names, [length << 8 | value for value, length in runs(of)]


def fold_runs():
    """(first, count, stride, distance) of characters whose least case variant lies at that distance below."""
    out = []
    for code in range(LAST):
        least = min(_regex.get_all_cases(regex.IGNORECASE | regex.UNICODE, code))
        if least == code or code in (0x130, 0x131):
            continue
        first, count, stride, distance = out[-1] if out else (0, 0, 0, 0)
        gap = code - (first + (count - 1) * stride) if count else 0
        if count and distance == code - least and gap in (1, 2) and (count == 1 or gap == stride):
            out[-1] = (first, count + 1, gap, distance)
        else:
            out.append((code, 1, 1, code - least))
    return [number for entry in out for number in entry]


def expansions():
    out = []
    for char in _regex.get_expand_on_folding():
        if char != "\u0130":  # the reference engine does not fold it
            out.append((ord(char), _regex.fold_case(FULL_CASE, char)))
    return sorted(out)


def wrapped(numbers):
    lines, line = [], "   "
    for number in numbers:
        word = f" {number},"
        if len(line) + len(word) > 128:
            lines.append(line)
            line = "   "
        line += word
    return "\n".join(lines + [line])


def array(kind, name, numbers):
    return f"const {kind} {name}[] = {{\n{wrapped(numbers)}\n}};\n"


def quoted(text):
    return '"' + "".join(c if ord(c) < 0x80 else "".join(f"\\{b:03o}" for b in c.encode()) for c in text) + '"'


def main():
    assert unicodedata2.unidata_version == "16.0.0", unicodedata2.unidata_version
    letters = {c for c in range(LAST) if unicodedata2.category(chr(c))[0] == "L"}
    assert letters == codes_of(r"\p{L}"), f"regex {regex.__version__} knows another version of Unicode"
    names, script_runs = scripts()
    text = ["// Unicode 16, made by make_unicode_table.py. The format is told in unicode_table.h.\n"
            '#include "data/tokenizer/unicode_table.h"\n\n// clang-format off']
    text.append(array("uint32_t", "unicode_category_runs", category_runs()))
    text.append("const char *const unicode_script_names[] = {\n" + "\n".join(f"    {quoted(name)}," for name in names) + "\n};\n"
                + f"const int unicode_scripts = {len(names)};\n")
    text.append(array("uint32_t", "unicode_script_runs", script_runs))
    for name in PROPERTIES:
        codes = codes_of(rf"\p{{{name}}}")
        toggles = runs(code in codes for code in range(LAST))
        assert not toggles[0][0]
        text.append(array("uint32_t", f"unicode_{name.lower()}_runs", [length for _, length in toggles]))
    text.append("const UnicodeProperty unicode_properties[] = {\n" + "\n".join(
        f'    {{"{name.replace("_", "").lower()}", unicode_{name.lower()}_runs}},' for name in PROPERTIES) + "\n};\n"
        + f"const int unicode_property_count = {len(PROPERTIES)};\n")
    folds = fold_runs()
    text.append(array("uint32_t", "unicode_fold_runs", folds) + f"const int unicode_folds = {len(folds) // 4};\n")
    text.append("const UnicodeExpansion unicode_expansions[] = {\n" + "\n".join(
        f"    {{{code}, {quoted(folded)}}}," for code, folded in expansions()) + "\n};\n"
        + f"const int unicode_expansion_count = {len(expansions())};")
    pathlib.Path(__file__).with_name("unicode_table.c").write_text("\n".join(text) + "\n// clang-format on\n")


if __name__ == "__main__":
    sys.exit(main())
