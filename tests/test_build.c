// data/build from inside: documents larger than memory should hold, broken in their middle, a full disk, and what is described.
// What it writes, kills and wrong use are tests/test_data_commands.py.
#include "data/text/shard_writer.h"
#include "data/tokens/build.h"
#include "data/tokens/describe.h"
#include "tests/support/check.h"
#include "tests/support/corpora.h"

#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *folder_here(void) {
    static const char *folder;
    return folder = folder != NULL ? folder : check_folder();
}

static char *in_folder(const char *name) {
    return path_join(folder_here(), name);
}

// Piece `i` of a huge document, of any kind of text.
static void make_piece(int64_t i, Buffer *piece) {
    buffer_clear(piece);
    buffer_printf(piece, "piece %lld, \xC3\xA9\xF0\x9F\x98\x80 \"quoted\"\n", (long long)i);
}

static void write_huge(ShardWriter *writer, int64_t pieces, const char *set) {
    Buffer piece = {0};
    CHECK_OK(shard_writer_begin(writer));
    for (int64_t i = 0; i < pieces; i++) {
        make_piece(i, &piece);
        CHECK_OK(shard_writer_text(writer, piece.data, piece.size));
    }
    CHECK_OK(shard_writer_end(writer, set));
    buffer_free(&piece);
}

static void write_small(ShardWriter *writer, int i) {
    char text[32];
    CHECK_OK(shard_writer_begin(writer));
    CHECK_OK(shard_writer_text(writer, text, (size_t)snprintf(text, sizeof text, "small %d", i)));
    CHECK_OK(shard_writer_end(writer, i % 2 == 0 ? "even" : "odd"));
}

static Error *build(const char *shard, const char *out, int workers, BuildResult *result) {
    char *tokenizer = in_folder("tokenizer.json");
    BuildPlan plan = {.tokenizer = tokenizer, .out = out, .workers = workers, .bad_lines_most = 10};
    strings_add(&plan.inputs, shard);
    Error *error = build_corpus(&plan, result);
    strings_free(&plan.inputs);
    free(tokenizer);
    return error;
}

static const CorpusSet *set_of(const Corpus *corpus, const char *name) {
    for (int i = 0; i < corpus->set_count; i++) {
        if (strcmp(corpus->sets[i].name, name) == 0) {
            return &corpus->sets[i];
        }
    }
    return NULL;
}

// Checks that tokens [at, ...) of the file are the document of write_huge.
static void check_huge(const TokenFile *file, int64_t at, int64_t pieces) {
    Buffer piece = {0};
    int32_t tokens[100];
    int64_t wrong = 0;
    for (int64_t i = 0; i < pieces; i++) {
        make_piece(i, &piece);
        CHECK_OK(token_file_read(file, at, (int64_t)piece.size, tokens));
        for (size_t b = 0; b < piece.size; b++) {
            wrong += tokens[b] != (unsigned char)piece.data[b] + 1;
        }
        at += (int64_t)piece.size;
    }
    CHECK_OK(token_file_read(file, at, 1, tokens));
    CHECK_I64(tokens[0], 0);
    CHECK_I64(wrong, 0);
    buffer_free(&piece);
}

