// How fast text becomes tokens: reading shards, tokenizing, building a corpus, packing files into shards.
//
//   bench_data --input 'texts-packed/train/*.jsonl.zst' --tokenizer tokenizer.json [--workers 1 --workers 2]
//   bench_data --set "Manuals=/usr/share/man/**/*.gz"
//   bench_data --corpus corpora/train
//
// Of a corpus an epoch is drawn, shuffled, by the loader, with the checks of its blocks and without: how fast from the page
// cache, and how many bytes are read from the disk for each byte that a sample uses, where the cache is cold but holds the
// corpus, and where it holds next to nothing of it.
//
// Every rate is of document text (UTF-8, before JSON and compression) in MB/s (10^6 bytes), the median of the repeats with the
// best one in brackets. Each row names what bounds it and the share that it reaches: reading is bounded by decompression and by
// scanning JSON from memory, one after the other in one thread; building by that many encoders at once. Files come from the
// page cache.
#include "bench/program.h"
#include "core/clock.h"
#include "core/durable.h"
#include "core/text.h"
#include "core/threads.h"
#include "data/text/byte_source.h"
#include "data/text/pack.h"
#include "data/text/shards.h"
#include "data/tokenizer/tokenizer.h"
#include "data/tokens/build.h"
#include "data/tokens/loader.h"

#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

enum { MEMORY_MOST = 64 << 20, REPEATS_MOST = 99, BLOCK = 128 << 10 };

typedef struct Settings {
    Strings inputs, sets, workers;
    char *tokenizer, *folder, *corpus;
    int64_t repeats;
    bool processor_time;
} Settings;

static const Key flags[] = {
    {"input", KEY_LIST, offsetof(Settings, inputs), NULL, .help = "Shards to read and to build from."},
    {"tokenizer", KEY_TEXT, offsetof(Settings, tokenizer), NULL,
     .help = "Tokenizer for the build; without one only reading is measured."},
    {"workers", KEY_LIST, offsetof(Settings, workers), NULL,
     .help = "Numbers of workers to measure; all cores if none is given."},
    {"set", KEY_LIST, offsetof(Settings, sets), NULL, .help = "NAME=PATTERN of files to pack, as for 'athanor data pack'."},
    {"corpus", KEY_TEXT, offsetof(Settings, corpus), NULL, .help = "Corpus to draw an epoch from."},
    {"folder", KEY_TEXT, offsetof(Settings, folder), "/tmp", .help = "Where to write."},
    {"repeats", KEY_INT, offsetof(Settings, repeats), "5", 1, REPEATS_MOST, .help = "Measurements of each row."},
    {"processor-time", KEY_BOOL, offsetof(Settings, processor_time), "false",
     .help = "Rates per second of processor time, summed over threads: what to use on a machine that others share."},
};
enum { FLAG_COUNT = sizeof flags / sizeof *flags };

// What the rows share: the shards, and the start of their lines and documents in memory.
typedef struct Bench {
    const Settings *settings;
    Strings shards;
    int64_t text_bytes;  // of all documents
    Buffer lines;        // decompressed lines, at most MEMORY_MOST
    Buffer text;         // the text of the documents in them
    size_t *ends;
    size_t documents, capacity;
    Tokenizer *tokenizer;
    int workers;
    char *out;
} Bench;

