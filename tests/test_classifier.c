// The head fused with cross-entropy on every instruction set that this processor runs, against double precision: losses, z, dx,
// dw and dbias; rows of weight 0, targets of -1, z-loss, chunks of every size.
//
// Errors are bounded by twice those of the textbook formula in fp32 plus a rounding of the largest value. Sentinels stand
// around every output; 1, 2 and 3 threads and a second run must give the same bits.
#include "core/memory.h"
#include "core/philox.h"
#include "kernels/device.h"
#include "tests/support/check.h"

#include <math.h>
#include <stdio.h>

enum { GUARD = 64, OUTPUTS = 5 };
static const float SENTINEL = -12345.678f;
static const char *const output_names[OUTPUTS] = {"losses", "zs", "dx", "dw", "dbias"};

typedef struct Case {
    int64_t rows, width, vocabulary, chunk_rows;
    float z_loss, grad_scale;
    bool bias, dbias, zs, gradient;
    float spread;  // deviation of the logits
    int zeros;     // 0: no row has weight 0, 1: some, 2: all
} Case;

typedef struct Inputs {
    float *x, *w, *bias, *weights;
    int32_t *targets;
    int64_t counts[OUTPUTS];
    float *start[OUTPUTS];  // what outputs hold before
    double *want[OUTPUTS];
    float *plain[OUTPUTS];
} Inputs;

static float *random_new(int64_t count, uint64_t which, float deviation) {
    float *x = memory_tensor((size_t)count * sizeof(float));
    philox_normal(11, philox_stream(RANDOM_TEST, which), 0, deviation, x, count);
    return x;
}

// The formulas of kernels.h in double precision and, step by step the same, in single.
static void reference(const Case *c, Inputs *in) {
    int64_t C = c->width, V = c->vocabulary;
    double *logits = memory_new((size_t)V, sizeof *logits);
    float *plain = memory_new((size_t)V, sizeof *plain);
    for (int i = 0; i < OUTPUTS; i++) {
        for (int64_t j = 0; j < in->counts[i]; j++) {
            in->want[i][j] = i < 3 ? 0 : in->start[i][j];
            in->plain[i][j] = i < 3 ? 0 : in->start[i][j];
        }
    }
    for (int64_t r = 0; r < c->rows; r++) {
        double top = -INFINITY, sum = 0;
        float plain_top = -INFINITY, plain_sum = 0;
        for (int64_t v = 0; v < V; v++) {
            logits[v] = 0;
            plain[v] = 0;
            for (int64_t i = 0; i < C; i++) {
                logits[v] += (double)in->x[r * C + i] * (double)in->w[v * C + i];
                plain[v] += in->x[r * C + i] * in->w[v * C + i];
            }
            logits[v] += c->bias ? in->bias[v] : 0;
            plain[v] += c->bias ? in->bias[v] : 0;
            top = fmax(top, logits[v]);
            plain_top = fmaxf(plain_top, plain[v]);
        }
        for (int64_t v = 0; v < V; v++) {
            sum += exp(logits[v] - top);
            plain_sum += expf(plain[v] - plain_top);
        }
        double z = top + log(sum);
        float plain_z = plain_top + logf(plain_sum);
        int32_t target = in->targets[r];
        in->want[0][r] = target >= 0 ? z - logits[target] : 0;
        in->plain[0][r] = target >= 0 ? plain_z - plain[target] : 0;
        in->want[1][r] = z;
        in->plain[1][r] = plain_z;
        if (in->weights[r] == 0) {
            continue;
        }
        double scale = (double)in->weights[r] * (double)c->grad_scale;
        float plain_scale = in->weights[r] * c->grad_scale;
        for (int64_t v = 0; v < V; v++) {
            double p = exp(logits[v] - z);
            float plain_p = expf(plain[v] - plain_z);
            double d = scale * (p * (1 + 2 * (double)c->z_loss * z) - (v == target));
            float plain_d = plain_scale * (plain_p * (1 + 2 * c->z_loss * plain_z) - (float)(v == target));
            for (int64_t i = 0; i < C; i++) {
                in->want[2][r * C + i] += d * (double)in->w[v * C + i];
                in->plain[2][r * C + i] += plain_d * in->w[v * C + i];
                in->want[3][v * C + i] += d * (double)in->x[r * C + i];
                in->plain[3][v * C + i] += plain_d * in->x[r * C + i];
            }
            in->want[4][v] += d;
            in->plain[4][v] += plain_d;
        }
    }
    free(logits);
    free(plain);
}

