// Both families against the published implementations: logits, loss and the gradient of every parameter, from
// tests/golden/model (made by make_model_golden.py, which states the format).
//
// Tolerance 1e-5 relative to each tensor's norm and to its largest element. Float32 arithmetic of these sizes (sums of at most
// a few hundred products through two layers) errs by about 1e-6; a wrong formula by 1e-3 and more.
#include "tests/support/check.h"
#include "tests/support/models.h"
#include "train/model/families.h"

#include <math.h>
#include <stdio.h>

typedef struct Record {
    char name[128], type[8];
    int64_t count;
    void *data;
} Record;

typedef struct Golden {
    Record *records;
    int64_t count, capacity;
} Golden;

static Golden golden_read(const char *name) {
    const char *source = getenv("ATHANOR_SOURCE");
    char *path = memory_format("%s/tests/golden/model/%s.golden", source != NULL ? source : ".", name);
    FILE *file = fopen(path, "rb");
    ensure(file != NULL, "%s cannot be read", path);
    char line[256];
    ensure(fgets(line, sizeof line, file) != NULL && strcmp(line, "athanor golden 1\n") == 0, "%s is no golden file", path);
    Golden golden = {0};
    while (fgets(line, sizeof line, file) != NULL) {
        Record record = {0};
        long long count;
        ensure(sscanf(line, "%127s %7s %lld", record.name, record.type, &count) == 3 && count > 0 && count < 1 << 24,
               "%s: bad record %s", path, line);
        record.count = count;
        size_t size = strcmp(record.type, "text") == 0 ? 1 : 4;
        record.data = memory_zeroed((size_t)count + 1, size);
        ensure(fread(record.data, size, (size_t)count, file) == (size_t)count, "%s: %s is cut off", path, record.name);
        array_push(golden.records, golden.count, golden.capacity, record);
    }
    fclose(file);
    free(path);
    return golden;
}

static void golden_free(Golden *golden) {
    for (int64_t i = 0; i < golden->count; i++) {
        free(golden->records[i].data);
    }
    free(golden->records);
}

static const Record *find(const Golden *golden, const char *prefix, const char *name) {
    for (int64_t i = 0; i < golden->count; i++) {
        size_t length = strlen(prefix);
        if (strncmp(golden->records[i].name, prefix, length) == 0 && strcmp(golden->records[i].name + length, name) == 0) {
            return &golden->records[i];
        }
    }
    return NULL;
}

// Both errors of `actual`: of the norm and of the largest element.
static void check_close(const char *model, const char *what, const float *actual, const float *expected, int64_t count) {
    double difference = 0, norm = 0, largest = 0, worst = 0;
    for (int64_t i = 0; i < count; i++) {
        double d = (double)actual[i] - (double)expected[i];
        difference += d * d;
        norm += (double)expected[i] * (double)expected[i];
        worst = fmax(worst, fabs(d));
        largest = fmax(largest, fabs((double)expected[i]));
    }
    double relative = sqrt(difference / norm), element = worst / largest;
    if (!CHECK(relative <= 1e-5 && element <= 1e-5)) {
        printf("  %s %s: relative error %.2g of the norm, %.2g of the largest element\n", model, what, relative, element);
    }
}

// Their tensor as the rows [first, first + rows) of ours.
static void arrange(const FamilyName *name, const float *theirs, int64_t rows, int64_t columns, float *ours) {
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < columns; j++) {
            ours[i * columns + j] = name->transposed ? theirs[j * rows + i] : theirs[i * columns + j];
        }
    }
}

// Calls visit for each tensor of theirs that the model has, and checks that all of our rows are covered.
typedef void (*Visit)(Model *model, const Golden *golden, const FamilyName *name, const Param *row, int64_t first, int64_t rows,
                      const char *theirs);

static void each_tensor(Model *model, const Golden *golden, Visit visit) {
    const Family *family = &families[model->config.family];
    int64_t covered = 0;
    for (int i = 0; i < family->name_count; i++) {
        const FamilyName *name = &family->names[i];
        bool layered = strchr(name->ours, '*') != NULL;
        for (int64_t layer = 0; layer < (layered ? model->config.layers : 1); layer++) {
            char ours[128], theirs[128];
            const Param *row = params_find(&model->table, family_name(name->ours, layer, ours, sizeof ours));
            if (row != NULL) {
                ParamPart part = param_part(row, name->part);
                int64_t first = part.begin, rows = part.end - part.begin;
                visit(model, golden, name, row, first, rows, family_name(name->theirs, layer, theirs, sizeof theirs));
                covered += rows * row->shape[1];
            }
        }
    }
    CHECK_I64(covered, model->table.parameters);
}

