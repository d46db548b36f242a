// core/: text, keys, configuration, randomness, threads, durable files.
#include "core/config.h"
#include "core/durable.h"
#include "core/hash.h"
#include "core/options.h"
#include "core/philox.h"
#include "core/text.h"
#include "core/threads.h"
#include "tests/support/check.h"
#include "tests/support/settings.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static void test_errors(void) {
    CHECK_FAILS(failure("file %s: %s", "a\nb", "\x1B[31mred"), "file a?b: ?[31mred");
    CHECK_FAILS(error_wrap(failure("inner"), "outer %d", 3), "outer 3: inner");
    CHECK(error_wrap(NULL, "nothing") == NULL);
}

static void test_numbers(void) {
    int64_t i;
    double d;
    CHECK(text_to_i64("1_000", &i) && i == 1000);
    CHECK(text_to_i64("4M", &i) && i == 4000000);
    CHECK(text_to_i64("64Ki", &i) && i == 65536);
    CHECK(text_to_i64("-5", &i) && i == -5);
    CHECK(!text_to_i64("", &i) && !text_to_i64("1.5", &i) && !text_to_i64("9223372036854775808", &i));
    CHECK(text_to_i64("1e6", &i) && i == 1000000);
    CHECK(text_to_i64("1.5k", &i) && i == 1500);
    CHECK(text_to_i64("9223372036854775807", &i) && i == INT64_MAX);
    CHECK(text_to_i64("-9.223372036854775808e18", &i) && i == INT64_MIN);
    CHECK(text_to_i64("0e9999", &i) && i == 0);
    static const char *const not_whole[] = {"1e-1", "1.5",  "1e19",  "1e9999", "0x10", "0o17", "017", "0_1", "1__0", "_1",
                                            ".",    "e5",   "1e",    "1e+",    "--1",  "+-1",  "1 ",  " 1",  "inf",  ".inf",
                                            "nan",  "1:30", "1,000", "1k5",    "1kk",  "10%",  "1d",  "0b1", "0x1p3"};
    for (size_t n = 0; n < sizeof not_whole / sizeof *not_whole; n++) {
        if (text_to_i64(not_whole[n], &i)) {
            CHECK_TEXT(not_whole[n], "refused");
        }
        bool number = text_to_f64(not_whole[n], &d);
        CHECK(number ==
              (strcmp(not_whole[n], "1e-1") == 0 || strcmp(not_whole[n], "1.5") == 0 || strcmp(not_whole[n], "1e19") == 0));
    }
    CHECK(text_to_f64("-0", &d) && !signbit(d));
    CHECK(text_to_f64("1_000.5", &d) && d == 1000.5);
    CHECK(text_to_f64(".5", &d) && d == 0.5 && text_to_f64("5.", &d) && d == 5 && text_to_f64("1.5M", &d) && d == 1.5e6);
    for (int64_t k = 1; k < 4000; k++) {  // what is printed is read back, to the bit
        char text[40];
        double value = ldexp((double)(k * 2654435761 % 1000003) + 1, (int)(k % 200) - 100);
        snprintf(text, sizeof text, "%.17g", value);
        if (!text_to_f64(text, &d) || d != value) {
            CHECK_TEXT(text, "the same");
        }
    }
    CHECK(!text_to_i64("9223372036854775807k", &i) && !text_to_i64("1_", &i) && !text_to_i64("-", &i));
    CHECK(text_to_f64("3e-4", &d) && d == 3e-4);
    CHECK(!text_to_f64("nan", &d) && !text_to_f64("inf", &d) && !text_to_f64(" 1", &d) && !text_to_f64("1x", &d));
    char out[32];
    CHECK_TEXT(text_bytes(out, 1536), "1.50 KiB");
    CHECK_TEXT(text_duration(out, 3723), "1 h 02 min");
    CHECK_TEXT(text_duration(out, 0), "0 s");
    CHECK_TEXT(text_duration(out, 0.9997), "1.0 s");
    CHECK_TEXT(text_duration(out, 59.97), "1 min 00 s");
    static const struct {
        int64_t count;
        const char *one, *told;
    } numbers[] = {{1, "rank", "1 rank"},
                   {0, "rank", "0 ranks"},
                   {2, "micro-batch", "2 micro-batches"},
                   {3, "entry", "3 entries"},
                   {1, "entry", "1 entry"},
                   {4, "day", "4 days"},
                   {5, "suffix", "5 suffixes"},
                   {1, "micro-batch", "1 micro-batch"}};
    for (size_t n = 0; n < sizeof numbers / sizeof *numbers; n++) {
        char text[64];
        CHECK_TEXT(text_number_of(text, numbers[n].count, numbers[n].one), numbers[n].told);
    }
}

