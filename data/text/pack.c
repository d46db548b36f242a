// Packing: see pack.h. Three steps: read every file once (is it text, its size and hash), decide where each document goes,
// then write all shards, each by one worker, reading the files again.
#include "data/text/pack.h"

#include "core/durable.h"
#include "core/hash.h"
#include "core/log.h"
#include "core/philox.h"
#include "core/staging.h"
#include "core/text.h"
#include "core/threads.h"
#include "data/text/set_names.h"
#include "data/text/shard_writer.h"
#include "data/text/text_file.h"

#include <math.h>
#include <stdio.h>
#include <sys/stat.h>

enum { WARNINGS = 10, SHUFFLE_STREAM = 0 };

typedef enum Place { PLACE_TRAIN, PLACE_VAL, PLACE_TEST, PLACE_DUPLICATE, PLACE_INVALID, PLACE_EMPTY } Place;

typedef struct Document {
    const char *path;
    int set;
    Place place;
    int64_t bytes;
    Hash128 hash;
} Document;

typedef struct Packing {
    PackPlan *plan;
    Document *documents;  // set by set, files sorted
    int64_t count;
    int64_t **order;  // per output (train shards, val, test): indices of its documents
    int64_t *sizes;
    Staging staging;
    Progress progress;
    _Atomic int warnings;
    Error *error;  // the first one
} Packing;

Error *pack_add_set(PackPlan *plan, const char *text) {
    const char *equals = strchr(text, '=');
    if (equals == NULL || equals == text || equals[1] == 0) {
        return usage_error("--set '%s' is not NAME=PATTERN, such as \"Perl docs=texts/**/*.pod\"", text);
    }
    size_t size = (size_t)(equals - text);
    bool good = size < SET_NAME_BYTES && utf8_valid_prefix(text, size) == size;
    for (size_t i = 0; i < size; i++) {
        good = good && (unsigned char)text[i] >= 0x20;
    }
    if (!good) {
        return usage_error("--set '%s': a set's name is at most 255 bytes of UTF-8 without control characters", text);
    }
    char *given = memory_format("%.*s", (int)size, text);
    const char *name = set_name_canonical(given);
    int at = 0;
    while (at < plan->set_count && strcmp(plan->sets[at].name, name) < 0) {
        at++;
    }
    if (at == plan->set_count || strcmp(plan->sets[at].name, name) != 0) {
        plan->sets = memory_resize(plan->sets, (size_t)plan->set_count + 1, sizeof *plan->sets);
        memmove(plan->sets + at + 1, plan->sets + at, (size_t)(plan->set_count - at) * sizeof *plan->sets);
        plan->sets[at] = (PackSet){.name = memory_string(name)};
        plan->set_count++;
    }
    free(given);
    return path_glob(equals + 1, &plan->sets[at].files);
}

void pack_free(PackPlan *plan) {
    for (int i = 0; i < plan->set_count; i++) {
        free(plan->sets[i].name);
        strings_free(&plan->sets[i].files);
    }
    free(plan->sets);
    plan->sets = NULL;
    plan->set_count = 0;
}

typedef struct Identity {
    dev_t device;
    ino_t inode;
    size_t place;
} Identity;

static int compare_identities(const void *a, const void *b) {
    const Identity *x = a, *y = b;
    return x->device != y->device ? (x->device < y->device ? -1 : 1)
           : x->inode != y->inode ? (x->inode < y->inode ? -1 : 1)
                                  : (x->place > y->place) - (x->place < y->place);
}

// Which of the sorted files are an earlier one, under the same name or another. One that cannot be looked at is told when it is
// read.
static bool *find_again(const Strings *files) {
    Identity *identities = memory_zeroed(files->count + 1, sizeof *identities);
    bool *again = memory_zeroed(files->count + 1, sizeof *again);
    size_t known = 0;
    for (size_t f = 0; f < files->count; f++) {
        struct stat info;
        if (stat(files->items[f], &info) == 0) {
            identities[known++] = (Identity){info.st_dev, info.st_ino, f};
        }
    }
    qsort(identities, known, sizeof *identities, compare_identities);
    for (size_t i = 1; i < known; i++) {
        again[identities[i].place] =
            identities[i].device == identities[i - 1].device && identities[i].inode == identities[i - 1].inode;
    }
    free(identities);
    return again;
}

static void list_documents(Packing *packing) {
    PackPlan *plan = packing->plan;
    for (int s = 0; s < plan->set_count; s++) {
        packing->count += (int64_t)plan->sets[s].files.count;
    }
    packing->documents = memory_zeroed((size_t)packing->count + 1, sizeof *packing->documents);
    Document *next = packing->documents;
    for (int s = 0; s < plan->set_count; s++) {
        strings_sort(&plan->sets[s].files);
        bool *again = find_again(&plan->sets[s].files);
        for (size_t f = 0; f < plan->sets[s].files.count; f++) {
            if (!again[f]) {
                *next++ = (Document){.path = plan->sets[s].files.items[f], .set = s};
            }
        }
        free(again);
    }
    packing->count = next - packing->documents;
}

