// The report of a run: one HTML file that needs nothing else.
//
// Drawings are inline SVG made here, there are no scripts and nothing is fetched, so the file can be mailed and archived. It
// follows the reader's light or dark setting, reads on a phone and prints.
#pragma once

#include "core/memory.h"

// Reads the run folder `run` (run_data.h) and writes the page to the file `out`, atomically. Appends to `summary` (may be NULL)
// a few lines for a terminal: losses before and after, and a sample text of each.
Error *report_write(const char *run, const char *out, Buffer *summary) MUST_CHECK;
