// Building a corpus: see build.h.
//
//   OUT.partial/job.json           the fingerprint of what is being built: a change of it starts anew
//   OUT.partial/parts/000007.*     the part of the eighth shard (build_part.h)
//   OUT.partial/whole/             what becomes OUT
#include "data/tokens/build.h"

#include "core/clock.h"
#include "core/hash.h"
#include "core/json.h"
#include "core/log.h"
#include "core/staging.h"
#include "core/text.h"
#include "core/threads.h"
#include "data/text/set_names.h"
#include "data/text/shard_files.h"
#include "data/tokens/build_shards.h"
#include "data/tokens/corpus.h"

#include <errno.h>
#include <sys/stat.h>

enum { FORMAT_VERSION = 1, U16_VOCABULARY_LIMIT = 65500, JOB_LIMIT = 1 << 16, TOKENIZER_LIMIT = 1 << 30 };

// A set in the making: which of each part's sets it is.
typedef struct SetPlan {
    const char *name;
    char file[SET_NAME_BYTES + 32];  // its prefix without a folder
    int64_t *in_part;                // per part: the index of the name there, -1 if it has none
} SetPlan;

typedef struct Building {
    const BuildPlan *plan;
    BuildResult *result;
    Tokenizer *tokenizer;
    int bytes_per_token;
    uint64_t job;
    Strings files;  // the shards, each once
    CorpusInput *inputs;
    ShardJob *shards;
    int shard_count;
    Staging staging;
    Part *parts;
    SetPlan *sets;
    CorpusSet *made;  // what became of the sets
    int set_count;
    Progress progress;
    Error *error;  // the first one of stage two
} Building;

static int64_t word_most(const BuildPlan *plan) {
    return plan->word_most > 0 ? plan->word_most : BUILD_WORD_MOST;
}

// Looks at the shards. The fingerprint covers their paths, sizes and times of change, and what decides their tokens.
static Error *take_inputs(Building *building) {
    const BuildPlan *plan = building->plan;
    TRY(shard_files_once(&plan->inputs, &building->files));
    if (building->files.count == 0) {
        return usage_error("there is no shard to build from: give --input");
    }
    building->shards = memory_zeroed(building->files.count + 1, sizeof *building->shards);
    building->inputs = memory_zeroed(building->files.count + 1, sizeof *building->inputs);
    Hasher *hasher = hasher_create();
    int64_t head[4] = {FORMAT_VERSION, (int64_t)tokenizer_fingerprint(building->tokenizer), building->bytes_per_token,
                       tokenizer_end_of_text(building->tokenizer)};
    int64_t options[2] = {word_most(plan), plan->replace_surrogates};
    hasher_add(hasher, head, sizeof head);
    if (options[0] != BUILD_WORD_MOST || plan->replace_surrogates) {
        hasher_add(hasher, options, sizeof options);
    }
    Error *error = NULL;
    for (size_t i = 0; i < building->files.count && error == NULL; i++) {
        const char *path = building->files.items[i];
        struct stat info;
        if (stat(path, &info) != 0) {
            error = error_system(errno, "%s cannot be read", path);
            break;
        }
        int64_t words[3] = {info.st_size, info.st_mtim.tv_sec, info.st_mtim.tv_nsec};
        hasher_add(hasher, path, strlen(path) + 1);
        hasher_add(hasher, words, sizeof words);
        int k = building->shard_count++;
        building->shards[k].shard = path;
        building->inputs[k].name = memory_string(path_name(path));
        building->inputs[k].bytes = info.st_size;
    }
    building->job = hasher_result(hasher);
    hasher_destroy(hasher);
    return error;
}

// Whether OUT is already what this job makes.
static bool built_before(Building *building) {
    Corpus corpus;
    char *path = path_join(building->plan->out, CORPUS_MANIFEST);
    bool same = false;
    if (path_exists(path)) {
        Error *error = corpus_open(building->plan->out, &corpus);
        if (error == NULL) {
            same = corpus.job == building->job;
            building->result->bad_lines = corpus.bad_lines;
            corpus_close(&corpus);
        }
        error_free(error);
    }
    free(path);
    return same;
}