static bool stopped(Packing *packing) {
    return __atomic_load_n(&packing->error, __ATOMIC_ACQUIRE) != NULL;
}

typedef struct Reading {
    Packing *packing;
    Hasher *hasher;
    int64_t bytes;
    ShardWriter *writer;  // NULL in the first pass
} Reading;

static Error *take_text(void *context, const char *text, size_t size) {
    Reading *reading = context;
    hasher_add(reading->hasher, text, size);
    reading->bytes += (int64_t)size;
    progress_add(&reading->packing->progress, (int64_t)size);
    return reading->writer != NULL ? shard_writer_text(reading->writer, text, size) : NULL;
}

static void skip(Packing *packing, Document *document, const char *reason) {
    document->place = PLACE_INVALID;
    int number = packing->warnings++;
    if (number < WARNINGS) {
        log_warning("skipped: %s%s", reason, number == WARNINGS - 1 ? " (more are only counted)" : "");
    }
}

// First pass: what is in the file.
static void examine(void *context, int64_t task, int thread) {
    Packing *packing = context;
    Document *document = &packing->documents[task];
    if (stopped(packing)) {
        return;
    }
    Reading reading = {packing, hasher_create(), 0, NULL};
    bool valid;
    Error *error = text_file_read(document->path, take_text, &reading, &valid);
    if (error != NULL && error->kind == ERROR_DAMAGED) {
        skip(packing, document, error->message);
        error_free(error);
    } else if (error != NULL) {
        error_keep(&packing->error, error);
    } else if (!valid) {
        char *reason = memory_format("%s is not UTF-8 text", document->path);
        skip(packing, document, reason);
        free(reason);
    } else {
        document->place = reading.bytes > 0 ? PLACE_TRAIN : PLACE_EMPTY;
        document->bytes = reading.bytes;
        document->hash = hasher_result128(reading.hasher);
    }
    hasher_destroy(reading.hasher);
}

// Draws val and test from one set's documents [first, end).
static void hold_out(Packing *packing, int64_t first, int64_t end) {
    const PackPlan *plan = packing->plan;
    uint64_t usable = 0, index = 0;
    for (int64_t i = first; i < end; i++) {
        usable += packing->documents[i].place == PLACE_TRAIN;
    }
    uint64_t share = (uint64_t)llround(plan->valid * (double)usable);
    share = share == 0 && usable >= 3 && plan->valid > 0 ? 1 : share;
    share = 2 * share >= usable ? (usable > 0 ? (usable - 1) / 2 : 0) : share;
    for (int64_t i = first; i < end; i++) {
        Document *document = &packing->documents[i];
        if (document->place != PLACE_TRAIN) {
            continue;
        }
        const char *name = plan->sets[document->set].name;
        uint64_t stream = philox_stream(RANDOM_PACK, hash64(name, strlen(name)) | 1);  // SHUFFLE_STREAM is 0
        uint64_t drawn = philox_permute(plan->seed, stream, usable, index++);
        document->place = drawn < share ? PLACE_VAL : drawn < 2 * share ? PLACE_TEST : PLACE_TRAIN;
    }
}

static int compare_hashes(const void *a, const void *b) {
    const Hash128 *x = a, *y = b;
    if (x->high != y->high) {
        return x->high < y->high ? -1 : 1;
    }
    return x->low < y->low ? -1 : x->low > y->low;
}

static void drop_duplicates(Packing *packing) {
    Hash128 *held_out = memory_new((size_t)packing->count + 1, sizeof *held_out);
    size_t held = 0;
    for (int64_t i = 0; i < packing->count; i++) {
        const Document *document = &packing->documents[i];
        if (document->place == PLACE_VAL || document->place == PLACE_TEST) {
            held_out[held++] = document->hash;
        }
    }
    qsort(held_out, held, sizeof *held_out, compare_hashes);
    for (int64_t i = 0; i < packing->count && held > 0; i++) {
        Document *document = &packing->documents[i];
        if (document->place == PLACE_TRAIN &&
            bsearch(&document->hash, held_out, held, sizeof *held_out, compare_hashes) != NULL) {
            document->place = PLACE_DUPLICATE;
        }
    }
    free(held_out);
}

// Shuffles the documents of `place` and deals them to outputs [first, first + outputs) in equal numbers.
static void deal(Packing *packing, Place place, int first, int outputs) {
    uint64_t total = 0, index = 0;
    for (int64_t i = 0; i < packing->count; i++) {
        total += packing->documents[i].place == place;
    }
    int64_t *shuffled = memory_new(total + 1, sizeof *shuffled);
    for (int64_t i = 0; i < packing->count; i++) {
        if (packing->documents[i].place == place) {
            uint64_t stream = philox_stream(RANDOM_PACK, SHUFFLE_STREAM);
            shuffled[philox_permute(packing->plan->seed, stream, total, index++)] = i;
        }
    }
    for (int o = 0; o < outputs; o++) {
        Range range = range_part((int64_t)total, 1, outputs, o);
        size_t size = (size_t)(range.end - range.begin);
        packing->sizes[first + o] = (int64_t)size;
        packing->order[first + o] = memory_new(size + 1, sizeof **packing->order);
        memcpy(packing->order[first + o], shuffled + range.begin, size * sizeof *shuffled);
    }
    free(shuffled);
}

