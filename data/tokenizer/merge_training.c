// Training of byte-pair encoding: see merge_training.h.
//
// All words stand in one array of symbols, linked with their neighbours in the word. A table has for each pair of ids its count
// and the list of its places; merging a pair visits its places and changes the counts of the pairs beside them. Places that
// other merges made stale stay in the lists and are recognised by their ids. A heap holds pairs by count: a pair enters when
// its count rises, and one that comes up with a count that has fallen since enters again with the true one.
#include "data/tokenizer/merge_training.h"

#include "core/hash.h"
#include "core/log.h"

#include <stdlib.h>

#define NOWHERE UINT32_MAX

typedef struct Symbol {
    int32_t id;  // -1: merged into the one before
    uint32_t before, after, word;
} Symbol;

typedef struct Place {
    uint32_t symbol, next;
} Place;

typedef struct PairRecord {
    uint64_t key;  // (left + 1) << 32 | right; 0: empty
    int64_t count;
    uint32_t first, last;  // places
    bool risen;            // in this step
} PairRecord;

typedef struct Ranked {
    int64_t count;
    uint64_t key;
} Ranked;

typedef struct Learner {
    Symbol *symbols;
    int64_t *word_counts;
    Place *places;
    size_t place_count, place_capacity;
    uint32_t free_places;
    PairRecord *pairs;
    size_t pair_count, pair_capacity;
    Ranked *heap;
    size_t heap_count, heap_capacity;
    uint64_t *risen;  // keys
    size_t risen_count, risen_capacity;
    uint32_t *sorted;
    size_t sorted_count, sorted_capacity;
    Buffer bytes;      // of the tokens
    uint64_t *ends;    // of their bytes
    int32_t *by_text;  // tokens by their bytes, open addressing, -1: empty
    size_t text_mask;
} Learner;

static uint64_t make_key(int32_t left, int32_t right) {
    return (uint64_t)(left + 1) << 32 | (uint32_t)right;
}

static size_t pair_place(const Learner *learner, uint64_t key) {
    size_t mask = learner->pair_capacity - 1, i = (size_t)((key ^ key >> 31) * 0x9E3779B97F4A7C15u >> 20) & mask;
    while (learner->pairs[i].key != 0 && learner->pairs[i].key != key) {
        i = (i + 1) & mask;
    }
    return i;
}

static PairRecord *find_pair(Learner *learner, uint64_t key) {
    PairRecord *pair = &learner->pairs[pair_place(learner, key)];
    return pair->key == key ? pair : NULL;
}

// The record of a pair, made if there is none. Valid until the next call.
static PairRecord *take_pair(Learner *learner, uint64_t key) {
    if (4 * learner->pair_count >= 3 * learner->pair_capacity) {
        PairRecord *old = learner->pairs;
        size_t old_capacity = learner->pair_capacity;
        learner->pair_capacity = old_capacity ? 2 * old_capacity : 1 << 16;
        learner->pairs = memory_zeroed(learner->pair_capacity, sizeof *learner->pairs);
        for (size_t i = 0; i < old_capacity; i++) {
            if (old[i].key != 0) {
                learner->pairs[pair_place(learner, old[i].key)] = old[i];
            }
        }
        free(old);
    }
    PairRecord *pair = &learner->pairs[pair_place(learner, key)];
    if (pair->key == 0) {
        *pair = (PairRecord){.key = key, .first = NOWHERE, .last = NOWHERE};
        learner->pair_count++;
    }
    return pair;
}

static void add_place(Learner *learner, PairRecord *pair, uint32_t symbol) {
    uint32_t place = learner->free_places;
    if (place != NOWHERE) {
        learner->free_places = learner->places[place].next;
    } else {
        ensure(learner->place_count < NOWHERE, "too many places");
        place = (uint32_t)learner->place_count;
        Place empty = {0, 0};
        array_push(learner->places, learner->place_count, learner->place_capacity, empty);
    }
    learner->places[place] = (Place){symbol, NOWHERE};
    if (pair->first == NOWHERE) {
        pair->first = place;
    } else {
        learner->places[pair->last].next = place;
    }
    pair->last = place;
}

// One more place for the pair that starts at `symbol`.
static void raise_pair(Learner *learner, uint32_t symbol) {
    const Symbol *left = &learner->symbols[symbol];
    PairRecord *pair = take_pair(learner, make_key(left->id, learner->symbols[left->after].id));
    pair->count += learner->word_counts[left->word];
    add_place(learner, pair, symbol);
    if (!pair->risen) {
        pair->risen = true;
        array_push(learner->risen, learner->risen_count, learner->risen_capacity, pair->key);
    }
}

static void lower_pair(Learner *learner, uint32_t symbol) {
    const Symbol *left = &learner->symbols[symbol];
    PairRecord *pair = find_pair(learner, make_key(left->id, learner->symbols[left->after].id));
    if (pair != NULL) {
        pair->count -= learner->word_counts[left->word];
    }
}

