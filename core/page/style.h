// The style sheet of a report: light and dark, wide and narrow, screen and paper.
#pragma once

extern const char report_style[];
