// Tokenizers: megabytes a second on one core.
//
//   bench_tokenizer [--repeats 5] [--adversarial] TOKENIZER TEXT ...
//
// Each text is cut into documents (16 KiB, to the next line end) that are encoded one after another, with one encoder, as in
// building a corpus. Rates are medians over the repeats of 10^6 bytes of text per second of this thread's processor time, so
// that a busy machine disturbs them little. "first pass" starts with an empty word cache, "again" goes over the text once more.
// bench/peer_tokenizer.py measures other libraries in the same way.
#include "bench/program.h"
#include "core/clock.h"
#include "core/durable.h"
#include "core/philox.h"
#include "core/text.h"
#include "data/tokenizer/tokenizer_parts.h"

#include <stdio.h>
#include <time.h>

enum { DOCUMENT_BYTES = 16 << 10, REPEATS_MOST = 101, ADVERSARIAL_BYTES = 1 << 20 };

typedef struct Settings {
    int64_t repeats;
    bool adversarial;
} Settings;

static const Key flags[] = {
    {"repeats", KEY_INT, offsetof(Settings, repeats), "5", 1, REPEATS_MOST, .help = "Runs of which the median counts."},
    {"adversarial", KEY_BOOL, offsetof(Settings, adversarial), "false", .help = "Measure texts made to be slow, too."},
};
enum { FLAG_COUNT = sizeof flags / sizeof *flags };

static double thread_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int compare_doubles(const void *a, const void *b) {
    double left = *(const double *)a, right = *(const double *)b;
    return left < right ? -1 : left > right;
}

static double median(double *values, int64_t count) {
    qsort(values, (size_t)count, sizeof *values, compare_doubles);
    return values[count / 2];
}

static size_t document_end(const char *text, size_t from, size_t size) {
    if (size - from <= DOCUMENT_BYTES) {
        return size;
    }
    const char *line = memchr(text + from + DOCUMENT_BYTES, '\n', size - from - DOCUMENT_BYTES);
    return line == NULL ? size : (size_t)(line - text) + 1;
}

// One pass over the text; returns megabytes a second.
static double encode_pass(Encoder *encoder, const char *text, size_t size, bool feed, Tokens *ids) {
    ids->count = 0;
    double start = thread_seconds();
    for (size_t at = 0, end; at < size; at = end) {
        end = document_end(text, at, size);
        if (feed) {
            encoder_feed(encoder, text + at, end - at, false, ids);
        } else {
            encoder_encode(encoder, text + at, end - at, false, ids);
        }
    }
    if (feed) {
        encoder_finish(encoder, false, ids);
    }
    return (double)size / (thread_seconds() - start) / 1e6;
}

static double split_pass(const Tokenizer *tokenizer, const char *text, size_t size) {
    Splitter splitter = {0};
    uint32_t lengths[256];
    double start = thread_seconds();
    for (size_t at = 0, end; at < size; at = end) {
        end = document_end(text, at, size);
        splitter_begin(&splitter, tokenizer->stages[0], text + at, end - at);
        while (splitter_next(&splitter, lengths, 256) > 0) {
        }
    }
    double rate = (double)size / (thread_seconds() - start) / 1e6;
    splitter_free(&splitter);
    return rate;
}

static double decode_pass(const Tokenizer *tokenizer, const Tokens *ids, Buffer *out) {
    buffer_clear(out);
    double start = thread_seconds();
    tokenizer_decode(tokenizer, ids->ids, ids->count, true, out);
    return (double)out->size / (thread_seconds() - start) / 1e6;
}

