// core/page: a page with charts, made by somebody who knows of no run: what a sweep or a plan would write.
#include "core/page/page.h"
#include "core/page/style.h"
#include "tests/support/check.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>

// The speed of ten numbers of cards, as a page.
static void write_page(Buffer *out) {
    Series speed = {0}, ideal = {0};
    for (int cards = 1; cards <= 10; cards++) {
        series_add(&speed, cards, 900 * pow(cards, 0.9));
        series_add(&ideal, cards, 900 * cards);
    }
    ChartLine lines[] = {{&speed, "predicted <1>", LINE_DOTS, 0}, {&ideal, "ideal", LINE_PLAIN, 9}};
    double limit = 8;
    Chart chart = {.title = "Speed & cards", .unit = "tokens/s", .x_unit = "cards", .height = 300, .from_zero = true};
    chart.lines = lines, chart.line_count = 2, chart.id = "speed";
    chart.marks = &limit, chart.mark_count = 1, chart.mark_title = "memory suffices from";
    page_begin("Plan of \"<this>\"", out);
    page_tiles(out);
    page_tile("7.1k", "tokens a second & card", true, out);
    page_tiles_end(out);
    page_body(out);
    page_section("Speed", "What is <likely>.", out);
    page_figure("By cards", "all of them", out);
    page_chart(chart, 200, out);
    page_figure_end(out);
    chart.id = "small";
    page_small_chart(chart, out);
    page_end(out);
    series_free(&speed);
    series_free(&ideal);
}

// Every element that is opened is closed, in order, and text holds no loose mark.
static bool well_formed(const char *text) {
    const char *open[64], *p = text;
    size_t sizes[64];
    int depth = 0;
    while ((p = strpbrk(p, "<>")) != NULL) {
        const char *end = strchr(p, '>'), *name = p + 1 + (p[1] == '/');
        size_t size = strcspn(name, " />");
        if (*p == '>' || end == NULL) {
            return false;
        }
        if (p[1] == '/') {
            if (depth == 0 || sizes[depth - 1] != size || strncmp(open[depth - 1], name, size) != 0) {
                return false;
            }
            depth--;
        } else if (end[-1] != '/' && p[1] != '!') {
            ensure(depth < 64, "deep");
            open[depth] = name;
            sizes[depth++] = size;
            if (strncmp(name, "style>", 6) == 0) {
                end = strstr(end, "</style>") - 1;  // CSS has marks of its own
            }
        }
        p = end + 1;
    }
    return depth == 0;
}

static int count_of(const char *text, const char *part) {
    int count = 0;
    for (const char *p = text; (p = strstr(p, part)) != NULL; p += strlen(part)) {
        count++;
    }
    return count;
}

static void test_page(void) {
    Buffer page = {0};
    write_page(&page);
    const char *text = page.data;
    CHECK(strncmp(text, "<!DOCTYPE html>\n<html", 21) == 0);
    CHECK(well_formed(text));
    CHECK_I64(count_of(text, "<title>Plan of &quot;&lt;this&gt;&quot; "), 1);
    CHECK_I64(count_of(text, "<h1>Plan of &quot;&lt;this&gt;&quot;</h1>"), 1);
    CHECK_I64(count_of(text, "<b>7.1k</b><span>tokens a second &amp; card</span>"), 1);
    CHECK_I64(count_of(text, "What is &lt;likely&gt;."), 1);
    CHECK_I64(count_of(text, "predicted &lt;1&gt;, cards 10: "), 3);
    CHECK_I64(count_of(text, "<title>memory suffices from cards 8</title>"), 3);
    // One drawing for wide screens, one for narrow ones, under names of their own; the small one besides.
    CHECK_I64(count_of(text, "<svg class=\"wide\" viewBox=\"0 0 1000 300\""), 1);
    CHECK_I64(count_of(text, "<svg class=\"narrow\" viewBox=\"0 0 380 200\""), 1);
    CHECK_I64(count_of(text, "<svg class=\"small\" viewBox=\"0 0 460 230\""), 1);
    CHECK_I64(count_of(text, "id=\"speed\""), 1);
    CHECK_I64(count_of(text, "id=\"speed-narrow\""), 1);
    // Nothing is fetched, nothing runs, and no word speaks of a run.
    CHECK_I64(count_of(text, "<script") + count_of(text, "http://") + count_of(text, "https://"), 0);
    CHECK_I64(count_of(text, "step") + count_of(text, "resume") + count_of(text, "loss"), 0);
    buffer_free(&page);
}

// The style sheet has a rule for each class that a drawing uses.
static void test_style(void) {
    Buffer page = {0};
    write_page(&page);
    const char *p = strstr(page.data, "<svg class=\"wide\""), *end = strstr(page.data, "</main>");
    int classes = 0;
    while ((p = strstr(p, "class=\"")) != NULL && p < end) {
        for (p += 7; *p != '"'; p += *p == ' ') {
            size_t size = strcspn(p, " \"");
            char *rule = memory_format(".%.*s", (int)size, p);
            bool known = false;
            for (const char *at = page_style; !known && (at = strstr(at, rule)) != NULL; at++) {
                known = isalnum((unsigned char)at[size + 1]) == 0;
            }
            known = known || strcmp(rule, ".small") == 0 || strcmp(rule, ".unit") == 0;  // these look as all do
            if (!known) {
                printf("the style sheet has no %s\n", rule);
            }
            CHECK(known);
            free(rule);
            p += size;
            classes++;
        }
    }
    CHECK(classes > 20);
    buffer_free(&page);
}

// A chart without a point is a sentence.
static void test_empty(void) {
    Buffer out = {0};
    Series none = {0};
    ChartLine line = {&none, "none", LINE_PLAIN, 0};
    page_chart((Chart){.title = "x", .unit = "", .x_unit = "x", .height = 100, .lines = &line, .line_count = 1, .id = "x"}, 80,
               &out);
    CHECK_I64(count_of(out.data, "no values recorded"), 2);
    buffer_free(&out);
}

int main(void) {
    RUN(test_page);
    RUN(test_style);
    RUN(test_empty);
    return check_report();
}
