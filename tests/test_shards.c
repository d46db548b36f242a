// data/shards: every tolerance, every cut, bad lines, broken shards, and memory that does not grow with a document.
#include "core/durable.h"
#include "core/text.h"
#include "data/text/shards.h"
#include "tests/support/check.h"

#include <stdio.h>
#include <zlib.h>
#include <zstd.h>

// Everything a shard holds as text, one line an event, to compare readings.
static Error *describe(ShardReader *reader, Buffer *out) {
    ShardEvent event;
    do {
        TRY(shard_next(reader, &event));
        bool text = event.kind == SHARD_PIECE || event.kind == SHARD_DOCUMENT;
        if (text && event.first) {
            buffer_printf(out, "%lld<", (long long)event.line);
        }
        if (text) {
            CHECK(utf8_valid_prefix(event.text, event.size) == event.size);
            buffer_append(out, event.text, event.size);
        }
        if (event.kind == SHARD_DOCUMENT) {
            buffer_printf(out, ">%s|", event.set);
        } else if (event.kind == SHARD_BAD_LINE) {
            if (!event.first) {
                // What was handed out is forgotten.
                while (out->size > 0 && out->data[out->size - 1] != '|') {
                    out->size--;
                }
                out->data[out->size] = 0;
            }
            buffer_printf(out, "%lld!%s|", (long long)event.line, event.reason);
        }
    } while (event.kind != SHARD_END);
    return NULL;
}

static Error *read_memory(const char *bytes, size_t size, size_t step, size_t piece, Buffer *out) {
    ShardReader *reader;
    buffer_clear(out);
    buffer_text(out, "");
    TRY(shard_open_memory("shard", bytes, size, step, piece, &reader));
    Error *error = describe(reader, out);
    shard_close(reader);
    return error;
}

// Reads `lines` with every small step and piece; all must agree with `expected`.
static void reads(const char *lines, const char *expected) {
    Buffer out = {0};
    static const size_t steps[] = {1, 2, 3, 5, 7, 16, 100000}, pieces[] = {8, 9, 31, 100000};
    for (size_t s = 0; s < sizeof steps / sizeof *steps; s++) {
        for (size_t p = 0; p < sizeof pieces / sizeof *pieces; p++) {
            if (!CHECK_OK(read_memory(lines, strlen(lines), steps[s], pieces[p], &out)) || !CHECK_TEXT(out.data, expected)) {
                fprintf(stderr, "  with steps of %zu, pieces of %zu\n", steps[s], pieces[p]);
                s = p = 99;
            }
        }
    }
    buffer_free(&out);
}

static void test_lines(void) {
    reads("", "");
    reads("\n \r\n\n", "");
    reads("{\"text\": \"a\", \"meta\": {\"pile_set_name\": \"Pile-CC\"}}\n", "1<a>Pile-CC|");
    reads("{\"meta\":{\"pile_set_name\":\"CommonCrawl\",\"x\":[1,{\"pile_set_name\":3}]},\"text\":\"a\"}", "1<a>Pile-CC|");
    reads("{\"text\":\"a\"}\r\n\n\"bare \\u00e9\"\n", "1<a>text|3<bare \xC3\xA9>text|");
    reads("{\"text\":[\"one\",\"\",\"two\"],\"id\":-1.5e+3,\"n\":null,\"t\":true,\"f\":false,\"z\":0}",
          "1<one\n\n\n\ntwo>text|");
    reads("{\"text\":[]}\n{\"text\":\"\"}", "1<>text|2<>text|");
    reads(
        "{\"text\":\"a\",\"meta\":null}\n{\"text\":\"b\",\"meta\":\"m\"}\n{\"text\":\"c\",\"meta\":{\"pile_set_name\":null}}\n"
        "{\"text\":\"d\",\"meta\":{\"pile_set_name\":\"\"}}\n{\"text\":\"e\",\"meta\":[{\"pile_set_name\":\"x\"}]}",
        "1<a>text|2<b>text|3<c>text|4<d>text|5<e>text|");
    reads("{\"\\u0074ext\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\ud83d\\uDE00 \xF0\x9F\x98\x80\xE2\x82\xAC\"}",
          "1<\"\\/\b\f\n\r\t\xF0\x9F\x98\x80 \xF0\x9F\x98\x80\xE2\x82\xAC>text|");
    reads("\xEF\xBB\xBF{\"text\":\"marked\"}", "1<marked>text|");
    reads(" { \"text\" : \"spaced out, longer than one step of the scan\" , \"meta\" : { \"pile_set_name\" : \"USPTO\" } } \n",
          "1<spaced out, longer than one step of the scan>USPTO Backgrounds|");
    reads("{\"text\":\"x\",\"other\":{\"text\":\"no\",\"meta\":{\"pile_set_name\":\"no\"}},\"list\":[\"text\",[],{}]}",
          "1<x>text|");
    reads("{\"this key is longer than any that matters, by far\":1,\"text\":\"x\"}", "1<x>text|");
}

