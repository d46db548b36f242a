// The loader: a thread that fills the next micro-batches while the model computes.
//
// Step s of a run uses samples [s * batch, (s + 1) * batch), batch = step_samples. Micro-batch k of rank r holds the
// `sequences` samples from s * batch + (k * ranks + r) * sequences on; of micro-batches that the ranks cannot share evenly, the
// first ranks have one more. So the samples of a step do not depend on how many ranks share them, and the loader's state is the
// step.
#pragma once

#include "data/tokens/batch.h"
#include "data/tokens/order.h"

typedef struct LoaderOptions {
    const Order *order;
    const Corpus *corpus;
    int64_t vocabulary;         // ids at or above it are refused
    int64_t sequences, length;  // of a micro-batch
    int64_t micro_batches;      // per rank and step
    int rank, ranks;
    int64_t first_step;
    bool side_by_side;  // a rank's micro-batches of a step follow each other: micro-batch k of rank r is number
                        // r * micro_batches + k of the step, not k * ranks + r
    int prefetch;       // micro-batches held ready, at least 1
    bool documents_apart;
    int64_t step_samples;  // of all ranks; 0: micro_batches * ranks * sequences
} LoaderOptions;

typedef struct Loader Loader;

Loader *loader_create(const LoaderOptions *options);
void loader_destroy(Loader *loader);  // NULL is fine

// The next micro-batch; it belongs to the loader and stays until the next call. Every id is below options.vocabulary, or
// the call fails and names the corpus and the sample; a block of tokens that is not what it was is an error too.
Error *loader_next(Loader *loader, const Batch **out) MUST_CHECK;

// Seconds that loader_next has waited so far.
double loader_waited(const Loader *loader);

// Bytes that the prefetched batches take, for the memory plan.
size_t loader_bytes(const LoaderOptions *options);
