// Gradient buckets: the sum over data-parallel ranks starts while the backward pass still runs.
//
// Gradients lie in one flat fp32 array in the order of the forward pass, so that the backward pass finishes them from the end
// to the front (a tied embedding at the front is final last). The array is cut from its end into buckets of a fixed size, whose
// bounds are aligned like parts of it (sharding.h; the first one is the shorter for it); as soon as all of a bucket is final,
// its all-reduce starts, in place. The sum is not divided by anything. Where each rank owns a part of the array (sharding.h), a
// bucket lies in one part, and only its owner gets the sum: half as much is moved.
//
//     gradients  |  embedding  | block 0 | block 1 | ... | block L-1 | head |
//     buckets    | b5 |   b4   |   b3   |    b2    |   b1    |     b0       |   b0 starts first
//
// In order. Where the bits shall not depend on how a transport adds, a bucket is cut into one part a rank: all parts are
// exchanged, each rank adds up the part that is its own in the order of the ranks (SumParts: a tree), and the sums are
// gathered. That moves as many bytes as a ring of sums. The end of one bucket's sum is started with the beginning of the next
// but one's.
//
// Deterministic for a given number of ranks and bucket size, in order for that of ranks alone. A group of one rank does nothing
// and costs nothing.
#pragma once

#include "parallel/group.h"

typedef struct Buckets Buckets;

// Seconds of communication of one step: from the first start to the end, and the part that the caller stood waiting.
typedef struct BucketsTime {
    double active, waited;
    int buckets;     // started
    int done_early;  // buckets that had finished before buckets_finish was called
} BucketsTime;

// `group` and `gradients` (count floats, of the group's memory) stay the caller's and must outlive the buckets. bucket_bytes >=
// 4; 0: everything at once at the end (no overlap). `owned`: sums go to the parts' owners, rank r of the group owning part r;
// what is not owned is undefined afterwards.
Buckets *buckets_create(Group *group, float *gradients, int64_t count, int64_t bucket_bytes, bool owned);
// Sums in order: `count` and `bucket` (buckets_in_order_floats) floats are multiples of SHARD_ALIGNMENT times the ranks;
// `exchange` has room for two buckets. What lies in `gradients` is then the sums on all ranks.
Buckets *buckets_create_in_order(Group *group, Device *device, float *gradients, int64_t count, int64_t bucket,
                                 float *exchange);
int64_t buckets_in_order_floats(int64_t bucket_bytes, int ranks);
void buckets_destroy(Buckets *buckets);

// Call before the backward pass that makes gradients final (the last micro-batch of a step).
void buckets_begin(Buckets *buckets);

// All gradients at flat offset >= `offset` are final and must not be touched until buckets_finish: starts what is full, polls
// what runs. Offsets must not grow within a step.
Error *buckets_final_from(Buckets *buckets, int64_t offset) MUST_CHECK;

// Lets running reductions advance; call it between pieces of work (about a microsecond).
Error *buckets_progress(Buckets *buckets) MUST_CHECK;

// Everything is final: starts the rest and waits for all. Then `gradients` holds the sums.
Error *buckets_finish(Buckets *buckets) MUST_CHECK;

// Of the last finished step.
BucketsTime buckets_time(const Buckets *buckets);

// The most bytes of the host that sums over `ranks` ranks take meanwhile, for the memory plan: MPI holds a copy of what it
// sums, and at most four buckets are under way at a time then. A group whose sums run on cards (NCCL) takes none of them, but
// that is known only once the group is there.
int64_t buckets_bytes(int64_t count, int64_t bucket_bytes, int ranks);
