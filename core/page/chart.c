// Line charts as inline SVG: see chart.h.
#include "core/page/chart.h"

#include "core/page/markup.h"

#include <math.h>
#include <stdio.h>

enum { MOST_TICKS = 16, MOST_LABELS = 64, LABEL_HEIGHT = 15, LABEL_BYTES = 40 };
#define CHARACTER_WIDTH 7.7  // of the 12-pixel labels, in the widest of the usual fonts

typedef struct Axis {
    double low, high;  // of the data; for a logarithmic axis their decimal logarithms
    double from, to;   // pixels
    bool logarithmic;
    double ticks[MOST_TICKS];
    double step;  // between ticks; 0 on a logarithmic axis
    int tick_count;
} Axis;

static double place(const Axis *axis, double value) {
    double at = axis->logarithmic ? log10(value) : value;
    return axis->from + (at - axis->low) / (axis->high - axis->low) * (axis->to - axis->from);
}

// 1, 2 or 5 times a power of ten, such that `span` holds at most `most` steps.
static double nice_step(double span, int most) {
    double raw = span / most, power = pow(10, floor(log10(raw))), rest = raw / power;
    return power * (rest <= 1.0001 ? 1 : rest <= 2.0001 ? 2 : rest <= 5.0001 ? 5 : 10);
}

static void add_tick(Axis *axis, double value) {
    if (axis->tick_count < MOST_TICKS) {
        axis->ticks[axis->tick_count++] = value;
    }
}

// Sets ticks inside [low, high].
static void set_linear_ticks(Axis *axis, int most) {
    axis->step = nice_step(axis->high - axis->low, most < MOST_TICKS - 1 ? most : MOST_TICKS - 1);
    for (double k = ceil(axis->low / axis->step - 1e-6); k * axis->step <= axis->high + 1e-6 * axis->step; k++) {
        add_tick(axis, k * axis->step);
    }
}

static void set_log_ticks(Axis *axis) {
    static const double factors[] = {1, 2, 5};
    bool decades_only = axis->high - axis->low > 2.5;
    int stride = (int)ceil((axis->high - axis->low) / 8);
    for (int decade = (int)floor(axis->low); decade <= axis->high; decade += stride > 1 ? stride : 1) {
        for (int i = 0; i < (decades_only ? 1 : 3); i++) {
            double value = factors[i] * pow(10, decade);
            if (log10(value) >= axis->low - 1e-9 && log10(value) <= axis->high + 1e-9) {
                add_tick(axis, value);
            }
        }
    }
}

// Widens a range of one value, and gives it some air.
static void give_air(double *low, double *high, double share) {
    double span = *high - *low;
    if (!(span > 1e-9 * fmax(fabs(*low), fabs(*high)))) {
        span = fabs(*high) > 0 ? fabs(*high) : 1;
        *low -= 0.5 * span;
        *high += 0.5 * span;
        return;
    }
    *low -= share * span;
    *high += share * span;
}

// The range of x over all lines.
static void find_x_range(const Chart *chart, Axis *x) {
    *x = (Axis){.low = INFINITY, .high = -INFINITY};
    for (int l = 0; l < chart->line_count; l++) {
        const Series *series = chart->lines[l].series;
        if (series->count > 0) {
            x->low = fmin(x->low, series->bins[0].first_x);
            x->high = fmax(x->high, series->bins[series->count - 1].last_x);
        }
    }
}

// The range of y over the lines that are not bands and the first bin of those that are. False where there is nothing.
static bool find_y_range(const Chart *chart, const Axis *x, Axis *y) {
    double settled = x->low + chart->settle * (x->high - x->low);
    *y = (Axis){.low = INFINITY, .high = -INFINITY, .logarithmic = chart->logarithmic};
    for (int l = 0; l < chart->line_count; l++) {
        const Series *series = chart->lines[l].series;
        for (int64_t i = 0; i < series->count; i++) {
            const Bin *bin = &series->bins[i];
            bool counts = chart->lines[l].style == LINE_FAINT ? i == 0 : bin_x(bin) >= settled;
            if (counts && (!chart->logarithmic || bin->least > 0)) {
                y->low = fmin(y->low, bin_y(bin));
                y->high = fmax(y->high, bin_y(bin));
            }
        }
    }
    return y->low <= y->high;
}

