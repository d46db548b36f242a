// A run in a few lines for a terminal: see summary.h.
#include "train/report/summary.h"

#include "core/text.h"

#include <math.h>

enum { MOST_SAMPLE_LINES = 12, MOST_SAMPLE_BYTES = 700 };

// Sample text indented below its title, lines and length limited.
static void add_text(Buffer *out, const char *text, size_t size, int *lines) {
    size_t limit = size < MOST_SAMPLE_BYTES ? size : MOST_SAMPLE_BYTES;
    while (limit < size && limit > 0 && ((unsigned char)text[limit] & 0xC0) == 0x80) {
        limit--;  // not within a character
    }
    for (size_t i = 0; i < limit; i++) {
        unsigned char byte = (unsigned char)text[i];
        bool control = byte < 0x20 || byte == 0x7F || (byte == 0xC2 && i + 1 < limit && (unsigned char)text[i + 1] < 0xA0);
        if (byte == '\n') {
            if (++*lines >= MOST_SAMPLE_LINES) {
                return;
            }
            buffer_text(out, "\n    ");
        } else if (byte != '\r') {
            buffer_byte(out, byte == '\t' ? ' ' : control ? '?' : (char)byte);
            i += byte == 0xC2 && control;  // U+0080 .. U+009F take two bytes
        }
    }
}

static void add_sample(Buffer *out, const char *title, const Sample *sample) {
    int lines = 0;
    size_t size;
    const char *text = sample_continuation(sample, &size);
    while (size > 0 && text_one_of(text[size - 1], " \t\r\n")) {
        size--;
    }
    buffer_printf(out, "%s, step %.0f:\n    ", title, sample->step);
    add_text(out, sample->prompt, sample->prompt_size, &lines);
    add_text(out, text, size, &lines);
    buffer_byte(out, '\n');
}

void report_summary(const RunData *data, Buffer *out) {
    char tokens[32], time[32], speed[32];
    const Sample *first = run_data_first_sample(data), *last = run_data_last_sample(data);
    if (first != NULL && first != last) {
        add_sample(out, "sample before", first);
    }
    if (last != NULL) {
        add_sample(out, first != last ? "sample after" : "sample", last);
    }
    buffer_printf(out, "steps            %.0f", data->last_step);
    if (data->tokens > 0) {
        buffer_printf(out, ", %s tokens", text_count(tokens, data->tokens));
    }
    if (data->seconds > 0) {
        buffer_printf(out, " in %s", text_duration(time, data->seconds));
    }
    if (data->tokens > 0 && data->seconds > 0) {
        buffer_printf(out, ", %s tokens/s", text_count(speed, data->tokens / data->seconds));
    }
    if (data->tokens_per_second.count > 0) {
        buffer_printf(out, "; %s tokens/s in the median step", text_count(speed, series_median(&data->tokens_per_second)));
    }
    buffer_byte(out, '\n');
    const SetHistory *set = run_data_main_set(data);
    if (set != NULL && set->loss.count > 0) {
        const Series *loss = &set->loss;
        buffer_printf(out, "held-out loss    %.3f before, %.3f after", bin_y(&loss->bins[0]),
                      bin_y(&loss->bins[loss->count - 1]));
        if (isfinite(set->last_bits_per_byte)) {
            buffer_printf(out, " (%.3f bits per byte)", set->last_bits_per_byte);
        }
        buffer_byte(out, '\n');
    }
}
