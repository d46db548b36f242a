// data/pack: every document lands once and whole, held out by set, the same bytes each time, nothing half-written.
#include "core/durable.h"
#include "core/hash.h"
#include "core/staging.h"
#include "data/text/pack.h"
#include "data/text/shards.h"
#include "tests/support/check.h"

#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>
#include <zlib.h>

static const char *folder_here(void) {
    static const char *folder;
    return folder = folder != NULL ? folder : check_folder();
}

static char *in_folder(const char *name) {
    return path_join(folder_here(), name);
}

static void put_file(const char *name, const void *bytes, size_t size) {
    char *path = in_folder(name), *folder = path_folder(path);
    CHECK_OK(folder_create(folder));
    CHECK_OK(file_write(path, bytes, size));
    free(path);
    free(folder);
}

// The text of document i of a set: all kinds of characters, some long, some without a newline.
static void make_text(const char *set, int i, Buffer *text) {
    buffer_clear(text);
    buffer_printf(text, "%s %d \"quoted\\\" \t\b\f\r\n \x01\x1f \x7f \xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80/", set, i);
    for (int k = 0; k < i * 37 % 400 + (i == 17 ? 100000 : 0); k++) {
        buffer_printf(text, "word%d ", k);
    }
}

enum { ALPHA = 250, BETA = 40, GAMMA = 3, DELTA = 2 };

static void make_texts(void) {
    static const struct {
        const char *name;
        int count;
    } sets[] = {{"alpha", ALPHA}, {"beta", BETA}, {"gamma", GAMMA}, {"delta", DELTA}};
    Buffer text = {0};
    for (int s = 0; s < 4; s++) {
        for (int i = 0; i < sets[s].count; i++) {
            char *name = memory_format("texts/%s/%d/%d.txt", sets[s].name, i % 3, i);
            make_text(sets[s].name, i, &text);
            put_file(name, text.data, text.size);
            free(name);
        }
    }
    // 60 copies of one text: those that are not held out must not meet it in train if one copy is.
    for (int i = 0; i < 60; i++) {
        char *name = memory_format("texts/copies/%d.txt", i);
        put_file(name, "all the same", 12);
        free(name);
    }
    // Texts of two copies each: often one copy is held out, for val or for test, and the other is not.
    for (int i = 0; i < 120; i++) {
        char *name = memory_format("texts/pairs/%d.txt", i);
        make_text("pairs", i / 2, &text);
        put_file(name, text.data, text.size);
        free(name);
    }
    // A file under three names is one document.
    make_text("links", 0, &text);
    put_file("texts/links/a", text.data, text.size);
    char *a = in_folder("texts/links/a"), *b = in_folder("texts/links/b"), *c = in_folder("texts/links/c");
    CHECK(link(a, b) == 0 && symlink("a", c) == 0);
    free(a);
    free(b);
    free(c);
    put_file("texts/odd/latin.txt", "caf\xE9", 4);
    put_file("texts/odd/cut.txt", "caf\xC3", 4);
    put_file("texts/odd/empty.txt", "", 0);
    put_file("texts/odd/mark.txt", "\xEF\xBB\xBFmarked", 9);
    put_file("texts/odd/only_mark.txt", "\xEF\xBB\xBF", 3);
    unsigned char packed[100];
    z_stream z = {.next_in = (unsigned char *)(uintptr_t) "unpacked", .avail_in = 8, .next_out = packed, .avail_out = 100};
    CHECK(deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK && deflate(&z, Z_FINISH) == Z_STREAM_END);
    put_file("texts/odd/packed", packed, z.total_out);
    put_file("texts/odd/broken.gz", packed, z.total_out - 9);
    deflateEnd(&z);
    buffer_free(&text);
}

static Error *pack_all(const char *out, int workers, uint64_t seed, PackPlan *plan) {
    static const char *const sets[][2] = {{"beta", "texts/beta/**/*.txt"},  {"CommonCrawl", "texts/alpha/**/*.txt"},
                                          {"gamma", "texts/gamma/*/*"},     {"delta", "texts/delta/**"},
                                          {"copies", "texts/copies/*.txt"}, {"odd", "texts/odd/*"},
                                          {"gamma", "texts/gamma/0/0.txt"}, {"pairs", "texts/pairs/*"},
                                          {"links", "texts/links/*"}};
    *plan = (PackPlan){.out = out, .shards = 7, .valid = 0.1, .seed = seed, .workers = workers};
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        char *text = memory_format("%s=%s/%s", sets[i][0], folder_here(), sets[i][1]);
        Error *error = pack_add_set(plan, text);
        free(text);
        TRY(error);
    }
    return pack_shards(plan);
}

static const PackSet *set_of(const PackPlan *plan, const char *name) {
    for (int i = 0; i < plan->set_count; i++) {
        if (strcmp(plan->sets[i].name, name) == 0) {
            return &plan->sets[i];
        }
    }
    return NULL;
}

