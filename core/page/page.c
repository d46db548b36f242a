// A page of HTML: see page.h.
#include "core/page/page.h"

#include "core/clock.h"
#include "core/page/markup.h"
#include "core/page/style.h"
#include "core/version.h"

enum { WIDE = 1000, NARROW = 380, SMALL = 460, SMALL_HEIGHT = 230 };

void page_begin(const char *title, Buffer *out) {
    buffer_text(out,
                "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
                "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
                "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src &#39;none&#39;; style-src "
                "&#39;unsafe-inline&#39;; img-src data:\"/>\n"
                "<meta name=\"generator\" content=\"athanor " ATHANOR_VERSION "\"/>\n<link rel=\"icon\" href=\"data:,\"/>\n"
                "<title>");
    markup_string(out, title);
    buffer_text(out, " \xC2\xB7 athanor</title>\n<style>\n");
    buffer_text(out, page_style);
    buffer_text(out,
                "</style>\n</head>\n<body>\n<header>\n<div class=\"brand\"><svg viewBox=\"0 0 18 22\" aria-hidden=\"true\">"
                "<path style=\"fill:inherit\" d=\"M9.6 0C10.4 4 4 7 2.6 11.200a7.300 7.300 0 0 0 1.700 8.300C3.500 16 5.600 "
                "14.200 6.600 12c1 1.200 1 2.300.900 3.300C10 13.600 10.300 10.300 9.800 8.200c3 2 4.200 6.400 2.300 "
                "11.600 5.700-3.600 4.600-9.800 1.900-13.100-.300 1.300-.900 2-1.700 2.400C12.800 5.600 11.900 2 9.600 0z\"/>"
                "</svg>ATHANOR</div>\n<h1>");
    markup_string(out, title);
    buffer_text(out, "</h1>\n");
}

void page_tiles(Buffer *out) {
    buffer_text(out, "<div class=\"tiles\">\n");
}

void page_tile(const char *value, const char *name, bool first, Buffer *out) {
    buffer_printf(out, "<div class=\"card tile%s\"><b>", first ? " first" : "");
    markup_string(out, value);
    buffer_text(out, "</b><span>");
    markup_string(out, name);
    buffer_text(out, "</span></div>\n");
}

void page_tiles_end(Buffer *out) {
    buffer_text(out, "</div>\n");
}

void page_body(Buffer *out) {
    buffer_text(out, "</header>\n<main>\n");
}

void page_section(const char *title, const char *about, Buffer *out) {
    buffer_text(out, "<h2>");
    markup_string(out, title);
    buffer_text(out, "</h2>\n");
    if (about != NULL) {
        buffer_text(out, "<p class=\"about\">");
        markup_string(out, about);
        buffer_text(out, "</p>\n");
    }
}

void page_figure(const char *title, const char *note, Buffer *out) {
    buffer_text(out, "<figure class=\"card\" style=\"margin:0\">");
    if (title != NULL) {
        buffer_text(out, "<h3>");
        markup_string(out, title);
        buffer_text(out, "<small>");
        markup_string(out, note);
        buffer_text(out, "</small></h3>");
    }
    buffer_byte(out, '\n');
}

void page_figure_end(Buffer *out) {
    buffer_text(out, "</figure>\n");
}

void page_chart(Chart chart, int narrow_height, Buffer *out) {
    char *name = memory_format("%s-narrow", chart.id);
    chart.width = WIDE;
    chart_svg(&chart, "wide", out);
    chart.width = NARROW;
    chart.height = narrow_height;
    chart.id = name;
    chart_svg(&chart, "narrow", out);
    free(name);
}

void page_small_chart(Chart chart, Buffer *out) {
    chart.width = SMALL;
    chart.height = SMALL_HEIGHT;
    chart_svg(&chart, "small", out);
}

void page_end(Buffer *out) {
    char stamp[24];
    buffer_printf(out, "</main>\n<footer>Written %s by athanor " ATHANOR_VERSION ".</footer>\n</body>\n</html>\n",
                  clock_stamp(stamp));
}