static void measure_text(const Tokenizer *tokenizer, const char *name, const char *text, size_t size, int64_t repeats) {
    double split[REPEATS_MOST], first[REPEATS_MOST], again[REPEATS_MOST], fed[REPEATS_MOST], decoded[REPEATS_MOST];
    Tokens ids = {0};
    Buffer back = {0};
    for (int64_t r = 0; r < repeats; r++) {
        Encoder *encoder = encoder_create(tokenizer);
        split[r] = split_pass(tokenizer, text, size);
        encode_pass(encoder, text, size < 1024 ? size : 1024, false, &ids);
        encoder_free(encoder);
        encoder = encoder_create(tokenizer);
        first[r] = encode_pass(encoder, text, size, false, &ids);
        again[r] = encode_pass(encoder, text, size, false, &ids);
        decoded[r] = decode_pass(tokenizer, &ids, &back);
        encoder_free(encoder);
        encoder = encoder_create(tokenizer);
        fed[r] = encode_pass(encoder, text, size, true, &ids);
        encoder_free(encoder);
    }
    printf("%-24s %8.1f %10.2f %8.0f %10.1f %8.1f %8.1f %8.0f\n", name, (double)size / 1e6, (double)size / (double)ids.count,
           median(split, repeats), median(first, repeats), median(again, repeats), median(fed, repeats),
           median(decoded, repeats));
    free(ids.ids);
    buffer_free(&back);
}

static void measure_adversarial(const Tokenizer *tokenizer, int64_t repeats) {
    static const char *const units[][2] = {{"one letter", "a"},     {"spaces", " "},     {"two letters", "ab"},
                                           {"marks", "\u0301"},     {"line ends", "\n"}, {"apostrophes", "'"},
                                           {"one Hangul", "\uAC00"}};
    Buffer text = {0};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        buffer_clear(&text);
        while (text.size < ADVERSARIAL_BYTES) {
            buffer_text(&text, units[i][1]);
        }
        measure_text(tokenizer, units[i][0], text.data, text.size, repeats);
    }
    buffer_clear(&text);
    for (uint64_t i = 0; text.size < ADVERSARIAL_BYTES; i++) {
        char code[4];
        uint32_t any = philox(1, 1, i).word[0] % 0x110000;
        buffer_append(&text, code, (size_t)utf8_encode(any >= 0xD800 && any < 0xE000 ? 'x' : any, code));
    }
    measure_text(tokenizer, "random characters", text.data, text.size, repeats);
    buffer_clear(&text);
    for (uint64_t i = 0; text.size < ADVERSARIAL_BYTES; i++) {
        buffer_byte(&text, (char)('a' + philox(1, 2, i).word[0] % 26));
    }
    measure_text(tokenizer, "random letters", text.data, text.size, repeats);
    buffer_free(&text);
}

static Error *measure(const void *given, int count, char **arguments) {
    const Settings *settings = given;
    if (count < 1) {
        return usage_error("usage: bench_tokenizer [--repeats N] [--adversarial] TOKENIZER TEXT ...");
    }
    Tokenizer *tokenizer;
    double start = clock_seconds();
    TRY(tokenizer_load(arguments[0], &tokenizer));
    printf("%s: %d ids, loaded in %.0f ms\n", path_name(arguments[0]), tokenizer_vocabulary(tokenizer),
           1e3 * (clock_seconds() - start));
    printf("%-24s %8s %10s %8s %10s %8s %8s %8s\n", "text, MB/s on one core", "MB", "bytes/id", "split", "first pass", "again",
           "in parts", "decode");
    Error *error = NULL;
    for (int i = 1; i < count && error == NULL; i++) {
        Buffer text = {0};
        error = file_read(arguments[i], (size_t)1 << 32, &text);
        if (error == NULL) {
            measure_text(tokenizer, path_name(arguments[i]), text.data, text.size, settings->repeats);
        }
        buffer_free(&text);
    }
    if (error == NULL && settings->adversarial) {
        measure_adversarial(tokenizer, settings->repeats);
    }
    tokenizer_free(tokenizer);
    return error;
}

int main(int argc, char **argv) {
    Settings settings = {0};
    return program_main("bench_tokenizer", flags, FLAG_COUNT, &settings, measure, argc, argv);
}
