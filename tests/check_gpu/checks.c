// Checks what bench_gpu times, in the sizes of training, on a card: see checks.h for how.
//
//   check_gpu --list     a line a check: its name. Those that begin with smoke/ are small, one for every kind of kernel
//   check_gpu --serve    answers each line of its input, the name of a check, with one: "ok: what was seen", "wrong: what was
//                        seen", or "error: why" where the card failed, which ends the program
//   check_gpu            does every check itself
//
// --rehearse before any of these does the same on the simulated card with sizes divided. --plant, too, spoils one result of
// ours in every check by 16 bytes: all must be wrong, else a check is blind.
#include "tests/check_gpu/checks.h"

#include "core/clock.h"
#include "core/philox.h"
#include "tests/support/op_check.h"

#include <stdarg.h>
#include <stdio.h>

enum { MOST_CHECKS = 128, MOST_NUMBERS = 32, CHUNK = 1 << 24, TASKS = 64 };

bool rehearsal, planting;

typedef struct Check {
    char name[96];
    CheckRun run;
    const void *what;
} Check;
static Check checks[MOST_CHECKS];
static int check_count;

void check_add(CheckRun run, const void *what, const char *format, ...) {
    ensure(check_count < MOST_CHECKS, "room for more checks");
    Check *check = &checks[check_count++];
    *check = (Check){.run = run, .what = what};
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(check->name, sizeof check->name, format, arguments);
    va_end(arguments);
}

void finding_add(Finding *f, bool wrong, const char *format, ...) {
    f->wrong |= wrong;
    f->length += (size_t)snprintf(f->text + f->length, FINDING_TEXT - f->length, "%s%s", f->length > 0 ? "; " : "",
                                  wrong ? "WRONG " : "");
    f->length = f->length < FINDING_TEXT ? f->length : FINDING_TEXT - 1;
    va_list arguments;
    va_start(arguments, format);
    f->length += (size_t)vsnprintf(f->text + f->length, FINDING_TEXT - f->length, format, arguments);
    va_end(arguments);
    f->length = f->length < FINDING_TEXT ? f->length : FINDING_TEXT - 1;
}

// ---- The card

int64_t part(int64_t size, int64_t divisor) {
    return !rehearsal ? size : size > divisor ? size / divisor : 1;
}

static DeviceKind card_kind(void) {
    return rehearsal ? DEVICE_SIMULATED : DEVICE_CUDA;
}

Error *card_open(DataType type, const char *products, Device **out) {
    TRY(device_open_card(card_kind(), 0, type, threads_available(), out));
    return device_set_products(*out, products);
}

bool card_is_hopper(void) {
    static DeviceDescription *cards;
    if (cards == NULL) {
        cards = memory_zeroed(1, sizeof *cards);
        Error *error = device_describe_cards(card_kind(), cards);
        ensure(error == NULL, "%s", error->message);
    }
    return cards->card[0].architecture == 90;
}

double card_cut(int64_t length, double largest_partial) {
    return rehearsal ? 0 : (double)((length + 15) / 16) * 0x1p-23 * largest_partial;
}

// ---- Numbers

// A prime times 8: repeated, they begin at another column in every row of a tensor, and every repetition at a whole pack.
static int64_t period(void) {
    return rehearsal ? 8 * 8191 : 8 * 524287;
}

static const float *numbers_of(DataType type, int which, int exponent) {
    static struct {
        DataType type;
        int which, exponent;
        float *values;
    } known[MOST_NUMBERS];
    int i = 0;
    while (known[i].values != NULL && (known[i].type != type || known[i].which != which || known[i].exponent != exponent)) {
        i++;
        ensure(i < MOST_NUMBERS, "room for more numbers");
    }
    if (known[i].values == NULL) {
        known[i].type = type, known[i].which = which, known[i].exponent = exponent;
        float *values = known[i].values = memory_new((size_t)period(), sizeof *values);
        philox_normal(13, philox_stream(RANDOM_TEST, (uint64_t)which), 0, ldexpf(1, exponent), values, period());
        for (int64_t j = 0; j < period(); j++) {
            values[j] = op_round(type, values[j]);
        }
    }
    return known[i].values;
}

