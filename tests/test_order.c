// data/order, data/batch, data/loader: which tokens a step sees.
#include "core/philox.h"
#include "data/tokens/loader.h"
#include "tests/support/check.h"

#include <math.h>
#include <stdio.h>

enum { END = 900 };

// A set of documents: lengths from a seed, tokens that tell their own position (position % 800), each closed by END where
// asked.
static void make_set(const char *folder, const char *name, int documents, bool end, CorpusSet *set) {
    char *prefix = path_join(folder, name);
    TokenWriter *writer;
    CHECK_OK(token_writer_create(prefix, 2, &writer));
    int32_t position = 0;
    for (int d = 0; d < documents; d++) {
        int length = 1 + (int)(philox_u64(1, 2, (uint64_t)d) % 40);
        for (int i = 0; i < length; i++, position++) {
            int32_t token = end && i == length - 1 ? END : position % 800;
            CHECK_OK(token_writer_append(writer, &token, 1));
        }
        CHECK_OK(token_writer_end_document(writer));
    }
    CHECK_OK(token_writer_commit(writer));
    *set = (CorpusSet){.name = memory_string(name), .prefix = prefix, .text_bytes = -1};
    CHECK_OK(token_file_open(prefix, &set->file));
    set->tokens = set->file.tokens;
    set->documents = set->file.documents;
}

static Corpus make_corpus(int count, const int *documents, bool end) {
    const char *folder = check_folder();
    Corpus corpus = {.path = memory_string(folder),
                     .set_count = count,
                     .vocabulary = 1000,
                     .end_of_text = end ? END : -1,
                     .fingerprint = 77};
    corpus.sets = memory_zeroed((size_t)count, sizeof *corpus.sets);
    for (int d = 0; d < count; d++) {
        char name[8];
        snprintf(name, sizeof name, "set%d", d);
        make_set(folder, name, documents[d], end, &corpus.sets[d]);
    }
    return corpus;
}

static Proportions proportions_of(int count, const double *values) {
    Proportions w = {memory_zeroed(4, sizeof(char *)), memory_zeroed(4, sizeof(double)), (size_t)count};
    for (int i = 0; i < count; i++) {
        w.names[i] = memory_format("set%d", i);
        w.values[i] = values[i];
    }
    return w;
}

static void proportions_free(Proportions *w) {
    for (size_t i = 0; i < w->count; i++) {
        free(w->names[i]);
    }
    free(w->names);
    free(w->values);
}

// Each set's samples are numbered 0, 1, 2 ... without a gap: within an epoch every place once; shares hold for every prefix.
static void test_mixture(void) {
    static const int documents[] = {300, 40, 900};
    Corpus corpus = make_corpus(3, documents, true);
    double shares[] = {0.2, 0.5, 0.3};
    Proportions mixture = proportions_of(3, shares);
    Order *order;
    CHECK_OK(order_create(&corpus, 16, &mixture, NULL, 5, &order));
    int64_t drawn[3] = {0};
    bool *seen[3];
    for (int d = 0; d < 3; d++) {
        seen[d] = memory_zeroed((size_t)order_set_samples(order, d), 1);
    }
    for (uint64_t i = 0; i < 6000; i++) {
        SamplePlace place = order_place(order, i);
        int64_t epoch_samples = order_set_samples(order, place.set);
        CHECK(place.first_token >= 0 && place.first_token + 16 < corpus.sets[place.set].tokens);
        if (!CHECK_I64(place.epoch, drawn[place.set] / epoch_samples)) {
            break;
        }
        if (drawn[place.set] % epoch_samples == 0) {
            memset(seen[place.set], 0, (size_t)epoch_samples);
        }
        int64_t slot = place.first_token / 16;
        // The offset of an epoch is the same for all its samples, so slots are distinct up to that shift.
        slot = slot % epoch_samples;
        CHECK(!seen[place.set][slot]);
        seen[place.set][slot] = true;
        drawn[place.set]++;
        for (int d = 0; d < 3; d++) {
            if (fabs((double)drawn[d] - shares[d] * (double)(i + 1)) > 3) {
                CHECK_NEAR((double)drawn[d], shares[d] * (double)(i + 1), 3);
            }
        }
    }
    // Far ahead costs the same and agrees with counting: sample n and n + 2^32 fall on the same point of the circle.
    SamplePlace near_place = order_place(order, 123), far = order_place(order, 123 + ((uint64_t)1 << 32));
    CHECK_I64(near_place.set, far.set);
    CHECK(far.epoch > 1000000);
    order_free(order);

    double by_epoch[] = {2};
    Proportions epochs = proportions_of(1, by_epoch);
    CHECK_OK(order_create(&corpus, 16, NULL, &epochs, 5, &order));
    double total = 0;
    for (int d = 0; d < 3; d++) {
        total += (double)order_set_samples(order, d) * (d == 0 ? 2 : 1);
    }
    CHECK_NEAR(order_set_share(order, 0), 2 * (double)order_set_samples(order, 0) / total, 1e-6);
    order_free(order);

    CHECK_FAILS(order_create(&corpus, 16, &mixture, &epochs, 5, &order), "cannot both be given");
    Proportions nothing = proportions_of(3, (double[]){0, 0, 0}), endless = proportions_of(1, (double[]){INFINITY});
    CHECK_FAILS(order_create(&corpus, 16, &nothing, NULL, 5, &order), "data.mixture: the weights of the sets");
    CHECK_FAILS(order_create(&corpus, 16, NULL, &nothing, 5, &order), "data.epochs: the weights of the sets");
    CHECK_FAILS(order_create(&corpus, 16, &endless, NULL, 5, &order), "add up to inf");
    proportions_free(&nothing);
    proportions_free(&endless);
    CHECK_FAILS(order_create(&corpus, 1 << 20, NULL, NULL, 5, &order), "nothing to draw from");
    CHECK_FAILS(order_create(&corpus, 1 << 20, &mixture, NULL, 5, &order), "fewer than one sequence");
    free(mixture.names[2]);
    mixture.names[2] = memory_string("sett2");
    CHECK_FAILS(order_create(&corpus, 16, &mixture, NULL, 5, &order), "did you mean 'set2'?");
    proportions_free(&mixture);
    proportions_free(&epochs);
    for (int d = 0; d < 3; d++) {
        free(seen[d]);
    }
    corpus_close(&corpus);
}

