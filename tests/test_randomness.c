// That chance is as many chances as it should be: every epoch of every set has a shuffle of its own, every place of the network
// its own stream of dropout, every tensor its own initial values.
#include "core/philox.h"
#include "data/tokens/order.h"
#include "tests/support/check.h"
#include "tests/support/models.h"
#include "tests/support/texts.h"

#include <stdio.h>

// ---- Shuffles

enum { LENGTH = 4, PER_EPOCH = 64, EPOCHS = 3, SETS = 2, SEEDS = 2, ORDERS = EPOCHS * SETS * SEEDS };

// In which order an epoch of a set goes through its samples.
typedef struct Shuffle {
    int64_t place[PER_EPOCH];
    int64_t seen;
} Shuffle;

static void read_shuffles(const Corpus *corpus, uint64_t seed, Shuffle *shuffles) {
    Order *order;
    CHECK_OK(order_create(corpus, LENGTH, NULL, NULL, seed, &order));
    for (uint64_t i = 0; i < 4 * SETS * PER_EPOCH; i++) {
        SamplePlace place = order_place(order, i);
        if (place.epoch < EPOCHS) {
            Shuffle *s = &shuffles[place.set * EPOCHS + place.epoch];
            CHECK(s->seen < PER_EPOCH);
            s->place[s->seen++] = place.first_token;
        }
    }
    // Every epoch begins at an offset of its own.
    for (int s = 0; s < SETS * EPOCHS; s++) {
        int64_t offset = shuffles[s].place[0];
        for (int i = 0; i < PER_EPOCH; i++) {
            offset = shuffles[s].place[i] < offset ? shuffles[s].place[i] : offset;
        }
        for (int i = 0; i < PER_EPOCH; i++) {
            shuffles[s].place[i] = (shuffles[s].place[i] - offset) / LENGTH;
        }
    }
    order_free(order);
}

// Two shuffles of n agree in one place on average, and hardly ever in more than six.
static void test_shuffles(void) {
    const int64_t counts[SETS] = {(PER_EPOCH + 1) * LENGTH + 1, (PER_EPOCH + 1) * LENGTH + 1};
    static Shuffle shuffles[ORDERS];
    Corpus corpus = texts_corpus(SETS, counts, 1000, 95, 3);
    for (int s = 0; s < SEEDS; s++) {
        read_shuffles(&corpus, (uint64_t)s + 1, shuffles + s * EPOCHS * SETS);
    }
    for (int a = 0; a < ORDERS; a++) {
        CHECK_I64(shuffles[a].seen, PER_EPOCH);
        for (int b = 0; b <= a; b++) {
            int same = 0, followers = 0;
            for (int i = 0; i < PER_EPOCH; i++) {
                same += shuffles[a].place[i] == (b < a ? shuffles[b].place[i] : i);
                // The same circle begun elsewhere would be no shuffle of its own either.
                for (int k = 0; k + 1 < PER_EPOCH && i + 1 < PER_EPOCH && b < a; k++) {
                    followers +=
                        shuffles[a].place[i] == shuffles[b].place[k] && shuffles[a].place[i + 1] == shuffles[b].place[k + 1];
                }
            }
            CHECK(same <= 6 && followers <= 6);
        }
    }
    texts_close(&corpus);
}

// What a seed's order is never changes: runs go on in it.
static void test_pinned_places(void) {
    static const struct {
        uint64_t sample;
        SamplePlace place;
    } pinned[] = {{0, {0, 0, 838}},   {1, {0, 0, 230}},  {2, {0, 0, 630}},           {3, {1, 0, 186}},
                  {100, {1, 1, 164}}, {101, {0, 1, 91}}, {1000000, {0, 12499, 250}}, {3000000007, {0, 37500000, 438}}};
    const int64_t counts[] = {1000, 333};
    Corpus corpus = texts_corpus(2, counts, 1000, 95, 3);
    Order *order;
    CHECK_OK(order_create(&corpus, 16, NULL, NULL, 1234, &order));
    for (size_t i = 0; i < sizeof pinned / sizeof *pinned; i++) {
        SamplePlace place = order_place(order, pinned[i].sample);
        CHECK_I64(place.set, pinned[i].place.set);
        CHECK_I64(place.epoch, pinned[i].place.epoch);
        CHECK_I64(place.first_token, pinned[i].place.first_token);
    }
    order_free(order);
    texts_close(&corpus);
}

// ---- Dropout

typedef struct Draw {
    uint64_t seed, stream, first, end;
    bool attention;
} Draw;

static struct {
    const Operations *real;
    Draw draws[1000];
    int count;
} seen;

static void note(Draw draw) {
    ensure(seen.count < 1000, "many draws");
    seen.draws[seen.count++] = draw;
}

