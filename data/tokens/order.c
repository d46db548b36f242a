// Which tokens sample i of a run holds: see order.h.
#include "data/tokens/order.h"

#include "core/hash.h"
#include "core/log.h"
#include "core/philox.h"
#include "core/text.h"

#include <math.h>

// 2^32 and the odd multiplier nearest to 2^32 / 1.618..., whose multiples spread most evenly.
static const uint64_t circle = (uint64_t)1 << 32;
static const uint64_t multiplier = 2654435769u;

struct Order {
    const Corpus *corpus;
    int64_t length;
    uint64_t seed, start;  // start: u(0)
    int64_t *samples;      // an epoch of each set; 0: left out
    uint64_t *bound;       // set d owns the points [bound[d], bound[d + 1])
};

typedef unsigned __int128 u128;

// The sum of floor((a j + b) / m) over j in [0, n).
static u128 floor_sum(uint64_t n, u128 m, u128 a, u128 b) {
    u128 total = 0, count = n;
    while (count > 0) {
        if (a >= m) {
            total += count * (count - 1) / 2 * (a / m);
            a %= m;
        }
        if (b >= m) {
            total += count * (b / m);
            b %= m;
        }
        // Count lattice points under the line by rows instead of columns.
        u128 top = a * count + b;
        if (top < m) {
            break;
        }
        count = top / m;
        b = top % m;
        u128 swap = m;
        m = a;
        a = swap;
    }
    return total;
}

// How many of the first n points lie in [0, bound).
static uint64_t points_below(uint64_t start, uint64_t n, uint64_t bound) {
    uint64_t periods = n / circle, rest = n % circle;
    // x mod m < t exactly where floor(x / m) - floor((x - t) / m) = 1; adding m keeps the second argument positive.
    u128 inside =
        floor_sum(rest, circle, multiplier, start) + rest - floor_sum(rest, circle, multiplier, start + circle - bound);
    return periods * bound + (uint64_t)inside;
}

static int find_set(const Corpus *corpus, const char *name) {
    for (int d = 0; d < corpus->set_count; d++) {
        if (strcmp(corpus->sets[d].name, name) == 0) {
            return d;
        }
    }
    return -1;
}

static Error *unknown_set(const Corpus *corpus, const char *what, const char *name) {
    const char **names = memory_new((size_t)corpus->set_count, sizeof *names);
    Buffer all = {0};
    for (int d = 0; d < corpus->set_count; d++) {
        names[d] = corpus->sets[d].name;
        buffer_printf(&all, "%s%s", d > 0 ? ", " : "", names[d]);
    }
    int nearest = text_nearest(name, names, corpus->set_count);
    Error *error = nearest >= 0
                       ? failure("%s: corpus %s has no set '%s'; did you mean '%s'?", what, corpus->path, name, names[nearest])
                       : failure("%s: corpus %s has no set '%s'; it has: %s", what, corpus->path, name, all.data);
    buffer_free(&all);
    free(names);
    return error;
}

// The whole samples that fit into an epoch, with room to move their start by up to one sample.
static int64_t epoch_samples(int64_t tokens, int64_t length) {
    int64_t whole = (tokens - 1) / length;
    return whole > 1 ? whole - 1 : whole;
}

// Fills share[d], relative to the others: by name, by epochs, or by size.
static Error *choose_shares(const Order *order, const Proportions *mixture, const Proportions *epochs, double *share) {
    const Corpus *corpus = order->corpus;
    bool by_mixture = mixture != NULL && mixture->count > 0, by_epoch = epochs != NULL && epochs->count > 0;
    if (by_mixture && by_epoch) {
        return failure(
            "data.mixture and data.epochs cannot both be given: one says how often to draw, the other how often to go through");
    }
    for (int d = 0; d < corpus->set_count; d++) {
        share[d] = by_mixture ? 0 : (double)order->samples[d];
    }
    const Proportions *named = by_mixture ? mixture : epochs;
    const char *what = by_mixture ? "data.mixture" : "data.epochs";
    for (size_t i = 0; (by_mixture || by_epoch) && i < named->count; i++) {
        int d = find_set(corpus, named->names[i]);
        if (d < 0) {
            return unknown_set(corpus, what, named->names[i]);
        }
        if (!(named->values[i] >= 0)) {
            return failure("%s: '%s' is %g, it must not be negative", what, named->names[i], named->values[i]);
        }
        if (named->values[i] > 0 && order->samples[d] == 0) {
            return failure("%s: set '%s' of %s has %lld tokens, fewer than one sequence of %lld and its target", what,
                           named->names[i], corpus->path, (long long)corpus->sets[d].tokens, (long long)order->length);
        }
        share[d] = by_mixture ? named->values[i] : named->values[i] * (double)order->samples[d];
    }
    double total = 0;
    int64_t samples = 0;
    for (int d = 0; d < corpus->set_count; d++) {
        total += share[d];
        samples += order->samples[d];
    }
    if ((by_mixture || by_epoch) && samples > 0 && !(total > 0 && isfinite(total))) {
        return failure("%s: the weights of the sets of %s add up to %g; give one of them a number above 0", what, corpus->path,
                       total);
    }
    return NULL;
}

