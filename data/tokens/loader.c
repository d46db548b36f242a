// The loader: see loader.h.
#include "data/tokens/loader.h"

#include "core/clock.h"

#include <pthread.h>

struct Loader {
    LoaderOptions options;
    Batch *slots;      // a ring of prefetch + 1: one is with the caller
    Error **problems;  // of each slot, NULL where it is good
    int slot_count;
    int64_t filled, taken;  // micro-batches so far; slot = number % slot_count
    bool stop;
    double waited;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
};

// Every id must be one that the model has a row for.
static Error *check_ids(const Loader *loader, const Batch *batch) {
    int64_t vocabulary = loader->options.vocabulary;
    int64_t count = batch->sequences * batch->length;
    int32_t low = 0, high = 0;
    for (int64_t i = 0; i < count; i++) {
        low = batch->tokens[i] < low ? batch->tokens[i] : low;
        high = batch->tokens[i] > high ? batch->tokens[i] : high;
        high = batch->targets[i] > high ? batch->targets[i] : high;
    }
    if (low >= 0 && high < vocabulary) {
        return NULL;
    }
    return damaged(
        "corpus %s holds token %d near sample %llu, but the model's vocabulary has %lld ids; set model.vocabulary, or run "
        "'athanor inspect' on the corpus",
        loader->options.corpus->path, low < 0 ? low : high, (unsigned long long)batch->first_sample, (long long)vocabulary);
}

static Error *fill(Loader *loader, int64_t number, Batch *batch) {
    const LoaderOptions *o = &loader->options;
    int64_t step = o->first_step + number / o->micro_batches, micro = number % o->micro_batches;
    int64_t step_samples = o->step_samples > 0 ? o->step_samples : o->micro_batches * o->ranks * o->sequences;
    int64_t at = o->side_by_side ? o->rank * o->micro_batches + micro : micro * o->ranks + o->rank;
    batch->first_sample = (uint64_t)(step * step_samples + at * o->sequences);
    for (int64_t b = 0; b < o->sequences; b++) {
        SamplePlace place = order_place(o->order, batch->first_sample + (uint64_t)b);
        TRY(batch_fill(batch, b, &o->corpus->sets[place.set].file, place.first_token, o->corpus->end_of_text,
                       o->documents_apart));
    }
    return check_ids(loader, batch);
}

static void *loader_main(void *argument) {
    Loader *loader = argument;
    pthread_mutex_lock(&loader->lock);
    while (!loader->stop) {
        // Never touch the slot that the caller holds: number taken - 1.
        if (loader->filled - loader->taken >= loader->slot_count - 1) {
            pthread_cond_wait(&loader->changed, &loader->lock);
            continue;
        }
        int64_t number = loader->filled;
        int slot = (int)(number % loader->slot_count);
        pthread_mutex_unlock(&loader->lock);
        Error *problem = fill(loader, number, &loader->slots[slot]);
        pthread_mutex_lock(&loader->lock);
        loader->problems[slot] = problem;
        loader->filled++;
        pthread_cond_broadcast(&loader->changed);
    }
    pthread_mutex_unlock(&loader->lock);
    return NULL;
}

Loader *loader_create(const LoaderOptions *options) {
    ensure(options->prefetch >= 1 && options->sequences >= 1 && options->micro_batches >= 1, "loader options");
    Loader *loader = memory_zeroed(1, sizeof *loader);
    loader->options = *options;
    loader->slot_count = options->prefetch + 1;
    loader->slots = memory_zeroed((size_t)loader->slot_count, sizeof *loader->slots);
    loader->problems = memory_zeroed((size_t)loader->slot_count, sizeof *loader->problems);
    for (int i = 0; i < loader->slot_count; i++) {
        batch_allocate(&loader->slots[i], options->sequences, options->length);
    }
    pthread_mutex_init(&loader->lock, NULL);
    pthread_cond_init(&loader->changed, NULL);
    int failed = pthread_create(&loader->thread, NULL, loader_main, loader);
    ensure(failed == 0, "the loader's thread could not be started: error %d", failed);
    return loader;
}

void loader_destroy(Loader *loader) {
    if (loader == NULL) {
        return;
    }
    pthread_mutex_lock(&loader->lock);
    loader->stop = true;
    pthread_cond_broadcast(&loader->changed);
    pthread_mutex_unlock(&loader->lock);
    pthread_join(loader->thread, NULL);
    for (int i = 0; i < loader->slot_count; i++) {
        batch_free(&loader->slots[i]);
        error_free(loader->problems[i]);
    }
    pthread_mutex_destroy(&loader->lock);
    pthread_cond_destroy(&loader->changed);
    free(loader->slots);
    free(loader->problems);
    free(loader);
}

Error *loader_next(Loader *loader, const Batch **out) {
    pthread_mutex_lock(&loader->lock);
    if (loader->filled == loader->taken) {
        double start = clock_seconds();
        while (loader->filled == loader->taken) {
            pthread_cond_wait(&loader->changed, &loader->lock);
        }
        loader->waited += clock_seconds() - start;
    }
    int slot = (int)(loader->taken++ % loader->slot_count);
    Error *problem = loader->problems[slot];
    loader->problems[slot] = NULL;
    pthread_cond_broadcast(&loader->changed);
    pthread_mutex_unlock(&loader->lock);
    *out = &loader->slots[slot];
    return problem;
}

double loader_waited(const Loader *loader) {
    return loader->waited;
}

size_t loader_bytes(const LoaderOptions *options) {
    return (size_t)(options->prefetch + 1) * batch_bytes(options->sequences, options->length);
}