static void test_bad_lines(void) {
    static const struct {
        const char *line, *reason;
    } cases[] = {
        {"{\"text\":\"a\xFF\"}", "it is not valid UTF-8"},
        {"{\"text\":\"a\xC3\"}", "it is not valid UTF-8"},
        {"{\"text\":\"a\xED\xA0\x80\"}", "it is not valid UTF-8"},
        {"{\"text\":\"a\",\"x\":\"\xC0\x80\"}", "it is not valid UTF-8"},
        {"{\"text\":\"\\ud83d\"}", "a surrogate stands alone"},
        {"{\"text\":\"\\ud83dx\"}", "a surrogate stands alone"},
        {"{\"text\":\"\\ud83d\\n\"}", "a surrogate stands alone"},
        {"{\"text\":\"\\ude00\"}", "a surrogate stands alone"},
        {"{\"text\":\"\\ud83d\\ud83d\"}", "a surrogate stands alone"},
        {"{\"text\":\"\\u12g4\"}", "\\u is not followed by four hexadecimal digits"},
        {"{\"text\":\"\\x\"}", "a backslash is followed by none of \"\\/bfnrtu"},
        {"{\"text\":\"tab\there\"}", "a string has a control character that is not escaped"},
        {"{\"text\":3}", "\"text\" is neither a string nor a list of strings"},
        {"{\"text\":null}", "\"text\" is neither a string nor a list of strings"},
        {"{\"text\":{\"a\":1}}", "\"text\" is neither a string nor a list of strings"},
        {"{\"text\":[\"a\",1]}", "\"text\" is neither a string nor a list of strings"},
        {"{\"text\":[[\"a\"]]}", "\"text\" is neither a string nor a list of strings"},
        {"{\"text\":\"a\",\"text\":\"b\"}", "\"text\" stands twice"},
        {"{\"meta\":{}}", "it has no \"text\""},
        {"{}", "it has no \"text\""},
        {"[\"a\"]", "it is neither an object nor a string"},
        {"17", "it is neither an object nor a string"},
        {"true", "it is neither an object nor a string"},
        {"text", "it is neither an object nor a string"},
        {"hello", "a value is expected"},
        {"{\"text\":\"a\"", "it ends in the middle of a value"},
        {"{\"text\":\"a", "it ends in the middle of a value"},
        {"{\"text\":\"a\"}}", "something follows after the value"},
        {"{\"text\":\"a\"} x", "something follows after the value"},
        {"\"a\" \"b\"", "something follows after the value"},
        {"{\"text\":\"a\",}", "a key in quotes is expected"},
        {"{text:\"a\"}", "a key in quotes is expected"},
        {"{\"text\" \"a\"}", "a colon is expected"},
        {"{\"text\":\"a\" \"b\":1}", "a comma or } is expected"},
        {"{\"x\":[1 2],\"text\":\"a\"}", "a comma or ] is expected"},
        {"{\"x\":[1,],\"text\":\"a\"}", "a value is expected"},
        {"{\"x\":[1},\"text\":\"a\"}", "a bracket closes what was not opened"},
        {"{\"x\":nul,\"text\":\"a\"}", "a value is expected"},
        {"{\"x\":01,\"text\":\"a\"}", "a number starts with a zero"},
        {"{\"x\":-,\"text\":\"a\"}", "a number has no digits"},
        {"{\"x\":1.,\"text\":\"a\"}", "a number has no digits after its point"},
        {"{\"x\":1e,\"text\":\"a\"}", "a number has no digits in its exponent"},
        {"{\"x\":1e+,\"text\":\"a\"}", "a number has no digits in its exponent"},
        {"{\"text\":\"a\",\"meta\":{\"pile_set_name\":7}}", "\"pile_set_name\" is no string"},
        {"{\"text\":\"a\",\"meta\":{\"pile_set_name\":\"x\",\"pile_set_name\":\"y\"}}", "the set's name stands twice"},
        {"{\"text\":\"a\",\"meta\":{\"pile_set_name\":\"x\\n\"}}",
         "the set's name is longer than 255 bytes or has control characters"},
        {"{\"x\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", "it is nested more than 32 deep"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *lines = memory_format("\"before, long enough for several pieces\"\n%s\n\"after\"\n", cases[i].line);
        char *expected = memory_format("1<before, long enough for several pieces>text|2!%s|3<after>text|", cases[i].reason);
        reads(lines, expected);
        free(lines);
        free(expected);
    }
}

// What Python's writer makes beside a text that JSON does not know. Only the text must be sound.
static void test_python_lines(void) {
    static const char *const values[] = {"NaN", "Infinity", "-Infinity", "[NaN,-Infinity]", "{\"y\":Infinity}", "\"\\ud83d\""};
    static const char *const not_values[] = {"nan", "Nan", "NaNs", "-NaN", "+Infinity", "Inf", "-I", "--Infinity"};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        char *lines = memory_format("{\"x\":%s,\"text\":\"a\",\"meta\":{\"pile_set_name\":\"b\",\"z\":%s}}\n"
                                    "{\"text\":\"a\",\"meta\":%s}\n{\"text\":\"a\",\"\\ude00\":%s}\n",
                                    values[i], values[i], values[i], values[i]);
        reads(lines, "1<a>b|2<a>text|3<a>text|");
        free(lines);
    }
    for (size_t i = 0; i < sizeof not_values / sizeof *not_values; i++) {
        char *line = memory_format("{\"x\":%s,\"text\":\"a\"}", not_values[i]);
        Buffer out = {0};
        CHECK_OK(read_memory(line, strlen(line), 7, 8, &out));
        CHECK(strncmp(out.data, "1!", 2) == 0);
        buffer_free(&out);
        free(line);
    }
    reads("{\"text\":NaN}\n{\"text\":[Infinity]}\nNaN",
          "1!\"text\" is neither a string nor a list of strings|2!\"text\" is neither a string nor a list of strings|"
          "3!it is neither an object nor a string|");
    reads("{\"text\":\"a\",\"meta\":{\"pile_set_name\":NaN}}\n{\"text\":\"a\",\"meta\":{\"pile_set_name\":\"b\\ud800c\"}}",
          "1<a>text|2<a>b\xEF\xBF\xBD"
          "c|");
}

