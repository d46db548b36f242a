// Line charts as inline SVG.
//
// Colours come from the page's style sheet by class: s0 .. s7 for lines, t0 .. t7 for their labels, so that one drawing serves
// light, dark and paper. The vertical range follows the lines and holds the bands up to three times that range, so one wild
// value does not flatten the rest: what a band has beyond is marked at the edge, with its value as a title.
#pragma once

#include "core/page/series.h"

typedef enum LineStyle {
    LINE_PLAIN,
    LINE_DOTS,   // few points: each is marked and carries its value as a title
    LINE_FAINT,  // the raw record behind a smoothed line: a band from least to most
} LineStyle;

typedef struct ChartLine {
    const Series *series;
    const char *label;  // written at the line's end with its last value; NULL: none
    LineStyle style;
    int colour;  // 64 of them: from 8 on the same colours, dashed in seven ways
} ChartLine;

typedef struct Chart {
    const char *title;   // for readers that do not see the drawing
    const char *unit;    // above the vertical axis
    const char *x_unit;  // below the horizontal axis: what x counts, "step"
    int width, height;   // in pixels at natural size
    double settle;       // values in this first share of x do not widen the vertical range: they may leave the drawing
    bool logarithmic;    // vertical axis; needs positive values
    bool from_zero;      // the vertical axis starts at 0
    bool percent;        // values are shares: 0.25 is written 25%
    const ChartLine *lines;
    int line_count;
    const double *marks;  // x of dashed verticals
    int mark_count;
    const char *mark_title;  // what they are: "resumed at"
    const char *id;          // unique in the page
} Chart;

// Appends a piece of the line of that colour, for a table beside a chart.
void chart_key(int colour, Buffer *out);

// Appends <svg class="`class_name`">...</svg>, or a sentence where no line has a point.
void chart_svg(const Chart *chart, const char *class_name, Buffer *out);