// Whether a comes out of the heap before b.
static bool ranks_before(Ranked a, Ranked b) {
    return a.count != b.count ? a.count > b.count : a.key < b.key;
}

static void heap_push(Learner *learner, Ranked item) {
    array_push(learner->heap, learner->heap_count, learner->heap_capacity, item);
    size_t i = learner->heap_count - 1;
    for (; i > 0 && ranks_before(item, learner->heap[(i - 1) / 2]); i = (i - 1) / 2) {
        learner->heap[i] = learner->heap[(i - 1) / 2];
    }
    learner->heap[i] = item;
}

static Ranked heap_pop(Learner *learner) {
    Ranked top = learner->heap[0], item = learner->heap[--learner->heap_count];
    size_t i = 0, count = learner->heap_count;
    for (size_t child; (child = 2 * i + 1) < count; i = child) {
        child += child + 1 < count && ranks_before(learner->heap[child + 1], learner->heap[child]);
        if (!ranks_before(learner->heap[child], item)) {
            break;
        }
        learner->heap[i] = learner->heap[child];
    }
    learner->heap[i] = item;
    return top;
}

static void push_risen(Learner *learner) {
    for (size_t i = 0; i < learner->risen_count; i++) {
        PairRecord *pair = find_pair(learner, learner->risen[i]);
        pair->risen = false;
        heap_push(learner, (Ranked){pair->count, pair->key});
    }
    learner->risen_count = 0;
}

static Error *lay_out_words(Learner *learner, const WordPart *parts, int part_count) {
    size_t words = 0, symbols = 0;
    void *memory;
    for (int p = 0; p < part_count; p++) {
        for (size_t i = 0; i < parts[p].capacity; i++) {
            bool counts = parts[p].words[i].hash != 0 && parts[p].words[i].size > 1;
            words += counts;
            symbols += counts ? parts[p].words[i].size : 0;
        }
    }
    ensure(symbols < NOWHERE, "too many symbols");
    TRY(memory_try(words + 1, sizeof *learner->word_counts, "the counts of the corpus's words", &memory));
    learner->word_counts = memory;
    TRY(memory_try(symbols + 1, sizeof *learner->symbols, "the words of the corpus", &memory));
    learner->symbols = memory;
    words = symbols = 0;
    for (int p = 0; p < part_count; p++) {
        for (size_t i = 0; i < parts[p].capacity; i++) {
            const CountedWord *word = &parts[p].words[i];
            if (word->hash == 0 || word->size < 2) {
                continue;
            }
            learner->word_counts[words] = word->count;
            for (uint32_t k = 0; k < word->size; k++, symbols++) {
                learner->symbols[symbols] = (Symbol){.id = (uint8_t)parts[p].bytes.data[word->offset + k],
                                                     .before = k > 0 ? (uint32_t)symbols - 1 : NOWHERE,
                                                     .after = k + 1 < word->size ? (uint32_t)symbols + 1 : NOWHERE,
                                                     .word = (uint32_t)words};
            }
            words++;
        }
    }
    for (size_t i = 0; i < symbols; i++) {
        if (learner->symbols[i].after != NOWHERE) {
            raise_pair(learner, (uint32_t)i);
        }
    }
    push_risen(learner);
    return NULL;
}

// The token that left and right make, new if its bytes are.
static int32_t joined_token(Learner *learner, int32_t left, int32_t right, int32_t *tokens) {
    const int32_t sides[2] = {left, right};
    size_t start = learner->bytes.size;
    for (int i = 0; i < 2; i++) {
        size_t from = sides[i] > 0 ? learner->ends[sides[i] - 1] : 0, size = learner->ends[sides[i]] - from;
        buffer_reserve(&learner->bytes, size);
        buffer_append(&learner->bytes, learner->bytes.data + from, size);
    }
    size_t size = learner->bytes.size - start, i = hash64(learner->bytes.data + start, size) & learner->text_mask;
    for (; learner->by_text[i] >= 0; i = (i + 1) & learner->text_mask) {
        int32_t id = learner->by_text[i];
        size_t from = id > 0 ? learner->ends[id - 1] : 0;
        if (learner->ends[id] - from == size && memcmp(learner->bytes.data + from, learner->bytes.data + start, size) == 0) {
            learner->bytes.size = start;
            return id;
        }
    }
    learner->by_text[i] = *tokens;
    learner->ends[*tokens] = learner->bytes.size;
    return (*tokens)++;
}

