// The gate of layouts: a layout passes that trains as one rank does.
//
//   mpirun -n 8 layouts_gate CONFIG.yaml KEY=VALUE ...      one layout of one configuration
//   mpirun -n 8 layouts_gate @CASES                         many, a line each: CONFIG.yaml KEY=VALUE ...
//
// Everything runs in the trainer's own code (train_run), which this program watches from within (TrainerWatch). The world is
// cut into groups of ranks as large as the cases' layouts, so that small layouts run side by side, wave after wave.
//
// Of each configuration the ranks first make the reference: runs on one rank, each adding in another order (micro-batches of
// other sizes, instruction sets with sums of other widths, rows of the head taken by other numbers). Their mean, in float64,
// stands for what is right: rounding that depends on the order averages out of it, and rounding that does not is common to all
// layouts. How far a single order is from it is fp32's own error; per tensor, relative to max(the tensor's largest gradient,
// 1e-3 of the model's largest). The gate's tolerance is twice the largest of these, since two orders may err to two sides.
//
//   weights at step 0    the same bits as one rank's, and each element saved by exactly one rank
//   then                 all weights are moved by a function of row and element, so that no bias is zero and no norm trivial
//   first step           loss, norm and every gradient within the tolerance, on every rank that has it; none is left out
//   all steps            losses within twice what the orders differ by, which grows with the steps as theirs does
//
// A layout that is refused before its first step is no failure here, but counted and shown; a run that ends early is one.
#include "core/durable.h"
#include "core/log.h"
#include "train/trainer_state.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <unistd.h>

enum { MOST_STEPS = 64, MOST_ORDERS = 12 };

// ---- What is watched

// Of one run of one configuration on one rank.
typedef struct Seen {
    const struct Reference *reference;  // what to compare with; NULL: an order of it is being made
    float *weights, *gradients;         // of such an order: [elements] of the table
    int64_t elements;
    bool trains;  // it was not refused
    bool first;   // the gradients of the first step are still to come
    int64_t steps;
    double loss[MOST_STEPS], norm[MOST_STEPS];
    // Of a comparison.
    int64_t other_bits, saved, compared;  // elements: of other bits, of all that must be there, compared of these
    double worst;                         // gradient, in tolerances
    char tensor[PARAM_NAME_SIZE];         // where
} Seen;

typedef struct Reference {
    ParamTable table;
    float *weights;     // at step 0
    double *gradients;  // of the first step
    double *scales;     // of each row
    double tolerance;   // of gradients, relative to these
    int64_t steps;
    double loss[MOST_STEPS], loss_tolerance[MOST_STEPS];  // relative
    double norm, norm_tolerance;
} Reference;

// Calls `each` with the logical index of every element [begin, end) of a row as it lies on a rank, and its value there.
typedef void (*EachElement)(Seen *seen, const Param *row, int32_t i, int64_t index, float *value);
static void each_element(Seen *seen, const ModelWeights *weights, int32_t i, Range range, float *values, EachElement each) {
    const Param *row = &weights->table->rows[i];
    const Place *place = &weights->placement.places[i];
    int64_t at = 0, columns = row->dims == 1 ? 1 : row->shape[1];
    for (int b = 0; b < place->box_count; b++) {
        const Box *box = &place->boxes[b];
        int64_t first = row->dims == 1 ? 0 : box->begin[1], last = row->dims == 1 ? 1 : box->end[1];
        for (int64_t r = box->begin[0]; r < box->end[0]; r++) {
            for (int64_t c = first; c < last; c++, at++) {
                if (at >= range.begin && at < range.end) {
                    each(seen, row, i, row->index + r * columns + c, &values[at - range.begin]);
                }
            }
        }
    }
}

