// Gradient buckets: see buckets.h.
#include "parallel/buckets.h"

#include "core/clock.h"
#include "parallel/sharding.h"

// Buckets whose sums are under way at a time where a transport holds copies of them in the host's memory.
enum { MOST_UNDER_WAY = 4 };

struct Buckets {
    Group *group;
    float *gradients;
    int64_t count, bucket;  // floats; the bucket is aligned
    int64_t part;           // of one owner, of whole buckets but for the last one of a part; of all where there are none
    int total, each;        // buckets, and those of a part
    bool owned;
    GroupRequest **requests;
    int started, finished;  // buckets, both in order from the end of the array
    // In order: parts of two buckets, and how many buckets' were added up since; else NULL, and all that were started.
    float *exchange;
    Device *device;
    GroupRequest *exchanging[2];
    int added;
    int64_t final_from;
    double first_start;
    BucketsTime time;
};

static int64_t aligned(int64_t count) {
    return shard_padded(count, 1);
}

Buckets *buckets_create(Group *group, float *gradients, int64_t count, int64_t bucket_bytes, bool owned) {
    ensure(count >= 0 && bucket_bytes >= 0, "count %lld, bucket_bytes %lld", (long long)count, (long long)bucket_bytes);
    Buckets *buckets = memory_zeroed(1, sizeof *buckets);
    buckets->group = group;
    buckets->gradients = gradients;
    buckets->count = count;
    int64_t bucket = aligned(bucket_bytes == 0 ? count : bucket_bytes / (int64_t)sizeof(float));
    buckets->bucket = bucket > 0 ? bucket : SHARD_ALIGNMENT;
    buckets->owned = owned;
    buckets->part = owned ? shard_padded(count, group->size) / group->size : aligned(count);
    buckets->each = (int)((buckets->part + buckets->bucket - 1) / buckets->bucket);
    buckets->total = group->size > 1 ? buckets->each * (owned ? group->size : 1) : 0;
    buckets->requests = memory_zeroed((size_t)buckets->total, sizeof *buckets->requests);
    buckets->final_from = count;
    return buckets;
}

int64_t buckets_in_order_floats(int64_t bucket_bytes, int ranks) {
    return shard_padded(bucket_bytes / (int64_t)sizeof(float) + 1, ranks);
}

Buckets *buckets_create_in_order(Group *group, Device *device, float *gradients, int64_t count, int64_t bucket,
                                 float *exchange) {
    ensure(count % ((int64_t)SHARD_ALIGNMENT * group->size) == 0 && bucket % ((int64_t)SHARD_ALIGNMENT * group->size) == 0,
           "%lld floats, buckets of %lld", (long long)count, (long long)bucket);
    Buckets *buckets = buckets_create(group, gradients, count, bucket * (int64_t)sizeof(float), false);
    buckets->device = device;
    buckets->exchange = exchange;
    return buckets;
}

int64_t buckets_bytes(int64_t count, int64_t bucket_bytes, int ranks) {
    int64_t all = count * (int64_t)sizeof(float), most = MOST_UNDER_WAY * bucket_bytes;
    return ranks == 1 ? 0 : bucket_bytes > 0 && most < all ? most : all;
}

void buckets_destroy(Buckets *buckets) {
    if (buckets != NULL) {
        free(buckets->requests);
        free(buckets);
    }
}

// The part that bucket i lies in, which is its owner's.
static int bucket_part(const Buckets *buckets, int i) {
    return (buckets->total - 1 - i) / buckets->each;
}

// Bucket i counted from the end of the array; the last one of a part, at its front, takes the remainder. Of parts of padding it
// is empty.
static Range bucket_range(const Buckets *buckets, int i) {
    int64_t first = bucket_part(buckets, i) * buckets->part, count = buckets->count;
    int64_t end = first + buckets->part - i % buckets->each * buckets->bucket, begin = end - buckets->bucket;
    begin = begin > first ? begin : first;
    return (Range){begin < count ? begin : count, end < count ? end : count};
}

void buckets_begin(Buckets *buckets) {
    ensure(buckets->started == buckets->finished, "the step before was not finished");
    buckets->started = 0;
    buckets->finished = 0;
    buckets->added = 0;
    buckets->final_from = buckets->count;
    buckets->time = (BucketsTime){0};
}

