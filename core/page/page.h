// A page of HTML that needs nothing else: no scripts, nothing fetched, drawings inline, so that it can be mailed and archived.
// It follows the reader's light or dark setting, reads on a phone and prints.
//
//   page_begin(title)   head with the style sheet, the title
//     page_tile(...)    big numbers, between page_tiles and page_tiles_end
//   page_body()         from here on:
//     page_section(...)
//     page_figure(...)  a card around page_chart(...), a drawing or a table, closed by page_figure_end
//   page_end()
//
// Everything is appended to `out`, which is the caller's. Texts are escaped here (markup.h).
#pragma once

#include "core/page/chart.h"

// Opens the page and its header, with `title` as its name and headline.
void page_begin(const char *title, Buffer *out);

// Tiles of the header: a value, and below it what it is. The first one is set in colour.
void page_tiles(Buffer *out);
void page_tile(const char *value, const char *name, bool first, Buffer *out);
void page_tiles_end(Buffer *out);

// Ends the header; sections follow.
void page_body(Buffer *out);

// A headline and, below it, a sentence or two about what is to be seen (NULL: none).
void page_section(const char *title, const char *about, Buffer *out);

// Opens a card with a title and a note beside it (title NULL: neither).
void page_figure(const char *title, const char *note, Buffer *out);
void page_figure_end(Buffer *out);

// A chart as wide as the page; a second drawing, `narrow_height` high, serves narrow screens, where a scaled one could not be
// read. The chart's width is set here.
void page_chart(Chart chart, int narrow_height, Buffer *out);

// Half as wide: for two figures side by side, within a <div class="pair"> that the caller writes to `out` around them.
void page_small_chart(Chart chart, Buffer *out);

// Ends the page with a line that says which version of the program wrote it, and when.
void page_end(Buffer *out);
