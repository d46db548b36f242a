// Byte-pair encoding of one pre-token: see bpe.h.
//
// Short words keep the ranks of their adjacent pairs in an array and search all of it for the lowest; long ones keep a heap of
// (rank, position) over a linked list, where what a merge made stale is recognised when it comes up.
#include "data/tokenizer/bpe.h"

enum { SHORT_WORD = 48, PLACE_BITS = 6, SHORT_WORD_MOST = 1 << PLACE_BITS };
#define NO_RANK INT32_MAX

Error *bpe_create(Bpe *bpe, size_t pairs) {
    *bpe = (Bpe){.shift = 60};
    while ((size_t)1 << (64 - bpe->shift) < 2 * pairs) {
        bpe->shift--;
    }
    memset(bpe->byte_ids, -1, sizeof bpe->byte_ids);
    void *table;
    size_t bytes = ((size_t)1 << (64 - bpe->shift)) * sizeof *bpe->pairs;
    TRY(memory_try(bytes, 1, "the table of merges", &table));
    free(table);  // it can be had; what follows ends the program where it cannot
    bpe->pairs = memory_tensor(bytes);
    return NULL;
}

static inline uint64_t pair_key(int32_t left, int32_t right) {
    return (uint64_t)((uint32_t)left + 1) << 32 | (uint32_t)right;
}

static inline size_t pair_place(const Bpe *bpe, uint64_t key) {
    return (size_t)(((key ^ key >> 29) * 0x9E3779B97F4A7C15u) >> bpe->shift);
}

const BpePair *bpe_find(const Bpe *bpe, int32_t left, int32_t right) {
    uint64_t key = pair_key(left, right);
    size_t mask = ((size_t)1 << (64 - bpe->shift)) - 1;
    for (size_t i = pair_place(bpe, key);; i = (i + 1) & mask) {
        if (bpe->pairs[i].key == key) {
            return &bpe->pairs[i];
        }
        if (bpe->pairs[i].key == 0) {
            return NULL;
        }
    }
}

void bpe_add(Bpe *bpe, int32_t left, int32_t right, int32_t rank, int32_t id) {
    uint64_t key = pair_key(left, right);
    size_t mask = ((size_t)1 << (64 - bpe->shift)) - 1, i = pair_place(bpe, key);
    while (bpe->pairs[i].key != 0 && bpe->pairs[i].key != key) {
        i = (i + 1) & mask;
    }
    if (bpe->pairs[i].key == 0) {
        ensure(2 * ++bpe->count <= mask + 1, "more pairs than were announced");
    }
    bpe->pairs[i] = (BpePair){key, rank, id};
}

void bpe_free(Bpe *bpe) {
    if (bpe->pairs != NULL) {
        memory_tensor_free(bpe->pairs, ((size_t)1 << (64 - bpe->shift)) * sizeof *bpe->pairs);
    }
    bpe->pairs = NULL;
}

void bpe_scratch_free(BpeScratch *scratch) {
    free(scratch->links);
    free(scratch->heap);
    *scratch = (BpeScratch){0};
}

static inline int32_t pair_rank(const Bpe *bpe, int32_t left, int32_t right, int32_t *id) {
    const BpePair *pair = bpe_find(bpe, left, right);
    if (pair == NULL) {
        return NO_RANK;
    }
    *id = pair->id;
    return pair->rank;
}

// The pair that starts at place i as one number, its rank before its place: the lowest is the one to merge.
static inline int32_t pair_order(const Bpe *bpe, const int32_t *ids, unsigned i, unsigned after, int32_t *merged) {
    int32_t rank = pair_rank(bpe, ids[i], ids[after], &merged[i]);
    return rank == NO_RANK ? NO_RANK : (int32_t)((uint32_t)rank << PLACE_BITS | i);
}

static size_t merge_short(const Bpe *bpe, BpeScratch *scratch, const uint8_t *word, size_t size, int32_t *out) {
    int32_t ids[SHORT_WORD], order[SHORT_WORD], merged[SHORT_WORD];
    uint8_t before[SHORT_WORD], after[SHORT_WORD];  // places beside a place; merged ones are passed over
    unsigned count = 0;
    for (size_t i = 0; i < size; i++) {
        ids[count] = bpe->byte_ids[word[i]];
        before[count] = (uint8_t)(count - 1);
        after[count] = (uint8_t)(count + 1);
        count += ids[count] >= 0;
    }
    for (unsigned i = 0; i + 1 < count; i++) {  // all at once, then wait
        __builtin_prefetch(&bpe->pairs[pair_place(bpe, pair_key(ids[i], ids[i + 1]))]);
    }
    for (unsigned i = 0; i + 1 < count; i++) {
        order[i] = pair_order(bpe, ids, i, i + 1, merged);
    }
    scratch->work += size;
    for (;;) {
        int32_t best = NO_RANK;
        for (unsigned i = 0; i + 1 < count; i++) {
            best = order[i] < best ? order[i] : best;
        }
        if (best == NO_RANK) {
            break;
        }
        scratch->work++;
        unsigned left = (unsigned)best & (SHORT_WORD_MOST - 1), right = after[left], next = after[right];
        ids[left] = merged[left];
        after[left] = (uint8_t)next;
        order[left] = order[right] = NO_RANK;
        if (left > 0) {
            __builtin_prefetch(&bpe->pairs[pair_place(bpe, pair_key(ids[before[left]], ids[left]))]);
        }
        if (next < count) {
            before[next] = (uint8_t)left;
            order[left] = pair_order(bpe, ids, left, next, merged);
        }
        if (left > 0) {
            order[before[left]] = pair_order(bpe, ids, before[left], left, merged);
        }
    }
    size_t written = 0;
    for (unsigned i = 0; i < count; i = after[i]) {
        out[written++] = ids[i];
    }
    return written;
}

