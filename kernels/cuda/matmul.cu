// The matrix products of kernels.h on a card: each becomes a Product (matmul.h), and one of several bodies computes it.
//
//   ours     fp32: matmul_float; few rows: matmul_few; Hopper: matmul_sm90 where it takes the shape; else matmul_sm80
//   cublas   the vendor's library, with a kernel of ours behind it where it cannot express the epilogue
//   auto     whichever of the two was faster for the shape in a trial at its first use; ours where there can be no trial
//            (operations are being recorded, no memory for scratch outputs, no library)
//
// A choice once made stays, and can be described and loaded again, because different bodies add in different orders.
#include "kernels/cuda/element.h"
#include "kernels/cuda/matmul.h"

#include <stdio.h>

namespace BACKEND {

static const char *const body_names[BODY_COUNT] = {"float", "few", "sm90", "sm80", "cublas"};
static const char *const form_names[] = {"forward", "backward_input", "backward_weight"};
static const char *const type_names[] = {"fp32", "bf16", "fp16"};
static const char *const activation_names[] = {"none", "gelu_tanh", "gelu_erf", "relu", "silu"};
static const char *const has_names[] = {"gated", "bias", "residual", "pre", "accumulate", "float"};
enum { FORMS = 3, TYPES = 3, ACTIVATIONS = 5, HAS_BITS = 6 };

#ifdef ATHANOR_SIMULATED
static const bool HAVE_CUBLAS = false;
bool product_cublas(Card *card, const Product *p) {
    return false;
}
bool product_cublas_exists(void) {
    return false;
}
void product_cublas_close(Card *card) {
}
#else
static const bool HAVE_CUBLAS = true;
#endif

static bool run_body(Card *card, ProductBody body, const Product *p) {
    switch (body) {
    case BODY_FLOAT:
        return product_float(card, p);
    case BODY_FEW:
        return product_few(card, p);
    case BODY_SM90:
#ifdef ATHANOR_HAVE_SM90
        return card->architecture == 90 && product_sm90(card, p);
#else
        return false;
#endif
    case BODY_SM80:
        return product_sm80(card, p);
    case BODY_CUBLAS:
        return product_cublas(card, p);
    default:
        return false;
    }
}

// The first of ours that takes the shape.
static ProductBody run_ours(Card *card, const Product *p, bool portable) {
    for (ProductBody body = BODY_FLOAT; body < BODY_CUBLAS; body = (ProductBody)(body + 1)) {
        if (!(portable && body == BODY_SM90) && run_body(card, body, p)) {
            return body;
        }
    }
    ensure(false, "no body takes a matrix product of %lld x %lld x %lld", (long long)p->m, (long long)p->n, (long long)p->k);
}

// ---- Choices

static struct MatmulChoices *choices_of(Card *card) {
    if (card->choices == NULL) {
        card->choices = (struct MatmulChoices *)memory_zeroed(1, sizeof *card->choices);
        card->choices->products = "auto";
    }
    return card->choices;
}

bool matmul_portable(Card *card) {
    return strcmp(choices_of(card)->products, "sm80") == 0;
}

static ProductShape shape_of(const Product *p) {
    ProductShape shape = {};
    shape.form = p->form;
    shape.type = p->type;
    shape.activation = p->activation;
    bool gated = p->epilogue == EPILOGUE_GATED || p->epilogue == EPILOGUE_GATED_BACKWARD;
    shape.has = gated * PRODUCT_HAS_GATE | (p->bias != NULL) * PRODUCT_HAS_BIAS | (p->residual != NULL) * PRODUCT_HAS_RESIDUAL |
                (p->pre != NULL) * PRODUCT_HAS_PRE | p->accumulate * PRODUCT_HAS_ACCUMULATE |
                p->float_output * PRODUCT_HAS_FLOAT;
    shape.m = p->m;
    shape.n = p->n;
    shape.k = p->k;
    return shape;
}

static ProductChoice *choice_find(struct MatmulChoices *choices, const ProductShape *shape) {
    for (size_t i = 0; i < choices->count; i++) {
        if (memcmp(&choices->items[i].shape, shape, sizeof *shape) == 0) {
            return &choices->items[i];
        }
    }
    return NULL;
}

static void choice_add(struct MatmulChoices *choices, const ProductChoice *choice) {
    if (choices->count == choices->capacity) {
        choices->capacity = choices->capacity > 0 ? 2 * choices->capacity : 32;
        choices->items = (ProductChoice *)memory_resize(choices->items, choices->capacity, sizeof *choices->items);
    }
    choices->items[choices->count++] = *choice;
}

// ---- Trials

#ifndef ATHANOR_SIMULATED

// Where a product is short, several between two events, so that the card does not wait for the host.
enum { TRIAL_REPEATS = 7 };
static const int TRIAL_MOST = 8;
static const float TRIAL_SECONDS = 200e-6f;  // between two events, about

static float median(float *x, int count) {
    for (int i = 1; i < count; i++) {
        for (int j = i; j > 0 && x[j] < x[j - 1]; j--) {
            float swap = x[j];
            x[j] = x[j - 1];
            x[j - 1] = swap;
        }
    }
    return x[count / 2];
}

// Times ours against the library's on scratch outputs. False where there can be no trial. Waits for the card.
static bool trial(Card *card, const Product *p, ProductChoice *choice) {
    if (card->capturing || card->failed != NULL) {
        return false;
    }
    size_t c_bytes = (size_t)(p->m * p->c_stride * (p->float_output ? 4 : data_type_bytes(p->type)));
    bool writes_pre = p->pre != NULL && p->form == PRODUCT_FORWARD;
    size_t pre_bytes = writes_pre ? (size_t)(p->m * p->pre_stride * data_type_bytes(p->type)) : 0;
    size_t pre_at = (c_bytes + 255) / 256 * 256;
    unsigned char *scratch = NULL;
    cudaSetDevice(card->ordinal);
    if (cudaMalloc((void **)&scratch, pre_at + pre_bytes + 256) != cudaSuccess) {
        cudaGetLastError();
        return false;
    }
    card_failed(card, "matmul trial", cudaMemsetAsync(scratch, 0, pre_at + pre_bytes, card->stream));
    Product q = *p;
    q.c = scratch;
    q.pre = writes_pre ? scratch + pre_at : p->pre;

    cudaEvent_t begin = NULL, end = NULL;
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
    float times[2][TRIAL_REPEATS];
    bool library = true;
    int products = TRIAL_MOST;
    for (int repeat = -1; repeat < TRIAL_REPEATS && library; repeat++) {  // the first warms up
        for (int body = 0; body < 2; body++) {
            cudaEventRecord(begin, card->stream);
            for (int i = 0; i < products && library; i++) {
                if (body == 0) {
                    choice->body = run_ours(card, &q, false);
                } else {
                    library = product_cublas(card, &q);
                }
            }
            cudaEventRecord(end, card->stream);
            float ms = 0;
            card_failed(card, "matmul trial", cudaEventSynchronize(end));
            cudaEventElapsedTime(&ms, begin, end);
            float seconds = ms * 1e-3f / (float)products;
            if (repeat >= 0) {
                times[body][repeat] = seconds;
            } else if (body == 1) {
                products = seconds < TRIAL_SECONDS / TRIAL_MOST ? TRIAL_MOST : 1 + (int)(TRIAL_SECONDS / seconds);
            }
        }
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    cudaFree(scratch);
    if (library && card->failed == NULL) {
        choice->ours_seconds = median(times[0], TRIAL_REPEATS);
        choice->cublas_seconds = median(times[1], TRIAL_REPEATS);
        choice->why = "trial";
        if (choice->cublas_seconds < 0.98f * choice->ours_seconds) {  // ours where it is a matter of noise
            choice->body = BODY_CUBLAS;
        }
    }
    return library;
}

#else

static bool trial(Card *card, const Product *p, ProductChoice *choice) {
    return false;
}

#endif

// ---- One product

static bool is_aligned(const Product *p) {
    int64_t c_bytes = p->float_output ? 4 : data_type_bytes(p->type), bytes = data_type_bytes(p->type);
    bool halves = p->epilogue == EPILOGUE_GATED || p->epilogue == EPILOGUE_GATED_BACKWARD;
    return (!halves || p->n % 8 == 0) && p->c_stride * c_bytes % 16 == 0 &&
           (p->pre == NULL || p->pre_stride * bytes % 16 == 0) && aligned_16(p->c) && aligned_16(p->pre) &&
           aligned_16(p->residual) && aligned_16(p->bias);
}

void product_compute(Card *card, const Product *product) {
    if (product->m == 0 || product->n == 0) {
        return;
    }
    Product copy = *product;
    copy.aligned = is_aligned(&copy);
    const Product *p = &copy;
    struct MatmulChoices *choices = choices_of(card);
    ProductShape shape = shape_of(p);
    const ProductChoice *known = choice_find(choices, &shape);
    bool portable = matmul_portable(card);
    if (known != NULL) {
        // A body may still refuse: memory of another alignment.
        if (!run_body(card, known->body, p)) {
            run_ours(card, p, portable);
        }
        return;
    }
    ProductChoice choice = {};
    choice.shape = shape;
    choice.why = "rule";
    if (strcmp(choices->products, "cublas") == 0 && product_cublas(card, p)) {
        choice.body = BODY_CUBLAS;
    } else if (strcmp(choices->products, "auto") == 0 && trial(card, p, &choice)) {
        if (!run_body(card, choice.body, p)) {
            choice.body = run_ours(card, p, false);
        }
    } else {
        choice.body = run_ours(card, p, portable);
    }
    choice_add(choices, &choice);
}

// ---- Describing and loading choices

Error *matmul_set_choice(Device *device, const char *products) {
    static const char *const known[] = {"auto", "ours", "cublas", "sm80"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(products, known[i]) == 0) {
            if (strcmp(products, "cublas") == 0 && !HAVE_CUBLAS) {
                return failure("matrix products by cublas: a simulated card has no cuBLAS");
            }
            if (strcmp(products, "cublas") == 0 && !product_cublas_exists()) {
                return failure("matrix products by cublas: no cuBLASLt is found here; let LD_LIBRARY_PATH name where it lies");
            }
            choices_of(card_of(device))->products = known[i];
            return NULL;
        }
    }
    return usage_error("unknown body of matrix products '%s': there are auto, ours, cublas and sm80", products);
}

void matmul_describe_choices(Device *device, Buffer *out) {
    struct MatmulChoices *choices = choices_of(card_of(device));
    for (size_t i = 0; i < choices->count; i++) {
        const ProductChoice *c = &choices->items[i];
        const ProductShape *s = &c->shape;
        buffer_printf(out, "matmul %s %s m=%lld n=%lld k=%lld", form_names[s->form], type_names[s->type], (long long)s->m,
                      (long long)s->n, (long long)s->k);
        if (s->activation != ACTIVATION_NONE) {
            buffer_printf(out, " %s", activation_names[s->activation]);
        }
        for (int bit = 0; bit < HAS_BITS; bit++) {
            if (s->has >> bit & 1) {
                buffer_printf(out, " %s", has_names[bit]);
            }
        }
        buffer_printf(out, " : %s by %s", body_names[c->body], c->why);
        if (c->ours_seconds > 0) {
            buffer_printf(out, ", ours %.1f us, cublas %.1f us", (double)c->ours_seconds * 1e6,
                          (double)c->cublas_seconds * 1e6);
        }
        buffer_text(out, "\n");
    }
}

static int name_index(const char *name, size_t length, const char *const *names, int count) {
    for (int i = 0; i < count; i++) {
        if (strlen(names[i]) == length && memcmp(names[i], name, length) == 0) {
            return i;
        }
    }
    return -1;
}

// Takes the next word of a line (up to a space or its end).
static const char *next_word(const char **at, const char *end, size_t *length) {
    while (*at < end && **at == ' ') {
        (*at)++;
    }
    const char *word = *at;
    while (*at < end && **at != ' ') {
        (*at)++;
    }
    *length = (size_t)(*at - word);
    return word;
}

static bool parse_size(const char *word, size_t length, const char *name, int64_t *out) {
    if (length < 3 || word[0] != name[0] || word[1] != '=') {
        return false;
    }
    *out = 0;
    for (size_t i = 2; i < length; i++) {
        if (word[i] < '0' || word[i] > '9' || *out > INT64_MAX / 10 - 1) {
            return false;
        }
        *out = *out * 10 + (word[i] - '0');
    }
    return true;
}

// One line as matmul_describe_choices writes it; times are not read.
static bool parse_choice(const char *line, const char *end, ProductChoice *choice) {
    size_t length;
    const char *word = next_word(&line, end, &length);
    if (length != 6 || memcmp(word, "matmul", 6) != 0) {
        return false;
    }
    ProductShape *s = &choice->shape;
    word = next_word(&line, end, &length);
    s->form = name_index(word, length, form_names, FORMS);
    word = next_word(&line, end, &length);
    s->type = name_index(word, length, type_names, TYPES);
    bool good = s->form >= 0 && s->type >= 0;
    int64_t *const sizes[] = {&s->m, &s->n, &s->k};
    for (int i = 0; i < 3; i++) {
        word = next_word(&line, end, &length);
        good = good && parse_size(word, length, i == 0 ? "m" : i == 1 ? "n" : "k", sizes[i]);
    }
    for (word = next_word(&line, end, &length); good && !(length == 1 && word[0] == ':');
         word = next_word(&line, end, &length)) {
        int activation = name_index(word, length, activation_names, ACTIVATIONS);
        int bit = name_index(word, length, has_names, HAS_BITS);
        good = activation >= 0 || bit >= 0;  // not at the end either: a word of no letters is no name
        s->activation = activation >= 0 ? activation : s->activation;
        s->has |= bit >= 0 ? 1 << bit : 0;
    }
    word = next_word(&line, end, &length);
    int body = good ? name_index(word, length, body_names, BODY_COUNT) : -1;
    choice->body = (ProductBody)body;
    choice->why = "loaded";
    return body >= 0;
}

// The line as a message may show it: not too long, and nothing that a terminal would obey.
static const char *show_line(const char *line, const char *end, char out[80]) {
    int size = 0;
    while (size < 79 && line + size < end) {
        out[size] = line[size] >= ' ' && line[size] <= '~' ? line[size] : '?';
        size++;
    }
    if (line + size < end) {
        memcpy(out + size - 3, "...", 3);
    }
    out[size] = 0;
    return out;
}

Error *matmul_load_choices(Device *device, const char *text) {
    Card *card = card_of(device);
    struct MatmulChoices *choices = choices_of(card);
    const char *next;
    int number = 0;
    for (const char *line = text; *line != 0; line = next) {
        number++;
        const char *end = strchr(line, '\n');
        next = end != NULL ? end + 1 : line + strlen(line);
        end = end != NULL ? end : next;
        if (end == line) {
            continue;
        }
        ProductChoice choice = {};
        if (!parse_choice(line, end, &choice)) {
            char shown[80];
            return damaged("line %d is no choice of a kernel: '%s': take it out, and its product is chosen anew; results then "
                           "differ in their last bits",
                           number, show_line(line, end, shown));
        }
        if ((choice.body == BODY_CUBLAS && !HAVE_CUBLAS) || (choice.body == BODY_SM90 && card->architecture != 90)) {
            char shown[80];
            return failure("%s lacks the kernel of line %d, '%s', chosen on another card or by another build: go on there, or "
                           "move the file away, and all are chosen anew; results then differ in their last bits",
                           device->name, number, show_line(line, end, shown));
        }
        ProductChoice *known = choice_find(choices, &choice.shape);
        if (known == NULL) {
            choice_add(choices, &choice);
        } else if (known->body != choice.body) {  // else it keeps its times
            *known = choice;
        }
    }
    return NULL;
}

void matmul_close(Card *card) {
    if (card->choices != NULL) {
        product_cublas_close(card);
        free(card->choices->items);
        free(card->choices);
        card->choices = NULL;
    }
}

// ---- The operations

void matmul_forward(Device *device, const MatmulForward *a) {
    ensure(!a->float_output || (a->activation == ACTIVATION_NONE && a->residual == NULL && a->pre == NULL && !a->gated),
           "a float output has a bias at most");
    if (a->rows == 0) {
        return;
    }
    Product p = {};
    p.form = PRODUCT_FORWARD;
    p.epilogue = a->gated ? EPILOGUE_GATED : EPILOGUE_FORWARD;
    p.activation = a->activation;
    p.type = device->type;
    p.float_output = a->float_output || device->type == TYPE_FP32;
    p.m = a->rows;
    p.n = a->gated ? a->out / 2 : a->out;
    p.k = a->in;
    p.a = a->x;
    p.a_stride = a->in;
    p.b = a->w;
    p.b_stride = a->in;
    p.bias = a->bias;
    p.residual = a->residual;
    p.pre = a->pre;
    p.c = a->y;
    p.c_stride = p.n;
    p.pre_stride = a->out;
    product_compute(card_of(device), &p);
}

void matmul_backward_input(Device *device, const MatmulBackwardInput *a) {
    ensure((a->pre == NULL) == (a->activation == ACTIVATION_NONE && !a->gated), "pre goes with an activation");
    ensure(!(a->gated && a->accumulate), "a gated gradient is not accumulated");
    if (a->rows == 0) {
        return;
    }
    Product p = {};
    p.form = PRODUCT_BACKWARD_INPUT;
    p.epilogue = a->gated ? EPILOGUE_GATED_BACKWARD : EPILOGUE_BACKWARD;
    p.activation = a->activation;
    p.type = device->type;
    p.float_output = device->type == TYPE_FP32;
    p.accumulate = a->accumulate;
    p.m = a->rows;
    p.n = a->in;
    p.k = a->out;
    p.a = a->dy;
    p.a_stride = a->out;
    p.b = a->w;
    p.b_stride = a->in;
    p.pre = (void *)a->pre;  // read only
    p.c = a->dx;
    p.c_stride = p.pre_stride = a->gated ? 2 * a->in : a->in;
    product_compute(card_of(device), &p);
}

void matmul_backward_weight(Device *device, const MatmulBackwardWeight *a) {
    if (a->rows == 0) {
        return;
    }
    if (a->dw != NULL) {
        Product p = {};
        p.form = PRODUCT_BACKWARD_WEIGHT;
        p.epilogue = EPILOGUE_BACKWARD;
        p.type = device->type;
        p.float_output = true;
        p.accumulate = true;
        p.m = a->out;
        p.n = a->in;
        p.k = a->rows;
        p.a = a->dy;
        p.a_stride = a->out;
        p.b = a->x;
        p.b_stride = a->in;
        p.c = a->dw;
        p.c_stride = a->in;
        product_compute(card_of(device), &p);
    }
    if (a->dbias != NULL) {
        bias_gradient(card_of(device), device->type, a->rows, a->out, a->dy, a->out, a->dbias);
    }
}

}  // namespace BACKEND
