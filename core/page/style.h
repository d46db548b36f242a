// The style sheet of pages: light and dark, wide and narrow, screen and paper.
#pragma once

extern const char page_style[];