// Cuts the circle; every set with a share gets at least one point.
static Error *cut_circle(Order *order, const double *share) {
    const Corpus *corpus = order->corpus;
    double total = 0;
    for (int d = 0; d < corpus->set_count; d++) {
        total += share[d];
    }
    if (!(total > 0) || !isfinite(total)) {
        int64_t most = 0;
        for (int d = 0; d < corpus->set_count; d++) {
            most = corpus->sets[d].tokens > most ? corpus->sets[d].tokens : most;
        }
        return failure(
            "corpus %s has nothing to draw from: no set with a weight has the %lld tokens that one sequence and its last "
            "target need (the largest has %lld); add text or lower data.sequence_length",
            corpus->path, (long long)order->length + 1, (long long)most);
    }
    double sum = 0;
    order->bound[0] = 0;
    for (int d = 0; d < corpus->set_count; d++) {
        sum += share[d];
        uint64_t end = d + 1 == corpus->set_count ? circle : (uint64_t)llround(sum / total * (double)circle);
        if (share[d] > 0 && end <= order->bound[d]) {
            end = order->bound[d] + 1;
        }
        order->bound[d + 1] = share[d] > 0 ? end : order->bound[d];
    }
    // Rounding, or a last set without a share, may leave a rest: it belongs to the last set that has a share.
    for (int d = corpus->set_count; d > 0 && order->bound[d] != circle; d--) {
        order->bound[d] = circle;
        if (share[d - 1] > 0) {
            break;
        }
    }
    return NULL;
}

Error *order_create(const Corpus *corpus, int64_t length, const Proportions *mixture, const Proportions *epochs, uint64_t seed,
                    Order **out) {
    ensure(length >= 1, "sequence length %lld", (long long)length);
    size_t sets = (size_t)corpus->set_count;
    Order *order = memory_zeroed(1, sizeof *order);
    order->corpus = corpus;
    order->length = length;
    order->seed = seed;
    order->start = philox(seed, philox_stream(RANDOM_MIXTURE, 0), 0).word[0];
    order->samples = memory_zeroed(sets, sizeof *order->samples);
    order->bound = memory_zeroed(sets + 1, sizeof *order->bound);
    bool named = (mixture != NULL && mixture->count > 0) || (epochs != NULL && epochs->count > 0);
    for (size_t d = 0; d < sets; d++) {
        order->samples[d] = corpus->sets[d].tokens > length ? epoch_samples(corpus->sets[d].tokens, length) : 0;
        if (order->samples[d] == 0 && !named) {
            log_info("set '%s' is left out: its %lld tokens are fewer than one sequence of %lld", corpus->sets[d].name,
                     (long long)corpus->sets[d].tokens, (long long)length);
        }
    }
    double *share = memory_zeroed(sets, sizeof *share);
    Error *error = choose_shares(order, mixture, epochs, share);
    if (error == NULL) {
        error = cut_circle(order, share);
    }
    free(share);
    if (error != NULL) {
        order_free(order);
        order = NULL;
    }
    *out = order;
    return error;
}

void order_free(Order *order) {
    if (order != NULL) {
        free(order->samples);
        free(order->bound);
        free(order);
    }
}

SamplePlace order_place(const Order *order, uint64_t sample) {
    uint64_t point = (multiplier * (sample % circle) + order->start) % circle;
    int low = 0, high = order->corpus->set_count;  // bound[low] <= point < bound[high]
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (order->bound[middle] <= point) {
            low = middle;
        } else {
            high = middle;
        }
    }
    uint64_t index =
        points_below(order->start, sample, order->bound[low + 1]) - points_below(order->start, sample, order->bound[low]);
    uint64_t samples = (uint64_t)order->samples[low];
    uint64_t epoch = index / samples;
    uint64_t stream = philox_stream(RANDOM_SHUFFLE, (uint64_t)low << 40 | (epoch & 0xFFFFFFFFFFu));
    uint64_t place = philox_permute(order->seed, stream, samples, index % samples);
    uint64_t slack = (uint64_t)(order->corpus->sets[low].tokens - 1 - order->samples[low] * order->length);
    uint64_t offset = philox_u64(order->seed, stream, UINT64_MAX) % (slack + 1);
    return (SamplePlace){low, (int64_t)epoch, (int64_t)(offset + place * (uint64_t)order->length)};
}

int64_t order_set_samples(const Order *order, int set) {
    return order->bound[set + 1] > order->bound[set] ? order->samples[set] : 0;
}

double order_set_share(const Order *order, int set) {
    return (double)(order->bound[set + 1] - order->bound[set]) / (double)circle;
}

static uint64_t fingerprint_with(const Order *order, uint64_t corpus) {
    uint64_t parts[4] = {corpus, (uint64_t)order->length, order->seed,
                         hash64(order->bound, ((size_t)order->corpus->set_count + 1) * sizeof *order->bound)};
    return hash64(parts, sizeof parts);
}

uint64_t order_fingerprint(const Order *order) {
    return fingerprint_with(order, order->corpus->fingerprint);
}

bool order_matches(const Order *order, uint64_t fingerprint) {
    return fingerprint == order_fingerprint(order) ||
           fingerprint == fingerprint_with(order, corpus_fingerprint_before(order->corpus));
}
