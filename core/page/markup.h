// Text for HTML and SVG: nothing that a model or a file wrote can become markup.
#pragma once

#include "core/memory.h"

// Appends text as character data, safe in elements and in quoted attributes: & < > " ' are escaped, invalid UTF-8 and
// characters that XML does not allow become U+FFFD, marks that reverse the direction of writing are dropped. At most `limit`
// bytes of the text are used, cut at a character, with an ellipsis.
void markup_text(Buffer *out, const char *text, size_t size, size_t limit);

// The same for a whole string.
void markup_string(Buffer *out, const char *text);

// A number for a tick or a label, with the digits that `step` (0: three significant ones) can tell apart: "0.25", "1.5k",
// "3e-4".
void markup_number(Buffer *out, double value, double step);

// A name for a narrow column: text that may be broken behind _ / and . too, not inside of words.
void markup_name(Buffer *out, const char *name, size_t limit);
