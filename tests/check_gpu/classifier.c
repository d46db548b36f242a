// The head fused with its loss on a card, with GPT-2's own vocabulary and a padded one, in chunks of rows as a step has them.
// Ours against float64 (rows of the loss and of dx, rows of dw) and against itself over the portable products (all of it).
#include "tests/check_gpu/checks.h"

#include "kernels/scratch.h"
#include "tests/support/op_check.h"

enum { SAMPLES = 16, OUTPUTS = 4 };
static const char *const output_names[OUTPUTS] = {"losses", "zs", "dx", "dw"};

typedef struct ClassifierCheck {
    bool small;
    int64_t rows, width, vocabulary, chunk_rows;
} ClassifierCheck;

static const ClassifierCheck classifiers[] = {
    {true, 256, 128, 1031, 128},      {true, 256, 128, 1024, 128},       {false, 16384, 768, 50257, 4096},
    {false, 16384, 768, 50304, 4096}, {false, 8192, 2048, 128256, 2048},
};

// Inputs, on the card and as the host knows them.
typedef struct Head {
    ClassifierCheck c;
    Tensor x, w;
    float *host_w, *z;  // w; z as ours gave it
    int32_t *targets;
    float *weights;
    void *targets_there, *weights_there, *scratch;
    size_t scratch_bytes;
} Head;
typedef struct Results {
    Tensor of[OUTPUTS];
} Results;

static ClassifierCheck divided(const ClassifierCheck *check) {
    ClassifierCheck c = *check;
    if (!c.small) {
        int64_t odd = c.vocabulary % 8 == 0 ? 0 : 1;
        c.rows = part(c.rows, 64), c.width = part(c.width, 8), c.chunk_rows = part(c.chunk_rows, 64);
        c.vocabulary = rehearsal ? c.vocabulary / 64 / 8 * 8 + odd : c.vocabulary;
    }
    return c;
}

static Error *head_make(Device *device, Head *h) {
    const ClassifierCheck *c = &h->c;
    size_t rows = (size_t)c->rows;
    h->host_w = memory_new((size_t)(c->vocabulary * c->width), sizeof(float));
    h->z = memory_new(rows, sizeof(float));
    h->targets = memory_new(rows, sizeof(int32_t));
    h->weights = memory_new(rows, sizeof(float));
    for (int64_t r = 0; r < c->rows; r++) {  // every seventh row counts for nothing
        h->targets[r] = r % 7 == 3 ? -1 : (int32_t)(r * 2654435761 % c->vocabulary);
        h->weights[r] = r % 7 == 3 ? 0 : 1;
    }
    // Logits of deviation 3.5: some probabilities of a row then weigh against the target's.
    TRY(tensor_random(device, TYPE_BF16, c->rows * c->width, 0, 0, &h->x));
    TRY(tensor_random(device, TYPE_BF16, c->vocabulary * c->width, 1, 2 - (int)lround(log2(sqrt((double)c->width))), &h->w));
    tensor_start(&h->w, 0, 1, h->w.count, h->host_w);
    h->scratch_bytes = (size_t)classifier_scratch_bytes(true, TYPE_BF16, c->chunk_rows, c->vocabulary);
    TRY(device_allocate(device, rows * sizeof(int32_t), &h->targets_there));
    TRY(device_allocate(device, rows * sizeof(float), &h->weights_there));
    TRY(device_allocate(device, h->scratch_bytes, &h->scratch));
    device_upload(device, h->targets_there, h->targets, rows * sizeof(int32_t));
    device_upload(device, h->weights_there, h->weights, rows * sizeof(float));
    return device_finish(device);
}

static void head_free(Device *device, Head *h) {
    size_t bytes = (size_t)h->c.rows * sizeof(float);
    tensor_free(&h->x);
    tensor_free(&h->w);
    free(h->host_w);
    free(h->z);
    free(h->targets);
    free(h->weights);
    device_release(device, h->targets_there, bytes);
    device_release(device, h->weights_there, bytes);
    device_release(device, h->scratch, h->scratch_bytes);
}

static Error *head_run(const Head *h, Device *device, Results *r) {
    const ClassifierCheck *c = &h->c;
    const int64_t counts[OUTPUTS] = {c->rows, c->rows, c->rows * c->width, c->vocabulary * c->width};
    for (int i = 0; i < OUTPUTS; i++) {
        TRY(tensor_zeros(device, i == 2 ? TYPE_BF16 : TYPE_FP32, counts[i], &r->of[i]));
    }
    device->op->classifier(device, &(Classifier){.rows = c->rows,
                                                 .width = c->width,
                                                 .vocabulary = c->vocabulary,
                                                 .x = h->x.at,
                                                 .w = h->w.at,
                                                 .targets = h->targets_there,
                                                 .loss_weights = h->weights_there,
                                                 .grad_scale = 1,
                                                 .losses = r->of[0].at,
                                                 .zs = r->of[1].at,
                                                 .dx = r->of[2].at,
                                                 .dw = r->of[3].at,
                                                 .chunk_rows = c->chunk_rows,
                                                 .scratch = h->scratch});
    return device_finish(device);
}