static void test_utf8(void) {
    static const struct {
        const char *text;
        size_t size, valid;
    } cases[] = {{"plain ascii text", 16, 16}, {"\xC3\xA9", 2, 2},
                 {"\xC0\x80", 2, 0},           {"\xED\xA0\x80", 3, 0},
                 {"\xF4\x8F\xBF\xBF", 4, 4},   {"\xF4\x90\x80\x80", 4, 0},
                 {"ab\xE2\x82", 4, 2},         {"\xE0\x9F\xBF", 3, 0},
                 {"\xF0\x9F\x98\x80x", 5, 5},  {"\x80", 1, 0},
                 {"12345678\xFFrest", 13, 8}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        CHECK_I64(utf8_valid_prefix(cases[i].text, cases[i].size), cases[i].valid);
    }
    for (uint32_t code = 0; code < 0x110000; code += 37) {
        char text[4];
        if (code < 0xD800 || code > 0xDFFF) {
            int n = utf8_encode(code, text);
            if (utf8_valid_prefix(text, (size_t)n) != (size_t)n) {
                CHECK_I64(code, -1);
            }
        }
    }
}

static Error *read_settings(Settings *settings, const char *text) {
    *settings = (Settings){0};
    keys_defaults(settings_keys, SETTINGS, settings);
    return config_read_text(settings_keys, SETTINGS, settings, "x.yaml", text, strlen(text), NULL);
}

static void bad_settings(const char *text, const char *part) {
    Settings settings;
    CHECK_FAILS(read_settings(&settings, text), part);
    keys_free(settings_keys, SETTINGS, &settings);
}

static void test_config(void) {
    Settings s, again;
    const char *text = "count: 7\nmodel: {flag: no, name: 'a \"b\"', deep: {rate: 0.3, kind: lion}}\n"
                       "data:\n  list: [x, y]\n  mixture: {Pile-CC: 0.5, Perl docs: 2}\n";
    CHECK_OK(read_settings(&s, text));
    CHECK(s.count == 7 && !s.flag && s.rate == 0.3 && s.kind == 1 && s.list.count == 2 && s.mixture.count == 2);
    CHECK_TEXT(s.name, "a \"b\"");
    Buffer out = {0}, second = {0};
    config_write(settings_keys, SETTINGS, &s, true, &out);
    CHECK_OK(read_settings(&again, out.data));
    config_write(settings_keys, SETTINGS, &again, true, &second);
    CHECK_TEXT(second.data, out.data);
    buffer_free(&out);
    buffer_free(&second);
    keys_free(settings_keys, SETTINGS, &s);
    keys_free(settings_keys, SETTINGS, &again);

    // What YAML allows only as an escape is written as one.
    CHECK_OK(read_settings(&s, "model: {name: \"\\x01\\x7f\\x85\\x8c\\xa0\\u2028\\ufeff\\uffff\\\\ \\\"e\\u00e9\"}"));
    out = (Buffer){0};
    key_print(keys_find(settings_keys, SETTINGS, "model.name"), &s, &out);
    CHECK_TEXT(out.data, "\"\\x01\\x7f\\x85\\x8c\xC2\xA0\\u2028\\ufeff\\uffff\\\\ \\\"e\xC3\xA9\"");
    buffer_free(&out);
    keys_free(settings_keys, SETTINGS, &s);

    bad_settings("modle: {flag: no}", "x.yaml:1: unknown section modle; did you mean model?");
    bad_settings("model: {nmae: x}", "did you mean model.name?");
    bad_settings("\n\ncount: 0", "x.yaml:3: count is 0, it must be between 1 and 100 steps");
    bad_settings("count: many", "count is 'many'");
    bad_settings("model: {deep: {kind: adam}}", "one of: adamw, lion");
    bad_settings("count: 1\ncount: 2", "'count' stands twice");
    bad_settings("a: &x [1]\nb: *x", "aliases");
    bad_settings("count: [1", "not valid YAML");
    bad_settings("model: 3", "is a section");
    bad_settings("include: nowhere.yaml", "nowhere.yaml");
    bad_settings("- 1", "keys with values");

    const char *folder = check_folder();
    char *base = path_join(folder, "base.yaml"), *top = path_join(folder, "top.yaml");
    CHECK_OK(file_write(base, "count: 5\nmodel: {name: base}\n", 28));
    CHECK_OK(file_write(top, "include: base.yaml\nmodel: {name: top}\n", 38));
    s = (Settings){0};
    keys_defaults(settings_keys, SETTINGS, &s);
    char *overrides[] = {"model.deep.rate=0.5", "data.mixture={a: 1}", "data.list=[p, q, r]"};
    CHECK_OK(config_read(settings_keys, SETTINGS, &s, top, overrides, 3, NULL));
    CHECK(s.count == 5 && s.rate == 0.5 && s.mixture.count == 1 && s.list.count == 3);
    CHECK_TEXT(s.name, "top");
    char *bad[] = {"model.deep.rat=0.5"};
    CHECK_FAILS(config_read(settings_keys, SETTINGS, &s, top, bad, 1, NULL), "did you mean model.deep.rate?");
    CHECK_OK(file_write(base, "include: top.yaml\n", 18));
    CHECK_FAILS(config_read(settings_keys, SETTINGS, &s, top, NULL, 0, NULL), "nested deeper");
    keys_free(settings_keys, SETTINGS, &s);
    free(base);
    free(top);
}