// Widens the range to hold the bands too, by as much as it is itself (of a logarithmic axis by two decades) to each side: one
// wild value must not flatten the rest.
static void reach_for_bands(const Chart *chart, Axis *y) {
    double low = y->low, high = y->high, reach = fmax(high - low, chart->logarithmic ? 2 : 0);
    bool flat = !(high - low > 1e-9 * fmax(fabs(low), fabs(high)));
    for (int l = 0; l < chart->line_count; l++) {
        const Series *series = chart->lines[l].series;
        for (int64_t i = 0; i < series->count && chart->lines[l].style == LINE_FAINT; i++) {
            double least = series->bins[i].least, most = series->bins[i].most;
            if (!chart->logarithmic || least > 0) {
                least = chart->logarithmic ? log10(least) : least;
                most = chart->logarithmic ? log10(most) : most;
                y->low = fmin(y->low, flat ? least : fmax(least, low - reach));
                y->high = fmax(y->high, flat ? most : fmin(most, high + reach));
            }
        }
    }
}

static bool set_axes(const Chart *chart, Axis *x, Axis *y) {
    find_x_range(chart, x);
    if (!find_y_range(chart, x, y)) {
        return false;
    }
    if (x->low > 0 && x->low < 0.1 * x->high) {
        x->low = 0;
    }
    if (x->low == x->high) {
        x->low -= 1;
        x->high += 1;
    }
    if (chart->logarithmic) {
        y->low = log10(y->low);
        y->high = log10(y->high);
        reach_for_bands(chart, y);
        give_air(&y->low, &y->high, 0.06);
        set_log_ticks(y);
    } else {
        if (chart->from_zero) {
            y->low = fmin(y->low, 0);
        }
        reach_for_bands(chart, y);
        bool positive = y->low >= 0;
        give_air(&y->low, &y->high, 0.06);
        if (positive && (chart->from_zero || y->low < 0)) {
            y->low = 0;
        }
        set_linear_ticks(y, chart->height / 48);
    }
    return true;
}

static void tick_text(const Chart *chart, const Axis *axis, double value, Buffer *out) {
    if (chart->percent) {
        buffer_printf(out, "%g%%", fabs(value) < 1e-9 ? 0 : round(value * 1e4) / 1e2);
    } else {
        markup_number(out, value, axis->step > 0 ? axis->step : value);
    }
}

static double widest_tick(const Chart *chart, const Axis *axis) {
    size_t widest = 1;
    for (int i = 0; i < axis->tick_count; i++) {
        Buffer text = {0};
        tick_text(chart, axis, axis->ticks[i], &text);
        widest = text.size > widest ? text.size : widest;
        buffer_free(&text);
    }
    return (double)widest * CHARACTER_WIDTH;
}

// The labels at the lines' ends.
typedef struct Label {
    Buffer text;
    double wanted, y;  // pixels
    int colour;
} Label;

static int compare_labels(const void *a, const void *b) {
    const Label *x = a, *y = b;
    return (x->wanted > y->wanted) - (x->wanted < y->wanted);
}

// How much of a name fits: whole words where the cut would leave half of a last one.
static size_t label_bytes(const char *name, size_t most) {
    size_t cut = strlen(name) <= most ? 0 : most;
    while (cut > most / 3 && name[cut] != ' ') {
        cut--;
    }
    return cut > most / 3 ? cut : most;
}