typedef struct Link {
    int32_t before, after;  // -1: none
    int32_t id;             // -1: merged into the one before
} Link;

// A binary heap of rank << 32 | position, the lowest on top.
typedef struct Heap {
    uint64_t *items;
    size_t count;
} Heap;

static void heap_sink(Heap *heap, size_t i) {
    uint64_t item = heap->items[i];
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= heap->count) {
            break;
        }
        child += child + 1 < heap->count && heap->items[child + 1] < heap->items[child];
        if (heap->items[child] >= item) {
            break;
        }
        heap->items[i] = heap->items[child];
        i = child;
    }
    heap->items[i] = item;
}

static void heap_push(Heap *heap, uint64_t item) {
    size_t i = heap->count++;
    while (i > 0 && heap->items[(i - 1) / 2] > item) {
        heap->items[i] = heap->items[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap->items[i] = item;
}

static void *scratch_room(void **memory, size_t *capacity, size_t count, size_t size) {
    if (*capacity < count) {
        free(*memory);
        *capacity = count + count / 2;
        *memory = memory_new(*capacity, size);
    }
    return *memory;
}

static size_t merge_long(const Bpe *bpe, BpeScratch *scratch, const uint8_t *word, size_t size, int32_t *out) {
    // Each merge takes one entry from the heap and adds two at most, and there are fewer merges than bytes.
    Link *links = scratch_room(&scratch->links, &scratch->link_capacity, size, sizeof *links);
    Heap heap = {scratch_room(&scratch->heap, &scratch->heap_capacity, 2 * size, sizeof *heap.items), 0};
    int32_t count = 0, id = 0;
    for (size_t i = 0; i < size; i++) {
        if (bpe->byte_ids[word[i]] >= 0) {
            links[count] = (Link){count - 1, count + 1, bpe->byte_ids[word[i]]};
            count++;
        }
    }
    for (int32_t i = 0; i + 1 < count; i++) {
        int32_t rank = pair_rank(bpe, links[i].id, links[i + 1].id, &id);
        if (rank != NO_RANK) {
            heap.items[heap.count++] = (uint64_t)rank << 32 | (uint32_t)i;
        }
    }
    for (size_t i = heap.count / 2; i-- > 0;) {
        heap_sink(&heap, i);
    }
    scratch->work += size;
    while (heap.count > 0) {
        uint64_t top = heap.items[0];
        heap.items[0] = heap.items[--heap.count];
        heap_sink(&heap, 0);
        scratch->work++;
        Link *left = &links[(uint32_t)top];
        if (left->id < 0 || left->after >= count) {
            continue;
        }
        Link *right = &links[left->after];
        if (pair_rank(bpe, left->id, right->id, &id) != (int32_t)(top >> 32)) {
            continue;
        }
        left->id = id;
        left->after = right->after;
        right->id = -1;
        if (left->after < count) {
            links[left->after].before = (int32_t)(uint32_t)top;
            int32_t rank = pair_rank(bpe, left->id, links[left->after].id, &id);
            if (rank != NO_RANK) {
                heap_push(&heap, (uint64_t)rank << 32 | (uint32_t)top);
            }
        }
        if (left->before >= 0) {
            int32_t rank = pair_rank(bpe, links[left->before].id, left->id, &id);
            if (rank != NO_RANK) {
                heap_push(&heap, (uint64_t)rank << 32 | (uint32_t)left->before);
            }
        }
    }
    size_t written = 0;
    for (int32_t i = 0; i < count; i = links[i].after) {
        out[written++] = links[i].id;
    }
    return written;
}

size_t bpe_merge(const Bpe *bpe, BpeScratch *scratch, const uint8_t *word, size_t size, int32_t *out) {
    return size <= SHORT_WORD ? merge_short(bpe, scratch, word, size, out) : merge_long(bpe, scratch, word, size, out);
}