static void merge_place(Learner *learner, uint32_t place, int32_t left, int32_t right, int32_t id) {
    Symbol *first = &learner->symbols[place];
    if (first->id != left || first->after == NOWHERE || learner->symbols[first->after].id != right) {
        return;
    }
    Symbol *second = &learner->symbols[first->after];
    if (first->before != NOWHERE) {
        lower_pair(learner, first->before);
    }
    if (second->after != NOWHERE) {
        lower_pair(learner, first->after);
    }
    first->id = id;
    first->after = second->after;
    second->id = -1;
    if (first->before != NOWHERE) {
        raise_pair(learner, first->before);
    }
    if (first->after != NOWHERE) {
        learner->symbols[first->after].before = place;
        raise_pair(learner, place);
    }
}

static int compare_places(const void *a, const void *b) {
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return left < right ? -1 : left > right;
}

static void merge_pair(Learner *learner, uint64_t key, int32_t id) {
    int32_t left = (int32_t)(key >> 32) - 1, right = (int32_t)(uint32_t)key;
    PairRecord *pair = find_pair(learner, key);
    uint32_t place = pair->first;
    pair->first = pair->last = NOWHERE;
    learner->sorted_count = 0;
    while (place != NOWHERE) {
        uint32_t next = learner->places[place].next;
        array_push(learner->sorted, learner->sorted_count, learner->sorted_capacity, learner->places[place].symbol);
        learner->places[place].next = learner->free_places;
        learner->free_places = place;
        place = next;
    }
    if (left == right) {  // in a run of equals the leftmost two merge
        qsort(learner->sorted, learner->sorted_count, sizeof *learner->sorted, compare_places);
    }
    for (size_t i = 0; i < learner->sorted_count; i++) {
        merge_place(learner, learner->sorted[i], left, right, id);
    }
    find_pair(learner, key)->count = 0;
    push_risen(learner);
}

static void learner_free(Learner *learner) {
    free(learner->symbols);
    free(learner->word_counts);
    free(learner->places);
    free(learner->pairs);
    free(learner->heap);
    free(learner->risen);
    free(learner->sorted);
    buffer_free(&learner->bytes);
    free(learner->ends);
    free(learner->by_text);
}

static void prepare_tokens(Learner *learner, int32_t tokens) {
    size_t places = 1024;
    while (places < 2 * (size_t)tokens) {
        places *= 2;
    }
    learner->text_mask = places - 1;
    learner->by_text = memory_new(places, sizeof *learner->by_text);
    memset(learner->by_text, -1, places * sizeof *learner->by_text);
    learner->ends = memory_new((size_t)tokens + 256, sizeof *learner->ends);
    for (int byte = 0; byte < 256; byte++) {
        buffer_byte(&learner->bytes, (char)byte);
        learner->ends[byte] = learner->bytes.size;
    }
}

Error *merges_learn(const WordPart *parts, int part_count, int32_t tokens, Merges *out) {
    Learner learner = {.free_places = NOWHERE};
    *out = (Merges){.tokens = 256};
    take_pair(&learner, make_key(0, 0));
    prepare_tokens(&learner, tokens);
    Error *error = tokens > 256 ? lay_out_words(&learner, parts, part_count) : NULL;
    Progress progress;
    progress_begin(&progress, "learn merges", "tokens", tokens);
    while (error == NULL && out->tokens < tokens && learner.heap_count > 0) {
        Ranked top = heap_pop(&learner);
        int64_t count = find_pair(&learner, top.key)->count;
        if (count != top.count) {
            if (count > 0 && count < top.count) {
                heap_push(&learner, (Ranked){count, top.key});
            }
            continue;
        }
        if (count < 2) {
            break;
        }
        Merge merge = {(int32_t)(top.key >> 32) - 1, (int32_t)(uint32_t)top.key, 0};
        int32_t before = out->tokens;
        merge.id = joined_token(&learner, merge.left, merge.right, &out->tokens);
        array_push(out->items, out->count, out->capacity, merge);
        merge_pair(&learner, top.key, merge.id);
        progress_add(&progress, out->tokens - before);
    }
    progress_end(&progress);
    learner_free(&learner);
    return error;
}

void merges_free(Merges *merges) {
    free(merges->items);
    *merges = (Merges){0};
}

void merges_bytes(const Merges *merges, Buffer *bytes, uint64_t **ends) {
    *ends = memory_new((size_t)merges->tokens, sizeof **ends);
    for (int byte = 0; byte < 256; byte++) {
        buffer_byte(bytes, (char)byte);
        (*ends)[byte] = bytes->size;
    }
    int32_t known = 256;
    for (size_t m = 0; m < merges->count; m++) {
        if (merges->items[m].id < known) {
            continue;
        }
        const int32_t sides[2] = {merges->items[m].left, merges->items[m].right};
        for (int i = 0; i < 2; i++) {
            size_t from = sides[i] > 0 ? (*ends)[sides[i] - 1] : 0, size = (*ends)[sides[i]] - from;
            buffer_reserve(bytes, size);
            buffer_append(bytes, bytes->data + from, size);
        }
        (*ends)[known++] = bytes->size;
    }
}