// Makes the parts folder ours: removes what another job left there.
static Error *claim_parts(Building *building, const char *parts) {
    char *path = path_join(building->staging.partial, "job.json");
    uint64_t job = 0;
    json_t *document = NULL;
    bool found = path_exists(path);
    Error *error = found ? json_read_file(path, JOB_LIMIT, &document) : NULL;
    if (error == NULL && found) {
        error = json_field_hex64(document, path, "job", &job);
    }
    json_decref(document);
    if (error != NULL || job != building->job) {
        error_free(error);
        if (found) {
            log_info("%s holds the beginnings of another build (other shards or tokenizer): starting anew",
                     building->staging.partial);
        }
        error = folder_remove(parts);
        document = json_pack("{s:o}", "job", json_hex64(building->job));
        if (error == NULL) {
            error = json_write_file(path, document);
        }
        json_decref(document);
    }
    free(path);
    return error != NULL ? error : folder_create(parts);
}

// Stage one: makes the parts that are not there yet.
static Error *make_parts(Building *building, ThreadPool *pool) {
    BuildResult *result = building->result;
    ShardJob *jobs = memory_new((size_t)building->shard_count + 1, sizeof *jobs);
    ShardsPlan plan = {.tokenizer = building->tokenizer,
                       .bytes_per_token = building->bytes_per_token,
                       .job = building->job,
                       .jobs = jobs,
                       .bad_lines_most = building->plan->bad_lines_most,
                       .word_most = word_most(building->plan),
                       .window_most = building->plan->window_most,
                       .replace_surrogates = building->plan->replace_surrogates};
    for (int i = 0; i < building->shard_count; i++) {
        Part part;
        Error *error = part_open(building->shards[i].part, building->bytes_per_token, building->job, &part);
        if (error == NULL) {
            plan.bad_lines += part.counts.bad_lines;
            result->shards_before++;
            part_close(&part);
        } else {
            jobs[plan.job_count++] = building->shards[i];
            plan.stored_bytes += building->inputs[i].bytes;
            error_free(error);
        }
    }
    if (result->shards_before > 0) {
        log_info("continuing: %d of %d shards were finished before", result->shards_before, building->shard_count);
    }
    Error *error = NULL;
    if (plan.bad_lines > plan.bad_lines_most) {
        error = failure("the shards that were finished before have %lld bad lines, --max-bad-lines allows %lld",
                        (long long)plan.bad_lines, (long long)plan.bad_lines_most);
    } else if (plan.job_count > 0) {
        error = build_shards(&plan, pool);
    }
    result->bad_lines = plan.bad_lines;
    if (error != NULL && plan.finished + result->shards_before > 0) {
        log_info("finished shards stay in %s; the same command continues from there", building->staging.partial);
    }
    free(jobs);
    return error;
}

static int compare_sets(const void *a, const void *b) {
    return strcmp(((const SetPlan *)a)->name, ((const SetPlan *)b)->name);
}

static SetPlan *find_set(Building *building, const char *name) {
    for (int i = 0; i < building->set_count; i++) {
        if (strcmp(building->sets[i].name, name) == 0) {
            return &building->sets[i];
        }
    }
    return NULL;
}

// Gives each set its file's name; sets whose names look alike as file names are numbered.
static void name_files(Building *building) {
    for (int i = 0; i < building->set_count; i++) {
        char plain[SET_NAME_BYTES];
        set_name_file(building->sets[i].name, plain);
        snprintf(building->sets[i].file, sizeof building->sets[i].file, "%s_text_document", plain);
        for (int number = 2, k = 0; k < i;) {
            if (strcasecmp(building->sets[k].file, building->sets[i].file) == 0) {
                snprintf(building->sets[i].file, sizeof building->sets[i].file, "%s_%d_text_document", plain, number++);
                k = 0;
            } else {
                k++;
            }
        }
    }
}