static Inputs inputs_new(const Case *c) {
    int64_t R = c->rows, C = c->width, V = c->vocabulary;
    Inputs in = {.counts = {R, R, R * C, V * C, V}};
    in.x = random_new(R * C, 1, c->spread);
    in.w = random_new(V * C, 2, 1 / sqrtf((float)C));
    in.bias = random_new(V, 3, 1);
    in.weights = memory_tensor((size_t)R * sizeof(float));
    in.targets = memory_tensor((size_t)R * sizeof(int32_t));
    for (int64_t r = 0; r < R; r++) {
        uint64_t random = philox_u64(11, philox_stream(RANDOM_TEST, 4), (uint64_t)r);
        bool zero = c->zeros == 2 || (c->zeros == 1 && (random % 3 == 0 || r == 0 || r == R - 1));
        in.weights[r] = zero ? 0 : 0.25f * (float)(1 + random % 7);
        in.targets[r] = zero && random % 2 == 0 ? -1 : (int32_t)((random >> 8) % (uint64_t)V);
    }
    for (int i = 0; i < OUTPUTS; i++) {
        in.start[i] = random_new(in.counts[i], 5 + (uint64_t)i, 0.1f);
        in.want[i] = memory_new((size_t)in.counts[i], sizeof(double));
        in.plain[i] = memory_new((size_t)in.counts[i], sizeof(float));
    }
    reference(c, &in);
    return in;
}

static void inputs_free(const Case *c, Inputs *in) {
    int64_t R = c->rows, C = c->width, V = c->vocabulary;
    memory_tensor_free(in->x, (size_t)(R * C) * sizeof(float));
    memory_tensor_free(in->w, (size_t)(V * C) * sizeof(float));
    memory_tensor_free(in->bias, (size_t)V * sizeof(float));
    memory_tensor_free(in->weights, (size_t)R * sizeof(float));
    memory_tensor_free(in->targets, (size_t)R * sizeof(int32_t));
    for (int i = 0; i < OUTPUTS; i++) {
        memory_tensor_free(in->start[i], (size_t)in->counts[i] * sizeof(float));
        free(in->want[i]);
        free(in->plain[i]);
    }
}

static bool present(const Case *c, int output) {
    return output == 0 || (output == 1 ? c->zs : c->gradient && (output < 4 || c->dbias));
}

static void run(Device *device, const Case *c, const Inputs *in, float *const *out) {
    for (int i = 0; i < OUTPUTS; i++) {
        memcpy(out[i], in->start[i], (size_t)in->counts[i] * sizeof(float));
    }
    int64_t bytes = device->op->classifier_scratch_bytes(device->type, c->chunk_rows, c->width, c->vocabulary);
    char *scratch = memory_tensor((size_t)bytes + GUARD);
    memset(scratch, 0xA5, (size_t)bytes + GUARD);
    device->op->classifier(device, &(Classifier){.rows = c->rows,
                                                 .width = c->width,
                                                 .vocabulary = c->vocabulary,
                                                 .x = in->x,
                                                 .w = in->w,
                                                 .bias = c->bias ? in->bias : NULL,
                                                 .targets = in->targets,
                                                 .weights = in->weights,
                                                 .z_loss = c->z_loss,
                                                 .grad_scale = c->grad_scale,
                                                 .losses = out[0],
                                                 .zs = present(c, 1) ? out[1] : NULL,
                                                 .dx = present(c, 2) ? out[2] : NULL,
                                                 .dw = present(c, 3) ? out[3] : NULL,
                                                 .dbias = present(c, 4) ? out[4] : NULL,
                                                 .chunk_rows = c->chunk_rows,
                                                 .scratch = scratch});
    for (int i = 0; i < GUARD; i++) {
        CHECK((unsigned char)scratch[bytes + i] == 0xA5);
    }
    memory_tensor_free(scratch, (size_t)bytes + GUARD);
}

static double worst(const double *want, const float *have, int64_t count) {
    double most = 0;
    for (int64_t i = 0; i < count; i++) {
        double error = have != NULL ? fabs((double)have[i] - want[i]) : fabs(want[i]);
        most = error > most || isnan(error) ? error : most;
    }
    return most;
}