// Appends `part` `count` times.
static void repeat(Buffer *out, const char *part, int count) {
    for (int i = 0; i < count; i++) {
        buffer_text(out, part);
    }
}

// What would be large or deep in YAML is refused in one line, in time that does not grow with it.
static void test_hostile_config(void) {
    static const struct {
        const char *head, *part, *tail;
        int most;
    } shapes[] = {
        {"data: {list: ", "[", "", 1000000},
        {"", "{a: ", "", 250000},
        {"", "[", "]", 1000000},
        {"data:\n  list:\n", "- ", "x", 500000},
        {"", "? ", "", 500000},
        {"", "a: &x ", "", 150000},
        {"data: {list: [", "x, ", "x]}", 300000},
        {"data: {list: [", "*a, ", "x]}", 250000},
        {"data: {mixture: {", "x: 1, ", "y: 1}}", 150000},
        {"", "count: 1\n", "", 100000},
        {"", "k: 1\n", "", 200000},
        {"", "model:\n", "", 150000},
        {"", "model.flag: yes\n", "", 60000},
        {"model: {name: ", "long", "}", 250000},
        {"model: {name: \"", "\\x41", "\"}", 250000},
        {"model: {name: |\n", "  line\n", "", 150000},
        {"model: {name: >\n", "\n", "", 1000000},
        {"", "# comment\n", "count: 0", 100000},
        {"", " ", "count: 0", 1000000},
        {"", "\n", "count: 0", 1000000},
        {"", "--- \n", "", 250000},
        {"", "%YAML 1.1\n", "", 100000},
        {"", "!x ", "", 300000},
        {"include: [", "nowhere.yaml, ", "x]", 70000},
        {"count: ", "1", "", 1000000},
        {"count: ", "0.", "", 500000},
        {"", "'", "", 1000000},
        {"", "\"", "", 1000000},
        {"", "- - - -\n", "", 100000},
        {"", "a", ": 1", 1000000},
        {"", ",", "", 1000000},
        {"[", ",", "", 1000000},
        {"", ":", "", 1000000},
        {"", "-", "", 1000000},
    };
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        Buffer text = {0};
        Settings settings;
        buffer_text(&text, shapes[s].head);
        repeat(&text, shapes[s].part, shapes[s].most);
        buffer_text(&text, shapes[s].tail);
        clock_t start = clock();
        Error *error = read_settings(&settings, text.data);
        double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
        if (!CHECK(error != NULL && strchr(error->message, '\n') == NULL && strlen(error->message) < 700 && seconds < 2)) {
            printf("%s%s: %.1f s, %.200s\n", shapes[s].head, shapes[s].part, seconds,
                   error != NULL ? error->message : "accepted");
        }
        error_free(error);
        keys_free(settings_keys, SETTINGS, &settings);
        buffer_free(&text);
    }
    bad_settings("model: {deep: {rate: &x 0.5}}", "x.yaml:1: YAML anchors");
    bad_settings("data: {list: [[[[[[[a]]]]]]]}", "x.yaml:1: maps and lists are nested too deeply");
    bad_settings("model:\n  name: !!str x", "x.yaml:2: YAML tags");

    // Files that include each other many times.
    const char *folder = check_folder();
    for (int level = 0; level < 7; level++) {
        char *path = memory_format("%s/%d.yaml", folder, level);
        Buffer text = {0};
        buffer_text(&text, "include: [");
        for (int i = 0; i < 20; i++) {
            buffer_printf(&text, "%d.yaml, ", level + 1);
        }
        buffer_text(&text, "]\n");
        CHECK_OK(file_write(path, level < 6 ? text.data : "count: 1\n", level < 6 ? text.size : 9));
        buffer_free(&text);
        free(path);
    }
    char *path = path_join(folder, "0.yaml");
    Settings settings = {0};
    CHECK_FAILS(config_read(settings_keys, SETTINGS, &settings, path, NULL, 0, NULL), "more than 64 files");
    keys_free(settings_keys, SETTINGS, &settings);
    free(path);
}