// Opens all parts and lists their sets, sorted by name.
static Error *plan_sets(Building *building) {
    building->parts = memory_zeroed((size_t)building->shard_count, sizeof *building->parts);
    for (int p = 0; p < building->shard_count; p++) {
        TRY(part_open(building->shards[p].part, building->bytes_per_token, building->job, &building->parts[p]));
    }
    int capacity = 0;
    for (int p = 0; p < building->shard_count; p++) {
        const Strings *names = &building->parts[p].sets;
        for (size_t n = 0; n < names->count; n++) {
            SetPlan *set = find_set(building, names->items[n]);
            if (set == NULL) {
                SetPlan fresh = {.name = names->items[n]};
                array_push(building->sets, building->set_count, capacity, fresh);
                set = &building->sets[building->set_count - 1];
                set->in_part = memory_new((size_t)building->shard_count, sizeof *set->in_part);
                memset(set->in_part, 0xFF, (size_t)building->shard_count * sizeof *set->in_part);
            }
            set->in_part[p] = (int64_t)n;
        }
    }
    if (building->set_count > PART_SETS_MOST) {
        return failure("more than %d sets in all shards: is \"pile_set_name\" something else there?", PART_SETS_MOST);
    }
    if (building->set_count > 0) {
        qsort(building->sets, (size_t)building->set_count, sizeof *building->sets, compare_sets);
    }
    name_files(building);
    return NULL;
}

// Appends a part's documents of one set.
static Error *copy_documents(Building *building, int p, int64_t index, TokenWriter *writer, CorpusSet *set) {
    const Part *part = &building->parts[p];
    const DocumentRecord *records = part->documents.data;
    const char *tokens = part->tokens.data;
    for (int64_t d = 0; d < part->counts.documents; d++) {
        int64_t bytes = records[d].tokens * building->bytes_per_token;
        if (records[d].set == index) {
            TRY(token_writer_append_raw(writer, tokens, (size_t)records[d].tokens));
            TRY(token_writer_end_document(writer));
            set->documents++;
            set->tokens += records[d].tokens;
            set->text_bytes += records[d].text_bytes;
            progress_add(&building->progress, bytes);
        }
        tokens += bytes;
    }
    return NULL;
}

// Stage two: writes one set's token file.
static void make_set(void *context, int64_t task, int thread) {
    Building *building = context;
    const SetPlan *plan = &building->sets[task];
    CorpusSet *set = &building->made[task];
    if (__atomic_load_n(&building->error, __ATOMIC_ACQUIRE) != NULL) {
        return;
    }
    TokenWriter *writer = NULL;
    set->name = memory_string(plan->name);
    set->prefix = path_join(building->staging.whole, plan->file);
    Error *error = token_writer_create(set->prefix, building->bytes_per_token, &writer);
    for (int p = 0; p < building->shard_count && error == NULL; p++) {
        if (plan->in_part[p] >= 0) {
            error = copy_documents(building, p, plan->in_part[p], writer, set);
        }
    }
    if (error == NULL) {
        TokenSums sums = {0};
        error = token_writer_commit_sums(writer, &sums);
        set->checksum = sums.bin;
        set->index_checksum = sums.idx;
        set->sums_checksum = sums.sums;
    } else {
        token_writer_abandon(writer);
    }
    error_keep(&building->error, error);
}

// Copies the tokenizer's file into the corpus. *name is the copy's path.
static Error *copy_tokenizer(Building *building, char **copy) {
    Buffer text = {0};
    Error *error = file_read(building->plan->tokenizer, TOKENIZER_LIMIT, &text);
    size_t i = 0;
    while (i < text.size && (text.data[i] == ' ' || text.data[i] == '\n' || text.data[i] == '\t' || text.data[i] == '\r')) {
        i++;
    }
    bool json = i < text.size && text.data[i] == '{';
    *copy = path_join(building->staging.whole, json ? "tokenizer.json" : "tokenizer.tiktoken");
    Buffer whole = {0};  // under its new name it must be read as it was under its own
    buffer_text(&whole, tokenizer_declaration(building->tokenizer));
    buffer_append(&whole, text.data, text.size);
    if (error == NULL) {
        error = file_write(*copy, whole.data, whole.size);
    }
    buffer_free(&text);
    buffer_free(&whole);
    return error;
}