static void keep_weight(Seen *seen, const Param *row, int32_t i, int64_t index, float *value) {
    (void)row, (void)i;
    seen->weights[index] = *value;
}
static void compare_weight(Seen *seen, const Param *row, int32_t i, int64_t index, float *value) {
    (void)row, (void)i;
    seen->other_bits += memcmp(value, &seen->reference->weights[index], sizeof *value) != 0;
}
static void move_weight(Seen *seen, const Param *row, int32_t i, int64_t index, float *value) {
    (void)seen;
    *value += 0.05F * sinf((float)(i * 37 + (index - row->index) * 11 % 1013));
}
static void keep_gradient(Seen *seen, const Param *row, int32_t i, int64_t index, float *value) {
    (void)row, (void)i;
    seen->gradients[index] = *value;
}
static void compare_gradient(Seen *seen, const Param *row, int32_t i, int64_t index, float *value) {
    const Reference *reference = seen->reference;
    double error = fabs((double)*value - reference->gradients[index]) / reference->scales[i] / reference->tolerance;
    if (!(error <= seen->worst)) {
        seen->worst = isfinite(error) ? error : INFINITY;
        snprintf(seen->tensor, sizeof seen->tensor, "%s", row->name);
    }
}

// The weights as they were made: kept or compared, and then moved.
static void begun(void *context, Trainer *t) {
    Seen *seen = context;
    ModelWeights *weights = &t->model->weights;
    seen->trains = true;
    seen->elements = weights->table->elements;
    if (seen->reference == NULL) {
        seen->weights = memory_zeroed((size_t)seen->elements, sizeof *seen->weights);
        seen->gradients = memory_zeroed((size_t)seen->elements, sizeof *seen->gradients);
    }
    for (int32_t i = 0; i < weights->table->count; i++) {
        Range here = weights_extent(weights, ARRAY_WEIGHT, i);
        float *values = memory_new((size_t)(here.end - here.begin) + 1, sizeof *values);
        weights_read(weights, ARRAY_WEIGHT, i, here.begin, here.end, values);
        each_element(seen, weights, i, here, values, seen->reference == NULL ? keep_weight : compare_weight);
        each_element(seen, weights, i, here, values, move_weight);
        weights_write(weights, ARRAY_WEIGHT, i, here.begin, here.end, values);
        free(values);
    }
}

// What of a row's gradient this rank must have right: all that lies here, or of parts only its own.
static Range gradient_range(const Trainer *t, int32_t i) {
    const ModelWeights *weights = &t->model->weights;
    if (weights->placement.places[i].copy) {
        return (Range){0, 0};  // what it has went to the embedding's
    }
    return t->config->parallel.zero > 0 ? weights->placement.places[i].owned : weights_extent(weights, ARRAY_GRADIENT, i);
}

static void gradients(void *context, const Trainer *t) {
    Seen *seen = context;
    const ModelWeights *weights = &t->model->weights;
    if (!seen->first) {
        return;
    }
    seen->first = false;
    for (int32_t i = 0; i < weights->table->count; i++) {
        Range range = gradient_range(t, i);
        float *values = memory_new((size_t)(range.end - range.begin) + 1, sizeof *values);
        if (range.end > range.begin) {
            weights_read(weights, ARRAY_GRADIENT, i, range.begin, range.end, values);
            each_element(seen, weights, i, range, values, seen->reference == NULL ? keep_gradient : compare_gradient);
        }
        free(values);
    }
    for (int p = 0; p < t->parts.count; p++) {
        const SavedPart *part = &t->parts.saved[p];
        Range range = gradient_range(t, part->row);
        bool all = part->begin >= range.begin && part->end <= range.end;
        seen->saved += part->array == ARRAY_WEIGHT ? part->end - part->begin : 0;
        seen->compared += part->array == ARRAY_MOMENT1 && all ? part->end - part->begin : 0;
    }
}

static void told(void *context, const Trainer *t) {
    Seen *seen = context;
    int64_t step = t->told - 1;
    if (step < MOST_STEPS) {
        seen->loss[step] = t->control.loss_sum / t->control.weight_sum;
        seen->norm[step] = t->control.grad_norm;
        seen->steps = step + 1;
    }
}

// ---- One run

typedef struct Case {
    char *text;    // the line
    char **words;  // config, overrides
    int count;
    int ranks;
} Case;