typedef struct Seen {
    Hash128 hash;
    char set[20];
    int held_out;  // 1: for val, 2: for test
} Seen;

static Seen seen[1000];
static int seen_count;

static void read_all(const char *path, int held_out) {
    ShardReader *reader;
    ShardEvent event;
    Buffer text = {0};
    if (!CHECK_OK(shard_open(path, &reader))) {
        return;
    }
    do {
        if (!CHECK_OK(shard_next(reader, &event)) || !CHECK(event.kind != SHARD_BAD_LINE)) {
            break;
        }
        buffer_append(&text, event.text, event.size);
        if (event.kind == SHARD_DOCUMENT && CHECK(seen_count < 1000)) {
            Seen *s = &seen[seen_count++];
            s->hash = hash128(text.data, text.size);
            s->held_out = held_out;
            snprintf(s->set, sizeof s->set, "%s", event.set);
            buffer_clear(&text);
        }
    } while (event.kind != SHARD_END);
    buffer_free(&text);
    shard_close(reader);
}

static int times_seen(const char *set, const char *text, size_t size, bool held_out) {
    Hash128 hash = hash128(text, size);
    int n = 0;
    for (int i = 0; i < seen_count; i++) {
        n += seen[i].hash.low == hash.low && seen[i].hash.high == hash.high && (seen[i].held_out != 0) == held_out &&
             strcmp(seen[i].set, set) == 0;
    }
    return n;
}

static bool same_text(const Seen *a, const Seen *b) {
    return a->hash.low == b->hash.low && a->hash.high == b->hash.high;
}

// No text of train is one of val or of test, in any set; and both had copies that would have been.
static void check_held_apart(const PackSet *pairs) {
    int met = 0, single[3] = {0};
    for (int i = 0; i < seen_count; i++) {
        int others = 0;
        for (int k = 0; k < seen_count; k++) {
            others += k != i && same_text(&seen[i], &seen[k]);
            met += seen[i].held_out == 0 && seen[k].held_out != 0 && same_text(&seen[i], &seen[k]);
        }
        single[seen[i].held_out] += others == 0 && strcmp(seen[i].set, "pairs") == 0;
    }
    CHECK_I64(met, 0);
    CHECK(single[1] > 0 && single[2] > 0 && single[1] + single[2] == pairs->duplicates);
}

static void check_set(const char *name, const char *set, int count) {
    Buffer text = {0};
    int missing = 0;
    for (int i = 0; i < count; i++) {
        make_text(name, i, &text);
        missing += times_seen(set, text.data, text.size, false) + times_seen(set, text.data, text.size, true) != 1;
    }
    CHECK_I64(missing, 0);
    buffer_free(&text);
}

static void check_same(const char *a, const char *b) {
    static const char *const names[] = {"train/00.jsonl.zst", "train/06.jsonl.zst", "val.jsonl.zst", "test.jsonl.zst"};
    for (int i = 0; i < 4; i++) {
        char *x = path_join(a, names[i]), *y = path_join(b, names[i]);
        Buffer p = {0}, q = {0};
        CHECK_OK(file_read(x, 1 << 24, &p));
        CHECK_OK(file_read(y, 1 << 24, &q));
        CHECK(p.size == q.size && memcmp(p.data, q.data, p.size) == 0);
        buffer_free(&p);
        buffer_free(&q);
        free(x);
        free(y);
    }
}

