// A curve of any length in bounded memory: see series.h.
#include "core/page/series.h"

#include <math.h>

double bin_x(const Bin *bin) {
    return 0.5 * (bin->first_x + bin->last_x);
}

double bin_y(const Bin *bin) {
    return bin->sum / (double)bin->records;
}

void series_free(Series *series) {
    free(series->bins);
    *series = (Series){0};
}

// Appends the records of `later` to `bin`.
static void merge(Bin *bin, const Bin *later) {
    bin->last_x = later->last_x;
    bin->least = fmin(bin->least, later->least);
    bin->most = fmax(bin->most, later->most);
    bin->sum += later->sum;
    bin->records += later->records;
}

static void halve(Series *series) {
    int64_t kept = 0;
    for (int64_t i = 0; i < series->count; i += 2) {
        series->bins[kept] = series->bins[i];
        if (i + 1 < series->count) {
            merge(&series->bins[kept], &series->bins[i + 1]);
        }
        kept++;
    }
    series->count = kept;
    series->records_per_bin *= 2;
}

void series_add(Series *series, double x, double y) {
    if (!(fabs(x) <= 1e15) || !(fabs(y) <= 1e30)) {
        return;
    }
    if (series->records_per_bin == 0) {
        series->records_per_bin = 1;
    }
    while (series->count > 0 && series->bins[series->count - 1].last_x >= x) {
        series->count--;  // gone back: what follows replaces it
    }
    Bin bin = {x, x, y, y, y, 1};
    if (series->count > 0 && series->bins[series->count - 1].records < series->records_per_bin) {
        merge(&series->bins[series->count - 1], &bin);
        return;
    }
    if (series->count == SERIES_BINS) {
        halve(series);
    }
    array_push(series->bins, series->count, series->capacity, bin);
}

void series_reduce(const Series *series, int64_t bins, Series *out) {
    int64_t group = (series->count + bins - 1) / (bins > 0 ? bins : 1);
    out->records_per_bin = series->records_per_bin;
    for (int64_t i = 0; i < series->count; i++) {
        if (i % group == 0) {
            array_push(out->bins, out->count, out->capacity, series->bins[i]);
        } else {
            merge(&out->bins[out->count - 1], &series->bins[i]);
        }
    }
}

void series_smooth(const Series *series, int64_t radius, Series *out) {
    out->records_per_bin = series->records_per_bin;
    for (int64_t i = 0; i < series->count; i++) {
        int64_t before = i < radius ? i : radius, after = before;
        after = series->count - 1 - i < after ? series->count - 1 - i : after;
        double sum = 0, weights = 0;
        for (int64_t k = -before; k <= after; k++) {
            double weight = (double)(before + 1 - llabs(k));
            sum += weight * bin_y(&series->bins[i + k]);
            weights += weight;
        }
        const Bin *bin = &series->bins[i];
        double y = sum / weights;
        array_push(out->bins, out->count, out->capacity, ((Bin){bin->first_x, bin->last_x, y, y, y, 1}));
    }
}

static int compare_numbers(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double series_median(const Series *series) {
    if (series->count == 0) {
        return NAN;
    }
    double *values = memory_new((size_t)series->count, sizeof *values);
    for (int64_t i = 0; i < series->count; i++) {
        values[i] = bin_y(&series->bins[i]);
    }
    qsort(values, (size_t)series->count, sizeof *values, compare_numbers);
    double median = values[series->count / 2];
    free(values);
    return median;
}
