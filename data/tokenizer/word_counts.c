// How often each pre-token occurs in a corpus: see word_counts.h.
#include "data/tokenizer/word_counts.h"

#include "core/hash.h"

enum { PARTS = 64, BLOCK_BYTES = 32 << 20, LIMIT_BYTES = 32 << 20, TASK_BYTES = 1 << 20, BATCH = 1024, COUNT_BINS = 4096 };
enum { WORD_OVERHEAD = 8 };  // a word counts as its bytes and so much

struct WordCounts {
    ThreadPool *pool;
    const Pattern *pattern;
    size_t block_size, limit;
    Buffer block;
    size_t *ends;  // of the documents in the block
    size_t end_count, end_capacity;
    Range *tasks;  // stretches of documents
    size_t task_count, task_capacity;
    WordPart *local;  // threads x PARTS
    Splitter *splitters;
    WordPart parts[PARTS];
    int64_t dropped;
};

WordCounts *word_counts_create(ThreadPool *pool, const Pattern *pattern, size_t block, size_t limit) {
    WordCounts *counts = memory_zeroed(1, sizeof *counts);
    counts->pool = pool;
    counts->pattern = pattern;
    counts->block_size = block > 0 ? block : BLOCK_BYTES;
    counts->limit = limit > 0 ? limit : LIMIT_BYTES;
    counts->local = memory_zeroed((size_t)threads_count(pool) * PARTS, sizeof *counts->local);
    counts->splitters = memory_zeroed((size_t)threads_count(pool), sizeof *counts->splitters);
    return counts;
}

static void part_free(WordPart *part) {
    free(part->words);
    buffer_free(&part->bytes);
    *part = (WordPart){0};
}

void word_counts_free(WordCounts *counts) {
    if (counts == NULL) {
        return;
    }
    for (int i = 0; i < threads_count(counts->pool); i++) {
        splitter_free(&counts->splitters[i]);
        for (int part = 0; part < PARTS; part++) {
            part_free(&counts->local[i * PARTS + part]);
        }
    }
    for (int part = 0; part < PARTS; part++) {
        part_free(&counts->parts[part]);
    }
    buffer_free(&counts->block);
    free(counts->ends);
    free(counts->tasks);
    free(counts->local);
    free(counts->splitters);
    free(counts);
}

static void part_grow(WordPart *part) {
    size_t capacity = part->capacity ? 2 * part->capacity : 256;
    CountedWord *words = memory_zeroed(capacity, sizeof *words);
    for (size_t i = 0; i < part->capacity; i++) {
        if (part->words[i].hash != 0) {
            size_t place = (size_t)part->words[i].hash & (capacity - 1);
            while (words[place].hash != 0) {
                place = (place + 1) & (capacity - 1);
            }
            words[place] = part->words[i];
        }
    }
    free(part->words);
    part->words = words;
    part->capacity = capacity;
}

static void part_add(WordPart *part, uint64_t hash, const char *word, size_t size, int64_t count) {
    if (4 * part->count >= 3 * part->capacity) {
        part_grow(part);
    }
    size_t place = (size_t)hash & (part->capacity - 1);
    for (; part->words[place].hash != 0; place = (place + 1) & (part->capacity - 1)) {
        CountedWord *known = &part->words[place];
        if (known->hash == hash && known->size == size && memcmp(part->bytes.data + known->offset, word, size) == 0) {
            known->count += count;
            return;
        }
    }
    part->words[place] = (CountedWord){hash, (uint32_t)part->bytes.size, (uint32_t)size, count};
    part->count++;
    buffer_append(&part->bytes, word, size);
}

static inline uint64_t word_hash(const char *word, size_t size) {
    uint64_t hash = hash64(word, size);
    return hash != 0 ? hash : 1;
}

static void count_text(Splitter *splitter, const Pattern *pattern, WordPart *parts, const char *text, size_t size) {
    uint32_t lengths[BATCH];
    splitter_begin(splitter, pattern, text, size);
    for (size_t count; (count = splitter_next(splitter, lengths, BATCH)) > 0;) {
        for (size_t i = 0; i < count; i++) {
            for (size_t rest = lengths[i], part; rest > 0; rest -= part, text += part) {
                part = rest < COUNTED_LONGEST ? rest : COUNTED_LONGEST;
                uint64_t hash = word_hash(text, part);
                part_add(&parts[hash >> 58], hash, text, part, 1);
            }
        }
    }
}