int64_t tensor_bytes(const Tensor *t) {
    return t->count * data_type_bytes(t->type);
}

Error *tensor_zeros(Device *device, DataType type, int64_t count, Tensor *out) {
    *out = (Tensor){.device = device, .type = type, .count = count};
    return device_allocate(device, (size_t)tensor_bytes(out), &out->at);
}

Error *tensor_random(Device *device, DataType type, int64_t count, int which, int exponent, Tensor *out) {
    TRY(tensor_zeros(device, type, count, out));
    out->numbers = numbers_of(type, which, exponent);
    void *floats;
    size_t bytes = (size_t)period() * sizeof(float);
    TRY(device_allocate(device, bytes, &floats));
    device_upload(device, floats, out->numbers, bytes);
    for (int64_t i = 0; i < count; i += period()) {
        int64_t now = count - i < period() ? count - i : period();
        device->op->convert(device, &(Convert){now, TYPE_FP32, type, floats, (char *)out->at + i * data_type_bytes(type)});
    }
    Error *error = device_finish(device);
    device_release(device, floats, bytes);
    return error;
}

void tensor_free(Tensor *t) {
    if (t->at != NULL) {
        device_release(t->device, t->at, (size_t)tensor_bytes(t));
    }
    *t = (Tensor){0};
}

void tensor_start(const Tensor *t, int64_t first, int64_t stride, int64_t count, float *to) {
    int64_t at = first % period(), step = stride % period();
    for (int64_t i = 0; i < count; i++) {
        to[i] = t->numbers == NULL ? 0 : t->numbers[at];
        at += step;
        at -= at >= period() ? period() : 0;
    }
}

void tensor_now(const Tensor *t, int64_t first, int64_t count, float *to) {
    int64_t bytes = data_type_bytes(t->type);
    void *raw = memory_new((size_t)count + 1, (size_t)bytes);
    device_download(t->device, raw, (const char *)t->at + first * bytes, (size_t)(count * bytes));
    op_decode(t->type, raw, to, count);
    free(raw);
}

void sample_places(uint64_t stream, int64_t limit, int count, int64_t *places) {
    const int64_t chosen[] = {0, limit - 1, 127, 128, 255, 256};
    for (int i = 0; i < count; i++) {
        bool fits = i < (int)(sizeof chosen / sizeof *chosen) && chosen[i] < limit;
        places[i] = limit <= count ? i % limit
                    : fits         ? chosen[i]
                                   : (int64_t)(philox_u64(17, stream, (uint64_t)i) % (uint64_t)limit);
    }
}

// ---- Comparing

static double last_place(DataType type) {
    return type == TYPE_FP32 ? 0x1p-24 : type == TYPE_BF16 ? 0x1p-8 : 0x1p-11;
}
static const double LEAST_ROW = 0x1p-10;

void bound_row(Bound *bound, double largest, double cut, int64_t count, const double *exact, const float *plain,
               const float *given) {
    double row = LEAST_ROW * largest, plain_error = 0, error = 0;
    for (int64_t i = 0; i < count; i++) {
        row = fmax(row, fabs(exact[i]));
        plain_error = fmax(plain_error, fabs((double)plain[i] - exact[i]));
        double off = fabs((double)given[i] - exact[i]);
        error = off <= error ? error : off;  // also where it is no number
    }
    double allowed = 2 * plain_error + last_place(bound->type) * row + cut, over = error / allowed;
    bound->largest = largest;
    bound->relative = fmax(bound->relative, (allowed - cut) / row);
    bound->cut = fmax(bound->cut, cut);
    bound->worst = over <= bound->worst ? bound->worst : over;
    bound->samples += count;
}

void finding_samples(Finding *finding, const char *what, const Bound *bound) {
    finding_add(finding, !(bound->worst <= 1), "%s: %lld samples within %.2f of the bound", what, (long long)bound->samples,
                bound->worst);
}