static void note_dropout(Device *device, const Dropout *a) {
    CHECK(a->probability > 0);
    note((Draw){a->seed, a->stream, a->first, a->first + (uint64_t)a->count, false});
    seen.real->dropout(device, a);
}

static void note_shape(const AttentionShape *s) {
    CHECK(s->dropout > 0);
    uint64_t each = (uint64_t)s->heads * (uint64_t)(s->queries * s->queries);
    note((Draw){s->seed, s->stream, s->first_sample * each, (s->first_sample + (uint64_t)s->batch) * each, true});
}

static void note_attention(Device *device, const AttentionForward *a) {
    note_shape(&a->shape);
    seen.real->attention_forward(device, a);
}

static void note_attention_backward(Device *device, const AttentionBackward *a) {
    note_shape(&a->shape);
    seen.real->attention_backward(device, a);
}

// The draws of one micro-batch.
static void run_batch(Model *model, uint64_t first_sample, uint64_t seed) {
    Batch batch = models_batch(2, 8, model->config.vocabulary, false, 3);
    batch.first_sample = first_sample;
    model_forward_backward(model, &batch, &(StepOptions){.grad_scale = 1, .seed = seed}, NULL);
    batch_free(&batch);
}

// No number is drawn for two purposes: each layer's attention, its two branches and the embedding have streams of their own,
// the sequences parts of these; the way back draws what the way forward drew, no more and no less.
static void test_dropout_streams(void) {
    enum { LAYERS = 3, PLACES = 3 * LAYERS + 1 };
    static Operations noting;
    for (Recompute recompute = RECOMPUTE_NONE; recompute <= RECOMPUTE_FULL; recompute++) {
        ModelConfig config =
            models_config("model:\n  family: gpt2\n  layers: 3\n  width: 24\n  heads: 3\n  context: 16\n  vocabulary: "
                          "37\n  dropout: 0.2\n");
        Model *model = models_open(&config, &(ModelOptions){.sequences = 2, .length = 8, .recompute = recompute}, 1);
        seen.real = model->device->op;
        seen.count = 0;
        noting = *seen.real;
        noting.dropout = note_dropout;
        noting.attention_forward = note_attention;
        noting.attention_backward = note_attention_backward;
        model->device->op = &noting;
        run_batch(model, 0, 7);
        int once = seen.count;
        run_batch(model, 2, 7);
        run_batch(model, 0, 8);
        CHECK(once >= 2 * PLACES && seen.count == 3 * once);
        int forward = 0, back = 0;
        for (int i = 0; i < seen.count; i++) {
            const Draw *a = &seen.draws[i];
            CHECK(a->seed == (i < 2 * once ? 7 : 8));
            CHECK(a->stream == seen.draws[i % once].stream);
            bool again = false;
            for (int k = 0; k < i; k++) {
                const Draw *b = &seen.draws[k];
                bool same = a->first == b->first && a->end == b->end && a->attention == b->attention;
                if (a->seed == b->seed && a->stream == b->stream) {
                    // A part that was drawn before is the same part of the same place on its way back, or it is another one.
                    CHECK(k / once == i / once ? same : a->first >= b->end);
                    again |= k / once == i / once;
                }
            }
            forward += !again && i < once;
            back += again && i < once;
        }
        CHECK_I64(forward, PLACES);
        CHECK(back >= PLACES);
        model->device->op = seen.real;
        models_close(model);
    }
}

// ---- Initial values

// No tensor begins as another one does, nor as a part of it.
static void test_initial_values(void) {
    ModelConfig config =
        models_config("model:\n  family: llama\n  layers: 3\n  width: 32\n  heads: 4\n  context: 16\n  vocabulary: 37\n");
    Device *device;
    Model *model;
    CHECK_OK(device_open_cpu(1, NULL, &device));
    CHECK_OK(model_create(device, &config, &(ModelOptions){.sequences = 1, .length = 8}, &model));
    model_initialise(model, 5);
    float *values = models_values(model, ARRAY_WEIGHT);
    int matrices = 0;
    for (int32_t a = 0; a < model->table.count; a++) {
        const Param *row = &model->table.rows[a];
        matrices += row->init == INIT_NORMAL;
        for (int32_t b = 0; b < a && row->init == INIT_NORMAL; b++) {
            const Param *other = &model->table.rows[b];
            int64_t count = row->count < other->count ? row->count : other->count, opposed = 0;
            for (int64_t i = 0; i < count && other->init == INIT_NORMAL; i++) {
                opposed += (values[row->index + i] > 0) != (values[other->index + i] > 0);
            }
            CHECK(other->init != INIT_NORMAL || (opposed > count / 3 && opposed < count * 2 / 3));
        }
    }
    CHECK(matrices > 12);
    free(values);
    models_close(model);
}

int main(void) {
    RUN(test_shuffles);
    RUN(test_pinned_places);
    RUN(test_dropout_streams);
    RUN(test_initial_values);
    return check_report();
}