// Small documents, a huge one, small ones, a huge one that turns out bad at its end, a huge one of the same set, a small one.
static void test_huge(void) {
    enum { PIECES = 400000, OTHER = 150000, BAD = 100000 };
    char *shard = in_folder("huge.jsonl.zst"), *bad = in_folder("bad.jsonl"), *tokenizer = in_folder("tokenizer.json");
    write_byte_tokenizer(tokenizer);
    ShardWriter *writer;
    CHECK_OK(shard_writer_create(shard, &writer));
    for (int i = 0; i < 5; i++) {
        write_small(writer, i);
    }
    write_huge(writer, PIECES, "huge");
    for (int i = 5; i < 3000; i++) {
        write_small(writer, i);
    }
    CHECK_OK(shard_writer_begin(writer));
    Buffer piece = {0};
    for (int64_t i = 0; i < BAD; i++) {
        make_piece(i, &piece);
        CHECK_OK(shard_writer_text(writer, piece.data, piece.size));
    }
    CHECK_OK(shard_writer_text(writer, "not UTF-8: \xFF", 12));
    CHECK_OK(shard_writer_end(writer, "bad"));
    write_huge(writer, OTHER, "huge");
    write_small(writer, 3000);
    CHECK_OK(shard_writer_finish(writer));
    make_piece(0, &piece);

    for (int workers = 1; workers <= 3; workers += 2) {
        char *out = memory_format("%s/huge%d", folder_here(), workers);
        BuildResult result;
        Corpus corpus;
        CHECK_OK(build(shard, out, workers, &result));
        CHECK(result.bad_lines == 1 && result.shards == 1 && result.shards_before == 0);
        CHECK_OK(corpus_open(out, &corpus));
        CHECK_OK(corpus_verify(&corpus));
        CHECK(corpus.set_count == 3 && set_of(&corpus, "even")->documents == 1501 && set_of(&corpus, "odd")->documents == 1500);
        const CorpusSet *huge = set_of(&corpus, "huge");
        CHECK(huge->documents == 2 && huge->tokens == huge->text_bytes + 2);
        check_huge(&huge->file, 0, PIECES);
        check_huge(&huge->file, token_file_document_start(&huge->file, 1), OTHER);
        int32_t tokens[8];
        CHECK_OK(token_file_read(&set_of(&corpus, "odd")->file, 8, 8, tokens));  // "small 3", after "small 1" and its end
        CHECK(tokens[6] == '3' + 1 && tokens[7] == 0);
        corpus_close(&corpus);
        free(out);
    }
    buffer_free(&piece);
    free(shard);
    free(bad);
    free(tokenizer);
}

// A document of 60 MB is built by a process that may have 40 MB more than it has.
static void test_memory(void) {
    const char *sanitize = getenv("ATHANOR_SANITIZE");
    if (sanitize != NULL && *sanitize != 0) {
        return;  // sanitizers have their own ways with memory
    }
    char *shard = in_folder("wide.jsonl.zst"), *out = in_folder("wide");
    ShardWriter *writer;
    CHECK_OK(shard_writer_create(shard, &writer));
    write_huge(writer, 1700000, "wide");
    CHECK_OK(shard_writer_finish(writer));
    pid_t child = fork();
    if (child == 0) {
        Buffer status = {0};
        long long data = 0;
        error_free(file_read("/proc/self/status", 1 << 16, &status));
        const char *line = strstr(status.data, "VmData:");
        struct rlimit limit = {0};
        getrlimit(RLIMIT_DATA, &limit);
        limit.rlim_cur = line != NULL && sscanf(line, "VmData: %lld", &data) == 1 ? (rlim_t)data * 1024 + (40u << 20) : 0;
        setrlimit(RLIMIT_DATA, &limit);
        BuildResult result;
        Error *error = build(shard, out, 2, &result);
        if (error != NULL) {
            fprintf(stderr, "%s\n", error->message);
        }
        _exit(error != NULL);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    free(shard);
    free(out);
}

// One shard under seven names, a copy of it, and one of the same size with other text.
static void test_once(void) {
    char *folder = in_folder("once"), *out = in_folder("once-out"), *tokenizer = in_folder("tokenizer.json");
    char *a = path_join(folder, "a.jsonl"), *b = path_join(folder, "b.jsonl"), *copy = path_join(folder, "copy.jsonl");
    char *hard = path_join(folder, "hard.jsonl"), *soft = path_join(folder, "soft.jsonl");
    char *dots = path_join(folder, "./a.jsonl"), *around = path_join(folder, "../once/a.jsonl");
    CHECK_OK(folder_create(folder));
    CHECK_OK(file_write(a, "\"one\"\n", 6));
    CHECK_OK(file_write(b, "\"two\"\n", 6));
    CHECK_OK(file_write(copy, "\"one\"\n", 6));
    CHECK(link(a, hard) == 0 && symlink("a.jsonl", soft) == 0 && chdir(folder) == 0);
    const char *names[] = {a, dots, around, "a.jsonl", "./a.jsonl", hard, soft, copy, b, a};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
            BuildPlan plan = {.tokenizer = tokenizer, .out = out, .workers = 1};
            BuildResult result;
            Corpus corpus;
            strings_add(&plan.inputs, names[i]);
            strings_add(&plan.inputs, names[k]);
            CHECK_OK(build_corpus(&plan, &result));
            CHECK_I64(result.shards, (names[i] == b) != (names[k] == b) ? 2 : 1);
            CHECK_OK(corpus_open(out, &corpus));
            CHECK_I64(corpus.sets[0].documents, result.shards);
            corpus_close(&corpus);
            CHECK_OK(folder_remove(out));
            strings_free(&plan.inputs);
        }
    }
    CHECK(chdir("/") == 0);
    char *const made[] = {folder, out, tokenizer, a, b, copy, hard, soft, dots, around};
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) {
        free(made[i]);
    }
}

