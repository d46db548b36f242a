// Checks of groups of ranks: see collectives.h.
#include "tests/support/collectives.h"

#include "core/half.h"
#include "core/philox.h"
#include "tests/support/check.h"

#include <math.h>
#include <stdio.h>

static const ElementType types[] = {ELEMENT_FP32, ELEMENT_BF16, ELEMENT_FP16, ELEMENT_FP64, ELEMENT_BYTE};
enum { TYPES = sizeof types / sizeof *types, GUARD = 64 };  // bytes in front of and behind what is received

double exact_value(ElementType type, int rank, int64_t i, int round) {
    int64_t whole = (i * 7 + rank * 13 + round * 29) % 101;
    return type == ELEMENT_BYTE ? (double)whole : (double)(whole - 50) * 0.125;
}

double exact_sum(ElementType type, int ranks, int64_t i, int round) {
    double sum = 0;
    for (int r = 0; r < ranks; r++) {
        sum += exact_value(type, r, i, round);
    }
    return sum;
}

static double exact_most(ElementType type, int ranks, int64_t i, int round) {
    double most = exact_value(type, 0, i, round);
    for (int r = 1; r < ranks; r++) {
        most = fmax(most, exact_value(type, r, i, round));
    }
    return most;
}

void element_put(ElementType type, void *array, int64_t i, double value) {
    switch (type) {
    case ELEMENT_FP32:
        ((float *)array)[i] = (float)value;
        break;
    case ELEMENT_FP64:
        ((double *)array)[i] = value;
        break;
    case ELEMENT_BF16:
        ((uint16_t *)array)[i] = bf16_from_float((float)value);
        break;
    case ELEMENT_FP16:
        ((uint16_t *)array)[i] = fp16_from_float((float)value);
        break;
    case ELEMENT_BYTE:
        ((uint8_t *)array)[i] = (uint8_t)value;
        break;
    }
}

double element_get(ElementType type, const void *array, int64_t i) {
    switch (type) {
    case ELEMENT_FP32:
        return ((const float *)array)[i];
    case ELEMENT_FP64:
        return ((const double *)array)[i];
    case ELEMENT_BF16:
        return bf16_to_float(((const uint16_t *)array)[i]);
    case ELEMENT_FP16:
        return fp16_to_float(((const uint16_t *)array)[i]);
    case ELEMENT_BYTE:
        break;
    }
    return ((const uint8_t *)array)[i];
}

void *group_memory(const Group *group, size_t bytes) {
    void *memory = NULL;
    if (group->device == NULL) {
        return memory_new(bytes, 1);
    }
    CHECK_OK(device_allocate(group->device, bytes, &memory));
    return memory;
}

void group_memory_free(const Group *group, void *memory, size_t bytes) {
    if (group->device == NULL) {
        free(memory);
    } else {
        device_release(group->device, memory, bytes);
    }
}

void group_memory_set(const Group *group, void *to, const void *from, size_t bytes) {
    if (group->device == NULL) {
        memcpy(to, from, bytes);
    } else {
        device_upload(group->device, to, from, bytes);
    }
}

void group_memory_get(const Group *group, void *to, const void *from, size_t bytes) {
    if (group->device == NULL) {
        memcpy(to, from, bytes);
    } else {
        device_download(group->device, to, from, bytes);
    }
}

// ---- One operation with its memory

typedef struct Trial {
    Collective what;
    int round;
    bool in_place;
    int64_t sent, received;  // elements
    size_t send_bytes, receive_bytes;
    char *send, *receive;  // with guards around what is received
    GroupRequest *request;
} Trial;

// Where the elements lie that this rank brings, in the memory of `send` or, in place, of `receive`.
static int64_t first_sent(const Group *group, const Trial *t) {
    return t->in_place && t->what.operation == GROUP_ALL_GATHER ? group->rank * t->what.count : 0;
}