static void results_free(Results *r) {
    for (int i = 0; i < OUTPUTS; i++) {
        tensor_free(&r->of[i]);
    }
}

// ---- Samples

typedef struct Samples {
    const Head *head;
    int64_t rows[SAMPLES], tokens[SAMPLES];
    double loss[SAMPLES], z[SAMPLES], partial[SAMPLES];
    float plain_loss[SAMPLES], plain_z[SAMPLES];
    double *exact[2];  // dx of the rows, dw of the tokens: SAMPLES lines of C
    float *plain[2];
} Samples;

static double logit(const Head *h, const float *x, int64_t token, float *plain) {
    const float *w = h->host_w + token * h->c.width;
    double exact = 0;
    *plain = 0;
    for (int64_t i = 0; i < h->c.width; i++) {
        exact += (double)x[i] * (double)w[i];
        *plain += x[i] * w[i];
    }
    *plain = op_round(TYPE_BF16, *plain);
    return exact;
}

// Loss, z and dx of a row.
static void sample_row(Samples *s, int at) {
    const Head *h = s->head;
    int64_t C = h->c.width, V = h->c.vocabulary, r = s->rows[at];
    float *x = memory_new((size_t)C, sizeof *x), *plain = memory_new((size_t)V, sizeof *plain), plain_top = -INFINITY,
          plain_sum = 0;
    double *exact = memory_new((size_t)V, sizeof *exact), top = -INFINITY, sum = 0;
    tensor_start(&h->x, r * C, 1, C, x);
    for (int64_t v = 0; v < V; v++) {
        exact[v] = logit(h, x, v, &plain[v]);
        top = fmax(top, exact[v]);
        plain_top = fmaxf(plain_top, plain[v]);
    }
    for (int64_t v = 0; v < V; v++) {
        sum += exp(exact[v] - top);
        plain_sum += expf(plain[v] - plain_top);
    }
    double z = s->z[at] = top + log(sum);
    float plain_z = s->plain_z[at] = plain_top + logf(plain_sum);
    int32_t target = h->targets[r];
    s->loss[at] = target >= 0 ? z - exact[target] : 0;
    s->plain_loss[at] = target >= 0 ? plain_z - plain[target] : 0;
    s->partial[at] = fabs(top);
    for (int64_t v = 0; v < V && target >= 0; v++) {
        double d = exp(exact[v] - z) - (v == target);
        float plain_d = op_round(TYPE_BF16, expf(plain[v] - plain_z) - (float)(v == target));
        for (int64_t i = 0; i < C; i++) {
            s->exact[0][at * C + i] += d * (double)h->host_w[v * C + i];
            s->plain[0][at * C + i] += plain_d * h->host_w[v * C + i];
        }
    }
    for (int64_t i = 0; i < C; i++) {
        s->plain[0][at * C + i] = op_round(TYPE_BF16, s->plain[0][at * C + i]);
    }
    free(x);
    free(plain);
    free(exact);
}

// dw of a token, with the z of every row as ours gave it, whose samples are held against float64 themselves.
static void sample_token(Samples *s, int at) {
    const Head *h = s->head;
    int64_t C = h->c.width, v = s->tokens[at];
    float *x = memory_new((size_t)C, sizeof *x), plain;
    for (int64_t r = 0; r < h->c.rows; r++) {
        if (h->targets[r] < 0) {
            continue;
        }
        tensor_start(&h->x, r * C, 1, C, x);
        double d = exp(logit(h, x, v, &plain) - (double)h->z[r]) - (v == h->targets[r]);
        plain = op_round(TYPE_BF16, expf(plain - h->z[r]) - (float)(v == h->targets[r]));
        for (int64_t i = 0; i < C; i++) {
            s->exact[1][at * C + i] += d * (double)x[i];
            s->plain[1][at * C + i] += plain * x[i];
        }
    }
    free(x);
}

static void sample_task(void *context, int64_t task, int thread) {
    (task < SAMPLES ? sample_row : sample_token)(context, (int)(task % SAMPLES));
}

static double largest_of(const double *x, int64_t count) {
    double largest = 0;
    for (int64_t i = 0; i < count; i++) {
        largest = fmax(largest, fabs(x[i]));
    }
    return largest;
}

