// A run in a few lines for a terminal.
#pragma once

#include "train/report/run_data.h"

// Appends lines "name  value": length and speed of the run, losses before and after, a sample text of each. Control characters
// of sample texts are replaced, so that they cannot steer the terminal.
void report_summary(const RunData *data, Buffer *out);