static void check_errors(const Case *c, const char *variant, const Inputs *in, float *const *out) {
    for (int i = 0; i < OUTPUTS; i++) {
        if (present(c, i)) {
            double floor = 1.2e-7 * worst(in->want[i], NULL, in->counts[i]);
            // A loss is the difference of z and a logit, so z's rounding is its floor.
            floor = i == 0 ? fmax(floor, 1.2e-7 * worst(in->want[1], NULL, c->rows)) : floor;
            double bound = 2 * worst(in->want[i], in->plain[i], in->counts[i]) + floor;
            double error = worst(in->want[i], out[i], in->counts[i]);
            if (!CHECK(error <= bound)) {
                printf("%s R=%lld C=%lld V=%lld: %s errs by %g, allowed %g\n", variant, (long long)c->rows, (long long)c->width,
                       (long long)c->vocabulary, output_names[i], error, bound);
            }
        } else {
            CHECK(memcmp(out[i], in->start[i], (size_t)in->counts[i] * sizeof(float)) == 0);
        }
    }
}

static void check_case(const Case *c) {
    Inputs in = inputs_new(c);
    float *out[OUTPUTS], *first[OUTPUTS];
    for (int i = 0; i < OUTPUTS; i++) {
        out[i] = (float *)memory_tensor((size_t)(in.counts[i] + 2 * GUARD) * sizeof(float)) + GUARD;
        first[i] = memory_new((size_t)in.counts[i], sizeof(float));
        for (int j = 0; j < GUARD; j++) {
            out[i][-1 - j] = out[i][in.counts[i] + j] = SENTINEL;
        }
    }
    for (const char *const *variant = device_cpu_variants(); *variant != NULL; variant++) {
        for (int runs = 0; runs < 4; runs++) {
            Device *device = NULL;
            CHECK_OK(device_open_cpu(runs < 3 ? runs + 1 : 2, *variant, &device));
            run(device, c, &in, out);
            device_close(device);
            if (runs == 0) {
                check_errors(c, *variant, &in, out);
            }
            for (int i = 0; i < OUTPUTS; i++) {
                size_t bytes = (size_t)in.counts[i] * sizeof(float);
                if (runs == 0) {
                    memcpy(first[i], out[i], bytes);
                }
                CHECK(memcmp(first[i], out[i], bytes) == 0);
                for (int j = 0; j < GUARD; j++) {
                    CHECK(out[i][-1 - j] == SENTINEL && out[i][in.counts[i] + j] == SENTINEL);
                }
            }
        }
    }
    for (int i = 0; i < OUTPUTS; i++) {
        memory_tensor_free(out[i] - GUARD, (size_t)(in.counts[i] + 2 * GUARD) * sizeof(float));
        free(first[i]);
    }
    inputs_free(c, &in);
}

static void test_training(void) {
    static const int64_t shapes[][4] = {{1, 1, 1, 1},      {3, 5, 2, 2},      {7, 16, 17, 7},    {8, 13, 31, 3},
                                        {16, 32, 64, 5},   {33, 24, 101, 16}, {50, 48, 256, 64}, {19, 7, 1601, 19},
                                        {40, 64, 997, 13}, {24, 770, 49, 24}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        Case c = {shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], .grad_scale = 0.125f, .gradient = true, .spread = 2};
        check_case(&c);
        c.bias = c.dbias = c.zs = true;
        c.z_loss = 0.01f;
        c.zeros = 1;
        check_case(&c);
    }
}

static void test_forward_only(void) {
    check_case(&(Case){17, 20, 300, 5, .grad_scale = 1, .spread = 3});
    check_case(&(Case){17, 20, 300, 17, .grad_scale = 1, .spread = 3, .bias = true, .zs = true, .zeros = 1});
}

static void test_no_weight(void) {
    check_case(&(Case){9, 12, 40, 4, .grad_scale = 1, .gradient = true, .dbias = true, .zs = true, .spread = 1, .zeros = 2});
}

// Logits of several hundred: exp would overflow without the shift by the maximum.
static void test_large_logits(void) {
    check_case(&(Case){12, 16, 130, 12, .grad_scale = 1, .gradient = true, .zs = true, .spread = 300});
}

int main(void) {
    RUN(test_training);
    RUN(test_forward_only);
    RUN(test_no_weight);
    RUN(test_large_logits);
    return check_report();
}