static double expected(const Group *group, const Trial *t, int64_t i) {
    const Collective *what = &t->what;
    int64_t count = what->count, own = group->rank * count;
    switch (what->operation) {
    case GROUP_ALL_REDUCE:
    case GROUP_REDUCE:
        return what->reduce == COMM_SUM ? exact_sum(what->type, group->size, i, t->round)
                                        : exact_most(what->type, group->size, i, t->round);
    case GROUP_REDUCE_SCATTER:
        return what->reduce == COMM_SUM ? exact_sum(what->type, group->size, own + i, t->round)
                                        : exact_most(what->type, group->size, own + i, t->round);
    case GROUP_ALL_GATHER:
        return exact_value(what->type, (int)(i / count), i % count, t->round);
    case GROUP_ALL_TO_ALL:
        return exact_value(what->type, (int)(i / count), own + i % count, t->round);
    case GROUP_BROADCAST:
    case GROUP_RECEIVE:
        return exact_value(what->type, what->peer, i, t->round);
    case GROUP_SEND:
    case GROUP_OPERATIONS:
        break;
    }
    return NAN;
}

// Memory with this rank's values; what is received lies between guards, and is something else before.
static void begin(Group *group, Trial *t) {
    Collective *what = &t->what;
    int64_t bytes = element_bytes(what->type), all = what->count * group->size;
    bool split = what->operation == GROUP_REDUCE_SCATTER || what->operation == GROUP_ALL_TO_ALL;
    bool joined = what->operation == GROUP_ALL_GATHER || what->operation == GROUP_ALL_TO_ALL;
    t->in_place |= what->operation == GROUP_BROADCAST;
    t->sent = what->operation == GROUP_RECEIVE ? 0 : split ? all : what->count;
    bool gives = what->operation == GROUP_SEND || (what->operation == GROUP_REDUCE && what->peer != group->rank);
    t->received = gives ? 0 : joined ? all : what->count;
    int64_t held = t->in_place && t->sent > t->received ? t->sent : t->received;
    t->send_bytes = (size_t)(t->sent * bytes);
    t->receive_bytes = (size_t)(held * bytes) + 2 * GUARD;
    t->send = group_memory(group, t->send_bytes + 1);
    t->receive = group_memory(group, t->receive_bytes);
    char *host = memory_new(t->receive_bytes + t->send_bytes, 1),
         *values = t->in_place ? host + GUARD : host + t->receive_bytes;
    memset(host, 0x55, t->receive_bytes);
    bool brings = what->operation != GROUP_BROADCAST || what->peer == group->rank;
    for (int64_t i = 0; brings && i < t->sent; i++) {
        element_put(what->type, values, first_sent(group, t) + i, exact_value(what->type, group->rank, i, t->round));
    }
    group_memory_set(group, t->receive, host, t->receive_bytes);
    group_memory_set(group, t->send, host + t->receive_bytes, t->send_bytes);
    free(host);
    what->send = t->in_place ? t->receive + GUARD + first_sent(group, t) * bytes : t->send;
    what->receive = t->receive + GUARD;
    if (t->in_place && what->operation == GROUP_REDUCE_SCATTER) {
        what->receive = t->receive + GUARD + group->rank * what->count * bytes;
    }
    CHECK_OK(group_start(group, what, &t->request));
}

static void end(Group *group, Trial *t) {
    const Collective *what = &t->what;
    int64_t wrong = 0, bytes = element_bytes(what->type);
    bool done;
    CHECK_OK(group_test(&t->request, &done));
    CHECK_OK(group_wait(&t->request));
    CHECK(t->request == NULL);
    char *host = memory_new(t->receive_bytes + t->send_bytes, 1), *sent = host + t->receive_bytes;
    group_memory_get(group, host, t->receive, t->receive_bytes);
    group_memory_get(group, sent, t->send, t->send_bytes);
    const char *received = host + ((char *)what->receive - t->receive);
    for (int64_t i = 0; i < t->received; i++) {
        wrong += element_get(what->type, received, i) != expected(group, t, i);
    }
    for (int i = 0; i < GUARD; i++) {
        wrong += host[i] != 0x55;
        wrong += host[t->receive_bytes - GUARD + i] != 0x55;
    }
    // What was sent is still there.
    for (int64_t i = 0; !t->in_place && i < t->sent; i++) {
        wrong += element_get(what->type, sent, i) != exact_value(what->type, group->rank, i, t->round);
    }
    if (!CHECK_I64(wrong, 0)) {
        printf("operation %d, type %d (%lld bytes), reduce %d, count %lld, in place %d, peer %d, %s\n", (int)what->operation,
               (int)what->type, (long long)bytes, (int)what->reduce, (long long)what->count, t->in_place, what->peer,
               group->transport);
    }
    group_memory_free(group, t->send, t->send_bytes + 1);
    group_memory_free(group, t->receive, t->receive_bytes);
    free(host);
}