static void load_tensor(Model *model, const Golden *golden, const FamilyName *name, const Param *row, int64_t first,
                        int64_t rows, const char *theirs) {
    const Record *record = find(golden, "weight/", theirs);
    ensure(record != NULL && record->count == rows * row->shape[1], "no weight %s of that size", theirs);
    arrange(name, record->data, rows, row->shape[1],
            models_weight(model, (int32_t)(row - model->table.rows)) + first * row->shape[1]);
}

static void check_gradient(Model *model, const Golden *golden, const FamilyName *name, const Param *row, int64_t first,
                           int64_t rows, const char *theirs) {
    const Record *record = find(golden, "grad/", theirs);
    ensure(record != NULL && record->count == rows * row->shape[1], "no gradient %s of that size", theirs);
    float *expected = memory_new((size_t)record->count, sizeof *expected);
    arrange(name, record->data, rows, row->shape[1], expected);
    check_close(families[model->config.family].name, theirs,
                weights_gradient(&model->weights, (int32_t)(row - model->table.rows)) + first * row->shape[1], expected,
                record->count);
    free(expected);
}

static void check_family(const char *name, const char *variant) {
    Golden golden = golden_read(name);
    ModelConfig config = models_config(find(&golden, "", "config")->data);
    const int32_t *shape = find(&golden, "", "shape")->data;
    int64_t rows = (int64_t)shape[0] * shape[1];
    ModelOptions options = {.sequences = shape[0], .length = shape[1], .head_rows = 8};
    Model *model = models_open_variant(&config, &options, 2, variant);
    each_tensor(model, &golden, load_tensor);
    Batch batch = models_batch(shape[0], shape[1], shape[2], false, 1);
    memcpy(batch.tokens, find(&golden, "", "tokens")->data, (size_t)rows * 4);
    memcpy(batch.targets, find(&golden, "", "targets")->data, (size_t)rows * 4);
    memcpy(batch.loss_weights, find(&golden, "", "weights")->data, (size_t)rows * 4);

    float *logits = memory_new((size_t)(rows * shape[2]), sizeof *logits);
    model_logits(model, &batch, logits);
    check_close(name, "logits", logits, find(&golden, "", "logits")->data, rows * shape[2]);
    free(logits);

    double weight_sum = 0;
    for (int64_t r = 0; r < rows; r++) {
        weight_sum += (double)batch.loss_weights[r];
    }
    float z_loss = *(const float *)find(&golden, "", "z_loss")->data;
    StepOptions step = {.grad_scale = (float)(1 / weight_sum), .z_loss = z_loss};
    StepResult result;
    model_forward_backward(model, &batch, &step, &result);
    double loss = (result.loss_sum + (double)z_loss * result.z_sum) / result.weight_sum;
    double expected = (double)*(const float *)find(&golden, "", "loss")->data;
    CHECK_NEAR(loss, expected, 1e-5 * expected);
    each_tensor(model, &golden, check_gradient);

    // The library's own mean loss predicts token t + 1 from t.
    float *losses = memory_new((size_t)rows, sizeof *losses);
    for (int64_t r = 0; r < rows; r++) {
        batch.targets[r] = (r + 1) % shape[1] == 0 ? -1 : batch.tokens[r + 1];
    }
    model_evaluate(model, &batch, losses);
    double sum = 0;
    for (int64_t r = 0; r < rows; r++) {
        sum += (double)losses[r];
    }
    double mean = (double)*(const float *)find(&golden, "", "mean_loss")->data;
    CHECK_NEAR(sum / (double)(rows - shape[0]), mean, 1e-5 * mean);
    free(losses);
    batch_free(&batch);
    models_close(model);
    golden_free(&golden);
}

// With every instruction set that this processor runs.
static void check_variants(const char *name) {
    for (const char *const *variant = device_cpu_variants(); *variant != NULL; variant++) {
        check_family(name, *variant);
    }
}

static void test_gpt2(void) {
    check_variants("gpt2");
}

static void test_llama(void) {
    check_variants("llama");
}

static void test_llama_switched(void) {
    check_variants("llama-switched");
}

int main(void) {
    RUN(test_gpt2);
    RUN(test_llama);
    RUN(test_llama_switched);
    return check_report();
}