// Trains in a folder that is gone afterwards. The error is that of all ranks, or ends the program.
static Error *train(const Case *c, char *const *more, int more_count, Comm *comm, const char *folder, Seen *seen) {
    char **overrides = memory_new((size_t)(c->count + more_count) + 1, sizeof *overrides);
    char *here = memory_format("folder=%s", folder);
    int count = 0;
    for (int i = 1; i < c->count; i++) {
        overrides[count++] = c->words[i];
    }
    for (int i = 0; i < more_count; i++) {
        overrides[count++] = more[i];
    }
    overrides[count++] = here;
    RunConfig config = {0};
    TrainerWatch watch = {begun, gradients, told, seen};
    bool stopped;
    seen->first = true;
    Error *error = comm_agree(comm, run_config_read(&config, c->words[0], overrides, count));
    if (error == NULL) {
        error = train_run_watched(&config, c->words[0], comm, &watch, &stopped);
    }
    if (error != NULL && !comm->agreed && comm->size > 1) {
        log_error("%s: %s", c->text, error->message);
        comm_abort(comm, 1);
    }
    run_config_free(&config);
    free(overrides);
    free(here);
    if (comm->rank == 0) {
        error_free(folder_remove(folder));
    }
    return error;
}

// ---- The reference

// An order that one rank may add in.
typedef struct OrderOfSums {
    char words[3][48];
    char *list[3];
} OrderOfSums;

static int list_orders(const Case *c, OrderOfSums *orders) {
    RunConfig config = {0};
    Error *error = run_config_read(&config, c->words[0], c->words + 1, c->count - 1);
    ensure(error == NULL, "%s", error->message);
    int count = 0;
    for (const char *const *variant = device_cpu_variants(); *variant != NULL; variant++) {
        for (int64_t micro = config.train.micro_batch; micro >= 1 && count < MOST_ORDERS; micro /= 2) {
            OrderOfSums *order = &orders[count++];
            snprintf(order->words[0], sizeof order->words[0], "instruction_set=%s", *variant);
            snprintf(order->words[1], sizeof order->words[1], "train.micro_batch=%lld", (long long)micro);
            snprintf(order->words[2], sizeof order->words[2], "train.head_rows=%d", 8 + 8 * (count % 3));
            for (int w = 0; w < 3; w++) {
                order->list[w] = order->words[w];
            }
        }
    }
    run_config_free(&config);
    return count;
}

static void must(Error *error) {
    ensure(error == NULL, "%s", error->message);
}

// The mean of the orders, and how far they are from it.
static void settle(Reference *out, const Seen *seen, int mine, int orders, Comm *world) {
    int64_t elements = seen[0].elements;
    out->weights = memory_new((size_t)elements, sizeof *out->weights);
    memcpy(out->weights, seen[0].weights, (size_t)elements * sizeof *out->weights);
    must(comm_broadcast(world, out->weights, elements * (int64_t)sizeof *out->weights, 0));
    out->gradients = memory_zeroed((size_t)elements, sizeof *out->gradients);
    out->scales = memory_zeroed((size_t)out->table.count, sizeof *out->scales);
    for (int k = 0; k < mine; k++) {
        for (int64_t e = 0; e < elements; e++) {
            out->gradients[e] += (double)seen[k].gradients[e] / orders;
        }
        for (int64_t s = 0; s < out->steps; s++) {
            out->loss[s] += seen[k].loss[s] / orders;
        }
        out->norm += seen[k].norm[0] / orders;
    }
    must(comm_all_reduce_doubles(world, out->gradients, elements, COMM_SUM));
    must(comm_all_reduce_doubles(world, out->loss, MOST_STEPS, COMM_SUM));
    must(comm_all_reduce_doubles(world, &out->norm, 1, COMM_SUM));
    double largest = 0;
    for (int32_t i = 0; i < out->table.count; i++) {
        const Param *row = &out->table.rows[i];
        for (int64_t e = row->index; e < row->index + row->count; e++) {
            out->scales[i] = fmax(out->scales[i], fabs(out->gradients[e]));
        }
        largest = fmax(largest, out->scales[i]);
    }
    double most[MOST_STEPS + 2] = {0};
    for (int32_t i = 0; i < out->table.count; i++) {
        const Param *row = &out->table.rows[i];
        out->scales[i] = fmax(out->scales[i], 1e-3 * largest);
        for (int k = 0; k < mine; k++) {
            for (int64_t e = row->index; e < row->index + row->count; e++) {
                double error = fabs((double)seen[k].gradients[e] - out->gradients[e]) / out->scales[i];
                most[MOST_STEPS] = fmax(most[MOST_STEPS], error);
            }
        }
    }
    for (int k = 0; k < mine; k++) {
        for (int64_t s = 0; s < out->steps; s++) {
            most[s] = fmax(most[s], fabs(seen[k].loss[s] / out->loss[s] - 1));
        }
        most[MOST_STEPS + 1] = fmax(most[MOST_STEPS + 1], fabs(seen[k].norm[0] / out->norm - 1));
    }
    must(comm_all_reduce_doubles(world, most, MOST_STEPS + 2, COMM_MAX));
    out->tolerance = 2 * most[MOST_STEPS];
    // A float holds no number better than this.
    out->norm_tolerance = 2 * fmax(most[MOST_STEPS + 1], FLT_EPSILON);
    for (int64_t s = 0; s < out->steps; s++) {
        most[s] = fmax(most[s], s > 0 ? most[s - 1] : FLT_EPSILON);
        out->loss_tolerance[s] = 2 * most[s];
    }
}