static void test_pack(void) {
    make_texts();
    char *first = in_folder("first"), *second = in_folder("second/deep/"), *third = in_folder("third");
    PackPlan plan;
    CHECK_OK(pack_all(first, 1, 5, &plan));
    CHECK_I64(plan.set_count, 8);
    const PackSet pairs = *set_of(&plan, "pairs"), *links = set_of(&plan, "links");
    CHECK(pairs.val == 12 && pairs.test == 12 && pairs.train + pairs.duplicates == 96);
    CHECK(links->train == 1 && links->val + links->test + links->duplicates == 0);
    const PackSet *alpha = set_of(&plan, "Pile-CC"), *odd = set_of(&plan, "odd"), *copies = set_of(&plan, "copies");
    const PackSet *gamma = set_of(&plan, "gamma"), *delta = set_of(&plan, "delta");
    CHECK(alpha->val == 25 && alpha->test == 25 && alpha->train == 200);
    CHECK(gamma->val == 1 && gamma->test == 1 && gamma->train == 1);
    CHECK(delta->val == 0 && delta->test == 0 && delta->train == 2);
    CHECK(copies->val == 6 && copies->test == 6 && copies->train == 0 && copies->duplicates == 48);
    CHECK(odd->invalid == 3 && odd->empty == 2 && odd->train == 2);
    pack_free(&plan);

    Strings names = {0};
    CHECK_OK(folder_list(first, &names));
    CHECK(names.count == 3 && strcmp(names.items[0], "test.jsonl.zst") == 0 && strcmp(names.items[1], "train") == 0);
    strings_free(&names);
    char *train = path_join(first, "train");
    CHECK_OK(folder_list(train, &names));
    CHECK(names.count == 7 && strcmp(names.items[6], "06.jsonl.zst") == 0);
    for (size_t i = 0; i < names.count; i++) {
        char *path = path_join(train, names.items[i]);
        int before = seen_count;
        read_all(path, 0);
        CHECK(seen_count - before >= (200 + 32 + 1 + 2 + 2) / 7);
        int kinds = 0;
        for (int s = before; s < seen_count; s++) {
            kinds |= strcmp(seen[s].set, "Pile-CC") == 0 ? 1 : strcmp(seen[s].set, "beta") == 0 ? 2 : 0;
        }
        CHECK_I64(kinds, 3);  // the sets are mixed
        free(path);
    }
    strings_free(&names);
    char *val = path_join(first, "val.jsonl.zst"), *test = path_join(first, "test.jsonl.zst");
    read_all(val, 1);
    read_all(test, 2);
    check_held_apart(&pairs);
    check_set("alpha", "Pile-CC", ALPHA);
    check_set("beta", "beta", BETA);
    check_set("gamma", "gamma", GAMMA);
    check_set("delta", "delta", DELTA);
    CHECK_I64(times_seen("copies", "all the same", 12, false), 0);
    CHECK_I64(times_seen("odd", "marked", 6, false) + times_seen("odd", "unpacked", 8, false), 2);

    // The same bytes with other workers; other bytes with another seed; an existing folder is left alone.
    CHECK_OK(pack_all(second, 3, 5, &plan));
    pack_free(&plan);
    check_same(first, second);
    CHECK_OK(pack_all(third, 2, 6, &plan));
    pack_free(&plan);
    char *x = path_join(first, "train/00.jsonl.zst"), *y = path_join(third, "train/00.jsonl.zst");
    Buffer p = {0}, q = {0};
    CHECK_OK(file_read(x, 1 << 24, &p));
    CHECK_OK(file_read(y, 1 << 24, &q));
    CHECK(p.size != q.size || memcmp(p.data, q.data, p.size) != 0);
    buffer_free(&p);
    buffer_free(&q);
    CHECK_FAILS(pack_all(third, 2, 6, &plan), "exists already; choose another name");
    pack_free(&plan);
    free(x);
    free(y);
    free(val);
    free(test);
    free(train);
    free(first);
    free(second);
    free(third);
}

static void test_refusals(void) {
    PackPlan plan = {0};
    CHECK_FAILS(pack_add_set(&plan, "no pattern"), "is not NAME=PATTERN");
    CHECK_FAILS(pack_add_set(&plan, "=x"), "is not NAME=PATTERN");
    CHECK_FAILS(pack_add_set(&plan, "x="), "is not NAME=PATTERN");
    CHECK_FAILS(pack_add_set(&plan, "a\nb=x"), "without control characters");
    CHECK_FAILS(pack_add_set(&plan, "\xFF=x"), "255 bytes of UTF-8");
    CHECK_FAILS(pack_add_set(&plan, "x=/nowhere/*.txt"), "no file matches /nowhere/*.txt");
    pack_free(&plan);

    // Nothing but what cannot be packed: an error, and nothing remains.
    char *out = in_folder("none"), *partial = in_folder("none.partial");
    char *set = memory_format("x=%s/texts/odd/[cel]*.txt", folder_here());
    plan = (PackPlan){.out = out, .shards = 2, .workers = 1};
    CHECK_OK(pack_add_set(&plan, set));
    CHECK_FAILS(pack_shards(&plan), "there is nothing to pack");
    CHECK(!path_exists(out) && !path_exists(partial));
    pack_free(&plan);
    free(set);

    // A disk that is full in the middle.
    struct rlimit before, small;
    getrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, SIG_IGN);
    small = before;
    small.rlim_cur = 2000;
    setrlimit(RLIMIT_FSIZE, &small);
    Error *error = pack_all(out, 2, 1, &plan);
    setrlimit(RLIMIT_FSIZE, &before);
    CHECK_FAILS(error, "cannot be written: File too large");
    CHECK(!path_exists(out) && !path_exists(partial));
    pack_free(&plan);

    // Two at once: the second is told.
    Staging staging;
    CHECK_OK(staging_begin(out, true, &staging));
    CHECK_FAILS(pack_all(out, 1, 1, &plan), "another process is writing");
    pack_free(&plan);
    staging_abandon(&staging, true);
    CHECK(path_exists(partial));
    CHECK_OK(pack_all(out, 1, 1, &plan));  // what was left behind is no hindrance
    CHECK(path_exists(out) && !path_exists(partial));
    pack_free(&plan);
    CHECK_FAILS(staging_begin("/proc/x/y", true, &staging), "cannot be created");
    free(out);
    free(partial);
}

int main(void) {
    RUN(test_pack);
    RUN(test_refusals);
    return check_report();
}
