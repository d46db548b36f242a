// Gradient buckets: see buckets.h.
#include "parallel/buckets.h"

#include "core/clock.h"
#include "core/threads.h"

struct Buckets {
    Comm *comm;
    float *gradients;
    int64_t count, bucket;  // floats
    int total;              // buckets
    CommRequest **requests;
    int started, finished;  // buckets, both in order from the end of the array
    int64_t final_from;
    double first_start;
    BucketsTime time;
};

Buckets *buckets_create(Comm *comm, float *gradients, int64_t count, int64_t bucket_bytes) {
    ensure(count >= 0 && bucket_bytes >= 0, "count %lld, bucket_bytes %lld", (long long)count, (long long)bucket_bytes);
    Buckets *buckets = memory_zeroed(1, sizeof *buckets);
    buckets->comm = comm;
    buckets->gradients = gradients;
    buckets->count = count;
    int64_t bucket = bucket_bytes == 0 ? count : bucket_bytes / (int64_t)sizeof(float);
    // Whole cache lines, so that no two buckets share one.
    bucket = (bucket + 15) / 16 * 16;
    buckets->bucket = bucket > 0 ? bucket : 16;
    buckets->total = comm->size > 1 ? (int)((count + buckets->bucket - 1) / buckets->bucket) : 0;
    buckets->requests = memory_zeroed((size_t)buckets->total, sizeof *buckets->requests);
    buckets->final_from = count;
    return buckets;
}

void buckets_destroy(Buckets *buckets) {
    if (buckets != NULL) {
        free(buckets->requests);
        free(buckets);
    }
}

// Bucket i counted from the end of the array; the last one, at the front, takes the remainder.
static Range bucket_range(const Buckets *buckets, int i) {
    int64_t end = buckets->count - i * buckets->bucket, begin = end - buckets->bucket;
    return (Range){begin > 0 ? begin : 0, end};
}

void buckets_begin(Buckets *buckets) {
    ensure(buckets->started == buckets->finished, "the step before was not finished");
    buckets->started = 0;
    buckets->finished = 0;
    buckets->final_from = buckets->count;
    buckets->time = (BucketsTime){0};
}

Error *buckets_progress(Buckets *buckets) {
    // MPI advances all requests whichever is tested; they finish in order or nearly so.
    while (buckets->finished < buckets->started) {
        bool done;
        TRY(comm_test(&buckets->requests[buckets->finished], &done));
        if (!done) {
            break;
        }
        buckets->finished++;
        buckets->time.active = clock_seconds() - buckets->first_start;
    }
    return NULL;
}

Error *buckets_final_from(Buckets *buckets, int64_t offset) {
    ensure(offset >= 0 && offset <= buckets->final_from, "offset %lld after %lld", (long long)offset,
           (long long)buckets->final_from);
    buckets->final_from = offset;
    while (buckets->started < buckets->total && bucket_range(buckets, buckets->started).begin >= offset) {
        if (buckets->started == 0) {
            buckets->first_start = clock_seconds();
        }
        Range range = bucket_range(buckets, buckets->started);
        TRY(comm_start_all_reduce(buckets->comm, buckets->gradients + range.begin, range.end - range.begin,
                                  &buckets->requests[buckets->started]));
        buckets->started++;
    }
    return buckets_progress(buckets);
}

Error *buckets_finish(Buckets *buckets) {
    double start = clock_seconds();
    buckets->time.done_early = buckets->finished;
    TRY(buckets_final_from(buckets, 0));
    while (buckets->finished < buckets->started) {
        TRY(comm_wait(&buckets->requests[buckets->finished]));
        buckets->finished++;
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