// Stage three: tokenizer and manifest.
static Error *describe(Building *building) {
    Corpus corpus = {.sets = building->made,
                     .set_count = building->set_count,
                     .vocabulary = tokenizer_vocabulary(building->tokenizer),
                     .end_of_text = tokenizer_end_of_text(building->tokenizer),
                     .tokenizer_fingerprint = tokenizer_fingerprint(building->tokenizer),
                     .inputs = building->inputs,
                     .input_count = building->shard_count,
                     .job = building->job};
    for (int p = 0; p < building->shard_count; p++) {
        corpus.bad_lines += building->parts[p].counts.bad_lines;
        corpus.empty_documents += building->parts[p].counts.empty_documents;
    }
    Error *error = copy_tokenizer(building, &corpus.tokenizer_path);
    if (error == NULL) {
        error = corpus_write_manifest(&corpus, building->staging.whole);
    }
    free(corpus.tokenizer_path);
    return error;
}

static Error *build(Building *building, ThreadPool *pool) {
    char *parts = path_join(building->staging.partial, "parts");
    Error *error = claim_parts(building, parts);
    for (int i = 0; i < building->shard_count; i++) {
        building->shards[i].part = memory_format("%s/%06d", parts, i);
    }
    free(parts);
    TRY(error);
    TRY(make_parts(building, pool));
    TRY(plan_sets(building));
    int64_t tokens = 0;
    for (int p = 0; p < building->shard_count; p++) {
        tokens += building->parts[p].counts.tokens;
    }
    if (tokens == 0) {
        char shards[64];
        return failure("there is no document with text in %s", text_number_of(shards, building->shard_count, "shard"));
    }
    building->made = memory_zeroed((size_t)building->set_count, sizeof *building->made);
    progress_begin(&building->progress, "sorting documents into sets", "B", (double)tokens * building->bytes_per_token);
    threads_run(pool, building->set_count, make_set, building);
    progress_end(&building->progress);
    TRY(building->error);
    return describe(building);
}

static void release(Building *building) {
    for (int i = 0; i < building->shard_count; i++) {
        free(building->shards[i].part);
        free(building->inputs[i].name);
        if (building->parts != NULL) {
            part_close(&building->parts[i]);
        }
    }
    for (int i = 0; i < building->set_count; i++) {
        free(building->sets[i].in_part);
        if (building->made != NULL) {
            free(building->made[i].name);
            free(building->made[i].prefix);
        }
    }
    free(building->shards);
    strings_free(&building->files);
    free(building->inputs);
    free(building->parts);
    free(building->sets);
    free(building->made);
    tokenizer_free(building->tokenizer);
}

// Whether OUT.partial holds a finished part, which another run can use.
static bool worth_keeping(const Building *building) {
    for (int i = 0; i < building->shard_count; i++) {
        char *path = memory_format("%s.json", building->shards[i].part);
        bool found = path_exists(path);
        free(path);
        if (found) {
            return true;
        }
    }
    return false;
}

static Error *stage(Building *building) {
    BuildResult *result = building->result;
    TRY(take_inputs(building));
    result->shards = building->shard_count;
    if (built_before(building)) {
        result->done_before = true;
        return staging_clear(building->plan->out);  // a kill between the last rename and the clean-up leaves the parts
    }
    TRY(staging_begin(building->plan->out, true, &building->staging));
    ThreadPool *pool = threads_create(building->plan->workers);
    Error *error = build(building, pool);
    threads_destroy(pool);
    if (error != NULL) {
        staging_abandon(&building->staging, worth_keeping(building));
        return error;
    }
    return staging_commit(&building->staging);
}

Error *build_corpus(const BuildPlan *plan, BuildResult *result) {
    double start = clock_seconds();
    *result = (BuildResult){0};
    Building building = {.plan = plan, .result = result};
    TRY(tokenizer_load(plan->tokenizer, &building.tokenizer));
    building.bytes_per_token = tokenizer_vocabulary(building.tokenizer) < U16_VOCABULARY_LIMIT ? 2 : 4;
    Error *error = stage(&building);
    release(&building);
    result->seconds = clock_seconds() - start;
    return error;
}
