// Rotary position embedding in place (Su et al. 2021): pairs of a head's first rotary_width elements are turned by an angle
// whose cosine and sine come from a table row of the token's position. See kernels.h for the two ways of pairing.
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/parts.h"

typedef struct RotaryWork {
    const Rotary *a;
    int64_t parts;
} RotaryWork;

static void turn_halves(float *restrict x, const float *restrict cosine, const float *restrict sine, float sign, int half) {
    float *restrict y = x + half;
    for (int i = 0; i < half; i++) {
        float first = x[i], second = y[i], s = sign * sine[i];
        x[i] = first * cosine[i] - second * s;
        y[i] = second * cosine[i] + first * s;
    }
}

static void turn_neighbours(float *restrict x, const float *restrict cosine, const float *restrict sine, float sign, int half) {
    for (int i = 0; i < half; i++) {
        float first = x[2 * i], second = x[2 * i + 1], s = sign * sine[i];
        x[2 * i] = first * cosine[i] - second * s;
        x[2 * i + 1] = second * cosine[i] + first * s;
    }
}

static void rotary_part(void *context, int64_t task, int thread) {
    const RotaryWork *w = context;
    const Rotary *a = w->a;
    Range range = range_part(a->rows, 1, w->parts, task);
    int half = a->rotary_width / 2;
    float sign = a->inverse ? -1.0f : 1.0f;
    for (int64_t r = range.begin; r < range.end; r++) {
        const float *cosine = a->cos_sin + a->positions[r] * (int64_t)a->rotary_width;
        float *x = (float *)a->x + r * a->row_stride;
        for (int h = 0; h < a->heads; h++, x += a->head_width) {
            if (a->interleaved) {
                turn_neighbours(x, cosine, cosine + half, sign, half);
            } else {
                turn_halves(x, cosine, cosine + half, sign, half);
            }
        }
    }
}

void CPU_NAME(cpu_rotary)(Device *device, const Rotary *a) {
    RotaryWork w = {a, part_count(device, a->rows, (int64_t)a->heads * a->rotary_width)};
    threads_run(device->pool, w.parts, rotary_part, &w);
}
