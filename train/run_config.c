// The configuration of a run: see run_config.h.
#include "train/run_config.h"

#include "core/config.h"
#include "train/model/plan.h"

#include <stdio.h>

const char *const run_device_names[] = {"auto", "cpu", "cuda", "simulated", NULL};
const char *const run_type_names[] = {"auto", "fp32", "bf16", "fp16", NULL};
const char *const run_products_names[] = {"auto", "ours", "cublas", "sm80", NULL};
static const char *const moment_names[] = {"fp32", "8bit", NULL};
static const char *const optimizer_names[] = {"adamw", "lion", "sgd", NULL};
static const char *const schedule_names[] = {"cosine", "linear", "constant", "wsd", NULL};

#define AT(member) offsetof(RunConfig, member)
static const Key own_keys[] = {
    {"folder", KEY_TEXT, AT(folder),
     .help = "The run folder: configuration, metrics, samples and checkpoints go there; a run continues from what it holds."},
    {"seed", KEY_INT, AT(seed), "1234", 0, 9e15, .help = "Seed of initial weights, data order, dropout and samples."},
    {"device", KEY_CHOICE, AT(device), "auto", .choices = run_device_names,
     .help = "Where to compute; auto: on a card where there is one. simulated is for tests."},
    {"card", KEY_INT, AT(card), "-1", -1, 63, .help = "Number of the card; -1 deals a host's cards to its ranks in turn.",
     .per_rank = true},
    {"threads", KEY_INT, AT(threads), "0", 0, 4096, .help = "Threads of each rank; 0 shares the host's cores among its ranks.",
     .per_rank = true},
    {"instruction_set", KEY_TEXT, AT(instruction_set), "auto",
     .help = "Instruction set of the CPU kernels: auto, or one that athanor doctor lists."},
    {"products", KEY_CHOICE, AT(products), "auto", .choices = run_products_names,
     .help = "Matrix products of a card: ours, cublas, sm80 (our portable ones), or auto: the faster by trial for each shape, "
             "kept in the run folder so that a run goes on with the same."},

    {"data.corpus", KEY_TEXT, AT(data.corpus),
     .help = "The training corpus: a folder made by athanor data build, or the prefix of a Megatron .bin/.idx pair."},
    {"data.validation", KEY_TEXT, AT(data.validation), .help = "The held-out corpus, evaluated set by set; null: none."},
    {"data.sequence_length", KEY_INT, AT(data.sequence_length), "0", 0, 1 << 24, .unit = "tokens",
     .help = "Length of a sample; 0: the model's context."},
    {"data.mixture", KEY_PROPORTIONS, AT(data.mixture),
     .help = "How often to draw from each set, relative, such as {Books: 2, Notes: 1}; sets not named are left out. Empty: in "
             "proportion to size."},
    {"data.epochs", KEY_PROPORTIONS, AT(data.epochs),
     .help = "Instead of data.mixture: how often to go through each set relative to the others; sets not named count 1."},
    {"data.documents_apart", KEY_BOOL, AT(data.documents_apart), "true",
     .help = "Keep attention and positions within documents."},
    {"data.prefetch", KEY_INT, AT(data.prefetch), "4", 1, 1024, .unit = "micro-batches",
     .help = "How many micro-batches the loader holds ready."},

    {"train.steps", KEY_INT, AT(train.steps), "0", 0, 9e15, .unit = "steps",
     .help = "Length of the run. Give this or train.tokens."},
    {"train.tokens", KEY_INT, AT(train.tokens), "0", 0, 9e15, .unit = "tokens",
     .help = "Length of the run, rounded up to whole steps. Give this or train.steps."},
    {"train.batch_tokens", KEY_INT, AT(train.batch_tokens), "0", 0, 1e12, .unit = "tokens",
     .help = "Tokens of one step over all ranks, by gradient accumulation where it needs more than one micro-batch a rank; 0: "
             "one micro-batch a rank, which binds a run to its number of ranks."},
    {"train.micro_batch", KEY_INT, AT(train.micro_batch), "8", 1, 1 << 20, .unit = "sequences",
     .help = "Sequences that a rank computes at a time."},
    {"train.recompute", KEY_CHOICE, AT(train.recompute), "none", .choices = recompute_names,
     .help = "Which activations the backward pass computes again instead of keeping: none; selective (norms and activation "
             "functions); full (everything but each layer's input)."},
    {"train.head_rows", KEY_INT, AT(train.head_rows), "0", 0, 1 << 30, .unit = "rows",
     .help = "Rows of logits held at a time by the head; 0: chosen to take about 64 MiB."},
    {"train.z_loss", KEY_FLOAT, AT(train.z_loss), "0", 0, 1,
     .help = "Weight of the squared logarithm of the softmax normaliser in the loss (z-loss); 1e-4 is usual, 0 is off."},

    {"train.most_skipped", KEY_INT, AT(train.most_skipped), "50", 1, 1e9, .unit = "steps",
     .help = "Steps in a row without a finite gradient after which the model counts as lost: the run ends with an error. Those "
             "with which fp16's loss scale falls do not count."},

    {"train.type", KEY_CHOICE, AT(train.type), "auto", .choices = run_type_names,
     .help = "Type of weights and activations; sums and gradients are fp32 in any case. auto: bf16 on a card, fp32 on the CPU. "
             "fp16 adapts a loss scale."},
    {"train.masters", KEY_BOOL, AT(train.masters), "true",
     .help = "Keep fp32 copies of 16-bit parameters; false: updates are rounded stochastically instead, 4 bytes a parameter "
             "less."},
    {"train.graph", KEY_BOOL, AT(train.graph), "true",
     .help = "Record a card's step once and repeat it as a whole; not with dropout."},
    {"train.deterministic", KEY_BOOL, AT(train.deterministic), "true",
     .help = "Same bits each time. false: attention's backward pass on Hopper adds in any order, and a resumed run is not the "
             "same to the bit."},

    {"optimizer.kind", KEY_CHOICE, AT(optimizer.kind), "adamw", .choices = optimizer_names, .help = "The optimizer."},
    {"optimizer.moments", KEY_CHOICE, AT(optimizer.moments), "fp32", .choices = moment_names,
     .help = "How the optimizer's moments are kept; 8bit takes 1 byte instead of 4 each."},
    {"optimizer.learning_rate", KEY_FLOAT, AT(optimizer.learning_rate), "6e-4", 0, 1000, .help = "Peak learning rate."},
    {"optimizer.beta1", KEY_FLOAT, AT(optimizer.beta1), "0.9", 0, 1, .help = "Decay of the first moment; the momentum of sgd."},
    {"optimizer.beta2", KEY_FLOAT, AT(optimizer.beta2), "0.95", 0, 1,
     .help = "Decay of the second moment; of the momentum for lion."},
    {"optimizer.epsilon", KEY_FLOAT, AT(optimizer.epsilon), "1e-8", 0, 1, .help = "Added to the root of the second moment."},
    {"optimizer.weight_decay", KEY_FLOAT, AT(optimizer.weight_decay), "0.1", 0, 10,
     .help = "Decoupled weight decay; norms and biases are never decayed."},
    {"optimizer.clip", KEY_FLOAT, AT(optimizer.clip), "1.0", 0, 1e9, .help = "Largest global gradient norm; 0 does not clip."},

    {"schedule.kind", KEY_CHOICE, AT(schedule.kind), "cosine", .choices = schedule_names,
     .help = "Shape of the learning rate after warm-up."},
    {"schedule.warmup_steps", KEY_INT, AT(schedule.warmup_steps), "0", 0, 9e15, .unit = "steps", .help = "Linear warm-up."},
    {"schedule.decay_steps", KEY_INT, AT(schedule.decay_steps), "0", 0, 9e15, .unit = "steps",
     .help = "The final decay of wsd; 0: a fifth of the run."},
    {"schedule.floor", KEY_FLOAT, AT(schedule.floor), "0.1", 0, 1, .help = "Final learning rate as a share of the peak."},

    {"checkpoint.every", KEY_INT, AT(checkpoint.every), "1000", 0, 9e15, .unit = "steps",
     .help = "How often to save; the end of the run is always saved. 0: only then."},
    {"checkpoint.keep_last", KEY_INT, AT(checkpoint.keep_last), "2", 1, 1e6,
     .help = "How many of the newest checkpoints to keep."},
    {"checkpoint.keep_every", KEY_INT, AT(checkpoint.keep_every), "0", 0, 9e15, .unit = "steps",
     .help = "Also keep every checkpoint whose step is a multiple of this; 0: none."},

    {"validation.every", KEY_INT, AT(validation.every), "500", 0, 9e15, .unit = "steps",
     .help = "How often to evaluate on data.validation; also before the first and after the last step. 0: never."},
    {"validation.samples", KEY_INT, AT(validation.samples), "64", 1, 1e12, .unit = "sequences",
     .help = "Sequences taken from each validation set, spread evenly."},

    {"samples.every", KEY_INT, AT(samples.every), "0", 0, 9e15, .unit = "steps",
     .help = "How often to write sample texts; also before the first and after the last step. 0: never."},
    {"samples.prompts", KEY_LIST, AT(samples.prompts), .help = "Texts to continue; an empty text starts a new document."},
    {"samples.tokens", KEY_INT, AT(samples.tokens), "100", 1, 1e6, .unit = "tokens", .help = "Length of a sample text."},
    {"samples.temperature", KEY_FLOAT, AT(samples.temperature), "0.8", 0, 100,
     .help = "Temperature of sample texts; 0 takes the most likely token."},
    {"samples.top_k", KEY_INT, AT(samples.top_k), "0", 0, 1e9, .help = "Sample among the k most likely tokens; 0: all."},
    {"samples.top_p", KEY_FLOAT, AT(samples.top_p), "0.95", 0, 1,
     .help = "Sample among the most likely tokens that make up this probability."},

    {"log.every", KEY_INT, AT(log.every), "10", 1, 9e15, .unit = "steps",
     .help = "How often to print a line; every step is written to metrics.jsonl."},

    {"parallel.data", KEY_INT, AT(parallel.data), "0", 0, 1 << 20, .unit = "ranks",
     .help = "Data-parallel copies of the model; 0: all ranks that the other axes leave."},
    {"parallel.tensor", KEY_INT, AT(parallel.tensor), "1", 1, 1 << 20, .unit = "ranks",
     .help = "Ranks that share each layer. Must be 1: not yet supported."},
    {"parallel.pipeline", KEY_INT, AT(parallel.pipeline), "1", 1, 1 << 20, .unit = "ranks",
     .help = "Ranks that share the stack of layers. Must be 1: not yet supported."},
    {"parallel.context", KEY_INT, AT(parallel.context), "1", 1, 1 << 20, .unit = "ranks",
     .help = "Ranks that share each sequence. Must be 1: not yet supported."},
    {"parallel.bucket_mib", KEY_FLOAT, AT(parallel.bucket_mib), "8", 0.001, 65536, .unit = "MiB",
     .help = "Size of the gradient buckets that are reduced while the backward pass still runs."},
};