// The parts of the oldest bucket that was exchanged are added up, and the sums begin to be gathered.
static Error *add_up(Buckets *buckets) {
    int i = buckets->added++;
    Range range = bucket_range(buckets, i);
    int64_t part = (range.end - range.begin) / buckets->group->size;
    float *own = buckets->gradients + range.begin + buckets->group->rank * part;
    TRY(group_wait(&buckets->exchanging[i % 2]));
    buckets->device->op->sum_parts(buckets->device, &(SumParts){.count = part,
                                                                .parts = buckets->group->size,
                                                                .stride = part,
                                                                .x = buckets->exchange + i % 2 * buckets->bucket,
                                                                .y = own});
    Collective all = {.operation = GROUP_ALL_GATHER,
                      .type = ELEMENT_FP32,
                      .count = part,
                      .send = own,
                      .receive = buckets->gradients + range.begin};
    return group_start(buckets->group, &all, &buckets->requests[i]);
}

// Starts bucket `started`.
static Error *start_next(Buckets *buckets) {
    int i = buckets->started++;
    Range range = bucket_range(buckets, i);
    float *at = buckets->gradients + range.begin;
    if (buckets->exchange != NULL) {
        TRY(i >= 2 ? add_up(buckets) : NULL);
        Collective parts = {.operation = GROUP_ALL_TO_ALL,
                            .type = ELEMENT_FP32,
                            .count = (range.end - range.begin) / buckets->group->size,
                            .send = at,
                            .receive = buckets->exchange + i % 2 * buckets->bucket};
        return group_start(buckets->group, &parts, &buckets->exchanging[i % 2]);
    }
    Collective sum = {.operation = buckets->owned ? GROUP_REDUCE : GROUP_ALL_REDUCE,
                      .peer = buckets->owned ? bucket_part(buckets, i) : 0,
                      .type = ELEMENT_FP32,
                      .reduce = COMM_SUM,
                      .count = range.end - range.begin,
                      .send = at,
                      .receive = at};
    buckets->added++;
    return group_start(buckets->group, &sum, &buckets->requests[i]);
}

// Starts what is full, as far as there is room.
static Error *start_full(Buckets *buckets) {
    // In order nothing is started because something has arrived: so it is the same order on all ranks beside what else the
    // group exchanges.
    bool all = buckets->group->recordable || buckets->exchange != NULL;
    int most = all ? buckets->total : MOST_UNDER_WAY;
    while (buckets->started < buckets->total && buckets->started - buckets->finished < most &&
           bucket_range(buckets, buckets->started).begin >= buckets->final_from) {
        if (buckets->started == 0) {
            buckets->first_start = clock_seconds();
        }
        TRY(start_next(buckets));
    }
    return NULL;
}

Error *buckets_progress(Buckets *buckets) {
    // MPI advances all requests whichever is tested; they finish in order or nearly so.
    while (buckets->finished < buckets->added) {
        bool done;
        TRY(group_test(&buckets->requests[buckets->finished], &done));
        if (!done) {
            break;
        }
        buckets->finished++;
        buckets->time.active = clock_seconds() - buckets->first_start;
    }
    return start_full(buckets);
}

Error *buckets_final_from(Buckets *buckets, int64_t offset) {
    ensure(offset >= 0 && offset <= buckets->final_from, "offset %lld after %lld", (long long)offset,
           (long long)buckets->final_from);
    buckets->final_from = offset;
    TRY(start_full(buckets));
    return buckets_progress(buckets);
}

Error *buckets_finish(Buckets *buckets) {
    double start = clock_seconds();
    buckets->time.done_early = buckets->finished;
    TRY(buckets_final_from(buckets, 0));
    while (buckets->finished < buckets->total) {
        // All are started then: fewer than may be under way are not added up.
        TRY(buckets->finished == buckets->added ? add_up(buckets) : NULL);
        TRY(group_wait(&buckets->requests[buckets->finished]));
        buckets->finished++;
        TRY(start_full(buckets));
    }
    double end = clock_seconds();
    buckets->time.buckets = buckets->started;
    if (buckets->total > 0) {
        buckets->time.waited = end - start;
        buckets->time.active = end - buckets->first_start;
    }
    return NULL;
}

BucketsTime buckets_time(const Buckets *buckets) {
    return buckets->time;
}