// Batches against a plain walk over the stream.
static void check_batch(const Corpus *corpus, bool apart) {
    const TokenFile *file = &corpus->sets[0].file;
    enum { LENGTH = 24 };
    int32_t *stream = memory_new((size_t)file->tokens, sizeof *stream);
    bool *opens = memory_zeroed((size_t)file->tokens + 1, 1);
    CHECK_OK(token_file_read(file, 0, file->tokens, stream));
    for (int64_t d = 1; d < file->documents; d++) {
        opens[token_file_document_start(file, d)] = true;
    }
    Batch batch;
    batch_allocate(&batch, 1, LENGTH);
    for (int64_t start = 0; start + 1 < file->tokens; start += start > file->tokens - 100 ? 1 : 7) {
        CHECK_OK(batch_fill(&batch, 0, file, start, corpus->end_of_text, apart));
        int32_t first = 0;
        bool good = true;
        for (int64_t t = 0; t < LENGTH; t++) {
            int64_t p = start + t;
            if (p + 1 >= file->tokens) {
                good &= batch.loss_weights[t] == 0 && batch.targets[t] == -1;
                continue;
            }
            bool seam_next = opens[p + 1];  // the next token opens a document
            bool end_here = stream[p] == corpus->end_of_text && seam_next;
            if (apart && t > 0 && (end_here || (opens[p] && stream[p - 1] != corpus->end_of_text))) {
                first = (int32_t)t;
            }
            bool blind = apart && seam_next && !end_here;
            good &= batch.tokens[t] == stream[p] && batch.first[t] == first && batch.positions[t] == t - first;
            good &= batch.loss_weights[t] == (blind ? 0 : 1) && batch.targets[t] == (blind ? -1 : stream[p + 1]);
        }
        if (!good) {
            CHECK_I64(start, -1);
            break;
        }
    }
    CHECK(true);
    batch_free(&batch);
    free(stream);
    free(opens);
}

static void test_batches(void) {
    static const int documents[] = {200};
    for (int end = 0; end < 2; end++) {
        Corpus corpus = make_corpus(1, documents, end);
        check_batch(&corpus, true);
        check_batch(&corpus, false);
        corpus_close(&corpus);
    }
}

// The samples of a step are the same set whatever the number of ranks, and resuming is starting at a step.
static void test_loader(void) {
    static const int documents[] = {300, 200};
    Corpus corpus = make_corpus(2, documents, true);
    Order *order;
    CHECK_OK(order_create(&corpus, 16, NULL, NULL, 5, &order));
    LoaderOptions base = {.order = order,
                          .corpus = &corpus,
                          .vocabulary = 1000,
                          .sequences = 2,
                          .length = 16,
                          .micro_batches = 4,
                          .ranks = 1,
                          .prefetch = 3,
                          .documents_apart = true};
    Loader *whole = loader_create(&base);
    const Batch *batch;
    uint64_t sums[6][8];  // of each sample's tokens, by place in the step
    for (int step = 0; step < 6; step++) {
        for (int m = 0; m < 4; m++) {
            CHECK_OK(loader_next(whole, &batch));
            CHECK_I64(batch->first_sample, step * 8 + m * 2);
            for (int b = 0; b < 2; b++) {
                sums[step][m * 2 + b] = 0;
                for (int t = 0; t < 16; t++) {
                    sums[step][m * 2 + b] = sums[step][m * 2 + b] * 31 + (uint64_t)batch->tokens[b * 16 + t];
                }
            }
        }
    }
    loader_destroy(whole);
    for (int rank = 0; rank < 2; rank++) {
        LoaderOptions part = base;
        part.micro_batches = 2;
        part.ranks = 2;
        part.rank = rank;
        part.first_step = 3;
        Loader *loader = loader_create(&part);
        for (int step = 3; step < 6; step++) {
            for (int m = 0; m < 2; m++) {
                CHECK_OK(loader_next(loader, &batch));
                for (int b = 0; b < 2; b++) {
                    uint64_t sum = 0;
                    for (int t = 0; t < 16; t++) {
                        sum = sum * 31 + (uint64_t)batch->tokens[b * 16 + t];
                    }
                    CHECK(sum == sums[step][(m * 2 + rank) * 2 + b]);
                }
            }
        }
        loader_destroy(loader);
    }
    base.vocabulary = 700;
    Loader *wrong = loader_create(&base);
    Error *error = NULL;
    for (int i = 0; i < 50 && error == NULL; i++) {
        error = loader_next(wrong, &batch);
    }
    CHECK_FAILS(error, "vocabulary has 700 ids");
    loader_destroy(wrong);
    order_free(order);
    corpus_close(&corpus);
}

