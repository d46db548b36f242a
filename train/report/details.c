// The lower part of a report's page: see details.h.
#include "train/report/details.h"

#include "core/page/markup.h"
#include "core/page/page.h"
#include "core/text.h"

#include <math.h>

enum { MOST_PLAN_ROWS = 256, SHOWN_PLAN_ROWS = 8 };

// ---- Memory

typedef struct PlanRow {
    const char *name;
    double bytes;
} PlanRow;

static int compare_rows(const void *a, const void *b) {
    const PlanRow *x = a, *y = b;
    return (x->bytes < y->bytes) - (x->bytes > y->bytes);
}

// The rows of the plan, largest first, as many as there are colours: the smallest ones are one row, whose name lists them in
// `rest`.
static int read_plan(const RunData *data, PlanRow *rows, Buffer *rest) {
    const json_t *plan = json_object_get(data->run, "memory_plan"), *item;
    size_t index;
    int count = 0;
    json_array_foreach(plan, index, item) {
        const json_t *name = json_object_get(item, "name"), *bytes = json_object_get(item, "bytes");
        double value = json_is_number(bytes) ? json_number_value(bytes) : 0;
        if (json_is_string(name) && value > 0 && value < 1e18 && count < MOST_PLAN_ROWS) {
            rows[count++] = (PlanRow){json_string_value(name), value};
        }
    }
    qsort(rows, (size_t)count, sizeof *rows, compare_rows);
    if (count > SHOWN_PLAN_ROWS) {
        PlanRow *last = &rows[SHOWN_PLAN_ROWS - 1];
        buffer_printf(rest, "everything else: %s", last->name);
        for (int i = SHOWN_PLAN_ROWS; i < count; i++) {
            last->bytes += rows[i].bytes;
            buffer_printf(rest, ", %s", rows[i].name);
        }
        last->name = rest->data;
        count = SHOWN_PLAN_ROWS;
    }
    return count;
}

void details_memory(const RunData *data, Buffer *out) {
    PlanRow rows[MOST_PLAN_ROWS];
    Buffer rest = {0};
    int count = read_plan(data, rows, &rest);
    double planned = 0, peak = run_data_number(data, "memory_peak"), stated = run_data_number(data, "memory_planned");
    for (int i = 0; i < count; i++) {
        planned += rows[i].bytes;
    }
    planned = stated > 0 ? fmax(stated, planned) : planned;
    if (!(planned > 0)) {
        buffer_free(&rest);
        return;
    }
    char text[32];
    double full = peak > planned ? peak : planned, x = 0;
    Buffer about = {0};
    buffer_printf(&about, "Planned before the first step: %s a rank.", text_bytes(text, planned));
    if (peak > 0) {
        buffer_printf(&about, " Measured peak: %s, %.1f%% %s the plan.", text_bytes(text, peak),
                      fabs(100 * (peak / planned - 1)), peak > planned ? "above" : "below");
    }
    page_section("Memory", about.data, out);
    buffer_free(&about);
    page_figure(NULL, NULL, out);
    buffer_printf(out,
                  "<svg viewBox=\"0 0 1000 %d\" role=\"img\" "
                  "preserveAspectRatio=\"none\" style=\"height:%dpx\"><title>Planned memory by use%s</title>\n",
                  peak > 0 ? 56 : 34, peak > 0 ? 56 : 34, peak > 0 ? ", above the measured peak" : "");
    for (int i = 0; i < count; i++) {
        double width = rows[i].bytes / full * 1000;
        buffer_printf(out, "<rect class=\"b%d\" x=\"%.2f\" y=\"0\" width=\"%.2f\" height=\"34\"><title>", i, x,
                      fmax(width - 1, 0.5));
        markup_text(out, rows[i].name, strlen(rows[i].name), 400);
        buffer_printf(out, ": %s</title></rect>\n", text_bytes(text, rows[i].bytes));
        x += width;
    }
    if (peak > 0) {
        buffer_printf(
            out, "<rect class=\"peak\" x=\"0\" y=\"42\" width=\"%.2f\" height=\"14\"><title>measured peak: %s</title></rect>\n",
            peak / full * 1000, text_bytes(text, peak));
    }
    buffer_text(out, "</svg>\n<div class=\"scroll\" style=\"margin-top:12px\"><table><tbody>\n");
    for (int i = 0; i < count; i++) {
        buffer_printf(out, "<tr><td><i class=\"key b%d\"></i>", i);
        markup_text(out, rows[i].name, strlen(rows[i].name), 400);
        buffer_printf(out, "</td><td>%s</td><td>%.1f%%</td></tr>\n", text_bytes(text, rows[i].bytes),
                      100 * rows[i].bytes / planned);
    }
    buffer_text(out, "</tbody></table></div>\n");
    page_figure_end(out);
    buffer_free(&rest);
}

