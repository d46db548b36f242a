// Small models and batches for tests: see models.h.
#include "tests/support/models.h"

#include "core/config.h"
#include "core/philox.h"
#include "tests/support/check.h"

#include <math.h>

static void must(Error *error) {
    ensure(error == NULL, "%s", error->message);
}

ModelConfig models_config(const char *yaml) {
    ModelConfig config = {0};
    bool *seen = memory_zeroed((size_t)model_key_count, sizeof *seen);
    keys_defaults(model_keys, model_key_count, &config);
    must(config_read_text(model_keys, model_key_count, &config, "test", yaml, strlen(yaml), seen));
    must(model_config_resolve(&config, seen, 0, "test"));
    free(seen);
    return config;
}

Model *models_open(const ModelConfig *config, const ModelOptions *options, int threads) {
    return models_open_variant(config, options, threads, NULL);
}

Model *models_open_variant(const ModelConfig *config, const ModelOptions *options, int threads, const char *variant) {
    Device *device;
    must(device_open_cpu(threads, variant, &device));
    return models_open_on(device, config, options);
}

Model *models_open_on(Device *device, const ModelConfig *config, const ModelOptions *options) {
    Model *model;
    must(model_create(device, config, options, &model));
    model_initialise(model, 1);
    float *values = models_values(model, ARRAY_WEIGHT), *noise = memory_new((size_t)model->table.elements, sizeof *noise);
    for (int32_t i = 0; i < model->table.count; i++) {
        const Param *row = &model->table.rows[i];
        philox_normal(2, philox_stream(RANDOM_TEST, (uint64_t)i), 0, 0.15F, noise, row->count);
        for (int64_t j = 0; j < row->count; j++) {
            values[row->index + j] += noise[j];
        }
    }
    models_write(model, ARRAY_WEIGHT, values);
    free(noise);
    free(values);
    return model;
}

float *models_values(const Model *model, WeightsArray array) {
    float *values = memory_zeroed((size_t)model->table.elements, sizeof *values);
    for (int32_t i = 0; i < model->table.count; i++) {
        Range extent = weights_extent(&model->weights, array, i);
        weights_read(&model->weights, array, i, extent.begin, extent.end, values + model->table.rows[i].index);
    }
    return values;
}

void models_write(Model *model, WeightsArray array, const float *values) {
    for (int32_t i = 0; i < model->table.count; i++) {
        Range extent = weights_extent(&model->weights, array, i);
        weights_write(&model->weights, array, i, extent.begin, extent.end, values + model->table.rows[i].index);
    }
}

float *models_weight(const Model *model, int32_t row) {
    return placement_weight(&model->weights.placement, row, model->weights.weights);
}

void models_disturb(Model *model) {
    for (int32_t i = 0; i < model->table.count; i++) {
        const Param *row = &model->table.rows[i];
        const Place *place = &model->weights.placement.places[i];
        float *values = memory_new((size_t)place->count + 1, sizeof *values);
        weights_read(&model->weights, ARRAY_WEIGHT, i, 0, place->count, values);
        int64_t at = 0;
        for (int b = 0; b < place->box_count; b++) {
            const Box *box = &place->boxes[b];
            int64_t columns = row->dims == 1 ? 1 : row->shape[1];
            for (int64_t r = box->begin[0]; r < box->end[0]; r++) {
                int64_t first = row->dims == 1 ? 0 : box->begin[1], last = row->dims == 1 ? 1 : box->end[1];
                for (int64_t c = first; c < last; c++, at++) {
                    values[at] += 0.1F * sinf((float)(i * 37 + (r * columns + c) * 11 % 1013));
                }
            }
        }
        weights_write(&model->weights, ARRAY_WEIGHT, i, 0, place->count, values);
        free(values);
    }
}

double models_difference(const Model *part, const Model *whole, int32_t i, double *largest) {
    const Param *row = &part->table.rows[i];
    const Place *place = &part->weights.placement.places[i];
    float *mine = memory_new((size_t)place->count + 1, sizeof *mine), *all = memory_new((size_t)row->count, sizeof *all);
    weights_read(&part->weights, ARRAY_GRADIENT, i, 0, place->count, mine);
    weights_read(&whole->weights, ARRAY_GRADIENT, i, 0, row->count, all);
    double worst = 0;
    int64_t at = 0, columns = row->dims == 1 ? 1 : row->shape[1];
    for (int b = 0; b < place->box_count; b++) {
        const Box *box = &place->boxes[b];
        for (int64_t r = box->begin[0]; r < box->end[0]; r++) {
            int64_t first = row->dims == 1 ? 0 : box->begin[1], last = row->dims == 1 ? 1 : box->end[1];
            for (int64_t c = first; c < last; c++, at++) {
                worst = fmax(worst, fabs((double)mine[at] - (double)all[r * columns + c]));
            }
        }
    }
    *largest = 0;
    for (int64_t j = 0; j < row->count; j++) {
        *largest = fmax(*largest, fabs((double)all[j]));
    }
    CHECK_I64(at, place->count);
    free(mine);
    free(all);
    return worst;
}

void models_close(Model *model) {
    Device *device = model->device;
    model_destroy(model);
    device_close(device);
}

Batch models_batch(int64_t sequences, int64_t length, int64_t vocabulary, bool documents, uint64_t seed) {
    size_t rows = (size_t)(sequences * length);
    Batch out;
    batch_allocate(&out, sequences, length);
    for (size_t r = 0; r < rows; r++) {
        Philox random = philox(seed, philox_stream(RANDOM_TEST, 0), r);
        int32_t t = (int32_t)(r % (size_t)length);
        bool starts = t == 0 || (documents && random.word[3] % 7 == 0);
        out.tokens[r] = (int32_t)(random.word[0] % (uint64_t)vocabulary);
        out.targets[r] = (int32_t)(random.word[1] % (uint64_t)vocabulary);
        out.loss_weights[r] = (float)(0.25 + philox_unit(random.word[2]));
        out.first[r] = starts ? t : out.first[r - 1];
        out.positions[r] = t - out.first[r];
        if (random.word[2] % 5 == 0) {
            out.loss_weights[r] = 0;
            out.targets[r] = -1;
        }
    }
    return out;
}

Batch models_batch_rows(const Batch *batch, int64_t begin, int64_t count) {
    Batch part = *batch;
    int64_t skip = begin * part.length;
    part.sequences = count;
    part.tokens += skip;
    part.targets += skip;
    part.loss_weights += skip;
    part.first += skip;
    part.positions += skip;
    part.first_sample += (uint64_t)begin;
    return part;
}