// Two tensors are compared by chunks, which a pool shares.
typedef struct Comparison {
    DataType type;
    const unsigned char *a, *b;
    int64_t count, width;
    const Bound *bound;
    double worst[TASKS];  // difference over what is allowed
    int64_t where[TASKS], differ[TASKS];
} Comparison;

static float element(DataType type, const unsigned char *memory, int64_t i) {
    float value;
    if (type == TYPE_BF16) {
        uint16_t half;
        memcpy(&half, memory + 2 * i, sizeof half);
        uint32_t bits = (uint32_t)half << 16;
        memcpy(&value, &bits, sizeof value);
    } else {
        op_decode(type, memory + i * data_type_bytes(type), &value, 1);
    }
    return value;
}

static void compare_task(void *context, int64_t task, int thread) {
    Comparison *c = context;
    int64_t rows = c->count / c->width;
    Range range = range_part(rows, 1, TASKS, task);
    c->where[task] = -1;
    for (int64_t r = range.begin; r < range.end; r++) {
        double row = LEAST_ROW * c->bound->largest;
        int64_t first = r * c->width;
        for (int64_t i = first; i < first + c->width && c->width > 1; i++) {
            row = fmax(row, fabs((double)element(c->type, c->b, i)));
        }
        for (int64_t i = first; i < first + c->width; i++) {
            double a = (double)element(c->type, c->a, i), b = (double)element(c->type, c->b, i);
            double size = c->width > 1 ? row : fmax(c->bound->largest, fabs(b));
            double over = a == b ? 0 : fabs(a - b) / (2 * (c->bound->relative * size + c->bound->cut));
            c->differ[task] += a != b;
            if (!(over <= c->worst[task])) {
                c->worst[task] = over;
                c->where[task] = i;
            }
        }
    }
}

static void compare_bytes_task(void *context, int64_t task, int thread) {
    Comparison *c = context;
    Range range = range_part(c->count, 64, TASKS, task);
    c->differ[task] = memcmp(c->a + range.begin, c->b + range.begin, (size_t)(range.end - range.begin)) != 0;
    c->where[task] = range.begin;
}

// Calls `task` over both tensors, chunk by chunk (of whole rows), until it says (true) that it has seen enough.
static void compare(const Tensor *a, const Tensor *b, int64_t element_bytes, int64_t width, Comparison *c,
                    void (*task)(void *, int64_t, int), bool (*seen)(const Comparison *c, int64_t first, void *context),
                    void *context) {
    int64_t count = tensor_bytes(a) / element_bytes, most = CHUNK / width * width;
    most = most < width ? width : most;
    most = most < count ? most : count;
    unsigned char *mine = memory_new((size_t)most, (size_t)element_bytes),
                  *its = memory_new((size_t)most, (size_t)element_bytes);
    bool enough = false;
    for (int64_t i = 0; i < count && !enough; i += most) {
        int64_t now = count - i < most ? count - i : most;
        device_download(a->device, mine, (const char *)a->at + i * element_bytes, (size_t)(now * element_bytes));
        device_download(b->device, its, (const char *)b->at + i * element_bytes, (size_t)(now * element_bytes));
        *c = (Comparison){.type = a->type, .a = mine, .b = its, .count = now, .width = width, .bound = c->bound};
        threads_run(a->device->pool, TASKS, task, c);
        enough = seen(c, i, context);
    }
    free(mine);
    free(its);
}

static bool seen_difference(const Comparison *c, int64_t first, void *context) {
    int64_t *where = context;
    for (int t = 0; t < TASKS && *where < 0; t++) {
        *where = c->differ[t] != 0 ? first + c->where[t] : -1;
    }
    return *where >= 0;
}

static int64_t first_difference(const Tensor *a, const Tensor *b) {
    Comparison *c = memory_zeroed(1, sizeof *c);
    int64_t where = -1;
    compare(a, b, 1, 1, c, compare_bytes_task, seen_difference, &where);
    free(c);
    return where;
}