typedef struct Rate {
    double median, best;  // bytes a second
} Rate;

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double seconds(const Bench *bench) {
    struct timespec now;
    if (!bench->settings->processor_time) {
        return clock_seconds();
    }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// Runs `work` some times; it tells how many bytes of text it did.
static Error *measure(Bench *bench, Error *(*work)(Bench *bench, int64_t *bytes), Rate *rate) {
    double rates[REPEATS_MOST];
    int64_t repeats = bench->settings->repeats;
    for (int64_t r = 0; r < repeats; r++) {
        int64_t bytes = 0;
        double start = seconds(bench);
        TRY(work(bench, &bytes));
        rates[r] = (double)bytes / (seconds(bench) - start);
    }
    qsort(rates, (size_t)repeats, sizeof *rates, compare_doubles);
    *rate = (Rate){rates[repeats / 2], rates[repeats - 1]};
    return NULL;
}

static void print_row(const char *name, Rate rate, const char *limit, double limit_rate) {
    printf("%-34s %8.0f MB/s (%.0f)", name, rate.median / 1e6, rate.best / 1e6);
    if (limit_rate > 0) {
        printf("   %3.0f%% of %s (%.0f)", 100 * rate.median / limit_rate, limit, limit_rate / 1e6);
    }
    printf("\n");
    fflush(stdout);
}

static Error *decompress(Bench *bench, int64_t *bytes) {
    static char block[BLOCK];
    for (size_t i = 0; i < bench->shards.count; i++) {
        ByteSource *source;
        size_t got;
        TRY(byte_source_open(bench->shards.items[i], &source));
        Error *error;
        do {
            error = byte_source_read(source, block, sizeof block, &got);
        } while (error == NULL && got > 0);
        byte_source_close(source);
        TRY(error);
    }
    *bytes = bench->text_bytes;
    return NULL;
}

static Error *drain(ShardReader *reader, int64_t *bytes) {
    ShardEvent event;
    do {
        TRY(shard_next(reader, &event));
        *bytes += (int64_t)event.size;
    } while (event.kind != SHARD_END);
    return NULL;
}

static Error *scan(Bench *bench, int64_t *bytes) {
    ShardReader *reader;
    TRY(shard_open_memory("memory", bench->lines.data, bench->lines.size, BLOCK, 1 << 20, &reader));
    Error *error = drain(reader, bytes);
    shard_close(reader);
    return error;
}

static Error *read_shards(Bench *bench, int64_t *bytes) {
    for (size_t i = 0; i < bench->shards.count; i++) {
        ShardReader *reader;
        TRY(shard_open(bench->shards.items[i], &reader));
        Error *error = drain(reader, bytes);
        shard_close(reader);
        TRY(error);
    }
    return NULL;
}

// One encoder per worker, each over the same documents in memory.
static void encode_all(void *context, int64_t task, int thread) {
    Bench *bench = context;
    Encoder *encoder = encoder_create(bench->tokenizer);
    Tokens tokens = {0};
    size_t from = 0;
    for (size_t d = 0; d < bench->documents; d++) {
        tokens.count = 0;
        encoder_encode(encoder, bench->text.data + from, bench->ends[d] - from, false, &tokens);
        from = bench->ends[d];
    }
    free(tokens.ids);
    encoder_free(encoder);
}

static Error *encode(Bench *bench, int64_t *bytes) {
    ThreadPool *pool = threads_create(bench->workers);
    threads_run(pool, bench->workers, encode_all, bench);
    threads_destroy(pool);
    *bytes = (int64_t)bench->text.size * bench->workers;
    return NULL;
}

static Error *build(Bench *bench, int64_t *bytes) {
    BuildPlan plan = {.inputs = bench->shards,
                      .tokenizer = bench->settings->tokenizer,
                      .out = bench->out,
                      .workers = bench->workers,
                      .bad_lines_most = INT64_MAX};
    BuildResult result;
    TRY(folder_remove(bench->out));
    TRY(build_corpus(&plan, &result));
    *bytes = bench->text_bytes;
    return NULL;
}

static Error *pack(Bench *bench, int64_t *bytes) {
    PackPlan plan = {.out = bench->out, .shards = 30, .valid = 0.01, .workers = bench->workers};
    Error *error = folder_remove(bench->out);
    for (size_t i = 0; i < bench->settings->sets.count && error == NULL; i++) {
        error = pack_add_set(&plan, bench->settings->sets.items[i]);
    }
    if (error == NULL) {
        error = pack_shards(&plan);
    }
    for (int s = 0; s < plan.set_count; s++) {
        *bytes += plan.sets[s].train_bytes + plan.sets[s].held_out_bytes;
    }
    pack_free(&plan);
    return error;
}

// Fills `lines` with whole lines from the shards and `text` with their documents.
static Error *load(Bench *bench) {
    for (size_t i = 0; i < bench->shards.count && bench->lines.size < MEMORY_MOST; i++) {
        ByteSource *source;
        size_t got;
        TRY(byte_source_open(bench->shards.items[i], &source));
        Error *error;
        do {
            buffer_reserve(&bench->lines, BLOCK);
            error = byte_source_read(source, bench->lines.data + bench->lines.size, BLOCK, &got);
            bench->lines.size += got;
        } while (error == NULL && got > 0 && bench->lines.size < MEMORY_MOST);
        byte_source_close(source);
        TRY(error);
    }
    while (bench->lines.size > 0 && bench->lines.data[bench->lines.size - 1] != '\n') {
        bench->lines.size--;
    }
    ShardReader *reader;
    ShardEvent event;
    TRY(shard_open_memory("memory", bench->lines.data, bench->lines.size, BLOCK, 1 << 20, &reader));
    Error *error;
    while ((error = shard_next(reader, &event)) == NULL && event.kind != SHARD_END) {
        buffer_append(&bench->text, event.text, event.size);
        if (event.kind == SHARD_DOCUMENT) {
            array_push(bench->ends, bench->documents, bench->capacity, bench->text.size);
        }
    }
    shard_close(reader);
    return error;
}

static Error *measure_reading(Bench *bench) {
    Rate rate, zstd, json;
    TRY(read_shards(bench, &bench->text_bytes));
    TRY(load(bench));
    char bytes[32];
    printf("%zu shards, %s of text\n", bench->shards.count, text_bytes(bytes, (double)bench->text_bytes));
    TRY(measure(bench, decompress, &zstd));
    print_row("decompress", zstd, NULL, 0);
    TRY(measure(bench, scan, &json));
    print_row("scan JSON from memory", json, NULL, 0);
    TRY(measure(bench, read_shards, &rate));
    print_row("read shards (1 thread)", rate, "both in turn", 1 / (1 / zstd.median + 1 / json.median));
    return NULL;
}

static Error *measure_building(Bench *bench) {
    char name[64];
    Rate rate, limit;
    snprintf(name, sizeof name, "encode from memory (%d threads)", bench->workers);
    TRY(measure(bench, encode, &limit));
    print_row(name, limit, NULL, 0);
    snprintf(name, sizeof name, "build a corpus (%d workers)", bench->workers);
    TRY(measure(bench, build, &rate));
    print_row(name, rate, "encoding", limit.median);
    return NULL;
}

static Error *measure_packing(Bench *bench) {
    char name[64];
    Rate rate;
    snprintf(name, sizeof name, "pack files (%d workers)", bench->workers);
    TRY(measure(bench, pack, &rate));
    print_row(name, rate, NULL, 0);
    return NULL;
}

// Forgets what the system's cache holds of the corpus.
static void drop_cache(const Corpus *corpus) {
    for (int d = 0; d < corpus->set_count; d++) {
        int descriptor = open(block_file_path(corpus->sets[d].file.bin), O_RDONLY | O_CLOEXEC);
        if (descriptor >= 0) {
            posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED);
            close(descriptor);
        }
    }
}