// Builds in a process that may have `more` bytes more than it has.
static bool build_within(const BuildPlan *plan, size_t more, BuildResult *result) {
    int pipe_ends[2], status = -1;
    CHECK(pipe(pipe_ends) == 0);
    pid_t child = fork();
    if (child == 0) {
        Buffer text = {0};
        long long data = 0;
        error_free(file_read("/proc/self/status", 1 << 16, &text));
        const char *line = strstr(text.data, "VmData:");
        struct rlimit limit = {0};
        getrlimit(RLIMIT_DATA, &limit);
        limit.rlim_cur = line != NULL && sscanf(line, "VmData: %lld", &data) == 1 ? (rlim_t)data * 1024 + more : 0;
        setrlimit(RLIMIT_DATA, &limit);
        Error *error = build_corpus(plan, result);
        if (error != NULL) {
            fprintf(stderr, "%s\n", error->message);
        }
        _exit(error != NULL || write(pipe_ends[1], result, sizeof *result) != sizeof *result);
    }
    close(pipe_ends[1]);
    bool told = read(pipe_ends[0], result, sizeof *result) == sizeof *result;
    close(pipe_ends[0]);
    return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0 && told;
}

// Documents of 40 MB that have no end of a word, in every way, between two that have: they are bad lines with their numbers,
// and cost no more memory than prose (whole they would take thirty times their size). A text within the limit is taken,
// whatever it is made of.
static void test_unbroken(void) {
    static const struct {
        const char *text;
        int bytes;  // of the text that it stands for
    } parts[] = {{"a", 1},
                 {"7", 1},
                 {" ", 1},
                 {"!", 1},
                 {"\\n", 1},
                 {"\xC3\xA9", 2},
                 {"\xF0\x9F\x98\x80", 4},
                 {"\xE4\xB8\xAD", 3},
                 {"\\u0301", 2},
                 {"aB9", 3}};
    enum { BYTES = 40 << 20, SHORT = 3 << 20, MORE = 260 << 20 };
    const char *sanitize = getenv("ATHANOR_SANITIZE");
    bool limited = sanitize == NULL || *sanitize == 0;  // sanitizers have their own ways with memory
    char *shard = in_folder("unbroken.jsonl"), *out = in_folder("unbroken"), *partial = in_folder("unbroken.partial");
    char *tokenizer = in_folder("tokenizer.json");
    for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
        FILE *file = fopen(shard, "wb");
        fputs("\"before\"\n{\"text\":\"", file);
        for (int i = 0; i < BYTES; i += parts[p].bytes) {
            fputs(parts[p].text, file);
        }
        fputs("\"}\n\"after\"\n\"", file);
        for (int i = 0; i < SHORT; i += parts[p].bytes) {
            fputs(parts[p].text, file);
        }
        fputs("\"\n", file);
        fclose(file);
        BuildPlan plan = {.tokenizer = tokenizer, .out = out, .workers = 1, .bad_lines_most = 5};
        BuildResult result;
        Corpus corpus;
        strings_add(&plan.inputs, shard);
        if (limited) {
            CHECK(build_within(&plan, MORE, &result));
        } else {
            CHECK_OK(build_corpus(&plan, &result));
        }
        CHECK_I64(result.bad_lines, 1);
        if (CHECK_OK(corpus_open(out, &corpus))) {
            CHECK_I64(corpus.sets[0].documents, 3);
            corpus_close(&corpus);
        }
        CHECK_OK(folder_remove(out));
        plan.word_most = SHORT / 2;
        plan.bad_lines_most = 1;
        CHECK_FAILS(build_corpus(&plan, &result), "unbroken.jsonl:4: bad line: its text goes on without a place to cut it");
        CHECK_OK(folder_remove(partial));
        strings_free(&plan.inputs);
    }
    free(shard);
    free(out);
    free(partial);
    free(tokenizer);
}