static int make_labels(const Chart *chart, Label *labels) {
    int count = 0;
    for (int l = 0; l < chart->line_count && count < MOST_LABELS; l++) {
        const ChartLine *line = &chart->lines[l];
        if (line->label == NULL || line->series->count == 0) {
            continue;
        }
        Label *label = &labels[count++];
        *label = (Label){.colour = line->colour, .wanted = bin_y(&line->series->bins[line->series->count - 1])};
        size_t size = strlen(line->label), limit = chart->width < 600 ? LABEL_BYTES / 3 : LABEL_BYTES;
        markup_text(&label->text, line->label, size, label_bytes(line->label, limit));
        buffer_byte(&label->text, ' ');
        if (chart->percent) {
            buffer_printf(&label->text, "%.1f%%", 100 * label->wanted);
        } else {
            markup_number(&label->text, label->wanted, 0);
        }
    }
    return count;
}

static double widest_label(const Label *labels, int count) {
    size_t widest = 0;
    for (int i = 0; i < count; i++) {
        size_t characters = 0;
        bool entity = false;
        for (const char *p = labels[i].text.data; *p != 0; p++) {
            entity = entity ? *p != ';' : *p == '&';
            characters += !entity && ((unsigned char)*p & 0xC0) != 0x80;
        }
        widest = characters > widest ? characters : widest;
    }
    return widest > 0 ? (double)widest * CHARACTER_WIDTH + 16 : 12;
}

// Moves labels apart so that none covers another, inside [top, bottom]: labels that touch form a block around the middle of
// the places they want, and blocks that touch are joined.
static void spread_labels(Label *labels, int count, double top, double bottom) {
    qsort(labels, (size_t)count, sizeof *labels, compare_labels);
    struct {
        double first;  // y of the block's first label
        int begin, count;
    } blocks[MOST_LABELS];
    int block_count = 0;
    for (int i = 0; i < count; i++) {
        blocks[block_count].first = labels[i].wanted;
        blocks[block_count].begin = i;
        blocks[block_count++].count = 1;
        for (;;) {
            int b = block_count - 1, n = blocks[b].count;
            double sum = 0;
            for (int k = 0; k < n; k++) {
                sum += labels[blocks[b].begin + k].wanted - k * LABEL_HEIGHT;
            }
            blocks[b].first = fmax(top, fmin(sum / n, bottom - (n - 1) * LABEL_HEIGHT));
            if (b == 0 || blocks[b - 1].first + blocks[b - 1].count * LABEL_HEIGHT <= blocks[b].first) {
                break;
            }
            blocks[b - 1].count += n;
            block_count--;
        }
    }
    for (int b = 0; b < block_count; b++) {
        for (int k = 0; k < blocks[b].count; k++) {
            labels[blocks[b].begin + k].y = blocks[b].first + k * LABEL_HEIGHT;
        }
    }
}

static void draw_labels(const Axis *x, Label *labels, int count, Buffer *out) {
    for (int i = 0; i < count; i++) {
        Label *label = &labels[i];
        if (fabs(label->y - label->wanted) > 3) {
            buffer_printf(out, "<path class=\"s%d lead\" d=\"M%.1f %.1fL%.1f %.1f\"/>\n", label->colour % 8, x->to + 2,
                          label->wanted, x->to + 9, label->y);
        }
        buffer_printf(out, "<text class=\"t%d name\" x=\"%.1f\" y=\"%.1f\">%s</text>\n", label->colour % 8, x->to + 11,
                      label->y + 4, label->text.data);
    }
}

static void draw_axes(const Chart *chart, const Axis *x, const Axis *y, Buffer *out) {
    for (int i = 0; i < y->tick_count; i++) {
        double at = place(y, y->ticks[i]);
        buffer_printf(out, "<path class=\"grid\" d=\"M%.1f %.1fH%.1f\"/><text class=\"tick\" x=\"%.1f\" y=\"%.1f\">", x->from,
                      at, x->to, x->from - 7, at + 4);
        tick_text(chart, y, y->ticks[i], out);
        buffer_text(out, "</text>\n");
    }
    buffer_printf(out, "<path class=\"axis\" d=\"M%.1f %.1fH%.1f\"/>\n", x->from, y->from, x->to);
    for (int i = 0; i < x->tick_count; i++) {
        double at = place(x, x->ticks[i]);
        buffer_printf(out, "<path class=\"axis\" d=\"M%.1f %.1fv4\"/><text class=\"tick middle\" x=\"%.1f\" y=\"%.1f\">", at,
                      y->from, at, y->from + 18);
        markup_number(out, x->ticks[i], x->step);
        buffer_text(out, "</text>\n");
    }
    buffer_printf(out, "<text class=\"unit\" x=\"%.1f\" y=\"%.1f\">", x->from, y->to - 12);
    markup_string(out, chart->unit);
    buffer_printf(out, "</text>\n<text class=\"unit end\" x=\"%.1f\" y=\"%.1f\">", x->to, y->from + 34);
    markup_string(out, chart->x_unit);
    buffer_text(out, "</text>\n");
}