static Error *write_document(Packing *packing, ShardWriter *writer, const Document *document, Hasher *hasher) {
    Reading reading = {packing, hasher, 0, writer};
    bool valid;
    hasher_restart(hasher);
    TRY(shard_writer_begin(writer));
    TRY(text_file_read(document->path, take_text, &reading, &valid));
    Hash128 hash = hasher_result128(hasher);
    if (!valid || reading.bytes != document->bytes || compare_hashes(&hash, &document->hash) != 0) {
        return failure("%s changed while it was packed; run the command again", document->path);
    }
    return shard_writer_end(writer, packing->plan->sets[document->set].name);
}

static char *output_name(const Packing *packing, int64_t output) {
    const PackPlan *plan = packing->plan;
    if (output >= plan->shards) {
        return path_join(packing->staging.whole, output == plan->shards ? "val.jsonl.zst" : "test.jsonl.zst");
    }
    int digits = plan->shards <= 100 ? 2 : snprintf(NULL, 0, "%d", plan->shards - 1);
    return memory_format("%s/train/%0*d.jsonl.zst", packing->staging.whole, digits, (int)output);
}

// Second pass: writes one output.
static void write_output(void *context, int64_t task, int thread) {
    Packing *packing = context;
    if (stopped(packing)) {
        return;
    }
    char *path = output_name(packing, task);
    ShardWriter *writer = NULL;
    Hasher *hasher = hasher_create();
    Error *error = shard_writer_create(path, &writer);
    for (int64_t i = 0; i < packing->sizes[task] && error == NULL && !stopped(packing); i++) {
        error = write_document(packing, writer, &packing->documents[packing->order[task][i]], hasher);
    }
    if (error == NULL && !stopped(packing)) {
        error = shard_writer_finish(writer);
    } else {
        shard_writer_abandon(writer);
    }
    error_keep(&packing->error, error);
    hasher_destroy(hasher);
    free(path);
}

static void count(Packing *packing) {
    for (int64_t i = 0; i < packing->count; i++) {
        const Document *document = &packing->documents[i];
        PackSet *set = &packing->plan->sets[document->set];
        int64_t *const counts[] = {&set->train, &set->val, &set->test, &set->duplicates, &set->invalid, &set->empty};
        ++*counts[document->place];
        set->train_bytes += document->place == PLACE_TRAIN ? document->bytes : 0;
        set->held_out_bytes += document->place == PLACE_VAL || document->place == PLACE_TEST ? document->bytes : 0;
    }
}

// Decides where every document goes and returns the bytes to write.
static int64_t arrange(Packing *packing) {
    const PackPlan *plan = packing->plan;
    for (int64_t first = 0, end; first < packing->count; first = end) {
        for (end = first; end < packing->count && packing->documents[end].set == packing->documents[first].set;) {
            end++;
        }
        hold_out(packing, first, end);
    }
    drop_duplicates(packing);
    packing->order = memory_zeroed((size_t)plan->shards + 2, sizeof *packing->order);
    packing->sizes = memory_zeroed((size_t)plan->shards + 2, sizeof *packing->sizes);
    deal(packing, PLACE_TRAIN, 0, plan->shards);
    deal(packing, PLACE_VAL, plan->shards, 1);
    deal(packing, PLACE_TEST, plan->shards + 1, 1);
    count(packing);
    int64_t bytes = 0;
    for (int s = 0; s < plan->set_count; s++) {
        bytes += plan->sets[s].train_bytes + plan->sets[s].held_out_bytes;
    }
    return bytes;
}

static Error *pack(Packing *packing, ThreadPool *pool) {
    progress_begin(&packing->progress, "reading files", "B", 0);
    threads_run(pool, packing->count, examine, packing);
    progress_end(&packing->progress);
    if (packing->error != NULL) {
        return packing->error;
    }
    int64_t bytes = arrange(packing);
    if (bytes == 0) {
        return failure("there is nothing to pack: none of the %lld files holds UTF-8 text", (long long)packing->count);
    }
    char *train = path_join(packing->staging.whole, "train");
    Error *error = folder_create(train);
    if (error == NULL) {
        progress_begin(&packing->progress, "writing shards", "B", (double)bytes);
        threads_run(pool, packing->plan->shards + 2, write_output, packing);
        progress_end(&packing->progress);
        error = packing->error != NULL ? packing->error : file_sync(train);
    }
    free(train);
    return error;
}

Error *pack_shards(PackPlan *plan) {
    Packing packing = {.plan = plan};
    TRY(staging_begin(plan->out, false, &packing.staging));
    ThreadPool *pool = threads_create(plan->workers);
    list_documents(&packing);
    Error *error = pack(&packing, pool);
    threads_destroy(pool);
    for (int o = 0; packing.order != NULL && o < plan->shards + 2; o++) {
        free(packing.order[o]);
    }
    free(packing.order);
    free(packing.sizes);
    free(packing.documents);
    if (error != NULL) {
        staging_abandon(&packing.staging, false);
        return error;
    }
    return staging_commit(&packing.staging);
}
