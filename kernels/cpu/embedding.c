// Embedding: rows looked up, and their gradients summed back.
//
//   y[r] = scale * token_table[tokens[r]] + position_table[positions[r]]
//   dtoken_table[tokens[r]] += scale * dy[r];  dposition_table[positions[r]] += dy[r]
//
// Backward, several rows may add to one: the threads share the columns, so every element is summed in the order of the rows.
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/parts.h"

typedef struct LookUp {
    const EmbeddingForward *a;
    int64_t parts;
} LookUp;

static void look_up_part(void *context, int64_t task, int thread) {
    const LookUp *w = context;
    const EmbeddingForward *a = w->a;
    Range range = range_part(a->rows, 1, w->parts, task);
    int64_t width = a->width;
    float scale = a->scale;
    for (int64_t r = range.begin; r < range.end; r++) {
        float *restrict y = (float *)a->y + r * width;
        int64_t place = a->tokens[r] - a->first;
        const float *token = (const float *)a->token_table + place * width;
        const float *position = a->position_table != NULL ? (const float *)a->position_table + a->positions[r] * width : NULL;
        if (place < 0 || place >= a->vocabulary) {
            for (int64_t c = 0; c < width; c++) {
                y[c] = position != NULL ? position[c] : 0;
            }
        } else if (position == NULL) {
            for (int64_t c = 0; c < width; c++) {
                y[c] = scale * token[c];
            }
        } else {
            for (int64_t c = 0; c < width; c++) {
                y[c] = scale * token[c] + position[c];
            }
        }
    }
}

void CPU_NAME(cpu_embedding_forward)(Device *device, const EmbeddingForward *a) {
    LookUp w = {a, part_count(device, a->rows, a->width)};
    threads_run(device->pool, w.parts, look_up_part, &w);
}

typedef struct SumUp {
    const EmbeddingBackward *a;
    int64_t parts;
} SumUp;

static void sum_up_part(void *context, int64_t task, int thread) {
    const SumUp *w = context;
    const EmbeddingBackward *a = w->a;
    Range range = range_part(a->width, 16, w->parts, task);
    int64_t width = a->width, columns = range.end - range.begin;
    float scale = a->scale;
    for (int64_t r = 0; r < a->rows; r++) {
        const float *dy = (const float *)a->dy + r * width + range.begin;
        int64_t place = a->tokens[r] - a->first;
        if (a->dtoken_table != NULL && place >= 0 && place < a->vocabulary) {
            float *restrict token = a->dtoken_table + place * width + range.begin;
            for (int64_t c = 0; c < columns; c++) {
                token[c] += scale * dy[c];
            }
        }
        if (a->dposition_table != NULL) {
            float *restrict position = a->dposition_table + a->positions[r] * width + range.begin;
            for (int64_t c = 0; c < columns; c++) {
                position[c] += dy[c];
            }
        }
    }
}

void CPU_NAME(cpu_embedding_backward)(Device *device, const EmbeddingBackward *a) {
    // A part of less than 64 columns would read scattered cache lines.
    int64_t parts = part_count(device, (a->width + 63) / 64, a->rows * 64);
    int64_t threads = threads_count(device->pool);
    SumUp w = {a, parts < threads ? parts : threads};
    threads_run(device->pool, w.parts, sum_up_part, &w);
}