// Every sequence of up to four of these in a text, against a plain reading of them: a half alone makes the line bad, or U+FFFD
// where that is asked for.
static void test_surrogates(void) {
    static const char *const units[] = {"\\ud83d", "\\uDE00", "x", "\\n", "\\u20ac", "\xC3\xA9"};
    static const char *const decoded[] = {"\xEF\xBF\xBD", "\xEF\xBF\xBD", "x", "\n", "\xE2\x82\xAC", "\xC3\xA9"};
    enum { UNITS = 6, MOST = 4 };
    static const size_t steps[] = {1, 3, 100}, pieces[] = {8, 9, 100};
    for (int length = 1, count = UNITS; length <= MOST; length++, count *= UNITS) {
        for (int number = 0; number < count; number++) {
            Buffer line = {0}, replaced = {0}, out = {0};
            bool alone = false;
            buffer_text(&line, "{\"text\":\"");
            buffer_text(&replaced, "1<");
            for (int i = 0, rest = number; i < length; i++, rest /= UNITS) {
                int unit = rest % UNITS;
                bool pair = unit == 0 && i + 1 < length && rest / UNITS % UNITS == 1;
                buffer_text(&line, units[unit]);
                buffer_text(&line, pair ? units[1] : "");
                buffer_text(&replaced, pair ? "\xF0\x9F\x98\x80" : decoded[unit]);
                alone = alone || (unit < 2 && !pair);
                i += pair;
                rest = pair ? rest / UNITS : rest;
            }
            buffer_text(&line, "\"}\n");
            buffer_text(&replaced, ">text|");
            for (int i = 0; i < 6; i++) {
                ShardReader *reader;
                buffer_clear(&out);
                CHECK_OK(shard_open_memory("shard", line.data, line.size, steps[i % 3], pieces[i % 3], &reader));
                if (i < 3) {
                    shard_replace_surrogates(reader);
                }
                CHECK_OK(describe(reader, &out));
                CHECK_TEXT(out.data, i >= 3 && alone ? "1!a surrogate stands alone|" : replaced.data);
                shard_close(reader);
            }
            buffer_free(&line);
            buffer_free(&replaced);
            buffer_free(&out);
        }
    }
}