enum { OWN_KEYS = sizeof own_keys / sizeof *own_keys, MOST_KEYS = 128 };

// The model's keys stand between the run's own general keys and the data's, moved to where RunConfig holds them.
const Key *run_config_keys(int *count) {
    static Key table[MOST_KEYS];
    static int rows;
    if (rows == 0) {
        ensure(OWN_KEYS + model_key_count <= MOST_KEYS, "room for %d keys", OWN_KEYS + model_key_count);
        int general = 0, filled = 0;
        while (strchr(own_keys[general].name, '.') == NULL) {
            table[filled++] = own_keys[general++];
        }
        for (int i = 0; i < model_key_count; i++) {
            table[filled] = model_keys[i];
            table[filled++].offset += offsetof(RunConfig, model);
        }
        for (int i = general; i < OWN_KEYS; i++) {
            table[filled++] = own_keys[i];
        }
        rows = filled;
    }
    *count = rows;
    return table;
}

// What can be checked without the corpus.
static Error *check(const RunConfig *config, const char *where) {
    if (config->folder == NULL || *config->folder == 0) {
        return failure("%s: folder is missing: where shall the run be kept?", where);
    }
    if (config->data.corpus == NULL) {
        return failure("%s: data.corpus is missing: a folder made by 'athanor data build'", where);
    }
    if ((config->train.steps > 0) == (config->train.tokens > 0)) {
        return failure("%s: give either train.steps or train.tokens, how long the run shall be", where);
    }
    if (config->optimizer.beta1 >= 1 || config->optimizer.beta2 >= 1) {
        return failure("%s: optimizer.beta1 and optimizer.beta2 must be below 1", where);
    }
    if (config->data.mixture.count > 0 && config->data.epochs.count > 0) {
        return failure("%s: give data.mixture or data.epochs, not both", where);
    }
    return NULL;
}