static void count_task(void *context, int64_t task, int thread) {
    WordCounts *counts = context;
    for (int64_t i = counts->tasks[task].begin; i < counts->tasks[task].end; i++) {
        size_t begin = i > 0 ? counts->ends[i - 1] : 0;
        count_text(&counts->splitters[thread], counts->pattern, counts->local + (size_t)thread * PARTS,
                   counts->block.data + begin, counts->ends[i] - begin);
    }
}

// Adds what the threads counted to one part, and empties theirs.
static void gather_task(void *context, int64_t task, int thread) {
    WordCounts *counts = context;
    for (int t = 0; t < threads_count(counts->pool); t++) {
        WordPart *local = &counts->local[t * PARTS + task];
        for (size_t i = 0; i < local->capacity; i++) {
            const CountedWord *word = &local->words[i];
            if (word->hash != 0) {
                part_add(&counts->parts[task], word->hash, local->bytes.data + word->offset, word->size, word->count);
            }
        }
        part_free(local);
    }
}

// Drops the words of a part that occur at most `rarest` times.
static void part_drop(WordPart *part, int64_t rarest) {
    WordPart kept = {0};
    for (size_t i = 0; i < part->capacity; i++) {
        const CountedWord *word = &part->words[i];
        if (word->hash != 0 && word->count > rarest) {
            part_add(&kept, word->hash, part->bytes.data + word->offset, word->size, word->count);
        }
    }
    part_free(part);
    *part = kept;
}

// Where the words take more than the limit, drops the rarest until they take half of it. Words of equal count stay or go
// together.
static void drop_rare(WordCounts *counts) {
    size_t bins[COUNT_BINS] = {0}, total = 0;
    int64_t before = 0, after = 0, rarest = 0;
    for (int p = 0; p < PARTS; p++) {
        for (size_t i = 0; i < counts->parts[p].capacity; i++) {
            const CountedWord *word = &counts->parts[p].words[i];
            if (word->hash != 0) {
                bins[word->count < COUNT_BINS ? word->count : COUNT_BINS - 1] += word->size + WORD_OVERHEAD;
                total += word->size + WORD_OVERHEAD;
                before++;
            }
        }
    }
    if (total <= counts->limit) {
        return;
    }
    while (total > counts->limit / 2 && rarest + 2 < COUNT_BINS) {
        total -= bins[++rarest];
    }
    for (int p = 0; p < PARTS; p++) {
        part_drop(&counts->parts[p], rarest);
        after += (int64_t)counts->parts[p].count;
    }
    counts->dropped += before - after;
}

static void count_block(WordCounts *counts) {
    counts->task_count = 0;
    for (size_t begin = 0, end; begin < counts->end_count; begin = end) {
        size_t from = begin > 0 ? counts->ends[begin - 1] : 0;
        for (end = begin + 1; end < counts->end_count && counts->ends[end] - from <= TASK_BYTES; end++) {
        }
        Range task = {(int64_t)begin, (int64_t)end};
        array_push(counts->tasks, counts->task_count, counts->task_capacity, task);
    }
    threads_run(counts->pool, (int64_t)counts->task_count, count_task, counts);
    threads_run(counts->pool, PARTS, gather_task, counts);
    drop_rare(counts);
    buffer_clear(&counts->block);
    counts->end_count = 0;
}

void word_counts_add(WordCounts *counts, const char *text, size_t size) {
    while (size > 0) {
        if (size > counts->block_size - counts->block.size && counts->block.size > 0) {
            count_block(counts);
        }
        size_t part = size;
        if (part > counts->block_size) {  // cut between words if there is such a place, else between characters
            part = pattern_cut(text, 0, counts->block_size);
            for (part = part > 0 ? part : counts->block_size; part > 1 && ((uint8_t)text[part] & 0xC0) == 0x80; part--) {
            }
        }
        buffer_append(&counts->block, text, part);
        array_push(counts->ends, counts->end_count, counts->end_capacity, counts->block.size);
        text += part;
        size -= part;
    }
}

const WordPart *word_counts_finish(WordCounts *counts, int *parts) {
    count_block(counts);
    *parts = PARTS;
    return counts->parts;
}

int64_t word_counts_dropped(const WordCounts *counts) {
    return counts->dropped;
}