// Lines of all kinds with their description, so that compressed forms can be cut at every byte.
static const char mixed[] = "{\"text\":\"first \\u00fc \xE2\x82\xAC document\",\"meta\":{\"pile_set_name\":\"ArXiv\"}}\n"
                            "{\"text\":\"bad \\ud800 one\"}\n{\"text\":[\"second\",\"two\"]}\n\"third\"\n";
static const char mixed_expected[] = "1<first \xC3\xBC \xE2\x82\xAC document>ArXiv|2!a surrogate stands alone|"
                                     "3<second\n\ntwo>text|4<third>text|";

static size_t zstd_bytes(const char *text, size_t size, char *out, size_t capacity) {
    return ZSTD_compress(out, capacity, text, size, 3);
}

static size_t gzip_bytes(const char *text, size_t size, char *out, size_t capacity) {
    z_stream z = {0};
    CHECK(deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK);
    z.next_in = (unsigned char *)(uintptr_t)text;
    z.avail_in = (uInt)size;
    z.next_out = (unsigned char *)out;
    z.avail_out = (uInt)capacity;
    CHECK(deflate(&z, Z_FINISH) == Z_STREAM_END);
    size_t n = capacity - z.avail_out;
    deflateEnd(&z);
    return n;
}

// Two frames (members) one behind the other, the text cut inside a character and a line.
static void test_compressed(void) {
    static size_t (*const compress[])(const char *, size_t, char *, size_t) = {zstd_bytes, gzip_bytes};
    static const char *const what[] = {"the zstd stream breaks off", "the gzip stream breaks off"};
    Buffer out = {0};
    for (int kind = 0; kind < 2; kind++) {
        char bytes[2048];
        size_t cut = 23, size = sizeof mixed - 1;
        size_t first = compress[kind](mixed, cut, bytes, sizeof bytes);
        size_t all = first + compress[kind](mixed + cut, size - cut, bytes + first, sizeof bytes - first);
        for (size_t step = 1; step < 40; step += 3) {
            CHECK_OK(read_memory(bytes, all, step, 64, &out));
            CHECK_TEXT(out.data, mixed_expected);
        }
        for (size_t n = 4; n < all; n++) {
            CHECK_FAILS(read_memory(bytes, n, 17, 64, &out), n == first ? "its last line (1) ends in the middle" : what[kind]);
        }
        bytes[all] = 'x';
        memcpy(bytes + all, "garbage!", 8);
        CHECK_FAILS(read_memory(bytes, all + 8, 100, 64, &out), "there is something after the");
        bytes[all / 2] ^= 0x55;
        Error *error = read_memory(bytes, all, 100, 64, &out);
        CHECK(error != NULL && error->kind == ERROR_DAMAGED);
        error_free(error);
    }
    // A skippable frame (RFC 8878, section 3.1.2) in front is passed over.
    char skippable[2048] = "\x5E\x2A\x4D\x18\x03\x00\x00\x00xyz";
    size_t n = 11 + zstd_bytes("\"a\"", 3, skippable + 11, sizeof skippable - 11);
    CHECK_OK(read_memory(skippable, n, 3, 8, &out));
    CHECK_TEXT(out.data, "1<a>text|");
    buffer_free(&out);
}

