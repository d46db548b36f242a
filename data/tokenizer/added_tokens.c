// Tokens that stand in a text as they are: see added_tokens.h.
#include "data/tokenizer/added_tokens.h"

#include "data/tokenizer/unicode.h"

void added_set_create(AddedSet *set) {
    *set = (AddedSet){0};
    memset(set->root, -1, sizeof set->root);
}

void added_set_free(AddedSet *set) {
    free(set->nodes);
    set->nodes = NULL;
}

static int32_t child_of(const AddedSet *set, int32_t node, uint8_t byte) {
    int32_t child = set->nodes[node].child;
    while (child >= 0 && set->nodes[child].byte != byte) {
        child = set->nodes[child].sibling;
    }
    return child;
}

static int32_t new_node(AddedSet *set, uint8_t byte, int32_t sibling) {
    AddedNode node = {.child = -1, .sibling = sibling, .token = -1, .byte = byte};
    array_push(set->nodes, set->count, set->capacity, node);
    return set->count - 1;
}

void added_set_add(AddedSet *set, int32_t index, const char *text, size_t size) {
    if (size == 0) {
        return;
    }
    uint8_t first = (uint8_t)text[0];
    if (set->root[first] < 0) {
        set->root[first] = new_node(set, first, -1);
        set->first = first;
        set->first_count++;
    }
    int32_t node = set->root[first];
    for (size_t i = 1; i < size; i++) {
        int32_t child = child_of(set, node, (uint8_t)text[i]);
        if (child < 0) {
            child = new_node(set, (uint8_t)text[i], set->nodes[node].child);
            set->nodes[node].child = child;
        }
        node = child;
    }
    if (set->nodes[node].token < 0) {
        set->nodes[node].token = index;
    }
}

// The first place at or after `from` where some token's first byte stands, or `size`.
static size_t find_first(const AddedSet *set, const char *text, size_t size, size_t from) {
    if (set->first_count == 0 || from >= size) {
        return size;
    }
    if (set->first_count == 1) {
        const char *found = memchr(text + from, set->first, size - from);
        return found == NULL ? size : (size_t)(found - text);
    }
    while (from < size && set->root[(uint8_t)text[from]] < 0) {
        from++;
    }
    return from;
}

// The longest token at `start`, as its index, or -1; *end is behind it.
static int32_t longest_at(const AddedSet *set, const char *text, size_t size, size_t start, size_t *end) {
    int32_t node = set->root[(uint8_t)text[start]], found = -1;
    for (size_t i = start + 1; node >= 0; i++) {
        if (set->nodes[node].token >= 0) {
            found = set->nodes[node].token;
            *end = i;
        }
        if (i == size) {
            break;
        }
        node = child_of(set, node, (uint8_t)text[i]);
    }
    return found;
}

static unsigned class_before(const char *text, size_t at, size_t *start) {
    size_t p = at - 1;
    while (p > 0 && at - p < 4 && ((uint8_t)text[p] & 0xC0) == 0x80) {
        p--;
    }
    int length;
    *start = p;
    return unicode_classes()[unicode_decode((const uint8_t *)text + p, (const uint8_t *)text + at, &length)];
}

static unsigned class_after(const char *text, size_t size, size_t at, size_t *end) {
    int length;
    uint32_t code = unicode_decode((const uint8_t *)text + at, (const uint8_t *)text + size, &length);
    *end = at + (size_t)length;
    return unicode_classes()[code];
}

bool added_set_next(const AddedSet *set, const AddedToken *tokens, const char *text, size_t size, bool special, size_t *scan,
                    size_t taken, AddedMatch *match) {
    while ((*scan = find_first(set, text, size, *scan)) < size) {
        size_t start = *scan, end = start, beside;
        int32_t index = longest_at(set, text, size, start, &end);
        if (index < 0) {
            *scan = start + 1;
            continue;
        }
        *scan = end;
        const AddedToken *token = &tokens[index];
        if (token->special && !special) {
            continue;
        }
        if (token->single_word && ((start > 0 && (class_before(text, start, &beside) & UNICODE_WORD)) ||
                                   (end < size && (class_after(text, size, end, &beside) & UNICODE_WORD)))) {
            continue;
        }
        if (token->lstrip) {
            while (start > taken && (class_before(text, start, &beside) & UNICODE_SPACE)) {
                start = beside;
            }
            start = start < taken ? taken : start;
        }
        if (token->rstrip) {
            while (end < size && (class_after(text, size, end, &beside) & UNICODE_SPACE)) {
                end = beside;
            }
        }
        *match = (AddedMatch){start, end, token};
        return true;
    }
    return false;
}

bool added_set_crosses(const AddedSet *set, const char *text, size_t size, size_t cut, size_t longest) {
    for (size_t start = cut > longest ? cut - longest : 0; start <= cut && start < size; start++) {
        int32_t node = set->root[(uint8_t)text[start]];
        size_t i = start + 1;  // behind the byte of `node`
        while (node >= 0 && i != cut && i < size && (i < cut || set->nodes[node].token < 0)) {
            node = child_of(set, node, (uint8_t)text[i++]);
        }
        if (node >= 0) {
            return true;
        }
    }
    return false;
}