// All collective operations with their types and forms, into `out`; returns their number.
enum { MOST_TRIALS = TYPES * 16 };
static int list_trials(const Group *group, int64_t count, int round, Trial *out) {
    int n = 0;
    for (int k = 0; k < TYPES; k++) {
        for (int form = 0; form < 2; form++) {
            Trial t = {.what = {.type = types[k], .count = count}, .round = round + n, .in_place = form == 1};
            for (int reduce = COMM_SUM; types[k] != ELEMENT_BYTE && reduce <= COMM_MAX; reduce++) {
                t.what.reduce = (CommReduce)reduce;
                t.what.operation = GROUP_ALL_REDUCE;
                out[n++] = t;
                t.what.operation = GROUP_REDUCE;
                t.what.peer = (round + k) % group->size;
                out[n++] = t;
                t.what.operation = GROUP_REDUCE_SCATTER;
                out[n++] = t;
            }
            t.what.operation = GROUP_ALL_GATHER;
            out[n++] = t;
            t.what.operation = form == 0 ? GROUP_ALL_TO_ALL : GROUP_BROADCAST;
            t.what.peer = form == 0 ? 0 : (round + k) % group->size;
            out[n++] = t;
        }
    }
    return n;
}

void check_operations(Group *group, int64_t count, int round) {
    Trial trials[MOST_TRIALS];
    int n = list_trials(group, count, round, trials);
    for (int i = 0; i < n; i++) {
        int64_t before = group->sequence;
        begin(group, &trials[i]);
        CHECK_I64(group->sequence, before + 1);
        CHECK(count > 0 || trials[i].request == NULL);
        end(group, &trials[i]);
    }
}

// A number that has no divisor in common with n, so that multiples of it walk through all of [0, n).
static int stride_through(int n) {
    for (int stride = n / 2 + 1;; stride++) {
        int a = n, b = stride;
        while (b != 0) {
            int rest = a % b;
            a = b;
            b = rest;
        }
        if (a == 1) {
            return stride;
        }
    }
}

static void wait_for_all(Group *group, Trial *trials, int n) {
    for (int i = 0; i < n; i++) {  // ranks in different orders
        end(group, &trials[(int)(((int64_t)i * stride_through(n) + group->rank) % n)]);
    }
}

void check_many_under_way(Group *group, int64_t count, int round) {
    Trial trials[MOST_TRIALS];
    int n = list_trials(group, count, round, trials);
    for (int i = 0; i < n; i++) {
        begin(group, &trials[i]);
    }
    wait_for_all(group, trials, n);
}

void check_messages(Group *group, int64_t count, int round) {
    enum { EACH = 4, MOST_RANKS = 8 };
    Trial trials[2 * EACH * MOST_RANKS];
    int n = 0;
    for (int m = 0; m < EACH; m++) {
        for (int step = 1; step < group->size; step++) {
            // The same values at both ends: those of the sender, of a round that the message has for itself.
            Trial t = {.what = {.type = types[(m + round) % TYPES], .count = m == 2 ? 0 : count + m, .tag = m / 2},
                       .round = round + m};
            t.what.operation = GROUP_SEND;
            t.what.peer = (group->rank + step) % group->size;
            trials[n++] = t;
            t.what.operation = GROUP_RECEIVE;
            t.what.peer = (group->rank + group->size - step) % group->size;
            trials[n++] = t;
        }
    }
    for (int i = 0; i < n; i++) {
        begin(group, &trials[i]);
    }
    wait_for_all(group, trials, n);
    // One at a time, around the ring, and back: rank 0 begins.
    for (int back = 0; back < 2 && group->size > 1; back++) {
        int step = back ? group->size - 1 : 1, to = (group->rank + step) % group->size;
        int from = (group->rank + group->size - step) % group->size;
        double token = 0, *memory = group_memory(group, sizeof token);
        if (group->rank > 0) {
            CHECK_OK(group_receive(group, ELEMENT_FP64, memory, 1, from, 7));
            group_memory_get(group, &token, memory, sizeof token);
            CHECK(token == (back ? group->size - group->rank : group->rank));
        }
        token++;
        group_memory_set(group, memory, &token, sizeof token);
        CHECK_OK(group_send(group, ELEMENT_FP64, memory, 1, to, 7));
        if (group->rank == 0) {
            CHECK_OK(group_receive(group, ELEMENT_FP64, memory, 1, from, 7));
            group_memory_get(group, &token, memory, sizeof token);
            CHECK(token == group->size);
        }
        group_memory_free(group, memory, sizeof token);
    }
}