// Zero bytes behind a gzip member, as on a tape's last block: padding at the end and between members, and nothing else.
static void test_padding(void) {
    static const size_t pads[] = {0, 1, 2, 511, 512, 1000};
    Buffer out = {0};
    char bytes[8192];
    for (size_t a = 0; a < 6; a++) {
        for (size_t b = 0; b < 6; b++) {
            size_t cut = 23, size = gzip_bytes(mixed, cut, bytes, sizeof bytes);
            memset(bytes + size, 0, pads[a]);
            size += pads[a];
            size += gzip_bytes(mixed + cut, sizeof mixed - 1 - cut, bytes + size, sizeof bytes - size);
            size_t end = size;
            memset(bytes + size, 0, pads[b]);
            size += pads[b];
            for (size_t step = 1; step < 2000; step += 1 + 13 * step) {
                CHECK_OK(read_memory(bytes, size, step, 64, &out));
                CHECK_TEXT(out.data, mixed_expected);
            }
            bytes[size] = 'x';
            CHECK_FAILS(read_memory(bytes, size + 1, 100, 64, &out), "shard is");
            CHECK_FAILS(read_memory(bytes, end - 1, 100, 64, &out), "the gzip stream breaks off");
        }
    }
    // In front of the first member they are no padding, and behind zstd neither.
    size_t size = zstd_bytes("\"a\"", 3, bytes, sizeof bytes);
    memset(bytes + size, 0, 8);
    CHECK_FAILS(read_memory(bytes, size + 8, 100, 64, &out), "there is something after the zstd frames");
    buffer_free(&out);
}

static void test_window(void) {
    // A frame whose header asks for a window of 1 GiB: magic, no content size, window descriptor (30 - 10) << 3.
    static const char huge[] = "\x28\xB5\x2F\xFD\x00\xA0\x01\x00\x00";
    Buffer out = {0};
    CHECK_FAILS(read_memory(huge, sizeof huge - 1, 100, 64, &out), "it needs a larger window than is allowed");
    // The same of 2^log bytes, with content. Each needs what it asks for to be allowed.
    for (int log = 26; log <= 31; log++) {
        char bytes[2048];
        ZSTD_CCtx *zstd = ZSTD_createCCtx();
        ZSTD_inBuffer in = {mixed, sizeof mixed - 1, 0}, end = {NULL, 0, 0};
        ZSTD_outBuffer to = {bytes, sizeof bytes, 0};
        CHECK(!ZSTD_isError(ZSTD_CCtx_setParameter(zstd, ZSTD_c_compressionLevel, 1)));
        CHECK(!ZSTD_isError(ZSTD_CCtx_setParameter(zstd, ZSTD_c_hashLog, 10)));
        CHECK(!ZSTD_isError(ZSTD_CCtx_setParameter(zstd, ZSTD_c_windowLog, log)));
        if (log == 31) {  // the compressor would take that much memory; the header says it as well
            CHECK(!ZSTD_isError(ZSTD_CCtx_setParameter(zstd, ZSTD_c_windowLog, 20)));
        }
        CHECK(ZSTD_compressStream2(zstd, &to, &in, ZSTD_e_flush) == 0 &&
              ZSTD_compressStream2(zstd, &to, &end, ZSTD_e_end) == 0);
        ZSTD_freeCCtx(zstd);
        CHECK((bytes[4] & 0x20) == 0);
        bytes[5] = (char)((log - 10) << 3);
        for (int allowed = 26; allowed <= 31; allowed++) {
            ShardReader *reader;
            buffer_clear(&out);
            CHECK_OK(shard_open_memory("shard", bytes, to.pos, 100, 64, &reader));
            if (allowed > 27) {
                shard_allow_window(reader, (int64_t)1 << allowed);
            }
            Error *error = describe(reader, &out);
            if (log <= 27 || log <= allowed) {
                CHECK_OK(error);
                CHECK_TEXT(out.data, mixed_expected);
            } else {
                CHECK_FAILS(error, "it needs a larger window than is allowed");
            }
            shard_close(reader);
        }
    }
    buffer_free(&out);
}