static void draw_marks(const Chart *chart, const Axis *x, const Axis *y, Buffer *out) {
    for (int i = 0; i < chart->mark_count; i++) {
        if (chart->marks[i] >= x->low && chart->marks[i] <= x->high) {
            double at = place(x, chart->marks[i]);
            buffer_printf(out, "<g><title>%s %s %.0f</title><path class=\"mark\" d=\"M%.1f %.1fV%.1f\"/>", chart->mark_title,
                          chart->x_unit, chart->marks[i], at, y->to, y->from);
            buffer_printf(out, "<path class=\"flag\" d=\"M%.1f %.1fl-4 -7h8z\"/></g>\n", at, y->to + 1);
        }
    }
}

// A value on the axis, kept within one plot height of the plot so that coordinates stay small.
static double place_kept(const Axis *y, double value) {
    if (y->logarithmic && value <= 0) {
        return y->from;
    }
    double height = y->from - y->to, at = place(y, value);
    return fmin(fmax(at, y->to - height), y->from + height);
}

// Whether a value lies above (-1) or below (1) the drawing.
static int beyond(const Axis *y, double value) {
    double at = place_kept(y, value);
    return at < y->to - 0.5 ? -1 : at > y->from + 0.5 || (y->logarithmic && value <= 0) ? 1 : 0;
}

// Marks at the upper or the lower edge what a band has beyond it: the wildest value of every few pixels.
static void draw_beyond(const Chart *chart, const ChartLine *line, const Series *series, const Axis *x, const Axis *y,
                        bool above, Buffer *out) {
    enum { APART = 8 };
    const Bin *worst = NULL;
    for (int64_t i = 0; i <= series->count; i++) {
        const Bin *bin = i < series->count ? &series->bins[i] : NULL;
        if (worst != NULL && (bin == NULL || place(x, bin_x(bin)) - place(x, bin_x(worst)) >= APART)) {
            buffer_printf(
                out,
                "<path class=\"b%d\" d=\"M%.1f %.1fl-3.5 %dh7z\"><title>%s %.0f: %.4g, beyond the drawing</title></path>\n",
                line->colour % 8, place(x, bin_x(worst)), above ? y->to - 6 : y->from + 6, above ? 6 : -6, chart->x_unit,
                bin_x(worst), above ? worst->most : worst->least);
            worst = NULL;
        }
        if (bin != NULL && (above ? beyond(y, bin->most) < 0 : beyond(y, bin->least) > 0) &&
            (worst == NULL || (above ? bin->most > worst->most : bin->least < worst->least))) {
            worst = bin;
        }
    }
}

static void draw_band(const Chart *chart, const ChartLine *line, const Series *series, const Axis *x, const Axis *y,
                      Buffer *out) {
    buffer_printf(out, "<path class=\"s%d faint\" clip-path=\"url(#%s)\" d=\"", line->colour % 8, chart->id);
    for (int64_t i = 0; i < series->count; i++) {
        const Bin *bin = &series->bins[i];
        double at = place(x, bin_x(bin)), top = place_kept(y, bin->most), bottom = place_kept(y, bin->least);
        buffer_printf(out, "%c%.1f %.1f", i == 0 ? 'M' : 'L', at, top);
        if (bottom - top >= 0.1) {
            buffer_printf(out, "V%.1f", bottom);
        }
    }
    buffer_text(out, "\"/>\n");
    draw_beyond(chart, line, series, x, y, true, out);
    draw_beyond(chart, line, series, x, y, false, out);
}