// ---- Rounding

// Sums `values` (size * count elements) once, by an all-reduce or by parts, in place or not, into `sums`.
static void sum_once(Group *group, ElementType type, const void *values, int64_t count, bool parts, bool in_place, void *sums) {
    size_t bytes = (size_t)(count * group->size * element_bytes(type)), own = bytes / (size_t)group->size * (size_t)group->rank;
    char *from = group_memory(group, bytes), *to = in_place ? from : group_memory(group, bytes);
    group_memory_set(group, from, values, bytes);
    if (parts) {
        CHECK_OK(group_reduce_scatter(group, type, from, to + own, count));
        CHECK_OK(group_all_gather(group, type, to + own, to, count));
    } else {
        Collective sum = {GROUP_ALL_REDUCE, type, COMM_SUM, count * group->size, from, to};
        CHECK_OK(group_run(group, &sum));
    }
    group_memory_get(group, sums, to, bytes);
    group_memory_free(group, from, bytes);
    if (!in_place) {
        group_memory_free(group, to, bytes);
    }
}

static void fill_random(ElementType type, int rank, int64_t count, void *out) {
    float *values = memory_new((size_t)count, sizeof *values);
    philox_normal(77, philox_stream(RANDOM_TEST, (uint64_t)rank), 0, 1.0f, values, count);
    for (int64_t i = 0; i < count; i++) {
        element_put(type, out, i, type == ELEMENT_FP64 ? values[i] / 3.0 : values[i]);
    }
    free(values);
}

void check_rounding(Group *group, int64_t count) {
    static const double unit[] = {
        [ELEMENT_FP32] = 0x1p-24, [ELEMENT_BF16] = 0x1p-8, [ELEMENT_FP16] = 0x1p-11, [ELEMENT_FP64] = 0x1p-53};
    for (int k = 0; types[k] != ELEMENT_BYTE; k++) {
        ElementType type = types[k];
        int64_t all = count * group->size;
        size_t bytes = (size_t)(all * element_bytes(type));
        char *values = memory_new(bytes * (size_t)group->size, 1), *own = values + bytes * (size_t)group->rank;
        char *sums = memory_new(bytes, 1), *again = memory_new(bytes, 1);
        for (int r = 0; r < group->size; r++) {
            fill_random(type, r, all, values + bytes * (size_t)r);
        }
        for (int form = 0; form < 4; form++) {
            sum_once(group, type, own, count, form / 2, form % 2, sums);
            sum_once(group, type, own, count, form / 2, form % 2, again);
            CHECK(memcmp(sums, again, bytes) == 0);
            memcpy(again, sums, bytes);
            CHECK_OK(comm_broadcast(group->comm, again, (int64_t)bytes, 0));
            CHECK(memcmp(sums, again, bytes) == 0);
            int64_t far = 0;
            for (int64_t i = 0; i < all; i++) {
                double sum = 0, size = 0;
                for (int r = 0; r < group->size; r++) {
                    double value = element_get(type, values + bytes * (size_t)r, i);
                    sum += value;
                    size += fabs(value);
                }
                element_put(type, again, i, sum);
                double error = fabs(element_get(type, sums, i) - sum);
                far += !(error <= (group->size - 1) * unit[type] * size);
            }
            CHECK_I64(far, 0);
            CHECK(group->size > 2 || memcmp(sums, again, bytes) == 0);
        }
        free(values);
        free(sums);
        free(again);
    }
}
