// Small models and batches for tests.
#pragma once

#include "train/model/model.h"

// The config of YAML text with a section `model`. Aborts where it is wrong.
ModelConfig models_config(const char *yaml);

// A model on a device with that many threads (and that instruction set; NULL: the best), initialised with a seed; every
// parameter (norm weights and biases too) then gets noise, so that no gradient is trivially right. Close with models_close.
Model *models_open(const ModelConfig *config, const ModelOptions *options, int threads);
Model *models_open_variant(const ModelConfig *config, const ModelOptions *options, int threads, const char *variant);
// The same model on a device that models_close will close too.
Model *models_open_on(Device *device, const ModelConfig *config, const ModelOptions *options);
void models_close(Model *model);

// A copy of all values of an array, row i from its index in the table on, gaps zero: [model->table.elements]. The caller frees.
float *models_values(const Model *model, WeightsArray array);
void models_write(Model *model, WeightsArray array, const float *values);
// A row's weight, on the CPU where it lies.
float *models_weight(const Model *model, int32_t row);

// Moves each weight by a function of its row and logical element, so that ranks that have parts of a model have the same.
void models_disturb(Model *model);
// The largest difference between a rank's part of a row's gradient and that of a model that is whole, and the whole one's
// largest value.
double models_difference(const Model *part, const Model *whole, int32_t row, double *largest);

// A batch with random tokens, targets, weights (some 0, their targets -1) and, where `documents`, several documents in a row.
// Free with batch_free.
Batch models_batch(int64_t sequences, int64_t length, int64_t vocabulary, bool documents, uint64_t seed);

// Rows [begin, begin + count) of a batch, sharing its memory: for the CPU, where a batch is used where it is.
Batch models_batch_rows(const Batch *batch, int64_t begin, int64_t count);
