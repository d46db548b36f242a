// The report of a run: see report.h.
#include "train/report/report.h"

#include "core/durable.h"
#include "core/page/markup.h"
#include "core/page/page.h"
#include "core/text.h"
#include "train/report/details.h"
#include "train/report/run_data.h"
#include "train/report/summary.h"

#include <math.h>
#include <stdio.h>

enum { MOST_SAMPLE_BYTES = 3000 };

// ---- Curves

static double last_of(const Series *series) {
    return series->count > 0 ? bin_y(&series->bins[series->count - 1]) : NAN;
}

static double first_of(const Series *series) {
    return series->count > 0 ? bin_y(&series->bins[0]) : NAN;
}

// The smoothing of every curve of the report: a thirtieth of its length to each side.
static void smooth(const Series *series, Series *out) {
    series_smooth(series, series->count / 30, out);
}

static bool is_total(const SetHistory *set) {
    return strcmp(set->name, "all") == 0;
}

static int named_sets(const RunData *data) {
    return data->set_count - (run_data_set(data, "all") != NULL);
}

// ---- Head

static void add_words(Buffer *out, const char *words) {
    if (words != NULL && *words != 0) {
        buffer_text(out, out->size > 0 ? " \xC2\xB7 " : "");
        markup_text(out, words, strlen(words), 200);
    }
}

static void add_lead(const RunData *data, Buffer *out) {
    Buffer words = {0};
    char count[32];
    double parameters = run_data_number(data, "parameters"), ranks = run_data_number(data, "ranks"),
           threads = run_data_number(data, "threads");
    add_words(&words, run_data_text(data, "family"));
    if (parameters > 0) {
        buffer_printf(&words, "%s%s parameters", words.size > 0 ? " \xC2\xB7 " : "", text_count(count, parameters));
    }
    if (ranks > 0) {
        buffer_printf(&words, "%s%.0f rank%s", words.size > 0 ? " \xC2\xB7 " : "", ranks, ranks == 1 ? "" : "s");
    }
    if (threads > 0) {
        buffer_printf(&words, "%s%.0f thread%s each", words.size > 0 ? " \xC3\x97 " : "", threads, threads == 1 ? "" : "s");
    }
    const char *started = run_data_text(data, "started");
    if (started != NULL) {
        Buffer when = {0};
        buffer_printf(&when, "started %.64s", started);
        add_words(&words, when.data);
        buffer_free(&when);
    }
    if (words.size > 0) {
        buffer_printf(out, "<p class=\"lead\">%s</p>\n", words.data);
    }
    buffer_free(&words);
}

static void add_tiles(const RunData *data, Buffer *out) {
    char value[64], name[128], number[32];
    page_tiles(out);
    const SetHistory *set = run_data_main_set(data);
    if (set != NULL && set->loss.count > 0) {
        snprintf(value, sizeof value, "%.3f", last_of(&set->loss));
        snprintf(name, sizeof name, "held-out loss, was %.3f", first_of(&set->loss));
        page_tile(value, set->loss.count > 1 ? name : "held-out loss", true, out);
        if (isfinite(set->last_bits_per_byte)) {
            snprintf(value, sizeof value, "%.3f", set->last_bits_per_byte);
            snprintf(name, sizeof name, "bits per byte, perplexity %s",
                     isfinite(set->last_perplexity) ? text_count(number, set->last_perplexity) : "unknown");
            page_tile(value, name, false, out);
        }
    }
    if (data->loss.count > 0) {
        Series even = {0};
        smooth(&data->loss, &even);
        snprintf(value, sizeof value, "%.3f", last_of(&even));
        page_tile(value, "training loss", set == NULL, out);
        series_free(&even);
    }
    if (data->tokens > 0) {
        snprintf(name, sizeof name, "steps, %s tokens", text_count(number, data->tokens));
    } else {
        snprintf(name, sizeof name, "steps");
    }
    if (fabs(data->last_step) < 1e6) {
        snprintf(value, sizeof value, "%.0f", data->last_step);
    } else {
        text_count(value, data->last_step);
    }
    page_tile(value, name, false, out);
    double speed = series_median(&data->tokens_per_second);
    if (isfinite(speed)) {
        page_tile(text_count(number, speed), "tokens a second, median", false, out);
    }
    if (data->seconds > 0) {
        page_tile(text_duration(number, data->seconds), "in training steps", false, out);
    }
    page_tiles_end(out);
}

static void add_warnings(const RunData *data, Buffer *out) {
    if (data->bad_lines > 0) {
        buffer_printf(
            out, "<p class=\"card warn\">%lld line%s of the run&#39;s records could not be read and %s left out; the first is ",
            (long long)data->bad_lines, data->bad_lines == 1 ? "" : "s", data->bad_lines == 1 ? "is" : "are");
        markup_string(out, data->first_bad_line);
        buffer_text(out, ".</p>\n");
    }
    if (data->skipped > 0) {
        buffer_printf(out, "<p class=\"card warn\">%.0f step%s skipped because a gradient was not finite.</p>\n", data->skipped,
                      data->skipped == 1 ? " was" : "s were");
    }
    if (data->sets_left_out > 0) {
        buffer_printf(out, "<p class=\"card warn\">Only the first %d validation sets are shown.</p>\n", MOST_SETS);
    }
}