static void test_truncated_plain(void) {
    Buffer out = {0};
    static const char *const cut[] = {"\"a\"\n{\"text\":\"b", "\"a\"\n{\"text\":\"b\"", "\"a\"\n{", "\"a\"\n\"\xE2\x82",
                                      "\"a\"\n{\"text\":"};
    for (size_t i = 0; i < sizeof cut / sizeof *cut; i++) {
        for (size_t step = 1; step < 20; step++) {
            CHECK_FAILS(read_memory(cut[i], strlen(cut[i]), step, 8, &out),
                        "shard is truncated: its last line (2) ends in the middle");
        }
    }
    buffer_free(&out);
}

static void test_files(void) {
    const char *folder = check_folder();
    ShardReader *reader = NULL;
    char *path = path_join(folder, "a.jsonl.zst");
    CHECK_FAILS(shard_open(path, &reader), "a.jsonl.zst cannot be opened: No such file");
    CHECK_OK(file_write(path, "", 0));
    CHECK_FAILS(shard_open(path, &reader), "a.jsonl.zst is truncated: it is empty");
    CHECK_OK(file_write(path, "\0\0\0\0\0", 5));
    CHECK_FAILS(shard_open(path, &reader), "does not start like a compressed file");
    CHECK_OK(file_write(path, "PK\x03\x04 and more", 13));
    CHECK_FAILS(shard_open(path, &reader), "a zip archive");
    CHECK_OK(file_write(path, "version https://git-lfs.github.com/spec/v1\n", 43));
    CHECK_FAILS(shard_open(path, &reader), "a git-lfs pointer");
    CHECK_OK(file_write(path, "<!DOCTYPE html>\n", 16));
    CHECK_FAILS(shard_open(path, &reader), "a web page");
    CHECK_FAILS(shard_open(folder, &reader), "is a folder");
    CHECK_FAILS(shard_open("/proc/self/mem", &reader), "/proc/self/mem cannot be read: Input/output error");
    char bytes[2048];
    size_t n = gzip_bytes(mixed, sizeof mixed - 1, bytes, sizeof bytes);
    CHECK_OK(file_write(path, bytes, n));  // told by content, whatever the name
    CHECK_OK(shard_open(path, &reader));
    Buffer out = {0};
    CHECK_OK(describe(reader, &out));
    CHECK_TEXT(out.data, mixed_expected);
    CHECK_I64(shard_taken(reader), n);
    shard_close(reader);
    buffer_free(&out);
    free(path);
}