// A byte that no text may hold, or a slip of the syntax, is told with its own line and column.
static void test_config_places(void) {
    static const char *const bad[] = {"\xFF",         "\x80", "\xC3(", "\x01", "\x7F",  "\xED\xA0\x80",
                                      "\xEF\xBF\xBF", "@",    "`x",    "%x",   "\tx: ]"};
    for (int line = 1; line < 400; line += 21) {
        for (size_t b = 0; b < sizeof bad / sizeof *bad; b++) {
            Buffer text = {0};
            for (int i = 1; i < line; i++) {
                buffer_printf(&text, "# line %d \xC3\xA9\n", i);
            }
            buffer_printf(&text, "count:%*s%s\nmodel: {}\n", (int)b + 1, "", bad[b]);
            Settings settings;
            Error *error = read_settings(&settings, text.data);
            char *want = memory_format("x.yaml:%d:", line);
            if (!CHECK(error != NULL && text_starts_with(error->message, want) &&
                       strstr(error->message, "not valid YAML") != NULL)) {
                printf("line %d, %zu: %s\n", line, b, error != NULL ? error->message : "accepted");
            }
            if (b < 3 && error != NULL) {
                free(want);
                want = memory_format("x.yaml:%d:%zu: not valid YAML: invalid", line, 8 + b + (b == 2));
                CHECK(text_starts_with(error->message, want));
            }
            free(want);
            error_free(error);
            keys_free(settings_keys, SETTINGS, &settings);
            buffer_free(&text);
        }
    }
    bad_settings("count: 1\nmodel: {flag: yes\ndata: {}\n", "(while parsing a flow mapping that begins in line 2)");
}

static void test_options(void) {
    Settings s = {0};
    keys_defaults(settings_keys, SETTINGS, &s);
    char *argv[] = {"in", "--count", "9", "--no-model.flag", "--data.list=x", "--data.list", "y", "--", "--out"};
    char *rest[9];
    int count;
    CHECK_OK(options_parse(settings_keys, SETTINGS, &s, 9, argv, rest, &count));
    CHECK(s.count == 9 && !s.flag && s.list.count == 2 && count == 2);
    CHECK_TEXT(rest[1], "--out");
    char *typo[] = {"--cuont", "9"}, *missing[] = {"--count"}, *twice[] = {"--count=1", "--count=2"};
    CHECK_FAILS(options_parse(settings_keys, SETTINGS, &s, 2, typo, rest, &count), "did you mean --count?");
    CHECK_FAILS(options_parse(settings_keys, SETTINGS, &s, 1, missing, rest, &count), "needs a value");
    CHECK_FAILS(options_parse(settings_keys, SETTINGS, &s, 2, twice, rest, &count), "given twice");
    keys_free(settings_keys, SETTINGS, &s);
}