static void make_reference(const Case *of, const char *folder, Comm *world, Reference *out) {
    Case plain = *of;
    plain.count = 1;
    OrderOfSums *orders = memory_zeroed(MOST_ORDERS, sizeof *orders);
    int count = list_orders(&plain, orders), mine = 0;
    Seen *seen = memory_zeroed(MOST_ORDERS, sizeof *seen);
    Comm *self = comm_open_self();
    for (int k = 0; k < count; k++) {
        // Every rank makes at least one, so that all know the model.
        if (k % world->size == world->rank || (k == 0 && world->rank >= count)) {
            char here[300];
            snprintf(here, sizeof here, "%s/order-%d-%d", folder, world->rank, k);
            must(train(&plain, orders[k].list, 3, self, here, &seen[mine]));
            mine++;
        }
    }
    comm_close(self);
    RunConfig config = {0};
    must(run_config_read(&config, of->words[0], NULL, 0));
    must(model_config_resolve(&config.model, config.model_seen, 0, of->words[0]));
    params_create(&config.model, &out->table);
    run_config_free(&config);
    out->steps = seen[0].steps;
    settle(out, seen, world->rank >= count ? 0 : mine, count, world);
    for (int k = 0; k < mine; k++) {
        free(seen[k].weights);
        free(seen[k].gradients);
    }
    free(seen);
    free(orders);
}

static void reference_free(Reference *reference) {
    params_free(&reference->table);
    free(reference->weights);
    free(reference->gradients);
    free(reference->scales);
    *reference = (Reference){0};
}

// ---- A case

// What rank 0 of the world prints of one case; plain bytes between ranks.
typedef struct Verdict {
    bool ran, refused, passed;
    double worst, loss, norm, later;  // in tolerances: the worst gradient, the first loss and norm, the losses after it
    int64_t other_bits, saved, compared, steps;
    char tensor[PARAM_NAME_SIZE];
    char why[320];  // it was refused
} Verdict;

static Verdict judge(const Reference *reference, const Seen *seen, const double sums[3]) {
    Verdict v = {.ran = true,
                 .worst = seen->worst,
                 .norm = fabs(seen->norm[0] / reference->norm - 1) / reference->norm_tolerance,
                 .other_bits = (int64_t)sums[0],
                 .saved = (int64_t)sums[1],
                 .compared = (int64_t)sums[2],
                 .steps = seen->steps};
    memcpy(v.tensor, seen->tensor, sizeof v.tensor);
    for (int64_t s = 0; s < reference->steps; s++) {
        double error = fabs(seen->loss[s] / reference->loss[s] - 1) / reference->loss_tolerance[s];
        error = isfinite(error) ? error : INFINITY;
        *(s == 0 ? &v.loss : &v.later) = fmax(s == 0 ? 0 : v.later, error);
    }
    return v;
}

// Everybody's verdict, in the order of ranks, at rank 0; the caller frees the bytes.
static Buffer gather(const Verdict *own, Comm *comm) {
    Buffer all = {0};
    int64_t *ends = memory_new((size_t)comm->size, sizeof *ends);
    must(comm_gather(comm, own, sizeof *own, &all, ends));
    free(ends);
    return all;
}