Error *run_config_read(RunConfig *config, const char *path, char *const *overrides, int override_count) {
    int count;
    const Key *keys = run_config_keys(&count);
    bool seen[MOST_KEYS] = {false};
    keys_defaults(keys, count, config);
    TRY(config_read(keys, count, config, path, overrides, override_count, seen));
    for (int i = 0; i < model_key_count; i++) {
        config->model_seen[i] = seen[keys_find(keys, count, model_keys[i].name) - keys];
    }
    return check(config, path);
}

int64_t run_config_micro_batch(int64_t batch_tokens, int64_t length, int64_t at_most, int *ranks) {
    if (batch_tokens % length != 0) {
        return 0;
    }
    int64_t sequences = batch_tokens / length;
    while (sequences % *ranks != 0) {
        --*ranks;
    }
    int64_t share = sequences / *ranks, fits = share < at_most ? share : at_most;
    while (share % fits != 0) {
        fits--;
    }
    return fits;
}

// The step of train.batch_tokens is no multiple of `round`, what the ranks take at once. A run that exists keeps its step: what
// lets ranks share it comes first.
static Error *uneven_batch(const RunConfig *config, int64_t round, int ranks, const char *where) {
    int64_t batch = config->train.batch_tokens, below = batch / round * round;
    int fewer = ranks;
    int64_t fits = run_config_micro_batch(batch, config->data.sequence_length, config->train.micro_batch, &fewer);
    char same[128] = "", less[32] = "", on[32] = "";
    if (fits > 0) {
        if (fewer < ranks) {
            snprintf(on, sizeof on, " on %d %s", fewer, fewer == 1 ? "rank" : "ranks");
        }
        snprintf(same, sizeof same, "train.micro_batch=%lld%s would do; for a new run also ", (long long)fits, on);
    }
    if (below > 0) {
        snprintf(less, sizeof less, "%lld or ", (long long)below);
    }
    return failure("%s: train.batch_tokens is %lld, no multiple of %d %s x %lld sequences x %lld tokens = %lld; "
                   "%strain.batch_tokens=%s%lld%s",
                   where, (long long)batch, ranks, ranks == 1 ? "rank" : "ranks", (long long)config->train.micro_batch,
                   (long long)config->data.sequence_length, (long long)round, same, less, (long long)(below + round),
                   same[0] == 0 ? " would do" : "");
}