// ---- Charts

#define RESUMED "resumed at"

typedef struct Marks {
    double *steps;
    int count;
} Marks;

static Marks find_marks(const RunData *data) {
    Marks marks = {memory_new((size_t)data->resumes.count + 1, sizeof(double)), 0};
    for (int64_t i = 0; i < data->resumes.count; i++) {
        marks.steps[marks.count++] = data->resumes.bins[i].first_x;
    }
    return marks;
}

static void add_loss(const RunData *data, const Marks *marks, Buffer *out) {
    const SetHistory *set = run_data_main_set(data);
    Series even = {0}, none = {0};
    smooth(&data->loss, &even);
    ChartLine lines[3] = {
        {&data->loss, NULL, LINE_FAINT, 0},
        {&even, "train", LINE_PLAIN, 0},
        {set != NULL ? &set->loss : &none, "held-out", LINE_DOTS, 1},
    };
    page_section(
        "Loss",
        "Cross-entropy of the next token. The faint band is every training step, the line through it its running "
        "mean, a triangle at an edge a step beyond the drawing; points are measured on text the model never trains on.",
        out);
    page_figure(NULL, NULL, out);
    page_chart((Chart){.title = "Training and held-out loss over steps",
                       .unit = "loss, nats per token",
                       .x_unit = "step",
                       .height = 400,
                       .lines = lines,
                       .line_count = 3,
                       .marks = marks->steps,
                       .mark_count = marks->count,
                       .mark_title = RESUMED,
                       .id = "loss"},
               300, out);
    page_figure_end(out);
    if (marks->count > 0) {
        buffer_printf(out, "<p class=\"none\">Dashed verticals: the run was resumed there (%d time%s).</p>\n", marks->count,
                      marks->count == 1 ? "" : "s");
    }
    series_free(&even);
}

static void add_set_row(const SetHistory *set, int colour, Buffer *out) {
    buffer_printf(out, "<tr%s><td>", is_total(set) ? " class=\"all\"" : "");
    if (colour >= 0) {
        chart_key(colour, out);
    }
    if (is_total(set)) {
        buffer_text(out, "all sets");
    } else {
        markup_name(out, set->name, 120);
    }
    double values[] = {first_of(&set->loss), last_of(&set->loss), set->last_perplexity, set->last_bits_per_byte};
    buffer_text(out, "</td>");
    for (int i = 0; i < 4; i++) {
        char text[32];
        if (isfinite(values[i])) {
            snprintf(text, sizeof text, "%.3f", values[i]);
            buffer_printf(out, "<td>%s</td>", i == 2 ? text_count(text, values[i]) : text);
        } else {
            buffer_text(out, "<td>\xE2\x80\x93</td>");
        }
    }
    buffer_text(out, "</tr>\n");
}

static void add_sets(const RunData *data, const Marks *marks, Buffer *out) {
    if (named_sets(data) == 0) {
        return;
    }
    ChartLine lines[MOST_SETS];
    int count = 0;
    for (int i = 0; i < data->set_count; i++) {
        if (!is_total(&data->sets[i])) {
            lines[count] = (ChartLine){&data->sets[i].loss, data->sets[i].name, LINE_DOTS, count};
            count++;
        }
    }
    page_section("Held-out sets",
                 "Each set is measured by itself. Bits per byte does not depend on the tokenizer, so it compares runs with "
                 "different ones. The drawing shows what follows the first steep fall.",
                 out);
    page_figure(NULL, NULL, out);
    int height = 340 > 17 * count + 90 ? 340 : 17 * count + 90;
    page_chart((Chart){.title = "Held-out loss of each set over steps",
                       .unit = "loss, nats per token",
                       .x_unit = "step",
                       .height = height,
                       .settle = count > 1 && data->sets[0].loss.count >= 8 ? 0.1 : 0,
                       .lines = lines,
                       .line_count = count,
                       .marks = marks->steps,
                       .mark_count = marks->count,
                       .mark_title = RESUMED,
                       .id = "sets"},
               height, out);
    buffer_text(out, "<div class=\"scroll\" style=\"margin-top:12px\"><table>\n<thead><tr><th>set</th><th>first "
                     "loss</th><th>loss</th><th>perplexity</th><th>bits per byte</th></tr></thead>\n<tbody>\n");
    for (int i = 0, colour = 0; i < data->set_count; i++) {
        if (!is_total(&data->sets[i])) {
            add_set_row(&data->sets[i], colour++, out);
        }
    }
    if (run_data_set(data, "all") != NULL && named_sets(data) > 1) {
        add_set_row(run_data_set(data, "all"), -1, out);
    }
    buffer_text(out, "</tbody></table></div>\n");
    page_figure_end(out);
}

