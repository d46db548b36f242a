// Time: a monotonic clock for measuring, a wall clock for stamping.
#pragma once

// Seconds since an arbitrary start; never goes back.
double clock_seconds(void);

// The present time as "2026-01-31T12:34:56Z", into `out` (at least 24 bytes), which is returned.
const char *clock_stamp(char *out);
