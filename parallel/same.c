// Comparing ranks: see same.h.
#include "parallel/same.h"

#include <stdarg.h>
#include <stdio.h>

enum { MOST_TOLD = 3, MOST_RANKS_NAMED = 8 };

void same_add(Buffer *facts, const char *name, const char *format, ...) {
    buffer_printf(facts, "%s=", name);
    size_t from = facts->size;
    va_list arguments;
    va_start(arguments, format);
    char *value = NULL;
    int size = vasprintf(&value, format, arguments);
    va_end(arguments);
    ensure(size >= 0, "a fact of %s", name);
    buffer_text(facts, value);
    free(value);
    for (size_t i = from; i < facts->size; i++) {
        if ((unsigned char)facts->data[i] < ' ' || facts->data[i] == 0x7f) {
            facts->data[i] = '?';
        }
    }
    buffer_text(facts, "\n");
}

// A fact: name and value, as they lie in a rank's text.
typedef struct Fact {
    const char *name, *value;
    int name_size, value_size;
} Fact;

// Takes the first line off [*at, end); false where there is none.
static bool next_fact(const char **at, const char *end, Fact *out) {
    const char *newline = *at < end ? memchr(*at, '\n', (size_t)(end - *at)) : NULL;
    const char *equals = newline != NULL ? memchr(*at, '=', (size_t)(newline - *at)) : NULL;
    if (equals == NULL) {
        return false;
    }
    *out = (Fact){*at, equals + 1, (int)(equals - *at), (int)(newline - equals - 1)};
    *at = newline + 1;
    return true;
}

static bool same_text(const char *a, int a_size, const char *b, int b_size) {
    return a_size == b_size && memcmp(a, b, (size_t)a_size) == 0;
}

static bool find_fact(const char *at, const char *end, const Fact *wanted, Fact *out) {
    while (next_fact(&at, end, out)) {
        if (same_text(out->name, out->name_size, wanted->name, wanted->name_size)) {
            return true;
        }
    }
    return false;
}

typedef struct Texts {
    const char *text;
    const int64_t *ends;
    int ranks;
} Texts;

static const char *text_of(const Texts *all, int rank, const char **end) {
    *end = all->text + all->ends[rank];
    return all->text + (rank > 0 ? all->ends[rank - 1] : 0);
}

// The ranks whose value of `wanted` (owner's) is another than the owner's, "1, 3", and the value of the first of them.
static int list_ranks(const Texts *all, int owner, const Fact *wanted, Buffer *ranks, Fact *other, bool *absent) {
    int count = 0;
    for (int r = 0; r < all->ranks; r++) {
        const char *end, *at = text_of(all, r, &end);
        Fact theirs;
        bool there = find_fact(at, end, wanted, &theirs);
        if (r == owner || (there && same_text(theirs.value, theirs.value_size, wanted->value, wanted->value_size))) {
            continue;
        }
        if (count == 0) {
            *absent = !there;
            *other = theirs;
        }
        if (count < MOST_RANKS_NAMED) {
            buffer_printf(ranks, "%s%d", count > 0 ? ", " : "", r);
        }
        count++;
    }
    if (count > MOST_RANKS_NAMED) {
        buffer_printf(ranks, " and %d more", count - MOST_RANKS_NAMED);
    }
    return count;
}

// Adds what differs from the facts of rank `owner` to `told`; of other owners only what rank 0 does not have.
static void tell_differences(const Texts *all, int owner, Buffer *told, int *differences) {
    const char *end, *at = text_of(all, owner, &end), *end0, *at0 = text_of(all, 0, &end0);
    Fact fact, known;
    while (next_fact(&at, end, &fact)) {
        Buffer ranks = {0};
        Fact other = {0};
        bool absent = false, of_others = owner > 0 && !find_fact(at0, end0, &fact, &known);
        int count = owner == 0 || of_others ? list_ranks(all, owner, &fact, &ranks, &other, &absent) : 0;
        if (count > 0 && (*differences)++ < MOST_TOLD) {
            buffer_printf(told, "%s%.*s is %.*s on rank %d but not on rank%s %s (", told->size > 0 ? "; " : "", fact.name_size,
                          fact.name, fact.value_size, fact.value, owner, count > 1 ? "s" : "", ranks.data);
            if (absent) {
                buffer_text(told, "not known there)");
            } else {
                buffer_printf(told, "%.*s)", other.value_size, other.value);
            }
        }
        buffer_free(&ranks);
    }
}

Error *same_on_all(Comm *comm, const Buffer *facts) {
    if (comm->size == 1) {
        return NULL;
    }
    Buffer text = {0}, told = {0};
    int64_t *ends = memory_new((size_t)comm->size, sizeof *ends);
    int differences = 0;
    Error *error = comm_gather(comm, facts->data, (int64_t)facts->size, &text, ends);
    if (error == NULL && comm->rank == 0) {
        Texts all = {text.data, ends, comm->size};
        for (int r = 0; r < comm->size && differences == 0; r++) {
            const char *end, *at = text_of(&all, r, &end);
            if (!same_text(at, (int)(end - at), facts->data, (int)facts->size)) {
                tell_differences(&all, 0, &told, &differences);
                tell_differences(&all, r, &told, &differences);
            }
        }
        if (differences > MOST_TOLD) {
            buffer_printf(&told, "; and %d more", differences - MOST_TOLD);
        }
        if (differences > 0) {
            error = failure("the ranks are not of one run: %s; start all ranks with the same command and files", told.data);
        }
    }
    buffer_free(&told);
    buffer_free(&text);
    free(ends);
    return comm_agree(comm, error);
}