Error *run_config_resolve(RunConfig *config, int64_t corpus_vocabulary, int data_ranks, const char *where) {
    TRY(model_config_resolve(&config->model, config->model_seen, corpus_vocabulary, where));
    int64_t *length = &config->data.sequence_length, context = config->model.context;
    *length = *length > 0 ? *length : context;
    if (*length > context) {
        return failure("%s: data.sequence_length is %lld, more than the model's context of %lld", where, (long long)*length,
                       (long long)context);
    }
    int64_t round, *batch = &config->train.batch_tokens;
    if (__builtin_mul_overflow(config->train.micro_batch * *length, data_ranks, &round)) {
        return failure("%s: train.micro_batch times data.sequence_length is absurd", where);
    }
    *batch = *batch > 0 ? *batch : round;
    if (*batch % round != 0) {
        return uneven_batch(config, round, data_ranks, where);
    }
    if (config->train.steps == 0) {
        config->train.steps = (config->train.tokens + *batch - 1) / *batch;
        config->train.tokens = 0;  // the saved configuration says it in steps
    }
    if (config->schedule.kind == SCHEDULE_WSD && config->schedule.decay_steps == 0) {
        config->schedule.decay_steps = config->train.steps / 5;
    }
    return NULL;
}

void run_config_free(RunConfig *config) {
    int count;
    const Key *keys = run_config_keys(&count);
    keys_free(keys, count, config);
}

void run_config_write(const RunConfig *config, Buffer *out) {
    int count;
    const Key *keys = run_config_keys(&count);
    config_write(keys, count, config, false, out);
}

void run_config_document(Buffer *out) {
    int count;
    const Key *keys = run_config_keys(&count);
    const char *section = "";
    buffer_text(out,
                "# Configuration\n\nEvery key of `athanor train CONFIG.yaml`, made by `athanor train --keys`. A dotted key is "
                "nested in "
                "YAML; on the command line it is written `key.path=value`. `include: other.yaml` reads another file first.\n");
    for (int i = 0; i < count; i++) {
        const Key *key = &keys[i];
        const char *dot = strchr(key->name, '.');
        size_t length = dot != NULL ? (size_t)(dot - key->name) : 0;
        if (i == 0 || strncmp(section, key->name, length + (dot != NULL)) != 0) {
            buffer_printf(out, "\n## %.*s\n\n| key | default | meaning |\n|---|---|---|\n", length > 0 ? (int)length : 3,
                          length > 0 ? key->name : "run");
            section = dot != NULL ? key->name : "";
        }
        buffer_printf(out, "| `%s` | %s | %s", key->name,
                      key->default_value != NULL && *key->default_value ? key->default_value : "", key->help);
        if (key->unit != NULL) {
            buffer_printf(out, " In %s.", key->unit);
        }
        for (int c = 0; key->type == KEY_CHOICE && key->choices[c] != NULL; c++) {
            buffer_printf(out, "%s `%s`", c == 0 ? " One of" : ",", key->choices[c]);
        }
        buffer_text(out, key->type == KEY_CHOICE ? ". |\n" : " |\n");
    }
}