static Verdict run_case(const Case *c, const Reference *reference, Comm *comm, const char *folder) {
    Seen seen = {.reference = reference};
    Error *error = train(c, NULL, 0, comm, folder, &seen);
    if (error != NULL) {
        Verdict v = {.ran = true, .refused = !seen.trains, .worst = INFINITY};
        snprintf(v.why, sizeof v.why, "%s", error->message);
        error_free(error);
        return v;
    }
    double sums[3] = {(double)seen.other_bits, (double)seen.saved, (double)seen.compared};
    must(comm_all_reduce_doubles(comm, sums, 3, COMM_SUM));
    Verdict v = judge(reference, &seen, sums);
    // The worst of all ranks comes to the first.
    Buffer all = gather(&v, comm);
    for (int r = 1; r < comm->size && comm->rank == 0; r++) {
        Verdict other;
        memcpy(&other, all.data + (size_t)r * sizeof other, sizeof other);
        if (other.worst > v.worst) {
            v.worst = other.worst;
            memcpy(v.tensor, other.tensor, sizeof v.tensor);
        }
        v.loss = fmax(v.loss, other.loss);
        v.later = fmax(v.later, other.later);
        v.norm = fmax(v.norm, other.norm);
    }
    buffer_free(&all);
    int64_t count = 0;
    for (int32_t i = 0; i < reference->table.count; i++) {
        count += reference->table.rows[i].count;
    }
    v.passed = v.other_bits == 0 && v.saved == count && v.compared == count && v.worst <= 1 && v.loss <= 1 && v.norm <= 1 &&
               v.later <= 1 && v.steps == reference->steps;
    return v;
}

// ---- All cases

// What of the line says the layout: all its words but the first.
static void print_case(const Case *c, const Verdict *v, const Reference *reference) {
    const char *name = strrchr(c->words[0], '/');
    char line[512] = "";
    size_t n = 0;
    for (int i = 1; i < c->count; i++) {
        const char *word = strncmp(c->words[i], "parallel.", 9) == 0 ? c->words[i] + 9 : c->words[i];
        n += (size_t)snprintf(line + n, sizeof line - n, "%s ", word);
        n = n < sizeof line ? n : sizeof line - 1;
    }
    printf("%-14s %-58s ", name != NULL ? name + 1 : c->words[0], line);
    if (v->refused) {
        printf("refused: %s\n", v->why);
    } else if (v->why[0] != 0) {
        printf("FAILED: %s\n", v->why);
    } else {
        printf("loss %4.2f  gradient %4.2f of %.1e  later %4.2f of %.1e  %-26s %s", v->loss, v->worst, reference->tolerance,
               v->later, reference->loss_tolerance[reference->steps - 1], v->tensor, v->passed ? "ok" : "FAILED");
        if (!v->passed) {
            printf(": %lld weights of other bits, %lld saved, %lld compared, norm %.2f, %lld steps", (long long)v->other_bits,
                   (long long)v->saved, (long long)v->compared, v->norm, (long long)v->steps);
        }
        printf("\n");
    }
    fflush(stdout);
}

static void add_word(Case *c, char *word) {
    c->words = memory_resize(c->words, (size_t)c->count + 1, sizeof *c->words);
    c->words[c->count++] = word;
}

// The ranks of a case: the product of its axes, one of data where that is left open.
static Error *count_ranks(Case *c) {
    RunConfig config = {0};
    Error *error = run_config_read(&config, c->words[0], c->words + 1, c->count - 1);
    int64_t data = config.parallel.data > 0 ? config.parallel.data : 1;
    c->ranks = (int)(data * config.parallel.tensor * config.parallel.pipeline * config.parallel.context);
    run_config_free(&config);
    return error;
}

static int by_config_and_size(const void *a, const void *b) {
    const Case *x = a, *y = b;
    int order = strcmp(x->words[0], y->words[0]);
    return order != 0 ? order : (x->ranks < y->ranks) - (x->ranks > y->ranks);
}