// Every sequence of every micro-batch is the sample of its number, and together the ranks' are each sample once, however many
// sequences a micro-batch has.
static void test_sequences(void) {
    static const int documents[] = {300, 200};
    enum { LENGTH = 16, STEPS = 2, MOST = 5 };
    Corpus corpus = make_corpus(2, documents, true);
    Order *order;
    CHECK_OK(order_create(&corpus, LENGTH, NULL, NULL, 5, &order));
    Batch alone;
    batch_allocate(&alone, 1, LENGTH);
    for (int sequences = 1; sequences <= MOST; sequences++) {
        for (int ranks = 1; ranks <= 3; ranks++) {
            for (int micro_batches = 1; micro_batches <= 3; micro_batches++) {
                int taken[STEPS * MOST * 3 * 3] = {0}, all = STEPS * sequences * ranks * micro_batches, wrong = 0;
                for (int rank = 0; rank < ranks; rank++) {
                    LoaderOptions options = {order, &corpus, 1000, sequences, LENGTH, micro_batches, rank, ranks, 0, 2, true};
                    Loader *loader = loader_create(&options);
                    const Batch *batch;
                    for (int m = 0; m < STEPS * micro_batches; m++) {
                        CHECK_OK(loader_next(loader, &batch));
                        for (int b = 0; b < sequences; b++) {
                            uint64_t sample = batch->first_sample + (uint64_t)b;
                            SamplePlace place = order_place(order, sample);
                            CHECK_OK(batch_fill(&alone, 0, &corpus.sets[place.set].file, place.first_token, END, true));
                            taken[sample < (uint64_t)all ? sample : 0]++;
                            wrong += memcmp(alone.tokens, batch->tokens + b * LENGTH, LENGTH * sizeof *alone.tokens) != 0 ||
                                     memcmp(alone.targets, batch->targets + b * LENGTH, LENGTH * sizeof *alone.targets) != 0;
                        }
                    }
                    loader_destroy(loader);
                }
                for (int i = 0; i < all; i++) {
                    wrong += taken[i] != 1;
                }
                CHECK_I64(wrong, 0);
            }
        }
    }
    batch_free(&alone);
    order_free(order);
    corpus_close(&corpus);
}

// One copy of its block is the whole batch.
static void test_batch_block(void) {
    enum { SEQUENCES = 3, LENGTH = 5, ROWS = SEQUENCES * LENGTH };
    Batch batch, there;
    batch_allocate(&batch, SEQUENCES, LENGTH);
    for (int i = 0; i < ROWS; i++) {
        batch.tokens[i] = i;
        batch.targets[i] = 100 + i;
        batch.loss_weights[i] = 0.5F + (float)i;
        batch.first[i] = 300 + i;
        batch.positions[i] = 400 + i;
    }
    int32_t memory[ROWS * BATCH_ARRAYS];
    CHECK_I64((int64_t)batch_bytes(SEQUENCES, LENGTH), (int64_t)sizeof memory);
    memcpy(memory, batch_block(&batch), sizeof memory);
    batch_place(&there, memory, SEQUENCES, LENGTH);
    CHECK(memcmp(there.tokens, batch.tokens, ROWS * sizeof(int32_t)) == 0);
    CHECK(memcmp(there.targets, batch.targets, ROWS * sizeof(int32_t)) == 0);
    CHECK(memcmp(there.loss_weights, batch.loss_weights, ROWS * sizeof(float)) == 0);
    CHECK(memcmp(there.first, batch.first, ROWS * sizeof(int32_t)) == 0);
    CHECK(memcmp(there.positions, batch.positions, ROWS * sizeof(int32_t)) == 0);
    batch_free(&batch);
}

int main(void) {
    RUN(test_mixture);
    RUN(test_batches);
    RUN(test_loader);
    RUN(test_sequences);
    RUN(test_batch_block);
    return check_report();
}
