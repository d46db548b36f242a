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
    buckets->final_from = buckets->count;
    buckets->time = (BucketsTime){0};
}

// Starts what is full, as far as there is room.
static Error *start_full(Buckets *buckets) {
    int most = buckets->group->recordable ? buckets->total : MOST_UNDER_WAY;
    while (buckets->started < buckets->total && buckets->started - buckets->finished < most &&
           bucket_range(buckets, buckets->started).begin >= buckets->final_from) {
        if (buckets->started == 0) {
            buckets->first_start = clock_seconds();
        }
        Range range = bucket_range(buckets, buckets->started);
        Collective sum = {.operation = buckets->owned ? GROUP_REDUCE : GROUP_ALL_REDUCE,
                          .peer = buckets->owned ? bucket_part(buckets, buckets->started) : 0,
                          .type = ELEMENT_FP32,
                          .reduce = COMM_SUM,
                          .count = range.end - range.begin,
                          .send = buckets->gradients + range.begin,
                          .receive = buckets->gradients + range.begin};
        TRY(group_start(buckets->group, &sum, &buckets->requests[buckets->started]));
        buckets->started++;
    }
    return NULL;
}

Error *buckets_progress(Buckets *buckets) {
    // MPI advances all requests whichever is tested; they finish in order or nearly so.
    while (buckets->finished < buckets->started) {
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