static void draw_line(const Chart *chart, const ChartLine *line, const Series *series, const Axis *x, const Axis *y,
                      Buffer *out) {
    buffer_printf(out, "<path class=\"s%d d%d\" clip-path=\"url(#%s)\" d=\"", line->colour % 8, line->colour / 8 % 8,
                  chart->id);
    for (int64_t i = 0; i < series->count; i++) {
        const Bin *bin = &series->bins[i];
        buffer_printf(out, "%c%.1f %.1f", i == 0 ? 'M' : 'L', place(x, bin_x(bin)), place_kept(y, bin_y(bin)));
    }
    buffer_text(out, series->count == 1 ? "h.1\"/>\n" : "\"/>\n");
    for (int64_t i = 0; i < series->count && line->style == LINE_DOTS; i++) {
        const Bin *bin = &series->bins[i];
        if (place_kept(y, bin_y(bin)) < y->to - 4) {
            continue;  // above the drawing
        }
        buffer_printf(out, "<circle class=\"s%d dot\" cx=\"%.1f\" cy=\"%.1f\" r=\"%g\"><title>", line->colour % 8,
                      place(x, bin_x(bin)), place_kept(y, bin_y(bin)), series->count > 40 ? 2.0 : 3.0);
        if (line->label != NULL) {
            markup_string(out, line->label);
            buffer_text(out, ", ");
        }
        buffer_printf(out, "%s %.0f: %.4g</title></circle>\n", chart->x_unit, bin_x(bin), bin_y(bin));
    }
}

void chart_key(int colour, Buffer *out) {
    buffer_printf(out,
                  "<svg class=\"key\" viewBox=\"0 0 26 10\" aria-hidden=\"true\"><path class=\"s%d d%d\" d=\"M2 5H24\"/></svg>",
                  colour % 8, colour / 8 % 8);
}

void chart_svg(const Chart *chart, const char *class_name, Buffer *out) {
    Axis x, y;
    if (!set_axes(chart, &x, &y)) {
        buffer_printf(out, "<p class=\"%s none\">no values recorded</p>\n", class_name);
        return;
    }
    Label labels[MOST_LABELS];
    int label_count = make_labels(chart, labels);
    x.from = widest_tick(chart, &y) + 12;
    x.to = chart->width - widest_label(labels, label_count);
    y.from = chart->height - 40;
    y.to = 30;
    set_linear_ticks(&x, (int)((x.to - x.from) / 75) > 1 ? (int)((x.to - x.from) / 75) : 1);
    for (int i = 0; i < label_count; i++) {
        labels[i].wanted = place_kept(&y, labels[i].wanted);
    }
    spread_labels(labels, label_count, y.to, y.from);

    buffer_printf(out,
                  "<svg class=\"%s\" viewBox=\"0 0 %d %d\" role=\"img\" aria-labelledby=\"%s-title\">\n<title id=\"%s-title\">",
                  class_name, chart->width, chart->height, chart->id, chart->id);
    markup_string(out, chart->title);
    buffer_printf(out,
                  "</title>\n<clipPath id=\"%s\"><rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/></clipPath>\n",
                  chart->id, x.from, y.to - 4, x.to - x.from + 4, y.from - y.to + 4);
    draw_axes(chart, &x, &y, out);
    draw_marks(chart, &x, &y, out);
    for (int l = 0; l < chart->line_count; l++) {
        const ChartLine *line = &chart->lines[l];
        if (line->series->count > 0) {
            Series reduced = {0};
            series_reduce(line->series, (int64_t)(x.to - x.from), &reduced);
            (line->style == LINE_FAINT ? draw_band : draw_line)(chart, line, &reduced, &x, &y, out);
            series_free(&reduced);
        }
    }
    draw_labels(&x, labels, label_count, out);
    buffer_text(out, "</svg>\n");
    for (int i = 0; i < label_count; i++) {
        buffer_free(&labels[i].text);
    }
}
