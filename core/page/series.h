// A curve of any length in bounded memory.
//
// Points are bins of consecutive records. When SERIES_BINS are full, neighbours are merged and every later bin holds twice as
// many records: a million records keep the least and greatest value of each of at most 2,048 bins, so no spike is lost.
// Records that go back in x replace what they repeat.
#pragma once

#include "core/memory.h"

enum { SERIES_BINS = 2048 };

typedef struct Bin {
    double first_x, last_x;
    double least, most, sum;
    int64_t records;
} Bin;

// Zero-initialise to start.
typedef struct Series {
    Bin *bins;
    int64_t count, capacity;
    int64_t records_per_bin;  // 0 before the first record
} Series;

// Adds a record. A value that is not finite or absurd (beyond 1e30, x beyond 1e15) is left out.
void series_add(Series *series, double x, double y);
void series_free(Series *series);

// The middle of a bin and its mean.
double bin_x(const Bin *bin);
double bin_y(const Bin *bin);

// *out (empty) = the series with at most `bins` bins.
void series_reduce(const Series *series, int64_t bins, Series *out);

// *out (empty) = the series' means, averaged over their neighbours with triangular weights of half width `radius` bins. Near
// the beginning, where curves are steep, fewer neighbours count, on both sides alike, so the curve starts where the data does;
// at the end those before still count, so that its last value is no single record's.
void series_smooth(const Series *series, int64_t radius, Series *out);

// The median of the bins' means; NaN for an empty series.
double series_median(const Series *series);