// A disk that is full: when the parts are written, when the sets are, when the manifest is.
static void test_full_disk(void) {
    char *shard = in_folder("full.jsonl.zst"), *out = in_folder("full"), *partial = in_folder("full.partial");
    ShardWriter *writer;
    CHECK_OK(shard_writer_create(shard, &writer));
    for (int i = 0; i < 20000; i++) {
        write_small(writer, i);
    }
    CHECK_OK(shard_writer_finish(writer));
    struct rlimit before, small;
    getrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, SIG_IGN);
    int failed = 0, kept = 0;
    static const rlim_t limits[] = {0, 1000, 100000, 300000, 460000, 500000};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        small = before;
        small.rlim_cur = limits[i];
        setrlimit(RLIMIT_FSIZE, &small);
        BuildResult result;
        Error *error = build(shard, out, 2, &result);
        setrlimit(RLIMIT_FSIZE, &before);
        if (error != NULL) {
            failed++;
            kept += path_exists(partial);
            CHECK(strstr(error->message, "File too large") != NULL && strstr(error->message, partial) != NULL);
            CHECK(!path_exists(out));
            error_free(error);
        }
    }
    CHECK(failed >= 4 && failed < 6);
    CHECK(path_exists(out) && !path_exists(partial));
    Corpus corpus;
    CHECK_OK(corpus_open(out, &corpus));
    CHECK_OK(corpus_verify(&corpus));
    CHECK_I64(corpus.sets[0].documents + corpus.sets[1].documents, 20000);
    corpus_close(&corpus);
    free(shard);
    free(out);
    free(partial);
}

// One line a document, each a set of its own: the thousandth is one too many.
static void test_many_sets(void) {
    char *shard = in_folder("sets.jsonl"), *out = in_folder("sets");
    Buffer lines = {0};
    for (int i = 0; i < 1001; i++) {
        buffer_printf(&lines, "{\"text\": \"x\", \"meta\": {\"pile_set_name\": \"S %d\"}}\n", i);
    }
    BuildResult result;
    CHECK_OK(file_write(shard, lines.data, lines.size));
    CHECK_FAILS(build(shard, out, 2, &result), "sets.jsonl: more than 1000 sets in one shard");
    char *last = strstr(lines.data, "{\"text\": \"x\", \"meta\": {\"pile_set_name\": \"S 1000");
    CHECK_OK(file_write(shard, lines.data, (size_t)(last - lines.data)));
    CHECK_OK(build(shard, out, 2, &result));
    buffer_free(&lines);
    free(shard);
    free(out);
}

static void test_describe(void) {
    char *corpus = in_folder("huge1"), *odd = in_folder("huge1/odd_text_document.bin");
    Buffer out = {0};
    CHECK_OK(corpus_describe(corpus, true, &out));
    CHECK(strstr(out.data, "huge ") != NULL && strstr(out.data, "vocabulary 257") != NULL);
    CHECK(strstr(out.data, "1 bad line and") != NULL && strstr(out.data, "whole        yes") != NULL);
    buffer_clear(&out);
    CHECK_OK(token_file_describe(odd, true, &out));
    CHECK(strstr(out.data, "documents    1 500 in 1 500 sequences, the longest has 11 tokens") != NULL);
    CHECK(strstr(out.data, "ids          0 to 116") != NULL);
    buffer_clear(&out);
    Mapped bytes;
    CHECK_OK(file_map(odd, &bytes));
    char *changed = memory_new(bytes.size, 1);
    memcpy(changed, bytes.data, bytes.size);
    changed[100] ^= 2;
    CHECK_OK(file_write(odd, changed, bytes.size));
    CHECK_OK(corpus_describe(corpus, false, &out));
    CHECK_FAILS(corpus_describe(corpus, true, &out),
                "odd_text_document.bin is damaged: its bytes 0 to 31889 have the checksum");
    file_unmap(&bytes);
    buffer_free(&out);
    free(changed);
    free(corpus);
    free(odd);
}

int main(void) {
    RUN(test_huge);
    RUN(test_memory);
    RUN(test_once);
    RUN(test_unbroken);
    RUN(test_full_disk);
    RUN(test_many_sets);
    RUN(test_describe);
    return check_report();
}
