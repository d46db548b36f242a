// Which tokens sample i of a run holds: a function, not a stored permutation.
//
// A run draws samples 0, 1, 2 ... Sample i is computed from (seed, corpus, i) in O(log) time and no memory:
//
//   set       The sets share the circle [0, 2^32) in proportion to their shares. Sample i falls on the point
//             u(i) = (A i + s) mod 2^32, A the odd number nearest 2^32 / golden ratio, s from the seed. Any stretch of n
//             samples therefore holds each set's share of n to within a few samples, for every n (a Kronecker sequence).
//   index     How many earlier samples fell on the same set: the number of j < i with u(j) below a bound is a sum of
//             floor((A j + b) / 2^32), which a Euclid-like recursion computes exactly (Graham, Knuth, Patashnik, "Concrete
//             Mathematics", section 3.5).
//   epoch     index / samples of the set, and a place within the epoch that a keyed permutation (core/philox.h) shuffles.
//   tokens    Sample k of an epoch is the length + 1 tokens from offset + k * length; the offset changes with the epoch, so
//             that cuts fall elsewhere each time.
//
// So resuming, or changing the number of ranks, costs nothing, and the loader's whole state is one number.
#pragma once

#include "core/keys.h"
#include "data/tokens/corpus.h"

typedef struct Order Order;

typedef struct SamplePlace {
    int set;              // index into the corpus's sets
    int64_t epoch;        // of that set
    int64_t first_token;  // in the set's stream; length + 1 tokens from here belong to the sample
} SamplePlace;

// `mixture`: how often to draw from each named set, relative; sets not named are left out. `epochs`: instead, how often to go
// through each named set relative to the others; sets not named count 1. Both empty: in proportion to size. Unknown names,
// negative numbers, no set left, and a set with fewer than length + 1 tokens that is asked for by name are errors; where
// nothing is named such a set is left out with a warning, unless none remains. The corpus must outlive the order.
Error *order_create(const Corpus *corpus, int64_t length, const Proportions *mixture, const Proportions *epochs, uint64_t seed,
                    Order **out) MUST_CHECK;
void order_free(Order *order);

SamplePlace order_place(const Order *order, uint64_t sample);

// Samples that one epoch of the set holds; 0 for a set that is left out. The share of samples drawn from it, in [0, 1].
int64_t order_set_samples(const Order *order, int set);
double order_set_share(const Order *order, int set);

// Identifies everything that decides the order: two runs with equal fingerprints see the same samples.
uint64_t order_fingerprint(const Order *order);

// Whether a run that saw an order of this fingerprint can go on with this one; those of older versions are taken too
// (corpus_matches).
bool order_matches(const Order *order, uint64_t fingerprint);