// The rows of an output against their samples: one number each (width 1), pooled, or lines of C.
static void look(const Tensor *of, const int64_t *rows, int64_t width, double cut, const double *exact, const float *plain,
                 Bound *bound) {
    float *given = memory_new((size_t)(SAMPLES * width), sizeof *given);
    double largest = largest_of(exact, SAMPLES * width);
    bound->type = of->type;
    for (int i = 0; i < SAMPLES; i++) {
        tensor_now(of, rows[i] * width, width, given + i * width);
        if (width > 1) {
            bound_row(bound, largest, cut, width, exact + i * width, plain + i * width, given + i * width);
        }
    }
    if (width == 1) {
        bound_row(bound, largest, cut, SAMPLES, exact, plain, given);
    }
    free(given);
}

static void check_samples(Head *h, const Results *ours, ThreadPool *pool, Finding *finding, Bound *bounds) {
    Samples *s = memory_zeroed(1, sizeof *s);
    int64_t C = h->c.width;
    s->head = h;
    sample_places(3, h->c.rows, SAMPLES, s->rows);
    sample_places(4, h->c.vocabulary, SAMPLES, s->tokens);
    s->tokens[SAMPLES - 1] = h->targets[h->c.rows - 1] >= 0 ? h->targets[h->c.rows - 1] : h->targets[h->c.rows - 2];
    for (int i = 0; i < 2; i++) {
        s->exact[i] = memory_zeroed((size_t)(SAMPLES * C), sizeof(double));
        s->plain[i] = memory_zeroed((size_t)(SAMPLES * C), sizeof(float));
    }
    tensor_now(&ours->of[1], 0, h->c.rows, h->z);
    threads_run(pool, 2 * SAMPLES, sample_task, s);
    double cut = card_cut(C, largest_of(s->partial, SAMPLES));
    look(&ours->of[0], s->rows, 1, cut, s->loss, s->plain_loss, &bounds[0]);
    look(&ours->of[1], s->rows, 1, cut, s->z, s->plain_z, &bounds[1]);
    look(&ours->of[2], s->rows, C, 0, s->exact[0], s->plain[0], &bounds[2]);
    look(&ours->of[3], s->tokens, C, card_cut(h->c.rows, largest_of(s->exact[1], SAMPLES * C)), s->exact[1], s->plain[1],
         &bounds[3]);
    for (int i = 0; i < OUTPUTS; i++) {
        finding_samples(finding, output_names[i], &bounds[i]);
    }
    for (int i = 0; i < 2; i++) {
        free(s->exact[i]);
        free(s->plain[i]);
    }
    free(s);
}

// ---- One check

// The products within: all by Hopper's body.
static void check_bodies(Device *device, Finding *finding) {
    Buffer text = {0};
    device_describe_choices(device, &text);
    for (char *line = strtok(text.data, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        bool other = card_is_hopper() && strstr(line, ": sm90 by") == NULL;
        if (other) {
            finding_add(finding, true, "not by sm90: %s", line);
        }
    }
    buffer_free(&text);
}

static Error *check_on(Device *device, Head *h, Results *ours, Results *again, Finding *finding) {
    Bound bounds[OUTPUTS] = {{0}};
    Device *portable = NULL;
    TRY(head_make(device, h));
    TRY(head_run(h, device, ours));
    check_bodies(device, finding);
    TRY(head_run(h, device, again));
    plant(&ours->of[3]);
    plant(&again->of[3]);
    check_samples(h, ours, device->pool, finding, bounds);
    for (int i = 0; i < OUTPUTS; i++) {
        finding_same_bits(finding, output_names[i], &ours->of[i], &again->of[i]);
    }
    results_free(again);
    TRY(card_open(TYPE_BF16, "sm80", &portable));
    Error *error = head_run(h, portable, again);
    for (int i = 0; i < OUTPUTS && error == NULL; i++) {
        finding_other_body(finding, output_names[i], "sm80", &ours->of[i], &again->of[i], &bounds[i], i < 2 ? 0 : h->c.width);
    }
    results_free(again);
    device_close(portable);
    return error;
}

static Error *check_classifier(const void *what, Finding *finding) {
    Head head = {.c = divided(what)};
    Device *device = NULL;
    Results ours = {0}, again = {0};
    TRY(card_open(TYPE_BF16, "ours", &device));
    Error *error = check_on(device, &head, &ours, &again, finding);
    results_free(&ours);
    results_free(&again);
    head_free(device, &head);
    device_close(device);
    return error;
}

void list_classifiers(void) {
    for (size_t i = 0; i < sizeof classifiers / sizeof *classifiers; i++) {
        ClassifierCheck c = divided(&classifiers[i]);
        check_add(check_classifier, &classifiers[i], "%sclassifier/%lldx%lldx%lld", c.small ? "smoke/" : "", (long long)c.rows,
                  (long long)c.width, (long long)c.vocabulary);
    }
}