// Writes a zstd shard of `count` times `part` between `head` and `tail`.
static void write_huge(const char *path, const char *head, const char *part, int64_t count, const char *tail) {
    FILE *file = fopen(path, "wb");
    ZSTD_CStream *zstd = ZSTD_createCStream();
    ZSTD_CCtx_setParameter(zstd, ZSTD_c_compressionLevel, 1);
    static char buffer[1 << 17];
    size_t length = strlen(part);
    for (int64_t i = -1; i <= count; i++) {
        const char *text = i < 0 ? head : i == count ? tail : part;
        ZSTD_inBuffer in = {text, i < 0 || i == count ? strlen(text) : length, 0};
        ZSTD_EndDirective end = i == count ? ZSTD_e_end : ZSTD_e_continue;
        size_t left;
        do {
            ZSTD_outBuffer to = {buffer, sizeof buffer, 0};
            left = ZSTD_compressStream2(zstd, &to, &in, end);
            fwrite(buffer, 1, to.pos, file);
        } while (in.pos < in.size || (end == ZSTD_e_end && left != 0));
    }
    ZSTD_freeCStream(zstd);
    fclose(file);
}

// A document, a key, a set's name and a skipped field of 200 MB each (the name is refused): memory stays small.
static void test_huge(void) {
    char *path = path_join(check_folder(), "huge.jsonl.zst");
    static const char *const heads[] = {"{\"text\":\"", "{\"text\":\"small\",\"other\":\"", "{\"text\":\"small\",\"",
                                        "{\"text\":\"small\",\"meta\":{\"pile_set_name\":\""};
    static const char *const tails[] = {"\",\"meta\":{\"pile_set_name\":\"ArXiv\"}}\n", "\"}\n", "\":1}\n", "\"}}\n"};
    char part[4001];
    for (int i = 0; i < 4000; i += 10) {
        memcpy(part + i, i % 100 == 0 ? "\\u00e9word " : "some words", 10);
    }
    part[4000] = 0;
    enum { PARTS = 50000 };
    size_t before = memory_peak_resident();
    for (int kind = 0; kind < 4; kind++) {
        write_huge(path, heads[kind], part, PARTS, tails[kind]);
        ShardReader *reader;
        ShardEvent event;
        int64_t bytes = 0, largest = 0;
        CHECK_OK(shard_open(path, &reader));
        do {
            if (!CHECK_OK(shard_next(reader, &event))) {
                break;
            }
            bytes += (int64_t)event.size;
            largest = (int64_t)event.size > largest ? (int64_t)event.size : largest;
        } while (event.kind == SHARD_PIECE);
        if (kind == 3) {
            CHECK(event.kind == SHARD_BAD_LINE);
        } else {
            CHECK(event.kind == SHARD_DOCUMENT);
            CHECK_TEXT(event.set, kind == 0 ? "ArXiv" : "text");
            CHECK_I64(bytes, kind == 0 ? (int64_t)PARTS * (4000 - 40 * 4) : 5);
            CHECK(largest <= 1 << 20);
        }
        CHECK_OK(shard_next(reader, &event));
        CHECK(event.kind == SHARD_END);
        shard_close(reader);
    }
    CHECK(memory_peak_resident() - before < 64u << 20);
    free(path);
}

static void test_set_names(void) {
    char out[SET_NAME_BYTES];
    static const char *const cases[][2] = {{"Pile-CC", "Pile-CC"},
                                           {"Wikipedia (en)", "Wikipedia_en"},
                                           {"../../etc", "etc"},
                                           {"", "set"},
                                           {"\xE2\x82\xAC", "set"},
                                           {"a  b/c", "a_b_c"},
                                           {"Gutenberg (PG-19)", "Gutenberg_PG-19"},
                                           {"-x.", "x"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        set_name_file(cases[i][0], out);
        CHECK_TEXT(out, cases[i][1]);
    }
    CHECK_TEXT(set_name_canonical("Bibliotik"), "Books3");
    CHECK_TEXT(set_name_canonical("Perl docs"), "Perl docs");
}

int main(void) {
    RUN(test_lines);
    RUN(test_bad_lines);
    RUN(test_python_lines);
    RUN(test_surrogates);
    RUN(test_compressed);
    RUN(test_padding);
    RUN(test_window);
    RUN(test_truncated_plain);
    RUN(test_files);
    RUN(test_huge);
    RUN(test_set_names);
    return check_report();
}