// ---- Configuration and machine

// YAML with its keys and comments set apart.
static void add_yaml(const Buffer *yaml, Buffer *out) {
    const char *line = yaml->data, *end = yaml->data + yaml->size;
    while (line < end) {
        const char *newline = memchr(line, '\n', (size_t)(end - line)), *stop = newline != NULL ? newline : end;
        const char *p = line;
        while (p < stop && (*p == ' ' || *p == '-')) {
            p++;
        }
        const char *word = p;
        while (p < stop && (text_one_of(*p, "_-. ") || (*p >= '0' && *p <= '9') || ((*p | 32) >= 'a' && (*p | 32) <= 'z'))) {
            p++;
        }
        markup_text(out, line, (size_t)(word - line), SIZE_MAX);
        if (p < stop && *p == ':' && p > word) {
            buffer_text(out, "<span class=\"word\">");
            markup_text(out, word, (size_t)(p - word), SIZE_MAX);
            buffer_text(out, "</span>");
        } else {
            p = word;
        }
        const char *note = memmem(p, (size_t)(stop - p), " #", 2);
        note = p < stop && *p == '#' ? p : note;
        markup_text(out, p, (size_t)((note != NULL ? note : stop) - p), SIZE_MAX);
        if (note != NULL) {
            buffer_text(out, "<span class=\"note\">");
            markup_text(out, note, (size_t)(stop - note), SIZE_MAX);
            buffer_text(out, "</span>");
        }
        buffer_byte(out, '\n');
        line = stop + 1;
    }
}

void details_configuration(const RunData *data, Buffer *out) {
    if (data->config.size > 0) {
        page_section("Configuration", "As resolved when the run was last started or continued.", out);
        buffer_text(out, "<details "
                         "open=\"open\"><summary>config.yaml</summary><div class=\"card\"><pre>");
        add_yaml(&data->config, out);
        buffer_text(out, "</pre></div></details>\n");
    }
}

static void add_fact(const char *name, const char *value, Buffer *out) {
    if (value != NULL && *value != 0) {
        buffer_printf(out, "<dt>%s</dt><dd>", name);
        markup_text(out, value, strlen(value), 400);
        buffer_text(out, "</dd>\n");
    }
}

void details_machine(const RunData *data, Buffer *out) {
    Buffer hosts = {0}, facts = {0};
    const json_t *host = json_object_get(data->run, "host"), *item;
    size_t index;
    json_array_foreach(host, index, item) {
        if (json_is_string(item) && index < 16) {
            buffer_printf(&hosts, "%s%s", hosts.size > 0 ? ", " : "", json_string_value(item));
        }
    }
    if (json_is_string(host)) {
        buffer_text(&hosts, json_string_value(host));
    }
    if (json_array_size(host) > 16) {
        buffer_printf(&hosts, " and %zu more", json_array_size(host) - 16);
    }
    add_fact("athanor", run_data_text(data, "version"), &facts);
    add_fact("commit", run_data_text(data, "commit"), &facts);
    add_fact("hosts", hosts.data, &facts);
    add_fact("started", run_data_text(data, "started"), &facts);
    if (facts.size > 0) {
        page_section("Made by", NULL, out);
        buffer_printf(out, "<div class=\"card\"><dl>\n%s</dl></div>\n", facts.data);
    }
    buffer_free(&hosts);
    buffer_free(&facts);
}