static void test_philox(void) {
    // Known answers of Random123: philox4x32-10 for counter and key of zeros, and of the digits of pi.
    Philox zero = philox(0, 0, 0);
    CHECK(zero.word[0] == 0x6627e8d5 && zero.word[1] == 0xe169c58d && zero.word[2] == 0xbc57ac4c && zero.word[3] == 0x9b00dbd8);
    Philox pi = philox(0x299f31d0a4093822u, 0x0370734413198a2eu, 0x85a308d3243f6a88u);
    CHECK(pi.word[0] == 0xd16cfe09 && pi.word[1] == 0x94fdcceb && pi.word[2] == 0x5001e420 && pi.word[3] == 0x24126ea1);

    float whole[1001], part[700];
    philox_normal(5, 6, 0, 2.0f, whole, 1001);
    philox_normal(5, 6, 301, 2.0f, part, 700);
    CHECK(memcmp(whole + 301, part, sizeof part) == 0);
    double sum = 0, square = 0;
    for (int i = 0; i < 1001; i++) {
        sum += whole[i];
        square += (double)whole[i] * whole[i];
    }
    CHECK_NEAR(sum / 1001, 0, 0.25);
    CHECK_NEAR(square / 1001, 4, 0.6);

    static const uint64_t counts[] = {1, 2, 3, 17, 1000, 4096, 4097};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        bool *hit = memory_zeroed(counts[c], sizeof *hit);
        int fixed = 0;
        for (uint64_t i = 0; i < counts[c]; i++) {
            uint64_t to = philox_permute(9, 1, counts[c], i);
            CHECK(to < counts[c] && !hit[to]);
            hit[to] = true;
            fixed += to == i;
        }
        CHECK(counts[c] < 1000 || fixed < 10);
        free(hit);
    }
}

static void count_task(void *context, int64_t task, int thread) {
    _Atomic int *hits = context;
    hits[task]++;
}

static void test_threads(void) {
    for (int threads = 1; threads <= 5; threads += 2) {
        ThreadPool *pool = threads_create(threads);
        for (int repeat = 0; repeat < 300; repeat++) {
            _Atomic int hits[37] = {0};
            threads_run(pool, 37, count_task, hits);
            for (int i = 0; i < 37; i++) {
                if (hits[i] != 1) {
                    CHECK_I64(hits[i], 1);
                }
            }
        }
        threads_destroy(pool);
    }
    int64_t end = 0;
    for (int part = 0; part < 7; part++) {
        Range r = range_part(1001, 16, 7, part);
        CHECK(r.begin == end && (r.end % 16 == 0 || r.end == 1001));
        end = r.end;
    }
    CHECK_I64(end, 1001);
}

static void test_durable(void) {
    const char *folder = check_folder();
    char *deep = path_join(folder, "a/b/c"), *file = path_join(folder, "a/b/c/f.txt");
    CHECK_OK(folder_create(deep));
    CHECK_OK(file_write(file, "hello", 5));
    CHECK_OK(file_write(file, "hello again", 11));
    Buffer text = {0};
    CHECK_OK(file_read(file, 100, &text));
    CHECK_TEXT(text.data, "hello again");
    CHECK_FAILS(file_read(file, 5, &text), "larger than 5 B");
    int64_t bytes;
    uint64_t hash;
    CHECK_OK(file_hash(file, &bytes, &hash));
    CHECK(bytes == 11 && hash == hash64("hello again", 11));
    CHECK_FAILS(file_hash(folder, &bytes, &hash), "is a folder");
    CHECK_FAILS(file_read(folder, 5, &text), "is a folder");
    // A name that is no plain file's takes the bytes and stays what it is.
    char *pipe = path_join(folder, "a/pipe"), told[6] = "";
    struct stat still;
    CHECK(mkfifo(pipe, 0600) == 0);
    int reader = open(pipe, O_RDONLY | O_NONBLOCK);
    CHECK_OK(file_write(pipe, "hello", 5));
    CHECK(read(reader, told, 5) == 5 && strcmp(told, "hello") == 0);
    CHECK(stat(pipe, &still) == 0 && S_ISFIFO(still.st_mode));
    close(reader);
    CHECK(unlink(pipe) == 0);
    free(pipe);
    Mapped mapped;
    CHECK_OK(file_map(file, &mapped));
    CHECK(mapped.size == 11 && memcmp(mapped.data, "hello again", 11) == 0);
    file_unmap(&mapped);

    Strings files = {0};
    char *pattern = path_join(folder, "**/*.txt");
    CHECK_OK(path_glob(pattern, &files));
    CHECK(files.count == 1);
    CHECK_TEXT(files.items[0], file);
    free(pattern);
    pattern = path_join(folder, "**/*.pod");
    CHECK_FAILS(path_glob(pattern, &files), "no file matches");
    strings_free(&files);
    CHECK_OK(folder_remove(deep));
    CHECK(!path_exists(deep));
    free(pattern);
    free(deep);
    free(file);
    buffer_free(&text);
}

int main(void) {
    RUN(test_errors);
    RUN(test_numbers);
    RUN(test_utf8);
    RUN(test_config);
    RUN(test_hostile_config);
    RUN(test_config_places);
    RUN(test_options);
    RUN(test_philox);
    RUN(test_threads);
    RUN(test_durable);
    return check_report();
}