void finding_same_bits(Finding *finding, const char *what, const Tensor *a, const Tensor *b) {
    int64_t where = first_difference(a, b);
    if (where >= 0) {
        finding_add(finding, true, "%s: a second run gives other bits, first near element %lld", what,
                    (long long)(where / data_type_bytes(a->type)));
    }
}

typedef struct Worst {
    double over;
    int64_t where, differ;
} Worst;

static bool seen_worst(const Comparison *c, int64_t first, void *context) {
    Worst *worst = context;
    for (int t = 0; t < TASKS; t++) {
        worst->differ += c->differ[t];
        if (!(c->worst[t] <= worst->over)) {
            worst->over = c->worst[t];
            worst->where = first + c->where[t];
        }
    }
    return false;
}

void finding_other_body(Finding *finding, const char *what, const char *body, const Tensor *a, const Tensor *b,
                        const Bound *bound, int64_t width) {
    Comparison *c = memory_zeroed(1, sizeof *c);
    c->bound = bound;
    Worst worst = {.where = -1};
    compare(a, b, data_type_bytes(a->type), width > 0 ? width : 1, c, compare_task, seen_worst, &worst);
    free(c);
    bool wrong = !(worst.over <= 1);
    finding_add(finding, wrong, "%s: %s within %.2f", what, body, worst.over);
    if (wrong) {
        finding_add(finding, true, "worst at element %lld of %lld", (long long)worst.where, (long long)a->count);
    }
}

void plant(const Tensor *t) {
    if (planting) {
        unsigned char pack[16];
        int64_t packs = tensor_bytes(t) / 16, at = 1 + (int64_t)(philox_u64(19, 1, 0) % (uint64_t)(packs - 1));
        device_download(t->device, pack, (const char *)t->at + 16 * (at - 1), sizeof pack);
        device_upload(t->device, (char *)t->at + 16 * at, pack, sizeof pack);
    }
}

// ---- Serving

// One line of answer. An error is one of the device, which is of no use after it.
static bool answer(const char *name) {
    Finding finding = {0};
    for (int i = 0; i < check_count; i++) {
        if (strcmp(checks[i].name, name) == 0) {
            Error *error = checks[i].run(checks[i].what, &finding);
            if (error != NULL) {
                printf("error: %s\n", error->message);
                error_free(error);
                return false;
            }
            printf("%s: %s\n", finding.wrong ? "wrong" : "ok", finding.text);
            return true;
        }
    }
    printf("wrong: there is no check %s\n", name);
    return true;
}

static int check_all(void) {
    int code = 0;
    for (int i = 0; i < check_count; i++) {
        double start = clock_seconds();
        printf("%-44s ", checks[i].name);
        code |= !answer(checks[i].name);
        fprintf(stderr, "%.2f s\n", clock_seconds() - start);
    }
    return code;
}

int main(int count, char **arguments) {
    int at = 1;
    rehearsal = at < count && strcmp(arguments[at], "--rehearse") == 0;
    at += rehearsal;
    planting = at < count && strcmp(arguments[at], "--plant") == 0;
    at += planting;
    const char *mode = at < count ? arguments[at] : "";
    bool listing = strcmp(mode, "--list") == 0, serving = strcmp(mode, "--serve") == 0;
    if (at + 1 < count || (*mode != 0 && !listing && !serving)) {
        fprintf(stderr, "check_gpu: expected: check_gpu [--rehearse] [--plant] [--list | --serve]\n");
        return 1;
    }
    if (rehearsal) {
        setenv("ATHANOR_SIMULATED_ARCH", "90", 0);
    }
    list_products();
    list_classifiers();
    list_attentions();
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 0; i < check_count && listing; i++) {
        printf("%s\n", checks[i].name);
    }
    if (listing || !serving) {
        return listing ? 0 : check_all();
    }
    char line[256];
    bool usable = true;
    while (usable && fgets(line, sizeof line, stdin) != NULL) {
        line[strcspn(line, "\n")] = 0;
        usable = answer(line);
    }
    return usable ? 0 : 1;
}