// Bytes that this process had from disks so far.
static double disk_bytes(void) {
    Buffer text = {0};
    double bytes = 0;
    error_free(file_read("/proc/self/io", 1 << 16, &text));
    const char *line = text.data != NULL ? strstr(text.data, "\nread_bytes: ") : NULL;
    bytes = line != NULL ? strtod(line + 13, NULL) : 0;
    buffer_free(&text);
    return bytes;
}

typedef enum Cache { CACHE_WARM, CACHE_COLD, CACHE_NONE } Cache;

// Draws the first epoch of a freshly opened corpus. *used gets the bytes of its samples, *fetched those from the disk.
static Error *draw(const char *path, bool checks, int64_t length, Cache cache, double *used, double *fetched, double *time) {
    enum { SEQUENCES = 8, LOST_EVERY = 16 };
    Corpus corpus;
    Order *order;
    const Batch *batch;
    TRY(corpus_open(path, &corpus));
    for (int d = 0; d < corpus.set_count && !checks; d++) {
        char *prefix = memory_string(corpus.sets[d].prefix);
        token_file_close(&corpus.sets[d].file);
        TRY(token_file_open(prefix, &corpus.sets[d].file));
        free(prefix);
    }
    TRY(order_create(&corpus, length, NULL, NULL, 1, &order));
    LoaderOptions options = {order, &corpus, INT32_MAX, SEQUENCES, length, 1, 0, 1, 0, 1, true};
    int64_t samples = 0;
    for (int d = 0; d < corpus.set_count; d++) {
        samples += order_set_samples(order, d);
        *used += (double)(order_set_samples(order, d) * length * corpus.sets[d].file.bytes_per_token);
    }
    if (cache != CACHE_WARM) {
        drop_cache(&corpus);
    }
    double before = disk_bytes(), start = clock_seconds();
    Loader *loader = loader_create(&options);
    Error *error = NULL;
    for (int64_t i = 0; i < samples / SEQUENCES && error == NULL; i++) {
        error = loader_next(loader, &batch);
        if (cache == CACHE_NONE && i % LOST_EVERY == 0) {
            drop_cache(&corpus);
        }
    }
    loader_destroy(loader);
    *time = clock_seconds() - start;
    *fetched = disk_bytes() - before;
    order_free(order);
    corpus_close(&corpus);
    return error;
}