// Runs as many cases as find room, from the first on, side by side; returns how many.
static int run_wave(const Case *cases, int count, const Reference *reference, Comm *world, const char *folder,
                    Verdict *verdicts) {
    int taken = 0, used = 0, mine = -1, first = 0;
    while (taken < count && used + cases[taken].ranks <= world->size) {
        if (world->rank >= used && world->rank < used + cases[taken].ranks) {
            mine = taken;
            first = used;
        }
        used += cases[taken++].ranks;
    }
    Comm *comm;
    must(comm_split(world, mine + 1, world->rank, &comm));
    Verdict own = {0};
    if (mine >= 0) {
        char here[300];
        snprintf(here, sizeof here, "%s/case-%d", folder, first);
        own = run_case(&cases[mine], reference, comm, here);
    }
    comm_close(comm);
    Buffer all = gather(&own, world);
    for (int i = 0, at = 0; i < taken && world->rank == 0; at += cases[i++].ranks) {
        memcpy(&verdicts[i], all.data + (size_t)at * sizeof own, sizeof own);
        print_case(&cases[i], &verdicts[i], reference);
    }
    buffer_free(&all);
    return taken;
}

static int run_all(Case *cases, int count, Comm *world, const char *folder) {
    int ran = 0, refused = 0, failed = 0;
    qsort(cases, (size_t)count, sizeof *cases, by_config_and_size);
    Reference reference = {0};
    Verdict *verdicts = memory_zeroed((size_t)count, sizeof *verdicts);
    for (int at = 0; at < count;) {
        if (at == 0 || strcmp(cases[at].words[0], cases[at - 1].words[0]) != 0) {
            reference_free(&reference);
            make_reference(&cases[at], folder, world, &reference);
        }
        int same = 1;
        while (at + same < count && strcmp(cases[at + same].words[0], cases[at].words[0]) == 0) {
            same++;
        }
        at += run_wave(cases + at, same, &reference, world, folder, verdicts + at);
    }
    for (int i = 0; i < count && world->rank == 0; i++) {
        ran += !verdicts[i].refused;
        refused += verdicts[i].refused;
        failed += !verdicts[i].refused && !verdicts[i].passed;
    }
    reference_free(&reference);
    free(verdicts);
    if (world->rank == 0) {
        printf("%d layouts ran, %d were refused, %d failed\n", ran, refused, failed);
    }
    double bad = failed;
    must(comm_all_reduce_doubles(world, &bad, 1, COMM_MAX));
    return bad > 0;
}

// The cases of a file, a line each; the words point into `text`.
static Error *read_cases(const char *path, Buffer *text, Case **cases, int *count) {
    TRY(file_read(path, 1 << 24, text));
    int capacity = 0;
    for (char *line = text->data, *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        *end = 0;
        Case c = {.text = line};
        for (char *save, *word = strtok_r(line, " ", &save); word != NULL; word = strtok_r(NULL, " ", &save)) {
            add_word(&c, word);
        }
        if (c.count > 0) {
            array_push(*cases, *count, capacity, c);
        }
    }
    return NULL;
}

int main(int argc, char **argv) {
    Comm *world;
    must(comm_open_world(&world));
    log_set_rank(world->rank + 1, world->size + 1);  // no rank tells of its runs
    Case *cases = NULL, one = {0};
    Buffer text = {0};
    int count = 0;
    Error *error = argc < 2 ? failure("usage: layouts_gate CONFIG.yaml KEY=VALUE ... | layouts_gate @CASES") : NULL;
    if (error == NULL && argv[1][0] == '@') {
        error = read_cases(argv[1] + 1, &text, &cases, &count);
    } else if (error == NULL) {
        one.text = argv[1];
        for (int i = 1; i < argc; i++) {
            add_word(&one, argv[i]);
        }
        cases = memory_new(1, sizeof *cases);
        cases[count++] = one;
    }
    for (int i = 0; i < count && error == NULL; i++) {
        error = count_ranks(&cases[i]);
        if (error == NULL && cases[i].ranks > world->size) {
            error = failure("a layout of %d ranks in a world of %d", cases[i].ranks, world->size);
        }
    }
    if (error != NULL) {
        fprintf(stderr, "layouts_gate: %s\n", error->message);
        comm_abort(world, 2);
    }
    char folder[] = "/dev/shm/athanor-gate-XXXXXX";
    if (world->rank == 0) {
        ensure(mkdtemp(folder) != NULL, "%s cannot be made", folder);
    }
    must(comm_broadcast(world, folder, sizeof folder, 0));
    int code = run_all(cases, count, world, folder);
    if (world->rank == 0) {
        must(folder_remove(folder));
    }
    for (int i = 0; i < count; i++) {
        free(cases[i].words);
    }
    free(cases);
    buffer_free(&text);
    comm_close(world);
    return code;
}