static void add_small_chart(const char *title, const char *note, Chart chart, Buffer *out) {
    page_figure(title, note, out);
    chart.title = title;
    chart.x_unit = "step";
    page_small_chart(chart, out);
    page_figure_end(out);
}

static void add_course(const RunData *data, const Marks *marks, Buffer *out) {
    Series norm = {0}, speed = {0}, waits[2] = {{0}, {0}};
    smooth(&data->grad_norm, &norm);
    smooth(&data->tokens_per_second, &speed);
    smooth(&data->data_wait, &waits[0]);
    smooth(&data->comm_wait, &waits[1]);
    ChartLine rate_lines[] = {{&data->learning_rate, NULL, LINE_PLAIN, 4}};
    ChartLine norm_lines[] = {{&data->grad_norm, NULL, LINE_FAINT, 3}, {&norm, NULL, LINE_PLAIN, 3}};
    ChartLine speed_lines[] = {{&data->tokens_per_second, NULL, LINE_FAINT, 2}, {&speed, NULL, LINE_PLAIN, 2}};
    ChartLine wait_lines[] = {{&waits[0], "data", LINE_PLAIN, 5}, {&waits[1], "ranks", LINE_PLAIN, 6}};
    Chart base = {.marks = marks->steps, .mark_count = marks->count, .mark_title = RESUMED};
    Chart chart;
    page_section("How it ran",
                 "Bands are single steps, lines running means, triangles at an edge single steps beyond the drawing.", out);
    buffer_text(out, "<div class=\"pair\">\n");
    chart = base;
    chart.unit = "";
    chart.lines = rate_lines;
    chart.line_count = 1;
    chart.from_zero = true;
    chart.id = "rate";
    add_small_chart("Learning rate", "", chart, out);
    chart.lines = norm_lines;
    chart.line_count = 2;
    chart.from_zero = false;
    chart.logarithmic = true;
    chart.id = "norm";
    add_small_chart("Gradient norm", "before clipping, logarithmic", chart, out);
    chart.lines = speed_lines;
    chart.logarithmic = false;
    chart.from_zero = true;
    chart.id = "speed";
    add_small_chart("Throughput", "tokens a second, all ranks", chart, out);
    chart.lines = wait_lines;
    chart.percent = true;
    chart.id = "wait";
    add_small_chart("Waiting", "share of a step, for data and for other ranks", chart, out);
    buffer_text(out, "</div>\n");
    series_free(&norm);
    series_free(&speed);
    series_free(&waits[0]);
    series_free(&waits[1]);
}

// ---- Samples

static void add_sample(const Sample *sample, const char *title, const char *class_name, Buffer *out) {
    buffer_printf(out, "<article class=\"card%s\"><h3>%s<small>step %.0f</small></h3>\n<div class=\"sample\" dir=\"auto\">",
                  class_name, title, sample->step);
    size_t size;
    const char *text = sample_continuation(sample, &size);
    if (sample->prompt_size > 0) {
        buffer_text(out, "<b>");
        markup_text(out, sample->prompt, sample->prompt_size, MOST_SAMPLE_BYTES);
        buffer_text(out, "</b>");
    }
    markup_text(out, text, size, MOST_SAMPLE_BYTES);
    buffer_text(out, "</div></article>\n");
}

static void add_samples(const RunData *data, Buffer *out) {
    if (data->sample_count == 0) {
        return;
    }
    const Sample *first = run_data_first_sample(data), *last = run_data_last_sample(data);
    page_section("What it writes", "Text continued by the model from the same prompt, which is set in colour.", out);
    buffer_text(out, "<div class=\"pair\">\n");
    if (last != first) {
        add_sample(first, "At first", "", out);
    }
    add_sample(last, last != first ? "At last" : "So far", " last", out);
    buffer_text(out, "</div>\n");
    if (data->sample_count > 2) {
        buffer_printf(out, "<details><summary>%lld more samples, in the order of training</summary>\n",
                      (long long)data->sample_count - 2);
        for (int64_t i = 1; i < data->sample_count; i++) {
            if (&data->samples[i] != last) {
                add_sample(&data->samples[i], "", "", out);
            }
        }
        buffer_text(out, "</details>\n");
    }
}

// ---- The page

static void add_page(const RunData *data, Buffer *out) {
    Marks marks = find_marks(data);
    page_begin(data->name, out);
    add_lead(data, out);
    add_tiles(data, out);
    page_body(out);
    add_warnings(data, out);
    add_loss(data, &marks, out);
    add_samples(data, out);
    add_sets(data, &marks, out);
    add_course(data, &marks, out);
    details_memory(data, out);
    details_configuration(data, out);
    details_machine(data, out);
    page_end(out);
    free(marks.steps);
}

Error *report_write(const char *run, const char *out, Buffer *summary) {
    RunData data;
    TRY(run_data_read(run, &data));
    Buffer page = {0};
    add_page(&data, &page);
    Error *error = file_write(out, page.data, page.size);
    if (error == NULL && summary != NULL) {
        report_summary(&data, summary);
    }
    buffer_free(&page);
    run_data_free(&data);
    return error;
}