static Error *measure_drawing(Bench *bench) {
    printf("an epoch of %s, first reading, blocks of %d KiB\n%-10s %-8s %14s %22s %22s\n", bench->settings->corpus,
           BLOCK_BYTES >> 10, "sequence", "checks", "from cache", "cold cache: disk/used", "no cache: disk/used");
    for (int64_t length = 512; length <= 8192; length *= 2) {
        for (int checks = 0; checks < 2; checks++) {
            double used[3] = {0}, fetched[3], time[3];
            for (Cache cache = CACHE_WARM; cache <= CACHE_NONE; cache++) {
                TRY(draw(bench->settings->corpus, checks, length, cache, &used[cache], &fetched[cache], &time[cache]));
            }
            printf("%-10lld %-8s %9.0f MB/s %22.2f %22.2f\n", (long long)length, checks ? "yes" : "no", used[0] / time[0] / 1e6,
                   fetched[1] / used[1], fetched[2] / used[2]);
            fflush(stdout);
        }
    }
    return NULL;
}

static Error *measure_all(Bench *bench) {
    const Settings *settings = bench->settings;
    for (size_t i = 0; i < settings->inputs.count; i++) {
        TRY(path_glob(settings->inputs.items[i], &bench->shards));
    }
    if (settings->corpus != NULL) {
        TRY(measure_drawing(bench));
    }
    if (bench->shards.count > 0) {
        TRY(measure_reading(bench));
    }
    if (settings->tokenizer != NULL) {
        TRY(tokenizer_load(settings->tokenizer, &bench->tokenizer));
    }
    for (size_t i = 0; i == 0 || i < settings->workers.count; i++) {
        int64_t workers = threads_available();
        if (settings->workers.count > 0 &&
            (!text_to_i64(settings->workers.items[i], &workers) || workers < 1 || workers > 4096)) {
            return usage_error("--workers %s is no number of threads", settings->workers.items[i]);
        }
        bench->workers = (int)workers;
        if (bench->shards.count > 0 && bench->tokenizer != NULL) {
            TRY(measure_building(bench));
        }
        if (settings->sets.count > 0) {
            TRY(measure_packing(bench));
        }
    }
    return folder_remove(bench->out);
}

static Error *bench(const void *given, int rest_count, char **rest) {
    const Settings *settings = given;
    if (settings->inputs.count == 0 && settings->sets.count == 0 && settings->corpus == NULL) {
        return usage_error("give --input (and --tokenizer), --set or --corpus; the head of bench/bench_data.c shows how");
    }
    Bench all = {.settings = settings};
    all.out = memory_format("%s/athanor-bench-data-%d", settings->folder, (int)getpid());
    Error *error = measure_all(&all);
    strings_free(&all.shards);
    buffer_free(&all.lines);
    buffer_free(&all.text);
    free(all.ends);
    free(all.out);
    tokenizer_free(all.tokenizer);
    return error;
}

int main(int argc, char **argv) {
    Settings settings = {0};
    return program_main("bench_data", flags, FLAG_COUNT, &settings, bench, argc, argv);
}
